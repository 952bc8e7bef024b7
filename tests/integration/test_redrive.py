"""The redrive on the stack: if it is killed between any two of its steps and run again, each message is sent once."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from twilio_connector.messaging.idempotency import record_id

from tests.faults import AwsFault, AwsProxy, aws
from tests.integration.cloud import Cloud, eventually
from tests.readme import ROOT

SMS = {"to": "+15005550006", "connection": "default"}
STEPS = ["ReceiveMessage", "SendMessage", "DeleteMessage"]
"""The calls that redrive one record; a last ReceiveMessage finds that the queue is empty."""


def redrive(cloud: Cloud, *options: str, endpoint_url: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the redrive as an operator does, by default from the failed queue to the send queue."""
    queues = ["--from", cloud.outputs["FailedQueueUrl"], "--to", cloud.outputs["SendQueueUrl"]]
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": cloud.info["region"]}
    endpoint = {"AWS_ENDPOINT_URL": endpoint_url or cloud.info["aws_endpoint_url"]}
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "redrive.py"), *queues, *options],
        env=os.environ | credentials | endpoint,
        capture_output=True,
        text=True,
        check=False,
    )


def send_id(sms: dict[str, Any]) -> str:
    """Return the send id of an input for the default connection."""
    return record_id("default", sms["idempotency_key"])


def put(cloud: Cloud, body: Any, **attributes: dict[str, Any]) -> None:
    """Put a record in the failed queue."""
    cloud.client("sqs").send_message(
        QueueUrl=cloud.outputs["FailedQueueUrl"], MessageBody=json.dumps(body), MessageAttributes=attributes
    )


@pytest.fixture(autouse=True)
def _nothing_left(cloud: Cloud) -> Iterator[None]:
    """Empty the failed queue after each test, so that its records do not affect the next one."""
    yield
    cloud.client("sqs").purge_queue(QueueUrl=cloud.outputs["FailedQueueUrl"])


@pytest.mark.parametrize("step", range(len(STEPS) + 1), ids=[*(f"after-{step}" for step in STEPS), "never"])
def test_stop_between_two_steps(cloud: Cloud, step: int) -> None:
    """A redrive that is killed after any of its calls and run again sends the message once."""
    sms = SMS | {"message": uuid.uuid4().hex, "idempotency_key": uuid.uuid4().hex}
    put(cloud, sms, error={"DataType": "String", "StringValue": "TwilioUnavailableError"})
    with AwsProxy(cloud.info["aws_endpoint_url"]) as proxy:
        proxy.add(AwsFault(aws.visible_after(1, kill=step == 0), operation="ReceiveMessage"))
        if step in {1, 2}:
            proxy.add(AwsFault(aws.KILL_AFTER, operation=STEPS[step], times=1))
        killed = redrive(cloud, "--send-id", send_id(sms), endpoint_url=proxy.url)
        last = proxy.calls[-1].operation
    is_gone = step >= STEPS.index("DeleteMessage")
    again = eventually(
        lambda: redrive(cloud, "--send-id", send_id(sms)), until=lambda done: done.returncode == int(is_gone)
    )

    assert (0 if step == len(STEPS) else -9) == killed.returncode
    assert [*STEPS, "ReceiveMessage"][step] == last
    assert ("missing" if is_gone else "moved") in again.stdout
    eventually(lambda: cloud.stored(sms["message"]), until=bool)
    eventually(lambda: cloud.in_queue("SendQueue"), until=lambda count: count == 0)
    assert 1 == len(cloud.stored(sms["message"]))


@pytest.mark.parametrize("kind", ["event", "notification"])
def test_dead_letter(cloud: Cloud, kind: str) -> None:
    """A dead letter of the rule or of a topic is sent once, although it is put in the failed queue and moved twice."""
    text, name = uuid.uuid4().hex, str(uuid.uuid4())
    sms = {"to": SMS["to"], "message": text}
    letter = {
        "event": {"id": name, "source": "shop", "detail-type": "Send SMS Requested", "detail": sms},
        "notification": {
            "Type": "Notification",
            "MessageId": name,
            "TopicArn": "arn:aws:sns:us-east-1:000000000000:parcels",
            "Message": json.dumps(sms),
        },
    }[kind]
    for _ in range(2):
        put(cloud, letter, ERROR_CODE={"DataType": "String", "StringValue": "NO_PERMISSIONS"})
        done = redrive(cloud)
        assert (0, f"{record_id('default', name)} moved NO_PERMISSIONS\n") == (done.returncode, done.stdout)
        eventually(lambda: cloud.stored(text), until=bool)
        eventually(lambda: cloud.in_queue("SendQueue"), until=lambda count: count == 0)

    assert 1 == len(cloud.stored(text))
    assert 0 == cloud.in_queue("FailedQueue")


def test_record_without_key(cloud: Cloud) -> None:
    """A record without a key is not sent, and stays visible in the failed queue. The record beside it is sent."""
    unkeyed, keyed = SMS | {"message": uuid.uuid4().hex}, SMS | {"message": uuid.uuid4().hex}
    put(cloud, unkeyed)
    put(cloud, keyed | {"idempotency_key": uuid.uuid4().hex})
    done = redrive(cloud)

    assert (1, ["moved", "refused"]) == (done.returncode, sorted(line.split()[1] for line in done.stdout.splitlines()))
    eventually(lambda: cloud.stored(keyed["message"]), until=bool)
    records = cloud.client("sqs").receive_message(QueueUrl=cloud.outputs["FailedQueueUrl"])["Messages"]
    assert [unkeyed] == [json.loads(record["Body"]) for record in records]
    assert [] == cloud.stored(unkeyed["message"])


def test_all_attributes_go_along(cloud: Cloud) -> None:
    """The redrive keeps all message attributes of a record, of every type."""
    attributes: dict[str, Any] = {
        "error": {"DataType": "String", "StringValue": "TwilioRejectedError"},
        "tries": {"DataType": "Number.int", "StringValue": "10"},
        "trace": {"DataType": "Binary", "BinaryValue": b"\x00\x01\x02"},
    }
    put(cloud, SMS | {"message": "Hello", "idempotency_key": uuid.uuid4().hex}, **attributes)
    with cloud.queue() as (url, _):
        assert 0 == redrive(cloud, "--to", url).returncode
        (record,) = cloud.client("sqs").receive_message(QueueUrl=url, MessageAttributeNames=["All"])["Messages"]

    assert attributes == record["MessageAttributes"]
