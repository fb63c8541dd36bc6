"""A stand-in for the service on a real socket, which can be killed, break streams and lose answers on demand.

It speaks the HTTP contract of the service, and holds its state so that a restart on the same port finds it again.
"""

import hashlib
import json
import re
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from kajiya import errors

PREFIX = "/services/kajiya"
TOKEN = "a-secret-token-0123456789"
NOTEBOOK = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {},
    "cells": [
        {
            "cell_type": "code",
            "id": "a",
            "metadata": {"tags": ["parameters"]},
            "source": "C = 1.0\nname = 'x'",
            "outputs": [],
            "execution_count": None,
        },
        {
            "cell_type": "code",
            "id": "b",
            "metadata": {},
            "source": "print(C)",
            "outputs": [],
            "execution_count": None,
        },
    ],
}


def now() -> str:
    return datetime.now(UTC).isoformat()


def job(id: str = "j0000000000000001", **changes: Any) -> dict[str, Any]:
    """A job as the service sends it."""
    return {
        "id": id,
        "owner": "mari",
        "name": "train_digits",
        "notebook": "train_digits.ipynb",
        "notebook_sha256": "0" * 64,
        "profile": "small",
        "resources": {"cpu": 1, "memory": 2**30, "gpus": 0, "gpu_kind": None},
        "environment": {"kind": "as_is", "name": "default"},
        "status": "queued",
        "submitted_at": now(),
    } | changes


class Fake:
    """The service's state, and the switches of its faults."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.cells: dict[str, list[dict[str, Any]]] = {}
        self.logs: dict[str, bytes] = {}
        self.kept: dict[str, dict[str, bytes]] = {}
        self.keys: dict[str, str] = {}
        self.received: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.break_after: list[int] = []  # after how many cell events each stream in turn is cut
        self.lose_answers = 0  # so many POSTs are done, and their answers lost
        self.refuse: dict[str, errors.KajiyaError] = {}  # by path
        self.plain: dict[str, tuple[int, bytes, dict[str, str]]] = {}  # answers that are none of ours, by path
        self.new_status = "queued"
        self.changed = threading.Condition()
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PREFIX}"

    def start(self) -> "Fake":
        fake = self

        class Handler(_Handler):
            service = fake

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 32

            def handle_error(self, request: Any, client_address: Any) -> None:
                # A client that went away is no news.
                if not isinstance(sys.exception(), OSError):
                    traceback.print_exc()

        self.stopping = False
        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __enter__(self) -> "Fake":
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self.kill()

    def kill(self) -> None:
        assert self._server is not None
        self.stopping = True
        with self.changed:
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._server = None

    def put(self, record: dict[str, Any]) -> dict[str, Any]:
        with self.changed:
            self.jobs[record["id"]] = record
            self.changed.notify_all()
        return record

    def change(self, id: str, **changes: Any) -> None:
        self.put(self.jobs[id] | changes)

    def cell(self, id: str, **line: Any) -> None:
        with self.changed:
            self.cells.setdefault(id, []).append({"t": time.time(), **line})
            self.changed.notify_all()


class _Handler(BaseHTTPRequestHandler):
    service: Fake
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_DELETE = do_GET

    def _answer(self) -> None:
        fake = self.service
        parts = urlsplit(self.path)
        path = parts.path.removeprefix(PREFIX)
        query = parse_qs(parts.query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fake.requests.append((self.command, self.path, dict(self.headers.items())))
        if path in fake.plain:
            status, content, headers = fake.plain[path]
            return self._send(status, content, headers)
        try:
            if path in fake.refuse:
                raise fake.refuse[path]
            if self.headers.get("Authorization") != f"token {TOKEN}" and path != "/health":
                raise errors.NotAuthenticated()
            self._route(path.removeprefix("/api"), query, body)
        except errors.KajiyaError as e:
            self._send(e.status, json.dumps(e.body("en")).encode())

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        fake = self.service
        match [unquote(p) for p in path.strip("/").split("/")]:
            case ["health"]:
                self._json({"ok": True, "version": "0.1.0", "parts": {"store": "ok"}})
            case ["whoami"]:
                self._json({"name": "mari", "groups": ["ml"], "a_key_from_the_future": 1})
            case ["capacity"]:
                amount = {"total": 4, "free": 2}
                gpu = {"kind": "Fake H100", "total": 2, "free": 1, "memory": 80 * 2**30}
                self._json(
                    {
                        "cpu": amount,
                        "memory": {"total": 8 * 2**30, "free": 2**30},
                        "gpus": [gpu],
                        "at": now(),
                    }
                )
            case ["profiles"]:
                small = {"slug": "small", "name": "Small", "description": "One CPU."}
                self._json([small | {"resources": {"cpu": 1, "memory": 2**30, "gpus": 0}}])
            case ["jobs"] if self.command == "POST":
                self._submit(body)
            case ["jobs"]:
                found = [
                    j
                    for j in reversed(fake.jobs.values())
                    if not query.get("status") or j["status"] in query["status"]
                    if not query.get("q") or query["q"][0] in j["name"]
                ]
                start, limit = int(query.get("cursor", ["0"])[0]), int(query.get("limit", ["50"])[0])
                more = str(start + limit) if start + limit < len(found) else None
                self._json({"items": found[start : start + limit], "next": more, "total": len(found)})
            case ["events"]:
                self._stream(None)
            case ["jobs", id, *rest]:
                if id not in fake.jobs:
                    raise errors.JobNotFound(job=id)
                self._job(id, rest, query, body)
            case _:
                raise errors.NotFound()

    def _job(self, id: str, rest: list[str], query: dict[str, list[str]], body: bytes) -> None:
        fake = self.service
        match rest:
            case [] if self.command == "DELETE":
                if fake.jobs[id]["status"] not in ("succeeded", "failed", "stopped"):
                    raise errors.JobNotEnded(job=id, status=fake.jobs[id]["status"])
                del fake.jobs[id]
                self._done(204, b"")
            case []:
                self._json(fake.jobs[id])
            case ["stop"]:
                fake.change(id, status="stopped" if fake.jobs[id]["status"] == "queued" else "stopping")
                self._done(200, json.dumps(fake.jobs[id]).encode())
            case ["again"]:
                changes = json.loads(body)
                new = fake.jobs[id] | {"id": f"j{len(fake.jobs) + 1:016}", "again_of": id, "status": "queued"}
                new["parameters"] = new.get("parameters", {}) | changes.pop("parameters", {})
                self._done(201, json.dumps(fake.put(new | changes)).encode())
            case ["events"]:
                self._stream(id)
            case ["log"]:
                content = fake.logs.get(id, b"")
                headers = {"Content-Type": "text/plain", "X-Next-Offset": str(len(content))}
                self._send(200, content[int(query.get("offset", ["0"])[0]) :], headers)
            case ["notebook"] | ["input"]:
                if fake.jobs[id]["status"] == "queued":
                    raise errors.NotebookNotReady(job=id)
                self._json(NOTEBOOK)
            case ["results"]:
                self._json(fake.jobs[id].get("results", []))
            case ["results", *path]:
                data = fake.kept.get(id, {}).get("/".join(path))
                if data is None:
                    raise errors.ResultNotFound(job=id, path="/".join(path))
                self._send(200, data, {"Content-Type": "application/octet-stream"})
            case _:
                raise errors.NotFound()

    def _submit(self, body: bytes) -> None:
        fake = self.service
        boundary = b"\r\n--" + self.headers["Content-Type"].partition("boundary=")[2].encode()
        got: dict[str, Any] = {"files": {}}
        for part in (b"\r\n" + body).split(boundary)[1:-1]:
            head, _, data = part.partition(b"\r\n\r\n")
            fields = dict(re.findall(rb'(\w+)="((?:[^"\\]|\\.)*)"', head))
            match fields[b"name"]:
                case b"spec":
                    got["spec"] = json.loads(data)
                case b"notebook":
                    got["notebook"] = data
                case _:
                    got["files"][re.sub(rb"\\(.)", rb"\1", fields[b"filename"]).decode()] = data
        key = self.headers["Idempotency-Key"]
        if key in fake.keys:
            return self._done(200, json.dumps(fake.jobs[fake.keys[key]]).encode())
        id = f"j{len(fake.jobs) + 1:016}"
        fake.keys[key] = id
        fake.received[id] = got
        spec = got["spec"]
        record = job(id, name=spec.get("name") or spec["notebook"].removesuffix(".ipynb"), status=fake.new_status)
        record |= {"notebook": spec["notebook"], "parameters": spec.get("parameters", {}), "files": list(got["files"])}
        self._done(201, json.dumps(fake.put(record)).encode())

    def _stream(self, id: str | None) -> None:
        fake = self.service
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        cut = fake.break_after.pop(0) if fake.break_after else None
        last = self.headers.get("Last-Event-ID", "")
        at = int(last.partition(":")[2]) if id and last else 0
        sent: dict[str, Any] = {}
        while not fake.stopping:
            for record in list(fake.jobs.values()):
                if record["id"] == (id or record["id"]) and sent.get(record["id"]) != record:
                    self._event("job", record, f"1:{at}" if id else str(record.get("seq", 0)))
                    sent[record["id"]] = record
            if id is not None:
                for line in fake.cells.get(id, [])[at:]:
                    at += 1
                    self._event("cell", line, f"1:{at}")
                    if cut is not None and (cut := cut - 1) == 0:
                        return
                if sent[id]["status"] in ("succeeded", "failed", "stopped"):
                    return self._event("end", {}, f"1:{at}")
            with fake.changed:
                fake.changed.wait(0.1)
            self.wfile.write(b": here\n\n")

    def _event(self, name: str, data: dict[str, Any], id: str) -> None:
        head = f"id: {id}\n" if id else ""
        self.wfile.write(f"{head}event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode())
        self.wfile.flush()

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode())

    def _done(self, status: int, content: bytes) -> None:
        if self.service.lose_answers:
            self.service.lose_answers -= 1
            self.close_connection = True
            return
        self._send(status, content)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def result(path: str, data: bytes) -> dict[str, Any]:
    """A kept file as a job's record names it."""
    return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "attempt": 1}
