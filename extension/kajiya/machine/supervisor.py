"""The supervisor of one process tree: `python -m kajiya.machine.supervisor [--detach] SPEC`, a file, or - for stdin.

It outlives whoever starts it, holds the allocation, keeps the limits, and writes the exit record, which is the truth.
Only small modules are imported, because every attempt and every server waits for this.
"""

import contextlib
import errno
import json
import os
import select
import signal
import sys
import time
from typing import NoReturn

from kajiya.machine import child, endings, memory, process, records
from kajiya.machine.allocations import Allocation, Allocations, AlreadyHeld
from kajiya.machine.endings import Verdict
from kajiya.machine.log import Log, open_plain
from kajiya.machine.specification import Specification, read

KILL_AFTER_MEMORY = 5.0
"""Seconds that the rest of an attempt has to write its records, after the process that used too much was ended."""
LEFTOVER_GRACE = 1.0


class Supervisor:
    """One tree from its start to its exit record."""

    def __init__(self, spec: Specification, folder: int) -> None:
        self.spec, self.folder = spec, folder
        self.tree = f"{spec.kind}-{os.getpid()}-{os.urandom(8).hex()}"
        self.asked_to_end = False
        self.forced: Verdict | None = None
        self.kill_at: float | None = None
        self.child = 0
        self.status: int | None = None
        self.allocation: Allocation | None = None
        self.log: Log | None = None
        self.meter: memory.Meter | None = None
        self.next_look = 0.0
        self.victim: int | None = None
        self.victim_until = 0.0
        self.began = time.monotonic()
        self.kernel_kills = memory.kernel_kills()
        self.lease: records.Record = {}

    def on_signal(self, *_: object) -> None:
        """SIGTERM: the loop sees it, for the signal wakes it up."""
        self.asked_to_end = True

    def on_child(self, *_: object) -> None:
        """SIGCHLD: nothing to do but that the loop wakes up."""

    def run(self) -> None:
        """Everything; returns at once where another supervisor has the lease. Raises `OSError` before that only."""
        me = process.identity(os.getpid())
        assert me is not None
        self.lease = {"kind": self.spec.kind, "id": self.spec.id, "tree": self.tree, **me._asdict(), "child_pid": None}
        if not records.create(self.folder, records.LEASE, self.lease):
            return
        with contextlib.suppress(OSError):
            records.reserve(self.folder)
        try:
            found = self._start()
            if found is None:
                self._watch()
        except Exception as e:
            import traceback

            if self.log is not None:
                self.log.say(traceback.format_exc())
            found = self._failed(e)
        self._finish(found)

    # --- start
    def _start(self) -> Verdict | None:
        """Starts the program; a verdict where that can't be."""
        spec = self.spec
        become = child.account(spec.uid, spec.gid)
        owner = (become.uid, become.gid) if become else None
        self.log = Log(self.folder, spec.log, spec.log_limit, owner)
        try:
            self.allocation = Allocations(spec.machine_dir).take(
                spec.kind, spec.id, spec.owner, spec.profile, spec.want, spec.share_cpu, self.tree
            )
        except AlreadyHeld:
            return Verdict("could_not_start", "capacity.held")
        except Exception as e:
            code = getattr(e, "code", None)
            if code is None:
                raise
            return Verdict("could_not_start", code, getattr(e, "params", {}))
        self.meter = memory.meter(spec.want.memory, self.tree)
        if self._stop_wanted():
            return self.forced
        env = {**spec.env, process.TREE_VARIABLE: self.tree}
        # An empty value hides all GPUs: those of others are not to be touched by accident.
        env |= {"CUDA_VISIBLE_DEVICES": ",".join(self.allocation.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if spec.kind == "server":
            env["KAJIYA_NOTICES"] = str(spec.run_dir / records.NOTICES)
        self.began = time.monotonic()
        try:
            self.child = self._fork(env, become)
        except child.CouldNotExecute as e:
            what = {"cwd": spec.cwd, "program": spec.argv[0]}.get(e.step, e.step)
            params = {"program": what, "problem": os.strerror(e.errno) if e.errno else "an unknown error"}
            return Verdict("could_not_start", "process.not_executable", params)
        finally:
            os.close(self.log.writing)
        first = process.read_stat(self.child)
        self.lease |= {
            "child_pid": self.child,
            "child_start_time": first.start_time if first else None,
            "cpus": self.allocation.cpus,
            "gpus": self.allocation.gpus,
            "cgroup": str(self.meter.folder) if isinstance(self.meter, memory.Cgroup) else None,
            "started_at": time.time(),
        }
        # Whoever reads this only shows it; a disk that is full now must not end what runs.
        with contextlib.suppress(OSError):
            records.write(self.folder, records.LEASE, self.lease)
        return None

    def _fork(self, env: dict[str, str], become: child.Account | None) -> int:
        assert self.log is not None and self.allocation is not None and self.meter is not None
        while True:
            try:
                return child.start(
                    self.spec.argv,
                    self.spec.cwd,
                    env,
                    self.log.writing,
                    self.allocation.cpus,
                    become,
                    self.meter.join,
                )
            except child.CouldNotExecute as e:
                if e.step != child.JOINING or isinstance(self.meter, memory.Polled):
                    raise
            # A group that could be made and not be entered: looking does as well.
            self.meter.close()
            self.meter = memory.Polled(self.spec.want.memory)

    def _failed(self, e: Exception) -> Verdict:
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            code, params = "disk.full", {"path": str(self.spec.run_dir)}
        else:
            code, params = "supervisor.failed", {"problem": f"{type(e).__name__}: {e}"[:500]}
        return Verdict("preempted" if self.child else "could_not_start", code, params)

    # --- while it runs
    def _watch(self) -> None:
        assert self.log is not None
        waking, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, self.on_child)
        poll = select.poll()
        poll.register(waking, select.POLLIN)
        poll.register(self.log.reading, select.POLLIN)
        end_at = self.began + self.spec.time_limit if self.spec.time_limit else None
        self._reap()
        while self.status is None:
            now = time.monotonic()
            times = [t for t in (end_at, self.kill_at, self.next_look, now + 1) if t is not None]
            for fd, _ in poll.poll(max(1.0, (min(times) - now) * 1000)):
                if fd == waking:
                    with contextlib.suppress(BlockingIOError):
                        os.read(waking, 4096)
                elif not self.log.drain():
                    poll.unregister(fd)
            self._reap()
            now = time.monotonic()
            if self.status is not None:
                break
            if self.kill_at is None and self._stop_wanted():
                self._ask(self.spec.grace)
            if end_at is not None and now >= end_at:
                end_at = None
                if self.forced is None:
                    self.forced = Verdict("timed_out", "time.limit", {"seconds": self.spec.time_limit})
                    self._ask(self.spec.grace)
            if now >= self.next_look:
                self._look(now)
            if self.kill_at is not None and now >= self.kill_at:
                break
        signal.set_wakeup_fd(-1)

    def _stop_wanted(self) -> bool:
        """Whether to end now: by a `stop` file a person asked for it; by a bare SIGTERM the machine goes down."""
        if self.forced is not None:
            return False
        stop = None
        with contextlib.suppress(OSError):
            stop = records.read(self.folder, records.STOP)
        if stop is not None:
            grace = stop.get("grace")
            if isinstance(grace, (int, float)) and 0 <= grace <= 3600:
                self.spec.grace = float(grace)
            self.forced = Verdict("stopped")
        elif self.asked_to_end:
            server = self.spec.kind == "server"
            self.forced = Verdict("stopped") if server else Verdict("preempted", "machine.shutdown")
        return self.forced is not None

    def _ask(self, grace: float) -> None:
        self.kill_at = time.monotonic() + grace
        with contextlib.suppress(OSError):
            os.kill(self.child, signal.SIGTERM)

    def _look(self, now: float) -> None:
        assert self.meter is not None
        look = self.meter.look()
        self.next_look = now + memory.soon(look, self.meter.allowed)
        if look.killed is not None:
            self._out_of_memory(look.killed, look.used, now)
        elif look.exceeded:
            # A server lives on without the process that used too much, an attempt does not.
            spared = (self.child,) if self.spec.kind == "server" else ()
            victim = look.biggest(spared) or look.biggest()
            dying = self.victim is not None and any(p.pid == self.victim and p.used for p in look.processes)
            if victim is None or (dying and now < self.victim_until):
                return
            self.victim, self.victim_until = victim.pid, now + 5
            name = process.describe(victim.pid)
            with contextlib.suppress(OSError):
                os.kill(victim.pid, signal.SIGKILL)
            self._out_of_memory(name, look.used, now, whole=victim.pid == self.child)
            self.next_look = now + 0.05

    def _out_of_memory(self, name: str, used: int, now: float, whole: bool = False) -> None:
        from kajiya.sizes import show_size

        assert self.meter is not None and self.log is not None
        params = {"process": name, "used": show_size(used), "allowed": show_size(self.meter.allowed)}
        from kajiya.messages import message

        self.log.say(message("memory.exceeded", params, "en"))
        if self.spec.kind == "server":
            self._notice({"time": time.time(), "process": name, "used": used, "allowed": self.meter.allowed})
            if not whole:
                return
        again = self.forced is not None and self.forced.code == "memory.exceeded"
        if self.forced is None:
            self.forced = Verdict("out_of_memory", "memory.exceeded", params)
        until = now if whole or again else now + min(KILL_AFTER_MEMORY, self.spec.grace)
        self.kill_at = until if self.kill_at is None else min(until, self.kill_at)

    def _notice(self, notice: records.Record) -> None:
        become = child.account(self.spec.uid, self.spec.gid)
        with contextlib.suppress(OSError):
            fd = open_plain(self.folder, records.NOTICES, (become.uid, become.gid) if become else None)
            try:
                os.write(fd, (json.dumps(notice) + "\n").encode("ascii"))
            finally:
                os.close(fd)

    def _reap(self) -> None:
        """Collects whoever ended, orphans of the tree too: they fall to us, the subreaper."""
        if self.log is not None:
            self.log.drain()
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.child:
                self.status = os.waitstatus_to_exitcode(status)

    # --- end
    def _finish(self, found: Verdict | None) -> None:
        """Ends whoever is left, gives everything back, and tells how it ended."""
        # Who had its grace already gets none again.
        grace = LEFTOVER_GRACE if self.status is not None and self.kill_at is None else 0.0
        sessions = {self.child} if self.child else set[int]()
        if self.child:
            self._last_look()
        while process.end_tree(self.tree, [os.getpid()], sessions, grace, reap=self._reap):
            grace = 0.0  # someone can't be ended yet (a dead network disk, say): what it holds is not free either
        self._reap()
        if self.meter is not None:
            self.meter.close()
        if self.log is not None:
            self.log.close()
        if found is None:
            oom = memory.kernel_kills() > self.kernel_kills
            outcome = records.read(self.folder, records.OUTCOME)
            found = endings.verdict(self.spec.kind, self.status, outcome, self.forced, oom)
        record = self._record(found)
        # First free, then told: who hears of the end may use what it held.
        if self.allocation is not None:
            self.allocation.release()
        records.write_exit(self.folder, record, lambda tries: time.sleep(min(30.0, tries)))

    def _last_look(self) -> None:
        # The kernel may have ended the first process itself for its memory.
        if isinstance(self.meter, memory.Cgroup) and self.forced is None:
            look = self.meter.look()
            if look.killed is not None:
                self._out_of_memory(look.killed, look.used, time.monotonic(), whole=True)

    def _record(self, found: Verdict) -> records.Record:
        import resource

        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "kind": self.spec.kind,
            "id": self.spec.id,
            "ending": found.ending,
            "exit_code": self.status if self.status is not None and self.status >= 0 else None,
            "signal": endings.name_of(-self.status) if self.status is not None and self.status < 0 else None,
            "reason": found.reason,
            "usage": {
                "cpu_seconds": round(spent.ru_utime + spent.ru_stime, 3),
                "memory_peak": self.meter.peak if self.meter else 0,
                "wall_seconds": round(time.monotonic() - self.began, 3),
            },
            "ended_at": time.time(),
        }


def _detach() -> None:
    """Leaves the starter behind: it gets our pid and start time on stdout, and neither a child nor a zombie."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        os.read(told, 1)
        who = process.identity(pid)
        sys.stdout.write(json.dumps(who._asdict() if who else None) + "\n")
        sys.stdout.flush()
        os._exit(0)
    os.close(told)
    with contextlib.suppress(OSError):
        os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(tell)


def main(arguments: list[str]) -> NoReturn:
    """Supervises what SPEC says; exit status 0 once the exit record is written, or where another has the lease."""
    detach = "--detach" in arguments
    rest = [a for a in arguments if a != "--detach"]
    if len(rest) != 1:
        sys.exit("usage: python -m kajiya.machine.supervisor [--detach] SPEC")
    # Before anything else: a stop that comes early must not end us without a record.
    early: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda n, _: early.append(n))
    spec = read(rest[0])
    if detach:
        _detach()
    else:
        with contextlib.suppress(OSError):
            os.setsid()
    os.umask(0o077)
    os.closerange(3, min(os.sysconf("SC_OPEN_MAX"), 1 << 20))
    child.prctl(child.PR_SET_CHILD_SUBREAPER, 1)
    child.set_name(process.SUPERVISOR_NAME)
    with records.opened(spec.run_dir) as folder:
        supervisor = Supervisor(spec, folder)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, supervisor.on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        supervisor.asked_to_end = any(n != signal.SIGHUP for n in early)
        supervisor.run()
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
