"""The command line `kajiya`: thin over Client, with the SDK's words. `--json` on every command, success only on 0."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from kajiya import __version__, cli_jobs, cli_snapshots
from kajiya.cli_jobs import Json, client
from kajiya.cli_out import FAILED, INTERRUPTED, USAGE, document, handled, line, note, say, table

app = typer.Typer(
    name="kajiya",
    help=say("cli.help.app"),
    no_args_is_help=True,
    add_completion=False,
    # Locals in a traceback could hold what is nobody's business.
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status: Any = app(given, standalone_mode=False, prog_name="kajiya")
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as e:
        show: Any = getattr(e, "show", None)
        if show is None:
            raise
        if "--json" in given:
            sentence = str(getattr(e, "message", e))
            document({"error": {"code": "cli.usage", "message": sentence, "params": {}}})
        else:
            show()
        return int(getattr(e, "exit_code", USAGE))
    return status if isinstance(status, int) else 0


def _version(wanted: bool) -> None:
    if wanted:
        line(f"kajiya {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=False)
def _app(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help=say("cli.help.version"), callback=_version)
    ] = False,
) -> None:
    pass


cli_jobs.register(app)
cli_snapshots.register(app)


@app.command("profiles", help=say("cli.help.profiles"))
@handled
def profiles(as_json: Json = False) -> None:
    from kajiya import describe
    from kajiya.sizes import show_size

    with client() as api:
        found = api.profiles()
    if as_json:
        return document([p.model_dump(mode="json") for p in found])
    if not found:
        return note(say("cli.no_profiles"))
    rows: list[list[str]] = []
    for p in found:
        r = p.resources
        gpus = f"{r.gpus} × {r.gpu_kind}" if r.gpus and r.gpu_kind else str(r.gpus or "")
        now = describe.why(p.reason) or say("cli.available")
        options = "; ".join(f"{o.slug}={'|'.join(c.slug for c in o.choices)}" for o in p.options)
        rows.append([p.slug, p.name, f"{r.cpu:g}", show_size(r.memory), gpus, options, now])
    table([say(f"column.{c}") for c in ("profile", "name", "cpu", "memory", "gpus", "options", "now")], rows)


@app.command("capacity", help=say("cli.help.capacity"))
@handled
def capacity(as_json: Json = False) -> None:
    from kajiya.sizes import show_size

    with client() as api:
        found = api.capacity()
    if as_json:
        return document(found.model_dump(mode="json"))
    rows = [["CPU", f"{found.cpu.free:g}", f"{found.cpu.total:g}"]]
    rows.append([say("column.memory"), show_size(found.memory.free), show_size(found.memory.total)])
    rows += [[g.kind, str(g.free), str(g.total)] for g in found.gpus]
    table([say("column.resource"), say("column.free"), say("column.total")], rows)


@app.command("whoami", help=say("cli.help.whoami"))
@handled
def whoami(as_json: Json = False) -> None:
    with client() as api:
        found, url = api.whoami(), api.url
    if as_json:
        return document(found.model_dump(mode="json") | {"url": url})
    line(say("cli.whoami", name=found.name, url=url, groups=found.groups or "-"))
    if found.admin:
        line(say("cli.admin"))


@app.command("login", help=say("cli.help.login"))
@handled
def login(
    url: Annotated[str, typer.Argument(metavar="URL", help=say("cli.help.url"), show_default=False)],
    as_json: Json = False,
) -> None:
    from kajiya import credentials
    from kajiya.client import Client
    from kajiya.errors import NotAuthenticated

    address = credentials.normalise(url)
    if address.startswith("http:") and not credentials.loopback(address):
        note(say("cli.plain_http", url=address))
    hub = address.removesuffix(credentials.SERVICE_PATH)
    if sys.stdin.isatty():
        note(say("cli.token_page", url=f"{hub}/hub/token"))
        # Never an argument: arguments stand in the list of processes and in the shell's history.
        token = credentials.Secret(typer.prompt(say("cli.token_prompt"), hide_input=True, err=True).strip())
    else:
        token = credentials.Secret(sys.stdin.readline().strip())
    if not token:
        raise NotAuthenticated()
    with Client(address, token.reveal(), patience=5) as api:
        found = api.whoami()
    file = credentials.store(address, token)
    if as_json:
        return document({"url": address, "name": found.name, "file": str(file)})
    line(say("cli.logged_in", name=found.name, url=address))


@app.command("logout", help=say("cli.help.logout"))
@handled
def logout(as_json: Json = False) -> None:
    from kajiya import credentials

    found = credentials.forget()
    if as_json:
        return document({"forgotten": found})
    line(say("cli.logged_out" if found else "cli.not_logged_in"))


@app.command("doctor", help=say("cli.help.doctor"))
@handled
def doctor(as_json: Json = False) -> None:
    from kajiya import doctor as room

    checks = room.examine()
    if as_json:
        document(room.report(checks))
    else:
        for text in room.lines(checks):
            line(text)
    if any(c.state == "wrong" for c in checks):
        raise typer.Exit(FAILED)
