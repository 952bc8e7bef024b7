"""A connection from a proxy to the server behind it."""

import http.client
import select
import socket
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from .wire import Request

_FRAMING = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})


class Answer(NamedTuple):
    """A complete answer; `headers` excludes the connection's headers and the length."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class Upstream:
    """A connection that is kept open for the next request; each thread has its own."""

    def __init__(self, track: Callable[[socket.socket], None]) -> None:
        """Pass each new socket to `track` before the first request."""
        self._track = track
        self._sock: socket.socket | None = None
        self._url = ""

    def forward(self, url: str, request: Request) -> Answer:
        """Send a request with unchanged bytes, and return the answer; raises OSError."""
        sock = self._connected(url)
        response = http.client.HTTPResponse(sock, method=request.method)
        try:
            sock.sendall(request.head + request.body)
            response.begin()
            body = response.read()
        except http.client.HTTPException as error:
            self.close()
            raise ConnectionError("the server behind broke its answer off") from error
        except OSError:
            self.close()
            raise
        if response.will_close:
            self.close()
        headers = tuple((name, value) for name, value in response.getheaders() if name.lower() not in _FRAMING)
        return Answer(response.status, response.reason, headers, body)

    def close(self) -> None:
        """Close the connection."""
        if self._sock:
            self._sock.close()
            self._sock = None

    def _connected(self, url: str) -> socket.socket:
        if self._sock and (url != self._url or _is_readable(self._sock)):
            self.close()  # the server has closed it
        if not self._sock:
            parts = urlsplit(url)
            self._sock = socket.create_connection((parts.hostname, parts.port))
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._track(self._sock)
            self._url = url
        return self._sock


def _is_readable(sock: socket.socket) -> bool:
    """Return whether a socket has data to read; select() would fail for file descriptors above 1,023."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
