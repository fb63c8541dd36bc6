"""Following in the background of a kernel: a daemon thread per widget, and updates at most five times a second."""

import threading
import time
from collections.abc import Callable, Iterator

from kajiya.connection import Event
from kajiya.errors import KajiyaError

PAUSE = 0.2


class Throttle:
    """Calls `publish` soon after each `mark`, but never twice within `pause` seconds, and always after the last one."""

    def __init__(self, publish: Callable[[], None], pause: float = PAUSE) -> None:
        self._publish = publish
        self._pause = pause
        self._mutex = threading.Lock()
        self._last = 0.0
        self._timer: threading.Timer | None = None

    def mark(self) -> None:
        """Something changed."""
        with self._mutex:
            if self._timer is not None:
                return
            wait = self._last + self._pause - time.monotonic()
            if wait > 0:
                self._timer = threading.Timer(wait, self._run)
                self._timer.daemon = True
                self._timer.start()
                return
            self._last = time.monotonic()
        self._publish()

    def _run(self) -> None:
        with self._mutex:
            self._timer = None
            self._last = time.monotonic()
        self._publish()

    def flush(self) -> None:
        """Publishes now, whatever was said before."""
        with self._mutex:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._last = time.monotonic()
        self._publish()


class Follower:
    """Feeds a stream's events to `take` in a daemon thread, until the stream ends or `stop` is called."""

    def __init__(
        self,
        stream: Callable[[threading.Event, Callable[[str], None]], Iterator[Event]],
        take: Callable[[Event], None],
        lost: Callable[[str], None],
        failed: Callable[[str], None],
        name: str,
    ) -> None:
        self._stopped = threading.Event()
        self._stream, self._take, self._lost, self._failed = stream, take, lost, failed
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still follows."""
        return self.thread.is_alive() and not self._stopped.is_set()

    def stop(self) -> None:
        """Ends following at the next event or comment; does not wait for it."""
        self._stopped.set()

    def _hears(self, say: Callable[[str], None], sentence: str) -> None:
        if not self._stopped.is_set():
            say(sentence)

    def _run(self) -> None:
        try:
            for event in self._stream(self._stopped, lambda sentence: self._hears(self._lost, sentence)):
                if self._stopped.is_set():
                    return
                self._take(event)
        except KajiyaError as e:
            self._hears(self._failed, e.sentence())
