"""The entry point of every action: it reads any caller's event, runs the action, and answers in the caller's format."""

import functools
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from twilio_connector import telemetry
from twilio_connector.api.client import Twilio
from twilio_connector.deadline import API_SECONDS, Deadline
from twilio_connector.errors import ConnectorError, OutcomeUnknownError, ResponseTooLargeError
from twilio_connector.invocation import events
from twilio_connector.invocation.caller import Caller
from twilio_connector.invocation.events import Inputs, SqsRecord
from twilio_connector.invocation.function import Invocation, lambda_function
from twilio_connector.validation.model import Input

MAX_ANSWER_BYTES = 6_291_556
"""https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html"""

CALL_METRICS = {
    "api": "ApiCalls",
    "direct": "DirectCalls",
    "sqs": "SqsCalls",
    "sns": "SnsCalls",
    "eventbridge": "EventBridgeCalls",
}
"""A metric for each kind of caller. A dimension would need a second line in the log."""

type Action[I: Input] = Callable[[I, Twilio, Caller], Any]
type Handler = Callable[[Any, Any], Any]
type Act[I: Input] = Callable[[Inputs, Invocation], tuple[I, Any]]


class Queue(Protocol):
    """How an action handles SQS records, SNS notifications and EventBridge events, whose senders wait for no answer."""

    def threads(self) -> int:
        """Return how many records of a batch are handled at the same time."""

    def deliver(self, record: SqsRecord, run: Callable[[Inputs], Any], deadline: Deadline) -> bool:
        """Handle a record, with `run` for its input, and return whether SQS must deliver it again."""

    def forward(self, event: Any, inputs: Inputs) -> None:
        """Take an SNS notification or an EventBridge event, whose input was read as `inputs`."""


def lambda_handler[I: Input](
    input_type: type[I], *, status: Callable[[I], int] = lambda _: 200, queue: Queue | None = None
) -> Callable[[Action[I]], Handler]:
    """Make a Lambda handler of an action: a function that takes its input, the Twilio client and the caller.

    A direct invocation, an EventBridge event, an SNS notification and a failure record get the action's result
    or its exception. An API caller gets JSON with `status`, or a problem object. An SQS batch gets the records
    to deliver again. An action with a `queue` leaves records, events and notifications to it.
    """

    def decorate(action: Action[I]) -> Handler:
        act: Act[I] = functools.partial(_act, input_type, action)

        @lambda_function
        @functools.wraps(action)
        def handler(event: Any, invocation: Invocation) -> Any:
            if events.is_http(event):
                return _answer_http(act, status, event, invocation)
            if (records := events.sqs_records(event)) is not None:
                return _answer_sqs(act, queue, records, invocation)
            return _answer_direct(act, queue, event, invocation)

        return handler

    return decorate


def _answer_http[I: Input](
    act: Act[I], status: Callable[[I], int], event: Any, invocation: Invocation
) -> dict[str, Any]:
    """Return the result as JSON, or the failure as a problem object."""
    try:
        with Invocation(invocation.deadline.capped(API_SECONDS)) as call:
            value, result = act(events.http_inputs(events.http_request(event)), call)
            return _check_size(_http(status(value), "application/json", result), value)
    except ConnectorError as error:
        answer = _http(error.http_status, "application/problem+json", error.problem())
        retry_after = error.default_retry_after if error.retry_after is None else error.retry_after
        if retry_after is not None:
            answer["headers"]["Retry-After"] = str(math.ceil(retry_after))
        return answer


def _answer_sqs[I: Input](
    act: Act[I], queue: Queue | None, records: list[SqsRecord], invocation: Invocation
) -> dict[str, Any]:
    """Run each record on its own, and return those that SQS must deliver again.

    Records of one FIFO group run in order. If SQS must deliver one again, it must also deliver the later ones again.
    """
    deliver = queue.deliver if queue else _deliver
    groups: dict[str, list[SqsRecord]] = {}
    for record in records:
        groups.setdefault(record.message_id if record.group is None else f"group {record.group}", []).append(record)

    def run(inputs: Inputs) -> Any:
        with Invocation(invocation.deadline) as call:
            value, result = act(inputs, call)
            return _check_size(result, value)

    def handle(group: list[SqsRecord]) -> list[SqsRecord]:
        for place, record in enumerate(group):
            with telemetry.scope(**record.log_fields):
                comes_again = deliver(record, run, invocation.deadline)
            if comes_again:
                return group[place:]
        return []

    threads = queue.threads() if queue else 1
    with ThreadPoolExecutor(threads, initializer=telemetry.resume, initargs=(telemetry.noted(),)) as pool:
        failed = [record for group in pool.map(handle, groups.values()) for record in group]
    return {"batchItemFailures": [{"itemIdentifier": record.message_id} for record in failed]}


def _deliver(record: SqsRecord, run: Callable[[Inputs], Any], deadline: Deadline) -> bool:
    """Handle a record of an action without a queue; return whether SQS must deliver it again."""
    try:
        with Invocation(deadline):
            inputs = events.sqs_inputs(record)
        run(inputs)
    except OutcomeUnknownError:
        return False  # a retry could carry out the request twice
    except ConnectorError:
        return True
    return False


def _answer_direct[I: Input](act: Act[I], queue: Queue | None, event: Any, invocation: Invocation) -> Any:
    """Return the result, or raise the failure. A queue takes SNS notifications and EventBridge events."""
    inputs = events.inputs(event)
    telemetry.note(caller=inputs.caller.kind)
    if queue and inputs.caller.kind in {"sns", "eventbridge"}:
        queue.forward(event, inputs)  # SQS counts deliveries; Lambda does not tell a function which retry it is
        invocation.outcome = "queued"
        return None
    value, result = act(inputs, invocation)
    return _check_size(result, value)


def _act[I: Input](input_type: type[I], action: Action[I], inputs: Inputs, invocation: Invocation) -> tuple[I, Any]:
    """Run the action, and return its input and its result."""
    telemetry.note(caller=inputs.caller.kind)
    telemetry.count(CALL_METRICS[inputs.caller.kind])
    payload = inputs.keyed_payload if input_type.keyed_by_delivery else inputs.payload
    value = input_type.parse(payload, inputs.text)
    twilio = invocation.twilio = Twilio(value.connection, invocation.deadline)
    telemetry.note(connection=twilio.name, message_sid=getattr(value, "message_sid", None))
    telemetry.logger.debug("called")
    result = action(value, twilio, inputs.caller)
    invocation.outcome = value.outcome
    return value, result


def _check_size[T](answer: T, value: Input) -> T:
    """Return the answer; raises an error if it exceeds Lambda's limit."""
    if len(msgspec.json.encode(answer)) < MAX_ANSWER_BYTES // 2:
        return answer
    # Lambda's runtime serialises with spaces, and msgspec without.
    if len(json.dumps(answer, ensure_ascii=False).encode()) <= MAX_ANSWER_BYTES:
        return answer
    if value.read_only:
        raise ResponseTooLargeError("the answer is larger than a function can return")
    raise OutcomeUnknownError("Twilio accepted the request, but its answer is larger than a function can return")


def _http(status: int, content_type: str, body: Any) -> dict[str, Any]:
    return {
        "statusCode": status,
        "headers": {"Content-Type": content_type},
        "body": msgspec.json.encode(body).decode(),
    }
