"""The webhook publishes the requests that Twilio signed, in documented shapes, and answers Twilio accordingly."""

import base64
import hashlib
import hmac
import json
import string
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import webhook
from twilio_connector.api import client, connections
from twilio_connector.api.connections import Connections
from twilio_connector.errors import InternalError
from twilio_connector.messaging.idempotency import Accepted, OutcomeLost, SendRecord
from twilio_connector.messaging.idempotency_store import IdempotencyStore
from twilio_connector.webhooks.signature import signed_text

from tests.aws_wire import LOST, PASS, AwsWire
from tests.builders import begin_send
from tests.conftest import REQUEST_ID, Context, LoadEvent
from tests.mutants import (
    CALL_SID,
    FORM,
    GENUINE,
    JSON,
    MESSAGE_SID,
    OTHER_SID,
    SERVICE_SID,
    SIGNATURE,
    Request,
    Target,
    Webhook,
    event_1,
    event_2,
    posted,
    signed,
)
from tests.unit.conftest import ACCOUNT_SID, API_KEY, AUTH_TOKEN, Clock, Log

BASE = "https://hook.example"
TARGET = Target(BASE, ACCOUNT_SID, AUTH_TOKEN)
OTHER_TOKEN = "2" * 32
SUBACCOUNT_SID = "AC" + "5" * 32
REPEAT = "i-twilio-idempotency-token"
BY_NAME = {each.name: each for each in GENUINE}
SMS = BY_NAME["plain"]
AWAY = (400, "AccessDeniedException")
ACCEPTED = {"statusCode": 200, "headers": {"Content-Type": "text/xml"}, "body": "<Response/>"}

type Answer = dict[str, Any]
type Send = Callable[..., Answer]


def refusal(status: int) -> Answer:
    """Return the answer to a request that is refused or fails, by its status."""
    phrase = {403: "Forbidden", 413: "Content Too Large", 500: "Internal Server Error", 503: "Service Unavailable"}[
        status
    ]
    return {
        "statusCode": status,
        "headers": {"Content-Type": "application/json"},
        "body": f'{{"message":"{phrase}"}}',
    }


@pytest.fixture
def send(aws_wire: AwsWire, context: Context) -> Send:
    """Return a function that passes a request or an event to the handler, as in a new container."""
    assert aws_wire.calls == []

    def send(sent: Request | Webhook | Any) -> Answer:
        if isinstance(sent, Webhook):
            sent = sent.request(TARGET)
        return webhook.handler(event_2(sent) if isinstance(sent, Request) else sent, context)

    return send


def details(wire: AwsWire) -> list[dict[str, Any]]:
    """Return the details of the published events."""
    return [json.loads(entry["Detail"]) for entry in wire.entries]


def buffered(wire: AwsWire) -> dict[str, Any]:
    """Return the SQS batch of the messages that were put in the buffer."""
    bodies = [each["MessageBody"] for each in wire.sent if each["QueueUrl"].endswith("/buffer")]
    return {
        "Records": [
            {"messageId": str(number), "eventSource": "aws:sqs", "body": body} for number, body in enumerate(bodies)
        ]
    }


def form(name: str = "form", *, query: str = "", **fields: str) -> Webhook:
    """Return a form webhook with these fields and the account's SID."""
    return Webhook(name=name, fields=fields, query=query)


def secret(wire: AwsWire, name: str, **fields: Any) -> None:
    """Store a connection's secret."""
    wire.secrets[f"twilio/{name}"] = json.dumps({"account_sid": ACCOUNT_SID, **fields})


# Events


@pytest.mark.parametrize(
    ("each", "detail_type"),
    [
        (BY_NAME["plain"], "Message Received"),
        (BY_NAME["MMS"], "Message Received"),
        (BY_NAME["WhatsApp"], "Message Received"),
        (BY_NAME["button"], "Message Received"),
        (BY_NAME["GET signs"], "Message Received"),
        (BY_NAME["opt-out"], "Opt-Out Changed"),
        (BY_NAME["status"], "Message Status Changed"),
        (BY_NAME["failed"], "Message Status Changed"),
        (BY_NAME["GET status"], "Message Status Changed"),
        (BY_NAME["debugger"], "Error Logged"),
        (BY_NAME["call"], "Webhook Received"),
        (BY_NAME["JSON object"], "Webhook Received"),
        (form("verification", ServiceSid="VA" + "0" * 32, Status="approved"), "Webhook Received"),
        (
            form("conversation", Attributes="{}", Body="Hi", EventType="onMessageAdded", MessageSid="IM" + "0" * 32),
            "Webhook Received",
        ),
        (
            form(
                "delivery in a conversation", ChannelMessageSid=MESSAGE_SID, MessageSid="IM" + "0" * 32, Status="sent"
            ),
            "Webhook Received",
        ),
        (
            form(
                "conference",
                CallSid=CALL_SID,
                Coaching="false",
                ConferenceSid="CF" + "0" * 32,
                EndConferenceOnExit="false",
                FriendlyName="Room 1, for All",
                Hold="false",
                Muted="false",
                SequenceNumber="1",
                StartConferenceOnEnter="true",
                StatusCallbackEvent="participant-join",
                Timestamp="Mon, 23 Nov 2026 12:00:00 +0000",
            ),
            "Webhook Received",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Webhook) else "",
)
def test_each_kind_has_its_detail_type(send: Send, aws_wire: AwsWire, each: Webhook, detail_type: str) -> None:
    """Each kind of webhook has its detail-type. Events are on the stack's bus, with source `twilio`."""
    assert ACCEPTED == send(each)
    assert [("bus", "twilio", detail_type)] == [
        (entry["EventBusName"], entry["Source"], entry["DetailType"]) for entry in aws_wire.entries
    ]


@pytest.mark.parametrize("name", ["webhook", "webhook_status", "webhook_event_streams"])
def test_the_events_in_files_are_true(send: Send, aws_wire: AwsWire, event: LoadEvent, name: str) -> None:
    """The events in files have valid signatures, so that each is accepted and published."""
    assert (ACCEPTED, 1) == (send(event(name)), len(aws_wire.entries))


def test_a_message_is_published_whole(send: Send, aws_wire: AwsWire) -> None:
    """The event has all that Twilio sent, and the message with the field names of Twilio's API."""
    send(BY_NAME["MMS"])
    (detail,) = details(aws_wire)

    assert detail.pop("received_at").endswith("Z")
    assert {
        "connection": "default",
        "account_sid": ACCOUNT_SID,
        "deduplication_id": f"{ACCOUNT_SID}:{MESSAGE_SID}:received",
        "url": f"{BASE}/webhook",
        "parameters": BY_NAME["MMS"].form(TARGET),
        "message": {
            "sid": MESSAGE_SID,
            "from": "+15551234567",
            "to": "+15005550006",
            "body": "Two Pictures",
            "status": "received",
            "error_code": None,
            "opt_out_type": None,
            "messaging_service_sid": None,
            "num_media": 2,
            "media": [
                {"url": "https://api.twilio.com/2010-04-01/Media/ME0", "content_type": "image/jpeg"},
                {"url": "https://api.twilio.com/2010-04-01/Media/ME1", "content_type": "text/vcard"},
            ],
        },
    } == detail


def test_a_status_is_published_whole(send: Send, aws_wire: AwsWire) -> None:
    """The event has the status's rank, whether it is final, and Twilio's error code as a number."""
    send(BY_NAME["failed"])
    (detail,) = details(aws_wire)

    assert f"{ACCOUNT_SID}:{MESSAGE_SID}:undelivered" == detail["deduplication_id"]
    assert {
        "sid": MESSAGE_SID,
        "from": "+15005550006",
        "to": "+15551234567",
        "body": None,
        "status": "undelivered",
        "error_code": 30006,
        "opt_out_type": None,
        "messaging_service_sid": SERVICE_SID,
        "num_media": 0,
        "media": [],
        "status_rank": 6,
        "terminal": True,
    } == detail["message"]


@pytest.mark.parametrize(
    ("status", "rank", "terminal"),
    [
        ("accepted", 1, False),
        ("scheduled", 1, False),
        ("queued", 2, False),
        ("sending", 3, False),
        ("sent", 4, False),
        ("partially_delivered", 5, False),
        ("delivered", 6, True),
        ("undelivered", 6, True),
        ("failed", 6, True),
        ("canceled", 6, True),
        ("read", 7, True),
        ("new", 0, False),
    ],
)
def test_a_status_has_its_rank(send: Send, aws_wire: AwsWire, status: str, rank: int, terminal: bool) -> None:  # noqa: FBT001 a table
    """Each status has a rank: callbacks may arrive out of order, and a consumer ignores the lower rank."""
    send(form(**{**BY_NAME["status"].fields, "MessageStatus": status}))
    (message,) = (detail["message"] for detail in details(aws_wire))

    assert (status, rank, terminal) == (message["status"], message["status_rank"], message["terminal"])


def test_an_opt_out_says_which(send: Send, aws_wire: AwsWire) -> None:
    """The event of an opt-out has its type, such as STOP."""
    send(BY_NAME["opt-out"])

    assert ["STOP"] == [detail["message"]["opt_out_type"] for detail in details(aws_wire)]


def test_a_name_that_repeats_is_a_list(send: Send, aws_wire: AwsWire) -> None:
    """A parameter that occurs several times is a list in the event, with each signed value once."""
    request = form(Digits="5678").request(TARGET)
    fields = (*request.fields, ("Digits", "1234"), ("Digits", "5678"))
    answer = send(signed(posted(request, fields), TARGET))

    assert ACCEPTED == answer
    assert [{"AccountSid": ACCOUNT_SID, "Digits": ["1234", "5678"]}] == [
        each["parameters"] for each in details(aws_wire)
    ]


OTHER_MESSAGE = {"MessageSid": OTHER_SID, "SmsSid": OTHER_SID, "SmsMessageSid": OTHER_SID}


@pytest.mark.parametrize(
    ("each", "other"),
    [
        (SMS, replace(SMS, fields=SMS.fields | OTHER_MESSAGE)),
        (BY_NAME["status"], replace(BY_NAME["status"], fields=BY_NAME["status"].fields | {"MessageStatus": "sent"})),
        (BY_NAME["call"], replace(BY_NAME["call"], fields=BY_NAME["call"].fields | {"SequenceNumber": "1"})),
        (
            BY_NAME["debugger"],
            replace(BY_NAME["debugger"], fields=BY_NAME["debugger"].fields | {"Sid": "NO" + "2" * 32}),
        ),
        (BY_NAME["JSON object"], replace(BY_NAME["JSON object"], json=b"{}")),
        (BY_NAME["GET status"], replace(BY_NAME["GET status"], fields=BY_NAME["status"].fields | OTHER_MESSAGE)),
    ],
    ids=lambda value: value.name,
)
def test_the_same_delivery_is_published_once(send: Send, aws_wire: AwsWire, each: Webhook, other: Webhook) -> None:
    """A request that Twilio redelivers with the same token is published once. Another request has another id."""
    answers = [send(each.request(TARGET).with_header(REPEAT, "token")) for _ in range(20)]
    first, *more = details(aws_wire)

    assert ([ACCEPTED] * 20, []) == (answers, more)
    assert ACCEPTED == send(other)
    assert 2 == len({first["deduplication_id"], details(aws_wire)[-1]["deduplication_id"]}) == len(details(aws_wire))


@pytest.mark.parametrize(
    ("name", "events"),
    [
        ("plain", 1),
        ("status", 1),
        ("GET status", 1),
        ("Event Streams", 2),
        ("call", 3),
        ("debugger", 3),
        ("JSON object", 3),
    ],
)
def test_what_has_no_identity_is_another_event_with_another_token(
    send: Send, aws_wire: AwsWire, name: str, events: int
) -> None:
    """A delivery without an id is a new event for each token, such as a `<Gather>` that posts the same digits again.

    Messages and CloudEvents have an id.
    """
    request = BY_NAME[name].request(TARGET)
    answers = [send(each) for each in (request, request.with_header(REPEAT, "a"), request.with_header(REPEAT, "b"))]

    assert [ACCEPTED] * 3 == answers
    assert events == len(aws_wire.entries) == len({each["deduplication_id"] for each in details(aws_wire)})


def test_a_widget_that_posts_a_message_is_no_message(send: Send, aws_wire: AwsWire) -> None:
    """A widget's post with some of a message's parameters is not a message, and each of its posts is an event."""
    send(SMS)
    widget = form(MessageSid=MESSAGE_SID, From="+15551234567").request(TARGET)
    for token in "ab":
        send(widget.with_header(REPEAT, token))

    assert ["Message Received", "Webhook Received", "Webhook Received"] == [
        entry["DetailType"] for entry in aws_wire.entries
    ]


def test_a_message_may_be_known_by_its_old_name(send: Send, aws_wire: AwsWire) -> None:
    """A message that has only `SmsSid` instead of `MessageSid` is recognised as a message."""
    send(replace(SMS, fields={name: value for name, value in SMS.fields.items() if name != "MessageSid"}))

    assert [("Message Received", MESSAGE_SID)] == [
        (entry["DetailType"], json.loads(entry["Detail"])["message"]["sid"]) for entry in aws_wire.entries
    ]


@pytest.mark.parametrize(
    "odd",
    [
        {"From": ["+15551234567", "+15550100000"]},
        {"MessageSid": "IM" + "0" * 32, "SmsSid": ""},
        {"SmsStatus": []},
        {"AccountSid": "AC0"},
    ],
    ids=["two senders", "a conversation's", "no status", "no account"],
)
def test_a_form_that_is_no_message_is_published_all_the_same(send: Send, aws_wire: AwsWire, odd: Any) -> None:
    """A form with a valid signature is published even if it is not a message. Its content decides the detail-type."""
    fields = [
        (name, value)
        for name, values in (SMS.form(TARGET) | odd).items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    answer = send(signed(posted(SMS.request(TARGET), fields), TARGET))

    assert (ACCEPTED, ["Webhook Received"]) == (answer, [entry["DetailType"] for entry in aws_wire.entries])


@pytest.mark.parametrize(
    "odd",
    [
        {"ErrorCode": "9" * 5000, "NumMedia": "1e3"},
        {"ErrorCode": "²", "NumMedia": "²"},
        {"": "no name", "a.b": "", "phoneNumber": "+1555123XXXX", "X" * 300: "é👍"},
        {"From": "", "OtherRecipients0": "+15550100000"},
    ],
    ids=["large numbers", "no digits", "names", "nobody"],
)
def test_values_are_taken_as_they_come(send: Send, aws_wire: AwsWire, odd: dict[str, str]) -> None:
    """A message with unusual parameters is still published as a message, with its parameters unchanged."""
    each = replace(SMS, fields=SMS.fields | odd)

    assert ACCEPTED == send(each)
    assert [("Message Received", each.form(TARGET))] == [
        (entry["DetailType"], json.loads(entry["Detail"])["parameters"]) for entry in aws_wire.entries
    ]


def test_a_message_is_the_same_though_something_else_is_told_of_it(send: Send, aws_wire: AwsWire) -> None:
    """Callbacks with the same SID and status are one event, as Twilio advises, even if other parameters differ."""
    send(BY_NAME["status"])
    send(replace(BY_NAME["status"], fields=BY_NAME["status"].fields | {"RawDlrDoneDate": "2611231201"}, query="x=1"))

    assert 1 == len(aws_wire.entries)


def test_each_account_has_its_own_messages(send: Send, aws_wire: AwsWire) -> None:
    """The same message SID in another account is another message, and is published too."""
    secret(aws_wire, "default", auth_token=AUTH_TOKEN, subaccount_sids=[SUBACCOUNT_SID])
    send(SMS)
    send(SMS.request(TARGET._replace(account_sid=SUBACCOUNT_SID)))

    assert [ACCOUNT_SID, SUBACCOUNT_SID] == [detail["account_sid"] for detail in details(aws_wire)]


# JSON and Event Streams


def cloud_events(count: int, data: str = "") -> Webhook:
    """Return an Event Streams delivery with this many CloudEvents."""
    events = [{"specversion": "1.0", "id": f"EZ{number:032}", "data": data} for number in range(count)]
    return Webhook(name="events", fields={}, json=json.dumps(events).encode())


def test_each_cloud_event_is_an_event(send: Send, aws_wire: AwsWire) -> None:
    """Each CloudEvent is an event of its own, identified by the id that Twilio gave it."""
    each = cloud_events(2)
    send(each)

    assert ["Event Stream Event"] * 2 == [entry["DetailType"] for entry in aws_wire.entries]
    assert json.loads(each.json or b"") == [detail["parameters"] for detail in details(aws_wire)]
    assert [f"EZ{number:032}" for number in range(2)] == [detail["deduplication_id"] for detail in details(aws_wire)]


@pytest.mark.parametrize("key", [None, 5, "", {"a": 1}], ids=str)
def test_what_has_no_id_is_no_cloud_event(send: Send, aws_wire: AwsWire, key: Any) -> None:
    """An element without a valid id is not a CloudEvent. Two of them are two events, even with equal `id` fields."""
    for number in (1, 2):
        array = [{"specversion": "1.0", "type": "x", "id": key, "data": number}]
        send(Webhook(name="no id", fields={}, json=json.dumps(array).encode()))

    assert ["Webhook Received"] * 2 == [entry["DetailType"] for entry in aws_wire.entries]


def test_many_events_are_put_ten_at_a_time(send: Send, aws_wire: AwsWire) -> None:
    """Events are put on the bus ten at a time, because PutEvents accepts no more."""
    assert ACCEPTED == send(cloud_events(25))
    assert [10, 10, 5] == [len(body["Entries"]) for called, body in aws_wire.calls if called == "PutEvents"]


def test_large_events_are_put_256_kb_at_a_time(send: Send, aws_wire: AwsWire) -> None:
    """A PutEvents call has at most 256 KB: source, detail-type and detail count together."""
    assert ACCEPTED == send(cloud_events(10, "x" * 26_000))

    sizes = [
        [sum(len(entry[part].encode()) for part in ("Source", "DetailType", "Detail")) for entry in body["Entries"]]
        for called, body in aws_wire.calls
        if called == "PutEvents"
    ]
    assert 10 == sum(len(each) for each in sizes)
    assert all(sum(each) <= 256 * 1024 for each in sizes)
    assert 2 == len(sizes)


def sink_test(test_id: Any = "1", **more: Any) -> Webhook:
    """Return the delivery that a sink sends when somebody tests it."""
    event = {
        "specversion": "1.0",
        "type": "com.twilio.eventstreams.test-event",
        "source": "Sink",
        "id": ACCOUNT_SID,
        "data": {"test_id": test_id},
    }
    return Webhook(name="sink test", fields={}, json=json.dumps([event | more]).encode())


def test_each_test_of_a_sink_is_an_event(send: Send, aws_wire: AwsWire) -> None:
    """Each test of a sink is an event: all have the account's SID as id, but `Validate` needs the `test_id` of each."""
    tests = [sink_test("1"), sink_test("2"), sink_test("2"), sink_test("3")]

    assert [ACCEPTED] * 4 == [send(each) for each in tests]
    assert ["1", "2", "3"] == [detail["parameters"]["data"]["test_id"] for detail in details(aws_wire)]
    assert 3 == len({detail["deduplication_id"] for detail in details(aws_wire)})


@pytest.mark.parametrize(
    "other",
    [
        sink_test("2", type="com.twilio.messaging.message.sent"),
        sink_test("2", data="2"),
        sink_test("2", data=None),
        sink_test("2", type=["com.twilio.eventstreams.test-event"]),
    ],
    ids=["another type", "text", "null", "list"],
)
def test_only_a_test_of_a_sink_has_another_id(send: Send, aws_wire: AwsWire, other: Webhook) -> None:
    """All CloudEvents except a sink's tests are identified by their own id."""
    send(other)

    assert [ACCOUNT_SID] == [detail["deduplication_id"] for detail in details(aws_wire)]


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b"null", b'"x"', b"1", '{"a":"é"}'.encode(), b'[{"specversion":"1.0"}]']
)
def test_other_json_is_published_as_it_is(send: Send, aws_wire: AwsWire, body: bytes) -> None:
    """Other JSON is published unchanged as Webhook Received, for any content."""
    assert ACCEPTED == send(Webhook(name="json", fields={}, json=body))
    assert [("Webhook Received", json.loads(body), ACCOUNT_SID)] == [
        (entry["DetailType"], detail["parameters"], detail["account_sid"])
        for entry, detail in zip(aws_wire.entries, details(aws_wire), strict=True)
    ]


@pytest.mark.parametrize(
    ("body", "parameters"),
    [
        (b'{"a":["\\ud83d","\\ud83d\\ude00"],"\\ude00":"\\ufffd"}', {"a": ["\ufffd", "😀"], "\ufffd": "\ufffd"}),
        (b'{"a":NaN,"b":1e400,"c":-1e5}', {"a": "NaN", "b": "1e400", "c": -100000.0}),
        (b'{"a":123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
        (b"{", "{"),
        (b"\xff", "\ufffd"),
        (b"[" * 100_000, "[" * 100_000),
        (b"9" * 5000, "9" * 5000),
        (b" ", " "),
        (b"<Response/>", "<Response/>"),
    ],
    ids=["surrogates", "numbers", "large", "broken", "no UTF-8", "deep", "digits", "blank", "XML"],
)
def test_odd_json_is_published(send: Send, aws_wire: AwsWire, body: bytes, parameters: Any) -> None:
    """Unusual JSON is published, and a body that is not JSON as a text: a Studio widget posts what its author wrote."""
    assert ACCEPTED == send(Webhook(name="json", fields={}, json=body))
    assert [parameters] == [detail["parameters"] for detail in details(aws_wire)]


# The bus and Secrets Manager


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("refused", [1, 2, 5])
def test_an_entry_that_the_bus_refuses_is_not_forgotten(send: Send, aws_wire: AwsWire, refused: int) -> None:
    """An event that EventBridge refuses goes to the buffer, although the answer is 200 with a FailedEntryCount."""
    aws_wire.refused = [refused, refused]

    assert ACCEPTED == send(cloud_events(5))
    assert refused == len(aws_wire.sent)


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize(
    "code", [(400, "ThrottlingException"), (500, "InternalFailure"), (400, "AccessDeniedException"), LOST]
)
def test_a_bus_that_fails_is_nothing_to_twilio(send: Send, aws_wire: AwsWire, code: tuple[int, str]) -> None:
    """If EventBridge fails, the answer is 200. The event goes to the buffer, and the function publishes it later."""
    aws_wire.failures["PutEvents"] = [code] * 2

    assert (ACCEPTED, 1) == (send(SMS), len(aws_wire.sent))
    batch = buffered(aws_wire)
    aws_wire.calls.clear()
    assert {"batchItemFailures": []} == send(batch)
    assert [f"{ACCOUNT_SID}:{MESSAGE_SID}:received"] == [each["deduplication_id"] for each in details(aws_wire)]


@pytest.mark.usefixtures("delays")
def test_the_second_ten_may_fail_alone(send: Send, aws_wire: AwsWire) -> None:
    """If only the second PutEvents call fails, only its events are retried and then buffered."""
    aws_wire.failures["PutEvents"] = [PASS, AWAY, AWAY]

    assert ACCEPTED == send(cloud_events(12))
    assert [f"EZ{number:032}" for number in (10, 11)] == sorted(
        json.loads(each["MessageBody"])["detail"]["deduplication_id"] for each in aws_wire.sent
    )


@pytest.mark.usefixtures("delays")
def test_bus_and_buffer_away_is_503(send: Send, aws_wire: AwsWire) -> None:
    """If both EventBridge and the buffer are unavailable, the answer is 503. Twilio's retry is then published."""
    aws_wire.failures |= {"PutEvents": [AWAY] * 2, "SendMessage": [AWAY]}

    assert refusal(503) == send(SMS)
    aws_wire.deliveries.clear()  # as if the claim's lease had expired
    aws_wire.calls.clear()
    assert (ACCEPTED, 1) == (send(SMS), len(aws_wire.entries))


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("code", [(400, "ThrottlingException"), (500, "InternalServiceError"), (503, "")])
def test_secrets_manager_away_is_503(send: Send, aws_wire: AwsWire, code: tuple[int, str]) -> None:
    """If Secrets Manager is unavailable, the answer is 503. Without a signature check, nothing is published."""
    aws_wire.failures["GetSecretValue"] = [code] * 2

    assert refusal(503) == send(SMS)
    assert [] == aws_wire.entries


def test_a_token_is_read_once(send: Send, aws_wire: AwsWire) -> None:
    """The token is read once for any number of requests, and once more for any number of invalid signatures."""
    for _ in range(10):
        send(SMS)
        send(SMS.request(TARGET).with_header(SIGNATURE, "x"))

    assert 2 == aws_wire.count("GetSecretValue")  # once more at the first invalid signature, as the token may be new


def test_strangers_cannot_run_up_look_ups(send: Send, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit per minute, requests for unknown connections get 503. The default connection still works."""
    monkeypatch.setattr(connections, "_STRANGERS_PER_MINUTE", 20)
    monkeypatch.setattr(client, "CONNECTIONS", Connections())
    target = TARGET._replace(base=BASE)
    request = SMS.request(target)
    answers = [send(signed(replace(request, path=f"/webhook/x{number}"), target)) for number in range(30)]

    assert [refusal(403)] * 20 + [refusal(503)] * 10 == answers
    assert 20 == aws_wire.count("GetSecretValue")
    assert ACCEPTED == send(SMS)


# Connections


@pytest.mark.parametrize(
    "connection",
    [
        None,
        b"\x00",
        "not JSON",
        "[]",
        json.dumps({"account_sid": ACCOUNT_SID}),
        json.dumps({"account_sid": "AC0", "auth_token": AUTH_TOKEN}),
        json.dumps(API_KEY | {"auth_token": ""}),
        json.dumps({name: value for name, value in API_KEY.items() if name != "auth_token"}),
        json.dumps({"account_sid": ACCOUNT_SID, "auth_token": OTHER_TOKEN}),
    ],
    ids=["unknown", "binary", "text", "list", "no token", "malformed", "empty token", "key alone", "other token"],
)  # fmt: skip
def test_a_connection_that_cannot_tell_refuses(send: Send, aws_wire: AwsWire, connection: Any) -> None:
    """A connection that is missing, malformed or without the right token refuses requests. No validation is skipped."""
    aws_wire.secrets = {} if connection is None else {"twilio/default": connection}

    assert refusal(403) == send(SMS)
    assert [] == aws_wire.entries


def test_no_permission_to_read_the_secret_refuses(send: Send, aws_wire: AwsWire) -> None:
    """Without permission to read the secret, requests are refused. Secrets Manager does not say whether it exists."""
    aws_wire.failures["GetSecretValue"] = [(400, "AccessDeniedException")]

    assert refusal(403) == send(SMS)


@pytest.mark.parametrize("token", [AUTH_TOKEN, OTHER_TOKEN], ids=["primary", "secondary"])
def test_either_token_signs(send: Send, aws_wire: AwsWire, token: str) -> None:
    """A signature by the primary or the secondary token is accepted, because both are valid during a rotation."""
    secret(aws_wire, "default", auth_token=AUTH_TOKEN, secondary_auth_token=OTHER_TOKEN)

    assert ACCEPTED == send(SMS.request(TARGET._replace(auth_token=token)))


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_the_signature_alone_tells_whose_it_is(send: Send, aws_wire: AwsWire, method: str) -> None:
    """A subaccount need not be listed: its webhook is accepted, as Twilio signs with the connection's token."""
    assert ACCEPTED == send(replace(SMS, method=method).request(TARGET._replace(account_sid=SUBACCOUNT_SID)))
    assert [SUBACCOUNT_SID] == [detail["account_sid"] for detail in details(aws_wire)]


@pytest.mark.parametrize("given", [{}, {"AccountSid": "AC0"}, {"AccountSid": ""}], ids=["none", "malformed", "empty"])
def test_without_an_account_it_is_the_connections(send: Send, aws_wire: AwsWire, given: dict[str, str]) -> None:
    """A webhook without a valid account SID gets the connection's: a Studio widget posts only its author's fields."""
    answer = send(signed(posted(SMS.request(TARGET), [("foo", "bar"), *given.items()]), TARGET))

    assert ACCEPTED == answer
    assert [(ACCOUNT_SID, {"foo": "bar"} | given)] == [
        (each["account_sid"], each["parameters"]) for each in details(aws_wire)
    ]


SHARED_SID, SHARED_SECRET = "SK" + "7" * 32, "not-a-shared-secret"


def with_shared_key(request: Request, algorithm: str, *, sid: str = SHARED_SID, secret: str = SHARED_SECRET) -> Request:
    """Return the request with a SharedKey's signature; `algorithm` is a name of `hashlib`."""
    text = signed_text(f"{BASE}/webhook", {name: [value] for name, value in request.fields})
    mac = base64.b64encode(hmac.digest(secret.encode(), text.encode(), algorithm)).decode()
    return request.with_header(SIGNATURE, mac).with_header(
        "x-twilio-webhooks-signature-settings", f"key={sid},algorithm=HMAC_{algorithm.upper()}"
    )


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_shared_key_signs(send: Send, aws_wire: AwsWire, algorithm: str) -> None:
    """A connection without auth token accepts a SharedKey's signature. Only the key that the header names is valid."""
    key = {name: value for name, value in API_KEY.items() if name != "auth_token"}
    aws_wire.secrets["twilio/default"] = json.dumps(key | {"shared_keys": {SHARED_SID: SHARED_SECRET}})
    request = SMS.request(TARGET)
    genuine = with_shared_key(request, algorithm)

    assert refusal(403) == send(with_shared_key(request, algorithm, secret=AUTH_TOKEN))
    assert refusal(403) == send(with_shared_key(request, algorithm, sid="SK" + "8" * 32))
    assert refusal(403) == send(with_shared_key(request, "md5"))
    other = "sha256" if algorithm == "sha1" else "sha1"
    settings = "x-twilio-webhooks-signature-settings"
    assert refusal(403) == send(genuine.with_header(settings, f"key={SHARED_SID},algorithm=HMAC_{other.upper()}"))
    assert refusal(403) == send(genuine.with_header(settings, "nothing"))
    assert [] == aws_wire.entries
    assert ACCEPTED == send(genuine)


def test_a_request_of_a_shared_key_is_not_checked_with_the_token(send: Send, aws_wire: AwsWire) -> None:
    """A request with the SharedKey header is not checked with the token, and one without it not with a SharedKey."""
    secret(aws_wire, "default", auth_token=AUTH_TOKEN, shared_keys={SHARED_SID: SHARED_SECRET})
    request = SMS.request(TARGET)
    header = ("x-twilio-webhooks-signature-settings", f"key={SHARED_SID},algorithm=HMAC_SHA1")

    assert refusal(403) == send(request.with_header(*header))
    assert refusal(403) == send(without(with_shared_key(request, "sha1"), header[0]))
    assert ACCEPTED == send(request)


def test_the_path_names_the_connection(send: Send, aws_wire: AwsWire) -> None:
    """The path names the connection, whose token is valid only for that path."""
    secret(aws_wire, "two", auth_token=OTHER_TOKEN)
    target = TARGET._replace(auth_token=OTHER_TOKEN)
    request = replace(SMS.request(target), path="/webhook/two")

    assert ACCEPTED == send(signed(request, target))
    assert refusal(403) == send(signed(request, TARGET))
    assert refusal(403) == send(signed(replace(request, path="/webhook"), target))
    assert [("two", f"{BASE}/webhook/two")] == [(detail["connection"], detail["url"]) for detail in details(aws_wire)]


@pytest.mark.parametrize("name", ["", "-x", "x/y", "x y", "x" * 65, "é", "..", "default/", "%2e"])
def test_what_cannot_be_a_connection_is_not_looked_up(send: Send, aws_wire: AwsWire, name: str) -> None:
    """A path with an invalid connection name is refused without a call to Secrets Manager."""
    request = replace(SMS.request(TARGET), path=f"/webhook/{name}")

    assert (refusal(403), 0) == (send(signed(request, TARGET)), aws_wire.count("GetSecretValue"))


@pytest.mark.parametrize("event", [None, "x", [], {}, {"Records": []}, {"source": "aws.events", "detail": {}}], ids=str)
def test_what_is_no_http_request_is_refused(send: Send, aws_wire: AwsWire, lines: Log, event: Any) -> None:
    """An event that is not an HTTP request is refused and logged: the function has a wrong trigger, such as a queue."""
    assert (refusal(403), []) == (send(event), aws_wire.calls)
    assert ["not an HTTP request"] == [line["reason"] for line in lines() if "reason" in line]


# Size and method


@pytest.mark.parametrize(
    ("content_type", "size", "status"),
    [
        (FORM, 128 * 1024, 403),
        (FORM, 128 * 1024 + 1, 413),
        (f"{FORM}; charset=utf-8", 10_000_000, 413),
        (JSON, 256 * 1024, 403),
        (JSON, 256 * 1024 + 1, 413),
        ("", 256 * 1024 + 1, 413),
        ("text/plain", 256 * 1024, 403),
    ],
)
def test_a_body_has_a_size(send: Send, content_type: str, size: int, status: int) -> None:
    """A body above the size limit gets 413. The limit counts bytes after Base64 decoding."""
    request = replace(SMS.request(TARGET), body=b"x" * size).with_header("content-type", content_type)

    assert refusal(status) == send(event_2(request))
    assert refusal(status) == send(event_2(request, binary=False))


def test_too_large_a_body_is_not_hashed(send: Send, aws_wire: AwsWire) -> None:
    """A body that is too large is refused before the token is read, so no signature is computed for it."""
    request = replace(SMS.request(TARGET), body=b"x" * 200_000)

    assert (refusal(413), 0) == (send(request), aws_wire.count("GetSecretValue"))


def test_a_form_of_128_kb_is_accepted(send: Send) -> None:
    """A form of exactly 128 KB is accepted, because the limit is inclusive."""
    rest = len(form(Text="").request(TARGET).body)
    each = form(Text="x" * (128 * 1024 - rest))

    assert 128 * 1024 == len(each.request(TARGET).body)
    assert ACCEPTED == send(each)


def test_a_form_has_as_many_fields_as_fit(send: Send, aws_wire: AwsWire) -> None:
    """The number of a form's fields is not limited, because Twilio may add parameters at any time."""
    each = form(**{f"X{number}": "" for number in range(2000)})

    assert ACCEPTED == send(each)
    assert [each.form(TARGET)] == [detail["parameters"] for detail in details(aws_wire)]


@pytest.mark.parametrize("method", ["HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "post ", "", "X"])
def test_only_get_and_post_are_twilios(send: Send, aws_wire: AwsWire, method: str) -> None:
    """Only GET and POST are accepted, and no header can override the method."""
    request = replace(SMS.request(TARGET).with_header("x-http-method-override", "POST"), method=method)

    assert (refusal(403), 0) == (send(request), aws_wire.count("GetSecretValue"))


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "multipart/form-data", "text/xml", "application/xml"])
def test_only_forms_and_json_are_twilios(send: Send, content_type: str | None) -> None:
    """A form whose content type is missing or different is refused, because the content type decides."""
    request = SMS.request(TARGET)
    headers = tuple(each for each in request.headers if each[0] != "content-type")
    if content_type is not None:
        headers = (*headers, ("content-type", content_type))

    assert refusal(403) == send(replace(request, headers=headers))


# URLs


@pytest.mark.parametrize("base", ["https://public.example", "https://public.example:8443/a/b", "http://127.0.0.1:8080"])
@pytest.mark.parametrize("query", ["", "tenant=1"])
def test_the_public_url_may_be_another(
    send: Send, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, base: str, query: str
) -> None:
    """If WEBHOOK_BASE_URL is set, the signed URL begins with it. The API's own domain and prefix are ignored."""
    monkeypatch.setenv("WEBHOOK_BASE_URL", base)
    request = replace(SMS, query=query).request(TARGET._replace(base=base))

    assert ACCEPTED == send(replace(request, host="api.example", path="/stage/webhook"))
    assert refusal(403) == send(replace(SMS, query=query).request(TARGET))
    assert [f"{base}/webhook"] == [detail["url"] for detail in details(aws_wire)]


@pytest.mark.parametrize("prefix", ["/prod", "/a/b", ""])
@pytest.mark.parametrize("make", [event_1, event_2], ids=["1.0", "2.0"])
def test_a_stage_is_part_of_the_url(send: Send, aws_wire: AwsWire, prefix: str, make: Callable[..., Any]) -> None:
    """A stage is part of the URL. In payload format 1.0, the path comes from the request context."""
    event = make(SMS.request(TARGET._replace(base=f"{BASE}{prefix}")))
    if make is event_1:
        event["path"] = "/webhook"  # without the stage

    assert ACCEPTED == send(event)
    assert [f"{BASE}{prefix}/webhook"] == [detail["url"] for detail in details(aws_wire)]


@pytest.mark.parametrize("name", ["host", "x-forwarded-host", "x-original-host", "forwarded", "x-forwarded-server"])
def test_no_header_tells_the_url(send: Send, aws_wire: AwsWire, name: str) -> None:
    """No header changes the URL: a request signed for another endpoint is refused, and a genuine one is accepted."""
    spoofed = SMS.request(TARGET._replace(base="https://staging.example"))
    genuine = SMS.request(TARGET)

    assert refusal(403) == send(replace(spoofed, host="hook.example").with_header(name, "staging.example"))
    assert ACCEPTED == send(genuine.with_header(name, "staging.example").with_header("x-forwarded-proto", "http"))
    assert [f"{BASE}/webhook"] == [detail["url"] for detail in details(aws_wire)]


@pytest.mark.parametrize("space", ["+", "%20"])
@pytest.mark.parametrize("apostrophe", ["'", "%27"])
def test_payload_1_is_encoded_anew_in_four_ways(send: Send, space: str, apostrophe: str) -> None:
    """A query is accepted in four encodings in both payload formats: `+` or `%20`, and `'` or `%27`, throughout."""
    safe = "'" if apostrophe == "'" else ""
    encode = quote_plus if space == "+" else quote
    pairs = [("AccountSid", ACCOUNT_SID), ("a b", "it's 100% &=+/é👍~"), ("c", ""), ("d", "x"), ("d", "y")]
    query = "&".join(f"{encode(name, safe)}={encode(value, safe)}" for name, value in pairs)
    request = Request(host="hook.example", path="/webhook", method="GET", query=query)

    assert ACCEPTED == send(event_1(signed(request, TARGET)))
    assert ACCEPTED == send(event_2(signed(request, TARGET)))


@pytest.mark.parametrize("query", ["a=b+c%20d", "a='%27", "flag", "a=%c3%a9", "a=x&b=y&a=z&c="])
def test_other_spellings_need_payload_2(send: Send, query: str) -> None:
    """Other encodings of a query are accepted only in payload format 2.0, because format 1.0 does not keep them."""
    request = signed(replace(SMS.request(TARGET), query=query), TARGET)

    assert (refusal(403), ACCEPTED) == (send(event_1(request)), send(event_2(request)))


@pytest.mark.parametrize("bare", [":@", "'", ":@'", "!$'()*,;:@/?"])
@pytest.mark.parametrize("space", ["+", "%20"])
def test_a_get_may_be_signed_with_characters_that_are_sent_encoded(
    send: Send, aws_wire: AwsWire, bare: str, space: str
) -> None:
    """A GET is accepted if characters were signed unencoded and sent encoded. Twilio does so with `:`, `@` and `'`."""
    fields = SMS.form(TARGET) | {"From": "whatsapp:+15558675309", "Body": "it's a@b, (at) 5/7; ok?! *$"}
    encode = quote_plus if space == "+" else quote
    sent, as_signed = (
        "&".join(f"{encode(name, safe)}={encode(value, safe)}" for name, value in fields.items()) for safe in ("", bare)
    )
    request = Request(host="hook.example", path="/webhook", method="GET", query=as_signed)
    genuine = replace(signed(request, TARGET), query=sent)

    assert ACCEPTED == send(event_2(genuine))
    assert ACCEPTED == send(event_1(genuine))
    assert [fields] == [detail["parameters"] for detail in details(aws_wire)]


@pytest.mark.parametrize("count", [2, 3])
def test_a_callbacks_query_may_be_sorted(send: Send, aws_wire: AwsWire, count: int) -> None:
    """A callback whose query was signed in another order is accepted, because Twilio sorts it in one of two ways."""
    pairs = ["z=1", "b=2", "a=3"][:count]
    for number, order in enumerate(permutations(pairs)):
        each = replace(BY_NAME["status"], fields=BY_NAME["status"].fields | {"MessageStatus": f"new{number}"})
        signed_so = replace(each, query="&".join(order)).request(TARGET)

        assert ACCEPTED == send(replace(signed_so, query="&".join(pairs)))
    assert [dict(pair.split("=") for pair in pairs)] * len(list(permutations(pairs))) == [
        detail["query"] for detail in details(aws_wire)
    ]


RESPELLED = {
    "two names": ["to=%2B15551234567", "id=it%27s+7%3A00"],
    "three names": ["url=https%3A%2F%2Fx.example%2F%3Fa%3D1", "mail=ada%40x.example", "id=it%27s%207%3A00"],
    "blank": ["tenant=", "id=a+b", "x=%C3%A9"],
}


@pytest.mark.parametrize("pairs", RESPELLED.values(), ids=list(RESPELLED))
@pytest.mark.parametrize("tokens", [1, 2])
def test_a_callbacks_query_may_be_sorted_or_signed_bare(
    send: Send, aws_wire: AwsWire, pairs: list[str], tokens: int
) -> None:
    """A callback's query may be signed sorted or unencoded, with any values, and also by the second token."""
    tokens_of = {1: {"auth_token": AUTH_TOKEN}, 2: {"auth_token": OTHER_TOKEN, "secondary_auth_token": AUTH_TOKEN}}
    secret(aws_wire, "default", **tokens_of[tokens])
    sent = "&".join(pairs)
    bare = sent.replace("%3A", ":").replace("%40", "@").replace("%27", "'")
    for number, query in enumerate([sent, "&".join(sorted(pairs)), bare]):
        each = replace(BY_NAME["status"], fields=BY_NAME["status"].fields | {"MessageStatus": f"new{number}"})

        assert ACCEPTED == send(replace(replace(each, query=query).request(TARGET), query=sent)), query


def test_the_owners_query_is_published_without_the_connectors(send: Send, aws_wire: AwsWire) -> None:
    """The event has the query that the URL's owner set, without parameters that Twilio or the connector added."""
    send(replace(SMS, query="tenant=1&tag=b&tag=a&send=me"))
    send(replace(BY_NAME["status"], query=f"tenant=2&send={'0' * 64}"))
    send(replace(BY_NAME["JSON object"], query="tenant=3"))
    send(BY_NAME["call"])
    send(replace(BY_NAME["call"], method="GET", query="tenant=4"))

    assert [{"tenant": "1", "tag": ["a", "b"], "send": "me"}, {"tenant": "2"}, {"tenant": "3"}, None, None] == [
        detail.get("query") for detail in details(aws_wire)
    ]


@pytest.mark.parametrize("port", ["", ":443"])
def test_the_standard_port_may_be_signed(send: Send, aws_wire: AwsWire, port: str) -> None:
    """Twilio signs with or without the standard port. The event's URL is the webhook's in both cases."""
    request = signed(replace(SMS.request(TARGET), host=f"hook.example{port}"), TARGET._replace(base=f"{BASE}{port}"))

    assert ACCEPTED == send(replace(request, host="hook.example"))
    assert [f"{BASE}/webhook"] == [detail["url"] for detail in details(aws_wire)]


@pytest.fixture
def hmacs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives the size of each text for which an HMAC is computed."""
    sizes: list[int] = []
    digest = hmac.digest

    def counted(key: bytes, text: bytes, algorithm: str) -> bytes:
        sizes.append(len(text))
        return digest(key, text, algorithm)

    monkeypatch.setattr(hmac, "digest", counted)
    return sizes


LONG_QUERY = "&".join(f"a{number}={'%3A%27%40+%2F' * 20}" for number in range(40))


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({"method": "GET", "query": "a=%3A%27+%2F&b=%3A&c=%40"}, 32),
        ({"query": "a=%3A%27+%2F&b=%3A&c=%40"}, 32),
        ({"query": LONG_QUERY[:16000]}, 32),
        ({"query": LONG_QUERY[:16000] * 2}, 2),
        ({"body": b"a=" + b"x" * 16 * 1024}, 2),
        ({"body": b"a=" + b"x" * 127 * 1024, "query": "a=1&b=2&c=3"}, 2),
    ],
    ids=["GET", "POST", "long query", "longer query", "large body", "largest body"],
)
def test_a_stranger_costs_at_most_32_hmacs(
    send: Send, aws_wire: AwsWire, hmacs: list[int], changes: dict[str, Any], most: int, tokens: int
) -> None:
    """A forged request costs at most 32 HMACs. Above 16 KB, only the URL as received is tried, with or without port."""
    more = {"secondary_auth_token": OTHER_TOKEN} if tokens > 1 else {}
    secret(aws_wire, "default", auth_token=AUTH_TOKEN, **more)
    forged = replace(SMS.request(TARGET), **changes).with_header("x-forwarded-host", "x.example")
    hmacs.clear()

    assert refusal(403) == send(forged.with_header(SIGNATURE, "x"))
    assert 0 < len(hmacs) <= (most if most == 32 else most * tokens)


# Log lines and metrics


def metrics(output: str) -> dict[str, list[float]]:
    """Return the metrics in the printed lines, by name."""
    found: dict[str, list[float]] = {}
    for line in map(json.loads, output.splitlines()):
        (directive,) = line["_aws"]["CloudWatchMetrics"]
        assert "TwilioConnector" == directive["Namespace"]
        for metric in directive["Metrics"]:
            found[metric["Name"]] = line[metric["Name"]]
    return found


MARKS = {"Body": "MARKbody", "From": "+15550103333", "ProfileName": "MARKname"}


def test_an_accepted_webhook_is_counted_and_a_line_without_its_data(
    send: Send, log: Callable[[], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """An accepted webhook is counted and is one log line. Nothing of its content is printed."""
    send(form(**{**SMS.fields, **MARKS}))
    output = capsys.readouterr()
    (line,) = log()

    assert 0 <= line.pop("duration_ms") < 30_000
    assert {
        "level": "INFO",
        "message": "accepted",
        "function_request_id": REQUEST_ID,
        "connection": "default",
        "detail_type": "Message Received",
        "message_sid": SMS.fields["MessageSid"],
    } == line
    assert {"WebhooksAccepted": [1], "EventsPublished": [1]} == metrics(output.out)
    assert "" == output.err


@pytest.mark.parametrize("fault", ["signature", "reading", "connection", "shape", "size"])
def test_a_refused_webhook_is_counted_and_logged_without_its_data(
    send: Send, log: Callable[[], list[Any]], capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """A refused webhook is counted and is one log line, which has the reason and nothing of the request."""
    request = (
        form(query="q=MARKquery", **{**SMS.fields, **MARKS}).request(TARGET).with_header("user-agent", "MARK\r\nagent")
    )
    if fault == "reading":
        send(request)
        capsys.readouterr()
    send(
        {
            "signature": request.with_header(SIGNATURE, "MARKsignature"),
            "reading": cut(request, "Body=MARKbody", "BodyMARK=body"),
            "connection": replace(request, path="/webhook/none"),
            "shape": event_2(request) | {"body": ["MARKbody"]},
            "size": replace(request, body=b"MARK" * 100_000),
        }[fault]
    )
    output = capsys.readouterr()
    *accepted, line = log()

    assert (["accepted"] if fault == "reading" else []) == [each["message"] for each in accepted]
    assert ("WARNING", "webhook refused", "webhook") == (line["level"], line["message"], line["function"])
    assert line["reason"]
    more = {"WebhookReadingsRefused": [1]} if fault == "reading" else {}
    assert {"WebhooksRefused": [1], **more} == metrics(output.out)
    for mark in ("MARK", "5550103333", "agent", AUTH_TOKEN):
        assert mark not in json.dumps([*accepted, line]) + output.out + output.err


def test_a_webhook_that_is_lost_is_logged_as_an_error(
    send: Send, aws_wire: AwsWire, log: Callable[[], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """An event that neither EventBridge nor the buffer takes is logged as an error, with AWS's error code."""
    aws_wire.refused = [1, 1]
    aws_wire.failures["SendMessage"] = [AWAY]
    send(cloud_events(3, "MARK"))
    buffer, line = log()

    assert ("ERROR", "could not put an event in the buffer", AWAY[1]) == (
        buffer["level"],
        buffer["message"],
        buffer["code"],
    )
    assert ("ERROR", "ServiceUnavailableError", "1 events could be put neither on the event bus nor in the buffer") == (
        line["level"],
        line["error"],
        line["message"],
    )
    assert {"WebhooksAccepted": [1], "EventsPublished": [1, 1]} == metrics(capsys.readouterr().out)
    assert "MARK" not in json.dumps([buffer, line])


@pytest.mark.parametrize(
    "name",
    [
        "CONNECTION_PREFIX", "DEFAULT_CONNECTION", "WEBHOOK_BASE_URL", "EVENT_BUS_NAME", "DELIVERIES_TABLE",
        "REPLY_PARAMETER",
    ],
)  # fmt: skip
def test_a_setting_that_is_missing_is_500(
    send: Send, log: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A missing setting gives 500, because it is a fault of the deployment. The log names the setting."""
    monkeypatch.delenv(name)

    assert refusal(500) == send(SMS)
    assert [f"environment variable {name}"] == [line["message"].partition(":")[0] for line in log()]


def test_a_bug_is_500_and_logged_without_data(
    send: Send, aws_wire: AwsWire, log: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected answer of Secrets Manager gives 500. The exception is logged without any data of the request."""
    monkeypatch.setattr(aws_wire, "answer", lambda *_: (200, {"SecretString": json.dumps(API_KEY)}))

    assert refusal(500) == send(form(**{**SMS.fields, **MARKS}))
    (line,) = log()
    assert "unexpected exception" == line["message"]
    assert "MARK" not in json.dumps(line)


@pytest.mark.parametrize(
    "records", [[{"eventSource": "aws:sqs", "body": "MARK"}], [{"eventSource": "aws:sqs", "messageId": "MARK"}]]
)
def test_a_batch_that_is_none_raises(send: Send, log: Log, records: list[dict[str, Any]]) -> None:
    """A malformed batch raises an error, so that SQS redelivers all of it. No answer could name the failed records."""
    with pytest.raises(InternalError):
        send({"Records": records})
    assert "MARK" not in json.dumps(log())


def test_containers_do_not_share_what_they_know(aws_wire: AwsWire, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new container shares no state with others, and reads the token itself."""
    send(SMS)
    monkeypatch.setattr(client, "CONNECTIONS", Connections())
    aws_wire.secrets["twilio/default"] = json.dumps(API_KEY | {"auth_token": OTHER_TOKEN})

    assert refusal(403) == send(SMS)
    assert ACCEPTED == send(SMS.request(TARGET._replace(auth_token=OTHER_TOKEN)))


@pytest.mark.parametrize(
    ("name", "answer"), [("bodySHA256", ACCEPTED), ("bodysha256", refusal(403)), ("BODYSHA256", refusal(403))]
)
def test_a_hash_may_repeat_alike(send: Send, name: str, answer: Answer) -> None:
    """A repeated `bodySHA256` is accepted only if it has the same spelling and value."""
    request = BY_NAME["JSON object"].request(TARGET)
    digest = hashlib.sha256(request.body).hexdigest()

    assert answer == send(signed(replace(request, query=f"{request.query}&{name}={digest}"), TARGET))
    assert refusal(403) == send(signed(replace(request, query=f"{request.query}&{name}={'0' * 64}"), TARGET))


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_form_or_get_may_have_a_hash(send: Send, aws_wire: AwsWire, method: str) -> None:
    """A form or GET may have a `bodySHA256`, as Twilio puts one in some GETs. Only a JSON body is compared with it."""
    assert ACCEPTED == send(replace(SMS, method=method, query=f"bodySHA256={'0' * 64}&bodySHA256={'0' * 64}"))
    assert ["Message Received"] == [entry["DetailType"] for entry in aws_wire.entries]


def test_a_json_body_that_was_taken_away_is_missed(send: Send, aws_wire: AwsWire) -> None:
    """A request without its JSON body is refused, because the hash in the URL belongs to another body."""
    request = BY_NAME["JSON object"].request(TARGET)

    assert refusal(403) == send(replace(request, body=b""))
    assert [] == aws_wire.entries


def test_a_hash_needs_no_query_of_its_own(send: Send) -> None:
    """`bodySHA256` may be the only parameter of the query, or the last of several."""
    for query in ("", "x=1", "x=1&y="):
        request = Webhook(name="json", fields={}, json=b'{"a":1}', query=query).request(TARGET)

        assert hashlib.sha256(b'{"a":1}').hexdigest() in request.query
        assert ACCEPTED == send(request)


# Requests of strangers


def without(request: Request, header: str) -> Request:
    """Return the request without this header."""
    return replace(request, headers=tuple(each for each in request.headers if each[0] != header))


def in_event(request: Request, **changes: Any) -> dict[str, Any]:
    """Return the event of a request, with fields that API Gateway would not write."""
    event = event_2(request)
    return event | {name: event[name] | value if isinstance(value, dict) else value for name, value in changes.items()}


def on_domain(request: Request, domain: Any) -> dict[str, Any]:
    """Return the event of a request, with another domain of the API."""
    event = event_2(request)
    return event | {"requestContext": event["requestContext"] | {"domainName": domain}}


def cut(request: Request, old: str, new: str) -> Request:
    """Return a form with the same signed text, which is split into other fields."""
    return replace(request, body=request.body.replace(old.encode(), new.encode()))


# Each contains a number, so that no two requests are equal.
STRANGERS: dict[str, Callable[[Request, Request, str], Any]] = {
    "no signature": lambda form, _, n: without(form, SIGNATURE).with_header("x-mark", n),
    "empty signature": lambda form, _, n: form.with_header(SIGNATURE, "").with_header("x-mark", n),
    "garbage": lambda form, _, n: form.with_header(SIGNATURE, f"MARK{n}"),
    "no ASCII": lambda form, _, n: form.with_header(SIGNATURE, f"é{n}"),
    "two signatures": lambda form, _, n: form.with_header(SIGNATURE, f"{form.header(SIGNATURE)}, {n}"),
    "long signature": lambda form, _, n: form.with_header(SIGNATURE, n * 5000),
    "another token": lambda form, _, n: signed(form, TARGET._replace(auth_token=f"{n:0>32}")),
    "another body": lambda form, _, n: replace(form, body=form.body + f"&MARK={n}".encode()),
    "another query": lambda form, _, n: replace(form, query=f"MARK={n}"),
    "another path": lambda form, _, n: replace(form, path=f"/MARK{n}/webhook"),
    "another host": lambda form, _, n: replace(form, host=f"h{n}.example"),
    "JSON without hash": lambda _, json_, n: replace(json_, query="", body=b"[%s]" % n.encode()),
    "JSON with another body": lambda _, json_, n: replace(json_, body=b"[%s]" % n.encode()),
    "JSON taken for a form": lambda _, json_, n: posted(json_, [("AccountSid", ACCOUNT_SID), ("Body", n)]),
    "two hashes": lambda _, json_, n: replace(json_, query=f"{json_.query}&bodySHA256={n:0>64}"),
    "upper case hash": lambda _, json_, n: replace(json_, query=f"BODYSHA256={n:0>64}", body=n.encode()),
    "form taken for JSON": lambda form, _, n: replace(form, body=b"[%s]" % n.encode()).with_header(
        "content-type", JSON
    ),
    "form taken for GET": lambda form, _, n: replace(form, method="GET", query=f"{form.body.decode()}&n={n}", body=b""),
    "deep JSON": lambda _, json_, n: replace(json_, body=b"[" * (1000 + int(n))),
    "large number": lambda _, json_, n: replace(json_, body=b"9" * (5000 + int(n))),
    "no UTF-8": lambda form, _, n: replace(form, body=b"\xff\xfe" + n.encode()),
    "no text": lambda form, _, n: in_event(form, body=f"\ud800{n}", isBase64Encoded=False),
    "no Base64": lambda form, _, n: in_event(form, body=f"%{n}", isBase64Encoded=True),
    "list as body": lambda form, _, n: in_event(form, body=[n]),
    "list as header": lambda form, _, n: in_event(form, headers={SIGNATURE: [n]}),
    "number as header": lambda form, _, n: in_event(form, headers={SIGNATURE: int(n)}),
    "list as path": lambda form, _, n: in_event(form, rawPath=[n]),
    "list as query": lambda form, _, n: in_event(form, rawQueryString=[n]),
    "surrogate in path": lambda form, _, n: in_event(form, rawPath=f"/\udfff{n}/webhook"),
    "surrogate in query": lambda form, _, n: in_event(form, rawQueryString=f"a=\udfff{n}"),
    "surrogate in header": lambda form, _, n: in_event(form, headers={"user-agent": f"\udfff{n}"}),
    "surrogate in signature": lambda form, _, n: in_event(form, headers={SIGNATURE: f"\udfff{n}"}),
    "bad port": lambda form, _, n: on_domain(form, f"hook.example:x{n}"),
    "bad IPv6 host": lambda form, _, n: on_domain(form, f"[::{n}"),
    "no domain": lambda form, _, n: on_domain(form, [n]),
    "bad host header": lambda form, _, n: form.with_header("host", f"[::{n}:x").with_header(SIGNATURE, n),
    "spoofed host": lambda form, _, n: replace(
        signed(replace(form, host=f"h{n}.example"), TARGET), host="hook.example"
    ).with_header("host", f"h{n}.example"),
    "spoofed forwarding": lambda form, _, n: replace(
        signed(replace(form, host=f"h{n}.example"), TARGET), host="hook.example"
    ).with_header("x-forwarded-host", f"h{n}.example"),
    "many fields": lambda form, _, n: posted(form, [(f"X{number}", n) for number in range(1000)]),
    "another method": lambda form, _, n: replace(form, method=f"M{n}"),
    "another type": lambda form, _, n: form.with_header("content-type", f"text/{n}"),
    "fragment": lambda form, _, n: replace(form, query=f"#{n}"),
    "large form": lambda form, _, n: replace(form, body=b"x" * (128 * 1024 + 1 + int(n))),
    "large JSON": lambda _, json_, n: replace(json_, body=b"x" * (256 * 1024 + 1 + int(n))),
}


def test_a_thousand_strangers_get_nothing(
    send: Send,
    aws_wire: AwsWire,
    log: Log,
    clock: Clock,  # noqa: ARG001 no time passes, so the secret is not read again
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each forged request gets 403, or 413 if it is too large. All of them together cause one more read of the secret.

    They cause no event and no write. The log has one line for each, which contains nothing of the request.
    """
    form, json_ = SMS.request(TARGET), BY_NAME["JSON object"].request(TARGET)
    answers: dict[str, set[str]] = {}
    for number in range(1012):
        kind = list(STRANGERS)[number % len(STRANGERS)]
        answers.setdefault(kind, set()).add(json.dumps(send(STRANGERS[kind](form, json_, str(number)))))
    lines = log()

    assert {
        kind: {json.dumps(refusal(413 if kind.startswith("large ") and kind != "large number" else 403))}
        for kind in STRANGERS
    } == answers
    assert {"GetSecretValue": 2} == Counter(called for called, _ in aws_wire.calls)
    assert {} == aws_wire.deliveries
    assert 1012 == len(lines)
    assert {"webhook refused"} == {line["message"] for line in lines}
    output = capsys.readouterr()
    for trace in ("Traceback", "MARK", ".py", "exception", AUTH_TOKEN):
        assert trace not in json.dumps(lines) + output.out + output.err


def test_no_other_signature_is_taken(send: Send, aws_wire: AwsWire) -> None:
    """A signature with one changed character is refused, even if Base64 decodes it to the same bytes."""
    request = SMS.request(TARGET)
    genuine = str(request.header(SIGNATURE))
    others = [
        genuine[:place] + character + genuine[place + 1 :]
        for place in range(len(genuine))
        for character in f"{string.ascii_letters}{string.digits}+/="
        if character != genuine[place]
    ]

    assert 28 * 64 == len(others)
    assert [] == [each for each in others if refusal(403) != send(request.with_header(SIGNATURE, each))]
    assert [] == aws_wire.entries


@pytest.mark.parametrize(
    "each", [SMS, BY_NAME["status"], BY_NAME["call"], BY_NAME["Event Streams"]], ids=lambda e: e.name
)
@pytest.mark.parametrize("signature", [None, "", "x"], ids=["none", "empty", "wrong"])
def test_a_stranger_cannot_keep_an_event_out(
    send: Send, aws_wire: AwsWire, each: Webhook, signature: str | None
) -> None:
    """A stranger who guesses a webhook in advance cannot have its reading stored: the genuine webhook is published."""
    request = each.request(TARGET)
    forged = without(request, SIGNATURE) if signature is None else request.with_header(SIGNATURE, signature)
    refused = [send(forged) for _ in range(20)]

    assert [refusal(403)] * 20 == refused
    assert ({}, 0) == (aws_wire.deliveries, aws_wire.count("PutItem"))
    assert ACCEPTED == send(request)
    assert [None] * len(details(aws_wire)) == [detail.get("deduplication") for detail in details(aws_wire)] != []


# Readings of a signed text

READINGS: dict[str, Callable[[Request], Request]] = {
    "another cut": lambda form: cut(form, "Body=Hi", "BodyH=i"),
    "another account": lambda form: cut(form, "AccountSid=AC", "Account=SidAC"),
}


def form_of(request: Request) -> dict[str, list[str]]:
    """Return the fields of a request's form."""
    return {name: [value] for name, value in request.fields}


def other_reading(name: str) -> tuple[Request, Request]:
    """Return a genuine request, and another reading of its signed text."""
    genuine = SMS.request(TARGET)
    if name == "as a GET":
        genuine = replace(SMS, method="GET").request(TARGET)
        return genuine, replace(genuine, method="POST").with_header("content-type", FORM)
    if name == "one parameter":
        text = signed_text("", form_of(genuine))
        return genuine, replace(genuine, body=f"{text[0]}={quote_plus(text[1:])}".encode())
    return genuine, READINGS[name](genuine)


@pytest.mark.parametrize("name", ["another cut", "another account", "one parameter", "as a GET"])
def test_the_first_reading_of_a_text_stands(send: Send, aws_wire: AwsWire, name: str, log: Log) -> None:
    """After the genuine request, another reading of its text is refused, and the genuine one is accepted again."""
    genuine, other = other_reading(name)

    assert [ACCEPTED, refusal(403), ACCEPTED, refusal(403)] == [send(each) for each in (genuine, other, genuine, other)]
    assert 1 == len(aws_wire.entries)
    assert "the signed text was read in another way before" in log()[1]["reason"]


@pytest.mark.parametrize("name", ["another cut", "another account", "one parameter", "as a GET"])
def test_one_reading_is_published_whichever_comes_first(send: Send, aws_wire: AwsWire, name: str) -> None:
    """If another reading of its text came first, the genuine request is refused, so that only one is published."""
    genuine, other = other_reading(name)

    assert [ACCEPTED, refusal(403)] == [send(other), send(genuine)]
    assert 1 == len(aws_wire.entries)


def test_a_reading_is_forgotten_after_30_days(send: Send, aws_wire: AwsWire) -> None:
    """A reading expires after 30 days, even if its item is still there: DynamoDB deletes expired items days later."""
    genuine, other = other_reading("another cut")
    send(genuine)
    (item,) = (item for key, item in aws_wire.deliveries.items() if key.startswith("text:"))
    assert 30 * 24 * 3600 - 5 < int(item["expires_at"]["N"]) - time.time() <= 30 * 24 * 3600
    item["expires_at"] = {"N": str(int(time.time()) - 1)}

    assert ACCEPTED == send(other)


@pytest.mark.usefixtures("delays")
def test_the_answer_of_the_memory_may_be_lost(send: Send, aws_wire: AwsWire) -> None:
    """If the answer to the write of a reading is lost, the retry writes the same reading, and the event has no mark."""
    aws_wire.failures["PutItem"] = [LOST]

    assert ACCEPTED == send(SMS)
    assert [None] == [detail.get("deduplication") for detail in details(aws_wire)]


def test_the_memory_is_asked_before_anything_is_written(send: Send, aws_wire: AwsWire, record: SendRecord) -> None:
    """The reading is checked before any other write. The check is one write, which contains only hashes."""
    send(about(record.id))
    called, first = next(call for call in aws_wire.calls if call[0] in {"GetItem", "PutItem", "TransactWriteItems"})

    assert "PutItem" == called
    assert first["Item"].keys() == {"id", "reading", "expires_at"}
    assert first["Item"]["id"]["S"].startswith("text:")
    assert MESSAGE_SID not in json.dumps(first)


@pytest.mark.usefixtures("delays")
def test_without_the_memory_the_event_is_marked_and_the_ledger_left_alone(
    send: Send, aws_wire: AwsWire, record: SendRecord
) -> None:
    """If the reading cannot be checked, the event is marked and the ledger unchanged: it may not be the first one."""
    aws_wire.failures["PutItem"] = [(500, "InternalServerError")] * 2

    assert ACCEPTED == send(about(record.id))
    assert [("unavailable", None)] == [
        (each.get("deduplication"), each.get("idempotency_key")) for each in details(aws_wire)
    ]
    assert (record.state, 2) == (state(aws_wire), aws_wire.count("PutItem"))


@pytest.mark.usefixtures("delays")
def test_the_mark_outlives_the_buffer(send: Send, aws_wire: AwsWire) -> None:
    """An event keeps its mark in the buffer, because it was not checked against earlier readings either."""
    aws_wire.failures |= {"PutItem": [(500, "InternalServerError")] * 2, "PutEvents": [AWAY] * 2}

    assert ACCEPTED == send(SMS)
    batch = buffered(aws_wire)
    aws_wire.calls.clear()
    assert {"batchItemFailures": []} == send(batch)
    assert ["unavailable"] == [detail["deduplication"] for detail in details(aws_wire)]


def test_a_text_without_a_sid_is_published_in_each_reading(send: Send, aws_wire: AwsWire) -> None:
    """Two readings of a text without a SID are both published, the second with a mark, because both may be genuine."""
    base = SMS.request(TARGET)
    first, second = (signed(posted(base, [pair]), TARGET) for pair in (("a", "bc"), ("ab", "c")))

    assert [ACCEPTED] * 4 == [send(each) for each in (first, second, first, second)]
    assert [({"a": "bc"}, None), ({"ab": "c"}, "ambiguous")] == [
        (detail["parameters"], detail.get("reading")) for detail in details(aws_wire)
    ]


def test_an_ambiguous_reading_writes_nothing_to_the_ledger(send: Send, aws_wire: AwsWire, record: SendRecord) -> None:
    """An ambiguous reading does not change the ledger. A SID counts only in the signed text after the URL's path."""
    secret(aws_wire, MESSAGE_SID, auth_token=AUTH_TOKEN)
    base = replace(SMS.request(TARGET), path=f"/webhook/{MESSAGE_SID}", query=f"send={record.id}")
    for pair in (("a", "bc"), ("ab", "c")):
        send(signed(posted(base, [pair]), TARGET))

    assert [None, "ambiguous"] == [detail.get("reading") for detail in details(aws_wire)]
    assert record.state == state(aws_wire)


# Refusals that only a mistake or an attack explains


def count(capsys: pytest.CaptureFixture[str]) -> dict[str, list[float]]:
    """Return the metrics that were printed since the last call."""
    return metrics(capsys.readouterr().out)


def test_a_right_secret_with_another_url_is_counted(send: Send, capsys: pytest.CaptureFixture[str]) -> None:
    """A valid signature for another URL is counted, because a setting is wrong. A stranger cannot cause this.

    The wrong setting is WebhookBaseUrl or the URL at Twilio.
    """
    elsewhere = SMS.request(TARGET._replace(base="https://other.example"))
    send(replace(elsewhere, host="hook.example").with_header("x-forwarded-host", "other.example"))

    assert {"WebhooksRefused": [1], "WebhookUrlMismatch": [1]} == count(capsys)


def test_no_stranger_makes_an_alarm_of_a_default_that_is_not_there(
    send: Send, aws_wire: AwsWire, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing default connection is not counted: a stack need not have one, and anybody can post to `/webhook`."""
    aws_wire.secrets.clear()
    send(SMS)

    assert {"WebhooksRefused": [1]} == count(capsys)


def test_a_malformed_secret_is_counted(send: Send, aws_wire: AwsWire, capsys: pytest.CaptureFixture[str]) -> None:
    """A malformed secret is counted, because Twilio's webhooks are refused until somebody fixes it."""
    aws_wire.secrets["twilio/default"] = "{}"
    send(SMS)

    assert {"WebhooksRefused": [1], "SecretsMalformed": [1]} == count(capsys)


def test_a_missing_secret_is_counted(
    send: Send, aws_wire: AwsWire, log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    """A connection without a signing secret is counted, and the log says which secret to store."""
    aws_wire.secrets["twilio/default"] = json.dumps({**API_KEY, "auth_token": None})
    send(SMS)

    assert {"WebhooksRefused": [1], "WebhookSecretMissing": [1]} == count(capsys)
    assert "neither auth_token nor shared_keys" in log()[0]["reason"]


# Token rotation


@pytest.mark.parametrize("knows_the_old", [True, False], ids=["warm", "cold"])
def test_both_tokens_sign_while_one_is_replaced(
    send: Send,
    aws_wire: AwsWire,
    log: Log,
    knows_the_old: bool,  # noqa: FBT001 a table
) -> None:
    """During a rotation, the new token is valid at once, and the old one for an hour. No log line has a token."""
    if knows_the_old:
        send(BY_NAME["call"])
    secret(aws_wire, "default", auth_token=OTHER_TOKEN)
    aws_wire.previous["twilio/default"] = json.dumps(API_KEY)
    aws_wire.secret_age = 60
    third = "3" * 32

    assert ACCEPTED == send(SMS.request(TARGET._replace(auth_token=OTHER_TOKEN)))
    assert ACCEPTED == send(BY_NAME["status"].request(TARGET))
    assert refusal(403) == send(BY_NAME["MMS"].request(TARGET._replace(auth_token=third)))
    for token in (AUTH_TOKEN, OTHER_TOKEN, third):
        assert token not in json.dumps(log())


def test_an_old_token_is_not_good_for_ever(send: Send, aws_wire: AwsWire) -> None:
    """An old token expires after an hour, because it may have been replaced after a leak."""
    secret(aws_wire, "default", auth_token=OTHER_TOKEN)
    aws_wire.previous["twilio/default"] = json.dumps(API_KEY)
    aws_wire.secret_age = 3601

    assert refusal(403) == send(SMS)


# Callbacks that prove a send with a key


@pytest.fixture
def record(aws_wire: AwsWire) -> SendRecord:
    """Write the record of a key whose message is being sent, and return it."""
    written = begin_send()
    aws_wire.calls.clear()
    return written


def about(record_id: str, name: str = "status") -> Webhook:
    """Return a webhook whose URL has the id of a key."""
    return replace(BY_NAME[name], query=f"send={record_id}")


def state(wire: AwsWire) -> str:
    """Return the state of the only record in the ledger."""
    (item,) = wire.items.values()
    return str(item["state"]["S"])


@pytest.mark.parametrize("was_lost", [False, True], ids=["sending", "unknown"])
def test_a_callback_proves_that_a_message_was_sent(
    send: Send,
    aws_wire: AwsWire,
    record: SendRecord,
    was_lost: bool,  # noqa: FBT001 a table
) -> None:
    """A callback proves that a message was sent: Twilio calls only if it has it, and the signature covers the query."""
    if was_lost:
        IdempotencyStore("ledger").write(OutcomeLost(record.nonce), record)

    assert ACCEPTED == send(about(record.id))
    assert "sent" == state(aws_wire)
    assert "order-7" == details(aws_wire)[0]["idempotency_key"]
    assert "unsettled" in aws_wire.items[record.id]  # it still has to be reported


def test_a_callback_never_goes_back(send: Send, aws_wire: AwsWire, record: SendRecord) -> None:
    """A callback does not change an outcome that the ledger already has."""
    IdempotencyStore("ledger").write(Accepted({"sid": MESSAGE_SID}), record)
    aws_wire.calls.clear()

    assert ACCEPTED == send(about(record.id))
    assert ["deliveries"] * 3 == [body["TableName"] for called, body in aws_wire.calls if called == "PutItem"]
    assert "order-7" == details(aws_wire)[0]["idempotency_key"]


@pytest.mark.parametrize("record_id", ["0" * 64, "x", "", "%00"])
def test_a_callback_of_no_key_is_an_event_all_the_same(
    send: Send, aws_wire: AwsWire, record: SendRecord, record_id: str
) -> None:
    """A callback with an unknown id is published, and changes nothing in the ledger."""
    assert ACCEPTED == send(about(record_id))
    assert "idempotency_key" not in details(aws_wire)[0]
    assert record.state == state(aws_wire)


def test_an_inbound_message_proves_nothing(send: Send, aws_wire: AwsWire, record: SendRecord) -> None:
    """An inbound message with a key's id proves nothing, because it is not the message that was sent."""
    assert ACCEPTED == send(about(record.id, "plain"))
    assert "idempotency_key" not in details(aws_wire)[0]
    assert record.state == state(aws_wire)


def test_another_connection_proves_nothing(send: Send, aws_wire: AwsWire, record: SendRecord) -> None:
    """A callback of one connection cannot prove a key of another connection."""
    aws_wire.items[record.id]["connection"] = {"S": "other"}

    assert ACCEPTED == send(about(record.id))
    assert "idempotency_key" not in details(aws_wire)[0]
    assert record.state == state(aws_wire)


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("operation", ["GetItem", "PutItem"])
def test_without_the_ledger_the_event_goes_out(
    send: Send, aws_wire: AwsWire, record: SendRecord, operation: str
) -> None:
    """If the ledger is unavailable, the event is still published. Later callbacks and `resolve` settle the key."""
    aws_wire.failures[operation] = [(500, "InternalServerError")] * 2

    assert ACCEPTED == send(about(record.id))
    assert ["Message Status Changed"] == [entry["DetailType"] for entry in aws_wire.entries]


@pytest.mark.parametrize(("seconds", "asked"), [(27.9, 0), (29, 1)])
def test_without_time_the_ledger_is_not_asked(
    aws_wire: AwsWire, record: SendRecord, seconds: float, asked: int
) -> None:
    """With too little time left, the ledger is not read, because the event is more important.

    Later callbacks and `resolve` settle the key.
    """
    answer = webhook.handler(event_2(about(record.id).request(TARGET)), Context(seconds))

    assert (ACCEPTED, asked, 1) == (answer, aws_wire.count("GetItem"), len(aws_wire.entries))


def test_other_deliveries_do_not_ask_the_ledger(send: Send, aws_wire: AwsWire) -> None:
    """The ledger is read only for a URL with a `send` id, and not for other deliveries."""
    send(BY_NAME["status"])

    assert 0 == aws_wire.count("GetItem")
