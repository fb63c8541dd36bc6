"""A stream of server-sent events that ends when its token is revoked, its reader sleeps, or the service stops."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from kajiya.errors import HubUnreachable, InvalidRequest, KajiyaError, TooManyRequests
from kajiya_hub.api.deps import Caller, Deps
from kajiya_hub.api.limits import Counters
from kajiya_hub.api.streams import Follower, Streams

PING = b": ping\n\n"
WRITE_SECONDS = 60.0


def event(name: str, data: bytes, id: str = "") -> bytes:
    """One event. `data` is JSON, so it holds neither CR nor LF but escaped."""
    head = f"event: {name}\nid: {id}\n" if id else f"event: {name}\n"
    return head.encode() + b"data: " + data + b"\n\n"


def position(header: str | None, pattern: str) -> tuple[int, ...] | None:
    """The numbers of a Last-Event-ID, or None where there is none. Raises `InvalidRequest`."""
    if not header:
        return None
    found = re.fullmatch(pattern, header)
    if found is None:
        raise InvalidRequest(field="Last-Event-ID", problem="event_id")
    return tuple(int(g) for g in found.groups())


class Session:
    """One open stream: when it must end, and when a comment is due."""

    def __init__(self, deps: Deps, streams: Streams, caller: Caller, follower: Follower) -> None:
        self._authenticator = deps.authenticator
        self._limits = deps.limits
        self._streams = streams
        self._caller = caller
        self.follower = follower
        now = time.monotonic()
        self._checked, self._pinged = now, now

    async def over(self) -> bool:
        """Whether the stream must end now: the service stops, or the token is revoked."""
        if self._streams.closing:
            return True
        now = time.monotonic()
        if now - self._checked < self._limits.recheck_seconds:
            return False
        self._checked = now
        try:
            identity = await self._authenticator.identify(self._caller.token)
        except (HubUnreachable, TooManyRequests):
            # Nothing is known of the token, which is no reason to cut off a reader who had the right.
            return False
        except KajiyaError:
            return True
        return identity.name != self._caller.name

    def ping(self) -> bytes:
        """A comment if one is due, else nothing."""
        now = time.monotonic()
        if now - self._pinged < self._limits.ping_seconds:
            return b""
        self._pinged = now
        return PING

    async def wait(self) -> None:
        """Waits for something new, or until a check or a comment is due."""
        now = time.monotonic()
        due = min(self._checked + self._limits.recheck_seconds, self._pinged + self._limits.ping_seconds)
        await self.follower.wait(max(0.01, due - now))


class Stream(StreamingResponse):
    """The answer of a stream. It counts while it is open, and drops a reader who takes nothing for a minute."""

    def __init__(
        self,
        content: AsyncIterator[bytes],
        close: Callable[[], None],
        media_type: str = "text/event-stream",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            content,
            media_type=media_type,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})},
        )
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def soon(message: Any) -> None:
            async with asyncio.timeout(WRITE_SECONDS):
                await send(message)

        try:
            await super().__call__(scope, receive, soon)
        except TimeoutError:
            pass
        finally:
            self._close()


def opened(counters: Counters, streams: Streams, follower: Follower, caller: Caller) -> Callable[[], None]:
    """Counts a stream and takes its follower in; gives the function that undoes both. Raises `TooManyRequests`."""
    counters.take("stream", caller.name)
    streams.add(follower)

    def close() -> None:
        streams.remove(follower)
        counters.give("stream", caller.name)

    return close
