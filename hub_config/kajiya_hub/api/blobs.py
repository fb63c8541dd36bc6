"""Blobs: the parts of snapshots, sent and fetched by digest. A digest alone opens nothing."""

import asyncio
import re
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from kajiya.errors import BlobNotFound, InvalidRequest, KajiyaError
from kajiya_hub.api.body import Body
from kajiya_hub.api.deps import AtOnce, Given, Who
from kajiya_hub.api.openapi import bytes_of, errors
from kajiya_hub.api.results import download

router = APIRouter(tags=["snapshots"])
DIGEST = re.compile("sha256:[0-9a-f]{64}")
InPath = Annotated[str, Path(max_length=300, description="The sha256 digest of the bytes.")]


@router.post(
    "/blobs",
    status_code=201,
    summary="Send a part of a snapshot",
    description="The body is the bytes. They are kept only if they have the digest; of what breaks off nothing stays. "
    "What no snapshot is made of within a day is removed.",
    responses={201: {"description": "It is stored durably."}} | errors(403, 413, 422, 429, 507),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def send(
    request: Request,
    who: Who,
    deps: Given,
    counters: AtOnce,
    digest: Annotated[str, Query(description="The sha256 digest that the bytes must have: `sha256:…`.")] = "",
) -> Response:
    who.person("capture")
    if not DIGEST.fullmatch(digest):
        raise InvalidRequest(field="digest", problem="digest")
    body = Body(request, deps.limits.upload_seconds)
    with counters.one("submit", who.name):
        try:
            await asyncio.get_running_loop().run_in_executor(
                request.app.state.uploads, deps.images.receive, who.name, digest, body.chunks()
            )
        except ClientDisconnect:
            # Nobody is there to read it.
            return Response(status_code=400)
        except KajiyaError:
            await body.drain()
            raise
    return Response(status_code=201)


@router.get(
    "/blobs/{digest}/there",
    summary="Ask whether a part needs no sending",
    description="Only what you sent, and what your snapshots are made of, is there for you.",
    status_code=204,
    responses={204: {"description": "It is there."}} | errors(403, 404),
)
async def there(digest: InPath, who: Who, deps: Given) -> Response:
    who.person("capture")
    if not DIGEST.fullmatch(digest) or not await asyncio.to_thread(deps.images.has, who.name, digest):
        raise BlobNotFound(digest=digest[:80])
    return Response(status_code=204)


@router.get(
    "/blobs/{digest}",
    summary="Get a part of a snapshot",
    responses={200: bytes_of("application/octet-stream", "The bytes.", {"ETag": "Its digest."})} | errors(403, 404),
    response_class=Response,
)
async def fetched(digest: InPath, who: Who, deps: Given) -> Response:
    who.person("restore")
    file = await asyncio.to_thread(deps.images.open, who.name, digest[:80])
    return download(file, "application/octet-stream", digest.removeprefix("sha256:"), digest)
