"""An entity is looked up in another role, and a pair has a history of its own: live as in batch, and by hand."""

import asyncio

import numpy as np
import pytest
from support.waiting import in_time
from test_decide import SECRET, engine_for
from test_store import any_store

from fraud_poc.core.events import pair_key
from fraud_poc.core.reading import EventReader
from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.features.table import build_table
from fraud_poc.live.labels import LabelAssertion, LabelWriter
from fraud_poc.live.redis_server import start_redis
from fraud_poc.live.store import Meta
from fraud_poc.ops.replay import compare, differing_states, fold_log, served_entries

START, HOUR = 1_756_000_000_000, 3_600_000
ROWS = [
    'Value("order_amount")',
    'Count(by=["payer", "payee"], over=["1h", "lifetime"])',
    'Count(by="payer", role="payee", over=["1h", "lifetime"])',
    'Sum("order_amount", by="payee", role="payer", over="1d")',
    'Distinct("payer", by="payer", role="payee", over="lifetime")',
    'FraudRate(by="payee", role="payer", over="lifetime")',
    'FraudCount(by="payee", over="lifetime")',
    'Count(by="payer+payee", over=["1d", "lifetime"])',
    'Lag("order_amount", by="payee+payer", role="payer+payee", n=1)',
    'FraudCount(by="payer+payee", over="lifetime")',
    'SameAsLast("channel", by="payee+payer")',
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with start_redis(tmp_path_factory.mktemp("roles") / "redis") as server:
        yield server


@pytest.fixture
def payments(root) -> Settings:
    changes = {
        "domain.name": "test",
        "columns.entities": ["payer", "payee"],
        "columns.categories": ["channel"],
        "columns.shared": {"account": ["payer", "payee"]},
        "service.optional": ["payee"],
        "acceptance.card": "payer",
        "features.rows": ROWS,
        "features.exact_events": 16,
    }
    return load_settings(root / "config" / "orders.toml", changes)


def payment(number: int, minutes: int, payer: str, payee: str | None, amount: float = 10.0) -> dict:
    moment = np.datetime64(START + minutes * 60_000, "ms")
    return {
        "order_id": f"p{number}",
        "order_date": f"{moment}Z",
        "order_amount": amount,
        "payer": payer,
        "payee": payee,
        "channel": "app" if number % 3 else "web",
    }


def features_of(settings: Settings, payments: list[dict]) -> list[dict]:
    "Decided one after the other in a store in memory."
    engine, reader = engine_for(settings), EventReader(settings, SECRET, lambda: START + 400 * 24 * HOUR)

    async def decided() -> list[dict]:
        return [(await engine.decide(reader.read_dict(one))).features for one in payments]

    return asyncio.run(decided())


def test_what_one_did_in_the_other_role(payments):
    first, second, third = features_of(
        payments,
        [payment(1, 0, "ann", "bob", 10), payment(2, 5, "bob", "cid", 20), payment(3, 9, "cid", "bob", 30)],
    )
    assert first["count_lifetime_by_payer_as_payee"] == 0 and second["count_lifetime_by_payer_as_payee"] == 1
    # cid has received once, from bob, who has spent 20 and received once
    assert third["count_lifetime_by_payer_as_payee"] == third["payer_distinct_lifetime_by_payer_as_payee"] == 1
    assert third["order_amount_sum_1d_by_payee_as_payer"] == 20 and third["count_lifetime_by_payee"] == 1
    # the pair is new, the pair with roles exchanged is not: bob paid 20 to cid
    assert third["count_lifetime_by_payer+payee"] == 0
    assert third["order_amount_lag_1_by_payee+payer_as_payer+payee"] == 20
    assert first["order_amount_lag_1_by_payee+payer_as_payer+payee"] is None


def test_a_payment_to_oneself_sees_only_what_was_before_it(payments):
    first, second = features_of(payments, [payment(1, 0, "ann", "ann", 10), payment(2, 5, "ann", "ann", 20)])
    assert first["count_lifetime_by_payer"] == first["count_lifetime_by_payer_as_payee"] == 0
    assert second["count_lifetime_by_payer"] == second["count_lifetime_by_payer_as_payee"] == 1
    assert second["order_amount_lag_1_by_payee+payer_as_payer+payee"] == 10


def test_a_pair_without_one_of_its_parts_has_no_history(payments):
    first, second = features_of(payments, [payment(1, 0, "ann", None), payment(2, 5, "ann", None)])
    assert second["count_lifetime_by_payer+payee"] is None and second["count_lifetime_by_payer"] == 1


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_live_is_batch_to_the_bit(payments, kind, server):
    table, rng = build_table(payments), np.random.default_rng(3)
    people = ["ann", "bob", "cid", "dan"]
    sent = [
        payment(n, 7 * n - int(rng.choice([0, 0, 0, 90])), *rng.choice(people, 2).tolist(), float(rng.integers(1, 99)))
        for n in range(240)
    ]
    sent = [one | {"payee": None} if n % 17 == 0 else one for n, one in enumerate(sent)]

    async def story() -> tuple[dict, int]:
        async with any_store(kind, server, Meta("e", 1, table.hash, {"next_seq": 0})) as store:
            engine = engine_for(payments, store)
            reader = EventReader(payments, SECRET, lambda: START + 400 * 24 * HOUR)
            writer, events = LabelWriter(engine, SECRET), [reader.read_dict(one) for one in sent]
            for start in range(0, len(events), 8):
                answers = {}
                await engine.decide_all(events[start : start + 8], answers.__setitem__)
                assert all(answer.degraded is None for answer in answers.values())
                one = events[start]
                change = LabelAssertion(one.id, start % 3 == 0, "chargeback", one.time + HOUR, time=one.time)
                await writer.assert_label(change, now=START + 300 * 24 * HOUR)
            entries = await served_entries(store, -1)
            replayed = fold_log(table, payments.columns, entries, {})
            scores = np.array([engine.model.scorer.score(vector) for vector in replayed.vectors], np.float32)
            _, different = await differing_states(store, table, replayed)
            return compare(entries, replayed, scores), different

    found, different = asyncio.run(in_time(story()))
    assert found["events"] == len(sent) and found["labels"] == 30
    assert (found["differing_bits"], found["differing_flags"], different) == (0, 0, 0)


def test_the_key_of_a_pair_is_that_of_neither_part():
    assert pair_key(7, 9) not in (7, 9, pair_key(9, 7))


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        ({"account": ["payer", "shop"]}, "columns.shared names 'shop'"),
        ({"account": ["payer", "payee"], "person": ["payer", "payee"]}, "names 'payer' twice"),
        ({"account": ["payer"]}, "at least 2"),
    ],
)
def test_wrong_settings_say_what_is_wrong(payments, root, shared, words):
    changes = {"columns.entities": ["payer", "payee"], "columns.categories": [], "columns.shared": shared}
    with pytest.raises(ValueError, match=words):
        load_settings(root / "config" / "orders.toml", changes | {"acceptance.card": "payer"})


def test_columns_of_one_kind_are_normalised_alike(root):
    changes = {
        "columns.entities": ["payer", "payee"],
        "columns.shared": {"account": ["payer", "payee"]},
        "columns.normalise": {"payer": ["lower"]},
        "acceptance.card": "payer",
    }
    with pytest.raises(ValueError, match="the same normalise and stand_ins"):
        load_settings(root / "config" / "orders.toml", changes)
