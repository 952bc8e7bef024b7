"""The reported age of records in the send queue and the buffer, and the lease of a send."""

import json
import time
from collections.abc import Callable

import pytest
import send_sms
import webhook

from tests.aws_wire import AwsWire
from tests.builders import record
from tests.conftest import Context
from tests.faults import FaultServer

SEND = "arn:aws:sqs:us-east-1:123456789012:send"
BUFFER = "arn:aws:sqs:us-east-1:123456789012:buffer"
SMS = {"to": "+15005550006", "message": "Hello"}
EVENT = {"detail-type": "Webhook Received", "detail": {"deduplication_id": "made-up"}, "uncertain": False}
THROTTLED = (400, "ThrottlingException")

type Metrics = Callable[[str], list[float]]


@pytest.fixture
def values(capsys: pytest.CaptureFixture[str]) -> Metrics:
    """Return a function that reads a metric's values from the functions' logs."""

    def written(name: str) -> list[float]:
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        return [value for line in lines for value in line.get(name, [])]

    return written


def ago(seconds: float | None) -> float | None:
    """Return the time this many seconds ago; None stays None."""
    return None if seconds is None else time.time() - seconds


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize(
    ("arn", "seconds"), [("arn:aws:sqs:us-east-1:123456789012:own", 1000), (SEND, None)], ids=["other", "no time"]
)
def test_other_records_have_no_age(aws_wire: AwsWire, values: Metrics, arn: str, seconds: float | None) -> None:
    """A record of the user's own queue has no SendQueueAge, and neither has a record without a time."""
    aws_wire.failures["GetSecretValue"] = [THROTTLED] * 4
    answer = send_sms.handler({"Records": [record(SMS, sent_at=ago(seconds), arn=arn)]}, Context())

    assert [{"itemIdentifier": "1"}] == answer["batchItemFailures"]
    assert [] == values("SendQueueAge")


def test_the_buffer_tells_its_age_while_the_bus_is_away(aws_wire: AwsWire, values: Metrics) -> None:
    """While EventBridge is unavailable, each delivery of a buffered record reports how long it has waited so far."""
    aws_wire.failures["PutEvents"] = [(400, "AccessDeniedException")] * 4
    answers = [
        webhook.handler({"Records": [record(EVENT, sent_at=ago(seconds), arn=BUFFER)]}, Context())
        for seconds in (180, 900)
    ]
    first, second = values("BufferAge")

    assert [{"batchItemFailures": [{"itemIdentifier": "1"}]}] * 2 == answers
    assert 180 <= first < 210
    assert 900 <= second < 930


def test_a_clock_that_is_behind_makes_no_negative_age(aws_wire: AwsWire, values: Metrics) -> None:
    """A record with a time in the future has the age 0, because the clocks of SQS and the function may differ."""
    aws_wire.failures["PutEvents"] = [(400, "AccessDeniedException")] * 2
    webhook.handler({"Records": [record(EVENT, sent_at=ago(-60), arn=BUFFER)]}, Context())

    assert [0] == values("BufferAge")


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize(("lease", "seconds", "least"), [("20", 300, 300), ("60", 20, 60)])
def test_a_send_is_not_lost_while_its_invocation_goes_on(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, lease: str, seconds: int, least: int
) -> None:
    """A send's lease lasts as long as SendLease, or until the end of its invocation if that is later."""
    monkeypatch.setenv("SEND_LEASE", lease)
    aws_wire.failures["TransactWriteItems"] = [THROTTLED] * 2  # so that it stays `sending`
    began = int(time.time())
    send_sms.handler(SMS | {"idempotency_key": "key"}, Context(seconds))
    (item,) = aws_wire.items.values()

    assert "sending" == item["state"]["S"]
    assert least <= int(item["lease_until"]["N"]) - began < least + 30
    assert 1 == len(twilio.requests)
