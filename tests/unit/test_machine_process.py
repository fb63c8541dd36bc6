"""Reading /proc: hostile process names, identities, marks, and who is described how."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.wait import until
from kajiya.machine import process


@contextmanager
def running(*argv: str, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(argv, **options)  # type: ignore[call-overload]
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@pytest.mark.parametrize("name", ["plain", "a) S 1 1 1", "(((", "鍛冶屋", "two words"])
def test_a_process_may_call_itself_anything(tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    with running(str(program), "60") as one:
        found = until(lambda: (s := process.read_stat(one.pid)) and s.name != "python" and s)
        assert (found.parent, found.state in "SRD") == (os.getpid(), True)
        assert found.name.encode() == name.encode()[:15]
        assert process.alive(process.identity(one.pid))  # type: ignore[arg-type]


def test_a_zombie_is_not_alive_and_has_no_identity() -> None:
    with running("true") as one:
        until(lambda: (process.read_stat(one.pid) or process.Stat(0, "", "", 0, 0, 0, 0)).state == "Z")
        assert process.identity(one.pid) is None
        assert one.pid not in process.stats()
        assert one.pid in process.children(os.getpid())


def test_nobody_has_no_identity() -> None:
    assert process.read_stat(2**22 + 1) is None
    assert process.identity(2**22 + 1) is None
    assert not process.alive(process.Identity(0, 0, ""))


def test_to_be_out_of_descriptors_is_not_a_death() -> None:
    import resource

    me = process.identity(os.getpid())
    assert me is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            process.alive(me)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_members_are_found_by_mark_by_session_and_below_a_root() -> None:
    tree = "unit-test-members"
    marked = {"env": {**os.environ, process.TREE_VARIABLE: tree}, "start_new_session": True}
    with (
        running("sleep", "60", **marked) as by_mark,
        running("sleep", "60", start_new_session=True) as by_session,
        running("sh", "-c", "sleep 60 & wait") as root,
        running("sleep", "60") as stranger,
    ):
        below = until(lambda: process.children(root.pid))
        until(lambda: process.carries(by_mark.pid, tree))
        found = process.members(tree, [root.pid], [by_session.pid])
        assert found.keys() == {by_mark.pid, by_session.pid, root.pid, *below}
        assert process.end_tree(tree, [root.pid], [by_session.pid]) == []
        assert stranger.poll() is None


def test_a_mark_is_the_whole_mark() -> None:
    with running("sleep", "60", env={process.TREE_VARIABLE: "tree-12"}) as one:
        until(lambda: process.carries(one.pid, "tree-12"))
        assert not process.carries(one.pid, "tree-1")


def test_the_end_of_a_tree_never_takes_its_own_session_along() -> None:
    code = (
        "from kajiya.machine import process; import os; print(process.end_tree('none', [os.getpid()], [os.getsid(0)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True)
    assert (done.returncode, done.stdout) == (0, "[]\n")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["-c", "import time; time.sleep(60) # password=secret"], "{python}"),
        (["-m", "timeit", "-n", "1", "-s", "pass", "import time; time.sleep(60)"], "{python} -m timeit"),
        (["{script}", "--password=secret"], "{python} train 学習.py"),
    ],
)
def test_processes_are_described_without_their_secrets(tmp_path: Path, arguments: list[str], shown: str) -> None:
    script = tmp_path / "train 学習.py"
    script.write_text("import time; time.sleep(60)")
    argv = [a.replace("{script}", str(script)) for a in arguments]
    expected = shown.replace("{python}", Path(sys.executable).name)
    with running(sys.executable, *argv) as one:
        until(lambda: process.describe(one.pid) == expected, 10, expected)


def test_a_look_that_takes_too_long_is_given_up() -> None:
    import threading

    never = threading.Event()
    assert process.patiently(lambda: never.wait(60), 0.05, False) is False
    never.set()
    assert process.patiently(lambda: 7, 5, 0) == 7
