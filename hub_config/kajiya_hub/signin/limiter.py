"""How often a password may be tried: a few tries, then ever longer waits. Pure but for the clock it is given."""

import time
from collections.abc import Callable

FREE = 5
LONGEST = 900.0
MEMORY = 10_000


class Limiter:
    """Failed tries by key; a key is forgotten a while after its last failure."""

    def __init__(self, free: int = FREE, first: float = 15.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.free, self.first, self.clock = free, first, clock
        self._failures: dict[object, tuple[int, float]] = {}

    def wait(self, key: object) -> int:
        """Seconds until this key may try again; 0 if it may now."""
        count, last = self._failures.get(key, (0, 0.0))
        if count < self.free:
            return 0
        left = last + self._pause(count) - self.clock()
        return max(0, int(left + 0.999))

    def failed(self, key: object) -> None:
        """Counts a failure. A count that rested for long begins anew."""
        now = self.clock()
        count, last = self._failures.get(key, (0, now))
        if now - last > 4 * LONGEST:
            count = 0
        self._failures[key] = (count + 1, now)
        if len(self._failures) > MEMORY:
            # Those who failed longest ago: an attacker who makes up keys can't use up the memory.
            for old in sorted(self._failures, key=lambda k: self._failures[k][1])[: MEMORY // 10]:
                del self._failures[old]

    def forget(self, key: object) -> None:
        """After a success."""
        self._failures.pop(key, None)

    def _pause(self, count: int) -> float:
        return min(LONGEST, self.first * 2 ** min(20, count - self.free))
