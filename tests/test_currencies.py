"""Amounts in several currencies: rejected where the settings do not name them, else converted by one rule."""

import json
from datetime import UTC
from fractions import Fraction
from types import SimpleNamespace

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.command_line import as_json, call, payments_in

from fraud_poc.core.events import in_base
from fraud_poc.core.reading import NOT_DECLARED, EventError, EventReader
from fraud_poc.core.settings import effective_settings, load_settings
from fraud_poc.data.ingest import ingest
from fraud_poc.data.log import hash_secret, read_manifest, read_part
from fraud_poc.data.readers import ORDER
from fraud_poc.data.validation import check_events
from fraud_poc.desk.rows import EntryReader, Rows
from fraud_poc.desk.views import shown_fields
from fraud_poc.features.table import build_table
from fraud_poc.live.predict import parse_events, read_raw_events
from fraud_poc.ops.replay import raw_orders
from fraud_poc.service.schemas import Codec, event_model
from fraud_poc.service.scoring import sample_events

NOW = 1_760_000_000_000  # October 2025
RATES = {
    "EUR": {"decimals": 2, "rate": "1"},
    "JPY": {"decimals": 0, "rate": "0.0061"},
    "KWD": {"decimals": 3, "rate": "3.0125"},
    "978": {"decimals": 2, "rate": "0.5"},
}
DECLARED = {"domain.currency": "EUR", "columns.currency": "currency", "columns.currencies": RATES}
LARGE = {"limits.max_amount": 1e7}


@pytest.fixture
def made(root, tmp_path):
    payments_in(root, tmp_path)

    def settings(**changes):
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        return load_settings(tmp_path / "payments.toml", LARGE | DECLARED | changes)

    return settings


def plain(tmp_path, **changes):
    return load_settings(
        tmp_path / "payments.toml", LARGE | {name.replace("__", "."): v for name, v in changes.items()}
    )


def frame_of(currencies, name="currency", amounts=None, start=0):
    rows = range(start, start + len(currencies))
    return pd.DataFrame(
        {
            "id": [f"p{row}" for row in rows],
            "at": [f"2025-05-{1 + row % 28:02}T10:00:00" for row in rows],
            "who": "ann",
            "amount": amounts or [10.5 + row for row in rows],
            "fraud": 0,
            name: currencies,
        }
    )


def written(path, frame):
    frame.to_parquet(path, index=False) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return str(path)


def amounts_in(settings):
    parts = read_manifest(settings.batch.folder)["parts"]
    tables = [read_part(settings.batch.folder, "events", part["name"], ["id", "amount"]) for part in parts]
    return {row["id"]: row["amount"] for table in tables for row in table.to_pylist()}


# --- where the settings say nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, values, found",
    [
        ("currency", ["EUR", "JPY", "EUR"], "EUR, JPY"),
        ("Transaction_Currency_Code", ["eur", "USD", "gbp"], "EUR, GBP, USD"),
        ("ccy", ["EUR", "JPY", None], "EUR, JPY"),
        ("currency", ["EUR", " eur", None], ""),
        ("currency", ["EUR", "NULL", "null"], ""),
        ("concurrency", ["1", "2", "3"], ""),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_several_currencies_are_refused(root, tmp_path, kind, name, values, found):
    options = [*payments_in(root, tmp_path), "--input", written(tmp_path / f"in.{kind}", frame_of(values, name))]
    done = call("ingest", *options)
    assert done.exit_code == (2 if found else 0), done.output
    if found:
        words = f"column '{name}' holds several currencies ({found})", f"columns.currency = '{name}'", "nothing was"
        assert all(word in " ".join(done.stderr.split()) for word in words), done.stderr
        assert not (tmp_path / "out" / "log" / "manifest.json").exists()
        assert as_json("ingest", *options, "--set", "input.one_currency=true")["events"] == 3
    assert len(amounts_in(plain(tmp_path))) == 3


def test_they_are_found_in_any_row_file_and_portion(root, tmp_path, monkeypatch):
    "In a later row than any sample holds, in another file, and in a file that is ingested later."
    payments_in(root, tmp_path)
    late = written(tmp_path / "late.csv", frame_of(["EUR"] * 3_000 + ["JPY"]))
    euro, yen = (
        written(tmp_path / f"{code}.parquet", frame_of([code] * 3, start=start))
        for code, start in (("EUR", 0), ("JPY", 9))
    )
    settings = plain(tmp_path)
    for place in (late, [euro, yen]):
        with pytest.raises(ValueError, match=r"several currencies \(EUR, JPY\)"):
            ingest(settings, place, clock=lambda: NOW)
        assert not (settings.batch.folder / "log" / "manifest.json").exists()
    ingest(settings, euro, clock=lambda: NOW)
    with pytest.raises(ValueError, match=r"several currencies \(EUR, JPY\)"):
        ingest(settings, yen, clock=lambda: NOW)
    assert read_manifest(settings.batch.folder)["currencies"] == {"currency": "EUR"} and len(amounts_in(settings)) == 3
    assert ingest(settings, yen, replace=True, clock=lambda: NOW)["events"] == 3


def test_a_log_without_currencies_says_nothing_of_them(root, tmp_path):
    payments_in(root, tmp_path)
    ingest(plain(tmp_path), written(tmp_path / "in.csv", frame_of(["EUR"]).drop(columns="currency")), clock=lambda: NOW)
    assert "currencies" not in read_manifest(plain(tmp_path).batch.folder)


def test_the_service_takes_no_currency_that_is_not_declared(root, tmp_path):
    payments_in(root, tmp_path)
    reader = EventReader(plain(tmp_path), bytes(32), clock=lambda: NOW)
    event = {"id": "p", "at": "2025-05-01", "who": "ann", "amount": 1.0}
    with pytest.raises(EventError, match="currency: no such field"):
        reader.read_dict(event | {"currency": "EUR"})


# --- where they are declared ------------------------------------------------------------------------------------------

SPELLED = ["EUR", "jpy", " KWD ", "978", "EUR"]
AMOUNTS = [10.125, 1000.0, 2.5, 3.33, 0.0]
UNITS = [1012, 610, 753, 166, 0]  # 1012.5, 753.125 and 166.5 cents: half to even


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_amounts_are_converted_alike_in_files_and_live(made, tmp_path, kind):
    settings, frame = made(), frame_of(SPELLED, amounts=AMOUNTS)
    ingest(settings, written(tmp_path / f"in.{kind}", frame), clock=lambda: NOW)
    expected = dict(zip(frame["id"], UNITS))
    assert amounts_in(settings) == expected
    reader = EventReader(settings, hash_secret(settings.batch.folder), clock=lambda: NOW)
    codec, rows = Codec(reader), frame.drop(columns="fraud").to_dict("records")
    bodies = [json.dumps(row).encode() for row in rows]
    events = [*map(codec.event, bodies), *map(codec.item, codec.items(b"[" + b",".join(bodies) + b"]"))]
    for name, text in (
        ("score.json", "\n".join(map(json.dumps, rows))),
        ("score.csv", frame.drop(columns="fraud").to_csv(index=False)),
    ):
        (tmp_path / name).write_text(text)
        events += parse_events(read_raw_events(str(tmp_path / name), reader), reader)
    assert {(event.id, event.amount) for event in events} == set(expected.items()) and len(events) == 20
    # the body has what was sent; the log is sent again in the base currency
    assert {msgspec.json.decode(event.body)["currency"] for event in events} == set(SPELLED)
    again = [reader.read_dict(order) for _, order in raw_orders(settings)]
    assert {event.id: event.amount for event in again} == expected
    assert all(codec.event(json.dumps(order).encode()).amount in UNITS for order in sample_events(reader))


MONEY = (
    st.floats(-1e6, 1e6) | st.decimals(-(10**6), 10**6, places=2).map(float) | st.sampled_from([1e12, -1e300, 0.125])
)


@given(
    st.lists(st.tuples(MONEY, st.sampled_from([*RATES, "usd", "Jpy"])), min_size=1, max_size=8),
    st.decimals(0, 5000, places=6).filter(bool),
    st.integers(0, 4),
)
def test_one_amount_and_a_column_of_them_agree(root, tmp_path_factory, rows, rate, decimals):
    "To the bit, and in what is rejected; converted amounts are the exact product, rounded half to even."
    folder = tmp_path_factory.getbasetemp() / "currencies"
    folder.mkdir(exist_ok=True)
    payments_in(root, folder)
    rates = RATES | {"JPY": {"decimals": decimals, "rate": f"{rate:f}"}}
    changes = {"columns.currencies": rates, "limits.min_amount": -1e7}
    try:
        settings = load_settings(folder / "payments.toml", LARGE | DECLARED | changes)
    except ValueError as error:
        assert "at most about nine digits" in str(error)
        return
    frame = frame_of([code for _, code in rows], amounts=[amount for amount, _ in rows]).drop(columns="fraud")
    table = pa.Table.from_pandas(frame).append_column(ORDER, pa.array(range(len(rows))))
    clean = check_events(table, settings, now=NOW).clean
    reader, live = EventReader(settings, bytes(32), clock=lambda: NOW), {}
    for row in frame.to_dict("records"):
        try:
            live[row["id"]] = reader.read_dict(row).amount
        except EventError as error:
            assert {one.name for one in error.errors} <= {"amount", "currency"}
    assert dict(zip(clean["id"].to_pylist(), clean["amount"].to_pylist())) == live
    for ident, (amount, code) in zip(frame["id"], rows):
        if ident in live:
            one = rates[code.upper()]
            minor = Fraction(int(np.rint(amount * 10 ** one["decimals"])), 10 ** one["decimals"])
            assert live[ident] == round(minor * Fraction(one["rate"]) * 100)


@pytest.mark.parametrize("code", ["USD", "euro", "EU", 840])
def test_a_currency_that_is_not_declared_is_rejected_at_every_door(made, tmp_path, code):
    settings = made()
    frame = frame_of(["EUR", str(code)], amounts=[1.0, 1e9])
    summary = ingest(settings, written(tmp_path / "in.csv", frame), clock=lambda: NOW)
    assert summary["rejected"] == {f"currency {NOT_DECLARED}": 1} and summary["events"] == 1
    (row,) = pq.read_table(settings.batch.folder / summary["rejects"]).to_pylist()
    assert (row["column"], row["value"], row["row"]) == ("currency", str(code), 2)
    reader = EventReader(settings, bytes(32), clock=lambda: NOW)
    event = frame.drop(columns="fraud").to_dict("records")[0] | {"currency": code}
    with pytest.raises(EventError) as failed:
        Codec(reader).event(json.dumps(event).encode())
    assert [(one.name, one.msg) for one in failed.value.errors] == [
        ("currency", f"currency {str(code).upper()!r} {NOT_DECLARED}")
    ]
    (tmp_path / "score.jsonl").write_text(json.dumps(event))
    with pytest.raises(ValueError, match="is not declared in columns.currencies"):
        parse_events(read_raw_events(str(tmp_path / "score.jsonl"), reader), reader)


@pytest.mark.parametrize("code, reason", [(None, "currency is empty"), ("NULL", "currency stands for a missing value")])
def test_a_currency_must_be_there(made, tmp_path, code, reason):
    settings = made()
    summary = ingest(settings, written(tmp_path / "in.csv", frame_of(["EUR", code])), clock=lambda: NOW)
    assert [reason in found for found in summary["rejected"]] == [True] and summary["events"] == 1
    reader = EventReader(settings, bytes(32), clock=lambda: NOW)
    event = frame_of(["EUR"]).drop(columns="fraud").to_dict("records")[0]
    for given_as in (event | {"currency": code}, {name: event[name] for name in event if name != "currency"}):
        with pytest.raises(EventError, match="currency: (must not be|field is missing)"):
            reader.read_dict(given_as)


def test_limits_are_in_the_base_currency(made):
    reader = EventReader(made(limits__max_amount=100.0), bytes(32), clock=lambda: NOW)
    event = frame_of(["JPY"]).drop(columns="fraud").to_dict("records")[0]
    assert reader.read_dict(event | {"amount": 16_000}).amount == 9760
    with pytest.raises(EventError, match="amount is above limits.max_amount"):
        reader.read_dict(event | {"amount": 17_000})


def test_rates_are_part_of_the_table_and_of_the_log(made, root, tmp_path):
    dearer = RATES | {"JPY": {"decimals": 0, "rate": "0.0062"}}
    tables = [build_table(one).hash for one in (made(), made(columns__currencies=dearer), plain(tmp_path))]
    assert len(set(tables)) == 3
    columns = load_settings(root / "config" / "orders.toml").columns
    assert not {"currency", "currencies"} & columns.meaning.keys()
    place = written(tmp_path / "in.csv", frame_of(SPELLED))
    ingest(made(), place, clock=lambda: NOW)
    with pytest.raises(ValueError, match="was written with columns.currencies = .*rebuild the log with replace"):
        ingest(made(columns__currencies=dearer), place, clock=lambda: NOW)


def test_reasons_and_documents_speak_of_the_base_currency(made):
    settings, explained = made(), []
    reader = EntryReader(settings, lambda model, vectors, events: explained.extend(events) or [None] * len(events))
    body = json.dumps({"id": "p", "at": "2025-05-01", "who": "ann", "amount": 1000, "currency": "JPY"})
    row = {"band": "high", "action": "block", "model": "m", "vector": bytes(4), "body": body, "amount": 610}
    reader._add_reasons(Rows(decisions=[row]))
    assert [(event["amount"], event["currency"]) for event in explained] == [(6.1, "JPY")]
    case = {"amount": 610, "time": NOW}
    site = SimpleNamespace(
        settings=settings, zone=UTC, env=SimpleNamespace(filters={"money": lambda units: f"{units / 100:.2f}"})
    )
    shown = shown_fields(site, json.loads(body), case)
    assert (shown["amount"], shown["currency"]) == ("6.10", "JPY (1000 as sent)")
    schema = event_model(EventReader(settings, bytes(32)), NOW).model_json_schema()
    assert schema["properties"]["currency"]["enum"] == list(RATES) and schema["example"]["currency"] == "EUR"


WRONG = [
    ({"columns.currencies": {}}, "columns.currency goes with columns.currencies"),
    ({"columns.currency": ""}, "columns.currency goes with columns.currencies"),
    ({"columns.currency": "who"}, "named twice"),
    ({"columns.currency": "id"}, "copy it under another name"),
    ({"domain.currency": "JPY"}, 'must be listed there with rate = "1"'),
    ({"domain.currency": "USD"}, "domain.currency 'USD' is the base"),
    ({"input.one_currency": True}, "contradict each other"),
    ({"columns.currencies": RATES | {"USD": {"decimals": 2, "rate": "0"}}}, "'0' of USD must be above zero"),
    ({"columns.currencies": RATES | {"USD": {"decimals": 2, "rate": "0.12345678917"}}}, "at most about nine digits"),
    ({"columns.currencies": RATES | {"USD": {"decimals": 2, "rate": "1,1"}}}, "must match"),
    ({"columns.currencies": RATES | {"USD": {"decimals": 2, "rate": 1.1}}}, "must be text"),
    ({"columns.currencies": RATES | {"usd": {"decimals": 2, "rate": "1"}}}, "must match"),
]


@pytest.mark.parametrize("changes, words", WRONG)
def test_settings_that_convert_nothing_are_rejected(root, tmp_path, changes, words):
    payments_in(root, tmp_path)
    with pytest.raises(ValueError, match="is not a valid configuration") as failed:
        load_settings(tmp_path / "payments.toml", DECLARED | changes)
    assert words in str(failed.value)


def test_a_table_of_the_file_is_read(root, tmp_path):
    text = (root / "config" / "orders.toml").read_text()
    table = (
        '[columns.currencies]\nEUR = {decimals = 2, rate = "1"}\nJPY = {decimals = 0, rate = "0.0061"}\n\n[labels]\n'
    )
    (tmp_path / "orders.toml").write_text(
        text.replace("[columns]\n", '[columns]\ncurrency = "ccy"\n').replace("[labels]\n", table)
    )
    settings = load_settings(tmp_path / "orders.toml")
    assert float(in_base(1000, EventReader(settings, bytes(32)).conversions["JPY"])) == 6.1
    assert {"setting": "columns.currency", "value": "ccy", "from": "orders.toml"} in effective_settings(
        tmp_path / "orders.toml"
    )
