"""Jobs and profiles as their reader sees them: the store keeps codes, the sentences are added here."""

from collections.abc import Iterable

from pydantic import TypeAdapter
from starlette.responses import Response

from kajiya.messages import message
from kajiya.types import Attempt, Environment, Job, Page, ProfileView, Reason, Result
from kajiya_hub.api.errors import phrased

_JOBS = TypeAdapter(Page[Job])
_PROFILES = TypeAdapter(list[ProfileView])
_RESULTS = TypeAdapter(list[Result])
JSON = "application/json"


def said(reason: Reason | None, language: str) -> Reason | None:
    """A reason with its sentence."""
    if reason is None:
        return None
    params = phrased(reason.params, language)
    return reason.model_copy(update={"message": message(reason.code, params, language)})


def noted(environment: Environment, language: str) -> Environment:
    """An environment with its note."""
    note = message(f"environment.{environment.kind}", {"name": environment.name}, language)
    return environment.model_copy(update={"note": note})


def localised(job: Job, language: str) -> Job:
    """A job with all its sentences."""
    attempts: list[Attempt] = [
        a if a.reason is None else a.model_copy(update={"reason": said(a.reason, language)}) for a in job.attempts
    ]
    update = {
        "reason": said(job.reason, language),
        "attempts": attempts,
        "environment": noted(job.environment, language),
    }
    return job.model_copy(update=update)


def job_json(job: Job, language: str) -> bytes:
    """A job as JSON bytes, with all its sentences."""
    return localised(job, language).model_dump_json().encode()


def job_answer(job: Job, language: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The answer that holds a job."""
    return Response(job_json(job, language), status, headers, JSON)


def page_answer(page: Page[Job], language: str) -> Response:
    """The answer that holds a page of jobs."""
    items = [localised(job, language) for job in page.items]
    return Response(_JOBS.dump_json(page.model_copy(update={"items": items})), 200, None, JSON)


def profiles_answer(views: Iterable[ProfileView], language: str) -> Response:
    """The answer that holds profiles."""
    out = [v.model_copy(update={"reason": said(v.reason, language)}) for v in views]
    return Response(_PROFILES.dump_json(out), 200, None, JSON)


def results_answer(results: list[Result]) -> Response:
    """The answer that holds a job's kept files."""
    return Response(_RESULTS.dump_json(results), 200, None, JSON)
