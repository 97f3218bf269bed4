"""Files as spreadsheets and banks write them: read like a plain file with the right settings, else rejected."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.command_line import as_json, call, payments_in

from fraud_poc.core.events import Actor
from fraud_poc.core.reading import EventError, EventReader, written_time
from fraud_poc.core.settings import load_settings
from fraud_poc.data.ingest import ingest
from fraud_poc.data.log import read_manifest, read_part
from fraud_poc.live.label_files import file_changes
from fraud_poc.live.predict import read_raw_events
from fraud_poc.ops.replay import raw_orders

PLAIN = [
    ("p1", "2025-05-03T10:05:00", "Zoé", "1234.50", "0"),
    ("p2", "2025-05-28T23:00:00", "bob", "12.00", "1"),
    ("p3", "2025-10-31T00:30:00", "ann", "7.25", "0"),
]
HEAD = ("id", "at", "who", "amount", "fraud")


def table(times, amounts, separator=",", quote="", encoding="utf-8", end="\n"):
    "The three payments, with these times and amounts."
    rows = [(row[0], at, row[2], amount, row[4]) for row, at, amount in zip(PLAIN, times, amounts)]
    lines = [separator.join(f"{quote}{value}{quote}" for value in row) for row in (HEAD, *rows)]
    return (end.join(lines) + end).encode(encoding)


DAYS = [row[1] for row in PLAIN]
AMOUNTS = [row[3] for row in PLAIN]
FRANCE = ["03/05/2025 10:05", "28/05/2025 23:00", "31/10/2025 00:30"]
AMERICA = ["05/03/2025 10:05 AM", "5/28/2025 11:00 PM", "10/31/2025 12:30 AM"]
COMMAS, GROUPED = ["1234,50", "12,00", "7,25"], ["1.234,50", "12,00", "7,25"]
# name -> bytes, settings that read them
FILES = {
    "semicolons": (table(DAYS, AMOUNTS, ";"), {"separator": ";"}),
    "tabs": (table(DAYS, AMOUNTS, "\t"), {"separator": "\t"}),
    "bars": (table(DAYS, AMOUNTS, "|"), {"separator": "|"}),
    "quoted commas": (table(DAYS, COMMAS, ",", '"'), {"decimal": ","}),
    "a German sheet": (
        table(FRANCE, GROUPED, ";", encoding="cp1252", end="\r\n"),
        {"separator": ";", "decimal": ",", "thousands": ".", "encoding": "cp1252", "date_format": "dayfirst"},
    ),
    "Excel's Unicode text": (
        table(FRANCE, COMMAS, "\t", encoding="utf-16"),
        {"separator": "\t", "decimal": ",", "encoding": "utf-16", "date_format": "dayfirst"},
    ),
    "a French sheet": (
        table(FRANCE, ["1\u202f234,50", "12,00", "7,25"], ";"),
        {"separator": ";", "decimal": ",", "thousands": " ", "date_format": "dayfirst"},
    ),
    "a Swiss bank": (
        table([day.replace("/", ".") for day in FRANCE], ["1'234.50", "12.00", "7.25"]),
        {"thousands": "'", "date_format": "dayfirst"},
    ),
    "an American bank": (
        table(AMERICA, ["1,234.50", "12.00", "7.25"], ",", '"'),
        {"thousands": ",", "date_format": "monthfirst"},
    ),
    "a database": (
        table(["20250503100500", "20250528230000", "20251031003000"], AMOUNTS),
        {"date_format": "%Y%m%d%H%M%S"},
    ),
    "slashes": (
        table([day.replace("-", "/").replace("T", " ") for day in DAYS], AMOUNTS),
        {"date_format": "%Y/%m/%d %H:%M:%S"},
    ),
}


@pytest.fixture
def payments(root, tmp_path):
    return [*payments_in(root, tmp_path), "--set", "limits.max_amount=1e6"]


def options(spelled):
    return [word for name, value in spelled.items() for word in ("--set", f"input.{name}={json.dumps(value)}")]


def settings_of(folder, spelled, **changes):
    inputs = {"limits.max_amount": 1e6} | {f"input.{name}": value for name, value in spelled.items()}
    return load_settings(folder / "payments.toml", inputs | {name.replace("__", "."): v for name, v in changes.items()})


def logged(settings, columns=("id", "time", "who", "amount")):
    parts = read_manifest(settings.batch.folder)["parts"]
    return [
        row
        for part in parts
        for row in read_part(settings.batch.folder, "events", part["name"], list(columns)).to_pylist()
    ]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_a_plain_one_is(payments, tmp_path, name):
    content, spelled = FILES[name]
    (tmp_path / "plain.csv").write_bytes(table(DAYS, AMOUNTS))
    (tmp_path / "bank.csv").write_bytes(content)
    done = as_json("ingest", *payments, *options(spelled), "--input", tmp_path / "bank.csv")
    assert done["events"] == done["rows_read"] == 3 and done["labels_read"] == 3
    found = logged(settings_of(tmp_path, {}))
    as_json("ingest", *payments, "--replace", "--input", tmp_path / "plain.csv")
    assert logged(settings_of(tmp_path, {})) == found and [row["amount"] for row in found] == [123450, 1200, 725]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_does_not_read_is_rejected_with_the_settings_that_read_it(payments, tmp_path, name):
    content, spelled = FILES[name]
    (tmp_path / "bank.csv").write_bytes(content)
    failed = call("ingest", *payments, "--input", tmp_path / "bank.csv")
    assert failed.exit_code == 2 and "bank.csv does not" in failed.stderr, failed.output
    for setting, value in spelled.items():
        assert f"input.{setting} = {json.dumps(value)}" in failed.stderr, failed.stderr
    assert "where two are named" not in failed.stderr and failed.stderr.count("input.") <= len(spelled) + 2
    assert not (tmp_path / "out" / "log" / "manifest.json").exists()


@pytest.mark.parametrize("name", [name for name, (_, spelled) in FILES.items() if spelled.get("encoding") != "utf-16"])
def test_labels_and_orders_to_score_are_spelled_alike(payments, tmp_path, name):
    content, spelled = FILES[name]
    settings = settings_of(tmp_path, spelled)
    (tmp_path / "bank.csv").write_bytes(content)
    reader = EventReader(settings, bytes(32))
    events = [
        reader.read_dict({n: row[n] for n in HEAD[:-1]}) for row in read_raw_events(str(tmp_path / "bank.csv"), reader)
    ]
    ingest(settings, str(tmp_path / "bank.csv"), "")
    kept = [(row["id"], round(row["time"].timestamp() * 1000), row["amount"]) for row in logged(settings)]
    assert [(event.id, event.time, event.amount) for event in events] == kept
    known = (
        content.decode(spelled.get("encoding", "utf-8"))
        .replace("at", "known", 1)
        .encode(spelled.get("encoding", "utf-8"))
    )
    (tmp_path / "labels.csv").write_bytes(known)
    changes = [change for _, change in file_changes(settings, reader, str(tmp_path / "labels.csv"), Actor("tests"))]
    assert [(change.order, change.known, change.fraud) for change in changes] == [
        (ident, time, ident == "p2") for ident, time, _ in kept
    ]


@pytest.mark.parametrize(
    "times, amounts, both",
    [
        (["03/05/2025", "04/05/2025", "05/06/2025"], AMOUNTS, ['"dayfirst"', '"monthfirst"']),
        (DAYS, ["1.234", "5.678", "9.012"], []),  # reads as it is: the settings say that these are decimals
        (DAYS, ['"1,234"', '"5,678"', '"9,012"'], ['input.thousands = ","', 'input.decimal = ","']),
    ],
)
def test_what_means_two_things_is_never_chosen(payments, tmp_path, times, amounts, both):
    (tmp_path / "bank.csv").write_bytes(table(times, amounts))
    failed = call("ingest", *payments, "--input", tmp_path / "bank.csv")
    assert failed.exit_code == (2 if both else 0), failed.output
    assert all(choice in failed.stderr for choice in both) and ("where two are named" in failed.stderr) == bool(both)


@pytest.mark.parametrize(
    "values, spelled, rejected",
    [
        (["1,50", "12.00", "7,25"], {"decimal": ","}, 1),  # a point where the decimal is a comma
        (["1.50", "12,00", "7,25"], {"decimal": ",", "thousands": "."}, 1),
        (["1.234.50", "12,00", "7,25"], {"decimal": ",", "thousands": "."}, 1),
    ],
)
def test_a_value_in_another_spelling_is_no_number(payments, tmp_path, values, spelled, rejected):
    (tmp_path / "bank.csv").write_bytes(table(DAYS, values, ";"))
    done = as_json("ingest", *payments, *options(spelled | {"separator": ";"}), "--input", tmp_path / "bank.csv")
    assert done["rejected"] == {"amount is not a finite number": rejected}


@pytest.mark.parametrize("at", ["05/28/2025", "31/02/2025", "2025/05/28", "28/05-2025", "soon"])
def test_a_date_in_another_spelling_is_no_date(payments, tmp_path, at):
    (tmp_path / "bank.csv").write_bytes(table([at, *FRANCE[1:]], AMOUNTS))
    done = as_json("ingest", *payments, *options({"date_format": "dayfirst"}), "--input", tmp_path / "bank.csv")
    assert done["rejected"] == {'time is not a date as input.date_format = "dayfirst" says': 1} and done["events"] == 2


# --- times that are numbers -------------------------------------------------------------------------------------------

SECOND = 1_746_266_700  # 2025-05-03T10:05Z
INDEX = {"columns__time_format": "index", "columns__time_start": "2025-05-01"}
NUMBERS = {  # settings, number of that second
    "epoch_s": ({"columns__time_format": "epoch_s"}, SECOND),
    "epoch_ms": ({"columns__time_format": "epoch_ms"}, SECOND * 1_000),
    "epoch_us": ({"columns__time_format": "epoch_us"}, SECOND * 10**6),
    "epoch_ns": ({"columns__time_format": "epoch_ns"}, SECOND * 10**9),
    "seconds": (INDEX | {"columns__time_unit": "s"}, 2 * 86_400 + 36_300),
    "minutes": (INDEX | {"columns__time_unit": "min"}, 2 * 1_440 + 605),
    "days": (INDEX | {"columns__time_unit": "d"}, 2 + 36_300 / 86_400),
    "days of a sheet": (
        {"columns__time_format": "index", "columns__time_unit": "d", "columns__time_start": "1899-12-30"},
        45_780 + 36_300 / 86_400,
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_one_moment_at_every_door(root, tmp_path, name):
    payments_in(root, tmp_path)
    changes, number = NUMBERS[name]
    settings = settings_of(tmp_path, {}, **changes)
    reader = EventReader(settings, bytes(32))
    (tmp_path / "in.csv").write_bytes(table([str(number)] * 3, AMOUNTS))
    pq.write_table(
        pa.table({"id": ["q1"], "at": [number], "who": ["ann"], "amount": [1.0], "fraud": [0]}), tmp_path / "in.parquet"
    )
    ingest(settings, [str(tmp_path / "in.csv"), str(tmp_path / "in.parquet")], "")
    assert {round(row["time"].timestamp() * 1000) for row in logged(settings)} == {SECOND * 1_000}
    event = {"id": "q2", "at": number, "who": "ann", "amount": 1.0}
    assert reader.read_dict(event).time == SECOND * 1_000
    assert written_time(SECOND * 1_000, settings.columns) == pytest.approx(number, rel=1e-12)
    for _, order in raw_orders(settings):
        assert reader.read_dict(order).time == SECOND * 1_000
    for row in read_raw_events(str(tmp_path / "in.csv"), reader):
        assert reader.read_dict({name: row[name] for name in event}).time == SECOND * 1_000
    with pytest.raises(EventError, match="input should be a number"):
        reader.read_dict(event | {"at": "2025-05-03"})


@pytest.mark.parametrize(
    "number, words",
    [
        (SECOND, 'columns.time_format = "epoch_s"'),
        (SECOND * 1_000, 'columns.time_format = "epoch_ms"'),
        (SECOND * 10**6, 'columns.time_format = "epoch_us"'),
        (SECOND * 10**9, 'columns.time_format = "epoch_ns"'),
        (45_780, 'columns.time_unit = "d" and columns.time_start = "1899-12-30"'),
        (86_400, 'columns.time_format = "index"'),
        (20250503, 'input.date_format = "%Y%m%d"'),
    ],
)
def test_times_that_are_numbers_are_recognised(payments, tmp_path, number, words):
    (tmp_path / "in.csv").write_bytes(table([str(number)] * 3, AMOUNTS))
    failed = call("ingest", *payments, "--input", tmp_path / "in.csv")
    assert failed.exit_code == 2 and words in failed.stderr, failed.stderr


@given(ms=st.integers(0, 4_102_444_800_000), name=st.sampled_from(sorted(NUMBERS)))
def test_a_moment_as_a_number_is_that_moment(root, ms, name):
    changes = {key.replace("__", "."): value for key, value in NUMBERS[name][0].items()}
    columns = load_settings(root / "config" / "orders.toml", changes).columns
    assert round(columns.number_of(ms) * columns.tick_ms + columns.origin_ms) == ms


WRONG = {
    "input.separator": (["", ";;", "\n", '"'], "input.separator"),
    "input.encoding": (["utf-5", "", "hex"], "input.encoding"),
    "input.decimal": (["", ";"], "input.decimal"),
    "input.thousands": (["_", "."], "input."),
    "input.date_format": (["european", "%d.%m", "%H:%M", "%Y-%Q"], "input.date_format"),
    "columns.time_start": (["2017-12-01", "soon"], "columns.time_start"),
    "columns.time_format": (["index", "epoch"], "columns.time_"),
    "columns.time_unit": (["w", "us"], "columns.time_unit"),
}


@pytest.mark.parametrize("setting, value", [(name, value) for name, (values, _) in WRONG.items() for value in values])
def test_settings_that_read_nothing_are_rejected(root, setting, value):
    with pytest.raises(ValueError, match="is not a valid configuration") as failed:
        load_settings(root / "config" / "orders.toml", {setting: value})
    assert WRONG[setting][1] in str(failed.value)


def test_what_came_later_changes_no_hash(root):
    columns = load_settings(root / "config" / "orders.toml").columns
    assert not {"time_unit", "time_start"} & columns.meaning.keys()
    index = load_settings(
        root / "config" / "orders.toml", {"columns.time_format": "index", "columns.time_start": "2017-12-01"}
    )
    assert index.columns.meaning["time_unit"] == "s"
