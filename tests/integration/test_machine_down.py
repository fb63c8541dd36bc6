"""The machine goes down in the middle of everything: every process at once, and the next start tells the truth."""

import json
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

from helpers.stack import Stack
from helpers.wait import until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]
ORPHAN = "98765.4321"  # seconds of a sleep that no other test starts


def everything(data_dir: Path) -> list[psutil.Process]:
    """Every process that knows the data directory, and their supervisors, which do not name it."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values(), process.cwd()]
            if not any(str(data_dir) in word for word in words) or process.status() == psutil.STATUS_ZOMBIE:
                continue
            found[process.pid] = process
            parent = process.parent()
            if parent is not None and "kajiya.machine.supervisor" in parent.cmdline():
                found[parent.pid] = parent
        except psutil.Error:
            continue
    return list(found.values())


def test_jobs_are_tried_again_within_their_budget_and_nothing_is_left(tmp_path: Path, shared: Path) -> None:
    cells = [f"import subprocess, time\nsubprocess.Popen(['sleep', '{ORPHAN}'], start_new_session=True)\ntime.sleep(6)"]
    notebook = nbformat.writes(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])).encode()
    with Stack(tmp_path / "data", shared=shared) as stack:
        stack.wait_ready("service", "mlflow")
        token = stack.token()

        def submit(**spec: Any) -> str:
            body = json.dumps({"notebook": "n.ipynb", "profile": "small", **spec})
            parts = {"spec": (None, body, "application/json"), "notebook": ("n.ipynb", notebook)}
            with stack.api(token) as api:
                made = api.post("services/kajiya/api/jobs", files=parts)
            assert made.status_code == 201, made.text
            return str(made.json()["id"])

        def job(name: str) -> dict[str, Any]:
            with stack.api(token) as api:
                found: dict[str, Any] = api.get(f"services/kajiya/api/jobs/{name}").json()
            return found

        def ended(name: str) -> dict[str, Any]:
            return until(lambda: (j := job(name))["status"] in ("succeeded", "failed", "stopped") and j, 120, "its end")

        with stack.api(token) as api:
            api.post("hub/api/users/admin/server", json={"profile": "small"})
            until(
                lambda: (api.get("hub/api/users/admin").json()["servers"].get("") or {}).get("ready"), 240, "a server"
            )
        again, once = submit(), submit(retries={"preempted": 0})
        for name in (again, once):
            until(lambda name=name: job(name)["progress"] and job(name)["status"] == "running", 120, "a running job")
        until(lambda: len([p for p in everything(stack.data_dir) if ORPHAN in p.cmdline()]) == 2, 60, "the sleeps")

        killed = everything(stack.data_dir)
        assert len(killed) >= 14
        for process in killed:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        assert stack.process is not None
        stack.process.wait(10)
        psutil.wait_procs(killed, 30)
        assert everything(stack.data_dir) == []

        stack.start()
        stack.wait_ready("service")
        lost, saved = ended(once), ended(again)
        assert (lost["status"], lost["attempts"][0]["ending"]) == ("failed", "preempted")
        assert "lost" in lost["reason"]["message"]
        assert saved["status"] == "succeeded"
        assert [attempt["ending"] for attempt in saved["attempts"]] == ["preempted", "succeeded"]
        with stack.api(token) as api:
            assert api.get("hub/api/users/admin").json()["servers"] == {}
        until(lambda: not list((stack.data_dir / "machine" / "held").iterdir()), 30, "all allocations given back")
        assert subprocess.run(["pgrep", "-f", f"sleep {ORPHAN}"], capture_output=True, text=True).stdout == ""
