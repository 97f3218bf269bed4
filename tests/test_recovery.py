"""What a store lost comes back from the database: all of it, once, with the decisions as they were given."""

import asyncio
import json
import random
from datetime import datetime, timedelta

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support.databases import ROOT, settings_for
from support.waiting import in_time
from typer.testing import CliRunner

from fraud_poc.cli import app
from fraud_poc.core.audit import list_audit
from fraud_poc.core.database import checkpoints, open_database, writing
from fraud_poc.core.events import PERSON, Actor
from fraud_poc.core.reading import EventReader
from fraud_poc.data.log import hash_secret
from fraud_poc.desk import recovery
from fraud_poc.desk.recovery import Recovery, connect_once, describe_lost, list_lost, recover
from fraud_poc.desk.rows import EntryReader
from fraud_poc.desk.tables import cases, days, decisions, labels, links, scores
from fraud_poc.desk.writer import follow_log, run_writer
from fraud_poc.features.table import build_table
from fraud_poc.live.collect import verify_log
from fraud_poc.live.decide import Engine, sample_model
from fraud_poc.live.labels import LabelAssertion, LabelWriter, Retraction
from fraud_poc.live.load import inspect_store, switch
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import start_redis
from fraud_poc.live.redis_store import Names, open_store
from fraud_poc.live.store import MemoryStore, Meta, StoreDown, decode_entry
from fraud_poc.live.timelines import lost_tail, timelines
from fraud_poc.ops.replay import compare, fold_log

NOW = 1_751_000_000_000
KEPT = {"database.keep_decisions": "20000d", "live.store_timeout": "60s"}
BO = Actor(PERSON, "bo")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return sample_model(settings_for(tmp_path_factory.mktemp("model")))


@pytest.fixture
def settings(tmp_path, database_url):
    return settings_for(tmp_path / "orders", database_url, **KEPT)


@pytest.fixture
def database(settings):
    engine = open_database(settings)
    yield engine
    engine.dispose()


def order_of(number: int) -> dict:
    "An order of one of five customers, who share addresses; every third is large."
    customer = f"c{number % 5}"
    return {
        "order_id": f"o-{number}",
        "customer_id": customer,
        "order_date": (datetime(2025, 6, 1) + timedelta(minutes=number)).isoformat(),
        "order_amount": 900.5 if number % 3 == 0 else 20.25,
        "email": f"{customer}@mail.example",
        "ip_addr": f"192.0.2.{number % 2}",
        "device": f"d{number % 3}",
        "location": "FR-LYS",
    }


class Shop:
    "Takes orders and labels through a store, and writes its log down."

    def __init__(self, settings, model, store):
        self.engine = Engine(settings, model, store, clock=lambda: NOW)
        self.settings, self.store, secret = settings, store, hash_secret(settings.batch.folder)
        self.reader, self.labels = EventReader(settings, secret), LabelWriter(self.engine, secret)

    async def take(self, *numbers: int) -> list:
        answers = [await self.engine.decide(self.reader.read_dict(order_of(number))) for number in numbers]
        assert not any(answer.degraded for answer in answers)
        return answers

    async def say(self, number: int, fraud: bool, source: str, at: int = NOW):
        change = LabelAssertion(f"o-{number}", fraud, source, at, f"on {number}", BO)
        return await self.labels.assert_label(change, at)

    async def write_down(self, database) -> None:
        reader = EntryReader(self.settings, explain=lambda model, vectors, orders: [None] * len(orders))
        await follow_log(self.store, database, reader, asyncio.Event(), to_end=True)


def ids_in(log) -> list[tuple]:
    "What a log is about: order, and of a label its source, kind and label."
    bodies = [(decode_entry(data).kind, json.loads(decode_entry(data).body)) for _, data in log]
    return [
        (body["order"], body["source"], body["kind"], body["asserted"]) if kind == "label" else (body["order_id"],)
        for kind, body in bodies
    ]


def everything(database, table) -> list[dict]:
    with database.connect() as connection:
        return [dict(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key)).mappings()]


def states_in(store: MemoryStore) -> dict[bytes, bytes]:
    return {key: value[8:] for key, (value, _) in store.held.items() if isinstance(key, bytes)}


def lost_in(database) -> list:
    with database.connect() as connection:
        return list_lost(connection)


async def bring_back(settings, store, database, count: int | None = None) -> Recovery:
    "Bring the lost entries back, or the first of them."
    with database.connect() as connection:
        run = Recovery(settings, store, connection)
        await run.bring_back(list_lost(connection)[:count])
    return run


async def with_a_lost_tail(settings, model, database) -> tuple[Shop, list, tuple]:
    "A shop whose store was restored: what it lost, and the answers of before."
    shop = Shop(settings, model, MemoryStore(Meta("5eed", 1, model.table.hash, {"next_seq": 0})))
    answers = await shop.take(*range(10))
    copy = shop.store.copy()
    answers += await shop.take(*range(10, 30))
    await shop.say(3, True, "chargeback")
    await shop.say(12, True, "analyst")
    wrong = await shop.say(15, True, "analyst")
    await shop.labels.assert_label(Retraction("o-15", wrong.position, "a mistake", BO), NOW + 1)
    await shop.say(18, False, "analyst")
    await shop.write_down(database)
    before = everything(database, days), everything(database, scores), everything(database, cases)
    shop.store.restore(copy)
    await shop.take(30, 31, 12)  # the last was lost, and is decided again
    await shop.write_down(database)
    return shop, answers, before


def test_orders_and_labels_come_back_as_they_were(settings, model, database):
    async def scenario():
        shop, answers, _ = await with_a_lost_tail(settings, model, database)
        lost = describe_lost(database)
        assert (lost["decisions"], lost["labels"]) == (19, 5) and lost["cases"] > lost["open_cases"] > 0
        rows, sums = everything(database, decisions), everything(database, days)
        done = await bring_back(settings, shop.store, database)
        assert done.done == {"decisions": 19, "labels": 5} and not done.reasons
        await shop.write_down(database)
        assert lost_in(database) == [] and everything(database, days) == sums, "nothing is counted twice"

        # each order once in the log, in the sequence of before
        names = [name for name in ids_in(shop.store.log) if len(name) == 1]
        assert len(names) == len(set(names)) == 32
        assert names[13:] == [(f"o-{n}",) for n in range(10, 30) if n != 12]

        # rows of the database: the same but for their place in the log
        now = everything(database, decisions)
        place = {"log": None, "position": None}
        assert [row | place for row in now] == [row | place for row in rows]
        there = {(row["log"], row["position"]) for row in now + everything(database, labels)}
        [*_, last] = await shop.store.timelines()
        assert {(last.log, seq) for seq, _ in shop.store.log if seq >= last.start} <= there

        # callers who send them again get the answer of before
        again = await shop.take(*range(10, 30))
        for first, second in zip(answers[10:], again):
            assert second.known_before
            if second.id != "o-12":
                same = msgspec.structs.replace(second, position=first.position, known_before=False)
                same.expected_loss = first.expected_loss
                assert same == first and abs(second.expected_loss - first.expected_loss) <= 0.005

        # the states are those of a store that took all in this sequence
        other = Shop(settings, model, MemoryStore(Meta("5eed", 1, model.table.hash, {"next_seq": 0})))
        for _, data in shop.store.log:
            entry = decode_entry(data)
            body = json.loads(entry.body)
            if entry.kind == "event":
                await other.take(int(body["order_id"].removeprefix("o-")))
            elif body["kind"] == "assert":
                await other.say(
                    int(body["order"].removeprefix("o-")), body["asserted"] == 1, body["source"], entry.known
                )
            else:
                await other.labels.assert_label(Retraction(body["order"], body["retracts"], body["note"], BO), entry.at)
        assert states_in(shop.store) == states_in(other.store)

    asyncio.run(in_time(scenario()))


def test_cases_and_retractions_name_the_entries_that_are_there_now(settings, model, database):
    async def scenario():
        shop, _, (_, _, before) = await with_a_lost_tail(settings, model, database)
        await bring_back(settings, shop.store, database)
        await shop.write_down(database)
        asserted = {row["position"]: row for row in everything(database, labels) if row["kind"] == "assert"}
        [retraction] = [row for row in everything(database, labels) if row["kind"] == "retract"]
        assert asserted[retraction["retracts"]]["order_id"] == "o-15"
        names = {row["id"]: row["order_id"] for row in everything(database, decisions)}
        now = {row["decision_id"]: row for row in everything(database, cases)}
        for old in before:
            new = now[old["decision_id"]]
            place = {"log": None, "position": None, "assertion": None}
            assert new | place == old | place
            if new["assertion"] is not None and names[new["decision_id"]] != "o-12":
                label = asserted[new["assertion"]]
                assert label["order_id"] == names[new["decision_id"]] and label["note"] == new["note"]
        # the desk can take such a label back
        [cleared] = [row for row in now.values() if names[row["decision_id"]] == "o-18"]
        await shop.labels.assert_label(Retraction("o-18", cleared["assertion"], "", BO), NOW + 5)
        await shop.write_down(database)
        after = {row["decision_id"]: row["status"] for row in everything(database, cases)}
        assert after[cleared["decision_id"]] == "open" and cleared["status"] == "cleared"

    asyncio.run(in_time(scenario()))


@pytest.mark.parametrize("written", [False, True], ids=["before the writer", "after the writer"])
def test_a_run_that_was_ended_is_completed_by_the_next(settings, model, database, written):
    async def scenario():
        shop, *_ = await with_a_lost_tail(settings, model, database)
        first = await bring_back(settings, shop.store, database, 7)
        assert first.done == {"decisions": 7}
        if written:
            await shop.write_down(database)
        second = await bring_back(settings, shop.store, database)
        again = {} if written else {"there_already": 7}
        assert second.done == {"decisions": 12, "labels": 5} | again
        await shop.write_down(database)
        assert lost_in(database) == [] and len(everything(database, decisions)) == 33
        names = ids_in(shop.store.log)
        assert len(names) == len(set(names))

    asyncio.run(in_time(scenario()))


def test_what_the_database_lacks_is_written_like_any_other(settings, model, database):
    async def scenario():
        shop, *_ = await with_a_lost_tail(settings, model, database)
        await bring_back(settings, shop.store, database)
        with writing(database) as connection:  # as when decisions that are too old were removed meanwhile
            connection.execute(sa.delete(labels).where(labels.c.order_id == "o-18"))
            connection.execute(sa.delete(decisions).where(decisions.c.order_id == "o-18"))
        await shop.write_down(database)
        [row] = [row for row in everything(database, decisions) if row["order_id"] == "o-18"]
        [label] = [row for row in everything(database, labels) if row["order_id"] == "o-18"]
        [case] = [one for one in everything(database, cases) if one["decision_id"] == row["id"]]
        assert label["decision_id"] == row["id"] and case["status"] == "cleared"

    asyncio.run(in_time(scenario()))


def test_what_cannot_be_read_any_more_is_told_and_stays_lost(settings, model, database):
    async def scenario():
        shop, *_ = await with_a_lost_tail(settings, model, database)
        with writing(database) as connection:
            for order, body in (("o-20", "{}"), ("o-21", '{"order_id": "o-21"}')):
                connection.execute(sa.update(decisions).where(decisions.c.order_id == order).values(body=body))
        done = await bring_back(settings, shop.store, database)
        assert done.done == {"decisions": 17, "labels": 5, "rejected": 2}
        assert all("field is missing" in reason for reason in done.reasons)
        await shop.write_down(database)
        assert len(lost_in(database)) == 2

    asyncio.run(in_time(scenario()))


def test_a_store_that_fails_ends_the_run_and_nothing_is_made_up(settings, model, database, monkeypatch):
    monkeypatch.setattr(recovery, "AT_ONCE", 4)

    async def scenario():
        shop, *_ = await with_a_lost_tail(settings, model, database)
        length, calls = len(shop.store.log), iter(range(3))

        class Failing:
            def __getattr__(self, name):
                return getattr(shop.store, name)

            async def micro_batch(self, requests):
                if next(calls, None) is None:
                    raise StoreDown("gone")
                return await shop.store.micro_batch(requests)

        with pytest.raises(StoreDown, match="store_down.* at order 'o-23': run again"):
            await bring_back(settings, Failing(), database)
        assert len(shop.store.log) == length + 12
        assert (await bring_back(settings, shop.store, database)).done == {
            "decisions": 7,
            "labels": 5,
            "there_already": 12,
        }

    asyncio.run(in_time(scenario()))


# --- any history -----------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "again", "say", "copy", "restore", "write", "recover"]), st.integers(0, 9)),
    min_size=5,
    max_size=25,
)


@pytest.fixture(scope="module")
def one_database(tmp_path_factory):
    "A database that examples share; each begins by emptying it."
    settings = settings_for(tmp_path_factory.mktemp("any"), **KEPT)
    engine = open_database(settings)
    yield settings, engine
    engine.dispose()


@given(steps=STEPS)
@examples(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_all_that_was_written_down_is_in_the_log_once(one_database, model, steps):
    settings, database = one_database
    with writing(database) as connection:
        for table in (links, cases, labels, decisions, timelines, checkpoints):
            connection.execute(sa.delete(table))

    async def scenario():
        shop, number = Shop(settings, model, MemoryStore(Meta("5eed", 1, model.table.hash, {"next_seq": 0}))), 0
        copies, rng = [shop.store.copy()], random.Random(7)
        for step, count in steps:
            if step == "take":
                await shop.take(*range(number, number + count))
                number += count
            elif step == "again" and number:
                await shop.take(rng.randrange(number))
            elif step == "say" and shop.store.log:
                orders = [name[0] for name in ids_in(shop.store.log) if len(name) == 1]
                await shop.say(int(rng.choice(orders).removeprefix("o-")), count > 4, "chargeback", NOW + count)
            elif step == "copy":
                copies.append(shop.store.copy())
            elif step == "restore":
                shop.store.restore(copies[count % len(copies)])
            elif step == "write":
                await shop.write_down(database)
            elif step == "recover":
                await bring_back(settings, shop.store, database)
        await shop.write_down(database)
        await bring_back(settings, shop.store, database)
        await shop.write_down(database)
        with database.connect() as connection:
            assert lost_tail(connection)[:2] == (0, 0)
        names = ids_in(shop.store.log)
        events = [name for name in names if len(name) == 1]
        assert len(events) == len(set(events))
        assert {(row["order_id"],) for row in everything(database, decisions)} == set(events)
        found = {(row["order_id"], row["source"], row["kind"], row["asserted"]) for row in everything(database, labels)}
        assert found == set(names) - set(events)

    asyncio.run(in_time(scenario()))


# --- a real server ---------------------------------------------------------------------------------------


@pytest.fixture
def server(settings, model):
    with start_redis(settings.batch.folder / "redis", "always") as handle, Client(handle.url) as client:
        names, meta = Names(settings.domain.name), Meta("5eed", 1, model.table.hash, {"next_seq": 0})
        switch(client, names, inspect_store(client, names), meta, b"", fresh=True)
        yield handle


def start_on_older_data(settings, url: str) -> None:
    "What the start of a server on a copy without orders leaves."
    names = Names(settings.domain.name)
    with Client(url) as client:
        gone = (names.states(1), names.records("5eed"), names.log)
        client.call("DEL", *[key for key in client.call("KEYS", names.root + b"*") if key.startswith(gone)])
        client.call("MSET", names.seq, -1, names.run, "another")


def test_the_service_goes_on_meanwhile_and_replay_finds_no_difference(settings, model, database, server):
    async def lose() -> None:
        async with open_store(settings, server.url) as store:
            await Shop(settings, model, store).take(*range(60))

    async def serve(stop: asyncio.Event, numbers) -> int:
        async with open_store(settings, server.url) as store:
            shop, taken = Shop(settings, model, store), 0
            while not stop.is_set():
                await shop.take(next(numbers))
                taken += 1
                await asyncio.sleep(0)
        return taken

    asyncio.run(in_time(lose()))
    run_writer(settings, server.url, to_end=True)
    start_on_older_data(settings, server.url)
    connect_once(settings, server.url)
    run_writer(settings, server.url, to_end=True)

    async def meanwhile():
        stop = asyncio.Event()
        serving = asyncio.create_task(serve(stop, iter(range(100, 100_000))))
        await asyncio.sleep(0)
        done = await asyncio.to_thread(recover, settings, server.url, database, "tester")
        stop.set()
        return done, await serving

    done, taken = asyncio.run(in_time(meanwhile()))
    assert done == {"decisions": 60, "labels": 0, "there_already": 0, "rejected": 0, "reasons": {}} and taken > 0
    run_writer(settings, server.url, to_end=True)
    assert lost_in(database) == []
    act = list_audit(database)[-1]
    assert act["who"] == "tester" and act["what"] == "lost entries brought back" and act["detail"]["decisions"] == 60
    assert verify_log(settings, server.url)["entries"] == 60 + taken

    async def log_of() -> list:
        async with open_store(settings, server.url) as store:
            return [decode_entry(data) for _, data in await store.entries(-1, 100_000)]

    entries, table = asyncio.run(in_time(log_of())), build_table(settings)
    replayed = fold_log(table, settings.columns, entries, {})
    expected = np.array([model.scorer.score(vector) for vector in replayed.vectors], np.float32)
    found = compare(entries, replayed, expected)
    assert found["events"] == taken and found["differing_bits"] + found["differing_flags"] == 0


def test_the_command_shows_first_and_then_brings_back(settings, model, database, server):
    async def lose() -> None:
        async with open_store(settings, server.url) as store:
            await Shop(settings, model, store).take(*range(12))

    asyncio.run(in_time(lose()))
    run_writer(settings, server.url, to_end=True)
    start_on_older_data(settings, server.url)
    changes = {
        "batch.folder": settings.batch.folder,
        "database.url": settings.database.url,
        "database.keep_decisions": "20000d",
    }
    options = ["--json", *(word for name, value in changes.items() for word in ("--set", f"{name}={value}"))]
    config = str(ROOT / "config" / "orders.toml")

    def run(*words: str) -> dict:
        done = CliRunner().invoke(app, ["recover", "--config", config, *words, *options])
        return json.loads(done.stdout.splitlines()[-1]) | {"exit_code": done.exit_code}

    shown = run()
    assert (shown["decisions"], shown["exit_code"]) == (12, 0) and "--yes" in shown["note"]
    with Client(server.url) as client:
        assert client.call("XLEN", Names(settings.domain.name).log) == 0
    done = run("--yes")
    assert (done["decisions"], done["still_lost"], done["exit_code"]) == (12, 0, 0)
    again = run("--yes")
    assert again["decisions"] == 0 and "nothing is lost" in again["note"]
