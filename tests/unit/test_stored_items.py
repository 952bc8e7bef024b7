"""Items that an earlier commit stored can still be read, because an update finds them in a stack's tables."""

import json
from typing import Any

import msgspec
import pytest
from twilio_connector.messaging.idempotency_store import IdempotencyStore
from twilio_connector.polling.checkpoint import Progress
from twilio_connector.publishing.deduplication import ClaimResult, Deduplication
from twilio_connector.publishing.event import Event

from tests.aws_wire import AwsWire
from tests.conftest import ROOT
from tests.unit.conftest import ACCOUNT_SID, Clock

ITEMS: dict[str, list[dict[str, Any]]] = json.loads((ROOT / "tests/data/items-fde0f34.json").read_text())
LEDGER = {item["id"]["S"]: item for item in ITEMS["ledger"]}
DELIVERIES = {item["id"]["S"]: item for item in ITEMS["deliveries"]}
AT = 1795981000
"""A time shortly after these items were stored, in seconds since the epoch."""


@pytest.fixture(autouse=True)
def _at(clock: Clock) -> None:
    """Set the clock to a time at which no item has expired."""
    clock.now = AT


@pytest.mark.parametrize("key", [item["id"]["S"] for item in ITEMS["ledger"] if "state" in item])
def test_keys_are_known(aws_wire: AwsWire, key: str) -> None:
    """A stored key is read with its state, evidence and SID, and with the fields for a search of its message."""
    aws_wire.items = LEDGER
    item, record = LEDGER[key], IdempotencyStore("ledger").find(key)

    assert record is not None
    assert item["state"]["S"] == record.state
    assert item.get("evidence", {}).get("S") == record.evidence
    assert item.get("sid", {}).get("S") == record.sid
    assert ("unsettled" in item) is not record.settled
    assert item["calls_back"]["BOOL"] is record.calls_back
    assert json.loads(item.get("sought", {"S": "null"})["S"]) == (
        msgspec.to_builtins(record.sought) if record.sought else None
    )


def test_sids_belong_to_their_keys(aws_wire: AwsWire) -> None:
    """A stored SID belongs to one key, and is taken for every other key."""
    owners = {key: item for key, item in LEDGER.items() if "key_id" in item}
    aws_wire.items, aws_wire.owners = {key: LEDGER[key] for key in LEDGER.keys() - owners.keys()}, owners
    store = IdempotencyStore("ledger")
    records = [record for key in aws_wire.items if (record := store.find(key))]

    taken = {(record.id, sid) for record in records for sid in owners if store.is_taken(sid, record)}
    assert owners
    assert taken == {(record.id, sid) for record in records for sid in owners if record.sid != sid}


@pytest.mark.parametrize(
    "item", [item for item in ITEMS["deliveries"] if "state" in item], ids=lambda item: item["state"]["S"]
)
def test_published_events_are_duplicates(aws_wire: AwsWire, item: dict[str, Any]) -> None:
    """A stored event is a duplicate if it is on the bus, or in the buffer, which publishes it later."""
    aws_wire.deliveries = DELIVERIES
    event = Event("Message Received", {"account_sid": ACCOUNT_SID, "deduplication_id": item["deduplication_id"]["S"]})

    assert ClaimResult.DUPLICATE is Deduplication("deliveries").claim(event, lease_seconds=9).verdict


def test_polling_goes_on() -> None:
    """The stored progress of polling is read completely, so that polling continues where it was."""
    [item] = [item for key, item in DELIVERIES.items() if key.startswith("polling:")]

    progress = msgspec.json.decode(item["progress"]["S"], type=Progress)
    assert json.loads(item["progress"]["S"]) == msgspec.to_builtins(progress)
