"""The service and a real Hub: what a token's scopes are worth, and that a revoked one is worth nothing."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from helpers.http import assert_error
from helpers.stack import Stack
from helpers.wait import until
from kajiya import errors

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]
API = "services/kajiya/api"
SERVICE = "access:services!service=kajiya"


@pytest.fixture(scope="module")
def stack(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("hub") / "data", shared=shared) as made:
        made.wait_ready("service")
        made.browser().close()
        yield made


def restricted(stack: Stack, *scopes: str) -> tuple[str, str]:
    """A token of the administrator with only these scopes, and where it can be revoked."""
    with stack.api(stack.token()) as api:
        name = api.get("hub/api/user").json()["name"]
        place = f"hub/api/users/{quote(name, safe='')}/tokens"
        made = api.post(place, json={"note": "restricted", "scopes": list(scopes)})
        assert made.status_code in (200, 201), made.text
        return made.json()["token"], f"{place}/{made.json()['id']}"


def whoami(stack: Stack, token: str) -> httpx.Response:
    with stack.api(token) as api:
        return api.get(f"{API}/whoami")


def test_an_administrators_own_token_acts_as_one_and_a_restricted_one_does_not(stack: Stack) -> None:
    full: dict[str, Any] = whoami(stack, stack.token()).json()
    assert (full["name"], full["admin"], full["kind"]) == ("admin", True, "user")
    token, _ = restricted(stack, SERVICE)
    narrow: dict[str, Any] = whoami(stack, token).json()
    assert (narrow["name"], narrow["admin"]) == ("admin", False)
    with stack.api(token) as api:
        assert_error(api.get(f"{API}/jobs", params={"owner": "*"}), errors.NotAllowed)


@pytest.mark.parametrize("scopes", [("access:services!service=mlflow",), ("read:users:name!user",)])
def test_a_token_for_something_else_may_not_use_the_service(stack: Stack, scopes: tuple[str, ...]) -> None:
    token, _ = restricted(stack, *scopes)
    assert_error(whoami(stack, token), errors.NotAllowed)


def test_a_revoked_token_is_refused_within_seconds(stack: Stack) -> None:
    token, place = restricted(stack, SERVICE)
    assert whoami(stack, token).status_code == 200
    with stack.api(stack.token()) as api:
        assert api.delete(place).status_code == 204
    until(lambda: whoami(stack, token).status_code == 401, 30, "the refusal")


def test_an_invited_user_sees_only_their_own(stack: Stack) -> None:
    with closing(stack.invite("山田花子")):
        token = stack.token("山田花子")
    with stack.api(token) as api:
        who = api.get(f"{API}/whoami").json()
        assert (who["name"], who["admin"]) == ("山田花子", False)
        assert api.get(f"{API}/jobs").json() == {"items": [], "next": None, "total": 0}
        assert [p["slug"] for p in api.get(f"{API}/profiles").json()][:1] == ["small"]
        answer = api.get("services/kajiya/metrics")
        assert_error(answer, errors.NotAllowed)
