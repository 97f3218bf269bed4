"""What versions of this program leave to each other has a format: a newer one is refused by name, and left alone."""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa
from support.scoring_worker import settings_in

from fraud_poc.core.database import make_engine, open_database
from fraud_poc.core.files import write_json, write_parquet
from fraud_poc.core.settings import Settings
from fraud_poc.data.log import LOG_FORMAT, read_manifest
from fraud_poc.desk.writer import archived_entries
from fraud_poc.features.state import STATE_VERSION
from fraud_poc.features.state_files import FEATURES_FORMAT, features_folder, features_manifest
from fraud_poc.features.table import Stepper, build_table, step_event
from fraud_poc.live.collect import collect
from fraud_poc.live.load import ARCHIVED, inspect_store
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import start_redis
from fraud_poc.live.redis_store import Names, open_store
from fraud_poc.live.store import STORE_FORMAT, Meta, StoreLost
from fraud_poc.model.bundle import BUNDLE_FORMAT, read_manifest_of, sealed
from fraud_poc.model.dataset import DATASET_VERSION, read_dataset
from fraud_poc.ops import backup

NAMES, EMPTY_LOG = Names("orders"), {"domain": "orders", "parts": [], "ingests": [], "next_seq": 0}
BACKUP = "20251105T103000000Z"


def features(settings: Settings) -> Path:
    return features_folder(settings, build_table(settings))


def archive(settings: Settings, number: int) -> None:
    schema = ARCHIVED.with_metadata({"format": str(number)})
    write_parquet(settings.batch.folder / "live_log" / "5eed-000000000000.parquet", pa.Table.from_pylist([], schema))


def write_backup(settings: Settings, number: int) -> None:
    path = settings.batch.folder / BACKUP / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(sealed({"format": number}))


@dataclass(frozen=True)
class Kind:
    "A file whose manifest, or metadata, has a format."

    name: str
    ours: int
    write: Callable[[Settings, int], None]
    read: Callable[[Settings], object]
    before: bool = False  # whether the format before is read


def written_as(*path: str, **more) -> Callable[[Settings, int], None]:
    return lambda settings, number: write_json(settings.batch.folder.joinpath(*path), {"format": number} | more)


FILES = [
    Kind("batch log", LOG_FORMAT, written_as("log", "manifest.json", **EMPTY_LOG),
         lambda settings: read_manifest(settings.batch.folder), before=True),
    Kind("features", FEATURES_FORMAT,
         lambda settings, number: write_json(features(settings) / "manifest.json", {"format": number}),
         lambda settings: features_manifest(settings, build_table(settings))),
    Kind("dataset", DATASET_VERSION, written_as("dataset", "manifest.json"), read_dataset),
    Kind("archived live log", STORE_FORMAT, archive,
         lambda settings: archived_entries(settings.batch.folder / "live_log" / "5eed-000000000000.parquet", 0, None),
         before=True),
    Kind("bundle", BUNDLE_FORMAT, written_as("model", "manifest.json"),
         lambda settings: read_manifest_of(settings.batch.folder / "model")),
    Kind("backup", backup.FORMAT, write_backup,
         lambda settings: backup.read_backup(settings.batch.folder / BACKUP)),
]  # fmt: skip


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.name)
def test_a_newer_file_is_refused_by_name_and_left_alone(tmp_path, kind):
    settings = settings_in(tmp_path / "orders")
    kind.write(settings, kind.ours + 1)
    before = files_in(tmp_path)
    with pytest.raises(ValueError) as refused:
        kind.read(settings)
    text = str(refused.value)
    assert str(settings.batch.folder) in text and re.search(rf"format {kind.ours + 1}\b", text), text
    assert re.search(rf"version reads {kind.ours}\b", text) and "use the version" in text, text
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind.before], ids=lambda kind: kind.name)
@pytest.mark.parametrize("step", [0, 1])
def test_our_format_and_the_one_before_are_read(tmp_path, kind, step):
    settings = settings_in(tmp_path / "orders")
    kind.write(settings, kind.ours - step)
    kind.read(settings)


def test_a_newer_database_is_refused_by_name_and_left_alone(tmp_path):
    settings = settings_in(tmp_path / "orders")
    engine = open_database(settings)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    before = dump(settings)
    with pytest.raises(ValueError, match=r"revision 9999, and this version knows \d{4}: use the version"):
        open_database(settings)
    assert dump(settings) == before


def dump(settings: Settings) -> list[str]:
    engine = make_engine(sa.URL.create("sqlite", database=str(settings.batch.folder / "desk.sqlite")))
    with engine.connect() as connection:
        found = list(connection.connection.driver_connection.iterdump())
    engine.dispose()
    return found


# --- the store: its format counts for states, records, entries and waiting labels -------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with start_redis(tmp_path_factory.mktemp("store") / "redis") as server:
        yield server


def fill(url: str, settings: Settings, **base) -> bytes:
    "Fill the store as a version does; returns the meta data."
    meta = Meta("5eed", 1, build_table(settings).hash, {"next_seq": 0} | base)
    text = json.dumps(asdict(meta))
    with Client(url) as client:
        client.call("FLUSHALL")
        client.call("MSET", NAMES.now, meta.marker, NAMES.meta, text, NAMES.seq, -1, NAMES.run, "of another server")
    return text.encode()


def contents(url: str) -> dict[bytes, bytes]:
    with Client(url) as client:
        return {key: client.call("DUMP", key) for key in client.call("KEYS", "*")}


async def opened(settings: Settings, url: str, writes: bool) -> object:
    async with open_store(settings, url, writes) as store:
        return await store.meta()


def inspected(url: str) -> object:
    with Client(url) as client:
        return inspect_store(client, NAMES)


NEWER = f"format {STORE_FORMAT + 1}, this version reads {STORE_FORMAT}: use the version"


@pytest.mark.parametrize(
    "act",
    [
        lambda settings, url: asyncio.run(opened(settings, url, True)),  # the service
        lambda settings, url: asyncio.run(opened(settings, url, False)),  # the decision writer
        lambda settings, url: inspected(url),
        lambda settings, url: collect(settings, url),
    ],
    ids=["service", "reader", "inspect_store", "collect"],
)
def test_a_newer_store_is_refused_by_name_and_left_alone(tmp_path, server, act):
    settings = settings_in(tmp_path / "orders")
    written_as("log", "manifest.json", **EMPTY_LOG)(settings, LOG_FORMAT)
    fill(server.url, settings, format=STORE_FORMAT + 1)
    before = contents(server.url)
    with pytest.raises((ValueError, StoreLost), match=NEWER) as refused:
        act(settings, server.url)
    assert "the store at" in str(refused.value)
    assert contents(server.url) == before


@pytest.mark.parametrize("base", [{}, {"format": 1}, {"format": STORE_FORMAT - 1}, {"format": STORE_FORMAT}])
def test_a_store_of_ours_and_of_the_versions_before_is_used_and_marked_by_who_writes(tmp_path, server, base):
    settings = settings_in(tmp_path / "orders")
    fill(server.url, settings, **base)
    assert asyncio.run(opened(settings, server.url, False)).base == {"next_seq": 0} | base
    assert asyncio.run(opened(settings, server.url, True)).base == {"next_seq": 0, "format": STORE_FORMAT}
    with Client(server.url) as client:
        assert client.call("GET", NAMES.timelines), "another server begins a timeline"


def test_a_newer_state_is_refused_by_name(tmp_path):
    table = build_table(settings_in(tmp_path / "orders"))
    keys = {column: 7 for column in Stepper(table).columns}
    known = step_event(Stepper(table), 0, 1, 100, keys, [b""] * len(table.entities))[2]
    newer = [bytes([STATE_VERSION + 1]) + state[1:] for state in known]
    with pytest.raises(ValueError, match=f"a state of .* has format {STATE_VERSION + 1}, this version reads .*newer"):
        step_event(Stepper(table), 0, 2, 100, keys, newer)
