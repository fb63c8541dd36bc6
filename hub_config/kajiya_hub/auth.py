"""Who a token belongs to, and what it may do: a Hub token, an attempt's token, or a fixed token of our own services.

Only the `Authorization` header is read, never a cookie: so a foreign page can't make a browser act for its user.
"""

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from kajiya.errors import AttemptSuperseded, HubUnreachable, KajiyaError, NotAllowed, NotAuthenticated
from kajiya.types import Whoami

POSITIVE_SECONDS = 10.0
NEGATIVE_SECONDS = 2.0
MAX_TOKEN_LENGTH = 512
ADMIN_SCOPE = "admin:users"
"""A token acts as an administrator only with this scope, which JupyterHub gives to an administrator's own tokens and
not to the token of a server: so what runs in an administrator's notebook has no more rights than any user."""


@dataclass(frozen=True)
class Identity:
    """Who a token belongs to, and the scopes it carries."""

    whoami: Whoami
    scopes: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.whoami.name

    @property
    def admin(self) -> bool:
        return self.whoami.admin

    @property
    def attempt(self) -> bool:
        """Whether this is a job's attempt that acts for its owner."""
        return self.whoami.kind == "attempt"


class Authenticator(Protocol):
    """The seam: how a service learns whose a token is."""

    async def identify(self, token: str) -> Identity:
        """The token's identity. Raises `NotAuthenticated`, `NotAllowed`, `AttemptSuperseded`, `HubUnreachable`."""
        ...


class Source(Protocol):
    """One kind of token; None means that the token is none of this kind."""

    async def find(self, token: str) -> Identity | None: ...


class Authenticators:
    """Asks each kind of token in turn; the Hub comes last, so that attempts work while the Hub is down."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    async def identify(self, token: str) -> Identity:
        if not token or len(token) > MAX_TOKEN_LENGTH or not token.isascii() or not token.isprintable():
            raise NotAuthenticated()
        for source in self._sources:
            found = await source.find(token)
            if found is not None:
                return found
        raise NotAuthenticated()


def token_hash(token: str) -> str:
    """How a token is stored and looked up: never as itself."""
    return hashlib.sha256(token.encode()).hexdigest()


class ServiceTokens:
    """Tokens of the stack's own services, by name; compared in constant time."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._tokens = {name: token.encode() for name, token in tokens.items() if token}

    async def find(self, token: str) -> Identity | None:
        given, found = token.encode(), None
        for name, known in self._tokens.items():
            # Every token is compared, so that the time taken says nothing about which one came close.
            if hmac.compare_digest(given, known):
                found = Identity(Whoami(name=name, admin=True, kind="service"))
        return found


class TokenHolder(Protocol):
    """What the store says of an attempt's token; `valid` is false once the attempt ended or was replaced."""

    @property
    def job(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def owner(self) -> str: ...
    @property
    def valid(self) -> bool: ...


class AttemptTokens:
    """Tokens of attempts: valid from the start to the end of the attempt, then `AttemptSuperseded` for ever."""

    def __init__(self, lookup: Callable[[str], TokenHolder | None]) -> None:
        self._lookup = lookup

    async def find(self, token: str) -> Identity | None:
        holder = await asyncio.to_thread(self._lookup, token_hash(token))
        if holder is None:
            return None
        if not holder.valid:
            raise AttemptSuperseded(job=holder.job, attempt=holder.attempt)
        return Identity(Whoami(name=holder.owner, kind="attempt", job=holder.job, attempt=holder.attempt))


@dataclass(frozen=True)
class _Known:
    until: float
    answer: Identity | KajiyaError


class HubAuthenticator:
    """Asks the Hub whose a token is, and remembers the answer for at most ten seconds.

    `hub_api` is the Hub's API address, such as `http://127.0.0.1:8081/hub/api`. The token must carry the scope
    `access:services!service=NAME`, or `access:services`, compared exactly.
    """

    def __init__(
        self,
        hub_api: str,
        service: str = "kajiya",
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        remembered: int = 10_000,
    ) -> None:
        self._url = hub_api.rstrip("/") + "/user"
        self._scopes = frozenset({"access:services", f"access:services!service={service}"})
        # trust_env off: a proxy for the internet must never see tokens on their way to our own Hub.
        self._client = httpx.AsyncClient(
            transport=transport, timeout=httpx.Timeout(5.0, connect=2.0), trust_env=False, follow_redirects=False
        )
        self._clock = clock
        self._remembered = remembered
        self._cache: OrderedDict[str, _Known] = OrderedDict()
        self._asking: dict[str, asyncio.Task[Identity | KajiyaError]] = {}

    async def close(self) -> None:
        """Closes the connections to the Hub."""
        await self._client.aclose()

    async def find(self, token: str) -> Identity | None:
        answer = await self._answer(token)
        if isinstance(answer, KajiyaError):
            raise answer
        return answer

    identify = find

    async def reachable(self) -> str:
        """`ok`, or in a few words why the Hub does not answer."""
        try:
            answer = await self._client.get(self._url.removesuffix("/user") + "/")
        except httpx.HTTPError as e:
            return f"can't be reached ({type(e).__name__})"
        return "ok" if answer.status_code == 200 else f"answered with status {answer.status_code}"

    async def _answer(self, token: str) -> Identity | KajiyaError:
        key = token_hash(token)
        known = self._cache.get(key)
        if known is not None and known.until > self._clock():
            return known.answer
        task = self._asking.get(key)
        if task is None:
            # One question for any number of requests that come with the same token at once.
            task = self._asking[key] = asyncio.create_task(self._ask(key, token))
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        return await asyncio.shield(task)

    async def _ask(self, key: str, token: str) -> Identity | KajiyaError:
        asked = self._clock()
        try:
            answer = await self._client.get(self._url, headers={"Authorization": f"token {token}"})
        except httpx.HTTPError:
            return HubUnreachable()
        if answer.status_code in (401, 403):
            return self._remember(key, asked + NEGATIVE_SECONDS, NotAuthenticated())
        if answer.status_code != 200:
            return HubUnreachable()
        try:
            identity = self._read(answer.json())
        except (ValueError, KeyError, TypeError, AttributeError):
            return HubUnreachable()
        if not (identity.scopes & self._scopes):
            return self._remember(key, asked + NEGATIVE_SECONDS, NotAllowed(action="use_service"))
        return self._remember(key, asked + POSITIVE_SECONDS, identity)

    def _remember(self, key: str, until: float, answer: Identity | KajiyaError) -> Identity | KajiyaError:
        self._cache[key] = _Known(until, answer)
        self._cache.move_to_end(key)
        while len(self._cache) > self._remembered:
            self._cache.popitem(last=False)
        return answer

    @staticmethod
    def _read(model: Mapping[str, Any]) -> Identity:
        scopes = frozenset(str(s) for s in model.get("scopes") or ())
        kind = "service" if model.get("kind") == "service" else "user"
        name = model["name"]
        if not isinstance(name, str) or not name:
            raise ValueError("the Hub named nobody")
        return Identity(
            Whoami(
                name=name,
                admin=bool(model.get("admin")) and ADMIN_SCOPE in scopes,
                groups=sorted(str(g) for g in model.get("groups") or ()),
                kind=kind,
            ),
            scopes,
        )


def token_from(header: str | None) -> str:
    """The token of an `Authorization: token X` or `Bearer X` header. Raises `NotAuthenticated`."""
    kind, _, token = (header or "").strip().partition(" ")
    token = token.strip()
    if kind.lower() not in ("token", "bearer") or not token:
        raise NotAuthenticated()
    return token
