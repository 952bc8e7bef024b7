"""A send with a key, from the handler to the wire: what is written, what is sent, and what is found out."""

import json
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
import requests
import send_sms
from twilio_connector import aws, client, ledger, transport
from twilio_connector.errors import (
    ConnectorError,
    IdempotencyConflictError,
    OutcomeUnknownError,
    RecipientOptedOutError,
    SendInProgressError,
    ServiceUnavailableError,
    TwilioRateLimitError,
)

from tests.aws_wire import LOST, PASS, AwsWire
from tests.conftest import Context, LoadEvent
from tests.faults import FaultServer, faults
from tests.faults.wire import Reply, Request
from tests.unit.conftest import API_KEY

SMS = {"to": "+15005550006", "message": "Hello"}
KEYED = SMS | {"idempotency_key": "key"}
THROTTLED = (400, "ProvisionedThroughputExceededException")
SID = "SM" + "1" * 32
SERVICE = "MG" + "0" * 32


def send(given: dict[str, Any] | None = None, context: Context | None = None) -> Any:
    """Send with a key."""
    return send_sms.handler(given or KEYED, context or Context())


def failure(given: dict[str, Any] | None = None, context: Context | None = None) -> ConnectorError:
    """Return the error of a send with a key."""
    with pytest.raises(ConnectorError) as caught:
        send(given, context)
    return caught.value


def posts(twilio: FaultServer) -> list[Request]:
    """Return the requests that send."""
    return [request for request in twilio.requests if request.method == "POST"]


def table(aws_wire: AwsWire) -> list[str]:
    """Return the operations on the ledger, in order."""
    return [name for name, _ in aws_wire.calls if name in {"PutItem", "GetItem", "Query", "UpdateItem", "DeleteItem"}]


def states(aws_wire: AwsWire) -> list[str]:
    """Return what the ledger says of its keys."""
    return [item["state"]["S"] for item in aws_wire.items.values()]


def listed(twilio: FaultServer, monkeypatch: pytest.MonkeyPatch, *messages: dict[str, Any] | str) -> None:
    """Let Twilio's list have these messages, each equal to the one that is sent but for what is named."""
    own = {
        "sid": SID, "to": SMS["to"], "from": "+15551234567", "body": "Hello", "direction": "outbound-api",
        "messaging_service_sid": None, "date_created": formatdate(time.time() + 1), "uri": "/",
    }  # fmt: skip
    rows = [own | message if isinstance(message, dict) else message for message in messages]
    normal = twilio._account.reply
    monkeypatch.setattr(
        twilio._account,
        "reply",
        lambda request: Reply.json(200, {"messages": rows}) if request.method == "GET" else normal(request),
    )


def while_sending(twilio: FaultServer, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> list[Any]:
    """Do something while the first request is at Twilio, and return the list that gets what comes of it."""
    normal = twilio._account.reply
    came: list[Any] = []

    def reply(request: Request) -> Reply:
        if request.method == "POST" and not came:
            came.append(act())
        return normal(request)

    monkeypatch.setattr(twilio._account, "reply", reply)
    return came


def prove() -> None:
    """Let a status callback prove what the ledger has, as the webhook does."""
    book = ledger.Ledger("ledger")
    record = book.find(ledger.key_id("default", "key"))
    assert record is not None
    book.write(ledger.Proven({"sid": SID, "status": "sent"}), record)


# What it costs at AWS


def test_without_a_key_the_ledger_is_not_asked(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Nothing is called but Secrets Manager, once."""
    for _ in range(2):
        send(SMS)

    assert ["GetSecretValue"] == [name for name, _ in aws_wire.calls]
    assert 2 == len(posts(twilio))


def test_a_key_costs_two_writes(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The claim before the request, and what became of it after."""
    assert SMS["to"] == send()["to"]

    assert ["PutItem", "PutItem"] == table(aws_wire)
    assert ["sent"] == states(aws_wire)
    assert 1 == len(posts(twilio))


def test_a_dry_run_claims_nothing(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """It shows the status callback that would be sent."""
    form = send(KEYED | {"dry_run": True})["request"]["form"]

    assert form["StatusCallback"].startswith("https://hooks.example.com/webhook/default?send=")
    assert form["StatusCallback"].endswith("#rc=2&rp=all")
    assert ([], []) == (table(aws_wire), twilio.requests)


# Claiming


@pytest.mark.parametrize("why", [THROTTLED, (400, "AccessDeniedException"), (500, "InternalServerError")])
def test_what_cannot_be_claimed_is_not_sent(twilio: FaultServer, aws_wire: AwsWire, why: tuple[int, str]) -> None:
    """Whatever keeps the claim from being written."""
    aws_wire.failures["PutItem"] = [why] * 4

    assert ServiceUnavailableError is type(failure())
    assert [] == posts(twilio)


def test_a_claim_whose_answer_is_lost_is_our_own(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The second attempt knows it."""
    aws_wire.failures["PutItem"] = [LOST]

    assert "sid" in send()
    assert 1 == len(posts(twilio))


def test_a_claim_that_stands_unknown_to_us_is_taken_back(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Nothing was sent, so the next call need not wait for it."""
    aws_wire.failures["PutItem"] = [LOST, THROTTLED]

    assert ServiceUnavailableError is type(failure())
    assert ["not_sent"] == states(aws_wire)
    assert "sid" in send()
    assert 1 == len(posts(twilio))


@pytest.mark.parametrize("seconds", [8, 14.9])
def test_what_the_time_does_not_cover_is_not_begun(twilio: FaultServer, aws_wire: AwsWire, seconds: float) -> None:
    """The claim, the request and the note of its end must fit in."""
    assert ServiceUnavailableError is type(failure(context=Context(seconds)))
    assert ([], []) == (table(aws_wire), posts(twilio))


def test_a_claim_that_took_the_time_is_not_sent(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too late for the request is early enough to say so."""
    monkeypatch.setattr(aws, "SECONDS", 0)

    assert ServiceUnavailableError is type(failure(context=Context(5.5)))
    assert (["not_sent"], []) == (states(aws_wire), posts(twilio))


@pytest.mark.parametrize("wrong", [{"to": "nobody"}, {"idempotency_key": "a b"}, {"connection": "none"}])
def test_what_is_wrong_claims_nothing(twilio: FaultServer, aws_wire: AwsWire, wrong: dict[str, str]) -> None:
    """The key is free for the input that was meant."""
    failure(KEYED | wrong)

    assert ([], []) == (table(aws_wire), twilio.requests)


def test_the_claim_stands_before_the_request(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes meanwhile finds it, whatever becomes of the sender."""
    came = while_sending(twilio, monkeypatch, lambda: states(aws_wire))
    send()

    assert [["sending"]] == came


# The same key again


@pytest.mark.parametrize("again", [KEYED, dict(reversed(KEYED.items())), KEYED | {"on_unknown": "resend"}])
def test_what_was_sent_is_answered_with_the_first_result(
    twilio: FaultServer, aws_wire: AwsWire, again: dict[str, Any]
) -> None:
    """Whole, and without asking Twilio; the same input is the same in any order."""
    first = send()

    assert [first, first] == [send(again), send(again)]
    assert 1 == len(twilio.requests)
    assert "Query" not in table(aws_wire)


def test_a_key_is_for_one_input(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Another one needs another key, whatever became of the first."""
    twilio.script(faults.OK, faults.OPTED_OUT, faults.status(500), faults.OK)
    for key in ("sent", "not_sent", "unknown"):
        given = KEYED | {"idempotency_key": key}
        send(given) if key == "sent" else failure(given)

        assert IdempotencyConflictError is type(failure(given | {"message": "Bye"}))
    assert ["sent", "not_sent", "unknown"] == states(aws_wire)
    assert 3 == len(posts(twilio))


def test_a_key_is_for_one_connection(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Two accounts know nothing of each other's keys."""
    aws_wire.secrets["twilio/other"] = aws_wire.secrets["twilio/default"]
    sids = {send(KEYED | connection)["sid"] for connection in ({}, {"connection": "other"}, {"connection": "default"})}

    assert 2 == len(sids) == len(posts(twilio))


@pytest.mark.parametrize("more", [{}, {"on_unknown": "resend"}])
def test_what_is_being_sent_is_not_sent_again(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, more: dict[str, str]
) -> None:
    """The second caller is told to come again, also where he would send what is unknown."""
    came = while_sending(twilio, monkeypatch, lambda: type(failure(KEYED | more)))

    assert "sid" in send()
    assert [SendInProgressError] == came
    assert (["sent"], 1) == (states(aws_wire), len(posts(twilio)))


def test_what_was_begun_and_never_ended_is_unknown(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its function died, before or after the request."""
    monkeypatch.setenv("SEND_LEASE", "0")
    aws_wire.failures["PutItem"] = [PASS, THROTTLED, THROTTLED]
    send()

    assert OutcomeUnknownError is type(failure())
    assert (["unknown"], 1) == (states(aws_wire), len(posts(twilio)))


def test_a_key_that_expired_is_a_new_one(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Though DynamoDB has not deleted it yet."""
    send()
    for item in aws_wire.items.values():
        item["expires_at"] = {"N": str(int(time.time()))}
    send(KEYED | {"message": "Another text"})

    assert 2 == len(posts(twilio))


def test_a_key_may_be_a_header(twilio: FaultServer, aws_wire: AwsWire, event: LoadEvent) -> None:
    """Or both, if they are the same."""
    request = event("send_sms_api")
    headers = {"headers": request["headers"] | {"idempotency-key": "key"}}
    answers = [
        send_sms.handler(request | headers, Context()),
        send_sms.handler(
            request | headers | {"body": json.dumps(json.loads(request["body"]) | {"idempotency_key": "key"})},
            Context(),
        ),
    ]

    assert [201, 201] == [answer["statusCode"] for answer in answers]
    assert ["key"] == [item["idempotency_key"]["S"] for item in aws_wire.items.values()]
    assert 1 == len(posts(twilio))


def test_two_keys_are_refused(twilio: FaultServer, aws_wire: AwsWire, event: LoadEvent) -> None:
    """Nobody knows which is meant."""
    request = event("send_sms_api")
    headers = {"headers": request["headers"] | {"idempotency-key": "header"}}
    answer = send_sms.handler(request | headers | {"body": json.dumps(KEYED)}, Context())

    assert (400, "idempotency_key") == (answer["statusCode"], json.loads(answer["body"])["errors"][0]["field"])
    assert ([], []) == (table(aws_wire), twilio.requests)


@pytest.mark.parametrize("error", ["OutcomeUnknownError", "Sandbox.Timedout"])
def test_an_invocation_that_may_have_sent_is_not_made_again(
    twilio: FaultServer, aws_wire: AwsWire, event: LoadEvent, error: str
) -> None:
    """Its failure record is all that is known of it; with a key of its own the ledger knows."""
    record = event("send_sms_failure_record")
    record["responsePayload"]["errorType"] = error

    assert [OutcomeUnknownError] * 2 == [type(failure(record)), type(failure(record))]
    assert (["unknown"], []) == (states(aws_wire), posts(twilio))
    record["requestPayload"]["idempotency_key"] = "own"
    assert "sid" in send(record)


def test_an_invocation_that_may_have_sent_is_made_again_on_purpose(
    twilio: FaultServer, aws_wire: AwsWire, event: LoadEvent
) -> None:
    """That the repetition is refused does not unmake the first one."""
    record = event("send_sms_failure_record")
    record["responsePayload"]["errorType"] = "Sandbox.Timedout"
    record["requestPayload"]["on_unknown"] = "resend"
    twilio.script(faults.OPTED_OUT)

    assert OutcomeUnknownError is type(failure(record))
    assert (["unknown"], 1) == (states(aws_wire), len(posts(twilio)))


# What became of it


def test_the_last_write_is_not_needed(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Twilio has the message, and the caller gets it."""
    aws_wire.failures["PutItem"] = [PASS, THROTTLED, THROTTLED]

    assert "sid" in send()
    assert ["sending"] == states(aws_wire)
    assert SendInProgressError is type(failure())
    assert 1 == len(posts(twilio))


def test_what_is_refused_is_tried_anew(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Nothing was sent under the key."""
    twilio.script(faults.OPTED_OUT, faults.OK)

    assert RecipientOptedOutError is type(failure())
    assert ["not_sent"] == states(aws_wire)
    assert "sid" in send()
    assert 2 == len(posts(twilio))


def test_an_unknown_outcome_is_not_repeated(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """However often it is asked for."""
    twilio.script(faults.status(500), faults.OK)

    assert [OutcomeUnknownError] * 3 == [type(failure()) for _ in range(3)]
    assert ["unknown"] == states(aws_wire)
    assert 1 == len(posts(twilio))


def test_an_unknown_outcome_is_repeated_on_purpose(twilio: FaultServer) -> None:
    """`resend` opts in to at least once, and doubt stays: the first request may have been carried out."""
    given = KEYED | {"on_unknown": "resend"}
    twilio.script(faults.status(500), faults.OK, faults.OPTED_OUT, faults.OK, faults.OK)

    assert OutcomeUnknownError is type(failure(given))  # and its look-up finds nothing
    assert OutcomeUnknownError is type(failure(given))  # refused now, which does not unmake the first
    assert "sid" in send(given)
    assert 3 == len(posts(twilio))


def test_what_a_fault_of_ours_leaves_is_not_sent(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the request it is provably not sent."""
    monkeypatch.setattr("twilio_connector.client._prepared", None)

    assert "InternalError" == type(failure()).__name__
    assert ["not_sent"] == states(aws_wire)
    assert [] == posts(twilio)


def fault_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a fault of the connector come after each request that sends."""
    exchange = client._SESSION.exchange

    def faulty(request: requests.PreparedRequest, **terms: Any) -> transport.Reply:
        reply = exchange(request, **terms)
        if request.method == "POST":
            raise RuntimeError
        return reply

    monkeypatch.setattr(client._SESSION, "exchange", faulty)


def test_what_a_fault_of_ours_leaves_after_the_request_is_unknown(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twilio may have taken the message, and its list does not show it."""
    fault_after(monkeypatch)

    assert OutcomeUnknownError is type(failure())
    assert OutcomeUnknownError is type(failure())
    assert (["unknown"], 1) == (states(aws_wire), len(posts(twilio)))


def test_a_fault_of_ours_after_the_request_is_mended_by_the_list(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twilio has the message, whatever we made of its answer."""
    fault_after(monkeypatch)
    listed(twilio, monkeypatch, {})

    assert SID == send()["sid"]
    assert ["sent"] == states(aws_wire)


def test_what_was_lost_is_written_though_it_is_looked_for_in_vain(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Claim, list, equal keys, and the outcome: in this order, and each once."""
    twilio.script(faults.status(500), faults.OK)
    failure()

    assert ["PutItem", "Query", "PutItem"] == table(aws_wire)
    assert ["POST", "GET"] == [request.method for request in twilio.requests]
    (item,) = aws_wire.items.values()
    assert KEYED | {"connection": "default"} == json.loads(item["sms"]["S"])


# The look-up


@pytest.mark.usefixtures("twilio")
def test_a_message_in_the_list_is_the_answer(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the only one like it since the claim."""
    listed(twilio, monkeypatch, {})
    twilio.script(faults.status(500), faults.OK)

    assert SID == send()["sid"]
    assert {"To": [SMS["to"]], "From": ["+15551234567"], "PageSize": ["200"]} == twilio.requests[-1].parameters
    assert ["sent"] == states(aws_wire)


def test_the_message_of_the_first_request_is_found_after_a_repetition(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is older than the claim of the second, which was lost too."""
    twilio.script(faults.status(500), faults.OK)
    failure()
    for item in aws_wire.items.values():
        item["claimed_at"] = {"N": str(int(time.time()) - 600)}
    listed(twilio, monkeypatch, {"date_created": formatdate(time.time() - 300)})
    twilio.script(faults.status(500), faults.OK)

    assert SID == send(KEYED | {"on_unknown": "resend"})["sid"]
    assert ["sent"] == states(aws_wire)


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
        [{}, {"sid": "SM" + "2" * 32}],
        [],
        ["text"],
    ],
    ids=str,
)
def test_another_message_is_no_proof(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, messages: list[Any]
) -> None:
    """Nor is one of two, for one of them may be anybody's."""
    listed(twilio, monkeypatch, *messages)
    twilio.script(faults.status(500), faults.OK)

    assert OutcomeUnknownError is type(failure())
    assert ["unknown"] == states(aws_wire)


def test_a_message_of_another_key_is_no_proof(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It belongs to the key that sent it."""
    sent = send(KEYED | {"idempotency_key": "other"})
    listed(twilio, monkeypatch, {"sid": sent["sid"]})
    twilio.script(faults.status(500), faults.OK)

    assert OutcomeUnknownError is type(failure())
    assert ["sent", "unknown"] == sorted(states(aws_wire))


def test_a_message_that_may_be_another_keys_is_no_proof(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two equal messages that are both in doubt nobody knows whose it is."""
    twilio.script(faults.status(500), faults.OK, faults.status(500), faults.OK)
    failure(KEYED | {"idempotency_key": "other"})
    listed(twilio, monkeypatch, {})

    assert OutcomeUnknownError is type(failure())
    assert ["unknown", "unknown"] == states(aws_wire)


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
def test_a_message_that_another_key_sent_otherwise_is_no_proof(
    twilio: FaultServer,
    aws_wire: AwsWire,
    monkeypatch: pytest.MonkeyPatch,
    own: dict[str, str],
    another: dict[str, str],
    row: dict[str, str],
    became: str,
) -> None:
    """It looks the same in the list, though the inputs name different senders, or connections of one account."""
    aws_wire.secrets["twilio/other"] = aws_wire.secrets["twilio/default"]
    other = KEYED | another | {"idempotency_key": "other"}
    if became == "sent":
        row = row | {"sid": send(other)["sid"]}
    else:
        twilio.script(faults.status(500), faults.OK)
        failure(other)
    listed(twilio, monkeypatch, row)
    twilio.script(faults.status(500), faults.OK)

    assert OutcomeUnknownError is type(failure(KEYED | own))
    assert [became, "unknown"] == states(aws_wire)


def test_a_service_may_choose_the_sender(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the service, and any sender."""
    listed(twilio, monkeypatch, {"messaging_service_sid": SERVICE, "from": "+15005550001"})
    twilio.script(faults.status(500), faults.OK)

    assert SID == send(KEYED | {"messaging_service_sid": SERVICE})["sid"]
    assert {"To": [SMS["to"]], "PageSize": ["200"]} == twilio.requests[-1].parameters
    assert ["sent"] == states(aws_wire)


def test_another_service_is_no_proof(twilio: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a message that no service sent."""
    for service in ("MG" + "1" * 32, None):
        listed(twilio, monkeypatch, {"messaging_service_sid": service})
        twilio.script(faults.status(500), faults.OK)

        given = {"messaging_service_sid": SERVICE, "idempotency_key": str(service)}
        assert OutcomeUnknownError is type(failure(KEYED | given))


def test_what_a_template_makes_is_not_looked_for(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Nobody knows its text."""
    twilio.script(faults.status(500))
    template = {"to": SMS["to"], "content_sid": "HX" + "0" * 32, "idempotency_key": "key"}

    assert OutcomeUnknownError is type(failure(template))
    assert ["POST"] == [request.method for request in twilio.requests]
    assert ["PutItem", "PutItem"] == table(aws_wire)


def test_a_list_that_does_not_come_proves_nothing(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """It is asked for once; `resolve` asks again."""
    twilio.script(faults.status(500))

    assert OutcomeUnknownError is type(failure())
    assert ["POST", "GET"] == [request.method for request in twilio.requests]
    assert ["unknown"] == states(aws_wire)


@pytest.mark.parametrize("failing", [THROTTLED, (400, "AccessDeniedException")])
def test_without_the_other_keys_nothing_is_proven(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, failing: tuple[int, str]
) -> None:
    """The message that is found may be one of theirs."""
    listed(twilio, monkeypatch, {})
    twilio.script(faults.status(500), faults.OK)
    aws_wire.failures["Query"] = [failing, failing]

    assert OutcomeUnknownError is type(failure())
    assert ["unknown"] == states(aws_wire)


ROW = {
    "sid": SID,
    "to": SMS["to"],
    "from": "+15551234567",
    "body": "Hello",
    "direction": "outbound-api",
    "date_created": "Fri, 31 Dec 2100 12:00:00 +0000",
}


ODD_ROWS: list[dict[str, Any]] = [
    {},
    *(ROW | {"sid": sid} for sid in (None, 5, [SID], {"sid": SID})),
    *(ROW | {"date_created": created} for created in (5, True, ["Fri"], {"Fri": 1}, "", "Fri, 99 Dec 2100")),
    *(ROW | {name: None} for name in ("to", "from", "body", "direction")),
]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"messages": None},
        {"messages": {"0": ROW}},
        {"messages": [None]},
        {"messages": [[]]},
        *({"messages": [row]} for row in ODD_ROWS),
    ],
)
def test_a_malformed_list_proves_nothing(twilio: FaultServer, aws_wire: AwsWire, answer: Any) -> None:
    """And does not keep from being written that the outcome is unknown."""
    twilio.script(faults.status(500), faults.answer(json.dumps(answer).encode()))

    assert OutcomeUnknownError is type(failure())
    assert ["unknown"] == states(aws_wire)


def test_another_key_that_cannot_be_read_proves_nothing(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does not keep from being written that the outcome is unknown: a newer version may have written it."""
    send(KEYED | {"idempotency_key": "other"})
    aws_wire.items[ledger.key_id("default", "other")]["state"] = {"S": "paused"}
    listed(twilio, monkeypatch, {})
    twilio.script(faults.status(500), faults.OK)

    assert OutcomeUnknownError is type(failure())
    assert "unknown" == states(aws_wire)[-1]


def test_the_row_of_a_well_formed_list_is_a_proof(twilio: FaultServer) -> None:
    """Or the test above would prove nothing."""
    twilio.script(faults.status(500), faults.answer(json.dumps({"messages": [ROW]}).encode()))

    assert SID == send()["sid"]


# The status callback


def test_twilio_calls_back_with_the_id_of_the_key(twilio: FaultServer) -> None:
    """At the connection's webhook, and again where that does not answer."""
    send()
    callback = f"https://hooks.example.com/webhook/default?send={ledger.key_id('default', 'key')}#rc=2&rp=all"

    assert [callback] == posts(twilio)[0].form["StatusCallback"]


def test_a_connection_that_cannot_believe_a_callback_asks_for_none(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Twilio signs with the auth token, which it does not have."""
    secret = {name: value for name, value in API_KEY.items() if name != "auth_token"}
    aws_wire.secrets["twilio/default"] = json.dumps(secret)
    send()

    assert "StatusCallback" not in posts(twilio)[0].form


def test_without_a_key_no_callback_is_asked_for(twilio: FaultServer) -> None:
    """There is nothing to prove."""
    send(SMS)

    assert "StatusCallback" not in posts(twilio)[0].form


def test_the_answer_replaces_what_a_callback_told_before(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the whole message, and nobody has to be told any more."""
    while_sending(twilio, monkeypatch, prove)
    message = send()
    (item,) = aws_wire.items.values()

    assert ("sent", message) == (item["state"]["S"], json.loads(item["message"]["S"]))
    assert "unsettled" not in item


@pytest.mark.parametrize("fault", [faults.OPTED_OUT, faults.status(500)], ids=["refused", "lost"])
def test_what_a_callback_told_is_asked_for_in_full(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, fault: faults.Fault
) -> None:
    """The caller gets Twilio's message, though the answer did not say so."""
    while_sending(twilio, monkeypatch, prove)
    twilio.script(fault, faults.OK)
    message = send()

    assert (SID, "outbound-api") == (message["sid"], message["direction"])
    assert (["sent"], 1) == (states(aws_wire), len(posts(twilio)))


@pytest.mark.parametrize("own", [{"status_callback": "https://example.com/"}, {"application_sid": "AP" + "0" * 32}])
def test_a_callback_of_the_callers_own_stays(twilio: FaultServer, own: dict[str, str]) -> None:
    """The stack's gives way."""
    send(KEYED | own)

    assert own.get("status_callback") == posts(twilio)[0].form.get("StatusCallback", [None])[0]


def test_a_callback_before_the_answer_is_the_answer(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It proved that the message exists, whatever the answer would have said."""
    normal = twilio._account.reply

    def call_back(request: Request) -> Reply:
        if request.method == "POST":
            (item,) = aws_wire.items.values()
            proof = f'{{"sid": "{SID}", "status": "sent"}}'
            changes = {
                "state": {"S": "sent"},
                "revision": {"S": "callback"},
                "message": {"S": proof},
                "sid": {"S": SID},
            }
            aws_wire.items[item["id"]["S"]] = item | changes
        return normal(request)

    monkeypatch.setattr(twilio._account, "reply", call_back)
    twilio.script(faults.status(500), faults.NOT_FOUND)

    assert {"sid": SID, "status": "sent"} == send()
    assert 1 == len(posts(twilio))


def test_a_rate_limit_is_not_unknown(twilio: FaultServer, aws_wire: AwsWire, delays: list[float]) -> None:
    """Twilio did not process it, so the same key may go again."""
    twilio.script(*[faults.too_many()] * 3, faults.OK)

    assert TwilioRateLimitError is type(failure())
    assert ["not_sent"] == states(aws_wire)
    assert "sid" in send()
    assert 2 == len(delays)
