"""Send a message at most once per idempotency key, and find out what became of it."""

from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import msgspec

from twilio_connector import aws, telemetry
from twilio_connector.client import Message, Retries, Twilio
from twilio_connector.errors import (
    ConnectorError,
    IdempotencyConflictError,
    InternalError,
    OutcomeUnknownError,
    SendInProgressError,
    ServiceUnavailableError,
)
from twilio_connector.ledger import (
    Accepted,
    Claim,
    Event,
    Ledger,
    Lost,
    Record,
    Refused,
    Sought,
    State,
    fingerprint,
    key_id,
    new_claim,
)
from twilio_connector.retries import backoff
from twilio_connector.settings import variable

CALLBACK_FIELD = "send"
"""In the query of the webhook's URL: the id of the key whose message a status callback is about."""

# Twilio's connection overrides: two more tries, whatever went wrong. They are not signed
# (https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides).
_CALLBACK_RETRIES = "#rc=2&rp=all"

_PAGE_SIZE = "200"  # newest first
_ONCE = Retries(limit=0, when=lambda _: False, delay=backoff)

type Form = Mapping[str, str | list[str]]


class Send(NamedTuple):
    """A send with a key: the input as JSON, Twilio's parameters, and whether an unknown outcome is sent again."""

    idempotency_key: str
    sms: dict[str, Any]
    form: Form
    resend: bool


class _Page(msgspec.Struct):
    messages: list[dict[str, Any]]


def post(twilio: Twilio, form: Form) -> dict[str, Any]:
    """Make the request, and return Twilio's message."""
    try:
        message: dict[str, Any] = twilio.request("POST", "Messages.json", form=form, proof=Message).data
    except OutcomeUnknownError:
        raise
    except ConnectorError:
        telemetry.count("MessagesNotSent")
        raise
    telemetry.count("MessagesSent")
    return message


def status_callback(twilio: Twilio, idempotency_key: str) -> dict[str, str]:
    """Return the parameter that lets Twilio tell the webhook that the message of a key exists.

    Nothing for a connection without auth token, whose callbacks could not be believed.
    """
    if not twilio.connection.auth_token:
        return {}
    query = f"?{CALLBACK_FIELD}={key_id(twilio.name, idempotency_key)}"
    return {"StatusCallback": f"{variable('WEBHOOK_URL')}/{twilio.name}{query}{_CALLBACK_RETRIES}"}


def at_most_once(twilio: Twilio, send: Send) -> dict[str, Any]:
    """Return Twilio's message, of this request or of an earlier one with the same key.

    Raises IdempotencyConflictError, SendInProgressError, OutcomeUnknownError where it was not found, or the
    error that says why nothing was sent.
    """
    ledger = Ledger(variable("LEDGER_TABLE"))
    claim = new_claim(
        idempotency_key=send.idempotency_key,
        connection=twilio.name,
        caller=twilio.caller.kind,
        same=fingerprint(send.sms),
        sms=send.sms | _own_fields(twilio, send),
        sought=_sought(send.form, twilio.connection.account_sid),
        lease_seconds=int(variable("SEND_LEASE")),
    )
    if twilio.caller.doubtful and twilio.caller.delivery == send.idempotency_key:
        state = State.SENDING if send.resend else State.UNKNOWN
        claim = msgspec.structs.replace(claim, state=state, doubtful=True)
    twilio.reserve(aws.SECONDS)  # for what must be written once it is known what became of the request
    if not twilio.has_time(aws.SECONDS):
        raise ServiceUnavailableError("too little time was left to begin; nothing was sent")
    try:
        record = ledger.write(Claim(claim, send.resend))
    except ServiceUnavailableError as error:
        if twilio.has_time(aws.SECONDS):
            _withdraw(ledger, claim, error)
        raise
    if record.nonce != claim.nonce or record.state is not State.SENDING:
        return _known(twilio, record, claim)
    try:
        message = post(twilio, send.form)
    except Exception as error:  # noqa: BLE001 whatever it is, the ledger must not stay at sending
        message = _failed(twilio, ledger, record, error)
    else:
        _note(ledger, Accepted(message), record)
    return message


def _withdraw(ledger: Ledger, claim: Record, error: ConnectorError) -> None:
    """Take back a claim that may stand although its answer was lost, so that nobody waits for what was not sent."""
    with suppress(ServiceUnavailableError):
        record = ledger.find(claim.id)
        if record and record.nonce == claim.nonce:
            ledger.write(Refused(claim.nonce, error.problem()), record)


def _own_fields(twilio: Twilio, send: Send) -> dict[str, str]:
    """Return the fields with which the input can be sent again as it was meant."""
    fields = {"connection": twilio.name, "idempotency_key": send.idempotency_key}
    return fields | {"on_unknown": "resend"} if send.resend else fields


def _known(twilio: Twilio, record: Record, claim: Record) -> dict[str, Any]:
    """Return the message of a key that is not ours to send, or raise what keeps it from being sent."""
    if record.fingerprint != claim.fingerprint:
        raise IdempotencyConflictError("idempotency_key: was used for another input; another message needs a new key")
    if record.state is State.SENDING:
        raise SendInProgressError("the message of this idempotency_key is being sent at this moment")
    if record.message is None:
        raise OutcomeUnknownError(
            "an earlier request with this idempotency_key may or may not have been carried out; it is not repeated"
        )
    return whole(twilio, record.message)


def _failed(twilio: Twilio, ledger: Ledger, claim: Record, error: Exception) -> dict[str, Any]:
    """Return the message where a failed request turns out to have been carried out; else raise the error."""
    problem = error if isinstance(error, ConnectorError) else InternalError("a fault of the connector")
    if not isinstance(problem, OutcomeUnknownError) and not (problem is not error and twilio.may_have_changed):
        record = _note(ledger, Refused(claim.nonce, problem.problem()), claim)
    elif message := find(twilio, ledger, claim):
        record = _note(ledger, Accepted(message), claim)
        telemetry.count("MessagesSent")
        return message
    else:
        record = _note(ledger, Lost(claim.nonce), claim)
    if record and record.state is State.UNKNOWN and record.doubtful:
        raise OutcomeUnknownError("an earlier request with this idempotency_key may have been carried out") from error
    if record is None or record.message is None:
        raise error
    return whole(twilio, record.message)  # a status callback was faster


def _note(ledger: Ledger, event: Event, claim: Record) -> Record | None:
    """Write what became of a request; the answer is true without it, and `resolve` finds out later."""
    try:
        return ledger.write(event, claim)
    except ServiceUnavailableError as error:
        telemetry.failure(error, function="send_sms", connection=claim.connection, event=type(event).__name__)
        return None


def find(twilio: Twilio, ledger: Ledger, record: Record) -> dict[str, Any] | None:
    """Return the message of a record if Twilio's list has it; None proves nothing.

    It is the message if it is the only one with this text, recipient and sender since the claim that belongs to
    no other key.
    """
    sought = record.sought
    if sought is None:
        return None
    query = {"To": sought.to, "PageSize": _PAGE_SIZE} | ({"From": sought.from_} if sought.from_ else {})
    try:
        page = twilio.request("GET", "Messages.json", query=query, proof=_Page, retries=_ONCE).data
        # In this order: a message in the list has had its record for longer than the index takes.
        others = ledger.others(record)
    except ConnectorError:
        return None
    if any(other.state in {State.SENDING, State.UNKNOWN} for other in others):
        return None
    taken = {other.sid for other in others}
    like = [each for each in page["messages"] if _is(each, sought, record.claimed_at)]
    found = [each for each in like if each["sid"] not in taken]
    return found[0] if len(found) == 1 else None


def whole(twilio: Twilio, message: dict[str, Any]) -> dict[str, Any]:
    """Return Twilio's message object; of what a status callback told as much as there is, if Twilio does not answer."""
    if "uri" in message:
        return message
    try:
        found: dict[str, Any] = twilio.request("GET", f"Messages/{message['sid']}.json", proof=Message).data
    except ConnectorError:
        return message
    return found


def _sought(form: Form, account_sid: str) -> Sought | None:
    """Return what the message will look like in Twilio's list; None where a template makes its text."""
    if "ContentSid" in form:
        return None
    texts = {name: value for name, value in form.items() if isinstance(value, str)}
    return Sought(
        to=texts["To"],
        body=texts.get("Body", ""),
        account_sid=account_sid,
        from_=texts.get("From"),
        messaging_service_sid=texts.get("MessagingServiceSid"),
    )


def _is(message: Mapping[str, Any], sought: Sought, claimed_at: int) -> bool:
    """Tell whether a message of Twilio's list can be the one that is sought."""
    try:
        msgspec.convert(message, Message)
        created_at = parsedate_to_datetime(message["date_created"]).timestamp()
    except (msgspec.ValidationError, KeyError, TypeError, ValueError, AttributeError):
        return False
    is_outbound = str(message.get("direction")).startswith("outbound")
    wanted = {name: value for name, value in msgspec.to_builtins(sought).items() if name != "account_sid"}
    return is_outbound and created_at >= claimed_at and all(message.get(name) == wanted[name] for name in wanted)
