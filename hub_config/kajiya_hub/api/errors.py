"""The one error handler: every failure is answered with an `ErrorBody`, in the reader's language, never with HTML."""

import errno
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from kajiya.errors import (
    DiskFull,
    HubUnreachable,
    InvalidRequest,
    KajiyaError,
    MethodNotAllowed,
    NotAuthenticated,
    NotFound,
    TooManyRequests,
)
from kajiya.messages import in_words, message, preferred_language, sentences
from kajiya_hub.logs import request_id

log = logging.getLogger("kajiya_hub.api")


def phrased(params: Mapping[str, Any], language: str) -> dict[str, Any]:
    """Parameters with the names of phrases put into the reader's words, and nothing larger than a reader needs."""
    out = {name: _short(in_words(name, value, language)) for name, value in params.items()}
    problem = params.get("problem")
    if isinstance(problem, str) and problem.startswith("oci.") and problem in sentences("en"):
        # What is wrong with a layer has a sentence of its own, which stands within ours.
        out["problem"] = _short(message(problem, params.get("details"), language).rstrip(".。"))
        out.pop("details", None)
    return out


def _short(value: Any) -> Any:
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_short(v) for v in list(value)[:200]]
    text = str(value)
    return text if len(text) <= 2000 else f"{text[:1999]}…"


def body(error: KajiyaError, language: str) -> bytes:
    """The error body in a language, as JSON bytes; text that is no Unicode is shown, not fatal."""
    params = phrased(error.params, language)
    detail = {"code": error.code, "message": message(error.code, params, language), "params": params}
    return to_json({"error": _clean(detail)}, inf_nan_mode="strings")


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_clean(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_clean(v) for v in value]
    return value


def answer(error: KajiyaError, language: str) -> Response:
    """The answer to a request that failed with this error."""
    headers: dict[str, str] = {}
    if isinstance(error, NotAuthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="kajiya"'
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(error.params.get("seconds", 1))
    if isinstance(error, HubUnreachable):
        headers["Retry-After"] = "3"
    if isinstance(error, MethodNotAllowed) and error.params.get("allowed"):
        headers["Allow"] = str(error.params["allowed"])
    return Response(body(error, language), error.status, headers, "application/json")


def unhandled(scope: Scope, error: Exception) -> Response:
    """The answer to what nobody foresaw; the log has the cause under the request's id."""
    language = _language(scope)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        log.error("the disk is full", exc_info=error)
        return answer(DiskFull(path="the data directory"), language)
    log.error("unhandled %s", type(error).__name__, exc_info=error)
    return answer(KajiyaError(request=request_id.get() or ""), language)


def invalid(errors: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The first of pydantic's complaints as an error that names the field."""
    first = errors[0] if errors else {"loc": (), "msg": "is wrong", "type": "unknown"}
    loc = [str(part) for part in first.get("loc", ())]
    if loc and loc[0] in ("body", "query", "path", "header"):
        loc = loc[1:]
    known = {"missing": "missing", "extra_forbidden": "extra", "json_invalid": "json"}
    problem = known.get(str(first.get("type")), str(first.get("msg", "")).removeprefix("Value error, "))
    return InvalidRequest(field=".".join(loc) or "body", problem=problem)


def _language(scope: Scope) -> str:
    headers: dict[bytes, bytes] = dict(scope.get("headers", ()))
    return preferred_language(headers.get(b"accept-language", b"").decode("latin-1"))


def install(app: FastAPI) -> None:
    """Makes the application answer every failure with an `ErrorBody`."""

    @app.exception_handler(KajiyaError)
    async def ours(request: Request, error: KajiyaError) -> Response:
        if error.status >= 500 and error.status != 503:
            log.error("%s: %s", error.code, error, exc_info=error)
        return answer(error, _language(request.scope))

    @app.exception_handler(RequestValidationError)
    async def request_wrong(request: Request, error: RequestValidationError) -> Response:
        return answer(invalid(error.errors()), _language(request.scope))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        language = _language(request.scope)
        if error.status_code == 404:
            return answer(NotFound(), language)
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            return answer(MethodNotAllowed(method=request.method, allowed=allowed), language)
        if error.status_code < 500:
            return answer(InvalidRequest(field="request", problem=str(error.detail)), language)
        return unhandled(request.scope, error)
