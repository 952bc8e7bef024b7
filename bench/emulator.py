"""Start a handler as Lambda does, with AWS's runtime interface emulator and AWS's runtime client."""

import json
import platform
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from bench import FOLDER, ROOT, BenchError
from bench.bundle import PYTHON, Candidate
from bench.worker import peak_bytes
from local import loopback
from local.processes import free_port

_MACHINE = "arm64" if platform.machine() in {"aarch64", "arm64"} else "x86_64"
_RAPID = "lib/python3.13/site-packages/samcli/local/rapid"
_PROGRAM = ROOT / ".venv-sam" / _RAPID / f"aws-lambda-rie-{_MACHINE}"
_INIT = re.compile(r"INIT REPORT\(durationMs: ([\d.]+)\)")
_INVOKE = re.compile(r"INVOKE RTDONE\(status: success,.*? duration: ([\d.]+)ms\)")
_START_SECONDS = 20
_STARTS = 3
_LOG_SECONDS = 5


class Emulator:
    """One environment of a function. The first invocation initialises it, as on demand in Lambda."""

    def __init__(self, candidate: Candidate, start: Sequence[str] = ("-m", "awslambdaric")) -> None:
        """Take a candidate; `start` are the arguments with which Python starts the runtime client."""
        self._candidate = candidate
        self._start = start
        self._log = FOLDER / "logs" / "emulator.log"
        self._invocations = 0

    def __enter__(self) -> Self:
        for _ in range(_STARTS):
            if self._starts():
                return self
        raise BenchError(f"The runtime interface emulator does not start; its log is {self._log}.")

    def _starts(self) -> bool:
        """Start the emulator; return whether it listens. It ends if another process takes one of its ports first."""
        port, api = free_port(), free_port()
        self._url = f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"
        command = [str(_PROGRAM), "--runtime-interface-emulator-address", f"127.0.0.1:{port}"]
        command += ["--runtime-api-address", f"127.0.0.1:{api}", str(PYTHON), *self._start, self._candidate.handler]
        variables = self._candidate.command_environment() | {"LAMBDA_TASK_ROOT": str(self._candidate.path[0])}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env=variables, cwd=FOLDER, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return True
            time.sleep(0.01)
        self._process.kill()
        self._process.wait()
        return False

    def __exit__(self, *_: object) -> None:
        children = psutil.Process(self._process.pid).children(recursive=True)
        for child in children:
            child.kill()
        psutil.wait_procs(children, timeout=_LOG_SECONDS)  # reaped by the emulator, their parent
        self._process.kill()
        self._process.wait()

    def invoke(self, event: Any) -> Any:
        """Invoke the function with an event, and return its answer."""
        answer = loopback.request("POST", self._url, data=json.dumps(event).encode(), timeout=900)
        self._invocations += 1
        return json.loads(answer.content) if answer.content else None

    @property
    def init_ms(self) -> float:
        """The duration of the initialisation."""
        return self._values_from_log(_INIT, 1)[0]

    @property
    def invocations_ms(self) -> list[float]:
        """The duration of each invocation; Lambda bills it rounded up to a whole millisecond."""
        return self._values_from_log(_INVOKE, self._invocations)

    @property
    def peak_bytes(self) -> int:
        """The peak memory of the function's process."""
        [process] = psutil.Process(self._process.pid).children()
        return peak_bytes(process.pid)

    def _values_from_log(self, pattern: re.Pattern[str], count: int) -> list[float]:
        """Wait until the log matches a pattern this many times, and return the values."""
        deadline = time.monotonic() + _LOG_SECONDS
        while len(found := pattern.findall(Path(self._log).read_text(errors="replace"))) < count:
            if time.monotonic() > deadline:
                raise BenchError(f"{self._candidate.name} does not do what it should; its log is {self._log}.")
            time.sleep(0.002)
        return [float(value) for value in found]
