"""Sums behind the trends of the desk, and the indexes of its pages."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0003", "0002", None, None
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
INDEXES = {  # name -> table, columns
    "ix_cases_queue": (
        "cases",
        ["status", sa.text("urgency DESC"), "decision_id", "band", "action", "amount", "opened", "customer"],
    ),
    "ix_cases_customer": (
        "cases",
        ["status", "customer", sa.text("urgency DESC"), "decision_id", "band", "action", "amount", "opened"],
    ),
    "ix_cases_closed": ("cases", ["status", sa.text("closed DESC"), "decision_id", "band"]),
    "ix_cases_opened": ("cases", ["status", "opened"]),
    "ix_decisions_customer_time": ("decisions", ["customer", sa.text("time DESC"), sa.text("id DESC")]),
}


def upgrade() -> None:
    op.create_table(
        "outcomes",
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("band", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("bucket", sa.Integer, nullable=False),
        *[sa.Column(name, NUMBER, nullable=False) for name in ("events", "known", "frauds", "amount", "fraud_amount")],
        sa.PrimaryKeyConstraint("day", "band", "action", "bucket", name="pk_outcomes"),
    )
    for name, (table, columns) in INDEXES.items():
        op.create_index(name, table, columns)


def downgrade() -> None:
    for name, (table, _) in INDEXES.items():
        op.drop_index(name, table)
    op.drop_table("outcomes")
