"""The built wheel, and a stack that runs from it without anything being fetched."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from helpers.stack import BIN

CHECKOUT = Path(__file__).resolve().parents[2]


def build(folder: Path, target: str = "wheel") -> Path:
    """The wheel or the sdist of this checkout, by the backend that pyproject.toml names."""
    argv = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl" if target == "wheel" else "*.tar.gz"))


def installed(wheel: Path, place: Path) -> Path:
    """An environment with the wheel in it; what it requires is lent by the tests' own. Returns its bin folder."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True, timeout=60)
    uv = shutil.which("uv", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    assert uv is not None
    python = str(place / "bin" / "python")
    argv = [uv, "pip", "install", "--quiet", "--no-deps", "--offline", "--python", python, str(wheel)]
    subprocess.run(argv, check=True, timeout=60)
    (place / "bin" / "uv").symlink_to(uv)
    # A plain path, whose own .pth files are not read: so the editable Kajiya there is not found, and this one is.
    own = next(place.glob("lib/python*/site-packages"))
    (own / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    return place / "bin"
