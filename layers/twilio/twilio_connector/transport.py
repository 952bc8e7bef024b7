"""HTTP on `requests`, made to tell a request that was never sent from one whose answer was lost."""

import http.client
import io
import socket
import ssl
import sys
import threading
import time
from collections.abc import Buffer, Mapping
from typing import Any, NamedTuple

import certifi
import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import ssl_

from twilio_connector import __version__

USER_AGENT = f"twilio-connector-aws/{__version__} (Python {sys.version.partition(' ')[0]})"

# A function may be frozen between invocations while the server closes its connections. Such a connection ends
# a request in a way that cannot be told from one that was carried out, so it is not used again.
_MAX_IDLE = 5.0  # seconds

MAX_THREADS = 50
"""So many may send at the same time, each on a connection that is kept."""


class NeverSent(Exception):  # noqa: N818 says what happened, and is not seen outside the layer
    """No connection came about, so nothing of the request left."""

    def __init__(self, reason: str, *, bad_certificate: bool) -> None:
        """`reason` is for people."""
        self.bad_certificate = bad_certificate
        super().__init__(reason)


class Lost(Exception):  # noqa: N818 as above
    """The request may have arrived, and no whole answer came back."""


class TooLarge(Exception):  # noqa: N818 as above
    """The answer has more bytes than the caller takes."""


class Reply(NamedTuple):
    """What came back: status, headers and, but for an error's body that could not be read, the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Timed(io.RawIOBase):
    """A socket's bytes until a deadline: a socket's own timeout starts anew with every byte that drips in."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self.ended = False
        self._raw = raw
        self._sock = sock
        self._deadline = time.monotonic() + (sock.gettimeout() or 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int | None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._sock.settimeout(remaining)
        count = self._raw.readinto(buffer)
        self.ended = count == 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    """A response whose status line, headers and body together end within the read timeout."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._timed = _Timed(self.fp.detach(), sock)
        self.fp = io.BufferedReader(self._timed)

    def begin(self) -> None:
        super().begin()
        # http.client takes headers that break off for all headers, of an answer without a body.
        if self._timed.ended:
            raise ConnectionError


class _KnowsWhetherSent:
    """Makes every failure before the first byte of a request a `NeverSent`."""

    response_class: Any = _TimedResponse
    idle_since = 0.0

    def connect(self) -> None:
        try:
            super().connect()  # type: ignore[misc]
            self.sock.settimeout(self.timeout)  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001 whatever it is, nothing was sent
            bad_certificate = isinstance(error, ssl.SSLCertVerificationError)
            raise NeverSent(_reason(error), bad_certificate=bad_certificate) from None

    def _new_conn(self) -> socket.socket:
        """Connect within the connect timeout, which holds for all addresses of the host together."""
        host, port, timeout = self._dns_host, self.port, self.timeout  # type: ignore[attr-defined]
        deadline = time.monotonic() + timeout
        failure: OSError = OSError("no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                sock.connect(address)
            except OSError as error:
                sock.close()
                failure = error
                continue
            sock.settimeout(max(deadline - time.monotonic(), 0.001))  # what is left is for TLS
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        raise failure


def _reason(error: Exception) -> str:
    """Return why no connection came about."""
    match error:
        case socket.gaierror():
            return "its name did not resolve"
        case ssl.SSLCertVerificationError():
            return "its certificate does not verify"
        case TimeoutError():
            return "connecting took too long"
        case ssl.SSLError():
            return "the TLS handshake failed"
        case _:
            return "the connection was refused or broken off"


class _Connection(_KnowsWhetherSent, HTTPConnection):
    pass


class _TlsConnection(_KnowsWhetherSent, HTTPSConnection):
    def connect(self) -> None:
        _AUTHORITIES.join()
        super().connect()


class _DropsIdle:
    """Closes a pooled connection that idled too long; urllib3 then opens a new one."""

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)  # type: ignore[misc]
        if _clock() - connection.idle_since > _MAX_IDLE:
            connection.close()
        return connection

    def _put_conn(self, connection: Any) -> None:
        if connection:
            connection.idle_since = _clock()
        super()._put_conn(connection)  # type: ignore[misc]


def _clock() -> float:
    """Return seconds of a clock that goes on while the function is frozen, where the system has one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class _Pool(_DropsIdle, HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(_DropsIdle, HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


TLS = ssl_.create_urllib3_context()
"""The context of all connections."""

# To read all the authorities takes longer than the rest of a handshake, and requests would do it for each connection.
# This is done once, while the function starts, when Lambda gives it whole processors, and beside the other imports.
_AUTHORITIES = threading.Thread(target=TLS.load_verify_locations, args=[certifi.where()], daemon=True)
_AUTHORITIES.start()


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=TLS, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def cert_verify(self, *_: Any, **__: Any) -> None:
        """Leave that to the context, which demands a certificate and knows the authorities."""


class Session:
    """Connections for all invocations, which are kept.

    It is requests without a `requests.Session`: there are no proxies, netrc, cookies or redirects to turn off.
    """

    def __init__(self) -> None:
        """Open no connection yet."""
        self._adapter = _Adapter(pool_maxsize=MAX_THREADS)

    def exchange(self, request: requests.PreparedRequest, *, timeout: Timeout, max_bytes: int) -> Reply:
        """Send a request once and read the whole answer; `max_bytes` counts after decompression.

        Raises NeverSent, Lost or TooLarge. What matters about an answer outside 2xx is its status: a body that
        cannot be read is left out there.
        """
        request.headers.setdefault("User-Agent", USER_AGENT)
        try:
            # requests hands urllib3's Timeout through, though its types do not say so.
            response = self._adapter.send(request, stream=True, timeout=timeout)  # type: ignore[arg-type]
        except (requests.RequestException, HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raise Lost(_lost(error)) from None
        with response:
            try:
                body = _body(response, max_bytes)
            except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
                if response.status_code < 300:  # noqa: PLR2004 HTTP's own number
                    raise Lost(_lost(error)) from None
                body = b""
            except TooLarge:
                if response.status_code < 300:  # noqa: PLR2004 as above
                    raise
                body = b""
        return Reply(response.status_code, response.headers, body)


def _body(response: requests.Response, max_bytes: int) -> bytes:
    body: bytes = response.raw.read(max_bytes + 1, decode_content=True)
    if len(body) > max_bytes:
        raise TooLarge
    return body


def _lost(error: Exception) -> str:
    """Return how the answer was lost, without the URL that the libraries put into their messages."""
    timed_out = isinstance(error, (TimeoutError, requests.Timeout)) or "timed out" in str(error)
    return "no whole answer came in time" if timed_out else "the connection broke off before a whole answer"
