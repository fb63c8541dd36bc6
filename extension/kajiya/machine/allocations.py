"""Who holds what of this machine. A holder is a file that its process keeps flock'ed, so any crash gives it back.

The file is made under another name, flock'ed, and renamed into place: what can be seen is held, or its holder is dead.
A dead holder's processes are ended before what they used is given to another.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

from kajiya.machine.capacity import totals
from kajiya.machine.gpus import choose, gpus
from kajiya.machine.process import end_tree

LIMIT = 256 * 1024


class Wanted(Protocol):
    """What is asked for; `kajiya.types.Resources` is one."""

    @property
    def cpu(self) -> float: ...
    @property
    def memory(self) -> int: ...
    @property
    def gpus(self) -> int: ...
    @property
    def gpu_kind(self) -> str | None: ...


class Holder(NamedTuple):
    """What one attempt or server holds; `shared` CPUs are held by others too."""

    kind: str
    id: str
    owner: str
    profile: str
    tree: str
    cpu: float
    memory: int
    cpus: list[int]
    gpus: list[str]
    shared: bool


class AlreadyHeld(Exception):
    """Something of the same kind and id holds an allocation now."""


class Allocation:
    """What this process holds, until `release` or its death."""

    def __init__(self, holder: Holder, fd: int, path: Path) -> None:
        self.holder, self.cpus, self.gpus = holder, holder.cpus, holder.gpus
        self._fd, self._path = fd, path

    def release(self) -> None:
        """Gives all of it back; no error if that was done."""
        if self._fd < 0:
            return
        # Removed before the flock ends: a file without a holder means a crash.
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._fd)
        self._fd = -1


class Allocations:
    """All allocations of this machine, in one folder that all supervisors use."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.held = directory / "held"

    def take(
        self,
        kind: str,
        id: str,
        owner: str,
        profile: str,
        resources: Wanted,
        share_cpu: bool = False,
        tree: str = "",
    ) -> Allocation:
        """Takes CPUs, memory and GPUs, all or nothing. With `share_cpu` no CPU is refused: the least used are shared.

        `tree` is the mark of the processes that will use it. Raises `NoCapacity`, `AlreadyHeld`, `OSError`.
        """
        self.held.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._mutex():
            held = self._clear()
            if any((h.kind, h.id) == (kind, id) for h in held):
                raise AlreadyHeld(f"{kind} {id!r}")
            all_of_it = totals()
            _check("memory", resources.memory, all_of_it.memory - sum(h.memory for h in held), all_of_it.memory)
            if not share_cpu:
                used = sum(h.cpu for h in held if not h.shared)
                _check("CPUs", resources.cpu, round(all_of_it.cpu - used, 6), all_of_it.cpu)
            given: list[str] = []
            if resources.gpus:
                taken = {uuid for h in held for uuid in h.gpus}
                every = [g for g in gpus() if resources.gpu_kind in (None, g.kind)]
                free = [g for g in every if g.uuid not in taken and not g.busy]
                chosen = choose(free, resources.gpus, resources.gpu_kind)
                if chosen is None:
                    _refuse("GPUs", resources.gpus, len(free), len(every))
                given = [g.uuid for g in chosen]
            cpus = least_used(all_of_it.cpus, held, resources.cpu)
            holder = Holder(
                kind, id, owner, profile, tree, resources.cpu, resources.memory, cpus, given, share_cpu
            )  # fmt: skip
            return self._hold(holder)

    def live(self) -> list[Holder]:
        """Who holds what now; what dead holders left is ended and given back first."""
        found, dead = self._look()
        if dead:
            with self._mutex():
                return self._clear()
        return found

    def used(self, owner: str, profile: str, kind: str | None = None) -> int:
        """How often an owner holds a profile now, by servers and attempts, or by one kind of them."""
        return sum((h.owner, h.profile) == (owner, profile) and kind in (None, h.kind) for h in self.live())

    def _look(self) -> tuple[list[Holder], list[tuple[str, Holder | None]]]:
        found: list[Holder] = []
        dead: list[tuple[str, Holder | None]] = []
        try:
            names = os.listdir(self.held)  # noqa: PTH208
        except FileNotFoundError:
            return [], []
        for name in sorted(names):
            if name.startswith("."):
                continue
            try:
                fd = os.open(self.held / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                holder = _parse(os.read(fd, LIMIT))
                try:
                    # Shared, so that two who look do not take each other for the holder.
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    if holder is not None:
                        found.append(holder)
                    continue
                if os.fstat(fd).st_nlink:
                    dead.append((name, holder))
            finally:
                os.close(fd)
        return found, dead

    def _clear(self) -> list[Holder]:
        """Under the mutex: ends what dead holders left; who can't be ended holds on."""
        found, dead = self._look()
        for name, holder in dead:
            if holder is not None and holder.tree and end_tree(holder.tree, deadline=5):
                found.append(holder)
                continue
            with contextlib.suppress(FileNotFoundError):
                (self.held / name).unlink()
        # What a crash left half made is held by nobody; under the mutex nobody is making any.
        for path in self.held.glob(".new-*"):
            path.unlink(missing_ok=True)
        return found

    def _hold(self, holder: Holder) -> Allocation:
        path = self.held / f"{holder.kind}-{_safe(holder.id)}.json"
        new = self.held / f".new-{os.getpid()}-{os.urandom(4).hex()}"
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, json.dumps(holder._asdict()).encode("ascii"))
            new.rename(path)
        except OSError:
            new.unlink(missing_ok=True)
            os.close(fd)
            raise
        return Allocation(holder, fd, path)

    @contextlib.contextmanager
    def _mutex(self) -> Generator[None]:
        path = self.directory / "mutex"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def least_used(cpus: list[int], held: list[Holder], wanted: float) -> list[int]:
    """The CPUs that a holder runs on: as many as it wants, those with the least on them."""
    load = dict.fromkeys(cpus, 0.0)
    for holder in held:
        for cpu in holder.cpus:
            if cpu in load:
                load[cpu] += holder.cpu / len(holder.cpus)
    count = min(len(cpus), max(1, math.ceil(wanted)))
    return sorted(sorted(cpus, key=lambda cpu: (round(load[cpu], 6), cpu))[:count])


def _safe(id: str) -> str:
    # An id may be anything, and two must never meet in one file.
    return hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _parse(data: bytes) -> Holder | None:
    try:
        raw: dict[str, Any] = json.loads(data)
        return Holder(**raw)
    except (ValueError, TypeError):
        return None


def _check(resource: str, asked: float, free: float, total: float) -> None:
    if asked > free:
        _refuse(resource, asked, free, total)


def _refuse(resource: str, asked: float, free: float, total: float) -> NoReturn:
    from kajiya.errors import NoCapacity
    from kajiya.sizes import show_size

    def show(n: float) -> str:
        return show_size(n) if resource == "memory" else f"{n:g}"

    raise NoCapacity(resource=resource, asked=show(asked), free=show(max(0, free)), total=show(total))
