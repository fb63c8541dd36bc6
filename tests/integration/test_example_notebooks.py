"""The example notebooks: clean as they are shipped, and doing what they say."""

import json
from pathlib import Path

import nbformat
import pytest

from helpers.attempts import run
from helpers.notebooks import attempt_folder
from kajiya import notebook as notebooks
from kajiya import parameters

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
