"""Measure how long something takes on a machine that has nothing else to do."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Self

_THREADS = Path("/proc/self/task")
_NANOSECONDS = 1e9


class Stopwatch:
    """Measures what runs within it, as a context manager.

    `wall` is what a clock on the wall says, in seconds. `seconds` is without the time in which threads of this process
    were ready to run and had no processor; Linux counts it, and elsewhere both are the same. A test that says "at
    most" uses `seconds`, so that a busy machine does not fail it; one that says "at least" uses `wall`.
    """

    def __enter__(self) -> Self:
        """Begin."""
        self._began, self._without = time.monotonic(), _without_processor()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self.wall = time.monotonic() - self._began
        before = self._without
        self.seconds = self.wall - sum(total - before.get(thread, 0) for thread, total in _without_processor().items())


def _without_processor() -> dict[str, float]:
    """Return for how many seconds each thread was ready and had no processor, by its number."""
    found: dict[str, float] = {}
    for path in _THREADS.glob("*/schedstat"):
        with suppress(OSError):  # the thread ended meanwhile
            found[path.parent.name] = int(path.read_text().split()[1]) / _NANOSECONDS
    return found
