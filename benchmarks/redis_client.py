"""Filling a store: this project's blocking client beside redis-py, on the same states and the same server.

    python benchmarks/redis_client.py [--states 200000] [--bytes 400] [--repeats 5]

Both set the states with an expiry, 500 at a time, each piece in a transaction; redis-py parses with hiredis, too.
They take turns. CPU time is that of the client. The last line is one JSON object with the medians.
"""

import argparse
import json
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import redis

from fraud_poc.live.load import PIECE, BulkWriter
from fraud_poc.live.redis_client import Client, parse_url
from fraud_poc.live.redis_server import start_redis

DAY_MS = 86_400_000


def fill_with_client(url: str, keys: list[bytes], states: list[bytes]) -> None:
    with Client(url) as client:
        writer = BulkWriter(client, DAY_MS)
        for start in range(0, len(keys), PIECE):
            writer.put(b"bench:", keys[start : start + PIECE], states[start : start + PIECE])
        writer.finish()


def fill_with_redis_py(url: str, keys: list[bytes], states: list[bytes]) -> None:
    address = parse_url(url)
    client = redis.Redis(
        unix_socket_path=address.path, username=address.user or None, password=address.password or None
    )
    token, until = secrets.randbits(64), int(time.time() * 1000) + DAY_MS
    for start in range(0, len(keys), PIECE):
        pipeline = client.pipeline(transaction=True)
        for number in range(start, min(start + PIECE, len(keys))):
            version = ((token + number) % 2**64).to_bytes(8, "little")
            pipeline.set(b"bench:" + keys[number], version + states[number], pxat=until)
        pipeline.execute()
    client.close()


def timed(fill: Callable, *args) -> tuple[float, float]:  # seconds and CPU seconds
    began, cpu = time.perf_counter(), time.process_time()
    fill(*args)
    return time.perf_counter() - began, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--states", type=int, default=200_000)
    parser.add_argument("--bytes", type=int, default=400, help="of each state")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    keys = [secrets.token_bytes(10) for _ in range(options.states)]
    states = [secrets.token_bytes(options.bytes) for _ in range(options.states)]
    ways = {"client": fill_with_client, "redis-py": fill_with_redis_py}
    seconds = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder, start_redis(Path(folder)) as server:
        for turn in range(options.repeats):
            for name, fill in ways.items():
                seconds[name].append(timed(fill, server.url, keys, states))
                print(f"turn {turn + 1}, {name}: {seconds[name][-1][0]:.2f} s, {seconds[name][-1][1]:.2f} CPU s")
    medians = {name: [statistics.median(column) for column in zip(*turns)] for name, turns in seconds.items()}
    ratios = [theirs / ours for ours, theirs in zip(medians["client"], medians["redis-py"])]
    print(
        json.dumps(
            {name: {"seconds": round(wall, 2), "cpu_s": round(cpu, 2)} for name, (wall, cpu) in medians.items()}
            | {"redis_py_to_client": {"seconds": round(ratios[0], 2), "cpu": round(ratios[1], 2)}}
        )
    )


if __name__ == "__main__":
    main()
