"""The metrics, for Prometheus: they name nobody, yet only administrators, services and the scraper may read them."""

import asyncio
import hmac

from fastapi import APIRouter, Request
from starlette.responses import Response

from kajiya.errors import NotAllowed
from kajiya_hub.api.deps import Given
from kajiya_hub.api.openapi import bytes_of, errors
from kajiya_hub.auth import token_from
from kajiya_hub.metrics import Metrics

router = APIRouter(tags=["operation"])


@router.get(
    "/metrics",
    summary="Read the metrics",
    description="With the scrape token of the settings, or the token of an administrator or a service.",
    responses={200: bytes_of("text/plain", "Prometheus' text format.")} | errors(403),
    response_class=Response,
    openapi_extra={"security": [{"token": []}]},
)
async def metrics(request: Request, deps: Given) -> Response:
    token = token_from(request.headers.get("authorization"))
    scrape = (deps.scrape_token or "").encode()
    if not scrape or not hmac.compare_digest(token.encode("utf-8", "replace"), scrape):
        identity = await deps.authenticator.identify(token)
        if not identity.admin:
            raise NotAllowed(action="metrics")
    made: Metrics = request.app.state.metrics
    made.streams.set(request.app.state.counters.open("stream"))
    return Response(await asyncio.to_thread(made.text), 200, None, "text/plain; version=0.0.4; charset=utf-8")
