"""What becomes of every kind of bad input, and of runs that are killed, split or repeated."""

import gzip
import json
import os
import shutil
import signal
import time
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import house
from support.children import child

from fraud_poc.core.events import key_of
from fraud_poc.core.files import sole_use
from fraud_poc.core.settings import Settings
from fraud_poc.data import ingest as module
from fraud_poc.data import readers, settle
from fraud_poc.data.ingest import ingest
from fraud_poc.data.log import hash_secret, part_path, read_manifest, read_part, read_waiting

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FRAUD_POC_SHARED", ROOT / ".." / "shared"))
BASE = house.small_settings(
    ROOT,
    "who",
    {
        "domain": {"name": "test"},
        "input": {"events": "", "labels": ""},
        "columns": {
            "id": ["id"],
            "time": "at",
            "time_format": "iso",
            "timezone": "UTC",
            "amount": "amount",
            "decimals": 2,
            "entities": ["who"],
            "categories": ["town"],
        },
        "labels": {
            "column": "fraud",
            "fraud_values": [1],
            "legitimate_values": [0],
            "time_column": "known",
            "delay": "",
        },
        "limits": {"min_amount": 0.0, "max_amount": 1e10, "earliest": "2000-01-01", "latest": "2100-01-01"},
        "features": {
            "retention": "90d",
            "forget_after": "730d",
            "exact_events": 128,
            "set_size": 32,
            "rows": ["Hour()"],
        },
        "batch": {
            "folder": "",
            "scheduler": "",
            "threads": 2,
            "partitions": 0,
            "part_rows": 1_000_000,
            "step_rows": 1_000_000,
        },
    },
)


@pytest.fixture
def make(tmp_path):
    """Settings with changes, as in make(columns={"timezone": "Europe/Paris"}); labels come apart unless own=True."""

    def settings(own=False, folder="out", **changes):
        data = {name: section | changes.get(name, {}) for name, section in BASE.items()}
        data["batch"] = data["batch"] | {"folder": str(tmp_path / folder)}
        if not own:
            data["input"] |= {"labels": "named-when-needed"}
        return Settings.model_validate(data)

    return settings


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def csv(path, *lines, header="id,at,who,town,amount"):
    return write(path, "\n".join([header, *lines]) + "\n")


def log(settings, kind="events"):
    manifest = read_manifest(settings.batch.folder)
    return [
        row for part in manifest["parts"] for row in read_part(settings.batch.folder, kind, part["name"]).to_pylist()
    ]


def rejects(settings, summary):
    if not summary["rejects"]:
        return []
    return [
        (row["row"], row["column"], row["value"], row["reason"])
        for row in pq.read_table(settings.batch.folder / summary["rejects"]).to_pylist()
    ]


def adds_up(summary):
    assert summary["rows_read"] == summary["events"] + summary["repeats"] + summary["events_rejected"]
    kinds = ("", "_waiting", "_unresolved", "_unchanged", "_superseded", "_rejected")
    assert summary["labels_read"] + summary["labels_waited"] == sum(summary[f"labels{end}"] for end in kinds)
    assert sum(summary["rejected"].values()) >= summary["events_rejected"]
    return summary


def contents(folder, without=()):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.name not in without
    }


def one_row(settings, tmp_path, line):
    """Ingest one line; the event or the reason why it was rejected."""
    summary = adds_up(ingest(settings, csv(tmp_path / "one.csv", line), "", replace=True))
    found = rejects(settings, summary)
    return found[0][1:] if found else log(settings)[0]


# --- times -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, utc",
    [
        ("2025-03-03", "2025-03-02 23:00"),
        ("2025-03-03 09:00", "2025-03-03 08:00"),
        ("2025-07-03T09:00:00", "2025-07-03 07:00"),
        ("2025-03-03T09:00:00Z", "2025-03-03 09:00"),
        ("2025-03-03T09:00+05:30", "2025-03-03 03:30"),
        (" 2025-03-03 09:00:00.250-0200 ", "2025-03-03 11:00:00.250"),
        ("2025-03-03 09:00:00.1234567", "2025-03-03 08:00:00.123"),
        ("2025-03-03 09:00:00.9996", "2025-03-03 08:00:01"),
        ("2025-10-26 02:30", "2025-10-26 00:30"),
    ],
)  # the clocks go back: the earlier reading
def test_time_zones(make, tmp_path, text, utc):
    event = one_row(make(columns={"timezone": "Europe/Paris"}), tmp_path, f"1,{text},w,t,5")
    assert event["time"] == pd.Timestamp(utc, tz="UTC")


@pytest.mark.parametrize(
    "text, reason",
    [
        ("2025-03-30 02:30", "time does not exist in Europe/Paris: the clocks were put forward"),
        ("", "time is empty"),
        ("03/03/2025", "time is not an ISO date or time"),
        ("2025-02-30", "time is not an ISO date or time"),
        ("now", "time is not an ISO date or time"),
        ("2025", "time is not an ISO date or time"),
        ("2025-03-03 25:00", "time is not an ISO date or time"),
        ("1741000000", "time is not an ISO date or time"),
        ("1970-01-01", "time is before limits.earliest"),
        ("0001-01-01", "time is before limits.earliest"),
        ("9999-12-31", "time is not before limits.latest"),
        ("2100-01-01T00:00:00Z", "time is not before limits.latest"),
    ],
)
def test_times_refused(make, tmp_path, text, reason):
    settings = make(columns={"timezone": "Europe/Paris"})
    assert one_row(settings, tmp_path, f"1,{text},w,t,5") == ("at", text, reason)
    summary = ingest(
        settings,
        csv(tmp_path / "two.csv", f"1,{text},w,t,5", "2,2025-05-05,w,t,5", "3,2025-05-05T00:00Z,w,t,5"),
        "",
        replace=True,
    )
    assert rejects(settings, summary) == [
        (1, "at", text, reason)
    ]  # a mixed column gives the same outcome as a uniform one


def test_mixed_times_and_ambiguous_hours_are_counted(make, tmp_path):
    settings = make(columns={"timezone": "Europe/Paris"})
    summary = ingest(
        settings,
        csv(tmp_path / "a.csv", "1,2025-10-26 02:30,w,t,1", "2,2025-10-26T02:30+01:00,w,t,1", "3,2025-10-26,w,t,1"),
        "",
    )
    assert summary["ambiguous_times"] == 1
    assert [str(row["time"])[:16] for row in log(settings)] == [
        "2025-10-25 22:00",
        "2025-10-26 00:30",
        "2025-10-26 01:30",
    ]


def test_unknown_zone_and_limits_stop_the_run(make, tmp_path):
    place = csv(tmp_path / "a.csv", "1,2025-01-01,w,t,1")
    with pytest.raises(ValueError, match="columns.timezone 'Europe/Atlantis'"):
        ingest(make(columns={"timezone": "Europe/Atlantis"}), place, "")
    with pytest.raises(ValueError, match="limits.earliest = '1 May' is not an ISO date"):
        make(limits={"earliest": "1 May"})


@pytest.mark.parametrize(
    "form, text, ms",
    [
        ("epoch_s", "1741000000", 1741000000000),
        ("epoch_s", "1289241911.72836", 1289241911728),
        ("epoch_ms", "1741000000123", 1741000000123),
        ("epoch_s", "1e9", 10**12),
    ],
)
def test_epochs(make, tmp_path, form, text, ms):
    assert one_row(make(columns={"time_format": form}), tmp_path, f"1,{text},w,t,5")[
        "time"
    ].timestamp() * 1000 == pytest.approx(ms, abs=1e-3)


@pytest.mark.parametrize(
    "form, text, reason",
    [
        ("epoch_s", "x", "time is not a number of seconds"),
        ("epoch_ms", "inf", "time is not a number of milliseconds"),
        ("epoch_s", "1741000000000", "time is not before limits.latest"),
        ("epoch_ms", "1741000000", "time is before limits.earliest"),
        ("epoch_s", "1e300", "time is not before limits.latest"),
        ("epoch_s", "", "time is empty"),
    ],
)
def test_epochs_refused(make, tmp_path, form, text, reason):
    assert one_row(make(columns={"time_format": form}), tmp_path, f"1,{text},w,t,5") == ("at", text, reason)


@pytest.mark.parametrize(
    "kind", [pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "America/New_York"), pa.date32(), pa.date64()]
)
def test_parquet_times(make, tmp_path, kind):
    settings, day = make(), pd.Timestamp("2025-03-03", tz="UTC")
    at = (
        pa.array([day, None, pd.Timestamp("2200-01-01", tz="UTC")], pa.timestamp("s", "UTC"))
        .cast(pa.timestamp("s"))
        .cast(pa.timestamp(getattr(kind, "unit", "s")))
        .cast(kind)
    )
    pq.write_table(
        pa.table({"id": [1, 2, 3], "at": at, "who": ["w"] * 3, "town": ["t"] * 3, "amount": [1.0] * 3}),
        tmp_path / "a.parquet",
    )
    summary = ingest(settings, str(tmp_path / "a.parquet"), "")
    assert log(settings)[0]["time"] == day and summary["rejected"] == {
        "time is empty": 1,
        "time is not before limits.latest": 1,
    }


def test_parquet_times_beyond_all_bounds(make, tmp_path):
    far = pa.array([2**62, -(2**62), 2**50]).cast(pa.timestamp("us"))
    pq.write_table(
        pa.table({"id": [1, 2, 3], "at": far, "who": ["w"] * 3, "town": ["t"] * 3, "amount": [1.0] * 3}),
        tmp_path / "a.parquet",
    )
    summary = ingest(make(columns={"timezone": "Asia/Kolkata"}), str(tmp_path / "a.parquet"), "")
    assert summary["events"] == 1 and summary["rejected"] == {
        "time is before limits.earliest": 1,
        "time is not before limits.latest": 1,
    }


# --- amounts, ids, text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, minor",
    [("12.5", 1250), (" 7 ", 700), ("+1", 100), ("1e2", 10000), ("0.125", 12), ("0", 0), (str(2**36 / 100), 2**36)],
)
def test_amounts(make, tmp_path, text, minor):
    assert one_row(make(), tmp_path, f"1,2025-03-03,w,t,{text}")["amount"] == minor


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "amount is empty"),
        ("N/A", "amount stands for a missing value (columns.missing_values)"),
        ("nan", "amount stands for a missing value (columns.missing_values)"),
        ("inf", "amount is not a finite number"),
        ("-inf", "amount is not a finite number"),
        ('"1,200"', "amount is not a finite number"),
        ("-0.01", "amount is below limits.min_amount"),
        ("1e11", "amount is above limits.max_amount"),
        (str((2**36 + 1) / 100), "amount is above 2**36 minor units"),
    ],
)
def test_amounts_refused(make, tmp_path, text, reason):
    assert one_row(make(), tmp_path, f"1,2025-03-03,w,t,{text}") == ("amount", text.strip('"'), reason)


def test_parquet_amounts(make, tmp_path):
    settings, at = make(limits={"min_amount": -5.0}), pa.array([1741000000] * 6).cast(pa.timestamp("s"))
    write_rows = lambda values: pq.write_table(
        pa.table({"id": range(6), "at": at, "who": ["w"] * 6, "town": ["t"] * 6, "amount": values}),
        tmp_path / "a.parquet",
    )
    write_rows(pa.array([1.5, float("nan"), None, float("inf"), float("-inf"), -5.0]))
    summary = ingest(settings, str(tmp_path / "a.parquet"), "")
    assert [row["amount"] for row in log(settings)] == [150, -500] and [
        row[2] for row in rejects(settings, summary)
    ] == ["nan", None, "inf", "-inf"]
    write_rows(pa.array(range(6)).cast(pa.decimal128(24, 2)))
    assert ingest(settings, str(tmp_path / "a.parquet"), "", replace=True)["events"] == 6


def test_empty_text(make, tmp_path):
    settings = make()
    summary = adds_up(
        ingest(settings, csv(tmp_path / "a.csv", ",2025-03-03,w,t,1", "2,2025-03-03,,t,1", "3,2025-03-03,w,,1"), "")
    )
    assert rejects(settings, summary) == [(1, "id", None, "id is empty")] and summary["missing"] == {
        "who": 1,
        "town": 1,
    }
    assert [(row["who"], row["who_key"] == 0, row["town"], row["town_key"] == 0) for row in log(settings)] == [
        (None, True, "t", False),
        ("w", False, None, True),
    ]


def test_ids_of_several_columns_and_types(make, tmp_path):
    settings = make(columns={"id": ["id", "line"]})
    pq.write_table(
        pa.table(
            {
                "id": pa.array([1.0, 2.0, None, 4.0]),
                "line": pa.array(["a", "b", "c", ""]).dictionary_encode(),
                "at": ["2025-03-03"] * 4,
                "who": pa.array([17.0, None, 1, 1]),
                "town": pa.array([True, False, None, None]),
                "amount": pa.array([1, 2, 3, 4], pa.int8()),
            }
        ),
        tmp_path / "a.parquet",
    )
    summary = adds_up(ingest(settings, str(tmp_path / "a.parquet"), ""))
    first, second = log(settings)
    assert (first["id"], first["who"], first["town"], second["id"], second["who"]) == ("1:a", "17", "true", "2:b", None)
    assert first["id_key"] == key_of("1:a", hash_secret(settings.batch.folder)) and first["who_key"] == key_of(
        "17", hash_secret(settings.batch.folder)
    )
    assert rejects(settings, summary) == [(3, "id:line", ":c", "id is empty"), (4, "id:line", "4:", "id is empty")]


def test_broken_utf8(make, tmp_path):
    settings = make()
    lines = [
        b"id,at,who,town,amount",
        b"1,2025-03-03,\xff\xfe,t,1",
        "2,2025-03-03,caf\u00e9,t,1".encode(),
        b"\xe9,2025-03-03,w,t,1",
        b"4,2025-03-03,w,t",
        b"5,\xff",
        b"6,2025-03-03,w,t,\xc3",
    ]
    summary = adds_up(ingest(settings, write(tmp_path / "a.csv", b"\n".join(lines)), ""))
    assert [row["who"] for row in log(settings)] == ["café"]
    assert [(row, column, reason) for row, column, _, reason in rejects(settings, summary)] == [
        (1, "who", "who is not valid UTF-8"),
        (3, "id", "id is not valid UTF-8"),
        (4, "", "too few fields"),
        (5, "", "too few fields"),
        (6, "amount", "amount is not a finite number"),
    ]
    raw = pa.array([b"a", b"\xff", None], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    for column in (raw, text, raw.cast(pa.large_binary())):
        pq.write_table(
            pa.table(
                {"id": [1, 2, 3], "at": ["2025-03-03"] * 3, "who": column, "town": ["t"] * 3, "amount": [1, 2, 3]}
            ),
            tmp_path / "a.parquet",
        )
        summary = ingest(settings, str(tmp_path / "a.parquet"), "", replace=True)
        assert (
            rejects(settings, summary) == [(2, "who", "\ufffd", "who is not valid UTF-8")]
            and summary["missing"]["who"] == 1
        )


def test_rejected_values_are_cut_and_private(make, tmp_path):
    settings = make()
    summary = ingest(settings, csv(tmp_path / "a.csv", f"1,2025-03-03,w,t,{'x' * 500}", f"2,{'y' * 500}"), "")
    assert [len(row[2]) for row in rejects(settings, summary)] == [100, 100]
    for name in (summary["rejects"], "hash_secret"):
        assert (settings.batch.folder / name).stat().st_mode & 0o777 == 0o600
    assert pq.read_schema(settings.batch.folder / summary["rejects"]).names == [
        "source",
        "row",
        "column",
        "value",
        "reason",
    ]


# --- files -------------------------------------------------------------------------------------------------


def test_csv_shapes(make, tmp_path):
    settings = make()
    text = (
        b'\xef\xbb\xbfid,at,"who",town,amount\r\n1,2025-03-03,"a\r\nb","x, ""y""",1\r\n\r\n2,2025-03-03,w,t\r\n'
        b"3,2025-03-03,w,t,1,9\r\n4,2025-03-03,w,t,1"
    )
    summary = adds_up(ingest(settings, write(tmp_path / "a.csv", text), ""))
    assert [(row["id"], row["who"], row["town"]) for row in log(settings)] == [
        ("1", "a\r\nb", 'x, "y"'),
        ("4", "w", "t"),
    ]
    assert rejects(settings, summary) == [
        (2, "", "2,2025-03-03,w,t", "too few fields"),
        (3, "", "3,2025-03-03,w,t,1,9", "too many fields"),
    ]


def test_csv_cut_in_its_last_line(make, tmp_path):
    settings = make()
    whole = "id,at,who,town,amount\n1,2025-03-03,w,t,1\n2,2025-03-0"
    assert rejects(settings, ingest(settings, write(tmp_path / "a.csv", whole), "")) == [
        (2, "", "2,2025-03-0", "too few fields")
    ]
    for tail in ('2,2025-03-03,w,t,"1', '2,2025-03-03,"w,t,1\n3,2025-03-03,w,t,1\n', '2,2025-03-03,w,t,1,"x'):
        summary = adds_up(ingest(settings, write(tmp_path / "a.csv", whole[:-11] + tail), "", replace=True))
        assert summary["events"] == 1 and len(rejects(settings, summary)) == 1, tail
    summary = ingest(
        settings,
        write(
            tmp_path / "a.csv",
            "id,at,who,town,amount,note\n1,2025-03-03,w,t,1,n\n" + '2,2025-03-03,w,t,1,"open\n3,2025-03-03,w,t,1,n\n',
        ),
        "",
        replace=True,
    )
    assert [row["id"] for row in log(settings)] == ["1"] and rejects(settings, summary) == [
        (2, "", "", "a quote is never closed and takes in all that follows")
    ]


def test_rows_keep_their_numbers_over_many_blocks(make, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK", 2_000)
    for room in (readers, settle, module):
        monkeypatch.setattr(room, "ROWS_PER_BATCH", 300)
    settings, lines = (
        make(),
        [f"{i},2025-03-03,w,t,{'x' if i % 11 == 0 else i}" + ",more" * (i % 7 == 0) for i in range(1, 3001)],
    )
    summary = adds_up(ingest(settings, csv(tmp_path / "a.csv", *lines), ""))
    found = rejects(settings, summary)
    assert [row for row, *_ in found] == [i for i in range(1, 3001) if i % 11 == 0 or i % 7 == 0] and summary[
        "events"
    ] == 3000 - len(found)
    assert all((reason == "too many fields") == (row % 7 == 0) for row, _, _, reason in found)
    monkeypatch.setattr(readers, "BLOCK", 8 << 20)
    long = csv(tmp_path / "b.csv", '1,2025-03-03,"w,t,1', *lines * 300)
    with pytest.raises(ValueError, match="b.csv is not a whole CSV file.*a quote stays open"):
        ingest(settings, long, "", replace=True)


def test_truncated_and_empty_files(make, tmp_path):
    settings, good = make(), csv(tmp_path / "good.csv", *(f"{i},2025-03-03,w,t,{i}" for i in range(5000)))
    first = ingest(settings, good, "")
    before = contents(settings.batch.folder)
    table = pa.table(
        {
            "id": range(5000),
            "at": ["2025-03-03"] * 5000,
            "who": ["w"] * 5000,
            "town": ["t"] * 5000,
            "amount": range(5000),
        }
    )
    pq.write_table(table, tmp_path / "whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()
    damaged = data[:200] + bytes(1000) + data[1200:]
    packed = gzip.compress(Path(good).read_bytes())
    for name, text, message in [
        ("cut.parquet", data[:-30], "cut.parquet is not a whole Parquet file"),
        ("damaged.parquet", damaged, "damaged.parquet is not a whole Parquet file"),
        ("none.parquet", b"", "none.parquet is not a whole Parquet file"),
        ("cut.csv.gz", packed[:-200], "cut.csv.gz is not a whole CSV file"),
        ("no.csv.gz", b"\x1f\x8bid,at\n", "no.csv.gz is not a whole CSV file"),
        ("none.csv", b"", "none.csv is empty"),
        ("none.csv.gz", gzip.compress(b""), "none.csv.gz is empty"),
    ]:
        with pytest.raises(ValueError, match=f"{message}.*nothing was ingested"):
            ingest(settings, write(tmp_path / name, text), "")
        assert contents(settings.batch.folder) == before, name
    assert ingest(settings, write(tmp_path / "a.csv.gz", packed), "")["repeats"] == first["events"]


def test_header_only(make, tmp_path):
    settings = make()
    for place in (csv(tmp_path / "a.csv"), write(tmp_path / "b.csv", "id,at,who,town,amount")):
        assert ingest(settings, place, "")["rows_read"] == 0
    assert read_manifest(settings.batch.folder)["parts"] == []
    pq.write_table(
        pa.table({"id": [1], "at": ["2025-03-03"], "who": ["w"], "town": ["t"], "amount": [1]}).slice(0, 0),
        tmp_path / "a.parquet",
    )
    assert ingest(settings, str(tmp_path / "a.parquet"), "")["rows_read"] == 0
    csv(tmp_path / "a.csv", "1,2025-03-03,w,t,1")
    assert ingest(settings, str(tmp_path / "a.csv"), "")["events"] == 1


def test_columns_that_do_not_fit(make, tmp_path):
    settings, good = make(), csv(tmp_path / "in/a.csv", "1,2025-03-03,w,t,1")
    cases = [
        (
            "b.csv",
            "id,At,town,amount\n",
            [
                "'at' (columns.time) is missing; 'At' looks closest",
                "'who' (columns.entities) is missing",
                "columns found: id, At, town, amount",
            ],
        ),
        ("b.csv", "id,at,who,town,amount,id\n", ["'id' (columns.id) is there 2 times"]),
        ("b.csv", "id;at;who\n1;2;3\n", ["separated by ','", 'set input.separator = ";"']),
    ]
    for name, text, parts in cases:
        write(tmp_path / "in" / name, text)
        with pytest.raises(ValueError) as error:
            ingest(settings, str(tmp_path / "in"), "")
        assert all(part in str(error.value) for part in ["b.csv does not fit", *parts]), error.value
    (tmp_path / "in/b.csv").unlink()
    fine = {
        "id": pa.array([1]),
        "at": pa.array(["2025-03-03"]),
        "who": pa.array(["w"]),
        "town": pa.array(["t"]),
        "amount": pa.array([1]),
    }
    for name, column, part in [
        ("amount", pa.array(["1"]), "should hold numbers, but holds string"),
        ("at", pa.array([True]), "timestamps or ISO text"),
        ("at", pa.array([5]), "set epoch_s or epoch_ms"),
        ("who", pa.array([["w"]]), "should hold text, numbers or booleans, but holds list"),
        (
            "id",
            pa.array([1], pa.date64()),
            "write a date or time as text, the same that it is elsewhere), but holds date32",
        ),
    ]:
        pq.write_table(pa.table(fine | {name: column}), tmp_path / "in/b.parquet")
        with pytest.raises(ValueError) as error:
            ingest(settings, str(tmp_path / "in"), "")
        assert f"{name!r} (columns." in str(error.value) and part in str(error.value)
    pq.write_table(pa.table(fine), tmp_path / "in/b.parquet")
    with pytest.raises(ValueError, match="should hold numbers"):
        ingest(make(columns={"time_format": "epoch_s"}), str(tmp_path / "in/b.parquet"), "")
    assert not (settings.batch.folder / "log").exists()
    (tmp_path / "in/b.parquet").unlink()
    assert ingest(settings, good, "")["events"] == 1


def test_places(make, tmp_path):
    settings = make()
    for i in range(3):
        csv(tmp_path / f"in/day={i}/rows.csv", f"{i},2025-03-0{i + 1},w,t,1")
    write(tmp_path / "in/_SUCCESS.csv", "")
    write(tmp_path / "in/.tmp/x.csv", "")
    write(tmp_path / "in/notes.txt", "hello")
    assert ingest(settings, str(tmp_path / "in"), "")["events"] == 3
    assert ingest(settings, str(tmp_path / "in/*/rows.csv"), "", replace=True)["files"] == 3
    assert ingest(settings, f"file://{tmp_path}/in", "", replace=True)["events"] == 3
    shutil.copy(tmp_path / "in/day=0/rows.csv", tmp_path / "rows [1].dat")
    assert ingest(settings, str(tmp_path / "rows [1].dat"), "", replace=True)["events"] == 1
    memory = fsspec.filesystem("memory")
    memory.pipe("/shop/a.csv", (tmp_path / "in/day=1/rows.csv").read_bytes())
    memory.pipe("/shop/b.csv.gz", gzip.compress((tmp_path / "in/day=2/rows.csv").read_bytes()))
    pq.write_table(
        pa.table({"id": ["p"], "at": ["2025-03-03"], "who": ["w"], "town": ["t"], "amount": ["x"]})
        .drop("amount")
        .append_column("amount", pa.array([-1])),
        tmp_path / "c.parquet",
    )
    memory.pipe("/shop/c.parquet", (tmp_path / "c.parquet").read_bytes())
    summary = ingest(settings, "memory://shop", "", replace=True)
    assert (summary["events"], summary["files"]) == (2, 3) and summary["rejected"] == {
        "amount is below limits.min_amount": 1
    }
    assert pq.read_table(settings.batch.folder / summary["rejects"])["source"].to_pylist() == [
        "memory:///shop/c.parquet"
    ]
    assert ingest(settings, "memory://shop/*.csv*", "", replace=True)["events"] == 2
    with pytest.raises(ValueError, match="no file at"):
        ingest(settings, str(tmp_path / "nowhere"), "")
    with pytest.raises(ValueError, match="nothing to read"):
        ingest(settings, "", "")


# --- repeats, conflicts, labels ------------------------------------------------------------------------------


def test_repeats_and_conflicts(make, tmp_path):
    settings = make()
    csv(
        tmp_path / "in/a.csv", "1,2025-03-03,w,t,1", "2,2025-03-03,w,t,1", "3,2025-03-05,w,t,1", "1,2025-03-03,w,t,1.00"
    )
    csv(
        tmp_path / "in/b.csv",
        "1,2025-03-03T00:00Z,w,t,1",
        "2,2025-03-03,v,t,1",
        "3,2025-03-04,w,t,1",
        "4,2025-03-04,,t,1",
        "4,2025-03-04,,t,1",
    )
    summary = adds_up(ingest(settings, str(tmp_path / "in"), ""))
    assert summary["repeats"] == 3 and summary["rejected"] == {"id seen before with another body": 2}
    assert {row["id"]: (row["who"], row["time"].day) for row in log(settings)} == {
        "1": ("w", 3),
        "2": ("w", 3),
        "3": ("w", 4),
        "4": (None, 4),
    }
    assert [(row, value) for row, _, value, _ in rejects(settings, summary)] == [(3, "3"), (2, "2")]
    before = contents(settings.batch.folder)
    assert (
        ingest(settings, csv(tmp_path / "c.csv", "4,2025-03-04,,t,1"), "")["repeats"] == 1
        and contents(settings.batch.folder) == before
    )
    late = adds_up(
        ingest(settings, csv(tmp_path / "c.csv", "5,2025-01-01,w,t,1", "4,2025-03-04,,,1", "4,2025-03-01,,,1"), "")
    )
    assert late["rejected"] == {"id seen before with another body": 2} and log(settings)[-1]["id"] == "5"
    assert [row["seq"] for row in log(settings)] == list(range(5))


LATER = "99,2025-10-31,w,t,1"  # an event after which all labels here were known


def labelled(tmp_path, settings, events, labels, **named):
    return adds_up(
        ingest(
            settings,
            csv(tmp_path / "e.csv", *events) if events else "",
            csv(tmp_path / "l.csv", *labels, header="id,fraud,known") if labels else "",
            **named,
        )
    )


def labels_of(settings):
    return [(row["id"], str(row["known"])[:10], row["label"], row["previous"]) for row in log(settings, "labels")]


def test_labels(make, tmp_path):
    settings, events = make(), ["1,2025-03-03,w,t,1", "2,2025-03-03,w,t,1", "3,2025-03-03,w,t,1", LATER]
    labels = [
        "1,0,2025-03-10",
        "1,0,2025-03-11",
        "1,1,2025-03-20",
        "1,0,2025-04-02",
        "2,,2025-03-09",
        "2,1,",
        "2,1,soon",
        "3,1,2025-03-01",
        "3,1,1970-01-01",
        "9,1,2025-03-09",
        ",1,2025-03-09",
        "3,0,2105-01-01",
    ]
    summary = labelled(tmp_path, settings, events, labels)
    assert labels_of(settings) == [
        ("3", "2025-03-03", 1, -1),
        ("1", "2025-03-10", 0, -1),
        ("1", "2025-03-20", 1, 0),
        ("1", "2025-04-02", 0, 1),
    ]
    first = log(settings, "labels")[0]
    assert first["known"] - first["time"] == pd.Timedelta("1ms") and first["who_key"] == log(settings)[2]["who_key"]
    assert (
        summary["labels"],
        summary["labels_unchanged"],
        summary["labels_unresolved"],
        summary["labels_clamped"],
    ) == (4, 1, 1, 1)
    assert summary["rejected"] == {
        "label time is empty": 1,
        "label time is not an ISO date or time": 1,
        "label time is before limits.earliest": 1,
        "id is empty": 1,
        "label time is not before limits.latest": 1,
        "label of an id that is not in the log": 1,
    }
    before = contents(settings.batch.folder, without=["000001.parquet"])
    again = labelled(tmp_path, settings, events, labels)
    assert again["labels"] == 0 == again["parts"] and again["rejects"] == "rejects/000001.parquet"
    assert contents(settings.batch.folder, without=["000001.parquet"]) == before


def test_labels_of_an_earlier_portion(make, tmp_path):
    settings = make()
    labelled(tmp_path, settings, ["1,2025-03-03,w,t,1", "2,2025-03-03,v,t,1", LATER], ["1,0,2025-03-10"])
    labelled(tmp_path, settings, [], ["1,1,2025-03-20", "2,1,2025-03-05"])
    summary = labelled(
        tmp_path,
        settings,
        ["1,2025-03-03,w,t,1", "3,2025-03-03,v,t,1"],
        ["1,0,2025-03-15", "1,0,2025-03-25", "3,0,2025-03-26"],
    )  # the first is older than what is known
    assert labels_of(settings) == [
        ("1", "2025-03-10", 0, -1),
        ("2", "2025-03-05", 1, -1),
        ("1", "2025-03-20", 1, 0),
        ("1", "2025-03-25", 0, 1),
        ("3", "2025-03-26", 0, -1),
    ]
    assert summary["labels_superseded"] == 1 and summary["repeats"] == 1
    keys = {row["id"]: row["who_key"] for row in log(settings)}
    assert all(
        row["who_key"] == keys[row["id"]] and str(row["time"])[:10] == "2025-03-03" for row in log(settings, "labels")
    )


def test_labels_at_one_moment(make, tmp_path):
    settings = make()
    summary = labelled(
        tmp_path,
        settings,
        ["1,2025-03-03,w,t,1", "2,2025-03-03,w,t,1", LATER],
        ["1,0,2025-03-10", "1,1,2025-03-10", "2,1,2025-03-02", "2,0,2025-03-01"],
    )
    assert [row[::2] for row in labels_of(settings)] == [("2", 1), ("1", 1)] and summary[
        "labels_superseded"
    ] == 2  # the last one stands


@pytest.mark.parametrize(
    "values, column, frauds",
    [
        ([1], ["1", "0", "1.0", ""], [1, 0, 1]),
        (["Fraud"], ["fraud", "ok", " FRAUD ", ""], [1, 0, 1]),
        ([True], ["True", "false", "TRUE", ""], [1, 0, 1]),
    ],
)
def test_own_labels_with_a_delay(make, tmp_path, values, column, frauds):
    settings = make(
        own=True,
        labels={
            "fraud_values": values,
            "legitimate_values": ["ok"] if values == ["Fraud"] else [0],
            "time_column": "",
            "delay": "7d",
        },
    )
    summary = adds_up(
        ingest(
            settings,
            csv(
                tmp_path / "a.csv",
                *(f"{i},2025-03-03,w,t,1,{value}" for i, value in enumerate(column)),
                f"{LATER},",
                header="id,at,who,town,amount,fraud",
            ),
        )
    )
    assert [row["label"] for row in log(settings, "labels")] == frauds and summary["labels_unresolved"] == 2
    assert all(row["known"] - row["time"] == pd.Timedelta(days=7) for row in log(settings, "labels"))
    changed = adds_up(
        ingest(
            settings,
            csv(
                tmp_path / "a.csv",
                f"1,2025-03-03,w,t,1,{column[0]}",
                f"3,2025-03-03,w,t,1,{column[0]}",
                header="id,at,who,town,amount,fraud",
            ),
        )
    )
    assert changed["repeats"] == 2 and [(row["id"], row["previous"]) for row in log(settings, "labels")[-2:]] == [
        ("1", 0),
        ("3", -1),
    ]  # the same event, another label: a correction


def test_own_labels_with_bad_times_keep_the_event(make, tmp_path):
    settings = make(own=True)
    summary = adds_up(
        ingest(
            settings,
            csv(
                tmp_path / "a.csv",
                "1,2025-03-03,w,t,1,1,never",
                "2,2025-03-03,w,t,1,,",
                "3,2025-03-03,w,t,x,1,2025-03-04",
                "4,2025-03-03,w,t,1,0,2025-03-04",
                f"{LATER},,",
                header="id,at,who,town,amount,fraud,known",
            ),
        )
    )
    assert (summary["events"], summary["labels"], summary["labels_rejected"], summary["labels_unresolved"]) == (
        4,
        1,
        1,
        2,
    )
    with pytest.raises(ValueError, match=r"'fraud' \(labels.column\) is missing"):
        ingest(settings, csv(tmp_path / "b.csv", "5,2025-03-03,w,t,1"))


# --- the log -------------------------------------------------------------------------------------------------


def crowd(rows, seed, first=0):
    rng = np.random.default_rng(seed)
    at = pd.Timestamp("2025-01-30") + pd.to_timedelta(rng.integers(0, 5000, rows) * 10, unit="min")
    events = pd.DataFrame(
        {
            "id": [f"e{i}" for i in rng.permutation(rows) + first],
            "at": at,
            "who": rng.choice(["a", "b", "", "d"], rows),
            "town": "t",
            "amount": rng.integers(1, 9, rows),
        }
    )
    chosen = rng.integers(0, rows, rows)
    labels = pd.DataFrame(
        {
            "id": events["id"].to_numpy()[chosen],
            "fraud": rng.choice(["0", "1", ""], rows),
            "known": at[chosen] + pd.to_timedelta(rng.integers(-2, 90, rows), unit="D"),
        }
    )
    twice = events.iloc[: rows // 20].copy()
    twice.loc[twice.index[::2], "amount"] += 1
    return pd.concat([events, twice], ignore_index=True), labels


def test_same_bytes_for_any_split_threads_and_pieces(make, tmp_path, monkeypatch):
    events, labels = crowd(4000, 1)
    labels.to_csv(tmp_path / "labels.csv", index=False)
    events.to_csv(tmp_path / "all.csv", index=False)
    for i in range(5):
        events.iloc[i * 1000 : (i + 1) * 1000].to_csv(write(tmp_path / f"in/{i}.csv", ""), index=False)
    seen = []
    for place, threads, rows in [("all.csv", 1, 500_000), ("in", 3, 700), ("in/*.csv", 2, 100)]:
        for room in (readers, settle, module):
            monkeypatch.setattr(room, "ROWS_PER_BATCH", rows)
        settings = make(folder=f"out{len(seen)}")
        settings = settings.model_copy(
            update={"batch": settings.batch.model_copy(update={"threads": threads, "part_rows": 1500})}
        )
        settings.batch.folder.mkdir()
        write(settings.batch.folder / "hash_secret", "ab" * 32)
        adds_up(ingest(settings, str(tmp_path / place), str(tmp_path / "labels.csv")))
        seen.append(contents(settings.batch.folder / "log"))
    assert seen[0] == seen[1] == seen[2]
    manifest = read_manifest(settings.batch.folder)
    assert all(0 < part["events"] + part["labels"] <= 1500 for part in manifest["parts"]) and len(manifest["parts"]) > 4
    assert (
        all(a["next_seq"] == b["first_seq"] for a, b in zip(manifest["parts"], manifest["parts"][1:]))
        and manifest["parts"][-1]["next_seq"] == manifest["next_seq"]
    )
    assert all(
        str(pd.Timestamp(part[f"{end}_known_ms"], unit="ms"))[:7] == part["name"][7:14]
        for part in manifest["parts"]
        for end in ("first", "last")
    )
    rows = sorted(
        [(row["seq"], row["time"], 1, row["id"]) for row in log(settings)]
        + [(row["seq"], row["known"], 0, row["id"]) for row in log(settings, "labels")]
    )
    assert [row[0] for row in rows] == list(range(len(rows))) and [row[1:] for row in rows] == sorted(
        row[1:] for row in rows
    )
    replay = {}
    for row in log(settings, "labels"):
        assert replay.get(row["id"], -1) == row["previous"] != row["label"]
        replay[row["id"]] = row["label"]


def test_portions_and_rebuild(make, tmp_path):
    settings, (events, labels), (more, _) = make(), crowd(800, 2), crowd(300, 3, first=700)
    for name, table in [("a", events), ("b", more), ("l", labels)]:
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    first = ingest(settings, str(tmp_path / "a.csv"), str(tmp_path / "l.csv"))
    old = contents(settings.batch.folder / "log", without=["manifest.json", "000000_waiting.parquet"])
    second = adds_up(ingest(settings, str(tmp_path / "b.csv"), ""))
    now = contents(settings.batch.folder / "log", without=["manifest.json"])
    assert old.items() <= now.items() and second["first_seq"] == first["next_seq"] and second["events"] == 200
    assert [entry["events"] for entry in read_manifest(settings.batch.folder)["ingests"]] == [800, 200]
    ingest(settings, str(tmp_path / "a.csv"), str(tmp_path / "l.csv"), replace=True)
    assert contents(
        settings.batch.folder / "log", without=["manifest.json", "000000_waiting.parquet"]
    ) == old and os.listdir(settings.batch.folder / "rejects") == ["000000.parquet"]
    with pytest.raises(ValueError, match="columns.decimals = 2, the settings have 3"):
        ingest(make(columns={"decimals": 3}), str(tmp_path / "a.csv"), "")
    (settings.batch.folder / "hash_secret").unlink()
    with pytest.raises(ValueError, match="hash_secret is gone"):
        ingest(settings, str(tmp_path / "b.csv"), "")


def killed(tell, settings: Settings, place: str, replace: bool, when: str) -> None:
    "Runs in a process of its own, which kills itself after a share of the rows, or at the commit."

    def end(*anything):
        os.kill(os.getpid(), signal.SIGKILL)

    def progress(done, total):
        if when != "commit" and done >= total * float(when):
            end()

    if when == "commit":
        module.write_json = end
    ingest(settings, place, "", replace=replace, progress=progress)


@pytest.mark.parametrize(
    "mode, when",
    [("append", "0.1"), ("append", "0.9"), ("append", "commit"), ("replace", "0.9"), ("replace", "commit")],
)
def test_killed(make, tmp_path, mode, when):
    settings, (events, _), (more, _) = make(), crowd(500, 4), crowd(400, 5, first=1000)
    for name, table in [("a", events), ("b", more)]:
        table.assign(at=table["at"].astype(str)).to_parquet(tmp_path / f"{name}.parquet", index=False)
    ingest(settings, str(tmp_path / "a.parquet"), "")
    before = contents(settings.batch.folder / "log")
    names = {part["name"] for part in read_manifest(settings.batch.folder)["parts"]}
    with child(killed, settings, str(tmp_path / "b.parquet"), mode == "replace", when) as process:
        assert process.ended() == -signal.SIGKILL
    assert (
        before.items() <= contents(settings.batch.folder / "log").items()
        and {part["name"] for part in read_manifest(settings.batch.folder)["parts"]} == names
    )
    summary = ingest(settings, str(tmp_path / "b.parquet"), "", replace=mode == "replace")
    assert summary["events"] == 400 and len(log(settings)) == (400 if mode == "replace" else 900)
    files = {path.stem for path in (settings.batch.folder / "log/events").iterdir()}
    assert (
        files == {part["name"] for part in read_manifest(settings.batch.folder)["parts"]}
        and not (settings.batch.folder / ".ingest").exists()
    )


def test_one_at_a_time(make, tmp_path):
    settings, place = make(), csv(tmp_path / "a.csv", "1,2025-03-03,w,t,1")
    with sole_use(settings.batch.folder):
        with pytest.raises(ValueError, match="another run is writing"):
            ingest(settings, place, "")
    assert ingest(settings, place, "")["events"] == 1


def test_a_damaged_log_is_named(make, tmp_path):
    settings = make()
    with pytest.raises(ValueError, match="no event log at"):
        read_manifest(settings.batch.folder)
    ingest(settings, csv(tmp_path / "a.csv", "1,2025-03-03,w,t,1"), "")
    path = part_path(settings.batch.folder, "events", read_manifest(settings.batch.folder)["parts"][0]["name"])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{path.name} cannot be read"):
        ingest(settings, csv(tmp_path / "a.csv", "1,2025-03-03,w,t,1"), "")


def test_progress_counts_up_to_all_rows(make, tmp_path):
    steps, (events, _) = [], crowd(1000, 6)
    events.assign(at=events["at"].astype(str)).to_parquet(tmp_path / "a.parquet", index=False)
    ingest(make(), str(tmp_path / "a.parquet"), "", progress=lambda done, total: steps.append((done, total)))
    assert steps == sorted(steps) and steps[-1] == (1050, 1050) and len(steps) > 1


def test_a_summary_says_how_much_was_read_and_written(make, tmp_path):
    (tmp_path / "raw").mkdir()
    paths = [csv(tmp_path / "raw" / f"{name}.csv", f"{name},2025-03-03,w,t,1") for name in ("a", "bb")]
    summary = ingest(make(), str(tmp_path / "raw"), "")
    assert (summary["files"], summary["input_bytes"], summary["rows_read"]) == (
        2,
        sum(Path(path).stat().st_size for path in paths),
        2,
    )
    assert summary["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out" / "log").rglob("*.parquet"))


# --- data from elsewhere ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "domain, file, rows",
    [("ratings", "bitcoin_otc/ratings.parquet", 35_592), ("cards", "handbook/transactions.parquet", 1_303_778)],
)
def test_real_data(tmp_path, domain, file, rows):
    from fraud_poc.core.settings import load_settings

    place = SHARED / "data" / file
    if not place.exists():
        pytest.skip(f"no {place}: set FRAUD_POC_SHARED to the folder of the shared data")
    settings = load_settings(ROOT / "config" / f"{domain}.toml", {"batch.folder": str(tmp_path / "out")})
    started = time.perf_counter()
    summary = adds_up(ingest(settings, str(place)))
    print(f"{domain}: {rows / (time.perf_counter() - started):,.0f} rows/s")
    waiting = {"ratings": 1, "cards": 67_080}[domain]  # known a millisecond, and a week, after their events
    assert (
        summary["events"] == summary["labels"] + summary["labels_waiting"] == rows
        and summary["rejected"] == {}
        and summary["next_seq"] == 2 * rows - waiting
    )
    manifest, raw = read_manifest(settings.batch.folder), pd.read_parquet(place)
    labels = pa.concat_tables(
        [
            read_part(settings.batch.folder, "labels", part["name"], ["seq", "label", "time", "known"])
            for part in manifest["parts"]
        ]
    )
    frauds = (raw["rating"] < 0).sum() if domain == "ratings" else raw["TX_FRAUD"].sum()
    assert labels["label"].to_numpy().sum() + read_waiting(settings.batch.folder, manifest)[
        "label"
    ].to_numpy().sum() == frauds and json.dumps(manifest)
    delay = labels["known"].cast(pa.int64()).to_numpy() - labels["time"].cast(pa.int64()).to_numpy()
    assert (delay == (1 if domain == "ratings" else 7 * 86_400_000)).all()
    events = pa.concat_tables(
        [
            read_part(settings.batch.folder, "events", part["name"], ["seq", settings.columns.amount])
            for part in manifest["parts"]
        ]
    )
    assert (
        events[settings.columns.amount].to_numpy().sum()
        == np.rint(raw[settings.columns.amount] * 10**settings.columns.decimals).sum()
    )
    assert (
        np.sort(np.append(events["seq"].to_numpy(), labels["seq"].to_numpy())) == np.arange(2 * rows - waiting)
    ).all()
