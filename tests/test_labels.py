"""Label assertions: concurrent writers agree with a plain reading of the rule; log, states, batch and live agree."""

import asyncio
import io
import json
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support.scoring_worker import settings_in, small_engine
from support.waiting import STORE

from fraud_poc.core.database import open_database
from fraud_poc.core.events import KEY, PERSON, Actor, key_of, occurrence_of
from fraud_poc.core.reading import EventError, EventReader
from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.data.ingest import ingest
from fraud_poc.data.log import hash_secret, read_manifest, read_part
from fraud_poc.data.sample import make_data
from fraud_poc.features.batch import compute_features
from fraud_poc.features.label_delay import labels_before
from fraud_poc.features.label_history import (
    MAX_ASSERTIONS,
    SOURCES,
    LabelHistory,
    newest_by_source,
    with_assertion,
    without_assertion,
)
from fraud_poc.features.state_files import features_folder
from fraud_poc.features.table import build_table, step_event
from fraud_poc.live.collect import collect
from fraud_poc.live.decide import Engine, entity_keys, states_of_all
from fraud_poc.live.label_files import RowReader, assert_file, file_changes
from fraud_poc.live.labels import (
    LabelAssertion,
    LabelWriter,
    Retraction,
    UnknownEvent,
    find_in_batch_log,
    unpack_history,
)
from fraud_poc.live.load import base_of, inspect_store, prepare_db, step_entry
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import start_redis
from fraud_poc.live.redis_store import Names, open_store
from fraud_poc.live.store import Entry, MemoryStore, Meta, StoreDown, Write, decode_entry, encode_entry, event_key
from fraud_poc.model.dataset import read_labels
from fraud_poc.ops.replay import differing_states, fold_log
from fraud_poc.service.http import create_app
from fraud_poc.service.keys import new_key
from fraud_poc.service.scoring import KEY_HEADER

ORDERS = Path(__file__).resolve().parents[1] / "config" / "orders.toml"
ROWS = [
    'FraudCount(by=["customer_id", "ip_addr"], over="lifetime")',
    'FraudRate(by="ip_addr", over="90d")',
    'Count(by=["customer_id", "email"], over="30d")',
]
BANK = Actor(KEY, "bank")
DAY, START, NOW = 86_400_000, 1_743_465_600_000, 1_751_000_000_000  # the live orders' first day


def settings_of(folder: Path, **changes) -> Settings:
    return load_settings(
        ORDERS,
        {
            "features.rows": ROWS,
            "batch.folder": str(folder),
            "live.store_timeout": STORE,
            "sample.orders": 1_500,
            "sample.customers": 200,
            "sample.days": 40,
            "batch.part_rows": 900,
        }
        | changes,
    )


def order(number: int) -> dict:
    when = str(np.datetime64(START + number * 3_600_000, "ms"))
    return {
        "order_id": f"live{number}",
        "order_date": when,
        "order_amount": 10 + number / 4,
        "customer_id": f"c{number % 3}",
        "email": f"e{number % 5}@example.org",
        "ip_addr": f"192.0.2.{number % 2}",
        "device": "d1",
        "location": "Lyon",
    }


async def decide(learner: Engine, event) -> np.ndarray:
    "Take an order in as the engine does, without a model; its features."
    there, keys = entity_keys(learner.table, event.keys)
    while True:
        found = await learner.store.read(event_key(event.id_key), keys)
        whole = states_of_all(len(learner.table.readers), there, found.states)
        vector, _, after = step_event(
            learner.stepper, event.time, event.id_key & 0xFFFFFFFF, event.amount, event.keys, whole
        )
        entry = Entry(
            "event",
            event.time,
            event.id_key,
            tuple(event.keys.values()),
            amount=event.amount,
            decision=vector.tobytes(),
            body=event.body,
        )
        change = Write(
            event_key(event.id_key), b"", keys, found.versions, [after[e] for e in there], encode_entry(entry)
        )
        if (await learner.store.write(change)).kind in ("accepted", "known"):
            return vector


class Far:
    "A store that gives way to others between reading and writing."

    def __init__(self, store):
        self.store = store

    def __getattr__(self, name):
        return getattr(self.store, name)

    async def write(self, change):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return await self.store.write(change)


# --- the drill --------------------------------------------------------------------------------------------------------


def plainly(assertions: list[tuple[int, int, int]], priority: list[str]) -> int:
    """The rule, word by word.

    The most trusted source counts; of its assertions the one known last; of those of one moment the one that
    came last.
    """
    for name in priority:
        own = [
            (known, place, label) for place, (source, label, known) in enumerate(assertions) if SOURCES[source] == name
        ]
        if own:
            return max(own)[2]
    return -1


asserted = st.tuples(
    st.integers(0, 3), st.integers(0, 3), st.integers(0, 1), st.none() | st.integers(0, 5)
)  # order, source, label, days until it was known; None = now
words = st.lists(
    asserted | st.integers(0, 9), min_size=1, max_size=40
)  # a number: that one of the assertions is taken back


@examples(max_examples=60)
@given(words=words, writers=st.integers(1, 5), priority=st.permutations(SOURCES), again=st.booleans())
def test_writers_who_clash_agree_with_the_rule(tmp_path_factory, words, writers, priority, again):
    "Assertions, retractions and repeats of both, from several writers at once, against a plain reading of the rule."
    folder = tmp_path_factory.getbasetemp() / "drill"
    settings = settings_of(folder, **{"labels.priority": list(priority)})
    secret, table = hash_secret(folder), build_table(settings)
    reader, store = (
        EventReader(settings, secret, clock=lambda: NOW),
        MemoryStore(Meta("e", 1, table.hash, {"next_seq": 7})),
    )
    queue, written = iter(words + words[:5] * again), []

    def change_of(word) -> LabelAssertion | Retraction | None:
        if isinstance(word, tuple):
            return LabelAssertion(
                f"live{word[0]}",
                bool(word[2]),
                SOURCES[word[1]],
                None if word[3] is None else START + 4 * 3_600_000 + word[3] * DAY,
            )
        stand = [
            (one.order, result.position)
            for one, result in written
            if isinstance(one, LabelAssertion) and result.position is not None
        ]
        return Retraction(*stand[word % len(stand)]) if stand else None

    async def write(learner: Engine) -> None:
        for word in queue:
            if change := change_of(word):
                written.append((change, await LabelWriter(learner, secret).assert_label(change, NOW)))

    async def run() -> tuple[int, int]:
        learners = [Engine(settings, None, Far(store)) for _ in range(writers)]
        for number in range(4):
            await decide(learners[0], reader.read_dict(order(number)))
        await asyncio.gather(*map(write, learners))
        log = list(store.log)
        for change, _ in written:  # late, all once more: those with a time are known, the others may speak anew
            if isinstance(change, Retraction) or change.known is not None:
                assert (await LabelWriter(learners[0], secret).assert_label(change, NOW + 1)).known_before
        assert store.log == log
        return await differing_states(store, table, fold_log(table, settings.columns, entries(), {}))

    def entries() -> list[Entry]:
        return [decode_entry(data) for _, data in store.log]

    touched, different = asyncio.run(run())
    assert different == 0 and touched > 0
    agrees_with_the_rule(store, list(priority))
    assert all(
        result.changed == (result.label != result.previous) and (result.known_before or result.position is not None)
        for _, result in written
    )
    asyncio.run(rebuilt(settings, store, entries()))
    only_the_end_counts(settings, entries())


def agrees_with_the_rule(store: MemoryStore, priority: list[str]) -> None:
    "The labels of the log, from a plain reading of what stands."
    stand, retracted, labels = {}, {}, {}
    for seq, data in store.log:
        entry = decode_entry(data)
        if entry.kind == "event":
            continue
        body, mine = json.loads(entry.body), stand.setdefault(entry.id_key, {})
        if body["kind"] == "retract":
            retracted.setdefault(entry.id_key, []).append(mine.pop(body["retracts"]))
        else:
            mine[seq] = (SOURCES.index(body["source"]), body["asserted"], entry.known)
        assert entry.previous == labels.get(entry.id_key, -1) and entry.label == plainly(list(mine.values()), priority)
        assert unpack_history(entry.decision) == LabelHistory(
            entry.label, tuple(mine.values()), tuple(retracted.get(entry.id_key, ()))
        )
        labels[entry.id_key] = entry.label


def only_the_end_counts(settings: Settings, entries: list[Entry]) -> None:
    "States do not show what was asserted and taken back: they are those of the events and of the labels in the end."
    columns, stepper, last = settings.columns.hashed, Engine(settings, None, None).stepper, {}
    states, plain = {}, {}
    for entry in entries:
        step_entry(stepper, columns, entry, states)
    for entry in entries:
        if entry.kind == "event":
            step_entry(stepper, columns, entry, plain)
        else:
            last[entry.id_key] = entry
    for entry in last.values():
        step_entry(stepper, columns, Entry("label", entry.time, entry.id_key, entry.keys, label=entry.label), plain)
    assert {key: state for key, state in states.items() if key[0] != 255} == plain


async def rebuilt(settings: Settings, store: MemoryStore, entries: list[Entry]) -> None:
    "States and ledgers, stepped from the log one by one, are the store's, byte by byte."
    learner, states = Engine(settings, None, store), {}
    for entry in entries:
        step_entry(learner.stepper, settings.columns.hashed, entry, states)
    assert {key: value[0][8:] for key, value in store.held.items() if isinstance(key, bytes)} == states


def test_a_full_ledger_forgets_only_what_does_not_count():
    rng, priority = np.random.default_rng(7), list(SOURCES)
    for _ in range(20):
        history, assertions = LabelHistory(), []
        for _ in range(3 * MAX_ASSERTIONS):
            assertions.append((int(rng.integers(4)), int(rng.integers(2)), int(rng.integers(1_000))))
            history = with_assertion(history, assertions[-1], priority)
            assert history.label == plainly(assertions, priority) and len(history.assertions) <= MAX_ASSERTIONS
            if rng.random() < 0.2:
                item = history.assertions[int(rng.integers(len(history.assertions)))]
                history, assertions = (
                    without_assertion(history, item, priority),
                    [one for one in history.assertions if one != item],
                )
                assert history.label == plainly(assertions, priority) and len(history.retracted) <= MAX_ASSERTIONS
        assert {
            source: history.assertions[place] for source, place in newest_by_source(history.assertions).items()
        } == {source: assertions[place] for source, place in newest_by_source(assertions).items()}


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    "A folder with history and features, and a server that runs as long as the tests of this file."
    folder = tmp_path_factory.mktemp("shop")
    settings = settings_of(folder / "orders")
    make_data(settings, folder / "raw")
    ingest(settings, str(folder / "raw" / "orders"), str(folder / "raw" / "labels"))
    compute_features(settings)
    with start_redis(folder / "redis") as server:
        yield settings, server.url, folder


def copy_of(shop, tmp_path: Path) -> tuple[Settings, str]:
    "The shop's folder, copied, and a store filled from it that nobody used."
    import shutil

    settings, url, _ = shop
    shutil.copytree(settings.batch.folder, tmp_path / "orders")
    with Client(url) as client:
        client.call("FLUSHALL")
    own = settings_of(tmp_path / "orders")
    prepare_db(own, url)
    return own, url


def contents(settings: Settings, url: str) -> dict[bytes, bytes]:
    "All states and ledgers of the generation in use, without tokens."
    names = Names(settings.domain.name)
    with Client(url) as client:
        prefix = names.states(inspect_store(client, names).meta.generation)
        keys = [key for key in client.call("KEYS", names.root + b"*") if key.startswith(prefix)]
        return {key[len(prefix) :]: value[8:] for key, value in zip(keys, client.call("MGET", *keys))}


def ids_of_history(settings: Settings) -> list[str]:
    return read_part(settings.batch.folder, "events", read_manifest(settings.batch.folder)["parts"][0]["name"])[
        "id"
    ].to_pylist()[:30]


async def live_day(settings: Settings, url: str, numbers: range, served: dict, seed: int) -> int:
    "Live orders and assertions from two connections at once; how many assertions were taken."
    secret, rng, old = hash_secret(settings.batch.folder), np.random.default_rng(seed), ids_of_history(settings)
    reader, taken, queue = EventReader(settings, secret), 0, iter(numbers)

    async def work(learner: Engine) -> None:
        nonlocal taken
        for number in queue:
            served[f"live{number}"] = await decide(learner, reader.read_dict(order(number)))
            for about in (f"live{rng.integers(number + 1)}", old[rng.integers(len(old))]):
                assertion = LabelAssertion(
                    about,
                    bool(rng.integers(2)),
                    SOURCES[rng.integers(4)],
                    START + int(rng.integers(60, 80)) * DAY,
                    "by the test",
                    Actor(KEY, "somebody"),
                )
                there = about in served or about in old
                try:
                    result = await LabelWriter(learner, secret).assert_label(assertion)
                except UnknownEvent:
                    assert not there, about
                else:
                    taken += not result.known_before
                if there and rng.random() < 0.3:
                    back = await LabelWriter(learner, secret).assert_label(Retraction(about, result.position))
                    taken += not back.known_before

    async with open_store(settings, url) as one, open_store(settings, url) as other:
        await asyncio.gather(*[work(Engine(settings, None, store)) for store in (one, other) for _ in range(3)])
    return taken


def computed(settings: Settings, after: int) -> dict[str, np.ndarray]:
    "Features of live orders by batch."
    table, found = build_table(settings), {}
    for part in read_manifest(settings.batch.folder)["parts"][after:]:
        features = pq.read_table(features_folder(settings, table) / "parts" / f"{part['name']}.parquet")
        ids = read_part(settings.batch.folder, "events", part["name"])["id"].to_pylist()
        found |= dict(zip(ids, np.stack([features[name].to_numpy() for name in table.names], 1)))
    return found


def test_what_was_live_comes_home_to_the_bit(shop, tmp_path):
    settings, url = copy_of(shop, tmp_path)
    history, served = read_manifest(settings.batch.folder), {}
    taken = asyncio.run(live_day(settings, url, range(80), served, 1))
    before = contents(settings, url)
    assert prepare_db(settings, url)["replayed"] == 80 + taken and contents(settings, url) == before, (
        "rebuilt from the log: the same states and ledgers"
    )

    def dies(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(settings, url, dies)
    assert read_manifest(settings.batch.folder) == history
    first = collect(settings, url)
    assert (first["events"], first["first_seq"]) == (80, history["next_seq"]) and collect(settings, url)["parts"] == 0
    assert prepare_db(settings, url)["replayed"] == 80 + taken and contents(settings, url) == before, (
        "parts without features change nothing"
    )
    compute_features(settings)
    more = asyncio.run(live_day(settings, url, range(80, 120), served, 2))  # between features and prepare-db
    epoch = prepare_db(settings, url, trim=first["next_seq"])
    assert epoch["replayed"] == 80 + taken + 40 + more - (first["next_seq"] - first["first_seq"])
    asyncio.run(live_day(settings, url, range(120, 150), served, 3))
    second = collect(settings, url)
    compute_features(settings)
    batch = computed(settings, len(history["parts"]))
    assert batch.keys() == served.keys() and first["events"] + second["events"] == len(served)
    assert all(batch[name].tobytes() == vector.tobytes() for name, vector in served.items())
    again = prepare_db(settings, url, trim=second["next_seq"])
    assert again["epoch"] == epoch["epoch"] and again["trimmed"] > 0
    parts = read_manifest(settings.batch.folder)["parts"]
    assert all(one["next_seq"] == other["first_seq"] for one, other in zip(parts, parts[1:]))


def test_sources_are_remembered_after_the_way_home(shop, tmp_path):
    settings, url = copy_of(shop, tmp_path)
    secret, old = hash_secret(settings.batch.folder), ids_of_history(settings)[0]
    reader = EventReader(settings, secret)

    async def speak(*changes: LabelAssertion) -> list[int]:
        async with open_store(settings, url) as store:
            learner = Engine(settings, None, store)
            for number in range(3):
                await decide(learner, reader.read_dict(order(number)))
            return [(await LabelWriter(learner, secret).assert_label(one)).label for one in changes]

    day = lambda number: START + number * DAY
    labels = asyncio.run(
        speak(
            LabelAssertion("live1", True, "analyst", day(2), "odd", Actor(PERSON, "ann")),
            LabelAssertion("live1", False, "customer", day(3)),
            LabelAssertion("live2", False, "analyst", day(2)),
            LabelAssertion("live2", True, "chargeback", day(30)),
        )
    )
    assert labels == [1, 1, 0, 1]
    before, state = read_manifest(settings.batch.folder), contents(settings, url)
    collect(settings, url)
    # a training set sees what was known at its cut-off
    parts = read_manifest(settings.batch.folder)["parts"]
    known = read_labels(settings.batch.folder, read_manifest(settings.batch.folder), START, day(60))
    key = next(decode_entry_id(settings, part, "live2") for part in parts[len(before["parts"]) :])
    key = int(occurrence_of(np.array([key], np.uint64), np.array([START + 2 * 3_600_000]))[0])
    label_at = lambda moment: dict(zip(*labels_before(*known, moment)[:2])).get(key, -1)
    assert [label_at(day(number)) for number in (1, 2, 3, 30, 31)] == [-1, -1, 0, 0, 1]
    compute_features(settings)
    prepare_db(settings, url, trim=10**9)
    assert not any(key[0] == 255 for key in contents(settings, url)), "ledgers begin in the batch log now"
    assert {key: value for key, value in contents(settings, url).items()} == {
        key: value for key, value in state.items() if key[0] != 255
    }
    # the customer's word is still there when the analyst takes hers back, and the chargeback still overrules
    assert asyncio.run(
        speak(
            LabelAssertion("live1", False, "analyst", day(40)),
            LabelAssertion("live2", False, "analyst", day(41)),
            LabelAssertion("live1", True, "analyst", day(2)),
        )
    ) == [0, 1, 0]
    with Client(url) as client:
        last = decode_entry(client.call("XREVRANGE", Names("orders").log, "+", "-", "COUNT", 1)[0][1][1])
    assert [SOURCES[source] for source, _, _ in unpack_history(last.decision).assertions] == [
        "analyst",
        "chargeback",
        "analyst",
    ]
    found = find_in_batch_log(settings, [read_key(settings, old)], before["next_seq"])
    assert {source for source, *_ in found[read_key(settings, old)][-1].history.assertions} <= {
        SOURCES.index(settings.labels.source)
    }


def forget_records(settings: Settings, url: str) -> None:
    "As after `live.same_id_for`: the store no longer remembers which ids it has seen."
    names = Names(settings.domain.name)
    with Client(url) as client:
        records = names.records(inspect_store(client, names).meta.epoch)
        client.call("DEL", *[key for key in client.call("KEYS", names.root + b"*") if key.startswith(records)])


def after_changes(settings: Settings, url: str, *changes: LabelAssertion | Retraction) -> list:
    "What comes of assertions and retractions, or the error."

    async def run() -> list:
        found = []
        async with open_store(settings, url) as store:
            learner = Engine(settings, None, store)
            for one in changes:
                try:
                    found.append(await LabelWriter(learner, hash_secret(settings.batch.folder)).assert_label(one))
                except (UnknownEvent, EventError) as error:
                    found.append(error)
        return found

    return asyncio.run(run())


def scored(settings: Settings, url: str, *orders: dict) -> list[np.ndarray]:
    async def run() -> list:
        async with open_store(settings, url) as store:
            learner, reader = Engine(settings, None, store), EventReader(settings, hash_secret(settings.batch.folder))
            return [await decide(learner, reader.read_dict(one)) for one in orders]

    return asyncio.run(run())


def test_a_label_that_comes_late_finds_its_order_after_collect(shop, tmp_path):
    settings, url = copy_of(shop, tmp_path)
    scored(settings, url, order(0), order(1))
    (early,) = after_changes(settings, url, LabelAssertion("live1", False, "customer"))
    forget_records(settings, url)
    (lost,) = after_changes(settings, url, LabelAssertion("live0", True, "chargeback"))
    assert isinstance(lost, UnknownEvent) and "collect" in str(lost)
    collect(settings, url)
    late, again, before, back = after_changes(
        settings,
        url,
        LabelAssertion("live0", True, "chargeback"),
        LabelAssertion("live1", True, "chargeback"),
        LabelAssertion("live1", False, "customer"),
        Retraction("live1", early.position),
    )
    assert (
        (late.label, late.previous) == (1, -1)
        and (again.label, again.previous) == (1, 0)
        and before.known_before
        and not back.known_before
        and back.label == 1
    )
    held = contents(settings, url)
    prepare_db(settings, url)
    assert contents(settings, url) == held, "rebuilt from the log: the same states and ledgers"
    collect(settings, url)
    compute_features(settings)
    prepare_db(settings, url, trim=10**9)
    (last,) = after_changes(settings, url, Retraction("live0", late.position))  # also when its assertion is home
    assert (last.label, last.previous) == (-1, 1)


def test_an_id_that_comes_again_has_labels_of_its_own(shop, tmp_path):
    "Live, collected, rebuilt, in batch and in training sets: what is known of an order is not known of its namesake."
    settings, url = copy_of(shop, tmp_path)
    first, second = (
        order(0),
        order(0)
        | {"order_date": str(np.datetime64(START + 60 * DAY, "ms")), "customer_id": "c9", "ip_addr": "192.0.2.9"},
    )
    key, before = read_key(settings, "live0"), len(read_manifest(settings.batch.folder)["parts"])
    served = scored(settings, url, first)
    (fraud,) = after_changes(settings, url, LabelAssertion("live0", True, "chargeback", START + 5 * DAY))
    collect(settings, url)
    forget_records(settings, url)
    served += scored(settings, url, second)
    own, older, none = after_changes(
        settings,
        url,
        LabelAssertion("live0", False, "analyst"),
        LabelAssertion("live0", True, "analyst", START + 6 * DAY),
        LabelAssertion("live0", True, "analyst", START - DAY),
    )
    assert (
        (own.label, own.previous) == (0, -1)
        and (older.label, older.previous) == (1, 1)
        and isinstance(none, EventError)
    )
    (timed,) = after_changes(
        settings, url, LabelAssertion("live0", True, "customer", START + 70 * DAY, time=START)
    )  # as a label that waited: known later than the namesake
    assert (timed.label, timed.previous) == (1, 1)
    (back,) = after_changes(settings, url, Retraction("live0", fraud.position))
    assert (back.label, back.previous) == (1, 1)
    with Client(url) as client:
        entries = [decode_entry(fields[1]) for _, fields in client.call("XRANGE", Names("orders").log, "-", "+")]
    assert [
        ((entry.time - START) // DAY, entry.previous, entry.label) for entry in entries if entry.kind == "label"
    ] == [(0, -1, 1), (60, -1, 0), (0, 1, 1), (0, 1, 1), (0, 1, 1)]
    held = contents(settings, url)
    assert len([one for one in held if one[0] == 255]) == 2
    prepare_db(settings, url)
    assert contents(settings, url) == held
    collect(settings, url)
    compute_features(settings)
    batch = pa.concat_tables(
        [
            pq.read_table(features_folder(settings, build_table(settings)) / "parts" / f"{part['name']}.parquet")
            for part in read_manifest(settings.batch.folder)["parts"][before:]
        ]
    )
    assert [row.tobytes() for row in np.stack([batch[name].to_numpy() for name in build_table(settings).names], 1)] == [
        vector.tobytes() for vector in served
    ]
    label = lambda: dict(
        zip(
            *labels_before(
                *read_labels(settings.batch.folder, read_manifest(settings.batch.folder), START, START + 90 * DAY),
                NOW + 900 * DAY,
            )[:2]
        )
    )
    keys = occurrence_of(np.array([key, key], np.uint64), np.array([START, START + 60 * DAY])).tolist()
    assert [label()[one] for one in keys] == [1, 0]
    orders = find_in_batch_log(settings, [key], 10**9)[key]
    assert [(one.time, one.history.label, len(one.history.assertions)) for one in orders] == [
        (START, 1, 2),
        (START + 60 * DAY, 0, 1),
    ]


def read_key(settings: Settings, ident: str) -> int:
    return key_of(ident, hash_secret(settings.batch.folder))


def decode_entry_id(settings: Settings, part: dict, ident: str) -> int:
    rows = read_part(settings.batch.folder, "events", part["name"], ["id", "id_key"]).to_pylist()
    return next(row["id_key"] for row in rows if row["id"] == ident)


def test_a_store_that_lost_what_is_home_is_found_out(shop, tmp_path):
    settings, url = copy_of(shop, tmp_path)
    asyncio.run(live_day(settings, url, range(10), {}, 1))
    collect(settings, url)
    names = Names(settings.domain.name)
    with Client(url) as client:  # as after a crash: the last entries never were, and their numbers are given to others
        last = int(client.call("GET", names.seq))
        for seq in range(last - 2, last + 1):
            client.call("XDEL", names.log, f"{seq}-1")
        client.call("SET", names.seq, last - 3)
        with pytest.raises(ValueError, match="lost entries"):
            collect(settings, url)
        client.call("XTRIM", names.log, "MAXLEN", 0)
        client.call("DEL", names.log)
        for seq in range(last - 2, last + 3):
            client.call("XADD", names.log, f"{seq}-1", "e", encode_entry(Entry("label", 1, 1, (0, 0, 0, 0))))
        client.call("SET", names.seq, last + 2)
    with pytest.raises(ValueError, match="numbers to others"):
        collect(settings, url)


# --- files ------------------------------------------------------------------------------------------------------------


def test_rows_of_retractions_read_missing_values_as_all_rows(tmp_path):
    """Words that stand for a missing value are empty in the fields that a retraction has not.

    Other values in these fields are named.
    """
    settings = settings_of(tmp_path / "orders")
    reader = EventReader(settings, bytes(32), clock=lambda: NOW)
    (tmp_path / "back.csv").write_text(
        "order,retracts,source,known\no1,17,NULL,n/a\no2,18,,\no3,19,analyst,2025-06-01\n"
    )
    one, two, three = [item for _, item in file_changes(settings, reader, str(tmp_path / "back.csv"), BANK)]
    assert (
        one == Retraction("o1", 17, "", BANK)
        and two == Retraction("o2", 18, "", BANK)
        and [problem.name for problem in three] == ["source", "known"]
    )


def test_all_kinds_of_files_say_the_same(tmp_path, monkeypatch):
    settings = settings_of(tmp_path)
    reader = EventReader(settings, hash_secret(tmp_path), clock=lambda: NOW)
    rows = [
        {"order_id": "o1", "is_fraud": "1", "known_at": "2025-06-01T10:00:00", "source": "analyst", "note": "odd"},
        {"order_id": "17", "is_fraud": "0", "known_at": "", "source": "", "note": ""},
        {"order_id": "o3", "is_fraud": "", "known_at": "", "source": "", "note": ""},
        {"order_id": "", "is_fraud": "1", "known_at": "", "source": "", "note": ""},
        {"order_id": "o5", "is_fraud": "1", "known_at": "soon", "source": "x", "note": ""},
    ]
    typed = [
        row | {"is_fraud": int(row["is_fraud"]) if row["is_fraud"] else None, "known_at": row["known_at"] or None}
        for row in rows
    ]
    (tmp_path / "a.csv").write_text("\n".join([",".join(rows[0]), *[",".join(row.values()) for row in rows]]))
    pq.write_table(pa.Table.from_pylist(typed), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, typed)) + "\n")
    read = lambda name: list(file_changes(settings, reader, name if name == "-" else str(tmp_path / name), BANK))
    one = read("a.csv")
    assert read("a.parquet") == read("a.jsonl") == one
    monkeypatch.setattr("sys.stdin", io.StringIO((tmp_path / "a.csv").read_text()))
    assert read("-") == one
    assert one[0] == (1, LabelAssertion("o1", True, "analyst", 1_748_772_000_000, "odd", BANK)) and one[1] == (
        2,
        LabelAssertion("17", False, "chargeback", None, "", BANK),
    )
    assert one[2] == (3, None) and [[problem.name for problem in one[place][1]] for place in (3, 4)] == [
        ["order"],
        ["source", "known"],
    ]
    (tmp_path / "b.jsonl").write_text(
        '{"order": "o1", "fraud": "maybe"}\n{"order": \n[1]\n{"order": "o1", "fraud": 0}\n{"order": "o1"}\n'
    )
    assert [
        [problem.name for problem in item] if isinstance(item, list) else item.fraud for _, item in read("b.jsonl")
    ] == [["fraud"], [""], [""], False, ["fraud"]]
    (tmp_path / "empty.csv").write_text("")
    assert read("empty.csv") == []
    with pytest.raises(OSError):
        read("nowhere.csv")
    (tmp_path / "broken.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="Parquet"):
        read("broken.parquet")


def test_a_file_of_labels_on_history_is_taken_once(shop, tmp_path):
    settings, url = copy_of(shop, tmp_path)
    lines = (
        ["order,fraud,source,known"]
        + [
            f"{ident},{number % 2},analyst,2025-06-{1 + number % 9:02}"
            for number, ident in enumerate(ids_of_history(settings))
        ]
        + ["nobody,1,analyst,"]
    )
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    complaints = []
    summaries = [
        asyncio.run(
            assert_file(
                settings, url, str(tmp_path / "labels.csv"), lambda row, problem: complaints.append((row, problem.name))
            )
        )
        for _ in range(2)
    ]
    assert (
        summaries[0]["assertions"] == summaries[1]["known_before"] == 30
        and summaries[0]["rejected"] == 1
        and complaints == 2 * [(31, "order")]
    )
    with Client(url) as client:
        assert client.call("XLEN", Names("orders").log) == 30


def test_a_file_is_counted_by_what_came_of_its_rows(shop, tmp_path, monkeypatch):
    monkeypatch.setattr("fraud_poc.live.label_files.ROWS_AT_A_TIME", 4)
    (settings, url), seen = copy_of(shop, tmp_path), []
    one, other, *_ = ids_of_history(settings)
    rows = [
        f"{one},1,analyst,",
        "nobody,1,analyst,",
        f"{other},,analyst,",
        f"{one},0,rule,",
        f"{one},1,analyst,",
        "no one,0,analyst,",
        f"{other},1,neighbour,soon",
        f"{one},0,chargeback,",
        f"{other},,rule,",
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["order,fraud,source,known", *rows]))
    summary = asyncio.run(
        assert_file(
            settings,
            url,
            str(tmp_path / "labels.csv"),
            lambda row, problem: seen.append((row, problem.name)),
            progress=lambda *done: seen.append(done),
        )
    )
    assert {name: summary[name] for name in ("rows", "assertions", "known_before", "unresolved", "rejected")} == {
        "rows": 9,
        "assertions": 4,
        "known_before": 1,
        "unresolved": 2,
        "rejected": 3,
    }
    assert seen == [(2, "order"), (4, 0), (6, "order"), (7, "source"), (7, "known"), (8, 0), (9, 0)]
    assert (
        sum(summary["reasons"].values()) == 4
        and summary["reasons"]["not_found"] == 2
        and min(summary["reasons"].values()) == 1
        and 1 <= summary["changed"] <= 2
    )


# --- over HTTP --------------------------------------------------------------------------------------------------------


class Going:
    "A store that goes down after some commits."

    def __init__(self, store, commits: int):
        self.store, self.left = store, commits

    def __getattr__(self, name):
        return getattr(self.store, name)

    async def write(self, change):
        if self.left <= 0:
            raise StoreDown("gone")
        self.left -= 1
        return await self.store.write(change)


def test_the_route_takes_a_list_once_however_often_it_is_sent(tmp_path):
    settings = settings_in(tmp_path, **{"features.rows": ROWS, "service.max_batch": 5, "live.store_timeout": STORE})
    database, store = open_database(settings), MemoryStore(Meta("e", 1, build_table(settings).hash, {"next_seq": 0}))
    key, engine = new_key(database, "tests", ["labels"], "tests"), small_engine(settings, store, clock=lambda: NOW)
    app = create_app(settings, engine, secret=bytes(32), database=database)

    async def run() -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://service", headers={KEY_HEADER: key}
        ) as client:
            learner, reader = Engine(settings, None, store), EventReader(settings, bytes(32))
            for number in range(4):
                await decide(learner, reader.read_dict(order(number)))
            changes = [{"order": f"live{number}", "fraud": True, "source": "analyst"} for number in range(4)]
            engine.store = Going(store, 2)
            down = await client.post("/labels", json=changes)
            assert down.status_code == 503 and down.headers["retry-after"] == "1" and len(store.log) == 6
            engine.store = store
            results = (await client.post("/labels", json=changes)).json()["results"]
            assert [result["status"] for result in results] == [200] * 4 and sum(
                result["answer"]["known_before"] for result in results
            ) == 2
            again = (await client.post("/labels", json=changes)).json()["results"]
            assert all(result["answer"]["known_before"] for result in again) and len(store.log) == 8
            await refusals(client, changes)
            assert len(store.log) == 8

    asyncio.run(run())
    database.dispose()


async def refusals(client: httpx.AsyncClient, changes: list[dict]) -> None:
    "What is refused, with its status, and where."
    one = changes[0]
    cases = [
        (one | {"order": "x"}, 404, "order"),
        (one | {"known": "2025-03-01"}, 422, "known"),
        (one | {"known": "2025-08-01"}, 422, "known"),
        (one | {"known": 5}, 422, "known"),
        (one | {"fraud": "true"}, 422, "fraud"),
        (one | {"source": "me"}, 422, "source"),
        (one | {"note": 5}, 422, "note"),
        (one | {"note": "x" * 2001}, 422, "note"),
        (one | {"why": 1}, 422, "why"),
        (one | {"order": True}, 404, "order"),
        (one | {"order": "\ud800"}, 422, "order"),
        ([], 422, None),
        (changes * 2, 422, None),
        ("no", 422, None),
    ]
    for content, status, field in cases:
        response = await client.post(
            "/labels", content=json.dumps(content), headers={"content-type": "application/json"}
        )
        assert (response.status_code, response.json()["detail"][0]["loc"][1:]) == (status, [field] if field else []), (
            content
        )
    twice = await client.post(
        "/labels",
        content=b'{"order":"live0","order":"live1","fraud":true,"source":"analyst"}',
        headers={"content-type": "application/json"},
    )
    assert twice.status_code == 422 and twice.json()["detail"][0]["type"] == "duplicate_key"
    assert (await client.post("/labels", json=one, headers={KEY_HEADER: "guessed"})).status_code == 401
    assert (await client.post("/labels", content=b"order=1", headers={"content-type": "text/plain"})).status_code == 415
    assert (await client.post("/labels", json=one | {"note": "x" * 70_000})).status_code == 413
    assert (
        await client.post("/labels", content=b'{"order"', headers={"content-type": "application/json"})
    ).status_code == 400
    mixed = (await client.post("/labels", json=[one | {"order": "x"}, one, 5])).json()["results"]
    assert [result["status"] for result in mixed] == [404, 200, 422] and mixed[2]["detail"][0]["loc"] == ["body", 2]


@pytest.mark.parametrize("until, within", [("2025-02-01", False), ("2025-01-20T12:00", True)])
def test_recorded_orders_that_came_once_more_live_give_way(shop, tmp_path, until, within):
    """As in a demonstration: the store is filled with the beginning of the log, and later orders of it come live.

    The beginning may end within a part.
    """
    settings, url = copy_of(shop, tmp_path)
    whole, table = read_manifest(settings.batch.folder), build_table(settings)
    compute_features(settings, replace=True, until=until)
    prepare_db(settings, url, start_over=True)
    assert ("cut" in base_of(settings, table)) == within
    served = {}
    asyncio.run(live_day(settings, url, range(20), served, 1))
    with pytest.raises(ValueError, match="--drop-others"):
        collect(settings, url)

    def dies(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(settings, url, dies, drop=True)
    assert read_manifest(settings.batch.folder) == whole and [
        read_part(settings.batch.folder, "events", part["name"]) for part in whole["parts"]
    ]
    summary = collect(settings, url, drop=True)
    parts = read_manifest(settings.batch.folder)["parts"]
    assert (
        summary["dropped"] > 0
        and summary["events"] == 20
        and len(parts) == len(whole["parts"]) - summary["dropped"] + 1 + within
    )
    ends = [part["next_seq"] for part in parts]
    assert [part["first_seq"] for part in parts[1:]] == ends[:-1] and ends[-2] == summary["first_seq"]
    compute_features(settings)
    batch = computed(settings, len(parts) - 1)
    assert all(batch[name].tobytes() == vector.tobytes() for name, vector in served.items()) and len(
        table.names
    ) == len(served["live0"])
    assert prepare_db(settings, url)["replayed"] == 0 and collect(settings, url)["parts"] == 0


def test_the_id_of_an_order_keeps_its_type_where_it_is_one_column(root):
    settings = load_settings(root / "config" / "cards.toml")
    fields = RowReader(settings).fields({settings.columns.id[0]: 17.0, settings.labels.column: 1})
    assert fields["order"] == 17.0 and type(fields["order"]) is float, "17.0 of a Parquet file is the order 17"
