"""`python -m kajiya.cli_docs > docs/cli.md`: the reference of the command line, from the commands themselves."""

import os
import sys
from typing import Any

# The reference is in English, whoever makes it; the commands take their words when they are imported.
os.environ["KAJIYA_LANG"] = "en"

HEAD = """# The command line `kajiya`

Made by `python -m kajiya.cli_docs > docs/cli.md`; a test compares it with the commands.

Every command takes `--json`, which prints one JSON document on standard output: the answer, or the error body
`{"error": {"code", "message", "params"}}`. Without it, what was asked for goes to standard output and remarks go to
standard error, so that both can be piped. Sentences are English or Japanese, by `KAJIYA_LANG`, else the locale.

The address and the token come from `KAJIYA_API_URL` and `KAJIYA_TOKEN` (a server has them set), else from
`kajiya login`, which keeps them in `~/.config/kajiya/credentials.json`, readable by you only.

| exit status | meaning |
|---|---|
| 0 | success |
| 1 | the job failed or was stopped, or the doctor found a fault |
| 2 | wrong usage, or input that can't be used |
| 3 | refused: not signed in, not allowed, not found, not as things stand |
| 4 | no service: it can't be reached, is not configured, or something else answers |
| 5 | the time to wait is over; the job goes on |
| 130 | interrupted; the job goes on |
"""


def reference() -> str:
    """The reference as Markdown."""
    import typer

    from kajiya.cli import app

    group: Any = typer.main.get_command(app)
    out = [HEAD]
    for name, command in group.commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        usage = " ".join(["kajiya", name, *(_argument(a) for a in arguments), "[OPTIONS]"])
        out.append(f"## {name}\n\n{command.help}\n\n    {usage}\n")
        rows = [(f"`{_argument(a)}`", a.help) for a in arguments] + [(_option(o), o.help) for o in options]
        out.append("| | |\n|---|---|\n" + "\n".join(f"| {what} | {_cell(text)} |" for what, text in rows) + "\n")
    return "\n".join(out)


def _argument(argument: Any) -> str:
    name = str(argument.metavar or argument.name).strip("[]{}").upper()
    return name if argument.required else f"[{name}]"


def _option(option: Any) -> str:
    names = ", ".join(f"`{n}`" for n in sorted(option.opts, key=len))
    if option.is_flag:
        return names
    return f"{names} `{option.metavar or str(option.name).upper()}`"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
