"""Waiting with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(probe: Callable[[], T], seconds: float = 30, what: str = "it") -> T:
    """What `probe` gives as soon as that is true; fails after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come about within {seconds} s (last: {found!r})")
        time.sleep(0.05)
