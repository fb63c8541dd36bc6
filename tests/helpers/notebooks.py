"""Notebooks for the tests, built from the sources of their cells."""

import json
from pathlib import Path
from typing import Any

Notebook = dict[str, Any]


def code(source: str, *tags: str, **metadata: Any) -> dict[str, Any]:
    """A code cell with tags."""
    marks = {"tags": list(tags)} if tags else {}
    return {"cell_type": "code", "source": source, "metadata": {**marks, **metadata}, "outputs": [],
            "execution_count": None}  # fmt: skip


def markdown(source: str) -> dict[str, Any]:
    """A markdown cell."""
    return {"cell_type": "markdown", "source": source, "metadata": {}}


def notebook(*cells: dict[str, Any] | str, kernel: str | None = "python3", language: str = "python") -> Notebook:
    """A v4.5 notebook; a plain text is a code cell, and every cell gets an id."""
    made = [code(cell) if isinstance(cell, str) else dict(cell) for cell in cells]
    for number, cell in enumerate(made):
        cell.setdefault("id", f"cell-{number}")
    metadata: dict[str, Any] = {"language_info": {"name": language}}
    if kernel is not None:
        metadata["kernelspec"] = {"name": kernel, "display_name": kernel, "language": language}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": made}


def data(book: Notebook) -> bytes:
    """The notebook's file."""
    return json.dumps(book, ensure_ascii=False).encode()


def attempt_folder(folder: Path, book: Notebook | bytes, parameters: dict[str, Any] | None = None, **run: Any) -> Path:
    """An attempt's directory with this notebook in it, as the local backend makes it."""
    (folder / "input" / "files").mkdir(parents=True)
    (folder / "input" / "notebook.ipynb").write_bytes(book if isinstance(book, bytes) else data(book))
    spec = {"job": "j0000000000000001", "attempt": 1, "parameters": parameters or {}, "kernel_name": None}
    spec |= {"results": [], "limits": {}, **run}
    (folder / "run.json").write_text(json.dumps(spec))
    return folder
