"""The proxy's route table and the pure parts around it."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from kajiya_hub.proxy.headers import end_to_end
from kajiya_hub.proxy.options import parse
from kajiya_hub.proxy.routes import Routes, clean, decoded, from_iso, iso
from kajiya_hub.proxy.tunnel import only_control


def table(*prefixes: str) -> Routes:
    routes = Routes()
    for prefix in prefixes:
        routes.add(prefix, f"http://target{clean(prefix)}")
    return routes


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("/", "/"),
        ("", "/"),
        ("/elsewhere", "/"),
        ("/user", "/"),
        ("/user/alice", "/user/alice"),
        ("/user/alice/", "/user/alice"),
        ("/user/alice/lab/tree/x", "/user/alice"),
        ("/user/alicex", "/"),
        ("/user/alice/second", "/user/alice/second"),
        ("/user/alice/second/lab", "/user/alice/second"),
        ("/user/鍛冶屋 太郎/lab", "/user/鍛冶屋 太郎"),
        ("//user/alice", "/"),
        ("/user//alice", "/"),
        ("/services/kajiya/api" + "/x" * 50_000, "/services/kajiya"),
    ],
)
def test_the_longest_prefix_wins_and_ends_at_a_slash(path: str, prefix: str) -> None:
    routes = table("/", "/user/alice/", "/user/alice/second", "/user/鍛冶屋 太郎", "services/kajiya")
    found = routes.find(path)
    assert found is not None and found.prefix == prefix


def test_without_a_default_there_may_be_no_route() -> None:
    routes = table("/user/a/b/c")
    assert routes.find("/user/a/b") is None
    assert routes.remove("/user/a/b/c/") and not routes.remove("/user/a/b/c")
    assert routes.find("/user/a/b/c") is None and len(routes) == 0


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/user/a%20b/lab?x=%2F", "/user/a b/lab"),
        ("/user/%E9%8D%9B/", "/user/鍛/"),
        ("/user/a%2Fb", "/user/a/b"),
        ("/user/%zz/%", "/user/%zz/%"),
        ("/user/~a@b.c", "/user/~a@b.c"),
    ],
)
def test_paths_are_decoded_before_they_are_matched(raw: str, path: str) -> None:
    assert decoded(raw) == path


def test_inactive_since_gives_only_what_lay_idle() -> None:
    routes = table("/old", "/new")
    routes.all()["/old"].last_activity = from_iso("2026-01-01T00:00:00Z")
    assert list(routes.all(from_iso("2026-06-01T09:00:00+09:00"))) == ["/old"]
    assert routes.all()["/old"].view()["last_activity"] == "2026-01-01T00:00:00.000Z"
    assert iso(from_iso("2026-01-01T00:00:00.5")) == "2026-01-01T00:00:00.500Z"
    with pytest.raises(ValueError):
        from_iso("yesterday")


def test_what_speaks_of_one_connection_ends_here() -> None:
    given = CIMultiDict(
        [
            ("Host", "h"),
            ("Connection", "close, X-Mine, Content-Length, Cookie"),
            ("X-Mine", "1"),
            ("Content-Length", "3"),
        ]
    )
    given.extend([("Cookie", "a=1"), ("Keep-Alive", "5"), ("TE", "trailers"), ("Upgrade", "h2c"), ("X-Other", "2")])
    kept = end_to_end(CIMultiDictProxy(given))
    assert dict(kept) == {"Host": "h", "Content-Length": "3", "Cookie": "a=1", "X-Other": "2"}


def test_header_bytes_that_are_no_utf8_are_not_lost() -> None:
    given = CIMultiDict([("X-A", b"caf\xe9".decode("utf-8", "surrogateescape")), ("X-B", "鍛"), ("X-C", "c")])
    assert dict(end_to_end(CIMultiDictProxy(given))) == {"X-A": "café", "X-B": "鍛", "X-C": "c"}


@pytest.mark.parametrize(
    ("frame", "control"),
    [
        (b"\x89\x00", True),
        (b"\x89\x04ping", True),
        (b"\x8a\x84mask" + b"ping", True),
        (b"\x81\x02hi", False),
        (b"\x89\x00\x81\x02hi", False),
        (b"\x89", False),
        (b"", False),
    ],
)
def test_pings_are_no_activity(frame: bytes, control: bool) -> None:
    assert only_control(frame) is control


def test_the_command_line_is_configurable_http_proxys() -> None:
    line = "--ip  --port 8000 --api-ip 127.0.0.1 --api-port 8001 --error-target http://h/hub/error --log-level info"
    options = parse([*line.replace("--ip  ", "").split(), "--ip", "", "--host-routing", "--ssl-key", "k"], {})
    assert (options.ip, options.api_at, options.host_routing, options.auth_token) == ("0.0.0.0", 8001, True, "")
    assert parse(["--port", "9"], {"CONFIGPROXY_AUTH_TOKEN": "t"}).api_at == 10
    assert parse(["--custom-header", "X-A: b"], {}).headers == {"X-A": "b"}
    internal = parse(["--client-ssl-ca", "ca", "--client-ssl-request-cert", "--api-ssl-reject-unauthorized"], {})
    assert internal.client_tls.ask and internal.api_tls.insist and str(internal.client_tls.ca) == "ca"


@pytest.mark.parametrize("wrong", [["--custom-header", "nothing"], ["--custom-header", "A: b\nC: d"], ["--port", "x"]])
def test_a_wrong_command_line_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(wrong, {})
    assert ended.value.code == 2 and wrong[0] in capsys.readouterr().err
