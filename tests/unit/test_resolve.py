"""Tests of `resolve`: what it finds out about messages with an unknown outcome, and what it reports."""

import json
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
import resolve
from twilio_connector.api import client
from twilio_connector.api.connections import Connections
from twilio_connector.aws.lease import Leases
from twilio_connector.errors import InternalError, ServiceUnavailableError
from twilio_connector.messaging import reconciliation
from twilio_connector.messaging.idempotency import Accepted, Confirmed, SendRecord, record_id
from twilio_connector.messaging.idempotency_store import IdempotencyStore

from tests.aws_wire import AwsWire
from tests.builders import leave_unknown
from tests.conftest import Context, LoadEvent
from tests.faults import FaultServer, faults
from tests.unit.conftest import Clock

SMS = {"to": "+15005550006", "message": "Hello", "idempotency_key": "key"}
SID = "SM" + "1" * 32
AWAY = (500, "InternalError")


@pytest.fixture
def unknown(twilio: FaultServer) -> FaultServer:
    """Leave a message with an unknown outcome, which Twilio's list does not show, and return Twilio."""
    leave(twilio)
    return twilio


def leave(twilio: FaultServer, **more: Any) -> None:
    """Leave a message with an unknown outcome."""
    leave_unknown(twilio, SMS | more)
    twilio.reset()


def run(seconds: float = 120) -> dict[str, int]:
    """Run `resolve` as its schedule does."""
    return resolve.handler({}, Context(seconds))


def age(aws_wire: AwsWire, minutes: int = 16) -> None:
    """Make all keys older by this many minutes."""
    aws_wire.age(60 * minutes)


def prove(aws_wire: AwsWire) -> None:
    """Mark all messages as sent, as a status callback does."""
    for item in aws_wire.items.values():
        proof = {"S": json.dumps({"sid": SID, "status": "sent"})}
        item |= {"state": {"S": "sent"}, "sid": {"S": SID}, "message": proof, "unsettled": {"S": item["id"]["S"][0]}}
        item["evidence"] = {"S": "callback"}


def told(aws_wire: AwsWire) -> list[str]:
    """Return the detail-types of the events."""
    return [entry["DetailType"] for entry in aws_wire.entries]


def detail(aws_wire: AwsWire) -> dict[str, Any]:
    """Return the detail of the last event."""
    return dict(json.loads(aws_wire.entries[-1]["Detail"]))


def test_the_event_file_is_taken(aws_wire: AwsWire, event: LoadEvent) -> None:
    """The example event is accepted. If no record is open, nothing is reported."""
    assert {"open": 0, "settled": 0} == resolve.handler(event("resolve"), Context(120))
    assert {"GetItem", "PutItem", "Query"} == {name for name, _ in aws_wire.calls}
    assert [] == aws_wire.entries


@pytest.mark.usefixtures("unknown")
def test_what_is_not_found_waits(aws_wire: AwsWire) -> None:
    """A message that is not in the list is not reported yet, because its absence proves nothing."""
    age(aws_wire, minutes=14)

    assert {"open": 1, "settled": 0} == run()
    assert ([], []) == (told(aws_wire), aws_wire.sent)


@pytest.mark.usefixtures("unknown")
def test_what_stays_unknown_is_told_and_set_aside(aws_wire: AwsWire) -> None:
    """An outcome that stays unknown is reported once, and the input goes to the failed queue with its key.

    With the key, the record can be moved back to the send queue.
    """
    age(aws_wire)

    assert {"open": 1, "settled": 1} == run()
    assert ["Message Outcome Unknown"] == told(aws_wire)
    assert "OutcomeUnknownError" == detail(aws_wire)["error"]["title"]
    (message,) = aws_wire.sent
    assert SMS | {"connection": "default"} == json.loads(message["MessageBody"])
    assert "OutcomeUnknownError" == message["MessageAttributes"]["error"]["StringValue"]
    assert {"open": 0, "settled": 0} == run()


@pytest.mark.usefixtures("unknown")
def test_a_proof_that_comes_later_is_told_too(aws_wire: AwsWire) -> None:
    """A proof that arrives after the report is reported too, so that consumers learn that the message was sent."""
    age(aws_wire)
    run()
    prove(aws_wire)

    assert {"open": 1, "settled": 1} == run()
    assert ["Message Outcome Unknown", "Message Sent"] == told(aws_wire)


@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize("operation", ["SendMessage", "PutEvents"])
def test_a_proof_that_comes_while_it_is_told_is_told_too(
    aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """A callback between the report and the note that it was made is not lost: the next run reports it."""
    age(aws_wire)
    answer = aws_wire.answer
    proofs = [Confirmed({"sid": SID, "status": "sent"})]

    def call_back(called: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if called == operation and proofs:
            ledger = IdempotencyStore("ledger")
            record = ledger.find(record_id("default", "key"))
            assert record is not None
            ledger.write(proofs.pop(), record)
        return answer(called, body)

    monkeypatch.setattr(aws_wire, "answer", call_back)
    run()

    assert {"open": 1, "settled": 1} == run()
    assert ["Message Outcome Unknown", "Message Sent"] == told(aws_wire)
    assert {"open": 0, "settled": 0} == run()


@pytest.mark.usefixtures("unknown")
def test_a_proof_is_told_once_its_sender_cannot_answer_any_more(aws_wire: AwsWire) -> None:
    """A proof is reported after the sender's lease, because until then the sender may return the message itself."""
    prove(aws_wire)

    assert {"open": 1, "settled": 0} == run()
    assert [] == told(aws_wire)
    age(aws_wire, minutes=1)
    assert {"open": 1, "settled": 1} == run()
    assert ["Message Sent"] == told(aws_wire)


@pytest.mark.usefixtures("unknown")
def test_what_its_sender_ends_meanwhile_is_not_told(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A send that its sender completes during the run is not reported, because the caller has the message."""
    age(aws_wire)
    for item in aws_wire.items.values():
        item["state"] = {"S": "sending"}
    answer = aws_wire.answer
    accepted: list[SendRecord | None] = []

    def accept(called: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if called == "PutItem" and "state" in body["Item"] and not accepted:
            accepted.append(None)
            ledger = IdempotencyStore("ledger")
            record = ledger.find(body["Item"]["id"]["S"])
            assert record is not None
            accepted[0] = ledger.write(Accepted({"sid": SID, "uri": "/"}), record)
        return answer(called, body)

    monkeypatch.setattr(aws_wire, "answer", accept)

    assert {"open": 1, "settled": 1} == run()
    assert ([], []) == (told(aws_wire), aws_wire.sent)
    assert [IdempotencyStore("ledger").find(record_id("default", "key"))] == accepted


@pytest.mark.usefixtures("unknown")
def test_what_is_claimed_again_meanwhile_is_not_settled(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is claimed again during the run is not settled, because its new sender may still answer."""
    age(aws_wire)
    for item in aws_wire.items.values():
        item["state"] = {"S": "sending"}
    answer = aws_wire.answer
    again: list[dict[str, Any]] = []

    def claim(called: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if called == "PutItem" and "state" in body["Item"] and not again:
            lease = {"lease_until": {"N": str(int(time.time()) + 60)}, "revision": {"S": "claim"}, "nonce": {"S": "2"}}
            again.append(aws_wire.items[body["Item"]["id"]["S"]] | lease)
            aws_wire.items[body["Item"]["id"]["S"]] = again[0]
        return answer(called, body)

    monkeypatch.setattr(aws_wire, "answer", claim)

    assert {"open": 1, "settled": 0} == run()
    assert again == list(aws_wire.items.values())
    assert ([], []) == (told(aws_wire), aws_wire.sent)


@pytest.mark.usefixtures("unknown")
def test_a_record_that_expires_meanwhile_is_settled(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that DynamoDB deletes just before the write counts as settled, because nothing is left to report."""
    age(aws_wire)
    for item in aws_wire.items.values():
        item["state"] = {"S": "sending"}
    answer = aws_wire.answer

    def expire(called: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if called == "PutItem" and "state" in body["Item"]:
            aws_wire.items.clear()
        return answer(called, body)

    monkeypatch.setattr(aws_wire, "answer", expire)

    assert {"open": 1, "settled": 1} == run()
    assert ([], []) == (told(aws_wire), aws_wire.sent)


def test_what_a_callback_tells_is_asked_for_in_full(unknown: FaultServer, aws_wire: AwsWire) -> None:
    """The event has Twilio's message object. If Twilio does not return it, the event has the callback's fields."""
    age(aws_wire)
    prove(aws_wire)
    run()
    assert {"sid": SID, "body": "Hello"}.items() <= detail(aws_wire)["message"].items()

    prove(aws_wire)
    unknown.script(faults.status(404))
    run()
    assert {"sid": SID, "status": "sent"} == detail(aws_wire)["message"]


@pytest.mark.usefixtures("unknown")
def test_a_send_that_is_under_way_is_left_alone(aws_wire: AwsWire) -> None:
    """A send in progress is left alone, as its sender may still answer. After its lease, the outcome is unknown."""
    for item in aws_wire.items.values():
        item["state"] = {"S": "sending"}

    assert {"open": 1, "settled": 0} == run()
    assert ["sending"] == [item["state"]["S"] for item in aws_wire.items.values()]
    age(aws_wire)
    assert {"open": 1, "settled": 0} == run()  # it is too early to search for it
    age(aws_wire, 2)
    assert {"open": 1, "settled": 1} == run()
    assert ["Message Outcome Unknown"] == told(aws_wire)


@pytest.mark.usefixtures("delays", "unknown")
@pytest.mark.parametrize("operation", ["PutEvents", "SendMessage"])
def test_what_could_not_be_told_is_told_by_the_next_run(aws_wire: AwsWire, operation: str) -> None:
    """A report that fails is made by the next run, because a record is settled only after its report."""
    age(aws_wire)
    aws_wire.failures[operation] = [AWAY, AWAY]

    assert {"open": 1, "settled": 0} == run()
    assert {"open": 1, "settled": 1} == run()
    assert "Message Outcome Unknown" == told(aws_wire)[-1]


def test_a_connection_that_is_gone_holds_nothing_up(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages of a deleted connection do not delay others. They are reported after an hour, without a search."""
    aws_wire.secrets["twilio/other"] = aws_wire.secrets["twilio/default"]
    leave(twilio, connection="other")
    leave(twilio, idempotency_key="second")
    del aws_wire.secrets["twilio/other"]
    monkeypatch.setattr(client, "CONNECTIONS", Connections())
    age(aws_wire)

    assert {"open": 2, "settled": 1} == run()
    assert {"second"} == keys_told(aws_wire)
    age(aws_wire, 44)
    assert {"open": 1, "settled": 1} == run()
    assert ["Message Outcome Unknown"] * 2 == told(aws_wire)


def keys_told(aws_wire: AwsWire) -> set[str]:
    """Return the keys of the events."""
    return {json.loads(entry["Detail"])["idempotency_key"] for entry in aws_wire.entries}


@pytest.fixture
def keys(twilio: FaultServer, aws_wire: AwsWire) -> list[str]:
    """Leave ten messages with unknown outcomes that are due, and return their keys in the order of their record ids."""
    names = [f"key-{number}" for number in range(10)]
    for name in names:
        leave(twilio, idempotency_key=name, message=name)
    age(aws_wire)
    return sorted(names, key=lambda name: record_id("default", name))


def test_a_message_that_cannot_be_set_aside_holds_nothing_up(aws_wire: AwsWire, keys: list[str]) -> None:
    """A record that the failed queue refuses does not delay others. The next run stores it, and nothing twice."""
    aws_wire.failures["SendMessage"] = [(400, "InvalidMessageContents")]

    assert {"open": 10, "settled": 9} == run()
    assert {"open": 1, "settled": 1} == run()
    assert set(keys) == keys_told(aws_wire)
    refused, *kept = [json.loads(message["MessageBody"])["idempotency_key"] for message in aws_wire.sent]
    assert (refused in kept, sorted(keys)) == (True, sorted(kept))


def test_a_malformed_list_holds_nothing_up(twilio: FaultServer, aws_wire: AwsWire, keys: list[str]) -> None:
    """A malformed list proves nothing, and does not delay the report of this message or of the others."""
    rows = [{"sid": [SID]}, {"sid": SID, "date_created": 5}]
    twilio.script(faults.answer(json.dumps({"messages": rows}).encode()))

    assert {"open": 10, "settled": 10} == run()
    assert set(keys) == keys_told(aws_wire)


def test_a_look_up_that_fails_is_made_again_before_it_is_told(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A failed search delays the report for an hour, in which it is retried. The queue retries a send for as long."""
    leave(twilio)
    twilio.script(faults.status(503))
    age(aws_wire, 58)
    assert {"open": 1, "settled": 0} == run()
    assert [] == told(aws_wire)

    age(aws_wire, 2)
    assert {"open": 1, "settled": 1} == run()
    assert ["Message Outcome Unknown"] == told(aws_wire)


def test_no_key_is_told_before_it_was_looked_for(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No outcome is reported before a search, however short UNKNOWN_REPORT_AFTER is."""
    monkeypatch.setenv("UNKNOWN_REPORT_AFTER", "1")
    leave(twilio)
    aws_wire.age(115)
    assert {"open": 1, "settled": 0} == run()
    assert ([], []) == (told(aws_wire), twilio.requests)

    aws_wire.age(10)
    assert {"open": 1, "settled": 1} == run()
    assert ["GET"] == [request.method for request in twilio.requests]


@pytest.mark.usefixtures("delays", "unknown")
def test_a_bus_that_is_away_leaves_the_failed_queue_alone(aws_wire: AwsWire) -> None:
    """If EventBridge is unavailable for two runs, the input still goes to the failed queue only once."""
    age(aws_wire)
    aws_wire.failures["PutEvents"] = [AWAY] * 4  # two attempts each

    assert [0, 0, 1] == [run()["settled"] for _ in range(3)]
    assert ["key"] == [json.loads(message["MessageBody"])["idempotency_key"] for message in aws_wire.sent]


# One run at a time, and several records in parallel


def test_two_runs_at_once_tell_nothing_twice(
    aws_wire: AwsWire, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run at the same time returns at once, so that nothing is reported twice."""
    answer = aws_wire.answer
    second: list[dict[str, int]] = []

    def meanwhile(called: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if called == "PutEvents" and not second:
            second.append({})
            second[0] = run()
        return answer(called, body)

    monkeypatch.setattr(aws_wire, "answer", meanwhile)

    assert {"open": 10, "settled": 10} == run()
    assert [{"open": 0, "settled": 0}] == second
    assert (10, 10) == (len(aws_wire.entries), len(aws_wire.sent))
    assert set(keys) == keys_told(aws_wire)
    assert {"open": 0, "settled": 0} == run()


@pytest.mark.usefixtures("unknown")
def test_a_run_that_died_holds_the_lease_until_its_time_is_over(aws_wire: AwsWire) -> None:
    """A killed run holds the lease until it expires, which is when Lambda ends the run at the latest."""
    age(aws_wire)
    lease = Leases("ledger", "resolve").take(120)

    assert lease is not None
    assert {"open": 0, "settled": 0} == run()
    aws_wire.owners["resolve"]["lease_until"] = {"N": str(int(time.time()))}
    assert {"open": 1, "settled": 1} == run()


def test_each_run_begins_with_another_part(aws_wire: AwsWire, keys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run begins with another shard, so that short runs do not always leave out the same keys."""
    monkeypatch.setattr(resolve, "_THREADS", 1)
    monkeypatch.setenv("UNKNOWN_REPORT_AFTER", "1440")
    found: list[list[str]] = []
    for _ in range(17):
        aws_wire.calls.clear()
        run()
        found.append([body["Key"]["id"]["S"] for name, body in aws_wire.calls if name == "GetItem"][1:])
    ids = [record_id("default", key) for key in keys]

    assert all(ids == sorted(each) for each in found)
    assert found[0] == found[16]
    assert {each[0] for each in ids} == {each[0][0] for each in found}


def test_several_records_are_taken_up_at_once(
    aws_wire: AwsWire, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight records are reconciled in parallel, because each waits for Twilio and for EventBridge."""
    together = threading.Barrier(8)
    waits = iter(range(8))
    whole = reconciliation.find_sent_message

    def look_up(*arguments: Any) -> Any:
        if next(waits, None) is not None:
            together.wait(timeout=30)
        return whole(*arguments)

    monkeypatch.setattr(reconciliation, "find_sent_message", look_up)

    assert {"open": 10, "settled": 10} == run()
    assert set(keys) == keys_told(aws_wire)


@pytest.mark.parametrize(
    "damage",
    [
        {"state": {"S": "paused"}},
        {"sms": {"S": "{"}},
        {"caller": {"N": "1"}},
        {"state": {"S": "sent"}, "message": {"S": '{"status": "sent"}'}},
    ],
    ids=str,
)
def test_an_item_that_cannot_be_read_holds_nothing_up(
    aws_wire: AwsWire, keys: list[str], damage: dict[str, Any]
) -> None:
    """A record that cannot be read may fail the run, so that a person checks it. The other records are reported."""
    aws_wire.items[record_id("default", keys[0])] |= damage
    with suppress(InternalError):
        run()

    assert set(keys[1:]) == keys_told(aws_wire)


def test_what_the_time_does_not_cover_is_left_to_the_next_run(
    aws_wire: AwsWire, keys: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without enough time for all records leaves the rest to the next run, and completes those that it began."""
    answer = aws_wire.answer

    def slow(called: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        clock.elapsed += 40 if called == "PutEvents" else 0
        return answer(called, body)

    monkeypatch.setattr(aws_wire, "answer", slow)
    monkeypatch.setattr(resolve, "_THREADS", 1)

    assert {"open": 3, "settled": 3} == run(seconds=120)
    assert set(keys[:3]) == keys_told(aws_wire)


@pytest.mark.usefixtures("unknown")
def test_without_time_nothing_is_begun(aws_wire: AwsWire) -> None:
    """A run without enough time for one record begins none, and leaves them to the next run."""
    age(aws_wire)

    assert {"open": 0, "settled": 0} == run(seconds=29)
    assert [] == told(aws_wire)


@pytest.mark.usefixtures("delays")
def test_a_ledger_that_does_not_answer_is_an_error(aws_wire: AwsWire) -> None:
    """The run fails if the ledger is unavailable, so that Lambda counts the error and the alarm reports it."""
    aws_wire.failures["Query"] = [AWAY, AWAY]

    with pytest.raises(ServiceUnavailableError):
        run()
