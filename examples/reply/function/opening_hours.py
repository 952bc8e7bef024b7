"""Reply to messages and calls outside the opening hours with a text that states the hours."""

import os
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import escape

_SATURDAY = 5


def handler(event: dict[str, Any], context: Any) -> str | None:  # noqa: ARG001 Lambda passes it
    """Return a TwiML reply outside the opening hours, or None during them."""
    if _is_open(datetime.now(UTC)):
        return None
    verb = "Message" if event["detail-type"] == "Message Received" else "Say"
    return f"<Response><{verb}>{escape(os.environ['CLOSED_TEXT'])}</{verb}></Response>"


def _is_open(now: datetime) -> bool:
    """Return whether a time is on a working day and within the opening hours."""
    return now.weekday() < _SATURDAY and int(os.environ["OPENS_AT"]) <= now.hour < int(os.environ["CLOSES_AT"])
