"""Local packages as wheels, so that they travel with a snapshot: repacked as they are installed, or built."""

import csv
import os
import posixpath
import re
from collections.abc import Mapping
from importlib.metadata import Distribution
from pathlib import Path, PurePosixPath

from kajiya.environment import uv
from kajiya.environment.wheel import pack

_OF_THE_INSTALLATION = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json")


class CanNotRepack(Exception):
    """The installed files do not make up a wheel; the argument says why."""


def repack(dist: Distribution, folder: Path) -> Path:
    """An installed distribution as a wheel in a folder, from its RECORD; needs no build tool, network or source.

    Raises `CanNotRepack`, `OSError`.
    """
    record = dist.read_text("RECORD")
    tags = re.findall(r"^Tag: *(\S+) *$", dist.read_text("WHEEL") or "", re.MULTILINE)
    if not record or not tags:
        raise CanNotRepack("it has no RECORD or no WHEEL")
    site, name = Path(str(dist.locate_file("."))).resolve(), _info(dist)
    stem = name.removesuffix(".dist-info")
    scripts = {e.name for e in dist.entry_points if e.group in ("console_scripts", "gui_scripts")}
    contents: dict[str, bytes] = {}
    for row in csv.reader(record.splitlines()):
        if not row or row[0].endswith((".pyc", ".pyo")):
            continue
        inner = _inner(row[0], name, stem, scripts)
        if inner is not None:
            contents[inner] = _content(site, row, inner)
    return _place(folder, f"{stem}-{_tag(tags)}.whl", pack(contents, name))


def build(project: Path, folder: Path, *, cache: Path | None, variables: Mapping[str, str]) -> Path:
    """A project's wheel, built by its own build system through uv.

    Raises `EnvironmentFailed`, `PackagesUnavailable`, `DiskFull`.
    """
    out = folder / f".new-build-{os.getpid()}-{os.urandom(4).hex()}"
    out.mkdir()
    try:
        arguments = ["build", "--wheel", "--quiet", "--no-create-gitignore", "--out-dir", str(out), str(project)]
        uv.run(arguments, cache=cache, variables=variables, cwd=folder)
        (made,) = out.glob("*.whl")
        return made.replace(folder / made.name)
    finally:
        for left in out.iterdir():
            left.unlink()
        out.rmdir()


def _info(dist: Distribution) -> str:
    place = getattr(dist, "_path", None)
    name = Path(str(place)).name if place is not None else ""
    if not name.endswith(".dist-info"):
        raise CanNotRepack("its metadata is not that of a wheel")
    return name


def _inner(listed: str, info: str, stem: str, scripts: set[str]) -> str | None:
    """Where an installed file stood in its wheel, or None if the installer made it."""
    parts = PurePosixPath(posixpath.normpath(listed)).parts
    if parts[0] == info:
        return None if parts[-1] in _OF_THE_INSTALLATION else "/".join(parts)
    if parts[0] != "..":
        if listed.startswith("/"):
            raise CanNotRepack(f"it has a file outside the environment ({listed})")
        return "/".join(parts)
    # lib/pythonX.Y/site-packages: three steps below the environment.
    if parts[:3] != ("..", "..", "..") or ".." in parts[3:] or len(parts) < 4:
        raise CanNotRepack(f"it has a file outside the environment ({listed})")
    rest = parts[3:]
    if rest[0] == "bin" and len(rest) == 2:
        return None if rest[1] in scripts else f"{stem}.data/scripts/{rest[1]}"
    return f"{stem}.data/data/{'/'.join(rest)}"


def _content(site: Path, row: list[str], inner: str) -> bytes:
    try:
        data = (site / row[0]).read_bytes()
    except OSError as e:
        raise CanNotRepack(f"{row[0]} can't be read ({(e.strerror or str(e)).lower()})") from e
    if ".data/scripts/" in inner:
        first, newline, rest = data.partition(b"\n")
        if first.startswith(b"#!") and b"python" in first:
            return b"#!python" + newline + rest  # installers put the interpreter of the environment there
        return data
    return data  # as it is now, edited or not: the new RECORD has the new hash


def _tag(tags: list[str]) -> str:
    split = [tag.split("-") for tag in tags if tag.count("-") == 2]
    if not split:
        raise CanNotRepack("its tags can't be read")
    return "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*split, strict=True))


def _place(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    new = folder / f".new-{os.getpid()}-{os.urandom(4).hex()}"
    new.write_bytes(data)
    new.chmod(0o644)
    return new.replace(path)
