"""What there is, and what is free now."""

import asyncio

from fastapi import APIRouter
from starlette.responses import Response

from kajiya.types import Capacity
from kajiya_hub.api.deps import Given, Who
from kajiya_hub.api.openapi import errors
from kajiya_hub.api.views import JSON

router = APIRouter(tags=["profiles"])


@router.get(
    "/capacity",
    summary="See what is free",
    responses={200: {"model": Capacity, "description": "Totals, and what is free now."}} | errors(403),
)
async def capacity(who: Who, deps: Given) -> Response:
    who.person("capacity")
    now = await asyncio.to_thread(deps.capacity)
    return Response(now.model_dump_json(), 200, None, JSON)
