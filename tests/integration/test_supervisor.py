"""The supervisor with real processes: whatever a tree does, and whoever is killed, its end is told; nobody is left."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.trees import DAEMON, Tree, end_all, lives
from helpers.wait import until
from kajiya.machine import process
from kajiya.machine.allocations import Allocations
from kajiya.machine.launch import end_leftovers
from kajiya.types import MiB


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    end_all()


# --- how it ends
@pytest.mark.parametrize(
    ("program", "ending", "code", "status"),
    [
        ("pass", "succeeded", None, 0),
        ("sys.exit(1)", "notebook_error", None, 1),
        ("sys.exit(2)", "could_not_start", None, 2),
        ("sys.exit(3)", "kernel_died", None, 3),
        ("sys.exit(77)", "kernel_died", "process.exit", 77),
        ("os.kill(os.getpid(), signal.SIGKILL)", "kernel_died", "process.signal", None),
        ("os.abort()", "kernel_died", "process.signal", None),
    ],
)
def test_endings(tmp_path: Path, program: str, ending: str, code: str | None, status: int | None) -> None:
    tree = Tree(tmp_path / "a", program).start()
    assert tree.reason() == (ending, code)
    assert tree.exit()["exit_code"] == status
    assert tree.exit()["usage"]["wall_seconds"] >= 0


def test_a_runner_killed_from_outside_is_told_apart_and_named(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a", "print('up', flush=True); time.sleep(600)").start().says("up")
    os.kill(tree.running()["child_pid"], signal.SIGKILL)
    record = tree.exit()
    assert (record["ending"], record["signal"], record["reason"]["params"]) == (
        "kernel_died",
        "SIGKILL",
        {"signal": "SIGKILL"},
    )


@pytest.mark.parametrize(
    ("argv", "cwd", "told"),
    [
        (["/nowhere/python"], None, ("/nowhere/python", "No such file or directory")),
        (["/etc/passwd"], None, ("/etc/passwd", "Permission denied")),
        ([sys.executable], "/nowhere", ("/nowhere", "No such file or directory")),
    ],
)
def test_what_can_not_be_executed_is_said(
    tmp_path: Path, argv: list[str], cwd: str | None, told: tuple[str, str]
) -> None:
    changes = {"cwd": cwd} if cwd else {}
    record = Tree(tmp_path / "a", "", argv=argv, **changes).start().exit()
    assert (record["ending"], record["reason"]["code"]) == ("could_not_start", "process.not_executable")
    assert tuple(record["reason"]["params"].values()) == told
    assert Allocations(tmp_path / "machine").live() == []


@pytest.mark.parametrize(
    ("status", "said", "believed"),
    [
        (1, {"ending": "notebook_error", "reason": {"code": "x.y", "params": {"cell": 3, "日本": ["a"]}}}, "x.y"),
        (0, {"ending": "notebook_error", "reason": {"code": "x.y", "params": {}}}, None),
        (1, {"ending": "succeeded", "reason": {"code": "x.y", "params": {}}}, None),
        (1, "not an object", None),
    ],
)
def test_the_runners_outcome_refines_where_its_exit_agrees(
    tmp_path: Path, status: int, said: object, believed: str | None
) -> None:
    text = json.dumps(said)
    tree = Tree(tmp_path / "a", f"(here / 'outcome.json').write_text({text!r})\nsys.exit({status})").start()
    assert tree.reason() == (["succeeded", "notebook_error"][status], believed)


@pytest.mark.parametrize("kind", ["link", "fifo", "huge", "folder"])
def test_a_hostile_outcome_neither_leads_astray_nor_holds_up(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").write_text(json.dumps({"ending": "notebook_error", "reason": {"code": "secret"}}))
    make = {
        "link": f"os.symlink({str(tmp_path / 'elsewhere')!r}, here / 'outcome.json')",
        "fifo": "os.mkfifo(here / 'outcome.json')",
        "huge": "(here / 'outcome.json').write_text('[' * 10**7)",
        "folder": "(here / 'outcome.json').mkdir()",
    }[kind]
    assert Tree(tmp_path / "a", make + "\nsys.exit(1)").start().reason() == ("notebook_error", None)


# --- stop, time
def test_stop_gives_grace_and_ends_the_whole_tree(tmp_path: Path) -> None:
    program = DAEMON + "signal.signal(15, lambda *_: sys.exit(143)); print('up', flush=True); time.sleep(600)"
    tree = Tree(tmp_path / "a", program).start().says("up")
    tree.stop()
    record = tree.exit()
    assert (record["ending"], record["exit_code"]) == ("stopped", 143)
    assert not any(map(lives, tree.pids())) and tree.pids()


def test_who_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a", "signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)").start()
    tree.says("up").stop(grace=0.3)
    tree.stop(grace=0.3)
    record = tree.exit()
    assert (record["ending"], record["signal"]) == ("stopped", "SIGKILL")


def test_who_succeeds_although_asked_to_stop_has_succeeded(tmp_path: Path) -> None:
    program = "signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(600)"
    tree = Tree(tmp_path / "a", program).start().says("up")
    tree.stop()
    assert tree.exit()["ending"] == "succeeded"


def test_a_stop_file_alone_is_enough(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a", "print('up', flush=True); time.sleep(600)").start().says("up")
    (tree.folder / "stop").write_text('{"grace": 1}')
    assert tree.exit()["ending"] == "stopped"


def test_a_bare_sigterm_means_that_the_machine_goes_down(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a", "print('up', flush=True); time.sleep(600)").start().says("up")
    process.send(tree.standing.supervisor, signal.SIGTERM)  # type: ignore[arg-type]
    assert tree.reason() == ("preempted", "machine.shutdown")


def test_the_time_limit_is_told_apart(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a", "time.sleep(600)", time_limit=0.5).start()
    assert tree.reason() == ("timed_out", "time.limit")


# --- nobody is left
def test_a_daemon_does_not_outlive_the_program(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a", DAEMON).start()
    assert tree.exit()["ending"] == "succeeded"
    assert len(tree.pids()) == 1 and not lives(tree.pids()[0])


def test_a_daemon_that_hides_its_mark_is_still_found_while_the_supervisor_lives(tmp_path: Path) -> None:
    hidden = "subprocess.Popen(['setsid', '-f', 'env', '-i', '/bin/sh', '-c', f'echo $$ > {here}/pid-x; sleep 600'])"
    tree = Tree(tmp_path / "a", hidden + "\nwhile not (here / 'pid-x').exists(): time.sleep(0.01)").start()
    assert tree.exit()["ending"] == "succeeded"
    until(lambda: tree.pids() and not any(map(lives, tree.pids())), what="the end of the daemon")


def test_a_killed_supervisor_takes_its_program_along_and_the_rest_is_found(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a", DAEMON + "print('up', flush=True); time.sleep(600)").start().says("up")
    program, (daemon,) = tree.running()["child_pid"], tree.pids()
    tree.kill_supervisor()
    until(lambda: not lives(program), what="the program's death")
    assert lives(daemon), "nobody looked after it yet"
    assert not tree.standing.alive
    assert end_leftovers(tree.standing)
    assert not lives(daemon)
    assert tree.standing.exit is None


def test_a_fork_bomb_can_be_ended(tmp_path: Path) -> None:
    # Each process forks as fast as it can; the bomb bounds itself at 60, so that a failing test hurts nobody.
    program = """
import resource
counter = here / 'count'
counter.write_text('')
def bomb():
    while counter.stat().st_size < 60:
        with counter.open('a') as f:
            f.write('x')
        if os.fork() == 0:
            os.setpgid(0, 0)
            bomb()
    while True:
        try:
            if os.fork() == 0:
                os._exit(0)
            os.wait()
        except OSError:
            pass
bomb()
"""
    tree = Tree(tmp_path / "a", program).start()
    until(lambda: (tree.folder / "count").exists() and (tree.folder / "count").stat().st_size > 50, what="the bomb")
    tree.stop(grace=0.1)
    assert tree.exit(90)["ending"] == "stopped"
    assert tree.members() == []


# --- memory
HOG = "held = []\nwhile True:\n    held.append(b'x' * (16 << 20)); time.sleep(0.005)\n"


def test_a_memory_hog_is_ended_and_named(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import time\n" + HOG)
    program = f"subprocess.run([sys.executable, {str(script)!r}]); print('went on', flush=True); time.sleep(600)"
    tree = Tree(tmp_path / "a", program, grace=0.5, resources={"memory": 200 * MiB}).start()
    record = tree.exit()
    assert record["ending"] == "out_of_memory"
    params = record["reason"]["params"]
    assert params["process"].endswith("train.py") and params["allowed"] == "200 MiB"
    assert record["usage"]["memory_peak"] > 200 * MiB
    assert "train.py was ended" in tree.log and "went on" in tree.log, "the rest had its time to write records"


def test_the_whole_tree_counts(tmp_path: Path) -> None:
    each = "import time; x = b'x' * (60 << 20); time.sleep(600)"
    program = f"for _ in range(5): subprocess.Popen([sys.executable, '-c', {each!r}])\ntime.sleep(600)"
    tree = Tree(tmp_path / "a", program, grace=0.2, resources={"memory": 256 * MiB}).start()
    assert tree.reason() == ("out_of_memory", "memory.exceeded")


def test_shared_pages_count_once(tmp_path: Path) -> None:
    program = """
x = bytearray(b'x' * (150 << 20))
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        time.sleep(1.5)
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
"""
    tree = Tree(tmp_path / "a", program, resources={"memory": 300 * MiB}).start()
    assert tree.exit()["ending"] == "succeeded"


def test_a_server_lives_on_without_the_process_that_used_too_much(tmp_path: Path) -> None:
    hog = "import time\n" + HOG
    program = f"subprocess.run([sys.executable, '-c', {hog!r}]); print('lives', flush=True); time.sleep(600)"
    tree = Tree(tmp_path / "s", program, kind="server", id="ann._", resources={"memory": 200 * MiB}).start()
    tree.says("lives")
    (line,) = (tree.folder / "notices.jsonl").read_text().splitlines()
    notice = json.loads(line)
    assert notice.keys() == {"time", "process", "used", "allowed"} and notice["used"] > notice["allowed"] == 200 * MiB
    assert tree.standing.exit is None
    tree.stop()
    assert tree.exit()["ending"] == "stopped"


# --- output
def test_a_closed_stdout_holds_nothing_up(tmp_path: Path) -> None:
    program = "os.close(1); os.close(2); time.sleep(0.3); sys.exit(1)"
    assert Tree(tmp_path / "a", program).start().reason() == ("notebook_error", None)


def test_a_gigabyte_of_output_is_cut_and_nothing_blocks(tmp_path: Path) -> None:
    program = "block = b'x' * (1 << 20)\nfor _ in range(1024): os.write(1, block)\nprint('end', flush=True)"
    tree = Tree(tmp_path / "a", program, log_limit=MiB).start()
    assert tree.exit(60)["ending"] == "succeeded"
    assert (tree.folder / "log.txt").stat().st_size < MiB + 300
    assert tree.log.endswith("not kept.\n") and tree.log.count("cut off") == 1


def test_a_daemon_that_holds_the_pipe_holds_up_no_end(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a", "subprocess.Popen(['sleep', '600'], start_new_session=True)").start()
    assert tree.exit()["ending"] == "succeeded"


# --- what the program is given
def test_the_program_gets_its_own_environment_and_nothing_of_ours(tmp_path: Path) -> None:
    os.environ["KAJIYA_SECRET_OF_THE_SERVICE"] = "x"
    try:
        tree = Tree(
            tmp_path / "a", "print(sorted(os.environ), os.listdir('/proc/self/fd'), os.getsid(0) == os.getpid())"
        )
        tree.start().exit()
    finally:
        del os.environ["KAJIYA_SECRET_OF_THE_SERVICE"]
    names = ["CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "KAJIYA_TREE", "PATH"]
    allowed = [*names, "LC_CTYPE"]  # Python itself adds the last in the C locale
    assert tree.log.strip() in {f"{n} ['0', '1', '2', '3'] True" for n in (str(sorted(names)), str(sorted(allowed)))}
    found = subprocess.run(["grep", "-rl", "SECRET", str(tree.folder)], capture_output=True, text=True).stdout
    assert found == ""


def test_signals_that_python_ignores_work_in_the_program(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a", "", argv=["/bin/sh", "-c", "yes | head -1; echo done"]).start()
    assert (tree.exit()["ending"], tree.log) == ("succeeded", "y\ndone\n")


def test_cpus_are_set(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a", "print(sorted(os.sched_getaffinity(0)))", resources={"cpu": 1}).start()
    tree.exit()
    assert json.loads(tree.log) == tree.standing.lease["cpus"]  # type: ignore[index]
    assert len(json.loads(tree.log)) == 1


# --- GPUs
@pytest.fixture
def fake_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAJIYA_FAKE_GPUS", "2xFake H100:80G,1xFake T4:16G")


@pytest.mark.usefixtures("fake_gpus")
def test_gpus_are_leased_and_given_back_after_a_kill(tmp_path: Path) -> None:
    wants = {"gpus": 2, "gpu_kind": "Fake H100"}
    program = "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(600)"
    first = Tree(tmp_path / "a", program, id="j1/1", resources=wants).start().says("GPU")
    assert first.log.split() == ["GPU-fake-0,GPU-fake-1"]
    second = Tree(tmp_path / "b", program, id="j2/1", resources=wants).start()
    assert second.exit()["reason"]["params"] == {"resource": "GPUs", "asked": "2", "free": "0", "total": "2"}
    other = Tree(tmp_path / "c", program, id="j3/1", resources={"gpus": 1}).start().says("GPU")
    assert other.log.split() == ["GPU-fake-2"]
    first.kill_supervisor()
    third = Tree(tmp_path / "d", program, id="j4/1", resources=wants).start().says("GPU")
    assert third.log.split() == ["GPU-fake-0,GPU-fake-1"]
    assert not lives(first.running()["child_pid"])
    for tree in (third, other):
        tree.stop()
        tree.exit()
    assert Allocations(tmp_path / "machine").live() == []


@pytest.mark.usefixtures("fake_gpus")
def test_what_a_dead_holder_left_is_ended_before_another_gets_its_gpu(tmp_path: Path) -> None:
    wants = {"gpus": 1, "gpu_kind": "Fake T4"}
    first = Tree(tmp_path / "a", DAEMON + "print('up', flush=True); time.sleep(600)", resources=wants).start()
    (daemon,) = first.says("up").pids()
    first.kill_supervisor()
    assert lives(daemon)
    second = Tree(tmp_path / "b", "pass", id="j2/1", resources=wants).start()
    assert second.exit()["ending"] == "succeeded"
    assert not lives(daemon)


@pytest.mark.usefixtures("fake_gpus")
def test_of_many_that_race_for_the_last_gpu_one_gets_it(tmp_path: Path) -> None:
    wants = {"gpus": 1, "gpu_kind": "Fake T4"}
    trees = [Tree(tmp_path / f"r{i}", "time.sleep(600)", id=f"r{i}/1", resources=wants) for i in range(6)]
    for tree in trees:
        # Without waiting for one another.
        text = json.dumps(vars(tree.spec))
        subprocess.Popen(
            [sys.executable, "-m", "kajiya.machine.supervisor", "--detach", "-"], stdin=subprocess.PIPE
        ).communicate(text.encode())
    until(lambda: all(t.standing.started or t.standing.exit for t in trees), what="all of them")
    lucky = [t for t in trees if t.standing.started]
    assert len(lucky) == 1
    assert {t.reason() for t in trees if t not in lucky} == {("could_not_start", "capacity.none")}
    lucky[0].stop()
    lucky[0].exit()


# --- one supervisor an attempt
def test_of_many_supervisors_of_one_attempt_one_runs_it(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a", "(here / f'ran-{os.getpid()}').write_text(''); time.sleep(600)")
    text = json.dumps(vars(tree.spec)).encode()
    argv = [sys.executable, "-m", "kajiya.machine.supervisor", "-"]
    started = [subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True) for _ in range(5)]
    for one in started:
        assert one.stdin is not None
        one.stdin.write(text)
        one.stdin.close()
    until(
        lambda: sum(one.poll() is None for one in started) == 1 and list(tree.folder.glob("ran-*")), what="the others"
    )
    tree.stop()
    assert tree.exit()["ending"] == "stopped"
    for one in started:
        assert one.wait(30) == 0
    assert len(list(tree.folder.glob("ran-*"))) == 1


def test_the_same_attempt_can_not_be_run_again_in_its_folder(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a", "print('ran', flush=True)").start()
    tree.exit()
    again = tree.start()
    assert again.log == "ran\n"


def test_a_specification_in_a_file_is_removed_once_read(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a", "pass")
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(vars(tree.spec)))
    done = subprocess.run([sys.executable, "-m", "kajiya.machine.supervisor", str(spec)], timeout=60)
    assert (done.returncode, spec.exists(), tree.exit()["ending"]) == (0, False, "succeeded")


def test_records_are_private(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a", "print('x')").start()
    tree.exit()
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tree.folder.iterdir()}
    assert modes == dict.fromkeys(["exit.json", "lease.json", "log.txt"], 0o600)


# --- pids are used again
def test_a_reused_pid_is_nobody_we_knew(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        me = process.identity(stranger.pid)
        assert me is not None
        for forged in (me._replace(start_time=me.start_time - 1), me._replace(boot_id="another boot")):
            assert not process.alive(forged)
            assert not process.send(forged, signal.SIGKILL)
        tree = Tree(tmp_path / "a", "time.sleep(600)").start()
        lease = tree.running()
        tree.kill_supervisor()
        # As if the session's id were a stranger's by now.
        forged_lease = lease | {"child_pid": stranger.pid}
        (tree.folder / "lease.json").write_text(json.dumps(forged_lease))
        assert end_leftovers(tree.standing)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_records_of_another_attempt_are_not_believed(tmp_path: Path) -> None:
    first = Tree(tmp_path / "a", "pass", id="j1/1").start()
    first.exit()
    second = Tree(tmp_path / "b", "pass", id="j1/2")
    (first.folder / "exit.json").rename(second.folder / "exit.json")
    (first.folder / "lease.json").rename(second.folder / "lease.json")
    assert (second.standing.lease, second.standing.exit) == (None, None)


def test_what_a_nested_supervisor_left_is_found_below_the_outer_one(tmp_path: Path) -> None:
    """Who works on Kajiya inside a Kajiya server: orphans of the inner tree fall to the outer supervisor."""
    inner = Tree(tmp_path / "inner", DAEMON + "print('up', flush=True); time.sleep(600)", id="in/1")
    spec = tmp_path / "inner.json"
    spec.write_text(json.dumps(vars(inner.spec)))
    program = f"subprocess.run([{sys.executable!r}, '-m', 'kajiya.machine.supervisor', {str(spec)!r}]); time.sleep(600)"
    outer = Tree(tmp_path / "outer", program, id="out/1").start()
    (daemon,) = inner.says("up").pids()
    inner.kill_supervisor()
    assert lives(daemon)
    assert end_leftovers(inner.standing)
    assert not lives(daemon)
    assert outer.standing.alive and outer.standing.exit is None
    outer.stop()
    assert outer.exit()["ending"] == "stopped"
