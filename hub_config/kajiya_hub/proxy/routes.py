"""The route table: path prefix -> target, longest prefix first."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote


def clean(path: str) -> str:
    """A prefix as it is kept: one slash in front, none behind; `/` alone is the default route."""
    return "/" + path.strip("/")


def decoded(raw_path: str) -> str:
    """The path of a request target as routes are matched: without query, percent-decoded.

    configurable-http-proxy decodes the whole path before it splits it; the Hub relies on that for unusual names.
    """
    path = raw_path.split("?", 1)[0]
    return unquote(path) if "%" in path else path


def iso(moment: float) -> str:
    """Unix seconds as configurable-http-proxy writes them: UTC, milliseconds, `Z`."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_iso(text: str) -> float:
    """Unix seconds of an ISO 8601 time; one without a zone is UTC. ValueError if it is none."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@dataclass(slots=True)
class Route:
    """Where one prefix leads, what the Hub stored with it, and when it was last used (Unix seconds)."""

    prefix: str
    target: str
    data: dict[str, Any] = field(default_factory=dict)
    last_activity: float = field(default_factory=time.time)

    def touch(self) -> None:
        """Something passed just now."""
        self.last_activity = time.time()

    def view(self) -> dict[str, Any]:
        """The route as the REST API shows it."""
        return {**self.data, "target": self.target, "last_activity": iso(self.last_activity)}


class Routes:
    """All routes; a lookup costs at most one dictionary access for each segment that any route has."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self._depth = 0

    def __len__(self) -> int:
        return len(self._routes)

    def add(self, prefix: str, target: str, data: dict[str, Any] | None = None) -> Route:
        """Add or replace the route of a prefix; being added counts as activity."""
        route = Route(clean(prefix), target, data or {})
        self._routes[route.prefix] = route
        self._measure()
        return route

    def remove(self, prefix: str) -> bool:
        """Whether there was such a route; there is none afterwards."""
        found = self._routes.pop(clean(prefix), None) is not None
        self._measure()
        return found

    def get(self, prefix: str) -> Route | None:
        """The route of exactly this prefix."""
        return self._routes.get(clean(prefix))

    def all(self, inactive_since: float | None = None) -> dict[str, Route]:
        """Every route by prefix, or only those last used before a time (Unix seconds)."""
        return {
            prefix: route
            for prefix, route in self._routes.items()
            if inactive_since is None or route.last_activity < inactive_since
        }

    def find(self, path: str) -> Route | None:
        """The route with the longest prefix of this decoded path; prefixes end at a slash, never inside a segment."""
        routes = self._routes
        # Only as deep as the deepest route, so that a path of thousands of slashes costs no more than another.
        parts = path.split("/", self._depth + 1)[: self._depth + 1]
        for length in range(len(parts), 1, -1):
            route = routes.get("/".join(parts[:length]))
            if route is not None:
                return route
        return routes.get("/")

    def _measure(self) -> None:
        self._depth = max((prefix.count("/") for prefix in self._routes if prefix != "/"), default=0)
