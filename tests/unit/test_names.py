"""Slugs and account names: safe for every name, and never the same for two."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kajiya.names import account, safe_environment_name, slug

ODD = [
    "山田 太郎",
    "",
    "x" * 10_000,
    "A",
    "a",
    "1abc",
    "a-",
    "-a",
    "a--b",
    "a b",
    "a/b",
    "../etc",
    "a\nb",
    'a"b',
    "ａ",
    "é",
]


@pytest.mark.parametrize("name", ["alice", "a", "user-1", "data-team-7", "a" * 25])
def test_a_plain_name_stays(name: str) -> None:
    assert slug(name) == name


@pytest.mark.parametrize("name", [*ODD, "a" * 26])
def test_any_other_name_gets_a_digest(name: str) -> None:
    assert slug(name) != name or name == "a"
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,24}", slug(name))


def test_odd_names_do_not_meet() -> None:
    names = [*ODD, "alice", "a-b", *(slug(n) for n in ODD)]
    assert len({slug(n) for n in names}) == len(set(names))


@given(st.text(), st.text())
def test_two_names_never_share_a_folder_or_an_account(one: str, other: str) -> None:
    assert (slug(one) == slug(other)) == (one == other)
    assert len(account(one)) <= 32
    assert re.fullmatch(r"[a-z][a-z0-9-]*", account(one))


@given(st.text())
def test_a_slug_can_not_be_chosen_as_a_name_to_reach_anothers_folder(name: str) -> None:
    if slug(name) != name:
        assert slug(slug(name)) != slug(name)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        *[("default", True), ("a", True), ("base-2", True), ("a" * 63, True), ("0", True)],
        *[("", False), ("..", False), ("a/b", False), ("A", False), ("-a", False), ("a-", False)],
        *[("a" * 64, False), ("default\n", False), ("環境", False)],
    ],
)
def test_names_of_environments(name: str, safe: bool) -> None:
    assert safe_environment_name(name) is safe
