"""Is any acknowledged order lost, or counted twice, when the store and the workers are killed again and again?

    python benchmarks/crash.py [--orders 50000] [--redis-kills 10] [--worker-kills 10] [--connections 8]
                               [--durability always] [--seed 7]

Generated orders are sent over HTTP to the service as `fraud-poc serve` runs it: two worker processes and a server of
its own for the store. Meanwhile that server, and one worker or the other, are killed with SIGKILL, each ten times, at
moments that are drawn and spread over the run: this program only kills, to start them again is the service's part. A
client whose request breaks, or whose answer is degraded, sends the same order again until it is acknowledged with a
position in the log.

At the end the service is stopped and the store's server started once more. Then: does the log hold each acknowledged
order once, at the position and with the score that the client was sent, and nothing else? Do features, scores and
states equal a batch fold over that log, bit by bit? And does a store that is filled again from the log hold the same
bytes? The last line is one JSON object; the exit code is 1 when anything is lost, twice or different.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from drill import ANSWER_S, STUCK_S, Domain, Progress, ask, connection, say, serving, workers_of

from fraud_poc.core.settings import Settings
from fraud_poc.features.table import build_table
from fraud_poc.live.decide import Engine, ServingModel, unpack_record
from fraud_poc.live.load import prepare_db
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import process_id, server_for
from fraud_poc.live.redis_store import Names, open_store
from fraud_poc.live.store import Meta, StoreDown, decode_entry
from fraud_poc.model.bundle import latest_bundle
from fraud_poc.ops.replay import verify


class Run:
    "Orders on their way: what was acknowledged, and what happened besides."

    def __init__(self, domain: Domain, orders: list[tuple[int, dict]], address: str):
        self.domain, self.orders, self.address, self.next = domain, orders, address, iter(orders)
        self.acknowledged, self.met = {}, Counter()

    async def client(self, rate: float = 0) -> None:
        "Send one order after another, each until it is acknowledged; with a rate, no more than so many a second."
        link = None
        for id_key, order in self.next:
            if rate:
                await asyncio.sleep(random.expovariate(rate))
            request, tries = self.domain.request(order), 0
            while id_key not in self.acknowledged:
                if tries:
                    await asyncio.sleep(0.02)
                tries += 1
                try:
                    link = link or await connection(self.address)
                except OSError:
                    self.met["no connection"] += 1
                    continue
                status, _, body = await ask(link, request, ANSWER_S)
                if status == 0:
                    link = None
                answer = json.loads(body) if status == 200 else {}
                if status == 200 and not answer["degraded"]:
                    self.acknowledged[id_key] = answer["position"], answer["score"]
                elif status not in (0, 200, 429, 503):
                    raise RuntimeError(f"status {status}: {body[:500]!r}")
                self.met[
                    "known before"
                    if answer.get("known_before")
                    else answer.get("degraded")
                    or ("accepted" if status == 200 else f"status {status}" if status else "broken off")
                ] += 1
        if link:
            link.transport.abort()

    async def until(self, count: int) -> None:
        "Wait until so many orders are acknowledged."
        while len(self.acknowledged) < count:
            await asyncio.sleep(0.01)


def kill_redis(settings: Settings) -> bool:
    "Kill the store's server, once it answers; False when it did not in time."
    until = time.monotonic() + STUCK_S
    while time.monotonic() < until:
        try:
            with Client((settings.batch.folder / "redis" / "url").read_text(), 2) as client:
                pid = process_id(client)
            os.kill(pid, 9)
            return True
        except (StoreDown, OSError):
            time.sleep(0.05)
    return False


def kill_worker(service: int, rng: random.Random) -> bool:
    "Kill one worker; False when there was none in time."
    until = time.monotonic() + STUCK_S
    while time.monotonic() < until:
        if found := workers_of(service):
            os.kill(rng.choice(found), 9)
            return True
        time.sleep(0.05)
    return False


async def kill(run: Run, service: int, kills: list[str], rng: random.Random) -> Counter:
    "Kill at drawn moments, one in each equal piece of the run."
    done, size = Counter(), len(run.orders) / (len(kills) + 1)
    rng.shuffle(kills)
    for number, what in enumerate(kills):
        await run.until(int(size * (number + rng.uniform(0.1, 0.9))))
        await asyncio.sleep(rng.uniform(0, 0.01))
        done[what] += await asyncio.to_thread(
            *([kill_redis, run.domain.settings] if what == "redis" else [kill_worker, service, rng])
        )
    return done


async def drive(
    domain: Domain, orders: list[tuple[int, dict]], address: str, service: int, options: argparse.Namespace
) -> tuple[Run, Counter]:
    "Send all orders while things die."
    run, rng = Run(domain, orders, address), random.Random(options.seed)
    async with asyncio.TaskGroup() as group:
        killing = group.create_task(
            kill(run, service, ["redis"] * options.redis_kills + ["worker"] * options.worker_kills, rng)
        )
        for _ in range(options.connections):
            group.create_task(run.client())
        group.create_task(tell(run))
    return run, killing.result()


async def tell(run: Run) -> None:
    "Say now and then how far it is; `RuntimeError` when it gets no further."
    progress = Progress("nothing was acknowledged", lambda: len(run.acknowledged))
    while progress.look() < len(run.orders):
        await asyncio.sleep(min(10, 1 + len(run.orders) / 2000))
        say(f"{len(run.acknowledged):,} of {len(run.orders):,} acknowledged")


async def compare_log(settings: Settings, url: str, acknowledged: dict[int, tuple[int, float]]) -> dict:
    "What the log holds of the acknowledged orders, and a batch fold over it."
    patient = settings.model_copy(update={"live": settings.live.model_copy(update={"store_timeout": "60s"})})
    table = build_table(settings)
    bundle = latest_bundle(settings, table)
    async with open_store(patient, url) as store:
        base, log = (await store.meta()).base["next_seq"], {}
        while batch := await store.entries(max(log, default=base - 1), 5_000):
            log |= {seq: decode_entry(data) for seq, data in batch}
        times = Counter(entry.id_key for entry in log.values())
        there = {(entry.id_key, seq): unpack_record(entry.decision).score for seq, entry in log.items()}
        found = {
            "lost": sum((id_key, seq) not in there for id_key, (seq, _) in acknowledged.items()),
            "twice": sum(count > 1 for count in times.values()),
            "never_acknowledged": len(times.keys() - acknowledged.keys()),
            "gaps": max(log, default=base - 1) - base + 1 - len(log),
            "other_score": sum(there.get((id_key, seq)) != score for id_key, (seq, score) in acknowledged.items()),
        }
        return found | await verify(
            patient, table, Engine(patient, ServingModel(table, bundle, bundle.scorer()), store)
        )


def states_of(settings: Settings, url: str) -> Iterator[tuple[bytes, bytes]]:
    "Key and digest of each state in use, without the generation and the token that differ from load to load."
    names, cursor = Names(settings.domain.name), b"0"
    with Client(url) as client:
        prefix = names.states(Meta(**json.loads(client.call("GET", names.meta))).generation)
        while True:
            cursor, keys = client.call("SCAN", cursor, "COUNT", 1000)
            keys = [key for key in keys if key.startswith(prefix)]
            values = client.call("MGET", *keys) if keys else []
            yield from (
                (key[len(prefix) :], hashlib.blake2b(value[8:], digest_size=16).digest())
                for key, value in zip(keys, values)
            )
            if cursor == b"0":
                return


def rebuilt(settings: Settings, url: str) -> dict:
    "Fill the store again from history and log, and compare all states."
    before = dict(states_of(settings, url))
    loaded = prepare_db(settings, url)
    after = dict(states_of(settings, url))
    return {
        "states_in_store": len(before),
        "replayed": loaded["replayed"],
        "rebuilt_differing": sum(before.get(key) != after.get(key) for key in before.keys() | after.keys()),
    }


def drill(options: argparse.Namespace, home: Path) -> dict:
    "The whole drill in a folder."
    start = time.perf_counter()
    domain = Domain(
        home,
        options.orders,
        options.history,
        options.made,
        **{"live.durability": options.durability, "service.workers": 2},
    )
    orders, settings, ready = domain.orders(options.orders), domain.settings, time.perf_counter()
    with serving(domain, home / "service.log") as (address, process):
        begun = time.perf_counter()
        run, kills = asyncio.run(drive(domain, orders, address, process.pid, options))
        seconds = time.perf_counter() - begun
    with server_for(settings) as url:
        found = asyncio.run(compare_log(settings, url, run.acknowledged)) | rebuilt(settings, url)
    shown = [
        ("seconds to prepare", ready - start),
        ("seconds under load", seconds),
        ("orders a second", options.orders / seconds),
    ]
    shown += [*sorted(run.met.items()), *found.items()]
    for name, value in shown:
        print(
            f"{name.replace('_', ' '):<28}{value:>14,.1f}"
            if isinstance(value, float)
            else f"{name.replace('_', ' '):<28}{value:>14,}"
        )
    return {
        "orders": len(orders),
        "acknowledged": len(run.acknowledged),
        **{name: found[name] for name in COUNTED},
        "redis_kills": kills["redis"],
        "worker_kills": kills["worker"],
        "durability": options.durability,
        "met": dict(run.met),
    }


COUNTED = (
    "lost",
    "twice",
    "never_acknowledged",
    "other_score",
    "differing_bits",
    "differing_flags",
    "differing_states",
    "rebuilt_differing",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=50_000)
    parser.add_argument("--history", type=int, default=50_000, help="orders that were there before")
    parser.add_argument("--redis-kills", type=int, default=10)
    parser.add_argument("--worker-kills", type=int, default=10)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--durability", choices=["always", "everysec"], default="always")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="folder for all files, in place of a temporary one")
    parser.add_argument(
        "--made",
        type=Path,
        help="folder of a domain that was made before and is copied, with as many orders to send; its history is used",
    )
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as home:
        result = drill(options, options.keep or Path(home))
    print(json.dumps(result))
    whole = result["acknowledged"] == result["orders"] and not any(result[name] for name in COUNTED)
    raise SystemExit(not whole)


if __name__ == "__main__":
    main()
