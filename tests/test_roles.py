"""An entity is looked up in another role, and a pair has a history of its own: live as in batch, and by hand."""

import numpy as np
import pytest
from support.live_parity import features_of, live_against_batch

from fraud_poc.core.events import pair_key
from fraud_poc.core.settings import Settings, load_settings

START, NOW = 1_756_000_000_000, 1_790_560_000_000
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


def test_what_one_did_in_the_other_role(payments):
    first, second, third = features_of(
        payments,
        [payment(1, 0, "ann", "bob", 10), payment(2, 5, "bob", "cid", 20), payment(3, 9, "cid", "bob", 30)],
        NOW,
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
    first, second = features_of(payments, [payment(1, 0, "ann", "ann", 10), payment(2, 5, "ann", "ann", 20)], NOW)
    assert first["count_lifetime_by_payer"] == first["count_lifetime_by_payer_as_payee"] == 0
    assert second["count_lifetime_by_payer"] == second["count_lifetime_by_payer_as_payee"] == 1
    assert second["order_amount_lag_1_by_payee+payer_as_payer+payee"] == 10


def test_a_pair_without_one_of_its_parts_has_no_history(payments):
    first, second = features_of(payments, [payment(1, 0, "ann", None), payment(2, 5, "ann", None)], NOW)
    assert second["count_lifetime_by_payer+payee"] is None and second["count_lifetime_by_payer"] == 1


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_live_is_batch_to_the_bit(payments, kind, redis_server):
    rng = np.random.default_rng(3)
    people = ["ann", "bob", "cid", "dan"]
    sent = [
        payment(n, 7 * n - int(rng.choice([0, 0, 0, 90])), *rng.choice(people, 2).tolist(), float(rng.integers(1, 99)))
        for n in range(240)
    ]
    sent = [one | {"payee": None} if n % 17 == 0 else one for n, one in enumerate(sent)]

    found, different, _ = live_against_batch(payments, sent, kind, redis_server, NOW)
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
