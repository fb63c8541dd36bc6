"""How an attempt ended, as the runner saw it: `outcome.json`, written whole or not at all."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import orjson

from kajiya.runner.events import encode, without_colours

FILE = "outcome.json"
_TAIL_LINES = 40
_TAIL_BYTES = 16 * 1024

EndingName = Literal["succeeded", "notebook_error", "kernel_died", "could_not_start", "stopped"]
EXIT_CODES: dict[str, int] = {
    "succeeded": 0,
    "notebook_error": 1,
    "could_not_start": 2,
    "kernel_died": 3,
    "stopped": 143,
}


@dataclass(frozen=True)
class Outcome:
    """The ending, why in a code with parameters, and where.

    `cell` is the index in the notebook as it ran; `number` counts cells with code, from 1, as progress and log do.
    """

    ending: EndingName
    code: str | None = None
    params: dict[str, Any] = field(default_factory=dict[str, Any])
    cell: int | None = None
    number: int | None = None
    ename: str | None = None
    evalue: str | None = None
    traceback: list[str] = field(default_factory=list[str])

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.ending]

    @property
    def reason(self) -> dict[str, Any] | None:
        """The code and its parameters; the sentence is put in where it is read, in the reader's language."""
        if self.code is None:
            return None
        params = dict(self.params)
        if self.number is not None:
            params["cell"] = self.number
        for key, value in (("ename", self.ename), ("evalue", self.evalue)):
            if value is not None:
                params[key] = value[:1000]
        return {"code": self.code, "params": params}

    def write(self, folder: Path) -> None:
        """Writes `outcome.json` by fsync and rename. Raises `OSError`."""
        tail: list[str] = []
        left = _TAIL_BYTES
        for line in reversed(self.traceback[-_TAIL_LINES:]):
            line = without_colours(line)[-left:]
            tail.insert(0, line)
            left -= len(line)
            if left <= 0:
                break
        body = {"ending": self.ending, "reason": self.reason, "ename": self.ename, "evalue": (self.evalue or "")[:4000],
                "cell": self.cell, "traceback": tail}  # fmt: skip
        new = folder / f".{FILE}.new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, encode(body))
            os.fsync(fd)
        finally:
            os.close(fd)
        new.replace(folder / FILE)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def load(data: bytes) -> dict[str, Any] | None:
    """What `outcome.json` says, or None where it is none of ours."""
    try:
        value: Any = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    if isinstance(value, dict) and cast(dict[str, Any], value).get("ending") in EXIT_CODES:
        return cast(dict[str, Any], value)
    return None
