"""A send with a key, from the handler to the wire: what is written, what is sent, and what is found out."""

import time
from email.utils import formatdate
from typing import Any

import pytest
import send_sms
from twilio_connector import aws
from twilio_connector.errors import (
    ConnectorError,
    OutcomeUnknownError,
    RecipientOptedOutError,
    SendInProgressError,
    ServiceUnavailableError,
    TwilioRateLimitError,
)

from tests.aws_wire import LOST, PASS, AwsWire
from tests.conftest import Context
from tests.faults import FaultServer, faults
from tests.faults.wire import Reply, Request

SMS = {"to": "+15005550006", "message": "Hello"}
KEYED = SMS | {"idempotency_key": "key"}
THROTTLED = (400, "ProvisionedThroughputExceededException")
SID = "SM" + "1" * 32


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
    monkeypatch.setattr("twilio_connector.client._SESSION", None)

    assert "InternalError" == type(failure()).__name__
    assert ["not_sent"] == states(aws_wire)
    assert [] == posts(twilio)


# The look-up


@pytest.mark.usefixtures("twilio")
def test_a_message_in_the_list_is_the_answer(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the only one like it since the claim."""
    listed(twilio, monkeypatch, {})
    twilio.script(faults.status(500), faults.OK)

    assert SID == send()["sid"]
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


# The status callback


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
