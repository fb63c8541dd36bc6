"""Paths that come from users are hostile until checked here; patterns of files to keep. Pure."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from fnmatch import translate
from functools import lru_cache

from kajiya.errors import InvalidPath

PATH_BYTES = 1024
NAME_BYTES = 255  # NAME_MAX of Linux file systems, limits.h
DEPTH = 32


def safe_path(text: str) -> str:
    """The path, relative and inside its folder, with `.` parts and doubled slashes taken out. Raises `InvalidPath`."""
    parts = [p for p in text.split("/") if p not in ("", ".")]
    good = (
        0 < len(parts) <= DEPTH
        and not text.startswith("/")
        and ".." not in parts
        # Control characters and lone surrogates; all letters of all scripts are welcome.
        and not any(unicodedata.category(c) in ("Cc", "Cs") or c in "\u2028\u2029" for c in text[: PATH_BYTES + 1])
        and len(text) <= PATH_BYTES
    )
    if good:
        path = "/".join(parts)
        encoded = path.encode()
        if len(encoded) <= PATH_BYTES and all(len(p) <= NAME_BYTES for p in encoded.split(b"/")):
            return path
    raise InvalidPath(path=printable(text))


def printable(text: str, limit: int = 100) -> str:
    """The text as it may stand in a sentence or a log: short, and without control characters."""
    short = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cs") else c for c in short)


@lru_cache(maxsize=1024)
def _segment(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


def _segment_matches(pattern: str, name: str) -> bool:
    # As in a shell, a leading dot is only matched by a leading dot.
    if name.startswith(".") and not pattern.startswith("."):
        return False
    return _segment(pattern).match(name) is not None


def matches(pattern: str, path: str) -> bool:
    """Whether a file is wanted: `*.csv`, `plots/*.png`, `**/model.pkl`; a folder's name wants all that is in it."""
    parts, wanted = path.split("/"), [p for p in pattern.split("/") if p not in ("", ".")]
    if not wanted or ".." in wanted:
        return False
    # Positions in the pattern that the path read so far can stand at; so the cost is their product, never more.
    at = {0}
    for part in parts:
        at = _through_stars(wanted, at)
        step: set[int] = set()
        for i in at:
            if i == len(wanted):
                # Below a folder that is wanted by its name everything is.
                if wanted[-1] != "**":
                    step.add(i)
            elif wanted[i] == "**":
                if not part.startswith("."):
                    step.add(i)
            elif _segment_matches(wanted[i], part):
                step.add(i + 1)
        at = step
    return len(wanted) in _through_stars(wanted, at)


def _through_stars(wanted: Sequence[str], at: set[int]) -> set[int]:
    out = set(at)
    for i in sorted(at):
        while i < len(wanted) and wanted[i] == "**":
            i += 1
            out.add(i)
    return out


def wanted(patterns: Iterable[str], path: str) -> bool:
    """Whether any of the patterns wants the file."""
    return any(matches(p, path) for p in patterns)
