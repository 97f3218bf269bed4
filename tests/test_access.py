"""People and access: accounts, logins, sessions, keys and the audit, on both databases; and who is let in where."""

import asyncio
import hashlib
import json
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
import sqlalchemy as sa
from fastapi import APIRouter, Depends, FastAPI, Form, HTTPException, Request, Response
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from support.doors import door_problems, ways
from support.scoring_worker import settings_in, small_engine
from support.waiting import LONG, line_of, until_so

from fraud_poc.core import audit as audit_module
from fraud_poc.core.audit import GENESIS_HASH, list_audit, record, verify_audit
from fraud_poc.core.database import metadata, open_database, writing
from fraud_poc.core.settings import load_settings
from fraud_poc.desk import accounts as accounts_module
from fraud_poc.desk import login as login_module
from fraud_poc.desk.accounts import (
    ATTEMPT_WINDOW_MS,
    LoginRejected,
    LoginThrottled,
    Session,
    disable,
    list_accounts,
    log_in,
    log_out,
    new_account,
    session_of,
    set_password,
    set_role,
)
from fraud_poc.desk.login import CSRF_FIELD, CSRF_HEADER, Gate
from fraud_poc.service.http import create_app
from fraud_poc.service.keys import Keys, fresh_key, list_keys, new_key, revoke_key

NOW, SENTENCE = 1_750_000_000_000, "a sentence of hers"
OPEN = ["/openapi.json", "/healthz", "/readyz"]  # of the scoring service


@pytest.fixture
def settings(tmp_path):
    return settings_in(tmp_path, **{"desk.login_attempts": 5})


@pytest.fixture
def database(settings, database_url):
    engine = open_database(settings, database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def here(settings):
    "A database of SQLite, for what does not depend on which one it is."
    engine = open_database(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def quick(monkeypatch):
    "Passwords that are hashed in no time."
    monkeypatch.setattr(accounts_module, "HASHER", accounts_module.PasswordHasher(1, 8, 1))
    accounts_module.dummy_hash.cache_clear()
    yield
    accounts_module.dummy_hash.cache_clear()


# --- accounts, logins, sessions ---------------------------------------------------------------------------------------


def test_an_account_and_its_sessions(database, settings, quick):
    new_account(database, "Ann", SENTENCE, "analyst", "tests", NOW)
    token, csrf = log_in(database, settings, "ANN ", SENTENCE, "192.0.2.1", NOW)
    assert session_of(database, token, NOW) == Session("ann", "analyst", csrf)
    assert (
        session_of(database, token, NOW + 12 * 3_600_000 - 1)
        and session_of(database, token, NOW + 12 * 3_600_000) is None
    )
    for other in (
        None,
        "",
        token[:-1],
        token + "=",
        token.swapcase(),
        hashlib.sha256(token.encode()).hexdigest(),
        "\udcff\0",
    ):
        assert session_of(database, other, NOW) is None
    second, _ = log_in(database, settings, "ann", SENTENCE, "192.0.2.1", NOW)
    assert second != token
    log_out(database, token, NOW)
    log_out(database, token, NOW)
    assert session_of(database, token, NOW) is None and session_of(database, second, NOW)
    for change in (
        lambda: set_role(database, "ann", "viewer", "tests"),
        lambda: disable(database, "ann", "tests"),
        lambda: set_password(database, "ann", SENTENCE * 2, "tests"),
    ):
        token = log_in(database, settings, "ann", SENTENCE, "192.0.2.1", NOW)[0]
        change()
        assert session_of(database, token, NOW) is None
        if list_accounts(database)[0]["disabled"]:
            with pytest.raises(LoginRejected, match="name or password is wrong"):
                log_in(database, settings, "ann", SENTENCE, "192.0.2.2", NOW)
            set_password(database, "ann", SENTENCE, "tests")
    with pytest.raises(LoginRejected):
        log_in(database, settings, "ann", SENTENCE, "192.0.2.3", NOW)
    assert [row["what"] for row in list_audit(database)][:5] == [
        "account made",
        "logged in",
        "logged in",
        "logged out",
        "logged in",
    ]
    assert verify_audit(database)[0] == len(list_audit(database))


def test_old_hashes_are_renewed_at_login(database, settings, monkeypatch):
    monkeypatch.setattr(accounts_module, "HASHER", accounts_module.PasswordHasher(1, 8, 1))
    new_account(database, "ann", SENTENCE, "viewer", "tests")
    monkeypatch.setattr(accounts_module, "HASHER", accounts_module.PasswordHasher(1, 16, 1))
    log_in(database, settings, "ann", SENTENCE, "192.0.2.1")
    with database.connect() as connection:
        assert "m=16," in connection.execute(sa.select(accounts_module.accounts.c.password)).scalar()
    log_in(database, settings, "ann", SENTENCE, "192.0.2.1")


@pytest.mark.parametrize(
    "password",
    [
        "",
        "short",
        "a" * 12,
        "aabbccddaabbccdd",
        "abcabcabcabc",
        "PASSWORD-2026!",
        "passwordpassword",
        "annabel-annab",
        "1234567890ab",
        "my qwertyuiop",
        "x" * 257,
        "fraudpoc2026!",
        "Administrator1",
    ],
)
def test_weak_passwords_are_refused(here, password):
    with pytest.raises(ValueError, match="password") as found:
        new_account(here, "annabel", password, "viewer", "tests")
    assert not password or password not in str(found.value)
    assert list_accounts(here) == []


@pytest.mark.parametrize("name", ["", " ", "a b", "-ann", "ann\0", "ann'", "é", "a" * 65, "../x", "<b>"])
def test_names_that_cannot_be(here, name):
    with pytest.raises(ValueError, match="name of an account"):
        new_account(here, name, SENTENCE, "viewer", "tests")


def test_logins_with_any_text_are_refused_and_nothing_else(database, settings, quick):
    for i, (name, password) in enumerate(
        [
            ("", ""),
            ("\0", "\0"),
            ("\udcff", "\udcff"),
            ("x" * 100_000, "x" * 100_000),
            ("' OR 1=1 --", "x"),
            ("ann", SENTENCE),
        ]
    ):
        with pytest.raises(LoginRejected, match="^name or password is wrong$"):
            log_in(database, settings, name, password, f"192.0.2.{i}", NOW)
    with pytest.raises(LoginRejected):
        log_in(database, settings, "ann", SENTENCE, "not an address:", NOW)


def test_logins_are_throttled_by_account_and_by_address(database, settings, quick):
    new_account(database, "ann", SENTENCE, "viewer", "tests", NOW)

    def tries(name, password, address, at):
        try:
            return bool(log_in(database, settings, name, password, address, at))
        except LoginThrottled as error:
            return error.wait
        except LoginRejected:
            return None

    assert [tries("ann", "guess", f"192.0.2.{i}", NOW + i * 1000) for i in range(7)] == [None] * 5 + [895, 894]
    assert (
        tries("ann", SENTENCE, "192.0.2.9", NOW + 10_000) == 890
        and tries("ANN ", SENTENCE, "192.0.2.9", NOW + ATTEMPT_WINDOW_MS - 1) == 1
    )
    assert (
        tries("ann", SENTENCE, "192.0.2.9", NOW + ATTEMPT_WINDOW_MS) is True
    )  # what was refused for its number does not count
    assert [tries(f"nobody-{i}", "guess", "198.51.100.7", NOW) for i in range(6)] == [None] * 5 + [
        900
    ]  # an address, and names that nobody has
    assert [tries("nobody", "guess", f"203.0.113.{i}", NOW) for i in range(6)] == [None] * 5 + [
        900
    ]  # a name that nobody has, as one that somebody has
    assert [tries(f"no-{i}", "guess", f"2001:db8:1:2:{i}::1", NOW) for i in range(6)] == [None] * 5 + [900] and tries(
        "no", "guess", "2001:db8:1:3::1", NOW
    ) is None
    later = NOW + 2 * ATTEMPT_WINDOW_MS
    assert [
        tries("ann", word, "192.0.2.9", later) for word in ["guess"] * 4 + [SENTENCE, SENTENCE, "guess", SENTENCE]
    ] == [None] * 4 + [True, True, None, 900]  # the address stays counted
    assert [tries("ann", "guess", f"192.0.3.{i}", later) for i in range(5)] == [None] * 4 + [900]
    with database.connect() as connection:
        kept = str(connection.execute(sa.select(accounts_module.attempts)).all())
    assert "192.0." not in kept and "ann" not in kept


def test_attempts_at_once_are_counted_all(database, settings, quick, monkeypatch):
    checked = []
    monkeypatch.setattr(accounts_module, "verify_password", lambda hash, password: bool(checked.append(1)))

    def attempt(i):
        try:
            log_in(database, settings, "ann", "guess", f"192.0.2.{i}", NOW)
        except LoginRejected as error:
            return type(error)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(attempt, range(24)))
    assert len(checked) == found.count(LoginRejected) <= 5 and found.count(LoginThrottled) == 24 - len(checked)


def test_an_unknown_account_costs_the_same(here, settings):
    new_account(here, "ann", SENTENCE, "viewer", "tests", NOW)
    new_account(here, "bob", SENTENCE, "viewer", "tests", NOW)
    disable(here, "bob", "tests", NOW)
    spent = {"ann": [], "bob": [], "nobody": [], "'": []}
    for turn in range(9):
        for name, times in spent.items():
            start = time.thread_time()  # not the clock's, which others on the machine slow down
            with pytest.raises(LoginRejected, match="^name or password is wrong$"):
                log_in(here, settings, name, "guess", f"192.0.{turn}.{len(name)}", NOW + turn * ATTEMPT_WINDOW_MS)
            times.append(time.thread_time() - start)
    middle = {name: statistics.median(times) for name, times in spent.items()}
    assert max(middle.values()) < 1.5 * min(middle.values()), middle


def test_a_password_that_was_just_changed_lets_nobody_in(here, settings, quick, monkeypatch):
    new_account(here, "ann", SENTENCE, "viewer", "tests", NOW)
    right = accounts_module.verify_password

    def slow(hash, password):
        found = right(hash, password)
        set_password(here, "ann", "another sentence", "tests")
        return found

    monkeypatch.setattr(accounts_module, "verify_password", slow)
    with pytest.raises(LoginRejected):
        log_in(here, settings, "ann", SENTENCE, "192.0.2.1", NOW)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_keys_are_made_listed_and_revoked(database):
    keys = {
        name: new_key(database, name, scopes, "tests", NOW)
        for name, scopes in (("shop", ["score"]), ("bank", ["labels", "read", "read"]))
    }
    held = Keys(database)
    assert held.admit(keys["shop"].encode(), "score") == "shop" and held.admit(keys["shop"].encode(), "read") is None
    assert held.find(keys["bank"].encode()) == ("bank", frozenset({"labels", "read"}))
    for other in (None, b"", b"\xff", keys["shop"].encode() + b" ", keys["shop"].upper().encode()):
        assert held.find(other) is None
    with pytest.raises(ValueError, match="already"):
        new_key(database, "shop", ["score"], "tests")
    revoke_key(database, "shop", "admin-1", NOW + 5)
    with pytest.raises(ValueError, match="no key 'shop' in use"):
        revoke_key(database, "shop", "tests")
    again = new_key(database, "shop", ["metrics"], "tests", NOW + 6)
    held.refresh()
    assert held.find(keys["shop"].encode()) is None and held.admit(again.encode(), "metrics") == "shop"
    assert [(key["name"], key["scopes"], key["revoked"], key["revoked_by"]) for key in list_keys(database)] == [
        ("shop", ["score"], NOW + 5, "admin-1"),
        ("bank", ["labels", "read"], None, None),
        ("shop", ["metrics"], None, None),
    ]
    assert [(row["who"], row["what"], row["about"]) for row in list_audit(database)] == [
        ("tests", "key made", "shop"),
        ("tests", "key made", "bank"),
        ("admin-1", "key revoked", "shop"),
        ("tests", "key made", "shop"),
    ]
    with database.connect() as connection:
        dump = str([connection.execute(sa.select(table)).all() for table in metadata.sorted_tables])
    assert not any(key in dump or key[3:] in dump for key in [*keys.values(), again])


def test_a_name_has_one_key_even_when_two_ask_at_once(database):
    def make(i):
        try:
            return new_key(database, "shop", ["score"], "tests")
        except ValueError:
            return None

    with ThreadPoolExecutor(6) as pool:
        made = [key for key in pool.map(make, range(6)) if key]
    assert len(made) == 1 and len(list_keys(database)) == len(list_audit(database)) == 1


def test_a_revocation_is_seen_by_other_processes(settings, tmp_path):
    key = fresh_key(settings, "shop")
    code = (
        "import json, sys, time\nfrom fraud_poc.core.settings import Settings\n"
        "from fraud_poc.service.keys import Keys\nfrom fraud_poc.core.database import open_database\n"
        "keys = Keys(open_database(Settings.model_validate(json.loads(sys.argv[1]))))\n"
        "print(keys.admit(sys.argv[2].encode(), 'score'), flush=True)\nfor _ in sys.stdin:\n    keys.refresh()\n"
        "    print('refused' if keys.admit(sys.argv[2].encode(), 'score') is None else 'admitted', flush=True)\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, settings.model_dump_json(), key],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]

    def answers() -> list[str]:
        for worker in workers:
            print("look", file=worker.stdin, flush=True)
        return [line_of(worker) for worker in workers]

    try:
        assert [line_of(worker) for worker in workers] == ["shop", "shop"] and answers() == ["admitted", "admitted"]
        fresh_key(settings, "shop")
        assert answers() == ["refused", "refused"]  # at the first look after the change; the service looks each second
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            for end in (worker.stdin, worker.stdout):
                end.close()


# --- the audit --------------------------------------------------------------------------------------------------------


def drop_triggers(engine) -> None:
    "What somebody does who owns the database."
    with writing(engine) as connection:
        if engine.dialect.name == "sqlite":
            for name in (
                connection.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            ):
                connection.execute(sa.text(f"DROP TRIGGER {name}"))
        else:
            for table in ("audit", "audit_head"):
                connection.execute(sa.text(f"ALTER TABLE {table} DISABLE TRIGGER ALL"))


def filled(engine, rows: int = 8) -> tuple[int, str]:
    with writing(engine) as connection:
        for number in range(1, rows + 1):
            record(
                connection,
                f"analyst-{number % 3}",
                "decision",
                f"decision {number}",
                {"fraud": bool(number % 2), "note": "é\0\U0001f98a"},
                NOW + number,
            )
    return verify_audit(engine)


def test_the_database_refuses_to_change_the_audit(database):
    state = filled(database)
    statements = [
        "UPDATE audit SET at = at + 1 WHERE number = 3",
        "UPDATE audit SET number = 100 WHERE number = 8",
        "DELETE FROM audit WHERE number = 8",
        "DELETE FROM audit",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET length = 3",
        "INSERT INTO audit_head SELECT 2, length, hash FROM audit_head",
    ]
    if database.dialect.name == "sqlite":
        statements += [
            "INSERT OR REPLACE INTO audit SELECT 3, at, who, what, about, detail, previous, hash FROM audit "
            "WHERE number = 4",
            "REPLACE INTO audit_head SELECT * FROM audit_head",
            "UPDATE OR REPLACE audit SET number = 2 WHERE number = 3",
        ]
    else:
        statements += ["TRUNCATE audit", "TRUNCATE audit_head"]
    for statement in statements:
        with pytest.raises(sa.exc.DatabaseError, match="the audit only grows"):
            with writing(database) as connection:
                connection.execute(sa.text(statement))
        assert verify_audit(database) == state, statement


@pytest.mark.parametrize(
    "column, value",
    [
        ("at", 5),
        ("who", "nobody"),
        ("what", "x"),
        ("about", "decision 99"),
        ("detail", '{"fraud":true}'),
        ("previous", GENESIS_HASH),
        ("hash", "f" * 64),
    ],
)
def test_any_changed_value_is_found_and_named(here, column, value):
    filled(here)
    drop_triggers(here)
    with here.connect() as connection:
        for number in range(1, 9):
            connection.execute(sa.text("SAVEPOINT one"))
            connection.execute(
                sa.update(audit_module.audit)
                .where(audit_module.audit.c.number == number)
                .values({column: value if (number, column) != (1, "previous") else "0"})
            )
            with pytest.raises(ValueError, match=rf"audit row {number} (was changed|does not follow row {number - 1})"):
                audit_module.check_audit(connection)
            connection.execute(sa.text("ROLLBACK TO one"))
        assert audit_module.check_audit(connection)[0] == 8


@pytest.fixture(scope="module")
def unprotected(root, tmp_path_factory):
    "A database without triggers, and its audit."
    engine = open_database(
        load_settings(
            root / "config" / "orders.toml", {"batch.folder": str(tmp_path_factory.mktemp("audit")), "database.url": ""}
        )
    )
    filled(engine)
    drop_triggers(engine)
    with engine.connect() as connection:
        yield (
            engine,
            [
                dict(row)
                for row in connection.execute(
                    sa.select(audit_module.audit).order_by(audit_module.audit.c.number)
                ).mappings()
            ],
        )
    engine.dispose()


@examples(max_examples=60)
@given(st.data())
def test_whatever_is_removed_inserted_or_moved_is_found(unprotected, data):
    engine, rows = unprotected
    changed = data.draw(st.lists(st.sampled_from(rows), max_size=9), label="rows")
    if data.draw(st.booleans(), label="numbered anew"):
        changed = [row | {"number": number} for number, row in enumerate(changed, 1)]
    changed = list({row["number"]: row for row in changed}.values())
    with engine.connect() as connection:
        connection.execute(sa.delete(audit_module.audit))
        if changed:
            connection.execute(sa.insert(audit_module.audit), changed)
        if sorted(changed, key=lambda row: row["number"]) == rows:
            assert audit_module.check_audit(connection) == (8, rows[-1]["hash"])
        else:
            with pytest.raises(ValueError, match=r"audit row \d+ "):
                audit_module.check_audit(connection)
        connection.rollback()


def test_what_was_noted_outside_finds_an_audit_that_was_written_anew(database):
    length, seal = filled(database)
    drop_triggers(database)
    with writing(database) as connection:
        connection.execute(sa.delete(audit_module.audit))
        connection.execute(sa.update(audit_module.audit_head).values(length=0, hash=GENESIS_HASH))
        for number in range(1, 8):
            record(connection, "nobody", "decision", f"decision {number}", {}, NOW)
    assert verify_audit(database)[0] == 7  # nothing inside of the database can tell
    with pytest.raises(ValueError, match="audit row 8 is missing: 8 rows were noted, and there are 7"):
        verify_audit(database, (length, seal))
    with writing(database) as connection:
        record(connection, "nobody", "decision", "decision 8", {}, NOW)
    with pytest.raises(ValueError, match="audit row 8 was rewritten"):
        verify_audit(database, (length, seal))
    with writing(database) as connection:
        connection.execute(sa.delete(audit_module.audit_head))
    with pytest.raises(ValueError, match="head of the audit is gone"):
        verify_audit(database)


def test_writers_at_once_keep_the_chain_whole(database, settings, database_url):
    engines = [open_database(settings, database_url) for _ in range(3)]

    def work(number: int) -> None:
        for i in range(12):
            try:
                with writing(engines[number % 3]) as connection:
                    record(connection, f"writer {number}", "decision", str(i))
                    if i % 4 == 3:
                        raise KeyError  # a change that fails takes its row with it
            except KeyError:
                pass

    checks, done = [], threading.Event()

    def check() -> None:
        while not done.is_set():
            checks.append(verify_audit(database)[0])

    watcher = threading.Thread(target=check)
    watcher.start()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    done.set()
    watcher.join()
    rows = list_audit(database, 1000)
    for engine in engines:
        engine.dispose()
    assert verify_audit(database) == (54, rows[-1]["hash"]) and checks == sorted(checks)
    for number in range(6):
        assert [row["about"] for row in rows if row["who"] == f"writer {number}"] == [
            str(i) for i in range(12) if i % 4 != 3
        ]


def test_the_hash_of_a_row_is_as_the_page_says(here):
    filled(here, 1)
    row = list_audit(here)[0]
    detail = '{\\"fraud\\":true,\\"note\\":\\"\\\\u00e9\\\\u0000\\\\ud83e\\\\udd8a\\"}'
    about = f'"about":"decision 1","at":1750000000001,"detail":"{detail}"'
    detailed = f'{{{about},"number":1,"what":"decision","who":"analyst-1"}}'
    assert json.loads(json.loads(detailed)["detail"]) == row["detail"]
    assert row["hash"] == hashlib.sha256(f"{'0' * 64}\n{detailed}".encode()).hexdigest()


# --- the doors --------------------------------------------------------------------------------------------------------


def small_desk(gate: Gate) -> FastAPI:
    "A desk with a route of each kind."
    desk, inner = FastAPI(openapi_url=None), APIRouter(dependencies=[Depends(gate.require("viewer"))])

    @desk.get("/login")
    async def form():
        return {}

    @desk.post("/login")
    async def login(request: Request, response: Response, name: str = Form(), password: str = Form()):
        try:
            gate.set_cookie(response, await gate.log_in(request, name, password))
        except LoginThrottled as error:
            raise HTTPException(429, str(error), {"Retry-After": str(error.wait)}) from None
        except LoginRejected as error:
            raise HTTPException(401, str(error)) from None

    @desk.post("/logout", dependencies=[Depends(gate.require("viewer"))])
    async def logout(request: Request, response: Response):
        await gate.log_out(request, response)

    @inner.get("/queue")
    async def queue(session: Session = Depends(gate.require("viewer"))):
        return {"csrf": session.csrf}

    @desk.post("/cases/{number}")
    async def decide(number: int, note: str = Form(""), session: Session = Depends(gate.require("analyst"))):
        return {"by": session.account, "note": note}

    @desk.get("/accounts", dependencies=[Depends(gate.require("admin"))])
    async def people():
        return {}

    desk.include_router(inner)
    return desk


@pytest.fixture
def whole(settings, here):
    "Scoring service and desk in one."
    app = create_app(settings, small_engine(settings), secret=bytes(32), database=here)
    app.mount("/desk", small_desk(Gate(settings, here)))
    return app


ALL_OPEN = [*OPEN, "GET /desk/login", "POST /desk/login"]


def doors_of(app, database, **more) -> list[str]:
    return door_problems(
        app,
        database,
        more.pop("open_routes", ALL_OPEN),
        app.state.service.keys.refresh,
        for_viewers=["POST /desk/logout"],
        **more,
    )


def test_everybody_is_refused_where_they_must_be(whole, here):
    assert doors_of(whole, here) == []
    listed = {str(way) for way in ways(whole)}
    assert {"POST /score", "GET /decisions/{id}", "POST /desk/cases/{number}", "GET /desk/queue"} <= listed
    keyed = {
        path for path, methods in whole.openapi()["paths"].items() for one in methods.values() if "security" in one
    }
    assert {"/score", "/labels", "/metrics", "/decisions/{id}"} <= keyed <= {way.pattern for way in ways(whole)}


def test_a_route_that_was_forgotten_is_found(whole, here, settings):
    whole.add_api_route("/secrets", lambda: {}, methods=["GET", "POST"])
    desk = next(route.app for route in whole.routes if getattr(route, "path", "") == "/desk")
    gate = Gate(settings, here)
    desk.add_api_route("/open", lambda: {})
    desk.add_api_route("/weak", lambda: {}, methods=["POST"], dependencies=[Depends(gate.require("viewer"))])

    async def no_token(request: Request):
        if await gate.session(request) is None:
            raise HTTPException(401)

    no_token.role = "analyst"
    desk.add_api_route("/forged", lambda: {}, methods=["POST"], dependencies=[Depends(no_token)])
    found = "\n".join(doors_of(whole, here, open_routes=[*ALL_OPEN, "/gone"]))
    for words in (
        "/gone is named as open, and there is no such route",
        "GET /secrets answers 200 to anybody",
        "POST /secrets answers 200 to anybody",
        "GET /desk/open answers 200",
        "POST /desk/weak lets viewers change",
        "POST /desk/forged answers 200 to no csrf token",
        "POST /desk/forged needs analyst, and answers 200 to viewer",
    ):
        assert words in found, found


def test_a_key_route_that_lets_in_too_many_is_found(whole, here, monkeypatch):
    monkeypatch.setattr(
        whole.state.service.keys, "admit", lambda key, scope: (whole.state.service.keys.find(key) or [None])[0]
    )
    assert any(problem.startswith("GET /model must let in one scope") for problem in doors_of(whole, here))


def browser(app, **more) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://desk.example", **more)


def test_a_person_at_the_door(whole, here, settings, quick):
    new_account(here, "ann", SENTENCE, "analyst", "tests")

    async def visit():
        async with browser(whole, headers={"accept": "text/html"}) as client:
            first = await client.get("/desk/queue")
            assert (first.status_code, first.headers["location"]) == (303, "/desk/login")
            wrong = await client.post("/desk/login", data={"name": "ann", "password": "guess"})
            unknown = await client.post("/desk/login", data={"name": "nobody", "password": "guess"})
            assert (wrong.status_code, wrong.content) == (unknown.status_code, unknown.content) == (
                401,
                b'{"detail":"name or password is wrong"}',
            ) and not client.cookies
            entered = await client.post(
                "/desk/login", data={"name": "ann", "password": SENTENCE}, headers={"origin": "https://desk.example"}
            )
            cookie = entered.headers["set-cookie"]
            assert cookie.startswith("__Secure-fraud_poc=") and all(
                f"; {word}" in cookie
                for word in ("HttpOnly", "Secure", "SameSite=strict", "Path=/desk", "Max-Age=43200")
            )
            csrf = (await client.get("/desk/queue")).json()["csrf"]
            assert (await client.post("/desk/cases/7", data={"note": "n"})).status_code == 403
            for how in (
                {"data": {"note": "n", CSRF_FIELD: csrf}},
                {"data": {"note": "n"}, "headers": {CSRF_HEADER: csrf}},
                {"files": {"note": (None, "n"), CSRF_FIELD: (None, csrf)}},
            ):
                assert (await client.post("/desk/cases/7", **how)).json() == {"by": "ann", "note": "n"}, how
            large = await client.post("/desk/cases/7", data={"note": "n" * 70_000, CSRF_FIELD: csrf})

            async def drops():
                yield b"note=n&" + f"{CSRF_FIELD}={csrf}".encode()

            endless = await client.post(
                "/desk/cases/7", content=drops(), headers={"content-type": "application/x-www-form-urlencoded"}
            )
            assert large.status_code == endless.status_code == 413
            for headers in (
                {"origin": "https://elsewhere.example"},
                {"origin": "null"},
                {"sec-fetch-site": "same-site"},
                {"sec-fetch-site": "cross-site", "origin": "https://desk.example"},
            ):
                assert (await client.post("/desk/cases/7", headers=headers | {CSRF_HEADER: csrf})).status_code == 403, (
                    headers
                )
                assert (
                    await client.post("/desk/login", data={"name": "ann", "password": SENTENCE}, headers=headers)
                ).status_code == 403, headers
            left = await client.post("/desk/logout", headers={CSRF_HEADER: csrf})
            assert (
                left.status_code == 200
                and "Max-Age=0" in left.headers["set-cookie"]
                and (await client.get("/desk/queue")).status_code == 303
            )
            codes = [(await client.post("/desk/login", data={"name": "ann", "password": "guess"})) for _ in range(5)]
            assert codes[-1].status_code == 429 and 0 < int(codes[-1].headers["retry-after"]) <= 900

    asyncio.run(visit())


@pytest.mark.parametrize(
    "method, headers, code",
    [
        ("GET", {"accept": "text/html,*/*"}, 303),
        ("HEAD", {"accept": "text/html"}, 303),
        ("POST", {"accept": "text/html"}, 401),
        ("GET", {"accept": "text/html", "hx-request": "true"}, 401),
        ("GET", {"accept": "application/json"}, 401),
        ("GET", {}, 401),
    ],
    ids=str,
)
def test_only_a_whole_page_leads_to_the_login(method, headers, code):
    "A part of a page, a form and a program are answered 401; htmx then loads the login itself."
    request = Request(
        {
            "type": "http",
            "method": method,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    answer = login_module.login_first(request, "/desk")
    assert (answer.status_code, list(answer.headers.items())) == (
        code,
        [("Location" if code == 303 else "HX-Redirect", "/desk/login")],
    )


def test_a_crowd_at_the_login_is_asked_to_come_back(whole, here, settings, monkeypatch):
    new_account(here, "ann", SENTENCE, "analyst", "tests")
    inside, gate, right = [], threading.Event(), accounts_module.verify_password

    def slow(hash, password):
        inside.append(1)
        assert gate.wait(LONG)
        return right(hash, password)

    monkeypatch.setattr(accounts_module, "verify_password", slow)

    async def visit():
        async with browser(whole) as client:
            asked = [
                asyncio.create_task(client.post("/desk/login", data={"name": f"nobody-{i}", "password": "guess"}))
                for i in range(20)
            ]
            try:
                await until_so(
                    lambda: sum(task.done() for task in asked) + len(inside) == 20,
                    "each of them is at the login or sent away",
                )
                assert (await client.get("/healthz")).status_code == 200 and len(inside) == login_module.MAX_LOGINS
            finally:
                gate.set()
            return [response.status_code for response in await asyncio.gather(*asked)]

    assert sorted(asyncio.run(visit())) == [401] * login_module.MAX_LOGINS + [429] * (20 - login_module.MAX_LOGINS)


def test_without_https_the_cookie_says_so(settings, here, quick):
    plain = settings.model_copy(update={"desk": settings.desk.model_copy(update={"secure_cookies": False})})
    app = small_desk(Gate(plain, here, path="/"))
    new_account(here, "ann", SENTENCE, "viewer", "tests")

    async def visit():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://desk.example") as client:
            cookie = (await client.post("/login", data={"name": "ann", "password": SENTENCE})).headers["set-cookie"]
            assert (
                cookie.startswith("fraud_poc=")
                and "Secure" not in cookie
                and (await client.get("/queue")).status_code == 200
            )

    asyncio.run(visit())


def test_nobody_is_at_the_login_once_all_have_gone(tmp_path):
    settings = settings_in(tmp_path)
    here = open_database(settings)
    gate = Gate(settings, here)
    request = SimpleNamespace(client=None, headers={})

    async def visit() -> None:
        for _ in range(2):
            with pytest.raises(LoginRejected):
                await gate.log_in(request, "nobody", "no password of anybody")
            assert gate.logins == 0

    asyncio.run(visit())
    here.dispose()
