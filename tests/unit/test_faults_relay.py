"""The relay in front of a working Twilio: the requests that it forwards, and the faults that it answers with."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlencode

import pytest

from tests.faults import FaultServer, faults

MESSAGES = f"/2010-04-01/Accounts/AC{'0' * 32}/Messages.json"
CALLBACK = "https://example.com/status#rc=2&rp=all"

_SENDER = """\
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
connection.request("POST", sys.argv[2], "Body=fault%3D" + sys.argv[3])
connection.getresponse()
"""

type Outcome = tuple[int, str] | str
"""Status and SID (blank if there is none), or the name of the error."""

OUTCOMES: dict[str, Outcome] = {
    **{str(code): (code, "") for code in (500, 502, 503, 504, 408, 302)},
    "reset": "ConnectionResetError",
    "close": "RemoteDisconnected",
    "hang": "TimeoutError",
    "truncated": "IncompleteRead",
    "bad_json": (201, ""),
    "no_sid": (201, ""),
    "html": (200, ""),
    "429": (429, ""),
    "429_retry": (429, ""),
    "21611": (429, ""),
    "21211": (400, ""),
    "21610": (400, ""),
    "401": (401, ""),
    "403": (403, ""),
}


@pytest.fixture
def twilio() -> Iterator[FaultServer]:
    """Yield a server in place of the Twilio emulator, which answers every request normally."""
    with FaultServer() as server:
        server.named.clear()  # no marker has an effect here
        server.named.update(dict.fromkeys(faults.NAMED, faults.OK))
        yield server


@pytest.fixture
def relay(twilio: FaultServer) -> Iterator[FaultServer]:
    """Yield a relay in front of that server."""
    with FaultServer(upstream=twilio.url) as server:
        yield server


def request(relay: FaultServer, method: str, target: str, body: str | None = None, *, seconds: float = 5) -> Outcome:
    """Make a request, and return its outcome."""
    with closing(HTTPConnection("127.0.0.1", relay.port, timeout=seconds)) as connection:
        try:
            connection.request(method, target, body)
            response = connection.getresponse()
            content = response.read()
        except (OSError, HTTPException) as error:
            return type(error).__name__
    try:
        return response.status, json.loads(content).get("sid", "")
    except ValueError:
        return response.status, ""


def send(relay: FaultServer, text: str, *, seconds: float = 5) -> Outcome:
    """Send a message with a status callback, and return the outcome."""
    form = {"To": "+15550100123", "StatusCallback": CALLBACK, "Body": text}
    return request(relay, "POST", MESSAGES, urlencode(form), seconds=seconds)


def test_nothing_is_changed(relay: FaultServer, twilio: FaultServer) -> None:
    """Without a fault, requests are forwarded unchanged, and get Twilio's answers."""
    sent = [send(relay, "caf\u00e9"), request(relay, "GET", f"{MESSAGES}?PageSize=1"), request(relay, "DELETE", "/x")]

    assert [(201, f"SM{1:032x}"), (200, ""), (204, "")] == sent
    assert [(each.head, each.body) for each in relay.requests] == [(each.head, each.body) for each in twilio.requests]
    assert [("ok", True)] * 3 == [(each.fault, each.forwarded) for each in relay.requests]


@pytest.mark.parametrize(
    "name",
    [
        *(f"{name}_{side}" for name in faults.AMBIGUOUS if name in OUTCOMES for side in ("before", "after")),
        *(f"{name}_before" for name in faults.REFUSALS),
    ],
)
def test_a_fault_comes_before_or_after(relay: FaultServer, twilio: FaultServer, name: str) -> None:
    """A client sees the same fault, whether Twilio got the message before it or never."""
    kind, _, side = name.rpartition("_")
    expected = OUTCOMES[kind]
    outcome = send(relay, f"k;fault={name};x", seconds=0.1 if expected == "TimeoutError" else 5)

    assert expected == outcome
    assert (side == "after") == (len(twilio.requests) == 1)
    assert [(name, side == "after")] == [(each.fault, each.forwarded) for each in relay.requests]


@pytest.mark.parametrize(("name", "forwarded"), [("drip_before", 0), ("drip_after", 1)])
def test_an_answer_drips(relay: FaultServer, twilio: FaultServer, name: str, forwarded: int) -> None:
    """A dripping answer arrives byte by byte, whether Twilio got the message or not."""
    with socket.create_connection(("127.0.0.1", relay.port), timeout=5) as sock:
        body = f"Body=fault%3D{name}".encode()
        sock.sendall(b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (MESSAGES.encode(), len(body), body))

        assert [b"H", b"T", b"T"] == [sock.recv(1) for _ in range(3)]
    assert forwarded == len(twilio.requests)


@pytest.mark.parametrize(("name", "forwarded"), [("kill_before", 0), ("kill_after", 1)])
def test_the_client_is_killed(relay: FaultServer, twilio: FaultServer, name: str, forwarded: int) -> None:
    """The sending process is killed before or after Twilio gets the message."""
    command = [sys.executable, "-c", _SENDER, str(relay.port), MESSAGES, name]
    client = subprocess.run(command, check=False, timeout=10)

    assert (-9, forwarded) == (client.returncode, len(twilio.requests))


def test_only_a_new_message_takes_its_marker(relay: FaultServer, twilio: FaultServer) -> None:
    """Only a new message obeys `fault=`. Any other request with its text is forwarded, unless it has `get_fault=`."""
    query = f"{MESSAGES}?Body=fault%3D500_before"
    outcomes = [request(relay, "GET", query), request(relay, "GET", f"{query}+get_fault%3D503_before")]

    assert [(200, ""), (503, "")] == outcomes
    assert (500, "") == send(relay, "get_fault=503_before fault=500_before")
    assert 1 == len(twilio.requests)


def test_a_turn_can_be_normal(relay: FaultServer, twilio: FaultServer) -> None:
    """The faults of a message apply to its requests in turn, and `ok` is a normal turn."""
    outcomes = [send(relay, "fault=429_before,500_after,ok") for _ in range(3)]

    assert [429, 500, 201] == [outcome[0] for outcome in outcomes]
    assert 2 == len(twilio.requests)


def test_a_script_comes_after(relay: FaultServer, twilio: FaultServer) -> None:
    """A scripted fault comes after the request was forwarded, unless it is made with `before`."""
    relay.script(faults.status(500), faults.before("500", faults.status(500)), faults.OK)

    assert [500, 500, 201] == [send(relay, "Hello")[0] for _ in range(3)]
    assert [True, False, True] == [each.forwarded for each in relay.requests]
    assert 2 == len(twilio.requests)


def test_a_callback_can_be_left_out(relay: FaultServer, twilio: FaultServer) -> None:
    """A message with `callback=none` is forwarded with a blank status callback and otherwise unchanged."""
    send(relay, "a & b;callback=none")
    send(relay, "a & b")

    assert [
        {"To": ["+15550100123"], "StatusCallback": [""], "Body": ["a & b;callback=none"]},
        {"To": ["+15550100123"], "StatusCallback": [CALLBACK], "Body": ["a & b"]},
    ] == [each.form for each in twilio.requests]
    assert [True, True] == [each.complete for each in twilio.requests]


def test_connections_are_refused_for_a_while(relay: FaultServer, twilio: FaultServer) -> None:
    """For a while, new connections are refused and open ones are closed; then the relay works as before."""
    with closing(HTTPConnection("127.0.0.1", relay.port, timeout=5)) as connection:
        connection.request("GET", "/")
        connection.getresponse().read()
        with relay.refusing():
            assert "ConnectionRefusedError" == send(relay, "Hello")
            assert b"" == connection.sock.recv(1)

    assert (201, f"SM{1:032x}") == send(relay, "Hello")
    assert 2 == len(twilio.requests)


def test_a_twilio_that_is_away_ends_the_connection(relay: FaultServer) -> None:
    """The relay uses its current upstream; if nothing listens there, the client gets no answer."""
    with FaultServer() as other:
        relay.upstream = other.url
        assert 201 == send(relay, "Hello")[0]

    assert "RemoteDisconnected" == send(relay, "Hello")
