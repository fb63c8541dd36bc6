"""What follows from the way an attempt ended. Pure.

Each class of ending has its own budget of retries. A stop that was asked for wins over every retry.
"""

from dataclasses import dataclass

from kajiya.types import Ending, Reason, Status
from kajiya_hub.backends.base import Observation
from kajiya_hub.store.rows import ActiveJob, Final, Requeue

NO_CAPACITY = "capacity.none"

# What an attempt shows if it was to be stopped anyhow, and then was lost or never began.
_UNDONE = frozenset({Ending.preempted, Ending.could_not_start, Ending.kernel_died, Ending.stopped})


@dataclass(frozen=True)
class Retrying:
    """Seconds to wait before a retry: doubled each time, up to the most. Waiting for capacity is no retry."""

    base: float = 5
    most: float = 600
    capacity_base: float = 0.5
    capacity_most: float = 15

    def after(self, tries: int) -> float:
        return min(self.most, self.base * 2 ** min(tries, 30))

    def after_no_capacity(self, tries: int) -> float:
        return min(self.capacity_most, self.capacity_base * 2 ** min(tries, 30))


@dataclass(frozen=True)
class Conclusion:
    """How the attempt counts, why, and what becomes of the job."""

    ending: Ending
    reason: Reason | None
    then: Requeue | Final


def conclude(job: ActiveJob, seen: Observation, now: float, retrying: Retrying, no_capacity: int = 0) -> Conclusion:
    """What follows for the job; `no_capacity` is how often in a row it found its place taken by others."""
    ending = seen.ending or Ending.preempted
    if job.stop_requested_at is not None and ending in _UNDONE:
        return Conclusion(Ending.stopped, stopped_by(job.stop_by or job.owner), Final(Status.stopped))
    reason = seen.reason or default_reason(job, ending)
    if ending is Ending.succeeded:
        return Conclusion(ending, seen.reason, Final(Status.succeeded))
    if job.stop_requested_at is None:
        if ending is Ending.could_not_start and reason is not None and reason.code == NO_CAPACITY:
            return Conclusion(ending, reason, Requeue(now + retrying.after_no_capacity(no_capacity), free=True))
        used = job.used.get(ending, 0)
        if used < job.retries.get(ending, 0):
            return Conclusion(ending, reason, Requeue(now + retrying.after(used)))
    return Conclusion(ending, reason, Final(Status.stopped if ending is Ending.stopped else Status.failed))


def stopped_by(by: str) -> Reason:
    """Why a stopped job ended."""
    return Reason(code="ended.stopped", params={"by": by})


def default_reason(job: ActiveJob, ending: Ending) -> Reason | None:
    """The reason of an ending of which nobody said more."""
    match ending:
        case Ending.succeeded:
            return None
        case Ending.preempted:
            return Reason(code="ended.lost")
        case Ending.stopped:
            return stopped_by(job.stop_by or job.owner)
        case Ending.timed_out:
            return Reason(code="ended.timed_out", params={"limit": job.time_limit})
        case Ending.could_not_start:
            return Reason(code="ended.could_not_start", params={"problem": "?"})
        case _:
            return Reason(code=f"ended.{ending}")
