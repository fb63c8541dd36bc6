"""The line to the service: one way out, with retries while the service restarts, and one way to follow a stream."""

import json
import platform
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from kajiya import __version__, sse
from kajiya.credentials import Credentials, Secret, loopback
from kajiya.errors import KajiyaError, TooManyRequests, UnexpectedAnswer, Unreachable, from_body
from kajiya.types import Job

M = TypeVar("M", bound=BaseModel)
_LIST = TypeAdapter(list[Any])
AWAY = frozenset({502, 503, 504})
# The service sends a comment every 15 s (DESIGN.md): three missed ones mean that the line is dead.
STREAM_SILENCE = 45.0


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job's stream: `job` (its new state), `cell` (a line of its event log) or `end`.

    `id` is where to go on from, and stands on `cell` events. A `ping` comes at least every 15 s.
    """

    kind: str
    data: dict[str, Any]
    id: str = ""

    @property
    def job(self) -> Job:
        """The job of a `job` event."""
        return Job.model_validate(self.data, extra="ignore")


class _Auth(httpx.Auth):
    """Adds the token to each request; a class of its own, so that no header list holds it."""

    def __init__(self, token: Secret) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"token {self._token.reveal()}"
        yield request


class Connection:
    """One service, as one user. Every call raises the service's own error, or `Unreachable` once patience ends."""

    def __init__(
        self, where: Credentials, transport: httpx.BaseTransport | None, language: str, patience: float
    ) -> None:
        self.url = where.url
        self.patience = patience
        self._http = httpx.Client(
            auth=_Auth(where.token) if where.token else None,
            transport=transport,
            timeout=httpx.Timeout(30, connect=5),
            # A proxy from the environment can't reach this machine's loopback.
            trust_env=not loopback(where.url),
            headers={
                "Accept-Language": language,
                "User-Agent": f"kajiya/{__version__} Python/{platform.python_version()}",
            },
        )

    def close(self) -> None:
        """Gives the sockets back."""
        self._http.close()

    def send(
        self,
        method: str,
        path: str,
        make: Callable[[], dict[str, Any]] | None = None,
        timeout: float | None = None,
        take: Callable[[httpx.Response], None] | None = None,
    ) -> httpx.Response:
        """One call, repeated while the service is away. Only for what may be sent twice."""
        away = _Patience(self.patience)
        while True:
            try:
                # Made anew for each try: a body that was half sent starts over.
                kwargs = make() if make is not None else {}
                if timeout is not None:
                    kwargs["timeout"] = httpx.Timeout(timeout, connect=5)
                with self._http.stream(method, self._at(path), **kwargs) as answer:
                    self._check(answer)
                    if take is not None:
                        take(answer)
                    else:
                        answer.read()
                    return answer
            except httpx.TransportError as e:
                problem: KajiyaError = self._away(e)
            except (Unreachable, TooManyRequests) as e:
                problem = e
            away.wait(problem)

    def _at(self, path: str) -> str:
        return f"{self.url}/{path}"

    def _away(self, e: httpx.TransportError) -> Unreachable:
        return Unreachable(url=self.url, problem=str(e) or type(e).__name__)

    def _check(self, answer: httpx.Response) -> None:
        if answer.is_success:
            return
        try:
            body: Any = json.loads(answer.read())
        except ValueError:
            body = None
        error = from_body(cast(dict[str, Any], body) if isinstance(body, dict) else {}, answer.status_code)
        if isinstance(error, UnexpectedAnswer) and answer.status_code in AWAY:
            raise Unreachable(url=self.url, problem=f"HTTP {answer.status_code}")
        raise error

    def get(self, model: type[M], path: str, params: Mapping[str, Any] | None = None) -> M:
        return self.parse(model, self.send("GET", path, make=lambda: {"params": dict(params or {})}))

    def parse(self, model: type[M], answer: httpx.Response) -> M:
        try:
            # A newer service may say more than this client knows.
            return model.model_validate_json(answer.content, extra="ignore")
        except ValidationError:
            raise UnexpectedAnswer(status=answer.status_code) from None

    def items(self, model: type[M], path: str) -> list[M]:
        """A list of one type."""
        answer = self.send("GET", path)
        try:
            return [model.model_validate(item, extra="ignore") for item in _LIST.validate_json(answer.content)]
        except ValidationError:
            raise UnexpectedAnswer(status=answer.status_code) from None

    def follow(
        self,
        path: str,
        last: str,
        stop: threading.Event | None,
        lost: Callable[[str], None] | None,
        patience: float | None,
    ) -> Iterator[Event]:
        away = _Patience(patience)
        while stop is None or not stop.is_set():
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
            try:
                with self._http.stream(
                    "GET", self._at(path), headers=headers, timeout=httpx.Timeout(STREAM_SILENCE, connect=5)
                ) as answer:
                    self._check(answer)
                    for message in sse.messages(answer.iter_bytes()):
                        if stop is not None and stop.is_set():
                            return
                        away.over()
                        last = message.id or last
                        yield _event(message)
                        if message.name == "end":
                            return
                problem: KajiyaError = Unreachable(url=self.url, problem="the stream broke off")
            except httpx.TransportError as e:
                problem = self._away(e)
            except (Unreachable, TooManyRequests) as e:
                problem = e
            if lost is not None:
                lost(problem.sentence())
            away.wait(problem, stop)


class _Patience:
    """How long to go on trying: waits grow from 0.2 s to 3 s until the time is used up."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self.over()

    def over(self) -> None:
        """The service answers again."""
        self._since: float | None = None
        self._delay = 0.2

    def wait(self, problem: KajiyaError, stop: threading.Event | None = None) -> None:
        """Waits before the next try, or raises the problem."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        delay = self._delay
        if isinstance(problem, TooManyRequests):
            delay = max(delay, _number(problem.params.get("seconds")))
        if self._seconds is not None and now + delay - self._since > self._seconds:
            raise problem
        self._delay = min(3.0, self._delay * 1.7)
        if stop is None:
            time.sleep(delay)
        else:
            stop.wait(delay)


def _number(value: Any) -> float:
    return min(float(value), 60.0) if isinstance(value, (int, float)) else 1.0


def _event(message: sse.Message) -> Event:
    try:
        data: Any = json.loads(message.data) if message.data and message.name != "ping" else {}
    except ValueError:
        data = {}
    return Event(message.name, cast(dict[str, Any], data) if isinstance(data, dict) else {}, message.id)
