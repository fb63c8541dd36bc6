"""Job: a handle on one job, as a notebook or a script holds it."""

import threading
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from kajiya import describe, display, notebook
from kajiya.client import FOLLOW_PATIENCE, Client, checked
from kajiya.connection import Event
from kajiya.errors import FileExists, InvalidPath, JobFailed, JobStopped, ResultNotFound, WaitTimeout
from kajiya.types import Job as Record
from kajiya.types import JobAgain, Progress, Result, Status


class Job:
    """One job. In JupyterLab and Notebook 7 it shows itself as a widget that follows it, elsewhere as text.

    Every call raises the leaves of `kajiya.errors`, `Unreachable` among them.
    """

    def __init__(self, record: Record, client: Client) -> None:
        self._record = record
        self._client = client
        self._asked = time.monotonic()

    # --- what it is
    @property
    def id(self) -> str:
        """The job's name in every call and command."""
        return self._record.id

    @property
    def record(self) -> Record:
        """All that was last heard of the job, without asking again."""
        return self._record

    @property
    def client(self) -> Client:
        """The client that the job was got by."""
        return self._client

    @property
    def status(self) -> Status:
        """Where the job stands now; asks the service, at most once a second, until the status is final."""
        if not self._record.status.final and time.monotonic() - self._asked > 1:
            self.refresh()
        return self._record.status

    @property
    def progress(self) -> Progress:
        """How far the notebook was when last heard of."""
        return self._record.progress

    def refresh(self) -> "Job":
        """Asks the service how the job stands, and gives the job."""
        return self._take(self._client.job(self.id))

    def _take(self, record: Record) -> "Job":
        self._record, self._asked = record, time.monotonic()
        return self

    # --- what can be done with it
    def wait(self, timeout: float | None = None, raises: bool = True) -> "Job":
        """Waits for the end and gives the job; rides over restarts of the service.

        Raises `JobFailed` (or `JobStopped`, its leaf) with the sentence that says why, unless `raises` is false;
        `WaitTimeout` after `timeout` seconds, while the job goes on.
        """
        over = threading.Event()
        timer = threading.Timer(timeout, over.set) if timeout is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            self._wait(over, timeout)
        finally:
            if timer is not None:
                timer.cancel()
        if raises and self._record.status is not Status.succeeded:
            # Its template says nothing of the reason, so the whole reason follows.
            leaf = JobStopped if self._record.status is Status.stopped else JobFailed
            raise leaf(job=self.id, reason=describe.why(self._record.reason))
        return self

    def _wait(self, over: threading.Event, timeout: float | None) -> None:
        if self._record.status.final:
            return
        # A pause of the stream is at most 15 s long, so short timeouts ask by themselves.
        if timeout is not None and timeout < 30:
            while not self.refresh()._record.status.final:
                if over.wait(0.25):
                    raise WaitTimeout(job=self.id, status=describe.status(self._record.status), seconds=timeout)
            return
        for event in self._client.events(self.id, stop=over):
            if event.kind == "job":
                self._take(event.job)
                if self._record.status.final:
                    return
        self.refresh()
        if not self._record.status.final:
            raise WaitTimeout(job=self.id, status=describe.status(self._record.status), seconds=timeout)

    def stop(self) -> "Job":
        """Asks for the stop; `wait` says when it has stopped."""
        return self._take(self._client.stop(self.id))

    def again(self, *, key: str | None = None, **changes: Any) -> "Job":
        """Runs it again as a new job. Changes: name, parameters (over the job's own), profile, options, time_limit,
        priority."""
        return Job(self._client.again(self.id, checked(JobAgain, changes), key), self._client)

    def delete(self) -> None:
        """Deletes the ended job with its notebook, log and results. Raises `JobNotEnded`."""
        self._client.delete(self.id)

    def events(self, after: str = "", patience: float | None = FOLLOW_PATIENCE) -> Iterator[Event]:
        """The job's events as they come; see `Client.events`."""
        for event in self._client.events(self.id, after, patience=patience):
            if event.kind == "job":
                self._take(event.job)
            yield event

    # --- what it made
    def log(self, attempt: int | None = None) -> str:
        """The log so far, of the last attempt or of a given one."""
        return self._client.log(self.id, attempt).decode("utf-8", "replace")

    def notebook(self, to: str | Path | None = None, attempt: int | None = None) -> dict[str, Any]:
        """The executed notebook as it is now, also while the job runs; `to` saves it as well.

        Raises `NotebookNotReady` before the start, `FileExists` where `to` is already there.
        """
        data = self._client.notebook(self.id, attempt)
        if to is not None:
            target = Path(to)
            if target.is_dir():
                target = target / describe.notebook_file(self._record)
            try:
                with target.open("xb") as out:
                    out.write(data)
            except FileExistsError:
                raise FileExists(path=str(target)) from None
        return notebook.read(data, self._record.notebook, limit=len(data))

    def results(self) -> list[Result]:
        """The files that the job kept."""
        return self._client.results(self.id)

    def download(self, path: str | None = None, to: str | Path = ".", overwrite: bool = False) -> list[Path]:
        """Saves one kept file, or all, below the folder `to` (or as the file `to`), and gives the paths.

        Raises `ResultNotFound`, `FileExists`.
        """
        found = self.results()
        wanted = found if path is None else [r for r in found if r.path == path]
        if path is not None and not wanted:
            raise ResultNotFound(job=self.id, path=path)
        out: list[Path] = []
        for result in wanted:
            target = Path(to)
            if path is None or target.is_dir() or str(to).endswith("/"):
                target = target / _inside(result.path)
            out.append(self._client.download(self.id, result.path, target, result.sha256, overwrite))
        return out

    # --- how it shows itself
    def __repr__(self) -> str:
        return f"<Job {self.id} {self._record.status}>"

    def __str__(self) -> str:
        return describe.text(self._record)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        return display.mimebundle("job", self, str(self))


class Jobs(list[Job]):
    """A page of jobs: a list that shows itself as a table. `total` counts all that match, `next` is the next cursor."""

    def __init__(self, items: list[Job], total: int, next: str | None, client: Client, query: dict[str, Any]) -> None:
        super().__init__(items)
        self.total = total
        self.next = next
        self.client = client
        self.query = query

    def __repr__(self) -> str:
        if not self:
            return describe.message("jobs.none" if not self.query.get("filtered") else "jobs.none_match")
        rows = [describe.columns(), *(describe.row(j.record) for j in self)]
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
        if self.total > len(self):
            lines.append(describe.message("jobs.more", {"shown": len(self), "total": self.total}))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(c)}</th>" for c in describe.columns())
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(c)}</td>" for c in describe.row(j.record)) + "</tr>" for j in self
        )
        return (
            f"<table style='text-align: left'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            if self
            else escape(repr(self))
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        return display.mimebundle("jobs", self, repr(self))


def _inside(path: str) -> Path:
    """A kept file's path below a folder. Raises `InvalidPath` for one that would leave it."""
    out = Path(path)
    if out.is_absolute() or ".." in out.parts or not out.parts:
        raise InvalidPath(path=path)
    return out
