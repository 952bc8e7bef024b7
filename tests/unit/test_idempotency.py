"""The ledger: which record it has after which event, and that no writer undoes another writer's change."""

import json
import re
import time
from typing import Any

import msgspec
import pytest
from twilio_connector.errors import ServiceUnavailableError
from twilio_connector.messaging.idempotency import (
    RETENTION_SECONDS,
    Accepted,
    ClaimRequested,
    Confirmed,
    Displaced,
    Evidence,
    LeaseExpired,
    Listed,
    MessageMatch,
    OutcomeLost,
    Rejected,
    ReportPending,
    ReportSent,
    SendEvent,
    SendRecord,
    SendState,
    fingerprint,
    new_claim,
    record_id,
    transition,
)
from twilio_connector.messaging.idempotency_store import EqualSend, IdempotencyStore, _item

from tests.aws_wire import LOST, PASS, AwsWire

pytestmark = pytest.mark.usefixtures("delays")

NOW = 1_800_000_000
SMS = {"to": "+15005550006", "message": "Hello", "connection": "default", "idempotency_key": "key"}
SOUGHT = MessageMatch(to="+15005550006", body="Hello", from_="+15551234567")
SID = "SM" + "1" * 32
OTHER_SID = "SM" + "2" * 32
MESSAGE = {"sid": SID, "status": "queued", "uri": "/Messages/1.json"}
PROOF = {"sid": SID, "status": "sent", "from": "+15551234567", "to": "+15005550006"}
ERROR = {"title": "TwilioRejectedError", "detail": "no"}
THROTTLED = (400, "ProvisionedThroughputExceededException")
DENIED = (400, "AccessDeniedException")
FAILED = (500, "InternalServerError")

OWN = SendRecord(
    id=record_id("default", "key"),
    nonce="own",
    revision="written",
    idempotency_key="key",
    connection="default",
    caller="direct",
    fingerprint="same",
    claimed_at=NOW - 10,
    lease_until=NOW + 50,
    expires_at=NOW + 1000,
    sms=SMS,
    sought=SOUGHT,
)
NEW = msgspec.structs.replace(
    OWN, nonce="new", revision="", claimed_at=NOW, lease_until=NOW + 60, expires_at=NOW + 2000
)


def changed(record: SendRecord, **changes: Any) -> SendRecord:
    """Return a copy of a record with other values."""
    return msgspec.structs.replace(record, **changes)


def live(nonce: str = "own", key: str = "key", **changes: Any) -> SendRecord:
    """Return the record of a claim that is made now."""
    now = int(time.time())
    times = {"claimed_at": now, "lease_until": now + 60, "expires_at": now + RETENTION_SECONDS}
    return changed(
        OWN, nonce=nonce, revision="", idempotency_key=key, id=record_id("default", key), **(times | changes)
    )


# The rules: one line for each event, one column for each record that the table may have before it.
#
# `!` still needs a report, and `overdue` is sending past its lease. `claimed` is the new claim, and only its owner may
# send. `-` is the old record, unchanged. A callback is expected for `unknown?`, and none for `unknown!` and `unknown`,
# which the list can settle. An answer or a callback proves `sent`, only the list shows `seen`, and `named` has a
# candidate.

RULES = """
                  absent   expired  sending  overdue  sent! sent seen!    seen     not_sent unknown? unknown! unknown
claim             claimed  claimed  -        unknown! -     -    -        -        claimed  -        -        -
claim by queue    claimed  claimed  -        unknown! -     -    -        -        claimed  -        -        unknown!
claim to resend   claimed  claimed  -        claimed  -     -    -        -        claimed  claimed  claimed  claimed
claim in doubt    unknown! unknown! -        unknown! -     -    -        -        unknown! -        -        unknown!
other input       claimed  claimed  -        -        -     -    -        -        -        -        -        -
accepted          -        absent   sent     sent     sent  sent sent     sent     sent     sent     sent     sent
refused           -        absent   not_sent not_sent -     -    -        -        -        -        -        -
refused elsewhere -        absent   -        -        -     -    -        -        -        -        -        -
lost              -        absent   unknown! unknown! -     -    -        -        -        -        -        -
lost elsewhere    -        absent   -        -        -     -    -        -        -        -        -        -
proven            -        absent   sent!    sent!    -     -    sent!    sent     sent!    sent!    sent!    sent!
proven another    -        absent   sent!    sent!    -     -    sent!    sent!    sent!    sent!    sent!    sent!
listed            -        absent   -        -        -     -    -        -        -        named!   seen!    seen!
listed, rival     -        absent   -        -        -     -    -        -        -        named!   named!   named
not listed        -        absent   -        -        -     -    -        -        -        -        -        -
displaced         -        absent   -        -        -     -    unknown! unknown! -        -        -        -
displaced another -        absent   -        -        -     -    -        -        -        -        -        -
time passes       -        absent   -        unknown! -     -    -        -        -        -        -        -
untold            -        absent   -        -        -     sent! -      seen!    -        -        -        -
told              -        absent   -        -        sent  -    seen     -        -        unknown  unknown  -
told before       -        absent   -        -        -     -    -        -        -        -        -        -
"""

FOUND = changed(OWN, state=SendState.SENT, message=MESSAGE, evidence=Evidence.LIST, calls_back=False)
LEFT = changed(OWN, state=SendState.UNKNOWN, calls_back=False, unknown_since=NOW - 5)
STANDS: dict[str, SendRecord | None] = {
    "absent": None,
    "expired": changed(OWN, expires_at=NOW, state=SendState.UNKNOWN),
    "sending": OWN,
    "overdue": changed(OWN, lease_until=NOW),
    "sent!": changed(OWN, state=SendState.SENT, message=PROOF, sms=None, sought=None, evidence=Evidence.CALLBACK),
    "sent": changed(
        OWN, state=SendState.SENT, message=MESSAGE, sms=None, sought=None, settled=True, evidence=Evidence.ANSWER
    ),
    "seen!": FOUND,
    "seen": changed(FOUND, settled=True),
    "not_sent": changed(OWN, state=SendState.NOT_SENT, error=ERROR, sms=None, sought=None, settled=True),
    "unknown?": changed(LEFT, calls_back=True),
    "unknown!": LEFT,
    "unknown": changed(LEFT, settled=True),
}

HAPPENS: dict[str, SendEvent] = {
    "claim": ClaimRequested(NEW, resend=False),
    "claim by queue": ClaimRequested(changed(NEW, caller="sqs"), resend=False),
    "claim to resend": ClaimRequested(NEW, resend=True),
    "claim in doubt": ClaimRequested(changed(NEW, caller="sqs", state=SendState.UNKNOWN), resend=False),
    "other input": ClaimRequested(changed(NEW, fingerprint="other"), resend=True),
    "accepted": Accepted(MESSAGE),
    "refused": Rejected("own", ERROR),
    "refused elsewhere": Rejected("elsewhere", ERROR),
    "lost": OutcomeLost("own"),
    "lost elsewhere": OutcomeLost("elsewhere"),
    "proven": Confirmed(PROOF),
    "proven another": Confirmed(PROOF | {"sid": OTHER_SID}),
    "listed": Listed(MESSAGE, rival=False),
    "listed, rival": Listed(MESSAGE, rival=True),
    "not listed": Listed(None, rival=False),
    "displaced": Displaced(SID),
    "displaced another": Displaced(OTHER_SID),
    "time passes": LeaseExpired(),
    "untold": ReportPending(),
    "told": ReportSent("written"),
    "told before": ReportSent("before"),
}


def rules() -> list[tuple[str, str, str]]:
    """Return the record before, the event and the expected result of each cell of the table."""
    first, *lines = RULES.strip("\n").splitlines()
    columns = first.split()
    return [
        (stands, line[:18].strip(), expected)
        for line in lines
        for stands, expected in zip(columns, line[18:].split(), strict=True)
    ]


def named(record: SendRecord | None) -> str:
    """Return the table's name for a record."""
    if record is None:
        return "absent"
    if record.state is SendState.SENDING:
        return "claimed" if record.nonce == NEW.nonce else "sending"
    word = "seen" if record.evidence is Evidence.LIST else "named" if record.candidate_sid else record.state
    return f"{word}{'' if record.settled else '!'}"


def test_the_table_is_whole() -> None:
    """The table has a cell for every event and every record before it."""
    assert {(stands, happens) for stands in STANDS for happens in HAPPENS} == {rule[:2] for rule in rules()}


@pytest.mark.parametrize(("stands", "happens", "expected"), rules())
def test_the_rules(stands: str, happens: str, expected: str) -> None:
    """An event changes a record as the table says; an unchanged record is the same object, so nothing is written."""
    before = STANDS[stands]
    result = transition(before, HAPPENS[happens], NOW)

    if expected == "-":
        assert before is result
    else:
        assert expected == named(result)
        assert before is not result


@pytest.mark.parametrize(("stands", "happens", "expected"), rules())
def test_the_input_is_kept_only_while_it_is_needed(stands: str, happens: str, expected: str) -> None:  # noqa: ARG001
    """The input is dropped as soon as the outcome is proven.

    It has a person's number and text.
    """
    result = transition(STANDS[stands], HAPPENS[happens], NOW)
    needed = result is not None and (result.state in {SendState.SENDING, SendState.UNKNOWN} or "seen" in named(result))

    assert ((SMS, SOUGHT) if needed else (None, None)) == (result and result.sms, result and result.sought)


def test_a_lease_ends_in_its_last_second() -> None:
    """A lease expires at `lease_until`, and not before."""
    assert transition(OWN, LeaseExpired(), OWN.lease_until - 0.001) is OWN
    assert "unknown!" == named(transition(OWN, LeaseExpired(), OWN.lease_until))


def test_a_record_expires_in_its_last_second() -> None:
    """A record expires at `expires_at`, and not before."""
    claim = ClaimRequested(NEW, resend=False)
    not_expired = changed(STANDS["sent"] or OWN, expires_at=NOW + 1)

    assert not_expired is transition(not_expired, claim, NOW + 0.999)
    assert NEW is transition(not_expired, claim, NOW + 1)


def test_a_new_try_forgets_the_old_one() -> None:
    """A new attempt replaces the old one: nonce, times and error are those of the new claim."""
    result = transition(STANDS["not_sent"], HAPPENS["claim"], NOW)

    assert NEW == result


def test_what_became_of_it_is_kept() -> None:
    """A record keeps the message for the next caller with the key, or the reason why there is none."""
    accepted = transition(STANDS["sending"], HAPPENS["accepted"], NOW)
    refused = transition(STANDS["sending"], HAPPENS["refused"], NOW)
    proven = transition(STANDS["not_sent"], HAPPENS["proven"], NOW)
    told = transition(proven, HAPPENS["told"], NOW)

    assert [(MESSAGE, None), (None, ERROR), (PROOF, None), (PROOF, None)] == [
        (each.message, each.error) if each else None for each in (accepted, refused, proven, told)
    ]


def test_a_callback_makes_proof_of_evidence() -> None:
    """A callback turns the list's evidence into proof.

    The message is not reported again. The list's message is kept, because it has more fields than the callback.
    """
    result = transition(STANDS["seen"], HAPPENS["proven"], NOW)

    assert result is not None
    assert (Evidence.CALLBACK, MESSAGE, True) == (result.evidence, result.message, result.settled)


@pytest.mark.parametrize(
    ("stands", "event"),
    [("sending", OutcomeLost("own")), ("overdue", LeaseExpired()), ("seen", Displaced(SID)), ("seen!", Displaced(SID))],
)
def test_an_unknown_outcome_begins_anew(stands: str, event: SendEvent) -> None:
    """A record that becomes unknown has no message and no evidence.

    It has its own start time, from which the message is looked for.
    """
    result = transition(STANDS[stands], event, NOW)

    assert result is not None
    assert (SendState.UNKNOWN, None, None, NOW) == (result.state, result.message, result.evidence, result.unknown_since)


@pytest.mark.parametrize(
    ("event", "evidence"),
    [
        (Accepted(MESSAGE), "answer"),
        (Confirmed(PROOF), "callback"),
        (Listed(MESSAGE, rival=False), "list"),
    ],
)
def test_what_was_sent_says_on_what_evidence(event: SendEvent, evidence: str) -> None:
    """A sent record names its evidence: Twilio's answer, a callback, or the list alone."""
    result = transition(STANDS["unknown!"], event, NOW)

    assert result is not None
    assert (evidence, SendState.SENT) == (result.evidence, result.state)
    expected = result.message if evidence == "answer" else (result.message or {}) | {"evidence": evidence}
    assert expected == result.result


def test_a_candidate_goes_when_the_list_has_none_any_more() -> None:
    """A candidate is dropped when the list has no matching message any more.

    It is also dropped when two messages match, so that nobody relies on one of them.
    """
    named_one = transition(STANDS["unknown?"], HAPPENS["listed"], NOW)
    none = transition(named_one, HAPPENS["not listed"], NOW)

    assert named_one is not None
    assert none is not None
    assert (SID, None) == (named_one.candidate_sid, none.candidate_sid)


def test_an_answer_replaces_what_a_callback_told() -> None:
    """Twilio's answer replaces the message of a callback, because it is the whole message.

    Its caller gets the answer, so no report is needed.
    """
    result = transition(STANDS["sent!"], HAPPENS["accepted"], NOW)

    assert result is not None
    assert (MESSAGE, True) == (result.message, result.settled)


@pytest.mark.parametrize("stands", ["overdue", "unknown!", "unknown"])
def test_a_refused_repetition_says_nothing_of_the_first_request(stands: str) -> None:
    """A refused resend says nothing about the first request, which may have been carried out.

    So the key stays unknown, and is not sent again.
    """
    claimed = transition(STANDS[stands], HAPPENS["claim to resend"], NOW)
    result = transition(claimed, Rejected(NEW.nonce, ERROR), NOW)
    again = transition(result, ClaimRequested(changed(NEW, nonce="third"), resend=False), NOW)

    assert result is not None
    assert again is not None
    assert (SendState.UNKNOWN, SendState.UNKNOWN) == (result.state, again.state)


def test_what_a_claim_is() -> None:
    """A claim has its own nonce, and times in whole seconds.

    Its fingerprint and its content are equal for equal inputs.
    """
    began = int(time.time())
    one, two = (
        new_claim(
            idempotency_key="key",
            connection="default",
            caller="direct",
            same=fingerprint({"to": "a", "message": "b"}),
            sms=SMS,
            sought=SOUGHT,
            lease_seconds=60,
        )
        for _ in range(2)
    )

    assert (SendState.SENDING, False) == (one.state, one.settled)
    assert began <= one.claimed_at <= time.time()
    assert (60, RETENTION_SECONDS) == (one.lease_until - one.claimed_at, one.expires_at - one.claimed_at)
    assert one.nonce != two.nonce
    assert (one.id, one.content) == (two.id, two.content)
    assert fingerprint({"message": "b", "to": "a"}) == one.fingerprint
    assert fingerprint({"message": "a", "to": "b"}) != one.fingerprint


def test_an_id_tells_neither_key_nor_connection() -> None:
    """A record's id is a hash of connection and key, because it appears in URLs."""
    ids = [record_id("default", "key"), record_id("default", "yek"), record_id("support", "key")]

    assert 3 == len(set(ids))
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in ids)


def test_a_template_has_no_content() -> None:
    """A template has no content hash: Twilio makes its text, so no other message is known to be equal."""
    claim = new_claim(
        idempotency_key="key", connection="default", caller="sqs", same="s", sms={}, sought=None, lease_seconds=60
    )

    assert claim.content is None


# Calls to DynamoDB


@pytest.fixture
def ledger(aws_wire: AwsWire) -> IdempotencyStore:
    """Return a ledger that has made no call yet."""
    assert [] == aws_wire.calls
    return IdempotencyStore("ledger")


def claimed(ledger: IdempotencyStore, record: SendRecord) -> SendRecord:
    """Write a claim, and return the record that is then in the table."""
    return ledger.write(ClaimRequested(record, resend=False))


def unnamed(record: SendRecord | None) -> SendRecord:
    """Return a record without its revision, which differs for each write."""
    assert record is not None
    return changed(record, revision="")


def writes(wire: AwsWire) -> list[dict[str, Any]]:
    """Return all writes of records, alone or in a transaction with their SIDs."""
    written = [
        [body] if operation == "PutItem" else [each["Put"] for each in body.get("TransactItems", ())]
        for operation, body in wire.calls
    ]
    return [put for puts in written for put in puts if "Item" in put and "state" in put["Item"]]


def conditions(wire: AwsWire) -> list[tuple[Any, Any]]:
    """Return the condition of each write, with its values."""
    return [(put.get("ConditionExpression"), put.get("ExpressionAttributeValues")) for put in writes(wire)]


def state(wire: AwsWire, key: str = "key") -> str:
    """Return the state in the table for a key."""
    return str(wire.items[record_id("default", key)]["state"]["S"])


def test_a_claim_is_one_conditional_write(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """A claim is one conditional write, without a read before it."""
    record = live()

    assert record == unnamed(claimed(ledger, record))
    assert [("attribute_not_exists(id)", None)] == conditions(aws_wire)
    assert ["PutItem"] == [operation for operation, _ in aws_wire.calls]


def test_what_stands_in_the_table(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """An item has names and texts that a person can read, and the attributes of the indexes.

    It also has the time at which DynamoDB deletes it.
    """
    record = claimed(ledger, live(content="content"))
    item = dict(aws_wire.items[record.id])

    assert {"S": record.id[0]} == item["unsettled"]
    assert {"N": str(record.expires_at)} == item["expires_at"]
    assert SMS == json.loads(item.pop("sms")["S"])
    assert {"to": "+15005550006", "body": "Hello", "from": "+15551234567"} == json.loads(item.pop("sought")["S"])
    assert {
        "id": {"S": record.id},
        "nonce": {"S": "own"},
        "revision": {"S": record.revision},
        "state": {"S": "sending"},
        "unsettled": {"S": record.id[0]},
        "idempotency_key": {"S": "key"},
        "connection": {"S": "default"},
        "caller": {"S": "direct"},
        "fingerprint": {"S": "same"},
        "claimed_at": {"N": str(record.claimed_at)},
        "lease_until": {"N": str(record.lease_until)},
        "expires_at": {"N": str(record.expires_at)},
        "content": {"S": "content"},
        "calls_back": {"BOOL": True},
    } == item


@pytest.mark.parametrize("may_have_been_sent", [False, True])
@pytest.mark.parametrize("stands", [name for name in STANDS if name not in {"absent", "expired"}])
def test_what_is_written_is_read(
    ledger: IdempotencyStore,
    aws_wire: AwsWire,
    stands: str,
    may_have_been_sent: bool,  # noqa: FBT001 a table
) -> None:
    """A record in any state is read as it was written, with a consistent read."""
    record = changed(
        STANDS[stands] or OWN,
        content="content",
        may_have_been_sent=may_have_been_sent,
        expires_at=int(time.time()) + 60,
    )
    aws_wire.items[record.id] = _item(record)

    assert record == ledger.find(record.id)
    assert {"TableName": "ledger", "Key": {"id": {"S": record.id}}, "ConsistentRead": True} == aws_wire.calls[-1][1]


@pytest.mark.parametrize("end", [Rejected("own", ERROR), OutcomeLost("own")])
def test_a_change_is_written_over_what_it_was_made_of(
    ledger: IdempotencyStore, aws_wire: AwsWire, end: SendEvent
) -> None:
    """A change is written only if the table still has the revision to which the event was applied."""
    record = claimed(ledger, live())
    ledger.write(end, record)

    assert ("revision = :revision", {":revision": {"S": record.revision}}) == conditions(aws_wire)[1]
    assert 2 == len(aws_wire.calls)


@pytest.mark.parametrize(
    ("end", "gone"),
    [(Accepted(MESSAGE), True), (Rejected("own", ERROR), True), (Confirmed(PROOF), True), (OutcomeLost("own"), False)],
)
def test_the_input_is_deleted_from_the_table(
    ledger: IdempotencyStore,
    aws_wire: AwsWire,
    end: SendEvent,
    gone: bool,  # noqa: FBT001 a table
) -> None:
    """The input is deleted from the table once the outcome is known."""
    record = claimed(ledger, live())
    ledger.write(end, record)
    item = aws_wire.items[record.id]

    assert (not gone, not gone) == ("sms" in item, "sought" in item)
    assert gone == ("Hello" not in str(item))


def test_a_settled_item_is_in_no_list_of_open_ones(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """A settled item leaves the index of open records, because its attribute for that index is removed."""
    record = claimed(ledger, live())
    ledger.write(Accepted(MESSAGE), record)
    item = aws_wire.items[record.id]

    assert "unsettled" not in item
    assert {"S": SID} == item["sid"]


@pytest.mark.parametrize(
    "end", [Accepted(MESSAGE), Confirmed(PROOF), Rejected("own", ERROR), OutcomeLost("own"), LeaseExpired()]
)
def test_an_event_of_a_key_that_is_gone_is_written_nowhere(
    ledger: IdempotencyStore, aws_wire: AwsWire, end: SendEvent
) -> None:
    """An event for an expired key is not written, because it would create a record without a claim."""
    assert ledger.write(end, changed(OWN, expires_at=1)) is None
    assert [] == aws_wire.calls


def test_every_write_has_a_name_of_its_own(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """Every write has its own revision.

    With it, a writer sees that the record was changed, even if the change has the same content.
    """
    record = claimed(ledger, live())
    claim = ClaimRequested(live(caller="sqs"), resend=False)
    for event in (OutcomeLost("own"), None, claim, None):
        record = ledger.write(event or ReportSent(record.revision), record) or record
    ledger.write(Accepted(MESSAGE), record)
    written = [body["Item"]["revision"]["S"] for body in writes(aws_wire)]

    assert 6 == len(written) == len(set(written))
    assert written[-1] == aws_wire.items[record.id]["revision"]["S"]


def test_what_changes_nothing_is_not_written(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """An event that changes nothing makes no call to DynamoDB, not even a read."""
    record = live()

    assert record is ledger.write(LeaseExpired(), record)
    assert [] == aws_wire.calls


# The table's answer is lost, or is an error


@pytest.mark.parametrize("resend", [False, True])
def test_a_claim_whose_answer_was_lost_is_known_by_its_nonce(
    ledger: IdempotencyStore,
    aws_wire: AwsWire,
    resend: bool,  # noqa: FBT001 a table
) -> None:
    """If a claim's answer is lost, the retry recognises its own item by the nonce, and may send."""
    aws_wire.failures["PutItem"] = [LOST]
    record = live()

    assert record == unnamed(ledger.write(ClaimRequested(record, resend)))
    assert 2 == aws_wire.count("PutItem")


def test_a_claim_over_another_record_whose_answer_was_lost_is_known_by_its_nonce(
    ledger: IdempotencyStore, aws_wire: AwsWire
) -> None:
    """A lost answer is also recovered if the claim replaces the record of a message that was not sent."""
    ledger.write(Rejected("own", ERROR), claimed(ledger, live()))
    aws_wire.failures["PutItem"] = [PASS, LOST]
    record = live("new")

    assert record == unnamed(claimed(ledger, record))
    assert "new" == aws_wire.items[record.id]["nonce"]["S"]


def test_the_claim_of_another_is_not_taken_for_its_own(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """A claim is not mistaken for that of another delivery, whose answer was lost.

    Two deliveries claim at the same moment, and only the first owns the claim.
    """
    first, second = live("first"), live("second")
    aws_wire.failures["PutItem"] = [LOST]
    claimed(ledger, first)

    assert first == unnamed(claimed(ledger, second))


@pytest.mark.parametrize(
    ("failures", "calls"), [([THROTTLED] * 2, 2), ([FAILED] * 2, 2), ([DENIED], 1), ([LOST, LOST], 2)], ids=str
)
def test_a_claim_that_is_not_known_to_stand_raises(
    ledger: IdempotencyStore, aws_wire: AwsWire, failures: list[tuple[int, str]], calls: int
) -> None:
    """A claim that may not be stored raises ServiceUnavailableError.

    Nothing is sent then, although the claim may be stored.
    """
    aws_wire.failures["PutItem"] = failures

    with pytest.raises(ServiceUnavailableError, match="the ledger of sent messages does not answer"):
        claimed(ledger, live())
    assert calls == aws_wire.count("PutItem")


def test_a_claim_that_was_throttled_once_stands(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """A claim that was throttled once is stored by the retry, because the first attempt wrote nothing."""
    aws_wire.failures["PutItem"] = [THROTTLED]
    record = live()

    assert record == unnamed(claimed(ledger, record))


@pytest.mark.parametrize("end", [Accepted(MESSAGE), Rejected("own", ERROR), OutcomeLost("own"), Confirmed(PROOF)])
def test_a_change_whose_answer_was_lost_is_its_own(ledger: IdempotencyStore, aws_wire: AwsWire, end: SendEvent) -> None:
    """If a change's answer is lost, the retry recognises its own write, and does not make the change twice."""
    record = claimed(ledger, live())
    aws_wire.failures |= {"PutItem": [LOST], "TransactWriteItems": [LOST]}
    result = ledger.write(end, record)

    assert result is not None
    assert {"S": result.revision} == aws_wire.items[record.id]["revision"]
    assert 3 == len(writes(aws_wire))
    assert result == ledger.find(record.id)


@pytest.mark.parametrize("operation", ["GetItem", "Query"])
def test_reads_fail_as_writes_do(ledger: IdempotencyStore, aws_wire: AwsWire, operation: str) -> None:
    """A failed read raises ServiceUnavailableError, which can be retried, as a failed write does."""
    aws_wire.failures[operation] = [DENIED]

    with pytest.raises(ServiceUnavailableError):
        ledger.find("id") if operation == "GetItem" else list(ledger.pending())


# The table has another record than the writer read


def test_only_one_of_two_claims_stands(ledger: IdempotencyStore) -> None:
    """Only one of two claims is stored, and the other caller gets the stored one."""
    first, second = live("first"), live("second")

    stands = claimed(ledger, first)

    assert first == unnamed(stands)
    assert stands == claimed(ledger, second)


@pytest.mark.parametrize(
    ("before", "end", "expected"),
    [
        (Confirmed(PROOF), OutcomeLost("own"), "sent"),
        (Confirmed(PROOF), Rejected("own", ERROR), "sent"),
        (OutcomeLost("own"), Confirmed(PROOF), "sent"),
        (OutcomeLost("own"), Accepted(MESSAGE), "sent"),
        (OutcomeLost("own"), Rejected("own", ERROR), "unknown"),
        (Rejected("own", ERROR), OutcomeLost("own"), "not_sent"),
        (Rejected("own", ERROR), LeaseExpired(), "not_sent"),
        (Accepted(MESSAGE), OutcomeLost("own"), "sent"),
    ],
)
def test_what_happened_meanwhile_is_looked_at(
    ledger: IdempotencyStore, aws_wire: AwsWire, before: SendEvent, end: SendEvent, expected: str
) -> None:
    """A writer with an outdated record decides again, based on the record that is now in the table."""
    record = claimed(ledger, live(lease_until=0))
    ledger.write(before, record)
    result = ledger.write(end, record)

    assert result is not None
    assert (expected, expected) == (result.state, state(aws_wire))
    assert result == ledger.find(record.id)


@pytest.mark.parametrize(
    "late",
    [
        None,
        OutcomeLost("own"),
        LeaseExpired(),
        Confirmed(PROOF),
        ClaimRequested(live("queue", caller="sqs"), resend=False),
    ],
    ids=lambda event: type(event).__name__,
)
def test_nothing_is_written_over_an_acceptance(
    ledger: IdempotencyStore, aws_wire: AwsWire, late: SendEvent | None
) -> None:
    """No later event overwrites an acceptance.

    Its sender was slower than its lease, and other writers still have the record from before the acceptance.
    """
    record = claimed(ledger, live(lease_until=0))
    overdue = ledger.write(LeaseExpired(), record)
    assert overdue is not None
    unsure = changed(overdue, settled=isinstance(late, ClaimRequested))
    ledger.write(Accepted(MESSAGE), record)
    ledger.write(late or ReportSent(unsure.revision), unsure)

    assert "sent" == state(aws_wire)


def test_an_acceptance_is_one_write_whatever_stands_there(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """An acceptance is one unconditional write, because its sender has little time."""
    record = claimed(ledger, live())
    ledger.write(OutcomeLost("own"), record)
    aws_wire.calls.clear()
    ledger.write(Accepted(MESSAGE), record)

    assert [(None, None)] == conditions(aws_wire)
    assert "sent" == state(aws_wire)


def test_an_acceptance_is_written_over_the_claim_of_another(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """An acceptance overwrites another claim, because it is always true, and ends the attempt of that claim."""
    record = claimed(ledger, live(lease_until=0))
    again = ledger.write(ClaimRequested(live("again"), resend=True))
    ledger.write(Accepted(MESSAGE), record)
    result = ledger.write(Rejected("again", ERROR), again)

    assert result is not None
    assert ("sent", SID) == (state(aws_wire), (result.message or {})["sid"])


def test_an_item_that_expired_is_still_in_the_table(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """An expired item is not found, and a new claim replaces it.

    It is still in the table, because DynamoDB deletes it days later.
    """
    old = changed(live("old"), revision="write", state=SendState.SENT, settled=True, expires_at=int(time.time()))
    aws_wire.items[old.id] = _item(old)
    record = live("new")

    assert ledger.find(old.id) is None
    assert record == unnamed(claimed(ledger, record))
    assert {":revision": {"S": "write"}} == conditions(aws_wire)[-1][1]
    assert "new" == aws_wire.items[old.id]["nonce"]["S"]


def test_an_item_that_is_deleted_meanwhile(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """If the item was deleted since it was read, the event is not written, and no record is created."""
    record = claimed(ledger, live())
    aws_wire.items.clear()

    assert ledger.write(OutcomeLost("own"), record) is None
    assert {} == aws_wire.items


def test_what_a_newer_version_wrote_besides_is_passed_over(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """Attributes that a newer version wrote are ignored, so that records can be read after a roll-back."""
    record = claimed(ledger, live())
    aws_wire.items[record.id] |= {"priority": {"N": "1"}, "tags": {"SS": ["a"]}}
    aws_wire.items[record.id]["sought"] = {
        "S": '{"to": "+15005550006", "body": "Hello", "from": "+15551234567", "x": 1}'
    }

    assert record == ledger.find(record.id)


# Lists of records


def test_all_unsettled_records_are_found(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """All unsettled records are listed, page by page, from every part of the index."""
    records = [claimed(ledger, live(key=f"key-{number}")) for number in range(60)]
    settled, rest = records[:20], records[20:]
    for number, record in enumerate(settled):
        ledger.write(Accepted(MESSAGE | {"sid": f"SM{number:032x}"}), record)

    assert 16 == len({record.id[0] for record in records})
    assert sorted(each.id for each in rest) == list(ledger.pending())
    assert {"unsettled-index"} == {body["IndexName"] for name, body in aws_wire.calls if name == "Query"}


def test_each_turn_begins_with_another_part_of_the_index(ledger: IdempotencyStore) -> None:
    """Each run begins with another part of the index, so that runs that stop early do not skip the same keys."""
    ids = sorted(claimed(ledger, live(key=f"key-{number}")).id for number in range(60))
    turns = [list(ledger.pending(turn)) for turn in range(17)]

    assert "0123456789abcdef0" == "".join(turn[0][0] for turn in turns)
    assert all(ids == sorted(turn) for turn in turns)


def test_the_other_keys_with_the_same_content(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """The other keys with the same content are listed with state and SID, page by page.

    The key itself and keys with other content are not listed.
    """

    def other(key: str, content: str | None = "content") -> SendRecord:
        return claimed(ledger, live(key=key, content=content))

    record, sent, refused = other("key"), other("sent"), other("refused")
    ledger.write(Accepted(MESSAGE), sent)
    ledger.write(Rejected("own", ERROR), refused)
    other("sending")
    other("another message", "other")
    other("template", None)

    assert {
        EqualSend(SendState.SENT, SID),
        EqualSend(SendState.SENDING, None),
        EqualSend(SendState.NOT_SENT, None),
    } == set(ledger.others(record))
    assert 4 == aws_wire.count("Query")


def test_a_record_that_was_read_has_its_others_too(ledger: IdempotencyStore) -> None:
    """The other keys are also found for a record that was read back, as `resolve` reads it.

    After a write, the record is still among the others of those keys.
    """
    record, other = (claimed(ledger, live(key=key, content="content")) for key in ("key", "other"))
    read = ledger.find(record.id)
    assert read is not None
    ledger.write(OutcomeLost("own"), read)

    assert [EqualSend(SendState.SENDING, None)] == ledger.others(read)
    assert [EqualSend(SendState.UNKNOWN, None)] == ledger.others(other)


def test_a_template_has_no_others(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """A template has no other keys with the same content, and DynamoDB is not called."""
    assert [] == ledger.others(live(content=None))
    assert [] == aws_wire.calls


# A SID belongs to one key


RIVALS: dict[str, Any] = {"calls_back": False, "content": "content"}


def left(ledger: IdempotencyStore, key: str, **changes: Any) -> SendRecord:
    """Leave a key's outcome unknown, without a callback that could prove it."""
    record = ledger.write(OutcomeLost("own"), claimed(ledger, live(key=key, **(RIVALS | changes))))
    assert record is not None
    return record


def found(ledger: IdempotencyStore, key: str, message: dict[str, Any] | None = None) -> SendRecord | None:
    """Leave a key's outcome unknown, and then write that Twilio's list has its message."""
    return ledger.write(Listed(message or MESSAGE, rival=False), left(ledger, key))


def stands(ledger: IdempotencyStore, key: str = "key") -> tuple[str, str | None, str | None, bool]:
    """Return state, evidence and SID of a key in the ledger, and whether it is settled."""
    record = ledger.find(record_id("default", key))
    assert record is not None
    return record.state, record.evidence, record.sid, record.settled


def owner(wire: AwsWire, sid: str = SID) -> tuple[str, str]:
    """Return the id of the record to which a SID belongs, and the evidence."""
    item = wire.owners[sid]
    return item["key_id"]["S"], item["evidence"]["S"]


@pytest.mark.parametrize(
    ("event", "evidence"),
    [(Accepted(MESSAGE), "answer"), (Confirmed(PROOF), "callback"), (Listed(MESSAGE, rival=False), "list")],
)
def test_a_record_says_sent_together_with_its_sid(
    ledger: IdempotencyStore, aws_wire: AwsWire, event: SendEvent, evidence: str
) -> None:
    """A sent record and the item of its SID are written in one transaction.

    The SID must be new or belong to the key already. Its item expires together with the record.
    """
    record = left(ledger, "key")
    aws_wire.calls.clear()
    ledger.write(event, record)

    ((operation, body),) = aws_wire.calls
    own = body["TransactItems"][1]["Put"]
    assert ("TransactWriteItems", 2) == (operation, len(body["TransactItems"]))
    assert ("attribute_not_exists(id) OR key_id = :key", {":key": {"S": record.id}}) == (
        own["ConditionExpression"],
        own["ExpressionAttributeValues"],
    )
    assert (record.id, evidence) == owner(aws_wire)
    assert {"N": str(record.expires_at)} == aws_wire.owners[SID]["expires_at"]
    assert ("sent", evidence, SID) == stands(ledger)[:3]


def test_the_list_gives_a_message_to_one_key(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """The list gives a message to one key; a second key that finds it stays unknown."""
    first, second = found(ledger, "first"), found(ledger, "second")

    assert first is not None
    assert second is not None
    assert (SendState.SENT, SendState.UNKNOWN) == (first.state, second.state)
    assert ("unknown", None, None, False) == stands(ledger, "second")
    assert (first.id, "list") == owner(aws_wire)


@pytest.mark.parametrize("proof", [Accepted(MESSAGE), Confirmed(PROOF)], ids=["answer", "callback"])
@pytest.mark.parametrize("was_told", [False, True])
def test_proof_displaces_the_list(
    ledger: IdempotencyStore,
    aws_wire: AwsWire,
    proof: SendEvent,
    was_told: bool,  # noqa: FBT001 a table
) -> None:
    """Proof for one key displaces the list's evidence for another key.

    The other key is unknown again, still has its input, and needs a report.
    """
    listed = found(ledger, "listed")
    assert listed is not None
    if was_told:
        ledger.write(ReportSent(listed.revision), listed)
    record = left(ledger, "key")
    ledger.write(proof, record)

    again = ledger.find(listed.id)
    assert again is not None
    assert ("unknown", None, None, False) == stands(ledger, "listed")
    assert (SMS, SOUGHT) == (again.sms, again.sought)
    assert ("sent", SID) == (stands(ledger)[0], stands(ledger)[2])
    assert record.id == owner(aws_wire)[0]


def test_a_message_is_taken_from_its_key_in_one_transaction(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """A message is taken from its key in one transaction, whose conditions are the values that were read before.

    Otherwise a crash could leave the SID to both keys, or to none.
    """
    listed = found(ledger, "listed")
    assert listed is not None
    record = left(ledger, "key")
    aws_wire.calls.clear()
    ledger.write(Accepted(MESSAGE), record)
    last = [put["Put"] for put in aws_wire.calls[-1][1]["TransactItems"]]

    assert [record.id, SID, listed.id] == [put["Item"]["id"]["S"] for put in last]
    assert [None, "key_id = :key AND evidence = :evidence", "revision = :revision"] == [
        put.get("ConditionExpression") for put in last
    ]
    assert ["TransactWriteItems", "TransactWriteItems"] == [name for name, _ in aws_wire.calls if name != "GetItem"]


@pytest.mark.parametrize("proof", [Accepted(MESSAGE), Confirmed(PROOF)], ids=["answer", "callback"])
@pytest.mark.parametrize("later", [Confirmed(PROOF), Listed(MESSAGE, rival=False)], ids=["callback", "list"])
def test_nothing_displaces_proof(
    ledger: IdempotencyStore, aws_wire: AwsWire, proof: SendEvent, later: SendEvent
) -> None:
    """Proof is never displaced: the first proof stays, and nothing is written for the other key."""
    first = left(ledger, "first")
    ledger.write(proof, first)
    second = left(ledger, "key")

    assert second == ledger.write(later, second)
    assert ("unknown", None, None, False) == stands(ledger)
    assert first.id == owner(aws_wire)[0]
    assert ledger.is_taken(SID, second)
    assert not ledger.is_taken(SID, first)
    assert not ledger.is_taken(OTHER_SID, second)


def test_evidence_that_its_key_gave_up_is_free(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """A SID that its key gave up is free for another key.

    A callback named another message for the first key, so the SID's message is not the first key's.
    """
    listed = found(ledger, "first")
    assert listed is not None
    ledger.write(Confirmed(PROOF | {"sid": OTHER_SID}), listed)
    other = left(ledger, "key")

    assert not ledger.is_taken(SID, other)
    ledger.write(Listed(MESSAGE, rival=False), other)
    assert ("sent", "list", SID, False) == stands(ledger)
    assert ("sent", "callback", OTHER_SID, False) == stands(ledger, "first")
    assert other.id == owner(aws_wire)[0]


def test_a_key_that_was_sent_twice_on_purpose_keeps_both_messages(ledger: IdempotencyStore) -> None:
    """A key that was sent twice on purpose owns both messages.

    Its record has the last one, and the list gives the first one to no other key.
    """
    record = left(ledger, "key")
    ledger.write(Confirmed(PROOF), record)
    ledger.write(Accepted(MESSAGE | {"sid": OTHER_SID}), record)

    assert ledger.is_taken(SID, left(ledger, "other"))
    assert ledger.is_taken(OTHER_SID, left(ledger, "third"))


def test_proof_of_a_message_that_the_list_showed_is_written_for_its_sid(
    ledger: IdempotencyStore, aws_wire: AwsWire
) -> None:
    """Proof of a message that the list showed is also written for its SID, so that nothing displaces it."""
    listed = found(ledger, "key")
    assert listed is not None
    ledger.write(Confirmed(PROOF), listed)

    assert (listed.id, "callback") == owner(aws_wire)
    assert ("sent", "callback", SID, False) == stands(ledger)


def canceled(monkeypatch: pytest.MonkeyPatch, aws_wire: AwsWire, meanwhile: list[Any]) -> None:
    """Cancel one transaction for each of these actions, and run the action first."""
    answer = aws_wire.answer

    def interrupted(operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if operation != "TransactWriteItems" or not meanwhile:
            return answer(operation, body)
        meanwhile.pop(0)()
        return 400, {"__type": "TransactionCanceledException", "CancellationReasons": [{"Code": "TransactionConflict"}]}

    monkeypatch.setattr(aws_wire, "answer", interrupted)


@pytest.mark.parametrize("event", [Accepted(MESSAGE), Confirmed(PROOF)], ids=["answer", "callback"])
def test_another_writer_in_the_way_is_waited_for(
    ledger: IdempotencyStore, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, event: SendEvent
) -> None:
    """A cancelled transaction is retried: DynamoDB cancels one of two transactions that conflict."""
    record = left(ledger, "key")
    canceled(monkeypatch, aws_wire, [lambda: None] * 4)
    ledger.write(event, record)

    assert ("sent", SID) == (stands(ledger)[0], stands(ledger)[2])


def test_a_writer_that_is_always_in_the_way_is_an_error(
    ledger: IdempotencyStore, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that is always cancelled raises ServiceUnavailableError, which can be retried."""
    record = left(ledger, "key")
    canceled(monkeypatch, aws_wire, [lambda: None] * 99)

    with pytest.raises(ServiceUnavailableError):
        ledger.write(Confirmed(PROOF), record)


def test_what_the_displaced_key_became_meanwhile_is_looked_at(
    ledger: IdempotencyStore, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key keeps its message if a callback proves it before another key's proof can take it.

    The transaction that would take it is cancelled, and the record is read again.
    """
    listed = found(ledger, "listed")
    assert listed is not None
    record = left(ledger, "key")
    book = IdempotencyStore("ledger")
    canceled(monkeypatch, aws_wire, [lambda: None, lambda: book.write(Confirmed(PROOF), listed)])

    assert record == ledger.write(Confirmed(PROOF), record)
    assert ("sent", "callback", SID, False) == stands(ledger, "listed")
    assert "unknown" == stands(ledger)[0]


def test_a_record_that_changed_meanwhile_is_decided_anew(
    ledger: IdempotencyStore, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event is applied again if the record changed before the write.

    Here a callback names another message than the list, and is written first.
    """
    record = left(ledger, "key")
    proof = Confirmed(PROOF | {"sid": OTHER_SID})
    canceled(monkeypatch, aws_wire, [lambda: ledger.write(proof, record)])
    ledger.write(Listed(MESSAGE, rival=False), record)

    assert ("sent", "callback", OTHER_SID, False) == stands(ledger)
    assert SID not in aws_wire.owners


# Records of an older version


@pytest.mark.parametrize("was", ["sending", "unknown", "sent"])
def test_what_an_older_version_wrote_is_read(ledger: IdempotencyStore, aws_wire: AwsWire, was: str) -> None:
    """A record of an older version is read.

    It has no `calls_back`, no time from which it is unknown, and no evidence.
    """
    message: dict[str, Any] = {"message": MESSAGE, "settled": True} if was == "sent" else {}
    item = _item(live(state=SendState(was), **message))
    del item["calls_back"]
    aws_wire.items[item["id"]["S"]] = item
    record = ledger.find(item["id"]["S"])

    assert record is not None
    assert (was, True, None, None) == (record.state, record.calls_back, record.unknown_since, record.evidence)
    assert record.result == record.message


def test_what_the_list_showed_an_older_version_stays(ledger: IdempotencyStore, aws_wire: AwsWire) -> None:
    """A sent record of an older version has no evidence, so neither a callback nor the list changes it."""
    old = changed(live(), state=SendState.SENT, message=MESSAGE, settled=True)
    aws_wire.items[old.id] = _item(old)

    for event in (Confirmed(PROOF), Listed(MESSAGE, rival=False), Displaced(SID)):
        assert old is ledger.write(event, old)
    assert {} == aws_wire.owners
