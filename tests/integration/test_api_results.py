"""What a job leaves: executed notebook, input, log, kept files; none of it may run in a browser."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from helpers.http import assert_error
from helpers.notebooks import data
from helpers.service import NOTEBOOK, Service, service, sha256
from kajiya import errors
from kajiya.types import Ending

OUTPUT = {"output_type": "stream", "name": "stdout", "text": "一\n"}


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Service]:
    async with service(tmp_path) as made:
        yield made


async def test_the_executed_notebook_is_there_while_it_runs_and_after(api: Service) -> None:
    id = await api.job()
    assert_error(await api.get(f"jobs/{id}/notebook"), errors.NotebookNotReady, job=id)
    n = api.begin(id)
    empty = (await api.get(f"jobs/{id}/notebook")).json()
    assert [c["outputs"] for c in empty["cells"]] == [[], [], []]
    api.write(id, n, {"type": "start", "cells_total": 3}, {"type": "cell_start", "cell": 1, "code_index": 1})
    api.write(id, n, {"type": "output", "cell": 1, "output": OUTPUT})
    (api.files.attempt(id, n) / "events.jsonl").open("ab").write(b'{"type": "output", "cel')
    answer = await api.get(f"jobs/{id}/notebook")
    assert answer.headers["content-type"] == "application/x-ipynb+json"
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.json()["cells"][1]["outputs"][0]["text"] == ["一\n"]
    api.end(id, n, Ending.preempted, again=True)
    second = api.begin(id)
    api.write(id, second, {"type": "output", "cell": 2, "output": OUTPUT})
    assert (await api.get(f"jobs/{id}/notebook")).json()["cells"][1]["outputs"] == []
    first = (await api.get(f"jobs/{id}/notebook", params={"attempt": 1})).json()
    assert first["cells"][1]["outputs"][0]["text"] == ["一\n"]
    assert_error(await api.get(f"jobs/{id}/notebook", params={"attempt": 3}), errors.AttemptNotFound, attempt=3)
    assert_error(await api.get(f"jobs/{id}/notebook", params={"attempt": 0}), errors.InvalidRequest, field="attempt")


@pytest.mark.parametrize("name", ['学習 "x"; filename=evil.html', "a%0d%0ab.ipynb", "折" * 300 + ".ipynb"])
async def test_the_input_comes_back_byte_for_byte_under_any_name(api: Service, name: str) -> None:
    id = await api.job(spec={"notebook": f"dir/{name}"})
    answer = await api.get(f"jobs/{id}/input")
    assert answer.content == data(NOTEBOOK)
    assert answer.headers["etag"] == f'"{sha256(data(NOTEBOOK))}"'
    shown = answer.headers["content-disposition"]
    assert shown.isascii()
    assert shown.count('"') == 2
    assert "\n" not in shown


async def test_the_log_is_read_from_where_one_left_off(api: Service) -> None:
    id = await api.job()
    answer = await api.get(f"jobs/{id}/log")
    assert (answer.status_code, answer.content, answer.headers["x-next-offset"]) == (200, b"", "0")
    n = api.begin(id)
    api.log(id, n, b"<script>alert(1)</script>\n")
    answer = await api.get(f"jobs/{id}/log")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "sandbox" in answer.headers["content-security-policy"]
    at = int(answer.headers["x-next-offset"])
    assert at == len(answer.content) == 26
    api.log(id, n, b"x" * 700_000)
    answer = await api.get(f"jobs/{id}/log", params={"offset": at})
    assert answer.content == b"x" * 700_000
    answer = await api.get(f"jobs/{id}/log", params={"offset": 10**12})
    assert (answer.content, answer.headers["x-next-offset"]) == (b"", str(700_026))
    assert_error(await api.get(f"jobs/{id}/log", params={"offset": -1}), errors.InvalidRequest, field="offset")
    assert_error(await api.get(f"jobs/{id}/log", params={"attempt": 2}), errors.AttemptNotFound)


async def test_kept_files_are_listed_and_downloaded_by_their_path(api: Service, tmp_path: Path) -> None:
    id = await api.job()
    n = api.begin(id)
    work = api.files.attempt(id, n) / "work"
    (work / "データ").mkdir()
    (work / "データ" / 'q "1" #?.csv').write_bytes(b"1,2\n" * 100_000)
    (work / "plot.png").write_bytes(b"<html><script>alert(1)</script>")
    (work / "link.png").symlink_to("/etc/passwd")
    (work / "other.txt").write_bytes(b"not wanted")
    api.end(id, n)
    listed = {r["path"]: r for r in (await api.get(f"jobs/{id}/results")).json()}
    assert set(listed) == {"plot.png", 'データ/q "1" #?.csv'}
    path = 'データ/q "1" #?.csv'
    from urllib.parse import quote

    answer = await api.get(f"jobs/{id}/results/{quote(path)}")
    assert answer.content == b"1,2\n" * 100_000
    assert answer.headers["etag"] == json.dumps(listed[path]["sha256"])
    html = await api.get(f"jobs/{id}/results/plot.png")
    assert html.headers["content-type"] == "application/octet-stream"
    assert html.headers["content-disposition"].startswith("attachment;")
    assert html.headers["x-content-type-options"] == "nosniff"
    for other in ("other.txt", "link.png", "..%2f..%2f..%2fetc%2fpasswd", "plot.png/", "a//b", "長" * 2000):
        answer = await api.get(f"jobs/{id}/results/{other}")
        assert_error(answer, errors.ResultNotFound, job=id)
    # Swapped after it was kept: the path is opened part by part, and no link is followed.
    kept = api.files.results(id, n) / "plot.png"
    kept.unlink()
    kept.symlink_to("/etc/passwd")
    assert_error(await api.get(f"jobs/{id}/results/plot.png"), errors.ResultNotFound)
