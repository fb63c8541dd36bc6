"""A real Chromium, and people who use it."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from helpers.person import Person
from helpers.stack import Stack

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
# Without these Chromium looks up its maker's hosts at every start.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.timeout(420))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        sentence = "there is no Chromium here; install the package chromium to run the browser tests"
        if os.environ.get("KAJIYA_REQUIRE_BROWSER"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def person(chromium: Browser, stack: Stack) -> Iterator[Callable[..., Person]]:
    """Makes people with a browser window of their own: `person("mika", language="ja")`."""
    made: list[Person] = []

    def make(name: str, language: str = "en", scheme: str = "light") -> Person:
        one = Person(chromium, stack, name, language, scheme)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()
