"""The writer: every entry of the log in the database once, whatever happens, in SQLite and in PostgreSQL."""

import asyncio
import json
import logging
import os
import random
import signal
from functools import cache
from types import SimpleNamespace

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
import xgboost
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support.databases import settings_for
from support.waiting import LONG, ended, in_time, until, until_so

from fraud_poc.core.audit import audit, verify_audit
from fraud_poc.core.database import Checkpoint, checkpoints, open_database, read_checkpoint, unsigned, writing
from fraud_poc.core.events import COMMAND_LINE, KEY, PERSON, WAITED, Actor, key_of, system_clock
from fraud_poc.core.files import write_parquet
from fraud_poc.core.logs import JsonLines
from fraud_poc.desk import rows as rows_module
from fraud_poc.desk import writer
from fraud_poc.desk import writer_process as process_module
from fraud_poc.desk.rows import EntryReader
from fraud_poc.desk.tables import cases, days, decisions, labels, links, outcomes, scores
from fraud_poc.desk.trends import count_outcomes
from fraud_poc.desk.writer import begin_log, follow_log, remove_old, run_writer, write_entries, write_until
from fraud_poc.desk.writer_process import writer_process
from fraud_poc.features.label_history import SOURCES, LabelHistory, with_assertion, without_assertion
from fraud_poc.features.table import build_table
from fraud_poc.live.decide import DecisionRecord, pack_record
from fraud_poc.live.labels import pack_history
from fraud_poc.live.load import ARCHIVED
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import start_redis
from fraud_poc.live.redis_store import Names
from fraud_poc.live.store import ASSERT, RETRACT, AssertionRecord, Entry, MemoryStore, Meta, Write, encode_entry
from fraud_poc.model.policy import Policy, review_priority
from fraud_poc.model.reasons import explain

DAY, NOW = 86_400_000, system_clock()
COUNTED = {"decisions": decisions, "links": links, "cases": cases, "labels": labels}


@pytest.fixture
def settings(tmp_path, database_url):
    return settings_for(tmp_path / "orders", database_url)


@pytest.fixture
def engine(settings):
    engine = open_database(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def reader(settings):
    return EntryReader(
        settings,
        explain=lambda model, vectors, orders: [
            [{"feature": "x", "value": None, "contribution": 1.0, "words": "y"}] for _ in orders
        ],
    )


@cache
def domain_settings():
    return settings_for("x")


@cache
def domain():
    "Columns and feature table."
    return domain_settings().columns, build_table(domain_settings())


def order(number, amount=9_500, band="low", action="pass", score=0.01, at=NOW, when=20_000 * DAY, **changed) -> bytes:
    fields = {
        "order_id": f"o-{number}",
        "order_date": "2024-10-04T00:00:00",
        "order_amount": amount / 100,
        "customer_id": f"c-{number % 7}",
        "email": f"u{number % 7}@example.org",
        "ip_addr": f"10.0.0.{number % 50}",
        "device": f"d-{number % 9}",
        "location": "US",
    } | changed
    columns, table = domain()
    keys = tuple(key_of(str(fields[name]), b"test") if fields[name] else 0 for name in columns.hashed)
    record = DecisionRecord(
        bytes(16),
        bytes(32),
        b"\1" * 32,
        bytes.fromhex(table.hash),
        score,
        score / 2,
        score * amount / 100,
        band,
        action,
        bytes([0, 1, 2, 4]),
        np.arange(len(table.names), dtype=np.float32),
    )
    return encode_entry(
        Entry(
            "event",
            when + number,
            key_of(str(fields["order_id"]), b"test"),
            keys,
            amount=amount,
            decision=pack_record(record),
            body=json.dumps(fields).encode(),
            at=at,
            took=900,
        )
    )


class Asserted:
    "The label entries of a log: label histories and effective labels as the service would have them."

    def __init__(self):
        self.histories, self.standing, self.at = {}, {}, 0

    def label(
        self,
        number,
        fraud=1,
        source="analyst",
        at=NOW,
        note="",
        who=Actor(PERSON, "somebody"),
        day=20_000,
        retracts=None,
    ) -> bytes:
        "An assertion, or the retraction of the one with number `retracts`."
        before, priority = self.histories.get((number, day), LabelHistory()), domain_settings().labels.priority
        if retracts is None:
            item, after = (
                (SOURCES.index(source), fraud, at - 5),
                with_assertion(before, (SOURCES.index(source), fraud, at - 5), priority),
            )
        else:
            item, after = self.standing[retracts], without_assertion(before, self.standing[retracts], priority)
        self.histories[number, day], self.standing[self.at] = after, item
        self.at += 1
        body = AssertionRecord(
            f"o-{number}",
            item[1],
            SOURCES[item[0]],
            note,
            who.name,
            ASSERT if retracts is None else RETRACT,
            who.kind,
            retracts,
        )
        return encode_entry(
            Entry(
                "label",
                day * DAY + number,
                key_of(f"o-{number}", b"test"),
                (),
                label=after.label,
                previous=before.label,
                known=at - 5,
                at=at,
                decision=pack_history(after),
                body=msgspec.json.encode(body),
            )
        )


def mixed(count, seed=0) -> list[bytes]:
    "Orders of all kinds, and labels on some of them."
    rng, entries, days, asserted = random.Random(seed), [], [], Asserted()
    for _ in range(count):
        if days and rng.random() < 0.2:
            number = rng.randrange(len(days))
            entries.append(
                asserted.label(
                    number, rng.randrange(2), rng.choice(["analyst", "rule"]), NOW + len(entries), day=days[number]
                )
            )
        else:
            band, action = rng.choice([("low", "pass"), ("medium", "review"), ("high", "block"), ("medium", "pass")])
            days.append(20_000 + rng.randrange(3))
            entries.append(
                order(len(days) - 1, rng.randrange(100, 50_000), band, action, rng.random(), when=days[-1] * DAY)
            )
    return entries


def numbered(entries, first=0):
    return list(enumerate(entries, first))


def rows(engine, table, *names):
    with engine.connect() as connection:
        return [
            tuple(row)
            for row in connection.execute(sa.select(*[table.c[name] for name in names]).order_by(*table.primary_key))
        ]


def content(engine) -> dict:
    "All that the writer wrote, without the numbers that may have gaps."
    shown = {
        name: sorted(
            map(str, rows(engine, table, *[c.name for c in table.columns if c.name not in ("id", "decision_id")]))
        )
        for name, table in COUNTED.items()
    }
    return shown | {"days": rows(engine, days, *days.c.keys()), "scores": rows(engine, scores, *scores.c.keys())}


async def stored(entries, first=0, epoch="e") -> MemoryStore:
    store = MemoryStore(Meta(epoch, 1, "", {"next_seq": first}))
    for number, entry in enumerate(entries):
        await store.write(Write(b"%d" % number, b"", [], [], [], entry))
    return store


def run(store, engine, reader):
    return asyncio.run(follow_log(store, engine, reader, asyncio.Event(), to_end=True))


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_decision_is_kept_whole(engine, reader):
    at = begin_log(engine, None, "e")
    packed = order(3, 12_345, "high", "block", 0.9, email="", customer_id=42)
    assert at == Checkpoint("e", -1) and write_entries(engine, reader, at, [(7, packed)]) == Checkpoint(
        "e", 7
    ) == read_checkpoint(engine)
    with engine.connect() as connection:
        row = connection.execute(sa.select(decisions)).one()
    table = build_table(reader.settings)
    assert (row.log, row.position, row.order_id, row.customer, row.amount, row.time, row.decided) == (
        "e",
        7,
        "o-3",
        "42",
        12_345,
        20_000 * DAY + 3,
        NOW,
    )
    assert (row.score, row.probability, row.band, row.action, row.loss, row.took_us) == (
        0.9,
        0.45,
        "high",
        "block",
        round(0.9 * 12_345),
        900,
    )
    assert unsigned(row.id_key) == key_of("o-3", b"test") and json.loads(row.body)["location"] == "US"
    assert np.frombuffer(row.vector, np.float32).tolist() == list(range(len(table.names)))
    assert (row.model, row.policy, row.feature_table) == ("00" * 32, "01" * 32, table.hash) and list(row.entities) == [
        e.by for e in table.entities
    ]
    assert row.reasons == [{"feature": "x", "value": None, "contribution": 1.0, "words": "y"}]
    linked_decisions = {entity: unsigned(key) for entity, key in rows(engine, links, "entity", "key")}
    assert linked_decisions == {
        "customer_id": key_of("42", b"test"),
        "ip_addr": key_of("10.0.0.3", b"test"),
        "device": key_of("d-3", b"test"),
    }
    assert rows(engine, cases, "status", "opened", "closed", "customer", "amount") == [
        ("open", NOW, None, "42", 12_345)
    ]


def test_only_decisions_that_people_look_at_have_reasons_and_cases(engine, reader):
    entries = [
        order(1),
        order(2, band="medium", action="pass"),
        order(3, band="medium", action="review"),
        order(4, band="high", action="block"),
    ]
    write_entries(engine, reader, begin_log(engine, None, "e"), numbered(entries))
    assert [found is not None for (found,) in rows(engine, decisions, "reasons")] == [False, True, True, True]
    assert [action for (action,) in rows(engine, cases, "action")] == ["review", "block"]


def test_labels_settle_cases_and_move_the_counts(engine, reader):
    at, asserted = (
        write_entries(
            engine,
            reader,
            begin_log(engine, None, "e"),
            numbered([order(1, 10_000, "high", "block", 0.9), order(2, 10_000, "medium", "review", 0.3)]),
        ),
        Asserted(),
    )

    def then(*entries):
        nonlocal at
        at = write_entries(engine, reader, at, numbered(entries, at.position + 1))
        return {
            band: (frauds, lost, saved)
            for band, frauds, lost, saved in rows(engine, days, "band", "frauds", "fraud_amount", "saved")
        }

    cost = reader.settings.policy
    fraud = round(10_000 * (1 - cost.recovery_share) + 100 * cost.fraud_fee)
    legitimate = round(10_000 * cost.margin_share + 100 * cost.churn_cost)
    assert (
        then(asserted.label(1, 1, "rule"))["high"] == (1, 10_000, fraud)
        and rows(engine, cases, "status") == [("open",)] * 2
    )
    assert then(asserted.label(1, 1, "analyst", NOW + 1, "sure"))["high"] == (1, 10_000, fraud)
    assert rows(engine, cases, "status", "closed", "closed_by", "note", "source")[0] == (
        "flagged",
        NOW + 1,
        "somebody",
        "sure",
        "analyst",
    )
    assert then(asserted.label(1, 0, "chargeback", NOW + 2, who=Actor(KEY, "somebody")))["high"] == (0, 0, -legitimate)
    assert rows(engine, cases, "status", "closed_by", "source")[0] == ("cleared", "key somebody", "chargeback")
    assert then(asserted.label(1, 1, "analyst", NOW + 3))["high"] == (
        0,
        0,
        -legitimate,
    )  # says fraud, and the chargeback's word still counts
    assert rows(engine, cases, "status", "closed_by")[0] == ("cleared", "key somebody") and rows(
        engine, labels, "asserted", "label"
    )[-1] == (1, 0)
    assert then(asserted.label(1, retracts=2, at=NOW + 4))["high"] == (
        1,
        10_000,
        fraud,
    )  # the chargeback is taken back: the analyst's last word counts again
    assert rows(engine, cases, "status", "closed", "closed_by", "source")[0] == (
        "flagged",
        NOW + 3,
        "somebody",
        "analyst",
    )
    assert then(asserted.label(2, 0), asserted.label(99, 1))["medium"][:2] == (0, 0) and rows(engine, cases, "status")[
        1
    ] == ("cleared",)
    about = rows(engine, labels, "order_id", "decision_id")
    assert about[-1] == ("o-99", None) and [number for name, number in about if name == "o-2"] == [
        rows(engine, decisions, "id")[1][0]
    ]


def test_an_assertion_that_is_taken_back_opens_the_case_again(engine, reader):
    at, asserted = begin_log(engine, None, "e"), Asserted()

    def then(entry):
        nonlocal at
        at = write_entries(engine, reader, at, numbered([entry], at.position + 1))
        return rows(engine, cases, "status", "note")

    assert then(order(1, band="medium", action="review")) == [("open", "")] and then(
        asserted.label(1, 1, note="stolen")
    ) == [("flagged", "stolen")]
    assert then(asserted.label(1, retracts=0, at=NOW + 5)) == [("open", "")] and rows(
        engine, labels, "kind", "label", "previous"
    )[-1] == ("retract", -1, 1)
    assert {row[2:] for row in rows(engine, days, "day", "band", "frauds", "saved")} == {(0, 0)}, (
        "what the assertion had moved is moved back"
    )
    assert then(asserted.label(1, 0, at=NOW + 9, note="undone: no, this is only text")) == [
        ("cleared", "undone: no, this is only text")
    ]
    with writing(engine) as connection:
        connection.execute(
            sa.update(cases).values(status="flagged", closed=NOW + 99, note="by the desk", log="e", position=50)
        )
    assert then(asserted.label(1, retracts=2, at=NOW + 50)) == [("flagged", "by the desk")], (
        "an older entry won over a newer one"
    )


words = st.tuples(st.integers(0, 1), st.sampled_from(SOURCES), st.integers(0, 1)) | st.integers(
    0, 9
)  # order, source, label; or: that one of the assertions is taken back


@examples(max_examples=30)
@given(words=st.lists(words, min_size=1, max_size=15), batch=st.integers(1, 15))
def test_cases_and_counts_follow_from_what_stands(words, batch, tmp_path_factory):
    "Whatever is asserted and taken back: case, sums and audit are those of a plain reading of what stands."
    settings = domain_settings()
    engine = open_database(settings, f"sqlite:///{tmp_path_factory.mktemp('settled')}/desk.sqlite")
    asserted, entries, stand = Asserted(), [order(n, 10_000, "high", "block") for n in (0, 1)], {}
    for word in words:
        if isinstance(word, tuple):
            stand[asserted.at] = (word[0], word[1], word[2], f"n{asserted.at}")
            entries.append(asserted.label(word[0], word[2], word[1], NOW + asserted.at, f"n{asserted.at}"))
        elif stand:
            gone = sorted(stand)[word % len(stand)]
            entries.append(asserted.label(stand.pop(gone)[0], retracts=gone, at=NOW + asserted.at))
    at, some = begin_log(engine, None, "e"), numbered(entries)
    for start in range(0, len(some), batch):
        at = write_entries(
            engine,
            EntryReader(settings, explain=lambda model, vectors, orders: [[] for _ in orders]),
            at,
            some[start : start + batch],
        )
    frauds, cost = 0, settings.policy
    for number, (status, note) in enumerate(rows(engine, cases, "status", "note")):
        mine = [
            max(
                (one for one in stand.values() if one[:2] == (number, source)),
                key=lambda one: int(one[3][1:]),
                default=None,
            )
            for source in settings.labels.priority
        ]
        counts = next((one for one in mine if one), None)
        closes = counts if counts and counts[1] in ("chargeback", "analyst") else None
        assert (status, note) == ((("cleared", "flagged")[closes[2]], closes[3]) if closes else ("open", ""))
        frauds += bool(counts and counts[2])
    known = sum(bool([one for one in stand.values() if one[0] == number]) for number in (0, 1))
    saved = frauds * round(10_000 * (1 - cost.recovery_share) + 100 * cost.fraud_fee) - (known - frauds) * round(
        10_000 * cost.margin_share + 100 * cost.churn_cost
    )
    assert [(sum(f for (f,) in rows(engine, days, "frauds"))), sum(s for (s,) in rows(engine, days, "saved"))] == [
        frauds,
        saved,
    ]
    assert verify_audit(engine)[0] == len(entries) - 2 == len(rows(engine, labels, "id"))
    while count_outcomes(engine, 2):
        pass
    assert [sum(row) for row in zip(*rows(engine, outcomes, "events", "known", "frauds"))] == [2, known, frauds]
    engine.dispose()


def test_an_id_that_comes_again_has_labels_of_its_own(engine, reader):
    asserted, entries = (
        Asserted(),
        [order(1, band="high", action="block"), order(1, band="high", action="block", when=20_060 * DAY)],
    )
    entries += [asserted.label(1, 0, day=20_060), asserted.label(1, 1)]
    write_entries(engine, reader, begin_log(engine, None, "e"), numbered(entries))
    assert rows(engine, cases, "status") == [("flagged",), ("cleared",)] and rows(engine, labels, "decision_id") == [
        (2,),
        (1,),
    ]


def test_every_assertion_has_its_audit_row_and_names_keys_and_people_apart(engine, reader):
    asserted = Asserted()
    doors = [Actor(PERSON, "ann"), Actor(KEY, "ann"), Actor(COMMAND_LINE, "root"), Actor(WAITED), Actor()]
    entries = [
        order(1, band="high", action="block"),
        *(asserted.label(1, n % 2, "analyst", NOW + n, "a note", who) for n, who in enumerate(doors)),
        asserted.label(7, 1),
    ]
    write_entries(engine, reader, begin_log(engine, None, "e"), numbered(entries))
    found = rows(engine, audit, "who", "what", "about", "at", "detail")
    assert [row[0] for row in found] == ["ann", "key ann", "root (command line)", "waiting label", "", "somebody"]
    assert [row[1] for row in found] == ["legitimate asserted", "fraud asserted"] * 3
    assert [row[2] for row in found] == ["decision 1"] * 5 + ["entry 6"] and [row[3] for row in found][:5] == [
        NOW + n for n in range(5)
    ]
    assert not any(word in str(found) for word in ("o-1", "a note")) and json.loads(found[1][4]) == {
        "label": 1,
        "log": "e",
        "position": 2,
        "source": "analyst",
    }


def test_rollups_are_what_the_rows_add_up_to(engine, reader):
    run(asyncio.run(stored(mixed(300))), engine, reader)
    found = rows(engine, decisions, "time", "band", "action", "amount", "score")
    assert (
        sum(events for (events,) in rows(engine, days, "events"))
        == sum(events for (events,) in rows(engine, scores, "events"))
        == len(found)
    )
    for day, band, action, events, amount in rows(engine, days, "day", "band", "action", "events", "amount"):
        mine = [row for row in found if (row[0] // DAY, row[1], row[2]) == (day, band, action)]
        assert (events, amount) == (len(mine), sum(row[3] for row in mine))
    for day, bucket, events in rows(engine, scores, "day", "bucket", "events"):
        assert events == sum(row[0] // DAY == day and bucket / 20 <= row[4] < (bucket + 1) / 20 for row in found)


def test_reasons_and_review_priority_come_from_the_model_that_decided(engine, settings, monkeypatch):
    table, rng = domain()[1], np.random.default_rng(1)
    values = rng.normal(size=(200, len(table.names))).astype(np.float32)
    booster = xgboost.train(
        {"max_depth": 2}, xgboost.DMatrix(values, (values[:, 0] > 0).astype(int), feature_names=table.names), 5
    )
    policy = Policy(1, settings.policy.model_dump(), 2, 10, 0.5, 0.5, {})
    fake = lambda self, model: (
        SimpleNamespace(booster=booster, names=table.names, policy=policy) if model == "00" * 32 else None
    )
    monkeypatch.setattr(rows_module.ModelCache, "bundle", fake)
    write_entries(
        engine,
        EntryReader(settings),
        begin_log(engine, None, "e"),
        numbered([order(1, 9_000, "medium", "review", 0.4), order(2, 9_000, "high", "block", 0.9)]),
    )
    (body, vector, reasons), _ = rows(engine, decisions, "body", "vector", "reasons")
    expected = explain(booster, table.names, np.frombuffer(vector, np.float32), json.loads(body), 2)
    assert (
        reasons
        == [
            {"feature": r.feature, "value": r.value, "contribution": r.contribution, "words": r.words} for r in expected
        ]
        and reasons
    )
    assert [found for (found,) in rows(engine, cases, "review_priority")] == pytest.approx(
        [review_priority(policy, p, 9_000) for p in (0.2, 0.45)]
    )


def test_many_generated_decisions_look_like_written_ones(engine, settings, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    from many_decisions import fill

    assert fill(engine, settings, 2_000, 100)["decisions"] == 2_000
    found = [status for (status,) in rows(engine, cases, "status")]
    assert (
        found.count("open") == 100
        and len(found) == 150 == len(rows(engine, labels, "id")) + 100
        and len(rows(engine, links, "key")) == 8_000
    )
    assert (
        sum(events for (events,) in rows(engine, days, "events"))
        == sum(events for (events,) in rows(engine, scores, "events"))
        == 2_000
    )
    assert write_entries(
        engine, EntryReader(settings), begin_log(engine, read_checkpoint(engine), "e"), [(0, order(1))]
    ) == Checkpoint("e", 0)


# --- once, whatever happens -------------------------------------------------------------------------------------------


def test_what_was_written_is_not_written_again(engine, reader):
    entries = numbered(mixed(60))
    at = write_entries(engine, reader, begin_log(engine, None, "e"), entries)
    before = content(engine)
    assert write_entries(engine, reader, Checkpoint("e", -1), entries) == at and content(engine) == before
    with writing(engine) as connection:
        connection.execute(sa.delete(checkpoints))  # the mark is lost
    assert run(asyncio.run(stored(mixed(60))), engine, reader) == at and content(engine) == before


@pytest.mark.parametrize("seed", range(3))
def test_two_writers_write_everything_once(engine, reader, seed, monkeypatch):
    monkeypatch.setattr(writer, "BATCH", 5 + seed)

    async def two():
        store = await stored(mixed(120, seed))
        return await asyncio.gather(
            *[follow_log(store, engine, reader, asyncio.Event(), to_end=True) for _ in range(3)]
        )

    assert set(asyncio.run(two())) == {Checkpoint("e", 119)}
    assert sorted(p for table in (decisions, labels) for (p,) in rows(engine, table, "position")) == list(range(120))


def test_a_crash_in_the_middle_of_a_batch_leaves_nothing(engine, reader, monkeypatch):
    store = asyncio.run(stored(mixed(50)))
    for place in ("insert_labels", "add_up", "save_checkpoint"):
        with monkeypatch.context() as broken, pytest.raises(RuntimeError):
            broken.setattr(writer, place, lambda *args: (_ for _ in ()).throw(RuntimeError("killed")))
            run(store, engine, reader)
        assert rows(engine, decisions, "id") == [] and rows(engine, days, "day") == []
    run(store, engine, reader)
    assert len(rows(engine, decisions, "id")) + len(rows(engine, labels, "id")) == 50


def test_one_bad_entry_does_not_hold_up_the_others(engine, reader, caplog):
    good = [order(number) for number in range(20)]
    entries = numbered(
        [
            *good[:5],
            b"damaged",
            *good[5:10],
            encode_entry(Entry("event", 0, 1, (), body=b"{}")),
            order(50, score=float("nan")),
            *good[10:],
        ]
    )
    entries[9] = (9, order(77, customer_id="nul\0", order_id="id\0"))
    with caplog.at_level(logging.ERROR, "fraud_poc.writer"):
        assert write_entries(engine, reader, begin_log(engine, None, "e"), entries) == Checkpoint("e", 22)
    there = {name for (name,) in rows(engine, decisions, "order_id")}
    assert len(there & {f"o-{number}" for number in range(20)}) == 19 and "id\ufffd" in there
    assert {record.fields["position"] for record in caplog.records} >= {5, 11} and not any(
        "o-" in str(record.fields) for record in caplog.records
    )


def test_a_row_that_the_database_refuses_is_passed_over(engine, reader, caplog):
    at = write_entries(engine, reader, begin_log(engine, None, "e"), [(0, order(0))])
    with writing(engine) as connection:
        connection.execute(sa.update(decisions).values(position=4))
    with caplog.at_level(logging.ERROR, "fraud_poc.writer"):
        assert write_entries(engine, reader, at, numbered(map(order, range(1, 9)), 1)) == Checkpoint("e", 8)
    assert sorted(p for (p,) in rows(engine, decisions, "position")) == list(range(1, 9)) and "o-4" not in [
        name for (name,) in rows(engine, decisions, "order_id")
    ]
    assert [record.fields["position"] for record in caplog.records] == [4]


# --- other logs -------------------------------------------------------------------------------------------------------


def test_a_new_epoch_is_followed_and_the_rest_of_the_old_one_is_read_from_files(settings, engine, reader):
    old = mixed(40)
    at = write_entries(engine, reader, begin_log(engine, None, "old"), numbered(old[:10]))
    from fraud_poc.live.store import decode_entry

    for start in (0, 25):
        some = [
            {"seq": start + n} | {name: getattr(decode_entry(entry), name) for name in ARCHIVED.names[1:]}
            for n, entry in enumerate(old[start : start + 25][: 40 - start])
        ]
        path = settings.batch.folder / "live_log" / f"old-{start:012d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(path, pa.Table.from_pylist(some, ARCHIVED))
    assert at == Checkpoint("old", 9) and run(asyncio.run(stored(mixed(5, 3), 0, "new")), engine, reader) == Checkpoint(
        "new", 4
    )
    places = [*rows(engine, decisions, "log", "position"), *rows(engine, labels, "log", "position")]
    assert sorted(places) == sorted([("old", n) for n in range(40)] + [("new", n) for n in range(5)])


def test_an_epoch_may_change_while_it_is_followed(engine, reader, monkeypatch):
    async def scenario():
        store, stop = await stored(mixed(10), 0, "one"), asyncio.Event()
        task = asyncio.create_task(follow_log(store, engine, reader, stop))

        def at(mark):
            return lambda: asyncio.to_thread(lambda: read_checkpoint(engine) == mark)

        await until_so(at(Checkpoint("one", 9)), "all of the first epoch is written")
        store.fill(Meta("two", 2, "", {"next_seq": 0}), {})
        store.log, store.seq = [], -1
        for number in range(4):
            await store.write(Write(b"n%d" % number, b"", [], [], [], order(100 + number)))
        await until_so(at(Checkpoint("two", 3)), "all of the second one is written")
        stop.set()
        return await in_time(task, "the writer")

    assert asyncio.run(scenario()) == Checkpoint("two", 3)


def test_entries_that_are_gone_are_reported(engine, reader, caplog):
    store = asyncio.run(stored(mixed(10)))
    begin_log(engine, None, "e")
    write_entries(engine, reader, Checkpoint("e", -1), store.log[:2])
    store.log = store.log[5:]
    with caplog.at_level(logging.ERROR, "fraud_poc.writer"):
        run(store, engine, reader)
    assert [(record.fields["first"], record.fields["last"]) for record in caplog.records] == [(2, 4)]


def test_old_rows_go_and_rollups_stay(settings, engine, reader, monkeypatch):
    monkeypatch.setattr(writer, "REMOVED_AT_ONCE", 10)
    asserted = Asserted()
    entries = [order(n, band="high", action="block", at=NOW - 401 * DAY) for n in range(25)] + [
        asserted.label(1, 1, at=NOW - 401 * DAY),
        order(50),
        asserted.label(2, 1),
    ]
    at = write_entries(engine, reader, begin_log(engine, None, "e"), numbered(entries))
    before = rows(engine, days, *days.c.keys())
    assert [remove_old(engine, settings, NOW) for _ in range(4)] == [
        writer.MORE_S,
        writer.MORE_S,
        writer.NO_MORE_S,
        writer.NO_MORE_S,
    ]
    assert (
        rows(engine, decisions, "order_id") == [("o-50",)]
        and rows(engine, cases, "status") == []
        and len(rows(engine, links, "key")) == 4
    )
    assert (
        rows(engine, labels, "order_id", "decision_id") == [("o-2", None)]
        and rows(engine, days, *days.c.keys()) == before
    )
    assert write_entries(engine, reader, at, [(99, order(60))]).position == 99


def test_what_was_removed_is_counted_apart(settings, engine, reader, caplog):
    old = NOW - 401 * DAY
    entries = [*(order(n, at=old) for n in range(3)), *(Asserted().label(n, 1, at=old) for n in (98, 99)), order(50)]
    write_entries(engine, reader, begin_log(engine, None, "e"), numbered(entries))
    with caplog.at_level(logging.INFO, "fraud_poc.writer"):
        remove_old(engine, settings, NOW)
    assert [record.fields for record in caplog.records if record.message == "old rows removed"] == [
        {"decisions": 3, "labels": 2}
    ]


def test_a_mark_that_was_removed_stays_away_and_nothing_is_written(engine, reader):
    at = write_entries(engine, reader, begin_log(engine, None, "e"), [(0, order(0))])
    with writing(engine) as connection:
        connection.execute(sa.delete(checkpoints))
    assert (
        begin_log(engine, at, "f") is None
        and write_entries(engine, reader, at, [(1, order(1))]) is None
        and read_checkpoint(engine) is None
    )
    assert rows(engine, decisions, "position") == [(0,)]


def test_a_model_that_is_gone_is_reported_once_with_its_hash(settings, caplog):
    models = rows_module.ModelCache(settings)
    with caplog.at_level(logging.WARNING, "fraud_poc.writer"):
        assert models.bundle("ab" * 32) is None and models.policy("ab" * 32) == models.default
    assert [(record.message, record.fields) for record in caplog.records] == [
        ("decisions of this model are stored without reasons", {"model": "ab" * 32})
    ]


def test_a_model_is_found_by_its_hash_and_loaded_once(settings, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        rows_module,
        "list_bundles",
        lambda settings: [{"folder": "damaged"}, {"folder": "old", "hash": "aa"}, {"folder": "new", "hash": "bb"}],
    )
    monkeypatch.setattr(
        rows_module,
        "load_bundle",
        lambda folder, table, allow_rejected: (
            loaded.append(str(folder)) or SimpleNamespace(policy=f"policy of {folder}")
        ),
    )
    models = rows_module.ModelCache(settings)
    assert [models.policy(model) for model in ("bb", "aa", "bb")] == [
        "policy of new",
        "policy of old",
        "policy of new",
    ] and loaded == ["new", "old"]


def test_a_line_of_the_log_is_json_with_the_time_of_its_event():
    record = logging.LogRecord("fraud_poc.writer", logging.WARNING, __file__, 1, "outage", None, None)
    record.created, record.fields = 1_748_779_200.25, {"kind": "StoreDown"}
    assert json.loads(JsonLines().format(record)) == {
        "time": "2025-06-01T12:00:00.250+00:00",
        "level": "warning",
        "event": "outage",
        "process": os.getpid(),
        "kind": "StoreDown",
    }


# --- processes --------------------------------------------------------------------------------------------------------


def open_log(url: str, settings, epoch="e") -> Names:
    "An empty live log in a real store."
    names = Names(settings.domain.name)
    meta = Meta(epoch, 1, build_table(settings).hash, {"next_seq": 0})
    with Client(url) as client:
        client.call("SET", names.meta, json.dumps(meta.__dict__))
        client.call("SET", names.now, meta.marker)
    return names


def append(url: str, names: Names, entries, first=0) -> None:
    with Client(url) as client:
        for position, entry in numbered(entries, first):
            client.call("XADD", names.log, f"{position}-1", "e", entry)


@pytest.fixture
def last(monkeypatch):
    "Processes that shall give way, and do not here: on a busy machine they would take long."
    found = []
    monkeypatch.setattr(process_module, "go_to_background", found.append)
    monkeypatch.setattr(process_module, "FINISH_S", LONG)
    return found


def test_a_killed_writer_is_started_again_and_nothing_is_lost_or_twice(tmp_path, settings, engine, last):
    entries, rng, kills = mixed(900), random.Random(1), 2 if engine.dialect.name == "sqlite" else 1
    with start_redis(tmp_path / "redis") as server:
        names = open_log(server.url, settings)
        with writer_process(settings, server.url) as beside:
            for number in range(kills):
                for start in range(450 * number, 450 * number + 450, 50):
                    append(server.url, names, entries[start : start + 50], start)
                until(
                    lambda: (
                        (read_checkpoint(engine) or Checkpoint("", -1)).position >= 450 * number + rng.randrange(50)
                    ),
                    "something is written",
                )
                os.kill(beside.child.pid, signal.SIGKILL)
                until(lambda: beside.restarts > number, "the writer is started again")
            until(lambda: read_checkpoint(engine) == Checkpoint("e", 450 * kills - 1), "all is written")
            assert last[-1] == beside.child.pid and len(set(last)) == kills + 1
            assert (
                os.getsid(beside.child.pid) == os.getsid(0) and os.getpgid(beside.child.pid) == beside.child.pid
            )  # Ctrl-C does not reach it
        assert beside.child.returncode == 0 and beside.restarts == kills and not beside.thread.is_alive()
    assert sorted(p for table in (decisions, labels) for (p,) in rows(engine, table, "position")) == list(
        range(450 * kills)
    )
    other = open_database(settings_for(tmp_path / "other"))
    write_entries(other, EntryReader(settings), begin_log(other, None, "e"), numbered(entries[: 450 * kills]))
    assert content(other) == content(engine)
    other.dispose()


def test_trouble_is_waited_for_and_logged(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(writer, "MAX_PAUSE_S", 0.2)
    settings = settings_for(tmp_path / "orders")
    with start_redis(tmp_path / "redis") as server:
        names = open_log(server.url, settings)
        append(server.url, names, map(order, range(5)))

        async def scenario():
            stop = asyncio.Event()
            task = asyncio.create_task(write_until(settings, server.url, stop))
            there = lambda: read_checkpoint(engine) == Checkpoint("e", at)

            async def reached():
                await until_so(lambda: asyncio.to_thread(there), "all is written")

            engine, at = await asyncio.to_thread(open_database, settings), 4
            await reached()
            await asyncio.to_thread(server.kill)
            await until_so(lambda: "outage" in [record.message for record in caplog.records], "the writer notices")
            await asyncio.to_thread(server.ensure)
            await asyncio.to_thread(append, server.url, names, map(order, range(5, 9)), 5)
            at = 8
            await reached()
            stop.set()
            engine.dispose()
            return await in_time(task, "the writer")

        with caplog.at_level(logging.INFO, "fraud_poc.writer"):
            assert asyncio.run(scenario()) == Checkpoint("e", 8)
    messages = [
        record.message for record in caplog.records if record.levelname == "WARNING" and "reasons" not in record.message
    ]
    assert messages[0] == "outage" and messages[-1] == "outage over"


def test_a_locked_database_is_waited_for(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("fraud_poc.core.database.PRAGMAS", ("journal_mode=WAL", "busy_timeout=50", "foreign_keys=ON"))
    settings = settings_for(tmp_path / "orders")
    engine = open_database(settings)
    with start_redis(tmp_path / "redis") as server:
        append(server.url, open_log(server.url, settings), map(order, range(3)))

        async def scenario():
            stop = asyncio.Event()
            with writing(engine):
                task = asyncio.create_task(write_until(settings, server.url, stop, to_end=True))
                await until_so(
                    lambda: (
                        "database is locked"
                        in [getattr(record, "fields", {}).get("reason") for record in caplog.records]
                    ),
                    "the writer waits",
                )
            return await in_time(task, "the writer")

        with caplog.at_level(logging.INFO, "fraud_poc.writer"):
            assert asyncio.run(scenario()) == Checkpoint("e", 2)
    engine.dispose()
    assert "database is locked" in [record.fields.get("reason") for record in caplog.records]


def test_a_full_disk_is_waited_for_and_nothing_is_lost(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(writer, "MAX_PAUSE_S", 0.2)
    settings = settings_for(tmp_path / "orders")
    engine = open_database(settings)
    with engine.connect() as connection:
        pages = [connection.exec_driver_sql("PRAGMA page_count").scalar()]

    def of_a_disk(connection):
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages[-1]}")

    reasons = lambda: [record.fields.get("reason") for record in caplog.records if record.message == "outage"]
    with start_redis(tmp_path / "redis") as server:
        append(server.url, open_log(server.url, settings), map(order, range(300)))

        async def scenario():
            task = asyncio.create_task(write_until(settings, server.url, asyncio.Event(), to_end=True))
            await until_so(lambda: "database or disk is full" in reasons(), "the writer waits")
            pages.append(2**31)
            return await in_time(task, "the writer")

        sa.event.listen(sa.Engine, "begin", of_a_disk)
        try:
            with caplog.at_level(logging.INFO, "fraud_poc.writer"):
                assert asyncio.run(scenario()) == Checkpoint("e", 299)
        finally:
            sa.event.remove(sa.Engine, "begin", of_a_disk)
    with engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(decisions)).scalar() == 300
    engine.dispose()


def test_the_command_ends_at_a_signal_or_at_the_end_of_the_log(tmp_path, last):
    settings = settings_for(tmp_path / "orders")
    with start_redis(tmp_path / "redis") as server:
        append(server.url, open_log(server.url, settings), map(order, range(5)))
        assert run_writer(settings, server.url, to_end=True) == {"log": "e", "position": 4}
        child = process_module.start_child(settings, server.url)
        append(server.url, Names(settings.domain.name), [order(5)], 5)
        engine = open_database(settings)
        until(lambda: read_checkpoint(engine) == Checkpoint("e", 5), "all is written")
        engine.dispose()
        child.send_signal(signal.SIGTERM)
        assert ended(child) == 0
        child.stdin.close()
