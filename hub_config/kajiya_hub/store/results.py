"""Copying the files that a job keeps out of a folder that its owner can write to at the same time."""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kajiya.errors import InvalidPath
from kajiya.types import GiB, MiB, Result
from kajiya_hub.store.paths import printable, safe_path, wanted
from kajiya_hub.store.safe_open import regular

RESULTS_FOLDER = "results"


@dataclass(frozen=True)
class Caps:
    """How much of one attempt is kept: files, bytes over all, and how many names are looked at."""

    count: int = 1000
    bytes: int = 4 * GiB
    names: int = 200_000
    depth: int = 32


@dataclass
class Collected:
    """What was kept, and what was wanted but is left out: too many, too large, a link, or an unusable name."""

    results: list[Result] = field(default_factory=list[Result])
    left_out: list[str] = field(default_factory=list[str])
    left_out_count: int = 0

    def leave_out(self, path: str) -> None:
        """Counts a file that is not kept; the first few are named."""
        self.left_out_count += 1
        if len(self.left_out) < 20:
            self.left_out.append(printable(path))


def collect(work: Path, target: Path, attempt: int, patterns: Sequence[str], caps: Caps) -> Collected:
    """Copies the wanted regular files from `work` to `target`; links, devices and pipes are left out."""
    out = Collected()
    left = caps.bytes
    try:
        top = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return out
    owner = os.fstat(top).st_uid
    try:
        for folder, name, path, is_file in _walk(top, caps):
            if not wanted((*patterns, RESULTS_FOLDER), path):
                continue
            if not is_file or len(out.results) >= caps.count:
                out.leave_out(path)
                continue
            kept = _copy(folder, name, path, target, owner, left)
            if kept is None:
                out.leave_out(path)
                continue
            size, digest = kept
            left -= size
            out.results.append(Result(path=path, size=size, sha256=digest, attempt=attempt))
    finally:
        os.close(top)
    out.results.sort(key=lambda r: r.path)
    return out


def _walk(top: int, caps: Caps) -> Iterator[tuple[int, str, str, bool]]:
    """Folder's descriptor, name, path below the top, whether it is a regular file; in the order of names."""
    seen = 0
    for where, inner, names, fd in os.fwalk(".", follow_symlinks=False, dir_fd=top, onerror=lambda e: None):
        prefix = "" if where == "." else where.removeprefix("./") + "/"
        inner.sort()
        if prefix.count("/") >= caps.depth:
            inner.clear()
        for name in sorted(names):
            seen += 1
            if seen > caps.names:
                return
            try:
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except OSError:
                continue
            yield fd, name, prefix + name, stat.S_ISREG(info.st_mode)


def _copy(folder: int, name: str, path: str, target: Path, owner: int, limit: int) -> tuple[int, str] | None:
    try:
        # A name may hold what no answer can: it is left out, and said.
        if safe_path(path) != path:
            return None
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        source = regular(fd, owner, path)
    except (OSError, InvalidPath, UnicodeError):
        return None
    digest, size = hashlib.sha256(), 0
    place = target / path
    with source:
        # The size is read as it was: a file that still grows must not be copied for ever.
        todo = os.fstat(source.fileno()).st_size
        if todo > limit:
            return None
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with place.open("xb") as f:
            os.fchmod(f.fileno(), 0o600)
            while size < todo and (chunk := source.read(min(MiB, todo - size))):
                size += len(chunk)
                digest.update(chunk)
                f.write(chunk)
            f.flush()
            os.fsync(f.fileno())
    return size, digest.hexdigest()
