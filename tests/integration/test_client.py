"""The client against a service on a real socket that dies, comes back, breaks streams and loses answers."""

import json
import logging
import pickle
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest

import kajiya
from helpers.fake_service import NOTEBOOK, TOKEN, Fake, job, result
from kajiya import errors, sdk
from kajiya.client import Client
from kajiya.types import JobSubmit, Status


@pytest.fixture
def fake():
    with Fake() as fake:
        yield fake


@pytest.fixture
def client(fake: Fake):
    with Client(fake.url, TOKEN, patience=10) as client:
        yield client


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train digits 日本.ipynb"
    path.write_text(json.dumps(NOTEBOOK), "utf-8")
    return path


def later(seconds: float, what: Any) -> None:
    timer = threading.Timer(seconds, what)
    timer.daemon = True
    timer.start()


def test_reads_are_typed_and_a_newer_services_keys_are_passed_over(client: Client):
    assert client.whoami().groups == ["ml"]
    assert client.capacity().gpus[0].kind == "Fake H100"
    assert client.profiles()[0].slug == "small"
    assert client.health().ok


def test_submit_carries_notebook_parameters_and_files_byte_for_byte(fake: Fake, client: Client, book: Path):
    (book.parent / "data").mkdir()
    names = ['data/a"quote%22.csv', "data/デ ータ.csv", "data/back\\slash.csv"]
    for i, name in enumerate(names):
        (book.parent / name).write_bytes(bytes(range(256)) * (i + 1) + b"\r\n--x\r\n")
    found = sdk.submit(book, {"C": 10}, profile="small", files=["data"], results=["out/*.csv"], client=client)
    got = fake.received[found.id]
    assert got["spec"] == {
        "notebook": book.name,
        "parameters": {"C": 10.0},
        "profile": "small",
        "options": {},
        "environment": "default",
        "priority": 0,
        "results": ["out/*.csv"],
    }
    assert got["notebook"] == book.read_bytes()
    assert got["files"] == {name: (book.parent / name).read_bytes() for name in names}


@pytest.mark.parametrize(
    ("parameters", "leaf"),
    [({"c": 1}, errors.UnknownParameter), ({"C": "ten"}, errors.ParameterType)],
)
def test_bad_parameters_are_refused_before_anything_is_sent(
    fake: Fake, client: Client, book: Path, parameters: dict[str, Any], leaf: type[errors.KajiyaError]
):
    with pytest.raises(leaf):
        sdk.submit(book, parameters, client=client)
    assert not fake.requests


def test_a_field_the_service_would_refuse_is_named(client: Client, book: Path):
    with pytest.raises(errors.InvalidRequest) as e:
        sdk.submit(book, name="x" * 10_000, client=client)
    assert e.value.params["field"] == "name"


def test_a_lost_answer_makes_no_second_job(fake: Fake, client: Client, book: Path):
    fake.lose_answers = 2
    found = sdk.submit(book, client=client)
    assert list(fake.jobs) == [found.id]
    keys = {h["Idempotency-Key"] for m, _, h in fake.requests if m == "POST"}
    assert len(keys) == 1 and len(fake.requests) == 3


def test_submit_rides_over_a_restart_and_sends_the_files_again(fake: Fake, client: Client, book: Path):
    (book.parent / "x.bin").write_bytes(b"x" * 300_000)
    fake.kill()
    later(0.5, fake.start)
    found = sdk.submit(book, files="x.bin", client=client)
    assert fake.received[found.id]["files"]["x.bin"] == b"x" * 300_000


def test_a_service_that_stays_away_is_named_with_its_address(fake: Fake):
    fake.kill()
    with Client(fake.url, TOKEN, patience=0.5) as client, pytest.raises(errors.Unreachable) as e:
        client.whoami()
    assert fake.url in str(e.value)


@pytest.mark.parametrize(
    ("status", "leaf"),
    [
        (503, errors.Unreachable),
        (302, errors.UnexpectedAnswer),
        (404, errors.UnexpectedAnswer),
        (200, errors.UnexpectedAnswer),
    ],
)
def test_answers_of_something_between_are_told_apart(fake: Fake, status: int, leaf: type[errors.KajiyaError]):
    fake.plain["/api/whoami"] = (status, b"<html>login</html>", {"Location": "http://127.0.0.1:1/steal"})
    with Client(fake.url, TOKEN, patience=0.3) as client, pytest.raises(leaf):
        client.whoami()


def test_refusals_arrive_as_the_leaf_they_were(fake: Fake, client: Client):
    with pytest.raises(errors.JobNotFound):
        client.job("jnothing")
    with pytest.raises(errors.JobNotFound):
        client.job("../whoami")
    fake.put(job())
    fake.refuse["/api/jobs"] = errors.LimitReached(used=5, limit=5)
    with pytest.raises(errors.LimitReached) as e:
        client.submit(JobSubmit(notebook="a.ipynb"), b"{}")
    assert e.value.params == {"used": 5, "limit": 5}


def test_delete_whose_answer_was_lost_is_no_error(fake: Fake, client: Client):
    fake.put(job(status="stopped"))
    fake.lose_answers = 1
    client.delete("j0000000000000001")
    with pytest.raises(errors.JobNotFound):
        client.delete("j0000000000000001")


def test_a_stream_cut_anywhere_goes_on_with_no_gap_and_no_double(fake: Fake, client: Client):
    fake.put(job(status="running"))
    for i in range(20):
        # U+2028 ends no line of a stream, though Python's splitlines thinks so.
        fake.cell("j0000000000000001", type="output", cell=i, text="a\u2028b\u0085")
    fake.break_after = [1, 7, 3]
    fake.change("j0000000000000001", status="succeeded")
    lost: list[str] = []
    events = list(client.events("j0000000000000001", lost=lost.append))
    cells = [e for e in events if e.kind == "cell"]
    assert [e.data["cell"] for e in cells] == list(range(20))
    assert cells[0].data["text"] == "a\u2028b\u0085"
    assert events[-1].kind == "end"
    assert len(lost) == 3
    again = [e.data["cell"] for e in client.events("j0000000000000001", after=cells[11].id) if e.kind == "cell"]
    assert again == list(range(12, 20))


def test_following_rides_over_a_killed_service(fake: Fake, client: Client):
    fake.put(job(status="running"))
    for i in range(5):
        fake.cell("j0000000000000001", type="output", cell=i)
    seen: list[int] = []
    for event in client.events("j0000000000000001"):
        if event.kind == "cell":
            seen.append(event.data["cell"])
            if len(seen) == 5:
                fake.kill()
                for i in range(5, 9):
                    fake.cell("j0000000000000001", type="output", cell=i)
                fake.change("j0000000000000001", status="succeeded")
                later(0.5, fake.start)
    assert seen == list(range(9))


def test_a_revoked_token_ends_the_stream_with_its_sentence(fake: Fake, client: Client):
    fake.put(job(status="running"))
    fake.cell("j0000000000000001", type="output", cell=0)
    fake.break_after = [1]
    stream = client.events("j0000000000000001")
    assert next(stream).kind == "job"
    fake.refuse["/api/jobs/j0000000000000001/events"] = errors.NotAuthenticated()
    with pytest.raises(errors.NotAuthenticated):
        list(stream)


def test_wait_gives_the_job_or_raises_its_reason(fake: Fake, client: Client):
    fake.put(job(status="running"))
    found = sdk.job("j0000000000000001", client=client)
    with pytest.raises(errors.WaitTimeout):
        found.wait(timeout=0.5)
    later(
        0.3,
        lambda: fake.change(found.id, status="failed", reason={"code": "x", "message": "Cell 2 raised " + "E" * 300}),
    )
    with pytest.raises(errors.JobFailed) as e:
        found.wait()
    assert "E" * 300 in str(e.value)
    assert found.wait(raises=False).status is Status.failed
    fake.change(found.id, status="stopped", reason=None)
    with pytest.raises(errors.JobStopped):
        found.refresh().wait()


def test_the_status_is_asked_for_until_it_is_final(fake: Fake, client: Client):
    fake.put(job(status="running"))
    found = sdk.job("j0000000000000001", client=client)
    fake.change(found.id, status="succeeded")
    found._asked -= 2
    assert found.status is Status.succeeded
    asked = len(fake.requests)
    assert found.status is Status.succeeded and len(fake.requests) == asked


def test_again_merges_parameters_and_unknown_changes_are_named(fake: Fake, client: Client):
    fake.put(job(status="failed", parameters={"C": 1, "n": 2}))
    found = sdk.job("j0000000000000001", client=client)
    new = found.again(parameters={"C": 5})
    assert new.record.parameters == {"C": 5, "n": 2} and new.record.again_of == found.id
    with pytest.raises(errors.InvalidRequest):
        found.again(colour="red")


def test_results_are_saved_whole_or_not_at_all(fake: Fake, client: Client, tmp_path: Path):
    kept = {"out/精度 100%.csv": b"1,2\n" * 100_000, "a.txt": b"a"}
    fake.put(job(status="succeeded", results=[result(k, v) for k, v in kept.items()]))
    fake.kept["j0000000000000001"] = dict(kept)
    found = sdk.job("j0000000000000001", client=client)
    saved = found.download(to=tmp_path / "here")
    assert [p.relative_to(tmp_path / "here").as_posix() for p in saved] == ["out/精度 100%.csv", "a.txt"]
    assert saved[0].read_bytes() == kept["out/精度 100%.csv"]
    with pytest.raises(errors.FileExists):
        found.download(to=tmp_path / "here")
    fake.kept["j0000000000000001"]["out/精度 100%.csv"] = b"other"
    with pytest.raises(errors.DownloadDamaged):
        found.download("out/精度 100%.csv", to=tmp_path / "b.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here"]
    with pytest.raises(errors.ResultNotFound):
        found.download("nothing")
    fake.change(found.id, results=[result("../../evil.txt", b"x")])
    with pytest.raises(errors.InvalidPath):
        found.download(to=tmp_path / "there")


def test_notebook_is_saved_once_and_never_over_another(fake: Fake, client: Client, tmp_path: Path):
    fake.put(job(status="succeeded"))
    found = sdk.job("j0000000000000001", client=client)
    assert found.notebook(to=tmp_path)["cells"][1]["source"] == "print(C)"
    assert [p.name for p in tmp_path.iterdir()] == ["train_digits-j0000000000000001.ipynb"]
    with pytest.raises(errors.FileExists):
        found.notebook(to=tmp_path)


def test_lists_page_and_show_themselves(fake: Fake, client: Client):
    assert "kajiya submit" in repr(sdk.jobs(client=client))
    for i in range(3):
        fake.put(job(f"j{i}", name=f"job <b>{i}</b>"))
    page = sdk.jobs(limit=2, client=client)
    assert [j.id for j in page] == ["j2", "j1"] and page.total == 3
    assert [j.id for j in sdk.jobs(limit=2, cursor=page.next, client=client)] == ["j0"]
    assert "<b>" not in page._repr_html_()
    assert "2" in repr(page)


def test_the_token_shows_nowhere(fake: Fake, client: Client, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    fake.refuse["/api/whoami"] = errors.NotAuthenticated()
    try:
        client.whoami()
    except errors.NotAuthenticated as e:
        text = "".join(traceback.TracebackException.from_exception(e, capture_locals=True).format())
    assert TOKEN not in text
    assert TOKEN not in repr(client) + repr(vars(client)) + repr(vars(client._line)) + caplog.text
    with pytest.raises(TypeError):
        pickle.dumps(client._line._http.auth)


def test_the_module_loads_its_names_on_first_use():
    assert kajiya.submit is sdk.submit and kajiya.jobs is sdk.jobs
    assert all(getattr(kajiya, name) for name in kajiya.__all__)
