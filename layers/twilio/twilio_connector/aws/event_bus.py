"""The stack's EventBridge bus."""

from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple

import msgspec

from twilio_connector import clock, telemetry
from twilio_connector.aws import client
from twilio_connector.backoff import jitter
from twilio_connector.errors import ServiceUnavailableError
from twilio_connector.settings import variable

# https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html
MAX_BYTES = 256 * 1024
"""Most bytes of an entry, and of all entries of a request together."""
_MAX_ENTRIES = 10

ATTEMPTS = 2
"""How often an entry is put on the bus until the bus takes it."""
_LONGEST_PAUSE = 0.3  # seconds


class Entry(NamedTuple):
    """An event as PutEvents takes it, and its size in bytes by EventBridge's rule."""

    parameters: dict[str, str]
    size: int


class PutResult(Enum):
    """The result of one entry."""

    TAKEN = auto()
    REFUSED = auto()
    """It is certainly not on the bus."""
    LOST = auto()
    """No answer came, or a 5xx: it may be on the bus."""


class EntryResult(NamedTuple):
    """The result of one entry, and AWS's error code if the bus did not take it."""

    end: PutResult
    code: str = ""


def entry(source: str, detail_type: str, detail: dict[str, Any]) -> Entry:
    """Return an event for the stack's bus."""
    encoded = msgspec.json.encode(detail)
    parameters = {
        "EventBusName": variable("EVENT_BUS_NAME"),
        "Source": source,
        "DetailType": detail_type,
        "Detail": encoded.decode(),
    }
    return Entry(parameters, len(source.encode()) + len(detail_type.encode()) + len(encoded))


def attempt(entries: Sequence[Entry]) -> list[EntryResult]:
    """Put each entry on the bus once, and return the result of each."""
    return [outcome for batch in _batches(entries) for outcome in _put(batch)]


def pause() -> None:
    """Wait for a random moment before a retry."""
    clock.sleep(jitter(0, _LONGEST_PAUSE))


def put(entries: Sequence[Entry]) -> None:
    """Put all entries on the bus, with one retry; raises ServiceUnavailableError if the bus does not take one.

    If the answer to the first attempt is lost, an entry may be on the bus twice.
    """
    outcomes: list[EntryResult] = []
    for number in range(ATTEMPTS):
        if number:
            pause()
        outcomes = attempt(entries)
        left = [
            (each, outcome)
            for each, outcome in zip(entries, outcomes, strict=True)
            if outcome.end is not PutResult.TAKEN
        ]
        if not left:
            return
        entries, outcomes = [each for each, _ in left], [outcome for _, outcome in left]
    raise ServiceUnavailableError(f"the event bus did not take {len(entries)} entries ({outcomes[0].code})")


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Yield the entries in batches within EventBridge's limits."""
    batch: list[Entry] = []
    total = 0
    for each in entries:
        if batch and (len(batch) == _MAX_ENTRIES or total + each.size > MAX_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(each)
        total += each.size
    if batch:
        yield batch


def _put(batch: list[Entry]) -> list[EntryResult]:
    try:
        answer = client.call("events", "PutEvents", Entries=[each.parameters for each in batch])
    except client.AwsResponseLostError as error:
        return [EntryResult(PutResult.LOST, error.code)] * len(batch)
    except client.AwsError as error:
        return [EntryResult(PutResult.REFUSED, error.code)] * len(batch)
    results = answer.get("Entries", [])
    outcomes = [
        EntryResult(PutResult.TAKEN)
        if "EventId" in each
        else EntryResult(PutResult.REFUSED, str(each.get("ErrorCode")))
        for each in results
    ]
    for outcome in outcomes:
        if outcome.end is PutResult.TAKEN:
            telemetry.count("EventsPublished")
    # An answer with fewer results than entries says nothing about the others.
    return outcomes + [EntryResult(PutResult.LOST, "no result")] * (len(batch) - len(outcomes))
