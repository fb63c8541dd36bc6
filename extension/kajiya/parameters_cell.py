"""The parameters cell of a notebook: the names, types, defaults and comments it declares."""

import ast
import importlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from kajiya.notebook import Notebook, kernel_name, language, parameters_cell, parse_python, without_slow_imports
from kajiya.types import ParameterKind, ParameterSpec

_DEEPEST = 50
_NAMES: dict[str, ParameterKind] = {
    "int": "int", "float": "float", "complex": "any", "str": "str", "bool": "bool", "list": "list", "tuple": "list",
    "sequence": "list", "iterable": "list", "collection": "list", "set": "list", "frozenset": "list",
    "dict": "dict", "mapping": "dict", "mutablemapping": "dict", "any": "any", "object": "any",
}  # fmt: skip


@dataclass(frozen=True)
class Declared:
    """What a notebook declares; `open` where its language can't be inspected, so that any name must be taken."""

    specs: tuple[ParameterSpec, ...] = ()
    has_cell: bool = True
    open: bool = False

    def named(self, name: str) -> ParameterSpec | None:
        return next((spec for spec in self.specs if spec.name == name), None)


def declared(notebook: Notebook) -> Declared:
    """What the notebook's parameters cell declares: by its syntax tree for Python, else as papermill reads it."""
    index = parameters_cell(notebook)
    if index is None:
        return Declared(has_cell=False)
    source: str = notebook["cells"][index]["source"]
    if language(notebook) in ("python", None):
        return Declared(specs=tuple(python_parameters(source)))
    return _other_language(notebook, source)


# --- Python
def python_parameters(source: str) -> list[ParameterSpec]:
    """The parameters that a Python cell declares, in order; the last assignment of a name counts."""
    parsed = parse_python(source)
    if parsed is None:
        return []
    tree, text = parsed
    lines = text.split("\n")
    found: dict[str, ParameterSpec] = {}
    for statement in tree.body:
        comment = _comment(statement, lines)
        for name, annotation, value in _assignments(statement):
            found[name] = _spec(name, annotation, value, comment, text)
    return list(found.values())


def _assignments(statement: ast.stmt) -> Iterable[tuple[str, ast.expr | None, ast.expr | None]]:
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        yield statement.target.id, statement.annotation, statement.value
    elif isinstance(statement, ast.Assign):
        for target in statement.targets:
            if isinstance(target, ast.Name):
                yield target.id, None, statement.value
            elif isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
                pairs = zip(target.elts, statement.value.elts, strict=False)
                yield from ((left.id, None, right) for left, right in pairs if isinstance(left, ast.Name))


def _comment(statement: ast.stmt, lines: Sequence[str]) -> str:
    line = lines[(statement.end_lineno or 1) - 1].encode()[statement.end_col_offset or 0 :]
    rest = line.decode(errors="replace").strip().removeprefix(";").strip()
    return rest.lstrip("#").strip() if rest.startswith("#") else ""


_TYPE_COMMENT = re.compile(r"type:\s*([\w.]+(?:\[[^#]*\])?)\s*(.*)", re.DOTALL)


def _spec(name: str, annotation: ast.expr | None, value: ast.expr | None, comment: str, text: str) -> ParameterSpec:
    typed = _TYPE_COMMENT.match(comment)
    if typed:
        comment = typed[2]
        if annotation is None:
            annotation = _expression(typed[1])
    default, kind = _default(value)
    shape = _annotated(annotation) if annotation is not None else _Shape(kind)
    is_none = isinstance(value, ast.Constant) and value.value is None
    return ParameterSpec(
        name=name,
        type=shape.kind,
        items=shape.items,
        optional=shape.optional or is_none or shape.kind == "any",
        choices=shape.choices,
        required=value is None,
        default=default,
        default_source=(ast.get_source_segment(text, value) or "")[:1000] if value is not None else "",
        help=comment[:1000],
    )


@dataclass(frozen=True)
class _Shape:
    kind: ParameterKind = "any"
    items: ParameterKind | None = None
    optional: bool = False
    choices: list[Any] | None = None


def _annotated(node: ast.expr) -> _Shape:
    if isinstance(node, ast.Constant):
        if node.value is None:
            return _Shape(optional=True)
        inner = _expression(node.value) if isinstance(node.value, str) else None
        return _annotated(inner) if inner is not None else _Shape()
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([node.left, node.right])
    if isinstance(node, ast.Subscript):
        head = _last_name(node.value)
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if head == "optional":
            return _union([*inside, ast.Constant(None)])
        if head == "union":
            return _union(inside)
        if head in ("annotated", "final"):
            return _annotated(inside[0])
        if head == "literal":
            return _literal(inside)
        kind = _NAMES.get(head, "any")
        return _Shape(kind, _annotated(inside[0]).kind if kind == "list" else None)
    return _Shape(_NAMES.get(_last_name(node), "any"))


def _union(parts: Sequence[ast.expr]) -> _Shape:
    shapes = [_annotated(part) for part in parts if not (isinstance(part, ast.Constant) and part.value is None)]
    optional = len(shapes) < len(parts) or any(shape.optional for shape in shapes)
    kinds: set[ParameterKind] = {shape.kind for shape in shapes}
    if len(shapes) == 1:
        return _Shape(shapes[0].kind, shapes[0].items, optional, shapes[0].choices)
    if kinds == {"int", "float"}:
        return _Shape("float", optional=optional)
    return _Shape(kinds.pop() if len(kinds) == 1 else "any", optional=optional)


def _literal(parts: Sequence[ast.expr]) -> _Shape:
    values = [part.value for part in parts if isinstance(part, ast.Constant)]
    plain: list[Any] = [value for value in values if isinstance(value, (str, int, float, bool))]
    kinds: set[ParameterKind] = {kind_of(value) for value in plain}
    if len(values) < len(parts) or not plain:
        return _Shape()
    return _Shape(kinds.pop() if len(kinds) == 1 else "any", None, None in values, plain)


def _last_name(node: ast.expr) -> str:
    return (node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else "").lower()


def _expression(text: str) -> ast.expr | None:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _default(node: ast.expr | None) -> tuple[Any, ParameterKind]:
    """The default as JSON (None where it is none) and its type."""
    if node is None:
        return None, "any"
    try:
        value: Any = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _computed(node)
    kind = kind_of(value)
    if isinstance(value, (tuple, set, frozenset)):
        value = list(cast(Iterable[Any], value))
    problem = json_problem(value, allow=kind == "float")
    if kind == "float" and not problem:
        return wire_float(value), kind
    return (None if problem else value), kind


def _computed(node: ast.expr) -> tuple[Any, ParameterKind]:
    if isinstance(node, ast.Call) and _last_name(node.func) in ("float", "int", "str", "bool", "list", "dict"):
        head, argument = _last_name(node.func), node.args[0] if len(node.args) == 1 else None
        if head == "float" and isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            try:
                return wire_float(float(argument.value)), "float"
            except ValueError:
                return None, "float"
        return None, _NAMES[head]
    if isinstance(node, ast.Attribute) and node.attr in ("nan", "inf", "pi", "e"):
        return ({"nan": "NaN", "inf": "Infinity"}.get(node.attr), "float")
    if isinstance(node, ast.JoinedStr):
        return None, "str"
    numbers = [leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)]
    if isinstance(node, (ast.BinOp, ast.UnaryOp)) and all(type(n) in (int, float) for n in numbers):
        shape_only = (ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop)
        if all(isinstance(leaf, shape_only) for leaf in ast.walk(node)):
            divides = any(isinstance(leaf, ast.Div) for leaf in ast.walk(node))
            return None, "float" if divides or any(isinstance(n, float) for n in numbers) else "int"
    return None, "any"


def kind_of(value: Any) -> ParameterKind:
    if isinstance(value, bool):
        return "bool"
    for kind, types in (("int", int), ("float", float), ("str", str), ("dict", dict)):
        if isinstance(value, types):
            return cast(ParameterKind, kind)
    return "list" if isinstance(value, (list, tuple, set, frozenset)) else "any"


# --- other languages
def _other_language(notebook: Notebook, source: str) -> Declared:
    with without_slow_imports():
        translators: Any = importlib.import_module("papermill.translators")
    try:
        translator = translators.papermill_translators.find_translator(kernel_name(notebook), language(notebook))
        found: list[Any] = translator.inspect({"source": source})
    except Exception:  # NotImplementedError for most languages; the others trust their input
        return Declared(open=True)
    return Declared(
        specs=tuple(
            ParameterSpec(name=p.name, type=_NAMES.get(str(p.inferred_type_name).lower(), "any"), optional=True,
                          default_source=str(p.default)[:1000], help=str(p.help)[:1000])
            for p in found
        )
    )  # fmt: skip


# --- what JSON can carry
def wire_float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def json_problem(value: Any, depth: int = 0, *, allow: bool = False) -> str | None:
    """What JSON would be needed instead, or None where the value can travel."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**64 else "an integer of at most 64 bits"
    if isinstance(value, float):
        return None if allow or math.isfinite(value) else "a finite number"
    if isinstance(value, str):
        return "text without lone surrogates" if re.search("[\ud800-\udfff]", value) else None
    if depth > _DEEPEST:
        return "a value that is nested less deeply"
    if isinstance(value, dict):
        pairs = cast(dict[Any, Any], value)
        if not all(isinstance(key, str) for key in pairs):
            return "a JSON value (keys are texts)"
        return next(filter(None, (json_problem(v, depth + 1) for pair in pairs.items() for v in pair)), None)
    if isinstance(value, list):
        return next(filter(None, (json_problem(v, depth + 1) for v in cast(list[Any], value))), None)
    return "a JSON value"
