"""The commands on snapshots in a real user's environment, against the whole running stack."""

import json
import subprocess
from pathlib import Path

import pytest

from helpers.environments import wheel
from helpers.stack import Stack
from kajiya.environment import make
from kajiya.machine.homes import Home

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]
PERSON = "鈴木一郎"


@pytest.fixture(scope="module")
def home(stack: Stack) -> Home:
    stack.invite(PERSON).close()
    stack.wait_ready("service")
    found = stack.settings.homes.ensure(PERSON)
    make.ensure(found, stack.settings.environment_base)
    return found


class Terminal:
    """Commands as a person gives them in a terminal of the server."""

    def __init__(self, stack: Stack, home: Home, user: str) -> None:
        self.env = {"LANG": "C.UTF-8", "KAJIYA_LANG": "en"} | home.variables(path="/usr/bin:/bin")
        self.env |= {"KAJIYA_API_URL": f"{stack.url}services/kajiya", "KAJIYA_TOKEN": stack.token(user)}
        self.bin = home.environment() / "bin"

    def __call__(self, *argv: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(self.bin / argv[0]), *argv[1:]], env=self.env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done


def test_install_capture_compare_restore_and_delete(stack: Stack, home: Home, tmp_path: Path) -> None:
    run = Terminal(stack, home, PERSON)
    first = json.loads(run("kajiya", "capture", "base-1", "--json").stdout)
    # What all have is one layer of everybody's; the rest is Kajiya itself and a mark.
    assert len(first["layers"]) == 2 and first["added"] < 2 << 20 < first["size"]
    assert {"pandas", "scikit-learn", "kajiya"} <= {p["name"] for p in first["packages"]}
    assert run("kajiya", "capture").stdout.strip() == first["digest"]

    run("pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel(tmp_path, "addition", "3.0")))
    second = json.loads(run("kajiya", "capture", "base-2", "--json").stdout)
    assert second["layers"][:2] == first["layers"] and second["added"] < 100_000
    shown = run("kajiya", "diff", "base-1", "base-2").stdout
    assert "addition" in shown and "3.0" in shown and "Size: " in shown
    listed = run("kajiya", "snapshots").stdout
    assert "base-1" in listed and "base-2" in listed

    answer = run("kajiya", "delete-snapshot", "base-1", status=3)
    assert "base-2" in answer.stderr
    restored = json.loads(run("kajiya", "restore", "base-1", "--json").stdout)
    place = Path(restored["path"])
    assert place == home.environment("base-1")
    use = "import sys, sklearn.linear_model as m, pandas as pd\n"
    use += "m.LinearRegression().fit(pd.DataFrame({'a': [1, 2]}), [1, 2])\n"
    use += "try:\n    import addition\nexcept ImportError:\n    print(sys.prefix)\n"
    done = subprocess.run(
        [str(place / "bin/python"), "-c", use], env=run.env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == str(place), done.stderr
    kernels = subprocess.run(
        [str(place / "bin/jupyter-kernelspec"), "list", "--json"], env=run.env, capture_output=True, text=True
    )
    found = json.loads(kernels.stdout)["kernelspecs"]
    assert found["base-1"]["spec"]["argv"][0] == str(place / "bin/python")
    # A console script of the restored one runs there.
    script = subprocess.run([str(place / "bin/papermill"), "--version"], env=run.env, capture_output=True, text=True)
    assert script.returncode == 0, script.stderr
    # The SDK in a kernel of it knows where it is.
    sdk = "import kajiya\nprint(kajiya.capture())\nprint(kajiya.snapshots())"
    done = subprocess.run(
        [str(place / "bin/python"), "-c", sdk], env=run.env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(f"Snapshot(base-1, {first['digest'][:19]}")
    assert len(done.stdout.splitlines()) == 3

    # Another user's snapshot is not there.
    stack.invite("次郎").close()
    other = Terminal(stack, home, "次郎")
    for ref in ("base-1", first["digest"]):
        assert "no snapshot" in other("kajiya", "restore", ref, status=3).stderr
    run("kajiya", "delete-snapshot", "base-2")
    run("kajiya", "delete-snapshot", "base-1")
