"""`make bench`: measures each row against its alternative, prints the table, writes build/bench.json and the docs."""

import argparse
import importlib
import os
import pkgutil
import platform
import re
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import rows as rows_package  # noqa: E402
from bench.table import HEAD, REGISTRY, Row, save  # noqa: E402
from bench.workshop import NotMeasured, Workshop  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks.md"


def main() -> int:
    for module in pkgutil.iter_modules(rows_package.__path__):
        importlib.import_module(f"bench.rows.{module.name}")
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"which rows; all if left out: {', '.join(REGISTRY)}")
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/benchmarks.md")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(REGISTRY))
        return 0
    unknown = set(arguments.rows) - set(REGISTRY)
    if unknown:
        parser.error(f"there is no row {', '.join(sorted(unknown))}; rows are: {', '.join(REGISTRY)}")
    workshop, done = Workshop(), list[Row]()
    print(HEAD, flush=True)
    for name in arguments.rows or list(REGISTRY):
        try:
            for found in REGISTRY[name](workshop):
                done.append(found)
                print(found.as_markdown(), flush=True)
        except NotMeasured as e:
            done.append(Row(name, "", 1, problem=str(e)))
            print(done[-1].as_markdown(), flush=True)
    save(done, ROOT / "build" / "bench.json")
    if arguments.docs:
        write_page(done)
    return 0


def write_page(done: list[Row]) -> None:
    names = ("kajiya", "jupyterhub", "mlflow", "papermill", "aiohttp")
    versions = ", ".join(f"{n} {version(n)}" for n in names)
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
    when = f"Measured {date.today().isoformat()} on {machine}; {versions}."
    table = "\n".join([HEAD, *(r.as_markdown() for r in done), "", when])
    text = PAGE.read_text("utf-8")
    # A function, so that no backslash in the table is read as a group.
    new = re.sub(
        r"(<!-- figures -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}\n{table}\n\n{m[2]}", text, flags=re.DOTALL
    )
    PAGE.write_text(new, "utf-8")


if __name__ == "__main__":
    sys.exit(main())
