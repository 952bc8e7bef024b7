"""Events of each caller, each of them unique, and a check of the answers."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

from bench import ROOT
from bench.account import AUTH_TOKEN, PHONE

QUEUE_ARN = "arn:aws:sqs:us-east-1:000000000000:SendQueue"

FORM_OF_20_FIELDS = {
    "AccountSid": f"AC{'0' * 32}",
    "ApiVersion": "2010-04-01",
    "Body": "Hello & welcome + 100 % é👍, to your parcel's own number",
    "From": "+15551234567",
    "FromCity": "SAN FRANCISCO",
    "FromCountry": "US",
    "FromState": "CA",
    "FromZip": "94105",
    "MessageSid": f"SM{'0' * 32}",
    "MessagingServiceSid": f"MG{'0' * 32}",
    "NumMedia": "0",
    "NumSegments": "1",
    "SmsMessageSid": f"SM{'0' * 32}",
    "SmsSid": f"SM{'0' * 32}",
    "SmsStatus": "received",
    "To": PHONE,
    "ToCity": "NEW YORK",
    "ToCountry": "US",
    "ToState": "NY",
    "ToZip": "10001",
}
"""An inbound message with all the fields that Twilio usually sends."""


def load(name: str) -> Any:
    """Return the event in a file of `events/`, or None if there is no such file."""
    file = ROOT / "events" / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def sms(index: int) -> dict[str, Any]:
    """Return an input of send_sms."""
    return {"to": PHONE, "message": f"Your parcel {index} is on its way."}


def api(index: int) -> dict[str, Any]:
    """Return an API call that sends a message."""
    event: dict[str, Any] = load("send_sms_api")
    return event | {"body": json.dumps(sms(index))}


def api_with_key(index: int) -> dict[str, Any]:
    """Return an API call that sends a message with an idempotency key."""
    event: dict[str, Any] = load("send_sms_api")
    return event | {"body": json.dumps(sms(index) | {"idempotency_key": f"parcel-{index}"})}


def records(first: int, count: int = 1) -> dict[str, Any]:
    """Return a batch of the send queue."""
    record = load("send_sms_sqs")["Records"][0] | {"eventSourceARN": QUEUE_ARN}
    return {
        "Records": [
            record | {"messageId": f"00000000-0000-4000-8000-{index:012x}", "body": json.dumps(sms(index))}
            for index in range(first, first + count)
        ]
    }


def webhook_form(index: int) -> dict[str, Any]:
    """Return a signed webhook with an inbound message."""
    event: dict[str, Any] = load("webhook")
    fields = dict(parse_qsl(base64.b64decode(event["body"]).decode(), keep_blank_values=True))
    fields |= dict.fromkeys(("MessageSid", "SmsMessageSid", "SmsSid"), f"SM{index:032x}")
    url = f"https://{event['requestContext']['domainName']}{event['rawPath']}"
    headers = event["headers"] | {
        "i-twilio-idempotency-token": f"00000000-0000-4000-8000-{index:012x}",
        "x-twilio-signature": signature(url, fields),
    }
    return event | {"headers": headers, "body": base64.b64encode(urlencode(fields).encode()).decode()}


def webhook_json(index: int) -> dict[str, Any]:
    """Return a signed webhook with an event of Event Streams."""
    event: dict[str, Any] = load("webhook_event_streams")
    streamed = json.loads(event["body"])
    streamed[0]["id"] = f"EZ{index:032x}"
    body = json.dumps(streamed)
    query = f"bodySHA256={hashlib.sha256(body.encode()).hexdigest()}"
    url = f"https://{event['requestContext']['domainName']}{event['rawPath']}?{query}"
    headers = event["headers"] | {"x-twilio-signature": signature(url, {})}
    parameters = {"bodySHA256": query.partition("=")[2]}
    return event | {
        "headers": headers,
        "body": body,
        "rawQueryString": query,
        "queryStringParameters": parameters,
    }


def signature(url: str, fields: dict[str, str]) -> str:
    """Return Twilio's signature (https://www.twilio.com/docs/usage/webhooks/webhooks-security)."""
    text = url + "".join(name + fields[name] for name in sorted(fields))
    return base64.b64encode(hmac.digest(AUTH_TOKEN.encode(), text.encode(), hashlib.sha1)).decode()


SHAPES: dict[str, Callable[[int], Any]] = {
    "direct": sms,
    "api": api,
    "api_with_key": api_with_key,
    "sqs": records,
    "webhook_form": webhook_form,
    "webhook_json": webhook_json,
}


def first(function: str) -> Any:
    """Return the event of a function's first invocation: an API call, if the function has one."""
    if function == "webhook":
        return webhook_form(0)
    return load(f"{function}_api") or load(function) or {}


def fault(answer: Any) -> str | None:
    """Return the fault in an answer, or None, so that failed invocations are not measured."""
    if not isinstance(answer, dict):
        return f"it is {answer!r:.200}"
    failed = answer.get("errorType") or answer.get("batchItemFailures")
    return str(answer)[:200] if failed or int(answer.get("statusCode", 200)) >= 400 else None  # noqa: PLR2004 HTTP's
