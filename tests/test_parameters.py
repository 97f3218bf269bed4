"""Hostile values of each parameter of each route, on both databases: none of them is an error of ours."""

import asyncio
import logging
import re
from urllib.parse import quote

import httpx
import pytest
import sqlalchemy as sa
from fastapi.openapi.utils import get_openapi
from support import desk_data, desk_server
from support.scoring_worker import settings_in, small_engine

from fraud_poc.app import with_desk
from fraud_poc.core.database import open_database
from fraud_poc.core.reading import EventReader
from fraud_poc.core.settings import load_settings
from fraud_poc.desk import accounts as accounts_module
from fraud_poc.desk import pages
from fraud_poc.desk.accounts import new_account
from fraud_poc.desk.tables import cases, decisions, labels
from fraud_poc.live.label_files import json_row
from fraud_poc.live.predict import parse_json
from fraud_poc.service.documents import CONTENT_POLICY
from fraud_poc.service.http import create_app
from fraud_poc.service.keys import SCOPES, new_key
from fraud_poc.service.schemas import Codec, RequestRejected, strict_json

NOW = 1_751_000_000_000
HOSTILE = {
    "NUL": "a\0b",
    "escape": "\x1b[31m",
    "enormous": "9" * 5_000,
    "beyond 64 bits": str(2**63),
    "far beyond 64 bits": "9" * 30,
    "negative": "-1",
    "negative beyond 64 bits": "-" + "9" * 30,
    "infinite": "inf",
    "no number": "nan",
    "exponent": "1e999",
    "words": "lots",
    "a quote": "'; DROP TABLE cases; --",
    "a pair out of range": f"{10**30}~{10**30}",
    "a template": "{{7*7}}",
    "brackets": "[" * 3_000,
    "no text": "\ufffe\uffff",
}
FREE = {"find", "note", "name", "password", "id"}  # parameters that are text: any that can be printed
UNPRINTED = {"NUL", "escape", "enormous"}
ALLOWED = {(name, "negative") for name in ("least", "most")}  # an amount may be below zero
GOOD = {"number": "1", "decision": "clear", "step": "5", "capacity": "10", "an_hour": "40", "id": "o1"}
SENTENCE = "a sentence of hers"
HEADERS = {
    "origin": ["http://[", "null", "\xff", "http://" + "x" * 5_000],
    "host": ["[", "", "x" * 5_000, "a b"],
    "cookie": ["__Secure-fraud_poc=\xff\xfe", "=;=;" * 1_000],
    "content-length": ["\xb2", "-1", "9" * 5_000],
    "content-type": [
        "multipart/form-data",
        "multipart/form-data; boundary=x; charset=punycode",
        "application/x-www-form-urlencoded; charset=idna",
        "\xff",
    ],
    "x-api-key": ["\xff", "x" * 5_000],
    "accept": ["\xff", "application/json" * 500],
}
BODIES = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"[" * 1_000_000,
    b'[{"a":' * 100_000,
    b'{"a":' * 100_000,
    b"[" + b"9" * 500_000 + b"]",
    b"[" + b'"' * 3,
    b"[null,1,[],{}]",
]
LISTS = ("/score/batch", "/labels")  # in a list, each item has a status of its own


@pytest.fixture
def whole(tmp_path, database_url, monkeypatch):
    "The application that `serve` runs, with decisions to look at; its routes, and what it holds."
    monkeypatch.setattr(accounts_module, "HASHER", accounts_module.PasswordHasher(1, 8, 1))
    accounts_module.dummy_hash.cache_clear()
    settings = settings_in(tmp_path, **{"desk.login_attempts": 1_000_000})
    engine = open_database(settings, database_url)
    desk_data.fill(engine, settings, desk_server.SECRET, NOW, 60)
    new_account(engine, "ann", SENTENCE, "admin", "test", NOW)
    key = new_key(engine, "tests", SCOPES, "tests")
    app = create_app(settings, small_engine(settings, clock=lambda: NOW), secret=bytes(32), database=engine)
    yield with_desk(app, engine), engine, key
    engine.dispose()
    accounts_module.dummy_hash.cache_clear()


def operations(app):
    "Method, path, and parameters by place, of all routes: as FastAPI itself reads their declarations."
    desk = next(route.app for route in app.routes if getattr(route, "path", "") == "/desk")
    for above, one in (("", app), ("/desk", desk)):
        document = get_openapi(title="all", version="1", routes=one.routes)
        schemas = document.get("components", {}).get("schemas", {})
        for path, methods in document["paths"].items():
            for method, described in methods.items():
                found = {"path": {}, "query": {}, "form": {}}
                for parameter in described.get("parameters", []):
                    found.setdefault(parameter["in"], {})[parameter["name"]] = parameter["schema"]
                for kind, content in described.get("requestBody", {}).get("content", {}).items():
                    if "form" in kind:
                        name = content["schema"].get("$ref", "").rpartition("/")[2]
                        found["form"] |= schemas.get(name, content["schema"]).get("properties", {})
                yield method.upper(), above + path, found


def state(engine, app):
    "What a rejected request must leave as it was."
    with engine.connect() as connection:
        rows = [connection.execute(sa.select(table)).all() for table in (cases, decisions, labels)]
    store = app.state.service.engine.store
    return rows, list(store.log), dict(store.held)


def run(app, key, visit, name="ann", password=SENTENCE):
    "Let a browser that is logged in, and shows an API key, visit."

    async def visited():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="https://desk.example", headers={"accept": "text/html", "x-api-key": key}
        ) as client:
            answer = await client.post("/desk/login", data={"name": name, "password": password})
            assert answer.status_code == 303
            csrf = re.search(r'name="csrf" value="([^"]+)"', (await client.get("/desk/queue")).text)[1]
            return await visit(client, csrf)

    return asyncio.run(visited())


def requests_of(method, path, found):
    "Each parameter with each hostile value, the others good: label, name, address, form."
    for place in ("path", "query", "form"):
        for name in found[place]:
            for label, value in HOSTILE.items():
                values = {other: dict.fromkeys(found[other]) for other in found}
                for other in values:
                    values[other] = {one: GOOD[one] for one in values[other] if one in GOOD}
                values[place][name] = value
                if (name, place) == ("query", "form"):
                    values[place][name] = f"least={quote(value)}"
                address = re.sub(r"{(\w+)}", lambda match: quote(values["path"][match[1]], safe=""), path)
                yield label, name, f"{address}?{httpx.QueryParams(values['query'])}", values["form"]


def test_each_parameter_of_each_route_rejects_hostile_values(whole):
    app, engine, key = whole
    seen, names = 0, set()

    async def visit(client, csrf):
        nonlocal seen
        wrong = []
        for method, path, found in operations(app):
            if path == "/desk/logout":
                continue
            for label, name, address, form in requests_of(method, path, found):
                data = form | {"csrf": csrf} if method == "POST" else None
                if (path, name) == ("/desk/login", "password"):
                    data["name"] = "ann"
                if path == "/desk/login":  # the page is for those who have no session
                    client.cookies.clear()
                status = (await client.request(method, address, data=data)).status_code
                seen, fine = seen + 1, range(400, 500)
                if (name in FREE and label not in UNPRINTED) or (name, label) in ALLOWED:
                    fine = range(200, 500)
                if status not in fine:
                    wrong.append(f"{method} {path} {name}={label}: {status}")
                names.add((path, name))
            if path == "/desk/login":
                await client.post("/desk/login", data={"name": "ann", "password": SENTENCE})
                csrf = re.search(r'name="csrf" value="([^"]+)"', (await client.get("/desk/queue")).text)[1]
        return wrong

    wrong = run(app, key, visit)
    assert not wrong, "\n".join(wrong)
    assert seen > 400 and {("/desk/queue", "after"), ("/desk/case/{number}/decision", "query")} <= names
    assert ("/decisions/{id}", "id") in names and ("/desk/trends/what-if", "step") in names


def test_headers_and_bodies_are_rejected_on_each_route(whole):
    app, engine, key = whole
    before = state(engine, app)

    async def visit(client, csrf):
        wrong = []
        for method, path, _ in operations(app):
            address = path.replace("{number}", "1").replace("{id}", "x")
            if path == "/desk/logout":
                continue
            sent = [({name: value}, b"a=1") for name, values in HEADERS.items() for value in values]
            if method == "POST":
                kinds = ("application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x")
                sent += [({"content-type": kind}, body) for body in BODIES for kind in kinds]
            for headers, body in sent:
                raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
                content = body if method == "POST" else None
                status = (await client.request(method, address, headers=raw, content=content)).status_code
                fine = range(200, 500) if method == "GET" or path in LISTS else range(400, 500)
                if status not in fine:
                    wrong.append(f"{method} {path} {str(headers)[:60]} {body[:10]}: {status}")
        for path in (
            "/desk/static/%00",
            "/desk/static/" + "x" * 5_000,
            "/desk/static/..%2f..%2fpages.py",
            "/%00",
            "/desk/%ff",
        ):
            if (status := (await client.get(path)).status_code) not in (404, 405):
                wrong.append(f"{path}: {status}")
        return wrong

    wrong = run(app, key, visit)
    assert not wrong, "\n".join(wrong)
    assert state(engine, app) == before


DEEP = "[" * 1_000_000, '{"a":' * 300_000


@pytest.mark.parametrize("text", DEEP)
def test_every_reader_of_json_says_that_it_is_nested_too_deeply(root, text):
    codec = Codec(EventReader(load_settings(root / "config" / "orders.toml"), bytes(32)))
    for read in (codec.event, codec.items, strict_json):
        with pytest.raises(RequestRejected) as caught:
            read(text.encode())
        assert caught.value.status == 400 and "nested too deeply" in caught.value.details[0].msg
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(text)
    assert json_row(text) == "JSON is nested too deeply"


def test_an_error_of_ours_is_logged_with_its_type_and_place(tmp_path, monkeypatch, caplog):
    desk = desk_server.make_desk(tmp_path, NOW, 60, lambda: NOW)
    monkeypatch.setattr(pages, "case_values", lambda *_: 1 / 0)

    async def visit(client, csrf):
        return await client.get("/desk/case/1")

    with caplog.at_level(logging.ERROR, "fraud_poc"):
        answer = run(desk.app, "", visit, "analyst-1", desk_server.PASSWORD)
    assert answer.status_code == 500 and "division" not in answer.text and "log of the service" in answer.text
    assert answer.headers["content-security-policy"] == CONTENT_POLICY
    fields = [record.fields for record in caplog.records if record.name == "fraud_poc.service"]
    assert len(fields) == 1 and fields[0]["kind"] == "ZeroDivisionError" and fields[0]["at"].startswith("pages.py:")
    desk.engine.dispose()
