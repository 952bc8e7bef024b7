"""The webhook's replies by a function or with a text, and webhooks for another URL than the API's own."""

import io
import json
import shlex
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from local import ROOT
from local import stack as local_stack
from tests.integration.cloud import Bus, Cloud, eventually
from tests.mutants import GENUINE, Target, event_1, event_2

FILES = "https://f6g7h8i9j0.execute-api.us-east-1.amazonaws.com"
"""The base URL to which the events in `events/` were delivered."""
TOKEN = "0" * 32
"""The auth token that signed the events in `events/`."""
CUSTOM = "https://hooks.example.com/twilio/eu"
NOTHING = "<Response/>"
HANDLER = """
from xml.sax.saxutils import escape


def handler(event, context):
    assert event["source"] == "twilio"
    text = event["detail"]["parameters"]["Body"] if event["detail-type"] == "Message Received" else "call"
    if "fail" in text:
        raise ValueError(text)
    return {"nothing": None, "no TwiML": "Hello", "no text": 7}.get(
        text.partition(":")[0], f"<Response><Message>You said {escape(text)}</Message></Response>"
    )
"""


@pytest.fixture(scope="module")
def reply_function(cloud: Cloud, folder: Path) -> str:
    """Deploy a function that replies, and return its ARN."""
    python, runtime = ROOT / ".venv-lambda" / "bin" / "python", ROOT / "local" / "runtime.py"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("reply.py", HANDLER)
        bootstrap = zipfile.ZipInfo("bootstrap")
        bootstrap.external_attr = 0o755 << 16
        archive.writestr(bootstrap, f"#!/bin/sh\nexec {shlex.join(map(str, [python, '-I', runtime, folder]))}\n")
    iam, functions = cloud.client("iam"), cloud.client("lambda")
    trust = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName="reply", AssumeRolePolicyDocument=policy)["Role"]["Arn"]
    group = "/aws/lambda/reply"
    cloud.client("logs").create_log_group(logGroupName=group)
    made = functions.create_function(
        FunctionName="reply",
        Runtime="provided.al2023",
        Role=role,
        Handler="reply.handler",
        Code={"ZipFile": content.getvalue()},
        LoggingConfig={"LogFormat": "JSON", "LogGroup": group},
    )
    return str(made["FunctionArn"])


@pytest.fixture(scope="module", autouse=True)
def _as_before(cloud: Cloud, folder: Path) -> Iterator[None]:  # noqa: ARG001 the stack must run
    """Restore the stack's parameters for other tests."""
    yield
    local_stack.redeploy(folder, parameters={"ReplyFunctionArn": "", "AutoReply": "", "DefaultConnection": "default"})


@pytest.fixture(scope="module")
def asking(cloud: Cloud, folder: Path, reply_function: str) -> Target:
    """Deploy the stack for the events in `events/`, and for replies by a function; return the webhook's target."""
    sid = cloud.info["twilio"]["account_sid"]
    secret = json.dumps({"account_sid": sid, "auth_token": TOKEN})
    cloud.client("secretsmanager").create_secret(Name="twilio/files", SecretString=secret)
    parameters = {"WebhookBaseUrl": FILES, "DefaultConnection": "files", "ReplyFunctionArn": reply_function}
    local_stack.redeploy(folder, parameters=parameters)
    return Target(FILES, sid, TOKEN)


@pytest.fixture(scope="module")
def telling(asking: Target, folder: Path) -> Target:
    """Deploy the stack for replies with a text, behind a URL with a path; return the webhook's target."""
    text = "Thanks & <bye>"
    local_stack.redeploy(folder, parameters={"WebhookBaseUrl": CUSTOM, "ReplyFunctionArn": "", "AutoReply": text})
    return asking._replace(base=CUSTOM)


@pytest.fixture
def bus(cloud: Cloud) -> Iterator[Bus]:
    """Return the events of the stack's bus."""
    with cloud.events("twilio") as events:
        yield events


def answer(cloud: Cloud, event: Any) -> tuple[int, str]:
    """Invoke the webhook as API Gateway does, and return status and body of its answer."""
    payload = cloud.client("lambda").invoke(
        FunctionName=cloud.outputs["WebhookFunctionArn"], Payload=json.dumps(event)
    )["Payload"]
    result = json.loads(payload.read())
    return result["statusCode"], result["body"]


@pytest.mark.parametrize("make", [event_1, event_2], ids=["payload 1.0", "payload 2.0"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello", "<Response><Message>You said hello:{id}</Message></Response>"),
        ("nothing", NOTHING),
        ("fail", NOTHING),
        ("no TwiML", NOTHING),
        ("no text", NOTHING),
    ],
)
def test_a_function_replies(cloud: Cloud, asking: Target, bus: Bus, make: Any, text: str, expected: str) -> None:
    """The function's TwiML is the answer; without TwiML, the answer is empty. The event is published in any case."""
    text_id = uuid.uuid4().hex
    request = cloud.inbound(f"{text}:{text_id}").request(asking)

    assert (200, expected.format(id=text_id)) == answer(cloud, make(request))
    event = bus.wait_for(lambda event: text_id in json.dumps(event))
    assert ("Message Received", f"{FILES}/webhook") == (event["detail-type"], event["detail"]["url"])


@pytest.mark.parametrize(
    ("name", "detail_types"),
    [
        ("webhook", ["Message Received"]),
        ("webhook_status", ["Message Status Changed"]),
        ("webhook_event_streams", ["Event Stream Event"]),
    ],
)
def test_the_events_in_files_are_taken(
    cloud: Cloud, asking: Target, bus: Bus, name: str, detail_types: list[str]
) -> None:
    """The webhook publishes API Gateway's events that are in `events/`, and replies only to the message."""
    event = json.loads((ROOT / "events" / f"{name}.json").read_text())
    status, body = answer(cloud, event)

    assert (200, name == "webhook") == (status, "You said" in body)
    bus.wait_for(lambda _: True)
    assert detail_types == list(dict.fromkeys(event["detail-type"] for event in bus.drain(wait=1)))
    assert {asking.account_sid} == {event["detail"]["account_sid"] for event in bus.events}


def test_a_text_is_the_reply(cloud: Cloud, telling: Target) -> None:
    """The text of AutoReply is escaped for XML, and only a message is answered with it."""
    reply = "<Response><Message>Thanks &amp; &lt;bye&gt;</Message></Response>"
    status = next(each for each in GENUINE if each.name == "status")

    for webhook, expected in ((cloud.inbound(str(uuid.uuid4())), reply), (status, NOTHING)):
        request = replace(webhook.request(telling), path="/webhook")
        assert (200, expected) == answer(cloud, event_2(request))


@pytest.mark.parametrize("make", [event_1, event_2], ids=["payload 1.0", "payload 2.0"])
def test_a_url_with_a_path_is_signed_whole(cloud: Cloud, telling: Target, bus: Bus, make: Any) -> None:
    """API Gateway gets only a part of the path that Twilio called. The event has the URL that Twilio called."""
    text = str(uuid.uuid4())
    request = replace(cloud.inbound(text).request(telling), path="/webhook")

    assert 200 == answer(cloud, make(request))[0]
    event = bus.wait_for(lambda event: text in json.dumps(event))
    assert f"{CUSTOM}/webhook" == event["detail"]["url"]


def test_a_base_url_that_is_wrong_is_named(cloud: Cloud, telling: Target) -> None:  # noqa: ARG001 deploys it
    """If Twilio calls another host than WebhookBaseUrl, the request is refused, and the log names that host."""
    real = cloud.target(token=TOKEN)
    request = cloud.inbound(str(uuid.uuid4())).request(real)
    host = real.base.partition("://")[2].partition("/")[0]

    assert (403, '{"message":"Forbidden"}') == answer(cloud, event_2(request))
    lines = eventually(cloud.log_lines, until=lambda lines: any("host" in line and host in line for line in lines))
    reason = next(line for line in lines if "webhook refused" in line and host in line)
    assert "check WebhookBaseUrl and the URL at Twilio" in reason
