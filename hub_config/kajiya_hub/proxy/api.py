"""The REST API that JupyterHub drives: GET, POST and DELETE /api/routes[/prefix], as configurable-http-proxy has it."""

import hmac
import json
import logging
import re
from typing import Any
from urllib.parse import unquote

from aiohttp import web
from multidict import MultiDict
from yarl import URL

from kajiya.messages import message, preferred_language
from kajiya_hub.proxy.routes import Routes, from_iso

log = logging.getLogger("kajiya.proxy")

LARGEST = 1024 * 1024
_ROUTES = re.compile(r"/api/routes(/.*)?")


class Api:
    """Changes and shows the routes for whoever has the token."""

    def __init__(self, routes: Routes, token: str) -> None:
        self._routes = routes
        self._token = token.encode()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of the REST API."""
        if not self._allowed(request):
            return _problem(request, 403, "proxy.api.token")
        path, _, query = request.raw_path.partition("?")
        match = _ROUTES.fullmatch(path)
        if match is None:
            return _problem(request, 404, "proxy.api.no_route")
        prefix = unquote(match.group(1) or "")
        match request.method:
            case "GET" | "HEAD":
                return self._get(request, prefix, URL.build(query_string=query, encoded=True).query)
            case "POST" | "PUT":
                return await self._post(request, prefix)
            case "DELETE":
                return self._delete(request, prefix)
            case _:
                return web.Response(status=405, headers={"Allow": "GET, POST, DELETE"})

    def _allowed(self, request: web.BaseRequest) -> bool:
        if not self._token:
            return True
        kind, _, given = request.headers.get("Authorization", "").strip().partition(" ")
        known = kind.lower() in ("token", "bearer")
        return hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token) and known

    def _get(self, request: web.BaseRequest, prefix: str, query: Any) -> web.Response:
        if prefix.strip("/"):
            route = self._routes.get(prefix)
            return _problem(request, 404, "proxy.api.no_route") if route is None else _json(route.view())
        since = query.get("inactive_since") or query.get("inactiveSince")
        try:
            limit = from_iso(since) if since else None
        except ValueError:
            return _problem(request, 400, "proxy.api.since")
        return _json({path: route.view() for path, route in self._routes.all(limit).items()})

    async def _post(self, request: web.BaseRequest, prefix: str) -> web.Response:
        body = b""
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > LARGEST:
                return _problem(request, 400, "proxy.api.body")
        try:
            data = json.loads(body)
            target = data.pop("target")
            usable = isinstance(data, dict) and URL(target).scheme in ("http", "https") and bool(URL(target).host)
        except (ValueError, KeyError, TypeError, AttributeError):
            usable, data, target = False, {}, ""
        if not usable:
            return _problem(request, 400, "proxy.api.body")
        data.pop("last_activity", None)
        route = self._routes.add(prefix, target, data)
        log.info("Route %s -> %s", route.prefix, route.target)
        return web.Response(status=201)

    def _delete(self, request: web.BaseRequest, prefix: str) -> web.Response:
        if not self._routes.remove(prefix):
            return _problem(request, 404, "proxy.api.no_route")
        log.info("No more route %s", prefix)
        return web.Response(status=204)


def _json(value: Any) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), content_type="application/json")


def _problem(request: web.BaseRequest, status: int, code: str) -> web.Response:
    sentence = message(code, {}, preferred_language(request.headers.get("Accept-Language", "")))
    reply = web.Response(
        status=status,
        body=json.dumps({"error": {"code": code, "message": sentence, "params": {}}}).encode(),
        headers=MultiDict({"Content-Type": "application/json"}),
    )
    if request.body_exists:
        reply.force_close()
    return reply
