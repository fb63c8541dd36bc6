"""Servers with a Unix account for each user: whose they are, and what they can't read."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from helpers.hub import Hub
from helpers.wait import until
from kajiya.names import account, slug

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("useradd") is None or not Path("/usr/bin/python3").exists(),
    reason="only root can make Unix accounts, with useradd, and they need an interpreter outside root's home",
)
NAMES = ("anna-spawn", "花子 spawn".replace(" ", "-"))
SERVER = """
import http.server, json, os, urllib.parse
where = urllib.parse.urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
def readable(path):
    try:
        return os.listdir(path) if os.path.isdir(path) else bool(open(path, "rb").read(1))
    except OSError as e:
        return e.strerror
class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query).get("read", ["/nothing"])[0]
        body = json.dumps({"uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(), "cwd": os.getcwd(),
                           "user": os.environ.get("USER"), "runtime": os.access(os.environ["JUPYTER_RUNTIME_DIR"], 7),
                           "read": readable(path)})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())
http.server.ThreadingHTTPServer(("127.0.0.1", where.port), Server).serve_forever()
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    # Not below pytest's own folder, which only root may enter.
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="kajiya-") as folder:
        Path(folder).chmod(0o711)
        try:
            with Hub(Path(folder) / "data", cmd=["/usr/bin/python3", "-c", SERVER], accounts=True) as running:
                yield running
        finally:
            for name in NAMES:
                subprocess.run(["userdel", "--force", account(name)], capture_output=True, check=False)


def test_each_server_is_its_users_and_reads_nobody_elses(hub: Hub) -> None:
    admin = hub.first("meister-spawn")
    answers = {}
    for name in NAMES:
        person = hub.person(admin, name)
        started = person.call("POST", f"hub/api/users/{name}/server", json={"profile": "small"})
        assert started.status_code in (201, 202), started.text
        folder = hub.root / "servers" / slug(name) / "_"
        until(lambda folder=folder: (folder / "port.json").exists(), 30, "the port")
        port = json.loads((folder / "port.json").read_text())["port"]

        def ask(read: object = "", port: int = port) -> dict[str, object]:
            return httpx.get(f"http://127.0.0.1:{port}/", params={"read": str(read)}, timeout=10).json()

        answers[name] = ask
    first, second = NAMES
    one, other = answers[first](), answers[second]()
    assert one["uid"] != other["uid"]
    assert 0 not in (one["uid"], one["gid"], other["uid"], other["gid"])
    assert 0 not in one["groups"]  # type: ignore[operator]
    assert one["user"] == account(first)
    assert one["runtime"] is True
    assert one["cwd"] == str(hub.root / "homes" / slug(first))
    denied = "Permission denied"
    other_folder = hub.root / "servers" / slug(second) / "_"
    for path in (
        hub.root / "homes" / slug(second),
        hub.root,
        hub.root / "hub",
        hub.root / "hub" / "signin.sqlite",
        hub.root / "hub" / "jupyterhub.sqlite",
        other_folder,
        other_folder / "log.txt",
        other_folder / "runtime",
        hub.root / "machine",
    ):
        assert answers[first](path)["read"] == denied, path
