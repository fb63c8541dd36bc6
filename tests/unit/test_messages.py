"""Every sentence exists in every language with the same fields, and every code that is used has one."""

import ast
import re
from pathlib import Path

import pytest

from kajiya.errors import KajiyaError, UnexpectedAnswer, from_body, leaves
from kajiya.messages import LANGUAGES, fields, message, preferred_language, sentences

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [p for d in ("extension", "spawner", "hub_config") for p in sorted((ROOT / d).rglob("*.py"))]


def test_languages_have_the_same_codes_and_fields() -> None:
    english = sentences("en")
    for language in LANGUAGES:
        other = sentences(language)
        assert other.keys() == english.keys()
        assert {c for c in english if fields(english[c]) != fields(other[c])} == set()


def test_japanese_is_japanese() -> None:
    kana = re.compile(r"[぀-ヿ一-鿿]")
    same = {c for c, s in sentences("ja").items() if s == sentences("en")[c] and " " in s}
    assert same == set()
    assert sum(bool(kana.search(s)) for s in sentences("ja").values()) > 0.8 * len(sentences("ja"))


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.__name__)
def test_every_error_has_a_sentence_and_travels(leaf: type[KajiyaError]) -> None:
    for language in LANGUAGES:
        assert leaf.code in sentences(language)
    params = dict.fromkeys(fields(sentences("en")[leaf.code]), "x")
    error = leaf(**params)
    assert 400 <= error.status < 600
    assert "{" not in str(error)
    assert re.search(r"[.!?]$", str(error)), "an error is a sentence"
    again = from_body(error.body(), error.status)
    assert (type(again), again.params) == (leaf, params)


def test_codes_are_unique() -> None:
    codes = [leaf.code for leaf in leaves()]
    assert sorted({c for c in codes if codes.count(c) > 1} - {"access", "access.not_allowed"}) == []


def used_codes() -> set[tuple[str, str]]:
    """Literal codes given to `message(...)` or `Reason(code=...)`, with the file that says them."""
    out = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            literal = None
            if name in {"message", "say", "sentence"} and node.args:
                literal = node.args[0]
            if name == "Reason":
                literal = next((k.value for k in node.keywords if k.arg == "code"), None)
            if isinstance(literal, ast.Constant) and isinstance(literal.value, str) and "." in literal.value:
                out.add((literal.value, str(path.relative_to(ROOT))))
    return out


def test_every_code_in_the_source_has_a_sentence() -> None:
    assert {u for u in used_codes() if u[0] not in sentences("en")} == set()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb", "a⏎b"),
        ("x" * 10_000, "x" * 197 + "…"),
        ("{0.__class__}", "{0.__class__}"),
        ("学習", "学習"),
        (["a", "b"], "a, b"),
    ],
)
def test_values_can_not_break_a_sentence(value: object, shown: str) -> None:
    assert f"no job {shown} of" in message("job.not_found", {"job": value}, "en")


def test_unknown_codes_and_missing_parameters_are_shown_not_hidden() -> None:
    assert message("no.such.code", {}, "en") == "no.such.code"
    assert "{job}" in message("job.not_found", {}, "en")
    assert isinstance(from_body({"error": {"code": "no.such"}}, 500), UnexpectedAnswer)
    assert isinstance(from_body({}, 502), UnexpectedAnswer)


@pytest.mark.parametrize(
    ("accept", "language"), [("ja,en;q=0.8", "ja"), ("de-DE,ja;q=0.5", "ja"), ("fr", "en"), ("", "en"), ("en-GB", "en")]
)
def test_language_of_a_reader(accept: str, language: str) -> None:
    assert preferred_language(accept) == language
