"""Memory of a process tree: how much it uses, and whether that is too much. cgroup v2 where delegated, else polling."""

import contextlib
import os
import re
import time
from pathlib import Path
from typing import NamedTuple, Protocol

from kajiya.machine.process import descendants, describe, read_bytes

PAGE = os.sysconf("SC_PAGE_SIZE")
MEASURE_SECONDS = 0.25
FASTEST_GROWTH = 4 * 1024**3
"""Bytes a second that a tree may be expected to grow at most; from it follows how soon to look again."""


class Process(NamedTuple):
    """One process and the bytes that it uses."""

    pid: int
    used: int


class Look(NamedTuple):
    """What a look at a tree found. `killed` names a process that the kernel ended for its memory since the last."""

    used: int
    processes: list[Process]
    exceeded: bool
    killed: str | None = None

    def biggest(self, without: tuple[int, ...] = ()) -> Process | None:
        """The process that uses most, some left out."""
        return max((p for p in self.processes if p.pid not in without), key=lambda p: p.used, default=None)


class Meter(Protocol):
    """What measures and limits one tree."""

    allowed: int
    peak: int

    def join(self) -> None:
        """Called in the child before it becomes the program."""
        ...

    def look(self) -> Look: ...

    def close(self) -> None: ...


def resident(pid: int) -> int:
    """Bytes of a process in memory or swapped out, shared pages counted in full: cheap, and never too little."""
    if _swap():
        found = re.findall(rb"^Vm(?:RSS|Swap):\s+(\d+) kB", read_bytes(f"/proc/{pid}/status"), re.MULTILINE)
        return sum(map(int, found)) * 1024
    fields = read_bytes(f"/proc/{pid}/statm").split()
    return int(fields[1]) * PAGE if len(fields) > 1 else 0


def proportional(pid: int) -> int:
    """Bytes of a process, each shared page divided among those who share it: exact, but the kernel walks all pages."""
    found = re.findall(rb"^(?:Pss|SwapPss):\s+(\d+) kB", read_bytes(f"/proc/{pid}/smaps_rollup"), re.MULTILINE)
    return sum(map(int, found)) * 1024 if found else resident(pid)


_swapping: bool | None = None


def _swap() -> bool:
    global _swapping
    if _swapping is None:
        _swapping = read_bytes("/proc/swaps").count(b"\n") > 1
    return _swapping


class Measuring:
    """One round of exact measurements, on a thread of its own, largest first."""

    def __init__(self, processes: list[Process]) -> None:
        from threading import Thread

        self._found: dict[int, int] = {}
        self._thread = Thread(target=self._measure, args=(processes,), daemon=True)
        self._thread.start()

    def found(self, seconds: float) -> tuple[dict[int, int], bool]:
        """Bytes by pid as far as they are known within so many seconds, and whether that is all."""
        self._thread.join(seconds)
        return dict(self._found), not self._thread.is_alive()

    def _measure(self, processes: list[Process]) -> None:
        for p in processes:
            self._found[p.pid] = proportional(p.pid)


class Polled:
    """Looks at all processes below one; forked workers that share their pages are not counted twice."""

    def __init__(self, allowed: int, root: int | None = None) -> None:
        self.allowed = allowed
        self.peak = 0
        self.root = root or os.getpid()
        self._measuring: Measuring | None = None

    def join(self) -> None:
        """Nothing to join."""

    def look(self) -> Look:
        """How things stand now."""
        processes = [Process(pid, resident(pid)) for pid in descendants([self.root])]
        used = sum(p.used for p in processes)
        if used > self.allowed:
            processes = self._measure(processes)
            used = sum(p.used for p in processes)
            if used > self.allowed:
                # Once more: where a process forks between two measurements, its pages were counted twice.
                processes = self._measure(processes)
                used = sum(p.used for p in processes)
        self.peak = max(self.peak, used)
        return Look(used, processes, used > self.allowed)

    def _measure(self, processes: list[Process]) -> list[Process]:
        # The exact figure of a busy process may take long to get, so it is got beside us. Who was not measured in time
        # counts as nothing: rather too little than too much, and the next look goes on waiting for the same.
        if self._measuring is None:
            self._measuring = Measuring(sorted(processes, key=lambda p: p.used, reverse=True))
        found, complete = self._measuring.found(MEASURE_SECONDS)
        if complete:
            self._measuring = None
        return [Process(p.pid, min(p.used, found.get(p.pid, 0))) for p in processes]

    def close(self) -> None:
        """Nothing to undo."""


class Cgroup:
    """A control group of its own below a delegated one (cgroup v2): the kernel itself keeps the limit."""

    def __init__(self, folder: Path, allowed: int, root: int | None = None) -> None:
        self.folder, self.allowed, self.root = folder, allowed, root or os.getpid()
        self.peak = 0
        self.names: dict[int, tuple[str, int]] = {}
        self.kills = self._events("oom_kill")

    def join(self) -> None:
        """Puts this process into the group."""
        (self.folder / "cgroup.procs").write_text("0")

    def look(self) -> Look:
        """How things stand now; what is over the limit was ended by the kernel already."""
        processes = [Process(pid, resident(pid)) for pid in descendants([self.root])]
        used = _number(self.folder / "memory.current")
        self.peak = max(self.peak, _number(self.folder / "memory.peak") or used)
        kills, killed = self._events("oom_kill"), None
        if kills > self.kills:
            # The kernel tells how many it ended, not whom: the largest of those that are missing now.
            missing = [self.names[pid] for pid in self.names.keys() - {p.pid for p in processes}]
            killed = max(missing, key=lambda m: m[1])[0] if missing else "a process"
            self.kills = kills
        self.names = {p.pid: (self.names[p.pid][0] if p.pid in self.names else describe(p.pid), p.used)
                      for p in processes}  # fmt: skip
        return Look(used, processes, False, killed)

    def close(self) -> None:
        """Ends whoever is left in the group, and removes it."""
        end_group(self.folder)

    def _events(self, name: str) -> int:
        found = re.search(rf"^{name} (\d+)$".encode(), read_bytes(str(self.folder / "memory.events")), re.MULTILINE)
        return int(found[1]) if found else 0


def end_group(folder: Path, seconds: float = 2.0) -> None:
    """Ends all processes of a control group of ours, and removes it; no error if it is gone."""
    with contextlib.suppress(OSError):
        (folder / "cgroup.kill").write_text("1")
    until = time.monotonic() + seconds
    # It can't be removed before the last of them has been collected.
    while folder.is_dir() and time.monotonic() < until:
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.02)


def delegated(enable: bool = True) -> Path | None:
    """The control group below which a tree may get one of its own, or None where the system delegates no memory.

    That is this process's own group, if it is empty but for us, or the one above it, if that is ours too. With
    `enable=False` nothing is changed to find out, and the answer is what would most likely be.
    """
    mount = _mount(read_bytes("/proc/self/mountinfo").decode("utf-8", "replace"))
    own = next((line[3:] for line in read_bytes("/proc/self/cgroup").decode().splitlines() if line[:3] == "0::"), None)
    if mount is None or own is None:
        return None
    here = mount / own.strip("/")
    for base in (here, here.parent):
        if base != mount and mount not in base.parents:
            break
        if os.access(base, os.W_OK) and os.access(base / "cgroup.procs", os.W_OK) and _has_memory(base, enable):
            return base
    return None


def meter(allowed: int, name: str, base: Path | None = None) -> Meter:
    """What will limit the tree below this process to `allowed` bytes; `base` is a control group delegated to us."""
    base = base or delegated()
    if base is not None:
        folder = base / f"kajiya-{name}"
        try:
            folder.mkdir()
            (folder / "memory.max").write_text(str(allowed))
            with contextlib.suppress(OSError):
                (folder / "memory.swap.max").write_text("0")
            return Cgroup(folder, allowed)
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
    return Polled(allowed)


def soon(look: Look, allowed: int) -> float:
    """Seconds until a tree must be looked at again: the less room it has, the sooner."""
    return min(1.0, max(0.05, (allowed - look.used) / FASTEST_GROWTH))


def kernel_kills() -> int:
    """How often the kernel ended a process of this machine for lack of memory since the boot (/proc/vmstat)."""
    found = re.search(rb"^oom_kill (\d+)$", read_bytes("/proc/vmstat"), re.MULTILINE)
    return int(found[1]) if found else 0


def _mount(mountinfo: str) -> Path | None:
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4].replace("\\040", " "))
    return None


def _has_memory(base: Path, enable: bool) -> bool:
    control = base / "cgroup.subtree_control"
    if b"memory" in read_bytes(str(control)).split():
        return True
    if b"memory" not in read_bytes(str(base / "cgroup.controllers")).split():
        return False
    if not enable:
        return not read_bytes(str(base / "cgroup.procs"))
    # The kernel refuses this where processes live in the group itself.
    with contextlib.suppress(OSError):
        control.write_text("+memory")
    return b"memory" in read_bytes(str(control)).split()


def _number(path: Path) -> int:
    text = read_bytes(str(path)).strip()
    return int(text) if text.isdigit() else 0
