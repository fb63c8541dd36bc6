"""A backend without processes, for tests and demonstrations: attempts do what they are told, and faults can be made.

It keeps the contract of `kajiya_hub.testing.BackendContract`, so that what works with it works with a real one.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kajiya.machine.endings import Params
from kajiya.types import Amount, Capacity, Ending, GiB, GpuAmount, Reason, Usage
from kajiya_hub.backends.base import AttemptRef, AttemptSpec, Observation, State

PLAY_VARIABLE = "KAJIYA_PLAY"
"""What an attempt does, unless `plays` says otherwise: see `kajiya_hub.testing.PLAYS`."""

Key = tuple[str, int]


@dataclass
class FakeAttempt:
    """One attempt: what it does, and how it stands."""

    spec: AttemptSpec
    play: str
    phase: str = "starting"
    ending: Ending | None = None
    exit_code: int | None = None
    reason: Reason | None = None
    usage: Usage | None = None
    log: bytes = b""
    kill_at: float | None = None
    began: float = field(default_factory=time.monotonic)


class FakeBackend:
    """Attempts in memory. What they do comes from `plays(spec)`, else from their environment, else they wait.

    Faults: `unreachable` makes `check` say so; `start_error` is raised by the next starts; `start_delay` seconds pass
    within each step of a start; `lose` and `finish` end an attempt at once.
    """

    def __init__(
        self, capacity: Capacity | None = None, plays: Callable[[AttemptSpec], str | None] | None = None
    ) -> None:
        self.attempts: dict[Key, FakeAttempt] = {}
        self.total = capacity or Capacity(
            cpu=Amount(total=4, free=4), memory=Amount(total=16 * GiB, free=16 * GiB), at=datetime.now(UTC)
        )
        self.plays = plays or (lambda spec: None)
        self.unreachable = False
        self.start_error: Exception | None = None
        self.start_delay = 0.0
        self.begun: list[Key] = []
        """Every attempt that really began, in order: one that stands here twice was started twice."""
        self.stops: list[tuple[Key, float]] = []
        self._prevented: set[Key] = set()
        self._lost: set[Key] = set()
        self._changed = asyncio.Event()

    # --- the four verbs
    async def start(self, spec: AttemptSpec, state: State | None = None) -> AsyncIterator[State]:
        """Begins an attempt in two steps, as the local backend does."""
        key = (spec.job, spec.number)
        if not (state or {}).get("prepared"):
            await self._step()
            yield {"prepared": True}
        await self._step()
        if key not in self.attempts and key not in self._prevented | self._lost:
            play = self.plays(spec) or spec.env.get(PLAY_VARIABLE) or "wait"
            self.attempts[key] = FakeAttempt(spec, play)
            self.begun.append(key)
            self._changed.set()
        yield {"prepared": True, "spawned": True}

    async def check(self, attempts: Sequence[AttemptRef]) -> list[Observation]:
        """How each stands; each look moves the attempts on."""
        return [Observation("unreachable") if self.unreachable else self._look(ref) for ref in attempts]

    async def stop(self, attempt: AttemptRef, grace: float = 10) -> None:
        """Ends an attempt; one that is `deaf` ends after the grace."""
        key = (attempt.job, attempt.number)
        self.stops.append((key, grace))
        found = self.attempts.get(key)
        if found is None:
            if attempt.state:
                self._prevented.add(key)
        elif found.phase not in ("ended", "gone") and found.kill_at is None:
            found.kill_at = time.monotonic() + (grace if found.play == "deaf" else 0)
        self._changed.set()

    async def logs(self, attempt: AttemptRef, offset: int = 0) -> AsyncIterator[bytes]:
        """What it printed."""
        found = self.attempts.get((attempt.job, attempt.number))
        if found is not None and found.log[offset:]:
            yield found.log[offset:]

    # --- powers
    def capacity(self) -> Capacity:
        """The total less what the running attempts hold."""
        held = [a.spec.resources for a in self.attempts.values() if a.phase in ("starting", "running")]
        gpus: list[GpuAmount] = []
        for kind in self.total.gpus:
            used = sum(r.gpus for r in held if r.gpu_kind in (None, kind.kind))
            gpus.append(kind.model_copy(update={"free": max(0, kind.total - used)}))
        cpu, memory = self.total.cpu.total, self.total.memory.total
        return Capacity(
            cpu=Amount(total=cpu, free=max(0, cpu - sum(r.cpu for r in held))),
            memory=Amount(total=memory, free=max(0, memory - sum(r.memory for r in held))),
            gpus=gpus,
            at=datetime.now(UTC),
        )

    async def changes(self) -> AsyncIterator[None]:
        """Once after any change."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield None

    # --- what a test does to it
    def finish(
        self,
        job: str,
        number: int,
        ending: Ending = Ending.succeeded,
        exit_code: int | None = 0,
        reason: Reason | None = None,
    ) -> None:
        """Ends an attempt as told."""
        found = self.attempts[(job, number)]
        found.phase, found.ending, found.exit_code, found.reason = "ended", ending, exit_code, reason
        found.usage = Usage(wall_seconds=time.monotonic() - found.began)
        self._changed.set()

    def lose(self, job: str, number: int) -> None:
        """The machine of an attempt is lost: it is gone, and left no exit."""
        self._lost.add((job, number))
        if (job, number) in self.attempts:
            self.attempts[(job, number)].phase = "gone"
        self._changed.set()

    # --- inside
    async def _step(self) -> None:
        await asyncio.sleep(self.start_delay)
        if self.start_error is not None:
            raise self.start_error

    def _look(self, ref: AttemptRef) -> Observation:
        key = (ref.job, ref.number)
        found = self.attempts.get(key)
        if found is None:
            if key in self._prevented:
                return Observation("ended", Ending.stopped, usage=Usage())
            return Observation("starting" if ref.state.get("prepared") and key not in self._lost else "gone")
        if found.phase == "starting":
            found.phase = "running"
            return Observation("starting")
        if found.phase == "running":
            self._move(key, found)
        if found.phase == "gone":
            return Observation("gone")
        if found.phase == "ended":
            return Observation("ended", found.ending, found.exit_code, found.reason, found.usage)
        return Observation("running")

    def _move(self, key: Key, found: FakeAttempt) -> None:
        now, limit = time.monotonic(), found.spec.time_limit
        if found.kill_at is not None and now >= found.kill_at:
            self.finish(*key, Ending.stopped, None)
        elif found.kill_at is None and limit is not None and now >= found.began + limit:
            self.finish(*key, Ending.timed_out, None, _reason("time.limit", {"seconds": limit}))
        elif found.play == "succeed":
            self.finish(*key)
        elif found.play == "fail":
            self.finish(*key, Ending.notebook_error, 1)
        elif found.play == "hog":
            params = {"process": "python", "used": "2 GiB", "allowed": "1 GiB"}
            self.finish(*key, Ending.out_of_memory, None, _reason("memory.exceeded", params))
        elif found.play == "print" and not found.log:
            found.log = b"hello\n" * 1000


def _reason(code: str, params: Params) -> Reason:
    return Reason(code=code, params=params)
