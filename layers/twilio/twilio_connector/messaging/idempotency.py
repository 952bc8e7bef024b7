"""The rules that send a message at most once per idempotency key.

    absent ──ClaimRequested──► sending ──Accepted, Confirmed──► sent
                                 │  └────Rejected─────────────► not_sent ──ClaimRequested──► sending
                                 └───────OutcomeLost,─────────► unknown ──Accepted, Confirmed, Listed──► sent
                                         LeaseExpired              ▲─────────────Displaced────────────────┘

Twilio's API has no idempotency key, and a failed request may have been carried out
(https://www.twilio.com/docs/api/errors/20500). So the sender writes a claim before the request, and only the owner of
the claim sends. A key never goes from `unknown` back to `sending`, unless the caller asked for it
(`on_unknown`: `resend`). `transition` holds all of these rules. `IdempotencyStore` writes what it returns.

A SID belongs to one key: one transaction writes the record and an item whose id is the SID. Twilio's answer and its
status callback are proof. Its message list is evidence only: proof for another key displaces it.
"""

import hashlib
import uuid
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from twilio_connector import clock

RETENTION_SECONDS = 30 * 24 * 3600
"""The connector remembers a key for 30 days: twice the longest retention of an SQS queue, and a margin."""


class SendState(StrEnum):
    """What is known of a key."""

    SENDING = "sending"
    SENT = "sent"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


class Evidence(StrEnum):
    """How the connector knows that a message was sent. An answer and a callback are proof; the list is not."""

    ANSWER = "answer"
    CALLBACK = "callback"
    LIST = "list"


class MessageMatch(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fields of Twilio's message object that identify the message in Twilio's list."""

    to: str
    body: str
    account_sid: str | None = None
    from_: str | None = msgspec.field(name="from", default=None)
    messaging_service_sid: str | None = None


class SendRecord(Struct, frozen=True, kw_only=True):
    """One idempotency key. Times are seconds since the epoch.

    - `nonce` identifies the claim, `revision` the last write.
    - `settled` is true once nobody needs another report.
    - `sms` is the input of send_sms, with connection and key; `error` is a problem object.
    - `message` is Twilio's message object, or the part of it that a status callback has.
    - `content` is equal for equal messages from one account to one recipient.
    - `may_have_been_sent`: an earlier request may have sent the message, even if this one did not.
    - `calls_back`: Twilio was asked for a status callback whose signature the webhook can check.
    - `candidate_sid` is the only message in Twilio's list that matches an unknown outcome.
    """

    id: str
    nonce: str
    revision: str = ""
    state: SendState = SendState.SENDING
    settled: bool = False
    idempotency_key: str
    connection: str
    caller: str
    fingerprint: str
    claimed_at: int
    lease_until: int
    expires_at: int
    sms: dict[str, Any] | None = None
    sought: MessageMatch | None = None
    content: str | None = None
    may_have_been_sent: bool = False
    calls_back: bool = True
    unknown_since: int | None = None
    evidence: Evidence | None = None
    candidate_sid: str | None = None
    message: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def sid(self) -> str | None:
        """The SID of the message that was sent."""
        return self.message["sid"] if self.message else None

    @property
    def result(self) -> dict[str, Any] | None:
        """Twilio's message, with `evidence` unless Twilio's own answer showed it."""
        if self.message is None or self.evidence in {None, Evidence.ANSWER}:
            return self.message
        return self.message | {"evidence": str(self.evidence)}

    @property
    def is_synchronous(self) -> bool:
        """Whether the caller waits for the answer. All other callers get an event."""
        return self.caller in {"api", "direct"}


class ClaimRequested(NamedTuple):
    """A caller wants to send. `record` is written if no earlier record of the key forbids it."""

    record: SendRecord
    resend: bool


class Accepted(NamedTuple):
    """Twilio accepted the message, and the caller gets its answer."""

    message: dict[str, Any]


class Rejected(NamedTuple):
    """The claim's request provably sent nothing."""

    nonce: str
    error: dict[str, Any]


class OutcomeLost(NamedTuple):
    """The claim's request may have sent the message: no usable answer came."""

    nonce: str


class Confirmed(NamedTuple):
    """A status callback proves that the message exists."""

    message: dict[str, Any]


class Listed(NamedTuple):
    """The one message in Twilio's list that matches; None if no message matches, or several do.

    `rival` says that another open key has an equal message.
    """

    message: dict[str, Any] | None
    rival: bool


class Displaced(NamedTuple):
    """Proof gives the message with this SID to another key."""

    sid: str


class LeaseExpired(NamedTuple):
    """The claim's lease may be over."""


class ReportPending(NamedTuple):
    """The sender could not report the sent message: `resolve` will."""


class ReportSent(NamedTuple):
    """This revision of the record was reported. A later revision still needs its own report."""

    revision: str


type SendEvent = (
    ClaimRequested
    | Accepted
    | Rejected
    | OutcomeLost
    | Confirmed
    | Listed
    | Displaced
    | LeaseExpired
    | ReportPending
    | ReportSent
)


def record_id(connection: str, idempotency_key: str) -> str:
    """Return the id of a key's record: a hash that does not reveal the key."""
    return _digest(connection.encode(), idempotency_key.encode())


def fingerprint(sms: Mapping[str, Any]) -> str:
    """Return a hash that is equal for equal inputs."""
    return _digest(msgspec.json.encode(sms, order="sorted"))


def new_claim(  # noqa: PLR0913 a record has these parts
    *,
    idempotency_key: str,
    connection: str,
    caller: str,
    same: str,
    sms: dict[str, Any],
    sought: MessageMatch | None,
    lease_seconds: int,
    calls_back: bool = True,
) -> SendRecord:
    """Return the record of a new claim; `same` is the input's fingerprint."""
    now = int(clock.now())
    return SendRecord(
        id=record_id(connection, idempotency_key),
        nonce=uuid.uuid4().hex,
        idempotency_key=idempotency_key,
        connection=connection,
        caller=caller,
        fingerprint=same,
        claimed_at=now,
        lease_until=now + lease_seconds,
        expires_at=now + RETENTION_SECONDS,
        sms=sms,
        sought=sought,
        calls_back=calls_back,
        # Without sender and connection: another sender or connection can send an equal message.
        content=_digest(msgspec.json.encode([sought.account_sid, sought.to, sought.body])) if sought else None,
    )


def transition(record: SendRecord | None, event: SendEvent, now: float) -> SendRecord | None:  # noqa: C901 a table
    """Return the record after an event: the same object if the event changes nothing."""
    if record is not None and record.expires_at <= now:
        record = None  # DynamoDB deletes expired items days later
    if record is None:
        return event.record if isinstance(event, ClaimRequested) else None
    match event:
        case ClaimRequested():
            record = _claimed(record, event, now)
        case Accepted(message):
            record = _sent(record, message, Evidence.ANSWER, settled=True)
        case Confirmed() | Listed() | Displaced():
            record = _with_evidence(record, event, now)
        case Rejected(nonce, error) if record.state is SendState.SENDING and record.nonce == nonce:
            rejected = _without_personal_data(_next(record, SendState.NOT_SENT, error=error, settled=True))
            record = _unknown(record, now) if record.may_have_been_sent else rejected
        case OutcomeLost(nonce) if record.state is SendState.SENDING and record.nonce == nonce:
            record = _unknown(record, now)
        case LeaseExpired() if record.state is SendState.SENDING and record.lease_until <= now:
            record = _unknown(record, now)
        case ReportPending() if record.state is SendState.SENT and record.settled:
            record = msgspec.structs.replace(record, settled=False)
        case ReportSent(revision) if record.state is not SendState.SENDING and record.revision == revision:
            record = record if record.settled else msgspec.structs.replace(record, settled=True)
    return record


def _claimed(record: SendRecord, claim: ClaimRequested, now: float) -> SendRecord | None:
    if record.fingerprint != claim.record.fingerprint:
        return record
    record = transition(record, LeaseExpired(), now) or record
    if record.state is SendState.NOT_SENT:
        return claim.record
    if record.state is SendState.UNKNOWN and claim.resend:
        return msgspec.structs.replace(claim.record, may_have_been_sent=True, claimed_at=record.claimed_at)
    if record.state is SendState.UNKNOWN and record.settled and not claim.record.is_synchronous:
        return msgspec.structs.replace(record, settled=False)  # a queue delivered it again, so it is reported again
    return record


def _with_evidence(record: SendRecord, event: Confirmed | Listed | Displaced, now: float) -> SendRecord:
    """Return the record after a status callback, a look into Twilio's list, or proof for another key."""
    match event:
        case Confirmed(message) if record.sid == message["sid"] and record.evidence is Evidence.LIST:
            # `settled` stays: this message is reported once. The list has more of its fields than a callback has.
            record = _sent(record, record.message or message, Evidence.CALLBACK, settled=record.settled)
        case Confirmed(message) if record.state is not SendState.SENT or record.evidence is Evidence.LIST:
            record = _sent(record, message, Evidence.CALLBACK)
        case Listed(message, rival) if record.state is SendState.UNKNOWN:
            sid = message["sid"] if message else None
            if message and not rival and not record.calls_back:
                record = _sent(record, message, Evidence.LIST)
            elif sid != record.candidate_sid:
                record = msgspec.structs.replace(record, candidate_sid=sid)
        case Displaced(sid) if record.sid == sid and record.evidence is Evidence.LIST:
            record = _unknown(record, now)
    return record


def _sent(record: SendRecord, message: dict[str, Any], evidence: Evidence, *, settled: bool = False) -> SendRecord:
    """Return the record of a sent message; if only the list shows it, the record keeps what a new search needs."""
    sent = _next(record, SendState.SENT, message=message, evidence=evidence, settled=settled)
    return sent if evidence is Evidence.LIST else _without_personal_data(sent)


def _unknown(record: SendRecord, now: float) -> SendRecord:
    return _next(record, SendState.UNKNOWN, unknown_since=int(now))


def _without_personal_data(record: SendRecord) -> SendRecord:
    """Return the record without number and text, which nothing needs once the outcome is sure."""
    return msgspec.structs.replace(record, sms=None, sought=None)


def _next(record: SendRecord, state: SendState, *, settled: bool = False, **results: Any) -> SendRecord:
    """Return the record in another state, without the results of the earlier one."""
    none = dict.fromkeys(("unknown_since", "evidence", "candidate_sid", "message", "error"))
    return msgspec.structs.replace(record, state=state, settled=settled, **(none | results))


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


CALLBACK_FIELD = "send"
"""Name of the query parameter in a status callback's URL: its value is the id of the key's record."""
