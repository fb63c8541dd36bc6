"""Snapshots: captured environments of the caller; another's is answered as one that is not there."""

import asyncio
import re
import unicodedata
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response

from kajiya.errors import InvalidName, SnapshotNotFound
from kajiya.names import safe_snapshot_name
from kajiya.types import MiB, Page, Snapshot, SnapshotCreate
from kajiya_hub.api.deps import AtOnce, Given, Who
from kajiya_hub.api.errors import invalid
from kajiya_hub.api.jobs import small_body
from kajiya_hub.api.openapi import errors
from kajiya_hub.api.views import JSON

router = APIRouter(tags=["snapshots"])
MOST = 4 * MiB
_PAGE = TypeAdapter(Page[Snapshot])
Ref = Annotated[str, Path(max_length=300, description="A name of the snapshot, or its digest.", examples=["base-2"])]
One: dict[str, Any] = {"model": Snapshot, "description": "The snapshot."}


@router.get(
    "/snapshots",
    summary="List your snapshots",
    description="The newest first, without their packages.",
    responses={200: {"model": Page[Snapshot], "description": "One page; `next` is the cursor of the next."}}
    | errors(403, 422),
)
async def listed(
    who: Who,
    deps: Given,
    q: Annotated[str, Query(max_length=200, description="Text in name, digest or environment.")] = "",
    content: Annotated[str | None, Query(max_length=100, description="Only the one of this very environment.")] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="How many on a page.")] = 50,
    cursor: Annotated[str | None, Query(max_length=1000, description="`next` of the page before.")] = None,
) -> Response:
    who.person("list")
    page = await asyncio.to_thread(deps.store.snapshots, who.name, q, limit, cursor, content)
    return Response(_PAGE.dump_json(page), 200, None, JSON)


@router.post(
    "/snapshots",
    status_code=201,
    summary="Make a snapshot of what was sent",
    description="Checks the layers, puts the image together and keeps it. The same environment again gives the "
    "snapshot that is there, and the new name to it.",
    responses={201: One, 200: One | {"description": "The snapshot of this environment, which was there."}}
    | errors(403, 404, 409, 413, 422, 429, 507),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/SnapshotCreate"}}},
        }
    },
)
async def made(request: Request, who: Who, deps: Given, counters: AtOnce) -> Response:
    who.person("capture")
    wanted = read_wanted(await small_body(request, MOST))
    if wanted.name is not None:
        wanted = wanted.model_copy(update={"name": checked_name(wanted.name)})
    with counters.one("submit", who.name):
        snapshot, created = await asyncio.get_running_loop().run_in_executor(
            request.app.state.uploads, deps.images.create, who.name, wanted
        )
    return _answer(snapshot, 201 if created else 200)


@router.get(
    "/base-snapshots/{lock}",
    summary="See what an environment began with",
    description="The snapshot of the base that environments of this Kajiya are made from, by the sha256 of its lock; "
    "the first call makes it, which takes a while.",
    responses={200: One} | errors(403, 404),
)
async def base(
    lock: Annotated[str, Path(max_length=300, description="As `kajiya-base.json` of an environment has it.")],
    request: Request,
    who: Who,
    deps: Given,
) -> Response:
    who.person("capture")
    if not re.fullmatch("[0-9a-f]{64}", lock):
        raise SnapshotNotFound(snapshot=lock[:80])
    loop = asyncio.get_running_loop()
    return _answer(await loop.run_in_executor(request.app.state.uploads, deps.images.base, lock))


@router.get("/snapshots/{ref}", summary="See a snapshot", responses={200: One} | errors(403, 404))
async def seen(ref: Ref, who: Who, deps: Given) -> Response:
    who.person("list")
    return _answer(await asyncio.to_thread(deps.store.snapshot, _ref(ref), who.name))


@router.delete(
    "/snapshots/{ref}",
    status_code=204,
    summary="Delete a snapshot",
    description="Refused while a job that has not ended, or a later snapshot, needs it. By one of several names, only "
    "that name goes.",
    responses={204: {"description": "It is gone."}} | errors(403, 404, 409),
)
async def delete(ref: Ref, who: Who, deps: Given) -> Response:
    who.person("delete")
    await asyncio.to_thread(deps.images.delete, who.name, _ref(ref))
    return Response(status_code=204)


def read_wanted(data: bytes) -> SnapshotCreate:
    """What is asked for, from JSON. Raises `InvalidRequest`."""
    try:
        return SnapshotCreate.model_validate_json(data)
    except ValidationError as e:
        raise invalid(e.errors(include_url=False)) from e


def checked_name(name: str) -> str:
    """A snapshot's name in its one form. Raises `InvalidName`."""
    name = _ref(name)
    if not safe_snapshot_name(name):
        raise InvalidName(name=name, problem="snapshot_name")
    return name


def _ref(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _answer(snapshot: Snapshot, status: int = 200) -> Response:
    return Response(snapshot.model_dump_json(), status, None, JSON)
