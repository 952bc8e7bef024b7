"""Get one message."""

from typing import Any

from twilio_connector.client import Message, Twilio
from twilio_connector.entrypoint import entrypoint
from twilio_connector.inputs import Input, MessageSid


class GetSms(Input, frozen=True, kw_only=True):
    """Which message."""

    message_sid: MessageSid


@entrypoint(GetSms)
def handler(sms: GetSms, twilio: Twilio) -> dict[str, Any]:
    """Return Twilio's message object."""
    message: dict[str, Any] = twilio.request("GET", f"Messages/{sms.message_sid}.json", proof=Message).data
    return message
