"""Sends the records of the send queue: none is lost, and none is sent twice.

A record is deleted once its outcome is reported, or once the ledger says that `resolve` must report it. The queue has
no redrive policy: SQS would give a moved record a new id, and so a new idempotency key.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from twilio_connector import telemetry
from twilio_connector.api.client import RESERVE_SECONDS
from twilio_connector.aws import client, queue
from twilio_connector.backoff import jitter
from twilio_connector.deadline import Deadline
from twilio_connector.errors import (
    ConnectionInvalidError,
    ConnectionNotFoundError,
    ConnectorError,
    Fault,
    IdempotencyConflictError,
    InvalidInputError,
    OutcomeUnknownError,
    ServiceUnavailableError,
    TwilioAuthenticationError,
)
from twilio_connector.invocation.events import Inputs, SqsRecord, sqs_inputs
from twilio_connector.messaging import idempotency, idempotency_store, outcome_events
from twilio_connector.messaging.idempotency import ReportPending, SendState
from twilio_connector.settings import Settings, variable
from twilio_connector.validation.model import ConnectionName

MOST_RECEIVES = 10
"""Deliveries after which a record is not sent any more."""

_FIXABLE = (ConnectionInvalidError, ConnectionNotFoundError, TwilioAuthenticationError)
"""Errors that the stack's owner can fix. Until then, records are retried as during an outage."""

LONGEST_DELAY = 900
"""Longest delay before SQS delivers a record again, in seconds, unless Twilio asks for more."""
_FIRST_DELAY = 10  # seconds
_LONGEST_VISIBILITY = 12 * 3600 - 600  # seconds; SQS allows 12 hours since the receipt, less the minutes spent since
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html


class _SendJob(NamedTuple):
    """The send that a record requests.

    `body` is the body for the failed queue. The outcome must be reported before `deadline`.
    `may_have_been_sent`: an earlier invocation may have sent the message without a key.
    """

    record: SqsRecord
    inputs: Inputs
    about: outcome_events.Subject
    body: str
    deadline: Deadline
    resend: bool = False
    may_have_been_sent: bool = False


def threads() -> int:
    """Return how many records of a batch are sent at the same time."""
    return int(variable("SEND_THREADS"))


def forward(event: Any, inputs: Inputs) -> None:
    """Put an event on the send queue, where SQS counts its deliveries.

    Raises InvalidInputError if the event contains a lone surrogate, and ServiceUnavailableError if SQS fails.
    """
    try:
        message_id = queue.send_message(variable("SEND_QUEUE_URL"), msgspec.json.encode(event).decode())
    except UnicodeEncodeError:
        raise InvalidInputError(Fault("(event)", "must contain valid Unicode text only")) from None
    except client.AwsError as error:
        raise ServiceUnavailableError(f"the send queue does not answer ({error.code}); nothing was sent") from None
    telemetry.note(**{"messaging.message.id": message_id})
    if isinstance(inputs.payload, dict) and "idempotency_key" in inputs.keyed_payload:
        _note_subject(_subject(_with_connection(inputs.keyed_payload), inputs.caller.kind))


def deliver(record: SqsRecord, run: Callable[[Inputs], dict[str, Any]], deadline: Deadline) -> bool:
    """Send one record with `run`, within the deadline; return whether SQS must deliver it again."""
    deadline = deadline.earlier(RESERVE_SECONDS)
    try:
        job = _send_job(record, deadline)
    except InvalidInputError as error:  # only a JSON object can carry its key to the failed queue
        telemetry.failure(error)
        telemetry.count("RecordsUnhandled")
        _delay(record, error, deadline)
        return True
    comes_again = _handle(job, run)
    if comes_again and _is_ours(record):
        telemetry.waited("SendQueueAge", record.sent_at)
    return comes_again


def _handle(job: _SendJob, run: Callable[[Inputs], dict[str, Any]]) -> bool:
    """Send a record, or give up on it; return whether SQS must deliver it again."""
    try:
        if job.record.receive_count > MOST_RECEIVES:
            known = _known(job)
            if _would_be_sent(job, known):
                _give_up(job, known)
                return False
        return _send_and_report(job, run)
    except ServiceUnavailableError as error:  # the outcome was not reported
        telemetry.failure(error)
    except Exception as error:  # noqa: BLE001 one record must not fail the whole batch
        telemetry.bug(error)
        telemetry.count("RecordsUnhandled")
    return True


def _send_and_report(job: _SendJob, run: Callable[[Inputs], dict[str, Any]]) -> bool:
    """Send a record and report its outcome; return whether SQS must deliver it again."""
    try:
        message = run(job.inputs)
        if "dry_run" in message:
            unanswered = InvalidInputError(Fault("dry_run", "cannot be used in a queue, which returns no answer"))
            telemetry.failure(unanswered)
            raise unanswered
    except OutcomeUnknownError as error:
        if job.resend:
            _delay(job.record, error, job.deadline)
        return job.resend
    except IdempotencyConflictError as error:
        _report_failed(job, error.problem())
    except ConnectorError as error:
        known = None if error.retryable else _known(job)
        unsent = known is None or known.state is SendState.NOT_SENT
        mendable = isinstance(error, _FIXABLE) and job.record.receive_count < MOST_RECEIVES
        if error.retryable or (mendable and unsent) or (known and known.state is SendState.SENDING):
            _delay(job.record, error, job.deadline)
            return True
        _report(job, known, error.problem())
    else:
        _report_sent(job, message)
    return False


def _would_be_sent(job: _SendJob, known: idempotency.SendRecord | None) -> bool:
    """Tell whether one more attempt would send the message; otherwise its outcome is reported."""
    if known is None:
        return True
    return known.state not in {SendState.SENDING, SendState.SENT} and (known.settled or job.resend)


def _give_up(job: _SendJob, known: idempotency.SendRecord | None) -> None:
    """Report a message that was not sent in any of its deliveries."""
    error = ServiceUnavailableError(f"nothing was sent in {MOST_RECEIVES} deliveries")
    problem = known.error if known and known.error else error.problem()
    _report(job, known, problem)
    telemetry.logger.error("given up", extra={"error": problem["title"]})


def _known(job: _SendJob) -> idempotency.SendRecord | None:
    """Return the ledger's record of the key, since an earlier delivery may have sent the message."""
    record_id = idempotency.record_id(job.about.connection, job.about.idempotency_key)
    return _ledger(job).find(record_id)


def _ledger(job: _SendJob) -> idempotency_store.IdempotencyStore:
    return idempotency_store.IdempotencyStore(variable("LEDGER_TABLE"), job.deadline)


def _report(job: _SendJob, known: idempotency.SendRecord | None, problem: Mapping[str, Any]) -> None:
    """Report a message that is not retried: its state in the ledger counts, not the last delivery's error."""
    if known is None or known.state is SendState.NOT_SENT:
        _report_failed(job, problem)
    elif known.result:
        _report_sent(job, known.result)
    elif known.settled or job.resend:
        _report_unknown(job, "the outcome is still unknown; the message is not sent again")


def _report_failed(job: _SendJob, problem: Mapping[str, Any]) -> None:
    """Report a message that this delivery did not send."""
    if job.may_have_been_sent:
        _report_unknown(job, f"an earlier invocation may have sent it; this one did not ({problem['title']})")
        return
    _check_time(job, 2 * client.SECONDS)
    outcome_events.failed(job.about, job.body, problem)


def _report_unknown(job: _SendJob, why: str) -> None:
    """Report a message that an earlier request may have sent."""
    _check_time(job, 2 * client.SECONDS)
    outcome_events.unknown(job.about, job.body, OutcomeUnknownError(why).problem())


def _report_sent(job: _SendJob, message: Mapping[str, Any]) -> None:
    """Report a message that was sent. If EventBridge fails, let `resolve` report it."""
    telemetry.note(message_sid=message["sid"])
    _check_time(job, client.SECONDS)
    try:
        outcome_events.sent(job.about, message)
    except ServiceUnavailableError as error:
        table, known = _ledger(job), _known(job)
        owed = table.write(ReportPending(), known) if known else None
        if owed is None or owed.settled or owed.state is not SendState.SENT:
            raise
        telemetry.failure(error)


def _check_time(job: _SendJob, seconds: float) -> None:
    """Raise ServiceUnavailableError if too little time is left for a report. The next delivery then reports."""
    if job.deadline.remaining() < seconds:
        raise ServiceUnavailableError("too little time was left to report the message's outcome")


def _send_job(record: SqsRecord, deadline: Deadline) -> _SendJob:
    """Read a record, and add connection and key to its body; raises InvalidInputError."""
    inputs = sqs_inputs(record)
    caller, payload, _ = inputs
    if not isinstance(payload, dict):
        raise InvalidInputError(Fault("body", "must be a JSON object"))
    sms = _with_connection(inputs.keyed_payload)
    about = _subject(sms, caller.kind)
    _note_subject(about)
    resend = payload.get("on_unknown") == "resend"
    if caller.may_have_been_sent and payload.get("idempotency_key") is None and not resend:
        # Keep Lambda's failure record as the body: it has the key, and says that the message may have been sent.
        return _SendJob(record, inputs, about, record.body, deadline, may_have_been_sent=True)
    return _SendJob(record, inputs, about, msgspec.json.encode(sms).decode(), deadline, resend)


def _with_connection(sms: dict[str, Any]) -> dict[str, Any]:
    default = Settings.from_env().default_connection
    return sms | {"connection": default} if sms.get("connection") is None else sms


def _subject(sms: Mapping[str, Any], caller: str) -> outcome_events.Subject:
    """Return the subject of reports about an input that is not validated yet."""
    return outcome_events.Subject(str(sms["idempotency_key"]), str(sms["connection"]), caller)


def _note_subject(about: outcome_events.Subject) -> None:
    """Add caller, send id and connection to the log lines; an invalid connection name may hold any text."""
    telemetry.note(caller=about.caller, send_id=about.send_id)
    with suppress(msgspec.ValidationError):
        telemetry.note(connection=msgspec.convert(about.connection, ConnectionName))


def _delay(record: SqsRecord, error: ConnectorError, deadline: Deadline) -> None:
    """Set the delay before SQS delivers the record again. If that fails, the queue's visibility timeout applies."""
    if not _is_ours(record):
        return  # the function has no permission for other queues
    longest = min(max(_FIRST_DELAY, error.default_retry_after or 0) * 2 ** (record.receive_count - 1), LONGEST_DELAY)
    jittered = int(jitter(longest / 2, longest))
    seconds = max(math.ceil(error.retry_after or 0), jittered)
    with suppress(client.AwsError):
        client.call(
            "sqs",
            "ChangeMessageVisibility",
            QueueUrl=variable("SEND_QUEUE_URL"),
            ReceiptHandle=record.receipt_handle,
            VisibilityTimeout=min(seconds, _LONGEST_VISIBILITY),
            seconds=deadline.remaining(),
        )


def _is_ours(record: SqsRecord) -> bool:
    """Tell whether a record came from the stack's send queue, and not from one of the user's queues."""
    return variable("SEND_QUEUE_URL").split("/")[-2:] == record.queue_arn.split(":")[-2:]
