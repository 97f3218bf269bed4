"""The scoring service: what it rejects and how, what its documents promise, and how it starts, fills up and stops."""

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support.scoring_worker import filled, settings_in, small_engine
from support.waiting import LONG, STORE, ended, line_of, until, until_so

from fraud_poc.core.database import open_database
from fraud_poc.core.events import Clock, system_clock
from fraud_poc.core.logs import JsonLines
from fraud_poc.core.reading import EventError, EventReader
from fraud_poc.core.settings import load_settings
from fraud_poc.live.redis_server import start_redis
from fraud_poc.live.redis_store import open_store
from fraud_poc.live.store import StoreDown, StoreRefuses
from fraud_poc.service import http, scoring, workers
from fraud_poc.service.http import create_app
from fraud_poc.service.keys import SCOPES, fresh_key, new_key, revoke_key
from fraud_poc.service.metrics import FOLDER
from fraud_poc.service.schemas import Codec, RequestRejected, strict_json
from fraud_poc.service.scoring import KEY_HEADER

ROOT = Path(__file__).resolve().parents[1]
NOW, SECRET = 1_751_000_000_000, bytes(range(32))
ORDER = {
    "order_id": "o1",
    "order_date": "2025-06-01T12:00:00",
    "order_amount": 25.5,
    "customer_id": 17,
    "email": "ann@example.org",
    "ip_addr": "192.0.2.1",
    "device": "d1",
    "location": "Lyon",
}
BODY = json.dumps(ORDER).encode()
JSON = {"content-type": "application/json"}


class Service:
    "An application and clients of it."

    def __init__(self, folder: Path, clock: Clock = lambda: NOW, **changes):
        self.settings = settings_in(folder, **changes)
        self.database = open_database(self.settings)
        self.key = new_key(self.database, "tests", SCOPES, "tests")
        self.engine = small_engine(self.settings, clock=clock)
        self.app = create_app(self.settings, self.engine, secret=SECRET, database=self.database)
        self.scoring = self.app.state.service

    def client(self, app=None, key: bool = True) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app or self.app),
            base_url="http://service",
            headers={KEY_HEADER: self.key} if key else {},
        )

    def call(self, method: str, path: str, **request) -> httpx.Response:
        async def once():
            async with self.client(key=request.pop("key", True)) as client:
                return await client.request(method, path, **request)

        return asyncio.run(once())

    def post(self, content: bytes, headers=JSON, path: str = "/score") -> httpx.Response:
        return self.call("POST", path, content=content, headers=headers)

    def state(self):
        return dict(self.engine.store.held), list(self.engine.store.log), self.engine.store.seq


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return Service(tmp_path_factory.mktemp("service"))


@pytest.fixture
def fresh(tmp_path):
    return Service(tmp_path)


def assert_problem(response: httpx.Response, status: int | None = None, field: str | None = None) -> list[dict]:
    "A refusal in the one shape, that names the field."
    assert 400 <= response.status_code < 500 and response.headers["content-type"] == "application/json", response.text
    assert status in (None, response.status_code), response.text
    detail = response.json()["detail"]
    assert (
        set(response.json()) == {"detail"}
        and detail
        and all(set(one) == {"loc", "msg", "type"} and one["msg"] and one["type"] for one in detail)
    )
    if field:
        assert [one for one in detail if one["loc"] == ["body", field]], detail
    return detail


# --- bad input --------------------------------------------------------------------------------------------------------

BAD = {
    "null": "null",
    "a list": "[]",
    "an object": '{"a": 1}',
    "true": "true",
    "false": "false",
    "NaN": "NaN",
    "infinite": "Infinity",
    "minus infinite": "-Infinity",
    "too large a number": "1e999",
    "too large a negative number": "-1e999",
    "an enormous whole number": "9" * 5000,
    "empty": '""',
    "very long": '"' + "x" * 5_000 + '"',
    "half a surrogate": r'"\ud800"',
    "no character": '"\ufdd0"',
}
WRONG = {
    "order_date": {
        "a number": "1748779200",
        "far past": '"0001-01-01"',
        "past": '"1999-12-31T23:59:59"',
        "far future": '"9999-12-31"',
        "future": '"2026-01-01"',
        "no date": '"2025-02-30"',
        "no time": '"2025-01-01T25:00"',
        "words": '"yesterday"',
        "spaces around": '" 2025-01-01 "',
        "a line break": r'"2025-01-01\n"',
        "other digits": '"２０２５-01-01"',
    },
    "order_amount": {"text": '"25.5"', "negative": "-0.01", "enormous": "10000000.01", "more than sums hold": "1e300"},
    **{
        name: {"too large": str(2**64), "too small": str(-(2**63) - 1)}
        for name in ("order_id", "customer_id", "email", "ip_addr", "device", "location")
    },
}
IDENTITIES = set(ORDER) - {"order_date", "order_amount"}  # which may be numbers and truth values too
CASES = [
    (name, what, value)
    for name in ORDER
    for what, value in {**BAD, **WRONG[name]}.items()
    if not (name in IDENTITIES and what in ("true", "false"))
]


def with_value(name: str, value: str) -> bytes:
    "The order with another JSON value for a field."
    return json.dumps(ORDER | {name: "@@"}).replace('"@@"', value).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("name", ORDER)
def test_a_bad_value_is_refused_with_its_field_and_changes_nothing(service, name):
    before = service.state()
    for _, what, value in [case for case in CASES if case[0] == name]:
        detail = assert_problem(service.post(with_value(name, value)), 422, name)
        assert len(detail) == 1, (what, detail)
        batch = service.post(b"[" + with_value(name, value) + b"]", path="/score/batch")
        assert batch.status_code == 200 and batch.json()["results"] == [
            {"status": 422, "detail": [one | {"loc": ["body", 0, name]} for one in detail]}
        ], what
    assert service.state() == before


@pytest.mark.parametrize("name", ORDER)
def test_a_field_that_is_missing_or_there_twice_is_named(service, name):
    before = service.state()
    assert_problem(
        service.post(json.dumps({key: value for key, value in ORDER.items() if key != name}).encode()), 422, name
    )
    same = json.dumps({name: ORDER[name]})[1:-1].encode()
    escaped = same.replace(name.encode(), f"\\u{ord(name[0]):04x}{name[1:]}".encode())
    for twice in (
        BODY[:-1] + b", " + same + b"}",
        b"{" + same + b", " + BODY[1:],
        BODY[:-1] + b", " + escaped + b"}",
        BODY[:-1] + f', "{name}": 5}}'.encode(),
        BODY[:-1] + f', "{name}": "5"}}'.encode(),
    ):
        detail = assert_problem(service.post(twice), 422, name)
        assert "duplicate_key" in {one["type"] for one in detail}
    assert_problem(service.post(BODY[:-1] + b', "colour": "red"}'), 422, "colour")
    assert service.state() == before


def test_broken_bodies(service):
    before = service.state()
    for cut in range(len(BODY)):
        assert_problem(service.post(BODY[:cut]), 400)
    for content in (
        b"",
        b"null x",
        BODY + b"}",
        BODY + BODY,
        b"\xff" + BODY,
        b"\xef\xbb\xbf" + BODY,
        BODY.replace(b"Lyon", b"\xe9"),
        BODY.replace(b"Lyon", b"a\nb"),
        b"[" * 60_000,
        b'{"a":' * 10_000,
        BODY.replace(b'"', b"'"),
        b"{order_id: 1}",
        BODY.replace(b"17", b"017"),
        b"/**/" + BODY,
    ):
        assert_problem(service.post(content), 400)
    for content in (b"null", b"[]", b"5", b'"x"', b"true", b"NaN", b"[" + BODY + b"]"):
        assert assert_problem(service.post(content), 422)[0]["loc"] == ["body"]
    assert len(assert_problem(service.post(b"{}"), 422)) == len(ORDER)
    for kind in (
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/jsonx"},
    ):
        assert assert_problem(service.post(BODY, kind), 415)[0]["loc"] == ["header", "Content-Type"]
    for size in (service.settings.service.max_body_bytes + 1, 10**6):
        assert_problem(service.post(b" " * size), 413)
    assert (
        service.post(BODY, {"content-type": "Application/JSON; charset=utf-8"}).status_code == 200
        and service.state() != before
    )


def test_batches(fresh):
    path = "/score/batch"
    for content in (b"", b"[", b"[" + BODY, b"[{]"):
        assert_problem(fresh.post(content, path=path), 400)
    for content in (b"[]", b"{}", BODY, b"5", b"null", b"[" + b",".join([b"5"] * 1001) + b"]"):
        assert assert_problem(fresh.post(content, path=path), 422)[0]["loc"] == ["body"]
    assert_problem(fresh.post(b" " * 2_000_000, path=path), 413)
    items = [
        ORDER,
        5,
        ORDER | {"order_id": "o2", "order_amount": -1},
        ORDER,
        ORDER | {"order_amount": 7},
        ORDER | {"order_id": "o3", "order_date": "2025-06-01T12:01"},
    ]
    results = fresh.post(json.dumps(items).encode(), path=path).json()["results"]
    assert [result["status"] for result in results] == [200, 422, 422, 200, 409, 200] and results[1]["detail"][0][
        "loc"
    ] == ["body", 1]
    assert results[4]["detail"][0]["loc"] == ["body", 4, "order_id"] and results[3]["answer"] == results[0][
        "answer"
    ] | {"known_before": True}
    assert results[5]["answer"]["features"]["count_1h_by_customer_id"] == 1.0 and len(fresh.engine.store.log) == 2
    # one item that is no strict JSON does not take the others along
    mixed = fresh.post(
        b"["
        + json.dumps(ORDER | {"order_id": "o4"}).encode()
        + b","
        + with_value("order_amount", "NaN")
        + b","
        + BODY
        + b"]",
        path=path,
    ).json()["results"]
    assert [result["status"] for result in mixed] == [200, 422, 200] and mixed[1]["detail"][0]["loc"] == [
        "body",
        1,
        "order_amount",
    ]


pieces = st.one_of(
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.sampled_from(["2025-01-01", "a\\b", 'a"b', "\u00e9", 17, 2.0]),
)


@examples(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(list(ORDER)), pieces, max_size=3),
    st.lists(st.tuples(st.sampled_from([*ORDER, "x"]), pieces), max_size=2),
    st.booleans(),
    st.integers(0, 3),
)
def test_the_fast_way_and_the_strict_way_read_alike(changes, added, ascii_only, space):
    codec = Codec(EventReader(load_settings(ROOT / "config" / "orders.toml"), SECRET, lambda: NOW))
    pairs = [*(ORDER | changes).items(), *added]
    body = (
        "{"
        + ", ".join(
            " " * space + json.dumps(name) + ":" + json.dumps(value, ensure_ascii=ascii_only) for name, value in pairs
        )
        + "}"
    ).encode()

    def outcome(read):
        try:
            return read()
        except (EventError, RequestRejected) as error:
            return str(error)

    fast, strict = outcome(lambda: codec.event(body)), outcome(lambda: codec.strict_event(strict_json(body)))
    assert fast == strict and isinstance(fast, str) >= bool(added)


# --- keys, limits, errors ---------------------------------------------------------------------------------------------

NEEDS = [
    ("/score", "POST", "score"),
    ("/score/batch", "POST", "score"),
    ("/orders/sample", "GET", "read"),
    ("/decisions/o1", "GET", "read"),
    ("/model", "GET", "read"),
    ("/metrics", "GET", "metrics"),
]


def test_keys(tmp_path):
    service = Service(tmp_path)
    for path, method, _ in NEEDS:
        for headers in (
            {},
            {KEY_HEADER: ""},
            {KEY_HEADER: service.key + "x"},
            {KEY_HEADER: "\u00e9"},
            {"authorization": service.key},
        ):
            detail = assert_problem(
                service.call(
                    method,
                    path,
                    key=False,
                    headers=JSON | {name: value.encode("utf-8") for name, value in headers.items()},
                    content=BODY if method == "POST" else None,
                ),
                401,
            )
            assert detail[0]["loc"] == ["header", KEY_HEADER]
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert service.call("GET", path, key=False).status_code == 200
    second = new_key(service.database, "other", ["read"], "tests")
    service.scoring.keys.refresh()
    for key in (second, service.key):
        assert service.call("GET", "/model", key=False, headers={KEY_HEADER: key}).status_code == 200
    for name in ("tests", "other"):
        revoke_key(service.database, name, "tests")
    service.scoring.keys.refresh()
    assert service.call("GET", "/model").status_code == 401 and "no API key" in service.call("GET", "/readyz").text
    assert create_app(service.settings, service.engine, secret=SECRET, open_to_all=True).state.service.open_to_all
    with pytest.raises(ValueError, match="database of the API keys"):
        create_app(service.settings, service.engine, secret=SECRET)


def test_scopes(tmp_path):
    service = Service(tmp_path)
    keys = {scope: new_key(service.database, scope, [scope], "tests") for scope in SCOPES}
    service.scoring.keys.refresh()
    for path, method, needed in NEEDS:
        for scope, key in keys.items():
            response = service.call(
                method, path, key=False, headers=JSON | {KEY_HEADER: key}, content=b"{}" if method == "POST" else None
            )
            if scope != needed:
                assert assert_problem(response, 403)[0]["type"] == "scope", (path, scope)
            else:
                assert response.status_code in (200, 404, 422), (path, response.text)


def test_keys_stay_good_while_the_database_cannot_be_read(tmp_path, monkeypatch, caplog):
    service = Service(tmp_path)
    looks, refresh = [], service.scoring.keys.refresh

    def counted():
        looks.append(1)
        refresh()

    monkeypatch.setattr(service.scoring.keys, "refresh", counted)

    async def lives():
        "The service looks twice: when it begins the second time, the first is done."
        task, before = asyncio.create_task(http.refresh_keys(service.scoring, 0.01)), len(looks)
        await until_so(lambda: len(looks) >= before + 2, "the keys are read again")
        task.cancel()

    service.database.dispose()
    (tmp_path / "desk.sqlite").rename(tmp_path / "away")
    (tmp_path / "desk.sqlite").mkdir()
    with caplog.at_level(logging.ERROR, "fraud_poc.service"):
        asyncio.run(lives())
    assert {record.message for record in caplog.records} == {"keys were not read"} and service.call(
        "GET", "/model"
    ).status_code == 200
    (tmp_path / "desk.sqlite").rmdir()
    (tmp_path / "away").rename(tmp_path / "desk.sqlite")
    revoke_key(service.database, "tests", "tests")
    asyncio.run(lives())
    assert service.call("GET", "/model").status_code == 401


def test_excess_is_refused_at_once_and_the_rest_served(tmp_path):
    service = Service(tmp_path, **{"service.max_in_flight": 3})
    gate, micro_batch = asyncio.Event(), service.engine.store.micro_batch

    async def waiting(*found):
        await gate.wait()
        return await micro_batch(*found)

    service.engine.store.micro_batch = waiting

    async def run():
        async with service.client() as client:
            orders = [asyncio.create_task(client.post("/score", json=ORDER | {"order_id": f"o{i}"})) for i in range(8)]
            await until_so(
                lambda: sum(task.done() for task in orders) == 5 and service.scoring.admission.in_flight == 3,
                "three are taken, the others refused",
            )
            done = [task for task in orders if task.done()]
            assert all(
                task.result().status_code == 429 and task.result().headers["retry-after"] == "1" for task in done
            )
            assert (await client.post("/score/batch", json=[ORDER])).status_code == 429 and (
                await client.get("/healthz")
            ).status_code == 200
            gate.set()
            assert sorted(reply.status_code for reply in await asyncio.gather(*orders)) == [200] * 3 + [429] * 5
            assert (
                await client.post("/score", json=ORDER)
            ).status_code == 200 and service.scoring.admission.in_flight == 0

    asyncio.run(run())
    assert len(service.engine.store.log) == 3


def test_a_burst_may_take_the_whole_limit_and_a_standing_queue_half(fresh, monkeypatch):
    admission, now = fresh.scoring.admission, [100.0]
    most = fresh.settings.service.max_in_flight
    monkeypatch.setattr(scoring.time, "perf_counter", lambda: now[0])

    def taken(there: int, arriving: int) -> int:
        admission.in_flight = there
        for _ in range(arriving):
            with suppress(RequestRejected):
                admission.enter()
        return admission.in_flight - there

    assert taken(0, 2 * most) == most  # a burst
    admission.note_wait(100.0 - scoring.IN_TIME_S, 100.0)  # an answer comes late
    now[0] = 100.0 + scoring.STANDING_S / 2
    assert taken(most - 3, 10) == 3  # soon after it
    admission.note_wait(100.0, now[0])  # and another one
    now[0] = 100.0 + scoring.STANDING_S * 2
    assert taken(most - 3, 10) == 0 and admission.is_full()  # none in time since: the queue stands
    assert taken(most // 2 - 2, 10) == 2
    admission.note_wait(now[0] - scoring.IN_TIME_S / 2, now[0])  # one in time
    assert taken(most // 2, 2 * most) == most - most // 2
    admission.in_flight = 0


def test_store_down_is_answered_and_recovers(fresh):
    async def down(*_):
        raise StoreDown("refused")

    fresh.engine.store.micro_batch = fresh.engine.store.meta = fresh.engine.store.log_length = down
    for amount, band in ((10, "low"), (60, "medium"), (600, "high")):
        answer = fresh.post(json.dumps(ORDER | {"order_amount": amount}).encode())
        assert answer.status_code == 200 and (
            answer.json()["band"],
            answer.json()["degraded"],
            answer.json()["score"],
        ) == (band, "store_down", None)
    found = fresh.call("GET", "/decisions/o1")
    assert found.status_code == 503 and found.headers["retry-after"] == "1"
    ready = fresh.call("GET", "/readyz")
    assert ready.status_code == 503 and ready.json() == {
        "ready": False,
        "reasons": ["the store cannot be reached"],
        "warnings": [],
    }
    text = fresh.call("GET", "/metrics").text
    assert (
        'fraud_poc_degraded_total{reason="store_down"} 3.0' in text
        and "fraud_poc_store_up 0.0" in text
        and "fraud_poc_log_length" not in text
    )
    fresh.engine.store = small_engine(fresh.settings).store
    assert fresh.post(BODY).json()["degraded"] is None and fresh.call("GET", "/readyz").json()["ready"]


def test_a_store_that_refuses_writes_makes_the_service_unready_with_the_reason(fresh):
    async def refusing():
        raise StoreRefuses("the store at 10.0.0.7:6379 refuses writes", "it is a read-only replica")

    assert fresh.call("GET", "/readyz").json()["ready"]
    fresh.engine.store.check_writes = refusing
    ready = fresh.call("GET", "/readyz")
    assert ready.status_code == 503
    assert ready.json()["reasons"] == ["the store refuses writes: it is a read-only replica"]


def test_what_fails_inside_is_a_500_that_tells_nothing(fresh, caplog):
    def broken(vector):
        raise ZeroDivisionError("ann@example.org")

    fresh.engine.model.scorer.score = broken
    with caplog.at_level(logging.INFO):
        response = fresh.post(BODY)
    assert response.status_code == 500 and "ann" not in response.text + caplog.text
    line = json.loads(
        JsonLines().format(next(record for record in caplog.records if record.name == "fraud_poc.service"))
    )
    assert (
        line["event"] == "error"
        and line["kind"] == "ZeroDivisionError"
        and line["at"].startswith(("decide.py:", "scoring.py:"))
    )


# --- the other routes -------------------------------------------------------------------------------------------------


def test_answers_decisions_model_metrics(fresh):
    first = fresh.post(BODY).json()
    assert set(first) == set(fresh.call("GET", "/openapi.json").json()["components"]["schemas"]["Answer"]["properties"])
    assert fresh.post(json.dumps(ORDER | {"customer_id": 17.0}, indent=2).encode()).json() == first | {
        "known_before": True
    }
    assert_problem(fresh.post(json.dumps(ORDER | {"order_amount": 1}).encode()), 409, "order_id")
    assert fresh.call("GET", "/decisions/o1").json() == first
    for ident in ("o2", "a/b", "%2F", "x" * 2000, "\u00e9"):
        assert_problem(fresh.call("GET", f"/decisions/{ident}"), 404)
    assert_problem(fresh.call("GET", f"/decisions/{'x' * 3000}"), 422)
    odd = fresh.post(json.dumps(ORDER | {"order_id": "a/b \u00e9?"}).encode()).json()
    assert fresh.call("GET", "/decisions/a%2Fb%20%C3%A9%3F").json() == odd
    model = fresh.call("GET", "/model").json()
    assert (model["hash"], model["feature_table"], model["features"], model["metrics"]) == (
        first["model"],
        first["feature_table"],
        list(first["features"]),
        {"auc": 0.9},
    )
    text = fresh.call("GET", "/metrics").text
    for line in (
        'requests_total{route="/score",status="200"} 3.0',
        'requests_total{route="/score",status="409"} 1.0',
        'requests_total{route="/decisions/{id}",status="404"} 5.0',
        'entities_total{state="new"} 2.0',
        'commits_total{outcome="known"} 1.0',
        'rejected_total{reason="conflict"} 1.0',
        "log_length 2.0",
        "store_up 1.0",
        "model_age_seconds 2.264e+06",
        'seconds_count{part="total"} 4.0',
        'seconds_count{part="step"} 2.0',
        'seconds_count{part="commit"} 2.0',
        'seconds_count{part="fetch"} 4.0',
        'seconds_count{part="model"} 2.0',
        'seconds_count{part="parse"} 4.0',
    ):
        assert f"fraud_poc_{line}" in text, (line, text)
    assert_problem(fresh.call("GET", "/nowhere"), 404)
    put = fresh.call("PUT", "/score")
    assert put.status_code == 405 and put.headers["allow"] == "POST"
    assert put.json()["detail"][0]["msg"] == "PUT is not allowed here: use POST"


def test_counters_of_workers_add_up_and_stay_when_they_ended(tmp_path):
    code = """
import sys
from fraud_poc.service.metrics import Metrics, exposition

metrics = Metrics()
for _ in range(int(sys.argv[1])):
    metrics.add("requests", "/score", "200")
    metrics.spent("total", 0.0002)
print(metrics.totals("requests"), exposition(metrics, {}).decode())
"""
    env = os.environ | {
        FOLDER: str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    for number in (1, 2, 4):
        text = subprocess.run([sys.executable, "-c", code, str(number)], env=env, capture_output=True, text=True).stdout
    assert (
        'fraud_poc_requests_total{route="/score",status="200"} 7.0' in text
        and 'fraud_poc_seconds_count{part="total"} 7.0' in text
    )
    assert text.startswith("{'requests /score 200': 4} ")


def test_orders_to_try_come_from_the_log(tmp_path):
    from fraud_poc.data.ingest import ingest
    from fraud_poc.data.sample import make_data

    settings = settings_in(tmp_path, **{"sample.orders": 2_000, "sample.customers": 300, "sample.days": 40})
    make_data(settings, tmp_path / "raw")
    ingest(settings, str(tmp_path / "raw" / "orders"), str(tmp_path / "raw" / "labels"))
    key, database = fresh_key(settings, "tests"), open_database(settings)
    app = create_app(settings, small_engine(settings), database=database)

    async def run():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://service", headers={KEY_HEADER: key}
        ) as client:
            found = (await client.get("/orders/sample")).json()
            assert (
                1 <= len(found["orders"]) <= 20
                and set(found["known"]) == set(settings.columns.entities)
                and found["known"]["email"]
            )
            for order in found["orders"]:
                assert (await client.post("/score", json=order)).status_code == 200
            example = (await client.get("/openapi.json")).json()["components"]["schemas"]["Event"]["example"]
            assert (await client.post("/score", json=example)).status_code == 200

    asyncio.run(run())
    database.dispose()
    assert Service(tmp_path / "empty").call("GET", "/orders/sample").json()["orders"] == []


@pytest.mark.parametrize("name", ["cards", "ratings"])
def test_other_domains(tmp_path, name):
    settings = load_settings(ROOT / "config" / f"{name}.toml", {"batch.folder": str(tmp_path)})
    app = create_app(settings, small_engine(settings), secret=SECRET, open_to_all=True)

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            example = (await client.get("/openapi.json")).json()["components"]["schemas"]["Event"]["example"]
            answer = (await client.post("/score", json=example)).json()
            assert answer["position"] == 0 and (await client.get(f"/decisions/{answer['id']}")).json() == answer
            assert (await client.post("/score", json={**example, settings.columns.amount: True})).status_code == 422

    asyncio.run(run())


# --- schemathesis -----------------------------------------------------------------------------------------------------


def promised(folder: Path, mode: schemathesis.GenerationMode, count: int):
    "The service's own document, for cases of one kind."
    service = Service(
        folder, system_clock, **{"service.max_batch": 5, "live.future_skew": "3d"}
    )  # the document promises all of today, in every time zone
    config = schemathesis.Config.from_dict(
        {
            "headers": {KEY_HEADER: service.key},
            "generation": {"mode": mode.value, "max-examples": count, "deterministic": True},
        }
    )
    return service, schemathesis.openapi.from_asgi("/openapi.json", service.app, config=config)


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_schemathesis_finds_nothing(tmp_path, mode):
    service, schema = promised(tmp_path, schemathesis.GenerationMode(mode), 25)
    seen = set()
    operations = [result.ok() for result in schema.get_all_operations()]
    for operation in sorted(
        operations, key=lambda one: one.path != "/labels"
    ):  # while no order is there that a statement could be too early for
        if mode == "negative" and operation.method == "get" and "{" not in operation.path:
            continue

        @examples(
            max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        def check(case):
            response = case.call_and_validate(headers={KEY_HEADER: service.key})
            seen.add((operation.path, response.status_code))

        check()
    wanted = {"positive": {("/score", 200), ("/score/batch", 200)}, "negative": {("/score", 422)}}[mode]
    assert wanted <= seen, seen


@pytest.mark.parametrize("limits", [("2000-01-01", "2100-01-01"), ("2025-06-25", "2025-06-27")])
def test_each_time_that_the_document_promises_is_taken_at_any_offset(tmp_path, limits):
    service = Service(tmp_path, **{"limits.earliest": limits[0], "limits.latest": limits[1], "live.future_skew": "2d"})
    pattern = re.compile(service.app.openapi()["components"]["schemas"]["Event"]["properties"]["order_date"]["pattern"])
    days = [date.fromisoformat(limits[0]) + timedelta(days=n) for n in range(3)] + [
        datetime.fromtimestamp(NOW / 1000, UTC).date() + timedelta(days=n) for n in range(-2, 2)
    ]
    promised = {
        f"{day}T{time}"
        for day in days
        for time in ("00:00+23:59", "23:59:59-23:59", "12:00Z", "00:00:00")
        if pattern.fullmatch(f"{day}T{time}")
    }
    for number, when in enumerate(sorted(promised)):
        assert (
            service.post(json.dumps(ORDER | {"order_id": f"edge{number}", "order_date": when}).encode()).status_code
            == 200
        ), when
    assert (len(promised) > 8) == (limits[0] == "2000-01-01")


def test_schemathesis_finds_nothing_in_sequences(tmp_path):
    service, schema = promised(tmp_path, schemathesis.GenerationMode.POSITIVE, 10)

    class Machine(schema.as_state_machine()):
        def get_call_kwargs(self, case):
            return {"headers": {KEY_HEADER: service.key}}

    Machine.run(
        settings=examples(
            max_examples=15,
            stateful_step_count=6,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
    )
    assert len(service.engine.store.log) > 3


# --- real processes ---------------------------------------------------------------------------------------------------


@contextmanager
def running(folder: Path, url: str, **changes):
    "The service in processes of its own: its address, its process, a key. Stopped at the end."
    settings = settings_in(folder, **{"service.port": 0, "live.store_timeout": STORE} | changes)
    key = fresh_key(settings, "tests")
    code = "import sys; from support.scoring_worker import serve_here; serve_here(sys.argv[1], sys.argv[2])"
    (folder / "temporary").mkdir()
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        "TMPDIR": str(folder / "temporary"),
    }
    log = open(folder / "log", "wb")
    process = subprocess.Popen(
        [sys.executable, "-c", code, settings.model_dump_json(), url],
        env=env,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    )
    try:
        address = line_of(process, folder / "log")
        with httpx.Client(base_url=address, headers={KEY_HEADER: key}, timeout=LONG) as client:
            happens(lambda: client.get("/readyz").status_code == 200, "the service is ready", process, folder / "log")
            yield client, process, log
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        log.close()


def happens(condition, what: str, process, log: Path) -> None:
    "Wait for something that a service does; requests that fail are sent again."
    until(condition, what, process, log, ignore=(httpx.HTTPError,))


def mark_filled(settings, url: str) -> None:
    "An empty store that counts as filled; and the compiled step is cached, so that workers start quickly."
    engine = small_engine(settings)
    workers.warm(scoring.ScoringService(settings, engine, SECRET, open_to_all=True))

    async def fill():
        async with open_store(settings, url) as store:
            await filled(store, engine.table.hash)

    asyncio.run(fill())


def entries(settings, url: str) -> list:
    "All of the log."

    async def read():
        async with open_store(settings, url) as store:
            return await store.entries(-1, 10**6)

    return asyncio.run(read())


def test_stopping_finishes_what_was_accepted(tmp_path):
    settings = settings_in(tmp_path)
    with start_redis(tmp_path / "redis") as server:
        mark_filled(settings, server.url)
        with running(tmp_path, server.url) as (client, process, log):
            answers, refused = [], []

            def work(number: int) -> None:
                with httpx.Client(base_url=client.base_url, headers=client.headers, timeout=LONG) as mine:
                    for i in range(100_000):
                        try:
                            response = mine.post(
                                "/score", json=ORDER | {"order_id": f"o{number}-{i}", "customer_id": number}
                            )
                        except httpx.HTTPError:
                            return
                        if response.status_code == 200:
                            answers.append(response.json())
                        else:
                            refused.append((response.status_code, response.headers.get("retry-after")))
                        if response.status_code == 503:
                            return

            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            happens(lambda: len(answers) > 50, "orders are answered", process, tmp_path / "log")
            process.send_signal(signal.SIGTERM)
            assert ended(process, tmp_path / "log") in (0, -signal.SIGTERM)
            for thread in threads:
                thread.join()
        assert not {status for status, _ in refused} - {503} and all(wait == "1" for _, wait in refused)
        assert (
            sorted(answer["position"] for answer in answers)
            == [seq for seq, _ in entries(settings, server.url)]
            == list(range(len(answers)))
        )
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["event"] for line in lines if line["event"] in ("started", "stopped")] == ["started", "stopped"]
    assert not any(word in json.dumps(lines) for word in ("ann@example.org", "192.0.2.1", "127.0.0.1", "o1-"))


def test_several_workers_are_as_correct_as_one(tmp_path):
    settings = settings_in(tmp_path)
    with start_redis(tmp_path / "redis") as server:
        mark_filled(settings, server.url)
        with running(tmp_path, server.url, **{"service.workers": 2}) as (client, process, log):

            def soon(condition, what: str) -> None:
                happens(condition, what, process, tmp_path / "log")

            soon(lambda: (tmp_path / "log").read_text().count('"started"') == 2, "both workers start")

            async def many(first: int) -> list[httpx.Response]:
                async with httpx.AsyncClient(
                    base_url=client.base_url,
                    headers=client.headers,
                    timeout=LONG,
                    limits=httpx.Limits(max_connections=8, max_keepalive_connections=0),
                ) as each:
                    return await asyncio.gather(
                        *[each.post("/score", json=ORDER | {"order_id": f"o{first + i}"}) for i in range(40)]
                    )

            replies = asyncio.run(many(0)) + asyncio.run(many(20))  # 20 of them twice
            assert {reply.status_code for reply in replies} == {200} and {
                reply.json()["degraded"] for reply in replies
            } == {None}
            assert sorted({reply.json()["position"] for reply in replies}) == list(range(60))
            last = client.post("/score", json=ORDER | {"order_id": "last"}).json()
            assert last["features"]["count_1h_by_customer_id"] == 60.0
            started = {
                json.loads(line)["process"]
                for line in (tmp_path / "log").read_text().splitlines()
                if json.loads(line)["event"] == "started"
            }
            assert len(started) == 2

            def counted() -> int:
                lines = [
                    line
                    for line in client.get("/metrics").text.splitlines()
                    if line.startswith('fraud_poc_requests_total{route="/score",status="200"}')
                ]
                return int(float(lines[0].split()[-1])) if lines else 0

            soon(lambda: counted() == 81, "the counts of both workers are seen")
            os.kill(started.pop(), signal.SIGKILL)  # the other one goes on, and a new one comes
            soon(lambda: (tmp_path / "log").read_text().count('"started"') == 3, "another worker starts")
            soon(
                lambda: (
                    client.post("/score", json=ORDER | {"order_id": "last"}).json() == last | {"known_before": True}
                ),
                "an order of before is known",
            )
            assert counted() >= 81
            database = open_database(settings)
            reader = new_key(database, "reader", ["read"], "tests")

            def seen(key: str, status: int) -> None:  # by both workers, the hot route and FastAPI's
                def asked(method: str, path: str) -> int:
                    return httpx.request(
                        method,
                        f"{client.base_url}{path}",
                        headers={KEY_HEADER: key} | JSON,
                        content=b"{}",
                        timeout=LONG,
                    ).status_code

                soon(
                    lambda: (
                        {asked("POST", "/score") for _ in range(8)}
                        == {asked("POST", "/score/batch") for _ in range(8)}
                        == {status}
                    ),
                    f"both workers answer {status}",
                )

            seen(reader, 403)
            for name, key in (("reader", reader), ("tests", client.headers[KEY_HEADER])):
                revoke_key(database, name, "tests")
                seen(key, 401)
            database.dispose()
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()  # workers that nobody watches any more finish in good order, and give the port back
            assert len(children) >= 2 and not psutil.wait_procs(children, timeout=LONG)[1]
            assert (tmp_path / "log").read_text().count('"stopped"') == 2
