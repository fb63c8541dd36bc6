"""Kajiya as it is installed from its wheel, far from any checkout: started, signed in to, a job run by its own CLI."""

import json
import os
import re
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from helpers.built import CHECKOUT, build, installed
from helpers.stack import Stack
from helpers.wait import until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]


def test_the_wheel_runs_the_whole_path(tmp_path: Path, shared: Path) -> None:
    programs = installed(build(tmp_path / "dist"), tmp_path / "venv")
    place = subprocess.run(
        [programs / "python", "-c", "import kajiya_hub, kajiya; print(kajiya.__file__, kajiya_hub.__file__)"],
        cwd="/", check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert str(CHECKOUT) not in place
    # What was fetched is shared; the base is its own, for the wheel in it is another than that of the checkout.
    own = tmp_path / "shared"
    own.mkdir()
    (shared / "cache").mkdir(exist_ok=True)
    (own / "cache").symlink_to(shared / "cache")
    with Stack(tmp_path / "data", shared=own, command=(str(programs / "kajiya-hub"),)) as stack:
        stack.wait_ready("service", "mlflow")
        with closing(stack.browser()) as client:
            picker = client.get("hub/spawn").text
            assert 'type="radio"' in picker
            own_files = re.findall(r'(?:href|src)="(/[^"]*(?:kajiya\.css|picker\.js)[^"]*)"', picker)
            assert len(own_files) >= 2
            assert {client.get(stack.url.rstrip("/") + place).status_code for place in own_files} == {200}
        token = stack.token()
        with stack.api(token) as api:
            api.post("hub/api/users/admin/server", json={"profile": "small"})
            until(
                lambda: (api.get("hub/api/users/admin").json()["servers"].get("") or {}).get("ready"), 240, "a server"
            )
            contents = api.get("user/admin/api/contents").json()["content"]
            assert {"train_digits.ipynb", "welcome.ipynb"} <= {entry["name"] for entry in contents}
            assert api.get("user/admin/kajiya/api/whoami").json()["name"] == "admin"
        notebook = stack.settings.homes.of("admin").path / "train_digits.ipynb"
        argv = [programs / "kajiya", "submit", notebook, "-p", "C=10", "--profile", "small", "--wait", "--json"]
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KAJIYA_TOKEN": token}
        env |= {"KAJIYA_API_URL": f"{stack.url}services/kajiya", "KAJIYA_LANG": "en"}
        done = subprocess.run(argv, cwd="/", env=env, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["status"] == "succeeded"
