"""Splits by chance: who is drawn, with which labels, and that a model judged on them says so."""

import numpy as np
import pytest
from support.judged import without_plots
from test_dataset import built, digests, frame, raw, settings_in

from fraud_poc.core.settings import load_settings
from fraud_poc.features.table import build_table
from fraud_poc.model.acceptance import judge_model
from fraud_poc.model.bundle import list_bundles
from fraud_poc.model.dataset import make_dataset, read_dataset, read_split
from fraud_poc.model.train import train_model
from fraud_poc.model.windows import SPLITS, split_shares

QUICK = {"model__trees": 10, "acceptance__bootstrap": 5, "acceptance__min_auc": 0.0}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    "Settings of a log with features, raw orders and labels."
    folder, data = tmp_path_factory.mktemp("split"), raw(None)
    return built(folder, *data, **QUICK, acceptance__min_average_precision=0.0), *data


def of(settings, **changes):
    "The settings with others of the training."
    return settings.model_copy(update={"training": settings.training.model_copy(update=changes)})


def test_a_split_in_time_is_what_it_was_before_there_were_others(log):
    settings = log[0]
    made = make_dataset(settings)
    assert "split" not in made["training"] and "split" not in settings.training.meaning
    assert read_dataset(settings) == made
    with pytest.raises(ValueError, match="training.split = 'time', not 'random'"):
        read_dataset(of(settings, split="random"))


@pytest.mark.parametrize("split", ["random", "stratified"])
def test_each_event_of_the_window_is_in_one_split_in_the_proportions_of_the_days(log, split):
    settings = of(log[0], split=split)
    made = make_dataset(settings)
    w, rows = made["windows_ms"], {name: frame(settings, name) for name in SPLITS}
    ids = np.concatenate([found["id"] for found in rows.values()])
    assert len(ids) == len(set(ids))
    for name, share in split_shares(settings.training).items():
        times = rows[name].time.astype("datetime64[ms, UTC]").astype("int64")
        assert abs(len(rows[name]) / len(ids) - share) < 0.03
        # from the first to the last day: nothing is kept for the end
        assert times.min() - w["train"] < 2 * 86_400_000 and w["test_end"] - times.max() < 2 * 86_400_000
    if split == "stratified":  # in each part of the log to within one event
        frauds = np.array([rows[name].label.sum() for name in SPLITS])
        wanted = frauds.sum() * np.array([*split_shares(settings.training).values()])
        assert np.abs(frauds - wanted).max() < len(made["files"]["test"])


@pytest.mark.parametrize("split", ["random", "stratified"])
def test_labels_are_those_known_at_the_end_and_unresolved_events_are_in_no_split(log, split):
    settings, _, labels = log
    settings = of(settings, split=split)
    make_dataset(settings)
    latest = labels.sort_values("known_at", kind="stable").drop_duplicates("order_id", keep="last")
    latest = latest.set_index("order_id").is_fraud
    for name in SPLITS:
        rows = frame(settings, name)
        assert (latest.loc[rows.id].to_numpy() == rows.label.to_numpy()).all()


def test_draws_depend_on_the_seed_alone(log, tmp_path):
    settings, events, labels = log
    made = digests(make_dataset(of(settings, split="stratified")))
    one = settings.model_copy(update={"batch": settings.batch.model_copy(update={"threads": 1})})
    assert digests(make_dataset(of(one, split="stratified"), replace=True)) == made
    assert digests(make_dataset(of(settings, split="stratified", seed=8))) != made
    drawn = {name: set(frame(of(settings, split="stratified", seed=8), name).id) for name in SPLITS}
    make_dataset(of(settings, split="random"))
    small = {name: set(frame(of(settings, split="random"), name).id) for name in SPLITS}
    whole = built(tmp_path, events, labels, batch__part_rows=5_000)
    make_dataset(of(whole, split="random"))  # how the log is divided has no influence
    assert {name: set(frame(of(whole, split="random"), name).id) for name in SPLITS} == small != drawn


def test_validation_and_test_weigh_as_much_as_their_days(log):
    settings = of(log[0], split="random")
    made = make_dataset(settings)
    total = {name: made["splits"][name]["weight"] for name in SPLITS}
    share = split_shares(settings.training)
    window = total["train"] / share["train"]
    assert abs(total["test"] / window - 1) < 0.15 and abs(total["validation"] / window - 1) < 0.15
    with pytest.raises(ValueError, match="only the test of a split in time"):
        read_split(settings, "test", frozen=True)


def test_a_model_judged_on_it_says_so_accepted_or_rejected(log, monkeypatch):
    without_plots(monkeypatch)
    settings = of(log[0], split="random")
    make_dataset(settings)
    train_model(settings)
    for least, acceptance in [(0.0, "accepted"), (1.0, "rejected")]:
        strict = settings.acceptance.model_copy(update={"min_auc": least})
        judged = judge_model(settings.model_copy(update={"acceptance": strict}))
        assert judged["acceptance"] == acceptance
        assert judged["reasons"][-1] == "judged on a random split, which flatters, not on later days"
        assert "later events of the same entities" in judged["warning"] and "labels_frozen" not in judged
        listed = list_bundles(settings)[0]
        assert listed["reasons"] == judged["reasons"] and listed["table_hash"] == build_table(settings).hash


def test_of_a_log_that_is_shorter_than_the_days_all_is_drawn_from(log):
    settings = of(log[0], split="random", train_days=400, test_days=100, validation_days=80)
    made = make_dataset(settings)
    assert made["windows"]["train"] == "2025-01-01"
    rows = {name: made["splits"][name]["rows"] for name in SPLITS}
    assert abs(rows["test"] / sum(rows.values()) - 0.2) < 0.03


def test_another_word_is_no_split(log, root):
    with pytest.raises(ValueError, match="training.split"):
        load_settings(root / "config" / "orders.toml", {"training.split": "shuffled"})
    assert settings_in(log[0].batch.folder).training.split == "time"
