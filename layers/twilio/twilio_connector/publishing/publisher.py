"""Publishes Twilio's events to the bus: each once, and none is lost.

    claim ──► the bus, with one retry ──► note that it is done
                        └──not taken──► the buffer queue, from which `webhook` publishes it later

PutEvents is not idempotent. If its answer is lost, the event is put again with `deduplication` set to `uncertain`, and
with the same `deduplication_id`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec

from twilio_connector import clock, telemetry
from twilio_connector.aws import client, event_bus, queue
from twilio_connector.deadline import Deadline
from twilio_connector.errors import ServiceUnavailableError
from twilio_connector.invocation.events import SqsRecord
from twilio_connector.publishing.deduplication import ClaimResult, Deduplication, PublishClaim
from twilio_connector.publishing.event import SOURCE, Event, event_key, log_fields
from twilio_connector.settings import variable

RESERVE_SECONDS = 2 * client.SECONDS
"""Most seconds that it takes to put an event on the bus and then in the buffer."""

_THREADS = 10
_LEAST_DELAY = 2  # seconds
_LONGEST_DELAY = (
    900  # seconds (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html)
)
_LONGEST_TEXT = 1600  # characters of a message in an event that is too large


class _Outgoing(NamedTuple):
    """An event, the claim to it, and whether it may be on the bus already."""

    event: Event
    claim: PublishClaim
    uncertain: bool = False


class _Entry(NamedTuple):
    """An event as the bus gets it. If it is too large, the bus gets a part, and the dead-letter queue the whole."""

    outgoing: _Outgoing
    entry: event_bus.Entry
    is_cut: bool = False


class BufferedEvent(msgspec.Struct, rename={"detail_type": "detail-type"}):
    """A record of the buffer: an event as the bus gets it, and whether it may be on the bus already."""

    detail_type: str
    detail: dict[str, Any]
    uncertain: bool


def publish(events: Iterable[Event], deadline: Deadline, *, can_wait: bool = False) -> None:
    """Publish events, except those that were published before.

    Each is then on the bus or in the buffer; raises ServiceUnavailableError if neither takes one. Events that
    `can_wait` are not published while the table does not answer: the error is raised for them too.
    """
    table = Deduplication(variable("DELIVERIES_TABLE"))
    distinct = list({event_key(event): event for event in events}.values())
    claimed = _each(lambda event: _claim(table, event, deadline), distinct)
    others = {ClaimResult.DUPLICATE, ClaimResult.BUSY} | ({ClaimResult.UNAVAILABLE} if can_wait else set())
    due = [each for each in claimed if each.claim.verdict not in others]
    untaken = _buffer(table, _put(table, due, deadline))
    # The invocation that publishes a busy event may die, so the event also goes to the buffer. If the buffer does not
    # take it, it is published at once: a duplicate is better than a loss.
    busy = _buffer(table, [each for each in claimed if each.claim.verdict is ClaimResult.BUSY])
    untaken += _put(table, [each._replace(uncertain=True) for each in busy], deadline)
    if untaken:
        raise ServiceUnavailableError(f"{len(untaken)} events could be put neither on the event bus nor in the buffer")
    waiting = sum(each.claim.verdict is ClaimResult.UNAVAILABLE for each in claimed)
    if can_wait and waiting:
        raise ServiceUnavailableError(f"{waiting} events could not be claimed; they are published later")


def publish_buffered(records: Sequence[SqsRecord], deadline: Deadline) -> list[SqsRecord]:
    """Publish events of the buffer; return the records that SQS must deliver again."""
    table = Deduplication(variable("DELIVERIES_TABLE"))
    left = []
    for record in records:
        with telemetry.scope(**record.log_fields):
            try:
                _publish_buffered(table, record, deadline)
            except ServiceUnavailableError:
                left.append(record)
    return left


def _publish_buffered(table: Deduplication, record: SqsRecord, deadline: Deadline) -> None:
    """Publish a record of the buffer; raises ServiceUnavailableError if SQS must deliver it again."""
    if deadline.remaining() < RESERVE_SECONDS + 2 * client.SECONDS:
        raise ServiceUnavailableError("too little time was left")
    try:
        kept = msgspec.json.decode(record.body, type=BufferedEvent)
        event = Event(kept.detail_type, kept.detail)
        event_key(event)
        telemetry.note(**log_fields(event))
    except (msgspec.DecodeError, UnicodeError, RecursionError, KeyError):
        telemetry.logger.error("a record in the buffer is not an event")
        # After the last delivery SQS moves it to the dead-letter queue.
        raise ServiceUnavailableError("the record is not an event") from None
    outgoing = _claim(table, event, deadline, buffered=True)
    if outgoing.claim.verdict is ClaimResult.BUSY:
        raise ServiceUnavailableError("another invocation is publishing the event")
    if outgoing.claim.verdict is ClaimResult.DUPLICATE:
        if _entry(outgoing).is_cut:
            _send_to_dead_letters(event)  # moved back from there, the whole event has no other place
        telemetry.success("published before")
        return
    for each in _put(table, [outgoing._replace(uncertain=outgoing.uncertain or kept.uncertain)], deadline):
        table.note_kept(event, each.claim, uncertain=each.uncertain)
        raise ServiceUnavailableError("the event bus did not take the event")
    telemetry.success("published")


def _claim(table: Deduplication, event: Event, deadline: Deadline, *, buffered: bool = False) -> _Outgoing:
    """Return an event with its claim, which is unavailable without time or if the table does not answer."""
    left = deadline.remaining()
    is_away = not buffered and event.detail.get("deduplication") == "unavailable"
    if is_away or left < RESERVE_SECONDS + client.SECONDS:
        return _Outgoing(event, PublishClaim(ClaimResult.UNAVAILABLE))
    claim = table.claim(event, lease_seconds=left, buffered=buffered)
    return _Outgoing(event, claim, uncertain=claim.verdict is ClaimResult.AGAIN)


def _put(table: Deduplication, outgoing: Sequence[_Outgoing], deadline: Deadline) -> list[_Outgoing]:
    """Put events on the bus while there is time to buffer them, and return those that the bus did not take."""
    left, incomplete = list(outgoing), []
    for number in range(event_bus.ATTEMPTS):
        if not left or (number and deadline.remaining() < RESERVE_SECONDS):
            break
        if number:
            event_bus.pause()
        entries = [_entry(each) for each in left]
        outcomes = event_bus.attempt([each.entry for each in entries])
        results = [(each, outcome.end) for each, outcome in zip(entries, outcomes, strict=True)]
        taken = [each for each, end in results if end is event_bus.PutResult.TAKEN]
        incomplete += _try_each(lambda each: _complete(table, each), taken)
        left = [
            each.outgoing._replace(uncertain=each.outgoing.uncertain or end is event_bus.PutResult.LOST)
            for each, end in results
            if end is not event_bus.PutResult.TAKEN
        ]
    return left + [each.outgoing._replace(uncertain=True) for each in incomplete]


def _complete(table: Deduplication, entry: _Entry) -> None:
    """Note that an event is on the bus; of a cut one, first store the whole. Raises ServiceUnavailableError."""
    event, claim, _ = entry.outgoing
    if entry.is_cut:
        # Not before it is on the bus: each retry from the buffer would leave another copy.
        _send_to_dead_letters(event)
    table.note_done(event, claim)
    _count_status(event)


def _count_status(event: Event) -> None:
    """Count a sent message, once for each of its statuses."""
    match event.detail.get("message"):
        case {"status": "sent"}:
            telemetry.count("MessagesSentToCarrier")
        case {"status": "delivered"}:
            telemetry.count("MessagesDelivered")
        case {"status": "undelivered" | "failed"}:
            telemetry.count("MessagesUndelivered")


def _buffer(table: Deduplication, outgoing: Sequence[_Outgoing]) -> list[_Outgoing]:
    """Put events in the buffer, and return those that it did not take."""
    return _try_each(lambda each: _enqueue(table, each), outgoing)


def _enqueue(table: Deduplication, outgoing: _Outgoing) -> None:
    """Put an event in the buffer, a busy one until its claim ends; raises ServiceUnavailableError."""
    event, claim, uncertain = outgoing
    # The delivery must come after the note below, and after the claim of another invocation ends.
    delay = min(max(_LEAST_DELAY, math.ceil(claim.free_at - clock.now()) + 1), _LONGEST_DELAY)
    _send("the buffer", "BUFFER_QUEUE_URL", event, uncertain=uncertain, DelaySeconds=delay)
    telemetry.count("EventsBuffered")
    table.note_kept(event, claim, uncertain=uncertain)


def _send_to_dead_letters(event: Event) -> None:
    """Put the whole of an event in the buffer's dead-letter queue; raises ServiceUnavailableError."""
    _send("the buffer's dead-letter queue", "BUFFER_DEAD_LETTER_QUEUE_URL", event, uncertain=False)


def _send(title: str, setting: str, event: Event, *, uncertain: bool, **parameters: Any) -> None:
    body = msgspec.json.encode(BufferedEvent(event.detail_type, event.detail, uncertain)).decode()
    try:
        queue.send_message(variable(setting), body, **parameters)
    except client.AwsError as error:
        telemetry.logger.error(f"could not put an event in {title}", extra={"code": error.code})
        raise error.unavailable(title) from None


def _entry(outgoing: _Outgoing) -> _Entry:
    """Return an event as the bus takes it, with its `deduplication` mark."""
    event, claim, uncertain = outgoing
    detail = event.detail
    if uncertain:
        detail = detail | {"deduplication": "uncertain"}
    elif claim.verdict is ClaimResult.UNAVAILABLE:
        detail = detail | {"deduplication": "unavailable"}
    entry = event_bus.entry(SOURCE, event.detail_type, detail)
    # Measured with the longest mark, so that an event is cut in all attempts or in none.
    mark = f',"deduplication":"{detail["deduplication"]}"' if "deduplication" in detail else ""
    if entry.size - len(mark) + len(',"deduplication":"unavailable"') <= event_bus.MAX_BYTES:
        return _Entry(outgoing, entry)
    detail = {name: value for name, value in detail.items() if name != "parameters"} | {"truncated": True}
    entry = event_bus.entry(SOURCE, event.detail_type, detail)
    if entry.size > event_bus.MAX_BYTES and (message := detail.get("message")):
        short = message | {"body": (message["body"] or "")[:_LONGEST_TEXT], "media": []}
        entry = event_bus.entry(SOURCE, event.detail_type, detail | {"message": short})
    return _Entry(outgoing, entry, is_cut=True)


def _try_each[T](do: Callable[[T], None], things: Sequence[T]) -> list[T]:
    """Do something with each thing, and return those for which that raised ServiceUnavailableError."""

    def error(thing: T) -> ServiceUnavailableError | None:
        try:
            do(thing)
        except ServiceUnavailableError as error:
            return error
        return None

    return [thing for thing, failure in zip(things, _each(error, things), strict=True) if failure]


def _each[T, R](do: Callable[[T], R], things: Sequence[T]) -> list[R]:
    """Do something with each thing, with many at the same time."""
    if len(things) < 2:  # noqa: PLR2004 one needs no threads
        return [do(thing) for thing in things]
    with ThreadPoolExecutor(_THREADS, initializer=telemetry.resume, initargs=(telemetry.noted(),)) as pool:
        return list(pool.map(do, things))
