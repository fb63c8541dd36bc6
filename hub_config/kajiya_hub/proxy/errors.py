"""Error pages: from the error target (the Hub), from a folder, or one plain sentence."""

import asyncio
import logging
from pathlib import Path
from urllib.parse import quote

import aiohttp
from aiohttp import web

from kajiya.messages import message, preferred_language

log = logging.getLogger("kajiya.proxy")

# How long the Hub may take over an error page before the plain sentence is shown instead.
PATIENCE = 5.0
LARGEST = 4 * 1024 * 1024


class ErrorPages:
    """Makes the answer where there is no target, or it does not answer."""

    def __init__(self, target: str | None, folder: Path | None, session: aiohttp.ClientSession) -> None:
        self._target = target.rstrip("/") if target else None
        self._folder = folder
        self._session = session

    async def page(self, request: web.BaseRequest, status: int) -> web.StreamResponse:
        """The best page there is for this status."""
        if self._target is not None:
            try:
                return await self._fetched(request, status)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                log.warning("No error page from the error target: %s", error or type(error).__name__)
        if self._folder is not None:
            for name in (f"{status}.html", "error.html"):
                try:
                    text = await asyncio.to_thread((self._folder / name).read_text, "utf-8")
                except OSError:
                    continue
                return _finish(request, web.Response(status=status, text=text, content_type="text/html"))
        return self.plain(request, status)

    async def _fetched(self, request: web.BaseRequest, status: int) -> web.Response:
        url = f"{self._target}/{status}?url={quote(request.raw_path.split('?', 1)[0], safe='/%')}"
        forwarded = {
            name: value
            for name in ("Accept", "Accept-Language", "Cookie", "Host")
            if (value := request.headers.get(name)) is not None
        }
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with self._session.get(url, headers=forwarded, timeout=timeout, allow_redirects=False) as answer:
            # The Hub answers with the status that it was asked to explain; anything else is no page of its own.
            if answer.status not in (200, status):
                raise ValueError(f"it answered {answer.status}")
            body = await answer.content.read(LARGEST)
            while len(body) < LARGEST and (more := await answer.content.read(LARGEST - len(body))):
                body += more
            reply = web.Response(status=status, body=body)
            for name in ("Content-Type", "Content-Encoding", "Content-Security-Policy", "Cache-Control"):
                if name in answer.headers:
                    reply.headers[name] = answer.headers[name]
            return _finish(request, reply)

    def plain(self, request: web.BaseRequest, status: int) -> web.Response:
        """One sentence as text, in the reader's language."""
        language = preferred_language(request.headers.get("Accept-Language", ""))
        code = f"proxy.{status}" if status in (400, 404, 503, 504) else "proxy.503"
        return _finish(request, web.Response(status=status, text=message(code, {}, language) + "\n"))


def _finish(request: web.BaseRequest, reply: web.Response) -> web.Response:
    reply.headers.setdefault("X-Content-Type-Options", "nosniff")
    if "Upgrade" in request.headers or request.body_exists:
        # What may still come on this connection was never read, so no other request can follow on it.
        reply.force_close()
    return reply
