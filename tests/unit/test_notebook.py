"""Reading notebooks that a stranger made."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.notebooks import code, data, markdown, notebook
from kajiya import notebook as notebooks
from kajiya.errors import KajiyaError, NotebookInvalid, NotebookTooLarge, NotebookUnreadable


def cell(**changes: object) -> bytes:
    return data({**notebook(), "cells": [{**code("x"), "id": "a", **changes}]})


INVALID = {
    "empty": (b"", "empty"),
    "blank": (b" \n", "empty"),
    "no JSON": (b"{'a': 1}", "not JSON"),
    "torn": (data(notebook("x = 1"))[:-20], "not JSON"),
    "binary": (b"PK\x03\x04\xff\xfe", "UTF-8"),
    "utf-16": (json.dumps(notebook()).encode("utf-16"), "UTF-8"),
    "a list": (b"[]", "no object"),
    "a text": (b'"x"', "no object"),
    "no format": (b'{"cells": []}', "nbformat"),
    "format is true": (b'{"nbformat": true, "cells": []}', "nbformat"),
    "format 99": (b'{"nbformat": 99, "cells": []}', "newer"),
    "hostile format 3": (b'{"nbformat": 3, "nbformat_minor": 0, "worksheets": 7}', "format 3"),
    "no cells": (b'{"nbformat": 4}', "cells"),
    "cells are an object": (b'{"nbformat": 4, "cells": {}}', "cells"),
    "metadata is a list": (b'{"nbformat": 4, "cells": [], "metadata": []}', "metadata"),
    "a cell is null": (b'{"nbformat": 4, "cells": [null]}', "cell 1"),
    "unknown cell": (cell(cell_type="heading"), "cell 1"),
    "no source": (cell(source=None), "source"),
    "source of numbers": (cell(source=[1]), "source"),
    "tags are a text": (cell(metadata={"tags": "parameters"}), "tags"),
    "tags of objects": (cell(metadata={"tags": [{}]}), "tags"),
    "metadata is null": (cell(metadata=None), "metadata"),
    "outputs are null": (cell(outputs=None), "outputs"),
    "unknown output": (cell(outputs=[{"output_type": "x"}]), "output"),
    "unhashable output": (cell(outputs=[{"output_type": []}]), "output"),
    "stream without text": (cell(outputs=[{"output_type": "stream", "name": "stdout"}]), "text"),
    "data is a list": (cell(outputs=[{"output_type": "display_data", "data": [], "metadata": {}}]), "data"),
    "deep": (b'{"nbformat": 4, "cells": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ""),
    "many parts": (b'{"nbformat": 4, "cells": [' + b"[]," * 2_100_000 + b"[]]}", "parts"),
    "many cells": (data({**notebook(), "cells": [markdown("x")] * 60_000}), "cells"),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_is_no_notebook_is_refused_with_a_reason(name: str) -> None:
    raw, problem = INVALID[name]
    with pytest.raises(NotebookInvalid) as caught:
        notebooks.read(raw, "名前.ipynb")
    assert problem in caught.value.params["problem"]
    assert "名前.ipynb" in str(caught.value)


def test_too_large_is_said_before_anything_is_parsed() -> None:
    with pytest.raises(NotebookTooLarge, match=r"2 KiB.*1 KiB"):
        notebooks.read(b" " * 2048, limit=1024)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "ノート.ipynb"
    path.write_bytes(data(notebook("x = 1")))
    raw, book = notebooks.read_file(path)
    assert raw == path.read_bytes()
    assert book["cells"][0]["source"] == "x = 1"
    for missing in (tmp_path / "no", tmp_path, f"{tmp_path}/\0"):
        with pytest.raises(NotebookUnreadable):
            notebooks.read_file(missing)
    with pytest.raises(NotebookTooLarge):
        notebooks.read_file(path, limit=10)


@settings(deadline=None)
@given(st.binary(max_size=200) | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda s: (
    st.lists(s) | st.dictionaries(st.sampled_from(["cells", "metadata", "source", "cell_type", "outputs"]), s)
)).map(lambda v: json.dumps({"nbformat": 4, "cells": v}).encode()))  # fmt: skip
def test_nothing_but_our_errors_comes_out(raw: bytes) -> None:
    try:
        book = notebooks.read(raw)
    except KajiyaError:
        return
    nbformat.validate(json.loads(notebooks.dump(book)))


def test_the_same_bytes_give_the_same_ids() -> None:
    book = notebook(code("a"), code("a"), code("b"), code("c"), code("d"))
    for target, ident in zip(book["cells"], (None, "same", "same", "bad id!", 7), strict=True):
        target.pop("id")
        if ident is not None:
            target["id"] = ident
    first, second = notebooks.read(data(book)), notebooks.read(data(book))
    idents = [c["id"] for c in first["cells"]]
    assert idents == [c["id"] for c in second["cells"]]
    assert len(set(idents)) == 5
    assert "same" in idents and "bad id!" not in idents
    assert notebooks.read(notebooks.dump(first)) == first


def test_an_old_notebook_is_brought_up(tmp_path: Path) -> None:
    old = nbformat.v3.new_notebook(metadata=nbformat.v3.new_metadata(name="old"))
    sheet = nbformat.v3.new_worksheet()
    sheet.cells.append(nbformat.v3.new_heading_cell("Title", level=2))
    output = nbformat.v3.new_output("stream", output_text="hi\n", stream="stdout")
    sheet.cells.append(nbformat.v3.new_code_cell("print('hi')", prompt_number=3, outputs=[output]))
    old.worksheets.append(sheet)
    raw = json.dumps(old).encode()
    book = notebooks.read(raw, schema=True)
    assert book == notebooks.read(raw)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert [c["cell_type"] for c in book["cells"]] == ["markdown", "code"]
    assert book["cells"][1]["outputs"] == [{"output_type": "stream", "name": "stdout", "text": "hi\n"}]


def test_what_others_write_loosely_is_mended() -> None:
    raw = {
        "nbformat": 4,
        "nbformat_minor": 2,
        "cells": [
            {"cell_type": "code", "source": ["a = 1\n", "a"], "outputs": [
                {"output_type": "execute_result", "data": {"text/plain": ["1", "2"], "application/json": ["a"]}},
                {"output_type": "error", "ename": "E", "evalue": 1},
            ]},
            {"cell_type": "raw", "source": "x", "attachments": None},
        ],
    }  # fmt: skip
    book = notebooks.read(json.dumps(raw).encode(), schema=True)
    first = book["cells"][0]
    assert first["source"] == "a = 1\na"
    assert first["outputs"][0]["data"] == {"text/plain": "12", "application/json": ["a"]}
    assert first["execution_count"] is None


def test_nan_and_huge_numbers_are_taken() -> None:
    raw = b'\xef\xbb\xbf{"nbformat": 4, "metadata": {"x": NaN, "y": 1' + b"0" * 40 + b'}, "cells": []}'
    book = notebooks.read(raw)
    assert book["metadata"]["y"] == 10**40
    assert json.loads(notebooks.dump(book))["metadata"]["y"] == 10**40


def test_the_schema_is_asked_where_wanted() -> None:
    raw = cell(metadata={"collapsed": "no boolean"})
    notebooks.read(raw)
    with pytest.raises(NotebookInvalid):
        notebooks.read(raw, schema=True)


@pytest.mark.parametrize(
    ("metadata", "kernel", "language"),
    [
        ({"kernelspec": {"name": "ir"}, "language_info": {"name": "R"}}, "ir", "r"),
        ({"kernelspec": {"name": "python3"}}, "python3", "python"),
        ({"kernelspec": {"name": "x", "language": "Julia"}}, "x", "julia"),
        ({"kernelspec": "python3"}, None, None),
        ({"kernelspec": {"name": ["x"]}, "language_info": 3}, None, None),
        ({}, None, None),
    ],
)
def test_kernel_and_language(metadata: dict, kernel: str | None, language: str | None) -> None:
    book = notebooks.read(data({**notebook(), "metadata": metadata}))
    assert (notebooks.kernel_name(book), notebooks.language(book)) == (kernel, language)


def test_the_first_tagged_cell_counts() -> None:
    book = notebook(markdown("x"), code("a = 1", "other"), code("b = 1", "parameters"), code("c = 1", "parameters"))
    assert notebooks.parameters_cell(book) == 2
    assert notebooks.parameters_cell(notebook("a = 1")) is None


def test_imports_are_found_through_magics() -> None:
    book = notebook(
        "import os, numpy.linalg as la\nfrom sklearn.svm import SVC\nfrom . import here\nfrom .other import x",
        "%matplotlib inline\nimport pandas\n!pip install x\nfiles = !ls\nimport helpers?\nx?\n%time import json",
        "%%time\nimport torch",
        "%%bash\nimport nothing",
        "%%\nimport nothing",
        "def broken(:\n import nothing",
        "if True:\n    !ls\n    import 日本",
        "import \0",
        markdown("import nothing"),
    )
    assert notebooks.imported_modules(book) == ["numpy", "os", "pandas", "sklearn", "torch", "日本"]


def test_reading_imports_nothing_slow() -> None:
    """nbformat, jsonschema and rfc3987_syntax cost a second in every process that imports them."""
    script = (
        "import sys; from kajiya import notebook as n; n.read(sys.stdin.buffer.read());"
        "print([m for m in ('nbformat', 'jsonschema', 'rfc3987_syntax', 'papermill') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], input=data(notebook("x")), capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
    script = script.replace("read())", "read(), schema=True)")
    done = subprocess.run([sys.executable, "-c", script], input=data(notebook("x")), capture_output=True, check=True)
    assert b"rfc3987" not in done.stdout
