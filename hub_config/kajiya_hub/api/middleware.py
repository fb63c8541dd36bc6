"""Around every request: an id, a line in the log, a measure, careful headers, an answer to what nobody foresaw."""

import logging
import secrets
import time
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kajiya_hub.api.errors import unhandled
from kajiya_hub.logs import request_id
from kajiya_hub.metrics import Metrics

log = logging.getLogger("kajiya_hub.access")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    # Whatever an answer holds, a browser that opens it runs nothing, loads nothing, and has no origin of ours.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Around:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id = secrets.token_hex(8)
        token = request_id.set(id)
        began, status, stream = time.monotonic(), 0, False

        async def careful(message: Message) -> None:
            nonlocal status, stream
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = id
                headers.setdefault("Cache-Control", "no-store")
                for name, value in HEADERS.items():
                    headers[name] = value
                stream = headers.get("content-type", "").startswith("text/event-stream")
            await send(message)

        try:
            await self._app(scope, receive, careful)
        except Exception as e:
            if status:
                # Half an answer is out: the broken line tells the reader, the log tells why.
                log.error("the answer broke off", exc_info=e)
            else:
                await unhandled(scope, e)(scope, receive, careful)
        finally:
            self._note(scope, status, time.monotonic() - began, stream)
            request_id.reset(token)

    def _note(self, scope: Scope, status: int, seconds: float, stream: bool) -> None:
        # The pattern of the route, not the path: paths are without number.
        route = getattr(scope.get("route"), "path", None) or "unknown"
        if not stream:
            # A made-up method must not make a new series.
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.requests.labels(method, route, str(status)).observe(seconds)
        state: dict[str, Any] = scope.get("state", {})
        if route.endswith("/health") and status == 200:
            return
        log.info(
            "%s %s %s",
            scope["method"][:20],
            scope["path"][:300],
            status,
            extra={"status": status, "seconds": round(seconds, 4), "user": state.get("user"), "route": route},
        )
