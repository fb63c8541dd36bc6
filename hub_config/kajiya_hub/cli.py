"""The command `kajiya-hub`: the embedded stack, and what its administrator needs beside it."""

from kajiya_hub.trim import trim

trim()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

import typer  # noqa: E402

from kajiya import __version__  # noqa: E402
from kajiya.errors import ConfigInvalid, InvalidInput, KajiyaError, NotConfigured, SetupError  # noqa: E402
from kajiya.messages import message, preferred_language  # noqa: E402
from kajiya_hub.datadir import DataDir, default_path  # noqa: E402
from kajiya_hub.settings import Settings, SiteSettings, read_site_settings  # noqa: E402

app = typer.Typer(
    name="kajiya-hub",
    no_args_is_help=True,
    add_completion=False,
    help="Kajiya on one machine: start it, and look after it.",
)
profiles_app = typer.Typer(no_args_is_help=True, help="The profile file: what users may choose.")
app.add_typer(profiles_app, name="profiles")

DataOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Where everything lies.", envvar="KAJIYA_DATA_DIR", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


class NeverStarted(SetupError):
    """No Kajiya was ever started in this data directory."""

    code = "stack.never_started"


class NoAccount(InvalidInput):
    """Nobody of that name may sign in."""

    code = "signin.cli_no_account"


class AccountExists(InvalidInput):
    """Somebody has the name already."""

    code = "signin.cli_exists"


class NameUnfit(InvalidInput):
    """The name can't be had."""

    code = "signin.cli_name"


class NoAdministrator(InvalidInput):
    """Nobody has signed in yet, so nobody can invite."""

    code = "signin.cli_nobody"


def data_dir(given: Path | None, accounts: bool = False) -> DataDir:
    """The data directory: the one given, else the XDG one; with accounts a place that they can reach."""
    if given is None and accounts:
        return DataDir(Path("/var/lib/kajiya"))
    return DataDir((given or default_path()).expanduser().absolute())


def running(given: Path | None) -> Settings:
    """The settings of the last start in this data directory. Raises `NeverStarted`."""
    data = data_dir(given)
    try:
        return Settings.load(data.settings)
    except NotConfigured as e:
        raise NeverStarted(path=data.root) from e


@app.command()
def up(
    data_dir_: DataOption = None,
    ip: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (8000).", show_default=False)] = None,
    base_url: Annotated[str | None, typer.Option(help="Path to serve below (/).", show_default=False)] = None,
    accounts: Annotated[
        bool | None, typer.Option("--accounts/--no-accounts", help="A Unix account for each user; needs root.")
    ] = None,
    ssl_key: Annotated[Path | None, typer.Option(help="PEM file of the TLS key.", show_default=False)] = None,
    ssl_cert: Annotated[Path | None, typer.Option(help="PEM file of the TLS certificate.", show_default=False)] = None,
) -> None:
    """Start everything, print a sign-in link, and stay until Ctrl-C. Jobs outlive it."""
    from kajiya_hub import embedded

    given: dict[str, Any] = {"ip": ip, "port": port, "base_url": base_url, "accounts": accounts}
    given |= {"ssl_key": ssl_key and str(ssl_key.absolute()), "ssl_cert": ssl_cert and str(ssl_cert.absolute())}
    embedded.up(data_dir(data_dir_, bool(accounts)), {k: v for k, v in given.items() if v is not None})


@app.command()
def link(
    user: Annotated[str | None, typer.Argument(help="Whose; the first administrator's if left out.")] = None,
    data_dir_: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a sign-in link that works once, within an hour."""
    from kajiya_hub import signin

    known = running(data_dir_)
    try:
        url = signin.link(known, user)
    except KeyError as e:
        raise NoAccount(name=user) from e
    say_link(url, as_json)


def say_link(url: str, as_json: bool) -> None:
    """A link alone, so that it can be copied or piped."""
    print(json.dumps({"url": url}) if as_json else url)


@app.command()
def invite(
    user: Annotated[str | None, typer.Argument(help="The name to have; chosen at the sign-in if left out.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="A group of the Hub to join; may be given again.")] = None,
    data_dir_: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a link by which a new user joins, within a week."""
    from kajiya_hub.signin import names
    from kajiya_hub.signin.accounts import INVITE, WEEK, Accounts
    from kajiya_hub.signin.links import with_token

    known = running(data_dir_)
    people = Accounts(known.data.signin_db)
    name = names.normalise(user) if user is not None else None
    if name is not None:
        if code := names.problem(name):
            raise NameUnfit(name=user, sentence=message(code, {"n": names.LONGEST}))
        if people.user(name) is not None:
            raise AccountExists(name=name)
    first = next((account.name for account in people.users()), None)
    if first is None:  # an invitation would make a user where no administrator is
        raise NoAdministrator()
    say_link(known.public_url + with_token(people.make_link(INVITE, name, group or [], first, WEEK)), as_json)


@app.command()
def users(data_dir_: DataOption = None, as_json: JsonOption = False) -> None:
    """List who can sign in, the oldest account first."""
    from kajiya_hub.signin import links

    found = links.users(running(data_dir_).data.signin_db)
    if as_json:
        print(json.dumps([{"name": name} for name in found], ensure_ascii=False, indent=2))
    else:
        print("".join(f"{name}\n" for name in found), end="")


@app.command()
def settings(data_dir_: DataOption = None, as_json: JsonOption = False) -> None:
    """Show the settings in force, and where they come from."""
    data = data_dir(data_dir_)
    given = read_site_settings(data.config)
    site = SiteSettings.model_validate(given)
    values = json.loads(site.model_dump_json())
    if values.get("scrape_token"):
        values["scrape_token"] = "(set)"  # noqa: S105 (hides it)
    if as_json:
        print(json.dumps({"data_dir": str(data.root), **values}, ensure_ascii=False, indent=2))
        return
    print(f"data_dir: {data.root}")
    for name, value in values.items():
        origin = "kajiya.yaml" if name in given else "default"
        print(f"{name}: {json.dumps(value, ensure_ascii=False)}  ({origin})")


@app.command()
def version(as_json: JsonOption = False) -> None:
    """Print the version."""
    print(json.dumps({"version": __version__}) if as_json else __version__)


@app.command()
def doctor(data_dir_: DataOption = None, as_json: JsonOption = False) -> None:
    """Check this machine and the data directory, and say what to mend. Exit status 1 where something must be."""
    from kajiya_hub import checks

    found = checks.run(data_dir(data_dir_))
    if as_json:
        print(json.dumps([check.as_dict() for check in found], ensure_ascii=False, indent=2))
    else:
        for check in found:
            print(f"{check.mark} {check.sentence}")
    if any(check.level == "bad" for check in found):
        raise typer.Exit(1)


@profiles_app.command("show")
def profiles_show(data_dir_: DataOption = None, as_json: JsonOption = False) -> None:
    """Print the profiles in force as YAML: the file's, or the set that fits this machine."""
    import yaml

    from kajiya import profiles
    from kajiya.machine.capacity import machine_capacity

    data = data_dir(data_dir_)
    found = profiles.load(data.profiles) if data.profiles.exists() else None
    shown = profiles.dump(found or profiles.defaults(machine_capacity(data.machine)))
    print(json.dumps(yaml.safe_load(shown), ensure_ascii=False, indent=2) if as_json else shown.rstrip())


@profiles_app.command("check")
def profiles_check(
    file: Annotated[Path | None, typer.Argument(help="The file; the data directory's if left out.")] = None,
    data_dir_: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a profile file: what is wrong is named with file, line, key and what was expected."""
    from kajiya import profiles

    path = file or data_dir(data_dir_).profiles
    found = profiles.load(path)
    if as_json:
        print(json.dumps({"file": str(path), "profiles": [p.slug for p in found.profiles]}, ensure_ascii=False))
    else:
        print(message("stack.profiles_good", {"path": path, "count": len(found.profiles)}))


@profiles_app.command("schema")
def profiles_schema() -> None:
    """Print the JSON schema of a profile file."""
    from kajiya import profiles

    print(json.dumps(profiles.schema(), ensure_ascii=False, indent=2))


def main() -> None:
    """Runs the command line; an error is one sentence on stderr and exit status 1 (2 for a wrong configuration)."""
    try:
        app()
    except KajiyaError as e:
        if "--json" in sys.argv[1:]:
            print(json.dumps(e.body(preferred_language()), ensure_ascii=False, default=str))
        else:
            print(f"kajiya-hub: {e.sentence()}", file=sys.stderr)
        sys.exit(2 if isinstance(e, ConfigInvalid) else 1)
