"""Whose a token is: the Hub's answers, remembered for a while and never longer; attempts; fixed tokens."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from kajiya.errors import AttemptSuperseded, HubUnreachable, KajiyaError, NotAllowed, NotAuthenticated
from kajiya_hub.auth import AttemptTokens, Authenticators, HubAuthenticator, ServiceTokens, token_from, token_hash

SCOPE = "access:services!service=kajiya"


def model(**changes: Any) -> dict[str, Any]:
    """What /hub/api/user answers."""
    return {"kind": "user", "name": "mari", "admin": False, "groups": ["b", "a"], "scopes": [SCOPE]} | changes


class Hub:
    """A Hub that counts questions, and may be away."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response] | None = None) -> None:
        self.asked: list[httpx.Request] = []
        self.now = 1000.0
        self.answer = answer or (lambda request: httpx.Response(200, json=model()))
        self.auth = HubAuthenticator(
            "http://hub/hub/api/", transport=httpx.MockTransport(self._handle), clock=lambda: self.now
        )

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        await asyncio.sleep(0)
        return self.answer(request)


async def test_the_hub_is_asked_with_the_token_itself() -> None:
    hub = Hub()
    identity = await hub.auth.find("abc")
    assert identity is not None
    assert identity.whoami.model_dump(exclude_none=True) == {
        "name": "mari", "admin": False, "groups": ["a", "b"], "kind": "user"}  # fmt: skip
    assert [(str(r.url), r.headers["authorization"]) for r in hub.asked] == [("http://hub/hub/api/user", "token abc")]


@pytest.mark.parametrize(
    ("scopes", "fits"),
    [
        ([SCOPE], True),
        (["access:services"], True),
        (["access:services!service=kajiya2"], False),
        (["access:services!service=kajiya!user=mari"], False),
        (["access:services!service=kaji"], False),
        (["access:servers", "admin:users", "self"], False),
        ([], False),
        (None, False),
    ],
)
async def test_scopes_are_compared_exactly(scopes: list[str] | None, fits: bool) -> None:
    hub = Hub(lambda request: httpx.Response(200, json=model(scopes=scopes)))
    if fits:
        assert (await hub.auth.find("abc")) is not None
    else:
        with pytest.raises(NotAllowed):
            await hub.auth.find("abc")


@pytest.mark.parametrize(
    ("admin", "scopes", "acts"),
    [(True, [SCOPE, "admin:users"], True), (True, [SCOPE], False), (False, [SCOPE, "admin:users"], False)],
)
async def test_a_servers_token_makes_no_administrator(admin: bool, scopes: list[str], acts: bool) -> None:
    hub = Hub(lambda request: httpx.Response(200, json=model(admin=admin, scopes=scopes)))
    identity = await hub.auth.find("abc")
    assert identity is not None
    assert identity.admin is acts


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(401), NotAuthenticated),
        (httpx.Response(403, json={"status": 403}), NotAuthenticated),
        (httpx.Response(500), HubUnreachable),
        (httpx.Response(503, text="<html>"), HubUnreachable),
        (httpx.Response(404), HubUnreachable),
        (httpx.Response(302, headers={"location": "http://evil/"}), HubUnreachable),
        (httpx.Response(200, text="<html>"), HubUnreachable),
        (httpx.Response(200, json=[]), HubUnreachable),
        (httpx.Response(200, json={"scopes": [SCOPE]}), HubUnreachable),
        (httpx.Response(200, json=model(name="")), HubUnreachable),
        (httpx.ConnectError("refused"), HubUnreachable),
        (httpx.ReadTimeout("slow"), HubUnreachable),
    ],
)
async def test_only_the_hubs_own_no_is_a_no(answer: httpx.Response | Exception, error: type[KajiyaError]) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(error):
        await Hub(handle).auth.find("abc")


async def test_answers_are_remembered_ten_seconds_and_refusals_two() -> None:
    hub = Hub()
    for _ in range(3):
        await hub.auth.find("abc")
    hub.now += 9.9
    await hub.auth.find("abc")
    assert len(hub.asked) == 1
    hub.now += 0.2
    hub.answer = lambda request: httpx.Response(403)
    with pytest.raises(NotAuthenticated):
        await hub.auth.find("abc")
    assert len(hub.asked) == 2
    hub.now += 1.9
    with pytest.raises(NotAuthenticated):
        await hub.auth.find("abc")
    assert len(hub.asked) == 2
    hub.now += 0.2
    hub.answer = lambda request: httpx.Response(200, json=model())
    assert (await hub.auth.find("abc")) is not None


async def test_a_hub_that_is_away_is_asked_again_and_known_tokens_live_on_for_a_while() -> None:
    hub = Hub()
    await hub.auth.find("abc")
    hub.answer = lambda request: httpx.Response(502)
    hub.now += 5
    assert (await hub.auth.find("abc")) is not None
    hub.now += 6
    for asked in (2, 3):
        with pytest.raises(HubUnreachable):
            await hub.auth.find("abc")
        assert len(hub.asked) == asked


async def test_many_requests_at_once_ask_once_for_each_token() -> None:
    hub = Hub()
    await asyncio.gather(*(hub.auth.find(f"token-{n % 3}") for n in range(60)))
    assert len(hub.asked) == 3


async def test_what_is_remembered_is_bounded_and_holds_no_token() -> None:
    hub = Hub()
    hub.auth._remembered = 10
    for n in range(30):
        await hub.auth.find(f"token-{n}")
    assert len(hub.auth._cache) == 10
    assert "token-29" not in repr(hub.auth._cache)
    assert token_hash("token-29") in hub.auth._cache


@dataclass
class Holder:
    job: str = "j1"
    attempt: int = 2
    owner: str = "mari"
    valid: bool = True


async def test_attempts_come_before_the_hub_and_end_with_their_attempt() -> None:
    hub = Hub()
    known = {token_hash("live"): Holder(), token_hash("ended"): Holder(valid=False)}
    auth = Authenticators([ServiceTokens({"kajiya": "fixed", "none": ""}), AttemptTokens(known.get), hub.auth])
    identity = await auth.identify("live")
    assert (identity.attempt, identity.admin, identity.whoami.job, identity.whoami.attempt) == (True, False, "j1", 2)
    with pytest.raises(AttemptSuperseded):
        await auth.identify("ended")
    fixed = await auth.identify("fixed")
    assert (fixed.whoami.kind, fixed.name, fixed.admin) == ("service", "kajiya", True)
    assert hub.asked == []
    assert (await auth.identify("other")).name == "mari"
    for bad in ("", "x" * 600, "a\nb", "トークン"):
        with pytest.raises(NotAuthenticated):
            await auth.identify(bad)


@pytest.mark.parametrize(
    ("header", "token"),
    [("token abc", "abc"), ("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("TOKEN abc", "abc")],
)
def test_a_token_is_read_from_the_header(header: str, token: str) -> None:
    assert token_from(header) == token


@pytest.mark.parametrize("header", [None, "", "abc", "Basic abc", "token", "token ", "tokenabc"])
def test_another_header_is_no_token(header: str | None) -> None:
    with pytest.raises(NotAuthenticated):
        token_from(header)
