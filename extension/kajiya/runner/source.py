"""papermill's way to the notebook, in place of its own handlers."""

from typing import Any

from kajiya import notebook as notebooks


class Source:
    """Gives papermill the notebook that was read and checked, under a fixed name, and writes nothing."""

    def __init__(self, book: notebooks.Notebook) -> None:
        self._book = book

    def read(self, path: str) -> str:
        metadata: dict[str, Any] = {k: v for k, v in self._book["metadata"].items() if k != "papermill"}
        cells = [_unrun(cell) for cell in self._book["cells"]]
        return notebooks.dump({**self._book, "metadata": metadata, "cells": cells}).decode("utf-8", "replace")

    def listdir(self, path: str) -> list[str]:
        return []

    def write(self, buf: str, path: str) -> None:
        """Nothing: the event log is the truth."""

    def pretty_path(self, path: str) -> str:
        return path


def _unrun(cell: notebooks.Cell) -> notebooks.Cell:
    """The cell without outputs and papermill's marks of an earlier run, by which it would call this one failed."""
    metadata = {key: value for key, value in cell["metadata"].items() if key != "papermill"}
    return {**cell, "metadata": metadata, **({"outputs": []} if "outputs" in cell else {})}
