"""What a value means, everywhere: yes, no, unresolved and missing by one rule; times beyond the clock are counted."""

import json
import re
from collections import Counter
from datetime import date

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import house

from fraud_poc.core.events import Actor, LabelReader, folded, is_missing, join_id, label_words, missing_words, one_text
from fraud_poc.core.reading import EventError, EventReader, InvalidValue
from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.data.columns import NONEXISTENT, as_labels, as_text, as_times, day_ends, one_texts, without_missing
from fraud_poc.data.ingest import ingest
from fraud_poc.data.log import hash_secret, read_manifest, read_part, read_waiting, write_waiting
from fraud_poc.data.validation import UNLISTED, bulk_of, id_checks
from fraud_poc.desk.rows import EntryReader
from fraud_poc.features.label_history import LabelHistory
from fraud_poc.features.table import build_table
from fraud_poc.live.collect import texts_of
from fraud_poc.live.label_files import file_changes
from fraud_poc.live.labels import LabelAssertion, LabelledEvent, check_label_change, known_field, read_label_change
from fraud_poc.live.predict import parse_events, read_raw_events
from fraud_poc.model.dataset import last_known, log_until
from fraud_poc.service.schemas import Codec, missing_pattern

FRAUD, LEGITIMATE, UNRESOLVED, REFUSED = 1, 0, -1, None
NOW = 1_760_000_000_000  # October 2025
PLAIN = {"fraud_values": [1], "legitimate_values": [0]}
WORDS = {"fraud_values": ["scam"], "legitimate_values": ["ok"]}
THREE = {"fraud_values": [1], "legitimate_values": [0], "unresolved_values": [2, "open"]}
MIRRORED = {"fraud_values": ["no"], "legitimate_values": ["yes"]}  # the column says whether all was well


@pytest.fixture
def make(root, tmp_path):
    base = house.small_settings(
        root,
        "who",
        {
            "domain": {"name": "values"},
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
            "labels": PLAIN | {"column": "outcome", "time_column": "", "delay": "1d"},
            "limits": {"min_amount": 0.0, "max_amount": 1e10, "earliest": "1900-01-01", "latest": "2200-01-01"},
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

    def settings(folder="out", apart=False, **changes):
        data = {name: section | changes.get(name, {}) for name, section in base.items()}
        data["batch"] = data["batch"] | {"folder": str(tmp_path / folder)}
        if apart:
            data["input"] |= {"labels": "named-when-needed"}
        return Settings.model_validate(data)

    return settings


def rows_of(settings, kind):
    return [
        row
        for part in read_manifest(settings.batch.folder)["parts"]
        for row in read_part(settings.batch.folder, kind, part["name"]).to_pylist()
    ]


def rejects_of(settings, summary):
    return pq.read_table(settings.batch.folder / summary["rejects"]).to_pylist() if summary["rejects"] else []


# --- doors: each writes values of a label column to a file, gives it in, and says what each meant ---------------------


def written(path, frame):
    frame.to_parquet(path, index=False) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return str(path)


def column_of(values):
    return pd.Series(
        values, dtype=object if len({type(value) for value in values}) > 1 else None, index=range(len(values))
    )


def events_frame(values, days=1):
    at = pd.Timestamp("2025-03-03") + pd.to_timedelta(
        [number * days * 1000 for number in range(len(values))], unit="ms"
    )
    return pd.DataFrame(
        {"id": [f"e{number}" for number in range(len(values))], "at": at, "who": "w", "town": "t", "amount": 1.0}
    )


def told_by_ingest(settings, summary, count):
    labels, refused = {row["id"]: row["label"] for row in rows_of(settings, "labels")}, {}
    labels |= {
        row["id"]: row["label"]
        for row in read_waiting(settings.batch.folder, read_manifest(settings.batch.folder)).to_pylist()
    }
    for row in rejects_of(settings, summary):
        refused[f"e{row['row'] - 1}"] = row
    assert all(row["reason"] == UNLISTED and row["column"] == "outcome" for row in refused.values())
    return [REFUSED if f"e{number}" in refused else labels.get(f"e{number}", UNRESOLVED) for number in range(count)]


def in_events(kind):
    def door(settings, values, folder):
        summary = ingest(
            settings,
            written(folder / f"events.{kind}", events_frame(values).assign(outcome=column_of(values))),
            clock=lambda: NOW,
        )
        return told_by_ingest(settings, summary, len(values))

    return door


def in_labels(kind):
    def door(settings, values, folder):
        events, frame = (
            events_frame(values),
            pd.DataFrame({"id": [f"e{number}" for number in range(len(values))], "outcome": column_of(values)}),
        )
        summary = ingest(
            settings,
            written(folder / "events.csv", events),
            written(folder / f"labels.{kind}", frame),
            clock=lambda: NOW,
        )
        return told_by_ingest(settings, summary, len(values))

    return door


def in_file(kind):
    def door(settings, values, folder):
        path, frame = (
            folder / f"assertions.{kind}",
            pd.DataFrame({"id": [f"e{number}" for number in range(len(values))], "outcome": column_of(values)}),
        )
        if kind == "json":
            path.write_text(
                "\n".join(json.dumps({"id": ident, "outcome": value}) for ident, value in zip(frame["id"], values))
            )
        else:
            written(path, frame)
        reader, found = EventReader(settings, hash_secret(settings.batch.folder), clock=lambda: NOW), []
        for number, item in file_changes(settings, reader, str(path), "file"):
            if isinstance(item, list):
                assert (
                    [problem.name for problem in item] == ["outcome"]
                    and repr(str(values[number - 1])) in item[0].msg
                    and "labels.fraud_values" in item[0].msg
                )
            found.append(
                int(item.fraud) if isinstance(item, LabelAssertion) else UNRESOLVED if item is None else REFUSED
            )
        return found

    return door


DOORS = {
    "events.csv": in_events("csv"),
    "events.parquet": in_events("parquet"),
    "labels.csv": in_labels("csv"),
    "labels.parquet": in_labels("parquet"),
    "assertions.csv": in_file("csv"),
    "assertions.parquet": in_file("parquet"),
    "assertions.json": in_file("json"),
}
YES = ["1", "1.0", " 1 ", "true", "True", "TRUE", "yes", "Yes", "y", "Y", "t", "fraud", "Fraud", "1e0", "+1"]
NO = ["0", "0.0", "-0", "false", "False", "no", "No", "n", "N", "f", "legitimate", "Legitimate"]
STRANGE = ["2", "-1", "maybe", "o", "10", "1.5", "ja", "0x1", "truth"]
NOTHING = ["", "  ", "NULL", "null", "\\N", "NaN", "nan", "N/A", "n/a", "#N/A", "<NA>"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "lists, meaning",
    [
        (PLAIN, {FRAUD: YES, LEGITIMATE: NO, UNRESOLVED: NOTHING, REFUSED: STRANGE}),
        (
            {"fraud_values": [True], "legitimate_values": [False]},
            {FRAUD: YES, LEGITIMATE: NO, UNRESOLVED: NOTHING, REFUSED: STRANGE},
        ),
        (
            {"fraud_values": ["Yes"], "legitimate_values": ["no"]},
            {FRAUD: YES, LEGITIMATE: NO, UNRESOLVED: NOTHING, REFUSED: STRANGE},
        ),
        (MIRRORED, {LEGITIMATE: [*YES[:11], "legitimate"], FRAUD: [*NO[:10], "fraud"], REFUSED: STRANGE}),
        (
            THREE,
            {FRAUD: YES, LEGITIMATE: NO, UNRESOLVED: [*NOTHING, "2", "2.0", "open", "OPEN"], REFUSED: ["3", "maybe"]},
        ),
        (WORDS, {FRAUD: ["scam", "Scam "], LEGITIMATE: ["ok", "OK"], UNRESOLVED: NOTHING, REFUSED: [*YES, *NO, "3"]}),
        (PLAIN | {"other_values": "legitimate"}, {FRAUD: YES, LEGITIMATE: [*NO, *STRANGE], UNRESOLVED: NOTHING}),
        (PLAIN | {"other_values": "unresolved"}, {FRAUD: YES, LEGITIMATE: NO, UNRESOLVED: [*NOTHING, *STRANGE]}),
        (
            {"fraud_values": [-2, -1], "legitimate_values": [0, 1, 2]},
            {
                FRAUD: ["-2", "-1.0"],
                LEGITIMATE: ["0", "1", "2.00"],
                UNRESOLVED: NOTHING,
                REFUSED: ["yes", "true", "3", "fraud"],
            },
        ),
    ],
    ids=[
        "1/0",
        "true/false",
        "yes/no",
        "mirrored",
        "unresolved",
        "words",
        "others legitimate",
        "others unresolved",
        "ratings",
    ],
)
def test_words_mean_the_same_at_every_door(make, tmp_path, door, lists, meaning):
    values, expected = zip(*[(value, label) for label, values in meaning.items() for value in values])
    settings = make(labels=lists, apart=door.startswith("labels"))
    assert dict(zip(values, DOORS[door](settings, list(values), tmp_path))) == dict(zip(values, expected))


@pytest.mark.parametrize("door", [name for name in DOORS if name.endswith("parquet") or name.endswith("json")])
@pytest.mark.parametrize(
    "values, expected",
    [
        ([True, False, True], [1, 0, 1]),
        ([1, 0, 1], [1, 0, 1]),
        ([1.0, 0.0, 1.0], [1, 0, 1]),
        ([True, None, False], [1, -1, 0]),
        ([1.0, None, 0.0], [1, -1, 0]),
        ([1, 2, 0], [1, None, 0]),
        ([0.5, 1.0], [None, 1]),
        ([1.0, -1.0], [1, None]),
    ],
)
@pytest.mark.parametrize(
    "lists",
    [
        PLAIN,
        {"fraud_values": [True], "legitimate_values": [False]},
        {"fraud_values": ["yes"], "legitimate_values": ["no"]},
    ],
    ids=["1/0", "true/false", "yes/no"],
)
def test_typed_columns_mean_what_their_text_means(make, tmp_path, door, values, expected, lists):
    assert DOORS[door](make(labels=lists, apart=door.startswith("labels")), values, tmp_path) == expected


@pytest.mark.parametrize(
    "kind",
    [
        pa.int8(),
        pa.uint64(),
        pa.decimal128(5, 2),
        pa.dictionary(pa.int8(), pa.string()),
        pa.large_string(),
        pa.binary(),
        pa.bool_(),
    ],
)
def test_kinds_of_parquet_columns(make, tmp_path, kind):
    settings, wanted = make(), pa.array([1, 0, 1])
    values = (
        pa.array(["1", "0", "1"], pa.string()).cast(kind)
        if not (pa.types.is_dictionary(kind) or pa.types.is_boolean(kind))
        else (pa.array(["1", "0", "1"]).dictionary_encode() if pa.types.is_dictionary(kind) else wanted.cast(kind))
    )
    pq.write_table(
        pa.Table.from_pandas(events_frame([1, 2, 3])).append_column("outcome", values), tmp_path / "e.parquet"
    )
    summary = ingest(settings, str(tmp_path / "e.parquet"), clock=lambda: NOW)
    assert (summary["labels_fraud"], summary["labels_legitimate"], summary["labels_unlisted"]) == (2, 1, {})
    reader = EventReader(settings, hash_secret(settings.batch.folder))
    assert [item.fraud for _, item in file_changes(settings, reader, str(tmp_path / "e.parquet"), "file")] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("value", [1, 0, 1.0, "true", "yes", "1", "fraud", None, [], 2])
def test_json_by_api_is_strict_and_says_so(make, value):
    reader = EventReader(make(), bytes(32))
    with pytest.raises(EventError) as caught:
        read_label_change(reader, {"order": "e1", "fraud": value, "source": "analyst"})
    assert [(one.name, one.msg) for one in caught.value.errors] == [
        (
            "fraud",
            f"input should be true or false, not {str(value)!r}: other words for yes and no are read in files only",
        )
    ]
    assert read_label_change(reader, {"order": "e1", "fraud": True, "source": "analyst"}).fraud is True


def test_a_field_called_fraud_has_its_own_meaning(make, tmp_path):
    """Whatever the lists of the domain: `fraud` in a labels file is yes or no.

    Unless the domain's own column is called so.
    """
    reader = EventReader(make(), bytes(32))

    def labels_read(settings, values):
        (tmp_path / "assertions.csv").write_text(
            "\n".join(["order,fraud", *(f"e{number},{value}" for number, value in enumerate(values))])
        )
        return [
            int(item.fraud) if isinstance(item, LabelAssertion) else UNRESOLVED if item is None else item[0].msg
            for _, item in file_changes(settings, reader, str(tmp_path / "assertions.csv"), "file")
        ]

    assert labels_read(make(labels=WORDS), ["yes", "0", "", "n/a", "scam"])[:4] == [1, 0, -1, -1]
    assert labels_read(make(labels=WORDS), ["scam"]) == [
        "'scam' is neither yes nor no: write true or false, yes or no, 1 or 0"
    ]
    assert (
        labels_read(make(labels=WORDS | {"column": "fraud"}), ["scam", "ok"]) == [1, 0]
        and "labels.fraud_values" in labels_read(make(labels=WORDS | {"column": "fraud"}), ["yes"])[0]
    )


@pytest.mark.parametrize(
    "lists, name",
    [
        (PLAIN | {"unresolved_values": ["1.0"]}, "1"),
        ({"fraud_values": ["Fraud"], "legitimate_values": ["fraud "]}, "fraud"),
        (PLAIN | {"unresolved_values": [0]}, "0"),
    ],
)
def test_one_value_has_one_meaning(make, lists, name):
    with pytest.raises(
        ValueError, match=f"'{name}' is listed twice among labels.fraud_values, legitimate_values and unresolved_values"
    ):
        make(labels=lists)


@given(st.text(max_size=6) | st.sampled_from([*YES, *NO, *STRANGE, *NOTHING]))
def test_one_value_and_a_column_of_it(root, text):
    "The reader of one value and the reader of a column agree on any text, and so do the two readers of missing values."
    settings = load_settings(root / "config" / "orders.toml")
    missing = missing_words(settings.columns)
    read, column = LabelReader(settings.labels, missing), without_missing(pa.array([text]), missing)
    assert (column[0].as_py() is None) == is_missing(text, missing)
    label, listed = read.of(text)
    labels, other = as_labels(pa.array([text]), read)
    assert labels[0] == (UNRESOLVED if label is None else label) and other[0] == (not listed)
    if is_missing(text, missing):
        assert (label, listed) == (UNRESOLVED, True)
    assert set(label_words(settings.labels, missing).values()) == {FRAUD, LEGITIMATE, UNRESOLVED}


# --- summaries --------------------------------------------------------------------------------------------------------


def given_in(settings, folder, values, **named):
    frame = events_frame(values).assign(outcome=values)
    return ingest(settings, written(folder / "e.csv", frame), clock=lambda: NOW, **named)


@pytest.mark.parametrize(
    "lists, values, note",
    [
        (PLAIN, ["1", "0", ""], ""),
        (
            PLAIN,
            ["0", "0", ""],
            "no fraud: none of 2 labels means fraud; check labels.column and labels.fraud_values ([1])",
        ),
        (PLAIN, ["", ""], ""),
        (
            WORDS,
            ["True", "False"],
            "no fraud: none of 2 labels means fraud; check labels.column and labels.fraud_values (['scam']); 2 labels, "
            "such as 'False', 'True', are in none of labels.fraud_values, legitimate_values and unresolved_values, and "
            'were rejected (labels.other_values = "refuse"): list what they mean',
        ),
        (
            PLAIN,
            ["1", "2", "2"],
            "2 labels, such as '2', are in none of labels.fraud_values, legitimate_values and unresolved_values, and "
            'were rejected (labels.other_values = "refuse"): list what they mean',
        ),
        (
            PLAIN | {"other_values": "legitimate"},
            ["1", "x"],
            "1 labels, such as 'x', are in none of labels.fraud_values, legitimate_values and unresolved_values, and "
            'were taken for legitimate (labels.other_values = "legitimate"): list what they mean',
        ),
    ],
)
def test_ingest_counts_frauds_and_says_what_it_did_not_understand(make, tmp_path, lists, values, note):
    settings = make(labels=lists)
    summary = given_in(settings, tmp_path, values)
    assert summary["note"] == note and summary["events"] == len(values)
    strange = Counter(value for value in values if value in ("2", "x", "True", "False"))
    assert summary["labels_unlisted"] == dict(strange)
    refuse = lists.get("other_values", "refuse") == "refuse"
    assert summary["labels_rejected"] == (strange.total() if refuse else 0) and summary["rejected"] == (
        {UNLISTED: strange.total()} if refuse and strange else {}
    )
    assert summary["labels_fraud"] == values.count("1") and summary["labels_legitimate"] == values.count("0") + (
        0 if refuse else strange.total()
    )


def test_a_public_set_with_a_third_value(make, tmp_path):
    "0, 1 and 2 = unlabelled: the third is rejected and counted, or unresolved with the setting; never legitimate."
    values = ["2"] * 300 + ["0"] * 600 + ["1"] * 100
    summary = given_in(make(), tmp_path, values)
    assert (
        summary["labels_fraud"],
        summary["labels_legitimate"],
        summary["labels_rejected"],
        summary["labels_unlisted"],
    ) == (100, 600, 300, {"2": 300})
    summary = given_in(make("counted", labels=THREE), tmp_path, values)
    assert (
        summary["labels_fraud"],
        summary["labels_legitimate"],
        summary["labels_unresolved"],
        summary["labels_unlisted"],
        summary["note"],
    ) == (100, 600, 300, {}, "")


# --- missing values ---------------------------------------------------------------------------------------------------


def test_stand_ins_for_missing_are_no_identity_and_counted(make, tmp_path):
    lines = [
        "1,2025-03-03,NULL,t,1,1",
        "2,2025-03-03,null,\\N,1,n/a",
        "3,2025-03-03,,N/A,1,",
        "4,2025-03-03,Nullmann,None,1,0",
        "5,2025-03-03,-,nan,1,NULL",
        "6,2025-03-03, NULL ,t,1,1",
    ]
    (tmp_path / "e.csv").write_text("\n".join(["id,at,who,town,amount,outcome", *lines]))
    settings = make(service={"optional": ["who", "town"]})
    summary = ingest(settings, str(tmp_path / "e.csv"), clock=lambda: NOW)
    assert [row["who"] for row in rows_of(settings, "events")] == [None, None, None, "Nullmann", "-", None]
    assert [row["town"] for row in rows_of(settings, "events")] == ["t", None, None, "None", None, "t"]
    assert all((row["who_key"] == 0) == (row["who"] is None) for row in rows_of(settings, "events"))
    assert summary["missing"] == {"who": 4, "town": 3} and summary["labels_unresolved"] == 3
    assert summary["stand_ins"] == {
        "outcome": {"NULL": 1, "n/a": 1},
        "town": {"N/A": 1, "\\N": 1, "nan": 1},
        "who": {" NULL ": 1, "NULL": 1, "null": 1},
    }
    reader = EventReader(settings, hash_secret(settings.batch.folder), clock=lambda: NOW)
    for row in rows_of(settings, "events"):  # the live service reads the same texts alike
        line = lines[int(row["id"]) - 1].split(",")
        order = {"id": row["id"], "at": "2025-03-03", "who": line[2], "town": line[3], "amount": 1}
        live = reader.read_dict(order)
        assert (live.keys["who"], live.keys["town"]) == (row["who_key"], row["town_key"])
        if row["town"] is None:  # where a field must be there
            with pytest.raises(EventError, match="town: must not be empty"):
                EventReader(make(), bytes(32)).read_dict(order)


@pytest.mark.parametrize(
    "line, column, value, reason",
    [
        ("NULL,2025-03-03,w,t,1,1", "id", "NULL", "id stands for a missing value (columns.missing_values)"),
        (",2025-03-03,w,t,1,1", "id", None, "id is empty"),
        ("1,n/a,w,t,1,1", "at", "n/a", "time stands for a missing value (columns.missing_values)"),
        ("1,,w,t,1,1", "at", "", "time is empty"),
        ("1,2025-03-03,w,t,N/A,1", "amount", "N/A", "amount stands for a missing value (columns.missing_values)"),
        ("1,2025-03-03,w,t,NaN,1", "amount", "NaN", "amount stands for a missing value (columns.missing_values)"),
        ("1,2025-03-03,w,t,,1", "amount", "", "amount is empty"),
        ("1,2025-03-03,w,t,-,1", "amount", "-", "amount is not a finite number"),
    ],
)
def test_what_must_not_be_missing_is_rejected_with_the_value(make, tmp_path, line, column, value, reason):
    settings = make()
    (tmp_path / "e.csv").write_text(f"id,at,who,town,amount,outcome\n{line}\n")
    summary = ingest(settings, str(tmp_path / "e.csv"), clock=lambda: NOW)
    assert [(row["column"], row["value"], row["reason"]) for row in rejects_of(settings, summary)] == [
        (column, value, reason)
    ] and summary["events"] == 0


def test_legal_values_are_left_alone(make, tmp_path):
    "Numbers that are listed as missing do not touch amounts, and with no list there is nothing but the empty text."
    (tmp_path / "e.csv").write_text(
        "id,at,who,town,amount,outcome\n1,2025-03-03,-1,NULL,1,1\n-1,2025-03-03,w,t,1,1\n2,2025-03-03,w,t,1,-1\n"
    )
    settings = make(columns={"missing_values": []}, labels={"legitimate_values": [0, -1]})
    summary = ingest(settings, str(tmp_path / "e.csv"), clock=lambda: NOW)
    assert [(row["id"], row["who"], row["town"]) for row in rows_of(settings, "events")] == [
        ("-1", "w", "t"),
        ("1", "-1", "NULL"),
        ("2", "w", "t"),
    ] and summary["labels_legitimate"] == 1
    settings = make(
        "listed",
        columns={"missing_values": ["-1", "1"]},
        limits={"min_amount": -5.0},
        labels={"legitimate_values": [0, -1]},
    )
    summary = ingest(settings, str(tmp_path / "e.csv"), clock=lambda: NOW)
    assert [(row["id"], row["who"], row["amount"]) for row in rows_of(settings, "events")] == [
        ("2", "w", 100)
    ] and summary["labels_legitimate"] == 1, "an amount of 1 is an amount, a listed label a label"
    assert summary["rejected"] == {"id stands for a missing value (columns.missing_values)": 2}


# --- times beyond the clock and beyond all others ---------------------------------------------------------------------


def shop_frame(count=400, start="2024-06-01", hours=6):
    at = pd.Timestamp(start) + pd.to_timedelta([number * hours for number in range(count)], unit="h")
    return pd.DataFrame(
        {
            "id": [f"e{number}" for number in range(count)],
            "at": at,
            "who": [f"w{number % 7}" for number in range(count)],
            "town": "t",
            "amount": 1.0,
        }
    )


CLOCK, APART = (
    "time is later than the clock by more than live.future_skew (1h)",
    "time lies apart from all but one in a thousand rows by more than limits.gap (400d)",
)


@pytest.mark.parametrize(
    "when, reason",
    [
        ("2062-01-01", CLOCK),
        ("2025-10-09T10:00:01", CLOCK),
        ("2025-10-09T09:00:00", None),
        ("2026-03-01", CLOCK),
        ("2024-12-01", None),
        ("2020-01-01", APART),
        ("1970-01-01", APART),
        ("2023-08-01", None),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_one_order_out_of_time_moves_nothing(make, tmp_path, when, reason, kind):
    "It is set aside with a count and the log, but for it, is what it is without it."
    wrong = shop_frame(1).assign(id="wrong", at=pd.Timestamp(when))
    settings, without = make(apart=True), make("without", apart=True)
    summary = ingest(
        settings,
        written(tmp_path / f"e.{kind}", pd.concat([shop_frame(200), wrong, shop_frame().iloc[200:]])),
        "",
        clock=lambda: NOW,
    )
    ingest(without, written(tmp_path / f"e.{kind}", shop_frame()), "", clock=lambda: NOW)
    assert summary["events"] == 400 + (reason is None) and summary["rejected"] == ({reason: 1} if reason else {})
    if reason:
        assert [row["time"] for row in rows_of(settings, "events")] == [
            row["time"] for row in rows_of(without, "events")
        ]
    else:
        assert any(row["id"] == "wrong" for row in rows_of(settings, "events"))


def test_an_order_out_of_time_in_a_later_portion(make, tmp_path):
    "The log's own rows count, too: a portion of one row is judged by all that is there."
    settings = make(apart=True)
    ingest(settings, written(tmp_path / "e.csv", shop_frame()), "", clock=lambda: NOW)
    for number, (when, reason) in enumerate([("1999-01-01", APART), ("2062-01-01", CLOCK), ("2025-09-30", None)]):
        summary = ingest(
            settings,
            written(tmp_path / "e.csv", shop_frame(1).assign(id=f"x{number}", at=pd.Timestamp(when))),
            "",
            clock=lambda: NOW,
        )
        assert summary["rejected"] == ({reason: 1} if reason else {})
    assert max(row["time"] for row in rows_of(settings, "events")) == pd.Timestamp("2025-09-30", tz="UTC")


def test_without_a_gap_everything_before_the_clock_is_taken(make, tmp_path):
    settings = make(apart=True, limits={"gap": ""})
    frame = pd.concat([shop_frame(), shop_frame(1).assign(id="old", at=pd.Timestamp("1970-01-01"))])
    assert ingest(settings, written(tmp_path / "e.csv", frame), "", clock=lambda: NOW)["events"] == 401


@given(st.dictionaries(st.integers(0, 20_000), st.integers(1, 400), min_size=1, max_size=12), st.integers(1, 3_000))
def test_the_bulk_holds_all_but_one_in_a_thousand(days, gap):
    "By definition: at either end only rows that a gap cuts off go, and never more than one in a thousand."
    first, last = bulk_of(days, f"{gap}d")
    total, ordered = sum(days.values()), sorted(days)
    most = max(total // 1000, int(total >= 100))
    cuts = lambda side: [
        after
        for before, after in zip(side, side[1:])
        if abs(after - before) > gap
        and sum(rows for day, rows in days.items() if (day < after) == (side[0] < side[-1]) and day != after) <= most
    ]
    assert (first, last) == ((cuts(ordered) or [ordered[0]])[-1], (cuts(ordered[::-1]) or [ordered[-1]])[-1])


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize(
    "known, reason",
    [("2062-01-01", f"label {CLOCK}"), ("2025-12-01", f"label {CLOCK}"), ("2025-09-30", None), ("2024-08-01", None)],
)
def test_one_label_out_of_time_moves_nothing(make, tmp_path, apart, known, reason):
    settings, frame = make(apart=apart, labels={"time_column": "known", "delay": ""}), shop_frame()
    labels = pd.DataFrame(
        {
            "id": frame["id"],
            "outcome": [int(number % 9 == 0) for number in range(len(frame))],
            "known": frame["at"] + pd.Timedelta(hours=30),
        }
    )
    labels.loc[50, "known"] = pd.Timestamp(known)
    events = frame if apart else frame.merge(labels)
    summary = ingest(
        settings,
        written(tmp_path / "e.csv", events),
        written(tmp_path / "l.csv", labels) if apart else "",
        clock=lambda: NOW,
    )
    assert (
        summary["events"] == 400
        and summary["rejected"] == ({reason: 1} if reason else {})
        and summary["labels_rejected"] == (reason is not None)
    )
    assert summary["labels"] + summary["labels_waiting"] == 400 - (reason is not None)
    manifest = read_manifest(settings.batch.folder)
    assert last_known(settings, log_until(settings.batch.folder, manifest, ""), NOW)[0] < NOW


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_a_label_of_the_future_in_a_labels_file(make, tmp_path, kind):
    settings, path = make(), tmp_path / f"assertions.{kind}"
    frame = pd.DataFrame(
        {
            "id": ["e0", "e1", "e2"],
            "outcome": ["yes"] * 3,
            "known": ["2025-10-09T09:00:00", "2025-10-09T10:00:01", "2062-01-01"],
        }
    )
    if kind == "json":
        path.write_text("\n".join(map(json.dumps, frame.to_dict("records"))))
    else:
        written(path, frame)
    problems = []
    for _, item in file_changes(settings, EventReader(settings, bytes(32), clock=lambda: NOW), str(path), "file"):
        try:
            problems.append(
                item
                if isinstance(item, list)
                else check_label_change(settings, item, LabelledEvent(NOW - 10**9, {}, LabelHistory()), NOW) or []
            )
        except EventError as error:
            problems.append(error.errors)
    assert [[(one.name, "live.future_skew (1h)" in one.msg) for one in found] for found in problems] == [
        [],
        [("known", True)],
        [("known", True)],
    ]


def test_a_label_far_behind_all_others_is_set_aside(make, tmp_path):
    settings, frame = make(apart=True, labels={"time_column": "known", "delay": ""}), shop_frame(start="2022-06-01")
    labels = pd.DataFrame({"id": frame["id"], "outcome": 0, "known": frame["at"] + pd.Timedelta(hours=30)})
    labels.loc[50, "known"] = pd.Timestamp("2025-09-01")
    summary = ingest(
        settings, written(tmp_path / "e.csv", frame), written(tmp_path / "l.csv", labels), clock=lambda: NOW
    )
    assert summary["rejected"] == {f"label {APART}": 1} and summary["events"] == 400 and summary["labels_rejected"] == 1


@pytest.mark.parametrize("known, late", [("2062-01-01", 1), ("2025-12-01", 1), ("2025-09-30", 0)])
def test_the_cut_offs_of_a_dataset_are_not_moved(make, tmp_path, known, late):
    "A label that waits in the log of an earlier version for a time that is not yet: it is left out and counted."
    settings, frame = make(apart=True, labels={"time_column": "known", "delay": ""}), shop_frame(start="2025-01-01")
    labels = pd.DataFrame({"id": frame["id"], "outcome": 0, "known": frame["at"] + pd.Timedelta(hours=30)})
    ingest(settings, written(tmp_path / "e.csv", frame), written(tmp_path / "l.csv", labels), clock=lambda: NOW)
    log = log_until(settings.batch.folder, read_manifest(settings.batch.folder), "")
    usual, count = last_known(settings, log, NOW)
    assert count == 0 and usual == int(labels["known"].max().timestamp() * 1000)
    waiting, moment = read_waiting(settings.batch.folder, log), int(pd.Timestamp(known, tz="UTC").timestamp() * 1000)
    one = waiting.slice(0, 1).to_pylist()[0] | {"known": moment, "stated": moment}
    table = pa.concat_tables([waiting, pa.Table.from_pylist([one], schema=waiting.schema)])
    log["waiting"] = write_waiting(settings.batch.folder / "log", "000009_waiting", table)
    assert last_known(settings, log, NOW) == ((usual if late else moment), late)
    assert (
        last_known(settings, log, moment) == (moment, 0) or known == "2062-01-01"
    )  # when its time has come it counts, but for one that is apart from all


def test_a_log_that_reaches_into_the_future_is_no_training_set(make, tmp_path):
    settings = make(apart=True)
    ingest(settings, written(tmp_path / "e.csv", shop_frame()), "", clock=lambda: NOW)
    log = log_until(settings.batch.folder, read_manifest(settings.batch.folder), "")
    with pytest.raises(
        ValueError,
        match=r"reaches to 2024-09-08, which is later than the clock by more than live.future_skew \(1h\): "
        r"ingest the files anew",
    ):
        last_known(settings, log, int(pd.Timestamp("2024-09-01", tz="UTC").timestamp() * 1000))


@given(st.text(max_size=6) | st.sampled_from([*YES, *STRANGE, *NOTHING, " nUlL\n", "-1", "a.b", "axb"]))
def test_the_document_promises_what_is_read(root, text):
    "The regular expression in the OpenAPI document is the rule for missing values, word for word."
    for words in (
        load_settings(root / "config" / "orders.toml").columns.missing_values,
        [],
        ["-1", "a.b", "(?)", "ÄÖ"],
    ):
        missing = frozenset(map(folded, ["", *words]))
        assert bool(re.search(missing_pattern(missing), text)) == is_missing(text, missing)


# --- identities -------------------------------------------------------------------------------------------------------

NULLABLE = pa.string()
# what it is -> its text, or None = missing; texts of CSV; values of JSON; columns of Parquet
IDENTITIES = {
    "a whole number": (
        "315",
        ["315", "315.0", "315.00"],
        [315, 315.0, "315", "315.0"],
        [
            pa.array([315]),
            pa.array([315], pa.int16()),
            pa.array([315.0]),
            pa.array([315.0], pa.float32()),
            pa.array(["315.00"]).cast(pa.decimal128(9, 2)),
            pa.array(["315.0"]),
            pa.array(["315.0"]).dictionary_encode(),
            pa.array([b"315.0"]),
        ],
    ),
    "less than nothing": ("-3", ["-3", "-3.0"], [-3, -3.0, "-3.0"], [pa.array([-3.0]), pa.array([-3])]),
    "zero": ("0", ["0", "0.0", "-0.0"], [0, -0.0, 0.0, "-0.0"], [pa.array([-0.0]), pa.array([0])]),
    "a large number": (
        "100000000000000000",
        ["100000000000000000", "100000000000000000.0"],
        [10**17, 1e17],
        [pa.array([10**17]), pa.array([1e17]), pa.array(["100000000000000000"]).cast(pa.decimal128(20, 0))],
    ),
    "a fraction": ("2.5", ["2.5"], [2.5, "2.5"], [pa.array([2.5]), pa.array(["2.50"]).cast(pa.decimal128(9, 2))]),
    "a truth value": ("true", ["True", "true", "TRUE"], [True, "true", "True"], [pa.array([True]), pa.array(["True"])]),
    "zeros that count": ("007", ["007"], ["007"], [pa.array(["007"])]),
    "a version": ("1.50", ["1.50"], ["1.50"], [pa.array(["1.50"])]),
    "text of any script": (
        "Ωμέγα 🦊",
        ["Ωμέγα 🦊"],
        ["Ωμέγα 🦊"],
        [pa.array(["Ωμέγα 🦊"]), pa.array(["Ωμέγα 🦊"], pa.large_string())],
    ),
    "nothing": (
        None,
        ["", " ", "NULL", "nan"],
        [None, "", " ", "NULL"],
        [pa.array([None], NULLABLE), pa.array([float("nan")]), pa.array(["N/A"])],
    ),
}
REFUSED_IDENTITIES = {"too long": "x" * 513, "too long in spaces": "x" + " " * 512, "no character": "a\ufdd0"}
ONCE = {"id": "e0", "at": "2025-03-03", "who": "w", "town": "t", "amount": 1.0, "outcome": ""}


def one_by_ingest(settings, folder, name, value):
    "The text and key of an identity as the log has it; its reason where it was rejected."
    row = {
        key: pa.array([value]) if not isinstance(value, pa.Array) else value
        for key, value in (ONCE | {name: value}).items()
    }
    if isinstance(value, pa.Array):
        pq.write_table(pa.table(row), folder / "one.parquet")
    else:
        (folder / "one.csv").write_text(pd.DataFrame([ONCE | {name: value}]).to_csv(index=False))
    place = folder / f"one.{'parquet' if isinstance(value, pa.Array) else 'csv'}"
    summary = ingest(settings, str(place), replace=True, clock=lambda: NOW)
    return (rows_of(settings, "events") or [{f"{name}": REFUSED, f"{name}_key": REFUSED}])[0], summary["rejected"]


def one_by_service(settings, name, value):
    "The same by `/score` and `/score/batch`, which agree; the log's copy of it is read back as `collect` does."
    reader = EventReader(settings, hash_secret(settings.batch.folder), clock=lambda: NOW)
    codec = Codec(reader)
    body = json.dumps({key: item for key, item in (ONCE | {name: value}).items() if key != "outcome"}).encode()
    whole, escaped = codec.items(b"[%b]" % body), codec.items(b"[%b,%b]" % (body, body.replace(b"w", b"\\u0077")))
    event, *others = codec.event(body), *map(codec.item, [*whole, *escaped])
    assert others == [event] * 3
    return event, texts_of(settings, event.body)


def one_by_file(settings, folder, name, values, kind):
    "Events of `score FILE`, in CSV, JSON Lines or a list of JSON."
    reader = EventReader(settings, hash_secret(settings.batch.folder), clock=lambda: NOW)
    rows = [{key: item for key, item in (ONCE | {name: value}).items() if key != "outcome"} for value in values]
    path = folder / f"score.{kind}"
    if kind == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    return parse_events(read_raw_events(str(path), reader), reader)


@pytest.mark.parametrize("column", ["who", "town"])
@pytest.mark.parametrize("what", IDENTITIES)
def test_one_identity_has_one_text_at_every_door(make, tmp_path, what, column):
    text, texts, values, columns = IDENTITIES[what]
    settings = make(service={"optional": ["who", "town"]})
    keys = set()
    for value in [*texts, *columns]:
        row, rejected = one_by_ingest(settings, tmp_path, column, value)
        assert row[column] == text and not rejected, value
        keys.add(row[f"{column}_key"])
    for value in values:
        event, (_, kept) = one_by_service(settings, column, value)
        assert kept[column] == text or text is None, value
        keys.add(event.keys[column])
    for kind, given_as in (("csv", texts), ("jsonl", values), ("json", values)):
        keys |= {event.keys[column] for event in one_by_file(settings, tmp_path, column, given_as, kind)}
    assert len(keys) == 1 and (0 in keys) == (text is None)


@pytest.mark.parametrize("what", [what for what in IDENTITIES if what != "nothing"])
def test_one_id_has_one_text_at_every_door(make, tmp_path, what):
    text, texts, values, columns = IDENTITIES[what]
    settings = make()
    reader = EventReader(settings, bytes(32), clock=lambda: NOW)
    for value in [*texts, *columns]:
        assert one_by_ingest(settings, tmp_path, "id", value)[0]["id"] == text
    found = [one_by_service(settings, "id", value)[0].id for value in values]
    for kind, given_as in (("csv", texts), ("jsonl", values), ("json", values)):
        found += [event.id for event in one_by_file(settings, tmp_path, "id", given_as, kind)]
    found += [read_label_change(reader, {"order": value, "fraud": True, "source": "analyst"}).order for value in values]

    def by_file(name):
        return [item.order for _, item in file_changes(settings, reader, str(tmp_path / name), Actor("file"))]

    pd.DataFrame({"id": texts, "fraud": "1"}).to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "labels.json").write_text("\n".join(json.dumps({"id": value, "fraud": "1"}) for value in values))
    found += by_file("labels.csv") + by_file("labels.json")
    for column in columns:
        pq.write_table(pa.table({"id": column, "fraud": ["1"]}), tmp_path / "labels.parquet")
        found += by_file("labels.parquet")
    assert set(found) == {text}


JOINED = [("a:b", "c"), ("a", "b:c"), ("a\\", "b:c"), ("a\\:b", "c"), ("a", "c"), ("::1", "10:30:00")]


def test_an_id_of_several_columns_is_no_other_id_at_every_door(make, tmp_path):
    "Colons and backslashes in the columns of an id lead to no other id, and to the same one wherever it comes in."
    settings = make(columns={"id": ["id", "at_shop"], "entities": ["who"]})
    frame = events_frame([0] * len(JOINED))
    frame["id"], frame["at_shop"] = [one for one, _ in JOINED], [other for _, other in JOINED]
    frame["outcome"] = ""
    ingest(settings, written(tmp_path / "events.csv", frame), clock=lambda: NOW)
    expected = [join_id(parts) for parts in JOINED]
    log = rows_of(settings, "events")
    assert [row["id"] for row in log] == expected and len({row["id_key"] for row in log}) == len(JOINED)
    reader = EventReader(settings, hash_secret(settings.batch.folder), clock=lambda: NOW)
    desk = EntryReader(settings)
    for row, (one, other) in zip(log, JOINED):
        fields = {name: value for name, value in ONCE.items() if name != "outcome"} | {"id": one, "at_shop": other}
        event = Codec(reader).event(json.dumps(fields).encode())
        assert (event.id, event.id_key) == (row["id"], row["id_key"])
        assert texts_of(settings, event.body)[0] == desk.event_id(json.loads(event.body)) == row["id"]
    frame[["id", "at_shop"]].assign(fraud="1").to_csv(tmp_path / "labels.csv", index=False)
    changes = file_changes(settings, reader, str(tmp_path / "labels.csv"), Actor("file"))
    assert [item.order for _, item in changes] == expected
    labels = frame[["id", "at_shop"]].assign(outcome=1)
    apart = make("apart", apart=True, columns={"id": ["id", "at_shop"], "entities": ["who"]})
    events = written(tmp_path / "events.csv", frame.drop(columns="outcome"))
    ingest(apart, events, written(tmp_path / "outcomes.csv", labels), clock=lambda: NOW)
    waiting = read_waiting(apart.batch.folder, read_manifest(apart.batch.folder)).to_pylist()
    assert {row["id"]: row["label"] for row in [*rows_of(apart, "labels"), *waiting]} == dict.fromkeys(expected, 1)


@given(st.lists(st.text("ab:\\", max_size=4), min_size=2, max_size=3))
def test_joined_ids_of_texts_and_of_columns_agree_and_can_be_told_apart(parts):
    column = id_checks("id", [pa.array([part]) for part in parts])[0].to_pylist()[0]
    assert column == join_id(parts)
    found, rest = [], column
    for _ in parts[1:]:
        head = re.match(r"(?:[^:\\]|\\.)*", rest)[0]
        found.append(re.sub(r"\\(.)", r"\1", head))
        rest = rest[len(head) + 1 :]
    assert [*found, rest] == parts


@pytest.mark.parametrize("what", REFUSED_IDENTITIES)
@pytest.mark.parametrize("column", ["who", "town", "id"])
def test_what_is_no_identity_is_refused_at_every_door(make, tmp_path, what, column):
    settings, value = make(), REFUSED_IDENTITIES[what]
    for given_as in (value, pa.array([value])):
        assert len(one_by_ingest(settings, tmp_path, column, given_as)[1]) == 1
    with pytest.raises(EventError, match="longer than 512 characters|not valid Unicode"):
        one_by_service(settings, column, value)
    for kind in ("csv", "jsonl"):
        with pytest.raises(ValueError, match="longer than 512 characters|not valid Unicode"):
            one_by_file(settings, tmp_path, column, [value], kind)


NORMALISED = {
    "email": (["trim", "lower", "nfc"], [" Ann@Example.ORG", "ann@example.org"], "ann@example.org"),
    "unicode": (["nfc"], ["Jose\u0301", "José"], "José"),
    "full width": (["nfkc", "lower"], ["ＡＢＣ１", "abc1"], "abc1"),
    "ip": (["ip"], ["2001:DB8:0:0:0:0:0:1", "2001:db8::1"], "2001:db8::1"),
    "ip in ip": (["trim", "ip"], ["::ffff:192.0.2.1", "192.0.2.1 "], "192.0.2.1"),
    "guests": ([], ["0", "0.0", "Guest"], None),
}


@pytest.mark.parametrize("what", NORMALISED)
def test_a_column_has_its_own_spelling(make, tmp_path, what):
    forms, spellings, text = NORMALISED[what]
    stand_ins = {"who": [0, "guest"]} if text is None else {}
    settings = make(
        columns={"normalise": {"who": forms} if forms else {}, "stand_ins": stand_ins}, service={"optional": ["who"]}
    )
    keys = set()
    for value in [*spellings, *(pa.array([spelling]) for spelling in spellings)]:
        row, _ = one_by_ingest(settings, tmp_path, "who", value)
        keys.add(row["who_key"])
        assert row["who"] == text and one_by_ingest(settings, tmp_path, "town", value)[0]["town"] != REFUSED
    for value in spellings:
        event, (_, kept) = one_by_service(settings, "who", value)
        keys.add(event.keys["who"])
        assert kept["who"] == text
    for kind in ("csv", "jsonl"):
        keys |= {event.keys["who"] for event in one_by_file(settings, tmp_path, "who", spellings, kind)}
    assert len(keys) == 1 and (0 in keys) == (text is None)
    assert build_table(settings).hash != build_table(make()).hash


def test_the_spelling_is_part_of_the_log(make, tmp_path):
    one_by_ingest(make(), tmp_path, "who", "w")
    changed = make(columns={"normalise": {"who": ["lower"]}})
    with pytest.raises(ValueError, match=r"columns.normalise = {}, the settings have \{'who': \['lower'\]\}"):
        ingest(changed, str(tmp_path / "one.csv"), clock=lambda: NOW)


@given(
    st.text(max_size=8) | st.from_regex(r"-?\d{1,3}(\.0+)?|[tT]rue|FALSE", fullmatch=True),
    st.sampled_from([(), *(tuple(case[0]) for case in NORMALISED.values())]),
)
def test_one_text_and_a_column_of_it_agree(text, forms):
    if text.isprintable():
        found = one_text(text, forms)
        assert one_texts(pa.array([text]), forms).to_pylist() == [found] and one_text(found, forms) == found


# --- dates without a time ---------------------------------------------------------------------------------------------

TODAY = "2025-10-09"  # of NOW, at 08:53:20Z
# written, time zone -> when the label was known; a text with the settings of input that it needs
DATES = {
    "a day": ("2025-06-03", "UTC", "2025-06-03T23:59:59.999Z"),
    "a day of Paris": ("2025-06-03", "Europe/Paris", "2025-06-03T21:59:59.999Z"),
    "a day of 23 hours": ("2025-03-30", "Europe/Paris", "2025-03-30T21:59:59.999Z"),
    "a day of 25 hours": ("2024-10-27", "Europe/Paris", "2024-10-27T22:59:59.999Z"),
    "today": (TODAY, "UTC", None),
    "today in Paris": (TODAY, "Europe/Paris", None),
    "a moment": ("2025-06-03T00:00:00", "Europe/Paris", "2025-06-02T22:00:00Z"),
    "a moment with an offset": ("2025-06-03T00:00Z", "Europe/Paris", "2025-06-03T00:00:00Z"),
}


def known_settings(make, name, **changes):
    return make(name, labels={"time_column": "known", "delay": ""}, **changes)


def known_in_log(settings, place, labels=""):
    summary = ingest(settings, place, labels, clock=lambda: NOW)
    assert not summary["rejected"] and summary["labels_clamped"] == 0
    waiting = read_waiting(settings.batch.folder, read_manifest(settings.batch.folder)).to_pylist()
    logged = [int(pd.Timestamp(row["known"]).timestamp() * 1000) for row in rows_of(settings, "labels")]
    return [*logged, *(row["known"] for row in waiting)]


def known_in_file(settings, path):
    reader = EventReader(settings, bytes(32), clock=lambda: NOW)
    return [NOW if item.known is None else item.known for _, item in file_changes(settings, reader, str(path), "file")]


@pytest.mark.parametrize("what", DATES)
def test_a_date_is_the_end_of_its_day_at_every_door(make, tmp_path, what):
    "A label known on the day of its event is known at its end, and today now, whichever way the date is written."
    text, zone, expected = DATES[what]
    expected = int(pd.Timestamp(expected).timestamp() * 1000) if expected else NOW
    at = pd.Timestamp(expected, unit="ms").isoformat(timespec="milliseconds") + "Z"
    event = {"id": "e0", "at": at, "who": "w", "town": "t", "amount": 1.0}
    event["at"] = (pd.Timestamp(at) - pd.Timedelta(minutes=1)).isoformat()
    label, found = {"id": "e0", "outcome": 1, "known": text}, []
    columns, day = {"timezone": zone}, len(text) == 10
    frames = {"text.csv": text, "text.parquet": text}
    if day:
        frames |= {"date.parquet": pd.Timestamp(text).date()}
    for number, (name, known) in enumerate(frames.items()):
        labels = written(tmp_path / f"l-{name}", pd.DataFrame([label | {"known": known}]))
        own = written(tmp_path / f"e-{name}", pd.DataFrame([event | label | {"known": known}]))
        events = written(tmp_path / "events.csv", pd.DataFrame([event]))
        found += known_in_log(known_settings(make, f"own{number}", columns=columns), own)
        found += known_in_log(known_settings(make, f"apart{number}", columns=columns), events, labels)
        found += known_in_file(known_settings(make, "file", columns=columns), labels)
    for form in ("dayfirst", "%d.%m.%y") if day else ():
        settings = known_settings(make, f"sheet-{form[-1]}", columns=columns, input={"date_format": form})
        spelled = pd.Timestamp(text).strftime("%d.%m.%y")
        labels = written(tmp_path / "sheet.csv", pd.DataFrame([label | {"known": spelled}]))
        found += known_in_file(settings, labels)
        events = written(tmp_path / "events.parquet", pd.DataFrame([event | {"at": pd.Timestamp(event["at"])}]))
        found += known_in_log(settings, events, labels)
    settings = known_settings(make, "live", columns=columns)
    (tmp_path / "l.json").write_text(json.dumps(label))
    found += known_in_file(settings, tmp_path / "l.json")
    reader = EventReader(settings, bytes(32), clock=lambda: NOW)
    one = read_label_change(reader, {"order": "e0", "fraud": True, "source": "analyst", "known": text})
    found.append(NOW if one.known is None else one.known)
    assert set(found) == {expected} and len(found) == (15 if day else 8)


@given(
    st.dates(date(1990, 1, 1), date(2026, 1, 1)),
    st.sampled_from(
        ["UTC", "Europe/Paris", "America/Sao_Paulo", "Asia/Pyongyang", "Australia/Lord_Howe", "Asia/Kolkata"]
    ),
)
def test_the_end_of_a_day_is_one_in_both_paths(root, day, zone):
    settings = load_settings(
        root / "config" / "orders.toml", {"columns.timezone": zone, "limits.earliest": "1980-01-01"}
    )
    reader, field = EventReader(settings, bytes(32), clock=lambda: NOW), known_field(settings)
    raw = pa.array([day.isoformat()])
    ms, state = as_times(raw, settings.columns)
    column = day_ends(raw, ms, settings.columns, now=NOW)[0]
    if state[0] == NONEXISTENT or ms[0] > NOW + 3_600_000:
        with pytest.raises(InvalidValue):
            reader.known_ms(field, raw[0].as_py())
        return
    one = reader.known_ms(field, raw[0].as_py())
    assert column == (NOW if one is None else one) and ms[0] <= column
    assert column - ms[0] in {86_399_999 + minutes * 60_000 for minutes in (-60, -30, 0, 30, 60)} or column == NOW


def test_a_label_of_today_is_sent_again_without_effect(make):
    "It is known now, as one without a time, so the same body is the same assertion all day long."
    reader = EventReader(make(), bytes(32), clock=lambda: NOW)
    body = {"order": "e1", "fraud": True, "source": "chargeback"}
    assert read_label_change(reader, body | {"known": TODAY}) == read_label_change(reader, body)


def test_the_time_of_an_event_that_is_a_date_is_the_start_of_its_day(make, tmp_path):
    for value in ("2025-06-03", pa.array(["2025-06-03"]).cast(pa.timestamp("s")).cast(pa.date32())):
        assert one_by_ingest(make(columns={"timezone": "Europe/Paris"}), tmp_path, "at", value)[0]["time"] == (
            pd.Timestamp("2025-06-02T22:00Z")
        )
    settings = make(columns={"timezone": "Europe/Paris"})
    events = [one_by_service(settings, "at", "2025-06-03")[0]]
    for kind in ("csv", "jsonl"):
        events += one_by_file(settings, tmp_path, "at", ["2025-06-03"], kind)
    assert {event.time for event in events} == {1_748_901_600_000}


# --- dates and times as identities ------------------------------------------------------------------------------------

MOMENTS = {
    "timestamp": pa.array([0]).cast(pa.timestamp("us")),
    "timestamp with a zone": pa.array([0]).cast(pa.timestamp("ns", "UTC")),
    "date": pa.array([0], pa.int32()).cast(pa.date32()),
    "time": pa.array([0]).cast(pa.time64("us")),
    "dictionary": pa.array([0]).cast(pa.timestamp("us")).dictionary_encode(),
}


@pytest.mark.parametrize("what", MOMENTS)
@pytest.mark.parametrize("column", ["who", "town", "id"])
def test_a_date_or_time_is_no_identity_at_any_door(make, tmp_path, what, column):
    "Programs write one moment in many ways: a typed one is refused, and text is the text that it is."
    settings = make()
    with pytest.raises(ValueError, match=f"column '{column}' .* should hold text, numbers or booleans .* but holds"):
        one_by_ingest(settings, tmp_path, column, MOMENTS[what])
    with pytest.raises(ValueError, match="identities should be text"):
        as_text(MOMENTS[what], forms=())
    if column != "id":
        return
    pq.write_table(pa.table({"id": MOMENTS[what], "fraud": ["1"]}), tmp_path / "labels.parquet")
    reader = EventReader(settings, bytes(32), clock=lambda: NOW)
    ((_, problems),) = file_changes(settings, reader, str(tmp_path / "labels.parquet"), Actor("file"))
    assert [(one.name, "write it as text" in one.msg) for one in problems] == [("order", True)]


@pytest.mark.parametrize("text", ["2025-03-03", "2025-03-03 00:00:00", "2025-03-03T00:00:00Z"])
def test_a_date_as_text_is_that_text_at_every_door(make, tmp_path, text):
    settings = make()
    for value in (text, pa.array([text])):
        assert one_by_ingest(settings, tmp_path, "who", value)[0]["who"] == text
    assert one_by_service(settings, "who", text)[1][1]["who"] == text
