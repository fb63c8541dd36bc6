"""Changes to what a client sends: experiment 0 means one's own, and who made a run is who really asked. Pure."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from kajiya.errors import InvalidInput

USER_TAG = "mlflow.user"
LOCATION_TAG = "mlflow.artifactLocation"
_EXPERIMENT = frozenset({"experiment_id", "experimentId", "experiment_ids", "experimentIds"})
# RFC 8259 sets no limit; Python's parser recurses, and so does this.
DEEPEST = 64


class LocationNotAllowed(InvalidInput):
    """An artifact location that is not this server's own."""

    code, status = "mlflow.location", 400


class UserTagFixed(InvalidInput):
    """The tag that says who made a run is set by the server alone."""

    code, status = "mlflow.user_tag", 400


class PathNotAllowed(InvalidInput):
    """A path that could lead out of its folder."""

    code, status = "mlflow.path", 400


class BodyNotUsable(InvalidInput):
    """A body that is no JSON, or is nested too deeply."""

    code, status = "mlflow.body", 400


def check_path(text: str) -> None:
    """Raises `PathNotAllowed` if a path, however often it is percent-encoded, climbs or holds control characters."""
    for _ in range(10):
        if any(part == ".." for part in text.replace("\\", "/").split("/")) or any(ord(c) < 32 for c in text):
            raise PathNotAllowed(path=text)
        plain = unquote(text)
        if plain == text:
            return
        text = plain
    raise PathNotAllowed(path=text)


def check_location(value: Any, workspace: str) -> None:
    """Raises `LocationNotAllowed` unless an artifact location lies in this workspace of this server."""
    if value in (None, ""):
        return
    text = str(value)
    try:
        check_path(text)
    except PathNotAllowed as e:
        raise LocationNotAllowed(location=text) from e
    scheme, colon, path = text.partition(":")
    if colon and scheme == "mlflow-artifacts" and not path.startswith("//"):
        own = f"/workspaces/{workspace}/"
        if path.startswith(own):
            return
    raise LocationNotAllowed(location=text)


def check_source(value: Any, workspace: str) -> None:
    """Raises `LocationNotAllowed` unless a model version's source is a run, a model, or lies in this workspace."""
    text = str(value or "")
    if not text or text in ("dummy-source", "prompt-template"):
        return
    scheme = text.partition(":")[0].lower()
    if scheme in ("runs", "models"):
        try:
            check_path(text)
        except PathNotAllowed as e:
            raise LocationNotAllowed(location=text) from e
        return
    check_location(text, workspace)


def query(raw: bytes, default_experiment: Callable[[], str]) -> bytes:
    """A query string in which experiment 0 is one's own, and no path climbs."""
    if not raw:
        return raw
    pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True)
    changed = False
    for index, (name, value) in enumerate(pairs):
        if name in _EXPERIMENT and value == "0":
            pairs[index] = (name, default_experiment())
            changed = True
        elif name in ("path", "artifact_path"):
            check_path(value)
    return urlencode(pairs).encode() if changed else raw


def body(raw: bytes, path: str, user: str, workspace: str, default_experiment: Callable[[], str]) -> bytes:
    """A JSON body with all changes. Raises `BodyNotUsable`, `LocationNotAllowed`, `UserTagFixed`, `PathNotAllowed`."""
    if not raw.strip():
        return raw
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise BodyNotUsable() from e
    if path.endswith("/runs/delete-tag") and isinstance(data, dict) and data.get("key") == USER_TAG:
        raise UserTagFixed()
    data = _walk(data, user, workspace, default_experiment, 0)
    if isinstance(data, dict):
        if path.endswith("/runs/create"):
            _as_user(data, user)
        if path.endswith("/model-versions/create"):
            check_source(data.get("source"), workspace)
        for name in ("artifact_location", "artifactLocation", "artifact_path", "artifactPath"):
            if isinstance(data.get(name), str):
                check_path(data[name])
    return json.dumps(data).encode()


def _as_user(data: dict[str, Any], user: str) -> None:
    data.pop("userId", None)
    data["user_id"] = user
    tags = data.get("tags")
    kept = (
        [tag for tag in tags if isinstance(tag, dict) and tag.get("key") != USER_TAG] if isinstance(tags, list) else []
    )
    data["tags"] = [*kept, {"key": USER_TAG, "value": user}]


def _walk(value: Any, user: str, workspace: str, experiment: Callable[[], str], depth: int) -> Any:
    if depth > DEEPEST:
        raise BodyNotUsable()
    if isinstance(value, list):
        return [_walk(one, user, workspace, experiment, depth + 1) for one in value]
    if not isinstance(value, dict):
        return value
    out: dict[str, Any] = {}
    for name, inner in value.items():
        if name in _EXPERIMENT:
            out[name] = _own_experiment(inner, experiment)
        elif name == USER_TAG:
            out[name] = user
        elif name == LOCATION_TAG:
            check_location(inner, workspace)
            out[name] = inner
        else:
            out[name] = _walk(inner, user, workspace, experiment, depth + 1)
    if out.get("key") == USER_TAG and "value" in out:
        out["value"] = user
    elif out.get("key") == LOCATION_TAG:
        check_location(out.get("value"), workspace)
    return out


def _own_experiment(value: Any, experiment: Callable[[], str]) -> Any:
    if isinstance(value, list):
        return [_own_experiment(one, experiment) for one in value]
    return experiment() if value in ("0", 0) and value is not False else value
