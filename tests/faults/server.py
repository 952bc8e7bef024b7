"""An HTTP(S) server on loopback that plays Twilio, and fails as it is told to."""

import re
import socket
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote_plus

from . import tls as certificates
from .faults import NAMED, OK, Fault, Stage
from .tls import Tls
from .twilio import Account, History
from .wire import Closed, Exchange, Gate, Reader, Request

_MARKER = re.compile(r"\bfault=([\w,]+)")


class FaultServer:
    """A Twilio that answers, or fails, from the moment it is made until it is closed.

    What happens to a request is decided, in this order, by
    - a marker in its URL or body: `fault=NAME`, or `fault=NAME,NAME,...` for the first, second, ... request
      that is the same in method, URL and body; the last holds from then on. `server.named` has the names;
    - the script: one fault per request, the last from then on;
    - else it is answered as Twilio would.
    """

    def __init__(self, *, tls: Tls | None = None, port: int = 0) -> None:
        """Listen; `tls` is the kind of certificate, None is plain HTTP."""
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._tls = certificates.context(tls) if tls else None
        self._changed = threading.Condition()
        self._gate = Gate()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepted = 0
        self._closed = False
        self.errors: list[Exception] = []  # of the server itself, shown when it is closed
        self._start_anew()
        self._run(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if self.errors and kind is None:
            raise ExceptionGroup("the fault server failed by itself", self.errors)

    @property
    def requests(self) -> list[Request]:
        """All requests that reached the server, in order, whatever became of them."""
        with self._changed:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """How many connections were accepted, those without a request or a TLS handshake too."""
        with self._changed:
            return self._accepted - self._accepted_before

    @property
    def ca_file(self) -> Path:
        """What a client is to trust; "good", "wrong_host" and "expired" are signed by it."""
        return certificates.ca_file()

    def script(self, *faults: Fault) -> None:
        """Give the next requests these faults in turn, and the last one from then on (OK: answer normally).

        Faults in the TLS handshake are taken by a new connection; a request on an older one that meets one in
        the script is answered normally.
        """
        with self._changed:
            self._script.clear()
            self._script.extend(faults)

    def history(self, count: int, **options: Any) -> History:
        """Fill the account with messages; the options are those of History."""
        with self._changed:
            self._account.history = History(count, **options)
            return self._account.history

    def release(self) -> None:
        """Let all requests go on that hang now."""
        self._gate.release()

    def wait_for(self, count: int, seconds: float = 10) -> list[Request]:
        """Wait until so many requests have reached the server, and return all; raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._requests) >= count, seconds):
                raise TimeoutError(f"{len(self._requests)} of {count} requests came in {seconds} s")
            return list(self._requests)

    def reset(self) -> None:
        """Forget requests, script, history and names; what hangs is released, connections stay open."""
        with self._changed:
            self._start_anew()
        self.release()

    def close(self) -> None:
        """Close all connections, whatever they are doing."""
        self._gate.close()
        with self._changed:
            self._closed = True
            sockets = [self._listener, *self._sockets]
            threads = list(self._threads)
        for sock in sockets:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # TLS would change what its thread still uses
        for thread in threads:
            thread.join(timeout=1)
        self._listener.close()

    def _start_anew(self) -> None:
        self.named: dict[str, Fault] = dict(NAMED)
        self._account = Account()
        self._requests: list[Request] = []
        self._script: deque[Fault] = deque()
        self._marked: Counter[tuple[str, str, bytes]] = Counter()
        self._accepted_before = self._accepted

    def _run(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        with self._changed:
            self._threads = [each for each in self._threads if each.is_alive()]
            thread.start()
            self._threads.append(thread)

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                sock, _ = self._listener.accept()
                with self._changed:
                    self._accepted += 1
                    number = self._accepted
                self._run(self._serve, sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        """Answer the requests of one connection."""
        try:
            self._track(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if fault := self._scripted(Stage.CONNECTED):
                exchange = Exchange(sock, self._gate)
                sock.recv(65536)  # a connection closed with unread bytes is reset
                fault.act(exchange)
                return
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                self._track(sock)
                sock.do_handshake()
            reader = Reader(sock)
            while self._exchange(sock, reader, number):
                pass
        except (OSError, Closed):
            pass  # the client went away, or the server closes
        except Exception as error:  # noqa: BLE001 shown when the server is closed
            self.errors.append(error)
        finally:
            with self._changed:
                self._sockets.discard(sock)
            sock.close()

    def _exchange(self, sock: socket.socket, reader: Reader, number: int) -> bool:
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
        # Made before the request shows: whoever waits for it may release it at once.
        exchange = Exchange(sock, self._gate, request.method, self._account.reply(request))
        self._record(replace(request, fault=fault.name))
        fault.act(exchange)
        return exchange.is_open and (request.header("Connection") or "").lower() != "close"

    def _track(self, sock: socket.socket) -> None:
        with self._changed:
            if self._closed:
                raise Closed
            self._sockets.add(sock)

    def _record(self, request: Request) -> None:
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()

    def _scripted(self, stage: Stage) -> Fault | None:
        """Take the next fault of the script if its stage has come; the last one stays."""
        with self._changed:
            if not self._script or self._script[0].stage is not stage:
                return None
            return self._script.popleft() if len(self._script) > 1 else self._script[0]

    def _marker(self, request: Request) -> Fault | None:
        """Return the fault that a request names."""
        text = f"{request.target} {request.body.decode('latin-1')}"
        if not (marker := _MARKER.search(unquote_plus(text))):
            return None
        names = marker[1].split(",")
        key = (request.method, request.target, request.body)
        with self._changed:
            turn = self._marked[key]
            self._marked[key] += 1
        return self.named[names[min(turn, len(names) - 1)]]
