"""What a starting server waits for, as plain sentences: kept from the start, so that whoever looks later sees all."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

Event = dict[str, Any]


class ProgressLog:
    """The sentences of one start, in order; percentages only grow. Belongs to one event loop."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.percent = 0
        self.done = False
        self._said = ""
        self._changed = asyncio.Event()

    def say(self, percent: int, sentence: str) -> None:
        """Adds a sentence; the same one again only moves the percentage."""
        self.percent = max(self.percent, min(99, percent))
        event: Event = {"progress": self.percent, "message": sentence}
        if sentence == self._said:
            event = {"progress": self.percent}
        self._said = sentence
        self.events.append(event)
        self._wake()

    def end(self) -> None:
        """No more sentences will come."""
        self.done = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self) -> AsyncIterator[Event]:
        """All sentences from the first on, until the end."""
        seen = 0
        while True:
            while seen < len(self.events):
                seen += 1
                yield dict(self.events[seen - 1])
            if self.done:
                return
            await self._changed.wait()
