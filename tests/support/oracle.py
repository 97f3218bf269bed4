"""What the features mean, and three ways to compute them: naively, over a log on Dask, and event by event.

The naive oracle knows nothing of plans, buffers or bytes. It keeps every event and label of an entity in a list,
works out for each row what it may look at, and asks the naive definition in the row's declaration
(features.aggregates, features.event_aggregates, features.sequences), in Python's integers. Slow and short is the
point: this is what the features mean.

A stream is a list of items in sequence order: an event {"t", "amount", "tag", "keys": {column: key}}, a label {"ts",
"tag", "label", "previous", "keys"} and, if it is to be, "known"; times in UTC ms, amounts in minor units.
"""

import ast
import importlib
import math
import operator
from bisect import insort
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from functools import cache, partial
from operator import itemgetter
from pathlib import Path
from types import NoneType
from typing import get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fraud_poc.core.files import write_json
from fraud_poc.core.sections import ColumnsSection, duration_ms
from fraud_poc.core.settings import Settings
from fraud_poc.data.functions import read_derived
from fraud_poc.data.log import (
    LOG,
    LOG_FORMAT,
    event_schema,
    label_schema,
    part_path,
    read_manifest,
    read_part,
    time_type,
    write_log_part,
)
from fraud_poc.features.aggregates import NO_NUMBER, Past
from fraud_poc.features.fold import Items, own_features
from fraud_poc.features.items import fold_arrays, key_column, key_names, read_items
from fraud_poc.features.rows import Row
from fraud_poc.features.sequences import AGGREGATES
from fraud_poc.features.state_files import features_folder, read_states
from fraud_poc.features.table import FeatureTable, Stepper, build_table, step_event, step_label

M32 = 0xFFFFFFFF
NO_ENTITY, TOO_LATE_AND_LATE = 16, 4 | 8  # flags, written out: the oracle takes nothing from the fold
KEPT_CATEGORIES = 8  # events whose categories are kept for "same as last"
DECAYS = 8  # half-lives after which an event is left out


# --- the naive oracle -------------------------------------------------------------------------------------------------


class NaiveEntity:
    "All that was ever known of one entity, as lists, and the rules of the design read literally."

    def __init__(self, settings: Settings, scale: int):
        self.settings, self.bounds, self.scale = settings, settings.features, scale
        self.exact, self.retention = self.bounds.exact_events, duration_ms(self.bounds.retention)
        self.forget_all()

    def forget_all(self) -> None:
        self.known = []  # (ts, amount, tag, keys) by (time, sequence)
        self.labels = {}  # (ts, tag) -> label
        self.sets = {}  # column -> {key: (first seen, last seen)}
        self.overflow = False
        self.born = None  # time of the event that came first

    @property
    def newest(self) -> int:
        return self.known[-1][0]

    def split(self) -> tuple[list, list]:
        "The recent events by (time, sequence), and the older ones."
        return self.known[-self.exact :], self.known[: -self.exact]

    def remember(self, column: str, key: int, t: int) -> None:
        "First and last time of each value; the longest unseen is dropped when there are too many."
        if key == 0:
            return
        values = self.sets.setdefault(column, {})
        first, last = values.get(key, (t, t))
        values[key] = (min(first, t), max(last, t))
        if len(values) > self.bounds.set_size:
            del values[min(values, key=lambda k: (values[k][1], k))]
            self.overflow = True

    def label(self, ts: int, tag: int, label: int) -> None:
        if self.known and ts > self.born - self.retention:
            self.labels[ts, tag] = label

    def take_in(self, t: int, amount: int, tag: int, keys: dict, columns: set[str]) -> None:
        "An event, after it was read; `columns` are those of sets."
        if not self.known:
            self.born = t
        insort(self.known, (t, amount, tag, keys), key=itemgetter(0))
        for column in columns:
            self.remember(column, keys[column], t)


def members(entity: NaiveEntity, row: Row, t: int, over: str) -> list[tuple[int, int | None, int]]:
    """(time, amount or None, label) of what a row's group ranges over, the window `over` or its half-life.

    None for a label whose event is not among the recent ones. A tile's events have the time of its middle.
    """
    recent, old = entity.split()
    labelled = [(ts, amount, entity.labels.get((ts, tag), -1)) for ts, amount, tag, keys in recent]
    delay = duration_ms(row.delay) if row.delay else 0
    until = t - delay
    if row.last:
        return [m for m in labelled if m[0] <= until][-row.last :]
    among = {(ts, tag) for ts, amount, tag, keys in recent}
    older = [(ts, amount, -1) for ts, amount, tag, keys in old]
    older += [(ts, None, label) for (ts, tag), label in entity.labels.items() if (ts, tag) not in among]
    if over == "lifetime":
        return older + [m for m in labelled if m[0] <= until]
    window = DECAYS * duration_ms(row.half_life) if row.half_life else duration_ms(over)
    width = max(window // (32 if row.half_life else 16), math.ceil((window + delay) / 64))
    reach = ((entity.newest if entity.known else 0) // width) - ((window + delay) // width + 2)
    rounded = [(ts // width * width + width // 2, amount, label) for ts, amount, label in older if ts // width > reach]
    return [m for m in rounded + labelled if until - window < m[0] <= until]


def past_of(entity: NaiveEntity, row: Row, t: int, amount: int, keys: dict) -> Past:
    "What the naive definition of a row may look at."
    recent, _ = entity.split()
    before = [event for event in recent if event[0] <= t]
    group = members(entity, row, t, row.over) if row.over and row.kind != "Distinct" or row.last else []
    longer = members(entity, row, t, row.of) if row.of else []
    decays = members(entity, row, t, "") if row.half_life else []
    values = entity.sets.get(row.column, {})
    in_reach = recent[-KEPT_CATEGORIES:]
    kept = before and before[-1] in in_reach
    return Past(
        t=t,
        amount=amount,
        scale=entity.scale,
        key=keys.get(row.column, 0),
        number=row.n or row.last,
        q=row.q,
        window=duration_ms(row.over) if row.over not in ("", "lifetime") else 0,
        amounts=tuple(amount for _, amount, _ in group if amount is not None),
        longer_window=duration_ms(row.of) if row.of else 0,
        longer=tuple(amount for _, amount, _ in longer if amount is not None),
        half_life=duration_ms(row.half_life) if row.half_life else 0,
        ages=tuple((t - time, amount) for time, amount, _ in decays if amount is not None),
        labels=tuple(label for *_, label in group if label >= 0),
        recent=tuple(event[:2] for event in before),
        first=entity.known[0][0] if entity.known else None,
        values=tuple((key, first, last) for key, (first, last) in values.items()),
        previous=before[-1][3].get(row.column, 0) if kept else 0,
        kept=tuple(event[3].get(row.column, 0) for event in before[-row.last :] if row.last and event in in_reach),
    )


def naive_flags(entity: NaiveEntity, rows: list[Row], t: int) -> int:
    "New 1, capped 2, late 4."
    if not entity.known:
        return 1
    reaches = []
    for row in rows:
        if row.over not in ("", "lifetime") and row.kind != "Distinct":
            reaches.append(duration_ms(row.of or row.over) + (duration_ms(row.delay) if row.delay else 0))
        if row.half_life:
            reaches.append(DECAYS * duration_ms(row.half_life))
    old = [event[0] for event in entity.split()[1]]
    capped = entity.overflow or bool(old and max(old) > t - max(reaches, default=0))
    return 2 * capped + 4 * (t < entity.newest)


def _features_of_entity(
    entity: NaiveEntity | None, rows: list[Row], history: list[Row], item: dict
) -> tuple[dict[Row, float], int]:
    "Features of one event's entity, and flags; `history` are all rows of the entity's states."
    t, amount, keys = item["t"], item["amount"], item["keys"]
    if entity is None:
        return dict.fromkeys(rows, math.nan), NO_ENTITY
    if entity.known and t - entity.newest >= duration_ms(entity.bounds.forget_after):
        entity = NaiveEntity(entity.settings, entity.scale)
    if entity.known and t <= entity.newest - entity.retention:
        return dict.fromkeys(rows, math.nan), TOO_LATE_AND_LATE
    values = {row: AGGREGATES[row.kind].naive(past_of(entity, row, t, amount, keys)) for row in rows}
    return values, naive_flags(entity, history, t)


def _take_event_in(entity: NaiveEntity, history: list[Row], item: dict) -> None:
    "The entity takes an event in, unless it is too late."
    if entity.known and item["t"] - entity.newest >= duration_ms(entity.bounds.forget_after):
        entity.forget_all()
    if entity.known and item["t"] <= entity.newest - entity.retention:
        return
    sets = {row.column for row in history if row.kind in ("Distinct", "KnownBefore")}
    entity.take_in(item["t"], item["amount"], item["tag"], item["keys"], sets)


def place_of(columns: str, keys: dict[str, int]) -> tuple[int, ...]:
    "The values of a column, or of a pair of columns; empty when one is missing."
    values = tuple(keys[column] for column in columns.split("+"))
    return values if all(values) else ()


def naive_readers(settings: Settings, rows: list[Row]) -> list[tuple[str, str]]:
    "Whose histories are read: (history, columns it is looked up by), in the order of the flags."
    found = list(dict.fromkeys((row.history, row.by) for row in rows if row.by))
    keys = {row.history: row.key for row in rows if row.by}
    entities = settings.columns.entities
    histories = list(dict.fromkeys(history for history, _ in found))
    histories = sorted(histories, key=lambda by: entities.index(by) if by in entities else len(entities))
    looked_up = [pair for by in histories for pair in found if pair[0] == by and keys[by] != pair[1]]
    return [(by, keys[by]) for by in histories] + looked_up


@dataclass(frozen=True)
class Domain:
    "Settings, and by column of a number how many decimals it is kept with: read once for a stream."

    settings: Settings
    decimals: dict[str, int]


def domain_of(settings: Settings) -> Domain:
    columns = settings.columns
    derived = {name: one.kind.decimals for name, one in read_derived(settings.features.derived, columns).items()}
    return Domain(settings, derived | {columns.amount: columns.decimals} | columns.measured)


@cache
def tree_of(text: str) -> ast.AST:
    "An expression, read by Python."
    return ast.parse(text, mode="eval").body


def plain_value(node: ast.AST, item: dict, domain: Domain) -> Fraction | float | bool | str | None:
    "The value of a part of an expression: exact, or a float behind a division; None = missing."
    value = lambda part: plain_value(part, item, domain)
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, (str, bool)) else Fraction(repr(node.value))
    if isinstance(node, ast.Name):
        return plain_column(node.id, item, domain)
    if isinstance(node, ast.BoolOp):
        found, decides = [value(part) for part in node.values], isinstance(node.op, ast.Or)
        return decides if decides in found else None if None in found else not decides
    if isinstance(node, ast.Compare):
        left, right = value(node.left), [value(part) for part in getattr(node.comparators[0], "elts", node.comparators)]
        compare = COMPARE[type(node.ops[0])]
        if left is None or None in right:
            return None
        return compare(left, right if isinstance(node.ops[0], ast.In) else right[0])
    if isinstance(node, ast.UnaryOp):
        inner = value(node.operand)
        return None if inner is None else not inner if isinstance(node.op, ast.Not) else -inner
    if isinstance(node, ast.BinOp):
        left, right = value(node.left), value(node.right)
        if left is None or right is None or isinstance(node.op, ast.Div) and not right:
            return None
        if isinstance(node.op, ast.Div):
            return float(left) / float(right)
        return {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}[type(node.op)](left, right)
    return plain_call(node, value)


COMPARE = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda left, right: left in right,
}


def plain_call(node: ast.Call, value) -> Fraction | float | bool | None:
    "The value of a function."
    name = node.func.id
    if name == "where":
        condition = value(node.args[0])
        return None if condition is None else value(node.args[1 if condition else 2])
    found = [value(part) for part in node.args]
    if name == "is_missing":
        return found[0] is None
    if None in found:
        return None
    if name in ("hour", "weekday"):
        moment = datetime(1970, 1, 1) + timedelta(milliseconds=int(found[0] * 1000))
        return Fraction(moment.hour if name == "hour" else moment.weekday())
    if name == "round":
        return plain_round(found[0], int(found[1]))
    return {"abs": abs, "min": min, "max": max}[name](*found)


def plain_round(number: Fraction | float, decimals: int) -> Fraction:
    "Half to even."
    scaled = number * 10**decimals
    return Fraction(round(scaled), 10**decimals)


def plain_column(name: str, item: dict, domain: Domain) -> Fraction | bool | str | None:
    "The value of a column, of the data or derived."
    columns, bits = domain.settings.columns, item["keys"].get(name, 0)
    if name == columns.time:
        return Fraction(item.get("t", item.get("ts")), 1000)
    if name == columns.amount:
        return Fraction(item["amount"], 10**columns.decimals)
    if name in domain.settings.features.derived:
        return derived_value(name, item, domain)
    if not bits:
        return None
    number = Fraction(bits - 1, 2)
    if name in columns.flags:
        return bool(number)
    if name in columns.vocabularies:
        return [*columns.vocabularies[name], "other"][int(number)]
    return number / 10 ** columns.measured[name]


@cache
def function_of(text: str) -> tuple:
    "The function of `module:function`, not compiled, and its types."
    module, _, word = text.partition(":")
    function = getattr(importlib.import_module(module), word)
    return function, get_type_hints(function)


def called(text: str, item: dict, domain: Domain) -> Fraction | float | bool | None:
    "What a function gives in plain Python; an error and a number that is not finite are missing."
    (function, hints), given = function_of(text), {}
    for column, hint in hints.items():
        value = plain_column(column, item, domain) if column != "return" else 0
        if value is None and NoneType not in get_args(hint):
            return None
        if isinstance(value, str):
            value = [*domain.settings.columns.vocabularies[column], "other"].index(value)
        elif isinstance(value, Fraction):
            whole = value * 10 ** (3 if column == domain.settings.columns.time else domain.decimals[column])
            value = float(value) if float in (hint, *get_args(hint)) else int(whole)
        given[column] = value
    del given["return"]
    try:
        result = function(**given)
    except (ArithmeticError, ValueError):
        return None
    if isinstance(result, float):
        return result if math.isfinite(result) else None
    return Fraction(result) if type(result) is int else result


def derived_value(name: str, item: dict, domain: Domain) -> Fraction | bool | None:
    "The value of a derived column: a real is rounded to four decimals, and what is too large is missing."
    text = domain.settings.features.derived[name]
    value = called(text, item, domain) if ":" in text else plain_value(tree_of(text), item, domain)
    if isinstance(value, float):
        value = plain_round(value, 4)
    if value is None or isinstance(value, bool):
        return value
    return value if abs(value) * 10 ** domain.decimals[name] <= 2**36 else None


def units_of(name: str, item: dict, domain: Domain) -> tuple[int, int]:
    "A number, or a condition, in its smallest unit, NO_NUMBER where it is missing; and how many of them are one."
    known = name in domain.decimals  # else a condition, which is kept as 0 or 1
    value = plain_column(name, item, domain) if known else plain_value(tree_of(name), item, domain)
    decimals = domain.decimals.get(name, 0)
    if isinstance(value, str):
        value = [*domain.settings.columns.vocabularies[name], "other"].index(value)
    return NO_NUMBER if value is None else int(value * 10**decimals), 10**decimals


def own_past(domain: Domain, row: Row, item: dict) -> Past:
    "What the definition of a feature of the event alone may look at."
    if row.value:
        value = plain_column(row.column, item, domain)
        return Past(t=item["t"], amount=NO_NUMBER if value is None else int(value == row.value), scale=1)
    amount, scale = units_of(row.column or domain.settings.columns.amount, item, domain)
    return Past(t=item["t"], amount=amount, scale=scale)


def enters(domain: Domain, row: Row, item: dict) -> bool:
    "Whether an event, or a label's event, belongs to the history of a row."
    if row.number and units_of(row.number, item, domain)[0] == NO_NUMBER:
        return False
    return not row.where or row.kind == "Streak" or plain_value(tree_of(row.where), item, domain) is True


def naive_features(settings: Settings, rows: list[Row], items: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (events, features) float64 and flags (events, entities) of a stream, from scratch.

    Keys are compared as the fold compares them, signed: of values last seen at one moment, a full set drops the one
    with the smallest key.
    """
    entities, vectors, all_flags, domain = {}, [], [], domain_of(settings)
    readers = naive_readers(settings, rows)
    of_history = {by: [row for row in rows if row.history == by] for by, _ in readers}
    key_of = {by: mine[0].key for by, mine in of_history.items()}
    number_of = {by: mine[0].number or settings.columns.amount for by, mine in of_history.items()}
    labelled = {by for by, mine in of_history.items() if any(row.kind.startswith("Fraud") for row in mine)}
    blank = {"t": 0, "amount": 0, "keys": {}}
    scales = {by: units_of(name, blank, domain)[1] for by, name in number_of.items()}
    for item in items:
        item = item | {"keys": {name: (key + 2**63) % 2**64 - 2**63 for name, key in item["keys"].items()}}
        known = {}
        for by, columns in readers:
            if place := place_of(columns, item["keys"]):
                known[by, columns] = entities.setdefault((by, place), NaiveEntity(settings, scales[by]))
        own_states = [(by, known[by, key]) for by, key in key_of.items() if (by, key) in known]
        if "label" in item:
            own_states = [(by, entity) for by, entity in own_states if by in labelled]
        own_states = [(by, entity) for by, entity in own_states if enters(domain, of_history[by][0], item)]
        if "label" in item:
            for _, entity in own_states:
                entity.label(item["ts"], item["tag"], item["label"])
            continue
        values = {row: float(AGGREGATES[row.kind].naive(own_past(domain, row, item))) for row in rows if not row.by}
        flags = []
        for by, columns in readers:
            mine = [row for row in of_history[by] if row.by == columns]
            numbered = item | {"amount": units_of(number_of[by], item, domain)[0]}
            of_entity, flag = _features_of_entity(known.get((by, columns)), mine, of_history[by], numbered)
            values |= of_entity
            flags.append(flag)
        for by, entity in own_states:
            numbered = item | {"amount": units_of(number_of[by], item, domain)[0]}
            _take_event_in(entity, of_history[by], numbered)
        vectors.append([values[row] for row in rows])
        all_flags.append(flags)
    return np.array(vectors, np.float64).reshape(-1, len(rows)), np.array(all_flags, np.uint8)


def naive_of_history(settings: Settings, by: str, items: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (events, features of one history) and flags (events, its readers) of the items of some of its keys.

    Histories are independent of each other, and so are keys, so that a long stream can be worked out in pieces.
    by="" gives the features that need no entity.
    """
    return naive_features(settings, [row for row in build_table(settings).rows if row.history == by], items)


# --- logs -------------------------------------------------------------------------------------------------------------


def _tables(settings: Settings, items: list[dict], first: int) -> tuple[pa.Table, pa.Table]:
    "Events and labels of a stretch of a stream whose first item has number `first`."
    columns, schemas = settings.columns, (event_schema(settings.columns), label_schema(settings.columns))
    tables = []
    for schema, is_label in zip(schemas, (False, True)):
        found = [(seq, item) for seq, item in enumerate(items, first) if ("label" in item) == is_label]
        time = [item["ts" if is_label else "t"] for _, item in found]
        data = {
            "seq": [seq for seq, _ in found],
            "id": [str(item["tag"]) for _, item in found],
            "time": pa.array(time, pa.int64()).cast(time_type()),
            "id_key": pa.array([item["tag"] | (item["tag"] + 1) % 2**31 << 32 for _, item in found], pa.uint64()),
        }
        if is_label:
            data |= {name: [item[name] for _, item in found] for name in ("label", "previous")}
            data["known"] = pa.array([item.get("known", item["ts"] + 1) for _, item in found], pa.int64()).cast(
                time_type()
            )
        else:
            data[columns.amount] = [item["amount"] for _, item in found]
            data |= {
                name: [str(item["keys"][name]) if item["keys"][name] else None for _, item in found]
                for name in columns.kept
            }
        for name in columns.kept_with_labels if is_label else columns.kept:
            data[f"{name}_key"] = pa.array([item["keys"][name] for _, item in found], pa.uint64())
        tables.append(pa.table([pa.array(data[field.name], field.type) for field in schema], schema=schema))
    return tuple(tables)


def write_log(settings: Settings, items: list[dict], part_items: int | list[int] = 10**9) -> None:
    """Write, or append to, a log that holds a stream in just this order.

    A part holds so many items, or ends at the given places.
    """
    folder = Path(settings.batch.folder)
    path = folder / LOG / "manifest.json"
    manifest = (
        read_manifest(folder)
        if path.exists()
        else {
            "format": LOG_FORMAT,
            "domain": settings.domain.name,
            "columns": settings.columns.model_dump(),
            "next_seq": 0,
            "parts": [],
            "ingests": [],
        }
    )
    cuts = part_items if isinstance(part_items, list) else list(range(part_items, len(items), part_items))
    for start, stop in zip([0, *cuts], [*cuts, len(items)]):
        if start == stop:
            continue
        first = manifest["next_seq"]
        manifest["parts"].append(
            write_log_part(folder / LOG, len(manifest["parts"]), *_tables(settings, items[start:stop], first))
        )
        manifest["next_seq"] = first + stop - start
    write_json(path, manifest)


def log_items(folder: Path, columns: ColumnsSection) -> list[dict]:
    "The stream that a log holds, in sequence order."
    items = []
    for part in read_manifest(folder)["parts"]:
        found = []
        for kind, names, time in [("events", columns.kept, "t"), ("labels", columns.kept_with_labels, "ts")]:
            table = pq.read_table(part_path(folder, kind, part["name"]))
            keys = [dict(zip(names, row)) for row in zip(*(table[f"{name}_key"].to_pylist() for name in names))]
            rest = (
                {"amount": table[columns.amount].to_pylist()}
                if kind == "events"
                else {name: table[name].to_pylist() for name in ("label", "previous")}
            )
            fields = {
                time: table["time"].cast(pa.int64()).to_pylist(),
                "tag": [key & M32 for key in table["id_key"].to_pylist()],
                **rest,
                "keys": keys,
            }
            found += [
                (seq, dict(zip(fields, values))) for seq, values in zip(table["seq"].to_pylist(), zip(*fields.values()))
            ]
        items += [item for _, item in sorted(found, key=lambda pair: pair[0])]
    return items


# --- the two ways of the project --------------------------------------------------------------------------------------


def of_batch(settings: Settings) -> tuple[np.ndarray, np.ndarray, dict]:
    """What `compute_features` left.

    Vectors (events, features) float32, flags (events, entities), states by (entity, key).
    """
    table = build_table(settings)
    folder, parts = features_folder(settings, table), read_manifest(settings.batch.folder)["parts"]
    rows = pa.concat_tables([pq.read_table(folder / "parts" / f"{part['name']}.parquet") for part in parts])
    vectors = np.stack([rows[name].to_numpy() for name in table.names], 1)
    flags = (
        np.stack([rows[f"flags_{reader.name}"].to_numpy() for _, reader in table.readers], 1)
        if table.readers
        else np.zeros((len(rows), 0), np.uint8)
    )
    assert vectors.dtype == np.float32 and (np.diff(rows["seq"].to_numpy()) > 0).all()
    states = {
        (entity.by, key): state
        for entity in table.entities
        for found in read_states(settings, table, entity.by)
        for key, state in zip(found["key"].to_pylist(), found["state"].to_pylist())
    }
    return vectors, flags, states


def stepped(table: FeatureTable, items: list[dict], progress=lambda done: None) -> tuple[np.ndarray, np.ndarray, dict]:
    "The same, event by event through packed bytes, as the live path does it."
    stepper, states, vectors, all_flags = Stepper(table), {}, [], []
    for number, item in enumerate(items):
        keys = table.with_pairs(item["keys"])
        at = [(table.entities[e].by, keys[reader.by]) for e, reader in table.readers]
        before = [states.get(place, b"") for place in at]
        if "label" in item:
            after = step_label(stepper, item["ts"], item["tag"], item["label"], item["previous"], before, item["keys"])
        else:
            vector, flags, after = step_event(stepper, item["t"], item["tag"], item["amount"], item["keys"], before)
            vectors.append(vector)
            all_flags.append(flags)
        own = zip(at[: len(table.entities)], after)
        states.update((place, data) for place, data in own if place[1] and data)
        if number % 1000 == 0:
            progress(number)
    n = len(vectors)
    return (
        np.array(vectors, np.float32).reshape(n, len(table.rows)),
        np.array(all_flags, np.uint8).reshape(n, len(table.readers)),
        states,
    )


def float64_of_log(settings: Settings) -> np.ndarray:
    "Features (events, features) of a log in float64, by the same fold in memory. The files hold them as float32."
    table, folder = build_table(settings), settings.batch.folder
    names = [part["name"] for part in read_manifest(folder)["parts"]]
    wanted = ["time", settings.columns.amount, *key_names(*table.calculation.inputs)]
    events = pa.concat_tables([read_part(folder, "events", name, wanted) for name in names])
    time, amount = events["time"].cast(pa.int64()).to_numpy(), events[settings.columns.amount].to_numpy()
    vectors = np.full((len(events), len(table.rows)), np.nan)
    values = table.calculation.values(time, amount, partial(key_column, events))
    own_features(table.own, values, time, vectors)
    for entity in table.entities:
        slices = [read_items(folder, name, entity, settings.columns.amount) for name in names]
        items = Items(
            *(np.concatenate([getattr(found.items, field) for found in slices], axis=-1) for field in Items._fields)
        )
        keys, is_event = (
            np.concatenate([found.entity for found in slices]),
            np.concatenate([found.row for found in slices]) >= 0,
        )
        assert keys.all(), "an event without its entity: leave it out first"
        order, out, *_ = fold_arrays(entity, keys, items, np.float64)
        number = np.cumsum(is_event) - 1  # of the event among events, in sequence order
        assert not entity.has_readers
        vectors[np.ix_(number[order][is_event[order]], entity.places)] = out[is_event[order]]
    return vectors


# --- comparing --------------------------------------------------------------------------------------------------------


def differing(expected: np.ndarray, got: np.ndarray) -> np.ndarray:
    "Where two arrays of vectors differ in any bit of their float32 values: (m, 2) places of event and feature."
    assert expected.shape == got.shape, (expected.shape, got.shape)
    bits = [np.ascontiguousarray(values, np.float32).view(np.uint32) for values in (expected, got)]
    return np.argwhere(bits[0] != bits[1])


def assert_same(table: FeatureTable, expected: tuple, got: tuple, what: str) -> None:
    "Vectors, flags and, where both have them, states are the same; else say which event, which feature, which values."
    places = differing(expected[0], got[0])
    assert not len(places), f"{what}: {len(places)} values differ, first " + "; ".join(
        f"event {i} {table.names[f]}: {expected[0][i, f]!r} and {got[0][i, f]!r}" for i, f in places[:3]
    )
    places = np.argwhere(expected[1] != got[1])
    assert not len(places), f"{what}: {len(places)} flags differ, first " + "; ".join(
        f"event {i} {table.readers[e][1].name}: {expected[1][i, e]} and {got[1][i, e]}" for i, e in places[:3]
    )
    if len(expected) < 3 or len(got) < 3:
        return
    wrong = [place for place in expected[2].keys() | got[2].keys() if expected[2].get(place) != got[2].get(place)]
    assert not wrong, (
        f"{what}: {len(wrong)} states differ, first {min(wrong)}: "
        f"{expected[2].get(min(wrong))} and {got[2].get(min(wrong))}"
    )
