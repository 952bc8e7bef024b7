"""Is a message got as Twilio has it, and is what is told of a key so?"""

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
    """By its SID."""
    message = handler(event("get_sms"), context)

    assert [("GET", f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages/{SID}.json")] == [
        (request.method, request.target) for request in twilio.requests
    ]
    assert (SID, "queued") == (message["sid"], message["status"])


def test_an_mms_has_another_prefix(twilio: FaultServer, context: Context) -> None:
    """MM, as Twilio names it."""
    assert "MM" + "a" * 32 == handler({"message_sid": "MM" + "a" * 32}, context)["sid"]
    assert 1 == len(twilio.requests)


def test_the_api_takes_the_sid_from_the_path(twilio: FaultServer, context: Context, event: LoadEvent) -> None:
    """And answers 200."""
    answer = handler(event("get_sms_api"), context)

    assert (200, SID) == (answer["statusCode"], json.loads(answer["body"])["sid"])
    assert 1 == len(twilio.requests)


@pytest.mark.parametrize(
    "sid", ["", "SM", "CA" + "0" * 32, "SM" + "0" * 33, "SM" + "0" * 31 + "/", f"../{SID}", SID + "\n", None, 5]
)
def test_another_sid_is_refused(twilio: FaultServer, context: Context, sid: object) -> None:
    """It becomes a part of a path."""
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
    """A read can be repeated, and its outcome is never unknown."""
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
    """One of them, and well formed."""
    with pytest.raises(InvalidInputError, match=f"^{field}: "):
        handler(given, context)

    assert ([], []) == (twilio.requests, aws_wire.calls)


def test_a_delivery_is_no_key(twilio: FaultServer, context: Context) -> None:
    """That an event has an id does not make it the key that is asked for."""
    event = {"id": "1", "detail-type": "t", "source": "s", "detail": {"message_sid": SID}}

    assert SID == handler(event, context)["sid"]
    assert 1 == len(twilio.requests)


# By key


def known(key: str = "key", **more: str) -> dict[str, Any]:
    """Return what is known of a key."""
    return dict(handler({"idempotency_key": key} | more, Context()))


def told(key: str = "key") -> tuple[Any, ...]:
    """Return what is told of a key, but for its times."""
    answer = known(key)
    sid = (answer["message"] or {}).get("sid")
    title = (answer["error"] or {}).get("title")
    return answer["state"], answer["evidence"], answer["candidate_sid"], sid, title


def send(**more: Any) -> Any:
    """Send with the key."""
    return send_sms.handler(SMS | more, Context())


def leave(twilio: FaultServer, **more: Any) -> None:
    """Leave the message in doubt."""
    leave_unknown(twilio, SMS | more)


def call_back(sid: str = OTHER_SID) -> None:
    """Let Twilio tell of the message."""
    ledger = IdempotencyStore("ledger")
    known = ledger.find(record_id("default", "key"))
    assert known is not None
    ledger.write(Confirmed({"sid": sid, "status": "sent"}), known)


def deliver(name: str, body: str) -> None:
    """Deliver a record, as SQS does."""
    assert {"batchItemFailures": []} == send_sms.handler({"Records": [record(body, name)]}, Context())


def redrive(aws_wire: AwsWire) -> None:
    """Move the last record of the failed queue back, which gives it another id."""
    deliver(f"moved {len(aws_wire.sent)}", aws_wire.sent[-1]["MessageBody"])


def test_what_is_told_of_a_key(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """All that the ledger has, and the message as Twilio has it; its claim and its end as moments in UTC."""
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
    """With the error that its caller got."""
    twilio.script(faults.OPTED_OUT)
    with pytest.raises(ConnectorError):
        send()

    assert ("not_sent", None, None, None, "RecipientOptedOutError") == told()


def test_an_unknown_outcome_is_resolved_by_a_callback(twilio: FaultServer) -> None:
    """Which is proof."""
    leave(twilio)
    assert ("unknown", None, None, None, None) == told()

    call_back()
    assert ("sent", "callback", None, OTHER_SID, None) == told()


@pytest.mark.usefixtures("delays")
def test_a_send_that_is_under_way_or_was_left(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Past its lease it reads unknown, though nobody wrote that yet."""
    aws_wire.failures["TransactWriteItems"] = [THROTTLED, THROTTLED]
    send()
    assert "sending" == told()[0]

    aws_wire.age(61)
    written = {key: dict(item) for key, item in aws_wire.items.items()}
    assert "unknown" == told()[0]
    assert written == aws_wire.items
    assert 1 == len(twilio.requests)


def test_what_failed_and_was_moved_back_was_sent(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Under the same key, with which it was set aside."""
    twilio.script(faults.OPTED_OUT, faults.OK)
    deliver("key", json.dumps({"to": SMS["to"], "message": SMS["message"]}))
    assert ("not_sent", None, None, None, "RecipientOptedOutError") == told()

    redrive(aws_wire)
    assert ("sent", "answer", None) == told()[:3]
    assert ["Message Failed", "Message Sent"] == [entry["DetailType"] for entry in aws_wire.entries]


def test_what_is_unknown_and_was_moved_back_is_unknown(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Until somebody proves it; it is not sent again."""
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
    """Return the error of a look-up."""
    with pytest.raises(KeyNotFoundError) as caught:
        handler(given, Context())
    return caught.value


def test_a_key_that_expired_is_not_known(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Though DynamoDB deletes its item days later."""
    send()
    for item in aws_wire.items.values():
        item["expires_at"] = {"N": str(int(time.time()))}

    error = unknown_key({"idempotency_key": "key"})
    assert (404, False) == (error.http_status, error.retryable)
    assert 1 == len(twilio.requests)


def test_a_key_is_of_one_connection(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Another one does not know it, nor one that was never used; whether the connection exists is not asked."""
    send()
    aws_wire.calls.clear()

    unknown_key({"idempotency_key": "key", "connection": "other"})
    unknown_key({"idempotency_key": "another"})
    assert "sent" == known(connection="default")["state"]
    assert ["GetItem"] * 3 == [name for name, _ in aws_wire.calls]
    assert 1 == len(twilio.requests)


@pytest.mark.usefixtures("delays")
def test_a_ledger_that_does_not_answer_says_nothing(aws_wire: AwsWire) -> None:
    """It is no sign that a key is not known."""
    aws_wire.failures["GetItem"] = [THROTTLED, THROTTLED]

    with pytest.raises(ServiceUnavailableError):
        known()


@pytest.mark.parametrize("key", ["key", "orders/4711?line=1&x=%41+1"])
def test_the_api_takes_the_key_from_the_query(twilio: FaultServer, event: LoadEvent, key: str) -> None:
    """Whatever stands in it."""
    request = event("get_sms_api") | {"rawPath": "/sends", "routeKey": "GET /sends", "pathParameters": None}
    query = {"rawQueryString": f"idempotency_key={quote(key, safe='')}"}
    missing = handler(request | query, Context())
    send(idempotency_key=key)
    found = handler(request | query, Context())

    assert (404, "KeyNotFoundError") == (missing["statusCode"], json.loads(missing["body"])["title"])
    assert (200, key, "sent") == (found["statusCode"], *(json.loads(found["body"])[name] for name in NAMES))
    assert 1 == len(twilio.requests)


NAMES = ("idempotency_key", "state")
