"""Who asks: a Hub token, the token of a job's attempt, or a browser signed in through the Hub."""

import base64
import binascii
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import httpx

from kajiya.errors import AttemptSuperseded, HubUnreachable, KajiyaError, NotAllowed, NotAuthenticated, Unreachable
from kajiya_hub.auth import (
    MAX_TOKEN_LENGTH,
    HubAuthenticator,
    token_from,
    token_hash,
)
from kajiya_hub.mlflow_app.options import SERVICE, Options

# An attempt may end at any moment, and then its token must: asking the service next door costs next to nothing.
REMEMBERED_SECONDS = 2.0


@dataclass(frozen=True)
class Person:
    """Who asks. `key` is the name in MLflow's own store of users, where no two persons share one."""

    name: str
    admin: bool = False
    service: bool = False

    @property
    def key(self) -> str:
        """A slash never stands in a Hub name, so neither an administrator nor a service can meet a user."""
        return f"{'service/' if self.service else ''}{'admin/' if self.admin else ''}{self.name}"


class ServiceUnreachable(Unreachable):
    """The workbench service, which knows the tokens of attempts, does not answer."""

    code = "mlflow.service_unreachable"


class Attempts:
    """Asks the workbench service whose attempt a token belongs to, and remembers the answer for a moment."""

    def __init__(self, api: str, transport: httpx.AsyncBaseTransport | None = None, remembered: int = 10_000) -> None:
        self._url = api.rstrip("/") + "/whoami"
        # trust_env off: a proxy for the internet must never see tokens on their way to our own service.
        self._client = httpx.AsyncClient(transport=transport, timeout=5.0, trust_env=False, follow_redirects=False)
        self._known: OrderedDict[str, tuple[float, Person | KajiyaError]] = OrderedDict()
        self._remembered = remembered

    async def close(self) -> None:
        """Closes the connections to the service."""
        await self._client.aclose()

    async def find(self, token: str) -> Person:
        """The owner. Raises `NotAuthenticated`, `AttemptSuperseded`, `ServiceUnreachable`."""
        key = token_hash(token)
        until, answer = self._known.get(key, (0.0, NotAuthenticated()))
        if until <= time.monotonic():
            answer = await self._ask(token)
            if isinstance(answer, ServiceUnreachable):
                raise answer
            self._known[key] = (time.monotonic() + REMEMBERED_SECONDS, answer)
            self._known.move_to_end(key)
            while len(self._known) > self._remembered:
                self._known.popitem(last=False)
        if isinstance(answer, KajiyaError):
            raise answer
        return answer

    async def _ask(self, token: str) -> Person | KajiyaError:
        try:
            answer = await self._client.get(self._url, headers={"Authorization": f"token {token}"})
            who: dict[str, Any] = answer.json() if answer.status_code in (200, 409) else {}
        except (httpx.HTTPError, ValueError):
            return ServiceUnreachable()
        if answer.status_code == 409:
            params = (who.get("error") or {}).get("params") if isinstance(who, dict) else None
            return AttemptSuperseded(**(params if isinstance(params, dict) else {}))
        if answer.status_code == 200 and who.get("kind") == "attempt" and isinstance(who.get("name"), str):
            return Person(who["name"])
        return NotAuthenticated() if answer.status_code < 500 else ServiceUnreachable()


class Identities:
    """Turns what a request carries into a person."""

    def __init__(self, options: Options, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._hub = HubAuthenticator(options.hub_api, SERVICE, transport)
        self._attempts = Attempts(options.service_api, transport) if options.service_api else None

    async def close(self) -> None:
        """Closes all connections."""
        await self._hub.close()
        if self._attempts is not None:
            await self._attempts.close()

    async def of_header(self, header: str) -> Person:
        """The person of an `Authorization` header: `Bearer`, `token`, or `Basic` with the token as password.

        Raises `NotAuthenticated`, `NotAllowed`, `AttemptSuperseded`, `HubUnreachable`, `ServiceUnreachable`.
        """
        name, token = _credentials(header)
        person = await self._of_token(token)
        if name not in (None, "", "token", person.name):
            # A name that is not the token's is a mistake or a lie; neither may pass in silence.
            raise NotAuthenticated()
        return person

    async def of_browser(self, token: str) -> Person:
        """The person behind a token that our own sign-in got from the Hub."""
        identity = await self._hub.find(token)
        if identity is None:
            raise NotAuthenticated()
        return Person(identity.name, admin=identity.admin)

    async def _of_token(self, token: str) -> Person:
        if not token or len(token) > MAX_TOKEN_LENGTH or not token.isascii() or not token.isprintable():
            raise NotAuthenticated()
        try:
            identity = await self._hub.find(token)
        except NotAuthenticated:
            identity = None
        except HubUnreachable:
            # Jobs go on while the Hub is away: the workbench service knows their tokens by itself.
            if self._attempts is not None:
                try:
                    return await self._attempts.find(token)
                except NotAuthenticated:
                    pass
            raise
        except NotAllowed:
            raise NotAllowed(action="use_mlflow") from None
        if identity is not None:
            return Person(identity.name, identity.admin, identity.whoami.kind == "service")
        if self._attempts is None:
            raise NotAuthenticated()
        return await self._attempts.find(token)


def _credentials(header: str) -> tuple[str | None, str]:
    kind, _, rest = header.strip().partition(" ")
    if kind.lower() != "basic":
        return None, token_from(header)
    try:
        name, _, token = base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")
    except (binascii.Error, ValueError) as e:
        raise NotAuthenticated() from e
    return name, token
