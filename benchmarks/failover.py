"""Is anything lost that was acknowledged when the primary dies, and how soon are orders accepted again?

    python benchmarks/failover.py [--rounds 100] [--orders 2000] [--connections 4] [--replicas 1] [--seed 7]

Orders go through a store with two addresses, a primary and its replica, with `live.confirm_replicas = 1`, or 0 to see
what the default can lose. In each round the primary is killed while orders come in, the replica is promoted (REPLICAOF
NO ONE), and the old primary starts again and becomes the replica of the new one. Callers send each order again until
it is acknowledged: while there is no replica it is refused.

Counted are acknowledged orders that are not in the log at the end (missing), and orders that are in it more than once
(twice). `seconds_to_accept` is the time from the kill to the first order that was sent later and acknowledged; the
start of the old primary and its copy of the log are part of it. Before the rounds, orders are timed with and without
confirmation, in turns: `milliseconds`. The last line is one JSON object; the exit code is 1 when anything is missing
(with confirmation) or twice.
"""

import argparse
import asyncio
import json
import logging
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from drill import STUCK_S, say
from restore import Shop

from fraud_poc.core.processes import free_port
from fraud_poc.live.decide import Engine
from fraud_poc.live.redis_client import Client, parse_url
from fraud_poc.live.redis_server import RedisServer
from fraud_poc.live.redis_store import open_store, run_id_of
from fraud_poc.live.store import StoreUnconfirmed

TURNS = 4  # of the timed orders: without and with confirmation, each twice
PAUSE_S = 0.01  # before an order is sent again


async def happened(condition: Callable[[], object], what: str) -> None:
    "Wait until something is so; `RuntimeError` when it is not for too long."
    try:
        async with asyncio.timeout(STUCK_S):
            while not condition():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise RuntimeError(f"{what}: not within {STUCK_S:.0f} s") from None


async def follow(replica: RedisServer, primary: RedisServer) -> None:
    "Let a server follow another, until it has what the other one had when the copy was there."
    with Client(primary.url) as client, Client(replica.url) as other:
        port = free_port()
        client.call("CONFIG", "SET", "port", port, "repl-diskless-sync-delay", 0)
        other.call("CONFIG", "SET", "masterauth", parse_url(primary.url).password)
        other.call("REPLICAOF", "127.0.0.1", port)
        await happened(lambda: b"master_link_status:up" in other.call("INFO", "replication"), "the replica follows")
        await happened(lambda: b"state=online" in client.call("INFO", "replication"), "the primary knows it")
        there = offset(client, "master_repl_offset")
        await happened(lambda: offset(other, "slave_repl_offset") >= there, "the replica has caught up")


def offset(client: Client, name: str) -> int:
    "How far a server is in the stream of writes; a replica reports its own by another name than its primary."
    return int(re.search(rf"{name}:(\d+)".encode(), client.call("INFO", "replication"))[1])


class Callers:
    "Send orders one after the other, each again until it is acknowledged."

    def __init__(self, shop: Shop, engine: Engine):
        self.shop, self.engine = shop, engine
        self.seconds = []  # of the attempts that were acknowledged
        self.killed = self.accepted = 0.0  # time of the kill, by time.perf_counter; of the first order sent after it
        self.last = None  # number of the order at which they stop

    async def acknowledged(self, order: dict) -> None:
        "Send an order until it is acknowledged."
        event = self.shop.reader.read_dict(order)
        while True:
            sent = time.perf_counter()
            try:
                answer = await self.engine.decide(event)
            except StoreUnconfirmed:
                answer = None
            if answer and not answer.degraded:
                break
            await asyncio.sleep(PAUSE_S)
        self.seconds.append(time.perf_counter() - sent)
        if sent > self.killed > self.accepted:
            self.accepted = time.perf_counter()
        self.shop.acknowledged[order["order_id"]] = answer

    async def call(self) -> None:
        "One caller."
        while self.last is None or self.shop.number < self.last:
            self.shop.number += 1
            await self.acknowledged(self.shop.order(self.shop.number))

    async def run(self, connections: int) -> None:
        "Several callers."
        await asyncio.gather(*(self.call() for _ in range(connections)))


def engine_of(shop: Shop, replicas: int, urls: str):
    "The store of these addresses, and how to make an engine of it."
    live = shop.settings.live.model_copy(update={"store_timeout": "2s", "confirm_replicas": replicas})
    settings = shop.settings.model_copy(update={"live": live})
    return open_store(settings, urls), lambda store: Engine(settings, shop.model, store)


async def timed(shop: Shop, replicas: int, urls: str, orders: int, connections: int) -> list[float]:
    "Seconds for each of some orders."
    opened, engine = engine_of(shop, replicas, urls)
    async with opened as store:
        callers = Callers(shop, engine(store))
        callers.last = shop.number + orders
        await callers.run(connections)
    return callers.seconds


async def failover(shop: Shop, callers: Callers, replica: RedisServer) -> tuple[RedisServer, float]:
    "Kill the primary and go on with its replica; the new replica, and the seconds until an order was accepted."
    old, enough = shop.server, len(shop.acknowledged) + shop.rng.randrange(20, 60)
    await happened(lambda: len(shop.acknowledged) > enough, "orders are acknowledged")
    await asyncio.to_thread(old.kill)
    callers.killed = time.perf_counter()
    shop.server = replica
    with Client(replica.url) as client:
        client.call("REPLICAOF", "NO", "ONE")
        run = run_id_of(client.call("INFO", "server"), client.address)
        await happened(lambda: client.call("GET", shop.names.run) == run, "the service uses the new primary")
    await asyncio.to_thread(old.ensure)
    await follow(old, replica)
    await happened(lambda: callers.accepted > callers.killed, "an order is accepted")
    return old, callers.accepted - callers.killed


async def drill(shop: Shop, options: argparse.Namespace) -> dict:
    "All of it."
    primary, replica = shop.server, shop.new_server()
    await follow(replica, primary)
    urls, seconds = f"{primary.url},{replica.url}", {0: [], 1: []}
    for turn in range(TURNS):
        seconds[turn % 2] += await timed(shop, turn % 2, urls, options.orders // TURNS, options.connections)
    opened, engine = engine_of(shop, options.replicas, urls)
    until_accepted = []
    async with opened as store:
        callers = Callers(shop, engine(store))
        running = asyncio.create_task(callers.run(options.connections))
        for number in range(options.rounds):
            replica, took = await failover(shop, callers, replica)
            until_accepted.append(took)
            say(f"round {number + 1} of {options.rounds}: accepted after {took:.2f} s")
        callers.last = shop.number
        await running
    log = shop.in_log()
    return {
        "rounds": options.rounds,
        "acknowledged": len(shop.acknowledged),
        "missing": len(shop.acknowledged.keys() - log.keys()),
        "twice": sum(times > 1 for times in log.values()),
        "seconds_to_accept": {"p50": rounded(until_accepted, 50), "most": round(max(until_accepted), 3)},
        "milliseconds": {
            name: {f"p{percent}": rounded([1000 * one for one in seconds[replicas]], percent) for percent in (50, 99)}
            for name, replicas in (("without", 0), ("with", 1))
        },
    }


def rounded(values: list[float], percent: int) -> float:
    "A percentile."
    return round(statistics.quantiles([*values, *values[:1]], n=100, method="inclusive")[percent - 1], 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--orders", type=int, default=2_000, help="timed with and without confirmation, in all")
    parser.add_argument("--connections", type=int, default=4, help="callers at once")
    parser.add_argument("--replicas", type=int, default=1, choices=(0, 1), help="that confirm orders, in the rounds")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    logging.getLogger("fraud_poc").setLevel(logging.CRITICAL + 1)  # servers that go away are what this is about
    with tempfile.TemporaryDirectory() as home:
        shop = Shop(Path(home), random.Random(options.seed))
        with shop.stack:
            found = asyncio.run(drill(shop, options))
        shop.database.dispose()
    print("\n" + json.dumps(found))
    raise SystemExit(bool(options.replicas and found["missing"] or found["twice"]))


if __name__ == "__main__":
    main()
