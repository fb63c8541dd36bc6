"""The README's tutorial, as its reader would do it: a real browser, real processes, the README's own words."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from helpers.person import Person
from helpers.stack import BIN, Stack
from helpers.wait import until

README = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
FINAL = {"succeeded", "failed", "stopped"}


def tutorial(place: str) -> list[str]:
    """The README's blocks for one place: a cell, a terminal, outside."""
    return re.findall(rf"<!-- tutorial: {place} -->\n```\w+\n(.*?)\n```", README, re.DOTALL)


@pytest.fixture(scope="module")
def mika(chromium: Browser, stack: Stack) -> Iterator[Person]:
    one = Person(chromium, stack, "mika", "en", "light")
    yield one
    one.close()


@pytest.fixture(scope="module")
def token(mika: Person, stack: Stack) -> str:
    return stack.token("mika")


@pytest.fixture
def outside(stack: Stack, token: str, tmp_path: Path) -> Any:
    """A terminal on another machine: only the address, a token, and a copy of the notebook."""
    home = stack.settings.homes.of("mika").path
    (tmp_path / "train_digits.ipynb").write_bytes((home / "train_digits.ipynb").read_bytes())
    env = {k: v for k, v in os.environ.items() if not k.startswith(("KAJIYA_", "JUPYTER"))}
    env |= {"KAJIYA_API_URL": f"{stack.url}services/kajiya", "KAJIYA_TOKEN": token, "PATH": f"{BIN}:{env['PATH']}"}

    def run(line: str, status: int = 0) -> str:
        argv = shlex.split(line)
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    return run


def show(outside: Any, job: str) -> dict[str, Any]:
    return json.loads(outside(f"kajiya show {job} --json"))


def submit(outside: Any, *more: str) -> str:
    return str(json.loads(outside(f"kajiya submit train_digits.ipynb --profile small --json {' '.join(more)}"))["id"])


def test_sign_in_and_pick_a_profile(mika: Person, stack: Stack) -> None:
    stack.wait_ready("service")
    mika.join()
    mika.go("hub/spawn")
    cards = mika.page.get_by_role("radio")
    expect(cards.first).to_be_checked()
    expect(mika.page.get_by_text(re.compile("free")).first).to_be_visible()
    mika.shot("picker")
    mika.pick("Small")
    mika.page.wait_for_url(re.compile("spawn-pending|/user/"))
    if "spawn-pending" in mika.page.url:
        expect(mika.page.get_by_role("list").filter(has_text="asked for")).to_be_visible()
        mika.shot("progress")
    mika.wait_for_lab()
    expect(mika.page.get_by_role("listitem", name=re.compile("train_digits.ipynb"))).to_be_visible()


def test_submit_from_a_cell_and_watch(mika: Person, outside: Any) -> None:
    (source,) = tutorial("cell")
    mika.open_notebook("tutorial.ipynb", source)
    cell = mika.run_cell()
    widget = cell.locator(".kajiya-card")
    expect(widget).to_be_visible(timeout=60_000)
    expect(widget.get_by_role("progressbar")).to_be_visible()
    expect(widget.locator(".kajiya-pill")).to_have_text(re.compile("running|succeeded"), timeout=60_000)
    expect(widget.locator(".kajiya-text").first).to_contain_text(re.compile(r"fold \d of 5|kept:"), timeout=90_000)
    widget.scroll_into_view_if_needed()
    mika.shot("job-widget")
    expect(widget.locator(".kajiya-pill")).to_have_text("succeeded", timeout=180_000)
    number = widget.locator(".kajiya-id").inner_text()
    job = show(outside, number)
    assert job["status"] == "succeeded" and job["owner"] == "mika" and job["parameters"] == {"C": 10}
    assert job["environment"]["kind"] == "as_is" and job["environment"]["note"]
    assert job["progress"]["cells_done"] == job["progress"]["cells_total"] > 3
    assert mika.faults == []


def test_plain_mlflow_code_in_the_job_is_attributed_to_its_user(mika: Person, stack: Stack, token: str) -> None:
    stack.wait_ready("mlflow")
    with stack.api(token) as client:
        found = client.post("services/mlflow/api/2.0/mlflow/runs/search", json={"experiment_ids": ["0"]}).json()["runs"]
    assert {run["info"]["user_id"] for run in found} == {"mika"}
    params = {p["key"]: p["value"] for p in found[0]["data"]["params"]}
    assert params["C"] in {"10", "10.0"} and {m["key"] for m in found[0]["data"]["metrics"]} >= {"accuracy"}
    mika.go("services/mlflow/")
    expect(mika.page.get_by_text(re.compile("Experiments")).first).to_be_visible(timeout=60_000)


def test_submit_from_a_terminal(mika: Person, stack: Stack) -> None:
    home = stack.settings.homes.of("mika").path
    line = tutorial("terminal")[0]
    mika.go("user/mika/lab")
    mika.wait_for_lab()
    mika.terminal()
    for _ in range(20):  # what is typed before the shell is there, or while JupyterLab takes the focus, is lost
        mika.page.locator(".jp-Terminal:visible .xterm-screen").last.click()
        mika.page.keyboard.press("Control+u")
        mika.page.keyboard.type(f"{line} > said.txt 2>&1; echo status $? > ended.txt\n", delay=5)
        mika.page.wait_for_timeout(3000)
        if (home / "said.txt").exists():
            break
    until((home / "ended.txt").exists, 240, "the end of the command in the terminal")
    assert (home / "ended.txt").read_text() == "status 0\n", (home / "said.txt").read_text()
    assert "succeeded" in (home / "said.txt").read_text()


def test_submit_from_outside(outside: Any) -> None:
    block = tutorial("outside")[0].splitlines()
    assert [line.split("=")[0] for line in block[:2]] == ["export KAJIYA_API_URL", "export KAJIYA_TOKEN"]
    assert "succeeded" in outside(block[2])


def test_a_job_survives_browser_server_and_service(
    mika: Person, stack: Stack, outside: Any, token: str, tmp_path: Path
) -> None:
    job = submit(outside, "-p", "pause=1.0")
    until(lambda: show(outside, job)["status"] == "running", 90, "the job to run")
    mika.stop_server()
    mika.page.close()
    stack.kill("hub")
    stack.kill("service")
    stack.wait_ready("service", "hub")
    assert "succeeded" in outside(f"kajiya wait {job}")
    found = show(outside, job)
    assert found["status"] == "succeeded" and len(found["attempts"]) == 1
    for line in tutorial("terminal")[1].splitlines():
        assert outside(line.replace("JOB", job))
    executed = json.loads((tmp_path / "executed.ipynb").read_text("utf-8"))
    assert [c for c in executed["cells"] if c["cell_type"] == "code"][-1]["outputs"]
    assert "results/metrics.json" in {r["path"] for r in found["results"]}
    mika.page = mika.context.new_page()


def test_stop_run_again_and_see_why_one_waits(mika: Person, outside: Any, stack: Stack) -> None:
    jobs = [submit(outside, "-p", "pause=30") for _ in range(4)]
    cpus = json.loads(outside("kajiya capacity --json"))["cpu"]["total"]
    jobs += [submit(outside, "-p", "pause=30") for _ in range(int(cpus))]
    waiting = jobs[-1]
    until(lambda: show(outside, waiting)["reason"], 60, "a reason for the last job to wait")
    found = show(outside, waiting)
    assert found["status"] == "queued" and found["position"] >= 1
    assert len(found["reason"]["message"]) > 20
    stop, again, look = tutorial("terminal")[2].splitlines()
    until(lambda: show(outside, jobs[0])["status"] == "running", 90, "the first job to run")
    outside(stop.replace("JOB", jobs[0]))
    until(lambda: show(outside, jobs[0])["status"] == "stopped", 60, "the job to stop")
    for job in jobs[1:]:
        outside(f"kajiya stop {job}")
    until(lambda: all(show(outside, j)["status"] == "stopped" for j in jobs), 90, "all to stop")
    more = json.loads(outside(again.replace("JOB", jobs[0]) + " -p pause=0 --json"))
    assert more["parameters"] == {"C": 100, "pause": 0} and more["again_of"] == jobs[0]
    assert more["id"] in outside(look.replace("JOB", more["id"]))
    outside(f"kajiya wait {more['id']}")
    assert show(outside, more["id"])["status"] == "succeeded"


def test_the_last_choice_is_preselected(mika: Person) -> None:
    mika.start_server("Medium")
    mika.stop_server()
    mika.go("hub/spawn")
    expect(mika.page.get_by_role("radio", name="Medium")).to_be_checked()
