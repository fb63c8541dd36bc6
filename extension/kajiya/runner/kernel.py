"""The kernel of an attempt: a Jupyter kernel over ipc sockets in a short folder, watched by a pidfd."""

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

from kajiya.errors import KernelUnknown

# A Unix socket's path holds 107 bytes, and jupyter_client adds "k-5".
_LONGEST_FOLDER = 100
_RECONNECT_MS = 10
# A kernel drops messages where nobody takes them; the default of 1000 is a second of a fast one.
_MESSAGES_WAITING = 50_000
_LAST_BYTES = 16 * 1024
_LAST_LINES = 40
# Exit hooks run last in, first out: when the one made here has run, those of the notebook have. And a crash in C says
# where it was, to the stream that we read: ipykernel has taken file descriptor 2 for itself.
_PRELUDE = """\
__import__("atexit").register(__import__("os").unlink, {path!r})
__import__("faulthandler").enable(getattr(__import__("sys").stderr, "_original_stdstream_copy", 2), all_threads=False)
"""


class KernelFailed(Exception):
    """The kernel's process could not be started, or ended before it was ready; `problem` says how."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(problem)


def known_kernels() -> list[str]:
    """The names of the kernels that can be started here, sorted."""
    return sorted(_specs().find_kernel_specs())


def _specs() -> Any:
    """The kernel specs, with their folders named: else jupyter_client imports all of IPython for one of them."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_core.paths import jupyter_path

    ipython = Path(os.environ.get("IPYTHONDIR") or Path.home() / ".ipython")
    return KernelSpecManager(kernel_dirs=[*jupyter_path("kernels"), str(ipython / "kernels")])


class Kernel:
    """One kernel; made in the loop it is used in. Raises `KernelUnknown` where there is no such kernel."""

    def __init__(self, name: str, scratch: Path | None = None) -> None:
        from jupyter_client.kernelspec import NoSuchKernel
        from jupyter_client.manager import AsyncKernelManager

        specs = _specs()
        try:
            spec = specs.get_kernel_spec(name)
        except (NoSuchKernel, ValueError, OSError):
            raise KernelUnknown(kernel=name, known=known_kernels()) from None
        self.name = name
        self.language: str = (spec.language or "").lower()
        self._ipython = any("ipykernel" in word for word in spec.argv)
        self._folder = _short_folder(scratch)
        self._running = self._folder / "running"
        manager: Any = AsyncKernelManager(kernel_name=name, kernel_spec_manager=specs)
        manager.transport = "ipc"
        manager.ip = str(self._folder / "k")
        manager.connection_file = str(self._folder / "kernel.json")
        self.manager: Any = manager
        self.client: Any = None
        self.died: asyncio.Event = asyncio.Event()
        self._process: Any = None
        self._unwatch: Callable[[], None] = lambda: None
        self._heard = b""
        self._listening = False
        self._hear_more: Callable[[], None] = lambda: None

    async def start(self, cwd: Path, env: dict[str, str], hear: Callable[[str], None] | None = None) -> None:
        """Starts the process and connects to it, without waiting until it answers. Raises `KernelFailed`.

        What it writes past Jupyter's messages goes to `hear`; but ipykernel sends that as messages too, so for it only
        `last_words` are kept.
        """
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        self._listen(read_end, hear if hear and not self._ipython else lambda text: None)
        extra = ["--HistoryManager.enabled=False", "--HistoryManager.hist_file=:memory:"] if self._ipython else []
        try:
            await self.manager.start_kernel(
                extra_arguments=extra, cwd=str(cwd), env=env, stdout=write_end, stderr=write_end
            )
        except (OSError, RuntimeError, ValueError) as error:
            self._clean()
            raise KernelFailed(str(error)) from None
        finally:
            os.close(write_end)
        self._process = self.manager.provisioner.process
        self._watch()
        import zmq.asyncio

        context = zmq.asyncio.Context()
        context.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        context.setsockopt(zmq.RCVHWM, _MESSAGES_WAITING)
        self.client = self.manager.client(context=context)
        self.client.start_channels(stdin=False, hb=False)

    async def ready(self, seconds: float) -> None:
        """Waits until the kernel answers and its first message on iopub came, so that none is missed later.

        Raises `KernelFailed` after `seconds`, or where the process ends first.
        """
        deadline = time.monotonic() + seconds
        heard, answered = False, False
        while not (heard and answered):
            self.client.kernel_info()
            wait_until = min(deadline, time.monotonic() + (0.2 if answered else 2.0))
            while time.monotonic() < wait_until and not (heard and answered):
                if self.died.is_set():
                    raise KernelFailed(f"its process ended at once ({self.exit_words()})")
                answered = answered or await _any_message(self.client.shell_channel)
                heard = heard or await _any_message(self.client.iopub_channel)
                if not (heard and answered):
                    await asyncio.sleep(0.005)
            if time.monotonic() >= deadline:
                raise KernelFailed(f"it did not answer within {seconds:.0f} s")
        if self._ipython:
            self._running.touch()
            prelude = _PRELUDE.format(path=str(self._running))
            self.client.execute(prelude, silent=True, store_history=False, allow_stdin=False)

    async def interrupt(self) -> None:
        """Interrupts what the kernel is doing, as the stop button of JupyterLab does."""
        if self._process is not None and not self.died.is_set():
            try:
                await self.manager.interrupt_kernel()
            except (OSError, RuntimeError):
                pass

    async def shutdown(self, patience: float) -> None:
        """Asks the kernel to end, so that its exit hooks run, and kills it once they have, or after `patience` seconds.

        What follows the hooks in a kernel's end serves nobody, and in one of twenty ends ipykernel hangs there.
        """
        if self.client is not None and not self.died.is_set() and patience > 0:
            self.client.shutdown()
            deadline = time.monotonic() + patience
            while not self.died.is_set() and time.monotonic() < deadline:
                if self._ipython and not self._running.exists():
                    break
                await asyncio.sleep(0.01)
        self._kill()
        if self._process is not None:
            try:
                await asyncio.wait_for(self.died.wait(), 5)
            except TimeoutError:
                pass
        self._unwatch()
        if self.client is not None:
            self.client.stop_channels()
        self._clean()

    def signal_name(self) -> str | None:
        """The signal that ended the kernel, such as `SIGKILL`."""
        code = self._process.poll() if self._process is not None else None
        if code is None or code >= 0:
            return None
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"

    def exit_words(self) -> str:
        """How the process ended: `SIGKILL`, or `exit status 1`."""
        code = self._process.poll() if self._process is not None else None
        return self.signal_name() or f"exit status {code}"

    def exit_code(self) -> int | None:
        return self._process.poll() if self._process is not None else None

    def last_words(self) -> list[str]:
        """The last lines it wrote past Jupyter's messages: of a crash in C, say, or of a start that failed."""
        self._hear_more()
        text = self._heard.decode("utf-8", "replace").replace("\0", "")
        crash = text.rfind("Fatal Python error")
        lines = text[max(crash, 0) :].strip().split("\n")
        return lines[:_LAST_LINES] if crash >= 0 else lines[-_LAST_LINES:]

    def _listen(self, fd: int, hear: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()

        def more() -> None:
            try:
                data = os.read(fd, 64 * 1024) if self._listening else b""
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                self._heard = (self._heard + data)[-_LAST_BYTES:]
                hear(data.decode("utf-8", "replace"))
            elif self._listening:
                self._listening = False
                loop.remove_reader(fd)
                os.close(fd)

        self._listening = True
        self._hear_more = more
        loop.add_reader(fd, more)

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            fd = os.pidfd_open(self._process.pid)
        except OSError:
            self._watch_by_polling(loop)
            return

        def ended() -> None:
            self._process.poll()
            self.died.set()
            unwatch()

        def unwatch() -> None:
            nonlocal fd
            if fd >= 0:
                loop.remove_reader(fd)
                os.close(fd)
                fd = -1

        loop.add_reader(fd, ended)
        self._unwatch = unwatch

    def _watch_by_polling(self, loop: asyncio.AbstractEventLoop) -> None:
        async def poll() -> None:
            while self._process.poll() is None:  # noqa: ASYNC110  (a kernel too old for pidfd)
                await asyncio.sleep(0.1)
            self.died.set()

        task = loop.create_task(poll())
        self._unwatch = lambda: None if task.done() else (task.cancel(), None)[1]

    def _kill(self) -> None:
        if self._process is None:
            return
        for kill in (lambda: os.killpg(self._process.pid, signal.SIGKILL), self._process.kill):
            try:
                kill()
            except (OSError, ProcessLookupError):
                pass

    def _clean(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


async def _any_message(channel: Any) -> bool:
    try:
        await channel.get_msg(timeout=0)
    except Empty:
        return False
    return True


def _short_folder(scratch: Path | None) -> Path:
    """A folder of our own, 0700, for the sockets: in the attempt's where its path is short enough, else a temporary."""
    if scratch is not None and len(os.fsencode(scratch)) + 10 <= _LONGEST_FOLDER:
        return Path(tempfile.mkdtemp(prefix="k", dir=scratch))
    for parent in (None, "/tmp"):  # noqa: S108  (mkdtemp makes a folder of its own, 0700)
        folder = Path(tempfile.mkdtemp(prefix="kajiya-", dir=parent))
        if len(os.fsencode(folder)) <= _LONGEST_FOLDER:
            return folder
        folder.rmdir()
    raise KernelFailed("there is no folder whose path is short enough for its sockets")
