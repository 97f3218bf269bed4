"""Is a backup that is taken under load whole, and how long do backup, check and restore of a million decisions take?

    python benchmarks/backup.py [--decisions 1000000] [--connections 4] [--keep FOLDER]

Generated orders are decided by the engine of the service, in micro-batches, until store, log and database hold so many
decisions. While callers then send more orders to the service over HTTP, each until it is acknowledged, `fraud-poc
backup` runs; afterwards `verify-backup`, and `restore` into an empty place. Of what is restored, the whole live log is
folded again in batch, as `fraud-poc replay --verify` does: features, flags, scores and states are compared bit by bit.

Counted are orders that were acknowledged before the backup began (`acknowledged`) and are not in the restored log, or
not in the restored database (missing), and orders that are in one of them more than once (twice). `bytes` is the size
of the backup, `replayed` the number of decisions that were compared. `memory_mb` is the most that each step took, with
the store's server where it starts one; that of `replay` includes what this program itself holds. The last line is one
JSON object; the exit code is 1 when anything is missing, twice or different.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path

import psutil
import sqlalchemy as sa
from drill import ANSWER_S, CONFIG, ROOT, Domain, Progress, ask, connection, memory_of, say, serving

from fraud_poc.core.database import open_database, read_checkpoint
from fraud_poc.core.reading import EventReader
from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.data.log import hash_secret
from fraud_poc.desk.tables import decisions
from fraud_poc.features.batch import compute_features
from fraud_poc.features.table import build_table
from fraud_poc.live.collect import live_log_batches
from fraud_poc.live.decide import default_engine
from fraud_poc.live.load import inspect_store
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import server_for
from fraud_poc.live.redis_store import Names, open_store, patient
from fraud_poc.live.store import decode_entry
from fraud_poc.ops.replay import raw_orders, verify

AT_ONCE, WORKERS = 64, 2  # orders in a micro-batch, micro-batches in flight
HISTORY = 0.25  # orders that were there before, for each decision
SHORT = {
    "training.train_days": 24,
    "training.validation_days": 8,
    "training.test_days": 4,
    "training.delay": "14d",
}  # fits into the history's part of the sample
BYTES_EACH = 16_000  # of disk, for each decision, in all that is made here


class Load:
    "Callers that send orders to the service until they are stopped; `acknowledged` are the ids of all that were taken."

    def __init__(self, domain: Domain, address: str, acknowledged: set[str]):
        self.domain, self.address, self.acknowledged = domain, address, acknowledged
        self.orders, self.over = sent_again(domain), asyncio.Event()

    async def call(self) -> None:
        "One caller."
        link = None
        while not self.over.is_set():
            order = next(self.orders)
            while order["order_id"] not in self.acknowledged:
                try:
                    link = link or await connection(self.address)
                    status, _, body = await ask(link, self.domain.request(order), ANSWER_S)
                except OSError:
                    status, body = 0, b""
                if status == 200 and not json.loads(body)["degraded"]:
                    self.acknowledged.add(order["order_id"])
                    continue
                if status not in (0, 200, 429, 503):
                    raise RuntimeError(f"status {status}: {body[:500]!r}")
                link = link if status else None
                await asyncio.sleep(0.02)
        if link:
            link.transport.abort()


def sent_again(domain: Domain) -> Iterator[dict]:
    "The orders once more, under other ids, without end."
    for turn in range(1, 1_000_000):
        for _, order in raw_orders(domain.settings, domain.parts):
            yield order | {"order_id": f"{order['order_id']}-{turn}"}


async def decide(settings: Settings, url: str, orders: Iterator[dict], count: int) -> set[str]:
    "Let the engine decide some orders; their ids."
    reader, done = EventReader(settings, hash_secret(settings.batch.folder)), set()
    async with open_store(patient(settings), url) as store:
        engine = default_engine(settings)
        engine.store = store
        progress = Progress("nothing was decided", lambda: len(done))

        async def work() -> None:
            while batch := [reader.read_dict(order) for order in islice(orders, AT_ONCE)]:
                waiting = batch
                while waiting:  # another micro-batch may have been in the way
                    progress.look()
                    answers = {}
                    await engine.decide_all(waiting, answers.__setitem__)
                    for answer in answers.values():
                        if isinstance(answer, Exception):
                            raise answer
                    done.update(answer.id for answer in answers.values() if not answer.degraded)
                    waiting = [event for index, event in enumerate(waiting) if answers[index].degraded]
                if len(done) // (count // 10 or 1) > (len(done) - len(batch)) // (count // 10 or 1):
                    say(f"{len(done):,} of {count:,} decided")

        await asyncio.gather(*(work() for _ in range(WORKERS)))
    return done


def written(settings: Settings, url: str) -> None:
    "Wait until the decision writer has read the whole log."
    database, names = open_database(settings), Names(settings.domain.name)
    with Client(url) as client:
        last = int(client.call("GET", names.seq))
    at = Progress("nothing was written", lambda: getattr(read_checkpoint(database), "position", -1))
    while at.look() < last:
        time.sleep(0.1)
    database.dispose()


def command(domain: Domain, memory: dict[str, int], name: str, *words: str, **changes) -> tuple[dict, float]:
    "Run a command in a process of its own: its summary, and seconds."
    sets = {} if name == "verify-backup" else domain.changes | changes
    options = [] if name == "verify-backup" else ["--config", str(CONFIG)]
    options += [word for key, value in sets.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    line = [sys.executable, "-c", "from fraud_poc.cli import main; main()", name, *words, *options, "--json"]
    begun = time.perf_counter()
    with subprocess.Popen(line, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        with measured(memory, name, process.pid):
            output = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}: {output[-2000:]!r}")
    return json.loads(output.splitlines()[-1]), time.perf_counter() - begun


@contextmanager
def measured(memory: dict[str, int], name: str, pid: int) -> Iterator[None]:
    "Note how much memory a process and all that it started have together at most, within the context."
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            with suppress(psutil.Error):
                top = psutil.Process(pid)
                used = sum(memory_of(one.pid) for one in [top, *top.children(recursive=True)])
                memory[name] = max(memory.get(name, 0), used // 1_000_000)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


async def under_load(load: Load, connections: int, act) -> object:
    "What `act` gives, which is called in a thread while callers send orders."
    calls = [asyncio.create_task(load.call()) for _ in range(connections)]
    enough = len(load.acknowledged) + 10 * connections
    progress = Progress("nothing was acknowledged", lambda: len(load.acknowledged))
    while progress.look() < enough:
        await asyncio.sleep(0.01)
    try:
        return await asyncio.to_thread(act)
    finally:
        load.over.set()
        await asyncio.gather(*calls)


def restored_ids(settings: Settings, url: str) -> tuple[Counter, Counter]:
    "Orders in the live log, and in the database."
    names, database = Names(settings.domain.name), open_database(settings)
    with Client(url) as client:
        base, last = inspect_store(client, names).meta.base["next_seq"], int(client.call("GET", names.seq))
        batches = live_log_batches(client, names, base, last, 5_000)
        bodies = (decode_entry(entry.data).body for entry in chain.from_iterable(batches))
        log = Counter(json.loads(body)["order_id"] for body in bodies)
    with database.connect() as reading:
        rows = Counter(reading.execute(sa.select(decisions.c.order_id)).scalars())
    database.dispose()
    return log, rows


async def replayed(settings: Settings, url: str) -> dict:
    "What was served against a batch fold over the live log, and against the states of the store."
    async with open_store(patient(settings), url, writes=False) as store:
        engine = default_engine(settings)
        engine.store = store
        return await verify(settings, build_table(settings), engine)


def back_up(domain: Domain, home: Path, options: argparse.Namespace, memory: dict[str, int]) -> tuple[dict, set[str]]:
    "Fill the domain and copy it under load: figures, and the orders that were acknowledged before."
    orders, begun = (order for _, order in raw_orders(domain.settings, domain.parts)), time.perf_counter()
    with (
        serving(domain, home / "service.log", writer_last=False) as (address, service),
        server_for(domain.settings) as url,
        measured(memory, "serve", service.pid),
    ):
        first = islice(orders, options.decisions)
        acknowledged = asyncio.run(decide(domain.settings, url, first, options.decisions))
        decided = time.perf_counter() - begun
        written(domain.settings, url)
        filled, before = time.perf_counter() - begun, set()
        say(f"{len(acknowledged):,} decisions are in the database")

        def act() -> tuple[dict, float]:
            before.update(set(acknowledged))
            return command(domain, memory, "backup", str(home / "backups"), "--secrets", str(home / "secrets.json"))

        load = Load(domain, address, acknowledged)
        summary, seconds = asyncio.run(under_load(load, options.connections, act))
        meanwhile = len(acknowledged) - len(before)
    figures = {"seconds_decide": round(decided, 1), "seconds_until_written": round(filled, 1)}
    figures |= {"seconds_backup": round(seconds, 1), "acknowledged_meanwhile": meanwhile, "bytes": summary["bytes"]}
    return figures, before


def drill(options: argparse.Namespace, home: Path) -> dict:
    "All of it."
    memory = {}
    domain = Domain(home / "domain", options.decisions, round(HISTORY * options.decisions), **SHORT)
    figures, before = back_up(domain, home, options, memory)
    say(f"backup: {figures['seconds_backup']} s, while {figures['acknowledged_meanwhile']:,} orders were acknowledged")
    _, seconds_verify = command(domain, memory, "verify-backup", str(home / "backups"))
    changes = {"batch.folder": str(home / "restored" / "orders")}
    places = str(home / "backups"), "--secrets", str(home / "secrets.json")
    _, seconds_restore = command(domain, memory, "restore", *places, **changes)
    say(f"verify-backup: {seconds_verify:.1f} s, restore: {seconds_restore:.1f} s")
    restored, begun = load_settings(CONFIG, domain.changes | changes), time.perf_counter()
    compute_features(restored, until=domain.end_of_history(options.decisions))
    with measured(memory, "replay", os.getpid()), server_for(restored) as url:
        log, rows = restored_ids(restored, url)
        found = asyncio.run(replayed(restored, url))
    return {
        "decisions": options.decisions,
        **figures,
        "seconds_verify": round(seconds_verify, 1),
        "seconds_restore": round(seconds_restore, 1),
        "seconds_replay": round(time.perf_counter() - begun, 1),
        "replayed": found["events"],
        **{name: found[name] for name in ("differing_bits", "differing_flags", "differing_states")},
        "acknowledged": len(before),
        "missing": len(before - log.keys()) + len(before - rows.keys()),
        "twice": sum(count > 1 for count in chain(log.values(), rows.values())),
        "memory_mb": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=4, help="callers at once, during the backup")
    parser.add_argument("--keep", type=Path, help="folder for all files, in place of a temporary one")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as home:
        home, needed = options.keep or Path(home), BYTES_EACH * options.decisions
        if shutil.disk_usage(home).free < needed:
            raise SystemExit(f"{home} needs {needed / 1e9:.0f} GB of free space: name another folder with --keep")
        result = drill(options, home)
    print("\n" + json.dumps(result))
    wrong = ("missing", "twice", "differing_bits", "differing_flags", "differing_states")
    raise SystemExit(any(result[name] for name in wrong) or result["replayed"] < result["acknowledged"])


if __name__ == "__main__":
    main()
