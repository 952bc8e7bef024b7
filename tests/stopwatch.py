"""A stopwatch that excludes the time in which other processes keep the machine busy."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Self

_THREADS = Path("/proc/self/task")
_NANOSECONDS = 1e9


class Stopwatch:
    """A context manager that measures the duration of its block.

    `wall` is the elapsed time in seconds. `seconds` excludes the time in which threads of this process were ready to
    run but had no processor. Only Linux counts that time; on other systems, both figures are the same. A test of an
    upper limit uses `seconds`, so that it does not fail on a busy machine. A test of a lower limit uses `wall`.
    """

    def __enter__(self) -> Self:
        """Start to measure."""
        self._began, self._without = time.monotonic(), _without_processor()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and set `wall` and `seconds`."""
        self.wall = time.monotonic() - self._began
        before = self._without
        self.seconds = self.wall - sum(total - before.get(thread, 0) for thread, total in _without_processor().items())


def _without_processor() -> dict[str, float]:
    """Return the seconds in which each thread was ready but had no processor, by the thread's number."""
    found: dict[str, float] = {}
    for path in _THREADS.glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended
            found[path.parent.name] = int(path.read_text().split()[1]) / _NANOSECONDS
    return found
