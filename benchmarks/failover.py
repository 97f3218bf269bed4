"""Is anything lost that was acknowledged when the primary dies, and how soon are orders accepted again?

    python benchmarks/failover.py [--sentinel [--alive]] [--rounds 100] [--servers 2] [--orders 2000]
                                  [--connections 4] [--replicas 1] [--seed 7]

Orders go through a store with several addresses, a primary and its replicas, with `live.confirm_replicas = 1`, or 0 to
see what the default can lose. In each round the primary is killed while orders come in, a replica is promoted
(REPLICAOF NO ONE), and the old primary starts again and becomes a replica of the new one. With `--sentinel`, three
Sentinel processes do both: this program only kills the primary, and starts it again when another one has taken its
place. With `--alive` it kills nothing: Sentinel is told to promote a replica while the primary goes on, as it does when
only the Sentinels do not reach it. Callers send each order again until it is acknowledged: while there is no replica it
is refused.

Counted are acknowledged orders that are not in the log at the end (missing), and orders that are in it more than once
(twice). `seconds_to_accept` is the time from the kill to the first order that was sent later and acknowledged; with two
servers the start of the old primary and its copy of the log are part of it. `seconds_to_promote` is the part of it
until a replica is promoted. Before the rounds, orders are timed with and without confirmation, in turns:
`milliseconds`. The last line is one JSON object; the exit code is 1 when anything is missing (with confirmation) or
twice.
"""

import argparse
import asyncio
import json
import logging
import random
import statistics
import tempfile
import time
from pathlib import Path

from drill import say
from restore import Shop
from sentinel import Node, Sentinels, happened, settled

from fraud_poc.live.decide import Engine
from fraud_poc.live.redis_store import open_store
from fraud_poc.live.store import StoreUnconfirmed

TURNS = 4  # of the timed orders: without and with confirmation, each twice
PAUSE_S = 0.01  # before an order is sent again


class ByHand:
    "A person promotes the replica that has most, and lets the other servers follow it."

    def __init__(self, nodes: list[Node]):
        self.nodes, self.primary = nodes, nodes[0]

    async def promoted(self, replicas: list[Node]) -> None:
        "Promote one, when the primary was killed."
        self.primary = max(replicas, key=lambda node: node.number("slave_repl_offset"))
        self.primary.call("REPLICAOF", "NO", "ONE")

    async def rejoined(self) -> None:
        "Let all others follow the primary."
        for node in self.nodes:
            if node is not self.primary:
                node.call("REPLICAOF", "127.0.0.1", self.primary.port)
        await settled(self.nodes)


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


async def failover(
    shop: Shop, callers: Callers, nodes: list[Node], operator: ByHand | Sentinels, alive: bool
) -> tuple[float, float]:
    "Kill the primary and go on with a replica; the seconds until one was promoted, and until an order was accepted."
    enough = len(shop.acknowledged) + shop.rng.randrange(20, 60)
    await happened(lambda: len(shop.acknowledged) > enough, "orders are acknowledged")
    old = next(node for node in nodes if node.server is shop.server)
    await asyncio.to_thread(operator.replace if alive else old.kill)
    callers.killed = time.perf_counter()
    await operator.promoted([node for node in nodes if node is not old])
    promoted = time.perf_counter() - callers.killed
    await asyncio.to_thread(old.start)
    await operator.rejoined()
    primary = await settled(nodes)
    shop.server = primary.server
    await happened(lambda: callers.accepted > callers.killed, "an order is accepted")
    return promoted, callers.accepted - callers.killed


async def drill(shop: Shop, options: argparse.Namespace) -> dict:
    "All of it."
    nodes = [Node(server) for server in (shop.server, *(shop.new_server() for _ in range(options.servers - 1)))]
    operator = ByHand(nodes)
    await operator.rejoined()
    urls, seconds = ",".join(node.url for node in nodes), {0: [], 1: []}
    for turn in range(TURNS):
        seconds[turn % 2] += await timed(shop, turn % 2, urls, options.orders // TURNS, options.connections)
    if options.sentinel:
        operator = shop.stack.enter_context(Sentinels(shop.home / "sentinels", nodes, options.info_ms))
        await operator.begin()
    opened, engine = engine_of(shop, options.replicas, urls)
    took = []
    async with opened as store:
        callers = Callers(shop, engine(store))
        running = asyncio.create_task(callers.run(options.connections))
        for number in range(options.rounds):
            promoted, accepted = await failover(shop, callers, nodes, operator, options.alive)
            took.append((promoted, accepted))
            say(f"round {number + 1} of {options.rounds}: promoted after {promoted:.2f} s, accepted {accepted:.2f} s")
        callers.last = shop.number
        await running
    log, (promoted, accepted) = shop.in_log(), zip(*took)
    return {
        "rounds": options.rounds,
        "servers": options.servers,
        "by": "Sentinel" if options.sentinel else "hand",
        "primary": "lives" if options.alive else "killed",
        "acknowledged": len(shop.acknowledged),
        "missing": len(shop.acknowledged.keys() - log.keys()),
        "twice": sum(times > 1 for times in log.values()),
        "seconds_to_promote": {"p50": rounded(promoted, 50), "most": round(max(promoted), 3)},
        "seconds_to_accept": {"p50": rounded(accepted, 50), "most": round(max(accepted), 3)},
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
    parser.add_argument("--sentinel", action="store_true", help="Sentinel promotes, in place of this program")
    parser.add_argument("--alive", action="store_true", help="with --sentinel: the primary is not killed")
    parser.add_argument("--servers", type=int, default=2, help="a primary and its replicas")
    parser.add_argument("--orders", type=int, default=2_000, help="timed with and without confirmation, in all")
    parser.add_argument("--connections", type=int, default=4, help="callers at once")
    parser.add_argument("--replicas", type=int, default=1, help="that confirm orders, in the rounds")
    parser.add_argument("--info-ms", type=int, default=10_000, help="between two looks of Sentinel at a server; INFO")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    if options.alive and not options.sentinel:
        parser.error("--alive is for --sentinel")
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
