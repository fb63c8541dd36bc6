"""The sign-in of browsers: states, cookies and where they lead."""

from pathlib import Path

import httpx
import pytest

from helpers.mlflowing import query_of
from kajiya.errors import NotAuthenticated
from kajiya_hub.mlflow_app.options import Options
from kajiya_hub.mlflow_app.signin import SignIn, cookies_of, same_origin

BASE = "/services/mlflow"


def sign_in(token: str = "own-token") -> SignIn:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"access_token": "hub-token"})

    return SignIn(Options(Path("/nowhere"), "http://hub/hub/api", token), httpx.MockTransport(answer))


def sent_back(lines: list[str]) -> dict[str, str]:
    return cookies_of("; ".join(line.split(";")[0] for line in lines))


@pytest.mark.parametrize(
    ("wanted", "where"),
    [
        (f"{BASE}/?x=1", f"{BASE}/?x=1"),
        ("https://evil.example/", f"{BASE}/"),
        ("//evil.example/", f"{BASE}/"),
        (f"{BASE}/\\evil", f"{BASE}/"),
        (f"{BASE}/\r\nSet-Cookie: a=b", f"{BASE}/"),
        ("/services/mlflow2/", f"{BASE}/"),
    ],
)
async def test_the_way_there_and_back(wanted: str, where: str) -> None:
    one = sign_in()
    location, cookies = one.begin(wanted, secure=True)
    assert all("HttpOnly" in line and "SameSite=Lax" in line and line.endswith("Secure") for line in cookies)
    state = query_of(location)["state"]
    came, cookies = await one.finish({"state": state, "code": "c"}, sent_back(cookies), secure=True)
    assert came == where
    assert one.token(sent_back(cookies)) == "hub-token"


async def test_a_forged_state_or_cookie_is_nobody() -> None:
    one = sign_in()
    location, cookies = one.begin(f"{BASE}/", secure=False)
    state, kept = query_of(location)["state"], sent_back(cookies)
    for query, jar in [
        ({"state": state}, kept),
        ({"code": "c"}, kept),
        ({"state": state, "code": "c"}, {}),
        ({"state": "other", "code": "c"}, kept),
        ({"state": "other", "code": "c"}, {name.replace(name[-8:], "x"): value for name, value in kept.items()}),
        ({"state": state, "code": "c"}, {name: value[:-1] + "!" for name, value in kept.items()}),
    ]:
        with pytest.raises(NotAuthenticated):
            await one.finish(query, jar, secure=False)
    _, cookies = await one.finish({"state": state, "code": "c"}, kept, secure=False)
    session = sent_back(cookies)
    assert sign_in("another-token").token(session) is None
    # A state's cookie is no session's, though the same key signs both.
    assert one.token({one.cookie: next(iter(kept.values()))}) is None
    assert one.token({}) is None and one.token({one.cookie: "."}) is None


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "same-site", "origin": "http://h", "host": "h"}, False),
        ({"origin": "http://h:8000", "host": "h:8000"}, True),
        ({"origin": "https://h", "host": "127.0.0.1:5000", "x-forwarded-host": "h"}, True),
        ({"origin": "http://h:8000", "host": "h:8001"}, False),
        ({"origin": "null", "host": "h"}, False),
        ({"host": "h"}, False),
    ],
)
def test_same_origin(headers: dict[str, str], same: bool) -> None:
    assert same_origin(headers) is same
