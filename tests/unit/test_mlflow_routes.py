"""Every route of the installed MLflow is classified, and what clients send is changed as it must be."""

import json
import subprocess
import sys

import pytest

from kajiya.messages import sentences
from kajiya_hub.mlflow_app import rewrite
from kajiya_hub.mlflow_app.identity import Person
from kajiya_hub.mlflow_app.routes import Kind, classify
from kajiya_hub.mlflow_app.tenants import workspace_of

# Both web stacks, in a process of its own: MLflow reads its environment when it is imported.
LISTING = """
import json, sys, tempfile
from pathlib import Path
from kajiya_hub.mlflow_app.build import build
from kajiya_hub.mlflow_app.options import Options
front = build(Options(folder=Path(tempfile.mkdtemp()), hub_api="http://127.0.0.1:1", token="t"))
from mlflow.server import app as flask_app
from starlette.routing import Mount
routes = set()
def walk(items, prefix):
    for item in items:
        inner = getattr(item, "original_router", None)
        if inner is not None:
            walk(inner.routes, prefix + (getattr(item.include_context, "prefix", "") or ""))
        elif isinstance(item, Mount):
            assert not prefix and item.path == "", item.path
        else:
            routes.update((prefix + item.path, method) for method in item.methods)
walk(front._app.routes, "")
fast = len(routes)
for rule in flask_app.url_map.iter_rules():
    routes.update((str(rule), method) for method in rule.methods)
print(json.dumps({"fast": fast, "routes": sorted(routes)}))
"""


@pytest.fixture(scope="module")
def routes() -> list[tuple[str, str]]:
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LISTING], capture_output=True, text=True, timeout=110
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    # Both stacks are there; fewer would mean that the listing misses some, not that MLflow lost them.
    assert found["fast"] > 60 and len(found["routes"]) > 600
    return [(path, method) for path, method in found["routes"]]


def test_every_route_of_mlflow_is_classified(routes: list[tuple[str, str]]) -> None:
    unknown = [f"{method} {path}" for path, method in routes if classify(path, method) is None]
    assert unknown == []


def test_nothing_but_health_and_static_files_is_open(routes: list[tuple[str, str]]) -> None:
    opened = {path for path, method in routes if (classify(path, method) or (Kind.open,))[0] is Kind.open}
    assert opened == {"/health", "/static-files/<path:path>"}


def test_every_refusal_has_its_sentence(routes: list[tuple[str, str]]) -> None:
    refused = [classify(path, method) for path, method in routes]
    reasons = {kind[1] for kind in refused if kind is not None and kind[0] is Kind.refused}
    assert reasons >= {"gateway", "webhooks", "jobs", "accounts", "workspaces", "assistant"}
    for reason in reasons:
        assert f"mlflow.refused.{reason}" in sentences("en")


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/api/2.0/mlflow/runs/create", Kind.own),
        ("POST", "/ajax-api/2.0/mlflow/runs/create-promptlab-run", Kind.refused),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/workspaces/a/1/x", Kind.artifact),
        ("GET", "/api/3.0/mlflow/users/current", Kind.own),
        ("POST", "/api/3.0/mlflow/users/current", Kind.refused),
        ("POST", "/api/2.0/mlflow/users/create", Kind.refused),
        ("GET", "/api/3.0/mlflow/workspaces", Kind.administrators),
        ("POST", "/api/3.0/mlflow/workspaces", Kind.refused),
        ("DELETE", "/ajax-api/3.0/mlflow/workspaces/alice", Kind.refused),
        ("POST", "/gateway/openai/mlflow/invocations", Kind.refused),
        ("GET", "/api/2.0/mlflow/runs-of-others", None),
        ("GET", "/api/4.0/mlflow/runs/get", None),
        ("GET", "//api/2.0/mlflow/runs/get", None),
        ("GET", "/something/new", None),
    ],
)
def test_classes(method: str, path: str, kind: Kind | None) -> None:
    found = classify(path, method)
    assert (found[0] if found else None) is kind


def body(data: object, path: str = "/api/2.0/mlflow/runs/search") -> dict[str, object]:
    return json.loads(rewrite.body(json.dumps(data).encode(), path, "alice", "alice", lambda: "7"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"experiment_id": "0"}, {"experiment_id": "7"}),
        ({"experimentIds": ["0", "12", 0]}, {"experimentIds": ["7", "12", "7"]}),
        (
            {"a": [{"mlflow_experiment": {"experiment_id": "0"}}]},
            {"a": [{"mlflow_experiment": {"experiment_id": "7"}}]},
        ),
        ({"run_id": "0", "value": 0, "key": "x"}, {"run_id": "0", "value": 0, "key": "x"}),
        ({"key": "mlflow.user", "value": "eve"}, {"key": "mlflow.user", "value": "alice"}),
        (
            {"tags": [{"key": "mlflow.user", "value": "eve"}, {"key": "k", "value": "鍛"}]},
            {"tags": [{"key": "mlflow.user", "value": "alice"}, {"key": "k", "value": "鍛"}]},
        ),
        ({"trace_metadata": {"mlflow.user": "eve"}}, {"trace_metadata": {"mlflow.user": "alice"}}),
    ],
)
def test_bodies(given: dict[str, object], expected: dict[str, object]) -> None:
    assert body(given) == expected


def test_a_run_is_made_by_who_asks() -> None:
    made = body({"experiment_id": "0", "user_id": "eve", "userId": "eve"}, "/api/2.0/mlflow/runs/create")
    assert made == {"experiment_id": "7", "user_id": "alice", "tags": [{"key": "mlflow.user", "value": "alice"}]}
    twice = {"tags": [{"key": "mlflow.user", "value": "x"}, {"key": "mlflow.user", "value": "y"}]}
    assert body(twice, "/ajax-api/2.0/mlflow/runs/create")["tags"] == [{"key": "mlflow.user", "value": "alice"}]
    with pytest.raises(rewrite.UserTagFixed):
        body({"run_id": "r", "key": "mlflow.user"}, "/api/2.0/mlflow/runs/delete-tag")


@pytest.mark.parametrize(
    "data",
    [
        {"tags": [{"key": "mlflow.artifactLocation", "value": "file:///etc"}]},
        {"tags": {"mlflow.artifactLocation": "mlflow-artifacts:/workspaces/bob/1"}},
        {"tags": {"mlflow.artifactLocation": "mlflow-artifacts:/workspaces/alice/../bob/1"}},
        {"tags": {"mlflow.artifactLocation": "mlflow-artifacts:/workspaces/alice/%252e%252e/bob"}},
        {"tags": {"mlflow.artifactLocation": "mlflow-artifacts://host/workspaces/alice/1"}},
        {"tags": {"mlflow.artifactLocation": "mlflow-artifacts:/workspaces/alicex/1"}},
    ],
)
def test_foreign_locations_are_refused(data: dict[str, object]) -> None:
    with pytest.raises(rewrite.LocationNotAllowed):
        body(data)
    with pytest.raises(rewrite.BodyNotUsable):
        rewrite.body(b"[" * 100_000, "/x", "a", "a", lambda: "1")


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("runs:/abc/model", True),
        ("models:/m-1", True),
        ("mlflow-artifacts:/workspaces/alice/1/r/artifacts/m", True),
        ("mlflow-artifacts:/workspaces/bob/1/r/artifacts/m", False),
        ("http://169.254.169.254/latest", False),
        ("s3://bucket/x", False),
        ("file:///etc", False),
        ("/etc/passwd", False),
        ("runs:/abc/../../x", False),
    ],
)
def test_sources_of_model_versions(source: str, allowed: bool) -> None:
    path = "/api/2.0/mlflow/model-versions/create"
    if allowed:
        assert body({"source": source}, path)["source"] == source
    else:
        with pytest.raises(rewrite.LocationNotAllowed):
            body({"source": source}, path)


@pytest.mark.parametrize(
    "path", ["../x", "a/../b", "a/%2e%2e/b", "a/%252e%252e/b", "..\\x", "a\x00b", "a%00b", "%" + "25" * 20]
)
def test_climbing_paths_are_refused(path: str) -> None:
    with pytest.raises(rewrite.PathNotAllowed):
        rewrite.check_path(path)


def test_queries() -> None:
    assert (
        rewrite.query(b"experiment_ids=0&experiment_ids=2&a=", lambda: "7") == b"experiment_ids=7&experiment_ids=2&a="
    )
    assert rewrite.query(b"run_id=0&path=a%2Fb", lambda: "7") == b"run_id=0&path=a%2Fb"
    with pytest.raises(rewrite.PathNotAllowed):
        rewrite.query(b"path=..%2F..%2Fetc", lambda: "7")


def test_no_two_persons_share_a_workspace() -> None:
    people = [
        Person(name) for name in ("a", "default", "api", "workspaces", "alice", "Alice", "鍛冶屋", "鍛冶", "a--own")
    ]
    people += [Person("alice", service=True), Person("service/alice")][:1]
    names = [workspace_of(person) for person in people]
    assert len(set(names)) == len(names)
    assert all(2 <= len(name) <= 63 for name in names)
    assert len({Person("a").key, Person("a", admin=True).key, Person("a", service=True).key}) == 3
