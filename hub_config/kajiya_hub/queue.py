"""Who starts next, and why the others wait. Pure: the same input always gives the same decision.

Between owners the one with the least dominant share of what is in use goes first (dominant resource fairness, Ghodsi
et al., NSDI 2011), then the older job; among one owner's jobs the higher priority, then the older. Smaller jobs may
pass one that does not fit yet. But once that one, first in line, has waited `reserve_after` seconds, nothing starts
any more that would take what it needs, so that it is not passed for ever.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from kajiya.sizes import show_size
from kajiya.types import Capacity, Reason, Resources

Vector = tuple[tuple[int, int], ...]
"""What a job takes: pairs of a resource's index and an amount, in thousandths of a CPU, bytes, or GPUs."""


class Waiting(Protocol):
    """A job that waits, as far as the queue looks at it. Times are UTC seconds; the higher priority goes first."""

    @property
    def id(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def profile(self) -> str: ...
    @property
    def resources(self) -> Resources: ...
    @property
    def priority(self) -> int: ...
    @property
    def submitted_at(self) -> float: ...
    @property
    def not_before(self) -> float: ...


@dataclass(frozen=True)
class Holding:
    """What a job with an attempt under way holds."""

    owner: str
    profile: str
    resources: Resources


@dataclass(frozen=True)
class QueueLimits:
    """Limits that hold now. `in_use` counts what else uses a profile by owner and profile: servers.

    No retry is put off for more than `longest_wait` seconds; a later time is due to a clock that was set back.
    """

    jobs_active: int | None = None
    profiles: Mapping[str, int] = field(default_factory=dict[str, int])
    in_use: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    reserve_after: float = 600
    longest_wait: float = 3600


@dataclass
class Decision:
    """Jobs to start, in that order; place (from 1) and reason of each that waits on.

    `reserved` is the job for which room is being kept, to be given to the next `decide`. `again_at` is when time alone
    will change the decision.
    """

    start: list[str] = field(default_factory=list[str])
    waits: dict[str, tuple[int, Reason]] = field(default_factory=dict[str, tuple[int, Reason]])
    reserved: str | None = None
    again_at: float | None = None

    def by(self, time: float) -> None:
        """Notes a time at which to decide again."""
        self.again_at = time if self.again_at is None else min(self.again_at, time)


class Machine:
    """Amounts of each resource: all there is, what is not held by servers, and what is free."""

    def __init__(self, capacity: Capacity) -> None:
        kinds = sorted({g.kind for g in capacity.gpus})
        self._kind = {kind: 3 + i for i, kind in enumerate(kinds)}
        self.total = self._amounts(capacity, "total")
        self.free = self._amounts(capacity, "free")
        self.without_jobs = list(self.free)
        self._vectors: dict[tuple[float, int, int, str | None], Vector | None] = {}

    def _amounts(self, capacity: Capacity, which: str) -> list[int]:
        cpu, memory = getattr(capacity.cpu, which), getattr(capacity.memory, which)
        out = [round(cpu * 1000), int(memory), 0, *[0] * len(self._kind)]
        for gpu in capacity.gpus:
            out[2] += getattr(gpu, which)
            out[self._kind[gpu.kind]] += getattr(gpu, which)
        return out

    def vector(self, r: Resources) -> Vector | None:
        """What these resources take; None where the machine has no GPU of that kind."""
        key = (r.cpu, r.memory, r.gpus, r.gpu_kind)
        if key not in self._vectors:
            self._vectors[key] = self._vector(r)
        return self._vectors[key]

    def _vector(self, r: Resources) -> Vector | None:
        rows = [(0, round(r.cpu * 1000)), (1, r.memory)]
        if r.gpus:
            rows.append((2, r.gpus))
            if r.gpu_kind is not None:
                if r.gpu_kind not in self._kind:
                    return None
                rows.append((self._kind[r.gpu_kind], r.gpus))
        return tuple(rows)

    def take(self, vector: Vector) -> None:
        for i, amount in vector:
            self.free[i] -= amount

    def missing(self, vector: Vector, of: list[int]) -> list[int]:
        """The resources of which there is too little in `of`."""
        return [i for i, amount in vector if amount > of[i]]

    def show(self, resources: Resources, i: int, of: list[int]) -> dict[str, Any]:
        """A missing resource as sentences say it."""
        free, total = max(0, of[i]), self.total[i]
        if i == 0:
            names = ("CPUs", f"{resources.cpu:g}", f"{free / 1000:g}", f"{total / 1000:g}")
        elif i == 1:
            names = ("memory", show_size(resources.memory), show_size(free), show_size(total))
        else:
            kind = "GPUs" if resources.gpu_kind is None else f"GPUs ({resources.gpu_kind})"
            names = (kind, str(resources.gpus), str(free), str(total))
        return dict(zip(("resource", "asked", "free", "total"), names, strict=True))


def decide(
    waiting: Iterable[Waiting],
    active: Iterable[Holding],
    capacity: Capacity,
    limits: QueueLimits,
    now: float,
    reserved: str | None = None,
    depth: int | None = None,
) -> Decision:
    """Who starts, and why the others wait.

    `capacity.free` is what would be free if no job ran: all there is, less what servers hold. `now` in UTC seconds.
    With `depth` only so many jobs are looked at after the first that does not fit, which is quicker for a long queue;
    `waits` then lacks the rest.
    """
    return _Deciding(active, capacity, limits, now).run(waiting, reserved, depth)


class _Deciding:
    def __init__(self, active: Iterable[Holding], capacity: Capacity, limits: QueueLimits, now: float) -> None:
        self.machine = Machine(capacity)
        self.limits, self.now = limits, now
        self.decision = Decision()
        self.share: dict[str, list[int]] = {}
        self.count: dict[str, int] = {}
        self.profiles: dict[tuple[str, str], int] = dict(limits.in_use)
        self.first: Waiting | None = None
        self.kept: Vector | None = None
        for holding in active:
            self._hold(holding.owner, holding.profile)
            r = holding.resources
            # A kind of GPU that vanished leaves the rest of what the job holds.
            vector = self.machine.vector(r) or self.machine.vector(r.model_copy(update={"gpus": 0})) or ()
            self.machine.take(vector)
            self._add(holding.owner, vector)

    def run(self, waiting: Iterable[Waiting], reserved: str | None, depth: int | None) -> Decision:
        later: list[Waiting] = []
        owners: dict[str, list[Waiting]] = {}
        first: Waiting | None = None
        for job in waiting:
            if self.now < job.not_before <= self.now + self.limits.longest_wait:
                later.append(job)
            elif job.id == reserved:
                first = job
            else:
                owners.setdefault(job.owner, []).append(job)
        position = 0
        if first is not None:
            vector = self.machine.vector(first.resources)
            if vector is not None:
                self._add(first.owner, vector)
            position = self._settle(first, position + 1, favoured=True)
        for job in self._in_order(owners):
            if depth is not None and self.first is not None:
                depth -= 1
                if depth < 0:
                    break
            position = self._settle(job, position + 1)
        for job in sorted(later, key=lambda j: (j.not_before, j.id)):
            position += 1
            self.decision.by(job.not_before)
            self._wait(job, position, "waiting.retry", seconds=max(1, round(job.not_before - self.now)))
        return self.decision

    def _in_order(self, owners: dict[str, list[Waiting]]) -> Iterable[Waiting]:
        for jobs in owners.values():
            # Reversed, as the next is taken from the end.
            jobs.sort(key=lambda j: (-j.priority, j.submitted_at, j.id), reverse=True)
        heap = [(self._dominant(o), j[-1].submitted_at, j[-1].id, o) for o, j in owners.items()]
        heapq.heapify(heap)
        while heap:
            owner = heap[0][3]
            jobs = owners[owner]
            job = jobs.pop()
            yield job
            vector = self.machine.vector(job.resources)
            if vector is not None:
                self._add(owner, vector)
            if jobs:
                following = jobs[-1]
                heapq.heapreplace(heap, (self._dominant(owner), following.submitted_at, following.id, owner))
            else:
                heapq.heappop(heap)

    def _settle(self, job: Waiting, position: int, favoured: bool = False) -> int:
        """Starts the job or says why it waits; gives the last place that is taken."""
        reason = self._limited(job)
        vector = self.machine.vector(job.resources)
        if reason is not None:
            self._wait(job, position, reason[0], **reason[1])
        elif vector is None or self.machine.missing(vector, self.machine.total):
            self._wait(job, position, "waiting.too_large", profile=job.profile)
        elif missing := self.machine.missing(vector, self.machine.without_jobs):
            shown = self.machine.show(job.resources, missing[-1], self.machine.without_jobs)
            self._wait(job, position, "waiting.machine_full_by_servers", **shown)
        elif missing := self.machine.missing(vector, self.machine.free):
            self._blocked(job, position, vector, missing, favoured)
        elif self.kept is not None and not self._beside(vector):
            self._wait(job, position, "waiting.reserved", ahead=position - 1)
        else:
            self.machine.take(vector)
            self._hold(job.owner, job.profile)
            self.decision.start.append(job.id)
            return position - 1
        return position

    def _limited(self, job: Waiting) -> tuple[str, dict[str, Any]] | None:
        limit = self.limits.jobs_active
        if limit is not None and self.count.get(job.owner, 0) >= limit:
            return "waiting.owner_limit", {"limit": limit}
        limit = self.limits.profiles.get(job.profile)
        if limit is not None and self.profiles.get((job.owner, job.profile), 0) >= limit:
            return "waiting.profile_limit", {"profile": job.profile, "limit": limit}
        return None

    def _blocked(self, job: Waiting, position: int, vector: Vector, missing: list[int], favoured: bool) -> None:
        if self.first is None:
            self.first = job
            due = max(job.submitted_at, job.not_before) + self.limits.reserve_after
            if favoured or due <= self.now:
                self.kept, self.decision.reserved = vector, job.id
            else:
                self.decision.by(due)
        elif position > 1:
            self.decision.waits[job.id] = (position, _behind(position - 1))
            return
        self._wait(
            job, position, "waiting.capacity", **self.machine.show(job.resources, missing[-1], self.machine.free)
        )

    def _beside(self, vector: Vector) -> bool:
        """Whether this may start without delaying the one for which room is kept.

        Of what that one is short of, nothing may be taken; of the rest, only what it leaves.
        """
        kept = dict(self.kept or ())
        return all(
            i not in kept or (kept[i] <= self.machine.free[i] and amount <= self.machine.free[i] - kept[i])
            for i, amount in vector
        )

    def _wait(self, job: Waiting, position: int, code: str, **params: Any) -> None:
        self.decision.waits[job.id] = (position, Reason(code=code, params=params))

    def _hold(self, owner: str, profile: str) -> None:
        self.count[owner] = self.count.get(owner, 0) + 1
        self.profiles[owner, profile] = self.profiles.get((owner, profile), 0) + 1

    def _add(self, owner: str, vector: Vector) -> None:
        share = self.share.setdefault(owner, [0] * len(self.machine.total))
        for i, amount in vector:
            share[i] += amount

    def _dominant(self, owner: str) -> float:
        share = self.share.get(owner)
        if share is None:
            return 0.0
        return max(s / t if t else float(s > 0) for s, t in zip(share, self.machine.total, strict=True))


@lru_cache(maxsize=20_000)
def _behind(ahead: int) -> Reason:
    return Reason(code="waiting.behind", params={"ahead": ahead})
