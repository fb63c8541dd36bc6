"""Snapshots, their names, what they are made of, and what was sent for them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "snapshots",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("environment", sa.String(length=64), nullable=False),
        sa.Column("base", sa.String(length=71), nullable=True),
        sa.Column("layers", sa.JSON(), nullable=False),
        sa.Column("content", sa.String(length=71), nullable=False),
        sa.Column("state", sa.String(length=71), nullable=False),
        sa.Column("interpreter", sa.JSON(), nullable=False),
        sa.Column("python", sa.String(length=64), nullable=False),
        sa.Column("packages", sa.JSON(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("added", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshots")),
    )
    op.create_index(op.f("ix_snapshots_owner_digest"), "snapshots", ["owner", "digest"], unique=True)
    op.create_index(op.f("ix_snapshots_owner_content"), "snapshots", ["owner", "content"], unique=True)
    op.create_index(op.f("ix_snapshots_owner_id"), "snapshots", ["owner", "id"], unique=False)
    op.create_index(op.f("ix_snapshots_digest"), "snapshots", ["digest"], unique=False)
    op.create_index(op.f("ix_snapshots_owner_base"), "snapshots", ["owner", "base"], unique=False)
    op.create_table(
        "snapshot_names",
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("snapshot", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(
            ["snapshot"], ["snapshots.id"], name=op.f("fk_snapshot_names_snapshot_snapshots"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("owner", "name", name=op.f("pk_snapshot_names")),
    )
    op.create_index(op.f("ix_snapshot_names_snapshot"), "snapshot_names", ["snapshot"], unique=False)
    op.create_table(
        "snapshot_blobs",
        sa.Column("snapshot", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(
            ["snapshot"], ["snapshots.id"], name=op.f("fk_snapshot_blobs_snapshot_snapshots"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("snapshot", "digest", name=op.f("pk_snapshot_blobs")),
    )
    op.create_index(op.f("ix_snapshot_blobs_owner_digest"), "snapshot_blobs", ["owner", "digest"], unique=False)
    op.create_table(
        "uploads",
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("owner", "digest", name=op.f("pk_uploads")),
    )
