"""The connector's clock, which tests set: all code that reads the time or waits uses it.

Only `http` has Python's own, since the timeouts of a socket are real seconds.
"""

import time


def now() -> float:
    """Return the seconds since the epoch."""
    return time.time()


def monotonic() -> float:
    """Return the seconds of a clock that is never set back; only differences of two values have a meaning."""
    return time.monotonic()


def sleep(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)
