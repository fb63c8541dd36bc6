"""What the API needs from outside, given explicitly, and what every handler asks for: the caller."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPBearer

from kajiya.errors import JobNotFound, NotAllowed, TooManyRequests
from kajiya.messages import preferred_language
from kajiya.profiles import ProfileSet
from kajiya.types import Capacity, Ending, MiB, Retries
from kajiya_hub.api.limits import Counters, Rate
from kajiya_hub.auth import Authenticator, Identity, token_from
from kajiya_hub.metrics import Metrics
from kajiya_hub.snapshots import SnapshotImages
from kajiya_hub.store.files import JobFiles
from kajiya_hub.store.store import Store


@dataclass(frozen=True)
class Limits:
    """How much one request, one user and all users may ask for."""

    notebook_bytes: int = 50 * MiB
    files_bytes: int = 512 * MiB
    files_count: int = 1000
    spec_bytes: int = MiB
    upload_seconds: float = 3600
    submits_at_once: int = 4
    submits_at_once_per_owner: int = 2
    requests_per_second: float = 50
    requests_burst: int = 500
    streams_per_owner: int = 20
    streams: int = 1000
    ping_seconds: float = 15
    recheck_seconds: float = 5


@dataclass
class Deps:
    """Everything that `create_app` needs; nothing is read from settings or the environment.

    `kernels` gives the kernels that an owner's environment has, or None where that can't be known yet; `wake` tells the
    loop that there is something to do; `health` gives further parts of the health answer.
    """

    store: Store
    files: JobFiles
    authenticator: Authenticator
    profiles: Callable[[], ProfileSet]
    capacity: Callable[[], Capacity]
    wake: Callable[[], None] = lambda: None
    kernels: Callable[[str, str], Sequence[str] | None] = lambda owner, environment: None
    used: Callable[[str, str], int] = lambda owner, profile: 0
    health: Mapping[str, Callable[[], Awaitable[str]]] = field(default_factory=dict[str, Callable[[], Awaitable[str]]])
    limits: Limits = field(default_factory=Limits)
    retries: Retries = field(default_factory=lambda: {Ending.preempted: 3, Ending.could_not_start: 2})
    prefix: str = "/services/kajiya"
    scrape_token: str | None = None
    metrics: Metrics = field(default_factory=Metrics)
    snapshots: SnapshotImages | None = None
    startup: Sequence[Callable[[], Awaitable[Any]]] = ()
    shutdown: Sequence[Callable[[], Awaitable[Any]]] = ()

    @property
    def images(self) -> SnapshotImages:
        """The images of snapshots; not to be asked for where none were given."""
        assert self.snapshots is not None
        return self.snapshots


def deps_of(request: Request) -> Deps:
    return request.app.state.deps


Given = Annotated[Deps, Depends(deps_of)]
_scheme = HTTPBearer(
    scheme_name="token",
    auto_error=False,
    description="`Authorization: Bearer TOKEN` or `Authorization: token TOKEN`: a token of the Hub with the scope "
    "`access:services!service=kajiya`, or the token of a running attempt in `KAJIYA_TOKEN`. Cookies are not read.",
)


@dataclass(frozen=True)
class Caller:
    """Who asks, and in which language they read."""

    identity: Identity
    language: str
    token: str = field(repr=False)

    @property
    def name(self) -> str:
        return self.identity.name

    def person(self, action: str) -> "Caller":
        """The caller, unless it is a job's attempt. Raises `NotAllowed`."""
        if self.identity.attempt:
            raise NotAllowed(action=action)
        return self

    def administrator(self, action: str) -> "Caller":
        """The caller, if it is an administrator. Raises `NotAllowed`."""
        if not self.identity.admin:
            raise NotAllowed(action=action)
        return self

    def owner(self, asked: str | None, action: str) -> str:
        """Whose jobs are meant: the caller's own, or, for an administrator, those of `asked`. Raises `NotAllowed`."""
        if asked is None or asked == self.name:
            return self.name
        self.administrator(action)
        return asked

    def reads(self, job: str, owner: str | None = None) -> str:
        """The owner under whom a job is to be looked up for reading; an attempt sees its own job only.

        Raises `JobNotFound`, `NotAllowed`.
        """
        if self.identity.attempt:
            if self.identity.whoami.job != job:
                raise JobNotFound(job=job)
            return self.name
        return self.owner(owner, "others_jobs")


def language_of(request: Request) -> str:
    """The reader's language, from Accept-Language; English where there is none."""
    return preferred_language(request.headers.get("accept-language", ""))


async def caller(
    request: Request,
    given: Given,
    _: Annotated[Any, Security(_scheme)] = None,
    accept_language: Annotated[
        str | None, Header(description="`en` or `ja`: the language of sentences in the answer.")
    ] = None,
) -> Caller:
    """Who asks. Raises `NotAuthenticated`, `NotAllowed`, `AttemptSuperseded`, `HubUnreachable`, `TooManyRequests`."""
    token = token_from(request.headers.get("authorization"))
    identity = await given.authenticator.identify(token)
    request.state.user = identity.name
    rate: Rate = request.app.state.rate
    wait = rate.take(identity.name, time.monotonic())
    if wait > 0 and identity.whoami.kind != "service":
        raise TooManyRequests(seconds=max(1, round(wait)))
    return Caller(identity, preferred_language(accept_language or ""), token)


Who = Annotated[Caller, Depends(caller)]


def counters(request: Request) -> Counters:
    return request.app.state.counters


AtOnce = Annotated[Counters, Depends(counters)]
