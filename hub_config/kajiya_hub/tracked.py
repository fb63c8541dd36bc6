"""What the loop keeps in memory of each job with an attempt under way; a restarted loop makes it again."""

import asyncio
from dataclasses import dataclass, field

from kajiya.types import Progress
from kajiya_hub.backends.base import AttemptRef, State
from kajiya_hub.events import ProgressTail
from kajiya_hub.store.files import JobFiles
from kajiya_hub.store.rows import ActiveJob

TROUBLE_MOST = 60.0


@dataclass
class Tracked:
    """One attempt under way. At most one task works on it: its start or its end."""

    job: ActiveJob
    tail: ProgressTail
    state: State
    shown: Progress
    task: asyncio.Task[None] | None = None
    starting: bool = False
    started: bool = False
    token: str | None = None
    stop_sent_at: float | None = None
    unreachable: bool = False
    troubles: int = 0
    not_before: float = 0.0
    ended: bool = False

    @classmethod
    def of(cls, job: ActiveJob, files: JobFiles, token: str | None = None) -> "Tracked":
        return cls(job, ProgressTail(files, job.id, job.attempt), dict(job.state or {}), job.progress, token=token)

    @property
    def key(self) -> tuple[str, int]:
        return self.job.id, self.job.attempt

    @property
    def busy(self) -> bool:
        """Whether a task works on it, so that the loop must not."""
        return self.task is not None and not self.task.done()

    @property
    def to_stop(self) -> bool:
        return self.job.stop_requested_at is not None

    def ref(self, files: JobFiles) -> AttemptRef:
        directory = files.attempt(self.job.id, self.job.attempt)
        return AttemptRef(self.job.id, self.job.attempt, self.job.owner, directory, dict(self.state))

    def trouble(self, now: float) -> None:
        """Backs off, as something went wrong with this one."""
        self.troubles += 1
        self.not_before = now + min(TROUBLE_MOST, 0.5 * 2 ** min(self.troubles, 10))

    def well(self) -> None:
        self.troubles, self.not_before = 0, 0.0


@dataclass
class LoopSettings:
    """Seconds and counts by which the loop works."""

    active_interval: float = 0.25
    idle_interval: float = 2.0
    starts_at_once: int = 8
    grace: float = 10
    stop_again_after: float = 30
    start_tries: int = 5
    start_timeout: float = 3600
    ask_timeout: float = 60
    end_tries: int = 8
    full_view_every: float = 2.0
    long_queue: int = 300
    retention_days: int | None = 90
    retention_per_owner: int | None = 5000
    retention_every: float = 600
    reserve_after: float = 600
    environment: dict[str, str] = field(default_factory=dict[str, str])
