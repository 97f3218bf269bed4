"""Servers of a drill on TCP ports, and three Sentinel processes beside them, which promote a replica by themselves."""

import asyncio
import re
import secrets
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from drill import STUCK_S

from fraud_poc.core.files import private_folder
from fraud_poc.core.processes import free_port
from fraud_poc.live.redis_client import Client, is_primary, replicas_online
from fraud_poc.live.redis_server import RedisServer, find_server
from fraud_poc.live.store import StoreDown

USER, PASSWORD = "drill", secrets.token_hex(16)  # of the service, of replicas and of Sentinel, on every server
NAME, COUNT, QUORUM = "orders", 3, 2
CONFIG = """port {port}
bind 127.0.0.1
logfile sentinel-{port}.log
sentinel monitor {name} 127.0.0.1 {primary} {quorum}
sentinel auth-user {name} {user}
sentinel auth-pass {name} {password}
sentinel down-after-milliseconds {name} 2000
sentinel failover-timeout {name} 5000
"""  # with a second, the default between two looks, it now and then takes a primary that lives for a dead one


async def happened(condition: Callable[[], object], what: str) -> None:
    "Wait until something is so; `RuntimeError` when it is not for too long. Sentinel also ends connections."
    until = time.monotonic() + STUCK_S
    while time.monotonic() < until:
        with suppress(StoreDown):
            if condition():
                return
        await asyncio.sleep(0.002)
    raise RuntimeError(f"{what}: not within {STUCK_S:.0f} s")


class Node:
    "A server that listens on a TCP port too, the same one after each start."

    def __init__(self, server: RedisServer):
        self.server, self.port = server, free_port()
        self.url = f"redis://{USER}:{PASSWORD}@127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        "Start it, unless it runs; others reach it when it knows their password."
        self.server.ensure()
        self.call("ACL", "SETUSER", USER, "on", f">{PASSWORD}", "~*", "&*", "+@all")
        self.call("CONFIG", "SET", "masteruser", USER, "masterauth", PASSWORD)
        self.call("CONFIG", "SET", "port", self.port)

    def kill(self) -> None:
        "End it at once."
        self.server.kill()

    def call(self, *command):
        "A reply, by its socket file."
        with Client(self.server.url) as client:
            return client.call(*command)

    def number(self, name: str) -> int:
        "A figure of INFO replication."
        return int(re.search(rf"{name}:(\d+)".encode(), self.call("INFO", "replication"))[1])


async def settled(nodes: list[Node]) -> Node:
    "The primary, when there is one and all other servers have what it had when they were connected to it."
    found = []

    def look() -> list[Node]:
        found[:] = [node for node in nodes if is_primary(node.call("INFO", "replication"))]
        return found and found[1:] == [] and follow(found[0], [node for node in nodes if node is not found[0]])

    await happened(look, "one server is the primary of all others")
    there = found[0].number("master_repl_offset")
    for node in nodes:
        await happened(lambda node=node: node.number("master_repl_offset") >= there, "a replica has caught up")
    return found[0]


def follow(primary: Node, replicas: list[Node]) -> bool:
    "Whether servers are connected to a primary, and it to them."
    port = f"master_port:{primary.port}\r\nmaster_link_status:up".encode()
    reports = [node.call("INFO", "replication") for node in (primary, *replicas)]
    return replicas_online(reports[0]) == len(replicas) and all(port in report for report in reports[1:])


class Sentinels:
    "Three processes that watch the primary, agree that it is down, and promote a replica."

    def __init__(self, folder: Path, nodes: list[Node], info_ms: int):  # the first is the primary
        self.folder, self.nodes, self.info_ms, self.processes = private_folder(folder), nodes, info_ms, []
        self.ports = [free_port() for _ in range(COUNT)]

    def __enter__(self) -> "Sentinels":
        program, values = find_server(), {"name": NAME, "quorum": QUORUM, "user": USER, "password": PASSWORD}
        for port in self.ports:
            path = self.folder / f"sentinel-{port}.conf"  # which it writes again and again
            path.write_text(CONFIG.format(port=port, primary=self.nodes[0].port, **values))
            self.processes.append(subprocess.Popen([program, path, "--sentinel"], cwd=self.folder))
        return self

    def __exit__(self, *error) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def ask(self, port: int, *words) -> list:
        "A reply of one of them; empty while it does not answer."
        with suppress(StoreDown), Client(f"redis://127.0.0.1:{port}") as client:
            return client.call("SENTINEL", *words)
        return []

    def ready(self) -> bool:
        "Whether each knows the others, a primary that is up, and replicas that can be promoted."
        for port in self.ports:
            primary, replicas = fields(self.ask(port, "MASTER", NAME)), self.ask(port, "REPLICAS", NAME)
            up = [one for one in map(fields, replicas) if one["flags"] == "slave" and one["master-link-status"] == "ok"]
            known = primary.get("flags"), primary.get("num-other-sentinels"), len(up)
            if known != ("master", str(COUNT - 1), len(self.nodes) - 1):
                return False
        return True

    async def begin(self) -> None:
        "Wait until they can promote a replica; other times than the default ones are for tests."
        times = "info-period", self.info_ms, "publish-period", self.info_ms // 5
        for port in self.ports:
            await happened(lambda port=port: self.ask(port, "DEBUG", *times), "a Sentinel answers")
        await happened(self.ready, "the Sentinels know the servers and each other")

    def replace(self) -> None:
        "Let a replica take the place of a primary that lives."
        self.ask(self.ports[0], "FAILOVER", NAME)

    async def promoted(self, replicas: list[Node]) -> None:
        "Wait until another server is the primary."
        leads = lambda node: is_primary(node.call("INFO", "replication"))
        await happened(lambda: any(map(leads, replicas)), "Sentinel promotes a replica")

    async def rejoined(self) -> None:
        "Wait until Sentinel has made the old primary a replica, and could promote one again."
        await happened(self.ready, "the Sentinels know the servers and each other again")


def fields(reply: list[bytes]) -> dict[str, str]:
    "Names and values of a flat reply."
    words = [word.decode() for word in reply]
    return dict(zip(words[::2], words[1::2]))
