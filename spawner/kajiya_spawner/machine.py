"""What this machine has free, asked from inside the Hub's event loop without holding it up."""

import asyncio
import time
from functools import cache
from pathlib import Path

from kajiya.machine.allocations import Allocations
from kajiya.machine.capacity import machine_capacity
from kajiya.types import Capacity

FRESH = 1.0  # seconds: many open pickers cost one look


class Machine:
    """Capacity and allocations of one machine folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last: tuple[float, Capacity] | None = None
        self._looking: asyncio.Task[Capacity] | None = None

    @staticmethod
    @cache
    def at(folder: Path) -> "Machine":
        """The one of that folder, shared by all spawners of this Hub."""
        return Machine(folder)

    async def capacity(self, fresh: bool = False) -> Capacity:
        """Totals and what is free; up to a second old unless `fresh`."""
        if not fresh and self._last is not None and time.monotonic() - self._last[0] < FRESH:
            return self._last[1]
        if self._looking is None or self._looking.done() or fresh:
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> Capacity:
        found = await asyncio.to_thread(machine_capacity, self.folder)
        self._last = (time.monotonic(), found)
        return found

    async def used(self, owner: str, profile: str) -> int:
        """How often the owner has a profile now, servers and running jobs together."""
        return await asyncio.to_thread(Allocations(self.folder).used, owner, profile)

    async def servers(self, owner: str) -> int:
        """How many servers of the owner run now."""
        live = await asyncio.to_thread(Allocations(self.folder).live)
        return sum(1 for a in live if a.owner == owner and a.kind == "server")
