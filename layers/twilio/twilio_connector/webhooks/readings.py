"""The memory of signed texts: how each text that Twilio signed was read first.

Twilio signs names and values one after the other with nothing between. So whoever holds a genuine request can cut its
text into other names and values, or move a part of it into the URL, and the signature still holds. No rule about
content can tell: Twilio adds parameters without notice. Instead the first reading of a text stands for 30 days, and
any other reading of it is refused.
"""

import hashlib
import re
from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from twilio_connector import clock, telemetry
from twilio_connector.aws.dynamodb import ConditionFailedError, Table, attributes, condition
from twilio_connector.errors import ServiceUnavailableError

RETENTION_SECONDS = 30 * 24 * 3600
"""A signed text is remembered for 30 days."""

_SID = re.compile("[A-Z]{2}[0-9a-fA-F]{32}")


class Reading(NamedTuple):
    """How a signed text was read. `text` and `digest` are what the memory keeps, as hashes."""

    text: str
    digest: str
    has_sid: bool


class ReadingStatus(Enum):
    """The memory's answer about a reading."""

    STANDS = auto()
    """The text is new, or was read in this way before."""
    DIFFERS = auto()
    """The text was read in another way before."""
    UNAVAILABLE = auto()
    """The memory does not answer."""


def reading(  # noqa: PLR0913 a reading has these parts
    url: str,
    text: str,
    *,
    method: str,
    query: Iterable[tuple[str, str]],
    form: Iterable[tuple[str, str]] | None,
    body: bytes | None,
) -> Reading:
    """Return how a signed text was read.

    `url` is the text's fixed beginning: scheme, host and path. `query` and `form` are decoded pairs, whose order and
    repetition Twilio does not sign. `body` is a JSON body. `form` and `body` are None where the request has none.
    """
    kind = "json" if body is not None else "none" if form is None else "form"
    pairs = [sorted(set(each)) for each in (query, form or ())]
    path = urlsplit(url).path
    parts = [method, path, kind, *pairs, _sha256(body or b"")]
    # Searched in the text, not in the parameters, which depend on how the text was cut.
    return Reading(text, _sha256(msgspec.json.encode(parts)), bool(_SID.search(text, len(url))))


def remember(table: str, of_text: Reading) -> ReadingStatus:
    """Store a reading, unless the text has another one: one conditional write."""
    now = int(clock.now())
    item = attributes(
        id=f"text:{_sha256(of_text.text.encode('utf-8', 'surrogatepass'))}",
        reading=of_text.digest,
        expires_at=now + RETENTION_SECONDS,
    )
    # DynamoDB deletes expired items days later.
    is_ours = "attribute_not_exists(id) OR expires_at <= :now OR reading = :reading"
    try:
        Table(table, "the memory of signed texts").put(item, condition(is_ours, now=now, reading=of_text.digest))
    except ConditionFailedError:
        return ReadingStatus.DIFFERS
    except ServiceUnavailableError as error:
        telemetry.failure(error, function="readings")
        return ReadingStatus.UNAVAILABLE
    return ReadingStatus.STANDS


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
