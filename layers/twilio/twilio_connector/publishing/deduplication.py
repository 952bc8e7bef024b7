"""Which of Twilio's events were published: each is published once, even if Twilio delivers it again.

    absent ──claim──► begun ──published──► done
                       │ └──in the buffer──► kept ──claim of the buffer──► begun
                       └──its lease ends──► claimed again, marked as uncertain

An event is noted as done only after it is on the bus. If publishing fails before that, the next delivery publishes it.
`claim_result` holds all of these rules. `Deduplication` writes what it returns.
"""

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, StrEnum, auto
from typing import Any, NamedTuple

from twilio_connector import clock, telemetry
from twilio_connector.aws import client
from twilio_connector.aws.dynamodb import ALWAYS, Condition, ConditionFailedError, Table, attributes
from twilio_connector.backoff import backoff
from twilio_connector.errors import ServiceUnavailableError
from twilio_connector.publishing.event import Event, event_key

RETENTION_SECONDS = 30 * 24 * 3600
"""An event is remembered for 30 days."""

# https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_BatchGetItem.html
_MAX_KEYS = 100
_ROUNDS = 5  # requests for the keys that DynamoDB left unprocessed


class EventState(StrEnum):
    """How far an event came."""

    BEGUN = "begun"
    KEPT = "kept"
    DONE = "done"


class Seen(NamedTuple):
    """An event's item in the table. Times are seconds since the epoch; `nonce` identifies the claim.

    `uncertain`: the event may be on the bus, although no answer confirmed it.
    """

    state: EventState
    nonce: str
    lease_until: int
    expires_at: int
    uncertain: bool = False


class ClaimResult(Enum):
    """What to do with an event."""

    FIRST = auto()
    """Publish it."""
    AGAIN = auto()
    """Publish it, marked as possibly published before."""
    DUPLICATE = auto()
    """Do nothing: it was published, or is in the buffer."""
    BUSY = auto()
    """Retry later: another invocation is publishing it."""
    UNAVAILABLE = auto()
    """Publish it, marked as not deduplicated: the table does not answer."""


class PublishClaim(NamedTuple):
    """What to do with an event. `FIRST` and `AGAIN` give the right to publish it. A busy one is free at `free_at`."""

    verdict: ClaimResult
    key: str = ""
    nonce: str = ""
    free_at: int = 0


def claim_result(seen: Seen | None, now: float, *, buffered: bool) -> ClaimResult:
    """Return what to do with an event; `buffered` says that it comes from the buffer."""
    if seen is None or seen.expires_at <= now:  # DynamoDB deletes expired items days later
        return ClaimResult.FIRST
    match seen.state:
        case EventState.BEGUN:
            return ClaimResult.BUSY if seen.lease_until > now else ClaimResult.AGAIN
        case EventState.KEPT if buffered:
            return ClaimResult.AGAIN if seen.uncertain else ClaimResult.FIRST
    return ClaimResult.DUPLICATE


class Deduplication:
    """The events of the last 30 days, in a DynamoDB table."""

    def __init__(self, table: str) -> None:
        """Take the table's name."""
        self._table = Table(table, "the table of published events", version="nonce")

    def unknown(self, events: Sequence[Event]) -> list[Event]:
        """Return the events that are neither published nor in the buffer, each once; raises ServiceUnavailableError.

        The read is eventually consistent, so the caller must still claim each event.
        """
        distinct = {event_key(event): event for event in events}
        now = clock.now()
        found = {
            item["id"]["S"]
            for keys in itertools.batched(distinct, _MAX_KEYS, strict=False)
            for item in self._items(keys)
            if claim_result(_seen(item), now, buffered=False) is ClaimResult.DUPLICATE
        }
        return [event for key, event in distinct.items() if key not in found]

    def _items(self, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the items of at most 100 keys that are there."""
        left: dict[str, Any] = {self._table.name: {"Keys": [attributes(id=key) for key in keys]}}
        for number in range(_ROUNDS):
            if number:
                clock.sleep(backoff(number - 1))
            answer = self._table.call("BatchGetItem", RequestItems=left)
            yield from answer["Responses"].get(self._table.name, ())
            left = answer.get("UnprocessedKeys", {})
            if not left:
                return
        raise client.AwsUnavailableError("UnprocessedKeys").unavailable(self._table.title)

    def claim(self, event: Event, *, lease_seconds: float, buffered: bool = False) -> PublishClaim:
        """Claim the right to publish an event, for this many seconds."""
        key, nonce = event_key(event), uuid.uuid4().hex
        seen: Seen | None = None
        try:
            while True:
                now = clock.now()
                verdict = claim_result(seen, now, buffered=buffered)
                if verdict in {ClaimResult.DUPLICATE, ClaimResult.BUSY}:
                    return PublishClaim(verdict, free_at=seen.lease_until if seen else 0)
                new = Seen(EventState.BEGUN, nonce, int(now + lease_seconds) + 1, int(now) + RETENTION_SECONDS)
                try:
                    self._put(key, event, new, self._table.unchanged(seen.nonce if seen else None))
                except ConditionFailedError as other:
                    seen = _seen(other.item)
                else:
                    return PublishClaim(verdict, key, nonce)
        except ServiceUnavailableError as error:
            telemetry.failure(error)
            return PublishClaim(ClaimResult.UNAVAILABLE)

    def note_done(self, event: Event, claim: PublishClaim) -> None:
        """Note that a claimed event is on the bus, whatever the table has."""
        self._note(event, claim, EventState.DONE, ALWAYS)

    def note_kept(self, event: Event, claim: PublishClaim, *, uncertain: bool) -> None:
        """Note that a claimed event is in the buffer, whose delivery may claim it at once."""
        self._note(event, claim, EventState.KEPT, self._table.unchanged(claim.nonce), uncertain=uncertain)

    def _note(
        self, event: Event, claim: PublishClaim, state: EventState, condition: Condition, *, uncertain: bool = False
    ) -> None:
        """Write an event's state. If that fails, the claim's lease expires by itself."""
        if not claim.nonce:
            return
        now = int(clock.now())
        try:
            self._put(claim.key, event, Seen(state, claim.nonce, now, now + RETENTION_SECONDS, uncertain), condition)
        except ConditionFailedError:
            return  # the lease expired, and another invocation took it over
        except ServiceUnavailableError as error:
            telemetry.failure(error)

    def _put(self, key: str, event: Event, seen: Seen, condition: Condition) -> None:
        for_people = event.detail["deduplication_id"]
        self._table.put(attributes(id=key, deduplication_id=for_people, **seen._asdict()), condition)


def _seen(item: Mapping[str, Any] | None) -> Seen | None:
    """Read an item; raises ServiceUnavailableError if it is corrupt."""
    if not item:
        return None
    try:
        return Seen(
            EventState(item["state"]["S"]),
            item["nonce"]["S"],
            int(item["lease_until"]["N"]),
            int(item["expires_at"]["N"]),
            uncertain=item["uncertain"]["BOOL"],
        )
    except (KeyError, TypeError, ValueError):
        raise ServiceUnavailableError("an item of the table of published events cannot be read") from None
