"""What an environment holds, found by `stat` alone where nothing changed: entries, their content's hashes, one digest.

The digest tells of names, kinds, executability, link targets and content. It tells nothing of times, owners and
compiled bytecode, which running a notebook changes. A file's hash is used again while inode, size, times and mode are
the same.
"""

import gc
import json
import os
import stat
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from kajiya.environment.leftout import CACHE, MOUNTED, SPECIAL, Leftout, is_tagged_cache, judge, judge_folder
from kajiya.errors import EnvironmentChanging, EnvironmentUnreadable

FILE, FOLDER, LINK = "f", "d", "l"

# A file that was changed within this time before it was hashed may have been changed again within one tick of the
# file system's clock, with the same times; so its hash is not used again. NFS servers' clocks differ a little too.
_TICK = 2_000_000_000

_TRIES = 5
_CHUNK = 1 << 20
_VERSION = 1


class Entry(NamedTuple):
    """One file, folder or link. `digest` is sha256 in hex; `embeds`: the content has the environment's path in it."""

    kind: str
    mode: int
    size: int
    mtime: int
    ctime: int
    inode: int
    links: int
    target: str = ""
    digest: str = ""
    embeds: bool = False
    hashed: int = 0
    """When it was hashed, in nanoseconds."""


@dataclass(frozen=True)
class Fingerprint:
    """An environment at one moment; `entries` by path below `root`, `left_out` what no layer may have."""

    root: str
    entries: dict[str, Entry]
    left_out: tuple[Leftout, ...] = ()
    digest: str = ""
    read: int = field(default=0, compare=False)
    """How many files had to be read for it."""

    def same_as(self, other: "Fingerprint") -> bool:
        """Whether nothing was changed between the two, times included."""
        return self.root == other.root and {p: _stat_part(e) for p, e in self.entries.items()} == {
            p: _stat_part(e) for p, e in other.entries.items()
        }

    def dump(self) -> bytes:
        """As bytes, to be kept and given to `take` again."""
        value = {
            "version": _VERSION,
            "root": self.root,
            "digest": self.digest,
            "left_out": [list(x) for x in self.left_out],
            "paths": list(self.entries),
            # By column: much faster to read than one list an entry.
            "columns": list(zip(*self.entries.values(), strict=True)),
        }
        # Not orjson: names that are not UTF-8 are surrogates in Python, and JSON's escapes keep them.
        return json.dumps(value, separators=(",", ":")).encode("ascii")


def load(data: bytes) -> Fingerprint | None:
    """What `dump` gave, or None for anything else: then everything is read again."""
    try:
        value = json.loads(data)
        if value["version"] != _VERSION:
            return None
        with _no_collection():
            rows = map(Entry._make, zip(*value["columns"], strict=True))
            entries: dict[str, Entry] = dict(zip(value["paths"], rows, strict=True)) if value["paths"] else {}
        left_out = tuple(Leftout(*x) for x in value["left_out"])
        return Fingerprint(str(value["root"]), entries, left_out, str(value["digest"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def take(
    root: Path, before: Fingerprint | None = None, *, progress: Callable[[int, int], None] | None = None
) -> Fingerprint:
    """The fingerprint of an environment. `before` is an earlier one of it, whose hashes are used again.

    `progress` is told the bytes hashed and those to hash. Raises `EnvironmentChanging` where a file does not stay as it
    is while it is read, and `EnvironmentUnreadable`.
    """
    with _no_collection():
        return _take(root, before, progress)


def _take(root: Path, before: Fingerprint | None, progress: Callable[[int, int], None] | None) -> Fingerprint:
    top = os.path.abspath(root)  # noqa: PTH100 - links on the way stay as the environment's own files name them
    known = before.entries if before is not None and before.root == top else {}
    found, left_out = _walk(top)
    needles = needles_of(top)
    todo: list[str] = []
    for path, entry in found.items():
        if entry.kind != FILE:
            continue
        old = known.get(path)
        if old is not None and _unchanged(old, entry):
            found[path] = entry._replace(digest=old.digest, embeds=old.embeds, hashed=old.hashed)
        else:
            todo.append(path)
    total, done = sum(found[path].size for path in todo), 0
    for path in todo:
        entry = _hash(top, path, needles)
        if entry is None:
            del found[path]
            continue
        found[path] = entry
        done += entry.size
        if progress is not None:
            progress(done, total)
    if not todo and before is not None and before.digest and _alike(found, known):
        return Fingerprint(top, found, left_out, before.digest)
    return Fingerprint(top, found, left_out, _digest(found), len(todo))


@contextmanager
def _no_collection() -> Generator[None]:
    """Many thousand tuples that live on would each time be looked through by the garbage collector."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def roots_of(root: str) -> tuple[str, ...]:
    """The paths by which an environment's files name it: as given, and without links; the longest first."""
    return tuple(sorted({root, os.path.realpath(root)}, key=lambda path: (-len(path), path)))


def needles_of(root: str) -> tuple[bytes, ...]:
    """The bytes that a file has which names its environment's path: plain, as in an address, and as JSON has it."""
    plain = [os.fsencode(path) for path in roots_of(root)]
    in_json = [json.dumps(path)[1:-1].encode("ascii") for path in roots_of(root)]
    return tuple(dict.fromkeys([*plain, *(quote(path).encode("ascii") for path in plain), *in_json]))


# --- the walk
def _walk(top: str) -> tuple[dict[str, Entry], tuple[Leftout, ...]]:
    entries: dict[str, Entry] = {}
    left_out: list[Leftout] = []
    try:
        device = os.lstat(f"{top}/.").st_dev
    except OSError as e:
        raise EnvironmentUnreadable(path=top, problem=(e.strerror or str(e)).lower()) from e
    todo = [""]
    regular, is_link = stat.S_IFREG, stat.S_IFLNK
    while todo:
        prefix = todo.pop()
        try:
            with os.scandir(f"{top}/{prefix}") as scan:
                listed = list(scan)
        except FileNotFoundError:
            continue  # gone since its parent was read
        except OSError as e:
            raise EnvironmentUnreadable(path=f"{top}/{prefix}", problem=(e.strerror or str(e)).lower()) from e
        # The environment's own mark, which uv makes, is no reason to leave out everything.
        if (
            prefix
            and any(item.name == "CACHEDIR.TAG" for item in listed)
            and is_tagged_cache(f"{top}/{prefix}CACHEDIR.TAG")
        ):
            del entries[prefix[:-1]]
            left_out.append(Leftout(prefix[:-1], CACHE))
            continue
        for item in listed:
            name = item.name
            path = prefix + name
            try:
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            kind = stat.S_IFMT(status.st_mode)
            mode = status.st_mode & 0o7777
            if kind == regular:
                why = judge(top, path, name, status.st_size)
                if why is None:
                    times = status.st_mtime_ns, status.st_ctime_ns
                    entries[path] = Entry(FILE, mode, status.st_size, *times, status.st_ino, status.st_nlink)
                elif why:
                    left_out.append(Leftout(path, why))
            elif kind == stat.S_IFDIR:
                why = MOUNTED if status.st_dev != device else judge_folder(top, path, name)
                if why is None:
                    entries[path] = Entry(FOLDER, mode, 0, 0, 0, 0, 0)
                    todo.append(path + "/")
                elif why:
                    left_out.append(Leftout(path, why))
            elif kind == is_link:
                try:
                    target = os.readlink(item.path)  # noqa: PTH115 - its text, untouched
                except OSError:
                    continue
                entries[path] = Entry(LINK, 0o777, 0, 0, 0, 0, 0, target)
            else:
                left_out.append(Leftout(path, SPECIAL))
    return entries, tuple(sorted(left_out))


def _unchanged(old: Entry, new: Entry) -> bool:
    if (old.kind, old.inode, old.size, old.mtime, old.mode) != (new.kind, new.inode, new.size, new.mtime, new.mode):
        return False
    if not old.digest or old.ctime > old.hashed - _TICK:
        return False
    # A link that was made to the file, as when another environment is cloned, also sets its change time.
    return old.ctime == new.ctime or old.links != new.links


def _stat_part(entry: Entry) -> tuple[object, ...]:
    return (entry.kind, entry.mode, entry.size, entry.mtime, entry.inode, entry.target)


def _alike(found: Mapping[str, Entry], known: Mapping[str, Entry]) -> bool:
    if found.keys() != known.keys():
        return False
    return all(e.kind == (o := known[p]).kind and e.mode == o.mode and e.target == o.target for p, e in found.items())


# --- content
def _hash(top: str, path: str, needles: Sequence[bytes]) -> Entry | None:
    """The entry with its hash; None if the file is gone. A file that changes while it is read is read again."""
    place = f"{top}/{path}"
    for attempt in range(_TRIES):
        try:
            fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as e:
            raise EnvironmentUnreadable(path=place, problem=(e.strerror or str(e)).lower()) from e
        try:
            now = time.time_ns()
            first = os.fstat(fd)
            if not stat.S_ISREG(first.st_mode):
                raise EnvironmentChanging(path=place)
            digest, embeds, size = _content(fd, needles)
            last = os.fstat(fd)
        finally:
            os.close(fd)
        times = last.st_mtime_ns, last.st_ctime_ns
        if (first.st_mtime_ns, first.st_ctime_ns, first.st_size) == (*times, size) and size == last.st_size:
            mode = last.st_mode & 0o7777
            return Entry(FILE, mode, size, *times, last.st_ino, last.st_nlink, "", digest, embeds, now)
        time.sleep(0.02 * (attempt + 1))
    raise EnvironmentChanging(path=place)


def _content(fd: int, needles: Sequence[bytes]) -> tuple[str, bool, int]:
    found, embeds, size, tail = sha256(), False, 0, b""
    keep = max(map(len, needles)) - 1
    while data := os.read(fd, _CHUNK):
        found.update(data)
        size += len(data)
        if not embeds:
            window = tail + data
            embeds = any(needle in window for needle in needles)
            tail = window[-keep:]
    return found.hexdigest(), embeds, size


def _digest(entries: Mapping[str, Entry]) -> str:
    total = sha256(b"kajiya environment 1\n")
    for path in sorted(entries):
        entry = entries[path]
        executable = "x" if entry.kind == FILE and entry.mode & 0o100 else ""
        line = f"{path}\0{entry.kind}{executable}\0{entry.target}\0{entry.digest}\n"
        total.update(line.encode("utf-8", "surrogateescape"))
    return f"sha256:{total.hexdigest()}"
