"""The deployed stack's webhook: requests that Twilio's emulator signed are published on the bus, and no others."""

import json
import uuid

import pytest
import requests

from tests.integration.cloud import Cloud
from tests.mutants import send

CUSTOMER = "+15550100123"


def post(url: str, fields: dict[str, str], signature: str | None) -> requests.Response:
    """Post a form to the webhook."""
    headers = {} if signature is None else {"X-Twilio-Signature": signature}
    return requests.post(url, data=fields, headers=headers, timeout=30)


def test_inbound_message_is_an_event(cloud: Cloud) -> None:
    """An inbound message becomes the event `Message Received`, with its text unchanged."""
    text = f"Grüße & 100 % ' + 👍 {uuid.uuid4()}"
    with cloud.events() as bus:
        number = cloud.info["twilio"]["number"]
        message = cloud.twilio("POST", "/_twilio/simulate/inbound-message", To=number, From=CUSTOMER, Body=text)
        event = bus.wait_for(lambda event: event["detail"].get("message", {}).get("body") == text)

    detail = event["detail"]
    assert ("twilio", "Message Received") == (event["source"], event["detail-type"])
    assert (message["sid"], CUSTOMER, "received") == (
        detail["message"]["sid"], detail["message"]["from"], detail["message"]["status"],
    )  # fmt: skip
    assert ("default", cloud.info["webhook_url"]) == (detail["connection"], detail["url"])
    assert detail["parameters"]["Body"] == text


def test_status_change_is_an_event(cloud: Cloud) -> None:
    """A status callback becomes the event `Message Status Changed`, which says that the status is terminal."""
    sid = cloud.invoke("SendSms", {"to": "+15005550006", "message": f"Test {uuid.uuid4()}"})["sid"]
    with cloud.events() as bus:
        cloud.twilio("POST", "/_twilio/simulate/message-status", MessageSid=sid, Status="delivered")
        event = bus.wait_for(lambda event: event["detail"].get("message", {}).get("sid") == sid)

    assert "Message Status Changed" == event["detail-type"]
    assert ("delivered", True) == (event["detail"]["message"]["status"], event["detail"]["message"]["terminal"])


@pytest.mark.parametrize("query", ["", "?order=7"], ids=["no query", "query"])
def test_connection_overrides_are_not_signed(cloud: Cloud, query: str) -> None:
    """The fragment of a callback's URL has options for Twilio, which neither sends nor signs it: the event arrives."""
    url = f"{cloud.info['webhook_url']}{query}#rc=2&rp=all"
    sms = {"to": "+15005550006", "message": f"Test {uuid.uuid4()}", "status_callback": url}
    with cloud.events() as bus:
        sid = cloud.invoke("SendSms", sms)["sid"]
        event = bus.wait_for(lambda event: event["detail"].get("message", {}).get("sid") == sid)

    assert "queued" == event["detail"]["message"]["status"]


@pytest.mark.parametrize("signature", [None, "", "AAAAAAAAAAAAAAAAAAAAAAAAAAA=", "\xe9"], ids=repr)
def test_forged_webhook_is_refused(cloud: Cloud, signature: str | None) -> None:
    """A request without Twilio's signature is answered with 403, always the same, and publishes no event."""
    with cloud.events() as bus:
        fields = {"AccountSid": cloud.info["twilio"]["account_sid"], "Body": "forged"}
        answer = post(cloud.info["webhook_url"], fields, signature)

        assert (403, '{"message":"Forbidden"}') == (answer.status_code, answer.text)
        assert [] == bus.drain()


def test_unknown_connection_is_refused_alike(cloud: Cloud) -> None:
    """A request for an unknown connection gets the same 403 as a forged one, so that it reveals no names."""
    answer = post(f"{cloud.info['webhook_url']}/nobody", {"AccountSid": "AC" + "0" * 32}, "x")

    assert (403, '{"message":"Forbidden"}') == (answer.status_code, answer.text)


def test_bus_and_buffer_that_refuse_are_unavailable(cloud: Cloud) -> None:
    """If neither EventBridge nor the buffer takes an event, the webhook answers 503, and 200 once one of them does."""
    request, target = cloud.inbound("unavailable").request(cloud.target()), cloud.target()
    iam, role = cloud.client("iam"), cloud.resource("WebhookFunctionRole")
    [name] = iam.list_role_policies(RoleName=role)["PolicyNames"]
    policy = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
    iam.delete_role_policy(RoleName=role, PolicyName=name)
    try:
        refused = send(request, target)
    finally:
        iam.put_role_policy(RoleName=role, PolicyName=name, PolicyDocument=json.dumps(policy))

    assert (503, '{"message":"Service Unavailable"}', "application/json") == refused
    assert (200, "<Response/>", "text/xml") == send(request, target)
