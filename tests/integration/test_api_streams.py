"""Event streams over a real socket: what comes, in which order, where it goes on, and when it ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from helpers.http import assert_error
from helpers.service import PREFIX, Service, served
from kajiya import errors
from kajiya.sse import Message, messages
from kajiya.types import Ending
from kajiya_hub.api import tail
from kajiya_hub.api.deps import Limits

QUICK = Limits(ping_seconds=0.2, recheck_seconds=0.1, streams_per_owner=3)


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Service]:
    async with served(tmp_path, QUICK) as made:
        yield made


class Stream:
    """One open stream, read event by event."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._chunks = response.aiter_bytes()
        self._rest = b""
        self.pings = 0

    async def next(self, seconds: float = 20) -> Message | None:
        """The next event, or None at the end of the stream."""
        async with asyncio.timeout(seconds):
            while True:
                block, found, rest = self._rest.partition(b"\n\n")
                if found:
                    self._rest = rest
                    made = list(messages([block + b"\n\n"]))
                    if made and made[0].name != "ping":
                        return made[0]
                    self.pings += 1
                    continue
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    return None
                self._rest += chunk

    async def until(self, name: str) -> list[Message]:
        """All events up to and with the first of that name."""
        out: list[Message] = []
        while (message := await self.next()) is not None:
            out.append(message)
            if message.name == name:
                return out
        raise AssertionError(f"the stream ended before {name}: {out}")

    async def rest(self) -> list[Message]:
        """All events to the end of the stream."""
        out: list[Message] = []
        while (message := await self.next()) is not None:
            out.append(message)
        return out


class Opened:
    def __init__(self, api: Service, path: str, user: str, last: str | None) -> None:
        headers = {"Authorization": f"token {user if '-' in user else f't-{user}'}"}
        if last is not None:
            headers["Last-Event-ID"] = last
        self._context = api.http.stream("GET", f"{PREFIX}/api/{path}", headers=headers)

    async def __aenter__(self) -> Stream:
        response = await self._context.__aenter__()
        if response.status_code != 200:
            await response.aread()
        return Stream(response)

    async def __aexit__(self, *error: Any) -> None:
        await self._context.__aexit__(*error)


def follow(api: Service, path: str, user: str = "hanako", last: str | None = None) -> Opened:
    return Opened(api, path, user, last)


def cell(n: int) -> dict[str, Any]:
    return {"type": "cell_start", "cell": n, "source": f"学習({n})\r\n"}


def cells(found: list[Message]) -> list[int]:
    return [json.loads(m.data)["cell"] for m in found if m.name == "cell"]


async def test_a_job_is_followed_from_queue_to_end(api: Service) -> None:
    id = await api.job()
    async with follow(api, f"jobs/{id}/events") as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        first = await stream.next()
        assert first is not None
        assert (first.name, first.id, json.loads(first.data)["status"]) == ("job", "1:0", "queued")
        n = api.begin(id)
        size = api.write(id, n, cell(0))
        found = await stream.until("cell")
        assert json.loads(found[-1].data)["source"] == "学習(0)\r\n"
        assert found[-1].id == f"1:{size}"
        # Half a line is no event until its other half comes.
        path = api.files.attempt(id, n) / "events.jsonl"
        with path.open("ab") as f:
            f.write(b'{"type": "cell_start", ')
        await asyncio.sleep(0.4)
        with path.open("ab") as f:
            f.write(b'"cell": 1}\n')
        found += await stream.until("cell")
        api.write(id, n, cell(2))
        api.end(id, n)
        found += await stream.rest()
        assert cells(found) == [0, 1, 2]
        assert [m.name for m in found[-2:]] == ["job", "end"]
        last = json.loads(found[-2].data)
        assert (last["status"], json.loads(found[-1].data)) == ("succeeded", {"status": "succeeded"})
        seqs = [json.loads(m.data)["seq"] for m in found if m.name == "job"]
        assert seqs == sorted(set(seqs))
        assert stream.pings > 0


async def test_a_broken_stream_goes_on_without_gap_or_double_across_attempts(api: Service) -> None:
    id = await api.job()
    first = api.begin(id)
    for n in range(5):
        api.write(id, first, cell(n))
    api.end(id, first, Ending.preempted, again=True)
    second = api.begin(id, "token-2")
    for n in range(5, 10):
        api.write(id, second, cell(n))
    seen: list[int] = []
    last: str | None = None
    # Broken off after every single event, and taken up at the id of the last cell, as the client does.
    for _ in range(40):
        async with follow(api, f"jobs/{id}/events", last=last) as stream:
            message = (await stream.until("cell"))[-1]
            seen += cells([message])
            last = message.id
        if len(seen) == 9:
            break
    api.end(id, second)
    async with follow(api, f"jobs/{id}/events", last=last) as stream:
        rest = await stream.rest()
    assert seen + cells(rest) == list(range(10))
    async with follow(api, f"jobs/{id}/events?attempt=2") as stream:
        assert cells(await stream.rest()) == list(range(5, 10))
    # At the very end there is nothing but the end.
    async with follow(api, f"jobs/{id}/events", last=rest[-1].id) as stream:
        assert [m.name for m in await stream.rest()] == ["job", "end"]


async def test_what_an_owner_wrote_into_the_log_does_no_harm(
    api: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "LINE_BYTES", 600_000)
    id = await api.job()
    n = api.begin(id)
    folder = api.files.attempt(id, n)
    with (folder / "events.jsonl").open("ab") as f:
        f.write(b'no json\n[1]\n{"type": 3}\n\n{"type":\r"x", "cell": 1}\nevent: end\ndata: {}\n\n')
        f.write(b'{"type": "x", "cell": 2, "n": NaN, "s": "\\ud800", "i": 123456789012345678901234567890}\n')
        f.write(b'{"type": "long", "cell": 99, "x": "' + b"x" * 2_000_000 + b'"}\n')
        f.write(b'{"type": "big", "cell": 3, "x": "' + b"y" * 500_000 + b'"}\n')
    api.end(id, n)
    async with follow(api, f"jobs/{id}/events") as stream:
        found = await stream.rest()
    assert cells(found) == [1, 2, 3]
    assert [m.name for m in found if m.name != "cell"] == ["job", "end"]
    secret = tmp_path / "secret"
    secret.write_text('{"type": "secret", "cell": 7}\n')
    other = await api.job()
    m = api.begin(other)
    (api.files.attempt(other, m) / "events.jsonl").symlink_to(secret)
    (api.files.attempt(other, m) / "log.txt").symlink_to(secret)
    api.end(other, m)
    async with follow(api, f"jobs/{other}/events") as stream:
        assert cells(await stream.rest()) == []
    assert "secret" not in (await api.get(f"jobs/{other}/log")).text


async def test_all_jobs_are_followed_by_the_number_of_the_change(api: Service) -> None:
    before = await api.job()
    async with follow(api, "events") as stream:
        ready = await stream.next()
        assert ready is not None
        assert ready.name == "ready"
        await api.job(user="taro")
        mine = await api.job()
        message = await stream.next()
        assert message is not None
        assert (message.name, json.loads(message.data)["id"]) == ("job", mine)
        await api.post(f"jobs/{before}/stop")
        api.begin(mine)
        seen: dict[str, str] = {}
        while seen.get(mine) != "running":
            message = await stream.next()
            assert message is not None
            job = json.loads(message.data)
            assert job["owner"] == "hanako"
            seen[job["id"]] = job["status"]
    # What came while nobody listened is told first.
    last = message.id
    later = await api.job()
    async with follow(api, "events", last=last) as stream:
        names = [json.loads((await stream.next()).data).get("id") for _ in range(2)]  # type: ignore[union-attr]
        assert names == [None, later]
    # A number that was never given out is no reason to wait for ever.
    async with follow(api, "events", last="999999999") as stream:
        ready = await stream.next()
        assert ready is not None
        assert int(ready.id) < 999999999


async def test_a_stream_ends_when_its_token_is_revoked(api: Service) -> None:
    id = await api.job()
    async with follow(api, f"jobs/{id}/events") as one, follow(api, "events") as all_:
        assert (await one.next()) is not None
        api.revoke("t-hanako", errors.HubUnreachable())
        await asyncio.sleep(0.5)
        api.write(id, api.begin(id), cell(0))
        assert cells(await one.until("cell")) == [0]
        api.revoke("t-hanako")
        assert "end" not in [m.name for m in await one.rest()]
        await all_.rest()


async def test_an_attempt_follows_itself_until_it_is_superseded(api: Service) -> None:
    id, other = await api.job(), await api.job()
    n = api.begin(id, "an-attempt-token")
    async with follow(api, f"jobs/{other}/events", "an-attempt-token") as stream:
        assert_error(stream.response, errors.JobNotFound)
    async with follow(api, "events", "an-attempt-token") as stream:
        assert_error(stream.response, errors.NotAllowed)
    async with follow(api, f"jobs/{id}/events", "an-attempt-token") as stream:
        assert (await stream.next()) is not None
        api.end(id, n, Ending.preempted, again=True)
        assert "end" not in [m.name for m in await stream.rest()]
    async with follow(api, f"jobs/{id}/events", "an-attempt-token") as stream:
        assert_error(stream.response, errors.AttemptSuperseded)


async def test_streams_are_counted_and_given_back(api: Service) -> None:
    async with follow(api, "events"), follow(api, "events"), follow(api, "events"):
        async with follow(api, "events") as fourth:
            assert_error(fourth.response, errors.TooManyRequests)
            assert fourth.response.headers["retry-after"] == "5"
        async with follow(api, "events", "taro") as other:
            assert other.response.status_code == 200
    for _ in range(100):
        async with follow(api, "events") as stream:
            if stream.response.status_code == 200:
                return
        await asyncio.sleep(0.05)
    raise AssertionError("closed streams still count")


async def test_a_deleted_job_ends_its_stream(api: Service) -> None:
    id = await api.job()
    async with follow(api, f"jobs/{id}/events") as stream:
        assert (await stream.next()) is not None
        await asyncio.to_thread(_delete_as_if_ended, api, id)
        found = await stream.rest()
        assert json.loads(found[-1].data) in ({"status": "deleted"}, {"status": "succeeded"})


def _delete_as_if_ended(api: Service, id: str) -> None:
    api.end(id, api.begin(id))
    api.store.delete(id, "hanako")


@pytest.mark.parametrize("last", ["x", "1", "1:2:3", "-1:0", "1:" + "9" * 30, "١:٢"])
async def test_a_strange_last_event_id_is_refused(api: Service, last: str) -> None:
    id = await api.job()
    async with api.http.stream(
        "GET",
        f"{PREFIX}/api/jobs/{id}/events",
        headers={"Authorization": "token t-hanako", b"Last-Event-ID": last.encode()},  # type: ignore[dict-item]
    ) as response:
        await response.aread()
        assert_error(response, errors.InvalidRequest)


async def test_a_log_is_followed_to_the_end_of_its_attempt(api: Service) -> None:
    id = await api.job()
    n = api.begin(id)
    api.log(id, n, b"one\n")
    headers = {"Authorization": "token t-hanako"}
    async with api.http.stream("GET", f"{PREFIX}/api/jobs/{id}/log?follow=true", headers=headers) as response:
        chunks = response.aiter_bytes()
        assert await anext(chunks) == b"one\n"
        api.log(id, n, "二\n".encode())
        assert await anext(chunks) == "二\n".encode()
        api.log(id, n, b"three\n")
        api.end(id, n)
        assert b"".join([c async for c in chunks]) == b"three\n"


async def test_the_end_of_the_service_ends_its_streams_at_once(tmp_path: Path) -> None:
    async with served(tmp_path, Limits()) as api:
        id = await api.job()
        context = follow(api, f"jobs/{id}/events")
        stream = await context.__aenter__()
        assert (await stream.next()) is not None
        reader = asyncio.create_task(stream.rest())
        api.app.state.streams.close()
        assert await asyncio.wait_for(reader, 5) == []
        await context.__aexit__(None, None, None)
