"""Every route of MLflow, classified; what is not named here is refused."""

import re
from enum import Enum

_API = re.compile(r"/(?:ajax-)?api/[23]\.0/(.*)")


class Kind(Enum):
    """What may be done with a route."""

    open = "open"  # says nothing about anybody: needs no identity
    own = "own"  # within the asking user's workspace
    info = "info"  # what the server can do; answered for the one who asks
    artifact = "artifact"  # as own, but a body of any size, which streams
    administrators = "administrators"
    refused = "refused"


# The refusal's sentence stands in messages/*/mlflow.toml under `mlflow.refused.<reason>`.
_REFUSED = {
    "mlflow/gateway": "gateway",
    "mlflow/gateway-proxy": "gateway",
    "mlflow/runs/create-promptlab-run": "gateway",
    "mlflow/webhooks": "webhooks",
    "mlflow/jobs": "jobs",
    "jobs": "jobs",
    "mlflow/prompt-optimization": "jobs",
    "mlflow/scorer/invoke": "jobs",
    "mlflow/scorers/online-config": "jobs",
    "mlflow/scorers/online-configs": "jobs",
    "mlflow/issues/invoke": "jobs",
    "mlflow/genai": "jobs",
    "mlflow/assistant": "assistant",
    "mlflow/demo": "demo",
    "mlflow/mcp-servers": "mcp",
    "mlflow/users": "accounts",
    "mlflow/roles": "accounts",
    "mlflow/artifacts/presigned-download-url": "presigned",
    "mlflow/artifacts/presigned-upload-url": "presigned",
    "mlflow-artifacts/presigned": "presigned",
}
_OWN = {
    "mlflow/experiments",
    "mlflow/runs",
    "mlflow/metrics",
    "mlflow/registered-models",
    "mlflow/model-versions",
    "mlflow/logged-models",
    "mlflow/artifacts/list",
    "mlflow/traces",
    "mlflow/unified-traces",
    "mlflow/get-online-trace-details",
    "mlflow/get-trace-artifact",
    "mlflow/datasets",
    "mlflow/label-schemas",
    "mlflow/review-queues",
    "mlflow/issues",
    "mlflow/scorers",
    "mlflow/users/current",
    "mlflow/ui-telemetry",
}
_ARTIFACT = {"mlflow-artifacts/artifacts", "mlflow-artifacts/mpu", "mlflow/upload-artifact"}
_TREE = {name: (Kind.refused, reason) for name, reason in _REFUSED.items()}
_TREE |= dict.fromkeys(_OWN, (Kind.own, "")) | dict.fromkeys(_ARTIFACT, (Kind.artifact, ""))
_TREE |= {"mlflow/workspaces": (Kind.administrators, ""), "mlflow/server-info": (Kind.info, "")}

_PLAIN = {
    "/": (Kind.own, ""),
    "/version": (Kind.own, ""),
    "/graphql": (Kind.own, ""),
    "/get-artifact": (Kind.own, ""),
    "/model-versions/get-artifact": (Kind.own, ""),
    "/v1/traces": (Kind.own, ""),
    "/v1/metrics": (Kind.refused, "metrics"),
    "/health": (Kind.open, ""),
    "/signup": (Kind.refused, "accounts"),
    # A slip of MLflow's, without a slash; no client asks for it.
    "/api/2.0mlflow/experiments/search-datasets": (Kind.refused, "unknown"),
    "/ajax-api/2.0mlflow/experiments/search-datasets": (Kind.refused, "unknown"),
}
_PLAIN_TREES = {
    "/static-files/": (Kind.open, ""),
    "/build/": (Kind.refused, "unknown"),  # the same files once more, by Flask's default
    "/gateway/": (Kind.refused, "gateway"),
}


def classify(path: str, method: str) -> tuple[Kind, str] | None:
    """The kind of a route and, if it is refused, why; None if it is not known (so to be refused)."""
    known = _PLAIN.get(path)
    if known is not None:
        return known
    for prefix, kind in _PLAIN_TREES.items():
        if path.startswith(prefix):
            return kind
    match = _API.fullmatch(path)
    if match is None:
        return None
    parts = match.group(1).split("/")
    for length in range(len(parts), 0, -1):
        kind = _TREE.get("/".join(parts[:length]))
        if kind is not None:
            if kind[0] is Kind.administrators and method not in ("GET", "HEAD"):
                return Kind.refused, "workspaces"
            if parts[1:] == ["ui-telemetry"] and method != "GET":
                return Kind.refused, "telemetry"
            if parts[1:3] == ["users", "current"] and method != "GET":
                return Kind.refused, "accounts"
            return kind
    return None
