"""Signing in to one machine: the first link makes the administrator, who invites the others.

`configure(c, settings)` sets `c.JupyterHub.authenticator_class` and these traits of `SignInAuthenticator`: `db_file`
(accounts and links), `accounts` (each user has a Unix account; without, the pages say that all are one trust domain),
`public_url` (begins the links that are shown), `loopback` (only this machine can open them).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kajiya_hub.signin import links

if TYPE_CHECKING:
    from kajiya_hub.settings import Settings


def template_path() -> str:
    """The folder of these pages' templates: into `JupyterHub.template_paths`."""
    return str(Path(__file__).parent / "templates")


def configure(c: Any, settings: "Settings") -> None:
    """Makes the Hub sign people in by accounts and invitations."""
    from kajiya_hub.signin.authenticator import SignInAuthenticator

    c.JupyterHub.authenticator_class = SignInAuthenticator
    c.SignInAuthenticator.db_file = str(settings.data.signin_db)
    c.SignInAuthenticator.accounts = settings.accounts
    # Listening everywhere, an invitation names the address by which the administrator came, which others can open too.
    given = settings.public_address or not settings.everywhere
    c.SignInAuthenticator.public_url = settings.public_url if given else ""
    c.SignInAuthenticator.loopback = settings.loopback
    present = c.JupyterHub.get("template_paths")
    c.JupyterHub.template_paths = [*(present if isinstance(present, list) else []), template_path()]


def link(settings: "Settings", user: str | None = None) -> str:
    """The whole URL of a new sign-in link; see `links.create_link`."""
    return settings.public_url + links.create_link(settings.data.signin_db, user)
