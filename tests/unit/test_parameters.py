"""Parameters: what a cell declares, and which values fit."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.notebooks import code, notebook
from kajiya.errors import InvalidRequest, NoParametersCell, ParameterMissing, ParameterType, UnknownParameter
from kajiya.parameters import declared, expected, parse_cli, to_python, validate
from kajiya.parameters_cell import Declared, python_parameters

DECLARATIONS: list[tuple[str, str, Any, dict[str, Any]]] = [
    # source, type, default, more
    ("x = 1", "int", 1, {}),
    ("x = -1", "int", -1, {}),
    ("x = 1.5", "float", 1.5, {}),
    ("x = 1e-3", "float", 0.001, {}),
    ("x = True", "bool", True, {}),
    ("x = 'a'", "str", "a", {}),
    ("x = 'a' 'b'", "str", "ab", {}),
    ("x = None", "any", None, {"optional": True}),
    ("x = [1, 'a']", "list", [1, "a"], {}),
    ("x = (1, 2)", "list", [1, 2], {}),
    ("x = {'a': 1}", "dict", {"a": 1}, {}),
    ("x = {1: 2}", "dict", None, {"default_source": "{1: 2}"}),
    ("x = {1, 2}", "list", [1, 2], {}),
    ("x = b'a'", "any", None, {}),
    ("x = 1j", "any", None, {}),
    ("x = 10**30", "int", None, {"default_source": "10**30"}),
    ("x = 60 * 60", "int", None, {}),
    ("x = 1 / 3", "float", None, {}),
    ("x = 0.1 * 2", "float", None, {}),
    ("x = f'{1}'", "str", None, {}),
    ("x = float('nan')", "float", "NaN", {}),
    ("x = float('-inf')", "float", "-Infinity", {}),
    ("x = 1e999", "float", "Infinity", {}),
    ("x = math.nan", "float", "NaN", {}),
    ("x = str(3)", "str", None, {}),
    ("x = Path('a')", "any", None, {"default_source": "Path('a')"}),
    ("x = __import__('os').system('x')", "any", None, {}),
    ("x: float = 1", "float", 1, {}),
    ("x: int", "int", None, {"required": True}),
    ("x: 'float' = 1", "float", 1, {}),
    ("x: float | None = None", "float", None, {"optional": True}),
    ("x: None | str = None", "str", None, {"optional": True}),
    ("x: Optional[int] = None", "int", None, {"optional": True}),
    ("x: typing.Optional[int] = None", "int", None, {"optional": True}),
    ("x: Union[int, float, None] = 1", "float", 1, {"optional": True}),
    ("x: int | str = 1", "any", 1, {"optional": True}),
    ("x: List[int] = [1]", "list", [1], {"items": "int"}),
    ("x: list[float] = []", "list", [], {"items": "float"}),
    ("x: Optional[List[str]] = None", "list", None, {"items": "str", "optional": True}),
    ("x: tuple[int, ...] = (1,)", "list", [1], {"items": "int"}),
    ("x: Sequence[int] = []", "list", [], {"items": "int"}),
    ("x: dict[str, int] = {}", "dict", {}, {}),
    ("x: Literal['a', 'b'] = 'a'", "str", "a", {"choices": ["a", "b"]}),
    ("x: Literal['a', None] = None", "str", None, {"choices": ["a"], "optional": True}),
    ("x: Annotated[int, 'more'] = 1", "int", 1, {}),
    ("x: Any = 1", "any", 1, {"optional": True}),
    ("x: np.ndarray = 1", "any", 1, {"optional": True}),
    ("x: 'not valid(' = 1", "any", 1, {"optional": True}),
    ("x = 1  # help # more", "int", 1, {"help": "help # more"}),
    ("x = '#'  # help", "str", "#", {"help": "help"}),
    ("x = '日本#' # 説明", "str", "日本#", {"help": "説明"}),
    ("x = 1; # help", "int", 1, {"help": "help"}),
    ("x = 1  # type: float  help", "float", 1, {"help": "help"}),
    ("x = None  # type: Optional[int]", "int", None, {"optional": True, "help": ""}),
    ("x = [\n  1,  # one\n  2,\n]  # last", "list", [1, 2], {"help": "last"}),
    ("%matplotlib inline\nx = 1  # help", "int", 1, {"help": "help"}),
    ("%%time\nx = 1  # help", "int", 1, {"help": "help"}),
    ("x = 1\nx = 'a'", "str", "a", {}),
    ("y = x = 1", "int", 1, {}),
    ("y, x = 0, 1", "int", 1, {}),
]


@pytest.mark.parametrize(("source", "kind", "default", "more"), DECLARATIONS, ids=[d[0] for d in DECLARATIONS])
def test_declared(source: str, kind: str, default: Any, more: dict[str, Any]) -> None:
    spec = {s.name: s for s in python_parameters(source)}["x"]
    assert (spec.type, spec.default) == (kind, default)
    for field, value in more.items():
        assert getattr(spec, field) == value
    json.dumps(spec.model_dump(), allow_nan=False)


@pytest.mark.parametrize(
    "source",
    ["", "x +", "obj.x = 1", "x[0] = 1", "x += 1", "def x(): pass", "import x", "print('x = 1')", "%%bash\nx=1"],
)
def test_what_declares_nothing(source: str) -> None:
    assert python_parameters(source) == []


def test_names_keep_their_order_and_are_read_as_python_reads_them() -> None:
    assert [s.name for s in python_parameters("b = 1\nﬁ = 2\n名前 = 3\na = 4")] == ["b", "fi", "名前", "a"]


@settings(deadline=None)
@given(st.text())
def test_any_source_is_read_or_passed_over(source: str) -> None:
    for spec in python_parameters(source):
        json.dumps(spec.model_dump(), allow_nan=False)


def found(source: str) -> Declared:
    return declared(notebook(code(source, "parameters")))


FITS: list[tuple[str, Any, Any]] = [
    ("x: float = 1.0", 2, 2.0),
    ("x: float = 1.0", 2.5, 2.5),
    ("x: float = 1.0", "NaN", "NaN"),
    ("x: float = 1.0", math.inf, "Infinity"),
    ("x: int = 1", 5, 5),
    ("x: int = 1", 5.0, 5),
    ("x: bool = True", False, False),
    ("x: str = ''", "日本 'と\" \n%%bash", "日本 'と\" \n%%bash"),
    ("x: float | None = 1.0", None, None),
    ("x = None", {"a": [1]}, {"a": [1]}),
    ("x: list[float] = []", [1, 2.5, "NaN"], [1.0, 2.5, "NaN"]),
    ("x = (1, 2)", (3, 4), [3, 4]),
    ("x: Literal['a', 'b'] = 'a'", "b", "b"),
    ("x: Literal[1, 2] = 1", 2, 2),
    ("x: dict = {}", {"名": {"b": None}}, {"名": {"b": None}}),
    ("x: Any = 1", True, True),
]


@pytest.mark.parametrize(("source", "value", "out"), FITS)
def test_fits(source: str, value: Any, out: Any) -> None:
    got = validate({"x": value}, found(source))["x"]
    assert (got, type(got)) == (out, type(out))
    json.dumps(got, allow_nan=False)


REFUSED: list[tuple[str, Any, str]] = [
    ("x: int = 1", "1; import os", "int"),
    ("x: int = 1", True, "int"),
    ("x: int = 1", 1.5, "int"),
    ("x: int = 1", math.inf, "int"),
    ("x: int = 1", 2**70, "64 bits"),
    ("x: float = 1.0", False, "float"),
    ("x: float = 1.0", "1.0", "float"),
    ("x: float = 1.0", 10**400, "float"),
    ("x: bool = True", 1, "bool"),
    ("x: bool = True", "true", "bool"),
    ("x: str = ''", 1, "str"),
    ("x: str = ''", None, "str"),
    ("x: str = ''", "\ud800", "surrogates"),
    ("x: list[int] = []", [1, "a"], "list of int"),
    ("x: list[int] = []", [True], "list of int"),
    ("x: list = []", "abc", "list"),
    ("x: list = []", {"a": 1}, "list"),
    ("x: dict = {}", [1], "dict"),
    ("x: dict = {}", {1: 2}, "JSON"),
    ("x: Literal['a', 'b'] = 'a'", "c", 'one of "a", "b"'),
    ("x: Literal[1] = 1", True, "one of 1"),
    ("x: float | None = 1.0", "x", "float or null"),
    ("x: Any = 1", math.nan, "finite"),
    ("x: Any = 1", {1, 2}, "JSON"),
    ("x: Any = 1", b"x", "JSON"),
    ("x: list = []", [math.nan], "finite"),
]


@pytest.mark.parametrize(("source", "value", "wanted"), REFUSED)
def test_refused_with_what_was_wanted(source: str, value: Any, wanted: str) -> None:
    with pytest.raises(ParameterType) as caught:
        validate({"x": value}, found(source))
    assert wanted in caught.value.params["expected"]
    json.dumps(caught.value.body("ja"), allow_nan=False).encode()


def test_a_deep_value_is_refused() -> None:
    deep: Any = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(ParameterType, match="nested"):
        validate({"x": deep}, found("x = []"))


def test_unknown_missing_and_no_cell() -> None:
    with pytest.raises(UnknownParameter) as caught:
        validate({"y; import os #": 1}, found("x = 1\nz = 2"))
    assert caught.value.params["known"] == ["x", "z"]
    with pytest.raises(ParameterMissing):
        validate({}, found("x: int"))
    with pytest.raises(NoParametersCell):
        validate({"x": 1}, declared(notebook("x = 1")))
    assert validate({}, declared(notebook("x = 1"))) == {}


def test_names_are_normalised_like_pythons() -> None:
    assert validate({"ﬁ": 2}, found("fi = 1")) == {"fi": 2}


@pytest.mark.parametrize("name", ["x <- 1; y", "a\nb", "", "1a", "a b", "a=b", "a;b", "ａ b"])
def test_a_name_is_never_source_in_a_language_that_cannot_be_inspected(name: str) -> None:
    book = notebook(code("x <- 1", "parameters"), kernel="ir", language="R")
    assert declared(book).open
    assert validate({"x": 1, "名": 2}, declared(book)) == {"x": 1, "名": 2}
    with pytest.raises(UnknownParameter):
        validate({name: 1}, declared(book))


def test_python_gets_its_floats_back() -> None:
    place = found("x: float = 1.0\ny: list[float] = []\nz: str = ''")
    out = to_python(validate({"x": "NaN", "y": [1, "-Infinity"], "z": "NaN"}, place), place)
    assert math.isnan(out["x"]) and out["y"] == [1.0, -math.inf] and out["z"] == "NaN"


CLI: list[tuple[str, str, Any]] = [
    ("x: float = 1.0", "10", 10.0),
    ("x: float = 1.0", "1e-3", 0.001),
    ("x: float = 1.0", ".5", 0.5),
    ("x: float = 1.0", "NaN", "NaN"),
    ("x: int = 1", "7", 7),
    ("x: bool = True", "no", False),
    ("x: bool = True", "True", True),
    ("x: str = ''", "10", "10"),
    ("x: str = ''", "", ""),
    ("x: str = ''", "a=b", "a=b"),
    ("x: str | None = None", "null", None),
    ("x: Literal['1', '2'] = '1'", "2", "2"),
    ("x: list[int] = []", "[1, 2]", [1, 2]),
    ("x: dict = {}", '{"a": 1}', {"a": 1}),
    ("x: dict = {}", "{a: 1}", {"a": 1}),
    ("x: Any = 1", "名前", "名前"),
    ("x: Any = 1", "2026-01-01", "2026-01-01"),
    ("x: Any = 1", "null", None),
    ("x: Any = 1", "'quoted'", "'quoted'"),
    ("x: Any = 1", "[unclosed", "[unclosed"),
    ("x: Any = 1", "!!python/object/apply:os.system ['x']", "!!python/object/apply:os.system ['x']"),
]


@pytest.mark.parametrize(("source", "text", "out"), CLI)
def test_command_line(source: str, text: str, out: Any) -> None:
    got = parse_cli([f"x={text}"], found(source))["x"]
    assert (got, type(got)) == (out, type(out))


@pytest.mark.parametrize(
    ("item", "error"),
    [("x", InvalidRequest), ("=1", InvalidRequest), ("y=1", UnknownParameter), ("x=abc", ParameterType),
     ("x=[1", ParameterType), ("x=true", ParameterType)],
)  # fmt: skip
def test_command_line_refuses(item: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_cli([item], found("x: float = 1.0"))


ATOMS = st.none() | st.booleans() | st.floats() | st.text()
JSON = st.recursive(ATOMS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["s", "l", "d", "a"]), JSON))
def test_what_papermill_writes_gives_the_value_back(given_values: dict[str, Any]) -> None:
    """Through papermill's translator and Python's parser, an accepted value is itself again, and nothing more runs."""
    import ast

    from papermill.translators import PythonTranslator

    place = found("s: str = ''\nl: list = []\nd: dict = {}\na: Any = None")
    try:
        values = validate(given_values, place)
    except ParameterType:
        return
    tree = ast.parse(PythonTranslator.codify(to_python(values, place)))
    assert [ast.unparse(s.targets[0]) for s in tree.body if isinstance(s, ast.Assign)] == list(values)
    assert [ast.literal_eval(s.value) for s in tree.body if isinstance(s, ast.Assign)] == list(values.values())
    assert len(tree.body) == len(values)


def test_expected_in_words() -> None:
    words = {
        s.name: expected(s)
        for s in found("a = 1\nb: list[int] = []\nc: Literal[1, 'x'] = 1\nd: float | None = 1").specs
    }
    assert words == {"a": "int", "b": "list of int", "c": 'one of 1, "x"', "d": "float or null"}
