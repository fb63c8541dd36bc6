"""The store's contract: what the API asks of it."""

import threading
from datetime import UTC, datetime
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
from kajiya.types import Ending, Environment, Job, Reason, Resources, Result, Status
from kajiya_hub.store.rows import NewJob
from kajiya_hub.store.store import Store
from kajiya_hub.testing.store_base import START, Make, StoreFixtures, Time

HOSTILE = ["鍛冶屋の仕事.ipynb", "a'; DROP TABLE jobs; --", 'quo"te', "line\nbreak", "x" * 10_000, "100%_\\", "🔨" * 50]


class RequestsContract(StoreFixtures):
    """Submit, read, list, stop, delete."""

    # --- submit
    def test_a_job_comes_back_as_it_was_given(self, store: Store, make: Make) -> None:
        new = make(
            files=["data/a.csv", "日本.txt"],
            parameters={"C": 10, "big": 2**80, "s": "\ud800 \0 é", "nested": {"a": [1, None, 1.5, True]}},
            options={"size": "l"},
            env={"A": "b"},
            priority=-3,
            time_limit=60,
            retries={Ending.preempted: 2},
            results_wanted=["*.pkl"],
            again_of="j000000000000000",
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
    def test_hostile_names_are_only_names(self, store: Store, make: Make, name: str) -> None:
        job, _ = store.submit(make(owner=name[:255], name=name, notebook=name))
        assert (job.owner, job.name, job.notebook) == (name[:255], name, name)
        assert store.jobs(name[:255], text=name[:20]).items == [job]

    @pytest.mark.parametrize("name", ["nul\0", "half \ud800"])
    def test_text_that_no_database_takes_is_refused(self, store: Store, make: Make, name: str) -> None:
        for field in ("owner", "name", "notebook", "profile", "key"):
            with pytest.raises(InvalidName):
                store.submit(make(**{field: name}))
        assert store.jobs().total == 0

    def test_the_same_key_gives_the_same_job(self, store: Store, make: Make) -> None:
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

    def test_a_key_is_good_for_one_job_though_many_ask_at_once(self, store: Store, make: Make) -> None:
        wanted = [make(key="k", request_hash="h") for _ in range(12)]
        got: list[tuple[Job, bool]] = []
        threads = [threading.Thread(target=lambda n=n: got.append(store.submit(n))) for n in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({job.id for job, _ in got}) == 1 and sum(created for _, created in got) == 1 and len(got) == 12

    def test_a_limit_counts_what_has_not_ended(self, store: Store, make: Make) -> None:
        ids = [store.submit(make(), 2)[0].id for _ in range(2)]
        with pytest.raises(LimitReached) as refused:
            store.submit(make(), 2)
        assert refused.value.params == {"used": 2, "limit": 2}
        assert store.submit(make(owner="bob"), 2)[1]
        self.run(store, ids[0])
        assert store.submit(make(), 2)[1]

    def test_a_limit_holds_though_many_ask_at_once(self, store: Store, make: Make) -> None:
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
    def test_anothers_job_is_no_job(self, store: Store, make: Make) -> None:
        id = store.submit(make())[0].id
        for ask in (store.job, store.input_of, store.request_stop, store.delete):
            for what in ((id, "bob"), ("j" + "0" * 15, None), ("../../etc", None), ("", None), (id + "'", None)):
                with pytest.raises(JobNotFound):
                    ask(*what)
        assert store.job(id).status is Status.queued

    def test_lists_are_filtered(self, store: Store, make: Make) -> None:
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
        self, store: Store, make: Make, order: Any, statuses: Any
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

    def test_a_cursor_is_checked(self, store: Store, make: Make) -> None:
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

    def test_page_sizes_are_clamped(self, store: Store, make: Make) -> None:
        for _ in range(3):
            store.submit(make())
        assert len(store.jobs(limit=0).items) == 1 and len(store.jobs(limit=10**9).items) == 3
        assert store.jobs(limit=1).total == 3

    # --- stop, delete
    def test_stop_is_asked_once_and_not_of_what_ended(self, store: Store, make: Make, clock: Time) -> None:
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

    def test_only_what_ended_is_deleted(self, store: Store, make: Make) -> None:
        id = store.submit(make())[0].id
        with pytest.raises(JobNotEnded):
            store.delete(id)
        self.run(store, id, results=[Result(path="a", size=1, sha256="0", attempt=1)])
        store.delete(id, "ann")
        with pytest.raises(JobNotFound):
            store.job(id)
        assert store.attempt_for_token(f"{id:0<64}") is None and store.jobs().total == 0
