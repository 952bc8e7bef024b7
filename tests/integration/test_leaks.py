"""No phone number, text, token or key of the tests is in a log, or in the answer to a failed call."""

import base64
import json
import re
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from tests.faults import AwsFault, AwsProxy, FaultServer, aws, faults
from tests.integration.cloud import Cloud, eventually
from tests.integration.test_redrive import redrive

NUMBER = "+15005559873"
CALLER = "+15005554321"


def spellings(marker: str) -> set[str]:
    """Return a marker's possible spellings in a log: plain, percent-encoded, Base64 at each offset, JSON-escaped."""
    encoded = {base64.b64encode(f"{'x' * offset}{marker}".encode())[4:-4].decode() for offset in range(3)}
    escaped = "".join(f"\\u{ord(character):04x}" for character in marker)
    return {marker, quote(marker, safe=""), quote_plus(marker), json.dumps(marker)[1:-1], escaped} | encoded


def found(lines: list[str], markers: list[str]) -> list[str]:
    """Return the markers that the lines contain, in any spelling."""
    text = "\n".join(lines)
    return [marker for marker in markers if any(spelling in text for spelling in spellings(marker))]


def secrets(cloud: Cloud) -> list[str]:
    """Return the secrets and tokens of the connections that the fixture `text` uses."""
    manager = cloud.client("secretsmanager")
    values = [
        json.loads(manager.get_secret_value(SecretId=f"twilio/{name}")["SecretString"])
        for name in ("default", "refused")
    ]
    return [value[name] for value in values for name in ("api_key_secret", "auth_token") if name in value]


@pytest.fixture(scope="module")
def text(
    cloud: Cloud,
    aws_proxy: AwsProxy,
    twilio_relay: FaultServer,
    other_connections: None,  # noqa: ARG001 the calls name them
) -> str:
    """Return a text that was part of calls to the actions and to the webhook, some successful and some failed."""
    text = f"marker-{uuid.uuid4().hex}"
    sms = {"to": NUMBER, "message": text}
    cloud.api("POST", "/messages", sms)
    cloud.api("POST", "/messages", sms | {"from": CALLER})  # refused by Twilio
    cloud.api("POST", "/messages", sms | {"connection": "refused"})
    for _ in range(2):  # the second call gets the first one's result
        cloud.api("POST", "/messages", sms | {"idempotency_key": f"{text}-key"})
    cloud.api("GET", f"/sends?idempotency_key={text}-key")
    queued = {"QueueUrl": cloud.outputs["SendQueueUrl"], "MessageBody": json.dumps(sms | {"idempotency_key": text})}
    cloud.client("sqs").send_message(**queued)
    cloud.invoke("SendSms", sms | {"to": f"{NUMBER} or so", text: text, "send_at": text, "max_price": text})
    cloud.invoke("SendSms", {"Records": [{"eventSource": "aws:sqs", "messageId": "1", "body": text}]})
    cloud.invoke("SendSms", {"Records": [{"eventSource": "aws:kinesis", "kinesis": {"data": text}}]})
    cloud.api("GET", f"/messages/{text}")
    cloud.api("GET", f"/messages?{text}={quote(NUMBER)}&to={quote(NUMBER)}&page_token={text}")
    cloud.api("GET", f"/messages?to={quote(NUMBER)}")
    twilio_relay.script(faults.MALFORMED_HEADER)  # a library warns of it, with the URL
    cloud.api("GET", f"/messages?to={quote(NUMBER)}")
    twilio_relay.reset()
    for url in (f"/Accounts/$TWILIO_ACCOUNT_SID/{text}.json", f"https://{text}.example/", f"/{text}"):
        cloud.api(
            "POST", "/raw-request", {"method": "POST", "url": url, "data": {"Body": text}, "headers": {text: NUMBER}}
        )
    number = cloud.info["twilio"]["number"]
    with cloud.events() as bus:
        cloud.twilio("POST", "/_twilio/simulate/inbound-message", To=number, From=CALLER, Body=text)
        bus.wait_for(lambda event: event["detail"].get("message", {}).get("body") == text)
        # One event goes through the buffer, and one is not published. Then the table of published events fails.
        for fault in ("PutEvents.1.fail+PutEvents.2.fail", "PutEvents.1.deny+PutEvents.2.deny+SendMessage.1.deny"):
            failing = f"{text};aws={fault}"
            cloud.twilio("POST", "/_twilio/simulate/inbound-message", To=number, From=CALLER, Body=failing)
        aws_proxy.add(AwsFault(aws.FAIL, operation="PutItem", contains=b'"deduplication_id"'))
        cloud.twilio("POST", "/_twilio/simulate/inbound-message", To=number, From=CALLER, Body=text)
        aws_proxy.clear()
        cloud.published(bus, "PutEvents.1.fail", '"unavailable"')
    for body in (f"Body={text}&From={quote(CALLER)}", text):
        event: dict[str, Any] = {"version": "2.0", "requestContext": {"http": {"method": "POST"}, "domainName": "x"}}
        event |= {"rawPath": "/webhook", "rawQueryString": text, "body": body}
        event |= {"headers": {"x-twilio-signature": text, "content-type": "application/x-www-form-urlencoded"}}
        function = cloud.client("lambda")
        function.invoke(FunctionName=cloud.outputs["WebhookFunctionArn"], Payload=json.dumps(event))
    return text


def test_no_log_group_holds_personal_data_or_secrets(cloud: Cloud, text: str) -> None:
    """After all expected lines have arrived, no log group has a line with a marker."""
    lines = eventually(
        cloud.log_lines,
        until=lambda lines: all(
            any(said in line for line in lines)
            for said in (
                "InvalidInputError",
                "a library warns",
                '"replayed":true',
                '"messaging.message.id"',
                '"accepted"',
            )
        ),
    )

    assert [] == found(lines, [text, NUMBER, CALLER, *secrets(cloud)])


def test_the_table_of_published_events_holds_no_personal_data_or_secrets(cloud: Cloud, text: str) -> None:
    """The table of published events identifies events by SIDs and hashes, and no item contains a marker."""
    scan = cloud.client("dynamodb").get_paginator("scan").paginate(TableName=cloud.resource("Deliveries"))
    items = [json.dumps(item) for page in scan for item in page["Items"]]

    assert items
    assert [] == found(items, [text, NUMBER, CALLER, *secrets(cloud)])


def test_the_dashboard_holds_no_personal_data_or_secrets(cloud: Cloud, text: str) -> None:
    """The dashboard names metrics, and no series is named after a value that somebody sent."""
    body = cloud.client("cloudwatch").get_dashboard(DashboardName=cloud.resource("Dashboard"))["DashboardBody"]

    assert "MessagesSent" in body
    assert [] == found([body], [text, NUMBER, CALLER, *secrets(cloud)])


def test_nothing_is_left_in_the_webhooks_queues(cloud: Cloud, text: str) -> None:  # noqa: ARG001 it went through them
    """Events that were published from the buffer are neither in the buffer nor in its dead-letter queue."""
    assert [0, 0] == [cloud.in_queue(name) for name in ("BufferQueue", "BufferDeadLetterQueue")]


def test_tools_log_no_personal_data_or_secrets(cloud: Cloud, folder: Path, text: str) -> None:
    """The logs of the build, the deployment and the local stack's own tools contain no marker."""
    lines = [log.read_text(errors="replace") for log in sorted((folder / "logs").glob("*.log"))]

    assert lines
    assert [] == found(lines, [text, NUMBER, CALLER, *secrets(cloud)])


def test_answers_of_failed_calls_hold_no_input(cloud: Cloud, text: str) -> None:
    """The answer to an invalid input names the fields, and does not contain their values."""
    sms = {"to": f"{NUMBER} or so", "message": text, "from": text, "send_at": text, "content_sid": text}
    answers = [cloud.api("POST", "/messages", sms).text, json.dumps(cloud.invoke("SendSms", sms))]

    assert [] == found(answers, [text, NUMBER])


def test_raw_answers_hold_no_secrets(cloud: Cloud, twilio_relay: FaultServer) -> None:
    """A raw request's answer shows no secret in any spelling, although Twilio's account resource has the auth token."""
    value = cloud.client("secretsmanager").get_secret_value(SecretId="twilio/default")["SecretString"]
    connection = json.loads(value)
    held = [connection[name] for name in ("api_key_secret", "auth_token")]
    basic = [base64.b64encode(f"{connection['account_sid']}:{secret}".encode()).decode() for secret in held]
    escaped = ["".join(f"%{ord(character):02x}" for character in secret) for secret in held]
    told = {"auth_token": "of-somebody", "echo": [*held, *basic, *escaped], "inner": json.dumps({"a": held})}
    twilio_relay.script(faults.answer(json.dumps(told).encode(), code=200, headers={"X-Echo": held[0]}))
    request = {"method": "GET", "url": "/Accounts/$TWILIO_ACCOUNT_SID.json"}
    answers = [
        *(cloud.api("POST", "/raw-request", request | {"response_type": kind}).text for kind in ("json", "text")),
        json.dumps(cloud.invoke("RawRequest", request)),
    ]

    assert all('"attempts"' in answer and "[redacted]" in answer for answer in answers)
    assert [] == found(answers, [*held, *basic, *escaped, "of-somebody"])


def test_redrive_prints_no_personal_data_or_keys(cloud: Cloud) -> None:
    """A redrive prints no personal data or keys of the records that it moves or refuses, nor of their attributes."""
    marker = f"marker-{uuid.uuid4().hex}"
    sms = {"to": NUMBER, "from": CALLER, "message": marker, "connection": "default", "idempotency_key": marker}
    bodies = [sms, {"to": NUMBER, "message": marker}, sms | {"idempotency_key": f"{marker} {NUMBER}"}, marker]
    attributes = {name: {"DataType": "String", "StringValue": marker} for name in ("error", "detail", "send_id")}
    with cloud.queue() as (failed, _), cloud.queue() as (target, _):
        for body in bodies:
            cloud.client("sqs").send_message(
                QueueUrl=failed, MessageBody=json.dumps(body), MessageAttributes=attributes
            )
        ways = (["--dry-run"], ["--to", target], ["--to", f"{target}-gone"], ["--from", f"{failed}-gone"])
        runs = [redrive(cloud, "--from", failed, *options) for options in ways]
    printed = [run.stdout + run.stderr for run in runs]

    assert [["would-move"], ["moved"], [], []] == [re.findall(r" (would-move|moved) \S", text) for text in printed]
    assert [3, 3, 3, 0] == [text.count(" refused ") for text in printed]
    assert [1, 1, 1, 3] == [run.returncode for run in runs]
    assert [] == found(printed, [marker, NUMBER, CALLER])


@pytest.mark.parametrize("spelling", range(8))
def test_a_planted_leak_is_found(spelling: int) -> None:
    """The search for leaks finds a marker in every spelling."""
    marker = "+15005559999 token/é"
    leaks = sorted(spellings(marker))

    assert [marker] == found([f'{{"message": "{leaks[spelling % len(leaks)]}"}}'], [marker])


def test_a_leak_in_a_log_group_is_found(cloud: Cloud) -> None:
    """The search for leaks finds a line that was planted in a log group, also after more lines than one answer has."""
    logs, group = cloud.client("logs"), cloud.resource("SendSmsLogs")
    marker = f"planted-{uuid.uuid4().hex}"
    logs.create_log_stream(logGroupName=group, logStreamName=marker)
    leak = base64.b64encode(marker.encode()).decode()
    for messages in (["a line"] * 10_000, [leak]):
        events = [{"timestamp": 1_800_000_000_000, "message": message} for message in messages]
        logs.put_log_events(logGroupName=group, logStreamName=marker, logEvents=events)
    try:
        assert [marker] == found(cloud.log_lines(), [marker])
    finally:
        logs.delete_log_stream(logGroupName=group, logStreamName=marker)
