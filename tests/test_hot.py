"""POST /score over real sockets: the service keeps to HTTP, whatever form the request has."""

import asyncio
import json
import socket
import threading
from contextlib import contextmanager

import pytest
import uvicorn
from support.waiting import LONG, until
from test_scoring import ORDER, Service
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fraud_poc.service.connections import Connections, LimitedProtocol


@contextmanager
def listening(service, **limits):
    "The application of a service under uvicorn, in a thread, with some limits of connections; its port."
    connections = Connections(
        service.settings.service.model_copy(update=limits), service.scoring.replies, service.scoring.metrics
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
