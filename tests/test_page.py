"""The model page holds what the bundle holds, the same each time."""

import copy
import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import xgboost as xgb

from fraud_poc.core.settings import load_settings
from fraud_poc.features.rows import parse_rows
from fraud_poc.features.table import build_table
from fraud_poc.ops.model_page import (
    feature_groups,
    markdown_table,
    model_page,
    money_tables,
    number_cell,
    share_text,
    windows_in_words,
    write_model_page,
)

PARTS = [
    "In short",
    "Purpose",
    "Process",
    "Data and windows",
    "Preprocessing and features",
    "Metrics",
    "Validation",
    "Tuning",
    "Calibration",
    "Policy and money",
    "Bands",
    "Limits and fairness",
    "Next steps",
    "Hashes",
]
METRIC = {"value": 0.5, "low": 0.4, "high": 0.6}
MONEY = {
    "costs": {name: METRIC for name in ("block", "fixed", "pass", "policy")},
    "savings": {name: METRIC for name in ("block", "fixed", "pass")},
    "days": 14,
    "actions": {
        "block": {"events": 3.2, "frauds": 2.0},
        "not_reached": {"events": 1.0},
        "pass": {"events": 90.0, "frauds": 1.0},
        "review": {"events": 7.0, "frauds": 4.0},
    },
    "best_fixed": {"threshold": 0.22, "cost": 12.3},
}


@dataclass(frozen=True)
class Stand:
    "What the page reads of a bundle."

    folder: object
    hash: str
    booster: object
    names: list
    table_hash: str
    calibration: tuple
    policy: object
    sample: np.ndarray
    manifest: dict


def evaluation():
    found = {
        name: METRIC
        for name in (
            "auc",
            "average_precision",
            "precision_at_budget",
            "recall_at_budget",
            "amount_recall_at_budget",
            "recall_at_1_percent",
            "card_precision",
            "brier",
        )
    }
    return {
        "metrics": found | {"calibration_error": {"value": 0.01, "low": 0.0, "high": 0.02}},
        "events": 1_000,
        "frauds": 20,
        "fraud_rate": 0.02,
        "unresolved": 0,
        "reviews_a_day": 100,
        "calibration": [
            {"events": 500.4, "probability": 0.01, "observed": 0.02, "low": 0.01, "high": 0.03},
            {"events": 0, "probability": None, "observed": None, "low": None, "high": None},
        ],
        "bands": [
            {"band": band, "events": 10, "share": 0.1, "frauds": n, "fraud_amount": 12.5}
            for n, band in enumerate(("low", "medium", "high"))
        ],
        "money": MONEY,
    }


@pytest.fixture(params=["orders", "cards", "ratings"])
def bundle(request, root, tmp_path):
    settings = load_settings(root / "config" / f"{request.param}.toml")
    names, rng = build_table(settings).names, np.random.default_rng(1)
    sample = rng.gamma(1.0, 2.0, (60, len(names))).astype(np.float32)
    booster = xgb.train(
        {"objective": "binary:logistic", "nthread": 1, "base_score": 0.5},
        xgb.DMatrix(sample, sample[:, 0] > 2, feature_names=names),
        5,
    )
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation()))
    windows = dict(
        train="2025-01-30",
        validation="2025-04-16",
        train_end="2025-04-30",
        cutoff="2025-05-21",
        test_end="2025-06-04",
        known_end="2025-06-25",
    )
    manifest = {
        "id": "20250101T000000000-abcdef01",
        "created": "2025-01-01T00:00:00.000+00:00",
        "domain": request.param,
        "acceptance": "accepted",
        "reasons": ["AUC ROC 0.9 reaches acceptance.min_auc 0.8"],
        "training": {"windows": windows, "rows": 100, "frauds": 3, "trees": 5, "dataset": "d" * 64, "workers": 0},
        "files": {"booster.json": "b" * 64},
        "versions": {"xgboost": "3.2.0", "numpy": "2.4.6"},
        "settings": settings.model_dump(mode="json"),
    }
    rule = SimpleNamespace(
        costs=settings.policy.model_dump(), capacity=100, review_over=0.1, block_over=2.5, hash="p" * 64
    )
    return Stand(tmp_path, "h" * 64, booster, names, "t" * 64, (1.1, -0.6), rule, sample, manifest)


def changed(bundle, **values):
    (bundle.folder / "evaluation.json").write_text(json.dumps(evaluation() | values))
    return model_page(bundle)


def test_the_page_has_all_parts_and_is_the_same_each_time(bundle):
    text = model_page(bundle)
    assert text == model_page(bundle) and [line[3:] for line in text.splitlines() if line.startswith("## ")] == PARTS
    assert all(
        value in text
        for value in (
            "h" * 64,
            "t" * 64,
            "p" * 64,
            "d" * 64,
            "b" * 64,
            bundle.manifest["id"],
            "2025-05-21",
            "sigmoid(1.1000 · logit(score) − 0.6000)",
        )
    )
    assert (
        not any(word in text for word in ("nan", "None", str(bundle.folder), "SimpleNamespace"))
        and text.endswith("\n")
        and "{" not in text
    )


def test_every_feature_is_in_one_group_and_weights_add_up(bundle):
    groups = feature_groups(bundle)
    assert sum(len(rows) for _, rows, _ in groups) == len(bundle.names) and sum(
        weight for *_, weight in groups
    ) == pytest.approx(1)
    assert [weight for *_, weight in groups] == sorted((weight for *_, weight in groups), key=lambda w: -round(w, 4))


def test_windows_are_listed_shortest_first():
    rows = parse_rows('Count(by="a", over=["lifetime", "1h", "90s", "1s", "1min"])')
    assert windows_in_words(rows) == "1s, 1min, 90s, 1h, lifetime"


def test_tables_are_whole(bundle):
    "Each row of a table has as many cells as its head."
    lines = model_page(bundle).splitlines()
    for before, line in zip(lines, lines[1:]):
        if before.startswith("|") and line.startswith("|"):
            assert before.replace("\\|", "").count("|") == line.replace("\\|", "").count("|")


def test_what_is_missing_is_shown_as_missing(bundle):
    empty = {"value": None, "low": None, "high": None}
    text = changed(bundle, money=None, metrics={name: empty for name in evaluation()["metrics"]})
    assert "no figures about money" in text and "| AUC ROC | – | – |" in text and "None" not in text


def test_the_figures_with_labels_frozen_stand_beside_those_as_served(bundle):
    "Bundles that were saved before have no second figures, and their page says nothing of them."
    plain, low = (
        model_page(bundle),
        {name: {"value": 0.25, "low": 0.2, "high": 0.3} for name in evaluation()["metrics"]},
    )
    frozen = {
        "events_changed": 7,
        "metrics": low,
        "money": {"costs": {"policy": {"value": 77.0}}},
        "meaning": "What it means.",
    }
    text = changed(bundle, frozen=frozen)
    assert (
        "| on the test days | as served | 95 % interval | labels frozen | 95 % interval |" in text
        and "| AUC ROC | 0.500 | 0.400 to 0.600 | 0.250 | 0.200 to 0.300 |" in text
    )
    assert (
        "0 a day as served, and 77 with label features frozen when the test begins. What it means." in text
        and "frozen" not in plain
    )
    assert changed(bundle, frozen=None) == plain and "What it means." in changed(
        bundle, frozen=frozen | {"money": None}
    )


def test_next_steps_follow_the_numbers(bundle):
    good = {name: {"value": 0.5, "low": 0.48, "high": 0.52} for name in evaluation()["metrics"]} | {
        "calibration_error": {"value": 0.0001, "low": 0.0, "high": 0.001}
    }
    assert "judge on more days" in changed(bundle) and "calibrate on more days" in changed(bundle)
    assert "judge on more days" not in changed(bundle, metrics=good) and "calibrate on more days" not in changed(
        bundle, metrics=good
    )
    low = good | {"average_precision": {"value": 0.5, "low": -1.0, "high": 0.52}}
    assert "gather more labels" in changed(bundle, metrics=low)


def test_another_bundle_has_another_page(bundle):
    text, manifest = model_page(bundle), copy.deepcopy(bundle.manifest)
    manifest["settings"]["training"]["legitimate_share"] = 0.25
    assert (
        "25% of the legitimate events were kept" in model_page(Stand(**{**bundle.__dict__, "manifest": manifest}))
        and "were kept, and weigh" not in text
    )


def test_money_and_numbers():
    assert money_tables(MONEY, "EUR").splitlines()[2].startswith(
        "| the policy |"
    ) and "| of them not reached | 1 |  |" in money_tables(MONEY, "EUR")
    assert (number_cell(None), number_cell(1234.567, 1), share_text(0.1234, 2)) == (
        "–",
        "1,234.6",
        "12.34%",
    ) and markdown_table(["a", "b"], [["x|y", "1\n2"]]).splitlines()[2] == "| x\\|y | 1 2 |"


def test_without_a_model_nothing_is_written(root, tmp_path):
    settings = load_settings(root / "config/orders.toml", {"batch.folder": str(tmp_path / "none")})
    with pytest.raises(ValueError, match="there is no model"):
        write_model_page(settings, tmp_path / "docs" / "model.md")
    assert not (tmp_path / "docs").exists()


def test_the_committed_page_is_of_this_form(root):
    text = (root / "docs/model.md").read_text(encoding="utf-8")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == PARTS
    assert build_table(load_settings(root / "config/orders.toml")).hash in text, (
        "the page is of another feature table: run fraud-poc model-page on a demo"
    )
