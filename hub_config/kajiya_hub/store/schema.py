"""The tables, as this Kajiya wants them; the migrations lead there, and a test compares the two."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

HEAD = "0002"
"""The last migration, here so that an up to date store opens without importing Alembic."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Times are UTC seconds as floats: they sort and compare alike in every database.
jobs = Table(
    "jobs",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("owner", String(255), nullable=False),
    Column("name", Text, nullable=False),
    Column("notebook", Text, nullable=False),
    Column("notebook_sha256", String(64), nullable=False),
    Column("search", Text, nullable=False),
    Column("files", JSON, nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("profile", String(64), nullable=False),
    Column("options", JSON, nullable=False),
    Column("cpu", Float(53), nullable=False),
    Column("memory", BigInteger, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("gpu_kind", Text),
    Column("environment", JSON, nullable=False),
    Column("env", JSON, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("time_limit", Integer),
    Column("retries", JSON, nullable=False),
    Column("results_wanted", JSON, nullable=False),
    Column("again_of", String(16)),
    Column("idempotency_key", String(255)),
    Column("request_hash", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", JSON(none_as_null=True)),
    Column("position", Integer),
    Column("progress", JSON, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("not_before", Float(53), nullable=False),
    Column("submitted_at", Float(53), nullable=False),
    Column("started_at", Float(53)),
    Column("ended_at", Float(53)),
    Column("stop_requested_at", Float(53)),
    Column("stop_by", Text, nullable=False),
    Index(None, "owner", "idempotency_key", unique=True),
    Index(None, "seq", unique=True),
    Index(None, "owner", "seq"),
    Index(None, "owner", "id"),
    # A text is looked for in these two alone, without a look at the rows.
    Index(None, "owner", "id", "search"),
    Index(None, "id", "search"),
    Index(None, "owner", "status", "id"),
    Index(None, "owner", "profile", "id"),
    Index(None, "status", "id"),
    Index(None, "profile", "id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job", String(16), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("status", String(16), nullable=False),
    Column("state", JSON(none_as_null=True)),
    Column("ending", String(32)),
    Column("exit_code", Integer),
    Column("reason", JSON(none_as_null=True)),
    Column("usage", JSON(none_as_null=True)),
    Column("began_at", Float(53), nullable=False),
    Column("started_at", Float(53)),
    Column("ended_at", Float(53)),
    Index(None, "ending"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("job", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("valid", Boolean, nullable=False),
    ForeignKeyConstraint(["job", "attempt"], ["attempts.job", "attempts.number"], ondelete="CASCADE"),
    Index(None, "job", "attempt"),
)

results = Table(
    "results",
    metadata,
    Column("job", String(16), nullable=False, primary_key=True),
    Column("attempt", Integer, nullable=False, primary_key=True),
    Column("path", Text, nullable=False, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    ForeignKeyConstraint(["job", "attempt"], ["attempts.job", "attempts.number"], ondelete="CASCADE"),
)

# One row a counter. The change number is taken from here in the writing transaction, which keeps its row until the
# commit: so numbers grow in the order of commits, also with several writers.
counters = Table(
    "counters",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

# One row an owner: two owners of the same environment have the same image, each by a row of their own. The owner "" is
# this Kajiya itself, whose snapshots are what everybody's environments begin with.
snapshots = Table(
    "snapshots",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("owner", String(255), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("environment", String(64), nullable=False),
    Column("base", String(71)),
    Column("layers", JSON, nullable=False),
    Column("content", String(71), nullable=False),
    Column("state", String(71), nullable=False),
    Column("interpreter", JSON, nullable=False),
    Column("python", String(64), nullable=False),
    Column("packages", JSON, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("added", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
    Column("created_at", Float(53), nullable=False),
    Index(None, "owner", "digest", unique=True),
    Index(None, "owner", "content", unique=True),
    Index(None, "owner", "id"),
    Index(None, "digest"),
    Index(None, "owner", "base"),
)

snapshot_names = Table(
    "snapshot_names",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("snapshot", String(16), ForeignKey("snapshots.id", ondelete="CASCADE"), nullable=False),
    Index(None, "snapshot"),
)

# What an owner's snapshots are made of, and what an owner has sent: nobody reads or uses a blob by its digest alone.
snapshot_blobs = Table(
    "snapshot_blobs",
    metadata,
    Column("snapshot", String(16), ForeignKey("snapshots.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", String(71), primary_key=True),
    Column("owner", String(255), nullable=False),
    Index(None, "owner", "digest"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("digest", String(71), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("sent_at", Float(53), nullable=False),
)
