"""How often and how much at once: a token bucket for requests, counters for streams and submits."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from kajiya.errors import TooManyRequests

Kind = Literal["stream", "submit"]


class Rate:
    """A token bucket for each name: `burst` at once, then `per_second`."""

    def __init__(self, per_second: float, burst: int, names: int = 10_000) -> None:
        self._per_second, self._burst, self._names = per_second, float(burst), names
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, now: float) -> float:
        """Takes one token; gives 0, or the seconds to wait where there is none. `now` is monotonic seconds."""
        level, last = self._buckets.pop(name, (self._burst, now))
        level = min(self._burst, level + (now - last) * self._per_second)
        wait = 0.0 if level >= 1 else (1 - level) / self._per_second
        self._buckets[name] = (level - 1 if level >= 1 else level, now)
        while len(self._buckets) > self._names:
            self._buckets.popitem(last=False)
        return wait


class Counters:
    """How many streams and submits are open now, of each owner and of all."""

    def __init__(self, limits: dict[Kind, tuple[int, int]]) -> None:
        self._limits = limits  # kind -> (of one owner, of all)
        self._now: Counter[tuple[Kind, str]] = Counter()
        self._all: Counter[Kind] = Counter()

    def open(self, kind: Kind) -> int:
        """How many are open now, of all owners."""
        return self._all[kind]

    def take(self, kind: Kind, owner: str) -> None:
        """Counts one more. Raises `TooManyRequests`."""
        per_owner, everyone = self._limits[kind]
        if self._now[kind, owner] >= per_owner or self._all[kind] >= everyone:
            raise TooManyRequests(seconds=5)
        self._now[kind, owner] += 1
        self._all[kind] += 1

    def give(self, kind: Kind, owner: str) -> None:
        """Counts one less."""
        self._now[kind, owner] -= 1
        if self._now[kind, owner] <= 0:
            del self._now[kind, owner]
        self._all[kind] -= 1

    @contextmanager
    def one(self, kind: Kind, owner: str) -> Iterator[None]:
        """Counts one as long as the block runs. Raises `TooManyRequests`."""
        self.take(kind, owner)
        try:
            yield
        finally:
            self.give(kind, owner)
