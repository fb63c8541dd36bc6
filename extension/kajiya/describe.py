"""Where a job stands, in plain words: pure, and shared by the SDK, the CLI and the widgets."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kajiya.messages import message
from kajiya.types import Attempt, Job, Reason, Status


def status(value: Status | str, language: str | None = None) -> str:
    """The word for a status."""
    return message(f"status.{value}", None, language)


def why(reason: Reason | None, language: str | None = None) -> str:
    """The sentence of a reason: as the service said it, else from its code."""
    if reason is None:
        return ""
    return reason.message or message(reason.code, reason.params, language)


def elapsed(job: Job, now: datetime | None = None) -> float:
    """Seconds since the start, or since the submit while it waits; the whole time once it ended."""
    start = job.started_at or job.submitted_at
    end = job.ended_at or (now or datetime.now(UTC))
    return max(0.0, (end - start).total_seconds())


def clock(seconds: float) -> str:
    """A time span such as `0:05`, `12:30` or `1:02:03`."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def standing(job: Job, language: str | None = None, now: datetime | None = None) -> str:
    """One or two sentences: what the job does now, what it waits for, or how it ended."""
    progress = job.progress
    params: dict[str, Any] = {
        "done": progress.cells_done,
        "total": progress.cells_total,
        "cell": (progress.current if progress.current is not None else progress.cells_done) + 1,
        "position": job.position,
        "time": clock(elapsed(job, now)),
    }

    def say(code: str) -> str:
        return message(f"standing.{code}", params, language)

    reason = why(job.reason, language)
    match job.status:
        case Status.queued:
            parts = [reason or say("queued"), say("position") if job.position else ""]
        case Status.running:
            parts = [say("cell") if progress.current is not None and progress.cells_total else say("running")]
        case Status.succeeded:
            parts = [say("succeeded")]
        case Status.failed | Status.stopped:
            parts = [reason or say(job.status)]
        case _:
            parts = [say(job.status), reason]
    return " ".join(p for p in parts if p)


def attempt(value: Attempt, language: str | None = None) -> str:
    """One line on an attempt."""
    word = message(f"ending.{value.ending}", None, language) if value.ending else status(value.status, language)
    span = ""
    if value.started_at and value.ended_at:
        span = f" ({clock((value.ended_at - value.started_at).total_seconds())})"
    reason = why(value.reason, language)
    return message("attempt.line", {"number": value.number}, language) + f": {word}{span}" + (reason and f" – {reason}")


def parameters(job: Job) -> str:
    """The parameters on one line, each value cut to what is readable."""
    return ", ".join(f"{k}={_short(repr(v), 60)}" for k, v in job.parameters.items())


def text(job: Job, language: str | None = None) -> str:
    """A job as a few lines of text."""
    head = f"{_short(job.name, 80)} [{job.id}]: {status(job.status, language)} ({clock(elapsed(job))})"
    out = [head, f"  {standing(job, language)}"]
    if job.status is Status.running and job.progress.source:
        out.append(f"  > {_short(job.progress.source, 100)}")
    out.append("  " + message("job.profile", {"profile": job.profile, "environment": job.environment.name}, language))
    if job.parameters:
        out.append("  " + message("job.parameters", None, language) + f": {_short(parameters(job), 300)}")
    if len(job.attempts) > 1:
        out += [f"  {attempt(a, language)}" for a in job.attempts]
    if job.results:
        names = [_short(r.path, 80) for r in job.results]
        more = "" if len(names) <= 8 else f", … (+{len(names) - 8})"
        out.append("  " + message("job.results", None, language) + f": {', '.join(names[:8])}{more}")
    return "\n".join(out)


def row(job: Job, language: str | None = None) -> list[str]:
    """A job as one row: id, name, status, progress, profile, time, and what it waits for."""
    total = job.progress.cells_total
    reason = why(job.reason, language) if not job.status.final or job.status is Status.failed else ""
    status_word = status(job.status, language) + (f" #{job.position}" if job.position else "")
    cells = f"{job.progress.cells_done}/{total}" if total else ""
    return [job.id, _short(job.name, 40), status_word, cells, job.profile, clock(elapsed(job)), _short(reason, 200)]


COLUMNS = ("id", "name", "status", "cells", "profile", "time", "reason")


def columns(language: str | None = None) -> list[str]:
    """The headings of `row`."""
    return [message(f"column.{c}", None, language) for c in COLUMNS]


def notebook_file(job: Job) -> str:
    """A file name for the executed notebook that says which job it came from."""
    stem = Path(job.notebook).stem or "notebook"
    return f"{_safe(stem)[:80]}-{job.id}.ipynb"


def _safe(name: str) -> str:
    return "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in name).strip(". ") or "notebook"


def _short(value: str, limit: int) -> str:
    flat = "".join(c if c.isprintable() else " " for c in value)
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
