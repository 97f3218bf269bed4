"""The feed sends orders and labels at its rate, and only to scorers that may be reached."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from support.waiting import LONG, ended, line_of, until, until_so

from fraud_poc.core.reading import EventReader
from fraud_poc.core.settings import load_settings
from fraud_poc.ops.feed import (
    GIVE_UP_AFTER,
    MAX_SCORERS,
    OrderFeed,
    OrderStream,
    RegisteredScorer,
    Timer,
    create_feed,
    deliver,
    feed_scorer,
    keep_registered,
    live_orders,
    register,
)
from fraud_poc.service.client import (
    Endpoint,
    ScorerConnection,
    ScorerReply,
    post_json,
    read_address,
    resolve_endpoint,
)

HOSTS = ["127.0.0.1", "localhost", "::1"]


@pytest.fixture(scope="module")
def settings(root):
    return load_settings(
        root / "config/orders.toml",
        {
            "sample.orders": 20_000,
            "sample.customers": 3_000,
            "feed.orders_per_second": 50.0,
            "feed.label_delay": "200ms",
        },
    )


class Stand(BaseHTTPRequestHandler):
    "A scorer that keeps what it gets."

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.path, body, dict(self.headers)))
        status, headers, answer = self.server.answer(self.path, body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content)), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextmanager
def scorer_at(answer=lambda path, body: (200, {}, {"action": "pass", "degraded": None}), host="127.0.0.1"):
    "A scorer on a free port."

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    server = Server((host, 0), Stand)
    server.daemon_threads, server.got, server.answer = True, [], answer
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def url_of(server, host="127.0.0.1"):
    return f"http://{f'[{host}]' if ':' in host else host}:{server.server_address[1]}"


# --- orders -----------------------------------------------------------------------------------------------------------


def test_orders_go_on_where_the_sample_ends_and_are_taken_by_the_service(settings):
    reader, last, frauds = EventReader(settings, b"x" * 32), "", 0
    for order, fraud in islice(live_orders(settings, 1, "s"), 3_000):
        event = reader.read_dict(order)
        assert event.id == order["order_id"] and order["order_date"] >= last
        last, frauds = order["order_date"], frauds + fraud
    assert last > "2025-07-15" and 0 < frauds < 300


def test_no_order_is_later_than_the_clock_and_the_stream_does_not_end(settings):
    small = settings.model_copy(update={"sample": settings.sample.model_copy(update={"orders": 300, "days": 5})})
    now = 1_736_400_000_000  # three days after the first five
    orders = [order for order, _ in islice(live_orders(small, 1, "s", clock=lambda: now), 1_500)]
    assert (
        orders[0]["order_date"] < orders[-1]["order_date"] == "2025-01-09T05:20:00.000+00:00"
        and len({order["order_id"] for order in orders}) == 1_500
    )


def test_domains_that_cannot_be_generated_are_refused(root):
    with pytest.raises(ValueError, match=r"no section \[sample\]"):
        create_feed(load_settings(root / "config/cards.toml"))
    with pytest.raises(ValueError, match="not in both"):
        create_feed(load_settings(root / "config/orders.toml", {"columns.categories": []}))


# --- addresses --------------------------------------------------------------------------------------------------------


async def resolved(url, hosts=HOSTS, answers=("127.0.0.1",)):
    asked = []

    async def resolve_host(host, port):
        asked.append(host)
        return list(answers)

    return await resolve_endpoint(url, hosts, resolve_host), asked


@pytest.mark.parametrize(
    "url, origin",
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("HTTP://LocalHost:8000/", "http://localhost:8000"),
        ("https://localhost", "https://localhost:443"),
        ("http://[::1]", "http://[::1]:80"),
        ("http://127.9.8.7:1", "http://127.9.8.7:1"),
        ("http://scorer-1.internal:80", "http://scorer-1.internal:80"),
        ("http://10.1.2.3", "http://10.1.2.3:80"),
        ("http://[fd00::1]:9", "http://[fd00::1]:9"),
    ],
)
def test_addresses_that_may_register(url, origin):
    endpoint, asked = asyncio.run(resolved(url, [*HOSTS, "Scorer-1.internal", "10.1.2.3", "FD00:0::1"], ["127.0.0.1"]))
    assert endpoint.origin == origin and (not asked) == (endpoint.addresses[0] in origin)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.1",
        "http://0",
        "http://0.0.0.0",
        "http://[::]",
        "http://0x7f000001",
        "http://0177.0.0.1",
        "http://2130706433",
        "http://127.0.0.1.nip.example",
        "http://localhost.evil.example",
        "http://localhost.",
        "http://[::ffff:127.0.0.1]",
        "http://[::ffff:7f00:1]",
        "http://[0:0:0:0:0:ffff:a00:1]",
        "http://[::1%25eth0]",
        "http://[::127.0.0.1]",
        "http://10.0.0.1",
        "http://169.254.169.254",
        "http://[fe80::1]",
        "http://user:word@127.0.0.1",
        "http://127.0.0.1@10.0.0.1",
        "http://10.0.0.1#@127.0.0.1",
        "http://127.0.0.1\\@10.0.0.1",
        "http://127.0.0.1:80:80",
        "http://127.0.0.1:0",
        "http://127.0.0.1:65536",
        "http://127.0.0.1/score",
        "http://127.0.0.1?x",
        "http://127.0.0.1//",
        "//127.0.0.1",
        "127.0.0.1:80",
        "ftp://127.0.0.1",
        "file:///etc/passwd",
        "http://",
        "http://%31",
        "http://１２７.0.0.1",
        "http://ⓛocalhost",
        "http://127.0.0.1\r\nX: y",
        "http://127.0.0.1\n",
        "http://127.0.0.1 ",
        "\thttp://127.0.0.1",
        "javascript://127.0.0.1",
    ],
)
def test_addresses_that_may_not_register(url):
    with pytest.raises(ValueError):
        read_address(url, HOSTS)


@given(
    st.text(alphabet="htps:/[]@#?.%\\ 0127x:local1e-", max_size=40)
    | st.from_regex(r"https?://[ -~]{1,20}", fullmatch=True)
)
def test_no_other_host_slips_through(text):
    "Whatever is accepted is exactly this machine or a configured name, and urllib sees the same host."
    from urllib.parse import urlsplit

    try:
        scheme, host, port = read_address(text, HOSTS)
    except ValueError:
        return
    assert urlsplit(text).hostname == host and (host in ("localhost", "::1") or host.startswith("127."))


@pytest.mark.parametrize(
    "name, answers",
    [
        ("localhost", ["10.0.0.1"]),
        ("localhost", ["127.0.0.1", "10.0.0.1"]),
        ("localhost", ["::ffff:10.0.0.1"]),
        ("scorer", ["169.254.169.254"]),
        ("scorer", ["::ffff:169.254.169.254"]),
        ("scorer", ["fe80::1%eth0"]),
        ("scorer", ["0.0.0.0"]),
        ("scorer", ["::"]),
        ("scorer", ["224.0.0.1"]),
        ("scorer", ["10.0.0.1", "169.254.0.1"]),
    ],
)
def test_names_that_lead_astray_are_refused(name, answers):
    with pytest.raises(ValueError, match="which no scorer may have"):
        asyncio.run(resolved(f"http://{name}", [*HOSTS, "scorer"], answers))


def test_names_that_are_not_configured_are_never_looked_up():
    async def resolve_host(host, port):
        raise AssertionError("asked")

    with pytest.raises(ValueError, match="nor named in feed.hosts"):
        asyncio.run(resolve_endpoint("http://evil.example", HOSTS, resolve_host))


def test_a_name_is_looked_up_once_and_the_checked_address_is_used(settings):
    """After the check the name leads elsewhere.

    Requests still go to the checked address, with the name in the Host header.
    """
    answers = iter([["127.0.0.1"]])

    async def resolve_host(host, port):
        return next(answers)

    with scorer_at() as server:
        chosen = settings.model_copy(update={"feed": settings.feed.model_copy(update={"hosts": ["scorer.invalid"]})})
        with TestClient(create_feed(chosen, resolve_host=resolve_host), base_url="http://localhost") as client:
            assert (
                client.post("/register", json={"url": f"http://scorer.invalid:{server.server_address[1]}"}).status_code
                == 200
            )
            until(lambda: len(server.got) > 5, "orders arrive")
        assert {headers["Host"] for _, _, headers in server.got} == {f"scorer.invalid:{server.server_address[1]}"}


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost:8100", True),
        ("127.0.0.1:8100", True),
        ("[::1]:8100", True),
        ("feed.internal:8100", True),
        ("LOCALHOST", True),
        ("rebound.example", False),
        ("localhost.rebound.example:8100", False),
        ("feed.internal.rebound.example", False),
        ("", False),
    ],
)
def test_the_feed_answers_under_its_own_names_only(settings, host, answered):
    "A page of a foreign name that leads to this machine can neither list nor register."
    named = settings.model_copy(update={"feed": settings.feed.model_copy(update={"url": "http://feed.internal:8100"})})
    with TestClient(create_feed(named), base_url="http://localhost") as client:
        found = [
            client.get("/registered", headers={"Host": host}),
            client.post("/register", headers={"Host": host}, json={"url": "http://10.0.0.1:1", "key": "k"}),
            client.get("/docs", headers={"Host": host}),
        ]
    assert [reply.status_code for reply in found] == ([200, 422, 200] if answered else [400] * 3)


def test_redirects_are_not_followed(settings):
    with scorer_at() as other, scorer_at(lambda path, body: (307, {"Location": url_of(other) + path}, {})) as server:
        with TestClient(create_feed(settings), base_url="http://localhost") as client:
            client.post("/register", json={"url": url_of(server), "key": "secret"})
            until(lambda: client.get("/registered").json()[0]["state"] == "dropped", "the scorer is dropped")
            assert "redirect (307), which is not followed" in client.get("/registered").json()[0]["problem"]
        assert len(server.got) == 1 and not other.got


def test_proxies_of_the_environment_are_not_asked(monkeypatch):
    with scorer_at() as server, scorer_at() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, url_of(proxy))
        endpoint = asyncio.run(resolve_endpoint(url_of(server), HOSTS))
        assert post_json(ScorerConnection(endpoint), "/score", {}, "").status == 200 and not proxy.got


def test_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with scorer_at(host="::1") as server:
        endpoint = asyncio.run(resolve_endpoint(url_of(server, "::1"), HOSTS))
        assert post_json(ScorerConnection(endpoint), "/score", {}, "").status == 200 and server.got[0][2][
            "Host"
        ] == url_of(server, "::1").removeprefix("http://")


def test_the_second_address_of_a_name_is_tried():
    with scorer_at() as server:
        endpoint = Endpoint("http", "localhost", server.server_address[1], ("::1", "127.0.0.1"))
        assert post_json(ScorerConnection(endpoint), "/score", {}, "").status == 200


def test_the_certificate_must_be_the_names(monkeypatch):
    "The name goes into the handshake, the connection to the address."
    seen = {}

    class Context:
        def wrap_socket(self, sock, server_hostname):
            seen.update(name=server_hostname, peer=sock.getpeername()[0])
            raise OSError("enough")

    monkeypatch.setattr("ssl.create_default_context", Context)
    with scorer_at() as server, pytest.raises(OSError, match="enough"):
        post_json(
            ScorerConnection(Endpoint("https", "scorer.invalid", server.server_address[1], ("127.0.0.1",))),
            "/score",
            {},
            "",
        )
    assert seen == {"name": "scorer.invalid", "peer": "127.0.0.1"}


# --- rate, pauses, patience -------------------------------------------------------------------------------------------


class QuickTimer(Timer):
    "Jumps to the next moment that is waited for."

    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time

    async def sleep(self, seconds):
        self.time += seconds
        await asyncio.sleep(0)


def played(settings, seconds, answer, takes=0.0):
    "What one scorer gets until so many seconds have gone by; an answer takes some time."
    timer, got = QuickTimer(), []
    scorer = RegisteredScorer(
        Endpoint("http", "127.0.0.1", 1, ("127.0.0.1",)), "k", OrderStream(live_orders(settings, 1, "s"))
    )

    async def send(scorer, path, body):
        got.append((round(timer.now(), 4), path, body))
        if timer.now() > seconds:
            raise asyncio.CancelledError
        timer.time += takes
        return answer(path, timer.now())

    async def run():
        with suppress(asyncio.CancelledError):
            await feed_scorer(scorer, settings, send, timer)

    asyncio.run(run())
    return scorer, got


def fed(settings, rate, delay):
    return settings.model_copy(
        update={"feed": settings.feed.model_copy(update={"orders_per_second": rate, "label_delay": delay})}
    )


def good(path, now):
    return ScorerReply(200, {"action": "pass"}, 0.0)


@pytest.mark.parametrize("rate", [0.5, 5.0, 200.0])
def test_rate_and_delay_of_labels(settings, rate):
    scorer, got = played(fed(settings, rate, "3s"), 8, good)
    orders, labels = ([row for row in got if row[1] == path] for path in ("/score", "/labels"))
    assert [at for at, *_ in orders] == pytest.approx([n / rate for n in range(len(orders))], abs=1e-3) and orders[-1][
        0
    ] > 7.99 - 1 / rate
    sent = {body["order_id"]: at for at, _, body in orders}
    assert labels and all(at - sent[body["order"]] == pytest.approx(3, abs=1e-3) for at, _, body in labels)
    assert all((body["fraud"], body["source"]) in ((True, "chargeback"), (False, "customer")) for *_, body in labels)
    assert [body["order"] for *_, body in labels] == [body["order_id"] for *_, body in orders][: len(labels)]


def test_a_slow_scorer_is_not_flooded_afterwards(settings):
    _, got = played(fed(settings, 10.0, "1h"), 20, good, takes=0.5)
    times = [at for at, *_ in got]
    assert [b - a for a, b in zip(times, times[1:])] == pytest.approx([0.5] * (len(times) - 1))


def test_pauses_double_and_retry_after_is_heeded(settings):
    _, got = played(
        fed(settings, 1.0, "1h"), 60, lambda path, now: ScorerReply(503, {}, 0.0) if now < 50 else good(path, now)
    )
    assert [at for at, *_ in got][:7] == [0, 1, 3, 7, 15, 31, 61] and len(
        {body["order_id"] for *_, body in got[:7]}
    ) == 1
    _, got = played(
        fed(settings, 1.0, "1h"), 10, lambda path, now: ScorerReply(429, {}, 5.0) if now < 1 else good(path, now)
    )
    assert [at for at, *_ in got][:2] == [0, 5]


def test_who_never_answers_is_dropped_visibly(settings):
    scorer, got = played(settings, 10_000, lambda path, now: ScorerReply(500, None, 0.0))
    assert (
        scorer.state == "dropped"
        and scorer.problem == "/score answers 500"
        and GIVE_UP_AFTER <= got[-1][0] < 2 * GIVE_UP_AFTER
        and not scorer.due
    )


@pytest.mark.parametrize(
    "status, words",
    [
        (401, "refuses the key"),
        (403, "refuses the key"),
        (302, "redirect"),
        (404, "there is no /score"),
        (405, "there is no /score"),
    ],
)
def test_what_does_not_get_better_is_dropped_at_once(settings, status, words):
    scorer, got = played(settings, 100, lambda path, now: ScorerReply(status, None, 0.0))
    assert len(got) == 1 and scorer.state == "dropped" and words in scorer.problem


def test_rejected_orders_and_labels_are_counted_and_degraded_ones_get_no_label(settings):
    scorer, got = played(
        fed(settings, 10.0, "1s"),
        5,
        lambda path, now: (
            ScorerReply(409, {}, 0.0)
            if now < 1
            else ScorerReply(404, {}, 0.0)
            if path == "/labels"
            else good(path, now)
        ),
    )
    assert (
        10 <= scorer.counts["rejected"] <= 11
        and scorer.counts["labels_rejected"] > 20
        and scorer.state == "sending"
        and not scorer.counts["labels"]
    )
    _, got = played(
        fed(settings, 10.0, "1s"),
        5,
        lambda path, now: ScorerReply(200, {"action": "pass", "degraded": "store_down"}, 0.0),
    )
    assert {path for _, path, _ in got} == {"/score"}


def test_a_broken_answer_is_an_answer_and_a_broken_feed_is_visible(settings):
    scorer, _ = played(fed(settings, 10.0, "1s"), 1, lambda path, now: ScorerReply(200, None, 0.0))
    assert 10 <= scorer.counts["orders"] <= 11

    async def run():
        async def send(scorer, path, body):
            raise KeyError("x")

        broken = RegisteredScorer(scorer.endpoint, "k", OrderStream(live_orders(settings, 1, "s")))
        with pytest.raises(KeyError):
            await feed_scorer(broken, settings, send, QuickTimer())
        return broken

    assert asyncio.run(run()).problem == "the feed failed: KeyError"


def test_delivery_goes_on_after_a_broken_connection(settings):
    tries = []

    async def send(scorer, path, body):
        tries.append(path)
        if len(tries) < 3:
            raise ConnectionRefusedError
        return ScorerReply(200, {}, 0.0)

    scorer = RegisteredScorer(Endpoint("http", "127.0.0.1", 1, ("127.0.0.1",)), "k", OrderStream(iter([])))
    assert (
        asyncio.run(deliver(scorer, "/score", {}, send, QuickTimer())).status == 200
        and len(tries) == 3
        and scorer.state == "sending"
        and scorer.since is None
    )


# --- the service ------------------------------------------------------------------------------------------------------


def test_orders_and_their_labels_reach_a_real_scorer(settings):
    with (
        scorer_at() as server,
        scorer_at() as other,
        TestClient(create_feed(settings), base_url="http://localhost") as client,
    ):
        answer = client.post("/register", json={"url": url_of(server), "key": "top-secret"})
        assert answer.status_code == 200 and answer.json()["state"] == "sending"
        until(lambda: client.get("/registered").json()[0]["labels"] >= 20, "labels arrive")
        shown = client.get("/registered")
        assert "top-secret" not in shown.text and sum(path == "/labels" for path, *_ in server.got) >= 20
        assert client.delete("/register", params={"url": url_of(server)}).json()["url"] == url_of(server)
        assert client.get("/registered").json() == []
        count = len(server.got)
        client.post("/register", json={"url": url_of(other)})
        until(lambda: len(other.got) > 10, "orders arrive at another one")
        assert len(server.got) <= count + 1, "more than what was under way"
    assert {headers["X-API-Key"] for *_, headers in server.got} == {"top-secret"}
    orders = [body["order_id"] for path, body, _ in server.got if path == "/score"]
    assert (
        len(orders) == len(set(orders))
        and [body["order"] for path, body, _ in server.got if path == "/labels"]
        == orders[: sum(path == "/labels" for path, *_ in server.got)]
    )


def test_two_scorers_have_streams_of_their_own_and_one_that_is_down_holds_up_nobody(settings):
    with (
        scorer_at() as one,
        scorer_at() as two,
        socket.socket() as closed,
        TestClient(create_feed(settings), base_url="http://localhost") as client,
    ):
        closed.bind(("127.0.0.1", 0))
        for address in (url_of(one), url_of(two), f"http://127.0.0.1:{closed.getsockname()[1]}"):
            client.post("/register", json={"url": address})
        until(lambda: len(one.got) > 10 and len(two.got) > 10, "orders arrive at both")
        ids = [{body["order_id"] for path, body, _ in server.got if path == "/score"} for server in (one, two)]
        assert not ids[0] & ids[1]
        down = client.get("/registered").json()[2]
        assert down["state"] == "waiting" and "cannot be reached" in down["problem"] and down["orders"] == 0


def test_registering_again_goes_on_and_revives(settings):
    with (
        scorer_at(lambda path, body: (200, {}, {}) if keys[-1] == "good" else (401, {}, {})) as server,
        TestClient(create_feed(settings), base_url="http://localhost") as client,
    ):
        keys = ["bad"]
        client.post("/register", json={"url": url_of(server), "key": "bad"})
        until(lambda: client.get("/registered").json()[0]["state"] == "dropped", "the scorer is dropped")
        keys.append("good")
        for _ in range(5):
            client.post("/register", json={"url": url_of(server) + "/", "key": "good"})
        until(lambda: client.get("/registered").json()[0]["orders"] > 10, "orders arrive")
        assert len(client.get("/registered").json()) == 1
    orders = [body["order_id"] for path, body, _ in server.got if path == "/score"]
    assert len(orders) == len(set(orders))


def test_refusals_of_the_routes(settings):
    async def send(scorer, path, body):
        return ScorerReply(200, {}, 0.0)

    with TestClient(create_feed(settings, send=send), base_url="http://localhost") as client:
        for body in (
            {"url": "http://evil.example", "key": "secret-word"},
            {"key": "secret-word"},
            {"url": 1},
            {"url": "http://localhost", "x": 1},
            {"url": "http://127.0.0.1", "key": "secret-word" * 99},
            [],
            "secret-word",
        ):
            answer = client.post("/register", json=body)
            assert (
                answer.status_code == 422
                and answer.json()["detail"][0].keys() == {"loc", "msg", "type"}
                and "secret-word" not in answer.text
            )
        assert (
            client.post(
                "/register", content=b'{"url": "http://127.0.0.1"}', headers={"Content-Type": "text/plain"}
            ).status_code
            == 422
        )  # what a web page could send
        assert client.delete("/register", params={"url": "http://evil.example"}).status_code == 422
        for port in range(1, MAX_SCORERS + 1):
            assert client.post("/register", json={"url": f"http://127.0.0.1:{port}"}).status_code == 200
        assert "registered already" in client.post("/register", json={"url": "http://127.0.0.1:999"}).text
        assert client.post("/register", json={"url": "http://127.0.0.1:1"}).status_code == 200


def test_the_key_is_in_no_log_and_no_repr(settings, caplog):
    caplog.set_level("DEBUG")
    with (
        scorer_at(lambda path, body: (500, {}, {})) as server,
        TestClient(create_feed(settings), base_url="http://localhost") as client,
    ):
        client.post("/register", json={"url": url_of(server), "key": "top-secret"})
        until(lambda: client.get("/registered").json()[0]["state"] == "waiting", "the scorer's failure is seen")
        assert "top-secret" not in repr(client.app.state.feed.scorers)
    assert "top-secret" not in caplog.text + str([record.__dict__ for record in caplog.records])


def test_stopping_leaves_no_task_behind(settings):
    async def run():
        async def send(scorer, path, body):
            asked.append(path)
            await asyncio.Event().wait()  # never answers

        asked = []
        feed = OrderFeed(settings, send=send)
        for port in (1, 2):
            await feed.register(f"http://127.0.0.1:{port}", "")
        await until_so(lambda: len(asked) == 2, "both are asked")
        await feed.stop()
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    assert asyncio.run(run()) == []


FEED = """
import sys
from fraud_poc.core.settings import load_settings
from fraud_poc.ops.feed import run_feed
small = {"feed.port": 0, "feed.orders_per_second": 20.0, "feed.label_delay": "200ms"}
small |= {"sample.orders": 20000, "sample.customers": 3000}
run_feed(load_settings(sys.argv[1], small), lambda address: print(address, flush=True))
"""


def test_a_process_that_a_scorer_registers_with_and_that_stops_when_told(settings, root):
    "End to end: a feed on a free port, a scorer that registers itself, orders and labels, SIGTERM."
    with (
        scorer_at() as server,
        subprocess.Popen(
            [sys.executable, "-c", FEED, str(root / "config/orders.toml")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
        ) as process,
    ):
        try:
            address = line_of(process)
            own = settings.model_copy(update={"feed": settings.feed.model_copy(update={"url": address})})
            stop = threading.Event()
            thread = threading.Thread(target=keep_registered, args=(own, url_of(server), "word", stop, 0.2))
            thread.start()
            try:
                until(lambda: sum(path == "/labels" for path, *_ in server.got) > 5, "labels arrive", process)
            finally:
                stop.set()
                thread.join()
            assert "nor named in feed.hosts" in register(own, "http://evil.example", "word")
            host, port = address.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), LONG) as endless:
                endless.sendall(b"GET /registered HTTP/1.1\r\nx: " + b"a" * own.service.max_head_bytes)
                assert endless.recv(65_536).startswith(b"HTTP/1.1 431 ")
            process.send_signal(signal.SIGTERM)
            assert ended(process) == 0
        finally:
            process.kill()
        assert "word" not in process.stderr.read()
    assert {headers["X-API-Key"] for *_, headers in server.got} == {"word"}
    assert "cannot be reached" in register(own, "http://127.0.0.1:1", "word")
