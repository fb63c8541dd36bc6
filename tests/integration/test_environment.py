"""A real environment made by uv: works after the rename, whole or not at all, and left alone when nothing changed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from helpers.wait import until
from kajiya.environment import make, uv, wheel
from kajiya.environment.base import Base, prepare
from kajiya.environment.clone import clone
from kajiya.errors import DiskFull, PackagesUnavailable
from kajiya.machine.homes import Home, Homes
from kajiya.types import Reason

pytestmark = pytest.mark.timeout(600)
USER = "山田 花子"


@pytest.fixture(scope="module")
def home(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Homes(tmp_path_factory.mktemp("homes") / "homes").ensure(USER)
    make.ensure(home, base)
    return home


def run(home: Home, *argv: str, check: bool = True, **env: str) -> str:
    """What a command says in the user's environment."""
    clean = {"LANG": "C.UTF-8"} | home.variables(path="/usr/bin:/bin") | env
    done = subprocess.run(argv, env=clean, cwd=home.path, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def leftovers(home: Home) -> list[str]:
    return [p.name for p in home.environment().parent.glob(".new-*")]


def test_it_has_what_notebooks_need_and_nothing_of_the_hub(home: Home) -> None:
    code = "import kajiya, ipykernel, papermill, sklearn, pandas, matplotlib, anywidget, pip, mlflow as m"
    code += "; print(m.__version__)"
    assert run(home, "python", "-c", code).strip().splitlines()[-1] == version("mlflow")
    for absent in ("jupyterhub", "jupyterlab", "alembic", "rfc3987_syntax"):
        assert "ModuleNotFoundError" in run(home, "python", "-c", f"import {absent}", check=False)
    assert "No broken requirements" in run(home, "pip", "check")


def test_scripts_and_activation_work_where_it_lies_now(home: Home) -> None:
    env = home.environment()
    assert str(env) in run(home, "pip", "--version")
    assert run(home, "papermill", "--version")
    shell = f"source '{env}/bin/activate' && command -v python && echo $VIRTUAL_ENV"
    assert run(home, "bash", "-c", shell, PATH="/usr/bin:/bin").split() == [f"{env}/bin/python", str(env)]
    for script in (env / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            assert b".new-" not in script.read_bytes(), script


def test_a_second_ensure_changes_nothing(home: Home, base: Base) -> None:
    def state() -> list[tuple[str, int, int]]:
        files = sorted(p for p in home.kajiya.rglob("*") if p.name != ".mutex")
        return [(str(p), p.lstat().st_mtime_ns, p.lstat().st_ino) for p in files]

    before, told = state(), list[Reason]()
    make.ensure(home, base, told.append)
    assert state() == before
    assert told == []


def test_the_kernel_runs_in_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = json.loads((home.jupyter_path / "kernels" / "python3" / "kernel.json").read_text())
    assert spec["argv"][0] == str(home.python())
    monkeypatch.setenv("JUPYTER_PATH", str(home.jupyter_path))
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import sys, os; print(sys.prefix); print(os.environ['PATH'].split(':')[0])")]
    )
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    assert notebook.cells[0].outputs[0].text.split("\n")[:2] == [
        str(home.environment()),
        str(home.environment() / "bin"),
    ]


def test_an_install_stays_in_this_home(home: Home, base: Base, tmp_path: Path) -> None:
    other = Homes(home.path.parent).ensure("other")
    make.ensure(other, base)
    package = tmp_path / "pkg"
    (package / "mine").mkdir(parents=True)
    (package / "mine" / "__init__.py").write_text("")
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "mine"\n'
        'version = "1"\n'
    )
    contents = {
        "mine/__init__.py": b"",
        "mine-1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: mine\nVersion: 1\n",
    }
    contents["mine-1.dist-info/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    built = tmp_path / "mine-1-py3-none-any.whl"
    built.write_bytes(wheel.pack(contents, "mine-1.dist-info"))
    run(home, "pip", "install", "--no-index", str(built))
    assert run(home, "python", "-c", "import mine; print('here')").strip() == "here"
    assert "ModuleNotFoundError" in run(other, "python", "-c", "import mine", check=False)
    # And it is still there after the next start of the server.
    make.ensure(home, base)
    assert run(home, "python", "-c", "import mine; print('here')").strip() == "here"


SLOW = """
import sys
from kajiya.environment import make
from kajiya.environment.base import Base
from kajiya.machine.homes import Homes
from pathlib import Path
import json, time
order = json.loads(sys.argv[1])
original = make._install_kajiya
def slow(*args, **kwargs):
    print("half made", flush=True)
    time.sleep(600)
make._install_kajiya = slow
make.ensure(Homes(Path(order["homes"])).of("killed"), Base(Path(order["base"]), Path(order["cache"])))
"""


def test_killed_in_the_middle_it_leaves_nothing_half_made(base: Base, tmp_path: Path) -> None:
    homes = Homes(tmp_path / "homes")
    home = homes.ensure("killed")
    prepare(base)
    order = json.dumps({"homes": str(homes.root), "base": str(base.folder), "cache": str(base.cache)})
    maker = subprocess.Popen([sys.executable, "-c", SLOW, order], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    assert maker.stdout.readline() == "half made\n"
    assert leftovers(home)
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    assert not home.environment().exists()
    make.ensure(home, base)
    assert leftovers(home) == []
    assert run(home, "python", "-c", "import kajiya; print('ok')").strip() == "ok"


def test_two_starts_at_once_make_one(base: Base, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    homes = Homes(tmp_path / "homes")

    def start(_: int) -> tuple[Path, list[Reason]]:
        told: list[Reason] = []
        return make.ensure(homes.ensure("twice"), base, told.append), told

    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(start, range(3)))
    assert len({path for path, _ in done}) == 1
    assert sum(any(r.code == "environment.making" for r in told) for _, told in done) == 1
    assert leftovers(homes.of("twice")) == []


def test_another_python_sets_the_old_one_aside_and_says_so(base: Base, tmp_path: Path) -> None:
    home = Homes(tmp_path / "homes").ensure("old")
    make.ensure(home, base)
    (home.environment() / "keep.txt").write_text("mine")
    python = home.python()
    python.unlink()
    python.symlink_to("/nowhere/python3")
    told: list[Reason] = []
    make.ensure(home, base, told.append)
    aside = next(r for r in told if r.code == "environment.set_aside")
    assert (Path(aside.params["kept"]) / "keep.txt").read_text() == "mine"
    assert run(home, "python", "-c", "print('ok')").strip() == "ok"


@pytest.mark.parametrize("older", [{"kajiya": "an older one"}, {"kajiya": "an older one", "requires": "other things"}])
def test_a_newer_kajiya_is_brought_in_and_additions_stay(base: Base, tmp_path: Path, older: dict[str, str]) -> None:
    home = Homes(tmp_path / "homes").ensure("update")
    env = make.ensure(home, base)
    mark = json.loads((env / make.MARK).read_text())
    (env / make.MARK).write_text(json.dumps(mark | older))
    site = next((env / "lib").glob("python*")) / "site-packages"
    (site / "mine.py").write_text("x = 1\n")
    shutil.rmtree(site / "kajiya")
    told: list[Reason] = []
    make.ensure(home, base, told.append)
    assert [r.code for r in told] == ["environment.updating"]
    assert run(home, "python", "-c", "import kajiya, mine; print(mine.x)").strip() == "1"
    assert json.loads((env / make.MARK).read_text()) == mark


def test_without_packages_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    nowhere = Base(tmp_path / "base", tmp_path / "cache", variables={"UV_OFFLINE": "1"})
    home = Homes(tmp_path / "homes").ensure("offline")
    with pytest.raises(PackagesUnavailable) as e:
        make.ensure(home, nowhere)
    assert "index_url" in e.value.sentence("en")
    assert "\n" not in e.value.sentence("ja")
    assert not home.environment().exists()
    assert list(nowhere.folder.glob(".new-env-*")) == []


def test_uv_follows_the_index_that_pip_was_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/of-pip")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    source = tmp_path / "requirements.in"
    source.write_text("six\n")
    for variables, place in (({}, "of-pip"), ({"UV_DEFAULT_INDEX": "http://127.0.0.1:9/of-site"}, "of-site")):
        with pytest.raises(PackagesUnavailable) as e:
            uv.run(["pip", "compile", str(source), "--python", sys.executable], cache=None, variables=variables,
                   cwd=tmp_path)  # fmt: skip
        assert place in e.value.sentence("en")


def test_a_full_disk_is_named_and_nothing_stays(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Homes(tmp_path / "homes").ensure("full")

    def full(source: Path, target: Path, share: bool) -> None:
        target.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(make, "clone", full)
    with pytest.raises(DiskFull):
        make.ensure(home, base)
    assert leftovers(home) == []


@pytest.mark.parametrize("share", [True, False])
def test_a_clone_is_equal_and_shares_files_only_where_it_may(tmp_path: Path, share: bool) -> None:
    source = tmp_path / "source"
    (source / "bin").mkdir(parents=True)
    (source / "bin" / "run").write_text("#!/bin/sh\n")
    (source / "bin" / "run").chmod(0o755)
    (source / "データ").write_bytes(b"x" * 100_000)
    (source / "empty").write_bytes(b"")
    (source / "link").symlink_to("bin/run")
    (source / "nowhere").symlink_to("/nowhere")
    os.utime(source / "データ", ns=(1, 1_600_000_000_123_456_789))
    target = tmp_path / "target"
    clone(source, target, share)
    assert sorted(p.name for p in target.rglob("*")) == sorted(p.name for p in source.rglob("*"))
    for path in source.rglob("*"):
        copy = target / path.relative_to(source)
        if path.is_symlink():
            assert copy.readlink() == path.readlink()
        elif path.is_file():
            assert copy.read_bytes() == path.read_bytes()
            assert (copy.stat().st_mode, copy.stat().st_mtime_ns) == (path.stat().st_mode, path.stat().st_mtime_ns)
            assert (copy.stat().st_ino == path.stat().st_ino) is share


def test_the_wheel_of_kajiya_is_the_same_each_time_and_installs(tmp_path: Path) -> None:
    one, two = wheel.build(tmp_path), wheel.build(tmp_path)
    assert one == two
    first = one.read_bytes()
    one.unlink()
    assert wheel.build(tmp_path).read_bytes() == first
    target = tmp_path / "installed"
    subprocess.run(
        [uv.find(), "pip", "install", "--quiet", "--no-deps", "--offline", "--target", target, one], check=True
    )
    code = "import kajiya; from kajiya.messages import message as m; print(kajiya.__file__, len(m('internal')) > 20)"
    env = {"PYTHONPATH": str(target)}
    said = subprocess.run([sys.executable, "-S", "-c", code], env=env, capture_output=True, text=True, check=True)
    assert said.stdout.split() == [str(target / "kajiya" / "__init__.py"), "True"]


def test_a_home_is_made_once_with_examples_and_never_overwritten(tmp_path: Path) -> None:
    homes = Homes(tmp_path / "homes")
    home = homes.ensure('o"dd\nname')
    assert home.path.parent == homes.root
    assert home.path.stat().st_mode & 0o777 == 0o700
    (home.path / "mine.ipynb").write_text("mine")
    for example in home.path.glob("*.ipynb"):
        example.write_text("changed")
    assert homes.ensure('o"dd\nname') == home
    assert {p.read_text() for p in home.path.glob("*.ipynb")} <= {"changed", "mine"}
    assert until(lambda: not list(homes.root.glob(".new-*")), 1)
