"""An adversary with an account, against the whole running stack: other people's things, tokens, sessions, the loop."""

import json
import re
import socket
import textwrap
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import nbformat
import psutil
import pytest

from helpers.stack import Stack
from helpers.wait import until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

API = "services/kajiya/api"
MLFLOW = "services/mlflow/api/2.0/mlflow"
ENDED = ("succeeded", "failed", "stopped")


@pytest.fixture(scope="module")
def two(stack: Stack) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Clients of two users."""
    for name in ("mallory", "victim"):
        stack.invite(name).close()
    stack.wait_ready("service", "mlflow")
    with stack.api(stack.token("mallory")) as mallory, stack.api(stack.token("victim")) as victim:
        yield mallory, victim


def submit(api: httpx.Client, *sources: str, **spec: Any) -> str:
    """The id of a new job with these cells."""
    book = nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])).encode()
    whole = json.dumps({"notebook": "a.ipynb", "profile": "small"} | spec)
    made = api.post(f"{API}/jobs", files={"spec": (None, whole, "application/json"), "notebook": ("a.ipynb", book)})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def ended(api: httpx.Client, job: str) -> dict[str, Any]:
    """The job when it has ended."""

    def look() -> dict[str, Any]:
        found: dict[str, Any] = api.get(f"{API}/jobs/{job}").json()
        return found if found["status"] in ENDED else {}

    return until(look, 150, f"the end of {job}")


def raw(stack: Stack, request: bytes) -> bytes:
    """What comes back on one connection for bytes that no client library would send."""
    with socket.create_connection(("127.0.0.1", stack.port), timeout=20) as line:
        line.sendall(request)
        out = b""
        while chunk := line.recv(65536):
            out += chunk
    return out


# --- what is another's
def test_no_spelling_of_an_address_reaches_anothers_job(two: tuple[httpx.Client, httpx.Client]) -> None:
    mallory, victim = two
    job = submit(victim, "print('the recipe')")
    ended(victim, job)
    missing = mallory.get(f"{API}/jobs/j000000000000000").json()["error"]["code"]
    for tail in ("", "/notebook", "/input", "/log", "/log?follow=true", "/events", "/results", "/results/a.csv"):
        answer = mallory.get(f"{API}/jobs/{job}{tail}")
        assert answer.status_code == 404 and answer.json()["error"]["code"] == missing, tail
        assert "recipe" not in answer.text
    for spelling in (
        f"services%2fkajiya%2fapi/jobs/{job}",
        f"services/kajiya/api/jobs/%2e%2f{job}",
        f"services/kajiya/api/jobs/x/..%2f{job}",
        f"{API}/jobs/{job}?owner=mallory",
        f"{API}/jobs/{job}%3fowner=victim",
        f"{API}/jobs/{job}/results/..%2f..%2finput%2fnotebook.ipynb",
    ):
        assert mallory.get(spelling).status_code == 404, spelling
    for query in ("owner=victim", "owner=*", "owner=mallory&owner=victim", "owner=victim%00"):
        assert mallory.get(f"{API}/jobs?{query}").status_code == 403, query
    for method, tail in (("POST", "/stop"), ("POST", "/again"), ("DELETE", "")):
        assert mallory.request(method, f"{API}/jobs/{job}{tail}").status_code == 404
    assert victim.get(f"{API}/jobs/{job}").json()["status"] == "succeeded"


def test_mlflow_shows_nothing_of_anothers_by_any_door(two: tuple[httpx.Client, httpx.Client]) -> None:
    mallory, victim = two
    made = victim.post(f"{MLFLOW}/experiments/create", json={"name": "recipe"}).json()
    experiment = made["experiment_id"]
    run = victim.post(f"{MLFLOW}/runs/create", json={"experiment_id": experiment}).json()["run"]["info"]
    place = run["artifact_uri"].partition(":/")[2]
    files = "services/mlflow/api/2.0/mlflow-artifacts/artifacts"
    page = b"<script>alert(document.cookie)</script>"
    assert victim.put(f"{files}/{place}/x.html", content=page).status_code == 200
    for headers in ({}, {"x_mlflow_workspace": "victim"}, {"X-MLFLOW-WORKSPACE": "victim"}):
        asked = [
            mallory.get(f"{MLFLOW}/runs/get?run_id={run['run_id']}", headers=headers),
            mallory.get(f"services/mlflow/get-artifact?run_uuid={run['run_id']}&path=x.html", headers=headers),
            mallory.get(f"{files}/{place}/x.html", headers=headers),
            mallory.get(f"{files}/workspaces/mallory/%2e%2e/{place}/x.html", headers=headers),
        ]
        assert all(answer.status_code in (400, 403, 404) and page not in answer.content for answer in asked), headers
        search = mallory.post(f"{MLFLOW}/runs/search", json={"experiment_ids": [experiment]}, headers=headers)
        assert run["run_id"] not in search.text
    for query in (
        f'query{{mlflowGetRun(input:{{runId:"{run["run_id"]}"}}){{run{{info{{runId}}}}}}}}',
        f'query{{mlflowSearchRuns(input:{{experimentIds:["{experiment}"]}}){{runs{{info{{runId}}}}}}}}',
        f'query{{mlflowListArtifacts(input:{{runId:"{run["run_id"]}"}}){{files{{path}}}}}}',
    ):
        said = mallory.post("services/mlflow/graphql", json={"query": query})
        assert run["run_id"] not in said.text and "x.html" not in said.text
    # Its owner gets a file, never a page that acts in the Hub's name.
    own = victim.get(f"services/mlflow/get-artifact?run_uuid={run['run_id']}&path=x.html")
    assert own.content == page and own.headers["Content-Disposition"].startswith("attachment")
    assert "sandbox" in own.headers["Content-Security-Policy"]


# --- tokens and sessions
def test_the_token_of_an_attempt_reaches_its_own_job_and_ends_with_it(
    stack: Stack, two: tuple[httpx.Client, httpx.Client]
) -> None:
    mallory, _ = two
    before = submit(mallory, "1")
    job = submit(mallory, "import os, time\nprint(os.environ['KAJIYA_TOKEN'], flush=True)", "time.sleep(600)")

    def printed() -> str:
        book = mallory.get(f"{API}/jobs/{job}/notebook")
        found = re.findall(r'"([\w-]{30,})\\n"', book.text) if book.status_code == 200 else []
        return found[0] if found else ""

    token = until(printed, 120, "the token")
    search = f"{MLFLOW}/experiments/search?max_results=1"
    with stack.api(token) as attempt:
        assert attempt.get(f"{API}/whoami").json()["kind"] == "attempt"
        assert attempt.get(f"{API}/jobs/{job}").status_code == 200
        assert attempt.get(search).status_code == 200
        assert attempt.get(f"{API}/jobs/{before}").status_code == 404
        for method, path in (
            ("GET", "jobs"),
            ("POST", "jobs"),
            ("POST", f"jobs/{job}/stop"),
            ("DELETE", f"jobs/{job}"),
        ):
            assert attempt.request(method, f"{API}/{path}").status_code == 403, path
        assert attempt.get("hub/api/user").status_code == 403
        words = [b" ".join(c.encode() for c in p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
        assert not any(token.encode() in w for w in words)
        mallory.post(f"{API}/jobs/{job}/stop")
        ended(mallory, job)
        assert attempt.get(f"{API}/whoami").status_code == 409
        until(lambda: attempt.get(search).status_code == 409, 20, "the end of the token in MLflow")


def test_no_token_is_in_a_log_an_argument_or_a_file_that_others_can_read(
    stack: Stack, two: tuple[httpx.Client, httpx.Client]
) -> None:
    data = stack.data_dir
    secrets = [p.read_text().strip() for p in (data / "secrets").iterdir() if p.is_file()]
    tokens = [str(client.headers["Authorization"]).split()[1] for client in two]
    link = stack.run("link", "victim")
    tokens.append(link.partition("token=")[2])
    httpx.get(link)
    httpx.get(f"{stack.url}{API}/jobs?token={tokens[0]}")
    told = "\n".join(p.read_text("utf-8", "replace") for p in (data / "logs").iterdir())
    told += "\n".join(" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
    assert [secret for secret in (*secrets, *tokens) if secret in told] == []
    assert data.stat().st_mode & 0o777 == 0o700
    for name in ("hub", "run", "secrets", "logs", "mlflow", "service"):
        for path in ((data / name), *(data / name).rglob("*")):
            if path.is_symlink() or not path.exists():
                continue
            # What is submitted is read-only even for its owner; a folder that is only passed through shows no names.
            wanted = (0o700, 0o711) if path.is_dir() else (0o600, 0o444)
            assert path.stat().st_mode & 0o777 in wanted or "attempts" in path.parts, path


def test_signing_out_ends_every_copy_of_a_session(stack: Stack) -> None:
    with closing(stack.browser(stack.run("invite", "leaver"), "leaver")) as person:
        xsrf = {"X-XSRFToken": [c.value or "" for c in person.cookies.jar if c.name == "_xsrf" and "hub" in c.path][-1]}
        assert person.post("hub/api/users/leaver/server", headers=xsrf, json={"profile": "small"}).status_code < 300
        until(lambda: person.get("hub/api/user").json()["servers"].get("", {}).get("ready"), 240, "the server")
        assert person.get("user/leaver/lab", headers={"Accept": "text/html"}).status_code == 200
        assert person.get("services/mlflow/", headers={"Accept": "text/html"}).status_code == 200
        jar = [(c.name, c.value, c.path) for c in person.cookies.jar]

        def copy(path: str) -> int:
            """The status of a request with cookies that were taken while they were good."""
            cookies = "; ".join(f"{name}={value}" for name, value, where in jar if f"/{path}".startswith(where))
            return httpx.get(stack.url + path, headers={"Cookie": cookies}, follow_redirects=False).status_code

        places = (
            "hub/api/user",
            "user/leaver/api/status",
            "user/leaver/kajiya/api/whoami",
            f"{MLFLOW}/experiments/get",
        )
        assert [copy(place) in (200, 400) for place in places] == [True] * 4
        person.get("hub/logout")
        for place in places:
            until(lambda place=place: copy(place) in (302, 401, 403), 30, f"the end of the session at {place}")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "hub/spawn"),
        ("POST", "hub/password"),
        ("POST", "hub/invite"),
        ("POST", "hub/sign-in"),
        ("POST", "hub/login"),
        ("POST", "hub/api/users/admin/tokens"),
        ("POST", "hub/api/users/admin/server"),
        ("DELETE", "hub/api/users/victim"),
        ("POST", f"{API}/jobs"),
        ("POST", f"{MLFLOW}/experiments/create"),
    ],
)
def test_a_foreign_page_can_not_act_by_a_browsers_cookies(
    stack: Stack, two: tuple[httpx.Client, httpx.Client], method: str, path: str
) -> None:
    with closing(stack.browser()) as browser:
        browser.get("services/mlflow/", headers={"Accept": "text/html"})
        foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"}
        answer = browser.request(method, path, headers=foreign, content=b"{}", follow_redirects=False)
        assert answer.status_code in (401, 403), answer.text


# --- the proxy
@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 0\r\n\r\n",
        b"Content-Length: +5\r\n\r\n",
        b"X-A: b\r\n c: d\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_no_request_is_smuggled_behind_another(stack: Stack, head: bytes) -> None:
    second = b"GET /services/kajiya/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    said = raw(stack, b"POST /services/kajiya/api/jobs/x/again HTTP/1.1\r\nHost: x\r\n" + head + second)
    assert said.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400")) and said.count(b"HTTP/1.") == 1


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example/", "/hub//evil.example", "/hub/user-redirect//e"])
def test_no_address_leads_to_another_host(stack: Stack, path: str) -> None:
    said = raw(stack, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    found = re.search(rb"\r\n[Ll]ocation: ([^\r]*)", said)
    assert found is None or re.match(rb"/[^/\\]", found.group(1)), said


# --- a job that attacks the service by its own files
HOSTILE = {
    "results": """
        import os, socket
        os.makedirs('results/deep/' + 'd/' * 60)
        os.symlink('/etc/passwd', 'results/link')
        os.symlink('/etc', 'results/folder')
        os.mkfifo('results/pipe')
        socket.socket(socket.AF_UNIX).bind('results/socket')
        open('results/page.html', 'w').write('<script>alert(1)</script>')
        open(b'results/\\xff', 'w').close()
        open('results/a\\nb', 'w').close()
        open('results/sparse', 'wb').truncate(10 * 2**40)
        """,
    "events": """
        with open('../events.jsonl', 'ab') as log:
            deep = b'{"t":1,"type":"output","cell":0,"output":{"output_type":"display_data","data":%s}}'
            for line in (b'[' * 100_000, deep % (b'{"a":' * 900 + b'1' + b'}' * 900), b'{"t":NaN,"type":["output"]}',
                         b'{"t":1,"type":"output","cell":"x","output":5}', b'\\xff\\x00', b'null',
                         b'{"t":1,"type":"cell_end","cell":99999999999999999999,"status":[]}'):
                log.write(line + b'\\n')
        """,
    "records": """
        import os
        open('../exit.json', 'w').write('{"ending":"succeeded","usage":{"memory_peak":1e999},"reason":' + '[' * 5000)
        open('../outcome.json', 'w').write('[' * 100_000)
        os.unlink('../lease.json')
        os.mkfifo('../lease.json')
        """,
    "links": """
        import os
        os.rename('../log.txt', '../old')
        os.symlink('/etc/passwd', '../log.txt')
        os.unlink('../events.jsonl')
        os.symlink('/etc/passwd', '../events.jsonl')
        """,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_job_harms_nobody_but_itself(two: tuple[httpx.Client, httpx.Client], name: str) -> None:
    mallory, victim = two
    job = submit(mallory, textwrap.dedent(HOSTILE[name]), "print('after')", name=name, results=["**"])
    found = ended(mallory, job)
    assert [r["path"] for r in found["results"]] == (["results/page.html"] if name == "results" else [])
    for tail in ("", "/notebook", "/input", "/log", "/log?follow=true", "/events", "/results"):
        answer = mallory.get(f"{API}/jobs/{job}{tail}")
        assert answer.status_code == 200, (tail, answer.text)
        assert "root:x:" not in answer.text, tail
    events = mallory.get(f"{API}/jobs/{job}/events").text
    assert "event: end" in events
    for made_up in ("?attempt=999999", "?attempt=" + "9" * 300):
        assert mallory.get(f"{API}/jobs/{job}/events{made_up}").status_code in (200, 422)
    far = mallory.get(f"{API}/jobs/{job}/events", headers={"Last-Event-ID": "1:" + "9" * 18})
    assert "event: end" in far.text
    assert mallory.get(f"{API}/jobs/{job}/log?follow=true&offset={2**62}").content == b""
    if name == "results":
        page = mallory.get(f"{API}/jobs/{job}/results/results/page.html")
        assert page.headers["Content-Type"] == "application/octet-stream"
        assert page.headers["Content-Disposition"].startswith("attachment")
        assert "sandbox" in page.headers["Content-Security-Policy"]
    assert ended(victim, submit(victim, "1"))["status"] == "succeeded"
