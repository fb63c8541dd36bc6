"""Opening and removing files in folders that a user can write to: no link is ever followed."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kajiya.errors import DiskFull, InvalidPath
from kajiya_hub.store.paths import printable, safe_path

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO in the place of a file must not hang the service.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk into `DiskFull`."""
    try:
        yield
    except OSError as e:
        if e.errno in FULL:
            raise DiskFull(path=str(path)) from e
        raise


def open_nofollow(base: Path, path: str) -> BinaryIO:
    """A regular file below `base`, opened part by part without following a link.

    Raises `FileNotFoundError` where there is none, and `InvalidPath` where it is a link, a device or a pipe, lies
    behind a link, or is a hard link to a file of somebody else.
    """
    parts = safe_path(path).split("/")
    folder = os.open(base, _DIR)
    try:
        owner = os.fstat(folder).st_uid
        for part in parts[:-1]:
            inner = _open(part, _DIR, folder, path)
            os.close(folder)
            folder = inner
        return regular(_open(parts[-1], _FILE, folder, path), owner, path)
    finally:
        os.close(folder)


def _open(name: str, flags: int, folder: int, path: str) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise InvalidPath(path=printable(path)) from e
        raise


def regular(fd: int, owner: int, path: str) -> BinaryIO:
    """The open file, if it is a regular one that is the owner's or has no other name. Raises `InvalidPath`."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or (info.st_nlink > 1 and info.st_uid != owner):
        os.close(fd)
        raise InvalidPath(path=printable(path))
    return os.fdopen(fd, "rb")


def fsync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Removes a folder and all in it, also where its folders were made unwritable; nothing there is no error."""
    if not shutil.rmtree.avoids_symlink_attacks:  # pragma: no cover (never so on Linux)
        raise OSError("this system can't remove folders safely")
    # Root needs no mode bits; and for root a chmod by name could be led astray by a user who swaps in a link.
    if os.geteuid() != 0 and path.is_dir() and not path.is_symlink():
        path.chmod(0o700)
        for _, inner, _, fd in os.fwalk(path, follow_symlinks=False):
            for name in inner:
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode) and info.st_mode & 0o700 != 0o700:
                    os.chmod(name, 0o700, dir_fd=fd)
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
