"""Decisions, their links and cases, labels, rollups, and how far the log has been written."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0001", None, None, None
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def text(name: str) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False)


def number(name: str, kind=NUMBER) -> sa.Column:
    return sa.Column(name, kind, nullable=False)


def upgrade() -> None:
    op.create_table(
        "decisions",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        text("log"),
        number("position"),
        text("order_id"),
        number("id_key"),
        number("time"),
        number("decided"),
        number("amount"),
        number("score", sa.Double),
        number("probability", sa.Double),
        text("band"),
        text("action"),
        number("loss"),
        text("customer"),
        sa.Column("entities", sa.JSON, nullable=False),
        text("body"),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        text("model"),
        text("policy"),
        text("feature_table"),
        sa.Column("reasons", sa.JSON),
        number("took_us"),
        sa.PrimaryKeyConstraint("id", name="pk_decisions"),
        sa.UniqueConstraint("log", "position", name="uq_decisions_log_position"),
        sqlite_autoincrement=True,
    )
    for column in ("order_id", "decided", "customer"):
        op.create_index(f"ix_decisions_{column}", "decisions", [column])
    op.create_table(
        "links",
        number("decision_id"),
        text("entity"),
        number("key"),
        sa.PrimaryKeyConstraint("decision_id", "entity", name="pk_links"),
        sa.ForeignKeyConstraint(["decision_id"], ["decisions.id"], ondelete="CASCADE", name="fk_links_decision_id"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_links_entity_key", "links", ["entity", "key", "decision_id"])
    op.create_table(
        "cases",
        number("decision_id"),
        text("status"),
        number("opened"),
        sa.Column("closed", NUMBER),
        sa.Column("closed_by", sa.Text),
        text("note"),
        number("urgency", sa.Double),
        text("band"),
        text("action"),
        number("amount"),
        text("customer"),
        number("time"),
        sa.PrimaryKeyConstraint("decision_id", name="pk_cases"),
        sa.ForeignKeyConstraint(["decision_id"], ["decisions.id"], ondelete="CASCADE", name="fk_cases_decision_id"),
    )
    op.create_index("ix_cases_status_urgency", "cases", ["status", sa.text("urgency DESC"), "decision_id"])
    op.create_table(
        "labels",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        text("log"),
        number("position"),
        text("order_id"),
        sa.Column("decision_id", NUMBER),
        number("said", sa.Integer),
        number("label", sa.Integer),
        number("previous", sa.Integer),
        text("source"),
        number("known"),
        number("noted"),
        text("note"),
        text("by"),
        sa.PrimaryKeyConstraint("id", name="pk_labels"),
        sa.ForeignKeyConstraint(["decision_id"], ["decisions.id"], ondelete="SET NULL", name="fk_labels_decision_id"),
        sa.UniqueConstraint("log", "position", name="uq_labels_log_position"),
        sqlite_autoincrement=True,
    )
    for column in ("order_id", "decision_id"):
        op.create_index(f"ix_labels_{column}", "labels", [column])
    op.create_table(
        "days",
        number("day", sa.Integer),
        text("band"),
        text("action"),
        *map(number, ("events", "amount", "frauds", "fraud_amount", "saved")),
        sa.PrimaryKeyConstraint("day", "band", "action", name="pk_days"),
    )
    op.create_table(
        "scores",
        number("day", sa.Integer),
        number("bucket", sa.Integer),
        number("events"),
        sa.PrimaryKeyConstraint("day", "bucket", name="pk_scores"),
    )
    op.create_table(
        "writers", text("name"), text("log"), number("position"), sa.PrimaryKeyConstraint("name", name="pk_writers")
    )


def downgrade() -> None:
    for table in ("writers", "scores", "days", "labels", "cases", "links", "decisions"):
        op.drop_table(table)
