"""What an attempt is given: `run.json`, its files, and the environment of its kernel."""

import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from kajiya.runner.budget import Budget

HASH_SEED = "0"


@dataclass(frozen=True)
class Spec:
    """What `run.json` asks for.

    `limits` may hold `cell_output_bytes` (10 MiB), `output_bytes` (200 MiB, of the whole attempt), `start_seconds`
    (120, until the kernel answers), `interrupt_seconds` (5, until an interrupted cell must have ended) and
    `shutdown_seconds` (10, for the exit hooks of the kernel).
    """

    folder: Path
    parameters: dict[str, Any]
    kernel_name: str | None
    job: str
    attempt: str
    limits: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "Spec":
        """Raises `ValueError` or `OSError` where there is no such file or it is not ours."""
        parsed: Any = orjson.loads((folder / "run.json").read_bytes())
        if not isinstance(parsed, dict):
            raise ValueError("run.json is no object")
        raw = cast(dict[str, Any], parsed)
        return cls(
            folder=folder.absolute(),
            parameters=raw.get("parameters") or {},
            kernel_name=raw.get("kernel_name"),
            job=str(raw.get("job", "")),
            attempt=str(raw.get("attempt", 1)),
            limits=raw.get("limits") or {},
        )

    def budget(self) -> Budget:
        return Budget(
            per_cell=int(self.limits.get("cell_output_bytes") or Budget.per_cell),
            per_job=int(self.limits.get("output_bytes") or Budget.per_job),
        )

    def seconds(self, name: str, default: float) -> float:
        value = self.limits.get(name)
        return float(value) if isinstance(value, (int, float)) else default

    def work_folder(self) -> Path:
        """The folder the notebook runs in, with the job's files; made where it is not there."""
        work = self.folder / "work"
        work.mkdir(mode=0o700, exist_ok=True)
        given = self.folder / "input" / "files"
        if given.is_dir():
            _copy_missing(given, work)
        return work

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The kernel's environment; hashing is fixed, so that the order of a set is the same in every attempt.

        Files under `KAJIYA_RESULTS_DIR` are kept as results; `KAJIYA_CHECKPOINT_DIR` lasts over a job's attempts. Both
        are made here.
        """
        env = {
            "KAJIYA_JOB": self.job,
            "KAJIYA_ATTEMPT": self.attempt,
            "KAJIYA_RESULTS_DIR": str(self.folder / "work" / "results"),
            "KAJIYA_CHECKPOINT_DIR": str(self.folder / "checkpoint"),
            "PYTHONHASHSEED": HASH_SEED,
        }
        token = self.folder / "token"
        if token.is_file():
            env["KAJIYA_TOKEN"] = env["MLFLOW_TRACKING_TOKEN"] = token.read_text("utf-8").strip()
        env.update(base)
        for name in ("KAJIYA_RESULTS_DIR", "KAJIYA_CHECKPOINT_DIR"):
            Path(env[name]).mkdir(mode=0o700, parents=True, exist_ok=True)
        return env


def _copy_missing(source: Path, target: Path) -> None:
    """Copies files and folders that are not there yet; links and special files are left out."""
    for entry in os.scandir(source):
        mode = entry.stat(follow_symlinks=False).st_mode
        new = target / entry.name
        if stat.S_ISDIR(mode):
            new.mkdir(mode=0o700, exist_ok=True)
            _copy_missing(Path(entry.path), new)
        elif stat.S_ISREG(mode) and not new.exists():
            shutil.copyfile(entry.path, new, follow_symlinks=False)
