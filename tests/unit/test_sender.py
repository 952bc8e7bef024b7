"""A send with an idempotency key, from the handler to the wire: its ledger writes, its requests and its outcome."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests
import send_sms
from twilio_connector import http
from twilio_connector.api import client
from twilio_connector.aws import client as aws_client
from twilio_connector.errors import (
    ConnectorError,
    IdempotencyConflictError,
    OutcomeUnknownError,
    RecipientOptedOutError,
    SendInProgressError,
    ServiceUnavailableError,
    TwilioRateLimitError,
)
from twilio_connector.messaging import idempotency, idempotency_store

from tests.aws_wire import LOST, AwsWire
from tests.builders import posts
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
    """Call send_sms, by default with a keyed message, and return its result."""
    return send_sms.handler(given or KEYED, context or Context())


def failure(given: dict[str, Any] | None = None, context: Context | None = None) -> ConnectorError:
    """Call send_sms, by default with a keyed message, and return the error that it raises."""
    with pytest.raises(ConnectorError) as caught:
        send(given, context)
    return caught.value


def table(aws_wire: AwsWire) -> list[str]:
    """Return the operations on the ledger, in order."""
    return [name for name, _ in aws_wire.calls if name.endswith(("Item", "Items", "Query"))]


def states(aws_wire: AwsWire) -> list[str]:
    """Return the states of the ledger's records."""
    return [item["state"]["S"] for item in aws_wire.items.values()]


def while_sending(twilio: FaultServer, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> list[Any]:
    """Call `act` while the first request is at Twilio, and return the list that will hold its result."""
    normal = twilio._account.reply
    came: list[Any] = []

    def reply(request: Request) -> Reply:
        if request.method == "POST" and not came:
            came.append(act())
        return normal(request)

    monkeypatch.setattr(twilio._account, "reply", reply)
    return came


def prove() -> None:
    """Write to the ledger that a status callback proved the message, as the webhook does."""
    book = idempotency_store.IdempotencyStore("ledger")
    record = book.find(idempotency.record_id("default", "key"))
    assert record is not None
    book.write(idempotency.Confirmed({"sid": SID, "status": "sent"}), record)


# Calls to AWS


def test_without_a_key_the_ledger_is_not_asked(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A send without a key does not use the ledger: its only AWS call is one to Secrets Manager."""
    for _ in range(2):
        send(SMS)

    assert ["GetSecretValue"] == [name for name, _ in aws_wire.calls]
    assert 2 == len(posts(twilio))


def test_a_key_costs_two_writes(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A send with a key writes the claim before the request, and the outcome with its SID after it."""
    assert SMS["to"] == send()["to"]

    assert ["PutItem", "TransactWriteItems"] == table(aws_wire)
    assert ["sent"] == states(aws_wire)
    assert 1 == len(posts(twilio))


def test_a_dry_run_claims_nothing(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A dry run with a key shows the status callback that would be set, and neither claims the key nor sends."""
    form = send(KEYED | {"dry_run": True})["request"]["form"]

    assert form["StatusCallback"].startswith("https://hooks.example.com/webhook/default?send=")
    assert form["StatusCallback"].endswith("#rc=2&rp=all")
    assert ([], []) == (table(aws_wire), twilio.requests)


# Claiming


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("why", [THROTTLED, (400, "AccessDeniedException"), (500, "InternalServerError")])
def test_what_cannot_be_claimed_is_not_sent(twilio: FaultServer, aws_wire: AwsWire, why: tuple[int, str]) -> None:
    """Nothing is sent if the claim cannot be written, for any error of DynamoDB."""
    aws_wire.failures["PutItem"] = [why] * 4

    assert ServiceUnavailableError is type(failure())
    assert [] == posts(twilio)


@pytest.mark.usefixtures("delays")
def test_a_claim_whose_answer_is_lost_is_our_own(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """If the answer to a claim is lost, the retry recognises the claim as its own, and the message is sent once."""
    aws_wire.failures["PutItem"] = [LOST]

    assert "sid" in send()
    assert 1 == len(posts(twilio))


@pytest.mark.usefixtures("delays")
def test_a_claim_that_stands_unknown_to_us_is_taken_back(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A claim that was written although the write reported an error is withdrawn. So the next call need not wait."""
    aws_wire.failures["PutItem"] = [LOST, THROTTLED]

    assert ServiceUnavailableError is type(failure())
    assert ["not_sent"] == states(aws_wire)
    assert "sid" in send()
    assert 1 == len(posts(twilio))


@pytest.mark.parametrize("seconds", [8, 14.9])
def test_what_the_time_does_not_cover_is_not_begun(twilio: FaultServer, aws_wire: AwsWire, seconds: float) -> None:
    """A send is not begun unless claim, request and the write of the outcome fit in the time left."""
    assert ServiceUnavailableError is type(failure(context=Context(seconds)))
    assert ([], []) == (table(aws_wire), posts(twilio))


def test_a_claim_that_took_the_time_is_not_sent(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If too little time is left after the claim, no request is made, and the ledger notes that nothing was sent."""
    monkeypatch.setattr(aws_client, "SECONDS", 0)

    assert ServiceUnavailableError is type(failure(context=Context(5.5)))
    assert (["not_sent"], []) == (states(aws_wire), posts(twilio))


@pytest.mark.parametrize("wrong", [{"to": "nobody"}, {"idempotency_key": "a b"}, {"connection": "none"}])
def test_what_is_wrong_claims_nothing(twilio: FaultServer, aws_wire: AwsWire, wrong: dict[str, str]) -> None:
    """An invalid input claims nothing, so that its key stays free for the corrected input."""
    failure(KEYED | wrong)

    assert ([], []) == (table(aws_wire), twilio.requests)


def test_the_claim_stands_before_the_request(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim is written before the request, so that a second caller finds it even if the first one crashes."""
    came = while_sending(twilio, monkeypatch, lambda: states(aws_wire))
    send()

    assert [["sending"]] == came


# Later calls with the same key


@pytest.mark.parametrize("again", [KEYED, dict(reversed(KEYED.items())), KEYED | {"on_unknown": "resend"}])
def test_what_was_sent_is_answered_with_the_first_result(
    twilio: FaultServer, aws_wire: AwsWire, again: dict[str, Any]
) -> None:
    """A later call gets the complete first result without a request to Twilio. The order of fields does not matter."""
    first = send()

    assert [first, first] == [send(again), send(again)]
    assert 1 == len(twilio.requests)
    assert "Query" not in table(aws_wire)


def test_a_key_is_for_one_input(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A used key with another input is a conflict, whether the first message was sent, not sent or unknown."""
    twilio.script(faults.OK, faults.OPTED_OUT, faults.status(500), faults.OK)
    for key in ("sent", "not_sent", "unknown"):
        given = KEYED | {"idempotency_key": key}
        send(given) if key == "sent" else failure(given)

        assert IdempotencyConflictError is type(failure(given | {"message": "Bye"}))
    assert ["sent", "not_sent", "unknown"] == states(aws_wire)
    assert 3 == len(posts(twilio))


def test_a_key_is_for_one_connection(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The same key in two connections is two keys, each with a message of its own."""
    aws_wire.secrets["twilio/other"] = aws_wire.secrets["twilio/default"]
    sids = {send(KEYED | connection)["sid"] for connection in ({}, {"connection": "other"}, {"connection": "default"})}

    assert 2 == len(sids) == len(posts(twilio))


@pytest.mark.parametrize("more", [{}, {"on_unknown": "resend"}])
def test_what_is_being_sent_is_not_sent_again(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, more: dict[str, str]
) -> None:
    """A second caller gets SendInProgressError while the first one sends, even with `on_unknown: resend`."""
    came = while_sending(twilio, monkeypatch, lambda: type(failure(KEYED | more)))

    assert "sid" in send()
    assert [SendInProgressError] == came
    assert (["sent"], 1) == (states(aws_wire), len(posts(twilio)))


@pytest.mark.usefixtures("delays")
def test_what_was_begun_and_never_ended_is_unknown(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A send whose lease expired is unknown, because its function may have crashed before or after the request."""
    aws_wire.failures["TransactWriteItems"] = [THROTTLED, THROTTLED]
    send()
    for item in aws_wire.items.values():
        item["lease_until"] = {"N": str(int(time.time()) - 1)}

    assert OutcomeUnknownError is type(failure())
    assert (["unknown"], 1) == (states(aws_wire), len(posts(twilio)))


def test_a_key_that_expired_is_a_new_one(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """An expired key can be used for another message, even if DynamoDB has not deleted its item yet."""
    send()
    for item in aws_wire.items.values():
        item["expires_at"] = {"N": str(int(time.time()))}
    send(KEYED | {"message": "Another text"})

    assert 2 == len(posts(twilio))


def test_a_key_may_be_a_header(twilio: FaultServer, aws_wire: AwsWire, event: LoadEvent) -> None:
    """The key may be in a header, or both in the header and in the body if the two are equal."""
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
    """Different keys in header and body are refused, because the connector cannot know which one is meant."""
    request = event("send_sms_api")
    headers = {"headers": request["headers"] | {"idempotency-key": "header"}}
    answer = send_sms.handler(request | headers | {"body": json.dumps(KEYED)}, Context())

    assert (400, "idempotency_key") == (answer["statusCode"], json.loads(answer["body"])["errors"][0]["field"])
    assert ([], []) == (table(aws_wire), twilio.requests)


@pytest.mark.parametrize("error", ["OutcomeUnknownError", "Sandbox.Timedout"])
def test_an_invocation_that_may_have_sent_is_not_made_again(
    twilio: FaultServer, aws_wire: AwsWire, event: LoadEvent, error: str
) -> None:
    """A failure record whose invocation may have sent is not sent again. If its input has a key, the ledger decides."""
    record = event("send_sms_failure_record")
    record["responsePayload"]["errorType"] = error

    assert [OutcomeUnknownError] * 2 == [type(failure(record)), type(failure(record))]
    assert (["unknown"], []) == (states(aws_wire), posts(twilio))
    record["requestPayload"]["idempotency_key"] = "own"
    assert "sid" in send(record)


def test_an_invocation_that_may_have_sent_is_made_again_on_purpose(
    twilio: FaultServer, aws_wire: AwsWire, event: LoadEvent
) -> None:
    """A failure record with `resend` is sent. A refusal leaves the outcome unknown, as the first may have been sent."""
    record = event("send_sms_failure_record")
    record["responsePayload"]["errorType"] = "Sandbox.Timedout"
    record["requestPayload"]["on_unknown"] = "resend"
    twilio.script(faults.OPTED_OUT)

    assert OutcomeUnknownError is type(failure(record))
    assert (["unknown"], 1) == (states(aws_wire), len(posts(twilio)))


# Outcomes


@pytest.mark.usefixtures("delays")
def test_the_last_write_is_not_needed(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The caller gets the message even if the outcome cannot be written, because Twilio has accepted the message."""
    aws_wire.failures["TransactWriteItems"] = [THROTTLED, THROTTLED]

    assert "sid" in send()
    assert ["sending"] == states(aws_wire)
    assert SendInProgressError is type(failure())
    assert 1 == len(posts(twilio))


def test_what_is_refused_is_tried_anew(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """After a refusal by Twilio, a later call with the key sends, because nothing was sent before."""
    twilio.script(faults.OPTED_OUT, faults.OK)

    assert RecipientOptedOutError is type(failure())
    assert ["not_sent"] == states(aws_wire)
    assert "sid" in send()
    assert 2 == len(posts(twilio))


def test_an_unknown_outcome_is_not_repeated(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """After an unknown outcome, each later call with the key gets OutcomeUnknownError and sends nothing."""
    twilio.script(faults.status(500), faults.OK)

    assert [OutcomeUnknownError] * 3 == [type(failure()) for _ in range(3)]
    assert ["unknown"] == states(aws_wire)
    assert 1 == len(posts(twilio))


def test_an_unknown_outcome_is_repeated_on_purpose(twilio: FaultServer) -> None:
    """`resend` means at least once. A refusal settles nothing, because the first request may have been carried out."""
    given = KEYED | {"on_unknown": "resend"}
    twilio.script(faults.status(500), faults.OPTED_OUT, faults.OK)

    assert OutcomeUnknownError is type(failure(given))
    assert OutcomeUnknownError is type(failure(given))  # the first request may still have been carried out
    assert "sid" in send(given)
    assert 3 == len(posts(twilio))


def test_what_a_fault_of_ours_leaves_is_not_sent(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the connector fails before the request, the key is `not_sent`, because it is certain that nothing was sent."""
    monkeypatch.setattr("twilio_connector.api.client._encoded", None)

    assert "InternalError" == type(failure()).__name__
    assert ["not_sent"] == states(aws_wire)
    assert [] == posts(twilio)


def fault_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise an exception in the connector after each POST request to Twilio."""
    exchange = client._SESSION.exchange

    def faulty(request: requests.PreparedRequest, **terms: Any) -> http.Reply:
        reply = exchange(request, **terms)
        if request.method == "POST":
            raise RuntimeError
        return reply

    monkeypatch.setattr(client._SESSION, "exchange", faulty)


def test_what_a_fault_of_ours_leaves_after_the_request_is_unknown(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the connector fails after the request, the outcome is unknown, as Twilio may have accepted the message."""
    fault_after(monkeypatch)

    assert OutcomeUnknownError is type(failure())
    assert OutcomeUnknownError is type(failure())
    assert (["unknown"], 1) == (states(aws_wire), len(posts(twilio)))


def test_what_was_lost_is_looked_for_by_nobody_in_the_request(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """After a lost answer, the call does not search Twilio's list, which may not have the message yet.

    It writes claim and outcome once each, and the ledger keeps the input.
    """
    twilio.script(faults.status(500), faults.OK)
    failure()

    assert ["PutItem", "PutItem"] == table(aws_wire)
    assert ["POST"] == [request.method for request in twilio.requests]
    (item,) = aws_wire.items.values()
    assert KEYED | {"connection": "default"} == json.loads(item["sms"]["S"])


# The status callback


def test_twilio_calls_back_with_the_id_of_the_key(twilio: FaultServer) -> None:
    """Twilio calls the connection's webhook with the key's id, and retries the call if the webhook does not answer."""
    send()
    callback = f"https://hooks.example.com/webhook/default?send={idempotency.record_id('default', 'key')}#rc=2&rp=all"

    assert [callback] == posts(twilio)[0].form["StatusCallback"]


def test_a_connection_that_cannot_believe_a_callback_asks_for_none(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A connection without the auth token, with which Twilio signs, sets no status callback: it could not check one."""
    secret = {name: value for name, value in API_KEY.items() if name != "auth_token"}
    aws_wire.secrets["twilio/default"] = json.dumps(secret)
    send()

    assert "StatusCallback" not in posts(twilio)[0].form
    assert [False] == [item["calls_back"]["BOOL"] for item in aws_wire.items.values()]


@pytest.mark.parametrize("signer", [{"auth_token": "0" * 32}, {"shared_keys": {"SK" + "1" * 32: "not-a-secret"}}])
def test_a_connection_that_can_check_a_signature_asks_for_a_callback(
    twilio: FaultServer, aws_wire: AwsWire, signer: dict[str, Any]
) -> None:
    """A connection with an auth token or a SharedKey sets a status callback, because it can check the signature."""
    secret = {name: value for name, value in API_KEY.items() if name != "auth_token"}
    aws_wire.secrets["twilio/default"] = json.dumps(secret | signer)
    send()

    assert "StatusCallback" in posts(twilio)[0].form
    assert [True] == [item["calls_back"]["BOOL"] for item in aws_wire.items.values()]


def test_without_a_key_no_callback_is_asked_for(twilio: FaultServer) -> None:
    """A send without a key sets no status callback, because the callback would have nothing to prove."""
    send(SMS)

    assert "StatusCallback" not in posts(twilio)[0].form


def test_the_answer_replaces_what_a_callback_told_before(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twilio's answer replaces the message of an earlier callback: it is complete, and no report is needed any more."""
    while_sending(twilio, monkeypatch, prove)
    message = send()
    (item,) = aws_wire.items.values()

    assert ("sent", message) == (item["state"]["S"], json.loads(item["message"]["S"]))
    assert "unsettled" not in item


@pytest.mark.parametrize("fault", [faults.OPTED_OUT, faults.status(500)], ids=["refused", "lost"])
def test_what_a_callback_told_is_asked_for_in_full(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, fault: faults.Fault
) -> None:
    """If a callback proved the message, the caller gets Twilio's whole message, although the request itself failed."""
    while_sending(twilio, monkeypatch, prove)
    twilio.script(fault, faults.OK)
    message = send()

    assert (SID, "outbound-api", "callback") == (message["sid"], message["direction"], message["evidence"])
    assert (["sent"], 1) == (states(aws_wire), len(posts(twilio)))


@pytest.mark.parametrize("own", [{"status_callback": "https://example.com/"}, {"application_sid": "AP" + "0" * 32}])
def test_a_callback_of_the_callers_own_stays(twilio: FaultServer, aws_wire: AwsWire, own: dict[str, str]) -> None:
    """A caller's own callback or application is kept, and the ledger notes that no callback comes to the stack."""
    send(KEYED | own)

    assert [False] == [item["calls_back"]["BOOL"] for item in aws_wire.items.values()]

    assert own.get("status_callback") == posts(twilio)[0].form.get("StatusCallback", [None])[0]


def test_a_callback_before_the_answer_is_the_answer(
    twilio: FaultServer, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a callback proved the message and Twilio then answers with errors, the caller gets the callback's message."""
    normal = twilio._account.reply

    def call_back(request: Request) -> Reply:
        if request.method == "POST":
            (item,) = aws_wire.items.values()
            proof = f'{{"sid": "{SID}", "status": "sent"}}'
            changes = {
                "state": {"S": "sent"},
                "revision": {"S": "callback"},
                "message": {"S": proof},
                "evidence": {"S": "callback"},
                "sid": {"S": SID},
            }
            aws_wire.items[item["id"]["S"]] = item | changes
        return normal(request)

    monkeypatch.setattr(twilio._account, "reply", call_back)
    twilio.script(faults.status(500), faults.NOT_FOUND)

    assert {"sid": SID, "status": "sent", "evidence": "callback"} == send()
    assert 1 == len(posts(twilio))


def test_a_rate_limit_is_not_unknown(twilio: FaultServer, aws_wire: AwsWire, delays: list[float]) -> None:
    """After a rate limit, a later call with the key sends, because Twilio did not process the first request."""
    twilio.script(*[faults.too_many()] * 3, faults.OK)

    assert TwilioRateLimitError is type(failure())
    assert ["not_sent"] == states(aws_wire)
    assert "sid" in send()
    assert 2 == len(delays)
