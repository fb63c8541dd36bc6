"""Turns what a kernel says into events: joins texts, keeps the limits, and writes the log that people read."""

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import orjson

from kajiya.messages import message
from kajiya.runner.budget import Budget
from kajiya.runner.events import Event, first_line, without_colours
from kajiya.runner.frame import Frame
from kajiya.runner.sink import Sink
from kajiya.sizes import show_size

_JOIN_SECONDS = 0.05
_JOIN_BYTES = 64 * 1024
# A picture that is drawn again and again is written less often the longer its cell runs: what is seen is the same, and
# hours of it stay within the limits.
_REDRAW_SECONDS = 0.1
_REDRAW_SHARE = 0.02
_REDRAW_SLOWEST = 10.0
_LONGEST_TRACEBACK = 256 * 1024


class Recorder:
    """The only writer of an attempt's event log. Raises `OSError` where the sink can't keep an event."""

    def __init__(self, sink: Sink, budget: Budget, log: TextIO | None = None) -> None:
        self.sink = sink
        self.budget = budget
        self.cells_total = 0
        self._log = log
        self._log_ended_line = True
        self._held: Event | None = None
        self._held_parts: list[str] = []
        self._held_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._frame: Frame | None = None
        self._drawn: set[str] = set()
        self._started: dict[int, float] = {}
        self._next: dict[int | str, float] = {}
        self.failed: OSError | None = None
        self.on_failure: Callable[[], None] = lambda: None

    def write(self, type_: str, **fields: Any) -> int:
        """Writes what is held, then this event; returns its bytes."""
        self.flush()
        return self.sink.write({"t": round(time.time(), 6), "type": type_, **fields})

    # --- cells
    def cell_start(self, cell: int, code_index: int, source: str) -> None:
        self._started[cell] = time.monotonic()
        self._next.clear()
        line = first_line(source)
        self.write("cell_start", cell=cell, code_index=code_index, source=line)
        self.say(message("runner.log_cell", {"number": code_index + 1, "total": self.cells_total, "source": line}))

    def cell_end(self, cell: int, status: str, execution_count: int | None, seconds: float | None) -> None:
        """Writes the end of a cell and syncs: its outputs are on the disk when this returns."""
        self.told_of_cap(cell)
        self.write("cell_end", cell=cell, status=status, execution_count=execution_count, seconds=seconds)
        self.sink.sync()

    def told_of_cap(self, cell: int) -> None:
        dropped = self.budget.dropped(cell)
        if dropped:
            self.write("capped", cell=cell, dropped_bytes=dropped)

    # --- outputs
    def stream(self, cell: int, name: str, text: str) -> None:
        """Text to stdout or stderr; joined with what came less than 50 ms before."""
        size = len(text.encode("utf-8", "surrogatepass"))
        left = self._left(cell)
        if size > left:
            kept = text.encode("utf-8", "replace")[: max(0, left)].decode("utf-8", "ignore")
            if kept:
                self._hold_text(cell, name, kept, len(kept.encode()))
            self._cap(cell, size - len(kept.encode()))
            return
        self._hold_text(cell, name, text, size)

    def _left(self, cell: int) -> int:
        """Bytes that the cell may still show, with what is held counted."""
        frame = self._frame_of(cell)
        if frame is not None:
            return max(0, min(self.budget.per_cell, self.budget.per_job - self.budget.used) - frame.bytes)
        return self.budget.left(cell) - (self._held_bytes if self._held and self._held["cell"] == cell else 0)

    def _hold_text(self, cell: int, name: str, text: str, size: int) -> None:
        frame = self._frame_of(cell)
        if frame is not None:
            frame.add_text(name, text, size)
            self.say(text, raw=True)
            return
        held = self._held
        if held is None or held["type"] != "output" or held["cell"] != cell or held["output"]["name"] != name:
            self.flush()
            output = {"output_type": "stream", "name": name}
            self._hold({"type": "output", "cell": cell, "output": output})
        self._held_parts.append(text)
        self._held_bytes += size
        self.say(text, raw=True)
        if self._held_bytes >= _JOIN_BYTES:
            self.flush()

    def output(self, cell: int, output: dict[str, Any], display_id: str | None = None) -> None:
        """A rich output or an error, within the limits; an error is always kept, shortened where it is huge."""
        if output["output_type"] == "stream":
            self.stream(cell, output["name"], output["text"])
            return
        if output["output_type"] == "error":
            self.flush()
            output = _short_error(output)
        size = _size(output)
        if output["output_type"] != "error" and size > self._left(cell):
            self._cap(cell, size)
            return
        fields = {"cell": cell, "output": output, **({"display_id": display_id} if display_id else {})}
        frame = self._frame_of(cell)
        if frame is not None:
            frame.add({"type": "output", **fields}, size)
        else:
            self.flush()
            self._write_held({"type": "output", **fields})
        self._say_output(output)

    def update_display(self, cell: int, display_id: str, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        """New data for a display; of several that come fast the last counts."""
        size = _size(data)
        if self.budget.job_full or size > self.budget.per_cell:
            self._cap(cell, size)
            return
        frame = self._frame_of(cell)
        if frame is not None:
            fields: Event = {"cell": cell, "display_id": display_id, "data": data, "metadata": metadata}
            frame.add({"type": "update_display", **fields}, size)
            return
        held = self._held
        if held is None or held["type"] != "update_display" or held["display_id"] != display_id:
            self.flush()
            self._hold({"type": "update_display"}, self._next.get(display_id, 0) - time.monotonic())
            held = self._held
        assert held is not None
        held.update(cell=cell, display_id=display_id, data=data, metadata=metadata)

    def clear(self, cell: int, wait: bool) -> None:
        """The cell's output is cleared. Cleared again soon after, it is held until it is time to draw it anew."""
        if self.budget.job_full:
            return
        frame = self._frame_of(cell)
        if frame is not None:
            frame.clear(wait)
            return
        self.flush()
        wait_for = self._next.get(cell, 0) - time.monotonic()
        if wait_for > 0:
            self._frame = Frame(cell, wait, self._drawn)
            self._start_timer(wait_for)
        else:
            self._write_clear(cell, wait)

    def _write_clear(self, cell: int, wait: bool) -> None:
        self._next[cell] = time.monotonic() + self._redraw_seconds(cell)
        self.budget.take(
            cell, self.sink.write({"t": round(time.time(), 6), "type": "clear", "cell": cell, "wait": wait})
        )
        self.budget.cleared(cell)

    def _redraw_seconds(self, cell: int) -> float:
        now = time.monotonic()
        share = _REDRAW_SHARE * (now - self._started.get(cell, now))
        seconds = max(_REDRAW_SECONDS, min(share, _REDRAW_SLOWEST))
        return seconds * (6 if self.budget.used > self.budget.per_job / 2 else 1)

    def _frame_of(self, cell: int) -> "Frame | None":
        return self._frame if self._frame is not None and self._frame.cell == cell else None

    def widgets(self, cell: int, models: dict[str, Any]) -> None:
        """Models of widgets that changed."""
        size = _size(models)
        if self.budget.used + size > self.budget.per_job:
            self._cap(cell, size)
            return
        state = {"state": models, "version_major": 2, "version_minor": 0}
        self.budget.take(cell, self.write("widget_state", state=state), visible=False)

    def count(self, cell: int, size: int) -> bool:
        """Counts output that goes into a widget; false where it must be dropped."""
        if size > self.budget.left(cell):
            self._cap(cell, size)
            return False
        self.budget.take(cell, size)
        return True

    def _cap(self, cell: int, size: int) -> None:
        if not self.budget.drop(cell, size):
            return
        self.flush()
        full = self.budget.job_full or self.budget.used + size > self.budget.per_job
        code, limit = ("runner.capped_job", self.budget.per_job) if full else ("runner.capped", self.budget.per_cell)
        text = message(code, {"limit": show_size(limit)})
        self.write("output", cell=cell, output={"output_type": "stream", "name": "stderr", "text": f"\n{text}\n"})
        self.say(text)

    # --- holding
    def _hold(self, event: Event, seconds: float = 0) -> None:
        self._held, self._held_parts, self._held_bytes = event, [], 0
        self._start_timer(max(seconds, _JOIN_SECONDS))

    def _start_timer(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._flush_on_time)

    def _flush_on_time(self) -> None:
        try:
            self.flush()
        except OSError as error:
            self.failed = error
            self.on_failure()

    def flush(self) -> None:
        """Writes what is held."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        frame, self._frame = self._frame, None
        if frame is not None:
            self._write_clear(frame.cell, frame.wait)
            for event in frame.events():
                self._write_held(event)
            if frame.cleared:
                self._write_clear(frame.cell, True)
        held, self._held, self._held_bytes = self._held, None, 0
        if held is not None:
            if held["type"] == "output":
                held["output"]["text"] = "".join(self._held_parts)
            self._held_parts = []
            self._write_held(held)

    def _write_held(self, event: Event) -> None:
        cell = event["cell"]
        if event["type"] == "update_display":
            self._next[event["display_id"]] = time.monotonic() + self._redraw_seconds(cell)
        elif "display_id" in event:
            self._drawn.add(event["display_id"])
        size = self.sink.write({"t": round(time.time(), 6), **event})
        self.budget.take(cell, size, visible=event["type"] == "output")

    # --- the log that people read
    def say(self, text: str, *, raw: bool = False) -> None:
        """A line of the human log; `raw` text is the notebook's own, as it comes."""
        if self._log is None:
            return
        if not raw:
            text = f"{'' if self._log_ended_line else chr(10)}{text}\n"
        if not text:
            return
        self._log_ended_line = text[-1] == "\n"
        try:
            self._log.write(text)
            self._log.flush()
        except (OSError, ValueError):
            self._log = None  # nobody reads, or the disk is full: the event log tells that, if so

    def raw(self, text: str) -> None:
        """The notebook's own text, as it comes."""
        self.say(text, raw=True)

    def _say_output(self, output: dict[str, Any]) -> None:
        if output["output_type"] == "error":
            self.say(without_colours("\n".join(output["traceback"]) or f"{output['ename']}: {output['evalue']}"))
            return
        text = output["data"].get("text/plain")
        if isinstance(text, str):
            self.say(text)


def _short_error(output: dict[str, Any]) -> dict[str, Any]:
    lines: list[str] = []
    left = _LONGEST_TRACEBACK
    for line in reversed(output.get("traceback") or []):
        kept = str(line)[: min(left, 64 * 1024)]
        left -= len(kept)
        if kept:
            lines.append(kept)
    short = {"ename": str(output["ename"])[:1000], "evalue": str(output["evalue"])[: 64 * 1024]}
    return {"output_type": "error", **short, "traceback": lines[::-1]}


def _size(value: Any) -> int:
    try:
        return len(orjson.dumps(value))
    except TypeError:
        return sys.getsizeof(str(value))
