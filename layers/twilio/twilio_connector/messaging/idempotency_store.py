"""The records of keyed sends, in a DynamoDB table."""

import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, overload

import msgspec

from twilio_connector import clock
from twilio_connector.aws.dynamodb import ALWAYS, Condition, ConditionFailedError, Item, Table, attributes, condition
from twilio_connector.backoff import jitter
from twilio_connector.deadline import Deadline
from twilio_connector.messaging.idempotency import (
    Accepted,
    ClaimRequested,
    Displaced,
    Evidence,
    SendEvent,
    SendRecord,
    SendState,
    transition,
)

_SHARDS = "0123456789abcdef"  # an index with one partition would throttle the whole table
_TRIES = 5  # attempts of a transaction that conflicts with another writer
_CONFLICT_SECONDS = 0.2  # the longest pause before a retry


class EqualSend(NamedTuple):
    """Another key with the same message to the same recipient."""

    state: SendState
    sid: str | None


class _Owner(NamedTuple):
    """The key that a SID belongs to, and the evidence. `record` is the key's record, if it still has this SID."""

    key_id: str
    evidence: Evidence
    record: SendRecord | None

    @property
    def holds(self) -> bool:
        """Whether the key still owns the SID. It does not if only the list showed the SID and the record dropped it.

        A key that was sent twice on purpose owns two SIDs by proof, and its record has one of them.
        """
        return self.record is not None or self.evidence is not Evidence.LIST


class IdempotencyStore:
    """The records in a DynamoDB table, and the items that assign each SID to one of them."""

    def __init__(self, table: str, deadline: Deadline | None = None) -> None:
        """Take the table's name, and the deadline of all calls."""
        self._table = Table(table, "the ledger of sent messages", deadline=deadline)

    @overload
    def write(self, event: ClaimRequested) -> SendRecord: ...
    @overload
    def write(self, event: SendEvent, record: SendRecord) -> SendRecord | None: ...
    def write(self, event: SendEvent, record: SendRecord | None = None) -> SendRecord | None:
        """Write the record after an event, and return it; raises ServiceUnavailableError.

        `record` is the record as last read. If the table has another one, the event is applied to that. If the
        message's SID belongs to another key, nothing is written, and the record is returned unchanged.
        """
        while True:
            new = transition(record, event, clock.now())
            if new is None or new is record:
                return new
            new = msgspec.structs.replace(new, revision=uuid.uuid4().hex)
            # Twilio's answer counts whatever the ledger has, so it is written without a condition.
            only_if = ALWAYS if record and isinstance(event, Accepted) else self._unchanged(record)
            try:
                if _takes(new, record):
                    self._take(new, record, only_if)
                else:
                    self._table.put(_item(new), only_if)
            except _SidTakenError:
                return record
            except ConditionFailedError as other:
                record = _record(other.item) if other.item else None
            else:
                return new

    def find(self, record_id: str) -> SendRecord | None:
        """Return a record; raises ServiceUnavailableError."""
        item = self._table.get(record_id)
        record = _record(item) if item else None
        return None if record is None or record.expires_at <= clock.now() else record

    def pending(self, first_shard: int = 0) -> Iterator[str]:
        """Yield the ids of the records that still need a report; raises ServiceUnavailableError.

        The index is eventually consistent: it may still have a record that was settled a moment ago.
        """
        first = first_shard % len(_SHARDS)
        for shard in _SHARDS[first:] + _SHARDS[:first]:
            for item in self._query("unsettled-index", "unsettled", shard):
                yield item["id"]["S"]

    def others(self, record: SendRecord) -> list[EqualSend]:
        """Return the other keys with the same content; raises ServiceUnavailableError."""
        items = self._query("content-index", "content", record.content) if record.content else ()
        return [_other(item) for item in items if item["id"]["S"] != record.id]

    def is_taken(self, sid: str, record: SendRecord) -> bool:
        """Tell whether a message belongs to another key; raises ServiceUnavailableError."""
        owner = self._owner(sid)
        return owner is not None and owner.key_id != record.id and owner.holds

    def _query(self, index: str, name: str, value: str) -> Iterator[dict[str, Any]]:
        start: dict[str, Any] = {}
        while True:
            answer = self._table.call(
                "Query",
                TableName=self._table.name,
                IndexName=index,
                KeyConditionExpression="#name = :value",
                ExpressionAttributeNames={"#name": name},
                ExpressionAttributeValues=attributes(**{":value": value}),
                **start,
            )
            yield from answer["Items"]
            if "LastEvaluatedKey" not in answer:
                return
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}

    def _owner(self, sid: str) -> _Owner | None:
        """Return the key that a SID belongs to, with its record if that has the SID."""
        item = self._table.get(sid)
        if item is None:
            return None
        record = self.find(item["key_id"]["S"])
        record = record if record and record.sid == sid else None
        return _Owner(item["key_id"]["S"], Evidence(item["evidence"]["S"]), record)

    def _take(self, new: SendRecord, old: SendRecord | None, only_if: Condition) -> None:
        """Write the new record and the item of its SID in one transaction.

        Raises ConditionFailedError if another writer changed the record, and _SidTakenError if the SID stays with
        another key.
        """
        sid, evidence = str(new.sid), new.evidence or Evidence.LIST
        own = attributes(id=sid, key_id=new.id, evidence=evidence, expires_at=new.expires_at)
        free = condition("attribute_not_exists(id) OR key_id = :key", key=new.id)
        put, of_sid = (_item(new), only_if), [(own, free)]
        for tries_left in reversed(range(_TRIES)):
            try:
                self._put_all(put, *of_sid)
            except ConditionFailedError as error:
                stands = self._table.get(new.id)
                revision = stands["revision"]["S"] if stands else None
                if revision == new.revision:  # the answer to our own write was lost
                    return
                if only_if and revision != (old.revision if old else None):
                    raise ConditionFailedError(error.code, {"Item": stands}) from None
                if not tries_left:
                    raise error.unavailable(self._table.title) from None
                owner = self._owner(sid)
                if owner is None or owner.key_id == new.id:
                    of_sid = [(own, free)]
                    clock.sleep(jitter(0, _CONFLICT_SECONDS))  # another writer changed it at the same time
                else:
                    of_sid = [*self._displacing(owner, own, sid, evidence)]
            else:
                return

    def _displacing(self, owner: _Owner, own: Item, sid: str, evidence: Evidence) -> Iterator[tuple[Item, Condition]]:
        """Yield the writes that take a SID from another key, whose outcome is then unknown; raises _SidTakenError."""
        if owner.holds and not (owner.evidence is Evidence.LIST and evidence is not Evidence.LIST):
            raise _SidTakenError
        yield own, condition("key_id = :key AND evidence = :evidence", key=owner.key_id, evidence=owner.evidence)
        displaced = transition(owner.record, Displaced(sid), clock.now())
        if displaced and displaced is not owner.record:
            displaced = msgspec.structs.replace(displaced, revision=uuid.uuid4().hex)
            yield _item(displaced), self._unchanged(owner.record)

    def _put_all(self, *puts: tuple[Item, Condition]) -> None:
        """Write items, all or none; raises ConditionFailedError."""
        named = [{"Put": {"TableName": self._table.name, "Item": item, **only_if}} for item, only_if in puts]
        self._table.call("TransactWriteItems", TransactItems=named)

    def _unchanged(self, record: SendRecord | None) -> Condition:
        return self._table.unchanged(record.revision if record else None)


def _takes(new: SendRecord, old: SendRecord | None) -> bool:
    """Tell whether the new record has a SID or evidence that the old one had not."""
    return new.sid is not None and (old is None or (new.sid, new.evidence) != (old.sid, old.evidence))


def _other(item: Mapping[str, Any]) -> EqualSend:
    """Return another key's state and SID; a corrupt item counts as unknown."""
    try:
        return EqualSend(SendState(item["state"]["S"]), item["sid"]["S"] if "sid" in item else None)
    except (KeyError, ValueError, TypeError):
        return EqualSend(SendState.UNKNOWN, None)


class _SidTakenError(Exception):
    """The SID belongs to another key."""


_TEXTS = ("id", "nonce", "revision", "state", "idempotency_key", "connection", "caller", "fingerprint")
_NUMBERS = ("claimed_at", "lease_until", "expires_at")
_OBJECTS = ("sms", "sought", "message", "error")


def _item(record: SendRecord) -> Item:
    """Return a record as an item that people can read, with the attributes of the indexes."""
    item: Item = {name: {"S": getattr(record, name)} for name in _TEXTS}
    item |= {name: {"N": str(getattr(record, name))} for name in _NUMBERS}
    for name in _OBJECTS:
        if (value := getattr(record, name)) is not None:
            item[name] = {"S": msgspec.json.encode(value).decode()}
    return item | attributes(
        sid=record.sid,
        content=record.content,
        evidence=record.evidence,
        candidate_sid=record.candidate_sid,
        unknown_since=record.unknown_since,
        calls_back=record.calls_back,
        doubtful=record.may_have_been_sent or None,
        unsettled=None if record.settled else record.id[0],
    )


def _record(item: Mapping[str, Any]) -> SendRecord:
    """Return the record in an item.

    Attributes that a newer version of the connector wrote are ignored. Older versions wrote neither the evidence nor
    `calls_back`. Without `calls_back`, the list does not count as evidence.
    """
    values: dict[str, Any] = {name: item[name]["S"] for name in _TEXTS}
    values |= {name: int(item[name]["N"]) for name in _NUMBERS}
    values |= {name: msgspec.json.decode(item[name]["S"]) for name in _OBJECTS if name in item}
    values |= {name: item[name]["S"] for name in ("content", "evidence", "candidate_sid") if name in item}
    values |= {"unknown_since": int(item["unknown_since"]["N"])} if "unknown_since" in item else {}
    values |= {"calls_back": item["calls_back"]["BOOL"]} if "calls_back" in item else {}
    return msgspec.convert(
        values | {"settled": "unsettled" not in item, "may_have_been_sent": "doubtful" in item}, SendRecord
    )
