"""Do calls to AWS say whether they were refused or not answered, and do threads not wait for each other?"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from twilio_connector import aws
from twilio_connector.transport import MAX_THREADS

from tests.aws_wire import LOST, PASS, AwsWire
from tests.faults import closed_port

MARKER = "xqzjvmarker"


def read() -> dict[str, Any]:
    """Read the secret."""
    return aws.call("secretsmanager", "get_secret_value", SecretId="twilio/default")


@pytest.mark.usefixtures("aws_wire")
def test_a_call_has_its_answer() -> None:
    """As boto3 gives it."""
    assert "twilio/default" == read()["Name"]


@pytest.mark.parametrize(
    "refusal", [(400, "ResourceNotFoundException"), (400, "ValidationException"), (403, "AccessDeniedException")]
)
def test_a_refusal_is_no_outage(aws_wire: AwsWire, refusal: tuple[int, str]) -> None:
    """It is final, so it is asked for once, and its code is told."""
    aws_wire.failures["GetSecretValue"] = [refusal]

    with pytest.raises(aws.RefusedError) as error:
        read()
    assert (aws.RefusedError, refusal[1]) == (error.type, error.value.code)
    assert 1 == aws_wire.count("GetSecretValue")


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize(
    "failure",
    [
        (500, "AnyError"),
        (503, "AnyError"),
        (400, "ThrottlingException"),
        (400, "ProvisionedThroughputExceededException"),
    ],
)
def test_an_outage_is_told_after_two_attempts(aws_wire: AwsWire, failure: tuple[int, str]) -> None:
    """By status or by code; the second attempt may go through."""
    aws_wire.failures["GetSecretValue"] = [failure, failure, failure, PASS]

    with pytest.raises(aws.UnavailableError) as error:
        read()
    assert failure[1] == error.value.code
    assert 2 == aws_wire.count("GetSecretValue")
    assert "twilio/default" == read()["Name"]


@pytest.mark.parametrize("code", sorted(aws._TRANSIENT))
@pytest.mark.usefixtures("delays")
def test_a_code_that_says_nothing_about_the_request_is_an_outage(aws_wire: AwsWire, code: str) -> None:
    """Whatever its status is."""
    aws_wire.failures["GetSecretValue"] = [(400, code)] * 2

    with pytest.raises(aws.UnavailableError):
        read()


@pytest.mark.usefixtures("delays")
def test_an_answer_that_is_lost_is_an_outage(aws_wire: AwsWire) -> None:
    """The call may have been carried out."""
    aws_wire.failures["GetSecretValue"] = [LOST, LOST]

    with pytest.raises(aws.UnavailableError):
        read()
    assert 2 == aws_wire.count("GetSecretValue")


@pytest.mark.usefixtures("aws_wire", "delays")
def test_a_service_that_is_not_there_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the name of what went wrong, and no address."""
    with closed_port() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(aws.UnavailableError) as error:
            read()

    assert "EndpointConnectionError" == error.value.code == str(error.value)


def test_an_error_shows_its_code_alone(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored comes with the answer, for those who look for it."""
    refusal = {"__type": "ConditionalCheckFailedException", "message": MARKER, "Item": {"id": {"S": MARKER}}}
    monkeypatch.setattr(aws_wire, "answer", lambda *_: (400, refusal))

    with pytest.raises(aws.RefusedError) as error:
        aws.call("dynamodb", "put_item", TableName="t", Item={"id": {"S": "1"}})
    assert {"id": {"S": MARKER}} == error.value.answer["Item"]
    assert MARKER not in f"{error.value}{error.value!r}"
    assert (None, True) == (error.value.__cause__, error.value.__suppress_context__)


def test_calls_do_not_wait_for_each_other(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a batch are there at the same time, or none is answered."""
    aws_wire._server.socket.listen(1024)
    all_there, answer = threading.Barrier(50, timeout=10), aws_wire.answer

    def answer_together(operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        all_there.wait()
        return answer(operation, body)

    monkeypatch.setattr(aws, "_READ_SECONDS", 20)
    monkeypatch.setattr(aws_wire, "answer", answer_together)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: read(), range(50)))

    assert ["twilio/default"] * 50 == [each["Name"] for each in answers]
    assert 50 == aws_wire.count("GetSecretValue")


def test_a_client_is_made_once(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time too: boto3's session is not made for threads."""
    aws_wire._server.socket.listen(1024)
    made, overlaps, busy = [], [], threading.Lock()
    client = boto3.client

    def make(service: str, **options: Any) -> Any:
        overlaps.append(not busy.acquire(blocking=False))
        try:
            made.append(service)
            return client(service, **options)
        finally:
            if not overlaps[-1]:
                busy.release()

    monkeypatch.setattr(boto3, "client", make)
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda _: read(), range(20)))

    assert (["secretsmanager"], [False]) == (made, overlaps)


def test_each_thread_keeps_its_connection() -> None:
    """With fewer, all the others would connect anew for each call."""
    assert MAX_THREADS <= aws._CONFIG.max_pool_connections


@pytest.mark.usefixtures("aws_wire")
@pytest.mark.parametrize("service", ["dynamodb", "events", "secretsmanager", "sqs", "ssm"])
def test_a_call_takes_no_longer_than_it_says(service: str) -> None:
    """All attempts with all their waits, and up to a second between them."""
    patience = aws._client(service).meta.config
    attempts = patience.retries["total_max_attempts"]

    assert aws.SECONDS >= attempts * (patience.connect_timeout + patience.read_timeout) + attempts - 1


@pytest.mark.usefixtures("aws_wire")
def test_a_function_is_waited_for_longer() -> None:
    """But less long than Twilio waits, which is 15 seconds."""
    patience = aws._client("lambda").meta.config

    assert 10 > patience.connect_timeout + patience.read_timeout > aws.SECONDS


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("failure", [(500, "InternalFailure"), (400, "ThrottlingException"), LOST])
@pytest.mark.parametrize(
    ("service", "operation", "call"),
    [
        ("events", "PutEvents", {"operation": "put_events", "Entries": [{"Detail": "{}"}]}),
        ("lambda", "Invoke", {"operation": "invoke", "FunctionName": "f", "Payload": b"{}"}),
    ],
)
def test_what_is_not_idempotent_is_asked_once(
    aws_wire: AwsWire, failure: tuple[int, str], service: str, operation: str, call: dict[str, Any]
) -> None:
    """An event that is put again has to say so, and a function that was asked is not asked again."""
    aws_wire.failures[operation] = [failure]

    with pytest.raises(aws.UnavailableError):
        aws.call(service, **call)
    assert 1 == aws_wire.count(operation)


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize(
    ("failure", "is_lost"),
    [
        (LOST, True),
        ((500, "InternalFailure"), True),
        ((503, "ServiceUnavailable"), True),
        ((400, "ThrottlingException"), False),
        ((400, "InternalFailure"), False),
        ((403, "AccessDeniedException"), False),
    ],
)
def test_what_may_have_been_carried_out_is_lost(
    aws_wire: AwsWire,
    failure: tuple[int, str],
    is_lost: bool,  # noqa: FBT001 a table
) -> None:
    """Silence and 5xx; with 4xx the service says that it did nothing."""
    aws_wire.failures["PutEvents"] = [failure]

    with pytest.raises(aws.RefusedError) as error:
        aws.call("events", "put_events", Entries=[{"Detail": "{}"}])
    assert is_lost == isinstance(error.value, aws.LostError)


@pytest.mark.usefixtures("aws_wire")
def test_a_service_that_is_not_reached_lost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was sent."""
    with closed_port() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(aws.UnavailableError) as error:
            aws.call("events", "put_events", Entries=[{"Detail": "{}"}])

    assert not isinstance(error.value, aws.LostError)


@pytest.mark.parametrize("character", ["\ufffe", "\uffff"])
def test_a_message_has_no_character_that_sqs_refuses(aws_wire: AwsWire, character: str) -> None:
    """JSON's escapes spell it, so whoever reads it sees the same."""
    aws.send_message(
        "https://sqs.us-east-1.amazonaws.com/123456789012/q",
        json.dumps({"a": character}, ensure_ascii=False),
        DelaySeconds=3,
    )
    (sent,) = aws_wire.sent

    assert character not in sent["MessageBody"]
    assert {"a": character} == json.loads(sent["MessageBody"])
    assert 3 == sent["DelaySeconds"]
