"""Layers read: checked, and unpacked into a new folder by folder descriptors, never following a link.

The digest of the blob is verified before a byte of it is parsed. A target is there whole or not at all.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from kajiya.oci import tar
from kajiya.oci.errors import (
    BlobDamaged,
    BlobMissing,
    DiffIdMismatch,
    DigestMismatch,
    MediaTypeRefused,
    NameInvalid,
    NoSpace,
    SizeMismatch,
    ThroughLink,
)
from kajiya.oci.rules import Checked, Limits, Rules
from kajiya.oci.streams import CHUNK, MEDIA_TYPES, Compression, Source

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Blob:
    """A layer as it lies on the disk, and what was promised of it."""

    path: Path
    digest: str
    media_type: str = MEDIA_TYPES["zstd"]
    size: int | None = None
    diff_id: str | None = None


@dataclass(frozen=True)
class Contents:
    """What a checked layer holds."""

    entries: int
    plain_size: int
    diff_id: str


def inspect(blob: Blob, *, inside: bytes = b"", links: Sequence[bytes] = (), limits: Limits | None = None) -> Contents:
    """Reads and checks a whole layer and writes nothing. Raises `OciError`."""
    rules = Rules(inside, links, limits)
    with _opened(blob) as file:
        return _read(file, blob, rules, limits or Limits(), lambda _entry, _reader: None)


def extract(
    blobs: Iterable[Blob],
    target: Path,
    *,
    inside: bytes = b"",
    links: Sequence[bytes] = (),
    limits: Limits | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Unpacks layers, the lowest first, into a folder that is not there yet.

    `inside` is the folder of the image whose content `target` shall have; `links` as in `Rules`. `progress` is told
    the bytes of content so far. Owners are this process's. Raises `OciError`, `FileExistsError`, `OSError`.
    """
    if os.path.lexists(target):
        raise FileExistsError(str(target))
    new = target.parent / f".new-{os.getpid()}-{os.urandom(6).hex()}"
    new.mkdir(mode=0o700)
    try:
        tree = _Tree(new, progress)
        try:
            for blob in blobs:
                rules = Rules(inside, links, limits)
                tree.rules = rules
                with _opened(blob) as file:
                    _read(file, blob, rules, limits or Limits(), tree.put)
            tree.finish()
        finally:
            tree.close()
        new.rename(target)
    except BaseException as e:
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(e, OSError) and e.errno in (28, 122):  # ENOSPC, EDQUOT
            raise NoSpace(path=str(target)) from e
        raise


def verify(file: BinaryIO, digest: str, size: int | None = None) -> None:
    """Reads a file to its end and back to its beginning. Raises `SizeMismatch`, `DigestMismatch`."""
    found, count = sha256(), 0
    while data := file.read(CHUNK):
        found.update(data)
        count += len(data)
    if size is not None and count != size:
        raise SizeMismatch(digest=digest, expected=size, actual=count)
    if digest != f"sha256:{found.hexdigest()}":
        raise DigestMismatch(expected=digest, actual=f"sha256:{found.hexdigest()}")
    file.seek(0)


def _opened(blob: Blob) -> BinaryIO:
    try:
        fd = os.open(blob.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as e:
        raise BlobMissing(digest=blob.digest) from e
    return os.fdopen(fd, "rb", buffering=0)


def _compression(media_type: str) -> Compression:
    for compression, known in MEDIA_TYPES.items():
        if media_type == known:
            return compression
    raise MediaTypeRefused(media_type=media_type)


def _read(
    file: BinaryIO, blob: Blob, rules: Rules, limits: Limits, put: Callable[[Checked, tar.Reader], None]
) -> Contents:
    compression = _compression(blob.media_type)
    verify(file, blob.digest, blob.size)
    source = Source(file, compression, limits.plain_size, limits.ratio, limits.floor)
    reader = tar.Reader(source.read)
    count = 0
    while (header := reader.next()) is not None:
        count += 1
        entry = rules.check(header)
        if entry is not None:
            put(entry, reader)
    if not source.rest_is_padding():
        raise BlobDamaged(problem="something follows the end of the archive")
    if blob.diff_id is not None and blob.diff_id != source.diff_id:
        raise DiffIdMismatch(expected=blob.diff_id, actual=source.diff_id)
    return Contents(count, source.plain_size, source.diff_id)


class _Tree:
    """The folder that is being filled. Folders' modes and times are set last, so that none stands in the way."""

    def __init__(self, root: Path, progress: Callable[[int], None] | None) -> None:
        self._root = os.open(root, _FOLDER)
        self._names: list[bytes] = []
        self._fds: list[int] = []
        self._folders: dict[tuple[bytes, ...], tuple[int, int]] = {}
        self._progress = progress
        self._done = 0
        self.rules = Rules()

    def close(self) -> None:
        self._leave(0)
        os.close(self._root)

    def put(self, entry: Checked, reader: tar.Reader) -> None:
        """Writes one checked entry. Raises `ThroughLink`, `NameInvalid`, `OSError`."""
        try:
            self._put(entry, reader)
        except OSError as e:
            if e.errno in (36, 22, 84):  # ENAMETOOLONG, EINVAL, EILSEQ
                raise NameInvalid(path=tar.show(entry.path), problem=(e.strerror or str(e)).lower()) from e
            raise

    def finish(self) -> None:
        """Gives the folders their modes and times, those deep inside first."""
        for parts in sorted(self._folders, key=len, reverse=True):
            mode, mtime = self._folders[parts]
            with suppress(FileNotFoundError, ThroughLink):  # a later layer took it away
                fd = self._enter(parts, make=False)
                os.fchmod(fd, mode)
                os.utime(fd, (mtime, mtime))
        self._leave(0)
        os.fchmod(self._root, 0o755)

    def _put(self, entry: Checked, reader: tar.Reader) -> None:
        if entry.kind in ("whiteout", "opaque"):
            self._take_away(entry)
            return
        *parents, name = entry.parts
        folder = self._enter(tuple(parents), make=True)
        if entry.kind == "directory":
            self._folder(folder, name, entry)
            return
        self._clear(folder, name, entry.parts)
        if entry.kind == "symlink":
            os.symlink(entry.target, name, dir_fd=folder)
            os.utime(name, (entry.mtime, entry.mtime), dir_fd=folder, follow_symlinks=False)
        elif entry.kind == "hardlink":
            self._hard_link(folder, name, entry)
        else:
            self._file(folder, name, entry, reader)

    def _file(self, folder: int, name: bytes, entry: Checked, reader: tar.Reader) -> None:
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
        try:
            while data := reader.content(CHUNK):
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            os.fchmod(fd, entry.mode)
            os.utime(fd, (entry.mtime, entry.mtime))
        finally:
            os.close(fd)
        self._done += entry.size
        if self._progress is not None:
            self._progress(self._done)

    def _hard_link(self, folder: int, name: bytes, entry: Checked) -> None:
        # The other name's folder is opened apart: the chain of open folders stays with this entry's.
        fds = [os.dup(self._root)]
        try:
            for part in entry.linked[:-1]:
                fds.append(os.open(part, _FOLDER, dir_fd=fds[-1]))
            os.link(entry.linked[-1], name, src_dir_fd=fds[-1], dst_dir_fd=folder, follow_symlinks=False)
        finally:
            for fd in fds:
                os.close(fd)

    def _folder(self, folder: int, name: bytes, entry: Checked) -> None:
        found = _lstat(folder, name)
        if found is not None and not stat.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=folder)
            found = None
        if found is None:
            os.mkdir(name, 0o700, dir_fd=folder)
        self._folders[entry.parts] = (entry.mode, entry.mtime)

    def _clear(self, folder: int, name: bytes, parts: tuple[bytes, ...]) -> None:
        found = _lstat(folder, name)
        if found is None:
            return
        if stat.S_ISDIR(found.st_mode):
            self._leave(len(parts) - 1)
            self._remove(folder, name, parts)
        else:
            os.unlink(name, dir_fd=folder)

    def _take_away(self, entry: Checked) -> None:
        """Removes what lower layers had there; what this layer put there stays."""
        parts = entry.parts
        with suppress(FileNotFoundError):
            if entry.kind == "opaque":
                folder = self._enter(parts, make=False)
                for name in os.listdir(folder):  # noqa: PTH208 - a descriptor
                    self._remove(folder, os.fsencode(name), (*parts, os.fsencode(name)))
            else:
                self._remove(self._enter(parts[:-1], make=False), parts[-1], parts)
            self._leave(len(parts) - (entry.kind == "whiteout"))

    def _remove(self, folder: int, name: bytes, parts: tuple[bytes, ...]) -> bool:
        """Whether nothing is left there."""
        found = _lstat(folder, name)
        if found is None:
            return True
        mine = b"/".join(parts) in self.rules.seen
        if not stat.S_ISDIR(found.st_mode):
            if not mine:
                os.unlink(name, dir_fd=folder)
            return not mine
        fd = os.open(name, _FOLDER, dir_fd=folder)
        try:
            names = [os.fsencode(child) for child in os.listdir(fd)]  # noqa: PTH208 - a descriptor
            left = [child for child in names if not self._remove(fd, child, (*parts, child))]
        finally:
            os.close(fd)
        if left or (mine and self.rules.seen[b"/".join(parts)] == "directory"):
            return False
        os.rmdir(name, dir_fd=folder)
        self._folders.pop(parts, None)
        return True

    def _enter(self, parts: tuple[bytes, ...], make: bool) -> int:
        """A descriptor of a folder below the root, each step without following a link."""
        common = 0
        while common < min(len(parts), len(self._names)) and parts[common] == self._names[common]:
            common += 1
        self._leave(common)
        for part in parts[common:]:
            folder = self._fds[-1] if self._fds else self._root
            try:
                fd = os.open(part, _FOLDER, dir_fd=folder)
            except FileNotFoundError:
                if not make:
                    raise
                os.mkdir(part, 0o700, dir_fd=folder)
                self._folders.setdefault((*self._names, part), (0o755, 0))
                fd = os.open(part, _FOLDER, dir_fd=folder)
            except OSError as e:
                if e.errno in (20, 40):  # ENOTDIR, ELOOP
                    raise ThroughLink(path=tar.show(b"/".join(parts))) from e
                raise
            self._names.append(part)
            self._fds.append(fd)
        return self._fds[-1] if self._fds else self._root

    def _leave(self, depth: int) -> None:
        while len(self._fds) > depth:
            os.close(self._fds.pop())
            self._names.pop()


def _lstat(folder: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
