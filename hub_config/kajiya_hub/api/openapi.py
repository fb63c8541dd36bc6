"""What the OpenAPI document says beyond the types: refusals, streams, multipart bodies, examples."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from kajiya import __version__
from kajiya.errors import KajiyaError, leaves
from kajiya.messages import message
from kajiya.types import ErrorBody, JobAgain, JobSubmit, SnapshotCreate

MEANINGS = {
    401: "The token is missing, unknown or revoked.",
    403: "The token may not do this.",
    404: "There is no such thing of yours; what belongs to others is answered in the same words.",
    409: "It clashes with how things stand, or the attempt of this token has ended.",
    413: "The notebook or the files are larger than allowed.",
    422: "What was sent can't be used; the sentence names the field and what to mend.",
    429: "Too much at once; `Retry-After` says when to come again.",
    500: "Something went wrong inside; the sentence holds the id under which the log tells more.",
    503: "The Hub can't be reached, so the token can't be looked up just now.",
    507: "The disk is full; nothing that was stored is lost.",
}
COMMON = (401, 409, 422, 429, 500, 503)

EXAMPLE_SPEC = {
    "notebook": "train_digits.ipynb",
    "parameters": {"C": 10},
    "profile": "small",
    "results": ["*.png", "model/**"],
}
EXAMPLE_JOB = {
    "id": "j0kz3v9q2m4c8x1t",
    "owner": "hanako",
    "name": "train_digits",
    "notebook": "train_digits.ipynb",
    "notebook_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "files": [],
    "parameters": {"C": 10},
    "profile": "small",
    "options": {},
    "resources": {"cpu": 1.0, "memory": 2147483648, "gpus": 0, "gpu_kind": None},
    "environment": {
        "kind": "as_is",
        "name": "default",
        "digest": None,
        "note": message("environment.as_is", {"name": "default"}, "en"),
    },
    "priority": 0,
    "time_limit": None,
    "retries": {"preempted": 3, "could_not_start": 2},
    "results_wanted": ["*.png", "model/**"],
    "again_of": None,
    "status": "running",
    "reason": None,
    "position": None,
    "progress": {"cells_total": 8, "cells_done": 5, "current": 5, "source": "model.fit(X_train, y_train)"},
    "attempts": [
        {
            "number": 1,
            "status": "running",
            "ending": None,
            "exit_code": None,
            "reason": None,
            "usage": None,
            "started_at": "2026-11-24T09:00:02Z",
            "ended_at": None,
        }
    ],
    "results": [],
    "submitted_at": "2026-11-24T09:00:00Z",
    "started_at": "2026-11-24T09:00:02Z",
    "ended_at": None,
    "seq": 412,
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, those that every route shares included."""
    return {status: _error(status) for status in sorted({*statuses, *COMMON})}


def _error(status: int) -> dict[str, Any]:
    codes = [leaf for leaf in leaves() if leaf.status == status]
    example = codes[-1].code if codes else KajiyaError.code
    known = {404: "job.not_found", 409: "job.not_ended", 422: "parameters.unknown", 429: "limit.requests"}
    example = known.get(status, example)
    params = {
        "job.not_found": {"job": "j0kz3v9q2m4c8x1t"},
        "job.not_ended": {"job": "j0kz3v9q2m4c8x1t", "status": "running"},
        "parameters.unknown": {"name": "CC", "known": ["C"]},
        "limit.requests": {"seconds": 1},
    }.get(example)
    content: dict[str, Any] = {}
    if params is not None:
        body = {"error": {"code": example, "params": params, "message": message(example, params, "en")}}
        content = {"content": {"application/json": {"example": body}}}
    return {"model": ErrorBody, "description": MEANINGS[status], **content}


def multipart_body(model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """The multipart body of a submit."""
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["spec", "notebook"],
                    "properties": {
                        "spec": {
                            "allOf": [{"$ref": f"#/components/schemas/{model.__name__}"}],
                            "description": "What is asked for, as JSON.",
                            "example": example,
                        },
                        "notebook": {"type": "string", "format": "binary", "description": "The notebook file."},
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "Files beside the notebook; each file name is a relative path.",
                        },
                    },
                },
                "encoding": {"spec": {"contentType": "application/json"}},
            }
        },
    }


def stream_of(*events: str) -> dict[str, Any]:
    """An answer that is a stream of these events."""
    names = ", ".join(f"`{e}`" for e in events)
    return {
        "description": f"Server-sent events: {names}.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }


def bytes_of(media_type: str, description: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """An answer that is a file."""
    return {
        "description": description,
        "content": {media_type: {"schema": {"type": "string", "format": "binary"}}},
        "headers": {k: {"description": v, "schema": {"type": "string"}} for k, v in (headers or {}).items()},
    }


def document(app: FastAPI) -> dict[str, Any]:
    """The whole OpenAPI document; types that only hand-written bodies name are added."""
    made = get_openapi(
        title="Kajiya",
        version=__version__,
        description="Notebooks as jobs that survive everything. Every failure is answered with an `ErrorBody`, its "
        "sentence in the language of Accept-Language (`en`, `ja`).",
        routes=app.routes,
    )
    schemas = made["components"]["schemas"]
    for model in (JobSubmit, JobAgain, SnapshotCreate):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    # FastAPI's own bodies for a wrong request never leave this service.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    made["components"]["schemas"] = dict(sorted(schemas.items()))
    return made
