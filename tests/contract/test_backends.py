"""Every backend keeps the contract that is shipped in `kajiya_hub.testing`."""

import os
import signal
from pathlib import Path

import pytest

pytest.register_assert_rewrite("kajiya_hub.testing.backends")

from helpers.homes import PlainHomes  # noqa: E402
from kajiya.machine.launch import standing  # noqa: E402
from kajiya_hub.backends.base import AttemptRef, AttemptSpec  # noqa: E402
from kajiya_hub.backends.local import LocalBackend  # noqa: E402
from kajiya_hub.testing import BackendContract, FakeBackend, program  # noqa: E402


class TestFake(BackendContract):
    @pytest.fixture
    def backend(self) -> FakeBackend:
        return FakeBackend()

    async def lose(self, backend: FakeBackend, ref: AttemptRef) -> None:
        backend.lose(ref.job, ref.number)

    async def count(self, backend: FakeBackend, spec: AttemptSpec) -> int:
        return backend.begun.count((spec.job, spec.number))


class TestLocal(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> LocalBackend:
        return LocalBackend(PlainHomes(tmp_path), tmp_path / "machine", command=lambda _, spec: program(spec))

    async def lose(self, backend: LocalBackend, ref: AttemptRef) -> None:
        who = standing(ref.directory, "attempt", f"{ref.job}/{ref.number}").supervisor
        assert who is not None
        os.kill(who.pid, signal.SIGKILL)
