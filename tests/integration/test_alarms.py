"""Alarm drills: each outage is made on the stack, and the alarm that is for it crosses its threshold.

The functions' own metrics are read from their logs, faults too as the template's metric filters count them there, and
those of AWS/Lambda from CloudWatch. Where an outage lasts for
minutes, each of a record's deliveries is an invocation with the time at which SQS would have it. What the emulator has
no metrics of, queues, is a model of what was seen in them.
"""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local.rights import transformed
from tests.alarms import MINUTE, Datapoints, Metric, Waiting, alarms, filters, fires, notifying
from tests.cloudformation import EARLIER
from tests.faults import AwsFault, AwsProxy, FaultServer, aws, faults
from tests.integration.cloud import Cloud, eventually
from tests.mutants import send

TO = "+15005550006"
OUTAGE = 20 * MINUTE
BUFFER_VISIBILITY = 180


class Drill:
    """What was measured in an outage, and which alarms it raises."""

    def __init__(self, cloud: Cloud) -> None:
        """Begin to measure."""
        self._cloud = cloud
        self.points = Datapoints()
        self._seen: dict[str, int] = {}
        self._began = datetime.now(UTC)
        for function in ("Webhook", "SendSms", "GetSms"):
            self._new_lines(function)

    def invoke(self, function: str, event: Any, minute: float = 0) -> Any:
        """Invoke a function's alias, and take what it measures as that of a minute."""
        began = int(time.time() * 1000)
        answer = self._cloud.client("lambda").invoke(
            FunctionName=self._cloud.outputs[f"{function}FunctionArn"], Payload=json.dumps(event)
        )
        pattern, faults = filters(transformed(), self._cloud.info["stack_name"])[f"{function}Logs"]
        for line in self._lines(function, began, failed="FunctionError" in answer):
            if "_aws" in line:
                self.points.embedded(line, minute * MINUTE)
            elif pattern.matches(line):
                self.points.add(faults, minute * MINUTE, 1)
        return json.loads(answer["Payload"].read())

    def of_lambda(self, function: str, name: str) -> None:
        """Take what CloudWatch has of a function since the drill began."""
        found = self._cloud.client("cloudwatch").get_metric_statistics(
            Namespace="AWS/Lambda",
            MetricName=name,
            Dimensions=[{"Name": "FunctionName", "Value": self._cloud.resource(f"{function}Function")}],
            StartTime=self._began - timedelta(minutes=1),
            EndTime=datetime.now(UTC) + timedelta(minutes=1),
            Period=MINUTE,
            Statistics=["Sum"],
        )["Datapoints"]
        metric = Metric.of("AWS/Lambda", name, FunctionName=f"<{function}Function>")
        for point in found:
            self.points.add(metric, max(0, (point["Timestamp"] - self._began).total_seconds()), point["Sum"])

    def raises(self, *, earlier: bool = False) -> set[str]:
        """Return the alarms that fire: this template's, or those of commit b2091fe."""
        template = transformed(EARLIER) if earlier else transformed()
        every = alarms(template, self._cloud.info["stack_name"])
        return {name for name, alarm in every.items() if fires(alarm, self.points, OUTAGE)}

    def notifies(self) -> set[str]:
        """Return the alarms that tell the topic."""
        return notifying(transformed(), self.raises())

    def _lines(self, function: str, began: int, *, failed: bool) -> list[dict[str, Any]]:
        """Wait for what an invocation writes: its metrics, and the runtime's line of one that failed.

        The emulator keeps a line that came late until the function is invoked again. A wrong input turns on no alarm.
        Metrics of before `began`, in milliseconds, are returned, and are not those that are waited for.
        """
        wanted = {"_aws", "errorType"} if failed else {"_aws"}
        found: list[dict[str, Any]] = []

        def missing() -> set[str]:
            lines = self._new_lines(function)
            found.extend(json.loads(line) for line in lines if line.startswith("{"))
            own = [line for line in found if line.get("_aws", {}).get("Timestamp", began) >= began]
            left = wanted - {name for line in own for name in line}
            if left and lines:
                self._cloud.client("lambda").invoke(
                    FunctionName=self._cloud.outputs[f"{function}FunctionArn"], Payload=b"{}"
                )
            return left

        eventually(missing, until=lambda left: not left)
        return found

    def _new_lines(self, function: str) -> list[str]:
        pages = self._cloud.client("logs").get_paginator("filter_log_events")
        group = self._cloud.resource(f"{function}Logs")
        lines = [event["message"] for page in pages.paginate(logGroupName=group) for event in page["events"]]
        new = lines[self._seen.get(function, 0) :]
        self._seen[function] = len(lines)
        return new


@pytest.fixture
def drill(cloud: Cloud) -> Drill:
    """Begin a drill."""
    return Drill(cloud)


def record(arn: str, body: Any, minutes: float, receives: int) -> dict[str, Any]:
    """Return an event with a record that was put in a queue so many minutes ago."""
    sent = int((time.time() - minutes * MINUTE) * 1000)
    attributes = {"SentTimestamp": str(sent), "ApproximateReceiveCount": str(receives)}
    return {
        "Records": [
            {
                "messageId": str(uuid.uuid4()),
                "receiptHandle": "made-up",
                "body": json.dumps(body),
                "attributes": attributes,
                "eventSource": "aws:sqs",
                "eventSourceARN": arn,
            }
        ]
    }


def attributes(cloud: Cloud, queue: str) -> tuple[int, int]:
    """Return how many records of a queue are visible, and how many under way."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = cloud.client("sqs").get_queue_attributes(QueueUrl=cloud.resource(queue), AttributeNames=names)
    visible, under_way = (int(found["Attributes"][name]) for name in names)
    return visible, under_way


def test_bus(cloud: Cloud, aws_proxy: AwsProxy, drill: Drill) -> None:
    """While the bus takes nothing, an event of Twilio comes out of the buffer every three minutes, and goes back.

    SQS's own age leaves such a record out from the third time on: the alarms of commit b2091fe see nothing.
    """
    aws_proxy.add(AwsFault(aws.THROTTLE, operation="PutEvents"))
    text = uuid.uuid4().hex
    assert 200 == send(cloud.inbound(text).request(cloud.target()), cloud.target()).status
    eventually(lambda: attributes(cloud, "BufferQueue"), until=lambda seen: seen == (0, 1))  # it failed, and waits

    event = {"detail-type": "Webhook Received", "detail": {"deduplication_id": text}, "uncertain": False}
    deliveries = range(0, OUTAGE + 1, BUFFER_VISIBILITY)
    for number, second in enumerate(deliveries, 1):
        delivery = record(cloud.outputs["BufferQueueArn"], event, second / MINUTE, number)
        answer = drill.invoke("Webhook", delivery, second / MINUTE)
        assert 1 == len(answer["batchItemFailures"])
    drill.points.queue(
        "<BufferQueue.QueueName>", [Waiting(0, tuple(map(float, deliveries)), BUFFER_VISIBILITY)], OUTAGE
    )
    drill.points.queue("<BufferDeadLetterQueue.QueueName>", [], OUTAGE)

    assert {"BufferQueueAgeAlarm"} == drill.raises()
    assert {"ReceivingBrokenAlarm"} == drill.notifies()
    assert set() == drill.raises(earlier=True)


def test_twilio(twilio_relay: FaultServer, drill: Drill) -> None:
    """Twilio fails, whatever is asked, and the client's retries with it: that is no fault of the function."""
    twilio_relay.script(*[faults.status(503)] * 20)
    for minute in range(3):
        answer = drill.invoke("GetSms", {"message_sid": f"SM{'0' * 32}"}, minute)
        assert "TwilioUnavailableError" == answer["errorType"]
    drill.of_lambda("GetSms", "Errors")

    assert {"TwilioUnavailableAlarm"} == drill.raises()
    assert {"SendingBrokenAlarm"} == drill.notifies()
    assert {"GetSmsErrorsAlarm"} == drill.raises(earlier=True)


def test_a_callers_mistake(drill: Drill) -> None:
    """A wrong input is an error of the function to Lambda. Its alarms of commit b2091fe fired, and now none does."""
    assert "InvalidInputError" == drill.invoke("GetSms", {})["errorType"]
    drill.of_lambda("GetSms", "Errors")

    assert set() == drill.raises()
    assert {"GetSmsErrorsAlarm"} == drill.raises(earlier=True)


def test_dynamodb(aws_proxy: AwsProxy, drill: Drill) -> None:
    """DynamoDB does not answer whoever asks for a key directly; the runtime's own line says so."""
    aws_proxy.add(AwsFault(aws.THROTTLE, operation="GetItem"))
    assert "ServiceUnavailableError" == drill.invoke("GetSms", {"idempotency_key": uuid.uuid4().hex})["errorType"]

    assert {"GetSmsErrorsAlarm"} == drill.raises() == drill.notifies()


def test_credentials(cloud: Cloud, drill: Drill) -> None:
    """Twilio refuses the credentials, also after they were read anew.

    No test before used them: a container leaves refused credentials alone for a while, and counts nothing.
    """
    manager, name = cloud.client("secretsmanager"), uuid.uuid4().hex
    default = json.loads(manager.get_secret_value(SecretId="twilio/default")["SecretString"])
    manager.create_secret(
        Name=f"twilio/{name}", SecretString=json.dumps(default | {"api_key_secret": uuid.uuid4().hex})
    )
    sms = {"to": TO, "message": uuid.uuid4().hex, "connection": name}
    answer = drill.invoke("SendSms", record(cloud.outputs["SendQueueArn"], sms, 0, 1))

    assert 1 == len(answer["batchItemFailures"])
    assert {"CredentialsRefusedAlarm"} == drill.raises()


def test_queue(cloud: Cloud, drill: Drill) -> None:
    """Nothing takes records from the send queue: its mapping is off."""
    with off(cloud):
        cloud.client("sqs").send_message(
            QueueUrl=cloud.outputs["SendQueueUrl"], MessageBody=json.dumps({"to": TO, "message": uuid.uuid4().hex})
        )
        seen = eventually(lambda: attributes(cloud, "SendQueue"), until=lambda seen: seen[0] > 0)
        time.sleep(1)
        assert (seen, (1, 0)) == (attributes(cloud, "SendQueue"), seen)
    drill.points.queue("<SendQueue.QueueName>", [Waiting(0)], OUTAGE)

    assert {"SendQueueUnreadAlarm"} == drill.raises()
    assert {"SendingBrokenAlarm"} == drill.notifies()


@contextmanager
def off(cloud: Cloud) -> Iterator[None]:
    """Let the send queue's mapping rest."""
    functions = cloud.client("lambda")
    (mapping,) = functions.list_event_source_mappings(EventSourceArn=cloud.outputs["SendQueueArn"])[
        "EventSourceMappings"
    ]
    functions.update_event_source_mapping(UUID=mapping["UUID"], Enabled=False)
    try:
        yield
    finally:
        functions.update_event_source_mapping(UUID=mapping["UUID"], Enabled=True)


@pytest.mark.parametrize("function", ["SendSms", "Webhook", "Resolve"])
def test_throttle(cloud: Cloud, drill: Drill, function: str) -> None:
    """Lambda has no concurrency left: the function says nothing, and Lambda does."""
    functions, name = cloud.client("lambda"), cloud.resource(f"{function}Function")
    functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    try:
        with pytest.raises(ClientError, match="TooManyRequests"):
            functions.invoke(FunctionName=name, Payload=b"{}")  # the emulator lets the alias through
    finally:
        functions.delete_function_concurrency(FunctionName=name)
    drill.of_lambda(function, "Throttles")

    assert {f"{function}ThrottlesAlarm"} == drill.raises()
    assert set() == drill.raises(earlier=True)
