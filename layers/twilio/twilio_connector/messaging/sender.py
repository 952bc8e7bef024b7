"""Sends a message at most once per idempotency key, and finds out its outcome."""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from twilio_connector import telemetry
from twilio_connector.api.client import RESERVE_SECONDS, Message, Twilio
from twilio_connector.aws import client
from twilio_connector.errors import (
    ConnectorError,
    IdempotencyConflictError,
    InternalError,
    OutcomeUnknownError,
    SendInProgressError,
    ServiceUnavailableError,
)
from twilio_connector.invocation.caller import Caller
from twilio_connector.messaging.idempotency import (
    CALLBACK_FIELD,
    Accepted,
    ClaimRequested,
    MessageMatch,
    OutcomeLost,
    Rejected,
    SendEvent,
    SendRecord,
    SendState,
    fingerprint,
    new_claim,
    record_id,
)
from twilio_connector.messaging.idempotency_store import IdempotencyStore
from twilio_connector.messaging.segments import segments
from twilio_connector.settings import variable

# Twilio's connection overrides: two retries after any failure. They are not signed
# (https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides).
_CALLBACK_RETRIES = "#rc=2&rp=all"

_MOST_DIGITS = 3  # of a message's segments

type Form = Mapping[str, str | list[str]]


class Send(NamedTuple):
    """A send with a key: the input as JSON, Twilio's parameters, and whether to resend after an unknown outcome."""

    idempotency_key: str
    sms: dict[str, Any]
    form: Form
    resend: bool


def post_message(twilio: Twilio, form: Form) -> dict[str, Any]:
    """Send the message, and return Twilio's message object."""
    try:
        message: dict[str, Any] = twilio.request("POST", "Messages.json", form=form, response_model=Message).data
    except OutcomeUnknownError:
        raise
    except ConnectorError:
        telemetry.count("MessagesNotSent")
        raise
    telemetry.count("MessagesSent")
    telemetry.count("SegmentsSent", _segments(message))
    telemetry.note(message_sid=message["sid"])
    return message


def _segments(message: Mapping[str, Any]) -> int:
    """Return how many segments Twilio bills. For a messaging service Twilio has no count yet, so it is computed here.

    https://www.twilio.com/docs/messaging/api/message-resource#message-properties
    """
    counted, body = message.get("num_segments"), message.get("body")
    if isinstance(counted, str) and counted.isdecimal() and len(counted) <= _MOST_DIGITS and int(counted):
        return int(counted)
    return max(1, int(segments(body)["count"])) if isinstance(body, str) else 1


def status_callback(twilio: Twilio, idempotency_key: str) -> dict[str, str]:
    """Return the StatusCallback parameter, so that Twilio's callback proves that the key's message exists.

    It is empty for a connection without auth token and shared key: the webhook could not check its callbacks.
    """
    if not twilio.connection.can_validate_webhooks:
        return {}
    query = f"?{CALLBACK_FIELD}={record_id(twilio.name, idempotency_key)}"
    return {"StatusCallback": f"{variable('WEBHOOK_URL')}/{twilio.name}{query}{_CALLBACK_RETRIES}"}


def send_at_most_once(twilio: Twilio, caller: Caller, send: Send) -> dict[str, Any]:
    """Return Twilio's message, of this request or of an earlier one with the same key.

    Raises IdempotencyConflictError, SendInProgressError, OutcomeUnknownError, or the error that says why nothing
    was sent. An earlier request's message has `evidence` unless Twilio's own answer showed it.
    """
    ledger = IdempotencyStore(variable("LEDGER_TABLE"), twilio.deadline.earlier(RESERVE_SECONDS))
    callback = status_callback(twilio, send.idempotency_key)
    claim = new_claim(
        idempotency_key=send.idempotency_key,
        connection=twilio.name,
        caller=caller.kind,
        same=fingerprint(send.sms),
        sms=send.sms | _own_fields(twilio, send),
        sought=_message_match(send.form, twilio.connection.account_sid),
        # The lease outlasts the invocation: until then the send must not count as lost.
        lease_seconds=max(int(variable("SEND_LEASE")), math.ceil(twilio.deadline.remaining())),
        calls_back=bool(callback) and callback.items() <= send.form.items(),
    )
    if caller.may_have_been_sent and caller.delivery == send.idempotency_key:
        state = SendState.SENDING if send.resend else SendState.UNKNOWN
        claim = msgspec.structs.replace(claim, state=state, may_have_been_sent=True)
    twilio.reserve(client.SECONDS)  # to write the request's outcome
    if not twilio.has_time(client.SECONDS):
        raise ServiceUnavailableError("too little time was left to begin; nothing was sent")
    try:
        record = ledger.write(ClaimRequested(claim, send.resend))
    except ServiceUnavailableError as error:
        if twilio.has_time(client.SECONDS):
            _withdraw(ledger, claim, error)
        raise
    if record.nonce != claim.nonce or record.state is not SendState.SENDING:
        return _known(twilio, record, claim)
    try:
        message = post_message(twilio, send.form)
    except Exception as error:  # noqa: BLE001 after any error, the record must leave `sending`
        message = _note_failure(twilio, ledger, record, error)
    else:
        _note(ledger, Accepted(message), record)
    return message


def _withdraw(ledger: IdempotencyStore, claim: SendRecord, error: ConnectorError) -> None:
    """Withdraw a claim that may have been written although its answer was lost: nothing was sent."""
    with suppress(ServiceUnavailableError):
        record = ledger.find(claim.id)
        if record and record.nonce == claim.nonce:
            ledger.write(Rejected(claim.nonce, error.problem()), record)


def _own_fields(twilio: Twilio, send: Send) -> dict[str, str]:
    """Return the connector's own fields, which are needed to send the stored input again."""
    fields = {"connection": twilio.name, "idempotency_key": send.idempotency_key}
    return fields | {"on_unknown": "resend"} if send.resend else fields


def _known(twilio: Twilio, record: SendRecord, claim: SendRecord) -> dict[str, Any]:
    """Return the message of an earlier request with this key, or raise the error that says why there is none."""
    if record.fingerprint != claim.fingerprint:
        raise IdempotencyConflictError("idempotency_key: was used for another input; another message needs a new key")
    if record.state is SendState.SENDING:
        raise SendInProgressError("the message of this idempotency_key is being sent at this moment")
    if sent := result(twilio, record):
        telemetry.note(message_sid=record.sid, replayed=True)
        return sent
    raise OutcomeUnknownError(
        "an earlier request with this idempotency_key may or may not have been carried out; it is not repeated"
    )


def _note_failure(twilio: Twilio, ledger: IdempotencyStore, claim: SendRecord, error: Exception) -> dict[str, Any]:
    """Write that a request failed, and raise its error; return the message if a status callback proved it meanwhile."""
    problem = error if isinstance(error, ConnectorError) else InternalError("internal error")
    if not isinstance(problem, OutcomeUnknownError) and not (problem is not error and twilio.may_have_changed):
        record = _note(ledger, Rejected(claim.nonce, problem.problem()), claim)
    else:
        record = _note(ledger, OutcomeLost(claim.nonce), claim)
    if record and record.state is SendState.UNKNOWN and record.may_have_been_sent:
        raise OutcomeUnknownError("an earlier request with this idempotency_key may have been carried out") from error
    if record and (sent := result(twilio, record)):
        telemetry.note(message_sid=record.sid)
        return sent
    raise error


def _note(ledger: IdempotencyStore, event: SendEvent, claim: SendRecord) -> SendRecord | None:
    """Write a request's outcome. If the ledger does not answer, `resolve` finds the outcome later."""
    try:
        return ledger.write(event, claim)
    except ServiceUnavailableError as error:
        telemetry.failure(error, event=type(event).__name__)
        return None


def result(twilio: Twilio, record: SendRecord) -> dict[str, Any] | None:
    """Return a record's sent message as its caller gets it; None if it has none."""
    if record.message is None:
        return None
    return msgspec.structs.replace(record, message=fetch_message(twilio, record.message)).result


def fetch_message(twilio: Twilio, message: dict[str, Any]) -> dict[str, Any]:
    """Return Twilio's whole message object, or the status callback's part of it if Twilio does not answer."""
    if "uri" in message:
        return message
    try:
        found: dict[str, Any] = twilio.request("GET", f"Messages/{message['sid']}.json", response_model=Message).data
    except ConnectorError:
        return message
    return found


def _message_match(form: Form, account_sid: str) -> MessageMatch | None:
    """Return the fields that identify the message in Twilio's list; None if a template makes its text."""
    if "ContentSid" in form:
        return None
    texts = {name: value for name, value in form.items() if isinstance(value, str)}
    return MessageMatch(
        to=texts["To"],
        body=texts.get("Body", ""),
        account_sid=account_sid,
        from_=texts.get("From"),
        messaging_service_sid=texts.get("MessagingServiceSid"),
    )
