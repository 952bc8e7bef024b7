"""Addresses that no request may reach (a canary) or can reach (a closed port, a black hole)."""

import ipaddress
import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Self
from unittest.mock import patch

from . import tls
from .wire import Reader, Reply, Request

_TLS_HANDSHAKE = b"\x16"
_ANSWER = Reply(200, b'{"sid": "SM00000000000000000000000000000000"}', (("Connection", "close"),))


class Visit(NamedTuple):
    """One connection to a canary: its first bytes, and its request if it sent one, also over TLS."""

    first_bytes: bytes
    request: Request

    @property
    def authorization(self) -> str | None:
        """The Authorization header, which must never arrive at a canary."""
        return self.request.header("Authorization")


class Canary:
    """A listener that no request may reach; it answers every request, so that it does not stop its clients.

    `names` are the host names and ports that `resolve_to` redirected to it. It answers TLS with a self-signed
    certificate. A client that verifies it leaves only a ClientHello in `first_bytes`; any other leaves its request.
    """

    def __init__(self) -> None:
        """Start to listen."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.names: list[tuple[str, int]] = []
        self._visits: list[Visit] = []
        self._threads: list[threading.Thread] = []
        self._own: set[Any] = set()
        self._seen = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def visits(self) -> list[Visit]:
        """All connections so far; the list is complete, because the listener accepts connections in order."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            own = probe.getsockname()
            self._own.add(own)
            probe.connect(self._listener.getsockname())
            with self._seen:
                self._seen.wait_for(lambda: own not in self._own, 10)
        for thread in list(self._threads):
            thread.join(timeout=10)
        return list(self._visits)

    def reset(self) -> None:
        """Delete all visits."""
        _ = self.visits  # wait for connections that are still open, so that they are deleted too
        self._visits.clear()
        self._threads.clear()
        self.names.clear()

    def close(self) -> None:
        """Stop listening."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                sock, peer = self._listener.accept()
                with self._seen:
                    if peer in self._own:
                        sock.close()
                        self._own.discard(peer)
                        self._seen.notify_all()
                        continue
                    thread = threading.Thread(target=self._receive, args=(sock,), daemon=True)
                    thread.start()
                    self._threads.append(thread)

    def _receive(self, sock: socket.socket) -> None:
        """Record what a client sends within some seconds, and answer it."""
        sock.settimeout(3)
        first_bytes = head = body = b""
        complete = False
        try:
            first_bytes = sock.recv(4096, socket.MSG_PEEK)
            if first_bytes[:1] == _TLS_HANDSHAKE:
                sock = tls.context("self_signed").wrap_socket(sock, server_side=True)
            head, body, complete = Reader(sock).read()
        except OSError:
            pass  # the client closed the connection, or does not trust the certificate
        self._visits.append(Visit(first_bytes, Request(0, 0, head=head, body=body, complete=complete)))
        with suppress(OSError):
            sock.sendall(_ANSWER.head + _ANSWER.body)
        sock.close()


@contextmanager
def resolve_to(canary: Canary, *, allow: Collection[int] | None = None) -> Iterator[Canary]:
    """Redirect all connections of this process, to any host name, address and port, to a canary.

    The only exceptions are loopback literals (127.0.0.1, ::1) with a port in `allow`; None allows all ports.
    """
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if _is_loopback(host) and (allow is None or port in allow):
            return real(host, port, *arguments, **options)
        canary.names.append((host.decode() if isinstance(host, bytes) else str(host), port))
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", canary.port))]

    with patch.object(socket, "getaddrinfo", resolve):
        yield canary


def _is_loopback(host: Any) -> bool:
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host).is_loopback
    except ValueError:
        return False


@contextmanager
def closed_port() -> Iterator[int]:
    """Return a port that refuses connections. It stays reserved, so that no other process can listen on it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextmanager
def black_hole() -> Iterator[int]:
    """Return a port that never answers a connection: its backlog is full, so the system drops new connections."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        queued = [socket.socket() for _ in range(4)]
        for sock in queued:
            sock.settimeout(0)
            sock.connect_ex(listener.getsockname())
        try:
            yield listener.getsockname()[1]
        finally:
            for sock in queued:
                sock.close()
