"""A desk with generated decisions on a free port, for browsers: a real server in a thread, stopped by its own handle."""
import asyncio
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

import desk_data
from fraud_poc.config import load_settings
from fraud_poc.desk.access import new_account
from fraud_poc.desk.database import cases, decisions, labels, open_database, writing
from fraud_poc.desk.pages import create_desk
from fraud_poc.events import system_clock
from waiting import LONG, until

ROOT = Path(__file__).resolve().parents[1]
PASSWORD, SECRET = "a sentence of hers", bytes(range(32))
PEOPLE = {"analyst-1": "analyst", "analyst-2": "analyst", "viewer-1": "viewer", "admin-1": "admin"}


class Log:
    "Stands for the live log and its writer: what is said becomes a row of `labels` at once."
    def __init__(self, engine: sa.Engine):
        self.engine, self.said, self.down = engine, [], False

    async def __call__(self, order: str, fraud: bool, note: str, by: str) -> int:
        if self.down: raise ConnectionError("no store")
        await asyncio.sleep(0)
        self.said.append((order, fraud, note, by))
        return 10_000 + len(self.said)

    def write(self) -> None:
        "What the writer would do with what was said."
        with writing(self.engine) as connection:
            done = connection.execute(sa.select(sa.func.count()).where(labels.c.position > 10_000)).scalar()
            for place, (order, fraud, note, by) in enumerate(self.said[done:], done + 1):
                known = system_clock()
                mine = connection.execute(sa.select(decisions.c.id).where(decisions.c.order_id == order)).scalar()
                before = connection.execute(sa.select(labels.c.label).where(labels.c.order_id == order).order_by(labels.c.id.desc()).limit(1)).scalar()
                connection.execute(sa.insert(labels).values(
                    log="e", position=10_000 + place, order_id=order, decision_id=mine, said=fraud, label=fraud, previous=-1 if before is None else before, source="analyst",
                    known=known, noted=known, note=note, by=by))


def make_desk(folder: Path, now: int | None = None, count: int = 2500, clock=system_clock, url: str = "", **more) -> SimpleNamespace:
    "An app with a desk: app, engine, log, settings. Whoever makes it disposes of the engine."
    settings = load_settings(ROOT / "config" / "orders.toml", {"batch.folder": str(folder), "database.url": "", "desk.login_attempts": 100} | more)
    engine = open_database(settings, url)
    now = now or clock()
    if count: desk_data.fill(engine, settings, SECRET, now, count)
    for name, role in PEOPLE.items(): new_account(engine, name, PASSWORD, role, "test", now)
    log, app = Log(engine), FastAPI()
    app.mount("/desk", create_desk(settings, engine, log, SECRET, clock))
    return SimpleNamespace(app=app, engine=engine, log=log, settings=settings, now=now)


@contextmanager
def served(desk: SimpleNamespace):
    "The address of the desk while its server runs."
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(desk.app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive(), "the desk's server starts")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/desk"
        finally:
            server.should_exit = True
            thread.join(LONG)
            desk.engine.dispose()


def open_numbers(engine: sa.Engine) -> list[int]:
    "Numbers of the open cases in the order of the queue."
    with engine.connect() as connection:
        return list(connection.execute(sa.select(cases.c.decision_id).where(cases.c.status == "open").order_by(cases.c.urgency.desc(), cases.c.decision_id)).scalars())
