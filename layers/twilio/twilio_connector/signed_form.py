"""What a signed form says beyond doubt.

Twilio signs names and values one after the other with nothing between. So whoever holds one signed request can
cut the same text into other names and values, or move a part of it into the URL, and the signature still holds.
Here the form of a message, a call or an error is taken only where its text can be cut in one way. That can be
told, since names are signed in order, most values have a format that ends by itself, and the texts that people
write stand between names that are known.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import pairwise


class Kind(Enum):
    """What a form is about."""

    MESSAGE = "message"
    CALL = "call"
    ERROR = "error"
    OTHER = "other"


Fields = Mapping[str, Sequence[str]]


def _sid(prefixes: str) -> str:
    return rf"(?:{prefixes})[0-9a-fA-F]{{32}}"


def _texts(names: str) -> dict[str, str | None]:
    return dict.fromkeys(names.split())


_MESSAGE_SID = _sid("SM|MM")
_PHONE = r"\+?[0-9]{2,16}"
_WORD = "[a-z_-]{0,40}"
_NUMBER = "[0-9.-]{0,40}"

# The names of each kind. A format ends by itself: what follows a name begins with a capital letter, and none
# fits. A name without a format is a text, in which anything may stand.
_COMMON: dict[str, str | None] = {
    "AccountSid": _sid("AC"),
    "ApiVersion": _NUMBER,
    "ErrorCode": _NUMBER,
    "From": rf"{_PHONE}|whatsapp:{_PHONE}",
    "To": rf"{_PHONE}|whatsapp:{_PHONE}",
    **_texts("FromCity FromCountry FromState FromZip ToCity ToCountry ToState ToZip Timestamp"),
}
_NAMES: dict[Kind, dict[str, str | None]] = {
    Kind.MESSAGE: _COMMON
    | {
        "ChannelPrefix": _WORD,
        "Forwarded": "true|false",
        "FrequentlyForwarded": "true|false",
        "Latitude": _NUMBER,
        "Longitude": _NUMBER,
        "MessageSid": _MESSAGE_SID,
        "MessageStatus": _WORD,
        "MessageType": _WORD,
        "MessagingServiceSid": f"(?:{_sid('MG')})?",
        "NumMedia": _NUMBER,
        "NumSegments": _NUMBER,
        "OptOutType": "STOP|START|HELP",
        "OriginalRepliedMessageSid": _MESSAGE_SID,
        "RawDlrDoneDate": _NUMBER,
        "ReferralNumMedia": _NUMBER,
        "SmsMessageSid": _MESSAGE_SID,
        "SmsSid": _MESSAGE_SID,
        "SmsStatus": _WORD,
        "WaId": _NUMBER,
    }
    | _texts("""
        AddOns Address Body ButtonPayload ButtonText ChannelInstallSid ChannelMetadata ChannelStatusMessage
        ChannelToAddress ErrorMessage EventType ExternalUserId FlowData InteractiveData Label
        ListDescription ListId ListTitle OriginalRepliedMessageSender ProfileName ReferralBody
        ReferralCtwaClid ReferralHeadline ReferralMediaContentType ReferralMediaId ReferralMediaUrl
        ReferralSourceId ReferralSourceType ReferralSourceUrl StructuredMessage
        """)
    | _texts(" ".join(f"MediaContentType{number} MediaUrl{number}" for number in range(10))),
    Kind.CALL: _COMMON
    | {
        "CallDuration": _NUMBER,
        "CallSid": _sid("CA"),
        "CallStatus": _WORD,
        "Called": _PHONE,
        "Caller": _PHONE,
        "Confidence": _NUMBER,
        "DialCallDuration": _NUMBER,
        "DialCallSid": _sid("CA"),
        "DialCallStatus": _WORD,
        "Direction": _WORD,
        "Duration": _NUMBER,
        "ForwardedFrom": _PHONE,
        "MachineDetectionDuration": _NUMBER,
        "ParentCallSid": _sid("CA"),
        "QueueTime": _NUMBER,
        "RecordingDuration": _NUMBER,
        "RecordingSid": _sid("RE"),
        "RecordingStatus": _WORD,
        "SequenceNumber": _NUMBER,
        "SipResponseCode": _NUMBER,
        "TranscriptionSid": _sid("TR"),
        "TranscriptionStatus": _WORD,
    }
    | _texts("""
        AnsweredBy CallToken CallbackSource CalledCity CalledCountry CalledState CalledZip CallerCity CallerCountry
        CallerName CallerState CallerZip DialBridged Digits ErrorUrl FinishedOnKey Language QueueResult QueueSid
        RecordingChannels RecordingSource RecordingStartTime RecordingTrack RecordingUrl SipCallId SipDomain
        SipDomainSid SipSourceIp SpeechResult StirPassportToken StirStatus StirVerstat StreamSid TranscriptionText
        TranscriptionType TranscriptionUrl UnstableSpeechResult
        """),
    Kind.ERROR: {
        "AccountSid": _sid("AC"),
        "Level": "[A-Za-z]+",
        "ParentAccountSid": _sid("AC"),
        "Payload": None,
        "PayloadType": "[a-z/+.-]+",
        "Sid": _sid("NO"),
        "Timestamp": None,
    },
}
_IN_ORDER = {about: sorted(names) for about, names in _NAMES.items()}
_REQUIRED = {
    Kind.MESSAGE: ("AccountSid", "From", "MessageSid", "To"),
    Kind.CALL: ("AccountSid", "CallSid"),
    Kind.ERROR: ("AccountSid", "Level", "Payload", "PayloadType", "Sid"),
    Kind.OTHER: ("AccountSid",),
}
# Names whose signed text tells the kind, wherever in the text it stands.
_TELLING = {
    Kind.MESSAGE: re.compile(rf"(?:MessageSid|SmsSid){_MESSAGE_SID}"),
    Kind.CALL: re.compile(rf"CallSid{_sid('CA')}"),
    Kind.ERROR: re.compile(rf"Sid{_sid('NO')}"),
}
# Short codes and numbers end by themselves; alphanumeric senders and addresses of other channels are texts.
_ADDRESSES = frozenset({"Called", "Caller", "ForwardedFrom", "From", "To"})
_NEW_NAME = re.compile(r"[A-Z][A-Za-z0-9_.-]*")
_AFTER_ALL = "\U0010ffff"


def kind(fields: Fields, signed: str) -> Kind:
    """Return what a form is about; `signed` is all the text that was signed, with the URL.

    Nothing can be passed off as another kind by hiding what tells it in a value or in the URL.
    """
    for about, telling in _TELLING.items():
        if telling.search(signed):
            return about
    if fields.keys() & {"MessageSid", "SmsSid", "MessageStatus", "SmsStatus"}:
        return Kind.MESSAGE
    return Kind.CALL if "CallSid" in fields else Kind.OTHER


def doubt(fields: Fields, about: Kind, query: str | None) -> str | None:
    """Return why a form cannot be believed though its signature holds, or None.

    `query` is what stood in the URL of a POST; None for a GET, where nothing is signed without a separator.
    """
    if missing := [name for name in _REQUIRED[about] if name not in fields]:
        return f"{missing[0]} is missing"
    if about is Kind.OTHER:
        return None if len(fields["AccountSid"]) == 1 else "AccountSid is there more than once"
    known = _NAMES[about]
    for name in fields.keys() & known.keys():
        if len(fields[name]) != 1:
            return f"{name} is there more than once"
        if known[name] and name not in _ADDRESSES and not _ends_by_itself(known[name], fields[name][0]):
            return f"{name} is malformed"
    if len({fields[name][0] for name in ("MessageSid", "SmsMessageSid", "SmsSid") if name in fields}) > 1:
        return "MessageSid and SmsSid differ"
    return None if query is None else _other_reading(fields, about, query)


def _other_reading(fields: Fields, about: Kind, query: str) -> str | None:
    """Return where the signed text could be cut in another way, or None."""
    known = _NAMES[about]
    names = sorted(fields)
    if names[0] != "AccountSid" or "AccountSid" in query:
        return "something stands before AccountSid"
    if not all(name in known or (_NEW_NAME.fullmatch(name) and len(fields[name]) == 1) for name in names):
        return "a name is not one of Twilio's"
    for name, following in pairwise([*names, _AFTER_ALL]):
        value = fields[name][0]
        if _ends_by_itself(known.get(name), value):
            continue
        if any(_holds(value, hidden, known[hidden]) for hidden in _between(about, name, following)):
            return "a text may hold another parameter"
        if following not in known and following != _AFTER_ALL:
            return "a parameter that is not known may be cut out of the text before it"
    return None


def _between(about: Kind, name: str, following: str) -> list[str]:
    """Return the known names that would be signed between two others."""
    names = _IN_ORDER[about]
    return names[bisect_right(names, name) : bisect_left(names, following)]


def _ends_by_itself(form: str | None, value: str) -> bool:
    return form is not None and re.fullmatch(form, value) is not None


def _holds(text: str, name: str, form: str | None) -> bool:
    """Tell whether a text holds a parameter as it is signed."""
    return name in text if form is None else re.search(f"{name}(?:{form})", text) is not None
