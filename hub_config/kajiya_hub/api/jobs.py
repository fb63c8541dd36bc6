"""Jobs: submit, list, see, stop, run again, delete. To stop is a write to the store, on which the loop acts."""

import asyncio
from datetime import datetime
from typing import Annotated, Any, Literal

import pydantic_core
from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from kajiya.errors import InvalidRequest, KajiyaError, UploadTooLarge
from kajiya.sizes import show_size
from kajiya.types import Job, JobAgain, JobSubmit, Page, Status
from kajiya_hub.api.accept import Acceptor
from kajiya_hub.api.body import Body
from kajiya_hub.api.deps import AtOnce, Given, Who
from kajiya_hub.api.errors import invalid
from kajiya_hub.api.multipart import boundary_of
from kajiya_hub.api.openapi import EXAMPLE_JOB, EXAMPLE_SPEC, errors, multipart_body
from kajiya_hub.api.views import job_answer, page_answer

router = APIRouter(tags=["jobs"])

JobId = Annotated[str, Path(description="The job's id.", examples=["j0abcdefghijklmn"])]
Owner = Annotated[str | None, Query(max_length=300, description="Whose job, for administrators; yours if left out.")]
Key = Annotated[
    str | None,
    Header(description="A key of your choice, up to 200 characters: sent again, it gives the same job and no second."),
]
Job_ = {"model": Job, "description": "The job.", "content": {"application/json": {"example": EXAMPLE_JOB}}}


@router.post(
    "/jobs",
    status_code=201,
    summary="Submit a notebook as a job",
    description="The parts of the multipart body: `spec` (JSON), `notebook` (the file), any number of `files`, whose "
    "file names are relative paths. The answer comes when all of it is stored durably.",
    responses={201: Job_, 200: Job_ | {"description": "The job that this key made before."}}
    | errors(403, 409, 413, 422, 429, 507),
    openapi_extra={"requestBody": multipart_body(JobSubmit, EXAMPLE_SPEC)},
)
async def submit(request: Request, who: Who, deps: Given, counters: AtOnce, idempotency_key: Key = None) -> Response:
    who.person("submit")
    boundary = boundary_of(request.headers.get("content-type"))
    body = Body(request, deps.limits.upload_seconds)
    most = deps.limits.notebook_bytes + deps.limits.files_bytes + deps.limits.spec_bytes
    with counters.one("submit", who.name):
        try:
            if _length(request) > most + 64 * 1024 * deps.limits.files_count:
                raise UploadTooLarge(limit=show_size(most))
            acceptor = Acceptor(deps, who.identity)
            loop = asyncio.get_running_loop()
            job, created = await loop.run_in_executor(
                request.app.state.uploads, acceptor.submit, body.chunks(), boundary, idempotency_key
            )
        except ClientDisconnect:
            # Nobody is there to read it.
            return Response(status_code=400)
        except KajiyaError:
            await body.drain()
            raise
    return _made(request, job, created, who.language)


@router.get(
    "/jobs",
    summary="List jobs",
    description="Your jobs, the newest first, with their attempts and without their results.",
    responses={200: {"model": Page[Job], "description": "One page; `next` is the cursor of the next."}}
    | errors(403, 422),
)
async def listed(
    who: Who,
    deps: Given,
    status: Annotated[list[Status] | None, Query(description="Only these statuses; may be repeated.")] = None,
    owner: Annotated[
        str | None, Query(max_length=300, description="Whose jobs, for administrators; `*` for all owners.")
    ] = None,
    q: Annotated[str, Query(max_length=200, description="Text in id, name or notebook.")] = "",
    profile: Annotated[str | None, Query(max_length=64, description="Only this profile.")] = None,
    since: Annotated[datetime | None, Query(description="Submitted at or after this time.")] = None,
    until: Annotated[datetime | None, Query(description="Submitted before this time.")] = None,
    order: Annotated[Literal["newest", "oldest"], Query(description="Which come first.")] = "newest",
    limit: Annotated[int, Query(ge=1, le=500, description="How many on a page.")] = 50,
    cursor: Annotated[str | None, Query(max_length=1000, description="`next` of the page before.")] = None,
) -> Response:
    name = who.person("list").owner(owner, "others_jobs")
    page = await asyncio.to_thread(
        deps.store.jobs,
        None if owner == "*" else name,
        statuses=status or (),
        text=q,
        profile=profile,
        since=_aware(since, "since"),
        until=_aware(until, "until"),
        limit=limit,
        cursor=cursor,
        order=order,
    )
    return page_answer(page, who.language)


@router.get("/jobs/{id}", summary="See a job", responses={200: Job_} | errors(403, 404))
async def seen(id: JobId, who: Who, deps: Given, owner: Owner = None) -> Response:
    name = who.reads(id, owner)
    return job_answer(await asyncio.to_thread(deps.store.job, id, name), who.language)


@router.post(
    "/jobs/{id}/stop",
    summary="Stop a job",
    description="Asks for a stop and answers at once; the job has stopped when its status says so. Asking again does "
    "no harm.",
    responses={200: Job_} | errors(403, 404, 409),
)
async def stop(id: JobId, who: Who, deps: Given, owner: Owner = None) -> Response:
    name = who.person("stop").owner(owner, "others_jobs")
    job = await asyncio.to_thread(deps.store.request_stop, id, name, who.name)
    deps.wake()
    return job_answer(job, who.language)


@router.post(
    "/jobs/{id}/again",
    status_code=201,
    summary="Run a job again",
    description="Makes a new job of the inputs of one of your jobs, with changes. An empty body changes nothing.",
    responses={201: Job_, 200: Job_ | {"description": "The job that this key made before."}}
    | errors(403, 404, 409, 422, 429, 507),
    openapi_extra={
        "requestBody": {
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/JobAgain"},
                    "example": {"parameters": {"C": 100}, "profile": "large"},
                }
            }
        }
    },
)
async def again(
    id: JobId, request: Request, who: Who, deps: Given, counters: AtOnce, idempotency_key: Key = None
) -> Response:
    who.person("submit")
    changes = read_changes(await small_body(request, deps.limits.spec_bytes))
    with counters.one("submit", who.name):
        acceptor = Acceptor(deps, who.identity)
        loop = asyncio.get_running_loop()
        job, created = await loop.run_in_executor(
            request.app.state.uploads, acceptor.again, id, changes, idempotency_key
        )
    return _made(request, job, created, who.language)


@router.delete(
    "/jobs/{id}",
    status_code=204,
    summary="Delete an ended job",
    description="Forgets the job and deletes its inputs, notebook, log and kept files.",
    responses={204: {"description": "It is gone."}} | errors(403, 404, 409),
)
async def delete(id: JobId, who: Who, deps: Given) -> Response:
    who.person("delete")
    await asyncio.to_thread(deps.store.delete, id, who.name)
    await asyncio.to_thread(deps.files.delete, id)
    return Response(status_code=204)


def read_changes(data: bytes) -> JobAgain:
    """The changes of a job run again; an empty body is none. Raises `InvalidRequest`."""
    if not data.strip():
        return JobAgain()
    try:
        raw: Any = pydantic_core.from_json(data, allow_inf_nan=False)
        if not isinstance(raw, dict):
            raise InvalidRequest(field="body", problem="json")
        return JobAgain.model_validate(raw)
    except ValidationError as e:
        raise invalid(e.errors(include_url=False)) from e
    except ValueError as e:
        raise InvalidRequest(field="body", problem="json") from e


async def small_body(request: Request, limit: int) -> bytes:
    """A whole body. Raises `InvalidRequest` where it is longer than the limit in bytes."""
    out = bytearray()
    async for chunk in request.stream():
        out += chunk
        if len(out) > limit:
            raise InvalidRequest(field="body", problem="too_long")
    return bytes(out)


def _length(request: Request) -> int:
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdecimal() else 0


def _aware(time: datetime | None, field: str) -> datetime | None:
    if time is not None and time.tzinfo is None:
        raise InvalidRequest(field=field, problem="time_zone")
    return time


def _made(request: Request, job: Job, created: bool, language: str) -> Response:
    location = request.app.state.deps.prefix + f"/api/jobs/{job.id}"
    return job_answer(job, language, 201 if created else 200, {"Location": location})
