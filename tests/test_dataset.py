"""The training set: nothing of the future, nothing unresolved, weights that restore totals, always the same bytes."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support import oracle
from support.judged import without_plots

from fraud_poc.core.files import read_json
from fraud_poc.core.sections import moment_ms
from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.data.ingest import ingest
from fraud_poc.data.log import copy_stretch, part_path, read_manifest, read_part
from fraud_poc.features.batch import compute_features
from fraud_poc.features.label_delay import (
    LEAST_KNOWN,
    LatestLabels,
    count_waits,
    label_events,
    labels_before,
    share_known,
    waiting_weights,
)
from fraud_poc.model import dataset as module
from fraud_poc.model.acceptance import judge_model
from fraud_poc.model.bundle import latest_bundle
from fraud_poc.model.dataset import make_dataset, read_dataset, read_split
from fraud_poc.model.train import train_model
from fraud_poc.model.windows import SPLITS, kept
from fraud_poc.ops.model_page import model_page

CARDS = Path(__file__).resolve().parents[1] / "config" / "cards.toml"
ORDERS = CARDS.with_name("orders.toml")
DAY = 86_400_000
START = int(np.datetime64("2025-01-01", "ms").astype(np.int64))
LABELS = ["order_id", "is_fraud", "known_at"]


def settings_in(folder: Path, **changes) -> Settings:
    "Orders of 40 days in small parts: test on the last four days whose labels are due, after a gap of six."
    base = {
        "batch.folder": str(folder),
        "input.events": str(folder / "raw.parquet"),
        "input.labels": str(folder / "labels.parquet"),
        "batch.part_rows": 700,
        "batch.threads": 2,
        "features.rows": [
            'Value("order_amount")',
            'Count(by="customer_id", over="7d")',
            'FraudCount(by="email", over="lifetime")',
        ],
        "training.test_days": 4,
        "training.delay": "6d",
        "training.train_days": 20,
        "training.validation_days": 5,
        "training.shards": 3,
    }
    return load_settings(ORDERS, base | {name.replace("__", "."): value for name, value in changes.items()})


def raw(folder: Path, orders: int = 2_400, days: int = 40, seed: int = 5) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Orders and their labels: most known within five days, some much later, some never, every eighth corrected."
    rng = np.random.default_rng(seed)
    time = np.sort(START + rng.integers(0, days * DAY, orders))
    events = pd.DataFrame(
        {
            "order_id": [f"o{i}" for i in range(orders)],
            "order_date": pd.to_datetime(time, unit="ms", utc=True),
            "order_amount": rng.integers(100, 9_000, orders) / 100,
            "customer_id": rng.integers(1, 200, orders).astype(str),
            "email": [f"e{i}@example.org" for i in rng.integers(1, 150, orders)],
            "ip_addr": "10.0.0.1",
            "device": "d",
            "location": "here",
        }
    )
    fraud = rng.random(orders) < 0.1
    wait = np.where(rng.random(orders) < 0.8, rng.uniform(0.1, 5, orders), rng.uniform(5, 30, orders))
    first = pd.DataFrame(
        {
            "order_id": events.order_id,
            "is_fraud": fraud.astype(int),
            "known_at": pd.to_datetime(time + (wait * DAY).astype(np.int64), unit="ms", utc=True),
        }
    )
    corrected = first[rng.random(orders) < 0.125]
    corrected = corrected.assign(
        is_fraud=1 - corrected.is_fraud,
        known_at=corrected.known_at + pd.to_timedelta(rng.uniform(0.5, 12, len(corrected)), unit="D").round("ms"),
    )
    labels = pd.concat([first[rng.random(orders) < 0.9], corrected])
    return events, labels[labels.known_at < pd.Timestamp(START + days * DAY, unit="ms", tz="UTC")]


def built(folder: Path, events: pd.DataFrame, labels: pd.DataFrame, **changes) -> Settings:
    "A log with features."
    folder.mkdir(parents=True, exist_ok=True)
    for frame, name in [(events, "raw"), (labels[LABELS], "labels")]:
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), folder / f"{name}.parquet")
    settings = settings_in(folder, **changes)
    ingest(settings)
    compute_features(settings)
    return settings


def frame(settings: Settings, split: str) -> pd.DataFrame:
    return read_split(settings, split).rows.to_pandas()


def digests(manifest: dict) -> dict:
    return {(split, f["name"]): f["sha256"] for split, files in manifest["files"].items() for f in files}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    "Settings of a log with features, raw orders and raw labels."
    folder, data = tmp_path_factory.mktemp("dataset"), raw(None)
    return built(folder, *data), *data


@pytest.fixture
def copy(log, tmp_path):
    shutil.copytree(log[0].batch.folder, tmp_path / "orders", ignore=shutil.ignore_patterns("dataset"))
    return settings_in(tmp_path / "orders")


def as_known(labels: pd.DataFrame, moment_ms: int) -> pd.Series:
    "The last label by order that was known before a moment, from the raw file."
    before = labels[labels.known_at < pd.Timestamp(moment_ms, unit="ms", tz="UTC")]
    return before.sort_values("known_at").drop_duplicates("order_id", keep="last").set_index("order_id").is_fraud


def test_every_label_is_the_last_known_before_its_moment(log):
    settings, events, labels = log
    manifest = make_dataset(settings)
    w = manifest["windows_ms"]
    assert manifest["windows"] == {
        "train": "2025-01-05",
        "validation": "2025-01-20",
        "train_end": "2025-01-25",
        "cutoff": "2025-01-31",
        "test_end": "2025-02-04",
        "known_end": "2025-02-10",
    }
    time = events.set_index("order_id").order_date.dt.tz_convert(None).astype("datetime64[ms]").astype("int64")
    for split, start, end, moment in [
        ("train", w["train"], w["validation"], w["cutoff"]),
        ("validation", w["validation"], w["train_end"], w["cutoff"]),
        ("test", w["cutoff"], w["test_end"], w["known_end"]),
    ]:
        known = as_known(labels, moment)
        expected = known[(time.reindex(known.index) >= start) & (time.reindex(known.index) < end)]
        found = frame(settings, split).set_index("id").label
        assert found.index.is_unique and found.sort_index().equals(
            expected.sort_index().astype("int8").rename("label").rename_axis("id")
        ), split
    later = as_known(labels, w["known_end"])
    train = frame(settings, "train").set_index("id").label
    assert (later.reindex(train.index) != train).sum() > 10, "corrections after the cut-off exist, and do not count"
    corrected = (
        labels[labels.known_at < pd.Timestamp(w["cutoff"], unit="ms", tz="UTC")].groupby("order_id").is_fraud.nunique()
    )
    assert (corrected[corrected > 1].index.isin(train.index)).sum() > 10, "those before it exist, too, and do"


def test_what_is_known_at_or_after_the_cutoff_changes_nothing(log, tmp_path):
    settings, events, labels = log
    cutoff = pd.Timestamp(make_dataset(settings)["windows_ms"]["cutoff"], unit="ms", tz="UTC")
    future = labels.known_at >= cutoff
    on_train = labels.order_id.isin(events.order_id[events.order_date < cutoff - pd.Timedelta(6, "D")])
    flipped = labels.assign(is_fraud=np.where(future & on_train, 1 - labels.is_fraud, labels.is_fraud))
    exact = pd.DataFrame(
        {"order_id": frame(settings, "train").id[:40], "is_fraud": 1, "known_at": cutoff}
    )  # at the cut-off itself: too late
    other = built(tmp_path / "other", events, pd.concat([flipped, exact]))
    make_dataset(other)
    for split in ("train", "validation"):
        one, two = (frame(s, split).set_index("id").sort_index() for s in (settings, other))
        assert (
            one.index.equals(two.index)
            and one.label.equals(two.label)
            and np.allclose(one.sample_weight, two.sample_weight)
        )
    assert read_split(settings, "train").features.shape == read_split(other, "train").features.shape


@pytest.mark.parametrize("change", [{"batch__threads": 1}, {"batch__threads": 4}, {"batch__partitions": 5}])
def test_same_bytes_with_any_number_of_threads(log, copy, change):
    expected = digests(make_dataset(log[0]))
    settings = settings_in(copy.batch.folder, **change)
    assert digests(make_dataset(settings, replace=True)) == expected == digests(make_dataset(settings, replace=True))


def test_parts_of_the_log_do_not_show(log, tmp_path):
    "Another size of parts, and another secret for the keys: the training set has the same rows in the same order."
    settings, events, labels = log
    other = built(tmp_path / "other", events, labels, batch__part_rows=100_000)
    one, two = make_dataset(settings), make_dataset(other)
    drop = ["customer_id_key", "email_key", "ip_addr_key", "device_key"]
    assert frame(settings, "train").drop(columns=drop).equals(frame(other, "train").drop(columns=drop))
    assert (
        read_split(settings, "train").features.view(np.uint32) == read_split(other, "train").features.view(np.uint32)
    ).all()
    assert [f["rows"] for f in one["files"]["train"]] == [f["rows"] for f in two["files"]["train"]] and len(
        two["files"]["train"]
    ) == 3


def test_parts_outside_of_the_windows_leave_nothing(log, tmp_path):
    "A short training window: whole parts of the log lie before it, and small ones lie between two days."
    _, events, labels = log
    short = {"training__train_days": 9, "training__validation_days": 2}
    made = [built(tmp_path / str(rows), events, labels, batch__part_rows=rows, **short) for rows in (60, 100_000)]
    first, whole = map(make_dataset, made)
    parts = read_manifest(made[0].batch.folder)["parts"]
    assert sum(part["last_known_ms"] < first["windows_ms"]["train"] for part in parts) > 5
    assert first["splits"] == whole["splits"]
    drop = [f"{name}_key" for name in made[0].columns.entities]  # each folder has its own secret
    one, two = (frame(settings, "train").drop(columns=drop) for settings in made)
    assert len(one) and one.equals(two)


def test_counts_are_those_of_the_rows(log, copy):
    steps, (_, events, labels) = [], log
    manifest = make_dataset(copy, progress=lambda done, total: steps.append((done, total)))
    assert steps == sorted(steps) and steps[-1] == (2 * len(events), 2 * len(events)) and len(steps) > 2
    time, w = events.order_date.dt.tz_convert(None).astype("datetime64[ms]").astype("int64"), manifest["windows_ms"]
    for split, start, end, moment in [
        ("train", w["train"], w["validation"], w["cutoff"]),
        ("validation", w["validation"], w["train_end"], w["cutoff"]),
        ("test", w["cutoff"], w["test_end"], w["known_end"]),
    ]:
        known = as_known(labels, moment).reindex(events.order_id[(time >= start) & (time < end)])
        rows, counts = frame(copy, split), manifest["splits"][split]
        assert (counts["legitimate_events"], counts["fraud_events"], counts["unresolved"]) == (
            (known == 0).sum(),
            (known == 1).sum(),
            known.isna().sum(),
        )
        assert (counts["rows"], counts["frauds"], counts["too_young"]) == (
            len(rows),
            rows.label.sum(),
            known.notna().sum() - len(rows),
        )
        assert counts["weight"] == pytest.approx(rows[module.WEIGHT].sum()) and counts["fraud_weight"] == pytest.approx(
            rows[module.WEIGHT][rows.label == 1].sum()
        )


def test_features_are_those_of_the_event(log):
    settings, _, _ = log
    manifest = make_dataset(settings)
    parts = [
        module.features_folder(settings, module.build_table(settings)) / "parts" / f"{p['name']}.parquet"
        for p in read_manifest(settings.batch.folder)["parts"]
    ]
    features = pd.concat([pq.read_table(path).to_pandas() for path in parts]).set_index("seq")[manifest["features"]]
    for split in SPLITS:
        shard = read_split(settings, split)
        expected = features.loc[shard.rows["seq"].to_numpy()].to_numpy(np.float32)
        assert (shard.features.view(np.uint32) == expected.view(np.uint32)).all()
        amounts = shard.rows["amount_minor_units"].to_numpy()
        assert (np.float32(amounts / 100) == shard.features[:, 0]).all() and set(shard.rows["split"].to_pylist()) == {
            split
        }


def test_sampling_keeps_totals_and_shuffles(log, copy):
    whole = make_dataset(log[0])["splits"]
    sampled, reseeded = (
        settings_in(copy.batch.folder, training__legitimate_share=0.5, training__seed=seed) for seed in (7, 8)
    )
    half = make_dataset(sampled)["splits"]
    assert (
        half["train"]["frauds"] == whole["train"]["frauds"]
        and half["train"]["fraud_weight"] == whole["train"]["fraud_weight"]
    )
    assert half["validation"] == whole["validation"] and half["test"] == whole["test"]
    honest = [s["train"]["rows"] - s["train"]["frauds"] for s in (half, whole)]
    assert 0.4 < honest[0] / honest[1] < 0.6 and abs(half["train"]["weight"] / whole["train"]["weight"] - 1) < 0.1
    seq = read_split(log[0], "train").rows["seq"].to_numpy()
    assert abs(np.corrcoef(np.arange(len(seq)), seq)[0, 1]) < 0.15
    ours = frame(sampled, "train")
    assert set(ours.id) < set(frame(log[0], "train").id)
    with pytest.raises(ValueError, match="training.seed = 7, not 8"):
        read_split(reseeded, "train")
    assert make_dataset(reseeded)["splits"]["train"]["frauds"] == half["train"]["frauds"] and set(
        frame(reseeded, "train").id
    ) != set(ours.id)


def test_weights_stand_for_what_is_not_known_yet(log):
    "In the youngest days few labels are known; weighted, they stand for all events that will have one (nine in ten)."
    splits = make_dataset(log[0])["splits"]
    for split in ("validation", "test"):
        s = splits[split]
        events = s["legitimate_events"] + s["fraud_events"] + s["unresolved"]
        assert s["rows"] < 0.86 * events and abs(s["weight"] / (0.9 * events) - 1) < 0.12, split


@examples(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9), st.integers(0, 1)), max_size=20), st.integers(0, 10))
def test_labels_before_a_moment(rows, moment):
    seq, found = np.arange(len(rows)), {}
    key, known, label = (np.array([r[i] for r in rows], t) for i, t in enumerate((np.uint64, np.int64, np.int8)))
    for k, at, value in rows:
        if at < moment:
            found[k] = (value, found.get(k, (0, at))[1])
    mix = np.random.default_rng(len(rows)).permutation(len(rows))
    got = labels_before(seq[mix], key[mix], known[mix], label[mix], moment)
    assert (
        dict(zip(got.key.tolist(), zip(got.label.tolist(), got.first.tolist()))) == found
        and (np.diff(got.key.astype(float)) > 0).all()
    )


@examples(max_examples=10)
@given(st.integers(0, 10**6), st.floats(0.05, 0.95))
def test_kept_is_a_share_of_the_honest(seed, share):
    draw = np.random.default_rng(seed).integers(0, 2**64, 4_000, dtype=np.uint64)
    label = (np.arange(4_000) % 10 == 0).astype(np.int8)
    stay = kept(draw, label, share)
    assert stay[label == 1].all() and abs(stay[label == 0].mean() - share) < 0.05
    assert (stay >= kept(draw, label, share / 2)).all(), "a smaller share is a part of a larger one"


def test_an_event_weighs_what_its_own_class_leaves_open_at_its_age():
    known = np.array(
        [[0.2, 0.5, 1.0], [0.05, 0.8, 1.0]]
    )  # of legitimate events and of frauds, at an age of 0, 1 and 2 hours
    assert waiting_weights(np.array([0, 1, 0, 1, 0]), np.array([1, 1, 2, 99, 0]), known).tolist() == [
        2,
        1.25,
        1,
        1,
        0,
    ]  # of the youngest, too few frauds are known
    assert waiting_weights(np.array([0, 1]), np.array([0, 0]), np.array([[0.2], [0.1]])).tolist() == [5, 10]


def test_events_without_a_label_have_no_time_of_one():
    keys = np.array([5, 7, 9, 1], np.uint64)
    some = LatestLabels(np.array([5, 9], np.uint64), np.array([1, 0], np.int8), np.array([100, 200]))
    none = LatestLabels(*(values[:0] for values in some))
    assert [values.tolist() for values in label_events(keys, some)] == [[1, -1, 0, -1], [100, 0, 200, 0]]
    assert [values.tolist() for values in label_events(keys, none)] == [[-1] * 4, [0] * 4]


def test_share_known_of_truncated_waits():
    rng = np.random.default_rng(2)
    label, age = rng.integers(0, 2, 100_000), rng.integers(0, 400, 100_000)
    wait = (rng.standard_exponential(100_000) * np.where(label, 20, 60)).astype(np.int64)
    seen = wait <= age
    known = share_known(count_waits(label[seen], wait[seen], age[seen], 400))
    at = np.arange(20, 300)
    for c, mean in [(0, 60), (1, 20)]:
        assert np.abs(known[c, at] - (1 - np.exp(-(at + 1) / mean))).max() < 0.03
    weight = waiting_weights(label[seen], age[seen], known)
    assert (weight[known.min(0)[age[seen]] < LEAST_KNOWN] == 0).all() and weight.max() <= 1 / LEAST_KNOWN


def message(settings: Settings, until: str = "") -> str:
    with pytest.raises(ValueError) as caught:
        make_dataset(settings, until=until)
    return str(caught.value)


def test_what_is_missing_is_told(copy):
    folder = copy.batch.folder
    assert "run `fraud-poc features` first" in message(settings_in(folder, features__rows=["Hour()"]))
    assert "to at most 20" not in message(settings_in(folder, training__train_days=30)) and "to at most 24" in message(
        settings_in(folder, training__train_days=30)
    )
    assert "before the log" in message(settings_in(folder, training__test_days=39))
    with pytest.raises(ValueError, match="run `fraud-poc dataset` first"):
        read_dataset(copy)
    make_dataset(copy)
    test_file = sorted((folder / "dataset" / "test").iterdir())[0]
    test_file.write_bytes(b"x")
    with pytest.raises(ValueError, match="--replace"):
        read_split(copy, "test")
    make_dataset(copy, replace=True)
    assert read_split(copy, "test").features.shape[1] == 3


def test_features_older_than_the_log_are_refused(copy):
    events, labels = raw(None, orders=200, days=3, seed=9)
    shift = pd.Timedelta(41, "D")
    folder = copy.batch.folder
    pq.write_table(
        pa.Table.from_pandas(
            events.assign(order_id="n" + events.order_id, order_date=events.order_date + shift), preserve_index=False
        ),
        folder / "more.parquet",
    )
    before = digests(make_dataset(copy))
    ingest(copy, str(folder / "more.parquet"), "")
    assert "bring them up to date" in message(copy) and digests(read_dataset(copy)) == before
    compute_features(copy)
    assert make_dataset(copy)["windows"]["known_end"] > "2025-02-10"
    name = read_manifest(folder)["parts"][0]["name"]
    table = read_part(folder, "labels", name)
    assert len(table) and part_path(folder, "labels", name).exists()


def test_a_log_that_is_read_up_to_a_date(log, copy):
    "As if the log ended there: no later label is used, and later features need not exist."
    settings, _, labels = log
    shutil.rmtree(copy.batch.folder / "features")
    compute_features(copy, until="2025-02-07")
    assert "bring them up to date" in message(copy)
    windows = make_dataset(copy, until="2025-02-07")["windows"]
    assert windows["known_end"] <= "2025-02-07" and windows["test_end"] <= "2025-02-01"
    assert read_split(copy, "train").features.shape[1] == 3


@pytest.mark.parametrize("whole", [True, False], ids=["features of all", "features until the date"])
@pytest.mark.parametrize("until", ["2025-02-01", "2025-02-03", "2025-02-04", "2025-02-07"])
def test_a_date_within_a_part_is_a_date(log, copy, tmp_path, until, whole):
    "The same bytes as from a log that really ends there, whichever parts the log has."
    short = {
        "training__test_days": 2,
        "training__delay": "4d",
        "training__train_days": 12,
        "training__validation_days": 4,
    }
    copy, other = settings_in(copy.batch.folder, **short), settings_in(tmp_path / "cut", **short)
    shutil.copytree(copy.batch.folder, other.batch.folder, ignore=lambda folder, names: {"log", "features", "dataset"})
    moment = moment_ms(until, "until")
    parts = copy_stretch(copy.batch.folder, other.batch.folder, [], moment)["parts"]
    compute_features(other)
    if not whole:
        compute_features(copy, replace=True, until=until)
        assert "bring them up to date" in message(copy) and "bring them up to date" in message(copy, "2025-02-08")
    made, expected = make_dataset(copy, until=until, replace=True), make_dataset(other)
    assert parts[-1]["last_known_ms"] < moment <= moment_ms(made["windows"]["known_end"], "") <= moment
    assert made["windows"] == expected["windows"] and digests(made) == digests(expected)
    if whole and parts[-1] not in read_manifest(copy.batch.folder)["parts"]:
        assert made["inputs"] != make_dataset(copy, until="2025-02-08", replace=True)["inputs"]


def test_several_weeks_are_judged_on_one_log(log, copy):
    latest = make_dataset(copy)["windows"]
    for days in (1, 2, 3):
        end = str(np.datetime64(latest["test_end"]) - days)
        chosen = settings_in(copy.batch.folder, training__test_end=end)
        windows = make_dataset(chosen)["windows"]
        assert windows["test_end"] == end and windows["known_end"] == latest["known_end"]
        rows = read_split(chosen, "test").rows["time"].cast(pa.int64()).to_numpy()
        assert moment_ms(windows["cutoff"], "") <= rows.min() and rows.max() < moment_ms(end, "")
    with pytest.raises(ValueError, match="made with training.test_end = "):
        read_dataset(copy)
    late = settings_in(copy.batch.folder, training__test_end=str(np.datetime64(latest["test_end"]) + 1))
    assert f"set it to {latest['test_end']} at most" in message(late)
    with pytest.raises(ValueError, match="training.test_end 'June' is no date"):
        settings_in(copy.batch.folder, training__test_end="June")


def test_datasets_of_earlier_versions_are_read(copy):
    made = make_dataset(copy)
    assert "test_end" not in made["training"] and read_dataset(copy) == made


def test_a_window_without_frauds_is_told(tmp_path):
    events, labels = raw(None)
    labels = labels.assign(is_fraud=0)
    assert "the train window, 2025-01-05 to 2025-01-19, holds no frauds" in message(
        built(tmp_path / "log", events, labels)
    )
    assert not (tmp_path / "log" / "dataset").exists()


def test_a_fixed_delay_needs_no_weights(tmp_path):
    "Card transactions with labels a week after each event: the test ends with the last event, and all weights are 1."
    rng, n = np.random.default_rng(4), 3_000
    time = np.sort(START + rng.integers(0, 60 * DAY, n))
    table = pa.table(
        {
            "TRANSACTION_ID": np.arange(n),
            "TX_DATETIME": pa.array(time, pa.timestamp("ms")),
            "CUSTOMER_ID": rng.integers(1, 50, n),
            "TERMINAL_ID": rng.integers(1, 80, n),
            "TX_AMOUNT": rng.integers(1, 9_000, n) / 100,
            "TX_FRAUD": (rng.random(n) < 0.05).astype(np.int64),
        }
    )
    pq.write_table(table, tmp_path / "cards.parquet")
    settings = load_settings(
        CARDS,
        {
            "batch.folder": str(tmp_path / "log"),
            "features.rows": ["Hour()"],
            "training.train_days": 30,
            "batch.part_rows": 2_000,
            "batch.threads": 2,
        },
    )
    ingest(settings, str(tmp_path / "cards.parquet"))
    compute_features(settings)
    manifest = make_dataset(settings)
    assert (
        manifest["windows"]["test_end"] == "2025-03-02"
        and manifest["windows"]["cutoff"] == "2025-02-23"
        and manifest["windows"]["train_end"] == "2025-02-16"
    )
    for split, s in manifest["splits"].items():
        assert (
            s["unresolved"] == s["too_young"] == 0
            and s["weight"] == s["rows"] == s["legitimate_events"] + s["fraud_events"]
        ), split
        assert set(read_split(settings, split).weight.tolist()) == {1.0}


# --- label features frozen at the cut-off -----------------------------------------------------------------------------


def streak(folder: Path, delay: str, days: int = 60, **changes) -> Settings:
    """Card transactions, one a day for each of 60 cards.

    A card has frauds for a while, then none for a while, so that yesterday's label gives away today's.
    """
    rng, cards = np.random.default_rng(11), 60
    state = np.empty((days, cards), bool)
    state[0] = rng.random(cards) < 0.3
    for day in range(1, days):
        state[day] = np.where(rng.random(cards) < 0.25, rng.random(cards) < 0.3, state[day - 1])
    time = START + np.repeat(np.arange(days), cards) * DAY + np.tile(np.arange(cards), days) * 60_000
    table = pa.table(
        {
            "TRANSACTION_ID": np.arange(days * cards),
            "TX_DATETIME": pa.array(time, pa.timestamp("ms")),
            "CUSTOMER_ID": np.tile(np.arange(cards) + 1, days),
            "TERMINAL_ID": rng.integers(1, 9, days * cards),
            "TX_AMOUNT": rng.integers(1, 9_000, days * cards) / 100,
            "TX_FRAUD": state.ravel().astype(np.int64),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "cards.parquet")
    rows = [
        "Hour()",
        'FraudRate(by="CUSTOMER_ID", over="47h")',
        'FraudCount(by="CUSTOMER_ID", over="47h")',
        'Count(by="TERMINAL_ID", over="7d")',
    ]
    base = {
        "batch.folder": str(folder / "log"),
        "features.rows": rows,
        "labels.delay": delay,
        "training.test_days": 14,
        "training.delay": "1d",
        "training.train_days": 40,
        "training.validation_days": 10,
        "batch.part_rows": 400,
        "batch.threads": 2,
        "model.trees": 40,
        "acceptance.bootstrap": 20,
        "acceptance.reviews_a_day": 15,
    }
    settings = load_settings(CARDS, base | {name.replace("__", "."): value for name, value in changes.items()})
    ingest(settings, str(folder / "cards.parquet"))
    compute_features(settings)
    return settings


def test_labels_that_give_away_the_next_ones_flatter_and_the_frozen_figure_says_so(tmp_path, monkeypatch):
    without_plots(monkeypatch)
    settings = streak(tmp_path, "1ms")
    manifest = make_dataset(settings)
    assert manifest["label_features"] == manifest["features"][1:3]
    train_model(settings)
    judged = judge_model(settings)
    served, frozen = judged["metrics"], judged["labels_frozen"]
    assert (
        served["auc"]["value"] > 0.8
        and frozen["auc"]["value"] < 0.62
        and served["average_precision"]["low"] > frozen["average_precision"]["high"] + 0.1
    )
    assert (
        frozen["card_precision"].keys() == {"value", "low", "high"}
        and frozen["cost_a_day"] > judged["cost_a_day"]["policy"]
    )
    words = [f"{found[name]['value']:.3f}" for found in (served, frozen) for name in ("auc", "average_precision")]
    assert (
        all(word in frozen["meaning"] for word in words)
        and "as fast as the log says" in frozen["meaning"]
        and judged["acceptance"] == "accepted"
    ), judged["reasons"]
    bundle = latest_bundle(settings, module.build_table(settings))
    kept, text = read_json(bundle.folder / "evaluation.json")["frozen"], model_page(bundle)
    assert (
        bundle.manifest["frozen"] == kept["metrics"]
        and kept["metrics"]["auc"] == frozen["auc"]
        and kept["events_changed"] == frozen["events_changed"] > 500
    )
    assert kept["money"]["costs"]["policy"]["low"] is not None and all(
        word in text for word in [*words, "labels frozen", frozen["meaning"]]
    )


def test_both_figures_are_one_where_no_label_comes_in_during_the_test(tmp_path, monkeypatch):
    """Orders as before, without the labels that became known on the test days.

    Whatever is known later is in no feature of a test event.
    """
    without_plots(monkeypatch)
    events, labels = raw(None)
    w = make_dataset(built(tmp_path / "all", events, labels))["windows_ms"]
    moments = [pd.Timestamp(w[name], unit="ms", tz="UTC") for name in ("cutoff", "test_end")]
    settings = built(
        tmp_path / "some", events, labels[~labels.known_at.between(*moments)], model__trees=20, acceptance__bootstrap=5
    )
    assert make_dataset(settings)["windows_ms"] == w
    served, frozen = read_split(settings, "test"), read_split(settings, "test", frozen=True)
    assert (served.features.view(np.uint32) == frozen.features.view(np.uint32)).all() and served.rows.equals(
        frozen.rows
    )
    train_model(settings)
    judged = judge_model(settings)
    assert (
        judged["labels_frozen"]["events_changed"] == 0
        and judged["labels_frozen"]["auc"] == judged["metrics"]["auc"]
        and "both figures are the same" in judged["labels_frozen"]["meaning"]
    )


def test_a_delay_beyond_the_test_leaves_no_label_of_it_in_its_features(tmp_path):
    """Then labels of test events feed none of them.

    Labels of earlier events do, as they come in, and the frozen figures leave them out.
    """
    settings = streak(tmp_path, "15d", training__delay="15d", training__train_days=25)
    windows = make_dataset(settings)["windows_ms"]
    cutoff, name = windows["cutoff"], "fraud_count_47h_by_CUSTOMER_ID"
    served, frozen = (read_split(settings, "test", frozen=frozen) for frozen in (False, True))
    assert (served.features.view(np.uint32) == frozen.features.view(np.uint32)).all(), (
        "no label is younger than the windows"
    )
    assert (served.features[:, read_dataset(settings)["features"].index(name)] == 0).all() and windows[
        "test_end"
    ] - cutoff == 14 * DAY


@pytest.mark.parametrize("changes", [{}, {"batch__step_rows": 500, "batch__partitions": 3}, {"batch__threads": 1}])
def test_frozen_features_of_the_test_are_those_of_a_log_without_the_later_labels(log, copy, changes):
    "A log without the labels known from the cut-off on equals the frozen features of the whole log."
    settings, events, labels = log
    mine = settings_in(copy.batch.folder, **changes)
    manifest = make_dataset(mine, replace=True)
    without = labels[labels.known_at < pd.Timestamp(manifest["windows_ms"]["cutoff"], unit="ms", tz="UTC")]
    other = built(copy.batch.folder / "without", events, without)
    found = pd.concat(
        [
            pq.read_table(path).to_pandas()
            for path in sorted((module.features_folder(other, module.build_table(other)) / "parts").glob("*"))
        ]
    )
    ids = pd.concat(
        [
            read_part(other.batch.folder, "events", part["name"], ["seq", "id"]).to_pandas()
            for part in read_manifest(other.batch.folder)["parts"]
        ]
    )
    expected = found.merge(ids, on="seq").set_index("id")[manifest["features"]]
    served, frozen = (read_split(mine, "test", frozen=frozen) for frozen in (False, True))
    assert not len(oracle.differing(expected.loc[frozen.rows["id"].to_pylist()].to_numpy(np.float32), frozen.features))
    assert (served.features != frozen.features).any(axis=0).tolist() == [False, False, True] and served.rows.equals(
        frozen.rows
    )
    assert manifest["label_features"] == ["fraud_count_lifetime_by_email"] and not any(
        module.FROZEN in name for name in frozen.rows.column_names
    )


def test_tables_without_label_features_have_one_figure(log, copy, monkeypatch):
    without_plots(monkeypatch)
    rows = ['Value("order_amount")', 'Count(by="customer_id", over="7d")']
    settings = settings_in(copy.batch.folder, features__rows=rows, model__trees=10, acceptance__bootstrap=5)
    compute_features(settings)
    assert make_dataset(settings)["label_features"] == []
    train_model(settings)
    judged = judge_model(settings)
    assert "labels_frozen" not in judged and read_json(Path(judged["folder"]) / "evaluation.json")["frozen"] is None
    with pytest.raises(ValueError, match="'train' has no frozen features"):
        read_split(settings, "train", frozen=True)


def test_a_dataset_of_an_earlier_format_is_made_again(copy):
    make_dataset(copy)
    path = copy.batch.folder / "dataset" / "manifest.json"
    path.write_text(path.read_text().replace(f'"format": {module.DATASET_VERSION}', '"format": 1'))
    with pytest.raises(ValueError, match="has format 1, this version reads 3: run `fraud-poc dataset` again"):
        read_dataset(copy)
