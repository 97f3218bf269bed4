"""Does anything stay lost, unnoticed or twice after the store went back in time?

    python benchmarks/restore.py [--rounds 200] [--orders 80] [--seed 7]

Orders and labels go through a real server into its log, and the decision writer copies them into a database. In each
round the store then goes back in time, in one of three ways in turn:

* restored: its files are replaced by a copy that was made while orders came in;
* cut: the server is killed, and a random number of bytes is cut off the end of its append-only file;
* promoted: a replica that stopped following while orders came in takes the place of the primary.

The server starts, new orders come in, some of the lost ones are sent again by their callers, and `recover` brings the
rest back while orders go on. Before the store goes back, the writer has read all of its log: what neither the store nor
the database has, nothing can bring back (the metric `fraud_poc_decisions_behind` is the size of that window).

Counted are orders that were acknowledged and are not in the log at the end of a round (missing), or are in it more than
once (twice), and lost orders that the database did not know of before recovery (unnoticed). A round also fails when
callers who send recovered orders again do not get the decision that was given, or when the digests of the log are
wrong. The last line is one JSON object; the exit code is 1 when anything is missing, twice, unnoticed or wrong.
"""

import argparse
import asyncio
import json
import logging
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import msgspec
import sqlalchemy as sa
from drill import CONFIG, Progress, say

from fraud_poc.core.database import open_database
from fraud_poc.core.events import system_clock
from fraud_poc.core.processes import free_port
from fraud_poc.core.reading import EventReader
from fraud_poc.core.settings import load_settings
from fraud_poc.data.log import hash_secret
from fraud_poc.desk.recovery import connect_once, list_lost, recover
from fraud_poc.desk.tables import decisions
from fraud_poc.desk.writer import run_writer
from fraud_poc.live.collect import live_log_batches, verify_log
from fraud_poc.live.decide import Answer, Engine, sample_model
from fraud_poc.live.labels import LabelAssertion, LabelWriter
from fraud_poc.live.load import inspect_store, switch
from fraud_poc.live.redis_client import Client, parse_url
from fraud_poc.live.redis_server import RedisServer, start_redis
from fraud_poc.live.redis_store import Names, open_store
from fraud_poc.live.store import Meta, decode_entry

KINDS = ("restored", "cut", "promoted")
AT_ONCE = 8  # orders in a micro-batch
CUSTOMERS = 40


class Shop:
    "A store, its database, and the answers that callers got."

    def __init__(self, home: Path, rng: random.Random, durability: str = "always"):
        changes = {"batch.folder": str(home / "orders"), "live.redis_url": "", "live.store_timeout": "60s"}
        self.home, self.rng, self.durability, self.stack = home, rng, durability, ExitStack()
        self.settings = load_settings(CONFIG, changes)
        self.names, self.database = Names(self.settings.domain.name), open_database(self.settings)
        self.model, self.secret = sample_model(self.settings), hash_secret(self.settings.batch.folder)
        self.reader = EventReader(self.settings, self.secret)
        self.acknowledged: dict[str, Answer] = {}
        self.number, self.servers = 0, 0
        self.server = self.new_server()
        self.fill()

    def new_server(self) -> RedisServer:
        "A server with a folder of its own."
        self.servers += 1
        return self.stack.enter_context(start_redis(self.home / f"server {self.servers}", self.durability))

    def fill(self) -> None:
        "Make the store an empty one of this feature table, as `prepare-db` does."
        meta = Meta("5eed", 1, self.model.table.hash, {"next_seq": 0})
        with Client(self.server.url) as client:
            switch(client, self.names, inspect_store(client, self.names), meta, b"", fresh=True)

    def order(self, number: int) -> dict:
        "An order of some customer."
        customer = f"c{number % CUSTOMERS}"
        return {
            "order_id": f"o-{number}",
            "customer_id": customer,
            "order_date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(system_clock() // 1000)),
            "order_amount": 5 + number % 977,
            "email": f"{customer}@mail.example",
            "ip_addr": f"192.0.2.{number % 7}",
            "device": f"d{number % 11}",
            "location": "FR-LYS",
        }

    async def send(self, engine: Engine, orders: list[dict]) -> list[Answer]:
        "Send orders, in micro-batches; the answers."
        answers = []
        for start in range(0, len(orders), AT_ONCE):
            events = [self.reader.read_dict(order) for order in orders[start : start + AT_ONCE]]
            found = {}
            await engine.decide_all(events, found.__setitem__)
            for index in range(len(events)):
                if isinstance(found[index], Exception):
                    raise found[index]
                assert not found[index].degraded, found[index].degraded
                answers.append(found[index])
        return answers

    async def take(self, engine: Engine, count: int) -> None:
        "New orders, and labels on some of them."
        orders = [self.order(number) for number in range(self.number, self.number + count)]
        self.number += count
        for order, answer in zip(orders, await self.send(engine, orders)):
            self.acknowledged[order["order_id"]] = answer
        labels = LabelWriter(engine, self.secret)
        for order in self.rng.sample(orders, count // 10):
            await labels.assert_label(LabelAssertion(order["order_id"], self.rng.random() < 0.5, "chargeback"))

    def run(self, act) -> object:
        "Run `act(engine)` through a connection of its own."

        async def inside():
            async with open_store(self.settings, self.server.url) as store:
                return await act(Engine(self.settings, self.model, store))

        return asyncio.run(inside())

    def write_down(self) -> None:
        "Let the decision writer read the log to its end."
        run_writer(self.settings, self.server.url, to_end=True)

    def in_log(self) -> Counter:
        "Orders in the log of the store."
        with Client(self.server.url) as client:
            last = int(client.call("GET", self.names.seq))
            batches = live_log_batches(client, self.names, 0, last, 5_000)
            entries = [decode_entry(entry.data) for batch in batches for entry in batch]
        return Counter(json.loads(entry.body)["order_id"] for entry in entries if entry.kind == "event")

    def lost(self) -> set[str]:
        "Orders that the database knows to be lost."
        with self.database.connect() as connection:
            ids = [entry.id for entry in list_lost(connection) if entry.kind == "decision"]
            return set(connection.execute(sa.select(decisions.c.order_id).where(decisions.c.id.in_(ids))).scalars())


def files_of(server: RedisServer) -> Path:
    "The folder of a server's append-only files."
    return next(server.folder.rglob("appendonlydir"))


def restored(shop: Shop, count: int) -> None:
    "A copy that is made while orders come in takes the place of the files."
    copy, before = shop.home / "copy", shop.rng.randrange(count)

    async def act(engine: Engine) -> None:
        await shop.take(engine, before)
        going_on = asyncio.create_task(shop.take(engine, count - before))
        await asyncio.sleep(shop.rng.uniform(0, 0.01))
        await asyncio.to_thread(shutil.copytree, files_of(shop.server), copy)
        await going_on

    shop.run(act)
    shop.write_down()
    shop.server.kill()
    shutil.rmtree(files := files_of(shop.server))
    shutil.move(copy, files)
    shop.server.ensure()


def cut(shop: Shop, count: int) -> None:
    "The end of the append-only file is cut off."
    shop.run(lambda engine: shop.take(engine, count))
    shop.write_down()
    shop.server.kill()
    last = max(files_of(shop.server).glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)
    size = last.stat().st_size
    with open(last, "r+b") as file:
        file.truncate(size - shop.rng.randrange(1, min(size, 10_000 * count)))
    shop.server.ensure()


def promoted(shop: Shop, count: int) -> None:
    "A replica that is behind takes the place of the primary."
    replica, port, before = shop.new_server(), free_port(), shop.rng.randrange(count)
    with Client(shop.server.url) as primary, Client(replica.url) as client:
        primary.call("CONFIG", "SET", "port", port)
        client.call("CONFIG", "SET", "masterauth", parse_url(shop.server.url).password)
        client.call("REPLICAOF", "127.0.0.1", port)
        following = Progress("the replica does not follow", lambda: client.call("INFO", "replication"))
        while b"master_link_status:up" not in following.look():
            time.sleep(0.01)

        async def act(engine: Engine) -> None:
            await shop.take(engine, before)
            going_on = asyncio.create_task(shop.take(engine, count - before))
            await asyncio.sleep(shop.rng.uniform(0, 0.01))
            await asyncio.to_thread(client.call, "REPLICAOF", "NO", "ONE")
            await going_on

        shop.run(act)
        primary.call("CONFIG", "SET", "port", 0)
    shop.write_down()
    shop.server.stop()
    shop.server = replica


def round_of(shop: Shop, kind: str, count: int) -> dict:
    "Go back in time once; what was found."
    {"restored": restored, "cut": cut, "promoted": promoted}[kind](shop, count)
    connect_once(shop.settings, shop.server.url)
    shop.write_down()
    log, known = shop.in_log(), shop.lost()
    lost = shop.acknowledged.keys() - log.keys()
    again = set(shop.rng.sample(sorted(lost), len(lost) // 4))
    orders = [json.loads(row) for row in bodies_of(shop, again)]

    async def after(engine: Engine) -> None:
        await shop.take(engine, count // 4)
        for order, answer in zip(orders, await shop.send(engine, orders)):
            shop.acknowledged[order["order_id"]] = answer

    shop.run(after)
    begun, done = time.perf_counter(), []

    async def meanwhile(engine: Engine) -> None:
        bringing = asyncio.create_task(
            asyncio.to_thread(recover, shop.settings, shop.server.url, shop.database, "drill")
        )
        while not bringing.done():
            await shop.take(engine, 10)
        done.append(await bringing)

    shop.run(meanwhile)
    seconds = time.perf_counter() - begun
    shop.write_down()
    log = shop.in_log()
    verify_log(shop.settings, shop.server.url)
    wrong = len(shop.lost()) + done[0]["rejected"]
    back = sorted(lost - again)
    orders = [json.loads(row) for row in bodies_of(shop, back[:20])]
    for answer in shop.run(lambda engine: shop.send(engine, orders)):
        given = shop.acknowledged[answer.id]
        same = msgspec.structs.replace(given, position=answer.position, known_before=True)
        wrong += same != msgspec.structs.replace(answer, expected_loss=given.expected_loss)
    return {
        "lost": len(lost),
        "missing": len(shop.acknowledged.keys() - log.keys()),
        "twice": sum(times > 1 for times in log.values()),
        "unnoticed": len(lost ^ known),
        "recovered": done[0]["decisions"],
        "wrong": wrong,
        "seconds": seconds,
    }


def bodies_of(shop: Shop, orders) -> list[str]:
    "The orders as they were sent, by their ids."
    query = sa.select(decisions.c.body).where(decisions.c.order_id.in_(sorted(orders)), decisions.c.id == latest())
    with shop.database.connect() as connection:
        return list(connection.execute(query).scalars())


def latest() -> sa.ScalarSelect:
    "The id of the newest row of an order."
    other = decisions.alias()
    return sa.select(sa.func.max(other.c.id)).where(other.c.order_id == decisions.c.order_id).scalar_subquery()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--orders", type=int, default=80, help="before the store goes back, in each round")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    logging.getLogger("fraud_poc").setLevel(logging.CRITICAL + 1)  # what is lost is what this is about
    rng, found, seconds = random.Random(options.seed), Counter(), []
    with tempfile.TemporaryDirectory() as home:
        shop = Shop(Path(home), rng)
        with shop.stack:
            for number in range(options.rounds):
                kind = KINDS[number % len(KINDS)]
                one = round_of(shop, kind, options.orders)
                seconds.append(one.pop("seconds"))
                found.update(one)
                say(f"round {number + 1} of {options.rounds}: {kind}, {one['lost']} lost, {one['recovered']} recovered")
                if one["missing"] + one["twice"] + one["unnoticed"] + one["wrong"]:
                    print(f"\nround {number + 1} ({kind}): {one}", file=sys.stderr)
        shop.database.dispose()
    result = {"rounds": options.rounds, "acknowledged": len(shop.acknowledged), **found}
    print("\n" + json.dumps(result | {"seconds": round(statistics.mean(seconds), 3)}))
    raise SystemExit(bool(found["missing"] + found["twice"] + found["unnoticed"] + found["wrong"]))


if __name__ == "__main__":
    main()
