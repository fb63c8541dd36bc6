"""A real JupyterHub with Kajiya's sign-in and local spawner behind Kajiya's proxy, without the rest of the stack."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from helpers.wait import until
from kajiya.machine import process
from kajiya_hub.signin.links import create_link

PASSWORD = "iron and a hot fire"
CONFIG = """
import asyncio, json, sys
from pathlib import Path
import kajiya_spawner
from kajiya_hub import signin
from kajiya_hub.signin.authenticator import SignInAuthenticator
from kajiya_spawner.local import LocalSpawner
from kajiya.types import Reason

given = json.loads(Path({given!r}).read_text())
root = Path(given["root"])
kajiya_spawner.configure(c)
c.JupyterHub.template_paths = [*c.JupyterHub.template_paths, signin.template_path()]
c.JupyterHub.authenticator_class = SignInAuthenticator
c.SignInAuthenticator.db_file = str(root / "hub/signin.sqlite")
c.JupyterHub.spawner_class = LocalSpawner
c.JupyterHub.bind_url = f"http://127.0.0.1:{{given['port']}}{{given['base_url']}}"
c.JupyterHub.hub_ip = "127.0.0.1"
c.JupyterHub.hub_port = given["hub_port"]
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{{given['proxy_api']}}"
c.ConfigurableHTTPProxy.auth_token = "proxy-token-for-tests"
c.ConfigurableHTTPProxy.command = [sys.executable, "-m", "kajiya_hub.proxy"]
c.ConfigurableHTTPProxy.pid_file = str(root / "proxy.pid")
c.JupyterHub.cleanup_servers = False
c.JupyterHub.db_url = f"sqlite:///{{root / 'hub/jupyterhub.sqlite'}}"
c.JupyterHub.cookie_secret_file = str(root / "hub/cookie")
c.JupyterHub.allow_named_servers = True
c.JupyterHub.load_groups = {{"smiths": {{"users": []}}}}
c.LocalSpawner.homes_dir = str(root / "homes")
c.LocalSpawner.machine_dir = str(root / "machine")
c.LocalSpawner.servers_dir = str(root / "servers")
c.LocalSpawner.profiles_file = str(root / "profiles.yaml")
c.LocalSpawner.grace = 5.0
c.LocalSpawner.accounts = c.SignInAuthenticator.accounts = given["accounts"]
c.LocalSpawner.poll_interval = 1
if given["cmd"]:
    c.LocalSpawner.cmd = given["cmd"]

async def prepare(user, progress):
    progress(Reason(code="environment.making"))
    await asyncio.sleep(given["prepare_seconds"])
    if (root / "break-environment").exists():
        from kajiya.environment.uv import PackagesUnavailable
        raise PackagesUnavailable(problem="no route to the index")

c.LocalSpawner.prepare = prepare
"""

PROFILES = """
profiles:
  - {slug: small, name: Small, description: For looking around., resources: {cpu: 1, memory: 512M}, limit_per_user: 2}
  - slug: flexible
    name: Flexible
    resources: {cpu: 1, memory: 512M}
    options:
      - slug: size
        name: Size
        choices: [{slug: s, name: Little, default: true}, {slug: l, name: Much, resources: {memory: 1G}}]
      - slug: cache
        name: Cache
        when: {size: [l]}
        choices: [{slug: "off", name: None}, {slug: "on", name: Warm, env: {CACHE: warm}}]
  - {slug: forge, name: Forge, resources: {cpu: 1, memory: 256M}, groups: [smiths]}
  - {slug: huge, name: Huge, resources: {cpu: 1, memory: 900T}}
"""


class Hub:
    """A running Hub; `cmd` replaces JupyterLab by something quicker."""

    def __init__(
        self,
        root: Path,
        cmd: list[str] | None = None,
        profiles: str = PROFILES,
        base_url: str = "/",
        prepare_seconds: float = 0.0,
        env: Mapping[str, str] | None = None,
        accounts: bool = False,
    ) -> None:
        from helpers.stack import free_port

        self.root, self.base_url = root, base_url
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o711 if accounts else 0o700)
        (root / "hub").mkdir(mode=0o700, exist_ok=True)
        (root / "profiles.yaml").write_text(profiles, "utf-8")
        self.port = free_port()
        self.given = {
            "root": str(root),
            "port": self.port,
            "hub_port": free_port(),
            "proxy_api": free_port(),
            "cmd": cmd,
            "base_url": base_url,
            "prepare_seconds": prepare_seconds,
            "accounts": accounts,
        }
        (root / "given.json").write_text(json.dumps(self.given))
        self.config = root / "jupyterhub_config.py"
        self.config.write_text(CONFIG.format(given=str(root / "given.json")))
        self.env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | dict(env or {})
        self.process: subprocess.Popen[bytes] | None = None
        self.log = root / "hub.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.base_url}"

    @property
    def db(self) -> Path:
        return self.root / "hub" / "signin.sqlite"

    def start(self, seconds: float = 60) -> "Hub":
        """Starts it and waits until its sign-in page answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(self.config)],
                stdout=log,
                stderr=log,
                cwd=self.root,
                env=self.env,
                start_new_session=True,
            )
        until(self._answers, seconds, "the sign-in page")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text("utf-8", "replace")[-4000:]
        try:
            return httpx.get(self.url + "hub/login", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """Ends the Hub in order; servers go on."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)

    def kill(self) -> None:
        """Kills the Hub, and only the Hub, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> "Hub":
        return self.start()

    def __exit__(self, *_: Any) -> None:
        self.stop()
        pid = self.root / "proxy.pid"
        if pid.exists():
            number = int(pid.read_text().splitlines()[0])
            if b"kajiya_hub.proxy" in process.read_bytes(f"/proc/{number}/cmdline"):
                os.kill(number, signal.SIGTERM)
        for lease in self.root.glob("servers/*/*/lease.json"):
            record = json.loads(lease.read_text())
            who = process.Identity(record["pid"], record["start_time"], record["boot_id"])
            process.send(who, signal.SIGTERM)
            until(lambda who=who: not process.alive(who), 30, "the end of a server")

    # --- people
    def visitor(self, **headers: str) -> "Visitor":
        """A browser without a session."""
        return Visitor(self.url, headers)

    def first(self, name: str = "meister", **headers: str) -> "Visitor":
        """The administrator, signed in by the first link."""
        visitor = self.visitor(**headers)
        answer = visitor.join(self.link(), name)
        assert answer.status_code == 302, answer.text
        return visitor

    def link(self, user: str | None = None) -> str:
        """A new link of the command line's."""
        return f"http://127.0.0.1:{self.port}{self.base_url}" + create_link(self.db, user)

    def person(self, administrator: "Visitor", name: str, groups: list[str] | None = None) -> "Visitor":
        """Someone invited by the administrator, signed in."""
        visitor = self.visitor()
        answer = visitor.join(administrator.invite(name=name, group=groups or []), name)
        assert answer.status_code == 302, answer.text
        return visitor


class Visitor(httpx.Client):
    """A browser: keeps cookies, sends the token of the form that it saw."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        super().__init__(base_url=url, timeout=60, headers={"Sec-Fetch-Mode": "navigate", **headers})

    @property
    def xsrf(self) -> str:
        # A server sets one of its own, on its own path.
        found = [c.value for c in self.cookies.jar if c.name == "_xsrf" and c.path.endswith("/hub/")]
        return found[-1] or "" if found else ""

    def form(self, path: str, data: Mapping[str, Any], page: str | None = None) -> httpx.Response:
        """Posts a form after looking at the page it stands on."""
        self.get(page or path)
        return self.post(path, data={"_xsrf": self.xsrf, **data})

    def join(self, link: str, name: str, password: str = PASSWORD) -> httpx.Response:
        """Follows a link that makes an account."""
        token = link.partition("token=")[2]
        data = {"token": token, "name": name, "password": password, "again": password}
        return self.form("hub/sign-in", data, page=link)

    def sign_in(self, name: str, password: str = PASSWORD, next: str = "") -> httpx.Response:
        """Signs in on the sign-in page."""
        path = "hub/login" + (f"?next={next}" if next else "")
        return self.form(path, {"username": name, "password": password})

    def invite(self, **fields: Any) -> str:
        """Makes an invitation; returns its link."""
        answer = self.form("hub/invite", fields)
        found = re.search(r'id="made" value="([^"]+)"', answer.text)
        assert found, answer.text
        return found.group(1)

    def token(self) -> str:
        """A new Hub token of mine."""
        me = self.call("GET", "hub/api/user").json()["name"]
        return str(self.call("POST", f"hub/api/users/{quote(me)}/tokens", json={}).json()["token"])

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """A request as a script on the Hub's page makes it."""
        headers = {"X-XSRFToken": self.xsrf, "Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
        return self.request(method, path, headers=headers, **more)

    def spawn(self, server: str = "", **fields: str) -> httpx.Response:
        """Posts the picker's form."""
        me = quote(self.call("GET", "hub/api/user").json()["name"])
        path = f"hub/spawn/{me}" + (f"/{server}" if server else "")
        self.get(path)
        return self.post(
            f"{path}?_xsrf={self.xsrf}", files={k: (None, v) for k, v in fields.items()} or {"x": (None, "")}
        )


def quote(name: str) -> str:
    from urllib.parse import quote as percent

    return percent(name, safe="")


def path_of(url: str) -> str:
    """The path and query of a redirect."""
    parts = urlsplit(url)
    return parts.path + (f"?{parts.query}" if parts.query else "")
