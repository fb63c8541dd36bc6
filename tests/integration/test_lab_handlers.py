"""The server extension in a real Jupyter server, in front of a service on a real socket."""

import json
import os
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest

from helpers.fake_service import TOKEN, Fake, job, result
from helpers.jupyter import JUPYTER, jupyter

ID = "j0000000000000001"


@pytest.fixture(scope="module")
def fake():
    with Fake() as fake:
        yield fake


@pytest.fixture(scope="module")
def server(fake: Fake, tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("home")
    notices = home / "notices.jsonl"
    notices.write_text('{"time": 1, "process": "python", "used": 2, "allowed": 1}\n{"torn', "utf-8")
    with jupyter("jupyter_server", fake, home, KAJIYA_NOTICES=str(notices)) as url:
        yield url


@pytest.fixture
def http(server: str):
    with httpx.Client(base_url=server, headers={"Authorization": f"token {JUPYTER}"}, timeout=20) as client:
        yield client


@pytest.fixture(autouse=True)
def clean(fake: Fake):
    fake.plain.clear()
    fake.requests.clear()
    fake.jobs.clear()


def test_calls_pass_with_the_users_token_and_without_jupyters(http: httpx.Client, fake: Fake):
    headers = {"Cookie": "secret=1", "X-Other": "1", "Accept-Language": "ja"}
    answer = http.get(f"kajiya/api/jobs?limit=5&token={JUPYTER}&_xsrf=1", headers=headers)
    assert answer.status_code == 200 and answer.json()["items"] == []
    _, path, sent = fake.requests[-1]
    assert path.endswith("/api/jobs?limit=5")
    assert sent["Authorization"] == f"token {TOKEN}" and sent["Accept-Language"] == "ja"
    assert "Cookie" not in sent and "X-Other" not in sent


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "kajiya/api/openapi.json"),
        ("GET", "kajiya/api/jobs/../whoami"),
        ("GET", f"kajiya/api/jobs/{ID}/results/..%2f..%2f..%2fwhoami"),
        ("GET", f"kajiya/api/jobs/{ID}%2Fstop"),
        ("GET", "kajiya/api/..%2f..%2fmetrics"),
        ("GET", "kajiya/api//whoami"),
        ("POST", "kajiya/api/whoami"),
        ("DELETE", "kajiya/api/jobs"),
    ],
)
def test_only_listed_paths_pass(http: httpx.Client, fake: Fake, method: str, path: str):
    # Not by httpx, which tidies a path before it sends it.
    line = HTTPConnection(http.base_url.host, http.base_url.port or 80, timeout=20)
    line.request(method, f"/user/mari/{path}", headers={"Authorization": f"token {JUPYTER}"})
    assert line.getresponse().status in (403, 404, 405)
    line.close()
    assert not fake.requests


def test_without_a_login_nothing_passes(server: str, fake: Fake):
    for path in ("kajiya/api/whoami", "kajiya/notices"):
        assert httpx.get(server + path).status_code == 403
    assert httpx.post(server + f"kajiya/api/jobs/{ID}/stop").status_code == 403
    assert httpx.post(server + "kajiya/api/jobs", content=b"x" * 3_000_000).status_code == 403
    assert not fake.requests


def test_a_cookie_without_xsrf_may_not_post(server: str, fake: Fake):
    fake.put(job(ID, status="running"))
    with httpx.Client(base_url=server) as browser:
        # Signing in by the address, as a browser does, gives a cookie.
        browser.get(f"tree?token={JUPYTER}")
        assert browser.get("kajiya/api/whoami").status_code == 200
        # The refusal comes before the body is read, so the connection ends with it.
        refused = browser.post(f"kajiya/api/jobs/{ID}/stop", headers={"Connection": "close"})
        assert refused.status_code == 403
        assert fake.jobs[ID]["status"] == "running"
        browser.get("api/status")
        xsrf = next(c.value for c in browser.cookies.jar if c.name == "_xsrf")
        assert browser.post(f"kajiya/api/jobs/{ID}/stop", headers={"X-XSRFToken": xsrf or ""}).status_code == 200
        assert fake.jobs[ID]["status"] == "stopping"


def test_events_stream_as_they_come_and_resume(http: httpx.Client, fake: Fake):
    fake.put(job(ID, status="running"))
    fake.cells[ID] = []
    fake.cell(ID, type="output", cell=1)
    with http.stream("GET", f"kajiya/api/jobs/{ID}/events") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        seen = ""
        for chunk in answer.iter_text():
            seen += chunk
            if '"cell": 1' in seen:
                fake.cell(ID, type="output", cell=2)
            if '"cell": 2' in seen:
                break
        assert '"cell": 1' in seen and '"cell": 2' in seen
    fake.change(ID, status="succeeded")
    rest = http.get(f"kajiya/api/jobs/{ID}/events", headers={"Last-Event-ID": "1:1"}).text
    assert '"cell": 1' not in rest and '"cell": 2' in rest and "event: end" in rest


def test_what_a_job_made_is_never_shown_as_a_page(http: httpx.Client, fake: Fake):
    page = b"<script>alert(1)</script>"
    fake.put(job(ID, status="succeeded", results=[result("a b/精度.html", page)]))
    fake.kept[ID] = {"a b/精度.html": page}
    fake.plain[f"/api/jobs/{ID}/log"] = (200, page, {"Content-Type": "text/html"})
    answer = http.get(f"kajiya/api/jobs/{ID}/results/a%20b/%E7%B2%BE%E5%BA%A6.html")
    assert answer.content == page
    for found in (answer, http.get(f"kajiya/api/jobs/{ID}/log")):
        assert found.headers["Content-Type"] == "application/octet-stream"
        assert found.headers["Content-Disposition"].startswith("attachment")
        assert found.headers["X-Content-Type-Options"] == "nosniff"


def test_large_bodies_pass_both_ways(http: httpx.Client, fake: Fake):
    big = os.urandom(20 * 1024**2)
    files: list[Any] = [
        ("spec", (None, json.dumps({"notebook": "a.ipynb"}), "application/json")),
        ("notebook", ("a.ipynb", b"{}")),
        ("files", ("x.bin", big)),
    ]
    answer = http.post("kajiya/api/jobs", files=files, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 201
    id = answer.json()["id"]
    assert fake.received[id]["files"]["x.bin"] == big
    fake.kept[id] = {"x.bin": big}
    assert http.get(f"kajiya/api/jobs/{id}/results/x.bin").content == big


def test_refusals_pass_and_redirects_do_not(http: httpx.Client, fake: Fake):
    answer = http.get("kajiya/api/jobs/jnothing")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "job.not_found"
    fake.plain["/api/whoami"] = (302, b"", {"Location": "http://127.0.0.1:1/steal"})
    answer = http.get("kajiya/api/whoami")
    assert answer.status_code == 502 and answer.json()["error"]["code"] == "service.unexpected"


def test_notices_are_read_and_a_torn_line_is_passed_over(http: httpx.Client):
    assert [n["process"] for n in http.get("kajiya/notices").json()["notices"]] == ["python"]


def test_a_service_that_is_away_is_one_sentence(http: httpx.Client, fake: Fake):
    fake.kill()
    try:
        answer = http.get("kajiya/api/whoami", headers={"Accept-Language": "ja"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "service.unreachable"
        assert "接続できません" in answer.json()["error"]["message"]
    finally:
        fake.start()
