"""What a supervisor is told: read once, from a file that is then removed, or from a pipe."""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from kajiya.machine import records


class Want(NamedTuple):
    """What the tree may use."""

    cpu: float = 1
    memory: int = 1 << 30
    gpus: int = 0
    gpu_kind: str | None = None


class Specification:
    """What to supervise, as `kajiya.machine.launch.Spec` gives it."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.kind: str = raw["kind"]
        self.id: str = raw["id"]
        self.owner: str = raw["owner"]
        self.profile: str = raw.get("profile") or ""
        self.argv: list[str] = raw["argv"]
        self.cwd: str = raw["cwd"]
        self.env: dict[str, str] = raw["env"]
        self.uid: int | None = raw.get("uid")
        self.gid: int | None = raw.get("gid")
        self.want = Want(**{k: v for k, v in raw["resources"].items() if k in Want._fields})
        self.time_limit: float | None = raw.get("time_limit")
        self.grace: float = raw.get("grace", 10.0)
        self.machine_dir = Path(raw["machine_dir"])
        self.run_dir = Path(raw["run_dir"])
        self.log: str = Path(raw.get("log") or records.LOG).name
        self.log_limit: int = raw.get("log_limit", 64 * 1024**2)
        self.share_cpu: bool = raw.get("share_cpu", False)


def read(path: str) -> Specification:
    """The specification in a file, or on stdin for `-`. Raises `OSError`, `ValueError`, `KeyError`."""
    if path == "-":
        return Specification(json.loads(sys.stdin.buffer.read()))
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        data = file.read()
    # It holds secrets, and is needed no more.
    Path(path).unlink(missing_ok=True)
    return Specification(json.loads(data))
