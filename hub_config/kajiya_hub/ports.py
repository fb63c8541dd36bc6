"""Addresses and ports of this machine: which are free, and who answers at them."""

import http.client
import json
import socket
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from kajiya.errors import Conflict, SetupError
from kajiya_hub.settings import Ports


class PortInUse(Conflict):
    """The public port is taken."""

    code = "stack.port_in_use"


class AddressUnusable(SetupError):
    """The public address can't be listened on."""

    code = "stack.address"


def check_address(ip: str, port: int, patience: float = 3) -> None:
    """Whether the address can be listened on. Raises `PortInUse` after `patience` seconds, `AddressUnusable`.

    A proxy whose parent was killed a moment ago still ends, which is no reason to refuse the next start.
    """
    until = time.monotonic() + patience
    while True:
        try:
            return _try_address(ip, port)
        except PortInUse:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _try_address(ip: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except (OSError, OverflowError) as e:
            if isinstance(e, OSError) and e.errno == 98:  # EADDRINUSE
                raise PortInUse(ip=ip, port=port) from e
            raise AddressUnusable(ip=ip, port=port, problem=(getattr(e, "strerror", None) or str(e)).lower()) from e


def pick_ports(earlier: Ports | None, taken: set[int]) -> Ports:
    """Four free ports on the loopback interface: those of the last start where they are free."""
    wanted = earlier.model_dump() if earlier is not None else {}
    chosen: dict[str, int] = {}
    held: list[socket.socket] = []
    try:
        for name in Ports.model_fields:
            for port in (wanted.get(name, 0), 0):
                probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held.append(probe)  # kept until all are chosen, so that no two are the same
                if port in taken or port in chosen.values():
                    continue
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                chosen[name] = probe.getsockname()[1]
                break
    finally:
        for probe in held:
            probe.close()
    return Ports.model_validate(chosen)


def ask(url: str, method: str = "GET", token: str | None = None, timeout: float = 2) -> tuple[int, bytes]:
    """An answer of a part of this stack: status and body; status 0 where there is none. Proxies are never asked."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=timeout)
    try:
        headers = {"Authorization": f"token {token}"} if token else {}
        connection.request(method, parts.path or "/", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def answers(url: str, statuses: range = range(200, 400)) -> bool:
    """Whether an address on this machine answers with one of these statuses now."""
    return ask(url)[0] in statuses


def ask_json(url: str, token: str | None = None) -> Any:
    """What an address answers as JSON, or None."""
    status, body = ask(url, token=token)
    with suppress(ValueError):
        return json.loads(body) if status == 200 else None
    return None


def listens(port: int) -> bool:
    """Whether somebody listens on a port of the loopback interface."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
