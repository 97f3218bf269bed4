"""Is each change of a live log noticed, whatever is removed, exchanged or repeated?

    python benchmarks/chain.py [--entries 1000000] [--changes 1000]

A real server takes so many entries through the script that writes orders, each as large as that of an order. Then the
log is read, and its digests are checked once. Each of the changes is made to a copy of its own of the log: one entry is
removed, two are exchanged, or one is written a second time in place of another; their numbers are made consecutive
again, since a gap would be noticed anyway. The check of a changed log begins with the entry before the first change:
up to there the log is the one that was checked. Shown are the changes that were noticed, the seconds of the check of
the whole log, and the bytes of the server's memory that a digest takes. The last line is one JSON object; the exit
code is 1 when a change was not noticed.
"""

import argparse
import asyncio
import itertools
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from fraud_poc.live.collect import live_log_batches
from fraud_poc.live.load import inspect_store, switch
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import start_redis
from fraud_poc.live.redis_store import Names, RedisStore
from fraud_poc.live.store import BrokenLog, Entry, Meta, StoredEntry, Write, check_chain, encode_entry, event_key

NAMES, META = Names("chain"), Meta("5eed", 1, "table", {"next_seq": 0})
BODY = (
    b'{"order_id":"%016x","customer_id":"%010x","order_amount":%d.50,"email":"%010x@mail.example","location":"FR-LYS"}'
)


def entry(rng: random.Random, number: int) -> bytes:
    "An entry as large as that of an order with 88 features."
    keys = tuple(rng.getrandbits(64) for _ in range(5))
    body = BODY % (number, keys[0] >> 24, keys[1] >> 50, keys[2] >> 24)
    return encode_entry(
        Entry("event", 1_751_000_000_000 + number, number, keys, 2_550, decision=rng.randbytes(525), body=body)
    )


async def fill(url: str, entries: int, rng: random.Random) -> None:
    "Write entries through the store."
    store = RedisStore(url, "chain", 1, 1, 600_000)
    await store.connect()
    for start in range(0, entries, 1_000):
        batch = await store.micro_batch([])
        for number in range(start, min(start + 1_000, entries)):
            batch.add(Write(event_key(number), b"", [], [], [], entry(rng, number)))
        for result in await batch.results():
            assert result.kind == "accepted", result
        print(f"\r{start:,} of {entries:,} entries", end="", flush=True)
    await store.close()


def changed(log: list[StoredEntry], kind: str, rng: random.Random) -> tuple[int, list[StoredEntry]]:
    "Index of the first entry that changes, and the log from it on to behind the last one that does."
    first, second = sorted(rng.sample(range(len(log)), 2))
    between = log[first + 1 : second]
    if kind == "removed":
        first, entries = second, log[second + 1 : second + 2]
    elif kind == "exchanged":
        entries = [log[second], *between, log[first], *log[second + 1 : second + 2]]
    else:
        first, entries = second, [log[first], *log[second + 1 : second + 2]]
    return first, [one._replace(seq=first + index) for index, one in enumerate(entries)]


def is_noticed(log: list[StoredEntry], kind: str, rng: random.Random, end: int) -> bool:
    "Whether a reader notices a change: by a digest, or by an end that is not the last number that was given out."
    first, entries = changed(log, kind, rng)
    last = log[-1].seq - (kind == "removed")
    try:
        check_chain(entries, log[first - 1] if first else None)
    except BrokenLog:
        return True
    return last != end


def bytes_of_digest(client: Client, log: list[StoredEntry]) -> float:
    "Bytes of memory that the digest of an entry takes, by the same entries with and without."
    sizes = []
    for fields in (lambda one: ("e", one.data), lambda one: ("e", one.data, "d", one.digest)):
        for one in log[:20_000]:
            client.call("XADD", "sizes", f"{one.seq}-1", *fields(one))
        sizes.append(client.call("MEMORY", "USAGE", "sizes", "SAMPLES", 0) / len(log[:20_000]))
        client.call("UNLINK", "sizes")
    return sizes[1] - sizes[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--changes", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    rng, noticed, made = random.Random(options.seed), Counter(), Counter()
    with tempfile.TemporaryDirectory() as home, start_redis(Path(home) / "redis", "everysec") as server:
        with Client(server.url) as client:
            switch(client, NAMES, inspect_store(client, NAMES), META, b"", fresh=True)
            asyncio.run(fill(server.url, options.entries, rng))
            end = int(client.call("GET", NAMES.seq))
            log = list(itertools.chain.from_iterable(live_log_batches(client, NAMES, 0, end, 1_000)))
            size = bytes_of_digest(client, log)
    begun = time.perf_counter()
    assert check_chain(log) == log[-1] and len(log) == options.entries
    seconds = time.perf_counter() - begun
    for kind, _ in zip(itertools.cycle(("removed", "exchanged", "repeated")), range(options.changes)):
        made[kind] += 1
        noticed[kind] += is_noticed(log, kind, rng, end)
    print("\n" + ", ".join(f"{kind}: {noticed[kind]} of {made[kind]} noticed" for kind in made))
    found = {"entries": len(log), "changes": sum(made.values()), "noticed": sum(noticed.values())}
    print(json.dumps(found | {"check_seconds": round(seconds, 2), "bytes_per_digest": round(size, 1)}))
    raise SystemExit(found["noticed"] < found["changes"])


if __name__ == "__main__":
    main()
