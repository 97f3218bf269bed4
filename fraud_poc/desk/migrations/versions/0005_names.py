"""Columns get the names of the glossary: a case has a review priority, a label entry what it asserts."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0005", "0004", None, None
COLUMNS = [("cases", "urgency", "review_priority"), ("labels", "said", "asserted")]  # table, before, after


def rename(table: str, before: str, after: str) -> None:
    op.execute(f"ALTER TABLE {table} RENAME COLUMN {before} TO {after}")


def rename_index(before: str, after: str, column: str) -> None:
    op.drop_index(before, "cases")
    op.create_index(after, "cases", ["status", sa.text(f"{column} DESC"), "decision_id"])


def upgrade() -> None:
    for table, before, after in COLUMNS:
        rename(table, before, after)
    rename_index("ix_cases_status_urgency", "ix_cases_status_priority", "review_priority")


def downgrade() -> None:
    for table, before, after in COLUMNS:
        rename(table, after, before)
    rename_index("ix_cases_status_priority", "ix_cases_status_urgency", "urgency")
