"""The recorder holds back and leaves out what nobody would see; what is seen at the end is the same."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.notebooks import notebook
from kajiya import notebook as notebooks
from kajiya.runner.assemble import assemble
from kajiya.runner.budget import Budget
from kajiya.runner.recorder import Recorder
from kajiya.runner.sink import ListSink

BOOK = notebooks.read(json.dumps(notebook("a", "b")).encode())
CELLS = st.integers(0, 1)
WORDS = st.text(alphabet="ab\n日", max_size=4)
STEPS = st.one_of(
    st.tuples(st.just("stream"), CELLS, st.sampled_from(["stdout", "stderr"]), WORDS),
    st.tuples(st.just("display"), CELLS, st.sampled_from([None, "d", "e"]), WORDS),
    st.tuples(st.just("update"), CELLS, st.sampled_from(["d", "e"]), WORDS),
    st.tuples(st.just("clear"), CELLS, st.booleans(), st.just("")),
    st.tuples(st.just("time"), CELLS, st.none(), st.just("")),
)


def rich(text: str) -> dict[str, Any]:
    return {"output_type": "display_data", "data": {"text/plain": text}, "metadata": {}}


def direct(steps: list[Any]) -> list[dict[str, Any]]:
    """The events with nothing held back."""
    out: list[dict[str, Any]] = []
    for kind, cell, more, text in steps:
        if kind == "stream":
            out.append({"type": "output", "cell": cell, "output": {"output_type": kind, "name": more, "text": text}})
        elif kind == "display":
            out.append({"type": "output", "cell": cell, "output": rich(text), **({"display_id": more} if more else {})})
        elif kind == "update":
            out.append({"type": "update_display", "display_id": more, "data": {"text/plain": text}, "metadata": {}})
        elif kind == "clear":
            out.append({"type": "clear", "cell": cell, "wait": more})
    return out


def recorded(steps: list[Any], budget: Budget | None = None) -> list[dict[str, Any]]:
    sink = ListSink()
    recorder = Recorder(sink, budget or Budget())
    for kind, cell, more, text in steps:
        if kind == "stream":
            recorder.stream(cell, more, text)
        elif kind == "display":
            recorder.output(cell, rich(text), more)
        elif kind == "update":
            recorder.update_display(cell, more, {"text/plain": text}, {})
        elif kind == "clear":
            recorder.clear(cell, more)
        else:
            recorder.flush()
    recorder.flush()
    return sink.events


def seen(events: list[dict[str, Any]]) -> list[Any]:
    """The outputs; a text of no characters shows nothing."""
    cells = assemble(BOOK, events)["cells"]
    return [[o for o in cell["outputs"] if o.get("text") != ""] for cell in cells]


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, max_size=25))
async def test_what_is_seen_is_the_same(steps: list[Any]) -> None:
    assert seen(recorded(steps)) == seen(direct(steps))


async def test_a_picture_drawn_again_and_again_is_written_once_in_a_while() -> None:
    steps: list[Any] = []
    for number in range(500):
        steps += [("clear", 0, True, ""), ("display", 0, None, f"frame {number}"), ("stream", 0, "stdout", "x")]
    events = recorded(steps)
    assert len(events) < 20
    assert seen(events)[0][0]["data"]["text/plain"] == "frame 499"


async def test_an_update_of_another_cell_is_not_lost_with_its_frame() -> None:
    steps: list[Any] = [("display", 1, "d", "old"), ("clear", 0, True, ""), ("clear", 0, True, "")]
    steps += [
        ("update", 0, "d", "new"),
        ("stream", 0, "stdout", "x"),
        ("clear", 0, True, ""),
        ("stream", 0, "stdout", "y"),
    ]
    assert seen(recorded(steps))[1][0]["data"]["text/plain"] == "new"


@pytest.mark.parametrize("kind", ["stream", "display"])
async def test_the_limit_of_a_cell_holds_in_frames_too(kind: str) -> None:
    more = "stdout" if kind == "stream" else None
    steps: list[Any] = [("clear", 0, True, ""), ("stream", 0, "stdout", "x"), ("clear", 0, True, "")]
    steps += [(kind, 0, more, "y" * 600)] * 3
    events = recorded(steps, Budget(per_cell=1000))
    assert sum(len(json.dumps(e)) for e in events) < 2500
    assert "a cell may show" in json.dumps(events) or "1 セル" in json.dumps(events, ensure_ascii=False)
