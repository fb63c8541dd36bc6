"""Headers: which ones end here, and what is told to the target about the client."""

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

# RFC 9110, section 7.6.1: these speak of one connection only. Trailer goes with Transfer-Encoding, which is made anew.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# A client must not strip, by naming it in Connection, what says who it is or how long its body is.
KEPT = frozenset({"", "host", "content-length", "authorization", "cookie", "x-forwarded-for"})


def end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """A copy without what speaks of one connection only, whatever `Connection` names included."""
    kept = CIMultiDict(headers)
    connection = headers.get("Connection")
    if connection is not None:
        for part in connection.split(","):
            name = part.strip().lower()
            if name not in KEPT:
                kept.popall(name, None)
    for name in HOP_BY_HOP:
        if name in kept:
            del kept[name]
    if not all(map(str.isascii, kept.values())):
        return CIMultiDict((name, as_text(value)) for name, value in kept.items())
    return kept


def as_text(value: str) -> str:
    """A value that aiohttp can write: bytes that were no UTF-8 are taken for Latin-1, or they would be lost."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("latin-1")
    return value


def tell_about_client(headers: CIMultiDict[str], request: web.BaseRequest) -> None:
    """Append to X-Forwarded-For, -Port and -Proto and set a missing -Host, as configurable-http-proxy does.

    Unlike it, X-Real-Ip and X-Scheme end here: Tornado believes them before all others, whoever wrote them.
    """
    for name in ("X-Real-Ip", "X-Scheme"):
        headers.popall(name, None)
    peer = request.remote or ""
    secure = request.secure
    host = request.headers.get("Host", "")
    port = _port(host) or ("443" if secure else "80")
    for name, value in (
        ("X-Forwarded-For", peer),
        ("X-Forwarded-Port", port),
        ("X-Forwarded-Proto", "https" if secure else "http"),
    ):
        before = headers.getall(name, None)
        headers[name] = ",".join([*before, value]) if before else value
    if host and "X-Forwarded-Host" not in headers:
        headers["X-Forwarded-Host"] = host


def _port(host: str) -> str:
    _, colon, port = host.rpartition(":")
    return port if colon and port.isdigit() else ""


def host_name(request: web.BaseRequest) -> str:
    """The host that was asked for, lower case, without its port; IPv6 keeps its brackets."""
    host = request.headers.get("Host", "").lower()
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and not port.endswith("]") else host


def wants_websocket(request: web.BaseRequest) -> bool:
    """Whether this asks to be upgraded to a websocket (RFC 6455, section 4.2.1)."""
    headers = request.headers
    upgrade = headers.get("Upgrade")
    return (
        upgrade is not None
        and upgrade.strip().lower() == "websocket"
        and request.method == "GET"
        and "upgrade" in (part.strip().lower() for part in headers.get("Connection", "").split(","))
    )
