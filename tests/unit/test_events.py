"""Callers' events: each known shape is read as its caller means it, and every other shape is refused."""

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio_connector.errors import NOTHING_CHANGED, InvalidInputError
from twilio_connector.invocation import events
from twilio_connector.invocation.caller import Caller
from twilio_connector.invocation.events import HttpRequest, SqsRecord

from tests.conftest import LoadEvent

INPUT = {"to": "+15005550006", "message": "Your parcel is on its way."}

# Events of other AWS services that can reach a function, and events that may hold an input
S3 = {
    "eventVersion": "2.1",
    "eventSource": "aws:s3",
    "eventName": "ObjectCreated:Put",
    "s3": {"bucket": {"name": "b"}, "object": {"key": "k"}},
}
KINESIS = {
    "eventSource": "aws:kinesis",
    "eventID": "shardId-0:1",
    "kinesis": {"data": base64.b64encode(json.dumps(INPUT).encode()).decode()},
}
DYNAMODB = {"eventSource": "aws:dynamodb", "eventName": "INSERT", "dynamodb": {"Keys": {}}}
SES = {"eventSource": "aws:ses", "eventVersion": "1.0", "ses": {"mail": {}}}
SQS = {"eventSource": "aws:sqs", "messageId": "1", "body": json.dumps(INPUT)}
SNS = {"EventSource": "aws:sns", "Sns": {"MessageId": "sns", "Message": json.dumps(INPUT)}}
NOTIFICATION = {
    "Type": "Notification",
    "MessageId": "sns",
    "TopicArn": "arn:aws:sns:us-east-1:123456789012:t",
    "Message": json.dumps(INPUT),
}
EVENTBRIDGE = {"id": "event", "detail-type": "Send", "source": "com.example", "detail": INPUT}
FAILURE: dict[str, Any] = {
    "requestContext": {
        "requestId": "request",
        "functionArn": "arn:aws:lambda:us-east-1:123456789012:function:f:live",
        "condition": "RetriesExhausted",
    },
    "requestPayload": INPUT,
    "responseContext": {"statusCode": 200, "functionError": "Unhandled"},
    "responsePayload": {"errorType": "TwilioUnavailableError"},
}
IN_DOUBT = FAILURE | {"responsePayload": {"errorType": "OutcomeUnknownError"}}
NEVER_INVOKED = {name: part for name, part in FAILURE.items() if not name.startswith("response")}


def in_sns(event: Any) -> dict[str, Any]:
    """Return an SNS event for a function, with another event as its message."""
    return {"Records": [SNS | {"Sns": {"MessageId": "sns", "Message": json.dumps(event)}}]}


def sqs(body: Any) -> tuple[Caller, Any]:
    """Return the caller and the payload in the body of an SQS record."""
    inputs = events.sqs_inputs(SqsRecord("1", body if isinstance(body, str) else json.dumps(body)))
    return inputs.caller, inputs.payload


def refused(event: Any) -> str:
    """Return the reason for which an event is refused."""
    with pytest.raises(InvalidInputError) as refusal:
        events.inputs(event)
    return str(refusal.value)


# Invocations, events, notifications, records


@pytest.mark.parametrize(
    ("name", "caller"),
    [
        ("send_sms", Caller("direct")),
        ("send_sms_eventbridge", Caller("eventbridge", "6a7e8feb-b491-4cf7-a9f1-bf3703467718")),
        ("send_sms_sns", Caller("sns", "95df01b4-ee98-5cb9-9903-4c221d41eb5e")),
        ("send_sms_failure_record", Caller("direct", "e4b46cbf-b738-xmpl-8880-a18cdf61200e")),
    ],
)
def test_a_callers_event_is_unwrapped(event: LoadEvent, name: str, caller: Caller) -> None:
    """Each kind of event has the same input; its caller and the id of its delivery are kept."""
    assert (caller, INPUT, {}) == events.inputs(event(name))


@pytest.mark.parametrize("payload", [{}, [], None, "text", 5, {"Message": "x"}, {"source": "x"}], ids=repr)
def test_what_has_no_envelope_is_the_input_itself(payload: Any) -> None:
    """An event without an envelope is the input itself; it is not validated here."""
    assert (Caller("direct"), payload) == events.inputs(payload)[:2]


@pytest.mark.parametrize(
    ("event_in_event", "caller"),
    [
        (EVENTBRIDGE | {"detail": FAILURE}, Caller("eventbridge", "request")),
        (FAILURE | {"requestPayload": EVENTBRIDGE}, Caller("eventbridge", "event")),
        (FAILURE | {"requestPayload": {"Records": [SNS]}}, Caller("sns", "sns")),
        (in_sns(EVENTBRIDGE), Caller("eventbridge", "event")),
        (EVENTBRIDGE | {"detail": NOTIFICATION}, Caller("sns", "sns")),
        (in_sns(FAILURE), Caller("sns", "request")),
        (NOTIFICATION, Caller("sns", "sns")),
        (FAILURE | {"requestPayload": FAILURE | {"requestContext": {"functionArn": "f"}}}, Caller("direct", "request")),
        (
            FAILURE | {"requestPayload": FAILURE | {"requestContext": {"functionArn": "f", "requestId": "first"}}},
            Caller("direct", "first"),
        ),
    ],
)
def test_envelopes_may_be_in_envelopes(event_in_event: dict[str, Any], caller: Caller) -> None:
    """Nested envelopes are unwrapped: a topic may carry a failure record, and a queue a notification.

    The innermost service is the caller, and the innermost id is that of the delivery.
    """
    assert (caller, INPUT) == events.inputs(event_in_event)[:2]


@pytest.mark.parametrize(
    ("body", "caller"),
    [
        (INPUT, Caller("sqs", "1")),
        (NOTIFICATION, Caller("sns", "sns")),
        (EVENTBRIDGE, Caller("eventbridge", "event")),
        (FAILURE, Caller("sqs", "request")),
        (NOTIFICATION | {"Message": json.dumps(EVENTBRIDGE)}, Caller("eventbridge", "event")),
        (in_sns(EVENTBRIDGE), Caller("eventbridge", "event")),
        (FAILURE | {"requestPayload": in_sns(INPUT)}, Caller("sns", "sns")),
    ],
    ids=["input", "notification", "event", "failure", "event in notification", "event in record", "sns in failure"],
)
def test_an_sqs_body_may_be_an_envelope(body: dict[str, Any], caller: Caller) -> None:
    """Caller and id in an SQS body replace those of the queue, so that an event has one id on every route."""
    assert (caller, INPUT) == sqs(body)


@pytest.mark.parametrize(
    ("body", "caller"),
    [
        (EVENTBRIDGE, Caller("eventbridge", "1")),
        (NOTIFICATION, Caller("sns", "1")),
        (FAILURE, Caller("sqs", "1")),
    ],
    ids=["event", "notification", "failure"],
)
@pytest.mark.parametrize("identity", [None, 5, ["1"], {}, ""], ids=repr)
def test_an_id_that_is_none_leaves_the_one_around_it(body: dict[str, Any], caller: Caller, identity: Any) -> None:
    """If an envelope in an SQS body has no valid id, the id of the SQS record is used.

    Otherwise a message from a queue would have no key, and nobody could know whether it was sent.
    """
    context = FAILURE["requestContext"] | {"requestId": identity}
    without = body | {"id": identity, "MessageId": identity} | ({"requestContext": context} if body is FAILURE else {})

    assert caller == sqs(without)[0]


# Failure records


@pytest.mark.parametrize("name", sorted(NOTHING_CHANGED))
def test_an_invocation_that_provably_changed_nothing_leaves_no_doubt(name: str) -> None:
    """A failure record is not in doubt if its error says that nothing was changed."""
    failure = FAILURE | {"responsePayload": {"errorType": name, "errorMessage": "it failed"}}

    assert Caller("direct", "request") == events.inputs(failure).caller


@pytest.mark.parametrize(
    "response",
    [
        {"responsePayload": {"errorType": "OutcomeUnknownError"}},
        {"responsePayload": {"errorType": "SendInProgressError"}},
        {"responsePayload": {"errorType": "Sandbox.Timedout", "errorMessage": "Task timed out"}},
        {"responsePayload": {"errorType": "Runtime.ExitError"}},
        {"responsePayload": {"errorMessage": "Task timed out"}},
        {"responsePayload": {"errorType": None}},
        {"responsePayload": None},
        {"responsePayload": "Task timed out"},
        {"responseContext": {"statusCode": 200, "functionError": None}, "responsePayload": {}},
    ],
    ids=repr,
)
def test_any_other_failure_is_in_doubt(response: dict[str, Any]) -> None:
    """After any other failure the message may have been sent, because the request may have been carried out."""
    assert Caller("direct", "request", may_have_been_sent=True) == events.inputs(FAILURE | response).caller


@pytest.mark.parametrize("context", [None, {}, {"statusCode": 400}, "absent"], ids=repr)
def test_a_failure_without_invocation_leaves_no_doubt(context: Any) -> None:
    """A failure record without an invocation is not in doubt: the event expired before Lambda invoked the function."""
    failure = NEVER_INVOKED if context == "absent" else NEVER_INVOKED | {"responseContext": context}

    assert Caller("direct", "request") == events.inputs(failure).caller


@pytest.mark.parametrize("part", [5, 0.5, True, "functionError", ["functionError"]], ids=repr)
@pytest.mark.parametrize("name", ["responseContext", "responsePayload"])
def test_a_failure_that_is_odd_is_read_or_refused(name: str, part: Any) -> None:
    """A malformed failure record is read, or refused with InvalidInputError.

    Any other exception would also affect the other records of its batch.
    """
    with suppress(InvalidInputError):
        assert "sqs" == sqs(IN_DOUBT | {name: part})[0].kind


@pytest.mark.parametrize("error_type", [[], {}, ["InternalError"]], ids=repr)
def test_a_failure_whose_error_has_no_name_is_in_doubt(error_type: Any) -> None:
    """A failure record whose error type is not text is in doubt, as one without an error type."""
    failure = FAILURE | {"responsePayload": {"errorType": error_type}}

    assert Caller("sqs", "request", may_have_been_sent=True) == sqs(failure)[0]


@pytest.mark.parametrize(
    ("event", "caller"),
    [
        (EVENTBRIDGE | {"detail": IN_DOUBT}, Caller("eventbridge", "request", may_have_been_sent=True)),
        (in_sns(IN_DOUBT), Caller("sns", "request", may_have_been_sent=True)),
        (FAILURE | {"requestPayload": IN_DOUBT}, Caller("direct", "request", may_have_been_sent=True)),
    ],
    ids=["event", "notification", "failure"],
)
def test_doubt_comes_through_the_envelopes_around_it(event: dict[str, Any], caller: Caller) -> None:
    """A failure record that is in doubt stays so in every envelope, by whichever route it is handed back."""
    assert (caller, INPUT) == events.inputs(event)[:2]
    assert caller[1:] == sqs(event)[0][1:]


def test_doubt_about_a_delivery_is_not_doubt_about_another() -> None:
    """Of nested failure records, the inner one decides about doubt.

    The event in it was tried under its own id, by which the ledger knows it.
    """
    caller = events.inputs(IN_DOUBT | {"requestPayload": FAILURE}).caller

    assert Caller("direct", "request") == caller


@pytest.mark.parametrize("body", ["", "text", "{", "{'to': 1}", "[" * 100_000, '"\\ud800"', "NaN"])
def test_a_body_must_be_json(body: str) -> None:
    """An SQS body that is not JSON is refused, and the error does not repeat the body."""
    with pytest.raises(InvalidInputError, match=r"^body: must be JSON$"):
        sqs(body)


@pytest.mark.parametrize(
    "event",
    [{"Records": [SNS | {"Sns": {"Message": "text"}}]}, NOTIFICATION | {"Message": "Hello"}],
    ids=["record", "notification"],
)
def test_a_message_must_be_json(event: dict[str, Any]) -> None:
    """An SNS message that is not JSON is refused: a plain notification is not an input."""
    assert "Message: must be JSON" == refused(event)


OTHERS: dict[str, dict[str, Any]] = {
    "s3": {"Records": [S3]},
    "kinesis": {"Records": [KINESIS]},
    "dynamodb": {"Records": [DYNAMODB]},
    "ses": {"Records": [SES]},
    "no records": {"Records": []},
    "records of two kinds": {"Records": [SQS, S3]},
    "two notifications": {"Records": [SNS, SNS]},
    "records are none": {"Records": ["text"]},
    "records are no list": {"Records": {"0": SQS}},
    "firehose": {"invocationId": "1", "deliveryStreamArn": "arn", "records": []},
    "log group": {"awslogs": {"data": "H4s="}},
    "alb": {
        "requestContext": {"elb": {"targetGroupArn": "arn"}},
        "httpMethod": "POST",
        "path": "/",
        "headers": {},
        "body": json.dumps(INPUT),
    },
    "websocket": {"requestContext": {"routeKey": "$connect", "connectionId": "1"}, "body": json.dumps(INPUT)},
    "event without source": {"detail-type": "Send", "detail": INPUT},
    "event without type": {"source": "x", "detail": INPUT},
    "detail is text": EVENTBRIDGE | {"detail": json.dumps(INPUT)},
    "detail is null": EVENTBRIDGE | {"detail": None},
    "subscription": NOTIFICATION | {"Type": "SubscriptionConfirmation"},
    "message is no text": NOTIFICATION | {"Message": INPUT},
    "failure without function": {"requestPayload": INPUT, "responsePayload": {}},
    "failure of another service": FAILURE | {"requestContext": {"condition": "RetriesExhausted"}},
    "input and envelope": {**INPUT, "Records": []},
    "input and context": {**INPUT, "requestContext": {}},
    "mapped by a pipe": {**INPUT, "eventSource": "aws:sqs"},
    "api gateway without context": {"httpMethod": "POST", "body": json.dumps(INPUT)},
    "kafka": {"eventSource": "aws:kafka", "records": {}},
}


@pytest.mark.parametrize("event", OTHERS.values(), ids=OTHERS)
def test_any_other_shape_is_refused(event: dict[str, Any]) -> None:
    """An event of any other shape is refused and not guessed: alone, in an envelope, and in a queue."""
    reason = "(event): is neither an input nor an event that the connector knows"

    assert not events.is_http(event)
    assert None is events.sqs_records(event)
    assert [reason, reason] == [refused(event), refused(EVENTBRIDGE | {"detail": event})]
    with pytest.raises(InvalidInputError, match="is neither an input nor"):
        sqs(event)


@pytest.mark.parametrize("depth", [4, 5, 1000])
def test_envelopes_come_to_an_end(depth: int) -> None:
    """An input in more than four envelopes is refused."""
    event: Any = INPUT
    for _ in range(depth):
        event = EVENTBRIDGE | {"detail": event}

    if depth == 4:
        assert INPUT == events.inputs(event).payload
    else:
        assert "(event): has too many envelopes around the input" == refused(event)


# SQS batches


def test_a_batch_has_its_records(event: LoadEvent) -> None:
    """A batch yields its records in order, each with its id; a standard queue's records have no group."""
    records = events.sqs_records(event("send_sms_sqs"))

    assert [(f"059f36b4-87a3-44ab-83d2-66197597677{number}", None) for number in range(3)] == [
        (record.message_id, record.group) for record in records or []
    ]
    assert [
        (Caller("sqs", "059f36b4-87a3-44ab-83d2-661975976770"), INPUT),
        (Caller("sns", "0b7d3f62-1c3e-5a8d-b1c9-6f1d2a4e8b70"), INPUT),
        (Caller("eventbridge", "d4f1b8a6-52c7-4e0b-9a3d-7c6e5f4a3b21"), INPUT),
    ] == [events.sqs_inputs(record)[:2] for record in records or []]


def test_a_record_says_where_and_how_often_it_came(event: LoadEvent) -> None:
    """A record has queue, receipt handle and receive count, so that its redelivery can be delayed and counted."""
    batch = event("send_sms_sqs")
    batch["Records"][1]["attributes"]["ApproximateReceiveCount"] = "7"
    del batch["Records"][2]["attributes"]
    arn = "arn:aws:sqs:us-east-1:123456789012:parcels"

    assert [(arn, "AQEBEXAMPLE", 1), (arn, "AQEBEXAMPLE", 7), (arn, "AQEBEXAMPLE", 1)] == [
        (record.queue_arn, record.receipt_handle, record.receive_count) for record in events.sqs_records(batch) or []
    ]


@pytest.mark.parametrize(
    ("arn", "group"),
    [("arn:aws:sqs:us-east-1:123456789012:q.fifo", "g"), ("arn:aws:sqs:us-east-1:123456789012:q", None)],
)
def test_only_a_fifo_queue_has_groups(arn: str, group: str | None) -> None:
    """Only a FIFO queue's group is read: a standard queue's group says nothing about order."""
    record = SQS | {"eventSourceARN": arn, "attributes": {"MessageGroupId": "g"}}

    assert [("1", json.dumps(INPUT), group)] == [each[:3] for each in events.sqs_records({"Records": [record]}) or []]


@pytest.mark.parametrize(
    "record",
    [
        {"eventSource": "aws:sqs"},
        {"eventSource": "aws:sqs", "messageId": "1"},
        {"eventSource": "aws:sqs", "body": "{}"},
        SQS | {"eventSourceARN": "q.fifo"},
        SQS | {"eventSourceARN": "q.fifo", "attributes": {}},
        SQS | {"eventSourceARN": "q.fifo", "attributes": None},
        SQS | {"eventSourceARN": "q.fifo", "attributes": []},
        SQS | {"attributes": None},
        SQS | {"attributes": []},
        SQS | {"attributes": {"ApproximateReceiveCount": "many"}},
    ],
    ids=[
        "nothing",
        "no body",
        "no id",
        "no attributes",
        "no group",
        "null",
        "list",
        "null of a standard queue",
        "list of a standard queue",
        "no count",
    ],
)
def test_a_malformed_batch_is_refused(record: dict[str, Any]) -> None:
    """A malformed batch is refused, because only a person can have written it."""
    with pytest.raises(InvalidInputError, match=r"^Records: is not an SQS batch"):
        events.sqs_records({"Records": [SQS, record]})


@pytest.mark.parametrize("body", [None, 5, INPUT, []], ids=repr)
def test_a_body_that_is_no_text_is_refused(body: Any) -> None:
    """A body that is not text is a fault of its record, and does not fail the batch."""
    records = events.sqs_records({"Records": [SQS | {"body": body}]}) or []

    with pytest.raises(InvalidInputError, match=r"^body: must be JSON$"):
        events.sqs_inputs(records[0])


# HTTP


HTTP_EVENTS = [
    "send_sms_api",
    "send_sms_api_payload_1",
    "send_sms_function_url",
    "get_sms_api",
    "list_sms_api",
    "raw_request_api",
    "webhook",
]


@pytest.mark.parametrize("name", HTTP_EVENTS)
def test_an_http_event_is_told_by_its_context(event: LoadEvent, name: str) -> None:
    """An HTTP event is recognised by its request context, and is not an SQS batch."""
    assert events.is_http(event(name))
    assert None is events.sqs_records(event(name))


@pytest.mark.parametrize(
    "name", ["send_sms", "send_sms_sqs", "send_sms_sns", "send_sms_eventbridge", "send_sms_failure_record"]
)
def test_another_event_is_no_http_request(event: LoadEvent, name: str) -> None:
    """Other events are not HTTP requests; even a failure record, which has a request context, is not."""
    assert not events.is_http(event(name))


@pytest.mark.parametrize("event", [None, [], "text", {"requestContext": "http"}, {"httpMethod": "GET"}], ids=repr)
def test_what_is_no_object_with_context_is_no_http_request(event: object) -> None:
    """An event without a request context object is not an HTTP request; it is refused or read elsewhere."""
    assert not events.is_http(event)


@pytest.mark.parametrize("name", ["send_sms_api", "send_sms_api_payload_1", "send_sms_function_url"])
def test_the_body_of_a_request_is_the_input(event: LoadEvent, name: str) -> None:
    """The body of a request is the input, in both payload formats and from function URLs."""
    assert (Caller("api"), INPUT, {}) == events.http_inputs(events.http_request(event(name)))


@pytest.mark.parametrize("name", ["send_sms_api", "send_sms_api_payload_1", "send_sms_function_url"])
def test_a_body_may_be_base64(event: LoadEvent, name: str) -> None:
    """A Base64 body is decoded: function URLs and binary media types encode it."""
    request = event(name)
    request |= {"isBase64Encoded": True, "body": base64.b64encode(request["body"].encode()).decode()}

    assert INPUT == events.http_inputs(events.http_request(request)).payload


@pytest.mark.parametrize("body", [None, ""])
@pytest.mark.parametrize("encoded", [True, False])
def test_no_body_is_an_empty_input(event: LoadEvent, body: str | None, *, encoded: bool) -> None:
    """A request without a body, such as a GET, has an empty input."""
    request = event("send_sms_api") | {"body": body, "isBase64Encoded": encoded}

    assert {} == events.http_inputs(events.http_request(request)).payload


@pytest.mark.parametrize("body", ["text", "{", "to=%2B15005550006", b"\xff", "NaN", "[" * 100_000])
def test_a_request_body_must_be_json(event: LoadEvent, body: str | bytes) -> None:
    """A request body that is not JSON is refused, and the error does not repeat the body."""
    data = body if isinstance(body, bytes) else body.encode()
    request = event("send_sms_api") | {"body": base64.b64encode(data).decode(), "isBase64Encoded": True}

    with pytest.raises(InvalidInputError, match=r"^.body.: must be JSON$"):
        events.http_inputs(events.http_request(request))


def test_a_payload_2_query_is_read_as_it_came(event: LoadEvent) -> None:
    """A query in payload format 2.0 is kept as it came, and its parameters are decoded.

    Names may repeat, values may be blank, and a plus is a space.
    """
    request = event("list_sms_api") | {"rawQueryString": "to=%2B15005550006&a=1&a=2&b=&c&d=x+y&e=%C3%A9"}

    read = events.http_request(request)
    assert "to=%2B15005550006&a=1&a=2&b=&c&d=x+y&e=%C3%A9" == read.query
    assert {
        "to": ["+15005550006"],
        "a": ["1", "2"],
        "b": [""],
        "c": [""],
        "d": ["x y"],
        "e": ["é"],
    } == events.http_inputs(read).text


@pytest.mark.parametrize(
    "query",
    [
        {"multiValueQueryStringParameters": {"a": ["1", "2"], "b": [""]}, "queryStringParameters": {"a": "2", "b": ""}},
        {"multiValueQueryStringParameters": {"a": ["1", "2"], "b": [""]}},
    ],
)
def test_a_payload_1_query_is_decoded(event: LoadEvent, query: dict[str, Any]) -> None:
    """A query in payload format 1.0 arrives decoded, so its original spelling is lost."""
    read = events.http_request(event("send_sms_api_payload_1") | query)

    assert None is read.query
    assert {"a": ["1", "2"], "b": [""]} == events.http_inputs(read).text


def test_a_payload_1_query_may_have_single_values_only(event: LoadEvent) -> None:
    """Single query values suffice in payload format 1.0: some imitations of API Gateway send nothing else."""
    request = event("send_sms_api_payload_1") | {"queryStringParameters": {"a": "1"}}

    assert {"a": ["1"]} == events.http_inputs(events.http_request(request)).text


def test_path_and_query_may_name_the_same(event: LoadEvent) -> None:
    """A parameter that is in path and query keeps both values, so that the input can be refused."""
    request = event("get_sms_api") | {"rawQueryString": "message_sid=SM1"}

    assert {"message_sid": ["SM1", "SM" + "0" * 32]} == events.http_inputs(events.http_request(request)).text


def test_payload_1_has_path_parameters_too(event: LoadEvent) -> None:
    """Path parameters in payload format 1.0 are in the same place, and are read too."""
    request = event("send_sms_api_payload_1") | {"pathParameters": {"message_sid": "SM1"}}

    assert {"message_sid": ["SM1"]} == events.http_inputs(events.http_request(request)).text


@pytest.mark.parametrize(
    ("name", "headers"),
    [
        ("send_sms_api", {"headers": {"Idempotency-Key": "key"}}),
        ("send_sms_api", {"headers": {"idempotency-key": "key"}}),
        ("send_sms_api_payload_1", {"headers": {"Idempotency-Key": "key"}}),
        ("send_sms_api_payload_1", {"headers": None, "multiValueHeaders": {"IDEMPOTENCY-KEY": ["key"]}}),
    ],
)
def test_the_idempotency_key_may_be_a_header(event: LoadEvent, name: str, headers: dict[str, Any]) -> None:
    """The idempotency key may be a header; upper and lower case in the header's name do not matter."""
    assert {"idempotency_key": ["key"]} == events.http_inputs(events.http_request(event(name) | headers)).text


@pytest.mark.parametrize("key", ["key", None, "other"])
def test_the_header_may_say_what_the_body_says(event: LoadEvent, key: str | None) -> None:
    """The header and the body may have the same idempotency key; null in the body counts as no key.

    Two different keys are refused, because neither takes precedence.
    """
    request = event("send_sms_api") | {"headers": {"Idempotency-Key": "key"}}
    request["body"] = json.dumps(INPUT | {"idempotency_key": key})

    if key == "other":
        with pytest.raises(
            InvalidInputError, match=r"^idempotency_key: differs from the header Idempotency-Key; give "
        ):
            events.http_inputs(events.http_request(request))
    else:
        expected = {} if key else {"idempotency_key": ["key"]}
        assert expected == events.http_inputs(events.http_request(request)).text


@pytest.mark.parametrize("key", [5, ["key"], {"key": "key"}, "Key", "key "], ids=repr)
def test_a_key_in_the_body_is_compared_as_it_is(event: LoadEvent, key: Any) -> None:
    """The keys in body and header are compared exactly: they are not normalised first."""
    request = event("send_sms_api") | {"headers": {"Idempotency-Key": "key"}}
    request["body"] = json.dumps(INPUT | {"idempotency_key": key})

    with pytest.raises(InvalidInputError, match="differs from the header"):
        events.http_inputs(events.http_request(request))


@pytest.mark.parametrize("body", ["[]", "5", '"text"', "null", ""])
def test_a_header_beside_a_body_that_is_no_object_is_kept(event: LoadEvent, body: str) -> None:
    """The header's key is kept if the body is not an object, because the fault is in the body."""
    request = event("send_sms_api") | {"headers": {"Idempotency-Key": "key"}, "body": body}

    assert {"idempotency_key": ["key"]} == events.http_inputs(events.http_request(request)).text


def test_a_get_has_no_idempotency_key(event: LoadEvent) -> None:
    """The header Idempotency-Key of a GET is ignored, because a GET changes nothing."""
    request = event("get_sms_api")
    request["headers"]["idempotency-key"] = "key"

    assert {"message_sid"} == events.http_inputs(events.http_request(request)).text.keys()


def test_headers_that_repeat_are_joined(event: LoadEvent) -> None:
    """Repeated headers are joined with a comma, as HTTP prescribes, and their names are in lower case."""
    request = event("send_sms_api_payload_1") | {"headers": None, "multiValueHeaders": {"X-A": ["1", "2"]}}

    assert {"x-a": "1, 2"} == events.http_request(request).headers


def test_method_domain_and_path_are_the_clients(event: LoadEvent) -> None:
    """Method, domain and path are those of the client, because the webhook's signature covers them.

    In payload format 1.0, only the path in the request context has the stage.
    """
    request = event("send_sms_api_payload_1")
    request["requestContext"]["path"] = "/prod/messages"
    first = events.http_request(request)
    second = events.http_request(event("send_sms_api"))

    assert ("POST", "/prod/messages") == (first.method, first.path)
    assert ("POST", "/messages") == (second.method, second.path)
    assert {"a1b2c3d4e5.execute-api.us-east-1.amazonaws.com"} == {first.domain, second.domain}


def test_a_path_may_be_outside_the_context(event: LoadEvent) -> None:
    """If the request context has no path, as in older gateways, the event's own path is used."""
    request = event("send_sms_api_payload_1")
    del request["requestContext"]["path"]

    assert "/messages" == events.http_request(request).path


def test_a_request_does_not_show_what_it_holds(event: LoadEvent) -> None:
    """The `repr` of a request shows neither headers nor query nor body."""
    request = events.http_request(event("send_sms_api") | {"rawQueryString": "to=xqzjvmarker"})

    assert "parcel" not in repr(request)
    assert "headers" not in repr(request)


MALFORMED: dict[str, tuple[str, dict[str, Any]]] = {
    "no path": ("send_sms_api", {"rawPath": None}),
    "path is a number": ("send_sms_api", {"rawPath": 5}),
    "headers are a list": ("send_sms_api", {"headers": ["a"]}),
    "header is a number": ("send_sms_api", {"headers": {"a": 5}}),
    "body is an object": ("send_sms_api", {"body": {"to": 1}}),
    "body is half a character": ("send_sms_api", {"body": "\ud800"}),
    "query is a list": ("send_sms_api", {"rawQueryString": ["a"]}),
    "query is half a character": ("send_sms_api", {"rawQueryString": "a=\ud800"}),
    "no base64": ("send_sms_api", {"body": "{}", "isBase64Encoded": True}),
    "base64 is not ASCII": ("send_sms_api", {"body": "é", "isBase64Encoded": True}),
    "base64 is a number": ("send_sms_api", {"body": 5, "isBase64Encoded": True}),
    "path parameter is a list": ("send_sms_api", {"pathParameters": {"a": ["b"]}}),
    "http is text": ("send_sms_api", {"requestContext": {"http": "POST"}}),
    "http is null": ("send_sms_api", {"requestContext": {"http": None}}),
    "no method": ("send_sms_api", {"requestContext": {"http": {}}}),
    "1.0 without path": ("send_sms_api_payload_1", {"path": None, "requestContext": {}}),
    "1.0 query is a list": ("send_sms_api_payload_1", {"multiValueQueryStringParameters": ["a"]}),
    "1.0 query is a number": ("send_sms_api_payload_1", {"multiValueQueryStringParameters": {"a": 5}}),
    "1.0 query holds a number": ("send_sms_api_payload_1", {"multiValueQueryStringParameters": {"a": [5]}}),
    "1.0 header holds a number": ("send_sms_api_payload_1", {"multiValueHeaders": {"a": [5]}}),
    "1.0 headers are a list": ("send_sms_api_payload_1", {"multiValueHeaders": ["a"]}),
}


@pytest.mark.parametrize(("name", "change"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_is_refused(event: LoadEvent, name: str, change: dict[str, Any]) -> None:
    """Any malformed request is refused as the client's fault."""
    request = event(name) | change
    assert events.is_http(request)

    with pytest.raises(InvalidInputError, match=r"^.request.: is not an API Gateway or function URL event$"):
        events.http_request(request)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
SHAPES = st.fixed_dictionaries(
    {},
    optional={
        name: JSON
        | st.fixed_dictionaries({}, optional={"http": JSON, "method": JSON, "functionArn": JSON, "path": JSON})
        for name in [
            "Records",
            "detail-type",
            "detail",
            "source",
            "httpMethod",
            "rawPath",
            "rawQueryString",
            "requestContext",
            "requestPayload",
            "responseContext",
            "responsePayload",
            "Type",
            "TopicArn",
            "Message",
            "headers",
            "multiValueHeaders",
            "body",
            "isBase64Encoded",
            "queryStringParameters",
            "multiValueQueryStringParameters",
            "pathParameters",
        ]
    },
)
RECORDS = st.fixed_dictionaries(
    {"eventSource": st.just("aws:sqs")},
    optional={
        "messageId": st.text(),
        "body": JSON,
        "attributes": JSON,
        "eventSourceARN": st.just("q.fifo") | JSON,
    },
)


@given(SHAPES | JSON | st.fixed_dictionaries({"Records": st.lists(RECORDS, min_size=1, max_size=3)}))
def test_any_event_is_read_or_refused(event: Any) -> None:
    """Any event is read, or refused with InvalidInputError; it raises no other exception."""
    try:
        if events.is_http(event):
            request = events.http_request(event)
            assert isinstance(request, HttpRequest)
            events.http_inputs(request)
        elif (records := events.sqs_records(event)) is not None:
            for record in records:
                events.sqs_inputs(record)
        else:
            events.inputs(event)
    except InvalidInputError:
        pass
