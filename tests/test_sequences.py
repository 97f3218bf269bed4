"""Aggregates that follow the order of events: by hand, live in Redis as folded from the log, in words, and refused."""

import math

import numpy as np
import pytest
from support import oracle
from support.live_parity import features_of, live_against_batch
from test_parity import domain_stream, folder_of, with_batch

from fraud_poc.core.events import bits_of
from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.features.batch import compute_features
from fraud_poc.features.sequences import AGE_PARTS, ENTROPY_OF, ENTROPY_PARTS, WEIGHT_BITS, WEIGHTS
from fraud_poc.features.table import Stepper, build_table, step_event
from fraud_poc.model.reasons import reasons_of, row_of

START, MINUTE, HOUR, DAY = 1_756_598_400_000, 60_000, 3_600_000, 86_400_000  # 2025-08-31 00:00 UTC
NOW = START + 400 * DAY
ROWS = [
    'Quantile("order_amount", q=[0.1, 0.995], by="card", last=[5, 16])',
    'Quantile("balance", q=0.25, by="card", last=7, where="declined")',
    'Median("steep", by="card", last=6)',
    'GapMean(by=["card", "shop"], last=[2, 16])',
    'GapStd(by=["card", "shop"], last=[3, 16])',
    'GapRatio(by="card+shop", last=9)',
    'HourShare(by=["card", "shop"], last=[1, 12])',
    'CountRatio(by=["card", "shop"], over="1h", of=["2h", "10d"])',
    'SumRatio("order_amount", by="card", over="1d", of="30d")',
    'SumRatio("balance", by="shop", over="1h", of="7d", where="not declined")',
    "Streak(by=[\"card\", \"shop\"], where=['declined', 'order_amount > 50 and not declined'])",
    'TopShare("shop", by="card", last=[3, 8])',
    'TopShare("channel", by="shop", last=5)',
    'Entropy(["shop", "channel"], by="card", last=[2, 8])',
    'DecayedCount(by=["card", "shop"], half_life=["30min", "7d"])',
    'DecayedSum(["order_amount", "balance"], by="card", half_life="1d")',
    'DecayedCount(by="shop", half_life="1h", where="declined")',
    'FraudCount(by="card", over="30d")',
    "Hour()",
]


def domain(root, rows: list[str]) -> Settings:
    "Orders of cards at shops."
    changes = {
        "domain.name": "test",
        "columns.entities": ["card", "shop"],
        "columns.categories": ["channel"],
        "columns.numbers": {"balance": 2},
        "columns.flags": ["declined"],
        "service.optional": ["shop", "balance", "declined"],
        "acceptance.card": "card",
        "features.derived": {"steep": "order_amount - balance"},
        "features.rows": rows,
        "features.exact_events": 16,
    }
    return load_settings(root / "config" / "orders.toml", changes)


def order(number: int, time: int, card: str = "c", shop: str | None = "s", amount: float = 10.0, **more) -> dict:
    optional = {"balance": None, "declined": None}
    given = {"order_id": f"o{number}", "order_date": f"{np.datetime64(time, 'ms')}Z", "order_amount": amount}
    return given | {"card": card, "shop": shop, "channel": "app" if number % 3 else "web"} | optional | more


def test_by_hand(root):
    rows = [
        'Quantile("order_amount", q=0.75, by="card", last=5)',
        'GapMean(by="card", last=5)',
        'GapStd(by="card", last=5)',
        'GapRatio(by="card", last=5)',
        'HourShare(by="card", last=5)',
        'CountRatio(by="card", over="1h", of="1d")',
        'SumRatio("order_amount", by="card", over="1h", of="1d")',
        'Streak(by="card", where="declined")',
        'TopShare("shop", by="card", last=8)',
        'Entropy("shop", by="card", last=8)',
        'DecayedCount(by="card", half_life="1h")',
        'DecayedSum("order_amount", by="card", half_life="1h")',
    ]
    times = [START + minutes * MINUTE for minutes in (0, 60, 180, 190, 200, 240)]
    declined, shops, spent = [False, True, True, None, True, False], "stss?s", (10, 20, 30, 40, 50, 60)
    sent = [
        order(i, time, shop=None if shop == "?" else shop, amount=amount, declined=no)
        for i, (time, shop, amount, no) in enumerate(zip(times, shops, spent, declined))
    ]
    found = features_of(domain(root, rows), sent, NOW)
    first, last = ([*each.values()] for each in (found[0], found[-1]))
    assert [math.nan if value is None else value for value in first] == pytest.approx(
        [math.nan] * 5 + [math.nan, math.nan, 0, math.nan, math.nan, 0, 0], nan_ok=True
    )
    gaps = [3600, 7200, 600, 600]
    assert last[:4] == pytest.approx([40, 3000, np.std(gaps, ddof=1), 2400 / 3000])
    # at 4:00, of 0:00, 1:00, 3:00, 3:10 and 3:20; in the hour before 4:00, 2 of the day's 5 orders
    assert last[4:7] == pytest.approx([3 / 5, 2 / 5 * 24, 90 / 150 * 24])
    # the fourth is passed over, since nothing is known of it; of the four that name a shop, three name s
    assert last[7:9] == [3, 3 / 4]
    assert last[9] == pytest.approx(-(3 / 4 * math.log2(3 / 4) + 1 / 4 * math.log2(1 / 4)))
    weights = [0.5 ** ((times[-1] - time) / HOUR) for time in times[:-1]]
    assert last[10] == pytest.approx(sum(weights), rel=0.011) and last[10] >= sum(weights) - 1e-5
    assert last[11] == pytest.approx(np.dot(weights, spent[:-1]), rel=0.011)


def test_oracle_batch_and_stepping_agree_to_the_bit(root):
    "Few busy entities, far beyond the exact events, with late events, labels and missing values."
    settings = domain(root, [row for row in ROWS if "steep" not in row])
    table, rng = build_table(settings), np.random.default_rng(8)
    items = domain_stream(settings, 900, seed=4)
    measured = {"balance": [0, *map(bits_of, (0, 5_00, -7, 2**36))], "declined": [0, bits_of(0), bits_of(1)]}
    of_event = {}
    for item in items:  # a label brings the columns of its event
        if "t" in item:
            of_event[item["tag"]] = {name: bits[rng.integers(len(bits))] for name, bits in measured.items()}
        item["keys"] |= of_event[item["tag"]]
    live = oracle.stepped(table, items)
    oracle.assert_same(table, oracle.naive_features(settings, table.rows, items), live, "oracle and stepping")
    assert all((live[1] & flag).any() for flag in (1, 2, 4, 8, 16))
    with folder_of(settings) as log:
        oracle.write_log(log, items, 250)
        for pieces in (1, 2, 7):
            compute_features(with_batch(log, partitions=pieces), replace=True)
            oracle.assert_same(table, live, oracle.of_batch(log), f"stepping and batch in {pieces} pieces")


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_live_is_batch_to_the_bit(root, kind, redis_server):
    settings = domain(root, ROWS)
    table, rng = build_table(settings), np.random.default_rng(5)
    late = [0, 0, 0, 5 * MINUTE, 9 * HOUR, 50 * DAY]
    known = lambda n: {"balance": float(rng.integers(-99, 999))} if n % 5 else {}
    flag = lambda n: {"declined": bool(rng.random() < 0.6)} if n % 7 else {}
    sent = [
        order(
            n,
            START + (n * 37 * MINUTE if n < 170 else n * 2 * HOUR) - int(rng.choice(late)) * (n > 20),
            str(rng.choice(["ann", "bob"])),
            None if n % 17 == 0 else str(rng.choice(["s", "t", "u"])),
            float(rng.integers(1, 99)),
            **known(n),
            **flag(n),
        )
        for n in range(240)
    ]

    found, different, replayed = live_against_batch(settings, sent, kind, redis_server, NOW)
    assert found["events"] == len(sent)
    assert (found["differing_bits"], found["differing_flags"], different) == (0, 0, 0)
    values = np.array(replayed.vectors)
    for place, row in enumerate(table.rows):  # each says something
        assert row.kind == "FraudCount" or len(np.unique(values[:, place][~np.isnan(values[:, place])])) > 1, row.name


def test_a_streak_of_a_column_and_a_number_of_it_share_a_history(root):
    rows = ['Streak(by="card", where="declined")', 'Sum("declined", by="card", last=5)']
    assert len(build_table(domain(root, rows)).entities) == 1
    rows += ['Streak(by="card", where="not declined")', 'Count(by="card", over="1d", where="declined")']
    settings = domain(root, rows)
    table = build_table(settings)
    assert [entity.by for entity in table.entities] == [
        "card_of_declined",
        "card_of_not_declined",
        "card_where_declined",
    ]
    found = features_of(settings, [order(n, START + n * MINUTE, declined=n % 4 > 1) for n in range(5)], NOW)
    assert [*found[-1].values()] == [2, 2, 0, 2]


def test_a_late_event_is_read_and_weighed_at_its_own_time(root):
    settings = domain(root, ['DecayedCount(by="card", half_life="1h")', 'GapMean(by="card", last=3)'])
    times = [0, 120, 60, 61]  # the third comes late
    found = features_of(settings, [order(n, START + minute * MINUTE) for n, minute in enumerate(times)], NOW)
    assert found[2] == {"decayed_count_half1h_by_card": 0.5, "gap_mean_last3_by_card": None}
    assert found[3]["gap_mean_last3_by_card"] == 3600 and 1.4 < found[3]["decayed_count_half1h_by_card"] < 1.5


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_arrival_does_not_change_a_decayed_sum(root, seed):
    "Whatever the order in which all but the last event come, which is read: sums of weights are exact."
    settings = domain(root, ['DecayedSum("order_amount", by="card", half_life="1d")'])
    table, rng = build_table(settings), np.random.default_rng(seed)
    times = START + rng.integers(0, 6 * DAY, 15)
    amounts = rng.integers(-(2**36), 2**36, 15)
    values = []
    for arrival in (np.argsort(times), rng.permutation(15)):
        stepper, states = Stepper(table), [b""]
        for n in arrival:
            keys = {"card": 7} | dict.fromkeys(stepper.inputs, 0)
            _, _, states = step_event(stepper, int(times[n]), int(n), int(amounts[n]), keys, states)
        values.append(step_event(stepper, START + 6 * DAY, 99, 0, keys, states)[0].tobytes())
    assert values[0] == values[1]


def test_beyond_the_exact_events_decay_is_that_of_tiles(root):
    "100 events, 16 of them exact: the tiles of a quarter of a half-life keep the value within 5 %."
    settings = domain(root, ['DecayedCount(by="card", half_life="1d")', 'CountRatio(by="card", over="1d", of="8d")'])
    table = build_table(settings)
    items = [
        {"t": START + n * HOUR, "tag": n, "amount": 100, "keys": dict.fromkeys(settings.columns.kept, 0) | {"card": 7}}
        for n in range(100)
    ]
    expected = oracle.naive_features(settings, table.rows, items)
    oracle.assert_same(table, expected, oracle.stepped(table, items), "oracle and stepping")
    exact = sum(0.5 ** (hours / 24) for hours in range(1, 100))
    assert expected[0][-1, 0] == pytest.approx(exact, rel=0.05) and expected[0][-1, 1] == pytest.approx(1.9, rel=0.1)


def test_entropy_counts_in_rounded_logarithms():
    from decimal import Decimal, localcontext

    with localcontext() as context:
        context.prec = 40
        exact = [0] + [Decimal(c) * Decimal(c).ln() / Decimal(2).ln() * ENTROPY_PARTS for c in range(1, 9)]
        assert [round(parts) for parts in exact] == ENTROPY_OF.tolist()


def test_weights_are_the_powers_of_a_half():
    from decimal import Decimal

    exact = [Decimal(2) ** (WEIGHT_BITS - Decimal(part) / AGE_PARTS) for part in range(AGE_PARTS)]
    assert [round(weight) for weight in exact] == WEIGHTS.tolist()


SAID = {
    "order_amount_quantile_q99_5_last20_by_customer_id": {
        200.0: "amount 950.00, 4.8 times this customer's 99.5% quantile of the last 20 orders (200.00)",
        math.nan: "amount 950.00, and no earlier orders of this customer to compare it with",
    },
    "gap_mean_last10_by_email": {
        5_400.0: "1.5 hours on average between the last 10 orders with this email",
        math.nan: "fewer than 2 earlier orders with this email",
    },
    "gap_std_last10_by_email": {
        30.0: "gaps between the last 10 orders with this email vary by 30 seconds (standard deviation)",
        0.0: "gaps between the last 10 orders with this email are all alike",
    },
    "gap_ratio_last10_by_email": {
        0.02: "time since this email's last order is 0.02 times the mean gap between "
        "the last 10 orders with this email",
        0.0: "at the same moment as this email's last order",
        math.nan: "no gap known between the last 10 orders with this email",
    },
    "hour_share_last20_by_customer_id": {
        0.25: "25% of the last 20 orders of this customer came at about this hour of the day",
        0.0: "none of the last 20 orders of this customer came at about this hour of the day",
        math.nan: "no earlier orders of this customer",
    },
    "count_ratio_1h_of30d_by_device": {
        6.0: "orders with this device came 6 times as often in the last hour as in the last 30 days",
        0.0: "no earlier orders with this device in the last hour, unlike in the last 30 days",
        math.nan: "no earlier orders with this device in the last 30 days",
    },
    "order_amount_sum_ratio_1d_of30d_by_email": {
        2.0: "orders with this email add up to 2 times as much in the last day, for its length, as in the last 30 days",
        math.nan: "nothing to compare with: no sum of orders with this email in the last 30 days",
    },
    "streak_by_device_where_declined": {
        3.0: "the last 3 orders with this device in a row: declined",
        1.0: "the last 1 order with this device in a row: declined",
        0.0: "last order with this device, if any, was not: declined",
    },
    "device_top_share_last8_by_email": {
        0.5: "50% of the last 8 orders with this email share one device",
        math.nan: "no device known of the last 8 orders with this email",
    },
    "device_entropy_last8_by_email": {
        1.5: "device of the last 8 orders with this email varies by 1.5 bits of entropy",
        0.0: "the last 8 orders with this email all have the same device, where it is known",
        math.nan: "no device known of the last 8 orders with this email",
    },
    "decayed_count_half7d_by_device": {
        2.5: "2.5 earlier orders with this device, with a half-life of 7 days",
        0.0: "no earlier orders with this device of late",
    },
    "order_amount_decayed_sum_half30min_by_device": {
        99.5: "earlier orders with this device add up to 99.50, with a half-life of 30 minutes"
    },
}


@pytest.mark.parametrize("name", SAID)
def test_each_has_words(name):
    fields = ["order_id", "order_date", "order_amount", "customer_id", "email", "device"]
    event = dict(zip(fields, ["o1", "2025-03-01T12:00:00", 950.0, "c1", "e1", "d1"]))
    assert row_of(name, fields).name == name
    for value, words in SAID[name].items():
        (reason,) = reasons_of([name], np.array([value]), event, 2, np.array([1.0]), 1)
        assert reason.words == words


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('Quantile("order_amount", q=0.0, by="card", last=5)', "q=0.0 must lie between 0 and 1"),
        ('Quantile("order_amount", q=1.5, by="card", last=5)', "q=1.5 must lie between 0 and 1"),
        ('Quantile("order_amount", q="0.5", by="card", last=5)', "q='0.5' must lie"),
        ('Quantile("order_amount", q=0.5, by="card", last=17)', r"features.exact_events \(16\): raise that setting"),
        ('GapStd(by="card", last=2)', "last=2 never gives a value: GapStd needs at least 3 events"),
        ('TopShare("shop", by="card", last=9)', "give last=8 or less, or count values with Distinct"),
        ('Entropy("shop", by="card", last=9)', "give last=8 or less, or count values with Distinct"),
        ('Entropy("order_amount", by="card", last=8)', "column 'order_amount' cannot be used by Entropy"),
        ('CountRatio(by="card", over="30d", of="1h")', "of='1h' must be longer than over='30d'"),
        ('CountRatio(by="card", over="1h", of="400d")', "beyond features.retention"),
        ('CountRatio(by="card", over="1h", of="soon")', "soon"),
        ('Streak(by="card")', "give where=, the condition that Streak looks for"),
        ('Streak(by="card", where="balance")', "neither yes nor no: compare it"),
        ('Streak(by="card", where="declind")', "declind"),
        ('DecayedCount(by="card", half_life="30d")', "8 half-lives, beyond features.retention"),
        ('DecayedSum("order_amount", by="card", half_life="500ms")', "below the shortest, 1s"),
        ('DecayedSum("order_amount", by="card", over="7d")', "takes no 'over'"),
    ],
)
def test_wrong_rows_are_refused_with_the_remedy(root, row, words):
    with pytest.raises(ValueError, match=words):
        build_table(domain(root, [row]))
