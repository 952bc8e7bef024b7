"""The process at the other end of a connection on this machine."""

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

type Client = psutil.Process
type _Address = tuple[str, int]

_SOON = 1
"""Seconds: every client waits for an answer for longer, so a client that is not found within this time is dead."""


def find(sock: socket.socket) -> Client | None:
    """Return the client's process; None if it no longer exists, because the fault of another request killed it."""
    began = time.monotonic()
    ours, theirs = sock.getsockname(), sock.getpeername()
    pid = _owner_on_linux(theirs, ours) if sys.platform == "linux" else _owner(theirs, ours)
    if pid == os.getpid():
        raise LookupError("the connection comes from this very process")
    with suppress(psutil.NoSuchProcess):
        if pid:
            return psutil.Process(pid)
    if time.monotonic() - began > _SOON:
        raise LookupError("the process may have given up while it was looked for")
    return None


def kill(process: Client | None) -> None:
    """Send SIGKILL to a process, so that it ends as in a crash."""
    if process:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _owner_on_linux(local: _Address, remote: _Address) -> int | None:
    """Return the same as `_owner`, but without parsing all connections, because the client does not wait for long."""
    pair = " ".join(
        f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}" for host, port in (local, remote)
    )
    lines = [line for line in Path("/proc/net/tcp").read_text().splitlines() if pair in line]
    links = {f"socket:[{line.split()[9]}]" for line in lines}
    for file in Path("/proc").glob("[0-9]*/fd/*") if links else ():
        with suppress(OSError):
            if str(file.readlink()) in links:
                return int(file.parts[2])
    return None


def _owner(local: _Address, remote: _Address) -> int | None:
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ended in the meantime, or belongs to another user
            if any((local, remote) == (each.laddr, each.raddr) for each in process.net_connections("tcp4")):
                return process.pid
    return None
