"""A customer is erased: nothing leads to them, others' features keep their bits, and a failed run can be completed."""

import asyncio
import json
import shutil
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from support.scoring_worker import small_engine
from support.waiting import STORE

from fraud_poc.core.audit import list_audit, verify_audit
from fraud_poc.core.database import open_database, read_checkpoint, signed, unsigned, writing
from fraud_poc.core.events import PERSON, Actor, key_of, occurrence_of, pair_key
from fraud_poc.core.files import read_json, sole_use, write_json, write_parquet
from fraud_poc.core.reading import EventReader
from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.data.ingest import ingest
from fraud_poc.data.log import LOG_FORMAT, hash_secret, read_manifest, read_part
from fraud_poc.data.sample import make_data
from fraud_poc.desk.tables import cases, notes
from fraud_poc.features.batch import compute_features
from fraud_poc.features.items import features_of_arrays
from fraud_poc.features.state_files import features_folder, read_states
from fraud_poc.features.table import build_table
from fraud_poc.live.collect import collect, verify_log
from fraud_poc.live.decide import Engine
from fraud_poc.live.labels import LabelAssertion, LabelResult, LabelWriter, Retraction, UnknownEvent, find_in_batch_log
from fraud_poc.live.load import base_of, inspect_store, prepare_db
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import server_for
from fraud_poc.live.redis_store import Names, open_store
from fraud_poc.live.store import STORE_FORMAT, decode_entry, encode_entry, next_digest, state_key
from fraud_poc.model.dataset import make_dataset, read_split
from fraud_poc.ops import erasure_files, erasure_live
from fraud_poc.ops import forget as forgetting
from fraud_poc.ops.backup import backup, verify_backup
from fraud_poc.ops.erasure_files import shows_customer
from fraud_poc.ops.erasure_plan import (
    ERASURES,
    JOURNAL,
    PSEUDONYM_PREFIX,
    WORKING,
    CustomerSearch,
    EventKeys,
    make_plan,
)
from fraud_poc.ops.forget import forget, forget_again
from fraud_poc.ops.replay import NO_HISTORY, borrowed, recorded, send_recorded, verify
from fraud_poc.ops.restore import restore

ORDERS = Path(__file__).resolve().parents[1] / "config" / "orders.toml"
ROWS = [
    'Count(by=["customer_id", "email", "ip_addr"], over=["1h", "30d"])',
    'Mean("order_amount", by="customer_id", over=["7d", "lifetime"])',
    'Distinct("ip_addr", by="customer_id", over="lifetime")',
    'Distinct("customer_id", by=["ip_addr", "device"], over=["7d", "lifetime"])',
    'Distinct("email", by="ip_addr", over="lifetime")',
    'KnownBefore(["email", "device"], by="customer_id")',
    'KnownBefore("customer_id", by="email")',
    'SameAsLast(["customer_id", "location"], by="ip_addr")',
    'FraudCount(by=["customer_id", "ip_addr", "device"], over="lifetime")',
    'FraudRate(by="ip_addr", over="90d")',
    'Count(by="customer_id+email", over=["30d", "lifetime"])',
]
HASHED = ["customer_id", "email", "ip_addr", "device", "location"]
CUTS = 0.6, 0.9  # of the orders: history, then live, then the rest
DAY = 86_400_000


def settings_in(folder: Path, **changes) -> Settings:
    return load_settings(
        ORDERS,
        {
            "features.rows": ROWS,
            "sample.orders": 900,
            "sample.customers": 96,
            "sample.days": 60,
            "sample.fraud_rate": 0.1,
            "batch.folder": str(folder),
            "batch.part_rows": 300,
            "live.store_timeout": STORE,
            "live.durability": "always",
            "input.events": "",
            "input.labels": "",
        }
        | changes,
    )


@dataclass
class Shop:
    "History in the log, orders in a live store, decisions in a database; and orders that are still to come."

    folder: Path
    rest: list[dict]
    customer: str  # who shares an address, and ordered both in history and live
    mine: tuple[str, str]  # ids of two orders of theirs: of history, and live
    others: tuple[str, str]  # of another customer

    @property
    def settings(self) -> Settings:
        return settings_in(self.folder / "b")

    def copy(self, to: Path) -> "Shop":
        shutil.copytree(self.folder, to, ignore=shutil.ignore_patterns("redis.sock", "*.lock", "url"))
        return Shop(to, self.rest, self.customer, self.mine, self.others)


async def score_all(settings: Settings, url: str, orders: list[dict], labels: dict[str, int]) -> list:
    "Score orders, and learn their labels; the answers."
    reader, answers = EventReader(settings, hash_secret(settings.batch.folder)), []
    async with open_store(settings, url) as store:
        engine = small_engine(settings, store)
        for order in orders:
            event = reader.read_dict(order)
            answers.append(await engine.decide(event))
            assert answers[-1].degraded is None
            if order["order_id"] in labels:
                change = LabelAssertion(
                    event.id, labels[event.id] == 1, settings.labels.source, event.time + 86_400_000, time=event.time
                )
                await LabelWriter(engine, reader.secret).assert_label(change, NOW)
    return answers


NOW = 1_790_000_000_000  # when all labels are asserted, UTC ms


def assert_labels_on(settings: Settings, url: str, assertions: list[tuple]) -> list[LabelResult | None]:
    "Assert labels: order, fraud, source, note, perhaps known; the results, None = the order is unknown."
    secret = hash_secret(settings.batch.folder)

    async def one(engine, order: str, fraud: bool, source: str, note: str = "", known: int | None = None):
        try:
            return await LabelWriter(engine, secret).assert_label(
                LabelAssertion(order, fraud, source, known, note, Actor(PERSON, "bo")), NOW
            )
        except UnknownEvent:
            return None

    async def run() -> list:
        async with open_store(settings, url) as store:
            engine = Engine(settings, None, store)
            return [await one(engine, *assertion) for assertion in assertions]

    return asyncio.run(run())


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Shop:
    folder = tmp_path_factory.mktemp("forget")
    settings = settings_in(folder / "b")
    make_data(settings, folder / "raw")
    table = pa.concat_tables(
        [pq.read_table(path) for path in sorted((folder / "raw" / "orders").rglob("*.parquet"))]
    ).sort_by("order_date")
    given = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "raw" / "labels").rglob("*.parquet"))])
    rows = [
        {name: str(value) if name == "order_date" else value for name, value in row.items()}
        for row in table.to_pylist()
    ]
    rows = [row | {"order_date": row["order_date"].replace("+00:00", "Z")} for row in rows]
    cuts = [int(share * len(rows)) for share in CUTS]
    shutil.rmtree(folder / "raw")
    pq.write_table(table.slice(0, cuts[0]), folder / "history.parquet")
    known = {row["order_id"] for row in rows[: cuts[0]]}
    ordered = dict(
        zip(table["order_id"].to_pylist(), table["order_date"].to_pylist())
    )  # labels come after two days, so that this short history makes a training set
    due = pa.array(
        [ordered[ident] + timedelta(days=2) for ident in given["order_id"].to_pylist()],
        given.schema.field("known_at").type,
    )
    given = given.set_column(given.column_names.index("known_at"), "known_at", due)
    pq.write_table(
        given.filter(pa.array([ident in known for ident in given["order_id"].to_pylist()])), folder / "labels.parquet"
    )
    ingest(settings, str(folder / "history.parquet"), str(folder / "labels.parquet"))
    for path in (folder / "history.parquet", folder / "labels.parquet"):
        path.unlink()
    compute_features(settings)
    frame = table.to_pandas()
    users = lambda name: frame.groupby(name)["customer_id"].transform("nunique")
    crowd = frame[(users("ip_addr") > 1) & (users("email") == 1)]
    both = (
        set(frame["customer_id"][: cuts[0]])
        & set(frame["customer_id"][cuts[0] : cuts[1]])
        & set(frame["customer_id"][cuts[1] :])
    )
    customer = crowd[crowd["customer_id"].isin(both)].groupby("customer_id").size().idxmax()
    pick = lambda some, same: next(row["order_id"] for row in some if (row["customer_id"] == customer) == same)
    mine, others = ((pick(rows[: cuts[0]], same), pick(rows[cuts[0] : cuts[1]], same)) for same in (True, False))
    frauds = {
        ident: value for ident, value in zip(given["order_id"].to_pylist(), given["is_fraud"].to_pylist()) if value == 1
    }
    for ident in (mine[1], others[1]):
        frauds.pop(ident, None)  # these are spoken of below
    frauds |= {[row["order_id"] for row in rows[cuts[0] : cuts[1]] if row["customer_id"] == customer][-1]: 1}
    assert mine[1] not in frauds
    with server_for(settings) as url:
        prepare_db(settings, url)
        asyncio.run(score_all(settings, url, rows[cuts[0] : cuts[1]], frauds))
        first = [
            (ident, fraud, source, note)
            for ident, note in zip((*others, *mine), ("likely", "", "rang at noon", ""))
            for fraud, source in ((True, "customer"), (False, "rule"))
        ]
        results = assert_labels_on(
            settings,
            url,
            [*first, (others[0], True, "analyst", f"same phone as {customer}."), (mine[1], False, "chargeback")],
        )
        assert None not in results and {one.changed for one in results} == {False, True}
    return Shop(folder, rows[cuts[1] :], customer, mine, others)


@pytest.fixture
def shop(template, tmp_path) -> Shop:
    return template.copy(tmp_path / "s")


def log_of(settings: Settings, kind: str = "events") -> pa.Table:
    return pa.concat_tables(
        [read_part(settings.batch.folder, kind, part["name"]) for part in read_manifest(settings.batch.folder)["parts"]]
    )


def store_of(settings: Settings, url: str) -> tuple[dict[bytes, bytes], list]:
    "States of the generation in use, without tokens; the live log."
    names = Names(settings.domain.name)
    with Client(url) as client:
        prefix = names.states(inspect_store(client, names).meta.generation)
        keys = [key for key in client.call("KEYS", "*") if key.startswith(prefix)]
        return (
            {key[len(prefix) :]: value[8:] for key, value in zip(keys, client.call("MGET", *keys))},
            [(number, decode_entry(fields[1])) for number, fields in client.call("XRANGE", names.log, "-", "+")],
        )


def left_by(shop: Shop, settings: Settings) -> tuple[list[bytes], dict[str, set[int]], dict[str, set[int]]]:
    """What must not be found of the customer afterwards, as bytes.

    And the keys of values, by column: those that only they used, and those that others used too.
    """
    secret, log = hash_secret(settings.batch.folder), log_of(settings).to_pylist()
    with server_for(settings) as url:
        live = [json.loads(entry.body) for _, entry in store_of(settings, url)[1] if entry.kind == "event"]
    rows = [{"order_id": row["id"]} | {name: row[name] for name in HASHED} for row in log] + live
    mine, others = ([row for row in rows if (row["customer_id"] == shop.customer) == same] for same in (True, False))
    texts = {name: {row[name] for row in mine} for name in HASHED}
    shared = {name: {row[name] for row in others} & texts[name] for name in HASHED}
    alone = list(
        dict.fromkeys(
            [text for name in HASHED for text in texts[name] - shared[name]] + [row["order_id"] for row in mine]
        )
    )
    found = [text.encode() for text in alone]
    for key in (key_of(text, secret) for text in alone):
        found += [
            key.to_bytes(8, "little"),
            key.to_bytes(8, "big"),
            str(key).encode(),
            str(signed(key)).encode(),
            f"{key:x}".encode(),
        ]
    hashed = lambda texts: {name: {key_of(text, secret) for text in values} for name, values in texts.items()}
    return found, hashed({name: texts[name] - shared[name] for name in HASHED}), hashed(shared)


def spread_out(values) -> bytes:
    "All values of rows, texts and numbers and bytes, one after the other."
    return b"\n".join(
        value if isinstance(value, bytes) else str(value).encode()
        for row in values
        for value in (row.values() if isinstance(row, dict) else row)
    )


def assert_nothing_left(settings: Settings, gone: list[bytes], url: str) -> None:
    "No file and nothing in the store holds any of some bytes; the digests of the live log are those of what is left."
    for path in settings.batch.folder.rglob("*"):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if path.suffix == ".parquet":
            data += spread_out(pq.read_table(path).to_pylist())
        assert not [text for text in gone if text in data], f"{path} holds what should be gone"
    with Client(url) as client:
        for key in client.call("KEYS", "*"):
            kind = client.call("TYPE", key)
            read = {
                b"string": lambda: client.call("GET", key),
                b"stream": lambda: b"".join(b"".join(fields) for _, fields in client.call("XRANGE", key, "-", "+")),
                b"set": lambda: b"",
                b"zset": lambda: b"".join(client.call("ZRANGE", key, 0, -1)),
            }
            data = key + read[kind]()
            assert not [text for text in gone if text in data], f"the store's {key!r} holds what should be gone"
    assert verify_log(settings, url)["without_digest"] == 0


def customer_and_email(entries: list, events: pa.Table) -> list[list[tuple[str, int]]]:
    "Column and key of the customer and of the email of each entry and event."
    found = [entry.keys[:2] for _, entry in entries]
    found += zip(*(events[f"{name}_key"].to_pylist() for name in HASHED[:2]))
    return [list(zip(HASHED[:2], keys)) for keys in found]


def new_keys(before: pa.Table, after: pa.Table, columns: list[str]) -> dict[tuple[str, int], int]:
    "Old key -> new key, by column, from two logs of the same rows."
    return {
        (name, old): new
        for name in columns
        for old, new in zip(before[f"{name}_key"].to_pylist(), after[f"{name}_key"].to_pylist())
    }


def states_of(settings: Settings) -> dict:
    "States in the folder."
    table = build_table(settings)
    return {
        (e.by, key): state
        for e in table.entities
        for t in read_states(settings, table, e.by)
        for key, state in zip(t["key"].to_pylist(), t["state"].to_pylist())
    }


def features_in(settings: Settings) -> list[bytes]:
    "All features, by column."
    found = pa.concat_tables(
        [
            pq.read_table(path)
            for path in sorted((features_folder(settings, build_table(settings)) / "parts").glob("*.parquet"))
        ]
    )
    return [column.to_numpy().tobytes() for column in found.columns]


def bring_in(settings: Settings, url: str, trim: bool = False) -> dict:
    "Take the live log into the batch log, and fill the store with it."
    summary = collect(settings, url)
    compute_features(settings)
    prepare_db(settings, url, trim=summary["next_seq"] if trim else 0)
    return summary


def assert_same_but_for_names(old, new, mapping: dict[tuple[str, int], int], entities: list[str]) -> None:
    "Two stores, as of store_of, hold the same; the customer's states, label histories and entries under new keys."
    for (number, one), (same, other) in zip(old[1], new[1], strict=True):
        assert (
            number == same
            and other.keys == tuple(mapping[name, key] for name, key in zip(HASHED, one.keys))
            and other.id_key == mapping["id", one.id_key]
        )
        if one.id_key == other.id_key:
            assert one == msgspec.structs.replace(other, body=one.body) and (
                one.body == other.body or json.loads(other.body) == json.loads(one.body) | {"note": ""}
            )
        else:
            assert all(
                getattr(one, name) == getattr(other, name)
                for name in ("kind", "time", "amount", "label", "previous", "known", "at", "took")
            )
        assert (one.decision == other.decision) if one.kind == "label" else (one.decision[16:] == other.decision[16:])
    moved = {
        state_key(e, mapping["ledger" if e == 255 else entities[e], int.from_bytes(key[1:], "little")]): state
        for key, state in old[0].items()
        for e in [key[0]]
    }
    assert moved.keys() == new[0].keys() and sum(key[0] == 255 for key in moved) >= 3
    assert all(new[0][key] == state for key, state in moved.items() if key[0] == 255)
    changed = {key for key, state in new[0].items() if moved[key] != state}
    assert changed and {key for key in changed if key[0] == 0} <= {
        state_key(0, now) for (name, key), now in mapping.items() if name == "customer_id" and key != now
    }


@pytest.mark.parametrize("collected", [False, True])
def test_nothing_of_the_customer_is_left_and_the_bits_of_others_are_the_same(template, shop, tmp_path, collected):
    settings, other, mine, others = shop.settings, template.copy(tmp_path / "o").settings, shop.mine, shop.others
    if collected:  # the live log is in the batch log, and what is still to come is spoken of anew
        more = [
            (mine[0], True, "analyst", "rang again"),
            (others[1], True, "chargeback", f"see {mine[1]}"),
            (mine[1], False, "analyst"),
            (others[0], False, "chargeback"),
        ]
        with server_for(settings) as url:
            assert bring_in(settings, url, trim=True)["assertions"] == 15
            assert None not in assert_labels_on(settings, url, more)
            asyncio.run(score_all(settings, url, shop.rest[:5], {}))
        shutil.rmtree(tmp_path / "o")
        other = shop.copy(tmp_path / "o").settings
    (gone, own, shared), before, features = left_by(shop, settings), log_of(settings), features_in(settings)
    secret, table = hash_secret(settings.batch.folder), build_table(settings)
    assert own["email"] and shared["ip_addr"]
    summary = forget(settings, shop.customer)
    assert (
        summary["replaced"]["email"] == len(own["email"])
        and summary["shared"]["ip_addr"] == len(shared["ip_addr"])
        and summary["live"]["entries"]
        and summary["live"]["records"]
    )
    assert bool(summary["log"]["assertions"]) == collected and summary["completed"] == []
    with server_for(settings) as url, server_for(other) as untouched:
        assert_nothing_left(settings, [*gone, b"rang at noon", b"rang again"], url)
        new, old = store_of(settings, url), store_of(other, untouched)
        mapping = {
            (name, key): now
            for (_, one), (_, two) in zip(old[1], new[1])
            for name, key, now in zip(["id", *HASHED], [one.id_key, *one.keys], [two.id_key, *two.keys])
        }
        after = log_of(settings)
        mapping |= new_keys(before, after, HASHED) | {
            ("id", key): now for key, now in zip(before["id_key"].to_pylist(), after["id_key"].to_pylist())
        }
        ids, times = (
            ([entry.id_key for _, entry in old[1]] + before["id_key"].to_pylist()),
            [entry.time for _, entry in old[1]] + before["time"].cast(pa.int64()).to_pylist(),
        )
        was, now = (
            occurrence_of(np.array(some, np.uint64), np.array(times)).tolist()
            for some in (ids, [mapping["id", key] for key in ids])
        )
        mapping |= {("ledger", one): other for one, other in zip(was, now)}
        pairs = [[mapping[name, key] for name, key in at] for at in customer_and_email(old[1], before)]
        for at, renamed in zip(customer_and_email(old[1], before), pairs):
            mapping["customer_id+email", pair_key(at[0][1], at[1][1])] = pair_key(*renamed)
        assert_same_but_for_names(old, new, mapping, [entity.by for entity in table.entities])
        assert all(
            state_key([e.by for e in table.entities].index(name), value) in new[0]
            for name in ("email", "ip_addr", "device")
            for value in shared[name]
        )
        # the store, filled anew from the log, is the store
        prepare_db(settings, url)
        assert store_of(settings, url)[0] == new[0]
        # what comes next gets the same answers; but the customer is new
        own_rest, rest = (
            [row for row in shop.rest[5:] if (row["customer_id"] == shop.customer) == same] for same in (True, False)
        )
        answers, expected = (asyncio.run(score_all(s, u, rest, {})) for s, u in ((settings, url), (other, untouched)))
        assert [msgspec.to_builtins(a) for a in answers] == [msgspec.to_builtins(a) for a in expected] and len(
            answers
        ) > 50
        # and so do assertions: on the orders of others as ever, of the forgotten ones under their new names only
        renamed = {row: now for row, now in zip(before["id"].to_pylist(), after["id"].to_pylist())}
        names = [
            next(
                json.loads(e.body)["order"]
                for _, e in new[1]
                if e.kind == "label" and e.id_key == mapping["id", key_of(ident, secret)] and e.body
            )
            for ident in mine
        ]
        assert (
            mine[0] in renamed
            and renamed[mine[0]] == names[0]
            and all(name.startswith(PSEUDONYM_PREFIX) for name in names)
        )
        assertions = lambda ids: [
            (ident, fraud, source)
            for ident in ids
            for fraud, source in ((True, "chargeback"), (False, "analyst"), (True, "customer"))
        ]
        result, known = (
            assert_labels_on(settings, url, assertions([*others, *names])),
            assert_labels_on(other, untouched, assertions([*others, *mine])),
        )
        fields = lambda some: [
            (r.label, r.previous, r.known_before or r.position, r.changed, r.known_before) for r in some
        ]
        assert fields(result) == fields(known) and sum(r.changed for r in result) >= 2
        assert (
            assert_labels_on(settings, url, assertions(mine)) == [None] * 6
            and not forget(settings, shop.customer, url)["orders"]
        )
        # batch goes on without rejecting anything, also with what came since
        assert compute_features(settings)["new_events"] == 0 and base_of(settings, table)
        for s, u in ((settings, url), (other, untouched)):
            assert bring_in(s, u)["assertions"] > 4
        assert [column[: len(old)] for column, old in zip(features_in(settings), features)] == features and features_in(
            settings
        ) == features_in(other) != features
        ledgers = [
            find_in_batch_log(s, [key_of(ident, secret) for ident in ids], 10**9)
            for s, ids in ((settings, [*others, *names]), (other, [*others, *mine]))
        ]
        assert {mapping["id", key]: order.history for key, (order,) in ledgers[1].items()} == {
            key: order.history for key, (order,) in ledgers[0].items()
        } and len(ledgers[0]) == 4
        assert_nothing_left(settings, gone, url)
        assert [
            asyncio.run(score_all(s, u, own_rest[:1], {}))[0].entities["customer_id"] == "new"
            for s, u in ((settings, url), (other, untouched))
        ] == [True, False]
    # and anew it makes the same features and states
    held, features = states_of(settings), features_in(settings)
    compute_features(settings, replace=True)
    assert features_in(settings) == features and states_of(settings) == held


# --- crashes and races ------------------------------------------------------------------------------------------------


class Dead(BaseException):
    pass


def dies(monkeypatch, module, name: str, call: int, after: bool) -> None:
    "The process dies at the n-th call of a function, before or after its work."
    function, calls = getattr(module, name), []

    def dying(*args, **kwargs):
        calls.append(name)
        if len(calls) == call and not after:
            raise Dead
        result = function(*args, **kwargs)
        if len(calls) == call:
            raise Dead
        return result

    monkeypatch.setattr(module, name, dying)


def consistent(settings: Settings) -> None:
    "The log's checksums are right, text and key belong together, states in store and folder are those of the log."
    secret, table = hash_secret(settings.batch.folder), build_table(settings)
    assert compute_features(settings)["new_events"] == 0 and base_of(settings, table)
    for row in log_of(settings).to_pylist():
        assert row["id_key"] == key_of(row["id"], secret) and all(
            row[name] is None or row[f"{name}_key"] == key_of(row[name], secret) for name in HASHED
        )
    states_in = lambda: {
        (e.by, key): state
        for e in table.entities
        for t in read_states(settings, table, e.by)
        for key, state in zip(t["key"].to_pylist(), t["state"].to_pylist())
    }
    held = states_in()
    with server_for(settings) as url:
        store = store_of(settings, url)[0]
        prepare_db(settings, url)
        assert store_of(settings, url)[0] == store
    compute_features(settings, replace=True)
    assert states_in() == held


@pytest.mark.parametrize(
    "module, step, call, after",
    [
        (erasure_live, "copy_log", 1, True),
        (forgetting, "erase_live", 1, True),
        (erasure_files, "rewrite_file", 2, True),
        (erasure_files, "rewrite_states", 2, True),
        (forgetting, "update_base", 1, False),
    ],
)
def test_a_run_that_died_is_completed_by_the_next(shop, monkeypatch, module, step, call, after):
    settings = shop.settings
    gone, own, _ = left_by(shop, settings)
    with monkeypatch.context() as patch:
        dies(patch, module, step, call, after)
        with pytest.raises(Dead):
            forget(settings, shop.customer)
    journal = settings.batch.folder / WORKING / JOURNAL
    assert journal.exists() and shop.customer.encode() not in journal.read_bytes()
    began = step != "copy_log"  # after the step in the store, orders of the customer are a new customer's
    if began:
        mine = [row for row in shop.rest if row["customer_id"] == shop.customer][:1]
        with server_for(settings) as url:
            assert asyncio.run(score_all(settings, url, mine, {}))[0].entities["customer_id"] == "new"
    summary = forget(settings, shop.customer)
    assert (
        len(summary["completed"]) == began
        and summary["orders"] == (1 if began else summary["orders"])
        and not journal.exists()
    )
    with server_for(settings) as url:
        assert_nothing_left(settings, gone, url)
    consistent(settings)


def test_orders_that_arrive_meanwhile_are_erased_or_a_new_customers(shop, monkeypatch):
    settings = shop.settings
    mine, others = (
        [row for row in shop.rest if (row["customer_id"] == shop.customer) == same] for same in (True, False)
    )
    gone, results = left_by(shop, settings)[0], []
    with server_for(settings) as url:
        scored = []
        search, apply, rewrite = forgetting.search_customer, erasure_live.apply_in_store, forgetting.rewrite_log

        def searched(*args):
            found = search(*args)
            if len(scored) == 0:
                scored.extend(
                    asyncio.run(score_all(settings, url, [mine[0] | {"email": "seen@while.example"}], {}))
                )  # after the search: it is done again
            return found

        def applied(*args):
            if len(scored) == 1:
                scored.extend(
                    asyncio.run(score_all(settings, url, others[:20], {}))
                )  # after the copy: copied by the script, states read again
            elif len(results) == 0:
                results.extend(
                    assert_labels_on(settings, url, [(shop.others[1], True, "chargeback", f"see {shop.customer}")])
                )  # a note: all is done again
            return apply(*args)

        def rewritten(*args):
            if len(results) == 1:
                results.extend(
                    assert_labels_on(
                        settings, url, [(shop.mine[0], True, "chargeback", "late"), (shop.mine[1], True, "chargeback")]
                    )
                )  # after the step
            return rewrite(*args)

        monkeypatch.setattr(forgetting, "search_customer", searched)
        monkeypatch.setattr(erasure_live, "apply_in_store", applied)
        monkeypatch.setattr(forgetting, "rewrite_log", rewritten)
        summary = forget(settings, shop.customer)
        assert (
            len(scored) == 21
            and len(summary["completed"]) == 1
            and [one is None for one in results] == [False, False, True]
        )  # the first of the late ones is about an order that the log still had
        assert_nothing_left(settings, [*gone, b"seen@while.example", mine[0]["order_id"].encode()], url)
        assert (
            asyncio.run(score_all(settings, url, [mine[0] | {"order_id": "later"}], {}))[0].entities["customer_id"]
            == "new"
        )
    consistent(settings)


def test_a_backup_of_before_is_restored_and_the_list_of_erasures_applied(shop, tmp_path):
    settings, restored = shop.settings, settings_in(tmp_path / "restored")
    open_database(settings).dispose()  # the decision writer of the restore fills it
    backup(settings, tmp_path / "backups", ORDERS, tmp_path / "secrets.json")
    gone = left_by(shop, settings)[0]
    orders = forget(settings, shop.customer)["orders"]
    restore(restored, tmp_path / "backups", tmp_path / "secrets.json")
    with server_for(restored) as url:
        with pytest.raises(AssertionError, match="what should be gone"):
            assert_nothing_left(restored, gone, url)
        summary = forget_again(restored, settings.batch.folder / ERASURES)
        assert summary["customers"] == summary["pending"] == 1 and summary["orders"] == orders > 0
        assert_nothing_left(restored, gone, url)
        assert forget_again(restored, settings.batch.folder / ERASURES)["customers"] == 0
    assert_nothing_left_in_list(settings, gone)


def assert_nothing_left_in_list(settings: Settings, gone: list[bytes]) -> None:
    "The list of erasures, which goes into backups, names nobody and is for its owner alone."
    path = settings.batch.folder / ERASURES
    assert not [text for text in gone if text in path.read_bytes()] and path.stat().st_mode & 0o077 == 0


# --- a log of format 2, where assertions are "statements" and what they assert is "said" ------------------------------


def live_entries(url: str) -> list[tuple[bytes, list[bytes]]]:
    with Client(url) as client:
        return client.call("XRANGE", Names("orders").log, "-", "+")


def rename_in_store(url: str) -> None:
    "Give the entries and the meta data of a store the names of format 2."
    names, digest = Names("orders"), b""
    entries = [(number, decode_entry(fields[1])) for number, fields in live_entries(url)]
    with Client(url) as client:
        client.call("DEL", names.log)
        for number, entry in entries:
            data = encode_entry(msgspec.structs.replace(entry, body=entry.body.replace(b'"asserted":', b'"said":')))
            digest = next_digest(digest, data)
            client.call("XADD", names.log, number, "e", data, "d", digest)
        meta = json.loads(client.call("GET", names.meta))
        client.call("SET", names.meta, json.dumps(meta | {"base": meta["base"] | {"format": 2}}))


def rename_in_log(folder: Path) -> list[Path]:
    "Give the batch log the names of format 2; the files of its assertions."
    manifest, paths = read_json(folder / "log" / "manifest.json"), []
    for name in ("parts", "collects"):
        for entry in manifest[name]:
            if "assertions" in entry:
                entry["statements"] = entry.pop("assertions")
    for path in sorted((folder / "log" / "assertions").iterdir()):
        table = pq.read_table(path).rename_columns({"asserted": "said"})
        write_parquet(folder / "log" / "statements" / path.name, table)
        paths.append(folder / "log" / "statements" / path.name)
    shutil.rmtree(folder / "log" / "assertions")
    write_json(folder / "log" / "manifest.json", manifest | {"format": 2})
    return paths


@pytest.fixture
def former(shop) -> tuple[Shop, list[Path]]:
    "A shop whose live log was written, and collected, by a version of format 2; the files of its assertions."
    with server_for(shop.settings) as url:
        rename_in_store(url)
        assert bring_in(shop.settings, url)["assertions"] == 15
    return shop, rename_in_log(shop.settings.batch.folder)


def assertions_of(settings: Settings) -> list[dict]:
    "All label assertions of the batch log."
    parts = [part for part in read_manifest(settings.batch.folder)["parts"] if part.get("assertions")]
    return [row for part in parts for row in read_part(settings.batch.folder, "assertions", part["name"]).to_pylist()]


def histories(settings: Settings, orders: tuple[str, ...]) -> list[dict]:
    "Label histories in the batch log of some orders, and by position what was asserted of them."
    secret = hash_secret(settings.batch.folder)
    found = find_in_batch_log(settings, [key_of(order, secret) for order in orders], 10**9)
    return [{"history": one.history, "assertions": one.assertions} for events in found.values() for one in events]


def replayed(settings: Settings) -> dict:
    "What a replay of the whole log differs in, as `fraud-poc replay --verify` does it."
    table = build_table(settings)

    async def drive(own: Settings, url: str) -> dict:
        async with open_store(own, url) as store:
            writer = LabelWriter(small_engine(own, store), hash_secret(own.batch.folder))
            await send_recorded([writer], recorded(own), at_once=1)
            return await verify(own, table, writer.engine)

    with borrowed(settings) as own, server_for(own) as url:
        compute_features(own, until=NO_HISTORY)
        prepare_db(own, url)
        return asyncio.run(drive(own, url))


def test_entries_of_format_2_keep_their_bytes_and_are_read(shop):
    settings, order = shop.settings, shop.others[1]
    with server_for(settings) as url:
        rename_in_store(url)
        before = live_entries(url)
        position = next(
            int(number.partition(b"-")[0])
            for number, fields in before
            if b'"said":1' in fields[1] and order.encode() in decode_entry(fields[1]).body
        )
        change = Retraction(order, position, "", Actor(PERSON, "bo"))

        async def retract() -> LabelResult:
            async with open_store(settings, url) as store:
                assert (await store.meta()).base["format"] == STORE_FORMAT == 3, "versions of format 2 refuse it now"
                writer = LabelWriter(small_engine(settings, store), hash_secret(settings.batch.folder))
                return await writer.assert_label(change, NOW)

        result = asyncio.run(retract())
        assert (result.previous, result.label) == (1, 0), "the customer's assertion goes, the rule's stays"
        *kept, (_, last) = live_entries(url)
        assert kept == before and b"said" not in last[1] and json.loads(decode_entry(last[1]).body)["asserted"] == 1
        assert verify_log(settings, url)["entries"] == len(before) + 1
        assert bring_in(settings, url)["assertions"] == 16
        rows = assertions_of(settings)
        assert {row["asserted"] for row in rows} == {0, 1} and rows[-1]["retracts"] == position


def test_a_batch_log_of_format_2_is_read_and_goes_on(former, template, tmp_path):
    (shop, paths), other = former, template.copy(tmp_path / "o").settings
    settings, orders = shop.settings, (*shop.mine, *shop.others)
    bytes_before = [path.read_bytes() for path in paths]
    with server_for(other) as url:
        bring_in(other, url)
    assert list(recorded(settings)) == list(recorded(other))
    assert assertions_of(settings) == assertions_of(other)
    assert len(histories(settings, orders)) == 4 and histories(settings, orders) == histories(other, orders)
    with server_for(settings) as url:
        assert assert_labels_on(settings, url, [(shop.others[1], False, "chargeback")])[0].changed
        assert bring_in(settings, url, trim=True)["assertions"] == 1
    assert [path.read_bytes() for path in paths] == bytes_before, "what was there stays"
    manifest = read_json(settings.batch.folder / "log" / "manifest.json")
    assert manifest["format"] == LOG_FORMAT == 3 and sum(part.get("assertions", 0) for part in manifest["parts"]) == 16
    assert not {"statements"} & {name for kind in ("parts", "collects") for one in manifest[kind] for name in one}
    assert len(list((settings.batch.folder / "log" / "assertions").iterdir())) == 1
    result = replayed(settings)
    assert result["labels"] > 16 and result["differing_bits"] == result["differing_states"] == 0


def test_a_customer_is_erased_from_a_log_of_format_2_which_is_backed_up_and_restored(former, tmp_path):
    (shop, paths), restored = former, settings_in(tmp_path / "restored")
    settings = shop.settings
    gone = left_by(shop, settings)[0]
    assert forget(settings, shop.customer)["log"]["assertions"] >= 5
    with server_for(settings) as url:
        assert_nothing_left(settings, [*gone, b"rang at noon"], url)
    assert all("said" in pq.read_schema(path).names for path in paths), "the names in a file stay"
    consistent(settings)
    open_database(settings).dispose()  # the decision writer of the restore fills it
    backup(settings, tmp_path / "backups", ORDERS, tmp_path / "secrets.json")
    assert verify_backup(tmp_path / "backups")
    restore(restored, tmp_path / "backups", tmp_path / "secrets.json")
    assert assertions_of(restored) == assertions_of(settings)
    assert read_manifest(restored.batch.folder) == read_manifest(settings.batch.folder)
    with server_for(restored) as url:
        assert bring_in(restored, url)["assertions"] == 0
        assert not forget(restored, shop.customer, url)["orders"]


# --- other places -----------------------------------------------------------------------------------------------------


def test_training_set_rejects_and_archived_logs(shop):
    chosen = {
        "training.test_days": 6,
        "training.delay": "3d",
        "training.train_days": 28,
        "training.validation_days": 8,
        "input.labels": "none",
    }
    settings = settings_in(shop.folder / "b", **chosen)
    columns = ["order_id", "order_date", "order_amount", *HASHED]
    wrong = [
        ["bad-1", "2025-01-02", "1", "", "", "", "", ""],
        [shop.customer, "2025-01-02", "-5", "x", "x", "x", "x", "x"],
        ["bad-2", "yesterday", "1", shop.customer, "x", "x", "x", "x"],
    ]
    lines = [",".join(columns), *map(",".join, wrong), f"bad-3,2025-01-02,{shop.customer}"]
    (shop.folder / "wrong.csv").write_text("\n".join(lines))
    assert ingest(settings, str(shop.folder / "wrong.csv"), "")["events_rejected"] >= 2
    compute_features(settings)
    made, gone = make_dataset(settings), left_by(shop, settings)[0]
    with server_for(settings) as url:
        prepare_db(settings, url, start_over=True)
    other = compute_features(settings_in(shop.folder / "b", **{"features.rows": ROWS[:3]}))["folder"]
    summary = forget(settings, shop.customer)
    assert (
        summary["archives"]["entries"]
        and summary["dataset"]["rows"]
        and summary["rejects"]["values"] == 1
        and summary["features"]["removed"] == [Path(other).name]
    )
    with server_for(settings) as url:
        assert_nothing_left(settings, gone, url)
    again = make_dataset(settings)
    assert (
        again["splits"] == made["splits"]
        and again["inputs"] != made["inputs"]
        and len(read_split(settings, "train").label) == made["splits"]["train"]["rows"]
    )


def test_a_tie_in_a_full_set_falls_as_before():
    settings = settings_in(
        Path("nowhere"),
        **{
            "features.set_size": 2,
            "features.rows": [
                'Distinct("customer_id", by="ip_addr", over=["1d", "lifetime"])',
                'KnownBefore("customer_id", by="ip_addr")',
            ],
            "acceptance.card": "customer_id",
        },
    )
    table, rng, n, differ = build_table(settings), np.random.default_rng(7), 240, 0
    for customer in range(1, 9):
        people = rng.integers(1, 9, n)
        code = rng.integers(0, 2**64, 9, np.uint64)
        keys = {name: np.full(n, 7, np.uint64) for name in HASHED} | {
            "customer_id": code[people],
            "ip_addr": rng.integers(1, 3, n).astype(np.uint64),
        }
        events = EventKeys(
            np.arange(1, n + 1, dtype=np.uint64), np.sort(rng.integers(0, 20, n)) * 3_600_000, keys
        )  # times in whole hours: many ties
        search = CustomerSearch(int(code[customer]))
        search.add_own(events, settings.columns)
        search.add_others(events, settings.columns)
        assert search.ties

        def features(new: int) -> bytes:
            columns = keys | {
                "time": events.time,
                "amount": np.ones(n, np.int64),
                "customer_id": np.where(people == customer, np.uint64(new), keys["customer_id"]),
            }
            return features_of_arrays(table, columns, np.float32)[people != customer].tobytes()

        plan, before = make_plan(search, settings.columns, bytes(32)), features(int(code[customer]))
        assert features(plan.key("customer_id", int(code[customer]))) == before
        differ += sum(features(int(rng.integers(1, 2**64 - 1, dtype=np.uint64))) != before for _ in range(4))
    assert differ  # any random key would not do


@pytest.mark.parametrize(
    "length, end, shown",
    [
        (100, ",abc", True),
        (99, ",abc", False),
        (100, ",ab", False),
        (100, ",bcd", False),
        (250, ",xyz", True),
        (9, ",xyz", True),
        (9, ",yz", False),
    ],
)
def test_a_rejected_line_that_was_cut_shows_the_beginning_of_a_text(length, end, shown):
    "Where ingest cut a line after 100 characters, three are enough to know a text by; two may be anything."
    texts = {"email": {"abcdef"}, "device": {"xyz"}}
    assert shows_customer("", end.rjust(length, "-"), texts) == shown
    assert (
        shows_customer("device", "xyz", texts)
        and not shows_customer("email", "xyz", texts)
        and not shows_customer("", "", texts)
    )


def test_what_is_rejected(shop, monkeypatch):
    settings = shop.settings
    with pytest.raises(ValueError, match="first of columns.entities"):
        forget(settings, "")
    with sole_use(settings.batch.folder / ".dataset"), pytest.raises(ValueError, match="another run"):
        forget(settings, shop.customer)
    with server_for(settings) as url, pytest.raises(ValueError, match="feature table"):
        forget(settings_in(shop.folder / "b", **{"features.rows": ROWS[:2]}), shop.customer, url)
    with pytest.raises(ConnectionError):
        forget(settings_in(shop.folder / "b", **{"live.redis_url": "redis://127.0.0.1:1/0"}), shop.customer)
    before = log_of(settings)
    assert forget(settings, "nobody at all")["orders"] == 0 and log_of(settings).equals(before)


# --- the database -----------------------------------------------------------------------------------------------------


def rows_of_database(database: sa.Engine) -> dict[str, list[dict]]:
    with database.connect() as connection:
        tables = sa.MetaData()
        tables.reflect(connection)
        return {
            name: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
            for name, table in tables.tables.items()
        }


@pytest.mark.filterwarnings("ignore:.*expression-based index")
def test_the_database_is_erased_too(shop, database_url):
    writer = pytest.importorskip("fraud_poc.desk.writer")
    EntryReader, follow, write_entries = writer.EntryReader, writer.follow_log, writer.write_entries
    settings = settings_in(shop.folder / "b", **{"database.url": database_url})
    reading, secret = (
        EntryReader(settings, lambda model, vectors, orders: [None] * len(orders)),
        hash_secret(settings.batch.folder),
    )

    async def write(url: str, database: sa.Engine):
        async with open_store(settings, url) as store:
            await follow(store, database, reading, asyncio.Event(), to_end=True)

    gone = left_by(shop, settings)[0]
    database = open_database(settings)
    with server_for(settings) as url:
        asyncio.run(write(url, database))
        before, mark = rows_of_database(database), read_checkpoint(database)
        mine = {row["id"] for row in before["decisions"] if row["customer"] == shop.customer}
        other = next(row["id"] for row in before["decisions"] if row["id"] not in mine)
        with writing(database) as connection:
            case = {
                "status": "open",
                "opened": 0,
                "review_priority": 1.0,
                "band": "high",
                "action": "review",
                "amount": 1,
                "time": 0,
            }
            connection.execute(sa.delete(cases))
            for number, note, customer in (
                (min(mine), "called", shop.customer),
                (other, f"see {shop.customer}, same phone", "x"),
            ):
                connection.execute(sa.insert(cases).values(decision_id=number, note=note, customer=customer, **case))
                connection.execute(sa.insert(notes).values(decision_id=number, note=note, at=0, by="bo"))
        # a portion that was read before, and is not yet written, is refused
        late = [row for row in shop.rest if row["customer_id"] == shop.customer][:1]
        asyncio.run(score_all(settings, url, late, {}))

        async def behind() -> list:
            async with open_store(settings, url) as store:
                return await store.entries(mark.position, 100)

        portion = asyncio.run(behind())
        summary = forget(settings, shop.customer, who="admin")
        assert (
            len(portion) == 1
            and write_entries(database, reading, mark, portion) != mark
            and summary["database"]["decisions"] == len(mine)
            and summary["database"]["notes"] >= 1
        )
        asyncio.run(write(url, database))
        assert_nothing_left(settings, [*gone, late[0]["order_id"].encode()], url)
    after = rows_of_database(database)
    for name, rows in after.items():
        data = spread_out(
            [{key: unsigned(value) if isinstance(value, int) else value for key, value in row.items()} for row in rows]
        ) + spread_out(rows)
        assert not [text for text in gone if text in data], f"table {name} holds what should be gone"
    assert [row for row in after["decisions"] if row["id"] not in mine][: len(before["decisions"]) - len(mine)] == [
        row for row in before["decisions"] if row["id"] not in mine
    ]
    assert (
        len(after["decisions"]) == len(before["decisions"]) + 1
        and len({row["customer"] for row in after["decisions"] if row["id"] in mine}) == 1
    )
    for row in after["decisions"]:
        assert unsigned(row["id_key"]) == key_of(row["order_id"], secret)
    keys = {(row["decision_id"], row["entity"]): unsigned(row["key"]) for row in after["links"]}
    assert all(keys[row["id"], "customer_id"] == key_of(row["customer"], secret) for row in after["decisions"])
    assert (
        {row["note"] for row in after["cases"]} == {""}
        and [(row["decision_id"], row["note"]) for row in after["notes"]] == [(other, "")]
        and list_audit(database)[-1]["who"] == "admin"
        and verify_audit(database)
    )
    database.dispose()
