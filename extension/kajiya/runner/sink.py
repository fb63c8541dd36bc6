"""Where a runner's events go: a file now, and over HTTP where the attempt does not share a disk with the service."""

import os
from pathlib import Path
from typing import Protocol

from kajiya.runner.events import Event, encode


class Sink(Protocol):
    """Takes events in order. Raises `OSError` where one can't be kept; after that only the end may be written."""

    def write(self, event: Event) -> int:
        """Appends one event and returns the bytes it took."""
        ...

    def sync(self) -> None:
        """Returns when all that was written would survive a crash of the machine."""
        ...

    def close(self) -> None: ...


class FileSink:
    """Appends to `events.jsonl`, a whole line or nothing, and syncs by fdatasync."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        self._size = os.fstat(self._fd).st_size

    def write(self, event: Event) -> int:
        line = encode(event)
        view = memoryview(line)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(line)
        return len(line)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ListSink:
    """Keeps the events in memory: for papermill's own command line, where no attempt directory is."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, event: Event) -> int:
        self.events.append(event)
        return len(encode(event))

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass
