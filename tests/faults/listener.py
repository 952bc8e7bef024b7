"""A server on loopback with a thread for each connection. It closes at once, even if its threads are busy."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self
from weakref import WeakSet

from .wire import Closed, Gate


class Listener:
    """A server that accepts connections from `_start` until it is closed; `_talk` serves each one."""

    def __init__(self, port: int = 0) -> None:
        """Reserve the port; connections wait until `_start`."""
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._changed = threading.Condition()
        self._gate = Gate()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._threads: list[threading.Thread] = []
        self._accepted = 0
        self._closed = False
        self.errors: list[Exception] = []  # the server's own errors, raised when it is closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if self.errors and kind is None:
            raise ExceptionGroup("the fault server failed by itself", self.errors)

    def release(self) -> None:
        """Release all requests that hang now."""
        self._gate.release()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Close all connections, and refuse new ones during a `with` block."""
        self._disconnect()
        self._acceptor.join()
        self._listener.close()
        self._listener = socket.socket()  # reserves the port, so that no other process listens on it
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        try:
            yield
        finally:
            self._listener.listen(1024)
            self._start()

    def close(self) -> None:
        """Close all connections at once, even if requests are in progress."""
        self._gate.close()
        with self._changed:
            self._closed = True
            threads = list(self._threads)
        self._disconnect()
        for thread in threads:
            thread.join(timeout=1)
        self._listener.close()

    def _talk(self, sock: socket.socket, number: int) -> None:
        """Serve one connection to its end; connections are numbered from 1."""
        raise NotImplementedError

    def _start(self) -> None:
        self._acceptor = self._run(self._accept)

    def _run(self, target: Any, *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        with self._changed:
            self._threads = [each for each in self._threads if each.is_alive()]
            thread.start()
            self._threads.append(thread)
        return thread

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                sock, _ = self._listener.accept()
                with self._changed:
                    self._accepted += 1
                    number = self._accepted
                self._run(self._serve, sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        """Serve one connection, and keep the server's own errors."""
        with sock:
            try:
                self._track(sock)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._talk(sock, number)
            except (OSError, Closed):
                pass  # the client closed the connection, or the server closes
            except Exception as error:  # noqa: BLE001 raised when the server is closed
                self.errors.append(error)

    def _track(self, sock: socket.socket) -> None:
        """Register a socket to be closed with the server; raises Closed if the server is closed already."""
        with self._changed:
            if self._closed:
                raise Closed
            self._sockets.add(sock)

    def _disconnect(self) -> None:
        with self._changed:
            sockets = [self._listener, *self._sockets]
        for sock in sockets:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # TLS would change state that its thread uses
