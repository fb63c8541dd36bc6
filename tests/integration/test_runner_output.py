"""What a notebook shows, through the event log and back into a notebook, next to what nbclient makes of it."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from helpers.attempts import run
from helpers.notebooks import attempt_folder, notebook

WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"

SHOWN = {
    "simple": notebook("x = 1\nprint('a')\nprint('b')", "x + 1", "x"),
    "unicode": notebook("print('日本語 ½ 🦊\u2028')", "'\\u0000 \\x1b[31mred'", "print('a\\rb\\rc\\nd\\r')"),
    "error": notebook("print('x')", "def f(): raise ValueError('名前')\nf()"),
    "rich": notebook(
        "from IPython.display import *\ndisplay(HTML('<b>x</b>'), metadata={'k': 1})\n"
        "display({'application/json': {'a': [1, None]}}, raw=True)\nMarkdown('*x*')",
        "import sys\nprint('out')\nsys.stdout.flush()\nprint('err', file=sys.stderr)\nsys.stderr.flush()",
    ),
    "updates": notebook(
        "from IPython.display import *\nh = display('one', display_id='d')\ndisplay('other')",
        "display('again', display_id='d')",
        "h.update(HTML('two'))",
        "display('three', display_id='d', update=True)",
    ),
    "clear": notebook(
        "from IPython.display import *\nprint(1)\nclear_output()\nprint(2)",
        "print(1)\nclear_output(wait=True)\nprint(2)\nclear_output(wait=True)",
        "display('a', display_id='q')\nclear_output()\ndisplay('b', display_id='q')\nprint('c')",
        "display('z', display_id='q', update=True)\nfor i in range(30): clear_output(wait=True); print(i)",
    ),
    "no output": notebook("", "pass", "None", "import os; _ = os.getpid()"),
}


def nbclient_made(book: dict[str, Any], folder: Path) -> dict[str, Any]:
    folder.mkdir()
    node = nbformat.from_dict(json.loads(json.dumps(book)))
    client = NotebookClient(node, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    try:
        client.execute()
    except CellExecutionError:
        pass
    return json.loads(nbformat.writes(client.nb, 4))


def comparable(book: dict[str, Any]) -> list[Any]:
    """The outputs, with neighbouring texts joined and carriage returns applied, and no marker cells."""
    out = []
    for cell in book["cells"]:
        if cell["cell_type"] != "code":
            continue
        outputs: list[Any] = []
        for output in cell["outputs"]:
            output = json.loads(json.dumps(output))
            for key in ("text", "data"):
                if isinstance(output.get(key), list):
                    output[key] = "".join(output[key])
            for mime, value in output.get("data", {}).items():
                if isinstance(value, list) and not mime.endswith("json"):
                    output["data"][mime] = "".join(value)
            if output.get("traceback"):
                output["traceback"] = len(output["traceback"])
            last = outputs[-1] if outputs else {}
            if "text" in output and last.get("name") == output["name"]:
                last["text"] += output["text"]
            else:
                outputs.append(output)
        for output in outputs:
            if "text" in output:
                lines = output["text"].split("\n")
                output["text"] = "\n".join(line.rstrip("\r").split("\r")[-1] for line in lines)
        out.append(("".join(cell["source"]), cell["execution_count"], outputs))
    return out


@pytest.mark.parametrize("name", SHOWN)
def test_the_notebook_is_what_nbclient_would_have_made(tmp_path: Path, name: str) -> None:
    ran = run(attempt_folder(tmp_path / "a", SHOWN[name]))
    made = comparable(ran.notebook)
    for cell in made:
        for output in cell[2]:
            if "text" in output:
                output["text"] = output["text"].replace("\r", "")
    assert made == comparable(nbclient_made(SHOWN[name], tmp_path / "b"))
    nbformat.validate(ran.notebook)


def test_widgets_are_kept_with_their_state(tmp_path: Path) -> None:
    book = notebook(
        "import ipywidgets as w\ns = w.IntSlider(value=3, description='名')\ns",
        "s.value = 7\nout = w.Output()\nout",
        "with out:\n    print('inside')\nprint('outside')",
    )
    ran = run(attempt_folder(tmp_path / "a", book))
    assert ran.status == 0, ran.log
    out = ran.notebook
    view = out["cells"][0]["outputs"][0]["data"][WIDGET]
    state = out["metadata"]["widgets"][STATE]["state"]
    assert state[view["model_id"]]["state"]["value"] == 7
    assert state[view["model_id"]]["model_name"] == "IntSliderModel"
    inside = state[out["cells"][1]["outputs"][0]["data"][WIDGET]["model_id"]]["state"]["outputs"]
    assert inside[0]["text"] == "inside\n"
    assert out["cells"][2]["outputs"][0]["text"] == "outside\n"
    nbformat.validate(out)
    theirs = nbclient_made(book, tmp_path / "b")["metadata"]["widgets"][STATE]
    ours = out["metadata"]["widgets"][STATE]

    def models(widgets: dict[str, Any]) -> list[str]:
        return sorted(model["model_name"] for model in widgets["state"].values())

    assert models(ours) == models(theirs)
    assert (ours["version_major"], ours["version_minor"]) == (2, 0)


def test_a_cell_shows_no_more_than_its_limit(tmp_path: Path) -> None:
    book = notebook(
        "for i in range(200): print('x' * 10_000)\nprint('last')",
        "from IPython.display import HTML, clear_output\nHTML('y' * 2_000_000)",
        "for i in range(300): clear_output(wait=True); print('z' * 10_000, i)",
        "raise ValueError('e' * 3_000_000)",
    )
    folder = attempt_folder(tmp_path / "a", book, limits={"cell_output_bytes": 1_000_000, "output_bytes": 50_000_000})
    ran = run(folder)
    assert ran.status == 1
    capped = {e["cell"]: e["dropped_bytes"] for e in ran.events if e["type"] == "capped"}
    assert set(capped) == {0, 1}
    assert capped[0] > 900_000 and capped[1] >= 2_000_000
    first = ran.notebook["cells"][1]["outputs"]
    assert first[-1]["name"] == "stderr" and "KAJIYA_RESULTS_DIR" in first[-1]["text"]
    assert 900_000 < len(first[0]["text"]) <= 1_000_000
    assert ran.notebook["cells"][3]["outputs"][0]["text"].endswith("z 299\n")
    assert ran.outcome["ename"] == "ValueError"
    assert (folder / "events.jsonl").stat().st_size < 8_000_000


def test_a_job_shows_no_more_than_its_limit(tmp_path: Path) -> None:
    flood = "from IPython.display import *\nfor i in range(400): display('x' * 10_000)"
    updates = "for i in range(300): display(i * 'y' * 100, display_id='d', update=bool(i))"
    book = notebook(flood, flood, updates, "print('the end')")
    folder = attempt_folder(tmp_path / "a", book, limits={"output_bytes": 1_000_000})
    ran = run(folder)
    assert ran.status == 0
    assert (folder / "events.jsonl").stat().st_size < 1_100_000
    assert "a job may show" in ran.texts()
    assert ran.outcome["ending"] == "succeeded"


def test_a_live_picture_is_no_flood(tmp_path: Path) -> None:
    source = "from IPython.display import *\nimport time\nfor i in range(300):\n"
    source += "    clear_output(wait=True); display(HTML(f'{i}' + 'x' * 10_000)); time.sleep(0.002)"
    folder = attempt_folder(tmp_path / "a", notebook(source))
    ran = run(folder)
    (output,) = ran.notebook["cells"][0]["outputs"]
    assert output["data"]["text/html"].startswith("299x")
    assert (folder / "events.jsonl").stat().st_size < 3_000_000 / 4


def test_no_message_of_a_fast_kernel_is_lost(tmp_path: Path) -> None:
    ran = run(attempt_folder(tmp_path / "a", notebook("for i in range(5000): display(i)")))
    shown = [o["data"]["text/plain"] for o in ran.notebook["cells"][0]["outputs"]]
    assert shown == [str(i) for i in range(5000)]


def test_raw_bytes_and_surrogates_do_no_harm(tmp_path: Path) -> None:
    book = notebook(
        "import os, time\n"
        "os.write(1, b'caf\\xe9 \\xff\\n')\nos.system('printf \"\\\\377 child\\\\n\"')\ntime.sleep(0.3)",
        "print('lone', '\\ud800')",
        "from IPython.display import display\n"
        "display({'application/json': {'n': 10**30, 'x': float('nan')}}, raw=True)",
        "print('reached')",
    )
    ran = run(attempt_folder(tmp_path / "a", book))
    assert "caf" in ran.notebook["cells"][0]["outputs"][0]["text"]
    assert "child" in ran.notebook["cells"][0]["outputs"][0]["text"]
    assert "reached" in ran.texts() and ran.log.count("child") == 1
    json.dumps(ran.notebook).encode()
    assert ran.status in (0, 1), ran.log


def test_what_a_thread_prints_later_is_shown_once(tmp_path: Path) -> None:
    book = notebook(
        "import threading, time\ndef work():\n    time.sleep(0.5)\n    print('late')\n"
        "t = threading.Thread(target=work); t.start()",
        "t.join()\ntime.sleep(0.4)",
    )
    assert run(attempt_folder(tmp_path / "a", book)).texts() == "late\n"


def test_memory_stays_flat_while_output_flows(tmp_path: Path) -> None:
    """The runner keeps no output: its peak grows by far less than what went through it."""
    peaks = []
    for name, times in (("small", 1), ("large", 60)):
        source = (
            f"from IPython.display import HTML, clear_output\nfor i in range({times}): display(HTML('x' * 1_000_000))"
        )
        peak = "import os\nlines = open(f'/proc/{os.getppid()}/status').read().split('\\n')\n"
        peak += "print([l for l in lines if l.startswith('VmHWM')][0].split()[1])"
        folder = attempt_folder(tmp_path / name, notebook(source, peak), limits={"cell_output_bytes": 100_000_000})
        ran = run(folder)
        assert ran.status == 0, ran.log
        peaks.append(int(ran.notebook["cells"][1]["outputs"][0]["text"]) * 1024)
    assert (tmp_path / "large" / "events.jsonl").stat().st_size > 60_000_000
    assert peaks[1] - peaks[0] < 40_000_000
