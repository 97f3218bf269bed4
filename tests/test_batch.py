"""The features step when things go wrong: killed workers and processes, full disks, changed logs, two runs at once."""

import json
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import oracle
from support.children import Child, child
from support.cluster import cluster
from support.waiting import until

from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.data.ingest import ingest
from fraud_poc.data.log import copy_stretch, part_path, read_manifest
from fraud_poc.data.sample import make_data
from fraud_poc.features import batch as batch_module
from fraud_poc.features.batch import compute_features, parts_until
from fraud_poc.features.frozen_labels import freeze_labels
from fraud_poc.features.state_files import features_folder, read_states
from fraud_poc.features.table import build_table
from fraud_poc.live.load import base_of

ROOT = Path(__file__).resolve().parents[1]
ORDERS = ROOT / "config" / "orders.toml"
ROWS = [
    'Count(by=["customer_id", "email"], over=["1h", "30d"])',
    'Mean("order_amount", by="customer_id", over=["7d", "lifetime"])',
    'FraudRate(by="ip_addr", over="90d")',
    'Distinct("ip_addr", by="customer_id", over="lifetime")',
    "Hour()",
]


def settings_in(folder: Path, **batch) -> Settings:
    "Orders with a small table, in parts of 1,500 rows and steps of 3,000."
    changes = {"folder": str(folder), "part_rows": 1_500, "step_rows": 3_000, "partitions": 3, "threads": 2} | batch
    return load_settings(
        ORDERS,
        {"features.rows": ROWS, "sample.orders": 12_000, "sample.customers": 1_500, "sample.days": 90}
        | {f"batch.{k}": v for k, v in changes.items()},
    )


def contents(settings: Settings) -> dict:
    "What a run leaves: feature files, and the states of each entity."
    table = build_table(settings)
    folder = features_folder(settings, table)
    states = {
        entity.by: pa.concat_tables(read_states(settings, table, entity.by)).combine_chunks()
        for entity in table.entities
    }
    return {path.name: path.read_bytes() for path in sorted((folder / "parts").iterdir())} | states


def assert_whole(settings: Settings) -> None:
    "Every file in the features folder is named by its manifest, there in full, and nothing is half-written."
    table = build_table(settings)
    folder = features_folder(settings, table)
    manifest = (
        json.loads((folder / "manifest.json").read_text())
        if (folder / "manifest.json").exists()
        else {"parts": [], "states": {}}
    )
    cut = [manifest["cut"]] if "cut" in manifest else []
    whole = [*manifest["parts"], *cut]
    named = {folder / "parts" / f"{part['name']}.parquet" for part in whole}
    for states in (one["states"] for one in (manifest, *cut)):
        named |= {folder / "states" / by / name for by, names in states.items() for name in names}
    assert named <= set(folder.rglob("*")), f"missing: {named - set(folder.rglob('*'))}"
    for part in whole:
        assert pq.read_metadata(folder / "parts" / f"{part['name']}.parquet").num_rows == part["rows"]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    "A folder with a log of a dozen parts, and what an undisturbed run makes of it."
    folder = tmp_path_factory.mktemp("log")
    settings = settings_in(folder / "orders")
    make_data(settings, folder / "raw")
    ingest(settings, str(folder / "raw" / "orders"), str(folder / "raw" / "labels"))
    compute_features(settings)
    assert len(read_manifest(settings.batch.folder)["parts"]) >= 9
    return settings.batch.folder, contents(settings)


@pytest.fixture
def copy(log, tmp_path):
    "The log in a folder of the test's own."
    shutil.copytree(log[0] / "log", tmp_path / "orders" / "log")
    return tmp_path / "orders"


# --- processes that tests start and always end ------------------------------------------------------------------------


def features(tell, folder: Path, stop: float, limit: int, replace: bool, batch: dict) -> None:
    """Run compute_features, and tell its progress and its failure.

    With `stop` it goes no further than this share of the rows, with `limit` no file is longer.
    """
    batch_module.PATIENCE_S = 2
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def progress(done: int, total: int) -> None:
        tell(done, total)
        while stop and (done >= stop * total or stop < 1e-6):
            signal.pause()

    try:
        compute_features(settings_in(folder, **batch), replace=replace, progress=progress)
    except Exception as error:
        tell("FAILED", f"{type(error).__name__} {error} {getattr(error, '__notes__', '')}")
        raise SystemExit(3) from None


def other_process(folder: Path, stop: float = 0, limit: int = 0, replace: bool = False, **batch):
    "compute_features in a process of its own, which is killed at the end."
    return child(features, folder, stop, limit, replace, batch)


def wait_for(process: Child, share: float) -> None:
    "Until a process has reported that so much of its rows is done."
    while word := process.hear():
        assert word[0] != "FAILED", word
        if word[0] >= share * word[1]:
            return
    raise AssertionError("the process ended before it was to be stopped")


def failure_of(process: Child) -> str:
    "What a process says when it fails."
    last = None
    while word := process.hear():
        last = word
    assert process.ended() == 3 and last[0] == "FAILED", last
    return last[1]


# --- workers ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed(log, copy, tmp_path):
    "The other worker does what the killed one left."
    with cluster(tmp_path / "cluster", workers=2) as (address, workers):

        def kill_one(done: int, total: int) -> None:
            if done and workers[0].poll() is None:
                workers[0].kill()

        compute_features(settings_in(copy, scheduler=address), progress=kill_one)
        assert workers[0].ended() == -signal.SIGKILL and workers[1].poll() is None
    assert contents(settings_in(copy)) == log[1]
    assert_whole(settings_in(copy))


def test_the_last_worker_is_killed(log, copy, tmp_path):
    with (
        cluster(tmp_path / "cluster", workers=1) as (address, workers),
        other_process(copy, scheduler=address) as process,
    ):
        wait_for(process, 0.2)
        workers[0].kill()
        message = failure_of(process)
        assert "worker" in message and "run again" in message, message
    assert_whole(settings_in(copy))
    compute_features(settings_in(copy))  # on this machine, from where the cluster stopped
    assert contents(settings_in(copy)) == log[1]


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2_000, 20_000, 60_000])
def test_a_full_disk(log, copy, limit):
    "A file may not grow beyond a limit, as on a full disk; first the manifest, then features, then states hit it."
    with other_process(copy, limit=limit) as process:
        message = failure_of(process)
    assert "OSError" in message and "was not written and nothing of it is left" in message and "run again" in message, (
        message
    )
    assert not list(copy.rglob("*.partial"))
    assert_whole(settings_in(copy))
    compute_features(settings_in(copy))
    assert contents(settings_in(copy)) == log[1]


# --- logs -------------------------------------------------------------------------------------------------------------


def damage(folder: Path, kind: str, how: str) -> str:
    "Spoil the log's second part; its name."
    name = read_manifest(folder)["parts"][1]["name"]
    path = part_path(folder, kind, name)
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "changed":
        pq.write_table(pq.read_table(path).slice(1), path)
    return name


@pytest.mark.parametrize("how", ["missing", "cut short", "changed"])
@pytest.mark.parametrize("kind", ["events", "labels"])
def test_a_log_that_is_damaged(copy, kind, how):
    name = damage(copy, kind, how)
    with pytest.raises((ValueError, OSError), match=name):
        compute_features(settings_in(copy))
    until(lambda: not list(copy.rglob("*.partial")), "a thread that was writing when another one failed ends its file")
    assert_whole(settings_in(copy))


def test_a_log_that_was_written_anew(copy):
    compute_features(settings_in(copy))
    manifest = read_manifest(copy)
    manifest["parts"][1]["events_sha256"] = "0" * 64
    (copy / "log" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match=f"part {manifest['parts'][1]['name']} of the log .* is gone or changed .*--replace"
    ):
        compute_features(settings_in(copy))


# --- runs that are killed, and runs side by side ----------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.1])
def test_a_run_that_is_killed_goes_on(log, copy, delay):
    with other_process(copy, step_rows=1_500) as process:
        wait_for(process, 0.2)
        time.sleep(delay)
        process.kill()
        process.ended()
    assert_whole(settings_in(copy))
    done = []
    compute_features(settings_in(copy), progress=lambda now, total: done.append(total))
    assert 0 < done[0] < read_manifest(copy)["next_seq"], "it did not go on from where it was killed"
    assert contents(settings_in(copy)) == log[1]
    files = [
        path
        for path in features_folder(settings_in(copy), build_table(settings_in(copy))).rglob("*")
        if path.is_file() and path.name != ".lock"
    ]
    assert len(files) == 1 + len(
        json.loads(next(p for p in files if p.name == "manifest.json").read_text())["parts"]
    ) + sum(p.suffix == ".arrow" for p in files)
    assert not list(copy.rglob("*.partial"))


def test_a_replacing_run_that_is_killed_goes_on(log, copy):
    "Old features are gone, new ones not there yet: the next run must not take the old manifest's word."
    compute_features(settings_in(copy))
    with other_process(copy, stop=1e-9, replace=True) as process:
        wait_for(process, 0)
    assert_whole(settings_in(copy))
    compute_features(settings_in(copy))
    assert contents(settings_in(copy)) == log[1]


def rows_and_states(settings: Settings) -> tuple[dict, dict]:
    "The features of all rows that have some, in sequence, as bytes by column, and the states of each entity."
    found = contents(settings)
    files = [pq.read_table(pa.BufferReader(data)) for name, data in found.items() if name.endswith(".parquet")]
    states = {name: table for name, table in found.items() if not name.endswith(".parquet")}
    rows = pa.concat_tables(files)
    return {name: rows[name].to_numpy().tobytes() for name in rows.column_names}, states


def as_text(ms: int) -> str:
    return str(np.datetime64(ms, "ms"))


@pytest.mark.parametrize("where", ["middle", "second row", "last row", "behind the last row", "day"])
def test_a_run_stops_at_a_moment(log, copy, tmp_path, where):
    "Features and states are those of a log that ends there, the next run goes on, and the result is that of one run."
    settings, parts = settings_in(copy), read_manifest(copy)["parts"]
    first, last = (parts[len(parts) // 2][f"{name}_known_ms"] for name in ("first", "last"))
    moments = {
        "middle": (first + last) // 2,
        "second row": first + 1,
        "last row": last,
        "behind the last row": last + 1,
    }
    moment = moments.get(where, last // 86_400_000 * 86_400_000)
    for ms in (moment, moment + 7_200_000):  # the second within the same part, or in the next one
        ended = settings_in(tmp_path / f"ended-{ms}")
        kept = copy_stretch(copy, ended.batch.folder, [], ms)
        stopped, expected = compute_features(settings, until=as_text(ms)), compute_features(ended)
        assert [stopped[name] for name in ("events", "entities")] == [expected[name] for name in ("events", "entities")]
        assert rows_and_states(settings) == rows_and_states(ended) and stopped["note"] == ""
        assert base_of(settings, build_table(settings))["next_seq"] == kept["next_seq"]
        assert_whole(settings)
        again = compute_features(settings, until=as_text(ms))
        assert (again["new_events"], again["events"]) == (0, stopped["events"])
    early = compute_features(settings, until=as_text(parts[1]["first_known_ms"]))
    assert early["events"] == stopped["events"] and "--replace" in early["note"]
    assert compute_features(settings)["parts"] == len(parts)
    assert_whole(settings)
    assert contents(settings) == log[1]


def test_a_run_that_stops_before_all_rows(copy):
    settings, parts = settings_in(copy), read_manifest(copy)["parts"]
    assert compute_features(settings, until=as_text(parts[0]["first_known_ms"]))["events"] == 0
    with pytest.raises(ValueError, match="until = 'soon' is not an ISO date"):
        compute_features(settings, until="soon")


def test_a_run_that_is_killed_behind_a_moment_goes_on(log, copy):
    "The files of the rows before it are replaced only when the manifest no longer names them."
    settings, parts = settings_in(copy), read_manifest(copy)["parts"]
    middle = (parts[2]["first_known_ms"] + parts[2]["last_known_ms"]) // 2
    compute_features(settings, until=as_text(middle))
    with other_process(copy, stop=0.3) as process:
        wait_for(process, 0.3)
    assert_whole(settings)
    compute_features(settings)
    assert contents(settings) == log[1]


def test_a_run_counts_what_it_does(log, copy):
    calls, parts, table = [], read_manifest(copy)["parts"], build_table(settings_in(copy))
    first = compute_features(settings_in(copy), until=as_text(parts[4]["last_known_ms"] + 1))
    rest = compute_features(settings_in(copy), progress=lambda done, total: calls.append((done, total)))
    rows = sum(part["events"] + part["labels"] for part in parts[first["parts"] :])
    assert (
        calls == sorted(calls)
        and (calls[0], calls[-1]) == ((0, rows), (rows, rows))
        and {total for _, total in calls} == {rows}
    )
    events = [sum(part["events"] for part in some) for some in (parts[: first["parts"]], parts[first["parts"] :])]
    assert 0 < first["parts"] <= 5 and (first["events"], first["new_events"]) == (events[0], events[0])
    assert (rest["parts"], rest["events"], rest["new_events"], rest["features"]) == (
        len(parts),
        sum(events),
        events[1],
        len(table.rows),
    )
    assert rest["entities"] == {entity.by: len(log[1][entity.by]) for entity in table.entities}


def test_a_part_whose_last_row_was_known_at_a_date_is_not_before_it():
    parts = [
        {"last_known_ms": 1_748_735_999_999},
        {"last_known_ms": 1_748_736_000_000},
    ]  # 2025-06-01T00:00Z, and a millisecond before
    assert (
        parts_until(parts, "2025-06-01") == parts[:1]
        and parts_until(parts, "2025-06-01T00:00:00.001") == parts_until(parts, "") == parts
    )


def test_two_runs_in_one_folder(log, copy):
    with other_process(copy, stop=0.3) as process:
        wait_for(process, 0.3)
        with pytest.raises(ValueError, match="another run is writing to .*batch.folder"):
            compute_features(settings_in(copy))
    compute_features(settings_in(copy))
    assert contents(settings_in(copy)) == log[1]


# --- what a small portion costs ---------------------------------------------------------------------------------------


def test_a_portion_costs_what_it_holds(log, tmp_path, monkeypatch):
    """Rows folded, states looked up and written in a small portion are bounded by its events.

    The history before it may be as long as it likes.
    """
    items = oracle.log_items(log[0], settings_in(log[0]).columns)
    settings, sizes, folded = settings_in(tmp_path / "orders", part_rows=10**6, step_rows=10**6), [], []
    real = batch_module.fold_arrays

    def counted(plan, entity, found, *rest):
        folded.append(len(entity))
        return real(plan, entity, found, *rest)

    monkeypatch.setattr(batch_module, "fold_arrays", counted)
    history, portions = items[:-480], [items[place : place + 40] for place in range(len(items) - 480, len(items), 40)]
    for portion in [history, *portions]:
        oracle.write_log(settings, portion)
        before, start = written_states(settings), len(folded)
        compute_features(settings)
        sizes.append(
            {
                "rows": sum(folded[start:]),
                "bytes": sum(size for path, size in written_states(settings).items() if path not in before),
            }
        )
    entities = len(build_table(settings).entities)
    assert all(size["rows"] <= entities * 40 for size in sizes[1:]), sizes
    assert sizes[0]["rows"] > 2 * len(history) > 500 * 40
    # a portion writes the states that it touched, and now and then merges what a few portions wrote: never all states
    assert max(size["bytes"] for size in sizes[1:]) < sizes[0]["bytes"] / 2, sizes
    assert sum(size["bytes"] for size in sizes[1:]) < 1.5 * sizes[0]["bytes"], sizes


def written_states(settings: Settings) -> dict[Path, int]:
    return {
        path: path.stat().st_size for path in features_folder(settings, build_table(settings)).glob("states/*/*.arrow")
    }


def test_a_frozen_log_keeps_the_labels_of_an_id_that_came_again_apart(tmp_path):
    "Two orders with one id: the first loses a label, and the second's follow each other as before."
    labels = pa.table(
        {
            "id_key": [7, 7, 7, 7],
            "time": [100, 900, 100, 900],
            "seq": [3, 4, 5, 6],
            "known": [150, 950, 1_500, 990],
            "label": [1, 0, 0, 1],
            "previous": [-1, -1, 1, 0],
            "who_key": [1, 2, 1, 2],
        }
    )
    (tmp_path / "log" / "labels").mkdir(parents=True)
    pq.write_table(labels, tmp_path / "log" / "labels" / "a.parquet")
    frozen = freeze_labels(tmp_path, [{"name": "a", "labels": 4, "last_known_ms": 1_500}], {"who": "who"}, 1_000)
    assert frozen.keys["who"].tolist() == [1] and frozen.seq.tolist() == [] and frozen.previous.tolist() == []
