"""The lock of an environment that is there: `pylock.toml` (PEP 751) with hashes, from what is installed.

An installed environment does not keep the hashes of its wheels, so its pins are resolved again, each alone. Local
projects travel as wheels beside the lock; what no index has is named.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from kajiya.environment import carry, uv
from kajiya.environment.installed import Installed, Packages
from kajiya.errors import EnvironmentFailed, PackagesUnavailable

WHEELS = "wheels"
"""The folder beside a lock that its wheels lie in."""

_EMPTY = 'lock-version = "1.0"\ncreated-by = "kajiya"\n'


@dataclass(frozen=True)
class Carried:
    """A local package as a wheel: its file name below `wheels/`, and sha256 in hex."""

    name: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Unlocked:
    """A package that the lock could not take up, and why: `no_index` (no index has it) or `no_wheel`."""

    name: str
    version: str
    why: str
    problem: str = ""


@dataclass(frozen=True)
class Lock:
    """The lock's text, the wheels that belong to it, and what it lacks; the layer of the snapshot has everything."""

    text: str
    carried: tuple[Carried, ...]
    lacking: tuple[Unlocked, ...]


Compile = Callable[[Sequence[str]], str]
"""Resolves requirements to the text of a `pylock.toml`; raises `PackagesUnavailable`."""


def make(packages: Packages, folder: Path, compile: Compile, build: Callable[[Path, Path], Path]) -> Lock:
    """The lock of what is installed; wheels of local packages are written to `folder`/wheels.

    `compile` and `build` are `compiler(...)` and `builder(...)`. Raises `PackagesUnavailable` where the index can't be
    asked at all, `DiskFull`, `OSError`.
    """
    wheels = folder / WHEELS
    carried: list[Carried] = []
    lacking: list[Unlocked] = []
    remote: list[Installed] = []
    for one in packages.installed:
        if not one.local:
            remote.append(one)
            continue
        wheels.mkdir(exist_ok=True)
        try:
            path = _wheel(one, packages, wheels, build)
        except (carry.CanNotRepack, EnvironmentFailed, PackagesUnavailable) as e:
            problem = str(getattr(e, "params", {}).get("problem", e))
            lacking.append(Unlocked(one.name, one.version, "no_wheel", problem))
            continue
        carried.append(Carried(one.name, one.version, path.name, sha256(path.read_bytes()).hexdigest()))
    text, unknown = _resolve(remote, compile)
    lacking += [Unlocked(one.name, one.version, "no_index") for one in unknown]
    return Lock(_joined(text, carried), tuple(carried), tuple(sorted(lacking, key=lambda u: u.name)))


def compiler(folder: Path, *, python: str, cache: Path | None, variables: Mapping[str, str]) -> Compile:
    """Resolves by uv, for an interpreter; `folder` takes its two files."""

    def compile(requirements: Sequence[str]) -> str:
        source, out = folder / "installed.in", folder / "pylock.installed.toml"
        source.write_text("".join(f"{line}\n" for line in requirements), "utf-8")
        out.unlink(missing_ok=True)
        arguments = ["pip", "compile", str(source), "--no-deps", "--generate-hashes", "--format", "pylock.toml"]
        # What is installed was chosen before: neither a pre-release nor an age limit is a reason to refuse it now.
        arguments += ["--prerelease", "allow", "--python", python, "--no-header", "--quiet", "--output-file", str(out)]
        try:
            uv.run(arguments, cache=cache, variables=variables, cwd=folder)
            return out.read_text("utf-8")
        finally:
            source.unlink(missing_ok=True)
            out.unlink(missing_ok=True)

    return compile


def builder(*, cache: Path | None, variables: Mapping[str, str]) -> Callable[[Path, Path], Path]:
    """Builds a project's wheel by uv."""
    return lambda project, folder: carry.build(project, folder, cache=cache, variables=variables)


def _wheel(one: Installed, packages: Packages, wheels: Path, build: Callable[[Path, Path], Path]) -> Path:
    # An editable one is not a copy: its files lie in the project, so it is built as it is now.
    if one.source == "editable":
        if one.path is None or not one.path.is_dir():
            raise carry.CanNotRepack("its project is no longer there")
        return build(one.path, wheels)
    return carry.repack(packages.found[one.name], wheels)


# --- resolving
def _resolve(asked: Sequence[Installed], compile: Compile) -> tuple[str, list[Installed]]:
    """The lock of all that an index has, and the rest."""
    left, unknown = list(asked), list[Installed]()
    while left:
        try:
            return compile([one.requirement for one in left]), unknown
        except PackagesUnavailable as e:
            problem = str(e.params.get("problem", ""))
            if not _says_unknown(problem):
                raise
            named = [one for one in left if _is_named(one, problem)]
            missing = named or _search(left, compile)
            unknown += missing
            left = [one for one in left if one not in missing]
    return "", unknown


def _says_unknown(problem: str) -> bool:
    return "no solution found" in problem.lower() or "not found in the package registry" in problem


def _is_named(one: Installed, problem: str) -> bool:
    name = re.escape(one.name)
    return bool(re.search(rf"(?<![\w.-]){name}(?:==| was not found| was found| has no )", problem))


def _search(asked: Sequence[Installed], compile: Compile) -> list[Installed]:
    """Those that alone can't be resolved, by halves, where the message names none; never empty."""
    if len(asked) == 1:
        return list(asked)
    out: list[Installed] = []
    for half in (asked[: len(asked) // 2], asked[len(asked) // 2 :]):
        try:
            compile([one.requirement for one in half])
        except PackagesUnavailable as e:
            if not _says_unknown(str(e.params.get("problem", ""))):
                raise
            out += _search(half, compile)
    return out or list(asked)


# --- the text
def _joined(text: str, carried: Sequence[Carried]) -> str:
    parts = [text.rstrip("\n") + "\n" if text.strip() else _EMPTY]
    for one in sorted(carried, key=lambda c: c.name):
        parts.append(
            f"\n[[packages]]\nname = {_quoted(one.name)}\nversion = {_quoted(one.version)}\n"
            f"archive = {{ path = {_quoted(f'{WHEELS}/{one.file}')}, hashes = {{ sha256 = {_quoted(one.sha256)} }} }}\n"
        )
    return "".join(parts)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
