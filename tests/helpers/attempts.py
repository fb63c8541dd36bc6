"""Runs the runner on an attempt's directory, and reads what it left."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kajiya import notebook as notebooks
from kajiya.runner.assemble import assemble
from kajiya.runner.events import read

DEADLINE = 90.0


@dataclass
class Ran:
    """What a run left behind."""

    status: int
    log: str
    folder: Path

    @property
    def events(self) -> list[dict[str, Any]]:
        return events_of(self.folder)

    @property
    def outcome(self) -> dict[str, Any]:
        return json.loads((self.folder / "outcome.json").read_bytes())

    @property
    def notebook(self) -> dict[str, Any]:
        return executed(self.folder)

    def texts(self) -> str:
        """All stream texts of the executed notebook."""
        return "".join(o["text"] for c in self.notebook["cells"] for o in c.get("outputs", []) if "text" in o)


def events_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    return list(read(path.read_bytes())) if path.exists() else []


def executed(folder: Path) -> dict[str, Any]:
    book = notebooks.read((folder / "input" / "notebook.ipynb").read_bytes())
    return assemble(book, events_of(folder))


def start(folder: Path, **env: str) -> subprocess.Popen[bytes]:
    """Starts the runner in a session of its own, as a supervisor does."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("KAJIYA_", "PYTEST_"))}
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "kajiya.runner", str(folder)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={**clean, "KAJIYA_LANG": "en", **env},
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], folder: Path) -> Ran:
    try:
        status = process.wait(DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError(f"the runner did not end; its log: {(folder / 'log.txt').read_text()}") from None
    return Ran(status, (folder / "log.txt").read_text("utf-8", "replace"), folder)


def run(folder: Path, **env: str) -> Ran:
    return finish(start(folder, **env), folder)


def until(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """Waits until the condition holds and returns its value."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"never came: {what}")
