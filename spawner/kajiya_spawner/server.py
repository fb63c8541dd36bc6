"""One server process and its supervisor: the specification, the run folder, the environment variables."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kajiya.machine import launch, process, records
from kajiya.machine.allocations import Allocations
from kajiya.machine.homes import Home
from kajiya.machine.launch import Spec, Standing
from kajiya.machine.process import Identity
from kajiya.names import slug
from kajiya.profiles import Selection

DEFAULT_SERVER = "_"  # no named server may have this name
LOG_LIMIT = 16 * 1024 * 1024
KIND = "server"
PORT = "port.json"


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
        for name in (records.LEASE, records.EXIT, records.STOP, records.NOTICES, records.RESERVE, PORT):
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

    def write_port(self, port: int) -> None:
        """Keeps the port, so that a Hub that was killed while the server started finds it. Raises `OSError`."""
        with records.opened(self.path) as folder:
            records.write(folder, PORT, {"port": port})

    def read_port(self) -> int | None:
        """The port of the server that stands here."""
        with contextlib.suppress(OSError), records.opened(self.path) as folder:
            port = (records.read(folder, PORT, os.geteuid()) or {}).get("port")
            return port if isinstance(port, int) else None
        return None

    def tail(self, size: int = 16384) -> str:
        """The end of the log."""
        with contextlib.suppress(OSError):
            fd = os.open(self.log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                file.seek(max(0, os.fstat(fd).st_size - size))
                return file.read(size).decode("utf-8", "replace")
        return ""


_PREFIX = re.compile(r"^\[[A-Z] \S+ \S+ \S+\] ")
_TELLING = re.compile(r"^\[[CE] |^[\w.]*(?:Error|Exception|Exit)\b")


def telling(log: str) -> str:
    """The one line of a log that says most about an end: the last that complains, else the last; pure."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    chosen = [line for line in lines if _TELLING.match(line)] or lines
    return _PREFIX.sub("", chosen[-1])[:180] if chosen else ""


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
        "JUPYTER_CONFIG_PATH": str(Path(__file__).with_name("jupyter")),
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


@dataclass(frozen=True)
class Server:
    """One server of one user: its run folder, its supervisor's kind and id, and the machine's allocations."""

    user: str
    name: str
    servers: Path
    machine: Path

    @property
    def id(self) -> str:
        """Names the server among the holders of this machine."""
        return f"{slug(self.user)}.{self.name or DEFAULT_SERVER}"

    @property
    def folder(self) -> RunFolder:
        """Where its records and log lie."""
        return RunFolder.of(self.servers, self.user, self.name)

    def standing(self) -> Standing:
        """How it stands, by its supervisor's records."""
        return launch.standing(self.folder.path, KIND, self.id)

    def found(self) -> Identity | None:
        """The supervisor that the records name, if it lives."""
        standing = self.standing()
        return standing.supervisor if standing.alive else None

    async def start(
        self, home: Home, chosen: Selection, argv: list[str], env: Mapping[str, str], grace: float
    ) -> Identity:
        """Starts the supervisor, which outlives the Hub. Raises `OSError`."""
        spec = Spec(
            kind=KIND,
            id=self.id,
            owner=self.user,
            profile=chosen.profile,
            argv=argv,
            cwd=str(home.path),
            env=dict(env),
            resources=chosen.resources.model_dump(mode="json"),
            machine_dir=str(self.machine),
            run_dir=str(self.folder.path),
            uid=home.uid,
            gid=home.gid,
            grace=grace,
            log_limit=LOG_LIMIT,
            share_cpu=True,
        )
        return await launch.launch(spec)

    async def end(self, who: Identity | None, grace: float) -> None:
        """Ends it through its supervisor; when this returns no process of it is left."""
        folder = self.folder.path
        with contextlib.suppress(OSError):
            # A supervisor on its way finds the lease taken, and starts nothing.
            await asyncio.to_thread(launch.prevent, folder, KIND, self.id, "stopped")
        who = who or self.found()
        if who is not None and process.alive(who):
            await asyncio.to_thread(launch.ask_to_stop, folder, who, grace)
            until = time.monotonic() + grace + 20
            # No event to await: the supervisor is nobody's child.
            while process.alive(who) and time.monotonic() < until:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            process.send(who, signal.SIGKILL)
        await asyncio.to_thread(self.clear)

    def clear(self) -> None:
        """Ends what a killed supervisor left behind, and gives back what it held."""
        standing = self.standing()
        if standing.exit is None and not standing.alive:
            launch.end_leftovers(standing)
        Allocations(self.machine).live()


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
