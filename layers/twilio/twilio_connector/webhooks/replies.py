"""Replies to inbound messages and calls: TwiML of the user's own function, or a fixed text."""

import re
from typing import Any, NamedTuple
from xml.parsers import expat
from xml.sax.saxutils import escape

import msgspec

from twilio_connector import clock, telemetry
from twilio_connector.aws import client
from twilio_connector.deadline import Deadline
from twilio_connector.publishing.event import SOURCE, Event
from twilio_connector.settings import variable

NOTHING = "<Response/>"
"""The TwiML with which Twilio does nothing."""

MAX_BYTES = 64 * 1024
"""https://www.twilio.com/docs/api/errors/11750"""
_FRESH_SECONDS = 300
_NOT_IN_XML = "[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # compiled on use, which takes 5 ms


class _Setting(NamedTuple):
    """The reply function, or otherwise the reply text. It is read again after `fresh_until`."""

    function_arn: str
    text: str
    fresh_until: float


class _FailedError(Exception):
    """There is no reply. The message says why, and repeats nothing of the reply."""


_settings: dict[str, _Setting] = {}


def reply(event: Event, deadline: Deadline, *, is_call: bool) -> str:
    """Return the TwiML reply to a delivery whose event was published; `<Response/>` if there is none.

    Opt-outs get no reply, since Twilio answers them itself. Status callbacks get none either.
    """
    parameter = variable("REPLY_PARAMETER")
    is_message = event.detail_type == "Message Received"
    if not parameter or not (is_message or is_call):
        return NOTHING
    try:
        setting = _setting(parameter, deadline)
        if setting.function_arn:
            return _asked(setting.function_arn, event, deadline)
    except (_FailedError, client.AwsError) as error:
        telemetry.count("RepliesFailed")
        telemetry.logger.error("no reply", extra={"reason": str(error), "error": type(error).__name__})
        return NOTHING
    text = escape(re.sub(_NOT_IN_XML, "", setting.text))
    return f"<Response><Message>{text}</Message></Response>" if is_message and text else NOTHING


def _setting(parameter: str, deadline: Deadline) -> _Setting:
    """Return the setting: the ARN on the first line, the text on the others."""
    known = _settings.get(parameter)
    if known and clock.monotonic() < known.fresh_until:
        return known
    if deadline.remaining() < client.SECONDS:
        raise _FailedError("too little time was left to read the setting for replies")
    try:
        value: str = client.call("ssm", "GetParameter", Name=parameter)["Parameter"]["Value"]
    except client.AwsError:
        if known:
            return known
        raise
    arn, _, text = value.partition("\n")
    setting = _Setting(arn.strip(), text.strip(), clock.monotonic() + _FRESH_SECONDS)
    _settings[parameter] = setting
    return setting


def _asked(function_arn: str, event: Event, deadline: Deadline) -> str:
    """Return a reply function's TwiML for an event, which it returns as a JSON text or null."""
    if deadline.remaining() < client.REPLY_SECONDS + 1:  # to connect
        raise _FailedError("too little time was left to invoke the reply function")
    payload = {"source": SOURCE, "detail-type": event.detail_type, "detail": event.detail}
    answer = client.invoke(function_arn, msgspec.json.encode(payload))
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
        raise _FailedError("the TwiML is not an XML document with a Response")
    return twiml


def _root(text: str) -> str | None:
    """Return the name of an XML document's root, or None if the text is not XML."""
    names: list[str] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, _: names.append(name)
    try:
        parser.Parse(text, True)  # noqa: FBT003 it takes no names
    except (expat.ExpatError, UnicodeError):
        return None
    return names[0]
