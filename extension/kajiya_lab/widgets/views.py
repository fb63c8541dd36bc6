"""Who looks at a widget: a view that goes away lets its stream rest, one that comes back takes it up again."""

import threading
from collections.abc import Callable

REST_AFTER = 5.0


class Views:
    """Counts a widget's views by what they say of themselves; `rest` once none is left for `after` seconds."""

    def __init__(self, rest: Callable[[], None], wake: Callable[[], None], after: float = REST_AFTER) -> None:
        self._rest, self._wake, self._after = rest, wake, after
        self._mutex = threading.Lock()
        self._open: set[str] = set()

    def here(self, view: str) -> None:
        """A view was drawn."""
        with self._mutex:
            self._open.add(view)
        self._wake()

    def gone(self, view: str) -> None:
        """A view was taken away; a cell that is run again draws a new one, so rest is not at once."""
        with self._mutex:
            self._open.discard(view)
        timer = threading.Timer(self._after, self._look)
        timer.daemon = True
        timer.start()

    def _look(self) -> None:
        with self._mutex:
            empty = not self._open
        if empty:
            self._rest()
