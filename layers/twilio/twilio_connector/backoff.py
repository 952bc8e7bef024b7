"""Pauses between attempts."""

import random
from email.utils import parsedate_to_datetime

_BACKOFF_BASE = 0.25  # seconds
_BACKOFF_CAP = 4.0  # seconds


def backoff(retries: int) -> float:
    """Return seconds to wait before the next attempt, after that many retries: exponential, full jitter.

    https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
    """
    return jitter(0, min(_BACKOFF_CAP, _BACKOFF_BASE * 2**retries))


def jitter(least: float, most: float) -> float:
    """Return a random number in between. Environments restored from one SnapStart snapshot get different numbers.

    https://docs.aws.amazon.com/lambda/latest/dg/snapstart-uniqueness.html
    """
    return random.SystemRandom().uniform(least, most)


def retry_after(header: str | None, now: float) -> float | None:
    """Return the seconds a `Retry-After` header asks for (RFC 9110, 10.2.3), or None if it has no valid value.

    `now` is in seconds since the epoch. A time in the past gives 0.
    """
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None
