"""Memory of a tree: what counts, when to look again, and the control group by files of the same form."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.wait import until
from kajiya.machine import memory
from kajiya.machine.memory import Cgroup, Look, Polled, Process
from kajiya.types import GiB, MiB


def test_the_biggest_process_of_a_look() -> None:
    look = Look(60, [Process(1, 10), Process(2, 30), Process(3, 20)], True)
    assert look.biggest() == (2, 30)
    assert look.biggest(without=(2,)) == (3, 20)
    assert Look(0, [], False).biggest() is None


@pytest.mark.parametrize(
    ("used", "allowed", "seconds"),
    [(0, 64 * GiB, 1.0), (0, 2 * GiB, 0.5), (GiB, GiB, 0.05), (2 * GiB, GiB, 0.05), (60 * GiB, 62 * GiB, 0.5)],
)
def test_the_less_room_the_sooner_the_next_look(used: int, allowed: int, seconds: float) -> None:
    assert memory.soon(Look(used, [], False), allowed) == seconds


def test_a_look_at_a_real_tree() -> None:
    code = "import time; x = bytearray(b'x' * (50 << 20)); print(flush=True); time.sleep(60)"
    one = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert one.stdout is not None
        one.stdout.readline()
        meter = Polled(GiB, os.getpid())
        (mine,) = [p for p in meter.look().processes if p.pid == one.pid]
        assert 50 * MiB < mine.used < 120 * MiB
        assert abs(memory.proportional(one.pid) - mine.used) < 30 * MiB
        small = Polled(20 * MiB, os.getpid())
        look = until(lambda: (found := small.look()).exceeded and found)
        assert look.biggest() is not None and look.used >= 50 * MiB and small.peak >= 50 * MiB
    finally:
        one.kill()
        one.wait()
    assert one.pid not in [p.pid for p in meter.look().processes]
    assert memory.resident(one.pid) == memory.proportional(one.pid) == 0


def test_a_measurement_that_hangs_holds_nothing_up_and_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    release = threading.Event()

    def slow(pid: int) -> int:
        release.wait(30)
        return 2 * GiB

    monkeypatch.setattr(memory, "MEASURE_SECONDS", 0.01)
    monkeypatch.setattr(memory, "proportional", slow)
    monkeypatch.setattr(memory, "descendants", lambda roots: [1])
    monkeypatch.setattr(memory, "resident", lambda pid: 2 * GiB)
    meter = Polled(GiB)
    assert not meter.look().exceeded
    release.set()
    assert until(lambda: meter.look().exceeded)


def control_group(tmp_path: Path, kills: int = 0, used: int = 0) -> Path:
    group = tmp_path / "kajiya-x"
    group.mkdir(exist_ok=True)
    (group / "memory.events").write_text(f"low 0\nhigh 0\nmax 3\noom 1\noom_kill {kills}\noom_group_kill 0\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.peak").write_text(f"{used + MiB}\n")
    (group / "cgroup.procs").write_text("")
    (group / "cgroup.kill").write_text("")
    return group


def test_a_control_group_tells_its_use_and_names_whom_the_kernel_ended(tmp_path: Path) -> None:
    group = control_group(tmp_path, used=100 * MiB)
    small, big = (subprocess.Popen(["sleep", "60"]), subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1))
    try:
        until(lambda: memory.resident(big.pid) > memory.resident(small.pid))
        meter = Cgroup(group, GiB, os.getpid())
        look = meter.look()
        assert (look.used, look.killed, look.exceeded, meter.peak) == (100 * MiB, None, False, 101 * MiB)
        big.kill()
        big.wait()
        small.kill()
        small.wait()
        control_group(tmp_path, kills=1)
        assert meter.look().killed == Path(sys.executable).name
        assert meter.look().killed is None, "each is told once"
        meter.join()
        assert (group / "cgroup.procs").read_text() == "0"
        memory.end_group(group, seconds=0)
        assert (group / "cgroup.kill").read_text() == "1"
    finally:
        for one in (small, big):
            one.kill()
            one.wait()


@pytest.mark.parametrize(
    ("control", "controllers", "own", "expected"),
    [
        ("cpu memory", "cpu memory", "/user/app", "user/app"),
        ("", "cpu", "/user/app", None),
        (None, "", "/user/app", None),
        ("", "", "/", None),
    ],
)
def test_a_delegated_group_is_found_or_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    control: str | None,
    controllers: str,
    own: str,
    expected: str | None,
) -> None:
    here = tmp_path / own.strip("/")
    here.mkdir(parents=True, exist_ok=True)
    if control is not None:
        (here / "cgroup.subtree_control").write_text(control)
        (here / "cgroup.controllers").write_text(controllers)
        (here / "cgroup.procs").write_text("")
    files = {
        "/proc/self/mountinfo": f"30 23 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw\n".encode(),
        "/proc/self/cgroup": f"0::{own}\n".encode(),
    }
    real = memory.read_bytes
    monkeypatch.setattr(memory, "read_bytes", lambda path, *a: files.get(path) or real(path, *a))
    found = memory.delegated()
    assert found == (None if expected is None else tmp_path / expected)
    meter = memory.meter(GiB, "x")
    if found is None:
        assert isinstance(meter, Polled)
    else:
        assert isinstance(meter, Cgroup)
        assert (found / "kajiya-x/memory.max").read_text() == str(GiB)


def test_the_kernels_count_of_ends_is_a_number() -> None:
    assert memory.kernel_kills() >= 0
