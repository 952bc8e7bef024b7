"""Calls to AWS: their errors distinguish a refusal from a lost answer, and threads do not wait for each other."""

import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from typing import Any, NamedTuple

import botocore.loaders
import botocore.session
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import BotoCoreError
from twilio_connector import http
from twilio_connector.aws import client as aws_client
from twilio_connector.aws import queue
from twilio_connector.errors import InternalError
from twilio_connector.http import MAX_THREADS

from tests.actors import answer_requests
from tests.aws_wire import LOST, PASS, AwsWire
from tests.conftest import ROOT
from tests.faults import closed_port
from tests.stopwatch import Stopwatch

MARKER = "xqzjvmarker"


def read() -> dict[str, Any]:
    """Read the secret of the connection `default`."""
    return aws_client.call("secretsmanager", "GetSecretValue", SecretId="twilio/default")


@pytest.mark.usefixtures("aws_wire")
def test_a_call_has_its_answer() -> None:
    """A call returns AWS's answer as boto3 does."""
    assert "twilio/default" == read()["Name"]


@pytest.mark.parametrize(
    "refusal", [(400, "ResourceNotFoundException"), (400, "ValidationException"), (403, "AccessDeniedException")]
)
def test_a_refusal_is_no_outage(aws_wire: AwsWire, refusal: tuple[int, str]) -> None:
    """A refusal is final: the call is attempted once, and the error has AWS's code."""
    aws_wire.failures["GetSecretValue"] = [refusal]

    with pytest.raises(aws_client.AwsError) as error:
        read()
    assert (aws_client.AwsError, refusal[1]) == (error.type, error.value.code)
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
    """A failed or throttled call is attempted twice before the service counts as unavailable.

    The status or the code shows the failure. One successful attempt is enough.
    """
    aws_wire.failures["GetSecretValue"] = [failure, failure, failure, PASS]

    with pytest.raises(aws_client.AwsUnavailableError) as error:
        read()
    assert failure[1] == error.value.code
    assert 2 == aws_wire.count("GetSecretValue")
    assert "twilio/default" == read()["Name"]


@pytest.mark.parametrize("code", sorted(aws_client._TRANSIENT))
@pytest.mark.usefixtures("delays")
def test_a_code_that_says_nothing_about_the_request_is_an_outage(aws_wire: AwsWire, code: str) -> None:
    """A code that says nothing about the request means that the service is unavailable, regardless of the status."""
    aws_wire.failures["GetSecretValue"] = [(400, code)] * 2

    with pytest.raises(aws_client.AwsUnavailableError):
        read()


@pytest.mark.usefixtures("delays")
def test_an_answer_that_is_lost_is_an_outage(aws_wire: AwsWire) -> None:
    """A call whose answers are lost is attempted twice, and the service counts as unavailable."""
    aws_wire.failures["GetSecretValue"] = [LOST, LOST]

    with pytest.raises(aws_client.AwsUnavailableError):
        read()
    assert 2 == aws_wire.count("GetSecretValue")


@pytest.mark.usefixtures("aws_wire", "delays")
def test_a_service_that_is_not_there_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection means that the service is unavailable. The error has the reason, but no address."""
    with closed_port() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(aws_client.AwsUnavailableError) as error:
            read()

    assert "the connection was refused or broken off" == error.value.code == str(error.value)


def test_an_error_shows_its_code_alone(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error's text has only the code. Stored data is in `answer`, for callers that need it."""
    refusal = {"__type": "ConditionalCheckFailedException", "message": MARKER, "Item": {"id": {"S": MARKER}}}
    monkeypatch.setattr(aws_wire, "answer", lambda *_: (400, refusal))

    with pytest.raises(aws_client.AwsError) as error:
        aws_client.call("dynamodb", "PutItem", TableName="t", Item={"id": {"S": "1"}})
    assert {"id": {"S": MARKER}} == error.value.answer["Item"]
    assert MARKER not in f"{error.value}{error.value!r}"
    assert (None, None) == (error.value.__cause__, error.value.__context__)


def test_calls_do_not_wait_for_each_other(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of all threads run at the same time, because each thread has its own connection.

    The fake AWS answers no call until all calls have arrived.
    """
    all_there, answer = threading.Barrier(MAX_THREADS, timeout=10), aws_wire.answer

    def answer_together(operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        all_there.wait()
        return answer(operation, body)

    monkeypatch.setattr(aws_client, "_READ_SECONDS", 20)
    monkeypatch.setattr(aws_wire, "answer", answer_together)
    with ThreadPoolExecutor(MAX_THREADS) as pool:
        answers = list(pool.map(lambda _: read(), range(MAX_THREADS)))

    assert ["twilio/default"] * MAX_THREADS == [each["Name"] for each in answers]
    assert MAX_THREADS == aws_wire.count("GetSecretValue")


@pytest.mark.usefixtures("delays")
def test_a_call_takes_no_longer_than_it_says(aws_wire: AwsWire, delays: list[float]) -> None:
    """`SECONDS` is the most that a call takes: both attempts with their timeouts, and the pause between them."""
    aws_wire.failures["GetSecretValue"] = [LOST]
    read()

    assert aws_client.SECONDS == aws_client._ATTEMPTS * (aws_client._CONNECT_SECONDS + aws_client._READ_SECONDS) + max(
        delays
    )
    assert 2 == aws_wire.count("GetSecretValue")


# Requests in the form that AWS requires


class Sent(NamedTuple):
    """A request that was recorded instead of sent."""

    path: str
    headers: dict[str, str]
    body: bytes


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Sent]:
    """Record each request instead of sending it."""
    requests: list[Sent] = []

    def answer(request: Any) -> http.Reply:
        requests.append(Sent(request.url, dict(request.headers), request.body))
        return http.Reply(200, {}, b"{}")

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
def test_a_service_is_spoken_to_as_boto3_does(  # botocore's model of each service is the reference
    sent: list[Sent], service: str, operation: str, host: str, target: str, version: str
) -> None:
    """A request has the service's host, target and protocol version, as in botocore's model of the service."""
    aws_client.call(service, operation)
    model = botocore.session.get_session().get_service_model(service).metadata

    assert [f"https://{host}.us-east-1.amazonaws.com/"] == [each.path for each in sent]
    assert target == sent[0].headers["X-Amz-Target"] == f"{model['targetPrefix']}.{operation}"
    assert f"application/x-amz-json-{version}" == sent[0].headers["Content-Type"]
    assert version == model["jsonVersion"]
    assert host == model["endpointPrefix"]


CALLS: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "dynamodb": ("list_tables", lambda: aws_client.call("dynamodb", "ListTables"), {}),
    "events": (
        "put_events",
        lambda: aws_client.call("events", "PutEvents", Entries=[{"Source": "x"}]),
        {"Entries": [{"Source": "x"}]},
    ),
    "lambda": ("invoke", lambda: aws_client.invoke("f", b"{}"), {"FunctionName": "f"}),
    "secretsmanager": ("list_secrets", lambda: aws_client.call("secretsmanager", "ListSecrets"), {}),
    "sqs": ("list_queues", lambda: aws_client.call("sqs", "ListQueues"), {}),
    "ssm": ("describe_parameters", lambda: aws_client.call("ssm", "DescribeParameters"), {}),
}
"""One call of each service: the name of boto3's method, our call, and the parameters of boto3's."""
PARTITIONS = {
    "us-east-1": "amazonaws.com",
    "cn-north-1": "amazonaws.com.cn",
    "us-gov-west-1": "amazonaws.com",
    "us-iso-east-1": "c2s.ic.gov",
    "us-isob-east-1": "sc2s.sgov.gov",
    "eusc-de-east-1": "amazonaws.eu",
}
"""One region of each partition whose services botocore knows, and its DNS suffix."""
NAMES = {"events": "EVENTBRIDGE", "secretsmanager": "SECRETS_MANAGER"}
OWN, ALL = "http://127.0.0.1:2001", "http://127.0.0.1:2002/"


def variables_of(service: str) -> dict[str, dict[str, str]]:
    """Return sets of AWS's environment variables, by their purpose."""
    own = f"AWS_ENDPOINT_URL_{NAMES.get(service, service.upper())}"
    fips, dual_stack = {"AWS_USE_FIPS_ENDPOINT": "true"}, {"AWS_USE_DUALSTACK_ENDPOINT": "True"}
    return {
        "none": {},
        "fips": fips,
        "dual-stack": dual_stack,
        "both": fips | dual_stack,
        "off": {"AWS_USE_FIPS_ENDPOINT": "false", "AWS_USE_DUALSTACK_ENDPOINT": "1"},
        "url": {"AWS_ENDPOINT_URL": ALL},
        "own url": {own: OWN},
        "both urls": {own: OWN, "AWS_ENDPOINT_URL": ALL},
        "a path": {own: f"{OWN}/a/b/"},
        "empty": {own: "", "AWS_ENDPOINT_URL": ""},
        "another's": {"AWS_ENDPOINT_URL_S3": OWN, "AWS_ENDPOINT_URL": ALL},
        "ignored": {own: OWN, "AWS_ENDPOINT_URL": ALL, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "TRUE"},
        "not ignored": {own: OWN, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "yes"},
        "ignored, fips": {"AWS_ENDPOINT_URL": ALL, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"} | fips,
    }


SESSION = botocore.session.Session()
"""One session for all clients: each client reads the environment again, and new sessions would be slow."""


def boto3_url(service: str) -> str:
    """Return the URL to which boto3 sends a call of the service."""
    client = SESSION.create_client(service, region_name=os.environ["AWS_REGION"])
    urls: list[str] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        urls.append(request.url)
        return AWSResponse(request.url, 200, {}, BytesIO())

    client.meta.events.register_first("before-send", answer)
    with suppress(Exception):  # the answer is empty; the unpacking below fails if nothing was sent
        getattr(client, CALLS[service][0])(**CALLS[service][2])
    (url,) = urls
    return url


@pytest.mark.parametrize("region", PARTITIONS)
@pytest.mark.parametrize("service", CALLS)
def test_a_service_is_where_boto3_finds_it(
    sent: list[Sent], monkeypatch: pytest.MonkeyPatch, service: str, region: str
) -> None:
    """A service's URL is the one that boto3 uses.

    This holds in each partition, and for every relevant combination of AWS's own variables.
    """
    for name, value in {"AWS_REGION": region, "URL_SUFFIX": PARTITIONS[region]}.items():
        monkeypatch.setenv(name, value)
    found = {}
    for name, variables in variables_of(service).items():
        with monkeypatch.context() as environment:
            for variable, value in variables.items():
                environment.setenv(variable, value)
            CALLS[service][1]()
            found[name] = (sent[-1].path, boto3_url(service))

    assert [] == [name for name, (ours, boto3s) in found.items() if ours != boto3s], found
    assert 4 < len({ours for ours, _ in found.values()})


@pytest.mark.parametrize(
    "variables",
    [
        ({"AWS_ENDPOINT_URL": ALL, "AWS_USE_FIPS_ENDPOINT": "true"}),
        ({"AWS_ENDPOINT_URL_SQS": OWN, "AWS_USE_DUALSTACK_ENDPOINT": "true"}),
    ],
    ids=["fips", "dual-stack"],
)
def test_variables_that_exclude_each_other_are_told(
    sent: list[Sent], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """Variables that exclude each other raise an error before anything is sent, as in boto3."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InternalError, match="AWS_USE_FIPS_ENDPOINT and AWS_USE_DUALSTACK_ENDPOINT: sqs"):
        aws_client.call("sqs", "ListQueues")
    with pytest.raises(BotoCoreError):
        botocore.session.Session().create_client("sqs", region_name="us-east-1").list_queues()

    assert [] == sent


def test_a_function_is_invoked_by_its_arn(aws_wire: AwsWire) -> None:
    """A function is invoked by its ARN, whose colons are escaped in the path.

    If the function fails, the result is None. If Lambda refuses the call, AwsError is raised.
    """
    arn = "arn:aws:lambda:us-east-1:123456789012:function:reply:live"

    assert b"null" == aws_client.invoke(arn, b'{"a":1}')
    assert [("Invoke", {"a": 1})] == [(called, body["payload"]) for called, body in aws_wire.calls]
    assert f"/2015-03-31/functions/{arn.replace(':', '%3A')}/invocations" == aws_wire.calls[0][1]["path"]
    aws_wire.function = lambda _: ({"X-Amz-Function-Error": "Unhandled"}, b"{}")
    assert aws_client.invoke(arn, b"{}") is None
    aws_wire.failures["Invoke"] = [(403, "AccessDeniedException:http://internal")]
    with pytest.raises(aws_client.AwsError, match=r"^AccessDeniedException$"):
        aws_client.invoke(arn, b"{}")


def test_under_snapstart_lambda_serves_the_keys(sent: list[Sent], monkeypatch: pytest.MonkeyPatch) -> None:
    """Under SnapStart, Lambda's endpoint serves the keys, because a snapshot contains none.

    Served keys expire, and are requested again before they do.
    """
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
    aws_client._served_credentials.cache_clear()
    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{server.server_port}/keys")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "of-the-environment")
        for _ in range(3):
            aws_client.call("sqs", "SendMessage", QueueUrl="q", MessageBody="Hello")
        server.shutdown()
    aws_client._served_credentials.cache_clear()

    assert ["of-the-environment"] * 2 == served
    assert ["KEY2"] * 3 == [re.findall(r"Credential=(\w+)/", each.headers["Authorization"])[0] for each in sent]
    assert {"session-token"} == {each.headers["X-Amz-Security-Token"] for each in sent}


def test_keys_that_are_not_served_are_an_outage(sent: list[Sent], monkeypatch: pytest.MonkeyPatch) -> None:
    """If the keys are not served, nothing is sent, and AWS counts as unavailable because a later call may succeed."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.RETRY_ATTEMPTS", 1)
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    aws_client._served_credentials.cache_clear()
    with closed_port() as port:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{port}/keys")
        with pytest.raises(aws_client.AwsUnavailableError, match=r"^CredentialRetrievalError$"):
            aws_client.call("events", "PutEvents", Entries=[])

    assert [] == sent


_FROZEN = """
    import os, random, sys
    before = random.getstate()
    import send_sms, webhook
    from twilio_connector.api import client
    sockets = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")
               and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")]
    print(sockets, client.CONNECTIONS._known, random.getstate() == before, "botocore.credentials" in sys.modules)
"""


@pytest.mark.parametrize("kind", ["on-demand", "snap-start"])
def test_a_snapshot_has_nothing_that_must_not_be_shared(kind: str) -> None:
    """A snapshot contains no connection, no secret and no random numbers.

    Under SnapStart, it contains the imports that a function would otherwise do at its first call.
    """
    path = os.pathsep.join(map(str, (ROOT / "functions", ROOT / "layers" / "twilio")))
    variables = {"PYTHONPATH": path, "AWS_LAMBDA_INITIALIZATION_TYPE": kind, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", textwrap.dedent(_FROZEN)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)

    assert ("", f"[] {{}} True {kind == 'snap-start'}\n") == (done.stderr, done.stdout)


@pytest.mark.parametrize("token", [None, "session-token"])
def test_a_request_is_signed_with_the_roles_keys(
    sent: list[Sent], monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    """A request is signed with the role's keys for the service and the region, including the session token."""
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    aws_client.call("sqs", "SendMessage", QueueUrl="q", MessageBody="Grüße")
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
    """An answer that is not a JSON object counts as lost, because AWS may have carried the call out."""
    answer_requests(monkeypatch, lambda _: http.Reply(200, {}, body))

    with pytest.raises(aws_client.AwsResponseLostError):
        read()
    assert (0, 1) == (len(aws_wire.calls), len(delays))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"a":"\xff"}'])
@pytest.mark.parametrize(("status", "kind"), [(403, aws_client.AwsError), (502, aws_client.AwsResponseLostError)])
@pytest.mark.usefixtures("delays")
def test_a_refusal_without_a_code_has_its_status(
    monkeypatch: pytest.MonkeyPatch, body: bytes, status: int, kind: type[Exception]
) -> None:
    """A refusal without a code, such as that of a proxy, is named after its status."""
    answer_requests(monkeypatch, lambda _: http.Reply(status, {}, body))

    with pytest.raises(aws_client.AwsError, match=f"^HTTP {status}$") as error:
        read()
    assert kind is error.type


def test_a_function_is_waited_for_longer() -> None:
    """The timeout for a function is longer than that for other calls, but shorter than Twilio's 15 seconds."""
    assert 10 > aws_client._CONNECT_SECONDS + aws_client.REPLY_SECONDS > aws_client.SECONDS


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("failure", [(500, "InternalFailure"), (400, "ThrottlingException"), LOST])
@pytest.mark.parametrize(
    ("operation", "call"),
    [
        ("PutEvents", lambda: aws_client.call("events", "PutEvents", Entries=[{"Detail": "{}"}])),
        ("Invoke", lambda: aws_client.invoke("arn:aws:lambda:us-east-1:123456789012:function:f", b"{}")),
    ],
    ids=["event", "function"],
)
def test_what_is_not_idempotent_is_asked_once(
    aws_wire: AwsWire, failure: tuple[int, str], operation: str, call: Callable[[], Any]
) -> None:
    """PutEvents and Invoke are not idempotent, so they are attempted only once.

    The caller must mark an event that it puts again, and no function is invoked twice.
    """
    aws_wire.failures[operation] = [failure]

    with pytest.raises(aws_client.AwsUnavailableError):
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
    """After no answer or a 5xx status, the call may have been carried out, so its answer counts as lost.

    With a 4xx status the service states that it did nothing.
    """
    aws_wire.failures["PutEvents"] = [failure]

    with pytest.raises(aws_client.AwsError) as error:
        aws_client.call("events", "PutEvents", Entries=[{"Detail": "{}"}])
    assert is_lost == isinstance(error.value, aws_client.AwsResponseLostError)


@pytest.mark.usefixtures("aws_wire")
def test_a_service_that_is_not_reached_lost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection does not count as a lost answer, because nothing was sent."""
    with closed_port() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(aws_client.AwsUnavailableError) as error:
            aws_client.call("events", "PutEvents", Entries=[{"Detail": "{}"}])

    assert not isinstance(error.value, aws_client.AwsResponseLostError)


@pytest.mark.parametrize("character", ["\ufffe", "\uffff"])
def test_a_message_has_no_character_that_sqs_refuses(aws_wire: AwsWire, character: str) -> None:
    """A character that SQS refuses is sent as a JSON escape, so that a consumer reads the same text."""
    queue.send_message(
        "https://sqs.us-east-1.amazonaws.com/123456789012/q",
        json.dumps({"a": character}, ensure_ascii=False),
        DelaySeconds=3,
    )
    (sent,) = aws_wire.sent

    assert character not in sent["MessageBody"]
    assert {"a": character} == json.loads(sent["MessageBody"])
    assert 3 == sent["DelaySeconds"]


# Deadlines


def test_a_call_takes_no_longer_than_there_is_time(aws_wire: AwsWire) -> None:
    """A call ends when its `seconds` have passed, and is not retried when no time is left."""
    aws_wire.hangs = lambda _, __: True
    with Stopwatch() as took, pytest.raises(aws_client.AwsUnavailableError):
        aws_client.call("dynamodb", "GetItem", seconds=0.2, TableName="ledger", Key={"id": {"S": "1"}})

    assert took.seconds < 1.9  # a whole attempt takes two seconds
    assert 1 == aws_wire.count("GetItem")


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_call_without_time_is_not_made(aws_wire: AwsWire, seconds: float) -> None:
    """A call for which no time is left is not sent, and the service counts as unavailable."""
    with pytest.raises(aws_client.AwsUnavailableError, match="no time left"):
        aws_client.call("dynamodb", "GetItem", seconds=seconds, TableName="ledger", Key={"id": {"S": "1"}})

    assert [] == aws_wire.calls
