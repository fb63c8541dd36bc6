"""`kajiya-hub` where no stack runs: what its commands print, for people and with `--json` for programs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from kajiya import __version__
from kajiya_hub import cli

PROFILES = "profiles:\n  - {slug: small, name: 小, resources: {cpu: 1, memory: 1G}}\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("KAJIYA_LANG", "en")
    monkeypatch.setenv("KAJIYA_DATA_DIR", str(tmp_path))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kajiya-hub", *arguments])
        with pytest.raises(SystemExit) as e:
            cli.main()
            sys.exit(0)
        said = capsys.readouterr()
        return int(e.value.code or 0), said.out, said.err

    return call


def test_every_command_that_ends_has_json() -> None:
    group: Any = typer.main.get_command(cli.app)
    commands = {**group.commands, **{f"profiles {n}": c for n, c in group.commands["profiles"].commands.items()}}
    without = {name for name, c in commands.items() if not any("--json" in p.opts for p in c.params)}
    assert without == {"up", "profiles", "profiles schema"}, "up stays, profiles is a group, the schema is JSON"


def test_profiles_are_shown_and_checked(run: Any, tmp_path: Path) -> None:
    (tmp_path / "profiles.yaml").write_text(PROFILES, "utf-8")
    status, out, _ = run("profiles", "show", "--json")
    assert (status, [p["slug"] for p in json.loads(out)["profiles"]]) == (0, ["small"])
    assert "name: 小" in run("profiles", "show")[1]
    assert json.loads(run("profiles", "check", "--json")[1])["profiles"] == ["small"]
    assert "nothing wrong" in run("profiles", "check")[1]
    assert "$defs" in json.loads(run("profiles", "schema")[1])


def test_a_wrong_file_is_status_2_and_with_json_the_error_body(run: Any, tmp_path: Path) -> None:
    (tmp_path / "profiles.yaml").write_text(PROFILES.replace("slug", "slog"))
    status, out, err = run("profiles", "check")
    assert (status, out) == (2, "") and "line 2" in err and "slug is missing" in err
    status, out, err = run("profiles", "check", "--json")
    assert (status, err) == (2, "")
    assert json.loads(out)["error"]["code"] == "config.invalid"


@pytest.mark.parametrize("command", [("link",), ("invite",), ("users",)])
def test_where_nothing_was_ever_started_it_says_how(run: Any, tmp_path: Path, command: tuple[str, ...]) -> None:
    status, out, err = run(*command)
    assert (status, out) == (1, "")
    assert "kajiya-hub up" in err and "--data-dir" in err and str(tmp_path) in err
    assert json.loads(run(*command, "--json")[1])["error"]["code"] == "stack.never_started"


def test_a_link_alone_or_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    cli.say_link("http://127.0.0.1:8000/hub/sign-in?token=x", False)
    cli.say_link("http://127.0.0.1:8000/hub/sign-in?token=x", True)
    plain, document = capsys.readouterr().out.splitlines()
    assert json.loads(document) == {"url": plain}


def test_version_and_settings(run: Any) -> None:
    assert run("version")[1].strip() == json.loads(run("version", "--json")[1])["version"] == __version__
    assert json.loads(run("settings", "--json")[1])["proxy"] == "kajiya"
    assert 'proxy: "kajiya"  (default)' in run("settings")[1]
