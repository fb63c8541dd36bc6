"""Which files travel with a submit, and under which relative paths they arrive."""

import glob
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from kajiya.errors import FilesClash, FilesMissing

# Made by tools, never input.
SKIPPED = frozenset({".ipynb_checkpoints", "__pycache__", ".git"})

Files = Iterable[str | Path] | Mapping[str, str | Path] | str | Path


def gather(files: Files | None, notebook: Path) -> dict[str, Path]:
    """The files to send by the path they arrive as.

    Each entry is a file, a folder (all below it) or a pattern such as `data/**/*.csv`. A path inside the notebook's
    folder keeps its path from there, so that the notebook finds it by the same name; one outside keeps its path from
    the current folder, and one outside both its own name. A mapping names the arrival: `{"data/a.csv": "/tmp/x"}`.
    Raises `FilesMissing`, `FilesClash`.
    """
    out: dict[str, Path] = {}
    for target, path in _expand(files, [notebook.resolve().parent, Path.cwd()]):
        if target in out and not _same(out[target], path):
            raise FilesClash(path=target)
        out[target] = path
    return out


def _expand(files: Files | None, roots: list[Path]) -> list[tuple[str, Path]]:
    if files is None:
        return []
    if isinstance(files, (str, Path)):
        files = [files]
    out: list[tuple[str, Path]] = []
    if isinstance(files, Mapping):
        named = cast(Mapping[str, str | Path], files)
        for target, source in named.items():
            path = Path(source).expanduser()
            if path.is_dir():
                out += [(f"{target.rstrip('/')}/{p.relative_to(path).as_posix()}", p) for p in _below(path)]
            else:
                out.append((target, _file(path)))
        return out
    for entry in files:
        path = Path(entry).expanduser()
        if path.is_dir():
            base = _arrival(path, roots)
            out += [((base / p.relative_to(path)).as_posix(), p) for p in _below(path)]
        elif path.exists():
            out.append((_arrival(path, roots).as_posix(), _file(path)))
        else:
            found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - absolute patterns
            found = [p for p in found if p.is_file() and not SKIPPED & set(p.parts)]
            if not found:
                raise FilesMissing(path=str(entry), problem="there is no such file")
            out += [(_arrival(p, roots).as_posix(), p) for p in found]
    return out


def _below(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and not SKIPPED & set(p.relative_to(folder).parts)]


def _file(path: Path) -> Path:
    if not path.exists():
        raise FilesMissing(path=str(path), problem="there is no such file")
    if not path.is_file():
        raise FilesMissing(path=str(path), problem="it is no plain file")
    if not os.access(path, os.R_OK):
        raise FilesMissing(path=str(path), problem="you may not read it")
    return path


def _arrival(path: Path, roots: list[Path]) -> Path:
    # Not resolved: a link inside the folder arrives under its own name. `abspath` only takes `..` out.
    whole = Path(os.path.abspath(path))  # noqa: PTH100
    for root in roots:
        for base in (root, root.resolve()):
            if whole.is_relative_to(base):
                return whole.relative_to(base)
    return Path(whole.name)


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False
