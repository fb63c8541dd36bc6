"""Uploads over a real socket: too large, too slow, broken off, too many at once; nothing of them stays."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from helpers.http import assert_error
from helpers.notebooks import data
from helpers.service import NOTEBOOK, PREFIX, Service, form, served, tree
from kajiya import errors
from kajiya.errors import KajiyaError, from_body
from kajiya_hub.api.deps import Limits

SMALL = Limits(notebook_bytes=1_000_000, files_bytes=1_000_000, upload_seconds=1.5, submits_at_once_per_owner=2)


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Service]:
    async with served(tmp_path, SMALL) as made:
        yield made


async def nothing_stays(tmp_path: Path) -> None:
    async with asyncio.timeout(20):
        while tree(tmp_path) or list((tmp_path / "jobs" / ".incoming").iterdir()):
            await asyncio.sleep(0.05)


class Half:
    """A submit of which only the beginning is sent."""

    def __init__(self, api: Service, sent: int, user: str = "hanako") -> None:
        self.port = api.http.base_url.port
        body, kind = form([("spec", None, b'{"notebook": "a"}'), ("notebook", "a.ipynb", b" " * 100_000)])
        head = (
            f"POST {PREFIX}/api/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: token t-{user}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.content = head.encode() + body[:sent]

    async def __aenter__(self) -> asyncio.StreamReader:
        reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(self.content)
        await self.writer.drain()
        return reader

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()


async def answer_of(reader: asyncio.StreamReader) -> KajiyaError:
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        response = httpx.Response(int(head.split()[1]), content=await reader.readexactly(length))
    return from_body(response.json(), response.status_code)


@pytest.mark.parametrize("part", ["notebook", "files"])
async def test_what_is_too_large_is_refused_before_it_is_all_there(api: Service, tmp_path: Path, part: str) -> None:
    big = b"x" * 40_000_000
    if part == "notebook":
        assert_error(await api.submit(book=big), errors.NotebookTooLarge)
    else:
        assert_error(await api.submit(files={"a": big}), errors.UploadTooLarge)
    await nothing_stays(tmp_path)
    # The connection that carried it is no worse for it.
    assert (await api.submit()).status_code == 201


async def test_a_length_beyond_all_limits_is_refused_at_once(api: Service, tmp_path: Path) -> None:
    async with Half(api, 0) as reader:
        pass
    lying = Half(api, 50)
    lying.content = lying.content.replace(b"Content-Length: 1", b"Content-Length: 99999991", 1)
    async with lying as reader:
        assert isinstance(await answer_of(reader), errors.UploadTooLarge)
    await nothing_stays(tmp_path)


async def test_a_body_that_stands_still_is_given_up(api: Service, tmp_path: Path) -> None:
    async with Half(api, 5000) as reader:
        refused = await answer_of(reader)
        assert isinstance(refused, errors.InvalidRequest)
        assert refused.params["problem"] == "it came too slowly"
    await nothing_stays(tmp_path)


async def test_a_line_that_breaks_leaves_nothing(api: Service, tmp_path: Path) -> None:
    async with Half(api, 5000):
        async with asyncio.timeout(20):
            while not tree(tmp_path):
                await asyncio.sleep(0.01)
    await nothing_stays(tmp_path)
    assert api.app.state.counters.open("submit") == 0
    assert api.store.jobs().total == 0


async def test_few_uploads_at_once_for_each(api: Service, tmp_path: Path) -> None:
    async with Half(api, 5000), Half(api, 5000):
        async with asyncio.timeout(20):
            while api.app.state.counters.open("submit") < 2:
                await asyncio.sleep(0.01)
        assert_error(await api.submit(), errors.TooManyRequests)
        assert (await api.submit(user="taro")).status_code == 201
        # Half an upload keeps nobody from being answered.
        assert (await api.get("jobs")).status_code == 200
    async with asyncio.timeout(20):
        while api.app.state.counters.open("submit"):
            await asyncio.sleep(0.02)
    assert (await api.submit(book=data(NOTEBOOK))).status_code == 201


async def test_many_submits_with_one_key_make_one_job(api: Service, tmp_path: Path) -> None:
    async def send() -> str:
        while True:
            answer = await api.submit(key="the same")
            if answer.status_code != 429:
                assert answer.status_code in (200, 201)
                return answer.json()["id"]
            await asyncio.sleep(0.02)

    assert len(set(await asyncio.gather(*(send() for _ in range(12))))) == 1
    assert api.store.jobs().total == 1
    assert len([p for p in tree(tmp_path) if p.endswith("notebook.ipynb")]) == 1
