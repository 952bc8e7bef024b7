"""The events of the deployed stack match their schemas: one event of each detail-type."""

import http.client
import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.integration.cloud import SECONDS, Cloud, eventually
from tests.mutants import GENUINE, Target
from tests.schemas import DETAIL_TYPES, validate

CUSTOMER = "+15550100123"
BY_NAME = {each.name: each for each in GENUINE}


def received(cloud: Cloud, marker: str) -> None:
    """Let Twilio's emulator receive a message to the number."""
    number = cloud.info["twilio"]["number"]
    cloud.twilio("POST", "/_twilio/simulate/inbound-message", To=number, From=CUSTOMER, Body=marker)


def delivered(cloud: Cloud, marker: str) -> None:
    """Send a message with a key, so that Twilio's emulator posts status callbacks."""
    cloud.invoke("SendSms", {"to": "+15005550006", "message": "Hi", "idempotency_key": marker})


def posted(name: str, text: str) -> Callable[[Cloud, str], None]:
    """Return a function that posts a webhook of a kind as Twilio does, with the marker in its SIDs and in one text."""

    def post(cloud: Cloud, marker: str) -> None:
        twilio, each = cloud.info["twilio"], BY_NAME[name]
        sids = {field: f"{each.fields[field][:2]}{marker}" for field in SIDS & each.fields.keys()}
        if each.json is not None:
            event = json.loads(each.json)[0] | {"id": f"EZ{marker}"}
            each = replace(each, json=json.dumps([event]).encode())
        else:
            each = replace(each, fields=each.fields | sids | {text: marker})
        base = cloud.info["webhook_url"].removesuffix("/webhook")
        request = each.request(Target(base, twilio["account_sid"], twilio["auth_token"]))
        connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=SECONDS)
        query = f"?{request.query}" if request.query else ""
        connection.request("POST", request.path + query, request.body, dict(request.headers))
        assert 200 == connection.getresponse().status
        connection.close()

    return post


SIDS = {"CallSid", "MessageSid", "Sid", "SmsMessageSid", "SmsSid"}


def queued(**sms: Any) -> Callable[[Cloud, str], None]:
    """Return a function that puts an input on the send queue."""

    def put(cloud: Cloud, marker: str) -> None:
        body = {"to": "+15005550006", "message": "Hi", "idempotency_key": marker} | sms
        cloud.client("sqs").send_message(QueueUrl=cloud.outputs["SendQueueUrl"], MessageBody=json.dumps(body))

    return put


def timed_out(cloud: Cloud, marker: str) -> None:
    """Put the record of a timed-out invocation on the send queue; it may have sent, and cannot be retried."""
    record = {
        "requestContext": {"requestId": marker, "functionArn": cloud.outputs["SendSmsFunctionArn"]},
        "requestPayload": {"to": "nobody", "message": marker},
        "responseContext": {"statusCode": 200, "functionError": "Unhandled"},
        "responsePayload": {"errorType": "Sandbox.Timedout"},
    }
    cloud.client("sqs").send_message(QueueUrl=cloud.outputs["SendQueueUrl"], MessageBody=json.dumps(record))


def take_out(cloud: Cloud, marker: str) -> None:
    """Remove a test's message from the failed queue."""
    sqs, url = cloud.client("sqs"), cloud.outputs["FailedQueueUrl"]

    def found() -> bool:
        for message in sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=1).get(
            "Messages", []
        ):
            if marker in message["Body"]:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                return True
        return False

    eventually(found, until=bool)


CAUSES: dict[str, Callable[[Cloud, str], None]] = {
    "Message Received": received,
    "Message Status Changed": delivered,
    "Opt-Out Changed": posted("opt-out", "FromCity"),
    "Event Stream Event": posted("Event Streams", ""),
    "Error Logged": posted("debugger", "Payload"),
    "Webhook Received": posted("call", "FromCity"),
    "Message Sent": queued(),
    "Message Failed": queued(to="nobody"),
    "Message Outcome Unknown": timed_out,
}


def test_every_detail_type_has_a_cause() -> None:
    """Every detail-type that has a schema has a cause in these tests."""
    assert CAUSES.keys() == DETAIL_TYPES.keys()


@pytest.mark.parametrize("name", CAUSES)
def test_event_fits_its_schema(cloud: Cloud, name: str) -> None:
    """An event matches its schema as a consumer receives it, and so do all other events that arrive with it."""
    marker = uuid.uuid4().hex
    with cloud.events() as bus:
        CAUSES[name](cloud, marker)
        event = bus.wait_for(lambda event: event["detail-type"] == name and marker in json.dumps(event["detail"]))
        if name in {"Message Failed", "Message Outcome Unknown"}:
            take_out(cloud, marker)

        validate(event)
        for other in bus.events:
            validate(other)
