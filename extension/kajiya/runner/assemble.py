"""The executed notebook, from the notebook that was submitted and any prefix of the event log. Pure."""

import copy
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, cast

from kajiya.messages import message
from kajiya.notebook import Cell, Notebook, tags
from kajiya.runner.events import Event

ERROR_MARKER = "papermill-error-cell-tag"
INJECTED = "injected-parameters"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
_FINAL = {"ok": "completed", "error": "failed", "skipped": "completed"}


def assemble(notebook: Notebook, events: Iterable[Event]) -> Notebook:
    """What the notebook looks like after these events; outputs that were saved in it are gone, as they were not run.

    Cells that did not run have no outputs, a cell that was cut off has what it had shown. Where the run ended in an
    error, a marker stands at the top and another before the cell, with the tag that papermill gives to its own.
    """
    run = _Run(notebook)
    for event in events:
        run.take(event)
    return run.result()


class _Run:
    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook
        self.begin()

    def begin(self) -> None:
        notebook = self.notebook
        self.metadata: dict[str, Any] = copy.deepcopy(notebook["metadata"])
        self.rest = {key: value for key, value in notebook.items() if key not in ("cells", "metadata")}
        cells: list[Cell] = notebook["cells"]
        self.cells = [_clean(cell) for cell in cells if ERROR_MARKER not in tags(cell)]
        self.displays: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.clear_next: set[int] = set()
        self.texts: dict[tuple[int, int], list[str]] = {}
        self.widgets: dict[str, Any] = {}
        self.end: Event | None = None
        self.shown = False
        self.papermill: dict[str, Any] = {"parameters": {}, "start_time": None, "end_time": None, "exception": None}

    def take(self, event: Event) -> None:
        handler = getattr(self, f"on_{event['type']}", None)
        if handler is None:
            return
        try:
            handler(event)
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, OSError):
            # The log lies where its owner can write: a line that is no event of ours changes nothing.
            return

    def code_cell(self, event: Event) -> tuple[int, Cell]:
        index = event["cell"]
        if not isinstance(index, int) or not 0 <= index < len(self.cells):
            raise IndexError
        cell = self.cells[index]
        if cell["cell_type"] != "code":
            raise TypeError
        return index, cell

    # --- one method a type of event
    def on_start(self, event: Event) -> None:
        self.begin()
        self.papermill["start_time"] = _time(event)

    def on_parameters(self, event: Event) -> None:
        index, source = event["index"], event["source"]
        if self.shown:
            raise ValueError("cells can't move once something was shown in them")
        if not isinstance(index, int) or not isinstance(source, str) or not 0 <= index <= len(self.cells):
            raise IndexError
        cell: Cell = {
            "id": str(event["cell_id"]), "cell_type": "code", "execution_count": None, "outputs": [],
            "metadata": {"tags": [INJECTED], "papermill": _pending()}, "source": source,
        }  # fmt: skip
        self.cells[index : index + bool(event.get("replaced"))] = [cell]
        self.papermill["parameters"] = event.get("values", {})

    def on_cell_start(self, event: Event) -> None:
        _, cell = self.code_cell(event)
        cell["metadata"]["papermill"].update(status="running", exception=False, start_time=_time(event))

    def on_output(self, event: Event) -> None:
        index, cell = self.code_cell(event)
        output = _plain_output(event["output"])
        if index in self.clear_next:
            self.clear(index, cell)
        self.shown = True
        outputs: list[dict[str, Any]] = cell["outputs"]
        if output["output_type"] == "stream":
            if outputs and outputs[-1]["output_type"] == "stream" and outputs[-1]["name"] == output["name"]:
                self.texts[index, len(outputs) - 1].append(output["text"])
                return
            self.texts[index, len(outputs)] = [output["text"]]
        display = event.get("display_id")
        if isinstance(display, str) and "data" in output:
            self.update(display, output["data"], output["metadata"])
            self.displays[display][index].append(len(outputs))
        outputs.append(output)

    def on_clear(self, event: Event) -> None:
        index, cell = self.code_cell(event)
        if event.get("wait"):
            self.clear_next.add(index)
        else:
            self.clear(index, cell)

    def clear(self, index: int, cell: Cell) -> None:
        self.clear_next.discard(index)
        for position in range(len(cell["outputs"])):
            self.texts.pop((index, position), None)
        cell["outputs"] = []
        for places in self.displays.values():
            places.pop(index, None)

    def on_update_display(self, event: Event) -> None:
        self.update(event["display_id"], dict(event["data"]), dict(event["metadata"]))

    def update(self, display: str, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        for index, positions in self.displays[display].items():
            for position in positions:
                self.cells[index]["outputs"][position].update(data=dict(data), metadata=dict(metadata))

    def on_widget_state(self, event: Event) -> None:
        self.widgets.update(event["state"]["state"])

    def on_cell_end(self, event: Event) -> None:
        _, cell = self.code_cell(event)
        count = event.get("execution_count")
        cell["execution_count"] = count if isinstance(count, int) else None
        seconds = event.get("seconds")
        cell["metadata"]["papermill"].update(
            status=_FINAL[event["status"]],
            exception=event["status"] == "error",
            end_time=_time(event) if seconds is not None else None,
            duration=seconds,
        )

    def on_end(self, event: Event) -> None:
        status = str(event["status"])
        self.papermill["end_time"] = _time(event)
        self.papermill["exception"] = status not in ("succeeded", "stopped")
        self.end = event

    # --- the whole
    def result(self) -> Notebook:
        for (index, position), parts in self.texts.items():
            output = self.cells[index]["outputs"][position]
            output["text"] = _as_shown("".join(parts))
        if self.widgets:
            old = self.metadata.get("widgets")
            widgets = cast(dict[str, Any], old) if isinstance(old, dict) else {}
            state = {"state": self.widgets, "version_major": 2, "version_minor": 0}
            self.metadata["widgets"] = {**widgets, WIDGET_STATE: state}
        else:
            self.metadata.pop("widgets", None)
        self.metadata["papermill"] = self.papermill
        cells = self.cells
        failed = self.end.get("cell") if self.end else None
        if self.end and self.papermill["exception"] and isinstance(failed, int):
            cells = _marked(cells, failed, self.end)
        return {**self.rest, "metadata": self.metadata, "cells": cells}


def _marked(cells: list[Cell], index: int, end: Event) -> list[Cell]:
    if not 0 <= index < len(cells):
        return cells
    count = cells[index].get("execution_count") or " "
    params = {"count": count, "ename": str(end.get("ename") or end["status"])[:200]}
    top = _marker("top", message("runner.marker_top", params))
    here = _marker("here", message("runner.marker_here", params))
    return [top, *cells[:index], here, *cells[index:]]


def _marker(name: str, text: str) -> Cell:
    metadata = {"tags": [ERROR_MARKER]}
    return {"id": f"kajiya-error-{name}", "cell_type": "markdown", "metadata": metadata, "source": text}


def _clean(cell: Cell) -> Cell:
    metadata = copy.deepcopy(cell["metadata"])
    if cell["cell_type"] != "code":
        return {**cell, "metadata": metadata}
    metadata.pop("execution", None)
    metadata["papermill"] = _pending()
    return {**cell, "metadata": metadata, "outputs": [], "execution_count": None}


def _pending() -> dict[str, Any]:
    return {"status": "pending", "exception": None, "start_time": None, "end_time": None, "duration": None}


def _plain_output(output: dict[str, Any]) -> dict[str, Any]:
    """The output with just the fields that its type has: the log may have been written by anybody."""
    kind = output["output_type"]
    if kind == "stream":
        return {"output_type": kind, "name": str(output["name"]), "text": str(output["text"])}
    if kind == "error":
        lines = [str(line) for line in output["traceback"]]
        return {"output_type": kind, "ename": str(output["ename"]), "evalue": str(output["evalue"]), "traceback": lines}
    if kind not in ("display_data", "execute_result"):
        raise ValueError(kind)
    out: dict[str, Any] = {
        "output_type": kind,
        "data": dict(output["data"]),
        "metadata": dict(output.get("metadata", {})),
    }
    if kind == "execute_result":
        count = output.get("execution_count")
        out["execution_count"] = count if isinstance(count, int) else None
    return out


def _as_shown(text: str) -> str:
    """The text as a terminal would show it at the end: what a carriage return overwrote is gone."""
    if "\r" not in text:
        return text
    lines = text.split("\n")
    last = len(lines) - 1
    return "\n".join(_overwritten(line, ended=number < last) for number, line in enumerate(lines))


def _overwritten(line: str, *, ended: bool) -> str:
    body = line.rstrip("\r")
    tail = line[len(body) :][-1:] if ended or body else ""
    return body[body.rfind("\r") + 1 :] + tail


def _time(event: Event) -> str | None:
    t = event.get("t")
    return datetime.fromtimestamp(t, UTC).isoformat() if isinstance(t, (int, float)) else None
