"""What the Hub serves for Kajiya's pages beside its own: static files, and what is free now."""

import json
from typing import Any

from jupyterhub.apihandlers.base import APIHandler
from jupyterhub.handlers.static import CacheControlStaticFilesHandler
from jupyterhub.scopes import needs_scope
from tornado import web

from kajiya_spawner.look import language_of, static_path


class CapacityHandler(APIHandler):
    """`GET /hub/api/kajiya/capacity[/USER]`: the profiles of a user and what is free now, as the open picker shows it.

    Answers 403 without a session or a token that may read the user's servers, 404 for an unknown user.
    """

    async def get(self, user_name: str | None = None) -> None:
        user = self.current_user
        if user is None:
            raise web.HTTPError(403)
        name = user_name or (user.name if getattr(user, "kind", "user") == "user" else None)
        if name is None:
            raise web.HTTPError(404)
        await self._get(name)

    @needs_scope("read:servers")
    async def _get(self, user_name: str) -> None:
        user = self.find_user(user_name)
        live = getattr(user.spawner, "live", None) if user is not None else None
        if live is None:
            raise web.HTTPError(404)
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(await live(language_of(self) or "en")))


def hub_handlers() -> list[tuple[Any, ...]]:
    """Routes below the Hub's prefix: into `JupyterHub.extra_handlers`."""
    return [
        (r"/api/kajiya/capacity", CapacityHandler),
        (r"/api/kajiya/capacity/([^/]+)", CapacityHandler),
        (r"/kajiya/static/(.*)", CacheControlStaticFilesHandler, {"path": static_path()}),
    ]
