"""Genuine requests of every kind that Twilio sends, with unknown parameters, signed by Twilio's own library.

    for each in generate(Target("https://hook.example", account_sid, auth_token), 240):
        ...  # post each.request: the webhook accepts it, and publishes one event for each of each.parameters

Twilio adds parameters without notice, so each request has one to ten invented ones. Their names are empty, dotted,
repeated, lower-case, in any script, or Twilio's own names in unusual places. The same seed gives the same requests.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus, urlsplit

from twilio.request_validator import RequestValidator

from tests.mutants import FORM, JSON, SIGNATURE, Pairs, Request, Target

RECEIVED = "Message Received"
STATUS = "Message Status Changed"
OPT_OUT = "Opt-Out Changed"
STREAM = "Event Stream Event"
ERROR = "Error Logged"
OTHER = "Webhook Received"
DETAIL_TYPES = {RECEIVED, STATUS, OPT_OUT, STREAM, ERROR, OTHER}

TOKEN = "i-twilio-idempotency-token"
"""The header that differs between deliveries, but is the same when Twilio retries one."""


class Genuine(NamedTuple):
    """A request, the parameters of the events that it must cause, and their detail-type, or None if uncertain."""

    kind: str
    request: Request
    parameters: list[Any]
    detail_type: str | None


# Twilio's own signer


class _Fields:
    """A form in the type that Twilio's library expects, with all values of each name."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def getall(self, name: str) -> list[str]:
        """Return the values of a name."""
        return [value for given, value in self._pairs if given == name]


def official(request: Request, target: Target, *, url: str | None = None, algorithm: str = "HMAC_SHA1") -> Request:
    """Return the request as Twilio's library signs it, for its own URL or another."""
    own = (url or request.url).replace("https:", f"{urlsplit(target.base).scheme}:", 1)
    validator = RequestValidator(target.auth_token)
    return request.with_header(SIGNATURE, validator.compute_signature(own, _Fields(request.fields), algorithm))


def with_json(request: Request, body: bytes) -> Request:
    """Return the request with a JSON body, and its hash in the URL."""
    query = "&".join(filter(None, [request.query, f"bodySHA256={hashlib.sha256(body).hexdigest()}"]))
    return replace(request, query=query, body=body, headers=(*request.headers, ("content-type", JSON)))


# The parameters of events


def normal(parameters: Any) -> Any:
    """Return the parameters of an event or a request in a form in which they can be compared.

    An unpaired surrogate cannot be published, so it is replaced.
    """
    if isinstance(parameters, dict):
        return {normal(name): normal(value) for name, value in parameters.items()}
    if isinstance(parameters, list):
        return [normal(value) for value in parameters]
    if isinstance(parameters, str):
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in parameters)
    return parameters


def grouped(pairs: Pairs) -> dict[str, Any]:
    """Return a form's parameters; a repeated name has a sorted list of its distinct values, which Twilio signs."""
    values = {name: sorted({value for given, value in pairs if given == name}) for name, _ in pairs}
    return {name: each if len(each) > 1 else each[0] for name, each in values.items()}


# Parameters that Twilio does not send yet

_NAMES = [
    "", " ", "a", "0", "msg", "uid", "created_date", "from_carrier", "Carrier.Name", "MessagingBinding.Address",
    "meta.customer[id]", "x-y", "__proto__", "constructor", "größe", "日本語", "👍", "With Space", "With+Plus", "a=b",
    "a&b", "%41", "#f", "?q", "\n", "\0", "A" * 200, "bodySHA256", "connection", "deduplication_id", "AiRiskScore",
    "OtherRecipients9", "ProfileUsername", "SmsStatusX", "ToX", "FromX", "MessageSidX", "NewSid", "Zzz", "zzz", "AAA",
]  # fmt: skip
"""The names of unknown parameters; none of them changes the kind of a request."""
_VALUES = [
    "", " ", "x", "0", "1e10", "4.9E-324", "-0.0", "+1555123XXXX", "true", "null", "a=1&b=2", "100% sure", "it's + é👍",
    "Hello\r\n\tTo You", '{"a":[1,null]}', "<b>&amp;</b>", "\u202eabc\u2066", "\0\x1b[0m", "https://x.example/?a=b#c",
    "Called you, From your FriendlyName To Caller", "SmsStatusdeliveredTo+15550001111", "y" * 300, "%zz", "+", "\u00a0",
]  # fmt: skip
_NUMBERS = [0, -1, 1.5, 1e300, 2**53, 2**64 - 1, -(2**63)]


# Kinds


class _Source(random.Random):
    """A random source that can also create SIDs and phone numbers."""

    def sid(self, prefix: str) -> str:
        return f"{prefix}{self.getrandbits(128):032x}"

    def phone(self) -> str:
        return f"+1555{self.randrange(10**7):07}"


def _message(source: _Source, account_sid: str, **more: str) -> dict[str, str]:
    sid = source.sid("MM" if "NumMedia" in more else "SM")
    return {
        "AccountSid": account_sid,
        "ApiVersion": "2010-04-01",
        "Body": source.choice(_VALUES),
        "From": source.phone(),
        "MessageSid": sid,
        "NumMedia": "0",
        "NumSegments": "1",
        "SmsMessageSid": sid,
        "SmsSid": sid,
        "SmsStatus": "received",
        "To": "+15005550006",
        **more,
    }


def _whatsapp(source: _Source, account_sid: str, **more: str) -> dict[str, str]:
    number = source.phone()
    context = json.dumps({"type": "whatsapp", "data": {"context": {"ProfileName": "Ada", "WaId": number[1:]}}})
    own = {"ChannelMetadata": context, "MessageType": "text", "ProfileName": "Ada L.", "WaId": number[1:]}
    addresses = {"From": f"whatsapp:{number}", "To": "whatsapp:+15005550006"}
    return _message(source, account_sid, **(own | addresses | more))


def _status(source: _Source, account_sid: str, status: str, **more: str) -> dict[str, str]:
    sid = source.sid("SM")
    return {
        "AccountSid": account_sid,
        "From": "+15005550006",
        "MessageSid": sid,
        "MessageStatus": status,
        "SmsSid": sid,
        "SmsStatus": status,
        "To": source.phone(),
        **more,
    }


def _call(source: _Source, account_sid: str, **more: str) -> dict[str, str]:
    number = source.phone()
    return {
        "AccountSid": account_sid,
        "ApiVersion": "2010-04-01",
        "CallSid": source.sid("CA"),
        "CallStatus": "in-progress",
        "Called": "+15005550006",
        "CalledCity": "",
        "Caller": number,
        "CallerCity": "Köln",
        "Direction": "inbound",
        "From": number,
        "FromCity": "",
        "To": "+15005550006",
        **more,
    }


def _on_call(source: _Source, account_sid: str, **more: str) -> dict[str, str]:
    return {"AccountSid": account_sid, "CallSid": source.sid("CA"), **more}


_US = {"FromCity": "SAN FRANCISCO", "FromState": "CA", "FromZip": "94105", "ToCity": "", "ToCountry": "US", "ToZip": ""}
_PICTURE = {"NumMedia": "1", "MediaContentType0": "image/jpeg", "MediaUrl0": "https://api.twilio.com/Media/ME1"}

type _Form = Callable[[_Source, str], dict[str, str]]

FORMS: dict[str, tuple[str, _Form]] = {
    "SMS": (RECEIVED, lambda s, a: _message(s, a, **_US)),
    "group MMS": (
        RECEIVED,
        lambda s, a: _message(s, a, **_PICTURE, OtherRecipients0=s.phone(), OtherRecipients1=s.phone()),
    ),
    "SMS, known by SmsSid": (
        RECEIVED,
        lambda s, a: {k: v for k, v in _message(s, a).items() if k not in {"MessageSid", "SmsMessageSid"}},
    ),
    "WhatsApp text": (RECEIVED, lambda s, a: _whatsapp(s, a, ProfileUsername="ada.l")),
    "WhatsApp media": (RECEIVED, lambda s, a: _whatsapp(s, a, **_PICTURE, MessageType="image", Body="")),
    "WhatsApp reply": (
        RECEIVED,
        lambda s, a: _whatsapp(s, a, MessageType="button", ButtonText="Yes", OriginalRepliedMessageSid=s.sid("SM")),
    ),
    "WhatsApp flow": (
        RECEIVED,
        lambda s, a: _whatsapp(s, a, MessageType="interactive", FlowData='{"date":"2026-12-01"}'),
    ),
    "WhatsApp location": (RECEIVED, lambda s, a: _whatsapp(s, a, Latitude="4.9E-5", Longitude="-1.0", Label="Pier 1")),
    "WhatsApp user": (RECEIVED, lambda s, a: _whatsapp(s, a, From="whatsapp:US.13491208655302741918")),
    "RCS": (RECEIVED, lambda s, a: _message(s, a, From=f"rcs:{s.phone()}", To="rcs:acme_agent", MessageType="text")),
    "opt-out": (OPT_OUT, lambda s, a: _message(s, a, Body="STOP", OptOutType="STOP", MessagingServiceSid=s.sid("MG"))),
    "opt-in": (OPT_OUT, lambda s, a: _whatsapp(s, a, Body="START", OptOutType="START")),
    "status callback": (STATUS, lambda s, a: _status(s, a, "delivered", RawDlrDoneDate="2611231200")),
    "failure callback": (STATUS, lambda s, a: _status(s, a, "undelivered", ErrorCode="30006")),
    "WhatsApp callback": (
        STATUS,
        lambda s, a: _status(s, a, "read", EventType="READ", ChannelPrefix="whatsapp", To=f"whatsapp:{s.phone()}"),
    ),
    "masked callback": (STATUS, lambda s, a: _status(s, a, "sent", To="+1555123XXXX")),
    "call": (OTHER, lambda s, a: _call(s, a, AddOns='{"status":"successful","results":{}}')),
    "call status": (OTHER, lambda s, a: _call(s, a, CallStatus="completed", CallDuration="7", SipResponseCode="200")),
    "gather": (OTHER, lambda s, a: _call(s, a, Digits="4", FinishedOnKey="", msg="Gather End")),
    "recording": (OTHER, lambda s, a: _on_call(s, a, RecordingSid=s.sid("RE"), RecordingStatus="completed")),
    "transcription": (
        OTHER,
        lambda s, a: _on_call(s, a, TranscriptionSid=s.sid("GT"), TranscriptionData='{"transcript":"Hello, To You"}'),
    ),
    "conference": (
        OTHER,
        lambda s, a: _on_call(s, a, ConferenceSid=s.sid("CF"), ReasonParticipantLeft="participant_hung_up"),
    ),
    "media stream": (
        OTHER,
        lambda s, a: _on_call(s, a, StreamSid=s.sid("MZ"), StreamEvent="stream-error", StreamError="31920 failed"),
    ),
    "browser call": (OTHER, lambda s, a: _call(s, a, From="client:ada", To="", phoneNumber=s.phone())),
    "SIP call": (
        OTHER,
        lambda s, a: _call(s, a, From="sip:ada@ex.sip.twilio.com", **{"SipHeader_X-Affiliate-ID": "aff-1"}),
    ),
    "hand-off": (
        OTHER,
        lambda s, a: _call(s, a, SessionId=s.sid("VX"), HandoffData='{"reasonCode":"live-agent-handoff"}'),
    ),
    "Conversations": (
        OTHER,
        lambda s, a: {
            "AccountSid": a,
            "Attributes": "{}",
            "Author": s.phone(),
            "Body": s.choice(_VALUES),
            "ConversationSid": s.sid("CH"),
            "EventType": "onMessageAdded",
            "MessageSid": s.sid("IM"),
            "MessagingBinding.Address": s.phone(),
        },
    ),
    "Studio widget": (OTHER, lambda s, _: {"customer": f"{s.getrandbits(64)}", "foo": "bar"}),
    "Verify": (
        OTHER,
        lambda s, a: {"account_sid": a, "challenge_sid": s.sid("YC"), "type": "challenge.approved", "uid": "a5"},
    ),
    "TaskRouter": (
        OTHER,
        lambda s, a: {"AccountSid": a, "EventType": "task.created", "TaskAttributes": "{}", "TaskSid": s.sid("WT")},
    ),
    "bundle": (OTHER, lambda s, a: {"AccountSid": a, "BundleSid": s.sid("BU"), "FailureReason": "", "Status": "draft"}),
    "Debugger": (
        ERROR,
        lambda s, a: {
            "AccountSid": a,
            "Level": s.choice(["Error", "Warning"]),
            "Payload": '{"error_code":"11200","webhook":{"request":{"parameters":{"Body":"Hi"}}}}',
            "PayloadType": "application/json",
            "Sid": s.sid("NO"),
            "Timestamp": "2026-11-23T12:00:00Z",
        },
    ),
}


def _cloud_event(source: _Source, more: dict[str, Any]) -> dict[str, Any]:
    sid = source.sid("SM")
    return {
        "specversion": "1.0",
        "type": "com.twilio.messaging.message.delivered",
        "source": f"/Messages/{sid}.json",
        "id": source.sid("EZ"),
        "datacontenttype": JSON,
        "time": "2026-11-26T20:48:32.135Z",
        "data": {"messageSid": sid, "messageStatus": "DELIVERED"} | more,
    }


JSONS: dict[str, tuple[str, Callable[[_Source, str, dict[str, Any]], Any]]] = {
    "Event Streams": (STREAM, lambda s, _, more: [_cloud_event(s, more) for _ in range(s.randrange(1, 4))]),
    "Studio widget, JSON": (OTHER, lambda s, _, more: more | {"customer": s.getrandbits(64)}),
    "Verify, JSON": (OTHER, lambda s, a, more: more | {"account_sid": a, "challenge_sid": s.sid("YC")}),
    "transcript, JSON": (OTHER, lambda s, a, more: more | {"account_sid": a, "transcript_sid": s.sid("GT")}),
}
KINDS = (*FORMS, *JSONS)
"""All kinds of requests; forms are sent by POST and GET."""


def _name(source: _Source) -> str:
    letters = "".join(chr(source.choice([*range(33, 127), 0xE9, 0x20AC, 0x1F44D])) for _ in range(source.randrange(9)))
    return source.choice([source.choice(_NAMES), source.choice(_NAMES), f"New{letters}", f"x{letters}"])


def _invented(source: _Source, fields: dict[str, str], others: Sequence[str]) -> Pairs:
    """Return one to ten additional parameters; those with names from `others` can repeat a name in `fields`."""
    pairs: list[tuple[str, str]] = []
    for _ in range(source.randrange(1, 11)):
        name = source.choice([_name(source), *([source.choice(others)] if others else [])])
        if pairs and source.random() < 0.15:
            name = source.choice(pairs)[0]
        if name not in fields or others:
            value = (
                source.sid(name[0] + "M") if name.endswith("Sid") and name != "AccountSid" else source.choice(_VALUES)
            )
            pairs.append((name, value))
    return tuple(pairs) or (("NewParameter", source.choice(_VALUES)),)


def _invented_json(source: _Source) -> dict[str, Any]:
    values = [
        *_VALUES,
        *_NUMBERS,
        True,
        None,
        [],
        {},
        ["x", {"": 1}],
        {"a": {"b": [1, None, True, "é"]}},
        "half \ud83d",
    ]
    return {_name(source): source.choice(values) for _ in range(source.randrange(1, 11))}


def generate(target: Target, count: int, seed: int = 0) -> list[Genuine]:
    """Return `count` requests, of all kinds in turn; the detail-type is certain in every second round of kinds."""
    return [_make(KINDS[number % len(KINDS)], number // len(KINDS), target, seed) for number in range(count)]


def _make(kind: str, number: int, target: Target, seed: int) -> Genuine:
    source = _Source(f"{seed} {kind} {number}")
    certain = number % 2 == 0
    query = source.choice(["", "", "tenant=a%20b", "x=1&y=&z"])
    request = Request(host=urlsplit(target.base).netloc, path=target.path, query=query)
    if source.random() < 0.5:
        request = request.with_header(TOKEN, source.sid("")[:36])
    if kind in JSONS:
        detail_type, make = JSONS[kind]
        body = make(source, target.account_sid, _invented_json(source))
        raw = json.dumps(body, ensure_ascii=True, indent=source.choice([None, 1])).encode()
        parameters = body if isinstance(body, list) else [body]
        return Genuine(kind, official(with_json(request, raw), target), parameters, detail_type)
    detail_type, make_form = FORMS[kind]
    fields = make_form(source, target.account_sid)
    others = [] if certain else sorted({name for _, each in FORMS.values() for name in each(source, "")})
    pairs = (*fields.items(), *_invented(source, fields, others))
    shuffled = tuple(source.sample(pairs, len(pairs)))
    encode = source.choice([quote_plus, quote])
    text = "&".join(f"{encode(name, safe='')}={encode(value, safe='')}" for name, value in shuffled)
    if source.random() < 0.25:
        request = replace(request, method="GET", query="&".join(filter(None, [query, text])))
        whole = request.pairs
    else:
        request = replace(request.with_header("content-type", FORM), body=text.encode())
        whole = shuffled
    return Genuine(kind, official(request, target), [grouped(whole)], detail_type if certain else None)
