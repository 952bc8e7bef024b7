"""The retry policy: only requests that are provably safe are retried."""

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio_connector.api.retry_policy import READ_ONLY_METHODS, FailureKind, classify
from twilio_connector.backoff import backoff, retry_after
from twilio_connector.errors import (
    ConnectorError,
    OutcomeUnknownError,
    RecipientOptedOutError,
    ResponseTooLargeError,
    SenderQueueFullError,
    TwilioAuthenticationError,
    TwilioNotFoundError,
    TwilioRateLimitError,
    TwilioRejectedError,
    TwilioUnavailableError,
)

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()

type Expected = tuple[type[ConnectorError], bool]

UNKNOWN = (OutcomeUnknownError, False)
AGAIN = (TwilioUnavailableError, True)
NOT_AGAIN = (TwilioUnavailableError, False)
REJECTED = (TwilioRejectedError, False)
REFUSED = (TwilioAuthenticationError, False)
TOO_MANY = (TwilioRateLimitError, True)
QUEUE_FULL = (SenderQueueFullError, False)

# How the request ended, Twilio's error code, and the classification for a read and for a change.
TABLE: list[tuple[FailureKind | int, int | None, Expected, Expected]] = [
    (FailureKind.NEVER_SENT, None, AGAIN, AGAIN),
    (FailureKind.BAD_CERTIFICATE, None, NOT_AGAIN, NOT_AGAIN),
    (FailureKind.LOST, None, AGAIN, UNKNOWN),
    (FailureKind.UNREADABLE, None, AGAIN, UNKNOWN),
    (FailureKind.TOO_LARGE, None, (ResponseTooLargeError, False), UNKNOWN),
    *((status, None, NOT_AGAIN, UNKNOWN) for status in (100, 300, 301, 302, 303, 304, 307, 308, 408)),
    *((status, None, REJECTED, REJECTED) for status in (400, 402, 403, 405, 409, 410, 413, 418, 422, 451, 499)),
    *((status, None, AGAIN, UNKNOWN) for status in (500, 501, 502, 503, 504, 520, 599)),
    (401, None, REFUSED, REFUSED),
    (401, 20003, REFUSED, REFUSED),
    (400, 20003, REFUSED, REFUSED),
    (403, 20003, REFUSED, REFUSED),
    (429, 20003, REFUSED, REFUSED),
    (404, None, (TwilioNotFoundError, False), (TwilioNotFoundError, False)),
    (404, 20404, (TwilioNotFoundError, False), (TwilioNotFoundError, False)),
    (429, None, TOO_MANY, TOO_MANY),
    (429, 20429, TOO_MANY, TOO_MANY),
    (429, 21611, QUEUE_FULL, QUEUE_FULL),
    (400, 21611, QUEUE_FULL, QUEUE_FULL),
    (400, 21610, (RecipientOptedOutError, False), (RecipientOptedOutError, False)),
    (400, 21211, REJECTED, REJECTED),
    (500, 20500, AGAIN, UNKNOWN),
]


def identify(value: object) -> str | None:
    """Return the name of a failure kind for a test's id."""
    return value.name.lower() if isinstance(value, FailureKind) else None


@pytest.mark.parametrize(("end", "code", "read", "change"), TABLE, ids=identify)
def test_each_end_has_its_meaning(end: FailureKind | int, code: int | None, read: Expected, change: Expected) -> None:
    """A failure has its own classification for a read and for a change."""
    assert read == classify(end, code=code, read_only=True)
    assert change == classify(end, code=code, read_only=False)


def test_every_end_is_in_the_table() -> None:
    """The table has every failure kind, so that a new kind needs a classification."""
    assert set(FailureKind) == {end for end, *_ in TABLE if isinstance(end, FailureKind)}


CODES = [None, 0, 20001, 20003, 20404, 20429, 20500, 21211, 21610, 21611, 30001]


STATUSES = [*range(100, 200), *range(300, 700)]
REFUSALS = sorted({*range(400, 500)} - {408})


def test_a_change_is_sent_again_only_after_429() -> None:
    """A change is retried only after a 429, which Twilio never processes.

    After any other status, it may have been carried out, or a retry would fail again.
    """
    repeated = {
        (status, code) for status in STATUSES for code in CODES if classify(status, code=code, read_only=False).retry
    }

    assert {(429, code) for code in set(CODES) - {20003, 21611}} == repeated


def test_a_read_is_never_in_doubt() -> None:
    """A read never has an unknown outcome, because it changes nothing."""
    errors = {
        (status, code): classify(status, code=code, read_only=True).error for status in STATUSES for code in CODES
    }

    assert [] == [end for end, error in errors.items() if error is OutcomeUnknownError]


def test_a_change_is_in_doubt_where_twilio_did_not_refuse_it() -> None:
    """A change has an unknown outcome after a 1xx, 3xx, 408 or 5xx, which do not show whether it was carried out."""
    errors = {status: classify(status, read_only=False).error for status in STATUSES if status not in REFUSALS}

    assert dict.fromkeys(errors, OutcomeUnknownError) == errors


def test_a_refusal_means_the_same_for_reads_and_changes() -> None:
    """A refusal has the same classification for reads and changes, because Twilio has rejected the request."""
    read, change = ({status: classify(status, read_only=is_read) for status in REFUSALS} for is_read in (True, False))

    assert read == change


def test_read_only_methods() -> None:
    """The read-only methods are GET, HEAD and OPTIONS."""
    assert {"GET", "HEAD", "OPTIONS"} == READ_ONLY_METHODS


@pytest.mark.parametrize(("retries", "most"), [(0, 0.25), (1, 0.5), (2, 1), (3, 2), (4, 4), (5, 4), (100, 4)])
def test_backoff_is_spread_over_its_whole_range(retries: int, most: float) -> None:
    """The backoff has full jitter: it lies between zero and a bound that doubles up to a cap."""
    delays = [backoff(retries) for _ in range(1000)]

    assert 0 <= min(delays) < most * 0.1
    assert most * 0.9 < max(delays) <= most


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("1", 1),
        ("120", 120),
        (" 7 ", 7),
        ("99999999999999999999", 999999999),
        ("", None),
        (" ", None),
        ("-1", None),
        ("0.5", None),
        ("1e3", None),
        ("soon", None),
        ("٣", None),
        ("²", None),
        ("1, 2", None),
        ("Sat, 31 Jan 2026 12:00:30 GMT", 30),
        ("Saturday, 31-Jan-26 12:00:30 GMT", 30),
        ("Sat Jan 31 12:00:30 2026", 30),
        ("Sat, 31 Jan 2026 13:00:30 +0100", 30),
        ("Sat, 31 Jan 2026 11:59:00 GMT", 0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("Sat, 99 Jan 2026 12:00:30 GMT", None),
        ("Sat, 31 Jan 2026 12:00:30 +9999999", None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(header: str | None, seconds: float | None) -> None:
    """Retry-After is read as seconds or as a date, and ignored if it is neither."""
    assert seconds == retry_after(header, NOW)


@given(st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(9999, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 hypothesis adds the zone
def test_retry_after_is_the_time_until_a_date(moment: datetime) -> None:
    """A date in Retry-After gives the seconds until then, or zero if it is in the past."""
    header = format_datetime(moment, usegmt=True)

    assert max(0, moment.replace(microsecond=0).timestamp() - NOW) == retry_after(header, NOW)


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,6} [0-9:]{1,9} .{0,6}"))
def test_retry_after_never_raises(header: str) -> None:
    """Any value of Retry-After gives seconds or None, and never raises an error."""
    seconds = retry_after(header, NOW)

    assert seconds is None or seconds >= 0
