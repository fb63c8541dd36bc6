"""The stack as its administrator meets it: started, refused twice, killed in parts, stopped."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import nbformat
import psutil
import pytest

from helpers.stack import BIN, Stack, free_port
from helpers.wait import until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def own(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that these tests may break."""
    with Stack(tmp_path_factory.mktemp("own") / "データ", shared=shared) as stack:
        yield stack


def processes_of(data_dir: Path) -> list[str]:
    """Every process that knows this data directory."""
    found: list[str] = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if any(str(data_dir) in word for word in words) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(" ".join(process.cmdline())[:200])
    return found


def up(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A start that is expected to be refused."""
    argv = [str(BIN / "kajiya-hub"), "up", "--data-dir", str(data_dir), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def test_it_prints_one_sign_in_line_and_shows_the_login_page(own: Stack) -> None:
    assert own.said().count("Sign in: ") == 1
    answer = httpx.get(own.url + "hub/login")
    assert answer.status_code == 200
    assert "password" in answer.text
    assert own.sign_in_link.startswith(own.url)


def test_service_and_mlflow_are_routed_and_answer(own: Stack) -> None:
    own.wait_ready("service", "mlflow")
    assert httpx.get(own.url + "services/kajiya/health").json()["ok"] is True


def test_it_listens_on_loopback_only(own: Stack) -> None:
    assert own.process is not None
    family = psutil.Process(own.process.pid)
    listening = {
        connection.laddr.ip
        for process in [family, *family.children(recursive=True)]
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_a_token_is_known_to_the_service_and_strangers_are_not(own: Stack) -> None:
    own.wait_ready("service")
    with own.api(own.token()) as api:
        assert api.get("services/kajiya/api/whoami").json()["name"] == "admin"
    assert httpx.get(own.url + "services/kajiya/api/whoami").status_code == 401
    assert httpx.get(own.url + "services/kajiya/api/whoami", headers={"Authorization": "token x"}).status_code == 401


def test_an_invited_user_with_a_japanese_name_signs_in_and_is_no_administrator(own: Stack) -> None:
    with closing(own.invite("山田花子")) as client:
        assert client.get("hub/home").status_code == 200
        assert client.get("hub/admin").status_code == 403
    assert own.run("users").splitlines()[-1] == "山田花子"
    assert [user["name"] for user in json.loads(own.run("users", "--json"))][-1] == "山田花子"


def test_a_second_instance_is_refused_with_a_sentence(own: Stack) -> None:
    assert own.process is not None
    refused = up(own.data_dir, "--port", str(free_port()))
    assert refused.returncode == 1
    assert str(own.process.pid) in refused.stderr
    assert "--data-dir" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_killed_service_is_started_again(own: Stack) -> None:
    own.wait_ready("service")
    before = own.kill("service")
    until(lambda: own.pid("service") not in (None, before), 30, "a new service")
    own.wait_ready("service")
    assert "The service ended (signal 9) and is started again." in own.said()


def test_a_killed_proxy_gets_its_routes_again(own: Stack) -> None:
    before = own.kill("proxy")
    until(lambda: own.pid("proxy") not in (None, before), 30, "a new proxy")
    own.wait_ready("hub", "service")
    until(lambda: _status(own.url + "hub/login") == 200, 30, "the login page")


def test_a_killed_hub_finds_the_running_server_again(own: Stack) -> None:
    with own.api(own.token()) as api:
        _start_server(api, "admin")
        server = api.get("hub/api/users/admin").json()["servers"][""]
        assert api.get("user/admin/api/status").status_code == 200
        before = own.kill("hub")
        until(lambda: own.pid("hub") not in (None, before), 30, "a new Hub")
        own.wait_ready("hub")
        again = until(lambda: _server(api, "admin"), 60, "the server after the restart")
        assert again["started"] == server["started"]
        assert until(lambda: api.get("user/admin/api/status").status_code == 200, 30)


def test_kernels_of_a_server_run_in_the_home(own: Stack) -> None:
    with own.api(own.token()) as api:
        _start_server(api, "admin")
        specs = api.get("user/admin/api/kernelspecs").json()
        assert specs["kernelspecs"]["python3"]["spec"]["display_name"] == "Python 3 (default)"
        assert specs["default"] == "python3"
        assert list(specs["kernelspecs"]) == ["python3"]
        names = {entry["name"] for entry in api.get("user/admin/api/contents").json()["content"]}
        assert "train_digits.ipynb" in names


def test_stopping_leaves_no_process_and_the_next_start_finds_everything(own: Stack) -> None:
    with own.api(own.token()) as api:
        _start_server(api, "admin")
        people = {user["name"] for user in api.get("hub/api/users").json()}
    token, ports = own.token(), own.settings.ports
    assert processes_of(own.data_dir)
    assert own.stop() == 0
    assert "Stopped." in own.said()
    assert processes_of(own.data_dir) == []
    own.start()
    assert own.settings.ports == ports
    with own.api(token) as api:
        assert api.get("hub/api/user").json()["name"] == "admin"
        assert {user["name"] for user in api.get("hub/api/users").json()} == people


def test_a_running_job_outlives_the_stack_and_ends_truly(own: Stack) -> None:
    own.wait_ready("service")
    cells = [nbformat.v4.new_code_cell("import time\nfor i in range(8):\n    print(i, flush=True); time.sleep(1)")]
    notebook = nbformat.writes(nbformat.v4.new_notebook(cells=cells)).encode()
    spec = {"notebook": "lasting.ipynb", "profile": "small"}
    token = own.token()

    def job() -> dict[str, Any]:
        with own.api(token) as api:
            found: dict[str, Any] = api.get(f"services/kajiya/api/jobs/{name}").json()
            return found

    with own.api(token) as api:
        parts = {"spec": (None, json.dumps(spec), "application/json"), "notebook": ("lasting.ipynb", notebook)}
        made = api.post("services/kajiya/api/jobs", files=parts)
        assert made.status_code == 201, made.text
        name = made.json()["id"]
    until(lambda: job()["status"] == "running", 120, "the running job")
    assert own.stop() == 0
    assert any("kajiya.runner" in command for command in processes_of(own.data_dir))
    own.start()
    own.wait_ready("service")
    ended = until(lambda: (found := job())["status"] in ("succeeded", "failed", "stopped") and found, 90, "its end")
    assert (ended["status"], len(ended["attempts"])) == ("succeeded", 1)
    with own.api(token) as api:
        executed = api.get(f"services/kajiya/api/jobs/{name}/notebook").json()
    assert "".join(executed["cells"][0]["outputs"][0]["text"]).split() == [str(i) for i in range(8)]


def test_killed_itself_it_takes_its_parts_with_it_and_starts_again(own: Stack) -> None:
    assert own.process is not None
    family = psutil.Process(own.process.pid).children()
    assert len(family) >= 4
    own.process.send_signal(signal.SIGKILL)
    own.process.wait(10)
    _, alive = psutil.wait_procs(family, 30)
    assert alive == []
    own.start()
    assert _status(own.url + "hub/login") == 200


def test_doctor_says_what_runs(own: Stack) -> None:
    own.wait_ready("service", "mlflow")
    found = {check["name"]: check for check in json.loads(own.run("doctor", "--json"))}
    assert {found[name]["level"] for name in ("running", "hub", "service", "mlflow", "uv", "config")} == {"good"}
    assert "✓" in own.run("doctor")


# --- refusals that need no running stack
def test_a_taken_port_names_the_option(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = up(tmp_path / "data", "--port", str(taken.getsockname()[1]))
    assert refused.returncode == 1
    assert "--port" in refused.stderr


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("kajiya.yaml", "port: 8000\nprot: 1\n", ["kajiya.yaml", "line 2", "prot", "expected"]),
        ("profiles.yaml", "profiles:\n  - slug: Big\n    name: Big\n", ["profiles.yaml", "line 2", "slug", "expected"]),
    ],
)
def test_a_wrong_file_is_answered_before_anything_starts(
    tmp_path: Path, file: str, text: str, words: list[str]
) -> None:
    (tmp_path / file).write_text(text)
    refused = up(tmp_path, "--port", str(free_port()))
    assert refused.returncode == 2
    assert all(word in refused.stderr for word in words), refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_failing_part_is_named_with_its_log(tmp_path: Path) -> None:
    # A database that is none: the Hub can't start, and says why in its log.
    data = tmp_path / "data"
    (data / "hub").mkdir(parents=True)
    (data / "hub" / "jupyterhub.sqlite").write_bytes(b"this is no database" * 100)
    refused = up(data, "--port", str(free_port()))
    assert refused.returncode == 1
    assert "hub.log" in refused.stderr
    assert processes_of(data) == []


def test_a_command_without_a_stack_says_what_to_do(tmp_path: Path) -> None:
    argv = [str(BIN / "kajiya-hub"), "link", "--data-dir", str(tmp_path)]
    refused = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert refused.stderr.startswith("kajiya-hub: ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another account")
def test_a_folder_of_another_account_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 12345, 12345)
    refused = up(data, "--port", str(free_port()))
    assert refused.returncode == 1
    assert "12345" in refused.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificate, is not installed")
def test_with_a_certificate_it_speaks_tls_below_a_base_url(tmp_path: Path, shared: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(argv, check=True, capture_output=True)
    arguments = ("--ssl-key", str(key), "--ssl-cert", str(cert), "--base-url", "/team/")
    with Stack(tmp_path / "data", shared=shared, arguments=arguments) as stack:
        assert stack.sign_in_link.startswith(f"https://127.0.0.1:{stack.port}/team/hub/")
        with httpx.Client(verify=ssl.create_default_context(cafile=str(cert))) as client:
            page = client.get(stack.sign_in_link)
            assert page.status_code == 200
            assert all("secure" in cookie.lower() for cookie in page.headers.get_list("set-cookie"))
            until(lambda: client.get(f"{stack.url}services/kajiya/health").status_code == 200, 60)


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=5).status_code
    except httpx.HTTPError:
        return 0


def _server(api: httpx.Client, user: str) -> dict[str, str] | None:
    try:
        answer = api.get(f"hub/api/users/{user}")
        server = answer.json()["servers"].get("") if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None
    return server if server and server["ready"] else None


def _start_server(api: httpx.Client, user: str, seconds: float = 180) -> None:
    """Starts a user's server if it does not run."""
    if _server(api, user):
        return
    began = time.monotonic()
    answer = api.post(f"hub/api/users/{user}/server", json={"profile": "small"}, timeout=seconds)
    assert answer.status_code in (201, 202, 400), answer.text
    until(lambda: _server(api, user), seconds - (time.monotonic() - began), "a server")
