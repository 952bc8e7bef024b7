"""An HTTP(S) server on loopback that acts as Twilio, or as a relay in front of it, and injects faults."""

import re
import socket
import time
from collections import Counter, deque
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

from . import tls as certificates
from .faults import NAMED, OK, Fault, Stage
from .keys import Credentials
from .listener import Listener
from .tls import Tls
from .twilio import Account, History
from .upstream import Upstream
from .wire import Exchange, Reader, Reply, Request

_MARKER = re.compile(r"\bfault=([\w,]+)")
_MARKER_OF_OTHERS = re.compile(r"\bget_fault=([\w,]+)")
_WITHOUT_CALLBACK = re.compile(r"\bcallback=none\b")
_LENGTH = re.compile(rb"(\r\ncontent-length: *)\d+", re.IGNORECASE)


class FaultServer(Listener):
    """A server that acts as Twilio, with faults, from its construction until it is closed.

    The first of these that applies decides about a request:
    - a marker in its URL or body: `fault=NAME`, or `fault=NAME,NAME,...` for the first, second, ... request
      with the same method, URL and body; the last one repeats. `server.named` has the names;
    - the script: one fault per request; the last one repeats;
    - otherwise, the server answers as Twilio would.

    With `upstream`, which can be set at any time, the server is a relay: the upstream server gives the normal answer.
    A fault acts after the request was forwarded, unless its name ends with `_before`. A relay reads `fault=` only from
    requests that create a message. It answers other requests with the same text normally, unless they contain
    `get_fault=NAME`. `callback=none` makes the relay create the message without status callbacks.
    """

    def __init__(self, *, upstream: str | None = None, tls: Tls | None = None, port: int = 0) -> None:
        """Start to listen; `upstream` is the URL to relay to, `tls` the kind of certificate (None: plain HTTP)."""
        super().__init__(port)
        self.upstream = upstream
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._tls = certificates.context(tls) if tls else None
        self._start_anew()
        self._start()

    @property
    def requests(self) -> list[Request]:
        """All requests that reached the server, in order, including those that were not answered."""
        with self._changed:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """The number of accepted connections, including those without a request or a TLS handshake."""
        with self._changed:
            return self._accepted - self._accepted_before

    @property
    def ca_file(self) -> Path:
        """The CA certificate for clients to trust; it signed the "good", "wrong_host" and "expired" certificates."""
        return certificates.ca_file()

    def script(self, *faults: Fault) -> None:
        """Give the next requests these faults in order; the last one repeats (OK: answer normally).

        Only a new connection takes a fault of the TLS handshake. If it is the next one in the script, a request on an
        older connection is answered normally.
        """
        with self._changed:
            self._script.clear()
            self._script.extend(faults)

    def history(self, count: int, **options: Any) -> History:
        """Fill the account with messages; the options are those of History."""
        with self._changed:
            self._account.history = History(count, **options)
            return self._account.history

    def check(self, *accounts: Credentials) -> None:
        """Accept only requests with credentials of one of these accounts, and let requests change them."""

        def reply(request: Request) -> Reply | None:
            return next((each for each in accounts if each.knows(request)), accounts[0]).reply(request)

        with self._changed:
            self._account.first = reply

    def wait_for(self, count: int, seconds: float = 10) -> list[Request]:
        """Wait until this number of requests has reached the server, and return all; raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._requests) >= count, seconds):
                raise TimeoutError(f"{len(self._requests)} of {count} requests came in {seconds} s")
            return list(self._requests)

    def reset(self) -> None:
        """Reset requests, script, history, credentials and names, and release hanging requests; keep connections."""
        with self._changed:
            self._start_anew()
        self.release()

    def _start_anew(self) -> None:
        self.named: dict[str, Fault] = dict(NAMED)
        self._account = Account()
        self._requests: list[Request] = []
        self._script: deque[Fault] = deque()
        self._marked: Counter[tuple[str, str, bytes]] = Counter()
        self._accepted_before = self._accepted

    def _talk(self, sock: socket.socket, number: int) -> None:
        if fault := self._scripted(Stage.CONNECTED):
            exchange = Exchange(sock, self._gate)
            sock.recv(65536)  # a connection that is closed with unread bytes is reset
            fault.act(exchange)
        elif self._tls:
            with self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False) as secure:
                self._track(secure)
                secure.do_handshake()
                self._converse(secure, number)
        else:
            self._converse(sock, number)

    def _converse(self, sock: socket.socket, number: int) -> None:
        """Answer the requests of one connection."""
        reader = Reader(sock)
        with closing(Upstream(self._track)) as upstream:
            while self._exchange(sock, reader, number, upstream):
                pass

    def _exchange(self, sock: socket.socket, reader: Reader, number: int, upstream: Upstream) -> bool:
        """Answer one request; return whether the connection can have another."""
        if not reader.wait():
            return False
        exchange = Exchange(sock, self._gate)
        if fault := self._scripted(Stage.READABLE):
            self._record(Request(number, time.time(), fault.name))
            fault.act(exchange)
            return False
        head, body, complete = reader.read()
        if not head:
            return False
        request = Request(number, time.time(), head=head, body=body, complete=complete)
        if not complete:
            self._record(request)
            return False
        fault = self._marker(request) or self._scripted(Stage.RECEIVED) or OK
        is_forwarded = self.upstream is not None and fault.forwards
        # Create it before the request is recorded, because a waiting test can then release the request at once.
        exchange = Exchange(sock, self._gate, request.method)
        try:
            exchange.normal = self._forwarded(upstream, request) if is_forwarded else self._account.reply(request)
        finally:
            self._record(replace(request, fault=fault.name, forwarded=is_forwarded))
        fault.act(exchange)
        return exchange.is_open and (request.header("Connection") or "").lower() != "close"

    def _forwarded(self, upstream: Upstream, request: Request) -> Reply:
        """Forward a request, and return the upstream server's answer."""
        if _takes_markers(request) and _WITHOUT_CALLBACK.search(_text(request)):
            request = _without_callback(request)
        answer = upstream.forward(self.upstream or "", request)
        return Reply(answer.status, answer.body, answer.headers)

    def _record(self, request: Request) -> None:
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()

    def _scripted(self, stage: Stage) -> Fault | None:
        """Return the script's next fault if it acts at this stage, and remove it unless it is the last one."""
        with self._changed:
            if not self._script or self._script[0].stage is not stage:
                return None
            return self._script.popleft() if len(self._script) > 1 else self._script[0]

    def _marker(self, request: Request) -> Fault | None:
        """Return the fault that a request's marker names, or None."""
        pattern = _MARKER if self.upstream is None or _takes_markers(request) else _MARKER_OF_OTHERS
        if not (marker := pattern.search(_text(request))):
            return None
        names = marker[1].split(",")
        key = (request.method, request.target, request.body)
        with self._changed:
            turn = self._marked[key]
            self._marked[key] += 1
        return self.named[names[min(turn, len(names) - 1)]]


def _takes_markers(request: Request) -> bool:
    return request.method == "POST" and request.path.endswith("/Messages.json")


def _text(request: Request) -> str:
    """Return the decoded URL and body, which can contain markers."""
    return unquote_plus(f"{request.target} {request.body.decode('latin-1')}")


def _without_callback(request: Request) -> Request:
    """Return the request without status callbacks; a blank URL also disables the default one of the sender."""
    fields = [field for field in request.body.split(b"&") if not field.startswith(b"StatusCallback=")]
    body = b"&".join([*fields, b"StatusCallback="])
    head = _LENGTH.sub(rb"\g<1>%d" % len(body), request.head)
    return replace(request, head=head, body=body)
