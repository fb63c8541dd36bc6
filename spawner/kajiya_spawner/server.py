"""One server process and its supervisor: the specification, the run folder, the environment variables."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kajiya.machine import process, records
from kajiya.machine.allocations import Allocations
from kajiya.machine.homes import Home
from kajiya.machine.process import Identity
from kajiya.names import slug
from kajiya.profiles import Selection

DEFAULT_SERVER = "_"  # no named server may have this name
LOG_LIMIT = 16 * 1024 * 1024
# What the supervisor needs of the Hub's environment; nothing secret, for its child inherits nothing else by mistake.
KEEP = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "KAJIYA_FAKE_GPUS", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class RunFolder:
    """Where one server's records and log lie: never in the home, whose owner could write false ones."""

    path: Path

    @classmethod
    def of(cls, servers: Path, user: str, server: str) -> "RunFolder":
        """The folder of a user's server; names can't collide, for both parts are slugs."""
        return cls(servers / slug(user) / (server or DEFAULT_SERVER))

    @property
    def log(self) -> Path:
        return self.path / records.LOG

    @property
    def notices(self) -> Path:
        return self.path / records.NOTICES

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def runtime(self) -> Path:
        """Jupyter's connection files, off the home, so that a full home still starts."""
        return self.path / "runtime"

    @property
    def workspaces(self) -> Path:
        """JupyterLab's layouts, kept from start to start."""
        return self.path / "workspaces"

    def prepare(self, home: Home) -> None:
        """Empties what an earlier server left, keeps its log as `log.1.txt`. Raises `OSError`."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.path.parent.parent, self.path.parent):
            folder.chmod(0o711 if home.uid is not None else 0o700)
        for name in (records.LEASE, records.EXIT, records.STOP, records.NOTICES, records.RESERVE):
            (self.path / name).unlink(missing_ok=True)
        if self.log.exists():
            self.log.replace(self.path / "log.1.txt")
        shutil.rmtree(self.runtime, ignore_errors=True)
        for folder in (self.runtime, self.workspaces):
            folder.mkdir(mode=0o700, exist_ok=True)
            if home.uid is not None and home.gid is not None:
                os.chown(folder, home.uid, home.gid)
        if home.gid is not None:
            os.chown(self.path, 0, home.gid)
            self.path.chmod(0o750)

    def read(self, name: str) -> dict[str, Any] | None:
        """A record of the supervisor's, or None."""
        with contextlib.suppress(OSError), records.opened(self.path) as folder:
            return records.read(folder, name)
        return None

    def tail(self, lines: int = 4, size: int = 8192) -> str:
        """The last lines of the log that say something."""
        with contextlib.suppress(OSError):
            fd = os.open(self.log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                file.seek(max(0, os.fstat(fd).st_size - size))
                text = file.read(size).decode("utf-8", "replace")
            said = [line.strip() for line in text.splitlines() if line.strip()]
            return " / ".join(line[:300] for line in said[-lines:])
        return ""


def variables(home: Home, folder: RunFolder, selection: Selection, hub: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of a server: the profile's own first, so that they can't displace what must hold."""
    base_path = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    env = {name: os.environ[name] for name in ("LANG", "LC_ALL", "LC_CTYPE", "TZ") if name in os.environ}
    env.setdefault("LANG", "C.UTF-8")
    env |= selection.env
    env |= hub
    env |= home.variables("default", path=base_path)
    env |= {
        "SHELL": os.environ.get("SHELL", "/bin/bash"),
        "JUPYTER_RUNTIME_DIR": str(folder.runtime),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder.workspaces),
        "KAJIYA_NOTICES": str(folder.notices),
        "KAJIYA_PROFILE": selection.profile,
    }
    if home.uid is not None:
        env |= {"USER": _account(home.uid), "LOGNAME": _account(home.uid)}
    if selection.idle_minutes is not None:
        env["KAJIYA_IDLE_MINUTES"] = str(selection.idle_minutes)
    return env


def _account(uid: int) -> str:
    import pwd

    return pwd.getpwuid(uid).pw_name


def specification(
    home: Home,
    folder: RunFolder,
    selection: Selection,
    server: str,
    argv: list[str],
    env: Mapping[str, str],
    machine: Path,
    grace: float,
) -> dict[str, Any]:
    """What the supervisor is told; see `kajiya.machine.supervisor`."""
    return {
        "kind": "server",
        "id": f"{slug(home.user)}.{server or DEFAULT_SERVER}",
        "owner": home.user,
        "profile": selection.profile,
        "argv": argv,
        "cwd": str(home.path),
        "env": dict(env),
        "uid": home.uid,
        "gid": home.gid,
        "resources": selection.resources.model_dump(mode="json"),
        "time_limit": None,
        "grace": grace,
        "machine_dir": str(machine),
        "run_dir": str(folder.path),
        "log": str(folder.log),
        "log_limit": LOG_LIMIT,
        "share_cpu": True,
    }


def launch(folder: RunFolder, spec: Mapping[str, Any]) -> Identity | None:
    """Starts the supervisor in a session of its own, so that it outlives the Hub. Raises `OSError`."""
    fd = os.open(folder.spec, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(spec, file)
    argv = [sys.executable, "-P", "-m", "kajiya.machine.supervisor", str(folder.spec)]
    env = {name: os.environ[name] for name in KEEP if name in os.environ}
    with (folder.path / "supervisor.txt").open("wb") as said:
        started = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True, env=env, cwd="/"
        )
    CHILDREN[started.pid] = started
    return process.identity(started.pid)


CHILDREN: dict[int, subprocess.Popen[bytes]] = {}
"""Supervisors that this Hub started; kept to be reaped, else their zombies would pile up."""


def reap() -> None:
    """Collects the supervisors that have ended."""
    for pid, child in list(CHILDREN.items()):
        if child.poll() is not None:
            del CHILDREN[pid]


def alive(who: Identity) -> bool:
    """Whether that supervisor still lives."""
    reap()
    return process.alive(who)


def running(folder: RunFolder) -> int | None:
    """The process id of the server itself, by its lease; None before it runs."""
    lease = folder.read(records.LEASE) or {}
    child = lease.get("child_pid")
    return child if isinstance(child, int) else None


async def end(who: Identity, machine: Path, grace: float) -> None:
    """Ends a server through its supervisor; when this returns no process of it is left."""
    process.send(who, signal.SIGTERM)
    until = time.monotonic() + grace + 20
    # No event to await: the supervisor may be the child of an earlier Hub.
    while alive(who) and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    if alive(who):
        process.send(who, signal.SIGKILL)
    await asyncio.to_thread(clear, machine)


def clear(machine: Path) -> None:
    """Ends what killed supervisors left behind and gives back what they held; nothing where all ended in order."""
    Allocations(machine).live()


def free_port() -> int:
    """A port on the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def answers(port: int) -> bool:
    """Whether something listens on a port of the loopback interface."""
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
