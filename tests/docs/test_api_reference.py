"""docs/api.md says what the service does: it is made from the same types and routes."""

import re
from pathlib import Path

from kajiya_hub.api import docs

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == docs.page(), "run `make docs`"


def test_every_route_and_every_type_stands_on_it() -> None:
    page = PAGE.read_text("utf-8")
    document = docs.openapi()
    for path, item in document["paths"].items():
        for method in item:
            assert f"`{method.upper()} {path}`" in page
    titles = {t.lower().replace(" ", "-") for t in re.findall(r"^#+ (.+)$", page, re.MULTILINE)}
    for link in re.findall(r"\]\(#([^)]+)\)", page):
        assert link in titles
