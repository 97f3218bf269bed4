"""Counts against plain recomputation, bounded memory, and pages that stand alone."""

import html.parser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import house

from fraud_poc.core.files import read_json
from fraud_poc.core.settings import load_settings
from fraud_poc.data.ingest import ingest
from fraud_poc.data.log import read_manifest, read_part
from fraud_poc.data.sample import make_data
from fraud_poc.features.batch import compute_features
from fraud_poc.features.state_files import features_folder
from fraud_poc.features.table import build_table
from fraud_poc.ops import survey as module
from fraud_poc.ops.describe import describe, html_table
from fraud_poc.ops.survey import (
    KeyCounts,
    add_last_labels,
    auc,
    binned,
    busiest_share,
    current_features,
    delay_days,
    distinct_features,
    in_sample,
    rank_features,
    survey,
    wilson,
)

DAY = 86_400_000


@pytest.fixture(scope="module")
def log(root, tmp_path_factory):
    "Settings of a small sample with features, its events with their last label, and its label log."
    home = tmp_path_factory.mktemp("describe")
    settings = load_settings(
        root / "config" / "orders.toml",
        {
            "batch.folder": str(home),
            "input.events": str(home / "raw/orders"),
            "input.labels": str(home / "raw/labels"),
            "sample.orders": 9_000,
            "sample.customers": 900,
            "sample.days": 80,
            "batch.part_rows": 4_000,
        },
    )
    make_data(settings)
    ingest(settings)
    compute_features(settings)
    parts = [part["name"] for part in read_manifest(home)["parts"]]
    events, labels = (
        pd.concat([read_part(home, kind, part).to_pandas() for part in parts]) for kind in ("events", "labels")
    )
    last = labels.drop_duplicates("id", keep="last").set_index("id").label
    return settings, events.assign(label=events["id"].map(last).fillna(-1).astype(int)), labels


@pytest.fixture(scope="module")
def seen(log):
    settings = log[0]
    return survey(settings, build_table(settings), read_manifest(settings.batch.folder))


def ms(column):
    return column.dt.as_unit("ms").astype("int64")


def test_counts_by_day_and_hour(log, seen):
    _, events, labels = log
    tally = seen[0]
    for row, chosen_events in [(0, events), (2, events[events.label >= 0]), (3, events[events.label == 1])]:
        found = np.bincount(ms(chosen_events.time) // DAY - tally.first_day, minlength=tally.days.shape[1])
        assert (tally.days[row] == found).all()
    assert (
        tally.days[1] == np.bincount(ms(labels.known) // DAY - tally.first_day, minlength=tally.days.shape[1])
    ).all()
    week = events.time.dt.day_of_week * 24 + events.time.dt.hour
    assert (
        tally.week
        == [
            np.bincount(week[keep], minlength=168) for keep in (events.label > -2, events.label >= 0, events.label == 1)
        ]
    ).all()
    assert tally.corrected == (labels.previous >= 0).sum() > 0


def test_delays(log, seen):
    _, _, labels = log
    first = labels[labels.previous < 0]
    hours = (ms(first.known) - ms(first.time)) // 3_600_000
    assert abs(delay_days(seen[0], 0.5) - np.median(hours) / 24) < 0.1
    assert seen[0].delays.sum(axis=1).tolist() == [(first.label == 0).sum(), (first.label == 1).sum()]


def test_busy_entities(log, seen):
    _, events, _ = log
    for name, counts in seen[0].busy.items():
        expected = events[f"{name}_key"].value_counts()
        assert len(counts.keys) == len(expected) and counts.counts.sum() == expected.sum()
        assert busiest_share(counts, 0) == expected.iloc[0] / len(events) and busiest_share(counts, 1) == 1


def test_sample_is_joined_with_features_and_last_labels(log, seen):
    settings, events, _ = log
    table, sample = build_table(settings), seen[1]
    assert sample.columns["seq"].tolist() == events.seq.tolist() and sample.label.tolist() == events.label.tolist()
    files = sorted((features_folder(settings, table) / "parts").iterdir())
    whole = np.concatenate([pq.read_table(path).select(table.names).to_pandas().to_numpy(np.float32) for path in files])
    assert np.array_equal(sample.features, whole, equal_nan=True)


def test_a_small_sample_and_small_batches_give_the_same_counts(log, seen, monkeypatch):
    settings, events, _ = log
    monkeypatch.setattr(module, "SAMPLE", 2_000)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 700)
    tally, sample, _ = survey(settings, build_table(settings), read_manifest(settings.batch.folder))
    assert (
        (tally.days == seen[0].days).all()
        and (tally.delays == seen[0].delays).all()
        and 1_800 < len(sample.label) < 2_200
    )
    by_seq = events.set_index("seq").label
    assert by_seq.loc[sample.columns["seq"]].tolist() == sample.label.tolist()


def test_key_counts_stay_small():
    rng = np.random.default_rng(3)
    counts = KeyCounts(most=500)
    for _ in range(20):
        counts.add(rng.integers(1, 2**64, 1_000, dtype=np.uint64))
    assert len(counts.keys) <= 500 and 20_000 * counts.cutoff / 2**64 == pytest.approx(len(counts.keys), rel=0.2)
    counts.add(np.zeros(5, np.uint64))
    assert (counts.keys != 0).all()


def test_features_that_tell():
    rng = np.random.default_rng(5)
    label = (rng.random(4_000) < 0.1).astype(np.int8)
    telling = (rng.normal(size=4_000) + label).astype(np.float32)
    rare = np.where(rng.random(4_000) < 0.9, np.nan, telling)
    features = np.stack([rng.normal(size=4_000), telling, telling * 2 + 1, rare, np.full(4_000, np.nan)], 1).astype(
        np.float32
    )
    names = ["noise", "telling", "double", "rare", "empty"]
    ranked = rank_features(names, features, label)
    assert {ranked[0]["name"], ranked[1]["name"]} == {"telling", "double"} and ranked[0]["auc"] == pytest.approx(
        0.76, abs=0.03
    )
    assert next(row for row in ranked if row["name"] == "empty") == {"name": "empty", "auc": 0.5, "missing": 1.0}
    kept = [row["name"] for row in distinct_features(names, features, ranked)]
    assert len({"telling", "double"} & set(kept)) == 1 and "empty" not in kept
    middle, size, bad = binned(telling, label == 1)
    assert (
        size.sum() == 4_000
        and bad.sum() == label.sum()
        and (np.diff(middle[:-1]) > 0).all()
        and abs(auc(telling, label == 1) - ranked[0]["auc"]) < 1e-9
    )


def test_intervals():
    low, high = wilson(np.array([0, 0, 3]), np.array([0, 50, 3]))
    assert (
        np.isnan(low[0])
        and low[1] == pytest.approx(0, abs=1e-12)
        and 0.05 < high[1] < 0.1
        and high[2] == pytest.approx(1)
    )
    assert in_sample(np.arange(100_000), 0.5).mean() == pytest.approx(0.5, abs=0.01)


class Page(html.parser.HTMLParser):
    "Sources and links of a page."

    def __init__(self):
        super().__init__()
        self.links = []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]


def test_page_stands_alone_and_escapes_names(log, tmp_path):
    settings = log[0]
    report = describe(settings, tmp_path / "report")
    assert report["folder"] == str(tmp_path / "report") and {path.name for path in (tmp_path / "report").iterdir()} == {
        *report["plots"],
        "index.html",
    }
    for name in report["plots"]:
        assert (tmp_path / "report" / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = Page()
    page.feed((tmp_path / "report" / "index.html").read_text())
    assert page.links == report["plots"]
    assert "<b>" not in html_table(["<b>"], [["<b>x</b>"]]) and "&lt;b&gt;" in html_table(["<b>"], [])


def test_features_of_another_log_are_not_used(log, tmp_path):
    settings = log[0]
    table = build_table(settings)
    manifest = read_manifest(settings.batch.folder)
    assert len(current_features(settings, table, manifest)) == len(manifest["parts"])
    changed = manifest | {"parts": [part | {"events_sha256": "0"} for part in manifest["parts"]]}
    assert current_features(settings, table, changed) == {}
    assert read_json(features_folder(settings, table) / "manifest.json")["parts"]


@pytest.mark.parametrize(
    "rows, labelled",
    [
        (["1,2025-01-01,a,5,"], False),
        (["1,2025-01-01,a,5,1", "2,2025-01-04,a,0,0"], True),
        (["1,2025-01-01,a,-5,1"], False),
        (["1,2025-01-01,a,5,0", "2,2025-01-04,a,1,0"], True),
    ],
)
def test_tiny_logs(root, tmp_path, rows, labelled):
    (tmp_path / "c.toml").write_text(
        """
domain = {name = "tiny"}
input = {events = "", labels = ""}
limits = {min_amount = -9.0, max_amount = 1000.0, earliest = "2000-01-01", latest = "2100-01-01", gap = "400d"}
batch = {folder = "out", scheduler = "", threads = 1, partitions = 0, part_rows = 1000, step_rows = 1000}
[columns]
id = ["id"]
time = "at"
time_format = "iso"
timezone = "UTC"
amount = "amount"
decimals = 2
entities = ["who"]
categories = []
missing_values = ["NULL"]
[labels]
column = "fraud"
fraud_values = [1]
legitimate_values = [0]
unresolved_values = []
other_values = "refuse"
time_column = ""
delay = "2d"
source = "customer"
priority = ["chargeback", "analyst", "customer", "rule"]
[features]
retention = "30d"
forget_after = "90d"
exact_events = 16
set_size = 4
rows = ['Count(by="who", over="1d")']
"""
        + house.rest_of_settings(root, "who")
    )
    (tmp_path / "in.csv").write_text("\n".join(["id,at,who,amount,fraud", *rows]) + "\n")
    settings = load_settings(tmp_path / "c.toml")
    ingest(settings, str(tmp_path / "in.csv"))
    compute_features(settings)
    report = describe(settings)
    assert report["events"] == len(rows) and (report["resolved"] > 0) == labelled and report["story"] == []
    assert report["labels_waiting"] == sum(not row.endswith(",") for row in rows) - labelled
    frauds = int(labelled and rows[0].endswith(",1"))
    assert report["frauds"] == frauds and report["note"] == (
        "no fraud: none of 1 labels means fraud; check labels.column and labels.fraud_values"
        if labelled and not frauds
        else ""
    )


def test_a_missing_log_is_rejected(tmp_path, log):
    settings = log[0].model_copy(update={"batch": log[0].batch.model_copy(update={"folder": tmp_path})})
    with pytest.raises(ValueError, match="no event log"):
        describe(settings)


def test_sampled_events_that_share_an_id_get_labels_of_their_own(tmp_path):
    (tmp_path / "log" / "labels").mkdir(parents=True)
    pq.write_table(
        pa.table({"id_key": pa.array([7, 7, 9], pa.uint64()), "time": [900, 100, 5], "label": [0, 1, 1]}),
        tmp_path / "log" / "labels" / "a.parquet",
    )
    columns = {"id_key": np.array([7, 8, 7], np.uint64), "time": np.array([100, 100, 900])}
    sample = SimpleNamespace(columns=columns, label=np.full(3, -1, np.int8))
    add_last_labels(SimpleNamespace(batch=SimpleNamespace(folder=tmp_path)), {"parts": [{"name": "a"}]}, [sample])
    assert sample.label.tolist() == [1, -1, 0]
