"""The two READMEs stay in step, their links lead somewhere, and their commands exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

ROOT = Path(__file__).resolve().parents[2]
ENGLISH = (ROOT / "README.md").read_text("utf-8")
JAPANESE = (ROOT / "README.ja.md").read_text("utf-8")
PAGES = [ROOT / "README.md", ROOT / "README.ja.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str = r"\w+") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", text, re.DOTALL)


def links(text: str) -> list[str]:
    """What a page's links within the tree lead to; brackets within code are no links."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    return [t.split("#")[0] for t in re.findall(r"\]\((?!https?:)([^)]+)\)", prose)]


def test_the_japanese_readme_is_in_step() -> None:
    assert blocks(JAPANESE) == blocks(ENGLISH)
    for pattern in (r"^#+ ", r"^\|", r"<!-- .*? -->"):
        assert len(re.findall(pattern, JAPANESE, re.M)) == len(re.findall(pattern, ENGLISH, re.M)), pattern
    assert set(re.findall(r"\]\(((?:docs|CONTR)[^)]*)\)", JAPANESE)) == set(
        re.findall(r"\]\(((?:docs|CONTR)[^)]*)\)", ENGLISH)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert [t for t in links(page.read_text("utf-8")) if t and not (page.parent / t).exists()] == []


def test_only_links_are_taken_for_links() -> None:
    text = "`[a](?:b)` [one](x.md#part)\n```python\n[c](d)\n```\n[`two`](y.md) [out](https://example.org)"
    assert links(text) == ["x.md", "y.md"]


def commands(program: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        lines = [line for block in blocks(text, "console") for line in block.splitlines()]
        lines += re.findall(rf"`({program}(?: [^`]*)?)`", text)
        found += [(page.name, line) for line in lines if line == program or line.startswith(program + " ")]
    return sorted(set(found))


def check(app: typer.Typer, line: str) -> None:
    """A command line parses: its command and its options exist, without running it."""
    command = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    context = command.make_context("x", [], resilient_parsing=True)
    while words and not words[0].startswith("-"):
        inner = getattr(command, "commands", {}).get(words[0])
        if inner is None:
            assert not hasattr(command, "commands"), f"{line}: there is no command {words[0]}"
            break
        command, words = inner, words[1:]
    known = {o for p in command.get_params(context) for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    unknown = {w.split("=")[0] for w in words if re.match(r"--?[a-z]", w)} - known
    assert unknown == set(), f"{line}: unknown options"


@pytest.mark.parametrize(("page", "line"), commands("kajiya"))
def test_kajiya_commands_exist(page: str, line: str) -> None:
    from kajiya.cli import app

    check(app, line)


@pytest.mark.parametrize(("page", "line"), commands("kajiya-hub"))
def test_kajiya_hub_commands_exist(page: str, line: str) -> None:
    from kajiya_hub.cli import app

    check(app, line)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M))
    named = {w for page in PAGES for w in re.findall(r"\bmake ([a-z][a-z-]*)\b`?", page.read_text("utf-8"))}
    assert {"up", "test", "bench", "lint", "docs", "help"} <= targets
    in_code = {
        line.split()[1]
        for page in PAGES
        for block in blocks(page.read_text("utf-8"), "console")
        for line in block.splitlines()
        if line.startswith("make ")
    }
    assert in_code and in_code <= targets
    assert {n for n in named if f"make {n}`" in "".join(p.read_text("utf-8") for p in PAGES)} <= targets
