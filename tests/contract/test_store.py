"""The store's contract on SQLite, and what only SQLite can show: files, schemas, a full disk, a kill."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kajiya.errors import DiskFull, StoreNewer
from kajiya.types import Environment, Resources, Status
from kajiya_hub.store import schema
from kajiya_hub.store.ids import is_id, new_id, time_prefix
from kajiya_hub.store.rows import NewJob
from kajiya_hub.store.store import Store
from kajiya_hub.testing.store_contract import StoreContract


class TestSqlite(StoreContract):
    @pytest.fixture
    def url(self, tmp_path):
        return f"sqlite:///{tmp_path / '鍛冶 屋%20' / 'kajiya.sqlite'}"


def new(**changes):
    values = {
        "id": new_id(),
        "owner": "ann",
        "name": "n",
        "notebook": "n.ipynb",
        "notebook_sha256": "0" * 64,
        "profile": "small",
        "resources": Resources(),
        "environment": Environment(),
    }
    return NewJob(**(values | changes))


def test_the_file_is_private_and_durable(tmp_path):
    store = Store(str(tmp_path / "k.sqlite"))
    assert (tmp_path / "k.sqlite").stat().st_mode & 0o777 == 0o600
    with store._database.write() as c:
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
            assert c.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value
    store.close()


def test_readers_do_not_wait_for_a_writer(tmp_path):
    store = Store(str(tmp_path / "k.sqlite"))
    store.submit(new())
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with store._database.write():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(30)
    try:
        assert store.jobs().total == 1 and store.latest_seq() == 1
    finally:
        leave.set()
        thread.join()
    store.close()


def test_a_reading_connection_can_not_write(tmp_path):
    store = Store(str(tmp_path / "k.sqlite"))
    with store._database.read() as c, pytest.raises(Exception, match="readonly"):
        c.exec_driver_sql("DELETE FROM jobs")
    store.close()


def test_two_processes_can_write_by_turns(tmp_path):
    path = tmp_path / "k.sqlite"
    one, two = Store(str(path)), Store(str(path))
    threads = [threading.Thread(target=lambda s=s: [s.submit(new()) for _ in range(20)]) for s in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.jobs().total == 40 == two.latest_seq()
    one.close()
    two.close()


def test_a_full_disk_is_said_and_loses_nothing(tmp_path):
    store = Store(str(tmp_path / "k.sqlite"))
    kept = store.submit(new())[0]
    with store._database.write() as c:
        pages = c.exec_driver_sql("PRAGMA page_count").scalar()
        c.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(DiskFull):
        for _ in range(100):
            store.submit(new(parameters={"x": "y" * 4000}))
    assert store.job(kept.id) == kept
    total = store.jobs().total
    with store._database.write() as c:
        c.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert store.submit(new())[1] and store.jobs().total == total + 1
    store.close()


def test_accepted_work_outlives_a_kill(tmp_path):
    """A process that accepts jobs is killed; every job that it said to have accepted is there."""
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from kajiya_hub.store.store import Store; from kajiya_hub.store.rows import NewJob\n"
        "from kajiya_hub.store.ids import new_id; from kajiya.types import *\n"
        "s = Store(sys.argv[1])\n"
        "while True:\n"
        "    j, _ = s.submit(NewJob(new_id(), 'a', 'n', 'n', '0', 'p', Resources(), Environment()))\n"
        "    print(j.id, flush=True)\n"
    )
    path = tmp_path / "k.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path), *sys.path], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    said = [process.stdout.readline().strip() for _ in range(25)]
    os.kill(process.pid, signal.SIGKILL)
    said += process.stdout.read().split()
    process.wait()
    store = Store(str(path))
    assert len(said) >= 25 and store.known([i for i in said if is_id(i)]) >= {i for i in said if is_id(i)}
    assert all(j.status is Status.queued for j in store.jobs(limit=500).items)
    store.close()


# --- schemas
def schema_of(path):
    with sqlite3.connect(path) as c:
        return set(c.execute("SELECT type, name, tbl_name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"))


def test_the_migrations_lead_to_the_tables(tmp_path):
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from kajiya_hub.store.migrations import script

    assert script().get_heads() == [schema.HEAD]
    store = Store(str(tmp_path / "k.sqlite"))
    with store._database.read() as c:
        assert compare_metadata(MigrationContext.configure(c), schema.metadata) == []
    store.close()


def test_every_earlier_schema_with_data_is_brought_up(tmp_path):
    """Each known schema, filled, is opened as it would be after an upgrade of Kajiya."""
    from sqlalchemy import create_engine

    from kajiya_hub.store.migrations import migrate, script

    for revision in [r.revision for r in script().walk_revisions()]:
        path = tmp_path / f"{revision}.sqlite"
        engine = create_engine(f"sqlite:///{path}")
        with engine.begin() as c:
            migrate(c, revision)
            columns = {
                "id": "j000000000000000a", "seq": 1, "owner": "ann", "name": "n", "notebook": "n", "status": "queued",
                "notebook_sha256": "0", "search": "n", "files": "[]", "parameters": '{"a": 1}', "profile": "p",
                "options": "{}", "cpu": 1, "memory": 1 << 30, "gpus": 0, "environment": "{}", "env": "{}",
                "priority": 0, "retries": "{}", "results_wanted": "[]", "request_hash": "", "progress": "{}",
                "attempt": 0, "not_before": 0, "submitted_at": 1, "stop_by": "",
            }  # fmt: skip
            columns["id"] = columns["id"][:16]
            names = ", ".join(columns)
            marks = ", ".join("?" * len(columns))
            c.exec_driver_sql("UPDATE counters SET value = 1 WHERE name = 'seq'")
            c.exec_driver_sql(f"INSERT INTO jobs ({names}) VALUES ({marks})", tuple(columns.values()))
        engine.dispose()
        store = Store(str(path))
        assert store.jobs().items[0].parameters == {"a": 1}
        assert store.submit(new())[1]
        store.close()
        fresh = tmp_path / f"fresh-{revision}.sqlite"
        Store(str(fresh)).close()
        assert schema_of(path) == schema_of(fresh)


def test_a_store_made_by_a_newer_kajiya_is_refused_untouched(tmp_path):
    path = tmp_path / "k.sqlite"
    Store(str(path)).close()
    with sqlite3.connect(path) as c:
        c.execute("UPDATE alembic_version SET version_num = '9999'")
    c.close()
    before = path.read_bytes()
    with pytest.raises(StoreNewer) as refused:
        Store(str(path))
    assert refused.value.params == {"found": "9999", "known": schema.HEAD}
    assert path.read_bytes() == before


def test_an_up_to_date_store_opens_without_alembic(tmp_path):
    path = tmp_path / "k.sqlite"
    Store(str(path)).close()
    code = "import sys; from kajiya_hub.store.store import Store; Store(sys.argv[1]); print('alembic' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "False"


def test_the_migrations_are_in_the_package():
    import kajiya_hub.store.migrations as m

    assert sorted(p.name for p in (Path(m.__file__).parent / "versions").glob("v*.py"))[0] == "v0001_first.py"


# --- ids
def test_ids_sort_by_time_and_are_safe_everywhere():
    ids = [new_id(t) for t in (0.0, 1.0, 1_700_000_000.0, 1_800_000_000.001, 4_000_000_000.0)]
    assert ids == sorted(ids) and all(is_id(i) and i.isalnum() and i == i.lower() and len(i) == 16 for i in ids)
    assert time_prefix(1_800_000_000.0) <= new_id(1_800_000_000.0) < time_prefix(1_800_000_000.01)
    assert len({new_id(5.0) for _ in range(1000)}) > 990
    for bad in ("", "j", "x" * 16, "j" + "u" * 15, "J" + "0" * 15, "j" + "0" * 16, "j../../../../../", "j" + "０" * 15):
        assert not is_id(bad)
