"""Who the caller is."""

from fastapi import APIRouter
from starlette.responses import Response

from kajiya.types import Whoami
from kajiya_hub.api.deps import Who
from kajiya_hub.api.openapi import errors
from kajiya_hub.api.views import JSON

router = APIRouter(tags=["who"])


@router.get(
    "/whoami",
    summary="See whose token this is",
    description="Also for the token of a running attempt, which acts for its owner.",
    responses={200: {"model": Whoami, "description": "The token's owner."}} | errors(403),
)
async def whoami(who: Who) -> Response:
    return Response(who.identity.whoami.model_dump_json(), 200, None, JSON)
