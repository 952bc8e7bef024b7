"""The data on one connection: the requests exactly as received, and the answers that faults send."""

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
_LOOK_SECONDS = 0.2  # how often a hanging exchange checks that its client is still connected


@dataclass(frozen=True, slots=True)
class Request:
    """The bytes of one request that reached the server.

    `head` is the request line and the headers. `head` and `body` are empty if a fault acted before the server read
    anything. `complete` is whether the server read the whole request. `time` is in seconds since the epoch.
    `connection` is a number from 1. `fault` is the name of the request's fault. `forwarded` is whether a relay
    forwarded the request.
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
        """The HTTP method."""
        return self._request_line[0]

    @property
    def target(self) -> str:
        """The path and the query as received, still percent-encoded."""
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
        """The names and values of the headers, in the order of the request."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return [(name, value.strip()) for name, colon, value in (line.partition(":") for line in lines) if colon]

    @property
    def form(self) -> dict[str, list[str]]:
        """The decoded fields of a form body, including blank values."""
        return _fields(self.body.decode("latin-1"))

    @property
    def parameters(self) -> dict[str, list[str]]:
        """The decoded fields of the query, including blank values."""
        return _fields(self.query)

    @property
    def credentials(self) -> tuple[str, str] | None:
        """The user and the password of Basic authentication, or None."""
        scheme, _, encoded = (self.header("Authorization") or "").partition(" ")
        if scheme.lower() != "basic":
            return None
        user, _, password = base64.b64decode(encoded).decode().partition(":")
        return user, password

    def header(self, name: str) -> str | None:
        """Return the first value of a header; its name is not case-sensitive."""
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
    """An answer; it adds the length, the JSON content type and Twilio's request id if `headers` lacks them."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def json(cls, status: int, value: Any) -> "Reply":
        """Return an answer whose body is a value as JSON."""
        return cls(status, json.dumps(value).encode())

    @property
    def head(self) -> bytes:
        """The status line and the headers, including the blank line that ends them."""
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


class Closed(Exception):  # noqa: N818 an internal exception, named after the event
    """The exception that ends waiting faults when the server closes or the client disconnects."""


class Gate:
    """A gate at which faults wait until they are released or the server closes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._releases = 0
        self._closed = False

    def ticket(self) -> int:
        """Return a ticket for `wait`: only a release after this call ends the wait."""
        return self._releases

    def release(self) -> None:
        """Release all faults that hold a ticket."""
        with self._changed:
            self._releases += 1
            self._changed.notify_all()

    def close(self) -> None:
        """End all present and future waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self, ticket: int | None, seconds: float | None = None) -> bool:
        """Wait for a release after `ticket`, or for a time; return whether it was released; raises Closed."""
        with self._changed:
            released = self._changed.wait_for(lambda: self._closed or ticket not in {None, self._releases}, seconds)
            if self._closed:
                raise Closed
            return released


class Exchange:
    """One request and its answer, passed to the fault that handles them; `normal` is Twilio's normal answer."""

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
        """Send bytes unchanged."""
        self._sock.sendall(data)

    def reply(self, reply: Reply) -> None:
        """Send a complete answer."""
        self.send(reply.head + (reply.body if self._has_body else b""))

    def close(self, *, reset: bool = False) -> None:
        """Close the connection, or reset it with an RST."""
        if reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._sock.close()
        self.is_open = False

    def pause(self, seconds: float) -> None:
        """Wait for a time; raises Closed if the server closes."""
        self._gate.wait(None, seconds)

    def hang(self) -> None:
        """Wait until the server releases hanging requests; raises Closed if the client disconnects."""
        while not self._gate.wait(self._ticket, _LOOK_SECONDS):
            with suppress(BlockingIOError):
                if not socket.socket.recv(self._sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    raise Closed

    def aim(self) -> None:
        """Find the client's process for `kill` while it is certain to be waiting for the answer."""
        self._client = peers.find(self._sock)
        self._is_aimed = True

    def kill(self) -> None:
        """Kill the client's process, and close the connection."""
        if not self._is_aimed:
            self.aim()
        peers.kill(self._client)
        self.close()


class Reader:
    """A reader of the requests on a connection; it also returns the received part of an incomplete request."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._data = bytearray()

    def wait(self) -> bool:
        """Wait for the first byte of a request without reading it; False means the end of the connection."""
        # Use the plain socket below TLS, because TLS's own recv() cannot peek.
        return bool(self._data) or bool(socket.socket.recv(self._sock, 1, socket.MSG_PEEK))

    def read(self) -> tuple[bytes, bytes, bool]:
        """Return the head and the body of a request, and whether the request is complete."""
        head = self._until(b"\r\n\r\n")
        request = Request(0, 0, head=head)
        if not head.endswith(b"\r\n\r\n"):
            return head, b"", False
        if request.header("Transfer-Encoding"):
            body = self._until(b"0\r\n\r\n")  # the chunked encoding is kept
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
