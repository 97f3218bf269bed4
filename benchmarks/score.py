"""What does a scored order cost, against an empty endpoint and against Feast with XGBoost?

    python benchmarks/score.py [--orders 100000] [--seconds 1] [--repeats 15] [--without-feast] [--keep FOLDER]

Orders are generated, ingested and turned into features; a model of 300 trees of depth 6 is trained, and the states
are loaded into a real Redis or Valkey with its append-only file on. Then three services run side by side on one core,
each under uvicorn with httptools and uvloop, one process each:

  ours    `POST /score`, the whole of it: API key, validation, states, fold step, model, calibration, commit of
          states, record and log
  empty   FastAPI with a pydantic body of the same fields, which does nothing
  feast   FastAPI with the same body, the same number of features of the same entities read through Feast from the
          same server, the same model by XGBoost. It reads only: nothing learns of the order, and no answer is kept

The client and the store share another core (on more than two, the store has a third one). Ours talks to the store
through a Unix socket, as `fraud-poc serve` does with a server of its own; Feast can only do so through TCP, on the
same server. The client is a loop over raw keep-alive connections, each with one request under way. Services take
turns, at 1 and at 16 connections; shown are medians over the turns. Orders are new ones of identities at the end of
the log. Feast is installed into an environment of its own, under --keep if that is given. The last line is one JSON
object.
"""

import argparse
import json
import os
import secrets
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORES = sorted(os.sched_getaffinity(0))
SERVER, CLIENT, STORE = CORES[0], CORES[min(1, len(CORES) - 1)], CORES[min(2, len(CORES) - 1)]
FIELDS = {
    "order_id": str,
    "order_date": str,
    "order_amount": float,
    "customer_id": str,
    "email": str,
    "ip_addr": str,
    "device": str,
    "location": str,
}
TREES = 300
MARK = "0123456789"  # place of an order's number in its id
PEERS = ["feast[redis]>=0.67", "xgboost-cpu>=3.2", "fastapi", "uvicorn", "httptools", "uvloop"]


# --- services, each run as `score.py --serve NAME FOLDER` in a process of its own -------------------------------------


def run_uvicorn(app, port: int) -> None:
    "As our own service is run."
    import uvicorn

    uvicorn.run(
        app,
        port=port,
        http="httptools",
        loop="uvloop",
        ws="none",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )


def body_model():
    import pydantic

    return pydantic.create_model("Order", **FIELDS)


def serve_ours(folder: Path, plan: dict) -> None:
    from fraud_poc.core.settings import Settings
    from fraud_poc.service.workers import serve

    serve(Settings.model_validate(plan["settings"]), plan["redis"])


def serve_empty(folder: Path, plan: dict) -> None:
    from fastapi import FastAPI

    app, order_type = FastAPI(), body_model()

    @app.post("/score")
    async def score(order: order_type):
        return {"ok": True}

    run_uvicorn(app, plan["ports"]["empty"])


def feast_store(folder: Path, plan: dict):
    "The feature store: one view for each entity, its online half in Redis."
    from feast import FeatureStore, RepoConfig

    host, port, password = plan["server"]
    online = {"type": "redis", "connection_string": f"{host}:{port},password={password},db=1"}
    return FeatureStore(
        config=RepoConfig(
            project="orders",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store=online,
            entity_key_serialization_version=3,
        )
    )


def load_feast(folder: Path, plan: dict) -> None:
    "Define the views and write the newest features of each key of the orders to come."
    import pandas as pd
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Float32

    store, views = feast_store(folder, plan), []
    for by, names in plan["features"].items():
        entity = Entity(name=by, join_keys=[by], value_type=ValueType.STRING)
        path = str(folder / f"{by}.parquet")
        views.append(
            FeatureView(
                name=f"by_{by}",
                entities=[entity],
                schema=[Field(name=name, dtype=Float32) for name in names],
                online=True,
                source=FileSource(path=path, timestamp_field="event_timestamp"),
            )
        )
        store.apply([entity, views[-1]])
        store.write_to_online_store(views[-1].name, df=pd.read_parquet(path))
    store.apply([FeatureService(name="all", features=views)])


def serve_feast(folder: Path, plan: dict) -> None:
    from datetime import datetime

    import numpy as np
    import xgboost
    from fastapi import FastAPI

    store, app, order_type, booster = (
        feast_store(folder, plan),
        FastAPI(),
        body_model(),
        xgboost.Booster(model_file=str(folder / "model.ubj")),
    )
    booster.set_param({"nthread": 1})
    service, names, entities = store.get_feature_service("all"), plan["names"], list(plan["features"])

    @app.post("/score")
    async def score(order: order_type):
        row = {by: getattr(order, by) for by in entities}
        found = store.get_online_features(features=service, entity_rows=[row]).to_dict()
        when = datetime.fromisoformat(order.order_date)
        own = {"order_amount": order.order_amount, "hour": when.hour, "weekday": when.weekday()}
        vector = np.array([[found[name][0] if name in found else own[name] for name in names]], dtype=np.float32)
        return {"id": order.order_id, "score": float(booster.inplace_predict(vector)[0])}

    run_uvicorn(app, plan["ports"]["feast"])


# --- the client: `score.py --client PORT CONNECTIONS SECONDS FIRST FOLDER` --------------------------------------------


def requests_of(folder: Path) -> list[tuple[bytes, bytes]]:
    "Requests before and after the number of the order."
    plan = json.loads((folder / "plan.json").read_text())
    found = []
    for line in (folder / "bodies.jsonl").read_bytes().splitlines():
        head = (
            "POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"X-API-Key: {plan['key']}\r\nContent-Length: {len(line)}\r\n\r\n"
        )
        before, after = (head.encode() + line).split(MARK.encode())
        found.append((before, after))
    return found


def whole(data: bytes) -> bool:
    "Whether a response has arrived in full; `RuntimeError` when it is an error."
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    if not data.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(data.decode(errors="replace"))
    start = data.index(b"content-length: ", 0, end + 2) + 16
    return len(data) >= end + 4 + int(data[start : data.index(b"\r", start)])


def load(port: int, connections: int, seconds: float, first: int, folder: Path) -> dict:
    "Send orders over some connections for a while: requests, seconds, latencies in ms."
    requests, waits, number = requests_of(folder), [], first
    poll, socks, since, got = select.epoll(), {}, {}, {}

    def send(place: int) -> None:
        nonlocal number
        before, after = requests[number % len(requests)]
        request, got[place], since[place] = before + b"%010d" % number + after, b"", time.perf_counter()
        socks[place].sendall(request)
        number += 1

    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socks[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
    start = time.perf_counter()
    for place in socks:
        send(place)
    while since:
        for place, _ in poll.poll():
            data = got[place] = got[place] + socks[place].recv(16_384)
            if not whole(data):
                continue
            now = time.perf_counter()
            waits.append(now - since.pop(place))
            if now < start + seconds:
                send(place)
    waits.sort()
    return {
        "requests": len(waits),
        "seconds": now - start,
        "mean": sum(waits) / len(waits) * 1000,
        "p50": waits[len(waits) // 2] * 1000,
        "p99": waits[int(len(waits) * 0.99)] * 1000,
        "next": number,
    }


# --- preparation ------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(f"\r{text:<70}", end="", file=sys.stderr, flush=True)


def on_core(core: int):
    return lambda: os.sched_setaffinity(0, {core})


@contextmanager
def process(*command, core: int, log: Path):
    "A process on one core, ended at the end."
    with open(log, "wb") as out:
        started = subprocess.Popen(
            [str(part) for part in command], stdout=out, stderr=out, preexec_fn=on_core(core), cwd=ROOT
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            started.kill()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(port: int, started: subprocess.Popen, log: Path) -> None:
    for _ in range(1200):
        if started.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{log.name}: nothing listens on port {port}:\n{log.read_text()[-2000:]}")


def train_everything(folder: Path, orders: int):
    "From nothing to a judged model and its table: settings, table, bundle."
    from fraud_poc.core.settings import load_settings
    from fraud_poc.data.ingest import ingest
    from fraud_poc.data.sample import make_data
    from fraud_poc.features.batch import compute_features
    from fraud_poc.features.table import build_table
    from fraud_poc.model.acceptance import judge_model
    from fraud_poc.model.bundle import latest_bundle
    from fraud_poc.model.dataset import make_dataset
    from fraud_poc.model.train import train_model

    settings = load_settings(
        ROOT / "config" / "orders.toml",
        {
            "batch.folder": str(folder / "orders"),
            "input.events": str(folder / "raw" / "orders"),
            "input.labels": str(folder / "raw" / "labels"),
            "sample.orders": orders,
            "sample.customers": max(1, orders * 2 // 15),
            "model.trees": TREES,
            "model.early_stopping": 0,
            "acceptance.min_auc": 0.5,
            "acceptance.min_average_precision": 0.0,
            "acceptance.bootstrap": 10,
            "service.port": free_port(),
            "features.rows": load_settings(ROOT / "config" / "orders.toml").features.rows,
        },
    )
    for name, step in {
        "generate": make_data,
        "ingest": ingest,
        "features": compute_features,
        "dataset": make_dataset,
        "train": train_model,
        "judge": judge_model,
    }.items():
        if name == "generate" and (folder / "orders").exists():
            break
        say(f"{name} ...")
        step(settings)
    table = build_table(settings)
    return settings, table, latest_bundle(settings, table)


def write_bodies(settings, folder: Path, count: int) -> None:
    "New orders of the identities at the end of the log, a second apart."
    import numpy as np
    import pyarrow as pa

    from fraud_poc.data.log import read_manifest, read_part

    columns, parts = (
        settings.columns,
        [part for part in read_manifest(settings.batch.folder)["parts"] if part["events"]],
    )
    tail = pa.concat_tables(
        [
            read_part(settings.batch.folder, "events", part["name"], ["time", columns.amount, *columns.hashed])
            for part in parts[-3:]
        ]
    )
    rows = tail.slice(max(0, len(tail) - 20_000)).to_pylist()
    rows = [row for row in rows if all(row[name] for name in columns.hashed)]
    last = max(row["time"].timestamp() for row in rows)
    with open(folder / "bodies.jsonl", "w", encoding="utf-8") as out:
        for i in range(count):
            row = rows[i % len(rows)]
            when = np.datetime64(int((last + 1 + i) * 1000), "ms")
            body = {
                "order_id": f"bench-{MARK}",
                "order_date": f"{when}Z",
                "order_amount": row[columns.amount] / 100,
            } | {name: str(row[name]) for name in columns.hashed}
            out.write(json.dumps(body) + "\n")


def write_feast_inputs(settings, table, bundle, folder: Path) -> dict[str, list[str]]:
    "Newest features of each key of the orders to come, one file for each entity; returns their names by entity."
    import pandas as pd
    import pyarrow.parquet as pq

    from fraud_poc.data.log import LOG
    from fraud_poc.features.state_files import features_folder

    bodies = pd.read_json(folder / "bodies.jsonl", lines=True, dtype=str)
    events = pq.read_table(
        settings.batch.folder / LOG / "events", columns=["seq", *settings.columns.entities]
    ).to_pandas()
    features = (
        pq.read_table(features_folder(settings, table) / "parts").to_pandas().merge(events, on="seq").sort_values("seq")
    )
    names = {entity.by: [table.names[i] for i in entity.places] for entity in table.entities}
    for by in names:
        newest = features.dropna(subset=[by]).astype({by: str}).drop_duplicates(by, keep="last")
        newest = newest[newest[by].isin(set(bodies[by]))][[by, *names[by]]]
        newest.assign(event_timestamp=pd.Timestamp("2025-06-30", tz="UTC")).to_parquet(folder / f"{by}.parquet")
    bundle.booster.save_model(folder / "model.ubj")
    return names


@contextmanager
def redis_server(folder: Path):
    "A server on its core, set up as `fraud-poc serve` does, with a port for Feast: address, port and password."
    from fraud_poc.live.redis_server import CONFIG, find_server

    port, password, home = free_port(), secrets.token_hex(16), folder / "redis"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    socket_path = Path(tempfile.mkdtemp()) / "redis.sock"
    listen = f"port {port}\nunixsocket {socket_path}\ndir {home}"
    (home / "redis.conf").write_text(CONFIG.format(password=password, listen=listen, durability="everysec"))
    command = [find_server(), home / "redis.conf"]
    with process(*command, core=STORE, log=folder / "redis.log") as started:
        wait_for(port, started, folder / "redis.log")
        try:
            yield f"unix://{socket_path}?password={password}", ["127.0.0.1", port, password]
        finally:
            shutil.rmtree(socket_path.parent)


def feast_python(folder: Path) -> Path:
    "The interpreter of an environment with Feast, made if need be."
    python = folder / "feast" / "bin" / "python"
    if not python.exists():
        say("installing Feast ...")
        uv = (
            [sys.executable, "-m", "uv"]
            if subprocess.run([sys.executable, "-m", "uv", "--version"], capture_output=True).returncode == 0
            else ["uv"]
        )
        subprocess.run([*uv, "venv", "-q", "--python", sys.executable, folder / "feast"], check=True)
        subprocess.run([*uv, "pip", "install", "-q", "--python", python, *PEERS], check=True)
    return python


# --- measuring --------------------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    "Processor time of a process so far."
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(port: int, pid: int, connections: int, seconds: float, first: int, folder: Path) -> dict:
    "One turn of one service."
    before = cpu_seconds(pid)
    out = subprocess.run(
        [sys.executable, __file__, "--client", *map(str, (port, connections, seconds, first, folder))],
        capture_output=True,
        text=True,
        preexec_fn=on_core(CLIENT),
    )
    if out.returncode:
        raise RuntimeError(out.stderr[-2000:])
    found = json.loads(out.stdout)
    return found | {
        "rate": found["requests"] / found["seconds"],
        "cpu": (cpu_seconds(pid) - before) / found["requests"] * 1e6,
    }


def spent(port: int, key: str) -> dict[str, tuple[float, float]]:
    "Seconds and times of each part so far, from the service's own metrics."
    from fraud_poc.service.client import ServiceClient

    lines = ServiceClient(f"http://127.0.0.1:{port}", key).ask("GET", "/metrics")[1].splitlines()
    found = {}
    for kind, place in (("sum", 0), ("count", 1)):
        for line in lines:
            if line.startswith(f"fraud_poc_seconds_{kind}{{"):
                found.setdefault(line.split('"')[1], [0.0, 0.0])[place] = float(line.rpartition(" ")[2])
    return found


def in_process(settings, table, bundle, folder: Path, rounds: int = 3_000) -> dict[str, float]:
    "Microseconds of the parts that wait for nobody, in a loop in this process; the best of five."
    import numpy as np

    from fraud_poc.core.events import key_of
    from fraud_poc.core.reading import EventReader
    from fraud_poc.data.log import hash_secret
    from fraud_poc.features.state_files import read_states
    from fraud_poc.features.table import Stepper, step_event
    from fraud_poc.live.decide import Engine, ServingModel
    from fraud_poc.live.store import MemoryStore, Meta
    from fraud_poc.service.schemas import Codec

    secret = hash_secret(settings.batch.folder)
    bundle.booster.set_param({"nthread": 1})
    codec, stepper, scorer = (
        Codec(EventReader(settings, secret), table.names),
        Stepper(table),
        bundle.scorer(),
    )
    engine = Engine(
        settings, ServingModel(table, bundle, scorer), MemoryStore(Meta("e", 1, table.hash, {"next_seq": 0}))
    )
    engine.present_features = codec.features
    states = {
        (e.by, key): state
        for e in table.entities
        for part in read_states(settings, table, e.by)
        for key, state in zip(part["key"].to_pylist(), part["state"].to_pylist())
    }
    bodies = (folder / "bodies.jsonl").read_bytes().splitlines()[:rounds]
    events = [codec.event(body) for body in bodies]
    texts = [[str(json.loads(body)[name]) for name in ("order_id", *settings.columns.hashed)] for body in bodies]
    before = [[states.get((e.by, event.keys[e.by]), b"") for e in table.entities] for event in events]
    step = lambda event, b: step_event(stepper, event.time, event.id_key & 0xFFFFFFFF, event.amount, event.keys, b)
    stepped = [step(event, b) for event, b in zip(events, before)]
    vectors, answers = (
        [s[0] for s in stepped],
        [engine.score(event, s[0], s[1], 0.0)[0] for event, s in zip(events, stepped)],
    )
    parts = {
        "read and validate": lambda i: codec.event(bodies[i]),
        "of which key hashing": lambda i: [key_of(text, secret) for text in texts[i]],
        "step, bytes to bytes": lambda i: step(events[i], before[i]),
        "model": lambda i: scorer.score(vectors[i]),
        "model, answer and record": lambda i: engine.score(events[i], vectors[i], stepped[i][1], 0.0),
        "encode the answer": lambda i: codec.encode(answers[i]),
    }
    found = {"XGBoost's own prediction": lambda i: bundle.booster.inplace_predict(vectors[i][None])}

    def best(part, n: int) -> float:
        spans = []
        for _ in range(5):
            start = time.perf_counter()
            for i in range(n):
                part(i)
            spans.append((time.perf_counter() - start) / n * 1e6)
        return min(spans)

    print(
        f"\nstates of an order's entities: {np.mean([sum(map(len, b)) for b in before]):,.0f} bytes; "
        f"compiled model: {scorer.compiled}"
    )
    return {name: best(part, len(bodies)) for name, part in parts.items()} | {
        name: best(part, 200) for name, part in found.items()
    }


def turns(services: dict[str, tuple[int, int]], args, folder: Path, key: str) -> tuple[dict, dict]:
    """All turns: a list of results for each service and number of connections.

    And what our service reports to have spent on one connection.
    """
    found, number, inside = {}, 0, {}
    for port, pid in services.values():
        number = measure(port, pid, 4, 1.5, number, folder)["next"]  # warm
    for turn in range(args.repeats):
        for connections in (1, 16):
            for name, (port, pid) in services.items():
                say(f"turn {turn + 1} of {args.repeats}: {name}, {connections} connections")
                before = spent(port, key) if name == "ours" else {}
                result = measure(port, pid, connections, args.seconds, number, folder)
                number = result["next"]
                found.setdefault((name, connections), []).append(result)
                if name == "ours" and connections == 1:
                    for part, (seconds, count) in spent(port, key).items():
                        old = before.get(part, (0, 0))
                        if count > old[1]:
                            inside.setdefault(part, []).append((seconds - old[0]) / (count - old[1]) * 1e6)
    return found, {part: statistics.median(values) for part, values in inside.items()}


def report(found: dict, inside: dict, alone: dict, services) -> dict:
    "Tables, and the last line."
    middle = {
        place: {what: statistics.median(r[what] for r in results) for what in ("rate", "mean", "p50", "p99", "cpu")}
        for place, results in found.items()
    }
    print(f"\n{'service':<10}{'connections':>12}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'server CPU us':>15}")
    for (name, connections), m in middle.items():
        print(f"{name:<10}{connections:>12}{m['rate']:>12,.0f}{m['p50']:>9.3f}{m['p99']:>9.3f}{m['cpu']:>15,.0f}")
    print("\nwhere an order's microseconds go, one connection, means by the service's own clock:")
    total = inside.pop("total", 0)
    for part, value in inside.items():
        print(f"  {part:<28}{value:>8.1f}")
    print(
        f"  {'encode and the rest':<28}{total - sum(inside.values()):>8.1f}\n  {'in the application':<28}{total:>8.1f}"
    )
    print(f"  {'HTTP, kernel and client':<28}{middle['ours', 1]['mean'] * 1000 - total:>8.1f}")
    print("\nparts that wait for nobody, in a loop:")
    for part, value in alone.items():
        print(f"  {part:<28}{value:>8.1f}")
    ours, empty = middle["ours", 16], middle["empty", 16]
    print("\nrequests/s at 16 connections, ratios within each turn:")

    def versus(name: str) -> float | None:
        if name not in services:
            return None
        ratios = [a["rate"] / b["rate"] for a, b in zip(found["ours", 16], found[name, 16])]
        low, middle_one, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        print(f"  ours to {name:<20}{middle_one:>8.2f}, half of the turns between {low:.2f} and {high:.2f}")
        return round(middle_one, 2)

    added = statistics.median(a["p50"] - b["p50"] for a, b in zip(found["ours", 1], found["empty", 1]))
    return {
        "vs_empty": versus("empty"),
        "vs_feast": versus("feast"),
        "p50_added_ms": round(added, 3),
        "requests_per_second": round(ours["rate"]),
        "empty_requests_per_second": round(empty["rate"]),
        "p99_ms_16": round(ours["p99"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=100_000, help="orders in the history")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one turn")
    parser.add_argument("--repeats", type=int, default=15, help="turns of each service")
    parser.add_argument("--without-feast", action="store_true", help="install nothing, and leave Feast out")
    parser.add_argument("--keep", type=Path, help="folder for data and Feast, used again the next time")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = args.keep.resolve() if args.keep else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        settings, table, bundle = train_everything(folder, args.orders)
        from fraud_poc.live.load import prepare_db
        from fraud_poc.service.keys import fresh_key

        write_bodies(settings, folder, 60_000 + int(30_000 * args.seconds * args.repeats / 8))
        url, server = stack.enter_context(redis_server(folder))
        say("filling the store ...")
        prepare_db(settings, url)
        plan = {
            "settings": settings.model_dump(mode="json"),
            "redis": url,
            "server": server,
            "key": fresh_key(settings, "bench"),
            "names": table.names,
            "ports": {"ours": settings.service.port} | {name: free_port() for name in ("empty", "feast")},
        }
        pythons = dict.fromkeys(["ours", "empty"], sys.executable)
        if not args.without_feast:
            plan["features"], pythons["feast"] = (
                write_feast_inputs(settings, table, bundle, folder),
                feast_python(folder),
            )
        (folder / "plan.json").write_text(json.dumps(plan))
        if not args.without_feast:
            say("writing features into Feast ...")
            (folder / "registry.db").unlink(missing_ok=True)
            subprocess.run([pythons["feast"], __file__, "--serve", "load_feast", folder], check=True, cwd=ROOT)
        alone, services = in_process(settings, table, bundle, folder), {}
        for name, python in pythons.items():
            started = stack.enter_context(
                process(python, __file__, "--serve", f"serve_{name}", folder, core=SERVER, log=folder / f"{name}.log")
            )
            services[name] = (plan["ports"][name], started.pid)
            wait_for(plan["ports"][name], started, folder / f"{name}.log")
        print(
            f"\n{len(table.names)} features, {TREES} trees of depth {settings.model.max_depth}; cores: "
            f"services {SERVER}, client {CLIENT}, store {STORE}"
        )
        found, inside = turns(services, args, folder, plan["key"])
    print(json.dumps(report(found, inside, alone, services)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        globals()[sys.argv[2]](Path(sys.argv[3]), json.loads((Path(sys.argv[3]) / "plan.json").read_text()))
    elif sys.argv[1:2] == ["--client"]:
        print(
            json.dumps(
                load(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]), Path(sys.argv[6]))
            )
        )
    else:
        main()
