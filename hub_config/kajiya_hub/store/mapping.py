"""From rows to what others see, and back."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import RowMapping

from kajiya.errors import InvalidName
from kajiya.types import ACTIVE, Attempt, Ending, Environment, Job, Progress, Reason, Resources, Result, Status, Usage
from kajiya_hub.store.paths import printable
from kajiya_hub.store.rows import ActiveJob, NewJob, QueuedJob

SEARCH_LENGTH = 150  # characters of each name: PostgreSQL's index entries hold 2,704 bytes (BTMaxItemSize)
FINAL_OF = {Ending.succeeded: Status.succeeded, Ending.stopped: Status.stopped}


def when(seconds: float | None) -> datetime | None:
    """A time of a row as people's clocks have it, in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def status_of(ending: Ending) -> Status:
    """What an ending makes of its attempt."""
    return FINAL_OF.get(ending, Status.failed)


def resources_of(row: RowMapping) -> Resources:
    return Resources(cpu=row["cpu"], memory=row["memory"], gpus=row["gpus"], gpu_kind=row["gpu_kind"])


def reason_of(value: Mapping[str, Any] | None) -> Reason | None:
    return None if value is None else Reason(code=value["code"], params=value.get("params", {}))


def reason_row(reason: Reason | None) -> dict[str, Any] | None:
    """Code and parameters only: the sentence is made in the reader's language."""
    return None if reason is None else {"code": reason.code, "params": reason.params}


def attempt_of(row: RowMapping) -> Attempt:
    return Attempt(
        number=row["number"],
        status=Status(row["status"]),
        ending=None if row["ending"] is None else Ending(row["ending"]),
        exit_code=row["exit_code"],
        reason=reason_of(row["reason"]),
        usage=None if row["usage"] is None else Usage(**row["usage"]),
        started_at=when(row["started_at"]),
        ended_at=when(row["ended_at"]),
    )


def job_of(
    row: RowMapping,
    attempts: Iterable[Attempt],
    results: Iterable[Result],
    waiting: Mapping[str, tuple[int, Reason]],
) -> Job:
    """A job as its owner sees it; `waiting` has the loop's newest view of the queue."""
    status = Status(row["status"])
    position, reason = row["position"], reason_of(row["reason"])
    if status is Status.queued and row["id"] in waiting:
        position, reason = waiting[row["id"]]
    return Job(
        id=row["id"],
        owner=row["owner"],
        name=row["name"],
        notebook=row["notebook"],
        notebook_sha256=row["notebook_sha256"],
        files=row["files"],
        parameters=row["parameters"],
        profile=row["profile"],
        options=row["options"],
        resources=resources_of(row),
        environment=Environment(**row["environment"]),
        priority=row["priority"],
        time_limit=row["time_limit"],
        retries={Ending(k): v for k, v in row["retries"].items()},
        results_wanted=row["results_wanted"],
        again_of=row["again_of"],
        # A stop that was asked for shows at once, though the loop has yet to act.
        status=Status.stopping if status in ACTIVE and row["stop_requested_at"] is not None else status,
        reason=reason,
        position=position,
        progress=Progress(**row["progress"]),
        attempts=list(attempts),
        results=list(results),
        submitted_at=datetime.fromtimestamp(row["submitted_at"], UTC),
        started_at=when(row["started_at"]),
        ended_at=when(row["ended_at"]),
        seq=row["seq"],
    )


def new_of(row: RowMapping) -> NewJob:
    """What was submitted."""
    return NewJob(
        id=row["id"],
        owner=row["owner"],
        name=row["name"],
        notebook=row["notebook"],
        notebook_sha256=row["notebook_sha256"],
        profile=row["profile"],
        resources=resources_of(row),
        environment=Environment(**row["environment"]),
        files=row["files"],
        parameters=row["parameters"],
        options=row["options"],
        env=row["env"],
        priority=row["priority"],
        time_limit=row["time_limit"],
        retries={Ending(k): v for k, v in row["retries"].items()},
        results_wanted=row["results_wanted"],
        again_of=row["again_of"],
        key=row["idempotency_key"],
        request_hash=row["request_hash"],
    )


def new_row(new: NewJob, now: float) -> dict[str, Any]:
    """The row of a new job, but for `seq`. Raises `InvalidName` for text that no database takes."""
    for value in (new.owner, new.name, new.notebook, new.profile, new.key or "", new.resources.gpu_kind or ""):
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise InvalidName(name=printable(value), problem="it has a character that can't be stored")
    for value in (new.owner, new.key or ""):
        if len(value) > 255:
            raise InvalidName(name=printable(value), problem="it has more than 255 characters")
    return {
        "id": new.id,
        "owner": new.owner,
        "name": new.name,
        "notebook": new.notebook,
        "notebook_sha256": new.notebook_sha256,
        "search": f"{new.id} {new.name[:SEARCH_LENGTH]} {new.notebook[-SEARCH_LENGTH:]}".lower(),
        "files": new.files,
        "parameters": new.parameters,
        "profile": new.profile,
        "options": new.options,
        "cpu": new.resources.cpu,
        "memory": new.resources.memory,
        "gpus": new.resources.gpus,
        "gpu_kind": new.resources.gpu_kind,
        "environment": new.environment.model_dump(mode="json"),
        "env": new.env,
        "priority": new.priority,
        "time_limit": new.time_limit,
        "retries": {str(k): v for k, v in new.retries.items()},
        "results_wanted": new.results_wanted,
        "again_of": new.again_of,
        "idempotency_key": new.key,
        "request_hash": new.request_hash,
        "status": Status.queued,
        "progress": {},
        "attempt": 0,
        "not_before": 0.0,
        "submitted_at": now,
        "stop_by": "",
    }


QUEUED_COLUMNS = (
    *("id", "seq", "owner", "profile", "status", "cpu", "memory", "gpus", "gpu_kind", "priority"),
    *("submitted_at", "not_before", "stop_requested_at", "stop_by", "attempt"),
)


def queued_of(row: RowMapping) -> QueuedJob:
    return QueuedJob(
        id=row["id"],
        owner=row["owner"],
        profile=row["profile"],
        resources=resources_of(row),
        priority=row["priority"],
        submitted_at=row["submitted_at"],
        not_before=row["not_before"],
        stop_requested=row["stop_requested_at"] is not None,
        stop_by=row["stop_by"],
        attempt=row["attempt"],
    )


def active_of(row: RowMapping, used: dict[Ending, int]) -> ActiveJob:
    """From a row of jobs joined with its attempt (`state`, `began_at`, `attempt_started_at`)."""
    return ActiveJob(
        id=row["id"],
        owner=row["owner"],
        status=Status(row["status"]),
        attempt=row["attempt"],
        profile=row["profile"],
        options=row["options"],
        resources=resources_of(row),
        environment=Environment(**row["environment"]),
        env=row["env"],
        name=row["name"],
        notebook=row["notebook"],
        parameters=row["parameters"],
        files=row["files"],
        results_wanted=row["results_wanted"],
        time_limit=row["time_limit"],
        retries={Ending(k): v for k, v in row["retries"].items()},
        state=row["state"],
        progress=Progress(**row["progress"]),
        began_at=row["began_at"],
        started_at=row["attempt_started_at"],
        stop_requested_at=row["stop_requested_at"],
        stop_by=row["stop_by"],
        reason=reason_of(row["reason"]),
        used=used,
    )
