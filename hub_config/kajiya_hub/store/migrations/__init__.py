"""The steps from each earlier schema to this one, and how they are run: from the package, without files to configure.

Imported only where there is something to do, as Alembic takes a while to import.
"""

from pathlib import Path
from typing import Any

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from kajiya.errors import StoreNewer


def script() -> ScriptDirectory:
    """The migrations that this Kajiya knows."""
    return ScriptDirectory(Path(__file__).parent)


def migrate(connection: Connection, to: str = "head") -> None:
    """Brings the store to a schema, within the connection's transaction.

    Raises `StoreNewer` where the store has a schema that this Kajiya does not know.
    """
    scripts = script()
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None and found not in {r.revision for r in scripts.walk_revisions()}:
        raise StoreNewer(found=found, known=scripts.get_current_head())

    def steps(revision: Any, _: Any) -> Any:
        return scripts._upgrade_revs(to, revision)  # as alembic.command.upgrade does

    # One transaction around all steps is ours, where the database's DDL takes part in transactions.
    context = MigrationContext.configure(connection, opts={"fn": steps, "transaction_per_migration": False})
    with Operations.context(context):
        context.run_migrations()
