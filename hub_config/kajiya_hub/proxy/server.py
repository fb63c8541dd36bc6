"""The proxy as a process: listen, serve, stop gracefully."""

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from kajiya.messages import message
from kajiya_hub.proxy import tls
from kajiya_hub.proxy.api import Api
from kajiya_hub.proxy.forward import BUFFER, LINE, Forwarder
from kajiya_hub.proxy.options import Options, parse
from kajiya_hub.proxy.routes import Routes

log = logging.getLogger("kajiya.proxy")


# Every malformed request would leave a traceback in the log; what goes wrong in our own handlers they log themselves.
_QUIET = logging.getLogger("kajiya.proxy.aiohttp")
_QUIET.setLevel(logging.CRITICAL)


class Proxy:
    """Both servers, public and REST API, on one route table."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.routes = Routes()
        if options.default_target:
            self.routes.add("/", options.default_target)
        self.forwarder: Forwarder | None = None
        self._runners: list[web.ServerRunner] = []
        self._public: list[web.BaseSite] = []

    async def start(self) -> None:
        """Listen on every address; OSError if one is taken, ssl.SSLError if a certificate can't be used."""
        options = self.options
        self.forwarder = Forwarder(options, self.routes)
        public_tls, api_tls = tls.server(options.public_tls), tls.server(options.api_tls)
        # The API first: whoever sees the public port open may at once add routes.
        await self._listen(
            Api(self.routes, options.auth_token).handle, options.api_ip, options.api_at, options.api_socket, api_tls
        )
        site = await self._listen(self.forwarder.handle, options.ip, options.port, options.socket, public_tls)
        self._public.append(site)
        if options.redirect_port:
            self._public.append(await self._listen(self._redirect, options.ip, options.redirect_port, None, None))

    async def _listen(
        self, handler: Any, ip: str, port: int, socket: str | None, context: ssl.SSLContext | None
    ) -> web.BaseSite:
        server = web.Server(
            handler,
            handler_cancellation=True,  # a client that leaves ends the request to the target too
            access_log=None,
            logger=_QUIET,
            auto_decompress=False,
            read_bufsize=BUFFER,
            max_line_size=LINE,
            max_field_size=LINE,
            keepalive_timeout=self.options.keep_alive_timeout,
        )
        runner = web.ServerRunner(server, shutdown_timeout=0.5)
        await runner.setup()
        self._runners.append(runner)
        if socket is not None:
            with contextlib.suppress(FileNotFoundError):
                Path(socket).unlink()  # noqa: ASYNC240 (before anything is served)
            site: web.BaseSite = web.UnixSite(runner, socket, ssl_context=context, backlog=1024)
        else:
            site = web.TCPSite(runner, ip, port, ssl_context=context, backlog=1024, reuse_address=True)
        await site.start()
        return site

    async def _redirect(self, request: web.BaseRequest) -> web.StreamResponse:
        host = request.headers.get("Host", "").rsplit(":", 1)[0]
        port = self.options.redirect_to or self.options.port
        secure = "https" if self.options.public_tls.cert else "http"
        where = f"{secure}://{host}{'' if port == 443 else f':{port}'}{request.raw_path}"
        return web.Response(status=301, headers={"Location": where, "Connection": "close"})

    async def stop(self) -> None:
        """Take no more, let what will end by itself end (within `stop_timeout`), drop streams and websockets."""
        for site in self._public:
            await site.stop()
        if self.forwarder is not None:
            if self.forwarder.busy:
                await asyncio.wait(self.forwarder.busy, timeout=self.options.stop_timeout)
            for runner in self._runners:
                for connection in list(getattr(runner.server, "connections", ())):
                    if connection.transport is not None:
                        connection.transport.close()
            for runner in self._runners:
                await runner.cleanup()
            await self.forwarder.close()


async def serve(options: Options) -> int:
    """Run until SIGTERM or SIGINT; the exit status."""
    proxy = Proxy(options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await proxy.start()
    except ssl.SSLError as error:
        print(message("proxy.tls_unusable", {"problem": error}), file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{options.ip}:{options.port} / {options.api_ip}:{options.api_at}"
        print(message("proxy.cannot_listen", {"where": where, "problem": error}), file=sys.stderr)
        await proxy.stop()
        return 1
    if options.pid_file is not None:
        options.pid_file.write_text(f"{os.getpid()}\n")
    if not options.auth_token:
        log.warning(message("proxy.no_token"))
    public = options.socket or f"{'https' if options.public_tls.cert else 'http'}://{options.ip}:{options.port}"
    api = options.api_socket or f"{options.api_ip}:{options.api_at}"
    log.info(message("proxy.listening", {"public": public, "api": api}))
    try:
        await stop.wait()
        await proxy.stop()
    finally:
        if options.pid_file is not None:
            options.pid_file.unlink(missing_ok=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and serve."""
    options = parse(argv)
    logging.basicConfig(
        level=options.log_level.upper().replace("WARN", "WARNING"),
        format="%(asctime)s %(levelname)s proxy: %(message)s",
        stream=sys.stderr,
    )
    # The token is read; what this process may start later has no business with it.
    os.environ.pop("CONFIGPROXY_AUTH_TOKEN", None)
    return asyncio.run(serve(options))
