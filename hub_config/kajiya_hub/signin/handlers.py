"""The pages: sign in, follow a link, invite people, change a password."""

import time
from typing import Any, cast

from jupyterhub import orm
from jupyterhub.handlers.base import BaseHandler
from jupyterhub.handlers.login import LoginHandler, LogoutHandler
from jupyterhub.utils import new_token, url_path_join
from tornado import web

from kajiya.messages import message
from kajiya_hub.signin import names, passwords
from kajiya_hub.signin.accounts import FIRST, INVITE, SIGN_IN, WEEK, Link, LinkGone, NameTaken
from kajiya_hub.signin.authenticator import Admitted, SignInAuthenticator, address_of, hub_key, language_of, refusal
from kajiya_hub.signin.links import with_token

RESET_LIFETIME = 86400.0


class Page(BaseHandler):
    """What the pages share: the reader's language, no caching, and accounts bound to the Hub's users."""

    @property
    def auth(self) -> SignInAuthenticator:
        """The authenticator that these pages belong to."""
        return cast(SignInAuthenticator, self.authenticator)

    @property
    def me(self) -> Any:
        """Who is signed in, where that is required."""
        return self.current_user

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")
        # The address of a link is its secret, and must reach no other page.
        self.set_header("Referrer-Policy", "no-referrer")

    @property
    def template_namespace(self) -> dict[str, Any]:
        """The Hub's names, with `look` speaking the language of this request."""
        found = super().template_namespace
        found["look"] = found["look"].speaking(language_of(self))
        return found | {"accounts": self.auth.accounts, "loopback": self.auth.loopback}

    def say(self, code: str, **params: Any) -> str:
        """A sentence in the language of this request."""
        return message(code, params, language_of(self))

    async def show(self, template: str, status: int = 200, **values: Any) -> None:
        """Answers with a page."""
        self.set_status(status)
        self.finish(await self.render_template(template, **values))

    def field(self, name: str, strip: bool = True) -> str:
        """A field of the posted form; missing is empty."""
        values = self.get_body_arguments(name, strip=strip)
        return values[-1] if values else ""

    async def admit(self, name: str, admin: bool = False, groups: list[str] | None = None) -> Any:
        """Signs someone in whom a link let in, and binds the account to the Hub's user."""
        user = await self.login_user(Admitted(username=name, name=name, admin=admin))
        if user is None:
            raise refusal(self, 403, "signin.wrong")
        self.auth.people.bind(user.name, hub_key(user))
        for group in groups or []:
            found = orm.Group.find(self.db, group)
            if found is not None and found not in user.groups:
                user.groups.append(found)
        self.db.commit()
        return user


class Login(Page, LoginHandler):
    """The sign-in page, in place of the Hub's."""

    @property
    def template_namespace(self) -> dict[str, Any]:
        empty = self.request.method in ("GET", "HEAD") and not self.auth.people.users()
        return super().template_namespace | {"nobody_yet": empty}

    async def login_user(self, data: Any = None) -> Any:
        user = await super().login_user(data)
        if user is not None:
            self.auth.people.bind(user.name, hub_key(user))
        return user


class SignIn(Page):
    """A one-time link. Only the POST uses it up, so that whoever previews links burns none."""

    async def get(self) -> None:
        token = self.get_query_argument("token", "")
        await self._page(self._link(token), token)

    async def post(self) -> None:
        token = self.field("token")
        link = self._link(token)
        if link.kind == SIGN_IN:
            await self._sign_in(link, token)
        else:
            await self._join(link, token)

    def _link(self, token: str) -> Link:
        try:
            return self.auth.people.link(token)
        except LinkGone:
            raise refusal(self, 410, "signin.link_gone") from None

    async def _page(self, link: Link, token: str, problem: str = "", name: str = "", status: int = 200) -> None:
        values = {"link": link, "token": token, "problem": problem, "who": link.name or name}
        await self.show("signin/link.html", status, **values)

    async def _sign_in(self, link: Link, token: str) -> None:
        name, password = link.name or "", self.field("password", strip=False)
        if password and (code := passwords.problem(password, name)):
            return await self._page(link, token, self.say(code, n=passwords.SHORTEST), status=422)
        stored = await self.auth.store(password) if password else None
        try:
            self.auth.people.use(token, stored)
        except LinkGone:
            raise refusal(self, 410, "signin.link_gone") from None
        self.redirect(str(self.get_next_url(await self.admit(name))))

    async def _join(self, link: Link, token: str) -> None:
        name = link.name or names.normalise(self.field("name"))
        password = self.field("password", strip=False)
        problem = self._problem(link, name, password)
        if problem:
            return await self._page(link, token, problem, name, 422)
        stored = await self.auth.store(password)
        try:
            self.auth.people.accept(token, name, stored)
        except NameTaken:
            return await self._page(link, token, self.say("signin.name_taken", name=name), name, 422)
        except LinkGone:
            raise refusal(self, 410, "signin.link_gone") from None
        user = await self.admit(name, admin=link.kind == FIRST, groups=link.groups)
        self.redirect(str(self.get_next_url(user)))

    def _problem(self, link: Link, name: str, password: str) -> str:
        if code := names.problem(name):
            return self.say(code, n=names.LONGEST)
        # A user that the Hub has already may own things: such a name is given by an administrator only.
        if link.name is None and self.find_user(name) is not None and link.kind != FIRST:
            return self.say("signin.name_taken", name=name)
        if code := passwords.problem(password, name):
            return self.say(code, n=passwords.SHORTEST)
        if password != self.field("again", strip=False):
            return self.say("signin.password_differs")
        return ""


class Invite(Page):
    """Invitations: for administrators only, each shown once."""

    @web.authenticated
    async def get(self) -> None:
        self._administrators_only()
        await self._page()

    @web.authenticated
    async def post(self) -> None:
        self._administrators_only()
        act = self.field("act")
        if act == "revoke":
            number = self.field("id")
            self.auth.people.revoke(int(number) if number.isdecimal() and len(number) < 18 else -1)
            self.redirect(url_path_join(self.hub.base_url, "invite"))
        elif act == "link":
            await self._sign_in_link(names.normalise(self.field("name")))
        else:
            await self._invite()

    def _administrators_only(self) -> None:
        if "admin:users" not in self.expanded_scopes or getattr(self.current_user, "kind", "user") != "user":
            raise refusal(self, 403, "signin.administrators_only")

    async def _invite(self) -> None:
        name, people = names.normalise(self.field("name")), self.auth.people
        groups = self.get_body_arguments("group")
        known = self._groups()
        if name and (code := names.problem(name)):
            return await self._page(problem=self.say(code, n=names.LONGEST), status=422)
        if name and people.user(name) is not None:
            return await self._page(problem=self.say("signin.name_taken", name=name), status=422)
        if unknown := [g for g in groups if g not in known]:
            return await self._page(problem=self.say("signin.no_group", group=unknown[0]), status=422)
        token = people.make_link(INVITE, name or None, groups, self.me.name, WEEK)
        await self._page(made=self._url(token), made_for=name, note="" if not name else self._note(name))

    def _note(self, name: str) -> str:
        taken = self.find_user(name) is not None or self.auth.people.retired(name)
        return self.say("signin.name_was_used", name=name) if taken else ""

    async def _sign_in_link(self, name: str) -> None:
        people = self.auth.people
        if people.user(name) is None:
            return await self._page(problem=self.say("signin.no_account", name=name), status=422)
        token = people.make_link(SIGN_IN, name, None, self.me.name, RESET_LIFETIME)
        await self._page(made=self._url(token), made_for=name, reset=True)

    def _url(self, token: str) -> str:
        base = self.auth.public_url
        return (base or f"{self.request.protocol}://{self.request.host}{self.base_url}") + with_token(token)

    def _groups(self) -> list[str]:
        return [group.name for group in self.db.query(orm.Group).order_by(orm.Group.name)]

    async def _page(
        self, made: str = "", made_for: str = "", note: str = "", reset: bool = False, problem: str = "",
        status: int = 200,
    ) -> None:  # fmt: skip
        people, now = self.auth.people, time.time()
        await self.show(
            "signin/invite.html",
            status,
            made=made,
            made_for=made_for,
            note=note,
            reset=reset,
            problem=problem,
            groups=self._groups(),
            open_links=[(link, max(1, round((link.expires - now) / 3600))) for link in people.open_links(now)],
            people=people.users(),
        )


class Password(Page):
    """Change my password; every other session of mine ends with it."""

    @web.authenticated
    async def get(self) -> None:
        self._people_only()
        await self.show("signin/password.html", problem="", done=False)

    @web.authenticated
    async def post(self) -> None:
        user, auth = self._people_only(), self.auth
        key = (user.name, address_of(self))
        if wait := auth.by_name.wait(key):
            raise refusal(self, 429, "signin.too_many", seconds=wait)
        account = auth.account_of(user.name, self)
        if account is None or not await auth.matches(self.field("current", strip=False), account.password):
            auth.by_name.failed(key)
            return await self.show("signin/password.html", 403, problem=self.say("signin.current_wrong"), done=False)
        new = self.field("password", strip=False)
        code = passwords.problem(new, user.name)
        if code is None and new != self.field("again", strip=False):
            code = "signin.password_differs"
        if code:
            problem = self.say(code, n=passwords.SHORTEST)
            return await self.show("signin/password.html", 422, problem=problem, done=False)
        auth.people.set_password(user.name, await auth.store(new))
        # The Hub knows a session by this: changed, all cookies given out before are worthless.
        renew_sessions(self, user)
        self.set_hub_cookie(user)
        await self.show("signin/password.html", problem="", done=True)

    def _people_only(self) -> Any:
        if getattr(self.current_user, "kind", "user") != "user":
            raise refusal(self, 403, "signin.administrators_only")
        return self.current_user


class Logout(LogoutHandler):
    """Signing out, by which the session is over at the Hub too: a copy of its cookie, taken before, opens nothing."""

    async def handle_logout(self) -> None:
        user = self.current_user
        if getattr(user, "kind", "") == "user":
            renew_sessions(self, user)


def renew_sessions(handler: Any, user: Any) -> None:
    """Makes all cookies of a user's that the Hub gave out before worthless; the account stays theirs."""
    user.orm_user.cookie_id = new_token()
    handler.db.commit()
    cast(SignInAuthenticator, handler.authenticator).people.bind(user.name, hub_key(user))


def handlers() -> list[tuple[Any, ...]]:
    """Routes below the Hub's prefix."""
    return [
        (r"/login", Login),
        (r"/sign-in", SignIn),
        (r"/invite", Invite),
        (r"/password", Password),
        (r"/logout", Logout),
    ]
