"""Reading a notebook that a stranger may have made: bytes in, a plain v4.5 dict out, or one clear error.

Inside Kajiya a notebook is a dict in nbformat 4.5 whose sources and texts are single strings and whose cells have
unique ids. The same bytes always give the same dict, ids included, so that an event log can name cells by index.
"""

import ast
import hashlib
import importlib
import json
import re
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import orjson

from kajiya.errors import NotebookInvalid, NotebookTooLarge, NotebookUnreadable
from kajiya.sizes import show_size

Notebook = dict[str, Any]
Cell = dict[str, Any]

LIMIT = 50 * 1024**2
# A container costs Python some 30 times the bytes it takes in JSON, so their number is bounded before parsing.
_MOST_CONTAINERS = 2_000_000
_MOST_CELLS = 50_000
# orjson writes 254 levels (its RECURSION_LIMIT); what reads a notebook later recurses too, and has its own frames.
_DEEPEST = 100
_CELL_TYPES = ("code", "markdown", "raw")
_OUTPUT_FIELDS = {
    "stream": ("name", "text"),
    "display_data": ("data",),
    "execute_result": ("data",),
    "error": ("ename", "evalue"),
}
_TRIED_BY_OTHERS = (
    "rfc3987_syntax", "rfc3987", "rfc3986_validator", "rfc3339_validator", "isoduration", "fqdn", "webcolors",
    "uri_template", "pyarrow", "pyarrow.fs",
)  # fmt: skip
_ID = re.compile(r"[a-zA-Z0-9-_]{1,64}")


@contextmanager
def without_slow_imports() -> Generator[None]:
    """Keeps out of what is imported inside what others only try: jsonschema's formats (over 1 s) and pyarrow."""
    names = [name for name in _TRIED_BY_OTHERS if name not in sys.modules]
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def read_file(path: str | Path, limit: int = LIMIT) -> tuple[bytes, Notebook]:
    """The bytes of a notebook file, as they are, and the notebook.

    Raises `NotebookUnreadable`, `NotebookTooLarge` (limit in bytes) and `NotebookInvalid`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
            if len(data) > limit:
                raise NotebookTooLarge(
                    name=path.name, size=show_size(max(path.stat().st_size, len(data))), limit=show_size(limit)
                )
    except (OSError, ValueError) as error:
        problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise NotebookUnreadable(name=str(path), problem=problem) from None
    return data, read(data, path.name, limit)


def read(data: bytes, name: str = "notebook.ipynb", limit: int = LIMIT, *, schema: bool = False) -> Notebook:
    """The notebook in these bytes as a v4.5 dict; `schema=True` also checks it against nbformat's JSON schema.

    Raises `NotebookTooLarge` (limit in bytes) and `NotebookInvalid`, with `name` in the sentence.
    """
    if len(data) > limit:
        raise NotebookTooLarge(name=name, size=show_size(len(data)), limit=show_size(limit))
    if data.count(b"{") + data.count(b"[") > _MOST_CONTAINERS:
        raise NotebookInvalid(name=name, problem="it has too many parts to be read safely")
    raw = _parse(data, name)
    if not isinstance(raw, dict):
        raise NotebookInvalid(name=name, problem="it is JSON, but no object")
    if deeper(raw, _DEEPEST):
        raise NotebookInvalid(name=name, problem="its parts are nested too deeply")
    book = cast(Notebook, raw)
    major = book.get("nbformat")
    if not isinstance(major, int) or isinstance(major, bool):
        raise NotebookInvalid(name=name, problem="it is JSON, but has no nbformat number")
    if major < 4:
        book = _upgrade(book, major, name)
    elif major > 4:
        raise NotebookInvalid(name=name, problem=f"its format {major} is newer than the format 4 known here")
    book = _normal(book, name)
    if schema:
        _check_schema(book, name)
    return book


def dump(notebook: Notebook) -> bytes:
    """The notebook as a file: sorted keys, long texts as lists of lines, as JupyterLab writes it."""
    out = {**notebook, "cells": [_split(cell) for cell in notebook["cells"]]}
    try:
        return orjson.dumps(out, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
    except TypeError:  # integers beyond 64 bits, or lone surrogates in a text
        text = json.dumps(out, indent=2, sort_keys=True)
        return text.encode("utf-8") + b"\n"


# --- what a notebook says of itself
def tags(cell: Cell) -> list[str]:
    """The tags of a cell."""
    found = cell.get("metadata", {}).get("tags")
    return [tag for tag in cast(list[Any], found) if isinstance(tag, str)] if isinstance(found, list) else []


def tagged_cell(notebook: Notebook, tag: str) -> int | None:
    """The index of the first cell with a tag."""
    return next((index for index, cell in enumerate(notebook["cells"]) if tag in tags(cell)), None)


def parameters_cell(notebook: Notebook) -> int | None:
    """The index of the first cell tagged `parameters`."""
    return tagged_cell(notebook, "parameters")


def kernel_name(notebook: Notebook) -> str | None:
    """The name of the kernel the notebook was saved with."""
    return _text_at(notebook, "kernelspec", "name")


def language(notebook: Notebook) -> str | None:
    """The programming language, in lower case."""
    found = _text_at(notebook, "language_info", "name") or _text_at(notebook, "kernelspec", "language")
    if found is None and (kernel_name(notebook) or "").startswith("python"):
        found = "python"
    return found.lower() if found else None


def imported_modules(notebook: Notebook) -> list[str]:
    """The top-level names that the code cells import, sorted; relative imports and cells that don't parse are left out.

    A line that is a magic or a shell command is passed over, and a cell magic's cell too, unless it runs Python.
    """
    found: set[str] = set()
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        parsed = parse_python(cell["source"])
        for node in ast.walk(parsed[0]) if parsed else ():
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
    return sorted(found)


_PYTHON_CELL_MAGICS = [["time"], ["timeit"], ["capture"], ["prun"], ["python"], ["python3"]]
_MAGIC_LINE = re.compile(r"^(\s*)(?:[%!?].*|[\w.]+\s*=\s*[%!].*|.*\?{1,2}\s*)$")


def parse_python(source: str) -> tuple[ast.Module, str] | None:
    """The syntax tree of an IPython cell without its magics, and the text it was read from; None if it is no Python."""
    if source.lstrip().startswith("%%"):
        magic, _, source = source.lstrip().partition("\n")
        if magic[2:].split(maxsplit=1)[:1] not in _PYTHON_CELL_MAGICS:
            return None
    for text in (source, "\n".join(_MAGIC_LINE.sub(r"\1pass", line) for line in source.split("\n"))):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(text), text
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None


# --- the steps of reading
def _parse(data: bytes, name: str) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        problem = f"line {error.lineno} is not JSON"
    try:  # NaN and huge integers are no JSON, but notebooks hold them
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        problem = "it is not text in UTF-8"
    except RecursionError:
        problem = "its parts are nested too deeply"
    except ValueError:
        pass
    if not data.strip():
        problem = "it is empty"
    raise NotebookInvalid(name=name, problem=problem)


def deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested in more than so many levels; found without recursion."""
    level: list[Any] = [value] if isinstance(value, (dict, list)) else []
    for _ in range(levels + 1):
        inner: list[Any] = []
        for one in level:
            members = cast(Cell, one).values() if isinstance(one, dict) else cast(list[Any], one)
            inner += [member for member in members if isinstance(member, (dict, list))]
        level = inner
        if not level:
            return False
    return True


def _upgrade(book: Notebook, major: int, name: str) -> Notebook:
    with without_slow_imports():
        nbformat: Any = importlib.import_module("nbformat")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            upgraded = nbformat.convert(nbformat.from_dict(book), 4)
        plain: Notebook = json.loads(json.dumps(upgraded))
    except Exception:  # the converters trust their input, and a hostile one makes them fail anywhere
        raise NotebookInvalid(name=name, problem=f"its old format {major} can't be brought to format 4") from None
    for cell in plain.get("cells", []):
        cell.pop("id", None)  # random ones; ours are the same every time
    return plain


def _normal(book: Notebook, name: str) -> Notebook:
    cells = book.get("cells")
    if not isinstance(cells, list):
        raise NotebookInvalid(name=name, problem="it has no list of cells")
    if len(cast(list[Any], cells)) > _MOST_CELLS:
        raise NotebookInvalid(name=name, problem=f"it has more than {_MOST_CELLS} cells")
    metadata = book.get("metadata", {})
    if not isinstance(metadata, dict):
        raise NotebookInvalid(name=name, problem="its metadata is no object")
    seen: set[str] = set()
    out: list[Cell] = []
    for number, cell in enumerate(cast(list[Any], cells), 1):
        try:
            out.append(_normal_cell(cell, number - 1, seen))
        except ValueError as error:
            raise NotebookInvalid(name=name, problem=f"cell {number} {error}") from None
    minor = book.get("nbformat_minor")
    return {"nbformat": 4, "nbformat_minor": max(minor, 5) if isinstance(minor, int) else 5,
            "metadata": cast(dict[str, Any], metadata), "cells": out}  # fmt: skip


def _normal_cell(cell: Any, index: int, seen: set[str]) -> Cell:
    if not isinstance(cell, dict):
        raise ValueError("is no object")
    given = cast(Cell, cell)
    kind = given.get("cell_type")
    if kind not in _CELL_TYPES:
        raise ValueError("has no type that is known (code, markdown or raw)")
    metadata = given.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ValueError("has metadata that is no object")
    if "tags" in metadata:
        found: Any = cast(dict[str, Any], metadata)["tags"]
        if not isinstance(found, list) or not all(isinstance(tag, str) for tag in cast(list[Any], found)):
            raise ValueError("has tags that are no list of texts")
    source = _joined(given.get("source"))
    if source is None:
        raise ValueError("has no source")
    ident = given.get("id")
    if not isinstance(ident, str) or not _ID.fullmatch(ident) or ident in seen:
        ident = hashlib.sha256(f"{index}\0{source}".encode("utf-8", "surrogatepass")).hexdigest()[:12]
        while ident in seen:
            ident = hashlib.sha256(ident.encode()).hexdigest()[:12]
    seen.add(ident)
    out: Cell = {"id": ident, "cell_type": kind, "metadata": metadata, "source": source}
    if kind != "code":
        if isinstance(given.get("attachments"), dict):
            out["attachments"] = given["attachments"]
        return out
    count = given.get("execution_count")
    out["execution_count"] = count if isinstance(count, int) and not isinstance(count, bool) else None
    outputs = given.get("outputs", [])
    if not isinstance(outputs, list):
        raise ValueError("has outputs that are no list")
    out["outputs"] = [_normal_output(output) for output in cast(list[Any], outputs)]
    return out


def _normal_output(output: Any) -> dict[str, Any]:
    if not isinstance(output, dict):
        raise ValueError("has an output that is no object")
    given = cast(dict[str, Any], output)
    kind = given.get("output_type")
    if not isinstance(kind, str) or kind not in _OUTPUT_FIELDS:
        raise ValueError("has an output of an unknown type")
    for field in _OUTPUT_FIELDS[kind]:
        if field not in given:
            raise ValueError(f"has an output without {field}")
    if kind == "stream":
        text = _joined(given["text"])
        if text is None or not isinstance(given["name"], str):
            raise ValueError("has an output whose text is no text")
        return {"output_type": "stream", "name": given["name"], "text": text}
    if kind == "error":
        lines = given.get("traceback", [])
        if not isinstance(lines, list):
            raise ValueError("has an error whose traceback is no list")
        lines = [str(line) for line in cast(list[Any], lines)]
        return {
            "output_type": "error",
            "ename": str(given["ename"]),
            "evalue": str(given["evalue"]),
            "traceback": lines,
        }
    data, metadata = given["data"], given.get("metadata", {})
    if not isinstance(data, dict) or not isinstance(metadata, dict):
        raise ValueError("has an output whose data is no object")
    rich = {mime: _joined_mime(mime, value) for mime, value in cast(dict[str, Any], data).items()}
    out: dict[str, Any] = {"output_type": kind, "data": rich, "metadata": metadata}
    if kind == "execute_result":
        count = given.get("execution_count")
        out["execution_count"] = count if isinstance(count, int) else None
    return out


def _joined(text: Any) -> str | None:
    if isinstance(text, str):
        return text
    if isinstance(text, list) and all(isinstance(line, str) for line in cast(list[Any], text)):
        return "".join(cast(list[str], text))
    return None


def is_json_mime(mime: str) -> bool:
    """Whether data of this media type is JSON rather than text."""
    return mime == "application/json" or mime.endswith("+json")


def _joined_mime(mime: str, value: Any) -> Any:
    joined = None if is_json_mime(mime) else _joined(value)
    return value if joined is None else joined


def _split(cell: Cell) -> Cell:
    out = {**cell, "source": cell["source"].splitlines(keepends=True)}
    if "outputs" in cell:
        out["outputs"] = [_split_output(output) for output in cell["outputs"]]
    return out


def _split_output(output: dict[str, Any]) -> dict[str, Any]:
    if output["output_type"] == "stream":
        return {**output, "text": output["text"].splitlines(keepends=True)}
    if "data" not in output:
        return output
    data = {
        mime: value.splitlines(keepends=True) if isinstance(value, str) and not is_json_mime(mime) else value
        for mime, value in output["data"].items()
    }
    return {**output, "data": data}


def _text_at(notebook: Notebook, *path: str) -> str | None:
    value: Any = notebook["metadata"]
    for key in path:
        if not isinstance(value, dict):
            return None
        value = cast(dict[str, Any], value).get(key)
    return value if isinstance(value, str) and value else None


def _check_schema(book: Notebook, name: str) -> None:
    with without_slow_imports():
        nbformat: Any = importlib.import_module("nbformat")
    try:
        nbformat.validate(book)
    except nbformat.ValidationError as error:
        problem = str(error).strip().split("\n", 1)[0]
        raise NotebookInvalid(name=name, problem=problem) from None
