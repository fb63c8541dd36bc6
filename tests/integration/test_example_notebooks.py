"""The example notebooks: clean as they are shipped, and doing what they say."""

import json
import os
import subprocess
from pathlib import Path

import nbformat
import pytest

from helpers.attempts import run
from helpers.notebooks import attempt_folder
from helpers.stack import Stack
from kajiya import notebook as notebooks
from kajiya import parameters
from kajiya.environment import make

FOLDER = Path(__file__).parents[2] / "notebooks"
EXAMPLES = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_shipped_clean(path: Path) -> None:
    raw = json.loads(path.read_bytes())
    nbformat.validate(raw)
    assert all(cell.get("outputs", []) == [] and cell.get("execution_count") is None for cell in raw["cells"])
    idents = [cell["id"] for cell in raw["cells"]]
    assert len(set(idents)) == len(idents)
    assert notebooks.kernel_name(raw) == "python3"


def test_there_are_examples() -> None:
    assert [path.name for path in EXAMPLES] == ["train_digits.ipynb", "welcome.ipynb"]


def test_train_digits_declares_its_parameters() -> None:
    _, book = notebooks.read_file(FOLDER / "train_digits.ipynb")
    specs = parameters.declared(book).specs
    assert {s.name: s.type for s in specs} == {
        "C": "float",
        "gamma": "float",
        "test_size": "float",
        "folds": "int",
        "seed": "int",
        "pause": "float",
    }
    assert all(spec.help for spec in specs)


def test_train_digits_trains(tmp_path: Path) -> None:
    folder = attempt_folder(tmp_path / "a", (FOLDER / "train_digits.ipynb").read_bytes(), {"C": 10})
    ran = run(folder, MLFLOW_TRACKING_URI="")
    assert ran.status == 0, ran.log
    kept = json.loads((folder / "work" / "results" / "metrics.json").read_text())
    assert kept["parameters"]["C"] == 10
    assert kept["metrics"]["accuracy"] > 0.98
    assert (folder / "work" / "results" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert "fold 5 of 5" in ran.log and "nothing is logged" in ran.log
    pictures = [o for c in ran.notebook["cells"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 2


def test_train_digits_logs_to_mlflow(tmp_path: Path) -> None:
    folder = attempt_folder(tmp_path / "a", (FOLDER / "train_digits.ipynb").read_bytes(), {"folds": 2})
    uri = f"sqlite:///{tmp_path / 'mlflow.sqlite'}"
    ran = run(folder, MLFLOW_TRACKING_URI=uri)
    assert ran.status == 0, ran.log
    import mlflow

    runs = mlflow.MlflowClient(uri).search_runs(["0"])
    assert [r.data.params["folds"] for r in runs] == ["2"]
    assert runs[0].info.status == "FINISHED"
    assert runs[0].data.metrics["accuracy"] > 0.98


@pytest.mark.stack
@pytest.mark.timeout(400)
def test_the_tour_works_as_it_stands(stack: Stack) -> None:
    name = f"tourist-{os.urandom(3).hex()}"
    stack.invite(name).close()
    token = stack.token(name)
    stack.wait_ready("service")
    home = stack.settings.homes.ensure(name)
    make.ensure(home, stack.settings.environment_base)
    env = home.variables() | {"KAJIYA_API_URL": stack.settings.service_url, "KAJIYA_TOKEN": token, "LANG": "C.UTF-8"}
    program = (
        "import nbclient, nbformat; book = nbformat.read('welcome.ipynb', 4);"
        "nbclient.NotebookClient(book, kernel_name='python3', timeout=240).execute();"
        "nbformat.write(book, 'seen.ipynb')"
    )
    argv = [str(home.python()), "-c", program]
    done = subprocess.run(argv, cwd=home.path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = [c for c in json.loads((home.path / "seen.ipynb").read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    said = json.dumps([c["outputs"] for c in cells])
    assert "succeeded" in said and "results/metrics.json" in said
    assert "ParameterType" in said or "must be" in said
