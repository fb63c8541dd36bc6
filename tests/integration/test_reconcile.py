"""The loop: every way through it."""

import asyncio
import errno
import logging

import pytest

from helpers.world import Bench, WorldBackend, ended, finish, rounds
from kajiya.errors import KernelUnknown, NoCapacity
from kajiya.profiles import Limits
from kajiya.types import ACTIVE, Ending, Progress, Reason, Status
from kajiya_hub.reconcile import Site


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


async def test_a_job_goes_through_to_its_end(bench):
    id = bench.submit()
    seen = []
    bench.store.subscribe(lambda: seen.append(bench.job(id).status))
    loop = await finish(bench, id)
    job = bench.job(id)
    assert list(dict.fromkeys(seen)) == [Status.starting, Status.running, Status.succeeded]
    assert [(a.number, a.ending, a.status) for a in job.attempts] == [(1, Ending.succeeded, Status.succeeded)]
    assert job.started_at and job.ended_at and job.attempts[0].usage.wall_seconds == 1
    assert job.reason is None and job.position is None
    assert not loop.active and not loop.waiting


async def test_the_token_is_good_from_start_to_end_and_only_its_hash_is_kept(bench):
    import hashlib

    bench.world.looks_before_end = 10**9
    id = bench.submit()
    loop = bench.loop()
    await rounds(loop, bench.world, lambda: bench.job(id).status is Status.running)
    token = bench.world.processes[id, 1].spec.token
    digest = hashlib.sha256(token.encode()).hexdigest()
    holder = bench.store.attempt_for_token(digest)
    assert (holder.job, holder.attempt, holder.owner, holder.valid) == (id, 1, "ann", True)
    bench.world.looks_before_end = 0
    await finish(bench, id, loop=loop)
    assert bench.store.attempt_for_token(digest).valid is False
    assert token.encode() not in (bench.path / "k.sqlite").read_bytes()
    assert token.encode() not in (bench.path / "k.sqlite-wal").read_bytes()


@pytest.mark.parametrize(
    ("ending", "budget", "attempts"),
    [
        (Ending.notebook_error, {}, 1),
        (Ending.notebook_error, {Ending.kernel_died: 5}, 1),
        (Ending.kernel_died, {Ending.kernel_died: 2}, 3),
        (Ending.preempted, {Ending.preempted: 3}, 4),
        (Ending.could_not_start, {Ending.could_not_start: 1}, 2),
        (Ending.out_of_memory, {Ending.out_of_memory: 1, Ending.preempted: 3}, 2),
        (Ending.timed_out, {Ending.timed_out: 0}, 1),
    ],
)
async def test_each_class_of_ending_has_its_own_budget(bench, ending, budget, attempts):
    bench.world.default_end = ending
    id = bench.submit(retries=budget, time_limit=5)
    await finish(bench, id, seconds=20)
    job = bench.job(id)
    assert job.status is Status.failed and [a.ending for a in job.attempts] == [ending] * attempts
    assert job.reason and job.attempts[-1].reason == job.reason


async def test_a_retry_waits_longer_each_time_and_says_so(bench):
    bench.world.default_end = Ending.kernel_died
    id = bench.submit(retries={Ending.kernel_died: 2})
    loop = bench.loop()
    for tries, wait in ((1, 10), (2, 20)):
        await rounds(loop, bench.world, lambda n=tries: len([a for a in bench.job(id).attempts if a.ending]) == n)
        await rounds(loop, bench.world, lambda: bench.job(id).reason.code == "waiting.retry", seconds=0.1, most=20)
        began = bench.world.now
        await rounds(loop, bench.world, lambda: bench.job(id).status is not Status.queued)
        assert wait - 3 < bench.world.now - began < wait + 2
    await finish(bench, id, loop=loop)


async def test_the_wait_before_a_retry_outlives_the_loop(bench):
    bench.world.default_end = Ending.kernel_died
    id = bench.submit(retries={Ending.kernel_died: 1})
    loop = bench.loop()
    await rounds(loop, bench.world, lambda: bench.job(id).status is Status.queued and bench.job(id).attempts)
    await loop.close()
    second = bench.loop()
    await rounds(second, bench.world, lambda: False, most=4)
    assert bench.job(id).status is Status.queued and len(bench.job(id).attempts) == 1
    await finish(bench, id, loop=second)


async def test_no_capacity_costs_nothing(bench):
    bench.world.refuse = [NoCapacity(resource="CPUs", asked="1", free="0", total="4") for _ in range(5)]
    id = bench.submit(retries={})
    await finish(bench, id)
    job = bench.job(id)
    # A number is never given twice, and what never got its place is not shown.
    assert job.status is Status.succeeded and [a.number for a in job.attempts] == [6]
    assert bench.files.attempt(id, 6).is_dir() and not bench.files.attempt(id, 5).exists()


async def test_no_capacity_seen_by_the_backend_costs_nothing_either(bench):
    id = bench.submit(retries={})
    full = Reason(code="capacity.none", params={})

    def taken(spec):
        if spec.number < 3:
            process = bench.world.processes[spec.job, spec.number]
            process.ending, process.reason = Ending.could_not_start, full

    bench.world.work = taken
    await finish(bench, id)
    assert bench.job(id).status is Status.succeeded and [a.number for a in bench.job(id).attempts] == [3]


async def test_what_can_not_start_says_why(bench):
    bench.world.refuse = [KernelUnknown(kernel="julia", known=["python3"])]
    one = bench.submit(retries={})
    await finish(bench, one)
    assert bench.job(one).reason.code == "kernel.unknown" and bench.job(one).reason.params["kernel"] == "julia"
    bench.world.refuse = [OSError(errno.EACCES, "not yours")]
    two = bench.submit(retries={})
    await finish(bench, two)
    assert (
        bench.job(two).reason.code == "ended.could_not_start" and "not yours" in bench.job(two).reason.params["problem"]
    )


async def test_a_stop_while_queued_ends_it_at_once(bench):
    bench.world.free_cpus = 0
    id = bench.submit()
    loop = bench.loop()
    await loop.tick()
    bench.store.request_stop(id, by="boss")
    await loop.tick()
    await loop.close()
    job = bench.job(id)
    assert job.status is Status.stopped and job.attempts == []
    assert job.reason == Reason(code="ended.stopped", params={"by": "boss"})


@pytest.mark.parametrize("ending", [Ending.stopped, Ending.kernel_died, Ending.preempted])
async def test_a_stop_wins_over_a_retry(bench, ending):
    bench.world.looks_before_end = 10**9
    id = bench.submit(retries={Ending.preempted: 9, Ending.kernel_died: 9})
    loop = bench.loop()
    await rounds(loop, bench.world, lambda: bench.job(id).status is Status.running)
    process = bench.world.processes[id, 1]
    if ending is not Ending.stopped:
        process.ending = ending
    bench.store.request_stop(id, by="ann")
    assert bench.job(id).status is Status.stopping
    await finish(bench, id, loop=loop)
    assert bench.job(id).status is Status.stopped and len(bench.job(id).attempts) == 1


async def test_who_succeeds_in_spite_of_a_stop_has_succeeded(bench):
    bench.world.looks_before_end = 10**9
    id = bench.submit()
    loop = bench.loop()
    await rounds(loop, bench.world, lambda: bench.job(id).status is Status.running)
    bench.world.processes[id, 1].ending = Ending.succeeded
    bench.store.request_stop(id)
    bench.world.processes[id, 1].stopped = False
    await finish(bench, id, loop=loop)
    assert bench.job(id).status is Status.succeeded


async def test_a_stop_during_the_start_cuts_it_short(bench):
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(WorldBackend):
        async def start(self, spec, state=None):
            yield {"step": 0}
            begun.set()
            await go_on.wait()
            async for s in super().start(spec, state):
                yield s

    id = bench.submit()
    loop = bench.loop(backend=Slow(bench.world))
    await loop.tick()
    await begun.wait()
    bench.store.request_stop(id)
    await finish(bench, id, loop=loop)
    assert bench.job(id).status is Status.stopped and bench.world.begun.total() == 0


async def test_unreachable_changes_nothing_but_the_reason(bench):
    bench.world.looks_before_end = 10**9
    id = bench.submit()
    loop = bench.loop()
    await rounds(loop, bench.world, lambda: bench.job(id).status is Status.running)
    bench.world.unreachable = True
    await rounds(loop, bench.world, lambda: False, most=10, seconds=3600)
    job = bench.job(id)
    assert job.status is Status.running and job.reason.code == "loop.unreachable" and len(job.attempts) == 1
    seq = bench.store.latest_seq()
    await loop.tick()
    assert bench.store.latest_seq() == seq
    bench.world.unreachable = False
    await rounds(loop, bench.world, lambda: bench.job(id).reason is None)
    bench.world.looks_before_end = 0
    await finish(bench, id, loop=loop)
    assert bench.job(id).status is Status.succeeded


async def test_a_lost_attempt_is_tried_again(bench):
    bench.world.looks_before_end = 10**9
    id = bench.submit(retries={Ending.preempted: 1})
    loop = bench.loop()
    await rounds(loop, bench.world, lambda: bench.job(id).status is Status.running)
    bench.world.processes[id, 1].gone = True
    await rounds(loop, bench.world, lambda: (id, 2) in bench.world.processes)
    assert bench.job(id).attempts[0].reason.code == "ended.lost"
    bench.world.looks_before_end = 0
    await finish(bench, id, loop=loop)
    assert [a.ending for a in bench.job(id).attempts] == [Ending.preempted, Ending.succeeded]


async def test_results_and_progress_come_home_and_the_working_folder_goes(bench):
    def work(spec):
        folder = spec.directory / "work"
        (folder / "results").mkdir()
        (folder / "results" / "図.png").write_bytes(b"png")
        (folder / "model.pkl").write_bytes(b"model")
        (folder / "other.bin").write_bytes(b"no")
        (spec.directory / "events.jsonl").write_bytes(
            b'{"t":1,"type":"start","cells_total":2,"kernel":"python3","language":"python"}\n'
            b'{"t":1,"type":"cell_start","cell":0,"code_index":0,"source":"x = 1"}\n'
            b'{"t":1,"type":"cell_end","cell":0,"status":"ok","execution_count":1,"seconds":1}\n'
            b'{"t":1,"type":"cell_start","cell":1,"code_index":1,"source":"y = 2"}\n'
        )

    bench.world.work, bench.world.looks_before_end = work, 10**9
    id = bench.submit(results_wanted=["*.pkl"])
    loop = bench.loop()
    await rounds(loop, bench.world, lambda: bench.job(id).progress.cells_done == 1)
    assert bench.job(id).progress == Progress(cells_total=2, cells_done=1, current=1, source="y = 2")
    with (bench.files.attempt(id, 1) / "events.jsonl").open("ab") as f:
        f.write(b'{"t":1,"type":"cell_end","cell":1,"status":"ok"}\n{"t":1,"type":"end","status":"succeeded"}\n')
    bench.world.looks_before_end = 0
    await finish(bench, id, loop=loop)
    job = bench.job(id)
    assert job.progress == Progress(cells_total=2, cells_done=2)
    assert [(r.path, r.size, r.attempt) for r in job.results] == [("model.pkl", 5, 1), ("results/図.png", 3, 1)]
    with bench.files.open_result(id, 1, "results/図.png") as f:
        assert f.read() == b"png"
    assert not (bench.files.attempt(id, 1) / "work").exists()
    assert (bench.files.attempt(id, 1) / "events.jsonl").exists()


async def test_the_queue_is_kept_and_places_are_told(bench):
    bench.world.looks_before_end, bench.world.cpus, bench.world.free_cpus = 10**9, 2, 2
    ids = [bench.submit(owner=f"o{i}") for i in range(5)]
    loop = bench.loop()
    await rounds(loop, bench.world, lambda: bench.statuses() == {"running": 2, "queued": 3})
    await rounds(loop, bench.world, lambda: False, most=5)
    assert bench.statuses() == {"running": 2, "queued": 3}
    waiting = sorted((j for j in bench.store.jobs().items if j.status is Status.queued), key=lambda j: j.position)
    assert [j.position for j in waiting] == [1, 2, 3]
    assert [j.reason.code for j in waiting] == ["waiting.capacity", "waiting.behind", "waiting.behind"]
    bench.world.looks_before_end = 0
    await finish(bench, *ids, loop=loop)
    assert bench.statuses() == {"succeeded": 5}


async def test_limits_come_from_the_site(bench):
    bench.world.looks_before_end = 10**9
    for _ in range(3):
        bench.submit()
        bench.submit(owner="bob", profile="large")
    site = Site(
        capacity=bench.world.capacity,
        limits=lambda: Limits(jobs_active=1),
        profile_limits=lambda: {"large": 1},
        in_use=lambda: {("bob", "large"): 1},
    )
    loop = bench.loop(site=site)
    await rounds(loop, bench.world, lambda: False, most=10)
    await loop.close()
    running = [j for j in bench.store.jobs().items if j.status in ACTIVE]
    assert [j.owner for j in running] == ["ann"]


async def test_trouble_with_one_job_does_not_stop_the_others(bench, caplog):
    class Broken(WorldBackend):
        async def start(self, spec, state=None):
            if spec.owner == "bad":
                raise RuntimeError("a bug")
            async for s in super().start(spec, state):
                yield s

    bad, good = bench.submit(owner="bad", retries={}), bench.submit()
    loop = bench.loop(backend=Broken(bench.world))
    with caplog.at_level(logging.ERROR):
        await rounds(loop, bench.world, ended(bench, good))
    assert bench.job(good).status is Status.succeeded
    assert bench.job(bad).status is Status.starting and bench.job(bad).reason.code == "loop.trouble"
    assert "a bug" in caplog.text
    await finish(bench, bad, loop=loop, seconds=30)
    assert bench.job(bad).status is Status.failed and bench.job(bad).attempts[0].ending is Ending.could_not_start


async def test_a_check_that_fails_is_no_failure(bench):
    class Blind(WorldBackend):
        blind = False

        async def check(self, attempts):
            if self.blind:
                raise ConnectionError("no answer")
            return await super().check(attempts)

    bench.world.looks_before_end = 3
    id = bench.submit(retries={})
    backend = Blind(bench.world)
    loop = bench.loop(backend=backend)
    await rounds(loop, bench.world, lambda: bench.job(id).status is Status.running)
    backend.blind = True
    await rounds(loop, bench.world, lambda: False, most=5)
    assert bench.job(id).status is Status.running and bench.job(id).reason.code == "loop.unreachable"
    backend.blind = False
    await finish(bench, id, loop=loop)
    assert bench.job(id).status is Status.succeeded


async def test_a_disk_that_was_full_at_the_end_loses_nothing(bench, monkeypatch):
    from kajiya.errors import DiskFull

    def work(spec):
        (spec.directory / "work" / "a.txt").write_text("a")

    bench.world.work = work
    real, failures = bench.files.collect_results, [DiskFull(path="x")] * 3

    def collect(*args):
        if failures:
            raise failures.pop()
        return real(*args)

    monkeypatch.setattr(bench.files, "collect_results", collect)
    id = bench.submit(results_wanted=["*.txt"])
    loop = bench.loop()
    await rounds(loop, bench.world, lambda: bench.job(id).reason is not None)
    assert bench.job(id).reason == Reason(code="loop.trouble", params={"problem": "disk.full"})
    await finish(bench, id, loop=loop)
    assert [r.path for r in bench.job(id).results] == ["a.txt"] and bench.job(id).reason is None
