"""The desk finds orders by the beginning of their id, without regard to the case of ASCII letters."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0007", "0006", None, None
NAME = "ix_decisions_folded_id"


def upgrade() -> None:
    folded = "lower(order_id)" if op.get_bind().dialect.name == "sqlite" else 'lower(order_id COLLATE "C")'
    op.create_index(NAME, "decisions", [sa.text(folded), "id"])


def downgrade() -> None:
    op.drop_index(NAME, "decisions")
