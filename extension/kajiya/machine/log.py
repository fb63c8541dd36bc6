"""What a tree prints, kept in a file up to a limit; beyond it is read and thrown away, so that the tree never waits."""

import contextlib
import errno
import fcntl
import os
import stat

CHUNK = 1 << 18
PIPE = 1 << 20  # the most that an unprivileged process may ask for (pipe(7), pipe-max-size)


class Log:
    """A pipe for a tree to print into, and the file that it ends up in."""

    def __init__(self, folder: int, name: str, limit: int, owner: tuple[int, int] | None = None) -> None:
        """Raises `OSError` where something else than our plain file has the name."""
        self.reading, self.writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reading, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, PIPE)
        self.limit = limit
        self.file = open_plain(folder, name, owner)
        self.size = os.fstat(self.file).st_size
        self.truncated = self.size > limit

    def drain(self, most: int = 64 * CHUNK) -> bool:
        """Takes what is in the pipe now, `most` bytes at most; False once nobody can print any more."""
        while most > 0:
            try:
                data = os.read(self.reading, CHUNK)
            except BlockingIOError:
                return True
            if not data:
                return False
            most -= len(data)
            self._keep(data)
        return True

    def say(self, sentence: str) -> None:
        """Adds a line of ours, beyond the limit too."""
        self._write(f"{sentence}\n".encode())

    def close(self) -> None:
        """Takes the rest and closes the file."""
        self.drain()
        for fd in (self.reading, self.file):
            with contextlib.suppress(OSError):
                os.close(fd)

    def _keep(self, data: bytes) -> None:
        if self.truncated:
            return
        room = self.limit - self.size
        if len(data) > room:
            self.truncated = True
            self._write(data[:room])
            from kajiya.messages import message
            from kajiya.sizes import show_size

            self._write(b"\n")
            self.say(message("log.truncated", {"limit": show_size(self.limit)}, "en"))
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        # A full disk costs lines of the log, never the job.
        with contextlib.suppress(OSError):
            while data:
                done = os.write(self.file, data)
                self.size += done
                data = data[done:]


def open_plain(folder: int, name: str, owner: tuple[int, int] | None = None) -> int:
    """Opens a file for adding lines; made for `owner` if it is not there. Raises `OSError` if it is no plain file."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=folder)
    facts = os.fstat(fd)
    # A second name would be a file of somebody else's, put here to have us write into it.
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        os.close(fd)
        raise OSError(errno.EINVAL, "is no plain file", name)
    if owner is not None:
        os.fchown(fd, *owner)
    return fd
