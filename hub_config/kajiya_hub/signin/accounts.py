"""Who may sign in: accounts and one-time links, in one SQLite file of mode 0600. Tokens are kept as digests only."""

import hashlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FIRST, SIGN_IN, INVITE = "first", "sign-in", "invite"
Kind = Literal["first", "sign-in", "invite"]
HOUR, WEEK = 3600.0, 7 * 86400.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS users (
    name TEXT PRIMARY KEY, password TEXT, hub_key TEXT UNIQUE, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS links (
    id INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, name TEXT,
    groups TEXT NOT NULL, made_by TEXT, created REAL NOT NULL, expires REAL NOT NULL, used REAL);
CREATE TABLE IF NOT EXISTS retired (name TEXT PRIMARY KEY, at REAL NOT NULL);
"""


class LinkGone(Exception):
    """The link was used, revoked, has expired, or never was."""


class NameTaken(Exception):
    """Someone has, or had, the name."""


@dataclass(frozen=True)
class Account:
    """One who may sign in; `hub_key` binds the account to one user of the Hub for ever, whatever is renamed."""

    name: str
    password: str | None
    hub_key: str | None
    created: float


@dataclass(frozen=True)
class Link:
    """A one-time link: who it is for, and what it does."""

    id: int
    kind: Kind
    name: str | None
    groups: list[str]
    made_by: str | None
    created: float
    expires: float


class Accounts:
    """The accounts of one file; every call is a transaction of its own, so any process may use it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def _db(self) -> Generator[sqlite3.Connection]:
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Made by us with its mode: SQLite would make it readable, and its journal takes the mode of the file.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        db = sqlite3.connect(self.path, timeout=20, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                db.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}PRAGMA user_version=1;COMMIT")
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        finally:
            db.close()

    # --- people
    def users(self) -> list[Account]:
        """All accounts, the oldest first."""
        with self._db() as db:
            return [_account(row) for row in db.execute("SELECT * FROM users ORDER BY created, name")]

    def user(self, name: str) -> Account | None:
        """The account of a normalised name."""
        with self._db() as db:
            return _one(db.execute("SELECT * FROM users WHERE name = ?", (name,)).fetchone())

    def by_key(self, hub_key: str) -> Account | None:
        """The account that belongs to a user of the Hub."""
        with self._db() as db:
            return _one(db.execute("SELECT * FROM users WHERE hub_key = ?", (hub_key,)).fetchone())

    def rename(self, old: str, new: str) -> None:
        """Follows the Hub's renaming. Raises `NameTaken`."""
        with self._db() as db:
            if db.execute("SELECT 1 FROM users WHERE name = ?", (new,)).fetchone():
                raise NameTaken(new)
            db.execute("UPDATE users SET name = ? WHERE name = ?", (new, old))
            db.execute("INSERT OR REPLACE INTO retired VALUES (?, ?)", (old, time.time()))

    def bind(self, name: str, hub_key: str) -> None:
        """Binds an account to a user of the Hub."""
        with self._db() as db:
            db.execute("UPDATE users SET hub_key = NULL WHERE hub_key = ? AND name != ?", (hub_key, name))
            db.execute("UPDATE users SET hub_key = ? WHERE name = ?", (hub_key, name))

    def set_password(self, name: str, stored: str) -> None:
        """Changes what is kept of a password."""
        with self._db() as db:
            db.execute("UPDATE users SET password = ? WHERE name = ?", (stored, name))

    def remove(self, name: str) -> None:
        """Takes an account away, and its open links; the name is not given to another by chance."""
        with self._db() as db:
            db.execute("DELETE FROM users WHERE name = ?", (name,))
            db.execute("DELETE FROM links WHERE name = ? AND used IS NULL", (name,))
            db.execute("INSERT OR REPLACE INTO retired VALUES (?, ?)", (name, time.time()))

    def retired(self, name: str) -> bool:
        """Whether someone had the name before; a home of theirs may still be there."""
        with self._db() as db:
            return db.execute("SELECT 1 FROM retired WHERE name = ?", (name,)).fetchone() is not None

    # --- links
    def make_link(
        self,
        kind: Kind,
        name: str | None = None,
        groups: list[str] | None = None,
        made_by: str | None = None,
        lifetime: float = HOUR,
        now: float | None = None,
    ) -> str:
        """The token of a new link. From the command line only the newest one counts."""
        now = time.time() if now is None else now
        token = secrets.token_urlsafe(32)
        with self._db() as db:
            if made_by is None:
                db.execute("DELETE FROM links WHERE made_by IS NULL AND used IS NULL")
            db.execute("DELETE FROM links WHERE expires < ?", (now - WEEK,))
            db.execute(
                "INSERT INTO links (digest, kind, name, groups, made_by, created, expires) VALUES (?,?,?,?,?,?,?)",
                (_digest(token), kind, name, json.dumps(groups or []), made_by, now, now + lifetime),
            )
        return token

    def link(self, token: str, now: float | None = None) -> Link:
        """What a token opens, without using it up. Raises `LinkGone`."""
        with self._db() as db:
            return _valid(db, token, time.time() if now is None else now)

    def open_links(self, now: float | None = None) -> list[Link]:
        """Invitations and links that administrators made and nobody used, the newest first."""
        now = time.time() if now is None else now
        with self._db() as db:
            query = "SELECT * FROM links WHERE used IS NULL AND expires > ? AND made_by IS NOT NULL ORDER BY id DESC"
            return [_link(row) for row in db.execute(query, (now,))]

    def revoke(self, link_id: int) -> None:
        """Makes an unused link worthless; no error if it already is."""
        with self._db() as db:
            db.execute("DELETE FROM links WHERE id = ? AND used IS NULL", (link_id,))

    def accept(self, token: str, name: str, stored: str, now: float | None = None) -> Link:
        """Uses a link up and makes the account, both or neither. Raises `LinkGone`, `NameTaken`."""
        now = time.time() if now is None else now
        with self._db() as db:
            link = _valid(db, token, now)
            if link.kind == SIGN_IN or link.name not in (None, name):
                raise LinkGone
            if db.execute("SELECT 1 FROM users WHERE name = ?", (name,)).fetchone():
                raise NameTaken(name)
            if link.name is None and db.execute("SELECT 1 FROM retired WHERE name = ?", (name,)).fetchone():
                raise NameTaken(name)
            db.execute("INSERT INTO users VALUES (?, ?, NULL, ?)", (name, stored, now))
            db.execute("DELETE FROM retired WHERE name = ?", (name,))
            db.execute("UPDATE links SET used = ? WHERE id = ?", (now, link.id))
            return link

    def use(self, token: str, stored: str | None = None, now: float | None = None) -> Link:
        """Uses a sign-in link up, with a new password if one is given. Raises `LinkGone`."""
        now = time.time() if now is None else now
        with self._db() as db:
            link = _valid(db, token, now)
            if link.kind != SIGN_IN or not db.execute("SELECT 1 FROM users WHERE name = ?", (link.name,)).fetchone():
                raise LinkGone
            if stored is not None:
                db.execute("UPDATE users SET password = ? WHERE name = ?", (stored, link.name))
            db.execute("UPDATE links SET used = ? WHERE id = ?", (now, link.id))
            return link


def _valid(db: sqlite3.Connection, token: str, now: float) -> Link:
    row = db.execute("SELECT * FROM links WHERE digest = ?", (_digest(token),)).fetchone()
    if row is None or row["used"] is not None or row["expires"] <= now:
        raise LinkGone
    link = _link(row)
    if link.kind == FIRST and db.execute("SELECT 1 FROM users").fetchone():
        raise LinkGone
    return link


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _one(row: Any) -> Account | None:
    return None if row is None else _account(row)


def _account(row: Any) -> Account:
    return Account(row["name"], row["password"], row["hub_key"], row["created"])


def _link(row: Any) -> Link:
    groups = [str(g) for g in json.loads(row["groups"])]
    return Link(row["id"], row["kind"], row["name"], groups, row["made_by"], row["created"], row["expires"])
