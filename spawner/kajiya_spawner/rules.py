"""Which profiles a user may have now, asked by the picker and checked at every start."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kajiya.errors import NoCapacity
from kajiya.profiles import ProfileSet, Selection, defaults, load, missing_now, select
from kajiya.types import Capacity, ProfileView
from kajiya_spawner import picker
from kajiya_spawner.machine import Machine
from kajiya_spawner.picker import Choice
from kajiya_spawner.refusal import ServersLimit


@dataclass(frozen=True)
class Rules:
    """The profile file and the machine of a site, for one user."""

    machine: Machine
    file: Path | None
    user: str
    groups: list[str]

    async def profiles(self, capacity: Capacity | None = None) -> ProfileSet:
        """The profiles of this site; without a file, those that fit this machine. Raises `ConfigInvalid`."""
        if self.file is not None and self.file.exists():
            return await asyncio.to_thread(load, self.file)
        return defaults(capacity or await self.machine.capacity())

    async def select(self, choice: Choice, tell: Callable[[Selection], None] | None = None) -> Selection:
        """What the user gets by a choice, checked against all rules; the one check of every start.

        `tell` hears what is wanted before it is found out whether it is free. Raises the leaves of
        `profiles.select`, `ServersLimit`, `NoCapacity`.
        """
        capacity = await self.machine.capacity(fresh=True)
        config = await self.profiles(capacity)
        # Once without the count, for the slug of the profile may be left open, and then with it.
        first = select(config, self.user, self.groups, choice.profile, choice.options, capacity)
        if tell is not None:
            tell(first)
        used = await self.machine.used(self.user, first.profile)
        chosen = select(config, self.user, self.groups, first.profile, choice.options, capacity, used)
        limit = config.limits.servers
        if limit is not None and (have := await self.machine.servers(self.user)) >= limit:
            raise ServersLimit(used=have, limit=limit)
        missing = missing_now(chosen.resources, capacity, cpu=False)
        if missing is not None:
            raise NoCapacity(**missing.params)
        return chosen

    async def views(self, capacity: Capacity, language: str) -> list[ProfileView]:
        """The user's profiles with what can be had now. Raises `ConfigInvalid`."""
        config = await self.profiles(capacity)
        used = {p.slug: await self.machine.used(self.user, p.slug) for p in config.profiles if p.limit_per_user}
        return picker.views(config, self.user, self.groups, capacity, lambda slug: used.get(slug, 0), language)
