"""The send queue: what each record becomes, so that none is lost, told twice or sent twice."""

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from twilio_connector import aws, envelope, reports, telemetry
from twilio_connector.envelope import Record
from twilio_connector.errors import (
    ConnectorError,
    Fault,
    InvalidInputError,
    OutcomeUnknownError,
    ServiceUnavailableError,
)
from twilio_connector.ledger import Ledger, State, key_id
from twilio_connector.settings import Settings, variable

MOST_RECEIVES = 10
"""A record that was received more often is not tried again."""

_FIRST_DELAY = 10  # seconds
_LONGEST_DELAY = 900  # seconds, but for a Retry-After
_LONGEST_VISIBILITY = 43200  # seconds
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html


class _Order(NamedTuple):
    """What a record asks for, as far as it can be read."""

    about: reports.Subject
    payload: Any
    body: str

    @property
    def resend(self) -> bool:
        return isinstance(self.payload, dict) and self.payload.get("on_unknown") == "resend"


def threads() -> int:
    """Return how many records of a batch are sent at the same time."""
    return int(variable("SEND_THREADS"))


def forward(event: Any) -> None:
    """Put an event on the send queue, whose deliveries are counted; raises ServiceUnavailableError."""
    try:
        body = msgspec.json.encode(event).decode()
        aws.call("sqs", "send_message", QueueUrl=variable("SEND_QUEUE_URL"), MessageBody=body)
    except aws.RefusedError as error:
        raise ServiceUnavailableError(f"the send queue does not answer ({error.code}); nothing was sent") from None


def deliver(record: Record, run: Callable[[], dict[str, Any]]) -> bool:
    """Send one record with `run`, and tell whether SQS is to deliver it again.

    Whatever leaves the queue was reported, or is `unknown` in the ledger, where `resolve` reports it.
    """
    order = _order(record)
    try:
        if record.receive_count > MOST_RECEIVES:
            return _give_up(order)
        try:
            message = run()
            if "dry_run" in message:
                raise InvalidInputError(Fault("dry_run", "has nobody to answer to in a queue"))
        except OutcomeUnknownError as error:
            if not order.resend:
                return False
            _delay(record, error)
            return True
        except ConnectorError as error:
            if error.retryable:
                _delay(record, error)
                return True
            reports.failed(order.about, order.body, error.problem())
        else:
            reports.sent(order.about, message)
    except ServiceUnavailableError as error:  # nobody could be told
        telemetry.failure(error, function=__name__, caller=order.about.caller, connection=order.about.connection)
        return True
    return False


def _order(record: Record) -> _Order:
    """Return what a record asks for; the body is an input with connection and key wherever it can be."""
    default = Settings.from_env().default_connection
    try:
        caller, payload, _ = envelope.sqs_inputs(record)
    except InvalidInputError:
        return _Order(reports.Subject(record.message_id, default, "sqs"), None, record.body)
    if not isinstance(payload, dict):
        return _Order(reports.Subject(str(caller.delivery), default, caller.kind), payload, record.body)
    filled = {"connection": default, "idempotency_key": caller.delivery}
    sms = payload | {name: value for name, value in filled.items() if payload.get(name) is None}
    about = reports.Subject(str(sms["idempotency_key"]), str(sms["connection"]), caller.kind)
    return _Order(about, payload, msgspec.json.encode(sms).decode())


def _give_up(order: _Order) -> bool:
    """Report a record that was received too often, as the ledger knows it; nothing is tried."""
    key, connection, _ = order.about
    record = Ledger(variable("LEDGER_TABLE")).find(key_id(connection, key))
    if record is None or record.state is State.NOT_SENT:
        error = ServiceUnavailableError(f"nothing was sent in {MOST_RECEIVES} deliveries")
        reports.failed(order.about, order.body, record.error if record and record.error else error.problem())
    elif record.message:
        reports.sent(order.about, record.message)
    elif record.settled:
        reports.unknown(record, OutcomeUnknownError("the outcome stays unknown; it is not repeated").problem())
    return False


def _delay(record: Record, error: ConnectorError) -> None:
    """Let SQS deliver the record again when it may go through; without that, after the queue's own timeout."""
    url = variable("SEND_QUEUE_URL")
    if url.split("/")[-2:] != record.queue_arn.split(":")[-2:]:
        return  # a queue of the user's own, which the function has no right to
    longest = min(max(_FIRST_DELAY, error.patience or 0) * 2 ** (record.receive_count - 1), _LONGEST_DELAY)
    seconds = max(error.retry_after or 0, random.uniform(longest / 2, longest))  # noqa: S311 spreads load, no secret
    with suppress(aws.RefusedError):
        aws.call(
            "sqs",
            "change_message_visibility",
            QueueUrl=url,
            ReceiptHandle=record.receipt_handle,
            VisibilityTimeout=int(min(seconds, _LONGEST_VISIBILITY)),
        )
