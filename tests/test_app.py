"""The whole service as its users get it: who is let in where, what its document promises, and the way of an order to a verdict and into the next training set."""
import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import schemathesis
from fastapi import Depends
from hypothesis import HealthCheck, given, settings as examples, strategies as st
from hypothesis.stateful import rule

from doors import door_problems, ways
from fraud_poc.api.app import with_desk
from fraud_poc.api.scoring import KEY_HEADER, create_app
from fraud_poc.desk.access import SCOPES, Door, new_key
from fraud_poc.desk.database import open_database
from fraud_poc.live.store import decode_entry
from scoring_worker import settings_in, small_engine

ROOT = Path(__file__).resolve().parents[1]
ORDER = {"order_id": "o1", "order_date": "2025-06-01T12:00:00", "order_amount": 25.5, "customer_id": 17, "email": "ann@example.org",
         "ip_addr": "192.0.2.1", "device": "d1", "location": "Lyon"}


@pytest.fixture
def whole(tmp_path):
    "The application with the desk, a store in memory and a real database."
    settings = settings_in(tmp_path, **{"service.max_batch": 5, "service.max_in_flight": 8})
    database, engine = open_database(settings), small_engine(settings)
    key = new_key(database, "tests", SCOPES, "tests")
    app = with_desk(create_app(settings, engine, secret=bytes(32), database=database), database)
    yield SimpleNamespace(app=app, database=database, key=key, settings=settings, engine=engine)
    database.dispose()


# --- who may do what --------------------------------------------------------------------------------------------------------------------

OPEN = ["/healthz", "/readyz", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc",  # of the service; documents say what is asked for, not what is held
        "GET /", "GET /desk/login", "POST /desk/login", "GET /desk/static/*"]                # the way to the desk, and what its login page needs


def doors_of(whole, **more) -> list[str]:
    return door_problems(whole.app, whole.database, more.pop("open_routes", OPEN), whole.app.service.keys.refresh, for_viewers=["POST /desk/logout"], **more)


def test_each_route_lets_in_whom_it_must_and_nobody_else(whole):
    assert doors_of(whole) == []
    listed = {str(way) for way in ways(whole.app)}
    assert {"POST /score", "POST /score/batch", "POST /labels", "GET /metrics", "GET /desk/queue", "POST /desk/case/{number}/verdict", "GET /desk/keys", "GET /desk/static/*"} <= listed
    assert whole.engine.store.log == []


def test_a_new_route_without_a_guard_is_found_wherever_it_is(whole):
    desk = next(route.app for route in whole.app.cold.routes if getattr(route, "path", "") == "/desk")
    door = Door(whole.settings, whole.database)
    whole.app.cold.add_api_route("/export", lambda: {}, methods=["GET"])
    desk.add_api_route("/everything", lambda: {}, methods=["POST"])
    desk.add_api_route("/weak", lambda: {}, methods=["POST"], dependencies=[Depends(door.guard("viewer"))])
    found = doors_of(whole, open_routes=[*OPEN, "/gone"])
    assert sorted(problem.split(" answers ")[0].split(" lets ")[0].split(" is ")[0] for problem in found) == ["/gone", "GET /export", "POST /desk/everything", "POST /desk/weak"], found


# --- schemathesis: statements on orders -------------------------------------------------------------------------------------------------

KNOWN = ("o1", "o2", "17")
LOOSE = dict(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def promised(whole, mode: schemathesis.GenerationMode, count: int):
    "The document of the whole application, and orders that statements can be about; they are so old that no verdict is too early."
    config = schemathesis.Config.from_dict({"headers": {KEY_HEADER: whole.key}, "generation": {"mode": mode.value, "max-examples": count, "deterministic": True}})
    async def score() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(whole.app), base_url="http://service", headers={KEY_HEADER: whole.key}) as client:
            for ident in KNOWN: assert (await client.post("/score", json=ORDER | {"order_id": ident, "order_date": "2000-01-01"})).status_code == 200
    asyncio.run(score())
    return schemathesis.openapi.from_asgi("/openapi.json", whole.app, config=config)


def about(body, ident: str, **more):
    "A statement, or several, on an order that is known."
    if isinstance(body, list): return [about(item, ident, **more) for item in body]
    return body | {"order": ident} | more if isinstance(body, dict) and "order" in body else body


def labels_of(whole) -> list: return [entry for _, data in whole.engine.store.log if (entry := decode_entry(data)).kind == "label"]


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_schemathesis_finds_nothing_in_statements_on_known_orders(whole, mode):
    seen, mode = [], schemathesis.GenerationMode(mode)
    operation = promised(whole, mode, 60)["/labels"]["POST"]
    @examples(max_examples=60, **LOOSE)
    @given(operation.as_strategy(generation_mode=mode), st.sampled_from(KNOWN))
    def check(case, ident):
        if mode == schemathesis.GenerationMode.POSITIVE: case.body = about(case.body, ident)
        before = len(labels_of(whole))
        response = case.call_and_validate(headers={KEY_HEADER: whole.key})
        seen.append(response.status_code)
        results = response.json().get("results", [{"answer": response.json()}] if response.status_code == 200 else [])
        taken = [result for result in results if result.get("answer") and not result["answer"]["known_before"]]
        assert len(labels_of(whole)) == before + len(taken), "what is not answered with 200 leaves nothing in the log"
    check()
    if mode == schemathesis.GenerationMode.POSITIVE: assert seen.count(200) > 20 and labels_of(whole)
    else: assert {400, 422} & set(seen) and not labels_of(whole)


def test_schemathesis_finds_nothing_in_sequences_of_orders_and_statements(whole):
    schema = promised(whole, schemathesis.GenerationMode.POSITIVE, 10)
    class Machine(schema.as_state_machine()):
        def get_call_kwargs(self, case): return {"headers": {KEY_HEADER: whole.key}}
        @rule(case=schema["/labels"]["POST"].as_strategy(), back=st.integers(0, 3))
        def say(self, case, back):
            known = [str(json.loads(entry.body)["order_id"]) for _, data in whole.engine.store.log if (entry := decode_entry(data)).kind == "event"]
            case.body = about(case.body, known[max(len(known) - 1 - back, 0)], known=None)
            case.call_and_validate(headers={KEY_HEADER: whole.key})
    Machine.run(settings=examples(max_examples=15, stateful_step_count=6, **LOOSE))
    assert len(whole.engine.store.log) > len(KNOWN) and labels_of(whole)
