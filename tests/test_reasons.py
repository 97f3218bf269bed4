"""Reasons are XGBoost's own contributions, merged and put into words that are true of the vector."""

import re
from functools import lru_cache

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from fraud_poc.core.reading import event_fields
from fraud_poc.core.settings import load_settings
from fraud_poc.features.rows import Row
from fraud_poc.features.sequences import AGGREGATES
from fraud_poc.features.table import build_table
from fraud_poc.model.reasons import (
    SENTENCES,
    Phrases,
    Reason,
    explain,
    explain_many,
    layout,
    readable,
    reasons_of,
    row_of,
)

DOMAINS = ("orders", "cards", "ratings")
ORDER = dict(
    order_id="o1",
    order_date="2025-03-01T12:00:00",
    order_amount=950.0,
    customer_id="c1",
    email="e1",
    ip_addr="1.2.3.4",
    device="d1",
    location="DE-BER",
)


@lru_cache
def domain(name: str):
    "Settings, names of the features, an order, a model of random vectors, and the vectors."
    from conftest import ROOT

    chosen = load_settings(ROOT / "config" / f"{name}.toml")
    names, rng = build_table(chosen).names, np.random.default_rng(3)
    fields = [field.name for field in event_fields(chosen)]
    order = {
        field: (
            "2025-03-01" if field == chosen.columns.time else 12.5 if field == chosen.columns.amount else f"{field}-1"
        )
        for field in fields
    }
    vectors = np.round(rng.gamma(1.0, 3.0, (400, len(names)))).astype(np.float32)
    vectors[rng.random(vectors.shape) < 0.2] = np.nan
    label = np.nan_to_num(vectors[:, 3:7]).sum(1) + rng.normal(size=400) > 13
    booster = xgb.train(
        {"objective": "binary:logistic", "max_depth": 4, "nthread": 1, "seed": 1, "base_score": 0.5},
        xgb.DMatrix(vectors, label, feature_names=names),
        25,
    )
    return chosen, names, order, booster, vectors


def sentence(feature: str, order: dict = ORDER, name: str = "orders", **known) -> str:
    "The sentence for one feature, where only some are known."
    names = domain(name)[1]
    assert not known.keys() - set(names)
    vector = np.array([known.get(n, np.nan) for n in names])
    return reasons_of(names, vector, order, 2, np.array([float(n == feature) for n in names]), 1)[0].words


@pytest.mark.parametrize("name", DOMAINS)
def test_every_name_is_understood(name):
    chosen, names, order, *_ = domain(name)
    assert [row_of(n, list(order)) for n in names] == list(build_table(chosen).rows)
    assert not any(theme[0] == "other" for theme in layout(tuple(names), tuple(order))[1])


@settings(max_examples=100)
@given(
    st.sampled_from([("amount_sum", "by_id"), ("count", "count_7d"), ("x", "x_by_y"), ("last", "mean_30d")]),
    st.sampled_from(["Mean", "Sum", "Ratio", "Distinct", "Lag", "Count", "FraudRate"]),
    st.sampled_from(["30d", "lifetime", "", "1min", "30s"]),
    st.sampled_from(["", "7d"]),
)
def test_columns_that_look_like_statistics_are_understood(columns, kind, over, delay):
    column, by = columns
    last, n = (0 if over or kind in ("Count", "FraudRate", "Distinct", "Lag") else 5), int(kind == "Lag")
    row = Row(
        kind,
        "" if kind in ("Count", "FraudRate") else column,
        by,
        "" if n else over,
        last,
        n,
        "" if last or n or kind == "Distinct" else delay,
    )
    found = row_of(row.name, columns)
    assert found is not None and found.name == row.name


@pytest.mark.parametrize(
    "over, words",
    [
        ("1s", "4 earlier orders of this customer in the last second (30-day average: 0.003)"),
        ("30s", "4 earlier orders of this customer in the last 30 seconds (30-day average: 0.1)"),
        ("90s", "4 earlier orders of this customer in the last 90 seconds (30-day average: 0.3)"),
        ("120s", "4 earlier orders of this customer in the last 2 minutes (30-day average: 0.4)"),
        ("1500ms", "4 earlier orders of this customer in the last 1.5 seconds (30-day average: 0.005)"),
    ],
)
def test_windows_of_seconds_in_words(over, words):
    names = [f"count_{over}_by_customer_id", "count_30d_by_customer_id"]
    assert [row_of(name, list(ORDER)).over for name in names] == [over, "30d"]
    (reason,) = reasons_of(names, np.array([4.0, 8_640.0]), ORDER, 2, np.array([1.0, 0.0]), 1)
    assert reason.words == words


@pytest.mark.parametrize("name", DOMAINS)
def test_contributions_are_those_of_xgboost(name):
    _, names, order, booster, vectors = domain(name)
    found = explain_many(booster, names, vectors, [order] * len(vectors), 2, None)
    matrix, themes = xgb.DMatrix(vectors, feature_names=names), layout(tuple(names), tuple(order))[1]
    theirs, margin = booster.predict(matrix, pred_contribs=True), booster.predict(matrix, output_margin=True)
    for reasons, own, whole in zip(found, theirs, margin):
        assert abs(sum(r.contribution for r in reasons) + own[-1] - whole) < 1e-4
        sums = {theme: own[:-1][[t == theme for t in themes]].sum() for theme in themes}
        assert len(reasons) == sum(bool(total) for total in sums.values())
        for r in reasons:
            place = names.index(r.feature)
            assert abs(r.contribution - sums[themes[place]]) < 1e-5 and r.raises == (r.contribution > 0)
            assert np.sign(own[place]) == np.sign(r.contribution)  # the leading one pulls where the sum does
        assert [abs(r.contribution) for r in reasons] == sorted((abs(r.contribution) for r in reasons), reverse=True)


@pytest.mark.parametrize("name", DOMAINS)
def test_an_order_alone_has_the_same_reasons_as_among_many(name):
    _, names, order, booster, vectors = domain(name)
    many = explain_many(booster, names, vectors[:40], [order] * 40, 2)
    assert many == [explain(booster, names, vector, order, 2) for vector in vectors[:40]] and all(
        0 < len(found) <= 5 for found in many
    )


@settings(max_examples=60)
@given(st.sampled_from(DOMAINS), st.data())
def test_words_hold_for_any_vector(name, data):
    "No feature, missing or not, of an entity given or not, leads to words about nan or None."
    chosen, names, order, *_ = domain(name)
    value = st.sampled_from([np.nan, 0.0, 0.0, 1.0, 2.0, 10.0, 0.004, 1234.5, -3.0])
    vector = np.array(data.draw(st.lists(value, min_size=len(names), max_size=len(names))))
    for row, place in zip(build_table(chosen).rows, range(len(names))):
        if row.kind in ("Hour", "Weekday"):
            vector[place] = data.draw(st.sampled_from([np.nan, 0.0, 6.0]))
        if row.kind not in ("Value", "Min", "Max", "Mean", "Lag", "Ratio", "Sum"):
            vector[place] = abs(vector[place])
    missing = {field: data.draw(st.sampled_from([order[field], None, ""])) for field in chosen.columns.hashed}
    for place in range(len(names)):
        shares = np.zeros(len(names))
        shares[place] = data.draw(st.sampled_from([-1.0, 1.0]))
        (reason,) = reasons_of(names, vector, order | missing, chosen.columns.decimals, shares, 5)
        assert reason.feature == names[place] and reason.value == (None if np.isnan(vector[place]) else vector[place])
        assert reason.words and not re.search(r"\b(nan|None|inf)\b|  |\bid\b", reason.words)


@pytest.mark.parametrize(
    "feature, known, words",
    [
        (
            "order_amount",
            dict(order_amount=950, order_amount_mean_30d_by_customer_id=158.33),
            "amount 950.00, 6 times this customer's 30-day mean (158.33)",
        ),
        (
            "order_amount_ratio_30d_by_customer_id",
            dict(order_amount_ratio_30d_by_customer_id=0.5),
            "amount 950.00, 0.5 times this customer's 30-day mean (1,900.00)",
        ),
        (
            "order_amount_max_1d_by_customer_id",
            dict(order_amount_max_1d_by_customer_id=20),
            "amount 950.00, 48 times this customer's 1-day maximum (20.00)",
        ),
        (
            "order_amount_mean_last10_by_email",
            dict(order_amount_mean_last10_by_email=940),
            "amount 950.00, about this email's mean of the last 10 orders (940.00)",
        ),
        (
            "order_amount_std_30d_by_customer_id",
            dict(order_amount_std_30d_by_customer_id=100, order_amount_mean_30d_by_customer_id=1250),
            "amount 950.00, 3 standard deviations below this customer's 30-day mean (1,250.00)",
        ),
        (
            "order_amount_lag_1_by_customer_id",
            dict(order_amount_lag_1_by_customer_id=25),
            "amount 950.00, after 25.00 in this customer's last order",
        ),
        (
            "order_amount_mean_30d_by_customer_id",
            {},
            "amount 950.00, and no earlier orders of this customer in the last 30 days to compare it with",
        ),
        (
            "count_1h_by_ip_addr",
            dict(count_1h_by_ip_addr=10, count_30d_by_ip_addr=72),
            "10 earlier orders with this IP address in the last hour (30-day average: 0.1)",
        ),
        (
            "count_1min_by_customer_id",
            dict(count_1min_by_customer_id=0),
            "no earlier orders of this customer in the last minute",
        ),
        (
            "count_1d_by_customer_id",
            dict(count_1d_by_customer_id=1),
            "1 earlier order of this customer in the last day",
        ),
        ("count_1d_by_customer_id", {}, "the past of this customer is not known: the order came too late"),
        (
            "order_amount_sum_1d_by_customer_id",
            dict(order_amount_sum_1d_by_customer_id=300, order_amount_sum_30d_by_customer_id=600),
            "earlier orders of this customer in the last day add up to 300.00 (30-day average: 20.00)",
        ),
        (
            "time_since_by_customer_id",
            dict(time_since_by_customer_id=35, count_30d_by_customer_id=10),
            "35 seconds since this customer's last order (30-day average: one in 3 days)",
        ),
        ("time_since_by_email", {}, "no earlier orders with this email"),
        (
            "age_by_customer_id",
            dict(age_by_customer_id=7200, count_lifetime_by_customer_id=1),
            "customer first seen 2 hours ago, 1 earlier order",
        ),
        ("age_by_device", {}, "device never seen before"),
        (
            "email_known_by_customer_id",
            dict(email_known_by_customer_id=0, email_same_as_last_by_customer_id=0),
            "email never seen with this customer",
        ),
        (
            "email_same_as_last_by_customer_id",
            dict(email_known_by_customer_id=1, email_same_as_last_by_customer_id=0),
            "email other than in this customer's last order, but seen before",
        ),
        (
            "email_known_by_customer_id",
            dict(email_known_by_customer_id=1, email_same_as_last_by_customer_id=1),
            "same email as in the last order of this customer",
        ),
        (
            "email_distinct_1h_by_ip_addr",
            dict(email_distinct_1h_by_ip_addr=7, email_distinct_lifetime_by_ip_addr=9),
            "7 different emails seen with this IP address in the last hour (9 so far)",
        ),
        (
            "email_distinct_7d_by_ip_addr",
            dict(email_distinct_7d_by_ip_addr=0),
            "no different emails seen with this IP address in the last 7 days",
        ),
        (
            "fraud_count_lifetime_by_device",
            dict(fraud_count_lifetime_by_device=1),
            "1 known fraud among earlier orders with this device so far",
        ),
        (
            "fraud_rate_90d_by_ip_addr",
            dict(fraud_rate_90d_by_ip_addr=0.25),
            "25% of the earlier orders with this IP address in the last 90 days whose outcome is known were fraud",
        ),
        (
            "fraud_rate_90d_by_ip_addr",
            dict(fraud_rate_90d_by_ip_addr=1.0, fraud_count_lifetime_by_ip_addr=1, count_lifetime_by_ip_addr=3),
            "100% of the earlier orders with this IP address in the last 90 days whose outcome is known were fraud "
            "(so far 1 known fraud among 3 earlier orders)",
        ),
        (
            "fraud_rate_90d_by_ip_addr",
            {},
            "no outcome known of earlier orders with this IP address in the last 90 days",
        ),
        ("hour", dict(hour=23), "placed between 23:00 and 00:00 UTC"),
        ("weekday", dict(weekday=6), "placed on a Sunday"),
    ],
)
def test_sentences(feature, known, words):
    assert sentence(feature, **known) == words


def median_words(value: float, **changes) -> str:
    "The sentence of a median, in a table that has one beside the shipped features."
    names = [*domain("orders")[1], "order_amount_median_last20_by_customer_id"]
    vector = np.array([950.0 if name == "order_amount" else np.nan for name in names])
    vector[-1] = value
    shares = np.zeros(len(names))
    shares[-1] = 1.0
    return reasons_of(names, vector, ORDER | changes, 2, shares, 1)[0].words


def test_a_median_has_the_words_of_its_declaration():
    assert median_words(158.33) == "amount 950.00, 6 times this customer's median of the last 20 orders (158.33)"
    assert median_words(-3.0) == "amount 950.00, against this customer's median of the last 20 orders (-3.00)"
    assert median_words(np.nan) == "amount 950.00, and no earlier orders of this customer to compare it with"
    assert median_words(np.nan, customer_id=None) == "amount 950.00, and no customer given to compare it with"


def test_every_declaration_has_words():
    "The fields of every text exist, and each aggregate has a text, a statistic or a sentence for its theme."
    fields = {name for name in vars(Phrases) if not name.startswith("_")}
    for aggregate in AGGREGATES.values():
        words = aggregate.words
        used = re.findall(r"{(\w+)}", words.text + words.zero + words.missing)
        assert set(used) <= fields, aggregate.name
        assert words.text or words.statistic or words.theme in SENTENCES, aggregate.name


def test_missing_entities_are_named():
    for feature in (
        "count_1h_by_email",
        "email_known_by_customer_id",
        "time_since_by_email",
        "age_by_email",
        "email_distinct_7d_by_customer_id",
    ):
        if feature != "email_distinct_7d_by_customer_id":
            assert sentence(feature, ORDER | {"email": None}) == "no email given"
    assert sentence("email_distinct_7d_by_customer_id", ORDER | {"customer_id": ""}) == "no customer given"
    assert sentence("order_amount", ORDER | {"customer_id": None}, order_amount=950).endswith(
        "and no customer given to compare it with"
    )


def test_other_domains_have_their_own_words():
    cards, ratings = domain("cards")[2] | {"TX_AMOUNT": 80.0}, domain("ratings")[2] | {"rating": -10.0}
    assert sentence(
        "FRAUD".lower() + "_count_7d_delay7d_by_TERMINAL_ID", cards, "cards", fraud_count_7d_delay7d_by_TERMINAL_ID=3
    ) == ("3 known frauds among earlier transactions of this terminal in the 7 days until 7 days ago")
    assert sentence(
        "TX_AMOUNT_mean_30d_delay14d_by_CUSTOMER_ID", cards, "cards", TX_AMOUNT_mean_30d_delay14d_by_CUSTOMER_ID=40
    ) == ("amount 80.00, 2 times this customer's 30-day mean until 14 days ago (40.00)")
    assert (
        sentence("rating_mean_90d_by_source", ratings, "ratings", rating_mean_90d_by_source=2)
        == "rating -10.00, against this source's 90-day mean (2.00)"
    )


def test_decimals_are_those_of_the_currency():
    names = domain("orders")[1]
    vector = np.array(
        [{"order_amount": 950, "order_amount_mean_30d_by_customer_id": 158.333}.get(n, np.nan) for n in names]
    )
    words = [
        reasons_of(names, vector, ORDER, decimals, np.array([float(n == "order_amount") for n in names]), 1)[0].words
        for decimals in (0, 3)
    ]
    assert "950, 6 times" in words[0] and "(158)" in words[0] and "950.000" in words[1] and "(158.333)" in words[1]


def test_features_that_no_aggregate_declares_are_named_as_they_are():
    found = reasons_of(["order_amount", "margin"], np.array([950, np.nan]), ORDER, 2, np.array([0.5, -1.0]), None)
    assert found[0] == Reason("margin", None, -1.0, "margin is missing") and found[1].words == "amount 950.00"


def test_what_does_not_fit_is_rejected():
    _, names, order, booster, vectors = domain("orders")
    with pytest.raises(ValueError, match="need vectors of shape"):
        explain_many(booster, names, vectors[:3], [order] * 2, 2)
    with pytest.raises(ValueError, match="other names than those of the model"):
        explain_many(booster, names[::-1], vectors[:2], [order] * 2, 2)
    with pytest.raises(ValueError, match="feature 4 of vector 0 is inf"):
        explain(booster, names, np.where(np.arange(len(names)) == 4, np.inf, vectors[0]), order, 2)
    assert explain_many(booster, names, vectors[:0], [], 2) == []


def test_readable_columns():
    assert [
        readable(c)
        for c in ("customer_id", "ip_addr", "TERMINAL_ID", "device", "id", "order_amount", "amount", "rating")
    ] == ["customer", "IP address", "terminal", "device", "id", "amount", "amount", "rating"]
