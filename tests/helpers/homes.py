"""Homes for tests of backends: a folder, and the Python of the tests."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PlainHome:
    """A home as far as a backend needs one."""

    path: Path
    uid: int | None = None
    gid: int | None = None

    def python(self, name: str = "default") -> Path:
        return Path(sys.executable)

    def variables(self, name: str = "default") -> dict[str, str]:
        return {"HOME": str(self.path), "PATH": os.environ["PATH"], "VIRTUAL_ENV": f"{self.path}/{name}"}


@dataclass(frozen=True)
class PlainHomes:
    """One home for everybody."""

    root: Path
    uid: int | None = None

    def of(self, user: str) -> PlainHome:
        return PlainHome(self.root, self.uid, self.uid)
