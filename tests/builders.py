"""Helpers of several test files: they build a queue's records, and sends in progress or with unknown outcome."""

import json
from typing import Any

import pytest
import send_sms
from twilio_connector.errors import OutcomeUnknownError
from twilio_connector.messaging.idempotency import ClaimRequested, SendRecord, new_claim
from twilio_connector.messaging.idempotency_store import IdempotencyStore

from tests.conftest import Context
from tests.faults import FaultServer, faults
from tests.faults.wire import Request

SEND_QUEUE = "arn:aws:sqs:us-east-1:123456789012:send"


def record(
    body: Any,
    name: str = "1",
    *,
    receives: int = 1,
    arn: str = SEND_QUEUE,
    group: str | None = None,
    sent_at: float | None = None,
    handle: str = "handle",
) -> dict[str, Any]:
    """Return a queue's record; a body that is not a text becomes JSON. `sent_at` is in seconds since the epoch."""
    attributes = {"ApproximateReceiveCount": str(receives)} | ({"MessageGroupId": group} if group else {})
    return {
        "messageId": name,
        "receiptHandle": handle,
        "body": body if isinstance(body, str) else json.dumps(body),
        "attributes": attributes | ({} if sent_at is None else {"SentTimestamp": str(int(sent_at * 1000))}),
        "eventSource": "aws:sqs",
        "eventSourceARN": arn,
    }


def begin_send() -> SendRecord:
    """Write to the ledger that a message is being sent, and return its record."""
    claim = new_claim(
        idempotency_key="order-7",
        connection="default",
        caller="sqs",
        same="same",
        sms={"to": "+15005550006"},
        sought=None,
        lease_seconds=60,
    )
    return IdempotencyStore("ledger").write(ClaimRequested(claim, resend=False))


def leave_unknown(twilio: FaultServer, sms: dict[str, Any]) -> None:
    """Send a message to which Twilio answers with 500, so that its outcome is unknown."""
    twilio.script(faults.status(500), faults.OK)
    with pytest.raises(OutcomeUnknownError):
        send_sms.handler(sms, Context())


def posts(twilio: FaultServer) -> list[Request]:
    """Return the requests that send a message, without the look-ups of its outcome."""
    return [request for request in twilio.requests if request.method == "POST"]
