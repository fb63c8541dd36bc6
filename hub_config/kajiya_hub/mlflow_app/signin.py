"""Sign-in of browsers through the Hub: OAuth 2 with PKCE (RFC 7636), a state bound to the browser, a signed cookie."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlencode

import httpx

from kajiya.errors import HubUnreachable, NotAuthenticated
from kajiya_hub.mlflow_app.options import SERVICE, Options

STATE_SECONDS = 600
STATES = 20


class SignIn:
    """Sends a browser to the Hub, takes it back, and knows it again by its cookie."""

    def __init__(self, options: Options, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._options = options
        # Not the token itself: what is signed with it must not help anybody who could make us sign.
        self._key = hmac.digest(options.token.encode(), b"kajiya mlflow sign-in", "sha256")
        self._client = httpx.AsyncClient(transport=transport, timeout=10.0, trust_env=False, follow_redirects=False)
        self.path = f"{options.base_path}/"
        self.callback = f"{options.base_path}/oauth_callback"
        self.cookie = f"service-{SERVICE}"

    async def close(self) -> None:
        """Closes the connections to the Hub."""
        await self._client.aclose()

    def token(self, cookies: dict[str, str]) -> str | None:
        """The Hub token that a browser's cookie holds, if we signed it."""
        value = self._read("session", cookies.get(self.cookie, ""))
        return str(value["token"]) if value and "token" in value else None

    def begin(self, wanted: str, secure: bool) -> tuple[str, list[str]]:
        """Where to send a browser that is to come back to `wanted`, and the cookies to set."""
        state, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        kept = self._sign("state", {"state": state, "verifier": verifier, "next": wanted, "at": int(time.time())})
        parameters = {
            "client_id": f"service-{SERVICE}",
            "redirect_uri": self.callback,
            "response_type": "code",
            "state": state,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        where = f"{self._options.hub_path}/api/oauth2/authorize?{urlencode(parameters)}"
        return where, [self._set(self._state_cookie(state), kept, secure, STATE_SECONDS)]

    async def finish(self, query: dict[str, str], cookies: dict[str, str], secure: bool) -> tuple[str, list[str]]:
        """Where a browser wanted to go, and the cookies to set. Raises `NotAuthenticated`, `HubUnreachable`."""
        state, code = query.get("state", ""), query.get("code", "")
        name = self._state_cookie(state)
        kept = self._read("state", cookies.get(name, ""))
        if not kept or not code or not hmac.compare_digest(str(kept["state"]).encode(), state.encode()):
            raise NotAuthenticated()
        if time.time() - float(kept["at"]) > STATE_SECONDS:
            raise NotAuthenticated()
        token = await self._exchange(code, str(kept["verifier"]))
        session = self._sign("session", {"token": token})
        wanted = str(kept["next"])
        if not wanted.startswith(self.path) or "\\" in wanted or any(ord(c) < 33 for c in wanted):
            wanted = self.path
        return wanted, [self._set(self.cookie, session, secure, None), self._set(name, "", secure, 0)]

    async def _exchange(self, code: str, verifier: str) -> str:
        form = {
            "client_id": f"service-{SERVICE}",
            "client_secret": self._options.token,
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.callback,
            "code_verifier": verifier,
        }
        try:
            answer = await self._client.post(f"{self._options.hub_api}/oauth2/token", data=form)
            if answer.status_code >= 500:
                raise HubUnreachable()
            token = answer.json().get("access_token") if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError) as e:
            raise HubUnreachable() from e
        if not token:
            raise NotAuthenticated()
        return str(token)

    def _state_cookie(self, state: str) -> str:
        # One for each sign-in on its way, so that two tabs do not take each other's.
        return f"{self.cookie}-state-{hashlib.sha256(state.encode()).hexdigest()[:8]}"

    def forgotten(self, cookies: dict[str, str], secure: bool) -> list[str]:
        """Cookies that remove the traces of sign-ins never finished, if there are many."""
        old = [name for name in cookies if name.startswith(f"{self.cookie}-state-")]
        return [self._set(name, "", secure, 0) for name in old] if len(old) > STATES else []

    def _set(self, name: str, value: str, secure: bool, seconds: int | None) -> str:
        age = "" if seconds is None else f"; Max-Age={seconds}"
        return f"{name}={value}; Path={self.path}; HttpOnly; SameSite=Lax{age}{'; Secure' if secure else ''}"

    def _sign(self, purpose: str, value: dict[str, Any]) -> str:
        body = base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
        return f"{body}.{self._mac(purpose, body)}"

    def _read(self, purpose: str, text: str) -> dict[str, Any] | None:
        body, _, mac = text.partition(".")
        if not mac or not hmac.compare_digest(mac.encode(), self._mac(purpose, body).encode()):
            return None
        try:
            return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        except ValueError:
            return None

    def _mac(self, purpose: str, body: str) -> str:
        return hmac.new(self._key, f"{purpose}.{body}".encode(), "sha256").hexdigest()


def cookies_of(header: str) -> dict[str, str]:
    """The cookies of a `Cookie` header; none if it can't be read."""
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load(header)
    except CookieError:
        return {}
    return {name: morsel.value for name, morsel in jar.items()}


def same_origin(headers: dict[str, str]) -> bool:
    """Whether a request that a cookie vouches for comes from our own pages and from no other site's.

    Browsers send Sec-Fetch-Site (W3C Fetch Metadata) or, on what changes something, Origin (RFC 6454).
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = headers.get("origin")
    host = headers.get("x-forwarded-host") or headers.get("host", "")
    return origin is not None and origin.split("://", 1)[-1] == host.split(",")[0].strip()
