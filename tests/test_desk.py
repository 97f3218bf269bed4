"""The desk over HTTP: roles, filters, paging while the queue changes, simultaneous decisions, and pages for errors."""

import asyncio
import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from pathlib import Path
from tempfile import gettempdir
from types import SimpleNamespace
from urllib.parse import quote
from zoneinfo import ZoneInfo

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from fastapi.routing import APIRoute, iter_route_contexts
from setuptools import find_packages
from support import databases, desk_data, desk_server

from fraud_poc.core.audit import list_audit, record, verify_audit
from fraud_poc.core.database import open_database, writing
from fraud_poc.core.events import KEY, PERSON, Actor
from fraud_poc.desk import case_decisions, queries, trends
from fraud_poc.desk.tables import cases, days, decisions, notes, outcomes
from fraud_poc.desk.views import earlier_counts
from fraud_poc.desk.words import moment, wall_clock
from fraud_poc.features.table import build_table
from fraud_poc.live.labels import LabelAssertion, Retraction
from fraud_poc.live.timelines import lost_tail, timelines
from fraud_poc.service.documents import CONTENT_POLICY

NOW = 1_767_000_000_000


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    made = desk_server.make_desk(tmp_path_factory.mktemp("desk"), NOW, 1500, lambda: NOW, **{"desk.page_size": 10})
    yield made
    made.engine.dispose()


def filled(url: str) -> None:
    "What `fresh` begins with."
    settings = desk_server.make_settings(Path(gettempdir()))
    engine = open_database(settings, url)
    desk_server.fill(engine, settings, NOW, 500)
    engine.dispose()


@pytest.fixture(params=databases.KINDS)
def fresh(request, new_databases, tmp_path):
    "A desk of one's own, in SQLite and in PostgreSQL."
    with new_databases.copy(request.param, filled) as url:
        settings = desk_server.make_settings(tmp_path)
        engine = open_database(settings, url)
        yield desk_server.serve_desk(settings, engine, NOW, lambda: NOW)
        engine.dispose()


class Browser:
    "Requests of one person, each in an event loop of its own."

    def __init__(self, desk: SimpleNamespace, name: str = ""):
        self.app, self.cookies, self.csrf = desk.app, httpx.Cookies(), ""
        if name:
            cookie, token, self.csrf = desk_server.logged_in(desk, name)
            self.cookies.set(cookie, token, "desk.example", "/desk")

    def ask(self, *requests: tuple, **more) -> list[httpx.Response]:
        async def asked():
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(self.app), base_url="https://desk.example", cookies=self.cookies
            ) as client:
                answers = await asyncio.gather(
                    *[
                        client.request(method, f"/desk/{path}", data=data, headers={"accept": "text/html"} | more)
                        for method, path, data in requests
                    ]
                )
                self.cookies = client.cookies
                return answers

        return asyncio.run(asked())

    def get(self, path: str, **headers) -> httpx.Response:
        return self.ask(("GET", path, None), **headers)[0]

    def post(self, path: str, **data) -> httpx.Response:
        return self.ask(("POST", path, ({"csrf": self.csrf} if self.csrf else {}) | data))[0]

    def part(self, path: str) -> httpx.Response:
        return self.get(path, **{"HX-Request": "true"})


def numbers_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r'<tr id="case-(\d+)"', text)]


def following(text: str) -> str | None:
    found = re.search(r'data-more href="/desk/(queue[^"]+)"', text)
    return found and found[1].replace("&amp;", "&")


def routes(desk) -> list[tuple[str, str]]:
    mounted = next(route.app for route in desk.app.routes if getattr(route, "path", "") == "/desk")
    return [
        (method, route.path)
        for route in iter_route_contexts(mounted.routes)
        if isinstance(route.original_route, APIRoute)
        for method in sorted(route.methods - {"HEAD"})
    ]


# --- what the store has lost ------------------------------------------------------------------------------------------


def test_a_lost_tail_is_told_to_those_who_decide_and_at_its_cases(fresh):
    for name in ("viewer-1", "analyst-1"):
        assert "the store has lost" not in Browser(fresh, name).get("queue").text
    with writing(fresh.engine) as connection:
        newest = connection.execute(sa.select(sa.func.max(decisions.c.position))).scalar()
        log = connection.execute(sa.select(decisions.c.log).where(decisions.c.position == newest)).scalar()
        row = {"log": log, "start": 0, "position": newest, "lost_from": newest, "found": NOW}
        connection.execute(sa.insert(timelines).values(row))
        kept, lost = [
            connection.execute(sa.select(decisions.c.id).where(condition).limit(1)).scalar()
            for condition in (decisions.c.position < newest, decisions.c.position == newest)
        ]
        count = lost_tail(connection)
    assert count.decisions == 1
    for name, warned in (("viewer-1", False), ("analyst-1", True), ("admin-1", True)):
        browser = Browser(fresh, name)
        for path in ("queue", "trends", f"case/{kept}", f"case/{lost}"):
            text = browser.get(path).text
            assert ("of a part of the live log that the store has lost" in text) == warned, (name, path)
            assert ("has lost this decision" in text) == (path == f"case/{lost}"), (name, path)
        assert "the store has lost" not in browser.part("queue").text


# --- who may do what --------------------------------------------------------------------------------------------------


def test_nobody_gets_anything_without_a_session(desk):
    nobody, seen = Browser(desk), 0
    for method, path in routes(desk):
        if path == "/login":
            continue
        path = path.lstrip("/").replace("{number}", "1")
        answer = nobody.ask((method, path, {"decision": "clear"} if method == "POST" else None))[0]
        assert answer.status_code == (303 if method == "GET" else 401), path
        of_case = path.startswith("case/")
        login = "/desk/login" + "?case=1" * of_case
        assert answer.headers.get("location", login) == login and "o48" not in answer.text
        if method == "GET":  # a page of a case stays, since a reviewer may be writing in it
            assert nobody.part(path).status_code == 401
            assert nobody.part(path).headers.get("hx-redirect") == (None if of_case else "/desk/login")
        seen += 1
    assert seen >= 14


def test_every_role_gets_what_it_may_and_no_more(desk):
    admin_only = {"/accounts", "/keys", "/audit"}
    analyst_only = {f"/case/{{number}}/{word}" for word in ("decision", "undo", "note")}
    for name, role in (("viewer-1", "viewer"), ("analyst-1", "analyst"), ("admin-1", "admin")):
        person = Browser(desk, name)
        for method, path in routes(desk):
            if path in ("/login", "/logout"):
                continue
            answer = person.ask(
                (
                    method,
                    path.lstrip("/").replace("{number}", "999999"),
                    {"csrf": person.csrf, "decision": "clear"} if method == "POST" else None,
                )
            )[0]
            allowed = role == "admin" or path not in admin_only and (role == "analyst" or path not in analyst_only)
            assert (answer.status_code != 403) == allowed, (role, path)
            assert answer.status_code < 500, path
    assert desk.log.changes == []


def test_a_form_needs_the_token_and_must_come_from_here(desk):
    analyst, number = Browser(desk, "analyst-1"), desk_server.open_numbers(desk.engine)[0]
    form = {"decision": "flag", "csrf": analyst.csrf}
    assert analyst.ask(("POST", f"case/{number}/decision", form | {"csrf": "guess"}))[0].status_code == 403
    assert (
        analyst.ask(("POST", f"case/{number}/decision", form), **{"sec-fetch-site": "cross-site"})[0].status_code == 403
    )
    assert (
        analyst.ask(("POST", f"case/{number}/decision", form), origin="https://elsewhere.example")[0].status_code == 403
    )
    assert desk.log.changes == []


def test_logging_in_and_out(desk):
    person = Browser(desk)
    wrong = person.post("login", name="analyst-1", password="not hers at all")
    assert (
        wrong.status_code == 401
        and "Name or password is wrong" in wrong.text
        and 'value="analyst-1"' in wrong.text
        and "not hers" not in wrong.text
    )
    person = Browser(desk)
    assert person.post("login", name="analyst-1", password=desk_server.PASSWORD).status_code == 303
    person.csrf = re.search(r'name="csrf" value="([^"]+)"', person.get("queue").text)[1]
    assert person.get("login").status_code == 303 and person.get("").status_code in (303, 307)
    assert person.post("logout").status_code == 303 and person.get("queue").status_code == 303


# --- pages ------------------------------------------------------------------------------------------------------------


def test_pages_carry_headers_and_nothing_from_elsewhere(desk):
    admin, number = Browser(desk, "admin-1"), desk_server.open_numbers(desk.engine)[0]
    for path in (
        "login",
        "queue",
        "queue?group=customer",
        f"case/{number}",
        "trends",
        "accounts",
        "keys",
        "audit",
        "nothing",
    ):
        answer = admin.get(path)
        assert (
            answer.headers["content-security-policy"] == CONTENT_POLICY
            and answer.headers["cache-control"] == "no-store"
            and answer.headers["x-content-type-options"] == "nosniff"
        )
        assert not re.search(
            r'<script(?! src="/desk/static/)|\sstyle=|\son[a-z]+=|(?:src|href|action)="(?!/desk/|#)', answer.text
        ), path
        for control in re.findall(r"<(?:img|svg)[^>]*>", answer.text):
            assert "aria-" in control, control
    page = admin.get("queue").text
    for address in re.findall(r'(?:src|href)="(/desk/static/[^"]+)"', page):
        answer = admin.get(address.removeprefix("/desk/"))
        assert (
            answer.status_code == 200
            and ("immutable" if "v=" in address else "max-age=86400") in answer.headers["cache-control"]
            and "content-security-policy" in answer.headers
        )
    assert admin.get("static/../pages.py").status_code == admin.get("static/..%2fpages.py").status_code == 404


def test_what_an_order_says_stays_text(fresh):
    evil = "\"><script>alert(1)</script>'{{7*7}}"
    number = desk_server.open_numbers(fresh.engine)[0]
    with writing(fresh.engine) as connection:
        body = {"order_id": evil, "order_amount": 1.0, "customer_id": evil, "email": evil}
        reasons = [{"feature": "email", "value": 1.0, "contribution": 1.0, "words": evil}]
        connection.execute(
            sa.update(decisions)
            .where(decisions.c.id == number)
            .values(order_id=evil, customer=evil, body=json.dumps(body), reasons=reasons)
        )
        connection.execute(sa.update(cases).where(cases.c.decision_id == number).values(customer=evil, note=evil))
    person = Browser(fresh, "analyst-1")
    for path in ("queue", "queue?group=customer", f"case/{number}", "queue?" + httpx.QueryParams(find=evil).__str__()):
        text = person.get(path).text
        assert "<script>alert" not in text and "alert(1)" in text and "49" not in text.split("alert(1)")[1][:30]


def test_no_page_has_the_words_of_programs(fresh):
    "No log-odds, names with underscores, JSON or times to the microsecond, whatever the state of an entity."
    number = desk_server.open_numbers(fresh.engine)[0]
    with writing(fresh.engine) as connection:
        row = connection.execute(sa.select(decisions).where(decisions.c.id == number)).mappings().one()
        body = json.loads(row["body"]) | {"order_date": "2025-11-05T10:30:00.123456+00:00"}
        entities = dict(zip(fresh.settings.columns.entities, ("new", "capped", "too_late", "missing")))
        change = sa.update(decisions).where(decisions.c.id == number)
        connection.execute(change.values(body=json.dumps(body), entities=entities))
    person = Browser(fresh, "admin-1")
    person.post(f"case/{number}/note", note="seen")
    for path in (f"case/{number}", "queue", "queue?status=all", "trends", "accounts", "keys", "audit"):
        text = re.sub(r"<[^>]*>", " ", person.get(path).text)
        found = re.search(r"log-odds|[a-z]+_[a-z]+|\d\d:\d\d:\d\d\.\d{3}|\bcapped\b|\{&#34;|label event", text)
        assert not found, (path, found)
    assert "came too late to be counted" in person.get(f"case/{number}").text


MOMENTS = [  # time zone, UTC time, as pages show it: summer time, half hours, a clock that goes back by half an hour
    ("UTC", "2025-10-26T01:30", "2025-10-26 01:30"),
    ("Europe/Paris", "2025-03-30T00:59", "2025-03-30 01:59"),
    ("Europe/Paris", "2025-03-30T01:00", "2025-03-30 03:00"),
    ("Europe/Paris", "2025-10-25T23:59", "2025-10-26 01:59"),
    ("Europe/Paris", "2025-10-26T00:30", "2025-10-26 02:30 CEST"),
    ("Europe/Paris", "2025-10-26T01:30", "2025-10-26 02:30 CET"),
    ("Europe/Paris", "2025-10-26T02:00", "2025-10-26 03:00"),
    ("Asia/Kolkata", "2025-10-26T20:45", "2025-10-27 02:15"),
    ("America/St_Johns", "2025-11-02T03:00", "2025-11-02 00:30"),
    ("Australia/Lord_Howe", "2025-04-05T14:45", "2025-04-06 01:45 +11"),
    ("Australia/Lord_Howe", "2025-04-05T15:15", "2025-04-06 01:45 +1030"),
    ("Australia/Lord_Howe", "2025-04-05T15:30", "2025-04-06 02:00"),
]


@pytest.mark.parametrize("zone, utc, shown", MOMENTS)
def test_times_are_those_of_the_time_zone(zone, utc, shown):
    ms = int(np.datetime64(utc, "ms").astype(np.int64))
    assert moment(ms, ZoneInfo(zone)) == shown
    assert moment(wall_clock(ms, ZoneInfo(zone)), UTC) == shown[:16]


@pytest.mark.parametrize("zone, currency", [("Europe/Paris", "EUR"), ("Asia/Kolkata", "INR"), ("UTC", "")])
def test_currency_and_time_zone_are_those_of_the_settings(tmp_path, zone, currency):
    "On every page, and the time zone is named once."
    chosen = {"desk.time_zone": zone, "domain.currency": currency}
    made = desk_server.make_desk(tmp_path, NOW, 200, lambda: NOW, **chosen)
    person, number, behind = Browser(made, "admin-1"), desk_server.open_numbers(made.engine)[0], f" {currency}".rstrip()
    person.post(f"case/{number}/note", note="seen")
    with made.engine.connect() as connection:
        case = queries.find_decision(connection, number)
    time, amount = moment(case["time"], ZoneInfo(zone)), f"{case['amount'] / 100:,.2f}{behind}"
    pages_of = ("queue", "queue?group=customer", "queue?status=all", f"case/{number}", "trends", "accounts", "audit")
    texts = {path: re.sub(r"<[^>]*>", "\n", person.get(path).text) for path in pages_of}
    for path, text in texts.items():
        assert text.count(f"Times are in {zone}.") == 1 and text.count(zone) <= 1 + 2 * (zone == "UTC"), path
        for found in re.findall(r"\n(-?[\d,]+\.\d\d(?: [A-Z]{3})?)\n", text):
            assert found.endswith(behind) and (behind or found[-1].isdigit()), (path, found)
    assert all(f"\n{amount}\n" in texts[path] for path in ("queue", f"case/{number}"))
    assert texts[f"case/{number}"].count(time) >= 2 and moment(NOW, ZoneInfo(zone)) in texts["audit"]
    assert (f"Amounts are in {currency}." in texts[f"case/{number}"]) == bool(currency)
    data = re.search(r'data-chart="timeline" data-value="([^"]+)"', person.get(f"case/{number}").text)
    drawn = [point for point in json.loads(data[1].replace("&#34;", '"')) if point["this"]]
    assert moment(drawn[0]["time"], UTC) == time[:16] and drawn[0]["words"] == amount
    assert (
        "Days and weeks are those of UTC." in texts["trends"]
        and f"Money saved per day{', ' * bool(currency)}{currency}" in texts["trends"]
    )
    tiles = person.get("trends/data", accept="application/json").json()["tiles"]
    assert re.fullmatch(rf"-?[\d,]+{behind}", tiles["saved"])
    made.engine.dispose()


DECEPTIVE = (
    "ann\u202e1\u2067\u200b\u00a0b \u0430x"  # directions, nothing, a space that is none, Cyrillic in a Latin word
)


def test_text_that_deceives_a_reader_is_marked_on_every_page(fresh):
    "Whatever brings it: event, reason, note, account, colleague, filter."
    one, other = desk_server.open_numbers(fresh.engine)[:2]
    names = ("order_id", "customer_id", "email", "ip_addr", "device", "location", f"field {DECEPTIVE}")
    body = json.dumps(dict.fromkeys(names, DECEPTIVE) | {"order_amount": 1.0})
    reasons = [{"feature": "email", "value": 1.0, "contribution": 1.0, "words": DECEPTIVE}]
    person = Browser(fresh, "admin-1")
    with writing(fresh.engine) as connection:
        change = sa.update(decisions).where(decisions.c.id.in_([one, other]))
        connection.execute(change.values(order_id=DECEPTIVE, customer=DECEPTIVE, body=body, reasons=reasons))
        for number, changes in ((one, {}), (other, {"status": "flagged", "closed": NOW, "closed_by": DECEPTIVE})):
            change = sa.update(cases).where(cases.c.decision_id == number)
            connection.execute(change.values(customer=DECEPTIVE, note=DECEPTIVE, **changes))
        connection.execute(sa.insert(notes).values(decision_id=one, at=NOW, by=DECEPTIVE, note=DECEPTIVE))
        record(connection, DECEPTIVE, DECEPTIVE, DECEPTIVE, {"note": DECEPTIVE}, NOW)
    paths = [f"case/{one}", f"case/{other}", f"case/{other}/state", f"case/{one}?done={other}", "queue?least=1&most=1"]
    paths += [f"queue?{status}&least=1&most=900" for status in ("status=flagged", "status=all", "group=customer")]
    paths += [f"queue?find={quote(DECEPTIVE)}", f"pulse?newest=0&shown={other}", "accounts", "audit", "nowhere"]
    marks = 0
    for path in paths:
        text = person.get(path).text
        shown = re.sub(r"<(?:input|textarea)\b[^>]*>", "", text)  # what is typed stays as it was typed
        assert not set("\u202e\u2067\u200b\u00a0") & set(shown), (path, shown[:500])
        assert "\\u202e" not in shown, f"a chart of {path} would show it"
        marks += "U+202E right-to-left override" in text and "cyrillic small letter a" in text
    assert marks >= 8


def test_a_case_shows_all_that_is_known(desk):
    person = Browser(desk, "viewer-1")
    with desk.engine.connect() as connection:
        entities = desk.settings.columns.entities
        number = next(
            n
            for n in desk_server.open_numbers(desk.engine)
            if queries.linked_decisions(connection, queries.find_decision(connection, n), entities)
        )
        case = queries.find_decision(connection, number)
        other = queries.linked_decisions(connection, case, entities).popitem()[1][0][0]
    text = person.get(f"case/{number}").text
    for words in (
        case["order_id"],
        case["reasons"][0]["words"].split("'")[0],
        "Linked events",
        other["order_id"],
        "Similar decided cases",
        'data-chart="graph"',
        "analysts decide",
    ):
        assert words in text, words
    assert "Clear <kbd>" not in text and f"/case/{number}/state" in text
    graph = json.loads(
        re.search(r'data-chart="graph" data-value="([^"]+)"', text)[1]
        .replace("&#34;", '"')
        .replace("&amp;", "&")
        .replace("&#39;", "'")
    )
    assert graph["name"] == case["order_id"] and graph["groups"]
    passed = person.get(f"case/{desk_server.open_numbers(desk.engine)[0] + 10_000}")
    assert passed.status_code == 404 and "was removed" in passed.text
    with desk.engine.connect() as connection:
        low = connection.execute(sa.select(decisions.c.id).where(decisions.c.action == "pass").limit(1)).scalar()
    assert "passed without a case" in person.get(f"case/{low}").text


@pytest.mark.parametrize("ingested, frauds", [(0, 0), (3, 0), (8, 2)])
def test_the_counts_on_a_case_agree_with_its_lists(fresh, ingested, frauds):
    "The page says how many of the counted events are stored, and how many are ingested history, with the frauds."
    person, table, entities = Browser(fresh, "viewer-1"), build_table(fresh.settings), fresh.settings.columns.entities
    with fresh.engine.connect() as connection:
        numbers = desk_server.open_numbers(fresh.engine)[:3]
        cases_of = [queries.find_decision(connection, number) for number in numbers]
        rows = {row["id"]: row for row in connection.execute(sa.select(decisions)).mappings()}
    bodies = {number: json.loads(row["body"]) for number, row in rows.items()}
    for case in cases_of:
        body, vector = bodies[case["id"]], np.full(len(table.rows), np.nan, np.float32)
        stored = {
            name: sum(bodies[n][name] == body[name] for n in bodies if n < case["id"])
            for name in ("customer_id", "ip_addr")
        }
        for name, count in stored.items():
            vector[table.names.index(f"count_lifetime_by_{name}")] = count + ingested
            vector[table.names.index(f"fraud_count_lifetime_by_{name}")] = frauds
        values = {"vector": vector.tobytes(), "feature_table": table.hash}
        with writing(fresh.engine) as connection:
            connection.execute(sa.update(decisions).where(decisions.c.id == case["id"]).values(values))
        text = person.get(f"case/{case['id']}").text
        for words, count in (("of this customer", stored["customer_id"]), ("with this IP address", stored["ip_addr"])):
            whole = count + ingested
            if not whole:
                assert f"The model knew no earlier order {words} so far." in text
                continue
            assert f"The model knew {whole} earlier order{'s' * (whole > 1)} {words} so far: " in text
            parts = [f"{count} stored here"] * bool(count) + [f"{ingested} from ingested history"] * bool(ingested)
            agreed = "stored here" if not ingested else "from ingested history" if not count else ", ".join(parts)
            assert f" so far: {agreed}" in text and f"Known as fraud by then: {frauds} of {whole}." in text
        listed = re.search(r"last (\d+) events over time", text)
        of_customer = [n for n in bodies if bodies[n]["customer_id"] == body["customer_id"]]
        assert int(listed[1] if listed else 1) == min(len(of_customer), 60)
    with fresh.engine.connect() as connection:
        other_table = dict(cases_of[0])
        assert earlier_counts(connection, table, other_table, entities) == {}, "it counts other things"


# --- queue ------------------------------------------------------------------------------------------------------------


def truth(desk, *wanted) -> list[int]:
    with desk.engine.connect() as connection:
        query = (
            sa.select(cases.c.decision_id)
            .where(cases.c.status == "open", *wanted)
            .order_by(cases.c.review_priority.desc(), cases.c.decision_id)
        )
        return list(connection.execute(query).scalars())


def all_pages(person: Browser, path: str, meddle=lambda page: None) -> list[int]:
    seen, page = [], 0
    while path:
        text = (person.part if page else person.get)(path).text
        seen, path, page = seen + numbers_in(text), following(text), page + 1
        meddle(page)
    return seen


def test_filters_find_what_a_query_finds(desk):
    person, c = Browser(desk, "viewer-1"), cases.c
    with desk.engine.connect() as connection:
        body = json.loads(
            connection.execute(sa.select(decisions.c.body).join(cases).where(c.status == "open").limit(1)).scalar()
        )
    same = lambda name: c.decision_id.in_(
        sa.select(decisions.c.id).where(decisions.c.body.contains(f'"{name}": "{body[name]}"'))
    )
    for query, wanted in (
        ("band=high", [c.band == "high"]),
        ("action=review&least=100", [c.action == "review", c.amount >= 10_000]),
        ("most=55.5", [c.amount <= 5550]),
        ("age=day", [c.opened > NOW - 86_400_000]),
        ("age=older", [c.opened <= NOW - 86_400_000]),
        (
            "band=medium&age=day&least=50&most=900",
            [c.band == "medium", c.opened > NOW - 86_400_000, c.amount >= 5000, c.amount <= 90_000],
        ),
        *[
            (f"status=open&find={body[name]}", [same(name)])
            for name in ("email", "ip_addr", "device", "customer_id", "order_id")
        ],
    ):
        found = all_pages(person, f"queue?{query}")
        assert found == truth(desk, *wanted), query
        assert str(len(found)) in re.search(r'class="count"><b>([^<]+)', person.get(f"queue?{query}").text)[1].replace(
            ",", ""
        )
    assert len(truth(desk)) > 25
    second = following(person.get("queue").text)
    assert numbers_in(person.get(second).text) == numbers_in(person.part(second).text) == truth(desk)[10:20]


def found_by(engine, wanted, limit: int = queries.FOUND) -> list[int]:
    "Ids of the decisions that a rule on their event finds, newest first."
    with engine.connect() as connection:
        rows = connection.execute(sa.select(decisions.c.id, decisions.c.body)).all()
    return sorted((number for number, body in rows if wanted(json.loads(body))), reverse=True)[:limit]


@pytest.mark.parametrize("change", [str, str.upper, str.lower, str.title])
def test_a_search_finds_events_of_every_status_whatever_the_case(fresh, change):
    """By a whole entity or the beginning of an id, on both databases.

    `str.title` writes what no customer has, and ids alone.
    """
    fresh.settings.desk.__dict__["page_size"] = 40
    person = Browser(fresh, "viewer-1")
    bodies = [json.loads(row["body"]) for row in decision_rows(fresh.engine, 3)]
    for body in bodies:
        for name in fresh.settings.columns.entities:
            text = change(body[name])
            values = {text, text.lower(), text.upper()}
            expected = found_by(fresh.engine, lambda other: other[name] in values)
            assert all_pages(person, f"queue?find={quote(text)}") == expected, text
    for text in ("o484", "o48500", "o4", "o48_", "o48%", "p"):
        expected = found_by(fresh.engine, lambda other: other["order_id"].startswith(text))
        page = person.get(f"queue?find={quote(change(text))}").text
        assert all_pages(person, f"queue?find={quote(change(text))}") == expected, text
        assert ("More events match this search" in page) == (text == "o4") and (expected or "Nothing matches" in page)


def decision_rows(engine, count: int) -> list:
    with engine.connect() as connection:
        return connection.execute(sa.select(decisions).order_by(decisions.c.id.desc()).limit(count)).mappings().all()


def found_rows(fresh, text: str, **filters) -> list:
    with fresh.engine.connect() as connection:
        context = queries.QueryContext(fresh.settings, desk_server.SECRET, NOW)
        return queries.queue_page(connection, context, queries.Filters(find=text, **filters), limit=1000)[0]


def test_what_is_searched_for_is_filtered_too(fresh):
    "Band, action, amount and age apply to what a search finds, and a status that a person has chosen."
    rows = {row["id"]: row for row in decision_rows(fresh.engine, 1000)}
    inside = lambda **filters: [row["decision_id"] for row in found_rows(fresh, "O484", **filters)]
    candidates = [number for number, row in rows.items() if row["order_id"].startswith("o484")]
    for filters, wanted in (
        ({}, lambda row: True),
        ({"band": "high"}, lambda row: row["band"] == "high"),
        ({"action": "pass", "least": "40"}, lambda row: row["action"] == "pass" and row["amount"] >= 4000),
        ({"most": "30"}, lambda row: row["amount"] <= 3000),
        ({"age": "week"}, lambda row: row["decided"] <= NOW - 7 * 86_400_000),
    ):
        assert inside(**filters) == [number for number in candidates if wanted(rows[number])], filters
    for status in ("open", "cleared", "flagged"):
        found = found_rows(fresh, "o484", status=status)
        assert {row["status"] for row in found} <= {status}
        assert {row["decision_id"] for row in found} == {
            row["decision_id"] for row in found_rows(fresh, "o484") if row["status"] == status
        }
    assert {row["status"] for row in found_rows(fresh, "o48")} == {"open", "cleared", "flagged", "passed"}
    newest = all_pages(Browser(fresh, "viewer-1"), "queue?status=all")
    assert newest == list(rows)[: queries.FOUND]


def test_the_status_that_applies_by_itself_changes_with_the_search(desk):
    person = Browser(desk, "viewer-1")
    chosen = lambda text: re.search(r'<option value="(\w*)" selected>(\w+)</option>', text).groups()
    assert chosen(person.get("queue").text) == ("", "open")
    assert chosen(person.part("queue?status=&find=o48").text) == ("", "all")
    assert chosen(person.part("queue?status=open&find=o48").text) == ("open", "open")
    assert chosen(person.part("queue?status=cleared&find=").text) == ("cleared", "cleared")
    assert "<hx-partial" not in person.get("queue?find=o48").text


def query_plan(connection, query) -> str:
    explain = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
    text = str(query.compile(connection, compile_kwargs={"literal_binds": True}))
    return " ".join(str(row[-1]) for row in connection.exec_driver_sql(explain + text.replace("%", "%%")))


def test_a_search_walks_through_no_table(fresh):
    "Each kind of match is read from an index, in the order and to the number that is wanted."
    with writing(fresh.engine) as connection:
        if connection.dialect.name == "postgresql":
            for way in ("seqscan", "bitmapscan"):  # better for a table this small
                connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
        context = queries.QueryContext(fresh.settings, desk_server.SECRET, NOW)
        plan = query_plan(connection, queries.matching_decisions(context, "o48"))
        assert "ix_decisions_folded_id" in plan and "ix_links_entity_key" in plan, plan
        assert not re.search(r"SCAN decisions|SCAN links|TEMP B-TREE|Seq Scan|Sort", plan), plan


def test_pages_hold_each_case_once_while_cases_come_and_go(fresh):
    person, before = Browser(fresh, "analyst-1"), desk_server.open_numbers(fresh.engine)
    gone = before[len(before) // 2]

    def meddle(page: int) -> None:
        if page == 1:
            desk_data.fill(fresh.engine, fresh.settings, desk_server.SECRET, NOW, 300, 2, first=5000, seed=8)
            with writing(fresh.engine) as connection:
                connection.execute(
                    sa.update(cases)
                    .where(cases.c.decision_id.in_([before[0], gone]))
                    .values(status="cleared", closed=NOW, closed_by="analyst-2")
                )

    fresh.settings.desk.__dict__["page_size"] = 7
    seen = all_pages(person, "queue", meddle)
    assert len(seen) == len(set(seen)) and set(before) - set(seen) <= {gone}
    with fresh.engine.connect() as connection:
        review_priority = dict(connection.execute(sa.select(cases.c.decision_id, cases.c.review_priority)).all())
    places = [(-review_priority[number], number) for number in seen]
    assert places == sorted(places) and any(number >= 5000 for number in seen)


def test_groups_stand_where_their_first_case_stands(desk):
    person = Browser(desk, "viewer-1")
    with desk.engine.connect() as connection:
        customer = dict(connection.execute(sa.select(cases.c.decision_id, cases.c.customer)).all())
    firsts = {}
    for number in truth(desk):
        firsts.setdefault(customer[number], number)
    assert all_pages(person, "queue?group=customer") == list(firsts.values())


def test_closed_cases_come_with_the_last_first(desk):
    found = all_pages(Browser(desk, "viewer-1"), "queue?status=flagged")
    with desk.engine.connect() as connection:
        wanted = (
            sa.select(cases.c.decision_id)
            .where(cases.c.status == "flagged")
            .order_by(cases.c.closed.desc(), cases.c.decision_id)
        )
        assert found == list(connection.execute(wanted).scalars()) and found


@pytest.mark.parametrize(
    "query, words",
    [
        ("band=huge", "The risk must be one of"),
        ("least=lots", "must be a number"),
        ("after=zz", "does not exist"),
        ("after=1~x", "does not exist"),
        ("after=inf~3", "does not exist"),
        ("after=1~99999999999999999999999", "does not exist"),
        ("find=" + "x" * 600, "longer than 512"),
    ],
)
def test_a_filter_that_is_not_understood_is_said(desk, query, words):
    for answer in (Browser(desk, "viewer-1").get(f"queue?{query}"), Browser(desk, "viewer-1").part(f"queue?{query}")):
        assert answer.status_code == 422 and words in answer.text


def test_empty_states(tmp_path):
    empty = desk_server.make_desk(tmp_path, NOW, 0, lambda: NOW)
    person = Browser(empty, "admin-1")
    assert (
        "Nothing is waiting" in person.get("queue").text
        and "No case matches" in person.get("queue?band=high").text
        and "Nothing is waiting" in person.get("queue?group=customer").text
    )
    assert "No events are counted" in person.get("trends").text and "Nothing here yet" in person.get("keys").text
    data = person.get("trends/data", accept="application/json").json()
    assert data["empty"] and not data["behind"] and data["tiles"]["events"] == "0" and len(data["days"]) == 30
    empty.engine.dispose()


def test_new_cases_are_counted_and_closed_ones_marked(fresh):
    person, shown = Browser(fresh, "viewer-1"), desk_server.open_numbers(fresh.engine)[:3]
    newest = int(re.search(r'name="newest" value="(\d+)"', person.get("queue").text)[1])
    pulse = lambda query="": (
        person.part(f"pulse?newest={newest}&" + "&".join(f"shown={number}" for number in shown) + query).text
    )
    assert pulse().strip() == ""
    desk_data.fill(fresh.engine, fresh.settings, desk_server.SECRET, NOW, 300, 2, first=5000, seed=8)
    with writing(fresh.engine) as connection:
        connection.execute(
            sa.update(cases)
            .where(cases.c.decision_id == shown[1])
            .values(status="flagged", closed=NOW, closed_by="analyst-2")
        )
    fresh_ones = len([number for number in truth(fresh) if number >= 5000])
    assert (
        f">{fresh_ones} new" in pulse()
        and f"#case-{shown[1]} " in pulse()
        and f"#case-{shown[0]} " not in pulse()
        and "flagged by analyst-2" in pulse()
    )
    high = len([number for number in truth(fresh, cases.c.band == "high") if number >= 5000])
    assert (f">{high} new" in pulse("&band=high")) == bool(high)


# --- decisions --------------------------------------------------------------------------------------------------------


def test_a_decision_closes_the_case_and_opens_the_next(fresh):
    person, queue = Browser(fresh, "analyst-1"), desk_server.open_numbers(fresh.engine)
    with fresh.engine.connect() as connection:
        order = queries.find_decision(connection, queue[0])["order_id"]
    answer = person.post(f"case/{queue[0]}/decision", decision="flag", note=" stolen card ", query="least=1")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/desk/case/{queue[1]}?least=1&done={queue[0]}")
    assert fresh.log.changes == [
        LabelAssertion(order, True, "analyst", None, "stolen card", Actor(PERSON, "analyst-1"))
    ]
    with fresh.engine.connect() as connection:
        case = queries.find_decision(connection, queue[0])
    assert (case["status"], case["closed"], case["closed_by"], case["note"]) == (
        "flagged",
        NOW,
        "analyst-1",
        "stolen card",
    )
    page = person.get(answer.headers["location"].removeprefix("/desk/")).text
    assert f"Event <b>{order}</b> flagged" in page and 'data-key="u"' in page
    fresh.log.write()
    rows = Browser(fresh, "admin-1").get("audit").text
    assert "fraud asserted" in rows and f"decision {queue[0]}" in rows and order not in rows and "stolen" not in rows
    assert f'<a href="/desk/case/{queue[0]}">decision {queue[0]}</a>' in rows and "position: 10001" in rows
    assert verify_audit(fresh.engine)[0] > 0


def case_of(fresh, number: int) -> tuple:
    with fresh.engine.connect() as connection:
        case = queries.find_decision(connection, number)
    return case["status"], case["closed_by"], case["note"]


def label_rows(fresh, number: int) -> list[tuple]:
    with fresh.engine.connect() as connection:
        return [
            (row["kind"], row["asserted"], row["label"], row["by"]) for row in queries.label_entries(connection, number)
        ]


@pytest.mark.parametrize("written", [True, False])
def test_undo_takes_the_assertion_back_and_opens_the_case_again(fresh, written):
    "Whether the decision writer is up to date or behind: the label is unresolved again, and so are the sums."
    person, number = Browser(fresh, "analyst-1"), desk_server.open_numbers(fresh.engine)[0]
    sums = lambda: sorted(
        fresh.engine.connect()
        .execute(sa.select(days.c.day, days.c.band, days.c.action, days.c.frauds, days.c.saved))
        .all()
    )
    before = sums()
    person.post(f"case/{number}/decision", decision="flag")
    if written:
        fresh.log.write()
    answer = person.post(f"case/{number}/undo")
    assert answer.headers["location"] == f"/desk/case/{number}?" and fresh.log.changes[1] == Retraction(
        fresh.log.changes[0].order, 10_001, "", Actor(PERSON, "analyst-1")
    )
    assert number in desk_server.open_numbers(fresh.engine)
    fresh.log.write()
    assert (
        number in desk_server.open_numbers(fresh.engine)
        and label_rows(fresh, number) == [("assert", 1, 1, "analyst-1"), ("retract", 1, -1, "analyst-1")]
        and sums() == before
    )
    with fresh.engine.connect() as connection:
        assert [
            row["label"]
            for row in queries.customer_history(connection, queries.find_decision(connection, number)["customer"])
            if row["id"] == number
        ] == [None]
    text = person.get(f"case/{number}").text
    assert text.index("fraud</span> <b>analyst") < text.index("retracted</span>") < text.index("counts as unresolved")
    again = person.post(f"case/{number}/undo")
    assert again.status_code == 409 and "open again already" in again.text and len(fresh.log.changes) == 2
    person.post(
        f"case/{number}/decision", decision="clear", note="undone: it was all right"
    )  # what people type is text
    fresh.log.write()
    assert case_of(fresh, number) == ("cleared", "analyst-1", "undone: it was all right")
    assert [row["what"] for row in list_audit(fresh.engine) if row["who"] == "analyst-1"][1:] == [
        "fraud asserted",
        "assertion retracted",
        "legitimate asserted",
    ] and verify_audit(fresh.engine)


def test_undo_gives_back_what_others_assert(fresh):
    person, number = Browser(fresh, "analyst-1"), desk_server.open_numbers(fresh.engine)[0]
    with fresh.engine.connect() as connection:
        order = queries.find_decision(connection, number)["order_id"]
    asyncio.run(fresh.log(LabelAssertion(order, True, "customer", None, "", Actor(KEY, "shop"))))
    fresh.log.write()
    person.post(f"case/{number}/decision", decision="clear")
    person.post(f"case/{number}/undo")
    fresh.log.write()
    assert case_of(fresh, number) == ("open", None, "") and label_rows(fresh, number)[-1] == (
        "retract",
        0,
        1,
        "analyst-1",
    )


def test_what_a_bank_asserts_is_not_taken_back_at_the_desk(fresh):
    "A chargeback that comes while analysts decide is what counts, and a key is not a person of the same name."
    person, number = Browser(fresh, "analyst-1"), desk_server.open_numbers(fresh.engine)[0]
    with fresh.engine.connect() as connection:
        order = queries.find_decision(connection, number)["order_id"]
    asyncio.run(
        fresh.log(LabelAssertion(order, True, "chargeback", None, "", Actor(KEY, "analyst-1")))
    )  # the writer has not read it yet
    person.post(f"case/{number}/decision", decision="clear", note="mine")
    assert case_of(fresh, number) == ("flagged", "", "")
    assert "by chargeback" in person.get(f"case/{number}").text
    fresh.log.write()
    assert (
        case_of(fresh, number) == ("flagged", "key analyst-1", "") and "/undo" not in person.get(f"case/{number}").text
    )
    refused = person.post(f"case/{number}/undo")
    assert refused.status_code == 422 and "closed by chargeback" in refused.text and len(fresh.log.changes) == 2


@pytest.mark.parametrize(
    "cut", ["before the log", "the log does not answer", "after the log", "in the row", "at the commit"]
)
@pytest.mark.parametrize("deed", ["decision", "undo"])
def test_wherever_a_decision_is_cut_there_is_nothing_or_all_of_it(fresh, monkeypatch, cut, deed):
    "Log, row and audit after a failure at each point: none of it, or all once the decision writer has read the log."
    person, number = Browser(fresh, "analyst-1"), desk_server.open_numbers(fresh.engine)[0]
    if deed == "undo":
        person.post(f"case/{number}/decision", decision="flag")
    before, count = case_of(fresh, number), len(fresh.log.changes)
    broken = sa.exc.OperationalError("", {}, Exception("the database is gone"))

    def fail(*_, **__):
        raise broken

    real = type(fresh.log).__call__

    async def unheard(log, change):
        await real(log, change)
        raise TimeoutError("no answer")

    with monkeypatch.context() as cutting:
        if cut == "before the log":
            cutting.setattr(case_decisions, "locked_case", fail)
        if cut == "the log does not answer":
            cutting.setattr(type(fresh.log), "__call__", unheard)
        if cut == "after the log":
            cutting.setattr(case_decisions, "case_after", fail)
        if cut == "in the row":
            cutting.setattr(case_decisions, "update_case", fail)
        if cut == "at the commit":
            cutting.setattr(case_decisions, "writing", desk_server.uncommitted(broken))
        answer = person.post(f"case/{number}/{deed}", **({"decision": "flag"} if deed == "decision" else {}))
    assert answer.status_code == 503 and case_of(fresh, number) == before
    assert ("in the log" in answer.text) == (cut in ("after the log", "in the row", "at the commit")) and (
        "did not confirm" in answer.text
    ) == (cut == "the log does not answer")
    assert len(fresh.log.changes) == count + (cut != "before the log")
    fresh.log.write()
    done = {"decision": ("flagged", "analyst-1", ""), "undo": ("open", None, "")}[deed]
    assert case_of(fresh, number) == (before if cut == "before the log" else done) and len(
        label_rows(fresh, number)
    ) == len(fresh.log.changes)
    assert len([row for row in list_audit(fresh.engine) if row["about"] == f"decision {number}"]) == len(
        fresh.log.changes
    ) and verify_audit(fresh.engine)


@pytest.mark.parametrize("text", ["nul \0", "bell \a", "escape \x1b[31m", "half of a pair \ud800", "x" * 2001])
def test_text_that_a_store_or_page_does_not_take_is_refused_at_the_door(fresh, text):
    person, number = Browser(fresh, "analyst-1"), desk_server.open_numbers(fresh.engine)[0]
    for path, data in (
        (f"case/{number}/decision", {"decision": "flag", "note": text}),
        ("login", {"name": text, "password": text}),
    ):
        answer = person.post(path, **{name: value.encode("utf-8", "surrogatepass") for name, value in data.items()})
        assert answer.status_code in (401, 422), (path, answer.status_code)
    if "\ud800" not in text:
        assert person.get(f"queue?find={quote(text)}").status_code == 422
    assert fresh.log.changes == [] and number in desk_server.open_numbers(fresh.engine)


def test_two_people_on_one_case(fresh):
    first, second, number = (
        Browser(fresh, "analyst-1"),
        Browser(fresh, "analyst-2"),
        desk_server.open_numbers(fresh.engine)[0],
    )
    assert first.part(f"case/{number}/state").status_code == 204
    second.post(f"case/{number}/decision", decision="clear", note="known customer")
    state = first.part(f"case/{number}/state").text
    assert "Cleared by analyst-2" in state and "known customer" in state
    late = first.post(f"case/{number}/decision", decision="flag")
    assert late.status_code == 409 and "cleared by analyst-2 meanwhile" in late.text and len(fresh.log.changes) == 1
    other = desk_server.open_numbers(fresh.engine)[0]
    answers = first.ask(
        *[
            ("POST", f"case/{other}/decision", {"csrf": first.csrf, "decision": word})
            for word in ("clear", "flag", "clear", "flag")
        ]
    )
    assert sorted(answer.status_code for answer in answers) == [303, 409, 409, 409] and len(fresh.log.changes) == 2


def note_in(answer: httpx.Response) -> str:
    "The text that an answer shows in a field or carries along."
    found = re.search(r"<textarea[^>]*>([^<]*)</textarea>", answer.text)
    hidden = re.search(r'name="note" value="([^"]*)"', answer.text)
    return (found and found[1]) or (hidden and hidden[1]) or ""


MINE = "the bank called:\nsame card, other name"
LONG_NOTE = MINE + "x" * 2_000


@pytest.mark.parametrize("deed", ["decision", "note"])
@pytest.mark.parametrize(
    "how", ["session over", "old page", "colleague", "gone", "log down", "too long", "wrong filters", "database down"]
)
def test_a_note_is_never_lost(fresh, how, deed):
    "Whatever rejects the request that brings a note, the answer has the note."
    person, number = Browser(fresh, "analyst-1"), desk_server.open_numbers(fresh.engine)[0]
    text, data, status = MINE, {"decision": "flag", "query": "least=1"}, None
    if how == "session over":
        person.cookies, status = httpx.Cookies(), 401
    elif how == "old page":
        person.csrf, status = "guess", 403
    elif how == "colleague":
        Browser(fresh, "analyst-2").post(f"case/{number}/decision", decision="clear")
        status = {"decision": 409, "note": 303}[deed]
    elif how == "gone":
        number, status = 999_999, 404
    elif how == "log down":
        fresh.log.down, status = True, {"decision": 503, "note": 303}[deed]
    elif how == "too long":
        text, status = LONG_NOTE, 422
    elif how == "wrong filters":
        data["query"], status = "band=huge", 422
    else:
        with fresh.engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE decisions RENAME TO lost"))
        status = 503
    answer = person.post(f"case/{number}/{deed}", note=text, **data)
    assert answer.status_code == status, (answer.status_code, answer.text)
    if status == 303:
        answer = person.get(f"case/{number}")
        assert MINE in answer.text
    else:
        assert note_in(answer).replace("\r\n", "\n") == text
    if how == "session over":
        fields = dict(re.findall(r'name="(case|query|note)" value="([^"]*)"', answer.text))
        again = person.post("login", name="analyst-2", password="wrong", **fields)
        assert again.status_code == 401 and note_in(again) == text
        back = person.post("login", name="analyst-2", password=desk_server.PASSWORD, **fields)
        assert back.status_code == 200 and note_in(back) == text and f"/case/{number}/decision" in back.text
        assert 'value="least=1"' in back.text and person.get("queue").status_code == 200
    assert fresh.log.changes == [] or how == "colleague"


def test_a_session_that_is_over_leads_back_to_the_case(fresh):
    number = desk_server.open_numbers(fresh.engine)[0]
    for path, expected in ((f"case/{number}?band=high", f"case/{number}?band=high"), ("trends", "queue")):
        person = Browser(fresh)
        address = person.get(path).headers["location"].removeprefix("/desk/")
        fields = dict(re.findall(r'name="(case|query|note)" value="([^"]*)"', person.get(address).text))
        answer = person.post("login", name="viewer-1", password=desk_server.PASSWORD, **fields)
        assert answer.status_code == 303 and answer.headers["location"] == f"/desk/{expected}"


def test_notes_stand_on_open_closed_and_passed_events_and_are_no_labels(fresh):
    person, number = Browser(fresh, "analyst-1"), desk_server.open_numbers(fresh.engine)[0]
    with fresh.engine.connect() as connection:
        low = connection.execute(sa.select(decisions.c.id).where(decisions.c.action == "pass").limit(1)).scalar()
        closed = connection.execute(sa.select(cases.c.decision_id).where(cases.c.status != "open").limit(1)).scalar()
    for one in (number, low, closed):
        before = case_of(fresh, one)
        answer = person.post(f"case/{one}/note", note=f" seen {one} ", query="least=1")
        assert answer.headers["location"] == f"/desk/case/{one}?least=1" and case_of(fresh, one) == before
        assert f"<blockquote>seen {one}</blockquote>" in person.get(f"case/{one}").text
    assert person.post(f"case/{number}/note", note="  ").status_code == 422
    assert Browser(fresh, "viewer-1").post(f"case/{number}/note", note="mine").status_code == 403
    foreign = person.ask(("POST", f"case/{number}/note", {"note": "planted"}), **{"sec-fetch-site": "cross-site"})[0]
    assert foreign.status_code == 403 and "planted" not in foreign.text
    rows = list_audit(fresh.engine)
    assert [row["what"] for row in rows if row["what"] == "note added"] == ["note added"] * 3
    assert "seen" not in str(rows) and fresh.log.changes == []


def passed_number(fresh) -> int:
    "An event that passed and has no label."
    with fresh.engine.connect() as connection:
        wanted = sa.select(decisions.c.id).where(decisions.c.action == "pass").order_by(decisions.c.id.desc())
        return next(n for n in connection.execute(wanted).scalars() if not queries.label_entries(connection, n))


@pytest.mark.parametrize("written", [True, False])
def test_an_event_that_passed_can_be_flagged_once_and_taken_back(fresh, written):
    "Whether the decision writer is up to date or behind: case, label and audit agree afterwards."
    person, number = Browser(fresh, "analyst-1"), passed_number(fresh)
    assert "Flag as fraud" not in Browser(fresh, "viewer-1").get(f"case/{number}").text
    page = person.get(f"case/{number}").text
    assert "Flag as fraud" in page and "Clear <kbd>" not in page
    for path, data in (("decision", {"decision": "clear"}), ("undo", {})):
        answer = person.post(f"case/{number}/{path}", **data)
        assert answer.status_code == 409 and "Nothing was recorded" in answer.text
    answer = person.post(f"case/{number}/decision", decision="flag", note="the bank called", query="find=o48")
    assert answer.headers["location"] == f"/desk/case/{number}?find=o48"
    write = fresh.log.write if written else (lambda: None)
    write()
    assert case_of(fresh, number) == ("flagged", "analyst-1", "the bank called")
    assert "the bank called" in person.get(f"case/{number}").text
    again = Browser(fresh, "analyst-2").post(f"case/{number}/decision", decision="flag")
    assert again.status_code == 409 and "flagged by analyst-1 meanwhile" in again.text and len(fresh.log.changes) == 1
    assert number in all_pages(person, "queue?status=flagged")
    person.post(f"case/{number}/undo")
    write()
    assert case_of(fresh, number)[0] == "passed" and number not in desk_server.open_numbers(fresh.engine)
    assert person.part(f"case/{number}/state").status_code == 204
    person.post(f"case/{number}/decision", decision="flag")
    fresh.log.write()
    assert case_of(fresh, number) == ("flagged", "analyst-1", "")
    assert [row[2] for row in label_rows(fresh, number)] == [1, -1, 1] and verify_audit(fresh.engine)


def test_people_who_flag_one_passed_event_at_once_flag_it_once(fresh):
    person, number = Browser(fresh, "analyst-1"), passed_number(fresh)
    flag = ("POST", f"case/{number}/decision", {"csrf": person.csrf, "decision": "flag"})
    answers = person.ask(*[flag] * 4)
    assert sorted(answer.status_code for answer in answers) == [303, 409, 409, 409] and len(fresh.log.changes) == 1


OUTRANKED = [("passed", True), ("passed", False), ("open", False)]  # status, whether the writer has the chargeback


@pytest.mark.parametrize("status, written", OUTRANKED)
@pytest.mark.parametrize("fraud", [True, False])
def test_people_who_flag_an_event_that_a_chargeback_decided_flag_it_once(fresh, status, written, fraud):
    "The chargeback outranks both flags and closes the case, whether the decision writer has read it or not."
    number = passed_number(fresh) if status == "passed" else desk_server.open_numbers(fresh.engine)[0]
    with fresh.engine.connect() as connection:
        order = queries.find_decision(connection, number)["order_id"]
    asyncio.run(fresh.log(LabelAssertion(order, fraud, "chargeback", None, "", Actor(KEY, "bank"))))
    if written:
        fresh.log.write()
    people = [Browser(fresh, f"analyst-{one}") for one in (1, 2)]
    assert all("Flag as fraud" in person.get(f"case/{number}").text for person in people)
    flag = lambda person: person.post(f"case/{number}/decision", decision="flag", note=MINE)
    with ThreadPoolExecutor(2) as at_once:
        answers = sorted(at_once.map(flag, people), key=lambda answer: answer.status_code)
    assert [answer.status_code for answer in answers] == [303, 409] and len(fresh.log.changes) == 2
    assert note_in(answers[1]).replace("\r\n", "\n") == MINE and "meanwhile" in answers[1].text
    expected = "flagged" if fraud else "cleared"
    for write in (lambda: None, fresh.log.write):
        write()
        assert case_of(fresh, number)[0] == expected
        assert flag(people[0]).status_code == 409
    assert case_of(fresh, number)[1] == str(Actor(KEY, "bank")) and len(fresh.log.changes) == 2


def test_an_assertion_is_taken_back_once_where_a_chargeback_decided(fresh):
    "As above, for undo: afterwards the chargeback closes the case, and there is nothing to undo."
    person, number = Browser(fresh, "analyst-1"), desk_server.open_numbers(fresh.engine)[0]
    person.post(f"case/{number}/decision", decision="flag")
    asyncio.run(
        fresh.log(LabelAssertion(fresh.log.changes[0].order, False, "chargeback", None, "", Actor(KEY, "bank")))
    )
    undo = ("POST", f"case/{number}/undo", {"csrf": person.csrf})
    assert sorted(answer.status_code for answer in person.ask(undo, undo, undo)) == [303, 422, 422]
    assert case_of(fresh, number)[0] == "cleared" and len(fresh.log.changes) == 3
    fresh.log.write()
    assert case_of(fresh, number)[:2] == ("cleared", str(Actor(KEY, "bank")))


def test_the_writer_alone_gives_a_flagged_event_its_case(fresh):
    "What the log says is enough: a database that is made anew has the same cases."
    person, number = Browser(fresh, "analyst-1"), passed_number(fresh)
    person.post(f"case/{number}/decision", decision="flag", note="seen")
    with writing(fresh.engine) as connection:
        connection.execute(sa.delete(cases).where(cases.c.decision_id == number))
    fresh.log.write()
    assert case_of(fresh, number) == ("flagged", "analyst-1", "seen")


def test_a_colleague_who_closes_the_case_leaves_the_field_alone(fresh):
    "The part of the page that is replaced when a case is closed holds no field."
    person, number = Browser(fresh, "analyst-1"), desk_server.open_numbers(fresh.engine)[0]
    page = person.get(f"case/{number}").text
    replaced = page[page.index('<div id="decision"') : page.index("</aside>")]
    assert "<textarea" not in replaced and "<textarea" in page


def test_decisions_that_wait_for_each_other_leave_a_thread_to_the_log(fresh, monkeypatch):
    real = desk_server.Log.__call__

    async def slowly(log, change):
        await asyncio.to_thread(lambda: None)  # as when an order is looked up in the batch log
        return await real(log, change)

    monkeypatch.setattr(desk_server.Log, "__call__", slowly)
    monkeypatch.setattr(case_decisions, "SEND_TIMEOUT_S", 2.0)
    person, numbers = Browser(fresh, "analyst-1"), desk_server.open_numbers(fresh.engine)[:6]

    async def at_once():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(3))
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(fresh.app), base_url="https://desk.example", cookies=person.cookies
        ) as client:
            return await asyncio.gather(
                *[
                    client.post(f"/desk/case/{number}/decision", data={"csrf": person.csrf, "decision": "flag"})
                    for number in numbers
                ]
            )

    assert [answer.status_code for answer in asyncio.run(at_once())] == [303] * 6 and len(fresh.log.changes) == 6


def test_a_decision_that_cannot_be_written_changes_nothing(fresh, caplog):
    person, number = Browser(fresh, "analyst-1"), desk_server.open_numbers(fresh.engine)[0]
    fresh.log.down = True
    answer = person.post(f"case/{number}/decision", decision="flag", note="my own words")
    assert answer.status_code == 503 and "did not confirm" in answer.text and "my own words</textarea>" in answer.text
    assert number in desk_server.open_numbers(fresh.engine) and verify_audit(fresh.engine)
    assert "my own words" not in caplog.text
    for wrong in ({"decision": "burn"}, {}, {"decision": "flag", "note": "x" * 3000}):
        assert person.post(f"case/{number}/decision", **wrong).status_code == 422
    fresh.log.down = False
    assert person.post(f"case/{number}/decision", decision="flag").status_code == 303
    assert (
        person.post("case/999999/decision", decision="flag").status_code
        == person.post("case/999999/undo").status_code
        == 404
    )


def test_a_database_that_fails_is_said_in_a_sentence(fresh):
    person = Browser(fresh, "viewer-1")
    with fresh.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE cases RENAME TO gone"))
    for answer in (person.get("queue"), person.part("queue"), person.get("trends/data", accept="application/json")):
        assert (
            answer.status_code == 503
            and "database does not answer" in answer.text
            and "gone" not in answer.text
            and "SELECT" not in answer.text
        )


# --- trends -----------------------------------------------------------------------------------------------------------


def test_trends_add_up(desk):
    data = Browser(desk, "viewer-1").get("trends/data?span=90", accept="application/json").json()
    with desk.engine.connect() as connection:
        counted = dict(
            connection.execute(sa.select(decisions.c.band, sa.func.count()).group_by(decisions.c.band)).all()
        )
        waiting = connection.execute(
            sa.select(sa.func.count()).select_from(cases).where(cases.c.status == "open")
        ).scalar()
    assert {band: sum(values) for band, values in data["volume"].items()} == counted and sum(data["scores"]) == sum(
        counted.values()
    ) == 1500
    assert (
        sum(count for _, count in data["ages"]) == waiting
        and data["tiles"]["waiting"] == str(waiting)
        and len(data["days"]) == 90
    )
    assert any(rate for rate in data["rates"]["medium"]) and not data["behind"]


def test_what_if_follows_threshold_and_capacity(desk):
    person = Browser(desk, "viewer-1")

    def asked(**query) -> dict[str, float]:
        text = person.part(
            "trends/what-if?" + str(httpx.QueryParams({"span": 90, "step": 5, "capacity": 1000, "an_hour": 40} | query))
        ).text
        return {
            name: float(value.split()[0].replace(",", ""))
            for name, value in re.findall(r'data-count="(\w+)">([^<]+)', text)
        }

    chosen = [asked(step=step)["chosen"] for step in range(0, 32, 6)]
    assert chosen == sorted(chosen, reverse=True) and chosen[0] > chosen[-1] and asked(step=0)["chosen"] <= 1500 / 44
    assert (
        asked(step=0, capacity=2)["reviewed"] == 2.0 and asked(step=0, capacity=2)["frauds"] <= asked(step=0)["frauds"]
    )
    assert asked(an_hour=4000)["saved"] < asked(an_hour=0)["saved"] and asked(capacity=0)["reviewed"] == 0
    for wrong in ({"step": "x"}, {"step": 99}, {"capacity": -1}, {"capacity": "nan"}, {"an_hour": "1e999"}):
        answer = person.part(
            "trends/what-if?" + str(httpx.QueryParams({"step": 5, "capacity": 10, "an_hour": 40} | wrong))
        )
        assert answer.status_code == 422 and "must be numbers" in answer.text, wrong


def test_sums_follow_labels_and_are_counted_once(fresh):
    person, number = Browser(fresh, "analyst-1"), desk_server.open_numbers(fresh.engine)[0]
    sums = sa.select(*[sa.func.sum(outcomes.c[name]) for name in ("events", "known", "frauds")])
    with fresh.engine.connect() as connection:
        before = connection.execute(sums).one()
    person.post(f"case/{number}/decision", decision="flag")
    fresh.log.write()
    with fresh.engine.connect() as connection:
        assert trends.is_behind(connection)
    while trends.count_outcomes(fresh.engine, 2, 1):
        pass
    with fresh.engine.connect() as connection:
        assert connection.execute(sums).one() == (before[0], before[1] + 1, before[2] + 1) and not trends.is_behind(
            connection
        )


# --- package ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["desk", "service"])
def test_templates_and_static_files_are_installed_and_as_listed(root, part):
    static = root / "fraud_poc" / part / "static"
    listed = json.loads((static / "vendored.json").read_text())
    for name, one in listed.items():
        assert (
            hashlib.sha256((static / name).read_bytes()).hexdigest() == one["sha256"]
            and (static / one["licence_file"]).stat().st_size > 300
        )
    patterns = re.findall(r"^recursive-include (\S+) (\S+)$", (root / "MANIFEST.in").read_text(), re.M)
    packages = {Path(*name.split(".")) for name in find_packages(str(root), include=["fraud_poc*"])}
    for path in (root / "fraud_poc" / part).rglob("*"):
        if path.suffix in (".py", ".pyc") or not path.is_file():
            continue
        name = path.relative_to(root)
        assert any(name.is_relative_to(folder) and name.match(pattern) for folder, pattern in patterns) and any(
            name.is_relative_to(package) for package in packages
        ), name
