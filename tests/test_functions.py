"""Columns of every kind, expressions, conditions and functions: live as in batch; functions are refused where wrong."""

import asyncio
import importlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from support.waiting import in_time
from test_decide import SECRET, engine_for
from test_store import any_store

from fraud_poc.core.reading import EventReader
from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.data.functions import column_function
from fraud_poc.features.table import build_table
from fraud_poc.live.decide import check_model
from fraud_poc.live.labels import LabelAssertion, LabelWriter
from fraud_poc.live.redis_server import start_redis
from fraud_poc.live.store import Meta
from fraud_poc.ops.replay import compare, differing_states, fold_log, served_entries

START, HOUR = 1_756_000_000_000, 3_600_000
COLUMNS = {
    "columns.entities": ["customer_id", "email"],
    "columns.categories": [],
    "service.optional": ["balance", "items", "gift", "type", "opened"],
    "columns.numbers": {"balance": 2, "items": 0},
    "columns.flags": ["gift"],
    "columns.vocabularies": {"type": ["transfer", "payment"]},
    "columns.times": ["opened"],
}
DERIVED = {
    "spent": "order_amount / balance",
    "cents": "support.columns:cents_of_hour",
    "strain": "support.columns:strain",
    "fresh": "support.columns:fresh",
    "odd": "gift or strain > 1 and type != 'payment'",
}
ROWS = [
    *('Value("balance")', 'Value("gift")', 'Is("type", "transfer")', 'Code("type")', 'Value("spent")'),
    *('Value("cents")', 'Value("strain")', 'Value("fresh")', 'Value("odd")'),
    'Mean("balance", by="customer_id", over=["1h", "lifetime"])',
    'Sum("items", by="email", over="1d", where="not gift")',
    'Median("spent", by="customer_id", last=5)',
    'SameAsLast("type", by="customer_id")',
    'Distinct("gift", by="email", over="lifetime")',
    'Count(by="customer_id", over="1d", where="type == \'transfer\' and balance > 100")',
    'Mean("strain", by="customer_id", over=["1h", "lifetime"])',
    'Max("cents", by="email", over="1d", where="fresh")',
    'Lag("cents", by="customer_id", n=1)',
    'FraudCount(by="customer_id", over="lifetime", where="is_missing(balance) or opened < order_date")',
    'Count(by="email", over="lifetime", where="odd")',
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with start_redis(tmp_path_factory.mktemp("functions") / "redis") as server:
        yield server


def settings_with(root, derived: dict[str, str], rows: list[str]) -> Settings:
    changes = COLUMNS | {"features.derived": derived, "features.rows": rows, "features.exact_events": 16}
    return load_settings(root / "config" / "orders.toml", changes)


@pytest.fixture
def payments(root) -> Settings:
    return settings_with(root, DERIVED, ROWS)


def payment(number: int, draw: np.random.Generator) -> dict:
    "A payment; each of its further columns is missing now and then."
    at = START + 7 * number * 60_000 - int(draw.choice([0, 0, 0, 90])) * 60_000
    some = lambda *values: values[int(draw.integers(len(values)))]
    return {
        "order_id": f"p{number}",
        "order_date": f"{np.datetime64(at, 'ms')}Z",
        "order_amount": some(0.07, 9.99, 120.0, 40.5),
        **{name: f"{name}{draw.integers(4)}" for name in ("customer_id", "email")},
        "balance": some(None, 0, 7.5, 120, 4_000.25),
        "items": some(None, 1, 12),
        "gift": some(None, True, False, False),
        "type": some(None, "transfer", "payment", "exchange"),
        "opened": some(None, f"{np.datetime64(at - 30 * 24 * HOUR, 'ms')}Z", "2017-03-04T05:06:07.089Z"),
    }


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_live_is_batch_to_the_bit(payments, kind, server):
    table, rng = build_table(payments), np.random.default_rng(3)
    sent, answers = [payment(number, rng) for number in range(240)], {}

    async def story() -> tuple[dict, int, dict]:
        async with any_store(kind, server, Meta("e", 1, table.hash, {"next_seq": 0})) as store:
            engine = engine_for(payments, store)
            reader = EventReader(payments, SECRET, lambda: START + 400 * 24 * HOUR)
            writer, events = LabelWriter(engine, SECRET), [reader.read_dict(one) for one in sent]
            for start in range(0, len(events), 8):
                await engine.decide_all(events[start : start + 8], answers.__setitem__)
                one = events[start]
                change = LabelAssertion(one.id, start % 3 == 0, "chargeback", one.time + HOUR, time=one.time)
                await writer.assert_label(change, now=START + 300 * 24 * HOUR)
            entries = await served_entries(store, -1)
            replayed = fold_log(table, payments.columns, entries, {})
            scores = np.array([engine.model.scorer.score(vector) for vector in replayed.vectors], np.float32)
            _, different = await differing_states(store, table, replayed)
            return compare(entries, replayed, scores), different, replayed

    found, different, replayed = asyncio.run(in_time(story()))
    assert found["events"] == len(sent) and found["labels"] == 30
    assert (found["differing_bits"], found["differing_flags"], different) == (0, 0, 0)
    vectors = dict(zip(table.names, replayed.vectors.T))
    assert all(np.isnan(values).sum() < len(values) - 10 for values in vectors.values())
    assert {*vectors["type_code"][~np.isnan(vectors["type_code"])]} == {0, 1, 2}
