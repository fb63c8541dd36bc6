"""The client's parts that need no service: streams, addresses, tokens, files, words."""

import json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kajiya import credentials, describe, display, sdk, sse
from kajiya.errors import FilesClash, FilesMissing, InvalidName, JobFailed, NotConfigured, from_body
from kajiya.files import gather
from kajiya.types import Job, Status

URL = "http://127.0.0.1:8000/services/kajiya"


def record(**changes: Any) -> Job:
    base: dict[str, Any] = {
        "id": "j1",
        "owner": "mari",
        "name": "train",
        "notebook": "train.ipynb",
        "notebook_sha256": "0" * 64,
        "profile": "small",
        "resources": {"cpu": 1, "memory": 2**30},
        "environment": {},
        "status": "queued",
        "submitted_at": datetime.now(UTC) - timedelta(seconds=65),
    }
    return Job.model_validate(base | changes)


# --- server-sent events
@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ("event: a\ndata: 1\n\n", [("a", "1", "")]),
        ("data: 1\ndata: 2\nid: 7\n\n", [("message", "1\n2", "7")]),
        ("event: a\r\ndata:1\r\n\r\n", [("a", "1", "")]),
        ("event: a\rdata: 1\r\r", [("a", "1", "")]),
        (": here\n\nevent: a\ndata: x\n\n", [("ping", "here", ""), ("a", "x", "")]),
        ("event: a\ndata: 1\n", []),  # cut off
        ("event: a\n\n", []),
        ("data: a\u2028b\u0085c\x0bd\n\n", [("message", "a\u2028b\u0085c\x0bd", "")]),
    ],
)
def test_streams_are_read_as_the_standard_says_however_they_are_cut(stream: str, expected: list[Any]):
    data = stream.encode()
    for size in range(1, len(data) + 1):
        chunks = [data[i : i + size] for i in range(0, len(data), size)]
        found = [(m.name, m.data, m.id) for m in sse.messages(chunks)]
        # A CR that ends the stream may be half of a CRLF, so its event waits for what never comes.
        assert found == (expected if not stream.endswith("\r\r") else [])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))), st.integers(1, 9))
def test_any_text_survives_a_stream(texts: list[str], size: int):
    data = "".join(f"id: {i}\ndata: {t}\n\n" for i, t in enumerate(texts)).encode()
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    assert [m.data for m in sse.messages(chunks)] == texts


# --- addresses and tokens
@pytest.mark.parametrize(
    "given",
    [
        "127.0.0.1:8000",
        "http://127.0.0.1:8000",
        "http://127.0.0.1:8000/",
        "http://127.0.0.1:8000/hub/home",
        "http://127.0.0.1:8000/user/mari/lab/tree/x.ipynb?a=1#b",
        "http://127.0.0.1:8000/services/kajiya/api/jobs",
        f"  {URL}/ ",
    ],
)
def test_an_address_is_found_in_whatever_was_pasted(given: str):
    assert credentials.normalise(given) == URL


def test_a_base_address_and_the_scheme_are_kept():
    assert credentials.normalise("lab.example.org/jupyter/hub/login") == (
        "https://lab.example.org/jupyter/services/kajiya"
    )


@pytest.mark.parametrize("given", ["", "ftp://x", "http://", "http://u:p@x/", "http://x:port/", "http://[::1"])
def test_what_is_no_address_is_refused(given: str):
    with pytest.raises(InvalidName):
        credentials.normalise(given)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("KAJIYA_API_URL", "KAJIYA_TOKEN", "JUPYTERHUB_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return monkeypatch


def revealed(found: credentials.Credentials) -> str | None:
    return found.token.reveal() if found.token else None


def test_a_token_goes_only_where_it_belongs(clean: pytest.MonkeyPatch):
    with pytest.raises(NotConfigured):
        credentials.find()
    credentials.store(URL, credentials.Secret("stored"))
    assert revealed(credentials.find()) == "stored"
    other = "https://elsewhere.example.org"
    assert revealed(credentials.find(other)) is None
    clean.setenv("KAJIYA_API_URL", other)
    clean.setenv("JUPYTERHUB_API_TOKEN", "server")
    assert revealed(credentials.find()) == "server"
    assert revealed(credentials.find(URL)) == "stored"
    assert revealed(credentials.find("https://third.example.org")) is None
    clean.setenv("KAJIYA_TOKEN", "given")
    assert revealed(credentials.find()) == "given"
    assert revealed(credentials.find(URL, "argument")) == "argument"


def test_the_stored_token_is_private_and_shows_nowhere(clean: pytest.MonkeyPatch):
    secret = credentials.Secret("very-secret")
    file = credentials.store(URL, secret)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and not credentials.readable_by_others()
    found = credentials.find()
    assert "very-secret" not in f"{found!r}{found}{secret!r}{secret}{[secret]}"
    file.chmod(0o644)
    assert credentials.readable_by_others()
    file.write_text("{broken")
    assert credentials.load() is None
    assert credentials.forget() and not credentials.forget()


# --- files
def test_files_arrive_under_their_paths_from_the_notebooks_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    book, here, away = tmp_path / "nb", tmp_path / "here", tmp_path / "away"
    for path in (
        *("nb/data/a.csv", "nb/data/深い/b.csv", "nb/.ipynb_checkpoints/x", "nb/data/__pycache__/y.pyc"),
        *("here/c.txt", "here/sub/d.txt", "away/e.txt", "away/f/g.txt"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    monkeypatch.chdir(here)
    notebook = book / "n.ipynb"

    def arrivals(*files: Any) -> list[str]:
        return sorted(gather(list(files), notebook))

    assert arrivals(book / "data") == ["data/a.csv", "data/深い/b.csv"]
    assert arrivals("../nb/data/**/*.csv") == ["data/a.csv", "data/深い/b.csv"]
    assert arrivals("c.txt", "sub") == ["c.txt", "sub/d.txt"]
    assert arrivals(away / "e.txt", away / "f") == ["e.txt", "f/g.txt"]
    assert arrivals("c.txt", here / "c.txt") == ["c.txt"]
    assert sorted(gather({"in/x.txt": "c.txt", "d": away}, notebook)) == ["d/e.txt", "d/f/g.txt", "in/x.txt"]
    assert gather(None, notebook) == {}
    (away / "c.txt").write_text("other")
    with pytest.raises(FilesClash):
        arrivals("c.txt", away / "c.txt")


@pytest.mark.parametrize("missing", ["no.txt", "*.nothing", "pipe"])
def test_a_file_that_cannot_be_sent_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(FilesMissing) as e:
        gather([missing], tmp_path / "n.ipynb")
    assert missing in str(e.value)


# --- words
@pytest.mark.parametrize(
    ("changes", "language", "expected"),
    [
        ({"position": 3}, "en", "It waits for its turn. It is number 3 in the queue."),
        ({"position": 1, "reason": {"code": "x", "message": "Full."}}, "en", "Full. It is number 1 in the queue."),
        ({"position": 3}, "ja", "順番を待っています。 待ち行列の 3 番目です。"),
        ({"status": "running"}, "en", "It is running."),
        (
            {"status": "running", "progress": {"cells_total": 8, "cells_done": 2, "current": 2}},
            "en",
            "Cell 3 of 8 is running.",
        ),
        (
            {"status": "failed", "reason": {"code": "job.not_found", "params": {"job": "j9"}}},
            "en",
            "There is no job j9",
        ),
        ({"status": "failed"}, "en", "It failed."),
        ({"status": "stopping"}, "en", "It is being stopped."),
    ],
)
def test_where_a_job_stands_is_said_in_sentences(changes: dict[str, Any], language: str, expected: str):
    assert describe.standing(record(**changes), language).startswith(expected)


@pytest.mark.parametrize("status", list(Status))
def test_every_status_has_words_in_both_languages(status: Status):
    for language in ("en", "ja"):
        text = describe.text(record(status=status), language)
        assert "status." not in text and "standing." not in text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.9, "1:05"), (3600, "1:00:00"), (90061, "25:01:01")])
def test_time_spans(seconds: float, text: str):
    assert describe.clock(seconds) == text


def test_hostile_names_stay_on_one_line_and_make_safe_file_names():
    job = record(name="a\nb\x1b[31m" + "x" * 10_000, notebook="../../e\"v'il\n.ipynb")
    assert len(describe.row(job)[1]) == 40 and "\x1b" not in describe.text(job)
    assert len(describe.text(job).splitlines()) == 3
    name = describe.notebook_file(job)
    assert Path(name).name == name and "\n" not in name and '"' not in name


def test_a_failure_says_the_whole_reason_and_the_services_words_are_kept():
    reason = "Cell 3 raised " + "E" * 500
    assert str(JobFailed(job="j1", reason=reason)) == f"Job j1 failed. {reason}"
    body = {"error": {"code": "invalid.request", "message": "その値は使えません。", "params": {"field": "x"}}}
    assert str(from_body(body, 422)) == "その値は使えません。"


def test_values_of_numpy_become_jsons():
    np = pytest.importorskip("numpy")
    values = {"a": np.float32(0.5), "b": np.int64(3), "c": np.arange(3), "d": Path("x/y"), "e": [1]}
    assert json.loads(json.dumps({k: sdk.plain(v) for k, v in values.items()})) == {
        "a": 0.5,
        "b": 3,
        "c": [0, 1, 2],
        "d": "x/y",
        "e": [1],
    }


def test_outside_a_kernel_things_show_as_text(monkeypatch: pytest.MonkeyPatch):
    assert display.mimebundle("job", object(), "text") == {"text/plain": "text"}
    monkeypatch.setattr(display, "front_end", lambda: True)
    monkeypatch.setattr(display, "find", lambda kind: None)
    assert display.mimebundle("job", object(), "text") == {"text/plain": "text"}

    def broken(thing: object) -> Any:
        raise RuntimeError("no comm")

    monkeypatch.setattr(display, "find", lambda kind: broken)
    shown = display.mimebundle("job", object(), "text")
    assert isinstance(shown, dict) and shown["text/plain"].startswith("text\n")
