"""Accounts, sessions, attempts to log in, API keys, and the audit with the triggers that keep it as it is."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "0002", "0001", None, None
NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
REFUSED = "the audit only grows: its rows are neither changed nor removed"

# What SQLite refuses: the event, and when. An INSERT OR REPLACE would remove a row without firing the trigger for
# DELETE, so a row can only be added at the end
SQLITE = [
    ("audit", "UPDATE", "true"),
    ("audit", "DELETE", "true"),
    ("audit", "INSERT", "NEW.number <> (SELECT coalesce(max(number), 0) + 1 FROM audit)"),
    ("audit_head", "INSERT", "true"),
    ("audit_head", "DELETE", "true"),
    ("audit_head", "UPDATE", "NEW.length NOT IN (OLD.length, OLD.length + 1)"),
]
POSTGRESQL = [
    ("audit", "UPDATE OR DELETE", "ROW", ""),
    ("audit", "TRUNCATE", "STATEMENT", ""),
    ("audit_head", "INSERT OR DELETE", "ROW", ""),
    ("audit_head", "TRUNCATE", "STATEMENT", ""),
    ("audit_head", "UPDATE", "ROW", "WHEN (NEW.length NOT IN (OLD.length, OLD.length + 1))"),
]


def text(name: str) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False)


def number(name: str, **more) -> sa.Column:
    return sa.Column(name, NUMBER, nullable=False, **more)


def make_triggers() -> None:
    "The triggers that refuse, in either database."
    if op.get_bind().dialect.name == "sqlite":
        for table, event, when in SQLITE:
            op.execute(
                f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} WHEN {when} "
                f"BEGIN SELECT RAISE(ABORT, '{REFUSED}'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION audit_refuses() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{REFUSED}'; END $$"
    )
    for table, event, each, when in POSTGRESQL:
        name = f"{table}_no_{event.lower().replace(' ', '_')}"
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH {each} {when} EXECUTE FUNCTION audit_refuses()"
        )


def upgrade() -> None:
    op.create_table(
        "accounts",
        text("name"),
        text("password"),
        text("role"),
        number("created"),
        sa.Column("disabled", NUMBER),
        sa.PrimaryKeyConstraint("name", name="pk_accounts"),
        sa.CheckConstraint("role IN ('viewer', 'analyst', 'admin')", name="ck_accounts_role"),
    )
    op.create_table(
        "sessions",
        text("token"),
        text("account"),
        number("created"),
        number("expires"),
        text("csrf"),
        sa.PrimaryKeyConstraint("token", name="pk_sessions"),
        sa.ForeignKeyConstraint(["account"], ["accounts.name"], name="fk_sessions_account"),
    )
    op.create_index("ix_sessions_account", "sessions", ["account"])
    op.create_table(
        "attempts",
        number("number", autoincrement=True),
        text("subject"),
        number("at"),
        sa.PrimaryKeyConstraint("number", name="pk_attempts"),
    )
    op.create_index("ix_attempts_subject_at", "attempts", ["subject", "at"])
    op.create_table(
        "api_keys",
        number("number", autoincrement=True),
        text("name"),
        text("sha256"),
        text("scopes"),
        number("created"),
        text("created_by"),
        sa.Column("revoked", NUMBER),
        sa.Column("revoked_by", sa.Text),
        sa.PrimaryKeyConstraint("number", name="pk_api_keys"),
        sa.UniqueConstraint("sha256", name="uq_api_keys_sha256"),
    )
    in_use = sa.text("revoked IS NULL")
    op.create_index(
        "ix_api_keys_in_use", "api_keys", ["name"], unique=True, sqlite_where=in_use, postgresql_where=in_use
    )
    op.create_table(
        "audit",
        number("number", autoincrement=False),
        number("at"),
        *map(text, ("who", "what", "about", "detail", "previous", "hash")),
        sa.PrimaryKeyConstraint("number", name="pk_audit"),
    )
    head = op.create_table(
        "audit_head",
        number("only", autoincrement=False),
        number("length"),
        text("hash"),
        sa.PrimaryKeyConstraint("only", name="pk_audit_head"),
    )
    op.bulk_insert(head, [{"only": 1, "length": 0, "hash": "0" * 64}])
    make_triggers()


def downgrade() -> None:
    for table in ("audit_head", "audit", "api_keys", "attempts", "sessions", "accounts"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_refuses")
