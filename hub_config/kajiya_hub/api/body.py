"""A request's body for a thread to read, with deadlines, so that a slow or silent sender holds nothing for ever."""

import asyncio
import time
from collections.abc import Iterator

from starlette.requests import ClientDisconnect, Request

from kajiya.errors import InvalidRequest

SILENCE_SECONDS = 60.0
DRAIN_BYTES = 16 * 1024**2
DRAIN_SECONDS = 2.0


class Body:
    """The chunks of a request's body; `chunks` is for another thread than the loop's, `drain` for the loop."""

    def __init__(self, request: Request, seconds: float) -> None:
        self._stream = request.stream()
        self._loop = asyncio.get_running_loop()
        self._until = time.monotonic() + seconds

    def chunks(self) -> Iterator[bytes]:
        """Waits for each chunk. Raises `InvalidRequest` when it takes too long, `ClientDisconnect` when it ends."""
        while True:
            left = min(SILENCE_SECONDS, self._until - time.monotonic())
            future = asyncio.run_coroutine_threadsafe(self._chunk(), self._loop)
            try:
                chunk = future.result(max(0.0, left))
            except TimeoutError as e:
                future.cancel()
                raise InvalidRequest(field="body", problem="too_slow") from e
            if chunk is None:
                return
            if chunk:
                yield chunk

    async def _chunk(self) -> bytes | None:
        return await anext(self._stream, None)

    async def drain(self) -> None:
        """Reads on for a moment after a refusal, so that the sender gets to see the answer and no broken line."""
        left = DRAIN_BYTES
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while left > 0 and (chunk := await self._chunk()) is not None:
                    left -= len(chunk)
        except (TimeoutError, ClientDisconnect, RuntimeError):
            pass
