"""The command line: the flags of configurable-http-proxy that this proxy understands."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kajiya_hub.proxy import tls

TOKEN_VARIABLE = "CONFIGPROXY_AUTH_TOKEN"  # noqa: S105 (the name of a variable)


@dataclass(slots=True)
class Options:
    """What the proxy was asked to do; times in seconds."""

    ip: str = "127.0.0.1"
    port: int = 8000
    socket: str | None = None
    api_ip: str = "127.0.0.1"
    api_port: int | None = None
    api_socket: str | None = None
    auth_token: str = ""
    default_target: str | None = None
    error_target: str | None = None
    error_path: Path | None = None
    redirect_port: int | None = None
    redirect_to: int | None = None
    pid_file: Path | None = None
    host_routing: bool = False
    x_forward: bool = True
    prepend_path: bool = True
    include_prefix: bool = True
    change_origin: bool = False
    insecure: bool = False
    proxy_timeout: float | None = None
    keep_alive_timeout: float = 75.0
    stop_timeout: float = 5.0
    headers: dict[str, str] = field(default_factory=dict)
    log_level: str = "info"
    public_tls: tls.Files = field(default_factory=tls.Files)
    api_tls: tls.Files = field(default_factory=tls.Files)
    client_tls: tls.Files = field(default_factory=tls.Files)

    @property
    def api_at(self) -> int:
        """The REST API's port; configurable-http-proxy takes the one after the public port."""
        return self.port + 1 if self.api_port is None else self.api_port


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kajiya_hub.proxy",
        description="A reverse proxy with configurable-http-proxy's REST API.",
        epilog=f"The REST API's token is read from {TOKEN_VARIABLE}.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--ip", default="127.0.0.1", help="public address; '' or '*' for all")
    add("--port", type=int, default=8000, help="public port")
    add("--socket", help="public Unix socket, instead of address and port")
    add("--api-ip", default="127.0.0.1", help="address of the REST API")
    add("--api-port", type=int, help="port of the REST API (public port + 1)")
    add("--api-socket", help="Unix socket of the REST API")
    add("--default-target", help="where requests go that no route matches")
    add("--error-target", help="URL that gives error pages: TARGET/404?url=...")
    add("--error-path", type=Path, help="folder with 404.html, 503.html, error.html")
    add("--redirect-port", type=int, help="port whose requests are redirected to the public one")
    add("--redirect-to", type=int, help="port named in that redirect (the public port)")
    add("--pid-file", type=Path, help="file to write the process id to")
    add("--host-routing", action="store_true", help="the host name is the first segment of a route")
    add("--no-x-forward", action="store_true", help="add no X-Forwarded-* headers")
    add("--no-prepend-path", action="store_true", help="leave out the path of the target")
    add("--no-include-prefix", action="store_true", help="leave out the route's prefix in what is forwarded")
    add("--change-origin", action="store_true", help="the Host header becomes the target's")
    add("--insecure", action="store_true", help="do not check certificates of targets")
    add("--proxy-timeout", type=float, help="milliseconds a target may stay silent")
    add("--keep-alive-timeout", type=float, default=75_000, help="milliseconds an idle connection is kept (75000)")
    add("--custom-header", action="append", default=[], metavar="NAME: VALUE", help="header added to what is forwarded")
    add("--log-level", default="info", choices=["debug", "info", "warn", "error"])
    for prefix, what in (("", "public side"), ("api-", "REST API"), ("client-", "connections to targets")):
        add(f"--{prefix}ssl-key", type=Path, help=f"{what}: private key")
        add(f"--{prefix}ssl-cert", type=Path, help=f"{what}: certificate")
        add(f"--{prefix}ssl-ca", type=Path, help=f"{what}: certificate authority")
        add(f"--{prefix}ssl-request-cert", action="store_true", help=f"{what}: ask for a certificate")
        add(f"--{prefix}ssl-reject-unauthorized", action="store_true", help=f"{what}: insist on a valid certificate")
    add("--ssl-ciphers", help="public side: OpenSSL cipher list")
    return parser


def _tls(parsed: argparse.Namespace, prefix: str) -> tls.Files:
    value = vars(parsed)
    return tls.Files(
        key=value[f"{prefix}ssl_key"],
        cert=value[f"{prefix}ssl_cert"],
        ca=value[f"{prefix}ssl_ca"],
        ask=value[f"{prefix}ssl_request_cert"],
        insist=value[f"{prefix}ssl_reject_unauthorized"],
        ciphers=parsed.ssl_ciphers if not prefix else None,
    )


def _seconds(milliseconds: float | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None


def parse(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> Options:
    """Read the command line; exits with status 2 and a sentence on a wrong one."""
    environ = os.environ if environ is None else environ
    parser = _parser()
    parsed = parser.parse_args(argv)
    headers: dict[str, str] = {}
    for line in parsed.custom_header:
        name, colon, value = line.partition(":")
        if not colon or not name.strip() or any(ord(c) < 32 for c in line):
            parser.error(f"--custom-header {line!r} is not of the form NAME: VALUE")
        headers[name.strip()] = value.strip()
    everywhere = {"", "*"}
    return Options(
        ip="0.0.0.0" if parsed.ip in everywhere else parsed.ip,  # noqa: S104 (asked for)
        port=parsed.port,
        socket=parsed.socket,
        api_ip="0.0.0.0" if parsed.api_ip in everywhere else parsed.api_ip,  # noqa: S104 (asked for)
        api_port=parsed.api_port,
        api_socket=parsed.api_socket,
        auth_token=environ.get(TOKEN_VARIABLE, ""),
        default_target=parsed.default_target,
        error_target=parsed.error_target,
        error_path=parsed.error_path,
        redirect_port=parsed.redirect_port,
        redirect_to=parsed.redirect_to,
        pid_file=parsed.pid_file,
        host_routing=parsed.host_routing,
        x_forward=not parsed.no_x_forward,
        prepend_path=not parsed.no_prepend_path,
        include_prefix=not parsed.no_include_prefix,
        change_origin=parsed.change_origin,
        insecure=parsed.insecure,
        proxy_timeout=_seconds(parsed.proxy_timeout),
        keep_alive_timeout=parsed.keep_alive_timeout / 1000,
        headers=headers,
        log_level=parsed.log_level,
        public_tls=_tls(parsed, ""),
        api_tls=_tls(parsed, "api_"),
        client_tls=_tls(parsed, "client_"),
    )
