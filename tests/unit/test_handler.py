"""Does every caller get an answer in its own shape, and in time?"""

import base64
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from twilio_connector.api.client import RESERVE_SECONDS, Twilio
from twilio_connector.errors import (
    ConnectorError,
    IdempotencyConflictError,
    InternalError,
    InvalidInputError,
    OutcomeUnknownError,
    ResponseTooLargeError,
    SenderQueueFullError,
    SendInProgressError,
    ServiceUnavailableError,
    TwilioRateLimitError,
    TwilioRejectedError,
)
from twilio_connector.invocation.caller import Caller
from twilio_connector.invocation.handler import MAX_ANSWER_BYTES, Handler, lambda_handler
from twilio_connector.validation.model import Input

from tests.aws_wire import AwsWire
from tests.conftest import Context, LoadEvent
from tests.faults import FaultServer, faults
from tests.unit.conftest import Clock

MARKER = "xqzjvmarker"
FIFO = "arn:aws:sqs:us-east-1:123456789012:parcels.fifo"
STANDARD = "arn:aws:sqs:us-east-1:123456789012:parcels"


class Send(Input, frozen=True, kw_only=True):
    """The least that can be sent."""

    to: str = ""
    message: str = ""
    message_sid: str | None = None

    @property
    def read_only(self) -> bool:
        """It changes something."""
        return False


class Read(Send, frozen=True, kw_only=True):
    """The same, but it changes nothing."""

    @property
    def read_only(self) -> bool:
        """It changes nothing."""
        return True


@lambda_handler(Send, status=lambda _: 201)
def send(value: Send, twilio: Twilio, _: Caller) -> Any:
    """Send a message whose text is the input's."""
    return {"sent": twilio.request("POST", "Messages.json", form={"Body": value.message}).status}


def making(action: Callable[[Send], Any], kind: type[Send] = Send) -> Handler:
    """Return the handler of an action without Twilio."""

    def act(value: Any, *_: Any) -> Any:
        return action(value)

    return lambda_handler(kind)(act)


def failing(error: Exception) -> Handler:
    """Return the handler of an action that fails."""

    def fail(_: Send) -> None:
        raise error

    return making(fail)


def batch(*records: tuple[str, str, str | None]) -> dict[str, Any]:
    """Return an SQS batch of ids, texts and groups."""
    return {
        "Records": [
            {
                "messageId": name,
                "eventSource": "aws:sqs",
                "eventSourceARN": FIFO if group else STANDARD,
                "body": json.dumps({"message": text}) if text != "broken" else "{",
                "attributes": {"MessageGroupId": group} if group else {},
            }
            for name, text, group in records
        ]
    }


def given_back(answer: dict[str, Any]) -> list[str]:
    """Return the ids that SQS is to deliver again."""
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


# Results


@pytest.mark.parametrize("name", ["send_sms", "send_sms_eventbridge", "send_sms_sns", "send_sms_failure_record"])
def test_an_event_gets_the_result(event: LoadEvent, context: Context, name: str) -> None:
    """The result is returned unchanged."""
    handler = making(lambda value: {"to": value.to, "text": value.message})

    assert {"to": "+15005550006", "text": "Your parcel is on its way."} == handler(event(name), context)


@pytest.mark.parametrize("name", ["send_sms_api", "send_sms_api_payload_1", "send_sms_function_url"])
def test_an_api_caller_gets_json(twilio: FaultServer, event: LoadEvent, context: Context, name: str) -> None:
    """The answer has the action's status."""
    assert {
        "statusCode": 201,
        "headers": {"Content-Type": "application/json"},
        "body": '{"sent":201}',
    } == send(event(name), context)
    assert [["Your parcel is on its way."]] == [request.form["Body"] for request in twilio.requests]


def test_a_result_may_be_nothing(event: LoadEvent, context: Context) -> None:
    """Twilio answers 204 to a deletion."""
    handler = making(lambda _: None)

    assert None is handler({}, context)
    assert "null" == handler(event("send_sms_api"), context)["body"]


def test_a_batch_gets_nothing_back_when_all_went_well(twilio: FaultServer, event: LoadEvent, context: Context) -> None:
    """Each record is an input of its own."""
    assert {"batchItemFailures": []} == send(event("send_sms_sqs"), context)
    assert 3 == len(twilio.requests)


def test_a_handler_keeps_its_name() -> None:
    """AWS's tools show it."""
    assert ("send", "Send a message whose text is the input's.") == (send.__name__, send.__doc__)


# Errors


def test_an_event_gets_the_exception(twilio: FaultServer, context: Context) -> None:
    """Lambda reports its class name."""
    twilio.script(faults.status(400, twilio_code=21211, message=MARKER))

    with pytest.raises(TwilioRejectedError) as failure:
        send({"message": "x"}, context)
    assert "TwilioRejectedError" == type(failure.value).__name__
    assert MARKER not in str(failure.value)


def test_an_api_caller_gets_a_problem(twilio: FaultServer, event: LoadEvent, context: Context) -> None:
    """It has all that is known about the error, and Twilio's message."""
    twilio.script(faults.status(422, twilio_code=21211, message="The number is not valid"))
    answer = send(event("send_sms_api"), context)

    request_id = "RQ" + "0" * 32
    reason = f"Twilio refused the request (HTTP 422, Twilio code 21211, request {request_id})"
    assert (422, {"Content-Type": "application/problem+json"}) == (answer["statusCode"], answer["headers"])
    assert {
        "type": "urn:twilio-connector:error:TwilioRejectedError",
        "title": "TwilioRejectedError",
        "status": 422,
        "detail": f"{reason}: The number is not valid",
        "retryable": False,
        "twilio_code": 21211,
        "twilio_status": 422,
        "twilio_request_id": request_id,
    } == json.loads(answer["body"])


def test_invalid_input_has_its_fields(event: LoadEvent, context: Context) -> None:
    """The problem lists each field with its message."""
    request = event("send_sms_api") | {"body": '{"message": 5}', "rawQueryString": "too=1"}
    problem = json.loads(send(request, context)["body"])

    assert (400, False) == (problem["status"], problem["retryable"])
    assert [
        {"field": "message", "message": "must be text"},
        {"field": "too", "message": "is not known; did you mean to?"},
    ] == problem["errors"]


@pytest.mark.parametrize(
    ("seconds", "header"), [("0", "0"), ("1", "1"), ("86400", "86400"), (None, "1"), ("soon", "1"), ("-1", "1")]
)
@pytest.mark.usefixtures("delays", "hurried")
def test_an_api_caller_is_told_when_to_try_again(
    twilio: FaultServer,
    event: LoadEvent,
    context: Context,
    clock: Clock,  # noqa: ARG001 no time passes, however slow the machine is
    seconds: str | None,
    header: str,
) -> None:
    """The time is Twilio's, or else one second."""
    twilio.script(faults.too_many(seconds))
    context.seconds = RESERVE_SECONDS + 0.9
    answer = send(event("send_sms_api"), context)

    assert (429, header) == (answer["statusCode"], answer["headers"].get("Retry-After"))


def test_a_part_of_a_second_is_a_whole_one(event: LoadEvent, context: Context) -> None:
    """Retry-After takes whole seconds."""
    answer = failing(TwilioRateLimitError("too many", retry_after=1.2))(event("send_sms_api"), context)

    assert "2" == answer["headers"]["Retry-After"]


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (SenderQueueFullError("full"), "60"),
        (SendInProgressError("in progress"), "1"),
        (TwilioRateLimitError("too many", retry_after=0), "0"),
        (SenderQueueFullError("full", retry_after=5), "5"),
        (ServiceUnavailableError("away"), None),
        (IdempotencyConflictError("used"), None),
        (OutcomeUnknownError("unknown"), None),
    ],
    ids=repr,
)
def test_only_whoever_may_wait_is_told_to(
    event: LoadEvent, context: Context, error: ConnectorError, header: str | None
) -> None:
    """If Twilio gives no time, the error's own is used."""
    answer = failing(error)(event("send_sms_api"), context)

    assert (error.http_status, header) == (answer["statusCode"], answer["headers"].get("Retry-After"))


@pytest.mark.parametrize("name", ["send_sms_api", "send_sms_api_payload_1", "send_sms_function_url"])
@pytest.mark.parametrize("body", ["{", "[]", "null", "5", '"text"'])
def test_a_body_that_is_no_input_is_a_problem(event: LoadEvent, context: Context, name: str, body: str) -> None:
    """API Gateway would hide an exception behind a 500."""
    answer = send(event(name) | {"body": body}, context)

    assert (400, "InvalidInputError") == (answer["statusCode"], json.loads(answer["body"])["title"])


def test_a_malformed_request_is_a_problem(event: LoadEvent, context: Context) -> None:
    """The envelope itself may be malformed too."""
    answer = send(event("send_sms_api") | {"headers": ["a"]}, context)

    assert 400 == answer["statusCode"]


@pytest.mark.parametrize(
    "event",
    [{"Records": [{"eventSource": "aws:s3"}]}, {"Records": []}, {"requestContext": {"elb": {}}}, "text", None],
    ids=repr,
)
def test_an_event_that_is_not_known_is_refused(context: Context, event: object) -> None:
    """The connector does not guess."""
    with pytest.raises(InvalidInputError):
        send(event, context)


def test_a_batch_that_is_malformed_is_refused(context: Context) -> None:
    """The error is InvalidInputError, as for an input."""
    event = batch(("1", "x", "g"))
    event["Records"][0]["attributes"] = None

    with pytest.raises(InvalidInputError):
        send(event, context)


def test_our_own_fault_after_a_change_is_an_unknown_outcome(twilio: FaultServer, context: Context) -> None:
    """Any other error, or a redelivery, could make the caller send twice."""

    @lambda_handler(Send)
    def send_and_fail(value: Send, client: Twilio, _: Caller) -> None:
        client.request("POST", "Messages.json", form={"Body": value.message})
        raise ValueError(MARKER)

    with pytest.raises(OutcomeUnknownError, match="the function's log shows where"):
        send_and_fail({"message": "Hello"}, context)
    assert {"batchItemFailures": []} == send_and_fail(batch(("1", "Hello", None)), context)
    assert 2 == len(twilio.requests)


@pytest.mark.parametrize("error", [ValueError(MARKER), KeyError(MARKER), RecursionError(MARKER), TypeError(MARKER)])
def test_our_own_fault_hides_its_details(event: LoadEvent, context: Context, error: Exception) -> None:
    """The exception's message may contain any value; only the log shows where it happened."""
    handler = failing(error)
    answer = handler(event("send_sms_api"), context)
    with pytest.raises(InternalError) as failure:
        handler({}, context)

    assert (500, "InternalError") == (answer["statusCode"], json.loads(answer["body"])["title"])
    assert MARKER not in f"{answer}{failure.value}"
    assert (None, True) == (failure.value.__cause__, failure.value.__suppress_context__)


def test_a_missing_setting_is_our_own_fault(
    event: LoadEvent, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the missing variable."""
    monkeypatch.delenv("CONNECTION_PREFIX")
    answer = send(event("send_sms_api"), context)

    assert "CONNECTION_PREFIX: is missing" in json.loads(answer["body"])["detail"]


def test_a_result_that_cannot_be_written_is_our_own_fault(event: LoadEvent, context: Context) -> None:
    """The connector finds it before Lambda's runtime does."""
    handler = making(lambda _: {"a": object()})

    assert 500 == handler(event("send_sms_api"), context)["statusCode"]
    with pytest.raises(InternalError):
        handler({}, context)


# Batches


def test_a_bad_record_does_not_touch_the_others(twilio: FaultServer, context: Context) -> None:
    """Only that record is delivered again."""
    event = batch(("1", "a", None), ("2", "broken", None), ("3", "fault=status_400", None), ("4", "b", None))

    assert ["2", "3"] == given_back(send(event, context))
    assert [["a"], ["fault=status_400"], ["b"]] == [request.form["Body"] for request in twilio.requests]


@pytest.mark.parametrize(
    "fault", ["status_500", "status_503", "reset_after_read", "html_502", "status_408", "status_300"]
)
def test_a_record_whose_outcome_is_unknown_is_not_given_back(twilio: FaultServer, context: Context, fault: str) -> None:
    """Another delivery could send it twice."""
    event = batch(("1", f"fault={fault}", None), ("2", "b", None))

    assert [] == given_back(send(event, context))
    assert 2 == len(twilio.requests)


def test_what_was_provably_not_processed_is_given_back(twilio: FaultServer, context: Context) -> None:
    """The client tries it three times before."""
    event = batch(("1", "fault=status_429_zero", None))

    assert ["1"] == given_back(send(event, context))
    assert 3 == len(twilio.requests)


def test_records_of_a_group_do_not_overtake_each_other(twilio: FaultServer, context: Context) -> None:
    """If one is delivered again, the rest of its group is too, unsent. Other groups go on."""
    event = batch(
        ("1", "a1", "a"),
        ("2", "fault=status_400", "a"),
        ("3", "b1", "b"),
        ("4", "a3", "a"),
        ("5", "broken", "b"),
        ("6", "b3", "b"),
        ("7", "c1", "c"),
    )

    assert ["2", "4", "5", "6"] == given_back(send(event, context))
    assert [["a1"], ["fault=status_400"], ["b1"], ["c1"]] == [request.form["Body"] for request in twilio.requests]


def test_an_unknown_outcome_does_not_hold_its_group(twilio: FaultServer, context: Context) -> None:
    """It is not delivered again, so the records behind it do not overtake it."""
    event = batch(("1", "fault=status_500", "a"), ("2", "a2", "a"))

    assert [] == given_back(send(event, context))
    assert 2 == len(twilio.requests)


def test_records_without_time_are_given_back_unsent(twilio: FaultServer) -> None:
    """The deadline is the invocation's."""
    event = batch(("1", "a", None), ("2", "b", None))

    assert ["1", "2"] == given_back(send(event, Context(RESERVE_SECONDS + 0.1)))
    assert [] == twilio.requests


def test_our_own_fault_in_a_record_is_given_back(context: Context) -> None:
    """The queue keeps it until the fault is fixed."""
    assert ["1"] == given_back(failing(ValueError())(batch(("1", "a", None)), context))


def test_an_action_without_queue_takes_one_record_after_the_other(context: Context) -> None:
    """Twilio's limit on concurrent requests is not known for every action."""
    texts: list[str] = []
    busy = threading.Lock()

    def act(value: Send) -> None:
        with busy:
            texts.append(f"{value.message} {threading.active_count() - before}")

    before = threading.active_count()
    event = batch(*((str(number), str(number), None) for number in range(5)))

    assert [] == given_back(making(act)(event, context))
    assert [f"{number} 1" for number in range(5)] == texts


# Keys


class KeyedSend(Send, frozen=True, kw_only=True):
    """A send that knows keys."""

    keyed_by_delivery = True

    idempotency_key: str | None = None


def asked(kind: type[Send], event: Any, context: Context) -> tuple[str | None, Caller]:
    """Return the key and the caller that an action gets."""
    found: list[tuple[str | None, Caller]] = []

    def note(value: Send, _: Twilio, caller: Caller) -> None:
        found.append((getattr(value, "idempotency_key", None), caller))

    lambda_handler(kind)(note)(event, context)
    return found[0]


DELIVERIES = [
    ("send_sms", Caller("direct")),
    ("send_sms_api", Caller("api")),
    ("send_sms_sns", Caller("sns", "95df01b4-ee98-5cb9-9903-4c221d41eb5e")),
    ("send_sms_eventbridge", Caller("eventbridge", "6a7e8feb-b491-4cf7-a9f1-bf3703467718")),
    ("send_sms_failure_record", Caller("direct", "e4b46cbf-b738-xmpl-8880-a18cdf61200e")),
    ("send_sms_sqs", Caller("sqs", "059f36b4-87a3-44ab-83d2-661975976770")),
]


@pytest.mark.parametrize(("name", "caller"), DELIVERIES)
def test_a_delivery_has_its_id_for_a_key(event: LoadEvent, context: Context, name: str, caller: Caller) -> None:
    """The id is the same at each delivery. A direct call has only the key in its input."""
    assert (caller.delivery, caller) == asked(KeyedSend, event(name), context)


@pytest.mark.parametrize(("name", "caller"), DELIVERIES)
def test_an_action_that_knows_no_keys_gets_none(event: LoadEvent, context: Context, name: str, caller: Caller) -> None:
    """A key would be an unknown field there."""
    assert (None, caller) == asked(Send, event(name), context)


@pytest.mark.parametrize(("own", "key"), [("own", "own"), (None, "1"), ("", "")])
def test_an_input_has_a_key_of_its_own(context: Context, own: str | None, key: str) -> None:
    """It overrides the delivery's id. Null counts as absent, and an invalid key stays invalid."""
    event = {"id": "1", "detail-type": "t", "source": "s", "detail": {"message": "x", "idempotency_key": own}}

    assert (key, Caller("eventbridge", "1")) == asked(KeyedSend, event, context)


def test_a_delivery_of_no_object_is_refused_as_it_is(context: Context) -> None:
    """It has no field for a key."""
    event = batch(("1", "x", None))
    event["Records"][0]["body"] = "[]"

    assert ["1"] == given_back(lambda_handler(KeyedSend)(lambda *_: None)(event, context))


def test_doubt_reaches_the_action(event: LoadEvent, context: Context) -> None:
    """The action decides with it how to begin the ledger's record."""
    failure = event("send_sms_failure_record") | {"responsePayload": None}

    assert asked(KeyedSend, failure, context)[1].may_have_been_sent
    assert not asked(KeyedSend, event("send_sms_failure_record"), context)[1].may_have_been_sent


# Time


def seconds_left(event: Any, context: Context) -> float:
    """Return the time that an action has."""
    left: list[float] = []

    def note(_: Send, twilio: Twilio, __: Caller) -> None:
        left.append(twilio._deadline.remaining())

    lambda_handler(Send)(note)(event, context)
    return left[0]


@pytest.mark.parametrize("name", ["send_sms_api", "send_sms_api_payload_1", "send_sms_function_url"])
@pytest.mark.parametrize(("remaining", "expected"), [(900, 28), (30, 28), (28, 28), (10, 10)])
def test_an_api_caller_is_answered_within_28_seconds(
    event: LoadEvent, name: str, remaining: float, expected: float
) -> None:
    """API Gateway's timeout is 30 seconds."""
    assert expected - 1 < seconds_left(event(name), Context(remaining)) <= expected


@pytest.mark.parametrize("name", ["send_sms", "send_sms_sqs", "send_sms_sns", "send_sms_eventbridge"])
def test_other_callers_have_all_the_time_there_is(event: LoadEvent, name: str) -> None:
    """Only Lambda's timeout limits them."""
    assert 899 < seconds_left(event(name), Context(900)) <= 900


def test_nothing_is_sent_without_time_to_answer(twilio: FaultServer, event: LoadEvent) -> None:
    """The caller may retry."""
    with pytest.raises(ServiceUnavailableError, match=r"too little time was left .*nothing was sent"):
        send({"message": "x"}, Context(1))

    answer = send(event("send_sms_api"), Context(1))
    assert (503, True) == (answer["statusCode"], json.loads(answer["body"])["retryable"])
    assert [] == twilio.requests


# Size


def answer_size(answer: Any) -> int:
    """Return the bytes in which the runtime writes an answer."""
    return len(json.dumps(answer, ensure_ascii=False).encode())


@pytest.mark.parametrize("unit", ["x", "é", "😀"])
@pytest.mark.parametrize("less", [0, 1])
def test_an_answer_may_be_as_large_as_lambda_takes(context: Context, unit: str, less: int) -> None:
    """The limit is exact to the byte, as the runtime serialises the answer."""
    frame = answer_size({"text": "", "rest": ""})
    count, rest = divmod(MAX_ANSWER_BYTES - frame - less, len(unit.encode()))
    answer = {"text": unit * count, "rest": "x" * rest}

    assert MAX_ANSWER_BYTES - less == answer_size(making(lambda _: answer)({}, context))


@pytest.mark.parametrize(
    ("kind", "error"), [(Read, ResponseTooLargeError), (Send, OutcomeUnknownError)], ids=["read", "change"]
)
@pytest.mark.parametrize(
    "answer",
    [{"text": "x" * MAX_ANSWER_BYTES}, [0] * 2_200_000, {"text": "é" * (MAX_ANSWER_BYTES // 2)}],
    ids=["text", "list", "accents"],
)
def test_a_larger_answer_has_its_error(
    context: Context, kind: type[Send], error: type[ConnectorError], answer: Any
) -> None:
    """A change was carried out, so its outcome is unknown to the caller."""
    with pytest.raises(error, match="larger than a function can return"):
        making(lambda _: answer, kind)({}, context)


@pytest.mark.parametrize(("kind", "status"), [(Read, 502), (Send, 504)], ids=["read", "change"])
def test_an_api_answer_counts_as_it_is_written(
    event: LoadEvent, context: Context, kind: type[Send], status: int
) -> None:
    """It is JSON within JSON, so every quote has a backslash."""
    text = '"' * (MAX_ANSWER_BYTES // 3)
    handler = making(lambda _: {"text": text}, kind)

    assert {"text": text} == handler({}, context)
    assert status == handler(event("send_sms_api"), context)["statusCode"]


def test_an_unknown_outcome_of_size_is_not_given_back(context: Context) -> None:
    """The message was sent."""
    handler = making(lambda _: "x" * MAX_ANSWER_BYTES)

    assert [] == given_back(handler(batch(("1", "a", None)), context))


# Connections


def test_an_input_names_its_connection(twilio: FaultServer, aws_wire: AwsWire, context: Context) -> None:
    """Every kind of event may name it."""
    aws_wire.secrets["twilio/other"] = aws_wire.secrets["twilio/default"]
    send({"message": "x", "connection": "other"}, context)

    assert ["twilio/other"] == [parameters["SecretId"] for _, parameters in aws_wire.calls]
    assert 1 == len(twilio.requests)


def test_a_connection_may_be_a_query_parameter(
    twilio: FaultServer, aws_wire: AwsWire, event: LoadEvent, context: Context
) -> None:
    """Without it, the stack's default is used."""
    request = event("send_sms_api") | {"rawQueryString": "connection=other"}

    assert 404 == send(request, context)["statusCode"]
    assert ["twilio/other"] == [parameters["SecretId"] for _, parameters in aws_wire.calls]
    assert [] == twilio.requests


def test_a_base64_body_is_sent_as_it_was(twilio: FaultServer, event: LoadEvent, context: Context) -> None:
    """It may contain emoji."""
    body = base64.b64encode(json.dumps({"message": "é👍"}).encode()).decode()
    send(event("send_sms_function_url") | {"body": body, "isBase64Encoded": True}, context)

    assert ["é👍"] == twilio.requests[0].form["Body"]
