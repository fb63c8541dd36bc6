"""A real proxy process, and a real target for it to lead to."""

import asyncio
import hashlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

TOKEN = "proxy-token"
PATIENCE = 30.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


async def until(true: Callable[[], Awaitable[Any] | Any], what: str) -> Any:
    """Wait until something holds; AssertionError that says what did not come."""
    end = asyncio.get_running_loop().time() + PATIENCE
    while True:
        value = true()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert asyncio.get_running_loop().time() < end, f"never: {what}"
        await asyncio.sleep(0.02)


class ProxyProcess:
    """`python -m kajiya_hub.proxy` with a client session for its public side and its REST API."""

    def __init__(self, *flags: str, token: str = TOKEN, scheme: str = "http") -> None:
        self.port, self.api_port = free_ports(2)
        self.flags = flags
        self.token = token
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.api = f"http://127.0.0.1:{self.api_port}/api/routes"
        self.session: aiohttp.ClientSession
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        """Start it and wait until both ports answer."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kajiya_hub.proxy",
            "--port", str(self.port), "--api-port", str(self.api_port), *self.flags,
            env={**os.environ, "CONFIGPROXY_AUTH_TOKEN": self.token}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

        def up() -> bool:
            assert self.process.returncode is None, "the proxy ended while starting"
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                return False
            return True

        await until(up, "the proxy listens")

    async def ask(self, method: str, path: str = "", body: Any = None, token: str | None = None) -> tuple[int, Any]:
        """One REST call: status and JSON, if any."""
        headers = {"Authorization": f"token {self.token if token is None else token}"}
        async with self.session.request(method, self.api + path, json=body, headers=headers) as answer:
            text = await answer.text()
            return answer.status, await answer.json() if text.startswith("{") else text

    async def add(self, prefix: str, target: str, **data: Any) -> None:
        """Add a route."""
        status, said = await self.ask("POST", prefix, {"target": target, **data})
        assert status == 201, said

    def memory(self) -> int:
        """Bytes of resident memory, at its peak."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


@asynccontextmanager
async def proxy(*flags: str, token: str = TOKEN, scheme: str = "http") -> AsyncIterator[ProxyProcess]:
    """A running proxy, ended afterwards."""
    one = ProxyProcess(*flags, token=token, scheme=scheme)
    timeout = aiohttp.ClientTimeout(total=PATIENCE * 2)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        one.session = session
        await one.start()
        try:
            yield one
        finally:
            if one.process.returncode is None:
                one.process.kill()
            await one.process.wait()


class Target:
    """What the routes lead to: it shows what reached it and answers in every way that matters."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.started: list[str] = []
        self.url = ""

    async def echo(self, request: web.Request) -> web.Response:
        body = await request.read()
        return web.json_response(
            {
                "method": request.method,
                "path": request.raw_path,
                "headers": [[name, value] for name, value in request.headers.items()],
                "size": len(body),
                "sha256": hashlib.sha256(body).hexdigest(),
            }
        )

    async def sink(self, request: web.Request) -> web.Response:
        digest, size = hashlib.sha256(), 0
        async for chunk in request.content.iter_any():
            digest.update(chunk)
            size += len(chunk)
        return web.json_response({"size": size, "sha256": digest.hexdigest()})

    async def big(self, request: web.Request) -> web.StreamResponse:
        size = int(request.query["size"])
        reply = web.StreamResponse(headers={"Content-Type": "application/x-big"})
        if "length" in request.query:
            reply.content_length = size
        await reply.prepare(request)
        if request.method == "HEAD":
            return reply
        block = b"k" * 65536
        self.sent = 0
        while self.sent < size:
            await reply.write(block[: size - self.sent])
            self.sent += min(len(block), size - self.sent)
        return reply

    async def stream(self, request: web.Request) -> web.StreamResponse:
        name = request.raw_path
        self.started.append(name)
        reply = web.StreamResponse(headers={"Content-Type": request.query.get("type", "text/event-stream")})
        await reply.prepare(request)
        try:
            number = 0
            while True:
                await reply.write(f"data: {number}\n\n".encode())
                number += 1
                await asyncio.sleep(0.05)
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled.append(name)
            raise

    async def broken(self, request: web.Request) -> web.StreamResponse:
        reply = web.StreamResponse()
        if "length" in request.query:
            reply.content_length = 1000
        await reply.prepare(request)
        await reply.write(b"half")
        await asyncio.sleep(0.1)
        assert request.transport is not None
        request.transport.abort()
        return reply

    async def answer(self, request: web.Request) -> web.Response:
        reply = web.Response(status=int(request.query.get("status", "200")), body=b"")
        reply.headers.add("Set-Cookie", "a=1; Path=/")
        reply.headers.add("Set-Cookie", "b=2; Path=/")
        reply.headers["Location"] = "http://elsewhere.example/"
        reply.headers["X-Own"] = "yes"
        reply.headers["Connection"] = "X-Private"
        reply.headers["X-Private"] = "only for the next hop"
        return reply

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=("v1.kernel.websocket.jupyter.org", "other"), max_msg_size=0)
        await socket.prepare(request)
        try:
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT and message.data == "bye":
                    await socket.close(code=4001, message=b"enough")
                elif message.type == aiohttp.WSMsgType.TEXT:
                    await socket.send_str(message.data)
                else:
                    await socket.send_bytes(message.data)
        finally:
            self.cancelled.append(request.raw_path)
        return socket

    async def error(self, request: web.Request) -> web.Response:
        status = int(request.match_info["status"])
        return web.Response(status=status, text=f"page {status} for {request.query['url']}", content_type="text/html")


@asynccontextmanager
async def target(ssl_context: Any = None) -> AsyncIterator[Target]:
    """A running target."""
    one = Target()
    app = web.Application(client_max_size=2**40)
    for path, handler in (
        ("sink", one.sink), ("big", one.big), ("stream", one.stream), ("broken", one.broken),
        ("answer", one.answer), ("ws", one.websocket),
    ):  # fmt: skip
        app.router.add_route("*", f"/{{tail:.*}}{path}", handler)
    app.router.add_get("/error/{status}", one.error)
    app.router.add_route("*", "/{tail:.*}", one.echo)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    (port,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=ssl_context).start()
    one.url = f"{'https' if ssl_context else 'http'}://127.0.0.1:{port}"
    try:
        yield one
    finally:
        await runner.cleanup()
