"""What all tests share: one base of environments, made once; one running stack."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.stack import Stack
from kajiya.environment.base import Base


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # These wait on real processes, browsers and clocks of a machine that others may be using: a first failure is shown
    # as a rerun in the summary, and only a second one fails (in a browser, a third). No other test has this excuse.
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here / "integration"):
            item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=2))
        elif item.path.is_relative_to(here / "browser"):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=2))


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config) -> Path:
    """A folder that lasts from one run of the tests to the next, for what is slow to fetch."""
    given = os.environ.get("KAJIYA_TEST_CACHE")
    folder = Path(given) if given else Path(pytestconfig.cache.mkdir("kajiya"))  # type: ignore[union-attr]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def base(shared: Path) -> Base:
    """The base of environments, made at its first use."""
    return Base(shared / "base", shared / "cache" / "uv")


@pytest.fixture(scope="session")
def stack(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole stack, running; shared by all tests that do not stop or break it."""
    with Stack(tmp_path_factory.mktemp("stack") / "data", shared=shared) as running:
        yield running
