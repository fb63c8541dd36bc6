"""The executed notebook from any prefix of an event log."""

import copy
import json
from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.notebooks import code, markdown, notebook
from kajiya import notebook as notebooks
from kajiya.runner.assemble import ERROR_MARKER, assemble
from kajiya.runner.events import decode, encode, first_line, progress, read

BOOK = notebooks.read(
    notebooks.dump(notebooks.read(json.dumps(notebook(markdown("# t"), "a = 1", "b = 2", "c = 3")).encode()))
)


def event(type_: str, **fields: Any) -> dict[str, Any]:
    return {"t": 1.0, "type": type_, **fields}


def text(cell: int, value: str, name: str = "stdout") -> dict[str, Any]:
    return event("output", cell=cell, output={"output_type": "stream", "name": name, "text": value})


def shown(cell: int, value: str, display_id: str | None = None) -> dict[str, Any]:
    output = {"output_type": "display_data", "data": {"text/plain": value}, "metadata": {}}
    return event("output", cell=cell, output=output, **({"display_id": display_id} if display_id else {}))


def outputs(book: dict[str, Any], cell: int) -> list[str]:
    return [o.get("text") or o.get("data", {}).get("text/plain") or o["ename"] for o in book["cells"][cell]["outputs"]]


def test_nothing_has_run_so_nothing_is_shown() -> None:
    old = copy.deepcopy(BOOK)
    old["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "from before"}]
    old["cells"][1]["execution_count"] = 7
    out = assemble(old, [])
    assert (out["cells"][1]["outputs"], out["cells"][1]["execution_count"]) == ([], None)
    assert old["cells"][1]["execution_count"] == 7


STREAMS: list[tuple[list[dict[str, Any]], list[str]]] = [
    ([text(1, "a"), text(1, "b")], ["ab"]),
    ([text(1, "a"), text(1, "b", "stderr"), text(1, "c")], ["a", "b", "c"]),
    ([text(1, "a"), shown(1, "x"), text(1, "b")], ["a", "x", "b"]),
    ([text(1, "10%\r20%"), text(1, "\r30%\nnext")], ["30%\nnext"]),
    ([text(1, "a\r"), text(1, "\n")], ["a\r\n"]),
    ([text(1, "a\r\nb\r")], ["a\r\nb\r"]),
    ([text(1, "\r\r\rx")], ["x"]),
    ([text(1, "a"), event("clear", cell=1, wait=False), text(1, "b")], ["b"]),
    ([text(1, "a"), event("clear", cell=1, wait=True)], ["a"]),
    ([text(1, "a"), event("clear", cell=1, wait=True), text(1, "b"), text(1, "c")], ["bc"]),
    ([text(1, "a"), event("clear", cell=1, wait=True), event("clear", cell=1, wait=False)], []),
    ([shown(1, "a", "d"), shown(2, "b", "d")], ["b"]),
    ([shown(1, "a", "d"), event("update_display", display_id="d", data={"text/plain": "z"}, metadata={})], ["z"]),
    ([shown(1, "a", "d"), event("update_display", display_id="other", data={"text/plain": "z"}, metadata={})], ["a"]),
    (
        [shown(1, "a", "d"), event("clear", cell=1, wait=False), shown(1, "b"),
         event("update_display", display_id="d", data={"text/plain": "z"}, metadata={})],
        ["b"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("events", "out"), STREAMS)
def test_outputs(events: list[dict[str, Any]], out: list[str]) -> None:
    assert outputs(assemble(BOOK, events), 1) == out


def test_an_earlier_display_is_updated_from_a_later_cell() -> None:
    events = [shown(1, "a", "d"), text(1, "t"), shown(2, "b", "d")]
    events.append(event("update_display", display_id="d", data={"text/plain": "z"}, metadata={"m": 1}))
    out = assemble(BOOK, events)
    assert (outputs(out, 1), outputs(out, 2)) == (["z", "t"], ["z"])
    assert out["cells"][1]["outputs"][0]["metadata"] == {"m": 1}


@pytest.mark.parametrize("replaced", [False, True])
def test_the_parameters_cell_is_where_papermill_put_it(replaced: bool) -> None:
    book = copy.deepcopy(BOOK)
    if replaced:
        book["cells"][2]["metadata"]["tags"] = ["injected-parameters"]
    injected = event("parameters", index=2, source="a = 5", cell_id="xyz", replaced=replaced, values={"a": 5})
    out = assemble(book, [injected, text(3, "hi")])
    assert [c["source"] for c in out["cells"]] == [
        "# t",
        "a = 1",
        "a = 5",
        *(["c = 3"] if replaced else ["b = 2", "c = 3"]),
    ]
    assert outputs(out, 3) == ["hi"]
    nbformat.validate(out)


def test_a_failure_is_marked_and_a_stop_is_not() -> None:
    failed = event("end", status="notebook_error", cell=2, ename="ValueError", evalue="x")
    out = assemble(BOOK, [event("cell_end", cell=2, status="error", execution_count=4, seconds=1.0), failed])
    assert [ERROR_MARKER in c["metadata"].get("tags", []) for c in out["cells"]] == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]
    assert "ValueError" in out["cells"][0]["source"]
    nbformat.validate(out)
    assert assemble(out, [])["cells"] == assemble(BOOK, [])["cells"]
    stopped = assemble(BOOK, [event("end", status="stopped", cell=2)])
    assert len(stopped["cells"]) == len(BOOK["cells"])


def test_widgets_are_merged_by_model() -> None:
    def state(**models: Any) -> dict[str, Any]:
        return event("widget_state", state={"state": models, "version_major": 2, "version_minor": 0})

    out = assemble(BOOK, [state(a={"v": 1}, b={"v": 1}), state(a={"v": 2})])
    widgets = out["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]
    assert widgets == {"state": {"a": {"v": 2}, "b": {"v": 1}}, "version_major": 2, "version_minor": 0}
    assert "widgets" not in assemble(out, [])["metadata"]


NAMES = st.sampled_from(["start", "parameters", "cell_start", "output", "clear", "update_display", "widget_state",
                         "capped", "cell_end", "end", "begin", "result", "take", "__init__", "other"])  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=5) | st.sampled_from(["stream", "error", "ok"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["output_type", "name", "text", "data", "metadata", "state", "x"]), inner)
    ),
    max_leaves=10,
)
FIELDS = st.dictionaries(
    st.sampled_from(["cell", "output", "index", "source", "cell_id", "display_id", "data", "metadata", "status", "wait",
                     "execution_count", "seconds", "state", "replaced", "values", "t"]),
    VALUES,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.builds(lambda name, fields: {**fields, "type": name}, NAMES, FIELDS), max_size=12))
def test_a_log_that_anybody_wrote_does_no_harm(events: list[dict[str, Any]]) -> None:
    """An attempt's owner can write any line into the log: the notebook stays one that can be read."""
    before = copy.deepcopy(BOOK)
    out = assemble(BOOK, read(b"".join(encode(e) for e in events)))
    assert before == BOOK
    assert notebooks.read(notebooks.dump(out))["cells"]
    progress(events)


STEPS = st.lists(
    st.one_of(
        st.builds(text, st.integers(1, 3), st.text(max_size=5), st.sampled_from(["stdout", "stderr"])),
        st.builds(shown, st.integers(1, 3), st.text(max_size=3), st.sampled_from([None, "d", "e"])),
        st.builds(lambda c, w: event("clear", cell=c, wait=w), st.integers(1, 3), st.booleans()),
        st.builds(
            lambda d, v: event("update_display", display_id=d, data={"text/plain": v}, metadata={}),
            st.sampled_from(["d", "e"]),
            st.text(max_size=3),
        ),
        st.builds(
            lambda c, s: event("cell_end", cell=c, status=s, execution_count=c, seconds=0.1),
            st.integers(1, 3),
            st.sampled_from(["ok", "error", "skipped"]),
        ),
    ),
    max_size=15,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.data())
def test_every_prefix_assembles_and_a_torn_line_changes_nothing(
    steps: list[dict[str, Any]], draw: st.DataObject
) -> None:
    log = b"".join(encode(step) for step in steps)
    cut = draw.draw(st.integers(0, len(log)))
    whole = log[:cut].count(b"\n")
    prefix = list(read(log[:cut]))
    assert prefix[:whole] == [decode(encode(step)) for step in steps[:whole]]
    assert len(prefix) in (whole, whole + 1)
    if len(prefix) == whole + 1:
        assert prefix[-1] == decode(encode(steps[whole]))
    nbformat.validate(assemble(BOOK, prefix))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.text(alphabet="ab\r\n日", max_size=6)), max_size=10), st.integers(1, 4))
def test_how_text_was_cut_into_events_does_not_show(parts: list[tuple[int, str]], size: int) -> None:
    once = [text(cell, value) for cell, value in parts]
    cut = [text(cell, value[i : i + size]) for cell, value in parts for i in range(0, max(1, len(value)), size)]
    assert assemble(BOOK, once)["cells"] == assemble(BOOK, cut)["cells"]


def test_events_survive_what_json_cannot_say() -> None:
    odd = {"type": "output", "t": 1.0, "x": ["\ud800", 10**30, float("nan"), {1: b"x"}, (1,)]}
    back = decode(encode(odd))
    assert back is not None
    assert back["x"][0] == "?" and back["x"][2] is None
    assert encode(odd).count(b"\n") == 1


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"null", b'{"t": 1}', b'{"type": 3}', b"\xff", b"[" * 5000])
def test_lines_that_are_no_events(line: bytes) -> None:
    assert decode(line) is None


def test_progress() -> None:
    events = [event("start", cells_total=3), event("cell_start", cell=1, code_index=0, source="a = 1")]
    at = progress(events)
    assert (at.cells_total, at.cells_done, at.current, at.source) == (3, 0, 0, "a = 1")
    events += [event("cell_end", cell=1, status="ok"), event("cell_start", cell=2, code_index=1, source="b")]
    at = progress(events)
    assert (at.cells_done, at.current, at.source) == (1, 1, "b")
    at = progress([*events, event("end", status="kernel_died")])
    assert (at.cells_done, at.current, at.source) == (1, None, "")
    assert progress([]).cells_total == 0
    assert (
        progress([event("start", cells_total="x"), event("cell_start", code_index=-4, source=["y"])]).cells_total == 0
    )


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("\n\n  a = 1\nb", "a = 1"),
        ("# why\na = 1", "a = 1"),
        ("# only", "# only"),
        ("", ""),
        ("x" * 500, "x" * 199 + "…"),
    ],
)
def test_first_line(source: str, line: str) -> None:
    assert first_line(source) == line


def test_code_cells_only_have_outputs() -> None:
    out = assemble(BOOK, [text(0, "into markdown"), text(9, "nowhere"), text(-1, "nowhere")])
    assert out["cells"] == assemble(BOOK, [])["cells"]
    assert "outputs" not in out["cells"][0]
    assert code("x")["cell_type"] == "code"
