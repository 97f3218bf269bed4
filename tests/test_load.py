"""Filling the store: live entries over history are what batch makes of both, also when loads or Redis die."""

import asyncio
import json
import shutil
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from support.waiting import STORE, until_so

from fraud_poc.core.files import read_json, sole_use, write_json
from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.data.ingest import ingest
from fraud_poc.data.log import read_manifest, read_part
from fraud_poc.data.sample import make_data
from fraud_poc.features.batch import compute_features
from fraud_poc.features.state_files import read_states
from fraud_poc.features.table import Stepper, build_table
from fraud_poc.live import load as module
from fraud_poc.live.load import inspect_store, prepare_db, step_entry, touched_keys
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import start_redis
from fraud_poc.live.redis_store import Names, open_store
from fraud_poc.live.store import (
    Entry,
    StoreDown,
    StoreLost,
    StoreSlow,
    Write,
    encode_entry,
    event_key,
    label_key,
    state_key,
)

ROOT = Path(__file__).resolve().parents[1]
ORDERS = ROOT / "config" / "orders.toml"
ROWS = [
    'Count(by=["customer_id", "email"], over=["1h", "30d"])',
    'Mean("order_amount", by="customer_id", over=["7d", "lifetime"])',
    'FraudRate(by="ip_addr", over="90d")',
    'Distinct("ip_addr", by="customer_id", over="lifetime")',
    "Hour()",
]
MINUTES = {"live.store_timeout": STORE}


def settings_in(folder: Path, rows: list[str] = ROWS) -> Settings:
    return load_settings(
        ORDERS,
        {
            "features.rows": rows,
            "sample.orders": 6_000,
            "sample.customers": 800,
            "sample.days": 60,
            "batch.folder": str(folder),
            "batch.part_rows": 1_500,
            "live.durability": "always",
        }
        | MINUTES,
    )


def contents(settings: Settings, url: str) -> dict[bytes, bytes]:
    "All states of the generation in use, without tokens."
    names = Names(settings.domain.name)
    with Client(url) as client:
        prefix = names.states(inspect_store(client, names).meta.generation)
        keys = [key for key in client.call("KEYS", names.root + b"*") if key.startswith(prefix)]
        return {key[len(prefix) :]: value[8:] for key, value in zip(keys, client.call("MGET", *keys))}


def batch_states(settings: Settings) -> dict[bytes, bytes]:
    table = build_table(settings)
    return {
        state_key(e, key): state
        for e, entity in enumerate(table.entities)
        for t in read_states(settings, table, entity.by)
        for key, state in zip(t["key"].to_pylist(), t["state"].to_pylist())
    }


def entries_of(settings: Settings, parts: list[dict]) -> list[Entry]:
    "Parts of the log as live entries, in sequence."
    amount, columns, rows = settings.columns.amount, settings.columns.hashed, []
    for part in parts:
        for kind in ("events", "labels"):
            t = read_part(settings.batch.folder, kind, part["name"])
            for name in ("time", "known"):
                if name in t.column_names:
                    t = t.set_column(t.column_names.index(name), name, t[name].cast(pa.int64()))
            rows += [(row["seq"], kind, row) for row in t.to_pylist()]

    def entry(kind: str, row: dict) -> Entry:
        keys = tuple(row[f"{c}_key"] for c in (columns if kind == "events" else settings.columns.entities))
        if kind == "events":
            return Entry("event", row["time"], row["id_key"], keys, amount=row[amount])
        return Entry(
            "label", row["time"], row["id_key"], keys, label=row["label"], previous=row["previous"], known=row["known"]
        )

    return [entry(kind, row) for _, kind, row in sorted(rows, key=lambda r: r[0])]


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    "A folder with half a log and its features, the other half as live entries, and the states of batch after both."
    folder = tmp_path_factory.mktemp("history")
    whole = settings_in(folder / "whole")
    make_data(whole, folder / "raw")
    ingest(whole, str(folder / "raw" / "orders"), str(folder / "raw" / "labels"))
    compute_features(whole)
    shutil.copytree(folder / "whole" / "log", folder / "half" / "log")
    manifest = read_manifest(folder / "half")
    rest = manifest["parts"][3:]
    later = (
        read_part(folder / "half", "events", rest[0]["name"])["seq"][0].as_py(),
        *read_part(folder / "half", "labels", rest[0]["name"])["seq"].to_pylist()[:1],
    )
    write_json(
        folder / "half" / "log" / "manifest.json", manifest | {"parts": manifest["parts"][:3], "next_seq": min(later)}
    )
    compute_features(settings_in(folder / "half"))
    return folder / "half", entries_of(whole, rest), batch_states(whole)


@pytest.fixture
def settings(history, tmp_path):
    "Half the history in a folder of the test's own."
    shutil.copytree(history[0], tmp_path / "orders")
    return settings_in(tmp_path / "orders")


@pytest.fixture
def server(tmp_path):
    with start_redis(tmp_path / "redis", "always") as server:
        yield server


async def decide(store, stepper: Stepper, columns: list[str], entry: Entry) -> int:
    """What the service will do: read, step, commit, again on a conflict and after an outage.

    Returns the sequence number.
    """
    places, record = (
        touched_keys(stepper.table, columns, [entry]),
        event_key(entry.id_key) if entry.kind == "event" else label_key(entry.id_key, entry.known),
    )
    while True:
        try:
            found = await store.read(record, places)
            if found.record is not None:
                return found.seq
            states = {place: state for place, state in zip(places, found.states) if state}
            step_entry(stepper, columns, entry, states)
            outcome = await store.write(
                Write(
                    record,
                    b"",
                    places,
                    found.versions,
                    [states.get(place, b"") for place in places],
                    encode_entry(entry),
                )
            )
            if outcome.kind in ("accepted", "known"):
                return outcome.seq
        except (StoreDown, StoreSlow):
            await asyncio.sleep(0.01)


async def decide_all(
    settings: Settings,
    url: str,
    entries: list[Entry],
    acknowledged: dict[int, Entry] | None = None,
    tasks: int = 1,
    stores: int = 1,
) -> dict[int, Entry]:
    "Entries by the sequence number that was acknowledged; also while they come, in a dictionary of the caller's."
    table, queue, acknowledged = build_table(settings), iter(entries), {} if acknowledged is None else acknowledged

    async def work(store):
        stepper = Stepper(table)
        for entry in queue:
            acknowledged[await decide(store, stepper, settings.columns.hashed, entry)] = entry

    async def one():
        async with open_store(settings, url) as store:
            await asyncio.gather(*[work(store) for _ in range(tasks)])

    await asyncio.gather(*[one() for _ in range(stores)])
    return acknowledged


def log_of(settings: Settings, url: str) -> dict[int, Entry]:
    names, log, after = Names(settings.domain.name), {}, -1
    with Client(url) as client:
        while found := module.read_log(client, names, after):
            assert not log.keys() & dict(found).keys()
            log |= dict(found)
            after = found[-1][0]
    return log


def test_live_entries_over_half_the_history_leave_what_batch_leaves_after_all(history, settings, tmp_path):
    _, entries, expected = history
    with start_redis(tmp_path / "everysec") as server:
        assert prepare_db(settings, server.url)["states"] == {
            e.by: sum(key[0] == i for key in batch_states(settings))
            for i, e in enumerate(build_table(settings).entities)
        }
        assert contents(settings, server.url) == batch_states(settings) != expected
        acknowledged = asyncio.run(decide_all(settings, server.url, entries))
        assert contents(settings, server.url) == expected
        assert (
            prepare_db(settings, server.url)["replayed"] == len(entries) > 1_000
            and contents(settings, server.url) == expected
        )
        assert log_of(settings, server.url) == acknowledged and [*acknowledged] == [
            *range(
                read_manifest(settings.batch.folder)["next_seq"],
                read_manifest(settings.batch.folder)["next_seq"] + len(entries),
            )
        ]


def test_a_server_killed_during_commits_loses_nothing_and_counts_nothing_twice(history, settings, server):
    entries = history[1][:1_200]
    prepare_db(settings, server.url)

    async def crashing():
        acknowledged = {}
        deciding = asyncio.create_task(decide_all(settings, server.url, entries, acknowledged, tasks=4, stores=2))
        for number in range(5):  # spread over the entries
            await until_so(
                lambda: deciding.done() or len(acknowledged) > number * len(entries) / 6, "entries are acknowledged"
            )
            assert not deciding.done(), "it has ended already"
            server.kill()
            await asyncio.to_thread(server.ensure)
        await deciding
        return acknowledged

    acknowledged = asyncio.run(crashing())
    log = log_of(settings, server.url)
    assert (
        len(acknowledged) == len(entries) and log == acknowledged
    )  # each entry once, under the number that was acknowledged
    first = read_manifest(settings.batch.folder)["next_seq"]
    assert sorted(log) == list(range(first, first + len(entries)))
    lived = contents(settings, server.url)
    assert prepare_db(settings, server.url)["replayed"] == len(entries) and contents(settings, server.url) == lived


def test_loads_while_orders_come_in_lose_none(history, settings, server, monkeypatch):
    reports, done = [], threading.Event()
    monkeypatch.setattr(module, "ENTRIES", 20)
    prepare_db(settings, server.url)

    def load():
        try:
            reports.extend(prepare_db(settings, server.url) for _ in range(2))
        finally:
            done.set()

    loading = threading.Thread(target=load)
    loading.start()
    try:
        acknowledged = asyncio.run(
            decide_all(settings, server.url, (entry for entry in history[1] if not done.is_set()), tasks=4)
        )
    finally:
        loading.join()
    assert len(reports) == 2 and log_of(settings, server.url) == acknowledged and len(acknowledged) > 10
    lived = contents(settings, server.url)
    prepare_db(settings, server.url)
    assert contents(settings, server.url) == lived
    with Client(server.url) as client:
        assert client.call("SCARD", Names("orders").stale) == 0


def test_a_load_that_fails_leaves_the_running_generation(history, settings, server):
    prepare_db(settings, server.url)
    asyncio.run(decide_all(settings, server.url, history[1][:50]))
    before, names = contents(settings, server.url), Names("orders")

    def killed(done: int, total: int) -> None:
        if done > 1_000:
            server.kill()

    with pytest.raises(StoreDown):
        prepare_db(settings, server.url, progress=killed)
    server.ensure()

    def broken(done: int, total: int) -> None:
        if done > 1_000:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        prepare_db(settings, server.url, progress=broken)
    assert contents(settings, server.url) == before
    with Client(server.url) as client:
        assert client.call("SCARD", names.stale) >= 1
        assert prepare_db(settings, server.url)["removed"] > len(before)
        assert (
            client.call("SCARD", names.stale) == 0 and client.call("DBSIZE") == len(before) + 50 + 7
        )  # states, records; now, meta, seq, log, run, loads, labels that wait
    assert contents(settings, server.url) == before


def test_a_lost_marker_is_restored_by_a_load(history, settings, server):
    epoch = prepare_db(settings, server.url)["epoch"]
    asyncio.run(decide_all(settings, server.url, history[1][:50]))
    before, names = contents(settings, server.url), Names("orders")

    async def story():
        async with open_store(settings, server.url) as store:
            await store.read(event_key(1), [])
            with Client(server.url) as client:
                client.call("DEL", names.now)
            with pytest.raises(StoreLost):
                await store.read(event_key(1), [])
            assert prepare_db(settings, server.url)["epoch"] == epoch
            await store.read(event_key(1), [])  # nothing was restarted

    asyncio.run(story())
    assert contents(settings, server.url) == before


def test_another_feature_table_is_loaded_over_the_same_log(history, settings, server):
    prepare_db(settings, server.url)
    asyncio.run(decide_all(settings, server.url, history[1][:300]))
    other = settings_in(settings.batch.folder, ['Count(by="email", over="7d")', *ROWS[1:]])
    with pytest.raises(ValueError, match="features"):
        prepare_db(other, server.url)
    compute_features(other)

    async def story():
        async with open_store(settings, server.url) as store:
            await store.read(event_key(1), [])
            prepare_db(other, server.url)
            with pytest.raises(StoreLost, match="feature table"):
                await store.read(event_key(1), [])

    asyncio.run(story())
    assert look_at(other, server.url).meta.table_hash == build_table(other).hash
    states = batch_states(other)
    for entry in history[1][:300]:
        step_entry(Stepper(build_table(other)), other.columns.hashed, entry, states)
    assert contents(other, server.url) == states


def look_at(settings: Settings, url: str):
    with Client(url) as client:
        return inspect_store(client, Names(settings.domain.name))


def test_another_history_is_refused_until_the_live_log_is_archived(history, settings, server):
    prepare_db(settings, server.url)
    acknowledged = asyncio.run(decide_all(settings, server.url, history[1][:120], tasks=4))
    path = settings.batch.folder / "log" / "manifest.json"
    log = read_json(path)
    log["parts"][-1]["next_seq"] += 5
    write_json(path, log)
    before = contents(settings, server.url)
    with pytest.raises(ValueError, match="--start-over"):
        prepare_db(settings, server.url)
    assert contents(settings, server.url) == before and look_at(settings, server.url).entries == 120
    report = prepare_db(settings, server.url, start_over=True)
    assert report["archived"] == 120 and look_at(settings, server.url).entries == 0
    archived = pa.concat_tables(
        [pa.parquet.read_table(file) for file in sorted((settings.batch.folder / "live_log").iterdir())]
    ).to_pylist()
    back = {row.pop("seq"): Entry(**row | {"keys": tuple(row["keys"])}) for row in archived}
    assert back == acknowledged
    again = asyncio.run(decide_all(settings, server.url, history[1][:10]))  # the same orders are new in the new epoch
    assert sorted(again) == list(range(log["parts"][-1]["next_seq"], log["parts"][-1]["next_seq"] + 10))


def test_two_loads_exclude_each_other(history, settings, server, tmp_path, monkeypatch):
    prepare_db(settings, server.url)
    with sole_use(settings.batch.folder / "live"), pytest.raises(ValueError, match="another run"):
        prepare_db(settings, server.url)
    shutil.copytree(settings.batch.folder, tmp_path / "elsewhere")  # as on another machine: only the store is shared
    other, inside = settings_in(tmp_path / "elsewhere"), []

    def load_too(done: int, total: int) -> None:
        if done and not inside:
            inside.append(prepare_db(other, server.url))

    with pytest.raises(ValueError, match="another load"):
        prepare_db(settings, server.url, progress=load_too)
    assert look_at(settings, server.url).meta.generation == inside[0]["generation"]
    assert contents(settings, server.url) == batch_states(settings)


def test_a_damaged_entry_is_an_error_that_changes_nothing(history, settings, server):
    prepare_db(settings, server.url)
    asyncio.run(decide_all(settings, server.url, history[1][:5]))
    before, names = contents(settings, server.url), Names("orders")
    with Client(server.url) as client:
        client.call("XADD", names.log, f"{int(client.call('INCR', names.seq))}-1", "e", b"\xc1")
    with pytest.raises(ValueError):
        prepare_db(settings, server.url)
    assert contents(settings, server.url) == before


def test_a_report_says_what_a_million_customers_need(settings, server):
    report = prepare_db(settings, server.url)
    assert json.dumps(report) and report["million_of"] == "customer_id" and 10**8 < report["bytes_per_million"] < 10**10
    assert all(50 < size < 10_000 for size in report["bytes_per_state"].values())


def test_a_load_counts_what_it_writes(history, settings, server):
    steps, table, entries = [], build_table(settings), history[1][:40]

    def load(**more):
        steps.clear()
        return prepare_db(settings, server.url, progress=lambda done, total: steps.append((done, total)), **more)

    def counted_up(total: int) -> bool:
        return steps == sorted(steps) and (steps[0], steps[-1]) == ((0, total), (total, total)) and len(steps) > 2

    states = {entity.by: sum(map(len, read_states(settings, table, entity.by))) for entity in table.entities}
    total = sum(states.values())
    first = load()
    assert (
        counted_up(total)
        and first["states"] == states
        and [first[name] for name in ("replayed", "archived", "removed", "trimmed")] == [0] * 4
    )
    assert first["million_of"] == "customer_id" and first["bytes_per_million"] == round(
        first["bytes"] / states["customer_id"] * 10**6
    )
    asyncio.run(decide_all(settings, server.url, entries))
    held = len(contents(settings, server.url))
    second = load()
    assert (
        counted_up(total + 40)
        and second["states"] == states
        and [second[name] for name in ("replayed", "archived", "removed", "trimmed")] == [40, 0, held, 0]
    )
    third = load(start_over=True)
    assert (
        counted_up(total + 40)
        and [third[name] for name in ("replayed", "archived", "trimmed")] == [0, 40, 0]
        and third["removed"] == held + 40 + 1
    )  # records of answers, and the labels that wait
    assert (
        (first["epoch"], first["generation"])
        == (second["epoch"], second["generation"] - 1)
        != (third["epoch"], third["generation"] - 2)
    )
