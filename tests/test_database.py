"""The database: the same in SQLite and in PostgreSQL, and up to date whoever opens it."""

import importlib
import json
import pkgutil
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from support.waiting import LONG

import fraud_poc.desk
import fraud_poc.service.keys  # noqa: F401  adds its table
from fraud_poc.core.database import (
    add_up,
    alembic_config,
    checkpoints,
    is_current,
    make_engine,
    metadata,
    migrate,
    new_ids,
    open_database,
    replace_rows,
    writing,
)
from fraud_poc.core.settings import load_settings
from fraud_poc.desk.tables import cases, decisions, labels, links, scores

for found in pkgutil.iter_modules(fraud_poc.desk.__path__):
    importlib.import_module(f"fraud_poc.desk.{found.name}")  # each module adds its tables


@pytest.fixture
def settings(root, tmp_path):
    return load_settings(
        root / "config" / "orders.toml", {"batch.folder": str(tmp_path / "orders"), "database.url": ""}
    )


@pytest.fixture
def engine(settings, database_url):
    engine = open_database(settings, database_url)
    yield engine
    engine.dispose()


def decision(**more) -> dict:
    return {
        "log": "e",
        "position": 1,
        "order_id": "o-1",
        "id_key": -5,
        "time": 1_700_000_000_000,
        "decided": 1_700_000_000_001,
        "amount": 95_000,
        "score": 0.5,
        "probability": 0.25,
        "band": "high",
        "action": "block",
        "loss": 2**40,
        "customer": "c-1",
        "entities": {"customer_id": "new"},
        "body": "{}",
        "vector": b"\0\1",
        "model": "m",
        "policy": "p",
        "feature_table": "t",
        "reasons": None,
        "took_us": 900,
    } | more


@pytest.mark.filterwarnings("ignore:.*expression-based index")  # of SQLite, whose SQL is compared below
def test_migrations_make_what_the_modules_describe(engine, tmp_path):
    seen = lambda thing, name, kind, reflected, other: (
        kind != "index" or engine.dialect.name != "sqlite"
    )  # Alembic does not see an order of SQLite's indexes
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"include_object": seen}), metadata) == []
    if engine.dialect.name != "sqlite":
        return
    described = make_engine(sa.make_url(f"sqlite:///{tmp_path}/described.sqlite"))
    metadata.create_all(described)
    indexes = []
    for one in (engine, described):
        with one.connect() as connection:
            indexes.append(
                set(
                    connection.execute(
                        sa.text("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
                    ).scalars()
                )
            )
    described.dispose()
    assert indexes[0] == indexes[1]


def test_primary_keys_are_as_described(engine):
    "Alembic compares columns and indexes, and no primary keys."
    for name, table in metadata.tables.items():
        assert sa.inspect(engine).get_pk_constraint(name)["constrained_columns"] == [
            column.name for column in table.primary_key
        ], name


def test_migrations_go_back_and_forth(engine):
    with writing(engine) as connection:
        command.downgrade(alembic_config(connection), "base")
    assert set(sa.inspect(engine).get_table_names()) == {"alembic_version"} and not is_current(engine)
    migrate(engine)
    assert is_current(engine)


def test_many_open_an_empty_database_at_once(settings, empty_database_url):
    engines, failed = [], []

    def open_it():
        try:
            engines.append(open_database(settings, empty_database_url))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine in engines:
        engine.dispose()
    assert failed == [] and len(engines) == 12


def test_a_newer_database_is_left_alone(settings, engine, database_url):
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ValueError, match="revision 9999, and this version knows 0008"):
        open_database(settings, database_url)


def test_rows_come_back_as_they_were(engine):
    with writing(engine) as connection:
        (number,) = new_ids(connection, decisions, 1)
        row = decision(
            id=number,
            customer="Zoë 🦊",
            reasons=[{"feature": "x", "value": None, "contribution": -0.5, "words": "y"}],
            body='{"x": "\\u0000"}',
        )
        connection.execute(sa.insert(decisions), [row])
    with engine.connect() as connection:
        assert dict(connection.execute(sa.select(decisions)).one()._mapping) == row


def test_missing_reasons_are_null_and_ids_are_counted(engine):
    with writing(engine) as connection:
        connection.execute(sa.insert(decisions), [decision(position=n) for n in (1, 2)])
    with writing(engine) as connection:
        assert connection.execute(sa.select(sa.func.count()).where(decisions.c.reasons.is_(None))).scalar() == 2
        assert new_ids(connection, decisions, 3) == [3, 4, 5]
    with writing(engine) as connection:
        connection.execute(sa.insert(decisions), [decision(position=3)])
    with engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count(decisions.c.id.distinct()))).scalar() == 3


def test_what_hangs_on_a_decision_goes_with_it_but_labels_stay(engine):
    with writing(engine) as connection:
        (number,) = new_ids(connection, decisions, 1)
        connection.execute(sa.insert(decisions), [decision(id=number)])
        connection.execute(sa.insert(links), [{"decision_id": number, "entity": "email", "key": -1}])
        connection.execute(
            sa.insert(cases),
            [
                {
                    "decision_id": number,
                    "status": "open",
                    "opened": 1,
                    "note": "",
                    "review_priority": 1.5,
                    "band": "high",
                    "action": "block",
                    "amount": 5,
                    "customer": "c-1",
                    "time": 1,
                }
            ],
        )
        connection.execute(
            sa.insert(labels),
            [
                {
                    "log": "e",
                    "position": 2,
                    "order_id": "o-1",
                    "decision_id": number,
                    "asserted": 1,
                    "label": 1,
                    "previous": -1,
                    "source": "analyst",
                    "known": 1,
                    "noted": 2,
                    "note": "",
                    "by": "k",
                }
            ],
        )
    with writing(engine) as connection:
        connection.execute(sa.delete(decisions))
    with engine.connect() as connection:
        assert [
            connection.execute(sa.select(sa.func.count()).select_from(table)).scalar()
            for table in (links, cases, labels)
        ] == [0, 0, 1]
        assert connection.execute(sa.select(labels.c.decision_id)).scalar() is None


@pytest.mark.parametrize(
    "table, rows",
    [
        (decisions, [decision(), decision()]),
        (decisions, [decision(score=None)]),
        (links, [{"decision_id": 99, "entity": "email", "key": 1}]),
    ],
)
def test_rows_that_cannot_be_are_refused(engine, table, rows):
    with pytest.raises(sa.exc.IntegrityError), writing(engine) as connection:
        connection.execute(sa.insert(table), rows)
    with engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() == 0


def test_rollups_are_added_up_by_many_at_once(engine):
    def add():
        for _ in range(10):
            with writing(engine) as connection:
                add_up(connection, scores, [{"day": 1, "bucket": bucket, "events": 2} for bucket in (3, 1, 2)])

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with writing(engine) as connection:
        assert sorted(connection.execute(sa.select(scores)).all()) == [(1, bucket, 60) for bucket in (1, 2, 3)]
        for position in (4, 5):
            replace_rows(connection, checkpoints, [{"name": "x", "log": "e", "position": position}])
        assert connection.execute(sa.select(checkpoints)).all() == [("x", "e", 5)]


def test_readers_do_not_wait_for_a_writer(engine):
    with writing(engine) as connection:
        connection.execute(sa.insert(decisions), [decision()])
        with engine.connect() as other:
            assert other.execute(sa.select(sa.func.count()).select_from(decisions)).scalar() == 0


DIES = """
import json, os, sys
import sqlalchemy as sa
from fraud_poc.core.settings import Settings
from fraud_poc.core.database import open_database, writing
from fraud_poc.desk.tables import decisions
row = json.loads(sys.argv[3])
with writing(open_database(Settings.model_validate_json(sys.argv[1]), sys.argv[2])) as connection:
    connection.execute(sa.insert(decisions), [row | {"vector": row["vector"].encode()}])
    os._exit(9)
"""


def test_a_writer_that_dies_leaves_nothing_behind(settings, engine, database_url):
    row = decision() | {"vector": decision()["vector"].decode()}
    assert (
        subprocess.run(
            [sys.executable, "-c", DIES, settings.model_dump_json(), database_url, json.dumps(row)], timeout=LONG
        ).returncode
        == 9
    )
    with writing(engine) as connection:
        connection.execute(sa.insert(decisions), [decision()])


def test_a_folder_that_cannot_hold_the_file_is_named(settings):
    with pytest.raises(OSError, match="/dev/full"):
        open_database(settings, "sqlite:////dev/full/desk.sqlite")


def test_an_address_that_cannot_be_used_is_refused_without_the_password(settings, tmp_path):
    for url in ("mysql://ann:secret@db/x", "sqlite://", "what:secret", "postgresql://ann:secret@db:port/x"):
        with pytest.raises(ValueError, match="database.url") as caught:
            open_database(settings, url)
        assert "secret" not in str(caught.value)
    with pytest.raises(ConnectionError, match="set database.url") as caught:
        open_database(settings, f"postgresql://ann:secret@/x?host={tmp_path}")
    assert "secret" not in str(caught.value)
