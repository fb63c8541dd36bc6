"""What an entry of a layer may be: every name, link and mode is hostile until it was checked here. Nothing is written.

A layer that an environment gave has none of what is refused, so there is no lenient mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kajiya.oci import tar
from kajiya.oci.errors import (
    Duplicate,
    HardLinkInvalid,
    LinkOutside,
    NameInvalid,
    PathOutside,
    SpecialFile,
    SpecialMode,
    ThroughLink,
    TooManyEntries,
    WhiteoutInvalid,
)

Kind = Literal["file", "directory", "symlink", "hardlink", "whiteout", "opaque"]

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"


@dataclass(frozen=True)
class Limits:
    """How much a layer may hold. A ratio above `ratio` is a bomb only where more than `floor` bytes came out."""

    entries: int = 1_000_000
    plain_size: int = 64 << 30
    ratio: int = 1000
    floor: int = 1 << 30
    depth: int = 128
    path: int = 4095
    name: int = 255


@dataclass(frozen=True)
class Checked:
    """An entry that may be written: its path below the target, in parts, each a plain name."""

    parts: tuple[bytes, ...]
    kind: Kind
    mode: int
    size: int
    mtime: int
    target: bytes = b""
    linked: tuple[bytes, ...] = ()

    @property
    def path(self) -> bytes:
        return b"/".join(self.parts)


class Rules:
    """Checks the entries of one layer in turn.

    `inside` is the folder of the image that is taken; what lies elsewhere is refused, its parents are passed over.
    `links` are the absolute paths of files outside it to which symbolic links may lead: an interpreter.
    """

    def __init__(self, inside: bytes = b"", links: Sequence[bytes] = (), limits: Limits | None = None) -> None:
        self._inside = tuple(p for p in inside.split(b"/") if p)
        self._links = frozenset(links)
        self._limits = limits or Limits()
        self.seen: dict[bytes, Kind] = {}
        self._parents: set[bytes] = set()
        self._count = 0

    def check(self, header: tar.Header) -> Checked | None:
        """The entry, or None for one that says nothing (the root, a parent of `inside`). Raises `LayerRefused`."""
        self._count += 1
        if self._count > self._limits.entries:
            raise TooManyEntries(limit=self._limits.entries)
        parts = self._parts(header.path)
        kind = self._kind(header)
        if kind == "file" and parts and parts[-1].startswith(_WHITEOUT):
            return self._whiteout(header, parts)
        if any(part.startswith(_WHITEOUT) for part in parts):
            raise WhiteoutInvalid(path=tar.show(header.path))
        # The sticky bit too: no file of an environment has it, and it means something only on shared folders.
        if kind != "symlink" and header.mode & 0o7000:
            raise SpecialMode(path=tar.show(header.path), mode=oct(header.mode & 0o7777))
        below = self._below(header.path, parts, kind)
        if below is None:
            return None
        self._remember(header.path, below, kind)
        linked: tuple[bytes, ...] = ()
        if kind == "hardlink":
            linked = self._linked(header)
        elif kind == "symlink":
            self._check_link(header, parts)
        return Checked(below, kind, header.mode & 0o777, header.size, header.mtime, header.target, linked)

    def _kind(self, header: tar.Header) -> Kind:
        kinds: dict[bytes, Kind] = {
            tar.FILE: "file",
            tar.DIRECTORY: "directory",
            tar.SYMLINK: "symlink",
            tar.HARD_LINK: "hardlink",
        }
        kind = kinds.get(header.type)
        if kind is None:
            raise SpecialFile(path=tar.show(header.path))
        return kind

    def _parts(self, path: bytes) -> tuple[bytes, ...]:
        shown = tar.show(path)
        if path.startswith(b"/"):
            raise PathOutside(path=shown)
        if not path or b"\0" in path or len(path) > self._limits.path:
            raise NameInvalid(path=shown[:200], problem="it is empty or too long")
        parts = path.removesuffix(b"/").split(b"/")
        if parts[0] == b".":  # as GNU tar writes what it was given as "."
            parts = parts[1:]
        if b".." in parts:
            raise PathOutside(path=shown)
        if b"" in parts or b"." in parts:
            raise NameInvalid(path=shown, problem="it has an empty part")
        if any(len(part) > self._limits.name for part in parts) or len(parts) > self._limits.depth:
            raise NameInvalid(path=shown[:200], problem="it is too long or too deep")
        return tuple(parts)

    def _below(self, path: bytes, parts: tuple[bytes, ...], kind: Kind) -> tuple[bytes, ...] | None:
        inside = self._inside
        if len(parts) <= len(inside):
            # The folder itself and its parents must be folders; they are there already.
            if kind == "directory" and inside[: len(parts)] == parts:
                return None
            raise PathOutside(path=tar.show(path))
        if parts[: len(inside)] != inside:
            raise PathOutside(path=tar.show(path))
        return parts[len(inside) :]

    def _remember(self, path: bytes, below: tuple[bytes, ...], kind: Kind) -> None:
        for i in range(1, len(below)):
            if self.seen.get(b"/".join(below[:i]), "directory") != "directory":
                raise ThroughLink(path=tar.show(path))
        name = b"/".join(below)
        if name in self.seen:
            raise Duplicate(path=tar.show(path))
        # A folder that only appears as a parent must not be replaced by a link later: note it now.
        for i in range(len(below) - 1, 0, -1):
            parent = b"/".join(below[:i])
            if parent in self.seen or parent in self._parents:
                break
            self._parents.add(parent)
        if kind != "directory" and name in self._parents:
            raise Duplicate(path=tar.show(path))
        self.seen[name] = kind

    def _linked(self, header: tar.Header) -> tuple[bytes, ...]:
        refused = HardLinkInvalid(path=tar.show(header.path), target=tar.show(header.target))
        try:
            below = self._below(header.target, self._parts(header.target), "file")
        except (PathOutside, NameInvalid) as e:
            raise refused from e
        if below is None or self.seen.get(b"/".join(below)) != "file":
            raise refused
        return below

    def _check_link(self, header: tar.Header, parts: tuple[bytes, ...]) -> None:
        """A link may lead to below `inside` only, whatever links lie on the way.

        So `..` stands only at the beginning, where the parents are known to be real folders.
        """
        target = header.target
        refused = LinkOutside(path=tar.show(header.path), target=tar.show(target))
        if not target or b"\0" in target or len(target) > self._limits.path:
            raise refused
        if target in self._links:
            return
        steps = [step for step in target.split(b"/") if step not in (b"", b".")]
        up = 0
        while up < len(steps) and steps[up] == b"..":
            up += 1
        if b".." in steps[up:]:
            raise refused
        if target.startswith(b"/"):
            if up or (self._inside and tuple(steps[: len(self._inside)]) != self._inside):
                raise refused
            return
        if up > len(parts) - 1 - len(self._inside):
            raise refused

    def _whiteout(self, header: tar.Header, parts: tuple[bytes, ...]) -> Checked:
        refused = WhiteoutInvalid(path=tar.show(header.path))
        name = parts[-1].removeprefix(_WHITEOUT)
        opaque = parts[-1] == _OPAQUE
        bad = name in (b"", b".", b"..") or (name.startswith(_WHITEOUT) and not opaque)
        if header.size or bad or any(part.startswith(_WHITEOUT) for part in parts[:-1]):
            raise refused
        if opaque and parts[:-1] == self._inside:
            return self._marked(header, (), "opaque")
        # What is taken away lies where what is added would lie.
        below = self._below(header.path, parts[:-1] if opaque else (*parts[:-1], name), "whiteout")
        if below is None:
            raise refused
        return self._marked(header, below, "opaque" if opaque else "whiteout")

    def _marked(self, header: tar.Header, below: tuple[bytes, ...], kind: Kind) -> Checked:
        for i in range(1, len(below) + (kind == "opaque")):
            if self.seen.get(b"/".join(below[:i]), "directory") != "directory":
                raise ThroughLink(path=tar.show(header.path))
        return Checked(below, kind, 0, 0, header.mtime)
