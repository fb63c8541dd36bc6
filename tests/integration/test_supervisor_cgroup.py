"""The supervisor with a control group of its own: a stand-in folder, whose files the program plays the kernel with."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.trees import Tree, end_all, lives
from helpers.wait import until
from kajiya.machine import child, memory, process
from kajiya.types import MiB

SUPERVISE = """
import sys
from pathlib import Path
from kajiya.machine import memory, supervisor
memory.delegated = lambda: Path(sys.argv[1])
if sys.argv[3] == "closed":
    def refuse(self):
        raise PermissionError(13, "Permission denied")
    memory.Cgroup.join = refuse
supervisor.main(["--detach", sys.argv[2]])
"""


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    end_all()


def start(tree: Tree, base: Path, way: str = "open") -> Tree:
    base.mkdir(exist_ok=True)
    spec = base.parent / f"{tree.folder.name}.json"
    spec.write_text(json.dumps(vars(tree.spec)))
    subprocess.run([sys.executable, "-c", SUPERVISE, str(base), str(spec), way], check=True, stdout=subprocess.DEVNULL)
    return tree


# Plays the kernel: ends a process that uses much, and counts that in memory.events.
KERNEL = """
from pathlib import Path
group = next(Path({base!r}).glob("kajiya-*"))
victim = subprocess.Popen(["sleep", "600"])
print("begun", flush=True)
time.sleep(1.5)
victim.kill()
victim.wait()
(group / "memory.events.new").write_text("oom_kill 1\\n")
(group / "memory.events.new").rename(group / "memory.events")
print("went on", flush=True)
time.sleep(600)
"""


def test_whom_the_kernel_ended_is_named(tmp_path: Path) -> None:
    base = tmp_path / "cgroup"
    tree = start(Tree(tmp_path / "a", KERNEL.format(base=str(base)), grace=0.5), base).says("begun")
    (group,) = base.iterdir()
    assert (group / "memory.max").read_text() == str(1024 * MiB)
    assert (group / "cgroup.procs").read_text() == "0"
    assert tree.running()["cgroup"] == str(group)
    record = tree.exit()
    assert (record["ending"], record["reason"]["code"]) == ("out_of_memory", "memory.exceeded")
    assert record["reason"]["params"]["process"] == "sleep"
    assert "went on" in tree.log


def test_a_server_outlives_what_the_kernel_ended(tmp_path: Path) -> None:
    base = tmp_path / "cgroup"
    tree = start(Tree(tmp_path / "s", KERNEL.format(base=str(base)), kind="server", id="ann._"), base)
    tree.says("went on")
    until(lambda: (tree.folder / "notices.jsonl").exists())
    assert json.loads((tree.folder / "notices.jsonl").read_text())["process"] == "sleep"
    assert tree.standing.exit is None
    tree.stop()
    assert tree.exit()["ending"] == "stopped"


def test_a_group_that_can_not_be_entered_is_done_without(tmp_path: Path) -> None:
    program = "held = []\nwhile True:\n    held.append(b'x' * (16 << 20)); time.sleep(0.005)"
    tree = Tree(tmp_path / "a", program, resources={"memory": 200 * MiB})
    assert start(tree, tmp_path / "cgroup", "closed").reason() == ("out_of_memory", "memory.exceeded")


ROOTS = [r for r in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if os.access(f"{r}/cgroup.procs", os.W_OK)]


@pytest.mark.skipif(not ROOTS, reason="there are no control groups (cgroup v2) here that we may write in")
def test_a_real_group_ends_who_hides_from_all_else(tmp_path: Path) -> None:
    group = Path(ROOTS[0]) / f"kajiya-test-{os.getpid()}"
    group.mkdir()
    reading, writing = os.pipe()
    try:
        daemon = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; sleep 600"
        hide = f"setsid -f env -i /bin/sh -c '{daemon}'; sleep 600"
        env = {"PATH": os.environ["PATH"]}
        first = child.start(
            ["/bin/sh", "-c", hide], "/", env, writing, [0], None, memory.Cgroup(group, 1024 * MiB).join
        )
        hidden = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), what="the daemon"))
        assert process.members("none", [first]).keys() & {hidden} == set()
        memory.end_group(group, seconds=0)
        os.waitpid(first, 0)
        until(lambda: not lives(hidden), what="its end")
        memory.end_group(group)
        assert not group.exists()
    finally:
        os.close(reading)
        os.close(writing)
        memory.end_group(group)
