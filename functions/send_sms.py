"""Send one SMS or MMS."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field
from twilio_connector import send_queue, sending
from twilio_connector.client import API_PATH, Twilio
from twilio_connector.connection import Connection
from twilio_connector.entrypoint import entrypoint
from twilio_connector.errors import Fault, InvalidInputError
from twilio_connector.inputs import (
    ApplicationSid,
    ContentSid,
    Flag,
    Input,
    MessagingServiceSid,
    Moment,
    Parsed,
    Recipient,
    Sender,
    fields,
)
from twilio_connector.segments import segments

_URL = r"https?://[^\s/?#_]+([/?#]\S*)?"  # Twilio refuses an underscore in the host

Text = Annotated[str, Meta(min_length=1, max_length=1600, description="must be 1 to 1,600 characters of text")]
Url = Annotated[
    str, Meta(pattern=rf"\A{_URL}\Z", description="must be an http or https URL, without underscore in its host")
]
MediaUrls = Annotated[
    list[Annotated[str, Meta(pattern=r"\Ahttps?://\S+\Z")]],
    Meta(min_length=1, max_length=10, description="must be a list of 1 to 10 http or https URLs"),
]
Texts = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, description="must be a list of texts")]
Seconds = Annotated[int, Meta(ge=1, le=36000, description="must be a whole number of seconds from 1 to 36000")]
Key = Annotated[
    str, Meta(pattern=r"\A[!-~]{1,128}\Z", description="must be 1 to 128 visible ASCII characters, without spaces")
]
Count = Annotated[int, Meta(ge=1, description="must be a whole number, 1 or more")]
Price = Annotated[float, Meta(ge=0, le=1e6, description="must be a number, 0 or more")]


_OURS = frozenset({"connection", "idempotency_key", "on_unknown", "dry_run"})  # not Twilio's


class SendSms(Input, frozen=True, kw_only=True):
    """A message: to whom, from whom, saying what.

    The fields are Twilio's create parameters
    (https://www.twilio.com/docs/messaging/api/message-resource#create-a-message).
    """

    to: Recipient
    from_: Sender | None = field(name="from", default=None)
    message: Text | None = None
    messaging_service_sid: MessagingServiceSid | None = None
    media_urls: MediaUrls | None = None
    content_sid: ContentSid | None = None
    content_variables: Annotated[dict[str, Any], Meta(description="must be an object")] | None = None
    status_callback: Url | None = None
    send_at: Moment | None = None
    validity_period: Seconds | None = None
    smart_encoded: Flag | None = None
    shorten_urls: Flag | None = None
    send_as_mms: Flag | None = None
    risk_check: Literal["enable", "disable"] | None = None
    provide_feedback: Flag | None = None
    attempt: Count | None = None
    content_retention: Literal["retain", "discard"] | None = None
    address_retention: Literal["retain", "obfuscate"] | None = None
    application_sid: ApplicationSid | None = None
    persistent_action: Texts | None = None
    fallback_from: Sender | None = None
    traffic_type: Literal["free"] | None = None
    force_delivery: Flag | None = None
    max_price: Price | None = None
    idempotency_key: Key | None = None
    on_unknown: Literal["report", "resend"] | None = None
    dry_run: Flag = False

    @property
    def read_only(self) -> bool:
        """Whether it only says what would be sent."""
        return self.dry_run

    @classmethod
    def combinations(cls, given: Mapping[str, Any]) -> Iterator[Fault]:
        """Yield what Twilio refuses, or would quietly leave out."""
        if not given.keys() & {"message", "media_urls", "content_sid"}:
            yield Fault("message", "is required, unless there are media_urls or a content_sid")
        if "content_sid" in given:
            for name in given.keys() & {"message", "media_urls"}:
                yield Fault(name, "cannot go with content_sid, whose template is the message")
        elif "content_variables" in given:
            yield Fault("content_variables", "needs content_sid")
        if "on_unknown" in given and "idempotency_key" not in given:
            yield Fault("on_unknown", "needs idempotency_key")
        if "from" in given and "messaging_service_sid" not in given:
            yield from _need_service(given)

    def form(self, connection: Connection) -> dict[str, str | list[str]]:
        """Return Twilio's parameters; raises InvalidInputError where the connection has no sender for them."""
        form: dict[str, str | list[str]] = {}
        for name, spec in fields(type(self)).items():
            value = getattr(self, spec.name)
            if value is not None and name not in _OURS:
                form[_parameter(name)] = _written(value)
        if self.send_at:
            form["ScheduleType"] = "fixed"
        if not form.keys() & {"From", "MessagingServiceSid"}:
            form |= self._default_sender(connection)
        return form

    def content(self) -> dict[str, Any]:
        """Return the input as JSON, without what does not make another message of it."""
        values = {name: getattr(self, spec.name) for name, spec in fields(type(self)).items()}
        given = {name: value for name, value in values.items() if value is not None and name not in _OURS}
        return {name: str(value) if isinstance(value, Parsed) else value for name, value in given.items()}

    def _default_sender(self, connection: Connection) -> dict[str, str]:
        if connection.default_messaging_service_sid:
            return {"MessagingServiceSid": connection.default_messaging_service_sid}
        if faults := list(_need_service(msgspec.structs.asdict(self))):
            raise InvalidInputError(*faults)
        if connection.default_from:
            return {"From": str(connection.default_from)}
        raise InvalidInputError(
            Fault("from", "is required, or messaging_service_sid, since the connection has no default sender")
        )


@entrypoint(SendSms, status=lambda sms: 200 if sms.dry_run else 201, queue=send_queue)
def handler(sms: SendSms, twilio: Twilio) -> dict[str, Any]:
    """Return Twilio's message object, or for a dry run the request that would be made."""
    form = sms.form(twilio.connection)
    if sms.idempotency_key is None:
        return _rehearsal(sms, twilio, form) if sms.dry_run else sending.post(twilio, form)
    if not form.keys() & {"StatusCallback", "ApplicationSid"}:
        form |= sending.status_callback(twilio, sms.idempotency_key)
    if sms.dry_run:
        return _rehearsal(sms, twilio, form)
    resend = sms.on_unknown == "resend"
    return sending.at_most_once(twilio, sending.Send(sms.idempotency_key, sms.content(), form, resend))


def _rehearsal(sms: SendSms, twilio: Twilio, form: sending.Form) -> dict[str, Any]:
    path = f"{API_PATH}/Accounts/{twilio.connection.account_sid}/Messages.json"
    return {
        "dry_run": True,
        "request": {"method": "POST", "path": path, "form": form},
        "segments": segments(sms.message or ""),
    }


def _need_service(given: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the fields that only a messaging service can serve."""
    for name in ("send_at", "shorten_urls", "fallback_from"):
        if given.get(name):
            yield Fault(name, "needs messaging_service_sid")


@cache
def _parameter(name: str) -> str:
    """Return Twilio's name of a field."""
    special = {"message": "Body", "media_urls": "MediaUrl"}
    return special.get(name) or re.sub(r"(?:\A|_)([a-z])", lambda match: match[1].upper(), name)


def _written(value: Any) -> str | list[str]:
    """Return a value as a form has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return value
    if isinstance(value, float):
        return f"{value:.10f}".rstrip("0").rstrip(".")
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode()
    return str(value)
