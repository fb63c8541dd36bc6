"""What the loop does with one attempt: start it, and bring its end home. Each runs beside the loop, as its own task."""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from kajiya.errors import KajiyaError
from kajiya.types import Ending, Reason
from kajiya_hub.backends.base import AttemptSpec, Backend, Observation
from kajiya_hub.endings import Retrying, conclude
from kajiya_hub.store.files import JobFiles
from kajiya_hub.store.results import Collected
from kajiya_hub.store.rows import AttemptEnd, Final, Requeue
from kajiya_hub.store.store import Store
from kajiya_hub.tracked import LoopSettings, Tracked

log = logging.getLogger(__name__)
WHOLE_LOG = 2**40
P = ParamSpec("P")
R = TypeVar("R")


class _NotKept(Exception):
    """The store could not keep what must not be forgotten."""


class AttemptWork:
    """Starts and ends attempts for the loop; `wake` says that the loop has something to look at."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        files: JobFiles,
        settings: LoopSettings,
        retrying: Retrying,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self.store, self.backend, self.files = store, backend, files
        self.settings, self.retrying, self.clock, self._wake = settings, retrying, clock, wake
        self._no_capacity: dict[str, int] = {}
        self._starts = asyncio.Semaphore(settings.starts_at_once)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="reconcile")
        # What may copy or remove gigabytes must not hold up what writes a row.
        self._slow = ThreadPoolExecutor(4, thread_name_prefix="reconcile-files")

    def close(self) -> None:
        """Waits for what is being written."""
        self._threads.shutdown(wait=True)
        self._slow.shutdown(wait=False, cancel_futures=True)

    async def do(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs what blocks in a thread of the loop's own."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))

    async def _do_slowly(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._slow, lambda: work(*args, **kwargs))

    async def guard(self, tracked: Tracked, work: Awaitable[None]) -> None:
        """Trouble with one job stays with that job."""
        try:
            await work
        except Exception as e:
            log.exception("job %s, attempt %s: trouble", *tracked.key)
            tracked.trouble(self.clock())
            await self.tell_trouble(tracked, e)

    async def tell_trouble(self, tracked: Tracked, error: Exception) -> None:
        problem = error.code if isinstance(error, KajiyaError) else type(error).__name__
        try:
            await self.do(
                self.store.set_reason, tracked.job.id, Reason(code="loop.trouble", params={"problem": problem})
            )
        except Exception:
            log.warning("job %s: its trouble could not be noted", tracked.job.id)

    async def start(self, tracked: Tracked) -> None:
        """Starts the attempt, or goes on with a start that was cut short; what is known is saved at every step."""
        job = tracked.job
        tracked.starting = True
        try:
            async with self._starts:
                if tracked.token is None:
                    # The one that was given is known by its hash only; both are good until the attempt ends.
                    token = secrets.token_urlsafe(32)
                    await self._kept(self.store.add_token, job.id, job.attempt, hashed(token))
                    tracked.token = token
                spec = AttemptSpec(
                    job=job.id,
                    number=job.attempt,
                    owner=job.owner,
                    profile=job.profile,
                    resources=job.resources,
                    environment=job.environment,
                    directory=self.files.attempt(job.id, job.attempt),
                    token=tracked.token,
                    env=self.settings.environment | job.env,
                    time_limit=job.time_limit,
                    parameters=job.parameters,
                    results=job.results_wanted,
                )
                async with asyncio.timeout(self.settings.start_timeout):
                    async for state in self.backend.start(spec, tracked.state or None):
                        tracked.state = state
                        await self._kept(self.store.save_state, job.id, job.attempt, state)
            tracked.well()
            tracked.started = True
            self._wake()
        except Exception as e:
            # By the contract nothing of it runs then; but a time that ran out says nothing about that.
            if isinstance(e, (KajiyaError, OSError)) and not isinstance(e, TimeoutError):
                await self.guard(tracked, self._not_started(tracked, e))
                return
            log.exception("job %s, attempt %s: its start failed", *tracked.key)
            tracked.trouble(self.clock())
            # Trouble of the store's passes or stops everything; one of the backend's may be for ever.
            if tracked.troubles >= self.settings.start_tries and not isinstance(e, _NotKept):
                await self.guard(tracked, self._give_up(tracked, e))
            else:
                await self.tell_trouble(tracked, e)
        finally:
            tracked.starting = False

    async def _kept(self, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Writes to the store, so that its trouble is not taken for the backend's word that nothing runs."""
        try:
            await self.do(work, *args, **kwargs)
        except Exception as e:
            raise _NotKept(str(e)) from e

    async def _give_up(self, tracked: Tracked, error: Exception) -> None:
        await self.backend.stop(tracked.ref(self.files), self.settings.grace)
        await self._not_started(tracked, error)

    async def _not_started(self, tracked: Tracked, error: Exception) -> None:
        reason = Reason(code="ended.could_not_start", params={"problem": str(error)[:500] or type(error).__name__})
        if isinstance(error, KajiyaError):
            reason = Reason(code=error.code, params=error.params)
        await self._finish(tracked, Observation("ended", Ending.could_not_start, reason=reason))

    # --- ending
    async def end(self, tracked: Tracked, seen: Observation) -> None:
        try:
            await self._finish(tracked, seen)
        except Exception as e:
            log.exception("job %s, attempt %s: its end could not be handled", *tracked.key)
            tracked.trouble(self.clock())
            await self.tell_trouble(tracked, e)

    async def _finish(self, tracked: Tracked, seen: Observation) -> None:
        job = tracked.job
        tries = self._no_capacity.get(job.id, 0)
        outcome = conclude(job, seen, self.clock(), self.retrying, tries)
        free = isinstance(outcome.then, Requeue) and outcome.then.free
        collected, reason = Collected(), outcome.reason
        if not free:
            collected = await self._collect(tracked)
            if reason is None and collected.left_out_count:
                params = {"count": collected.left_out_count, "files": collected.left_out}
                reason = Reason(code="ended.left_out", params=params)
        progress = await self._do_slowly(tracked.tail.read, WHOLE_LOG)
        end = AttemptEnd(outcome.ending, seen.exit_code, reason, seen.usage, progress, collected.results)
        await self.do(self.store.end_attempt, job.id, job.attempt, end, outcome.then)
        tracked.ended = True
        if free:
            self._no_capacity[job.id] = tries + 1
            await self._do_slowly(self.files.drop_attempt, job.id, job.attempt)
        else:
            self._no_capacity.pop(job.id, None)
            await self._do_slowly(self.files.drop_work, job.id, job.attempt)
        done = outcome.then.status if isinstance(outcome.then, Final) else "queued again"
        log.info("job %s, attempt %s: %s, %s", job.id, job.attempt, outcome.ending, done)
        self._wake()

    async def _collect(self, tracked: Tracked) -> Collected:
        job = tracked.job
        try:
            return await self._do_slowly(self.files.collect_results, job.id, job.attempt, job.results_wanted)
        except Exception:
            # A full disk may pass: the files still lie where the attempt left them. But not for ever, since the job
            # holds its place until it has ended.
            if tracked.troubles < self.settings.end_tries:
                raise
            log.exception("job %s, attempt %s: its results are lost", *tracked.key)
            return Collected(left_out=["*"], left_out_count=1)


def hashed(token: str) -> str:
    """What is stored of an attempt's token."""
    return hashlib.sha256(token.encode()).hexdigest()
