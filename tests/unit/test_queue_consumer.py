"""A message of the send queue is sent once, is reported once its outcome is known, and is never lost."""

import json
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import get_sms
import pytest
import resolve
from send_sms import SendSms, handler
from twilio_connector import telemetry
from twilio_connector.deadline import Deadline
from twilio_connector.errors import ConnectorError, InvalidInputError, ServiceUnavailableError, TwilioRateLimitError
from twilio_connector.invocation.events import Inputs, SqsRecord
from twilio_connector.messaging import queue_consumer
from twilio_connector.messaging.idempotency import record_id
from twilio_connector.validation.model import fields

from tests.aws_wire import LOST, PASS, AwsWire
from tests.builders import posts, record
from tests.conftest import Context, LoadEvent
from tests.faults import Fault, FaultServer, closed_port, faults
from tests.faults.wire import Exchange
from tests.stopwatch import Stopwatch

TO = "+15005550006"
SMS: dict[str, Any] = {"to": TO, "message": "Hello"}
KEYED = SMS | {"idempotency_key": "key"}
SEND = "https://sqs.us-east-1.amazonaws.com/123456789012/send"
FAILED = "https://sqs.us-east-1.amazonaws.com/123456789012/failed"
ARN = "arn:aws:sqs:us-east-1:123456789012:send"
FIFO = "arn:aws:sqs:us-east-1:123456789012:parcels.fifo"
REQUEST_ID = "RQ" + "0" * 32
AWAY = (400, "AccessDeniedException")
LOOKED_FOR = 180
"""Seconds after which `resolve` searches for a message whose outcome is unknown."""

# Text that SQS accepts (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html)
SQS_TEXT = re.compile("[\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")


def deliver(*records: dict[str, Any], seconds: float = 30) -> list[str]:
    """Deliver records as SQS does, and return the ids that SQS must deliver again."""
    answer = handler({"Records": list(records)}, Context(seconds))
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def texts(twilio: FaultServer) -> list[str]:
    """Return the texts of the sends that reached Twilio."""
    return [request.form["Body"][0] for request in posts(twilio)]


def told(aws_wire: AwsWire) -> list[tuple[str, dict[str, Any]]]:
    """Return the detail type and the detail of each event on the bus."""
    assert {("bus", "twilio-connector")} >= {(entry["EventBusName"], entry["Source"]) for entry in aws_wire.entries}
    return [(entry["DetailType"], json.loads(entry["Detail"])) for entry in aws_wire.entries]


def names(aws_wire: AwsWire) -> list[str]:
    """Return the detail types of the events on the bus."""
    return [name for name, _ in told(aws_wire)]


def set_aside(aws_wire: AwsWire) -> list[str]:
    """Return the bodies in the failed queue."""
    assert {FAILED} >= {message["QueueUrl"] for message in aws_wire.sent}
    return [message["MessageBody"] for message in aws_wire.sent]


def reported_unknown(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, sms: dict[str, Any]
) -> str:
    """Send a message whose answer is lost, and let `resolve` report it; return its body in the failed queue."""
    monkeypatch.setenv("UNKNOWN_REPORT_AFTER", "0")
    twilio.script(faults.status(500), faults.OK)
    deliver(record(sms))
    aws_wire.age(LOOKED_FOR)
    assert {"open": 1, "settled": 1} == resolve.handler({}, Context(120))
    (body,) = set_aside(aws_wire)
    return body


def put_off(aws_wire: AwsWire) -> list[int]:
    """Return the delays, in seconds, until SQS is to deliver records again."""
    return [
        parameters["VisibilityTimeout"] for called, parameters in aws_wire.calls if called == "ChangeMessageVisibility"
    ]


def nothing_was_told(aws_wire: AwsWire) -> bool:
    """Return whether the bus and the failed queue are both empty."""
    return aws_wire.entries == [] and aws_wire.sent == []


def failure(error_type: str, payload: Any = None, request_id: str = "request") -> dict[str, Any]:
    """Return the record of an asynchronous invocation that failed."""
    return {
        "requestContext": {"requestId": request_id, "functionArn": "arn:aws:lambda:us-east-1:123456789012:function:f"},
        "requestPayload": SMS if payload is None else payload,
        "responseContext": {"statusCode": 200, "functionError": "Unhandled"},
        "responsePayload": {"errorType": error_type},
    }


NOTIFICATION = {
    "Type": "Notification",
    "MessageId": "sns",
    "TopicArn": "arn:aws:sns:us-east-1:123456789012:parcels",
    "Message": json.dumps(SMS),
}
EVENT = {"id": "event", "detail-type": "Send SMS Requested", "source": "com.example.shop", "detail": SMS}


# Sent


def test_a_message_that_is_sent_is_told(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """`Message Sent` is published once, with Twilio's message, and the record leaves the queue."""
    assert [] == deliver(record(KEYED))

    ((name, detail),) = told(aws_wire)
    assert ("Message Sent", ["caller", "connection", "evidence", "idempotency_key", "message", "send_id"]) == (
        name,
        sorted(detail),
    )
    assert "answer" == detail["evidence"]
    assert ("key", "default", "sqs") == (detail["idempotency_key"], detail["connection"], detail["caller"])
    assert record_id("default", "key") == detail["send_id"]
    assert (TO, "Hello", f"SM{1:032x}") == tuple(detail["message"][name] for name in ("to", "body", "sid"))
    assert ["Hello"] == texts(twilio)
    assert ([], []) == (aws_wire.sent, put_off(aws_wire))


@pytest.mark.parametrize(
    ("body", "key", "caller"),
    [
        (SMS, "1", "sqs"),
        (SMS | {"idempotency_key": None}, "1", "sqs"),
        (KEYED, "key", "sqs"),
        (NOTIFICATION, "sns", "sns"),
        (EVENT, "event", "eventbridge"),
        (NOTIFICATION | {"Message": json.dumps(EVENT)}, "event", "eventbridge"),
        (EVENT | {"detail": KEYED}, "key", "eventbridge"),
        (failure("TwilioUnavailableError"), "request", "sqs"),
        (failure("TwilioUnavailableError", KEYED), "key", "sqs"),
        (EVENT | {"detail": failure("TwilioUnavailableError")}, "request", "eventbridge"),
    ],
    ids=["input", "null", "own", "sns", "event", "event in sns", "own in event", "failure", "own in failure", "all"],
)
def test_every_delivery_has_a_key(
    twilio: FaultServer, aws_wire: AwsWire, body: dict[str, Any], key: str, caller: str
) -> None:
    """The input's own key, or else the innermost id, is in the ledger and on the bus, and the message is sent once."""
    for _ in range(2):
        assert [] == deliver(record(body))

    assert {record_id("default", key)} == aws_wire.items.keys()
    assert [("Message Sent", key, caller)] * 2 == [
        (name, detail["idempotency_key"], detail["caller"]) for name, detail in told(aws_wire)
    ]
    assert 1 == len(posts(twilio))


def test_an_empty_id_is_no_key(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """An event with an empty id gets the SQS message id as its key.

    Without any key, the connector could not know whether the message was sent.
    """
    twilio.script(faults.status(500), faults.OK)
    for _ in range(2):
        deliver(record(EVENT | {"id": ""}))

    assert {record_id("default", "1")} == aws_wire.items.keys()
    assert 1 == len(posts(twilio))


def test_the_same_event_by_two_ways_is_one_message(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """An event that a rule, a topic and a failure record deliver is sent once."""
    deliver(record(EVENT, "1"), record(NOTIFICATION | {"Message": json.dumps(EVENT)}, "2", receives=2))
    deliver(record(failure("Sandbox.Timedout", EVENT), "3"))

    assert {record_id("default", "event")} == aws_wire.items.keys()
    assert 1 == len(posts(twilio))


def test_another_connection_is_told(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The event about a sent message has the connection that the input names."""
    aws_wire.secrets["twilio/other"] = aws_wire.secrets["twilio/default"]
    deliver(record(SMS | {"connection": "other"}))

    assert ["other"] == [detail["connection"] for _, detail in told(aws_wire)]
    assert 1 == len(posts(twilio))


# Never sent


def invalid(_: FaultServer, __: AwsWire) -> dict[str, Any]:
    """Return an invalid input."""
    return {"to": "nobody", "message": "Hello"}


def missing(_: FaultServer, aws_wire: AwsWire) -> dict[str, Any]:
    """Delete the connection, and return an input."""
    del aws_wire.secrets["twilio/default"]
    return SMS


def misformed(_: FaultServer, aws_wire: AwsWire) -> dict[str, Any]:
    """Make the connection's secret invalid, and return an input."""
    aws_wire.secrets["twilio/default"] = "{}"
    return SMS


def used(_: FaultServer, aws_wire: AwsWire) -> dict[str, Any]:
    """Use the key for another message, and return an input with that key."""
    handler(KEYED | {"message": "Bye"}, Context())
    aws_wire.calls.clear()
    return KEYED


def refusing(fault: Fault) -> Callable[[FaultServer, AwsWire], dict[str, Any]]:
    """Return a function that makes Twilio answer with a fault, and returns an input."""

    def refuse(twilio: FaultServer, _: AwsWire) -> dict[str, Any]:
        twilio.script(fault)
        return SMS

    return refuse


FINAL: dict[str, tuple[str, Callable[[FaultServer, AwsWire], dict[str, Any]]]] = {
    "invalid": ("InvalidInputError", invalid),
    "conflict": ("IdempotencyConflictError", used),
    "rejected": ("TwilioRejectedError", refusing(faults.status(400, twilio_code=21211))),
    "forbidden": ("TwilioRejectedError", refusing(faults.status(403))),
    "opted out": ("RecipientOptedOutError", refusing(faults.OPTED_OUT)),
    "not found": ("TwilioNotFoundError", refusing(faults.NOT_FOUND)),
}
MENDABLE: dict[str, tuple[str, Callable[[FaultServer, AwsWire], dict[str, Any]]]] = {
    "no connection": ("ConnectionNotFoundError", missing),
    "bad connection": ("ConnectionInvalidError", misformed),
    "credentials": ("TwilioAuthenticationError", refusing(faults.UNAUTHORIZED)),
}
"""Errors that the stack's owner can fix."""


@pytest.mark.parametrize(
    ("name", "prepare", "receives"),
    [(*each, 1) for each in FINAL.values()] + [(*each, 10) for each in MENDABLE.values()],
    ids=[*FINAL, *MENDABLE],
)
def test_what_cannot_be_sent_is_set_aside_and_told(
    twilio: FaultServer,
    aws_wire: AwsWire,
    name: str,
    prepare: Callable[[FaultServer, AwsWire], dict[str, Any]],
    receives: int,
) -> None:
    """A message that cannot be sent is put in the failed queue with connection, key and reason, and is reported.

    Fixable errors are retried in ten deliveries first.
    """
    sms = prepare(twilio, aws_wire)

    assert [] == deliver(record(sms, receives=receives))
    filled = {"connection": "default", "idempotency_key": "1"} | sms
    (message,) = aws_wire.sent
    assert (FAILED, filled) == (message["QueueUrl"], json.loads(message["MessageBody"]))
    assert name == message["MessageAttributes"]["error"]["StringValue"]

    ((event, detail),) = told(aws_wire)
    assert "Message Failed" == event
    assert {"idempotency_key", "send_id", "connection", "caller", "error"} == detail.keys()
    send_id = record_id("default", filled["idempotency_key"])
    assert (send_id, send_id) == (detail["send_id"], message["MessageAttributes"]["send_id"]["StringValue"])
    assert send_id not in message["MessageBody"]
    assert (filled["idempotency_key"], "default", "sqs") == tuple(
        detail[part] for part in ("idempotency_key", "connection", "caller")
    )
    assert (name, False) == (detail["error"]["title"], detail["error"]["retryable"])
    assert [] == put_off(aws_wire)


def test_our_own_fault_is_set_aside(twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an internal error the record is put in the failed queue, and is not retried in a loop."""
    monkeypatch.delenv("WEBHOOK_URL")

    assert [] == deliver(record(SMS))
    assert (["Message Failed"], 1, []) == (names(aws_wire), len(set_aside(aws_wire)), posts(twilio))


def test_twilios_answer_is_in_the_attributes(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The attributes in the failed queue have the reason, and Twilio's code and request id.

    An operator sees them in the console.
    """
    twilio.script(faults.status(400, twilio_code=21211, message="The number is not valid"))
    deliver(record(SMS))

    reason = f"Twilio refused the request (HTTP 400, Twilio code 21211, request {REQUEST_ID})"
    assert {
        "error": {"DataType": "String", "StringValue": "TwilioRejectedError"},
        "detail": {"DataType": "String", "StringValue": f"{reason}: The number is not valid"},
        "twilio_code": {"DataType": "String", "StringValue": "21211"},
        "twilio_request_id": {"DataType": "String", "StringValue": REQUEST_ID},
        "send_id": {"DataType": "String", "StringValue": record_id("default", "1")},
    } == aws_wire.sent[0]["MessageAttributes"]


def test_the_event_has_the_whole_problem(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The event of a failed message has the problem object that an API caller would get."""
    twilio.script(faults.status(422, twilio_code=21211, message="The number is not valid"))
    deliver(record(SMS))

    reason = f"Twilio refused the request (HTTP 422, Twilio code 21211, request {REQUEST_ID})"
    assert {
        "type": "urn:twilio-connector:error:TwilioRejectedError",
        "title": "TwilioRejectedError",
        "status": 422,
        "detail": f"{reason}: The number is not valid",
        "retryable": False,
        "twilio_code": 21211,
        "twilio_status": 422,
        "twilio_request_id": REQUEST_ID,
    } == told(aws_wire)[0][1]["error"]


def test_an_attribute_holds_what_sqs_takes(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """An attribute in the failed queue has only text that SQS accepts, and at most 1,000 characters.

    Twilio's text may contain any character, and a list of faults may be long.
    """
    twilio.script(faults.status(400, message="a\x00b\x1fc\uffffd\ufffee\u2028f\x7f" + "é" * 2000))
    wrong = dict.fromkeys([f"{'x' * 20}{'y' * number}" for number in range(20)] + list(fields(SendSms)), 5)
    deliver(record(SMS, "1"), record(wrong, "2"))

    values = [message["MessageAttributes"]["detail"]["StringValue"] for message in aws_wire.sent]
    assert 2 == len([value for value in values if SQS_TEXT.fullmatch(value) and len(value) <= 1000])


@pytest.mark.parametrize("character", ["\uffff", "\ufffe", "\x00", "\x1f", "\x7f", "\x85", "é", "👍"], ids=ascii)
def test_a_body_that_is_set_aside_holds_what_sqs_takes(aws_wire: AwsWire, character: str) -> None:
    """A body in the failed queue has only text that SQS accepts, although JSON escapes can spell any character."""
    deliver(record({"to": "nobody", "message": f"a{character}b"}))

    (body,) = set_aside(aws_wire)
    assert f"a{character}b" == json.loads(body)["message"]
    assert SQS_TEXT.fullmatch(body)


GARBAGE = [
    "text",
    "{",
    "[]",
    "5",
    "null",
    '"text"',
    "[{}]",
    '{"to":\n1',
    '{"Records": [{"eventSource": "aws:s3"}]}',
    json.dumps(NOTIFICATION | {"Message": "Hello"}),
    json.dumps(NOTIFICATION | {"Type": "SubscriptionConfirmation"}),
    json.dumps(EVENT | {"detail": failure("x", [])}),
]


@pytest.mark.parametrize("receives", [1, 10, 11, 2000])
@pytest.mark.parametrize("body", GARBAGE)
def test_a_record_that_cannot_be_read_stays(
    twilio: FaultServer,
    aws_wire: AwsWire,
    counted: Callable[[str], float],
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    receives: int,
) -> None:
    """An unreadable record stays in the queue: it has no field for a key, so it cannot be moved.

    SQS delivers it again before the alarm's period ends.
    """
    kept: list[float] = []
    monkeypatch.setattr(telemetry, "flush", lambda: kept.append(counted("RecordsUnhandled")))

    assert ["1"] == deliver(record(body, receives=receives))
    assert [1] == kept
    assert nothing_was_told(aws_wire)
    assert [True] == [0 < seconds <= queue_consumer.LONGEST_DELAY for seconds in put_off(aws_wire)]
    assert [] == twilio.requests


def test_what_an_envelope_holds_is_set_aside_without_it(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The failed queue gets an input without its envelope.

    The envelope's id becomes the input's key, so that it keeps its key in any queue.
    """
    twilio.script(faults.OPTED_OUT)
    deliver(record(NOTIFICATION | {"Message": json.dumps(EVENT)}))

    assert [SMS | {"connection": "default", "idempotency_key": "event"}] == [
        json.loads(body) for body in set_aside(aws_wire)
    ]
    assert ["eventbridge"] == [detail["caller"] for _, detail in told(aws_wire)]


@pytest.mark.parametrize("body", [SMS | {"dry_run": True}, EVENT | {"detail": KEYED | {"dry_run": True}}], ids=repr)
def test_a_dry_run_in_a_queue_is_refused(twilio: FaultServer, aws_wire: AwsWire, body: dict[str, Any]) -> None:
    """A dry run in a queue is refused, because nobody waits for its answer.

    Accepting it silently would look like a sent message.
    """
    assert [] == deliver(record(body))

    ((name, detail),) = told(aws_wire)
    assert ("Message Failed", ["dry_run"]) == (name, [fault["field"] for fault in detail["error"]["errors"]])
    assert [True] == [json.loads(body)["dry_run"] for body in set_aside(aws_wire)]
    assert ([], {}) == (twilio.requests, aws_wire.items)


# Not sent yet


def unavailable_secret(_: FaultServer, aws_wire: AwsWire) -> None:
    """Let Secrets Manager fail."""
    aws_wire.failures["GetSecretValue"] = [(400, "ThrottlingException")] * 2


def unavailable_ledger(_: FaultServer, aws_wire: AwsWire) -> None:
    """Let DynamoDB refuse the next write."""
    aws_wire.failures["PutItem"] = [AWAY]


def too_many(twilio: FaultServer, _: AwsWire) -> None:
    """Let Twilio refuse a request because there are too many."""
    twilio.script(faults.too_many())


def full(twilio: FaultServer, _: AwsWire) -> None:
    """Let Twilio refuse a message because the sender's queue is full."""
    twilio.script(faults.QUEUE_FULL)


LATER = {"secret": unavailable_secret, "ledger": unavailable_ledger, "429": too_many, "full": full}


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("prepare", LATER.values(), ids=LATER)
def test_what_may_go_through_later_is_given_back(
    twilio: FaultServer, aws_wire: AwsWire, prepare: Callable[[FaultServer, AwsWire], None]
) -> None:
    """After a temporary error a record is returned to the queue with a delay, and is not reported.

    It is sent once when the cause ends.
    """
    prepare(twilio, aws_wire)

    assert ["1"] == deliver(record(SMS))
    assert nothing_was_told(aws_wire)
    assert [(SEND, "handle")] == [
        (parameters["QueueUrl"], parameters["ReceiptHandle"])
        for called, parameters in aws_wire.calls
        if called == "ChangeMessageVisibility"
    ]

    twilio.reset()
    assert [] == deliver(record(SMS, receives=2))
    assert (["Message Sent"], 1) == (names(aws_wire), len(posts(twilio)))


@pytest.mark.parametrize("receives", [1, 9])
@pytest.mark.parametrize("name", MENDABLE)
def test_what_may_be_mended_is_given_back(twilio: FaultServer, aws_wire: AwsWire, name: str, receives: int) -> None:
    """After a fixable error a record is returned to the queue with a delay, and is not reported.

    As after an outage, it is sent once when the cause is fixed.
    """
    secret = aws_wire.secrets["twilio/default"]
    sms = MENDABLE[name][1](twilio, aws_wire)

    assert ["1"] == deliver(record(sms, receives=receives))
    assert nothing_was_told(aws_wire)
    assert 1 == len(put_off(aws_wire))

    aws_wire.secrets["twilio/default"] = secret
    twilio.reset()
    forget()
    assert [] == deliver(record(sms, receives=receives + 1))
    assert (["Message Sent"], 1) == (names(aws_wire), len(posts(twilio)))


def test_a_batch_with_refused_credentials_asks_no_more_than_it_must(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Credentials that Twilio refuses after a re-read are not tried again: a queue full of 401s locks accounts."""
    twilio.script(faults.UNAUTHORIZED)
    deliver(record(SMS, "first"))
    asked = len(posts(twilio))

    batch = [record(SMS, str(number)) for number in range(20)]
    assert [str(number) for number in range(20)] == deliver(*batch)
    assert (2, 2) == (asked, len(posts(twilio)))
    assert nothing_was_told(aws_wire)


@pytest.mark.usefixtures("delays")
def test_what_did_not_reach_twilio_is_given_back(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record whose request did not reach Twilio is returned to the queue: it is certain that nothing was sent."""
    with closed_port() as port:
        monkeypatch.setenv("TWILIO_API_URL", f"http://127.0.0.1:{port}")
        assert ["1"] == deliver(record(SMS))

    assert nothing_was_told(aws_wire)
    assert [10] == put_off(aws_wire)


def test_what_has_no_time_is_given_back(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Records for which too little time is left are returned to the queue unsent."""
    assert ["1", "2"] == deliver(record(SMS, "1"), record(SMS, "2"), seconds=10)

    assert ([], {}) == (twilio.requests, aws_wire.items)
    assert 2 == len(put_off(aws_wire))


@pytest.mark.parametrize(
    ("receives", "longest"),
    [(1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 320), (7, 640), (8, 900), (9, 900), (10, 900)],
)
@pytest.mark.parametrize("part", [0, 0.5, 1])
def test_deliveries_become_rarer(
    aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, receives: int, longest: int, part: float
) -> None:
    """The delay of a record doubles with each delivery up to 15 minutes; half of it is random."""
    monkeypatch.setattr(random.SystemRandom, "uniform", lambda _, least, most: least + part * (most - least))
    aws_wire.failures["PutItem"] = [AWAY]

    assert ["1"] == deliver(record(SMS, receives=receives))
    assert [int(longest * (1 + part) / 2)] == put_off(aws_wire)


@pytest.mark.parametrize(("receives", "longest"), [(1, 60), (2, 120), (4, 480), (5, 900), (10, 900)])
@pytest.mark.parametrize("part", [0, 1])
def test_a_full_queue_takes_minutes(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, receives: int, longest: int, part: int
) -> None:
    """If the sender's queue is full, the delay is minutes: a retry after seconds would only fill it again."""
    monkeypatch.setattr(random.SystemRandom, "uniform", lambda _, least, most: most if part else least)
    twilio.script(faults.QUEUE_FULL)

    assert ["1"] == deliver(record(SMS, receives=receives))
    assert [longest * (1 + part) // 2] == put_off(aws_wire)


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize(
    ("retry_after", "receives", "seconds"),
    [("0", 1, 10), ("1", 1, 10), ("60", 1, 60), ("60", 4, 80), ("3600", 1, 3600), ("3600", 10, 3600), ("soon", 1, 10)],
)
def test_twilio_says_when(
    twilio: FaultServer, aws_wire: AwsWire, retry_after: str, receives: int, seconds: int
) -> None:
    """SQS does not deliver the record before Twilio's Retry-After."""
    twilio.script(faults.too_many(retry_after))

    assert ["1"] == deliver(record(SMS, receives=receives))
    assert [seconds] == put_off(aws_wire)


def test_twilio_may_say_when_by_a_date(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A date in Twilio's Retry-After sets the delay, because HTTP allows a date."""
    twilio.script(faults.too_many(timedelta(hours=1)))

    assert ["1"] == deliver(record(SMS))
    assert 3590 <= put_off(aws_wire)[0] <= 3600


@pytest.mark.usefixtures("aws_wire")
def test_a_part_of_a_second_is_a_whole_one(aws_wire: AwsWire) -> None:
    """A delay is rounded up, because SQS takes whole seconds. Rounding down would be earlier than Twilio asked."""

    def refuse(_: Inputs) -> dict[str, Any]:
        raise TwilioRateLimitError("too many", retry_after=100.2)

    assert queue_consumer.deliver(SqsRecord("1", "{}", None, ARN, "handle"), refuse, Deadline(30))
    assert [101] == put_off(aws_wire)


@pytest.mark.parametrize("retry_after", ["86400", "99999999999999999999"])
def test_a_record_is_put_off_no_longer_than_sqs_takes(twilio: FaultServer, aws_wire: AwsWire, retry_after: str) -> None:
    """A delay is at most 12 hours less five minutes.

    SQS allows 12 hours from the receipt, and up to five minutes of them are over.
    """
    twilio.script(faults.too_many(retry_after))

    assert ["1"] == deliver(record(SMS))
    assert 11 * 3600 <= put_off(aws_wire)[0] <= 12 * 3600 - 300


@pytest.mark.parametrize("refusal", [AWAY, (400, "ReceiptHandleIsInvalid"), (400, "InvalidParameterValue")])
def test_a_record_that_cannot_be_put_off_is_given_back(
    twilio: FaultServer, aws_wire: AwsWire, caplog: pytest.LogCaptureFixture, refusal: tuple[int, str]
) -> None:
    """If SQS refuses the delay, the record is redelivered after the queue's own timeout.

    This is not logged as an unexpected exception.
    """
    twilio.script(faults.QUEUE_FULL)
    aws_wire.failures["ChangeMessageVisibility"] = [refusal]

    assert ["1"] == deliver(record(SMS))
    assert nothing_was_told(aws_wire)
    assert "unexpected exception" not in caplog.text


@pytest.mark.parametrize(
    "arn",
    [
        "arn:aws:sqs:us-east-1:123456789012:parcels",
        "arn:aws:sqs:us-east-1:210987654321:send",
        "arn:aws:sqs:us-east-1:123456789012:resend",
    ],
)
def test_a_record_of_another_queue_is_only_given_back(twilio: FaultServer, aws_wire: AwsWire, arn: str) -> None:
    """A record of another queue is returned without a delay: the function has no permission to change it."""
    twilio.script(faults.QUEUE_FULL)

    assert ["1"] == deliver(record(SMS, arn=arn))
    assert [] == put_off(aws_wire)
    assert nothing_was_told(aws_wire)


# Unknown outcomes


@pytest.mark.parametrize(
    "fault",
    [faults.status(500), faults.RESET_AFTER_READ, faults.html(502), faults.body("no_sid")],
    ids=lambda f: f.name,
)
def test_an_unknown_outcome_is_not_given_back(twilio: FaultServer, aws_wire: AwsWire, fault: Fault) -> None:
    """A record with an unknown outcome is neither returned to the queue nor reported here.

    The ledger has the input, and `resolve` reports it.
    """
    twilio.script(fault)

    assert [] == deliver(record(KEYED))
    assert nothing_was_told(aws_wire)
    assert [] == put_off(aws_wire)
    (item,) = aws_wire.items.values()
    assert ("unknown", True) == (item["state"]["S"], "unsettled" in item)
    assert KEYED | {"connection": "default"} == json.loads(item["sms"]["S"])


def test_an_unknown_outcome_that_comes_again_is_not_sent_again(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A message with an unknown outcome is sent once, however often SQS delivers it."""
    twilio.script(faults.status(500), faults.OK)
    for _ in range(3):
        assert [] == deliver(record(SMS))

    assert nothing_was_told(aws_wire)
    assert 1 == len(posts(twilio))


@pytest.mark.parametrize("key", [{}, {"idempotency_key": "key"}], ids=["id", "own key"])
def test_an_unknown_outcome_is_sent_again_on_purpose(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, key: dict[str, str]
) -> None:
    """A message with `on_unknown: resend` is sent again after an unknown outcome, so it is sent at least once."""
    monkeypatch.setattr(random.SystemRandom, "uniform", lambda _, __, most: most)
    twilio.script(faults.status(500), faults.OK)
    sms = SMS | key | {"on_unknown": "resend"}

    assert ["1"] == deliver(record(sms))
    assert ([10], True) == (put_off(aws_wire), nothing_was_told(aws_wire))
    assert [] == deliver(record(sms, receives=2))
    assert [] == deliver(record(sms, receives=3))
    assert (["Message Sent"] * 2, 2) == (names(aws_wire), len(posts(twilio)))


def test_a_failure_record_in_doubt_is_not_sent(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A failure record without a key is not sent, because the failed invocation may have sent the message."""
    for _ in range(2):
        assert [] == deliver(record(failure("Sandbox.Timedout")))

    assert nothing_was_told(aws_wire)
    assert [] == posts(twilio)
    assert ["unknown"] == [item["state"]["S"] for item in aws_wire.items.values()]


@pytest.mark.parametrize("receives", [10, 11])
def test_doubt_is_not_forgotten_in_the_failed_queue(twilio: FaultServer, aws_wire: AwsWire, receives: int) -> None:
    """A redrive does not send a message that may have been sent, even if the record met another error first."""
    secret = aws_wire.secrets.pop("twilio/default")
    deliver(record(failure("Sandbox.Timedout"), receives=receives))
    aws_wire.secrets["twilio/default"] = secret
    forget()
    assert [("Message Outcome Unknown", "request")] == [
        (name, detail["idempotency_key"]) for name, detail in told(aws_wire)
    ]
    (body,) = set_aside(aws_wire)
    assert [] == deliver(record(body, "2"))

    assert failure("Sandbox.Timedout") == json.loads(body)
    assert [] == texts(twilio)


# Reports that fail


def refused_entry(aws_wire: AwsWire) -> None:
    """Let the bus refuse the next event in both attempts."""
    aws_wire.refused = [1, 1]


def bus_away(aws_wire: AwsWire) -> None:
    """Let the bus refuse both attempts."""
    aws_wire.failures["PutEvents"] = [AWAY] * 2


def bus_broken(aws_wire: AwsWire) -> None:
    """Let the bus fail both attempts."""
    aws_wire.failures["PutEvents"] = [(500, "InternalFailure")] * 2


def bus_and_ledger_away(_: FaultServer, aws_wire: AwsWire) -> None:
    """Let bus and ledger refuse the outcome of a message that was sent."""
    aws_wire.failures |= {"PutEvents": [AWAY] * 2, "PutItem": [PASS, AWAY]}


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("break_it", [refused_entry, bus_away, bus_broken])
@pytest.mark.parametrize("receives", [1, 2])
def test_what_was_sent_and_not_told_is_left_to_resolve(
    twilio: FaultServer, aws_wire: AwsWire, break_it: Callable[[AwsWire], None], receives: int
) -> None:
    """A sent message whose report fails leaves the queue, and is pending in the ledger.

    `resolve` reports it later, and it is not sent again.
    """
    if receives > 1:
        deliver(record(SMS))
        aws_wire.calls.clear()
    break_it(aws_wire)

    assert [] == deliver(record(SMS, receives=receives))
    aws_wire.calls.clear()
    for item in aws_wire.items.values():
        item["lease_until"] = {"N": "0"}
    assert {"open": 1, "settled": 1} == resolve.handler({}, Context(120))
    assert {"open": 0, "settled": 0} == resolve.handler({}, Context(120))
    assert [("Message Sent", "1", f"SM{1:032x}")] == [
        (name, detail["idempotency_key"], detail["message"]["sid"]) for name, detail in told(aws_wire)
    ]
    assert ([], 1) == (aws_wire.sent, len(posts(twilio)))


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("operation", ["GetItem", "PutItem"])
def test_what_can_be_neither_told_nor_left_to_resolve_comes_again(
    twilio: FaultServer, aws_wire: AwsWire, operation: str
) -> None:
    """If EventBridge and the ledger fail, the record stays in the queue, and its next delivery reports the message."""
    deliver(record(SMS))
    aws_wire.calls.clear()
    bus_away(aws_wire)
    aws_wire.failures[operation] = [*([PASS] if operation == "PutItem" else []), AWAY]

    assert ["1"] == deliver(record(SMS, receives=2))
    aws_wire.calls.clear()
    assert [] == deliver(record(SMS, receives=3))
    assert (["Message Sent"], 1) == (names(aws_wire), len(posts(twilio)))


@pytest.mark.usefixtures("delays")
def test_a_bus_that_stays_away_leaves_nothing_twice_in_the_failed_queue(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A rejected message is retried until the bus takes its event, and only then put in the failed queue."""
    twilio.script(faults.OPTED_OUT)
    for receives in range(1, 15):
        bus_away(aws_wire)
        assert ["1"] == deliver(record(SMS, receives=receives))
        aws_wire.calls = [call for call in aws_wire.calls if call[0] != "PutEvents"]

    assert [] == set_aside(aws_wire)
    assert [] == deliver(record(SMS, receives=15))
    assert (["Message Failed"], 1) == (names(aws_wire), len(set_aside(aws_wire)))


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("break_it", [refused_entry, bus_away, bus_broken])
def test_what_failed_and_was_not_told_comes_again(
    twilio: FaultServer, aws_wire: AwsWire, break_it: Callable[[AwsWire], None]
) -> None:
    """A rejected message is redelivered until its event is published, because a consumer may wait for it."""
    twilio.script(faults.OPTED_OUT)
    break_it(aws_wire)

    assert ["1"] == deliver(record(SMS))
    aws_wire.calls.clear()
    assert [] == deliver(record(SMS, receives=2))
    assert (["Message Failed"], 1) == (names(aws_wire), len(set_aside(aws_wire)))


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("failures", [[AWAY], [(500, "InternalFailure")] * 2, [LOST, LOST]], ids=repr)
def test_what_cannot_be_set_aside_comes_again(
    twilio: FaultServer, aws_wire: AwsWire, failures: list[tuple[int, str]]
) -> None:
    """A rejected message stays in the send queue until the failed queue has it; its event may be published twice."""
    twilio.script(faults.OPTED_OUT)
    aws_wire.failures["SendMessage"] = [*failures]

    assert ["1"] == deliver(record(SMS))
    aws_wire.calls.clear()
    assert [] == deliver(record(SMS, receives=2))
    assert (["Message Failed"], 1) == (names(aws_wire), len(set_aside(aws_wire)))


# How long records wait


def aged(minutes: float, receives: int = 1) -> dict[str, Any]:
    """Return a record that was put in the queue this many minutes ago."""
    each = record(SMS, receives=receives)
    each["attributes"]["SentTimestamp"] = str(int((time.time() - 60 * minutes) * 1000))
    return each


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("prepare", [*LATER.values(), bus_and_ledger_away], ids=[*LATER, "bus"])
def test_how_long_a_record_waits_is_measured(
    twilio: FaultServer,
    aws_wire: AwsWire,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[FaultServer, AwsWire], None],
) -> None:
    """A record's age counts from the time it was put in the queue. SQS's own metric ignores retried records."""
    monkeypatch.setattr(telemetry, "flush", lambda: None)
    telemetry.metrics.metric_set.clear()
    prepare(twilio, aws_wire)
    assert ["1"] == deliver(aged(20))

    (seconds,) = telemetry.metrics.metric_set.pop("SendQueueAge")["Value"]
    assert 1199 <= seconds <= 1230


def test_what_leaves_the_queue_waits_no_more(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that is done reports no age, however long it waited."""
    monkeypatch.setattr(telemetry, "flush", lambda: None)
    telemetry.metrics.metric_set.clear()
    assert [] == deliver(aged(20))

    assert "SendQueueAge" not in telemetry.metrics.metric_set
    assert (["Message Sent"], 1) == (names(aws_wire), len(posts(twilio)))


# Too many deliveries


def test_ten_deliveries_are_tried(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The tenth delivery of a record may still send it."""
    assert [] == deliver(record(SMS, receives=10))

    assert (["Message Sent"], 1) == (names(aws_wire), len(posts(twilio)))


@pytest.mark.parametrize("receives", [11, 12, 100])
@pytest.mark.parametrize("body", [SMS, KEYED, EVENT, NOTIFICATION], ids=["input", "own key", "event", "sns"])
def test_what_was_never_begun_is_given_up(
    twilio: FaultServer, aws_wire: AwsWire, receives: int, body: dict[str, Any]
) -> None:
    """After ten deliveries a record is not tried again. It is reported as failed and put in the failed queue."""
    assert [] == deliver(record(body, receives=receives))

    ((name, detail),) = told(aws_wire)
    assert ("Message Failed", "ServiceUnavailableError") == (name, detail["error"]["title"])
    (kept,) = [json.loads(each) for each in set_aside(aws_wire)]
    assert SMS | {"connection": "default", "idempotency_key": detail["idempotency_key"]} == kept
    assert ([], {}) == (posts(twilio), aws_wire.items)


def test_what_was_refused_is_given_up_with_its_error(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The report of a record that is given up has Twilio's last error."""
    twilio.script(faults.QUEUE_FULL)
    deliver(record(SMS, receives=10))

    assert [] == deliver(record(SMS, receives=11))
    ((name, detail),) = told(aws_wire)
    assert ("Message Failed", "SenderQueueFullError", 21611) == (
        name,
        detail["error"]["title"],
        detail["error"]["twilio_code"],
    )
    assert [SMS | {"connection": "default", "idempotency_key": "1"}] == [
        json.loads(body) for body in set_aside(aws_wire)
    ]
    assert 1 == len(posts(twilio))


@pytest.mark.usefixtures("delays")
def test_what_was_sent_is_told_however_often_it_came(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A sent message is reported after ten deliveries, too: here EventBridge failed in the earlier ones."""
    aws_wire.failures["PutEvents"] = [AWAY] * 2
    deliver(record(SMS, receives=10))
    aws_wire.calls.clear()

    assert [] == deliver(record(SMS, receives=11))
    ((name, detail),) = told(aws_wire)
    assert ("Message Sent", f"SM{1:032x}") == (name, detail["message"]["sid"])
    assert ([], 1) == (aws_wire.sent, len(posts(twilio)))


def test_what_is_unknown_is_left_to_resolve(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """An unknown outcome is not given up after ten deliveries, because `resolve` still searches for the message."""
    twilio.script(faults.status(500))
    deliver(record(SMS))

    assert [] == deliver(record(SMS, receives=11))
    assert nothing_was_told(aws_wire)
    assert 1 == len(posts(twilio))


def test_what_is_being_sent_waits_for_its_sender(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A message that is being sent is neither sent again nor given up.

    Its record is delivered again, and its outcome is reported then.
    """
    twilio.script(faults.hang(then=faults.OK))
    with ThreadPoolExecutor(1) as pool:
        sender = pool.submit(deliver, record(SMS))
        twilio.wait_for(1)
        assert ["1"] == deliver(record(SMS, receives=11))
        assert nothing_was_told(aws_wire)
        twilio.release()
        assert [] == sender.result()
    assert [] == deliver(record(SMS, receives=12))

    assert (["Message Sent"] * 2, 1) == (names(aws_wire), len(posts(twilio)))


def test_what_stays_unknown_is_told_again(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown outcome that was reported is reported again if it returns from the failed queue, and is not sent."""
    body = reported_unknown(twilio, aws_wire, monkeypatch, KEYED)

    assert [] == deliver(record(body, "2", receives=11))
    assert ["Message Outcome Unknown"] * 2 == names(aws_wire)
    assert [KEYED | {"connection": "default"}] * 2 == [json.loads(each) for each in set_aside(aws_wire)]
    assert 1 == len(posts(twilio))


def test_a_key_that_was_used_is_not_taken_for_this_message(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A record is reported as failed if its key belongs to another message: reporting it as sent would lose it."""
    handler(KEYED | {"message": "Bye"}, Context())

    assert [] == deliver(record(KEYED, receives=11))
    assert ["Message Failed"] == names(aws_wire)
    assert [KEYED | {"connection": "default"}] == [json.loads(body) for body in set_aside(aws_wire)]
    assert ["Bye"] == texts(twilio)


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize(("operation", "times"), [("GetItem", 1), ("SendMessage", 1), ("PutEvents", 2)])
def test_what_cannot_be_given_up_comes_again(aws_wire: AwsWire, operation: str, times: int) -> None:
    """A record that is given up is redelivered until its report succeeds."""
    aws_wire.failures[operation] = [AWAY] * times

    assert ["1"] == deliver(record(SMS, receives=11))
    aws_wire.calls.clear()
    assert [] == deliver(record(SMS, receives=12))
    assert (["Message Failed"], 1) == (names(aws_wire), len(set_aside(aws_wire)))


# Errors after a send


def unreadable(aws_wire: AwsWire, _: pytest.MonkeyPatch) -> None:
    """Delete the connection, as a new container sees it."""
    del aws_wire.secrets["twilio/default"]
    forget()


def unsupported(_: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the same number invalid."""
    monkeypatch.setenv("DEFAULT_COUNTRY", "")


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("spoil", [unreadable, unsupported])
@pytest.mark.parametrize("receives", [2, 11])
def test_what_was_sent_is_not_told_to_have_failed(
    twilio: FaultServer,
    aws_wire: AwsWire,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[AwsWire, pytest.MonkeyPatch], None],
    receives: int,
) -> None:
    """A sent message whose report failed is never reported as failed.

    Only EventBridge failed. A later error, of any kind, does not change that the message was sent.
    """
    aws_wire.failures["PutEvents"] = [AWAY] * 2
    sms = SMS | {"to": "(500) 555-0006"}
    deliver(record(sms))
    aws_wire.calls.clear()
    spoil(aws_wire, monkeypatch)
    deliver(record(sms, receives=receives))

    assert "Message Failed" not in names(aws_wire)
    assert 1 == len(posts(twilio))


@pytest.mark.parametrize("spoil", [unreadable, unsupported])
@pytest.mark.parametrize("receives", [1, 11])
def test_what_is_unknown_is_not_told_to_have_failed(
    twilio: FaultServer,
    aws_wire: AwsWire,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[AwsWire, pytest.MonkeyPatch], None],
    receives: int,
) -> None:
    """An unknown outcome is not reported as failed, because the sender would send the message under another key."""
    body = reported_unknown(twilio, aws_wire, monkeypatch, KEYED | {"to": "(500) 555-0006"})
    spoil(aws_wire, monkeypatch)
    deliver(record(json.loads(body) | {"to": "(500) 555-0006"}, "2", receives=receives))

    assert {"Message Outcome Unknown"} == set(names(aws_wire))
    assert 1 == len(posts(twilio))


# Redrive


def forget() -> None:
    """Forget the cached connections, as in a new container."""
    from twilio_connector.api import client  # noqa: PLC0415 the fixture's own
    from twilio_connector.api.connections import Connections  # noqa: PLC0415 likewise

    client.CONNECTIONS = Connections()


@pytest.mark.parametrize("name", ["rejected", "opted out", *MENDABLE])
def test_what_was_set_aside_is_sent_once_when_it_is_moved_back(
    twilio: FaultServer, aws_wire: AwsWire, name: str
) -> None:
    """A message that is moved back from the failed queue is sent once.

    It has a new id each time that it is moved, but the same key.
    """
    secret = aws_wire.secrets["twilio/default"]
    deliver(record((FINAL | MENDABLE)[name][1](twilio, aws_wire), receives=10))
    (body,) = set_aside(aws_wire)
    aws_wire.secrets["twilio/default"] = secret
    twilio.reset()
    forget()
    for number in range(2, 5):
        assert [] == deliver(record(body, str(number)))

    assert ["Message Failed"] + ["Message Sent"] * 3 == names(aws_wire)
    assert {"1"} == {detail["idempotency_key"] for _, detail in told(aws_wire)}
    assert ["Hello"] == texts(twilio)


DEAD_LETTERS = {
    # https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-rule-dlq.html: the event, with the reason beside it
    "rule": ("send_sms_eventbridge", "6a7e8feb-b491-4cf7-a9f1-bf3703467718", lambda event: event),
    # https://docs.aws.amazon.com/sns/latest/dg/sns-dead-letter-queues.html: the notification as the queue would get it
    "subscription": (
        "send_sms_sns",
        "95df01b4-ee98-5cb9-9903-4c221d41eb5e",
        lambda event: {
            name: value
            for name, value in event["Records"][0]["Sns"].items()
            if name in {"Type", "MessageId", "TopicArn", "Message", "Timestamp"}
        },
    ),
}


@pytest.mark.parametrize(("name", "key", "letter"), DEAD_LETTERS.values(), ids=DEAD_LETTERS)
def test_a_dead_letter_of_rule_or_topic_is_sent_once_however_often_it_is_moved(
    twilio: FaultServer,
    aws_wire: AwsWire,
    event: LoadEvent,
    name: str,
    key: str,
    letter: Callable[[Any], dict[str, Any]],
) -> None:
    """A dead letter of a rule or topic is sent once, because it contains the id that becomes its key."""
    body = letter(event(name))
    assert [] == deliver(record(body, "delivered"))
    for number in range(3):
        assert [] == deliver(record(body, f"moved-{number}"))

    assert [("Message Sent", key)] * 4 == [(said, detail["idempotency_key"]) for said, detail in told(aws_wire)]
    assert 1 == len(posts(twilio))


def test_what_was_given_up_is_sent_when_it_is_moved_back(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A record that was given up is sent once it is moved back, because SQS counts its deliveries from one again."""
    deliver(record(EVENT, receives=11))
    (body,) = set_aside(aws_wire)
    for number in ("2", "3"):
        assert [] == deliver(record(body, number))
    deliver(record(EVENT, "4"))

    assert ["Message Failed"] + ["Message Sent"] * 3 == names(aws_wire)
    assert ["Hello"] == texts(twilio)


def test_what_fails_again_is_set_aside_as_it_was(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """If a message fails again, its body in the failed queue does not grow, and its key does not change."""
    twilio.script(faults.OPTED_OUT)
    deliver(record(EVENT))
    for number in ("2", "3"):
        deliver(record(set_aside(aws_wire)[-1], number))

    assert 1 == len(set(set_aside(aws_wire)))
    assert 3 == len(set_aside(aws_wire))
    assert {"event"} == {detail["idempotency_key"] for _, detail in told(aws_wire)}


def test_an_unknown_outcome_that_is_moved_back_comes_back(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown outcome that is moved back is not sent: `resolve` searches for it, and reports it again."""
    body = reported_unknown(twilio, aws_wire, monkeypatch, KEYED)
    assert [] == deliver(record(body, "2"))
    assert {"open": 1, "settled": 1} == resolve.handler({}, Context(120))

    assert ["Message Outcome Unknown"] * 2 == names(aws_wire)
    assert [body] * 2 == set_aside(aws_wire)
    assert 1 == len(posts(twilio))


def test_an_unknown_outcome_is_sent_again_when_it_is_moved_back_so(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown outcome that is moved back is sent again if an operator added `on_unknown: resend` to it."""
    body = reported_unknown(twilio, aws_wire, monkeypatch, KEYED)

    assert [] == deliver(record(json.loads(body) | {"on_unknown": "resend"}, "2"))
    assert (["Message Outcome Unknown", "Message Sent"], 2) == (names(aws_wire), len(posts(twilio)))


# Events and notifications that invoke the function directly


FORWARDED = ["send_sms_sns", "send_sms_eventbridge"]


@pytest.mark.parametrize("name", FORWARDED)
def test_a_delivery_to_the_function_is_put_on_the_send_queue(
    twilio: FaultServer, aws_wire: AwsWire, event: LoadEvent, context: Context, name: str
) -> None:
    """An event that invokes the function is put on the send queue once, unchanged. Nothing is sent yet."""
    assert None is handler(event(name), context)

    assert [(SEND, event(name))] == [
        (message["QueueUrl"], json.loads(message["MessageBody"])) for message in aws_wire.sent
    ]
    assert ["SendMessage"] == [called for called, _ in aws_wire.calls]
    assert [] == twilio.requests


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("send_sms_sns", "95df01b4-ee98-5cb9-9903-4c221d41eb5e"),
        ("send_sms_eventbridge", "6a7e8feb-b491-4cf7-a9f1-bf3703467718"),
    ],
)
def test_a_delivery_by_way_of_the_queue_keeps_its_id(
    twilio: FaultServer, aws_wire: AwsWire, event: LoadEvent, context: Context, name: str, key: str
) -> None:
    """An event keeps its id in the send queue, and is sent once.

    EventBridge or SNS may deliver it twice, and SQS twice again.
    """
    for _ in range(2):
        handler(event(name), context)
    bodies = [message["MessageBody"] for message in aws_wire.sent]
    aws_wire.calls.clear()
    for number, body in enumerate(bodies * 2):
        assert [] == deliver(record(body, str(number)))

    assert [("Message Sent", key)] * 4 == [(said, detail["idempotency_key"]) for said, detail in told(aws_wire)]
    assert 1 == len(posts(twilio))


@pytest.mark.parametrize("name", FORWARDED)
def test_the_failure_record_of_a_delivery_goes_on_the_send_queue(
    aws_wire: AwsWire, event: LoadEvent, context: Context, name: str
) -> None:
    """A failure record with which an operator invokes the function is put on the send queue."""
    returned = failure("ServiceUnavailableError", event(name))
    handler(returned, context)

    assert [returned] == [json.loads(message["MessageBody"]) for message in aws_wire.sent]


@pytest.mark.parametrize("name", FORWARDED)
@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("failures", [[AWAY], [(500, "InternalFailure")] * 2], ids=repr)
def test_a_delivery_that_does_not_get_into_the_queue_fails(
    twilio: FaultServer,
    aws_wire: AwsWire,
    event: LoadEvent,
    context: Context,
    name: str,
    failures: list[tuple[int, str]],
) -> None:
    """If SQS does not take an event, the invocation fails. Nothing was sent, and Lambda keeps its failure record."""
    aws_wire.failures["SendMessage"] = [*failures]

    with pytest.raises(ServiceUnavailableError, match=r"^the send queue does not answer .*; nothing was sent$"):
        handler(event(name), context)
    assert [] == twilio.requests


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_delivery_that_is_no_text_is_refused(aws_wire: AwsWire, context: Context, text: str) -> None:
    """An event with a lone surrogate is refused: JSON escapes can spell one, but SQS does not accept it."""
    with pytest.raises(InvalidInputError):
        handler(EVENT | {"detail": SMS | {"message": text}}, context)

    assert [] == aws_wire.sent


@pytest.mark.parametrize("character", ["\uffff", "\ufffe", "\x00", "é", "👍"], ids=ascii)
def test_a_delivery_is_put_on_the_queue_as_sqs_takes_it(aws_wire: AwsWire, context: Context, character: str) -> None:
    """The queued event has only text that SQS accepts; otherwise it could never be delivered."""
    handler(EVENT | {"detail": SMS | {"message": character}}, context)

    (body,) = [message["MessageBody"] for message in aws_wire.sent]
    assert character == json.loads(body)["detail"]["message"]
    assert SQS_TEXT.fullmatch(body)


def test_a_notification_that_is_no_input_fails(aws_wire: AwsWire, context: Context) -> None:
    """A notification whose message is not JSON is refused, because the connector does not know its format."""
    with pytest.raises(InvalidInputError, match="Message: must be JSON"):
        handler(NOTIFICATION | {"Message": "Hello"}, context)

    assert [] == aws_wire.sent


def test_other_actions_run_them_at_once(twilio: FaultServer, aws_wire: AwsWire, context: Context) -> None:
    """Other actions than sends run at once, because only sends are queued and reported."""
    sid = "SM" + "0" * 32
    asked = {"message_sid": sid}

    for given in (EVENT | {"detail": asked}, NOTIFICATION | {"Message": json.dumps(asked)}):
        assert sid == get_sms.handler(given, context)["sid"]
    assert (2, []) == (len(twilio.requests), aws_wire.sent)


# Batches


class Flight:
    """A fault that hangs the first requests, and counts the most requests at the same time."""

    def __init__(self, hanging: int) -> None:
        """Take how many requests hang; the later ones get normal answers."""
        self.peak = self._now = self._number = 0
        self._hanging = hanging
        self._lock = threading.Lock()
        self.fault = Fault("flight", self._act)

    def _act(self, exchange: Exchange) -> None:
        with self._lock:
            self._now += 1
            self._number += 1
            self.peak = max(self.peak, self._now)
            hangs = self._number <= self._hanging
        if hangs:
            exchange.hang()
        with self._lock:
            self._now -= 1
        exchange.reply(exchange.normal)


@pytest.mark.parametrize(("threads", "count"), [(5, 5), (5, 17), (1, 3), (50, 60)])
def test_so_many_records_are_sent_at_the_same_time(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, threads: int, count: int
) -> None:
    """As many records are sent at the same time as SendThreads says, and no more."""
    monkeypatch.setenv("SEND_THREADS", str(threads))
    flight = Flight(threads)
    twilio.script(flight.fault)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(deliver, *(record(SMS, str(number)) for number in range(count)))
        twilio.wait_for(threads)
        twilio.release()
        assert [] == batch.result()

    assert threads == flight.peak
    assert (count, count) == (len(posts(twilio)), len(told(aws_wire)))


def test_a_batch_of_a_hundred_is_sent_once_each(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred records are sent once each, fifty at a time, although SQS delivers all of them three times."""
    monkeypatch.setenv("SEND_THREADS", "50")
    records = [record(SMS | {"message": f"Hello {number}"}, str(number)) for number in range(100)]
    for _ in range(3):
        assert [] == deliver(*records)

    assert sorted(f"Hello {number}" for number in range(100)) == sorted(texts(twilio))
    assert {str(number): 3 for number in range(100)} == {
        key: sum(detail["idempotency_key"] == key for _, detail in told(aws_wire)) for key in map(str, range(100))
    }
    assert 100 == len(aws_wire.items)


def test_all_that_come_at_once_share_one_look_up(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that just started reads the connection once for all records of a batch."""
    monkeypatch.setenv("SEND_THREADS", "20")
    assert [] == deliver(*(record(SMS, str(number)) for number in range(20)))

    assert (1, 20) == (aws_wire.count("GetSecretValue"), len(posts(twilio)))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    "hanging",
    [
        ["GetSecretValue"],
        ["GetSecretValue", "ChangeMessageVisibility"],
        ["PutItem"],
        ["PutItem", "GetItem", "ChangeMessageVisibility"],
    ],
    ids="+".join,
)
def test_a_batch_ends_in_time_whatever_hangs(twilio: FaultServer, aws_wire: AwsWire, hanging: list[str]) -> None:
    """A batch ends in time, even if calls to AWS hang.

    Otherwise Lambda would end the function, and SQS would deliver finished records again.
    """
    aws_wire.hangs = lambda called, _: called in hanging
    with Stopwatch() as took:
        given_back = deliver(*(record(SMS, str(number)) for number in range(30)), seconds=2)

    assert took.seconds < 2
    assert sorted(map(str, range(30))) == sorted(given_back)
    assert ([], True) == (posts(twilio), nothing_was_told(aws_wire))
    assert aws_wire.count(hanging[0])


@pytest.mark.parametrize("seconds", [3, 7.5])
def test_a_report_that_may_take_too_long_is_not_begun(aws_wire: AwsWire, seconds: float) -> None:
    """A report is not begun with too little time left: EventBridge may hang past the function's timeout.

    The next delivery reports the message.
    """
    message = {"sid": f"SM{1:032x}"}

    assert queue_consumer.deliver(SqsRecord("1", "{}", None, ARN, "handle"), lambda _: message, Deadline(seconds))
    assert [] == aws_wire.entries
    assert not queue_consumer.deliver(SqsRecord("1", "{}", None, ARN, "handle"), lambda _: message, Deadline(30))
    assert 1 == len(aws_wire.entries)


BODIES: dict[str, tuple[Any, str]] = {
    "ok": (SMS, "Message Sent"),
    "invalid": ({"to": "nobody"}, "Message Failed"),
    "garbage": ("{", "given back"),
    "refused": (SMS | {"message": "fault=status_400"}, "Message Failed"),
    "later": (SMS | {"message": "fault=status_429_far"}, "given back"),
    "unknown": (SMS | {"message": "fault=status_500"}, "nothing"),
    "event": (EVENT, "Message Sent"),
}


def test_each_record_of_a_batch_has_its_own_end(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The outcome of a record does not change the outcome of another record in the batch."""
    given_back = deliver(*(record(body, name) for name, (body, _) in BODIES.items()))
    ends = {detail["idempotency_key"]: name for name, detail in told(aws_wire)}

    assert {name: end for name, (_, end) in BODIES.items()} == {
        name: "given back" if name in given_back else ends.get(name, "nothing") for name in BODIES
    }
    assert 5 == len(posts(twilio))


ODD: dict[str, dict[str, Any]] = {
    "response context": failure("x") | {"responseContext": 5},
    "error type": failure("x") | {"responsePayload": {"errorType": []}},
    "deep": {"to": TO, "message": "x", "content_variables": json.loads('{"a":' * 900 + "1" + "}" * 900)},
    "large number": {"to": TO, "message": "x", "attempt": 10**400},
    "key is an object": {"to": TO, "message": "x", "idempotency_key": {"a": 1}},
    "connection is a list": {"to": TO, "message": "x", "connection": [1]},
}


@pytest.mark.parametrize("receives", [1, 11])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_odd_record_does_not_touch_the_others(
    twilio: FaultServer, aws_wire: AwsWire, odd: dict[str, Any], receives: int
) -> None:
    """An odd record does not affect the other records. Otherwise the whole batch would stay in the queue."""
    deliver(record(SMS, "1"), record(odd, "odd", receives=receives), record(SMS, "2"))

    assert {"1", "2"} <= {detail["idempotency_key"] for name, detail in told(aws_wire) if name == "Message Sent"}
    assert ["Hello"] * 2 == [text for text in texts(twilio) if text == "Hello"]


def test_an_odd_item_in_the_ledger_does_not_touch_the_others(
    twilio: FaultServer, aws_wire: AwsWire, counted: Callable[[str], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corrupt item in the ledger affects only its own record, whose outcome cannot be read.

    Only this record is delivered again, and counted for the alarm.
    """
    monkeypatch.setattr(telemetry, "flush", lambda: None)
    odd = record_id("default", "odd")
    for receives in (1, 11):
        aws_wire.items[odd] = {"id": {"S": odd}}
        given_back = deliver(record(SMS, f"1 of {receives}".replace(" ", "-")), record(SMS, "odd", receives=receives))
        assert ["odd"] == given_back

    assert 2 == counted("RecordsUnhandled")
    assert ["Hello"] * 2 == texts(twilio)


def test_a_record_that_is_there_twice_is_sent_once(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A record that SQS delivers twice in a batch is sent once."""
    assert [] == deliver(record(SMS), record(SMS))

    assert (["Message Sent"] * 2, 1) == (names(aws_wire), len(posts(twilio)))


def test_the_same_key_at_the_same_time_is_sent_once(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Two records with the same key are sent once: the second record waits for the outcome of the first."""
    twilio.script(faults.hang(then=faults.OK))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(deliver, record(KEYED, "1"))
        twilio.wait_for(1)
        assert ["2"] == deliver(record(KEYED, "2", handle="second"))
        assert nothing_was_told(aws_wire)
        twilio.release()
        assert [] == first.result()
    assert [] == deliver(record(KEYED, "2", receives=2))

    assert (["Message Sent"] * 2, 1) == (names(aws_wire), len(posts(twilio)))
    assert 1 == len(put_off(aws_wire))


# FIFO queues


def fifo(name: str, text: str | None = None, receives: int = 1) -> dict[str, Any]:
    """Return a record of a FIFO queue; the first letter of its name is its group."""
    return record(SMS | {"message": text or name}, name, arn=FIFO, group=name[0], receives=receives)


def test_groups_are_sent_in_order_and_at_the_same_time(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The groups of a FIFO queue are sent in order. A record that hangs holds up its own group only."""
    twilio.named["wait"] = faults.hang(then=faults.OK)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(
            deliver, fifo("a1", "a1 fault=wait"), fifo("b1"), fifo("a2"), fifo("b2"), fifo("a3"), fifo("b3")
        )
        twilio.wait_for(4)
        assert {"a1 fault=wait", "b1", "b2", "b3"} == set(texts(twilio))
        twilio.release()
        assert [] == batch.result()

    assert ["a1 fault=wait", "a2", "a3"] == [text for text in texts(twilio) if text.startswith("a")]
    assert ["b1", "b2", "b3"] == [text for text in texts(twilio) if text.startswith("b")]
    assert ["Message Sent"] * 6 == names(aws_wire)


def test_those_behind_one_that_comes_again_come_again(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Records behind a redelivered one stay unsent, so that they do not overtake it. Other groups continue."""
    given_back = deliver(fifo("a1"), fifo("a2", "fault=status_429_far"), fifo("b1"), fifo("a3"), fifo("b2"), fifo("a4"))

    assert ["a2", "a3", "a4"] == given_back
    assert {"a1", "fault=status_429_far", "b1", "b2"} == set(texts(twilio))
    assert ["Message Sent"] * 3 == names(aws_wire)
    assert [] == put_off(aws_wire)


def test_a_group_goes_on_behind_what_does_not_come_again(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A group continues after a record that was rejected, has an unknown outcome or was given up."""
    given_back = deliver(
        fifo("a1", "fault=status_400"), fifo("a2", "fault=status_500"), fifo("a3", receives=11), fifo("a4")
    )

    assert [] == given_back
    assert ["Message Failed", "Message Failed", "Message Sent"] == names(aws_wire)
    assert ["fault=status_400", "fault=status_500", "a4"] == texts(twilio)


@pytest.mark.usefixtures("delays")
def test_a_group_waits_for_what_could_not_be_told(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """If EventBridge and the ledger fail, the record is delivered again, and so are those behind it in its group."""
    bus_and_ledger_away(twilio, aws_wire)

    assert ["a1", "a2"] == deliver(fifo("a1"), fifo("a2"))
    assert ["a1"] == texts(twilio)
    assert [] == deliver(fifo("a1", receives=2), fifo("a2", receives=2))
    assert ["a1", "a2"] == texts(twilio)


@pytest.mark.usefixtures("delays")
def test_a_group_goes_on_behind_what_resolve_will_tell(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A group continues if only EventBridge fails, because the message was sent in its place."""
    bus_away(aws_wire)

    assert [] == deliver(fifo("a1"), fifo("a2"))
    assert ["a1", "a2"] == texts(twilio)


# Ledger


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("writes", [[LOST], [PASS, LOST], [PASS, LOST, LOST], [LOST, PASS, AWAY]], ids=repr)
def test_a_ledger_whose_answers_are_lost_does_not_send_twice(
    twilio: FaultServer, aws_wire: AwsWire, writes: list[tuple[int, str]]
) -> None:
    """A message is sent once even if answers of the ledger are lost: a write counts even without its answer."""
    aws_wire.failures["PutItem"] = [*writes]
    for receives in (1, 2, 3):
        deliver(record(SMS, receives=receives))

    assert 1 == len(posts(twilio))


def test_an_error_of_the_connector_is_not_taken_for_one_of_the_batch(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A batch gets an answer despite a connector error; only an event that is not a batch raises the error."""
    aws_wire.secrets.clear()

    assert [] == deliver(record(SMS, receives=10))
    with pytest.raises(ConnectorError):
        handler(SMS, Context())
    assert [] == twilio.requests
