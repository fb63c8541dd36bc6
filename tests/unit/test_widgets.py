"""The widgets' state and threads; the browser's side is tested in a browser."""

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_service import NOTEBOOK, TOKEN, Fake, job, result
from helpers.wait import until
from kajiya import sdk
from kajiya.client import Client
from kajiya.types import Job
from kajiya_lab.widgets import live
from kajiya_lab.widgets.follow import Throttle
from kajiya_lab.widgets.job import JobWidget, server_path
from kajiya_lab.widgets.jobs import JobsWidget

ID = "j0000000000000001"
ROOM = Path(live.__file__).parent


@pytest.fixture
def fake():
    with Fake() as fake:
        yield fake


@pytest.fixture
def client(fake: Fake):
    with Client(fake.url, TOKEN, patience=5) as client:
        yield client


@pytest.fixture
def widget(fake: Fake, client: Client):
    fake.put(job(ID, status="running"))
    widget = JobWidget(sdk.job(ID, client=client), language="en")
    yield widget
    widget.close()


# --- pure
@pytest.mark.parametrize(
    ("before", "new", "shown"),
    [
        ("", "a\nb", "a\nb"),
        ("a\n", "b\r\nc", "a\nb\nc"),
        ("a\n10%", "\r20%", "a\n20%"),
        ("", "10%\r20%\r100%\ndone", "100%\ndone"),
        ("long line", "\rab", "abng line"),
        ("x", "\r", "x"),
        ("", "\x1b[1;31mred\x1b[0m \x1b]0;title\x07text", "red text"),
    ],
)
def test_output_looks_as_in_a_terminal(before: str, new: str, shown: str):
    assert live.terminal(before, new) == shown


def state(**changes: Any) -> live.Live:
    return live.Live(Job.model_validate(job(ID, **changes)), "en")


def output(**content: Any) -> dict[str, Any]:
    return {"type": "output", "cell": 0, "output": content}


def test_outputs_of_all_kinds_come_together():
    found = state()
    found.take_cell(output(output_type="stream", name="stdout", text=["a", "b\n"]), "1:1")
    found.take_cell(output(output_type="execute_result", data={"text/plain": "42", "text/html": "<b>"}), "1:2")
    found.take_cell(output(output_type="display_data", data={"image/png": "aGk=", "text/plain": "<Fig>"}), "1:3")
    found.take_cell(output(output_type="error", ename="E", evalue="v", traceback=["\x1b[31mTrace", "E: v"]), "1:4")
    assert found.tail == "ab\n42\nTrace\nE: v\n"
    assert found.image == {"mime": "image/png", "data": "aGk="}
    found.take_cell({"type": "clear", "wait": True}, "1:5")
    assert found.tail
    found.take_cell(output(output_type="stream", name="stdout", text="new"), "1:6")
    assert found.tail == "new" and not found.image
    found.take_cell(output(output_type="stream", name="stdout", text="second try"), "2:1")
    assert found.tail == "second try"


def test_output_is_bounded():
    found = state()
    for i in range(100):
        found.take_cell(output(output_type="stream", name="stdout", text=f"{i} " + "x" * 5000 + "\n"), f"1:{i}")
    assert len(found.tail) == live.TAIL and found.tail.endswith("x\n")
    found.take_cell(output(output_type="display_data", data={"image/png": "a" * (live.IMAGE + 1)}), "1:999")
    assert not found.image and "too large" in found.tail


@pytest.mark.parametrize("line", [{}, {"type": "output"}, {"type": "output", "output": []}, {"type": "zebra"}])
def test_lines_that_are_none_change_nothing(line: dict[str, Any]):
    found = state()
    found.take_cell(line, "1:1")
    assert (found.tail, found.image) == ("", {})
    found.take_cell(output(output_type="display_data", data={"text/html": "<script>"}), "1:2")
    assert (found.tail, found.image) == ("", {})


def test_the_view_is_json_and_says_why_a_job_waits():
    view = state(position=2, reason={"code": "x", "message": "No memory free."}, parameters={"C": 1}).view
    assert json.loads(json.dumps(view)) == view
    assert view["standing"] == "No memory free. It is number 2 in the queue."
    assert view["stoppable"] and not view["final"] and not view["started"]


def test_every_word_of_the_front_end_is_given_in_both_languages():
    used = set(re.findall(r"words\.(\w+)", (ROOM / "job.js").read_text() + (ROOM / "jobs.js").read_text()))
    used |= {"output", "log", "attempts", "results"}  # the tabs, by key
    for language in ("en", "ja"):
        words = live.words(language)
        assert used <= words.keys() and not [w for w in words.values() if w.startswith("widget.")]


def test_the_front_end_writes_no_html():
    for script in ROOM.glob("*.js"):
        text = script.read_text()
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in text, f"{script.name} uses {way}"


# --- threads
def test_updates_are_at_most_so_many_and_the_last_one_is_never_lost():
    times: list[float] = []
    seen: list[int] = []
    value = 0

    def publish() -> None:
        times.append(time.monotonic())
        seen.append(value)

    throttle = Throttle(publish, pause=0.1)
    start = time.monotonic()
    while time.monotonic() - start < 0.5:
        value += 1
        throttle.mark()
    last = value
    until(lambda: seen[-1] == last)
    assert len(times) <= (times[-1] - start) / 0.1 + 2


def test_a_widget_follows_its_job_to_the_end(fake: Fake, widget: JobWidget):
    fake.cell(ID, **output(output_type="stream", name="stdout", text="hello\n"))
    until(lambda: widget.tail == "hello\n")
    fake.change(ID, status="succeeded", results=[result("a.csv", b"1")])
    until(lambda: widget.view["status"] == "succeeded")
    assert widget.view["results"] == [{"path": "a.csv", "size": "1 B"}]
    until(lambda: not widget._follower.thread.is_alive())


def test_a_lost_connection_is_said_and_taken_up_again(fake: Fake, widget: JobWidget):
    until(lambda: any(path.endswith("/events") for _, path, _ in list(fake.requests)))
    fake.kill()
    until(lambda: "lost" in widget.view["trouble"])
    assert not widget.view["final"]
    fake.cell(ID, **output(output_type="stream", name="stdout", text="meanwhile"))
    fake.start()
    until(lambda: widget.tail == "meanwhile" and not widget.view["trouble"])


def test_closing_ends_the_thread_and_not_the_job(fake: Fake, widget: JobWidget):
    thread = widget._follower.thread
    assert thread.daemon
    widget.close()
    until(lambda: not thread.is_alive())
    assert fake.jobs[ID]["status"] == "running"


def press(widget: JobWidget, **content: Any) -> None:
    widget._on_message(widget, content, [])


def test_buttons_stop_and_run_again(fake: Fake, widget: JobWidget):
    press(widget, do="stop")
    until(lambda: widget.view["status"] == "stopping")
    assert not widget.view["stoppable"]
    fake.change(ID, status="stopped")
    until(lambda: widget.view["status"] == "stopped")
    press(widget, do="again")
    until(lambda: widget.view["id"] != ID and widget.view["status"] == "queued")
    assert widget.view["id"] in widget.notice["text"]
    fake.change(widget.view["id"], status="running")
    until(lambda: widget.view["status"] == "running")


def test_the_notebook_is_saved_beside_and_never_over_another(
    fake: Fake, widget: JobWidget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    monkeypatch.setenv("KAJIYA_SERVER_ROOT", str(tmp_path))
    for name in (f"train_digits-{ID}.ipynb", f"train_digits-{ID}-2.ipynb"):
        press(widget, do="save")
        until(lambda name=name: widget.notice.get("path") == f"sub/{name}")
        assert json.loads((tmp_path / "sub" / name).read_text()) == NOTEBOOK
    assert server_path(Path("/etc/passwd")) is None


def test_results_are_kept_and_a_refusal_is_a_sentence(
    fake: Fake, widget: JobWidget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    fake.change(ID, results=[result("out/a.csv", b"1")])
    fake.kept[ID] = {"out/a.csv": b"1"}
    press(widget, do="keep", path="out/a.csv")
    until(lambda: widget.notice.get("kind") == "info")
    assert (tmp_path / "out/a.csv").read_bytes() == b"1"
    press(widget, do="keep", path="../../etc/passwd")
    until(lambda: widget.notice.get("kind") == "error")
    for odd in ({"do": "format"}, {}, "text", None):
        widget._on_message(widget, odd, [])


def test_the_log_is_read_only_while_it_is_looked_at(fake: Fake, widget: JobWidget):
    fake.logs[ID] = b"start\n" + b"x" * 300_000 + "終".encode()
    fake.change(ID, attempts=[{"number": 1, "status": "running"}])
    until(lambda: widget.view["attempts"])
    assert not any("/log" in path for _, path, _ in list(fake.requests))
    press(widget, do="log", open=True)
    until(lambda: widget.log_text.endswith("終"))
    assert len(widget.log_text) < 250_000
    fake.logs[ID] += b"more"
    until(lambda: widget.log_text.endswith("more"))
    press(widget, do="log", open=False)
    until(lambda: not any(t.name == "kajiya-action" for t in threading.enumerate()))


def test_a_list_stays_up_to_date(fake: Fake, client: Client):
    fake.put(job(ID, status="running"))
    widget = JobsWidget(sdk.jobs(client=client), language="en")
    try:
        assert [r["status"] for r in widget.rows] == ["running"]
        fake.change(ID, status="failed")
        fake.put(job("j0000000000000002", name="<b>new</b>"))
        until(lambda: [r["status"] for r in widget.rows] == ["queued", "failed"])
        assert widget.rows[0]["cells"][1] == "<b>new</b>"
    finally:
        widget.close()


def test_text_stands_beside_every_view(widget: JobWidget):
    bundle = widget._repr_mimebundle_()
    assert bundle is not None
    assert ID in bundle[0]["text/plain"] and "application/vnd.jupyter.widget-view+json" in bundle[0]


def test_a_widget_that_nobody_looks_at_rests_and_goes_on_where_it_was(fake: Fake, widget: JobWidget):
    widget._views._after = 0.05
    press(widget, do="here", view="a")
    fake.cell(ID, **output(output_type="stream", name="stdout", text="one "))
    until(lambda: widget.tail == "one ")
    press(widget, do="here", view="b")
    press(widget, do="gone", view="a")
    time.sleep(0.3)
    assert widget._follower.alive
    press(widget, do="gone", view="b")
    until(lambda: not widget._follower.thread.is_alive())
    fake.cell(ID, **output(output_type="stream", name="stdout", text="two"))
    press(widget, do="here", view="c")
    until(lambda: widget.tail == "one two")
