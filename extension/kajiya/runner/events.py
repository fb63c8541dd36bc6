"""The event log of an attempt: `events.jsonl`, append-only, one JSON object a line. It is the truth of what ran.

Every event has `t` (Unix time in seconds) and `type`:

- `start` cells_total, kernel, language, hash_seed; where a runner was started again in its folder, the last one counts
- `parameters` index, source, cell_id, replaced, values: the cell that papermill injected
- `cell_start` cell (index in the notebook as it runs), code_index (among cells with code), source (first line)
- `output` cell, output (nbformat), display_id where it has one
- `clear` cell, wait
- `update_display` display_id, data, metadata
- `widget_state` state: models that changed, as `application/vnd.jupyter.widget-state+json`
- `capped` cell, dropped_bytes
- `cell_end` cell, status (ok, error, skipped), execution_count, seconds
- `end` status (an `Ending`), reason, ename, evalue, cell

A cell's outputs are on the disk before its `cell_end` is said to be: the log is synced there. A last line that was torn
by a crash is passed over, and so is any line that is no event.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import orjson

from kajiya.notebook import deeper

if TYPE_CHECKING:
    from kajiya.types import Progress

Event = dict[str, Any]

FILE = "events.jsonl"
_LONGEST_SOURCE = 200
# Whoever runs in the job's folder can write a line here; one that is nested deeper could not be sent on.
_DEEPEST = 200
# A list or object costs Python some 30 times the bytes it takes in JSON, so their number is bounded before parsing.
_MOST_CONTAINERS = 500_000
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def encode(event: Mapping[str, Any]) -> bytes:
    """One line of the log."""
    try:
        return orjson.dumps(event) + b"\n"
    except TypeError:  # integers beyond 64 bits, lone surrogates, and whatever else a kernel may put into a message
        return json.dumps(_plain(event), ensure_ascii=False).encode() + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_plain(str(k)): _plain(v) for k, v in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(member) for member in cast(Iterable[Any], value)]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return _plain(str(value))


def decode(line: bytes) -> Event | None:
    """The event of one line, or None where the line is torn, no event, or too much to be read safely."""
    if containers(line) > _MOST_CONTAINERS:
        return None
    try:
        event: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return None
    if isinstance(event, dict) and isinstance(cast(Event, event).get("type"), str) and not _deeper(line, event):
        return cast(Event, event)
    return None


def containers(line: bytes) -> int:
    """How many lists and objects a line of JSON holds at most; exact where that could be many."""
    found = line.count(b"[") + line.count(b"{")
    if found <= 10_000:
        return found
    bare = _TEXT.sub(b"", line)
    return bare.count(b"[") + bare.count(b"{")


def _deeper(line: bytes, event: Any) -> bool:
    # Only a line with that many brackets can be that deep, and looking for them costs next to nothing.
    return line.count(b"[") + line.count(b"{") > _DEEPEST and deeper(event, _DEEPEST)


def read(lines: bytes | Iterable[bytes]) -> Iterator[Event]:
    """The events of a log, from its bytes or an open binary file."""
    for line in lines.split(b"\n") if isinstance(lines, bytes) else lines:
        event = decode(line)
        if event is not None:
            yield event


def first_line(source: str) -> str:
    """What stands for a cell in a list: its first line that is no comment, else its first line."""
    lines = [line.strip() for line in source.split("\n") if line.strip()]
    chosen = next((line for line in lines if not line.startswith("#")), lines[0] if lines else "")
    return chosen if len(chosen) <= _LONGEST_SOURCE else chosen[: _LONGEST_SOURCE - 1] + "…"


def without_colours(text: str) -> str:
    """The text without a terminal's control sequences."""
    return _ANSI.sub("", text)


def progress(events: Iterable[Event]) -> "Progress":
    """How far the notebook is after these events."""
    from kajiya.types import Progress

    total, done, current, source = 0, 0, None, ""
    for event in events:
        match event["type"]:
            case "start":
                total, done, current, source = _count(event.get("cells_total")), 0, None, ""
            case "cell_start":
                current, source = _count(event.get("code_index")), str(event.get("source", ""))[:_LONGEST_SOURCE]
            case "cell_end":
                done, current, source = done + 1, None, ""
            case "end":
                current, source = None, ""
            case _:
                pass
    return Progress(cells_total=total, cells_done=done, current=current, source=source)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
