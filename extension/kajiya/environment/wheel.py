"""Kajiya itself as a wheel, made from how it is installed now: no build tool, no network.

The same installation gives the same bytes, so that an environment need not be touched when nothing changed. The layout
is that of the binary distribution format, https://packaging.python.org/specifications/binary-distribution-format/.
"""

import base64
import hashlib
import io
import os
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path, PurePosixPath

from kajiya.machine.homes import examples

_KEPT_METADATA = ("METADATA", "WHEEL", "entry_points.txt")
_PACKAGES = ("kajiya", "kajiya_lab", "kajiya_hub", "kajiya_spawner")


def build(folder: Path) -> Path:
    """Writes the wheel into a folder and returns its path; a wheel of the same bytes is left as it is."""
    dist = distribution("kajiya")
    contents = collect(dist)
    data = pack(contents, f"kajiya-{dist.version}.dist-info")
    path = folder / f"kajiya-{dist.version}-py3-none-any.whl"
    if path.exists() and path.read_bytes() == data:
        return path
    new = folder / f".new-{os.getpid()}-{path.name}"
    new.write_bytes(data)
    new.chmod(0o644)
    new.rename(path)
    return path


def collect(dist: Distribution) -> dict[str, bytes]:
    """What the wheel holds, by path within it, RECORD left out."""
    info = f"kajiya-{dist.version}.dist-info"
    out: dict[str, bytes] = {}
    for file in dist.files or []:
        path = PurePosixPath(str(file))
        metadata = path.parts[0] == info and (path.name in _KEPT_METADATA or "licenses" in path.parts)
        if metadata or (path.parts[0] in _PACKAGES and _wanted(path)):
            out[str(path)] = Path(str(file.locate())).read_bytes()
        elif "jupyter_server_config.d" in path.parts:
            tail = PurePosixPath(*path.parts[path.parts.index("etc") :])
            out[f"kajiya-{dist.version}.data/data/{tail}"] = Path(str(file.locate())).read_bytes()
    if "kajiya/__init__.py" not in out:
        out |= _from_checkout(dist.version)
    return out


def _from_checkout(version: str) -> dict[str, bytes]:
    # An editable install lists no modules, so they are found where they are imported from.
    checkout = Path(__file__).resolve().parents[3]
    out: dict[str, bytes] = {}
    for root in ("extension", "hub_config", "spawner"):
        for package in _PACKAGES:
            out |= _tree(checkout / root / package, PurePosixPath(package))
    notebooks = examples()
    if notebooks is not None:
        out |= _tree(notebooks, PurePosixPath("kajiya/notebooks"))
    prefix = PurePosixPath(f"kajiya-{version}.data/data/etc/jupyter/jupyter_server_config.d")
    return out | _tree(checkout / "extension" / "jupyter_server_config.d", prefix)


def _tree(folder: Path, prefix: PurePosixPath) -> dict[str, bytes]:
    out: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = prefix / PurePosixPath(path.relative_to(folder).as_posix())
        if _wanted(name) and path.is_file():
            out[str(name)] = path.read_bytes()
    return out


def _wanted(path: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part in ("__pycache__", "node_modules") for part in path.parts)
    return not hidden and path.suffix not in (".pyc", ".pyo")


def pack(contents: dict[str, bytes], info: str) -> bytes:
    """A wheel's bytes: names in order, one fixed time, RECORD last as the specification advises."""
    buffer = io.BytesIO()
    record = f"{info}/RECORD"
    lines: list[str] = []
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(contents, key=lambda n: (n.startswith(info), n)):
            digest = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest()).rstrip(b"=").decode("ascii")
            quoted = f'"{name}"' if "," in name else name
            lines.append(f"{quoted},sha256={digest},{len(contents[name])}\n")
            archive.writestr(_entry(name), contents[name])
        archive.writestr(_entry(record), "".join([*lines, f"{record},,\n"]))
    return buffer.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry
