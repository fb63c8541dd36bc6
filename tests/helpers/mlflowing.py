"""A real MLflow server process behind a small Hub and a small workbench service."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from aiohttp import web

from helpers.proxying import free_ports

ACCESS = "access:services!service=mlflow"
PREFIX = "/services/mlflow"
SERVICE_TOKEN = "token-of-the-mlflow-service"

SERVER = """
import logging, sys, json, uvicorn
from pathlib import Path
from kajiya_hub.mlflow_app import create_app
from kajiya_hub.mlflow_app.options import Options
given = json.loads(sys.argv[1])
options = Options(**{**given, "folder": Path(given["folder"])})
logging.basicConfig(level=logging.WARNING)
uvicorn.run(create_app(options), host="127.0.0.1", port=options.port, log_level="warning")
"""


class FakeHub:
    """The two APIs that MLflow's front end asks, with tokens that tests add and take away."""

    def __init__(self) -> None:
        self.users: dict[str, dict[str, Any]] = {}
        self.attempts: dict[str, tuple[int, dict[str, Any]]] = {}
        self.codes: dict[str, dict[str, str]] = {}
        self.exchanges: list[dict[str, str]] = []
        self.url = ""

    def user(self, token: str, name: str, *scopes: str, **more: Any) -> str:
        """Let a token be a user's."""
        self.users[token] = {"name": name, "kind": "user", "admin": False, "scopes": list(scopes or (ACCESS,)), **more}
        return token

    async def whoami(self, request: web.Request) -> web.Response:
        """The Hub's GET /user."""
        token = request.headers.get("Authorization", "").partition(" ")[2]
        found = self.users.get(token)
        return web.json_response(found) if found else web.json_response({"message": "no"}, status=403)

    async def attempt(self, request: web.Request) -> web.Response:
        """The service's GET /whoami."""
        token = request.headers.get("Authorization", "").partition(" ")[2]
        status, body = self.attempts.get(token, (401, {"error": {"code": "access.not_authenticated"}}))
        return web.json_response(body, status=status)

    async def exchange(self, request: web.Request) -> web.Response:
        """The Hub's POST /oauth2/token."""
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.exchanges.append(form)
        known = self.codes.pop(form.get("code", ""), None)
        if known is None or form.get("client_secret") != SERVICE_TOKEN:
            return web.json_response({"error": "invalid_grant"}, status=400)
        return web.json_response({"access_token": known["token"], "token_type": "Bearer"})


def _serve(fake: FakeHub, port: int, up: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
    async def start() -> None:
        app = web.Application()
        app.router.add_get("/hub/api/user", fake.whoami)
        app.router.add_post("/hub/api/oauth2/token", fake.exchange)
        app.router.add_get("/services/kajiya/api/whoami", fake.attempt)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        up.set()

    asyncio.set_event_loop(loop)
    loop.run_until_complete(start())
    loop.run_forever()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A running fake Hub, in a thread."""
    fake = FakeHub()
    (port,) = free_ports(1)
    fake.url = f"http://127.0.0.1:{port}"
    loop, up = asyncio.new_event_loop(), threading.Event()
    thread = threading.Thread(target=_serve, args=(fake, port, up, loop), daemon=True)
    thread.start()
    assert up.wait(20)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)


class MlflowServer:
    """The process, and plain HTTP to it."""

    def __init__(self, hub: FakeHub, folder: Path) -> None:
        self.hub = hub
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}{PREFIX}"
        self.folder = folder
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it and wait until it answers."""
        given = {
            "folder": str(self.folder),
            "hub_api": f"{self.hub.url}/hub/api",
            "service_api": f"{self.hub.url}/services/kajiya/api",
            "token": SERVICE_TOKEN,
            "port": self.port,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, json.dumps(given)],
            env={**os.environ, "MLFLOW_TRACKING_URI": "http://nowhere.invalid"},
        )
        end = time.monotonic() + 90
        while True:
            assert self.process.poll() is None, "MLflow ended while starting"
            try:
                if self.ask("GET", "/health")[0] == 200:
                    return
            except OSError:
                pass
            assert time.monotonic() < end, "MLflow never answered"
            time.sleep(0.1)

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(
        self, method: str, path: str, token: str | None = None, body: Any = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """One request without any client library, redirects not followed: status, JSON or bytes, headers."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        if body is not None and not isinstance(body, bytes):
            request.add_header("Content-Type", "application/json")
        if token is not None:
            request.add_header("Authorization", token if " " in token else f"Bearer {token}")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with _OPENER.open(request, timeout=60) as answer:
                return _read(answer.status, answer)
        except urllib.error.HTTPError as error:
            return _read(error.code, error)


def _read(status: int, answer: Any) -> tuple[int, Any, dict[str, str]]:
    raw = answer.read()
    headers = {name.lower(): value for name, value in answer.headers.items()}
    headers["set-cookie"] = "\n".join(answer.headers.get_all("Set-Cookie") or ())
    if headers.get("content-type", "").startswith("application/json"):
        return status, json.loads(raw), headers
    return status, raw, headers


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stay, urllib.request.ProxyHandler({}))


def query_of(url: str) -> dict[str, str]:
    """The query of an address."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
