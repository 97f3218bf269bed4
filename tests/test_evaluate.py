"""Metrics beside scikit-learn, brute force and the Handbook's protocol; calibration; size of intervals; odd input."""

import json
import math
import runpy
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from fraud_poc.core.settings import load_settings
from fraud_poc.model import evaluate as module
from fraud_poc.model.evaluate import (
    LEAST_SLOPE,
    bootstrap,
    calibrate,
    card_days,
    card_precision,
    curve_metrics,
    equal_groups,
    evaluate,
    frozen_means,
    judge,
    number_cards,
    queue,
    rank,
    reviewed,
    sort_slice,
    totals,
)
from fraud_poc.model.evaluation_plots import draw_evaluation
from fraud_poc.model.policy import probabilities, probability

ORDERS = Path(__file__).resolve().parents[1] / "config" / "orders.toml"
DAY_MS = 86_400_000


def settings_with(**acceptance):
    return load_settings(
        ORDERS,
        {f"acceptance.{name}": value for name, value in ({"reviews_a_day": 10, "bootstrap": 30} | acceptance).items()},
    )


def some_slice(seed=1, n=6_000, cards=900, days=10, unresolved=0.03, digits=3) -> dict:
    "Events whose frauds come in runs on a card; scores with ties."
    rng = np.random.default_rng(seed)
    card = rng.integers(1, cards, n).astype(np.uint64)
    risk = np.where(rng.random(cards) < 0.03, 0.5, -6)[card.astype(int)] + rng.normal(0, 1, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-risk))).astype(np.int8)
    scores = (1 / (1 + np.exp(-(1.5 * risk + rng.normal(0, 1.5, n))))).round(digits).astype(np.float32)
    labels[rng.random(n) < unresolved] = -1
    return {
        "labels": labels,
        "scores": scores,
        "times": np.sort(rng.integers(0, days * DAY_MS, n)),
        "cards": card,
        "amounts": rng.integers(100, 9_000, n),
    }


# --- metrics ----------------------------------------------------------------------------------------------------------

events = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=2, max_size=60)


@given(events)
def test_curves_equal_scikit_learn(rows):
    scores, fraud, weights = (
        np.array([r[0] / 7 for r in rows]),
        np.array([r[1] for r in rows]),
        np.array([r[2] for r in rows], float),
    )
    mine = curve_metrics(*totals(rank(scores), fraud, weights))
    if not weights[fraud].sum() or not weights[~fraud].sum():
        assert all(math.isnan(value) for value in mine.values())
        return
    assert math.isclose(mine["auc"], roc_auc_score(fraud, scores, sample_weight=weights), abs_tol=1e-12)
    assert math.isclose(
        mine["average_precision"], average_precision_score(fraud, scores, sample_weight=weights), abs_tol=1e-12
    )
    false, true, _ = roc_curve(fraud, scores, sample_weight=weights, drop_intermediate=False)
    assert math.isclose(mine["recall_at_1_percent"], true[false <= 0.01].max(), abs_tol=1e-12)


def card_precision_by_hand(days, cards, fraud, scores, k):
    "The Handbook's card precision, as slowly as it is defined."
    found, daily = set(), []
    for day in sorted(set(days)):
        best = {}
        for i in np.flatnonzero(days == day):
            if cards[i] in found:
                continue
            score, bad = best.get(cards[i], (-1, False))
            best[cards[i]] = max(score, scores[i]), bad or fraud[i]
        first = sorted(best, key=lambda card: (-best[card][0], card))[:k]
        hits = [card for card in first if best[card][1]]
        found.update(hits)
        daily.append(len(hits) / k)
    return daily


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 7), st.booleans(), st.integers(0, 5)), min_size=1, max_size=60
    ),
    st.integers(1, 4),
)
def test_card_precision_equals_brute_force(rows, k):
    days, cards, fraud, scores = (np.array(column) for column in zip(*rows))
    table = card_days(days, number_cards(cards + 1), fraud, scores)
    assert card_precision(table, k, np.ones(cards.max() + 1)).tolist() == card_precision_by_hand(
        days, cards, fraud, scores, k
    )


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.booleans(), st.integers(0, 2)), min_size=1, max_size=40
    ),
    st.integers(1, 5),
)
def test_a_weight_is_as_good_as_copies(rows, budget):
    days, scores, fraud, weights = (np.array(column) for column in zip(*rows))
    times = np.repeat(np.arange(len(rows)), weights)
    for mine, copies in [
        ((days, scores, fraud, weights), (days[times], scores[times], fraud[times], np.ones(len(times))))
    ]:
        line, again = queue(mine[0], mine[1]), queue(copies[0], copies[1])
        looked, looked_again = reviewed(line, mine[3].astype(float), budget), reviewed(again, copies[3], budget)
        assert looked.sum() == looked_again.sum()
        distinct = len(set(zip(copies[0], copies[1]))) == len(set(zip(copies[0], copies[1], copies[2])))
        if distinct:
            assert (looked * mine[2][line.order]).sum() == (looked_again * copies[2][again.order]).sum()


def test_resampled_cards_are_as_good_as_copied_rows():
    part, settings = some_slice(3, n=2_000, cards=300, unresolved=0, digits=6), settings_with()
    copies = np.bincount(np.random.default_rng(5).integers(0, 299, 299), minlength=299).astype(float)
    cards = number_cards(part["cards"])
    sliced = sort_slice(
        part["labels"] == 1, part["scores"], part["scores"].astype(float), part["amounts"], part["cards"], part["times"]
    )
    weighted = module.measure(settings, sliced, copies)[0]
    rows = np.repeat(np.arange(2_000), copies[cards].astype(int))
    nth = np.concatenate([np.arange(int(copies[card])) for card in cards])  # each copy of a card is a card of its own
    twins = cards[rows] * 100 + nth + 1
    plain = evaluate(
        settings_with(bootstrap=0),
        part["labels"][rows],
        part["scores"][rows],
        part["times"][rows],
        twins,
        part["amounts"][rows],
    )["metrics"]
    for name in set(weighted) - {"calibration_error"}:  # whose groups are fixed by the slice
        assert math.isclose(weighted[name], plain[name]["value"], rel_tol=1e-5), name


def test_card_precision_equals_the_handbook(shared):
    handbook = runpy.run_path(str(shared.parent / "tools" / "handbook_eval.py"))
    raw = pq.read_table(
        shared / "handbook" / "transactions.parquet",
        columns=["TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TX_AMOUNT", "TX_FRAUD"],
    ).to_pandas()
    raw = raw[(raw.TX_DATETIME >= "2018-07-25") & (raw.TX_DATETIME < "2018-08-15")]
    scores = pq.read_table(shared / "handbook" / "ch3_xgboost_scores.parquet").to_pandas()
    scores.columns = [name.lower() for name in scores.columns]
    test = handbook["test_set"](raw, "2018-07-25").merge(
        scores[["transaction_id", "score"]], left_on="TRANSACTION_ID", right_on="transaction_id"
    )
    theirs = handbook["assess"](test, 100)
    times = test.TX_DATETIME.to_numpy().astype("datetime64[ms]").astype(np.int64)
    result = evaluate(
        settings_with(reviews_a_day=100, bootstrap=50),
        test.TX_FRAUD.to_numpy(),
        test.score.to_numpy(),
        times,
        test.CUSTOMER_ID.to_numpy() + 1,
        (test.TX_AMOUNT.to_numpy() * 100).round().astype(np.int64),
    )
    mine = result["metrics"]
    for name, theirs_name in [
        ("auc", "AUC ROC"),
        ("average_precision", "Average precision"),
        ("card_precision", "Card Precision@100"),
    ]:
        assert math.isclose(mine[name]["value"], theirs[theirs_name], rel_tol=1e-5), name
        assert mine[name]["low"] < mine[name]["value"] < mine[name]["high"]
    assert (
        np.allclose([row["card_precision"] for row in result["days"]], theirs["daily"], atol=1e-12)
        and len(result["days"]) == 7
    )
    assert round(mine["auc"]["value"], 3) == 0.862 and round(mine["average_precision"]["value"], 3) == 0.639


# --- calibration and bands --------------------------------------------------------------------------------------------


def test_calibration_is_the_best_there_is():
    rng, part = np.random.default_rng(1), some_slice(1, n=20_000)
    weights = np.where(part["labels"] == 0, rng.integers(1, 9, 20_000), 1).astype(float)
    a, b = calibrate(part["labels"], part["scores"], weights)
    known = part["labels"] >= 0
    fraud, z, w = part["labels"][known] == 1, module._logits(part["scores"][known]), weights[known]
    bad, good = w[fraud].sum(), w[~fraud].sum()
    aim = np.where(fraud, (bad + 1) / (bad + 2), 1 / (good + 2))
    loss = lambda x: float((w * (np.logaddexp(0, x[0] * z + x[1]) - aim * (x[0] * z + x[1]))).sum())
    best = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9, "maxiter": 2_000})
    assert np.allclose([a, b], best.x, atol=1e-4) and loss([a, b]) <= best.fun + 1e-6
    assert math.isclose(
        np.average(probabilities((a, b), part["scores"][known]), weights=w), bad / (bad + good), rel_tol=0.02
    )


def test_calibration_undoes_a_distortion():
    rng = np.random.default_rng(2)
    truth = 1 / (1 + np.exp(-rng.normal(-3, 2, 200_000)))
    labels = rng.random(200_000) < truth
    a, b = calibrate(labels.astype(np.int8), 1 / (1 + np.exp(-(2.5 * np.log(truth / (1 - truth)) + 1.5))))
    assert abs(a - 1 / 2.5) < 0.01 and abs(b + 1.5 / 2.5) < 0.03


def test_sub_sampling_with_weights_gives_the_same_probabilities():
    part = some_slice(4, n=60_000, cards=9_000, unresolved=0)
    kept = (part["labels"] == 1) | (np.random.default_rng(1).random(60_000) < 0.25)
    weights = np.where(part["labels"] == 1, 1.0, 4.0)[kept]
    full, sampled = (
        calibrate(part["labels"], part["scores"]),
        calibrate(part["labels"][kept], part["scores"][kept], weights),
    )
    assert np.allclose(full, sampled, atol=0.1)


@given(st.floats(0.01, 20), st.floats(-30, 30), st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20))
def test_probability_rises_and_is_the_same_one_by_one(a, b, scores):
    scores = np.sort(np.array(scores, np.float32))
    many = probabilities((a, b), scores)
    assert (np.diff(many) >= 0).all() and (0 <= many).all() and (many <= 1).all()
    for kind in (float, np.float32, np.float64):
        assert [probability((a, b), kind(score)) for score in scores] == many.tolist()


def test_neighbours_stay_apart():
    edge = np.array(
        [0, 1e-45, 1e-38, 0.1, np.nextafter(np.float32(0.1), np.float32(1)), 0.5, 1 - 2**-23, 1 - 2**-24, 1], np.float32
    )
    assert (np.diff(edge) > 0).all() and (np.diff(probabilities((1.0, 0.0), edge)) > 0).all()
    assert math.isnan(probability((1.0, 0.0), math.nan))


def test_one_probability_costs_less_than_a_microsecond_or_so():
    score, best = 0.1234, math.inf
    for _ in range(20):
        start = time.thread_time()
        for _ in range(1_000):
            probability((0.7, -1.0), score)
        best = min(best, time.thread_time() - start)
    assert best / 1_000 < 5e-6  # measured: 0.4 us on an idle machine


def test_scores_without_meaning_get_a_flat_calibration():
    rng = np.random.default_rng(1)
    labels = (rng.random(5_000) < 0.1).astype(np.int8)
    a, b = calibrate(labels, 1 / (1 + np.exp(3.0 * labels + rng.normal(0, 1, 5_000))))
    assert a == LEAST_SLOPE and np.allclose(probabilities((a, b), np.array([0.1, 0.5, 0.9])), labels.mean(), rtol=0.05)
    assert 0 < calibrate(labels, np.full(5_000, 0.3))[0] and np.isfinite(calibrate(labels, labels.astype(float))).all()
    for same in (0, 1, -1):
        with pytest.raises(ValueError, match="cannot calibrate"):
            calibrate(np.full(9, same), np.linspace(0.1, 0.9, 9))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, 12))
def test_groups_keep_order_and_ties_together(values, groups):
    values = np.array(values)
    group = equal_groups(values, groups)
    assert group.max() < groups and set(group) == set(range(group.max() + 1))
    order = np.argsort(values, kind="stable")
    assert (np.diff(group[order]) >= 0).all() and all(len(set(group[values == v])) == 1 for v in set(values))


def test_groups_of_distinct_values_are_of_equal_size():
    values = np.random.default_rng(1).permutation(200)
    assert np.bincount(equal_groups(values)).tolist() == [20] * 10 and equal_groups(values)[values.argmax()] == 9
    assert np.bincount(equal_groups(values, 4)).tolist() == [50] * 4 and equal_groups(np.zeros(0)).tolist() == []


# --- intervals, the whole, odd input ----------------------------------------------------------------------------------


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """AUC of 40 slices with few cards.

    Intervals by card hold the truth nearly as often as they claim, those by event far less.
    """
    settings, hits, hits_apart = settings_with(bootstrap=80), 0, 0
    rng = np.random.default_rng(9)

    def slice_of(cards, n):
        bad, shift = rng.random(cards) < 0.2, rng.normal(0, 1.5, cards)
        card = rng.integers(0, cards, n)
        fraud = bad[card] & (rng.random(n) < 0.7)
        return (
            fraud,
            1 / (1 + np.exp(-(shift[card] + 1.0 * bad[card] + rng.normal(0, 0.3, n)))),
            card.astype(np.uint64) + np.uint64(1),
        )

    fraud, scores, _ = slice_of(200_000, 400_000)
    truth = roc_auc_score(fraud, scores)
    for _ in range(40):
        fraud, scores, card = slice_of(100, 1_500)
        for cards in (card, np.arange(1, 1_501, dtype=np.uint64)):
            part = sort_slice(fraud, scores, scores, np.ones(1_500, np.int64), cards, np.zeros(1_500, np.int64))
            low, high = np.nanquantile(bootstrap(settings, part)[0]["auc"], [0.025, 0.975])
            if cards is card:
                hits += low <= truth <= high
            else:
                hits_apart += low <= truth <= high
    assert hits >= 34 and hits_apart < hits - 5, (hits, hits_apart)


def test_point_values_are_scikit_learns_and_unresolved_events_do_not_count():
    part, settings = some_slice(7), settings_with()
    known = part["labels"] >= 0
    bands = np.digitize(probabilities((0.8, -0.5), part["scores"]), [0.05, 0.3])
    result = evaluate(settings, **part, calibration=(0.8, -0.5), bands=bands)
    fraud, scores = part["labels"][known] == 1, part["scores"][known]
    value = lambda name: result["metrics"][name]["value"]
    assert math.isclose(value("auc"), roc_auc_score(fraud, scores), rel_tol=1e-5)
    assert math.isclose(value("average_precision"), average_precision_score(fraud, scores), rel_tol=1e-5)
    assert math.isclose(value("brier"), brier_score_loss(fraud, probabilities((0.8, -0.5), scores)), rel_tol=1e-5)
    without = evaluate(
        settings, **{name: values[known] for name, values in part.items()}, calibration=(0.8, -0.5), bands=bands[known]
    )
    assert (
        without["metrics"] == result["metrics"]
        and without["unresolved"] == 0
        and result["unresolved"] == (~known).sum()
    )
    days = result["days"]
    assert sum(row["found"] for row in days) / sum(row["reviewed"] for row in days) == pytest.approx(
        value("precision_at_budget"), rel=1e-5
    )
    assert sum(row["frauds"] for row in days) == result["frauds"] == fraud.sum() and all(
        row["reviewed"] == 10 for row in days
    )
    assert [row["events"] for row in result["bands"]] == np.bincount(bands, minlength=3).tolist() and sum(
        row["events"] for row in result["bands"]
    ) == 6_000
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_weights_are_as_good_as_copies():
    part, rng = some_slice(10, n=3_000, unresolved=0, digits=6), np.random.default_rng(2)
    copies = rng.integers(1, 4, 3_000)
    rows = np.repeat(np.arange(3_000), copies)
    weighted = evaluate(settings_with(bootstrap=0), **part, calibration=(0.8, -0.5), weights=copies)
    copied = evaluate(
        settings_with(bootstrap=0), **{name: values[rows] for name, values in part.items()}, calibration=(0.8, -0.5)
    )
    for name, metric in weighted["metrics"].items():
        if name != "calibration_error":
            assert metric["value"] == pytest.approx(copied["metrics"][name]["value"], rel=1e-5), name
    assert weighted["fraud_rate"] == copied["fraud_rate"] and weighted["events"] == 3_000
    assert [row["events"] for row in weighted["days"]] == [row["events"] for row in copied["days"]]
    assert (
        weighted["metrics"]["auc"]
        == evaluate(settings_with(bootstrap=0), **part, weights=2.0 * copies)["metrics"]["auc"]
    )


def test_the_same_seed_gives_the_same_intervals():
    part = some_slice(8)
    first, again = (evaluate(settings_with(), **part)["metrics"] for _ in range(2))
    other = evaluate(
        load_settings(ORDERS, {"acceptance.reviews_a_day": 10, "acceptance.bootstrap": 30, "training.seed": 8}), **part
    )["metrics"]
    assert (
        first == again and first["auc"]["low"] != other["auc"]["low"] and first["auc"]["value"] == other["auc"]["value"]
    )
    calls = []
    evaluate(settings_with(), **part, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 30) for i in range(1, 31)]


def test_events_without_a_card_stand_for_themselves():
    part = some_slice(9)
    missing = evaluate(settings_with(), **part | {"cards": np.zeros(6_000, np.uint64)})
    apart = evaluate(settings_with(), **part | {"cards": np.arange(1, 6_001, dtype=np.uint64)})
    assert missing == apart and missing["cards"] == (part["labels"] >= 0).sum()
    assert number_cards(np.array([7, 0, 7, 0, 2**64 - 1], np.uint64)).tolist() == [0, 2, 0, 3, 1]


def test_the_tables_that_are_shown_beside_brute_force():
    part, settings = some_slice(10), settings_with(bootstrap=0)
    labels, scores, amounts = part["labels"], part["scores"], part["amounts"]
    bands = np.digitize(scores, [0.05, 0.4])
    result = evaluate(settings, **part, bands=bands)
    known, day = labels >= 0, part["times"] // DAY_MS
    assert (result["events"], result["unresolved"], result["frauds"]) == (6_000, (~known).sum(), (labels == 1).sum())
    assert result["cards"] == len(np.unique(part["cards"][known])) and result["fraud_rate"] == pytest.approx(
        (labels == 1).sum() / known.sum(), rel=1e-5
    )
    for name, row in zip(("low", "medium", "high"), result["bands"]):
        mine = bands == ("low", "medium", "high").index(name)
        assert [row[key] for key in ("band", "events", "resolved", "frauds")] == [
            name,
            mine.sum(),
            (mine & known).sum(),
            (mine & (labels == 1)).sum(),
        ]
        assert (row["share"], row["fraud_amount"]) == (
            pytest.approx(mine.mean(), rel=1e-5),
            amounts[mine & (labels == 1)].sum() / 100,
        )
    assert len(result["days"]) == 10
    for number, row in enumerate(result["days"]):
        mine = np.flatnonzero(known & (day == number))
        first = mine[np.argsort(-scores[mine], kind="stable")][
            :10
        ]  # ten people's worth, in the order of the log where scores tie
        assert row["day"] == f"1970-01-{number + 1:02}" and (row["events"], row["frauds"]) == (
            len(mine),
            (labels[mine] == 1).sum(),
        )
        assert (row["reviewed"], row["found"]) == (10, (labels[first] == 1).sum())
    edges = result["scores"]["logit_edges"]
    logit = np.log(
        np.clip(scores.astype(np.float64), 1e-9, 1 - 1e-9) / np.clip(1 - scores.astype(np.float64), 1e-9, 1)
    ).clip(-12, 12)
    assert len(edges) == 41 and edges[0] <= logit.min() + 1e-3 and edges[-1] >= logit.max() - 1e-3
    for name, label in (("legitimate", 0), ("fraud", 1), ("unresolved", -1)):
        assert sum(result["scores"][name]) == (labels == label).sum()
    assert (
        np.average(edges[1:], weights=result["scores"]["fraud"])
        > np.average(edges[1:], weights=result["scores"]["legitimate"]) + 2
    )
    groups = result["calibration"]
    assert sum(group["events"] for group in groups) == known.sum() and sum(
        group["events"] * group["observed"] for group in groups
    ) == pytest.approx((labels == 1).sum(), rel=1e-4)
    assert sum(group["events"] * group["probability"] for group in groups) == pytest.approx(
        scores[known].sum(dtype=np.float64), rel=1e-4
    )


@pytest.mark.parametrize("labels", [[], [-1, -1], [0, 0, 0], [1, 1], [1, 0], [1, 0, -1]], ids=str)
def test_tiny_slices_have_values_or_none(labels, tmp_path):
    n = len(labels)
    for bootstrap_size in (0, 5):
        settings = settings_with(bootstrap=bootstrap_size)
        result = evaluate(
            settings,
            np.array(labels, np.int8),
            np.linspace(0.1, 0.9, n),
            np.arange(n),
            np.arange(n, dtype=np.uint64),
            np.ones(n, np.int64),
            bands=np.zeros(n, int),
        )
        json.dumps(result, allow_nan=False)
        both = {0, 1} <= set(labels)
        assert (result["metrics"]["auc"]["value"] is not None) == both
        judged = judge(settings, result["metrics"])
        assert judged["acceptance"] == "rejected" and ("below" if both else "not defined") in judged["reasons"][0]
        if bootstrap_size and (both or not labels):
            assert len(draw_evaluation(result, tmp_path)) == 5


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"scores": np.full(6_000, np.nan)}, "score nan of event 0"),
        ({"scores": np.linspace(0, 2, 6_000)}, "not from 0 to 1"),
        ({"labels": np.full(6_000, 3)}, "label 3 of event 0"),
        ({"weights": np.zeros(6_000)}, "weight 0.0 of event 0"),
        ({"weights": np.full(6_000, np.inf)}, "weight inf"),
        ({"times": np.arange(5)}, "different lengths"),
        ({"cards": np.arange(5)}, "different lengths"),
    ],
)
def test_wrong_arrays_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        evaluate(settings_with(), **some_slice() | changes)


def test_acceptance_follows_the_minimum():
    metric = lambda value, low=None, high=None: {"value": value, "low": low, "high": high}
    settings = settings_with(min_auc=0.8, min_average_precision=0.3)
    assert judge(settings, {"auc": metric(0.8, 0.7, 0.9), "average_precision": metric(0.3)}) == {
        "acceptance": "accepted",
        "reasons": [
            "AUC ROC 0.800 (0.700 to 0.900) reaches acceptance.min_auc 0.8; the interval reaches below it",
            "average precision 0.300 reaches acceptance.min_average_precision 0.3",
        ],
    }
    one = judge(settings, {"auc": metric(0.79), "average_precision": metric(0.9)})
    both = judge(settings, {"auc": metric(0.79), "average_precision": metric(None)})
    assert (
        one["acceptance"] == both["acceptance"] == "rejected" and len(one["reasons"]) == 1 and len(both["reasons"]) == 2
    )


def test_plots_leave_no_state_and_are_the_same_bytes(tmp_path):
    import matplotlib.pyplot as plt

    result = evaluate(settings_with(), **some_slice())
    before = dict(plt.rcParams)
    first, again = (
        draw_evaluation(result, tmp_path / "a"),
        draw_evaluation(json.loads(json.dumps(result)), tmp_path / "b"),
    )
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again] and all(
        path.read_bytes()[:4] == b"\x89PNG" for path in first
    )
    assert plt.get_fignums() == [] and dict(plt.rcParams) == before


def test_what_the_difference_means_is_said():
    served, frozen = ({name: {"value": value} for name in ("auc", "average_precision")} for value in (0.91, 0.8))
    text = frozen_means(served, frozen, 1_200, 3_000)
    assert (
        "1,200 of 3,000 test events" in text
        and "AUC ROC 0.910 and 0.800, average precision 0.910 and 0.800" in text
        and "as fast as the log says" in text
    )
    assert "not defined" in frozen_means(served, frozen | {"auc": {"value": None}}, 1, 2) and frozen_means(
        served, served, 0, 3_000
    ).endswith("both figures are the same.")
