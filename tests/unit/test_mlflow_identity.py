"""Who asks MLflow: which credentials are a person's, and what happens while the Hub or the service is away."""

import base64
from pathlib import Path

import httpx
import pytest

from kajiya.errors import AttemptSuperseded, HubUnreachable, KajiyaError, NotAllowed, NotAuthenticated
from kajiya_hub.mlflow_app.identity import Identities, Person, ServiceUnreachable
from kajiya_hub.mlflow_app.options import Options

ACCESS = "access:services!service=mlflow"
HUB = {
    "user": {"name": "alice", "kind": "user", "admin": False, "scopes": [ACCESS]},
    "all": {"name": "alice", "kind": "user", "admin": True, "scopes": ["access:services"]},
    "root": {"name": "root", "kind": "user", "admin": True, "scopes": ["access:services", "admin:users"]},
    "robot": {"name": "alice", "kind": "service", "admin": False, "scopes": [ACCESS]},
    "narrow": {"name": "alice", "kind": "user", "scopes": [f"{ACCESS}2", "access:services!service=kajiya"]},
}
SERVICE = {
    "attempt": (200, {"name": "bob", "kind": "attempt", "job": "j", "attempt": 1}),
    "ended": (409, {"error": {"code": "access.attempt_superseded", "params": {"job": "j", "attempt": 1}}}),
    "elsewhere": (200, {"name": "bob", "kind": "user"}),
    "broken": (500, {}),
}


def identities(hub_up: bool = True, service_up: bool = True) -> tuple[Identities, list[str]]:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        token = request.headers["Authorization"].removeprefix("token ")
        asked.append(request.url.path)
        if request.url.path == "/hub/api/user":
            if not hub_up:
                raise httpx.ConnectError("down")
            return httpx.Response(200, json=HUB[token]) if token in HUB else httpx.Response(403, json={})
        if not service_up:
            raise httpx.ConnectError("down")
        status, body = SERVICE.get(token, (401, {}))
        return httpx.Response(status, json=body)

    options = Options(Path("/nowhere"), "http://hub/hub/api", "own", "http://service/services/kajiya/api")
    return Identities(options, httpx.MockTransport(answer)), asked


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "person"),
    [
        ("Bearer user", Person("alice")),
        ("token user", Person("alice")),
        ("bearer  user ", Person("alice")),
        (basic("alice:user"), Person("alice")),
        (basic(":user"), Person("alice")),
        (basic("token:user"), Person("alice")),
        ("Bearer all", Person("alice")),  # an administrator's notebook has no more rights than any
        ("Bearer root", Person("root", admin=True)),
        ("Bearer robot", Person("alice", service=True)),
        ("Bearer attempt", Person("bob")),
    ],
)
async def test_persons(header: str, person: Person) -> None:
    assert await identities()[0].of_header(header) == person


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ("", NotAuthenticated),
        ("user", NotAuthenticated),
        ("Digest user", NotAuthenticated),
        ("Bearer nobody", NotAuthenticated),
        ("Bearer elsewhere", NotAuthenticated),
        ("Bearer " + "x" * 10_000, NotAuthenticated),
        ("Bearer 鍛", NotAuthenticated),
        ("Basic !!!", NotAuthenticated),
        (basic("bob:user"), NotAuthenticated),
        (basic("user"), NotAuthenticated),
        ("Bearer narrow", NotAllowed),
        ("Bearer ended", AttemptSuperseded),
        ("Bearer broken", ServiceUnreachable),
    ],
)
async def test_refusals(header: str, error: type[KajiyaError]) -> None:
    with pytest.raises(error):
        await identities()[0].of_header(header)


async def test_answers_are_remembered_and_refusals_too() -> None:
    known, asked = identities()
    for _ in range(5):
        await known.of_header("Bearer attempt")
        await known.of_header("Bearer user")
    assert len(asked) == 3


async def test_jobs_go_on_while_the_hub_is_away() -> None:
    known, _ = identities(hub_up=False)
    assert await known.of_header("Bearer attempt") == Person("bob")
    with pytest.raises(HubUnreachable):
        await known.of_header("Bearer user")
    with pytest.raises(ServiceUnreachable):
        await identities(service_up=False)[0].of_header("Bearer attempt")
    assert await identities(service_up=False)[0].of_header("Bearer user") == Person("alice")
