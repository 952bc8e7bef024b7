"""What goes over one connection: requests as they came, answers as a fault sends them."""

import base64
import json
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from . import peers

REQUEST_ID = "RQ" + "0" * 32
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST
_LOOK_SECONDS = 0.2  # how often what hangs looks whether its client is still there


@dataclass(frozen=True, slots=True)
class Request:
    """What of one request reached the server, byte for byte.

    `head` is the request line and the headers; it is empty, as `body` is, where a fault came before anything
    was read. `complete` tells whether all of the request was read. `time` is in seconds since the epoch,
    `connection` counts from 1, `fault` is the name of the fault that the request was given. `forwarded` tells
    whether a relay passed it on.
    """

    connection: int
    time: float
    fault: str = ""
    head: bytes = b""
    body: bytes = b""
    complete: bool = False
    forwarded: bool = False

    @property
    def method(self) -> str:
        """GET, POST and so on."""
        return self._request_line[0]

    @property
    def target(self) -> str:
        """Path and query as they came, percent-encoding and all."""
        return self._request_line[1]

    @property
    def path(self) -> str:
        """The target before the first question mark."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """The target after the first question mark, not decoded."""
        return self.target.partition("?")[2]

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Names and values in the order in which they came."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return [(name, value.strip()) for name, colon, value in (line.partition(":") for line in lines) if colon]

    @property
    def form(self) -> dict[str, list[str]]:
        """The decoded fields of a form body; blank values count."""
        return _fields(self.body.decode("latin-1"))

    @property
    def parameters(self) -> dict[str, list[str]]:
        """The decoded fields of the query; blank values count."""
        return _fields(self.query)

    @property
    def credentials(self) -> tuple[str, str] | None:
        """User and password of Basic authentication."""
        scheme, _, encoded = (self.header("Authorization") or "").partition(" ")
        if scheme.lower() != "basic":
            return None
        user, _, password = base64.b64decode(encoded).decode().partition(":")
        return user, password

    def header(self, name: str) -> str | None:
        """Return the first value of a header, whatever its case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def _request_line(self) -> list[str]:
        line = self.head.partition(b"\r\n")[0].decode("latin-1")
        return [*line.split(" "), "", ""]


def _fields(encoded: str) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in parse_qsl(encoded, keep_blank_values=True):
        fields.setdefault(name, []).append(value)
    return fields


class Reply(NamedTuple):
    """An answer; length, JSON as content type and Twilio's request id are added where `headers` has none."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def json(cls, status: int, value: Any) -> "Reply":
        """Make an answer of a value."""
        return cls(status, json.dumps(value).encode())

    @property
    def head(self) -> bytes:
        """Status line and headers with the blank line that ends them."""
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(self.body)),
            "Twilio-Request-Id": REQUEST_ID,
        }
        given = {name.lower() for name, _ in self.headers}
        if self.status == 204 or "transfer-encoding" in given:
            del headers["Content-Length"]
        lines = [
            *((name, value) for name, value in headers.items() if name.lower() not in given),
            *self.headers,
        ]
        text = "".join(f"{name}: {value}\r\n" for name, value in lines)
        return f"HTTP/1.1 {self.status} Status\r\n{text}\r\n".encode("latin-1")


class Closed(Exception):  # noqa: N818 says what happened, and is not seen outside
    """The server closes, so a fault that waits ends."""


class Gate:
    """Where faults wait, until they are released or the server closes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._releases = 0
        self._closed = False

    def ticket(self) -> int:
        """Return what `wait` is to be given: only a release after this one ends the wait."""
        return self._releases

    def release(self) -> None:
        """Let all go on that hold a ticket."""
        with self._changed:
            self._releases += 1
            self._changed.notify_all()

    def close(self) -> None:
        """End all waits, now and later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self, ticket: int | None, seconds: float | None = None) -> bool:
        """Wait for a release after `ticket`, or for a time; tell whether it was a release; raises Closed."""
        with self._changed:
            released = self._changed.wait_for(lambda: self._closed or ticket not in {None, self._releases}, seconds)
            if self._closed:
                raise Closed
            return released


class Exchange:
    """One request and its answer, as a fault sees them; `normal` is what Twilio would answer."""

    def __init__(self, sock: socket.socket, gate: Gate, method: str = "", normal: Reply | None = None) -> None:
        self.normal = normal or Reply(500)
        self.is_open = True
        self._sock = sock
        self._gate = gate
        self._ticket = gate.ticket()
        self._has_body = method != "HEAD"
        self._client: peers.Client | None = None
        self._is_aimed = False

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._sock.sendall(data)

    def reply(self, reply: Reply) -> None:
        """Send a whole answer."""
        self.send(reply.head + (reply.body if self._has_body else b""))

    def close(self, *, reset: bool = False) -> None:
        """Close the connection, or break it off with a RST."""
        if reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._sock.close()
        self.is_open = False

    def pause(self, seconds: float) -> None:
        """Wait, unless the server closes."""
        self._gate.wait(None, seconds)

    def hang(self) -> None:
        """Wait until the server releases what hangs, or the client has had enough."""
        while not self._gate.wait(self._ticket, _LOOK_SECONDS):
            with suppress(BlockingIOError):
                if not socket.socket.recv(self._sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    raise Closed

    def aim(self) -> None:
        """Find the client's process for `kill`, while it surely waits for the answer."""
        self._client = peers.find(self._sock)
        self._is_aimed = True

    def kill(self) -> None:
        """Kill the client's process, and close the connection."""
        if not self._is_aimed:
            self.aim()
        peers.kill(self._client)
        self.close()


class Reader:
    """Reads requests from a connection, and keeps what came of one that was broken off."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._data = bytearray()

    def wait(self) -> bool:
        """Wait for the first byte of a request without reading it; False is the end of the connection."""
        # Below TLS, whose own recv() can not peek.
        return bool(self._data) or bool(socket.socket.recv(self._sock, 1, socket.MSG_PEEK))

    def read(self) -> tuple[bytes, bytes, bool]:
        """Return the head and the body of a request, and whether that is all of it."""
        head = self._until(b"\r\n\r\n")
        request = Request(0, 0, head=head)
        if not head.endswith(b"\r\n\r\n"):
            return head, b"", False
        if request.header("Transfer-Encoding"):
            body = self._until(b"0\r\n\r\n")  # left as it came
            return head, body, body.endswith(b"0\r\n\r\n")
        length = int(request.header("Content-Length") or 0)
        while len(self._data) < length and self._fill():
            pass
        body = self._take(length)
        return head, body, len(body) == length

    def _until(self, end: bytes) -> bytes:
        searched = 0
        while (found := self._data.find(end, searched)) < 0:
            searched = max(len(self._data) - len(end), 0)
            if not self._fill():
                return self._take(len(self._data))
        return self._take(found + len(end))

    def _take(self, length: int) -> bytes:
        taken = bytes(self._data[:length])
        del self._data[:length]
        return taken

    def _fill(self) -> bool:
        try:
            data = self._sock.recv(65536)
        except OSError:
            return False
        self._data += data
        return bool(data)
