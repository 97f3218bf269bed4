"""Does anything get lost or changed when a version takes the place of another, and when the old one comes back?

    python benchmarks/upgrade.py [--before 13ba393] [--orders 600] [--history 1500]

The commit `--before` is unpacked beside this one and makes a domain: log, model, store and database. Its service takes
orders, then that of this version, each on the same folder, store and database; callers go on and send each order again
until it is acknowledged. Then the old version is started again on the database of this one, which it must refuse by
name, with nothing changed in store and database. With the copy of the database from before the upgrade it goes on,
and at the end this version takes over again.

Counted are acknowledged orders that are not in the log, or not in the database, at the end (missing), and those that
are there more than once (twice). `seconds_without` is the longest time in which no order was acknowledged. The last
line is one JSON object; the exit code is 1 when anything is missing, twice or changed, or the refusal has no name.
"""

import argparse
import asyncio
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import sqlalchemy as sa
from drill import ANSWER_S, CONFIG, ROOT, ask, connection, say, serving

from fraud_poc.core.database import make_engine, open_database
from fraud_poc.core.processes import free_port
from fraud_poc.core.settings import load_settings
from fraud_poc.desk.tables import decisions
from fraud_poc.desk.writer import run_writer
from fraud_poc.live.collect import live_log_batches, verify_log
from fraud_poc.live.load import inspect_store
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import server_for
from fraud_poc.live.redis_store import Names
from fraud_poc.live.store import decode_entry

BEFORE = "13ba393"  # the last version without timelines, digests and backups
TURNS = ("before", "now", "before", "now")
CALLERS = 4
MAKE = """
import json, sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
from drill import Domain
folder, orders, history = Path(sys.argv[1]), *map(int, sys.argv[2:])
domain = Domain(folder, orders, history)
made = {"changes": domain.changes, "key": domain.key, "orders": [order for _, order in domain.orders(orders)]}
(folder / "made.json").write_text(json.dumps(made))
"""


def unpack(commit: str, folder: Path) -> Path:
    "The files of a commit."
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        files.extractall(folder, filter="data")
    return folder


def make(tree: Path, folder: Path, orders: int, history: int) -> SimpleNamespace:
    "A domain that the code of `tree` makes: changes of settings, key, and orders that come after the history."
    command = [sys.executable, "-c", MAKE, str(folder), str(orders), str(history)]
    subprocess.run(command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, check=True, stdout=sys.stderr)
    made = SimpleNamespace(**json.loads((folder / "made.json").read_text()))
    made.changes["service.port"] = free_port()
    return made


class Callers:
    "Send orders, each again until it is acknowledged."

    def __init__(self, made: SimpleNamespace):
        self.made, self.left = made, iter(made.orders)
        self.address = f"http://127.0.0.1:{made.changes['service.port']}"
        self.acknowledged, self.moments = set(), [time.perf_counter()]

    def request(self, order: dict) -> bytes:
        "An order as bytes on the wire."
        body, key = json.dumps(order).encode(), self.made.key.encode()
        head = b"POST /score HTTP/1.1\r\nhost: drill\r\nx-api-key: %s\r\ncontent-type: application/json\r\n"
        return (head + b"content-length: %d\r\n\r\n%s") % (key, len(body), body)

    async def caller(self) -> None:
        "One of them."
        link = None
        for order in self.left:
            while order["order_id"] not in self.acknowledged:
                try:
                    link = link or await connection(self.address)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                status, _, body = await ask(link, self.request(order), ANSWER_S)
                if status == 200 and not json.loads(body)["degraded"]:
                    self.acknowledged.add(order["order_id"])
                    self.moments.append(time.perf_counter())
                elif status in (0, 200, 429, 503):
                    link = link if status else None
                    await asyncio.sleep(0.05)
                else:
                    raise RuntimeError(f"status {status}: {body[:500]!r}")
            await asyncio.sleep(0.01)
        if link:
            link.transport.abort()

    async def until(self, count: int) -> None:
        "Wait until so many orders are acknowledged."
        while len(self.acknowledged) < count:
            await asyncio.sleep(0.02)


def contents(settings) -> str:
    "A digest of all that store and database hold."
    found, names = hashlib.sha256(), Names(settings.domain.name)
    with server_for(settings) as url, Client(url) as client:
        for key in sorted(client.call("KEYS", names.root + b"*")):
            found.update(key + (client.call("DUMP", key) or b""))
    engine = make_engine(sa.URL.create("sqlite", database=str(settings.batch.folder / "desk.sqlite")))
    with engine.connect() as connection:
        found.update("\n".join(connection.connection.driver_connection.iterdump()).encode())
    engine.dispose()
    return found.hexdigest()


def refusal(tree: Path, made: SimpleNamespace, settings, log: Path) -> dict:
    "Start the old version on what this one has used: its words, and whether anything changed."
    before = contents(settings)
    try:
        with serving(made, log, root=tree):
            words = ""
    except RuntimeError as error:
        words = str(error)
    line = next((line for line in words.splitlines() if "revision" in line), "")
    return {"refused": line.strip()[-200:], "changed": int(contents(settings) != before)}


async def drive(trees: dict, made: SimpleNamespace, settings, home: Path) -> tuple[Callers, dict]:
    "All turns, while orders go on."
    callers, found, share = Callers(made), {}, len(made.orders) // len(TURNS)
    database, kept = settings.batch.folder / "desk.sqlite", home / "kept.sqlite"
    running = [asyncio.create_task(callers.caller()) for _ in range(CALLERS)]
    for number, turn in enumerate(TURNS):
        if number == 1:
            shutil.copy(database, kept)
        if number == 2:
            found = await asyncio.to_thread(refusal, trees[turn], made, settings, home / "refused.log")
            for path in database.parent.glob("desk.sqlite*"):
                path.unlink()
            shutil.copy(kept, database)
        service = serving(made, home / f"service {number}.log", root=trees[turn])
        await asyncio.to_thread(service.__enter__)
        try:
            begun = len(callers.acknowledged)
            last = number == len(TURNS) - 1
            await (asyncio.gather(*running) if last else callers.until(min(begun + share, len(made.orders))))
        finally:
            await asyncio.to_thread(service.__exit__, None, None, None)
        say(f"{turn}: {len(callers.acknowledged) - begun} orders")
    return callers, found


def compare(settings, acknowledged: set[str]) -> dict:
    "What log and database hold of the acknowledged orders."
    names = Names(settings.domain.name)
    with server_for(settings) as url:
        run_writer(settings, url, to_end=True)
        verify_log(settings, url)
        with Client(url) as client:
            store = inspect_store(client, names)
            batches = live_log_batches(client, names, store.meta.base["next_seq"], int(store.seq), 5_000)
            entries = [decode_entry(entry.data) for batch in batches for entry in batch]
    log = Counter(json.loads(entry.body)["order_id"] for entry in entries if entry.kind == "event")
    engine = open_database(settings)
    with engine.connect() as connection:
        rows = Counter(connection.execute(sa.select(decisions.c.order_id)).scalars())
    engine.dispose()
    return {
        "missing": len(acknowledged - log.keys()) + len(acknowledged - rows.keys()),
        "twice": sum(count > 1 for counts in (log, rows) for count in counts.values()),
        "timelines": len(store.timelines),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help="commit of the old version")
    parser.add_argument("--orders", type=int, default=600)
    parser.add_argument("--history", type=int, default=1_500, help="orders that were there before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        trees = {"before": unpack(options.before, Path(home) / "before"), "now": ROOT}
        made = make(trees["before"], Path(home) / "domain", options.orders, options.history)
        settings = load_settings(CONFIG, made.changes)
        callers, found = asyncio.run(drive(trees, made, settings, Path(home)))
        found |= compare(settings, callers.acknowledged)
    gaps = [later - sooner for sooner, later in zip(callers.moments[1:], callers.moments[2:])]
    result = {"before": options.before, "acknowledged": len(callers.acknowledged), **found}
    print(json.dumps(result | {"seconds_without": round(max(gaps), 1)}))
    raise SystemExit(bool(found["missing"] + found["twice"] + found["changed"]) or not found["refused"])


if __name__ == "__main__":
    main()
