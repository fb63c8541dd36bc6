"""One attempt: from its directory to an ending, with the event log and `outcome.json` left behind."""

import asyncio
import importlib
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from kajiya import notebook as notebooks
from kajiya.errors import KajiyaError
from kajiya.messages import message
from kajiya.runner.assemble import INJECTED
from kajiya.runner.budget import Budget
from kajiya.runner.events import FILE, first_line
from kajiya.runner.kernel import Kernel, KernelFailed
from kajiya.runner.outcome import Outcome
from kajiya.runner.recorder import Recorder
from kajiya.runner.sink import FileSink, Sink
from kajiya.runner.source import Source
from kajiya.runner.spec import Spec

_LARGEST = 512 * 1024**2
_START_SECONDS = 120.0
_SHUTDOWN_SECONDS = 10.0
_STOPPED_SECONDS = 3.0


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
        self.hash_seed = ""
        self.values: dict[str, Any] = {}
        self.replaced = False
        self.stop_noted = False
        self.started = time.monotonic()

    def run(self) -> int:
        """0 succeeded, 1 notebook error, 2 could not start, 3 kernel died, 143 stopped by SIGTERM."""
        asyncio.set_event_loop(self.loop)
        # Until the loop takes the signals over, they are only noted: an exception in the middle of an import would be
        # taken for the import's own.
        signal.signal(signal.SIGTERM, self._note_stop)
        signal.signal(signal.SIGINT, self._note_stop)
        outcome: Outcome | None = None
        try:
            try:
                self._prepare_and_execute()
                outcome = self.outcome or _failed("papermill ran nothing")
            except Stopped:
                outcome = Outcome("stopped", code="runner.stopped")
            except KajiyaError as error:
                outcome = Outcome("could_not_start", code=error.code, params=error.params)
            except KernelFailed as error:
                params = {"kernel": self.kernel.name if self.kernel else "?", "problem": error.problem}
                words = self.kernel.last_words() if self.kernel else []
                outcome = Outcome("could_not_start", "runner.kernel_not_started", params, traceback=words)
            except Exception as error:
                if not isinstance(error, OSError):
                    traceback.print_exc()
                outcome = self.outcome or _failed(error)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            outcome = self._close(outcome)
        finally:
            if self.kernel is not None:
                self.loop.run_until_complete(self.kernel.shutdown(self._patience(outcome)))
        assert outcome is not None
        return outcome.exit_code

    def _note_stop(self, *_: object) -> None:
        self.stop_noted = True

    # --- steps
    def _prepare_and_execute(self) -> None:
        try:
            self.spec = spec = Spec.load(self.folder)
        except ValueError as error:
            raise OSError(f"run.json: {error}") from None
        self.recorder.budget = spec.budget()
        _, book = notebooks.read_file(self.folder / "input" / "notebook.ipynb", _LARGEST)
        work = spec.work_folder()
        env = spec.environment(os.environ)
        self.hash_seed = env["PYTHONHASHSEED"]
        self._refuse_bad_parameters_first(spec, book)
        name = spec.kernel_name or notebooks.kernel_name(book) or "python3"
        self.kernel = kernel = Kernel(name, self.folder)
        self.language = notebooks.language(book) or kernel.language or "python"
        self.loop.run_until_complete(kernel.start(work, env, self.recorder.raw))
        # The kernel starts while papermill is imported: both take about half a second.
        self._execute_through_papermill(book, spec, name)

    def _refuse_bad_parameters_first(self, spec: Spec, book: notebooks.Notebook) -> None:
        if spec.parameters:
            from kajiya import parameters

            found = parameters.declared(book)
            self.values = parameters.to_python(parameters.validate(spec.parameters, found), found)

    def _execute_through_papermill(self, book: notebooks.Notebook, spec: Spec, kernel_name: str) -> None:
        with notebooks.without_slow_imports():
            papermill: Any = importlib.import_module("papermill.execute")
            iorw: Any = importlib.import_module("papermill.iorw")
        logging.getLogger("papermill").setLevel(logging.ERROR)
        self.replaced = notebooks.tagged_cell(book, INJECTED) is not None
        iorw.papermill_io.register("kajiya:", Source(book))
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
        if self.stop_noted:
            raise Stopped
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
            hash_seed=self.hash_seed,
        )  # fmt: skip
        self.recorder.say(message("runner.log_start", {"cells": len(code), "kernel": self.kernel.name}))
        if not self.values:
            return
        for index, cell in enumerate(nb.cells):
            if INJECTED in cell.metadata.get("tags", []):
                self.recorder.write(
                    "parameters", index=index, source=cell.source, cell_id=cell.get("id", INJECTED),
                    replaced=self.replaced, values=self.spec.parameters,
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
            outcome = _failed(error)
        self.sink.close()
        try:
            outcome.write(self.folder)
        except OSError as error:
            print(error, file=sys.stderr)
        given: dict[str, Any] = reason["params"] if reason else {}
        params = {"seconds": f"{time.monotonic() - self.started:.1f}", **given}
        if outcome.ending in ("could_not_start", "kernel_died"):
            self.recorder.say("\n".join(outcome.traceback))
        if reason is not None:
            self.recorder.say(message(reason["code"], params))
        self.recorder.say(message(f"runner.log_end_{outcome.ending}", params))
        return outcome

    def _patience(self, outcome: Outcome | None) -> float:
        """How long the kernel's exit hooks may take: after a stop, less than the grace that is left."""
        if outcome is None or self.outcome is None:
            return 0.0
        seconds = self._seconds("shutdown_seconds", _SHUTDOWN_SECONDS)
        return min(seconds, _STOPPED_SECONDS) if outcome.ending == "stopped" else seconds

    def _seconds(self, name: str, default: float) -> float:
        return self.spec.seconds(name, default) if self.spec else default


def _failed(problem: object) -> Outcome:
    return Outcome("could_not_start", code="runner.failed", params={"problem": str(problem)[:1000]})
