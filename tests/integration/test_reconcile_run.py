"""The loop as a whole: woken, bounded, tidy, with many jobs, with the fake that is shipped."""

import asyncio
import threading

import pytest

from helpers.world import Bench, WorldBackend, ended, finish, rounds
from kajiya.types import Ending, GiB, Resources, Status
from kajiya_hub.tracked import LoopSettings


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


async def test_many_start_at_once_but_not_too_many(bench):
    at_once, most = 0, 0

    class Counting(WorldBackend):
        async def start(self, spec, state=None):
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0.01)
            async for s in super().start(spec, state):
                yield s
            at_once -= 1

    bench.world.cpus = bench.world.free_cpus = 100
    ids = [bench.submit() for _ in range(12)]
    loop = bench.loop(backend=Counting(bench.world), settings=LoopSettings(starts_at_once=3, retention_every=1e9))
    await finish(bench, *ids, loop=loop)
    assert most == 3 and bench.statuses() == {"succeeded": 12}


async def test_run_is_woken_by_a_submit_from_another_thread_and_ends_when_told(bench):
    # An hour between rounds: only a wake brings anything about in the time a test has.
    loop = bench.loop(settings=LoopSettings(idle_interval=3600, active_interval=0.01, retention_every=1e9))
    stop = asyncio.Event()
    task = asyncio.create_task(loop.run(stop))
    await asyncio.sleep(0.05)
    ids = []
    thread = threading.Thread(target=lambda: ids.append(bench.submit()))
    thread.start()
    async with asyncio.timeout(20):
        while not ids or not bench.job(ids[0]).status.final:
            await asyncio.sleep(0.01)
    thread.join()
    assert loop.age() < 20
    stop.set()
    await asyncio.wait_for(task, 20)


async def test_retention_forgets_rows_and_folders(bench):
    old = [bench.submit() for _ in range(3)]
    await finish(bench, *old)
    bench.world.now += 1
    settings = LoopSettings(retention_days=None, retention_per_owner=1, retention_every=0)
    kept = bench.submit()
    loop = bench.loop(settings=settings)
    gone = lambda: not any(bench.files.folder(i).exists() for i in old)  # noqa: E731
    assert await rounds(loop, bench.world, lambda: ended(bench, kept)() and gone())
    await loop.close()
    assert [j.id for j in bench.store.jobs().items] == [kept]
    assert bench.files.folder(kept).is_dir()


async def test_a_big_machine_and_many_jobs_leave_none_behind(bench):
    bench.world.cpus = bench.world.free_cpus = 7
    ids = [bench.submit(owner=f"o{i % 5}", resources=Resources(cpu=1 + i % 3, memory=GiB)) for i in range(60)]
    for i, id in enumerate(ids):
        if i % 10 == 0:
            bench.world.ends[id, 1] = Ending.notebook_error
    await finish(bench, *ids, most=1000)
    assert bench.statuses() == {"succeeded": 54, "failed": 6}
    assert max(bench.world.begun.values()) == 1


async def test_the_shipped_fake_serves_the_loop(bench):
    from kajiya_hub.backends.fake import FakeBackend

    plays = {}
    backend = FakeBackend(plays=lambda spec: plays[spec.job])
    for play in ("succeed", "fail", "wait", "hog"):
        plays[bench.submit()] = play
    good, bad, long, hungry = plays
    loop = bench.loop(backend=backend)
    await rounds(
        loop, bench.world, lambda: ended(bench, good, bad, hungry)() and bench.job(long).status is Status.running
    )
    backend.lose(long, 1)
    await finish(bench, long, loop=loop)
    found = [bench.job(i).attempts[0].ending for i in plays]
    assert found == [Ending.succeeded, Ending.notebook_error, Ending.preempted, Ending.out_of_memory]
    assert len(backend.begun) == len(set(backend.begun)) == 4
