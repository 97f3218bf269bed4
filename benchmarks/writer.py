"""Is any decision missing in the database, or there twice, when the decision writer is killed again and again?

    python benchmarks/writer.py [--orders 20000] [--kills 10] [--connections 8] [--rate 400] [--busy 0]
                                [--database URL] [--seed 7]

Generated orders are sent over HTTP to the service as `fraud-poc serve` runs it, while the process that writes
decisions is killed with SIGKILL at moments that are drawn and spread over the run, each time after it has written
something, or has had time to. This program only kills; to start it again is the part of whoever started it: the
service, or `writer_process` in this program, where the service runs none. When all orders are answered, the writer is
given time to come to the end of the log.

With `--busy N`, so many processes keep processors busy meanwhile and until the database has all: the writer has a low
priority, and must catch up all the same.

Then: does the database hold each accepted order once, at the position and with the score that the client was sent,
and nothing else? Is each entry of the log a row? Do links, cases and rollups add up to the decisions? At the end the
same log is written into an empty database, to see how fast that goes. The last line is one JSON object; the exit code
is 1 when anything is missing, twice or different.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import sqlalchemy as sa
from crash import Run, tell
from drill import STUCK_S, Domain, Progress, serving, writers_of

from fraud_poc.core.database import Checkpoint, open_database, read_checkpoint
from fraud_poc.core.settings import Settings
from fraud_poc.desk.rows import EntryReader
from fraud_poc.desk.tables import cases, days, decisions, labels, links, scores
from fraud_poc.desk.writer import BATCH, begin_log, write_entries
from fraud_poc.desk.writer_process import writer_process
from fraud_poc.live.decide import unpack_record
from fraud_poc.live.redis_server import server_for
from fraud_poc.live.redis_store import open_store
from fraud_poc.live.store import Entry, decode_entry


async def kill(run: Run, service: int, engine: sa.Engine, kills: int, rng: random.Random) -> Counter:
    "Kill the writer at drawn moments, one in each equal piece of the run, once it has written after its start."
    done, last = Counter(), None
    for number in range(kills):
        await run.until(int(len(run.orders) * (number + rng.uniform(0.1, 0.9)) / kills))
        until = time.monotonic() + STUCK_S / 4
        while (now := await asyncio.to_thread(read_checkpoint, engine)) == last and time.monotonic() < until:
            await asyncio.sleep(0.02)
        await asyncio.sleep(rng.uniform(0, 0.5))
        done["kills after something was written"] += now != last
        last = await asyncio.to_thread(read_checkpoint, engine)
        for pid in await asyncio.to_thread(writers_of, service, os.getpid()):
            os.kill(pid, 9)
        done["kills"] += 1
    return done


async def drive(
    domain: Domain,
    orders: list[tuple[int, dict]],
    address: str,
    service: int,
    engine: sa.Engine,
    options: argparse.Namespace,
) -> tuple[Run, Counter]:
    "Send all orders while the writer dies."
    run, rng = Run(domain, orders, address), random.Random(options.seed)
    async with asyncio.TaskGroup() as group:
        killing = group.create_task(kill(run, service, engine, options.kills, rng))
        for _ in range(options.connections):
            group.create_task(run.client(options.rate / options.connections))
        group.create_task(tell(run))
    return run, killing.result()


async def read_all(settings: Settings, url: str) -> tuple[str, dict[int, bytes]]:
    "Epoch and entries of the live log."
    async with open_store(settings, url) as store:
        log, meta = {}, await store.meta()
        while batch := await store.entries(max(log, default=-1), 5_000):
            log |= dict(batch)
    return meta.epoch, log


def caught_up(engine: sa.Engine, at: Checkpoint) -> float:
    "Wait until the log is written; returns how long that took."
    start, progress = (
        time.monotonic(),
        Progress(f"of a log that ends at {at}, nothing was written", lambda: read_checkpoint(engine)),
    )
    while progress.look() != at:
        time.sleep(0.05)
    return time.monotonic() - start


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    "Within it, so many processes of ordinary priority never wait."
    children = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def rows(engine: sa.Engine, table: sa.Table, *names: str) -> list[tuple]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.select(*[table.c[name] for name in names]))]


def compare(engine: sa.Engine, log: dict[int, Entry], acknowledged: dict[int, tuple[int, float]]) -> dict:
    "What the database holds against the answers that clients got and what the log holds."
    there = rows(engine, decisions, "position", "score", "order_id", "id", "action", "amount")
    seen = rows(engine, decisions, "band", "reasons")
    events, positions = (
        {seq: entry for seq, entry in log.items() if entry.kind == "event"},
        Counter(row[0] for row in there),
    )
    acknowledged_scores, linked_decisions = (
        {position: score for position, score in acknowledged.values()},
        Counter(number for (number,) in rows(engine, links, "decision_id")),
    )
    keys = {
        number: sum(map(bool, events[position].keys[:4]))
        for position, _, _, number, _, _ in there
        if position in events
    }
    found = {
        "stored": len(there),
        "twice": sum(count - 1 for count in positions.values()) + len(there) - len({row[2] for row in there}),
        "missing": sum(seq not in positions for seq in events),
        "not_in_log": sum(position not in events for position in positions),
        "other_score": sum(
            score != acknowledged_scores.get(position) or score != unpack_record(events[position].decision).score
            for position, score, *_ in there
        ),
    }
    found["other_links"] = sum(linked_decisions[number] != count for number, count in keys.items()) + len(
        linked_decisions.keys() - keys.keys()
    )
    found["other_cases"] = len(
        {number for (number,) in rows(engine, cases, "decision_id")} ^ {row[3] for row in there if row[4] != "pass"}
    )
    found["other_sums"] = (
        abs(sum(n for (n,) in rows(engine, days, "events")) - len(there))
        + abs(sum(n for (n,) in rows(engine, scores, "events")) - len(there))
        + abs(sum(n for (n,) in rows(engine, days, "amount")) - sum(row[5] for row in there))
    )
    found["without_reasons"] = sum(band != "low" and not reasons for band, reasons in seen)
    return found | {
        "with_reasons": sum(band != "low" for band, _ in seen),
        "cases": sum(row[4] != "pass" for row in there),
        "labels": len(rows(engine, labels, "id")),
    }


def rate(settings: Settings, epoch: str, log: dict[int, bytes], folder: Path) -> dict:
    "Entries a second of one writer on the same log and an empty database, with reasons and without."
    rates, entries = {}, sorted(log.items())
    for name, explain in (
        ("with reasons", None),
        ("without reasons", lambda model, vectors, orders: [None] * len(orders)),
    ):
        engine, reader = (
            open_database(settings, f"sqlite:///{folder}/{name.split()[0]}.sqlite"),
            EntryReader(settings, explain),
        )
        mark, start, used = begin_log(engine, None, epoch), time.perf_counter(), time.process_time()
        for at in range(0, len(entries), BATCH):
            mark = write_entries(engine, reader, mark, entries[at : at + BATCH])
        rates[f"entries a second {name}"] = len(entries) / (time.perf_counter() - start)
        rates[f"entries a CPU second {name}"] = len(entries) / (time.process_time() - used)
        engine.dispose()
    return rates


def drill(options: argparse.Namespace, home: Path) -> dict:
    "The whole drill in a folder."
    domain = Domain(
        home,
        options.orders,
        options.history,
        **({"database.url": options.database} if options.database else {}),
    )
    orders, settings = domain.orders(options.orders), domain.settings
    engine = open_database(settings)
    with server_for(settings) as url, serving(domain, home / "service.log") as (address, process):
        beside = nullcontext() if writers_of(process.pid) else writer_process(settings, url)
        with beside, busy_processes(options.busy):
            begun = time.perf_counter()
            run, kills = asyncio.run(drive(domain, orders, address, process.pid, engine, options))
            seconds = time.perf_counter() - begun
            epoch, log = asyncio.run(read_all(settings, url))
            behind = caught_up(engine, Checkpoint(epoch, max(log)))
    found = compare(engine, {seq: decode_entry(entry) for seq, entry in log.items()}, run.acknowledged) | {
        "seconds_behind": behind
    }
    engine.dispose()
    shown = {
        "seconds under load": seconds,
        "orders a second": len(orders) / seconds,
        **run.met,
        **kills,
        **found,
        **rate(settings, epoch, log, home),
    }
    for name, value in shown.items():
        print(
            f"{name.replace('_', ' '):<40}{value:>14,.1f}"
            if isinstance(value, float)
            else f"{name.replace('_', ' '):<40}{value:>14,}"
        )
    return {
        "accepted": len(run.acknowledged),
        "stored": found["stored"],
        **{name: found[name] for name in COUNTED},
        "kills": kills["kills"],
        "seconds_behind": round(behind, 1),
        "entries_a_second": round(shown["entries a second with reasons"]),
    }


COUNTED = (
    "twice",
    "missing",
    "not_in_log",
    "other_score",
    "other_links",
    "other_cases",
    "other_sums",
    "without_reasons",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=20_000)
    parser.add_argument("--history", type=int, default=30_000, help="orders that were there before")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument(
        "--rate", type=float, default=400, help="most orders a second; 0 = as many as the service answers"
    )
    parser.add_argument("--busy", type=int, default=0, help="processes that keep processors busy meanwhile")
    parser.add_argument(
        "--database", default="", help="address of an empty PostgreSQL database; SQLite when there is none"
    )
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        result = drill(options, Path(home))
    print(json.dumps(result))
    whole = result["accepted"] == result["stored"] == options.orders and not any(result[name] for name in COUNTED)
    raise SystemExit(not whole)


if __name__ == "__main__":
    main()
