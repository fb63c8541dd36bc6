"""Parameters of a notebook: what its parameters cell declares, and whether given values fit.

Values travel as JSON. The floats that JSON lacks travel as the texts `NaN`, `Infinity` and `-Infinity`, for a parameter
declared as float only; `to_python` gives them back. A value reaches the notebook through papermill's translators only.
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, cast

from kajiya.errors import InvalidRequest, NoParametersCell, ParameterMissing, ParameterType, UnknownParameter
from kajiya.parameters_cell import Declared, declared, json_problem, kind_of, wire_float
from kajiya.types import ParameterKind, ParameterSpec

__all__ = ["Declared", "declared", "expected", "parse_cli", "to_python", "validate"]

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


# --- given values
def validate(given: Mapping[str, Any], found: Declared) -> dict[str, Any]:
    """The given values, coerced to the declared types and fit for JSON.

    Raises `NoParametersCell`, `UnknownParameter`, `ParameterType` and `ParameterMissing`.
    """
    if given and not found.has_cell:
        raise NoParametersCell(names=sorted(given))
    out: dict[str, Any] = {}
    for raw, value in given.items():
        name = unicodedata.normalize("NFKC", raw)  # as Python reads names
        spec = found.named(name)
        if spec is None and (not found.open or not re.fullmatch(r"[^\W\d]\w*", name)):
            raise UnknownParameter(name=raw, known=[s.name for s in found.specs])
        out[name] = _coerced(value, spec or ParameterSpec(name=name, optional=True))
    for spec in found.specs:
        if spec.required and spec.name not in out:
            raise ParameterMissing(name=spec.name, expected=expected(spec))
    return out


def to_python(values: Mapping[str, Any], found: Declared) -> dict[str, Any]:
    """Validated values as Python's: the texts that stand for NaN and the infinities become floats."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        spec = found.named(name)
        if spec is not None and spec.type == "float" and isinstance(value, str):
            value = _NON_FINITE[value]
        elif spec is not None and spec.items == "float" and isinstance(value, list):
            members = cast(list[Any], value)
            value = [_NON_FINITE[member] if isinstance(member, str) else member for member in members]
        out[name] = value
    return out


def expected(spec: ParameterSpec) -> str:
    """What a parameter takes, in words: `float`, `list of int`, `int or null`, `one of "a", "b"`."""
    if spec.choices:
        text = "one of " + ", ".join(json.dumps(choice, ensure_ascii=False) for choice in spec.choices)
    else:
        text = f"list of {spec.items}" if spec.items and spec.items != "any" else spec.type
    return f"{text} or null" if spec.optional and spec.type != "any" else text


def _coerced(value: Any, spec: ParameterSpec) -> Any:
    def refuse(what: str | None = None) -> ParameterType:
        return ParameterType(name=spec.name, expected=what or expected(spec), given=_shown(value))

    if value is None:
        if spec.optional:
            return None
        raise refuse()
    try:
        out = _askind_of(value, spec.type)
        if spec.items and isinstance(out, list):
            out = [_askind_of(member, spec.items) for member in cast(list[Any], out)]
    except (TypeError, OverflowError):
        raise refuse() from None
    problem = json_problem(out)
    if problem:
        raise refuse(problem)
    if spec.choices is not None and not any(type(c) is type(out) and c == out for c in spec.choices):
        raise refuse()
    return out


def _askind_of(value: Any, kind: ParameterKind) -> Any:
    if kind == "any":
        return value
    if kind == "float":
        if isinstance(value, str) and value in _NON_FINITE:
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return wire_float(float(value))
    elif kind == "int":
        if isinstance(value, int) and not isinstance(value, bool):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif kind == "list" and isinstance(value, (list, tuple)):
        return list(cast(Iterable[Any], value))
    elif kind_of(value) == kind:
        return value
    raise TypeError


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = f"a value of type {type(value).__name__}"
    text = text if len(text) <= 80 else text[:77] + "…"
    return text.encode("utf-8", "replace").decode()


# --- the command line
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def parse_cli(items: Iterable[str], found: Declared) -> dict[str, Any]:
    """Values from `NAME=VALUE` texts: JSON, else a YAML scalar, but the text itself where text is declared.

    Raises what `validate` raises, and `InvalidRequest` for a text without `=`.
    """
    given: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name.strip():
            raise InvalidRequest(field=f"-p {item}", problem="it is not of the form NAME=VALUE")
        name = name.strip()
        given[name] = _from_text(text, found.named(unicodedata.normalize("NFKC", name)))
    return validate(given, found)


def _from_text(text: str, spec: ParameterSpec | None) -> Any:
    if spec is not None and spec.type == "str":
        return None if spec.optional and text == "null" else text
    if spec is not None and spec.type == "float" and text in _NON_FINITE:
        return text
    if spec is not None and spec.type == "bool" and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    import yaml

    try:
        value: Any = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    if spec is not None and spec.type == "float" and isinstance(value, float):
        return value
    taken = (value is None and text.strip()) or type(value) in (bool, int, float, list, dict)
    return value if taken else text
