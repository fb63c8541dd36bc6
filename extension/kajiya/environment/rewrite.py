"""An environment's files as they must be at another path: pure functions from bytes to bytes.

Text names the old path in shebangs, `pyvenv.cfg`, `.pth`, activation scripts, kernel specifications, `direct_url.json`.
Binary files can't be changed, because what is inside has its place; a zip behind a shebang can, because a zip's places
are counted from its end.
"""

import base64
import csv
import posixpath
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256

LARGEST_TEXT = 64 << 20
"""Bytes; a larger file that has the path inside is taken for binary."""

_USERINFO = re.compile(rb"(?<=://)(?!git@|\$\{)[^/\s\"'@]+@")


def moved(data: bytes, old: Sequence[bytes], new: bytes) -> bytes | None:
    """The content with every mention of the old path as the new one; None where it is binary and mentions it.

    A longer name that only begins with the old path is another path, and stays.
    """
    whole = b"|".join(re.escape(path) for path in sorted(old, key=len, reverse=True))
    pattern = re.compile(rb"(?<![\w.-])(?:" + whole + rb")(?![\w.-])")
    if b"\0" not in data:
        return pattern.sub(lambda _: new, data)
    head, tail = b"", data
    if data.startswith(b"#!"):
        line, newline, tail = data.partition(b"\n")
        head = pattern.sub(lambda _: new, line) + newline
    return None if any(path in tail for path in old) else head + tail


def without_credentials(data: bytes) -> bytes:
    """A `direct_url.json` without the name and password that its address may have (PEP 610 asks for that too)."""
    return _USERINFO.sub(b"", data)


def recorded(record: bytes, site: str, changed: Mapping[str, bytes]) -> bytes:
    """A RECORD with the hashes and sizes of files that were changed; `site` is the folder its names start from.

    All other lines stay byte by byte. https://packaging.python.org/specifications/recording-installed-packages/
    """
    out: list[bytes] = []
    for line in record.splitlines(keepends=True):
        text = line.decode("utf-8", "surrogateescape")
        name = _first(text)
        data = changed.get(posixpath.normpath(posixpath.join(site, name))) if name else None
        if data is None or text.rstrip("\r\n").endswith(",,"):  # of a file that has no hash there
            out.append(line)
            continue
        end = text[len(text.rstrip("\r\n")) :]
        digest = base64.urlsafe_b64encode(sha256(data).digest()).rstrip(b"=").decode("ascii")
        quoted = f'"{name.replace(chr(34), chr(34) * 2)}"' if any(c in name for c in ',"') else name
        out.append(f"{quoted},sha256={digest},{len(data)}{end}".encode("utf-8", "surrogateescape"))
    return b"".join(out)


def _first(line: str) -> str:
    for row in csv.reader([line]):
        return row[0] if row else ""
    return ""
