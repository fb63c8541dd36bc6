"""What an adversary sent, against the parts that must not believe it."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from multidict import CIMultiDict
from tornado import web
from tornado.httputil import HTTPHeaders

from helpers.notebooks import code, notebook
from kajiya import notebook as notebooks
from kajiya.errors import NotebookInvalid, UnknownProfile
from kajiya.runner.assemble import assemble
from kajiya.runner.events import decode, encode
from kajiya_hub.api import tail
from kajiya_hub.api.tail import lines_of
from kajiya_hub.config import private
from kajiya_hub.proxy.headers import tell_about_client
from kajiya_hub.signin.authenticator import SignInAuthenticator, address_of
from kajiya_spawner.refusal import Refused


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


# --- who asks
def handler(trusted: list[str], *lines: tuple[str, str]) -> Any:
    headers = HTTPHeaders()
    for name, value in lines:
        headers.add(name, value)
    return SimpleNamespace(
        app=SimpleNamespace(trusted_downstream_ips=trusted),
        request=SimpleNamespace(headers=headers, remote_ip="198.51.100.9"),
    )


@pytest.mark.parametrize(
    ("trusted", "lines", "address"),
    [
        ([], [], "198.51.100.9"),
        ([], [("X-Forwarded-For", "203.0.113.5")], "203.0.113.5"),
        ([], [("X-Forwarded-For", "1.1.1.1, 203.0.113.5"), ("X-Real-Ip", "2.2.2.2")], "203.0.113.5"),
        ([], [("X-Forwarded-For", "1.1.1.1"), ("X-Forwarded-For", "203.0.113.5")], "203.0.113.5"),
        (["127.0.0.1"], [("X-Forwarded-For", "1.1.1.1, 203.0.113.5, 127.0.0.1")], "203.0.113.5"),
        (["127.0.0.1"], [("X-Forwarded-For", "127.0.0.1"), ("X-Real-Ip", "2.2.2.2")], "198.51.100.9"),
    ],
)
def test_tries_are_counted_by_the_address_that_the_nearest_proxy_saw(
    trusted: list[str], lines: list[tuple[str, str]], address: str
) -> None:
    assert address_of(handler(trusted, *lines)) == address


def test_the_proxy_believes_no_client_about_its_address() -> None:
    asked: Any = SimpleNamespace(remote="203.0.113.5", secure=False, headers={"Host": "hub.example"})
    sent = CIMultiDict({"x-real-ip": "10.0.0.1", "X-SCHEME": "https", "X-Forwarded-For": "10.0.0.1"})
    tell_about_client(sent, asked)
    assert "X-Real-Ip" not in sent and "X-Scheme" not in sent
    assert sent["X-Forwarded-For"] == "10.0.0.1,203.0.113.5" and sent["X-Forwarded-Proto"] == "http"


async def test_made_up_addresses_together_get_no_more_than_a_hundred_tries(tmp_path: Path) -> None:
    auth = SignInAuthenticator(db_file=str(tmp_path / "signin.sqlite"))
    asked = 0

    async def matches(password: str, stored: str | None) -> bool:
        nonlocal asked
        asked += 1
        return False

    auth.matches = matches  # type: ignore[method-assign]
    found: list[int] = []
    for n in range(120):
        by = handler([], ("X-Forwarded-For", f"203.0.113.{n}"))
        by.find_user = lambda name: None
        with pytest.raises(web.HTTPError) as refused:
            await auth.authenticate(by, {"username": "guessed", "password": f"not this one {n}"})
        found.append(refused.value.status_code)
    assert found == [403] * 100 + [429] * 20 and asked == 100


# --- nesting without end
@pytest.mark.parametrize(
    "place",
    [
        lambda book, deep: book["metadata"].update(x=deep),
        lambda book, deep: book["cells"][0]["metadata"].update(x=deep),
        lambda book, deep: book["cells"][0].update(
            outputs=[{"output_type": "display_data", "data": {"application/json": deep}, "metadata": {}}]
        ),
    ],
)
@pytest.mark.parametrize("levels", [150, 300, 1000])
def test_a_notebook_nested_too_deeply_is_refused_before_it_is_accepted(
    place: Callable[[Any, Any], None], levels: int
) -> None:
    book = notebook(code("1"))
    place(book, "@")
    raw = json.dumps(book).encode().replace(b'"@"', nested(levels))
    with pytest.raises(NotebookInvalid, match="nested too deeply"):
        notebooks.read(raw)


def test_what_is_accepted_can_be_written_again() -> None:
    raw = json.dumps(notebook(code("1")) | {"metadata": {"x": "@"}}).encode().replace(b'"@"', nested(90))
    book = notebooks.read(raw)
    assert json.loads(notebooks.dump(assemble(book, [])))["metadata"]["x"] == book["metadata"]["x"]


def test_an_event_nested_too_deeply_is_none_and_shallow_ones_pass() -> None:
    head = b'{"t":1,"type":"output","cell":0,"output":'
    assert decode(head + nested(300) + b"}") is None
    assert decode(head + nested(100_000) + b"}") is None
    wide = head + b"[" + b",".join([b"{}"] * 1000) + b"]}"
    event = decode(wide)
    assert event is not None and decode(encode(event)) == event


def test_an_event_of_too_many_parts_is_none_and_brackets_in_text_are_no_parts() -> None:
    head = b'{"t":1,"type":"output","cell":0,"output":{"output_type":"display_data","data":{"application/json":['
    assert decode(head + b"[]," * 600_000 + b"[]]}}}") is None
    text = encode({"type": "output", "cell": 0, "output": {"output_type": "stream", "text": '[{"\\' * 400_000}})
    assert decode(text) is not None


def test_an_executed_notebook_holds_no_more_parts_than_the_service_can_bear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "ASSEMBLE_CONTAINERS", 1000)
    shown = encode({"type": "output", "cell": 0, "output": {"data": {"application/json": [[]] * 300}}})
    path = tmp_path / "events.jsonl"
    path.write_bytes(shown * 10 + encode({"type": "cell_end", "cell": 0, "status": "ok"}))
    with path.open("rb") as file:
        assert [event["type"] for event in tail.all_events(file)] == ["output"] * 3 + ["cell_end"]


def test_a_place_far_beyond_the_log_is_its_end() -> None:
    with Path(__file__).open("rb") as file:
        read = lines_of(file, 10**18 - 1)
    assert (read.lines, read.offset, read.more) == ([], 10**18 - 1, False)


# --- words of a client in logs, files for the owner
@pytest.mark.parametrize("slug", ["x" * 100_000, "a\x00b", "a\n[I 2026] User logged in: root", "a\u2028b", "\ud800"])
def test_a_clients_own_words_take_one_short_line_in_the_hubs_log(slug: str) -> None:
    refused = Refused(UnknownProfile(profile=slug, known=["small"]), "en")
    for text in (str(refused.jupyterhub_message), str(refused.log_message), str(refused)):
        assert len(text) < 3000 and not any(ord(c) < 32 or c == "\u2028" for c in text)
        text.encode()


def test_a_private_file_is_made_so_and_becomes_so(tmp_path: Path) -> None:
    path = tmp_path / "hub" / "jupyterhub.sqlite"
    assert private(path).stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.write_bytes(b"kept")
    path.chmod(0o644)
    assert private(path).stat().st_mode & 0o777 == 0o600 and path.read_bytes() == b"kept"
    other = tmp_path / "link"
    other.symlink_to(path)
    with pytest.raises(OSError):
        private(other)
