"""Copy the witnesses' records to the journal: Twilio's messages, the bus's events, the failed queue's records."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from local import loopback
from tests.chaos.journal import BUS, FAILED, TRUTH, Journal
from tests.chaos.webhooks import NAIVE

_PAGE_SIZE = 1000
_RULE = "chaos"
_PUBLISHED = {"source": ["twilio-connector", "twilio", NAIVE]}


class Twilio:
    """The emulator of Twilio, called directly and not through the relay."""

    def __init__(self, url: str, accounts: list[tuple[str, str]], account_sid: str) -> None:
        """Take the emulator's URL, the credentials that the connections use, and the account's SID."""
        self._url = f"{url}/2010-04-01/Accounts/{account_sid}/Messages.json"
        self._accounts = accounts

    def requests_left(self) -> int:
        """Return how many more requests the emulator accepts, for the credentials that have the fewest left."""
        answers = [loopback.request("GET", f"{self._url}?PageSize=1", auth=auth) for auth in self._accounts]
        return min(int(answer.headers["X-RateLimit-Remaining"]) for answer in answers)

    def drain(self, journal: Journal) -> int:
        """Record all messages that the emulator holds; return their number."""
        count, page = 0, 0
        while True:
            query = f"?PageSize={_PAGE_SIZE}&Page={page}"
            answer = loopback.request("GET", self._url + query, auth=self._accounts[0])
            answer.raise_for_status()
            found = answer.json()
            for message in found["messages"]:
                names = ("sid", "to", "body", "status", "date_created")
                journal.write(TRUTH, **{name: message[name] for name in names})
            count += len(found["messages"])
            page += 1
            if not found["next_page_uri"]:
                return count


class Reports:
    """The function's reports to callers that do not wait for an answer: events, and records in the failed queue."""

    def __init__(self, sqs: Any, outputs: Mapping[str, str], bus_queue_url: str, journal: Journal) -> None:
        """Read from the queue that gets the bus's events, and from the failed queue."""
        self._sqs = sqs
        self._bus_queue_url = bus_queue_url
        self._failed_queue_url = outputs["FailedQueueUrl"]
        self._journal = journal
        self._failed: list[str] = []

    def failed(self) -> list[str]:
        """Return the bodies of the records that came to the failed queue since the last call."""
        bodies, self._failed = self._failed, []
        return bodies

    def drain(self, hear: Callable[[dict[str, Any]], None]) -> None:
        """Record all events and failed records that are there now, and pass each event to `hear`."""
        for body, _ in self._taken(self._bus_queue_url):
            event = json.loads(body)
            self._journal.write(BUS, event=event)
            hear(event)
        for body, attributes in self._taken(self._failed_queue_url):
            self._journal.write(FAILED, body=body, attributes=attributes)
            self._failed.append(body)

    def _taken(self, url: str) -> Iterator[tuple[str, dict[str, str]]]:
        while messages := self._sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            for message in messages:
                attributes = message.get("MessageAttributes", {})
                yield message["Body"], {name: value["StringValue"] for name, value in attributes.items()}
            entries = [
                {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                for number, message in enumerate(messages)
            ]
            self._sqs.delete_message_batch(QueueUrl=url, Entries=entries)


def bus_queue(sqs: Any, events: Any, bus: str) -> str:
    """Create a queue that receives all events of the connector and the naive receiver; return its URL."""
    url = sqs.create_queue(QueueName=_RULE)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    rule = events.put_rule(Name=_RULE, EventBusName=bus, EventPattern=json.dumps(_PUBLISHED))["RuleArn"]
    policy = {
        "Effect": "Allow",
        "Principal": {"Service": "events.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": arn,
        "Condition": {"ArnEquals": {"aws:SourceArn": rule}},
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": document})
    events.put_targets(Rule=_RULE, EventBusName=bus, Targets=[{"Id": "queue", "Arn": arn}])
    return str(url)


def in_queue(sqs: Any, url: str) -> int:
    """Return how many records a queue holds, including those that are in flight or delayed."""
    names = [f"ApproximateNumberOfMessages{which}" for which in ("", "NotVisible", "Delayed")]
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return sum(int(attributes[name]) for name in names)
