"""Tests of how `resolve` searches Twilio's list for a message with an unknown outcome, and what counts as evidence."""

import json
import time
from email.utils import formatdate
from typing import Any

import get_sms
import pytest
import resolve
import send_sms
from twilio_connector.messaging.idempotency import Confirmed, record_id
from twilio_connector.messaging.idempotency_store import IdempotencyStore

from tests.aws_wire import AwsWire
from tests.builders import leave_unknown
from tests.conftest import Context
from tests.faults import FaultServer
from tests.faults.wire import Reply, Request
from tests.unit.conftest import API_KEY

SMS = {"to": "+15005550006", "message": "Hello"}
KEYED = SMS | {"idempotency_key": "key"}
SID = "SM" + "1" * 32
OTHER_SID = "SM" + "2" * 32
SERVICE = "MG" + "0" * 32
THROTTLED = (400, "ProvisionedThroughputExceededException")
WITHOUT_TOKEN = json.dumps({name: value for name, value in API_KEY.items() if name != "auth_token"})
CAUGHT_UP = 15
CALLED_BACK = 120


@pytest.fixture(autouse=True)
def _no_callback_can_come(aws_wire: AwsWire) -> None:
    aws_wire.secrets["twilio/default"] = WITHOUT_TOKEN


@pytest.fixture
def callbacks(aws_wire: AwsWire) -> None:
    """Give the connection its auth token, so that status callbacks can arrive."""
    aws_wire.secrets["twilio/default"] = json.dumps(API_KEY)


def leave(twilio: FaultServer, given: dict[str, Any] | None = None) -> None:
    """Leave a message with an unknown outcome."""
    leave_unknown(twilio, given or KEYED)


def listed(twilio: FaultServer, monkeypatch: pytest.MonkeyPatch, *messages: Any) -> None:
    """Let Twilio's list have these messages. By default each is half a minute old and matches the sought message."""
    own = {
        "sid": SID, "to": SMS["to"], "from": "+15551234567", "body": "Hello", "direction": "outbound-api",
        "messaging_service_sid": None, "date_created": formatdate(time.time() - 30), "uri": "/",
    }  # fmt: skip
    rows = [own | message if isinstance(message, dict) else message for message in messages]
    answer(twilio, monkeypatch, {"messages": rows})


def answer(twilio: FaultServer, monkeypatch: pytest.MonkeyPatch, body: Any) -> None:
    """Let Twilio answer each read with this body."""
    normal = twilio._account.reply
    monkeypatch.setattr(
        twilio._account,
        "reply",
        lambda request: Reply.json(200, body) if request.method == "GET" else normal(request),
    )


def look(aws_wire: AwsWire, seconds: int = 60) -> None:
    """Let time pass, and run `resolve`."""
    aws_wire.age(seconds)
    resolve.handler({}, Context(120))


def known(key: str = "key") -> tuple[str, str | None, str | None]:
    """Return what get_sms reports for a key: its state, its evidence and its candidate."""
    answer = get_sms.handler({"idempotency_key": key}, Context())
    return answer["state"], answer["evidence"], answer["candidate_sid"]


def looks(twilio: FaultServer) -> list[Request]:
    """Return the requests for Twilio's list."""
    return [request for request in twilio.requests if request.method == "GET"]


FOUND = ("sent", "list", None)
NOT_FOUND = ("unknown", None, None)
NAMED = ("unknown", None, SID)


# When the list is searched


@pytest.mark.parametrize(("seconds", "expected"), [(CAUGHT_UP - 2, NOT_FOUND), (CAUGHT_UP + 1, FOUND)])
def test_the_list_is_not_asked_before_it_caught_up(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, seconds: int, expected: object
) -> None:
    """The list is searched only after it and the index have caught up, because each search costs a request."""
    leave(twilio)
    aws_wire.age(60)
    for item in aws_wire.items.values():  # the request itself took a minute
        item["unknown_since"] = {"N": str(int(time.time()))}
    listed(twilio, monkeypatch, {})
    look(aws_wire, seconds)

    assert expected == known()
    assert (expected == FOUND) == bool(looks(twilio))


@pytest.mark.usefixtures("callbacks")
@pytest.mark.parametrize(("seconds", "expected"), [(CALLED_BACK - 2, NOT_FOUND), (CALLED_BACK + 1, NAMED)])
def test_a_callback_has_time_to_come(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, seconds: int, expected: object
) -> None:
    """The list is searched later if a status callback can arrive, because a callback is proof."""
    leave(twilio)
    listed(twilio, monkeypatch, {})
    look(aws_wire, seconds)

    assert expected == known()


def test_a_message_that_was_just_sent_is_waited_for(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that finds a very recent message does not count, because the index may not show its key yet."""
    monkeypatch.setenv("UNKNOWN_REPORT_AFTER", "0")
    leave(twilio)
    listed(twilio, monkeypatch, {"date_created": formatdate(time.time() - 5)})
    look(aws_wire)

    assert (NOT_FOUND, []) == (known(), aws_wire.entries)


# Which messages match


def test_the_only_message_like_it_was_sent(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only match since the claim counts as sent. It is reported with its evidence, and belongs to the key."""
    leave(twilio)
    listed(twilio, monkeypatch, {})
    look(aws_wire)

    assert FOUND == known()
    assert {"To": [SMS["to"]], "From": ["+15551234567"], "PageSize": ["200"]} == looks(twilio)[0].parameters
    (entry,) = aws_wire.entries
    detail = json.loads(entry["Detail"])
    assert ("Message Sent", "list", SID) == (entry["DetailType"], detail["evidence"], detail["message"]["sid"])
    assert "evidence" not in detail["message"]
    assert record_id("default", "key") == aws_wire.owners[SID]["key_id"]["S"]


def test_the_same_key_again_says_that_only_the_list_shows_it(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second send with the same key returns the message with its evidence, `list`."""
    leave(twilio)
    listed(twilio, monkeypatch, {})
    look(aws_wire)
    message = send_sms.handler(KEYED, Context())

    assert (SID, "list") == (message["sid"], message["evidence"])


@pytest.mark.parametrize("change", [{}, {"status_callback": "https://example.com/"}])
@pytest.mark.parametrize("connection", [WITHOUT_TOKEN, json.dumps(API_KEY)])
def test_only_where_no_callback_can_come_the_list_says_sent(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], connection: str
) -> None:
    """The list settles a send only if no status callback can arrive. Otherwise a person has to check the match.

    A caller's own status callback replaces the stack's.
    """
    aws_wire.secrets["twilio/default"] = connection
    monkeypatch.setenv("UNKNOWN_REPORT_AFTER", "0")
    leave(twilio, KEYED | change)
    listed(twilio, monkeypatch, {})
    look(aws_wire, 180)
    is_proven = not change and connection != WITHOUT_TOKEN

    assert (NAMED if is_proven else FOUND) == known()
    (entry,) = aws_wire.entries
    assert ("Message Outcome Unknown" if is_proven else "Message Sent") == entry["DetailType"]
    assert (SID if is_proven else None) == json.loads(entry["Detail"]).get("candidate_sid")
    assert [SID] * is_proven == [sent["MessageAttributes"]["candidate_sid"]["StringValue"] for sent in aws_wire.sent]


@pytest.mark.usefixtures("callbacks")
def test_a_callback_after_the_look_is_proof(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callback after the search is proof, even if it names another message than the candidate."""
    leave(twilio)
    listed(twilio, monkeypatch, {})
    look(aws_wire, 180)
    ledger = IdempotencyStore("ledger")
    record = ledger.find(record_id("default", "key"))
    assert record is not None
    ledger.write(Confirmed({"sid": OTHER_SID, "status": "sent"}), record)

    assert ("sent", "callback", None) == known()
    assert OTHER_SID == get_sms.handler({"idempotency_key": "key"}, Context())["message"]["sid"]


@pytest.mark.parametrize(
    "messages",
    [
        [{"body": "Bye"}],
        [{"to": "+15005550007"}],
        [{"from": "+15005550001"}],
        [{"direction": "inbound"}],
        [{"date_created": formatdate(1)}],
        [{"date_created": "yesterday"}],
        [{"date_created": None}],
        [{"sid": "SM1"}],
        [{}, {"sid": OTHER_SID}],
        [],
    ],
    ids=str,
)
def test_another_message_is_no_evidence(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, messages: list[Any]
) -> None:
    """A message that does not match is not evidence. Of two matches neither is, because one may be somebody else's."""
    leave(twilio)
    listed(twilio, monkeypatch, *messages)
    look(aws_wire)

    assert NOT_FOUND == known()
    assert 1 == len(looks(twilio))


def test_a_page_that_does_not_reach_back_is_no_evidence(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full page that does not reach back to the claim is not evidence: a second match may be on the next page."""
    leave(twilio)
    others = [{"sid": f"SM{number:032x}", "body": "Bye"} for number in range(199)]
    listed(twilio, monkeypatch, {}, *others)
    look(aws_wire)
    assert NOT_FOUND == known()

    listed(twilio, monkeypatch, {}, *others[1:], {"body": "Bye", "date_created": formatdate(time.time() - 3600)})
    look(aws_wire)
    assert FOUND == known()


def test_the_message_of_the_first_request_is_found_after_a_repetition(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the resend's answer is lost too, the first request's message is found, although it predates the resend."""
    leave(twilio)
    aws_wire.age(600)
    leave(twilio, KEYED | {"on_unknown": "resend"})
    listed(twilio, monkeypatch, {"date_created": formatdate(time.time() - 300)})
    look(aws_wire)

    assert FOUND == known()


def test_a_service_may_choose_the_sender(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A send through a messaging service matches a message of that service from any sender."""
    leave(twilio, KEYED | {"messaging_service_sid": SERVICE})
    listed(twilio, monkeypatch, {"messaging_service_sid": SERVICE, "from": "+15005550001"})
    look(aws_wire)

    assert FOUND == known()
    assert {"To": [SMS["to"]], "PageSize": ["200"]} == looks(twilio)[0].parameters


@pytest.mark.parametrize("service", ["MG" + "1" * 32, None])
def test_another_service_is_no_evidence(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, service: str | None
) -> None:
    """A message of another messaging service, or of none, is not evidence."""
    leave(twilio, KEYED | {"messaging_service_sid": SERVICE})
    listed(twilio, monkeypatch, {"messaging_service_sid": service})
    look(aws_wire)

    assert NOT_FOUND == known()


# Which key a message belongs to


@pytest.mark.parametrize("connection", [WITHOUT_TOKEN, json.dumps(API_KEY)], ids=["no callback", "callback"])
def test_a_message_of_another_key_is_no_evidence(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, connection: str
) -> None:
    """A message of another key is neither evidence nor a candidate."""
    aws_wire.secrets["twilio/default"] = connection
    sent = send_sms.handler(KEYED | {"idempotency_key": "other"}, Context())
    leave(twilio)
    listed(twilio, monkeypatch, {"sid": sent["sid"]})
    look(aws_wire, 180)

    assert NOT_FOUND == known()


def test_a_message_that_another_key_made_of_a_template_is_no_evidence(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that another key sent from a template is not evidence: its SID shows the key, although no text does."""
    template = {"to": SMS["to"], "content_sid": "HX" + "0" * 32, "idempotency_key": "other"}
    sent = send_sms.handler(template, Context())
    leave(twilio)
    listed(twilio, monkeypatch, {"sid": sent["sid"]})
    look(aws_wire)
    assert NOT_FOUND == known()

    listed(twilio, monkeypatch, {"sid": sent["sid"]}, {})
    look(aws_wire)
    assert FOUND == known()


def test_of_two_equal_messages_in_doubt_nobody_knows_whose_it_is(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that matches two keys with unknown outcomes is a candidate for both, and evidence for neither."""
    leave(twilio, KEYED | {"idempotency_key": "other"})
    leave(twilio)
    listed(twilio, monkeypatch, {})
    look(aws_wire)

    assert [NAMED, NAMED] == [known(), known("other")]


@pytest.mark.parametrize(
    ("own", "another", "row"),
    [
        ({"from": "+15551234567"}, {"messaging_service_sid": SERVICE}, {"messaging_service_sid": SERVICE}),
        (
            {"messaging_service_sid": SERVICE},
            {"messaging_service_sid": SERVICE, "from": "+15551234567"},
            {"messaging_service_sid": SERVICE},
        ),
        ({}, {"connection": "other"}, {}),
        ({}, {"from": "+15551234567"}, {}),
    ],
    ids=["service", "sender of the service", "connection of the same account", "default sender"],
)
@pytest.mark.parametrize("became", ["sent", "unknown"])
def test_a_message_that_another_key_sent_otherwise_is_no_evidence(
    twilio: FaultServer,
    aws_wire: AwsWire,
    monkeypatch: pytest.MonkeyPatch,
    own: dict[str, str],
    another: dict[str, str],
    row: dict[str, str],
    became: str,
) -> None:
    """A match that another key may have sent is not evidence, even if its input names another sender or connection.

    The message looks the same in the list.
    """
    aws_wire.secrets["twilio/other"] = WITHOUT_TOKEN
    other = KEYED | another | {"idempotency_key": "other"}
    if became == "sent":
        row = row | {"sid": send_sms.handler(other, Context())["sid"]}
    else:
        leave(twilio, other)
    leave(twilio, KEYED | own)
    listed(twilio, monkeypatch, row)
    look(aws_wire)

    assert "unknown" == known()[0]


def test_another_key_that_cannot_be_read_may_be_the_one(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another key's record cannot be read, a match is not evidence: a newer version may have written the record."""
    send_sms.handler(KEYED | {"idempotency_key": "other"}, Context())
    leave(twilio)
    aws_wire.items[record_id("default", "other")]["state"] = {"S": "paused"}
    listed(twilio, monkeypatch, {})
    look(aws_wire)

    assert "unknown" == known()[0]


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("key", ["listed", "key"])
def test_proof_takes_a_message_back_from_the_list(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Proof for one key takes the message from the key that has it by the list.

    The outcome of that key is unknown again. It is searched for again, and reported again with its input.
    """
    monkeypatch.setenv("UNKNOWN_REPORT_AFTER", "3")
    leave(twilio, KEYED | {"idempotency_key": "listed"})
    listed(twilio, monkeypatch, {})
    look(aws_wire)
    assert FOUND == known("listed")
    aws_wire.secrets["twilio/default"] = json.dumps(API_KEY)
    leave(twilio, KEYED | {"idempotency_key": "key"})
    ledger = IdempotencyStore("ledger")
    record = ledger.find(record_id("default", "key"))
    assert record is not None
    ledger.write(Confirmed({"sid": SID, "status": "sent"}), record)
    assert {"key": ("sent", "callback", None), "listed": NOT_FOUND}[key] == known(key)
    look(aws_wire, 180)

    events = [(entry["DetailType"], json.loads(entry["Detail"])) for entry in aws_wire.entries]
    assert {"key": ["Message Sent"], "listed": ["Message Sent", "Message Outcome Unknown"]}[key] == [
        name for name, detail in events if detail["idempotency_key"] == key
    ]
    assert ["listed"] == [json.loads(sent["MessageBody"])["idempotency_key"] for sent in aws_wire.sent]


# Searches without a result


def test_what_a_template_makes_is_not_looked_for(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message from a template is reported without a search, because its text is unknown."""
    monkeypatch.setenv("UNKNOWN_REPORT_AFTER", "0")
    leave(twilio, {"to": SMS["to"], "content_sid": "HX" + "0" * 32, "idempotency_key": "key"})
    look(aws_wire, 1)

    assert ["Message Outcome Unknown"] == [entry["DetailType"] for entry in aws_wire.entries]
    assert [] == looks(twilio)


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("failing", [THROTTLED, (400, "AccessDeniedException")])
def test_without_the_other_keys_nothing_is_said(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, failing: tuple[int, str]
) -> None:
    """If the index does not answer, a match proves nothing and the outcome is not reported.

    The match may belong to another key, and an outcome is not reported before a search.
    """
    monkeypatch.setenv("UNKNOWN_REPORT_AFTER", "0")
    leave(twilio)
    listed(twilio, monkeypatch, {})
    normal = aws_wire.answer
    monkeypatch.setattr(
        aws_wire,
        "answer",
        lambda operation, body: (
            (failing[0], {"__type": failing[1]})
            if body.get("IndexName") == "content-index"
            else normal(operation, body)
        ),
    )
    look(aws_wire)

    assert (NOT_FOUND, []) == (known(), aws_wire.entries)


ROW = {
    "sid": SID,
    "to": SMS["to"],
    "from": "+15551234567",
    "body": "Hello",
    "direction": "outbound-api",
    "date_created": formatdate(time.time() - 30),
}
ODD_ROWS: list[dict[str, Any]] = [
    {},
    *(ROW | {"sid": sid} for sid in (None, 5, [SID], {"sid": SID})),
    *(ROW | {"date_created": created} for created in (5, True, ["Fri"], {"Fri": 1}, "", "Fri, 99 Dec 2100")),
    *(ROW | {name: None} for name in ("to", "from", "body", "direction")),
]


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"messages": None},
        {"messages": {"0": ROW}},
        {"messages": [None]},
        {"messages": [[]]},
        {"messages": ["text"]},
        *({"messages": [row]} for row in ODD_ROWS),
    ],
)
def test_a_malformed_list_says_nothing(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, body: Any
) -> None:
    """A malformed list is not evidence, and does not make `resolve` fail."""
    leave(twilio)
    answer(twilio, monkeypatch, body)
    aws_wire.age(60)

    assert {"open": 1, "settled": 0} == resolve.handler({}, Context(120))
    assert NOT_FOUND == known()


@pytest.mark.usefixtures("delays")
def test_the_row_of_a_well_formed_list_says_something(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same row in a well-formed list is evidence, which shows that the test above is effective."""
    leave(twilio)
    answer(twilio, monkeypatch, {"messages": [ROW | {"date_created": formatdate(time.time() - 30)}]})
    look(aws_wire)

    assert FOUND == known()
