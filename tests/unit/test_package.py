"""What a wheel and an sdist hold: all that runs, nothing that only tests."""

import ast
import subprocess
import tarfile
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from helpers.built import CHECKOUT, build
from kajiya.environment import wheel

PACKAGES = {
    "extension": ("kajiya", "kajiya_lab"),
    "hub_config": ("kajiya_hub",),
    "spawner": ("kajiya_spawner",),
}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    with zipfile.ZipFile(build(tmp_path_factory.mktemp("wheel"))) as archive:
        return set(archive.namelist())


def tracked() -> set[str]:
    """Every file of the packages, as a wheel names it."""
    found: set[str] = set()
    for room, packages in PACKAGES.items():
        for package in packages:
            argv = ["git", "ls-files", "-z", "--cached", f"{room}/{package}"]
            out = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
            files = [Path(name) for name in out.split("\0") if name]
            found |= {file.relative_to(room).as_posix() for file in files if (CHECKOUT / file).exists()}
    return found


def test_every_file_of_the_packages_is_in_the_wheel(names: set[str]) -> None:
    files = tracked()
    assert {Path(name).suffix for name in files} >= {".py", ".html", ".js", ".css", ".svg", ".toml", ".json"}
    assert files - names == set()


@pytest.mark.parametrize(
    "name",
    [
        "kajiya/notebooks/train_digits.ipynb",
        "kajiya/messages/ja/errors.toml",
        "kajiya_hub/jupyterhub_config.py",
        "kajiya_spawner/jupyter/jupyter_server_config.py",
        "kajiya_spawner/jupyter/labconfig/default_setting_overrides.json",
    ],
)
def test_what_is_read_at_run_time_is_where_it_is_looked_for(names: set[str], name: str) -> None:
    assert name in names


def test_the_wheel_holds_no_tests_and_no_leftovers(names: set[str]) -> None:
    tops = {name.split("/", 1)[0] for name in names}
    info = f"kajiya-{distribution('kajiya').version}"
    assert tops == {"kajiya", "kajiya_hub", "kajiya_lab", "kajiya_spawner", f"{info}.dist-info", f"{info}.data"}
    assert [name for name in names if "__pycache__" in name or "/test_" in name or "/." in name] == []


def test_the_wheel_for_environments_holds_what_the_built_one_holds(names: set[str]) -> None:
    own = set(wheel.collect(distribution("kajiya")))
    outside = {name for name in names if ".dist-info/" not in name} - {"kajiya_hub/jupyterhub_config.py"}
    assert outside - own == set()


def test_every_entry_point_leads_to_something() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    targets = [*project["scripts"].values()]
    targets += [target for group in project["entry-points"].values() for target in group.values()]
    assert len(targets) >= 8
    for target in targets:
        module, _, name = target.partition(":")
        places = [CHECKOUT / room / Path(*module.split(".")) for room in PACKAGES]
        found = [p for place in places for p in (place.with_suffix(".py"), place / "__init__.py") if p.exists()]
        assert found, target
        nodes = ast.walk(ast.parse(found[0].read_text("utf-8")))
        names = {getattr(node, "name", None) or getattr(node, "asname", None) for node in nodes}
        assert name in names, target


def test_an_sdist_has_all_that_a_wheel_is_built_from(tmp_path: Path) -> None:
    with tarfile.open(build(tmp_path, "sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "hub_config/jupyterhub_config.py"} <= names
    assert {"notebooks/train_digits.ipynb", "extension/jupyter_server_config.d/kajiya_lab.json"} <= names
    assert not any(name.startswith(("tests", "build", ".venv", "docs")) for name in names)
