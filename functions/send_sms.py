"""Send one SMS or MMS."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, field
from twilio_connector import telemetry
from twilio_connector.api.client import API_PATH, Twilio
from twilio_connector.api.connections import Connection
from twilio_connector.errors import Fault, InvalidInputError
from twilio_connector.invocation.caller import Caller
from twilio_connector.invocation.handler import lambda_handler
from twilio_connector.messaging import queue_consumer
from twilio_connector.messaging.idempotency import record_id
from twilio_connector.messaging.segments import segments
from twilio_connector.messaging.sender import Form, Send, post_message, send_at_most_once, status_callback
from twilio_connector.validation import phone_numbers
from twilio_connector.validation.model import (
    INVALID,
    ApplicationSid,
    ContentSid,
    Flag,
    IdempotencyKey,
    Input,
    MessagingServiceSid,
    Moment,
    Parsed,
    Recipient,
    Sender,
    fields,
)

_URL = r"https?://[^\s/?#_]++([/?#]\S*+)?"  # Twilio refuses an underscore in the host
_MAX_URL = 8_192  # characters; what most servers take

Text = Annotated[str, Meta(min_length=1, max_length=1600, description="must be 1 to 1,600 characters of text")]
Url = Annotated[
    str,
    Meta(
        max_length=_MAX_URL,
        pattern=rf"\A{_URL}\Z",
        description=f"must be an http or https URL of at most {_MAX_URL:,} characters, without underscore in its host",
    ),
]
MediaUrls = Annotated[
    list[Annotated[str, Meta(max_length=_MAX_URL, pattern=r"\Ahttps?://\S++\Z")]],
    Meta(
        min_length=1,
        max_length=10,
        description=f"must be a list of 1 to 10 http or https URLs of at most {_MAX_URL:,} characters",
    ),
]
# Twilio refuses values that are null, empty or no texts (https://www.twilio.com/docs/api/errors/21656).
Variables = Annotated[
    dict[str, Annotated[str, Meta(min_length=1)] | int | Annotated[float, Meta(ge=-1e300, le=1e300)] | bool],
    Meta(description='must be an object, such as {"1": "Ada"}, whose values are texts, numbers or booleans'),
]
# Twilio's list may grow (https://www.twilio.com/docs/messaging/features/traffic-shaping).
Intent = Annotated[
    str, Meta(pattern=r"\A[A-Za-z_-]{1,64}\Z", description="must be a word such as otp, notifications or marketing")
]
Texts = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, description="must be a list of texts")]
Seconds = Annotated[int, Meta(ge=1, le=36000, description="must be a whole number of seconds from 1 to 36000")]
Count = Annotated[int, Meta(ge=1, description="must be a whole number, 1 or more")]
Price = Annotated[float, Meta(ge=0, le=1e6, description="must be a number, 0 or more")]


CONNECTOR_FIELDS = frozenset({"connection", "idempotency_key", "on_unknown", "dry_run"})  # not Twilio's

MAX_BYTES = 384 * 1024
"""Most bytes of all fields together, as JSON. The ledger holds them in one item, which DynamoDB limits to 400 KB."""


class SendSms(Input, frozen=True, kw_only=True):
    """A message to send.

    The fields are Twilio's create parameters
    (https://www.twilio.com/docs/messaging/api/message-resource#create-a-message).
    """

    also_called: ClassVar[Mapping[str, str]] = {"body": "message", "schedule_type": "send_at"}
    keyed_by_delivery = True

    to: Recipient
    from_: Sender | None = field(name="from", default=None)
    message: Text | None = None
    messaging_service_sid: MessagingServiceSid | None = None
    media_urls: MediaUrls | None = None
    content_sid: ContentSid | None = None
    content_variables: Variables | None = None
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
    message_intent: Intent | None = None
    idempotency_key: IdempotencyKey | None = None
    on_unknown: Literal["report", "resend"] | None = None
    dry_run: Flag = False

    @property
    def read_only(self) -> bool:
        """Whether it is a dry run, which sends nothing."""
        return self.dry_run

    @property
    def outcome(self) -> str:
        """Whether it was sent, or only checked."""
        return "checked" if self.dry_run else "sent"

    @classmethod
    def cross_field_faults(cls, given: Mapping[str, Any]) -> Iterator[Fault]:
        """Yield combinations that Twilio refuses, or would ignore without an error."""
        if not given.keys() & {"message", "media_urls", "content_sid"}:
            yield Fault("message", "is required, unless there are media_urls or a content_sid")
        if "content_sid" in given:
            for name in given.keys() & {"message", "media_urls"}:
                yield Fault(name, "cannot be combined with content_sid, whose template is the message")
        elif "content_variables" in given:
            yield Fault("content_variables", "needs content_sid")
        if "on_unknown" in given and "idempotency_key" not in given:
            yield Fault("on_unknown", "needs idempotency_key")
        if "from" in given and "messaging_service_sid" not in given:
            yield from _need_service(given)
        yield from _wrong_senders(given)
        yield from _too_large(given)

    def form(self, connection: Connection) -> dict[str, str | list[str]]:
        """Return Twilio's parameters; raises InvalidInputError if the connection has no sender for them."""
        form: dict[str, str | list[str]] = {}
        for name, spec in fields(type(self)).items():
            value = getattr(self, spec.name)
            if value is not None and name not in CONNECTOR_FIELDS:
                form[_parameter(name)] = form_value(value)
        if self.send_at:
            form["ScheduleType"] = "fixed"
        if not form.keys() & {"From", "MessagingServiceSid"}:
            form |= self._default_sender(connection)
        return form

    def content(self) -> dict[str, Any]:
        """Return the fields that make up the message, as JSON."""
        values = {name: getattr(self, spec.name) for name, spec in fields(type(self)).items()}
        given = {name: value for name, value in values.items() if value is not None and name not in CONNECTOR_FIELDS}
        return {name: str(value) if isinstance(value, Parsed) else value for name, value in given.items()}

    def _default_sender(self, connection: Connection) -> dict[str, str]:
        if connection.default_messaging_service_sid:
            return {"MessagingServiceSid": connection.default_messaging_service_sid}
        if faults := list(_need_service(msgspec.structs.asdict(self))):
            raise InvalidInputError(*faults)
        if connection.default_from:
            if mixed := _mixed(self.to, connection.default_from, "the connection's default_from"):
                raise InvalidInputError(mixed)
            return {"From": str(connection.default_from)}
        raise InvalidInputError(
            Fault("from", "is required, unless messaging_service_sid is given: the connection has no default sender")
        )


@lambda_handler(SendSms, status=lambda sms: 200 if sms.dry_run else 201, queue=queue_consumer)
def handler(sms: SendSms, twilio: Twilio, caller: Caller) -> dict[str, Any]:
    """Return Twilio's message object, or for a dry run the request that would be made."""
    if sms.idempotency_key is not None:
        telemetry.note(send_id=record_id(twilio.name, sms.idempotency_key))
    form = sms.form(twilio.connection)
    if sms.idempotency_key is None:
        return dry_run_result(sms, twilio, form) if sms.dry_run else post_message(twilio, form)
    if not form.keys() & {"StatusCallback", "ApplicationSid"}:
        form |= status_callback(twilio, sms.idempotency_key)
    if sms.dry_run:
        return dry_run_result(sms, twilio, form)
    resend = sms.on_unknown == "resend"
    return send_at_most_once(twilio, caller, Send(sms.idempotency_key, sms.content(), form, resend))


def dry_run_result(sms: SendSms, twilio: Twilio, form: Form) -> dict[str, Any]:
    """Return the request that would be made, and the segments of its text."""
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


def _wrong_senders(given: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield senders that Twilio refuses for this recipient, or together."""
    to, sender, fallback = given.get("to"), given.get("from"), given.get("fallback_from")
    if isinstance(to, str) and isinstance(sender, str) and (mixed := _mixed(to, sender, "from")):
        yield mixed
    # https://www.twilio.com/docs/api/errors/21664 and 21665
    if fallback and sender and "messaging_service_sid" in given:
        yield Fault("fallback_from", "cannot be combined with from; the messaging service chooses the first sender")
    if isinstance(fallback, str) and phone_numbers.channel(fallback):
        yield Fault("fallback_from", "must be a number, a short code or a name, which can send SMS")


def _mixed(to: str, sender: str, sender_name: str) -> Fault | None:
    """Return the fault of addresses of two channels (https://www.twilio.com/docs/api/errors/21910)."""
    theirs, ours = phone_numbers.channel(to), phone_numbers.channel(sender)
    if theirs == ours:
        return None
    if theirs:
        return Fault("from", f"must have the same channel as to: {theirs}:…")
    return Fault("to", f"must have the same channel as {sender_name}: {ours}:…")


def _too_large(given: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the largest field if the ledger cannot hold the input."""
    sizes = {
        name: len(msgspec.json.encode(value, enc_hook=str)) for name, value in given.items() if value is not INVALID
    }
    if sum(sizes.values()) > MAX_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        yield Fault(largest, f"is too large: all fields together have at most {MAX_BYTES // 1024} KB as JSON")


@cache
def _parameter(name: str) -> str:
    """Return Twilio's name of a field."""
    special = {"message": "Body", "media_urls": "MediaUrl"}
    return special.get(name) or re.sub(r"(?:\A|_)([a-z])", lambda match: match[1].upper(), name)


def form_value(value: Any) -> str | list[str]:
    """Return a value as Twilio's form parameters spell it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return value
    if isinstance(value, float):
        return f"{value:.10f}".rstrip("0").rstrip(".")
    if isinstance(value, dict):
        return msgspec.json.encode({name: form_value(each) for name, each in value.items()}).decode()
    return str(value)
