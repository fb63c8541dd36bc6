"""What a layer must hold so that a base becomes the present environment: entries added, changed and removed.

In an image an environment lies at one path, so its files are taken as they must be there; what was captured is compared
in that form, and two homes with the same packages have the same layer.
"""

import json
import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from kajiya.environment.fingerprint import FILE, FOLDER, LINK, Entry, Fingerprint, needles_of, roots_of
from kajiya.environment.leftout import OUTSIDE, Leftout
from kajiya.environment.rewrite import LARGEST_TEXT, moved, recorded, without_credentials
from kajiya.errors import EnvironmentChanging, EnvironmentNameReserved, EnvironmentNotMovable, EnvironmentUnreadable
from kajiya.oci.layer import WHITEOUT, Item, in_order

PREFIX = "/opt/kajiya/env"
"""Where an environment lies in an image."""


class Kept(NamedTuple):
    """One entry as the image has it; `digest` is sha256 in hex of the content there."""

    kind: str
    mode: int
    size: int
    target: str
    digest: str


State = dict[str, Kept]
"""An environment as an image has it, by path below it."""


@dataclass(frozen=True)
class Delta:
    """A layer to be: its entries, and what they mean for a person. Paths are below the environment."""

    items: list[Item]
    state: State
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    left_out: tuple[Leftout, ...]
    links: tuple[str, ...]
    """Files outside the environment to which its links lead: the interpreter. Needed again to unpack."""

    size: int
    """Bytes of content."""

    moved: tuple[str, ...] = ()
    """All files, added now or before, whose content in the image is another than here."""

    @property
    def empty(self) -> bool:
        """Whether the base is the present environment already."""
        return not (self.added or self.changed or self.removed)


def plan(present: Fingerprint, base: Mapping[str, Kept] | None = None, *, prefix: str = PREFIX) -> Delta:
    """The layer on a base (`Delta.state` of an earlier one), or the first one.

    Raises `EnvironmentNotMovable`, `EnvironmentNameReserved`, `EnvironmentChanging`, `EnvironmentUnreadable`.
    """
    reserved = [p for p in present.entries if _reserved(p)]
    if reserved:
        raise EnvironmentNameReserved(paths=sorted(reserved))
    contents = _contents(present, prefix)
    state, links, outside = _state(present, contents, prefix)
    below: Mapping[str, Kept] = base or {}
    added = {p for p in state if p not in below}
    changed = {p for p in state if p in below and state[p] != below[p]}
    removed = {p for p in below if p not in state}
    items = _items(present, state, contents, added | changed, prefix)
    gone = [p for p in removed if posixpath.dirname(p) not in removed]
    gone += [p for p in changed if below[p].kind == FOLDER and state[p].kind != FOLDER]
    gone = [p for p in gone if _in_folder(p, state)]
    items += [Item(_inside(prefix, p), "whiteout") for p in gone]
    items = _with_parents(items)
    return Delta(
        in_order(items),
        state,
        tuple(sorted(added)),
        tuple(sorted(changed)),
        tuple(sorted(removed)),
        tuple(sorted({*present.left_out, *outside})),
        tuple(sorted(links)),
        sum(item.size for item in items),
        tuple(sorted(contents)),
    )


def dump(state: Mapping[str, Kept]) -> bytes:
    """A state as bytes; the same state gives the same bytes."""
    paths = sorted(state)
    value = {"version": 1, "paths": paths, "columns": list(zip(*(state[p] for p in paths), strict=True))}
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def load(data: bytes) -> State:
    """What `dump` gave. Raises `ValueError`."""
    try:
        value = json.loads(data)
        if value["version"] != 1:
            raise ValueError("a state of another version")
        if not value["paths"]:
            return {}
        return dict(zip(value["paths"], map(Kept._make, zip(*value["columns"], strict=True)), strict=True))
    except (KeyError, TypeError) as e:
        raise ValueError("no state of an environment") from e


# --- the content there
def _contents(present: Fingerprint, prefix: str) -> dict[str, bytes]:
    """Files whose content in the image is another than here. All that can't be moved is named at once."""
    old, new = needles_of(present.root), os.fsencode(prefix)
    out: dict[str, bytes] = {}
    stuck: list[str] = []
    for path, entry in present.entries.items():
        direct = path.endswith(".dist-info/direct_url.json")
        # A RECORD is put right below; it names its own files and never the environment's path.
        if entry.kind != FILE or not (entry.embeds or direct):
            continue
        data = _read(present.root, path, entry) if entry.size <= LARGEST_TEXT else None
        if data is None or (there := moved(data, old, new)) is None:
            stuck.append(path)
            continue
        if direct:
            there = without_credentials(there)
        if there != data:
            out[path] = there
    if stuck:
        raise EnvironmentNotMovable(paths=sorted(stuck))
    if out:
        _put_records_right(present, out)
    return out


def _put_records_right(present: Fingerprint, contents: dict[str, bytes]) -> None:
    names = tuple({os.fsencode(posixpath.basename(p)) for p in contents})
    for path, entry in present.entries.items():
        if entry.kind != FILE or not path.endswith(".dist-info/RECORD"):
            continue
        data = contents.get(path) or _read(present.root, path, entry)
        if not any(name in data for name in names):
            continue
        site = posixpath.dirname(posixpath.dirname(path))
        there = recorded(data, site, contents)
        if there != data:
            contents[path] = there


def _read(root: str, path: str, entry: Entry) -> bytes:
    place = f"{root}/{path}"
    try:
        fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            data = file.read(LARGEST_TEXT + 1)
    except FileNotFoundError as e:
        raise EnvironmentChanging(path=place) from e
    except OSError as e:
        raise EnvironmentUnreadable(path=place, problem=(e.strerror or str(e)).lower()) from e
    if sha256(data).hexdigest() != entry.digest:
        raise EnvironmentChanging(path=place)
    return data


# --- the state there
def _state(present: Fingerprint, contents: Mapping[str, bytes], prefix: str) -> tuple[State, set[str], list[Leftout]]:
    roots = roots_of(present.root)
    state: State = {}
    links: set[str] = set()
    outside: list[Leftout] = []
    for path, entry in present.entries.items():
        if entry.kind == FOLDER:
            state[path] = Kept(FOLDER, 0o755, 0, "", "")
        elif entry.kind == FILE:
            data = contents.get(path)
            size, digest = (entry.size, entry.digest) if data is None else (len(data), sha256(data).hexdigest())
            state[path] = Kept(FILE, _mode(entry.mode), size, "", digest)
        else:
            target = _target(entry.target, roots, prefix)
            if path.startswith("bin/python") and target.startswith("/") and not _below(target, prefix):
                # The interpreter, which an image has at the same path.
                links.add(target)
            elif not _stays(target, path, prefix):
                outside.append(Leftout(path, OUTSIDE))
                continue
            state[path] = Kept(LINK, 0o777, 0, target, "")
    return state, links, outside


def _mode(mode: int) -> int:
    """Readable by all, because in an image another account runs; writable by the owner at most; never setuid."""
    return (mode & 0o755) | (0o555 if mode & 0o100 else 0o444)


def _target(target: str, roots: Sequence[str], prefix: str) -> str:
    for root in roots:
        if _below(target, root):
            return prefix + target[len(root) :]
    return target


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _stays(target: str, path: str, prefix: str) -> bool:
    """Whether a link leads to below the environment whatever lies on its way: as `kajiya.oci.rules` will ask."""
    steps = [s for s in target.split("/") if s not in ("", ".")]
    up = 0
    while up < len(steps) and steps[up] == "..":
        up += 1
    if ".." in steps[up:]:
        return False
    return (not up and _below(target, prefix)) if target.startswith("/") else up <= path.count("/")


def _reserved(path: str) -> bool:
    return posixpath.basename(path).startswith(os.fsdecode(WHITEOUT))


# --- the entries of the layer
def _inside(prefix: str, path: str) -> bytes:
    return os.fsencode(f"{prefix.strip('/')}/{path}" if path else prefix.strip("/"))


def _in_folder(path: str, state: State) -> bool:
    parent = posixpath.dirname(path)
    return not parent or (parent in state and state[parent].kind == FOLDER)


def _items(
    present: Fingerprint, state: State, contents: Mapping[str, bytes], wanted: set[str], prefix: str
) -> list[Item]:
    out: list[Item] = []
    shared: dict[int, list[Item]] = {}
    for path in wanted:
        kept, name = state[path], _inside(prefix, path)
        if kept.kind == FOLDER:
            out.append(Item(name, "directory", kept.mode))
        elif kept.kind == LINK:
            out.append(Item(name, "symlink", kept.mode, target=os.fsencode(kept.target)))
        else:
            source = os.fsencode(f"{present.root}/{path}")
            item = Item(name, "file", kept.mode, kept.size, b"", source, contents.get(path), kept.digest)
            entry = present.entries[path]
            if entry.links > 1 and path not in contents:
                shared.setdefault(entry.inode, []).append(item)
            else:
                out.append(item)
    for same in shared.values():
        first, *others = in_order(same)
        out.append(first)
        out += [Item(other.path, "hardlink", other.mode, target=first.path) for other in others]
    return out


def _with_parents(items: list[Item]) -> list[Item]:
    """Each folder above a change is named too, so that no unpacking tool has to invent its mode."""
    there = {item.path for item in items if item.kind != "whiteout"}
    parents: set[bytes] = set()
    for item in items:
        path = item.path
        while b"/" in path:
            path = path.rsplit(b"/", 1)[0]
            if path in parents:
                break
            parents.add(path)
    return [*items, *(Item(p, "directory", 0o755) for p in parents - there)]
