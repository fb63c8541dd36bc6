"""What a job leaves: executed notebook, input, log, kept files. To a browser all of it is hostile."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Annotated, BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from kajiya import notebook as notebooks
from kajiya.errors import AttemptNotFound, JobNotFound, NotebookNotReady, ResultNotFound
from kajiya.runner.assemble import assemble
from kajiya.runner.events import FILE
from kajiya.types import Job, Result
from kajiya_hub.api.deps import AtOnce, Deps, Given, Who
from kajiya_hub.api.jobs import JobId, Owner
from kajiya_hub.api.openapi import bytes_of, errors
from kajiya_hub.api.sse import Session, Stream, opened
from kajiya_hub.api.streams import Follower
from kajiya_hub.api.tail import LOG, all_events, open_or_none, size_of
from kajiya_hub.api.views import results_answer
from kajiya_hub.store.paths import printable

router = APIRouter(tags=["results"])
NOTEBOOK_TYPE = "application/x-ipynb+json"
CHUNK = 256 * 1024
Attempt = Annotated[int | None, Query(ge=1, description="Which attempt; the latest if left out.")]


@router.get(
    "/jobs/{id}/notebook",
    summary="Get the executed notebook",
    description="Put together from the event log as it is now: while the job runs, and after any crash.",
    responses={200: bytes_of(NOTEBOOK_TYPE, "The notebook with its outputs.")} | errors(403, 404, 409),
    response_class=Response,
)
async def executed(
    id: JobId, request: Request, who: Who, deps: Given, owner: Owner = None, attempt: Attempt = None
) -> Response:
    job = await asyncio.to_thread(deps.store.job, id, who.reads(id, owner))
    number = _attempt(job, attempt)
    if number is None:
        raise NotebookNotReady(job=id)
    # One at a time: a notebook of 50 MiB takes many times that while it is put together.
    async with request.app.state.assembling:
        data = await asyncio.to_thread(executed_notebook, deps, job, number)
    return Response(data, 200, attachment(_file_name(job)), NOTEBOOK_TYPE)


def executed_notebook(deps: Deps, job: Job, attempt: int) -> bytes:
    """The notebook of an attempt as a file. Raises `JobNotFound`, `NotebookInvalid`."""
    with _input(deps, job) as source:
        book = notebooks.read(source.read(), _file_name(job), limit=2**62)
    events = open_or_none(deps.files, job.id, attempt, FILE)
    if events is None:
        return notebooks.dump(assemble(book, []))
    with events:
        return notebooks.dump(assemble(book, all_events(events)))


@router.get(
    "/jobs/{id}/input",
    summary="Get the notebook as it was submitted",
    responses={200: bytes_of(NOTEBOOK_TYPE, "The notebook, byte for byte.")} | errors(403, 404),
    response_class=Response,
)
async def submitted(id: JobId, who: Who, deps: Given, owner: Owner = None) -> Response:
    job = await asyncio.to_thread(deps.store.job, id, who.reads(id, owner))
    file = await asyncio.to_thread(_input, deps, job)
    return download(file, NOTEBOOK_TYPE, _file_name(job), job.notebook_sha256)


@router.get(
    "/jobs/{id}/log",
    summary="Get the log",
    description="What the job's processes printed, from a byte offset to the present end. With `follow=true` it goes "
    "on until the attempt ends.",
    responses={200: bytes_of("text/plain", "The log.", {"X-Next-Offset": "Where to go on from; absent with `follow`."})}
    | errors(403, 404, 422, 429),
    response_class=Response,
)
async def logged(
    id: JobId,
    request: Request,
    who: Who,
    deps: Given,
    counters: AtOnce,
    owner: Owner = None,
    attempt: Attempt = None,
    offset: Annotated[int, Query(ge=0, le=2**62, description="The first byte.")] = 0,
    follow: Annotated[bool, Query(description="Go on until the attempt ends.")] = False,
) -> Response:
    name = who.reads(id, owner)
    job = await asyncio.to_thread(deps.store.job, id, name)
    number = _attempt(job, attempt)
    if follow:
        follower = Follower(name, id)
        close = opened(counters, request.app.state.streams, follower, who)
        session = Session(deps, request.app.state.streams, who, follower)
        return Stream(_follow(deps, job, number or 1, offset, session), close, "text/plain; charset=utf-8")
    file = None if number is None else await asyncio.to_thread(open_or_none, deps.files, id, number, LOG)
    size = 0 if number is None else await asyncio.to_thread(size_of, deps.files, id, number, LOG)
    if file is None or offset >= size:
        if file is not None:
            file.close()
        return Response(b"", 200, {"X-Next-Offset": str(max(size, 0))}, "text/plain; charset=utf-8")
    file.seek(offset)
    headers = {"X-Next-Offset": str(size), "Content-Length": str(size - offset)}
    return _Download(_chunks(file, size - offset), file.close, "text/plain; charset=utf-8", headers)


async def _follow(deps: Deps, job: Job, attempt: int, offset: int, session: Session) -> AsyncIterator[bytes]:
    follower = session.follower
    while True:
        job, follower.job = follower.job or job, None
        size = await asyncio.to_thread(size_of, deps.files, job.id, attempt, LOG)
        data = await asyncio.to_thread(_read, deps, job.id, attempt, offset)
        if data:
            offset += len(data)
            yield data
        if await session.over():
            return
        if data:
            continue
        status = next((a.status for a in job.attempts if a.number == attempt), job.status)
        if status.final:
            return
        follower.watch(job.id, attempt, LOG, size)
        if follower.job is None:
            await session.wait()


def _read(deps: Deps, job: str, attempt: int, offset: int) -> bytes:
    file = open_or_none(deps.files, job, attempt, LOG)
    if file is None:
        return b""
    with file:
        if offset > os.fstat(file.fileno()).st_size:
            return b""
        file.seek(offset)
        return file.read(CHUNK)


@router.get(
    "/jobs/{id}/results",
    summary="List the files a job kept",
    responses={200: {"model": list[Result], "description": "The files, by path."}} | errors(403, 404),
)
async def kept(id: JobId, who: Who, deps: Given, owner: Owner = None) -> Response:
    job = await asyncio.to_thread(deps.store.job, id, who.reads(id, owner))
    return results_answer(list(_latest(job).values()))


@router.get(
    "/jobs/{id}/results/{path:path}",
    summary="Get a file the job kept",
    responses={200: bytes_of("application/octet-stream", "The file.", {"ETag": "Its sha256."})} | errors(403, 404),
    response_class=Response,
)
async def result(
    id: JobId,
    path: Annotated[str, Path(description="The file's path as listed.")],
    who: Who,
    deps: Given,
    owner: Owner = None,
) -> Response:
    job = await asyncio.to_thread(deps.store.job, id, who.reads(id, owner))
    found = _latest(job).get(path)
    if found is None:
        raise ResultNotFound(job=id, path=printable(path))
    file = await asyncio.to_thread(deps.files.open_result, id, found.attempt, path)
    # Never its own type: a browser must not run what a notebook wrote.
    return download(file, "application/octet-stream", path.rsplit("/", 1)[-1], found.sha256)


def _latest(job: Job) -> dict[str, Result]:
    out: dict[str, Result] = {}
    for r in sorted(job.results, key=lambda r: (r.path, r.attempt)):
        out[r.path] = r
    return out


def _attempt(job: Job, asked: int | None) -> int | None:
    numbers = [a.number for a in job.attempts]
    if asked is None:
        return max(numbers, default=None)
    if asked not in numbers:
        raise AttemptNotFound(job=job.id, attempt=asked)
    return asked


def _input(deps: Deps, job: Job) -> BinaryIO:
    try:
        return deps.files.notebook(job.id).open("rb")
    except FileNotFoundError as e:
        # Deleted between the look into the store and now.
        raise JobNotFound(job=job.id) from e


def _file_name(job: Job) -> str:
    return job.notebook.rstrip("/").rsplit("/", 1)[-1] or "notebook.ipynb"


def attachment(name: str) -> dict[str, str]:
    """Headers under which a browser saves a file and never shows it."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)[:150]
    full = quote(name.encode("utf-8", "replace")[:600], safe="")
    return {"Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{full}"}


class _Download(StreamingResponse):
    """A file's answer, which closes it whatever happens."""

    def __init__(
        self, content: AsyncIterator[bytes], close: Callable[[], None], media_type: str, headers: dict[str, str]
    ) -> None:
        super().__init__(content, media_type=media_type, headers=headers)
        self._close = close

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


def download(file: BinaryIO, media_type: str, name: str, sha256: str) -> Response:
    """The answer that is a file to be saved; closes it whatever happens."""
    size = file.seek(0, 2)
    file.seek(0)
    headers = attachment(name) | {"Content-Length": str(size), "ETag": json.dumps(sha256)}
    return _Download(_chunks(file, size), file.close, media_type, headers)


async def _chunks(file: BinaryIO, size: int) -> AsyncIterator[bytes]:
    # Exactly `size` bytes, as the header promised, even where the file grows meanwhile.
    while size > 0 and (chunk := await asyncio.to_thread(file.read, min(CHUNK, size))):
        size -= len(chunk)
        yield chunk
