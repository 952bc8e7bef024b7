"""Deployments take effect for callers of the alias, and a failing Twilio gets no more requests than allowed."""

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from local import deploy
from local import stack as local_stack
from tests.faults import FaultServer, faults
from tests.integration.cloud import Cloud, eventually
from tests.layer import build, digests

TO = "+15005550006"


def versions(cloud: Cloud) -> dict[str, str]:
    """Return the version that each function's alias points to."""
    functions = cloud.client("lambda")
    arns = {name: arn for name, arn in cloud.outputs.items() if name.endswith("FunctionArn")}
    return {
        name: functions.get_alias(FunctionName=arn.rpartition(":")[0], Name="live")["FunctionVersion"]
        for name, arn in arns.items()
    }


def code(cloud: Cloud) -> set[str]:
    """Return the hashes of the functions' code."""
    functions = cloud.client("lambda")
    arns = [arn for name, arn in cloud.outputs.items() if name.endswith("FunctionArn")]
    return {functions.get_function_configuration(FunctionName=arn)["CodeSha256"] for arn in arns}


@pytest.fixture(scope="module")
def twilio(cloud: Cloud, folder: Path, twilio_relay: FaultServer) -> Iterator[FaultServer]:
    """Replace the emulator with a server that fails, by a deployment that changes only a parameter."""
    before, hashes = versions(cloud), code(cloud)
    with FaultServer() as server:
        local_stack.redeploy(folder, parameters={"TwilioApiUrl": server.url})
        after = versions(cloud)

        assert [] == [name for name in before if before[name] == after[name]]
        assert hashes == code(cloud)
        yield server
    local_stack.redeploy(folder, parameters={"TwilioApiUrl": twilio_relay.url})


def test_the_same_source_makes_the_same_layer(layer: Path, tmp_path: Path) -> None:
    """The same source makes the same layer. Otherwise each deployment would publish another version of it."""
    assert digests(layer) == digests(build(tmp_path))


def test_parameter_reaches_the_alias(cloud: Cloud, twilio: FaultServer) -> None:
    """A deployment that changes only a parameter takes effect for callers of the alias."""
    twilio.reset()

    assert "queued" == cloud.invoke("SendSms", {"to": TO, "message": "Hello"})["status"]
    assert 1 == len(twilio.requests)


def test_layer_reaches_the_alias(cloud: Cloud, folder: Path, twilio: FaultServer, tmp_path: Path) -> None:
    """A deployment that changes only the layer takes effect for callers of the alias."""
    built = tmp_path / "build"
    deploy.copy(deploy.BUILT, built)
    package = built / "TwilioLayer" / "python" / "twilio_connector"
    (package / "__init__.py").write_text('"""A newer layer."""\n\n__version__ = "9.9.9"\n')
    for compiled in (package / "__pycache__").glob("__init__.*"):
        compiled.unlink()
    before, hashes = versions(cloud), code(cloud)

    local_stack.redeploy(folder, built=built)

    twilio.reset()
    cloud.invoke("SendSms", {"to": TO, "message": "Hello"})
    assert (twilio.requests[0].header("User-Agent") or "").startswith("twilio-connector-aws/9.9.9 ")
    assert [] == [name for name, version in versions(cloud).items() if version == before[name]]
    assert hashes == code(cloud)


def test_hang_after_accept_is_one_request_from_every_caller(cloud: Cloud, twilio: FaultServer) -> None:
    """A request that Twilio accepted and never answered is made once, for each kind of caller."""
    twilio.reset()
    functions, sqs = cloud.client("lambda"), cloud.client("sqs")
    function = cloud.outputs["SendSmsFunctionArn"]
    texts = {shape: f"{shape} {uuid.uuid4().hex} fault=hang" for shape in ("api", "direct", "async", "sqs", "sns")}
    sms = {shape: {"to": TO, "message": text} for shape, text in texts.items()}
    notification = {"EventSource": "aws:sns", "Sns": {"Message": json.dumps(sms["sns"])}}
    counts = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    with cloud.queue() as (url, arn), ThreadPoolExecutor() as pool:
        sqs.send_message(QueueUrl=url, MessageBody=json.dumps(sms["sqs"]))
        mapping = functions.create_event_source_mapping(
            EventSourceArn=arn, FunctionName=function, FunctionResponseTypes=["ReportBatchItemFailures"]
        )
        # The emulator ignores the alias's number of retries; that of the unqualified function is the same.
        asynchronous = functions.invoke(
            FunctionName=function.rpartition(":")[0], InvocationType="Event", Payload=json.dumps(sms["async"])
        )
        api = pool.submit(cloud.api, "POST", "/messages", sms["api"])
        direct = pool.submit(cloud.invoke, "SendSms", sms["direct"])
        sns = pool.submit(cloud.invoke, "SendSms", {"Records": [notification]})
        answers = api.result(), direct.result(), sns.result()
        # SQS does not redeliver the record either: the queue is empty.
        left = eventually(
            lambda: sqs.get_queue_attributes(QueueUrl=url, AttributeNames=counts)["Attributes"],
            until=lambda left: set(left.values()) == {"0"},
        )
        functions.delete_event_source_mapping(UUID=mapping["UUID"])

    assert (202, {"0"}) == (asynchronous["StatusCode"], set(left.values()))
    assert (504, "OutcomeUnknownError") == (answers[0].status_code, answers[0].json()["title"])
    assert "OutcomeUnknownError" == answers[1]["errorType"]
    assert answers[2] is None  # the message is on the send queue
    bodies = eventually(
        lambda: [request.form["Body"][0] for request in twilio.requests if request.method == "POST"],
        until=lambda bodies: len(bodies) >= len(texts),
    )
    assert sorted(texts.values()) == sorted(bodies)


def test_lambda_repeats_no_send(cloud: Cloud) -> None:
    """Lambda does not retry a failed asynchronous invocation, neither of the alias nor of the unqualified function."""
    functions = cloud.client("lambda")
    for name in ("SendSms", "RawRequest"):
        function, _, alias = cloud.outputs[f"{name}FunctionArn"].rpartition(":")
        for qualifier in (alias, "$LATEST"):
            config = functions.get_function_event_invoke_config(FunctionName=function, Qualifier=qualifier)
            assert 0 == config["MaximumRetryAttempts"]


OUTCOMES: list[tuple[str, str, dict[str, Any], int, str, int]] = [
    ("SendSms", "status_500", {}, 504, "OutcomeUnknownError", 1),
    ("SendSms", "html_502", {}, 504, "OutcomeUnknownError", 1),
    ("SendSms", "redirect", {}, 504, "OutcomeUnknownError", 1),
    ("SendSms", "reset_after_read", {}, 504, "OutcomeUnknownError", 1),
    ("SendSms", "html_201", {}, 504, "OutcomeUnknownError", 1),
    ("SendSms", "status_21610", {}, 400, "RecipientOptedOutError", 1),
    ("SendSms", "status_21611", {}, 429, "SenderQueueFullError", 1),
    ("SendSms", "status_409", {}, 409, "TwilioRejectedError", 1),
    ("SendSms", "status_429", {}, 429, "TwilioRateLimitError", 3),
    ("SendSms", "status_429_huge", {}, 429, "TwilioRateLimitError", 1),
    ("SendSms", "status_403_20003", {}, 502, "TwilioAuthenticationError", 1),
    # The last send: for 30 seconds after it, the container does not use these credentials.
    ("SendSms", "status_401", {}, 502, "TwilioAuthenticationError", 2),
    ("RawRequest", "status_503", {"method": "POST"}, 504, "OutcomeUnknownError", 1),
    ("RawRequest", "status_503", {"method": "GET"}, 502, "TwilioUnavailableError", 1),
    ("RawRequest", "status_503", {"method": "GET", "max_retry_count": 2}, 502, "TwilioUnavailableError", 3),
    ("RawRequest", "status_404", {"method": "GET"}, 404, "TwilioNotFoundError", 1),
    ("RawRequest", "redirect", {"method": "GET"}, 502, "TwilioUnavailableError", 1),
    ("RawRequest", "huge", {"method": "GET"}, 502, "ResponseTooLargeError", 1),
]


@pytest.mark.parametrize(
    ("function", "fault", "options", "status", "title", "requests"),
    OUTCOMES,
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_outcome(
    cloud: Cloud,
    twilio: FaultServer,
    function: str,
    fault: str,
    options: dict[str, Any],
    status: int,
    title: str,
    requests: int,
) -> None:
    """Each kind of failure gives the expected error after the expected number of requests to Twilio."""
    twilio.reset()
    twilio.named |= {
        "redirect": faults.redirect(302, "http://127.0.0.1:1/"),
        "status_403_20003": faults.status(403, twilio_code=20003),
    }
    if function == "SendSms":
        answer = cloud.api("POST", "/messages", {"to": TO, "message": f"{uuid.uuid4().hex} fault={fault}"})
    else:
        raw = {"url": "/Accounts/$TWILIO_ACCOUNT_SID/Calls.json", "query_parameters": {"fault": fault}} | options
        answer = cloud.api("POST", "/raw-request", raw)

    own = [request for request in twilio.requests if "Messages.json?" not in request.target]  # `resolve` lists, too
    assert (status, title, requests) == (answer.status_code, answer.json()["title"], len(own))


def test_long_list_is_cut_and_goes_on(cloud: Cloud, twilio: FaultServer) -> None:
    """A list that is too large for an answer is cut, and its page token continues exactly there."""
    history = twilio.history(2500, body="é" * 1600)
    listed: list[str] = []
    calls, path = 0, "/messages?limit=5000"
    while path and calls < 10:
        answer = cloud.api("GET", path).json()
        listed += [message["sid"] for message in answer["messages"]]
        token, calls = answer["next_page_token"], calls + 1
        path = f"/messages?limit=5000&page_token={token}" if token else ""

    assert history.sids == listed
    assert 1 < calls
