"""The folders of jobs: input frozen at submit, one folder an attempt, and the files that are kept.

Layout below `root`: `<last 2 of id>/<id>/{input,attempts/<n>,results/<n>,checkpoint}`. What is being received lies in
`.incoming`, what is being removed in `.trash`.
"""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from kajiya.errors import AttemptNotFound, InvalidPath, JobNotFound, ResultNotFound, UploadTooLarge
from kajiya.sizes import show_size
from kajiya.types import MiB
from kajiya_hub.store.ids import is_id
from kajiya_hub.store.paths import printable, safe_path
from kajiya_hub.store.results import Caps, Collected, collect
from kajiya_hub.store.safe_open import disk_errors, fsync_folder, open_nofollow, remove_tree

CHUNK = MiB
FILES_MAX = 10_000


class JobFiles:
    """All folders of jobs below one root, which is made with mode 0711 where it is missing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True, mode=0o711)
            self._incoming.mkdir(exist_ok=True, mode=0o700)
            self._trash.mkdir(exist_ok=True, mode=0o700)

    @property
    def _incoming(self) -> Path:
        return self.root / ".incoming"

    @property
    def _trash(self) -> Path:
        return self.root / ".trash"

    # --- where things are
    def folder(self, job: str) -> Path:
        """The job's folder, whether it is there or not. Raises `JobNotFound` for what is no job id."""
        if not is_id(job):
            raise JobNotFound(job=printable(job))
        return self.root / job[-2:] / job

    def input(self, job: str) -> Path:
        """The folder with `notebook.ipynb`, `files/` and `job.json`."""
        return self.folder(job) / "input"

    def notebook(self, job: str) -> Path:
        """The notebook as it was submitted; only the service can write there."""
        return self.input(job) / "notebook.ipynb"

    def attempt(self, job: str, number: int) -> Path:
        """The attempt's folder; its owner may write there, so read in it by `open_attempt` only."""
        return self.folder(job) / "attempts" / str(int(number))

    def results(self, job: str, number: int) -> Path:
        """The kept files of an attempt."""
        return self.folder(job) / "results" / str(int(number))

    # --- receiving
    def receive(self, job: str, files_limit: int = 512 * MiB) -> "Inbox":
        """A place for a job's input; nothing of it counts before `Inbox.commit`. `files_limit` in bytes over all."""
        self.folder(job)
        return Inbox(self, job, files_limit)

    def copy_input(self, source: str, job: str) -> "Inbox":
        """The input of another job, to be run again; `job.json` is left to be written."""
        inbox = self.receive(job)
        try:
            with disk_errors(self.root):
                _link(self.notebook(source), inbox.path / "notebook.ipynb")
                _link_tree(self.input(source) / "files", inbox.path / "files")
        except FileNotFoundError as e:
            inbox.discard()
            raise JobNotFound(job=source) from e
        except BaseException:
            inbox.discard()
            raise
        return inbox

    # --- attempts
    def prepare_attempt(self, job: str, number: int) -> Path:
        """Makes room for an attempt that has yet to begin: what one of that number left is removed. Gives its folder,
        which the backend makes. Raises `DiskFull`."""
        path = self.attempt(job, number)
        with disk_errors(path):
            self._remove(path)
            path.parent.mkdir(exist_ok=True, parents=True, mode=0o711)
        return path

    def open_attempt(self, job: str, number: int, path: str) -> BinaryIO:
        """A file in an attempt's folder, without following links.

        Raises `FileNotFoundError`, `AttemptNotFound`, `InvalidPath`.
        """
        folder = self.attempt(job, number)
        if not folder.is_dir():
            raise AttemptNotFound(job=job, attempt=number)
        return open_nofollow(folder, path)

    def drop_attempt(self, job: str, number: int) -> None:
        """Removes an attempt that never got its place."""
        self._remove(self.attempt(job, number))

    def drop_work(self, job: str, number: int) -> None:
        """Removes the working folder of an ended attempt; its log, events and kept results stay."""
        self._remove(self.attempt(job, number) / "work")

    # --- results
    def collect_results(self, job: str, number: int, patterns: Sequence[str], caps: Caps | None = None) -> Collected:
        """Copies what the patterns want, and all in `work/results`, out of the attempt's working folder.

        Doing it again gives the same. Raises `DiskFull`.
        """
        kept = self.results(job, number)
        new = kept.with_name(f"{number}.new")
        with disk_errors(kept):
            remove_tree(new)
            new.parent.mkdir(exist_ok=True, mode=0o700)
            new.mkdir(mode=0o700)
            collected = collect(self.attempt(job, number) / "work", new, number, patterns, caps or Caps())
            remove_tree(kept)
            new.rename(kept)
            fsync_folder(kept.parent)
            if not collected.results:
                remove_tree(kept)
        return collected

    def open_result(self, job: str, number: int, path: str) -> BinaryIO:
        """A kept file. Raises `ResultNotFound`."""
        try:
            return open_nofollow(self.results(job, number), path)
        except (FileNotFoundError, InvalidPath) as e:
            raise ResultNotFound(job=job, path=printable(path)) from e

    # --- removing
    def delete(self, job: str) -> None:
        """Removes all of a job; nothing there is no error."""
        self._remove(self.folder(job))

    def _remove(self, path: Path) -> None:
        # Renamed first, so that a half removed folder is never met under its name.
        away = self._trash / f"{path.name}-{secrets.token_hex(6)}"
        try:
            path.rename(away)
        except FileNotFoundError:
            return
        remove_tree(away)

    def sweep(self, known: Callable[[Sequence[str]], set[str]], older_than: float = 7200) -> list[str]:
        """Removes what a crash left: half received input, half removed folders, and input whose job was never stored.

        Only what is older than so many seconds, as a submit may be under way; 0 is for the start. Gives the job ids.
        """
        latest = time.time() - older_than
        for folder in (self._incoming, self._trash):
            for path in folder.iterdir():
                if _age(path) <= latest:
                    remove_tree(path)
        orphans: list[str] = []
        for shard in self.root.iterdir():
            if len(shard.name) != 2 or not shard.is_dir():
                continue
            ids = [p.name for p in shard.iterdir() if is_id(p.name) and _age(p) <= latest]
            there = known(ids) if ids else set[str]()
            orphans += [i for i in ids if i not in there]
        for job in orphans:
            self.delete(job)
        return orphans


class Inbox:
    """The input of one job while it is received."""

    def __init__(self, files: JobFiles, job: str, files_limit: int) -> None:
        self._files = files
        self._left = files_limit
        self._limit = files_limit
        self.job = job
        self.files: list[str] = []
        self.path = files.root / ".incoming" / f"{job}-{secrets.token_hex(6)}"
        with disk_errors(self.path):
            self.path.mkdir(mode=0o700)
            (self.path / "files").mkdir(mode=0o700)

    def __enter__(self) -> "Inbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def notebook(self, source: BinaryIO | Iterable[bytes], limit: int = 50 * MiB) -> str:
        """Stores the notebook and gives its sha256 in hex. Raises `UploadTooLarge`, `DiskFull`."""
        return self._store(self.path / "notebook.ipynb", source, limit, limit)[0]

    def file(self, path: str, source: BinaryIO | Iterable[bytes]) -> str:
        """Stores one file and gives the path it lies at. Raises `InvalidPath`, `UploadTooLarge`, `DiskFull`."""
        path = safe_path(path)
        if len(self.files) >= FILES_MAX:
            raise UploadTooLarge(limit=f"{FILES_MAX} files")
        target = self.path / "files" / path
        try:
            with disk_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _, size = self._store(target, source, self._left, self._limit)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as e:
            # Sent twice, or a file where another has a folder.
            raise InvalidPath(path=printable(path)) from e
        self._left -= size
        self.files.append(path)
        return path

    def _store(self, target: Path, source: BinaryIO | Iterable[bytes], limit: int, shown: int) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        with disk_errors(target), target.open("xb") as f:
            for chunk in _chunks(source):
                size += len(chunk)
                if size > limit:
                    raise UploadTooLarge(limit=show_size(shown))
                digest.update(chunk)
                f.write(chunk)
            f.flush()
            os.fchmod(f.fileno(), 0o444)
            os.fsync(f.fileno())
        return digest.hexdigest(), size

    def document(self, content: dict[str, Any]) -> None:
        """Writes `job.json`, what was submitted, for a person who looks at the folder."""
        with disk_errors(self.path):
            _write(self.path / "job.json", json.dumps(content, ensure_ascii=False, indent=1).encode(errors="replace"))

    def commit(self) -> None:
        """Makes the input durable under its name; call it before the job is stored. Raises `DiskFull`."""
        final = self._files.input(self.job)
        with disk_errors(final):
            for folder, _, _ in os.walk(self.path):
                fsync_folder(Path(folder))
            # Passable and not listable: with accounts, each passes to its own attempts and sees no other ids.
            final.parent.parent.mkdir(exist_ok=True, mode=0o711)
            final.parent.mkdir(mode=0o711)
            self.path.rename(final)
            for folder in (final.parent, final.parent.parent, self._files.root):
                fsync_folder(folder)

    def discard(self) -> None:
        """Removes what was received and not committed."""
        remove_tree(self.path)


def _chunks(source: BinaryIO | Iterable[bytes]) -> Iterable[bytes]:
    read = getattr(source, "read", None)
    if read is None:
        yield from source
        return
    while chunk := read(CHUNK):
        yield chunk


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as f:
        os.fchmod(f.fileno(), 0o600)
        f.write(content)
        f.flush()
        os.fsync(f.fileno())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
        target.chmod(0o444)


def _link_tree(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True, mode=0o700)
    for folder, inner, names in os.walk(source):
        place = target / Path(folder).relative_to(source)
        for name in inner:
            (place / name).mkdir(exist_ok=True, mode=0o700)
        for name in names:
            _link(Path(folder) / name, place / name)


def _age(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return float("inf")
