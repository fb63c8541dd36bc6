"""What a notebook calls: submit a notebook as a job, find jobs again, see what is free."""

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from kajiya import notebook as notebooks
from kajiya import parameters as typed
from kajiya.client import Client, checked
from kajiya.files import Files, gather
from kajiya.handle import Job, Jobs
from kajiya.types import Capacity, Ending, JobSubmit, Status

_clients: dict[tuple[str | None, ...], Client] = {}
_mutex = threading.Lock()


def default_client() -> Client:
    """The client for the address and token of the environment, made once. Raises `NotConfigured`."""
    names = ("KAJIYA_API_URL", "KAJIYA_TOKEN", "JUPYTERHUB_API_TOKEN", "XDG_CONFIG_HOME", "HOME")
    # A fork must not share its parent's sockets.
    key = (str(os.getpid()), *(os.environ.get(n) for n in names))
    with _mutex:
        if key not in _clients:
            _clients[key] = Client()
        return _clients[key]


def submit(
    path: str | Path,
    parameters: Mapping[str, Any] | None = None,
    profile: str | None = None,
    options: Mapping[str, str] | None = None,
    files: Files | None = None,
    results: Iterable[str] | None = None,
    name: str | None = None,
    key: str | None = None,
    time_limit: int | None = None,
    retries: Mapping[Ending | str, int] | None = None,
    wait: bool = False,
    client: Client | None = None,
) -> Job:
    """Submits a notebook as a job, and gives the job at once; with `wait`, once it has succeeded.

    `path` is a notebook file, from the current folder. What is sent is the file as it was **last saved**: what stands
    in an open editor and is not saved yet does not travel.

    `parameters` are values for its parameters cell. `files` are files, folders or patterns that travel along, under
    their paths from the notebook's folder; `results` are patterns of files to keep from its working folder. The same
    `key` gives the same job, however often it is submitted. `time_limit` is in seconds, for each attempt; `retries`
    says how often each ending is tried again.

    Raises the leaves of `kajiya.errors`: what is wrong with notebook, parameters or files is said before anything is
    sent, the rest by the service. With `wait`, `JobFailed` too.
    """
    source = Path(path).expanduser()
    data, book = notebooks.read_file(source)
    values = typed.validate({k: plain(v) for k, v in (parameters or {}).items()}, typed.declared(book))
    spec = checked(
        JobSubmit,
        {
            "name": name,
            "notebook": source.name,
            "parameters": values,
            "profile": profile,
            "options": dict(options or {}),
            "time_limit": time_limit,
            "retries": None if retries is None else dict(retries),
            "results": [results] if isinstance(results, str) else list(results or ()),
        },
    )
    client = client or default_client()
    found = Job(client.submit(spec, data, gather(files, source), key), client)
    return found.wait() if wait else found


def job(id: str, client: Client | None = None) -> Job:
    """One of your jobs. Raises `JobNotFound`."""
    client = client or default_client()
    return Job(client.job(id), client)


def jobs(
    status: Status | str | Iterable[Status | str] = (),
    text: str | None = None,
    profile: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
    client: Client | None = None,
) -> Jobs:
    """Your jobs, the newest first: those of some statuses, with a text in their name, or of a profile."""
    client = client or default_client()
    statuses = [status] if isinstance(status, str) else list(status)
    query: dict[str, Any] = {"status": statuses, "text": text, "profile": profile, "limit": limit}
    page = client.jobs(**query, cursor=cursor)
    filtered = bool(statuses or text or profile or cursor)
    return Jobs([Job(j, client) for j in page.items], page.total, page.next, client, query | {"filtered": filtered})


def capacity(client: Client | None = None) -> Capacity:
    """What there is, and what is free now."""
    return (client or default_client()).capacity()


def plain(value: Any) -> Any:
    """A value as JSON knows it: NumPy's and pandas' scalars become Python's, arrays become lists, paths become text."""
    if isinstance(value, PurePath):
        return str(value)
    if type(value).__module__.split(".")[0] in ("numpy", "pandas"):
        for turn in ("tolist", "item"):
            with contextlib.suppress(AttributeError, ValueError, TypeError):
                return getattr(value, turn)()
    return value
