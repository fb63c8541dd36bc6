"""The sentences Kajiya says, by code, in English and Japanese.

Each language is a folder of TOML files, one file a place where the sentences are shown. A key is a code such as
``job.not_found``; its value is a `str.format` template whose fields are the parameters of that code.
"""

import os
import re
import string
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, cast

LANGUAGES = ("en", "ja")
# Parameters that hold words of ours; all others are what people and machines gave, and stay as they are.
PHRASED = frozenset({"action", "expected", "given", "problem", "resource"})
_LONGEST_PHRASE = 300


class _Plain(string.Formatter):
    """Formats names only: a template is ours, but a value may be hostile, so no attribute or index access."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        return kwargs.get(field_name, "{" + field_name + "}"), field_name


@cache
def sentences(language: str) -> Mapping[str, str]:
    """All templates of one language by code. Raises `ValueError` where two files define one code."""
    out: dict[str, str] = {}
    for file in sorted(files("kajiya.messages").joinpath(language).iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".toml"):
            continue
        for code, template in _flat(tomllib.loads(file.read_text("utf-8"))):
            if code in out:
                raise ValueError(f"{file.name}: the code {code} is defined twice")
            out[code] = template
    return out


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for key, value in table.items():
        code = f"{prefix}{key}"
        out += _flat(cast("dict[str, Any]", value), f"{code}.") if isinstance(value, dict) else [(code, str(value))]
    return out


def fields(template: str) -> set[str]:
    """The parameter names that a template uses."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def message(code: str, params: Mapping[str, Any] | None = None, language: str | None = None) -> str:
    """The sentence for a code; an unknown code is shown as itself, so that nothing is ever hidden."""
    language = language or preferred_language()
    template = sentences(language if language in LANGUAGES else "en").get(code)
    if template is None:
        return code
    shown = {name: _show(in_words(name, value, language)) for name, value in (params or {}).items()}
    return _Plain().vformat(template, (), shown)


def in_words(name: str, value: Any, language: str) -> Any:
    """A parameter in the reader's words, where it is a phrase of ours: one named by its code, or English words."""
    if name not in PHRASED or not isinstance(value, str):
        return value
    named = sentences(language if language in LANGUAGES else "en").get(f"{name}.{value}")
    if named is not None:
        return named
    return _translated(value, language) if language in LANGUAGES and language != "en" else value


def _translated(text: str, language: str, depth: int = 4) -> str:
    if len(text) > _LONGEST_PHRASE or depth == 0:
        return text
    for pattern, code in _phrases():
        if found := pattern.fullmatch(text):
            inner = {k: _translated(v, language, depth - 1) for k, v in found.groupdict().items()}
            return _Plain().vformat(sentences(language)[code], (), inner)
    return text


@cache
def _phrases() -> list[tuple[re.Pattern[str], str]]:
    """The English phrases as patterns, those without fields first."""
    out: list[tuple[int, int, re.Pattern[str], str]] = []
    for code, template in sentences("en").items():
        if code.startswith("phrase."):
            parts = [(text, name) for text, name, _, _ in string.Formatter().parse(template)]
            words = "".join(re.escape(text) + (f"(?P<{name}>.+?)" if name else "") for text, name in parts)
            plain = sum(len(text) for text, _ in parts)
            out.append((len(fields(template)), -plain, re.compile(words, re.DOTALL), code))
    return [(pattern, code) for _, _, pattern, code in sorted(out, key=lambda o: o[:2])]


def _show(value: Any) -> str:
    if isinstance(value, (list, tuple, set)):
        return ", ".join(_show(v) for v in cast("Iterable[object]", value))
    text = str(value)
    # A name of 10,000 characters or with newlines must not swamp the sentence it stands in.
    text = text.replace("\r", "⏎").replace("\n", "⏎")
    return text if len(text) <= 200 else f"{text[:197]}…"


def preferred_language(accept: str | None = None) -> str:
    """The language to speak: from an Accept-Language header, else `KAJIYA_LANG`, `LC_ALL`, `LANG`, else English."""
    if accept is not None:
        for part in accept.split(","):
            tag = part.split(";")[0].strip().lower()[:2]
            if tag in LANGUAGES:
                return tag
        return "en"
    for name in ("KAJIYA_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(name, "")
        if value:
            return value[:2] if value[:2] in LANGUAGES else "en"
    return "en"
