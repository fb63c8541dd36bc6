"""The commands on snapshots: capture, list, compare, restore and delete."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer

from kajiya.cli_jobs import Json, client
from kajiya.cli_out import document, handled, line, note, say, table

Ref = Annotated[str, typer.Argument(metavar="SNAPSHOT", help=say("cli.help.snapshot"), show_default=False)]
Before = Annotated[str, typer.Argument(metavar="BEFORE", help=say("cli.help.snapshot"), show_default=False)]
After = Annotated[str, typer.Argument(metavar="AFTER", help=say("cli.help.snapshot"), show_default=False)]


def register(app: typer.Typer) -> None:
    """Adds the commands to the app, in the order of use."""
    commands: list[Callable[..., None]] = [capture, snapshots, diff, restore]
    for command in commands:
        app.command(command.__name__, help=say(f"cli.help.{command.__name__}"))(handled(command))
    app.command("delete-snapshot", help=say("cli.help.delete_snapshot"))(handled(delete_snapshot))


def capture(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help=say("cli.help.snapshot_name"), show_default=False)
    ] = None,
    environment: Annotated[str | None, typer.Option("--environment", "-e", help=say("cli.help.environment"))] = None,
    as_json: Json = False,
) -> None:
    from kajiya import sdk_snapshots as sdk
    from kajiya.environment import capture as captures
    from kajiya.messages import message
    from kajiya.types import Reason

    def tell(reason: Reason) -> None:
        if not as_json:
            note(message(reason.code, reason.params))

    home = sdk.home_of_this()
    wanted, root = sdk.which(home, environment)
    with client(30) as api:
        done = captures.capture(api, root, home.kajiya / "captured", name=name, environment=wanted, progress=tell)
    if as_json:
        left_out = [entry._asdict() for entry in done.left_out]
        return document(done.snapshot.model_dump(mode="json") | {"new": done.new, "left_out": left_out})
    for entry in done.left_out:
        note(say(f"capture.left_out.{entry.why}", path=entry.path))
    line(done.snapshot.digest)


def snapshots(
    text: Annotated[str, typer.Option("--search", "-q", help=say("cli.help.snapshot_search"))] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=500, help=say("cli.help.limit"))] = 30,
    cursor: Annotated[str | None, typer.Option("--cursor", help=say("cli.help.cursor"))] = None,
    as_json: Json = False,
) -> None:
    from kajiya.sizes import show_size

    with client() as api:
        page = api.snapshots(text, limit, cursor)
    if as_json:
        return document(page.model_dump(mode="json"))
    if not page.items:
        return note(say("cli.no_snapshots"))
    rows = [
        [
            ", ".join(s.names) or "-",
            s.digest[:19],
            s.environment,
            show_size(s.added),
            show_size(s.size),
            s.created_at.astimezone().strftime("%Y-%m-%d %H:%M"),
        ]
        for s in page.items
    ]
    table([say(f"column.{c}") for c in ("snapshot", "digest", "environment", "added", "size", "made")], rows)
    if page.next:
        note(f"--cursor {page.next}")


def diff(before: Before, after: After, as_json: Json = False) -> None:
    from kajiya import sdk_snapshots as sdk

    with client() as api:
        found = sdk.diff(before, after, api)
    if as_json:
        return document(asdict(found))
    if found.changes:
        table([say(f"column.{c}") for c in ("change", "package", "before", "after")], found.rows())
    else:
        line(say("cli.diff_same"))
    line(found.sizes())


def restore(
    snapshot: Ref,
    name: Annotated[str | None, typer.Option("--as", metavar="ENV", help=say("cli.help.restore_as"))] = None,
    as_json: Json = False,
) -> None:
    from kajiya import sdk_snapshots as sdk

    with client(30) as api:
        done = sdk.restore(snapshot, name, None if as_json else note, api)
    if as_json:
        return document(
            {
                "environment": done.environment,
                "path": str(done.path),
                "kernel": done.kernel,
                "snapshot": done.snapshot.digest,
            }
        )
    line(str(done.path))


def delete_snapshot(snapshot: Ref, as_json: Json = False) -> None:
    with client() as api:
        api.delete_snapshot(snapshot)
    if as_json:
        return document({"deleted": snapshot})
    line(say("cli.snapshot_deleted", snapshot=snapshot))
