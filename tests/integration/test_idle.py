"""The idle rule in a real Jupyter server, with seconds in place of minutes."""

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.stack import free_port
from helpers.wait import until
from kajiya_hub.singleuser import idle_arguments

TOKEN = "for-the-test"
# Jupyter looks once a minute whether a server is idle; here once a second.
QUICK = """
from tornado import ioloop
Slow = ioloop.PeriodicCallback
ioloop.PeriodicCallback = lambda call, milliseconds, *more: Slow(call, min(milliseconds, 1000), *more)
from jupyter_server.serverapp import main
main()
"""


def quick_arguments(seconds: int) -> list[str]:
    """What a profile's rule of one minute gives, with other numbers."""
    given = idle_arguments({"KAJIYA_IDLE_MINUTES": "1"})
    return [re.sub(r"(timeout)=60$", rf"\1={seconds}", re.sub(r"(interval)=60$", r"\1=1", one)) for one in given]


class Server:
    """A server with the rule, as its user's browser talks to it."""

    def __init__(self, home: Path, seconds: int) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}/"
        self.client = httpx.Client(
            base_url=self.url, headers={"Authorization": f"token {TOKEN}"}, timeout=20, trust_env=False
        )
        arguments = [f"--port={port}", "--no-browser", "--allow-root", f"--IdentityProvider.token={TOKEN}"]
        env = {k: v for k, v in os.environ.items() if not k.startswith(("KAJIYA", "JUPYTER"))} | {"HOME": str(home)}
        self.log = home / ".log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", QUICK, *arguments, *quick_arguments(seconds)],
                env=env, cwd=home, stdout=log, stderr=log,
            )  # fmt: skip

    def answers(self) -> bool:
        """Whether it can be asked."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            # Not below /api: what is asked there may count as activity.
            return self.client.get("static/favicon.ico").status_code < 500
        except httpx.TransportError:
            return False

    def session(self, home: Path, source: str) -> None:
        """Opens a kernel that runs a cell, by way of a session file, and leaves."""
        import jupyter_client

        made = self.client.post("api/kernels", json={"name": "python3"}).json()
        runtime = home / ".local/share/jupyter/runtime"
        file = until(lambda: next(runtime.glob(f"kernel-{made['id']}.json"), None), 60, "the kernel's connection file")
        kernel: Any = jupyter_client.BlockingKernelClient(connection_file=str(file))
        kernel.load_connection_file()
        kernel.start_channels()
        kernel.wait_for_ready(timeout=60)
        kernel.execute(source)
        kernel.stop_channels()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / f"家 {uuid.uuid4().hex[:4]}"
    folder.mkdir()
    return folder


def test_a_server_lives_while_a_cell_runs_and_ends_once_nothing_does(home: Path) -> None:
    server = Server(home, 4)
    try:
        until(server.answers, 60, "the server")
        # Three times as long as the rule allows: only the running cell keeps it.
        server.session(home, "import pathlib, time; time.sleep(12); pathlib.Path('done').touch()")
        until(lambda: server.process.poll() is not None, 90, "the end of the idle server")
        assert server.process.returncode == 0
        assert (home / "done").exists(), "it was ended in the middle of the cell"
    finally:
        server.client.close()
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
