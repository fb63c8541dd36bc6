"""The SDK and the widget against the real API, store and folders; the loop is played by the test."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.notebooks import data
from helpers.service import NOTEBOOK, PREFIX, Service, served
from kajiya import doctor, errors, sdk
from kajiya.client import Client
from kajiya.types import Ending, JobSubmit, Status
from kajiya_lab.widgets.job import JobWidget
from kajiya_lab.widgets.jobs import JobsWidget


@pytest.fixture
async def api(tmp_path: Path):
    async with served(tmp_path / "service") as api:
        yield api


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "service").mkdir()
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "学習.ipynb").write_bytes(data(NOTEBOOK))
    return folder


def client(api: Service, user: str = "hanako", **kwargs: Any) -> Client:
    return Client(f"{api.http.base_url}{PREFIX}", f"t-{user}", patience=5, **kwargs)


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_job_from_submit_to_results(api: Service, here: Path):
    names = ['data/a"b%22.csv', "data/深 い/c.csv", "data/back\\slash"]
    for name in names:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(name.encode() * 1000)
    with client(api) as user:

        def submit() -> Any:
            return sdk.submit("学習.ipynb", {"C": 10}, files="data", key="k1", name="十", client=user)

        found = await asyncio.to_thread(submit)
        assert sorted(found.record.files) == sorted(names)
        assert found.record.parameters == {"C": 10.0} and found.record.name == "十"
        assert (await asyncio.to_thread(submit)).id == found.id
        with pytest.raises(errors.NotebookNotReady):
            await asyncio.to_thread(found.notebook)

        number = api.begin(found.id)
        waiting = asyncio.create_task(asyncio.to_thread(found.wait))
        work = api.files.attempt(found.id, number) / "work"
        (work / "結果").mkdir()
        (work / "結果/精度.csv").write_bytes(b"1,2\n")
        api.log(found.id, number, "出力\n".encode())
        size = await asyncio.to_thread(user.log_size, found.id)
        assert size == len("出力\n".encode()) and await asyncio.to_thread(found.log) == "出力\n"
        api.end(found.id, number)
        await asyncio.wait_for(waiting, 20)
        assert found.status is Status.succeeded
        saved = await asyncio.to_thread(found.download)
        assert [p.read_bytes() for p in saved] == [b"1,2\n"] and (here / "結果/精度.csv").exists()
        assert (await asyncio.to_thread(found.notebook))["cells"]
        again = await asyncio.to_thread(lambda: found.again(parameters={"n": 7}))
        assert again.record.parameters == {"C": 10.0, "n": 7} and again.record.again_of == found.id
        number = api.begin(again.id)
        await asyncio.to_thread(again.stop)
        api.end(again.id, number, Ending.stopped)
        with pytest.raises(errors.JobStopped):
            await asyncio.to_thread(again.wait)
        assert [j.id for j in await asyncio.to_thread(lambda: sdk.jobs(status="stopped", client=user))] == [again.id]
        await asyncio.to_thread(found.delete)


async def test_anothers_job_is_as_if_there_were_none(api: Service):
    id = await api.job()
    with client(api, "taro") as other:
        for call in (other.job, other.stop, other.notebook, other.log, other.results, other.input, other.delete):
            with pytest.raises(errors.JobNotFound):
                await asyncio.to_thread(call, id)
        with pytest.raises(errors.JobNotFound):
            await asyncio.to_thread(lambda: list(other.events(id)))


async def test_refusals_come_in_the_readers_language_with_all_words(api: Service):
    with client(api, language="ja") as user:
        spec = JobSubmit(notebook="a.ipynb", profile="nothing")
        with pytest.raises(errors.UnknownProfile) as e:
            await asyncio.to_thread(user.submit, spec, data(NOTEBOOK))
        assert "プロファイル" in str(e.value)
        # Only the service knows the words behind this problem's code.
        with pytest.raises(errors.InvalidName) as named:
            await asyncio.to_thread(user.submit, JobSubmit(notebook="a.ipynb", name="a\nb"), data(NOTEBOOK))
        assert "name_control" not in str(named.value)


async def test_the_widgets_follow_a_job_over_two_attempts(api: Service):
    id = await api.job()
    with client(api) as user:
        found = await asyncio.to_thread(lambda: sdk.job(id, user))
        widget = JobWidget(found, language="en")
        table = JobsWidget(await asyncio.to_thread(lambda: sdk.jobs(client=user)), language="en")
        try:
            for number, text in ((1, "first"), (2, "second")):
                assert api.begin(id) == number
                output = {"output_type": "stream", "name": "stdout", "text": text}
                api.write(id, number, {"type": "output", "cell": 1, "output": output})
                await until(lambda text=text: widget.tail == text)
                api.end(id, number, Ending.preempted if number == 1 else Ending.succeeded, again=number == 1)
            await until(lambda: widget.view["status"] == "succeeded")
            assert len(widget.view["attempts"]) == 2
            await until(lambda: [r["status"] for r in table.rows] == ["succeeded"])
            new = await api.job()
            await until(lambda: [r["cells"][0] for r in table.rows] == [new, id])
        finally:
            widget.close()
            table.close()


async def test_a_revoked_token_ends_following_with_its_sentence(api: Service):
    id = await api.job()
    api.begin(id)
    with client(api) as user:
        found = await asyncio.to_thread(lambda: sdk.job(id, user))
        widget = JobWidget(found, language="en")
        try:
            api.revoke("t-hanako")
            await until(lambda: "not signed in" in widget.view["trouble"])
        finally:
            widget.close()


async def test_the_doctor_finds_the_service_well_and_a_token_worthless(api: Service):
    def states(user: Client) -> dict[str, str]:
        return {c.name: c.state for c in doctor.service(user)}

    found = await asyncio.to_thread(lambda: states(client(api)))
    assert found["service"] == "good" and found["token"] == "good" and found["profiles"] == "good"
    found = await asyncio.to_thread(lambda: states(client(api, "nobody")))
    assert found["token"] == "wrong"


def test_the_doctor_says_what_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("KAJIYA_API_URL", raising=False)
    kernels = tmp_path / "kernels/python3"
    kernels.mkdir(parents=True)
    (kernels / "kernel.json").write_text(json.dumps({"argv": ["/gone/bin/python"]}))
    env = {"PIP_USER": "1", "JUPYTER_PATH": str(tmp_path), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9/"}
    checks = doctor.examine(env)
    wrong = {c.name: c.sentence for c in checks if c.state == "wrong"}
    assert wrong.keys() == {"variables", "kernel", "service", "mlflow"}
    assert "PIP_USER" in wrong["variables"] and "/gone/bin/python" in wrong["kernel"]
    assert doctor.report(checks)["ok"] is False
    assert "4" in doctor.lines(checks)[-1]
    assert not [c for c in checks if c.sentence.startswith("doctor.") or "{" in c.sentence]
