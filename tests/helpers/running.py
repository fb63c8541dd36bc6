"""The service as a process of its own, over a data directory, with a stand-in for the Hub that knows two users."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from helpers.wait import until
from kajiya.client import Client
from kajiya.machine.allocations import Allocations
from kajiya_hub.datadir import DataDir
from kajiya_hub.settings import Ports, Settings

ENVIRONMENT = "here"
"""The name of an environment in every owner's home that is the one these tests run in."""


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class FakeHub:
    """Answers /hub/api/user for the tokens it knows."""

    def __init__(self, port: int) -> None:
        self.users = {"t-hanako": "hanako", "t-taro": "太郎"}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = hub.users.get(self.headers.get("Authorization", "").removeprefix("token "))
                scopes = ["access:services!service=kajiya"]
                body = json.dumps(
                    {"kind": "user", "name": name, "groups": [], "admin": False, "scopes": scopes}
                ).encode()
                known = name is not None or self.path.endswith("/api/")
                self.send_response(200 if known else 403)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Running:
    """A service that can be killed and started again."""

    def __init__(self, root: Path) -> None:
        hub, proxy, service, mlflow = free_ports(4)
        self.data = DataDir(root)
        self.data.prepare()
        ports = Ports(hub=hub, proxy_api=proxy, service=service, mlflow=mlflow)
        self.settings = Settings(data_dir=root, ports=ports)
        self.settings.save()
        self.hub = FakeHub(hub)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = root / "service.log"
        for user in self.hub.users.values():
            environment = self.settings.homes.ensure(user).environment(ENVIRONMENT)
            environment.parent.mkdir(parents=True)
            environment.symlink_to(sys.prefix)

    def start(self) -> None:
        """Starts the service and waits until it answers."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("KAJIYA_", "JUPYTER"))}
        env["KAJIYA_SETTINGS"] = str(self.data.settings)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "kajiya_hub.app"], env=env, stdout=log, stderr=log)
        until(self.answers, 60, "the service")

    def answers(self) -> bool:
        """Whether the service is well."""
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.settings.service_url}/health", trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def end(self, sig: signal.Signals) -> int:
        """Ends the service by a signal; gives its exit status."""
        assert self.process is not None
        self.process.send_signal(sig)
        return self.process.wait(30)

    def client(self, token: str = "t-hanako", patience: float = 60) -> Client:
        """A client of one user."""
        return Client(self.settings.service_url, token, patience=patience)

    def close(self) -> None:
        """Ends the service and every job that it left running."""
        if self.process is None or self.process.poll() is not None:
            self.hub.close()
            return
        try:
            # The service's own token: it needs no Hub, which may be gone.
            token = {"Authorization": f"token {self.settings.secret('service.token')}"}
            with httpx.Client(base_url=f"{self.settings.service_url}/api", headers=token, trust_env=False) as http:
                active = {"owner": "*", "status": ["queued", "starting", "running"]}
                for job in http.get("/jobs", params=active).json()["items"]:
                    http.post(f"/jobs/{job['id']}/stop", params={"owner": job["owner"]})
            until(lambda: not Allocations(self.data.machine).live(), 60, "the end of all jobs")
        finally:
            self.end(signal.SIGKILL)
            self.hub.close()
