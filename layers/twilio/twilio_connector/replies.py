"""What Twilio is told to do with an inbound message or a call: TwiML of the user's own function, or a fixed text."""

import re
import time
from typing import Any, NamedTuple
from xml.parsers import expat
from xml.sax.saxutils import escape

import msgspec

from twilio_connector import aws, telemetry
from twilio_connector.deadline import Deadline
from twilio_connector.settings import variable
from twilio_connector.signed_form import Kind
from twilio_connector.twilio_events import SOURCE, Event

NOTHING = "<Response/>"
"""Twilio is to do nothing."""

MAX_BYTES = 64 * 1024
"""https://www.twilio.com/docs/api/errors/11750"""
_FRESH_SECONDS = 300
_NOT_IN_XML = "[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # compiled on use, which takes 5 ms


class _Setting(NamedTuple):
    """The function to ask, else the text to answer with; read anew after a while."""

    function_arn: str
    text: str
    fresh_until: float


class _FailedError(Exception):
    """There is no reply; the message says why, and nothing of the reply."""


_settings: dict[str, _Setting] = {}


def reply(about: Kind, event: Event, deadline: Deadline) -> str:
    """Return the TwiML with which a delivery is answered, whose event was published; `<Response/>` if all else fails.

    Twilio answers opt-outs itself, and nothing that it tells of a message we sent wants a reply.
    """
    parameter = variable("REPLY_PARAMETER")
    is_message = event.detail_type == "Message Received"
    if not parameter or not (is_message or about is Kind.CALL):
        return NOTHING
    try:
        setting = _setting(parameter, deadline)
        if setting.function_arn:
            return _asked(setting.function_arn, event, deadline)
    except (_FailedError, aws.RefusedError) as error:
        telemetry.count("RepliesFailed")
        extra = {"function": "webhook", "reason": str(error), "error": type(error).__name__}
        telemetry.logger.error("no reply", extra=extra)
        return NOTHING
    text = escape(re.sub(_NOT_IN_XML, "", setting.text))
    return f"<Response><Message>{text}</Message></Response>" if is_message and text else NOTHING


def _setting(parameter: str, deadline: Deadline) -> _Setting:
    """Return the setting: the ARN on the first line, the text on the others."""
    known = _settings.get(parameter)
    if known and time.monotonic() < known.fresh_until:
        return known
    if deadline.remaining() < aws.SECONDS:
        raise _FailedError("too little time was left to read how to reply")
    try:
        value: str = aws.call("ssm", "GetParameter", Name=parameter)["Parameter"]["Value"]
    except aws.RefusedError:
        if known:
            return known
        raise
    arn, _, text = value.partition("\n")
    setting = _Setting(arn.strip(), text.strip(), time.monotonic() + _FRESH_SECONDS)
    _settings[parameter] = setting
    return setting


def _asked(function_arn: str, event: Event, deadline: Deadline) -> str:
    """Return what a function replies to an event: TwiML as a JSON text, or nothing."""
    if deadline.remaining() < aws.REPLY_SECONDS + 1:  # to connect
        raise _FailedError("too little time was left to ask for a reply")
    payload = {"source": SOURCE, "detail-type": event.detail_type, "detail": event.detail}
    answer = aws.invoke(function_arn, msgspec.json.encode(payload))
    if answer is None:
        raise _FailedError("the function failed")
    try:
        twiml: Any = msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _FailedError("the function returned no JSON") from None
    if twiml is None:
        return NOTHING
    if not isinstance(twiml, str):
        raise _FailedError("the function returned neither a text nor null")
    if len(twiml.encode()) > MAX_BYTES:
        raise _FailedError("the TwiML has more than 64 KB")
    if _root(twiml) != "Response":
        raise _FailedError("the TwiML is no XML document with a Response")
    return twiml


def _root(text: str) -> str | None:
    """Return the name of an XML document's root, or None where it is none."""
    names: list[str] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, _: names.append(name)
    try:
        parser.Parse(text, True)  # noqa: FBT003 it takes no names
    except (expat.ExpatError, UnicodeError):
        return None
    return names[0]
