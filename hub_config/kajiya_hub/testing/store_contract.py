"""The contract of the store, as a pytest class, for every database it can stand on. To test yours:

class TestMine(StoreContract):
    @pytest.fixture
    def url(self):
        return "postgresql+psycopg://…"  # an empty database for each test
"""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kajiya.errors import (
    IdempotencyConflict,
    InvalidName,
    InvalidRequest,
    JobEnded,
    JobNotEnded,
    JobNotFound,
    LimitReached,
)
from kajiya.types import Ending, Environment, GiB, Job, Progress, Reason, Resources, Result, Status, Usage
from kajiya_hub.store.ids import new_id
from kajiya_hub.store.rows import AttemptEnd, Final, NewJob, Requeue
from kajiya_hub.store.store import Store

Clock = Callable[[], float]
START = 1_800_000_000.0
HOSTILE = ["鍛冶屋の仕事.ipynb", "a'; DROP TABLE jobs; --", 'quo"te', "line\nbreak", "x" * 10_000, "100%_\\", "🔨" * 50]


class Time:
    """A clock to turn."""

    now = START

    def __call__(self) -> float:
        return self.now


class StoreContract:
    """What the store must do; a subclass gives the fixture `url`."""

    @pytest.fixture
    def url(self) -> str:
        """The URL of an empty database."""
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> Time:
        return Time()

    @pytest.fixture
    def store(self, url: str, clock: Time) -> Iterator[Store]:
        store = Store(url, clock=clock)
        yield store
        store.close()

    @pytest.fixture
    def make(self, clock: Time) -> Callable[..., NewJob]:
        """Makes a job to submit; each a second after the other."""

        def make(owner: str = "ann", **changes: Any) -> NewJob:
            clock.now += 1
            values: dict[str, Any] = {
                "id": new_id(clock.now),
                "owner": owner,
                "name": "train",
                "notebook": "train.ipynb",
                "notebook_sha256": "0" * 64,
                "profile": "small",
                "resources": Resources(cpu=1.5, memory=3 * GiB, gpus=0, gpu_kind=None),
                "environment": Environment(),
            }
            return NewJob(**(values | changes))

        return make

    def run(self, store: Store, id: str, ending: Ending = Ending.succeeded, **end: Any) -> Job:
        """Takes a job through one attempt to a final end."""
        active = store.begin_attempt(id, f"{id:0<64}")
        assert active is not None
        store.set_status(id, active.attempt, Status.running)
        status = Status.succeeded if ending is Ending.succeeded else Status.failed
        store.end_attempt(id, active.attempt, AttemptEnd(ending, **end), Final(status))
        return store.job(id)

    # --- submit
    def test_a_job_comes_back_as_it_was_given(self, store: Store, make: Callable[..., NewJob]) -> None:
        new = make(
            files=["data/a.csv", "日本.txt"],
            parameters={"C": 10, "big": 2**80, "s": "\ud800 \0 é", "nested": {"a": [1, None, 1.5, True]}},
            options={"size": "l"},
            env={"A": "b"},
            priority=-3,
            time_limit=60,
            retries={Ending.preempted: 2},
            results_wanted=["*.pkl"],
            again_of="j0000000000000000",
            resources=Resources(cpu=0.5, memory=2**40, gpus=2, gpu_kind="H 100"),
            environment=Environment(kind="snapshot", name="x", digest="sha256:1"),
            key="k",
            request_hash="h",
        )
        job, created = store.submit(new)
        assert created and store.job(new.id) == job == store.job(new.id, "ann")
        assert store.input_of(new.id) == new
        for name in ("files", "parameters", "options", "priority", "time_limit", "retries", "results_wanted"):
            assert getattr(job, name) == getattr(new, name)
        assert (job.resources, job.environment, job.again_of) == (new.resources, new.environment, new.again_of)
        assert job.status is Status.queued and job.submitted_at == datetime.fromtimestamp(START + 1, UTC)

    @pytest.mark.parametrize("name", HOSTILE)
    def test_hostile_names_are_only_names(self, store: Store, make: Callable[..., NewJob], name: str) -> None:
        job, _ = store.submit(make(owner=name[:255], name=name, notebook=name))
        assert (job.owner, job.name, job.notebook) == (name[:255], name, name)
        assert store.jobs(name[:255], text=name[:20]).items == [job]

    @pytest.mark.parametrize("name", ["nul\0", "half \ud800"])
    def test_text_that_no_database_takes_is_refused(self, store: Store, make: Callable[..., NewJob], name: str) -> None:
        for field in ("owner", "name", "notebook", "profile", "key"):
            with pytest.raises(InvalidName):
                store.submit(make(**{field: name}))
        assert store.jobs().total == 0

    def test_the_same_key_gives_the_same_job(self, store: Store, make: Callable[..., NewJob]) -> None:
        first, created = store.submit(make(key="k", request_hash="h"))
        assert created and store.submitted("ann", "k", "h") == first
        again, created = store.submit(make(key="k", request_hash="h"))
        assert (again, created) == (first, False)
        with pytest.raises(IdempotencyConflict):
            store.submit(make(key="k", request_hash="other"))
        with pytest.raises(IdempotencyConflict):
            store.submitted("ann", "k", "other")
        assert store.submitted("bob", "k", "h") is None
        other, created = store.submit(make(owner="bob", key="k", request_hash="x"))
        assert created and other.id != first.id
        # No key is no key: any number of jobs may have none.
        assert store.submit(make())[1] and store.submit(make())[1]

    def test_a_key_is_good_for_one_job_though_many_ask_at_once(self, store: Store, make: Callable[..., NewJob]) -> None:
        wanted = [make(key="k", request_hash="h") for _ in range(12)]
        got: list[tuple[Job, bool]] = []
        threads = [threading.Thread(target=lambda n=n: got.append(store.submit(n))) for n in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({job.id for job, _ in got}) == 1 and sum(created for _, created in got) == 1 and len(got) == 12

    def test_a_limit_counts_what_has_not_ended(self, store: Store, make: Callable[..., NewJob]) -> None:
        ids = [store.submit(make(), 2)[0].id for _ in range(2)]
        with pytest.raises(LimitReached) as refused:
            store.submit(make(), 2)
        assert refused.value.params == {"used": 2, "limit": 2}
        assert store.submit(make(owner="bob"), 2)[1]
        self.run(store, ids[0])
        assert store.submit(make(), 2)[1]

    def test_a_limit_holds_though_many_ask_at_once(self, store: Store, make: Callable[..., NewJob]) -> None:
        wanted = [make() for _ in range(12)]
        refused: list[LimitReached] = []

        def submit(new: NewJob) -> None:
            try:
                store.submit(new, 5)
            except LimitReached as e:
                refused.append(e)

        threads = [threading.Thread(target=submit, args=[n]) for n in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.jobs().total == 5 and len(refused) == 7

    # --- reading
    def test_anothers_job_is_no_job(self, store: Store, make: Callable[..., NewJob]) -> None:
        id = store.submit(make())[0].id
        for ask in (store.job, store.input_of, store.request_stop, store.delete):
            for what in ((id, "bob"), ("j" + "0" * 15, None), ("../../etc", None), ("", None), (id + "'", None)):
                with pytest.raises(JobNotFound):
                    ask(*what)
        assert store.job(id).status is Status.queued

    def test_lists_are_filtered(self, store: Store, make: Callable[..., NewJob]) -> None:
        a = store.submit(make(name="Train DIGITS"))[0]
        b = store.submit(make(profile="large", notebook="plots/価格.ipynb"))[0]
        c = store.submit(make(owner="bob"))[0]
        self.run(store, a.id)
        self.run(store, b.id, Ending.notebook_error)

        def ids(owner: str | None = None, **filters: Any) -> list[str]:
            page = store.jobs(owner, **filters)
            assert page.total == len(page.items)
            return [j.id for j in page.items]

        assert ids() == [c.id, b.id, a.id] and ids(order="oldest") == [a.id, b.id, c.id]
        assert ids("ann") == [b.id, a.id] and ids("nobody") == []
        assert ids(statuses=[Status.succeeded]) == [a.id]
        assert ids(statuses=[Status.succeeded, Status.failed, Status.failed]) == [b.id, a.id]
        assert ids("ann", statuses=[Status.queued]) == []
        assert ids(profile="large") == [b.id] and ids("ann", profile="nope") == []
        assert ids(text="digits") == [a.id] and ids(text="価格") == [b.id] and ids(text=c.id) == [c.id]
        assert ids(text="%") == [] and ids(text="_") == [] and ids(text="nul\0") == []
        assert ids(since=b.submitted_at) == [c.id, b.id] and ids(until=b.submitted_at) == [a.id]
        assert ids(since=b.submitted_at, until=c.submitted_at, statuses=[Status.failed]) == [b.id]

    @pytest.mark.parametrize("order", ["newest", "oldest"])
    @pytest.mark.parametrize("statuses", [(), (Status.queued,), (Status.queued, Status.failed)])
    def test_pages_are_whole_though_jobs_come_meanwhile(
        self, store: Store, make: Callable[..., NewJob], order: Any, statuses: Any
    ) -> None:
        ids = [store.submit(make())[0].id for _ in range(23)]
        for id in ids[::3]:
            self.run(store, id, Ending.notebook_error)
        wanted = [i for i in ids if not statuses or store.job(i).status in statuses]
        seen: list[str] = []
        cursor = None
        while True:
            page = store.jobs("ann", limit=5, cursor=cursor, statuses=statuses, order=order)
            seen += [j.id for j in page.items]
            store.submit(make())
            cursor = page.next
            if cursor is None:
                break
        assert [i for i in seen if i in wanted] == (wanted if order == "oldest" else wanted[::-1])
        assert len(set(seen)) == len(seen)

    def test_a_cursor_is_checked(self, store: Store, make: Callable[..., NewJob]) -> None:
        for _ in range(3):
            store.submit(make())
        cursor = store.jobs("ann", limit=1).next
        assert cursor is not None and store.jobs("ann", limit=1, cursor=cursor).items
        for bad in ("", "x", "é", cursor[:-2], cursor + "A", "' OR 1=1", "A" * 10_000, "\0", "🔨"):
            with pytest.raises(InvalidRequest):
                store.jobs("ann", limit=1, cursor=bad)
        # That of another list would leave out or repeat jobs without a word.
        others: list[dict[str, Any]] = [
            {"owner": "bob"},
            {"owner": "ann", "order": "oldest"},
            {"owner": "ann", "text": "t"},
        ]
        for other in others:
            with pytest.raises(InvalidRequest):
                store.jobs(**other, limit=1, cursor=cursor)

    def test_page_sizes_are_clamped(self, store: Store, make: Callable[..., NewJob]) -> None:
        for _ in range(3):
            store.submit(make())
        assert len(store.jobs(limit=0).items) == 1 and len(store.jobs(limit=10**9).items) == 3
        assert store.jobs(limit=1).total == 3

    # --- stop, delete
    def test_stop_is_asked_once_and_not_of_what_ended(
        self, store: Store, make: Callable[..., NewJob], clock: Time
    ) -> None:
        id = store.submit(make())[0].id
        assert store.request_stop(id, by="boss").status is Status.queued
        seq = store.latest_seq()
        clock.now += 5
        store.request_stop(id, by="other")
        (queued,) = store.queued()
        assert (queued.stop_requested, queued.stop_by) == (True, "boss") and store.latest_seq() == seq
        assert store.begin_attempt(id, "t") is None
        assert store.end_queued(id, Status.stopped, Reason(code="ended.stopped", params={"by": "boss"}))
        assert not store.end_queued(id, Status.failed)
        assert store.job(id).status is Status.stopped and store.job(id).reason is not None
        with pytest.raises(JobEnded):
            store.request_stop(id)

    def test_only_what_ended_is_deleted(self, store: Store, make: Callable[..., NewJob]) -> None:
        id = store.submit(make())[0].id
        with pytest.raises(JobNotEnded):
            store.delete(id)
        self.run(store, id, results=[Result(path="a", size=1, sha256="0", attempt=1)])
        store.delete(id, "ann")
        with pytest.raises(JobNotFound):
            store.job(id)
        assert store.attempt_for_token(f"{id:0<64}") is None and store.jobs().total == 0

    # --- changes
    def test_every_change_has_a_number_of_its_own(self, store: Store, make: Callable[..., NewJob]) -> None:
        a, b = store.submit(make())[0], store.submit(make(owner="bob"))[0]
        assert a.seq < b.seq == store.latest_seq()
        seen = store.latest_seq()
        assert store.changes(seen) == [] and store.changed(seen) == []
        self.run(store, a.id)
        assert [j.id for j in store.changes(seen)] == [a.id] and store.changes(seen, "bob") == []
        assert [(c.id, c.status, c.queued) for c in store.changed(seen)] == [(a.id, Status.succeeded, None)]
        assert [j.id for j in store.changes(0)] == [b.id, a.id]
        assert [j.id for j in store.changes(0, limit=1)] == [b.id]

    def test_numbers_grow_in_the_order_in_which_changes_are_seen(
        self, store: Store, make: Callable[..., NewJob]
    ) -> None:
        wanted = [make() for _ in range(20)]
        threads = [threading.Thread(target=store.submit, args=[n]) for n in wanted]
        seen: list[int] = []
        for thread in threads:
            thread.start()
        while any(t.is_alive() for t in threads) or len(seen) < 20:
            seen += [j.seq for j in store.changes(seen[-1] if seen else 0)]
        assert len(seen) == 20 and seen == sorted(seen)

    def test_who_listens_is_told_after_the_commit(self, store: Store, make: Callable[..., NewJob]) -> None:
        told: list[int] = []
        asked: list[int] = []
        end = store.subscribe(lambda: told.append(store.latest_seq()))
        store.subscribe(lambda: asked.append(store.latest_seq()), requests_only=True)
        id = store.submit(make())[0].id
        store.begin_attempt(id, "t")
        assert told == [1, 2] and asked == [1]
        end()
        store.set_status(id, 1, Status.running)
        store.request_stop(id)
        assert told == [1, 2] and len(asked) == 2

    def test_numbers_for_metrics(self, store: Store, make: Callable[..., NewJob]) -> None:
        ids = [store.submit(make())[0].id for _ in range(3)]
        self.run(store, ids[0])
        self.run(store, ids[1], Ending.out_of_memory)
        counts = store.counts()
        assert counts.jobs == {Status.succeeded: 1, Status.failed: 1, Status.queued: 1}
        assert counts.endings == {Ending.succeeded: 1, Ending.out_of_memory: 1}
        assert counts.oldest_queued_at == store.job(ids[2]).submitted_at

    # --- attempts
    def test_an_attempt_from_its_begin_to_its_end(self, store: Store, make: Callable[..., NewJob], clock: Time) -> None:
        id = store.submit(make(retries={Ending.preempted: 3}, env={"A": "b"}))[0].id
        active = store.begin_attempt(id, "t1")
        assert active is not None and store.active() == [active] == store.active([id, "j" + "0" * 15])
        assert (active.attempt, active.status, active.state, active.env) == (1, Status.starting, None, {"A": "b"})
        assert store.begin_attempt(id, "t2") is None and store.queued() == []
        store.save_state(id, 1, {"pid": 7, "nested": [1]})
        assert store.active()[0].state == {"pid": 7, "nested": [1]}
        clock.now += 3
        store.set_status(id, 1, Status.running)
        store.set_progress({(id, 1): Progress(cells_total=3, cells_done=1, current=1, source="x = '価'")})
        job = store.job(id)
        assert job.status is Status.running and job.started_at == datetime.fromtimestamp(clock.now, UTC)
        assert job.progress.source == "x = '価'" and store.active_of("ann") == 1
        assert store.active_of("ann", "small") == 1 and store.active_of("ann", "large") == 0
        store.set_reason(id, Reason(code="loop.unreachable", params={}))
        assert store.job(id).reason == Reason(code="loop.unreachable")
        end = AttemptEnd(Ending.preempted, None, Reason(code="ended.lost"), Usage(cpu_seconds=2), None, [])
        store.end_attempt(id, 1, end, Requeue(not_before=clock.now + 9))
        (queued,) = store.queued()
        assert (queued.not_before, queued.attempt) == (clock.now + 9, 1)
        second = store.begin_attempt(id, "t3")
        assert second is not None and second.attempt == 2 and second.used == {Ending.preempted: 1}
        assert second.progress == Progress()
        store.request_stop(id, by="ann")
        assert store.job(id).status is Status.stopping
        store.set_status(id, 2, Status.stopping)
        store.end_attempt(id, 2, AttemptEnd(Ending.stopped), Final(Status.stopped))
        job = store.job(id)
        assert [(a.number, a.status, a.ending) for a in job.attempts] == [
            (1, Status.failed, Ending.preempted),
            (2, Status.stopped, Ending.stopped),
        ]
        assert job.status is Status.stopped and job.ended_at is not None and store.active() == []

    def test_an_end_is_an_end(self, store: Store, make: Callable[..., NewJob]) -> None:
        id = store.submit(make())[0].id
        kept = [Result(path="図/a.png", size=2**40, sha256="f" * 64, attempt=1)]
        job = self.run(store, id, results=kept, exit_code=0, usage=Usage(wall_seconds=1))
        assert job.results == kept and store.jobs().items[0].results == []
        seq = store.latest_seq()
        store.end_attempt(id, 1, AttemptEnd(Ending.kernel_died), Requeue(0))
        store.end_attempt(id, 1, AttemptEnd(Ending.kernel_died), Final(Status.failed))
        store.set_status(id, 1, Status.running)
        store.set_reason(id, Reason(code="x"))
        store.set_progress({(id, 1): Progress(cells_total=9)})
        store.add_token(id, 1, "late")
        assert store.job(id) == job and store.attempt_for_token("late") is None
        assert store.changes(seq) == []

    def test_what_an_old_attempt_says_late_does_not_count(self, store: Store, make: Callable[..., NewJob]) -> None:
        id = store.submit(make())[0].id
        store.begin_attempt(id, "t1")
        store.end_attempt(id, 1, AttemptEnd(Ending.preempted), Requeue(0))
        store.begin_attempt(id, "t2")
        store.set_status(id, 1, Status.running)
        store.set_progress({(id, 1): Progress(cells_total=9)})
        store.end_attempt(id, 1, AttemptEnd(Ending.succeeded), Final(Status.succeeded))
        job = store.job(id)
        assert job.status is Status.starting and job.progress == Progress()

    def test_tokens_are_good_until_their_attempt_ends(self, store: Store, make: Callable[..., NewJob]) -> None:
        id = store.submit(make())[0].id
        assert store.attempt_for_token("t1") is None
        store.begin_attempt(id, "t1")
        store.add_token(id, 1, "t1b")
        for token in ("t1", "t1b"):
            holder = store.attempt_for_token(token)
            assert holder is not None
            assert (holder.job, holder.attempt, holder.owner, holder.valid) == (id, 1, "ann", True)
        store.end_attempt(id, 1, AttemptEnd(Ending.preempted), Requeue(0))
        store.begin_attempt(id, "t2")
        found = [store.attempt_for_token(t) for t in ("t1", "t1b", "t2")]
        assert [h.valid for h in found if h is not None] == [False, False, True]

    def test_an_attempt_that_never_got_its_place_is_forgotten(self, store: Store, make: Callable[..., NewJob]) -> None:
        id = store.submit(make())[0].id
        store.begin_attempt(id, "t1")
        end = AttemptEnd(Ending.could_not_start, None, Reason(code="capacity.none"))
        store.end_attempt(id, 1, end, Requeue(START + 99, free=True))
        job = store.job(id)
        assert job.status is Status.queued and job.attempts == [] and store.attempt_for_token("t1") is None
        second = store.begin_attempt(id, "t2")
        assert second is not None and second.used == {} and second.attempt == 2

    # --- the queue's view
    def test_places_and_reasons_are_shown_at_once(self, store: Store, make: Callable[..., NewJob]) -> None:
        ids = [store.submit(make())[0].id for _ in range(3)]
        view = {i: (n + 1, Reason(code="waiting.behind", params={"ahead": n})) for n, i in enumerate(ids)}
        store.set_waiting(view)
        assert [(j.position, j.reason) for j in store.jobs(order="oldest").items] == list(view.values())
        seq = store.latest_seq()
        store.set_waiting(view)
        assert store.latest_seq() == seq, "the same view is no change"
        store.begin_attempt(ids[0], "t")
        store.set_waiting({i: (p - 1, r) for i, (p, r) in view.items() if i != ids[0]})
        first, second, third = (store.job(i) for i in ids)
        assert (first.position, first.reason) == (None, None) and (second.position, third.position) == (1, 2)
        assert {j.id for j in store.changes(seq)} == set(ids)

    def test_a_long_queue_costs_few_writes(self, store: Store, make: Callable[..., NewJob]) -> None:
        ids = [store.submit(make())[0].id for _ in range(300)]
        reason = Reason(code="waiting.behind", params={})
        seq = store.latest_seq()
        store.set_waiting({i: (n + 1, reason) for n, i in enumerate(ids)})
        assert store.latest_seq() - seq <= 200
        assert store.job(ids[299]).position == 300
        store.set_waiting({i: (n + 1, reason) for n, i in enumerate(ids)})
        seq = store.latest_seq()
        store.set_waiting({i: (n + 1, reason) for n, i in enumerate(ids[1:])})
        assert store.latest_seq() - seq <= 20
        assert store.job(ids[299]).position == 299

    # --- retention
    def test_only_old_ended_jobs_are_forgotten(self, store: Store, make: Callable[..., NewJob], clock: Time) -> None:
        ids = [store.submit(make())[0].id for _ in range(6)]
        for id in ids[:4]:
            self.run(store, id)
        middle = datetime.fromtimestamp(clock.now, UTC) + timedelta(seconds=10)
        clock.now += 100
        late = [store.submit(make())[0].id for _ in range(2)]
        for id in late:
            self.run(store, id)
        assert store.prune(middle, None, limit=3) == ids[:3]
        assert store.prune(middle, None, limit=3) == ids[3:4]
        assert store.prune(middle, None) == []
        assert {j.id for j in store.jobs().items} == {*ids[4:], *late}
        assert store.known([*ids, *late, "../x"]) == {*ids[4:], *late}

    def test_the_oldest_beyond_a_number_are_forgotten(self, store: Store, make: Callable[..., NewJob]) -> None:
        mine = [store.submit(make())[0].id for _ in range(5)]
        others = [store.submit(make(owner="bob"))[0].id for _ in range(2)]
        for id in [*mine, *others]:
            self.run(store, id)
        assert store.prune(None, 2) == mine[:3]
        assert store.prune(None, 2) == [] and store.jobs().total == 4

    # --- life
    def test_everything_is_there_after_a_restart(self, store: Store, make: Callable[..., NewJob], url: str) -> None:
        a, b = (store.submit(make())[0].id for _ in range(2))
        store.begin_attempt(a, "t")
        store.save_state(a, 1, {"x": 1})
        before = (store.jobs(), store.active(), store.queued(), store.latest_seq())
        again = Store(url)
        try:
            assert (again.jobs(), again.active(), again.queued(), again.latest_seq()) == before
            assert again.job(b).status is Status.queued
            again.ping()
        finally:
            again.close()
