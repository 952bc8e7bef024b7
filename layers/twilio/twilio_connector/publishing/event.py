"""One event that goes to the bus."""

import hashlib
from typing import Any, NamedTuple

SOURCE = "twilio"
"""Source of the events that repeat what Twilio said. Nothing else in the stack uses it."""


class Event(NamedTuple):
    """One event; `detail` is as docs/reference.md describes it, always with account and `deduplication_id`."""

    detail_type: str
    detail: dict[str, Any]


def log_fields(event: Event) -> dict[str, Any]:
    """Return an event's fields in the log: names and ids of the stack and of Twilio."""
    message = event.detail.get("message")
    return {
        "detail_type": event.detail_type,
        "connection": event.detail.get("connection"),
        "message_sid": message.get("sid") if isinstance(message, dict) else None,
        "send_id": event.detail.get("send_id"),
    }


def event_key(event: Event) -> str:
    """Return the key of an event's item; each account has its own."""
    return hashlib.sha256(
        f"{event.detail['account_sid']}\n{event.detail['deduplication_id']}".encode("utf-8", "surrogatepass")
    ).hexdigest()
