"""The commands on jobs: submit, list, look, wait, stop, run again, and fetch what a job made."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kajiya.cli_out import FAILED, document, handled, line, note, say, table
from kajiya.errors import FileExists, InvalidRequest

JobId = Annotated[str, typer.Argument(metavar="JOB", help=say("cli.help.job"), show_default=False)]
Json = Annotated[bool, typer.Option("--json", help=say("cli.help.json"))]
Parameter = Annotated[
    list[str], typer.Option("--parameter", "-p", metavar="NAME=VALUE", help=say("cli.help.parameter"))
]
Raw = Annotated[list[str], typer.Option("--raw", "-r", metavar="NAME=TEXT", help=say("cli.help.raw"))]
ProfileName = Annotated[str | None, typer.Option("--profile", metavar="PROFILE", help=say("cli.help.profile"))]
Option = Annotated[list[str], typer.Option("--option", metavar="NAME=CHOICE", help=say("cli.help.option"))]
Name = Annotated[str | None, typer.Option("--name", help=say("cli.help.name"))]
Key = Annotated[str | None, typer.Option("--key", help=say("cli.help.key"))]
TimeLimit = Annotated[int | None, typer.Option("--time-limit", metavar="SECONDS", help=say("cli.help.time_limit"))]
Wait = Annotated[bool, typer.Option("--wait", help=say("cli.help.wait_flag"))]
AttemptNumber = Annotated[int | None, typer.Option("--attempt", help=say("cli.help.attempt"))]


def register(app: typer.Typer) -> None:
    """Adds the commands to the app, in the order of use."""
    commands: list[Callable[..., None]] = [submit, jobs, show, log, wait, stop, again, notebook, results, download]
    for command in [*commands, delete]:
        code = f"cli.help.{command.__name__}"
        app.command(command.__name__, help=say(code))(handled(command))


def client(patience: float = 5.0) -> Any:
    """A client; imported here, so that `--help` needs no HTTP."""
    from kajiya.client import Client

    return Client(patience=patience)


def pairs(items: list[str], flag: str) -> dict[str, str]:
    """`NAME=VALUE` texts as a dictionary. Raises `InvalidRequest`."""
    out: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise InvalidRequest(field=f"{flag} {item}", problem=say("cli.pair"))
        out[name.strip()] = value
    return out


def finish(api: Any, job: Any, waiting: bool, as_json: bool, timeout: float | None = None) -> None:
    """Prints a job, after its end if it is waited for; exits with failure where it did not succeed."""
    from kajiya import describe
    from kajiya.cli_follow import ended, follow
    from kajiya.types import Status

    if not waiting:
        if as_json:
            document(job.model_dump(mode="json"))
        else:
            line(describe.text(job))
            note(say("cli.hint.wait", job=job.id))
        return
    if not as_json:
        note(say("cli.submitted", job=job.id, name=job.name))
    job = follow(api, job, timeout, quiet=as_json)
    if as_json:
        document(job.model_dump(mode="json"))
    else:
        ended(job)
    if job.status is not Status.succeeded:
        raise typer.Exit(FAILED)


def submit(
    path: Annotated[Path, typer.Argument(metavar="NOTEBOOK", help=say("cli.help.notebook_file"), show_default=False)],
    parameter: Parameter = [],  # noqa: B006 - Typer makes a new list for each call
    raw: Raw = [],  # noqa: B006
    profile: ProfileName = None,
    option: Option = [],  # noqa: B006
    file: Annotated[list[str], typer.Option("--file", "-f", metavar="PATH", help=say("cli.help.file"))] = [],  # noqa: B006
    result: Annotated[list[str], typer.Option("--result", metavar="PATTERN", help=say("cli.help.result"))] = [],  # noqa: B006
    name: Name = None,
    key: Key = None,
    time_limit: TimeLimit = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    from kajiya import notebook as notebooks
    from kajiya import parameters, sdk

    book = notebooks.read_file(path)[1]
    values = _values(parameter, raw, parameters.declared(book))
    with client(30) as api:
        job = sdk.submit(
            path,
            values,
            profile,
            pairs(option, "--option"),
            file,
            result,
            name,
            key,
            time_limit,
            client=api,
        )
        finish(api, job.record, wait, as_json)


def _values(parameter: list[str], raw: list[str], found: Any) -> dict[str, Any]:
    from kajiya.parameters import parse_cli, validate

    # Each kind alone lacks what the other gives, so what is required is asked of both together.
    texts = pairs(raw, "--raw")
    relaxed = _relaxed(found)
    values = parse_cli(parameter, relaxed) if parameter else {}
    return validate({**values, **texts}, found)


def _relaxed(found: Any) -> Any:
    from dataclasses import replace

    return replace(found, specs=tuple(s.model_copy(update={"required": False}) for s in found.specs))


def jobs(
    status: Annotated[list[str], typer.Option("--status", "-s", help=say("cli.help.status"))] = [],  # noqa: B006
    text: Annotated[str | None, typer.Option("--search", "-q", help=say("cli.help.search"))] = None,
    profile: ProfileName = None,
    owner: Annotated[str | None, typer.Option("--owner", help=say("cli.help.owner"))] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=500, help=say("cli.help.limit"))] = 30,
    cursor: Annotated[str | None, typer.Option("--cursor", help=say("cli.help.cursor"))] = None,
    as_json: Json = False,
) -> None:
    from kajiya import describe
    from kajiya.types import Status

    for word in status:
        if word not in Status.__members__:
            raise InvalidRequest(field=f"--status {word}", problem=say("cli.one_of", known=list(Status)))
    with client() as api:
        page = api.jobs(status, text, profile, owner, limit, cursor)
    if as_json:
        return document(page.model_dump(mode="json"))
    if not page.items:
        return note(say("jobs.none_match" if status or text or profile or cursor or owner else "jobs.none"))
    table(describe.columns(), [describe.row(j) for j in page.items])
    if page.next:
        note(say("jobs.more", shown=len(page.items), total=page.total) + f" --cursor {page.next}")


def show(job: JobId, as_json: Json = False) -> None:
    from kajiya import describe

    with client() as api:
        record = api.job(job)
    if as_json:
        return document(record.model_dump(mode="json"))
    line(describe.text(record))


def log(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help=say("cli.help.follow"))] = False,
    attempt: AttemptNumber = None,
    as_json: Json = False,
) -> None:
    from kajiya.cli_follow import follow_log

    def write(data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    with client() as api:
        record = api.job(job)
        if as_json:
            if follow:
                taken: list[bytes] = []
                follow_log(api, record, attempt, taken.append)
                text = b"".join(taken)
            else:
                text = api.log(job, attempt)
            return document({"job": job, "attempt": attempt, "log": text.decode("utf-8", "replace")})
        if follow:
            follow_log(api, record, attempt, write)
        else:
            write(api.log(job, attempt))


def wait(
    job: JobId,
    timeout: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help=say("cli.help.timeout"))] = None,
    as_json: Json = False,
) -> None:
    with client(30) as api:
        finish(api, api.job(job), True, as_json, timeout)


def stop(job: JobId, wait: Wait = False, as_json: Json = False) -> None:
    from kajiya import describe
    from kajiya.cli_follow import follow

    with client(30) as api:
        record = api.stop(job)
        if wait:
            record = follow(api, record, quiet=as_json)
    if as_json:
        return document(record.model_dump(mode="json"))
    line(describe.standing(record))


def again(
    job: JobId,
    parameter: Parameter = [],  # noqa: B006
    raw: Raw = [],  # noqa: B006
    profile: ProfileName = None,
    option: Option = [],  # noqa: B006
    name: Name = None,
    key: Key = None,
    time_limit: TimeLimit = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    from kajiya import notebook as notebooks
    from kajiya import parameters
    from kajiya.client import checked
    from kajiya.types import JobAgain

    with client(30) as api:
        changes: dict[str, Any] = {"name": name, "profile": profile, "time_limit": time_limit}
        if option:
            changes["options"] = pairs(option, "--option")
        if parameter or raw:
            data = api.input(job)
            found = parameters.declared(notebooks.read(data, limit=len(data)))
            # Only changes: what is required was given the first time.
            changes["parameters"] = _values(parameter, raw, _relaxed(found))
        record = api.again(job, checked(JobAgain, {k: v for k, v in changes.items() if v is not None}), key)
        finish(api, record, wait, as_json)


def notebook(
    job: JobId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=say("cli.help.output"))] = None,
    attempt: AttemptNumber = None,
    as_json: Json = False,
) -> None:
    from kajiya import describe

    with client() as api:
        record = api.job(job)
        data = api.notebook(job, attempt)
    if output is not None and str(output) == "-":
        sys.stdout.buffer.write(data)
        return
    target = output or Path(describe.notebook_file(record))
    if target.is_dir():
        target = target / describe.notebook_file(record)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            out.write(data)
    except FileExistsError:
        raise FileExists(path=str(target)) from None
    if as_json:
        return document({"job": job, "path": str(target)})
    line(say("cli.saved", path=target))


def results(job: JobId, as_json: Json = False) -> None:
    from kajiya.sizes import show_size

    with client() as api:
        found = api.results(job)
    if as_json:
        return document([r.model_dump(mode="json") for r in found])
    if not found:
        return note(say("cli.no_results", job=job))
    table([say("column.file"), say("column.size")], [[r.path, show_size(r.size)] for r in found])
    note(say("cli.hint.results", job=job))


def download(
    job: JobId,
    path: Annotated[str | None, typer.Argument(metavar="[FILE]", help=say("cli.help.kept"), show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=say("cli.help.download_to"))] = None,
    force: Annotated[bool, typer.Option("--force", help=say("cli.help.force"))] = False,
    as_json: Json = False,
) -> None:
    from kajiya import sdk

    with client(30) as api:
        saved = sdk.job(job, api).download(path, output or Path(job if path is None else "."), force)
    if as_json:
        return document({"job": job, "paths": [str(p) for p in saved]})
    if not saved:
        return note(say("cli.no_results", job=job))
    for target in saved:
        line(say("cli.saved", path=target))


def delete(job: JobId, as_json: Json = False) -> None:
    with client() as api:
        api.delete(job)
    if as_json:
        return document({"job": job, "deleted": True})
    line(say("cli.deleted", job=job))
