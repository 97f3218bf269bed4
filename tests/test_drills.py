"""The drills of benchmarks/ on a small scale: the service under kills, and under more orders than it can answer."""

import asyncio
import importlib
import io
import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.children import child
from support.private import careless_umask, open_to_others
from support.waiting import LONG, until

from fraud_poc.core.settings import load_settings
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import kept_running, process_id, server_for, server_runs, start_redis
from fraud_poc.live.store import StoreDown
from fraud_poc.service.workers import Workers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import power  # noqa: E402
from drill import Domain, ask, connection, serving  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A domain that both drills copy: history, a model, a filled store and 600 orders that come after it."
    folder = tmp_path_factory.mktemp("domain")
    with careless_umask():
        Domain(folder, 600, 2500)
    return folder


class Output(io.TextIOBase):
    "A stream whose text goes to the process that listens."

    def __init__(self, tell):
        self.tell = tell

    def write(self, text: str) -> int:
        self.tell(text)
        return len(text)


def drilled(tell, name: str, options: list[str]) -> None:
    "The command of a drill; runs in a process of its own."
    sys.path.insert(0, str(ROOT / "benchmarks"))
    sys.argv, sys.stdout, sys.stderr = [name, *options], Output(tell), Output(tell)
    importlib.import_module(name).main()


def run(name: str, made: Path | None, *options) -> dict:
    "A drill as a command, which says how far it is; its summary, the last line."
    copied = ["--made", str(made)] if made else []
    with child(drilled, name, [*copied, *map(str, options)]) as process:
        output = "".join(text for (text,) in iter(process.hear, None))
        code = process.ended()
    last = (output.splitlines() or [""])[-1]
    assert last.startswith("{"), output[-5000:]
    return json.loads(last) | {"code": code, "output": output[-5000:]}


def test_nothing_acknowledged_is_lost_when_store_and_workers_are_killed(made):
    found = run("crash", made, "--orders", 400, "--redis-kills", 2, "--worker-kills", 2, "--connections", 4)
    assert found["code"] == 0 and found["acknowledged"] == found["orders"] == 400, found["output"]
    assert found["redis_kills"] == found["worker_kills"] == 2
    for name in (
        "lost",
        "twice",
        "never_acknowledged",
        "other_score",
        "differing_bits",
        "differing_states",
        "rebuilt_differing",
    ):
        assert found[name] == 0, found["output"]


def test_what_a_store_loses_that_goes_back_in_time_comes_back():
    found = run("restore", None, "--rounds", 3, "--orders", 24)
    assert found["code"] == 0 and found["lost"] > found["recovered"] > 0, found["output"]
    assert found["missing"] == found["twice"] == found["unnoticed"] == found["wrong"] == 0, found["output"]


@pytest.mark.parametrize(("replicas", "by"), [(1, []), (0, []), (1, ["--sentinel", "--info-ms", 1000])])
def test_a_service_goes_on_with_the_replica_when_the_primary_is_killed(replicas, by):
    found = run("failover", None, "--rounds", 2, "--orders", 40, "--replicas", replicas, *by)
    assert found["code"] == found["twice"] == 0 and found["rounds"] == 2 and found["acknowledged"] > 80, found["output"]
    assert found["missing"] == 0 or not replicas, found["output"]


def test_a_power_cut_takes_nothing_that_was_acknowledged():
    if reason := power.why_not():
        pytest.skip(reason)
    found = run("power", None, "--rounds", 2)
    assert found["code"] == found["missing"] == 0 < found["acknowledged"] and found["rounds"] == 2, found["output"]


TRACE = """41  write(9</a.incr.aof>, ""..., 100)      = 100
41  fdatasync(9</a.incr.aof>)              = 0
41  write(9</a.incr.aof>, ""..., 40 <unfinished ...>
44  fdatasync(9</a.incr.aof> <unfinished ...>
41  <... write resumed>)                   = 30
44  <... fdatasync resumed>)               = 0
41  write(9</a.incr.aof>, ""..., 7)        = -1 ENOSPC (No space left on device)
44  fdatasync(9</a.incr.aof>)              = -1 EIO (Input/output error)
41  write(9</a.incr.aof>, ""..., 5)        = 5
44  fdatasync(9</a.incr.aof> <unfinished ...>
41  write(9</a.incr.aof>, ""..., 8)        = 8
44  <... fdatasync resumed>)               = ?
41  --- SIGCHLD {si_signo=SIGCHLD} ---
41  +++ killed by SIGKILL +++""".splitlines()


@pytest.mark.parametrize(
    ("lines", "durable", "written"),
    [
        (TRACE[:1], 0, 100),
        (TRACE[:2], 100, 100),
        (TRACE[:6], 100, 130),  # the second write had not ended when the fsync began
        (TRACE, 100, 143),  # one fsync failed, one was cut off
        ([*TRACE[:11], TRACE[5]], 135, 143),  # the bytes after its start are not covered
    ],
)
def test_what_is_on_the_disk_is_known_from_a_trace(lines, durable, written):
    killed = "40  ???( <unfinished ...>"  # a call that the kill left without a name
    assert power.bytes_on_disk(lines) == power.bytes_on_disk([*lines, killed]) == (durable, written)


@pytest.mark.parametrize("line", ["41 ftruncate(9</a.incr.aof>, 7) = 0", "strace: what is this"])
def test_a_trace_that_is_not_understood_is_an_error(line):
    with pytest.raises(ValueError, match="strace is not understood|does more to its file"):
        power.bytes_on_disk([*TRACE, line])


def test_overload_is_refused_cleanly(made):
    found = run("load", made, "--seconds", 1, "--search", 0.5, "--patterns", 300, "--busy-machine")
    assert (
        found["errors"] == 0
        and found["sustainable"] > 0
        and found["memory_growth"]["scoring"] < 0.25  # 60 MB: the queue of a busy machine, not all that was sent
        and found["memory_growth"]["writer"] < 0.5
    ), found["output"]
    assert found["loads"]["twice the rate"]["accepted"] > 0 and not found["store_left_running"]


def test_callers_without_a_key_keep_no_order_from_its_score(made):
    files = ["--files", 256]  # fewer than there are callers
    found = run("doors", made, "--seconds", 2, "--patterns", 300, "--rate", 40, "--busy-machine", *files)
    assert found["failed"] == 0 and found["recovered_s"] < LONG, found["output"]
    assert sum(found["callers"].values()) >= 600 and found["closed"]["max_head_bytes"] > 100
    assert "max_connections" in found["closed"]


def test_what_a_service_and_the_steps_before_it_leave_is_for_their_owner_alone(made, tmp_path):
    "Made by functions, without a command and its umask; then served."
    assert open_to_others(made / "orders") == []
    domain = Domain(tmp_path / "copy", 600, 2500, made)
    folder = domain.settings.batch.folder
    with careless_umask(), serving(domain, tmp_path / "service.log", writer_last=False) as (address, _):
        orders = asyncio.run(score_all(address, [domain.request(order) for _, order in domain.orders(20)]))
        assert orders == [200] * 20
        assert {"appendonlydir"} <= {path.name for path in (folder / "redis").iterdir()}
        assert open_to_others(folder) == []
    assert open_to_others(folder) == [] and (folder / "desk.sqlite").stat().st_size


async def score_all(address: str, requests: list[bytes]) -> list[int]:
    "The statuses of requests that are sent one after the other."
    link = await connection(address)
    return [(await ask(link, request, LONG))[0] for request in requests]


# --- what they rest on ------------------------------------------------------------------------------------------------


def answer(url: str, *command):
    "A reply of a server that may be about to start."

    def ask() -> tuple:
        with Client(url, LONG) as client:
            return (client.call(*command),)

    return until(ask, "the server answers", ignore=(StoreDown,))[0]


def server_process(url: str) -> int:
    def ask() -> int:
        with Client(url, LONG) as client:
            return process_id(client)

    return until(ask, "the server answers", ignore=(StoreDown,))


def test_a_server_that_dies_is_started_again_by_one_of_its_users(tmp_path, root):
    settings = load_settings(
        root / "config" / "orders.toml", {"batch.folder": str(tmp_path), "live.durability": "always"}
    )
    with server_for(settings) as url, server_for(settings) as same:
        assert url == same
        for number in range(3):
            answer(url, "SET", "number", str(number))
            pid = server_process(url)
            os.kill(pid, 9)
            until(lambda: server_process(url) != pid, "another server answers")
            assert answer(url, "GET", "number") == str(number).encode()
    assert not server_runs(tmp_path / "redis") and not [
        thread for thread in threading.enumerate() if thread.name == "store"
    ]


def test_a_server_that_cannot_start_is_told_of_and_tried_again(tmp_path, caplog):
    with start_redis(tmp_path) as server:
        ensure, tries = server.ensure, []

        def failing():
            tries.append(1)
            if len(tries) < 2:
                raise StoreDown("no room")
            ensure()

        server.ensure = failing
        with kept_running(server):
            server.process.kill()
            assert answer(server.url, "PING") == b"PONG"
            until(lambda: len(caplog.records) >= 2, "both are logged")
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"] and caplog.records[0].fields[
        "reason"
    ] == "no room"


class Worker:
    "Stands in for a worker process of uvicorn."

    def __init__(self, config, sockets, code=None):
        self.config, self.sockets, self.exitcode, self.pid, self.calls = config, sockets, code, 1, []
        self.process = SimpleNamespace(is_alive=lambda: self.exitcode is None)

    def start(self):
        self.calls.append("start")

    def kill(self):
        self.calls.append("kill")

    def join(self):
        self.calls.append("join")

    def is_alive(self, timeout):
        raise AssertionError("nobody waits for a sign of life")


def supervisor(*codes) -> Workers:
    "One that watches workers of these exit codes; None = alive."
    found = object.__new__(Workers)
    found.config, found.sockets, found.should_exit = "config", [], threading.Event()
    found.processes = [Worker("config", [], code) for code in codes]
    return found


def test_a_worker_is_replaced_when_it_is_dead_and_not_when_it_is_slow():
    found = supervisor(None, -9, None)
    before = list(found.processes)
    found.keep_subprocess_alive()
    assert [a is b for a, b in zip(before, found.processes)] == [True, False, True] and not found.should_exit.is_set()
    assert before[1].calls == ["kill", "join"] and found.processes[1].calls == ["start"]


def test_a_worker_that_cannot_start_ends_the_service():
    found = supervisor(3, None)
    found.keep_subprocess_alive()
    assert found.should_exit.is_set() and found.processes[0].calls == ["kill", "join"]
