"""Small real environments: made by uv with links into its cache, and wheels made here, so that no index is needed."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from kajiya.environment import uv
from kajiya.machine.homes import Home

INTERPRETER = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
LOCK = "ab" * 32


def wheel(folder: Path, name: str, version: str, extra: bytes = b"") -> Path:
    """A wheel with one module, a console script, and a data file of some content."""
    files = {
        f"{name}/__init__.py": f"VERSION = '{version}'\ndef main():\n    print(VERSION)\n".encode(),
        f"{name}/データ.bin": extra,
        f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{name}-{version}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{name}-{version}.dist-info/entry_points.txt": f"[console_scripts]\n{name}-say = {name}:main\n".encode(),
    }
    record = f"{name}-{version}.dist-info/RECORD"
    lines = [f"{path},sha256={_hash(data)},{len(data)}\n" for path, data in files.items()]
    files[record] = "".join([*lines, f"{record},,\n"]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as out:
        for inner, data in files.items():
            out.writestr(inner, data)
    return path


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def venv(place: Path, cache: Path, *wheels: Path) -> Path:
    """An environment with these wheels."""
    place.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["venv", "--quiet", "--no-project", "--python", INTERPRETER, str(place)]
    uv.run(arguments, cache=cache, variables={}, cwd=place.parent)
    for path in wheels:
        install(place, cache, path)
    return place


def install(place: Path, cache: Path, path: Path) -> None:
    """Installs a wheel by links into the cache."""
    arguments = ["pip", "install", "--quiet", "--offline", "--no-deps", "--link-mode", "hardlink"]
    python = str(place / "bin/python")
    uv.run([*arguments, "--python", python, str(path)], cache=cache, variables={}, cwd=place)


def uninstall(place: Path, name: str) -> None:
    """Takes a package away."""
    arguments = ["pip", "uninstall", "--quiet", "--python", str(place / "bin/python"), name]
    uv.run(arguments, cache=None, variables={}, cwd=place)


def mark(environment: Path) -> None:
    """Notes that the environment was made from the base with the lock `LOCK`."""
    (environment / "kajiya-base.json").write_text(json.dumps({"base": LOCK, "python": "3"}))


def says(home: Home, name: str, *argv: str) -> str:
    """What a command of an environment prints, with nothing else on the path."""
    env = {"LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"} | home.variables(name, path="/usr/bin:/bin")
    done = subprocess.run(
        [str(home.environment(name) / "bin" / argv[0]), *argv[1:]], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
