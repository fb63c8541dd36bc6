"""Websockets and certificates through the proxy."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from helpers.proxying import ProxyProcess, Target, proxy, target, until

KERNEL = "v1.kernel.websocket.jupyter.org"


@pytest.fixture
async def goal() -> AsyncIterator[Target]:
    async with target() as one:
        yield one


@pytest.fixture
async def front(goal: Target) -> AsyncIterator[ProxyProcess]:
    async with proxy("--default-target", goal.url) as one:
        await one.add("/user/a", goal.url)
        yield one


async def test_subprotocol_text_binary_and_close_code(front: ProxyProcess) -> None:
    async with front.session.ws_connect(f"{front.url}/user/a/ws", protocols=["nobody", KERNEL]) as socket:
        assert socket.protocol == KERNEL
        await socket.send_str("鍛冶屋")
        assert (await socket.receive()).data == "鍛冶屋"
        await socket.send_bytes(b"\x00\xff")
        assert (await socket.receive()).data == b"\x00\xff"
        await socket.send_str("bye")
        last = await socket.receive()
        assert last.type == aiohttp.WSMsgType.CLOSE and last.data == 4001 and last.extra == "enough"


@pytest.mark.parametrize("compress", [0, 15])
async def test_messages_of_100_megabytes_in_little_memory(front: ProxyProcess, compress: int) -> None:
    message = b"m" * (100 * 1024 * 1024)
    before = front.memory()
    async with front.session.ws_connect(f"{front.url}/user/a/ws", max_msg_size=0, compress=compress) as socket:
        await socket.send_bytes(message)
        assert (await socket.receive()).data == message
    assert front.memory() - before < 40 * 1024 * 1024


async def test_either_side_that_leaves_ends_the_other(front: ProxyProcess, goal: Target) -> None:
    socket = await front.session.ws_connect(f"{front.url}/user/a/ws")
    await socket.send_str("x")
    await socket.receive()
    assert socket._response.connection is not None and socket._response.connection.transport is not None
    socket._response.connection.transport.abort()
    await until(lambda: "/user/a/ws" in goal.cancelled, "the target sees that the client has gone")
    async with front.session.ws_connect(f"{front.url}/user/a/ws") as socket:
        front.process.kill()
        assert (await socket.receive()).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)


async def test_pings_pass_but_are_no_activity(front: ProxyProcess) -> None:
    async with front.session.ws_connect(f"{front.url}/user/a/ws", autoping=False) as socket:
        await socket.send_str("x")
        await socket.receive()
        first = (await front.ask("GET", "/user/a"))[1]["last_activity"]
        await asyncio.sleep(0.01)
        await socket.ping(b"there?")
        assert (await socket.receive()).type == aiohttp.WSMsgType.PONG
        assert (await front.ask("GET", "/user/a"))[1]["last_activity"] == first
        await socket.send_str("x")
        await socket.receive()
        assert (await front.ask("GET", "/user/a"))[1]["last_activity"] > first


async def test_a_refused_handshake_passes_the_targets_answer(front: ProxyProcess) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await front.session.ws_connect(f"{front.url}/user/a/answer?status=403")
    assert refused.value.status == 403
    # No tunnel without a 101: what follows on the connection must not reach the target.
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(
        b"GET /user/a/answer?status=403 HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        b"GET /user/a/smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    )
    said = await asyncio.wait_for(reader.read(), 20)
    assert said.count(b"HTTP/1.1") == 1 and b"smuggled" not in said
    writer.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /s",
        b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: h\r\nX-A : b\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: h\r\n folded: b\r\n\r\n",
        b"GET http://other.example/x HTTP/1.1\r\nHost: h\r\n\r\n",
        b"CONNECT other.example:443 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: h\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
)
async def test_what_could_be_read_in_two_ways_is_refused(front: ProxyProcess, request_bytes: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(request_bytes)
    first = await asyncio.wait_for(reader.readline(), 20)
    assert first.startswith(b"HTTP/1.") and b" 400 " in first
    writer.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A key and a certificate for 127.0.0.1, made by openssl."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, cert


async def test_certificates_on_both_sides(certificate: tuple[Path, Path]) -> None:
    key, cert = certificate
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(cert, key)
    trust = ssl.create_default_context(cafile=cert)
    flags = ("--ssl-key", str(key), "--ssl-cert", str(cert))
    async with target(own) as goal:
        async with proxy("--default-target", goal.url, *flags, "--client-ssl-ca", str(cert), scheme="https") as front:
            async with front.session.get(f"{front.url}/x", ssl=trust) as answer:
                seen = dict((await answer.json())["headers"])
                assert seen["X-Forwarded-Proto"] == "https"
            async with front.session.ws_connect(f"{front.url}/ws", ssl=trust) as socket:
                await socket.send_bytes(b"s" * 3_000_000)
                assert len((await socket.receive()).data) == 3_000_000
        async with proxy("--default-target", goal.url) as front, front.session.get(f"{front.url}/x") as answer:
            assert answer.status == 503  # the target's certificate is not to be trusted
        async with proxy("--default-target", goal.url, "--insecure") as front, front.session.get(front.url) as answer:
            assert answer.status == 200
