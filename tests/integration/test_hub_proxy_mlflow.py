"""A real JupyterHub that starts our proxy by itself, and MLflow signed in to through it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from helpers.mlflowing import SERVICE_TOKEN, FakeHub, MlflowServer
from helpers.proxying import free_ports

CONFIG = """
import sys
c = get_config()
c.JupyterHub.bind_url = "http://127.0.0.1:{port}/"
c.JupyterHub.hub_port = {hub}
c.ConfigurableHTTPProxy.command = [sys.executable, "-m", "kajiya_hub.proxy"]
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api}"
c.ConfigurableHTTPProxy.check_running_interval = 1
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "simple"
c.JupyterHub.oauth_require_pkce = True
c.JupyterHub.services = [
    {{"name": "mlflow", "url": "http://127.0.0.1:{mlflow}", "api_token": "{token}", "oauth_no_confirm": True}}
]
c.JupyterHub.load_roles = [
    {{"name": "user", "scopes": ["self", "access:services!service=mlflow"]}},
    {{"name": "mlflow-asks", "scopes": ["read:users:name", "read:users:groups"], "services": ["mlflow"]}},
]
"""


class Stack:
    """Addresses of a running Hub and MLflow."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self.process = process

    def proxies(self) -> list[psutil.Process]:
        """The proxy processes that the Hub started."""
        found: list[psutil.Process] = []
        for child in psutil.Process(self.process.pid).children():
            # One that was killed stays as a zombie until the Hub looks.
            if child.status() != psutil.STATUS_ZOMBIE and "kajiya_hub.proxy" in child.cmdline():
                found.append(child)
        return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("hub")
    port, api, hub = free_ports(3)
    fake = FakeHub()
    fake.url = f"http://127.0.0.1:{hub}"
    mlflow = MlflowServer(fake, folder / "mlflow")
    config = CONFIG.format(port=port, api=api, hub=hub, mlflow=mlflow.port, token=SERVICE_TOKEN)
    (folder / "config.py").write_text(config)
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterhub", "-f", "config.py", "--log-level=WARN"],
        cwd=folder,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    try:
        mlflow.start()
        one = Stack(f"http://127.0.0.1:{port}", process)
        wait_for(lambda: httpx.get(f"{one.url}/hub/login").status_code == 200, "the login page")
        yield one
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        mlflow.stop()


def wait_for(holds: object, what: str) -> None:
    """Wait until something holds."""
    end = time.monotonic() + 90
    while True:
        try:
            if holds():  # type: ignore[operator]
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.1)


def signed_in(stack: Stack, name: str) -> httpx.Client:
    """A browser's cookies after the Hub's login form."""
    browser = httpx.Client(base_url=stack.url, follow_redirects=True, timeout=60, headers={"Accept": "text/html"})
    browser.get("/hub/login")
    form = {"username": name, "password": "x", "_xsrf": browser.cookies["_xsrf"]}
    answer = browser.post("/hub/login?next=/hub/home", data=form)
    assert answer.status_code == 200 and answer.url.path == "/hub/home", answer.text
    return browser


def test_mlflow_opens_signed_in_and_closes_with_the_hub(stack: Stack) -> None:
    alice = signed_in(stack, "alice")
    page = alice.get("/services/mlflow/?x=1")
    assert page.status_code == 200 and "<title>MLflow" in page.text and page.url.query == b"x=1"
    own = alice.get("/services/mlflow/ajax-api/2.0/mlflow/experiments/get?experiment_id=0").json()
    assert own["experiment"]["workspace"] == "alice"
    made = alice.post(
        "/services/mlflow/ajax-api/2.0/mlflow/runs/create",
        json={"experiment_id": "0"},
        headers={"Sec-Fetch-Site": "same-origin"},
    ).json()
    assert made["run"]["info"]["user_id"] == "alice"

    bob = signed_in(stack, "bob")
    bob.get("/services/mlflow/")
    run = f"/services/mlflow/ajax-api/2.0/mlflow/runs/get?run_id={made['run']['info']['run_id']}"
    assert alice.get(run).status_code == 200 and bob.get(run).status_code in (403, 404)

    alice.get("/hub/logout")
    ended = {"Accept": "application/json"}
    wait_for(lambda: alice.get(run, headers=ended).status_code == 401, "MLflow forgets who signed out")
    assert bob.get(run.replace("runs/get", "experiments/get?experiment_id=0&"), headers=ended).status_code == 200


def test_a_token_of_the_hub_is_enough(stack: Stack) -> None:
    carol = signed_in(stack, "carol")
    xsrf = {"X-XSRFToken": carol.cookies["_xsrf"]}
    answer = carol.post("/hub/api/users/carol/tokens", json={"note": "laptop"}, headers={**xsrf, "Referer": stack.url})
    assert answer.status_code == 201, answer.text
    headers = {"Authorization": f"Bearer {answer.json()['token']}"}
    path = f"{stack.url}/services/mlflow/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert httpx.get(path, headers=headers, timeout=60).json()["experiment"]["workspace"] == "carol"
    assert httpx.get(path, timeout=60).status_code == 401


def test_the_hub_starts_a_killed_proxy_again_and_gives_it_its_routes(stack: Stack) -> None:
    (proxy,) = stack.proxies()
    proxy.kill()
    wait_for(lambda: [one.pid for one in stack.proxies()] not in ([], [proxy.pid]), "another proxy")
    wait_for(lambda: httpx.get(f"{stack.url}/hub/login").status_code == 200, "the Hub's route")
    wait_for(lambda: httpx.get(f"{stack.url}/services/mlflow/health").status_code == 200, "MLflow's route")
    missing = httpx.get(f"{stack.url}/user/nobody/", follow_redirects=False)
    assert missing.status_code in (302, 404)
