"""Does one id find the whole story of a send, and is the line of a success short, and silent about what was sent?"""

import json
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import get_sms
import list_sms
import poll_messages
import pytest
import raw_request
import resolve
import rotate_connection
import send_sms
import webhook
from twilio_connector import telemetry
from twilio_connector.errors import ConnectorError, OutcomeUnknownError
from twilio_connector.messaging.idempotency import record_id
from twilio_connector.publishing.event import Event, event_key
from twilio_connector.publishing.publisher import BufferedEvent
from twilio_connector.rotation import secret as rotation_secret

from tests.aws_wire import AwsWire, RotatedSecret
from tests.conftest import REQUEST_ID, ROOT, Context, LoadEvent
from tests.faults import FaultServer, faults
from tests.mutants import GENUINE, Target, event_2
from tests.readme import rows, section
from tests.unit.conftest import ACCOUNT_SID, API_KEY, AUTH_TOKEN, Log

TO = "+15005550006"
SID = f"SM{1:032x}"
TWILIO_ID = "RQ" + "0" * 32
KEY = "order-4711/shipped"
TEXT = "Your parcel is on its way."
SMS = {"to": TO, "message": TEXT, "idempotency_key": KEY}
SEND_ID = record_id("default", KEY)
LONG_NAME = "x" * 64
TRACE = "1-5759e988-bd862e3fe1be46a994272793"
SAMPLED = f"Root={TRACE};Parent=53995c3f42cd8ad8;Sampled=1;Lineage=1:a:0"
TARGET = Target("https://hook.example", ACCOUNT_SID, AUTH_TOKEN)
BY_NAME = {each.name: each for each in GENUINE}
STATUS = BY_NAME["status"]
SEND_ARN = "arn:aws:sqs:us-east-1:123456789012:send"

pytestmark = pytest.mark.usefixtures("twilio")


def record(body: Any, message_id: str | None = None, *, arn: str = SEND_ARN, group: str = "") -> dict[str, Any]:
    """Return a record as SQS delivers it."""
    return {
        "messageId": message_id or str(uuid.uuid4()),
        "receiptHandle": "handle",
        "body": body if isinstance(body, str) else json.dumps(body),
        "attributes": {"ApproximateReceiveCount": "1"} | ({"MessageGroupId": group} if group else {}),
        "eventSource": "aws:sqs",
        "eventSourceARN": arn,
    }


def deliver(*records: dict[str, Any]) -> list[str]:
    """Hand records of the send queue over, and return the ids that come again."""
    answer = send_sms.handler({"Records": list(records)}, Context())
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def call_back() -> None:
    """Let Twilio tell the webhook the status of the keyed message."""
    request = replace(STATUS, query=f"send={record_id(os.environ['DEFAULT_CONNECTION'], KEY)}").request(TARGET)
    assert 200 == webhook.handler(event_2(request), Context())["statusCode"]


def leave_unknown(twilio: FaultServer) -> None:
    """Let the outcome of the keyed send be unknown."""
    twilio.script(faults.status(500), faults.OK)
    with pytest.raises(OutcomeUnknownError):
        send_sms.handler(SMS, Context())


# A line of a success


@pytest.mark.parametrize("caller", ["direct", "api", "sqs"])
def test_a_send_is_one_line(event: LoadEvent, log: Log, caller: str) -> None:
    """It has all ids by which the send is known anywhere, and nothing that CloudWatch has anyway."""
    ids = {}
    if caller == "api":
        request = event("send_sms_api") | {"body": json.dumps(SMS)}
        assert 201 == send_sms.handler(request, Context())["statusCode"]
    elif caller == "sqs":
        ids["messaging.message.id"] = str(uuid.uuid4())
        assert [] == deliver(record(SMS, ids["messaging.message.id"]))
    else:
        send_sms.handler(SMS, Context())
    (line,) = log()

    assert 0 <= line.pop("duration_ms") < 30_000
    assert {
        "level": "INFO",
        "message": "sent",
        "function_request_id": REQUEST_ID,
        "caller": caller,
        "connection": "default",
        "send_id": SEND_ID,
        "message_sid": SID,
        "twilio_request_id": TWILIO_ID,
        **ids,
    } == line


def test_a_send_without_a_key_has_no_send_id(log: Log) -> None:
    """There is no record of it."""
    send_sms.handler({"to": TO, "message": TEXT}, Context())
    (line,) = log()

    assert "send_id" not in line
    assert ("sent", SID) == (line["message"], line["message_sid"])


def test_a_result_that_is_given_again_says_so(log: Log) -> None:
    """Nothing went to Twilio for it, so it has no request of Twilio's."""
    for _ in range(2):
        send_sms.handler(SMS, Context())
    first, again = log()

    assert "replayed" not in first
    assert ("sent", SEND_ID, SID) == tuple(again[name] for name in ("message", "send_id", "message_sid"))
    assert again["replayed"]
    assert "twilio_request_id" not in again


@pytest.mark.parametrize(("name", "caller"), [("send_sms_sns", "sns"), ("send_sms_eventbridge", "eventbridge")])
def test_what_goes_into_the_send_queue_is_a_line(event: LoadEvent, log: Log, name: str, caller: str) -> None:
    """With SQS's id of it, and the id that the send will have."""
    given = event(name)
    send_sms.handler(given, Context())
    (line,) = log()

    key = given["Records"][0]["Sns"]["MessageId"] if caller == "sns" else given["id"]
    assert {
        "message": "queued",
        "messaging.message.id": "1",
        "caller": caller,
        "connection": "default",
        "send_id": record_id("default", key),
    }.items() <= line.items()


def test_what_has_no_key_is_queued_without_a_send_id(event: LoadEvent, log: Log) -> None:
    """It is no input of send_sms: the queue's delivery will say so."""
    given = event("send_sms_sns")
    given["Records"][0]["Sns"]["Message"] = "[]"
    send_sms.handler(given, Context())
    (line,) = log()

    assert ("queued", False) == (line["message"], "send_id" in line)


def test_a_setting_lets_only_failures_be_told(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parameters of the stack."""
    monkeypatch.setenv("LOG_SUCCESS", "false")
    send_sms.handler(SMS, Context())
    monkeypatch.setenv("LOG_SUCCESS", "true")
    telemetry.logger._logger.setLevel("WARNING")
    try:
        send_sms.handler(SMS, Context())
        with pytest.raises(ConnectorError):
            send_sms.handler({}, Context())
    finally:
        telemetry.logger._logger.setLevel("INFO")

    assert ["ERROR"] == [line["level"] for line in log()]


# Each function's line


def _send(_: FaultServer, __: AwsWire) -> None:
    assert [] == deliver(record(SMS))


def _get(_: FaultServer, __: AwsWire) -> None:
    get_sms.handler({"message_sid": SID}, Context())


def _list(_: FaultServer, __: AwsWire) -> None:
    list_sms.handler({"to": TO}, Context())


def _raw(_: FaultServer, __: AwsWire) -> None:
    request = {"method": "GET", "url": "/Accounts/$TWILIO_ACCOUNT_SID/Messages.json", "query_parameters": {"To": TO}}
    raw_request.handler(request, Context())


def _webhook(twilio: FaultServer, _: AwsWire) -> None:
    leave_unknown(twilio)
    call_back()


def _buffered(_: FaultServer, __: AwsWire) -> None:
    detail = {
        "connection": "default",
        "account_sid": ACCOUNT_SID,
        "deduplication_id": f"{ACCOUNT_SID}:{SID}:delivered",
        "message": {"sid": SID, "body": TEXT, "to": TO},
        "idempotency_key": KEY,
        "send_id": SEND_ID,
    }
    body = BufferedEvent("Message Status Changed", detail, uncertain=False)
    text = json.dumps({"detail-type": body.detail_type, "detail": body.detail, "uncertain": body.uncertain})
    assert {"batchItemFailures": []} == webhook.handler({"Records": [record(text)]}, Context())


def _resolve(twilio: FaultServer, aws_wire: AwsWire) -> None:
    leave_unknown(twilio)
    call_back()
    aws_wire.age(120)
    assert {"open": 1, "settled": 1} == resolve.handler({}, Context(120))


def _poll(twilio: FaultServer, _: AwsWire) -> None:
    twilio.history(3)
    poll_messages.handler({}, Context(300))


def _rotate(twilio: FaultServer, aws_wire: AwsWire) -> None:
    rotation_secret._manager.cache_clear()  # it is another test's
    twilio.history(0)
    secret = RotatedSecret("twilio/default", json.dumps(API_KEY))
    aws_wire.rotated = {secret.arn: secret}
    version = "second-version-" + "0" * 32
    secret.rotate(version)
    secret.values[version] = json.dumps(API_KEY)
    step = {"Step": "testSecret", "SecretId": secret.arn, "ClientRequestToken": version}
    rotate_connection.handler(step, Context())


LINES: dict[str, tuple[Callable[[FaultServer, AwsWire], None], str, set[str]]] = {
    "send_sms": (_send, "sent", {"messaging.message.id", "caller", "connection", "send_id", "message_sid"}),
    "get_sms": (_get, "done", {"caller", "connection", "message_sid"}),
    "list_sms": (_list, "done", {"caller", "connection"}),
    "raw_request": (_raw, "done", {"caller", "connection"}),
    "webhook": (_webhook, "accepted", {"connection", "send_id", "message_sid", "detail_type"}),
    "webhook buffer": (
        _buffered, "published", {"messaging.message.id", "connection", "send_id", "message_sid", "detail_type"},
    ),
    "resolve": (_resolve, "settled", {"caller", "connection", "send_id", "message_sid", "state", "evidence"}),
    "poll_messages": (_poll, "done", {"caller", "connection", "seen", "published", "complete"}),
    "rotate_connection": (_rotate, "rotated", {"connection", "step"}),
}  # fmt: skip
"""What each function does that succeeds, what its last line says, and its fields besides the request's."""
ASKS_TWILIO = LINES.keys() - {"webhook", "webhook buffer"}
UNTIMED = {"webhook buffer"}
"""A record of the buffer is no call of its own."""


def last_line(lines: list[dict[str, Any]], message: str) -> dict[str, Any]:
    """Return the last line of level INFO, which says that."""
    line = [line for line in lines if line["level"] == "INFO"][-1]
    assert message == line["message"]
    return line


def test_every_function_is_among_them() -> None:
    """A new one has its line here."""
    assert {path.stem for path in (ROOT / "functions").glob("*.py")} == {name.partition(" ")[0] for name in LINES}


@pytest.mark.parametrize("name", LINES)
def test_the_line_of_a_success_has_its_fields(twilio: FaultServer, aws_wire: AwsWire, log: Log, name: str) -> None:
    """And no others, in 400 bytes."""
    run, message, named = LINES[name]
    run(twilio, aws_wire)
    line = last_line(log(), message)

    fields = {"level", "message", "function_request_id"} | named
    fields |= set() if name in UNTIMED else {"duration_ms"}
    assert fields | ({"twilio_request_id"} if name in ASKS_TWILIO else set()) == line.keys()
    assert len(json.dumps(line, separators=(",", ":"), ensure_ascii=False)) < 400


def test_the_page_tells_the_fields() -> None:
    """Of all functions' lines, and what the lines say; it tells no other field of a success."""
    told = rows(section("operations", "Logs").partition("| field |")[2])
    always = {
        "level",
        "message",
        "function_request_id",
        "twilio_request_id",
        "duration_ms",
        "replayed",
        "xray_trace_id",
    }
    fields = always.union(*(named for _, _, named in LINES.values()))

    assert fields - {"level"} == told.keys()
    assert {message for _, message, _ in LINES.values()} <= {*re.findall("`([a-z ]+)`", told["message"][0])}


@pytest.mark.parametrize("name", LINES)
def test_the_line_of_a_success_is_short(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, log: Log, name: str
) -> None:
    """Also while X-Ray traces, with the longest name of a connection; which send it is stays in it."""
    monkeypatch.setenv("_X_AMZN_TRACE_ID", SAMPLED)
    monkeypatch.setenv("DEFAULT_CONNECTION", LONG_NAME)
    aws_wire.secrets[f"twilio/{LONG_NAME}"] = aws_wire.secrets["twilio/default"]
    run, message, named = LINES[name]
    run(twilio, aws_wire)
    line = last_line(log(), message)

    assert len(json.dumps(line, separators=(",", ":"), ensure_ascii=False)) < 400
    assert named <= line.keys()


# The trace


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (SAMPLED, TRACE),
        (f"Root={TRACE};Sampled=1", TRACE),
        (f"Root={TRACE};Parent=53995c3f42cd8ad8;Sampled=0", None),
        (f"Root={TRACE}", None),
        ("Root=1-15005550-000000000000;Sampled=1", None),
        ("", None),
    ],
    ids=["sampled", "short", "not sampled", "not decided", "malformed", "none"],
)
@pytest.mark.parametrize("fails", [False, True])
def test_the_trace_is_told_where_there_is_one(
    log: Log, monkeypatch: pytest.MonkeyPatch, header: str, expected: str | None, *, fails: bool
) -> None:
    """In both kinds of lines, and only where X-Ray shows something of that id."""
    monkeypatch.setenv("_X_AMZN_TRACE_ID", header)
    if fails:
        with pytest.raises(ConnectorError):
            get_sms.handler({}, Context())
    else:
        get_sms.handler({"message_sid": SID}, Context())

    assert [expected] == [line.get("xray_trace_id") for line in log()]


def test_the_trace_is_that_of_the_invocation(log: Log, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of a batch have it too, and not what the process has by then."""
    monkeypatch.setenv("_X_AMZN_TRACE_ID", SAMPLED)

    def next_invocation(_: str, __: int) -> bool:
        os.environ["_X_AMZN_TRACE_ID"] = SAMPLED.replace("5759e988", "00000000")
        return False

    aws_wire.hangs = next_invocation
    deliver(record(SMS), record(SMS | {"idempotency_key": "other"}))

    assert [TRACE] * 2 == [line["xray_trace_id"] for line in log()]


# Whose line it is


def test_records_of_a_batch_do_not_share_their_ids(log: Log, twilio: FaultServer) -> None:
    """Though ten are sent at the same time, and some of them fail."""
    keys = {str(uuid.uuid4()): f"key-{number}" for number in range(40)}
    bodies = {key: SMS | {"idempotency_key": key, "message": f"{TEXT} {key}"} for key in keys.values()}
    for number in range(0, 40, 4):
        bodies[f"key-{number}"]["message"] += " fault=status_400"
    assert [] == deliver(*(record(bodies[key], name) for name, key in keys.items()))
    lines = log()

    assert {name: record_id("default", key) for name, key in keys.items()} == {
        line["messaging.message.id"]: line["send_id"] for line in lines
    }
    assert 40 == len(lines) == len(twilio.requests)
    sent = [line["message_sid"] for line in lines if line["level"] == "INFO"]
    assert 30 == len(sent) == len(set(sent))
    assert {"TwilioRejectedError"} == {line["error"] for line in lines if line["level"] == "ERROR"}
    assert [] == [line for line in lines if line["level"] == "ERROR" and "message_sid" in line]


def test_a_record_has_nothing_of_the_one_before_it(log: Log) -> None:
    """They are handled by the same thread, one after the other."""
    fifo = {"arn": "arn:aws:sqs:us-east-1:123456789012:parcels.fifo", "group": "one"}
    deliver(record(SMS, **fifo), record("no JSON", second := str(uuid.uuid4()), **fifo))
    sent, unreadable = log()

    assert SEND_ID == sent["send_id"]
    assert (second, "InvalidInputError") == (unreadable["messaging.message.id"], unreadable["error"])
    assert [] == [name for name in ("send_id", "message_sid", "connection", "caller") if name in unreadable]


def test_an_invocation_has_nothing_of_the_one_before_it(log: Log) -> None:
    """The container is the same."""
    send_sms.handler(SMS, Context())
    other = Context()
    other.aws_request_id = str(uuid.uuid4())
    with pytest.raises(ConnectorError):
        send_sms.handler({}, other)
    _, line = log()

    assert other.aws_request_id == line["function_request_id"]
    assert [] == [name for name in ("send_id", "message_sid", "connection", "twilio_request_id") if name in line]


def test_a_failure_before_the_send_has_its_id(log: Log, aws_wire: AwsWire) -> None:
    """The connection cannot be read, so nothing was begun."""
    aws_wire.secrets.clear()
    with pytest.raises(ConnectorError):
        send_sms.handler(SMS, Context())
    (line,) = log()

    assert ("ConnectionNotFoundError", SEND_ID) == (line["error"], line["send_id"])


def test_what_is_known_of_a_key_is_a_line_with_its_id(log: Log) -> None:
    """So is that nothing is."""
    with pytest.raises(ConnectorError):
        get_sms.handler({"idempotency_key": KEY}, Context())
    send_sms.handler(SMS, Context())
    get_sms.handler({"idempotency_key": KEY}, Context())
    unknown, _, known = log()

    assert ("KeyNotFoundError", SEND_ID) == (unknown["error"], unknown["send_id"])
    assert ("done", SEND_ID, SID) == (known["message"], known["send_id"], known["message_sid"])


def test_a_dry_run_that_has_nobody_to_answer_to_is_a_failure(log: Log, twilio: FaultServer) -> None:
    """Its last line is why the report says that it failed."""
    assert [] == deliver(record(SMS | {"dry_run": True}))
    *_, line = log()

    assert ("ERROR", "InvalidInputError", SEND_ID) == tuple(line[name] for name in ("level", "error", "send_id"))
    assert [] == twilio.requests


def test_a_record_that_is_given_up_is_a_line(log: Log, twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The last one of its story, with the error that is reported."""
    late = record(SMS)
    late["attributes"]["ApproximateReceiveCount"] = "11"
    assert [] == deliver(late)
    (line,) = log()

    assert ("ERROR", "given up", "ServiceUnavailableError", SEND_ID) == tuple(
        line[name] for name in ("level", "message", "error", "send_id")
    )
    assert ([], 1) == (twilio.requests, len(aws_wire.sent))


# The whole story


def test_one_id_finds_the_whole_story(twilio: FaultServer, aws_wire: AwsWire, event: LoadEvent, log: Log) -> None:
    """From the event that asks for a message to the report that nobody knows what became of it, and the redrive."""
    ask = event("send_sms_eventbridge")
    ask["detail"] = SMS
    send_sms.handler(ask, Context())
    twilio.script(faults.status(500), faults.OK)
    assert [] == deliver(record(aws_wire.sent[0]["MessageBody"]))
    aws_wire.age(16 * 60)
    assert {"open": 1, "settled": 1} == resolve.handler({}, Context(120))
    failed = aws_wire.sent[1]
    call_back()
    assert {"open": 1, "settled": 1} == resolve.handler({}, Context(120))
    assert [] == deliver(record(failed["MessageBody"]))

    told = [(line["message"].partition(" (")[0], line.get("send_id")) for line in log()]
    assert [
        ("queued", SEND_ID),
        ("the request may or may not have been carried out", SEND_ID),
        ("settled", SEND_ID),
        ("accepted", SEND_ID),
        ("settled", SEND_ID),
        ("sent", SEND_ID),
    ] == told
    assert [
        ("Message Outcome Unknown", SEND_ID),
        ("Message Status Changed", SEND_ID),
        ("Message Sent", SEND_ID),
        ("Message Sent", SEND_ID),
    ] == [(entry["DetailType"], json.loads(entry["Detail"])["send_id"]) for entry in aws_wire.entries]
    assert SEND_ID == failed["MessageAttributes"]["send_id"]["StringValue"]
    assert SEND_ID not in failed["MessageBody"]
    assert f"send={SEND_ID}#" in twilio.requests[0].form["StatusCallback"][0]


def test_a_callback_has_its_send_id_while_the_ledger_is_away(aws_wire: AwsWire, log: Log) -> None:
    """The URL says it, which Twilio signed."""
    aws_wire.failures["GetItem"] = [(400, "AccessDeniedException")]
    call_back()
    (entry,) = aws_wire.entries
    detail = json.loads(entry["Detail"])

    assert (SEND_ID, False) == (detail["send_id"], "idempotency_key" in detail)
    assert [SEND_ID] * 2 == [line["send_id"] for line in log()]


@pytest.mark.parametrize("name", ["plain", "call"])
def test_what_is_no_callback_has_no_send_id(aws_wire: AwsWire, name: str) -> None:
    """Whatever stands in the URL."""
    request = replace(BY_NAME[name], query=f"send={SEND_ID}").request(TARGET)
    assert 200 == webhook.handler(event_2(request), Context())["statusCode"]
    (entry,) = aws_wire.entries

    assert "send_id" not in json.loads(entry["Detail"])


def test_an_event_of_the_buffer_that_was_published_says_so(aws_wire: AwsWire, log: Log) -> None:
    """It is not published again."""
    detail = {"connection": "default", "account_sid": ACCOUNT_SID, "deduplication_id": "id"}
    text = json.dumps({"detail-type": "Webhook Received", "detail": detail, "uncertain": False})
    for _ in range(2):
        webhook.handler({"Records": [record(text)]}, Context())

    assert {event_key(Event("Webhook Received", detail))} == aws_wire.deliveries.keys()
    assert ["published", "published before"] == [line["message"] for line in log()]
    assert 1 == len(aws_wire.entries)


# What no line tells

CANARIES = [KEY, TO, TO[1:], TEXT, "parcel", API_KEY["api_key_secret"]]


def told_of(lines: list[dict[str, Any]]) -> list[str]:
    """Return the canaries that stand in lines."""
    return [canary for canary in CANARIES if canary in json.dumps(lines, ensure_ascii=False)]


@pytest.mark.parametrize("name", LINES)
def test_no_line_of_a_success_tells_what_was_sent(twilio: FaultServer, aws_wire: AwsWire, log: Log, name: str) -> None:
    """Neither the key in plain, nor a number, a text or a credential."""
    run, message, _ = LINES[name]
    run(twilio, aws_wire)
    lines = log()

    assert message == last_line(lines, message)["message"]
    assert [] == told_of(lines)


def test_a_number_in_the_place_of_an_id_is_not_told(log: Log) -> None:
    """Whoever may invoke the function can write anything there."""
    deliver(record(SMS | {"connection": TO}, TO))
    deliver(record(SMS | {"connection": "default", "idempotency_key": f"{TO} {TEXT}"}, TO))
    lines = log()

    assert ["InvalidInputError"] * 2 == [line["error"] for line in lines]
    assert [] == told_of(lines)
    assert record_id(TO, KEY) == lines[0]["send_id"]


def test_what_joins_tells_nothing(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The attributes in the failed queue, and the id in events: only the event's own key is in plain."""
    twilio.script(faults.status(400))
    deliver(record(SMS))
    call_back()
    attributes = aws_wire.sent[0]["MessageAttributes"]
    ids = [json.loads(entry["Detail"])["send_id"] for entry in aws_wire.entries]

    assert [SEND_ID] * 2 == ids
    assert [] == told_of([attributes, {"ids": ids}])


def test_a_planted_canary_is_found() -> None:
    """The sweep bites."""
    assert [KEY] == told_of([{"send_id": KEY}])
