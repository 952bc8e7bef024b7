"""The stack's EventBridge bus."""

import time
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple

import msgspec

from twilio_connector import aws, telemetry
from twilio_connector.errors import ServiceUnavailableError
from twilio_connector.retries import jitter
from twilio_connector.settings import variable

# https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html
MAX_BYTES = 256 * 1024
"""Of an entry, and of all entries of a request together."""
_MAX_ENTRIES = 10

ATTEMPTS = 2
"""So often an entry is put that the bus does not take."""
_LONGEST_PAUSE = 0.3  # seconds

type Entry = dict[str, Any]


class End(Enum):
    """What became of an entry."""

    TAKEN = auto()
    REFUSED = auto()
    """It is provably not on the bus."""
    LOST = auto()
    """No answer came, or a 5xx: it may be on the bus."""


class Outcome(NamedTuple):
    """What became of an entry, and AWS's code where it was not taken."""

    end: End
    code: str = ""


def entry(source: str, detail_type: str, detail: dict[str, Any]) -> Entry:
    """Return an event as PutEvents takes it."""
    return {
        "EventBusName": variable("EVENT_BUS_NAME"),
        "Source": source,
        "DetailType": detail_type,
        "Detail": msgspec.json.encode(detail).decode(),
    }


def size(each: Entry) -> int:
    """Return the bytes that count of an entry."""
    return sum(len(each[part].encode()) for part in ("Source", "DetailType", "Detail"))


def attempt(entries: Sequence[Entry]) -> list[Outcome]:
    """Put each entry on the bus once, and return what became of each."""
    return [outcome for batch in _batches(entries) for outcome in _put(batch)]


def pause() -> None:
    """Wait a moment before another attempt, not at the same time as all others."""
    time.sleep(jitter(0, _LONGEST_PAUSE))


def put(entries: Sequence[Entry]) -> None:
    """Put all entries on the bus, twice if need be; raises ServiceUnavailableError where it does not take one.

    An entry whose first attempt was lost may come twice.
    """
    outcomes: list[Outcome] = []
    for number in range(ATTEMPTS):
        if number:
            pause()
        outcomes = attempt(entries)
        left = [
            (each, outcome) for each, outcome in zip(entries, outcomes, strict=True) if outcome.end is not End.TAKEN
        ]
        if not left:
            return
        entries, outcomes = [each for each, _ in left], [outcome for _, outcome in left]
    raise ServiceUnavailableError(f"the event bus did not take {len(entries)} entries ({outcomes[0].code})")


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Yield the entries in requests that are not too long and not too large."""
    batch: list[Entry] = []
    total = 0
    for each in entries:
        each_size = size(each)
        if batch and (len(batch) == _MAX_ENTRIES or total + each_size > MAX_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(each)
        total += each_size
    if batch:
        yield batch


def _put(batch: list[Entry]) -> list[Outcome]:
    try:
        answer = aws.call("events", "PutEvents", Entries=batch)
    except aws.LostError as error:
        return [Outcome(End.LOST, error.code)] * len(batch)
    except aws.RefusedError as error:
        return [Outcome(End.REFUSED, error.code)] * len(batch)
    results = answer.get("Entries", [])
    outcomes = [
        Outcome(End.TAKEN) if "EventId" in each else Outcome(End.REFUSED, str(each.get("ErrorCode")))
        for each in results
    ]
    for outcome in outcomes:
        if outcome.end is End.TAKEN:
            telemetry.count("EventsPublished")
    # An answer that is not about all entries says nothing about the others.
    return outcomes + [Outcome(End.LOST, "no result")] * (len(batch) - len(outcomes))
