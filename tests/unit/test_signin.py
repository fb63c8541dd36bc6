"""Names, passwords, the limiter, accounts and links: what decides who may sign in."""

import stat
import threading
from pathlib import Path

import pytest

from kajiya_hub.signin import links, names, passwords
from kajiya_hub.signin.accounts import FIRST, INVITE, SIGN_IN, Accounts, LinkGone, NameTaken
from kajiya_hub.signin.limiter import LONGEST, Limiter


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    return Accounts(tmp_path / "hub" / "signin.sqlite")


# --- names
@pytest.mark.parametrize("name", ["ada", "花子", "josé", "ada.l_2-x", "мария", "x" * 64, "हिन्दी", "7of9"])
def test_good_names_stay_as_they_are(name: str) -> None:
    assert names.problem(names.normalise(name)) is None
    assert names.normalise(names.normalise(name)) == names.normalise(name)


@pytest.mark.parametrize(
    ("typed", "stored"), [("Ada", "ada"), (" ada ", "ada"), ("JOSE\u0301", "josé"), ("ÅNGSTRÖM", "ångström")]
)
def test_spellings_of_one_name_are_one(typed: str, stored: str) -> None:
    assert names.normalise(typed) == stored


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("", "signin.name_missing"),
        ("x" * 65, "signin.name_long"),
        ("x" * 10_000, "signin.name_long"),
        ("a b", "signin.name_characters"),
        ("a\u3000b", "signin.name_characters"),
        ("a\u200bb", "signin.name_characters"),
        ("a\u202eb", "signin.name_characters"),
        ("a\nb", "signin.name_characters"),
        ("../up", "signin.name_characters"),
        ("a/b", "signin.name_characters"),
        ("a%2fb", "signin.name_characters"),
        ("<script>", "signin.name_characters"),
        ("a'b", "signin.name_characters"),
        ("a\0b", "signin.name_characters"),
        ("\ud800", "signin.name_characters"),
        ("..", "signin.name_ends"),
        (".hidden", "signin.name_ends"),
        ("-flag", "signin.name_ends"),
        ("dot.", "signin.name_ends"),
        ("ａｄａ", "signin.name_plain"),
        ("ﬁne", "signin.name_plain"),
        ("аda", "signin.name_mixed"),  # the first letter is Cyrillic
    ],
)
def test_bad_names_are_refused_each_with_its_sentence(name: str, code: str) -> None:
    assert names.problem(names.normalise(name)) == code


# --- passwords
def test_a_password_matches_itself_only() -> None:
    stored = passwords.store("鉄と火 and a hammer")
    assert passwords.matches("鉄と火 and a hammer", stored)
    assert not passwords.matches("鉄と火 and a hammer ", stored)
    assert not passwords.matches("", stored)
    assert not passwords.matches("x" * 1_000_000, stored)
    assert "hammer" not in stored
    assert stored != passwords.store("鉄と火 and a hammer"), "each has a salt of its own"


def test_nobody_has_no_password() -> None:
    assert not passwords.matches("", None)
    assert not passwords.matches("anything at all", None)


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("short", "signin.password_short"),
        ("x" * 1025, "signin.password_long"),
        ("aaaaaaaaaaaa", "signin.password_easy"),
        ("adalovelace", "signin.password_easy"),
        ("nine char", "signin.password_short"),
        ("ten chars!", None),
    ],
)
def test_which_passwords_can_be_chosen(password: str, code: str | None) -> None:
    assert passwords.problem(password, "adalovelace") == code


# --- the limiter
def test_the_waits_grow_and_end() -> None:
    now = [0.0]
    limiter = Limiter(clock=lambda: now[0])
    waits = []
    for _ in range(12):
        limiter.failed("key")
        waits.append(limiter.wait("key"))
    assert waits[:4] == [0, 0, 0, 0]
    assert waits[4] == 15
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST
    assert limiter.wait("another") == 0
    now[0] += LONGEST
    assert limiter.wait("key") == 0
    limiter.forget("key")
    limiter.failed("key")
    assert limiter.wait("key") == 0


def test_made_up_keys_do_not_use_up_the_memory() -> None:
    limiter = Limiter()
    for n in range(25_000):
        limiter.failed(n)
    assert len(limiter._failures) <= 10_000


# --- accounts and links
def test_the_file_is_the_owners_alone(accounts: Accounts) -> None:
    accounts.users()
    assert stat.S_IMODE(accounts.path.stat().st_mode) == 0o600


def test_the_first_link_makes_one_account_and_is_used_up(accounts: Accounts) -> None:
    token = accounts.make_link(FIRST)
    assert accounts.link(token).kind == FIRST
    assert accounts.link(token).kind == FIRST, "looking uses nothing up"
    accounts.accept(token, "ada", "hash")
    assert [a.name for a in accounts.users()] == ["ada"]
    with pytest.raises(LinkGone):
        accounts.link(token)
    with pytest.raises(LinkGone):
        accounts.accept(token, "eve", "hash")


def test_a_first_link_is_worthless_once_somebody_is_there(accounts: Accounts) -> None:
    first = accounts.make_link(FIRST)
    other = accounts.make_link(INVITE, made_by="x")
    accounts.accept(other, "ada", "hash")
    with pytest.raises(LinkGone):
        accounts.accept(first, "eve", "hash")


def test_links_end_with_their_time_and_when_taken_back(accounts: Accounts) -> None:
    token = accounts.make_link(INVITE, made_by="ada", lifetime=60, now=1000)
    assert accounts.link(token, now=1059).kind == INVITE
    with pytest.raises(LinkGone):
        accounts.link(token, now=1060)
    again = accounts.make_link(INVITE, made_by="ada")
    (link,) = accounts.open_links()
    accounts.revoke(link.id)
    with pytest.raises(LinkGone):
        accounts.accept(again, "eve", "hash")


def test_tokens_are_not_in_the_file(accounts: Accounts) -> None:
    token = accounts.make_link(INVITE, made_by="ada")
    assert token.encode() not in accounts.path.read_bytes()


def test_of_many_who_follow_one_link_at_once_one_gets_in(accounts: Accounts) -> None:
    token = accounts.make_link(INVITE, made_by="ada")
    got: list[str] = []

    def follow(name: str) -> None:
        try:
            accounts.accept(token, name, "hash")
            got.append(name)
        except LinkGone:
            pass

    threads = [threading.Thread(target=follow, args=(f"user{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert [a.name for a in accounts.users()] == got


def test_a_removed_name_goes_to_another_only_by_name(accounts: Accounts) -> None:
    accounts.accept(accounts.make_link(FIRST), "ada", "hash")
    accounts.accept(accounts.make_link(INVITE, made_by="ada"), "bob", "hash")
    accounts.remove("bob")
    assert accounts.user("bob") is None
    with pytest.raises(NameTaken):
        accounts.accept(accounts.make_link(INVITE, made_by="ada"), "bob", "hash")
    accounts.accept(accounts.make_link(INVITE, name="bob", made_by="ada"), "bob", "hash")
    assert accounts.user("bob") is not None


def test_an_invitation_for_one_name_serves_no_other(accounts: Accounts) -> None:
    token = accounts.make_link(INVITE, name="bob", made_by="ada")
    with pytest.raises(LinkGone):
        accounts.accept(token, "eve", "hash")
    assert accounts.link(token).name == "bob"


def test_a_sign_in_link_makes_no_account(accounts: Accounts) -> None:
    accounts.accept(accounts.make_link(FIRST), "ada", "old")
    token = accounts.make_link(SIGN_IN, name="ada")
    with pytest.raises(LinkGone):
        accounts.accept(token, "ada", "hash")
    accounts.use(token, "new")
    account = accounts.user("ada")
    assert account is not None and account.password == "new"
    with pytest.raises(LinkGone):
        accounts.use(token)


def test_links_from_the_command_line(tmp_path: Path) -> None:
    db = tmp_path / "signin.sqlite"
    accounts = Accounts(db)
    path, _, token = links.create_link(db).partition("?token=")
    assert path == "hub/sign-in"
    accounts.accept(token, "ada", "hash")
    accounts.accept(accounts.make_link(INVITE, made_by="ada"), "花子", "hash")
    assert links.users(db) == ["ada", "花子"]
    first = links.create_link(db)
    assert accounts.link(first.partition("?token=")[2]).name == "ada"
    named = links.create_link(db, "花子")
    assert accounts.link(named.partition("?token=")[2]).name == "花子"
    with pytest.raises(LinkGone):
        accounts.link(first.partition("?token=")[2])
    with pytest.raises(KeyError):
        links.create_link(db, "nobody")
