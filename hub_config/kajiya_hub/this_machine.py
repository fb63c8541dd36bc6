"""What the service asks of the machine it runs on: capacity, profiles, kernels of owners' environments."""

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from kajiya import profiles
from kajiya.errors import ConfigInvalid, InvalidRequest
from kajiya.machine.allocations import Allocations
from kajiya.machine.capacity import machine_capacity
from kajiya.machine.gpus import gpus
from kajiya.machine.homes import Homes
from kajiya.profiles import Limits, ProfileSet
from kajiya.types import Amount, Capacity

log = logging.getLogger(__name__)
JOB = "attempt"
SERVER = "server"
# Where jupyter_client looks for kernels beyond an environment and a home (jupyter_core.paths.SYSTEM_JUPYTER_PATH).
SYSTEM_KERNELS = (Path("/usr/local/share/jupyter/kernels"), Path("/usr/share/jupyter/kernels"))
NATIVE = "python3"


class Machine:
    """What there is on this machine, and who holds it; `directory` is where the allocations are kept."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._allocations = Allocations(directory)

    def capacity(self) -> Capacity:
        """What there is, and what is free now."""
        return machine_capacity(self._directory)

    def without_jobs(self) -> Capacity:
        """What would be free if no job ran: all there is, less what servers hold."""
        now = machine_capacity(self._directory)
        jobs = [h for h in self._allocations.live() if h.kind == JOB]
        cpu = now.cpu.free + sum(h.cpu for h in jobs if not h.shared)
        memory = now.memory.free + sum(h.memory for h in jobs)
        held = {uuid for h in jobs for uuid in h.gpus}
        kinds = Counter(g.kind for g in gpus() if g.uuid in held) if held else Counter[str]()
        return Capacity(
            cpu=Amount(total=now.cpu.total, free=min(now.cpu.total, cpu)),
            memory=Amount(total=now.memory.total, free=min(now.memory.total, memory)),
            gpus=[g.model_copy(update={"free": min(g.total, g.free + kinds[g.kind])}) for g in now.gpus],
            at=now.at,
        )

    def servers(self) -> Mapping[tuple[str, str], int]:
        """How often servers use a profile, by owner and profile."""
        return Counter((h.owner, h.profile) for h in self._allocations.live() if h.kind == SERVER)

    def used(self, owner: str, profile: str) -> int:
        """How often an owner uses a profile now, by servers and jobs."""
        return self._allocations.used(owner, profile)


class Profiles:
    """The profile file as it is now, read again when it changes; without one, what fits this machine.

    A file that became wrong is told in the log, and the last good one stays in force.
    """

    def __init__(self, path: Path, machine: Machine) -> None:
        self._path, self._machine = path, machine
        self._mutex = threading.Lock()
        self._mark: tuple[int, int] | None = None
        self._set: ProfileSet | None = None

    def __call__(self) -> ProfileSet:
        """The profiles in force. Raises `ConfigInvalid` where none was ever good."""
        with self._mutex:
            mark = self._look()
            if self._set is None or mark != self._mark:
                self._set = self._read(mark)
                self._mark = mark
            return self._set

    def _look(self) -> tuple[int, int] | None:
        try:
            info = self._path.stat()
        except OSError:
            return None
        return info.st_mtime_ns, info.st_size

    def _read(self, mark: tuple[int, int] | None) -> ProfileSet:
        if mark is None:
            return profiles.defaults(self._machine.capacity())
        try:
            return profiles.load(self._path)
        except ConfigInvalid as e:
            if self._set is None:
                raise
            log.error("%s", e)
            return self._set

    def limits(self) -> Limits:
        """The limits of each owner."""
        return self().limits

    def profile_limits(self) -> Mapping[str, int]:
        """How often one owner may use a profile at once."""
        return {p.slug: p.limit_per_user for p in self().profiles if p.limit_per_user is not None}


class Kernels:
    """The kernels that owners' environments have."""

    def __init__(self, homes: Homes, system: Sequence[Path] = SYSTEM_KERNELS) -> None:
        self._homes, self._system = homes, system

    def __call__(self, owner: str, name: str) -> Sequence[str] | None:
        """Names of kernels, or None where the default environment is made only when the job starts.

        Raises `InvalidRequest` for another environment that is not there.
        """
        home = self._homes.of(owner)
        environment = home.environment(name)
        if not environment.is_dir():
            if name == "default":
                return None
            raise InvalidRequest(field="environment", problem="no_environment")
        folders = (
            environment / "share" / "jupyter" / "kernels",
            home.jupyter_path / "kernels",
            home.path / ".local" / "share" / "jupyter" / "kernels",
            *self._system,
        )
        found = {NATIVE}
        for folder in folders:
            try:
                found |= {p.parent.name for p in folder.glob("*/kernel.json")}
            except OSError:
                continue
        return sorted(found)
