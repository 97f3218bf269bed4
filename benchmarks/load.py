"""What happens when twice as many orders come as the service can answer?

    python benchmarks/load.py [--seconds 60] [--workers 1] [--connections 16] [--search 10]

The service runs as `fraud-poc serve` does, with a server of its own for the store. First the rate that it sustains:
so many connections, each of which sends the next order when it has the answer to the last (closed loop). Then half of
that rate, and then twice of it, each order at its fixed time whatever has become of the others, on as many
connections as that takes (open loop). Half of the rate is sent a second time while the decision writer is suspended:
what the writer costs those who wait for an answer. The time of an answer counts from the moment at which its order
was due. An order that the client itself sends more than 5 ms late (its core was taken from it) is sent, answered and
counted, but its time is not among the times: how many these are is shown.

Shown are p50 and p99 of the answers to accepted orders, the share that was refused with 429 or 503, whether each
refusal says when to come again (Retry-After), everything else that came back, and the memory of the processes that
score and of the one that writes decisions (the store's server, which keeps every order, aside). Each load begins when
all decisions so far are in the database, the first after enough of them for the writer's memory to be full. The
client has the last core of the machine to itself; the service, its store and its decision writer share the others.
The last line is one JSON object; the exit code is 1 when an answer is neither a score nor a clean refusal, or when
p99 at twice the rate is more than three times that at half of it.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvloop
from drill import Connection, Domain, Progress, connection, family, memory_of, say, serving, writers_of

from fraud_poc.core.events import system_clock
from fraud_poc.live.redis_server import server_runs
from fraud_poc.service.client import ServiceClient

MOST_OPEN = 5_000  # requests without an answer; more of them, and the service hangs
NO_WRITER = "half, no writer"
SENT_LATE_S = 0.005  # an order that is sent later than this after its time says nothing of the service


class Orders:
    "New orders without end: identities of recorded ones, an id of their own, the time of now."

    def __init__(self, domain: Domain, patterns: int):
        self.number, self.head = 0, random.randrange(10**6)
        marks = {"order_id": "@" * 24, "order_date": "#" * 19}
        self.patterns = [domain.request(order | marks) for _, order in domain.orders(patterns)]

    def next(self) -> bytes:
        "The next order as bytes on the wire."
        self.number += 1
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(system_clock() // 1000)).encode()
        pattern = self.patterns[self.number % len(self.patterns)]
        return pattern.replace(b"@" * 24, b"load-%06d-%012d" % (self.head, self.number)).replace(b"#" * 19, now)


class Seen:
    "What came back."

    def __init__(self):
        self.times, self.answers, self.count, self.unclean, self.late = [], Counter(), 0, 0, 0

    def note(self, due: float, sent: float, status: int, head: bytes, body: bytes) -> None:
        "Note an answer."
        kind = (
            "accepted"
            if status == 200 and b'"degraded":null' in body
            else "degraded"
            if status == 200
            else "refused"
            if status in (429, 503)
            else f"status {status}"
        )
        self.answers[kind] += 1
        self.count += 1
        if sent - due > SENT_LATE_S:
            self.late += 1
        elif kind == "accepted":
            self.times.append(time.perf_counter() - due)
        if kind == "refused" and not re.search(rb"\r\nretry-after: *[1-9]", head):
            self.unclean += 1

    def summary(self) -> dict:
        "Counts, and quantiles in milliseconds."
        p50, p99 = (1000 * float(np.quantile(self.times, q)) if self.times else float("nan") for q in (0.5, 0.99))
        sent = sum(self.answers.values())
        return {
            "sent": sent,
            "accepted": self.answers["accepted"],
            "p50_ms": round(p50, 2),
            "p99_ms": round(p99, 2),
            "refused_share": round(self.answers["refused"] / sent, 4),
            "errors": sent - self.answers["accepted"] - self.answers["refused"] + self.unclean,
            "other": {k: n for k, n in self.answers.items() if k not in ("accepted", "refused")},
            "sent_late_share": round(self.late / sent, 4),
        }


async def closed_loop(address: str, orders: Orders, connections: int, seconds: float) -> tuple[float, Seen]:
    "Accepted orders a second when each connection waits for its answer."
    seen, loop = Seen(), asyncio.get_running_loop()
    end, links = time.perf_counter() + seconds, [await connection(address) for _ in range(connections)]
    over, left = loop.create_future(), len(links)

    def go(link: Connection) -> None:
        nonlocal left
        start = time.perf_counter()
        if start < end and not link.transport.is_closing():
            return link.send(
                orders.next(), lambda *answer: (seen.note(start, start, *answer), loop.call_soon(go, link))
            )
        left -= 1
        link.transport.abort()
        if not left:
            over.set_result(None)

    begun = time.perf_counter()
    for link in links:
        go(link)
    await over
    return seen.answers["accepted"] / (time.perf_counter() - begun), seen


async def open_loop(address: str, orders: Orders, rate: float, seconds: float) -> Seen:
    "Orders at fixed times."
    seen, free, waiting, start = Seen(), [], set(), time.perf_counter() + 0.1

    async def fresh(due: float) -> None:
        try:
            launch(await connection(address), due)
        except OSError:
            seen.note(due, due, 0, b"", b"")

    def launch(link: Connection, due: float) -> None:
        sent = time.perf_counter()

        def answered(*answer) -> None:
            seen.note(due, sent, *answer)
            if not link.transport.is_closing():
                free.append(link)

        link.send(orders.next(), answered)

    free += [await connection(address) for _ in range(64)]
    for number in range(int(rate * seconds)):
        due = start + number / rate
        while (now := time.perf_counter()) < due:
            await asyncio.sleep(min(due - now, 0.002))
        while free and free[-1].transport.is_closing():
            free.pop()
        if free:
            launch(free.pop(), due)
        else:
            if number - seen.count > MOST_OPEN:
                raise RuntimeError(f"{MOST_OPEN:,} requests are without an answer: the service hangs")
            task = asyncio.create_task(fresh(due))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        if number % 64 == 0:
            await asyncio.sleep(0)
    progress = Progress("no answer came", lambda: seen.count)
    while progress.look() < int(rate * seconds):
        await asyncio.sleep(0.01)
    for link in free:
        link.transport.abort()
    return seen


def memory(pid: int) -> dict[str, int]:
    "Bytes of the processes of a service that score, and of the one that writes decisions."
    writing = writers_of(pid)
    return {
        "scoring": sum(memory_of(one) for one in family(pid) if one not in writing),
        "writer": sum(map(memory_of, writing)),
    }


async def all_written(address: str, key: str) -> None:
    "Wait until all decisions are in the database, as the service tells it."
    client = ServiceClient(address, key)

    def behind() -> float:
        "Entries that are not in the database yet; -1 when the store was too busy to say."
        found = re.search(r"^fraud_poc_decisions_behind (\S+)$", client.ask("GET", "/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else -1

    progress = Progress("no decision went into the database", behind)
    while await asyncio.to_thread(progress.look):
        await asyncio.sleep(0.2)


@contextmanager
def suspended(pids: Iterable[int]) -> Iterator[None]:
    "Within it, these processes get no processor time."
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def measure(address: str, key: str, service: int, orders: Orders, options: argparse.Namespace) -> dict:
    "All three loads."
    await closed_loop(address, orders, options.connections, options.search)  # connections, code and memory get warm
    await all_written(address, key)
    sustainable, seen = await closed_loop(address, orders, options.connections, options.search)
    found, sizes = {"closed loop": seen.summary()}, [memory(service)]
    if not sustainable:
        raise RuntimeError(f"no order was accepted: {dict(seen.answers)}")
    say(f"{sustainable:,.0f} orders a second are sustained")
    for name, factor in (("half the rate", 0.5), (NO_WRITER, 0.5), ("twice the rate", 2.0)):
        await all_written(address, key)
        with suspended(writers_of(service) if name == NO_WRITER else []):
            found[name] = (await open_loop(address, orders, factor * sustainable, options.seconds)).summary()
        sizes.append(memory(service))
        say(f"{name} is over")
    return {"sustainable": sustainable, "loads": found, "memory": sizes}


@contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    "Within it, this process and those that it starts run on these cores."
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def drill(options: argparse.Namespace, home: Path) -> dict:
    "The whole drill in a folder."
    domain = Domain(
        home,
        options.patterns,
        options.history,
        options.made,
        **{
            "service.workers": options.workers,
            # the open loop may need many connections, all from one address: it is about orders, not about connections
            "service.max_connections": 10_000,
            "service.max_connections_per_address": 10_000,
        },
        **({"live.store_timeout": "60s"} if options.busy_machine else {}),
    )
    cores = sorted(os.sched_getaffinity(0))
    with (
        on_cores(cores[:-1] or cores),
        serving(domain, home / "service.log", not options.busy_machine) as (address, process),
        on_cores(cores[-1:]),
    ):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(measure(address, domain.key, process.pid, Orders(domain, options.patterns), options))
    loads, left = found["loads"], server_runs(domain.settings.batch.folder / "redis")
    print(f"sustainable: {found['sustainable']:,.0f} orders a second on {options.connections} connections")
    print(f"{'':<16}{'sent':>10}{'accepted':>10}{'p50 ms':>9}{'p99 ms':>9}{'refused':>9}{'errors':>8}{'sent late':>11}")
    for name, load in loads.items():
        print(
            f"{name:<16}{load['sent']:>10,}{load['accepted']:>10,}{load['p50_ms']:>9.1f}{load['p99_ms']:>9.1f}"
            f"{load['refused_share']:>9.1%}{load['errors']:>8}{load['sent_late_share']:>11.1%}"
        )
    growth = {}
    for part in ("scoring", "writer"):
        sizes = [size[part] for size in found["memory"]]
        growth[part] = round(max(sizes) / sizes[0] - 1, 4)
        print(f"memory, {part}, MB:", ", ".join(f"{size / 1e6:,.1f}" for size in sizes))
    half, twice = loads["half the rate"], loads["twice the rate"]
    return {
        "sustainable": round(found["sustainable"]),
        "p99_half_ms": half["p99_ms"],
        "p99_half_no_writer_ms": loads[NO_WRITER]["p99_ms"],
        "p99_twice_ms": twice["p99_ms"],
        "ratio": round(twice["p99_ms"] / half["p99_ms"], 2),
        "refused_share": twice["refused_share"],
        "errors": sum(load["errors"] for load in loads.values()),
        "memory_growth": growth,
        "workers": options.workers,
        "store_left_running": left,
        "loads": loads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of each of the two open loops")
    parser.add_argument("--search", type=float, default=10, help="seconds of the closed loop")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--patterns", type=int, default=5_000, help="recorded orders whose identities are sent")
    parser.add_argument("--history", type=int, default=20_000, help="orders that were there before")
    parser.add_argument(
        "--busy-machine",
        action="store_true",
        help=(
            "other programs use its cores: the store's answers may take long, and the decision writer does not go last"
        ),
    )
    parser.add_argument(
        "--made",
        type=Path,
        help="folder of a domain that was made before and is copied, with as many orders to send; its history is used",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        result = drill(options, Path(home))
    print(json.dumps(result))
    raise SystemExit(bool(result["errors"]) or result["ratio"] > 3)


if __name__ == "__main__":
    main()
