"""One id finds the whole story of a send. The line of a success is short, and does not show what was sent."""

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
    """Deliver records of the send queue, and return the ids that SQS must deliver again."""
    answer = send_sms.handler({"Records": list(records)}, Context())
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def call_back() -> None:
    """Send the webhook a status callback for the keyed message."""
    request = replace(STATUS, query=f"send={record_id(os.environ['DEFAULT_CONNECTION'], KEY)}").request(TARGET)
    assert 200 == webhook.handler(event_2(request), Context())["statusCode"]


def leave_unknown(twilio: FaultServer) -> None:
    """Send the keyed message so that its outcome is unknown."""
    twilio.script(faults.status(500), faults.OK)
    with pytest.raises(OutcomeUnknownError):
        send_sms.handler(SMS, Context())


# The line of a success


@pytest.mark.parametrize("caller", ["direct", "api", "sqs"])
def test_a_send_is_one_line(event: LoadEvent, log: Log, caller: str) -> None:
    """A send is one line. It has all ids of the send, and nothing that CloudWatch adds itself."""
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
    """A send without a key has no `send_id`, because the ledger has no record of it."""
    send_sms.handler({"to": TO, "message": TEXT}, Context())
    (line,) = log()

    assert "send_id" not in line
    assert ("sent", SID) == (line["message"], line["message_sid"])


def test_a_result_that_is_given_again_says_so(log: Log) -> None:
    """A replayed result is logged as `replayed`. It has no Twilio request id, because Twilio got no request."""
    for _ in range(2):
        send_sms.handler(SMS, Context())
    first, again = log()

    assert "replayed" not in first
    assert ("sent", SEND_ID, SID) == tuple(again[name] for name in ("message", "send_id", "message_sid"))
    assert again["replayed"]
    assert "twilio_request_id" not in again


@pytest.mark.parametrize(("name", "caller"), [("send_sms_sns", "sns"), ("send_sms_eventbridge", "eventbridge")])
def test_what_goes_into_the_send_queue_is_a_line(event: LoadEvent, log: Log, name: str, caller: str) -> None:
    """An event that is put on the send queue is one line, with its SQS message id and its later `send_id`."""
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
    """An event that is not an input of send_sms is queued without a `send_id`; its delivery reports the error."""
    given = event("send_sms_sns")
    given["Records"][0]["Sns"]["Message"] = "[]"
    send_sms.handler(given, Context())
    (line,) = log()

    assert ("queued", False) == (line["message"], "send_id" in line)


def test_a_setting_lets_only_failures_be_told(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """`LOG_SUCCESS` and the log level can each turn off the lines of successes; failures are still logged."""
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
    rotation_secret._manager.cache_clear()  # the cached manager belongs to another test
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
"""For each function: a call that succeeds, the message of its last line, and the fields besides the request's."""
ASKS_TWILIO = LINES.keys() - {"webhook", "webhook buffer"}
UNTIMED = {"webhook buffer"}
"""The lines without a duration, because a record of the buffer is not a call of its own."""


def last_line(lines: list[dict[str, Any]], message: str) -> dict[str, Any]:
    """Return the last line of level INFO, and check its message."""
    line = [line for line in lines if line["level"] == "INFO"][-1]
    assert message == line["message"]
    return line


def test_every_function_is_among_them() -> None:
    """Each function is in `LINES`, so a new function needs an entry."""
    assert {path.stem for path in (ROOT / "functions").glob("*.py")} == {name.partition(" ")[0] for name in LINES}


@pytest.mark.parametrize("name", LINES)
def test_the_line_of_a_success_has_its_fields(twilio: FaultServer, aws_wire: AwsWire, log: Log, name: str) -> None:
    """The line of a success has exactly the listed fields, in less than 400 bytes."""
    run, message, named = LINES[name]
    run(twilio, aws_wire)
    line = last_line(log(), message)

    fields = {"level", "message", "function_request_id"} | named
    fields |= set() if name in UNTIMED else {"duration_ms"}
    assert fields | ({"twilio_request_id"} if name in ASKS_TWILIO else set()) == line.keys()
    assert len(json.dumps(line, separators=(",", ":"), ensure_ascii=False)) < 400


def test_the_page_tells_the_fields() -> None:
    """The operations page lists the fields and messages of all functions' success lines, and no other fields."""
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
    """The line stays below 400 bytes with an X-Ray trace and the longest connection name, and keeps its ids."""
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
    """Lines of successes and of failures have the trace id, but only if X-Ray records the trace."""
    monkeypatch.setenv("_X_AMZN_TRACE_ID", header)
    if fails:
        with pytest.raises(ConnectorError):
            get_sms.handler({}, Context())
    else:
        get_sms.handler({"message_sid": SID}, Context())

    assert [expected] == [line.get("xray_trace_id") for line in log()]


def test_the_trace_is_that_of_the_invocation(log: Log, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of a batch log the trace id of their invocation, even if the process has another one by then."""
    monkeypatch.setenv("_X_AMZN_TRACE_ID", SAMPLED)

    def next_invocation(_: str, __: int) -> bool:
        os.environ["_X_AMZN_TRACE_ID"] = SAMPLED.replace("5759e988", "00000000")
        return False

    aws_wire.hangs = next_invocation
    deliver(record(SMS), record(SMS | {"idempotency_key": "other"}))

    assert [TRACE] * 2 == [line["xray_trace_id"] for line in log()]


# The ids belong to one record


def test_records_of_a_batch_do_not_share_their_ids(log: Log, twilio: FaultServer) -> None:
    """Each line has its own record's ids, although ten records are sent at a time and some fail."""
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
    """A record's line has no ids of the record before it, although the same thread handles both."""
    fifo = {"arn": "arn:aws:sqs:us-east-1:123456789012:parcels.fifo", "group": "one"}
    deliver(record(SMS, **fifo), record("no JSON", second := str(uuid.uuid4()), **fifo))
    sent, unreadable = log()

    assert SEND_ID == sent["send_id"]
    assert (second, "InvalidInputError") == (unreadable["messaging.message.id"], unreadable["error"])
    assert [] == [name for name in ("send_id", "message_sid", "connection", "caller") if name in unreadable]


def test_an_invocation_has_nothing_of_the_one_before_it(log: Log) -> None:
    """An invocation's line has no ids of the invocation before it in the same container."""
    send_sms.handler(SMS, Context())
    other = Context()
    other.aws_request_id = str(uuid.uuid4())
    with pytest.raises(ConnectorError):
        send_sms.handler({}, other)
    _, line = log()

    assert other.aws_request_id == line["function_request_id"]
    assert [] == [name for name in ("send_id", "message_sid", "connection", "twilio_request_id") if name in line]


def test_a_failure_before_the_send_has_its_id(log: Log, aws_wire: AwsWire) -> None:
    """A failure before the send has the `send_id`. Here the connection cannot be read, so no send was started."""
    aws_wire.secrets.clear()
    with pytest.raises(ConnectorError):
        send_sms.handler(SMS, Context())
    (line,) = log()

    assert ("ConnectionNotFoundError", SEND_ID) == (line["error"], line["send_id"])


def test_what_is_known_of_a_key_is_a_line_with_its_id(log: Log) -> None:
    """A lookup of a key is one line with its `send_id`, whether the key is known or not."""
    with pytest.raises(ConnectorError):
        get_sms.handler({"idempotency_key": KEY}, Context())
    send_sms.handler(SMS, Context())
    get_sms.handler({"idempotency_key": KEY}, Context())
    unknown, _, known = log()

    assert ("KeyNotFoundError", SEND_ID) == (unknown["error"], unknown["send_id"])
    assert ("done", SEND_ID, SID) == (known["message"], known["send_id"], known["message_sid"])


def test_a_dry_run_that_has_nobody_to_answer_to_is_a_failure(log: Log, twilio: FaultServer) -> None:
    """A dry run in a queue fails, and its last line has the reason that is reported."""
    assert [] == deliver(record(SMS | {"dry_run": True}))
    *_, line = log()

    assert ("ERROR", "InvalidInputError", SEND_ID) == tuple(line[name] for name in ("level", "error", "send_id"))
    assert [] == twilio.requests


def test_a_record_that_is_given_up_is_a_line(log: Log, twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A record that is given up is one line, the last of its story, with the error that is reported."""
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
    """One id finds all lines of a send: the requesting event, the report of an unknown outcome, and the redrive."""
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
    """A callback has its `send_id` while the ledger is unavailable: it is in the URL, which Twilio signed."""
    aws_wire.failures["GetItem"] = [(400, "AccessDeniedException")]
    call_back()
    (entry,) = aws_wire.entries
    detail = json.loads(entry["Detail"])

    assert (SEND_ID, False) == (detail["send_id"], "idempotency_key" in detail)
    assert [SEND_ID] * 2 == [line["send_id"] for line in log()]


@pytest.mark.parametrize("name", ["plain", "call"])
def test_what_is_no_callback_has_no_send_id(aws_wire: AwsWire, name: str) -> None:
    """A webhook that is not a message's status callback has no `send_id`, even if its URL contains one."""
    request = replace(BY_NAME[name], query=f"send={SEND_ID}").request(TARGET)
    assert 200 == webhook.handler(event_2(request), Context())["statusCode"]
    (entry,) = aws_wire.entries

    assert "send_id" not in json.loads(entry["Detail"])


def test_an_event_of_the_buffer_that_was_published_says_so(aws_wire: AwsWire, log: Log) -> None:
    """A buffered event that was published before is not published again, and its line says so."""
    detail = {"connection": "default", "account_sid": ACCOUNT_SID, "deduplication_id": "id"}
    text = json.dumps({"detail-type": "Webhook Received", "detail": detail, "uncertain": False})
    for _ in range(2):
        webhook.handler({"Records": [record(text)]}, Context())

    assert {event_key(Event("Webhook Received", detail))} == aws_wire.deliveries.keys()
    assert ["published", "published before"] == [line["message"] for line in log()]
    assert 1 == len(aws_wire.entries)


# What no line contains

CANARIES = [KEY, TO, TO[1:], TEXT, "parcel", API_KEY["api_key_secret"]]


def told_of(lines: list[dict[str, Any]]) -> list[str]:
    """Return the canaries that occur in the lines."""
    return [canary for canary in CANARIES if canary in json.dumps(lines, ensure_ascii=False)]


@pytest.mark.parametrize("name", LINES)
def test_no_line_of_a_success_tells_what_was_sent(twilio: FaultServer, aws_wire: AwsWire, log: Log, name: str) -> None:
    """No line of a success contains the plain key, a phone number, a text or a credential."""
    run, message, _ = LINES[name]
    run(twilio, aws_wire)
    lines = log()

    assert message == last_line(lines, message)["message"]
    assert [] == told_of(lines)


def test_a_number_in_the_place_of_an_id_is_not_told(log: Log) -> None:
    """A phone number in the place of an id is not logged, because a caller can put any text there."""
    deliver(record(SMS | {"connection": TO}, TO))
    deliver(record(SMS | {"connection": "default", "idempotency_key": f"{TO} {TEXT}"}, TO))
    lines = log()

    assert ["InvalidInputError"] * 2 == [line["error"] for line in lines]
    assert [] == told_of(lines)
    assert record_id(TO, KEY) == lines[0]["send_id"]


def test_what_joins_tells_nothing(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The `send_id` of events and the attributes in the failed queue reveal nothing that was sent.

    Only the `idempotency_key` of an event has the plain key.
    """
    twilio.script(faults.status(400))
    deliver(record(SMS))
    call_back()
    attributes = aws_wire.sent[0]["MessageAttributes"]
    ids = [json.loads(entry["Detail"])["send_id"] for entry in aws_wire.entries]

    assert [SEND_ID] * 2 == ids
    assert [] == told_of([attributes, {"ids": ids}])


def test_a_planted_canary_is_found() -> None:
    """The search finds a planted canary; otherwise the tests above would prove nothing."""
    assert [KEY] == told_of([{"send_id": KEY}])
