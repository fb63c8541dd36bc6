"""A folder cloned: by hard links where files may be shared, else by reflinks, else by copies."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

_FICLONE = 0x40049409  # ioctl number of FICLONE, linux/fs.h


def clone(source: Path, target: Path, share: bool) -> None:
    """Makes `target` (which is not there yet) equal to `source`: content, modes, links and times.

    With `share` files are hard links, which is right where all owners are one Unix account: installers replace files
    and do not write into them. Without it every file is a new one. Raises `OSError`.
    """
    target.mkdir(mode=0o755)
    with os.scandir(source) as entries:
        for entry in entries:
            new = target / entry.name
            if entry.is_symlink():
                new.symlink_to(Path(entry.path).readlink())
            elif entry.is_dir():
                clone(Path(entry.path), new, share)
            elif not (share and _linked(entry.path, new)):
                _copy(entry, new)


def _linked(source: str, target: Path) -> bool:
    # Another file system, too many links, or a system that forbids links to others' files.
    with suppress(OSError):
        os.link(source, target)
        return True
    return False


def _copy(entry: "os.DirEntry[str]", target: Path) -> None:
    status = entry.stat(follow_symlinks=False)
    source_fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        target_fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.ioctl(target_fd, _FICLONE, source_fd)
            except OSError:
                done = 0
                while done < status.st_size:
                    sent = os.sendfile(target_fd, source_fd, done, status.st_size - done)
                    if sent == 0:
                        break
                    done += sent
            os.fchmod(target_fd, status.st_mode & 0o777)
            # A module's bytecode is valid only for the module's exact time.
            os.utime(target_fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)
