"""The stack's EventBridge bus."""

from collections.abc import Sequence
from typing import Any

import msgspec

from twilio_connector import aws, telemetry
from twilio_connector.errors import ServiceUnavailableError
from twilio_connector.settings import variable

# https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html
_MAX_ENTRIES = 10
_MAX_REQUEST_BYTES = 256 * 1024

type Entry = dict[str, Any]


def entry(source: str, detail_type: str, detail: dict[str, Any]) -> Entry:
    """Return an event as PutEvents takes it."""
    return {
        "EventBusName": variable("EVENT_BUS_NAME"),
        "Source": source,
        "DetailType": detail_type,
        "Detail": msgspec.json.encode(detail).decode(),
    }


def put(entries: Sequence[Entry]) -> None:
    """Put all entries on the bus; raises ServiceUnavailableError where it does not take one of them."""
    batch: list[Entry] = []
    size = 0
    for each in entries:
        each_size = sum(len(each[part].encode()) for part in ("Source", "DetailType", "Detail"))
        if batch and (len(batch) == _MAX_ENTRIES or size + each_size > _MAX_REQUEST_BYTES):
            _put(batch)
            batch, size = [], 0
        batch.append(each)
        size += each_size
    if batch:
        _put(batch)


def _put(batch: list[Entry]) -> None:
    try:
        answer = aws.call("events", "put_events", Entries=batch)
    except aws.RefusedError as error:
        raise ServiceUnavailableError(f"the event bus does not answer ({error.code})") from None
    failed = [each.get("ErrorCode") for each in answer["Entries"] if "EventId" not in each]
    for _ in range(len(batch) - len(failed)):
        telemetry.count("EventsPublished")
    if answer["FailedEntryCount"]:
        raise ServiceUnavailableError(f"the event bus refused {answer['FailedEntryCount']} entries ({failed[0]})")
