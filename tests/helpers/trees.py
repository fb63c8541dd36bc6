"""Supervised trees of real processes for tests."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from helpers.wait import until
from kajiya.machine import process
from kajiya.machine.launch import Spec, Standing, ask_to_stop, launch, standing
from kajiya.types import MiB

TREES: list["Tree"] = []


class Tree:
    """One supervised program in its own run folder; programs are Python text, with `here` as their folder."""

    def __init__(self, folder: Path, program: str, kind: Any = "attempt", id: str = "j1/1", **changes: Any) -> None:
        TREES.append(self)
        self.folder = folder
        folder.mkdir(exist_ok=True, parents=True)
        self.kind, self.id = kind, id
        start = f"import os, sys, time, signal, subprocess, pathlib\nhere = pathlib.Path({str(folder)!r})\n"
        resources = {"cpu": 0.1, "memory": 1024 * MiB, "gpus": 0, "gpu_kind": None} | changes.pop("resources", {})
        fields: dict[str, Any] = {
            "owner": "ann",
            "profile": "small",
            "argv": [sys.executable, "-c", start + program],
            "cwd": str(folder),
            "env": {"PATH": os.environ["PATH"]},
            "machine_dir": str(folder.parent / "machine"),
        }
        self.spec = Spec(kind=kind, id=id, run_dir=str(folder), resources=resources, **(fields | changes))

    def start(self) -> "Tree":
        asyncio.run(launch(self.spec))
        return self

    @property
    def standing(self) -> Standing:
        return standing(self.folder, self.kind, self.id)

    def exit(self, seconds: float = 30) -> dict[str, Any]:
        """The exit record, waited for."""
        return until(lambda: self.standing.exit, seconds, "the exit record")

    def reason(self) -> tuple[str, str | None]:
        record = self.exit()
        return record["ending"], (record["reason"] or {}).get("code")

    def running(self) -> dict[str, Any]:
        """The lease once the program was started."""
        return until(lambda: self.standing.started and self.standing.lease, what="the start")

    def says(self, word: str) -> "Tree":
        until(lambda: word in self.log, what=f"{word!r} in the log of {self.folder.name}")
        return self

    @property
    def log(self) -> str:
        path = self.folder / "log.txt"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def kill_supervisor(self) -> None:
        who = self.standing.supervisor
        assert who is not None
        assert process.send(who, signal.SIGKILL)
        until(lambda: not process.alive(who), what="the supervisor's death")

    def stop(self, grace: float = 10) -> None:
        ask_to_stop(self.folder, self.standing.supervisor, grace)

    def members(self) -> list[process.Stat]:
        """Who of the tree lives."""
        lease = self.standing.lease or json.loads((self.folder / "lease.json").read_text())
        return list(process.members(lease["tree"]).values())

    def pids(self) -> list[int]:
        """The pids that the program wrote into files `pid-*`."""
        return [int(path.read_text()) for path in sorted(self.folder.glob("pid-*")) if path.read_text()]


def end_all() -> None:
    """Ends whatever the trees of a test left, supervisors too: a test that failed must not disturb the next."""
    while TREES:
        standing = TREES.pop().standing
        if standing.supervisor is not None:
            process.send(standing.supervisor, signal.SIGKILL)
        if standing.lease and standing.lease["tree"]:
            process.end_tree(standing.lease["tree"])


def lives(pid: int) -> bool:
    """Whether somebody, not a zombie, has this pid."""
    return process.identity(pid) is not None


# A grandchild that leaves its session, its parent and its descriptors, as daemons do, and writes `pid-daemon`.
DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 1024)
        (here / 'pid-new').write_text(str(os.getpid()))
        (here / 'pid-new').rename(here / 'pid-daemon')
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    os._exit(0)
os.wait()
while not (here / 'pid-daemon').exists():
    time.sleep(0.01)
"""
