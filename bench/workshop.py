"""Where measurements happen: folders, alternatives installed on first use, processes that end with the run."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"


class NotMeasured(Exception):
    """Why a row could not be measured."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(check: Callable[[], bool], what: str, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not check():
        if time.monotonic() > until:
            raise NotMeasured(f"{what} did not come within {seconds:.0f} s")
        time.sleep(0.02)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status < 500
    except urllib.error.HTTPError as e:
        return e.code < 500
    except OSError:
        return False


def tree(pid: int) -> list[psutil.Process]:
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def pss(pids: list[int]) -> float:
    """Proportional set size of process trees, in bytes."""
    total = 0
    for pid in pids:
        for process in tree(pid):
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                pass
    return total


class Workshop:
    """What the rows use."""

    def __init__(self) -> None:
        BUILD.mkdir(parents=True, exist_ok=True)
        self.python = sys.executable
        self.env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self.env["PATH"] = f"{Path(sys.executable).parent}:{self.env['PATH']}"

    def folder(self, name: str) -> Path:
        """An empty folder."""
        path = BUILD / "tmp" / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def run(self, *argv: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> float:
        """Seconds that a command takes; raises `NotMeasured` where it fails."""
        began = time.perf_counter()
        done = subprocess.run(argv, cwd=cwd, env=self.env | (env or {}), capture_output=True, text=True)
        took = time.perf_counter() - began
        if done.returncode != 0:
            raise NotMeasured(f"`{' '.join(argv)[:80]}` ended with {done.returncode}: {done.stderr.strip()[-200:]}")
        return took

    @contextmanager
    def process(self, *argv: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> Iterator[int]:
        """A process in a group of its own, ended at the end."""
        log = (BUILD / "process.log").open("ab")
        child = subprocess.Popen(
            argv, cwd=cwd, env=self.env | (env or {}), stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield child.pid
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(40)
            except subprocess.TimeoutExpired:
                pass
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()

    def venv(self, name: str, *requirements: str) -> Path:
        """The bin folder of a virtual environment with these packages, bytecode compiled; made once."""
        place = BUILD / "venvs" / name
        uv = str(Path(sys.executable).parent / "uv")
        if not (place / ".ready").exists():
            self.run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(place))
            self.run(
                uv,
                "pip",
                "install",
                "--quiet",
                "--compile-bytecode",
                "--python",
                str(place / "bin/python"),
                *requirements,
            )
            (place / ".ready").touch()
        return place / "bin"

    def node_proxy(self) -> list[str]:
        """The command of npm's configurable-http-proxy, installed once."""
        place = BUILD / "chp"
        script = place / "node_modules" / "configurable-http-proxy" / "bin" / "configurable-http-proxy"
        npm, node = shutil.which("npm"), shutil.which("node")
        if not (npm and node):
            raise NotMeasured("there is no Node.js here to run configurable-http-proxy")
        if not script.exists():
            place.mkdir(parents=True, exist_ok=True)
            self.run(npm, "install", "--silent", "--prefix", str(place), "configurable-http-proxy@5", cwd=place)
        return [node, str(script)]
