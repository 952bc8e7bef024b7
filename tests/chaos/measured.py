"""Record the data that CloudWatch would have of a run: the functions' log lines, and the queues' visible records."""

import threading
from typing import Any

from local.aws import client
from tests.chaos.journal import LOGS, QUEUES, Journal
from tests.log_groups import log_events

_EVERY = 2  # seconds
_GROUP, _QUEUE = "AWS::Logs::LogGroup", "AWS::SQS::Queue"


class Measured:
    """The logs and the queues of a stack, by their names in the template."""

    def __init__(self, aws_url: str, stack_name: str, journal: Journal) -> None:
        """Take the URL of AWS's emulator, the stack's name, and the journal to write to."""
        self._logs, self._sqs = client("logs", aws_url), client("sqs", aws_url)
        resources = client("cloudformation", aws_url).describe_stack_resources(StackName=stack_name)["StackResources"]
        self._resources: list[Any] = resources
        self._journal = journal

    def watch(self, stopped: threading.Event) -> None:
        """Record the number of visible records in each queue every two seconds, until the run is stopped."""
        while not stopped.wait(_EVERY):
            for name, url in self._named(_QUEUE):
                attributes = self._sqs.get_queue_attributes(
                    QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"]
                )["Attributes"]
                self._journal.write(QUEUES, queue=name, visible=int(attributes["ApproximateNumberOfMessages"]))

    def take_logs(self) -> int:
        """Record all log lines; return their number."""
        count = 0
        for name, group in self._named(_GROUP):
            for event in log_events(self._logs, group):
                self._journal.write(LOGS, group=name, time=event["timestamp"] / 1000, message=event["message"])
                count += 1
        return count

    def _named(self, kind: str) -> list[tuple[str, str]]:
        return [
            (each["LogicalResourceId"], each["PhysicalResourceId"])
            for each in self._resources
            if each["ResourceType"] == kind
        ]
