"""The one loop. It alone moves jobs from status to status, and it alone calls backends.

Everything it must not forget is in the store before it goes on, so that it may be killed at any point: a new one reads
the store, looks at each attempt, and goes on from there.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from kajiya.profiles import Limits
from kajiya.types import ACTIVE, Capacity, Reason, Status
from kajiya_hub.attempt_work import AttemptWork, hashed
from kajiya_hub.backends.base import Backend, Observation, Watches
from kajiya_hub.endings import Retrying, stopped_by
from kajiya_hub.measures import Measures
from kajiya_hub.queue import Decision, Holding, QueueLimits, decide
from kajiya_hub.store.files import JobFiles
from kajiya_hub.store.rows import QueuedJob
from kajiya_hub.store.store import Store
from kajiya_hub.tracked import LoopSettings, Tracked

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Site:
    """What the loop asks of its surroundings.

    `capacity` gives what would be free if no job ran (all there is, less what servers hold); `limits` the limits of
    each owner, and `profile_limits` those of each profile; `in_use` how often servers use a profile, by owner and
    profile. All of them are called from a thread.
    """

    capacity: Callable[[], Capacity]
    limits: Callable[[], Limits] = lambda: Limits.model_validate({})
    profile_limits: Callable[[], Mapping[str, int]] = dict
    in_use: Callable[[], Mapping[tuple[str, str], int]] = dict


class Reconciler:
    """Brings about what the store asks for. `clock` gives UTC seconds."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        files: JobFiles,
        site: Site,
        settings: LoopSettings | None = None,
        retrying: Retrying | None = None,
        clock: Callable[[], float] = time.time,
        measures: Measures | None = None,
    ) -> None:
        self.measures = measures or Measures()
        self.store, self.backend, self.files, self.site = store, backend, files, site
        self.settings, self.retrying, self.clock = settings or LoopSettings(), retrying or Retrying(), clock
        self.active: dict[str, Tracked] = {}
        self.waiting: dict[str, QueuedJob] = {}
        self._seq = -1
        self._queue = _QueueState()
        self._woken = asyncio.Event()
        self._work = AttemptWork(store, backend, files, self.settings, self.retrying, clock, self._woken.set)
        self._do = self._work.do
        self._loop: asyncio.AbstractEventLoop | None = None
        self._round_ended = time.monotonic()
        self._tidied_at = clock()
        self._tidying: asyncio.Task[None] | None = None

    # --- from outside
    def wake(self) -> None:
        """Says that there is something to do; from any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._woken.set)

    def age(self) -> float:
        """Seconds since the loop last finished a round."""
        return time.monotonic() - self._round_ended

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set. Attempts go on running; a later loop finds them."""
        self._loop = asyncio.get_running_loop()
        unsubscribe = self.store.subscribe(self.wake, requests_only=True)
        helpers = [asyncio.create_task(_wake_when_set(stop, self._woken))]
        if isinstance(self.backend, Watches):
            helpers.append(asyncio.create_task(self._watch(self.backend)))
        try:
            while not stop.is_set():
                self._woken.clear()
                due = time.monotonic()
                try:
                    await self.tick()
                    self.measures.round(time.monotonic() - due)
                    pause = self.settings.active_interval if self.active else self.settings.idle_interval
                except Exception:
                    log.exception("a round of the loop failed")
                    self.measures.failed()
                    pause = 1.0
                try:
                    await asyncio.wait_for(self._woken.wait(), self._pause(pause))
                except TimeoutError:
                    pass
        finally:
            unsubscribe()
            await self.close(*helpers)

    def _pause(self, pause: float) -> float:
        at = self._queue.again_at
        return pause if at is None else max(0.01, min(pause, at - self.clock()))

    async def close(self, *helpers: asyncio.Task[Any]) -> None:
        """Ends the tasks of this loop, not the attempts."""
        tasks = [*helpers, *(t.task for t in self.active.values() if t.task is not None)]
        if self._tidying is not None:
            tasks.append(self._tidying)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._work.close()

    async def _watch(self, backend: Watches) -> None:
        while True:
            try:
                async for _ in backend.changes():
                    self._woken.set()
            except Exception:
                log.exception("watching the backend failed")
            await asyncio.sleep(1)

    # --- one round
    async def tick(self) -> None:
        """One round: learn what changed, look at every attempt, start what may start."""
        self._loop = self._loop or asyncio.get_running_loop()
        await self._learn()
        await self._end_stopped_waiting()
        await self._look()
        await self._save_progress()
        await self._start_waiting()
        self._tidy_sometimes()
        self._round_ended = time.monotonic()

    async def _learn(self) -> None:
        if self._seq < 0:
            # The number first: what changes meanwhile is then seen again, which does no harm.
            seq = await self._do(self.store.latest_seq)
            self.waiting = {j.id: j for j in await self._do(self.store.queued)}
            for job in await self._do(self.store.active):
                self.active[job.id] = Tracked.of(job, self.files)
            self._seq, self._queue.changed = seq, True
            return
        changes = await self._do(self.store.changed, self._seq)
        if not changes:
            return
        seen = [c.id for c in changes if c.status in ACTIVE]
        fresh = {j.id: j for j in await self._do(self.store.active, seen)} if seen else {}
        for change in changes:
            old = self.waiting.pop(change.id, None)
            if change.queued is not None:
                self.waiting[change.id] = change.queued
            self._queue.changed |= old != change.queued
            job = fresh.get(change.id)
            tracked = self.active.get(change.id)
            if job is None:
                if change.status not in ACTIVE and tracked is not None and not tracked.busy:
                    del self.active[change.id]
                    self._queue.changed = True
            elif tracked is None or tracked.job.attempt != job.attempt:
                self.active[job.id] = Tracked.of(job, self.files)
            else:
                tracked.job = job
        self._seq = changes[-1].seq

    async def _end_stopped_waiting(self) -> None:
        for job in [j for j in self.waiting.values() if j.stop_requested]:
            reason = stopped_by(job.stop_by or job.owner)
            await self._do(self.store.end_queued, job.id, Status.stopped, reason)
            del self.waiting[job.id]
            self._queue.changed = True

    # --- attempts under way
    async def _look(self) -> None:
        now = self.clock()
        for id, tracked in list(self.active.items()):
            if tracked.ended and not tracked.busy:
                del self.active[id]
                self._queue.changed = True
        todo = [t for t in self.active.values() if not t.ended and t.not_before <= now]
        for tracked in todo:
            # A start under way is left alone, unless its job is to be stopped.
            if tracked.busy and tracked.starting and tracked.to_stop and tracked.task is not None:
                tracked.task.cancel()
                await asyncio.wait([tracked.task], timeout=5)
        todo = [t for t in todo if not t.busy and not t.ended]
        if not todo:
            return
        try:
            async with asyncio.timeout(self.settings.ask_timeout):
                seen = await self.backend.check([t.ref(self.files) for t in todo])
        except Exception:
            log.exception("looking at the attempts failed")
            seen = [Observation("unreachable")] * len(todo)
        for tracked, observation in zip(todo, seen, strict=True):
            await self._work.guard(tracked, self._follow(tracked, observation))

    async def _follow(self, tracked: Tracked, seen: Observation) -> None:
        job = tracked.job
        if seen.phase == "unreachable":
            if not tracked.unreachable:
                tracked.unreachable = True
                await self._do(self.store.set_reason, job.id, Reason(code="loop.unreachable"))
            return
        if tracked.unreachable or (tracked.troubles and seen.phase == "running"):
            tracked.unreachable = False
            tracked.well()
            await self._do(self.store.set_reason, job.id, None)
        # Gone before it left anything: a crash came between its begin here and the first step of its start.
        unborn = seen.phase == "gone" and not tracked.state and job.status is Status.starting and not tracked.started
        if seen.phase in ("ended", "gone") and not (unborn and not tracked.to_stop):
            tracked.task = asyncio.create_task(self._work.end(tracked, seen))
        elif tracked.to_stop:
            await self._stop(tracked)
        elif seen.phase == "starting" or unborn:
            if not tracked.started:
                tracked.task = asyncio.create_task(self._work.start(tracked))
        elif job.status is Status.starting:
            await self._do(self.store.set_status, job.id, job.attempt, Status.running)

    async def _stop(self, tracked: Tracked) -> None:
        job, now = tracked.job, self.clock()
        if job.status is not Status.stopping:
            await self._do(self.store.set_status, job.id, job.attempt, Status.stopping)
        if tracked.stop_sent_at is None or now - tracked.stop_sent_at >= self.settings.stop_again_after:
            async with asyncio.timeout(self.settings.ask_timeout):
                await self.backend.stop(tracked.ref(self.files), self.settings.grace)
            tracked.stop_sent_at = now
            self._woken.set()

    async def _save_progress(self) -> None:
        running = [
            t for t in self.active.values() if not t.busy and not t.ended and t.job.status is not Status.starting
        ]
        if not running:
            return
        await self._do(_read_all, running)
        changed = {t.key: t.tail.progress for t in running if t.tail.progress != t.shown}
        if changed:
            await self._do(self.store.set_progress, changed)
            for tracked in running:
                tracked.shown = tracked.tail.progress

    # --- starting
    async def _start_waiting(self) -> None:
        decision = await self._decide()
        if decision is None:
            return
        for id in decision.start:
            queued = self.waiting.get(id)
            if queued is None:
                continue
            try:
                await self._begin(queued)
            except Exception:
                # Most likely a full disk: it keeps its place, and the next round tries again.
                log.exception("job %s could not begin", id)
                self._queue.changed = True
                break

    async def _begin(self, queued: QueuedJob) -> None:
        token = secrets.token_urlsafe(32)
        await self._do(self.files.prepare_attempt, queued.id, queued.attempt + 1)
        job = await self._do(self.store.begin_attempt, queued.id, hashed(token))
        self.waiting.pop(queued.id, None)
        if job is None:
            return
        self.measures.waited(self.clock() - max(queued.submitted_at, queued.not_before))
        tracked = self.active[job.id] = Tracked.of(job, self.files, token)
        tracked.task = asyncio.create_task(self._work.start(tracked))

    async def _decide(self) -> Decision | None:
        """What the queue says, if anything that matters to it changed."""
        if not self.waiting:
            if self._queue.changed:
                await self._do(self.store.set_waiting, {})
            self._queue = _QueueState(changed=False)
            return None
        limits = await self._do(self._limits)
        capacity = await self._do(self.site.capacity)
        now, queue, settings = self.clock(), self._queue, self.settings
        if not queue.is_due((limits, capacity.model_copy(update={"at": datetime.min})), now):
            return None
        long = len(self.waiting) > settings.long_queue
        full = not long or now - queue.full_at >= settings.full_view_every
        holding = [Holding(t.job.owner, t.job.profile, t.job.resources) for t in self.active.values() if not t.ended]
        arguments = (list(self.waiting.values()), holding, capacity, limits, now, queue.reserved)
        decision = await self._do(decide, *arguments, None if full else settings.long_queue)
        queue.changed, queue.reserved, queue.again_at = False, decision.reserved, decision.again_at
        if full:
            queue.full_at = now
            await self._do(self.store.set_waiting, decision.waits)
        else:
            # The rest of the view follows soon.
            queue.again_at = min(queue.full_at + settings.full_view_every, decision.again_at or float("inf"))
        return decision

    def _limits(self) -> QueueLimits:
        return QueueLimits(
            jobs_active=self.site.limits().jobs_active,
            profiles=dict(self.site.profile_limits()),
            in_use=dict(self.site.in_use()),
            reserve_after=self.settings.reserve_after,
        )

    # --- retention
    def _tidy_sometimes(self) -> None:
        """Beside the rounds, as removing many files takes long."""
        due = self.clock() - self._tidied_at >= self.settings.retention_every
        if due and (self._tidying is None or self._tidying.done()):
            self._tidied_at = self.clock()
            self._tidying = asyncio.create_task(self._tidy())

    async def _tidy(self) -> None:
        days = self.settings.retention_days
        before = None if days is None else datetime.now(UTC) - timedelta(days=days)
        try:
            for _ in range(10):
                ids = await asyncio.to_thread(self.store.prune, before, self.settings.retention_per_owner, 100)
                for id in ids:
                    await asyncio.to_thread(self.files.delete, id)
                if not ids:
                    break
            await asyncio.to_thread(self.files.sweep, self.store.known)
        except Exception:
            log.exception("tidying up failed")


@dataclass
class _QueueState:
    """What the last decision stood on, so that one is made only where it can differ."""

    changed: bool = True
    reserved: str | None = None
    again_at: float | None = None
    full_at: float = 0.0
    key: Any = field(default=None, repr=False)

    def is_due(self, key: Any, now: float) -> bool:
        due = self.changed or key != self.key or (self.again_at is not None and self.again_at <= now)
        self.key = key
        return due


def _read_all(running: list[Tracked]) -> None:
    for tracked in running:
        tracked.tail.read()


async def _wake_when_set(stop: asyncio.Event, woken: asyncio.Event) -> None:
    await stop.wait()
    woken.set()
