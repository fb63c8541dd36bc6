"""How far an attempt is, read from its growing event log at a cost that follows what is new."""

from kajiya.errors import AttemptNotFound, InvalidPath, JobNotFound
from kajiya.runner.events import FILE, decode
from kajiya.runner.events import progress as progress_of
from kajiya.types import Progress
from kajiya_hub.store.files import JobFiles

CHUNK = 256 * 1024
MOST = 16 * 1024**2
LINE = 16 * 1024
"""Bytes of a line that are kept: the events that tell of progress are shorter, and outputs are of no interest here."""

_TELLING = (b'"cell_start"', b'"cell_end"', b'"start"', b'"end"')


class ProgressTail:
    """Follows one attempt's event log. Its owner may write anything there: nothing is trusted, links are not followed,
    and a log that became shorter is read from the beginning again."""

    def __init__(self, files: JobFiles, job: str, attempt: int) -> None:
        self._files, self._job, self._attempt = files, job, attempt
        self._reset()

    def _reset(self) -> None:
        self.offset = 0
        self.progress = Progress()
        self._begun = b""
        self._dropping = False

    def read(self, most: int = MOST) -> Progress:
        """The progress after what was appended since, at most so many bytes of it; a torn last line waits."""
        try:
            file = self._files.open_attempt(self._job, self._attempt, FILE)
        except (OSError, AttemptNotFound, JobNotFound, InvalidPath):
            return self.progress
        with file:
            if file.seek(0, 2) < self.offset:
                self._reset()
            file.seek(self.offset)
            while most > 0 and (data := file.read(min(CHUNK, most))):
                most -= len(data)
                self.offset += len(data)
                self._take(data)
        return self.progress

    def _take(self, data: bytes) -> None:
        lines = data.split(b"\n")
        for i, part in enumerate(lines):
            if not self._dropping:
                self._begun += part[: LINE + 1]
                self._dropping = len(self._begun) > LINE
            if i < len(lines) - 1:
                if not self._dropping:
                    self._line(self._begun)
                self._begun, self._dropping = b"", False

    def _line(self, line: bytes) -> None:
        if not any(word in line for word in _TELLING):
            return
        event = decode(line)
        if event is None:
            return
        before, after = self.progress, progress_of([event])
        match event["type"]:
            case "start":
                self.progress = after
            case "cell_start":
                self.progress = before.model_copy(update={"current": after.current, "source": after.source})
            case "cell_end":
                update = {"cells_done": before.cells_done + 1, "current": None, "source": ""}
                self.progress = before.model_copy(update=update)
            case "end":
                self.progress = before.model_copy(update={"current": None, "source": ""})
            case _:
                pass
