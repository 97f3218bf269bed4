"""POST /score over real sockets: the service keeps to HTTP, whatever form the request has."""

import asyncio
import json
import socket
import threading
from contextlib import contextmanager, suppress

import pytest
import uvicorn
from support.waiting import LONG, until
from test_scoring import ORDER, Service
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fraud_poc.service.connections import PIECE, Connections, LimitedProtocol


@contextmanager
def listening(service, **limits):
    "The application of a service under uvicorn, in a thread, with some limits of connections; its port."
    connections = Connections(
        service.settings.service.model_copy(update=limits), service.scoring.replies.of_error, service.scoring.metrics
    )
    service.app.state.connections = connections

    async def serve(server, port):
        watching = asyncio.create_task(connections.watch(0.05))
        await server.serve([port])
        watching.cancel()

    with socket.create_server(("127.0.0.1", 0)) as port:
        server = uvicorn.Server(
            uvicorn.Config(
                service.app,
                http=LimitedProtocol,
                ws="none",
                loop="asyncio",
                log_config=None,
                proxy_headers=False,
                lifespan="off",
            )
        )
        thread = threading.Thread(target=lambda: asyncio.run(serve(server, port)))
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive(), "the server starts")
            yield port.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(LONG)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return Service(tmp_path_factory.mktemp("hot"))


@pytest.fixture(scope="module")
def port(service):
    with listening(service) as found:
        yield found


def request(
    service, order: dict | bytes, *headers: str, method: str = "POST", version: str = "1.1", length: bool = True
) -> bytes:
    "A request as bytes."
    body = order if isinstance(order, bytes) else json.dumps(order).encode()
    lines = [
        f"{method} /score HTTP/{version}",
        "Host: here",
        "Content-Type: application/json",
        f"X-API-Key: {service.key}",
        *([f"Content-Length: {len(body)}"] if length else []),
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def replies(port: int, *pieces: bytes, count: int = 1) -> list[tuple[int, dict, bytes]]:
    "Status, headers and body of the next replies to what is sent over one connection; fewer when the server closes it."
    with connected(port) as wire:
        for piece in pieces:
            wire.sendall(piece)
        return read(wire, count)


def connected(port: int) -> socket.socket:
    "A connection on which each piece goes out at once."
    wire = socket.create_connection(("127.0.0.1", port), LONG)
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return wire


def read(wire: socket.socket, count: int) -> list[tuple[int, dict, bytes]]:
    found, data = [], b""
    while len(found) < count:
        head, end, rest = data.partition(b"\r\n\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:]) if end else {}
        if head.startswith(b"HTTP/1.1 100") and end:
            data = rest
        elif end and len(rest) >= int(headers[b"content-length"]):
            size = int(headers[b"content-length"])
            found.append((int(head.split()[1]), headers, rest[:size]))
            data = rest[size:]
        elif piece := wire.recv(65_536):
            data += piece
        else:
            break
    return found


def test_one_connection_serves_order_after_order(service, port):
    with connected(port) as wire:
        for number in range(5):
            wire.sendall(request(service, ORDER | {"order_id": f"kept-{number}"}))
            status, headers, body = read(wire, 1)[0]
            assert status == 200 and json.loads(body)["id"] == f"kept-{number}" and b"connection" not in headers


def test_a_request_in_pieces_is_whole(service, port, monkeypatch):
    "Each piece is sent when the one before has arrived."
    whole, arrived, take = request(service, ORDER | {"order_id": "pieces"}), [], HttpToolsProtocol.data_received

    def counted(self, data):
        take(self, data)
        arrived.append(data)

    monkeypatch.setattr(HttpToolsProtocol, "data_received", counted)
    with connected(port) as wire:
        for number, start in enumerate(range(0, len(whole), 40), 1):
            wire.sendall(whole[start : start + 40])
            until(lambda: len(arrived) == number, "the piece arrives")
        assert [status for status, _, _ in read(wire, 1)] == [200]


@pytest.mark.parametrize("how", ["pipelined", "chunked", "continue", "older", "closing"])
def test_other_forms_of_a_request_are_served_as_well(service, port, how):
    order = ORDER | {"order_id": f"odd-{how}"}
    body, chunked = json.dumps(order).encode(), lambda data: b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
    sent = {
        "pipelined": request(service, order)
        + request(service, order | {"order_id": "odd-second"})
        + b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n",
        "chunked": request(service, b"", "Transfer-Encoding: chunked", length=False) + chunked(body),
        "continue": request(service, order, "Expect: 100-continue"),
        "older": request(service, order, version="1.0"),
        "closing": request(service, order, "Connection: close"),
    }[how]
    found = replies(port, sent, count=3 if how == "pipelined" else 1)
    assert [status for status, _, _ in found] == [200] * (3 if how == "pipelined" else 1) and json.loads(found[0][2])[
        "id"
    ] == f"odd-{how}"
    if how in ("older", "closing"):
        assert found[0][1][b"connection"] == b"close"


@pytest.mark.parametrize(
    "status,order,headers",
    [
        (422, b"{}", []),
        (400, b"{", []),
        (413, b" " * 100_000, []),
        (401, ORDER, ["X-API-Key: guessed"]),
        (415, ORDER, ["Content-Type: text/plain"]),
        (422, ORDER | {"order_amount": True}, []),
    ],
)
def test_a_refusal_leaves_the_connection_usable(service, port, status, order, headers):
    with connected(port) as wire:
        wire.sendall(request(service, order, *headers))
        assert read(wire, 1)[0][0] == status
        wire.sendall(request(service, ORDER | {"order_id": f"after-{status}"}))
        assert read(wire, 1)[0][0] == 200


def test_a_chunked_body_beyond_the_limit_is_refused_when_it_passes_it(service, port):
    piece = b"%x\r\n%s\r\n" % (40_000, b" " * 40_000)
    assert [
        status
        for status, _, _ in replies(
            port, request(service, b"", "Transfer-Encoding: chunked", length=False), piece, piece
        )
    ] == [413]


def test_a_body_that_does_not_come_is_given_up(tmp_path):
    service = Service(tmp_path)
    with listening(service, request_timeout="200ms") as port:
        status, headers, _ = replies(port, request(service, ORDER)[:-10])[0]
    assert status == 408 and headers[b"connection"] == b"close"
    until(lambda: service.scoring.metrics.totals("requests") == {"requests /score 400": 1}, "the request has ended")
    assert service.scoring.admission.in_flight == 0


@pytest.mark.parametrize("path", ["/score/batch", "/labels"])
def test_a_caller_that_leaves_within_a_body_is_no_error_of_ours(tmp_path, path, caplog):
    service = Service(tmp_path)
    with listening(service) as port, connected(port) as wire:
        wire.sendall(request(service, ORDER).replace(b"/score", path.encode(), 1)[:-10])
    until(lambda: service.scoring.metrics.totals("requests"), "the request has ended")
    assert list(service.scoring.metrics.totals("requests")) == [f"requests {path} 400"]
    assert "internal" not in str(service.scoring.metrics.totals("rejected")) and "ERROR" not in caplog.text


def test_an_order_whose_caller_left_is_taken_all_the_same(service, port):
    order = ORDER | {"order_id": "left"}
    before = len(service.engine.store.log)
    with connected(port) as wire:
        wire.sendall(request(service, order))
    until(lambda: len(service.engine.store.log) > before, "the order is taken")
    assert json.loads(replies(port, request(service, order))[0][2])["known_before"]
    until(lambda: service.scoring.admission.in_flight == 0, "nothing is under way any more")


def test_a_full_service_refuses_without_a_task(service, port):
    service.scoring.admission.in_flight, before = service.settings.service.max_in_flight, service.state()
    try:
        status, headers, _ = replies(port, request(service, ORDER | {"order_id": "full"}))[0]
    finally:
        service.scoring.admission.in_flight = 0
    assert (status, headers[b"retry-after"]) == (429, b"1") and service.state() == before


# --- limits of connections --------------------------------------------------------------------------------------------

HEAD = b"GET /healthz HTTP/1.1\r\nhost: here\r\n"
HEALTH = HEAD + b"\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


def connected_from(port: int, address: str = "127.0.0.1") -> socket.socket:
    "A connection from an address of this machine."
    return socket.create_connection(("127.0.0.1", port), LONG, (address, 0))


def ended(wire: socket.socket) -> bytes:
    "What comes until the other side closes."
    found = b""
    try:
        while piece := wire.recv(65_536):
            found += piece
    except ConnectionResetError:  # closed while bytes of ours were on their way
        pass
    return found


@pytest.fixture
def counted(service):
    "Counts of closed connections since the test began."
    before = service.scoring.metrics.totals("closed_connections")

    def found() -> dict[str, int]:
        now = service.scoring.metrics.totals("closed_connections")
        return {name.split()[1]: now[name] - before.get(name, 0) for name in now if now[name] > before.get(name, 0)}

    return found


@pytest.mark.parametrize(
    "limit,pieces",
    [
        ("max_head_bytes", [b"GET /" + b"a" * 3_000]),
        ("max_head_bytes", [b"GET /" + b"a" * 3_000 + b" HTTP/1.1\r\nhost: here\r\n\r\n"]),
        ("max_head_bytes", [HEAD + b"x: " + b"a" * 3_000]),
        ("max_head_bytes", [HEAD + b"a" * 3_000]),
        ("max_head_bytes", [HEAD, *[b"x%d: %s\r\n" % (number, b"a" * 200) for number in range(12)]]),
        ("max_head_bytes", [HEALTH, HEAD + b"x: " + b"a" * 3_000]),
        ("max_head_bytes", [HEALTH + HEAD + b"x: " + b"a" * 3_000 + b"\r\n\r\n"]),
        ("max_headers", [HEAD + b"".join(b"x%d:\r\n" % number for number in range(30)) + b"\r\n"]),
        ("max_headers", [CHUNKED + b"0\r\n" + b"a:b\r\n" * 30]),
        ("max_head_bytes", [HEAD + b"a:b\r\n" * 50_000]),
        ("max_body_bytes", [CHUNKED + b"0\r\nx: " + b"a" * 70_000]),
        ("max_body_bytes", [CHUNKED + b"1\r\na\r\n" * 50_000]),
        ("max_body_bytes", [CHUNKED + b"1;" + b"a" * 70_000]),
        ("max_body_bytes", [HEAD + b"content-length: 9000000\r\n\r\n", b"a" * 100_000]),
        ("request_timeout", []),
        ("request_timeout", [b"G"]),
        ("request_timeout", [b"\r\n"]),
        ("request_timeout", [HEAD]),
        ("request_timeout", [HEAD + b"content-length: 10\r\n\r\n", b"12345"]),
        ("request_timeout", [HEAD + b"transfer-encoding: chunked\r\n\r\n", b"5\r\n123"]),
        ("request_timeout", [HEALTH, HEAD]),
        ("request_timeout", [HEALTH + HEAD]),
    ],
)
def test_a_request_beyond_a_limit_is_told_so_and_its_connection_ends(service, counted, limit, pieces):
    limits = {"max_head_bytes": 2_000, "max_headers": 20, "max_batch": 10, "request_timeout": "300ms"}
    with listening(service, **limits) as port:
        with connected(port) as wire:
            with suppress(ConnectionError):  # it may end before all is sent
                for piece in pieces:
                    wire.sendall(piece)
                    if piece == HEALTH:
                        assert read(wire, 1)[0][0] == 200
            output = ended(wire)
        assert counted() == {limit: 1}
        assert [status for status, _, _ in replies(port, HEALTH)] == [200]
    statuses = {"request_timeout": b"408 Request Timeout", "max_body_bytes": b"413 Request Entity Too Large"}
    status = statuses.get(limit, b"431 Request Header Fields Too Large")
    last = output.rpartition(b"HTTP/1.1 ")[2]
    assert last.startswith(status) or not output, output
    if output:
        assert b"connection: close" in last and json.loads(last.partition(b"\r\n\r\n")[2])["detail"][0]["type"] == limit


def test_a_request_within_the_limits_is_served_however_slowly_its_connection_is_used(service, counted):
    with listening(service, request_timeout="300ms") as port, connected(port) as wire:
        for number in range(3):
            wire.sendall(request(service, ORDER | {"order_id": f"calm-{number}"}))
            assert read(wire, 1)[0][0] == 200
            assert counted() == {}
            threading.Event().wait(0.5)  # between two requests


@pytest.mark.parametrize("count", [1, 5_000])
def test_requests_that_wait_for_their_turn_are_read_a_few_at_a_time(service, counted, monkeypatch, count):
    "What a client sends ahead takes neither memory nor the time of others before it is its turn; all is answered."
    waiting, parse = [], LimitedProtocol.parse

    def noted(self, piece):
        parse(self, piece)
        waiting.append(len(self.pipeline))

    monkeypatch.setattr(LimitedProtocol, "parse", noted)
    short, last = b"GET /healthz HTTP/1.1\r\n\r\n", b"GET /none HTTP/1.1\r\n\r\n"
    with listening(service) as port, connected(port) as wire:
        sender = threading.Thread(target=wire.sendall, args=(short * count + last,))
        sender.start()
        statuses = [status for status, _, _ in read(wire, count + 1)]
        sender.join(LONG)
    assert statuses == [200] * count + [404] and counted() == {}
    assert max(waiting) <= PIECE / len(last) + 1


def test_no_read_is_parsed_at_once(service, counted, monkeypatch):
    pieces, parse = [], LimitedProtocol.parse
    monkeypatch.setattr(LimitedProtocol, "parse", lambda self, piece: (pieces.append(len(piece)), parse(self, piece)))
    body = json.dumps([ORDER | {"order_id": f"piece-{number}"} for number in range(100)]).encode()
    with listening(service) as port:
        found = replies(port, request(service, body).replace(b"/score ", b"/score/batch "))
    assert [status for status, _, _ in found] == [200] and sum(pieces) > len(body) > 4 * PIECE >= 4 * max(pieces)


def test_a_client_that_takes_no_reply_is_closed(service, counted):
    "Replies pile up in front of a client that sends request after request and reads nothing."
    with listening(service, request_timeout="300ms") as port, connected(port) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        wire.settimeout(0.2)
        many = b"GET /openapi.json HTTP/1.1\r\nhost: here\r\n\r\n" * 200

        def closed() -> bool:
            try:
                wire.send(many)
            except TimeoutError:
                pass
            except OSError:
                return True
            return bool(counted())

        until(closed, "the connection is closed")
        until(lambda: counted() == {"reply_timeout": 1}, "it is counted")
        assert [status for status, _, _ in replies(port, HEALTH)] == [200]


@pytest.mark.parametrize("kind", ["silent", "idle", "slow", "unfinished body"])
def test_connections_of_one_address_make_room_for_each_other_alone(service, counted, kind):
    first = {"silent": b"", "idle": HEALTH, "slow": HEAD, "unfinished body": HEAD + b"content-length: 9\r\n\r\n1"}[kind]
    with listening(service, max_connections_per_address=5) as port, connected_from(port) as ours:
        ours.sendall(HEALTH)
        assert read(ours, 1)[0][0] == 200
        held = []
        for number in range(12):
            held.append(connected_from(port, "127.0.0.2"))
            held[-1].sendall(first)
            if kind == "idle":
                assert read(held[-1], 1)[0][0] == 200
            until(lambda: counted().get("max_connections_per_address", 0) == max(0, number - 4), "room is made")
        for wire in held[:7]:
            ended(wire)
        ours.sendall(HEALTH)
        assert read(ours, 1)[0][0] == 200  # the oldest of all, but of another address
        with connected_from(port, "127.0.0.2") as other:
            other.sendall(HEALTH)
            assert read(other, 1)[0][0] == 200
        for wire in held:
            wire.close()


def test_when_all_connections_are_used_up_the_address_with_most_of_them_gives_one(service, counted):
    with listening(service, max_connections=8) as port, connected_from(port) as ours:
        ours.sendall(HEALTH)
        assert read(ours, 1)[0][0] == 200
        held = []
        for number in range(20):
            held.append(connected_from(port, f"127.0.0.{2 + number % 2}"))
            until(lambda: counted().get("max_connections", 0) == max(0, number - 6), "room is made")
        ours.sendall(HEALTH)
        assert read(ours, 1)[0][0] == 200
        assert [status for status, _, _ in replies(port, HEALTH)] == [200]
        for wire in held:
            wire.close()


def test_a_request_in_progress_keeps_its_connection(service, counted, monkeypatch):
    "Only the new connection can go when no other is quiet."
    begun, go_on = threading.Event(), threading.Event()

    async def unready(*_) -> list:
        begun.set()
        await asyncio.to_thread(go_on.wait, LONG)
        return []

    monkeypatch.setattr(service.app.state.status, "unready", unready)
    with listening(service, max_connections=1, request_timeout="200ms") as port, connected(port) as busy:
        busy.sendall(b"GET /readyz HTTP/1.1\r\nhost: here\r\n\r\n" + HEAD)
        assert begun.wait(LONG)
        with connected(port) as second:
            assert ended(second) == b""
        assert counted() == {"max_connections": 1}
        threading.Event().wait(0.5)  # longer than a request may take
        go_on.set()
        busy.sendall(b"\r\n")
        assert [status for status, _, _ in read(busy, 2)] == [200, 200]
    assert counted() == {"max_connections": 1}
