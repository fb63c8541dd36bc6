"""The service as a process: killed in the middle of a job, stopped with open streams, started again; real jobs run."""

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.notebooks import code, data, notebook
from helpers.running import ENVIRONMENT, Running
from helpers.wait import until
from kajiya.connection import Event
from kajiya.errors import NotAuthenticated
from kajiya.types import JobSubmit

STEPS = 12
BOOK = notebook(
    code("pause = 0.1\ngate = ''", "parameters"),
    code(
        "import pathlib, time\n"
        f"for n in range({STEPS}):\n"
        "    print('step', n, flush=True)\n"
        "    time.sleep(pause)\n"
        "while gate and not pathlib.Path(gate).exists():\n"
        "    time.sleep(0.05)"
    ),
    code("pathlib.Path('results').mkdir(exist_ok=True)\npathlib.Path('results/結果.txt').write_text('済')"),
)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path / "data")
    try:
        made.start()
        yield made
    finally:
        made.close()


def spec(**parameters: object) -> JobSubmit:
    return JobSubmit(notebook="学習.ipynb", environment=ENVIRONMENT, parameters=dict(parameters))


def texts(events: list[Event]) -> str:
    outputs = [e.data["output"] for e in events if e.kind == "cell" and e.data["type"] == "output"]
    return "".join(o["text"] for o in outputs if o["output_type"] == "stream")


@pytest.mark.timeout(240)
def test_a_service_killed_in_the_middle_loses_nothing(running: Running, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    client = running.client()
    job = client.submit(spec(gate=str(gate)), data(BOOK), {}, key="once")
    seen: list[Event] = []

    def follow() -> None:
        for event in running.client().events(job.id):
            seen.append(event)

    follower = threading.Thread(target=follow)
    follower.start()
    for killed_at in ("step 1\n", f"step {STEPS - 1}\n"):
        until(lambda text=killed_at: text in texts(seen), 90, killed_at)
        assert running.end(signal.SIGKILL) == -signal.SIGKILL
        running.start()
    assert client.job(job.id).status == "running"
    # Sent again after the crash, the same submit is the same job.
    assert client.submit(spec(gate=str(gate)), data(BOOK), {}, key="once").id == job.id
    gate.touch()
    follower.join(90)
    assert not follower.is_alive()
    assert texts(seen) == "".join(f"step {n}\n" for n in range(STEPS))
    places = [e.id for e in seen if e.kind == "cell"]
    assert places == sorted(set(places), key=lambda p: [int(n) for n in p.split(":")])
    written = (running.data.jobs / job.id[-2:] / job.id / "attempts/1/events.jsonl").read_bytes().splitlines()
    assert [e.data for e in seen if e.kind == "cell"] == [json.loads(line) for line in written]
    done = client.job(job.id)
    assert (done.status, len(done.attempts)) == ("succeeded", 1)
    assert done.progress.cells_done == done.progress.cells_total == 4  # papermill's own cell with the parameters too
    made = json.loads(client.notebook(job.id))
    assert "".join(made["cells"][-2]["outputs"][0]["text"]).startswith("step 0\n")
    assert [(r.path, r.size) for r in client.results(job.id)] == [("results/結果.txt", 3)]
    assert client.jobs().total == 1


@pytest.mark.timeout(240)
def test_a_signal_ends_the_service_at_once_and_no_job(running: Running, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    client = running.client()
    job = client.submit(spec(gate=str(gate), pause=0), data(BOOK), {})
    until(lambda: client.job(job.id).status == "running", 60, "the start")
    streams = [client.events(job.id), running.client().changes()]
    for stream in streams:
        next(stream)
    assert running.end(signal.SIGTERM) == 0
    gate.touch()
    running.start()
    assert [e.kind for e in streams[0]][-1] == "end"
    assert client.job(job.id).status == "succeeded"
    lines = [json.loads(line) for line in running.log.read_text("utf-8").splitlines()]
    assert "the service has ended" in [line["message"] for line in lines]
    assert not any("t-hanako" in json.dumps(line) for line in lines)


@pytest.mark.timeout(120)
def test_a_token_revoked_at_the_hub_is_refused_soon(running: Running) -> None:
    client = running.client("t-taro", patience=0.5)
    assert client.whoami().name == "太郎"
    del running.hub.users["t-taro"]

    def refused() -> bool:
        try:
            client.whoami()
        except NotAuthenticated:
            return True
        return False

    until(refused, 30, "the refusal")
    health = running.client().health()
    assert health.parts["hub"] == "ok"
    running.hub.close()
    until(lambda: running.client().health().parts["hub"] != "ok", 30, "the news of the Hub's end")
    assert running.client().health().ok
