"""Timelines of the live log that the decision writer has read, and what of them the store has lost."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0008", "0007", None, None
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "timelines",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("log", sa.Text, nullable=False),
        sa.Column("start", NUMBER, nullable=False),
        sa.Column("position", NUMBER, nullable=False),
        sa.Column("lost_from", NUMBER),
        sa.Column("found", NUMBER),
        sa.UniqueConstraint("log", name="uq_timelines_log"),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    op.drop_table("timelines")
