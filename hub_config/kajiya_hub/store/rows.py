"""What goes into the store and what the loop reads from it; users see `kajiya.types.Job` instead."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kajiya.types import Ending, Environment, Parameters, Progress, Reason, Resources, Result, Retries, Status, Usage

State = dict[str, Any]


@dataclass(frozen=True)
class NewJob:
    """A job to be accepted. Its input must be committed in `JobFiles` before it is given to `Store.submit`.

    `key` is the client's idempotency key and `request_hash` a digest of all that was asked, so that the same key with
    another content is noticed. `env` holds the profile's environment variables.
    """

    id: str
    owner: str
    name: str
    notebook: str
    notebook_sha256: str
    profile: str
    resources: Resources
    environment: Environment
    files: list[str] = field(default_factory=list[str])
    parameters: Parameters = field(default_factory=dict[str, Any])
    options: dict[str, str] = field(default_factory=dict[str, str])
    env: dict[str, str] = field(default_factory=dict[str, str])
    priority: int = 0
    time_limit: int | None = None
    retries: Retries = field(default_factory=dict[Ending, int])
    results_wanted: list[str] = field(default_factory=list[str])
    again_of: str | None = None
    key: str | None = None
    request_hash: str = ""


@dataclass(frozen=True)
class QueuedJob:
    """A waiting job, with what the queue needs to decide on it. Times are UTC seconds; `attempt` is the last number."""

    id: str
    owner: str
    profile: str
    resources: Resources
    priority: int
    submitted_at: float
    not_before: float = 0.0
    stop_requested: bool = False
    stop_by: str = ""
    attempt: int = 0


@dataclass(frozen=True)
class ActiveJob:
    """A job that has an attempt under way, with what the loop needs to start, check and end it."""

    id: str
    owner: str
    status: Status
    attempt: int
    profile: str
    options: dict[str, str]
    resources: Resources
    environment: Environment
    env: dict[str, str]
    name: str
    notebook: str
    parameters: Parameters
    files: list[str]
    results_wanted: list[str]
    time_limit: int | None
    retries: Retries
    state: State | None
    progress: Progress
    began_at: float
    started_at: float | None
    stop_requested_at: float | None
    stop_by: str
    reason: Reason | None
    used: dict[Ending, int]


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended, and what it leaves."""

    ending: Ending
    exit_code: int | None = None
    reason: Reason | None = None
    usage: Usage | None = None
    progress: Progress | None = None
    results: list[Result] = field(default_factory=list[Result])


@dataclass(frozen=True)
class Requeue:
    """The job is tried again, not before a time (UTC seconds); a `free` one is forgotten but for its number."""

    not_before: float
    free: bool = False


@dataclass(frozen=True)
class Final:
    """The job ends with this status."""

    status: Status


@dataclass(frozen=True)
class TokenHolder:
    """Whose an attempt's token is; `valid` is false once the attempt has ended or was replaced."""

    job: str
    attempt: int
    owner: str
    valid: bool


@dataclass(frozen=True)
class Change:
    """What the loop sees of a job that changed: `queued` is None where the job waits no more."""

    id: str
    seq: int
    status: Status
    queued: QueuedJob | None


@dataclass(frozen=True)
class Counts:
    """Numbers for metrics: jobs by status, and attempts that ended by ending."""

    jobs: dict[Status, int]
    endings: dict[Ending, int]
    oldest_queued_at: datetime | None = None
