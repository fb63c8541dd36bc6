"""One attempt: from its directory to an ending, with the event log and `outcome.json` left behind."""

import asyncio
import importlib
import logging
import os
import shutil
import signal
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import orjson

from kajiya import notebook as notebooks
from kajiya.errors import KajiyaError
from kajiya.messages import message
from kajiya.runner.budget import Budget
from kajiya.runner.events import FILE, first_line
from kajiya.runner.kernel import Kernel, KernelFailed
from kajiya.runner.outcome import Outcome
from kajiya.runner.recorder import Recorder
from kajiya.runner.sink import FileSink, Sink

HASH_SEED = "0"
_LARGEST = 512 * 1024**2
_START_SECONDS = 120.0
_SHUTDOWN_SECONDS = 10.0


@dataclass(frozen=True)
class Spec:
    """What `run.json` asks for."""

    parameters: dict[str, Any]
    kernel_name: str | None
    job: str
    attempt: str
    limits: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "Spec":
        """Raises `ValueError` or `OSError` where there is no such file or it is not ours."""
        raw: Any = orjson.loads((folder / "run.json").read_bytes())
        if not isinstance(raw, dict) or not isinstance(raw.get("parameters", {}), dict):
            raise ValueError("run.json is no object with parameters")
        return cls(
            parameters=raw.get("parameters") or {},
            kernel_name=raw.get("kernel_name"),
            job=str(raw.get("job", "")),
            attempt=str(raw.get("attempt", 1)),
            limits=raw.get("limits") or {},
        )

    def budget(self) -> Budget:
        return Budget(
            per_cell=int(self.limits.get("cell_output_bytes") or Budget.per_cell),
            per_job=int(self.limits.get("output_bytes") or Budget.per_job),
        )

    def seconds(self, name: str, default: float) -> float:
        value = self.limits.get(name)
        return float(value) if isinstance(value, (int, float)) else default


class Stopped(Exception):
    """SIGTERM came before the notebook ran."""


class AttemptRun:
    """Runs the attempt of one directory; `run` returns the exit status."""

    def __init__(self, folder: Path, sink: Sink | None = None, log: TextIO | None = None) -> None:
        self.folder = folder
        self.sink = sink or FileSink(folder / FILE)
        self.recorder = Recorder(self.sink, Budget(), log)
        self.loop = asyncio.new_event_loop()
        self.kernel: Kernel | None = None
        self.outcome: Outcome | None = None
        self.spec: Spec | None = None
        self.language = ""
        self.started = time.monotonic()

    def run(self) -> int:
        """0 succeeded, 1 notebook error, 2 could not start, 3 kernel died, 143 stopped by SIGTERM."""
        asyncio.set_event_loop(self.loop)
        signal.signal(signal.SIGTERM, _stop_early)
        signal.signal(signal.SIGINT, _stop_early)
        try:
            try:
                self._prepare_and_execute()
                outcome = self.outcome or Outcome("could_not_start", code="runner.failed", params={"problem": "?"})
            except Stopped:
                outcome = Outcome("stopped", code="runner.stopped")
            except KajiyaError as error:
                outcome = Outcome("could_not_start", code=error.code, params=error.params)
            except KernelFailed as error:
                params = {"kernel": self.kernel.name if self.kernel else "?", "problem": error.problem}
                outcome = Outcome("could_not_start", code="runner.kernel_not_started", params=params)
            except OSError as error:
                outcome = Outcome("could_not_start", code="runner.failed", params={"problem": str(error)})
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            outcome = self._close(outcome)
        finally:
            if self.kernel is not None:
                patience = 0.0 if self.outcome is None else self._seconds("shutdown_seconds", _SHUTDOWN_SECONDS)
                self.loop.run_until_complete(self.kernel.shutdown(patience))
        return outcome.exit_code

    # --- steps
    def _prepare_and_execute(self) -> None:
        try:
            self.spec = spec = Spec.load(self.folder)
        except ValueError as error:
            raise OSError(f"run.json: {error}") from None
        self.recorder.budget = spec.budget()
        _, book = notebooks.read_file(self.folder / "input" / "notebook.ipynb", _LARGEST)
        work = self._work_folder()
        env = self._environment(spec)
        self._refuse_bad_parameters_first(spec, book)
        name = spec.kernel_name or notebooks.kernel_name(book) or "python3"
        self.kernel = kernel = Kernel(name, self.folder)
        self.language = notebooks.language(book) or kernel.language or "python"
        self.loop.run_until_complete(kernel.start(work, env))
        # The kernel starts while papermill is imported: both take about half a second.
        self._execute_through_papermill(book, spec, name)

    def _refuse_bad_parameters_first(self, spec: Spec, book: notebooks.Notebook) -> None:
        self.values: dict[str, Any] = {}
        if spec.parameters:
            from kajiya import parameters

            found = parameters.declared(book)
            self.values = parameters.to_python(parameters.validate(spec.parameters, found), found)

    def _execute_through_papermill(self, book: notebooks.Notebook, spec: Spec, kernel_name: str) -> None:
        with notebooks.without_slow_imports():
            papermill: Any = importlib.import_module("papermill.execute")
            iorw: Any = importlib.import_module("papermill.iorw")
        logging.getLogger("papermill").setLevel(logging.ERROR)
        had_injected = notebooks.tagged_cell(book, "injected-parameters") is not None
        self._replaced = had_injected
        iorw.papermill_io.register("kajiya:", _Source(book))
        papermill.execute_notebook(
            "kajiya:notebook.ipynb",
            None,
            parameters=self.values or None,
            engine_name="kajiya",
            kernel_name=kernel_name,
            language=self.language,
            progress_bar=False,
            session=self,
        )

    def execute(self, nb: Any) -> Any:
        """Called by papermill's engine with the notebook whose parameters are in place; keeps nothing in it."""
        for cell in nb.cells:
            if cell.cell_type == "code":
                cell.outputs = []
        self._write_start(nb)
        self.outcome = self.loop.run_until_complete(self._run(nb))
        return nb

    async def _run(self, nb: Any) -> Outcome:
        from kajiya.runner.execution import Execution

        assert self.kernel is not None and self.spec is not None
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, stop.set)
        ready = asyncio.ensure_future(self.kernel.ready(self._seconds("start_seconds", _START_SECONDS)))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait([ready, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not ready.done():
            ready.cancel()
            raise Stopped
        ready.result()
        execution = Execution(nb, self.kernel, self.recorder, interrupt_seconds=self._seconds("interrupt_seconds", 5.0))
        execution.stop = stop
        try:
            return await execution.run()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                self.loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)

    def _write_start(self, nb: Any) -> None:
        assert self.kernel is not None and self.spec is not None
        code = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
        self.recorder.cells_total = len(code)
        self.recorder.write(
            "start", cells_total=len(code), kernel=self.kernel.name, language=self.language,
            hash_seed=os.environ.get("PYTHONHASHSEED"),
        )  # fmt: skip
        self.recorder.say(message("runner.log_start", {"cells": len(code), "kernel": self.kernel.name}))
        if not self.values:
            return
        for index, cell in enumerate(nb.cells):
            if "injected-parameters" in cell.metadata.get("tags", []):
                self.recorder.write(
                    "parameters", index=index, source=cell.source, cell_id=cell.get("id", "injected-parameters"),
                    replaced=self._replaced, values=self.spec.parameters,
                )  # fmt: skip
                shown = {"names": sorted(self.values), "source": first_line(cell.source)}
                self.recorder.say(message("runner.log_parameters", shown))
                break
        self.sink.sync()

    def _close(self, outcome: Outcome) -> Outcome:
        """Writes the end and the outcome; where the disk is full, as much as can be."""
        if self.recorder.failed is not None or outcome.code == "runner.failed":
            self.outcome = None
        reason = outcome.reason
        try:
            self.recorder.write(
                "end", status=outcome.ending, reason=reason, ename=outcome.ename,
                evalue=(outcome.evalue or "")[:4000] or None, cell=outcome.cell,
            )  # fmt: skip
            self.sink.sync()
        except OSError as error:
            outcome = Outcome("could_not_start", code="runner.failed", params={"problem": str(error)})
        self.sink.close()
        try:
            outcome.write(self.folder)
        except OSError as error:
            print(error, file=sys.stderr)
        params = {"seconds": f"{time.monotonic() - self.started:.1f}", **((reason or {}).get("params") or {})}
        if reason is not None:
            self.recorder.say(message(reason["code"], params))
        self.recorder.say(message(f"runner.log_end_{outcome.ending}", params))
        return outcome

    # --- the surroundings of the kernel
    def _work_folder(self) -> Path:
        work = self.folder / "work"
        work.mkdir(mode=0o700, exist_ok=True)
        given = self.folder / "input" / "files"
        if given.is_dir():
            _copy_missing(given, work)
        return work

    def _environment(self, spec: Spec) -> dict[str, str]:
        """The kernel's environment; hashing is fixed, so that the order of a set is the same in every attempt."""
        env = os.environ
        env.setdefault("KAJIYA_JOB", spec.job)
        env.setdefault("KAJIYA_ATTEMPT", spec.attempt)
        env.setdefault("KAJIYA_RESULTS_DIR", str(self.folder.absolute() / "work" / "results"))
        env.setdefault("KAJIYA_CHECKPOINT_DIR", str(self.folder.absolute() / "checkpoint"))
        env.setdefault("PYTHONHASHSEED", HASH_SEED)
        for name in ("KAJIYA_RESULTS_DIR", "KAJIYA_CHECKPOINT_DIR"):
            Path(env[name]).mkdir(mode=0o700, parents=True, exist_ok=True)
        token = self.folder / "token"
        if token.is_file():
            secret = token.read_text("utf-8").strip()
            env.setdefault("KAJIYA_TOKEN", secret)
            env.setdefault("MLFLOW_TRACKING_TOKEN", secret)
        return dict(env)

    def _seconds(self, name: str, default: float) -> float:
        return self.spec.seconds(name, default) if self.spec else default


class _Source:
    """papermill's way to the notebook: the one that was read and checked, under a fixed name."""

    def __init__(self, book: notebooks.Notebook) -> None:
        self._book = book

    def read(self, path: str) -> str:
        cells = [{**cell, "outputs": []} if "outputs" in cell else cell for cell in self._book["cells"]]
        return notebooks.dump({**self._book, "cells": cells}).decode("utf-8", "replace")

    def listdir(self, path: str) -> list[str]:
        return []

    def write(self, buf: str, path: str) -> None:
        """Nothing: the event log is the truth."""

    def pretty_path(self, path: str) -> str:
        return path


def _copy_missing(source: Path, target: Path) -> None:
    """Copies files and folders that are not there yet; links and special files are left out."""
    for entry in os.scandir(source):
        mode = entry.stat(follow_symlinks=False).st_mode
        new = target / entry.name
        if stat.S_ISDIR(mode):
            new.mkdir(mode=0o700, exist_ok=True)
            _copy_missing(Path(entry.path), new)
        elif stat.S_ISREG(mode) and not new.exists():
            shutil.copyfile(entry.path, new, follow_symlinks=False)


def _stop_early(*_: object) -> None:
    raise Stopped
