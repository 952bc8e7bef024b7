"""What stands in the ledger after which event, and that no two writers undo each other's."""

import json
import time
from typing import Any

import msgspec
import pytest
from twilio_connector.errors import ServiceUnavailableError
from twilio_connector.ledger import (
    KEPT_SECONDS,
    Accepted,
    Claim,
    Event,
    Ledger,
    Lost,
    Other,
    Overdue,
    Proven,
    Record,
    Refused,
    Reported,
    Sought,
    State,
    after,
    fingerprint,
    key_id,
    new_claim,
)

from tests.aws_wire import LOST, PASS, AwsWire

pytestmark = pytest.mark.usefixtures("delays")

NOW = 1_800_000_000
SMS = {"to": "+15005550006", "message": "Hello", "connection": "default", "idempotency_key": "key"}
SOUGHT = Sought(to="+15005550006", body="Hello", from_="+15551234567")
SID = "SM" + "1" * 32
MESSAGE = {"sid": SID, "status": "queued", "uri": "/Messages/1.json"}
PROOF = {"sid": SID, "status": "sent", "from": "+15551234567", "to": "+15005550006"}
ERROR = {"title": "TwilioRejectedError", "detail": "no"}
THROTTLED = (400, "ProvisionedThroughputExceededException")
DENIED = (400, "AccessDeniedException")
FAILED = (500, "InternalServerError")

OWN = Record(
    id=key_id("default", "key"),
    nonce="own",
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
NEW = msgspec.structs.replace(OWN, nonce="new", claimed_at=NOW, lease_until=NOW + 60, expires_at=NOW + 2000)


def changed(record: Record, **changes: Any) -> Record:
    """Return a record with other values."""
    return msgspec.structs.replace(record, **changes)


def live(nonce: str = "own", key: str = "key", **changes: Any) -> Record:
    """Return a claim that is made now."""
    now = int(time.time())
    times = {"claimed_at": now, "lease_until": now + 60, "expires_at": now + KEPT_SECONDS}
    return changed(OWN, nonce=nonce, idempotency_key=key, id=key_id("default", key), **(times | changes))


# The rules: one line for each event, one column for each thing that may stand there before.
#
# `!` is what somebody must still be told of, `overdue` is sending past its lease, `claimed` is the new claim, which
# alone may send, and `-` is what stood there, untouched.

RULES = """
                  absent    expired   sending  overdue   sent!  sent  not_sent  unknown!  unknown
claim             claimed   claimed   -        unknown!  -      -     claimed   -         -
claim by queue    claimed   claimed   -        unknown!  -      -     claimed   -         unknown!
claim to resend   claimed   claimed   -        claimed   -      -     claimed   claimed   claimed
claim in doubt    unknown!  unknown!  -        unknown!  -      -     unknown!  -         unknown!
other input       claimed   claimed   -        -         -      -     -         -         -
accepted          -         absent    sent     sent      sent   sent  sent      sent      sent
refused           -         absent    not_sent not_sent  -      -     -         -         -
refused elsewhere -         absent    -        -         -      -     -         -         -
lost              -         absent    unknown! unknown!  -      -     -         -         -
lost elsewhere    -         absent    -        -         -      -     -         -         -
proven            -         absent    sent!    sent!     -      -     sent!     sent!     sent!
time passes       -         absent    -        unknown!  -      -     -         -         -
told sent         -         absent    -        -         sent   -     -         -         -
told unknown      -         absent    -        -         -      -     -         unknown   -
"""

STANDS: dict[str, Record | None] = {
    "absent": None,
    "expired": changed(OWN, expires_at=NOW, state=State.UNKNOWN),
    "sending": OWN,
    "overdue": changed(OWN, lease_until=NOW),
    "sent!": changed(OWN, state=State.SENT, message=PROOF, sms=None, sought=None),
    "sent": changed(OWN, state=State.SENT, message=MESSAGE, sms=None, sought=None, settled=True),
    "not_sent": changed(OWN, state=State.NOT_SENT, error=ERROR, sms=None, sought=None, settled=True),
    "unknown!": changed(OWN, state=State.UNKNOWN),
    "unknown": changed(OWN, state=State.UNKNOWN, settled=True),
}

HAPPENS: dict[str, Event] = {
    "claim": Claim(NEW, resend=False),
    "claim by queue": Claim(changed(NEW, caller="sqs"), resend=False),
    "claim to resend": Claim(NEW, resend=True),
    "claim in doubt": Claim(changed(NEW, caller="sqs", state=State.UNKNOWN), resend=False),
    "other input": Claim(changed(NEW, fingerprint="other"), resend=True),
    "accepted": Accepted(MESSAGE),
    "refused": Refused("own", ERROR),
    "refused elsewhere": Refused("elsewhere", ERROR),
    "lost": Lost("own"),
    "lost elsewhere": Lost("elsewhere"),
    "proven": Proven(PROOF),
    "time passes": Overdue(),
    "told sent": Reported(State.SENT),
    "told unknown": Reported(State.UNKNOWN),
}


def rules() -> list[tuple[str, str, str]]:
    """Return what stands there, what happens and what is expected, of each field of the table."""
    first, *lines = RULES.strip("\n").splitlines()
    columns = first.split()
    return [
        (stands, line[:18].strip(), expected)
        for line in lines
        for stands, expected in zip(columns, line[18:].split(), strict=True)
    ]


def named(record: Record | None) -> str:
    """Return the table's word for a record."""
    if record is None:
        return "absent"
    if record.state is State.SENDING:
        return "claimed" if record.nonce == NEW.nonce else "sending"
    return f"{record.state}{'' if record.settled else '!'}"


def test_the_table_is_whole() -> None:
    """Each event meets each thing that may stand there."""
    assert {(stands, happens) for stands in STANDS for happens in HAPPENS} == {rule[:2] for rule in rules()}


@pytest.mark.parametrize(("stands", "happens", "expected"), rules())
def test_the_rules(stands: str, happens: str, expected: str) -> None:
    """What is not changed is the very same record, so nothing is written."""
    before = STANDS[stands]
    result = after(before, HAPPENS[happens], NOW)

    if expected == "-":
        assert before is result
    else:
        assert expected == named(result)
        assert before is not result


@pytest.mark.parametrize(("stands", "happens", "expected"), rules())
def test_the_input_is_kept_only_while_it_is_needed(stands: str, happens: str, expected: str) -> None:  # noqa: ARG001
    """It holds a person's number and text: it goes as soon as it is known what became of the message."""
    result = after(STANDS[stands], HAPPENS[happens], NOW)
    needed = result is not None and result.state in {State.SENDING, State.UNKNOWN}

    assert ((SMS, SOUGHT) if needed else (None, None)) == (result and result.sms, result and result.sought)


def test_a_lease_ends_in_its_last_second() -> None:
    """Not a moment before."""
    assert after(OWN, Overdue(), OWN.lease_until - 0.001) is OWN
    assert "unknown!" == named(after(OWN, Overdue(), OWN.lease_until))


def test_a_record_expires_in_its_last_second() -> None:
    """Not a moment before."""
    claim = Claim(NEW, resend=False)
    not_expired = changed(STANDS["sent"] or OWN, expires_at=NOW + 1)

    assert not_expired is after(not_expired, claim, NOW + 0.999)
    assert NEW is after(not_expired, claim, NOW + 1)


def test_a_new_try_forgets_the_old_one() -> None:
    """Nonce, times and the error are those of the new claim."""
    result = after(STANDS["not_sent"], HAPPENS["claim"], NOW)

    assert NEW == result


def test_what_became_of_it_is_kept() -> None:
    """The message for the next caller with the same key, or the reason why there is none."""
    accepted = after(STANDS["sending"], HAPPENS["accepted"], NOW)
    refused = after(STANDS["sending"], HAPPENS["refused"], NOW)
    proven = after(STANDS["not_sent"], HAPPENS["proven"], NOW)
    told = after(proven, HAPPENS["told sent"], NOW)

    assert [(MESSAGE, None), (None, ERROR), (PROOF, None), (PROOF, None)] == [
        (each.message, each.error) if each else None for each in (accepted, refused, proven, told)
    ]


def test_an_answer_replaces_what_a_callback_told() -> None:
    """It is the whole message, and its caller gets it, so nobody has to be told."""
    result = after(STANDS["sent!"], HAPPENS["accepted"], NOW)

    assert result is not None
    assert (MESSAGE, True) == (result.message, result.settled)


@pytest.mark.parametrize("stands", ["overdue", "unknown!", "unknown"])
def test_a_refused_repetition_says_nothing_of_the_first_request(stands: str) -> None:
    """The first may still have been carried out, so the key does not count as not sent, and is not sent anew."""
    claimed = after(STANDS[stands], HAPPENS["claim to resend"], NOW)
    result = after(claimed, Refused(NEW.nonce, ERROR), NOW)
    again = after(result, Claim(changed(NEW, nonce="third"), resend=False), NOW)

    assert result is not None
    assert again is not None
    assert (State.UNKNOWN, State.UNKNOWN) == (result.state, again.state)


def test_what_a_claim_is() -> None:
    """With times in whole seconds, and a nonce and an equal content for each."""
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

    assert (State.SENDING, False) == (one.state, one.settled)
    assert began <= one.claimed_at <= time.time()
    assert (60, KEPT_SECONDS) == (one.lease_until - one.claimed_at, one.expires_at - one.claimed_at)
    assert one.nonce != two.nonce
    assert (one.id, one.content) == (two.id, two.content)
    assert fingerprint({"message": "b", "to": "a"}) == one.fingerprint
    assert fingerprint({"message": "a", "to": "b"}) != one.fingerprint


def test_an_id_tells_neither_key_nor_connection() -> None:
    """It stands in URLs."""
    ids = [key_id("default", "key"), key_id("default", "yek"), key_id("support", "key")]

    assert 3 == len(set(ids))
    assert [64] * 3 == [len(each) for each in ids]


def test_a_template_has_no_content() -> None:
    """Its text is made by Twilio, so no other message is known to be equal."""
    claim = new_claim(
        idempotency_key="key", connection="default", caller="sqs", same="s", sms={}, sought=None, lease_seconds=60
    )

    assert claim.content is None


# On the wire


@pytest.fixture
def ledger(aws_wire: AwsWire) -> Ledger:
    """Return the ledger."""
    assert [] == aws_wire.calls
    return Ledger("ledger")


def claimed(ledger: Ledger, record: Record) -> Record:
    """Write a claim."""
    return ledger.write(Claim(record, resend=False))


def unnamed(record: Record | None) -> Record:
    """Return a record without the name of the write that made it."""
    assert record is not None
    return changed(record, revision="")


def conditions(wire: AwsWire) -> list[tuple[Any, Any]]:
    """Return the condition and its values of each write."""
    return [
        (body.get("ConditionExpression"), body.get("ExpressionAttributeValues"))
        for operation, body in wire.calls
        if operation == "PutItem"
    ]


def state(wire: AwsWire, key: str = "key") -> str:
    """Return the state that stands in the table."""
    return str(wire.items[key_id("default", key)]["state"]["S"])


def test_a_claim_is_one_conditional_write(ledger: Ledger, aws_wire: AwsWire) -> None:
    """No reading before."""
    record = live()

    assert record == unnamed(claimed(ledger, record))
    assert [("attribute_not_exists(id)", None)] == conditions(aws_wire)
    assert ["PutItem"] == [operation for operation, _ in aws_wire.calls]


def test_what_stands_in_the_table(ledger: Ledger, aws_wire: AwsWire) -> None:
    """Names and texts that a person can read; the attributes of the indexes; the time at which DynamoDB deletes it."""
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
    } == item


@pytest.mark.parametrize("doubtful", [False, True])
@pytest.mark.parametrize("stands", [name for name in STANDS if name not in {"absent", "expired"}])
def test_what_is_written_is_read(ledger: Ledger, aws_wire: AwsWire, stands: str, doubtful: bool) -> None:  # noqa: FBT001 a table
    """Whatever the state, with a read that sees every write."""
    record = changed(STANDS[stands] or OWN, content="content", doubtful=doubtful, expires_at=int(time.time()) + 60)
    ledger._put(record, None, anyway=False)

    assert record == ledger.find(record.id)
    assert {"TableName": "ledger", "Key": {"id": {"S": record.id}}, "ConsistentRead": True} == aws_wire.calls[-1][1]


@pytest.mark.parametrize("end", [Refused("own", ERROR), Lost("own"), Proven(PROOF)])
def test_a_change_is_written_over_what_it_was_made_of(ledger: Ledger, aws_wire: AwsWire, end: Event) -> None:
    """And over nothing else."""
    record = claimed(ledger, live())
    ledger.write(end, record)

    assert ("revision = :revision", {":revision": {"S": record.revision}}) == conditions(aws_wire)[1]
    assert 2 == len(aws_wire.calls)


@pytest.mark.parametrize(
    ("end", "gone"),
    [(Accepted(MESSAGE), True), (Refused("own", ERROR), True), (Proven(PROOF), True), (Lost("own"), False)],
)
def test_the_input_is_deleted_from_the_table(ledger: Ledger, aws_wire: AwsWire, end: Event, gone: bool) -> None:  # noqa: FBT001 a table
    """Once it is known what became of the message."""
    record = claimed(ledger, live())
    ledger.write(end, record)
    item = aws_wire.items[record.id]

    assert (not gone, not gone) == ("sms" in item, "sought" in item)
    assert gone == ("Hello" not in str(item))


def test_a_settled_item_is_in_no_list_of_open_ones(ledger: Ledger, aws_wire: AwsWire) -> None:
    """Its attribute for that index goes."""
    record = claimed(ledger, live())
    ledger.write(Accepted(MESSAGE), record)
    item = aws_wire.items[record.id]

    assert "unsettled" not in item
    assert {"S": SID} == item["sid"]


@pytest.mark.parametrize("end", [Accepted(MESSAGE), Proven(PROOF), Refused("own", ERROR), Lost("own"), Overdue()])
def test_an_event_of_a_key_that_is_gone_is_written_nowhere(ledger: Ledger, aws_wire: AwsWire, end: Event) -> None:
    """It would be a record without a claim."""
    assert ledger.write(end, changed(OWN, expires_at=1)) is None
    assert [] == aws_wire.calls


def test_every_write_has_a_name_of_its_own(ledger: Ledger, aws_wire: AwsWire) -> None:
    """By which a writer sees that something else happened, also where the same happened again."""
    record = claimed(ledger, live())
    for event in (
        Lost("own"),
        Reported(State.UNKNOWN),
        Claim(live(caller="sqs"), resend=False),
        Reported(State.UNKNOWN),
    ):
        ledger.write(event, record)
    ledger.write(Accepted(MESSAGE), record)
    written = [body["Item"]["revision"]["S"] for name, body in aws_wire.calls if name == "PutItem"]

    assert len(written) == len(set(written)) == aws_wire.count("PutItem")
    assert written[-1] == aws_wire.items[record.id]["revision"]["S"]


def test_what_changes_nothing_is_not_written(ledger: Ledger, aws_wire: AwsWire) -> None:
    """Not even read."""
    record = live()

    assert record is ledger.write(Overdue(), record)
    assert [] == aws_wire.calls


# Where the table's answer is lost, or is a failure


@pytest.mark.parametrize("resend", [False, True])
def test_a_claim_whose_answer_was_lost_is_known_by_its_nonce(ledger: Ledger, aws_wire: AwsWire, resend: bool) -> None:  # noqa: FBT001 a table
    """The second try finds the first one's item, and may send."""
    aws_wire.failures["PutItem"] = [LOST]
    record = live()

    assert record == unnamed(ledger.write(Claim(record, resend)))
    assert 2 == aws_wire.count("PutItem")


def test_a_claim_over_another_record_whose_answer_was_lost_is_known_by_its_nonce(
    ledger: Ledger, aws_wire: AwsWire
) -> None:
    """The new try of what was not sent."""
    ledger.write(Refused("own", ERROR), claimed(ledger, live()))
    aws_wire.failures["PutItem"] = [PASS, LOST]
    record = live("new")

    assert record == unnamed(claimed(ledger, record))
    assert "new" == aws_wire.items[record.id]["nonce"]["S"]


def test_the_claim_of_another_is_not_taken_for_its_own(ledger: Ledger, aws_wire: AwsWire) -> None:
    """Two deliveries at the same moment, and the first one's answer is lost."""
    first, second = live("first"), live("second")
    aws_wire.failures["PutItem"] = [LOST]
    claimed(ledger, first)

    assert first == unnamed(claimed(ledger, second))


@pytest.mark.parametrize(
    ("failures", "calls"), [([THROTTLED] * 2, 2), ([FAILED] * 2, 2), ([DENIED], 1), ([LOST, LOST], 2)], ids=str
)
def test_a_claim_that_is_not_known_to_stand_raises(
    ledger: Ledger, aws_wire: AwsWire, failures: list[tuple[int, str]], calls: int
) -> None:
    """Nobody sends then, though it may stand."""
    aws_wire.failures["PutItem"] = failures

    with pytest.raises(ServiceUnavailableError, match="the ledger of sent messages does not answer"):
        claimed(ledger, live())
    assert calls == aws_wire.count("PutItem")


def test_a_claim_that_was_throttled_once_stands(ledger: Ledger, aws_wire: AwsWire) -> None:
    """Nothing had been written by the first try."""
    aws_wire.failures["PutItem"] = [THROTTLED]
    record = live()

    assert record == unnamed(claimed(ledger, record))


@pytest.mark.parametrize("end", [Accepted(MESSAGE), Refused("own", ERROR), Lost("own"), Proven(PROOF)])
def test_a_change_whose_answer_was_lost_is_its_own(ledger: Ledger, aws_wire: AwsWire, end: Event) -> None:
    """It is not made twice."""
    record = claimed(ledger, live())
    aws_wire.failures["PutItem"] = [LOST]
    result = ledger.write(end, record)

    assert result is not None
    assert {"S": result.revision} == aws_wire.items[record.id]["revision"]
    assert 3 == aws_wire.count("PutItem")
    assert result == ledger.find(record.id)


@pytest.mark.parametrize("operation", ["GetItem", "Query"])
def test_reads_fail_as_writes_do(ledger: Ledger, aws_wire: AwsWire, operation: str) -> None:
    """With an error that can be tried again."""
    aws_wire.failures[operation] = [DENIED]

    with pytest.raises(ServiceUnavailableError):
        ledger.find("id") if operation == "GetItem" else list(ledger.unsettled())


# Where something else stands in the table than was believed


def test_only_one_of_two_claims_stands(ledger: Ledger) -> None:
    """The other one is told which."""
    first, second = live("first"), live("second")

    stands = claimed(ledger, first)

    assert first == unnamed(stands)
    assert stands == claimed(ledger, second)


@pytest.mark.parametrize(
    ("before", "end", "expected"),
    [
        (Proven(PROOF), Lost("own"), "sent"),
        (Proven(PROOF), Refused("own", ERROR), "sent"),
        (Lost("own"), Proven(PROOF), "sent"),
        (Lost("own"), Accepted(MESSAGE), "sent"),
        (Lost("own"), Refused("own", ERROR), "unknown"),
        (Refused("own", ERROR), Lost("own"), "not_sent"),
        (Refused("own", ERROR), Overdue(), "not_sent"),
        (Accepted(MESSAGE), Lost("own"), "sent"),
    ],
)
def test_what_happened_meanwhile_is_looked_at(
    ledger: Ledger, aws_wire: AwsWire, before: Event, end: Event, expected: str
) -> None:
    """The second writer knows the claim only, and decides again by what stands there."""
    record = claimed(ledger, live(lease_until=0))
    ledger.write(before, record)
    result = ledger.write(end, record)

    assert result is not None
    assert (expected, expected) == (result.state, state(aws_wire))
    assert result == ledger.find(record.id)


@pytest.mark.parametrize(
    "late",
    [Reported(State.UNKNOWN), Lost("own"), Overdue(), Proven(PROOF), Claim(live("queue", caller="sqs"), resend=False)],
    ids=lambda event: type(event).__name__,
)
def test_nothing_is_written_over_an_acceptance(ledger: Ledger, aws_wire: AwsWire, late: Event) -> None:
    """Its sender was slower than its lease, and others believe what stood there meanwhile."""
    record = claimed(ledger, live(lease_until=0))
    overdue = ledger.write(Overdue(), record)
    assert overdue is not None
    unsure = changed(overdue, settled=isinstance(late, Claim))
    ledger.write(Accepted(MESSAGE), record)
    ledger.write(late, unsure)

    assert "sent" == state(aws_wire)


def test_an_acceptance_is_one_write_whatever_stands_there(ledger: Ledger, aws_wire: AwsWire) -> None:
    """The time of its sender is short."""
    record = claimed(ledger, live())
    ledger.write(Lost("own"), record)
    aws_wire.calls.clear()
    ledger.write(Accepted(MESSAGE), record)

    assert [(None, None)] == conditions(aws_wire)
    assert "sent" == state(aws_wire)


def test_an_acceptance_is_written_over_the_claim_of_another(ledger: Ledger, aws_wire: AwsWire) -> None:
    """It is true whatever stands there, and ends the other one's try."""
    record = claimed(ledger, live(lease_until=0))
    again = ledger.write(Claim(live("again"), resend=True))
    ledger.write(Accepted(MESSAGE), record)
    result = ledger.write(Refused("again", ERROR), again)

    assert result is not None
    assert ("sent", SID) == (state(aws_wire), (result.message or {})["sid"])


def test_an_item_that_expired_is_still_in_the_table(ledger: Ledger, aws_wire: AwsWire) -> None:
    """DynamoDB deletes it days later: it is not seen, and a claim takes its place."""
    old = live("old", revision="write", state=State.SENT, settled=True, expires_at=int(time.time()))
    ledger._put(old, None, anyway=False)
    record = live("new")

    assert ledger.find(old.id) is None
    assert record == unnamed(claimed(ledger, record))
    assert {":revision": {"S": "write"}} == conditions(aws_wire)[-1][1]
    assert "new" == aws_wire.items[old.id]["nonce"]["S"]


def test_an_item_that_is_deleted_meanwhile(ledger: Ledger, aws_wire: AwsWire) -> None:
    """Then no record stands there, and none is made of nothing."""
    record = claimed(ledger, live())
    aws_wire.items.clear()

    assert ledger.write(Lost("own"), record) is None
    assert {} == aws_wire.items


def test_what_a_newer_version_wrote_besides_is_passed_over(ledger: Ledger, aws_wire: AwsWire) -> None:
    """A roll-back reads its records."""
    record = claimed(ledger, live())
    aws_wire.items[record.id] |= {"priority": {"N": "1"}, "tags": {"SS": ["a"]}}
    aws_wire.items[record.id]["sought"] = {
        "S": '{"to": "+15005550006", "body": "Hello", "from": "+15551234567", "x": 1}'
    }

    assert record == ledger.find(record.id)


# The lists


def test_all_unsettled_records_are_found(ledger: Ledger, aws_wire: AwsWire) -> None:
    """Page by page, of every part of the index, with all that stands in the table."""
    records = [claimed(ledger, live(key=f"key-{number}")) for number in range(60)]
    settled, rest = records[:20], records[20:]
    for record in settled:
        ledger.write(Accepted(MESSAGE), record)

    assert 16 == len({record.id[0] for record in records})
    assert sorted(rest, key=lambda each: each.id) == list(ledger.unsettled())
    assert {"unsettled-index"} == {body["IndexName"] for name, body in aws_wire.calls if name == "Query"}


def test_an_index_that_is_behind_is_not_believed(
    ledger: Ledger, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still lists what was settled, or deleted, a moment ago."""
    record = claimed(ledger, live())
    open_one = claimed(ledger, live(key="open"))
    ledger.write(Accepted(MESSAGE), record)
    stale = [{"id": {"S": each}} for each in (record.id, "gone", open_one.id)]
    answer = aws_wire.answer

    def behind(operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        is_first = operation == "Query" and body["ExpressionAttributeValues"] == {":value": {"S": "0"}}
        return (200, {"Items": stale, "Count": 3}) if is_first else answer(operation, body)

    monkeypatch.setattr(aws_wire, "answer", behind)

    assert open_one == next(iter(ledger.unsettled()))


def test_the_other_keys_with_the_same_content(ledger: Ledger, aws_wire: AwsWire) -> None:
    """With state and SID, page by page; not itself, and nothing else."""

    def other(key: str, content: str | None = "content") -> Record:
        return claimed(ledger, live(key=key, content=content))

    record, sent, refused = other("key"), other("sent"), other("refused")
    ledger.write(Accepted(MESSAGE), sent)
    ledger.write(Refused("own", ERROR), refused)
    other("sending")
    other("another message", "other")
    other("template", None)

    assert {Other(State.SENT, SID), Other(State.SENDING, None), Other(State.NOT_SENT, None)} == set(
        ledger.others(record)
    )
    assert 4 == aws_wire.count("Query")


def test_a_record_that_was_read_has_its_others_too(ledger: Ledger) -> None:
    """As `resolve` reads it; and what is written of it is still among those of the others."""
    record, other = (claimed(ledger, live(key=key, content="content")) for key in ("key", "other"))
    read = ledger.find(record.id)
    assert read is not None
    ledger.write(Lost("own"), read)

    assert [Other(State.SENDING, None)] == ledger.others(read)
    assert [Other(State.UNKNOWN, None)] == ledger.others(other)


def test_a_template_has_no_others(ledger: Ledger, aws_wire: AwsWire) -> None:
    """Nothing is asked."""
    assert [] == ledger.others(live(content=None))
    assert [] == aws_wire.calls
