"""A process that does nothing but reconcile, with the local backend: to be killed. Arguments: folder, CPUs."""

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

from kajiya.types import Amount, Capacity, GiB
from kajiya_hub.backends.local import LocalBackend
from kajiya_hub.reconcile import Reconciler, Site
from kajiya_hub.store.files import JobFiles
from kajiya_hub.store.store import Store

# Writes who it is, twice if it is run twice, works a while, and ends as its parameters say.
PLAY = """
import json, os, sys, time
run = json.load(open("../run.json"))
with open(run["parameters"]["ledger"], "a") as f:
    f.write(f"{run['job']} {run['attempt']}\\n")
time.sleep(run["parameters"]["seconds"])
sys.exit(run["parameters"].get("exit", 0))
"""


class Home:
    uid = gid = None

    def __init__(self, path):
        self.path = path

    def python(self, name="default"):
        return Path(sys.executable)

    def variables(self, name="default"):
        return {"PATH": "/usr/bin:/bin"}


class Homes:
    def __init__(self, path):
        self.path = path

    def of(self, user):
        return Home(self.path)


async def main(folder, cpus):
    backend = LocalBackend(
        Homes(folder), folder / "machine", command=lambda home, spec: [sys.executable, "-c", PLAY]
    )  # fmt: skip

    def capacity():
        return Capacity(
            cpu=Amount(total=cpus, free=cpus), memory=Amount(total=64 * GiB, free=64 * GiB), at=datetime.now(UTC)
        )

    loop = Reconciler(Store(str(folder / "k.sqlite")), backend, JobFiles(folder / "jobs"), Site(capacity=capacity))
    print("ready", flush=True)
    await loop.run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2])))
