"""What Twilio tells, as events of the bus with source `twilio`."""

import hashlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from twilio_connector.signed_form import Kind
from twilio_connector.signed_request import Delivery

SOURCE = "twilio"
"""Consumers may take it for "Twilio said this": nothing else in the stack uses it."""

INBOUND = frozenset({"receiving", "received"})
"""The statuses of messages to us."""

# A message goes through these in order, though its callbacks may not arrive so
# (https://www.twilio.com/docs/messaging/guides/outbound-message-status-in-status-callbacks).
_RANKS = {
    "accepted": 1,
    "scheduled": 1,
    "queued": 2,
    "sending": 3,
    "sent": 4,
    "partially_delivered": 5,
    "delivered": 6,
    "undelivered": 6,
    "failed": 6,
    "canceled": 6,
    "read": 7,
}
_TERMINAL = frozenset({"delivered", "undelivered", "failed", "canceled", "read"})

# What a sink sends when somebody tests it. Its `id` is the account's, and so the same every time
# (https://www.twilio.com/docs/events/webhook-quickstart).
_SINK_TEST = "com.twilio.eventstreams.test-event"


class Event(NamedTuple):
    """One event; `detail` is as the README describes it, always with account and `deduplication_id`."""

    detail_type: str
    detail: dict[str, Any]


class Origin(NamedTuple):
    """Whose an event is: the connection, the account, and the URL where Twilio told it (without query)."""

    connection: str
    account_sid: str
    url: str


def of_delivery(delivery: Delivery, idempotency_key: str | None = None) -> Iterator[Event]:
    """Yield the events of a delivery: one, or one for each CloudEvent of an Event Streams array."""
    origin = Origin(delivery.connection, delivery.account_sid, delivery.url)
    parameters = delivery.parameters
    if _are_cloud_events(parameters):
        for each in parameters:
            yield _event(origin, "Event Stream Event", _cloud_event_id(each), each)
    elif delivery.about is Kind.MESSAGE:
        yield of_message(origin, message(parameters), parameters, idempotency_key)
    else:
        key = hashlib.sha256(delivery.signed.encode("utf-8", "surrogatepass")).hexdigest()
        yield _event(origin, "Error Logged" if delivery.about is Kind.ERROR else "Webhook Received", key, parameters)


def of_message(origin: Origin, about: Mapping[str, Any], parameters: Any, idempotency_key: str | None = None) -> Event:
    """Return the event that a message has this status; `parameters` is what Twilio said of it."""
    keyed = {"idempotency_key": idempotency_key} if idempotency_key else {}
    key = f"{origin.account_sid}:{about['sid']}:{about['status']}"
    return _event(origin, _message_event(about), key, parameters, message=about, **keyed)


def message(parameters: Mapping[str, str]) -> dict[str, Any]:
    """Return the message in a webhook's parameters, in the words of Twilio's API; None for what is not there."""
    error_code = parameters.get("ErrorCode")
    num_media = parameters.get("NumMedia") or "0"
    return ranked({
        "sid": parameters["MessageSid"],
        "from": parameters["From"] or None,
        "to": parameters["To"],
        "body": parameters.get("Body"),
        "status": parameters.get("MessageStatus") or parameters.get("SmsStatus") or None,
        "error_code": int(error_code) if error_code and error_code.isdigit() else None,
        "opt_out_type": parameters.get("OptOutType"),
        "messaging_service_sid": parameters.get("MessagingServiceSid") or None,
        "num_media": int(num_media) if num_media.isdigit() else 0,
        "media": [
            {"url": parameters[f"MediaUrl{number}"], "content_type": parameters.get(f"MediaContentType{number}")}
            for number in range(10)
            if f"MediaUrl{number}" in parameters
        ],
    })  # fmt: skip


def ranked(about: dict[str, Any]) -> dict[str, Any]:
    """Return a message; one that was sent has its status's rank, and whether another may follow."""
    status = about["status"]
    if status in INBOUND:
        return about
    return about | {"status_rank": _RANKS.get(status or "", 0), "terminal": status in _TERMINAL}


def _message_event(about: Mapping[str, Any]) -> str:
    if about["status"] not in INBOUND:
        return "Message Status Changed"
    return "Opt-Out Changed" if about["opt_out_type"] else "Message Received"


def _are_cloud_events(parameters: Any) -> bool:
    return (
        isinstance(parameters, list)
        and bool(parameters)
        and all(isinstance(each, dict) and "specversion" in each and "id" in each for each in parameters)
    )


def _cloud_event_id(each: Mapping[str, Any]) -> str:
    test = each.get("data")
    if each.get("type") == _SINK_TEST and isinstance(test, dict):
        return f"{each['id']}:{test.get('test_id')}"
    return str(each["id"])


def _event(origin: Origin, name: str, key: str, parameters: Any, **more: Any) -> Event:
    detail = {
        "connection": origin.connection,
        "account_sid": origin.account_sid,
        "deduplication_id": key,
        "received_at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "url": origin.url,
        "parameters": parameters,
        **more,
    }
    return Event(name, detail)
