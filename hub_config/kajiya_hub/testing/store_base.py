"""What the parts of the store's contract share."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kajiya.types import Ending, Environment, GiB, Job, Resources, Status
from kajiya_hub.store.ids import new_id
from kajiya_hub.store.rows import AttemptEnd, Final, NewJob
from kajiya_hub.store.store import Store

START = 1_800_000_000.0
Make = Callable[..., NewJob]


class Time:
    """A clock to turn."""

    now = START

    def __call__(self) -> float:
        return self.now


class StoreFixtures:
    """A store on an empty database, a clock to turn, and jobs to submit; a subclass gives the fixture `url`."""

    @pytest.fixture
    def url(self) -> str:
        """The URL of an empty database."""
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> Time:
        return Time()

    @pytest.fixture
    def store(self, url: str, clock: Time) -> Iterator[Store]:
        store = Store(url, clock=clock)
        yield store
        store.close()

    @pytest.fixture
    def make(self, clock: Time) -> Make:
        """Makes a job to submit; each a second after the other."""

        def make(owner: str = "ann", **changes: Any) -> NewJob:
            clock.now += 1
            values: dict[str, Any] = {
                "id": new_id(clock.now),
                "owner": owner,
                "name": "train",
                "notebook": "train.ipynb",
                "notebook_sha256": "0" * 64,
                "profile": "small",
                "resources": Resources(cpu=1.5, memory=3 * GiB, gpus=0, gpu_kind=None),
                "environment": Environment(),
            }
            return NewJob(**(values | changes))

        return make

    def run(self, store: Store, id: str, ending: Ending = Ending.succeeded, **end: Any) -> Job:
        """Takes a job through one attempt to a final end."""
        active = store.begin_attempt(id, f"{id:0<64}")
        assert active is not None
        store.set_status(id, active.attempt, Status.running)
        status = Status.succeeded if ending is Ending.succeeded else Status.failed
        store.end_attempt(id, active.attempt, AttemptEnd(ending, **end), Final(status))
        return store.job(id)
