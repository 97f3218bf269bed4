"""A store that goes back in time: no decision is missing in the database or there twice, and lost ones are marked."""

import asyncio
import json
import logging
import random
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support.databases import settings_for
from support.waiting import LONG, in_time, until, until_so

from fraud_poc.core.audit import list_audit
from fraud_poc.core.database import Checkpoint, checkpoints, open_database, read_checkpoint, save_checkpoint, writing
from fraud_poc.core.events import key_of
from fraud_poc.core.files import write_parquet
from fraud_poc.core.processes import free_port
from fraud_poc.core.settings import load_settings
from fraud_poc.desk.rows import EntryReader
from fraud_poc.desk.tables import OPEN, cases, decisions, labels, links, update_case
from fraud_poc.desk.writer import follow_log, next_entries, write_entries
from fraud_poc.features.table import build_table
from fraud_poc.live.decide import DecisionRecord, pack_record
from fraud_poc.live.load import ARCHIVED, inspect_store, switch
from fraud_poc.live.redis_client import Client, parse_url
from fraud_poc.live.redis_server import start_redis
from fraud_poc.live.redis_store import Names, RedisStore
from fraud_poc.live.store import (
    Entry,
    MemoryStore,
    Meta,
    Timeline,
    Write,
    decode_entry,
    encode_entry,
    epoch_of,
    event_key,
    timeline_at,
)
from fraud_poc.live.timelines import LostTail, go_on, is_lost, lost_tail, timelines
from fraud_poc.ops.erasure_database import await_writer, is_after_step
from fraud_poc.ops.erasure_live import live_note

ROOT, DAY, NOW = Path(__file__).resolve().parents[1], 86_400_000, 1_751_000_000_000
META = Meta("5eed", 1, "table", {"next_seq": 0})
SETTINGS = load_settings(ROOT / "config" / "orders.toml", {"batch.folder": "unused", "live.redis_url": ""})
TABLE = build_table(SETTINGS)


@pytest.fixture
def settings(tmp_path, database_url):
    return settings_for(tmp_path / "orders", database_url)


@pytest.fixture
def engine(settings):
    engine = open_database(settings)
    yield engine
    engine.dispose()


def reader_of(settings) -> EntryReader:
    return EntryReader(settings, explain=lambda model, vectors, orders: [None] * len(orders))


@pytest.fixture
def reader(settings):
    return reader_of(settings)


def order(number: int) -> bytes:
    "The entry of an accepted order."
    body = {name: f"{name}-{number % 7}" for name in SETTINGS.columns.hashed} | {
        "order_id": f"o-{number}",
        "order_date": "2024-10-04T00:00:00",
        "order_amount": 95.0,
    }
    keys = tuple(key_of(body[name], b"test") for name in SETTINGS.columns.hashed)
    hashes = bytes(16), bytes(32), b"\1" * 32, bytes.fromhex(TABLE.hash)
    vector = np.zeros(len(TABLE.names), np.float32)
    record = DecisionRecord(*hashes, 0.01, 0.005, 0.5, "low", "pass", bytes(len(TABLE.entities)), vector)
    at = 20_000 * DAY + number
    entry = Entry("event", at, key_of(body["order_id"], b"test"), keys, amount=9_500, at=NOW)
    return encode_entry(msgspec.structs.replace(entry, decision=pack_record(record), body=json.dumps(body).encode()))


def label(number: int) -> bytes:
    "The entry of a chargeback on an order."
    body = json.dumps({"order": f"o-{number}", "asserted": 1, "source": "chargeback", "kind": "assert"}).encode()
    keys = (1,) * len(TABLE.entities)
    return encode_entry(
        Entry(
            "label", 20_000 * DAY + number, key_of(f"o-{number}", b"test"), keys, label=1, known=NOW, at=NOW, body=body
        )
    )


def rows(engine, table, *names) -> list[tuple]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.select(*[table.c[name] for name in names]))]


def lost_rows(engine) -> set[tuple]:
    "Timeline and position of all rows that are of a lost tail."
    with engine.connect() as connection:
        return {
            tuple(row)
            for table in (decisions, labels)
            for row in connection.execute(
                sa.select(table.c.log, table.c.position).where(is_lost(table.c.log, table.c.position))
            )
        }


def tail(engine) -> LostTail:
    with engine.connect() as connection:
        return lost_tail(connection)._replace(since=None)


async def add(store, *numbers: int) -> None:
    "Append orders; a negative number is a label on one."
    for number in numbers:
        entry = order(number) if number >= 0 else label(-number)
        result = await store.write(Write(event_key(number % 2**64), b"", [], [], [], entry))
        assert result.kind == "accepted"


def holds_the_log(engine, lines: list[Timeline], log: list[tuple[int, bytes]]) -> None:
    "Each entry of a store's log has its row, and no other row is of what the store has."
    there = {(log, position): name for log, position, name in rows(engine, decisions, "log", "position", "order_id")}
    there |= {(log, position): name for log, position, name in rows(engine, labels, "log", "position", "order_id")}
    expected = {}
    for seq, data in log:
        body = json.loads(decode_entry(data).body)
        expected[timeline_at(lines, seq), seq] = body.get("order_id") or body["order"]
    assert expected.items() <= there.items()
    assert there.keys() - expected.keys() == lost_rows(engine)


# --- a server, its files and their copies -----------------------------------------------------------------------------


class Server:
    "A real server whose folder can be copied and restored, and stores that write to it and read from it."

    def __init__(self, handle, folder: Path):
        self.handle, self.folder = handle, folder
        self.files = next(folder.rglob("appendonlydir"))
        self.copies = []
        with Client(handle.url) as client:
            names = Names("orders")
            switch(client, names, inspect_store(client, names), META, b"", fresh=True)

    @asynccontextmanager
    async def store(self, writes: bool = True):
        store = RedisStore(self.handle.url, "orders", 60_000, 60_000, round(1000 * LONG), writes=writes)
        try:
            await store.connect()
            yield store
        finally:
            await store.close()

    def copy(self) -> int:
        self.copies.append(self.folder.parent / f"copy {len(self.copies)}")
        shutil.copytree(self.files, self.copies[-1])
        return len(self.copies) - 1

    def restart(self, copy: int | None = None) -> None:
        self.handle.kill()
        if copy is not None:
            shutil.rmtree(self.files)
            shutil.copytree(self.copies[copy], self.files)
        self.handle.ensure()

    def read(self) -> tuple[list[Timeline], list[tuple[int, bytes]]]:
        async def read():
            async with self.store(writes=False) as store:
                return await store.log_after(-1, 10_000)

        return asyncio.run(in_time(read()))

    def add(self, *numbers: int) -> None:
        async def added():
            async with self.store() as store:
                await add(store, *numbers)

        asyncio.run(in_time(added()))

    def write(self, engine, reader) -> Checkpoint:
        "Write all of the log into the database."

        async def written():
            async with self.store(writes=False) as store:
                return await follow_log(store, engine, reader, asyncio.Event(), to_end=True)

        return asyncio.run(in_time(written()))


@pytest.fixture
def server(tmp_path):
    with start_redis(tmp_path / "redis", "always") as handle:
        yield Server(handle, tmp_path / "redis")


def test_the_end_that_a_restored_store_lacks_is_marked_and_the_new_one_read(server, engine, reader):
    server.add(*range(20))
    copy = server.copy()
    server.add(*range(20, 50))
    assert server.write(engine, reader) == Checkpoint("5eed", 49)
    server.restart(copy)
    server.add(*range(50, 100))
    lines, log = server.read()
    assert [line.start for line in lines] == [0, 20] and [seq for seq, _ in log] == list(range(70))
    assert server.write(engine, reader) == Checkpoint(lines[1].log, 69)
    holds_the_log(engine, lines, log)
    assert lost_rows(engine) == {("5eed", position) for position in range(20, 50)} and tail(engine) == (30, 0, None)
    assert len(rows(engine, decisions, "id")) == 100
    act = list_audit(engine)[-1]
    assert act["what"] == "the store lost entries"
    assert act["detail"] == {"log": "5eed", "first": 20, "last": 49}


def test_a_writer_that_runs_meanwhile_loses_nothing(server, engine, reader):
    server.add(*range(20))
    copy = server.copy()

    async def scenario():
        async with server.store() as store:
            await add(store, *range(20, 50))
            stop = asyncio.Event()

            async def follow():
                async with server.store(writes=False) as own:
                    while not stop.is_set():
                        try:
                            await follow_log(own, engine, reader, stop)
                        except ConnectionError:
                            await asyncio.sleep(0.01)

            task = asyncio.create_task(follow())
            position = lambda: asyncio.to_thread(lambda: (read_checkpoint(engine) or Checkpoint("", -1)).position)

            async def all_read(last: int):
                async def reached():
                    return await position() == last

                await until_so(reached, "all is written")

            await all_read(49)
            await asyncio.to_thread(server.restart, copy)
            await until_so(lambda: store.connection.link and not store.connection.link.broken, "connected again")
            await add(store, *range(50, 100))
            await all_read(69)
            stop.set()
            await task

    asyncio.run(in_time(scenario()))
    holds_the_log(engine, *server.read())
    assert tail(engine).decisions == 30


def test_a_plain_restart_loses_nothing_and_marks_nothing(server, engine, reader):
    server.add(*range(5))
    server.write(engine, reader)
    for start in (5, 10):
        server.restart()
        server.add(*range(start, start + 5))
    server.restart()
    lines, log = server.read()
    assert [line.start for line in lines] == [0, 5, 10], "a start without a write begins none"
    assert server.write(engine, reader) == Checkpoint(lines[-1].log, 14)
    holds_the_log(engine, lines, log)
    assert not lost_rows(engine) and tail(engine) == (0, 0, None) and not list_audit(engine)
    assert sorted(rows(engine, timelines, "start", "log")) == [(line.start, line.log) for line in lines]


def test_copies_are_restored_again_and_again_and_older_ones(server, engine, reader):
    rng = random.Random(7)
    server.add(*range(10))
    copies, number = [server.copy()], 10
    for _ in range(4 if engine.dialect.name == "sqlite" else 2):
        server.add(*range(number, number + 10))
        number += 10
        copies.append(server.copy())
        if rng.random() < 0.6:
            server.write(engine, reader)
        server.restart(rng.choice(copies))
    server.add(*range(number, number + 3))
    server.write(engine, reader)
    lines, log = server.read()
    holds_the_log(engine, lines, log)
    # the first copy of all: all timelines but the first are gone
    server.restart(copies[0])
    server.add(number + 3)
    server.write(engine, reader)
    lines, log = server.read()
    assert [line.start for line in lines] == [0, 10] and len(log) == 11
    holds_the_log(engine, lines, log)


def test_processes_that_connect_at_once_begin_one_timeline(server, caplog):
    server.add(*range(3))
    server.restart()

    async def connect():
        async with server.store() as one, server.store() as other, server.store(writes=False):
            return await one.timelines(), await other.timelines()

    with caplog.at_level(logging.INFO, "fraud_poc.store"):
        one, other = asyncio.run(in_time(connect()))
    assert one == other and [line.start for line in one] == [0, 3]
    [record] = [one for one in caplog.records if "timeline" in one.message]
    assert record.fields == {"log": one[1].log, "start": "3"}


def test_a_store_of_an_older_version_begins_a_timeline_and_an_empty_one_does_not(server):
    with Client(server.handle.url) as client:
        client.call("DEL", Names("orders").run)
    server.add(0)
    assert [line.start for line in server.read()[0]] == [0, 0]
    with Client(server.handle.url) as client:
        client.call("FLUSHALL")

        async def connect():
            async with server.store():
                pass

        asyncio.run(in_time(connect()))
        assert client.call("KEYS", "*") == []


def test_a_promoted_replica_begins_a_timeline_before_its_first_order(server, tmp_path):
    server.add(*range(5))
    with start_redis(tmp_path / "replica", "always") as replica:
        other = Server(replica, tmp_path / "replica")
        source = parse_url(server.handle.url)
        with Client(server.handle.url) as client:
            port = free_port()
            client.call("CONFIG", "SET", "port", port)
        with Client(replica.url) as client:
            client.call("CONFIG", "SET", "masterauth", source.password)
            client.call("REPLICAOF", "127.0.0.1", port)
            until(lambda: b"master_link_status:up" in client.call("INFO", "replication"), "the replica follows")
            until(lambda: client.call("XLEN", Names("orders").log) == 5, "it has all")
            client.call("REPLICAOF", "NO", "ONE")
            server.add(*range(5, 9))  # the primary goes on without it
            other.add(100)
            lines, log = other.read()
            assert [line.start for line in lines] == [0, 5] and [seq for seq, _ in log] == list(range(6))
            assert inspect_store(client, Names("orders")).timelines == lines
    assert [line.start for line in server.read()[0]] == [0]


# --- any sequence of copies and restores ------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 6)),
        st.tuples(st.just("copy"), st.just(0)),
        st.tuples(st.just("restore"), st.integers(0, 7)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("write"), st.integers(1, 9)),
        st.tuples(st.just("follow"), st.just(0)),
    ),
    min_size=4,
    max_size=30,
)


@pytest.fixture(scope="module")
def one_engine(tmp_path_factory):
    "A database that examples share; each begins by emptying it."
    settings = settings_for(tmp_path_factory.mktemp("any"))
    engine = open_database(settings)
    yield settings, engine
    engine.dispose()


@given(steps=STEPS)
@examples(max_examples=60, deadline=None)
def test_whatever_is_restored_each_entry_is_there_once_and_what_is_lost_is_known(one_engine, steps):
    settings, engine = one_engine
    reader = reader_of(settings)
    with writing(engine) as connection:
        for table in (links, cases, labels, decisions, timelines, checkpoints):
            connection.execute(sa.delete(table))

    async def scenario():
        store, number, history = MemoryStore(META), 0, {}
        copies, held = [store.copy()], set()

        async def follow():
            await follow_log(store, engine, reader, asyncio.Event(), to_end=True)

        for step, count in steps:
            if step == "add":
                for _ in range(count):
                    number += 1
                    await add(store, number if number % 3 else -number)
                    history[timeline_at(await store.timelines(), store.seq), store.seq] = f"o-{number}"
            elif step == "copy":
                copies.append(store.copy())
            elif step == "restore":
                store.restore(copies[count % len(copies)])
            elif step == "restart":
                store.restore(store.copy())
            elif step == "write" and (checkpoint := read_checkpoint(engine)):
                found = await next_entries(store, checkpoint, count)
                if found.entries:
                    write_entries(engine, reader, checkpoint, found.entries)
            elif step == "follow":
                await follow()
            there = [*rows(engine, decisions, "log", "position"), *rows(engine, labels, "log", "position")]
            assert len(there) == len(set(there)) and held <= set(there), "a row was removed or is there twice"
            held = set(there)
        await follow()
        named = rows(engine, decisions, "log", "position", "order_id") + rows(
            engine, labels, "log", "position", "order_id"
        )
        assert all(history[log, position] == name for log, position, name in named)
        holds_the_log(engine, await store.timelines(), store.log)
        lost = lost_rows(engine)
        found = tail(engine)
        assert found.decisions + found.labels == len(lost)

    asyncio.run(scenario())


# --- counts, archives, erasure and cases ------------------------------------------------------------------------------


def test_what_was_sent_again_is_not_counted(engine, reader):
    async def scenario():
        store = MemoryStore(META)
        await add(store, *range(5))
        copy = store.copy()
        await add(store, 5, 6, 7, -1, -2)
        await follow_log(store, engine, reader, asyncio.Event(), to_end=True)
        store.restore(copy)
        await add(store, 20)
        await follow_log(store, engine, reader, asyncio.Event(), to_end=True)
        assert tail(engine) == (3, 2, None)
        await add(store, 6, -1)
        await follow_log(store, engine, reader, asyncio.Event(), to_end=True)
        assert tail(engine) == (2, 1, None) and len(lost_rows(engine)) == 5
        # the second time, the order that was sent again is lost, too: it counts once
        store.restore(copy)
        await follow_log(store, engine, reader, asyncio.Event(), to_end=True)
        assert tail(engine) == (4, 2, None)

    asyncio.run(scenario())


def test_an_archive_with_timelines_is_read_to_its_end(settings, engine, reader):
    async def scenario():
        store = MemoryStore(META)
        await add(store, *range(10))
        copy = store.copy()
        await add(store, *range(10, 15))
        await follow_log(store, engine, reader, asyncio.Event(), to_end=True)
        store.restore(copy)
        await add(store, *range(20, 30))
        return store

    store = asyncio.run(scenario())
    lines = asyncio.run(store.timelines())
    schema = ARCHIVED.with_metadata({"timelines": "".join(f"{line.log} {line.start}\n" for line in lines[1:])})
    for start in (0, 12):
        some = [
            {"seq": seq} | {name: getattr(decode_entry(data), name) for name in ARCHIVED.names[1:]}
            for seq, data in store.log[start : start + (12 if not start else 20)]
        ]
        path = settings.batch.folder / "live_log" / f"5eed-{start:012d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(path, pa.Table.from_pylist(some, schema))
    other = MemoryStore(Meta("f00d", 2, "", {"next_seq": 0}))
    asyncio.run(add(other, 40))
    end = asyncio.run(follow_log(other, engine, reader, asyncio.Event(), to_end=True))
    assert end == Checkpoint("f00d", 0)
    places = set(rows(engine, decisions, "log", "position"))
    assert places == {("5eed", n) for n in range(15)} | {(lines[1].log, n) for n in range(10, 20)} | {("f00d", 0)}
    assert lost_rows(engine) == {("5eed", n) for n in range(10, 15)}


def test_a_database_of_before_goes_on(engine, reader):
    "It has rows and a checkpoint, and no timelines."
    store = MemoryStore(META)
    asyncio.run(add(store, *range(8)))
    asyncio.run(follow_log(store, engine, reader, asyncio.Event(), to_end=True))
    with writing(engine) as connection:
        connection.execute(sa.delete(timelines))
    copy = store.copy()
    asyncio.run(add(store, *range(8, 12)))
    store.restore(copy)
    asyncio.run(add(store, 30))
    asyncio.run(follow_log(store, engine, reader, asyncio.Event(), to_end=True))
    holds_the_log(engine, asyncio.run(store.timelines()), store.log)


@pytest.mark.parametrize(
    ("log", "position", "after"),
    [
        ("5eed", 10, False),  # of the first timeline, which had ended
        ("5eed", 60, False),  # lost before the step
        ("5eed.b", 30, False),
        ("5eed.b", 31, True),
        ("5eed.gone", 60, False),  # a timeline that the store had lost as a whole
        ("5eed.c", 40, True),  # begun after the step
        ("f00d", 99, False),
    ],
)
def test_an_erasure_spares_what_came_after_its_step_and_not_what_was_lost(tmp_path, log, position, after):
    engine = open_database(settings_for(tmp_path))
    lines = [Timeline("5eed", 0), Timeline("5eed.b", 20)]
    with writing(engine) as connection:
        go_on(connection, [Timeline("5eed", 0)], None, NOW)
        save_checkpoint(connection, Checkpoint("5eed", 70))
        go_on(connection, [Timeline("5eed", 0), Timeline("5eed.gone", 50)], None, NOW)
        save_checkpoint(connection, Checkpoint("5eed.gone", 70))
        go_on(connection, lines, None, NOW)
        save_checkpoint(connection, Checkpoint("5eed.b", 34))
        go_on(connection, [*lines, Timeline("5eed.c", 35)], None, NOW)
        note = {"epoch": "5eed", "last": 30, "log": "5eed.b"}
        found = sa.select(is_after_step(sa.literal(log), sa.literal(position), note))
        assert bool(connection.execute(found).scalar()) == after
    await_writer(engine, note, still=LONG)  # a writer of this epoch is not waited for
    engine.dispose()


def test_the_note_of_an_erasure_names_the_timeline_of_its_last_entry(server):
    server.add(*range(4))
    server.restart()
    server.add(4)
    lines, _ = server.read()
    with Client(server.handle.url) as client:
        notes = [live_note(client, Names("orders"), "5eed", last) for last in (-1, 3, 4)]
    assert [note["log"] for note in notes] == ["5eed", "5eed", lines[1].log] and epoch_of(lines[1].log) == "5eed"


@pytest.mark.parametrize(
    ("before", "change", "applied"),
    [
        (("5eed", 7), ("5eed", 6), False),
        (("5eed", 7), ("5eed", 7), True),
        (("5eed", 7), ("5eed.b", 3), True),  # the desk, in a timeline that the writer has not read: 5eed lost entry 7
        (("5eed.b", 3), ("5eed", 9), False),  # the writer, later, before it comes to that timeline
        (("5eed.b", 9), ("5eed.c", 4), True),  # the desk again, and the writer has read neither
        (("f00d", 9), ("5eed", 1), True),  # an earlier log, of before timelines
    ],
)
def test_a_case_shows_its_latest_label(engine, reader, before, change, applied):
    store = MemoryStore(META)
    asyncio.run(add(store, 1))
    asyncio.run(follow_log(store, engine, reader, asyncio.Event(), to_end=True))
    with writing(engine) as connection:
        number = connection.execute(sa.select(decisions.c.id)).scalar()
        shared = {"opened": 0, "review_priority": 0.0, "band": "low", "action": "pass", "amount": 1, "customer": "c"}
        connection.execute(sa.insert(cases).values(OPEN | shared | {"decision_id": number, "time": 0}))
        update_case(connection, number, *before, {"note": "before"})
        update_case(connection, number, *change, {"note": "after"})
    assert rows(engine, cases, "note") == [("after" if applied else "before",)]
