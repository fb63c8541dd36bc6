"""The moment between fork and program: everything that a supervised process is given before it becomes its program."""

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36  # linux/prctl.h
JOINING = "control group"
OOM_SCORE_ADJ = 300
"""So that on a machine without memory the kernel ends a job or a server before the service and the supervisors."""


class Account(NamedTuple):
    """The Unix account to become."""

    uid: int
    gid: int
    groups: list[int]


class CouldNotExecute(Exception):
    """The program could not be started; `errno` says why, `step` where."""

    def __init__(self, errno: int, step: str) -> None:
        super().__init__(f"{step}: {os.strerror(errno)}")
        self.errno, self.step = errno, step


def prctl(option: int, value: int) -> None:
    """prctl(2). Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def set_name(name: str) -> None:
    """The name of this process in /proc/PID/stat, at most 15 bytes; a program that it becomes has its own."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode("ascii"), 0, 0, 0)


def account(uid: int | None, gid: int | None) -> Account | None:
    """The account of a uid with its supplementary groups, or None to stay who we are."""
    if uid is None or uid == os.geteuid():
        return None
    import pwd

    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        group = uid if gid is None else gid
        return Account(uid, group, [group])
    group = entry.pw_gid if gid is None else gid
    return Account(uid, group, os.getgrouplist(entry.pw_name, group))


def start(
    argv: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
    output: int,
    cpus: Sequence[int],
    become: Account | None,
    join: Callable[[], None],
) -> int:
    """Starts a program in a session of its own, its output into a descriptor, and returns its pid.

    Nothing of ours is open in it, and it dies with this process. Raises `CouldNotExecute`.
    """
    told, tell = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        step = "fork"
        try:
            os.close(told)
            step = "session"
            os.setsid()
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            _forget_signals()
            step = JOINING
            join()
            step = "limits"
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, cpus)
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123
                file.write(str(OOM_SCORE_ADJ))
            step = "account"
            if become is not None:
                os.setgroups(become.groups)
                os.setresgid(become.gid, become.gid, become.gid)
                os.setresuid(become.uid, become.uid, become.uid)
            # After the change of account, which would clear it.
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            os.umask(0o077 if become is not None else 0o022)
            step = "cwd"
            os.chdir(cwd)
            step = "program"
            keep = os.dup2(tell, 3, inheritable=False) if tell != 3 else tell
            tell = keep
            os.closerange(4, _most_descriptors())
            os.execvpe(argv[0], list(argv), dict(env))  # noqa: S606
        except OSError as e:
            _tell(tell, e.errno or 0, step)
        except BaseException:
            _tell(tell, 0, step)
        finally:
            os._exit(127)
    os.close(tell)
    try:
        said = b"".join(iter(lambda: os.read(told, 256), b""))
    finally:
        os.close(told)
    if said:
        os.waitpid(pid, 0)
        number, _, step = said.decode("ascii", "replace").partition(" ")
        raise CouldNotExecute(int(number), step)
    return pid


def _tell(fd: int, number: int, step: str) -> None:
    with contextlib.suppress(OSError):
        os.write(fd, f"{number} {step}".encode("ascii"))


def _forget_signals() -> None:
    # Python ignores some signals, and what is ignored stays so in the program: `yes | head` would never end.
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _most_descriptors() -> int:
    return min(os.sysconf("SC_OPEN_MAX"), 1 << 20)
