"""The data directory: where everything of one embedded Kajiya lies, with its modes, and who may use it."""

import contextlib
import ctypes
import fcntl
import os
import pwd
import secrets
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from kajiya.errors import DataDirInUse, DataDirOnNfs, DataDirUnusable

SECRETS = ("proxy.token", "hub.cookie", "service.token", "mlflow.token", "stack.token")

# File systems on which SQLite's file leases are not to be relied on; numbers of statfs(2) f_type.
NETWORK = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB2",
    0xFF534D42: "CIFS",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x73757245: "Coda",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
}


def default_path() -> Path:
    """The data directory where none is given: `kajiya` in the XDG data directory."""
    return platformdirs.user_data_path("kajiya", appauthor=False)


@dataclass(frozen=True)
class DataDir:
    """Paths in a data directory; nothing is made but by `prepare`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "kajiya.yaml"

    @property
    def profiles(self) -> Path:
        return self.root / "profiles.yaml"

    @property
    def lease(self) -> Path:
        return self.root / "lease"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def settings(self) -> Path:
        return self.run / "settings.json"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def hub(self) -> Path:
        return self.root / "hub"

    @property
    def hub_db(self) -> Path:
        return self.hub / "jupyterhub.sqlite"

    @property
    def signin_db(self) -> Path:
        return self.hub / "signin.sqlite"

    @property
    def service(self) -> Path:
        return self.root / "service"

    @property
    def service_db(self) -> Path:
        return self.service / "kajiya.sqlite"

    @property
    def jobs(self) -> Path:
        return self.service / "jobs"

    @property
    def snapshots(self) -> Path:
        """The image layout of all snapshots."""
        return self.root / "snapshots"

    @property
    def mlflow(self) -> Path:
        return self.root / "mlflow"

    @property
    def mlflow_db(self) -> Path:
        return self.mlflow / "mlflow.sqlite"

    @property
    def artifacts(self) -> Path:
        return self.mlflow / "artifacts"

    @property
    def homes(self) -> Path:
        return self.root / "homes"

    @property
    def machine(self) -> Path:
        return self.root / "machine"

    @property
    def servers(self) -> Path:
        """The run folders of user servers: leases, exits, logs."""
        return self.root / "servers"

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def secret(self, name: str) -> str:
        """The text of one secret, such as `service.token`. Raises `OSError`."""
        return (self.secrets / name).read_text("ascii").strip()

    def prepare(self, accounts: bool = False) -> None:
        """Makes all folders with their modes and the secrets that are missing.

        Raises `DataDirUnusable`, `DataDirOnNfs`.
        """
        open_to_traverse = 0o711 if accounts else 0o700
        try:
            made = not self.root.exists()
            self.root.mkdir(parents=True, exist_ok=True, mode=open_to_traverse)
            if not self.root.is_dir():
                raise DataDirUnusable(path=self.root, problem="it is not a folder")
            kind = network_file_system(self.root)
            if kind:
                if made:
                    self.root.rmdir()
                raise DataDirOnNfs(path=self.root, kind=kind)
            owner = self.root.stat().st_uid
            if owner != os.geteuid():
                raise DataDirUnusable(path=self.root, problem=f"it belongs to {_who(owner)}, and you are {_who()}")
            self.root.chmod(open_to_traverse)
            # With accounts a user must be able to walk to what is theirs, and to see nothing on the way.
            walked = (self.homes, self.service, self.jobs, self.servers, self.base)
            for folder in (self.run, self.secrets, self.hub, self.mlflow, self.artifacts, self.machine, self.cache,
                           self.logs, *walked):  # fmt: skip
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                folder.chmod(open_to_traverse if folder in walked else 0o700)
            for name in SECRETS:
                self._make_secret(self.secrets / name)
        except OSError as e:
            raise DataDirUnusable(path=self.root, problem=(e.strerror or str(e)).lower()) from e

    def _make_secret(self, path: Path) -> None:
        if path.exists() and path.stat().st_size >= 64:
            path.chmod(0o600)
            return
        new = path.with_suffix(path.suffix + ".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)


@dataclass
class Lease:
    """The exclusive use of a data directory, held as long as the process lives or until `release`."""

    fd: int

    def release(self) -> None:
        os.close(self.fd)


def take_lease(data: DataDir) -> Lease:
    """Takes the data directory for this process. Raises `DataDirInUse` with the holder's process id."""
    fd = os.open(data.lease, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise DataDirInUse(path=data.root, pid=pid) from e
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
    return Lease(fd)


def holder(data: DataDir) -> int | None:
    """The process id of the Kajiya that uses the data directory now, or None."""
    try:
        fd = os.open(data.lease, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(ValueError):
            return int(os.pread(fd, 32, 0).decode("ascii", "replace"))
        return -1
    else:
        return None
    finally:
        os.close(fd)


class _Statfs(ctypes.Structure):
    # Only the first field of struct statfs is read; it is a word on every Linux but s390, and the rest is room.
    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_char * 512))


def file_system_type(path: Path) -> int:
    """The `f_type` of statfs(2). Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = _Statfs()
    if libc.statfs(os.fsencode(path), ctypes.byref(buffer)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    return buffer.f_type & 0xFFFFFFFF


def network_file_system(path: Path) -> str | None:
    """The name of the network file system that a path lies on, or None for a local one."""
    return NETWORK.get(file_system_type(path))


def _who(uid: int | None = None) -> str:
    uid = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
