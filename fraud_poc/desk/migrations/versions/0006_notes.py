"""Notes that reviewers write without deciding."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0006", "0005", None, None
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "notes",
        sa.Column("id", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("decision_id", NUMBER, sa.ForeignKey("decisions.id", ondelete="CASCADE"), nullable=False),
        sa.Column("at", NUMBER, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_notes_decision_id", "notes", ["decision_id"])


def downgrade() -> None:
    op.drop_table("notes")
