"""Runs the cells of a notebook on a kernel and records what comes; one loop, one reader of each channel."""
# pyright: basic
# (nbclient says little of its types)

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from queue import Empty
from typing import Any

import zmq

from kajiya.messages import message
from kajiya.notebook import without_slow_imports
from kajiya.runner.kernel import Kernel
from kajiya.runner.outcome import Outcome
from kajiya.runner.recorder import Recorder

with without_slow_imports():
    from nbclient import NotebookClient

_WIDGETS_EVERY = 5.0
_AT_ONCE = 100
# ZeroMQ wakes a reader once. What an Output widget sends meanwhile on the same socket may take that wake-up, and the
# answer would lie there for ever.
_LOOK_AGAIN = 0.2
_INPUT_REFUSED = "StdinNotImplementedError"
_CLEAN_EXITS = ("", "0", "None")


@dataclass
class _Sent:
    """A cell that was sent to the kernel."""

    cell: int
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    reply: asyncio.Future[dict[str, Any]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    execution_count: int | None = None


class Execution(NotebookClient):
    """nbclient's client for widgets and comms, with our own loop, so that nothing is kept in the notebook.

    `run` returns how it ended. A message of an earlier cell (a thread that goes on) is recorded as that cell's.
    """

    def __init__(self, nb: Any, kernel: Kernel, recorder: Recorder, *, interrupt_seconds: float = 5.0) -> None:
        super().__init__(nb, km=kernel.manager)
        self.kc: Any = kernel.client
        self.kernel = kernel
        self.recorder = recorder
        self.interrupt_seconds = interrupt_seconds
        self.stop = asyncio.Event()
        self.broken = asyncio.Event()
        recorder.on_failure = self.broken.set
        self._sent: dict[str, _Sent] = {}
        self._dirty: set[str] = set()
        self._widgets_at = time.monotonic()
        self._now = 0
        self._number = 0
        self._refused = False

    # --- the run
    async def run(self) -> Outcome:
        """Runs the cells until the end, an error, the kernel's death, or `stop`. Raises the sink's `OSError`."""
        readers = [asyncio.create_task(self._read_iopub()), asyncio.create_task(self._read_shell())]
        try:
            code_index = 0
            for index, cell in enumerate(self.nb.cells):
                if cell.cell_type != "code" or not cell.source.strip():
                    continue
                if self.skip_cells_with_tag in cell.metadata.get("tags", []):
                    self.recorder.cell_end(index, "skipped", None, None)
                else:
                    outcome = await self._run_cell(index, code_index, cell)
                    if outcome is not None:
                        return outcome
                code_index += 1
            return Outcome("succeeded")
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _run_cell(self, index: int, code_index: int, cell: Any) -> Outcome | None:
        if self.stop.is_set():
            return Outcome("stopped", code="runner.stopped")
        self._now, self._number = index, code_index + 1
        self._refused = False
        self.recorder.cell_start(index, code_index, cell.source)
        started = time.monotonic()
        allowed = "raises-exception" in cell.metadata.get("tags", [])
        sent = _Sent(index)
        msg_id: str = self.kc.execute(cell.source, store_history=True, allow_stdin=False, stop_on_error=not allowed)
        self._sent[msg_id] = sent
        done = asyncio.ensure_future(_done(sent))
        await self._first_of(done)
        stopping = self.stop.is_set() and not done.done()
        if stopping:
            self.recorder.say(message("runner.log_stopping"))
            await self.kernel.interrupt()
            await asyncio.wait([done], timeout=self.interrupt_seconds)
        if self.kernel.died.is_set() and not done.done():
            await self._drain()
        finished = done.done()
        done.cancel()
        content = sent.reply.result()["content"] if finished else {}
        error = content.get("status") not in (None, "ok")
        self._check()
        self._write_widgets(index)
        status = "error" if error or not finished else "ok"
        seconds = round(time.monotonic() - started, 6)
        count = content.get("execution_count") or sent.execution_count
        self.recorder.cell_end(index, status, count, seconds)
        if self.stop.is_set():
            return Outcome("stopped", code="runner.stopped", cell=index, number=self._number)
        if not finished:
            return self._death(index)
        return self._after(index, content, error and not allowed)

    def _after(self, index: int, content: dict[str, Any], error: bool) -> Outcome | None:
        ename, evalue = str(content.get("ename", "")), str(content.get("evalue", ""))
        left = any(isinstance(p, dict) and p.get("source") == "ask_exit" for p in content.get("payload") or [])
        if left or (error and ename == "SystemExit" and evalue in _CLEAN_EXITS):
            return Outcome("succeeded", code="runner.left_early", cell=index, number=self._number, ename="SystemExit")
        if not error:
            return None
        code = "runner.input_refused" if self._refused else "runner.notebook_error"
        if self._refused:
            evalue = message("runner.input_refused")
        tail = [str(line) for line in content.get("traceback") or []]
        return Outcome(
            "notebook_error", code=code, cell=index, number=self._number, ename=ename, evalue=evalue, traceback=tail
        )

    def _death(self, index: int) -> Outcome:
        name, words = self.kernel.signal_name(), self.kernel.exit_words()
        params = {"signal": name, "exit_code": self.kernel.exit_code(), "how": words}
        tail = self.kernel.last_words()
        return Outcome(
            "kernel_died", code="runner.kernel_died", params=params, cell=index, number=self._number, traceback=tail
        )

    async def _first_of(self, done: asyncio.Future[None]) -> None:
        watched = [asyncio.ensure_future(event.wait()) for event in (self.kernel.died, self.stop, self.broken)]
        try:
            await asyncio.wait([done, *watched], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in watched:
                task.cancel()

    async def _drain(self) -> None:
        """What a kernel said before it died still lies in the socket."""
        before = -1
        while before != self.recorder.budget.used:
            self.recorder.flush()
            before = self.recorder.budget.used
            await asyncio.sleep(0.15)

    def _check(self) -> None:
        if self.recorder.failed is not None:
            raise self.recorder.failed

    # --- what the kernel says
    async def _read_shell(self) -> None:
        while True:
            with contextlib.suppress(Empty):
                msg = await self.kc.shell_channel.get_msg(timeout=_LOOK_AGAIN)
                sent = self._sent.get(msg["parent_header"].get("msg_id"))
                if sent is not None and not sent.reply.done() and msg["msg_type"] == "execute_reply":
                    sent.reply.set_result(msg)

    async def _read_iopub(self) -> None:
        socket = self.kc.iopub_channel.socket
        plain = zmq.Socket.shadow(socket.underlying)
        while True:
            await socket.poll(_LOOK_AGAIN * 1000)
            for _ in range(_AT_ONCE):
                try:
                    self._take(plain.recv_multipart(zmq.NOBLOCK))
                except zmq.Again:
                    break
            await asyncio.sleep(0)

    def _take(self, frames: list[bytes]) -> None:
        try:
            _, parts = self.kc.session.feed_identities(frames)
            self._heard(self.kc.session.deserialize(parts))
        except OSError as error:
            self.recorder.failed = error
            self.broken.set()
        except Exception as error:
            # A malformed message of the kernel must not end the run; the log says that it came.
            self.log.warning("A message of the kernel was passed over: %r", error)

    def _heard(self, msg: dict[str, Any]) -> None:
        sent = self._sent.get(msg["parent_header"].get("msg_id"))
        kind, content = msg["msg_type"], msg["content"]
        cell = sent.cell if sent is not None else self._now
        if kind.startswith("comm"):
            self._dirty.add(content["comm_id"])
            self.handle_comm_msg([], msg, cell)
            if time.monotonic() - self._widgets_at >= _WIDGETS_EVERY:
                self._write_widgets(cell)
            return
        if sent is None:
            return
        if kind == "status":
            if content["execution_state"] == "idle":
                sent.idle.set()
        elif kind == "execute_input":
            sent.execution_count = content.get("execution_count")
        elif kind == "clear_output":
            self.clear_output([], msg, cell)
        elif kind == "update_display_data":
            display = content["transient"]["display_id"]
            self.recorder.update_display(cell, display, content["data"], content.get("metadata") or {})
        elif kind in ("stream", "display_data", "execute_result", "error"):
            self.output([], msg, (content.get("transient") or {}).get("display_id"), cell)

    def output(self, outs: Any, msg: dict[str, Any], display_id: str | None, cell_index: int) -> None:
        """Records an output, or gives it to the Output widget that stands in front."""
        content = msg["content"]
        hooks = self.output_hook_stack.get(msg["parent_header"].get("msg_id"))
        if hooks:
            size = len(str(content))
            if self.recorder.count(cell_index, size):
                hooks[-1].output(outs, msg, display_id, cell_index)
                self._dirty.add(hooks[-1].comm_id)
            return
        kind = msg["msg_type"]
        if kind == "stream":
            self.recorder.stream(cell_index, str(content["name"]), str(content["text"]))
            return
        output: dict[str, Any] = {"output_type": kind}
        if kind == "error":
            output.update({key: content[key] for key in ("ename", "evalue", "traceback")})
            if output["ename"] == _INPUT_REFUSED:
                self._refused = True
                sentence = message("runner.input_refused")
                output.update(evalue=sentence, traceback=[*output["traceback"][:-1], f"{_INPUT_REFUSED}: {sentence}"])
        else:
            output.update(data=content["data"], metadata=content.get("metadata") or {})
            if kind == "execute_result":
                output["execution_count"] = content.get("execution_count")
        self.recorder.output(cell_index, output, display_id)

    def clear_output(self, outs: Any, msg: dict[str, Any], cell_index: int) -> None:
        """Records that the output is cleared, or tells the Output widget that stands in front."""
        hooks = self.output_hook_stack.get(msg["parent_header"].get("msg_id"))
        if hooks:
            hooks[-1].clear_output(outs, msg, cell_index)
            self._dirty.add(hooks[-1].comm_id)
        else:
            self.recorder.clear(cell_index, bool(msg["content"].get("wait")))

    def _write_widgets(self, cell: int) -> None:
        self._widgets_at = time.monotonic()
        models: dict[str, Any] = {}
        for comm in self._dirty:
            state = self.widget_state.get(comm)
            if state is None or "_model_name" not in state:
                continue
            models[comm] = self._serialize_widget_state(state)
            buffers = self.widget_buffers.get(comm)
            if buffers:
                models[comm]["buffers"] = list(buffers.values())
        self._dirty.clear()
        if models:
            self.recorder.widgets(cell, models)


async def _done(sent: _Sent) -> None:
    await sent.reply
    await sent.idle.wait()
