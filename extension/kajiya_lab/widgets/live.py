"""What a job's widget shows, from the events of its stream: pure, so that tests need no kernel and no browser."""

import re
import time
from typing import Any

from kajiya import describe
from kajiya.messages import message
from kajiya.sizes import show_size
from kajiya.types import Job, Status

TAIL = 20_000  # characters of output shown
IMAGE = 4 * 1024**2  # base64 characters of the largest image shown
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/svg+xml")
# Terminal control sequences (ECMA-48): colours and cursor moves mean nothing in a text box.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


class Live:
    """The state of one job's view. Feed it events; read `view`, `tail` and `image`."""

    def __init__(self, job: Job, language: str) -> None:
        self.job = job
        self.language = language
        self.tail = ""
        self.image: dict[str, str] = {}
        self.trouble = ""
        self.last = ""  # where in the stream to go on from
        self._attempt = ""
        self._clear = False

    def take_job(self, job: Job) -> None:
        """The job's new state."""
        self.job = job
        self.trouble = ""

    def take_cell(self, line: dict[str, Any], id: str) -> None:
        """One line of the event log."""
        self.last = id or self.last
        attempt = id.partition(":")[0]
        if attempt != self._attempt:
            # Each attempt starts over, and what an earlier one printed is in its own notebook.
            self._attempt, self.tail, self.image = attempt, "", {}
        self.trouble = ""
        match line.get("type"):
            case "output":
                self._output(line.get("output"))
            case "clear":
                if line.get("wait"):
                    self._clear = True
                else:
                    self.tail, self.image = "", {}
            case "update_display":
                self._image(line.get("data"))
            case "capped":
                self._text("\n" + message("widget.capped", None, self.language) + "\n")
            case _:
                pass

    def _output(self, output: Any) -> None:
        if not isinstance(output, dict):
            return
        if self._clear:
            self.tail, self.image, self._clear = "", {}, False
        match output.get("output_type"):
            case "stream":
                self._text(_joined(output.get("text")))
            case "error":
                trace = output.get("traceback")
                lines = [str(t) for t in trace] if isinstance(trace, list) else []
                text = "\n".join(lines) or f"{output.get('ename')}: {output.get('evalue')}"
                self._text(("" if self.tail.endswith("\n") or not self.tail else "\n") + text + "\n")
            case "display_data" | "execute_result":
                data = output.get("data")
                if not self._image(data) and isinstance(data, dict) and "text/plain" in data:
                    self._text(_joined(data["text/plain"]) + "\n")
            case _:
                pass

    def _image(self, data: Any) -> bool:
        for mime in IMAGES if isinstance(data, dict) else ():
            if mime in data:
                content = _joined(data[mime])
                if len(content) > IMAGE:
                    self._text(
                        message("widget.big_image", {"size": show_size(len(content) * 3 // 4)}, self.language) + "\n"
                    )
                else:
                    self.image = {"mime": mime, "data": content}
                return True
        return False

    def _text(self, text: str) -> None:
        self.tail = terminal(self.tail, text)[-TAIL:]

    @property
    def view(self) -> dict[str, Any]:
        """What the front end shows of the job, with all sentences ready."""
        job, language = self.job, self.language
        started = any(a.started_at for a in job.attempts) or job.started_at is not None
        return {
            "id": job.id,
            "name": job.name,
            "status": str(job.status),
            "word": describe.status(job.status, language),
            "final": job.status.final,
            "standing": describe.standing(job, language),
            "trouble": self.trouble,
            "elapsed": describe.elapsed(job),
            "at": time.time(),
            "done": job.progress.cells_done,
            "total": job.progress.cells_total,
            "source": job.progress.source if job.status is Status.running else "",
            "about": self._about(),
            "attempts": [describe.attempt(a, language) for a in job.attempts],
            "results": [{"path": r.path, "size": show_size(r.size)} for r in job.results],
            "stoppable": not job.status.final and job.status is not Status.stopping,
            "started": started,
        }

    def _about(self) -> str:
        job, language = self.job, self.language
        parts = [message("job.profile", {"profile": job.profile, "environment": job.environment.name}, language)]
        if job.parameters:
            parts.append(message("job.parameters", None, language) + f": {describe.parameters(job)}")
        if job.again_of:
            parts.append(message("widget.again_of", {"job": job.again_of}, language))
        return " · ".join(parts)


def terminal(before: str, new: str) -> str:
    """Text with more written behind it, as a terminal would show it: a bare CR starts the last line over."""
    new = _ANSI.sub("", new).replace("\r\n", "\n")
    if "\r" not in new and "\b" not in new:
        return before + new
    head, _, line = before.rpartition("\n")
    done = [head] if "\n" in before else []
    for i, part in enumerate(new.split("\n")):
        if i:
            done.append(line)
            line = ""
        for j, piece in enumerate(part.split("\r")):
            if j:
                line = piece + line[len(piece) :] if piece else line
            else:
                line += piece
    return "\n".join([*done, line])


def _joined(value: Any) -> str:
    return "".join(str(v) for v in value) if isinstance(value, list) else str(value if value is not None else "")


WORDS = (
    "stop",
    "stop_sure",
    "again",
    "save",
    "download",
    "open",
    "output",
    "log",
    "attempts",
    "results",
    "keep",
    "cells",
    "empty_output",
    "empty_log",
    "loading",
    "stale",
    "label",
    "jobs_label",
    "image",
)


def words(language: str) -> dict[str, str]:
    """The words of the front end in one language."""
    return {w: message(f"widget.{w}", None, language) for w in WORDS}
