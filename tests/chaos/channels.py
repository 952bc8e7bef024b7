"""The callers: each one sends, reads the answer and retries as the documentation says."""

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
"""The most calls that wait for an answer at the same time."""
_STARTS = 4
_TRIES = 6
_SECONDS = 150  # longer than any function may run
_PATIENCE = 120  # seconds for which a caller retries while another one sends the same key
_LONGEST_PAUSE = 4  # seconds
_CONNECTIONS = 128
_SOURCE = "chaos"

_lost = (BotoCoreError, ClientError, requests.RequestException, ValueError)


class Answer(NamedTuple):
    """An answer to a caller: `message` with its SID, `error` with its class, `taken`, or `lost`.

    `known_as` is the id that a queue, topic or bus gave to an input. `evidence` names the proof that it was sent.
    """

    answer: str
    sid: str | None = None
    error: str | None = None
    known_as: str | None = None
    evidence: str | None = None


LOST = Answer("lost")
TAKEN = Answer("taken")
"""The queue, topic, bus or Lambda accepted the input."""


def start_few_at_a_time(count: int, *calls: Callable[[], object]) -> None:
    """Make each call with growing concurrency, up to `count` or a few more, so that few processes start at a time.

    If all processes started at once, each would take too long.
    """
    for width in range(_STARTS, count + _STARTS, _STARTS):
        with ThreadPoolExecutor(len(calls) * width) as pool:
            for future in [pool.submit(call) for call in calls for _ in range(width)]:
                future.result()


class Callers:
    """The callers that send through one stack."""

    def __init__(
        self, stack: Mapping[str, Any], topic: str, machine: str, journal: Journal, keys: dict[str, Key]
    ) -> None:
        """Take the local stack's description, the topic and the state machine; `keys` get the answers.

        A key that a queue, topic or bus assigned is added to `keys`.
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
        """Return a client that many threads can share, and that does not retry."""
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
        """Return the input of a send. Connections and recipients vary, so that no list of messages becomes long."""
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
        """Send a key through its channel, in the way that its part requires."""
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
        """Send each key from this many callers at the same time."""
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
        """Start at least this many processes of send_sms and of the webhook function."""
        dry_run = {"to": "+15005550006", "message": "Chaos", "dry_run": True}
        start_few_at_a_time(count, lambda: self._direct(dry_run), self._knock)

    def confirm(self, send: Send) -> None:
        """Send the key of an asynchronous invocation again, directly, to get its outcome."""
        self.ask(send, by=Channel.DIRECT)

    def ask(self, send: Send, *, by: Channel | None = None, other: Mapping[str, Any] | None = None) -> None:
        """Call until the answer is final, all retries are used, or the run is stopped."""
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
        """Put a record of the failed queue back in the send queue, unchanged."""
        self._journal.write(INTENTS, key=json.loads(body).get("idempotency_key"), redriven=True)
        self.sqs.send_message(QueueUrl=self._outputs["SendQueueUrl"], MessageBody=body)

    def known(self, send: Send) -> str | None:
        """Ask get_sms for the state of a key, record the answer in the journal, and return the state."""
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
        """Invoke resolve, as its schedule does every minute. If one run fails, the next one continues its work."""
        began, told = time.time(), None
        with suppress(*_lost):
            answer = self.functions.invoke(FunctionName=self._outputs["ResolveFunctionArn"], Payload=b"{}")
            told = json.loads(answer["Payload"].read())
        self._journal.write(RESOLVED, began=began, answer=told)

    def _hand_over(self, send: Send, call: Callable[[], Answer]) -> None:
        """Hand over an input, and retry until it is accepted.

        An input without a key is not retried, because each attempt would be another message.
        """
        while not self.stopped.is_set() and self._note(send, call) == LOST and send.has_key:
            self.stopped.wait(0.5)

    def _note(self, send: Send, call: Callable[[], Answer], number: int = 1) -> Answer:
        """Make a call with the first or the second input, and record the call and its answer in the journal."""
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
        # An execution may wait for minutes, so it does not use a slot.
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
        """Call the webhook without a signature, so that a process starts. The webhook refuses the request."""
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
        """Run the state machine, which makes all safe retries, and return its result."""
        arn = self._machines.start_execution(stateMachineArn=self._machine, input=json.dumps(sms))["executionArn"]
        deadline = time.monotonic() + _PATIENCE
        while not self.stopped.is_set() and time.monotonic() < deadline:
            done = self._machines.describe_execution(executionArn=arn)
            if done["status"] != "RUNNING":
                return _end(done)
            self.stopped.wait(0.5)
        return LOST

    def _deliver_twice(self, send: Send) -> None:
        """Deliver one input twice, the first time through the queue.

        A queue message comes through the queue again. An event or a notification goes to the function, which forwards
        it to the queue; its key is its own id.
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
        """Invoke the function as a topic or a bus does. An error counts as a lost answer, so it is retried."""
        answer = self._direct(envelope)
        return TAKEN if answer == TAKEN else LOST


def _message(body: Mapping[str, Any]) -> Answer:
    return Answer("message", sid=body["sid"], evidence=body.get("evidence"))


def _end(done: Mapping[str, Any]) -> Answer:
    """Return the result of an execution of the example, whose causes begin with the class of the error."""
    if done["status"] == "SUCCEEDED":
        return _message(json.loads(done["output"]))
    name = str(done.get("cause")).partition(":")[0]
    return Answer("error", error=name) if _is_class(name) else LOST


def _is_class(name: str) -> bool:
    """Return whether an error is one of the connector, and not one of Lambda or Step Functions."""
    return name.endswith("Error") and "." not in name
