"""The server extension: forwards the panel's calls to the service with the user's token, and no logic beyond.

Only the paths listed here pass. Nothing that the service sends is shown as a page on Jupyter's own origin: what is not
JSON, plain text or an event stream arrives as a download.
"""

import asyncio
import json
import os
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, quote, urlencode

import httpx
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web
from tornado.iostream import StreamClosedError

from kajiya.credentials import loopback, normalise
from kajiya.errors import KajiyaError, NotConfigured, NotFound, UnexpectedAnswer, Unreachable
from kajiya.messages import preferred_language

ID = "[a-z0-9]{1,64}"
ALLOWED: dict[str, re.Pattern[str]] = {
    "GET": re.compile(
        rf"whoami|capacity|profiles|events|jobs|jobs/{ID}"
        rf"|jobs/{ID}/(?:events|notebook|input|log|results)|jobs/{ID}/results/.+",
        re.DOTALL,
    ),
    "POST": re.compile(rf"jobs|jobs/{ID}/(?:stop|again)"),
    "DELETE": re.compile(rf"jobs/{ID}"),
}
PASSED_ON = ("Accept", "Accept-Language", "Content-Type", "Content-Length", "Idempotency-Key", "Last-Event-ID", "Range")
PASSED_BACK = ("Content-Length", "Content-Disposition", "Content-Range", "X-Next-Offset", "Retry-After", "Location")
SHOWN = ("application/json", "text/event-stream", "text/plain")
OURS = ("token", "_xsrf", "no_track_activity")
UPLOAD_LIMIT = 600 * 1024**2
NOTICES = 100


class _Base(APIHandler):
    # An open event stream would keep an idle server awake for ever.
    _track_activity = False

    def refuse(self, error: KajiyaError) -> None:
        """Answers with the one error body."""
        self.set_status(error.status)
        language = preferred_language(self.request.headers.get("Accept-Language", ""))
        self.finish(json.dumps(error.body(language)))


@web.stream_request_body
class ForwardHandler(_Base):
    """/kajiya/api/PATH, to the service's /api/PATH."""

    async def prepare(self) -> None:  # type: ignore[override]
        """Authentication and XSRF are Jupyter's, and come before any of the body is taken in."""
        await super().prepare()
        if not self.current_user:
            raise web.HTTPError(403)
        self._task: asyncio.Task[Any] | None = None
        # On disk from a megabyte on: an upload must not weigh on the server's memory.
        self._body = tempfile.SpooledTemporaryFile(max_size=1024**2)  # noqa: SIM115 - closed in on_finish
        self.request.connection.set_max_body_size(UPLOAD_LIMIT)  # type: ignore[union-attr]

    def data_received(self, chunk: bytes) -> None:  # type: ignore[override]
        """A piece of the body."""
        self._body.write(chunk)

    def on_finish(self) -> None:
        """Gives the body's file back."""
        if hasattr(self, "_body"):
            self._body.close()

    def on_connection_close(self) -> None:
        """The browser went away, so the service need not go on."""
        if getattr(self, "_task", None) is not None:
            self._task.cancel()  # type: ignore[union-attr]

    @web.authenticated
    async def get(self, path: str) -> None:
        """Reads."""
        await self._forward(path)

    @web.authenticated
    async def post(self, path: str) -> None:
        """Submits, stops and runs again."""
        await self._forward(path)

    @web.authenticated
    async def delete(self, path: str) -> None:
        """Deletes."""
        await self._forward(path)

    async def _forward(self, path: str) -> None:
        url = ""
        try:
            url, token = address(str(self.request.method), path, self.request.query)
            self._task = asyncio.current_task()
            await self._pass(url, token)
        except KajiyaError as e:
            if not self._headers_written:
                self.refuse(e)
        except httpx.TransportError as e:
            if not self._headers_written:
                self.refuse(Unreachable(url=url.partition("/api/")[0], problem=str(e) or type(e).__name__))
            else:
                # A download that broke must not look whole: the connection ends instead of the answer.
                self.request.connection.stream.close()  # type: ignore[union-attr]
        except (StreamClosedError, asyncio.CancelledError):
            return

    async def _pass(self, url: str, token: str) -> None:
        headers = {n: self.request.headers[n] for n in PASSED_ON if n in self.request.headers}
        headers |= {"Authorization": f"token {token}", "Accept-Encoding": "identity"}
        content = _chunks(self._body) if self.request.method == "POST" else None
        # Streams send a comment every 15 s; an answer to a large submit takes as long as the disk.
        async with (
            httpx.AsyncClient(timeout=httpx.Timeout(60, connect=5, write=60), trust_env=not loopback(url)) as client,
            client.stream(str(self.request.method), url, headers=headers, content=content) as answer,
        ):
            if answer.is_redirect:
                raise UnexpectedAnswer(status=answer.status_code)
            self.set_status(answer.status_code)
            for name in PASSED_BACK:
                if name in answer.headers:
                    self.set_header(name, answer.headers[name])
            kind = answer.headers.get("Content-Type", "application/octet-stream")
            shown = kind.partition(";")[0].strip().lower() in SHOWN
            kind = kind if shown else "application/octet-stream"
            self.set_header("Content-Type", kind)
            self.set_header("X-Content-Type-Options", "nosniff")
            self.set_header("Cache-Control", "no-store")
            if not shown and "Content-Disposition" not in answer.headers:
                self.set_header("Content-Disposition", "attachment")
            async for chunk in answer.aiter_raw():
                self.write(chunk)
                await self.flush()
            self.finish(set_content_type=kind)


class NoticesHandler(_Base):
    """/kajiya/notices: which processes of this server were ended for want of memory."""

    @web.authenticated
    async def get(self) -> None:
        """The last notices, the oldest first."""
        self.finish(json.dumps({"notices": await asyncio.to_thread(notices)}))


def notices() -> list[dict[str, Any]]:
    """The last notices in the supervisor's file, which KAJIYA_NOTICES names."""
    try:
        lines = Path(os.environ.get("KAJIYA_NOTICES") or os.devnull).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    out: list[dict[str, Any]] = []
    for line in lines[-NOTICES:]:
        try:
            notice = json.loads(line)
        except ValueError:
            continue  # a last line that is still being written
        if isinstance(notice, dict):
            out.append(notice)
    return out


def address(method: str, path: str, query: str) -> tuple[str, str]:
    """The service's address for a call, and the token to show. Raises `NotFound` for what may not pass."""
    parts = path.split("/")
    pattern = ALLOWED.get(method)
    if pattern is None or not pattern.fullmatch(path) or any(p in ("", ".", "..") for p in parts):
        raise NotFound()
    base = os.environ.get("KAJIYA_API_URL")
    token = os.environ.get("KAJIYA_TOKEN") or os.environ.get("JUPYTERHUB_API_TOKEN")
    if not base or not token:
        raise NotConfigured()
    # Jupyter's own arguments, its token among them, are nobody else's business.
    kept = [(k, v) for k, v in parse_qsl(query, keep_blank_values=True) if k not in OURS]
    tail = f"?{urlencode(kept)}" if kept else ""
    return f"{normalise(base)}/api/{'/'.join(quote(p, safe='') for p in parts)}{tail}", token


async def _chunks(body: IO[bytes]) -> AsyncIterator[bytes]:
    body.seek(0)
    while chunk := await asyncio.to_thread(body.read, 256 * 1024):
        yield chunk


def handlers(base_url: str) -> list[tuple[str, type[web.RequestHandler]]]:
    """The extension's routes below the server's base address."""
    return [
        (url_path_join(base_url, "kajiya", "api", "(.*)"), ForwardHandler),
        (url_path_join(base_url, "kajiya", "notices"), NoticesHandler),
    ]
