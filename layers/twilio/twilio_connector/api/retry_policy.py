"""When a failed request may be retried, as pure functions.

Twilio's API has no idempotency key, and repeating a send after a 5xx may send twice
(https://www.twilio.com/docs/api/errors/20500); a 429 is never processed
(https://www.twilio.com/docs/api/errors/20429). So the client retries only reads and what was certainly not processed.
"""

from enum import Enum, auto
from typing import NamedTuple

from twilio_connector import errors

READ_ONLY_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class FailureKind(Enum):
    """How a request ended without a usable answer."""

    NEVER_SENT = auto()
    """DNS, connect or TLS handshake failed."""
    BAD_CERTIFICATE = auto()
    """The TLS handshake failed because the server's certificate is not valid."""
    LOST = auto()
    """The request was sent, and no complete answer came back."""
    UNREADABLE = auto()
    """A 2xx whose body is not the JSON that Twilio returns."""
    TOO_LARGE = auto()
    """A 2xx with more bytes than the caller takes."""


class Classification(NamedTuple):
    """What a failed request means, and whether a retry is certainly safe."""

    error: type[errors.ConnectorError]
    retry: bool


def classify(  # noqa: C901, PLR0911 a table
    end: FailureKind | int, *, code: int | None = None, read_only: bool
) -> Classification:
    """Return what a failed request means: `end` is an HTTP status outside 2xx, or a `FailureKind`.

    `code` is Twilio's own error code. Code 21611 comes with status 429 but lasts for minutes, so it is tested before
    the status.
    """
    match end:
        case FailureKind.NEVER_SENT:
            return Classification(errors.TwilioUnavailableError, retry=True)
        case FailureKind.BAD_CERTIFICATE:
            return Classification(errors.TwilioUnavailableError, retry=False)
        case FailureKind.TOO_LARGE if read_only:
            return Classification(errors.ResponseTooLargeError, retry=False)
        case FailureKind.LOST | FailureKind.UNREADABLE if read_only:
            return Classification(errors.TwilioUnavailableError, retry=True)
        case FailureKind():
            return Classification(errors.OutcomeUnknownError, retry=False)
    if code == 21611:  # noqa: PLR2004 https://www.twilio.com/docs/api/errors/21611
        return Classification(errors.SenderQueueFullError, retry=False)
    if code == 20003 or end == 401:  # noqa: PLR2004 https://www.twilio.com/docs/api/errors/20003
        return Classification(errors.TwilioAuthenticationError, retry=False)
    match end:
        case 429:
            return Classification(errors.TwilioRateLimitError, retry=True)
        case 404:
            return Classification(errors.TwilioNotFoundError, retry=False)
        case int() if 400 <= end < 500 and end != 408:  # noqa: PLR2004 HTTP's own numbers
            rejected = errors.RecipientOptedOutError if code == 21610 else errors.TwilioRejectedError  # noqa: PLR2004
            return Classification(rejected, retry=False)
        case int() if read_only:
            return Classification(errors.TwilioUnavailableError, retry=end >= 500)  # noqa: PLR2004
    return Classification(errors.OutcomeUnknownError, retry=False)
