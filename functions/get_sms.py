"""Get one message, or the state of one send with a key."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from twilio_connector import clock, telemetry
from twilio_connector.api.client import Message, Twilio
from twilio_connector.errors import Fault, KeyNotFoundError
from twilio_connector.invocation.caller import Caller
from twilio_connector.invocation.handler import lambda_handler
from twilio_connector.messaging.idempotency import LeaseExpired, record_id, transition
from twilio_connector.messaging.idempotency_store import IdempotencyStore
from twilio_connector.settings import variable
from twilio_connector.validation.model import IdempotencyKey, Input, MessageSid


class GetSms(Input, frozen=True, kw_only=True):
    """The SID of a message, or the idempotency key of a send."""

    message_sid: MessageSid | None = None
    idempotency_key: IdempotencyKey | None = None

    @classmethod
    def cross_field_faults(cls, given: Mapping[str, Any]) -> Iterator[Fault]:
        """Yield a fault unless exactly one of the two is given."""
        if not given.keys() & {"message_sid", "idempotency_key"}:
            yield Fault("message_sid", "is required, unless idempotency_key is given")
        elif {"message_sid", "idempotency_key"} <= given.keys():
            yield Fault("idempotency_key", "cannot be combined with message_sid; give one of them")


@lambda_handler(GetSms)
def handler(sms: GetSms, twilio: Twilio, _: Caller) -> dict[str, Any]:
    """Return Twilio's message object, or what the ledger knows of a key; raises KeyNotFoundError."""
    if sms.idempotency_key is not None:
        return _known(twilio.name, sms.idempotency_key)
    message: dict[str, Any] = twilio.request("GET", f"Messages/{sms.message_sid}.json", response_model=Message).data
    return message


def _known(connection: str, idempotency_key: str) -> dict[str, Any]:
    """Return the ledger's record of a key. A send whose lease expired is unknown, even before `resolve` writes that."""
    send_id = record_id(connection, idempotency_key)
    telemetry.note(send_id=send_id)
    record = IdempotencyStore(variable("LEDGER_TABLE")).find(send_id)
    record = transition(record, LeaseExpired(), clock.now()) if record else None
    if record is None:
        raise KeyNotFoundError(
            "this connection has no record of this idempotency_key: it was never used, or more than 30 days ago"
        )
    telemetry.note(message_sid=record.sid)
    return {
        "idempotency_key": record.idempotency_key,
        "connection": record.connection,
        "state": record.state,
        "evidence": record.evidence,
        "candidate_sid": record.candidate_sid,
        "message": record.message,
        "error": record.error,
        "claimed_at": _moment(record.claimed_at),
        "expires_at": _moment(record.expires_at),
    }


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
