"""Which deliveries are published, what stands in the table after each step, and what an answer that is lost changes."""

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


# The rules: one line for each that asks, one column for each thing that may stand there. `?` is uncertain.

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
    """Return who asks, what stands there and what is expected, of each field of the table."""
    first, *lines = RULES.strip("\n").splitlines()
    return [
        (asks, stands, expected)
        for asks, *fields in map(str.split, lines)
        for stands, expected in zip(first.split(), fields, strict=True)
    ]


def test_the_table_is_whole() -> None:
    """Each that asks meets each thing that may stand there."""
    assert {(asks, stands) for asks in ("Twilio", "buffer") for stands in STANDS} == {rule[:2] for rule in rules()}


@pytest.mark.parametrize(("asks", "stands", "expected"), rules())
def test_the_rules(asks: str, stands: str, expected: str) -> None:
    """All of them."""
    assert ClaimResult[expected] is claim_result(STANDS[stands], NOW, buffered=asks == "buffer")


@pytest.mark.parametrize("state", EventState)
@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("uncertain", [False, True])
def test_what_is_expired_says_nothing(state: EventState, buffered: bool, uncertain: bool) -> None:  # noqa: FBT001 a table
    """Whatever it is: DynamoDB deletes it days later. Until its last second it counts."""
    seen = Seen(state, "other", NOW - 100, NOW, uncertain)

    assert ClaimResult.FIRST is claim_result(seen, NOW, buffered=buffered)
    if state is not EventState.KEPT or not buffered:
        assert ClaimResult.FIRST is not claim_result(seen, NOW - 0.001, buffered=buffered)


def test_a_lease_ends_in_its_last_second() -> None:
    """Not a moment before."""
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
    """It tells neither, and has one length."""
    assert KEY != event_key(Event("Message Received", detail))
    assert 64 == len(event_key(Event("Message Received", detail)))
    assert KEY == event_key(EVENT._replace(detail=EVENT.detail | {"parameters": {}}))


# On the wire


@pytest.fixture
def table(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> Deduplication:
    """Return the table, at noon."""
    assert [] == aws_wire.calls
    set_clock(monkeypatch, NOW + 0.5)
    return Deduplication("deliveries")


def set_clock(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    """Set the clock by which leases end."""
    monkeypatch.setattr(clock, "now", lambda: now)


def claimed(table: Deduplication, *, buffered: bool = False) -> PublishClaim:
    """Claim the event."""
    return table.claim(EVENT, lease_seconds=LEASE, buffered=buffered)


def stands(wire: AwsWire) -> dict[str, Any]:
    """Return the item of the event, without its types."""
    return {name: next(iter(value.values())) for name, value in wire.deliveries[KEY].items()}


def stand(wire: AwsWire, name: str) -> None:
    """Let something stand there."""
    seen = STANDS[name]
    if seen:
        Deduplication("deliveries")._put(KEY, EVENT, seen, {})
        wire.calls.clear()


def test_a_claim_is_one_conditional_write(table: Deduplication, aws_wire: AwsWire) -> None:
    """No reading before."""
    claim = claimed(table)
    ((operation, body),) = aws_wire.calls

    assert ("PutItem", "deliveries", "attribute_not_exists(id)") == (
        operation,
        body["TableName"],
        body["ConditionExpression"],
    )
    assert PublishClaim(ClaimResult.FIRST, KEY, stands(aws_wire)["nonce"]) == claim


def test_what_stands_in_the_table(table: Deduplication, aws_wire: AwsWire) -> None:
    """In whole seconds, no sooner over than it was asked for; nothing of the event but its id."""
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
    """By which it is told from all others."""
    one = claimed(table)
    aws_wire.deliveries.clear()

    assert one.nonce != claimed(table).nonce


@pytest.mark.parametrize(("asks", "stands_there", "expected"), rules())
def test_the_rules_on_the_wire(
    table: Deduplication, aws_wire: AwsWire, asks: str, stands_there: str, expected: str
) -> None:
    """Who may publish holds the item; who may not leaves it as it is."""
    stand(aws_wire, stands_there)
    before = dict(aws_wire.deliveries)
    claim = claimed(table, buffered=asks == "buffer")

    assert ClaimResult[expected] is claim.verdict
    if claim.verdict in {ClaimResult.FIRST, ClaimResult.AGAIN}:
        assert ("begun", claim.nonce) == (stands(aws_wire)["state"], stands(aws_wire)["nonce"])
    else:
        assert (before, "", "") == (aws_wire.deliveries, claim.key, claim.nonce)


def test_who_is_busy_says_until_when(table: Deduplication, aws_wire: AwsWire) -> None:
    """Asked again before, it would be busy again."""
    stand(aws_wire, "begun")

    assert BEGUN.lease_until == claimed(table).free_at


def test_only_one_of_many_claims_stands(
    table: Deduplication, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They all ask at the same moment."""
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
    """The call is made again by itself, and finds what it wrote."""
    aws_wire.failures["PutItem"] = [LOST]

    assert ClaimResult.FIRST is claimed(table).verdict
    assert ("begun", 2) == (stands(aws_wire)["state"], aws_wire.count("PutItem"))


@pytest.mark.parametrize("stands_there", ["absent", "expired", "overdue", "kept", "kept?"])
def test_a_lost_answer_does_not_change_the_verdict(table: Deduplication, aws_wire: AwsWire, stands_there: str) -> None:
    """What is uncertain stays so."""
    stand(aws_wire, stands_there)
    # The condition is first that nothing is there, and then on what is.
    aws_wire.failures["PutItem"] = [LOST] if stands_there == "absent" else [PASS, LOST]
    claim = claimed(table, buffered=True)

    assert ClaimResult[dict(rule[1:] for rule in rules() if rule[0] == "buffer")[stands_there]] is claim.verdict
    assert (KEY, stands(aws_wire)["nonce"]) == (claim.key, claim.nonce)


@pytest.mark.parametrize("failures", [[THROTTLED] * 2, [FAILED] * 2, [DENIED], [LOST] * 2, [LOST, THROTTLED]], ids=repr)
def test_without_the_table_nobody_knows(
    table: Deduplication, aws_wire: AwsWire, log: Log, failures: list[tuple[int, str]]
) -> None:
    """Nor is it an error to the delivery; one line says why."""
    aws_wire.failures["PutItem"] = [*failures]

    assert PublishClaim(ClaimResult.UNAVAILABLE) == claimed(table)
    (line,) = log()
    assert ("ERROR", "ServiceUnavailableError") == (line["level"], line["error"])


def test_a_claim_that_was_written_unheard_holds_off_the_next(table: Deduplication, aws_wire: AwsWire) -> None:
    """The event went out as `unavailable`, so whoever comes later says that it may have."""
    aws_wire.failures["PutItem"] = [LOST] * 2
    claimed(table)

    assert ClaimResult.BUSY is claimed(table).verdict


@pytest.mark.parametrize("stands_there", ["overdue", "expired"])
def test_what_somebody_takes_over_first_is_theirs(
    table: Deduplication, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, stands_there: str
) -> None:
    """Between the look and the write."""
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
    """DynamoDB deletes what is expired whenever it comes to it."""
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
    """The event is published, and says that nobody knows; what is there is left to people."""
    stand(aws_wire, "begun")
    aws_wire.deliveries[KEY].pop(name)
    if value is not None:
        aws_wire.deliveries[KEY][name] = value
    before = dict(aws_wire.deliveries[KEY])

    assert PublishClaim(ClaimResult.UNAVAILABLE) == claimed(table)
    assert before == aws_wire.deliveries[KEY]
    assert ["ServiceUnavailableError"] == [line["error"] for line in log()]


# What is noted


def test_what_is_on_the_bus_is_done(table: Deduplication, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a day from then on."""
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
    """Somebody else may have taken the claim over: the event is out all the same."""
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
    """Twilio's next delivery is a duplicate, and the buffer's may be published at once."""
    table.note_kept(EVENT, claimed(table), uncertain=uncertain)

    assert ("kept", uncertain) == (stands(aws_wire)["state"], stands(aws_wire)["uncertain"])
    assert ClaimResult.DUPLICATE is claimed(table).verdict
    assert (ClaimResult.AGAIN if uncertain else ClaimResult.FIRST) is claimed(table, buffered=True).verdict


@pytest.mark.parametrize("stands_there", [name for name in STANDS if name != "absent"])
def test_what_is_kept_does_not_undo_what_somebody_else_did(
    table: Deduplication, aws_wire: AwsWire, log: Log, stands_there: str
) -> None:
    """The claim ended, and they took it over, which is no surprise."""
    claim = claimed(table)
    stand(aws_wire, stands_there)
    before = stands(aws_wire)
    table.note_kept(EVENT, claim, uncertain=False)

    assert (before, []) == (stands(aws_wire), log())


@pytest.mark.parametrize("verdict", [ClaimResult.UNAVAILABLE, ClaimResult.BUSY, ClaimResult.DUPLICATE])
def test_without_a_claim_nothing_is_noted(table: Deduplication, aws_wire: AwsWire, verdict: ClaimResult) -> None:
    """It belongs to somebody else, if to anybody."""
    table.note_done(EVENT, PublishClaim(verdict))
    table.note_kept(EVENT, PublishClaim(verdict), uncertain=True)

    assert [] == aws_wire.calls


@pytest.mark.parametrize("failures", [[THROTTLED] * 2, [FAILED] * 2, [DENIED], [LOST] * 2], ids=repr)
@pytest.mark.parametrize("state", [EventState.DONE, EventState.KEPT])
def test_a_note_that_fails_is_no_error(
    table: Deduplication, aws_wire: AwsWire, log: Log, failures: list[tuple[int, str]], state: EventState
) -> None:
    """The event is where it is; the next delivery finds out when the claim ends."""
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
    """It is written twice, to the same effect."""
    claim = claimed(table)
    aws_wire.failures["PutItem"] = [LOST]
    table.note_kept(EVENT, claim, uncertain=uncertain)

    assert ("kept", uncertain, []) == (stands(aws_wire)["state"], stands(aws_wire)["uncertain"], log())


def test_the_clock_is_that_of_the_epoch(aws_wire: AwsWire) -> None:
    """DynamoDB deletes by it."""
    claimed(Deduplication("deliveries"))

    assert time.time() + RETENTION_SECONDS - 60 < int(stands(aws_wire)["expires_at"]) <= time.time() + RETENTION_SECONDS
