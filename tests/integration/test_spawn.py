"""The picker and the local spawner in a real JupyterHub: what may be started, and that it outlives the Hub."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.hub import Hub, Visitor, path_of, quote
from helpers.wait import until
from kajiya.machine import process
from kajiya.machine.allocations import Allocations
from kajiya.names import slug

JAPANESE = {"Accept-Language": "ja"}
# Answers as a server does, in a fraction of JupyterLab's time; /grow uses up memory in a child, /end ends itself.
QUICK = """
import http.server, json, os, subprocess, sys, urllib.parse
where = urllib.parse.urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.endswith("/end"):
            os._exit(3)
        if self.path.endswith("/grow"):
            subprocess.Popen([sys.executable, "-c", "import time; x = bytearray(900 << 20); time.sleep(60)"])
        body = json.dumps(dict(os.environ)).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
print("listening", where.port, flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", where.port), Server).serve_forever()
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("spawn") / "data"
    with Hub(root, cmd=[sys.executable, "-P", "-c", QUICK]) as running:
        yield running


@pytest.fixture(scope="module")
def admin(hub: Hub) -> Visitor:
    return hub.first("meister")


@pytest.fixture
def person(hub: Hub, admin: Visitor, request: pytest.FixtureRequest) -> Iterator[Visitor]:
    """Someone new, whose servers are stopped in the end."""
    name = f"p{abs(hash(request.node.name)) % 10**8}"
    visitor = hub.person(admin, name)
    visitor.name = name  # type: ignore[attr-defined]
    yield visitor
    for server in servers(visitor):
        stop(visitor, server)


def who(visitor: Visitor) -> str:
    return str(getattr(visitor, "name", "")) or str(visitor.call("GET", "hub/api/user").json()["name"])


def servers(visitor: Visitor) -> dict[str, Any]:
    return visitor.call("GET", f"hub/api/users/{quote(who(visitor))}").json()["servers"]


def ready(visitor: Visitor, server: str = "") -> dict[str, Any]:
    def probe() -> dict[str, Any] | None:
        found = servers(visitor).get(server, {})
        return found if found.get("ready") else None

    return until(probe, 60, "a ready server") or {}


def stop(visitor: Visitor, server: str = "") -> None:
    path = f"servers/{server}" if server else "server"
    visitor.call("DELETE", f"hub/api/users/{quote(who(visitor))}/{path}")
    until(lambda: not servers(visitor).get(server, {}).get("url"), 30, "the end of the server")


def run_folder(hub: Hub, name: str, server: str = "_") -> Path:
    return hub.root / "servers" / slug(name) / server


def port_of(hub: Hub, name: str) -> int:
    return int(json.loads((run_folder(hub, name) / "port.json").read_text())["port"])


def ask(hub: Hub, name: str, path: str) -> dict[str, str]:
    return httpx.get(f"http://127.0.0.1:{port_of(hub, name)}/user/{quote(name)}/{path}", timeout=10).json()


# --- what is shown
def test_the_picker_shows_my_groups_profiles(hub: Hub, admin: Visitor, person: Visitor) -> None:
    page = person.get("hub/spawn").text
    assert [s in page for s in ('value="small"', 'value="flexible"', 'value="huge"', 'value="forge"')] == [1, 1, 1, 0]
    assert "and this machine has" in page
    smith = hub.person(admin, "smith", groups=["smiths"])
    assert 'value="forge"' in smith.get("hub/spawn").text


def test_the_picker_speaks_the_browsers_language(hub: Hub, admin: Visitor) -> None:
    hub.person(admin, "hanako")
    visitor = hub.visitor(**JAPANESE)
    visitor.sign_in("hanako")
    page = visitor.get("hub/spawn").text
    assert '<html lang="ja">' in page
    assert "プロファイルを選ぶ" in page


def test_the_live_figures_are_for_who_is_signed_in(hub: Hub, admin: Visitor, person: Visitor) -> None:
    mine = person.call("GET", "hub/api/kajiya/capacity")
    assert mine.headers["Content-Type"].startswith("application/json")
    assert [p["slug"] for p in mine.json()["profiles"]] == ["small", "flexible", "huge"]
    assert person.call("GET", "hub/api/kajiya/capacity/meister").status_code in (403, 404)
    assert admin.call("GET", f"hub/api/kajiya/capacity/{who(person)}").status_code == 200
    assert admin.call("GET", "hub/api/kajiya/capacity/nobody").status_code == 404
    assert hub.visitor().get("hub/api/kajiya/capacity").status_code == 403
    bare = person.get("hub/api/kajiya/capacity", headers={"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"})
    assert bare.status_code == 403, "another page of this origin, such as a notebook's, has no token of the Hub's form"


def test_static_files_are_served_and_nothing_above_them(hub: Hub) -> None:
    visitor = hub.visitor()
    assert visitor.get("hub/kajiya/static/kajiya.css").status_code == 200
    for path in ("../local.py", "..%2flocal.py", "%2e%2e/local.py", "/etc/passwd"):
        assert visitor.get(f"hub/kajiya/static/{path}").status_code in (302, 403, 404)


# --- what may be started
OUTSIDE = [
    ({"profile": "nothing"}, {"profile": "nothing"}, 422, "no profile"),
    ({"profile": "forge"}, {"profile": "forge"}, 403, "not open to you"),
    ({"profile": "huge"}, {"profile": "huge"}, 422, "this machine has"),
    (
        {"profile": "flexible", "option:flexible:size": "xxl"},
        {"profile": "flexible", "options": {"size": "xxl"}},
        422,
        "no choice",
    ),
    ({"profile": "small", "mem_limit": "900T"}, {"profile": "small", "mem_limit": "900T"}, 422, "can&#39;t be used"),
    ({"profile": "x" * 10_000}, {"profile": ["x"]}, 422, "can&#39;t be used"),
]


@pytest.mark.parametrize(("form", "options", "status", "says"), OUTSIDE, ids=lambda v: str(v)[:40])
def test_what_is_outside_the_rules_is_refused_everywhere_alike(
    hub: Hub, person: Visitor, form: dict[str, str], options: dict[str, Any], status: int, says: str
) -> None:
    by_form = person.spawn(**form)
    assert by_form.status_code == status
    assert says in by_form.text
    by_api = person.call("POST", f"hub/api/users/{who(person)}/server", json=options)
    assert by_api.status_code == status
    assert by_api.json()["message"].endswith(".")
    assert servers(person) == {} or not servers(person)[""]["pending"]
    assert Allocations(hub.root / "machine").used(who(person), form["profile"]) == 0


def test_a_link_with_options_is_checked_too(person: Visitor) -> None:
    refused = person.get(f"hub/spawn/{who(person)}?opt-profile=forge")
    assert refused.status_code == 403
    assert "not open to you" in refused.text
    started = person.get(f"hub/spawn/{who(person)}?opt-profile=flexible&opt-size=l&opt-cache=on")
    assert started.status_code == 302
    ready(person)


def test_a_refused_api_call_leaves_the_last_choice_alone(hub: Hub, person: Visitor) -> None:
    path = f"hub/api/users/{who(person)}/server"
    assert person.call("POST", path, json={"profile": "flexible", "options": {"size": "l"}}).status_code in (201, 202)
    ready(person)
    stop(person)
    assert person.call("POST", path, json={"profile": "forge"}).status_code == 403
    page = person.get("hub/spawn").text
    card = page.partition('value="flexible"')[2].partition(">")[0]
    assert " checked" in card, "the last choice is preselected"
    assert person.call("POST", path).status_code in (201, 202)
    ready(person)
    assert [h.profile for h in Allocations(hub.root / "machine").live() if h.owner == who(person)] == ["flexible"]


def test_a_users_limit_counts_servers(person: Visitor) -> None:
    for server in ("", "two"):
        assert person.spawn(server, profile="small").status_code == 302
        ready(person, server)
    refused = person.spawn("three", profile="small")
    assert refused.status_code == 403
    assert "2 is the limit" in refused.text


def test_a_broken_environment_is_told_in_one_sentence(hub: Hub, person: Visitor) -> None:
    flag = hub.root / "break-environment"
    flag.touch()
    try:
        answer = person.spawn(profile="small")
        assert answer.status_code >= 400
        assert "no route to the index" in answer.text
    finally:
        flag.unlink()
    assert person.spawn(profile="small").status_code == 302
    ready(person)


# --- what a server gets
def test_a_server_gets_its_environment(hub: Hub, person: Visitor) -> None:
    person.spawn(profile="flexible", **{"option:flexible:size": "l", "option:flexible:cache": "on"})
    ready(person)
    env = ask(hub, who(person), "env")
    home = hub.root / "homes" / slug(who(person))
    assert env["HOME"] == str(home)
    assert env["PATH"].startswith(f"{home}/.kajiya/envs/default/bin:")
    assert env["JUPYTER_PATH"].startswith(str(home))
    assert (env["PIP_USER"], env["PYTHONNOUSERSITE"], env["CACHE"]) == ("0", "1", "warm")
    assert env["MEM_LIMIT"] == str(1024**3)
    assert env["KAJIYA_TOKEN"] == env["JUPYTERHUB_API_TOKEN"]
    assert env["KAJIYA_NOTICES"].startswith(str(run_folder(hub, who(person))))
    assert not env["JUPYTER_RUNTIME_DIR"].startswith(str(home)), "a full home must still start"
    assert "PYTHONPATH" not in env
    assert home.stat().st_mode & 0o077 == 0
    assert run_folder(hub, who(person)).stat().st_mode & 0o077 == 0


def test_the_progress_is_told_in_sentences(hub: Hub, person: Visitor) -> None:
    person.headers["Accept-Language"] = "ja"
    assert person.spawn(profile="small").status_code == 302
    ready(person)
    # Who comes late is told that it is ready; the sentences themselves are tested where they are made.
    headers = {"Sec-Fetch-Mode": "cors", "X-XSRFToken": person.xsrf}
    with person.stream("GET", f"hub/api/users/{who(person)}/server/progress", headers=headers) as stream:
        line = next(line for line in stream.iter_lines() if line.startswith("data:"))
    event = json.loads(line[5:])
    assert event["ready"] is True
    assert event["message"] == "サーバーの準備ができました"


@pytest.mark.parametrize("name", ["花子", "o.k_-x", "мария"])
def test_names_of_any_script_get_a_server(hub: Hub, admin: Visitor, name: str) -> None:
    visitor = hub.person(admin, name)
    assert visitor.spawn(profile="small").status_code == 302
    ready(visitor)
    assert ask(hub, name, "env")["JUPYTERHUB_USER"] == name
    stop(visitor)


# --- ends
def test_stopping_leaves_no_process_and_gives_all_back(hub: Hub, person: Visitor) -> None:
    person.spawn(profile="small")
    ready(person)
    lease = json.loads((run_folder(hub, who(person)) / "lease.json").read_text())
    child = process.identity(lease["child_pid"])
    assert child is not None
    assert Allocations(hub.root / "machine").used(who(person), "small") == 1
    stop(person)
    assert not process.alive(child)
    assert process.members(lease["tree"]) == {}
    assert Allocations(hub.root / "machine").used(who(person), "small") == 0
    assert "ended by itself" not in person.get("hub/spawn").text


def test_a_server_that_ends_by_itself_is_noticed_and_told(hub: Hub, person: Visitor) -> None:
    person.spawn(profile="small")
    ready(person)
    with pytest.raises(httpx.HTTPError):
        ask(hub, who(person), "end")
    until(lambda: not servers(person).get(""), 30, "the Hub's notice")
    page = person.get("hub/spawn").text
    assert "ended by itself" in page
    assert person.spawn(profile="small").status_code == 302
    ready(person)
    stop(person)
    assert "ended by itself" not in person.get("hub/spawn").text


def test_a_killed_supervisor_leaves_nothing_behind(hub: Hub, person: Visitor) -> None:
    person.spawn(profile="small")
    ready(person)
    lease = json.loads((run_folder(hub, who(person)) / "lease.json").read_text())
    child = process.identity(lease["child_pid"])
    assert child is not None
    os.kill(lease["pid"], signal.SIGKILL)
    until(lambda: not process.alive(child), 30, "the end of the orphan")
    until(lambda: not servers(person).get(""), 30, "the Hub's notice")
    assert Allocations(hub.root / "machine").used(who(person), "small") == 0
    assert person.spawn(profile="small").status_code == 302
    ready(person)


def test_memory_used_up_below_the_server_spares_the_server(hub: Hub, person: Visitor) -> None:
    person.spawn(profile="small")
    ready(person)
    ask(hub, who(person), "grow")
    notices = run_folder(hub, who(person)) / "notices.jsonl"
    until(lambda: notices.exists() and notices.read_text(), 30, "the notice")
    assert json.loads(notices.read_text().splitlines()[0])["allowed"] == 512 * 1024**2
    assert ask(hub, who(person), "env")["MEM_LIMIT"] == str(512 * 1024**2)


def test_a_server_that_can_not_start_says_the_telling_line(tmp_path: Path) -> None:
    code = "import sys; print('all fine so far'); sys.exit('ValueError: the anvil is missing')"
    with Hub(tmp_path / "data", cmd=[sys.executable, "-c", code]) as hub:
        admin = hub.first("meister")
        answer = admin.call("POST", "hub/api/users/meister/server", json={"profile": "small"})
        assert answer.status_code == 500
        assert "the anvil is missing" in answer.json()["message"]
        assert "log.txt" in answer.json()["message"]
        page = admin.get("hub/spawn-pending/meister")
        assert "the anvil is missing" in page.text
        assert Allocations(hub.root / "machine").live() == []


# --- the Hub is killed
def test_jupyterlab_outlives_a_killed_hub_and_is_found_again(tmp_path: Path) -> None:
    """The real JupyterLab: started, the Hub killed, started again; the same process answers, and stops for good."""
    with Hub(tmp_path / "data") as hub:
        admin = hub.first("meister")
        assert admin.spawn(profile="small").status_code == 302
        ready(admin)
        page = admin.get("user/meister/lab", follow_redirects=True)
        assert page.status_code == 200
        assert "jupyter-config-data" in page.text
        lease = json.loads((run_folder(hub, "meister") / "lease.json").read_text())
        lab = process.identity(lease["child_pid"])
        assert lab is not None
        hub.kill()
        assert process.alive(lab)
        hub.start()
        assert process.alive(lab)
        assert ready(admin)["user_options"]["profile"] == "small"
        assert admin.get("user/meister/lab", follow_redirects=True).status_code == 200
        answer = admin.get("hub/spawn/meister")
        assert path_of(answer.headers["Location"]).startswith("/user/meister/")
        stop(admin)
        assert not process.alive(lab)
        assert process.members(lease["tree"]) == {}


def test_a_hub_killed_while_a_server_starts_leaves_no_orphan(tmp_path: Path) -> None:
    slow = "import time; time.sleep(2);" + QUICK
    with Hub(tmp_path / "data", cmd=[sys.executable, "-P", "-c", slow]) as hub:
        admin = hub.first("meister")
        assert admin.spawn(profile="small").status_code == 302
        folder = run_folder(hub, "meister")
        record = folder / "lease.json"
        lease = until(lambda: (r := _lease(record)) and r.get("child_pid") and r, 30, "the start of the process")
        assert lease
        child = process.identity(lease["child_pid"])
        assert child is not None
        hub.kill()
        hub.start()

        def settled() -> bool:
            known = servers(admin).get("", {})
            return bool(known.get("ready")) or not process.alive(child)

        until(settled, 60, "the server known or ended")
        if not servers(admin).get("", {}).get("ready"):
            assert Allocations(hub.root / "machine").live() == []


def _lease(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
