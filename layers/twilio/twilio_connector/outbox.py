"""Twilio's events on their way to the bus: each is published once, and none is lost.

    claim ──► the bus, twice if need be ──► note that it is done
                        └──not taken──► the buffer queue, from which `webhook` publishes it later

PutEvents has no idempotency, so an event that is put again after an answer that never came says so: its
`deduplication` is `uncertain`, and its `deduplication_id` the same as before.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec

from twilio_connector import aws, bus, telemetry
from twilio_connector.deadline import Deadline
from twilio_connector.deduplication import Claim, Deduplication, Verdict, event_key
from twilio_connector.envelope import Record
from twilio_connector.errors import ServiceUnavailableError
from twilio_connector.settings import variable
from twilio_connector.twilio_events import SOURCE, Event

RESERVE_SECONDS = 2 * aws.SECONDS
"""What it takes at most to put an event on the bus and then in the buffer."""

_THREADS = 10
_LEAST_DELAY = 2  # seconds
_LONGEST_DELAY = (
    900  # seconds (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html)
)
_LONGEST_TEXT = 1600  # characters of a message in an event that is too large


class _Outgoing(NamedTuple):
    """An event, the claim to it, and whether it may be on the bus already."""

    event: Event
    claim: Claim
    uncertain: bool = False


class _Kept(msgspec.Struct, rename={"detail_type": "detail-type"}):
    """A record of the buffer: an event as the bus gets it, and whether it may be there already."""

    detail_type: str
    detail: dict[str, Any]
    uncertain: bool


def publish(events: Iterable[Event], deadline: Deadline, *, can_wait: bool = False) -> None:
    """Publish events, but for those that were published before.

    Each is then on the bus or in the buffer; raises ServiceUnavailableError where neither takes one. Events that
    `can_wait` are not published where nobody knows whether they were before: the error is raised for them too.
    """
    table = Deduplication(variable("DELIVERIES_TABLE"))
    distinct = list({event_key(event): event for event in events}.values())
    claimed = _each(lambda event: _claimed(table, event, deadline), distinct)
    others = {Verdict.DUPLICATE, Verdict.BUSY} | ({Verdict.UNAVAILABLE} if can_wait else set())
    due = [each for each in claimed if each.claim.verdict not in others]
    untaken = _unkept(table, _put(table, due, deadline))
    # Who is at work on a busy one may die, so it is looked at again; where that cannot be, twice is better than never.
    busy = _unkept(table, [each for each in claimed if each.claim.verdict is Verdict.BUSY])
    untaken += _put(table, [each._replace(uncertain=True) for each in busy], deadline)
    if untaken:
        raise ServiceUnavailableError(f"neither the event bus nor the buffer queue took {len(untaken)} events")
    waiting = sum(each.claim.verdict is Verdict.UNAVAILABLE for each in claimed)
    if can_wait and waiting:
        raise ServiceUnavailableError(f"{waiting} events could not be claimed, and wait")


def publish_kept(records: Sequence[Record], deadline: Deadline) -> list[Record]:
    """Publish events of the buffer; return the records that are to be delivered again."""
    table = Deduplication(variable("DELIVERIES_TABLE"))
    return [record for record in records if not _published(table, record, deadline)]


def _published(table: Deduplication, record: Record, deadline: Deadline) -> bool:
    """Publish a record of the buffer, and tell whether it is done with."""
    if deadline.remaining() < RESERVE_SECONDS + 2 * aws.SECONDS:
        return False
    try:
        kept = msgspec.json.decode(record.body, type=_Kept)
        event = Event(kept.detail_type, kept.detail)
        event_key(event)
    except (msgspec.DecodeError, UnicodeError, RecursionError, KeyError):
        telemetry.logger.error("a record of the buffer is no event", extra={"function": "webhook"})
        return False  # until SQS puts it in the dead-letter queue
    outgoing = _claimed(table, event, deadline, buffered=True)
    if outgoing.claim.verdict is Verdict.BUSY:
        return False
    if outgoing.claim.verdict is Verdict.DUPLICATE:
        # A whole that was moved back from the dead-letter queue has no other place.
        return not _is_too_large(event) or _set_aside(event)
    left = _put(table, [outgoing._replace(uncertain=outgoing.uncertain or kept.uncertain)], deadline)
    for each in left:
        table.kept(event, each.claim, uncertain=each.uncertain)
    return not left


def _claimed(table: Deduplication, event: Event, deadline: Deadline, *, buffered: bool = False) -> _Outgoing:
    """Return an event with the claim to it, for which there must be time."""
    left = deadline.remaining()
    if left < RESERVE_SECONDS + aws.SECONDS:
        return _Outgoing(event, Claim(Verdict.UNAVAILABLE))
    claim = table.claim(event, lease_seconds=left, buffered=buffered)
    return _Outgoing(event, claim, uncertain=claim.verdict is Verdict.AGAIN)


def _put(table: Deduplication, outgoing: Sequence[_Outgoing], deadline: Deadline) -> list[_Outgoing]:
    """Put events on the bus, while there is time to keep them instead, and return those that it did not take."""
    left, incomplete = list(outgoing), []
    for number in range(bus.ATTEMPTS):
        if not left or (number and deadline.remaining() < RESERVE_SECONDS):
            break
        if number:
            bus.pause()
        outcomes = bus.attempt([_entry(each) for each in left])
        results = list(zip(left, outcomes, strict=True))
        taken = [each for each, (end, _) in results if end is bus.End.TAKEN]
        completed = _each(lambda each: _complete(table, each), taken)
        incomplete += [each for each, is_complete in zip(taken, completed, strict=True) if not is_complete]
        left = [
            each._replace(uncertain=each.uncertain or end is bus.End.LOST)
            for each, (end, _) in results
            if end is not bus.End.TAKEN
        ]
    return left + [each._replace(uncertain=True) for each in incomplete]


def _complete(table: Deduplication, outgoing: _Outgoing) -> bool:
    """Note that an event is on the bus, and tell whether all of it is somewhere."""
    # Not before it is on the bus: each attempt of the buffer would leave another copy.
    if _is_too_large(outgoing.event) and not _set_aside(outgoing.event):
        return False
    table.done(outgoing.event, outgoing.claim)
    return True


def _unkept(table: Deduplication, outgoing: Sequence[_Outgoing]) -> list[_Outgoing]:
    """Put events in the buffer, and return those that it did not take."""
    kept = _each(lambda each: _keep(table, each), outgoing)
    return [each for each, is_kept in zip(outgoing, kept, strict=True) if not is_kept]


def _keep(table: Deduplication, outgoing: _Outgoing) -> bool:
    """Put an event in the buffer, and tell whether that worked; a busy one comes from there when its claim ends."""
    event, claim, uncertain = outgoing
    # Not before the note below, or before the claim of whoever is at work on it ends.
    delay = min(max(_LEAST_DELAY, math.ceil(claim.free_at - time.time()) + 1), _LONGEST_DELAY)
    body = msgspec.json.encode(_Kept(event.detail_type, event.detail, uncertain)).decode()
    try:
        aws.send_message(variable("BUFFER_QUEUE_URL"), body, DelaySeconds=delay)
    except aws.RefusedError as error:
        telemetry.logger.error("the buffer took no event", extra={"function": "webhook", "code": error.code})
        return False
    telemetry.count("EventsBuffered")
    table.kept(event, claim, uncertain=uncertain)
    return True


def _entry(outgoing: _Outgoing) -> bus.Entry:
    """Return an event as the bus takes it, with what a consumer must know of its way."""
    event, claim, uncertain = outgoing
    marks: dict[str, Any] = {}
    if uncertain:
        marks = {"deduplication": "uncertain"}
    elif claim.verdict is Verdict.UNAVAILABLE:
        marks = {"deduplication": "unavailable"}
    if not _is_too_large(event):
        return _bus_entry(event, marks)
    marks |= {"truncated": True}
    event = Event(event.detail_type, {name: value for name, value in event.detail.items() if name != "parameters"})
    entry = _bus_entry(event, marks)
    if bus.size(entry) > bus.MAX_BYTES and (message := event.detail.get("message")):
        entry = _bus_entry(
            event, marks | {"message": message | {"body": (message["body"] or "")[:_LONGEST_TEXT], "media": []}}
        )
    return entry


def _is_too_large(event: Event) -> bool:
    return bus.size(_bus_entry(event, {"deduplication": "unavailable"})) > bus.MAX_BYTES


def _bus_entry(event: Event, marks: dict[str, Any]) -> bus.Entry:
    return bus.entry(SOURCE, event.detail_type, event.detail | marks)


def _set_aside(event: Event) -> bool:
    """Put the whole of an event that is too large in the buffer's dead-letter queue, and tell whether that worked."""
    body = msgspec.json.encode(_Kept(event.detail_type, event.detail, uncertain=False)).decode()
    try:
        aws.send_message(variable("BUFFER_DEAD_LETTER_QUEUE_URL"), body)
    except aws.RefusedError as error:
        extra = {"function": "webhook", "code": error.code}
        telemetry.logger.error("the buffer's dead-letter queue took no event", extra=extra)
        return False
    return True


def _each[T, R](do: Callable[[T], R], things: Sequence[T]) -> list[R]:
    """Do something with each thing, with many at the same time."""
    if len(things) < 2:  # noqa: PLR2004 one needs no threads
        return [do(thing) for thing in things]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(do, things))
