"""The ledger of keyed sends: what became of each idempotency key, so that none is sent twice.

    absent ──claim──► sending ──accepted, proven──► sent
                        │  └────refused───────────► not_sent ──claim──► sending
                        └───────lost, overdue─────► unknown ──accepted, proven──► sent

Twilio's API has no idempotency key (https://www.twilio.com/docs/api/errors/20500: a request that failed may
have been carried out), so a claim is written before the request, and only the one whose claim stands may send.
Nothing leads from `unknown` back to `sending`, unless the caller asked for that (`on_unknown`: `resend`).
`after` is the whole of these rules; `Ledger` writes what it returns, if the item is still the one it was given.
"""

import hashlib
import time
import uuid
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple, overload

import msgspec
from msgspec import Struct

from twilio_connector import aws, telemetry
from twilio_connector.errors import ServiceUnavailableError

KEPT_SECONDS = 30 * 24 * 3600
"""A key is known that long: two retentions of a queue, and a margin."""

_SHARDS = "0123456789abcdef"  # an index with one partition would limit the whole table


class State(StrEnum):
    """What is known of a key."""

    SENDING = "sending"
    SENT = "sent"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"


class Sought(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a message must have, in the words of Twilio's message object, to be the one that was sent."""

    to: str
    body: str
    account_sid: str | None = None
    from_: str | None = msgspec.field(name="from", default=None)
    messaging_service_sid: str | None = None


class Record(Struct, frozen=True, kw_only=True):
    """One key. Times are seconds since the epoch.

    `nonce` is that of the claim, `revision` that of the write. `settled` says that nobody has to be told any more.
    `sms` is the send_sms input, with connection and key; `error` is a problem object. `message` is Twilio's, or
    what a status callback tells of it. `content` is equal for equal messages of one account to one recipient.
    `doubtful` is a claim over an unknown outcome: that this one changed nothing does not say what the first one did.
    """

    id: str
    nonce: str
    revision: str = ""
    state: State = State.SENDING
    settled: bool = False
    idempotency_key: str
    connection: str
    caller: str
    fingerprint: str
    claimed_at: int
    lease_until: int
    expires_at: int
    sms: dict[str, Any] | None = None
    sought: Sought | None = None
    content: str | None = None
    doubtful: bool = False
    message: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def answers_a_person(self) -> bool:
        """Whether somebody waited for the answer: all others are told by an event."""
        return self.caller in {"api", "direct"}


class Claim(NamedTuple):
    """Somebody wants to send; `record` is what stands in the ledger if nothing is against it."""

    record: Record
    resend: bool


class Accepted(NamedTuple):
    """Twilio's answer has the message, and the caller gets it."""

    message: dict[str, Any]


class Refused(NamedTuple):
    """The request of a claim provably changed nothing."""

    nonce: str
    error: dict[str, Any]


class Lost(NamedTuple):
    """The request of a claim may or may not have been carried out."""

    nonce: str


class Proven(NamedTuple):
    """A status callback or Twilio's list shows the message to somebody else than the caller."""

    message: dict[str, Any]


class Overdue(NamedTuple):
    """Time has passed."""


class Reported(NamedTuple):
    """An event told that the key is in this state; what became of it meanwhile must still be told."""

    state: State


type Event = Claim | Accepted | Refused | Lost | Proven | Overdue | Reported


def key_id(connection: str, idempotency_key: str) -> str:
    """Return the id of a key's record, which does not tell the key."""
    return _digest(connection.encode(), idempotency_key.encode())


def fingerprint(sms: Mapping[str, Any]) -> str:
    """Return what is equal for equal inputs."""
    return _digest(msgspec.json.encode(sms, order="sorted"))


def new_claim(  # noqa: PLR0913 a record has these parts
    *,
    idempotency_key: str,
    connection: str,
    caller: str,
    same: str,
    sms: dict[str, Any],
    sought: Sought | None,
    lease_seconds: int,
) -> Record:
    """Return the record of a claim that is made now; `same` is the input's fingerprint."""
    now = int(time.time())
    return Record(
        id=key_id(connection, idempotency_key),
        nonce=uuid.uuid4().hex,
        idempotency_key=idempotency_key,
        connection=connection,
        caller=caller,
        fingerprint=same,
        claimed_at=now,
        lease_until=now + lease_seconds,
        expires_at=now + KEPT_SECONDS,
        sms=sms,
        sought=sought,
        # Without sender and connection: in Twilio's list the same message may have come by others.
        content=_digest(msgspec.json.encode([sought.account_sid, sought.to, sought.body])) if sought else None,
    )


def after(record: Record | None, event: Event, now: float) -> Record | None:
    """Return what stands in the ledger after an event: the same record where the event changes nothing."""
    if record is not None and record.expires_at <= now:
        record = None  # DynamoDB deletes expired items days later
    if record is None:
        return event.record if isinstance(event, Claim) else None
    match event:
        case Claim():
            record = _claimed(record, event, now)
        case Accepted(message):
            record = _next(record, State.SENT, message=message, settled=True)
        case Proven(message) if record.state is not State.SENT:
            record = _next(record, State.SENT, message=message)
        case Refused(nonce, error) if record.state is State.SENDING and record.nonce == nonce:
            refused = _next(record, State.NOT_SENT, error=error, settled=True)
            record = _next(record, State.UNKNOWN) if record.doubtful else refused
        case Lost(nonce) if record.state is State.SENDING and record.nonce == nonce:
            record = _next(record, State.UNKNOWN)
        case Overdue() if record.state is State.SENDING and record.lease_until <= now:
            record = _next(record, State.UNKNOWN)
        case Reported(state) if not record.settled and record.state is state:
            record = _next(record, record.state, message=record.message, settled=True)
    return record


def _claimed(record: Record, claim: Claim, now: float) -> Record | None:
    if record.fingerprint != claim.record.fingerprint:
        return record
    record = after(record, Overdue(), now) or record
    if record.state is State.NOT_SENT:
        return claim.record
    if record.state is State.UNKNOWN and claim.resend:
        return msgspec.structs.replace(claim.record, doubtful=True, claimed_at=record.claimed_at)
    if record.state is State.UNKNOWN and record.settled and not claim.record.answers_a_person:
        return _next(record, State.UNKNOWN)  # it came again by a queue, so it is reported again
    return record


def _next(record: Record, state: State, *, settled: bool = False, **results: Any) -> Record:
    """Return the record in another state; the input is kept only for a message that is still looked for."""
    kept = {} if state is State.UNKNOWN else {"sms": None, "sought": None}
    changes = {"message": None, "error": None} | kept | results
    return msgspec.structs.replace(record, state=state, settled=settled, **changes)


class Other(NamedTuple):
    """Another key with the same message to the same recipient."""

    state: State
    sid: str | None


class Ledger:
    """The records, in a DynamoDB table."""

    def __init__(self, table: str) -> None:
        """Take the table's name."""
        self._table = table

    @overload
    def write(self, event: Claim) -> Record: ...
    @overload
    def write(self, event: Event, record: Record) -> Record | None: ...
    def write(self, event: Event, record: Record | None = None) -> Record | None:
        """Write what stands after an event, and return it; raises ServiceUnavailableError.

        `record` is what is believed to stand there. Where it is something else, that is looked at instead.
        """
        while True:
            new = after(record, event, time.time())
            if new is None or new is record:
                return new
            new = msgspec.structs.replace(new, revision=uuid.uuid4().hex)
            try:
                self._put(new, record, anyway=isinstance(event, Accepted))
            except _OtherRecordError as other:
                record = other.record
                if record and record.revision == new.revision:  # the answer to our own write was lost
                    return new
            else:
                return new

    def find(self, record_id: str) -> Record | None:
        """Return a record; raises ServiceUnavailableError."""
        answer = _call("GetItem", TableName=self._table, Key={"id": {"S": record_id}}, ConsistentRead=True)
        record = _record(answer["Item"]) if "Item" in answer else None
        return None if record is None or record.expires_at <= time.time() else record

    def unsettled(self) -> Iterator[Record]:
        """Yield the records of which somebody must still be told; raises ServiceUnavailableError."""
        for shard in _SHARDS:
            for item in self._query("unsettled-index", "unsettled", shard):
                # An index is a moment behind.
                if (record := self._readable(item["id"]["S"])) and not record.settled:
                    yield record

    def _readable(self, record_id: str) -> Record | None:
        """Return a record, or None where somebody damaged it: the others must not wait for it."""
        try:
            return self.find(record_id)
        except ServiceUnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 whatever it holds, the log says no more than that
            telemetry.bug(error)
            return None

    def others(self, record: Record) -> list[Other]:
        """Return the other keys with the same content; raises ServiceUnavailableError."""
        items = self._query("content-index", "content", record.content) if record.content else ()
        return [_other(item) for item in items if item["id"]["S"] != record.id]

    def _query(self, index: str, name: str, value: str) -> Iterator[dict[str, Any]]:
        start: dict[str, Any] = {}
        while True:
            answer = _call(
                "Query",
                TableName=self._table,
                IndexName=index,
                KeyConditionExpression="#name = :value",
                ExpressionAttributeNames={"#name": name},
                ExpressionAttributeValues={":value": {"S": value}},
                **start,
            )
            yield from answer["Items"]
            if "LastEvaluatedKey" not in answer:
                return
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    def _put(self, new: Record, old: Record | None, *, anyway: bool) -> None:
        """Put an item in the place of the old one; raises _OtherRecordError with the one that is there instead."""
        condition: dict[str, Any] = {}
        if old is None:
            condition = {"ConditionExpression": "attribute_not_exists(id)"}
        elif not anyway:  # that Twilio accepted the message is true whatever the ledger says
            condition = {
                "ConditionExpression": "revision = :revision",
                "ExpressionAttributeValues": {":revision": {"S": old.revision}},
            }
        _call(
            "PutItem",
            TableName=self._table,
            Item=_item(new),
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
            **condition,
        )


def _other(item: Mapping[str, Any]) -> Other:
    """Return another key's state; of an item that somebody damaged nobody knows which message is its own."""
    try:
        return Other(State(item["state"]["S"]), item["sid"]["S"] if "sid" in item else None)
    except (KeyError, ValueError, TypeError):
        return Other(State.UNKNOWN, None)


class _OtherRecordError(Exception):
    """Something else stands in the ledger."""

    def __init__(self, record: Record | None) -> None:
        """Keep what stands there."""
        self.record = record
        super().__init__()


def _call(operation: str, **parameters: Any) -> dict[str, Any]:
    try:
        return aws.call("dynamodb", operation, **parameters)
    except aws.RefusedError as error:
        if error.code == "ConditionalCheckFailedException":
            item = error.answer.get("Item")
            raise _OtherRecordError(_record(item) if item else None) from None
        raise ServiceUnavailableError(f"the ledger of sent messages does not answer ({error.code})") from None


_TEXTS = ("id", "nonce", "revision", "state", "idempotency_key", "connection", "caller", "fingerprint")
_NUMBERS = ("claimed_at", "lease_until", "expires_at")
_OBJECTS = ("sms", "sought", "message", "error")


def _item(record: Record) -> dict[str, Any]:
    """Return a record as DynamoDB has it: a person can read it, and the indexes find it."""
    item: dict[str, Any] = {name: {"S": str(getattr(record, name))} for name in _TEXTS}
    item |= {name: {"N": str(getattr(record, name))} for name in _NUMBERS}
    for name in _OBJECTS:
        if (value := getattr(record, name)) is not None:
            item[name] = {"S": msgspec.json.encode(value).decode()}
    if record.message:
        item["sid"] = {"S": record.message["sid"]}
    if record.content:
        item["content"] = {"S": record.content}
    if record.doubtful:
        item["doubtful"] = {"BOOL": True}
    if not record.settled:
        item["unsettled"] = {"S": record.id[0]}
    return item


def _record(item: Mapping[str, Any]) -> Record:
    """Return the record in an item; what a newer version of the connector wrote besides is passed over."""
    values: dict[str, Any] = {name: item[name]["S"] for name in _TEXTS}
    values |= {name: int(item[name]["N"]) for name in _NUMBERS}
    values |= {name: msgspec.json.decode(item[name]["S"]) for name in _OBJECTS if name in item}
    values |= {"content": item["content"]["S"]} if "content" in item else {}
    return msgspec.convert(values | {"settled": "unsettled" not in item, "doubtful": "doubtful" in item}, Record)


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\n".join(parts)).hexdigest()
