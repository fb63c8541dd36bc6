"""Carry one request to its target and the answer back, as it comes, with back-pressure both ways."""

import asyncio
import logging
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.http import HttpVersion11
from multidict import CIMultiDict
from yarl import URL

from kajiya_hub.proxy import headers as heads
from kajiya_hub.proxy import tls, tunnel
from kajiya_hub.proxy.errors import ErrorPages
from kajiya_hub.proxy.options import Options
from kajiya_hub.proxy.routes import Route, Routes, decoded

log = logging.getLogger("kajiya.proxy")

# Below uvicorn's 5 s and everybody else's, so that a target does not close a connection just as it is used again.
IDLE_TARGET = 3.0
CONNECT = 10.0
BUFFER = 256 * 1024
LINE = 64 * 1024


class Reply(web.StreamResponse):
    """An answer whose headers are the target's own: nothing is added but what the connection needs."""

    async def _prepare_headers(self) -> None:
        mine = self.headers
        added = [name for name in ("Content-Type", "Server", "Date") if name not in mine]
        await super()._prepare_headers()
        for name in added:
            if name != "Date":
                mine.popall(name, None)


class Forwarder:
    """The public side: finds the route, forwards, and answers with an error page where it can't."""

    def __init__(self, options: Options, routes: Routes) -> None:
        self.options = options
        self.routes = routes
        # Requests that will end by themselves; a graceful stop waits for these only.
        self.busy: set[asyncio.Task[Any]] = set()
        client_tls = tls.client(options.client_tls, options.insecure)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_TARGET, ssl=client_tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=options.proxy_timeout),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            read_bufsize=BUFFER,
            max_line_size=LINE,
            max_field_size=LINE,
        )
        self.errors = ErrorPages(options.error_target, options.error_path, self.session)
        self._origins: dict[str, tuple[str, str]] = {}

    async def close(self) -> None:
        """Drop every connection to a target."""
        await self.session.close()

    def route(self, request: web.BaseRequest) -> Route | None:
        """Where a request goes."""
        path = decoded(request.raw_path)
        if self.options.host_routing:
            path = f"/{heads.host_name(request)}{path}"
        return self.routes.find(path)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of the public side."""
        # A target in absolute form would let the Host header and the target name two hosts.
        if not request.raw_path.startswith("/") or request.method == "CONNECT":
            return self.errors.plain(request, 400)
        route = self.route(request)
        if route is None:
            return await self.errors.page(request, 404)
        route.touch()
        task = asyncio.current_task()
        assert task is not None
        self.busy.add(task)
        try:
            return await self._forward(request, route, task)
        except ConnectionError:
            raise
        except Exception:
            # Said here, because aiohttp's own log is full of what clients do wrong.
            log.exception("Unexpected, while forwarding to %s", route.target)
            raise
        finally:
            self.busy.discard(task)

    def _url(self, request: web.BaseRequest, route: Route) -> URL:
        origin, base = self._origins.get(route.target) or self._split(route.target)
        path = request.raw_path
        if not self.options.include_prefix and route.prefix != "/":
            path = _without_prefix(path, route.prefix, self.options.host_routing)
        if base and self.options.prepend_path:
            path = base + path
        return URL(origin + path, encoded=True)

    def _split(self, target: str) -> tuple[str, str]:
        url = URL(target)
        if len(self._origins) > 10_000:
            self._origins.clear()
        self._origins[target] = parts = (str(url.origin()), url.raw_path.rstrip("/"))
        return parts

    async def _forward(self, request: web.BaseRequest, route: Route, task: asyncio.Task[Any]) -> web.StreamResponse:
        options = self.options
        url = self._url(request, route)
        sent = heads.end_to_end(request.headers)
        websocket = "Upgrade" in request.headers and heads.wants_websocket(request)
        if websocket:
            sent["Connection"], sent["Upgrade"] = "Upgrade", "websocket"
        if options.x_forward:
            heads.tell_about_client(sent, request)
        if options.change_origin:
            sent["Host"] = url.raw_authority if hasattr(url, "raw_authority") else url.authority
        if options.headers:
            sent.update(options.headers)
        body = await self._body(request, sent)
        try:
            answer = await self.session.request(
                request.method, url, headers=sent, data=body, allow_redirects=False, raise_for_status=False
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.error("503 %s %s: %s", request.method, url.origin(), error or type(error).__name__)
            if request.transport is None:
                raise ConnectionResetError from error
            return await self.errors.page(request, 504 if isinstance(error, TimeoutError) else 503)
        try:
            if answer.status == 101:
                self.busy.discard(task)
                return await tunnel.run(request, answer, route)
            return await self._answer(request, answer, route, task)
        finally:
            answer.release() if answer.content.at_eof() else answer.close()

    @staticmethod
    async def _body(request: web.BaseRequest, sent: CIMultiDict[str]) -> Any:
        if not request.body_exists:
            return None
        if sent.popall("Expect", None) is not None and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        content = request.content
        if content.is_eof() and "Content-Length" in sent:
            # All of it is here already: one write, and aiohttp may try again on a connection that has just gone.
            return content.read_nowait(-1)
        return content

    async def _answer(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse, route: Route, task: asyncio.Task[Any]
    ) -> web.StreamResponse:
        stream = answer.headers.get("Content-Type", "").startswith("text/event-stream")
        if stream:
            self.busy.discard(task)
        reply = Reply(status=answer.status, reason=answer.reason, headers=heads.end_to_end(answer.headers))
        if "Upgrade" in request.headers:
            # The parser stopped at what it took for an upgrade, so nothing more can be read here.
            reply.force_close()
        content = answer.content
        await reply.prepare(request)
        try:
            while True:
                chunk = await content.readany()
                if not chunk:
                    break
                if not stream:
                    route.touch()
                await reply.write(chunk)
            await reply.write_eof()
        except (aiohttp.ClientError, TimeoutError) as error:
            # Half an answer must not look like a whole one: no last chunk, only the end of the connection.
            log.warning("The target of %s broke off its answer: %s", route.prefix, error or type(error).__name__)
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the target broke off") from error
        return reply


def _without_prefix(path: str, prefix: str, host_routing: bool) -> str:
    # As many segments as the route has, whatever way the client encoded them.
    skip = prefix.count("/") - (1 if host_routing else 0)
    bare, question, query = path.partition("?")
    rest = "/" + "/".join(bare.split("/")[1 + skip :])
    return rest + question + query
