"""The widgets in a real JupyterLab and a real Notebook 7, drawn by a real Chromium."""

import base64
import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from helpers.fake_service import NOTEBOOK, Fake, job, now, result
from helpers.jupyter import JUPYTER, jupyter
from helpers.person import run_cell
from helpers.wait import until

ID = "j0000000000000001"
# One red dot, as a PNG.
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="


def cell(source: str) -> dict[str, object]:
    return {
        "cell_type": "code",
        "id": f"c{abs(hash(source))}"[:20],
        "metadata": {},
        "source": source,
        "outputs": [],
        "execution_count": None,
    }


@pytest.fixture
def fake():
    with Fake() as fake:
        fake.new_status = "running"
        yield fake


def home(folder: Path) -> Path:
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    submit = 'import kajiya\njob = kajiya.submit("train_digits.ipynb", {"C": 10})\njob'
    cells = [cell(submit), cell("import time; time.sleep(8)"), cell("kajiya.jobs()")]
    book = {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": cells}
    (folder / "demo.ipynb").write_text(json.dumps(book))
    (folder / "train_digits.ipynb").write_text(json.dumps(NOTEBOOK))
    return folder


@pytest.mark.parametrize(("app", "path"), [("jupyterlab", "lab/tree"), ("notebook", "notebooks")])
def test_a_job_is_followed_stopped_and_run_again(chromium: Browser, fake: Fake, tmp_path: Path, app: str, path: str):
    with jupyter(app, fake, home(tmp_path), KAJIYA_LANG="en") as url:
        context = chromium.new_context(accept_downloads=True)
        page = context.new_page()
        page.set_default_timeout(60_000)
        try:
            page.goto(f"{url}{path}/demo.ipynb?token={JUPYTER}", timeout=120_000)
            expect(page.locator(".jp-CodeCell").first).to_be_visible(timeout=60_000)
            run_cell(page.locator(".jp-CodeCell").nth(0))
            card = page.locator(".kajiya-card").first
            expect(card.locator(".kajiya-pill")).to_have_text("running", timeout=60_000)
            follow(page, fake)
            stop_while_the_kernel_is_busy(page, fake)
            fetch(page, fake, tmp_path, opens=app == "jupyterlab")
        finally:
            context.close()


def follow(page: Page, fake: Fake) -> None:
    card = page.locator(".kajiya-card").first
    progress = {"cells_total": 8, "cells_done": 3, "current": 3, "source": "fit(X)  # <b>bold</b>"}
    attempt = {"number": 1, "status": "running", "started_at": now()}
    fake.change(ID, progress=progress, started_at=now(), attempts=[attempt])
    text = "<script>alert(1)</script>\n10%\r100%\n"
    fake.cell(ID, type="output", cell=1, output={"output_type": "stream", "name": "stdout", "text": text})
    image = {"image/png": DOT, "text/html": "<b>no</b>"}
    fake.cell(ID, type="output", cell=2, output={"output_type": "display_data", "data": image, "metadata": {}})
    expect(card.locator(".kajiya-standing")).to_have_text("Cell 4 of 8 is running.")
    expect(card.locator(".kajiya-text").first).to_have_text("<script>alert(1)</script>\n100%\n")
    expect(card.locator(".kajiya-source")).to_contain_text("<b>bold</b>")
    expect(card.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "3")
    expect(card.locator("img")).to_have_attribute("src", f"data:image/png;base64,{DOT}")
    assert base64.b64decode(DOT).startswith(b"\x89PNG")
    assert card.locator("script, b").count() == 0

    fake.logs[ID] = "記録\n".encode()
    card.get_by_role("tab", name="Log").click()
    expect(card.get_by_role("tabpanel", name="Log")).to_have_text("記録\n")
    card.get_by_role("tab", name="Log").press("ArrowLeft")
    expect(card.get_by_role("tab", name="Output")).to_have_attribute("aria-selected", "true")

    fake.kill()
    expect(card.locator(".kajiya-pill")).to_have_text("running?")
    expect(card.locator(".kajiya-trouble")).to_contain_text("The connection to the service is lost")
    fake.start()
    expect(card.locator(".kajiya-pill")).to_have_text("running", timeout=20_000)
    expect(card.locator(".kajiya-trouble")).to_be_hidden()


def stop_while_the_kernel_is_busy(page: Page, fake: Fake) -> None:
    card = page.locator(".kajiya-card").first
    run_cell(page.locator(".jp-CodeCell").nth(1))
    expect(page.locator(".jp-CodeCell").nth(1).locator(".jp-InputPrompt")).to_contain_text("*")
    card.get_by_role("button", name="Stop").click()
    assert fake.jobs[ID]["status"] == "running"
    card.get_by_role("button", name="Click again").click()
    until(lambda: fake.jobs[ID]["status"] == "stopping", 7, "the stop waited for the busy kernel")
    expect(card.locator(".kajiya-pill")).to_have_text("stopping")
    reason = {"code": "x", "message": "It was stopped by mari."}
    ended = {"number": 1, "status": "stopped", "ending": "stopped", "started_at": now(), "ended_at": now()}
    kept = [result("out/a.csv", b"1")]
    fake.kept[ID] = {"out/a.csv": b"1"}
    fake.change(ID, status="stopped", ended_at=now(), reason=reason, attempts=[ended], results=kept)
    expect(card.locator(".kajiya-standing")).to_have_text("It was stopped by mari.")
    expect(card.get_by_role("button", name="Stop")).to_be_hidden()
    expect(page.locator(".jp-CodeCell").nth(1).locator(".jp-InputPrompt")).to_have_text(
        re.compile(r"\[\d+\]:"), timeout=20_000
    )


def fetch(page: Page, fake: Fake, folder: Path, opens: bool) -> None:
    card = page.locator(".kajiya-card").first
    name = f"train_digits-{ID}.ipynb"
    with page.expect_download() as download:
        card.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == name
    card.get_by_role("tab", name="Results (1)").click()
    card.get_by_role("button", name="Save here: out/a.csv").click()
    expect(card.locator(".kajiya-notice")).to_have_text("Saved out/a.csv.")
    assert (folder / "out/a.csv").read_bytes() == b"1"

    card.get_by_role("button", name="Run again").click()
    second = "j0000000000000002"
    expect(card.locator(".kajiya-id")).to_have_text(second)
    fake.change(second, status="queued", position=4, reason={"code": "x", "message": "No memory is free."})
    expect(card.locator(".kajiya-standing")).to_have_text("No memory is free. It is number 4 in the queue.")

    run_cell(page.locator(".jp-CodeCell").nth(2))
    table = page.locator(".kajiya-table")
    expect(table.locator("tbody tr")).to_have_count(2)
    fake.put(job("j0000000000000003", name="<b>新しい</b>"))
    expect(table.locator("tbody tr").first).to_contain_text("<b>新しい</b>")

    fake.change(second, status="succeeded", reason=None, position=None, ended_at=now(), attempts=[
        {"number": 1, "status": "succeeded", "ending": "succeeded", "started_at": now(), "ended_at": now()}
    ])  # fmt: skip
    card.get_by_role("button", name="Save executed notebook").click()
    expect(card.locator(".kajiya-notice")).to_contain_text("Saved train_digits-j0000000000000002.ipynb.")
    assert json.loads((folder / "train_digits-j0000000000000002.ipynb").read_text()) == NOTEBOOK
    link = card.get_by_role("link", name="Open it")
    expect(link).to_have_attribute("href", re.compile(r"^/user/mari/lab/tree/train_digits-j0000000000000002\.ipynb$"))
    if opens:
        link.click()
        expect(page.get_by_role("tab", name="train_digits-j0000000000000002.ipynb")).to_be_visible()
