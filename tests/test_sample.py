"""The sample generator: same bytes for any number of workers, nothing half-written, sound labels."""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fraud_poc.core.settings import load_settings
from fraud_poc.data import sample as sample_data
from fraud_poc.data import shop

CONFIG = Path(__file__).parent.parent / "config"


def settings(**changes):
    "Settings of a small sample; `changes` are settings of its section."
    small = {"orders": 20_000, "customers": 3_000, "days": 100} | changes
    return load_settings(CONFIG / "orders.toml", {f"sample.{name}": value for name, value in small.items()})


def contents(folder: Path) -> dict[str, bytes]:
    "Every file under a folder."
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A folder with a sample, and the summary of making it."
    folder = tmp_path_factory.mktemp("sample")
    return folder, sample_data.make_data(settings(), folder, workers=1)


@pytest.mark.parametrize("workers", [2, 3, 9])
def test_bytes_do_not_depend_on_workers(made, tmp_path, workers):
    assert sample_data.make_data(settings(), tmp_path, workers)["patterns"] == made[1]["patterns"]
    assert contents(tmp_path) == contents(made[0])


def test_bytes_do_not_depend_on_batches_made_before(made):
    orders, labels = sample_data.orders_of_batch(settings().sample, 2)
    for table, kind in [(orders, "orders"), (labels, "labels")]:
        written = pq.read_table(made[0] / kind / "002_2025-03-02.parquet")
        assert written.num_rows == table.num_rows and written["order_id"].to_pylist() == table["order_id"].to_pylist()


def test_another_seed_gives_other_orders(made, tmp_path):
    sample_data.make_data(settings(seed=8), tmp_path)
    other, first = contents(tmp_path), contents(made[0])
    assert other.keys() == first.keys() and not set(other.values()) & set(first.values())


def test_rerun_replaces_and_removes_stale_files(made, tmp_path):
    sample_data.make_data(settings(), tmp_path)
    summary = sample_data.make_data(settings(days=40, orders=500), tmp_path)
    names = ["000_2025-01-01.parquet", "001_2025-01-31.parquet"]
    assert list(contents(tmp_path)) == [f"{kind}/{name}" for kind in ("labels", "orders") for name in names]
    assert pq.read_table(tmp_path / "orders").num_rows == summary["orders"] and summary["files"] == 4


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("workers", [1, 3])
def test_interrupted_run_leaves_nothing_or_what_was_there(made, tmp_path, error, workers):
    def stop(done, total):
        if done > total // 3:
            raise error

    with pytest.raises(type(error)):
        sample_data.make_data(settings(seed=8), tmp_path, workers, stop)
    assert list(tmp_path.iterdir()) == []
    sample_data.make_data(settings(), tmp_path)
    with pytest.raises(type(error)):
        sample_data.make_data(settings(seed=8), tmp_path, workers, stop)
    assert contents(tmp_path) == contents(made[0]) and sorted(p.name for p in tmp_path.iterdir()) == [
        "labels",
        "orders",
    ]


def test_killed_run_is_recovered(made, tmp_path):
    sample_data.make_data(settings(), tmp_path)
    (tmp_path / "orders").rename(tmp_path / ".orders.replaced")  # killed between the two renames
    (tmp_path / ".orders.partial").mkdir()
    (tmp_path / ".orders.partial" / ".000.parquet.1.partial").write_text("half")
    sample_data.make_data(settings(), tmp_path)
    assert contents(tmp_path) == contents(made[0])


def test_folder_of_others_is_refused(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "own.csv").write_text("ours")
    with pytest.raises(ValueError, match="own.csv.*not sample data"):
        sample_data.make_data(settings(), tmp_path)
    assert contents(tmp_path) == {"labels/own.csv": b"ours"}


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("orders", {"input.events": ""}, "input.events"),
        ("orders", {"input.labels": "s3://bucket/labels"}, "input.labels"),
        ("orders", {"sample.start": "first of May"}, "ISO date"),
        ("cards", {}, "no section"),
    ],
)
def test_unusable_settings_are_refused(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        sample_data.make_data(load_settings(CONFIG / f"{name}.toml", overrides))


def test_columns_and_order(made):
    orders, labels = pq.read_table(made[0] / "orders"), pq.read_table(made[0] / "labels")
    assert [(f.name, str(f.type)) for f in orders.schema] == [
        ("order_id", "string"),
        ("order_date", "timestamp[ms, tz=UTC]"),
        ("customer_id", "string"),
        ("email", "string"),
        ("ip_addr", "string"),
        ("device", "string"),
        ("location", "string"),
        ("order_amount", "double"),
    ]
    assert [(f.name, str(f.type)) for f in labels.schema] == [
        ("order_id", "string"),
        ("is_fraud", "int8"),
        ("known_at", "timestamp[ms, tz=UTC]"),
    ]
    time, ids = orders["order_date"].to_numpy(), orders["order_id"].to_numpy()
    assert (np.diff(time.astype(np.int64)) >= 0).all() and len(set(ids)) == len(ids) and sorted(ids) == list(ids)
    cents = orders["order_amount"].to_numpy() * 100
    assert np.abs(cents - np.rint(cents)).max() < 1e-6 and cents.min() >= 50
    assert all(column.null_count == 0 for table in (orders, labels) for column in table.columns)


def test_summary_counts_what_is_written(made):
    folder, summary = made
    orders, labels = pq.read_table(folder / "orders"), pq.read_table(folder / "labels")
    assert (summary["orders"], summary["labels"]) == (orders.num_rows, labels.num_rows)
    assert summary["corrections"] == labels.num_rows - len(pc.unique(labels["order_id"])) > 0
    assert sum(summary["patterns"].values()) == summary["orders"] and min(summary["patterns"].values()) > 0
    assert summary["files"] == len(contents(folder)) == 8


def test_labels_are_of_orders_and_later(made):
    labels = pq.read_table(made[0] / "labels").to_pandas()
    orders = pq.read_table(made[0] / "orders").to_pandas()
    both = labels.merge(orders, on="order_id", how="left", validate="many_to_one")
    assert both.order_date.notna().all() and (both.known_at > both.order_date).all()
    grouped = both.groupby("order_id")
    assert grouped.known_at.is_monotonic_increasing.all() and (grouped.is_fraud.nunique() == grouped.size()).all()
    assert both.known_at.max() < orders.order_date.min().normalize() + np.timedelta64(100, "D")
    assert not orders.order_id.isin(labels.order_id).all()  # some are unresolved


def test_stories_do_not_break_off_between_batches():
    sample = settings(orders=60_000, days=60).sample
    in_batches = np.concatenate(
        [
            columns["time"]
            for batch in (0, 1)
            for _, columns in shop.batch_columns(sample, batch)
            for columns in [{"time": columns["time"][columns["pattern"] == shop.STOLEN]}]
        ]
    )
    start, end = shop.period(sample)
    times = np.concatenate(
        [
            story["time"][story["pattern"] == shop.STOLEN]
            for part in shop.slices_of(sample)
            for story in [shop.stories(sample, part)]
        ]
    )
    assert sorted(in_batches) == sorted(times[(times >= start) & (times < end)])
    assert 0 < ((times >= start + 30 * shop.DAY) & (times < start + 32 * shop.DAY)).sum()


def test_memory_is_bounded_by_construction():
    for orders in (10**6, 10**8, 10**9):
        parts = shop.slices_of(settings(orders=orders, days=180).sample)
        assert max(part.orders for part in parts) <= shop.SLICE_ORDERS and parts[-1].batch == 5
