"""When a failed request may be sent again, as pure functions.

Twilio's API has no idempotency key, and repeating a send after a 5xx may send twice
(https://www.twilio.com/docs/api/errors/20500); a 429 is never processed
(https://www.twilio.com/docs/api/errors/20429). So only what is provably not processed is repeated, and reads.
"""

import random
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import NamedTuple

from twilio_connector import errors

READ_ONLY_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_BACKOFF_BASE = 0.25  # seconds
_BACKOFF_CAP = 4.0  # seconds


class End(Enum):
    """How a request ended without an answer that can be used."""

    NEVER_SENT = auto()
    """DNS, connect or TLS handshake failed."""
    BAD_CERTIFICATE = auto()
    """The TLS handshake failed because the server could not prove who it is."""
    LOST = auto()
    """The request went out, and no whole answer came back."""
    UNREADABLE = auto()
    """A 2xx that is not what Twilio answers."""
    TOO_LARGE = auto()
    """A 2xx with more bytes than we take."""


class Verdict(NamedTuple):
    """What a failed request means, and whether sending it again is provably safe."""

    error: type[errors.ConnectorError]
    retry: bool


def judge(  # noqa: C901, PLR0911 a table
    end: End | int, *, code: int | None = None, read_only: bool
) -> Verdict:
    """Return the verdict on a request that ended so: an HTTP status outside 2xx, or an `End`.

    `code` is Twilio's own error code. Code 21611 comes with status 429 but asks for minutes, so it is tested
    before the status is.
    """
    match end:
        case End.NEVER_SENT:
            return Verdict(errors.TwilioUnavailableError, retry=True)
        case End.BAD_CERTIFICATE:
            return Verdict(errors.TwilioUnavailableError, retry=False)
        case End.TOO_LARGE if read_only:
            return Verdict(errors.ResponseTooLargeError, retry=False)
        case End.LOST | End.UNREADABLE if read_only:
            return Verdict(errors.TwilioUnavailableError, retry=True)
        case End():
            return Verdict(errors.OutcomeUnknownError, retry=False)
    if code == 21611:  # noqa: PLR2004 https://www.twilio.com/docs/api/errors/21611
        return Verdict(errors.SenderQueueFullError, retry=False)
    if code == 20003 or end == 401:  # noqa: PLR2004 https://www.twilio.com/docs/api/errors/20003
        return Verdict(errors.TwilioAuthenticationError, retry=False)
    match end:
        case 429:
            return Verdict(errors.TwilioRateLimitError, retry=True)
        case 404:
            return Verdict(errors.TwilioNotFoundError, retry=False)
        case int() if 400 <= end < 500 and end != 408:  # noqa: PLR2004 HTTP's own numbers
            rejected = errors.RecipientOptedOutError if code == 21610 else errors.TwilioRejectedError  # noqa: PLR2004
            return Verdict(rejected, retry=False)
        case int() if read_only:
            return Verdict(errors.TwilioUnavailableError, retry=end >= 500)  # noqa: PLR2004
    return Verdict(errors.OutcomeUnknownError, retry=False)


def backoff(retries: int) -> float:
    """Return seconds to wait before the next attempt, after that many retries: exponential, full jitter.

    https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
    """
    return jitter(0, min(_BACKOFF_CAP, _BACKOFF_BASE * 2**retries))


def jitter(least: float, most: float) -> float:
    """Return a number in between, which is another in each environment that is restored from one SnapStart snapshot.

    https://docs.aws.amazon.com/lambda/latest/dg/snapstart-uniqueness.html
    """
    return random.SystemRandom().uniform(least, most)


def retry_after(header: str | None, now: float) -> float | None:
    """Return the seconds a `Retry-After` header asks for (RFC 9110, 10.2.3), or None where it says nothing.

    `now` is in seconds since the epoch. A moment in the past is 0.
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
