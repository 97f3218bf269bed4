"""Labels say what kind of assertion they are and who made it; cases say which one closed them."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0004", "0003", None, None
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
CLOSED = (
    "UPDATE cases SET source = 'analyst', assertion = (\n"
    "    SELECT labels.position FROM labels WHERE labels.decision_id = cases.decision_id AND labels.source = 'analyst' "
    "ORDER BY labels.id DESC LIMIT 1)\n"
    "    WHERE status <> 'open' AND EXISTS (SELECT 1 FROM labels WHERE labels.decision_id = cases.decision_id "
    "AND labels.source = 'analyst')"
)


def upgrade() -> None:
    op.add_column("labels", sa.Column("kind", sa.Text, nullable=False, server_default="assert"))
    op.add_column("labels", sa.Column("retracts", NUMBER))
    op.add_column("labels", sa.Column("actor", sa.Text, nullable=False, server_default=""))
    for column in (
        sa.Column("log", sa.Text),
        sa.Column("position", NUMBER),
        sa.Column("assertion", NUMBER),
        sa.Column("source", sa.Text),
    ):
        op.add_column("cases", column)
    op.execute(CLOSED)


def downgrade() -> None:
    for table, columns in (
        ("cases", ("source", "assertion", "position", "log")),
        ("labels", ("actor", "retracts", "kind")),
    ):
        for column in columns:
            op.drop_column(table, column)
