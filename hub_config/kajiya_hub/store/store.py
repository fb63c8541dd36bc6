"""The store of jobs, for the API and for the loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal

from kajiya.types import Job, Page, Progress, Reason, Status
from kajiya_hub.store.rows import (
    ActiveJob,
    AttemptEnd,
    Change,
    Counts,
    Final,
    NewJob,
    QueuedJob,
    Requeue,
    State,
    TokenHolder,
)

Order = Literal["newest", "oldest"]


class Store:
    """Jobs, attempts and results. Synchronous and safe for many threads: call it by `asyncio.to_thread` or from sync
    routes. Every change of a job gives it a new `seq`; seqs grow in the order of the commits.

    `url` is an SQLAlchemy URL such as `sqlite:////data/service/kajiya.sqlite`; a plain path means SQLite. Opening
    makes the schema or migrates it. Raises `StoreNewer`, `DiskFull`.
    """

    def __init__(self, url: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Gives back all connections."""
        raise NotImplementedError

    def ping(self) -> None:
        """Reads one row; for the health endpoint. Raises what SQLAlchemy raises."""
        raise NotImplementedError

    def subscribe(self, callback: Callable[[], None], requests_only: bool = False) -> Callable[[], None]:
        """Calls back after every commit (with `requests_only`: after submits and stop requests only), from the thread
        that committed, so hand over by `loop.call_soon_threadsafe`. Gives the function that ends it."""
        raise NotImplementedError

    # --- for the API
    def submit(self, new: NewJob, queued_limit: int | None = None) -> tuple[Job, bool]:
        """Accepts a job durably; the flag says whether it is new. With a known key and the same `request_hash` the
        job made then is given back (discard the new input).

        `queued_limit` is how many jobs of the owner may be not yet ended. Raises `IdempotencyConflict`,
        `LimitReached`, `InvalidName` (text that no database takes), `DiskFull`.
        """
        raise NotImplementedError

    def submitted(self, owner: str, key: str, request_hash: str) -> Job | None:
        """The job that was submitted with this key before, for an early answer. Raises `IdempotencyConflict`."""
        raise NotImplementedError

    def job(self, id: str, owner: str | None = None) -> Job:
        """One job with attempts and results; with an owner only that owner's. Raises `JobNotFound`."""
        raise NotImplementedError

    def input_of(self, id: str, owner: str | None = None) -> NewJob:
        """What was submitted, to run it again. Raises `JobNotFound`."""
        raise NotImplementedError

    def jobs(
        self,
        owner: str | None = None,
        *,
        statuses: Iterable[Status] = (),
        text: str = "",
        profile: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
        order: Order = "newest",
    ) -> Page[Job]:
        """One page of jobs with their attempts and without their results; no owner means all owners.

        `text` is looked for in id, name and notebook, whatever the case. `limit` is clamped to 1–500. Raises
        `InvalidRequest` for a cursor that is none of ours, or of another list.
        """
        raise NotImplementedError

    def request_stop(self, id: str, owner: str | None = None, by: str = "") -> Job:
        """Asks that a job ends; the loop acts on it. Asking again changes nothing. Raises `JobNotFound`, `JobEnded`."""
        raise NotImplementedError

    def delete(self, id: str, owner: str | None = None) -> None:
        """Forgets an ended job; delete its files after. Raises `JobNotFound`, `JobNotEnded`."""
        raise NotImplementedError

    def changes(self, after_seq: int, owner: str | None = None, limit: int = 500) -> list[Job]:
        """Jobs whose last change came after `after_seq`, in that order; each once, as it is now."""
        raise NotImplementedError

    def latest_seq(self) -> int:
        """The number of the last change."""
        raise NotImplementedError

    def counts(self) -> Counts:
        """Numbers for metrics."""
        raise NotImplementedError

    def active_of(self, owner: str, profile: str | None = None) -> int:
        """How many jobs of an owner have an attempt under way, of one profile or all."""
        raise NotImplementedError

    def attempt_for_token(self, token_sha256: str) -> TokenHolder | None:
        """Whose token this is, by the hex sha256 of it; None if nobody's."""
        raise NotImplementedError

    # --- for the loop
    def queued(self) -> list[QueuedJob]:
        """All waiting jobs."""
        raise NotImplementedError

    def changed(self, after_seq: int) -> list[Change]:
        """What changed since, as the loop needs it."""
        raise NotImplementedError

    def active(self) -> list[ActiveJob]:
        """All jobs with an attempt under way."""
        raise NotImplementedError

    def begin_attempt(self, id: str, token_sha256: str) -> ActiveJob | None:
        """Makes the next attempt and the job `starting`; None if it waits no more or is to be stopped."""
        raise NotImplementedError

    def add_token(self, id: str, number: int, token_sha256: str) -> None:
        """Gives a running attempt one more token, for a start that is gone on with after a crash."""
        raise NotImplementedError

    def save_state(self, id: str, number: int, state: State) -> None:
        """Remembers what the backend must know of the attempt."""
        raise NotImplementedError

    def set_status(self, id: str, number: int, status: Status) -> None:
        """`running` or `stopping`, if that attempt is still under way."""
        raise NotImplementedError

    def set_progress(self, progress: Mapping[tuple[str, int], Progress]) -> None:
        """Remembers how far attempts are, all in one transaction."""
        raise NotImplementedError

    def set_reason(self, id: str, reason: Reason | None) -> None:
        """What is shown beside the status of an active job; None takes it away."""
        raise NotImplementedError

    def end_attempt(self, id: str, number: int, end: AttemptEnd, then: Requeue | Final) -> None:
        """Ends the attempt, its tokens, and the job or the job's turn, in one transaction; twice changes nothing."""
        raise NotImplementedError

    def end_queued(self, id: str, status: Status, reason: Reason | None = None) -> bool:
        """Ends a job that waits; False if it waits no more."""
        raise NotImplementedError

    def set_waiting(self, waiting: Mapping[str, tuple[int, Reason]]) -> None:
        """Place and reason of every waiting job. They are no truth but a view that the loop can make again, so they
        are kept in memory, and rows are written only where a reader would care: near the front, or a new reason."""
        raise NotImplementedError

    def prune(self, before: datetime | None, keep_per_owner: int | None, limit: int = 100) -> list[str]:
        """Forgets ended jobs older than `before`, and the oldest beyond `keep_per_owner`; at most `limit` a call.
        Gives their ids, so that their files are deleted after."""
        raise NotImplementedError

    def known(self, ids: Sequence[str]) -> set[str]:
        """Which of these jobs exist."""
        raise NotImplementedError
