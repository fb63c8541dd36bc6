"""What both sides of the store stand on: transactions, change numbers, who is told of a commit."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, RowMapping, select, update

from kajiya.errors import JobNotFound
from kajiya.types import Attempt, Job, Reason, Result
from kajiya_hub.store.database import Database
from kajiya_hub.store.ids import is_id
from kajiya_hub.store.mapping import attempt_of, job_of
from kajiya_hub.store.paths import printable
from kajiya_hub.store.schema import attempts, counters, jobs, results

log = logging.getLogger(__name__)
BATCH = 500  # ids in one IN (…), well below every database's limit of parameters


class Shared:
    """The base of `Store`; see there."""

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._database = Database(url)
        self._hooks_mutex = threading.Lock()
        self._hooks: dict[object, tuple[Callable[[], None], bool]] = {}
        self._waiting: dict[str, tuple[int, Reason]] = {}

    def close(self) -> None:
        """Gives back all connections."""
        self._database.close()

    def ping(self) -> None:
        """Reads one row; for the health endpoint. Raises what SQLAlchemy raises."""
        self.latest_seq()

    def latest_seq(self) -> int:
        """The number of the last change."""
        with self._database.read() as c:
            return int(c.scalar(select(counters.c.value).where(counters.c.name == "seq")) or 0)

    def subscribe(self, callback: Callable[[], None], requests_only: bool = False) -> Callable[[], None]:
        """Calls back after every commit (with `requests_only`: after submits and stop requests only), from the thread
        that committed, so hand over by `loop.call_soon_threadsafe`. Gives the function that ends it."""
        key = object()
        with self._hooks_mutex:
            self._hooks[key] = (callback, requests_only)

        def end() -> None:
            with self._hooks_mutex:
                self._hooks.pop(key, None)

        return end

    @contextmanager
    def _write(self, request: bool = False) -> Iterator[Connection]:
        with self._database.write() as connection:
            yield connection
        with self._hooks_mutex:
            hooks = list(self._hooks.values())
        for callback, requests_only in hooks:
            if request or not requests_only:
                try:
                    callback()
                except Exception:
                    # It is committed: whoever can't hear of it must not make it look refused.
                    log.exception("a listener of the store failed")

    @staticmethod
    def _next_seq(c: Connection, count: int = 1) -> int:
        """Takes change numbers, and gives the first; holds back other writers till the commit."""
        statement = update(counters).where(counters.c.name == "seq").values(value=counters.c.value + count)
        return int(c.scalar(statement.returning(counters.c.value)) or 0) - count + 1

    def _change(self, c: Connection, id: str, **values: Any) -> None:
        """Changes a job's row and gives it a new change number."""
        c.execute(update(jobs).where(jobs.c.id == id).values(seq=self._next_seq(c), **values))

    @staticmethod
    def _row(c: Connection, id: str, owner: str | None) -> RowMapping:
        """A job's row. Raises `JobNotFound`, also for another's, so that nothing leaks."""
        row = None
        if is_id(id):
            query = select(jobs).where(jobs.c.id == id)
            row = c.execute(query if owner is None else query.where(jobs.c.owner == owner)).mappings().first()
        if row is None:
            raise JobNotFound(job=printable(id))
        return row

    def _jobs(self, c: Connection, rows: Iterable[RowMapping], with_results: bool = False) -> list[Job]:
        rows = list(rows)
        tried: dict[str, list[Attempt]] = {}
        kept: dict[str, list[Result]] = {}
        for ids in batches([r["id"] for r in rows]):
            query = select(attempts).where(attempts.c.job.in_(ids)).order_by(attempts.c.job, attempts.c.number)
            for row in c.execute(query).mappings():
                tried.setdefault(row["job"], []).append(attempt_of(row))
            if with_results:
                found = select(results).where(results.c.job.in_(ids)).order_by(results.c.attempt, results.c.path)
                for row in c.execute(found).mappings():
                    result = Result(**{k: row[k] for k in ("path", "size", "sha256", "attempt")})
                    kept.setdefault(row["job"], []).append(result)
        waiting: Mapping[str, tuple[int, Reason]] = self._waiting
        return [job_of(r, tried.get(r["id"], ()), kept.get(r["id"], ()), waiting) for r in rows]


def batches(ids: list[str]) -> Iterator[list[str]]:
    """The ids in groups that fit into one statement."""
    for i in range(0, len(ids), BATCH):
        yield ids[i : i + BATCH]
