"""Layers for tests: hostile ones made by Python's own tarfile, and folders compared with what was meant."""

# ruff: noqa: PTH115, PTH118, PTH123 - bytes and descriptors

import hashlib
import io
import os
import stat
import tarfile
import zlib
from pathlib import Path

from backports import zstd

from kajiya.oci.extract import Blob
from kajiya.oci.layer import Item
from kajiya.oci.streams import MEDIA_TYPES


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: object
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(data), 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.DIRTYPE, **fields)


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, tarfile.LNKTYPE, linkname=target)


def archive(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as file:
        for info, data in entries:
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def blob(place: Path, tar: bytes, compression: str = "zstd", cut: int = 0) -> Blob:
    """A tar's bytes as a compressed blob; `cut` bytes are missing at its end."""
    packed = zstd.compress(tar) if compression == "zstd" else _gzip(tar)
    packed = packed[: len(packed) - cut]
    path = place / f"blob-{hashlib.sha256(packed).hexdigest()[:12]}"
    path.write_bytes(packed)
    return Blob(path, sha256(packed), MEDIA_TYPES[compression], len(packed), sha256(tar))  # type: ignore[index]


def _gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def items(root: Path, prefix: bytes = b"") -> list[Item]:
    """Everything below a folder as it is, for the layer writer; links among the files are kept."""
    top = os.fsencode(root)
    out: list[Item] = []
    first: dict[tuple[int, int], bytes] = {}
    for place, folders, files in sorted(os.walk(top)):
        for name in sorted(folders + files):
            path = os.path.join(place, name)
            inner = os.path.join(prefix, os.path.relpath(path, top))
            status = os.lstat(path)
            mode = stat.S_IMODE(status.st_mode)
            if stat.S_ISLNK(status.st_mode):
                out.append(Item(inner, "symlink", target=os.readlink(path)))
            elif stat.S_ISDIR(status.st_mode):
                out.append(Item(inner, "directory", mode))
            elif stat.S_ISREG(status.st_mode):
                same = first.setdefault((status.st_dev, status.st_ino), inner)
                if same != inner and status.st_nlink > 1:
                    out.append(Item(inner, "hardlink", mode, target=same))
                else:
                    out.append(Item(inner, "file", mode, status.st_size, source=path))
    return out


def picture(root: Path) -> dict[bytes, tuple[object, ...]]:
    """What a folder holds: kind, mode, content or target, and which names are one file."""
    top = os.fsencode(root)
    out: dict[bytes, tuple[object, ...]] = {}
    inodes: dict[int, list[bytes]] = {}
    for place, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(place, name)
            inner = os.path.relpath(path, top)
            status = os.lstat(path)
            mode = stat.S_IMODE(status.st_mode)
            if stat.S_ISLNK(status.st_mode):
                out[inner] = ("link", os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                out[inner] = ("folder", mode)
            else:
                with open(path, "rb") as file:
                    out[inner] = ("file", mode, file.read())
                inodes.setdefault(status.st_ino, []).append(inner)
    for names in inodes.values():
        for name in names:
            out[name] = (*out[name], tuple(sorted(names)))
    return out
