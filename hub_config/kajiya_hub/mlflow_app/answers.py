"""Answers of our own, in the form that MLflow's clients show: `{"error_code", "message"}`."""

import json
from collections.abc import Iterable
from typing import Any

from starlette.types import Send

from kajiya.errors import KajiyaError
from kajiya.messages import message

# MLflow's codes by status (mlflow.exceptions, 3.17.2); clients try again on 429 and 5xx.
_CODES = {
    400: "INVALID_PARAMETER_VALUE",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    409: "INVALID_STATE",
    413: "REQUEST_LIMIT_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    503: "TEMPORARILY_UNAVAILABLE",
}


async def send_answer(
    send: Send, status: int, content: bytes, kind: str, headers: Iterable[tuple[str, str]] = ()
) -> None:
    """Send a whole answer."""
    lines = [("content-type", kind), ("content-length", str(len(content))), ("cache-control", "no-store"), *headers]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in lines],
        }
    )
    await send({"type": "http.response.body", "body": content})


async def send_json(send: Send, status: int, value: Any) -> None:
    """Send a value as JSON."""
    await send_answer(send, status, json.dumps(value).encode(), "application/json")


async def send_error(send: Send, error: KajiyaError, language: str) -> None:
    """Send a refusal with its sentence."""
    await send_json(send, error.status, {"error_code": code(error.status), "message": sentence(error, language)})


def sentence(error: KajiyaError, language: str) -> str:
    """The sentence of a refusal, with the action it names in the reader's language."""
    params = dict(error.params)
    if "action" in params:
        params["action"] = message(f"action.{params['action']}", {}, language)
    return message(error.code, params, language)


def code(status: int) -> str:
    """MLflow's error code for a status."""
    return _CODES.get(status, "INTERNAL_ERROR" if status >= 500 else "BAD_REQUEST")


async def send_redirect(send: Send, where: str, cookies: Iterable[str] = ()) -> None:
    """Send a browser elsewhere."""
    await send_answer(send, 302, b"", "text/plain", [("location", where), *(("set-cookie", c) for c in cookies)])
