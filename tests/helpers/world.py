"""A backend whose attempts live outside the loop, a clock to turn, and a kill at any chosen step."""

import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from kajiya.errors import NoCapacity
from kajiya.types import Amount, Capacity, Ending, Environment, GiB, Reason, Resources, Usage
from kajiya_hub.backends.base import Observation
from kajiya_hub.endings import Retrying
from kajiya_hub.reconcile import Reconciler, Site
from kajiya_hub.store.files import JobFiles
from kajiya_hub.store.ids import new_id
from kajiya_hub.store.rows import NewJob
from kajiya_hub.store.store import Store
from kajiya_hub.tracked import LoopSettings

NOTEBOOK = b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'


class Killed(BaseException):
    """The process is gone at this point; nothing can catch it."""


class Kill:
    """Counts steps, and from the chosen one on everything fails as in a dead process."""

    def __init__(self, at=None):
        self.at, self.steps, self.dead = at, 0, False

    def step(self):
        if self.dead:
            raise Killed
        self.steps += 1
        if self.at is not None and self.steps >= self.at:
            self.dead = True
            raise Killed


class Through:
    """Calls another object's methods with a step before and after each."""

    def __init__(self, inner, kill):
        self._inner, self._kill = inner, kill

    def __getattr__(self, name):
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        def call(*args, **kwargs):
            self._kill.step()
            result = value(*args, **kwargs)
            self._kill.step()
            return result

        return call


@dataclass
class Process:
    """An attempt that runs somewhere, whatever becomes of the loop."""

    spec: object
    ending: Ending | None = None
    reason: Reason | None = None
    gone: bool = False
    stopped: bool = False
    looks: int = 0


@dataclass
class World:
    """What there is outside the loop: the machine, its processes, the time."""

    now: float = 1_800_000_000.0
    cpus: float = 4
    free_cpus: float = 4
    processes: dict = field(default_factory=dict)
    begun: Counter = field(default_factory=Counter)
    prevented: set = field(default_factory=set)
    refuse: list = field(default_factory=list)
    unreachable: bool = False
    ends: dict = field(default_factory=dict)
    default_end: Ending = Ending.succeeded
    looks_before_end: int = 1
    work: object = None

    def capacity(self):
        return Capacity(
            cpu=Amount(total=self.cpus, free=self.free_cpus),
            memory=Amount(total=64 * GiB, free=64 * GiB),
            at=datetime.now(UTC),
        )


class WorldBackend:
    """Keeps the contract of `kajiya_hub.backends.base.Backend` with processes that are entries in a dict."""

    def __init__(self, world, kill=None):
        self.world, self.kill = world, kill or Kill()

    async def start(self, spec, state=None):
        self.kill.step()
        key = (spec.job, spec.number)
        if self.world.refuse:
            raise self.world.refuse.pop(0)
        if key not in self.world.processes and key not in self.world.prevented:
            spec.directory.mkdir(parents=True, exist_ok=True)
            yield {"step": 1}
            self.kill.step()
            if key not in self.world.processes and key not in self.world.prevented:
                self.world.begun[key] += 1
                self.world.processes[key] = Process(spec)
                (spec.directory / "work").mkdir(exist_ok=True)
                if self.world.work is not None:
                    self.world.work(spec)
            self.kill.step()
        yield {"step": 2}
        self.kill.step()

    async def check(self, attempts):
        self.kill.step()
        await asyncio.sleep(0)
        return [self._look((a.job, a.number), a.state) for a in attempts]

    def _look(self, key, state):
        if self.world.unreachable:
            return Observation("unreachable")
        process = self.world.processes.get(key)
        if process is None:
            if key in self.world.prevented or not state:
                return Observation("gone")
            return Observation("starting")
        if process.gone:
            return Observation("gone")
        process.looks += 1
        ending = process.ending
        if process.stopped:
            ending = Ending.stopped
        if ending is None and process.looks > self.world.looks_before_end:
            ending = self.world.ends.get(key, self.world.default_end)
        if ending is None:
            return Observation("running")
        usage = Usage(cpu_seconds=1, memory_peak=1, wall_seconds=1)
        return Observation("ended", ending, 0 if ending is Ending.succeeded else 1, process.reason, usage)

    async def stop(self, attempt, grace=10):
        self.kill.step()
        key = (attempt.job, attempt.number)
        if key in self.world.processes:
            self.world.processes[key].stopped = True
        else:
            self.world.prevented.add(key)

    async def logs(self, attempt, offset=0):
        yield b""


FAST = LoopSettings(retention_every=1e9)


@cache
def empty_store():
    """The bytes of a new store, as making one takes a while."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "k.sqlite"
        Store(str(path)).close()
        return path.read_bytes()


class Bench:
    """A store, job folders and loops over one world, in a temporary folder."""

    def __init__(self, path, world=None):
        self.world = world or World()
        self.path = path
        self.files = JobFiles(path / "jobs")
        (path / "k.sqlite").write_bytes(empty_store())
        self.store = Store(str(path / "k.sqlite"), clock=lambda: self.world.now)
        self.loops = []

    def submit(self, owner="ann", **changes):
        id = new_id(self.world.now)
        with self.files.receive(id) as inbox:
            digest = inbox.notebook([NOTEBOOK])
            inbox.commit()
        values = {
            "id": id,
            "owner": owner,
            "name": "n",
            "notebook": "n.ipynb",
            "notebook_sha256": digest,
            "profile": "small",
            "resources": Resources(cpu=1, memory=GiB),
            "environment": Environment(),
        }
        return self.store.submit(NewJob(**(values | changes)))[0].id

    def loop(self, kill=None, settings=FAST, site=None, backend=None):
        kill = kill or Kill()
        loop = Reconciler(
            Through(self.store, kill),
            backend or WorldBackend(self.world, kill),
            Through(self.files, kill) if kill.at else self.files,
            site or Site(capacity=self.world.capacity),
            settings,
            Retrying(base=10),
            clock=lambda: self.world.now,
        )
        self.loops.append(loop)
        return loop

    def job(self, id):
        return self.store.job(id)

    def statuses(self):
        return Counter(str(j.status) for j in self.store.jobs(limit=500).items)


async def rounds(loop, world, until, most=300, seconds=0.5):
    """Ticks the loop and the clock until something holds; a dead loop ends it too."""
    for _ in range(most):
        if until():
            return True
        await loop.tick()
        for _ in range(3):
            await asyncio.sleep(0.001)
        world.now += seconds
    return until()


def ended(bench, *ids):
    return lambda: all(bench.job(i).status.final for i in ids)


async def finish(bench, *ids, loop=None, most=300, seconds=0.5):
    loop = loop or bench.loop()
    assert await rounds(loop, bench.world, ended(bench, *ids), most, seconds), [bench.job(i) for i in ids]
    for _ in range(3):
        await loop.tick()
        await asyncio.sleep(0.002)
    await loop.close()
    return loop


__all__ = ["Bench", "Kill", "Killed", "NoCapacity", "World", "WorldBackend", "ended", "finish", "rounds"]
