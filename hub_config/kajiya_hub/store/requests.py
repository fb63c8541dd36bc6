"""The API's side of the store: submit, read, list, stop, delete."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Select, delete, func, insert, select, union_all

from kajiya.errors import IdempotencyConflict, JobEnded, JobNotEnded, LimitReached
from kajiya.types import ACTIVE, FINAL, Ending, Job, Page, Status
from kajiya_hub.store import cursor as cursors
from kajiya_hub.store.ids import time_prefix
from kajiya_hub.store.mapping import new_of, new_row, when
from kajiya_hub.store.paths import printable
from kajiya_hub.store.rows import Counts, NewJob, TokenHolder
from kajiya_hub.store.schema import attempts, jobs, tokens
from kajiya_hub.store.shared import Shared

Order = Literal["newest", "oldest"]
NOT_ENDED = [s for s in Status if s not in FINAL]
LIMIT_MAX = 500


class Requests(Shared):
    """What users ask for; see `Store`."""

    def submit(self, new: NewJob, queued_limit: int | None = None) -> tuple[Job, bool]:
        """Accepts a job durably; the flag says whether it is new. With a known key and the same `request_hash` the
        job made then is given back (discard the new input).

        `queued_limit` is how many jobs of the owner may be not yet ended. Raises `IdempotencyConflict`,
        `LimitReached`, `InvalidName` (text that no database takes), `DiskFull`.
        """
        row = new_row(new, self.clock())
        with self._write(request=True) as c:
            # The counter first: where several writers are possible it makes them take turns, so that the checks hold.
            seq = self._next_seq(c)
            if new.key is not None:
                known = self._keyed(c, new.owner, new.key, new.request_hash)
                if known is not None:
                    return known, False
            if queued_limit is not None:
                used = self._count(c, jobs.c.owner == new.owner, jobs.c.status.in_(NOT_ENDED))
                if used >= queued_limit:
                    raise LimitReached(used=used, limit=queued_limit)
            c.execute(insert(jobs).values(seq=seq, **row))
            return self._jobs(c, [self._row(c, new.id, None)])[0], True

    def submitted(self, owner: str, key: str, request_hash: str) -> Job | None:
        """The job that was submitted with this key before, for an early answer. Raises `IdempotencyConflict`."""
        with self._database.read() as c:
            return self._keyed(c, owner, key, request_hash)

    def _keyed(self, c: Connection, owner: str, key: str, request_hash: str) -> Job | None:
        query = select(jobs).where(jobs.c.owner == owner, jobs.c.idempotency_key == key)
        row = c.execute(query).mappings().first()
        if row is None:
            return None
        if row["request_hash"] != request_hash:
            raise IdempotencyConflict(key=printable(key))
        return self._jobs(c, [row], with_results=True)[0]

    def job(self, id: str, owner: str | None = None) -> Job:
        """One job with attempts and results; with an owner only that owner's. Raises `JobNotFound`."""
        with self._database.read() as c:
            return self._jobs(c, [self._row(c, id, owner)], with_results=True)[0]

    def input_of(self, id: str, owner: str | None = None) -> NewJob:
        """What was submitted, to run it again. Raises `JobNotFound`."""
        with self._database.read() as c:
            return new_of(self._row(c, id, owner))

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

        `text` is looked for in id, name and notebook, whatever the case. `limit` is clamped to 1-500. Raises
        `InvalidRequest` for a cursor that is none of ours, or of another list.
        """
        limit = min(max(1, limit), LIMIT_MAX)
        chosen = sorted(set(statuses))
        text = text.strip().lower()[:200].replace("\0", "")
        where: list[ColumnElement[bool]] = []
        if owner is not None:
            where.append(jobs.c.owner == owner)
        if profile is not None:
            where.append(jobs.c.profile == profile)
        if text:
            where.append(jobs.c.search.contains(text, autoescape=True))
        # Ids sort by the time of the submit, so the time needs no index of its own.
        if since is not None:
            where.append(jobs.c.id >= time_prefix(since.timestamp()))
        if until is not None:
            where.append(jobs.c.id < time_prefix(until.timestamp()))
        filters = {"o": owner, "s": chosen, "t": text, "p": profile, "a": since, "b": until, "d": order}
        start = [] if cursor is None else [_beyond(cursors.read(cursor, filters), order)]
        with self._database.read() as c:
            ids = list(c.scalars(_page([*where, *start], chosen, order, limit + 1)))
            more, ids = len(ids) > limit, ids[:limit]
            whole = cursor is None and not more
            wanted = [*where, jobs.c.status.in_(chosen)] if chosen else where
            total = len(ids) if whole else self._count(c, *wanted)
            found = c.execute(select(jobs).where(jobs.c.id.in_(ids))).mappings()
            items = sorted(self._jobs(c, found), key=lambda j: j.id, reverse=order == "newest")
        return Page(items=items, next=cursors.make(ids[-1], filters) if more else None, total=total)

    @staticmethod
    def _count(c: Connection, *where: ColumnElement[bool]) -> int:
        return int(c.scalar(select(func.count()).select_from(jobs).where(*where)) or 0)

    def request_stop(self, id: str, owner: str | None = None, by: str = "") -> Job:
        """Asks that a job ends; the loop acts on it. Asking again changes nothing. Raises `JobNotFound`, `JobEnded`."""
        with self._write(request=True) as c:
            row = self._row(c, id, owner)
            if Status(row["status"]) in FINAL:
                raise JobEnded(job=id, status=row["status"])
            if row["stop_requested_at"] is None:
                self._change(c, id, stop_requested_at=self.clock(), stop_by=by[:255])
            return self._jobs(c, [self._row(c, id, owner)], with_results=True)[0]

    def delete(self, id: str, owner: str | None = None) -> None:
        """Forgets an ended job; delete its files after. Raises `JobNotFound`, `JobNotEnded`."""
        with self._write() as c:
            row = self._row(c, id, owner)
            if Status(row["status"]) not in FINAL:
                raise JobNotEnded(job=id, status=row["status"])
            c.execute(delete(jobs).where(jobs.c.id == id))

    def changes(self, after_seq: int, owner: str | None = None, limit: int = 500) -> list[Job]:
        """Jobs whose last change came after `after_seq`, in that order; each once, as it is now."""
        query = select(jobs).where(jobs.c.seq > after_seq).order_by(jobs.c.seq).limit(min(max(1, limit), LIMIT_MAX))
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        with self._database.read() as c:
            return self._jobs(c, c.execute(query).mappings(), with_results=True)

    def counts(self) -> Counts:
        """Numbers for metrics."""
        with self._database.read() as c:
            by_status = c.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
            endings = c.execute(
                select(attempts.c.ending, func.count())
                .where(attempts.c.ending.is_not(None))
                .group_by(attempts.c.ending)
            )
            # The ids sort by time: the least is the oldest.
            oldest = c.scalar(
                select(jobs.c.submitted_at).where(jobs.c.status == Status.queued).order_by(jobs.c.id).limit(1)
            )
            return Counts(
                jobs={Status(s): n for s, n in by_status},
                endings={Ending(e): n for e, n in endings},
                oldest_queued_at=when(oldest),
            )

    def active_of(self, owner: str, profile: str | None = None) -> int:
        """How many jobs of an owner have an attempt under way, of one profile or all."""
        where = [jobs.c.owner == owner, jobs.c.status.in_(sorted(ACTIVE))]
        if profile is not None:
            where.append(jobs.c.profile == profile)
        with self._database.read() as c:
            return self._count(c, *where)

    def attempt_for_token(self, token_sha256: str) -> TokenHolder | None:
        """Whose token this is, by the hex sha256 of it; None if nobody's."""
        query = (
            select(tokens.c.job, tokens.c.attempt, tokens.c.valid, jobs.c.owner)
            .join(jobs, jobs.c.id == tokens.c.job)
            .where(tokens.c.sha256 == token_sha256)
        )
        with self._database.read() as c:
            row = c.execute(query).mappings().first()
        return None if row is None else TokenHolder(**row)


def _beyond(last: str, order: Order) -> ColumnElement[bool]:
    return jobs.c.id < last if order == "newest" else jobs.c.id > last


def _page(where: list[ColumnElement[bool]], statuses: list[Status], order: Order, limit: int) -> Select[Any]:
    """The ids of one page. One ordered look-up a status, so that each follows an index and stops early."""
    by = jobs.c.id.desc() if order == "newest" else jobs.c.id
    if not statuses:
        return select(jobs.c.id).where(*where).order_by(by).limit(limit)
    each = [
        select(select(jobs.c.id).where(*where, jobs.c.status == s).order_by(by).limit(limit).subquery().c.id)
        for s in statuses
    ]
    found = union_all(*each).subquery().c.id
    return select(found).order_by(found.desc() if order == "newest" else found).limit(limit)
