"""Where the service is and which token to show it: from arguments, the environment, or the file `kajiya login` wrote.

A token goes only to the service it belongs to: the file's token to the file's address, the server's own Hub token to
the address that came with it.
"""

import json
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from kajiya.errors import InvalidName, NotConfigured

SERVICE_PATH = "/services/kajiya"


class Secret:
    """A token that shows itself only when asked: never in a repr, a log or a traceback that prints variables."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The token itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> str:
        raise TypeError("a token can't be pickled")


@dataclass(frozen=True)
class Credentials:
    """An address and its token; `source` says where they were found, for people."""

    url: str
    token: Secret | None
    source: str


def path() -> Path:
    """The file of `kajiya login`."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "kajiya" / "credentials.json"


def find(url: str | None = None, token: str | None = None) -> Credentials:
    """The address and token to use. Raises `NotConfigured` where no address is known."""
    env_url = os.environ.get("KAJIYA_API_URL")
    stored = None if url and token else load()
    if url:
        address, source = normalise(url), "arguments"
    elif env_url:
        address, source = normalise(env_url), "environment"
    elif stored:
        address, source = stored.url, "file"
    else:
        raise NotConfigured()
    if token:
        return Credentials(address, Secret(token), source)
    if value := os.environ.get("KAJIYA_TOKEN"):
        return Credentials(address, Secret(value), source)
    hub_token = os.environ.get("JUPYTERHUB_API_TOKEN")
    if hub_token and env_url and address == normalise(env_url):
        return Credentials(address, Secret(hub_token), source)
    if stored and address == stored.url:
        return Credentials(address, stored.token, source)
    return Credentials(address, None, source)


def load(file: Path | None = None) -> Credentials | None:
    """What `kajiya login` stored, or None where there is nothing usable."""
    try:
        data = json.loads((file or path()).read_text("utf-8"))
        return Credentials(normalise(str(data["url"])), Secret(str(data["token"])), "file")
    except (OSError, ValueError, KeyError, TypeError, InvalidName):
        return None


def store(url: str, token: Secret, file: Path | None = None) -> Path:
    """Writes address and token so that only this user can read them, and gives the file."""
    file = file or path()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # mkstemp makes it 0600 before anything is written.
    fd, temporary = tempfile.mkstemp(dir=file.parent, prefix=".credentials-")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as out:
            json.dump({"url": normalise(url), "token": token.reveal()}, out)
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return file


def forget(file: Path | None = None) -> bool:
    """Deletes what was stored; whether there was anything."""
    try:
        (file or path()).unlink()
    except FileNotFoundError:
        return False
    return True


def readable_by_others(file: Path | None = None) -> bool:
    """Whether the stored file is open to other users."""
    try:
        return bool(stat.S_IMODE((file or path()).stat().st_mode) & 0o077)
    except OSError:
        return False


def normalise(url: str) -> str:
    """The service's address from whatever page of the Hub was pasted. Raises `InvalidName` for what is no address."""
    text = url.strip()
    if "://" not in text:
        text = f"http://{text}" if loopback(f"http://{text}") else f"https://{text}"
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as e:
        raise InvalidName(name=url, problem=str(e)) from None
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidName(name=url, problem="it is no http or https address")
    if parts.username or parts.password:
        raise InvalidName(name=host, problem="an address may carry no user name or password")
    head, found, _ = parts.path.partition(SERVICE_PATH)
    if not found:
        head = parts.path
        for page in ("/hub", "/user", "/lab", "/tree"):
            # Pasted from the browser: everything from the Hub's own page on is not part of the address.
            if f"{page}/" in f"{head}/":
                head = f"{head}/".partition(f"{page}/")[0]
    return urlunsplit((parts.scheme, parts.netloc, head.rstrip("/") + SERVICE_PATH, "", ""))


def loopback(url: str) -> bool:
    """Whether an address never leaves this machine."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return host in ("localhost", "::1") or host.startswith("127.")
