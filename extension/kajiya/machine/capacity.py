"""What this machine has, and what of it is free: the machine's or the container's limits less the live allocations."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kajiya.machine.process import read_bytes

if TYPE_CHECKING:
    from kajiya.types import Capacity

UNLIMITED = 1 << 60
"""Above this a limit of cgroup v1 means that there is none."""


class Totals(NamedTuple):
    """What there is to give: the ids of the CPUs, how many CPUs' time, bytes of memory."""

    cpus: list[int]
    cpu: float
    memory: int


def totals() -> Totals:
    """What this process may use of the machine: affinity and control groups (v1 and v2) respected."""
    cpus = sorted(os.sched_getaffinity(0))
    memory = _meminfo()
    share = float(len(cpus))
    for folder in _groups():
        memory = min(memory, *_numbers(folder, "memory.max", "memory.limit_in_bytes", default=memory))
        share = min(share, _quota(folder) or share)
    return Totals(cpus, share, memory)


def machine_capacity(directory: Path) -> "Capacity":
    """Totals and what is free now; `directory` is where the allocations are kept."""
    from datetime import UTC, datetime

    from kajiya.machine.allocations import Allocations
    from kajiya.machine.gpus import gpus
    from kajiya.types import Amount, Capacity, GpuAmount

    all_of_it, held = totals(), Allocations(directory).live()
    taken = {uuid for holder in held for uuid in holder.gpus}
    kinds: dict[str, GpuAmount] = {}
    for gpu in gpus():
        before = kinds.get(gpu.kind, GpuAmount(kind=gpu.kind, total=0, free=0, memory=gpu.memory or None))
        free = before.free + (gpu.uuid not in taken and not gpu.busy)
        kinds[gpu.kind] = GpuAmount(kind=gpu.kind, total=before.total + 1, free=free, memory=before.memory)
    cpu = all_of_it.cpu - sum(holder.cpu for holder in held if not holder.shared)
    memory = all_of_it.memory - sum(holder.memory for holder in held)
    return Capacity(
        cpu=Amount(total=all_of_it.cpu, free=max(0.0, round(cpu, 6))),
        memory=Amount(total=all_of_it.memory, free=max(0, memory)),
        gpus=list(kinds.values()),
        at=datetime.now(UTC),
    )


def _meminfo() -> int:
    for line in read_bytes("/proc/meminfo").splitlines():
        if line.startswith(b"MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _groups(mountinfo: str | None = None, own: str | None = None) -> list[Path]:
    """The control groups that this process is in, each with all above it, in both versions."""
    mountinfo = read_bytes("/proc/self/mountinfo").decode("utf-8", "replace") if mountinfo is None else mountinfo
    own = read_bytes("/proc/self/cgroup").decode("utf-8", "replace") if own is None else own
    mounts: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = after.split()
        if fields and fields[0] == "cgroup2":
            mounts[""] = Path(before.split()[4])
        elif fields and fields[0] == "cgroup":
            mounts |= {name: Path(before.split()[4]) for name in fields[-1].split(",")}
    out: list[Path] = []
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            if name in mounts and name in ("", "memory", "cpu"):
                here = mounts[name] / path.strip("/")
                out += [folder for folder in (here, *here.parents) if mounts[name] in (folder, *folder.parents)]
    return out


def _numbers(folder: Path, *names: str, default: int) -> list[int]:
    texts = (read_bytes(str(folder / name)).strip() for name in names)
    return [int(t) for t in texts if t.isdigit() and 0 < int(t) < UNLIMITED] or [default]


def _quota(folder: Path) -> float | None:
    fields = read_bytes(str(folder / "cpu.max")).split()
    if not fields:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        fields = [read_bytes(str(folder / name)).strip() for name in names]
    if len(fields) == 2 and all(f.isdigit() for f in fields) and int(fields[1]) > 0:
        return int(fields[0]) / int(fields[1])
    return None
