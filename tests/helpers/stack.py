"""The whole embedded stack, started as a user starts it: `kajiya-hub up` on a free port and a data directory."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx

from helpers.wait import until
from kajiya_hub.settings import Settings

BIN = Path(sys.executable).parent
PASSWORD = "correct horse battery"
LINK = re.compile(r"https?://\S+")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stack:
    """A running Kajiya. `shared` holds a base of environments to use instead of fetching one."""

    def __init__(
        self,
        data_dir: Path,
        shared: Path | None = None,
        arguments: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        command: tuple[str, ...] = (str(BIN / "kajiya-hub"),),
    ) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.arguments = arguments
        self.command = command
        self.env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self.env |= {"KAJIYA_LANG": "en"} | (env or {})
        self.log = data_dir.with_name(f"{data_dir.name}-up.log")
        self.process: subprocess.Popen[bytes] | None = None
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if shared is not None:
            for name in ("base", "cache"):
                (shared / name).mkdir(parents=True, exist_ok=True)
                if not (data_dir / name).exists():
                    (data_dir / name).symlink_to(shared / name)

    # --- life
    def start(self, seconds: float = 90) -> "Stack":
        """Starts it and waits for the sign-in link."""
        argv = [*self.command, "up", "--data-dir", str(self.data_dir), "--port", str(self.port), *self.arguments]
        self.log.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdout=log, stderr=subprocess.STDOUT, env=self.env, start_new_session=True, cwd="/"
            )
        until(self._started, seconds, "the sign-in link")
        return self

    def _started(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"kajiya-hub ended with status {self.process.returncode}:\n{self.said()}")
        return "Sign in: " in self.said()

    def said(self) -> str:
        """What the command printed so far."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def stop(self, seconds: float = 60) -> int:
        """Stops it as Ctrl-C does; returns the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(seconds)

    def __enter__(self) -> "Stack":
        return self.start()

    def __exit__(self, *_: Any) -> None:
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            assert self.process is not None
            self.process.kill()
            self.process.wait()

    # --- where
    @property
    def settings(self) -> Settings:
        """The effective settings."""
        return Settings.load(self.data_dir / "run" / "settings.json")

    @property
    def url(self) -> str:
        """What people open, ending with a slash."""
        return self.settings.public_url

    @property
    def sign_in_link(self) -> str:
        """The link that the start printed."""
        line = next(line for line in self.said().splitlines() if line.startswith("Sign in: "))
        found = LINK.search(line)
        assert found is not None, line
        return found.group()

    def run(self, *arguments: str) -> str:
        """Another command of `kajiya-hub` on this data directory; returns what it printed."""
        argv = [*self.command, *arguments, "--data-dir", str(self.data_dir)]
        done = subprocess.run(argv, capture_output=True, text=True, env=self.env, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def pid(self, part: str) -> int | None:
        """The process id of a part: proxy, hub, service, mlflow."""
        module = {"service": "kajiya_hub.app", "mlflow": "kajiya_hub.mlflow_app"}.get(part, f"kajiya_hub.{part}")
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            try:
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if module.encode() in words:
                return int(child)
        return None

    def kill(self, part: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Kills one part; returns the process id that it had."""
        pid = self.pid(part)
        assert pid is not None, f"{part} is not running"
        os.kill(pid, number)
        return pid

    def wait_ready(self, *parts: str, seconds: float = 90) -> None:
        """Waits until the service and MLflow (or the parts named) answer through the proxy."""
        for part in parts or ("service", "mlflow"):
            until(lambda part=part: self._answers(part), seconds, f"an answer of {part}")

    def _answers(self, part: str) -> bool:
        place = {"service": "services/kajiya/health", "mlflow": "services/mlflow/health", "hub": "hub/login"}[part]
        try:
            return httpx.get(self.url + place, timeout=5).status_code < 500
        except httpx.HTTPError:
            return False

    # --- as a user
    def browser(self, link: str | None = None, name: str = "admin") -> httpx.Client:
        """A client with the cookies of whoever a sign-in link is for; it makes the account `name` if there is none.

        Close it after use, with `contextlib.closing`: it has made requests already.
        """
        client = httpx.Client(base_url=self.url, follow_redirects=True, timeout=60)
        link = link or self.run("link")
        page = client.get(link)
        assert page.status_code == 200, page.text
        form = {"token": parse_qs(urlsplit(link).query)["token"][0]}
        if 'name="again"' in page.text:
            form |= {"name": name, "password": PASSWORD, "again": PASSWORD}
        answer = client.post("hub/sign-in", data=form, headers=self._xsrf(client), follow_redirects=False)
        assert answer.status_code == 302, answer.text
        return client

    def invite(self, name: str) -> httpx.Client:
        """A new user, invited and signed in; the administrator is made first if there is none."""
        if not self.run("users"):
            self.browser().close()
        return self.browser(self.run("invite", name), name)

    def token(self, user: str | None = None) -> str:
        """A new Hub token of a user, the first administrator if none is named."""
        with closing(self.browser(self.run("link", user) if user else None)) as client:
            me = client.get("hub/api/user", headers=self._xsrf(client)).json()
            place = f"hub/api/users/{quote(me['name'], safe='')}/tokens"
            made = client.post(place, headers=self._xsrf(client), json={"note": "made by a test"})
            assert made.status_code in (200, 201), made.text
            return str(made.json()["token"])

    @staticmethod
    def _xsrf(client: httpx.Client) -> dict[str, str]:
        found = [cookie.value for cookie in client.cookies.jar if cookie.name == "_xsrf" and "hub/" in cookie.path]
        return {"X-XSRFToken": found[-1] or ""} if found else {}

    def api(self, token: str) -> httpx.Client:
        """A client of the Hub and the services with a token; paths are relative to the public address."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"token {token}"}, timeout=60)
