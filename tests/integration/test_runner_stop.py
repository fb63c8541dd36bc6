"""A runner that is stopped or killed in the middle: what was done is still there, and the ending is true."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil

from helpers.attempts import events_of, executed, finish, run, start, until
from helpers.notebooks import attempt_folder, notebook
from kajiya import notebook as notebooks
from kajiya.runner.assemble import assemble
from kajiya.runner.events import progress, read

LONG = "import time\nfor i in range(10_000):\n    print('step', i, flush=True)\n    time.sleep(0.05)"


def says(folder: Path, text: str) -> bool:
    return any(text in str(e.get("output")) for e in events_of(folder))


def test_sigterm_interrupts_the_cell_and_closes_the_log(tmp_path: Path) -> None:
    folder = attempt_folder(tmp_path / "a", notebook("done = 1\nprint('done')", LONG, "print('never')"))
    process = start(folder)
    until(lambda: says(folder, "step 3"), "the third step")
    at = progress(events_of(folder))
    assert (at.cells_total, at.cells_done, at.current, at.source) == (3, 1, 1, "import time")
    process.terminate()
    ran = finish(process, folder)
    assert ran.status == 143
    assert (ran.outcome["ending"], ran.outcome["reason"]["code"]) == ("stopped", "runner.stopped")
    assert (ran.events[-1]["type"], ran.events[-1]["status"]) == ("end", "stopped")
    out = ran.notebook
    nbformat.validate(out)
    assert out["cells"][0]["outputs"][0]["text"] == "done\n"
    assert "step 3" in out["cells"][1]["outputs"][0]["text"]
    assert out["cells"][1]["outputs"][-1]["ename"] == "KeyboardInterrupt"
    assert out["cells"][2]["outputs"] == []


def test_sigterm_ends_a_cell_that_does_not_listen(tmp_path: Path) -> None:
    stubborn = "import time\nprint('here', flush=True)\nwhile True:\n"
    stubborn += "    try: time.sleep(1)\n    except KeyboardInterrupt: print('no')"
    folder = attempt_folder(tmp_path / "a", notebook(stubborn), limits={"interrupt_seconds": 1, "shutdown_seconds": 1})
    process = start(folder)
    until(lambda: says(folder, "here"), "the cell")
    kernel = psutil.Process(process.pid).children()[0]
    process.terminate()
    ran = finish(process, folder)
    assert (ran.status, ran.outcome["ending"]) == (143, "stopped")
    assert not kernel.is_running()


def test_sigterm_before_the_kernel_is_ready(tmp_path: Path) -> None:
    folder = attempt_folder(tmp_path / "a", notebook("x = 1"))
    process = start(folder)
    until(lambda: (folder / "events.jsonl").exists(), "the log")
    process.terminate()
    ran = finish(process, folder)
    assert ran.status == 143
    assert ran.outcome["ending"] == "stopped"


def test_sigkill_of_the_runner_leaves_a_prefix_that_assembles(tmp_path: Path) -> None:
    folder = attempt_folder(tmp_path / "a", notebook("print('done')", LONG))
    process = start(folder)
    until(lambda: says(folder, "step 3"), "the third step")
    kernels = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for kernel in kernels:  # in a job the supervisor ends what is left of the tree
        kernel.kill()
    assert not (folder / "outcome.json").exists()
    out = executed(folder)
    nbformat.validate(out)
    assert out["cells"][0]["outputs"][0]["text"] == "done\n"
    assert "step 3" in out["cells"][1]["outputs"][0]["text"]
    assert out["cells"][1]["metadata"]["papermill"]["status"] == "running"
    whole = (folder / "events.jsonl").read_bytes()
    book = notebooks.read((folder / "input" / "notebook.ipynb").read_bytes())
    for cut in range(0, len(whole), 7):
        nbformat.validate(assemble(book, read(whole[:cut])))


def test_an_attempt_goes_on_after_a_log_of_an_earlier_try(tmp_path: Path) -> None:
    """A supervisor may start a runner again in the same folder: the log grows, and the last start counts."""
    folder = attempt_folder(tmp_path / "a", notebook("print('one')"))
    assert run(folder).status == 0
    again = run(folder)
    assert again.status == 0
    assert len([e for e in again.events if e["type"] == "start"]) == 2
    assert [o["text"] for o in again.notebook["cells"][0]["outputs"]] == ["one\n"]
    assert progress(again.events).cells_done == 1


def test_a_full_disk_is_said_and_nothing_hangs(tmp_path: Path) -> None:
    source = "import resource, os\nfor i in range(200): print('x' * 5000, flush=True)"
    folder = attempt_folder(tmp_path / "a", notebook(source))
    limited = folder / "limit.py"
    limited.write_text(
        "import resource, runpy, sys, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        f"sys.argv = ['kajiya.runner', {str(folder)!r}]\n"
        "runpy.run_module('kajiya.runner', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, str(limited)], capture_output=True, timeout=90, text=True)
    assert done.returncode == 2, done.stderr
    assert events_of(folder)[-1]["type"] in ("output", "end")  # the end, if it still had room
    assert b'"runner.failed"' in (folder / "outcome.json").read_bytes()
    assert nbformat.validate(executed(folder)) is None
