"""What a machine has: limits of control groups, fake GPUs, NVML by a stand-in, and which GPUs are chosen."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from kajiya.machine import capacity, gpus
from kajiya.machine.allocations import Allocations
from kajiya.machine.gpus import Gpu, choose, parse_fake
from kajiya.types import GiB, Resources

H, T = "Fake H100", "Fake T4"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [("2xFake H100:80G", [(H, 80)] * 2), ("1xFake H100:80G, 1 x Fake T4:16G", [(H, 80), (T, 16)]), ("", [])],
)
def test_fake_gpus(text: str, kinds: list[tuple[str, int]]) -> None:
    found = parse_fake(text)
    assert [(g.kind, g.memory // GiB) for g in found] == kinds
    assert len({g.uuid for g in found}) == len(found)


@pytest.mark.parametrize("text", ["H100", "2x:80G", "twoxH:1G", "1xH:much"])
def test_fake_gpus_that_are_misspelt(text: str) -> None:
    with pytest.raises(ValueError, match=r"FAKE_GPUS|size"):
        parse_fake(text)


@pytest.mark.parametrize(
    ("free", "count", "kind", "chosen"),
    [
        ("hht", 1, None, "t"),
        ("hht", 2, None, "hh"),
        ("hht", 3, None, "hht"),
        ("hht", 1, H, "h"),
        ("hht", 3, H, None),
        ("t", 1, H, None),
        ("", 1, None, None),
    ],
)
def test_choice_of_gpus(free: str, count: int, kind: str | None, chosen: str | None) -> None:
    every = [Gpu(str(i), H if c == "h" else T, (80 if c == "h" else 16) * GiB) for i, c in enumerate(free)]
    found = choose(every, count, kind)
    assert (None if found is None else "".join("h" if g.kind == H else "t" for g in found)) == chosen


class FakeNvml(types.ModuleType):
    """As much of pynvml as is used: a GPU is a dict; a broken one raises."""

    class NVMLError(Exception):
        pass

    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, devices: list[dict[str, Any]]) -> None:
        super().__init__("pynvml")
        self.devices = devices

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, i: int) -> Any:
        if self.devices[i].get("broken"):
            raise self.NVMLError
        return self.devices[i]

    def nvmlDeviceGetMigMode(self, d: Any) -> list[int]:
        if "slices" not in d:
            raise self.NVMLError
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, d: Any) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, d: Any, i: int) -> Any:
        if i >= len(d["slices"]):
            raise self.NVMLError
        return d["slices"][i]

    def nvmlDeviceGetMemoryInfo(self, d: Any) -> Any:
        if d.get("unified"):
            raise self.NVMLError
        return types.SimpleNamespace(total=80 * GiB)

    def nvmlDeviceGetComputeRunningProcesses(self, d: Any) -> list[Any]:
        return d.get("processes", [])

    def nvmlDeviceGetUUID(self, d: Any) -> Any:
        return d["uuid"]

    def nvmlDeviceGetName(self, d: Any) -> Any:
        return d.get("name", "NVIDIA H100")


def use_nvml(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    monkeypatch.delenv("KAJIYA_FAKE_GPUS", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(gpus, "_nvml", None)


def test_gpus_by_nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    devices = [
        {"uuid": b"GPU-a", "name": b"NVIDIA H100", "processes": []},
        {"broken": True},
        {"uuid": "GPU-b", "processes": [object()]},
        {"uuid": "GPU-c", "slices": [{"uuid": "MIG-1", "name": "NVIDIA H100 MIG 1g.10gb"}]},
        {"uuid": "GPU-d", "name": "GH200", "unified": True},
    ]
    use_nvml(monkeypatch, FakeNvml(devices))
    found = gpus.gpus()
    assert [(g.uuid, g.busy, g.memory // GiB) for g in found] == [
        ("GPU-a", False, 80),
        ("GPU-b", True, 80),
        ("MIG-1", False, 80),
        ("GPU-d", False, 0),
    ]
    seen = {g.kind: (g.total, g.free, g.memory) for g in capacity.machine_capacity(tmp_path).gpus}
    assert seen["NVIDIA H100"] == (2, 1, 80 * GiB), "who computes outside of Kajiya counts as not free"
    assert seen["GH200"] == (1, 1, None)
    wants = Resources(cpu=0.1, memory=64 << 20, gpus=1, gpu_kind="NVIDIA H100")
    with_it = Allocations(tmp_path).take("attempt", "j/1", "ann", "gpu", wants)
    assert with_it.gpus == ["GPU-a"]
    with_it.release()


def test_no_nvml_means_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    use_nvml(monkeypatch, None)
    assert gpus.gpus() == []

    class Driverless(FakeNvml):
        def nvmlInit(self) -> None:
            raise self.NVMLError

    use_nvml(monkeypatch, Driverless([]))
    assert gpus.gpus() == []


MOUNTS_V2 = "30 23 0:26 / {root} rw - cgroup2 cgroup2 rw"
MOUNTS_V1 = (
    "31 23 0:27 / {root}/memory rw - cgroup cgroup rw,memory\n32 23 0:28 / {root}/cpu rw - cgroup cgroup rw,cpu,cpuacct"
)


@pytest.mark.parametrize(
    ("mounts", "own", "files", "expected"),
    [
        (MOUNTS_V2, "0::/a/b", {"a/memory.max": "1073741824", "a/b/memory.max": "max"}, (GiB, None)),
        (MOUNTS_V2, "0::/a", {"a/cpu.max": "150000 100000", "cpu.max": "max 100000"}, (None, 1.5)),
        (MOUNTS_V2, "0::/../elsewhere", {"memory.max": "max"}, (None, None)),
        (MOUNTS_V1, "4:memory:/x\n1:cpu,cpuacct:/x", {"memory/x/memory.limit_in_bytes": str(GiB)}, (GiB, None)),
        (MOUNTS_V1, "4:memory:/x", {"memory/memory.limit_in_bytes": "9223372036854771712"}, (None, None)),
        (
            MOUNTS_V1,
            "1:cpu,cpuacct:/",
            {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"},
            (None, 0.5),
        ),
        (MOUNTS_V1, "1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, (None, None)),
    ],
)
def test_limits_of_control_groups(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mounts: str,
    own: str,
    files: dict[str, str],
    expected: tuple[int | None, float | None],
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    folders = capacity._groups(mounts.format(root=tmp_path), own)
    monkeypatch.setattr(capacity, "_groups", lambda: folders)
    monkeypatch.setattr(capacity, "_meminfo", lambda: 8 * GiB)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    found = capacity.totals()
    assert (found.memory, found.cpu, found.cpus) == (expected[0] or 8 * GiB, expected[1] or 4.0, [0, 1, 2, 3])


def test_this_machine_has_something(tmp_path: Path) -> None:
    found = capacity.machine_capacity(tmp_path / "not there")
    assert found.cpu.total == found.cpu.free > 0
    assert found.memory.total == found.memory.free > 256 << 20
