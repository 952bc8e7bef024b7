"""The HTTP transport: it separates requests that were never sent from lost answers, in bounded time and memory."""

import base64
import gzip
import os
import re
import select
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from requests.adapters import DEFAULT_POOLSIZE
from twilio_connector import http
from urllib3 import Timeout

from tests.conftest import ROOT
from tests.faults import Canary, Fault, FaultServer, black_hole, closed_port, faults
from tests.faults.tls import Tls
from tests.faults.wire import Exchange
from tests.stopwatch import Stopwatch

MESSAGES = f"/2010-04-01/Accounts/AC{'0' * 32}/Messages.json"
AUTH = ("SK" + "0" * 32, "not-a-secret")
READ_SECONDS = 0.3
MARGIN = 0.5  # seconds; a dripping answer would take many more
LARGEST = 100_000  # bytes


@pytest.fixture
def session() -> Iterator[http.Session]:
    """Yield a session without open connections."""
    made = http.Session()
    yield made
    made._adapter.close()


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """Yield a fault server for one test."""
    with FaultServer() as made:
        yield made


def exchange(
    session: http.Session,
    url: str,
    method: str = "POST",
    *,
    connect: float = 3.0,
    read: float = 5.0,
    max_bytes: int = LARGEST,
    **parts: Any,
) -> http.Reply:
    """Send one request, and return the reply."""
    request = requests.Request(method, url + MESSAGES, **{"auth": AUTH} | parts)
    timeout = Timeout(connect=connect, read=read, total=10)
    return session.exchange(request.prepare(), timeout=timeout, max_bytes=max_bytes)


@pytest.mark.parametrize("body", [b"", b"To=%2B15005550006", bytes(1000)])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_a_request_is_the_one_that_requests_prepares(method: str, body: bytes) -> None:
    """A request is the same as one that `requests` prepares.

    Our preparation is faster, and leaves out the parts that our requests do not have.
    """
    url, headers = f"https://api.twilio.com{MESSAGES}?PageSize=50&To=%2B15005550006", {"X-Name": "value"}
    theirs = requests.Request(method, url, headers=headers, data=body).prepare()
    ours = http.prepare(method, url, headers, body)

    assert (theirs.method, theirs.url, theirs.body or None) == (ours.method, ours.url, ours.body)
    assert theirs.headers == ours.headers


def never_sent(session: http.Session, url: str, **options: Any) -> http.ConnectFailedError:
    """Return the error of an exchange for which no connection was made."""
    with pytest.raises(http.ConnectFailedError) as caught:
        exchange(session, url, **options)
    return caught.value


def run(program: str, *arguments: str, **variables: str) -> str:
    """Run a program in its own process, and return its output."""
    path = os.pathsep.join(map(str, (ROOT / "layers" / "twilio", ROOT)))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"} | variables
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout


def resolved(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    """Let every host name resolve to these ports on loopback."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def test_a_whole_answer_is_returned(session: http.Session, server: FaultServer) -> None:
    """Status, headers and body are returned, and the request is sent as it was prepared."""
    server.script(faults.answer(b"x", code=202, headers={"X-Test": "a"}))
    reply = exchange(session, server.url, data={"Body": "Hello"})
    sent = server.requests[0]

    assert (202, "a", b"x") == (reply.status, reply.headers["x-test"], reply.body)
    assert ("POST", MESSAGES, AUTH, {"Body": ["Hello"]}) == (
        sent.method,
        sent.target,
        sent.credentials,
        sent.form,
    )


# Requests that were never sent


def test_a_refused_connection_was_never_sent(session: http.Session) -> None:
    """If no process listens on the port, the error says that nothing was sent."""
    with closed_port() as port:
        error = never_sent(session, f"http://127.0.0.1:{port}")

    assert ("the connection was refused or broken off", False) == (str(error), error.bad_certificate)


def test_a_connection_that_nobody_accepts_was_never_sent(session: http.Session) -> None:
    """A connection that is never accepted ends after the connect timeout, and nothing was sent."""
    with black_hole() as port, Stopwatch() as took:
        never_sent(session, f"http://127.0.0.1:{port}", connect=READ_SECONDS)

    assert took.wall >= READ_SECONDS
    assert took.seconds < READ_SECONDS + MARGIN


def test_all_addresses_of_a_host_share_the_connect_timeout(
    session: http.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All addresses of a host share the connect timeout: ten dead addresses take no longer than one."""
    with black_hole() as port:
        resolved(monkeypatch, *[port] * 10)
        with Stopwatch() as took:
            error = never_sent(session, "http://twilio.invalid", connect=READ_SECONDS)

    assert "connecting took too long" == str(error)
    assert took.seconds < READ_SECONDS + MARGIN


def test_the_next_address_is_tried(session: http.Session, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """If one address of a host is dead, the next one is used."""
    with closed_port() as port:
        resolved(monkeypatch, port, server.port)
        reply = exchange(session, "http://twilio.invalid")

    assert (201, 1) == (reply.status, len(server.requests))


@pytest.mark.parametrize(
    "failure",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    ],
    ids=["no_name", "no_resolver"],
)
def test_a_name_that_does_not_resolve_was_never_sent(
    session: http.Session, monkeypatch: pytest.MonkeyPatch, failure: OSError
) -> None:
    """If DNS fails, the error says that nothing was sent."""

    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    error = never_sent(session, "https://twilio.invalid")

    assert ("its name did not resolve", False) == (str(error), error.bad_certificate)


def test_a_name_without_addresses_was_never_sent(session: http.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """If DNS answers without an address, nothing was sent, and the certificate is not to blame."""
    resolved(monkeypatch)

    assert not never_sent(session, "http://twilio.invalid").bad_certificate


def test_a_name_that_is_none_was_never_sent(session: http.Session) -> None:
    """A request to an invalid host name was never sent.

    A label may have at most 63 characters; the system's resolver reports a longer one with its own kind of error.
    """
    assert not never_sent(session, f"http://{'a' * 64}.invalid").bad_certificate


@pytest.mark.parametrize("kind", ["self_signed", "wrong_host", "expired", "untrusted"])
def test_nothing_is_sent_to_a_server_with_a_bad_certificate(session: http.Session, kind: Tls) -> None:
    """The certificate is verified before a byte of the request is sent."""
    with FaultServer(tls=kind) as server:
        error = never_sent(session, server.url)

        assert ("its certificate does not verify", True) == (str(error), error.bad_certificate)
        assert (1, []) == (server.connections, server.requests)


_GET = """
    import sys
    import requests
    from twilio_connector import http
    from urllib3 import Timeout

    request = requests.Request("GET", sys.argv[1]).prepare()
    try:
        print(http.Session().exchange(request, timeout=Timeout(total=5), max_bytes=1000).status)
    except http.ConnectFailedError as error:
        print(error)
"""


def test_only_public_authorities_are_trusted() -> None:
    """Only public authorities are trusted, and environment variables cannot change that."""
    with FaultServer(tls="good") as server:
        names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
        printed = run(_GET, server.url + MESSAGES, **dict.fromkeys(names, str(server.ca_file)))

        assert "its certificate does not verify\n" == printed
        assert [] == server.requests


_SLOW = """
    import ssl
    import sys
    import time

    load = ssl.SSLContext.load_verify_locations

    def slow(context, _):
        time.sleep(0.5)
        load(context, sys.argv[2])

    ssl.SSLContext.load_verify_locations = slow
"""


def test_a_connection_waits_for_the_authorities() -> None:
    """A connection waits until the authorities are loaded, which happens in another thread.

    Without them, a good certificate would be refused as a bad one.
    """
    with FaultServer(tls="good") as server:
        assert "200\n" == run(_SLOW + _GET, server.url + MESSAGES, str(server.ca_file))


def test_a_good_certificate_is_trusted(session: http.Session) -> None:
    """A good certificate is trusted, so the refusals above are due to the bad ones."""
    with FaultServer(tls="good") as server:
        assert [201, 201] == [exchange(session, server.url).status for _ in range(2)]
        assert (1, AUTH) == (server.connections, server.requests[0].credentials)


@pytest.mark.parametrize(
    "fault",
    [
        faults.CLOSE_IN_HANDSHAKE,
        faults.RESET_IN_HANDSHAKE,
        faults.HANG_IN_HANDSHAKE,
        faults.PLAIN_TEXT,
    ],
    ids=lambda fault: fault.name,
)
def test_a_handshake_that_fails_was_never_sent(session: http.Session, fault: Fault) -> None:
    """If the TLS handshake fails, no byte of the request was sent, and the certificate is not to blame."""
    with FaultServer(tls="good") as server:
        server.script(fault)
        with Stopwatch() as took:
            error = never_sent(session, server.url, connect=READ_SECONDS)

        assert not error.bad_certificate
        assert (1, []) == (server.connections, server.requests)
        assert took.seconds < 2 * READ_SECONDS + MARGIN


# Lost answers


BROKEN = [
    faults.RESET_BEFORE_READ,
    faults.RESET_AFTER_READ,
    faults.CLOSE_AFTER_READ,
    *(faults.cut(part, reset=reset) for part in ("status", "headers", "body") for reset in (False, True)),
    faults.INVALID_CHUNK,
    faults.NOT_HTTP,
    faults.huge_header(),
    faults.many_headers(),
    faults.nested_gzip(20),
    replace(faults.raw(faults.CHUNKED + b"5\r\nhello\r\n"), name="chunks_without_end"),
    replace(faults.raw(faults.CHUNKED + b"f" * 100_000), name="huge_chunk_length"),
    replace(faults.raw(b"HTTP/1.1 201 Created\r\nContent-Type: a"), name="half_a_header"),
    replace(faults.raw(b"HTTP/1.1 201 Created\r\n"), name="no_header"),
    replace(faults.answer(b"no gzip", headers={"Content-Encoding": "gzip"}), name="no_gzip"),
]


@pytest.mark.parametrize("fault", BROKEN, ids=lambda fault: fault.name)
def test_an_answer_that_is_broken_off_is_lost(session: http.Session, server: FaultServer, fault: Fault) -> None:
    """An incomplete or invalid answer is lost, and the request is not sent again."""
    server.script(fault)
    with pytest.raises(http.ResponseLostError) as caught:
        exchange(session, server.url, data={"Body": "Hello"})

    assert "the connection broke off before a whole answer" == str(caught.value)
    assert [fault.name] == [request.fault for request in server.requests]


SLOW = [
    faults.hang(),
    faults.HANG_BEFORE_READ,
    faults.drip("headers"),
    faults.drip("body"),
    Fault("endless_continue", lambda exchange: endlessly(exchange, b"", b"HTTP/1.1 100 Continue\r\n\r\n")),
    Fault("endless_trailer", lambda exchange: endlessly(exchange, faults.CHUNKED + b"0\r\n", b"X-A: 1\r\n")),
    Fault(
        "endless_empty_gzip",
        lambda exchange: endlessly(
            exchange,
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
            gzip.compress(b""),
        ),
    ),
]


def endlessly(exchange: Exchange, start: bytes, piece: bytes) -> None:
    """Send an answer that never ends and never contains a byte of a body."""
    exchange.send(start)
    while True:
        exchange.send(piece * 100)


@pytest.mark.parametrize("fault", SLOW, ids=lambda fault: fault.name)
def test_an_answer_that_does_not_end_is_lost_in_time(session: http.Session, server: FaultServer, fault: Fault) -> None:
    """The read timeout covers the whole answer, however its bytes are spread; then the answer is lost."""
    server.script(fault)
    with Stopwatch() as took, pytest.raises(http.ResponseLostError, match=r"^no whole answer came in time$"):
        exchange(session, server.url, read=READ_SECONDS)

    assert took.wall >= READ_SECONDS
    assert took.seconds < READ_SECONDS + MARGIN
    assert 1 == len(server.requests)


def test_a_body_that_nobody_reads_is_lost_in_time(session: http.Session, server: FaultServer) -> None:
    """Sending a body that the server does not read ends with a timeout, and the answer is lost."""
    server.script(faults.HANG_BEFORE_READ)
    with Stopwatch() as took, pytest.raises(http.ResponseLostError):
        exchange(session, server.url, connect=READ_SECONDS, data=b"0" * (32 << 20))

    assert took.seconds < READ_SECONDS + MARGIN


# Answers that are too large


@pytest.mark.parametrize(
    "fault",
    [faults.ENDLESS, faults.huge(1), faults.gzip_bomb(64)],
    ids=lambda fault: fault.name,
)
def test_an_answer_that_is_too_large_is_not_read_to_its_end(
    session: http.Session, server: FaultServer, fault: Fault
) -> None:
    """An answer over the limit is not read to its end; its bytes count after decompression."""
    server.script(fault)

    with pytest.raises(http.BodyTooLargeError):
        exchange(session, server.url)
    assert 1 == len(server.requests)


def test_the_largest_answer_is_taken(session: http.Session, server: FaultServer) -> None:
    """An answer of exactly the limit is accepted, and one byte more is refused."""
    server.script(faults.answer(b"0" * LARGEST), faults.answer(b"0" * (LARGEST + 1)))

    assert LARGEST == len(exchange(session, server.url).body)
    with pytest.raises(http.BodyTooLargeError):
        exchange(session, server.url)


def test_a_packed_answer_is_unpacked(session: http.Session, server: FaultServer) -> None:
    """An answer that is compressed several times is decompressed; that is unusual but valid."""
    server.script(faults.nested_gzip(1), faults.nested_gzip(3))

    assert [b"{", b"{"] == [exchange(session, server.url).body[:1] for _ in range(2)]


_MEASURE = """
    import sys, tracemalloc
    import requests
    from twilio_connector import http
    from urllib3 import Timeout

    how, url, max_bytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
    session = http.Session()

    def get(target, most):
        request = requests.Request("GET", target).prepare()
        return session.exchange(request, timeout=Timeout(connect=3, read=20, total=20), max_bytes=most)

    get(url, 1 << 20)
    http._AUTHORITIES.join()  # tracemalloc may crash if it starts while another thread ends
    tracemalloc.start()
    if how == "naive":
        requests.get(url + "?fault=huge_now", timeout=20).content
    else:
        try:
            get(url + "?fault=" + how, max_bytes)
        except http.BodyTooLargeError:
            pass
        else:
            sys.exit("was not too large")
    print(tracemalloc.get_traced_memory()[1] >> 20)
"""


def needed(server: FaultServer, how: str, max_bytes: int) -> int:
    """Return the most megabytes that a process needed to read an answer."""
    return int(run(_MEASURE, how, server.url + MESSAGES, str(max_bytes)))


@pytest.mark.parametrize("how", ["gzip_bomb", "endless", "huge", "nested_bomb"])
def test_memory_is_bounded_whatever_arrives(server: FaultServer, how: str) -> None:
    """A process needs less than 32 MB over the limit, even for a gigabyte or an endless answer."""
    megabytes = 6
    if how == "nested_bomb":
        body = gzip.compress(gzip.compress(bytes(1 << 28), 1), 9)
        server.named[how] = replace(faults.answer(body, headers={"Content-Encoding": "gzip, gzip"}), name=how)

    assert needed(server, how, megabytes << 20) < megabytes + 32


def test_the_measure_of_memory_measures(server: FaultServer) -> None:
    """A client that reads the whole answer needs more memory, so the test above can fail."""
    server.named["huge_now"] = faults.huge(64)

    assert needed(server, "naive", 0) > 6 + 32


# Bodies of error answers


def with_status(status: int, fault: Fault) -> Fault:
    """Return a fault whose normal answer has another status."""

    def act(exchange: Exchange) -> None:
        exchange.normal = exchange.normal._replace(status=status)
        fault.act(exchange)

    return Fault(fault.name, act)


@pytest.mark.parametrize("status", [302, 404, 500])
@pytest.mark.parametrize(
    "fault",
    [faults.ENDLESS, faults.drip("body"), faults.cut("body"), faults.gzip_bomb(64), faults.nested_gzip(20)],
    ids=lambda fault: fault.name,
)
def test_an_error_counts_by_its_status(session: http.Session, server: FaultServer, status: int, fault: Fault) -> None:
    """A refusal whose body cannot be read is still a refusal, with its status and an empty body."""
    server.script(with_status(status, fault))
    reply = exchange(session, server.url, read=READ_SECONDS)

    assert (status, b"") == (reply.status, reply.body)


# One connection for many requests


def test_a_connection_is_used_again(session: http.Session, server: FaultServer) -> None:
    """A connection stays open after an answer of any status, and is reused."""
    server.script(faults.OK, faults.NOT_FOUND, faults.NO_CONTENT, faults.redirect(302, "/"), faults.OK)

    assert [201, 404, 204, 302, 201] == [exchange(session, server.url).status for _ in range(5)]
    assert 1 == server.connections


def test_headers_and_body_leave_in_one_write(
    session: http.Session, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers and body of a short request are sent in one write: one packet and one TLS record."""
    written: list[bytes] = []
    to_the_wire = socket.socket.sendall

    def sendall(sock: socket.socket, data: bytes, *flags: int) -> None:
        if sock.getpeername()[1] == urlsplit(server.url).port:
            written.append(bytes(data))
        to_the_wire(sock, data, *flags)

    monkeypatch.setattr(socket.socket, "sendall", sendall)
    exchange(session, server.url, data={"Body": "Hello"})
    [request] = written
    assert request.startswith(b"POST ")
    assert request.endswith(b"\r\n\r\nBody=Hello")


def test_more_hosts_than_requests_keeps(session: http.Session) -> None:
    """Only a limited number of hosts keep their connections, so that file descriptors do not run out."""
    with ExitStack() as stack:
        servers = [stack.enter_context(FaultServer()) for _ in range(3 * DEFAULT_POOLSIZE)]
        for server in (*servers, *servers):
            assert 201 == exchange(session, server.url).status

        assert len(session._adapter._pools) <= DEFAULT_POOLSIZE


@pytest.mark.parametrize(("idle", "connections"), [(4.9, 1), (5.1, 2)])
def test_a_connection_that_idled_is_not_trusted(
    session: http.Session,
    server: FaultServer,
    monkeypatch: pytest.MonkeyPatch,
    idle: float,
    connections: int,
) -> None:
    """A connection that idled for more than five seconds is not reused.

    After a freeze the server may have closed it, which would look like a lost request.
    """
    now = [1000.0]
    monkeypatch.setattr(http, "_clock", lambda: now[0])
    exchange(session, server.url)
    now[0] += idle
    exchange(session, server.url)

    assert connections == server.connections


def test_idling_goes_on_while_the_function_is_frozen() -> None:
    """Idle time is measured with a clock that counts suspended time, if the system has one."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    assert time.clock_gettime(clock) == pytest.approx(http._clock(), abs=1)


def test_a_connection_that_the_server_closed_is_not_used(session: http.Session, server: FaultServer) -> None:
    """A connection that the server visibly closed is not reused, and the next request succeeds."""
    server.script(faults.OK_THEN_CLOSE, faults.OK)
    exchange(session, server.url)
    pools = session._adapter.poolmanager.pools
    [pool] = [pools[key] for key in pools.keys()]  # noqa: SIM118 it has no iterator
    [idle] = filter(None, pool.pool.queue)
    closed = select.poll()  # select does not support file descriptors over 1,023
    closed.register(idle.sock, select.POLLIN)
    assert closed.poll(5000)

    assert 201 == exchange(session, server.url).status
    assert 2 == server.connections


@pytest.mark.parametrize("fault", [faults.hang(), faults.huge(1)], ids=lambda fault: fault.name)
def test_an_answer_that_was_given_up_is_nobody_elses(session: http.Session, server: FaultServer, fault: Fault) -> None:
    """A late answer is not taken for the next request's answer."""
    server.script(fault, faults.status(202))
    with pytest.raises((http.ResponseLostError, http.BodyTooLargeError)):
        exchange(session, server.url, read=READ_SECONDS)
    server.release()

    assert 202 == exchange(session, server.url).status
    assert 2 == server.connections


# Nothing from earlier requests or from the environment is sent


def test_cookies_are_not_kept(session: http.Session, server: FaultServer) -> None:
    """Cookies are not kept: two accounts share a session, so nothing may pass from one to the other."""
    server.script(faults.status(200, headers={"Set-Cookie": "a=1; Path=/"}), faults.OK)
    for _ in range(2):
        exchange(session, server.url)

    assert [None, None] == [request.header("Cookie") for request in server.requests]


def test_a_netrc_is_not_read(
    session: http.Session, server: FaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Credentials come only from the request, and a netrc file is not read."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login stranger password strange\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    exchange(session, server.url)
    exchange(session, server.url, auth=None)
    requests.get(server.url, timeout=5)

    assert [AUTH, None, ("stranger", "strange")] == [request.credentials for request in server.requests]


def test_proxies_are_not_used(session: http.Session, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go to Twilio directly, while a client that obeys the environment goes to its proxy."""
    with Canary() as canary:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, canary.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        exchange(session, server.url)

        assert ([], [MESSAGES]) == (canary.visits, [request.target for request in server.requests])
        requests.get(server.url, timeout=5)
        assert 1 == len(canary.visits)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_redirects_are_not_followed(session: http.Session, server: FaultServer, method: str, status: int) -> None:
    """A redirect is returned and not followed."""
    with Canary() as canary:
        server.script(faults.redirect(status, canary.url))
        reply = exchange(session, server.url, method)

        assert (status, canary.url) == (reply.status, reply.headers["Location"])
        assert ([], 1) == (canary.visits, len(server.requests))


def test_we_say_who_we_are(session: http.Session, server: FaultServer) -> None:
    """The User-Agent has the connector's and Python's version, and does not mention `requests`."""
    exchange(session, server.url)
    agent = server.requests[0].header("User-Agent") or ""

    assert re.fullmatch(r"twilio-connector-aws/\d+\.\d+\.\d+ \(Python 3\.\d+\.\d+\)", agent)


def test_reasons_do_not_name_what_was_sent(session: http.Session, server: FaultServer) -> None:
    """An error has neither URL nor credentials: errors are logged, and a URL may hold a phone number."""
    server.script(faults.RESET_AFTER_READ)
    with pytest.raises(http.ResponseLostError) as caught:
        exchange(session, server.url, "GET", params={"To": "+15005550006"})
    secret = base64.b64encode(":".join(AUTH).encode()).decode()

    assert not re.search(f"5005550006|{AUTH[1]}|{secret}", repr(caught.value))
    assert (None, True) == (caught.value.__cause__, caught.value.__suppress_context__)
