"""Attempts as process trees of this machine, each below a supervisor that outlives the service."""

import asyncio
import contextlib
import json
import os
import shutil
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from kajiya.machine import process, records
from kajiya.machine.capacity import machine_capacity
from kajiya.machine.homes import AccountFailed
from kajiya.machine.launch import Spec, ask_to_stop, end_leftovers, launch, prevent, standing
from kajiya.machine.process import Identity
from kajiya.types import Capacity, Ending, Reason, Usage
from kajiya_hub.backends.base import AttemptRef, AttemptSpec, Observation, State

KIND = "attempt"
CHUNK = 64 * 1024
# What of the service's own environment an attempt may see; nothing secret.
KEEP = ("LANG", "LC_ALL", "LC_CTYPE", "TZ")


class HomeLike(Protocol):
    """What is needed of a home; `kajiya.machine.homes.Home` is one."""

    @property
    def path(self) -> Path: ...
    @property
    def uid(self) -> int | None: ...
    @property
    def gid(self) -> int | None: ...
    def python(self, name: str = "default") -> Path: ...
    def variables(self, name: str = "default") -> dict[str, str]: ...


class HomesLike(Protocol):
    """Where the owners' homes are; `kajiya.machine.homes.Homes` is one."""

    def of(self, user: str, /) -> HomeLike: ...


Command = Callable[[HomeLike, AttemptSpec], list[str]]


def runner(home: HomeLike, spec: AttemptSpec) -> list[str]:
    """The command of an attempt: the runner, by the Python of the environment it runs in."""
    return [str(home.python(spec.environment.name)), "-m", "kajiya.runner", str(spec.directory)]


class LocalBackend:
    """Attempts on this machine. `variables` are for all attempts: where the service and MLflow are, the site's own.

    `prepare` is awaited with owner and environment before a start, and makes the environment where it is missing.
    """

    def __init__(
        self,
        homes: HomesLike,
        machine_dir: Path,
        variables: Mapping[str, str] | None = None,
        command: Command = runner,
        prepare: Callable[[str, str], Awaitable[None]] | None = None,
        log_limit: int = 64 * 1024**2,
        grace: float = 10.0,
    ) -> None:
        self.homes, self.machine_dir, self.command, self.prepare = homes, machine_dir, command, prepare
        self.variables = dict(variables or {})
        self.log_limit, self.grace = log_limit, grace
        self._changed = asyncio.Event()
        self._watched: dict[Identity, int] = {}

    # --- the four verbs
    async def start(self, spec: AttemptSpec, state: State | None = None) -> AsyncIterator[State]:
        """Starts an attempt: inputs and token are put in its folder, then its supervisor starts. See `Backend`."""
        state = dict(state or {})
        found = await asyncio.to_thread(standing, spec.directory, KIND, attempt_id(spec))
        before = _spawned(state)
        if found.lease is None and before is not None and process.alive(before):
            who = before  # it is just about to take the lease, or its owner removed that
        elif found.lease is None:
            if self.prepare is not None and not state.get("prepared"):
                await self.prepare(spec.owner, spec.environment.name)
            home = self._home(spec.owner)
            if not state.get("prepared"):
                await asyncio.to_thread(self._put_inputs, spec, home)
                state = {"prepared": True}
                yield state
            await asyncio.to_thread(_put_token, spec, home)
            who = await launch(self._spec(spec, home))
        else:
            who = found.supervisor or Identity(0, 0, "")
        self._watch(who)
        yield {"prepared": True, "spawned": list(who)}

    async def check(self, attempts: Sequence[AttemptRef]) -> list[Observation]:
        """How each attempt stands, in the same order; what a dead supervisor left is ended before `gone` is said."""
        found = await asyncio.to_thread(lambda: [_observe(ref) for ref in attempts])
        for observation, who in found:
            if observation.phase in ("starting", "running") and who is not None:
                self._watch(who)
        return [observation for observation, _ in found]

    async def stop(self, attempt: AttemptRef, grace: float = 10) -> None:
        """Asks the supervisor to end the tree; an attempt that has not begun is kept from beginning. See `Backend`."""
        await asyncio.to_thread(_stop, attempt, grace)

    async def logs(self, attempt: AttemptRef, offset: int = 0) -> AsyncIterator[bytes]:
        """What the tree printed, from a byte offset to the present end."""
        try:
            fd = await asyncio.to_thread(_open_log, attempt.directory)
        except OSError:
            return
        try:
            end = os.fstat(fd).st_size
            while offset < end:
                data = await asyncio.to_thread(os.pread, fd, min(CHUNK, end - offset), offset)
                if not data:
                    return
                offset += len(data)
                yield data
        finally:
            os.close(fd)

    # --- powers
    def capacity(self) -> Capacity:
        """What this machine has, and what is free now."""
        return machine_capacity(self.machine_dir)

    async def changes(self) -> AsyncIterator[None]:
        """Once after any attempt's end; several ends may be one change."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield None

    # --- inside
    def _home(self, owner: str) -> HomeLike:
        home = self.homes.of(owner)
        if home.uid is None and getattr(self.homes, "accounts", False):
            # Without an account of its own it would run as we do, and with accounts we are root.
            raise AccountFailed(command="getpwnam", problem="the user has no account yet")
        return home

    def _spec(self, spec: AttemptSpec, home: HomeLike) -> Spec:
        return Spec(
            kind=KIND,
            id=attempt_id(spec),
            owner=spec.owner,
            profile=spec.profile,
            argv=self.command(home, spec),
            cwd=str(spec.directory / "work"),
            env=self.environment(spec, home),
            resources=spec.resources.model_dump(mode="json"),
            machine_dir=str(self.machine_dir),
            run_dir=str(spec.directory),
            uid=home.uid,
            gid=home.gid,
            time_limit=spec.time_limit,
            grace=self.grace,
            log_limit=self.log_limit,
        )

    def environment(self, spec: AttemptSpec, home: HomeLike) -> dict[str, str]:
        """The environment variables of an attempt; a profile's own can't displace what must hold."""
        env = {name: os.environ[name] for name in KEEP if name in os.environ}
        env.setdefault("LANG", "C.UTF-8")
        env |= self.variables | spec.env | home.variables(spec.environment.name)
        env |= {
            name: self.variables[name] for name in ("KAJIYA_API_URL", "MLFLOW_TRACKING_URI") if name in self.variables
        }
        if home.uid is not None:
            env |= _account_variables(home.uid)
        return env | {
            "PYTHONUNBUFFERED": "1",
            "KAJIYA_JOB": spec.job,
            "KAJIYA_ATTEMPT": str(spec.number),
            "KAJIYA_PROFILE": spec.profile,
            "KAJIYA_RESULTS_DIR": str(spec.directory / "work" / "results"),
            "KAJIYA_CHECKPOINT_DIR": str(spec.checkpoint),
            "KAJIYA_TOKEN_FILE": str(spec.directory / "token"),
            "KAJIYA_TOKEN": spec.token,
            "MLFLOW_TRACKING_TOKEN": spec.token,
        }

    def _put_inputs(self, spec: AttemptSpec, home: HomeLike) -> None:
        """Makes the attempt's folder complete. Nobody but us may write there yet, so that plain paths are safe."""
        folder = spec.directory
        for path in (folder, folder / "work"):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        spec.checkpoint.mkdir(exist_ok=True, mode=0o700)
        own = home.uid is not None and home.uid != os.geteuid()
        # With an account of its own the input changes hands, and so may not be the job's own file by a hard link.
        _put_tree(spec.inputs, folder / "input", link=not own)
        if not (folder / "run.json").exists():
            run = {
                "job": spec.job,
                "attempt": spec.number,
                "parameters": spec.parameters,
                "kernel_name": None,
                "results": spec.results,
                "limits": {},
            }
            _write(folder / "run.json", json.dumps(run).encode())
        if own:
            assert home.uid is not None
            # The account must be able to walk to what is its own, and to see nothing on the way.
            for path in list(folder.parents)[:3]:
                path.chmod(0o711)
            spec.inputs.chmod(0o700) if spec.inputs.is_dir() else None
            _give(spec.checkpoint, home.uid, home.gid if home.gid is not None else home.uid)
            _give(folder, home.uid, home.gid if home.gid is not None else home.uid)

    def _watch(self, who: Identity) -> None:
        if who.pid <= 0 or who in self._watched:
            return
        try:
            fd = os.pidfd_open(who.pid)
        except OSError:
            self._changed.set()
            return
        if not process.alive(who):
            os.close(fd)
            self._changed.set()
            return
        self._watched[who] = fd
        asyncio.get_running_loop().add_reader(fd, self._ended, who)

    def _ended(self, who: Identity) -> None:
        fd = self._watched.pop(who)
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        self._changed.set()


def attempt_id(attempt: AttemptSpec | AttemptRef) -> str:
    """What an attempt is called on this machine."""
    return f"{attempt.job}/{attempt.number}"


def _observe(ref: AttemptRef) -> tuple[Observation, Identity | None]:
    try:
        return _look(ref)
    except OSError:
        # A disk that does not answer, no descriptors left: nothing is known, so nothing is said.
        return Observation("unreachable"), None


def _look(ref: AttemptRef) -> tuple[Observation, Identity | None]:
    found = standing(ref.directory, KIND, attempt_id(ref))
    if found.exit is not None:
        return _ended(found.exit), None
    if found.lease is None:
        spawned, there = _spawned(ref.state), ref.directory.is_dir()
        if spawned is not None and process.alive(spawned):
            # Without its folder it was destroyed from inside, and still runs.
            return Observation("starting" if there else "running"), spawned
        if not there:
            return Observation("gone"), None
        if spawned is None:
            return Observation("starting"), None
        # Its supervisor died before it had the lease: taken by us, no other can begin it.
        if prevent(ref.directory, KIND, attempt_id(ref)):
            return Observation("gone"), None
        return _look(ref)
    if found.alive:
        return Observation("running" if found.started else "starting"), found.supervisor
    found = standing(ref.directory, KIND, attempt_id(ref))  # its last act may have been the exit record
    if found.exit is not None:
        return _ended(found.exit), None
    return Observation("gone" if end_leftovers(found) else "unreachable"), None


def _ended(record: Mapping[str, Any]) -> Observation:
    try:
        reason = Reason.model_validate(record["reason"]) if record.get("reason") else None
        return Observation(
            "ended",
            Ending(record["ending"]),
            record.get("exit_code"),
            reason,
            Usage.model_validate(record.get("usage") or {}),
        )
    except (KeyError, ValueError, ValidationError):
        # Ours, but not as this version writes it.
        return Observation("gone")


def _spawned(state: State) -> Identity | None:
    spawned = state.get("spawned")
    if isinstance(spawned, (list, tuple)) and len(spawned) == 3:
        with contextlib.suppress(TypeError, ValueError):
            return Identity(int(spawned[0]), int(spawned[1]), str(spawned[2]))
    return None


def _stop(ref: AttemptRef, grace: float) -> None:
    found = standing(ref.directory, KIND, attempt_id(ref))
    if found.exit is not None:
        return
    spawned = _spawned(ref.state)
    if found.lease is None and not (spawned is not None and process.alive(spawned)):
        if not ref.directory.is_dir() or prevent(ref.directory, KIND, attempt_id(ref), "stopped"):
            return
        found = standing(ref.directory, KIND, attempt_id(ref))
    ask_to_stop(ref.directory, found.supervisor or spawned, grace)


def _open_log(directory: Path) -> int:
    with records.opened(directory) as folder:
        fd = os.open(records.LOG, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileNotFoundError(records.LOG)
    return fd


def _put_tree(source: Path, target: Path, link: bool) -> None:
    """Puts what a job was given at its attempt's place, as links to the same files or as copies."""
    target.mkdir(exist_ok=True, mode=0o700)
    for name in ("notebook.ipynb", "files"):
        if not (source / name).exists():
            continue
        for folder, _, names in os.walk(source / name) if (source / name).is_dir() else [(source, [], [name])]:
            here = target / Path(folder).relative_to(source)
            here.mkdir(parents=True, exist_ok=True, mode=0o700)
            for file in names:
                _put_file(Path(folder) / file, here / file, link)


def _put_file(source: Path, target: Path, link: bool) -> None:
    if target.exists():
        if link or target.stat().st_nlink == 1:
            return
        target.unlink()
    if link:
        with contextlib.suppress(OSError):  # a file system without hard links, or too many of one file
            os.link(source, target, follow_symlinks=False)
            return
    new = target.with_name(f".{os.urandom(6).hex()}.new")
    shutil.copyfile(source, new, follow_symlinks=False)
    new.rename(target)


def _put_token(spec: AttemptSpec, home: HomeLike) -> None:
    """Writes the token, anew after a start cut short: the folder may be its owner's by then, so by descriptor."""
    with records.opened(spec.directory) as folder:
        new = f".token.{os.urandom(6).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, 0o600, dir_fd=folder)
        with os.fdopen(fd, "wb") as file:
            file.write(spec.token.encode())
            if home.uid is not None and home.gid is not None:
                os.fchown(fd, home.uid, home.gid)
            file.flush()
            os.fsync(fd)
        os.rename(new, "token", src_dir_fd=folder, dst_dir_fd=folder)


def _write(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    new.rename(path)


def _give(folder: Path, uid: int, gid: int) -> None:
    """Gives a tree to an account, the folder itself last: before that the account can reach nothing in it."""
    for here, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            os.lchown(Path(here) / name, uid, gid)
    os.lchown(folder, uid, gid)


def _account_variables(uid: int) -> dict[str, str]:
    import pwd

    name = pwd.getpwuid(uid).pw_name
    return {"USER": name, "LOGNAME": name}
