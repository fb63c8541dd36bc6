"""Client: the service's HTTP API as Python calls, typed, with the service's own errors.

What may be sent twice is sent again while the service restarts: reads, stops, and submits, which always carry an
idempotency key. So a service killed in the middle loses nothing and doubles nothing.
"""

import hashlib
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from kajiya import credentials
from kajiya.client_snapshots import SnapshotCalls
from kajiya.connection import Connection, Event, M
from kajiya.errors import DownloadDamaged, FileExists, InvalidRequest, JobEnded, JobNotFound
from kajiya.messages import preferred_language
from kajiya.types import Capacity, Health, Job, JobAgain, JobSubmit, Page, ProfileView, Result, Status, Whoami
from kajiya.upload import Upload

FOLLOW_PATIENCE = 300.0


class Client(SnapshotCalls):
    """Talks to one service as one user. Close it, or use it in a `with` statement.

    Address and token come from the arguments, else KAJIYA_API_URL and KAJIYA_TOKEN (or the server's
    JUPYTERHUB_API_TOKEN), else from `kajiya login`. `patience` is how many seconds a service that is away is waited
    for. Calls raise the leaves of `kajiya.errors`: `Unreachable` where the service stays away, `NotAuthenticated`, and
    what the service refuses with. Raises `NotConfigured` where no address is known.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        transport: httpx.BaseTransport | None = None,
        language: str | None = None,
        patience: float = 30.0,
    ) -> None:
        where = credentials.find(url, token)
        self._line = Connection(where, transport, language or preferred_language(), patience)

    @property
    def url(self) -> str:
        """The service's address."""
        return self._line.url

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the connections back."""
        self._line.close()

    # --- who and what
    def health(self) -> Health:
        """Whether the service works, part by part."""
        return self._line.get(Health, "health")

    def whoami(self) -> Whoami:
        """Who the token belongs to."""
        return self._line.get(Whoami, "api/whoami")

    def capacity(self) -> Capacity:
        """What there is, and what is free now."""
        return self._line.get(Capacity, "api/capacity")

    def profiles(self) -> list[ProfileView]:
        """The profiles open to this user."""
        return self._line.items(ProfileView, "api/profiles")

    # --- jobs
    def submit(
        self,
        spec: JobSubmit,
        notebook: bytes,
        files: Mapping[str, Path] | None = None,
        key: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Job:
        """Submits a notebook; `files` by the relative path they arrive as. The same `key` gives the same job."""
        body = Upload(
            spec.model_dump_json(exclude_none=True).encode(),
            (Path(spec.notebook).name or "notebook.ipynb", notebook),
            files or {},
            progress,
        )
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        answer = self._line.send(
            "POST", "api/jobs", make=lambda: {"content": iter(body), "headers": body.headers | headers}, timeout=300
        )
        return self._line.parse(Job, answer)

    def job(self, id: str) -> Job:
        """One job. Raises `JobNotFound`, also for the job of another user."""
        return self._line.get(Job, f"api/jobs/{_id(id)}")

    def jobs(
        self,
        status: Sequence[str | Status] = (),
        text: str | None = None,
        profile: str | None = None,
        owner: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[Job]:
        """Jobs, the newest first, filtered; `cursor` is the `next` of the page before."""
        params: dict[str, Any] = {
            "status": [str(s) for s in status],
            "q": text,
            "profile": profile,
            "owner": owner,
            "limit": limit,
            "cursor": cursor,
        }
        return self._line.get(Page[Job], "api/jobs", {k: v for k, v in params.items() if v not in (None, [])})

    def stop(self, id: str) -> Job:
        """Asks for a job's stop; it has stopped when its status says so. Raises `JobEnded`."""
        tries: list[int] = []
        try:
            answer = self._line.send("POST", f"api/jobs/{_id(id)}/stop", make=lambda: _counted(tries))
        except JobEnded:
            # Stopped by the first try, whose answer got lost.
            if len(tries) == 1:
                raise
            return self.job(id)
        return self._line.parse(Job, answer)

    def again(self, id: str, changes: JobAgain | None = None, key: str | None = None) -> Job:
        """Runs a job's own inputs again as a new job, with changes."""
        body = (changes or JobAgain()).model_dump(mode="json", exclude_none=True)
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return self._line.parse(
            Job,
            self._line.send("POST", f"api/jobs/{_id(id)}/again", make=lambda: {"json": body, "headers": headers}),
        )

    def delete(self, id: str) -> None:
        """Deletes an ended job with all it kept. Raises `JobNotEnded`."""
        tries: list[int] = []
        try:
            self._line.send("DELETE", f"api/jobs/{_id(id)}", make=lambda: _counted(tries))
        except JobNotFound:
            # Gone by the first try, whose answer got lost.
            if len(tries) == 1:
                raise

    def notebook(self, id: str, attempt: int | None = None) -> bytes:
        """The executed notebook as it is now, also while the job runs."""
        params = {} if attempt is None else {"attempt": attempt}
        return self._line.send("GET", f"api/jobs/{_id(id)}/notebook", make=lambda: {"params": params}).content

    def input(self, id: str) -> bytes:
        """The notebook as it was submitted."""
        return self._line.send("GET", f"api/jobs/{_id(id)}/input").content

    def log(self, id: str, attempt: int | None = None, offset: int = 0) -> bytes:
        """The log from a byte offset on."""
        params: dict[str, Any] = {"offset": offset} | ({} if attempt is None else {"attempt": attempt})
        return self._line.send("GET", f"api/jobs/{_id(id)}/log", make=lambda: {"params": params}).content

    def log_size(self, id: str, attempt: int | None = None) -> int:
        """How many bytes of log there are; an offset to read only what comes after."""
        params: dict[str, Any] = {"offset": 2**62} | ({} if attempt is None else {"attempt": attempt})
        answer = self._line.send("GET", f"api/jobs/{_id(id)}/log", make=lambda: {"params": params})
        return int(answer.headers.get("X-Next-Offset", 0))

    def results(self, id: str) -> list[Result]:
        """The files that a job kept."""
        return self._line.items(Result, f"api/jobs/{_id(id)}/results")

    def download(
        self,
        id: str,
        path: str,
        to: Path,
        sha256: str | None = None,
        overwrite: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Saves one kept file as `to`, whole or not at all. Raises `FileExists`, `DownloadDamaged`."""
        if not overwrite and to.exists():
            raise FileExists(path=str(to))
        to.parent.mkdir(parents=True, exist_ok=True)
        url = f"api/jobs/{_id(id)}/results/{quote(path)}"

        def take(answer: httpx.Response) -> None:
            digest, done = hashlib.sha256(), 0
            with _beside(to) as out:
                for chunk in answer.iter_bytes(256 * 1024):
                    out.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(done, int(answer.headers.get("content-length") or 0))
                if sha256 is not None and digest.hexdigest() != sha256:
                    raise DownloadDamaged(path=path)

        self._line.send("GET", url, timeout=120, take=take)
        return to

    # --- streams
    def events(
        self,
        id: str,
        after: str = "",
        stop: threading.Event | None = None,
        lost: Callable[[str], None] | None = None,
        patience: float | None = FOLLOW_PATIENCE,
    ) -> Iterator[Event]:
        """A job's events as they come, from the start or `after` an event's id, until its end or until `stop` is set.

        A lost connection is taken up again where it broke, with no gap and no double; `lost` hears of each loss.
        Raises `Unreachable` once the service was away for `patience` seconds (None waits for ever).
        """
        seen = _position(after)
        for event in self._line.follow(f"api/jobs/{_id(id)}/events", after, stop, lost, patience):
            if event.kind == "cell":
                position = _position(event.id)
                if position is not None and seen is not None and position <= seen:
                    continue
                seen = position or seen
            yield event
            if event.kind == "end":
                return

    def changes(
        self,
        after: str = "",
        stop: threading.Event | None = None,
        lost: Callable[[str], None] | None = None,
        patience: float | None = FOLLOW_PATIENCE,
    ) -> Iterator[Event]:
        """Every change of this user's jobs, as `job` events, until `stop` is set. See `events`."""
        yield from self._line.follow("api/events", after, stop, lost, patience)


def checked(model: type[M], values: Mapping[str, Any]) -> M:
    """A request made of these values. Raises `InvalidRequest` naming the first that can't be sent."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as e:
        first = e.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(field=field, problem=first["msg"]) from None


def _counted(tries: list[int]) -> dict[str, Any]:
    tries.append(1)
    return {}


def _id(id: str) -> str:
    return quote(id, safe="") or "_"


def _position(id: str) -> tuple[int, int] | None:
    attempt, _, offset = id.partition(":")
    return (int(attempt), int(offset)) if attempt.isdecimal() and offset.isdecimal() else None


@contextmanager
def _beside(to: Path) -> Generator[BinaryIO, None, None]:
    """A file that becomes `to` once it is whole; half a file is never seen under that name."""
    fd, temporary = tempfile.mkstemp(dir=to.parent, prefix=".kajiya-", suffix=".part")
    try:
        with os.fdopen(fd, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        # mkstemp makes 0600; a download gets what any new file of this user gets.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(to)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
