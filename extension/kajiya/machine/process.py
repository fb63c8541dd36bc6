"""Processes of this machine: which one a pid meant, which belong to a tree, and the end of a tree.

Facts are read from /proc (proc(5)); only the standard library is imported, because the supervisor starts with this.
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple, TypeVar

T = TypeVar("T")

SUPERVISOR_NAME = "kajiya-superv"  # at most 15 bytes (PR_SET_NAME of prctl(2))
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
TREE_VARIABLE = "KAJIYA_TREE"
"""Every process of a tree carries this variable, so that it is found after its supervisor's death too."""


class Identity(NamedTuple):
    """One process for ever: a pid alone is used again, and a start time alone repeats after a reboot.

    `start_time` is field 22 of /proc/PID/stat, in clock ticks since the boot.
    """

    pid: int
    start_time: int
    boot_id: str


class Stat(NamedTuple):
    """What /proc/PID/stat says of a process."""

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    start_time: int


@cache
def boot_id() -> str:
    """This boot of this machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
        return file.read().strip()


def read_stat(pid: int) -> Stat | None:
    """What the kernel says of a process now, or None if there is none."""
    raw = read_bytes(f"/proc/{pid}/stat")
    # The name is the process's own choice, and may hold spaces and parentheses.
    before, _, after = raw.rpartition(b")")
    rest = after.split()
    if len(rest) < 20:
        return None
    name = before.partition(b"(")[2].decode("utf-8", "replace")
    return Stat(pid, name, rest[0].decode(), int(rest[1]), int(rest[2]), int(rest[3]), int(rest[19]))


def read_bytes(path: str, limit: int = 1 << 20) -> bytes:
    """The content of a file of /proc or /sys; nothing where there is none or it is not ours to read.

    Processes vanish at any time. Raises `OSError` for all else: to be out of descriptors must not look like a death.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        if e.errno in SCARCE:
            raise
        return b""
    try:
        parts: list[bytes] = []
        while limit > 0 and (part := os.read(fd, min(limit, 65536))):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)


def identity(pid: int) -> Identity | None:
    """Who has this pid now; None if nobody, or only a zombie."""
    stat = read_stat(pid)
    return None if stat is None or stat.state in "ZX" else Identity(pid, stat.start_time, boot_id())


def alive(who: Identity) -> bool:
    """Whether that very process still lives; a zombie does not."""
    stat = read_stat(who.pid)
    return (
        stat is not None and stat.state not in "ZX" and stat.start_time == who.start_time and boot_id() == who.boot_id
    )


def send(who: Identity, number: int) -> bool:
    """Sends a signal to that very process, never to another that has its pid now; False if it is no more."""
    try:
        fd = os.pidfd_open(who.pid)
    except OSError:
        return False
    try:
        # The descriptor is bound to one process: what is checked after opening is what is signalled.
        if not alive(who):
            return False
        signal.pidfd_send_signal(fd, number)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def pids() -> list[int]:
    """All processes that can be seen."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208


def stats() -> dict[int, Stat]:
    """All processes that can be seen, zombies left out."""
    found = ((pid, read_stat(pid)) for pid in pids())
    return {pid: stat for pid, stat in found if stat is not None and stat.state not in "ZX"}


def carries(pid: int, tree: str) -> bool:
    """Whether a process was started with the mark of a tree."""
    mark = f"{TREE_VARIABLE}={tree}".encode("utf-8", "surrogateescape")
    return mark in read_bytes(f"/proc/{pid}/environ", 4 << 20).split(b"\0")


def children(pid: int) -> list[int]:
    """The children of a process, zombies included, by /proc/PID/task/TID/children."""
    out: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            out += map(int, read_bytes(f"/proc/{pid}/task/{task}/children").split())
    return out


def descendants(roots: Iterable[int], most: int = 8192) -> list[int]:
    """All processes below these, the roots left out; complete below a subreaper, to which orphans fall.

    `most` are looked at: who forks faster than we look would never let us finish.
    """
    out: dict[int, None] = {}
    todo = list(roots)
    while todo and len(out) < most:
        for pid in children(todo.pop()):
            if pid not in out:
                out[pid] = None
                todo.append(pid)
    return list(out)


Known = set[tuple[int, int]]
"""Processes by pid and start time."""


def members(
    tree: str, roots: Iterable[int] = (), sessions: Iterable[int] = (), strangers: Known | None = None
) -> dict[int, Stat]:
    """The living processes of a tree: below a root, in one of its sessions, or carrying its mark; this one left out.

    A session that a member belongs to is the tree's as a whole, because every tree begins with a session of its own.
    `strangers` remembers who does not carry the mark, from one call to the next.
    """
    everyone = stats()
    me = os.getpid()
    own = everyone[me].session if me in everyone else -1
    sessions_known = set(sessions) - {own, 0}
    below: dict[int, list[Stat]] = {}
    together: dict[int, list[Stat]] = {}
    for stat in everyone.values():
        below.setdefault(stat.parent, []).append(stat)
        together.setdefault(stat.session, []).append(stat)
    out: dict[int, Stat] = {}

    def add(todo: list[Stat]) -> None:
        while todo:
            stat = todo.pop()
            if stat.pid in out or stat.pid == me:
                continue
            out[stat.pid] = stat
            todo += below.get(stat.pid, [])
            if stat.session not in (own, 0) and stat.session not in sessions_known:
                sessions_known.add(stat.session)
                todo += together[stat.session]

    for session in list(sessions_known):
        add(together.get(session, [])[:])
    for root in roots:
        add([everyone[root]] if root in everyone and root != me else below.get(root, [])[:])
    # Last, and only of who was not found otherwise: to read an environment may have to wait for a busy process. What is
    # below another supervisor is most likely its own, so that is not waited for long.
    strangers = set() if strangers is None else strangers
    unknown = [s for s in everyone.values() if s.pid not in out and (s.pid, s.start_time) not in strangers]
    others = _below_other_supervisors(everyone, below, me)
    for stat in unknown:
        if stat.pid not in others:
            if carries(stat.pid, tree):
                add([stat])
            else:
                strangers.add((stat.pid, stat.start_time))
    marked: list[Stat] = []
    rest = [s for s in unknown if s.pid in others and s.pid not in out]
    if rest:
        patiently(lambda: _sort_out(rest, tree, marked, strangers), 1.0, None)
    add(marked[:])
    return out


def _sort_out(processes: list[Stat], tree: str, marked: list[Stat], strangers: Known) -> None:
    for stat in processes:
        if carries(stat.pid, tree):
            marked.append(stat)
        else:
            strangers.add((stat.pid, stat.start_time))


def _below_other_supervisors(everyone: dict[int, Stat], below: dict[int, list[Stat]], me: int) -> set[int]:
    out: set[int] = set()
    todo = [
        s.pid for s in everyone.values() if s.name == SUPERVISOR_NAME and s.pid != me and _is_of(s.pid, os.geteuid())
    ]
    while todo:
        pid = todo.pop()
        if pid not in out:
            out.add(pid)
            todo += [s.pid for s in below.get(pid, [])]
    return out


def _is_of(pid: int, uid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == uid  # noqa: PTH116
    except OSError:
        return False


def end_tree(
    tree: str,
    roots: Iterable[int] = (),
    sessions: Iterable[int] = (),
    grace: float = 0.0,
    deadline: float = 15.0,
    reap: Callable[[], None] = lambda: None,
) -> list[Stat]:
    """Ends a tree: SIGTERM, after `grace` seconds SIGKILL; returns who is left after `deadline` more seconds.

    `roots` are pids whose descendants belong to it (this process itself is always spared), `sessions` ids of its
    sessions; `reap` is called between looks and collects zombies where this process is the subreaper.
    """
    roots, sessions = list(roots), set(sessions)
    strangers: Known = set()
    if grace > 0:
        found = members(tree, roots, sessions, strangers)
        sessions |= _sessions(found)
        for stat in found.values():
            _kill(stat.pid, signal.SIGTERM)
        until = time.monotonic() + grace
        while found and time.monotonic() < until:
            time.sleep(0.02)
            reap()
            found = members(tree, roots, sessions, strangers)
    until = time.monotonic() + deadline
    while True:
        reap()
        found = members(tree, roots, sessions, strangers)
        if not found or time.monotonic() > until:
            return list(found.values())
        sessions |= _sessions(found)
        _freeze(tree, roots, sessions, found, strangers)
        for stat in members(tree, roots, sessions, strangers).values():
            _kill(stat.pid, signal.SIGKILL)
        time.sleep(0.01)


def _freeze(tree: str, roots: list[int], sessions: set[int], found: dict[int, Stat], strangers: Known) -> None:
    # A tree that forks faster than it is killed is stopped first: a stopped process forks no more and keeps its slot,
    # so that the number of runners only falls. A signal to a group reaches all of it at once, also who is being born.
    stopped: set[int] = set()
    for _ in range(50):
        fresh = {pid: stat for pid, stat in found.items() if pid not in stopped}
        if not fresh:
            return
        for group in {stat.group for stat in fresh.values() if stat.group > 1 and stat.group != os.getpgrp()}:
            if all(stat.session in sessions for stat in found.values() if stat.group == group):
                with contextlib.suppress(OSError):
                    os.killpg(group, signal.SIGSTOP)
        for pid in fresh:
            _kill(pid, signal.SIGSTOP)
        stopped |= fresh.keys()
        found = members(tree, roots, sessions, strangers)
        sessions |= _sessions(found)


def _sessions(found: dict[int, Stat]) -> set[int]:
    me = read_stat(os.getpid())
    return {stat.session for stat in found.values()} - {0, me.session if me else 0}


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def patiently(look: Callable[[], T], seconds: float, otherwise: T) -> T:
    """What a look gives, or `otherwise` where it takes longer: some files of /proc wait for their process."""
    from threading import Thread

    found: list[T] = []
    thread = Thread(target=lambda: found.append(look()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else otherwise


def describe(pid: int) -> str:
    """A process as people know it: the program, and for Python its module or script; never its other arguments."""
    raw = patiently(lambda: read_bytes(f"/proc/{pid}/cmdline", 65536), 0.5, b"")
    argv = [part.decode("utf-8", "replace") for part in raw.split(b"\0")]
    program = argv[0].rpartition("/")[2] if argv and argv[0] else ""
    if not program:
        stat = read_stat(pid)
        return stat.name if stat else f"process {pid}"
    if program.startswith("python"):
        if "-m" in argv[1:-1]:
            return f"{program} -m {argv[argv.index('-m', 1) + 1]}"[:100]
        script = next((a for a in argv[1:] if a and not a.startswith("-")), "")
        if script and "-c" not in argv:
            return f"{program} {script.rpartition('/')[2]}"[:100]
    return program[:100]
