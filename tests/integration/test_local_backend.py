"""The local backend beyond its contract: killed services, secrets, accounts, hostile folders."""

import asyncio
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.homes import PlainHome, PlainHomes
from helpers.wait import until
from kajiya.machine import process
from kajiya.machine.allocations import Allocations
from kajiya.machine.homes import AccountFailed, Homes
from kajiya.machine.launch import standing
from kajiya.types import Ending, Environment, MiB, Resources
from kajiya_hub.backends.base import AttemptRef, AttemptSpec, Observation
from kajiya_hub.backends.local import LocalBackend


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other accounts may walk through, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="kajiya-学習-"))
    folder.chmod(0o711)
    yield folder
    for lease in folder.rglob("lease.json"):
        found = json.loads(lease.read_text())
        with_tree = found.get("tree")
        if found.get("pid"):
            process.send(process.Identity(found["pid"], found["start_time"], found["boot_id"]), signal.SIGKILL)
        if with_tree:
            process.end_tree(with_tree)
    shutil.rmtree(folder, ignore_errors=True)


def make(place: Path, number: int = 1, **changes: Any) -> AttemptSpec:
    directory = place / "jobs/xx/j1/attempts" / str(number)
    given = place / "jobs/xx/j1/input/files/データ"
    given.mkdir(parents=True, exist_ok=True)
    (given.parent.parent / "notebook.ipynb").write_text('{"cells": []}')
    (given / "a b.csv").write_text("1,2\n")
    fields: dict[str, Any] = {
        "job": "j1",
        "number": number,
        "owner": "花子",
        "profile": "small",
        "resources": Resources(cpu=0.1, memory=256 * MiB, gpus=0, gpu_kind=None),
        "environment": Environment(),
        "directory": directory,
        "token": "secret-token",
    }
    return AttemptSpec(**(fields | changes))


def backend(place: Path, script: str = "sleep 600", **changes: Any) -> LocalBackend:
    fields: dict[str, Any] = {"command": lambda home, spec: ["/bin/sh", "-c", script]}
    homes = PlainHomes(place / "home", changes.pop("uid", None))
    return LocalBackend(homes, place / "machine", **(fields | changes))


async def drive(local: LocalBackend, spec: AttemptSpec, state: Any = None) -> AttemptRef:
    async for step in local.start(spec, state):
        state = step
    return ref(spec, state)


def ref(spec: AttemptSpec, state: Any) -> AttemptRef:
    return AttemptRef(spec.job, spec.number, spec.owner, spec.directory, state or {})


def look(local: LocalBackend, attempt: AttemptRef) -> Observation:
    (found,) = asyncio.run(local.check([attempt]))
    return found


def ended(local: LocalBackend, attempt: AttemptRef) -> Observation:
    return until(lambda: (found := look(local, attempt)).phase in ("ended", "gone") and found, what="the end")


SERVICE = """
import asyncio, json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
sys.path.insert(0, os.path.dirname(sys.argv[3]) + "/tests/integration")
import test_local_backend as here
place = Path(sys.argv[1])
local = here.backend(place, "touch ran-$$; sleep 600")
async def main():
    state = json.loads(sys.argv[2])
    async for state in local.start(here.make(place), state or None):
        (place / "state.new").write_text(json.dumps(state))
        (place / "state.new").rename(place / "state.json")
    print("started", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def service(place: Path, state: Any = None) -> subprocess.Popen[bytes]:
    tests = str(Path(__file__).resolve().parents[1])
    env = os.environ | {"PYTHONPATH": f"{tests}:{tests}/integration"}
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(place), json.dumps(state), tests], stdout=subprocess.PIPE, env=env
    )


def test_an_attempt_outlives_a_killed_service_and_is_not_its_zombie(place: Path) -> None:
    one = service(place)
    assert one.stdout is not None and one.stdout.readline() == b"started\n"
    spec = make(place)
    who = until(lambda: standing(spec.directory, "attempt", "j1/1").supervisor)
    assert who.pid not in process.children(one.pid), "it is nobody's child who would have to reap it"
    one.kill()
    one.wait()
    local, attempt = backend(place), ref(spec, json.loads((place / "state.json").read_text()))
    until(lambda: look(local, attempt).phase == "running")
    assert process.alive(who)
    asyncio.run(local.stop(attempt))
    assert ended(local, attempt).ending == Ending.stopped
    until(lambda: process.read_stat(who.pid) is None, what="the supervisor's end without a zombie")


@pytest.mark.timeout(300)
def test_a_service_killed_at_any_moment_of_a_start_never_starts_twice(place: Path) -> None:
    chance = random.Random(20261124)
    for round in range(8):
        here = place / str(round)
        here.mkdir()
        state = None
        for _ in range(2):
            one = service(here, state)
            until(lambda here=here: (here / "jobs").exists(), what="the service's start")
            try:
                one.wait(chance.uniform(0, 0.15))
            except subprocess.TimeoutExpired:
                pass
            one.kill()
            one.communicate()
            if (here / "state.json").exists():
                state = json.loads((here / "state.json").read_text())
        local, spec = backend(here, "touch ran-$$; sleep 600"), make(here)
        attempt = asyncio.run(drive(local, spec, state))
        until(lambda local=local, attempt=attempt: look(local, attempt).phase == "running")
        work = spec.directory / "work"
        until(lambda work=work: list(work.glob("ran-*")), what="the run")
        asyncio.run(local.stop(attempt))
        assert ended(local, attempt).ending == Ending.stopped
        assert len(list(work.glob("ran-*"))) == 1
        assert Allocations(here / "machine").live() == []


def test_the_folder_of_an_attempt(place: Path) -> None:
    spec = make(place, parameters={"C": 10}, results=["*.csv"])
    local = backend(
        place, 'cat "../input/files/データ/a b.csv"; env | sort', variables={"KAJIYA_API_URL": "http://svc"}
    )
    attempt = asyncio.run(drive(local, spec))
    assert ended(local, attempt).ending == Ending.succeeded
    log = (spec.directory / "log.txt").read_text()
    assert log.startswith("1,2\n")
    seen = dict(line.split("=", 1) for line in log.splitlines()[1:])
    assert seen["KAJIYA_API_URL"] == "http://svc"
    assert seen["KAJIYA_RESULTS_DIR"] == str(spec.directory / "work" / "results")
    assert Path(seen["KAJIYA_CHECKPOINT_DIR"]).is_dir() and seen["KAJIYA_CHECKPOINT_DIR"] == str(spec.checkpoint)
    assert Path(seen["KAJIYA_TOKEN_FILE"]).read_text() == seen["MLFLOW_TRACKING_TOKEN"] == "secret-token"
    assert stat.S_IMODE(Path(seen["KAJIYA_TOKEN_FILE"]).stat().st_mode) == 0o600
    run = json.loads((spec.directory / "run.json").read_text())
    assert (run["job"], run["attempt"], run["parameters"], run["results"]) == ("j1", 1, {"C": 10}, ["*.csv"])
    notebook = spec.directory / "input/notebook.ipynb"
    assert notebook.samefile(spec.inputs / "notebook.ipynb")


def test_a_profiles_variables_can_not_displace_ours(place: Path) -> None:
    mine = {"KAJIYA_API_URL": "http://evil", "PATH": "/evil", "KAJIYA_TOKEN": "x", "HOME": "/", "FLAVOUR": "mint"}
    local = backend(place, variables={"KAJIYA_API_URL": "http://svc", "FLAVOUR": "plain"})
    found = local.environment(make(place, env=mine), PlainHome(place / "home"))
    assert (found["KAJIYA_API_URL"], found["KAJIYA_TOKEN"], found["HOME"]) == (
        "http://svc",
        "secret-token",
        f"{place}/home",
    )
    assert found["FLAVOUR"] == "mint" and "/evil" not in found["PATH"]


def test_the_token_is_in_no_argument_and_in_no_open_file(place: Path) -> None:
    spec, local = make(place), backend(place)
    attempt = asyncio.run(drive(local, spec))
    until(lambda: look(local, attempt).phase == "running")
    lease = standing(spec.directory, "attempt", "j1/1").lease
    assert lease is not None
    for pid in (lease["pid"], lease["child_pid"]):
        assert b"secret-token" not in process.read_bytes(f"/proc/{pid}/cmdline")
    assert b"secret-token" not in process.read_bytes(f"/proc/{lease['pid']}/environ")
    holding = [p for p in place.rglob("*") if p.is_file() and b"secret-token" in p.read_bytes()]
    assert [p.name for p in holding] == ["token"]
    asyncio.run(local.stop(attempt))
    ended(local, attempt)


def test_a_start_resumed_with_a_new_token_writes_the_new_one(place: Path) -> None:
    local = backend(place)

    async def cut_short() -> Any:
        start = local.start(make(place))
        state = await anext(start)
        await start.aclose()  # type: ignore[attr-defined]
        return state

    state = asyncio.run(cut_short())
    spec = make(place, token="another-token")
    attempt = asyncio.run(drive(local, spec, state))
    assert (spec.directory / "token").read_text() == "another-token"
    asyncio.run(local.stop(attempt))
    assert ended(local, attempt).ending == Ending.stopped


def test_who_destroys_its_own_folder_is_still_seen_and_ended(place: Path) -> None:
    spec = make(place)
    local = backend(
        place, f"echo x >> '{place}/ran'; sleep 0.2; rm -r '{spec.directory}'; touch '{place}/gone'; sleep 600"
    )
    attempt = asyncio.run(drive(local, spec))
    until((place / "gone").exists)
    assert look(local, attempt).phase in ("starting", "running")
    attempt = asyncio.run(drive(local, spec, attempt.state))
    assert (place / "ran").read_text() == "x\n", "a start that is asked for again does not begin it again"
    who = process.Identity(*attempt.state["spawned"])
    asyncio.run(local.stop(attempt, grace=1))
    until(lambda: not process.alive(who), what="its end")
    assert look(local, attempt).phase == "gone"
    assert Allocations(place / "machine").live() == []


def test_a_supervisor_lost_before_it_had_the_lease_never_begins(place: Path) -> None:
    spec, local = make(place), backend(place)
    spec.directory.mkdir(parents=True)
    dead = ref(spec, {"prepared": True, "spawned": [2**22 + 1, 1, process.boot_id()]})
    assert look(local, dead).phase == "gone"
    late = asyncio.run(drive(local, spec, dead.state))
    assert look(local, late).phase == "gone"
    assert not (spec.directory / "log.txt").exists()


def test_a_reboot_is_a_loss(place: Path) -> None:
    spec, local = make(place), backend(place)
    attempt = asyncio.run(drive(local, spec))
    until(lambda: look(local, attempt).phase == "running")
    path = spec.directory / "lease.json"
    lease = json.loads(path.read_text())
    path.write_text(json.dumps(lease | {"boot_id": "the boot before"}))
    assert look(local, attempt).phase == "gone"
    assert process.identity(lease["child_pid"]) is None


def test_trouble_of_ours_is_unreachable_not_gone(place: Path) -> None:
    import resource

    spec, local = make(place), backend(place)
    attempt = asyncio.run(drive(local, spec))
    until(lambda: look(local, attempt).phase == "running")

    async def without_descriptors() -> Observation:
        await local.check([])  # the thread exists already
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            (found,) = await local.check([attempt])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return found

    assert asyncio.run(without_descriptors()).phase == "unreachable"
    assert look(local, attempt).phase == "running"
    asyncio.run(local.stop(attempt))
    ended(local, attempt)


def test_an_environment_that_can_not_be_prepared_fails_the_start(place: Path) -> None:
    async def prepare(owner: str, name: str) -> None:
        raise OSError(f"no environment {name} of {owner}")

    with pytest.raises(OSError, match="no environment default of 花子"):
        asyncio.run(drive(backend(place, prepare=prepare), make(place)))


def test_with_accounts_nobody_without_one_runs_as_root(place: Path) -> None:
    spec = make(place, owner="nobody-we-know")
    local = LocalBackend(Homes(place / "homes", accounts=True), place / "machine", command=lambda home, spec: ["true"])
    with pytest.raises(AccountFailed):
        asyncio.run(drive(local, spec))
    assert not spec.directory.exists()


def test_the_account_may_be_made_by_what_prepares_the_environment(place: Path) -> None:
    made: list[str] = []

    class Later(PlainHomes):
        accounts = True

        def of(self, user: str) -> PlainHome:
            return PlainHome(self.root, os.geteuid() if made else None, os.getegid())

    async def prepare(owner: str, name: str) -> None:
        made.append(owner)

    local = LocalBackend(
        Later(place / "home"), place / "machine", command=lambda home, spec: ["/bin/true"], prepare=prepare
    )
    attempt = asyncio.run(drive(local, make(place)))
    assert ended(local, attempt).ending == Ending.succeeded


# --- accounts of their own
UID = 54321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of another account")


@as_root
def test_with_accounts_an_attempt_runs_as_its_owner_and_owns_its_folder(place: Path) -> None:
    spec = make(place, parameters={})
    script = "id -u; id -g; id -G; umask; cat ../token; echo; echo 1 > ../events.jsonl; cat /proc/self/oom_score_adj"
    local = backend(place, script, uid=UID)
    local.environment = lambda spec, home: {"PATH": os.environ["PATH"]}  # type: ignore[method-assign]
    attempt = asyncio.run(drive(local, spec))
    assert ended(local, attempt).ending == Ending.succeeded
    log = b"".join(asyncio.run(read(local, attempt))).decode().split()
    assert log[:6] == [str(UID), str(UID), str(UID), "0077", "secret-token", "300"]
    owners = {p.name: p.stat().st_uid for p in [spec.directory, *spec.directory.rglob("*")]}
    ours = {"exit.json", "lease.json"}
    assert {n for n, uid in owners.items() if uid == 0} == ours
    assert {uid for n, uid in owners.items() if n not in ours} == {UID}
    # What was frozen at submit stays ours, whatever the owner does to the copy.
    assert (spec.inputs / "notebook.ipynb").stat().st_uid == 0
    assert (spec.inputs / "notebook.ipynb").stat().st_nlink == 1
    assert stat.S_IMODE(spec.inputs.stat().st_mode) == 0o700


async def read(local: LocalBackend, attempt: AttemptRef) -> list[bytes]:
    return [part async for part in local.logs(attempt)]


@as_root
@pytest.mark.parametrize(
    "attack",
    [
        'echo \'{"kind":"attempt","id":"j1/1","ending":"succeeded","exit_code":0}\' > ../exit.json; exit 1',
        "ln -sf {victim} ../exit.json; ln -sf {victim} ../.exit.reserve; exit 1",
        "rm -f ../.exit.reserve; mkfifo ../.exit.reserve ../outcome.json ../stop; exit 1",
        "rm ../log.txt; ln -s {victim} ../log.txt; exit 1",
        "mv ../lease.json ../x; exit 1",
    ],
)
def test_with_accounts_an_owner_can_neither_forge_an_end_nor_write_through_us(place: Path, attack: str) -> None:
    victim = place / "victim"
    victim.write_text("root's own\n")
    victim.chmod(0o600)
    spec, local = make(place), backend(place, attack.replace("{victim}", f"'{victim}'"), uid=UID)
    local.environment = lambda spec, home: {"PATH": os.environ["PATH"]}  # type: ignore[method-assign]
    attempt = asyncio.run(drive(local, spec))
    found = ended(local, attempt)
    assert (found.phase, found.ending) in {("ended", Ending.notebook_error), ("gone", None)}
    assert victim.read_text() == "root's own\n" and victim.stat().st_uid == 0
    assert b"root's own" not in b"".join(asyncio.run(read(local, attempt)))


@as_root
def test_with_accounts_a_forged_lease_makes_us_signal_nobody(place: Path) -> None:
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        spec, local = make(place), backend(place, "sleep 600", uid=UID)
        local.environment = lambda spec, home: {"PATH": os.environ["PATH"]}  # type: ignore[method-assign]
        attempt = asyncio.run(drive(local, spec))
        until(lambda: look(local, attempt).phase == "running")
        path = spec.directory / "lease.json"
        forged = json.loads(path.read_text()) | process.identity(stranger.pid)._asdict()  # type: ignore[union-attr]
        path.unlink()
        path.write_text(json.dumps(forged))
        os.chown(path, UID, UID)
        asyncio.run(local.stop(attempt, grace=1))
        assert ended(local, attempt).ending == Ending.stopped
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@as_root
def test_a_full_disk_does_not_keep_an_end_from_being_told(place: Path) -> None:
    small = place / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)]).returncode != 0:
        pytest.skip("this machine lets nobody mount a small disk to fill")
    try:
        spec = make(small)
        local = LocalBackend(
            PlainHomes(place / "home"),
            place / "machine",
            command=lambda home, spec: ["/bin/sh", "-c", "cat /dev/zero > fill; echo full; cat fill fill fill"],
        )
        attempt = asyncio.run(drive(local, spec))
        found = ended(local, attempt)
        assert (found.phase, found.ending) == ("ended", Ending.succeeded)
        assert os.statvfs(small).f_bavail == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.timeout(300)
def test_a_supervisor_killed_at_any_moment_leaves_a_true_status_and_nobody(place: Path) -> None:
    chance = random.Random(3)
    for round in range(25):
        here = place / str(round)
        here.mkdir()
        spec, local = make(here), backend(here, "sleep 600 & sleep 0.05; exit 1")

        async def start_and_kill(local: LocalBackend = local, spec: AttemptSpec = spec) -> AttemptRef:
            attempt = await drive(local, spec)
            await asyncio.sleep(chance.uniform(0, 0.12))
            process.send(process.Identity(*attempt.state["spawned"]), signal.SIGKILL)
            return attempt

        attempt = asyncio.run(start_and_kill())
        found = ended(local, attempt)
        assert (found.phase, found.ending) in {("gone", None), ("ended", Ending.notebook_error)}
        assert look(local, attempt) == found
        tree = (standing(spec.directory, "attempt", "j1/1").lease or {}).get("tree")
        assert not (tree and process.members(tree))
        assert Allocations(here / "machine").live() == []
