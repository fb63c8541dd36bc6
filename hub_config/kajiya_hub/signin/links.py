"""Sign-in links from the command line: for the first administrator, and for who forgot a password."""

from pathlib import Path
from urllib.parse import urlencode

from kajiya_hub.signin.accounts import FIRST, HOUR, SIGN_IN, Accounts

PATH = "hub/sign-in"


def users(db: Path) -> list[str]:
    """The names of all who may sign in, the oldest account first."""
    return [account.name for account in Accounts(db).users()]


def create_link(db: Path, user: str | None = None) -> str:
    """The path and query, below the base URL, of a link that signs in once within an hour.

    Without an account yet its first use makes the administrator; later it signs in `user`, or the oldest account.
    Raises `KeyError` for a user without an account.
    """
    accounts = Accounts(db)
    known = [account.name for account in accounts.users()]
    if not known:
        if user is not None:
            raise KeyError(user)
        return with_token(accounts.make_link(FIRST, lifetime=HOUR))
    name = known[0] if user is None else user
    if name not in known:
        raise KeyError(name)
    return with_token(accounts.make_link(SIGN_IN, name=name, lifetime=HOUR))


def with_token(token: str) -> str:
    """The path and query of a link."""
    return f"{PATH}?{urlencode({'token': token})}"
