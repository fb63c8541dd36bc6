"""What a backend is: four verbs over attempts. A third backend is one new file, one entry point, one contract test."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from kajiya.types import Capacity, Ending, Environment, Reason, Resources, Usage

State = dict[str, Any]
"""What a backend must remember of an attempt, as JSON; the loop stores it after every step of `start`."""


@dataclass(frozen=True)
class AttemptSpec:
    """One attempt to be started.

    `directory` is its own folder, `JOB/attempts/N`: `start` puts the inputs there, events and results appear there.
    `env` is the profile's and the site's environment; a backend adds its own over it.
    """

    job: str
    number: int
    owner: str
    profile: str
    resources: Resources
    environment: Environment
    directory: Path
    token: str = field(repr=False)
    env: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    time_limit: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    results: list[str] = field(default_factory=list[str])

    @property
    def inputs(self) -> Path:
        """The job's frozen inputs, which all its attempts share: `notebook.ipynb` and `files/`."""
        return self.directory.parent.parent / "input"

    @property
    def checkpoint(self) -> Path:
        """The folder that lasts over the job's attempts."""
        return self.directory.parent.parent / "checkpoint"


@dataclass(frozen=True)
class AttemptRef:
    """An attempt that was started, or whose start was cut short: `state` is what `start` yielded last, {} if nothing.

    An attempt whose start was cut short is finished by `start` with that state, which never makes a second one.
    """

    job: str
    number: int
    owner: str
    directory: Path
    state: State


@dataclass(frozen=True)
class Observation:
    """How an attempt stands.

    `starting` also means that `start` was cut short, and may be called again or the attempt stopped; `gone` that it is
    certainly no more and left no exit record; `unreachable` that nothing can be said now, which is never a failure.
    The last four fields hold only where `phase` is `ended`.
    """

    phase: Literal["starting", "running", "ended", "gone", "unreachable"]
    ending: Ending | None = None
    exit_code: int | None = None
    reason: Reason | None = None
    usage: Usage | None = None


class Backend(Protocol):
    """Where attempts run. Every verb may be called again after a crash at any point, and gives the same result."""

    def start(self, spec: AttemptSpec, state: State | None = None) -> AsyncIterator[State]:
        """Starts an attempt, yielding what must be remembered after each step; with `state`, goes on from there.

        Raises a `KajiyaError` or an `OSError` where it can't be started; then nothing of it runs.
        """
        ...

    async def check(self, attempts: Sequence[AttemptRef]) -> list[Observation]:
        """How each attempt stands, in the same order."""
        ...

    async def stop(self, attempt: AttemptRef, grace: float = 10) -> None:
        """Asks an attempt to end, and has it ended after `grace` seconds; no error if it is already gone.

        Returns at once: `check` says when it has ended. One that had not begun never begins.
        """
        ...

    def logs(self, attempt: AttemptRef, offset: int = 0) -> AsyncIterator[bytes]:
        """What the attempt's processes printed, from a byte offset to the present end."""
        ...


@runtime_checkable
class HasCapacity(Protocol):
    """A backend that knows what is free."""

    def capacity(self) -> Capacity: ...


@runtime_checkable
class Watches(Protocol):
    """A backend that can say when something changed, so that the loop need not ask."""

    def changes(self) -> AsyncIterator[None]: ...
