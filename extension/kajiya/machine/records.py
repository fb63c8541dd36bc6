"""Small JSON records in a run folder, which may belong to a hostile user: whole or not at all, and no link is followed.

A folder is held open by descriptor, so that whoever owns it can't put another in its place between two looks.
"""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

Record = dict[str, Any]

LEASE, EXIT, OUTCOME, STOP, LOG, NOTICES = (
    "lease.json",
    "exit.json",
    "outcome.json",
    "stop",
    "log.txt",
    "notices.jsonl",
)
LIMIT = 64 * 1024
RESERVE = ".exit.reserve"


@contextlib.contextmanager
def opened(path: Path | str) -> Generator[int]:
    """A folder's descriptor; the last part of the path is not followed if it is a link. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def read(folder: int, name: str, owner: int | None = None) -> Record | None:
    """A record, or None if there is none, it is no JSON object, too large, no plain file, or not `owner`'s.

    Raises `OSError` where nothing can be said.
    """
    try:
        # Without O_NONBLOCK a named pipe in its place would hold the reader up for ever.
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > LIMIT or owner not in (None, facts.st_uid):
            return None
        value = json.loads(os.read(fd, LIMIT))
    except (ValueError, RecursionError):
        return None
    finally:
        os.close(fd)
    return value if isinstance(value, dict) else None  # pyright: ignore[reportUnknownVariableType]


def write(folder: int, name: str, record: Record) -> None:
    """Writes a record by fsync and rename, over an earlier one. Raises `OSError`."""
    temporary = _beside(folder, name, record)
    try:
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        _forget(folder, temporary)
        raise
    os.fsync(folder)


def create(folder: int, name: str, record: Record) -> bool:
    """Writes a record only if there is none of that name: of many that try, one succeeds. Raises `OSError`."""
    temporary = _beside(folder, name, record)
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    finally:
        _forget(folder, temporary)
    os.fsync(folder)
    return True


def reserve(folder: int) -> None:
    """Sets room aside for the exit record, so that a full disk can't keep an end from being told. Raises `OSError`."""
    _forget(folder, RESERVE)
    fd = os.open(RESERVE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        _write_all(fd, b" " * 4096)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_exit(folder: int, record: Record, wait: Callable[[int], None]) -> None:
    """Writes the exit record whatever it takes: into the reserved room, else again and again until there is some.

    `wait` is called with the number of the try before each new one.
    """
    tries = 0
    while True:
        for way in (_write_reserved, write):
            try:
                way(folder, EXIT, record)
                _forget(folder, RESERVE)
                return
            except FileNotFoundError:
                if way is write:  # the folder itself is gone, and with it whoever would ask
                    return
            except OSError as e:
                if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EINVAL, errno.EEXIST):
                    raise
        tries += 1
        wait(tries)


def _write_reserved(folder: int, name: str, record: Record) -> None:
    data = _encode(record)
    fd = os.open(RESERVE, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_nlink != 1:
            raise FileNotFoundError(errno.ENOENT, "the reserved room was taken away")
        if len(data) > facts.st_size:
            raise OSError(errno.EINVAL, "the record is larger than the reserved room")
        # Over the blocks that are there; the blanks that are left are blanks in JSON too, so no new block is needed.
        os.pwrite(fd, data.ljust(facts.st_size), 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(RESERVE, name, src_dir_fd=folder, dst_dir_fd=folder)
    with contextlib.suppress(OSError):
        os.fsync(folder)


def _beside(folder: int, name: str, record: Record) -> str:
    temporary = f".{name}.{os.getpid()}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o644, dir_fd=folder)
    try:
        _write_all(fd, _encode(record))
        os.fsync(fd)
    except OSError:
        _forget(folder, temporary)
        raise
    finally:
        os.close(fd)
    return temporary


def _encode(record: Record) -> bytes:
    return (json.dumps(record, ensure_ascii=True) + "\n").encode("ascii")


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _forget(folder: int, name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=folder)
