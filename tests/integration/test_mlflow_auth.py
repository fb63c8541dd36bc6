"""A real MLflow server process, asked by real MLflow clients of two users, an administrator and a job."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from helpers.mlflowing import ACCESS, PREFIX, FakeHub, MlflowServer, fake_hub, query_of

API = "/api/2.0/mlflow"


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub() as fake:
        yield fake


@pytest.fixture(scope="module")
def server(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    for name in ("alice", "bob", "鍛冶屋 太郎"):
        hub.user(f"token-{name}" if name.isascii() else "token-taro", name)
    hub.user("token-root", "root", ACCESS, "admin:users", admin=True)
    hub.attempts["attempt-alice"] = (200, {"name": "alice", "kind": "attempt", "job": "j1", "attempt": 1})
    one = MlflowServer(hub, tmp_path_factory.mktemp("鍛冶 mlflow"))
    one.start()
    try:
        yield one
    finally:
        one.stop()


def client(server: MlflowServer, monkeypatch: pytest.MonkeyPatch, token: str) -> MlflowClient:
    """MLflow's own client with this token, as a notebook has it."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    mlflow.set_tracking_uri(server.url)
    return MlflowClient()


NOTEBOOK = """
    import sys, mlflow
    with mlflow.start_run() as run:
        mlflow.log_param("C", 10)
        mlflow.log_metric("accuracy", 0.97)
        mlflow.log_text("hello", "notes/hello.txt")
    sys.stdout.write("\\n" + run.info.run_id)
"""


def in_a_notebook(server: MlflowServer, token: str) -> str:
    """The run that plain MLflow code makes in a process with nothing set but address and token."""
    env = {"MLFLOW_TRACKING_URI": server.url, "MLFLOW_TRACKING_TOKEN": token, "USER": "eve", "LOGNAME": "eve"}
    env |= {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "GIT_PYTHON_REFRESH": "quiet"}
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(NOTEBOOK)],
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()[-1]


def test_plain_code_needs_no_set_up_and_is_its_users(
    server: MlflowServer, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    by_alice = in_a_notebook(server, "token-alice")
    by_job = in_a_notebook(server, "attempt-alice")
    by_bob = in_a_notebook(server, "token-bob")

    alice = client(server, monkeypatch, "token-alice")
    run = alice.get_run(by_alice)
    assert run.data.tags["mlflow.user"] == "alice" and run.info.user_id == "alice"
    assert alice.get_run(by_job).data.tags["mlflow.user"] == "alice"
    assert run.data.metrics == {"accuracy": 0.97}
    assert alice.get_experiment(run.info.experiment_id).name == "Default"
    assert {one.info.run_id for one in alice.search_runs(["0"])} == {by_alice, by_job}
    assert Path(alice.download_artifacts(by_alice, "notes/hello.txt", str(tmp_path))).read_text() == "hello"
    assert [one.path for one in alice.list_artifacts(by_alice, "notes")] == ["notes/hello.txt"]

    bob = client(server, monkeypatch, "token-bob")
    assert {one.info.run_id for one in bob.search_runs(["0"])} == {by_bob}
    assert bob.get_run(by_bob).info.experiment_id != run.info.experiment_id


@pytest.fixture(scope="module")
def owned(server: MlflowServer) -> dict[str, str]:
    """Things of alice's: by kind, their ids."""

    def ask(method: str, path: str, body: Any = None) -> Any:
        status, said, _ = server.ask(method, path, "token-alice", body)
        assert status == 200, (path, said)
        return said

    experiment = ask("POST", f"{API}/experiments/create", {"name": "secret study"})["experiment_id"]
    run = ask("POST", f"{API}/runs/create", {"experiment_id": experiment})["run"]["info"]
    root = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
    server.ask("PUT", f"/api/2.0/mlflow-artifacts/artifacts/{root}/model/MLmodel", "token-alice", b"secret bytes")
    ask("POST", f"{API}/runs/log-metric", {"run_id": run["run_id"], "key": "m", "value": 1, "timestamp": 1})
    ask("POST", f"{API}/registered-models/create", {"name": "digits"})
    source = {"name": "digits", "source": f"runs:/{run['run_id']}/model", "run_id": run["run_id"]}
    version = ask("POST", f"{API}/model-versions/create", source)["model_version"]["version"]
    model = ask("POST", f"{API}/logged-models", {"experiment_id": experiment, "name": "logged"})["model"]["info"]
    trace = {
        "trace": {
            "trace_info": {
                "trace_id": "tr-" + "a" * 32,
                "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}},
                "request_time": "2026-01-01T00:00:00Z",
                "state": "OK",
            }
        }
    }
    ask("POST", "/api/3.0/mlflow/traces", trace)
    return {
        "experiment": experiment,
        "run": run["run_id"],
        "root": root,
        "version": version,
        "model": model["model_id"],
        "trace": "tr-" + "a" * 32,
    }


def foreign(owned: dict[str, str]) -> list[tuple[str, str, Any]]:
    """Ways to reach for what is alice's."""
    run, experiment, root = owned["run"], owned["experiment"], owned["root"]
    proxied = f"/api/2.0/mlflow-artifacts/artifacts/{root}/model/MLmodel"
    return [
        ("GET", f"{API}/experiments/get?experiment_id={experiment}", None),
        ("POST", f"{API}/experiments/update", {"experiment_id": experiment, "new_name": "mine"}),
        ("POST", f"{API}/experiments/delete", {"experiment_id": experiment}),
        ("POST", f"{API}/experiments/set-experiment-tag", {"experiment_id": experiment, "key": "a", "value": "b"}),
        ("POST", f"{API}/runs/create", {"experiment_id": experiment}),
        ("GET", f"{API}/runs/get?run_id={run}", None),
        ("GET", f"/ajax-api/2.0/mlflow/runs/get?run_id={run}", None),
        ("POST", f"{API}/runs/update", {"run_id": run, "status": "FAILED"}),
        ("POST", f"{API}/runs/delete", {"run_id": run}),
        ("POST", f"{API}/runs/set-tag", {"run_id": run, "key": "a", "value": "b"}),
        ("POST", f"{API}/runs/log-metric", {"run_id": run, "key": "m", "value": 2, "timestamp": 1}),
        ("POST", f"{API}/runs/log-batch", {"run_id": run, "tags": [{"key": "a", "value": "b"}]}),
        ("GET", f"{API}/metrics/get-history?run_id={run}&metric_key=m", None),
        ("GET", f"/ajax-api/2.0/mlflow/metrics/get-history-bulk?run_id={run}&metric_key=m", None),
        ("GET", f"{API}/artifacts/list?run_id={run}", None),
        ("GET", f"/get-artifact?run_uuid={run}&path=model/MLmodel", None),
        ("POST", f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path=x", b"x"),
        ("GET", "/model-versions/get-artifact?name=digits&version=1&path=MLmodel", None),
        ("GET", proxied, None),
        ("PUT", proxied, b"changed"),
        ("DELETE", proxied, None),
        ("GET", f"/ajax-api/2.0/mlflow-artifacts/artifacts/{root}/model/MLmodel", None),
        ("GET", f"/api/2.0/mlflow-artifacts/artifacts?path={root}", None),
        ("GET", f"{API}/registered-models/get?name=digits", None),
        ("GET", f"{API}/model-versions/get?name=digits&version=1", None),
        ("GET", f"{API}/model-versions/get-download-uri?name=digits&version=1", None),
        ("PATCH", f"{API}/registered-models/update", {"name": "digits", "description": "mine"}),
        ("DELETE", f"{API}/registered-models/delete", {"name": "digits"}),
        ("POST", f"{API}/model-versions/set-tag", {"name": "digits", "version": "1", "key": "a", "value": "b"}),
        ("GET", f"{API}/logged-models/{owned['model']}", None),
        ("DELETE", f"{API}/logged-models/{owned['model']}", None),
        ("GET", f"/ajax-api/2.0/mlflow/logged-models/{owned['model']}/artifacts/files?artifact_file_path=x", None),
        ("GET", f"/api/3.0/mlflow/traces/{owned['trace']}", None),
        ("GET", f"/ajax-api/3.0/mlflow/get-trace-artifact?request_id={owned['trace']}", None),
        ("PATCH", f"/api/3.0/mlflow/traces/{owned['trace']}/tags", {"key": "a", "value": "b"}),
        ("POST", "/api/3.0/mlflow/datasets/create", {"name": "d", "experiment_ids": [experiment]}),
    ]


def test_what_is_anothers_is_refused_and_nothing_leaks(server: MlflowServer, owned: dict[str, str]) -> None:
    for method, path, body in foreign(owned):
        status, said, _ = server.ask(method, path, "token-bob", body)
        shown = said if isinstance(said, bytes) else str(said).encode()
        assert status in (400, 403, 404), (method, path, status, said)
        for secret in (b"secret", b"alice", b"MLmodel"):
            assert secret not in shown.replace(path.encode(), b""), (method, path, said)
        for token in (None, "token-of-nobody", "Basic bm9ib2R5Om5v"):
            assert server.ask(method, path, token, body)[0] == 401, (method, path, token)
    # All of it is still as it was.
    _, run, _ = server.ask("GET", f"{API}/runs/get?run_id={owned['run']}", "token-alice")
    assert run["run"]["info"]["lifecycle_stage"] == "active"
    assert [one["value"] for one in run["run"]["data"]["metrics"]] == [1]
    path = f"/api/2.0/mlflow-artifacts/artifacts/{owned['root']}/model/MLmodel"
    assert server.ask("GET", path, "token-alice")[1] == b"secret bytes"


def test_searches_show_ones_own_only(server: MlflowServer, owned: dict[str, str]) -> None:
    experiments = [owned["experiment"]]
    for method, path, body in [
        ("POST", f"{API}/experiments/search", {"max_results": 100}),
        ("GET", f"{API}/experiments/search?max_results=100", None),
        ("POST", f"{API}/runs/search", {"experiment_ids": experiments}),
        ("GET", f"{API}/registered-models/search", None),
        ("GET", f"{API}/model-versions/search", None),
        ("POST", f"{API}/logged-models/search", {"experiment_ids": experiments}),
        ("POST", "/api/3.0/mlflow/traces/search", {"locations": []}),
        ("POST", "/graphql", {"query": "query($d: MlflowGetRunInput!){mlflowGetRun(input:$d){run{info{runId}}}}",
                              "variables": {"d": {"runId": owned["run"]}}}),
    ]:  # fmt: skip
        status, said, _ = server.ask(method, path, "token-bob", body)
        assert status in (200, 400, 403, 404), (path, said)
        assert not any(owned[kind] in str(said) for kind in ("run", "model", "trace", "root")), (path, said)
        assert "secret study" not in str(said) and "digits" not in str(said), (path, said)


def test_names_are_free_for_each(server: MlflowServer, owned: dict[str, str]) -> None:
    for path, name in (("experiments/create", "secret study"), ("registered-models/create", "digits")):
        assert server.ask("POST", f"{API}/{path}", "token-taro", {"name": name})[0] == 200
    _, said, _ = server.ask("POST", f"{API}/runs/create", "token-taro", {"experiment_id": "0"})
    assert said["run"]["info"]["user_id"] == "鍛冶屋 太郎"


def test_an_administrator_reads_all_a_user_none_of_it(server: MlflowServer, owned: dict[str, str]) -> None:
    path = f"{API}/runs/get?run_id={owned['run']}"
    assert server.ask("GET", path, "token-root", X_MLFLOW_WORKSPACE="alice")[0] == 200
    assert server.ask("GET", "/api/3.0/mlflow/workspaces", "token-root")[0] == 200
    for workspace in ("alice", "default", "nobody", "../alice"):
        status, said, _ = server.ask("GET", path, "token-bob", X_MLFLOW_WORKSPACE=workspace)
        assert status == 404 and said["error_code"] == "RESOURCE_DOES_NOT_EXIST"
    assert server.ask("GET", path, "token-alice", X_MLFLOW_WORKSPACE="alice")[0] == 200
    status, said, _ = server.ask("GET", "/api/3.0/mlflow/workspaces", "token-bob")
    assert status == 403 and "alice" not in str(said)


def test_who_made_a_run_can_not_be_claimed(server: MlflowServer, owned: dict[str, str]) -> None:
    run = owned["run"]
    server.ask("POST", f"{API}/runs/set-tag", "token-alice", {"run_id": run, "key": "mlflow.user", "value": "eve"})
    tags = [{"key": "mlflow.user", "value": "eve"}]
    server.ask("POST", f"{API}/runs/log-batch", "token-alice", {"run_id": run, "tags": tags})
    assert server.ask("POST", f"{API}/runs/delete-tag", "token-alice", {"run_id": run, "key": "mlflow.user"})[0] == 400
    _, said, _ = server.ask("GET", f"{API}/runs/get?run_id={run}", "token-alice")
    assert {"key": "mlflow.user", "value": "alice"} in said["run"]["data"]["tags"]


@pytest.mark.parametrize("kind", ["application/json; a=protobuf", "application/json;x-protobuf"])
def test_no_content_type_takes_a_body_past_the_checks(server: MlflowServer, kind: str) -> None:
    made = {"experiment_id": "0", "user_id": "eve", "tags": [{"key": "mlflow.user", "value": "eve"}]}
    status, said, _ = server.ask("POST", f"{API}/runs/create", "token-alice", made, Content_Type=kind)
    assert status == 200, said
    assert said["run"]["info"]["user_id"] == "alice"
    assert {"key": "mlflow.user", "value": "alice"} in said["run"]["data"]["tags"]
    source = {"name": f"of {kind}", "source": "mlflow-artifacts:/workspaces/bob/1/r/artifacts"}
    server.ask("POST", f"{API}/registered-models/create", "token-alice", {"name": f"of {kind}"})
    status, said, _ = server.ask("POST", f"{API}/model-versions/create", "token-alice", source, Content_Type=kind)
    assert status == 400 and "artifacts are kept by this server" in said["message"]


def test_what_can_not_be_kept_apart_is_refused_with_a_sentence(
    server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("/gateway/x/mlflow/invocations", f"{API}/webhooks", f"{API}/users/create", "/signup", "/new/thing"):
        for token in ("token-bob", "token-root"):
            status, said, _ = server.ask("POST", path, token, {})
            assert status == 403 and said["error_code"] == "PERMISSION_DENIED" and len(said["message"]) > 30, path
        assert "ここでは" in server.ask("POST", "/signup", "token-bob", {}, Accept_Language="ja")[1]["message"]
    bob = client(server, monkeypatch, "token-bob")
    with pytest.raises(MlflowException, match="webhooks are switched off here"):
        bob.list_webhooks()
    with pytest.raises(MlflowException, match="artifact_location"):
        bob.create_experiment("elsewhere", "file:///etc")
    bob.create_registered_model("from elsewhere")
    for source in ("file:///etc", "http://127.0.0.1:1/x", "mlflow-artifacts:/workspaces/alice/1/r/artifacts"):
        with pytest.raises(MlflowException, match="artifacts are kept by this server"):
            bob.create_model_version("from elsewhere", source)


@pytest.mark.parametrize(
    "path",
    [
        "/api/2.0/mlflow-artifacts/artifacts/workspaces/bob/../alice/1/x",
        "/api/2.0/mlflow-artifacts/artifacts/workspaces/bob/%2e%2e/alice/1/x",
        "/api/2.0/mlflow-artifacts/artifacts/..%2f..%2fmlflow.sqlite",
        "/api/2.0/mlflow-artifacts/artifacts/%252e%252e/%252e%252e/mlflow.sqlite",
        "/api/2.0/mlflow-artifacts/artifacts?path=../..",
        "/api/2.0/mlflow-artifacts/artifacts?path=..%252f..",
        "/get-artifact?run_uuid=x&path=../../../mlflow.sqlite",
        "/static-files/..%2f..%2f..%2fhandlers.py",
        "/static-files/../../__init__.py",
    ],
)
def test_paths_do_not_climb(server: MlflowServer, path: str) -> None:
    status, said, _ = server.ask("GET", path, "token-bob")
    assert status in (400, 404), said


def test_tokens_need_the_scope_exactly_and_end(server: MlflowServer, hub: FakeHub) -> None:
    ask = f"{API}/experiments/get?experiment_id=0"
    for scopes in (("access:services!service=mlflow2",), ("access:services!service=kajiya", "self"), ("access",)):
        token = hub.user(f"token-with-{scopes[0]}", "carol", *scopes)
        status, said, _ = server.ask("GET", ask, token)
        assert status == 403 and "MLflow" in said["message"]
    hub.attempts["attempt-old"] = (409, {"error": {"code": "access.attempt_superseded", "params": {}}})
    assert server.ask("GET", ask, "attempt-old")[0] == 409
    # A user's token for the workbench service alone is none for MLflow.
    hub.attempts["only-kajiya"] = (200, {"name": "alice", "kind": "user"})
    assert server.ask("GET", ask, "only-kajiya")[0] == 401
    assert server.ask("GET", ask, "token token-bob")[0] == 200
    assert server.ask("GET", ask, "Basic Ym9iOnRva2VuLWJvYg==")[0] == 200  # bob:token-bob
    assert server.ask("GET", ask, "Basic YWxpY2U6dG9rZW4tYm9i")[0] == 401  # alice:token-bob


def cookie(headers: dict[str, str]) -> str:
    """The first cookie that was set, as a browser sends it back."""
    return headers["set-cookie"].split(";")[0]


def test_a_browser_signs_in_through_the_hub(server: MlflowServer, hub: FakeHub) -> None:
    page = {"Accept": "text/html", "Sec_Fetch_Mode": "navigate"}
    status, _, headers = server.ask("GET", "/?a=b", **page)
    assert status == 302 and headers["location"].startswith("/hub/api/oauth2/authorize?")
    asked = query_of(headers["location"])
    assert asked["client_id"] == "service-mlflow" and asked["code_challenge_method"] == "S256"
    assert asked["redirect_uri"] == f"{PREFIX}/oauth_callback"
    assert "HttpOnly" in headers["set-cookie"] and f"Path={PREFIX}/" in headers["set-cookie"]
    state = cookie(headers)

    back = f"/oauth_callback?code=c1&state={asked['state']}"
    hub.codes["c1"] = {"token": "token-alice"}
    assert server.ask("GET", back)[0] == 401  # another browser has no such cookie
    assert server.ask("GET", "/oauth_callback?code=c1&state=forged", Cookie=state)[0] == 401
    status, _, headers = server.ask("GET", back, Cookie=state)
    assert status == 302 and headers["location"] == f"{PREFIX}/?a=b"
    assert len(hub.exchanges[-1]["code_verifier"]) >= 43 and hub.exchanges[-1]["client_secret"]

    session = cookie(headers)
    status, said, headers = server.ask("GET", "/", Cookie=session)
    assert status == 200 and b"<html" in said and headers["x-content-type-options"] == "nosniff"
    status, said, _ = server.ask("POST", f"{API}/experiments/search", body={"max_results": 5}, Cookie=session)
    assert status == 403 and "another site" in said["message"]
    for evidence, allowed in (
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Origin": f"http://127.0.0.1:{server.port}"}, 403),
        ({"Origin": f"http://127.0.0.1:{server.port}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ):
        status, _, _ = server.ask(
            "POST", f"{API}/experiments/search", body={"max_results": 5}, Cookie=session, **evidence
        )
        assert status == allowed, evidence
    broken = session[:-1] + ("0" if session[-1] != "0" else "1")
    assert server.ask("GET", f"{API}/experiments/get?experiment_id=0", Cookie=broken)[0] == 401
