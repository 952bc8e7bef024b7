"""Which deliveries are published, what the table contains after each step, and the effects of lost answers."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from twilio_connector import clock
from twilio_connector.publishing.deduplication import (
    RETENTION_SECONDS,
    ClaimResult,
    Deduplication,
    EventState,
    PublishClaim,
    Seen,
    claim_result,
)
from twilio_connector.publishing.event import Event, event_key

from tests.aws_wire import LOST, PASS, AwsWire
from tests.unit.conftest import ACCOUNT_SID, Log

pytestmark = pytest.mark.usefixtures("delays")

NOW = 1_800_000_000
LEASE = 30
EVENT = Event("Message Received", {"account_sid": ACCOUNT_SID, "deduplication_id": "id", "parameters": {"Body": "Hi"}})
KEY = event_key(EVENT)
THROTTLED = (400, "ProvisionedThroughputExceededException")
DENIED = (400, "AccessDeniedException")
FAILED = (500, "InternalServerError")


# The rules: one line for each source of a claim, one column for each item in the table. `?` is uncertain.

RULES = """
           absent   expired  begun    overdue  kept       kept?      done
Twilio     FIRST    FIRST    BUSY     AGAIN    DUPLICATE  DUPLICATE  DUPLICATE
buffer     FIRST    FIRST    BUSY     AGAIN    FIRST      AGAIN      DUPLICATE
"""

BEGUN = Seen(EventState.BEGUN, "other", NOW + 10, NOW + 1000)
STANDS: dict[str, Seen | None] = {
    "absent": None,
    "expired": BEGUN._replace(state=EventState.DONE, expires_at=NOW),
    "begun": BEGUN,
    "overdue": BEGUN._replace(lease_until=NOW),
    "kept": BEGUN._replace(state=EventState.KEPT, lease_until=NOW),
    "kept?": BEGUN._replace(state=EventState.KEPT, lease_until=NOW, uncertain=True),
    "done": BEGUN._replace(state=EventState.DONE, lease_until=NOW),
}


def rules() -> list[tuple[str, str, str]]:
    """Return the source, the item and the expected result of each field of the table of rules."""
    first, *lines = RULES.strip("\n").splitlines()
    return [
        (asks, stands, expected)
        for asks, *fields in map(str.split, lines)
        for stands, expected in zip(first.split(), fields, strict=True)
    ]


def test_the_table_is_whole() -> None:
    """The rules cover every combination of a source and an item."""
    assert {(asks, stands) for asks in ("Twilio", "buffer") for stands in STANDS} == {rule[:2] for rule in rules()}


@pytest.mark.parametrize(("asks", "stands", "expected"), rules())
def test_the_rules(asks: str, stands: str, expected: str) -> None:
    """A claim's result is that of the table of rules."""
    assert ClaimResult[expected] is claim_result(STANDS[stands], NOW, buffered=asks == "buffer")


@pytest.mark.parametrize("state", EventState)
@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("uncertain", [False, True])
def test_what_is_expired_says_nothing(state: EventState, buffered: bool, uncertain: bool) -> None:  # noqa: FBT001 a table
    """An expired item has no effect in any state, because DynamoDB deletes it only days later.

    The item counts until `expires_at`.
    """
    seen = Seen(state, "other", NOW - 100, NOW, uncertain)

    assert ClaimResult.FIRST is claim_result(seen, NOW, buffered=buffered)
    if state is not EventState.KEPT or not buffered:
        assert ClaimResult.FIRST is not claim_result(seen, NOW - 0.001, buffered=buffered)


def test_a_lease_ends_in_its_last_second() -> None:
    """A lease ends exactly at `lease_until`, and not earlier."""
    assert ClaimResult.BUSY is claim_result(BEGUN, BEGUN.lease_until - 0.001, buffered=False)
    assert ClaimResult.AGAIN is claim_result(BEGUN, BEGUN.lease_until, buffered=False)


@pytest.mark.parametrize(
    "detail",
    [
        {"account_sid": ACCOUNT_SID, "deduplication_id": "di"},
        {"account_sid": "AC" + "1" * 32, "deduplication_id": "id"},
        {"account_sid": ACCOUNT_SID, "deduplication_id": "id\n"},
        {"account_sid": ACCOUNT_SID, "deduplication_id": "\ud800"},
    ],
)
def test_a_key_is_of_an_account_and_an_id(detail: dict[str, Any]) -> None:
    """An event's key depends only on its account and its deduplication id.

    The key reveals neither, and has a fixed length.
    """
    assert KEY != event_key(Event("Message Received", detail))
    assert 64 == len(event_key(Event("Message Received", detail)))
    assert KEY == event_key(EVENT._replace(detail=EVENT.detail | {"parameters": {}}))


# Calls to DynamoDB


@pytest.fixture
def table(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> Deduplication:
    """Return the table of published events, with the clock half a second after `NOW`."""
    assert [] == aws_wire.calls
    set_clock(monkeypatch, NOW + 0.5)
    return Deduplication("deliveries")


def set_clock(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    """Set the clock that decides when leases end."""
    monkeypatch.setattr(clock, "now", lambda: now)


def claimed(table: Deduplication, *, buffered: bool = False) -> PublishClaim:
    """Claim the event."""
    return table.claim(EVENT, lease_seconds=LEASE, buffered=buffered)


def stands(wire: AwsWire) -> dict[str, Any]:
    """Return the event's item, without DynamoDB's types."""
    return {name: next(iter(value.values())) for name, value in wire.deliveries[KEY].items()}


def stand(wire: AwsWire, name: str) -> None:
    """Store the item of that name."""
    seen = STANDS[name]
    if seen:
        Deduplication("deliveries")._put(KEY, EVENT, seen, {})
        wire.calls.clear()


def test_a_claim_is_one_conditional_write(table: Deduplication, aws_wire: AwsWire) -> None:
    """A claim is one conditional write, without a read before it."""
    claim = claimed(table)
    ((operation, body),) = aws_wire.calls

    assert ("PutItem", "deliveries", "attribute_not_exists(id)") == (
        operation,
        body["TableName"],
        body["ConditionExpression"],
    )
    assert PublishClaim(ClaimResult.FIRST, KEY, stands(aws_wire)["nonce"]) == claim


def test_what_stands_in_the_table(table: Deduplication, aws_wire: AwsWire) -> None:
    """A claim's item has times in whole seconds, and a lease that is no shorter than requested.

    Of the event, it contains only the id.
    """
    claim = claimed(table)

    assert {
        "id": KEY,
        "deduplication_id": "id",
        "state": "begun",
        "nonce": claim.nonce,
        "lease_until": str(NOW + LEASE + 1),
        "expires_at": str(NOW + RETENTION_SECONDS),
        "uncertain": False,
    } == stands(aws_wire)
    assert 30 * 24 * 3600 == RETENTION_SECONDS


def test_each_claim_has_its_own_nonce(table: Deduplication, aws_wire: AwsWire) -> None:
    """Each claim has its own nonce, which distinguishes it from all others."""
    one = claimed(table)
    aws_wire.deliveries.clear()

    assert one.nonce != claimed(table).nonce


@pytest.mark.parametrize(("asks", "stands_there", "expected"), rules())
def test_the_rules_on_the_wire(
    table: Deduplication, aws_wire: AwsWire, asks: str, stands_there: str, expected: str
) -> None:
    """A claim that may publish owns the item; any other claim leaves the item unchanged."""
    stand(aws_wire, stands_there)
    before = dict(aws_wire.deliveries)
    claim = claimed(table, buffered=asks == "buffer")

    assert ClaimResult[expected] is claim.verdict
    if claim.verdict in {ClaimResult.FIRST, ClaimResult.AGAIN}:
        assert ("begun", claim.nonce) == (stands(aws_wire)["state"], stands(aws_wire)["nonce"])
    else:
        assert (before, "", "") == (aws_wire.deliveries, claim.key, claim.nonce)


def test_who_is_busy_says_until_when(table: Deduplication, aws_wire: AwsWire) -> None:
    """A busy claim returns the end of the lease, because an earlier retry would be busy again."""
    stand(aws_wire, "begun")

    assert BEGUN.lease_until == claimed(table).free_at


def test_only_one_of_many_claims_stands(
    table: Deduplication, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly one of many simultaneous claims succeeds."""
    all_there, answer = threading.Barrier(8, timeout=10), aws_wire.answer
    first = threading.local()

    def answer_together(operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if not hasattr(first, "over"):
            first.over = True
            all_there.wait()
        return answer(operation, body)

    monkeypatch.setattr(aws_wire, "answer", answer_together)
    with ThreadPoolExecutor(8) as pool:
        verdicts = [claim.verdict for claim in pool.map(lambda _: claimed(table), range(8))]

    assert [ClaimResult.BUSY] * 7 + [ClaimResult.FIRST] == sorted(
        verdicts, key=lambda verdict: verdict is ClaimResult.FIRST
    )


def test_a_claim_whose_answer_is_lost_is_ours(table: Deduplication, aws_wire: AwsWire) -> None:
    """A claim whose answer is lost is retried, and the retry finds the item that the claim wrote."""
    aws_wire.failures["PutItem"] = [LOST]

    assert ClaimResult.FIRST is claimed(table).verdict
    assert ("begun", 2) == (stands(aws_wire)["state"], aws_wire.count("PutItem"))


@pytest.mark.parametrize("stands_there", ["absent", "expired", "overdue", "kept", "kept?"])
def test_a_lost_answer_does_not_change_the_verdict(table: Deduplication, aws_wire: AwsWire, stands_there: str) -> None:
    """A lost answer does not change a claim's result.

    An uncertain event stays uncertain.
    """
    stand(aws_wire, stands_there)
    # The first write requires that there is no item, the second one that the found item is unchanged.
    aws_wire.failures["PutItem"] = [LOST] if stands_there == "absent" else [PASS, LOST]
    claim = claimed(table, buffered=True)

    assert ClaimResult[dict(rule[1:] for rule in rules() if rule[0] == "buffer")[stands_there]] is claim.verdict
    assert (KEY, stands(aws_wire)["nonce"]) == (claim.key, claim.nonce)


@pytest.mark.parametrize("failures", [[THROTTLED] * 2, [FAILED] * 2, [DENIED], [LOST] * 2, [LOST, THROTTLED]], ids=repr)
def test_without_the_table_nobody_knows(
    table: Deduplication, aws_wire: AwsWire, log: Log, failures: list[tuple[int, str]]
) -> None:
    """If the table is unavailable, the claim returns UNAVAILABLE instead of raising an error.

    One log line has the reason.
    """
    aws_wire.failures["PutItem"] = [*failures]

    assert PublishClaim(ClaimResult.UNAVAILABLE) == claimed(table)
    (line,) = log()
    assert ("ERROR", "ServiceUnavailableError") == (line["level"], line["error"])


def test_a_claim_that_was_written_unheard_holds_off_the_next(table: Deduplication, aws_wire: AwsWire) -> None:
    """A claim that was written, and whose answers were lost, makes the next claim busy.

    Its event was published as `unavailable`, so a later delivery must be marked as a possible duplicate.
    """
    aws_wire.failures["PutItem"] = [LOST] * 2
    claimed(table)

    assert ClaimResult.BUSY is claimed(table).verdict


@pytest.mark.parametrize("stands_there", ["overdue", "expired"])
def test_what_somebody_takes_over_first_is_theirs(
    table: Deduplication, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, stands_there: str
) -> None:
    """Another process can take the item over between our read and our write; it then owns the item."""
    stand(aws_wire, stands_there)
    put = aws_wire._PutItem
    theirs = {"nonce": {"S": "theirs"}, "state": {"S": "begun"}} | {
        name: {"N": str(NOW + 10)} for name in ("lease_until", "expires_at")
    }

    def overtaken(_: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        answer = put(body)
        aws_wire.deliveries[KEY] = aws_wire.deliveries[KEY] | theirs
        return answer

    monkeypatch.setattr(aws_wire, "answer", overtaken)
    claim = claimed(table)

    assert (ClaimResult.BUSY, "theirs") == (claim.verdict, stands(aws_wire)["nonce"])


def test_an_item_that_is_gone_meanwhile_is_claimed(
    table: Deduplication, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expired item may disappear during a claim, because DynamoDB deletes it at any time. The claim succeeds."""
    stand(aws_wire, "expired")
    put = aws_wire._PutItem

    def deleted(_: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        answer = put(body)
        if answer[0] != 200:
            aws_wire.deliveries.clear()
        return answer

    monkeypatch.setattr(aws_wire, "answer", deleted)
    claim = claimed(table)

    assert (ClaimResult.FIRST, claim.nonce) == (claim.verdict, stands(aws_wire)["nonce"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state", None),
        ("state", {"S": "gone"}),
        ("state", {"N": "1"}),
        ("nonce", None),
        ("lease_until", None),
        ("lease_until", {"S": "soon"}),
        ("lease_until", {"N": "1e3"}),
        ("expires_at", None),
        ("expires_at", {"NULL": True}),
        ("uncertain", None),
        ("uncertain", {"S": "no"}),
    ],
)
def test_a_damaged_item_says_nothing(
    table: Deduplication, aws_wire: AwsWire, log: Log, name: str, value: dict[str, Any] | None
) -> None:
    """A damaged item makes the claim UNAVAILABLE, so that the event is published with that mark.

    The item stays unchanged for a person to examine.
    """
    stand(aws_wire, "begun")
    aws_wire.deliveries[KEY].pop(name)
    if value is not None:
        aws_wire.deliveries[KEY][name] = value
    before = dict(aws_wire.deliveries[KEY])

    assert PublishClaim(ClaimResult.UNAVAILABLE) == claimed(table)
    assert before == aws_wire.deliveries[KEY]
    assert ["ServiceUnavailableError"] == [line["error"] for line in log()]


# Notes about published and buffered events


def test_what_is_on_the_bus_is_done(table: Deduplication, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published event is noted as done for 30 days from then on, and later claims of it are duplicates."""
    claim = claimed(table)
    set_clock(monkeypatch, NOW + 20)
    table.note_done(EVENT, claim)

    assert ("done", str(NOW + 20 + RETENTION_SECONDS), False) == tuple(
        stands(aws_wire)[name] for name in ("state", "expires_at", "uncertain")
    )
    assert ClaimResult.DUPLICATE is claimed(table).verdict is claimed(table, buffered=True).verdict


@pytest.mark.parametrize("stands_there", STANDS)
def test_what_is_on_the_bus_is_done_whatever_the_table_says(
    table: Deduplication, aws_wire: AwsWire, stands_there: str
) -> None:
    """A published event is noted as done regardless of the item in the table.

    Another process may have taken the claim over, but the event is on the bus.
    """
    claim = claimed(table)
    aws_wire.deliveries.clear()
    stand(aws_wire, stands_there)
    table.note_done(EVENT, claim)

    assert "done" == stands(aws_wire)["state"]


@pytest.mark.parametrize("uncertain", [False, True])
def test_what_is_in_the_buffer_is_kept(
    table: Deduplication,
    aws_wire: AwsWire,
    uncertain: bool,  # noqa: FBT001 a table
) -> None:
    """After an event is noted as kept, Twilio's next delivery is a duplicate.

    The buffer's delivery may publish the event at once.
    """
    table.note_kept(EVENT, claimed(table), uncertain=uncertain)

    assert ("kept", uncertain) == (stands(aws_wire)["state"], stands(aws_wire)["uncertain"])
    assert ClaimResult.DUPLICATE is claimed(table).verdict
    assert (ClaimResult.AGAIN if uncertain else ClaimResult.FIRST) is claimed(table, buffered=True).verdict


@pytest.mark.parametrize("stands_there", [name for name in STANDS if name != "absent"])
def test_what_is_kept_does_not_undo_what_somebody_else_did(
    table: Deduplication, aws_wire: AwsWire, log: Log, stands_there: str
) -> None:
    """A note that an event is kept does not overwrite another process's item.

    The lease ended and the other process took the claim over. That is expected, so nothing is logged.
    """
    claim = claimed(table)
    stand(aws_wire, stands_there)
    before = stands(aws_wire)
    table.note_kept(EVENT, claim, uncertain=False)

    assert (before, []) == (stands(aws_wire), log())


@pytest.mark.parametrize("verdict", [ClaimResult.UNAVAILABLE, ClaimResult.BUSY, ClaimResult.DUPLICATE])
def test_without_a_claim_nothing_is_noted(table: Deduplication, aws_wire: AwsWire, verdict: ClaimResult) -> None:
    """Without a claim nothing is noted, because the event belongs to another process or to none."""
    table.note_done(EVENT, PublishClaim(verdict))
    table.note_kept(EVENT, PublishClaim(verdict), uncertain=True)

    assert [] == aws_wire.calls


@pytest.mark.parametrize("failures", [[THROTTLED] * 2, [FAILED] * 2, [DENIED], [LOST] * 2], ids=repr)
@pytest.mark.parametrize("state", [EventState.DONE, EventState.KEPT])
def test_a_note_that_fails_is_no_error(
    table: Deduplication, aws_wire: AwsWire, log: Log, failures: list[tuple[int, str]], state: EventState
) -> None:
    """A note that fails is logged, and raises no error.

    The event stays where it is, and the next delivery learns its state when the claim ends.
    """
    claim = claimed(table)
    aws_wire.failures["PutItem"] = [*failures]
    if state is EventState.DONE:
        table.note_done(EVENT, claim)
    else:
        table.note_kept(EVENT, claim, uncertain=False)

    assert ["ServiceUnavailableError"] == [line["error"] for line in log()]


@pytest.mark.parametrize("uncertain", [False, True])
def test_a_note_whose_answer_is_lost_holds(
    table: Deduplication,
    aws_wire: AwsWire,
    log: Log,
    uncertain: bool,  # noqa: FBT001 a table
) -> None:
    """A note whose answer is lost is written twice, with the same result."""
    claim = claimed(table)
    aws_wire.failures["PutItem"] = [LOST]
    table.note_kept(EVENT, claim, uncertain=uncertain)

    assert ("kept", uncertain, []) == (stands(aws_wire)["state"], stands(aws_wire)["uncertain"], log())


def test_the_clock_is_that_of_the_epoch(aws_wire: AwsWire) -> None:
    """`expires_at` is in seconds since the epoch, because DynamoDB deletes items by that time."""
    claimed(Deduplication("deliveries"))

    assert time.time() + RETENTION_SECONDS - 60 < int(stands(aws_wire)["expires_at"]) <= time.time() + RETENTION_SECONDS
