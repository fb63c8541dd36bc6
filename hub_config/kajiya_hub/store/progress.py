"""The loop's side of the store: attempts from their begin to their end, the queue's view, retention."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, insert, or_, select, update

from kajiya.types import ACTIVE, FINAL, Ending, Progress, Reason, Status
from kajiya_hub.store.ids import is_id, time_prefix
from kajiya_hub.store.mapping import QUEUED_COLUMNS, active_of, queued_of, reason_row, status_of
from kajiya_hub.store.rows import ActiveJob, AttemptEnd, Change, Final, QueuedJob, Requeue, State
from kajiya_hub.store.schema import attempts, jobs, results, tokens
from kajiya_hub.store.shared import Shared, batches

FRONT = 20
WAITING_ROWS = 200
UNDER_WAY = sorted(ACTIVE)


class Progressing(Shared):
    """What the loop does; see `Store`."""

    _shown: dict[str, tuple[int, str]]

    def queued(self) -> list[QueuedJob]:
        """All waiting jobs."""
        query = select(*[jobs.c[n] for n in QUEUED_COLUMNS]).where(jobs.c.status == Status.queued)
        with self._database.read() as c:
            return [queued_of(r) for r in c.execute(query).mappings()]

    def changed(self, after_seq: int) -> list[Change]:
        """What changed since, as the loop needs it, in the order of the changes."""
        query = select(*[jobs.c[n] for n in QUEUED_COLUMNS]).where(jobs.c.seq > after_seq).order_by(jobs.c.seq)
        with self._database.read() as c:
            return [
                Change(r["id"], r["seq"], Status(r["status"]), queued_of(r) if r["status"] == Status.queued else None)
                for r in c.execute(query).mappings()
            ]

    def active(self, ids: Sequence[str] | None = None) -> list[ActiveJob]:
        """All jobs with an attempt under way, or those of them among `ids`."""
        with self._database.read() as c:
            if ids is None:
                return list(self._active(c, jobs.c.status.in_(UNDER_WAY)))
            found: list[ActiveJob] = []
            for some in batches(list(ids)):
                found += self._active(c, jobs.c.id.in_(some), jobs.c.status.in_(UNDER_WAY))
            return found

    @staticmethod
    def _active(c: Connection, *where: ColumnElement[bool]) -> Iterable[ActiveJob]:
        ended = (
            select(attempts.c.job, attempts.c.ending, func.count())
            .join(jobs, jobs.c.id == attempts.c.job)
            .where(*where, attempts.c.ending.is_not(None))
            .group_by(attempts.c.job, attempts.c.ending)
        )
        used: dict[str, dict[Ending, int]] = {}
        for job, ending, count in c.execute(ended):
            used.setdefault(job, {})[Ending(ending)] = count
        query = (
            select(jobs, attempts.c.state, attempts.c.began_at, attempts.c.started_at.label("attempt_started_at"))
            .join(attempts, (attempts.c.job == jobs.c.id) & (attempts.c.number == jobs.c.attempt))
            .where(*where)
        )
        for row in c.execute(query).mappings():
            yield active_of(row, used.get(row["id"], {}))

    def begin_attempt(self, id: str, token_sha256: str) -> ActiveJob | None:
        """Makes the next attempt and the job `starting`; None if it waits no more or is to be stopped."""
        with self._write() as c:
            number = c.scalar(
                update(jobs)
                .where(jobs.c.id == id, jobs.c.status == Status.queued, jobs.c.stop_requested_at.is_(None))
                .values(
                    seq=self._next_seq(c),
                    status=Status.starting,
                    attempt=jobs.c.attempt + 1,
                    reason=None,
                    position=None,
                    progress={},
                )
                .returning(jobs.c.attempt)
            )
            if number is None:
                return None
            c.execute(insert(attempts).values(job=id, number=number, status=Status.starting, began_at=self.clock()))
            c.execute(insert(tokens).values(sha256=token_sha256, job=id, attempt=number, valid=True))
            self._shown.pop(id, None)
            return next(iter(self._active(c, jobs.c.id == id)))

    def add_token(self, id: str, number: int, token_sha256: str) -> None:
        """Gives a running attempt one more token, for a start that is gone on with after a crash."""
        with self._write() as c:
            if self._under_way(c, id, number):
                c.execute(insert(tokens).values(sha256=token_sha256, job=id, attempt=number, valid=True))

    def save_state(self, id: str, number: int, state: State) -> None:
        """Remembers what the backend must know of the attempt."""
        with self._write() as c:
            c.execute(update(attempts).where(*_is(id, number)).values(state=state))

    def set_status(self, id: str, number: int, status: Status) -> None:
        """`running` or `stopping`, if that attempt is still under way."""
        with self._write() as c:
            if not self._under_way(c, id, number):
                return
            values: dict[str, Any] = {"status": status}
            if status is Status.running:
                now = self.clock()
                c.execute(update(attempts).where(*_is(id, number)).values(status=status, started_at=now))
                values |= {"started_at": func.coalesce(jobs.c.started_at, now), "reason": None}
            else:
                c.execute(update(attempts).where(*_is(id, number)).values(status=status))
            self._change(c, id, **values)

    @staticmethod
    def _under_way(c: Connection, id: str, number: int) -> bool:
        where = (jobs.c.id == id, jobs.c.attempt == number, jobs.c.status.in_(UNDER_WAY))
        return c.scalar(select(jobs.c.id).where(*where)) is not None

    def set_progress(self, progress: Mapping[tuple[str, int], Progress]) -> None:
        """Remembers how far attempts are, all in one transaction."""
        if not progress:
            return
        with self._write() as c:
            seq = self._next_seq(c, len(progress))
            c.execute(
                update(jobs)
                .where(
                    jobs.c.id == bindparam("of_id"),
                    jobs.c.attempt == bindparam("of_attempt"),
                    # Not `in_`: its list is spread out at each execution, which many rows at once do not allow.
                    or_(*(jobs.c.status == status for status in UNDER_WAY)),
                )
                .values(seq=bindparam("new_seq"), progress=bindparam("new_progress", type_=jobs.c.progress.type)),
                [
                    {"of_id": id, "of_attempt": number, "new_seq": seq + i, "new_progress": p.model_dump(mode="json")}
                    for i, ((id, number), p) in enumerate(progress.items())
                ],
            )

    def set_reason(self, id: str, reason: Reason | None) -> None:
        """What is shown beside the status of an active job; None takes it away."""
        with self._write() as c:
            if c.scalar(select(jobs.c.id).where(jobs.c.id == id, jobs.c.status.in_(UNDER_WAY))) is not None:
                self._change(c, id, reason=reason_row(reason))

    def end_attempt(self, id: str, number: int, end: AttemptEnd, then: Requeue | Final) -> None:
        """Ends the attempt, its tokens, and the job or the job's turn, in one transaction; twice changes nothing."""
        now = self.clock()
        with self._write() as c:
            if not self._under_way(c, id, number):
                return
            if isinstance(then, Requeue) and then.free:
                # It never got its place, so its rows go; but a number is never given twice, as a backend may know it.
                c.execute(delete(attempts).where(*_is(id, number)))
                self._change(
                    c,
                    id,
                    status=Status.queued,
                    not_before=then.not_before,
                    reason=reason_row(end.reason),
                    progress={},
                )
                return
            c.execute(
                update(attempts)
                .where(*_is(id, number))
                .values(
                    status=status_of(end.ending),
                    ending=end.ending,
                    exit_code=end.exit_code,
                    reason=reason_row(end.reason),
                    usage=None if end.usage is None else end.usage.model_dump(mode="json"),
                    ended_at=now,
                )
            )
            if end.usage is not None:
                # Too short to be seen running: it began when the attempt did.
                began = select(attempts.c.began_at).where(*_is(id, number)).scalar_subquery()
                unseen = (*_is(id, number), attempts.c.started_at.is_(None))
                c.execute(update(attempts).where(*unseen).values(started_at=attempts.c.began_at))
                c.execute(update(jobs).where(jobs.c.id == id, jobs.c.started_at.is_(None)).values(started_at=began))
            c.execute(update(tokens).where(tokens.c.job == id, tokens.c.attempt == number).values(valid=False))
            if end.results:
                c.execute(insert(results), [{"job": id, **r.model_dump(), "attempt": number} for r in end.results])
            values: dict[str, Any] = {"reason": reason_row(end.reason)}
            if end.progress is not None:
                values["progress"] = end.progress.model_dump(mode="json")
            if isinstance(then, Requeue):
                values |= {"status": Status.queued, "not_before": then.not_before}
            else:
                values |= {"status": then.status, "ended_at": now}
            self._change(c, id, **values)

    def end_queued(self, id: str, status: Status, reason: Reason | None = None) -> bool:
        """Ends a job that waits; False if it waits no more."""
        with self._write() as c:
            if c.scalar(select(jobs.c.id).where(jobs.c.id == id, jobs.c.status == Status.queued)) is None:
                return False
            self._change(c, id, status=status, reason=reason_row(reason), position=None, ended_at=self.clock())
            self._shown.pop(id, None)
            return True

    def set_waiting(self, waiting: Mapping[str, tuple[int, Reason]]) -> None:
        """Place and reason of every waiting job. They are no truth but a view that the loop can make again, so they
        are kept in memory, and rows are written only where a reader would care: near the front, or a new reason."""
        self._waiting = dict(waiting)
        shown = self._shown
        changed: list[str] = []
        for id, (position, reason) in waiting.items():
            old = shown.get(id)
            if old is None or old[1] != reason.code or (position <= FRONT and old[0] != position):
                changed.append(id)
        for id in shown.keys() - waiting.keys():
            del shown[id]
        if not changed:
            return
        # A few hundred a call, the front first: the rest follows in the next ones, and readers here see all at once.
        changed = sorted(changed, key=lambda id: waiting[id][0])[:WAITING_ROWS]
        with self._write() as c:
            seq = self._next_seq(c, len(changed))
            c.execute(
                update(jobs)
                .where(jobs.c.id == bindparam("of_id"), jobs.c.status == Status.queued)
                .values(
                    seq=bindparam("new_seq"),
                    position=bindparam("new_position"),
                    reason=bindparam("new_reason", type_=jobs.c.reason.type),
                ),
                [
                    {
                        "of_id": id,
                        "new_seq": seq + i,
                        "new_position": waiting[id][0],
                        "new_reason": reason_row(waiting[id][1]),
                    }
                    for i, id in enumerate(changed)
                ],
            )
        for id in changed:
            shown[id] = (waiting[id][0], waiting[id][1].code)

    def prune(self, before: datetime | None, keep_per_owner: int | None, limit: int = 100) -> list[str]:
        """Forgets ended jobs older than `before`, and the oldest beyond `keep_per_owner`; at most `limit` a call.
        Gives their ids, so that their files are deleted after."""
        ended = jobs.c.status.in_(sorted(FINAL))
        with self._database.read() as c:
            ids: list[str] = []
            if before is not None:
                limit_time = before.timestamp()
                old = (jobs.c.id < time_prefix(limit_time), ended, jobs.c.ended_at < limit_time)
                ids += c.scalars(select(jobs.c.id).where(*old).order_by(jobs.c.id).limit(limit))
            if keep_per_owner is not None:
                count = func.count()
                many = select(jobs.c.owner, count).where(ended).group_by(jobs.c.owner).having(count > keep_per_owner)
                for owner, number in c.execute(many).all():
                    extra = min(number - keep_per_owner, limit - len(ids))
                    if extra > 0:
                        found = select(jobs.c.id).where(jobs.c.owner == owner, ended).order_by(jobs.c.id).limit(extra)
                        ids += c.scalars(found)
            ids = list(dict.fromkeys(ids))[:limit]
        if ids:
            with self._write() as c:
                c.execute(delete(jobs).where(jobs.c.id.in_(ids), ended))
        return ids

    def known(self, ids: Sequence[str]) -> set[str]:
        """Which of these jobs exist."""
        out: set[str] = set()
        with self._database.read() as c:
            for some in batches([i for i in ids if is_id(i)]):
                out |= set(c.scalars(select(jobs.c.id).where(jobs.c.id.in_(some))))
        return out


def _is(id: str, number: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return attempts.c.job == id, attempts.c.number == number
