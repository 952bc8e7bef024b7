"""Run programs to their end, or start servers that continue after this program ends.

While a server runs, it holds a lock on the file with its process id. The lock shows that it runs, even if another
process gets the same id later.
"""

import fcntl
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import requests

from local import LocalError, loopback

_STOP_SECONDS = 5
_START_SECONDS = 60
_POLL_SECONDS = 0.05
_LAST_LINES = 15
_PORT_TAKEN = re.compile("(address|is) already in use", re.IGNORECASE)

_children: dict[int, subprocess.Popen[bytes]] = {}


def free_port() -> int:
    """Return an unused port of the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def is_free(port: int) -> bool:
    """Return whether a server can listen on a port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: it ignores closed connections
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def exclusive(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold a lock; if another process holds it, wait, or raise LocalError with `busy` if that is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise LocalError(busy) from None
        yield


class Job(NamedTuple):
    """A program to run."""

    what: str  # its name in error messages and file names
    command: Sequence[object]  # texts, paths and numbers
    environment: Mapping[str, str]
    cwd: Path


def run(job: Job, log: Path, seconds: int) -> None:
    """Run a program to its end, and write its output to the log; raises LocalError if it fails."""
    with log.open("wb") as output:
        process = _spawn(job, output)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise LocalError(f"{job.what} took longer than {seconds} s; {_tail(log)}") from None
    finally:
        if process.returncode is None:
            _signal(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        raise LocalError(f"{job.what} failed; {_tail(log)}")


def start(folder: Path, job: Job) -> None:
    """Start a server, and write its process id to a file that it keeps locked."""
    with (folder / f"{job.what}.pid").open("a+") as lock, log_path(folder, job.what).open("wb") as output:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process = _spawn(job, output, pass_fds=[lock.fileno()])
        _children[process.pid] = process
        lock.truncate(0)
        lock.write(str(process.pid))


def log_path(folder: Path, name: str) -> Path:
    """Return the path of a program's log."""
    return folder / "logs" / f"{name}.log"


def wait_until_answers(folder: Path, name: str, url: str) -> None:
    """Wait until a server answers; raises LocalError if it ends or takes too long."""
    log = log_path(folder, name)
    deadline = time.monotonic() + _START_SECONDS
    while not answers(url):
        if not is_alive(folder, name):
            if _PORT_TAKEN.search(log.read_text(errors="replace")):
                raise LocalError(f"Another program took the port of {name}, {url}: try again.")
            raise LocalError(f"{name} ended as soon as it was started; {_tail(log)}")
        if time.monotonic() > deadline:
            raise LocalError(f"{name} does not answer at {url}; {_tail(log)}")
        time.sleep(_POLL_SECONDS)


def answers(url: str) -> bool:
    """Return whether a server answers with success."""
    try:
        return loopback.request("GET", url, timeout=5).ok
    except requests.RequestException:
        return False


def is_alive(folder: Path, name: str) -> bool:
    """Return whether a server is running."""
    try:
        with (folder / f"{name}.pid").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def stop(folder: Path, name: str) -> bool:
    """Stop a server and its child processes; return whether it was running."""
    pid_file = folder / f"{name}.pid"
    ran = is_alive(folder, name)
    if ran:
        pid = int(pid_file.read_text())
        for number in (signal.SIGTERM, signal.SIGKILL):  # the second signal also stops its remaining child processes
            _signal(pid, number)
            deadline = time.monotonic() + _STOP_SECONDS
            while is_alive(folder, name) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        if child := _children.pop(pid, None):
            child.wait()
    pid_file.unlink(missing_ok=True)
    return ran


def _spawn(job: Job, output: IO[bytes], *, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start a process as the leader of its own group, so that Ctrl-C does not reach it."""
    try:
        return subprocess.Popen(
            [str(word) for word in job.command],
            env=job.environment,
            cwd=job.cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except OSError as error:
        raise LocalError(
            f"{job.command[0]} cannot be run ({error.strerror}): 'make local' installs what is missing."
        ) from None


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _tail(log: Path) -> str:
    """Return the path and the last lines of a log."""
    lines = log.read_text(errors="replace").rstrip().splitlines()[-_LAST_LINES:]
    return f"the end of {log}:\n" + "\n".join(f"    {line}" for line in lines)
