"""The store's contract: what the loop and the event streams ask of it."""

import threading
from datetime import UTC, datetime, timedelta

from kajiya.types import Ending, Progress, Reason, Result, Status, Usage
from kajiya_hub.store.rows import AttemptEnd, Final, Requeue
from kajiya_hub.store.store import Store
from kajiya_hub.testing.store_base import START, Make, StoreFixtures, Time


class ProgressContract(StoreFixtures):
    """Changes, attempts, the queue's view, retention."""

    # --- changes
    def test_every_change_has_a_number_of_its_own(self, store: Store, make: Make) -> None:
        a, b = store.submit(make())[0], store.submit(make(owner="bob"))[0]
        assert a.seq < b.seq == store.latest_seq()
        seen = store.latest_seq()
        assert store.changes(seen) == [] and store.changed(seen) == []
        self.run(store, a.id)
        assert [j.id for j in store.changes(seen)] == [a.id] and store.changes(seen, "bob") == []
        assert [(c.id, c.status, c.queued) for c in store.changed(seen)] == [(a.id, Status.succeeded, None)]
        assert [j.id for j in store.changes(0)] == [b.id, a.id]
        assert [j.id for j in store.changes(0, limit=1)] == [b.id]

    def test_numbers_grow_in_the_order_in_which_changes_are_seen(self, store: Store, make: Make) -> None:
        wanted = [make() for _ in range(20)]
        threads = [threading.Thread(target=store.submit, args=[n]) for n in wanted]
        seen: list[int] = []
        for thread in threads:
            thread.start()
        while any(t.is_alive() for t in threads) or len(seen) < 20:
            seen += [j.seq for j in store.changes(seen[-1] if seen else 0)]
        assert len(seen) == 20 and seen == sorted(seen)

    def test_who_listens_is_told_after_the_commit(self, store: Store, make: Make) -> None:
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

    def test_numbers_for_metrics(self, store: Store, make: Make) -> None:
        ids = [store.submit(make())[0].id for _ in range(3)]
        self.run(store, ids[0])
        self.run(store, ids[1], Ending.out_of_memory)
        counts = store.counts()
        assert counts.jobs == {Status.succeeded: 1, Status.failed: 1, Status.queued: 1}
        assert counts.endings == {Ending.succeeded: 1, Ending.out_of_memory: 1}
        assert counts.oldest_queued_at == store.job(ids[2]).submitted_at

    # --- attempts
    def test_an_attempt_from_its_begin_to_its_end(self, store: Store, make: Make, clock: Time) -> None:
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

    def test_many_attempts_progress_in_one_call(self, store: Store, make: Make) -> None:
        ids = [store.submit(make())[0].id for _ in range(3)]
        for id in ids:
            store.begin_attempt(id, f"t-{id}")
        store.set_progress({(id, 1): Progress(cells_total=9, cells_done=n) for n, id in enumerate(ids)})
        assert [store.job(id).progress.cells_done for id in ids] == [0, 1, 2]
        assert len({store.job(id).seq for id in ids}) == 3

    def test_an_end_is_an_end(self, store: Store, make: Make) -> None:
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

    def test_what_an_old_attempt_says_late_does_not_count(self, store: Store, make: Make) -> None:
        id = store.submit(make())[0].id
        store.begin_attempt(id, "t1")
        store.end_attempt(id, 1, AttemptEnd(Ending.preempted), Requeue(0))
        store.begin_attempt(id, "t2")
        store.set_status(id, 1, Status.running)
        store.set_progress({(id, 1): Progress(cells_total=9)})
        store.end_attempt(id, 1, AttemptEnd(Ending.succeeded), Final(Status.succeeded))
        job = store.job(id)
        assert job.status is Status.starting and job.progress == Progress()

    def test_tokens_are_good_until_their_attempt_ends(self, store: Store, make: Make) -> None:
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

    def test_an_attempt_that_never_got_its_place_is_forgotten(self, store: Store, make: Make) -> None:
        id = store.submit(make())[0].id
        store.begin_attempt(id, "t1")
        end = AttemptEnd(Ending.could_not_start, None, Reason(code="capacity.none"))
        store.end_attempt(id, 1, end, Requeue(START + 99, free=True))
        job = store.job(id)
        assert job.status is Status.queued and job.attempts == [] and store.attempt_for_token("t1") is None
        second = store.begin_attempt(id, "t2")
        assert second is not None and second.used == {} and second.attempt == 2

    # --- the queue's view
    def test_places_and_reasons_are_shown_at_once(self, store: Store, make: Make) -> None:
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

    def test_a_long_queue_costs_few_writes(self, store: Store, make: Make) -> None:
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
    def test_only_old_ended_jobs_are_forgotten(self, store: Store, make: Make, clock: Time) -> None:
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

    def test_the_oldest_beyond_a_number_are_forgotten(self, store: Store, make: Make) -> None:
        mine = [store.submit(make())[0].id for _ in range(5)]
        others = [store.submit(make(owner="bob"))[0].id for _ in range(2)]
        for id in [*mine, *others]:
            self.run(store, id)
        assert store.prune(None, 2) == mine[:3]
        assert store.prune(None, 2) == [] and store.jobs().total == 4

    # --- life
    def test_everything_is_there_after_a_restart(self, store: Store, make: Make, url: str) -> None:
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
