"""The store of jobs, for the API (`requests`) and for the loop (`progress`), and of snapshots."""

import time
from collections.abc import Callable

from kajiya_hub.store.progress import Progressing
from kajiya_hub.store.requests import Order, Requests
from kajiya_hub.store.snapshots import Snapshots

__all__ = ["Order", "Store"]


class Store(Requests, Progressing, Snapshots):
    """Jobs, attempts, results and snapshots. Synchronous and safe for many threads: call it by `asyncio.to_thread` or
    from sync routes. Every change of a job gives it a new `seq`; seqs grow in the order of the commits.

    `url` is an SQLAlchemy URL such as `sqlite:////data/service/kajiya.sqlite`; a plain path means SQLite. Opening
    makes the schema or migrates it. `clock` gives UTC seconds. Raises `StoreNewer`, `DiskFull`.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        super().__init__(url, clock)
        self._shown = {}
