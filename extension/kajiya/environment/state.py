"""What a snapshot holds, as a blob beside its layers: every entry, and which files have the environment's path inside.

Which files those are can't be seen from their content alone: a file may say the path of environments in images for a
reason of its own, as Kajiya's own source does, and must stay as it is wherever it is restored.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from kajiya.environment import delta
from kajiya.environment.delta import Kept, State

LARGEST = 256 << 20
"""Bytes of a state, packed and unpacked."""


@dataclass(frozen=True)
class Held:
    """All entries by path, and the paths of files that were rewritten for the image."""

    entries: State
    moved: tuple[str, ...]


def dump(entries: Mapping[str, Kept], moved: Iterable[str]) -> bytes:
    """As bytes, not packed: the same environment gives the same bytes."""
    return json.dumps(sorted(moved), separators=(",", ":")).encode("ascii") + b"\n" + delta.dump(entries)


def pack(plain: bytes) -> bytes:
    """As it is sent."""
    return zlib.compress(plain, 6)


def unpack(packed: bytes) -> Held:
    """What `dump` and `pack` gave. Raises `ValueError`."""
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(packed, LARGEST)
    except zlib.error as e:
        raise ValueError("it can't be unpacked") from e
    if not unpacker.eof:
        raise ValueError("it is cut or too large")
    first, _, rest = plain.partition(b"\n")
    moved: Any = json.loads(first)
    if not isinstance(moved, list) or not all(isinstance(path, str) for path in cast("list[Any]", moved)):
        raise ValueError("it has no list of files")
    return Held(delta.load(rest), tuple(cast("list[str]", moved)))
