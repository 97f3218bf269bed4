"""Who is let in where: all routes of an application, listed from its own table, tried with and without the right role.

A route that asks neither for an API key nor for a session is a problem unless it is named as open, so a new one
cannot be forgotten.
"""

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import httpx
from fastapi.routing import iter_route_contexts
from sqlalchemy import Engine, insert
from starlette.routing import Mount, Route, WebSocketRoute

from fraud_poc.core.database import writing
from fraud_poc.core.events import system_clock
from fraud_poc.desk.accounts import ROLES, accounts, open_session
from fraud_poc.desk.login import CSRF_HEADER
from fraud_poc.service.keys import SCOPES, new_key, revoke_key
from support.waiting import LONG

HARMLESS = ("GET", "HEAD", "OPTIONS")


class Way(NamedTuple):
    "A route and one of its methods."

    method: str
    pattern: str  # /decisions/{id}
    route: Any

    def __str__(self) -> str:
        return f"{self.method} {self.pattern}"


def ways(app: Any, above: str = "") -> Iterator[Way]:
    "All routes of an application, those of included routers and of mounted applications too."
    app = getattr(app, "cold", app)
    if getattr(getattr(app, "router", None), "_low_priority_routes", []):
        raise TypeError(f"{app} has pages of a kind that nobody has thought of")
    for route in iter_route_contexts(app.routes):
        original = route.original_route
        if isinstance(original, Mount):
            if hasattr(original.app, "routes") or hasattr(original.app, "cold"):
                yield from ways(original.app, above + route.path)
            else:
                yield Way("GET", f"{above}{route.path}/*", route)  # of files, for example
        elif isinstance(original, Route):
            for method in sorted(route.methods):
                yield Way(method, above + re.sub(r":\w+}", "}", route.path), route)
        elif isinstance(original, WebSocketRoute):
            yield Way("WEBSOCKET", above + route.path, route)
        else:
            raise TypeError(f"a route of a kind that nobody has thought of: {original!r}")


def role_of(route: Any) -> str | None:
    "The role that a route asks for, by its dependency on a guard of desk.access."
    found, rest = [], [getattr(route, "dependant", None)]
    while rest:
        if (one := rest.pop()) is None:
            continue
        if (role := getattr(one.call, "role", None)) in ROLES:
            found.append(role)
        rest += one.dependencies
    return max(found, key=ROLES.index, default=None)


class People:
    "Callers of all kinds: what each of them sends along. Accounts and keys are made in the database."

    def __init__(self, database: Engine, cookie: str, now: Callable[[], int]):
        self.database, self.cookie, self.now = database, cookie, now
        self.keys = {scope: new_key(database, f"doors: {scope}", [scope], "tests") for scope in SCOPES}
        self.revoked = new_key(database, "doors: revoked", SCOPES, "tests")
        revoke_key(database, "doors: revoked", "tests")
        people = [(role, None) for role in ROLES] + [("disabled", 1)]
        with writing(database) as connection:
            for name, disabled in people:
                role = "admin" if disabled else name
                connection.execute(
                    insert(accounts).values(
                        name=f"doors-{name}", password="none", role=role, created=1, disabled=disabled
                    )
                )

    def session(self, name: str, lasts: int = 60_000, csrf: bool = True) -> dict[str, str]:
        "Headers of a new session, so that one that is ended by a route is not missed by the next."
        with writing(self.database) as connection:
            token, secret = open_session(connection, f"doors-{name}", lasts, self.now())
        return {"cookie": f"{self.cookie}={token}"} | ({CSRF_HEADER: secret} if csrf else {})


def door_problems(
    app: Any,  # an ASGI application: FastAPI, or one with its FastAPI in `cold`
    database: Engine,  # of accounts and keys
    open_routes: Iterable[
        str
    ],  # patterns that anybody may ask for: "/healthz", or "POST /desk/login" for one method only
    refresh: Callable[[], None] = lambda: None,  # makes the application read the keys again
    for_viewers: Iterable[
        str
    ] = (),  # ways that change something, and that a viewer may take all the same: "POST /desk/logout"
    endless: Iterable[str] = (),  # ways whose answer does not end: those who may take them are not tried
    examples: dict[str, str] | None = None,  # for the parts of paths in braces; others are 1
    cookie: str = "__Secure-fraud_poc",
    now: Callable[[], int] = system_clock,  # the clock of the desk
) -> list[str]:
    "What is wrong with who is let in, in sentences; empty when all is well."
    people, found = People(database, cookie, now), list(ways(app))
    refresh()
    missing = sorted({name for name in open_routes if not any(name in (str(way), way.pattern) for way in found)})
    problems = [f"{name} is named as open, and there is no such route" for name in missing]
    closed = [way for way in found if not {str(way), way.pattern} & set(open_routes)]

    async def look() -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="https://doors.example"
        ) as client:
            for way in closed:
                problems.extend(
                    await way_problems(
                        client, way, people, str(way) in for_viewers, str(way) in endless, examples or {}
                    )
                )

    asyncio.run(look())
    return problems


async def way_problems(
    client: httpx.AsyncClient, way: Way, people: People, for_viewers: bool, endless: bool, examples: dict[str, str]
) -> list[str]:
    "What is wrong with one route."
    if way.method == "WEBSOCKET":
        return [f"{way} is neither open nor known to ask who is there"]
    path = re.sub(r"{(\w+)}", lambda match: examples.get(match[1], "1"), way.pattern).replace("*", "x")

    async def status(headers: dict[str, str]) -> int:
        async with asyncio.timeout(LONG):
            return (
                await client.request(
                    way.method, path, headers=headers, content=b"" if way.method in HARMLESS else b"{}"
                )
            ).status_code

    anonymous, role = await status({"content-type": "application/json"}), role_of(way.route)
    if anonymous not in (401, 303):
        return [f"{way} answers {anonymous} to anybody: guard it, or name it as open"]
    if role is None:
        return await key_problems(way, status, people, endless)
    return await role_problems(way, status, people, role, for_viewers, endless)


async def key_problems(way: Way, status: Callable, people: People, endless: bool) -> list[str]:
    "What is wrong with a route for programs: one scope lets in, no other does."
    problems, json = [], {"content-type": "application/json"}
    for who, key in {"an unknown key": "fp_unknown", "a revoked key": people.revoked}.items():
        if (found := await status(json | {"x-api-key": key})) != 401:
            problems.append(f"{way} answers {found} to {who}")
    if (found := await status(json | people.session("admin"))) != 401:
        problems.append(f"{way} answers {found} to a session without a key")
    if endless:
        return problems
    found = {scope: await status(json | {"x-api-key": key}) for scope, key in people.keys.items()}
    let_in = [scope for scope, code in found.items() if code != 403]
    if len(let_in) != 1 or found[let_in[0]] == 401:
        problems.append(f"{way} must let in one scope, and answers {found}")
    return problems


async def role_problems(
    way: Way, status: Callable, people: People, role: str, for_viewers: bool, endless: bool
) -> list[str]:
    """What is wrong with a route for people.

    Its role and those above are let in, and nothing is changed without the csrf token.
    """
    problems, changes = [], way.method not in HARMLESS
    if changes and role == "viewer" and not for_viewers:
        problems.append(f"{way} lets viewers change something")
    tried = {
        "a disabled account": people.session("disabled"),
        "a session that is over": people.session("admin", lasts=-1),
        "an unknown session": {"cookie": f"{people.cookie}=unknown"},
        "an API key": {"x-api-key": people.keys["read"]},
    }
    for who, headers in tried.items():
        if (found := await status(headers)) not in (401, 303):
            problems.append(f"{way} answers {found} to {who}")
    if changes:
        for who, headers in {
            "no csrf token": {},
            "a wrong csrf token": {CSRF_HEADER: "guess"},
            "another site": {"sec-fetch-site": "cross-site"},
        }.items():
            session = people.session("admin", csrf=who == "another site")
            if (found := await status(session | headers)) != 403:
                problems.append(f"{way} answers {found} to {who}")
    for name in ROLES:
        if ROLES.index(name) < ROLES.index(role):
            if (found := await status(people.session(name))) != 403:
                problems.append(f"{way} needs {role}, and answers {found} to {name}")
        elif not endless and (found := await status(people.session(name))) in (401, 403):
            problems.append(f"{way} needs {role}, and answers {found} to {name}")
    return problems
