"""Do calls to AWS say whether they were refused or not answered, and do threads not wait for each other?"""

import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, NamedTuple

import botocore.session
import pytest
from twilio_connector import aws, transport
from twilio_connector.transport import MAX_THREADS

from tests.actors import answer_requests
from tests.aws_wire import LOST, PASS, AwsWire
from tests.conftest import ROOT
from tests.faults import closed_port

MARKER = "xqzjvmarker"


def read() -> dict[str, Any]:
    """Read the secret."""
    return aws.call("secretsmanager", "GetSecretValue", SecretId="twilio/default")


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

    assert "the connection was refused or broken off" == error.value.code == str(error.value)


def test_an_error_shows_its_code_alone(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored comes with the answer, for those who look for it."""
    refusal = {"__type": "ConditionalCheckFailedException", "message": MARKER, "Item": {"id": {"S": MARKER}}}
    monkeypatch.setattr(aws_wire, "answer", lambda *_: (400, refusal))

    with pytest.raises(aws.RefusedError) as error:
        aws.call("dynamodb", "PutItem", TableName="t", Item={"id": {"S": "1"}})
    assert {"id": {"S": MARKER}} == error.value.answer["Item"]
    assert MARKER not in f"{error.value}{error.value!r}"
    assert (None, None) == (error.value.__cause__, error.value.__context__)


def test_calls_do_not_wait_for_each_other(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a batch are there at the same time, or none is answered; each thread keeps its connection."""
    aws_wire._server.socket.listen(1024)
    all_there, answer = threading.Barrier(MAX_THREADS, timeout=10), aws_wire.answer

    def answer_together(operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        all_there.wait()
        return answer(operation, body)

    monkeypatch.setattr(aws, "_READ_SECONDS", 20)
    monkeypatch.setattr(aws_wire, "answer", answer_together)
    with ThreadPoolExecutor(MAX_THREADS) as pool:
        answers = list(pool.map(lambda _: read(), range(MAX_THREADS)))

    assert ["twilio/default"] * MAX_THREADS == [each["Name"] for each in answers]
    assert MAX_THREADS == aws_wire.count("GetSecretValue")


@pytest.mark.usefixtures("delays")
def test_a_call_takes_no_longer_than_it_says(aws_wire: AwsWire, delays: list[float]) -> None:
    """Both attempts with all their waits, and the pause between them."""
    aws_wire.failures["GetSecretValue"] = [LOST]
    read()

    assert aws.SECONDS == aws._ATTEMPTS * (aws._CONNECT_SECONDS + aws._READ_SECONDS) + max(delays)
    assert 2 == aws_wire.count("GetSecretValue")


# Requests as AWS wants them


class Sent(NamedTuple):
    """A request that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Sent]:
    """Record each request instead of sending it."""
    requests: list[Sent] = []

    def answer(request: Any) -> transport.Reply:
        requests.append(Sent(request.url, dict(request.headers), request.body))
        return transport.Reply(200, {}, b"{}")

    answer_requests(monkeypatch, answer)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    return requests


@pytest.mark.parametrize(
    ("service", "operation", "host", "target", "version"),
    [
        ("dynamodb", "PutItem", "dynamodb", "DynamoDB_20120810.PutItem", "1.0"),
        ("events", "PutEvents", "events", "AWSEvents.PutEvents", "1.1"),
        ("secretsmanager", "GetSecretValue", "secretsmanager", "secretsmanager.GetSecretValue", "1.1"),
        ("sqs", "SendMessage", "sqs", "AmazonSQS.SendMessage", "1.0"),
        ("ssm", "GetParameter", "ssm", "AmazonSSM.GetParameter", "1.1"),
    ],
)
def test_a_service_is_spoken_to_as_boto3_does(  # the model that boto3 has of each service says how
    sent: list[Sent], service: str, operation: str, host: str, target: str, version: str
) -> None:
    """At its host, with its target and its version of the protocol."""
    aws.call(service, operation)
    model = botocore.session.get_session().get_service_model(service).metadata

    assert [f"https://{host}.us-east-1.amazonaws.com/"] == [each.path for each in sent]
    assert target == sent[0].headers["X-Amz-Target"] == f"{model['targetPrefix']}.{operation}"
    assert f"application/x-amz-json-{version}" == sent[0].headers["Content-Type"]
    assert version == model["jsonVersion"]
    assert host == model["endpointPrefix"]


def test_a_function_is_invoked_by_its_arn(aws_wire: AwsWire) -> None:
    """Whose colons are no part of a path; a failure of its own is told from Lambda's."""
    arn = "arn:aws:lambda:us-east-1:123456789012:function:reply:live"

    assert b"null" == aws.invoke(arn, b'{"a":1}')
    assert [("Invoke", {"a": 1})] == [(called, body["payload"]) for called, body in aws_wire.calls]
    assert f"/2015-03-31/functions/{arn.replace(':', '%3A')}/invocations" == aws_wire.calls[0][1]["path"]
    aws_wire.function = lambda _: ({"X-Amz-Function-Error": "Unhandled"}, b"{}")
    assert aws.invoke(arn, b"{}") is None
    aws_wire.failures["Invoke"] = [(403, "AccessDeniedException:http://internal")]
    with pytest.raises(aws.RefusedError, match=r"^AccessDeniedException$"):
        aws.invoke(arn, b"{}")


def test_under_snapstart_lambda_serves_the_keys(sent: list[Sent], monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot has no keys; what is served expires, and is asked for again before it does."""
    served: list[str] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.append(self.headers["Authorization"])
            expires_at = datetime.now(UTC) + timedelta(minutes=1 if len(served) == 1 else 60)
            keys = {"AccessKeyId": f"KEY{len(served)}", "SecretAccessKey": "not-a-secret", "Token": "session-token"}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(keys | {"Expiration": expires_at.isoformat()}).encode())

        def log_message(self, *_: object) -> None:
            pass

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    aws._served_credentials.cache_clear()
    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{server.server_port}/keys")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "of-the-environment")
        for _ in range(3):
            aws.call("sqs", "SendMessage", QueueUrl="q", MessageBody="Hello")
        server.shutdown()
    aws._served_credentials.cache_clear()

    assert ["of-the-environment"] * 2 == served
    assert ["KEY2"] * 3 == [re.findall(r"Credential=(\w+)/", each.headers["Authorization"])[0] for each in sent]
    assert {"session-token"} == {each.headers["X-Amz-Security-Token"] for each in sent}


def test_keys_that_are_not_served_are_an_outage(sent: list[Sent], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was sent, and later it may be."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.RETRY_ATTEMPTS", 1)
    aws._served_credentials.cache_clear()
    with closed_port() as port:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{port}/keys")
        with pytest.raises(aws.UnavailableError, match=r"^CredentialRetrievalError$"):
            aws.call("events", "PutEvents", Entries=[])

    assert [] == sent


_FROZEN = """
    import os, random, sys
    before = random.getstate()
    import send_sms, webhook
    from twilio_connector import client
    sockets = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")
               and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")]
    print(sockets, client.CONNECTIONS._known, random.getstate() == before, "botocore.credentials" in sys.modules)
"""


@pytest.mark.parametrize("kind", ["on-demand", "snap-start"])
def test_a_snapshot_has_nothing_that_must_not_be_shared(kind: str) -> None:
    """No connection, no secret and no random numbers; but all that would be imported later."""
    path = os.pathsep.join(map(str, (ROOT / "functions", ROOT / "layers" / "twilio")))
    variables = {"PYTHONPATH": path, "AWS_LAMBDA_INITIALIZATION_TYPE": kind, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", textwrap.dedent(_FROZEN)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)

    assert ("", f"[] {{}} True {kind == 'snap-start'}\n") == (done.stderr, done.stdout)


@pytest.mark.parametrize("token", [None, "session-token"])
def test_a_request_is_signed_with_the_roles_keys(
    sent: list[Sent], monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    """For the service and the region; the session's token is signed with it."""
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    aws.call("sqs", "SendMessage", QueueUrl="q", MessageBody="Grüße")
    headers = sent[0].headers

    assert re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=test/\d{8}/eu-central-1/sqs/aws4_request, "
        rf"SignedHeaders=content-type;host;x-amz-date;{'x-amz-security-token;' if token else ''}x-amz-target, "
        r"Signature=[0-9a-f]{64}",
        headers["Authorization"],
    )
    assert token == headers.get("X-Amz-Security-Token")
    assert {"QueueUrl": "q", "MessageBody": "Grüße"} == json.loads(sent[0].body)


@pytest.mark.parametrize("body", [b"[]", b"<html>", b"\xff", b'{"a":"\xff"}', b'"text"', b"[" * 100_000])
def test_an_answer_that_is_no_object_is_lost(
    aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, delays: list[float], body: bytes
) -> None:
    """The call may have been carried out."""
    answer_requests(monkeypatch, lambda _: transport.Reply(200, {}, body))

    with pytest.raises(aws.LostError):
        read()
    assert (0, 1) == (len(aws_wire.calls), len(delays))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"a":"\xff"}'])
@pytest.mark.parametrize(("status", "kind"), [(403, aws.RefusedError), (502, aws.LostError)])
@pytest.mark.usefixtures("delays")
def test_a_refusal_without_a_code_has_its_status(
    monkeypatch: pytest.MonkeyPatch, body: bytes, status: int, kind: type[Exception]
) -> None:
    """As a proxy answers."""
    answer_requests(monkeypatch, lambda _: transport.Reply(status, {}, body))

    with pytest.raises(aws.RefusedError, match=f"^HTTP {status}$") as error:
        read()
    assert kind is error.type


def test_a_function_is_waited_for_longer() -> None:
    """But less long than Twilio waits, which is 15 seconds."""
    assert 10 > aws._CONNECT_SECONDS + aws.REPLY_SECONDS > aws.SECONDS


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("failure", [(500, "InternalFailure"), (400, "ThrottlingException"), LOST])
@pytest.mark.parametrize(
    ("operation", "call"),
    [
        ("PutEvents", lambda: aws.call("events", "PutEvents", Entries=[{"Detail": "{}"}])),
        ("Invoke", lambda: aws.invoke("arn:aws:lambda:us-east-1:123456789012:function:f", b"{}")),
    ],
    ids=["event", "function"],
)
def test_what_is_not_idempotent_is_asked_once(
    aws_wire: AwsWire, failure: tuple[int, str], operation: str, call: Callable[[], Any]
) -> None:
    """An event that is put again has to say so, and a function that was asked is not asked again."""
    aws_wire.failures[operation] = [failure]

    with pytest.raises(aws.UnavailableError):
        call()
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
        aws.call("events", "PutEvents", Entries=[{"Detail": "{}"}])
    assert is_lost == isinstance(error.value, aws.LostError)


@pytest.mark.usefixtures("aws_wire")
def test_a_service_that_is_not_reached_lost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was sent."""
    with closed_port() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(aws.UnavailableError) as error:
            aws.call("events", "PutEvents", Entries=[{"Detail": "{}"}])

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
