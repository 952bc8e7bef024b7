"""The send queue: what each record becomes, so that none is lost, told twice or sent twice."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from twilio_connector import aws, envelope, ledger, reports, telemetry
from twilio_connector.envelope import Record
from twilio_connector.errors import (
    ConnectorError,
    Fault,
    IdempotencyConflictError,
    InvalidInputError,
    OutcomeUnknownError,
    ServiceUnavailableError,
)
from twilio_connector.ledger import State
from twilio_connector.retries import jitter
from twilio_connector.settings import Settings, variable

MOST_RECEIVES = 10
"""A record that was received more often is not tried again."""

_FIRST_DELAY = 10  # seconds
_LONGEST_DELAY = 900  # seconds, but for a Retry-After
_LONGEST_VISIBILITY = 12 * 3600 - 600  # seconds; twelve hours from the receipt, some minutes ago
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html


class _Order(NamedTuple):
    """What a record asks for, as far as it can be read; `doubtful` is what may have been sent without a key."""

    about: reports.Subject
    body: str
    resend: bool = False
    doubtful: bool = False


def threads() -> int:
    """Return how many records of a batch are sent at the same time."""
    return int(variable("SEND_THREADS"))


def forward(event: Any) -> None:
    """Put an event on the send queue, whose deliveries are counted; raises ServiceUnavailableError."""
    try:
        aws.send_message(variable("SEND_QUEUE_URL"), msgspec.json.encode(event).decode())
    except UnicodeEncodeError:
        raise InvalidInputError(Fault("(event)", "must be Unicode text throughout")) from None
    except aws.RefusedError as error:
        raise ServiceUnavailableError(f"the send queue does not answer ({error.code}); nothing was sent") from None


def deliver(record: Record, run: Callable[[], dict[str, Any]]) -> bool:
    """Send one record with `run`, and tell whether SQS is to deliver it again.

    Whatever leaves the queue was reported, or is `unknown` in the ledger, where `resolve` reports it.
    """
    context = {"function": "send_sms"}
    try:
        order = _order(record)
        context |= {"caller": order.about.caller, "connection": order.about.connection}
        if record.receive_count > MOST_RECEIVES and _given_up(order):
            return False
        return _comes_again(record, order, run)
    except ServiceUnavailableError as error:  # nobody could be told
        telemetry.failure(error, **context)
    except Exception as error:  # noqa: BLE001 the other records of the batch must not come again
        telemetry.bug(error)
    return True


def _comes_again(record: Record, order: _Order, run: Callable[[], dict[str, Any]]) -> bool:
    """Send a record and report it; tell whether it is to be delivered again instead."""
    try:
        message = run()
        if "dry_run" in message:
            raise InvalidInputError(Fault("dry_run", "has nobody to answer to in a queue"))
    except OutcomeUnknownError as error:
        if order.resend:
            _delay(record, error)
        return order.resend
    except IdempotencyConflictError as error:
        _fail(order, error.problem())
    except ConnectorError as error:
        known = None if error.retryable else _known(order)
        if error.retryable or (known and known.state is State.SENDING):
            _delay(record, error)
            return True
        _end(order, known, error.problem())
    else:
        reports.sent(order.about, message)
    return False


def _given_up(order: _Order) -> bool:
    """Report a record that would be sent if it were tried once more; all others are told what became of them."""
    known = _known(order)
    if known and (known.state in {State.SENDING, State.SENT} or not (known.settled or order.resend)):
        return False
    error = ServiceUnavailableError(f"nothing was sent in {MOST_RECEIVES} deliveries")
    _end(order, known, known.error if known and known.error else error.problem())
    return True


def _known(order: _Order) -> ledger.Record | None:
    """Return what the ledger has of a key, whose message an earlier delivery may have sent."""
    record_id = ledger.key_id(order.about.connection, order.about.idempotency_key)
    return ledger.Ledger(variable("LEDGER_TABLE")).find(record_id)


def _end(order: _Order, known: ledger.Record | None, problem: Mapping[str, Any]) -> None:
    """Report a message that is not tried again: what failed now does not say what became of it before."""
    if known is None or known.state is State.NOT_SENT:
        _fail(order, problem)
    elif known.message:
        reports.sent(order.about, known.message)
    elif known.settled or order.resend:
        unknown = OutcomeUnknownError("the outcome stays unknown; it is not repeated")
        reports.unknown(order.about, order.body, unknown.problem())


def _fail(order: _Order, problem: Mapping[str, Any]) -> None:
    """Report a message that was not sent now."""
    if not order.doubtful:
        reports.failed(order.about, order.body, problem)
        return
    unknown = OutcomeUnknownError(f"an earlier invocation may have sent it; this one did not ({problem['title']})")
    reports.unknown(order.about, order.body, unknown.problem())


def _order(record: Record) -> _Order:
    """Return what a record asks for; the body is an input with connection and key wherever it can be."""
    default = Settings.from_env().default_connection
    try:
        caller, payload, _ = envelope.sqs_inputs(record)
    except InvalidInputError:
        return _Order(reports.Subject(record.message_id, default, "sqs"), record.body)
    if not isinstance(payload, dict):
        return _Order(reports.Subject(str(caller.delivery), default, caller.kind), record.body)
    filled = {"connection": default, "idempotency_key": caller.delivery}
    sms = payload | {name: value for name, value in filled.items() if payload.get(name) is None}
    about = reports.Subject(str(sms["idempotency_key"]), str(sms["connection"]), caller.kind)
    resend = payload.get("on_unknown") == "resend"
    if caller.doubtful and payload.get("idempotency_key") is None and not resend:
        return _Order(about, record.body, doubtful=True)  # only Lambda's own record says that it is in doubt
    return _Order(about, msgspec.json.encode(sms).decode(), resend)


def _delay(record: Record, error: ConnectorError) -> None:
    """Let SQS deliver the record again when it may go through; without that, after the queue's own timeout."""
    url = variable("SEND_QUEUE_URL")
    if url.split("/")[-2:] != record.queue_arn.split(":")[-2:]:
        return  # a queue of the user's own, which the function has no right to
    longest = min(max(_FIRST_DELAY, error.patience or 0) * 2 ** (record.receive_count - 1), _LONGEST_DELAY)
    jittered = int(jitter(longest / 2, longest))
    seconds = max(math.ceil(error.retry_after or 0), jittered)
    with suppress(aws.RefusedError):
        aws.call(
            "sqs",
            "ChangeMessageVisibility",
            QueueUrl=url,
            ReceiptHandle=record.receipt_handle,
            VisibilityTimeout=min(seconds, _LONGEST_VISIBILITY),
        )
