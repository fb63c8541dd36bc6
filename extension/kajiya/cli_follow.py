"""Following a job from a terminal: a bar where there is one, a line at each change where there is none."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import typer

from kajiya import describe
from kajiya.cli_out import INTERRUPTED, line, note, say
from kajiya.client import Client
from kajiya.errors import Unreachable, WaitTimeout
from kajiya.types import Job, Status


def follow(client: Client, job: Job, timeout: float | None = None, quiet: bool = False) -> Job:
    """Waits for the end of a job and shows how it goes. Raises `WaitTimeout`; Ctrl-C leaves the job running."""
    over = threading.Event()
    if timeout is not None:
        timer = threading.Timer(timeout, over.set)
        timer.daemon = True
        timer.start()
    show = _Silent() if quiet else _Bar() if sys.stderr.isatty() else _Lines()
    try:
        with show as update:
            last = [job]  # what is shown beside the trouble
            for event in client.events(job.id, stop=over, lost=lambda _: update(last[0], say("cli.lost"))):
                if event.kind == "job":
                    job = last[0] = event.job
                update(job, "")
                if job.status.final or over.is_set():
                    break
    except KeyboardInterrupt:
        note(say("cli.goes_on", job=job.id))
        raise typer.Exit(INTERRUPTED) from None
    if not job.status.final:
        job = client.job(job.id)
    if not job.status.final:
        raise WaitTimeout(job=job.id, status=describe.status(job.status), seconds=timeout)
    return job


def follow_log(client: Client, job: Job, attempt: int | None, write: Callable[[bytes], Any]) -> Job:
    """Writes a job's log as it grows, one attempt after the other, until the job has ended."""
    offset, lost_since = 0, None
    current = attempt
    while True:
        try:
            if current is None and job.attempts:
                current = job.attempts[0].number if offset == 0 else job.attempts[-1].number
            # The status is asked before the log: what came in between is caught by the next round.
            final = job.status.final
            if current is not None:
                chunk = client.log(job.id, current, offset)
                write(chunk)
                offset += len(chunk)
                later = [a.number for a in job.attempts if a.number > current]
                if attempt is None and later and not chunk:
                    current, offset = later[0], 0
                    note(describe.message("attempt.line", {"number": current}))
                    continue
                if chunk:
                    continue
            if final:
                return job
            time.sleep(0.5)
            job = client.job(job.id)
            lost_since = None
        except Unreachable:
            now = time.monotonic()
            lost_since = lost_since or now
            if now - lost_since > 300:
                raise
            note(say("cli.lost"))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def ended(job: Job) -> None:
    """Says how a job ended, what it kept, and where to look further."""
    line(describe.standing(job))
    for result in job.results:
        line(f"  {result.path}")
    if job.results:
        note(say("cli.hint.results", job=job.id))
    if job.status is Status.failed:
        note(say("cli.hint.failed", job=job.id))


Update = Callable[[Job, str], None]


class _Silent:
    def __enter__(self) -> Update:
        return lambda job, trouble: None

    def __exit__(self, *_: object) -> None:
        pass


class _Lines:
    """A line whenever the sentence changes, but no more than one every two seconds while cells go by."""

    def __enter__(self) -> Update:
        self._said, self._at, self._status = "", 0.0, None
        return self._update

    def __exit__(self, *_: object) -> None:
        pass

    def _update(self, job: Job, trouble: str) -> None:
        text = trouble or describe.standing(job)
        if job.status.final or text == self._said:
            return
        if job.status is self._status and not trouble and time.monotonic() - self._at < 2:
            return
        self._said, self._at, self._status = text, time.monotonic(), job.status
        note(f"{describe.status(job.status)}: {text}")


class _Bar:
    """A bar of cells with the current one; the waiting reason while there are none."""

    def __enter__(self) -> Update:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[word]}", style="bold", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn(
                "{task.fields[text]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
            console=Console(stderr=True),
            transient=True,
            expand=True,
        )
        self._progress.start()
        self._task = self._progress.add_task("", total=None, word="", text="")
        return self._update

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _update(self, job: Job, trouble: str) -> None:
        at = job.progress
        text = trouble or (at.source if job.status is Status.running and at.source else describe.standing(job))
        self._progress.update(
            self._task,
            completed=at.cells_done,
            total=at.cells_total or None,
            word=describe.status(job.status),
            text="".join(c if c.isprintable() else " " for c in text),
        )
