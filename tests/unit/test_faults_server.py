"""The fault server: it answers, fails and records requests as its documentation says."""

import gzip
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

from tests.faults import Canary, Credentials, Fault, FaultServer, Key, black_hole, closed_port, faults, resolve_to
from tests.faults.tls import Tls
from tests.faults.twilio import Evil
from tests.stopwatch import Stopwatch

MESSAGES = f"/2010-04-01/Accounts/AC{'0' * 32}/Messages.json"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """Yield a fault server for one test."""
    with FaultServer() as made:
        yield made


class Answer(NamedTuple):
    """A complete answer."""

    status: int
    headers: Message
    body: bytes


def exchange(connection: http.client.HTTPConnection, method: str, target: str, body: str | None = None) -> Answer:
    """Make a request, close the connection, and return the answer."""
    with closing(connection):
        connection.request(method, target, body, {"Authorization": "Basic eDp5"})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())


def call(server: FaultServer, body: str = "Hello") -> Answer:
    """Send one message, and return the answer."""
    form = urlencode({"To": "+15551234567", "Body": body})
    return exchange(plain("127.0.0.1", server.port), "POST", MESSAGES, form)


def plain(host: str, port: int) -> http.client.HTTPConnection:
    """Return a connection without TLS."""
    return http.client.HTTPConnection(host, port, timeout=5)


def secure(server: FaultServer) -> http.client.HTTPSConnection:
    """Return a connection that trusts the server's authority."""
    context = ssl.create_default_context(cafile=server.ca_file)
    return http.client.HTTPSConnection("127.0.0.1", server.port, timeout=5, context=context)


def outcome(server: FaultServer, body: str = "Hello") -> int | str:
    """Return the status of a complete answer, or the name of the error."""
    try:
        return call(server, body).status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


def test_a_message_is_answered_as_twilio_does(server: FaultServer) -> None:
    """A normal answer contains the message's text, and the request is recorded as it came."""
    response = call(server, "caf\u00e9")

    assert (201, "caf\u00e9") == (response.status, json.loads(response.body)["body"])
    assert [("POST", MESSAGES, "caf\u00e9", True, "ok")] == [
        (each.method, each.path, each.form["Body"][0], each.complete, each.fault) for each in server.requests
    ]


def test_the_last_fault_of_a_script_stays(server: FaultServer) -> None:
    """The faults of a script apply in turn, and the last one from then on."""
    server.script(faults.status(503), faults.UNAUTHORIZED, faults.OK)

    assert [503, 401, 201, 201] == [outcome(server) for _ in range(4)]


def test_a_request_names_its_faults(server: FaultServer) -> None:
    """A marker counts identical requests, and takes precedence over the script."""
    server.script(faults.status(500))

    assert [429, 201, 201] == [outcome(server, "a fault=status_429,ok") for _ in range(3)]
    assert [429, 500] == [outcome(server, "b fault=status_429,ok"), outcome(server)]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (faults.RESET_BEFORE_READ, {"ConnectionResetError"}),
        (faults.RESET_AFTER_READ, {"ConnectionResetError"}),
        (faults.CLOSE_AFTER_READ, {"RemoteDisconnected"}),
        (faults.cut("status"), {"BadStatusLine"}),
        (faults.cut("headers"), {201, "IncompleteRead", "BadStatusLine"}),
        (faults.cut("body"), {"IncompleteRead"}),
        (faults.cut("body", reset=True), {"ConnectionResetError"}),
        (faults.INVALID_CHUNK, {"IncompleteRead"}),
        (faults.NOT_HTTP, {"BadStatusLine"}),
        (faults.huge_header(), {"LineTooLong"}),
        (faults.many_headers(), {"HTTPException"}),
        (faults.html(502), {502}),
        (faults.NO_CONTENT, {204}),
        (faults.huge(3), {201}),
        *((fault, {201}) for name, fault in faults.NAMED.items() if name.startswith("body_")),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_a_fault_shows(server: FaultServer, fault: Fault, expected: set[Any]) -> None:
    """Each fault ends a request as its name says, and the request is recorded."""
    server.script(fault)

    assert outcome(server) in expected
    assert [fault.name] == [request.fault for request in server.requests]


@pytest.mark.parametrize("kind", faults.RETRY_AFTER)
def test_too_many_has_each_kind_of_retry_after(server: FaultServer, kind: str) -> None:
    """Retry-After is sent as given, and a time from now as a date."""
    response = call(server, f"fault=status_429_{kind}")
    value = response.headers["Retry-After"]

    assert response.status == 429
    if kind in {"date", "past", "far"}:
        assert (kind == "past") == (parsedate_to_datetime(value or "").timestamp() < time.time())
    else:
        assert faults.RETRY_AFTER[kind] == value


def test_what_hangs_is_released(server: FaultServer) -> None:
    """A request that hangs is recorded, and continues when it is released."""
    server.script(faults.hang(then=faults.status(500)))
    with closing(plain("127.0.0.1", server.port)) as connection:
        connection.request("POST", MESSAGES, "Body=Hello")
        server.wait_for(1)
        server.release()

        assert 500 == connection.getresponse().status


def test_closing_ends_everything() -> None:
    """The server closes at once, even with requests that hang, drip, never end or are incomplete."""
    with Stopwatch() as took, FaultServer() as server:
        opened = []
        for name in ("hang", "drip_body", "drip_headers", "endless", "hang_before_read"):
            server.script(faults.NAMED[name])
            sock = socket.create_connection(("127.0.0.1", server.port))
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            opened.append(sock)
            server.wait_for(len(opened))
        opened.append(socket.create_connection(("127.0.0.1", server.port)))
        opened[-1].sendall(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab")
    for sock in opened:
        sock.close()

    assert took.seconds < 1


def test_a_part_of_a_request_is_recorded(server: FaultServer) -> None:
    """A request that was broken off is recorded with the part that arrived."""
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(b"POST /x?a=%20 HTTP/1.1\r\nContent-Length: 5\r\nX-A: 1\r\n\r\nab")
    (request,) = server.wait_for(1)

    assert ("POST", "/x", "a=%20", "1", b"ab", False) == (
        request.method, request.path, request.query, request.header("x-a"), request.body, request.complete
    )  # fmt: skip


def test_the_bomb_unpacks_to_json(server: FaultServer) -> None:
    """A gzip bomb is about a thousandth of its content, which is complete JSON."""
    server.named["bomb"] = faults.gzip_bomb(20)
    packed = call(server, "fault=bomb").body
    unpacked = gzip.decompress(packed)

    assert 20 << 20 == len(json.loads(unpacked)["body"])
    assert len(packed) < len(unpacked) / 900


def test_nested_gzip_unpacks_to_the_answer(server: FaultServer) -> None:
    """Nested gzip decompresses to the answer, and Content-Encoding names every layer."""
    response = call(server, "fault=nested_gzip")
    body = gzip.decompress(gzip.decompress(gzip.decompress(response.body)))

    assert ("gzip, gzip, gzip", "queued") == (
        response.headers["Content-Encoding"],
        json.loads(body)["status"],
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("good", 200),
        ("self_signed", "self-signed certificate"),
        ("untrusted", "unable to get local issuer certificate"),
        ("expired", "certificate has expired"),
        ("wrong_host", "IP address mismatch"),
    ],
)
def test_one_thing_is_wrong_with_a_certificate(kind: Tls, expected: int | str) -> None:
    """A client that trusts the server's authority refuses each bad certificate for its own reason."""
    with FaultServer(tls=kind) as server:
        try:
            result: int | str = exchange(secure(server), "GET", MESSAGES).status
        except ssl.SSLCertVerificationError as error:
            result = error.verify_message

        assert str(expected) in str(result)
        assert (1, 1 if kind == "good" else 0) == (server.connections, len(server.requests))


@pytest.mark.parametrize(
    "fault",
    [faults.CLOSE_IN_HANDSHAKE, faults.RESET_IN_HANDSHAKE, faults.PLAIN_TEXT],
    ids=lambda fault: fault.name,
)
def test_a_handshake_fails(fault: Fault) -> None:
    """The first connection ends before TLS is established, and the next one works."""
    with FaultServer(tls="good") as server:
        server.script(fault, faults.OK)
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            exchange(secure(server), "GET", MESSAGES)
        status = exchange(secure(server), "GET", MESSAGES).status

        assert (200, 2, 1) == (status, server.connections, len(server.requests))


def pages(server: FaultServer, query: str = "", most: int = 10) -> list[list[str]]:
    """Follow the pages, and return the SIDs of each page."""
    found: list[list[str]] = []
    target: str | None = f"{MESSAGES}?{query}"
    while target and target.startswith(MESSAGES) and len(found) < most:
        page = json.loads(exchange(plain("127.0.0.1", server.port), "GET", target).body)
        found.append([each["sid"] for each in page["messages"]])
        target = page["next_page_uri"]
    return found


def test_a_history_comes_in_pages(server: FaultServer) -> None:
    """The pages of a history contain each message once, newest first."""
    history = server.history(25)
    found = pages(server, "PageSize=10")

    assert [10, 10, 5] == [len(page) for page in found]
    assert history.sids == [sid for page in found for sid in page]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("To=%2B15550100000", 25),
        ("To=%2B15550100000&From=%2B15005550006", 13),
        ("DateSent=2026-01-30", 24),
        ("DateSent%3E=2026-01-31", 13),
        ("DateSent%3C=2026-01-29&DateSent%3E=2026-01-29", 24),
        ("DateSent%3E=2026-01-31T12:00:00Z", 1),
    ],
)
def test_a_history_is_filtered(server: FaultServer, query: str, expected: int) -> None:
    """Filters apply to every page, and days are inclusive."""
    server.history(100, spacing=timedelta(hours=1))

    assert expected == sum(len(page) for page in pages(server, f"{query}&PageSize=7"))


@pytest.mark.parametrize(
    ("evil", "expected"),
    [
        ("foreign_host", [2]),
        ("other_account", [2]),
        ("self_loop", [2, 2, 2, 2]),
        ("two_page_loop", [2, 1, 2, 1]),
        ("repeated_page", [2, 2, 2, 2]),
        ("repeated_message", [2, 2]),
        ("empty_pages", [0, 0, 0, 0]),
    ],
)
def test_a_history_can_be_evil(server: FaultServer, evil: Evil, expected: list[int]) -> None:
    """Evil pages lead to other hosts or accounts, form loops, repeat, or are empty."""
    server.history(3, evil=evil)

    assert expected == [len(page) for page in pages(server, "PageSize=2", most=4)]


def test_the_canary_sees_who_is_led_astray(server: FaultServer) -> None:
    """Requests to any name, address or port reach the canary, which records them; only the server stays reachable."""
    with Canary() as canary, resolve_to(canary, allow=[server.port]):
        for host, port in [("api.twilio.com", 80), ("169.254.169.254", 80), ("127.0.0.1", 9001)]:
            exchange(plain(host, port), "GET", "/")
        trusting_all = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting_all.check_hostname = False
        trusting_all.verify_mode = ssl.CERT_NONE
        exchange(http.client.HTTPSConnection("elsewhere.example", timeout=5, context=trusting_all), "GET", "/")
        with pytest.raises(ssl.SSLCertVerificationError):
            exchange(http.client.HTTPSConnection("elsewhere.example", timeout=5), "GET", "/")

        assert 201 == outcome(server)
        assert 5 == len(canary.visits)
        assert 4 == sum(visit.authorization == "Basic eDp5" for visit in canary.visits)
        assert ("api.twilio.com", 80) in canary.names


def test_credentials_are_checked_once_they_are_given(server: FaultServer) -> None:
    """Until credentials are set, and after a reset, every request is accepted."""
    assert 201 == outcome(server)
    credentials = Credentials("AC" + "0" * 32, "token", {"x": Key("z")})
    server.check(credentials)

    assert (True, False) == (credentials.accepts("x", "z"), credentials.accepts("x", "y"))
    assert 401 == outcome(server)
    credentials.keys["x"] = Key("y")
    assert 201 == outcome(server)
    server.reset()
    assert 201 == outcome(server)


@pytest.mark.parametrize(("key", "status"), [(Key("y"), 401), (Key("y", is_main=True), 200)], ids=["standard", "main"])
def test_only_a_main_key_may_touch_keys(server: FaultServer, key: Key, status: int) -> None:
    """Only a main key may list keys, and no key may create an auth token."""
    server.check(Credentials("AC" + "0" * 32, "token", {"x": key}))
    target = MESSAGES.replace("Messages", "Keys")

    assert status == exchange(plain("127.0.0.1", server.port), "GET", target).status
    assert 401 == exchange(plain("127.0.0.1", server.port), "POST", "/v1/AuthTokens/Secondary").status


def test_a_closed_port_refuses() -> None:
    """A closed port refuses connections."""
    with closed_port() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_black_hole_does_not_answer() -> None:
    """A connection to a black hole ends with the client's timeout."""
    with black_hole() as port, pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", port), timeout=0.3)


def test_its_own_mistakes_are_not_hidden() -> None:
    """A marker with an unknown fault fails its test."""
    with pytest.raises(ExceptionGroup, match="the fault server failed by itself"), FaultServer() as server:
        assert "RemoteDisconnected" == outcome(server, "fault=no_such_fault")
