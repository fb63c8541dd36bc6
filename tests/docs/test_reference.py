"""Generated parts of the documentation are up to date, and what it shows is true."""

from pathlib import Path

import pytest
import yaml

from kajiya import profiles
from kajiya_hub import reference

ROOT = Path(__file__).resolve().parents[2]


def test_generated_parts_are_up_to_date() -> None:
    assert [str(p) for p in reference.stale(ROOT / "docs")] == [], "run `make docs`"


def test_every_generated_part_stands_somewhere() -> None:
    text = "".join(p.read_text("utf-8") for p in (ROOT / "docs").glob("*.md"))
    assert {n for n in reference.PARTS if f"<!-- generated: {n} -->" not in text} == set()


def test_a_stale_page_is_found_and_mended(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("before\n<!-- generated: errors -->\nold\n<!-- end -->\nafter\n")
    assert reference.stale(tmp_path) == [page]
    reference.stale(tmp_path, write=True)
    assert reference.stale(tmp_path) == []
    assert page.read_text().startswith("before\n") and page.read_text().endswith("after\n")
    assert "job.not_found" in page.read_text()


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text("utf-8")
    return [b.split("\n```")[0] for b in text.split(f"```{language}\n")[1:]]


@pytest.mark.parametrize("text", blocks("docs/profiles.md", "yaml"))
def test_profile_examples_are_valid(text: str) -> None:
    made = profiles.parse(text)
    assert [p.slug for p in made.profiles] == [p["slug"] for p in yaml.safe_load(text)["profiles"]]
