"""Replicas that count: what is acknowledged is on one, what is not is reported so and confirmed when sent again."""

import asyncio
import json
import os
import re
import signal
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
from support.waiting import STORE, in_time, until, until_so

from fraud_poc.core.database import open_database
from fraud_poc.core.processes import free_port
from fraud_poc.core.settings import load_settings
from fraud_poc.live.decide import Engine, sample_model
from fraud_poc.live.load import inspect_store, switch
from fraud_poc.live.redis_client import Client, parse_url
from fraud_poc.live.redis_server import process_id, start_redis
from fraud_poc.live.redis_store import Names, open_store, run_id_of
from fraud_poc.live.store import Meta, StoreDown, StoreRefuses, StoreUnconfirmed, Write, decode_entry, event_key
from fraud_poc.service.http import create_app
from fraud_poc.service.keys import new_key

ROOT = Path(__file__).resolve().parents[1]
NOW, SHORT = 1_751_000_000_000, "4s"  # of the store, where a replica is missing: half of it is waited for
NAMES = Names("orders")
ORDER = {
    "order_date": "2025-06-01T12:00:00",
    "order_amount": 25.5,
    "customer_id": 17,
    "email": "ann@example.org",
    "ip_addr": "192.0.2.1",
    "device": "d1",
    "location": "Lyon",
}
NEEDED = "live.confirm_replicas is 1"


def order(number: int) -> dict:
    return {"order_id": f"o{number}"} | ORDER


def follow(replica, primary) -> None:
    "Let a server follow another, until it has all."
    with Client(primary.url) as client:
        port = free_port()
        client.call("CONFIG", "SET", "port", port, "repl-diskless-sync-delay", 0)
        with Client(replica.url) as other:
            other.call("CONFIG", "SET", "masterauth", parse_url(primary.url).password)
            other.call("REPLICAOF", "127.0.0.1", port)
            until(lambda: b"master_link_status:up" in other.call("INFO", "replication"), "the replica follows")
        until(lambda: b"state=online" in client.call("INFO", "replication"), "the primary knows it")


class Pair:
    "A primary and its replica."

    def __init__(self, primary, replica):
        self.primary, self.replica = primary, replica
        self.urls = f"{primary.url},{replica.url}"

    def follow(self) -> None:
        follow(self.replica, self.primary)

    def swap(self) -> None:
        "The replica becomes the primary."
        self.primary, self.replica = self.replica, self.primary
        with Client(self.primary.url) as client:
            client.call("REPLICAOF", "NO", "ONE")

    @contextmanager
    def paused(self):
        "The replica gives no sign meanwhile, and its connection stays."
        with Client(self.replica.url) as client:
            number = process_id(client)
        os.kill(number, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(number, signal.SIGCONT)


@pytest.fixture(scope="module")
def model():
    return sample_model(settings_of(Path("unused")))


@pytest.fixture
def pair(tmp_path):
    with start_redis(tmp_path / "primary", "always") as primary, start_redis(tmp_path / "replica", "always") as replica:
        found = Pair(primary, replica)
        found.follow()
        yield found


def settings_of(folder: Path, timeout: str = STORE, replicas: int = 1):
    changes = {"batch.folder": str(folder), "live.redis_url": "", "database.url": "", "live.store_timeout": timeout}
    return load_settings(ROOT / "config" / "orders.toml", changes | {"live.confirm_replicas": replicas})


def fill(url: str, table_hash: str) -> None:
    meta = Meta("5eed", 1, table_hash, {"next_seq": 0})
    with Client(url) as client:
        switch(client, NAMES, inspect_store(client, NAMES), meta, b"", fresh=True)


def note_run(client: Client) -> None:
    "The server gives out sequence numbers from now on, and begins no timeline."
    client.call("SET", NAMES.run, run_id_of(client.call("INFO", "server"), client.address))


@asynccontextmanager
async def service(pair: Pair, folder: Path, model, timeout: str = SHORT):
    "A client of a service whose store is the primary; and its store."
    settings = settings_of(folder, timeout)
    fill(pair.primary.url, model.table.hash)
    database = open_database(settings)
    key = new_key(database, "tests", ["score", "labels", "metrics"], "tests")
    async with open_store(settings, pair.primary.url) as store:
        engine = Engine(settings, model, store, clock=lambda: NOW)
        app = create_app(settings, engine, secret=bytes(32), database=database)
        headers, transport = {"X-API-Key": key}, httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers) as http:
            yield http, store
    database.dispose()


def is_unconfirmed(response: httpx.Response) -> bool:
    "Whether a response is the 503 that says what is missing; another one but success is a failure."
    if response.status_code == 200:
        return False
    assert response.status_code == 503 and response.headers["retry-after"] == "1", response.text
    [detail] = response.json()["detail"]
    assert detail["type"] == "unconfirmed" and NEEDED in detail["msg"] and "0 of 1 replicas" in detail["msg"]
    return True


def in_log(url: str) -> list[str]:
    "Ids of the orders in the log of a server."
    with Client(url) as client:
        bodies = [decode_entry(fields[1]).body for _, fields in client.call("XRANGE", NAMES.log, "-", "+")]
    return [json.loads(body).get("order_id") for body in bodies]


async def until_acknowledged(http: httpx.AsyncClient, path: str, body) -> dict:
    "The answer to a request that is sent again and again."

    async def sent():
        response = await http.post(path, json=body)
        return None if is_unconfirmed(response) else response.json()

    return await until_so(sent, "it is acknowledged")


def test_what_a_replica_has_is_answered(pair, model, tmp_path):
    async def run():
        async with service(pair, tmp_path, model, STORE) as (http, _):
            answer = (await http.post("/score", json=order(1))).json()
            again = (await http.post("/score", json=order(1))).json()
            assert answer["position"] == 0 and again == answer | {"known_before": True}
            several = (await http.post("/score/batch", json=[order(n) for n in range(20)])).json()["results"]
            assert [one["status"] for one in several] == [200] * 20
            label = {"order": "o1", "fraud": True, "source": "chargeback", "known": "2025-06-20"}
            assert (await http.post("/labels", json=label)).status_code == 200
            assert (await http.get("/readyz")).json()["ready"]

    asyncio.run(in_time(run()))
    with Client(pair.replica.url) as replica:
        assert replica.call("XLEN", NAMES.log) == 21


def test_without_its_replica_nothing_is_acknowledged_and_with_it_the_same_decision(pair, model, tmp_path):
    label = {"order": "o1", "fraud": True, "source": "chargeback", "known": "2025-06-20"}

    async def run():
        async with service(pair, tmp_path, model) as (http, store):
            assert (await http.post("/score", json=order(1))).status_code == 200
            with pair.paused():
                assert is_unconfirmed(await http.post("/score", json=order(2)))
                sent = ("/score", order(2)), ("/score", order(1)), ("/score/batch", [order(3), order(4)])
                for path, body in (*sent, ("/labels", label), ("/labels", [label])):
                    assert is_unconfirmed(await http.post(path, json=body)), path
                ready = await http.get("/readyz")
                assert ready.status_code == 503 and [NEEDED in reason for reason in ready.json()["reasons"]] == [True]
                metrics = (await http.get("/metrics")).text
                assert 'fraud_poc_rejected_total{reason="unconfirmed"} 6.0' in metrics
                assert 'fraud_poc_uncertain_total{reason="unconfirmed"} 1.0' in metrics
                assert "degraded" not in re.sub(r"#.*", "", metrics)
                with Client(pair.primary.url) as client:
                    [_, found] = client.call("XRANGE", NAMES.log, "-", "+")
                assert json.loads(decode_entry(found[1][1]).body)["order_id"] == "o2", "written, and not acknowledged"
            answer = await until_acknowledged(http, "/score", order(2))
            assert answer["known_before"] and answer["position"] == 1
            await until_acknowledged(http, "/labels", label)
            assert (await http.get("/readyz")).json()["ready"]

    asyncio.run(in_time(run()))
    assert in_log(pair.replica.url) == ["o1", "o2", None]


def test_a_record_that_another_process_wrote_is_confirmed_before_it_is_answered(pair, model, tmp_path):
    async def run():
        async with service(pair, tmp_path, model) as (http, _):
            first = (await http.post("/score", json=order(1))).json()
            async with open_store(settings_of(tmp_path, STORE, 0), pair.primary.url) as other:
                with pair.paused():
                    await other.write(Write(event_key(5), b"record", [], [], [], b""))
                    async with open_store(settings_of(tmp_path, SHORT, 0), pair.primary.url) as plain:
                        assert (await plain.read(event_key(5), [])).record == b"record", "off, nothing is waited for"
                    assert is_unconfirmed(await http.post("/score", json=order(1)))
            assert await until_acknowledged(http, "/score", order(1)) == first | {"known_before": True}

    asyncio.run(in_time(run()))


def test_orders_in_flight_when_the_replica_stops_are_all_told(pair, model, tmp_path):
    async def run():
        async with service(pair, tmp_path, model) as (http, store):
            with pair.paused():
                sending = [http.post("/score", json=order(number)) for number in range(24)]
                assert all(map(is_unconfirmed, await asyncio.gather(*sending)))
            for number in range(24):
                await until_acknowledged(http, "/score", order(number))

    asyncio.run(in_time(run()))
    assert sorted(in_log(pair.replica.url)) == sorted(f"o{number}" for number in range(24))


def test_readiness_says_that_a_replica_is_gone_before_an_order_finds_out(pair, model, tmp_path):
    async def run():
        async with service(pair, tmp_path, model, STORE) as (http, store):
            await asyncio.to_thread(pair.replica.kill)

            async def logged():
                response = await http.get("/readyz")
                return response.status_code == 503 and response.json()["reasons"]

            [reason] = await until_so(logged, "it is logged")
            assert reason.startswith("0 of 1 replicas") and "start the missing ones" in reason
            assert store.connection.up()
            await asyncio.to_thread(pair.replica.ensure)
            await asyncio.to_thread(pair.follow)
            assert (await http.get("/readyz")).json()["ready"]

    asyncio.run(in_time(run()))


def test_a_store_without_its_replica_is_waited_for_at_the_start(pair, tmp_path, caplog):
    fill(pair.primary.url, "table")

    async def run():
        with pair.paused():
            async with open_store(settings_of(tmp_path, "1s"), pair.primary.url) as store:
                with pytest.raises(StoreUnconfirmed, match=NEEDED):
                    await store.meta()
                async with open_store(settings_of(tmp_path, STORE), pair.primary.url, writes=False) as reader:
                    assert (await reader.meta()).epoch == "5eed", "who only reads waits for no replica"
        async with open_store(settings_of(tmp_path, STORE), pair.primary.url) as store:
            assert (await store.meta()).epoch == "5eed"

    asyncio.run(in_time(run()))
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "the store has too few replicas"
    ]


def test_all_that_was_acknowledged_is_on_the_replica_when_the_primary_is_killed(pair, model, tmp_path):
    acknowledged = []

    async def run():
        async with service(pair, tmp_path, model, STORE) as (http, _):

            async def send(first: int) -> None:
                for number in range(first, 4_000, 4):
                    answer = (await http.post("/score", json=order(number))).json()
                    if answer["degraded"]:
                        return
                    acknowledged.append(answer["id"])

            sending = [asyncio.create_task(send(first)) for first in range(4)]
            await until_so(lambda: len(acknowledged) > 60, "orders are acknowledged")
            await asyncio.to_thread(pair.primary.kill)
            await asyncio.gather(*sending)

    asyncio.run(in_time(run()))
    with Client(pair.replica.url) as replica:
        replica.call("REPLICAOF", "NO", "ONE")
    assert set(acknowledged) <= set(in_log(pair.replica.url)) and len(acknowledged) > 60


# --- several addresses ------------------------------------------------------------------------------------------------


async def write(store, *numbers: int) -> None:
    for number in numbers:
        assert (await store.write(Write(event_key(number), b"record", [], [], [], b""))).kind == "accepted"


async def until_writable(store) -> None:
    async def is_so():
        try:
            await store.check_writes()
        except (StoreDown, StoreUnconfirmed):
            return False
        return True

    await until_so(is_so, "the store takes writes")


def test_a_command_finds_the_primary_and_none_or_two_are_an_error(pair):
    for urls in (pair.urls, f"{pair.replica.url},{pair.primary.url}", f"redis://127.0.0.1:1,{pair.urls}"):
        with Client(urls) as client:
            assert client.address == parse_url(pair.primary.url)
    with Client(pair.replica.url) as client:
        assert client.address == parse_url(pair.replica.url), "a single address is used as it is"
        with pytest.raises(StoreRefuses, match="is a replica.*no store at 127.0.0.1:1") as caught:
            Client(f"{pair.replica.url},redis://127.0.0.1:1")
        assert "promote a replica" in caught.value.reason
        client.call("REPLICAOF", "NO", "ONE")
    with pytest.raises(StoreDown, match="both primaries: stop the old one"):
        Client(pair.urls)
    with pytest.raises(StoreDown, match="no store at .*1 .*no store at .*2 "):
        Client("redis://127.0.0.1:1,redis://127.0.0.1:2")


@pytest.mark.parametrize("replicas", [0, 1])
def test_a_store_goes_to_the_promoted_replica_and_refuses_the_old_primary(pair, tmp_path, caplog, replicas):
    fill(pair.primary.url, "table")
    old = pair.primary

    async def run():
        async with open_store(settings_of(tmp_path, "8s", replicas), pair.urls) as store:
            await write(store, 1, 2)
            await asyncio.to_thread(old.kill)
            await asyncio.to_thread(pair.swap)
            if not replicas:
                await until_writable(store)
            with Client(pair.primary.url) as client:
                await until_so(lambda: client.call("GET", NAMES.timelines), "a timeline begins")
            if not replicas:
                await write(store, 3)
            await asyncio.to_thread(old.ensure)  # it comes back, and takes writes
            if not replicas:
                store.connection.link.drop()
                await until_so(lambda: store.connection.reported, "the old primary is refused")
            await asyncio.to_thread(pair.follow)
            await until_writable(store)
            await write(store, 4)
            assert store.address == parse_url(pair.primary.url)
            return await store.timelines()

    lines = asyncio.run(in_time(run()))
    assert [line.start for line in lines] == [0, 2]
    reasons = [
        record.fields["reason"] for record in caplog.records if record.getMessage() == "an old primary is not used"
    ]
    assert len(reasons) == (0 if replicas else 1) and all(lines[1].log in reason for reason in reasons)
    with Client(old.url) as client:
        until(lambda: client.call("XLEN", NAMES.log) == 4 - replicas, "it follows the new primary")


def test_an_old_primary_alone_is_refused_before_a_timeline_begins_there(pair, tmp_path, caplog):
    fill(pair.primary.url, "table")
    old = pair.primary

    async def run():
        async with open_store(settings_of(tmp_path, "8s", 0), pair.urls) as store:
            await write(store, 1)
            await asyncio.to_thread(old.kill)
            await asyncio.to_thread(pair.swap)
            await until_writable(store)
            await asyncio.to_thread(pair.primary.kill)
            await asyncio.to_thread(old.ensure)
            await until_so(lambda: "lacks the timeline" in str(store.connection.down), "it is refused")
            with pytest.raises(StoreRefuses) as caught:
                await store.meta()
            assert "make it a replica of the new one, or restart" in caught.value.reason
            with Client(old.url) as client:
                assert client.call("GET", NAMES.timelines) is None
        async with open_store(settings_of(tmp_path, "8s", 0), pair.urls) as store:
            await until_writable(store)  # a process that has not seen more accepts it
            assert len(await store.timelines()) == 2
        async with open_store(settings_of(tmp_path, "8s", 0), old.url) as single:
            await asyncio.to_thread(old.kill)
            await asyncio.to_thread(old.ensure)
            await until_writable(single)  # with one address a server that starts again is used as before

    asyncio.run(in_time(run()))
    reasons = [record.fields["reason"] for record in caplog.records if "refuses writes" in record.getMessage()]
    assert any("lacks the timeline" in reason for reason in reasons)


def test_of_two_that_take_writes_the_one_with_the_most_timelines_is_used(pair, tmp_path):
    fill(pair.primary.url, "table")
    pair.swap()
    for url in (pair.replica.url, pair.primary.url):
        with Client(url) as client:
            note_run(client)
    with Client(pair.primary.url) as client:
        client.call("APPEND", NAMES.timelines, "5eed.b 0\n")

    async def run():
        for urls in (pair.urls, f"{pair.primary.url},{pair.replica.url}"):
            for writes in (True, False):
                async with open_store(settings_of(tmp_path, STORE, 0), urls, writes) as store:
                    assert store.address == parse_url(pair.primary.url)
                    assert [line.log for line in await store.timelines()] == ["5eed", "5eed.b"]

    asyncio.run(in_time(run()))


def test_of_two_that_take_writes_and_know_the_same_none_is_used(pair, tmp_path):
    "As when the old primary is back before the service has used the new one: Sentinel makes it a replica only later."
    fill(pair.primary.url, "table")
    with Client(pair.primary.url) as client:
        note_run(client)
    pair.follow()
    pair.swap()

    async def run():
        async with open_store(settings_of(tmp_path, STORE, 0), pair.urls) as store:
            with pytest.raises(StoreDown, match="both primaries: stop the old one"):
                await store.meta()
            with Client(pair.replica.url) as client:
                assert client.call("GET", NAMES.timelines) is None, "nothing is written to the old one"
            await asyncio.to_thread(pair.follow)
            await until_writable(store)
            assert store.address == parse_url(pair.primary.url)

    asyncio.run(in_time(run()))


def test_a_primary_that_all_others_follow_is_used_whatever_it_lacks(pair, tmp_path, caplog):
    "As when the old primary starts again while Sentinel is promoting its replica: what it took then is lost."
    fill(pair.primary.url, "table")
    pair.follow()
    old = pair.primary

    async def run():
        async with open_store(settings_of(tmp_path, "8s", 0), pair.urls) as store:
            await write(store, 1)
            await asyncio.to_thread(old.kill)
            await asyncio.to_thread(old.ensure)
            await until_writable(store)
            await write(store, 2)
            [_, lost] = await store.timelines()
            await asyncio.to_thread(pair.swap)
            await asyncio.to_thread(pair.follow)
            await until_writable(store)
            assert store.address == parse_url(pair.primary.url) and lost not in await store.timelines()

    asyncio.run(in_time(run()))
    [record] = [record for record in caplog.records if record.getMessage().startswith("an old primary is used")]
    assert "lacks the timeline" in record.fields["reason"]
