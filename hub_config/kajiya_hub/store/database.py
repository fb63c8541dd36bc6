"""Connections and transactions. The only place that knows which database it is."""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from kajiya.errors import DiskFull
from kajiya_hub.store.schema import HEAD

BUSY_SECONDS = 30
READERS = 8


class Database:
    """One database: a single writer at a time, and readers that never wait for it.

    `url` is an SQLAlchemy URL, or a path, which means SQLite. Raises `StoreNewer`, `DiskFull`.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url if "://" in url else f"sqlite:///{Path(url).absolute()}")
        self.path = Path(parsed.database or "")
        self._mutex = threading.RLock()
        if parsed.get_backend_name() == "sqlite":
            self._writer, self._reader = _sqlite(parsed.render_as_string(hide_password=False), self.path)
        else:
            self._writer = self._reader = create_engine(parsed, pool_size=READERS, pool_pre_ping=True)
        try:
            self._upgrade()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives back all connections."""
        self._reader.dispose()
        self._writer.dispose()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A durable transaction; short, as all other writers wait. Raises `DiskFull`, and then nothing was changed."""
        with self._mutex, self._full_disk(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view that blocks nobody."""
        with self._full_disk(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def _full_disk(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as e:
            if _is_full(e.orig):
                raise DiskFull(path=str(self.path.parent)) from e
            raise

    def _upgrade(self) -> None:
        try:
            with self.read() as connection:
                if connection.scalar(text("SELECT version_num FROM alembic_version")) == HEAD:
                    return
        except (OperationalError, ProgrammingError):
            pass  # an empty database has no such table
        from kajiya_hub.store.migrations import migrate

        with self.write() as connection:
            migrate(connection)


def _sqlite(url: str, path: Path) -> tuple[Engine, Engine]:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    # Transactions are begun by the two statements below: the driver's own begin is deferred, so that two writers could
    # both read first and then one of them fail.
    arguments = {"check_same_thread": False, "timeout": BUSY_SECONDS, "isolation_level": None}
    writer = create_engine(url, pool_size=1, max_overflow=0, pool_timeout=BUSY_SECONDS, connect_args=arguments)
    reader = create_engine(url, pool_size=READERS, max_overflow=READERS * 4, connect_args=arguments)
    _prepare(writer, "BEGIN IMMEDIATE", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
    _prepare(reader, "BEGIN", "query_only=ON")
    return writer, reader


def _prepare(engine: Engine, begin: str, *pragmas: str) -> None:
    def connect(connection: sqlite3.Connection, _: Any) -> None:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin) and None)


def _is_full(error: BaseException | None) -> bool:
    # SQLITE_FULL; PostgreSQL's disk_full is 53100 (Appendix A, "PostgreSQL Error Codes").
    return getattr(error, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(error, "sqlstate", "") == "53100"


Hook = Callable[[], None]
