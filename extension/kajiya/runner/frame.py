"""What a cell shows between two clearings, while it is not yet time to draw it."""

from dataclasses import dataclass, field
from typing import Any

from kajiya.runner.events import Event


@dataclass
class Frame:
    """Output that follows a `clear` of a cell; cleared again, it gives way to what comes next and was never drawn.

    Displays that are `drawn` elsewhere have their updates all the same.
    """

    cell: int
    wait: bool
    drawn: set[str]
    bytes: int = 0
    cleared: bool = False  # to be cleared when something comes: `wait`
    _events: list[tuple[Event, list[str]]] = field(default_factory=list[tuple[Event, list[str]]])

    def clear(self, wait: bool) -> None:
        """Clears what the frame holds: at once, or when something comes."""
        if wait:
            self.cleared = True
        else:
            self._restart()
            self.wait = False

    def add(self, event: Event, size: int) -> None:
        """An event of the cell; of updates of one display in a row the last counts."""
        if event["type"] == "output":
            self._begin_if_cleared()
        elif self._events and self._events[-1][0].get("display_id") == event["display_id"]:
            last = self._events[-1][0]
            if last["type"] == "update_display":
                self._events.pop()
        self._events.append((event, []))
        self.bytes += size

    def add_text(self, name: str, text: str, size: int) -> None:
        """Text to stdout or stderr, joined with its neighbour."""
        self._begin_if_cleared()
        self.bytes += size
        if self._events:
            event, parts = self._events[-1]
            if parts and event["output"]["name"] == name:
                parts.append(text)
                return
        output: dict[str, Any] = {"output_type": "stream", "name": name}
        self._events.append(({"type": "output", "cell": self.cell, "output": output}, [text]))

    def events(self) -> list[Event]:
        """What is to be written after the clearing."""
        out: list[Event] = []
        for event, parts in self._events:
            if parts:
                event["output"]["text"] = "".join(parts)
            out.append(event)
        return out

    def _begin_if_cleared(self) -> None:
        if self.cleared:
            self._restart()

    def _restart(self) -> None:
        updates = {event["display_id"]: event for event, _ in self._events if event.get("display_id") in self.drawn}
        self._events, self.bytes, self.cleared = [(_as_update(event), []) for event in updates.values()], 0, False


def _as_update(event: Event) -> Event:
    """What an output does to the earlier ones of its display."""
    if event["type"] == "update_display":
        return event
    shown = {key: event["output"][key] for key in ("data", "metadata")}
    return {"type": "update_display", "cell": event["cell"], "display_id": event["display_id"], **shown}
