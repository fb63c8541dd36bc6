"""Allocations: nothing is given twice, any crash gives back, and no id leads out of the folder."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.wait import until
from kajiya.errors import NoCapacity
from kajiya.machine import allocations, capacity
from kajiya.machine.allocations import Allocations, AlreadyHeld, Holder, least_used
from kajiya.types import GiB, Resources


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 4 CPUs, 8 GiB, 2 GPUs of one kind and one of another."""
    monkeypatch.setattr(allocations, "totals", lambda: capacity.Totals([0, 1, 2, 3], 4.0, 8 * GiB))
    monkeypatch.setattr(capacity, "totals", lambda: capacity.Totals([0, 1, 2, 3], 4.0, 8 * GiB))
    monkeypatch.setenv("KAJIYA_FAKE_GPUS", "2xFake H100:80G,1xFake T4:16G")


def want(cpu: float = 1, memory: int = GiB, gpus: int = 0, gpu_kind: str | None = None) -> Resources:
    return Resources(cpu=cpu, memory=memory, gpus=gpus, gpu_kind=gpu_kind)


def test_cpus_of_jobs_add_up_and_servers_share(tmp_path: Path) -> None:
    place = Allocations(tmp_path)
    servers = [place.take("server", f"s{i}", "ann", "small", want(cpu=2), share_cpu=True) for i in range(3)]
    job = place.take("attempt", "j1/1", "ann", "large", want(cpu=3.5))
    with pytest.raises(NoCapacity) as refused:
        place.take("attempt", "j2/1", "bob", "small", want(cpu=1))
    assert refused.value.params == {"resource": "CPUs", "asked": "1", "free": "0.5", "total": "4"}
    half = place.take("attempt", "j3/1", "bob", "small", want(cpu=0.5))
    assert (len(job.cpus), len(half.cpus)) == (4, 1)
    free = capacity.machine_capacity(tmp_path)
    assert (free.cpu.free, free.memory.free) == (0, 3 * GiB)
    for one in (*servers, job, half, half):
        one.release()
    assert capacity.machine_capacity(tmp_path).cpu.free == 4
    assert list((tmp_path / "held").iterdir()) == []


def test_memory_and_gpus_are_refused_to_servers_too(tmp_path: Path) -> None:
    place = Allocations(tmp_path)
    held = place.take("server", "s", "ann", "big", want(memory=6 * GiB, gpus=2, gpu_kind="Fake H100"), share_cpu=True)
    for asked, resource in (
        (want(memory=3 * GiB), "memory"),
        (want(gpus=1, gpu_kind="Fake H100"), "GPUs"),
        (want(gpus=2), "GPUs"),
    ):
        with pytest.raises(NoCapacity) as refused:
            place.take("server", "t", "bob", "big", asked, share_cpu=True)
        assert refused.value.params["resource"] == resource
    other = place.take("server", "t", "bob", "big", want(gpus=1), share_cpu=True)
    assert set(held.gpus) == {"GPU-fake-0", "GPU-fake-1"} and other.gpus == ["GPU-fake-2"]
    by_kind = {g.kind: g.free for g in capacity.machine_capacity(tmp_path).gpus}
    assert by_kind == {"Fake H100": 0, "Fake T4": 0}


@pytest.mark.parametrize("id", ["../../etc/x", "a/b", "", "x" * 10_000, "学習\n'\"", "\udcff", ".", "j1/1\0"])
def test_hostile_ids_stay_in_the_folder(tmp_path: Path, id: str) -> None:
    place = Allocations(tmp_path / "machine")
    one = place.take("attempt", id, id, id, want())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["machine"]
    assert len(list((tmp_path / "machine/held").iterdir())) == 1
    assert [(h.id, h.owner) for h in place.live()] == [(id, id)]
    assert (place.used(id, id), place.used(id, id, "server"), place.used(id, "other")) == (1, 0, 0)
    with pytest.raises(AlreadyHeld):
        place.take("attempt", id, id, id, want())
    one.release()
    assert place.live() == []


HOLD = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from kajiya.machine.allocations import Allocations
a = Allocations(Path(sys.argv[1])).take("attempt", sys.argv[2], "ann", "small",
    SimpleNamespace(cpu=0.1, memory=64 << 20, gpus=0, gpu_kind=None))
print("held", flush=True)
time.sleep(600)
"""


def hold(folder: Path, id: str) -> subprocess.Popen[bytes]:
    one = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), id], stdout=subprocess.PIPE)
    assert one.stdout is not None and one.stdout.readline() == b"held\n"
    return one


def test_a_killed_holder_gives_back(tmp_path: Path) -> None:
    place = Allocations(tmp_path)
    one, two = hold(tmp_path, "a"), hold(tmp_path, "b")
    try:
        assert [h.id for h in sorted(place.live(), key=lambda h: h.id)] == ["a", "b"]
        one.kill()
        one.wait()
        assert [h.id for h in place.live()] == ["b"]
        place.take("attempt", "a", "ann", "small", want()).release()
    finally:
        for started in (one, two):
            started.kill()
            started.wait()
    assert place.live() == [] and list((tmp_path / "held").iterdir()) == []


def test_who_only_looks_never_clears_what_is_held(tmp_path: Path) -> None:
    """Many look at once while another takes and releases: whoever holds is always seen."""
    held = hold(tmp_path, "constant")
    code = (
        "import sys; from pathlib import Path; from kajiya.machine.allocations import Allocations\n"
        "place = Allocations(Path(sys.argv[1]))\n"
        "sys.exit(sum('constant' not in [h.id for h in place.live()] for _ in range(150)))"
    )
    lookers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    try:
        place = Allocations(tmp_path)
        while any(one.poll() is None for one in lookers):
            place.take("attempt", "j/1", "ann", "small", want()).release()
        assert [one.returncode for one in lookers] == [0, 0, 0]
    finally:
        for started in (held, *lookers):
            started.kill()
            started.wait()


def test_half_made_and_foreign_files_are_put_up_with(tmp_path: Path) -> None:
    place = Allocations(tmp_path)
    place.take("attempt", "a", "ann", "small", want()).release()
    (tmp_path / "held/.new-1-dead").write_text("{")
    (tmp_path / "held/garbage.json").write_text("not json")
    (tmp_path / "held/list.json").write_text("[1]")
    (tmp_path / "held/link.json").symlink_to("/etc/passwd")
    one = place.take("attempt", "b", "ann", "small", want())
    assert [h.id for h in place.live()] == ["b"]
    assert not (tmp_path / "held/.new-1-dead").exists()
    assert Path("/etc/passwd").exists()
    one.release()


def holder(cpu: float, cpus: list[int]) -> Holder:
    return Holder("attempt", "x", "ann", "small", "", cpu, GiB, cpus, [], False)


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        ([], 1, [0]),
        ([], 0.1, [0]),
        ([], 2.5, [0, 1, 2]),
        ([], 64, [0, 1, 2, 3]),
        ([holder(1, [0])], 1, [1]),
        ([holder(2, [0, 1]), holder(0.5, [2])], 2, [2, 3]),
        ([holder(4, [0, 1, 2, 3]), holder(1, [3])], 1, [0]),
        ([holder(1, [17])], 1, [0]),
    ],
)
def test_the_least_used_cpus(held: list[Holder], wanted: float, expected: list[int]) -> None:
    assert least_used([0, 1, 2, 3], held, wanted) == expected


def test_what_a_dead_holder_left_is_ended_first(tmp_path: Path) -> None:
    mark: dict[str, Any] = {"env": {**os.environ, "KAJIYA_TREE": "unit-left"}, "start_new_session": True}
    left = subprocess.Popen(["sleep", "600"], **mark)
    try:
        code = HOLD.replace("gpu_kind=None))", 'gpu_kind=None), tree="unit-left")')
        one = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), "a"], stdout=subprocess.PIPE)
        assert one.stdout is not None and one.stdout.readline() == b"held\n"
        one.kill()
        one.wait()
        assert Allocations(tmp_path).live() == []
        until(lambda: left.poll() is not None, 10, "the end of what was left")
    finally:
        left.kill()
        left.wait()
