"""The API over a real store and real folders, in this process; no settings, no Hub, no backend."""

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from helpers.notebooks import code, data, notebook
from kajiya.errors import AttemptSuperseded, KajiyaError, NotAuthenticated
from kajiya.profiles import ProfileSet
from kajiya.runner.events import encode
from kajiya.types import Amount, Capacity, Ending, GiB, Job, Progress, Status, Whoami
from kajiya_hub.api.deps import Deps, Limits
from kajiya_hub.app import create_app
from kajiya_hub.auth import AttemptTokens, Identity, token_hash
from kajiya_hub.snapshots import SnapshotImages
from kajiya_hub.store.files import JobFiles
from kajiya_hub.store.rows import AttemptEnd, Final, Requeue
from kajiya_hub.store.store import Store

PREFIX = "/services/kajiya"
PROFILES = ProfileSet.model_validate(
    {
        "profiles": [
            {
                "slug": "small",
                "name": "Small",
                "resources": {"cpu": 1, "memory": "1G"},
                "env": {"OMP_NUM_THREADS": "1"},
            },
            {"slug": "huge", "name": "Huge", "resources": {"cpu": 512, "memory": "1T"}},
            {"slug": "team", "name": "Team", "groups": ["research"], "resources": {"cpu": 2, "memory": "2G"}},
            {
                "slug": "choose",
                "name": "Choose",
                "options": [
                    {
                        "slug": "size",
                        "name": "Size",
                        "choices": [
                            {"slug": "one", "name": "One"},
                            {"slug": "two", "name": "Two", "resources": {"cpu": 2}},
                        ],
                    }
                ],
            },
        ],
        "limits": {"jobs_queued": 20},
    }
)
NOTEBOOK = notebook(code("C = 1.0\nname = 'x'\nn: int = 3", "parameters"), code("print(C)"), code("C"))


class Tokens:
    """Who the tokens of the tests belong to; a token can be revoked."""

    def __init__(self, store: Store) -> None:
        self._attempts = AttemptTokens(store.attempt_for_token)
        self.known: dict[str, Identity | KajiyaError] = {
            "t-hanako": Identity(Whoami(name="hanako", groups=["research"])),
            "t-taro": Identity(Whoami(name="taro")),
            "t-admin": Identity(Whoami(name="root", admin=True)),
            "t-service": Identity(Whoami(name="kajiya", admin=True, kind="service")),
        }
        self.asked = 0

    async def identify(self, token: str) -> Identity:
        self.asked += 1
        answer = self.known.get(token) or await self._attempts.find(token)
        if answer is None:
            raise NotAuthenticated()
        if isinstance(answer, KajiyaError):
            raise answer
        return answer


@dataclass
class Service:
    """The API, and the store behind it played as the loop would."""

    deps: Deps
    tokens: Tokens
    http: httpx.AsyncClient
    woken: list[float]
    app: FastAPI

    @property
    def store(self) -> Store:
        return self.deps.store

    @property
    def files(self) -> JobFiles:
        return self.deps.files

    async def call(self, method: str, path: str, user: str | None = "hanako", **kwargs: Any) -> httpx.Response:
        """One request below /api as a user."""
        headers = dict(kwargs.pop("headers", {}))
        if user is not None:
            headers.setdefault("Authorization", f"token t-{user}")
        return await self.http.request(method, f"{PREFIX}/api/{path}", headers=headers, **kwargs)

    async def get(self, path: str, user: str | None = "hanako", **kwargs: Any) -> httpx.Response:
        return await self.call("GET", path, user, **kwargs)

    async def post(self, path: str, user: str | None = "hanako", **kwargs: Any) -> httpx.Response:
        return await self.call("POST", path, user, **kwargs)

    async def submit(
        self,
        spec: dict[str, Any] | bytes | None = None,
        book: dict[str, Any] | bytes = NOTEBOOK,
        files: dict[str, bytes] | None = None,
        user: str = "hanako",
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """A submit; `spec` is over a good default."""
        raw = spec if isinstance(spec, bytes) else json.dumps({"notebook": "train.ipynb"} | (spec or {})).encode()
        content = book if isinstance(book, bytes) else data(book)
        body, kind = form([("spec", None, raw), ("notebook", "train.ipynb", content),
                           *(("files", k, v) for k, v in (files or {}).items())])  # fmt: skip
        extra = {"Content-Type": kind} | ({"Idempotency-Key": key} if key is not None else {}) | (headers or {})
        return await self.post("jobs", user, content=body, headers=extra)

    async def job(self, **kwargs: Any) -> str:
        """The id of a job submitted well."""
        response = await self.submit(**kwargs)
        assert response.status_code == 201, response.text
        return response.json()["id"]

    # --- what the loop does
    def begin(self, job: str, token: str | None = None) -> int:
        """Begins an attempt, running."""
        active = self.store.begin_attempt(job, token_hash(token or secrets.token_hex()))
        assert active is not None
        self.files.prepare_attempt(job, active.attempt)
        (self.files.attempt(job, active.attempt) / "work").mkdir(parents=True)
        self.store.set_status(job, active.attempt, Status.running)
        return active.attempt

    def write(self, job: str, attempt: int, *events: dict[str, Any], name: str = "events.jsonl") -> int:
        """Adds events to an attempt's log; gives the size of it after."""
        path = self.files.attempt(job, attempt) / name
        with path.open("ab") as f:
            for event in events:
                f.write(encode({"t": 1764000000.0, **event}))
        return path.stat().st_size

    def log(self, job: str, attempt: int, text: bytes) -> None:
        """Adds to an attempt's printed log."""
        with (self.files.attempt(job, attempt) / "log.txt").open("ab") as f:
            f.write(text)

    def end(self, job: str, attempt: int, ending: Ending = Ending.succeeded, again: bool = False) -> None:
        """Ends an attempt, and the job unless it is tried again."""
        status = {Ending.succeeded: Status.succeeded, Ending.stopped: Status.stopped}.get(ending, Status.failed)
        collected = self.files.collect_results(job, attempt, ["*.png", "**/*.csv"])
        end = AttemptEnd(ending, exit_code=0, progress=Progress(cells_total=3, cells_done=3), results=collected.results)
        self.store.end_attempt(job, attempt, end, Requeue(0) if again else Final(status))

    def revoke(self, token: str, error: KajiyaError | None = None) -> None:
        """From now on the token is worth nothing."""
        self.tokens.known[token] = error or NotAuthenticated()


def form(fields: list[tuple[str, str | None, bytes]], boundary: str = "kajiyatest") -> tuple[bytes, str]:
    """A multipart body of (name, file name, content), and its content type; names go in as they are."""
    out = b""
    for name, filename, content in fields:
        file = "" if filename is None else '; filename="' + filename.replace("\\", "\\\\").replace('"', '\\"') + '"'
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        out += head.encode("utf-8", "surrogateescape") + content + b"\r\n"
    return out + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def capacity() -> Capacity:
    """A machine of four CPUs and 16 GiB, all free."""
    return Capacity(cpu=Amount(total=4, free=4), memory=Amount(total=16 * GiB, free=16 * GiB), at=datetime.now(UTC))


def make(root: Path, limits: Limits | None = None, **kwargs: Any) -> tuple[Deps, Tokens, list[float]]:
    """Dependencies over a folder."""
    store = Store(f"sqlite:///{root}/kajiya.sqlite")
    tokens = Tokens(store)
    woken: list[float] = []
    given: dict[str, Any] = {
        "store": store,
        "files": JobFiles(root / "jobs"),
        "snapshots": SnapshotImages(root / "snapshots", store),
        "authenticator": tokens,
        "profiles": lambda: PROFILES,
        "capacity": capacity,
        "wake": lambda: woken.append(time.monotonic()),
        "kernels": lambda owner, environment: ["python3"],
        "limits": limits or Limits(),
        "scrape_token": "s" * 32,
        **kwargs,
    }
    return Deps(**given), tokens, woken


@asynccontextmanager
async def service(root: Path, limits: Limits | None = None, **kwargs: Any) -> AsyncIterator[Service]:
    """The API in this process, without sockets; streams that stay open need `served` instead."""
    deps, tokens, woken = make(root, limits, **kwargs)
    app = create_app(deps)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield Service(deps, tokens, http, woken, app)
    deps.store.close()


@asynccontextmanager
async def served(root: Path, limits: Limits | None = None, **kwargs: Any) -> AsyncIterator[Service]:
    """The API on a real socket of the loopback interface, in this process."""
    deps, tokens, woken = make(root, limits, **kwargs)
    app = create_app(deps)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=3))
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
        if task.done():
            await task
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
        try:
            yield Service(deps, tokens, http, woken, app)
        finally:
            app.state.streams.close()
            server.should_exit = True
            await asyncio.wait_for(task, 15)
            deps.store.close()


def sha256(content: bytes) -> str:
    """The digest of a content, in hex."""
    return hashlib.sha256(content).hexdigest()


def tree(root: Path) -> list[str]:
    """Every file below the jobs' folder, what is being received included."""
    return sorted(str(p.relative_to(root)) for p in (root / "jobs").rglob("*") if p.is_file())


__all__ = ["AttemptSuperseded", "Job", "Service", "form", "make", "served", "service", "sha256", "tree"]
