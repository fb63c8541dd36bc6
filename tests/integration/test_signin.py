"""Signing in to a real JupyterHub: links, invitations, passwords, and what must not work."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.hub import PASSWORD, Hub, Visitor, path_of, quote

JAPANESE = {"Accept-Language": "ja,en;q=0.5"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("signin") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def admin(hub: Hub) -> Visitor:
    with hub.visitor() as visitor:
        assert "Nobody has an account yet" in visitor.get("hub/login").text
    return hub.first("meister")


def me(visitor: Visitor) -> dict[str, object]:
    return visitor.call("GET", "hub/api/user").json()


# --- links
def test_the_first_link_makes_the_administrator(hub: Hub, admin: Visitor) -> None:
    assert me(admin)["name"] == "meister"
    assert me(admin)["admin"] is True
    assert "Nobody has an account yet" not in hub.visitor().get("hub/login").text


def test_looking_at_a_link_uses_nothing_up_and_following_it_does(hub: Hub, admin: Visitor) -> None:
    link = hub.link()
    for _ in range(3):
        page = hub.visitor().get(link)
        assert page.status_code == 200
        assert "Sign in as meister" in page.text
        assert page.headers["Cache-Control"] == "no-store"
        assert page.headers["Referrer-Policy"] == "no-referrer"
    visitor = hub.visitor()
    assert visitor.form("hub/sign-in", {"token": link.partition("token=")[2]}, page=link).status_code == 302
    assert me(visitor)["name"] == "meister"
    gone = hub.visitor().get(link)
    assert gone.status_code == 410
    assert "used already" in gone.text


def test_the_log_has_no_token(hub: Hub, admin: Visitor) -> None:
    link = hub.link()
    hub.visitor().get(link)
    assert link.partition("token=")[2] not in hub.log.read_text("utf-8", "replace")


@pytest.mark.parametrize("token", ["", "x", "x" * 10_000, "../..", "%00"])
def test_made_up_tokens_open_nothing(hub: Hub, admin: Visitor, token: str) -> None:
    assert hub.visitor().get("hub/sign-in", params={"token": token}).status_code == 410


def test_a_link_is_worth_nothing_without_the_form(hub: Hub, admin: Visitor) -> None:
    token = hub.link().partition("token=")[2]
    assert hub.visitor().post("hub/sign-in", data={"token": token}).status_code == 403
    visitor = hub.visitor()
    visitor.get(f"hub/sign-in?token={token}")
    assert visitor.post("hub/sign-in", data={"token": token, "_xsrf": "made-up"}).status_code == 403
    assert hub.visitor().get(f"hub/sign-in?token={token}").status_code == 200


# --- invitations
def test_an_invited_person_chooses_a_name_and_joins_groups(hub: Hub, admin: Visitor) -> None:
    visitor = hub.visitor(**JAPANESE)
    link = admin.invite(group="smiths")
    assert "招待です" in visitor.get(link).text
    assert visitor.join(link, "花子").status_code == 302
    assert me(visitor)["name"] == "花子"
    assert me(visitor)["admin"] is False
    assert me(visitor)["groups"] == ["smiths"]
    assert hub.visitor().sign_in("花子").status_code == 302


@pytest.mark.parametrize(
    "name",
    ["", "a b", "<script>alert(1)</script>", "../etc", "a/b", "x" * 10_000, "a\u202eb", "a\nb", "'; --", "ａｄａ"],
)
def test_hostile_names_get_a_sentence_and_the_link_stays_good(hub: Hub, admin: Visitor, name: str) -> None:
    link = admin.invite()
    answer = hub.visitor().join(link, name)
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert "<script>alert" not in answer.text
    assert hub.visitor().get(link).status_code == 200


def test_a_name_that_is_taken_is_refused_however_it_is_written(hub: Hub, admin: Visitor) -> None:
    for name in ("meister", "MEISTER", " Meister "):
        answer = hub.visitor().join(admin.invite(), name)
        assert answer.status_code == 422
        assert "is taken" in answer.text


def test_a_user_of_the_hub_without_an_account_is_nobodys_to_take(hub: Hub, admin: Visitor) -> None:
    assert admin.call("POST", "hub/api/users/prepared", json={}).status_code == 201
    assert hub.visitor().join(admin.invite(), "prepared").status_code == 422
    answer = admin.form("hub/invite", {"name": "prepared"})
    assert "home and files" in answer.text, "the administrator is told what the link gives away"
    visitor = hub.visitor()
    assert visitor.join(re.findall(r'id="made" value="([^"]+)"', answer.text)[0], "prepared").status_code == 302


def test_invitations_are_for_administrators_only(hub: Hub, admin: Visitor) -> None:
    person = hub.person(admin, "guest")
    for answer in (person.get("hub/invite"), person.post("hub/invite", data={"_xsrf": person.xsrf})):
        assert answer.status_code == 403
        assert "Only administrators" in answer.text
    assert hub.visitor().get("hub/invite").status_code == 302, "who is not signed in is asked to"
    # A server's token of an administrator's is no person at a page.
    token = admin.token()
    assert hub.visitor().get("hub/invite", headers={"Authorization": f"token {token}"}).status_code in (302, 403)


def test_an_invitation_needs_the_forms_token(hub: Hub, admin: Visitor) -> None:
    assert admin.post("hub/invite", data={}).status_code == 403
    assert admin.post("hub/invite", data={"_xsrf": "made-up"}).status_code == 403


def test_an_invitation_can_be_taken_back(hub: Hub, admin: Visitor) -> None:
    link = admin.invite(name="unwanted")
    page = admin.get("hub/invite").text
    assert link.partition("token=")[2] not in page, "it is shown once"
    row = page.partition("unwanted")[2]
    number = re.findall(r'name="id" value="(\d+)"', row)[0]
    assert admin.form("hub/invite", {"act": "revoke", "id": number}).status_code == 302
    assert hub.visitor().get(link).status_code == 410
    assert admin.form("hub/invite", {"act": "revoke", "id": "9" * 40}).status_code == 302


# --- passwords
def test_a_wrong_password_and_an_unknown_name_read_the_same(hub: Hub, admin: Visitor) -> None:
    texts = set()
    for name in ("meister", "nobody-at-all"):
        answer = hub.visitor().sign_in(name, "not the password")
        assert answer.status_code == 403
        alert = re.findall(r'role="alert">.*?<p>(.*?)</p>', answer.text, re.S)
        texts.add(alert[0])
    assert len(texts) == 1
    assert "do not belong together" in texts.pop()


def test_after_some_wrong_tries_there_is_a_wait(hub: Hub, admin: Visitor) -> None:
    hub.person(admin, "hurried")
    statuses = [hub.visitor(**JAPANESE).sign_in("hurried", f"wrong {n}").status_code for n in range(6)]
    assert statuses == [403] * 5 + [429]
    answer = hub.visitor(**JAPANESE).sign_in("hurried")
    assert answer.status_code == 429, "the right password has to wait as well"
    assert "秒待って" in answer.text
    assert int(answer.headers["Retry-After"]) > 0
    assert hub.visitor().sign_in("meister").status_code == 302, "others go on"


@pytest.mark.parametrize("name", ["X-Real-Ip", "X-Forwarded-For", "X-Forwarded-For,X-Real-Ip"])
def test_a_made_up_address_gives_no_more_tries(hub: Hub, admin: Visitor, name: str) -> None:
    guessed = f"guessed-{name.lower().replace(',', '-')}"
    hub.person(admin, guessed)
    found: list[int] = []
    for n in range(7):
        said = dict.fromkeys(name.split(","), f"203.0.113.{n}")
        with hub.visitor(**said) as visitor:
            found.append(visitor.sign_in(guessed, f"not this one {n}").status_code)
    assert found == [403] * 5 + [429] * 2


def test_a_new_password_ends_the_other_sessions(hub: Hub, admin: Visitor) -> None:
    here, there = hub.person(admin, "careful"), hub.visitor()
    assert there.sign_in("careful").status_code == 302
    new = "quite another secret"
    wrong = here.form("hub/password", {"current": "not it", "password": new, "again": new})
    assert wrong.status_code == 403
    short = here.form("hub/password", {"current": PASSWORD, "password": "short", "again": "short"})
    assert short.status_code == 422
    done = here.form("hub/password", {"current": PASSWORD, "password": new, "again": new})
    assert "Your password is changed" in done.text
    assert here.get("hub/home").status_code == 200
    assert there.get("hub/home").status_code == 302
    assert hub.visitor().sign_in("careful").status_code == 403
    assert hub.visitor().sign_in("careful", new).status_code == 302


def test_a_forgotten_password_is_replaced_by_a_link(hub: Hub, admin: Visitor) -> None:
    hub.person(admin, "forgetful")
    answer = admin.form("hub/invite", {"act": "link", "name": "forgetful"})
    link = re.findall(r'id="made" value="([^"]+)"', answer.text)[0]
    token = {"token": link.partition("token=")[2]}
    visitor = hub.visitor()
    assert visitor.form("hub/sign-in", {**token, "password": "short"}, page=link).status_code == 422
    assert visitor.form("hub/sign-in", {**token, "password": "remembered now"}, page=link).status_code == 302
    assert hub.visitor().sign_in("forgetful", "remembered now").status_code == 302


# --- people come and go
def test_a_deleted_user_can_not_sign_in_and_the_name_is_not_given_away(hub: Hub, admin: Visitor) -> None:
    person = hub.person(admin, "leaver")
    assert admin.call("DELETE", "hub/api/users/leaver").status_code == 204
    assert person.get("hub/home").status_code == 302
    assert hub.visitor().sign_in("leaver").status_code == 403
    assert hub.visitor().join(admin.invite(), "leaver").status_code == 422


def test_a_renamed_user_signs_in_by_the_new_name_only(hub: Hub, admin: Visitor) -> None:
    hub.person(admin, "oldname")
    assert admin.call("PATCH", "hub/api/users/oldname", json={"name": "newname"}).status_code == 200
    assert hub.visitor().sign_in("oldname").status_code == 403
    visitor = hub.visitor()
    assert visitor.sign_in("newname").status_code == 302
    assert me(visitor)["name"] == "newname"
    assert hub.visitor().join(admin.invite(), "oldname").status_code == 422


def test_signing_out_ends_the_session(hub: Hub, admin: Visitor) -> None:
    person = hub.person(admin, "tired")
    kept = {"Cookie": "; ".join(f"{c.name}={c.value}" for c in person.cookies.jar)}
    assert hub.visitor().get("hub/home", headers=kept).status_code == 200
    person.get("hub/logout")
    assert person.get("hub/home").status_code == 302
    # A copy of the cookie that somebody took before is worth nothing either, and the account is still theirs.
    assert hub.visitor().get("hub/home", headers=kept).status_code == 302
    assert person.sign_in("tired").status_code == 302
    assert me(person)["name"] == "tired"


# --- where to after signing in
@pytest.mark.parametrize(
    "next",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "///evil.example",
        "javascript:alert(1)",
        "\\\\evil",
    ],
)
def test_signing_in_leads_nowhere_else(hub: Hub, admin: Visitor, next: str) -> None:
    answer = hub.visitor().sign_in("meister", next=quote(next))
    assert answer.status_code == 302
    target = answer.headers["Location"]
    assert target.startswith("/") and not target.startswith(("//", "/\\"))
    assert "evil" not in path_of(target).partition("?")[0] or target.startswith("/%5C")


def test_signing_in_leads_back_to_where_one_was(hub: Hub, admin: Visitor) -> None:
    answer = hub.visitor().sign_in("meister", next=quote("/hub/token"))
    assert path_of(answer.headers["Location"]) == "/hub/token"


def test_the_sign_in_page_says_that_all_share_one_machine(hub: Hub, admin: Visitor) -> None:
    assert "the operating system does not" in hub.visitor().get("hub/login").text
    assert "OS による隔離はありません" in hub.visitor(**JAPANESE).get("hub/login").text


def test_pages_can_not_be_framed(hub: Hub, admin: Visitor) -> None:
    for path in ("hub/login", "hub/invite", "hub/password"):
        assert "frame-ancestors 'none'" in admin.get(path).headers["Content-Security-Policy"]


def test_what_is_stored_is_private(hub: Hub, admin: Visitor) -> None:
    assert Path(hub.db).stat().st_mode & 0o077 == 0
    assert PASSWORD.encode() not in Path(hub.db).read_bytes()
