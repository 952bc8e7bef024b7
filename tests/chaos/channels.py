"""How each caller sends, reads the answer, and asks again: as the documentation tells it to."""

import functools
import json
import random
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple

import boto3
import requests
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from local.aws import REGION, ROOT_USER, Identity, call_api
from tests.chaos.journal import ANSWERS, INTENTS, KNOWN, RESOLVED, Journal
from tests.chaos.schedule import Callback, Channel, Part, Send
from tests.chaos.setting import KEY_ONLY
from tests.chaos.verdict import LATER, Key

AT_ONCE = 12
"""So many calls wait for an answer at the same time."""
_STARTS = 4
_TRIES = 6
_SECONDS = 150  # longer than any function may run
_PATIENCE = 120  # seconds that a caller asks again while another one sends
_LONGEST_PAUSE = 4  # seconds
_CONNECTIONS = 128
_SOURCE = "chaos"

_lost = (BotoCoreError, ClientError, requests.RequestException, ValueError)


class Answer(NamedTuple):
    """What a caller was told: `message` with its SID, `error` with its class, or `lost`.

    `known_as` is the id that a queue, topic or bus gave to what it took, `evidence` what shows the message.
    """

    answer: str
    sid: str | None = None
    error: str | None = None
    known_as: str | None = None
    evidence: str | None = None


LOST = Answer("lost")
TAKEN = Answer("taken")
"""The queue, topic, bus or Lambda took the input."""


def start_few_at_a_time(count: int, *calls: Callable[[], object]) -> None:
    """Let so many processes start for each call: all at once would take too long for each."""
    for width in range(_STARTS, count + _STARTS, _STARTS):
        with ThreadPoolExecutor(len(calls) * width) as pool:
            for future in [pool.submit(call) for call in calls for _ in range(width)]:
                future.result()


class Callers:
    """All who send through one stack."""

    def __init__(
        self, stack: Mapping[str, Any], topic: str, machine: str, journal: Journal, keys: dict[str, Key]
    ) -> None:
        """Take what the local stack says of itself, the topic and the state machine; `keys` hear what is answered.

        A key that a queue, topic or bus gave is added to them.
        """
        self._stack = stack
        self._keys = keys
        self._given: dict[str, str] = {}
        self._outputs: Mapping[str, str] = stack["outputs"]
        self._caller = Identity(**stack["caller"])
        self._topic = topic
        self._machine = machine
        self._journal = journal
        self._slots = threading.Semaphore(AT_ONCE)
        self._connections = list(stack["connections"].values())
        self.stopped = threading.Event()
        self._lambda = self.client("lambda", self._caller)
        self.functions = self.client("lambda")
        self.sqs = self.client("sqs")
        self._sns = self.client("sns")
        self.events = self.client("events")
        self._machines = self.client("stepfunctions")
        self._by_channel: dict[Channel, Callable[[dict[str, Any]], Answer]] = {
            Channel.API: self._api,
            Channel.DIRECT: self._direct,
            Channel.ASYNCHRONOUS: self._asynchronous,
            Channel.SQS: self._queue,
            Channel.SNS: self._publish,
            Channel.EVENTBRIDGE: self._request,
            Channel.STEP_FUNCTIONS: self._execute,
        }

    def client(self, service: str, identity: Identity = ROOT_USER) -> Any:
        """Return a client for many threads, that repeats nothing by itself."""
        config = Config(
            proxies={}, read_timeout=_SECONDS, retries={"max_attempts": 0}, max_pool_connections=_CONNECTIONS
        )
        return boto3.client(
            service,
            endpoint_url=self._stack["aws_endpoint_url"],
            region_name=REGION,
            aws_access_key_id=identity.access_key_id,
            aws_secret_access_key=identity.secret_access_key,
            config=config,
        )

    def sms(self, send: Send) -> dict[str, Any]:
        """Return the input; accounts and recipients take turns, so that none has a long list."""
        number = zlib.crc32(send.text.encode())
        connection = send.connection or self._connections[number % len(self._connections)]
        key = {"idempotency_key": send.key} if send.has_key else {}
        return {
            "to": f"+1555010{number % 10_000:04}",
            "message": send.text,
            "connection": KEY_ONLY if send.callback is Callback.NONE else connection,
            **send.fields,
            **key,
        }

    def send(self, send: Send) -> None:
        """Send a key as its channel and its part ask for."""
        if send.part is Part.REDELIVERY:
            self._deliver_twice(send)
        elif send.part is Part.CONFLICT:
            self.ask(send)
            self.ask(send, other={"message": f"{send.text} after all"})
        elif send.channel in {Channel.API, Channel.DIRECT, Channel.STEP_FUNCTIONS}:
            self.ask(send)
        else:
            self._hand_over(send, lambda: self._by_channel[send.channel](self.sms(send)))

    def race(self, sends: Sequence[Send], callers: int) -> None:
        """Send each key by so many callers at the same time."""
        start = threading.Barrier(callers)

        def caller(_: int) -> None:
            for send in sends:
                start.wait(2 * _PATIENCE)
                self.ask(send)

        self._slots = threading.Semaphore(callers)
        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(caller, range(callers)))
        self._slots = threading.Semaphore(AT_ONCE)

    def warm_up(self, count: int) -> None:
        """Let so many processes of each function start."""
        dry_run = {"to": "+15005550006", "message": "Chaos", "dry_run": True}
        start_few_at_a_time(count, lambda: self._direct(dry_run), self._knock)

    def confirm(self, send: Send) -> None:
        """Ask what became of an asynchronous invocation, with the same key."""
        self.ask(send, by=Channel.DIRECT)

    def ask(self, send: Send, *, by: Channel | None = None, other: Mapping[str, Any] | None = None) -> None:
        """Call until there is an answer on which nothing more can be done."""
        deadline = time.monotonic() + _PATIENCE
        failures = attempt = 0
        call = functools.partial(self._by_channel[by or send.channel], self.sms(send) | dict(other or {}))
        while not self.stopped.is_set():
            attempt += 1
            answer = self._note(send, call, 2 if other else 1)
            if answer.error == "SendInProgressError" and time.monotonic() < deadline:
                self.stopped.wait(random.uniform(0.5, 1.5) * min(attempt, _LONGEST_PAUSE))
                continue
            failures += 1
            if (answer.error not in LATER and answer != LOST) or failures >= _TRIES:
                return
            self.stopped.wait(random.uniform(0.2, 0.4) * 2 ** min(failures, 3))

    def redrive(self, body: str) -> None:
        """Put a record of the failed queue in the send queue, as it is."""
        self._journal.write(INTENTS, key=json.loads(body).get("idempotency_key"), redriven=True)
        self.sqs.send_message(QueueUrl=self._outputs["SendQueueUrl"], MessageBody=body)

    def known(self, send: Send) -> str | None:
        """Ask what the connector knows of a key, and write it down; return the state."""
        key = self._given.get(send.key, send.key)
        asked = {"idempotency_key": key, "connection": self.sms(send)["connection"]}
        with self._slots:
            answer = self.functions.invoke(FunctionName=self._outputs["GetSmsFunctionArn"], Payload=json.dumps(asked))
            body = json.loads(answer["Payload"].read())
        error = str(body.get("errorType")) if "FunctionError" in answer else None
        told = {name: body.get(name) for name in ("state", "evidence", "candidate_sid", "claimed_at")}
        sid = (body.get("message") or {}).get("sid")
        self._journal.write(KNOWN, key=send.key, refused=error, sid=sid, **told)
        state: str | None = told["state"]
        return state

    def resolve(self) -> None:
        """Do what the schedule does every minute; where a run fails, the next one goes on."""
        began, told = time.time(), None
        with suppress(*_lost):
            answer = self.functions.invoke(FunctionName=self._outputs["ResolveFunctionArn"], Payload=b"{}")
            told = json.loads(answer["Payload"].read())
        self._journal.write(RESOLVED, began=began, answer=told)

    def _hand_over(self, send: Send, call: Callable[[], Answer]) -> None:
        """Repeat until it is taken; without a key that would be another message."""
        while not self.stopped.is_set() and self._note(send, call) == LOST and send.has_key:
            self.stopped.wait(0.5)

    def _note(self, send: Send, call: Callable[[], Answer], number: int = 1) -> Answer:
        """Make a call with the first or the second input, and write down that it was made, and what came of it."""
        self._journal.write(
            INTENTS,
            key=send.key,
            channel=send.channel,
            part=send.part,
            crash=send.crash,
            markers=send.markers,
            callback=send.callback,
            words=send.words,
            has_key=send.has_key,
            input=number,
        )
        # An execution waits by itself for minutes; what it calls is not counted.
        with nullcontext() if send.channel is Channel.STEP_FUNCTIONS else self._slots:
            try:
                answer = call()
            except _lost:
                answer = LOST
        known_as = None if send.has_key else answer.known_as
        if known_as:
            self._keys[known_as] = self._keys[send.key]
            self._given[send.key] = known_as
        line = {"key": send.key, "channel": send.channel, "input": number, **answer._asdict(), "known_as": known_as}
        self._journal.write(ANSWERS, **line)
        self._keys[send.key].hear(line)
        return answer

    def _knock(self) -> Answer:
        """Call the webhook as a stranger, who is refused."""
        call_api("GET", self._outputs["WebhookUrl"])
        return LOST

    def _api(self, sms: dict[str, Any]) -> Answer:
        answer = call_api("POST", f"{self._outputs['ActionsApiUrl']}/messages", self._caller, body=json.dumps(sms))
        body = answer.json()
        if answer.status_code == requests.codes.created:
            return _message(body)
        is_ours = answer.headers.get("Content-Type") == "application/problem+json"
        return Answer("error", error=body["title"]) if is_ours else LOST

    def _direct(self, sms: Any) -> Answer:
        answer = self._lambda.invoke(FunctionName=self._outputs["SendSmsFunctionArn"], Payload=json.dumps(sms))
        body = json.loads(answer["Payload"].read())
        if "FunctionError" not in answer:
            return _message(body) if body and "sid" in body else TAKEN
        name = str(body.get("errorType"))
        return Answer("error", error=name) if _is_class(name) else LOST

    def _asynchronous(self, sms: dict[str, Any]) -> Answer:
        arn = self._outputs["SendSmsFunctionArn"]
        self._lambda.invoke(FunctionName=arn, Payload=json.dumps(sms), InvocationType="Event")
        return TAKEN

    def _queue(self, body: dict[str, Any]) -> Answer:
        answer = self.sqs.send_message(QueueUrl=self._outputs["SendQueueUrl"], MessageBody=json.dumps(body))
        return Answer(TAKEN.answer, known_as=answer["MessageId"])

    def _publish(self, sms: dict[str, Any]) -> Answer:
        answer = self._sns.publish(TopicArn=self._topic, Message=json.dumps(sms))
        return Answer(TAKEN.answer, known_as=answer["MessageId"])

    def _request(self, sms: dict[str, Any]) -> Answer:
        entry = {
            "EventBusName": self._outputs["EventBusName"],
            "Source": _SOURCE,
            "DetailType": "Send SMS Requested",
            "Detail": json.dumps(sms),
        }
        answer = self.events.put_events(Entries=[entry])
        return LOST if answer["FailedEntryCount"] else Answer(TAKEN.answer, known_as=answer["Entries"][0]["EventId"])

    def _execute(self, sms: dict[str, Any]) -> Answer:
        """Run the state machine, which repeats what may be repeated."""
        arn = self._machines.start_execution(stateMachineArn=self._machine, input=json.dumps(sms))["executionArn"]
        deadline = time.monotonic() + _PATIENCE
        while not self.stopped.is_set() and time.monotonic() < deadline:
            done = self._machines.describe_execution(executionArn=arn)
            if done["status"] != "RUNNING":
                return _end(done)
            self.stopped.wait(0.5)
        return LOST

    def _deliver_twice(self, send: Send) -> None:
        """Deliver one event, notification or queue message twice: through the queue, and to the function itself.

        The key of an event or a notification is its own id. The function puts what it is given on the queue.
        """
        sms = {name: value for name, value in self.sms(send).items() if name != "idempotency_key"}
        envelope: dict[str, Any]
        match send.channel:
            case Channel.SNS:
                envelope = {
                    "Type": "Notification",
                    "MessageId": send.key,
                    "TopicArn": self._topic,
                    "Message": json.dumps(sms),
                }
            case Channel.EVENTBRIDGE:
                envelope = {"id": send.key, "detail-type": "Parcel Shipped", "source": _SOURCE, "detail": sms}
            case _:
                envelope = self.sms(send)
        self._hand_over(send, lambda: self._queue(envelope))
        again = self._queue if send.channel is Channel.SQS else self._forwarded
        self._hand_over(send, lambda: again(envelope))

    def _forwarded(self, envelope: dict[str, Any]) -> Answer:
        """Deliver as a topic or a bus that invokes the function: again, until it takes the event."""
        answer = self._direct(envelope)
        return TAKEN if answer == TAKEN else LOST


def _message(body: Mapping[str, Any]) -> Answer:
    return Answer("message", sid=body["sid"], evidence=body.get("evidence"))


def _end(done: Mapping[str, Any]) -> Answer:
    """Read how an execution of the example ended: its causes begin with the class of the error."""
    if done["status"] == "SUCCEEDED":
        return _message(json.loads(done["output"]))
    name = str(done.get("cause")).partition(":")[0]
    return Answer("error", error=name) if _is_class(name) else LOST


def _is_class(name: str) -> bool:
    """Tell whether it is an error of the connector, and none of Lambda's or Step Functions' own."""
    return name.endswith("Error") and "." not in name
