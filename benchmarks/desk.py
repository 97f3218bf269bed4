"""How long do the pages of the desk take with a million stored decisions?

    python benchmarks/desk.py [--decisions 1000000] [--cases 100000] [--requests 40] [--keep FOLDER] [--browser]
                              [--postgresql]

The database is SQLite, or with --postgresql a PostgreSQL server that is started for it, filled by
benchmarks/many_decisions.py. The desk runs under uvicorn in a process of its own, and one client asks for each page
over HTTP with another filter, cursor or case each time, as an analyst who works through the queue; decisions are
given too, with a log that only answers. Times are from the request to the last byte. --browser measures the first
paint of the queue in headless Chromium as well. The last line is one JSON object: `p95_ms`, the page whose 95th
percentile is the worst.
"""

import argparse
import contextlib
import json
import multiprocessing
import re
import socket
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import sqlalchemy as sa

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

import many_decisions  # noqa: E402
from support.databases import start_postgresql  # noqa: E402

from fraud_poc.core.database import open_database, unsigned  # noqa: E402
from fraud_poc.core.settings import load_settings  # noqa: E402
from fraud_poc.desk import queries, trends  # noqa: E402
from fraud_poc.desk.accounts import list_accounts, new_account  # noqa: E402
from fraud_poc.desk.tables import cases, decisions  # noqa: E402
from fraud_poc.live.labels import LabelAssertion, LabelResult, Retraction  # noqa: E402

NAME, PASSWORD = "analyst", "a sentence of hers"


def settings_of(folder: Path, url: str):
    return load_settings(
        ROOT / "config" / "orders.toml",
        {"batch.folder": str(folder), "database.url": url, "desk.secure_cookies": False},
    )


def serve(folder: Path, url: str, listener: socket.socket) -> None:
    "The desk in a process of its own."
    import uvicorn
    from fastapi import FastAPI

    from fraud_poc.desk.pages import create_desk

    queries.key_of = lambda text, secret: unsigned(many_decisions.key_of(text))  # as the generated rows have them
    positions = iter(range(10**9))

    async def send(change: LabelAssertion | Retraction) -> tuple[str, LabelResult]:
        label, source = (-1, "") if isinstance(change, Retraction) else (int(change.fraud), change.source)
        return "e", LabelResult(change.order, label, source, -1, next(positions), True, False)

    settings, app = settings_of(folder, url), FastAPI()
    app.mount("/desk", create_desk(settings, open_database(settings), send, bytes(32)))
    uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off")).run([listener])


def wanted(folder: Path, url: str, count: int) -> dict[str, list[str]]:
    "Addresses of each page, all different."
    rng, engine = np.random.default_rng(7), open_database(settings_of(folder, url))
    with engine.connect() as connection:
        waiting = connection.execute(
            sa.select(cases.c.review_priority, cases.c.decision_id)
            .where(cases.c.status == "open")
            .order_by(cases.c.review_priority.desc(), cases.c.decision_id)
        ).all()
        at = [waiting[place] for place in rng.choice(len(waiting), count)]
        bodies = [
            json.loads(body)
            for body in connection.execute(
                sa.select(decisions.c.body).where(decisions.c.id.in_([number for _, number in at]))
            ).scalars()
        ]
        busy = list(
            connection.execute(
                sa.select(decisions.c.customer)
                .group_by(decisions.c.customer)
                .order_by(sa.func.count().desc())
                .limit(count)
            ).scalars()
        )
        hot = list(
            connection.execute(
                sa.select(sa.func.max(decisions.c.id))
                .where(decisions.c.customer.in_(busy))
                .group_by(decisions.c.customer)
            ).scalars()
        )
    engine.dispose()
    pick = lambda *values: str(rng.choice(values))
    entities = ("customer_id", "email", "ip_addr", "device", "order_id")
    return {
        "queue": [f"queue?least={number}" if number else "queue" for number in range(count)],
        "queue, deep": [f"queue?after={review_priority!r}~{number}" for review_priority, number in at],
        "queue, filtered": [
            f"queue?band={pick('medium', 'high')}&action={pick('', 'review', 'block')}&least={rng.integers(1, 400)}"
            f"&most={rng.integers(300, 2000)}&age={pick('', 'hour', 'day', 'older', 'week')}"
            for _ in range(count)
        ],
        "queue, nothing found": [f"queue?least={10**6 + number}&age=week" for number in range(count)],
        "find an entity or an id": [f"queue?find={body[entities[place % 5]]}" for place, body in enumerate(bodies)],
        "find, other case": [f"queue?find={body[entities[place % 5]].upper()}" for place, body in enumerate(bodies)],
        "find a short beginning of ids": [f"queue?find=O{'0' * (1 + place % 3)}" for place in range(count)],
        "find a long beginning of ids": [f"queue?find={body['order_id'][:7]}&least=50" for body in bodies],
        "find what everybody shares": [f"queue?find={customer}" for customer in busy],
        "find nothing": [f"queue?find=missing-{number}" for number in range(count)],
        "find open cases": [f"queue?status=open&find={body[entities[place % 5]]}" for place, body in enumerate(bodies)],
        "newest of all": [f"queue?status=all&least={number}" for number in range(count)],
        "queue, by customer": [f"queue?group=customer&least={number}" for number in range(count)],
        "queue, by customer, deep": [
            f"queue?group=customer&after={review_priority!r}~{number}" for review_priority, number in at
        ],
        "queue, closed": [f"queue?status={pick('cleared', 'flagged')}&least={number}" for number in range(count)],
        "pulse": [
            f"pulse?newest={waiting[0][1] - place}&"
            + "&".join(f"shown={number}" for _, number in waiting[place : place + 50])
            for place in range(count)
        ],
        "case": [f"case/{number}?band={pick('', 'high')}" for _, number in at],
        "case of a busy customer": [f"case/{number}" for number in hot],
        "trends": [f"trends?span={pick(30, 90, 365)}" for _ in range(count)],
        "trends, numbers": [f"trends/data?span={pick(30, 90, 365)}" for _ in range(count)],
        "what if": [
            f"trends/what-if?span=90&step={rng.integers(32)}&capacity={rng.integers(1, 2000)}&an_hour=40"
            for _ in range(count)
        ],
    }


def timed(client: httpx.Client, method: str, path: str, expect: int, **more) -> float:
    "Milliseconds of a request."
    start = time.perf_counter()
    answer = client.request(method, path, **more)
    took = 1000 * (time.perf_counter() - start)
    if answer.status_code != expect:
        raise RuntimeError(f"{method} {path[:100]} answered {answer.status_code}")
    return took


def measure(client: httpx.Client, folder: Path, url: str, count: int) -> dict[str, list[float]]:
    "Milliseconds of each page; the pages take turns."
    pages, times = wanted(folder, url, count), {}
    csrf = re.search(r'name="csrf" value="([^"]+)"', client.get("queue").text)[1]
    for place in range(count):
        for name, paths in pages.items():
            if place < len(paths):
                times.setdefault(name, []).append(timed(client, "GET", paths[place], 200))
        number = re.search(r'<tr id="case-(\d+)"', client.get("queue").text)[1]
        times.setdefault("decision", []).append(
            timed(
                client,
                "POST",
                f"case/{number}/decision",
                303,
                data={"csrf": csrf, "decision": "clear" if place % 2 else "flag", "note": "benchmark"},
            )
        )
        times.setdefault("undo", []).append(timed(client, "POST", f"case/{number}/undo", 303, data={"csrf": csrf}))
    return times


def first_paint(url: str, count: int = 12) -> float:
    "Median milliseconds until the queue is painted in headless Chromium."
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{url}/login")
        page.get_by_label("Account").fill(NAME)
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url("**/queue")
        for _ in range(count):
            page.goto(f"{url}/queue")
            page.wait_for_timeout(150)
            found.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        browser.close()
    return float(np.median(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--postgresql", action="store_true")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        listener, database = stack.enter_context(socket.socket()), ""
        if args.postgresql:
            database = stack.enter_context(start_postgresql())
            if database is None:
                parser.error("there is no PostgreSQL here")
        filled, settings = (folder / "desk.sqlite").exists(), settings_of(folder, database)
        engine = open_database(settings)
        if not filled:
            many_decisions.fill(
                engine,
                settings,
                args.decisions,
                args.cases,
                7,
                lambda done, total: print(f"{done:,} of {total:,}", file=sys.stderr),
            )
        if NAME not in [row["name"] for row in list_accounts(engine)]:
            new_account(engine, NAME, PASSWORD, "analyst", "benchmark")
        counted, start = 0, time.perf_counter()
        while more := trends.count_outcomes(engine, 2):
            counted += more
        print(f"{counted:,} rows counted for the trends in {time.perf_counter() - start:.1f} s")
        engine.dispose()
        listener.bind(("127.0.0.1", 0))
        server = multiprocessing.get_context("fork").Process(
            target=serve, args=(folder, database, listener), daemon=True
        )
        server.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/desk"
        try:
            with httpx.Client(base_url=url, timeout=60, headers={"accept": "text/html"}) as client:
                for _ in range(200):
                    try:
                        client.get("login")
                    except httpx.HTTPError:
                        time.sleep(0.05)
                    else:
                        break
                if client.post("login", data={"name": NAME, "password": PASSWORD}).status_code != 303:
                    raise RuntimeError("could not log in")
                times = measure(client, folder, database, args.requests)
            paint = first_paint(url) if args.browser else None
        finally:
            server.terminate()
            server.join(10)
    worst = {name: float(np.percentile(values, 95)) for name, values in times.items()}
    print(f"{'page':28} {'requests':>8} {'p50 ms':>8} {'p95 ms':>8}")
    for name, values in sorted(times.items(), key=lambda one: -worst[one[0]]):
        print(f"{name:28} {len(values):8} {np.median(values):8.1f} {worst[name]:8.1f}")
    if paint:
        print(f"first paint of the queue in Chromium: {paint:.0f} ms (median)")
    slowest = max(worst, key=worst.get)
    print(
        json.dumps(
            {
                "database": engine.dialect.name,
                "decisions": args.decisions,
                "open_cases": args.cases,
                "page": slowest,
                "p95_ms": round(worst[slowest], 1),
            }
            | ({"first_paint_ms": round(paint)} if paint else {})
        )
    )


if __name__ == "__main__":
    main()
