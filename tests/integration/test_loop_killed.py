"""The loop as a process of its own, with real attempts, killed again and again."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from helpers import loop_process
from helpers.wait import until
from helpers.world import Bench
from kajiya.types import FINAL, Ending, MiB, Resources, Status


def start(folder):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    script = str(Path(loop_process.__file__))
    process = subprocess.Popen(
        [sys.executable, script, str(folder), "2"], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_loop_killed_again_and_again_loses_nothing_and_doubles_nothing(tmp_path):
    bench = Bench(tmp_path)
    bench.store.clock = time.time
    ledger = tmp_path / "ledger"
    ledger.touch()
    rng = random.Random(3)
    wanted = {}

    def submit(**changes):
        parameters = {"ledger": str(ledger), "seconds": rng.choice([0, 0.2, 0.5, 1]), **changes}
        id = bench.submit(
            owner=rng.choice(["ann", "bob"]), parameters=parameters, resources=Resources(cpu=1, memory=64 * MiB)
        )
        wanted[id] = Status.failed if changes else Status.succeeded
        return id

    try:
        for _ in range(6):
            submit()
        for round in range(6):
            process = start(tmp_path)
            submit()
            if round == 2:
                submit(exit=1)
            time.sleep(rng.uniform(0.05, 1.2))  # when the kill comes is chance; that it is survived is the test
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        process = start(tmp_path)
        long = submit(seconds=120)
        wanted[long] = Status.stopped
        until(lambda: bench.job(long).status is Status.running, 60, "the last job")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        bench.store.request_stop(long, by="ann")
        process = start(tmp_path)
        until(lambda: all(bench.job(i).status in FINAL for i in wanted), 60, "the end of all jobs")
        assert {i: bench.job(i).status for i in wanted} == wanted
        # Every attempt that is known began once, and no other did.
        began = Counter(tuple(line.split()) for line in ledger.read_text().splitlines())
        assert set(began.values()) == {1}
        known = {
            (i, str(a.number)) for i in wanted for a in bench.job(i).attempts if a.ending is not Ending.could_not_start
        }
        assert set(began) == known
        assert not bench.store.active() and not bench.store.queued()
    finally:
        process.kill()
        process.wait()
        for id in wanted:
            if bench.job(id).status not in FINAL:
                bench.store.request_stop(id)
        bench.store.close()
