"""The command line as a person and as a program use it: real processes against a service on a real socket."""

import json
import os
import pty
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_service import NOTEBOOK, TOKEN, Fake, job, result

ID = "j0000000000000001"


@pytest.fixture
def fake():
    with Fake() as fake:
        yield fake


@pytest.fixture
def env(fake: Fake, tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KAJIYA", "JUPYTER", "LC_", "XDG"))}
    return kept | {"KAJIYA_API_URL": fake.url, "KAJIYA_TOKEN": TOKEN, "HOME": str(tmp_path), "LANG": "C.UTF-8"}


@pytest.fixture
def run(env: dict[str, str], tmp_path: Path):
    def run(*arguments: str, input: str | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "import sys; from kajiya.cli import main; sys.exit(main())", *arguments],
            env=env | changes,
            cwd=tmp_path,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def book(tmp_path: Path) -> str:
    (tmp_path / "train_digits.ipynb").write_text(json.dumps(NOTEBOOK), "utf-8")
    return "train_digits.ipynb"


def test_submit_types_parameters_and_sends_what_was_named(run: Any, fake: Fake, book: str, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.csv").write_text("1")
    done = run(
        *("submit", book, "-p", "C=10", "-r", "name=007", "-f", "data", "--result", "out/*"),
        *("--option", "gpus=2", "--name", "十", "--key", "k1", "--time-limit", "60", "--profile", "small", "--json"),
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    got = fake.received[answer["id"]]
    assert got["spec"]["parameters"] == {"C": 10.0, "name": "007"}
    assert got["spec"]["options"] == {"gpus": "2"} and got["spec"]["time_limit"] == 60 and got["spec"]["name"] == "十"
    assert got["files"] == {"data/a.csv": b"1"}
    again = run("submit", book, "--key", "k1", "--json")
    assert json.loads(again.stdout)["id"] == answer["id"]


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["submit", "missing.ipynb"], 2, "notebook.unreadable"),
        (["submit", "train_digits.ipynb", "-p", "x=1"], 2, "parameters.unknown"),
        (["submit", "train_digits.ipynb", "-p", "C"], 2, "invalid.request"),
        (["submit", "train_digits.ipynb", "--option", "gpus"], 2, "invalid.request"),
        (["submit", "train_digits.ipynb", "-f", "no*.csv"], 2, "files.missing"),
        (["submit"], 2, "cli.usage"),
        (["jobs", "--status", "merry"], 2, "invalid.request"),
        (["jobs", "--colour"], 2, "cli.usage"),
        (["show", "jnothing"], 3, "job.not_found"),
        (["notebook", ID], 3, "notebook.not_ready"),
        (["delete", ID], 3, "job.not_ended"),
        (["wait", ID, "--timeout", "0.5"], 5, "job.wait_timeout"),
    ],
)
def test_errors_have_a_status_a_sentence_and_with_json_the_error_body(
    run: Any, fake: Fake, book: str, arguments: list[str], status: int, code: str
):
    fake.put(job(ID))
    as_json = run(*arguments, "--json")
    assert as_json.returncode == status, as_json.stdout + as_json.stderr
    assert json.loads(as_json.stdout)["error"]["code"] == code
    plain = run(*arguments)
    assert plain.returncode == status and plain.stdout == "" and "Traceback" not in plain.stderr
    assert plain.stderr.strip()


def test_a_service_that_is_away_is_exit_status_4(run: Any, fake: Fake):
    fake.kill()
    done = run("whoami")
    assert done.returncode == 4 and fake.url in done.stderr
    assert run("whoami", KAJIYA_API_URL="").returncode == 4


def test_wait_is_success_only_if_the_job_succeeded(run: Any, fake: Fake):
    fake.put(job(ID, status="succeeded", results=[result("out/a.csv", b"1")]))
    done = run("wait", ID)
    assert done.returncode == 0 and "out/a.csv" in done.stdout
    fake.change(ID, status="failed", reason={"code": "x", "message": "Cell 2 raised ValueError."})
    done = run("wait", ID)
    assert done.returncode == 1 and "Cell 2 raised ValueError." in done.stdout
    done = run("wait", ID, "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["status"] == "failed"


def follow(env: dict[str, str], tmp_path: Path, *arguments: str, **kwargs: Any) -> subprocess.Popen[str]:
    code = "import sys; from kajiya.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=env,
        cwd=tmp_path,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | kwargs,
    )


def streams(fake: Fake) -> int:
    return sum(path.endswith("/events") for _, path, _ in list(fake.requests))


def until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_waiting_says_why_and_where_in_the_queue(env: dict[str, str], fake: Fake, tmp_path: Path):
    reason = {"code": "capacity.none", "message": "There is not enough memory free now."}
    fake.put(job(ID, reason=reason, position=3))
    process = follow(env, tmp_path, "wait", ID)
    until(lambda: streams(fake))
    time.sleep(0.3)
    progress = {"cells_total": 5, "cells_done": 1, "current": 1, "source": "model.fit(X)"}
    fake.change(ID, status="running", position=None, reason=None, progress=progress)
    time.sleep(0.3)
    fake.change(ID, status="succeeded")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "succeeded" in out
    assert "There is not enough memory free now. It is number 3 in the queue." in err
    assert "Cell 2 of 5 is running." in err


def test_control_c_says_that_the_job_goes_on(env: dict[str, str], fake: Fake, tmp_path: Path):
    fake.put(job(ID, status="running"))
    process = follow(env, tmp_path, "wait", ID)
    until(lambda: streams(fake))
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"kajiya stop {ID}" in err and "Traceback" not in err
    assert fake.jobs[ID]["status"] == "running"


def test_a_terminal_gets_a_bar_with_the_current_cell(env: dict[str, str], fake: Fake, tmp_path: Path):
    progress = {"cells_total": 5, "cells_done": 2, "current": 2, "source": "model.fit([bold]X[/bold])"}
    fake.put(job(ID, status="running", progress=progress))
    ours, theirs = pty.openpty()
    env = env | {"TERM": "xterm-256color", "COLUMNS": "120"}
    process = follow(env, tmp_path, "wait", ID, stderr=theirs, stdout=theirs)
    os.close(theirs)
    until(lambda: streams(fake))
    time.sleep(0.5)
    fake.change(ID, status="succeeded")
    shown = b""
    with pytest.raises(OSError):  # the terminal's other end is closed
        while True:
            shown += os.read(ours, 65536)
    assert process.wait(30) == 0
    text = shown.decode()
    assert "2/5" in text and "[bold]X[/bold]" in text and "running" in text


def test_waiting_and_logs_ride_over_a_killed_service(env: dict[str, str], fake: Fake, tmp_path: Path):
    fake.put(job(ID, status="running", attempts=[{"number": 1, "status": "running"}]))
    fake.logs[ID] = b"one\n"
    waiting = follow(env, tmp_path, "wait", ID)
    reading = follow(env, tmp_path, "log", "-f", ID)
    until(lambda: streams(fake) and any("/log" in path for _, path, _ in list(fake.requests)))
    time.sleep(0.3)
    fake.kill()
    time.sleep(0.7)
    fake.logs[ID] += "二\n".encode()
    fake.change(ID, status="succeeded")
    fake.start()
    out, err = waiting.communicate(timeout=40)
    assert waiting.returncode == 0 and "Trying again" in err
    out, err = reading.communicate(timeout=40)
    assert reading.returncode == 0 and out == "one\n二\n"


def test_lists_are_tables_and_an_empty_one_says_what_to_do(run: Any, fake: Fake):
    empty = run("jobs")
    assert empty.returncode == 0 and "kajiya submit" in empty.stderr
    fake.put(job(ID, name="学習\x1b[31m", status="queued", position=2))
    fake.put(job("j2", name="x" * 200, status="succeeded"))
    done = run("jobs")
    assert "学習" in done.stdout and "\x1b" not in done.stdout and "#2" in done.stdout
    assert [j["id"] for j in json.loads(run("jobs", "--json", "-s", "queued").stdout)["items"]] == [ID]
    assert "--cursor 1" in run("jobs", "-n", "1").stderr


def test_logs_notebooks_and_results_come_out_as_they_are(run: Any, fake: Fake, tmp_path: Path):
    kept = {"out/精度.csv": b"1,2\n"}
    fake.put(job(ID, status="succeeded", results=[result(k, v) for k, v in kept.items()]))
    fake.kept[ID] = kept
    fake.logs[ID] = "出力\n".encode()
    assert run("log", ID).stdout == "出力\n"
    assert json.loads(run("notebook", ID, "-o", "-").stdout) == NOTEBOOK
    assert run("notebook", ID).returncode == 0 and run("notebook", ID).returncode == 3
    assert "out/精度.csv" in run("results", ID).stdout
    assert run("download", ID).returncode == 0
    assert (tmp_path / ID / "out/精度.csv").read_bytes() == b"1,2\n"
    assert run("download", ID).returncode == 3 and run("download", ID, "--force").returncode == 0


def test_again_changes_only_what_was_given(run: Any, fake: Fake):
    fake.put(job(ID, status="failed", parameters={"C": 1.0, "name": "n"}))
    done = run("again", ID, "-p", "C=3", "--json")
    assert json.loads(done.stdout)["parameters"] == {"C": 3.0, "name": "n"}
    assert json.loads(run("stop", json.loads(done.stdout)["id"], "--json").stdout)["status"] == "stopped"


@pytest.mark.parametrize("command", ["profiles", "capacity", "whoami"])
def test_the_rest_prints_text_and_json(run: Any, command: str):
    assert run(command).stdout.strip()
    assert json.loads(run(command, "--json").stdout)


def test_login_takes_the_token_from_standard_input_and_keeps_it_private(run: Any, fake: Fake, tmp_path: Path):
    clean = {"KAJIYA_API_URL": "", "KAJIYA_TOKEN": ""}
    hub = fake.url.removesuffix("/services/kajiya")
    wrong = run("login", hub, input="wrong\n", **clean)
    file = tmp_path / ".config/kajiya/credentials.json"
    assert wrong.returncode == 3 and not file.exists()
    done = run("login", f"{hub}/hub/home", input=f"{TOKEN}\n", **clean)
    assert done.returncode == 0 and TOKEN not in done.stdout + done.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(run("whoami", "--json", **clean).stdout)["name"] == "mari"
    assert run("logout", **clean).returncode == 0 and not file.exists()


def test_japanese_where_the_locale_says_so(run: Any, fake: Fake):
    fake.put(job(ID, position=2))
    assert "待機中" in run("show", ID, LANG="ja_JP.UTF-8").stdout
    assert "ジョブ" in run("--help", KAJIYA_LANG="ja").stdout
    assert "ありません" in run("show", "jx", KAJIYA_LANG="ja").stderr or "no job" in run("show", "jx").stderr


def test_help_needs_no_http_client():
    code = "import sys, kajiya.cli; sys.exit(any(m in sys.modules for m in ('httpx', 'pydantic', 'nbformat')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
