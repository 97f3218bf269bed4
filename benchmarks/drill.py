"""What the drills share: a small domain with a model, the service as `fraud-poc serve` runs it, and a lean client."""

import asyncio
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fraud_poc.core.files import read_json  # noqa: E402
from fraud_poc.core.settings import load_settings  # noqa: E402
from fraud_poc.data.ingest import ingest  # noqa: E402
from fraud_poc.data.log import read_manifest  # noqa: E402
from fraud_poc.data.sample import make_data  # noqa: E402
from fraud_poc.features.batch import compute_features  # noqa: E402
from fraud_poc.features.state_files import features_folder  # noqa: E402
from fraud_poc.features.table import build_table  # noqa: E402
from fraud_poc.live.load import prepare_db  # noqa: E402
from fraud_poc.live.redis_server import server_for  # noqa: E402
from fraud_poc.model.acceptance import judge_model  # noqa: E402
from fraud_poc.model.dataset import make_dataset  # noqa: E402
from fraud_poc.model.train import train_model  # noqa: E402
from fraud_poc.ops.replay import raw_orders  # noqa: E402
from fraud_poc.service.client import is_ready  # noqa: E402
from fraud_poc.service.keys import fresh_key  # noqa: E402

CONFIG = ROOT / "config" / "orders.toml"
ANY_MODEL = {
    "model.trees": 100,
    "acceptance.min_auc": 0.5,
    "acceptance.min_average_precision": 0.0,
    "acceptance.bootstrap": 0,
    "training.train_days": 50,
    "training.validation_days": 20,
    "training.test_days": 20,
    "sample.fraud_rate": 0.1,
}  # here nobody asks how good it is

# Limits are there against hanging, not against slowness: they count from the last progress. FRAUD_POC_TEST_PATIENCE
# is a factor on all of them
PATIENCE = float(os.environ.get("FRAUD_POC_TEST_PATIENCE", 1))
STUCK_S = 120 * PATIENCE  # without progress
ANSWER_S = 10 * PATIENCE  # without an answer to an order, until it is sent again


class Progress:
    "A figure that changes as long as something goes on; `look` raises `RuntimeError` when it has not for too long."

    def __init__(self, what: str, figure: Callable[[], object], seconds: float = STUCK_S):
        self.what, self.figure, self.seconds, self.last, self.since = what, figure, seconds, None, time.monotonic()

    def look(self) -> object:
        "The figure as it is now."
        now = self.figure()
        if now != self.last:
            self.last, self.since = now, time.monotonic()
        elif time.monotonic() - self.since > self.seconds:
            raise RuntimeError(f"{self.what} for {self.seconds:g} s: the figure stays at {now}")
        return now


def say(text: str) -> None:
    "Tell on standard error how far it is."
    print(text, file=sys.stderr, flush=True)


class Domain:
    """A domain on disk: history in the store, a model, a key, and orders that come after that history.

    Several drills can copy a domain that was `made` before.
    """

    def __init__(self, folder: Path, orders: int, history: int, made: Path | None = None, **changes):
        folder.mkdir(parents=True, exist_ok=True)
        if made:
            shutil.copytree(made, folder, dirs_exist_ok=True)
        total, note = round(1.05 * (orders + history)), folder / "domain.json"
        size = (
            json.loads(note.read_text())
            if made
            else {
                "batch.part_rows": max(total // 100, 100),
                "sample.orders": total,
                "sample.customers": max(total * 2 // 15, 50),
            }
        )
        self.changes = (
            ANY_MODEL | {"batch.folder": str(folder / "orders"), "batch.threads": 2, "service.port": 0} | size | changes
        )
        self.settings = load_settings(CONFIG, self.changes)
        if not made:
            self.make(folder / "raw", orders)
        note.write_text(json.dumps(size))
        self.parts = len(
            read_json(features_folder(self.settings, build_table(self.settings)) / "manifest.json")["parts"]
        )
        self.key = fresh_key(self.settings, "drill")

    def make(self, raw: Path, orders: int) -> None:
        "Orders, features, a model and the store; the last `orders` are left out."
        make_data(self.settings, raw, workers=1)
        ingest(self.settings, str(raw / "orders"), str(raw / "labels"))
        say(f"a log of {self.settings.sample.orders:,} orders is made")
        until = self.end_of_history(orders)
        compute_features(self.settings, until=until)
        make_dataset(self.settings, until=until)
        say("features are computed")
        train_model(self.settings)
        judge_model(self.settings)
        say("a model is trained and judged")
        with server_for(self.settings) as url:
            prepare_db(self.settings, url)
        say("the store is filled")

    def end_of_history(self, orders: int) -> str:
        "The moment, ISO, behind which enough orders come."
        after = 0
        for part in reversed(read_manifest(self.settings.batch.folder)["parts"]):
            after += part["events"]
            if after >= orders:
                return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(part["first_known_ms"] / 1000))
        raise ValueError(f"the log holds {after:,} orders, {orders:,} shall be sent: make the history longer")

    def orders(self, count: int) -> list[tuple[int, dict]]:
        "Orders that come after the history: id key, order."
        found = list(islice(raw_orders(self.settings, self.parts), count))
        if len(found) < count:
            raise ValueError(f"the log has {len(found):,} orders after the history, not {count:,}")
        return found

    def request(self, order: dict) -> bytes:
        "An order as bytes on the wire."
        body = json.dumps(order).encode()
        return (
            b"POST /score HTTP/1.1\r\nhost: drill\r\nx-api-key: %s\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (self.key.encode(), len(body), body)
        )


@contextmanager
def serving(
    domain: Domain, log: Path, writer_last: bool = True, files: int | None = None, root: Path = ROOT
) -> Iterator[tuple[str, subprocess.Popen]]:
    """The command `serve` in a process of its own: address and process, when it is ready.

    A decision writer that goes last may never get a core of a busy machine. With `files`, each of its processes may
    have only so many open files. The code is that of `root`, perhaps another version.
    """
    sets = [word for name, value in domain.changes.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    before = (
        "" if writer_last else "from fraud_poc.desk import writer_process; writer_process.go_last = lambda pid: None; "
    )
    command = [
        sys.executable,
        "-c",
        before + "from fraud_poc.cli import main; main()",
        "serve",
        "--config",
        str(root / "config" / CONFIG.name),
        *sets,
        "--json",
    ]
    with open(log, "wb") as handle:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=handle,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])},
            cwd=None if root == ROOT else root,  # where the processes that it starts look first
        )
    if files:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (files, files))
    try:
        line, until = json.loads(process.stdout.readline() or b"{}"), time.monotonic() + STUCK_S
        while "address" not in line or not is_ready(line["address"]):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the service is not ready:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        say("the service is ready")
        yield line["address"], process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STUCK_S)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()
        process.wait()


def family(pid: int) -> list[int]:
    "A process and all that it started, the store's server aside."
    try:
        children = [
            int(word)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for word in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return [pid, *(found for child in children if "-server" not in command_of(child) for found in family(child))]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def workers_of(pid: int) -> list[int]:
    "The worker processes of a service."
    return [found for found in family(pid)[1:] if "spawn_main" in command_of(found)]


def writers_of(*parents: int) -> list[int]:
    "Processes that write decisions, among all that some processes started."
    return sorted({found for parent in parents for found in family(parent) if "desk.writer" in command_of(found)})


def memory_of(pid: int) -> int:
    "Bytes in memory of a process."
    try:
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024
    except (OSError, TypeError):
        return 0


class Connection(asyncio.Protocol):
    """One connection, one request at a time.

    Tells `answered` the status, the head and the body, or status 0 when the connection is lost.
    """

    def __init__(self):
        self.data, self.answered, self.transport = b"", None, None

    def connection_made(self, transport):
        self.transport = transport

    def send(self, request: bytes, answered) -> None:
        self.answered = answered
        if self.transport.is_closing():
            self.finish(0, b"", b"")
        else:
            self.transport.write(request)

    def finish(self, status: int, head: bytes, body: bytes) -> None:
        answered, self.answered = self.answered, None
        if answered:
            answered(status, head, body)

    def data_received(self, data: bytes) -> None:
        self.data += data
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.data[:end].lower()
        length = int(re.search(rb"content-length: *(\d+)", head)[1])
        if len(self.data) < end + 4 + length:
            return
        body, self.data = self.data[end + 4 : end + 4 + length], b""
        self.finish(int(head[9:12]), head, body)

    def connection_lost(self, error) -> None:
        self.finish(0, b"", b"")


async def connection(address: str) -> Connection:
    "A new connection to a service; `OSError` when there is none."
    host, port = address.removeprefix("http://").rsplit(":", 1)
    return (await asyncio.get_running_loop().create_connection(Connection, host, int(port)))[1]


async def ask(link: Connection, request: bytes, seconds: float) -> tuple[int, bytes, bytes]:
    "Status, head and body; status 0 when the connection is lost or nothing comes in time."
    found = asyncio.get_running_loop().create_future()
    link.send(request, lambda *answer: found.done() or found.set_result(answer))
    try:
        return await asyncio.wait_for(found, seconds)
    except TimeoutError:
        link.transport.abort()
        return 0, b"", b""
