"""The proxy as a process, in front of a real target."""

import asyncio
import gzip
import hashlib
import signal
import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest

from helpers.proxying import ProxyProcess, Target, free_ports, proxy, target, until


@pytest.fixture
async def goal() -> AsyncIterator[Target]:
    async with target() as one:
        yield one


@pytest.fixture
async def front(goal: Target) -> AsyncIterator[ProxyProcess]:
    async with proxy("--default-target", goal.url, "--error-target", f"{goal.url}/error") as one:
        yield one


async def raw(port: int, request: bytes) -> bytes:
    """What comes back on one connection until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


async def test_the_rest_api_does_what_the_hub_needs(front: ProxyProcess, goal: Target) -> None:
    assert (await front.ask("GET", token="wrong"))[0] == 403
    assert (await front.ask("GET", token=""))[0] == 403
    assert (await front.ask("POST", "/x", {"target": goal.url}, token="wrong"))[0] == 403
    await front.add("/user/a%20b%40c", goal.url, jupyterhub=True, user="a b@c", last_activity="1999")
    status, routes = await front.ask("GET")
    assert status == 200 and set(routes) == {"/", "/user/a b@c"}
    assert routes["/user/a b@c"]["user"] == "a b@c" and routes["/user/a b@c"]["last_activity"].startswith("20")
    assert (await front.ask("GET", "/user/a%20b%40c"))[1]["target"] == goal.url
    assert (await front.ask("GET", "?inactive_since=2001-01-01T00:00:00Z"))[1] == {}
    assert len((await front.ask("GET", "?inactive_since=2101-01-01T00:00:00Z"))[1]) == 2
    assert (await front.ask("GET", "?inactive_since=soon"))[0] == 400
    assert (await front.ask("DELETE", "/user/a%20b%40c"))[0] == 204
    assert (await front.ask("DELETE", "/user/a%20b%40c"))[0] == 404
    assert (await front.ask("GET", "/user/a%20b%40c"))[0] == 404


@pytest.mark.parametrize(
    "body", [{}, [], "text", {"target": 3}, {"target": "no url"}, {"target": "file:///etc/passwd"}]
)
async def test_a_wrong_route_is_refused_and_nothing_changes(front: ProxyProcess, body: object) -> None:
    status, said = await front.ask("POST", "/user/x", body)
    assert status == 400 and "target" in said["error"]["message"]
    assert set((await front.ask("GET"))[1]) == {"/"}


async def test_requests_reach_the_target_of_the_longest_prefix_unchanged(front: ProxyProcess, goal: Target) -> None:
    async with target() as other:
        await front.add("/user/%E9%8D%9B", f"{other.url}/base")
        path = "/user/%E9%8D%9B/lab/..%2fx//y/%2e%2e?a=%20b&c=1%2B1"
        reader = await raw(
            front.port, f"GET {path} HTTP/1.1\r\nHost: hub.example:81\r\nConnection: close\r\n\r\n".encode()
        )
        assert f'"path": "/base{path}"'.encode() in reader
        assert b'"X-Forwarded-Port", "81"' in reader and b'"X-Forwarded-Proto", "http"' in reader
        assert b'"X-Forwarded-Host", "hub.example:81"' in reader and b'"X-Forwarded-For", "127.0.0.1"' in reader
        assert b'["Host", "hub.example:81"]' in reader and b"keep-alive" not in reader.lower()


async def test_headers_pass_but_for_those_of_one_connection(front: ProxyProcess) -> None:
    async with front.session.get(
        f"{front.url}/answer?status=302", allow_redirects=False, headers={"X-Forwarded-For": "1.2.3.4"}
    ) as answer:
        assert answer.status == 302 and answer.headers["Location"] == "http://elsewhere.example/"
        assert answer.headers.getall("Set-Cookie") == ["a=1; Path=/", "b=2; Path=/"]
        assert answer.headers["X-Own"] == "yes" and "X-Private" not in answer.headers
    async with front.session.get(f"{front.url}/x", headers={"X-Forwarded-For": "1.2.3.4", "TE": "trailers"}) as answer:
        seen = {name.lower(): value for name, value in (await answer.json())["headers"]}
        assert seen["x-forwarded-for"] == "1.2.3.4,127.0.0.1" and "te" not in seen


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("OPTIONS", 200)])
async def test_answers_without_a_body(front: ProxyProcess, method: str, status: int) -> None:
    for _ in range(3):  # on one connection, so that a byte too many would spoil the next
        async with front.session.request(method, f"{front.url}/answer?status={status}") as answer:
            assert answer.status == status and await answer.read() == b""
    async with front.session.head(f"{front.url}/big?size=1000&length=1") as answer:
        assert answer.headers["Content-Length"] == "1000" and await answer.read() == b""


async def test_bodies_pass_as_they_are(front: ProxyProcess) -> None:
    packed = gzip.compress(b"hello" * 1000)
    for data in (packed, b"", b"x" * 3_000_000):
        async with front.session.post(f"{front.url}/echo", data=data, headers={"Content-Encoding": "gzip"}) as answer:
            pass  # the target unpacks, or refuses what is not packed
        async with front.session.put(f"{front.url}/sink", data=data) as answer:
            assert (await answer.json()) == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    said = await raw(
        front.port,
        b"PUT /e HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\nhello",
    )
    assert said.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK") and b'"size": 5' in said
    assert b"Expect" not in said


async def test_large_bodies_stream_both_ways_in_little_memory(front: ProxyProcess) -> None:
    size = 200 * 1024 * 1024
    before = front.memory()

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(size // 2**20):
            yield b"u" * 2**20

    async with front.session.post(f"{front.url}/sink", data=upload()) as answer:
        assert (await answer.json())["size"] == size
    for length in ("", "&length=1"):
        async with front.session.get(f"{front.url}/big?size={size}{length}") as answer:
            seen = 0
            async for chunk in answer.content.iter_any():
                seen += len(chunk)
            assert seen == size
    assert front.memory() - before < 40 * 1024 * 1024


async def test_a_slow_reader_holds_the_target_back(front: ProxyProcess, goal: Target) -> None:
    size = 300 * 1024 * 1024
    before = front.memory()
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port, limit=2**16)
    writer.write(f"GET /big?size={size} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    sent = -1
    while sent != goal.sent:  # until the target stands still
        sent = goal.sent
        await asyncio.sleep(0.5)
    assert sent < size / 3 and front.memory() - before < 40 * 1024 * 1024
    writer.close()


async def test_events_come_at_once_and_a_leaving_client_ends_them(front: ProxyProcess, goal: Target) -> None:
    await front.add("/user/a", goal.url)
    async with front.session.get(f"{front.url}/user/a/stream") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert (await answer.content.readline()) == b"data: 0\n"
        first = (await front.ask("GET", "/user/a"))[1]["last_activity"]
        for _ in range(10):
            await answer.content.readline()
        assert (await front.ask("GET", "/user/a"))[1]["last_activity"] == first
    await until(lambda: "/user/a/stream" in goal.cancelled, "the target's stream is cancelled")
    async with front.session.get(f"{front.url}/user/a/stream?type=text/plain") as answer:
        for _ in range(10):
            await answer.content.readline()
        assert (await front.ask("GET", "/user/a"))[1]["last_activity"] > first


@pytest.mark.parametrize("length", ["", "?length=1"])
async def test_half_an_answer_never_looks_whole(front: ProxyProcess, length: str) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        async with front.session.get(f"{front.url}/broken{length}") as answer:
            await answer.read()


async def test_error_pages_come_from_the_error_target_or_are_a_sentence(front: ProxyProcess, goal: Target) -> None:
    (nowhere,) = free_ports(1)
    await front.add("/user/gone", f"http://127.0.0.1:{nowhere}")
    async with front.session.get(f"{front.url}/user/gone/lab?token=secret") as answer:
        assert answer.status == 503 and await answer.text() == "page 503 for /user/gone/lab"
        assert answer.content_type == "text/html"
    await front.ask("DELETE", "/")
    async with front.session.post(f"{front.url}/x", data=b"body") as answer:
        assert answer.status == 404 and await answer.text() == "page 404 for /x"
    async with proxy("--error-target", f"http://127.0.0.1:{nowhere}") as alone:
        async with alone.session.get(f"{alone.url}/x", headers={"Accept-Language": "ja"}) as answer:
            assert answer.status == 404 and "このアドレス" in await answer.text()
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await alone.session.ws_connect(f"{alone.url}/x")
        assert refused.value.status == 404


async def test_host_routing(goal: Target) -> None:
    async with target() as other, proxy("--host-routing", "--default-target", goal.url) as front:
        await front.add("/alice.hub.example/user/alice", f"{other.url}/other")
        for host, path, base in [
            ("alice.hub.example:8000", "/user/alice/x", "/other"),
            ("ALICE.hub.example", "/user/alice", "/other"),
            ("bob.hub.example", "/user/alice/x", ""),
            ("alice.hub.example", "/user/bob", ""),
        ]:
            async with front.session.get(front.url + path, headers={"Host": host}) as answer:
                assert (await answer.json())["path"] == base + path


async def test_routes_come_back_after_a_kill(front: ProxyProcess, goal: Target) -> None:
    await front.add("/user/a", goal.url)
    front.process.send_signal(signal.SIGKILL)
    await front.process.wait()
    await front.start()
    assert set((await front.ask("GET"))[1]) == {"/"}
    await front.add("/user/a", goal.url)
    async with front.session.get(f"{front.url}/user/a/x") as answer:
        assert answer.status == 200


async def test_a_stop_lets_requests_end_and_drops_streams(front: ProxyProcess, goal: Target) -> None:
    body = asyncio.StreamReader()

    async def slowly() -> AsyncIterator[bytes]:
        while chunk := await body.read(1024):
            yield chunk

    upload = asyncio.create_task(front.session.post(f"{front.url}/sink", data=slowly()).__aenter__())
    body.feed_data(b"first")
    async with front.session.get(f"{front.url}/stream") as stream:
        await stream.content.readline()
        front.process.send_signal(signal.SIGTERM)
        await until(lambda: _closed(front.port), "it takes no more connections")
        body.feed_data(b"second")
        body.feed_eof()
        answer = await upload
        assert (await answer.json())["size"] == len(b"firstsecond")
        assert await asyncio.wait_for(front.process.wait(), 30) == 0
        with pytest.raises(aiohttp.ClientPayloadError):
            await stream.content.read()


async def _closed(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return True
    writer.close()
    return False


async def test_a_taken_port_is_said(front: ProxyProcess) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kajiya_hub.proxy", "--port", str(front.port), "--api-port", str(free_ports(1)[0]),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1 and "can't listen" in said.decode()
