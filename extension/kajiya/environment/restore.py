"""Restore: a snapshot becomes an environment and a kernel in the home, beside those that are there.

Every layer is verified before a byte of it is unpacked, entries are checked one by one, and the environment appears
under its name by one rename, whole or not at all.
"""

import json
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kajiya.environment import Progress, silent
from kajiya.environment import state as states
from kajiya.environment.base import mutex
from kajiya.environment.capture import shown
from kajiya.environment.delta import PREFIX
from kajiya.environment.rewrite import LARGEST_TEXT, moved, recorded
from kajiya.errors import DiskFull, DownloadDamaged, EnvironmentExists, InterpreterMissing, InvalidName
from kajiya.machine.homes import Home
from kajiya.messages import message
from kajiya.names import safe_environment_name, slug
from kajiya.oci.errors import NoSpace, OciError
from kajiya.oci.extract import Blob, extract
from kajiya.sizes import show_size
from kajiya.types import Reason, Snapshot


class Service(Protocol):
    """What of the client is needed here."""

    def fetch_blob(self, digest: str, to: Path) -> Path: ...
    def blob(self, digest: str, most: int) -> bytes: ...


@dataclass(frozen=True)
class Restored:
    """An environment made from a snapshot: its name, its folder, and the kernel that runs it."""

    environment: str
    path: Path
    kernel: str
    snapshot: Snapshot


def restore(
    service: Service, snapshot: Snapshot, home: Home, name: str | None = None, progress: Progress = silent
) -> Restored:
    """Makes the environment `name` and its kernel. Raises `InvalidName`, `EnvironmentExists`, `InterpreterMissing`,
    `DownloadDamaged`, `DiskFull`."""
    name = name or environment_name(snapshot)
    if not safe_environment_name(name) or name == "default":
        raise InvalidName(name=name, problem="an environment's name is 1 to 63 of a-z, 0-9 and inner hyphens")
    for path in snapshot.interpreter:
        if not os.access(path, os.X_OK):
            raise InterpreterMissing(snapshot=shown(snapshot), python=snapshot.python, path=path)
    target = home.environment(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.path.lexists(target):
            raise EnvironmentExists(name=name)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".restore-") as folder:
            _unpack(service, snapshot, Path(folder), target, progress)
            with mutex(target.parent / ".mutex"):
                if os.path.lexists(target):
                    raise EnvironmentExists(name=name)
                (Path(folder) / "env").rename(target)
        kernel = write_kernel(home, name, snapshot)
    except NoSpace as e:
        raise DiskFull(path=str(target)) from e
    except OciError as e:
        raise DownloadDamaged(path=message(e.code, e.params)) from e
    except OSError as e:
        if e.errno in (28, 122):  # ENOSPC, EDQUOT
            raise DiskFull(path=str(target)) from e
        raise
    progress(Reason(code="restore.done", params={"environment": name, "kernel": kernel}))
    return Restored(name, target, kernel, snapshot)


def environment_name(snapshot: Snapshot) -> str:
    """The name of the environment where none is given: the snapshot's own, made fit for a folder."""
    name = snapshot.names[0] if snapshot.names else f"snapshot-{snapshot.digest[7:19]}"
    return name if safe_environment_name(name) else slug(name).replace("--", "-")


def _unpack(service: Service, snapshot: Snapshot, folder: Path, target: Path, progress: Progress) -> None:
    blobs: list[Blob] = []
    for number, layer in enumerate(snapshot.layers, 1):
        params = {"number": number, "count": len(snapshot.layers), "size": show_size(layer.size)}
        progress(Reason(code="restore.fetching", params=params))
        path = service.fetch_blob(layer.digest, folder / f"layer-{number}")
        blobs.append(Blob(path, layer.digest, layer.media_type, layer.size, layer.diff_id))
    progress(Reason(code="restore.unpacking"))
    links = [os.fsencode(path) for path in snapshot.interpreter]
    extract(blobs, folder / "env", inside=os.fsencode(PREFIX.strip("/")), links=links)
    for blob in blobs:
        blob.path.unlink()
    try:
        held = states.unpack(service.blob(snapshot.state, states.LARGEST))
    except ValueError as e:
        raise DownloadDamaged(path=snapshot.state) from e
    move(folder / "env", PREFIX, target, held.moved)


def move(root: Path, old: str, new: Path, moved_files: Iterable[str]) -> None:
    """Puts the files at `root`, which are as they must be at `old`, right for `new`. Raises `OSError`.

    `moved_files` are those that have the path inside, by path below `root`; a link shows by itself where it leads.
    """
    needle, there = os.fsencode(old), os.fsencode(new)
    top = os.fspath(root)
    changed: dict[str, bytes] = {}
    records: list[str] = []
    for inner in moved_files:
        # The list is a blob like any other: it names files of this very environment, or nothing.
        if not _plain_file(top, inner):
            continue
        data = _read(f"{top}/{inner}")
        if inner.endswith(".dist-info/RECORD"):
            records.append(inner)
        if (mended := moved(data, [needle], there)) is not None and mended != data:
            changed[inner] = mended
    for inner in records:
        data = changed.get(inner) or _read(f"{top}/{inner}")
        changed[inner] = recorded(data, posixpath.dirname(posixpath.dirname(inner)), changed)
    for inner, data in changed.items():
        _write(f"{top}/{inner}", data)
    for place, folders, names in os.walk(top):
        for entry in [*folders, *names]:
            if os.path.islink(f"{place}/{entry}"):  # noqa: PTH114 - names of any encoding
                _relink(f"{place}/{entry}", old, os.fspath(new))


def _plain_file(top: str, inner: str) -> bool:
    parts = inner.split("/")
    if not inner or ".." in parts or "" in parts or "\0" in inner:
        return False
    place = top
    for part in parts:
        place = f"{place}/{part}"
        if os.path.islink(place):  # noqa: PTH114
            return False
    return os.path.isfile(place) and os.path.getsize(place) <= LARGEST_TEXT  # noqa: PTH113, PTH202


def _relink(path: str, old: str, new: str) -> None:
    target = os.readlink(path)  # noqa: PTH115 - its text, untouched
    if target == old or target.startswith(old + "/"):
        os.unlink(path)  # noqa: PTH108
        os.symlink(new + target[len(old) :], path)  # noqa: PTH211


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read()


def _write(path: str, data: bytes) -> None:
    # A new file: the old one may be the same as others by hard links.
    status = os.stat(path)  # noqa: PTH116
    new = f"{path}.new-{os.getpid()}"
    with open(new, "xb") as file:  # noqa: PTH123
        file.write(data)
        os.fchmod(file.fileno(), status.st_mode & 0o777)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(new, path)  # noqa: PTH105


def write_kernel(home: Home, name: str, snapshot: Snapshot) -> str:
    """A kernel for an environment, whole or not at all; gives its display name."""
    variables = home.variables(name, path="${PATH}")
    title = f"Python 3 ({shown(snapshot)})" if shown(snapshot) == name else f"Python 3 ({name}: {shown(snapshot)})"
    spec = {
        "argv": [str(home.python(name)), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": title,
        "language": "python",
        "interrupt_mode": "signal",
        "env": {k: variables[k] for k in ("PATH", "VIRTUAL_ENV", "PIP_USER", "PYTHONNOUSERSITE")},
        "metadata": {"debugger": True, "kajiya": {"environment": name, "snapshot": snapshot.digest}},
    }
    kernels = home.jupyter_path / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=kernels, prefix=".new-"))
    try:
        (new / "kernel.json").write_text(json.dumps(spec, indent=1, ensure_ascii=False) + "\n", "utf-8")
        new.chmod(0o755)
        place = kernels / name
        if place.exists():
            # Of an environment of that name that is gone.
            shutil.rmtree(place)
        new.rename(place)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(new)
        raise
    return title
