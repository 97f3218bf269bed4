"""A desk with generated decisions on a free port, for browsers: a server in a thread, stopped by its own handle."""

import asyncio
import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI

from fraud_poc.core.audit import record
from fraud_poc.core.database import open_database, read_checkpoint, writing
from fraud_poc.core.events import system_clock
from fraud_poc.core.sections import duration_ms
from fraud_poc.core.settings import load_settings
from fraud_poc.desk import accounts
from fraud_poc.desk.login import Gate
from fraud_poc.desk.pages import create_desk
from fraud_poc.desk.rows import EntryReader
from fraud_poc.desk.tables import cases, decisions
from fraud_poc.desk.writer import begin_log, write_entries
from fraud_poc.features.label_history import (
    SOURCES,
    LabelHistory,
    effective_source,
    next_known,
    with_assertion,
    without_assertion,
)
from fraud_poc.live.labels import LabelAssertion, LabelledEvent, LabelResult, Retraction, label_entry
from fraud_poc.live.store import encode_entry
from support import desk_data
from support.waiting import LONG, until

ROOT = Path(__file__).resolve().parents[2]
PASSWORD, SECRET = "a sentence of hers", bytes(range(32))
PEOPLE = {"analyst-1": "analyst", "analyst-2": "analyst", "viewer-1": "viewer", "admin-1": "admin"}


class Log:
    """Stands for the live log.

    Its entries are as the service makes them, and `write` is what the decision writer does with them.
    """

    def __init__(self, engine: sa.Engine, settings, clock):
        self.engine, self.reader, self.clock = (
            engine,
            EntryReader(settings, explain=lambda model, vectors, orders: [None] * len(orders)),
            clock,
        )
        self.changes, self.entries, self.histories, self.items, self.down = [], [], {}, {}, False

    async def __call__(self, change: LabelAssertion | Retraction) -> tuple[str, LabelResult]:
        if self.down:
            raise ConnectionError("no store")
        await asyncio.sleep(0)
        priority, position, before, now = (
            self.reader.settings.labels.priority,
            10_001 + len(self.entries),
            self.histories.get(change.order, LabelHistory()),
            self.clock(),
        )
        if isinstance(change, Retraction):
            item, after = self.items[change.retracts], without_assertion(before, self.items[change.retracts], priority)
        else:
            source = SOURCES.index(change.source)
            item = source, int(change.fraud), next_known(before, source, int(change.fraud), now)
            after = with_assertion(before, item, priority)
        with self.engine.connect() as connection:
            time = connection.execute(sa.select(decisions.c.time).where(decisions.c.order_id == change.order)).scalar()
        self.histories[change.order], self.items[position] = after, item
        self.entries.append(
            (
                position,
                encode_entry(label_entry(change, item, 0, LabelledEvent(time, {}, before), before.label, after, now)),
            )
        )
        self.changes.append(change)
        return "e", LabelResult(
            change.order,
            after.label,
            effective_source(after, priority),
            before.label,
            position,
            after.label != before.label,
            False,
        )

    def write(self) -> None:
        "All that is in the log."
        mark = read_checkpoint(self.engine) or begin_log(self.engine, None, "e")
        behind = [entry for entry in self.entries if entry[0] > mark.position]
        if behind:
            write_entries(self.engine, self.reader, mark, behind)


def uncommitted(error: Exception):
    "Stands for database.writing: all is done, and the commit fails."

    @contextmanager
    def writing(engine: sa.Engine):
        with engine.connect() as connection:
            yield connection
            connection.rollback()
        raise error

    return writing


def make_settings(folder: Path, **more):
    return load_settings(
        ROOT / "config" / "orders.toml",
        {"batch.folder": str(folder), "database.url": "", "desk.login_attempts": 100} | more,
    )


def fill(engine: sa.Engine, settings, now: int, count: int) -> None:
    "Decisions of the last days, and the accounts, whose hashes cost little: the first login makes a proper one."
    if count:
        desk_data.fill(engine, settings, SECRET, now, count)
    with patch.object(accounts, "HASHER", accounts.PasswordHasher(1, 8, 1)):
        for name, role in PEOPLE.items():
            accounts.new_account(engine, name, PASSWORD, role, "test", now)


def logged_in(desk: SimpleNamespace, name: str) -> tuple[str, str, str]:
    "What a login leaves, without its pages and its hash: name and value of the cookie, and the token of forms."
    with writing(desk.engine) as connection:
        token, csrf = accounts.open_session(connection, name, duration_ms(desk.settings.desk.session), desk.now)
        record(connection, name, "logged in", name, {}, desk.now)
    return Gate(desk.settings, desk.engine).cookie, token, csrf


def serve_desk(settings, engine: sa.Engine, now: int, clock) -> SimpleNamespace:
    "An app with a desk on a database that is filled: app, engine, log, settings, now."
    log, app = Log(engine, settings, clock), FastAPI()
    app.mount("/desk", create_desk(settings, engine, log, SECRET, clock))
    return SimpleNamespace(app=app, engine=engine, log=log, settings=settings, now=now)


def make_desk(folder: Path, now: int | None = None, count: int = 2500, clock=system_clock, **more) -> SimpleNamespace:
    "An app with a desk on a new database of SQLite. The caller disposes of the engine."
    settings, now = make_settings(folder, **more), now or clock()
    engine = open_database(settings)
    fill(engine, settings, now, count)
    return serve_desk(settings, engine, now, clock)


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
        return list(
            connection.execute(
                sa.select(cases.c.decision_id)
                .where(cases.c.status == "open")
                .order_by(cases.c.review_priority.desc(), cases.c.decision_id)
            ).scalars()
        )
