"""Whether the service works, part by part. Open to all, so it says little, and looks at most once a second."""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from starlette.responses import Response

from kajiya import __version__
from kajiya.sizes import show_size
from kajiya.types import Health, MiB
from kajiya_hub.api.deps import Deps, Given
from kajiya_hub.api.views import JSON

router = APIRouter(tags=["operation"])
ENOUGH_DISK = 200 * MiB
REMEMBER_SECONDS = 1.0
PART_SECONDS = 3.0
# Without these nobody can be identified for a while, but jobs go on: no reason to call the service broken.
OUTSIDE = frozenset({"hub"})


class Checks:
    """The last answer, and the one look that is under way."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._mutex = asyncio.Lock()
        self._at = -REMEMBER_SECONDS
        self._last: Health | None = None

    async def look(self) -> Health:
        """How each part is."""
        async with self._mutex:
            if self._last is None or time.monotonic() - self._at >= REMEMBER_SECONDS:
                self._last, self._at = await self._look(), time.monotonic()
            return self._last

    async def _look(self) -> Health:
        parts: dict[str, Callable[[], Awaitable[str]]] = {"store": self._store, "disk": self._disk, **self._deps.health}
        said = await asyncio.gather(*(_within(check) for check in parts.values()))
        found = dict(zip(parts, said, strict=True))
        ok = all(state == "ok" for part, state in found.items() if part not in OUTSIDE)
        return Health(ok=ok, version=__version__, parts=found)

    async def _store(self) -> str:
        await asyncio.to_thread(self._deps.store.ping)
        return "ok"

    async def _disk(self) -> str:
        return await asyncio.to_thread(self._disk_now)

    def _disk_now(self) -> str:
        free = shutil.disk_usage(self._deps.files.root).free
        if free < ENOUGH_DISK:
            return f"only {show_size(free)} left"
        probe = self._deps.files.root / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
        return "ok"


async def _within(check: Callable[[], Awaitable[str]]) -> str:
    try:
        async with asyncio.timeout(PART_SECONDS):
            return await check()
    except TimeoutError:
        return "does not answer"
    except Exception as e:
        # The kind only: the text of an exception may hold paths or addresses.
        return f"does not work ({type(e).__name__})"


@router.get(
    "/health",
    summary="See whether the service works",
    description="Needs no token. `ok` is false, and the status 503, when store, disk or loop do not work; a Hub that "
    "can't be reached is named and changes neither.",
    responses={
        200: {"model": Health, "description": "It works."},
        503: {"model": Health, "description": "A part does not work."},
    },
)
async def health(request: Request, deps: Given) -> Response:
    checks: Checks = request.app.state.checks
    state = await checks.look()
    return Response(state.model_dump_json(), 200 if state.ok else 503, None, JSON)
