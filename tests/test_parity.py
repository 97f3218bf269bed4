"""Parity to the bit: naive oracle = batch in any number of pieces, parts and goes = event by event on packed bytes.

Streams and tables are drawn by hypothesis: ties, late and much too late events, labels and corrections anywhere,
missing entities, hot keys beyond the cap, gaps of years, windows whose edges events hit exactly.
`HYPOTHESIS_PROFILE=long` draws many more.
"""

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import event, given, note
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support import house, oracle

from fraud_poc.core.events import bits_of
from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.data.ingest import ingest
from fraud_poc.data.log import read_manifest
from fraud_poc.data.sample import make_data
from fraud_poc.features.aggregates import PREVIOUS
from fraud_poc.features.batch import compute_features, on_dask
from fraud_poc.features.fold import Items
from fraud_poc.features.frozen_labels import frozen_features
from fraud_poc.features.items import fold_arrays
from fraud_poc.features.sequences import AGGREGATES
from fraud_poc.features.state_files import features_folder, read_states
from fraud_poc.features.table import Stepper, build_table, step_event, step_label

CONFIG = Path(__file__).resolve().parents[1] / "config"
SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
FUTURE = lambda: 7_258_118_400_000  # noqa: E731, a clock later than all times that are drawn
BASE = house.small_settings(
    CONFIG.parent,
    "a",
    {
        "domain": {"name": "drawn"},
        "input": {"events": "", "labels": ""},
        "columns": {
            "id": ["id"],
            "time": "at",
            "time_format": "epoch_ms",
            "timezone": "UTC",
            "amount": "amount",
            "decimals": 2,
            "entities": ["a", "b"],
            "categories": ["c"],
            "shared": {"party": ["a", "b"]},
        },
        "labels": {
            "column": "fraud",
            "fraud_values": [1],
            "legitimate_values": [0],
            "time_column": "known",
            "delay": "",
        },
        "limits": {"min_amount": -1e9, "max_amount": 1e9, "earliest": "1900-01-01", "latest": "2200-01-01", "gap": ""},
        "features": {"retention": "90d", "forget_after": "730d", "exact_events": 16, "set_size": 3, "rows": ["Hour()"]},
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


# columns and expressions over them, for tables that use all of the language
WIDE = {
    "columns": {
        "numbers": {"x": 1},
        "flags": ["f"],
        "vocabularies": {"v": ["p", "q"]},
        "times": ["opened"],
    },
    "derived": {
        "gap": "x - amount",
        "part": "amount / x",
        "steep": "where(f, abs(gap), 0)",
        "busy": "hour(at) >= 12 and v in ('p', 'q')",
        "age": "round((at - opened) / 86400, 2)",
        "least": "min(x, amount, 3.25)",
        "uneven": "support.columns:uneven",
        "odd_hour": "support.columns:odd_hour",
        "digits": "support.columns:digits",
    },
}
CONDITIONS = [
    "f",
    "busy",
    "not f",
    "x > 0.5",
    "x > -0.5",
    "v == 'p'",
    "v != 'p' or f",
    "is_missing(x)",
    "weekday(at) < 3 and not busy",
    "odd_hour",
]
WITH_AMOUNT = ["gap < 0", "uneven > 2", "x <= amount and f"]  # what labels cannot depend on


def examples(count: int) -> hypothesis_settings:
    "So many examples, or forty times as many in the profile `long`."
    return hypothesis_settings(max_examples=count * (40 if hypothesis_settings.default.max_examples > 100 else 1))


def with_batch(settings: Settings, **changes) -> Settings:
    return settings.model_copy(update={"batch": settings.batch.model_copy(update=changes)})


@contextmanager
def folder_of(settings: Settings, **changes):
    "The settings with a new folder, and other changes of [batch]."
    with tempfile.TemporaryDirectory(dir=house.memory()) as folder:  # these tests flush hundreds of files
        yield with_batch(settings, folder=Path(folder), **changes)


# --- what is drawn ----------------------------------------------------------------------------------------------------


@st.composite
def windows(draw, retention: int) -> tuple[int, int]:
    "Length and delay, ms, that together lie within the retention."
    usual = [w for w in (SECOND, 30 * SECOND, MINUTE, HOUR, DAY, 7 * DAY, 30 * DAY, retention) if w <= retention]
    over = draw(st.one_of(st.sampled_from(usual), st.integers(SECOND, retention)))
    rest = retention - over
    return over, draw(
        st.one_of(st.just(0), st.sampled_from([0, *(w for w in usual if w <= rest)]), st.integers(0, rest))
    )


@st.composite
def table_rows(draw, retention: int, exact: int, edges: set, wide: bool) -> str:
    "One row of a table; ages at which events enter and leave its window go to `edges`."
    kinds = [name for name, one in sorted(AGGREGATES.items()) if wide or one.column not in ("choice", "condition")]
    kind, by = draw(st.sampled_from(kinds)), draw(st.sampled_from(["a", "b", "a", "b", "a+b", "b+a"]))
    role = draw(st.sampled_from(["", {"a": "b", "b": "a", "a+b": "b+a", "b+a": "a+b"}[by]]))
    aggregate, given = AGGREGATES[kind], {}
    if "column" in aggregate.takes:
        hashed = st.sampled_from([column for column in "abc" if column not in (role or by)])
        numbers = ["amount", "amount", "x", "f", *WIDE["derived"]] if wide else ["amount"]
        columns = {"number": st.sampled_from(numbers), "choice": st.just("v"), "hashed": hashed}
        given["column"] = draw(columns[aggregate.column])
    if "value" in aggregate.takes:
        given["value"] = draw(st.sampled_from(["p", "q"]))
    if "by" in aggregate.takes:
        given["by"] = by
        if wide and (aggregate.column == "condition" or draw(st.booleans())):
            more = [] if kind.startswith("Fraud") else WITH_AMOUNT
            given["where"] = draw(st.sampled_from(CONDITIONS + more))
        given |= {"role": role} if role else {}
    if "n" in aggregate.takes:
        given["n"] = draw(st.sampled_from([1, 2, exact]))
    if "q" in aggregate.takes:
        given["q"] = draw(st.sampled_from([0.0001, 0.25, 0.5, 0.9, 0.9999]))
    if "half_life" in aggregate.takes:
        half_life = draw(
            st.one_of(st.sampled_from([SECOND, HOUR, retention // 8]), st.integers(SECOND, retention // 8))
        )
        given["half_life"] = f"{half_life}ms"
        edges |= {half_life, 8 * half_life}
    reaches = ["over", "over", "lifetime"] if "over" in aggregate.takes else []
    reaches += ["last"] if "last" in aggregate.takes else []
    reach = draw(st.sampled_from(reaches)) if reaches else ""
    if reach == "last":
        most = 8 if AGGREGATES[kind].reads == PREVIOUS else exact
        given["last"] = draw(st.sampled_from([n for n in (1, 2, 3, 8, 10, exact) if aggregate.least <= n <= most]))
    elif "of" in aggregate.takes:
        over, whole = sorted(draw(st.lists(windows(retention), min_size=2, max_size=2, unique_by=lambda w: w[0])))
        given |= {"over": f"{over[0]}ms", "of": f"{whole[0]}ms"}
        edges |= {over[0], whole[0]}
    elif reach:
        over, delay = draw(windows(retention))
        given["over"] = f"{over}ms" if reach == "over" else "lifetime"
        if "delay" in aggregate.takes and delay:
            given["delay"] = f"{delay}ms"
        edges |= {delay, over + delay} if reach == "over" else {delay}
    return f"{kind}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def stream(moves: list, clock: int) -> list[dict]:
    "Play moves: bursts of events with their gaps, delays and keys, and bursts of labels of events so far."
    items, events, known = [], [], {}
    for gap, count, step, late, keys, amount, labels in moves:
        clock += gap
        for i in range(count):
            clock += step if i else 0
            tag = len(events) * 2_654_435_761 % 2**32  # all different, some above 2**31
            # every third event of a late burst is late; amounts differ within a burst
            items.append(
                {
                    "t": clock - (late if i % 3 == 0 else 0),
                    "tag": tag,
                    "amount": amount + i * (amount // 7),
                    "keys": keys,
                }
            )
            events.append(items[-1])
        for back, label in labels:
            if not events:
                continue
            about = events[max(0, len(events) - 1 - back)]
            previous = known.get(about["tag"], -1)
            if label == previous:
                continue  # ingest drops a label that says nothing new
            known[about["tag"]] = label
            items.append(
                {"ts": about["t"], "tag": about["tag"], "label": label, "previous": previous, "keys": about["keys"]}
            )
    return items


KEYS = [
    1,
    2,
    2**40 + 3,
    2**62,
    2**63 - 1,
    2**63 + 5,
    2**64 - 1,
]  # keys are unsigned: all orders of magnitude, for every number of pieces


@st.composite
def cases(draw, wide: bool = False) -> tuple[Settings, list[dict]]:
    "Settings with a table, and a stream; `wide`: with numbers, flags, vocabularies, expressions and conditions."
    retention = draw(st.sampled_from([90 * DAY, 7 * DAY, DAY]))
    forget = draw(st.sampled_from([retention, 400 * DAY, 10_000 * DAY]))
    exact, edges = draw(st.sampled_from([16, 17, 33])), {retention, forget}
    rows = list(dict.fromkeys(draw(st.lists(table_rows(retention, exact, edges, wide), min_size=1, max_size=10))))
    limits = {
        "retention": f"{retention}ms",
        "forget_after": f"{forget}ms",
        "exact_events": exact,
        "set_size": draw(st.sampled_from([1, 2, 3, 8])),
        "rows": rows,
    }
    columns = BASE["columns"] | (WIDE["columns"] if wide else {})
    limits["derived"] = WIDE["derived"] if wide else {}
    settings = Settings.model_validate(BASE | {"features": limits, "columns": columns})
    jumps = sorted(
        {0, 1, 999, MINUTE, HOUR, DAY, 5_000 * DAY} | {max(0, edge + d) for edge in edges for d in (-1, 0, 1)}
    )
    shorts = sorted(
        {0, 1, MINUTE, HOUR} | {edge // part for edge in edges for part in (16, 40) if edge // part < 30 * DAY}
    )
    key = st.sampled_from([0, 1, 1, 1, 2, 3, 4, 5, 6, 7]).map(lambda place: KEYS[place - 1] if place else 0)
    bits = lambda *numbers: st.sampled_from([0, *map(bits_of, numbers)])
    measured = {"x": bits(0, 4, 10, -7, 2**36, 500), "f": bits(0, 1), "v": bits(0, 1, 2)}
    measured["opened"] = bits(0, 1_400_000_000_000, 1_500_000_000_001)
    move = st.tuples(
        st.sampled_from(jumps),
        st.integers(0, 30),
        st.sampled_from(shorts),
        st.sampled_from([0, *jumps]),
        st.fixed_dictionaries({"a": key, "b": key, "c": key} | (measured if wide else {})),
        st.one_of(st.integers(-2_000, 5_000), st.integers(-(2**33), 2**33)),
        st.lists(st.tuples(st.integers(0, 60), st.integers(-1, 1)), max_size=6),
    )  # -1: taken back
    items = stream(
        draw(st.lists(move, min_size=draw(st.sampled_from([1, 10])), max_size=16)),
        draw(st.sampled_from([1_500_000_000_000, 0, -(10**12)])),
    )
    return settings, items


# --- properties -------------------------------------------------------------------------------------------------------


def expected_of(settings: Settings, items: list[dict]) -> tuple:
    "What the oracle computes, and what happened in the stream, for hypothesis' statistics."
    vectors, flags = oracle.naive_features(settings, build_table(settings).rows, items)
    for bit, word in [(2, "capped"), (4, "late"), (8, "too late"), (16, "no entity")]:
        if (flags & bit).any():
            event(word)
    if any(item.get("previous", -1) >= 0 for item in items):
        event("label corrected")
    note(f"{settings.features}\n" + "\n".join(map(str, items)))
    return vectors.astype(np.float32), flags.reshape(len(vectors), len(build_table(settings).readers))


def assert_schema(table, vectors: np.ndarray, flags: np.ndarray) -> None:
    """Values keep to the schema of their aggregate.

    Its range, and where its entity is known, no value is missing that may not be.
    """
    for row, values in zip(table.rows, vectors.T):
        schema, there = row.aggregate.schema, ~np.isnan(values)
        low, high = np.float32(schema.low), np.float32(schema.high)
        assert ((values >= low) & (values <= high))[there].all(), row.name
        if row.by and not schema.missing:
            entity = [reader.name for _, reader in table.readers].index(row.reader)
            assert there[(flags[:, entity] & (8 | 16)) == 0].all(), row.name


@examples(150)
@given(st.booleans().flatmap(cases))
def test_stepping_through_bytes_is_the_oracle(case):
    settings, items = case
    table, expected = build_table(settings), expected_of(settings, items)
    oracle.assert_same(table, expected, oracle.stepped(table, items), "oracle and stepping")
    assert_schema(table, *expected)


@examples(12)
@given(st.booleans().flatmap(cases), st.sampled_from([1, 7, 40]), st.sampled_from([1, 60]), st.integers(1, 3))
def test_batch_is_the_oracle_and_the_stepping(case, part_items, step_rows, goes):
    settings, items = case
    table, expected = build_table(settings), expected_of(settings, items)
    if not items:
        return
    live = oracle.stepped(table, items)
    oracle.assert_same(table, expected, live, "oracle and stepping")
    with folder_of(settings) as whole:  # one part, one step; then other numbers of pieces
        oracle.write_log(whole, items)
        for pieces in (1, 2, 7):
            compute_features(with_batch(whole, partitions=pieces, threads=1 + pieces % 2), replace=True)
            oracle.assert_same(table, live, oracle.of_batch(whole), f"stepping and batch in {pieces} pieces")
    with folder_of(
        settings, partitions=2, step_rows=step_rows
    ) as parts:  # many parts and steps, in several goes over one log
        part_items = max(part_items, len(items) // 40)
        cuts = [len(items) * go // goes for go in range(goes + 1)]
        for start, stop in zip(cuts, cuts[1:]):
            oracle.write_log(parts, items[start:stop], part_items)
            compute_features(parts)
        oracle.assert_same(
            table,
            live,
            oracle.of_batch(parts),
            f"stepping and batch in {goes} goes, {part_items} items a part, {step_rows} rows a step",
        )


def domain_stream(settings: Settings, count: int, seed: int) -> list[dict]:
    """An unpleasant stream.

    Few entities with many events, ties, late and much too late ones, labels and corrections, missing keys, gaps
    of years.
    """
    r, items, clock, labelled = np.random.default_rng(seed), [], 1_500_000_000_000, {}
    gaps = [0, 1_000, 60_000, 3_600_000, 40_000_000, 9 * DAY, 800 * DAY]
    for tag in range(count):
        clock += int(r.choice(gaps, p=[0.1, 0.2, 0.2, 0.3, 0.17, 0.025, 0.005]))
        past = [item for item in items if "t" in item]
        if past and r.random() < 0.25:
            event = past[-int(r.integers(1, min(60, len(past)) + 1))]
            previous, label = labelled.get(event["tag"], -1), int(r.integers(2))
            if label != previous:
                about = {"ts": event["t"], "tag": event["tag"], "keys": event["keys"]}
                items.append(about | {"label": label, "previous": previous})
            labelled[event["tag"]] = label
            continue
        late = int(r.choice([0, 5_000, DAY, 30 * DAY, 100 * DAY], p=[0.7, 0.1, 0.1, 0.08, 0.02]))
        draw = lambda: int(r.choice([0, 1, 2, 3, 4, 5], p=[0.02, 0.6, 0.2, 0.1, 0.05, 0.03]))
        amount = int(r.lognormal(6, 2)) * int(r.choice([1, -1], p=[0.9, 0.1]))
        keys = {column: draw() for column in settings.columns.hashed}
        items.append({"t": clock - late, "tag": tag, "amount": amount, "keys": keys})
    return items


@pytest.mark.parametrize("name", ["orders", "cards", "ratings"])
def test_the_tables_of_the_domains_with_a_median_and_windows_of_seconds(name):
    """All features that are shipped, medians and windows of seconds of each entity.

    Beyond a bound of 20 exact events and sets of 3.
    """
    rows = load_settings(CONFIG / f"{name}.toml").features.rows
    columns = load_settings(CONFIG / f"{name}.toml").columns
    rows = [*rows, f"Median({columns.amount!r}, by={columns.entities!r}, last=[1, 4, 20])"]
    rows += [f"{kind}({columns.amount!r}, by={columns.entities!r}, over=['1s', '30s'])" for kind in ("Sum", "Std")]
    rows += [f"FraudCount(by={columns.entities!r}, over='30s', delay={delay!r})" for delay in ("5s", "7d")]
    settings = load_settings(
        CONFIG / f"{name}.toml", {"features.rows": rows, "features.exact_events": 20, "features.set_size": 3}
    )
    table, items = build_table(settings), domain_stream(settings, 700, seed=11)
    expected = oracle.naive_features(settings, table.rows, items)
    oracle.assert_same(table, expected, oracle.stepped(table, items), f"oracle and stepping, {name}")
    assert_schema(table, *expected)
    assert all((expected[1] & flag).any() for flag in (1, 2, 4, 8, 16))


# --- raw files, delivered in portions ---------------------------------------------------------------------------------


def with_known(items: list[dict], waits: list[int]) -> list[dict]:
    """The stream with times at which its labels were known.

    A time comes after its event, in no order, as a correction may be known before what it corrects.
    """
    return [
        item | {"known": item["ts"] + 1 + waits[i % len(waits)]} if "label" in item else item
        for i, item in enumerate(items)
    ]


@examples(25)
@given(
    st.booleans().flatmap(cases),
    st.integers(5, 60),
    st.sampled_from([30, 10**6]),
    st.lists(st.sampled_from([0, 0, MINUTE, DAY, 40 * DAY]), min_size=1, max_size=9),
    st.floats(0, 1),
    st.sets(st.integers(0, 6)),
)
def test_features_with_labels_frozen_are_those_of_a_log_without_the_later_labels(
    case, part_items, step_rows, waits, share, left_out
):
    """Whatever moment is taken: 0 bits differ from the oracle on the stream without labels known from then on.

    And there are files of the parts asked for alone.
    """
    settings, items = case
    rows = [
        *settings.features.rows,
        "FraudCount(by='a', over='86399999ms')",
        "FraudRate(by='b', over='3600001ms')",
        "FraudRate(by='a', over='86399998ms', delay='1ms')",
    ]
    settings = settings.model_copy(update={"features": settings.features.model_copy(update={"rows": rows})})
    items, table = with_known(items, waits), build_table(settings)
    times = sorted(item["known"] if "label" in item else item["t"] for item in items)
    if not any("t" in item for item in items):
        return
    moment = times[int(share * (len(times) - 1))]
    stays = [item for item in items if item.get("known", moment - 1) < moment]
    expected, _ = oracle.naive_features(settings, table.rows, stays)
    places = [place for place, row in enumerate(table.rows) if row.kind.startswith("Fraud")]
    with folder_of(settings, part_rows=part_items, step_rows=step_rows) as log:
        oracle.write_log(log, items, part_items)
        compute_features(log)
        parts = read_manifest(log.batch.folder)["parts"]
        wanted, to = (
            [part["name"] for i, part in enumerate(parts) if i % 7 not in left_out],
            log.batch.folder / "frozen",
        )
        with on_dask(log) as on:
            found = frozen_features(log, table, parts, set(wanted), moment, to, on)
        assert found == any(
            "label" in item and any(item["keys"][by] for by in ("a", "b")) for item in items if item not in stays
        )
        if not found:
            event("nothing left out")
            to = features_folder(log, table)
        else:
            assert sorted(path.stem for path in (to / "parts").glob("*")) == wanted
        number = np.cumsum([0, *(part["events"] for part in parts)])
        for part, first, last in zip(parts, number, number[1:]):
            if part["name"] not in wanted:
                continue
            got = pq.read_table(to / "parts" / f"{part['name']}.parquet")
            assert not len(
                oracle.differing(
                    expected[first:last][:, places],
                    np.stack([got[table.names[place]].to_numpy() for place in places], 1),
                )
            )
    if len(stays) < len(items) and any("label" in item for item in stays):
        event("some labels stay")


def test_a_label_follows_the_one_before_it_that_stays():
    """Of an event that left the recent ones, one of three labels, in the middle of the order of knowledge, is left out.

    The counts are right without it.
    """
    at, keys = 1_700_000_000_000, {"a": 1, "b": 2, "c": 3}
    events = [{"t": at + i * MINUTE, "tag": i + 1, "amount": 100, "keys": keys} for i in range(41)]
    for k, (left_out, chosen) in enumerate(
        [((), [0, 0, 1]), ((1,), [0, 1, 0]), ((1,), [1, 0, 1]), ((0, 2), [1, 0, 0])]
    ):
        labels = [
            {
                "ts": at,
                "tag": 1,
                "label": label,
                "previous": previous,
                "keys": keys,
                "known": at + (30 * DAY if i in left_out else (i + 1) * MINUTE),
            }
            for i, (label, previous) in enumerate(zip(chosen, [-1, *chosen]))
            if label != previous
        ]
        items, moment = [*events[:40], *labels, events[40]], at + 20 * DAY
        settings = Settings.model_validate(
            BASE
            | {
                "features": BASE["features"]
                | {"rows": ["FraudCount(by='a', over='lifetime')", "FraudRate(by='b', over='90d')"]}
            }
        )
        expected, _ = oracle.naive_features(
            settings, build_table(settings).rows, [item for item in items if item.get("known", 0) < moment]
        )
        with folder_of(settings) as log:
            oracle.write_log(log, items, 42)  # the labels lie in two parts
            compute_features(log)
            parts, table = read_manifest(log.batch.folder)["parts"], build_table(log)
            with on_dask(log) as on:
                found = frozen_features(
                    log, table, parts, {part["name"] for part in parts}, moment, log.batch.folder / "frozen", on
                )
            assert found == bool(left_out), k
            rows = pq.read_table((log.batch.folder / "frozen" if found else features_folder(log, table)) / "parts")
            assert not len(oracle.differing(expected, np.stack([rows[name].to_numpy() for name in table.names], 1))), k


def raw_files(
    settings: Settings, items: list[dict], again: list[int], order: np.random.Generator, path: Path
) -> tuple[str, str]:
    """A portion as files.

    Its events in any order, some of `again` (events of this or earlier portions) delivered once more, its
    labels.
    """
    events = [item for item in items if "t" in item] + again
    labels = [item for item in items if "label" in item]
    events = [events[place] for place in order.permutation(len(events))]
    now = max([item.get("t", item.get("ts")) for item in items], default=0)
    text = lambda key: f"k{key}" if key else None
    data = {
        "id": [f"e{e['tag']}" for e in events],
        "at": [e["t"] for e in events],
        "amount": [e["amount"] / 100 for e in events],
        **{name: [text(e["keys"][name]) for e in events] for name in "abc"},
    }
    pq.write_table(
        pa.table(
            data,
            schema=pa.schema(
                {"id": pa.string(), "at": pa.int64(), "amount": pa.float64(), **dict.fromkeys("abc", pa.string())}
            ),
        ),
        path / "events.parquet",
    )
    known = [now + 1 + i for i in range(len(labels))]
    data = {"id": [f"e{item['tag']}" for item in labels], "fraud": [item["label"] for item in labels], "known": known}
    pq.write_table(
        pa.table(data, schema=pa.schema({"id": pa.string(), "fraud": pa.int64(), "known": pa.int64()})),
        path / "labels.parquet",
    )
    return str(path / "events.parquet") if events else "", str(path / "labels.parquet") if labels else ""


def files_of(settings: Settings) -> dict[str, bytes]:
    "Feature files by name, and the states of each entity as one table."
    table = build_table(settings)
    folder = features_folder(settings, table)
    states = {
        entity.by: pa.concat_tables(read_states(settings, table, entity.by)).combine_chunks()
        for entity in table.entities
    }
    return {path.name: path.read_bytes() for path in sorted((folder / "parts").glob("*"))} | states


@examples(7)
@given(
    cases(),
    st.integers(1, 3),
    st.lists(st.integers(0, 1000), max_size=5),
    st.sampled_from([9, 100, 1_000_000]),
    st.integers(0, 2**32),
)
def test_raw_portions_with_repeats(case, goes, repeats, part_rows, seed):
    settings, items = case
    settings = settings.model_copy(update={"input": settings.input.model_copy(update={"labels": "given each time"})})
    table, order, sent, reports = build_table(settings), np.random.default_rng(seed), [], []
    with (
        folder_of(settings, part_rows=max(part_rows, len(items) // 20), step_rows=1, partitions=2) as go,
        folder_of(go, step_rows=10**6, partitions=7) as once,
    ):
        cuts = [len(items) * number // goes for number in range(goes + 1)]
        for start, stop in zip(cuts, cuts[1:]):
            sent += [item for item in items[start:stop] if "t" in item]
            again = [sent[place % len(sent)] for place in repeats] if sent else []
            files = raw_files(settings, items[start:stop], again, order, go.batch.folder)
            if not any(files):
                continue
            reports.append(ingest(go, *files, clock=FUTURE) | {"again": len(again)})
            compute_features(go)
            if len(reports) == 1:
                shutil.copy(go.batch.folder / "hash_secret", once.batch.folder)  # else all keys differ
            ingest(once, *files, clock=FUTURE)
        if not reports:
            return
        compute_features(once)
        assert [t["repeats"] for t in reports] == [t["again"] for t in reports] and not any(
            t["events_rejected"] for t in reports
        )
        logged = oracle.log_items(go.batch.folder, go.columns)
        assert sum("t" in item for item in logged) == len(sent)
        live = oracle.stepped(table, logged)
        oracle.assert_same(table, expected_of(settings, logged), live, "oracle and stepping")
        oracle.assert_same(table, live, oracle.of_batch(go), "stepping and batch after each portion")
        assert files_of(go) == files_of(once), f"{goes} portions one by one and at once differ"


def test_portions_in_order_are_one_run(tmp_path):
    "Orders that arrive month by month: ingest and features of each, against one ingest and one run over all."
    orders = load_settings(
        CONFIG / "orders.toml", {"sample.orders": 6_000, "sample.customers": 700, "sample.days": 120}
    )
    make_data(orders, tmp_path / "raw")
    raw = {
        kind: pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "raw" / kind).glob("*"))])
        for kind in ("orders", "labels")
    }
    month = {
        kind: raw[kind][column].cast(pa.int64()).to_numpy() // (30 * DAY)
        for kind, column in [("orders", "order_date"), ("labels", "known_at")]
    }
    made = {}
    for name, portions in [("once", [None]), ("months", np.unique(np.concatenate(list(month.values()))))]:
        made[name] = with_batch(orders, folder=tmp_path / name, partitions=len(portions), step_rows=2_000)
        for number in portions:
            places = []
            for kind in raw:
                part = raw[kind] if number is None else raw[kind].filter(pa.array(month[kind] == number))
                pq.write_table(part, tmp_path / f"{kind}.parquet")
                places.append(str(tmp_path / f"{kind}.parquet") if len(part) else "")
            if name == "months" and not (tmp_path / name / "hash_secret").exists():
                (tmp_path / name).mkdir()
                shutil.copy(tmp_path / "once" / "hash_secret", tmp_path / name)
            ingest(made[name], *places)
            compute_features(made[name])
    assert len(read_manifest(tmp_path / "months")["ingests"]) > 4
    assert oracle.log_items(tmp_path / "months", orders.columns) == oracle.log_items(tmp_path / "once", orders.columns)
    oracle.assert_same(
        build_table(orders),
        oracle.of_batch(made["once"]),
        oracle.of_batch(made["months"]),
        "one run and months one by one",
    )


# --- what only several writers can bring about ------------------------------------------------------------------------


def test_a_label_ahead_of_its_event():
    """Two writers may put a label into the log before its event: it is ignored.

    The states are those of the events alone.
    """
    settings = Settings.model_validate(
        BASE | {"features": BASE["features"] | {"rows": ['FraudRate(by="a", over=["1h", "90d", "lifetime"])']}}
    )
    stepper, keys = Stepper(build_table(settings)), {"a": 7, "b": 8, "c": 9}
    once, twice = [[b""]], [[b""]]
    for states, ahead in ((once, False), (twice, True)):
        states.append(step_event(stepper, DAY, 1, 500, keys, states[-1])[2])
        if ahead:
            states.append(step_label(stepper, 2 * DAY, 2, 1, -1, states[-1]))
        states.append(step_event(stepper, 2 * DAY, 2, 500, keys, states[-1])[2])
    assert once[-1] == twice[-1]
    items = Items(
        np.array([DAY, 2 * DAY, 2 * DAY]),
        np.array([500, 0, 500]),
        np.zeros((0, 3), np.int64),
        np.array([1, 2, 2]),
        np.array([-1, 1, -1], np.int8),
        np.array([-1, -1, -1], np.int8),
        np.zeros(0, np.int8),
    )
    *_, states, _ = fold_arrays(build_table(settings).entities[0], np.full(3, 7, np.uint64), items)
    assert states["state"].to_pylist() == twice[-1]
