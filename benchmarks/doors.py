"""Can callers without a key keep others from being served?

    python benchmarks/doors.py [--seconds 60] [--connections 600] [--rate 100] [--files 256]

The service runs as `fraud-poc serve` does. Ordinary load comes from 127.0.0.1: orders at fixed times, on connections
that are kept, and each tenth on a connection of its own. It runs for `--seconds` undisturbed, and again while so many
connections from 127.0.0.2 to 127.0.0.5 are open that

* send nothing ("silent"),
* send a byte of a header each second ("slow"),
* send a header line without end, as fast as it is taken ("endless"),
* send one request and stay ("idle"),
* ask for the OpenAPI document forty times, and read nothing ("unread").

One that the service closes is opened again about a second later. With `--files` the service may have only so many
open files. Afterwards the connections end, and the drill measures how long it takes until ten new connections from
127.0.0.2 are answered one after the other.

Shown are p99 of the answers without and with these connections, what became of the orders, and which limits closed
connections. The last line is one JSON object: `p99_ratio`, `failed` (orders that got no score) and `recovered_s`; the
exit code is 1 when p99_ratio is above 2, an order failed, or the service did not recover.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import socket
import tempfile
import time
from collections import Counter
from pathlib import Path

import uvloop
from drill import ANSWER_S, Domain, ask, connection, say, serving
from load import Orders, Seen, closed_loop, on_cores, open_loop

from fraud_poc.service.client import ServiceClient

ADDRESSES = [f"127.0.0.{number}" for number in range(2, 6)]
OPEN_AGAIN_S = 1.0  # after which a closed connection is opened again
RECOVERY_S = 60.0  # after which the service counts as stopped
FRESH = 10  # each so many-th order comes on a connection of its own
HEAD = b"GET /healthz HTTP/1.1\r\nhost: drill\r\n"


async def hold(kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    "Use a connection in one of the ways above until the service closes it."
    if kind == "slow":
        writer.write(HEAD + b"x: ")
        while not writer.is_closing():
            writer.write(b"a")
            await asyncio.sleep(1)
    elif kind == "endless":
        writer.write(HEAD + b"x: ")
        while not writer.is_closing():
            writer.write(b"a" * 4_096)
            await writer.drain()
            await asyncio.sleep(0)
    elif kind == "unread":
        writer.transport.pause_reading()
        for _ in range(40):
            writer.write(b"GET /openapi.json HTTP/1.1\r\nhost: drill\r\n\r\n")
            await asyncio.sleep(1)
    else:
        writer.write(HEAD + b"\r\n" if kind == "idle" else b"")
        while await reader.read(4_096):
            pass


async def caller(kind: str, address: str, port: int, seen: Counter) -> None:
    "A connection that is opened again and again, at moments of its own."
    await asyncio.sleep(random.uniform(0, 2 * OPEN_AGAIN_S))
    while True:
        writer = None
        try:
            wire = socket.socket()
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)  # soon full when the replies are not read
            wire.setblocking(False)
            wire.bind((address, 0))
            await asyncio.get_running_loop().sock_connect(wire, ("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=wire)
            seen[f"{kind} opened"] += 1
            await hold(kind, reader, writer)
        except OSError:
            pass  # closed by the service
        finally:
            if writer:
                writer.transport.abort()
        await asyncio.sleep(random.uniform(0.5, 1.5) * OPEN_AGAIN_S)


def call(port: int, connections: int, begun, results) -> None:
    "The process of the callers; `results` gets what they did when `begun` is cleared."
    kinds, seen = ["silent", "slow", "endless", "idle", "unread"], Counter()
    os.nice(10)

    async def all_callers() -> None:
        tasks = [
            asyncio.create_task(caller(kinds[number % len(kinds)], ADDRESSES[number % len(ADDRESSES)], port, seen))
            for number in range(connections)
        ]
        while sum(seen.values()) < connections:
            await asyncio.sleep(0.05)
        begun.set()
        while begun.is_set():
            await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(all_callers())
    results.put(dict(seen))


async def on_new_connections(address: str, orders: Orders, rate: float, seconds: float) -> Seen:
    "Orders at fixed times, each on a connection of its own."
    seen, start = Seen(), time.perf_counter()
    for number in range(max(1, int(rate * seconds))):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        sent = time.perf_counter()
        try:
            link = await asyncio.wait_for(connection(address), ANSWER_S)
        except (OSError, TimeoutError):
            seen.note(due, sent, 0, b"", b"")
            continue
        seen.note(due, sent, *await ask(link, orders.next(), ANSWER_S))
        link.transport.abort()
    return seen


async def ordinary(address: str, orders: Orders, rate: float, seconds: float) -> dict:
    "Ordinary load; what became of it."
    kept, new = await asyncio.gather(
        open_loop(address, orders, rate * (1 - 1 / FRESH), seconds),
        on_new_connections(address, orders, rate / FRESH, seconds),
    )
    kept.times += new.times
    kept.answers += new.answers
    kept.count += new.count
    kept.late += new.late
    found = kept.summary()
    return found | {"failed": found["sent"] - found["accepted"]}


def recovery(port: int) -> float:
    "Seconds until ten new connections are answered one after the other; infinite when they are not."
    start, answered = time.monotonic(), 0
    while answered < 10 and time.monotonic() - start < RECOVERY_S:
        try:
            with socket.create_connection(("127.0.0.1", port), 1, (ADDRESSES[0], 0)) as wire:
                wire.sendall(HEAD + b"\r\n")
                answered = answered + 1 if wire.recv(100).startswith(b"HTTP/1.1 200") else 0
        except OSError:
            answered = 0
            time.sleep(0.05)
    return time.monotonic() - start if answered == 10 else float("inf")


def closed_by(address: str, key: str) -> dict[str, int]:
    "Closed connections by limit, from the metrics of the service."
    text = ServiceClient(address, key).ask("GET", "/metrics")[1]
    lines = [line for line in text.splitlines() if line.startswith("fraud_poc_closed_connections_total{")]
    return {line.split('"')[1]: round(float(line.split()[-1])) for line in lines}


def measure(address: str, key: str, orders: Orders, options: argparse.Namespace) -> dict:
    "The ordinary load without and with the callers, and what comes after."
    port, spawned = int(address.rsplit(":", 1)[1]), multiprocessing.get_context("spawn")
    begun, results, found = spawned.Event(), spawned.Queue(), {}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(closed_loop(address, orders, 8, min(5.0, options.seconds)))  # connections and code get warm
        found["without"] = runner.run(ordinary(address, orders, options.rate, options.seconds))
        say("the load without callers is over")
        callers = spawned.Process(target=call, args=(port, options.connections, begun, results), daemon=True)
        callers.start()
        if not begun.wait(60):
            raise RuntimeError(f"the {options.connections} connections were not opened within 60 s")
        say(f"{options.connections} connections are open")
        found["with"] = runner.run(ordinary(address, orders, options.rate, options.seconds))
    begun.clear()
    found["callers"] = results.get(timeout=60)
    callers.join()
    return found | {"recovered_s": recovery(port), "closed": closed_by(address, key)}


def drill(options: argparse.Namespace, home: Path) -> dict:
    "The whole drill in a folder."
    changes = {"live.store_timeout": "60s", "service.max_in_flight": 5_000} if options.busy_machine else {}
    domain = Domain(home, options.patterns, options.history, options.made, **changes)
    orders, cores = Orders(domain, options.patterns), sorted(os.sched_getaffinity(0))
    with (
        on_cores(cores[:-1] or cores),
        serving(domain, home / "service.log", not options.busy_machine, options.files) as (address, _),
        on_cores(cores[-1:]),
    ):
        found = measure(address, domain.key, orders, options)
    print(f"{'':<10}{'sent':>9}{'accepted':>10}{'failed':>8}{'p50 ms':>9}{'p99 ms':>9}{'sent late':>11}")
    for name in ("without", "with"):
        load = found[name]
        print(
            f"{name:<10}{load['sent']:>9,}{load['accepted']:>10,}{load['failed']:>8,}{load['p50_ms']:>9.1f}"
            f"{load['p99_ms']:>9.1f}{load['sent_late_share']:>11.1%}"
        )
    print("connections:", found["callers"], "; closed at a limit:", found["closed"])
    return {
        "p99_ratio": round(found["with"]["p99_ms"] / found["without"]["p99_ms"], 2),
        "failed": found["without"]["failed"] + found["with"]["failed"],
        "recovered_s": round(found["recovered_s"], 2),
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of the ordinary load, each time")
    parser.add_argument("--connections", type=int, default=600, help="that are silent, slow, endless, idle or unread")
    parser.add_argument("--rate", type=float, default=100, help="ordinary orders a second")
    parser.add_argument("--files", type=int, help="most open files of each process of the service")
    parser.add_argument("--patterns", type=int, default=5_000, help="recorded orders whose identities are sent")
    parser.add_argument("--history", type=int, default=20_000, help="orders that were there before")
    parser.add_argument(
        "--busy-machine",
        action="store_true",
        help="other programs use its cores: the store's answers may take long, and no order is shed",
    )
    parser.add_argument("--made", type=Path, help="folder of a domain that was made before and is copied")
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as home:
        result = drill(options, Path(home))
    print(json.dumps(result))
    raise SystemExit(result["p99_ratio"] > 2 or result["failed"] > 0 or result["recovered_s"] > RECOVERY_S)


if __name__ == "__main__":
    main()
