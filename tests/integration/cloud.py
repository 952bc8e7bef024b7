"""The local stack for tests: AWS clients of the deployer and of a caller, the two APIs, and Twilio's emulator."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import boto3
import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.log_groups import log_events
from tests.mutants import Target, Webhook

SECONDS = 30
"""How long a test waits for an expected result."""


class Cloud:
    """A running stack; `info` is its `.local/stack.json`."""

    def __init__(self, info: dict[str, Any]) -> None:
        """Take the content of `.local/stack.json`."""
        self.info = info
        self.outputs: dict[str, str] = info["outputs"]
        self.client = cache(self._client)

    def _client(self, service: str, *, as_caller: bool = False) -> Any:
        """Return an AWS client of the deployer, or of the caller, who has only the documentation's policy."""
        caller = self.info["caller"]
        return boto3.client(
            service,
            endpoint_url=self.info["aws_endpoint_url"],
            region_name=self.info["region"],
            aws_access_key_id=caller["access_key_id"] if as_caller else "test",
            aws_secret_access_key=caller["secret_access_key"] if as_caller else "test",
        )

    def invoke(self, function: str, event: Any) -> Any:
        """Invoke a function as the caller, by its name such as `SendSms`, and return its answer or its error."""
        answer = self.client("lambda", as_caller=True).invoke(
            FunctionName=self.outputs[f"{function}FunctionArn"], Payload=json.dumps(event)
        )
        return json.loads(answer["Payload"].read())

    def api(
        self, method: str, path: str, body: Any = None, *, signed: bool = True, headers: dict[str, str] | None = None
    ) -> requests.Response:
        """Call the Actions API, signed by the caller unless `signed` is false."""
        caller = self.info["caller"]
        request = AWSRequest(
            method,
            self.info["actions_api_url"] + path,
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": "application/json", **(headers or {})},
        )
        if signed:
            credentials = Credentials(caller["access_key_id"], caller["secret_access_key"])
            SigV4Auth(credentials, "execute-api", self.info["region"]).add_auth(request)
        return requests.request(method, request.url, data=request.data, headers=dict(request.headers), timeout=SECONDS)

    def twilio(self, method: str, path: str, **form: str) -> Any:
        """Call Twilio's emulator with the account's auth token, and return the JSON of its answer."""
        twilio = self.info["twilio"]
        answer = requests.request(
            method,
            twilio["url"] + path,
            data=form or None,
            auth=(twilio["account_sid"], twilio["auth_token"]),
            timeout=SECONDS,
        )
        answer.raise_for_status()
        return answer.json()

    def stored(self, text: str) -> list[dict[str, Any]]:
        """Return the messages with this text that Twilio's emulator holds."""
        path = f"/2010-04-01/Accounts/{self.info['twilio']['account_sid']}/Messages.json?PageSize=1000"
        return [message for message in self.twilio("GET", path)["messages"] if message["body"] == text]

    def inbound(self, text: str) -> Webhook:
        """Return the webhook of an inbound message to the number, with a new SID."""
        sid = f"SM{uuid.uuid4().hex}"
        fields = {"MessageSid": sid, "SmsSid": sid, "SmsStatus": "received", "Body": text, "NumMedia": "0"}
        return Webhook(name=text, fields=fields | {"From": "+15550100123", "To": self.info["twilio"]["number"]})

    def target(self, connection: str | None = None, token: str | None = None) -> Target:
        """Return the target of a connection's webhooks: the URL, the account, and the token that signs them."""
        twilio, base = self.info["twilio"], self.info["webhook_url"].removesuffix("/webhook")
        return Target(base, twilio["account_sid"], token or twilio["auth_token"], connection)

    def published(self, bus: "Bus", *texts: str) -> list[list[dict[str, Any]]]:
        """Wait until an event with each text is published and the buffer is empty; return all events of each text."""
        eventually(
            lambda: json.dumps(bus.drain(wait=1)), until=lambda every: all(text in every for text in texts), seconds=60
        )
        eventually(lambda: self.in_queue("BufferQueue"), until=lambda count: not count, seconds=60)
        every = [(event, json.dumps(event)) for event in bus.drain(wait=1)]
        return [[event for event, whole in every if text in whole] for text in texts]

    def in_queue(self, logical_id: str) -> int:
        """Return the number of records in a queue of the stack, including delayed ones and those in flight."""
        names = [f"ApproximateNumberOfMessages{which}" for which in ("", "NotVisible", "Delayed")]
        url = self.resource(logical_id)
        attributes = self.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return sum(int(attributes[name]) for name in names)

    @contextmanager
    def queue(self) -> Iterator[tuple[str, str]]:
        """Create a queue for one test, give its URL and ARN, and delete it afterwards."""
        sqs = self.client("sqs")
        url = sqs.create_queue(QueueName=f"test-{uuid.uuid4().hex}")["QueueUrl"]
        try:
            attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]
            yield url, attributes["QueueArn"]
        finally:
            sqs.delete_queue(QueueUrl=url)

    @contextmanager
    def events(self, *sources: str) -> Iterator["Bus"]:
        """Give the events on the stack's bus from these sources; by default those of Twilio and of the connector."""
        events, name = self.client("events"), f"test-{uuid.uuid4().hex}"
        bus = self.outputs["EventBusName"]
        with self.queue() as (url, arn):
            pattern = json.dumps({"source": sources or ["twilio", "twilio-connector"]})
            events.put_rule(Name=name, EventBusName=bus, EventPattern=pattern)
            events.put_targets(Rule=name, EventBusName=bus, Targets=[{"Id": "queue", "Arn": arn}])
            try:
                yield Bus(self.client("sqs"), url)
            finally:
                events.remove_targets(Rule=name, EventBusName=bus, Ids=["queue"])
                events.delete_rule(Name=name, EventBusName=bus)

    def resource(self, logical_id: str) -> str:
        """Return the physical name of a resource of the stack."""
        found = self.client("cloudformation").describe_stack_resource(
            StackName=self.info["stack_name"], LogicalResourceId=logical_id
        )
        return str(found["StackResourceDetail"]["PhysicalResourceId"])

    def log_lines(self) -> list[str]:
        """Return all lines in all log groups."""
        logs = self.client("logs")
        groups = [group["logGroupName"] for group in logs.describe_log_groups()["logGroups"]]
        return [event["message"] for group in groups for event in log_events(logs, group)]


class Bus:
    """The events of the bus, read from a queue that is the target of a rule."""

    def __init__(self, sqs: Any, url: str) -> None:
        """Take the client and the URL of the queue."""
        self._sqs = sqs
        self._url = url
        self.events: list[dict[str, Any]] = []

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = SECONDS) -> dict[str, Any]:
        """Return the first event that `wanted` accepts; raise TimeoutError if none arrives in time."""
        deadline = time.monotonic() + seconds
        while not (found := [event for event in self.events if wanted(event)]):
            if time.monotonic() > deadline:
                raise TimeoutError
            self.drain(wait=1)
        return found[0]

    def drain(self, wait: int = 0) -> list[dict[str, Any]]:
        """Receive everything in the queue, and return all events so far."""
        while messages := self._sqs.receive_message(
            QueueUrl=self._url, MaxNumberOfMessages=10, WaitTimeSeconds=wait
        ).get("Messages", []):
            for message in messages:
                self.events.append(json.loads(message["Body"]))
                self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])
            wait = 0
        return self.events


def eventually[T](attempt: Callable[[], T], *, until: Callable[[T], bool], seconds: float = SECONDS) -> T:
    """Call `attempt` until `until` accepts its result, and return that; fail with the last result after the timeout."""
    deadline = time.monotonic() + seconds
    while not until(result := attempt()):
        assert time.monotonic() < deadline, result
        time.sleep(0.1)
    return result
