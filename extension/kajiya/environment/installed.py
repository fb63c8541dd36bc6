"""What is installed in an environment, as Python itself would find it: each distribution once, the first on the path.

Where it came from is read from `direct_url.json` (PEP 610). A file that is broken is named and holds nothing up.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import unquote, urlsplit

Source = Literal["index", "editable", "folder", "archive", "vcs"]


@dataclass(frozen=True)
class Installed:
    """One distribution. `name` is normalised; `address` is where it came from, where that was no index."""

    name: str
    version: str
    source: Source = "index"
    address: str = ""
    base: bool = False
    """It is there because the base has it, in this version."""
    hidden: str = ""
    """The version of the base that this one hides."""
    pin: str = ""
    """A commit, or `sha256=…`, where the address has one."""

    @property
    def requirement(self) -> str:
        """As pip and uv take it."""
        if self.source == "vcs":
            return f"{self.name} @ {self.address}@{self.pin}" if self.pin else f"{self.name} @ {self.address}"
        if self.source == "archive":
            return f"{self.name} @ {self.address}" + (f"#{self.pin}" if self.pin else "")
        return f"{self.name}=={self.version}"

    @property
    def local(self) -> bool:
        """Whether it came from this machine, so that nobody else can fetch it."""
        return self.source in ("editable", "folder") or self.address.startswith("file:")

    @property
    def path(self) -> Path | None:
        """Where it lies or lay on this machine."""
        if not self.address.startswith("file:"):
            return None
        return Path(unquote(urlsplit(self.address).path))


@dataclass(frozen=True)
class Packages:
    """All distributions by name, their metadata as found, and the folders or files that could not be understood."""

    installed: tuple[Installed, ...]
    found: Mapping[str, Distribution]
    broken: tuple[str, ...]


def normal(name: str) -> str:
    """A name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def sites(environment: Path) -> list[Path]:
    """Where an environment has its packages, and the folders that `.pth` files in them add, as Python reads them."""
    out: list[Path] = []
    for site in sorted(environment.glob("lib/python*/site-packages")):
        out.append(site)
        for pth in sorted(site.glob("*.pth")):
            for line in _lines(pth):
                if line and not line.startswith(("#", "import ", "import\t")) and (folder := site / line).is_dir():
                    out.append(folder)
    return list(dict.fromkeys(out))


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8", "replace").splitlines()]
    except OSError:
        return []


def installed(own: Sequence[Path], below: Sequence[Path] = (), base: Mapping[str, str] | None = None) -> Packages:
    """What is installed. `own` are the environment's folders, `below` those of the interpreter that it sees through;
    `base` are versions by normalised name that it was made with. A distribution that is found earlier hides others.
    """
    out: dict[str, Installed] = {}
    found: dict[str, Distribution] = {}
    broken: list[str] = []
    pins = base or {}
    for folder in (*own, *below):
        lower = folder in below
        here: set[str] = set()
        for dist in distributions(path=[str(folder)]):
            place = str(getattr(dist, "_path", folder))
            name, version = _named(dist)
            # pip renames what it is about to remove to a name that begins with a tilde, and may be killed then.
            if not name or not version or Path(place).name.startswith("~"):
                broken.append(place)
                continue
            if name in here:  # two versions in one folder: what was killed in an upgrade; Python takes the first
                broken.append(place)
                continue
            here.add(name)
            if name in out:
                if lower and not out[name].hidden:
                    out[name] = _with(out[name], hidden=version)
                continue
            source, address, pin = _origin(dist, folder in own[1:])
            is_base = lower or (pins.get(name) == version and source in ("index", "archive"))
            hidden = "" if is_base or name not in pins else pins[name]
            out[name] = Installed(name, version, source, address, is_base, hidden, pin)
            found[name] = dist
    return Packages(tuple(out[name] for name in sorted(out)), found, tuple(sorted(broken)))


def _with(one: Installed, hidden: str) -> Installed:
    return Installed(one.name, one.version, one.source, one.address, one.base, hidden, one.pin)


def _named(dist: Distribution) -> tuple[str, str]:
    try:
        # None where the field is missing, whatever the types say.
        name, version = cast("object", dist.metadata["Name"]), cast("object", dist.metadata["Version"])
    except Exception:  # metadata is anybody's file; each Python release raises something else for a bad one
        return "", ""
    return (normal(name), version) if isinstance(name, str) and isinstance(version, str) else ("", "")


def _origin(dist: Distribution, by_pth: bool) -> tuple[Source, str, str]:
    try:
        value: Any = json.loads(dist.read_text("direct_url.json") or "null")
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict) or "://" not in str(cast("dict[str, Any]", value).get("url")):
        # `setup.py develop` left no direct_url.json, only a line in a .pth file.
        place = getattr(dist, "_path", None)
        return ("editable", Path(place).parent.resolve().as_uri(), "") if by_pth and place else ("index", "", "")
    whole = cast("dict[str, Any]", value)
    address = str(whole.get("url", ""))
    if isinstance(whole.get("vcs_info"), dict):
        info = cast("dict[str, Any]", whole["vcs_info"])
        return "vcs", f"{info.get('vcs', 'git')}+{address}", str(info.get("commit_id", ""))
    if isinstance(whole.get("dir_info"), dict):
        return ("editable" if whole["dir_info"].get("editable") is True else "folder"), address, ""
    info = cast("dict[str, Any]", whole["archive_info"] if isinstance(whole.get("archive_info"), dict) else {})
    hashes = info.get("hashes")
    sha256 = cast("dict[str, Any]", hashes).get("sha256") if isinstance(hashes, dict) else None
    return "archive", address, f"sha256={sha256}" if sha256 else str(info.get("hash", ""))
