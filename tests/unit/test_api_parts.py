"""The pure parts of the API: multipart bodies, limits, log lines, events."""

import io
import json
import logging
import random
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.service import form
from kajiya.errors import InvalidRequest, TooManyRequests
from kajiya.messages import sentences
from kajiya.upload import Upload
from kajiya_hub import logs
from kajiya_hub.api import tail
from kajiya_hub.api.accept import request_hash
from kajiya_hub.api.errors import phrased
from kajiya_hub.api.limits import Counters, Rate
from kajiya_hub.api.multipart import boundary_of, parts
from kajiya_hub.api.results import attachment

NAMES = ['データ/学習 "a".csv', "a\\b.txt", "C:\\x\\y", "x;y=z.csv", "100%22.csv", " lead", "it's", "", 'q"', "tail\\"]


def cut(content: bytes, seed: int) -> list[bytes]:
    """The content in pieces of random sizes."""
    rng, out, at = random.Random(seed), [], 0
    while at < len(content):
        size = rng.choice([1, 2, 3, 7, 40, 1000])
        out.append(content[at : at + size])
        at += size
    return out


@pytest.mark.parametrize("seed", range(8))
def test_parts_are_the_same_however_the_body_is_cut(seed: int) -> None:
    contents = [bytes([n]) * n * 37 + b"\r\n--kajiyates\r\n" for n in range(len(NAMES))]
    fields = [("files", name, content) for name, content in zip(NAMES, contents, strict=True)]
    body, kind = form([("spec", None, b"{}"), *fields])
    found = [(p.name, p.filename, b"".join(p.chunks)) for p in parts(cut(body, seed), boundary_of(kind))]
    assert found == [("spec", None, b"{}"), *fields]


def test_what_is_not_read_of_a_part_is_passed_over() -> None:
    body, kind = form([("a", None, b"x" * 10_000), ("b", None, b"y")])
    names = []
    for part in parts(cut(body, 1), boundary_of(kind)):
        names.append(part.name)
        if part.name == "a":
            next(part.chunks)
    assert names == ["a", "b"]


def test_the_clients_own_bodies_and_those_of_httpx_are_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"q" * 300_000)
    names = [n for n in NAMES if n]
    ours = Upload(b"{}", ("学習.ipynb", b"nb"), dict.fromkeys(names, tmp_path / "f"))
    found = [
        (p.name, p.filename, len(p.read(10**6))) for p in parts(iter(ours), boundary_of(ours.headers["Content-Type"]))
    ]
    assert found == [("spec", None, 2), ("notebook", "学習.ipynb", 2), *(("files", n, 300_000) for n in names)]
    request = httpx.Request("POST", "http://x/", files=[("files", ("学 習.csv", b"1"))], data={"spec": "{}"})
    request.read()
    read = [(p.name, p.filename) for p in parts([request.content], boundary_of(request.headers["content-type"]))]
    assert read == [("spec", None), ("files", "学 習.csv")]


@pytest.mark.parametrize("end", range(0, 120, 7))
def test_a_body_that_ends_too_soon_is_refused(end: int) -> None:
    body, kind = form([("spec", None, b"{}"), ("notebook", "a.ipynb", b"{}")])
    with pytest.raises(InvalidRequest):
        for part in parts([body[:end]], boundary_of(kind)):
            part.read(1000)


@pytest.mark.parametrize(
    "head",
    [
        b"x: y\r\n" * 40,
        b"X-Long: " + b"a" * 200_000 + b"\r\n",
        b"no colon\r\n",
        b"Content-Disposition\r\n",
        b"\x00: a\r\n",
    ],
    ids=range(5),
)
def test_hostile_part_headers_are_refused_or_nameless(head: bytes) -> None:
    body = b"--b\r\n" + head + b"\r\nx\r\n--b--\r\n"
    try:
        found = [p.name for p in parts([body], b"b")]
    except InvalidRequest:
        return
    assert found == [""]


@pytest.mark.parametrize("seed", range(150))
def test_a_damaged_body_is_refused_and_nothing_worse(seed: int) -> None:
    rng = random.Random(seed)
    body, kind = form([("spec", None, b"{}"), ("notebook", "a.ipynb", b"{}" * 50), ("files", 'q"x\\y', b"1")])
    damaged = bytearray(body)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(damaged))
        if rng.random() < 0.5:
            damaged[at] = rng.randrange(256)
        else:
            del damaged[at : at + rng.randint(1, 20)]
    try:
        for part in parts(cut(bytes(damaged), seed), boundary_of(kind)):
            part.read(10_000)
    except InvalidRequest:
        pass


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    rate = Rate(per_second=2, burst=3, names=2)
    assert [rate.take("a", 0) for _ in range(3)] == [0, 0, 0]
    assert rate.take("a", 0) == pytest.approx(0.5)
    assert rate.take("b", 0) == 0
    assert rate.take("a", 0.5) == 0
    assert rate.take("a", 0.5) > 0
    assert [rate.take("a", 1000) for _ in range(4)][:3] == [0, 0, 0]


def test_counters_give_back_whatever_happens() -> None:
    counters = Counters({"stream": (2, 3), "submit": (1, 1)})
    with pytest.raises(RuntimeError), counters.one("stream", "a"):
        raise RuntimeError
    for owner in ("a", "a", "b"):
        counters.take("stream", owner)
    for owner in ("a", "b"):
        with pytest.raises(TooManyRequests):
            counters.take("stream", owner)
    counters.give("stream", "a")
    counters.take("stream", "b")
    assert counters.open("stream") == 3


SECRET = "s3cr3t-0123456789abcdef"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: token {SECRET}",
        f"authorization=Bearer {SECRET}",
        f"GET /x?token={SECRET}&a=1",
        f'{{"api_token": "{SECRET}"}}',
        f"KAJIYA_TOKEN={SECRET}",
        f"postgresql://user:{SECRET}@host/db",
        f"password: {SECRET}",
        f"Set-Cookie: {SECRET}",
    ],
)
def test_secrets_do_not_reach_the_log(text: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines())
    logger = logging.getLogger("test.secrets")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        raise RuntimeError(text)
    except RuntimeError:
        logger.exception("it failed: %s", text, extra={"detail": text})
    finally:
        logger.removeHandler(handler)
    line = stream.getvalue()
    assert SECRET not in line
    assert line.count("\n") == 1
    made = json.loads(line)
    assert {"time", "level", "logger", "message", "detail", "exception"} <= made.keys()


def test_a_log_line_carries_the_requests_id_and_stays_one_line() -> None:
    token = logs.request_id.set("abc123")
    try:
        record = logging.makeLogRecord({"msg": "学習\nline two\u2028", "levelname": "INFO", "name": "x"})
        line = logs.JsonLines().format(record)
    finally:
        logs.request_id.reset(token)
    assert "\n" not in line
    assert json.loads(line)["request"] == "abc123"
    assert "学習" in line


@pytest.mark.parametrize("size", [1, 2, 5, 64, tail.CHUNK])
def test_lines_of_a_log_do_not_depend_on_how_it_is_read(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(tail, "CHUNK", size)
    lines = [json.dumps({"type": "x", "n": n, "t": "あ" * n}).encode() + b"\n" for n in range(12)]
    content = b"junk\n\n" + b"".join(lines) + b'{"type": "torn'
    offset, found = 0, []
    for _ in range(1000):
        read = tail.lines_of(io.BytesIO(content), offset)
        found += [(line.event["n"], line.offset) for line in read.lines]
        if read.offset == offset:
            break
        offset = read.offset
    ends = [len(b"junk\n\n") + sum(map(len, lines[: n + 1])) for n in range(12)]
    assert found == list(zip(range(12), ends, strict=True))
    assert offset == ends[-1]


def test_equal_requests_have_equal_hashes() -> None:
    one: dict[str, Any] = {"a": {"x": 1, "y": [1, 2]}, "b": 2**80}
    two: dict[str, Any] = {"b": 2**80, "a": {"y": [1, 2], "x": 1}}
    assert request_hash(one) == request_hash(two)
    for other in ({"a": {"x": 1, "y": [2, 1]}, "b": 2**80}, {"a": {"x": 1.5, "y": [1, 2]}, "b": 2**80}, {}):
        assert request_hash(one) != request_hash(other)


@pytest.mark.parametrize("name", ['a"b', "a\r\nX: y", "学習.ipynb", "a\\", "\udcff", "", "x" * 5000])
def test_a_file_name_can_not_break_its_header(name: str) -> None:
    value = attachment(name)["Content-Disposition"]
    assert value.isascii()
    assert value.isprintable()
    assert value.count('"') == 2
    assert len(value) < 6000


def test_phrases_are_put_into_words_and_values_are_kept_short() -> None:
    said = phrased({"action": "submit", "problem": "unheard of", "many": list(range(500)), "long": "x" * 9999}, "ja")
    assert said["action"] == "ジョブの中からのジョブの投入"
    assert said["problem"] == "unheard of"
    assert len(said["many"]) == 200
    assert len(said["long"]) == 2000


def test_every_phrase_that_the_service_names_has_words_in_both_languages() -> None:
    sources = Path(logs.__file__).parent
    text = "".join(p.read_text("utf-8") for p in [*(sources / "api").glob("*.py"), *sources.glob("*.py")])
    actions = set(re.findall(r'(?:person|administrator)\("(\w+)"\)|action="(\w+)"|owner, "(\w+)"\)', text))
    problems = set(re.findall(r'problem="(\w+)"', text)) | set(re.findall(r'problem="\w+" if \w+ else "(\w+)"', text))
    named = {f"action.{a}" for found in actions for a in found if a} | {f"problem.{p}" for p in problems}
    assert len(named) > 15
    assert named - sentences("en").keys() == set()
