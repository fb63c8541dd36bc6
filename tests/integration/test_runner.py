"""The runner on real kernels: what it leaves for each way a notebook can end."""

import json
import os
from pathlib import Path

import nbformat
import pytest

from helpers.attempts import run
from helpers.notebooks import attempt_folder, code, markdown, notebook


def test_success_leaves_log_outcome_and_notebook(tmp_path: Path) -> None:
    book = notebook(
        markdown("# Title"),
        code("C: float = 1.0\nname = 'x'", "parameters"),
        "import os\nprint(C, name)\nprint(os.environ['KAJIYA_JOB'], os.getcwd())",
        "C * 2",
        "",
    )
    ran = run(attempt_folder(tmp_path / "a", book, {"C": 10, "name": "名前 'と\" \n {}"}))
    assert ran.status == 0, ran.log
    assert ran.outcome["ending"] == "succeeded"
    assert [e["type"] for e in ran.events][:3] == ["start", "parameters", "cell_start"]
    assert ran.events[0]["cells_total"] == 4
    assert ran.events[0]["hash_seed"] == "0"
    assert ran.events[-1]["type"] == "end"
    out = ran.notebook
    nbformat.validate(out)
    assert [c["metadata"].get("tags") for c in out["cells"]][2] == ["injected-parameters"]
    assert out["cells"][3]["outputs"][0]["text"] == (
        "10.0 名前 'と\" \n {}\nj0000000000000001 " + str(tmp_path / "a" / "work") + "\n"
    )
    assert out["cells"][4]["outputs"][0]["data"]["text/plain"] == "20.0"
    assert out["metadata"]["papermill"]["parameters"] == {"C": 10, "name": "名前 'と\" \n {}"}
    assert "cell 4 of 4: C * 2" in ran.log
    assert "Succeeded" in ran.log
    left = {path.name for path in (tmp_path / "a").iterdir()}
    assert left == {"input", "run.json", "work", "checkpoint", "events.jsonl", "outcome.json", "log.txt"}


def test_error_stops_and_is_marked(tmp_path: Path) -> None:
    ran = run(attempt_folder(tmp_path / "a", notebook("print('before')", "1/0", "print('after')")))
    assert ran.status == 1
    assert (ran.outcome["ending"], ran.outcome["ename"], ran.outcome["cell"]) == (
        "notebook_error",
        "ZeroDivisionError",
        1,
    )
    assert ran.outcome["reason"]["code"] == "runner.notebook_error"
    assert ran.outcome["reason"]["params"]["cell"] == 2
    assert any("1/0" in line for line in ran.outcome["traceback"])
    out = ran.notebook
    nbformat.validate(out)
    assert [c["cell_type"] for c in out["cells"]] == ["markdown", "code", "markdown", "code", "code"]
    assert out["cells"][3]["outputs"][0]["ename"] == "ZeroDivisionError"
    assert out["cells"][4]["outputs"] == []
    assert "ZeroDivisionError" in ran.log and "\x1b[" not in ran.log


def test_markers_of_an_earlier_run_are_taken_out(tmp_path: Path) -> None:
    first = run(attempt_folder(tmp_path / "a", notebook("1/0")))
    again = run(attempt_folder(tmp_path / "b", first.notebook))
    assert len(again.notebook["cells"]) == len(first.notebook["cells"]) == 3


@pytest.mark.parametrize(
    ("source", "status", "ending", "code_"),
    [
        ("import sys; sys.exit(0)", 0, "succeeded", "runner.left_early"),
        ("import sys; sys.exit()", 0, "succeeded", "runner.left_early"),
        ("exit()", 0, "succeeded", "runner.left_early"),
        ("import sys; sys.exit(1)", 1, "notebook_error", "runner.notebook_error"),
        ("import sys; sys.exit('no data')", 1, "notebook_error", "runner.notebook_error"),
        ("raise KeyboardInterrupt", 1, "notebook_error", "runner.notebook_error"),
    ],
)
def test_leaving_early(tmp_path: Path, source: str, status: int, ending: str, code_: str) -> None:
    ran = run(attempt_folder(tmp_path / "a", notebook(source, "print('never')")))
    assert (ran.status, ran.outcome["ending"], ran.outcome["reason"]["code"]) == (status, ending, code_)
    assert "never" not in ran.texts()


@pytest.mark.parametrize("ask", ["input('C? ')", "import getpass; getpass.getpass()"])
def test_input_is_refused_with_a_sentence(tmp_path: Path, ask: str) -> None:
    ran = run(attempt_folder(tmp_path / "a", notebook(ask)))
    assert (ran.status, ran.outcome["reason"]["code"]) == (1, "runner.input_refused")
    error = ran.notebook["cells"][2]["outputs"][-1]
    assert "tagged `parameters`" in error["evalue"]
    assert "tagged `parameters`" in error["traceback"][-1]


@pytest.mark.parametrize(
    ("how", "name"),
    [("os.kill(os.getpid(), 9)", "SIGKILL"), ("os.kill(os.getpid(), 11)", "SIGSEGV"), ("os._exit(4)", None)],
)
def test_death_of_the_kernel_is_told_apart(tmp_path: Path, how: str, name: str | None) -> None:
    source = f"import os, sys\nprint('last words', flush=True)\nimport time; time.sleep(0.5)\n{how}"
    ran = run(attempt_folder(tmp_path / "a", notebook("x = 1", source, "print('never')")))
    assert (ran.status, ran.outcome["ending"], ran.outcome["cell"]) == (3, "kernel_died", 1)
    params = ran.outcome["reason"]["params"]
    assert params["signal"] == name
    assert (params["exit_code"] == 4) == (name is None)
    assert ("Segmentation fault" in "".join(ran.outcome["traceback"])) == (name == "SIGSEGV")
    assert "last words" in ran.texts() and "never" not in ran.texts()
    assert ran.notebook["cells"][1]["metadata"]["papermill"]["status"] == "completed"
    assert ran.notebook["cells"][-1]["metadata"]["papermill"]["status"] == "pending"


@pytest.mark.parametrize(
    ("book", "parameters", "code_"),
    [
        (notebook("x = 1", kernel="no-such-kernel"), {}, "kernel.unknown"),
        (notebook("x = 1", kernel="../evil 日本\n"), {}, "kernel.unknown"),
        (notebook("x = 1"), {"x": 2}, "parameters.no_cell"),
        (notebook(code("x = 1", "parameters")), {"y": 2}, "parameters.unknown"),
        (notebook(code("x = 1", "parameters")), {"x": "2; import os"}, "parameters.type"),
        (notebook(code("x: int", "parameters"), kernel=None), {}, None),
        (b"PK\x03\x04 no notebook", {}, "notebook.invalid"),
    ],
)
def test_could_not_start(tmp_path: Path, book: dict | bytes, parameters: dict, code_: str | None) -> None:
    ran = run(attempt_folder(tmp_path / "a", book, parameters))
    if code_ is None:
        assert ran.status == 0
        return
    assert (ran.status, ran.outcome["ending"], ran.outcome["reason"]["code"]) == (2, "could_not_start", code_)
    assert "Could not start" in ran.log
    if code_ == "kernel.unknown":
        assert "python3" in ran.log


def test_a_kernel_that_does_not_come_up(tmp_path: Path) -> None:
    spec = tmp_path / "share" / "kernels" / "broken"
    spec.mkdir(parents=True)
    argv = ["/bin/sh", "-c", "echo no ipykernel here >&2; exit 7"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "broken", "language": "python"}))
    ran = run(attempt_folder(tmp_path / "a", notebook("1", kernel="broken")), JUPYTER_PATH=str(tmp_path / "share"))
    assert (ran.status, ran.outcome["reason"]["code"]) == (2, "runner.kernel_not_started")
    assert "exit status 7" in ran.outcome["reason"]["params"]["problem"]
    assert "no ipykernel here" in ran.log


HOSTILE = [
    "'); import os; os._exit(9) #",
    '"""\nraise SystemExit\n"""',
    "\\",
    "%%bash\nrm -rf /",
    "!touch x",
    "a?",
    "{0.__class__}",
    "🦊\u2028\u0000\x1b[31m",
    "日本語 ” ’ ` $HOME",
    "x" * 10_000,
]


def test_values_reach_the_cell_as_values_only(tmp_path: Path) -> None:
    book = notebook(
        code("名前: str = ''\nlist_: list = []\nd: dict = {}\nn: float = 0", "parameters"),
        "import json, math\nprint(json.dumps([名前, list_, d, math.isnan(n)]))",
    )
    given = {"名前": "".join(HOSTILE), "list_": HOSTILE, "d": {text: text for text in HOSTILE}, "n": "NaN"}
    ran = run(attempt_folder(tmp_path / "a", book, given))
    assert ran.status == 0, ran.log
    assert json.loads(ran.texts()) == [given["名前"], given["list_"], given["d"], True]


def test_tags_are_heeded(tmp_path: Path) -> None:
    book = notebook(
        code("1/0", "raises-exception"), code("print('skipped')", "skip-execution"), "print('reached')", "%time 1"
    )
    ran = run(attempt_folder(tmp_path / "a", book))
    assert ran.status == 0
    ends = [e for e in ran.events if e["type"] == "cell_end"]
    assert [e["status"] for e in ends] == ["error", "skipped", "ok", "ok"]
    assert "reached" in ran.texts() and "skipped" not in ran.texts()
    assert ran.notebook["cells"][0]["outputs"][0]["ename"] == "ZeroDivisionError"


def test_files_results_and_environment(tmp_path: Path) -> None:
    sources = """
import os, pathlib
print(pathlib.Path("data/表.csv").read_text(), os.path.exists("link"))
pathlib.Path(os.environ["KAJIYA_RESULTS_DIR"], "out.txt").write_text("kept")
print(sorted(k for k in os.environ if k.startswith("KAJIYA")), hash("x"), os.environ["KAJIYA_TOKEN"])
"""
    outputs = []
    for name in ("a", "b"):
        folder = attempt_folder(tmp_path / name, notebook(sources))
        (folder / "input" / "files" / "data").mkdir()
        (folder / "input" / "files" / "data" / "表.csv").write_text("1,2")
        (folder / "input" / "files" / "link").symlink_to("/etc/passwd")
        (folder / "token").write_text("secret-token")
        ran = run(folder)
        assert ran.status == 0, ran.log
        assert (folder / "work" / "results" / "out.txt").read_text() == "kept"
        outputs.append(ran.texts())
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith("1,2 False\n")
    assert "KAJIYA_CHECKPOINT_DIR" in outputs[0] and "secret-token" in outputs[0]


def test_exit_hooks_of_the_notebook_run(tmp_path: Path) -> None:
    source = "import atexit, pathlib, time\natexit.register(lambda: (time.sleep(1), pathlib.Path('said').touch()))"
    folder = attempt_folder(tmp_path / "a", notebook(source))
    assert run(folder).status == 0
    assert (folder / "work" / "said").exists()


def test_no_process_is_left(tmp_path: Path) -> None:
    folder = attempt_folder(tmp_path / "a", notebook("import os\nprint(os.getpid())"))
    pid = int(run(folder).texts())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_papermill_takes_the_engine_by_name(tmp_path: Path) -> None:
    import papermill

    source, target = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    source.write_text(json.dumps(notebook(code("a = 1", "parameters"), "print(a)")))
    papermill.execute_notebook(source, target, {"a": 5}, engine_name="kajiya", progress_bar=False)
    assert nbformat.read(target, 4).cells[2].outputs[0].text == "5\n"
    source.write_text(json.dumps(notebook("1/0")))
    with pytest.raises(papermill.PapermillExecutionError, match="ZeroDivisionError"):
        papermill.execute_notebook(source, target, engine_name="kajiya", progress_bar=False)
