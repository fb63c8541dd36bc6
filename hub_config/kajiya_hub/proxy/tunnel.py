"""Websockets: after the target's 101 the bytes pass untouched, so subprotocols, extensions and sizes are its own."""

import asyncio

import aiohttp
from aiohttp import web
from aiohttp.http import StreamWriter

from kajiya_hub.proxy.headers import end_to_end
from kajiya_hub.proxy.routes import Route

# Bytes waiting to be written to one side before the other is no longer read.
HIGH = 1024 * 1024


class Upgraded(web.StreamResponse):
    """The 101 of the target; what is written after it goes out as it is."""

    _length_check = False


class Pipe:
    """One direction: takes the bytes that one connection reads and writes them to the other."""

    def __init__(
        self,
        source: asyncio.Transport,
        sink: asyncio.Transport,
        writer: StreamWriter,
        route: Route,
        ended: asyncio.Event,
    ) -> None:
        self._source, self._sink, self._writer, self._route, self._ended = source, sink, writer, route, ended
        self._waiting: asyncio.Task[None] | None = None

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Called by aiohttp's protocol with what came; never says that it is finished."""
        if not data or self._sink.is_closing():
            return False, b""
        if not only_control(data):
            self._route.touch()
        self._sink.write(data)
        if self._waiting is None and self._sink.get_write_buffer_size() > HIGH:
            self._source.pause_reading()
            self._waiting = asyncio.get_running_loop().create_task(self._drained())
        return False, b""

    def feed_eof(self) -> None:
        """Called by aiohttp's protocol when the connection ended."""
        self._ended.set()

    async def _drained(self) -> None:
        try:
            await self._writer.drain()
            if not self._source.is_closing():
                self._source.resume_reading()
        except ConnectionError:
            self._ended.set()
        finally:
            self._waiting = None


def only_control(data: bytes) -> bool:
    """Whether this is exactly one ping, pong or close frame (RFC 6455, section 5.2): no sign of a person at work."""
    if len(data) < 2 or data[0] & 0x0F < 8:
        return False
    return len(data) == 2 + (data[1] & 0x7F) + (4 if data[1] & 0x80 else 0)


async def run(request: web.BaseRequest, answer: aiohttp.ClientResponse, route: Route) -> web.StreamResponse:
    """Pass bytes both ways until one side ends."""
    connection = answer.connection
    client = request.transport
    if connection is None or connection.transport is None or client is None:
        raise ConnectionResetError("one side has gone already")
    target, protocol = connection.transport, connection.protocol
    assert protocol is not None
    headers = end_to_end(answer.headers)
    headers["Connection"], headers["Upgrade"] = "Upgrade", "websocket"
    reply = Upgraded(status=101, reason=answer.reason, headers=headers)
    reply.force_close()
    headers_sent = await reply.prepare(request)
    assert headers_sent is not None
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    to_client = Pipe(target, client, request.writer, route, ended)  # pyright: ignore[reportArgumentType]
    to_target = Pipe(client, target, StreamWriter(protocol, loop), route, ended)
    protocol.set_parser(to_client, to_client)
    request.protocol.set_parser(to_target)  # pyright: ignore[reportArgumentType]
    try:
        await ended.wait()
    finally:
        target.close()
    return reply
