"""A kill between any two steps of the loop: the next one ends with the same truth."""

import asyncio

import pytest

from helpers.world import Bench, Kill, Killed, World
from kajiya.errors import NoCapacity
from kajiya.types import Ending, Status

PLANS = {
    "success": {},
    "retried": {"retries": {Ending.kernel_died: 1}, "stride": 3},
    "failed": {"end": Ending.notebook_error, "stride": 4},
    "stopped": {"stop": True, "stride": 2},
}


async def _until_dead_or_done(bench, loop, kill, id, stop):
    try:
        for _ in range(200):
            if bench.job(id).status.final and not loop.active:
                return True
            await loop.tick()
            if stop and bench.job(id).status is Status.running:
                bench.store.request_stop(id, by="ann")
            await asyncio.sleep(0.001)
            bench.world.now += 2
            if kill.dead:
                return False
        raise AssertionError(f"never ended: {bench.job(id)}, {loop.active}")
    except Killed:
        return False
    finally:
        kill.dead = True  # tasks of a dead process do nothing more
        try:
            await loop.close()
        except Killed:
            pass


@pytest.mark.parametrize("plan", PLANS)
async def test_killed_between_any_two_steps_the_next_loop_ends_with_the_same_truth(tmp_path, plan):
    wanted = PLANS[plan]
    at, kills = 1, 0
    while True:
        bench = Bench(tmp_path / str(at), World())
        bench.world.looks_before_end = 10**9 if wanted.get("stop") else 2
        bench.world.default_end = wanted.get("end", Ending.succeeded)
        id = bench.submit(retries=wanted.get("retries", {}))
        if "retries" in wanted:
            bench.world.ends[id, 1] = Ending.kernel_died
        kill = Kill(at)
        done = await _until_dead_or_done(bench, bench.loop(kill), kill, id, wanted.get("stop"))
        if not done:
            kills += 1
            assert await _until_dead_or_done(bench, bench.loop(), Kill(), id, wanted.get("stop")), at
        job, where = bench.job(id), f"killed at step {at}: {bench.job(id)}"
        status = {"failed": Status.failed, "stopped": Status.stopped}.get(plan, Status.succeeded)
        assert job.status is status, where
        tries = 2 if plan == "retried" else 1
        assert [a.number for a in job.attempts] == list(range(1, tries + 1)), where
        assert all(a.status.final and a.ended_at for a in job.attempts), where
        # Never was one attempt begun twice; only a stop can come before the first begin.
        assert max(bench.world.begun.values(), default=0) <= 1, where
        assert set(bench.world.begun) == {(id, n + 1) for n in range(tries)} or plan == "stopped", where
        assert not bench.store.active() and not bench.store.queued(), where
        bench.store.close()
        if done:
            break
        # Where a plan shares its beginning with another, not each step is taken again.
        at += wanted.get("stride", 1)
    assert kills > 8


async def test_killed_while_no_capacity_was_found(tmp_path):
    at = 1
    while True:
        bench = Bench(tmp_path / str(at), World())
        bench.world.refuse = [NoCapacity(resource="CPUs", asked="1", free="0", total="4")]
        id = bench.submit(retries={})
        kill = Kill(at)
        done = await _until_dead_or_done(bench, bench.loop(kill), kill, id, False)
        if not done:
            assert await _until_dead_or_done(bench, bench.loop(), Kill(), id, False)
        job = bench.job(id)
        # Killed before the refusal was stored, the same attempt starts again.
        assert job.status is Status.succeeded and [a.number for a in job.attempts] in ([1], [2]), (at, job)
        bench.store.close()
        if done:
            break
        at += 2
