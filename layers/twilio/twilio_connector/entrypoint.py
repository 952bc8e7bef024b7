"""The entry point of every action: from any caller's event to a typed input, and back to the caller's answer."""

import functools
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import msgspec

from twilio_connector import envelope, telemetry
from twilio_connector.client import Twilio
from twilio_connector.deadline import API_SECONDS, Deadline
from twilio_connector.errors import ConnectorError, InvalidInputError, OutcomeUnknownError, ResponseTooLargeError
from twilio_connector.inputs import Input, fields

MAX_ANSWER_BYTES = 6_291_556
"""https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html"""

type Action[I: Input] = Callable[[I, Twilio], Any]
type Handler = Callable[[Any, Any], Any]


class Queue(Protocol):
    """How an action treats those that wait for no answer."""

    def threads(self) -> int:
        """Return how many records of a batch are handled at the same time."""

    def deliver(self, record: envelope.Record, run: Callable[[], Any]) -> bool:
        """Handle a record, whose action is `run`, and tell whether SQS is to deliver it again."""

    def forward(self, event: Any) -> None:
        """Take over an event that a topic or a bus delivered."""


def entrypoint[I: Input](
    input_type: type[I], *, status: Callable[[I], int] = lambda _: 200, queue: Queue | None = None
) -> Callable[[Action[I]], Handler]:
    """Make a Lambda handler of an action: a function that takes its input and the Twilio client.

    A direct invocation, an EventBridge event, an SNS notification and a failure record get the action's result
    or its exception. An API caller gets JSON with `status`, or a problem object. An SQS batch gets the records
    to deliver again. An action with a `queue` leaves records, events and notifications to it.
    """

    def decorate(action: Action[I]) -> Handler:
        run = functools.partial(_run, input_type, action)

        @functools.wraps(action)
        def handler(event: Any, context: Any) -> Any:
            deadline = Deadline.of(context)
            try:
                if envelope.is_http(event):
                    return _answer_http(run, status, event, deadline.capped(API_SECONDS))
                if (records := _records(event, action.__module__)) is not None:
                    return _answer_sqs(run, records, deadline, queue)
                if queue and (sender := _forwarding(event)):
                    return _forward(queue, event, function=action.__module__, caller=sender)
                return run(deadline, lambda: envelope.inputs(event), lambda _, result: result)
            finally:
                telemetry.flush()

        return handler

    return decorate


def _run[I: Input](
    input_type: type[I],
    action: Action[I],
    deadline: Deadline,
    read: Callable[[], envelope.Inputs],
    pack: Callable[[I, Any], Any],
) -> Any:
    """Run the action on what `read` returns, and return its result as `pack` puts it.

    Every failure is logged, counted and raised as a ConnectorError.
    """
    context: dict[str, Any] = {"function": action.__module__}
    twilio: Twilio | None = None
    try:
        inputs = read()
        context["caller"] = inputs.caller.kind
        value = input_type.parse(_with_key(input_type, inputs), inputs.text)
        twilio = Twilio(value.connection, deadline, inputs.caller)
        context |= {"connection": twilio.name, "message_sid": getattr(value, "message_sid", None)}
        telemetry.logger.debug("called", extra=context)
        answer = _fitting(pack(value, action(value, twilio)), value)
    except ConnectorError as error:
        telemetry.failure(error, **context)
        raise
    except Exception as error:  # noqa: BLE001 whatever it is, its message must not reach a log or a caller
        fault = telemetry.bug(error)
        if twilio is None or not twilio.may_have_changed:
            raise fault from None
        unknown = OutcomeUnknownError("a fault of the connector after the request was made; its log says where")
        telemetry.failure(unknown, **context)
        raise unknown from None
    return answer


def _with_key(input_type: type[Input], inputs: envelope.Inputs) -> Any:
    """Return the payload, with the delivery's id for an idempotency key where it has none of its own."""
    payload, key = inputs.payload, inputs.caller.delivery
    if key and isinstance(payload, dict) and "idempotency_key" in fields(input_type):
        return payload if payload.get("idempotency_key") is not None else payload | {"idempotency_key": key}
    return payload


def _fitting(answer: Any, value: Input) -> Any:
    """Return the answer; raises the error of one that Lambda would not take."""
    if len(msgspec.json.encode(answer)) < MAX_ANSWER_BYTES // 2:
        return answer
    # The runtime writes more spaces than msgspec does.
    if len(json.dumps(answer, ensure_ascii=False).encode()) <= MAX_ANSWER_BYTES:
        return answer
    if value.read_only:
        raise ResponseTooLargeError("the answer is larger than a function can return")
    raise OutcomeUnknownError("Twilio accepted the request, but its answer is larger than a function can return")


def _records(event: Any, function: str) -> list[envelope.Record] | None:
    try:
        return envelope.sqs_records(event)
    except InvalidInputError as error:
        telemetry.failure(error, function=function)
        raise


def _answer_http(
    run: Callable[..., Any], status: Callable[[Any], int], event: Any, deadline: Deadline
) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = run(
            deadline,
            lambda: envelope.http_inputs(envelope.http_request(event)),
            lambda value, result: _http(status(value), "application/json", result),
        )
    except ConnectorError as error:
        answer = _http(error.http_status, "application/problem+json", error.problem())
        retry_after = error.patience if error.retry_after is None else error.retry_after
        if retry_after is not None:
            answer["headers"]["Retry-After"] = str(math.ceil(retry_after))
    return answer


def _http(status: int, content_type: str, body: Any) -> dict[str, Any]:
    return {
        "statusCode": status,
        "headers": {"Content-Type": content_type},
        "body": msgspec.json.encode(body).decode(),
    }


def _forwarding(event: Any) -> str | None:
    """Return who delivered the event if it was a topic or a bus: Lambda does not say which attempt is the last."""
    try:
        kind = envelope.inputs(event).caller.kind
    except InvalidInputError:
        return None
    return kind if kind in {"sns", "eventbridge"} else None


def _forward(queue: Queue, event: Any, **context: str) -> None:
    try:
        queue.forward(event)
    except ConnectorError as error:
        telemetry.failure(error, **context)
        raise


def _deliver(record: envelope.Record, run: Callable[[], Any]) -> bool:  # noqa: ARG001 as in Queue
    """Handle a record of an action that reports nothing."""
    try:
        run()
    except OutcomeUnknownError:
        return False  # to deliver it again could carry it out twice
    except ConnectorError:
        return True
    return False


def _answer_sqs(
    run: Callable[..., Any], records: list[envelope.Record], deadline: Deadline, queue: Queue | None
) -> dict[str, Any]:
    """Run each record on its own, and return those that SQS is to deliver again.

    Records of one FIFO group wait for each other, and those behind one that comes again come again too.
    """
    deliver = queue.deliver if queue else _deliver
    groups: dict[str, list[envelope.Record]] = {}
    for record in records:
        groups.setdefault(record.message_id if record.group is None else f"group {record.group}", []).append(record)

    def handle(group: list[envelope.Record]) -> list[envelope.Record]:
        for place, record in enumerate(group):
            read = functools.partial(envelope.sqs_inputs, record)
            if deliver(record, lambda: run(deadline, read, lambda _, result: result)):  # noqa: B023 called here
                return group[place:]
        return []

    with ThreadPoolExecutor(queue.threads() if queue else 1) as pool:
        failed = [record for group in pool.map(handle, groups.values()) for record in group]
    return {"batchItemFailures": [{"itemIdentifier": record.message_id} for record in failed]}
