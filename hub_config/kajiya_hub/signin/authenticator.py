"""The Hub's authenticator: names and passwords of this machine's own accounts."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

from jupyterhub.auth import Authenticator
from tornado import web
from traitlets import Bool, Unicode, default

from kajiya.messages import message, preferred_language
from kajiya_hub.signin import names, passwords
from kajiya_hub.signin.accounts import Account, Accounts, NameTaken
from kajiya_hub.signin.limiter import Limiter


class Admitted(dict[str, Any]):
    """Someone whom a page of ours let in already; a form can only ever give a plain dictionary."""


def hub_key(user: Any) -> str:
    """What tells one user of the Hub from any other for ever, names and row numbers used again included."""
    return hashlib.sha256(str(user.cookie_id).encode()).hexdigest()


class SignInAuthenticator(Authenticator):
    """Accounts with passwords; new ones by one-time links only."""

    db_file = Unicode(help="The SQLite file of accounts and links.").tag(config=True)
    accounts = Bool(False, help="Whether each user has a Unix account of their own.").tag(config=True)
    public_url = Unicode(help="What people open, ending with a slash; the request's own address if empty.").tag(
        config=True
    )
    loopback = Bool(True, help="Whether only this machine can reach it.").tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.by_name = Limiter()
        # One address may stand for many people behind it, so it has more tries than one name from it.
        self.by_address = Limiter(free=50)
        # From all addresses together: whoever is on this machine can reach the Hub beside the proxy and make some up.
        # At most 100 in a row, as NIST SP 800-63B, 5.2.2 has it; links and open sessions stay good meanwhile.
        self.by_account = Limiter(free=100)
        self._slots = asyncio.Semaphore(2)  # each check of a password takes 32 MiB

    @default("allow_all")
    def _default_allow_all(self) -> bool:
        return True  # whoever has an account was invited

    @property
    def people(self) -> Accounts:
        """The accounts and links."""
        return Accounts(Path(self.db_file))

    def normalize_username(self, username: str) -> str:
        """NFC and lower case; see `names.normalise`."""
        return names.normalise(username)

    def validate_username(self, username: str) -> bool:
        """Whether a normalised name may be used."""
        return names.problem(username) is None and super().validate_username(username)

    def get_handlers(self, app: Any) -> list[tuple[Any, ...]]:
        """Our pages, before the Hub's own."""
        from kajiya_hub.signin.handlers import handlers

        return handlers()

    def delete_user(self, user: Any) -> None:
        """Whom an administrator deletes can't sign in any more."""
        super().delete_user(user)
        self.people.remove(user.name)

    async def matches(self, password: str, stored: str | None) -> bool:
        """Whether it is the password; a few at a time, off the event loop."""
        async with self._slots:
            return await asyncio.to_thread(passwords.matches, password, stored)

    async def store(self, password: str) -> str:
        """What is kept of a password."""
        async with self._slots:
            return await asyncio.to_thread(passwords.store, password)

    async def authenticate(self, handler: Any, data: dict[str, Any]) -> Any:
        """The user that a name and password belong to. Raises `HTTPError` 403 and 429 with one sentence."""
        if isinstance(data, Admitted):
            return {"name": data["name"], "admin": True if data.get("admin") else None}
        name, password = names.normalise(str(data.get("username", ""))), str(data.get("password", ""))
        address = address_of(handler)
        keys = (self.by_name, (name, address)), (self.by_address, address), (self.by_account, name)
        wait = max(limiter.wait(key) for limiter, key in keys)
        if wait:
            raise refusal(handler, 429, "signin.too_many", seconds=wait)
        account = self.account_of(name, handler)
        if not await self.matches(password, account.password if account else None) or account is None:
            for limiter, key in keys:
                limiter.failed(key)
            raise refusal(handler, 403, "signin.wrong")
        self.by_name.forget((name, address))
        self.by_account.forget(name)
        return {"name": account.name}

    def account_of(self, name: str, handler: Any) -> Account | None:
        """The account behind a name, if it still belongs to the Hub's user of that name.

        A user renamed in the Hub keeps the account under the new name. A name whose user is gone opens nothing: the
        next user of that name is somebody else.
        """
        people, user = self.people, handler.find_user(name)
        if user is not None:
            bound = people.by_key(hub_key(user))
            if bound is not None and bound.name != name:
                try:
                    people.rename(bound.name, name)
                except NameTaken:
                    return None
        account = people.user(name)
        if account is None or account.hub_key is None:
            return account
        return account if user is not None and hub_key(user) == account.hub_key else None


def address_of(handler: Any) -> str:
    """The address that a request came from, as the nearest proxy saw it; tries of a password are counted by it.

    Not Tornado's `remote_ip`, for which X-Real-Ip counts most: npm's proxy passes on whatever a client wrote there.
    """
    trusted = handler.app.trusted_downstream_ips if handler.app else ()
    seen = [a.strip() for line in handler.request.headers.get_list("X-Forwarded-For") for a in line.split(",")]
    return next((a for a in reversed(seen) if a and a not in trusted), None) or handler.request.remote_ip


def language_of(handler: Any) -> str:
    """The language that a request asks for."""
    return preferred_language(handler.request.headers.get("Accept-Language", ""))


def refusal(handler: Any, status: int, code: str, **params: Any) -> web.HTTPError:
    """An error of the Hub's with one sentence in the reader's language."""
    sentence = message(code, params, language_of(handler))
    error = web.HTTPError(status, sentence.replace("%", "%%"))
    error.jupyterhub_message = sentence  # type: ignore[attr-defined]
    if "seconds" in params:
        error.headers = {"Retry-After": str(params["seconds"])}  # type: ignore[attr-defined]
    return error
