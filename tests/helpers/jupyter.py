"""A real Jupyter server with our extension, in front of a stand-in for the service."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from helpers.fake_service import TOKEN, Fake

JUPYTER = "jupyter-token"


@contextmanager
def jupyter(app: str, fake: Fake, home: Path, **variables: str) -> Iterator[str]:
    """Runs `python -m APP` in a home of its own, and gives its address."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KAJIYA", "JUPYTER"))}
    runtime = home / ".runtime"
    env = kept | {
        "HOME": str(home),
        "KAJIYA_API_URL": fake.url,
        "KAJIYA_TOKEN": TOKEN,
        "JUPYTER_RUNTIME_DIR": str(runtime),
        **variables,
    }
    arguments = [
        "--ServerApp.jpserver_extensions={'kajiya_lab': True}",
        f"--IdentityProvider.token={JUPYTER}",
        "--port=0",
        "--no-browser",
        "--allow-root",
        "--ServerApp.base_url=/user/mari/",
    ]
    with (home / ".log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", app, *arguments], env=env, cwd=home, stdout=log, stderr=log)
        try:
            yield _address(process, runtime, home / ".log")
        finally:
            process.terminate()
            process.wait(30)


def _address(process: subprocess.Popen[bytes], runtime: Path, log: Path) -> str:
    deadline = time.monotonic() + 100
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        for file in runtime.glob("jpserver-*.json"):
            try:
                url: str = json.loads(file.read_text())["url"]
                httpx.get(f"{url}api", timeout=5, trust_env=False)
                return url
            except (ValueError, httpx.TransportError):
                pass
        time.sleep(0.1)
