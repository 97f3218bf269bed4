"""Training: the same bytes from the same dataset and seed, in one process and on a cluster; errors name the remedy."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb
from sklearn.metrics import average_precision_score, roc_auc_score
from support.cluster import cluster

from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.data.ingest import ingest
from fraud_poc.data.sample import make_data
from fraud_poc.features.batch import compute_features
from fraud_poc.model.dataset import make_dataset, read_dataset, read_split
from fraud_poc.model.train import load_trained, train, train_model

ROOT = Path(__file__).resolve().parents[1]
ORDERS = ROOT / "config" / "orders.toml"
ROWS = [
    'Value("order_amount")',
    'Count(by=["customer_id", "email", "ip_addr"], over=["1h", "1d"])',
    'Age(by=["customer_id", "email", "device"])',
    'FraudCount(by=["ip_addr", "device"], over="lifetime")',
]


def settings_in(folder: Path, **changes) -> Settings:
    base = {
        "batch.folder": str(folder),
        "input.events": str(folder / "raw" / "orders"),
        "input.labels": str(folder / "raw" / "labels"),
        "sample.orders": 15_000,
        "sample.customers": 3_000,
        "sample.fraud_rate": 0.05,
        "batch.part_rows": 10_000,
        "batch.threads": 2,
        "features.rows": ROWS,
        "training.delay": "21d",
        "training.shards": 4,
        "model.trees": 25,
        "model.early_stopping": 8,
        "model.max_depth": 4,
    }
    return load_settings(ORDERS, base | {name.replace("__", "."): value for name, value in changes.items()})


def raw(booster: xgb.Booster) -> bytes:
    return bytes(booster.save_raw("ubj"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Settings:
    "A log with features and a dataset."
    settings = settings_in(tmp_path_factory.mktemp("train"))
    make_data(settings)
    ingest(settings)
    compute_features(settings)
    make_dataset(settings)
    return settings


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made.batch.folder, tmp_path / "orders", ignore=shutil.ignore_patterns("raw", "trained"))
    return tmp_path / "orders"


def test_one_process_gives_the_same_bytes(copy):
    heard = []
    first = train_model(settings_in(copy), progress=lambda *trees: heard.append(trees))
    assert heard == [(i + 1, 25) for i in range(first.about["grown"])]
    for threads in (1, 3):
        assert raw(train_model(settings_in(copy, batch__threads=threads)).booster) == raw(first.booster)
    split, validation = read_split(settings_in(copy), "train"), read_split(settings_in(copy), "validation")
    whole = train(settings_in(copy).model, [lambda: split[:3]], first.names, 7, validation[:3])
    assert raw(whole.booster) == raw(first.booster) and [round(v, 6) for v in whole.history] == first.about["history"]
    loaded = load_trained(settings_in(copy))
    assert raw(loaded.booster) == raw(first.booster) and loaded.names == first.names and loaded.about == first.about
    assert raw(train(settings_in(copy).model, [lambda: split[:3]], first.names, 8, validation[:3]).booster) != raw(
        first.booster
    )


def test_it_stops_at_the_best_tree_and_has_learnt(made, copy):
    settings = settings_in(copy, model__trees=200, model__learning_rate=0.5, model__early_stopping=5)
    trained = train_model(settings)
    history = trained.about["history"]
    assert (
        trained.about["trees"] == int(np.argmax(history)) + 1
        and trained.about["grown"] == trained.about["trees"] + 5 == len(history) < 200
    )
    assert (
        trained.booster.num_boosted_rounds() == trained.about["trees"]
        and trained.booster.feature_names == trained.names
    )
    test = read_split(settings, "test")
    score = trained.booster.inplace_predict(test.features)
    assert roc_auc_score(test.label, score, sample_weight=test.weight) > 0.7
    validation = read_split(settings, "validation")
    found = average_precision_score(
        validation.label, trained.booster.inplace_predict(validation.features), sample_weight=validation.weight
    )
    assert abs(found - max(history)) < 0.03
    assert train_model(settings_in(copy, model__early_stopping=0)).about["trees"] == 25


def test_the_base_score_is_the_configured_one(copy):
    for score in (0.5, 0.02):
        config = json.loads(train_model(settings_in(copy, model__base_score=score)).booster.save_config())
        base = float(config["learner"]["learner_model_param"]["base_score"].strip("[]"))
        assert abs(base - score) < 1e-6


def test_a_frauds_weight_moves_scores(copy):
    plain, heavy = (
        train_model(settings_in(copy, model__fraud_weight=weight, model__early_stopping=0)) for weight in (1.0, 20.0)
    )
    features = read_split(settings_in(copy), "validation").features
    assert heavy.booster.inplace_predict(features).mean() > 1.5 * plain.booster.inplace_predict(features).mean()


def test_one_worker_gives_what_one_process_gives(copy, tmp_path):
    alone = train_model(settings_in(copy))
    heard = []
    with cluster(tmp_path / "cluster", 1) as (address, _):
        there = train_model(settings_in(copy, batch__scheduler=address), progress=lambda *trees: heard.append(trees))
    assert raw(there.booster) == raw(alone.booster) and there.about["history"] == alone.about["history"]
    assert (there.about["workers"], alone.about["workers"]) == (1, 0) and heard and all(most == 25 for _, most in heard)


def test_two_workers_give_the_same_bytes_each_time(copy, tmp_path):
    found = []
    for i in range(2):
        with cluster(tmp_path / f"cluster{i}", 2) as (address, _):
            found += [train_model(settings_in(copy, batch__scheduler=address, model__trees=8)) for _ in range(2 - i)]
    assert len({raw(one.booster) for one in found}) == 1, "another cluster, and the same one again"
    alone, test = train_model(settings_in(copy)), read_split(settings_in(copy), "test")
    quality = [roc_auc_score(test.label, one.booster.inplace_predict(test.features)) for one in (found[0], alone)]
    assert abs(quality[0] - quality[1]) < 0.06 and found[0].about["workers"] == 2
    validation = read_split(settings_in(copy), "validation")
    matrix = xgb.DMatrix(validation.features, validation.label, weight=validation.weight, feature_names=found[0].names)
    found[0].booster.set_param({"eval_metric": "aucpr"})
    judged = float(found[0].booster.eval(matrix).split(":")[-1])
    assert abs(judged - max(found[0].about["history"])) < 1e-4, (
        "the validation days are judged as a whole, not averaged over workers"
    )


def test_what_is_missing_is_told(copy):
    with pytest.raises(ValueError, match="run `fraud-poc train` first"):
        load_trained(settings_in(copy))
    train_model(settings_in(copy))
    with pytest.raises(ValueError, match="another feature table"):
        load_trained(settings_in(copy, features__rows=ROWS[:2]))
    with pytest.raises(ValueError, match="training.seed = 7, not 8: run `fraud-poc dataset` again"):
        train_model(settings_in(copy, training__seed=8))
    make_dataset(settings_in(copy, training__seed=8))
    with pytest.raises(ValueError, match="another dataset"):
        load_trained(settings_in(copy, training__seed=8))
    (
        copy / "dataset" / "train" / read_dataset(settings_in(copy, training__seed=8))["files"]["train"][0]["name"]
    ).unlink()
    with pytest.raises(ValueError, match="gone or changed: run `fraud-poc dataset` with --replace"):
        train_model(settings_in(copy, training__seed=8))
    shutil.rmtree(copy / "dataset")
    with pytest.raises(ValueError, match="run `fraud-poc dataset` first"):
        train_model(settings_in(copy))
