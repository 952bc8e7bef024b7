"""The fault server in front of a Twilio that works: what it forwards, what it answers instead."""

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
"""Status and SID (blank where there is none), or the name of the error."""

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
    """Give a server in place of the emulator, which answers normally."""
    with FaultServer() as server:
        server.named.clear()  # it takes no markers
        server.named.update(dict.fromkeys(faults.NAMED, faults.OK))
        yield server


@pytest.fixture
def relay(twilio: FaultServer) -> Iterator[FaultServer]:
    """Give a relay in front of it."""
    with FaultServer(upstream=twilio.url) as server:
        yield server


def request(relay: FaultServer, method: str, target: str, body: str | None = None, *, seconds: float = 5) -> Outcome:
    """Make a request, and return how it ended."""
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
    """Send a message with a status callback."""
    form = {"To": "+15550100123", "StatusCallback": CALLBACK, "Body": text}
    return request(relay, "POST", MESSAGES, urlencode(form), seconds=seconds)


def test_nothing_is_changed(relay: FaultServer, twilio: FaultServer) -> None:
    """Without a fault requests arrive as they were sent, and are answered as Twilio answers."""
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
    """The client sees the same, and Twilio has the message or has not."""
    kind, _, side = name.rpartition("_")
    expected = OUTCOMES[kind]
    outcome = send(relay, f"k;fault={name};x", seconds=0.1 if expected == "TimeoutError" else 5)

    assert expected == outcome
    assert (side == "after") == (len(twilio.requests) == 1)
    assert [(name, side == "after")] == [(each.fault, each.forwarded) for each in relay.requests]


@pytest.mark.parametrize(("name", "forwarded"), [("drip_before", 0), ("drip_after", 1)])
def test_an_answer_drips(relay: FaultServer, twilio: FaultServer, name: str, forwarded: int) -> None:
    """An answer that begins and takes its time is that of Twilio, or of nobody."""
    with socket.create_connection(("127.0.0.1", relay.port), timeout=5) as sock:
        body = f"Body=fault%3D{name}".encode()
        sock.sendall(b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (MESSAGES.encode(), len(body), body))

        assert [b"H", b"T", b"T"] == [sock.recv(1) for _ in range(3)]
    assert forwarded == len(twilio.requests)


@pytest.mark.parametrize(("name", "forwarded"), [("kill_before", 0), ("kill_after", 1)])
def test_the_client_is_killed(relay: FaultServer, twilio: FaultServer, name: str, forwarded: int) -> None:
    """The process that sends is killed before or after Twilio has the message."""
    command = [sys.executable, "-c", _SENDER, str(relay.port), MESSAGES, name]
    client = subprocess.run(command, check=False, timeout=10)

    assert (-9, forwarded) == (client.returncode, len(twilio.requests))


def test_only_a_new_message_takes_its_marker(relay: FaultServer, twilio: FaultServer) -> None:
    """What repeats a message's text is forwarded, but for a marker of its own."""
    query = f"{MESSAGES}?Body=fault%3D500_before"
    outcomes = [request(relay, "GET", query), request(relay, "GET", f"{query}+get_fault%3D503_before")]

    assert [(200, ""), (503, "")] == outcomes
    assert (500, "") == send(relay, "get_fault=503_before fault=500_before")
    assert 1 == len(twilio.requests)


def test_a_turn_can_be_normal(relay: FaultServer, twilio: FaultServer) -> None:
    """Faults of one message come in turn."""
    outcomes = [send(relay, "fault=429_before,500_after,ok") for _ in range(3)]

    assert [429, 500, 201] == [outcome[0] for outcome in outcomes]
    assert 2 == len(twilio.requests)


def test_a_script_comes_after(relay: FaultServer, twilio: FaultServer) -> None:
    """A fault that does not say when comes after the request was forwarded."""
    relay.script(faults.status(500), faults.before("500", faults.status(500)), faults.OK)

    assert [500, 500, 201] == [send(relay, "Hello")[0] for _ in range(3)]
    assert [True, False, True] == [each.forwarded for each in relay.requests]
    assert 2 == len(twilio.requests)


def test_a_callback_can_be_left_out(relay: FaultServer, twilio: FaultServer) -> None:
    """A message that asks for it is forwarded with a blank callback and the rest as it was."""
    send(relay, "a & b;callback=none")
    send(relay, "a & b")

    assert [
        {"To": ["+15550100123"], "StatusCallback": [""], "Body": ["a & b;callback=none"]},
        {"To": ["+15550100123"], "StatusCallback": [CALLBACK], "Body": ["a & b"]},
    ] == [each.form for each in twilio.requests]
    assert [True, True] == [each.complete for each in twilio.requests]


def test_connections_are_refused_for_a_while(relay: FaultServer, twilio: FaultServer) -> None:
    """Connections are refused, and those that are open are closed; afterwards all is as before."""
    with closing(HTTPConnection("127.0.0.1", relay.port, timeout=5)) as connection:
        connection.request("GET", "/")
        connection.getresponse().read()
        with relay.refusing():
            assert "ConnectionRefusedError" == send(relay, "Hello")
            assert b"" == connection.sock.recv(1)

    assert (201, f"SM{1:032x}") == send(relay, "Hello")
    assert 2 == len(twilio.requests)


def test_a_twilio_that_is_away_ends_the_connection(relay: FaultServer) -> None:
    """The relay goes where it is told to at that moment; where nobody is, the client gets no answer."""
    with FaultServer() as other:
        relay.upstream = other.url
        assert 201 == send(relay, "Hello")[0]

    assert "RemoteDisconnected" == send(relay, "Hello")
