"""Submit, list, see, stop, run again, delete: over the real store and real folders."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from helpers.http import assert_error, assert_job
from helpers.notebooks import code, data, notebook
from helpers.service import NOTEBOOK, PREFIX, Service, form, service, sha256, tree
from kajiya import errors
from kajiya.errors import KajiyaError
from kajiya.types import Ending, Job, Page
from kajiya_hub.api.deps import Limits


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Service]:
    async with service(tmp_path) as made:
        yield made


async def test_a_submit_is_durable_and_says_what_it_runs_in(api: Service, tmp_path: Path) -> None:
    spec = {
        "notebook": "学習/train.ipynb",
        "name": 'はじめての「学習」 "1"',
        "parameters": {"C": 10, "name": "鍛冶屋"},
        "profile": "small",
        "results": ["*.png", "out/**"],
        "time_limit": 60,
    }
    response = await api.submit(spec, files={"データ/a b.csv": b"1,2\n"})
    made = assert_job(response, 201)
    job = Job.model_validate(made)
    assert response.headers["location"] == f"{PREFIX}/api/jobs/{job.id}"
    assert (job.owner, job.name, job.notebook) == ("hanako", spec["name"], spec["notebook"])
    assert job.parameters == {"C": 10.0, "name": "鍛冶屋"}
    assert (job.status, job.profile, job.resources.cpu, job.files) == ("queued", "small", 1, ["データ/a b.csv"])
    assert job.notebook_sha256 == sha256(data(NOTEBOOK))
    assert job.environment.kind == "as_is"
    assert "not captured" in job.environment.note
    assert api.woken
    folder = api.files.input(job.id)
    assert (folder / "notebook.ipynb").read_bytes() == data(NOTEBOOK)
    assert (folder / "files" / "データ" / "a b.csv").read_bytes() == b"1,2\n"
    assert json.loads((folder / "job.json").read_text())["name"] == spec["name"]
    assert not list((tmp_path / "jobs" / ".incoming").iterdir())
    assert api.store.input_of(job.id).env == {"OMP_NUM_THREADS": "1"}
    assert assert_job(await api.get(f"jobs/{job.id}")) == made


async def test_the_notes_are_in_the_readers_language(api: Service) -> None:
    id = await api.job()
    job = assert_job(await api.get(f"jobs/{id}", headers={"Accept-Language": "ja,en;q=0.5"}))
    assert "環境「default」" in job["environment"]["note"]
    response = await api.get("jobs/j0000000000000000", headers={"Accept-Language": "ja"})
    assert "ジョブ" in assert_error(response, errors.JobNotFound)


LONG = "長" * 10_000
CELL = code("C = 1", "parameters")
# What is sent -> how it is refused, and with what in the answer.
BAD_SPECS: list[tuple[str, dict[str, Any] | bytes, type[KajiyaError], dict[str, Any]]] = [
    ("not JSON", b"{", errors.InvalidRequest, {"field": "spec"}),
    ("NaN", b'{"notebook": "a", "parameters": {"C": NaN}}', errors.InvalidRequest, {"field": "spec"}),
    ("nested", b'{"notebook": ' + b"[" * 5000 + b"]" * 5000 + b"}", errors.InvalidRequest, {"field": "spec"}),
    ("a lone surrogate", b'{"notebook": "\\ud800"}', errors.InvalidRequest, {"field": "spec"}),
    ("a list", b"[]", errors.InvalidRequest, {"field": "spec"}),
    ("too long", b" " * 2_000_000, errors.InvalidRequest, {"field": "spec"}),
    ("no notebook name", b"{}", errors.InvalidRequest, {"field": "notebook", "problem": "it is missing"}),
    ("a misspelt key", {"profil": "small"}, errors.InvalidRequest, {"field": "profil", "problem": "it is not known"}),
    ("a long name", {"name": LONG}, errors.InvalidName, {}),
    ("a name of two lines", {"name": "a\nb"}, errors.InvalidName, {"name": "a�b"}),
    ("an empty name", {"name": "  \t "}, errors.InvalidName, {}),
    ("a name with NUL", {"name": "a\0b"}, errors.InvalidName, {}),
    ("a notebook of two lines", {"notebook": "a\nb.ipynb"}, errors.InvalidPath, {}),
    ("a long notebook name", {"notebook": LONG}, errors.InvalidPath, {}),
    ("a pattern that leaves", {"results": ["../*"]}, errors.InvalidPath, {"path": "../*"}),
    ("an absolute pattern", {"results": ["/etc/*"]}, errors.InvalidPath, {"path": "/etc/*"}),
    ("an unknown parameter", {"parameters": {"CC": 1}}, errors.UnknownParameter, {"name": "CC"}),
    ("a hostile parameter", {"parameters": {"C = 1; import os": 1}}, errors.UnknownParameter, {}),
    ("a parameter of another type", {"parameters": {"C": "ten"}}, errors.ParameterType, {"name": "C"}),
    ("a float for an int", {"parameters": {"n": 1.5}}, errors.ParameterType, {"name": "n"}),
    ("an unknown profile", {"profile": "tiny"}, errors.UnknownProfile, {"profile": "tiny"}),
    ("a hostile profile", {"profile": "../small"}, errors.UnknownProfile, {}),
    ("a profile too large", {"profile": "huge"}, errors.TooLargeForMachine, {"profile": "huge"}),
    ("an unknown option", {"options": {"gpus": "1"}}, errors.UnknownOption, {"option": "gpus"}),
    ("an unknown choice", {"profile": "choose", "options": {"size": "three"}}, errors.UnknownChoice, {}),
    ("a hostile environment", {"environment": "../../x"}, errors.InvalidRequest, {"field": "environment"}),
    ("a priority", {"priority": 1}, errors.NotAllowed, {}),
    ("a priority beyond", {"priority": 11}, errors.InvalidRequest, {"field": "priority"}),
    ("no time at all", {"time_limit": 0}, errors.InvalidRequest, {"field": "time_limit"}),
    ("an unknown ending", {"retries": {"boredom": 1}}, errors.InvalidRequest, {}),
]


@pytest.mark.parametrize(("spec", "error", "params"), [b[1:] for b in BAD_SPECS], ids=[b[0] for b in BAD_SPECS])
async def test_a_bad_spec_is_refused_and_nothing_stays(
    api: Service, tmp_path: Path, spec: Any, error: type[KajiyaError], params: dict[str, Any]
) -> None:
    assert_error(await api.submit(spec, files={"a.csv": b"1"}), error, **params)
    assert tree(tmp_path) == []
    assert api.store.jobs().total == 0
    assert not list((tmp_path / "jobs" / ".incoming").iterdir())


BAD_NOTEBOOKS: list[tuple[str, bytes, dict[str, Any], type[KajiyaError]]] = [
    ("empty", b"", {}, errors.NotebookInvalid),
    ("a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 100, {}, errors.NotebookInvalid),
    ("a page", b"<html></html>", {}, errors.NotebookInvalid),
    ("JSON that is none", b'{"a": 1}', {}, errors.NotebookInvalid),
    ("deep", b"[" * 100_000, {}, errors.NotebookInvalid),
    ("too large", b" " * 3_000_000, {}, errors.NotebookTooLarge),
    ("without parameters", data(notebook("1 + 1")), {"parameters": {"C": 1}}, errors.NoParametersCell),
    ("of another kernel", data(notebook(CELL, kernel="julia")), {}, errors.KernelUnknown),
]


@pytest.mark.parametrize(("book", "spec", "error"), [b[1:] for b in BAD_NOTEBOOKS], ids=[b[0] for b in BAD_NOTEBOOKS])
async def test_a_bad_notebook_is_refused_and_nothing_stays(
    tmp_path: Path, book: bytes, spec: dict[str, Any], error: type[KajiyaError]
) -> None:
    async with service(tmp_path, Limits(notebook_bytes=2_000_000)) as api:
        assert_error(await api.submit(spec, book), error)
        assert tree(tmp_path) == []


PATHS = ["../a", "/etc/passwd", "a/../../b", "a\nb", "a\0b", "", ".", "x/" * 40 + "y", LONG, "a" * 300, "\udcff"]


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
async def test_paths_that_leave_are_refused_and_nothing_stays(api: Service, tmp_path: Path, path: str) -> None:
    assert_error(await api.submit(files={"good.csv": b"1", path: b"2"}), errors.InvalidPath)
    assert tree(tmp_path) == []


@pytest.mark.parametrize("path", ['日本語/「引用」 "q".csv', "a'b;c&d.csv", "-rf", "~", "%2e%2e/x", "C:\\x", ".hidden"])
async def test_odd_names_are_welcome(api: Service, path: str) -> None:
    id = await api.job(files={path: b"x"})
    assert (api.files.input(id) / "files" / path).read_bytes() == b"x"


async def test_a_file_sent_twice_or_within_a_file_is_refused(api: Service, tmp_path: Path) -> None:
    book = ("notebook", "a.ipynb", data(NOTEBOOK))
    spec = ("spec", None, b'{"notebook": "a.ipynb"}')
    for second in ("a", "a/b"):
        body, kind = form([spec, book, ("files", "a", b"1"), ("files", second, b"2")])
        response = await api.post("jobs", content=body, headers={"Content-Type": kind})
        assert_error(response, errors.InvalidPath, path=second)
    assert tree(tmp_path) == []


BODIES: list[tuple[str, list[tuple[str, str | None, bytes]], dict[str, Any]]] = [
    ("no spec", [("notebook", "a.ipynb", data(NOTEBOOK))], {"field": "spec"}),
    ("no notebook", [("spec", None, b'{"notebook": "a"}')], {"field": "notebook"}),
    ("two specs", [("spec", None, b'{"notebook": "a"}')] * 2, {"field": "spec"}),
    ("a strange part", [("spec", None, b'{"notebook": "a"}'), ("evil\n", None, b"")], {}),
    ("nothing", [], {}),
]


@pytest.mark.parametrize(("fields", "params"), [b[1:] for b in BODIES], ids=[b[0] for b in BODIES])
async def test_a_body_without_its_parts_is_refused(api: Service, fields: Any, params: dict[str, Any]) -> None:
    body, kind = form(fields)
    response = await api.post("jobs", content=body, headers={"Content-Type": kind})
    assert_error(response, errors.InvalidRequest, **params)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "text/plain; boundary=a", ""])
async def test_a_body_that_is_no_multipart_is_refused(api: Service, kind: str) -> None:
    response = await api.post("jobs", content=b"{}", headers={"Content-Type": kind})
    assert_error(response, errors.InvalidRequest, field="Content-Type")


@pytest.mark.parametrize("cut", [1, 60, 200, 500, -3])
async def test_a_body_that_breaks_off_leaves_nothing(api: Service, tmp_path: Path, cut: int) -> None:
    body, kind = form([("spec", None, b'{"notebook": "a"}'), ("notebook", "a.ipynb", data(NOTEBOOK))])
    response = await api.post("jobs", content=body[:cut], headers={"Content-Type": kind})
    assert_error(response, errors.InvalidRequest, field="body")
    assert tree(tmp_path) == []


async def test_files_beyond_the_limit_are_refused_while_they_come(tmp_path: Path) -> None:
    async with service(tmp_path, Limits(files_bytes=1000, files_count=3)) as api:
        assert_error(await api.submit(files={"a": b"x" * 600, "b": b"x" * 600}), errors.UploadTooLarge)
        assert_error(await api.submit(files={str(n): b"" for n in range(4)}), errors.UploadTooLarge)
        assert tree(tmp_path) == []
        await api.job(files={"a": b"x" * 600, "b": b"x" * 400})


async def test_the_same_key_gives_the_same_job(api: Service, tmp_path: Path) -> None:
    first = assert_job(await api.submit({"parameters": {"C": 1, "n": 2}}, key="k1"), 201)
    before = tree(tmp_path)
    again = assert_job(await api.submit({"parameters": {"n": 2, "C": 1}}, key="k1"), 200)
    assert again["id"] == first["id"]
    assert tree(tmp_path) == before
    assert_error(await api.submit({"parameters": {"C": 2}}, key="k1"), errors.IdempotencyConflict, key="k1")
    assert_error(await api.submit(files={"a": b"1"}, key="k1"), errors.IdempotencyConflict)
    # Another user's key is another key.
    assert_job(await api.submit({"parameters": {"C": 2}}, key="k1", user="taro"), 201)
    for key in ("", "x" * 201, "a\tb"):
        response = await api.submit(key=key)
        assert_error(response, errors.InvalidRequest, field="Idempotency-Key")
    assert api.store.jobs().total == 2


async def test_groups_and_limits_hold(api: Service) -> None:
    await api.job(spec={"profile": "team"})
    assert_error(await api.submit({"profile": "team"}, user="taro"), errors.ProfileNotAllowed, profile="team")
    assert assert_job(await api.submit({"priority": 5}, user="admin"), 201)["priority"] == 5
    for _ in range(19):
        await api.job()
    assert_error(await api.submit(), errors.LimitReached, used=20, limit=20)
    assert api.store.jobs("hanako").total == 20


async def test_lists_page_and_filter(api: Service) -> None:
    ids = [await api.job(spec={"name": f"job {n}"}) for n in range(5)]
    await api.job(user="taro")
    page = Page[Job].model_validate((await api.get("jobs", params={"limit": 2})).json())
    assert [j.id for j in page.items] == [ids[4], ids[3]]
    assert page.total == 5
    page = Page[Job].model_validate((await api.get("jobs", params={"limit": 2, "cursor": page.next})).json())
    assert [j.id for j in page.items] == [ids[2], ids[1]]
    found = (await api.get("jobs", params={"q": "job 3"})).json()
    assert [j["id"] for j in found["items"]] == [ids[3]]
    found = (await api.get("jobs", params=[("status", "running"), ("status", "failed")])).json()
    assert found["items"] == []
    found = (await api.get("jobs", user="admin", params={"owner": "*"})).json()
    assert found["total"] == 6
    found = (await api.get("jobs", user="admin", params={"owner": "taro"})).json()
    assert found["total"] == 1
    assert_error(await api.get("jobs", params={"owner": "taro"}), errors.NotAllowed)
    assert_error(await api.get("jobs", params={"owner": "*"}), errors.NotAllowed)
    wrong = {"limit": ("0", "501", "x"), "status": ("odd",), "since": ("yesterday", "2026-01-01T00:00")}
    for field, values in wrong.items():
        for value in values:
            assert_error(await api.get("jobs", params={field: value}), errors.InvalidRequest)
    assert_error(await api.get("jobs", params={"cursor": "xx"}), errors.InvalidRequest)


async def test_a_job_can_be_stopped_once(api: Service) -> None:
    id = await api.job()
    assert assert_job(await api.post(f"jobs/{id}/stop"))["status"] in ("queued", "stopping", "stopped")
    assert_job(await api.post(f"jobs/{id}/stop"))
    other = await api.job()
    api.end(other, api.begin(other))
    assert_error(await api.post(f"jobs/{other}/stop"), errors.JobEnded, job=other)


async def test_an_administrator_may_stop_and_see_but_names_the_owner(api: Service) -> None:
    id = await api.job()
    assert_error(await api.get(f"jobs/{id}", user="admin"), errors.JobNotFound)
    assert assert_job(await api.get(f"jobs/{id}", user="admin", params={"owner": "hanako"}))["owner"] == "hanako"
    assert_error(await api.get(f"jobs/{id}", user="admin", params={"owner": "taro"}), errors.JobNotFound)
    assert_job(await api.post(f"jobs/{id}/stop", user="admin", params={"owner": "hanako"}))
    assert_error(await api.post(f"jobs/{id}/stop", user="taro", params={"owner": "hanako"}), errors.NotAllowed)


async def test_again_takes_the_inputs_and_todays_rights(api: Service) -> None:
    first = await api.job(spec={"parameters": {"C": 1, "n": 7}, "profile": "choose", "options": {"size": "two"}},
                          files={"a/b.csv": b"1"})  # fmt: skip
    made = assert_job(await api.post(f"jobs/{first}/again", json={"parameters": {"C": 5}, "name": "次"}), 201)
    assert made["again_of"] == first
    assert (made["parameters"], made["name"], made["options"]) == ({"C": 5.0, "n": 7}, "次", {"size": "two"})
    assert (api.files.input(made["id"]) / "files/a/b.csv").read_bytes() == b"1"
    moved = assert_job(await api.post(f"jobs/{first}/again", json={"profile": "small"}), 201)
    assert (moved["profile"], moved["options"]) == ("small", {})
    assert_job(await api.post(f"jobs/{first}/again"), 201)
    keyed = {"Idempotency-Key": "again-1"}
    one = assert_job(await api.post(f"jobs/{first}/again", json={"time_limit": 5}, headers=keyed), 201)
    two = assert_job(await api.post(f"jobs/{first}/again", json={"time_limit": 5}, headers=keyed), 200)
    assert (one["id"], one["time_limit"]) == (two["id"], 5)
    assert_error(await api.post(f"jobs/{first}/again", json={}, headers=keyed), errors.IdempotencyConflict)
    # The inputs outlive the job that they came with.
    api.end(first, api.begin(first))
    assert (await api.call("DELETE", f"jobs/{first}")).status_code == 204
    assert (api.files.input(made["id"]) / "notebook.ipynb").read_bytes() == data(NOTEBOOK)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{", errors.InvalidRequest),
        (b"[]", errors.InvalidRequest),
        (b'{"notebook": "x"}', errors.InvalidRequest),
        (b'{"parameters": {"C": NaN}}', errors.InvalidRequest),
        (b'{"time_limit": 0}', errors.InvalidRequest),
        (b'{"parameters": {"zz": 1}}', errors.UnknownParameter),
        (b'{"profile": "huge"}', errors.TooLargeForMachine),
        (b'{"priority": 3}', errors.NotAllowed),
        (b'{"name": "a\\nb"}', errors.InvalidName),
        (b" " * 2_000_000, errors.InvalidRequest),
    ],
)
async def test_again_with_bad_changes_leaves_nothing(
    api: Service, tmp_path: Path, body: bytes, error: type[KajiyaError]
) -> None:
    first = await api.job()
    before = tree(tmp_path)
    assert_error(await api.post(f"jobs/{first}/again", content=body), error)
    assert tree(tmp_path) == before


async def test_only_ended_jobs_are_deleted_with_all_they_left(api: Service, tmp_path: Path) -> None:
    id = await api.job(files={"a": b"1"})
    assert_error(await api.call("DELETE", f"jobs/{id}"), errors.JobNotEnded, job=id)
    api.end(id, api.begin(id), Ending.notebook_error)
    assert_error(await api.call("DELETE", f"jobs/{id}", user="taro"), errors.JobNotFound)
    assert (await api.call("DELETE", f"jobs/{id}")).status_code == 204
    assert tree(tmp_path) == []
    assert_error(await api.get(f"jobs/{id}"), errors.JobNotFound)


async def test_a_full_disk_is_said_and_nothing_stays(
    api: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from kajiya_hub.store import files

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert_error(await api.submit(), errors.DiskFull)
    monkeypatch.undo()
    assert tree(tmp_path) == []
    await api.job()
