"""Each event is published once, and none is lost, even if the bus, the buffer or the table fails."""

import json
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import webhook
from twilio_connector.aws import client, event_bus
from twilio_connector.deadline import Deadline
from twilio_connector.errors import ServiceUnavailableError
from twilio_connector.invocation.events import SqsRecord
from twilio_connector.publishing import publisher
from twilio_connector.publishing.deduplication import Deduplication, EventState, Seen
from twilio_connector.publishing.event import Event, event_key
from twilio_connector.publishing.publisher import publish, publish_buffered

from tests.aws_wire import LOST, PASS, AwsWire
from tests.conftest import Context
from tests.unit.conftest import ACCOUNT_SID, Clock, Log

pytestmark = pytest.mark.usefixtures("delays")

AWAY = (400, "AccessDeniedException")
THROTTLED = (400, "ThrottlingException")
FAILED = (500, "InternalFailure")
TABLE_AWAY = [(400, "AccessDeniedException")] * 1000
BUFFER = "https://sqs.us-east-1.amazonaws.com/123456789012/buffer"
DEAD_LETTERS = "https://sqs.us-east-1.amazonaws.com/123456789012/buffer-dead-letters"
MAX_BYTES = 256 * 1024

type Counted = Callable[[str], float]


def event(number: int = 0, **more: Any) -> Event:
    """Return an event with this number in its `deduplication_id`, and with more fields."""
    detail = {
        "connection": "default",
        "account_sid": ACCOUNT_SID,
        "deduplication_id": f"id{number}",
        "received_at": "2026-11-23T12:00:00.000Z",
        "url": "https://hook.example/webhook",
        "parameters": {"Body": "Grüße 👋"},
    }
    return Event("Message Received", detail | more)


def events(count: int) -> list[Event]:
    """Return this many events."""
    return [event(number) for number in range(count)]


def of_size(size: int, **more: Any) -> Event:
    """Return an event whose entry has this many bytes with the mark `unavailable`."""
    marked = {"deduplication": "unavailable"}
    empty = event(parameters={"Text": ""}, **more).detail | marked
    frame = event_bus.entry("twilio", "Message Received", empty).size
    return event(parameters={"Text": "x" * (size - frame)}, **more)


def publish_all(given: Iterable[Event], seconds: float = 30) -> None:
    """Publish events within this many seconds."""
    publish(given, Deadline(seconds))


def details(wire: AwsWire) -> list[dict[str, Any]]:
    """Return the detail of each entry that was put on the bus, taken or not."""
    return [json.loads(entry["Detail"]) for entry in wire.entries]


def ids(wire: AwsWire) -> list[list[int]]:
    """Return the numbers of the events in each call to the bus."""
    return [
        [int(json.loads(entry["Detail"])["deduplication_id"].removeprefix("id")) for entry in body["Entries"]]
        for called, body in wire.calls
        if called == "PutEvents"
    ]


def marks(wire: AwsWire) -> list[str | None]:
    """Return the `deduplication` mark of each entry, or None."""
    return [detail.get("deduplication") for detail in details(wire)]


def buffered(wire: AwsWire, queue: str = BUFFER) -> list[dict[str, Any]]:
    """Return the messages that were put in the buffer, or in another queue."""
    return [json.loads(body["MessageBody"]) for body in wire.sent if body["QueueUrl"] == queue]


def state(wire: AwsWire, given: Event | None = None) -> tuple[str, bool] | None:
    """Return an event's state in the table, and whether it is uncertain; None if the table does not have it."""
    item = wire.deliveries.get(event_key(given or event()))
    return (item["state"]["S"], item["uncertain"]["BOOL"]) if item else None


def stands(
    wire: AwsWire, what: EventState, *, lease: float = 20, uncertain: bool = False, given: Event | None = None
) -> None:
    """Store the state of an event in the table. A claim belongs to another invocation."""
    given = given or event()
    now = int(time.time())
    seen = Seen(what, "theirs", int(now + lease), now + 1000, uncertain)
    Deduplication("deliveries")._put(event_key(given), given, seen, {})
    wire.calls.clear()


def operations(wire: AwsWire) -> list[str]:
    """Return the calls in order, with the state that each write stores."""
    return [f"{called} {body['Item']['state']['S']}" if called == "PutItem" else called for called, body in wire.calls]


# On the bus


def test_an_event_is_claimed_then_published_then_done(aws_wire: AwsWire, counted: Counted) -> None:
    """An event is claimed, published and then noted as done.

    If it were done before it is published, a crash in between would lose it.
    """
    publish_all([event()])

    assert ["PutItem begun", "PutEvents", "PutItem done"] == operations(aws_wire)
    assert ("done", False) == state(aws_wire)
    assert [("bus", "twilio", "Message Received")] == [
        (entry["EventBusName"], entry["Source"], entry["DetailType"]) for entry in aws_wire.entries
    ]
    assert [event().detail] == details(aws_wire)
    assert (1, 0) == (counted("EventsPublished"), counted("EventsBuffered"))


def test_an_event_is_not_done_before_the_bus_has_answered(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event is not done before the bus has answered. A crash before the answer leaves a claim that expires."""
    seen, put = [], aws_wire._PutEvents

    def put_and_look(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        seen.append(state(aws_wire))
        return put(body)

    monkeypatch.setattr(aws_wire, "_PutEvents", put_and_look)
    publish_all([event()])

    assert [("begun", False)] == seen


def test_what_was_published_is_not_published_again(aws_wire: AwsWire) -> None:
    """An event that was published is neither published again nor buffered, and Twilio gets a success."""
    for _ in range(100):
        publish_all([event()])

    assert ([[0]], []) == (ids(aws_wire), aws_wire.sent)


def test_what_is_in_the_buffer_is_not_published_by_twilios_next_delivery(aws_wire: AwsWire) -> None:
    """Twilio's next delivery does not publish an event that is in the buffer: the buffer's record will."""
    stands(aws_wire, EventState.KEPT)
    publish_all([event()])

    assert ([], []) == (ids(aws_wire), aws_wire.sent)


def test_an_event_that_is_there_twice_in_one_delivery_is_published_once(aws_wire: AwsWire) -> None:
    """An event that is in a delivery twice is published once, and the others keep their order.

    Event Streams may deliver an event more than once, in one delivery or in several.
    """
    publish_all([event(1), event(2), event(1), event(3), event(3)])

    assert [[1, 2, 3]] == ids(aws_wire)


def test_of_many_only_those_are_published_that_were_not_before(aws_wire: AwsWire) -> None:
    """Of many events, only those are published that were not published before, ten at a time."""
    publish_all(events(13)[::2])
    aws_wire.calls.clear()
    publish_all(events(13))

    assert [[1, 3, 5, 7, 9, 11]] == ids(aws_wire)
    assert 13 == len(aws_wire.deliveries)


# Events that the bus does not take


@pytest.mark.parametrize(
    ("status", "metric"),
    [
        ("sent", "MessagesSentToCarrier"),
        ("delivered", "MessagesDelivered"),
        ("undelivered", "MessagesUndelivered"),
        ("failed", "MessagesUndelivered"),
    ],
)
@pytest.mark.usefixtures("aws_wire")
def test_a_status_is_counted_once(counted: Counted, status: str, metric: str) -> None:
    """A message's status `sent`, `delivered`, `undelivered` or `failed` is counted once, and no other status is.

    A duplicate is not counted again.
    """
    for number, told in enumerate([status, "queued", "received", None]):
        publish_all([event(number, message={"sid": f"SM{number}", "status": told})])
    publish_all([event(0, message={"sid": "SM0", "status": status})])
    publish_all([event(9)])

    every = ("MessagesSentToCarrier", "MessagesDelivered", "MessagesUndelivered")
    assert {name: int(name == metric) for name in every} == {name: counted(name) for name in every}


@pytest.mark.parametrize("message", ["delivered", ["delivered"], 7])
def test_a_message_that_is_no_object_is_published_and_not_counted(
    aws_wire: AwsWire, counted: Counted, message: Any
) -> None:
    """An event whose message is not an object is published and not counted.

    A record of the buffer can have any content, and must not hold up the other records.
    """
    publish_all([event(0, message=message)])

    assert [[0]] == ids(aws_wire)
    assert 0 == counted("MessagesDelivered")


def test_what_is_refused_is_put_again(aws_wire: AwsWire, delays: list[float], counted: Counted) -> None:
    """Only refused entries (HTTP 200 with FailedEntryCount) are retried, after a pause and without a mark.

    They have no mark because the bus did not take them.
    """
    aws_wire.refused = [2]
    publish_all(events(5))

    assert [[0, 1, 2, 3, 4], [3, 4]] == ids(aws_wire)
    assert [None] * 7 == marks(aws_wire)
    assert [("done", False)] * 5 == [state(aws_wire, each) for each in events(5)]
    assert ([0.3], []) == (delays, aws_wire.sent)
    assert 5 == counted("EventsPublished")


@pytest.mark.parametrize("refused", [[1, 0, 3], [0, 1, 0, 1]], ids=repr)
def test_each_request_may_be_refused_in_part(aws_wire: AwsWire, refused: list[int]) -> None:
    """Of 25 events in three requests, each request may be refused in part. One request retries the rest."""
    aws_wire.refused = [*refused]
    publish_all(events(25))
    first, second, third, again = ids(aws_wire)[:4]

    assert [*range(25)] == first + second + third
    assert again == [
        number
        for batch, count in zip((first, second, third), refused, strict=False)
        if count
        for number in batch[-count:]
    ]
    kept = again[-refused[3] :] if len(refused) > 3 else []
    assert [f"id{number}" for number in kept] == [each["detail"]["deduplication_id"] for each in buffered(aws_wire)]


@pytest.mark.parametrize("failure", [THROTTLED, AWAY], ids=repr)
def test_what_was_refused_altogether_is_put_again(aws_wire: AwsWire, failure: tuple[int, str]) -> None:
    """A refused request is retried without a mark, because its event is provably not on the bus."""
    aws_wire.failures["PutEvents"] = [failure]
    publish_all([event()])

    assert [None, None] == marks(aws_wire)
    assert ("done", False) == state(aws_wire)


@pytest.mark.parametrize("failure", [LOST, FAILED], ids=repr)
def test_what_may_be_on_the_bus_says_so_when_it_is_put_again(aws_wire: AwsWire, failure: tuple[int, str]) -> None:
    """An event that may be on the bus is retried with the mark `uncertain`.

    It has the same `deduplication_id`, by which a consumer recognises a duplicate.
    """
    aws_wire.failures["PutEvents"] = [failure]
    publish_all([event()])

    assert [event().detail, event().detail | {"deduplication": "uncertain"}] == details(aws_wire)
    assert ("done", False) == state(aws_wire)


def test_only_the_request_whose_answer_is_lost_is_uncertain(aws_wire: AwsWire) -> None:
    """Only the events of a request whose answer was lost are uncertain, because the other outcomes are known."""
    aws_wire.failures["PutEvents"] = [PASS, LOST]
    aws_wire.refused = [1]
    publish_all(events(12))

    assert [[*range(10)], [10, 11], [9, 10, 11]] == ids(aws_wire)
    assert [None, "uncertain", "uncertain"] == marks(aws_wire)[-3:]


# The buffer


@pytest.mark.parametrize(
    ("failures", "uncertain"),
    [
        ([AWAY, AWAY], False),
        ([THROTTLED, THROTTLED], False),
        ([LOST, LOST], True),
        ([FAILED, FAILED], True),
        ([LOST, AWAY], True),
        ([AWAY, LOST], True),
    ],
    ids=repr,
)
def test_what_the_bus_does_not_take_is_kept(
    aws_wire: AwsWire,
    counted: Counted,
    failures: list[tuple[int, str]],
    uncertain: bool,  # noqa: FBT001 a table
) -> None:
    """An event that the bus does not take is buffered whole, with its uncertainty.

    It is noted as buffered only once it is in the queue, so that it cannot be lost in between.
    """
    aws_wire.failures["PutEvents"] = [*failures]
    publish_all([event()])

    assert ["PutItem begun", "PutEvents", "PutEvents", "SendMessage", "PutItem kept"] == operations(aws_wire)
    assert [{"detail-type": "Message Received", "detail": event().detail, "uncertain": uncertain}] == buffered(aws_wire)
    assert [2] == [body["DelaySeconds"] for body in aws_wire.sent]
    assert ("kept", uncertain) == state(aws_wire)
    assert (0, 1) == (counted("EventsPublished"), counted("EventsBuffered"))


def test_many_are_kept_each_by_itself(aws_wire: AwsWire, counted: Counted) -> None:
    """Each event that the bus does not take is a record of its own in the buffer, and the other events are done."""
    aws_wire.failures["PutEvents"] = [PASS, LOST, LOST, LOST]
    publish_all(events(25))

    kept = {each["detail"]["deduplication_id"]: each["uncertain"] for each in buffered(aws_wire)}
    # In the first attempt, the second and third request are lost; in the second attempt, the first request is.
    assert {f"id{number}" for number in range(10, 20)} == {key for key, uncertain in kept.items() if uncertain}
    assert (15, 10) == (counted("EventsPublished"), counted("EventsBuffered"))
    assert [("kept", True)] * 10 == [state(aws_wire, event(number)) for number in range(10, 20)]


@pytest.mark.parametrize("buffer", [AWAY, THROTTLED], ids=repr)
@pytest.mark.parametrize("bus_failure", [AWAY, LOST], ids=repr)
def test_only_where_both_are_away_it_is_an_error(
    aws_wire: AwsWire, counted: Counted, log: Log, buffer: tuple[int, str], bus_failure: tuple[int, str]
) -> None:
    """If bus and buffer are both unavailable, publishing fails.

    Nothing is noted, so that the next delivery publishes the event when the claim expires.
    """
    aws_wire.failures |= {"PutEvents": [bus_failure] * 2, "SendMessage": [buffer] * 2}

    with pytest.raises(
        ServiceUnavailableError, match=r"^1 events could be put neither on the event bus nor in the buffer$"
    ):
        publish_all([event()])
    assert ("begun", False) == state(aws_wire)
    assert (0, 0) == (counted("EventsPublished"), counted("EventsBuffered"))
    assert [("could not put an event in the buffer", buffer[1])] == [(line["message"], line["code"]) for line in log()]


def test_one_of_many_that_nobody_takes_is_an_error(aws_wire: AwsWire, counted: Counted) -> None:
    """If bus and buffer refuse one of many events, publishing fails, but the others are published or buffered."""
    aws_wire.refused = [3, 3]
    aws_wire.failures["SendMessage"] = [PASS, AWAY]

    with pytest.raises(ServiceUnavailableError, match=r"^1 events could be put neither .* nor in the buffer$"):
        publish_all(events(5))
    assert (2, 2) == (counted("EventsPublished"), counted("EventsBuffered"))
    assert ["begun", "done", "done", "kept", "kept"] == sorted(
        item["state"]["S"] for item in aws_wire.deliveries.values()
    )


def test_what_nobody_took_is_published_by_the_next_delivery(aws_wire: AwsWire, clock: Clock) -> None:
    """An event that bus and buffer refused is published by the next delivery, once the claim expires.

    Its outcome is unknown by then, so that it has the mark `uncertain`.
    """
    aws_wire.failures |= {"PutEvents": [AWAY] * 2, "SendMessage": [AWAY]}
    with pytest.raises(ServiceUnavailableError):
        publish_all([event()])
    aws_wire.calls.clear()
    clock.go_on(32)
    publish_all([event()])

    assert ["uncertain"] == marks(aws_wire)
    assert ("done", False) == state(aws_wire)


# The table


@pytest.mark.parametrize("failure", [AWAY, FAILED, THROTTLED, LOST], ids=repr)
def test_without_the_table_events_are_published(aws_wire: AwsWire, counted: Counted, failure: tuple[int, str]) -> None:
    """If the table is unavailable, events are published with the mark `unavailable`: they may be duplicates."""
    aws_wire.failures["PutItem"] = [failure] * 1000
    publish_all(events(3))

    assert [[0, 1, 2]] == ids(aws_wire)
    assert ["unavailable"] * 3 == marks(aws_wire)
    assert 3 == counted("EventsPublished")


def test_doubt_goes_before_ignorance(aws_wire: AwsWire) -> None:
    """An event that may be on the bus has the mark `uncertain`, even if the table is unavailable."""
    aws_wire.failures |= {"PutItem": TABLE_AWAY, "PutEvents": [LOST]}
    publish_all([event()])

    assert ["unavailable", "uncertain"] == marks(aws_wire)


def test_without_table_and_bus_events_are_kept(aws_wire: AwsWire) -> None:
    """If table and bus are unavailable, events are buffered, and nothing is noted in the table."""
    aws_wire.failures |= {"PutItem": TABLE_AWAY, "PutEvents": [AWAY] * 2}
    publish_all([event()])

    assert [event().detail] == [each["detail"] for each in buffered(aws_wire)]
    assert {} == aws_wire.deliveries


def test_an_event_is_out_though_nobody_notes_it(aws_wire: AwsWire, log: Log) -> None:
    """An event is published even if the table cannot note it as done.

    The next delivery waits until the claim expires, and then marks the event as a possible duplicate.
    """
    aws_wire.failures["PutItem"] = [PASS, AWAY]
    publish_all([event()])

    assert ([None], ("begun", False)) == (marks(aws_wire), state(aws_wire))
    assert ["ServiceUnavailableError"] == [line["error"] for line in log()]


# Two invocations at the same time


def test_what_somebody_is_publishing_is_kept_until_it_is_known(aws_wire: AwsWire, counted: Counted) -> None:
    """An event that another invocation is publishing is buffered until that claim expires.

    The other invocation may crash; the event is then published from the buffer.
    """
    stands(aws_wire, EventState.BEGUN, lease=20)
    publish_all([event()])

    assert (0, 1) == (aws_wire.count("PutEvents"), counted("EventsBuffered"))
    (sent,) = aws_wire.sent
    assert 20 <= sent["DelaySeconds"] <= 22
    assert [{"detail-type": "Message Received", "detail": event().detail, "uncertain": False}] == buffered(aws_wire)
    assert ("begun", False) == state(aws_wire)


def test_sqs_waits_for_a_quarter_of_an_hour_at_most(aws_wire: AwsWire) -> None:
    """A delay in SQS is at most 15 minutes, even if the clock of another invocation was wrong by more."""
    stands(aws_wire, EventState.BEGUN, lease=100_000)
    publish_all([event()])

    assert [900] == [body["DelaySeconds"] for body in aws_wire.sent]


def test_what_somebody_is_publishing_and_nobody_keeps_is_published(aws_wire: AwsWire) -> None:
    """If the buffer refuses an event that another invocation is publishing, it is published as `uncertain`.

    A duplicate is better than a loss. The claim stays with the other invocation.
    """
    stands(aws_wire, EventState.BEGUN)
    aws_wire.failures["SendMessage"] = [AWAY]
    publish_all([event()])

    assert ["uncertain"] == marks(aws_wire)
    assert ("begun", False) == state(aws_wire)


def test_what_somebody_is_publishing_and_nobody_takes_is_an_error(aws_wire: AwsWire) -> None:
    """If bus and buffer refuse an event that another invocation is publishing, publishing fails.

    The other invocation may have crashed before it published the event.
    """
    stands(aws_wire, EventState.BEGUN)
    aws_wire.failures |= {"SendMessage": [AWAY], "PutEvents": [AWAY] * 2}

    with pytest.raises(ServiceUnavailableError, match=r"^1 events could be put neither .* nor in the buffer$"):
        publish_all([event()])


def test_many_deliveries_at_the_same_moment_make_one_event(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliveries at the same time publish one event: all claim it before one gets an answer.

    The records in the buffer are later recognised as duplicates.
    """
    together, answer, first = threading.Barrier(8, timeout=10), aws_wire.answer, threading.local()

    def answer_together(operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        reply = answer(operation, body)
        if not hasattr(first, "over"):
            first.over = True
            together.wait()
        return reply

    monkeypatch.setattr(aws_wire, "answer", answer_together)
    in_threads(lambda: publish_all([event()]), 8)
    records = delivered(aws_wire)

    assert ([None], 7) == (marks(aws_wire), len(records))
    assert [] == publish_buffered(records, Deadline(30))
    assert [None] == marks(aws_wire)


def test_a_delivery_while_the_bus_has_the_event_makes_none(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery between another one's request to the bus and the answer does not publish the event again."""
    put = aws_wire._PutEvents
    has_it, goes_on = threading.Event(), threading.Event()

    def put_slowly(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        aws_wire._one_at_a_time.release()
        has_it.set()
        assert goes_on.wait(10)
        aws_wire._one_at_a_time.acquire()
        return put(body)

    monkeypatch.setattr(client, "_READ_SECONDS", 20)
    monkeypatch.setattr(aws_wire, "_PutEvents", put_slowly)
    first = threading.Thread(target=lambda: publish_all([event()]))
    first.start()
    assert has_it.wait(10)
    publish_all([event()])
    before = len(aws_wire.entries)
    goes_on.set()
    first.join(10)

    assert (1, 1, 1) == (before, len(aws_wire.entries), len(aws_wire.sent))
    assert [] == publish_buffered(delivered(aws_wire), Deadline(30))
    assert (1, ("done", False)) == (len(aws_wire.entries), state(aws_wire))


def in_threads(do: Callable[[], None], count: int) -> None:
    """Run a function in this many threads, and wait for all."""
    threads = [threading.Thread(target=do) for _ in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    assert not any(each.is_alive() for each in threads)


# Too large for the bus


@pytest.mark.parametrize("size", [MAX_BYTES - 1, MAX_BYTES])
def test_an_event_is_as_large_as_the_bus_takes(aws_wire: AwsWire, size: int) -> None:
    """An event may be as large as EventBridge allows, with the longest mark that it may get."""
    publish_all([of_size(size)])

    assert [of_size(size).detail] == details(aws_wire)
    assert [] == aws_wire.sent


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({}, [{}]),
        ({"PutItem": TABLE_AWAY}, [{"deduplication": "unavailable"}]),
        ({"PutEvents": [LOST]}, [{}, {"deduplication": "uncertain"}]),
    ],
    ids=["alone", "no table", "lost"],
)
def test_one_byte_more_goes_without_its_parameters(
    aws_wire: AwsWire, failures: dict[str, list[tuple[int, str]]], expected: list[dict[str, Any]]
) -> None:
    """An event that is one byte too large is published as `truncated`, without its parameters.

    The whole event is put in the dead-letter queue after the rest is published, and before it is noted as done.
    """
    whole = of_size(MAX_BYTES + 1)
    aws_wire.failures |= {name: [*each] for name, each in failures.items()}
    publish_all([whole])
    rest = {name: value for name, value in whole.detail.items() if name != "parameters"}

    assert [rest | marked | {"truncated": True} for marked in expected] == details(aws_wire)
    assert [{"detail-type": "Message Received", "detail": whole.detail, "uncertain": False}] == buffered(
        aws_wire, DEAD_LETTERS
    )
    assert [] == buffered(aws_wire)
    done = ["PutItem done"] if "PutItem" not in failures else []
    assert ["PutEvents", "SendMessage", *done] == operations(aws_wire)[-2 - len(done) :]


@pytest.mark.parametrize("character", ["é", "👍", "\x00"])
def test_bytes_count_as_they_are_sent(aws_wire: AwsWire, character: str) -> None:
    """The size of an event counts the bytes of its UTF-8 and of JSON's escapes."""
    publish_all([event(parameters={"Text": character * 140_000})])

    assert [True] == [detail.get("truncated") for detail in details(aws_wire)]
    assert all(
        sum(len(entry[part].encode()) for part in ("Source", "DetailType", "Detail")) <= MAX_BYTES
        for entry in aws_wire.entries
    )


@pytest.mark.parametrize(("body", "media"), [("x" * 300_000, []), (None, [{"url": "x" * 300_000}])])
def test_a_message_that_is_too_large_without_parameters_is_cut(
    aws_wire: AwsWire, body: str | None, media: list[dict[str, str]]
) -> None:
    """A message that is too large without parameters loses its media, and its text is cut to 1,600 characters.

    This is the most that an SMS has. The sender stays.
    """
    message = {"sid": "SM" + "1" * 32, "from": "+15551234567", "body": body, "media": media}
    publish_all([event(message=message)])
    (detail,) = details(aws_wire)

    assert message | {"body": (body or "")[:1600], "media": []} == detail["message"]
    assert (True, False) == (detail["truncated"], "parameters" in detail)
    assert [message] == [each["detail"]["message"] for each in buffered(aws_wire, DEAD_LETTERS)]


def test_a_message_that_fits_without_its_parameters_stays_whole(aws_wire: AwsWire) -> None:
    """A message that fits without the event's parameters is not cut."""
    message = {"sid": "SM" + "1" * 32, "body": "x" * 2000, "media": [{"url": "https://x.example"}]}
    publish_all([of_size(MAX_BYTES + 1, message=message)])

    assert [message] == [detail["message"] for detail in details(aws_wire)]


def test_one_that_is_too_large_does_not_touch_the_others(aws_wire: AwsWire) -> None:
    """An event that is too large does not change the other events."""
    publish_all([event(1), of_size(MAX_BYTES + 1), event(2)])

    assert {"id0": True, "id1": None, "id2": None} == {
        detail["deduplication_id"]: detail.get("truncated") for detail in details(aws_wire)
    }


def test_what_cannot_be_set_aside_is_kept_whole(aws_wire: AwsWire, counted: Counted, log: Log) -> None:
    """If the dead-letter queue does not take a large event, the buffer gets it whole, so that no part is lost."""
    aws_wire.failures["SendMessage"] = [AWAY]
    publish_all([of_size(MAX_BYTES + 1), event(1)])

    assert [[0, 1]] == ids(aws_wire)
    assert [of_size(MAX_BYTES + 1).detail] == [each["detail"] for each in buffered(aws_wire)]
    assert (("kept", True), 1) == (state(aws_wire), counted("EventsBuffered"))
    assert ["could not put an event in the buffer's dead-letter queue"] == [line["message"] for line in log()]


def test_what_can_neither_be_set_aside_nor_kept_is_an_error(aws_wire: AwsWire) -> None:
    """If dead-letter queue and buffer refuse a large event, publishing fails, although the bus took a part.

    The next delivery finds its claim in the table.
    """
    aws_wire.failures["SendMessage"] = [AWAY] * 2

    with pytest.raises(ServiceUnavailableError, match=r"^1 events could be put neither .* nor in the buffer$"):
        publish_all([of_size(MAX_BYTES + 1)])
    assert ("begun", False) == state(aws_wire)


def test_what_is_too_large_is_kept_whole_where_the_bus_is_away(aws_wire: AwsWire) -> None:
    """If the bus is unavailable, the buffer gets a large event whole, and not only the part for the bus."""
    aws_wire.failures["PutEvents"] = [AWAY] * 2
    publish_all([of_size(MAX_BYTES + 1)])

    assert [of_size(MAX_BYTES + 1).detail] == [each["detail"] for each in buffered(aws_wire)]


# Time


@pytest.mark.parametrize(("seconds", "expected"), [(20.9, "unavailable"), (22, None)])
def test_who_has_no_time_to_claim_does_not(aws_wire: AwsWire, seconds: float, expected: str | None) -> None:
    """With too little time for a claim, an event is published without one, because publishing comes first."""
    publish_all([event()], seconds)

    assert [expected] == marks(aws_wire)
    assert bool(expected) == (aws_wire.count("PutItem") == 0)


@pytest.mark.parametrize("seconds", [22, 30, 300])
def test_a_claim_ends_when_its_function_ends(aws_wire: AwsWire, seconds: float) -> None:
    """A claim expires when its function ends.

    If it expired earlier, another invocation would publish the event, too. If it expired much later, others would wait
    in vain.
    """
    publish_all([event()], seconds)
    claim = next(body["Item"] for called, body in aws_wire.calls if called == "PutItem")

    assert time.time() + seconds - 5 < int(claim["lease_until"]["N"]) <= time.time() + seconds + 2


@pytest.mark.parametrize(("seconds", "attempts"), [(13.9, 1), (15, 2)])
def test_who_has_no_time_to_put_an_event_again_keeps_it(aws_wire: AwsWire, seconds: float, attempts: int) -> None:
    """With too little time for a retry, an event is buffered.

    If Lambda ended the function in between, it would be lost.
    """
    aws_wire.failures["PutEvents"] = [AWAY] * 3
    publish_all([event()], seconds)

    assert (attempts, 1) == (aws_wire.count("PutEvents"), len(buffered(aws_wire)))


def test_time_to_publish_and_to_keep_is_reserved() -> None:
    """The reserved time covers both attempts at the bus with the longest pause, and the call to the buffer."""
    assert (
        publisher.RESERVE_SECONDS
        >= event_bus.ATTEMPTS * (1 + client._READ_SECONDS) + event_bus._LONGEST_PAUSE + client.SECONDS
    )


# Records of the buffer


def record(body: Any, number: int = 0) -> SqsRecord:
    """Return a record of the buffer."""
    return SqsRecord(message_id=f"m{number}", body=body if isinstance(body, str) else json.dumps(body))


def kept(number: int = 0, *, uncertain: bool = False, given: Event | None = None) -> SqsRecord:
    """Return the buffer's record of an event."""
    detail_type, detail = given or event(number)
    return record({"detail-type": detail_type, "detail": detail, "uncertain": uncertain}, number)


def delivered(wire: AwsWire) -> list[SqsRecord]:
    """Return the records that were put in the buffer."""
    return [record(each, number) for number, each in enumerate(buffered(wire))]


def again(*records: SqsRecord, seconds: float = 30) -> list[str]:
    """Publish records of the buffer, and return the ids that SQS must deliver again."""
    return [each.message_id for each in publish_buffered(records, Deadline(seconds))]


@pytest.mark.parametrize(("bus_failure", "mark"), [(AWAY, None), (LOST, "uncertain")], ids=repr)
def test_what_was_kept_is_published_as_it_was(
    aws_wire: AwsWire, counted: Counted, bus_failure: tuple[int, str], mark: str | None
) -> None:
    """The same function publishes a buffered event unchanged, with its uncertainty, and then notes it as done."""
    aws_wire.failures["PutEvents"] = [bus_failure] * 2
    publish_all([event()])
    records = delivered(aws_wire)
    aws_wire.calls.clear()

    assert [] == again(*records)
    assert [event().detail | ({"deduplication": mark} if mark else {})] == details(aws_wire)
    assert ["PutItem begun", "PutItem begun", "PutEvents", "PutItem done"] == operations(aws_wire)
    assert (1, ("done", False)) == (counted("EventsPublished"), state(aws_wire))


@pytest.mark.parametrize("in_record", [False, True])
@pytest.mark.parametrize("in_table", [False, True])
def test_doubt_is_believed_wherever_it_stands(aws_wire: AwsWire, in_record: bool, in_table: bool) -> None:  # noqa: FBT001 a table
    """An event is `uncertain` if the record or the table says so.

    A note in the table may be lost, and a record is never rewritten.
    """
    stands(aws_wire, EventState.KEPT, lease=0, uncertain=in_table)

    assert [] == again(kept(uncertain=in_record))
    assert ["uncertain" if in_record or in_table else None] == marks(aws_wire)


def test_a_record_that_comes_twice_is_published_once(aws_wire: AwsWire) -> None:
    """A record that SQS delivers twice, in one batch or in two, is published once.

    Twilio's next delivery is a duplicate, too.
    """
    stands(aws_wire, EventState.KEPT, lease=0)

    assert [] == again(kept(), kept())
    assert [] == again(kept())
    publish_all([event()])
    assert [[0]] == ids(aws_wire)


def test_a_record_of_what_somebody_is_publishing_comes_again(aws_wire: AwsWire) -> None:
    """A record is redelivered while another invocation is publishing its event, until that outcome is known."""
    stands(aws_wire, EventState.BEGUN)

    assert ["m0"] == again(kept())
    assert ([], [], ("begun", False)) == (ids(aws_wire), aws_wire.sent, state(aws_wire))


def test_a_record_of_what_somebody_died_with_is_published(aws_wire: AwsWire) -> None:
    """A record is published as `uncertain` once another invocation's claim expires: its event may be on the bus."""
    stands(aws_wire, EventState.BEGUN, lease=0)

    assert [] == again(kept())
    assert (["uncertain"], ("done", False)) == (marks(aws_wire), state(aws_wire))


@pytest.mark.parametrize(
    ("failures", "uncertain"), [([AWAY] * 2, False), ([LOST] * 2, True), ([LOST, THROTTLED], True)], ids=repr
)
def test_a_record_that_the_bus_does_not_take_comes_again(
    aws_wire: AwsWire,
    counted: Counted,
    failures: list[tuple[int, str]],
    uncertain: bool,  # noqa: FBT001 a table
) -> None:
    """A record that the bus does not take is redelivered as the same message, never as a new one.

    The table notes whether it may be on the bus, and the next attempt is marked so.
    """
    stands(aws_wire, EventState.KEPT, lease=0)
    aws_wire.failures["PutEvents"] = [*failures]

    assert ["m0"] == again(kept())
    assert ([], 0, ("kept", uncertain)) == (aws_wire.sent, counted("EventsBuffered"), state(aws_wire))
    aws_wire.calls.clear()
    assert [] == again(kept())
    assert ["uncertain" if uncertain else None] == marks(aws_wire)


def test_doubt_is_not_forgotten_over_a_refusal(aws_wire: AwsWire) -> None:
    """An event whose answer was lost stays uncertain after a refusal: the third attempt may be a duplicate."""
    stands(aws_wire, EventState.KEPT, lease=0)
    aws_wire.failures["PutEvents"] = [LOST, AWAY, AWAY, AWAY]
    results = [again(kept()) for _ in range(3)]

    assert [["m0"], ["m0"], []] == results
    assert [None, *["uncertain"] * 4] == marks(aws_wire)


def test_without_the_table_records_are_published(aws_wire: AwsWire) -> None:
    """If the table is unavailable, records are published with the mark `unavailable`, and are not redelivered."""
    aws_wire.failures["PutItem"] = TABLE_AWAY

    assert [] == again(kept())
    assert ["unavailable"] == marks(aws_wire)


GARBAGE = {
    "no JSON": "{",
    "nothing": "",
    "a list": [],
    "null": "null",
    "no event": {"a": 1},
    "no detail": {"detail-type": "x", "uncertain": False},
    "a detail that is none": {"detail-type": "x", "detail": [], "uncertain": False},
    "a type that is none": {"detail-type": None, "detail": event().detail, "uncertain": False},
    "no doubt": {"detail-type": "x", "detail": event().detail},
    "a doubt that is none": {"detail-type": "x", "detail": event().detail, "uncertain": "no"},
    "no account": {"detail-type": "x", "detail": {"deduplication_id": "MARK"}, "uncertain": False},
    "no id": {"detail-type": "x", "detail": {"account_sid": "MARK"}, "uncertain": False},
    "depth": "[" * 100_000,
    "deep": '{"detail-type":"x","uncertain":false,"detail":{"a":' + "[" * 100_000 + "]" * 100_000 + "}}",
    "no text": "\ud800",
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
def test_a_record_that_is_no_event_does_not_touch_the_others(aws_wire: AwsWire, log: Log, body: Any) -> None:
    """A record that is not an event does not affect the others.

    It is redelivered until SQS moves it to the dead-letter queue. One log line says so, and has nothing of its content.
    """
    assert ["m7"] == again(kept(1), record(body, 7), kept(2))
    assert [[1], [2]] == ids(aws_wire)
    _, line, _ = log()
    assert ("ERROR", "a record in the buffer is not an event") == (line["level"], line["message"])
    assert "MARK" not in json.dumps(log())


def test_who_has_no_time_for_a_record_lets_it_come_again(aws_wire: AwsWire) -> None:
    """A record is redelivered if too little time is left for it. Otherwise Lambda might end the function in between."""
    assert ["m0"] == again(kept(), seconds=27.9)
    assert [] == aws_wire.calls
    assert [] == again(kept(), seconds=29)


def test_time_runs_out_within_a_batch(aws_wire: AwsWire, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """If time runs out within a batch, the remaining records are redelivered untouched."""
    put = aws_wire._PutEvents

    def put_slowly(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        clock.go_on(1.5)
        return put(body)

    monkeypatch.setattr(aws_wire, "_PutEvents", put_slowly)

    assert ["m2", "m3"] == again(*(kept(number) for number in range(4)))
    assert ([[0], [1]], 2) == (ids(aws_wire), len(aws_wire.deliveries))


def test_a_record_that_is_too_large_goes_without_its_parameters(aws_wire: AwsWire) -> None:
    """A buffered event that is too large is published without its parameters, as it would be without the buffer."""
    whole = of_size(MAX_BYTES + 1)

    assert [] == again(kept(given=whole))
    assert [True] == [detail.get("truncated") for detail in details(aws_wire)]
    assert [whole.detail] == [each["detail"] for each in buffered(aws_wire, DEAD_LETTERS)]


def test_a_record_that_cannot_be_set_aside_comes_again(aws_wire: AwsWire) -> None:
    """If the dead-letter queue does not take a large event, its record stays in the buffer."""
    aws_wire.failures["SendMessage"] = [AWAY]

    assert ["m0"] == again(kept(given=of_size(MAX_BYTES + 1)))
    assert ("kept", True) == state(aws_wire)


def test_a_record_that_waits_for_the_bus_leaves_no_copies(aws_wire: AwsWire) -> None:
    """A large record that is redelivered leaves one copy in the dead-letter queue, made when it is published."""
    for failures in ([AWAY] * 2, [AWAY] * 2, []):
        aws_wire.failures["PutEvents"] = [*failures]
        left = again(kept(given=of_size(MAX_BYTES + 1)))

    assert ([], 1) == (left, len(buffered(aws_wire, DEAD_LETTERS)))


@pytest.mark.parametrize(("failures", "expected"), [([], []), ([AWAY], ["m0"])], ids=["set aside", "away"])
def test_a_whole_that_is_moved_back_is_set_aside_again(
    aws_wire: AwsWire, failures: list[tuple[int, str]], expected: list[str]
) -> None:
    """A whole event that is moved back from the dead-letter queue is put there again.

    Its cut form was published, and only the dead-letter queue has all of it.
    """
    whole = of_size(MAX_BYTES + 1)
    stands(aws_wire, EventState.DONE, given=whole)
    aws_wire.failures["SendMessage"] = [*failures]

    assert expected == again(kept(given=whole))
    assert ([], [DEAD_LETTERS]) == (ids(aws_wire), [body["QueueUrl"] for body in aws_wire.sent])


def test_of_a_batch_the_failures_are_told(aws_wire: AwsWire, context: Context) -> None:
    """The handler returns the failures of a batch in the format of SQS."""
    stands(aws_wire, EventState.BEGUN, given=event(2))
    records = [kept(1), kept(2), record("{", 3), kept(4)]
    batch = [
        {"messageId": each.message_id, "body": each.body, "eventSource": "aws:sqs", "eventSourceARN": "arn:aws:sqs:x"}
        for each in records
    ]

    assert {"batchItemFailures": [{"itemIdentifier": "m2"}, {"itemIdentifier": "m3"}]} == webhook.handler(
        {"Records": batch}, context
    )
    assert [[1], [4]] == ids(aws_wire)
