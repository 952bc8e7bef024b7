"""The handler of every action: each caller gets an answer in its own format, and in time."""

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
    """A minimal input of an action that changes something."""

    to: str = ""
    message: str = ""
    message_sid: str | None = None

    @property
    def read_only(self) -> bool:
        """False: the action changes something."""
        return False


class Read(Send, frozen=True, kw_only=True):
    """The same input for an action that only reads."""

    @property
    def read_only(self) -> bool:
        """True: the action changes nothing."""
        return True


@lambda_handler(Send, status=lambda _: 201)
def send(value: Send, twilio: Twilio, _: Caller) -> Any:
    """Send a message whose text is the input's."""
    return {"sent": twilio.request("POST", "Messages.json", form={"Body": value.message}).status}


def making(action: Callable[[Send], Any], kind: type[Send] = Send) -> Handler:
    """Return the handler of an action that does not call Twilio."""

    def act(value: Any, *_: Any) -> Any:
        return action(value)

    return lambda_handler(kind)(act)


def failing(error: Exception) -> Handler:
    """Return the handler of an action that raises this error."""

    def fail(_: Send) -> None:
        raise error

    return making(fail)


def batch(*records: tuple[str, str, str | None]) -> dict[str, Any]:
    """Return an SQS batch of records, each given by its id, text and group."""
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
    """Return the ids of the records that SQS must redeliver."""
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


# Results


@pytest.mark.parametrize("name", ["send_sms", "send_sms_eventbridge", "send_sms_sns", "send_sms_failure_record"])
def test_an_event_gets_the_result(event: LoadEvent, context: Context, name: str) -> None:
    """The caller of an event gets the action's result unchanged."""
    handler = making(lambda value: {"to": value.to, "text": value.message})

    assert {"to": "+15005550006", "text": "Your parcel is on its way."} == handler(event(name), context)


@pytest.mark.parametrize("name", ["send_sms_api", "send_sms_api_payload_1", "send_sms_function_url"])
def test_an_api_caller_gets_json(twilio: FaultServer, event: LoadEvent, context: Context, name: str) -> None:
    """An API caller gets the result as JSON, with the action's status."""
    assert {
        "statusCode": 201,
        "headers": {"Content-Type": "application/json"},
        "body": '{"sent":201}',
    } == send(event(name), context)
    assert [["Your parcel is on its way."]] == [request.form["Body"] for request in twilio.requests]


def test_a_result_may_be_nothing(event: LoadEvent, context: Context) -> None:
    """A result may be None, because Twilio answers a deletion with 204."""
    handler = making(lambda _: None)

    assert None is handler({}, context)
    assert "null" == handler(event("send_sms_api"), context)["body"]


def test_a_batch_gets_nothing_back_when_all_went_well(twilio: FaultServer, event: LoadEvent, context: Context) -> None:
    """Each record of a batch is an input of its own; if all succeed, SQS redelivers none."""
    assert {"batchItemFailures": []} == send(event("send_sms_sqs"), context)
    assert 3 == len(twilio.requests)


def test_a_handler_keeps_its_name() -> None:
    """A handler has its action's name and docstring, because AWS's tools show them."""
    assert ("send", "Send a message whose text is the input's.") == (send.__name__, send.__doc__)


# Errors


def test_an_event_gets_the_exception(twilio: FaultServer, context: Context) -> None:
    """The caller of an event gets the exception, whose class name Lambda reports; it has no text of Twilio's."""
    twilio.script(faults.status(400, twilio_code=21211, message=MARKER))

    with pytest.raises(TwilioRejectedError) as failure:
        send({"message": "x"}, context)
    assert "TwilioRejectedError" == type(failure.value).__name__
    assert MARKER not in str(failure.value)


def test_an_api_caller_gets_a_problem(twilio: FaultServer, event: LoadEvent, context: Context) -> None:
    """An API caller gets a problem object, with all that is known about the error and Twilio's message."""
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
    """The problem object of an invalid input lists each wrong field with its message."""
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
    """Retry-After is the time that Twilio gives, or one second if Twilio gives no valid time."""
    twilio.script(faults.too_many(seconds))
    context.seconds = RESERVE_SECONDS + 0.9
    answer = send(event("send_sms_api"), context)

    assert (429, header) == (answer["statusCode"], answer["headers"].get("Retry-After"))


def test_a_part_of_a_second_is_a_whole_one(event: LoadEvent, context: Context) -> None:
    """Retry-After is rounded up, because it takes whole seconds."""
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
    """If Twilio gives no time, Retry-After is the error's own default; an error without one has no Retry-After."""
    answer = failing(error)(event("send_sms_api"), context)

    assert (error.http_status, header) == (answer["statusCode"], answer["headers"].get("Retry-After"))


@pytest.mark.parametrize("name", ["send_sms_api", "send_sms_api_payload_1", "send_sms_function_url"])
@pytest.mark.parametrize("body", ["{", "[]", "null", "5", '"text"'])
def test_a_body_that_is_no_input_is_a_problem(event: LoadEvent, context: Context, name: str, body: str) -> None:
    """An invalid body gets a problem object: API Gateway would hide an exception behind a 500."""
    answer = send(event(name) | {"body": body}, context)

    assert (400, "InvalidInputError") == (answer["statusCode"], json.loads(answer["body"])["title"])


def test_a_malformed_request_is_a_problem(event: LoadEvent, context: Context) -> None:
    """A malformed API Gateway event gets a problem object with status 400."""
    answer = send(event("send_sms_api") | {"headers": ["a"]}, context)

    assert 400 == answer["statusCode"]


@pytest.mark.parametrize(
    "event",
    [{"Records": [{"eventSource": "aws:s3"}]}, {"Records": []}, {"requestContext": {"elb": {}}}, "text", None],
    ids=repr,
)
def test_an_event_that_is_not_known_is_refused(context: Context, event: object) -> None:
    """An event of unknown shape is refused: the connector does not guess."""
    with pytest.raises(InvalidInputError):
        send(event, context)


def test_a_batch_that_is_malformed_is_refused(context: Context) -> None:
    """A malformed batch raises InvalidInputError, as an invalid input does."""
    event = batch(("1", "x", "g"))
    event["Records"][0]["attributes"] = None

    with pytest.raises(InvalidInputError):
        send(event, context)


def test_our_own_fault_after_a_change_is_an_unknown_outcome(twilio: FaultServer, context: Context) -> None:
    """A bug after a change is reported as an unknown outcome, and the record is not redelivered.

    Any other error, or a redelivery, could make the caller send twice.
    """

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
    """A bug is reported as InternalError, without the exception's message, which may contain any value.

    Only the log shows where it happened.
    """
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
    """The error about a missing setting names the environment variable."""
    monkeypatch.delenv("CONNECTION_PREFIX")
    answer = send(event("send_sms_api"), context)

    assert "CONNECTION_PREFIX: is missing" in json.loads(answer["body"])["detail"]


def test_a_result_that_cannot_be_written_is_our_own_fault(event: LoadEvent, context: Context) -> None:
    """A result that is not JSON raises InternalError, before Lambda's runtime tries to serialise it."""
    handler = making(lambda _: {"a": object()})

    assert 500 == handler(event("send_sms_api"), context)["statusCode"]
    with pytest.raises(InternalError):
        handler({}, context)


# Batches


def test_a_bad_record_does_not_touch_the_others(twilio: FaultServer, context: Context) -> None:
    """Only the records that failed are redelivered; the other records of the batch are sent."""
    event = batch(("1", "a", None), ("2", "broken", None), ("3", "fault=status_400", None), ("4", "b", None))

    assert ["2", "3"] == given_back(send(event, context))
    assert [["a"], ["fault=status_400"], ["b"]] == [request.form["Body"] for request in twilio.requests]


@pytest.mark.parametrize(
    "fault", ["status_500", "status_503", "reset_after_read", "html_502", "status_408", "status_300"]
)
def test_a_record_whose_outcome_is_unknown_is_not_given_back(twilio: FaultServer, context: Context, fault: str) -> None:
    """A record of unknown outcome is not redelivered, because another delivery could send it twice."""
    event = batch(("1", f"fault={fault}", None), ("2", "b", None))

    assert [] == given_back(send(event, context))
    assert 2 == len(twilio.requests)


def test_what_was_provably_not_processed_is_given_back(twilio: FaultServer, context: Context) -> None:
    """A record that Twilio provably did not process is redelivered, after three attempts by the client."""
    event = batch(("1", "fault=status_429_zero", None))

    assert ["1"] == given_back(send(event, context))
    assert 3 == len(twilio.requests)


def test_records_of_a_group_do_not_overtake_each_other(twilio: FaultServer, context: Context) -> None:
    """If a record is redelivered, the rest of its group is too, unsent. Other groups are not affected."""
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
    """A record of unknown outcome is not redelivered, so the later records of its group do not overtake it."""
    event = batch(("1", "fault=status_500", "a"), ("2", "a2", "a"))

    assert [] == given_back(send(event, context))
    assert 2 == len(twilio.requests)


def test_records_without_time_are_given_back_unsent(twilio: FaultServer) -> None:
    """Records for which too little of the invocation's time is left are redelivered unsent."""
    event = batch(("1", "a", None), ("2", "b", None))

    assert ["1", "2"] == given_back(send(event, Context(RESERVE_SECONDS + 0.1)))
    assert [] == twilio.requests


def test_our_own_fault_in_a_record_is_given_back(context: Context) -> None:
    """A record that hits a bug is redelivered: the queue keeps it until the bug is fixed."""
    assert ["1"] == given_back(failing(ValueError())(batch(("1", "a", None)), context))


def test_an_action_without_queue_takes_one_record_after_the_other(context: Context) -> None:
    """An action without a queue handles one record at a time.

    Twilio's limit on concurrent requests is not known for every action.
    """
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
    """An input with an idempotency key."""

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
    """The key is the delivery's id, which is the same at each redelivery. A direct call has no such id."""
    assert (caller.delivery, caller) == asked(KeyedSend, event(name), context)


@pytest.mark.parametrize(("name", "caller"), DELIVERIES)
def test_an_action_that_knows_no_keys_gets_none(event: LoadEvent, context: Context, name: str, caller: Caller) -> None:
    """An action without idempotency keys gets none, because a key would be an unknown field."""
    assert (None, caller) == asked(Send, event(name), context)


@pytest.mark.parametrize(("own", "key"), [("own", "own"), (None, "1"), ("", "")])
def test_an_input_has_a_key_of_its_own(context: Context, own: str | None, key: str) -> None:
    """The input's key overrides the delivery's id. Null counts as absent, and an invalid key stays invalid."""
    event = {"id": "1", "detail-type": "t", "source": "s", "detail": {"message": "x", "idempotency_key": own}}

    assert (key, Caller("eventbridge", "1")) == asked(KeyedSend, event, context)


def test_a_delivery_of_no_object_is_refused_as_it_is(context: Context) -> None:
    """A body that is not an object is refused; it has no field for a key."""
    event = batch(("1", "x", None))
    event["Records"][0]["body"] = "[]"

    assert ["1"] == given_back(lambda_handler(KeyedSend)(lambda *_: None)(event, context))


def test_doubt_reaches_the_action(event: LoadEvent, context: Context) -> None:
    """An action learns whether an earlier attempt may have sent the message.

    The action needs this to begin the ledger's record.
    """
    failure = event("send_sms_failure_record") | {"responsePayload": None}

    assert asked(KeyedSend, failure, context)[1].may_have_been_sent
    assert not asked(KeyedSend, event("send_sms_failure_record"), context)[1].may_have_been_sent


# Time


def seconds_left(event: Any, context: Context) -> float:
    """Return the seconds that an action has."""
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
    """An API caller gets an answer within 28 seconds, because API Gateway's timeout is 30 seconds."""
    assert expected - 1 < seconds_left(event(name), Context(remaining)) <= expected


@pytest.mark.parametrize("name", ["send_sms", "send_sms_sqs", "send_sms_sns", "send_sms_eventbridge"])
def test_other_callers_have_all_the_time_there_is(event: LoadEvent, name: str) -> None:
    """Other callers' actions are limited only by Lambda's timeout."""
    assert 899 < seconds_left(event(name), Context(900)) <= 900


def test_nothing_is_sent_without_time_to_answer(twilio: FaultServer, event: LoadEvent) -> None:
    """If too little time is left for an answer, nothing is sent, and the caller may retry."""
    with pytest.raises(ServiceUnavailableError, match=r"too little time was left .*nothing was sent"):
        send({"message": "x"}, Context(1))

    answer = send(event("send_sms_api"), Context(1))
    assert (503, True) == (answer["statusCode"], json.loads(answer["body"])["retryable"])
    assert [] == twilio.requests


# Size


def answer_size(answer: Any) -> int:
    """Return the size of an answer in bytes, as the runtime serialises it."""
    return len(json.dumps(answer, ensure_ascii=False).encode())


@pytest.mark.parametrize("unit", ["x", "é", "😀"])
@pytest.mark.parametrize("less", [0, 1])
def test_an_answer_may_be_as_large_as_lambda_takes(context: Context, unit: str, less: int) -> None:
    """An answer may be as large as Lambda's limit, to the byte, as the runtime serialises it."""
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
    """A larger answer raises an error; after a change, which was carried out, the outcome is unknown to the caller."""
    with pytest.raises(error, match="larger than a function can return"):
        making(lambda _: answer, kind)({}, context)


@pytest.mark.parametrize(("kind", "status"), [(Read, 502), (Send, 504)], ids=["read", "change"])
def test_an_api_answer_counts_as_it_is_written(
    event: LoadEvent, context: Context, kind: type[Send], status: int
) -> None:
    """An API answer is measured as JSON within JSON, in which every quote has a backslash."""
    text = '"' * (MAX_ANSWER_BYTES // 3)
    handler = making(lambda _: {"text": text}, kind)

    assert {"text": text} == handler({}, context)
    assert status == handler(event("send_sms_api"), context)["statusCode"]


def test_an_unknown_outcome_of_size_is_not_given_back(context: Context) -> None:
    """A record whose answer is too large is not redelivered, because its message was sent."""
    handler = making(lambda _: "x" * MAX_ANSWER_BYTES)

    assert [] == given_back(handler(batch(("1", "a", None)), context))


# Connections


def test_an_input_names_its_connection(twilio: FaultServer, aws_wire: AwsWire, context: Context) -> None:
    """An input may name its connection, whose secret is then used."""
    aws_wire.secrets["twilio/other"] = aws_wire.secrets["twilio/default"]
    send({"message": "x", "connection": "other"}, context)

    assert ["twilio/other"] == [parameters["SecretId"] for _, parameters in aws_wire.calls]
    assert 1 == len(twilio.requests)


def test_a_connection_may_be_a_query_parameter(
    twilio: FaultServer, aws_wire: AwsWire, event: LoadEvent, context: Context
) -> None:
    """The connection of an API request may be a query parameter."""
    request = event("send_sms_api") | {"rawQueryString": "connection=other"}

    assert 404 == send(request, context)["statusCode"]
    assert ["twilio/other"] == [parameters["SecretId"] for _, parameters in aws_wire.calls]
    assert [] == twilio.requests


def test_a_base64_body_is_sent_as_it_was(twilio: FaultServer, event: LoadEvent, context: Context) -> None:
    """The text of a Base64 body is sent unchanged, also with emoji."""
    body = base64.b64encode(json.dumps({"message": "é👍"}).encode()).decode()
    send(event("send_sms_function_url") | {"body": body, "isBase64Encoded": True}, context)

    assert ["é👍"] == twilio.requests[0].form["Body"]
