"""Every sentence exists in every language with the same fields, and every code that is used has one."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from kajiya.errors import KajiyaError, UnexpectedAnswer, from_body, leaves
from kajiya.messages import LANGUAGES, PHRASED, fields, in_words, message, preferred_language, sentences

# Rooms with error leaves of their own: imported here, so that the tree is the same whatever else is collected.
for room in ("kajiya_hub.cli", "kajiya_hub.embedded", "kajiya.environment.make", "kajiya.runner.engine"):
    importlib.import_module(room)

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


def words_in(node: ast.AST) -> str | None:
    """The English words of a literal, with 7 for what is filled in; None where there are none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) and " " in node.value else None
    if not isinstance(node, ast.JoinedStr):
        return None
    literal = " ".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
    whole = "".join(str(part.value) if isinstance(part, ast.Constant) else "7" for part in node.values)
    return whole if re.search("[a-z]{2}", literal) else None


def used_phrases() -> set[tuple[str, str]]:
    """Words given as a parameter that other sentences hold, with the file that gives them."""
    out = set()
    for path in SOURCES:
        if "oci" in path.parts:  # its words tell how bytes are broken, and end in a log
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            given: list[ast.AST] = []
            if isinstance(node, ast.Call):
                given = [k.value for k in node.keywords if k.arg in PHRASED]
            elif isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "problem" for t in node.targets):
                given = [node.value]
            if path.name in ("notebook.py", "model.py", "settings.py") and isinstance(node, ast.Call):
                given += node.args[:1] if getattr(node.func, "id", "") == "ValueError" else []
            out |= {(words, str(path.relative_to(ROOT))) for one in given if (words := words_in(one))}
    return out


def test_every_phrase_within_a_sentence_has_japanese_words() -> None:
    assert len(used_phrases()) > 40
    assert {u for u in used_phrases() if in_words("problem", u[0], "ja") == u[0]} == set()


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("problem", "cell 3 has an output without data", "3 番目のセルは出力の一つに data がありません"),
        ("expected", "list of int or null", "int のリスト または null"),
        ("resource", "GPUs of kind Fake H100", "GPU（Fake H100）"),
        ("problem", "name_control", "改行などの制御文字が含まれています"),
        ("problem", "said by somebody else", "said by somebody else"),
        ("problem", "one of " * 100, "one of " * 100),
        ("job", "it is empty", "it is empty"),
        ("problem", ["it is empty"], ["it is empty"]),
    ],
)
def test_only_our_own_words_are_put_into_the_readers(name: str, value: object, shown: object) -> None:
    assert in_words(name, value, "ja") == shown
    if value != "name_control":
        assert in_words(name, value, "en") == value


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
