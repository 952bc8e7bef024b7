"""HTTP on `requests`, with different errors for a request that was never sent and one whose answer was lost."""

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
from requests.adapters import DEFAULT_POOLSIZE, HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import ssl_

from twilio_connector import __version__

USER_AGENT = f"twilio-connector-aws/{__version__} (Python {sys.version.partition(' ')[0]})"

# Lambda may freeze a function between invocations, and the server may close its connections meanwhile. A request on a
# closed connection fails as if it may have been carried out, so connections that idled too long are not used.
_MAX_IDLE = 5.0  # seconds

MAX_THREADS = 50
"""How many threads may send at the same time, each on its own kept connection."""


class ConnectFailedError(Exception):
    """No connection was made, so nothing was sent."""

    def __init__(self, reason: str, *, bad_certificate: bool) -> None:
        """Take the reason, for the error's message."""
        self.bad_certificate = bad_certificate
        super().__init__(reason)


class ResponseLostError(Exception):
    """The request may have arrived, and no complete answer came back."""


class BodyTooLargeError(Exception):
    """The answer has more bytes than the caller takes."""


class Reply(NamedTuple):
    """Status, headers and body of an answer. The body is empty if it is an error's and could not be read."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Timed(io.RawIOBase):
    """Reads a socket until a deadline. The socket's own timeout would start again with every byte."""

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
        # If the connection ends within the headers, http.client takes them for a complete answer without a body.
        if self._timed.ended:
            raise ConnectionError


class _KnowsWhetherSent:
    """Raises `ConnectFailedError` for every failure before the first byte of a request."""

    response_class: Any = _TimedResponse
    idle_since = 0.0
    _held: list[bytes] | None = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send headers and body in one write. http.client makes two: two packets, and two TLS records."""
        self._held = []
        try:
            super().request(*args, **kwargs)  # type: ignore[misc]
            held = b"".join(self._held)
        finally:
            self._held = None
        self.send(held)

    def send(self, data: Any) -> None:
        if self._held is None:
            super().send(data)  # type: ignore[misc]
        else:
            self._held.append(data)

    def connect(self) -> None:
        try:
            super().connect()  # type: ignore[misc]
            self.sock.settimeout(self.timeout)  # type: ignore[attr-defined]
        except Exception as error:  # noqa: BLE001 whatever it is, nothing was sent
            bad_certificate = isinstance(error, ssl.SSLCertVerificationError)
            raise ConnectFailedError(_reason(error), bad_certificate=bad_certificate) from None

    def _new_conn(self) -> socket.socket:
        """Connect within the connect timeout, which covers all addresses of the host together."""
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
    """Return why no connection was made."""
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
    """Return the seconds of a clock that runs on while the function is frozen, if the system has one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class _Pool(_DropsIdle, HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(_DropsIdle, HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


TLS = ssl_.create_urllib3_context()
"""The context of all connections."""

# Reading the certificate authorities takes longer than the rest of a handshake, and requests would read them for each
# connection. This thread reads them once, beside the imports of a cold start, when Lambda gives it whole processors.
_AUTHORITIES = threading.Thread(target=TLS.load_verify_locations, args=[certifi.where()])
_AUTHORITIES.start()


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        self._pools: dict[str, Any] = {}
        super().init_poolmanager(*args, ssl_context=TLS, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def get_connection_with_tls_context(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        """Return the pool of the URL's host. All requests have the same settings, so requests need not compare them."""
        origin = "/".join(str(request.url).split("/", 3)[:3])
        if origin not in self._pools:
            if len(self._pools) >= DEFAULT_POOLSIZE:  # as many hosts as requests keeps
                self._pools.clear()
            self._pools[origin] = super().get_connection_with_tls_context(request, *args, **kwargs)
        return self._pools[origin]

    def request_url(self, request: requests.PreparedRequest, *_: Any) -> str:
        """Return path and query: there are no proxies."""
        return request.path_url

    def close(self) -> None:
        """Close all connections."""
        self._pools.clear()
        super().close()

    def cert_verify(self, *_: Any, **__: Any) -> None:
        """Do nothing: the TLS context demands a certificate and verifies it."""


def prepare(method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> requests.PreparedRequest:
    """Return a request ready to send, with a length unless it is a GET or HEAD without body. `url` must be encoded.

    `requests` itself would take a sixth of a send's CPU for this.
    """
    request = requests.PreparedRequest()
    request.method, request.url, request.body = method, url, body or None
    request.headers = CaseInsensitiveDict(headers)
    if body or method not in {"GET", "HEAD"}:
        request.headers["Content-Length"] = str(len(body))
    return request


class Session:
    """Keeps connections for all invocations.

    It uses no `requests.Session`, so there are no proxies, netrc, cookies or redirects to turn off.
    """

    def __init__(self) -> None:
        """Open no connection yet."""
        self._adapter = _Adapter(pool_maxsize=MAX_THREADS)

    def exchange(self, request: requests.PreparedRequest, *, timeout: Timeout, max_bytes: int) -> Reply:
        """Send a request once and read the whole answer; `max_bytes` counts after decompression.

        Raises ConnectFailedError, ResponseLostError or BodyTooLargeError. Outside 2xx only the status matters, so an
        unreadable body is left out.
        """
        request.headers.setdefault("User-Agent", USER_AGENT)
        try:
            # requests passes urllib3's Timeout through, although its types do not say so.
            response = self._adapter.send(request, stream=True, timeout=timeout)  # type: ignore[arg-type]
        except (requests.RequestException, HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raise ResponseLostError(_lost(error)) from None
        with response:
            try:
                body = _body(response, max_bytes)
            except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
                if response.status_code < 300:  # noqa: PLR2004 HTTP's own number
                    raise ResponseLostError(_lost(error)) from None
                body = b""
            except BodyTooLargeError:
                if response.status_code < 300:  # noqa: PLR2004 as above
                    raise
                body = b""
        return Reply(response.status_code, response.headers, body)


def _body(response: requests.Response, max_bytes: int) -> bytes:
    body: bytes = response.raw.read(max_bytes + 1, decode_content=True)
    if len(body) > max_bytes:
        raise BodyTooLargeError
    return body


def _lost(error: Exception) -> str:
    """Return how the answer was lost, without the URL that the libraries put into their messages."""
    timed_out = isinstance(error, (TimeoutError, requests.Timeout)) or "timed out" in str(error)
    return "no whole answer came in time" if timed_out else "the connection broke off before a whole answer"
