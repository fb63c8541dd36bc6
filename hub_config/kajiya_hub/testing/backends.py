"""The contract of a backend, as a pytest class. To test yours:

class TestMine(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path):
        return MyBackend(..., command=lambda home, spec: program(spec))

    async def lose(self, backend, ref):
        ...  # destroy the machine of that attempt, as nothing but a power cut would
"""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kajiya.types import Ending, Environment, MiB, Resources
from kajiya_hub.backends.base import AttemptRef, AttemptSpec, Backend, HasCapacity, Observation, State, Watches
from kajiya_hub.backends.fake import PLAY_VARIABLE

PLAYS = {
    "succeed": "pass",
    "fail": "raise SystemExit(1)",
    "wait": "import time; time.sleep(600)",
    "deaf": "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); "
    "time.sleep(600)",
    "hog": "import time\nheld = []\nwhile True:\n    held.append(b'x' * (32 << 20))\n    time.sleep(0.01)",
    "print": "import sys, time\nfor _ in range(1000):\n    print('hello', flush=True)\ntime.sleep(600)",
}
"""What an attempt of the contract does, by the name that its environment gives in KAJIYA_PLAY."""
PATIENCE = 30.0


def program(spec: AttemptSpec) -> list[str]:
    """The command by which a real backend plays what an attempt of the contract is to do."""
    return [sys.executable, "-c", PLAYS[spec.env[PLAY_VARIABLE]]]


Make = Callable[..., AttemptSpec]


class BackendContract:
    """What every backend must do; a subclass gives the fixture `backend` and the method `lose`."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        """The backend to test."""
        raise NotImplementedError

    async def lose(self, backend: Any, ref: AttemptRef) -> None:
        """Destroys the machine that an attempt is on."""
        raise NotImplementedError

    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        """Makes the specification of an attempt that plays something."""

        def make(play: str, job: str = "j1", number: int = 1, **changes: Any) -> AttemptSpec:
            directory = tmp_path / "jobs" / job / "attempts" / str(number)
            directory.mkdir(parents=True)
            given = directory.parent.parent / "input"
            given.mkdir(exist_ok=True)
            (given / "notebook.ipynb").write_text("{}")
            fields: dict[str, Any] = {
                "job": job,
                "number": number,
                "owner": "ann",
                "profile": "small",
                "resources": Resources(cpu=0.1, memory=256 * MiB, gpus=0, gpu_kind=None),
                "environment": Environment(),
                "directory": directory,
                "token": "not-so-secret",
                "env": {PLAY_VARIABLE: play},
            }
            return AttemptSpec(**(fields | changes))

        return make

    # --- helpers
    async def drive(self, backend: Backend, spec: AttemptSpec, state: State | None = None) -> AttemptRef:
        """Starts an attempt to the end of its start."""
        last: State = dict(state or {})
        async for step in backend.start(spec, state):
            last = step
        return reference(spec, last)

    async def until(self, backend: Backend, ref: AttemptRef, *phases: str) -> Observation:
        """Looks until an attempt is in one of these phases."""
        deadline = time.monotonic() + PATIENCE
        while True:
            (found,) = await backend.check([ref])
            if found.phase in phases:
                return found
            assert time.monotonic() < deadline, f"{ref.job}/{ref.number} stays {found}, waited for {phases}"
            await asyncio.sleep(0.02)

    # --- start, check, end
    async def test_success(self, backend: Backend, make: Make) -> None:
        ref = await self.drive(backend, make("succeed"))
        found = await self.until(backend, ref, "ended", "gone")
        assert (found.phase, found.ending, found.exit_code, found.reason) == ("ended", Ending.succeeded, 0, None)
        assert found.usage is not None and found.usage.wall_seconds >= 0
        assert await backend.check([ref]) == [found], "an end does not change"

    async def test_failure(self, backend: Backend, make: Make) -> None:
        ref = await self.drive(backend, make("fail"))
        found = await self.until(backend, ref, "ended", "gone")
        assert (found.phase, found.ending, found.exit_code) == ("ended", Ending.notebook_error, 1)

    async def test_running_until_stopped(self, backend: Backend, make: Make) -> None:
        ref = await self.drive(backend, make("wait"))
        assert (await self.until(backend, ref, "running", "ended", "gone")).phase == "running"
        await backend.stop(ref)
        assert (await self.until(backend, ref, "ended", "gone")).ending == Ending.stopped

    async def test_check_answers_in_order_and_in_bulk(self, backend: Backend, make: Make) -> None:
        plays = ["succeed", "wait", "fail", "succeed"]
        refs = [await self.drive(backend, make(play, job=f"j{i}")) for i, play in enumerate(plays)]
        for i in (0, 2, 3):
            await self.until(backend, refs[i], "ended")
        await self.until(backend, refs[1], "running")
        forward, backward = await backend.check(refs), await backend.check(refs[::-1])
        assert [o.ending for o in forward] == [Ending.succeeded, None, Ending.notebook_error, Ending.succeeded]
        assert [o.phase for o in backward] == [o.phase for o in forward[::-1]]
        assert await backend.check([]) == []
        await backend.stop(refs[1])
        await self.until(backend, refs[1], "ended")

    async def test_an_unknown_attempt_is_gone(self, backend: Backend, make: Make, tmp_path: Path) -> None:
        never = AttemptRef("never", 1, "ann", tmp_path / "jobs" / "never" / "attempts" / "1", {})
        assert [o.phase for o in await backend.check([never])] == ["gone"]
        await backend.stop(never)

    # --- stop
    async def test_stop_twice_and_after_the_end(self, backend: Backend, make: Make) -> None:
        ref = await self.drive(backend, make("wait"))
        await self.until(backend, ref, "running")
        await asyncio.gather(backend.stop(ref), backend.stop(ref))
        found = await self.until(backend, ref, "ended", "gone")
        assert (found.phase, found.ending) == ("ended", Ending.stopped)
        await backend.stop(ref)
        assert await backend.check([ref]) == [found]

    async def test_stop_of_one_that_ended_changes_nothing(self, backend: Backend, make: Make) -> None:
        ref = await self.drive(backend, make("succeed"))
        found = await self.until(backend, ref, "ended")
        await backend.stop(ref)
        assert await backend.check([ref]) == [found]

    async def test_stop_right_after_the_start(self, backend: Backend, make: Make) -> None:
        ref = await self.drive(backend, make("wait"))
        await backend.stop(ref)
        found = await self.until(backend, ref, "ended", "gone")
        assert found.ending in (Ending.stopped, None)

    async def test_who_does_not_listen_is_ended_after_the_grace(self, backend: Backend, make: Make) -> None:
        ref = await self.drive(backend, make("deaf"))
        await self.until(backend, ref, "running")
        await self.printed(backend, ref, b"deaf", optional=True)
        await backend.stop(ref, grace=0.3)
        found = await self.until(backend, ref, "ended", "gone")
        assert (found.phase, found.ending) == ("ended", Ending.stopped)

    async def test_stop_within_a_start(self, backend: Backend, make: Make) -> None:
        """A start that is cut short after its first step, and stopped, never begins, also if it is resumed."""
        spec = make("wait")
        start = backend.start(spec)
        state = await anext(start)
        await close(start)
        ref = reference(spec, state)
        assert (await backend.check([ref]))[0].phase == "starting"
        await backend.stop(ref)
        found = await self.until(backend, ref, "ended", "gone")
        assert found.ending in (Ending.stopped, None)
        resumed = await self.drive(backend, spec, state)
        again = await self.until(backend, resumed, "ended", "gone")
        assert again == found

    # --- crash and resume
    @pytest.mark.parametrize("cut", [0, 1, 2])
    async def test_a_start_cut_short_is_resumed_once(self, backend: Backend, make: Make, cut: int) -> None:
        """Cut after each step, and once more with the state of the step before, as if it had not been stored."""
        spec = make("wait")
        states: list[State | None] = [None]
        start = backend.start(spec)
        for _ in range(cut):
            try:
                states.append(await anext(start))
            except StopAsyncIteration:
                break
        await close(start)
        refs = [await self.drive(backend, spec, state) for state in reversed(states)]
        for ref in refs:
            assert (await self.until(backend, ref, "running", "ended", "gone")).phase == "running"
        await backend.stop(refs[0])
        for ref in refs:
            assert (await self.until(backend, ref, "ended", "gone")).ending == Ending.stopped
        assert await self.count(backend, spec) in (None, 1)

    async def test_two_starts_at_once_make_one_attempt(self, backend: Backend, make: Make) -> None:
        spec = make("wait")
        refs = await asyncio.gather(*(self.drive(backend, spec) for _ in range(3)))
        for ref in refs:
            assert (await self.until(backend, ref, "running", "ended", "gone")).phase == "running"
        await backend.stop(refs[0])
        found = [await self.until(backend, ref, "ended", "gone") for ref in refs]
        assert {o.ending for o in found} == {Ending.stopped}
        assert await self.count(backend, spec) in (None, 1)

    async def count(self, backend: Any, spec: AttemptSpec) -> int | None:
        """How often the attempt really began, where the backend can tell."""
        return None

    # --- limits and losses
    async def test_time_limit(self, backend: Backend, make: Make) -> None:
        ref = await self.drive(backend, make("wait", time_limit=1))
        found = await self.until(backend, ref, "ended", "gone")
        assert (found.ending, found.reason and found.reason.code) == (Ending.timed_out, "time.limit")

    async def test_out_of_memory_is_named(self, backend: Backend, make: Make) -> None:
        ref = await self.drive(backend, make("hog"))
        found = await self.until(backend, ref, "ended", "gone")
        assert found.ending == Ending.out_of_memory
        assert found.reason is not None and {"process", "used", "allowed"} <= found.reason.params.keys()

    async def test_a_lost_machine_is_gone_not_failed(self, backend: Backend, make: Make) -> None:
        ref = await self.drive(backend, make("wait"))
        await self.until(backend, ref, "running")
        await self.lose(backend, ref)
        found = await self.until(backend, ref, "gone", "ended")
        assert (found.phase, found.ending) == ("gone", None)
        await backend.stop(ref)
        assert [o.phase for o in await backend.check([ref])] == ["gone"]
        resumed = await self.drive(backend, make_again(ref, make), ref.state)
        assert (await self.until(backend, resumed, "gone", "ended", "running")).phase == "gone", "what is gone stays so"

    async def test_a_superseded_attempt_is_apart_from_its_successor(self, backend: Backend, make: Make) -> None:
        first = await self.drive(backend, make("wait"))
        await self.until(backend, first, "running")
        await self.lose(backend, first)
        await self.until(backend, first, "gone")
        second = await self.drive(backend, make("wait", number=2))
        await self.until(backend, second, "running")
        await backend.stop(first)
        await asyncio.sleep(0.2)
        assert [o.phase for o in await backend.check([first, second])] == ["gone", "running"]
        await backend.stop(second)
        await self.until(backend, second, "ended")

    # --- logs
    async def test_logs_from_an_offset(self, backend: Backend, make: Make) -> None:
        ref = await self.drive(backend, make("print"))
        whole = await self.printed(backend, ref, b"hello\n" * 1000)
        assert whole == b"hello\n" * 1000
        assert await read(backend, ref, 5990) == whole[5990:]
        assert await read(backend, ref, 6000) == b""
        assert await read(backend, ref, 10**9) == b""
        await backend.stop(ref)
        await self.until(backend, ref, "ended")
        assert (await read(backend, ref))[:6000] == whole

    async def printed(self, backend: Backend, ref: AttemptRef, text: bytes, optional: bool = False) -> bytes:
        """Waits until an attempt has printed something; `optional` where a backend may print nothing."""
        deadline = time.monotonic() + (1.0 if optional else PATIENCE)
        while True:
            found = await read(backend, ref)
            if text in found or (optional and time.monotonic() > deadline):
                return found
            assert time.monotonic() < deadline, f"printed only {found[:100]!r}"
            await backend.check([ref])
            await asyncio.sleep(0.02)

    async def test_logs_of_an_unknown_attempt_are_empty(self, backend: Backend, tmp_path: Path) -> None:
        never = AttemptRef("never", 1, "ann", tmp_path / "jobs" / "never" / "attempts" / "1", {})
        assert await read(backend, never) == b""

    # --- powers
    async def test_capacity_is_taken_and_given_back(self, backend: Backend, make: Make) -> None:
        if not isinstance(backend, HasCapacity):
            return
        before = backend.capacity()
        ref = await self.drive(backend, make("wait"))
        await self.until(backend, ref, "running")
        assert backend.capacity().memory.free == before.memory.free - 256 * MiB
        await backend.stop(ref)
        await self.until(backend, ref, "ended")
        assert backend.capacity().memory.free == before.memory.free

    async def test_changes_tell_of_an_end(self, backend: Backend, make: Make) -> None:
        if not isinstance(backend, Watches):
            return
        ref = await self.drive(backend, make("wait"))
        await self.until(backend, ref, "running")
        changes = backend.changes()

        async def until_ended() -> None:
            async for _ in changes:
                (found,) = await backend.check([ref])
                if found.phase == "ended":
                    return

        watcher = asyncio.create_task(until_ended())
        await backend.stop(ref)
        await asyncio.wait_for(watcher, PATIENCE)


async def read(backend: Backend, ref: AttemptRef, offset: int = 0) -> bytes:
    """All that an attempt printed from an offset."""
    return b"".join([part async for part in backend.logs(ref, offset)])


async def close(start: Any) -> None:
    """What a crash does to a start: it goes no further."""
    await start.aclose()


def reference(spec: AttemptSpec, state: State) -> AttemptRef:
    """The reference to an attempt, as the loop keeps it."""
    return AttemptRef(spec.job, spec.number, spec.owner, spec.directory, state)


def make_again(ref: AttemptRef, make: Make) -> AttemptSpec:
    """The same attempt once more, as a loop that has forgotten would ask for it."""
    spec = make("wait", job="other")
    return AttemptSpec(
        ref.job, ref.number, ref.owner, spec.profile, spec.resources, spec.environment, ref.directory, "again", spec.env
    )
