"""What was known when: a label enters the log when events have reached its time, in any files and live alike."""

import asyncio
import json
import shutil
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from support import oracle
from test_parity import BASE, examples, folder_of

from fraud_poc.core.files import read_json, write_json
from fraud_poc.core.settings import Settings
from fraud_poc.data.ingest import ingest
from fraud_poc.data.log import LOG_FORMAT, hash_secret, read_manifest, read_part, read_waiting
from fraud_poc.features.batch import compute_features
from fraud_poc.features.label_delay import labels_before
from fraud_poc.features.table import build_table
from fraud_poc.live.collect import collect
from fraud_poc.live.decide import Engine
from fraud_poc.live.labels import LabelWriter, assert_due
from fraud_poc.live.load import prepare_db
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import start_redis
from fraud_poc.live.redis_store import Names, open_store
from fraud_poc.live.store import MemoryStore, Meta, WaitingLabel, decode_entry, encode_waiting
from fraud_poc.model.dataset import read_labels

HOUR, DAY, START = 3_600_000, 86_400_000, 1_700_000_000_000
ROWS = [
    'Count(by="a", over="30d")',
    'FraudCount(by="a", over="lifetime")',
    'FraudRate(by="b", over="90d")',
    'FraudRate(by="a", over="7d", delay="2d")',
]
SETTINGS = Settings.model_validate(
    BASE
    | {
        "features": BASE["features"] | {"rows": ROWS},
        "input": BASE["input"] | {"events": "", "labels": "given each time"},
    }
)


# --- the rule, word by word -------------------------------------------------------------------------------------------


def sequenced(portions: list[tuple[list, list]]) -> tuple[list, list]:
    """The log of portions of (time, id) events and (id, label, known) labels, and the labels that wait.

    This is the rule in its plainest form. In the log: ("event", id) and ("label", id, label, what was known before).
    """
    log, waiting, times, known_last, current, newest = (
        [],
        [],
        {},
        defaultdict(lambda: -(10**18)),
        defaultdict(lambda: -1),
        -(10**18),
    )
    for events, assertions in portions:
        fresh = {ident: time for time, ident in events if ident not in times}
        times |= fresh
        newest = max([newest, *times.values()])
        last_of_moment = {}
        for ident, label, stated in [*waiting, *assertions]:
            known = max(stated, times[ident] + 1)
            before = last_of_moment.get((ident, known))
            if before is None or before[1] <= stated:
                last_of_moment[ident, known] = label, stated
        waiting, items = [], [(2 * time + 1, ident, ("event", ident)) for ident, time in fresh.items()]
        for (ident, known), (label, stated) in sorted(last_of_moment.items(), key=lambda item: item[0][1]):
            if known > newest:
                waiting.append((ident, label, stated))
            elif known >= known_last[ident]:
                known_last[ident] = known if label != current[ident] else known_last[ident]
                if label != current[ident]:
                    items.append((2 * known, ident, ("label", ident, label, current[ident])))
                current[ident] = label
        log += [entry for *_, entry in sorted(items)]
    return log, waiting


def ingested(settings: Settings, portions: list[tuple[list, list]], keys: dict, features: bool = True) -> None:
    "Each portion as files, ingested one after the other."
    folder = settings.batch.folder
    for events, assertions in portions:
        columns = {
            "id": [ident for _, ident in events],
            "at": [time for time, _ in events],
            "amount": [1.0] * len(events),
            **{name: [keys[ident][place] for _, ident in events] for place, name in enumerate("abc")},
        }
        pq.write_table(
            pa.table(
                columns,
                schema=pa.schema(
                    {"id": pa.string(), "at": pa.int64(), "amount": pa.float64(), **dict.fromkeys("abc", pa.string())}
                ),
            ),
            folder / "e.parquet",
        )
        columns = (
            dict(zip(("id", "fraud", "known"), zip(*assertions)))
            if assertions
            else {"id": [], "fraud": [], "known": []}
        )
        pq.write_table(
            pa.table(
                {name: list(values) for name, values in columns.items()},
                schema=pa.schema({"id": pa.string(), "fraud": pa.int64(), "known": pa.int64()}),
            ),
            folder / "l.parquet",
        )
        summary = (
            ingest(
                settings, str(folder / "e.parquet") if events else "", str(folder / "l.parquet") if assertions else ""
            )
            if events or assertions
            else {}
        )
        if summary:
            assert (
                summary["labels_waiting"] == (read_manifest(folder)["waiting"] or {"labels": 0})["labels"]
                and not summary["rejected"]
            )
        if summary and features:
            compute_features(settings)


def log_of(settings: Settings) -> tuple[list, list]:
    "The log and the labels that wait, as `sequenced` has them."
    found, folder = [], settings.batch.folder
    manifest = read_manifest(folder)
    for part in manifest["parts"]:
        found += [(row["seq"], ("event", row["id"])) for row in read_part(folder, "events", part["name"]).to_pylist()]
        found += [
            (row["seq"], ("label", row["id"], row["label"], row["previous"]))
            for row in read_part(folder, "labels", part["name"]).to_pylist()
        ]
    assert [seq for seq, _ in sorted(found)] == list(range(len(found)))
    return [entry for _, entry in sorted(found)], [
        (row["id"], row["label"], row["stated"]) for row in read_waiting(folder, manifest).to_pylist()
    ]


@st.composite
def histories(draw):
    """Events by time, labels with their delays, corrections among them; times at which the history is cut; late events.

    Late events come a portion late.
    """
    count = draw(st.integers(2, 14))
    times = np.cumsum([draw(st.sampled_from([1, HOUR, 9 * HOUR, 2 * DAY])) for _ in range(count)]) + START
    events = [(int(time), f"e{number:02d}") for number, time in enumerate(times)]
    keys = {
        ident: (draw(st.sampled_from(["x", "y", None])), draw(st.sampled_from(["u", "v"])), "c") for _, ident in events
    }
    delays = st.sampled_from([0, 1, HOUR, DAY, 3 * DAY, 20 * DAY])
    assertions = [
        (ident, draw(st.integers(0, 1)), time + draw(delays))
        for time, ident in draw(st.lists(st.sampled_from(events), max_size=16))
    ]
    cuts = sorted(draw(st.lists(st.sampled_from([time for time, _ in events]), max_size=4)))
    late = draw(st.sets(st.sampled_from([ident for _, ident in events]), max_size=3))
    return events, assertions, keys, cuts, late


def portioned(events: list, assertions: list, cuts: list[int], late: set) -> list[tuple[list, list]]:
    """The history in portions: each event in that of its time, or one later.

    A label comes with its event, whenever it is known.
    """
    place = {ident: min(sum(time >= cut for cut in cuts) + (ident in late), len(cuts)) for time, ident in events}
    return [
        (
            [event for event in events if place[event[1]] == number],
            [assertion for assertion in assertions if place[assertion[0]] == number],
        )
        for number in range(len(cuts) + 1)
    ]


@examples(40)
@given(histories())
def test_portions_cut_anywhere_give_the_log_of_the_rule_and_the_features_of_the_oracle(history):
    events, assertions, keys, cuts, late = history
    portions = portioned(events, assertions, cuts, late)
    note(str(portions))
    with folder_of(SETTINGS, part_rows=5) as settings:
        ingested(settings, portions, keys)
        log, waiting = log_of(settings)
        expected = sequenced(portions)
        assert (log, sorted(waiting)) == (expected[0], sorted(expected[1]))
        items = oracle.log_items(settings.batch.folder, settings.columns)
        naive = oracle.naive_features(settings, build_table(settings).rows, items)
        oracle.assert_same(
            build_table(settings),
            (naive[0].astype(np.float32), naive[1].reshape(len(naive[0]), -1)),
            oracle.of_batch(settings),
            "oracle and batch",
        )


@examples(25)
@given(histories())
def test_portions_in_the_order_of_time_are_one_file(history):
    events, assertions, keys, cuts, _ = history
    with folder_of(SETTINGS, part_rows=7) as cut, folder_of(SETTINGS, part_rows=1_000) as whole:
        hash_secret(whole.batch.folder)
        shutil.copy(whole.batch.folder / "hash_secret", cut.batch.folder)
        ingested(cut, portioned(events, assertions, cuts, set()), keys)
        ingested(whole, [(events, assertions)], keys)
        assert log_of(cut) == log_of(whole)
        oracle.assert_same(build_table(whole), oracle.of_batch(whole), oracle.of_batch(cut), "one file and portions")
        ends = [
            labels_before(*read_labels(s.batch.folder, read_manifest(s.batch.folder), 0, 2**60), START + 60 * DAY)
            for s in (cut, whole)
        ]
        assert all((one == other).all() for one, other in zip(*ends)), "what a training set takes as outcomes"


def test_the_features_of_a_second_file_do_not_see_labels_of_later():
    "The leak that was: a fraud of the first file, known after a week, and an order of the second file, two days later."
    events = [(START, "a"), (START + HOUR, "b"), (START + 2 * DAY, "c"), (START + 9 * DAY, "d")]
    assertions, keys = [("a", 1, START + 7 * DAY)], dict.fromkeys("abcd", ("x", "u", "c"))
    with folder_of(SETTINGS) as settings:
        ingested(settings, [(events[:2], assertions), (events[2:3], []), (events[3:], [])], keys)
        counts = oracle.of_batch(settings)[0][:, build_table(settings).names.index("fraud_count_lifetime_by_a")]
        assert [0 if count != count else count for count in counts] == [0, 0, 0, 1]
        assert [entry["labels_waiting"] for entry in read_manifest(settings.batch.folder)["ingests"]] == [1, 1, 0]


def test_a_correction_that_comes_in_a_later_file_takes_its_place_among_those_that_wait():
    events, keys = [(START, "a"), (START + 30 * DAY, "b")], dict.fromkeys("ab", ("x", "u", "c"))
    with folder_of(SETTINGS) as settings:
        ingested(
            settings,
            [
                (events[:1], [("a", 1, START + 9 * DAY)]),
                ([], [("a", 0, START + 5 * DAY)]),
                ([], [("a", 1, START + 9 * DAY)]),
            ],
            keys,
        )
        again = ingest(settings, "", str(settings.batch.folder / "l.parquet"))  # and once more: nothing new
        assert (
            again["labels_unchanged"],
            again["labels_superseded"],
            len(read_manifest(settings.batch.folder)["ingests"]),
        ) == (1, 0, 2)
        ingested(settings, [(events[1:], [])], keys)
        assert log_of(settings) == ([("event", "a"), ("label", "a", 0, -1), ("label", "a", 1, 0), ("event", "b")], [])


def test_a_log_of_the_earlier_version_whose_features_saw_the_future_is_refused():
    events, keys = [(START, "a"), (START + 9 * DAY, "b")], dict.fromkeys("ab", ("x", "u", "c"))
    with folder_of(SETTINGS) as settings:
        ingested(settings, [(events, [("a", 1, START + 7 * DAY)])], keys)
        path = settings.batch.folder / "log" / "manifest.json"
        write_json(path, read_json(path) | {"format": 1})
        assert read_manifest(settings.batch.folder)["format"] == LOG_FORMAT, "no event saw a label early: it is read"
        part = read_manifest(settings.batch.folder)["parts"][0]
        for number, time in enumerate((3, 8)):  # as a second file appended them: before and after the label was known
            table = read_part(settings.batch.folder, "events", part["name"]).slice(1)
            table = table.set_column(
                table.schema.get_field_index("time"), "time", pa.array([START + time * DAY]).cast(table["time"].type)
            )
            pq.write_table(table, settings.batch.folder / "log" / "events" / f"9{number}.parquet")
            pq.write_table(
                read_part(settings.batch.folder, "labels", part["name"]).slice(1),
                settings.batch.folder / "log" / "labels" / f"9{number}.parquet",
            )
        first = read_part(settings.batch.folder, "events", part["name"]).slice(0, 1)
        pq.write_table(first, settings.batch.folder / "log" / "events" / f"{part['name']}.parquet")
        for number, early in enumerate((True, False)):
            write_json(path, read_json(path) | {"format": 1, "parts": [part, part | {"name": f"9{number}"}]})
            if not early:
                assert read_manifest(settings.batch.folder)
            else:
                with pytest.raises(
                    ValueError, match="1 of its labels stand before events .* Ingest the same files anew with replace"
                ):
                    read_manifest(settings.batch.folder)


# --- live -------------------------------------------------------------------------------------------------------------


def test_a_label_enters_the_live_log_when_its_time_has_come_and_once():
    with folder_of(SETTINGS) as settings:
        keys = {"a": ("x", "u", "c"), "b": ("x", "v", "c")}
        ingested(
            settings,
            [([(START, "a"), (START + HOUR, "b")], [("a", 1, START + 7 * DAY), ("b", 0, START + 9 * DAY)])],
            keys,
        )
        base = {"next_seq": 2, "parts": 1, "log": "", "features": ""}
        store, secret = MemoryStore(Meta("e", 1, build_table(settings).hash, base)), hash_secret(settings.batch.folder)
        labels = [
            WaitingLabel("a", 1, START + 7 * DAY),
            WaitingLabel("b", 0, START + 9 * DAY),
            WaitingLabel("gone", 1, START),
        ]
        store.waiting |= {encode_waiting(label) for label in labels}
        enter = lambda days: asyncio.run(
            assert_due(LabelWriter(Engine(settings, None, store), secret), START + round(days * DAY))
        )
        assert enter(6) == {"entered": 0, "rejected": 1} and not store.log
        assert enter(7) == {"entered": 1, "rejected": 1} and enter(8) == {"entered": 0, "rejected": 1}
        store.waiting.add(encode_waiting(labels[0]))  # a run that died before it was removed
        assert enter(8)["entered"] == 1 and len(store.log) == 1
        assert enter(9)["entered"] == 1 and len(store.waiting) == 1
        entries = [decode_entry(data) for _, data in store.log]
        assert [(entry.label, entry.previous, entry.known, json.loads(entry.body)["order"]) for entry in entries] == [
            (1, -1, START + 7 * DAY, "a"),
            (0, -1, START + 9 * DAY, "b"),
        ]


def test_what_waits_is_handed_to_the_store_comes_home_and_a_longer_history_replaces_it():
    events, keys = [(START, "a"), (START + HOUR, "b"), (START + 20 * DAY, "c")], dict.fromkeys("abc", ("x", "u", "c"))
    assertions = [("a", 1, START + 7 * DAY), ("b", 1, START + 40 * DAY)]
    with folder_of(SETTINGS) as settings, start_redis(settings.batch.folder / "redis") as server:
        settings, secret = (
            settings.model_copy(update={"live": settings.live.model_copy(update={"store_timeout": "20s"})}),
            hash_secret(settings.batch.folder),
        )

        async def enter(days: int) -> dict:
            async with open_store(settings, server.url) as store:
                return await assert_due(LabelWriter(Engine(settings, None, store), secret), START + days * DAY)

        ingested(settings, [(events[:2], assertions)], keys)
        assert prepare_db(settings, server.url)["labels_waiting"] == 2
        assert asyncio.run(enter(10))["entered"] == 1
        assert (
            prepare_db(settings, server.url)["replayed"] == 1 and asyncio.run(enter(10))["entered"] == 1
        )  # handed over again: known, and not taken twice
        with Client(server.url) as client:
            assert client.call("XLEN", Names("drawn").log) == 1
        ingested(
            settings, [(events[2:], [])], keys
        )  # the label of day 7 is in the batch log now: what entered live follows from it
        loaded = prepare_db(settings, server.url)
        assert (loaded["archived"], loaded["labels_waiting"]) == (1, 1) and asyncio.run(enter(10))["entered"] == 0
        assert asyncio.run(enter(41))["entered"] == 1
        summary = collect(settings, server.url)
        assert summary["labels"] == 1 and read_manifest(settings.batch.folder)["waiting"] is None
        assert [entry for entry in log_of(settings)[0] if entry[0] == "label"] == [
            ("label", "a", 1, -1),
            ("label", "b", 1, -1),
        ]
        compute_features(settings)
        items = oracle.log_items(settings.batch.folder, settings.columns)
        oracle.assert_same(
            build_table(settings),
            oracle.stepped(build_table(settings), items),
            oracle.of_batch(settings),
            "stepping and batch",
        )
