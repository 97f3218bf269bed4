"""A backup is taken while orders are decided, checked to the byte, and restored: nothing is missing, nothing twice."""

import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import sys
import threading
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from support.children import child
from support.command_line import call
from support.databases import _wheel as postgresql_wheel
from support.private import careless_umask, open_to_others
from support.scored import moment_between, score_some
from support.waiting import until

from fraud_poc.core.audit import verify_audit
from fraud_poc.core.database import open_database
from fraud_poc.core.database_copy import run_postgresql
from fraud_poc.core.files import sole_use
from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.data.log import hash_secret
from fraud_poc.desk.tables import decisions, labels
from fraud_poc.desk.writer import run_writer
from fraud_poc.features.batch import compute_features
from fraud_poc.features.table import build_table
from fraud_poc.live.collect import verify_log
from fraud_poc.live.decide import Engine, default_engine
from fraud_poc.live.labels import LabelAssertion, LabelWriter
from fraud_poc.live.load import inspect_store
from fraud_poc.live.redis_client import Client
from fraud_poc.live.redis_server import server_for, server_runs, start_redis
from fraud_poc.live.redis_store import Names, open_store
from fraud_poc.live.timelines import read_lost_tail
from fraud_poc.ops import backup as module
from fraud_poc.ops import restore as restoring
from fraud_poc.ops.backup import DamagedBackup, backup, backups_in, read_backup, verify_backup
from fraud_poc.ops.erasure_plan import ERASURES, JOURNAL, WORKING
from fraud_poc.ops.forget import forget
from fraud_poc.ops.replay import verify
from fraud_poc.ops.restore import restore
from fraud_poc.service.client import ServiceClient

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from drill import CONFIG, Domain, serving  # noqa: E402

LIVE, HISTORY = 300, 1_200  # orders
NAMES = Names("orders")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A domain that tests copy: history, a model, a filled store, and orders that come after it."
    folder = tmp_path_factory.mktemp("domain")
    with careless_umask():
        Domain(folder, LIVE, HISTORY, **{"model.trees": 10})
    return folder


@pytest.fixture
def tools(monkeypatch):
    "PostgreSQL's client programs, of the release of the server of the tests."
    if wheel := postgresql_wheel():
        folder = max(Path(wheel.__file__).parent.glob("pginstall*/bin"))  # one for each release, the newest runs
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def options_of(domain: Domain, **changes) -> list[str]:
    "Options of a command on a domain."
    sets = {name: json.dumps(value) for name, value in (domain.changes | changes).items()}
    return ["--config", CONFIG, *[word for name, value in sets.items() for word in ("--set", f"{name}={value}")]]


def run(*words) -> dict:
    "The JSON of a command that succeeds."
    done = call(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


class Sender(threading.Thread):
    "Sends orders one after another, without end; `acknowledged` are the ids of those that were answered."

    def __init__(self, address: str, domain: Domain):
        super().__init__(daemon=True)
        self.client, self.orders = ServiceClient(address, domain.key), domain.orders(LIVE)
        self.acknowledged, self.enough = [], threading.Event()

    def __enter__(self) -> "Sender":
        self.start()
        return self

    def __exit__(self, *error) -> None:
        self.enough.set()
        self.join()

    def run(self) -> None:
        for number in itertools.count():
            if self.enough.is_set():
                break
            order = self.orders[number % LIVE][1]
            order = order | {"order_id": f"{order['order_id']}-{number // LIVE}"}
            assert self.client.score(order)["degraded"] is None
            self.acknowledged.append(order["order_id"])

    def sent(self, count: int) -> list[str]:
        "The orders that are acknowledged, when there are so many."
        until(lambda: len(self.acknowledged) >= count, f"{count} orders are acknowledged")
        return list(self.acknowledged)


def rows_of(settings: Settings) -> list[str]:
    "The ids of all decisions in the database of a domain, whose audit is intact."
    engine = open_database(settings)
    try:
        verify_audit(engine)
        with engine.connect() as connection:
            return connection.execute(sa.select(decisions.c.order_id).order_by(decisions.c.position)).scalars().all()
    finally:
        engine.dispose()


async def compared(settings: Settings, url: str) -> dict:
    "What was served against a batch fold over the live log, and against the states of the store."
    async with open_store(settings, url, writes=False) as store:
        engine = default_engine(settings)
        engine.store = store
        return await verify(settings, build_table(settings), engine)


def test_a_backup_under_load_is_restored_to_the_bit(made, tmp_path, database_url, new_databases, tools):
    domain, backups = (
        Domain(tmp_path / "d", LIVE, HISTORY, made, **{"database.url": database_url}),
        tmp_path / "backups",
    )
    secrets = tmp_path / "secrets.json"
    with serving(domain, tmp_path / "serve.log") as (address, _), Sender(address, domain) as sender:
        sender.sent(100)
        first = run("backup", backups, *options_of(domain), "--secrets", secrets)
        before = sender.sent(len(sender.acknowledged) + 50)
        second = run("backup", backups, *options_of(domain))
        after = sender.sent(len(sender.acknowledged) + 1)
    files = read_backup(backups_in(backups)[0])["files"]
    same = sum(entry["bytes"] for name, entry in files.items() if name.startswith(("log/", "models/")))
    assert first["bytes_written"] == first["bytes"] and second["bytes"] - second["bytes_written"] == same > 0
    assert first["secrets"] == str(secrets) and "left out" in second["secrets"]
    assert verify_backup(backups)["backups"] == 2 and not open_to_others(backups) + open_to_others(secrets)

    with new_databases.empty("postgresql" if database_url.startswith("postgresql") else "sqlite") as empty:
        changes = {"batch.folder": str(tmp_path / "restored" / "orders"), "database.url": empty}
        done = run("restore", backups, *options_of(domain, **changes), "--secrets", secrets)
        restored = load_settings(CONFIG, domain.changes | changes)
        there = rows_of(restored)
        assert set(before) <= set(there) <= set(after) and max(Counter(there).values()) == 1
        assert len(there) == done["decisions"] and not open_to_others(restored.batch.folder)
        compute_features(restored, until=domain.end_of_history(LIVE))
        with server_for(restored) as url:
            found = asyncio.run(compared(restored, url))
            assert found["events"] == len(there) and found["states"] > 0
            assert found["differing_bits"] == found["differing_flags"] == found["differing_states"] == 0
            lines = goes_on(restored, url)
    logs = {log for log, _ in read_backup(backups_in(backups)[-1])["store"]["timelines"]}
    assert lines[-1].start == done["position"] + 1 and lines[-1].log not in logs


def goes_on(settings: Settings, url: str) -> list:
    "A service connects to a restored store; the timelines of its log."

    async def connected():
        async with open_store(settings, url) as store:
            return await store.timelines()

    return asyncio.run(connected())


# --- a moment ---------------------------------------------------------------------------------------------------------


def states_and_log(settings: Settings) -> tuple[dict, list]:
    "States in use, without versions, and the live log."
    with server_for(settings) as url, Client(url) as client:
        prefix = NAMES.states(inspect_store(client, NAMES).meta.generation)
        keys = [key for key in client.call("KEYS", NAMES.root + b"*") if key.startswith(prefix)]
        states = {key: value[8:] for key, value in zip(keys, client.call("MGET", *keys))}
        return states, client.call("XRANGE", NAMES.log, "-", "+")


def label(domain: Domain, number: int) -> None:
    "A customer says that one of the orders of `score_some` is fraud."

    async def asserted(url: str) -> None:
        order = domain.orders(number + 1)[number][1]["order_id"]
        async with open_store(domain.settings, url) as store:
            writer = LabelWriter(Engine(domain.settings, None, store), hash_secret(domain.settings.batch.folder))
            assert (await writer.assert_label(LabelAssertion(order, True, "customer"))).changed

    with server_for(domain.settings) as url:
        asyncio.run(asserted(url))


def test_a_moment_between_two_backups_is_restored_to_the_bit(made, tmp_path, database_url, new_databases, tools):
    domain = Domain(tmp_path / "d", LIVE, HISTORY, made, **{"database.url": database_url})
    backups, secrets = tmp_path / "b", tmp_path / "secrets.json"
    score_some(domain, 20)
    run_writer(domain.settings, to_end=True)
    first = backup(domain.settings, backups, CONFIG, secrets)
    score_some(domain, 35)
    label(domain, 3)
    expected, moment = states_and_log(domain.settings), moment_between()
    label(domain, 30)
    score_some(domain, 45)
    run_writer(domain.settings, to_end=True)
    backup(domain.settings, backups, CONFIG)
    with new_databases.empty("postgresql" if database_url.startswith("postgresql") else "sqlite") as empty:
        changes = {"batch.folder": str(tmp_path / "restored"), "database.url": empty}
        done = run("restore", backups, *options_of(domain, **changes), "--secrets", secrets, "--to", moment)
        restored = load_settings(CONFIG, domain.changes | changes)
        assert done["backup"] == Path(first["backup"]).name and done["decisions"] == 35
        assert done["left_out"]["decisions"] == 10 and done["left_out"]["labels"] == 1
        assert states_and_log(restored) == expected
        assert rows_of(restored) == [order["order_id"] for _, order in domain.orders(35)]
        engine = open_database(restored)
        lost, shown = read_lost_tail(engine), asserted_orders(engine)
        engine.dispose()
        assert lost.decisions + lost.labels == 0 and shown == [domain.orders(4)[3][1]["order_id"]]
        compute_features(restored, until=domain.end_of_history(LIVE))
        with server_for(restored) as url:
            found = asyncio.run(compared(restored, url))
            assert found["differing_bits"] == found["differing_states"] == 0 and found["events"] == 35
            assert verify_log(restored, url)["last"] == done["position"]
            assert goes_on(restored, url)[-1].start == done["position"] + 1


def asserted_orders(engine: sa.Engine) -> list[str]:
    "Orders of all label assertions."
    with engine.connect() as connection:
        return connection.execute(sa.select(labels.c.order_id)).scalars().all()


def test_a_moment_out_of_reach_is_an_error_and_nothing_changes(made, tmp_path):
    domain, backups, secrets = Domain(tmp_path / "d", LIVE, HISTORY, made), tmp_path / "b", tmp_path / "secrets.json"
    score_some(domain, 5)
    before = moment_between()
    score_some(domain, 10)
    backup(domain.settings, backups, CONFIG, secrets)
    after = moment_between()
    wrong = {
        "yesterday": "is no time: write one as in",
        "2025-06-01T10:00:00": "has no time zone: add Z",
        "2999-01-01T10:00:00Z": "is in the future",
        before: "is before all entries that",
        after: "is after the newest backup",
    }
    restored = load_settings(CONFIG, domain.changes | {"batch.folder": str(tmp_path / "new")})
    for moment, words in wrong.items():
        with pytest.raises(ValueError, match=words):
            restore(restored, backups, secrets, to=moment)
    assert not (tmp_path / "new").exists() and not (tmp_path / ".new.partial").exists()


def test_erasures_that_later_backups_know_of_are_to_be_applied(made, tmp_path):
    domain, backups, secrets = Domain(tmp_path / "d", LIVE, HISTORY, made), tmp_path / "b", tmp_path / "secrets.json"
    score_some(domain, 10)
    first = Path(backup(domain.settings, backups, CONFIG, secrets)["backup"])
    moment = moment_between()
    customer = domain.orders(1)[0][1]["customer_id"]
    assert forget(domain.settings, customer)["orders"] > 0
    backup(domain.settings, backups, CONFIG)
    changes = {"batch.folder": str(tmp_path / "new")}
    restored = load_settings(CONFIG, domain.changes | changes)
    with pytest.raises(ValueError, match="customers were erased between"):
        restore(restored, backups, secrets, to=moment)
    at = datetime.strptime(first.name, "%Y%m%dT%H%M%S%fZ").isoformat(timespec="milliseconds") + "Z"
    done = run("restore", backups, *options_of(domain, **changes), "--secrets", secrets, "--to", at)
    listed = restored.batch.folder / ERASURES
    assert any(
        f"1 erasures that backups know of: run `fraud-poc forget --list {listed}" in words for words in done["missing"]
    )
    for expected in (1, 0):
        summary = run("forget", "--list", listed, "--yes", *options_of(domain, **changes))
        assert summary["pending"] == summary["customers"] == expected and bool(summary["orders"]) == bool(expected)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory):
    "The settings of a domain, a folder with two backups of it, and its secrets."
    folder = tmp_path_factory.mktemp("saved")
    domain = Domain(folder / "d", LIVE, HISTORY, made)
    for _ in range(2):
        backup(domain.settings, folder / "backups", CONFIG, folder / "secrets.json")
    return domain, folder / "backups", folder / "secrets.json"


def test_every_wrong_byte_is_found_and_its_file_is_named(saved):
    _, backups, _ = saved
    draw = random.Random(7)
    files = sorted(path for path in backups_in(backups)[-1].rglob("*") if path.is_file())
    assert len(files) > 40 and any(path.name == "manifest.json" for path in files)
    for path in files:
        whole, first = path.read_bytes(), backups_in(backups)[0] / path.relative_to(backups_in(backups)[-1])
        named = first if first.exists() and first.samefile(path) else path
        place = draw.randrange(len(whole))
        changed = bytearray(whole)
        changed[place] ^= draw.randrange(1, 256)
        for content in (bytes(changed), whole[:-1], whole + b"\n"):
            path.write_bytes(content)
            with pytest.raises(DamagedBackup) as failed:
                verify_backup(backups)
            assert str(failed.value).startswith(f"{named} "), (place, failed.value)
        path.write_bytes(whole)
    assert verify_backup(backups)["backups"] == 2


def test_missing_and_additional_files_are_found(saved, tmp_path):
    _, backups, _ = saved
    copy = tmp_path / backups_in(backups)[0].name
    shutil.copytree(backups_in(backups)[0], copy)
    (copy / "log" / "more").write_text("")
    done = call("verify-backup", tmp_path, "--json")
    assert done.exit_code == 1 and f"{copy / 'log' / 'more'} is not in the manifest" in json.loads(done.stdout)["error"]
    (copy / "log" / "more").rename(copy / "log" / "manifest.json")
    with pytest.raises(DamagedBackup, match="log/manifest.json was changed"):
        verify_backup(copy)
    (copy / "log" / "manifest.json").unlink()
    with pytest.raises(DamagedBackup, match="log/manifest.json is missing"):
        verify_backup(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(DamagedBackup, match="manifest.json is missing"):
        verify_backup(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("store", {"seq": 0}, "the store ends at 0"),  # as if it had been copied before the database
        ("database", {"position": 7}, "the manifest says otherwise"),
        ("log", {"collected": 10**9}, "live entries before 1000000000"),
    ],
)
def test_positions_that_do_not_agree_are_found(made, tmp_path, part, change, words):
    domain = Domain(tmp_path / "d", LIVE, HISTORY, made)
    score_some(domain, 5)
    run_writer(domain.settings, to_end=True)
    copy = Path(backup(domain.settings, tmp_path / "b", CONFIG)["backup"])
    manifest = read_backup(copy)
    manifest[part] |= change
    (copy / "manifest.json").write_bytes(module.sealed(manifest))
    with pytest.raises(DamagedBackup, match=words):
        verify_backup(copy)


def test_a_manifest_of_a_later_version_is_refused_by_its_format(saved, tmp_path):
    copy = tmp_path / backups_in(saved[1])[0].name
    shutil.copytree(backups_in(saved[1])[0], copy)
    (copy / "manifest.json").write_bytes(module.sealed(read_backup(copy) | {"format": 2}))
    with pytest.raises(ValueError, match="has format 2, this version reads 1"):
        verify_backup(copy)


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_no_secret_is_in_a_backup(made, tmp_path):
    config = tmp_path / "orders.toml"
    with start_redis(tmp_path / "elsewhere") as server:
        password = server.url.rpartition("password=")[2]
        config.write_text(CONFIG.read_text() + f'\n[live]\nredis_url = "{server.url}"\n')
        domain = Domain(tmp_path / "d", LIVE, HISTORY, made)
        changes = {name: value for name, value in domain.changes.items() if name != "live.redis_url"}
        settings = load_settings(config, changes)
        done = backup(settings, tmp_path / "backups", config, tmp_path / "secrets.json")
    secrets = json.loads((tmp_path / "secrets.json").read_text())
    assert secrets["live.redis_url"].endswith(password) and secrets.keys() >= {"hash_secret", "installation_secret"}
    hidden = [password.encode(), domain.key.encode()]
    for name in ("hash_secret", "installation_secret"):
        hidden += [secrets[name].encode(), bytes.fromhex(secrets[name])]
    files = [path for path in Path(done["backup"]).rglob("*") if path.is_file()]
    assert not [path for path in files if any(word in path.read_bytes() for word in hidden)]
    copied = (Path(done["backup"]) / "settings" / "orders.toml").read_text()
    assert copied.replace("...", password) == config.read_text()


# --- what is in the way -----------------------------------------------------------------------------------------------


def test_what_prevents_a_backup_is_said(saved, tmp_path, monkeypatch):
    domain, backups, secrets = saved
    folder = domain.settings.batch.folder
    with sole_use(folder), pytest.raises(ValueError, match="another run is writing to"):
        backup(domain.settings, tmp_path / "b", CONFIG)
    with pytest.raises(ValueError, match="lies in"):
        backup(domain.settings, folder / "backups", CONFIG)
    with pytest.raises(ValueError, match="kept apart"):
        backup(domain.settings, tmp_path / "b", CONFIG, tmp_path / "b" / "secrets.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="holds something else"):
        backup(domain.settings, tmp_path / "b", CONFIG, tmp_path / "other.json")
    journal = folder / WORKING / JOURNAL
    journal.parent.mkdir(exist_ok=True)
    journal.write_text("{}")
    with pytest.raises(ValueError, match="an erasure has begun"):
        backup(domain.settings, tmp_path / "b", CONFIG)
    journal.unlink()
    monkeypatch.setattr(module, "system_clock", lambda: 1_000)
    with pytest.raises(ValueError, match="is newer: set the clock"):
        backup(domain.settings, backups, CONFIG)
    with pytest.raises(ValueError, match="there is no backup in"):
        verify_backup(tmp_path / "b")
    assert verify_backup(backups)["backups"] == 2


def test_without_its_programs_postgresql_is_left_out_or_an_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="pg_dump is not on the PATH: install"):
        run_postgresql("pg_dump", None)


def test_what_prevents_a_restore_is_said_and_nothing_changes(saved, tmp_path, database_url, tools):
    domain, backups, secrets = saved

    def target(name: str = "database.url", value: str = "") -> Settings:
        return load_settings(CONFIG, domain.changes | {"batch.folder": str(tmp_path / "new"), name: value})

    engine = open_database(target("database.url", database_url))
    engine.dispose()
    with pytest.raises(ValueError, match="database.url names has tables"):
        restore(target("database.url", database_url), backups, secrets)
    with pytest.raises(ValueError, match="hash_secret is missing"):
        restore(target(), backups)
    with pytest.raises(ValueError, match="is not empty, and a restore replaces nothing"):
        restore(domain.settings, backups, secrets)
    with start_redis(tmp_path / "elsewhere") as server:
        with Client(server.url) as client:
            client.call("SET", NAMES.seq, 7)
        with pytest.raises(ValueError, match="holds orders already"):
            restore(target("live.redis_url", server.url), backups, secrets)
    assert not (tmp_path / "new").exists()


def test_a_live_log_without_entries_is_restored_too(saved, tmp_path):
    domain, backups, secrets = saved
    restored = load_settings(CONFIG, domain.changes | {"batch.folder": str(tmp_path / "new")})
    (tmp_path / "new").mkdir()
    found = restore(restored, backups, secrets)
    assert found["decisions"] == 0 and found["position"] == read_backup(backups_in(backups)[-1])["store"]["seq"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


def owners(step: str) -> list:
    "The modules that call a step under its name: backup, restore or both."
    return [owner for owner in (module, restoring) if hasattr(owner, step)]


@pytest.mark.parametrize("step", ["add_store", "copy_store", "move_whole", "restore_database", "put_files"])
def test_an_error_leaves_nothing(saved, tmp_path, monkeypatch, step):
    domain, backups, secrets = saved

    def fails(*words, **more):
        raise OSError(28, "No space left on device")

    for owner in owners(step):
        monkeypatch.setattr(owner, step, fails)
    if step.startswith(("add", "copy", "move")):
        with pytest.raises(OSError, match="No space left"):
            backup(domain.settings, tmp_path / "b", CONFIG)
        assert [path.name for path in (tmp_path / "b").iterdir()] == [".lock"]
    if not step.startswith(("add", "copy")):
        with pytest.raises(OSError, match="No space left"):
            restore(load_settings(CONFIG, domain.changes | {"batch.folder": str(tmp_path / "new")}), backups, secrets)
        assert not (tmp_path / "new").exists()
        assert {path.name for path in (tmp_path / ".new.partial").iterdir()} == {".lock", "restored.json"}
        used = f"sqlite:///{domain.settings.batch.folder / 'desk.sqlite'}"
        with pytest.raises(ValueError, match="has tables"):  # not what the run before has begun to fill
            changes = {"batch.folder": str(tmp_path / "new"), "database.url": used}
            restore(load_settings(CONFIG, domain.changes | changes), backups, secrets)


def test_without_the_database_decisions_come_from_the_live_log(made, tmp_path):
    domain = Domain(tmp_path / "d", LIVE, HISTORY, made)
    score_some(domain, 30)
    done = backup(domain.settings, tmp_path / "b", CONFIG, tmp_path / "secrets.json", without_database=True)
    assert "left out: accounts" in done["database"] and done["database_has"] is None
    restored = load_settings(CONFIG, domain.changes | {"batch.folder": str(tmp_path / "new")})
    found = restore(restored, tmp_path / "b", tmp_path / "secrets.json")
    assert found["decisions"] == 30 and any("accounts" in words for words in found["missing"])


# --- a store elsewhere ------------------------------------------------------------------------------------------------


def contents(url: str) -> dict[bytes, object]:
    "All keys of the domain, but for the name of the server that gives out numbers."
    with Client(url) as client:
        keys = [key for key in client.call("KEYS", NAMES.root + b"*") if key != NAMES.run]
        return {key: client.call("DUMP", key) for key in keys}


def test_a_store_elsewhere_gets_the_keys_of_the_domain_and_begins_a_timeline(made, tmp_path):
    domain = Domain(tmp_path / "d", LIVE, HISTORY, made)
    score_some(domain, 20)
    with server_for(domain.settings) as url:
        before = contents(url)
    backup(domain.settings, tmp_path / "b", CONFIG, tmp_path / "secrets.json")
    with start_redis(tmp_path / "elsewhere") as server:
        changes = {"batch.folder": str(tmp_path / "new"), "live.redis_url": server.url}
        restored = load_settings(CONFIG, domain.changes | changes)
        found = restore(restored, tmp_path / "b", tmp_path / "secrets.json")
        assert contents(server.url) == before and found["decisions"] == 20 and not (tmp_path / "new" / "redis").exists()
        first = goes_on(restored, server.url)
        assert first[-1].start == found["position"] + 1
        # the same server, emptied and restored while it runs: its run_id is that of the snapshot
        backup(restored, tmp_path / "b", CONFIG)
        with Client(server.url) as client:
            client.call("FLUSHALL")
        again = load_settings(CONFIG, domain.changes | changes | {"batch.folder": str(tmp_path / "again")})
        restore(again, tmp_path / "b", tmp_path / "secrets.json")
        assert goes_on(again, server.url)[-1].log not in {line.log for line in first}


# --- kills ------------------------------------------------------------------------------------------------------------

STEPS = ("sync", "move_whole", "copy_store", "copy_database", "restore_database", "run_writer", "write_json")


def killed(tell, path: str, which: int, action: str, changes: dict, backups: str, secrets: str) -> None:
    "Make or restore a backup, and be killed before step number `which`; else tell how many steps there were."
    os.environ["PATH"], count = path, 0

    def counted(function):
        def step(*words, **more):
            nonlocal count
            if count == which:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return function(*words, **more)

        return step

    for name in STEPS:
        for owner in owners(name):
            setattr(owner, name, counted(getattr(owner, name)))
    settings = load_settings(CONFIG, changes)
    if action == "backup":
        backup(settings, Path(backups), CONFIG, Path(secrets))
    else:
        restore(settings, Path(backups), Path(secrets))
    tell(count)


def steps_of(which: int, *words) -> int | None:
    "Steps of a run that ends by itself; None when it was killed."
    with child(killed, os.environ["PATH"], which, *words) as process:
        heard = process.hear()
        assert process.ended() == (0 if heard else -signal.SIGKILL)
        return heard and heard[0]


def test_a_backup_that_is_killed_leaves_the_earlier_one(saved, tmp_path):
    domain, draw = saved[0], random.Random(11)
    words = ("backup", domain.changes, str(tmp_path / "b"), str(tmp_path / "secrets.json"))
    assert steps_of(0, *words) is None
    assert not list((tmp_path / "b").glob("[!.]*")), "the first leaves nothing"
    total = steps_of(-1, *words)
    assert total > 50
    for which in draw.sample(range(total - 1), 4):  # before the last step it has its name already
        before = backups_in(tmp_path / "b")
        assert steps_of(which, *words) is None
        assert backups_in(tmp_path / "b") == before and verify_backup(tmp_path / "b")["backups"] == len(before)
    assert steps_of(-1, *words) and len(backups_in(tmp_path / "b")) == 2
    assert len(list((tmp_path / "b").iterdir())) == 3, "two backups and the lock; what was left is removed"
    stopped(domain.settings.batch.folder)


def stopped(folder: Path) -> None:
    "End the server of a folder, if a killed process left it."
    if server_runs(folder / "redis"):
        with start_redis(folder / "redis"):
            pass
    assert not server_runs(folder / "redis")


def test_a_restore_that_is_killed_leaves_nothing_and_can_be_repeated(
    made, tmp_path, database_url, new_databases, tools
):
    domain, draw = Domain(tmp_path / "d", LIVE, HISTORY, made, **{"database.url": database_url}), random.Random(13)
    score_some(domain, 10)
    backup(domain.settings, tmp_path / "b", CONFIG, tmp_path / "secrets.json")
    with new_databases.empty("postgresql" if database_url.startswith("postgresql") else "sqlite") as empty:
        changes = domain.changes | {"batch.folder": str(tmp_path / "new" / "orders"), "database.url": empty}
        words = ("restore", changes, str(tmp_path / "b"), str(tmp_path / "secrets.json"))
        for which in (0, draw.randrange(1, 40), 40):
            assert steps_of(which, *words) is None and not (tmp_path / "new" / "orders").exists()
        total = steps_of(-1, *words)
        assert total > 40 and len(rows_of(load_settings(CONFIG, changes))) == 10
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["orders"]
