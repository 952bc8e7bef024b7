"""The webhook publishes what Twilio signed, in the shapes it promises, and answers so that Twilio knows what to do."""

import hashlib
import json
import string
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import webhook
from twilio_connector import client, connection
from twilio_connector.connection import Connections
from twilio_connector.errors import InternalError
from twilio_connector.ledger import Accepted, Claim, Ledger, Lost, Record, new_claim

from tests.aws_wire import LOST, PASS, AwsWire
from tests.conftest import Context, LoadEvent
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
from tests.unit.conftest import ACCOUNT_SID, API_KEY, AUTH_TOKEN, Log

BASE = "https://hook.example"
TARGET = Target(BASE, ACCOUNT_SID, AUTH_TOKEN)
OTHER_TOKEN = "2" * 32
SUBACCOUNT_SID = "AC" + "5" * 32
BY_NAME = {each.name: each for each in GENUINE}
SMS = BY_NAME["plain"]
AWAY = (400, "AccessDeniedException")
ACCEPTED = {"statusCode": 200, "headers": {"Content-Type": "text/xml"}, "body": "<Response/>"}

type Answer = dict[str, Any]
type Send = Callable[..., Answer]


def refusal(status: int) -> Answer:
    """Return what anyone gets whose request is not accepted."""
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
    """Return what hands a request or an event to the function in a new container."""
    assert aws_wire.calls == []

    def send(sent: Request | Webhook | Any) -> Answer:
        if isinstance(sent, Webhook):
            sent = sent.request(TARGET)
        return webhook.handler(event_2(sent) if isinstance(sent, Request) else sent, context)

    return send


def details(wire: AwsWire) -> list[dict[str, Any]]:
    """Return the details of what was published."""
    return [json.loads(entry["Detail"]) for entry in wire.entries]


def buffered(wire: AwsWire) -> dict[str, Any]:
    """Return the batch that SQS makes of what was put in the buffer."""
    bodies = [each["MessageBody"] for each in wire.sent if each["QueueUrl"].endswith("/buffer")]
    return {
        "Records": [
            {"messageId": str(number), "eventSource": "aws:sqs", "body": body} for number, body in enumerate(bodies)
        ]
    }


def form(name: str = "form", *, query: str = "", **fields: str) -> Webhook:
    """Return a webhook with these fields and the account."""
    return Webhook(name=name, fields=fields, query=query)


def secret(wire: AwsWire, name: str, **fields: Any) -> None:
    """Store a connection."""
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
    """On the stack's bus, with Twilio as the source."""
    assert ACCEPTED == send(each)
    assert [("bus", "twilio", detail_type)] == [
        (entry["EventBusName"], entry["Source"], entry["DetailType"]) for entry in aws_wire.entries
    ]


@pytest.mark.parametrize("name", ["webhook", "webhook_status", "webhook_event_streams"])
def test_the_events_in_files_are_true(send: Send, aws_wire: AwsWire, event: LoadEvent, name: str) -> None:
    """They carry signatures that hold."""
    assert (ACCEPTED, 1) == (send(event(name)), len(aws_wire.entries))


def test_a_message_is_published_whole(send: Send, aws_wire: AwsWire) -> None:
    """With all that Twilio sent, and the message in the words of Twilio's API."""
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
    """With its rank, whether another may follow, and Twilio's error code as a number."""
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
    """Callbacks may overtake each other; a consumer ignores the lower rank."""
    send(form(**{**BY_NAME["status"].fields, "MessageStatus": status}))
    (message,) = (detail["message"] for detail in details(aws_wire))

    assert (status, rank, terminal) == (message["status"], message["status_rank"], message["terminal"])


def test_an_opt_out_says_which(send: Send, aws_wire: AwsWire) -> None:
    """STOP, START or HELP."""
    send(BY_NAME["opt-out"])

    assert ["STOP"] == [detail["message"]["opt_out_type"] for detail in details(aws_wire)]


def test_a_name_that_repeats_is_a_list(send: Send, aws_wire: AwsWire) -> None:
    """Of what was signed: each value once."""
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
    """Whatever the headers say, which are not signed; another one has another `deduplication_id`."""
    answers = [send(each.request(TARGET).with_header("i-twilio-idempotency-token", str(n))) for n in range(20)]
    first, *more = details(aws_wire)

    assert ([ACCEPTED] * 20, []) == (answers, more)
    assert ACCEPTED == send(other)
    assert 2 == len({first["deduplication_id"], details(aws_wire)[-1]["deduplication_id"]}) == len(details(aws_wire))


def test_a_message_is_the_same_though_something_else_is_told_of_it(send: Send, aws_wire: AwsWire) -> None:
    """Twilio's own advice: a message is known by its SID and status."""
    send(BY_NAME["status"])
    send(replace(BY_NAME["status"], fields=BY_NAME["status"].fields | {"RawDlrDoneDate": "2611231201"}, query="x=1"))

    assert 1 == len(aws_wire.entries)


def test_each_account_has_its_own_messages(send: Send, aws_wire: AwsWire) -> None:
    """The same SID in another account is another message."""
    secret(aws_wire, "default", auth_token=AUTH_TOKEN, subaccount_sids=[SUBACCOUNT_SID])
    send(SMS)
    send(SMS.request(TARGET._replace(account_sid=SUBACCOUNT_SID)))

    assert [ACCOUNT_SID, SUBACCOUNT_SID] == [detail["account_sid"] for detail in details(aws_wire)]


# JSON and Event Streams


def cloud_events(count: int, data: str = "") -> Webhook:
    """Return a delivery of Event Streams."""
    events = [{"specversion": "1.0", "id": f"EZ{number:032}", "data": data} for number in range(count)]
    return Webhook(name="events", fields={}, json=json.dumps(events).encode())


def test_each_cloud_event_is_an_event(send: Send, aws_wire: AwsWire) -> None:
    """With the id that Twilio gave it."""
    each = cloud_events(2)
    send(each)

    assert ["Event Stream Event"] * 2 == [entry["DetailType"] for entry in aws_wire.entries]
    assert json.loads(each.json or b"") == [detail["parameters"] for detail in details(aws_wire)]
    assert [f"EZ{number:032}" for number in range(2)] == [detail["deduplication_id"] for detail in details(aws_wire)]


def test_many_events_are_put_ten_at_a_time(send: Send, aws_wire: AwsWire) -> None:
    """The bus takes no more."""
    assert ACCEPTED == send(cloud_events(25))
    assert [10, 10, 5] == [len(body["Entries"]) for called, body in aws_wire.calls if called == "PutEvents"]


def test_large_events_are_put_256_kb_at_a_time(send: Send, aws_wire: AwsWire) -> None:
    """Sources, types and details together."""
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
    """Return what a sink sends when somebody tests it."""
    event = {
        "specversion": "1.0",
        "type": "com.twilio.eventstreams.test-event",
        "source": "Sink",
        "id": ACCOUNT_SID,
        "data": {"test_id": test_id},
    }
    return Webhook(name="sink test", fields={}, json=json.dumps([event | more]).encode())


def test_each_test_of_a_sink_is_an_event(send: Send, aws_wire: AwsWire) -> None:
    """Their id is the account's, and so the same every time; `Validate` wants the `test_id` of each."""
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
    """All others are known by their own."""
    send(other)

    assert [ACCOUNT_SID] == [detail["deduplication_id"] for detail in details(aws_wire)]


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b"null", b'"x"', b"1", '{"a":"é"}'.encode(), b'[{"specversion":"1.0"}]']
)
def test_other_json_is_published_as_it_is(send: Send, aws_wire: AwsWire, body: bytes) -> None:
    """Whatever it may be about."""
    assert ACCEPTED == send(Webhook(name="json", fields={}, json=body))
    assert [("Webhook Received", json.loads(body), ACCOUNT_SID)] == [
        (entry["DetailType"], detail["parameters"], detail["account_sid"])
        for entry, detail in zip(aws_wire.entries, details(aws_wire), strict=True)
    ]


@pytest.mark.parametrize("body", [b"{", b"\xff", b'"\\ud800"', b'{"a":NaN}', b"[" * 100_000, b"9" * 5000, b" "])
def test_what_is_no_json_is_refused(send: Send, aws_wire: AwsWire, body: bytes) -> None:
    """Though it is signed."""
    assert refusal(403) == send(Webhook(name="json", fields={}, json=body))
    assert [] == aws_wire.entries


# The bus and Secrets Manager


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("refused", [1, 2, 5])
def test_an_entry_that_the_bus_refuses_is_not_forgotten(send: Send, aws_wire: AwsWire, refused: int) -> None:
    """HTTP 200 with FailedEntryCount: it goes to the buffer."""
    aws_wire.refused = [refused, refused]

    assert ACCEPTED == send(cloud_events(5))
    assert refused == len(aws_wire.sent)


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize(
    "code", [(400, "ThrottlingException"), (500, "InternalFailure"), (400, "AccessDeniedException"), LOST]
)
def test_a_bus_that_fails_is_nothing_to_twilio(send: Send, aws_wire: AwsWire, code: tuple[int, str]) -> None:
    """The event is in the buffer, from which the same function publishes it."""
    aws_wire.failures["PutEvents"] = [code] * 2

    assert (ACCEPTED, 1) == (send(SMS), len(aws_wire.sent))
    batch = buffered(aws_wire)
    aws_wire.calls.clear()
    assert {"batchItemFailures": []} == send(batch)
    assert [f"{ACCOUNT_SID}:{MESSAGE_SID}:received"] == [each["deduplication_id"] for each in details(aws_wire)]


@pytest.mark.usefixtures("delays")
def test_the_second_ten_may_fail_alone(send: Send, aws_wire: AwsWire) -> None:
    """Then they alone are put again, and kept."""
    aws_wire.failures["PutEvents"] = [PASS, AWAY, AWAY]

    assert ACCEPTED == send(cloud_events(12))
    assert [f"EZ{number:032}" for number in (10, 11)] == sorted(
        json.loads(each["MessageBody"])["detail"]["deduplication_id"] for each in aws_wire.sent
    )


@pytest.mark.usefixtures("delays")
def test_bus_and_buffer_away_is_503(send: Send, aws_wire: AwsWire) -> None:
    """Twilio is told that it is not done; what it repeats later is published."""
    aws_wire.failures |= {"PutEvents": [AWAY] * 2, "SendMessage": [AWAY]}

    assert refusal(503) == send(SMS)
    aws_wire.deliveries.clear()  # as when its lease has ended
    aws_wire.calls.clear()
    assert (ACCEPTED, 1) == (send(SMS), len(aws_wire.entries))


@pytest.mark.parametrize("code", [(400, "ThrottlingException"), (500, "InternalServiceError"), (503, "")])
def test_secrets_manager_away_is_503(send: Send, aws_wire: AwsWire, code: tuple[int, str]) -> None:
    """Nobody can tell then whether it is Twilio's; nothing is published."""
    aws_wire.failures["GetSecretValue"] = [code] * 2

    assert refusal(503) == send(SMS)
    assert [] == aws_wire.entries


def test_a_token_is_read_once(send: Send, aws_wire: AwsWire) -> None:
    """However many requests come, and however badly signed."""
    for _ in range(10):
        send(SMS)
        send(SMS.request(TARGET).with_header(SIGNATURE, "x"))

    assert 2 == aws_wire.count("GetSecretValue")  # once more at the first bad signature: it may be new


def test_strangers_cannot_run_up_look_ups(send: Send, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many in a minute nobody knows whether there is such a connection; the default's goes on."""
    monkeypatch.setattr(connection, "_STRANGERS_PER_MINUTE", 20)
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
        json.dumps({"account_sid": SUBACCOUNT_SID, "auth_token": AUTH_TOKEN}),
    ],
    ids=[
        "unknown", "binary", "text", "list", "no token", "malformed", "empty token", "key alone", "other token",
        "other account",
    ],
)  # fmt: skip
def test_a_connection_that_cannot_tell_refuses(send: Send, aws_wire: AwsWire, connection: Any) -> None:
    """Validation is never skipped."""
    aws_wire.secrets = {} if connection is None else {"twilio/default": connection}

    assert refusal(403) == send(SMS)
    assert [] == aws_wire.entries


def test_no_permission_to_read_the_secret_refuses(send: Send, aws_wire: AwsWire) -> None:
    """Secrets Manager does not say whether there is one."""
    aws_wire.failures["GetSecretValue"] = [(400, "AccessDeniedException")]

    assert refusal(403) == send(SMS)


@pytest.mark.parametrize("token", [AUTH_TOKEN, OTHER_TOKEN], ids=["primary", "secondary"])
def test_either_token_signs(send: Send, aws_wire: AwsWire, token: str) -> None:
    """While tokens are rotated."""
    secret(aws_wire, "default", auth_token=AUTH_TOKEN, secondary_auth_token=OTHER_TOKEN)

    assert ACCEPTED == send(SMS.request(TARGET._replace(auth_token=token)))


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize(
    ("listed", "answer"), [([SUBACCOUNT_SID], ACCEPTED), ([], refusal(403))], ids=["listed", "not listed"]
)
def test_a_subaccount_is_listed(send: Send, aws_wire: AwsWire, method: str, listed: list[str], answer: Answer) -> None:
    """Others are refused, though the token is right."""
    secret(aws_wire, "default", auth_token=AUTH_TOKEN, subaccount_sids=listed)

    assert answer == send(replace(SMS, method=method).request(TARGET._replace(account_sid=SUBACCOUNT_SID)))
    assert [SUBACCOUNT_SID for _ in listed] == [detail["account_sid"] for detail in details(aws_wire)]


def test_the_path_names_the_connection(send: Send, aws_wire: AwsWire) -> None:
    """It has its own token, which is good for its own path only."""
    secret(aws_wire, "two", auth_token=OTHER_TOKEN)
    target = TARGET._replace(auth_token=OTHER_TOKEN)
    request = replace(SMS.request(target), path="/webhook/two")

    assert ACCEPTED == send(signed(request, target))
    assert refusal(403) == send(signed(request, TARGET))
    assert refusal(403) == send(signed(replace(request, path="/webhook"), target))
    assert [("two", f"{BASE}/webhook/two")] == [(detail["connection"], detail["url"]) for detail in details(aws_wire)]


@pytest.mark.parametrize("name", ["", "-x", "x/y", "x y", "x" * 65, "é", "..", "default/", "%2e"])
def test_what_cannot_be_a_connection_is_not_looked_up(send: Send, aws_wire: AwsWire, name: str) -> None:
    """Nor believed."""
    request = replace(SMS.request(TARGET), path=f"/webhook/{name}")

    assert (refusal(403), 0) == (send(signed(request, TARGET)), aws_wire.count("GetSecretValue"))


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
    """In bytes, after Base64."""
    request = replace(SMS.request(TARGET), body=b"x" * size).with_header("content-type", content_type)

    assert refusal(status) == send(event_2(request))
    assert refusal(status) == send(event_2(request, binary=False))


def test_too_large_a_body_is_not_hashed(send: Send, aws_wire: AwsWire) -> None:
    """Not even the token is read for it."""
    request = replace(SMS.request(TARGET), body=b"x" * 200_000)

    assert (refusal(413), 0) == (send(request), aws_wire.count("GetSecretValue"))


def test_a_form_of_128_kb_is_accepted(send: Send) -> None:
    """To the byte."""
    rest = len(form(Text="").request(TARGET).body)
    each = form(Text="x" * (128 * 1024 - rest))

    assert 128 * 1024 == len(each.request(TARGET).body)
    assert ACCEPTED == send(each)


@pytest.mark.parametrize(("count", "answer"), [(500, ACCEPTED), (501, refusal(403))])
def test_a_form_has_at_most_500_fields(send: Send, count: int, answer: Answer) -> None:
    """With the account's."""
    assert answer == send(form(**{f"X{number}": "" for number in range(count - 1)}))


@pytest.mark.parametrize("method", ["HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "post ", "", "X"])
def test_only_get_and_post_are_twilios(send: Send, aws_wire: AwsWire, method: str) -> None:
    """No header makes one of another."""
    request = replace(SMS.request(TARGET).with_header("x-http-method-override", "POST"), method=method)

    assert (refusal(403), 0) == (send(request), aws_wire.count("GetSecretValue"))


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "multipart/form-data", "text/xml", "application/xml"])
def test_only_forms_and_json_are_twilios(send: Send, content_type: str | None) -> None:
    """By their content type."""
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
    """Then the API's own domain and prefix play no part."""
    monkeypatch.setenv("WEBHOOK_BASE_URL", base)
    request = replace(SMS, query=query).request(TARGET._replace(base=base))

    assert ACCEPTED == send(replace(request, host="api.example", path="/stage/webhook"))
    assert refusal(403) == send(replace(SMS, query=query).request(TARGET))
    assert [f"{base}/webhook"] == [detail["url"] for detail in details(aws_wire)]


@pytest.mark.parametrize("prefix", ["/prod", "/a/b", ""])
@pytest.mark.parametrize("make", [event_1, event_2], ids=["1.0", "2.0"])
def test_a_stage_is_part_of_the_url(send: Send, aws_wire: AwsWire, prefix: str, make: Callable[..., Any]) -> None:
    """As the request context tells it."""
    event = make(SMS.request(TARGET._replace(base=f"{BASE}{prefix}")))
    if make is event_1:
        event["path"] = "/webhook"  # without the stage

    assert ACCEPTED == send(event)
    assert [f"{BASE}{prefix}/webhook"] == [detail["url"] for detail in details(aws_wire)]


@pytest.mark.parametrize("name", ["host", "x-forwarded-host", "x-original-host", "forwarded", "x-forwarded-server"])
def test_no_header_tells_the_url(send: Send, aws_wire: AwsWire, name: str) -> None:
    """What was signed for another endpoint of the account is refused here; what was signed for this one is not."""
    spoofed = SMS.request(TARGET._replace(base="https://staging.example"))
    genuine = SMS.request(TARGET)

    assert refusal(403) == send(replace(spoofed, host="hook.example").with_header(name, "staging.example"))
    assert ACCEPTED == send(genuine.with_header(name, "staging.example").with_header("x-forwarded-proto", "http"))
    assert [f"{BASE}/webhook"] == [detail["url"] for detail in details(aws_wire)]


@pytest.mark.parametrize("space", ["+", "%20"])
@pytest.mark.parametrize("apostrophe", ["'", "%27"])
def test_payload_1_is_encoded_anew_in_four_ways(send: Send, space: str, apostrophe: str) -> None:
    """Each the same throughout: `+` or `%20`, `'` or `%27`."""
    safe = "'" if apostrophe == "'" else ""
    encode = quote_plus if space == "+" else quote
    pairs = [("AccountSid", ACCOUNT_SID), ("a b", "it's 100% &=+/é👍~"), ("c", ""), ("d", "x"), ("d", "y")]
    query = "&".join(f"{encode(name, safe)}={encode(value, safe)}" for name, value in pairs)
    request = Request(host="hook.example", path="/webhook", method="GET", query=query)

    assert ACCEPTED == send(event_1(signed(request, TARGET)))
    assert ACCEPTED == send(event_2(signed(request, TARGET)))


@pytest.mark.parametrize("query", ["a=b+c%20d", "a='%27", "flag", "a=%c3%a9", "a=(b)", "a=x&b=y&a=z"])
def test_other_spellings_need_payload_2(send: Send, query: str) -> None:
    """They are lost in payload 1.0."""
    request = signed(replace(SMS.request(TARGET), query=query), TARGET)

    assert (refusal(403), ACCEPTED) == (send(event_1(request)), send(event_2(request)))


# What the log and the metrics say


def metrics(output: str) -> dict[str, list[float]]:
    """Return the metrics in what was printed."""
    found: dict[str, list[float]] = {}
    for line in map(json.loads, output.splitlines()):
        (directive,) = line["_aws"]["CloudWatchMetrics"]
        assert "TwilioConnector" == directive["Namespace"]
        for metric in directive["Metrics"]:
            found[metric["Name"]] = line[metric["Name"]]
    return found


MARKS = {"Body": "MARKbody", "From": "+15550103333", "ProfileName": "MARKname"}


def test_an_accepted_webhook_is_counted_and_not_logged(
    send: Send, log: Callable[[], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor anything of it printed."""
    send(form(**{**SMS.fields, **MARKS}))
    output = capsys.readouterr()

    assert [] == log()
    assert {"WebhooksAccepted": [1], "EventsPublished": [1]} == metrics(output.out)
    assert "" == output.err


@pytest.mark.parametrize("fault", ["signature", "content", "connection", "shape", "size"])
def test_a_refused_webhook_is_counted_and_logged_without_its_data(
    send: Send, log: Callable[[], list[Any]], capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """One line says why."""
    request = (
        form(query="q=MARKquery", **{**SMS.fields, **MARKS}).request(TARGET).with_header("user-agent", "MARK\r\nagent")
    )
    send(
        {
            "signature": request.with_header(SIGNATURE, "MARKsignature"),
            "content": signed(posted(request, [*request.fields, ("To", "MARKto")]), TARGET),
            "connection": replace(request, path="/webhook/none"),
            "shape": event_2(request) | {"body": ["MARKbody"]},
            "size": replace(request, body=b"MARK" * 100_000),
        }[fault]
    )
    output = capsys.readouterr()
    (line,) = log()

    assert ("WARNING", "webhook refused", "webhook") == (line["level"], line["message"], line["function"])
    assert line["reason"]
    assert {"WebhooksRefused": [1]} == metrics(output.out)
    for mark in ("MARK", "5550103333", "agent", AUTH_TOKEN):
        assert mark not in json.dumps(line) + output.out + output.err


def test_a_webhook_that_is_lost_is_logged_as_an_error(
    send: Send, aws_wire: AwsWire, log: Callable[[], list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """With what AWS said."""
    aws_wire.refused = [1, 1]
    aws_wire.failures["SendMessage"] = [AWAY]
    send(cloud_events(3, "MARK"))
    buffer, line = log()

    assert ("ERROR", "the buffer took no event", AWAY[1]) == (buffer["level"], buffer["message"], buffer["code"])
    assert ("ERROR", "ServiceUnavailableError", "neither the event bus nor the buffer queue took 1 events") == (
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
    """Our own fault, not Twilio's, and the log names it."""
    monkeypatch.delenv(name)

    assert refusal(500) == send(SMS)
    assert [f"environment variable {name}"] == [line["message"].partition(":")[0] for line in log()]


def test_a_bug_is_500_and_logged_without_data(
    send: Send, aws_wire: AwsWire, log: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of Secrets Manager that nobody expects."""
    monkeypatch.setattr(aws_wire, "answer", lambda *_: (200, {"SecretString": json.dumps(API_KEY)}))

    assert refusal(500) == send(form(**{**SMS.fields, **MARKS}))
    (line,) = log()
    assert "unexpected exception" == line["message"]
    assert "MARK" not in json.dumps(line)


@pytest.mark.parametrize(
    "records", [[{"eventSource": "aws:sqs", "body": "MARK"}], [{"eventSource": "aws:sqs", "messageId": "MARK"}]]
)
def test_a_batch_that_is_none_raises(send: Send, log: Log, records: list[dict[str, Any]]) -> None:
    """Nobody could be told which records failed, so all of them come again."""
    with pytest.raises(InternalError):
        send({"Records": records})
    assert "MARK" not in json.dumps(log())


def test_containers_do_not_share_what_they_know(aws_wire: AwsWire, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one reads the token itself."""
    send(SMS)
    monkeypatch.setattr(client, "CONNECTIONS", Connections())
    aws_wire.secrets["twilio/default"] = json.dumps(API_KEY | {"auth_token": OTHER_TOKEN})

    assert refusal(403) == send(SMS)
    assert ACCEPTED == send(SMS.request(TARGET._replace(auth_token=OTHER_TOKEN)))


@pytest.mark.parametrize("name", ["bodySHA256", "bodysha256", "BODYSHA256"])
def test_a_hash_stands_there_once(send: Send, name: str) -> None:
    """Whatever the signature says of the second."""
    request = BY_NAME["JSON object"].request(TARGET)
    digest = hashlib.sha256(request.body).hexdigest()

    assert refusal(403) == send(signed(replace(request, query=f"{request.query}&{name}={digest}"), TARGET))


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_url_with_a_hash_is_that_of_a_json_body(send: Send, method: str) -> None:
    """Neither of a form nor of a GET."""
    assert refusal(403) == send(replace(SMS, method=method, query=f"bodySHA256={'0' * 64}"))


def test_a_hash_needs_no_query_of_its_own(send: Send) -> None:
    """`bodySHA256` may be the only parameter, or the last of several."""
    for query in ("", "x=1", "x=1&y="):
        request = Webhook(name="json", fields={}, json=b'{"a":1}', query=query).request(TARGET)

        assert hashlib.sha256(b'{"a":1}').hexdigest() in request.query
        assert ACCEPTED == send(request)


# Strangers


def without(request: Request, header: str) -> Request:
    """Return a request without a header."""
    return replace(request, headers=tuple(each for each in request.headers if each[0] != header))


def in_event(request: Request, **changes: Any) -> dict[str, Any]:
    """Return an event in which something is not as API Gateway writes it."""
    event = event_2(request)
    return event | {name: event[name] | value if isinstance(value, dict) else value for name, value in changes.items()}


def on_domain(request: Request, domain: Any) -> dict[str, Any]:
    """Return an event that says that the API has another domain."""
    event = event_2(request)
    return event | {"requestContext": event["requestContext"] | {"domainName": domain}}


def cut(request: Request, old: str, new: str) -> Request:
    """Return a form whose signed text is the same, and whose fields are others."""
    return replace(request, body=request.body.replace(old.encode(), new.encode()))


# What arrives of it is some number's, so that no two are the same.
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
    "account cut": lambda form, _, n: cut(form, "AccountSid=AC", "Account=SidAC").with_header("x-mark", n),
    "field cut": lambda form, _, n: cut(form, "Body=Hi", "BodyH=i").with_header("x-mark", n),
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
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One answer for all, no event, no note of one, no trace in the log, and one more look at the secret."""
    monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: 1000.0, time=time.time))
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
    """Not one of those in which one character is another, though Base64 reads some of them as the same bytes."""
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
    """Who knows what will be told has nothing written of it before."""
    request = each.request(TARGET)
    forged = without(request, SIGNATURE) if signature is None else request.with_header(SIGNATURE, signature)
    refused = [send(forged) for _ in range(20)]

    assert [refusal(403)] * 20 == refused
    assert ({}, 0) == (aws_wire.deliveries, aws_wire.count("PutItem"))
    assert ACCEPTED == send(request)
    assert [None] * len(details(aws_wire)) == [detail.get("deduplication") for detail in details(aws_wire)] != []


def test_what_is_refused_for_its_content_keeps_no_event_out(send: Send, aws_wire: AwsWire) -> None:
    """Though its signature holds: it may be cut out of the genuine one."""
    genuine = SMS.request(TARGET)
    send(cut(genuine, "Body=Hi", "BodyH=i"))

    assert {} == aws_wire.deliveries
    assert ACCEPTED == send(genuine)
    assert 1 == len(aws_wire.entries)


# A token that is rotated


@pytest.mark.parametrize("knows_the_old", [True, False], ids=["warm", "cold"])
def test_both_tokens_sign_while_one_is_replaced(
    send: Send,
    aws_wire: AwsWire,
    log: Log,
    knows_the_old: bool,  # noqa: FBT001 a table
) -> None:
    """The new one at once, the old one for an hour; one look at the secret finds out. No line tells any token."""
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
    """An hour after it was replaced it may be in anybody's hands."""
    secret(aws_wire, "default", auth_token=OTHER_TOKEN)
    aws_wire.previous["twilio/default"] = json.dumps(API_KEY)
    aws_wire.secret_age = 3601

    assert refusal(403) == send(SMS)


# Callbacks that prove a send with a key


@pytest.fixture
def record(aws_wire: AwsWire) -> Record:
    """Return the record of a key whose message is being sent."""
    claim = new_claim(
        idempotency_key="order-7",
        connection="default",
        caller="sqs",
        same="same",
        sms={"to": "+15005550006"},
        sought=None,
        lease_seconds=60,
    )
    written = Ledger("ledger").write(Claim(claim, resend=False))
    aws_wire.calls.clear()
    return written


def about(record_id: str, name: str = "status") -> Webhook:
    """Return a webhook whose URL has the id of a key."""
    return replace(BY_NAME[name], query=f"send={record_id}")


def state(wire: AwsWire) -> str:
    """Return what the ledger says."""
    (item,) = wire.items.values()
    return str(item["state"]["S"])


@pytest.mark.parametrize("was_lost", [False, True], ids=["sending", "unknown"])
def test_a_callback_proves_that_a_message_was_sent(
    send: Send,
    aws_wire: AwsWire,
    record: Record,
    was_lost: bool,  # noqa: FBT001 a table
) -> None:
    """Twilio calls only if it has the message, and the signature covers the query."""
    if was_lost:
        Ledger("ledger").write(Lost(record.nonce), record)

    assert ACCEPTED == send(about(record.id))
    assert "sent" == state(aws_wire)
    assert "order-7" == details(aws_wire)[0]["idempotency_key"]
    assert "unsettled" in aws_wire.items[record.id]  # somebody must still be told


def test_a_callback_never_goes_back(send: Send, aws_wire: AwsWire, record: Record) -> None:
    """Nor does it write what is known."""
    Ledger("ledger").write(Accepted({"sid": MESSAGE_SID}), record)
    aws_wire.calls.clear()

    assert ACCEPTED == send(about(record.id))
    assert ["deliveries"] * 2 == [body["TableName"] for called, body in aws_wire.calls if called == "PutItem"]
    assert "order-7" == details(aws_wire)[0]["idempotency_key"]


@pytest.mark.parametrize("record_id", ["0" * 64, "x", "", "%00"])
def test_a_callback_of_no_key_is_an_event_all_the_same(
    send: Send, aws_wire: AwsWire, record: Record, record_id: str
) -> None:
    """It says nothing of any key."""
    assert ACCEPTED == send(about(record_id))
    assert "idempotency_key" not in details(aws_wire)[0]
    assert record.state == state(aws_wire)


def test_an_inbound_message_proves_nothing(send: Send, aws_wire: AwsWire, record: Record) -> None:
    """It is not the one that was sent."""
    assert ACCEPTED == send(about(record.id, "plain"))
    assert "idempotency_key" not in details(aws_wire)[0]
    assert record.state == state(aws_wire)


def test_another_connection_proves_nothing(send: Send, aws_wire: AwsWire, record: Record) -> None:
    """Each vouches for its own keys."""
    aws_wire.items[record.id]["connection"] = {"S": "other"}

    assert ACCEPTED == send(about(record.id))
    assert "idempotency_key" not in details(aws_wire)[0]
    assert record.state == state(aws_wire)


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("operation", ["GetItem", "PutItem"])
def test_without_the_ledger_the_event_goes_out(send: Send, aws_wire: AwsWire, record: Record, operation: str) -> None:
    """There are more callbacks, and `resolve`."""
    aws_wire.failures[operation] = [(500, "InternalServerError")] * 2

    assert ACCEPTED == send(about(record.id))
    assert ["Message Status Changed"] == [entry["DetailType"] for entry in aws_wire.entries]


@pytest.mark.parametrize(("seconds", "asked"), [(27.9, 0), (29, 1)])
def test_without_time_the_ledger_is_not_asked(aws_wire: AwsWire, record: Record, seconds: float, asked: int) -> None:
    """The event comes first; there are more callbacks, and `resolve`."""
    answer = webhook.handler(event_2(about(record.id).request(TARGET)), Context(seconds))

    assert (ACCEPTED, asked, 1) == (answer, aws_wire.count("GetItem"), len(aws_wire.entries))


def test_other_deliveries_do_not_ask_the_ledger(send: Send, aws_wire: AwsWire) -> None:
    """Only a URL with an id does."""
    send(BY_NAME["status"])

    assert 0 == aws_wire.count("GetItem")
