"""Which of Twilio's events were published: each is once, though Twilio delivers it more often.

    absent ──claim──► begun ──published──► done
                       │ └──in the buffer──► kept ──claim of the buffer──► begun
                       └──its lease ends──► claimed again, marked as uncertain

An event is noted as done only after it is on the bus, so what is lost on the way is published by the next who
delivers it. `judge` is the whole of these rules; `Deduplication` writes what follows from them.
"""

import hashlib
import itertools
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, StrEnum, auto
from typing import Any, NamedTuple

from twilio_connector import aws, telemetry
from twilio_connector.errors import ServiceUnavailableError
from twilio_connector.retries import backoff
from twilio_connector.twilio_events import Event

KEPT_SECONDS = 24 * 3600
"""An event is known that long."""

# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchGetItem.html
_MAX_KEYS = 100
_ROUNDS = 5  # so often the keys are asked for that DynamoDB left over


class State(StrEnum):
    """How far an event came."""

    BEGUN = "begun"
    KEPT = "kept"
    DONE = "done"


class Seen(NamedTuple):
    """What the table has of an event. Times are seconds since the epoch; `nonce` is that of the claim.

    `uncertain` says that it may be on the bus, though no answer said so.
    """

    state: State
    nonce: str
    lease_until: int
    expires_at: int
    uncertain: bool = False


class Verdict(Enum):
    """What is to be done with an event."""

    FIRST = auto()
    """Publish it."""
    AGAIN = auto()
    """Publish it, and say that it may have been published before."""
    DUPLICATE = auto()
    """Nothing: it was published, or is in the buffer."""
    BUSY = auto()
    """Ask again later: somebody is publishing it."""
    UNAVAILABLE = auto()
    """Publish it, and say that nobody knows whether it was published before."""


class Claim(NamedTuple):
    """A verdict, and where it is `FIRST` or `AGAIN` the right to publish; `free_at` is when a busy event is free."""

    verdict: Verdict
    key: str = ""
    nonce: str = ""
    free_at: int = 0


def judge(seen: Seen | None, now: float, *, buffered: bool) -> Verdict:
    """Return what is to be done with an event; `buffered` is one that comes from the buffer."""
    if seen is None or seen.expires_at <= now:  # DynamoDB deletes expired items days later
        return Verdict.FIRST
    match seen.state:
        case State.BEGUN:
            return Verdict.BUSY if seen.lease_until > now else Verdict.AGAIN
        case State.KEPT if buffered:
            return Verdict.AGAIN if seen.uncertain else Verdict.FIRST
    return Verdict.DUPLICATE


class Deduplication:
    """The events of the last day, in a DynamoDB table."""

    def __init__(self, table: str) -> None:
        """Take the table's name."""
        self._table = table

    def unknown(self, events: Sequence[Event]) -> list[Event]:
        """Return the events that are neither published nor in the buffer, each once; raises ServiceUnavailableError.

        What was written a moment ago may not show yet: an event that is returned is still to be claimed.
        """
        distinct = {event_key(event): event for event in events}
        now = time.time()
        found = {
            item["id"]["S"]
            for keys in itertools.batched(distinct, _MAX_KEYS, strict=False)
            for item in self._items(keys)
            if judge(_seen(item), now, buffered=False) is Verdict.DUPLICATE
        }
        return [event for key, event in distinct.items() if key not in found]

    def _items(self, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the items of at most 100 keys that are there."""
        left: dict[str, Any] = {self._table: {"Keys": [{"id": {"S": key}} for key in keys]}}
        for number in range(_ROUNDS):
            if number:
                time.sleep(backoff(number - 1))
            try:
                answer = aws.call("dynamodb", "BatchGetItem", RequestItems=left)
            except aws.RefusedError as error:
                raise ServiceUnavailableError(f"the table of published events does not answer ({error.code})") from None
            yield from answer["Responses"].get(self._table, ())
            left = answer.get("UnprocessedKeys", {})
            if not left:
                return
        raise ServiceUnavailableError("the table of published events does not answer (UnprocessedKeys)")

    def claim(self, event: Event, *, lease_seconds: float, buffered: bool = False) -> Claim:
        """Claim the right to publish an event, for so many seconds."""
        key, nonce = event_key(event), uuid.uuid4().hex
        seen: Seen | None = None
        while True:
            now = time.time()
            verdict = judge(seen, now, buffered=buffered)
            if verdict in {Verdict.DUPLICATE, Verdict.BUSY}:
                return Claim(verdict, free_at=seen.lease_until if seen else 0)
            new = Seen(State.BEGUN, nonce, int(now + lease_seconds) + 1, int(now) + KEPT_SECONDS)
            try:
                self._put(key, event, new, _held_by(seen.nonce) if seen else _ABSENT)
            except _OtherError as other:
                seen = other.seen
                if seen and seen.nonce == nonce:  # the answer to our own write was lost
                    return Claim(verdict, key, nonce)
            except ServiceUnavailableError as error:
                telemetry.failure(error, function="deduplication")
                return Claim(Verdict.UNAVAILABLE)
            else:
                return Claim(verdict, key, nonce)

    def done(self, event: Event, claim: Claim) -> None:
        """Note that a claimed event is on the bus: that is true whatever the table says."""
        self._note(event, claim, State.DONE, {})

    def kept(self, event: Event, claim: Claim, *, uncertain: bool) -> None:
        """Note that a claimed event is in the buffer, which may claim it at once."""
        self._note(event, claim, State.KEPT, _held_by(claim.nonce), uncertain=uncertain)

    def _note(
        self, event: Event, claim: Claim, state: State, condition: Mapping[str, Any], *, uncertain: bool = False
    ) -> None:
        """Write how far an event came; without that note the claim's lease ends by itself."""
        if not claim.nonce:
            return
        now = int(time.time())
        try:
            self._put(claim.key, event, Seen(state, claim.nonce, now, now + KEPT_SECONDS, uncertain), condition)
        except _OtherError:
            return  # the lease had ended, and somebody took it over
        except ServiceUnavailableError as error:
            telemetry.failure(error, function="deduplication")

    def _put(self, key: str, event: Event, seen: Seen, condition: Mapping[str, Any]) -> None:
        """Put an item if a condition holds; raises _OtherError with what is there instead."""
        item = {
            "id": {"S": key},
            "deduplication_id": {"S": event.detail["deduplication_id"]},  # for people
            "state": {"S": seen.state.value},
            "nonce": {"S": seen.nonce},
            "lease_until": {"N": str(seen.lease_until)},
            "expires_at": {"N": str(seen.expires_at)},
            "uncertain": {"BOOL": seen.uncertain},
        }
        try:
            aws.call(
                "dynamodb",
                "PutItem",
                TableName=self._table,
                Item=item,
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **condition,
            )
        except aws.RefusedError as error:
            if error.code == "ConditionalCheckFailedException":
                raise _OtherError(_seen(error.answer.get("Item"))) from None
            raise ServiceUnavailableError(f"the table of published events does not answer ({error.code})") from None


_ABSENT = {"ConditionExpression": "attribute_not_exists(id)"}


def _held_by(nonce: str) -> dict[str, Any]:
    return {"ConditionExpression": "nonce = :nonce", "ExpressionAttributeValues": {":nonce": {"S": nonce}}}


class _OtherError(Exception):
    """Something else stands in the table, or nothing any more."""

    def __init__(self, seen: Seen | None) -> None:
        """Keep what stands there."""
        self.seen = seen
        super().__init__()


def event_key(event: Event) -> str:
    """Return the key of an event's item; each account has its own."""
    return hashlib.sha256(
        f"{event.detail['account_sid']}\n{event.detail['deduplication_id']}".encode("utf-8", "surrogatepass")
    ).hexdigest()


def _seen(item: Mapping[str, Any] | None) -> Seen | None:
    """Return what an item says; raises ServiceUnavailableError where somebody damaged it."""
    if not item:
        return None
    try:
        return Seen(
            State(item["state"]["S"]),
            item["nonce"]["S"],
            int(item["lease_until"]["N"]),
            int(item["expires_at"]["N"]),
            uncertain=item["uncertain"]["BOOL"],
        )
    except (KeyError, TypeError, ValueError):
        raise ServiceUnavailableError("an item of the table of published events cannot be read") from None
