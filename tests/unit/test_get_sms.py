"""The action get_sms: it returns Twilio's message for a SID, or what the ledger knows of an idempotency key."""

import json
import time
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
import resolve
import send_sms
from get_sms import handler
from twilio_connector.errors import (
    ConnectorError,
    InvalidInputError,
    KeyNotFoundError,
    ServiceUnavailableError,
    TwilioNotFoundError,
    TwilioUnavailableError,
)
from twilio_connector.messaging.idempotency import Confirmed, record_id
from twilio_connector.messaging.idempotency_store import IdempotencyStore

from tests.aws_wire import AwsWire
from tests.builders import leave_unknown, record
from tests.conftest import Context, LoadEvent
from tests.faults import FaultServer, faults
from tests.unit.conftest import ACCOUNT_SID

SID = "SM" + "0" * 32
OTHER_SID = "SM" + "2" * 32
SMS = {"to": "+15005550006", "message": "Hello", "idempotency_key": "key"}
THROTTLED = (400, "ProvisionedThroughputExceededException")


def test_a_message_comes_back_untouched(twilio: FaultServer, context: Context, event: LoadEvent) -> None:
    """A message is read by its SID, and returned unchanged."""
    message = handler(event("get_sms"), context)

    assert [("GET", f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages/{SID}.json")] == [
        (request.method, request.target) for request in twilio.requests
    ]
    assert (SID, "queued") == (message["sid"], message["status"])


def test_an_mms_has_another_prefix(twilio: FaultServer, context: Context) -> None:
    """The SID of an MMS, which begins with MM at Twilio, is accepted."""
    assert "MM" + "a" * 32 == handler({"message_sid": "MM" + "a" * 32}, context)["sid"]
    assert 1 == len(twilio.requests)


def test_the_api_takes_the_sid_from_the_path(twilio: FaultServer, context: Context, event: LoadEvent) -> None:
    """An API caller gives the SID in the path, and gets status 200."""
    answer = handler(event("get_sms_api"), context)

    assert (200, SID) == (answer["statusCode"], json.loads(answer["body"])["sid"])
    assert 1 == len(twilio.requests)


@pytest.mark.parametrize(
    "sid", ["", "SM", "CA" + "0" * 32, "SM" + "0" * 33, "SM" + "0" * 31 + "/", f"../{SID}", SID + "\n", None, 5]
)
def test_another_sid_is_refused(twilio: FaultServer, context: Context, sid: object) -> None:
    """Any other SID is refused, because it becomes a part of a URL's path."""
    with pytest.raises(InvalidInputError, match=r"^message_sid: "):
        handler({"message_sid": sid}, context)

    assert [] == twilio.requests


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize(
    ("fault", "error", "count"),
    [
        (faults.NOT_FOUND, TwilioNotFoundError, 1),
        (faults.status(503), TwilioUnavailableError, 3),
        (faults.RESET_AFTER_READ, TwilioUnavailableError, 3),
        (faults.body("html"), TwilioUnavailableError, 3),
    ],
    ids=["404", "503", "reset", "html"],
)
def test_a_failed_read_has_its_error(
    twilio: FaultServer, context: Context, fault: faults.Fault, error: type[ConnectorError], count: int
) -> None:
    """A failed read raises its own error and never an unknown outcome; temporary failures are retried first."""
    twilio.script(fault)

    with pytest.raises(error):
        handler({"message_sid": SID}, context)

    assert count == len(twilio.requests)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "message_sid"),
        ({"message_sid": SID, "idempotency_key": "key"}, "idempotency_key"),
        ({"idempotency_key": "two words"}, "idempotency_key"),
        ({"idempotency_key": ""}, "idempotency_key"),
    ],
    ids=str,
)
def test_either_a_message_or_a_key_is_asked_for(
    twilio: FaultServer, aws_wire: AwsWire, context: Context, given: dict[str, str], field: str
) -> None:
    """The input must have exactly one of message_sid and idempotency_key, and it must be valid."""
    with pytest.raises(InvalidInputError, match=f"^{field}: "):
        handler(given, context)

    assert ([], []) == (twilio.requests, aws_wire.calls)


def test_a_delivery_is_no_key(twilio: FaultServer, context: Context) -> None:
    """The id of an event is not the idempotency key to look up."""
    event = {"id": "1", "detail-type": "t", "source": "s", "detail": {"message_sid": SID}}

    assert SID == handler(event, context)["sid"]
    assert 1 == len(twilio.requests)


# Look-ups by idempotency key


def known(key: str = "key", **more: str) -> dict[str, Any]:
    """Return the answer to a look-up of a key."""
    return dict(handler({"idempotency_key": key} | more, Context()))


def told(key: str = "key") -> tuple[Any, ...]:
    """Return state, evidence, candidate, SID and error from the answer to a look-up of a key."""
    answer = known(key)
    sid = (answer["message"] or {}).get("sid")
    title = (answer["error"] or {}).get("title")
    return answer["state"], answer["evidence"], answer["candidate_sid"], sid, title


def send(**more: Any) -> Any:
    """Send the message with the key."""
    return send_sms.handler(SMS | more, Context())


def leave(twilio: FaultServer, **more: Any) -> None:
    """Send the message, and leave its outcome unknown."""
    leave_unknown(twilio, SMS | more)


def call_back(sid: str = OTHER_SID) -> None:
    """Write to the ledger that the message exists, as a status callback does."""
    ledger = IdempotencyStore("ledger")
    known = ledger.find(record_id("default", "key"))
    assert known is not None
    ledger.write(Confirmed({"sid": sid, "status": "sent"}), known)


def deliver(name: str, body: str) -> None:
    """Deliver a record, as SQS does."""
    assert {"batchItemFailures": []} == send_sms.handler({"Records": [record(body, name)]}, Context())


def redrive(aws_wire: AwsWire) -> None:
    """Deliver the last record of the failed queue under another id, as a redrive does."""
    deliver(f"moved {len(aws_wire.sent)}", aws_wire.sent[-1]["MessageBody"])


def test_what_is_told_of_a_key(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A look-up returns the ledger's record with Twilio's message, and the times of claim and expiry in UTC."""
    before = int(time.time())
    message = send()
    answer = known()
    claimed_at, expires_at = (datetime.fromisoformat(answer.pop(name)) for name in ("claimed_at", "expires_at"))

    assert {
        "idempotency_key": "key",
        "connection": "default",
        "state": "sent",
        "evidence": "answer",
        "candidate_sid": None,
        "message": message,
        "error": None,
    } == answer
    assert before <= claimed_at.timestamp() <= time.time()
    assert timedelta(days=30) == expires_at - claimed_at
    assert timedelta(0) == claimed_at.utcoffset()
    assert 1 == len(aws_wire.items)
    assert 1 == len(twilio.requests)


def test_what_was_not_sent_says_why(twilio: FaultServer) -> None:
    """A message that was not sent is reported with the error that its caller got."""
    twilio.script(faults.OPTED_OUT)
    with pytest.raises(ConnectorError):
        send()

    assert ("not_sent", None, None, None, "RecipientOptedOutError") == told()


def test_an_unknown_outcome_is_resolved_by_a_callback(twilio: FaultServer) -> None:
    """A status callback settles an unknown outcome, because it is proof."""
    leave(twilio)
    assert ("unknown", None, None, None, None) == told()

    call_back()
    assert ("sent", "callback", None, OTHER_SID, None) == told()


@pytest.mark.usefixtures("delays")
def test_a_send_that_is_under_way_or_was_left(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A send past its lease is reported as unknown, although the ledger does not say so yet."""
    aws_wire.failures["TransactWriteItems"] = [THROTTLED, THROTTLED]
    send()
    assert "sending" == told()[0]

    aws_wire.age(61)
    written = {key: dict(item) for key, item in aws_wire.items.items()}
    assert "unknown" == told()[0]
    assert written == aws_wire.items
    assert 1 == len(twilio.requests)


def test_what_failed_and_was_moved_back_was_sent(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A failed record that is redriven is sent under the key with which it was set aside."""
    twilio.script(faults.OPTED_OUT, faults.OK)
    deliver("key", json.dumps({"to": SMS["to"], "message": SMS["message"]}))
    assert ("not_sent", None, None, None, "RecipientOptedOutError") == told()

    redrive(aws_wire)
    assert ("sent", "answer", None) == told()[:3]
    assert ["Message Failed", "Message Sent"] == [entry["DetailType"] for entry in aws_wire.entries]


def test_what_is_unknown_and_was_moved_back_is_unknown(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A record of unknown outcome that is redriven is not sent again; it stays unknown until it is proven."""
    twilio.script(faults.status(500), faults.OK)
    deliver("key", json.dumps({"to": SMS["to"], "message": SMS["message"]}))
    for _ in range(2):
        aws_wire.age(1000)
        assert {"open": 1, "settled": 1} == resolve.handler({}, Context(120))
        redrive(aws_wire)
    assert ("unknown", None, None, None, None) == told()

    call_back()
    assert ("sent", "callback", None, OTHER_SID, None) == told()
    assert 1 == [request.method for request in twilio.requests].count("POST")


def unknown_key(given: dict[str, str]) -> KeyNotFoundError:
    """Return the KeyNotFoundError of a look-up."""
    with pytest.raises(KeyNotFoundError) as caught:
        handler(given, Context())
    return caught.value


def test_a_key_that_expired_is_not_known(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """An expired key is not found, although DynamoDB deletes its item days later."""
    send()
    for item in aws_wire.items.values():
        item["expires_at"] = {"N": str(int(time.time()))}

    error = unknown_key({"idempotency_key": "key"})
    assert (404, False) == (error.http_status, error.retryable)
    assert 1 == len(twilio.requests)


def test_a_key_is_of_one_connection(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A key belongs to one connection, and another connection does not find it.

    A key that was never used is not found either. The connection's secret is not read.
    """
    send()
    aws_wire.calls.clear()

    unknown_key({"idempotency_key": "key", "connection": "other"})
    unknown_key({"idempotency_key": "another"})
    assert "sent" == known(connection="default")["state"]
    assert ["GetItem"] * 3 == [name for name, _ in aws_wire.calls]
    assert 1 == len(twilio.requests)


@pytest.mark.usefixtures("delays")
def test_a_ledger_that_does_not_answer_says_nothing(aws_wire: AwsWire) -> None:
    """If the ledger does not answer, the error does not say that the key was not found."""
    aws_wire.failures["GetItem"] = [THROTTLED, THROTTLED]

    with pytest.raises(ServiceUnavailableError):
        known()


@pytest.mark.parametrize("key", ["key", "orders/4711?line=1&x=%41+1"])
def test_the_api_takes_the_key_from_the_query(twilio: FaultServer, event: LoadEvent, key: str) -> None:
    """An API caller gives the key in the query, also with characters that must be escaped."""
    request = event("get_sms_api") | {"rawPath": "/sends", "routeKey": "GET /sends", "pathParameters": None}
    query = {"rawQueryString": f"idempotency_key={quote(key, safe='')}"}
    missing = handler(request | query, Context())
    send(idempotency_key=key)
    found = handler(request | query, Context())

    assert (404, "KeyNotFoundError") == (missing["statusCode"], json.loads(missing["body"])["title"])
    assert (200, key, "sent") == (found["statusCode"], *(json.loads(found["body"])[name] for name in NAMES))
    assert 1 == len(twilio.requests)


NAMES = ("idempotency_key", "state")
