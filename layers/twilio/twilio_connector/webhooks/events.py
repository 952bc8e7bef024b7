"""Turns Twilio's deliveries into events with source `twilio`."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from twilio_connector import clock
from twilio_connector.publishing.event import Event
from twilio_connector.webhooks.request import Delivery

INBOUND = frozenset({"receiving", "received"})
"""The statuses of messages to us."""

# A message goes through these in order, but its callbacks may arrive in another order
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

_ACCOUNT_SID = re.compile("AC[0-9a-fA-F]{32}")
_MESSAGE_SID = re.compile("(SM|MM)[0-9a-fA-F]{32}")
_CALL_SID = re.compile("CA[0-9a-fA-F]{32}")
_ERROR_SID = re.compile("NO[0-9a-fA-F]{32}")
_NUMBER = re.compile("[0-9]{1,9}")

# A sink's test event. Its `id` is the account's, so it is the same in every test
# (https://www.twilio.com/docs/events/webhook-quickstart).
_SINK_TEST = "com.twilio.eventstreams.test-event"


class Origin(NamedTuple):
    """An event's origin: the connection, the account, and the URL that Twilio called, without query."""

    connection: str
    account_sid: str
    url: str


def of_delivery(delivery: Delivery, marks: Mapping[str, str], idempotency_key: str | None = None) -> Iterator[Event]:
    """Yield the events of a delivery: one, or one for each CloudEvent of an Event Streams array.

    `marks` are the fields that tell consumers what is uncertain. The parameters decide only which event it is: nothing
    that was signed is left out.
    """
    origin = Origin(delivery.connection, delivery.account_sid, delivery.url)
    parameters = delivery.parameters
    more: dict[str, Any] = {"query": delivery.query} if delivery.query else {}
    more |= marks
    if events := _cloud_events(delivery):
        for each in events:
            yield _event(origin, "Event Stream Event", _cloud_event_id(each), each, **more)
    elif about := message(delivery):
        # Of a message to us, a callback's URL says nothing.
        more |= {"send_id": delivery.send} if delivery.send and about["status"] not in INBOUND else {}
        yield of_message(origin, about, parameters, idempotency_key, **more)
    else:
        name = "Error Logged" if _is_error(delivery) else "Webhook Received"
        yield _event(origin, name, _signed_id(delivery, marks), parameters, **more)


def of_message(
    origin: Origin, about: Mapping[str, Any], parameters: Any, idempotency_key: str | None = None, **more: Any
) -> Event:
    """Return the event for a message with this status; `parameters` are Twilio's."""
    keyed = {"idempotency_key": idempotency_key} if idempotency_key else {}
    key = f"{origin.account_sid}:{about['sid']}:{about['status']}"
    return _event(origin, _message_event(about), key, parameters, message=about, **keyed, **more)


def message(delivery: Delivery) -> dict[str, Any] | None:
    """Return the message that a form is about, with the field names of Twilio's API; None if it is about none.

    Absent fields are None. A form of a Studio widget with some of a message's parameters is not about a message.
    """
    given = _texts(delivery)
    sid = next((given[name] for name in ("MessageSid", "SmsSid") if _is(_MESSAGE_SID, given.get(name))), None)
    stands = given.keys() >= {"From", "To"} and not given.keys().isdisjoint({"MessageStatus", "SmsStatus"})
    if not (sid and stands and _is(_ACCOUNT_SID, given.get("AccountSid"))):
        return None
    return ranked({
        "sid": sid,
        "from": given["From"] or None,
        "to": given["To"],
        "body": given.get("Body"),
        "status": given.get("MessageStatus") or given.get("SmsStatus") or None,
        "error_code": _number(given.get("ErrorCode")),
        "opt_out_type": given.get("OptOutType") or None,
        "messaging_service_sid": given.get("MessagingServiceSid") or None,
        "num_media": _number(given.get("NumMedia")) or 0,
        "media": [
            {"url": given[f"MediaUrl{number}"], "content_type": given.get(f"MediaContentType{number}")}
            for number in range(10)
            if f"MediaUrl{number}" in given
        ],
    })  # fmt: skip


def is_call(delivery: Delivery) -> bool:
    """Tell whether a form is about a call."""
    return _is(_CALL_SID, _texts(delivery).get("CallSid"))


def ranked(about: dict[str, Any]) -> dict[str, Any]:
    """Return a message; an outbound one gets its status's rank, and whether that status is final."""
    status = about["status"]
    if status in INBOUND:
        return about
    return about | {"status_rank": _RANKS.get(status or "", 0), "terminal": status in _TERMINAL}


def _message_event(about: Mapping[str, Any]) -> str:
    if about["status"] not in INBOUND:
        return "Message Status Changed"
    return "Opt-Out Changed" if about["opt_out_type"] else "Message Received"


def _texts(delivery: Delivery) -> dict[str, str]:
    """Return the parameters that occur once in a form; none for JSON."""
    if not delivery.is_form:
        return {}
    return {name: value for name, value in delivery.parameters.items() if isinstance(value, str)}


def _is(pattern: re.Pattern[str], value: str | None) -> bool:
    return value is not None and pattern.fullmatch(value) is not None


def _number(value: str | None) -> int | None:
    return int(value) if value and _NUMBER.fullmatch(value) else None


def _is_error(delivery: Delivery) -> bool:
    """Tell whether a form is from Twilio's Debugger (https://www.twilio.com/docs/usage/troubleshooting/debugging-event-webhooks)."""
    given = _texts(delivery)
    has_sids = _is(_ERROR_SID, given.get("Sid")) and _is(_ACCOUNT_SID, given.get("AccountSid"))
    return has_sids and given.keys() >= {"Level", "Payload", "PayloadType"}


def _signed_id(delivery: Delivery, marks: Mapping[str, str]) -> str:
    """Return an id that is equal for repeats of a delivery, for a delivery without an id of its own.

    A Studio widget or a `<Gather>` may post the same content again on purpose, with another token.
    """
    text = delivery.reading.text.encode("utf-8", "surrogatepass")
    others = [delivery.repeat, delivery.reading.digest if "reading" in marks else ""]
    if any(others):
        # As JSON, so that a text with a token cannot equal another text.
        text = msgspec.json.encode([hashlib.sha256(text).hexdigest(), *others])
    return hashlib.sha256(text).hexdigest()


def _cloud_events(delivery: Delivery) -> list[dict[str, Any]]:
    """Return the CloudEvents of an Event Streams array; none if one of its elements is something else."""
    given = delivery.parameters
    if delivery.is_form or not isinstance(given, list):
        return []
    return given if all(_is_cloud_event(each) for each in given) else []


def _is_cloud_event(value: Any) -> bool:
    """Tell whether a value is a CloudEvent. Its `id`, which identifies it, must be text and not empty."""
    return isinstance(value, dict) and "specversion" in value and isinstance(value.get("id"), str) and value["id"] != ""


def _cloud_event_id(each: Mapping[str, Any]) -> str:
    test = each.get("data")
    if each.get("type") == _SINK_TEST and isinstance(test, dict):
        return f"{each['id']}:{test.get('test_id')}"
    return str(each["id"])


def _event(origin: Origin, name: str, key: str, parameters: Any, **more: Any) -> Event:
    received_at = datetime.fromtimestamp(clock.now(), UTC).isoformat(timespec="milliseconds")
    detail = {
        "connection": origin.connection,
        "account_sid": origin.account_sid,
        "deduplication_id": key,
        "received_at": received_at.replace("+00:00", "Z"),
        "url": origin.url,
        "parameters": parameters,
        **more,
    }
    return Event(name, detail)
