"""Who follows what: one reader of the store's changes and one look at growing files, for all streams together."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from kajiya.types import Job
from kajiya_hub.api.tail import size_of
from kajiya_hub.store.files import JobFiles
from kajiya_hub.store.store import Store

log = logging.getLogger("kajiya_hub.api.streams")
LOOK_SECONDS = 0.15
GATHER_SECONDS = 0.03
RETRY_SECONDS = 1.0


class Follower:
    """One stream's share: it is woken when something that it follows changed, and holds no more than one job."""

    def __init__(self, owner: str, job: str | None = None) -> None:
        self.owner = owner
        self.job_id = job
        self.job: Job | None = None  # the newest state, for a stream of one job
        self.file: tuple[str, int, str] | None = None  # job, attempt, name
        self.size = -1  # of the file, when it was last read
        self.woken = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Waits until woken, at most so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self.woken.wait()
        except TimeoutError:
            pass
        self.woken.clear()

    def watch(self, job: str, attempt: int, name: str, size: int) -> None:
        """Wakes when this file of an attempt is no more of this size."""
        self.file, self.size = (job, attempt, name), size

    def unwatch(self) -> None:
        """Watches no file."""
        self.file = None


class Streams:
    """All followers. `start` within a loop, `close` ends every stream at once."""

    def __init__(self, store: Store, files: JobFiles) -> None:
        self._store = store
        self._files = files
        self._followers: set[Follower] = set()
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._end: Callable[[], None] = lambda: None
        self.closing = False

    def start(self) -> None:
        """Begins to look."""
        loop = asyncio.get_running_loop()

        def changed() -> None:
            # From whichever thread committed, perhaps while the loop is already closing.
            try:
                loop.call_soon_threadsafe(self._changed.set)
            except RuntimeError:
                pass

        self._end = self._store.subscribe(changed)
        self._tasks = [asyncio.create_task(self._read_changes()), asyncio.create_task(self._look_at_files())]

    def close(self) -> None:
        """Ends every stream at once; safe to call twice."""
        self.closing = True
        self._end()
        for task in self._tasks:
            task.cancel()
        for follower in self._followers:
            follower.woken.set()

    def add(self, follower: Follower) -> None:
        """Takes a follower in, from now on."""
        self._followers.add(follower)

    def remove(self, follower: Follower) -> None:
        """Forgets a follower."""
        self._followers.discard(follower)

    async def _read_changes(self) -> None:
        seq = await self._sure(self._store.latest_seq)
        while True:
            await self._changed.wait()
            # Many commits in a row are read together.
            await asyncio.sleep(GATHER_SECONDS)
            self._changed.clear()
            if not self._followers:
                latest = await self._sure(self._store.latest_seq)
                # Asked again: one who came meanwhile may have looked before the last of these changes.
                if not self._followers:
                    seq = latest
                    continue
            while jobs := await self._sure(lambda after=seq: self._store.changes(after)):
                seq = jobs[-1].seq
                for job in jobs:
                    self._tell(job)

    def _tell(self, job: Job) -> None:
        for follower in self._followers:
            if follower.job_id == job.id:
                follower.job = job
                follower.woken.set()
            elif follower.job_id is None and follower.owner == job.owner:
                follower.woken.set()

    async def _look_at_files(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            watched = {f.file for f in self._followers if f.file is not None}
            if not watched:
                continue
            sizes = await asyncio.to_thread(self._sizes, watched)
            for follower in self._followers:
                if follower.file is not None and sizes.get(follower.file, follower.size) != follower.size:
                    follower.woken.set()

    def _sizes(self, watched: set[tuple[str, int, str]]) -> dict[tuple[str, int, str], int]:
        return {w: size_of(self._files, *w) for w in watched}

    async def _sure(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                return await asyncio.to_thread(call)
            except Exception:
                # A full disk or a busy store passes; the streams must outlive it.
                log.exception("the changes can't be read")
                await asyncio.sleep(RETRY_SECONDS)
