"""Child processes of the stack: in sessions of their own, ended with their parent, with rotated logs."""

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

LOG_BYTES = 20 * 1024**2
LOGS_KEPT = 4
NO_SPACE_BYTES = 256 * 1024
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)


@dataclass
class Child:
    """One part of the stack, started again when it ends by itself, later each time until it has lived for a minute."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    # What the kernel sends it when this process dies. The Hub gets SIGKILL: on SIGTERM it would stop all servers.
    orphan_signal: signal.Signals = signal.SIGTERM
    nice: int = 0
    process: subprocess.Popen[bytes] | None = None
    started: float = 0
    failures: int = 0
    again_at: float = 0
    said_before: int = 0
    ready: bool = False
    ready_check: Callable[[], bool] = field(default=lambda: True)

    def start(self) -> None:
        """Starts it. Must be called on the main thread: the kernel's signal follows the starting thread's end."""
        rotate(self.log)
        parent = os.getpid()

        def before_exec() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(self.orphan_signal), 0, 0, 0)
            if os.getppid() != parent:  # the parent died before the call above
                os._exit(1)
            if self.nice:
                os.nice(self.nice)

        self.said_before = self.log.stat().st_size
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                list(self.argv),
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches this process only, which ends them in order
                preexec_fn=before_exec,
            )
        self.started = time.monotonic()
        self.ready = False

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def ended(self) -> int | None:
        """The exit status if it ended since it was started: negative for a signal."""
        return None if self.process is None else self.process.poll()

    def plan_restart(self) -> float:
        """Notes an end, and says in how many seconds it is started again."""
        now = time.monotonic()
        self.failures = 1 if now - self.started > 60 else self.failures + 1
        delay = 0.0 if self.failures == 1 else min(30.0, 0.5 * 2.0 ** (self.failures - 2))
        self.again_at, self.process, self.ready = now + delay, None, False
        return delay

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to it alone; nothing if it is gone."""
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    def kill_group(self) -> None:
        """Ends what it started and left behind in its own session."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Whether it ended within the time."""
        if self.process is None:
            return True
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def last_words(self) -> str:
        """The last line that it wrote to its log since it was started, for a sentence."""
        # A full disk took the words too.
        with suppress(OSError):
            if shutil.disk_usage(self.log.parent).free < NO_SPACE_BYTES:
                return "no space left on the disk"
        with suppress(OSError), self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self.said_before if self.said_before <= end else 0, end - 4000))
            lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
            if lines:
                return lines[-1].strip()[:300]
        return "nothing in its log"


def rotate(log: Path, size: int = LOG_BYTES, kept: int = LOGS_KEPT) -> None:
    """Moves a log's content aside once it is large; the file stays, so that whoever appends to it goes on."""
    try:
        if log.stat().st_size < size:
            return
    except FileNotFoundError:
        os.close(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600))
        return
    for number in range(kept - 1, 0, -1):
        older = log.with_name(f"{log.name}.{number}")
        if older.exists():
            older.rename(log.with_name(f"{log.name}.{number + 1}"))
    shutil.copyfile(log, log.with_name(f"{log.name}.1"))
    os.truncate(log, 0)
