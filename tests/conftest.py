"""What all tests share: one base of environments, made once; one running stack."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.stack import Stack
from kajiya.environment.base import Base


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
