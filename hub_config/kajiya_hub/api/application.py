"""The application: the nouns put together over explicit dependencies."""

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import JSONResponse, Response

from kajiya import __version__
from kajiya_hub.api import blobs, capacity, errors, events, health, jobs, metrics, profiles, results, snapshots, whoami
from kajiya_hub.api.deps import Deps
from kajiya_hub.api.limits import Counters, Rate
from kajiya_hub.api.middleware import Around
from kajiya_hub.api.openapi import document
from kajiya_hub.api.streams import Streams

log = logging.getLogger("kajiya_hub.api")
THREADS = 32


def create_app(deps: Deps) -> FastAPI:
    """The service's application. Nothing is read from settings or the environment."""
    app = FastAPI(
        title="Kajiya",
        version=__version__,
        # The pages that show the document would be HTML on the Hub's own origin.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    limits = deps.limits
    app.state.deps = deps
    app.state.metrics = deps.metrics
    app.state.rate = Rate(limits.requests_per_second, limits.requests_burst)
    app.state.counters = Counters(
        {
            "stream": (limits.streams_per_owner, limits.streams),
            "submit": (limits.submits_at_once_per_owner, limits.submits_at_once),
        }
    )
    app.state.streams = Streams(deps.store, deps.files)
    app.state.checks = health.Checks(deps)
    app.state.assembling = asyncio.Semaphore(1)
    # Uploads wait for their senders, so they must not take the threads that answer all others.
    app.state.uploads = ThreadPoolExecutor(limits.submits_at_once, "upload")
    deps.metrics.watch_store(deps.store.counts)

    api = APIRouter(prefix="/api")
    # Events before jobs, results last: a result's path takes all that follows.
    for noun in (whoami, capacity, profiles, jobs, events, snapshots, blobs, results):
        api.include_router(noun.router)

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(app.openapi())

    root = APIRouter(prefix=deps.prefix)
    root.include_router(health.router)
    root.include_router(metrics.router)
    root.include_router(api)
    app.include_router(root)
    errors.install(app)
    app.add_middleware(Around, metrics=deps.metrics)

    def openapi_document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = openapi_document  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    deps: Deps = app.state.deps
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "work"))
    app.state.streams.start()
    for begin in deps.startup:
        await begin()
    try:
        yield
    finally:
        app.state.streams.close()
        app.state.uploads.shutdown(wait=False, cancel_futures=True)
        for end in deps.shutdown:
            try:
                await end()
            except Exception:
                log.exception("a part did not end as it should")
