"""What the service asks of its machine: profiles that follow their file, kernels of homes, what jobs leave free."""

import os
from pathlib import Path

import pytest

from kajiya.errors import ConfigInvalid, InvalidName, InvalidRequest
from kajiya.machine.allocations import Allocations
from kajiya.machine.homes import Homes
from kajiya.types import GiB, MiB, Resources
from kajiya_hub.this_machine import Kernels, Machine, Profiles

GOOD = "profiles:\n  - {slug: one, name: One, limit_per_user: 2}\nlimits: {jobs_active: 3}\n"


def write(path: Path, text: str, at: int) -> None:
    path.write_text(text, "utf-8")
    os.utime(path, (at, at))


def test_profiles_follow_their_file_and_a_wrong_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "profiles.yaml"
    profiles = Profiles(path, Machine(tmp_path / "machine"))
    assert "small" in [p.slug for p in profiles().profiles]
    write(path, GOOD, 1000)
    assert [p.slug for p in profiles().profiles] == ["one"]
    assert profiles.profile_limits() == {"one": 2}
    assert profiles.limits().jobs_active == 3
    write(path, GOOD.replace("slug", "slog"), 2000)
    assert [p.slug for p in profiles().profiles] == ["one"]
    assert "slug is missing" in caplog.text
    told = len(caplog.records)
    profiles()
    assert len(caplog.records) == told
    write(path, GOOD.replace("one", "two"), 3000)
    assert [p.slug for p in profiles().profiles] == ["two"]
    path.unlink()
    assert "small" in [p.slug for p in profiles().profiles]


def test_a_file_that_was_never_good_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "profiles.yaml"
    write(path, "profiles: 3\n", 1000)
    with pytest.raises(ConfigInvalid):
        Profiles(path, Machine(tmp_path / "machine"))()


def kernel(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "kernel.json").write_text("{}")


def test_kernels_are_those_of_the_environment_and_the_home(tmp_path: Path) -> None:
    homes = Homes(tmp_path / "homes")
    kernels = Kernels(homes, system=[tmp_path / "system"])
    assert kernels("mari", "default") is None
    with pytest.raises(InvalidRequest):
        kernels("mari", "other")
    with pytest.raises(InvalidName):
        kernels("mari", "../..")
    home = homes.of("mari")
    kernel(home.environment() / "share/jupyter/kernels", "julia")
    kernel(home.jupyter_path / "kernels", "kajiya-x")
    kernel(tmp_path / "system", "bash")
    (home.jupyter_path / "kernels" / "empty").mkdir()
    assert kernels("mari", "default") == ["bash", "julia", "kajiya-x", "python3"]
    assert kernels("hanako", "default") is None


def test_without_jobs_only_what_servers_hold_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAJIYA_FAKE_GPUS", "2xFake H100:80G")
    machine = Machine(tmp_path)
    allocations = Allocations(tmp_path)
    all_of_it = machine.capacity()
    asked = Resources(cpu=1, memory=128 * MiB, gpus=1, gpu_kind=None)
    server = allocations.take("server", "s1", "mari", "gpu", asked, share_cpu=True)
    attempt = allocations.take("attempt", "j1-1", "mari", "gpu", asked, share_cpu=False)
    try:
        now, without = machine.capacity(), machine.without_jobs()
        assert (now.gpus[0].free, without.gpus[0].free) == (0, 1)
        assert all_of_it.memory.free - now.memory.free == 256 * MiB
        assert all_of_it.memory.free - without.memory.free == 128 * MiB
        assert without.cpu.free == all_of_it.cpu.free == now.cpu.free + 1
        assert machine.servers() == {("mari", "gpu"): 1}
        assert machine.used("mari", "gpu") == 2
    finally:
        attempt.release()
        server.release()
    assert machine.capacity().memory.free == all_of_it.memory.free
    assert all_of_it.memory.total > GiB // 4
