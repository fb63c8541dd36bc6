"""A layer written: one tar of what an environment adds, compressed as it is made, the same content as the same bytes.

Owners are 0:0, times are one fixed time, entries are in order with whiteouts before their siblings, names and link
targets are the file system's own bytes. There are no devices, no sparse files and no hard link out of the layer.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from kajiya.oci import tar
from kajiya.oci.errors import ContentChanged, NameInvalid, NoSpace
from kajiya.oci.streams import CHUNK, MEDIA_TYPES, Compression, Sink

Kind = Literal["file", "directory", "symlink", "hardlink", "whiteout"]

TIME = 315532800
"""The time of every entry: 1980-01-01, the first that a wheel (a zip) can hold."""

WHITEOUT = b".wh."
_SPARE = 4 << 20  # files up to this size are read whole, so that one that changes meanwhile is simply read again
_TRIES = 5


@dataclass(frozen=True)
class Item:
    """One entry of a layer. `path` is relative, without a leading or trailing slash.

    A file's content is `data`, or else the file at `source`, which must still have `size` and `digest` (sha256 in hex,
    where it is known). `target` is a symbolic link's text, or the path in this layer of what a hard link is the same
    file as. A whiteout's `path` is that of what is no longer there.
    """

    path: bytes
    kind: Kind
    mode: int = 0o644
    size: int = 0
    target: bytes = b""
    source: bytes = b""
    data: bytes | None = None
    digest: str = ""


@dataclass(frozen=True)
class Layer:
    """A layer that was written: where it lies, its digests (`sha256:…`) and its sizes in bytes."""

    path: Path
    media_type: str
    digest: str
    size: int
    diff_id: str
    plain_size: int
    entries: int


def write(
    items: Iterable[Item],
    folder: Path,
    *,
    compression: Compression = "zstd",
    level: int = 3,
    threads: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Layer:
    """Writes a layer into a folder as `<digest in hex>`: whole and on the disk, or not at all.

    `progress` is told the bytes of content so far. Memory does not grow with the content, only with the number of
    entries. Raises `ContentChanged`, `NameInvalid`, `NoSpace`, `OSError`.
    """
    new = folder / f".new-{os.getpid()}-{os.urandom(6).hex()}"
    try:
        with new.open("xb") as file:
            sink = Sink(file, compression, level, threads)
            count = _fill(sink, in_order(items), progress)
            sink.close()
            file.flush()
            os.fsync(file.fileno())
        path = folder / sink.digest.removeprefix("sha256:")
        new.chmod(0o644)
        new.rename(path)
        sync(folder)
    except BaseException as e:
        with suppress(OSError):
            new.unlink()
        if isinstance(e, OSError) and e.errno in (28, 122):  # ENOSPC, EDQUOT
            raise NoSpace(path=str(folder)) from e
        raise
    return Layer(path, MEDIA_TYPES[compression], sink.digest, sink.size, sink.diff_id, sink.plain_size, count)


def sync(folder: Path) -> None:
    """Puts a folder's own entries on the disk, so that a rename in it lasts."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def in_order(items: Iterable[Item]) -> list[Item]:
    """The order of a layer: folders before what is in them, whiteouts before their siblings, names by their bytes."""
    return sorted(items, key=_key)


def _key(item: Item) -> list[tuple[int, bytes]]:
    *parents, name = item.path.split(b"/")
    return [*((1, p) for p in parents), (0 if item.kind == "whiteout" else 1, name)]


def _fill(sink: Sink, items: list[Item], progress: Callable[[int], None] | None) -> int:
    seen: set[bytes] = set()
    done = 0
    for item in items:
        path = _name(item, seen)
        if item.kind == "file":
            _file(sink, path, item)
            done += item.size
            if progress is not None:
                progress(done)
        elif item.kind == "whiteout":
            sink.write(tar.pack(tar.Header(path, tar.FILE, 0o644, 0, TIME)))
        elif item.kind == "directory":
            sink.write(tar.pack(tar.Header(path + b"/", tar.DIRECTORY, item.mode, 0, TIME)))
        elif item.kind == "symlink":
            sink.write(tar.pack(tar.Header(path, tar.SYMLINK, 0o777, 0, TIME, item.target)))
        else:
            if item.target not in seen:
                raise NameInvalid(path=tar.show(path), problem="its other name is not in this layer")
            sink.write(tar.pack(tar.Header(path, tar.HARD_LINK, item.mode, 0, TIME, item.target)))
    sink.write(tar.END)
    return len(items)


def _name(item: Item, seen: set[bytes]) -> bytes:
    parts = item.path.split(b"/")
    problem = ""
    if b"" in parts or b"." in parts or b".." in parts or b"\0" in item.path:
        problem = "it is no relative path"
    elif any(part.startswith(WHITEOUT) for part in parts):
        problem = "names that begin with .wh. mean a removal in a layer"
    path = item.path if item.kind != "whiteout" else b"/".join([*parts[:-1], WHITEOUT + parts[-1]])
    if path in seen:
        problem = "it is there twice"
    if problem:
        raise NameInvalid(path=tar.show(item.path), problem=problem)
    seen.add(path)
    return path


def _file(sink: Sink, path: bytes, item: Item) -> None:
    data = item.data
    if data is None and item.size <= _SPARE:
        data = _read_whole(item)
    if data is not None:
        size = len(data)
        sink.write(tar.pack(tar.Header(path, tar.FILE, item.mode, size, TIME)) + data + tar.padding(size))
        return
    sink.write(tar.pack(tar.Header(path, tar.FILE, item.mode, item.size, TIME)))
    found, left = sha256(), item.size
    with open(item.source, "rb", buffering=0, opener=_open) as file:
        while left and (chunk := file.read(min(left, CHUNK))):
            found.update(chunk)
            sink.write(chunk)
            left -= len(chunk)
        more = file.read(1)
    # The header is written: a file that changed can't be taken half, so the whole layer is given up.
    if left or more or (item.digest and found.hexdigest() != item.digest):
        raise ContentChanged(path=tar.show(item.path))
    sink.write(tar.padding(item.size))


def _read_whole(item: Item) -> bytes:
    for _ in range(_TRIES):
        with open(item.source, "rb", buffering=0, opener=_open) as file:
            data = file.readall()
        if len(data) == item.size and (not item.digest or sha256(data).hexdigest() == item.digest):
            return data
    raise ContentChanged(path=tar.show(item.path))


def _open(path: str | bytes, flags: int) -> int:
    # A fifo or a device that took the file's place must not hold us up, and a link must not be followed.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
