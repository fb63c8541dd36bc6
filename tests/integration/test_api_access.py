"""Who may do what: every route of the OpenAPI document, by every kind of token; and no answer but an `ErrorBody`."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from helpers.http import assert_error
from helpers.service import PREFIX, Service, make, service
from kajiya import errors
from kajiya.types import Ending
from kajiya_hub.api.deps import Limits
from kajiya_hub.app import create_app

OPEN = {("get", f"{PREFIX}/health")}
STATUS_401, STATUS_403 = errors.NotAuthenticated, errors.NotAllowed


def routes(tmp_path: Path) -> list[tuple[str, str]]:
    deps, _, _ = make(tmp_path)
    document = create_app(deps).openapi()
    deps.store.close()
    return [(method, path) for path, item in document["paths"].items() for method in item]


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Service]:
    async with service(tmp_path) as made:
        yield made


async def ask(
    api: Service, method: str, path: str, token: str | None, job: str = "j0000000000000000"
) -> httpx.Response:
    filled = path.replace("{id}", job).replace("{path}", "a.csv")
    for name, value in {"{ref}": "base-1", "{digest}": "sha256:" + "0" * 64, "{lock}": "0" * 64}.items():
        filled = filled.replace(name, value)
    assert "{" not in filled
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return await api.http.request(method, filled, headers=headers)


async def test_every_route_asks_who_it_is(api: Service, tmp_path: Path) -> None:
    api.tokens.known["no-scope"] = errors.NotAllowed(action="use_service")
    api.tokens.known["no-hub"] = errors.HubUnreachable()
    job = await api.job()
    ended = api.begin(job, "ended-token")
    api.end(job, ended, Ending.preempted, again=True)
    found = routes(tmp_path / "")
    assert len(found) > 15
    for method, path in found:
        if (method, path) in OPEN:
            assert (await ask(api, method, path, None)).status_code == 200
            continue
        assert_error(await ask(api, method, path, None, job), errors.NotAuthenticated)
        assert_error(await ask(api, method, path, "unknown", job), errors.NotAuthenticated)
        assert_error(await ask(api, method, path, "no-scope", job), errors.NotAllowed)
        assert_error(await ask(api, method, path, "ended-token", job), errors.AttemptSuperseded, job=job)
        assert_error(await ask(api, method, path, "no-hub", job), errors.HubUnreachable)
        cookies = await api.http.request(method, path.replace("{id}", job), headers={"Cookie": "token=t-hanako"})
        assert_error(cookies, errors.NotAuthenticated)
        assert cookies.headers["www-authenticate"].startswith("Bearer")


async def test_the_job_of_another_is_answered_as_one_that_is_not_there(api: Service, tmp_path: Path) -> None:
    job = await api.job(files={"a.csv": b"1"})
    n = api.begin(job)
    (api.files.attempt(job, n) / "work" / "a.csv").write_bytes(b"x")
    api.end(job, n)
    missing = "j" + "0" * 15
    asked = 0
    for method, path in routes(tmp_path / ""):
        if "{id}" not in path:
            continue
        asked += 1
        theirs = await ask(api, method, path, "t-taro", job)
        none = await ask(api, method, path, "t-taro", missing)
        assert_error(theirs, errors.JobNotFound, job=job)
        assert theirs.text.replace(job, missing) == none.text
        named = await ask(api, method, path + "?owner=hanako", "t-taro", job)
        assert named.status_code in (403, 404)
        if named.status_code == 403:
            other = await ask(api, method, path + "?owner=hanako", "t-taro", missing)
            assert named.text == other.text
    assert asked > 8
    assert (await api.get(f"jobs/{job}")).status_code == 200


ATTEMPT_MAY = {"/api/whoami", "/api/jobs/{id}", "/api/jobs/{id}/input", "/api/jobs/{id}/notebook", "/api/jobs/{id}/log",
               "/api/jobs/{id}/events", "/api/jobs/{id}/results", "/api/jobs/{id}/results/{path}"}  # fmt: skip


async def test_an_attempt_may_only_look_at_itself(api: Service, tmp_path: Path) -> None:
    job, other = await api.job(), await api.job()
    n = api.begin(job, "live-token")
    for method, path in routes(tmp_path / ""):
        short = path.removeprefix(PREFIX)
        if (method, path) in OPEN or short.endswith("/events"):
            continue
        answer = await ask(api, method, path, "live-token", job)
        if method == "get" and short in ATTEMPT_MAY:
            assert answer.status_code == 200 or answer.json()["error"]["code"] == "result.not_found"
            if "{id}" in path:
                assert_error(await ask(api, method, path, "live-token", other), errors.JobNotFound, job=other)
        else:
            assert_error(answer, errors.NotAllowed)
    who = (await ask(api, "get", f"{PREFIX}/api/whoami", "live-token")).json()
    expected = {"name": "hanako", "admin": False, "groups": [], "kind": "attempt", "job": job, "attempt": n}
    assert who == expected
    assert api.store.job(other).status == "queued"


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [
        ("GET", "/", errors.NotFound),
        ("GET", f"{PREFIX}", errors.NotFound),
        ("GET", f"{PREFIX}/api", errors.NotFound),
        ("GET", f"{PREFIX}/api/jobs/", errors.NotFound),
        ("GET", f"{PREFIX}/docs", errors.NotFound),
        ("GET", f"{PREFIX}/api/nothing/<script>alert(1)</script>", errors.NotFound),
        ("PUT", f"{PREFIX}/api/jobs", errors.MethodNotAllowed),
        ("POST", f"{PREFIX}/health", errors.MethodNotAllowed),
        ("OPTIONS", f"{PREFIX}/api/jobs", errors.MethodNotAllowed),
        ("GET", f"{PREFIX}/api/jobs/<b>x", errors.JobNotFound),
        ("GET", f"{PREFIX}/api/jobs/{'長' * 3000}", errors.JobNotFound),
        ("GET", f"{PREFIX}/api/jobs/%00%0a", errors.JobNotFound),
        ("GET", f"{PREFIX}/api/jobs/J0000000000000000", errors.JobNotFound),
    ],
)
async def test_what_is_not_there_is_an_error_body_too(
    api: Service, method: str, path: str, error: type[errors.KajiyaError]
) -> None:
    answer = await api.http.request(method, path, headers={"Authorization": "token t-hanako", "Accept": "text/html"})
    assert answer.headers["content-type"] == "application/json"
    assert (answer.json()["error"]["code"], answer.status_code) == (error.code, error.status)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers


async def test_what_nobody_foresaw_is_said_with_the_id_under_which_the_log_has_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise RuntimeError("a secret of the inside")

    async with service(tmp_path, capacity=broken) as api:
        answer = await api.get("capacity", headers={"Accept-Language": "ja"})
        sentence = assert_error(answer, errors.KajiyaError, request=answer.headers["x-request-id"])
        assert answer.headers["x-request-id"] in sentence
        assert "secret" not in answer.text
        assert "a secret of the inside" in caplog.text


async def test_too_many_requests_are_slowed_down(tmp_path: Path) -> None:
    async with service(tmp_path, Limits(requests_per_second=0.01, requests_burst=5)) as api:
        for _ in range(5):
            assert (await api.get("whoami")).status_code == 200
        answer = await api.get("whoami")
        assert_error(answer, errors.TooManyRequests)
        assert int(answer.headers["retry-after"]) >= 1
        assert (await api.get("whoami", user="taro")).status_code == 200


async def test_profiles_are_those_of_the_user(api: Service) -> None:
    mine = {p["slug"]: p for p in (await api.get("profiles")).json()}
    theirs = {p["slug"] for p in (await api.get("profiles", user="taro")).json()}
    assert set(mine) - theirs == {"team"}
    assert mine["small"]["available"]
    assert not mine["huge"]["available"]
    assert mine["huge"]["reason"]["message"].startswith("There is not enough")
    assert (await api.get("capacity")).json()["cpu"] == {"total": 4, "free": 4}
    assert (await api.get("whoami")).json()["groups"] == ["research"]


async def test_metrics_are_for_those_who_operate(api: Service) -> None:
    await api.job()
    scraped = await api.http.get(f"{PREFIX}/metrics", headers={"Authorization": f"Bearer {'s' * 32}"})
    assert 'kajiya_jobs{status="queued"} 1.0' in scraped.text
    assert re.search(r'kajiya_http_request_seconds_count\{method="POST".*status="201"\} 1.0', scraped.text)
    assert "hanako" not in scraped.text
    for user in ("admin", "service"):
        answer = await api.http.get(f"{PREFIX}/metrics", headers={"Authorization": f"token t-{user}"})
        assert answer.status_code == 200
    answer = await api.http.get(f"{PREFIX}/metrics", headers={"Authorization": "token t-hanako"})
    assert_error(answer, errors.NotAllowed)


async def test_health_names_the_part_that_does_not_work(tmp_path: Path) -> None:
    async def well() -> str:
        return "ok"

    async def away() -> str:
        return "can't be reached"

    async def broken() -> str:
        raise RuntimeError("/a/path")

    async with service(tmp_path, health={"loop": well, "hub": away}) as api:
        answer = await api.http.get(f"{PREFIX}/health")
        assert answer.status_code == 200
        assert answer.json()["parts"] == {"store": "ok", "disk": "ok", "loop": "ok", "hub": "can't be reached"}
    (tmp_path / "b").mkdir()
    async with service(tmp_path / "b", health={"loop": broken, "hub": well}) as api:
        answer = await api.http.get(f"{PREFIX}/health")
        assert answer.status_code == 503
        assert answer.json()["parts"]["loop"] == "does not work (RuntimeError)"


async def test_the_document_is_complete(tmp_path: Path) -> None:
    deps, _, _ = make(tmp_path)
    document = create_app(deps).openapi()
    deps.store.close()
    schemas = document["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/([^"]+)"', str(document).replace("'", '"')):
        assert name in schemas
    for path, item in document["paths"].items():
        for method, operation in item.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["tags"], where
            assert all(p.get("description") for p in operation.get("parameters", [])), where
            assert all(r["description"] for r in operation["responses"].values()), where
            if (method, path) in OPEN:
                continue
            assert operation["security"] == [{"token": []}], where
            assert {"401", "403", "409", "422", "429", "500", "503"} <= operation["responses"].keys(), where
            if "{id}" in path:
                assert "404" in operation["responses"], where
            refused = operation["responses"]["401"]["content"]["application/json"]["schema"]
            assert refused == {"$ref": "#/components/schemas/ErrorBody"}, where


async def test_the_log_has_a_line_for_each_request_and_nothing_secret(
    api: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="kajiya_hub.access")
    answer = await api.get("jobs?q=private-words&token=t-hanako")
    await api.http.request("MADEUP", f"{PREFIX}/api/jobs")
    first, second = [r for r in caplog.records if r.name == "kajiya_hub.access"][-2:]
    assert first.getMessage() == f"GET {PREFIX}/api/jobs 200"
    assert (vars(first)["user"], vars(first)["status"]) == ("hanako", 200)
    assert answer.headers["x-request-id"]
    assert second.getMessage().startswith("MADEUP")
    for record in (first, second):
        assert "private-words" not in str(vars(record))
        assert "t-hanako" not in str(vars(record))
    assert "MADEUP" not in api.deps.metrics.text().decode()
