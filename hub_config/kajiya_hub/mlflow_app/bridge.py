"""Tells MLflow's own auth app who asks: the front end has found out, and no header or body can say otherwise."""

from contextvars import ContextVar

from flask import Response
from werkzeug.datastructures import Authorization

# Context variables follow a request into MLflow's threads; a header could be forged.
ASKING: ContextVar[str | None] = ContextVar("kajiya_mlflow_asking", default=None)


def authorize() -> Authorization | Response:
    """MLflow's `authorization_function`."""
    name = ASKING.get()
    if name is None:
        return Response("Nobody is signed in.", status=401)
    return Authorization("basic", {"username": name, "password": ""})
