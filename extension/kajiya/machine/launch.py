"""Starts supervisors, and reads what they say: the side of whoever starts an attempt or a server."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kajiya.machine import memory, process, records
from kajiya.machine.gpus import FAKE_VARIABLE
from kajiya.machine.process import Identity

ARGV = [sys.executable, "-I", "-m", "kajiya.machine.supervisor"]


@dataclass(frozen=True)
class Spec:
    """What a supervisor is told. Times are seconds, sizes bytes; `log` is a file in `run_dir`."""

    kind: Literal["attempt", "server"]
    id: str
    owner: str
    profile: str
    argv: list[str]
    cwd: str
    env: dict[str, str] = field(repr=False)
    resources: dict[str, Any]
    machine_dir: str
    run_dir: str
    uid: int | None = None
    gid: int | None = None
    time_limit: float | None = None
    grace: float = 10.0
    log: str = records.LOG
    log_limit: int = 64 * 1024**2
    share_cpu: bool = False


class LaunchFailed(OSError):
    """The supervisor itself could not be started."""


async def launch(spec: Spec) -> Identity:
    """Starts a supervisor that outlives us, and returns who it is. Raises `LaunchFailed`, `OSError`.

    Where the run folder has a lease already, the new supervisor ends at once and changes nothing.
    """
    # Through a pipe and with a bare environment: the secrets in the specification touch no disk and no /proc.
    env = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", FAKE_VARIABLE)}
    pipe = asyncio.subprocess.PIPE
    starter = await asyncio.create_subprocess_exec(
        *ARGV, "--detach", "-", stdin=pipe, stdout=pipe, stderr=pipe, env=env, start_new_session=True
    )
    out, err = await starter.communicate(json.dumps(asdict(spec)).encode())
    with contextlib.suppress(ValueError, TypeError):
        return Identity(**json.loads(out))
    if starter.returncode == 0:  # it has ended already: that is told in the run folder
        return Identity(0, 0, process.boot_id())
    raise LaunchFailed(err.decode("utf-8", "replace").strip()[-500:] or f"exit status {starter.returncode}")


@dataclass(frozen=True)
class Standing:
    """How a run folder stands: who supervises it or did, and the exit record once there is one."""

    lease: records.Record | None
    exit: records.Record | None

    @property
    def supervisor(self) -> Identity | None:
        """Who has or had the lease."""
        lease = self.lease or {}
        return _identity(lease.get("pid"), lease.get("start_time"), lease.get("boot_id"))

    @property
    def alive(self) -> bool:
        """Whether its supervisor lives."""
        who = self.supervisor
        return who is not None and process.alive(who)

    @property
    def started(self) -> bool:
        """Whether the program itself was started."""
        return isinstance((self.lease or {}).get("child_pid"), int)


def standing(run_dir: Path, kind: str, id: str) -> Standing:
    """How a run folder stands. Only our own records of this `kind` and `id` are believed: a folder may be a user's."""
    try:
        with records.opened(run_dir) as folder:
            # The lease first: a supervisor that is gone after it was read has written its exit before.
            lease = _ours(records.read(folder, records.LEASE, os.geteuid()), kind, id)
            return Standing(lease, _ours(records.read(folder, records.EXIT, os.geteuid()), kind, id))
    except (FileNotFoundError, NotADirectoryError):
        return Standing(None, None)


def prevent(run_dir: Path, kind: str, id: str, ending: str | None = None) -> bool:
    """Takes the lease of something that has not begun, so that it never will; with `ending` it has ended so.

    False if a supervisor was faster. Raises `OSError`.
    """
    who = {"kind": kind, "id": id}
    with records.opened(run_dir) as folder:
        if not records.create(folder, records.LEASE, who | {"tree": "", "pid": 0, "start_time": 0, "boot_id": ""}):
            return False
        if ending is not None:
            usage = {"cpu_seconds": 0, "memory_peak": 0, "wall_seconds": 0}
            records.write(folder, records.EXIT, who | {"ending": ending, "usage": usage})
        return True


def ask_to_stop(run_dir: Path, supervisor: Identity | None, grace: float) -> None:
    """Asks a supervisor to end its tree; no error if it is gone."""
    # Where the disk is full the signal alone must do: it ends the tree too, but does not say that a person asked.
    with contextlib.suppress(OSError), records.opened(run_dir) as folder:
        records.write(folder, records.STOP, {"grace": grace})
    if supervisor is not None and supervisor.pid > 0:
        process.send(supervisor, signal.SIGTERM)


def end_leftovers(found: Standing, deadline: float = 10.0) -> bool:
    """Ends what a dead supervisor left; whether nobody is left."""
    lease = found.lease or {}
    if not lease.get("tree"):
        return True
    group = lease.get("cgroup")
    if isinstance(group, str) and Path(group).name == f"kajiya-{lease['tree']}":
        # Whoever hid its mark and left its session is still in here.
        memory.end_group(Path(group))
    sessions: list[int] = []
    session, born = lease.get("child_pid"), lease.get("child_start_time")
    if isinstance(session, int) and isinstance(born, int) and lease.get("boot_id") == process.boot_id():
        leader = process.read_stat(session)
        # The session's id may by now be that of a stranger's session, whose leader is younger than ours was.
        if leader is None or leader.start_time == born:
            sessions.append(session)
    return not process.end_tree(str(lease["tree"]), (), sessions, deadline=deadline)


def _ours(record: records.Record | None, kind: str, id: str) -> records.Record | None:
    # A record of another attempt may have been moved here.
    return record if record is not None and (record.get("kind"), record.get("id")) == (kind, id) else None


def _identity(pid: Any, start_time: Any, boot: Any) -> Identity | None:
    if isinstance(pid, int) and isinstance(start_time, int) and isinstance(boot, str):
        return Identity(pid, start_time, boot)
    return None
