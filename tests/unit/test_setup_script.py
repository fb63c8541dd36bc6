"""tools/setup.sh where something is missing: one sentence, and nothing half made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.built import CHECKOUT
from helpers.stack import BIN, free_port

NO_ENSUREPIP = """#!/bin/sh
case "$*" in *"-m venv"*|*"import ensurepip"*) exit 1;; esac
exec {python} "$@"
"""
OLD = """#!/bin/sh
case "$*" in *--version*) echo "Python 3.9.18";; *) exit 1;; esac
"""


def setup(venv: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    argv = ["bash", "tools/setup.sh", str(venv), "run"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("UV_", "PIP_"))} | variables
    return subprocess.run(argv, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=90)


def program(path: Path, text: str) -> str:
    path.write_text(text.format(python=sys.executable), "utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "There is no"), (OLD, "Python 3.9.18 is too old"), (NO_ENSUREPIP, "apt-get install python3-venv")],
)
def test_a_python_that_does_not_do_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    python = tmp_path / "python3"
    refused = setup(tmp_path / "venv", PYTHON=program(python, text) if text else str(python))
    assert refused.returncode == 1
    assert words in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("variable", ["UV_DEFAULT_INDEX", "PIP_INDEX_URL"])
def test_an_index_that_does_not_answer_is_said_and_the_next_make_tries_again(tmp_path: Path, variable: str) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60)
    uv = shutil.which("uv", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    assert uv is not None
    (venv / "bin" / "uv").symlink_to(uv)
    index = f"http://127.0.0.1:{free_port()}/simple"
    failed = setup(venv, PYTHON=sys.executable, UV_HTTP_RETRIES="0", **{variable: index})
    assert failed.returncode == 1
    assert index in failed.stdout + failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("make: The packages could not be installed")
    assert not (venv / ".ready").exists()
