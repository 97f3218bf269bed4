"""What does a power cut take of what was acknowledged?

    python benchmarks/power.py [--rounds 20] [--durability always] [--connections 4] [--seed 7]

A power cut takes what the system had not written to the disk. Each round takes the worst case: of the store's
append-only file only those bytes are left that were written before the start of an fsync which had returned. While
orders come in, `strace` notes each write and each fsync of the server; the server is killed at a random moment; then
its file is cut off there, and it starts again. Every byte that the system wrote by itself is lost too, so a real cut
takes less, as long as the disk keeps what it has reported as written.

Counted are orders that were acknowledged and are not in the log after the start, before `fraud-poc recover` (missing).
`seconds_of_lost_orders` is the longest time before a cut from which an acknowledged order is missing. The last line is
one JSON object; the exit code is 1 when anything is missing with `always`.
"""

import argparse
import asyncio
import json
import logging
import random
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from drill import STUCK_S, say
from restore import Shop, files_of

from fraud_poc.desk.recovery import connect_once
from fraud_poc.live.decide import Engine
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import process_id

WRITES, SYNCS = ("write", "writev", "pwrite64"), ("fdatasync", "fsync")
LINE = re.compile(
    r"(?P<thread>\d+) +(?:(?P<call>\w+)\(|<\.\.\. (?P<resumed>\w+) resumed>)"
    r".*?(?:= (?P<result>-?\d+)[^=]*|(?P<unfinished>= \?|<unfinished \.\.\.>))$"
)


def bytes_on_disk(trace: Iterable[str]) -> tuple[int, int]:
    """Bytes of a file that are on the disk for sure, and bytes that were written, by the calls of a server.

    `trace` has the lines of `strace -f` for this file. A write counts from its end on, and an fsync covers what was
    written before its start. Raises `ValueError` for a call that is neither.
    """
    written = durable = 0
    begun = {}  # by thread: bytes that its fsync covers
    for line in trace:
        found = LINE.match(line)
        if not found:
            if re.match(r"\d+ +(\+\+\+ |--- |\?+\( <unfinished)", line):
                continue  # the end of a thread, a signal, or a call that the kill left without a name: nothing returned
            raise ValueError(f"a line of strace is not understood: {line}")
        call, thread, result = found["call"] or found["resumed"], found["thread"], found["result"]
        if call not in WRITES + SYNCS:
            raise ValueError(f"the server does more to its file than write and fsync: {line}")
        if found["call"]:
            begun[thread] = written
        if found["unfinished"]:
            continue
        if call in WRITES:
            written += max(int(result), 0)
        elif int(result) == 0:
            durable = max(durable, begun[thread])
    return durable, written


@contextmanager
def traced(pid: int, output: Path, *words: str) -> Iterator[None]:
    "Note the calls of a process, until it has ended. Raises `RuntimeError` when strace is missing or not allowed."
    if not shutil.which("strace"):
        raise RuntimeError("strace is not on the PATH: install it, as with `apt-get install strace`")
    command = ["strace", "-f", "-s", "0", *words, "-o", str(output), "-p", str(pid)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while "attached" not in (said := process.stderr.readline()):
            if not said:
                raise RuntimeError("strace cannot trace another process: run this where ptrace is allowed")
        yield
        process.wait(STUCK_S)
    finally:
        process.kill()
        process.communicate()


def why_not() -> str:
    "Why no process can be traced on this machine; empty when one can."
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with traced(process.pid, Path("/dev/null")):
                process.kill()
        except RuntimeError as error:
            process.kill()
            return str(error)
    return ""


class Callers:
    "Send orders until the store is gone; `acknowledged` has the moment of each answer, by `time.perf_counter`."

    def __init__(self, shop: Shop, engine: Engine):
        self.shop, self.engine, self.acknowledged = shop, engine, {}

    async def call(self) -> None:
        "One caller."
        while True:
            self.shop.number += 1
            order = self.shop.order(self.shop.number)
            answer = await self.engine.decide(self.shop.reader.read_dict(order))
            if answer.degraded:
                return
            self.acknowledged[order["order_id"]] = time.perf_counter()


def cut_off(shop: Shop, connections: int) -> tuple[dict[str, float], float]:
    "Kill the server under load, and leave it what is on the disk; moments of the orders acknowledged, and of the cut."
    [file], output = files_of(shop.server).glob("*.incr.aof"), shop.home / "trace"
    pause = shop.rng.uniform(0.5, 2.5)
    killed = []

    async def act(engine: Engine) -> dict[str, float]:
        callers = Callers(shop, engine)
        running = [asyncio.create_task(callers.call()) for _ in range(connections)]
        await asyncio.sleep(pause)
        killed.append(time.perf_counter())
        await asyncio.to_thread(shop.server.kill)
        await asyncio.gather(*running)
        return callers.acknowledged

    calls = ",".join((*WRITES, *SYNCS, "ftruncate", "fallocate"))
    with Client(shop.server.url) as client:
        pid = process_id(client)
    before = file.stat().st_size
    with traced(pid, output, "-P", str(file), "-e", f"trace={calls}"):
        acknowledged = shop.run(act)
    durable, written = bytes_on_disk(output.read_text().splitlines())
    [same] = files_of(shop.server).glob("*.incr.aof")
    if same != file or file.stat().st_size < before + written:  # the last write may have ended with the server
        raise RuntimeError(f"{before + written:,} bytes were written to {file}, which has {file.stat().st_size:,}")
    with open(file, "r+b") as handle:
        handle.truncate(before + durable)
    return acknowledged, killed[0]


def round_of(shop: Shop, connections: int) -> dict:
    "One power cut: acknowledged, missing, seconds."
    connect_once(shop.settings, shop.server.url)  # its timeline is there before the trace begins
    acknowledged, killed = cut_off(shop, connections)
    shop.server.ensure()
    connect_once(shop.settings, shop.server.url)
    missing = acknowledged.keys() - shop.in_log().keys()
    seconds = max((killed - acknowledged[one] for one in missing), default=0.0)
    return {"acknowledged": len(acknowledged), "missing": len(missing), "seconds": max(seconds, 0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--durability", choices=["always", "everysec"], default="always")
    parser.add_argument("--connections", type=int, default=4, help="callers at once")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    if reason := why_not():
        raise SystemExit(reason)
    logging.getLogger("fraud_poc").setLevel(logging.CRITICAL + 1)  # a store that goes away is what this is about
    found = []
    with tempfile.TemporaryDirectory() as home:
        shop = Shop(Path(home), random.Random(options.seed), options.durability)
        with shop.stack:
            for number in range(options.rounds):
                found.append(round_of(shop, options.connections))
                say(f"round {number + 1} of {options.rounds}: {found[-1]}")
        shop.database.dispose()
    result = {
        "rounds": options.rounds,
        "durability": options.durability,
        "acknowledged": sum(one["acknowledged"] for one in found),
        "missing": sum(one["missing"] for one in found),
        "most_missing_in_a_round": max(one["missing"] for one in found),
        "seconds_of_lost_orders": round(max(one["seconds"] for one in found), 3),
    }
    print("\n" + json.dumps(result))
    raise SystemExit(bool(options.durability == "always" and result["missing"]))


if __name__ == "__main__":
    main()
