"""Get one message."""

from typing import Any

from msgspec import Struct
from twilio_connector.client import Twilio
from twilio_connector.entrypoint import entrypoint
from twilio_connector.inputs import Input, MessageSid


class GetSms(Input, frozen=True, kw_only=True):
    """Which message."""

    message_sid: MessageSid


class Message(Struct):
    """What Twilio's answer has if it is a message."""

    sid: MessageSid


@entrypoint(GetSms)
def handler(sms: GetSms, twilio: Twilio) -> dict[str, Any]:
    """Return Twilio's message object."""
    message: dict[str, Any] = twilio.request("GET", f"Messages/{sms.message_sid}.json", proof=Message).data
    return message
