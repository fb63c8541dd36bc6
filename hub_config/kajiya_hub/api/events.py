"""Event streams: one job with its cells, or all of a user's jobs; both go on where they broke off."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from kajiya.errors import JobNotFound
from kajiya.runner.events import FILE, encode
from kajiya.types import Job
from kajiya_hub.api.deps import AtOnce, Caller, Deps, Given, Who
from kajiya_hub.api.jobs import JobId, Owner
from kajiya_hub.api.openapi import errors, stream_of
from kajiya_hub.api.sse import Session, Stream, event, opened, position
from kajiya_hub.api.streams import Follower, Streams
from kajiya_hub.api.tail import read_events, size_of
from kajiya_hub.api.views import job_json

router = APIRouter(tags=["events"])
PAGE = 100

LastId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=64, description="Go on after this event.")]


@router.get(
    "/jobs/{id}/events",
    summary="Follow a job",
    description="`job` (the job, at once and at every change), `cell` (each line of the attempts' event logs, with the "
    "id `ATTEMPT:BYTES`) and, when all is told, `end`. A comment comes every 15 s. The stream ends when the token is "
    "revoked and when the service stops; open it again with Last-Event-ID, and nothing is missed or told twice.",
    responses={200: stream_of("job", "cell", "end")} | errors(403, 404, 422, 429),
    response_class=Response,
)
async def of_job(
    id: JobId,
    request: Request,
    who: Who,
    deps: Given,
    counters: AtOnce,
    owner: Owner = None,
    attempt: Annotated[int, Query(ge=1, le=10**6, description="The attempt to begin with, without Last-Event-ID.")] = 1,
    last_event_id: LastId = None,
) -> Stream:
    name = who.reads(id, owner)
    at = position(last_event_id, r"(\d{1,6}):(\d{1,18})") or (attempt, 0)
    streams: Streams = request.app.state.streams
    follower = Follower(name, id)
    close = opened(counters, streams, follower, who)
    try:
        # Looked up after the follower was taken in, so that no change falls between.
        job = await asyncio.to_thread(deps.store.job, id, name)
    except BaseException:
        close()
        raise
    session = Session(deps, streams, who, follower)
    return Stream(_of_job(job, deps, session, who.language, at[0], at[1]), close)


async def _of_job(
    job: Job, deps: Deps, session: Session, language: str, attempt: int, offset: int
) -> AsyncIterator[bytes]:
    follower, sent = session.follower, -1
    while True:
        if follower.job is not None and follower.job.seq >= job.seq:
            job = follower.job
        follower.job = None
        place = f"{attempt}:{offset}"
        # A final state is told last, when every cell has been.
        if not job.status.final and job.seq != sent:
            yield event("job", job_json(job, language), place)
            sent = job.seq
        numbers = {a.number: a for a in job.attempts}
        size = await asyncio.to_thread(size_of, deps.files, job.id, attempt, FILE) if attempt in numbers else 0
        read = await asyncio.to_thread(read_events, deps.files, job.id, attempt, offset)
        for line in read.lines:
            yield event("cell", encode(line.event).rstrip(b"\n"), f"{attempt}:{line.offset}")
        moved, offset = read.offset != offset, read.offset
        if await session.over():
            return
        ping = session.ping()
        if ping:
            yield ping
        if read.more or moved:
            continue
        current = numbers.get(attempt)
        later = [n for n in numbers if n > attempt]
        if later and (current is None or current.status.final):
            attempt, offset = min(later), 0
            continue
        if job.status.final:
            yield event("job", job_json(job, language), f"{attempt}:{offset}")
            yield event("end", b'{"status":"%s"}' % job.status.encode(), f"{attempt}:{offset}")
            return
        if follower.job is not None:
            continue
        if current is not None:
            follower.watch(job.id, attempt, FILE, size)
        if ping and not await _there(deps, job.id, follower):
            yield event("end", b'{"status":"deleted"}', f"{attempt}:{offset}")
            return
        await session.wait()


async def _there(deps: Deps, id: str, follower: Follower) -> bool:
    """Looks for a job that may have been deleted, which is no change of it; now and then is enough."""
    try:
        follower.job = await asyncio.to_thread(deps.store.job, id, follower.owner)
    except JobNotFound:
        return False
    return True


@router.get(
    "/events",
    summary="Follow all your jobs",
    description="`job` for every change of any of your jobs; the id is the change's number. It begins with `ready`, "
    "whose id is where it stands: list your jobs after it, and no change falls between.",
    responses={200: stream_of("ready", "job")} | errors(403, 422, 429),
    response_class=Response,
)
async def of_all(request: Request, who: Who, deps: Given, counters: AtOnce, last_event_id: LastId = None) -> Stream:
    who.person("follow_all")
    at = position(last_event_id, r"(\d{1,18})")
    streams: Streams = request.app.state.streams
    follower = Follower(who.name)
    close = opened(counters, streams, follower, who)
    try:
        latest = await asyncio.to_thread(deps.store.latest_seq)
    except BaseException:
        close()
        raise
    # A number from before a restored backup would wait for ever.
    seq = latest if at is None or at[0] > latest else at[0]
    return Stream(_of_all(deps, Session(deps, streams, who, follower), who, seq), close)


async def _of_all(deps: Deps, session: Session, who: Caller, seq: int) -> AsyncIterator[bytes]:
    yield event("ready", b'{"seq":%d}' % seq, str(seq))
    while True:
        jobs = await asyncio.to_thread(deps.store.changes, seq, who.name, PAGE)
        for job in jobs:
            seq = job.seq
            yield event("job", job_json(job, who.language), str(seq))
        if await session.over():
            return
        if ping := session.ping():
            yield ping
        if not jobs:
            await session.wait()
