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
"""Seconds: no client gives up so early, so that one which is not found by then is dead."""


def find(sock: socket.socket) -> Client | None:
    """Return the process that a connection comes from; None is one that was killed, by another of its requests."""
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
    """SIGKILL a process: it does nothing any more, as after a crash."""
    if process:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _owner_on_linux(local: _Address, remote: _Address) -> int | None:
    """Do what `_owner` does, without having the whole machine's table parsed: a client does not wait for long."""
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
        with suppress(psutil.Error):  # gone meanwhile, or somebody else's
            if any((local, remote) == (each.laddr, each.raddr) for each in process.net_connections("tcp4")):
                return process.pid
    return None
