"""Jobs beside what runs notebooks otherwise: jupyter-scheduler over REST, papermill's command line, the bare script."""

import json
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat

from bench.table import Row, Sample, row
from bench.workshop import ROOT, NotMeasured, Workshop, answers, free_port, wait_for

CELLS = ["total = 0", "for n in range(1000):\n    total += n", "print(total)"]
REPEATS = 7
MANY = 20


def notebook(folder: Path) -> Path:
    """Three trivial cells."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    path = folder / "three.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    (folder / "three.py").write_text("\n".join(CELLS))
    return path


@contextmanager
def kajiya(workshop: Workshop) -> Iterator[Any]:
    """A client of a running Kajiya, whose user's environment is made."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.stack import Stack
    from kajiya import Client

    with Stack(workshop.folder("jobs") / "data", shared=ROOT / "build" / "bench" / "shared") as stack:
        stack.wait_ready("service")
        yield Client(f"{stack.url}services/kajiya", stack.token())


def send(client: Any, path: Path) -> Any:
    from kajiya.types import JobSubmit

    return client.submit(JobSubmit(notebook=path.name, profile="small"), path.read_bytes())


def one_of_ours(client: Any, path: Path) -> float:
    began = time.perf_counter()
    job = send(client, path)
    for _ in client.events(job.id):  # ends with the job
        pass
    took = time.perf_counter() - began
    if client.job(job.id).status != "succeeded":
        raise NotMeasured(f"a job ended as {client.job(job.id).status}")
    client.notebook(job.id)
    return took


@contextmanager
def scheduler(workshop: Workshop, folder: Path) -> Iterator[str]:
    """A Jupyter server with jupyter-scheduler; yields its address."""
    bin_ = workshop.venv("scheduler", "jupyterlab>=4.5,<5", "jupyter-scheduler", "ipykernel", "nbconvert")
    port = free_port()
    arguments = ["--no-browser", f"--port={port}", "--IdentityProvider.token=bench", "--allow-root"]
    with workshop.process(str(bin_ / "jupyter"), "lab", *arguments, cwd=folder, env={"PATH": f"{bin_}:/usr/bin:/bin"}):
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/api?token=bench"), "jupyter-scheduler's server")
        yield f"http://127.0.0.1:{port}"


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"Authorization": "token bench", "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
        return json.loads(answer.read())


def one_of_the_scheduler(url: str) -> float:
    body = {
        "input_uri": "three.ipynb",
        "name": "three",
        "runtime_environment_name": "scheduler",
        "output_formats": ["ipynb"],
    }
    names = [e["name"] for e in ask(f"{url}/scheduler/runtime_environments")]
    began = time.perf_counter()
    job = ask(f"{url}/scheduler/jobs", body | {"runtime_environment_name": names[0]})["job_id"]
    while True:
        status = ask(f"{url}/scheduler/jobs/{job}")["status"]
        if status == "COMPLETED":
            return time.perf_counter() - began
        if status in ("FAILED", "STOPPED"):
            raise NotMeasured(f"jupyter-scheduler's job ended as {status}")
        time.sleep(0.02)


def lean(workshop: Workshop) -> Path:
    return workshop.venv("papermill", "papermill", "ipykernel", "notebook-shim") / "papermill"


@row("one-job")
def one_job(workshop: Workshop) -> Iterator[Row]:
    folder = workshop.folder("one-job")
    path, papermill = notebook(folder), lean(workshop)
    ours, script = Sample(""), Sample("python three.py")
    with kajiya(workshop) as client:
        one_of_ours(client, path)  # makes the environment
        for _ in range(REPEATS):
            ours.values.append(one_of_ours(client, path))
            script.values.append(workshop.run(sys.executable, "three.py", cwd=folder))
    cli = Sample("papermill's command line")
    command = (str(papermill), "three.ipynb", "out.ipynb", "--no-progress-bar")
    for n in range(REPEATS + 1):
        took = workshop.run(*command, cwd=folder, env={"PATH": f"{papermill.parent}:/usr/bin:/bin"})
        if n:
            cli.values.append(took)
    yield Row("one job of 3 trivial cells, submit to stored notebook", "s", 1, False, ours, cli)
    more = statistics.median(ours.values) - statistics.median(script.values)
    budget = Sample("the second that it may cost more than `python script.py`", [1.0])
    yield Row("the same, more than the script", "s", 1, False, Sample("", [more]), budget)
    theirs = Sample("jupyter-scheduler over REST")
    with scheduler(workshop, folder) as url:
        one_of_the_scheduler(url)
        theirs.values = [one_of_the_scheduler(url) for _ in range(REPEATS)]
    yield Row("one job, beside jupyter-scheduler", "s", 5, False, ours, theirs)


@row("queue")
def queue(workshop: Workshop) -> Iterator[Row]:
    folder = workshop.folder("queue")
    path, papermill = notebook(folder), lean(workshop)
    with kajiya(workshop) as client:
        one_of_ours(client, path)
        began = time.perf_counter()
        ids = [send(client, path).id for _ in range(MANY)]
        wait_for(lambda: all(client.job(i).status.final for i in ids), "the end of the queue", 300)
        ours = Sample("", [MANY / (time.perf_counter() - began) * 60])
        if {client.job(i).status for i in ids} != {"succeeded"}:
            raise NotMeasured("a job did not succeed")
    line = f"seq {MANY} | xargs -P2 -I@ {papermill} three.ipynb out-@.ipynb --no-progress-bar"
    took = workshop.run("bash", "-c", line, cwd=folder, env={"PATH": f"{papermill.parent}:/usr/bin:/bin"})
    theirs = Sample("papermill's command line with xargs -P2", [MANY / took * 60])
    yield Row(f"{MANY} queued jobs, two at a time", "jobs a minute", 5, True, ours, theirs)
