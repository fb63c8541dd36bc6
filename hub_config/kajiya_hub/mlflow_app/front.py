"""The ASGI application in front of all of MLflow: who asks, may they, and in which workspace."""

import asyncio
import logging
import secrets
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kajiya.errors import InvalidInput, KajiyaError, NotAllowed, NotAuthenticated, NotFound
from kajiya.messages import preferred_language
from kajiya_hub.mlflow_app import answers, rewrite
from kajiya_hub.mlflow_app.bridge import ASKING
from kajiya_hub.mlflow_app.identity import Identities, Person
from kajiya_hub.mlflow_app.routes import Kind, classify
from kajiya_hub.mlflow_app.signin import SignIn, cookies_of, same_origin
from kajiya_hub.mlflow_app.tenants import Tenant, Tenants

log = logging.getLogger("kajiya.mlflow")

LARGEST_BODY = 64 * 1024 * 1024
WORKSPACE = b"x-mlflow-workspace"
# Whoever opens these shall get a file, never a page that acts in the Hub's name (CVE-2026-44727 and its like).
_FILES = ("/get-artifact", "/model-versions/get-artifact")


class WorkspaceNotYours(NotFound):
    """A workspace of somebody else, or none at all; the answer does not tell which."""

    code, status = "mlflow.workspace", 404


class RouteRefused(NotAllowed):
    """A part of MLflow that can't be kept apart between users."""

    code, status = "mlflow.refused", 403


class BodyTooLarge(InvalidInput):
    """A body, other than a file, that is larger than the server takes into memory."""

    code, status = "mlflow.body_too_large", 413


class ForeignPage(NotAllowed):
    """A page of another site tried to use a browser's sign-in."""

    code, status = "mlflow.foreign_page", 403


class _Gone(Exception):
    """The client left while it was sending."""


class Front:
    """Wraps MLflow's application; see the package's docstring."""

    def __init__(self, app: ASGIApp, base_path: str, identities: Identities, signin: SignIn, tenants: Tenants) -> None:
        self._app = app
        self._base = base_path
        self._identities = identities
        self._signin = signin
        self._tenants = tenants

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._identities.close()
                await self._signin.close()
            return message

        await self._app(scope, closing, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        language = preferred_language(headers.get("accept-language", ""))
        path: str = scope["path"]
        if path == self._base:
            await answers.send_redirect(send, self._signin.path)
            return
        if not path.startswith(self._signin.path):
            await answers.send_error(send, NotFound(), language)
            return
        path = path[len(self._base) :]
        try:
            if path == "/oauth_callback":
                await self._back_from_hub(scope, headers, send)
                return
            # The raw form too: what one layer decodes once, the next may decode again.
            rewrite.check_path(scope.get("raw_path", b"").decode("latin-1").partition("?")[0])
            kind, reason = classify(path, scope["method"]) or (Kind.refused, "unknown")
            if kind is Kind.open:
                await self._pass(scope, receive, send, path, scope["query_string"], None, language)
                return
            person = await self._person(scope, headers)
            if kind is Kind.refused or (kind is Kind.administrators and not person.admin):
                raise _refusal(reason or "workspaces")
            await self._own(scope, receive, send, path, kind, person, headers, language)
        except NotAuthenticated as error:
            if _is_page(scope, headers):
                await self._to_hub(scope, headers, send)
            else:
                await answers.send_error(send, error, language)
        except KajiyaError as error:
            await answers.send_error(send, error, language)
        except _Gone:
            pass

    async def _person(self, scope: Scope, headers: dict[str, str]) -> Person:
        given = headers.get("authorization")
        if given is not None:
            return await self._identities.of_header(given)
        token = self._signin.token(cookies_of(headers.get("cookie", "")))
        if token is None:
            raise NotAuthenticated()
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not same_origin(headers):
            raise ForeignPage()
        return await self._identities.of_browser(token)

    async def _to_hub(self, scope: Scope, headers: dict[str, str], send: Send) -> None:
        query = scope["query_string"].decode("latin-1")
        secure = _secure(scope, headers)
        where, cookies = self._signin.begin(scope["path"] + (f"?{query}" if query else ""), secure)
        cookies = self._signin.forgotten(cookies_of(headers.get("cookie", "")), secure) + cookies
        await answers.send_redirect(send, where, cookies)

    async def _back_from_hub(self, scope: Scope, headers: dict[str, str], send: Send) -> None:
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        cookies = cookies_of(headers.get("cookie", ""))
        where, set_cookies = await self._signin.finish(query, cookies, _secure(scope, headers))
        await answers.send_redirect(send, where, set_cookies)

    async def _own(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        path: str,
        kind: Kind,
        person: Person,
        headers: dict[str, str],
        language: str,
    ) -> None:
        tenant = self._tenants.ready(person) or await asyncio.to_thread(self._ensure, person)
        asked = headers.get(WORKSPACE.decode(), "").strip()
        if asked and asked != tenant.workspace and not person.admin:
            raise WorkspaceNotYours(workspace=asked)
        workspace = asked or tenant.workspace
        if kind is Kind.info:
            await answers.send_json(send, 200, await asyncio.to_thread(_server_info, person))
            return
        if workspace != tenant.workspace:
            experiment = await asyncio.to_thread(self._experiment_of, workspace)
        else:
            experiment = tenant.experiment
        query = rewrite.query(scope["query_string"], lambda: experiment)
        given = dict(scope["headers"])
        replaced: dict[bytes, bytes] = {WORKSPACE: workspace.encode("latin-1")}
        if given.get(b"x-mlflow-experiment-id", b"").strip() == b"0":
            replaced[b"x-mlflow-experiment-id"] = experiment.encode()
        if kind is not Kind.artifact and _has_body(scope["method"], headers):
            raw = await _read(receive)
            # One route takes protobuf; elsewhere MLflow reads JSON whatever else the type says after a semicolon.
            if path != "/v1/traces" or "protobuf" not in headers.get("content-type", ""):
                raw = rewrite.body(raw, path, person.name, workspace, lambda: experiment)
            replaced[b"content-length"] = str(len(raw)).encode()
            receive = _replay(raw, receive)
        scope = {**scope, "headers": _replace(scope["headers"], replaced)}
        asking = ASKING.set(person.key)
        try:
            await self._pass(scope, receive, send, path, query, person, language)
        finally:
            ASKING.reset(asking)

    def _ensure(self, person: Person) -> Tenant:
        try:
            return self._tenants.ensure(person)
        except Exception as e:
            # A full disk, say: the cause is for the log, and the client gets a word to find it by.
            word = secrets.token_hex(4)
            log.exception("%s: the workspace of %r can't be made", word, person.key)
            raise KajiyaError(request=word) from e

    def _experiment_of(self, workspace: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return self._tenants.experiment(workspace)
        except MlflowException as e:
            raise WorkspaceNotYours(workspace=workspace) from e

    async def _pass(
        self, scope: Scope, receive: Receive, send: Send, path: str, query: bytes, person: Person | None, language: str
    ) -> None:
        inner = {**scope, "path": path, "raw_path": path.encode(), "root_path": "", "query_string": query}
        await self._app(inner, receive, _Guarded(send, path, language))


class _Guarded:
    """What goes back: safe headers, and a plain refusal of MLflow's auth app in MLflow's own form."""

    def __init__(self, send: Send, path: str, language: str) -> None:
        self._send, self._path, self._language = send, path, language
        self._swallow = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message["headers"] = list(message.get("headers", ()))
            kinds = [value for name, value in headers if name.lower() == b"content-type"]
            plain = not kinds or kinds[0].startswith(b"text/")
            if message["status"] == 403 and plain:
                self._swallow = True
                await answers.send_error(self._send, NotAllowed(action="see_mlflow_object"), self._language)
                return
            headers += [(b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"SAMEORIGIN")]
            if self._path in _FILES or "/artifacts/" in self._path or "get-trace-artifact" in self._path:
                headers.append((b"content-security-policy", b"sandbox; default-src 'none'"))
        elif self._swallow:
            return
        await self._send(message)


def _refusal(reason: str) -> RouteRefused:
    # A leaf for each reason would say no more: the reasons are texts, chosen in routes.py.
    kind = type("RouteRefused", (RouteRefused,), {"code": f"mlflow.refused.{reason}"})
    return kind()


def _server_info(person: Person) -> dict[str, Any]:
    from mlflow.server.handlers import build_server_info_payload

    info = build_server_info_payload()
    if not person.admin and "workspaces_enabled" in info:
        # Users have one workspace and never choose; so clients and the pages of MLflow need not offer it.
        info["workspaces_enabled"] = False
    if isinstance(info.get("features_enabled"), dict):
        info["features_enabled"] = dict.fromkeys(info["features_enabled"], False)
    return info


def _has_body(method: str, headers: dict[str, str]) -> bool:
    return (
        method not in ("GET", "HEAD", "OPTIONS")
        or headers.get("content-length", "0") != "0"
        or "transfer-encoding" in headers
    )


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LARGEST_BODY:
            raise BodyTooLarge(limit=f"{LARGEST_BODY // 2**20} MiB")
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting = [body]

    async def again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return again


def _replace(headers: list[tuple[bytes, bytes]], replaced: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    # What says who asks or how the body was sent ends here.
    dropped = {b"authorization", b"cookie", *replaced} | (
        {b"transfer-encoding"} if b"content-length" in replaced else set()
    )
    return [(name, value) for name, value in headers if name.lower() not in dropped] + list(replaced.items())


def _secure(scope: Scope, headers: dict[str, str]) -> bool:
    return (headers.get("x-forwarded-proto") or str(scope.get("scheme"))).split(",")[0].strip() == "https"


def _is_page(scope: Scope, headers: dict[str, str]) -> bool:
    if scope["method"] != "GET" or "authorization" in headers:
        return False
    mode = headers.get("sec-fetch-mode")
    return mode == "navigate" if mode else "text/html" in headers.get("accept", "")
