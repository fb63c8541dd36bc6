"""A real environment made by uv: captured, unpacked at another path, run there, and made again from its lock."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kajiya.environment import delta, fingerprint, lock, uv
from kajiya.environment.installed import installed, sites
from kajiya.oci.extract import Blob, extract
from kajiya.oci.layer import write

CACHE = Path(os.environ.get("UV_CACHE_DIR", Path.home() / ".cache/uv"))


def for_all(path: Path) -> bool:
    """Whether any account may run it."""
    return path.exists() and all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


OWN = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
# One that other accounts may run too, if there is one of the same release.
INTERPRETER = next((p for p in (OWN, Path(f"/usr/bin/{OWN.name}")) if for_all(p)), OWN)

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "{name}"
version = "0.1"
scripts = {{ {name}-say = "{name}:say" }}
[tool.hatch.build.targets.wheel.shared-data]
"data" = "share/{name}"
"""


def call(*arguments: str, cwd: Path) -> None:
    uv.run(arguments, cache=CACHE, variables={}, cwd=cwd)


def project(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT.format(name=name))
    (folder / name / "__init__.py").write_text(f"def say():\n    print('{name} 学習')\n", "utf-8")
    (folder / "data").mkdir()
    (folder / "data/table.csv").write_text("1\n")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with a package of an index, one with data files, one from a folder, and an editable one."""
    place = tmp_path_factory.mktemp("花子 home")
    env = place / "env"
    call("venv", "--quiet", "--python", str(INTERPRETER), str(env), cwd=place)
    at = ("--python", str(env / "bin/python"))
    copied, edited = project(place / "copied", "copied"), project(place / "edited", "edited")
    call("pip", "install", "--quiet", *at, "attrs==25.3.0", "pyfiglet==1.0.2", "pip", str(copied), cwd=place)
    call("pip", "install", "--quiet", *at, "--no-deps", "-e", str(edited), cwd=place)
    return env


def run(*argv: object, **env: str) -> str:
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=60, env=os.environ | env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def captured(env: Path, place: Path, target: Path) -> Path:
    """Captured for another path, and unpacked there."""
    plan = delta.plan(fingerprint.take(env), prefix=str(target))
    layer = write(plan.items, place)
    blob = Blob(layer.path, layer.digest, layer.media_type, layer.size, layer.diff_id)
    links = [os.fsencode(link) for link in plan.links]
    extract([blob], target, inside=os.fsencode(str(target).lstrip("/")), links=links)
    return target


@pytest.fixture
def there(made: Path, tmp_path: Path) -> Iterator[Path]:
    """The environment at another path, while there is nothing at the old one."""
    moved = captured(made, tmp_path, tmp_path / "there")
    made.rename(tmp_path / "aside")
    yield moved
    (tmp_path / "aside").rename(made)


def test_it_runs_at_another_path(made: Path, there: Path) -> None:
    python = there / "bin/python"
    assert run(python, "-c", "import sys; print(sys.prefix)") == str(there)
    assert run(python, "-c", "import attr, pyfiglet; print(attr.__file__)").startswith(str(there))
    assert run(there / "bin/copied-say", PYTHONUTF8="1") == "copied 学習"
    assert "made" in run(there / "bin/pyfiglet", "-f", "term", "made")
    assert (there / "share/copied/table.csv").read_text() == "1\n"
    assert run(there / "bin/pip", "--version").split()[3].startswith(str(there))
    assert run(python, "-m", "pip", "check") == "No broken requirements found."
    left = subprocess.run(["grep", "-rlF", str(made), str(there)], capture_output=True, text=True).stdout
    assert left == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="another account and a read-only mount need root")
def test_another_account_runs_it_where_nobody_may_write(there: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As a pod does: another uid, an empty home, and no right to write anywhere in it."""
    if not for_all(INTERPRETER):
        pytest.skip("there is no interpreter here that other accounts may run")
    ours = tmp_path_factory.getbasetemp().parent
    for folder in (there, *there.parents):
        if folder.stat().st_mode & 0o005 != 0o005:
            if not folder.is_relative_to(ours):
                pytest.skip(f"{folder}, which is not ours to open, is closed to other accounts")
            folder.chmod(0o755)
    code = "import os, attr, pyfiglet, copied; print(os.getuid(), os.access(os.path.dirname(attr.__file__), os.W_OK))"
    argv = [str(there / "bin/python"), "-c", code]
    env = {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        argv, user=65534, group=65534, extra_groups=[], env=env, cwd="/", capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "65534 False\n"), done.stderr


def test_captured_twice_and_after_running_it_is_the_same_layer(made: Path, tmp_path: Path) -> None:
    first = fingerprint.take(made)
    one = write(delta.plan(first).items, tmp_path)
    run(made / "bin/python", "-c", "import attr, pyfiglet, copied, json")
    again = fingerprint.take(made, fingerprint.load(first.dump()))
    assert again.digest == first.digest
    assert write(delta.plan(again).items, tmp_path).diff_id == one.diff_id
    assert delta.plan(again, delta.plan(first).state).empty


def test_an_upgrade_is_a_small_layer_that_hides_the_old_metadata(made: Path, tmp_path: Path) -> None:
    env = tmp_path / "env"
    shutil.copytree(made, env, symlinks=True)
    before = delta.plan(fingerprint.take(env))
    call("pip", "install", "--quiet", "--python", str(env / "bin/python"), "attrs==25.4.0", cwd=tmp_path)
    after = delta.plan(fingerprint.take(env), before.state)
    gone = [os.fsdecode(i.path).rsplit("/", 1)[1] for i in after.items if i.kind == "whiteout"]
    assert "attrs-25.3.0.dist-info" in gone
    assert after.size < before.size / 5


def test_it_is_made_again_from_its_lock(made: Path, tmp_path: Path) -> None:
    packages = installed(sites(made), base={"attrs": "25.3.0"})
    found = {one.name: one for one in packages.installed}
    assert (found["attrs"].base, found["pyfiglet"].base) == (True, False)
    assert (found["copied"].source, found["edited"].source) == ("folder", "editable")
    compile = lock.compiler(tmp_path, python=str(made / "bin/python"), cache=CACHE, variables={})
    one = lock.make(packages, tmp_path, compile, lock.builder(cache=CACHE, variables={}))
    assert one.lacking == ()
    value = tomllib.loads(one.text)
    assert {p["name"]: p["version"] for p in value["packages"]} == {o.name: o.version for o in packages.installed}
    assert all(
        w["hashes"]["sha256"] for p in value["packages"] for w in [*p.get("wheels", []), *[p.get("archive")]] if w
    )
    assert {c.name for c in one.carried} == {"copied", "edited"}
    shutil.rmtree(made.parent / "copied")  # the project it came from may be gone
    (tmp_path / "pylock.toml").write_text(one.text, "utf-8")
    new = tmp_path / "new"
    call("venv", "--quiet", "--python", str(INTERPRETER), str(new), cwd=tmp_path)
    call("pip", "sync", "--quiet", "--python", str(new / "bin/python"), "pylock.toml", cwd=tmp_path)
    again = installed(sites(new))
    assert [(o.name, o.version) for o in again.installed] == [(o.name, o.version) for o in packages.installed]
    assert run(new / "bin/copied-say", PYTHONUTF8="1") == "copied 学習"
    assert run(new / "bin/edited-say", PYTHONUTF8="1") == "edited 学習"
    assert (new / "share/copied/table.csv").read_text() == "1\n"


def test_a_pin_that_no_index_has_is_named(made: Path, tmp_path: Path) -> None:
    env = tmp_path / "env"
    shutil.copytree(made, env, symlinks=True)
    (site,) = env.glob("lib/python*/site-packages")
    for name, version in (("attrs", "99.9"), ("kajiya-no-such-package", "1.0")):
        for old in site.glob(f"{name}-*.dist-info"):
            shutil.rmtree(old)
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    compile = lock.compiler(tmp_path, python=str(made / "bin/python"), cache=CACHE, variables={})
    one = lock.make(installed([site]), tmp_path, compile, lock.builder(cache=CACHE, variables={}))
    assert {(u.name, u.why) for u in one.lacking} >= {
        ("attrs", "no_index"),
        ("kajiya-no-such-package", "no_index"),
    }
    assert "pyfiglet" in one.text
