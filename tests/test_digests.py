"""The digests of the live log: whatever is removed, exchanged, repeated or changed is noticed."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.waiting import in_time

from fraud_poc.core.settings import load_settings
from fraud_poc.live.collect import verify_log
from fraud_poc.live.load import inspect_store, switch
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import start_redis
from fraud_poc.live.redis_store import Names, RedisStore, stored_entries
from fraud_poc.live.store import (
    BrokenLog,
    Entry,
    Meta,
    StoredEntry,
    Write,
    check_chain,
    encode_entry,
    event_key,
    next_digest,
)
from fraud_poc.ops.erasure_live import Digests

ROOT, NAMES = Path(__file__).resolve().parents[1], Names("orders")
SETTINGS = load_settings(ROOT / "config" / "orders.toml", {"batch.folder": "unused", "live.redis_url": ""})


def log_of(bodies: list[bytes], first: int = 0) -> list[StoredEntry]:
    log, digest = [], b""
    for seq, data in enumerate(bodies, first):
        digest = next_digest(digest, data)
        log.append(StoredEntry(seq, data, digest))
    return log


@given(st.data(), st.lists(st.binary(min_size=1, max_size=4), min_size=3, max_size=8, unique=True), st.integers(0, 9))
def test_each_change_is_noticed(data, bodies, first):
    log, places = log_of(bodies, first), st.integers(0, len(bodies) - 1)
    one, other = sorted(data.draw(st.lists(places, min_size=2, max_size=2, unique=True)))
    changes = {
        "removed": [*log[:other], *log[other + 1 :]],
        "exchanged": [*log[:one], log[other], *log[one + 1 : other], log[one], *log[other + 1 :]],
        "repeated": [*log[:other], log[one], *log[other:]],
        "in place of another": [*log[:other], log[one], *log[other + 1 :]],
        "bytes": [*log[:other], log[other]._replace(data=log[other].data + b"x"), *log[other + 1 :]],
        "digest": [*log[:other], log[other]._replace(digest=b""), *log[other + 1 :]],
    }
    kind = data.draw(st.sampled_from(sorted(changes)))
    changed = [entry._replace(seq=first + index) for index, entry in enumerate(changes[kind])]
    end = log[-1].seq
    assert check_chain(log) == log[-1]
    try:
        check_chain(changed)
    except BrokenLog as error:
        assert first < error.seq <= max(end, changed[-1].seq)
    else:  # the end of the log: the number that was given out last tells, or what follows does
        following = StoredEntry(end + 1, b"next", next_digest(log[-1].digest, b"next"))
        assert changed[-1].seq != end or kind == "digest" and other == len(log) - 1
        if kind == "digest":
            with pytest.raises(BrokenLog):
                check_chain([following], changed[-1])


def test_a_number_that_is_missing_is_noticed():
    log = log_of([b"a", b"b", b"c"])
    with pytest.raises(BrokenLog, match="entry 2 of the live log follows entry 0"):
        check_chain([log[0], log[2]])


@pytest.fixture
def server(tmp_path):
    with start_redis(tmp_path / "redis", "everysec") as handle, Client(handle.url) as client:
        meta = Meta("5eed", 1, "table", {"next_seq": 5})
        switch(client, NAMES, inspect_store(client, NAMES), meta, b"", fresh=True)
        yield handle, client


def data_of(number: int) -> bytes:
    return encode_entry(Entry("event", number, number, (1, 2, 3)))


async def add(url: str, numbers: list[int], at_once: int) -> None:
    store = RedisStore(url, "orders", 60_000, 60_000, 60_000)
    await store.connect()
    for start in range(0, len(numbers), at_once):
        batch = await store.micro_batch([])
        for number in numbers[start : start + at_once]:
            batch.add(Write(event_key(number), b"", [], [], [], data_of(number)))
        assert {result.kind for result in await batch.results()} == {"accepted"}
    await store.close()


def test_processes_that_write_at_once_continue_one_chain(server):
    handle, client = server

    async def run() -> None:
        parts = [list(range(start, 120, 4)) for start in range(4)]
        await asyncio.gather(*(add(handle.url, part, at_once) for part, at_once in zip(parts, (1, 3, 8, 20))))

    asyncio.run(in_time(run()))
    assert verify_log(SETTINGS, handle.url) == {"entries": 120, "first": 5, "last": 124, "without_digest": 0}
    log = stored_entries(client.call("XRANGE", NAMES.log, "-", "+"))
    assert log[0].digest == next_digest(b"", log[0].data), "the chain of an empty log begins with nothing"
    client.call("XTRIM", NAMES.log, "MINID", "30-0")
    client.call("SET", NAMES.meta, client.call("GET", NAMES.meta).replace(b'"next_seq": 5', b'"next_seq": 40'))
    assert verify_log(SETTINGS, handle.url) == {"entries": 95, "first": 30, "last": 124, "without_digest": 0}


@pytest.mark.parametrize(
    ("removed", "message"),
    [(5, "begins with number 6, and 5 is needed"), (9, "entry 10 .* follows entry 8"), (14, "begins with number 15")],
)
def test_an_entry_that_the_server_does_not_hold_is_noticed(server, removed, message):
    handle, client = server
    asyncio.run(in_time(add(handle.url, list(range(10)), 8)))
    assert client.call("XDEL", NAMES.log, f"{removed}-1") == 1
    with pytest.raises(ValueError, match=message):
        verify_log(SETTINGS, handle.url)


def test_entries_of_a_version_without_digests_begin_the_chain_anew(server):
    handle, client = server
    asyncio.run(in_time(add(handle.url, [0, 1, 2], 8)))
    for number in (3, 4):  # as the version before writes them
        client.call("XADD", NAMES.log, f"{int(client.call('INCR', NAMES.seq))}-1", "e", data_of(number))
    asyncio.run(in_time(add(handle.url, [5, 6], 8)))
    assert verify_log(SETTINGS, handle.url) == {"entries": 7, "first": 5, "last": 11, "without_digest": 2}
    log = stored_entries(client.call("XRANGE", NAMES.log, "-", "+"))
    assert log[5].digest == next_digest(b"", log[5].data)


def test_an_erasure_hides_no_change_that_was_there_before():
    log = [[b"e", entry.data, b"d", entry.digest] for entry in log_of([b"a", b"b", b"c", b"d"])]
    digests = Digests()
    right = [digests.rewritten(fields, fields[1].upper()) for fields in log]
    assert right == [[b"e", one.data, b"d", one.digest] for one in log_of([b"A", b"B", b"C", b"D"])]
    log[1][1] = b"x"
    digests = Digests()
    wrong = [digests.rewritten(fields, fields[1].upper()) for fields in log]
    with pytest.raises(BrokenLog) as error:
        check_chain([StoredEntry(seq, fields[1], fields[3]) for seq, fields in enumerate(wrong)])
    assert error.value.seq == 1
    assert Digests().rewritten([b"e", b"a"], b"A") == [b"e", b"A"], "an entry without a digest gets none"


def test_the_benchmark_finds_all_changes():
    command = [sys.executable, ROOT / "benchmarks" / "chain.py", "--entries", "1000", "--changes", "60"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert found["changes"] == found["noticed"] == 60 and found["bytes_per_digest"] <= 40
