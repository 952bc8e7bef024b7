"""What a signed form says beyond doubt.

Twilio signs names and values one after the other with nothing between. So whoever holds one signed request can
cut the same text into other names and values, or move a part of it into the URL, and the signature still holds.
Here the text of a message, a call or an error is cut anew, by rules that look at nothing but the text: names are
signed in order, most values have a format that ends by itself, and the texts that people write end where a name
begins that can stand there. So one text comes out in one way, and only the form that is cut so is believed.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from itertools import pairwise, takewhile
from typing import NamedTuple

from twilio_connector.signature import signed_text


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
_FLAG = "true|false"
_ADDRESS = rf"{_PHONE}|whatsapp:{_PHONE}"  # or else a name as sender, or the address on another channel

# The names of each kind. A format ends by itself: what follows a name begins with a capital letter, and none
# fits. A name without a format is a text, in which anything may stand, or an address.
_COMMON: dict[str, str | None] = {
    "AccountSid": _sid("AC"),
    "ApiVersion": _NUMBER,
    "ErrorCode": _NUMBER,
    "From": _ADDRESS,
    "To": _ADDRESS,
    **_texts("FromCity FromCountry FromState FromZip ToCity ToCountry ToState ToZip Timestamp"),
}
_NAMES: dict[Kind, dict[str, str | None]] = {
    Kind.MESSAGE: _COMMON
    | {
        "ChannelPrefix": _WORD,
        "Forwarded": _FLAG,
        "FrequentlyForwarded": _FLAG,
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
        ChannelToAddress ErrorMessage ErrorUrl EventType ExternalUserId FlowData InteractiveData Label
        ListDescription ListId ListTitle OriginalRepliedMessageSender ProfileName ReferralBody
        ReferralCtwaClid ReferralHeadline ReferralMediaContentType ReferralMediaId ReferralMediaUrl
        ReferralSourceId ReferralSourceType ReferralSourceUrl StructuredMessage
        """)
    | _texts(" ".join(f"MediaContentType{number} MediaUrl{number}" for number in range(10))),
    Kind.CALL: _COMMON
    | {
        "AnsweredBy": _WORD,
        "CallDuration": _NUMBER,
        "CallSid": _sid("CA"),
        "CallStatus": _WORD,
        "Called": _ADDRESS,
        "Caller": _ADDRESS,
        "CallSidEndingConference": _sid("CA"),
        "Coaching": _FLAG,
        "ConferenceSid": _sid("CF"),
        "Confidence": _NUMBER,
        "DialCallDuration": _NUMBER,
        "DialCallSid": _sid("CA"),
        "DialCallStatus": _WORD,
        "Direction": _WORD,
        "Duration": _NUMBER,
        "EndConferenceOnExit": _FLAG,
        "ForwardedFrom": _ADDRESS,
        "Hold": _FLAG,
        "MachineDetectionDuration": _NUMBER,
        "Muted": _FLAG,
        "ParentCallSid": _sid("CA"),
        "ParticipantCallStatus": _WORD,
        "QueueTime": _NUMBER,
        "RecordingDuration": _NUMBER,
        "RecordingSid": _sid("RE"),
        "RecordingStatus": _WORD,
        "SequenceNumber": _NUMBER,
        "SipResponseCode": _NUMBER,
        "StartConferenceOnEnter": _FLAG,
        "StatusCallbackEvent": _WORD,
        "TranscriptionSid": _sid("TR"),
        "TranscriptionStatus": _WORD,
    }
    | _texts("""
        CallToken CallbackSource CalledCity CalledCountry CalledState CalledZip CallerCity CallerCountry
        CallerName CallerState CallerZip
        CoachingParticipant DialBridged Digits ErrorUrl FinishedOnKey FriendlyName Language ParticipantLabel
        ParticipantLabelEndingConference QueueResult QueueSid Reason ReasonConferenceEnded
        RecordingChannels RecordingSource RecordingStartTime RecordingTrack RecordingUrl SipCallId SipDomain
        SipDomainSid SipSourceIp SpeechResult StirPassportToken StirStatus StirVerstat StreamSid TranscriptionText
        TranscriptionType TranscriptionUrl UnstableSpeechResult
        """),
    Kind.ERROR: {
        "AccountSid": _sid("AC"),
        "Level": None,
        "ParentAccountSid": _sid("AC"),
        "Payload": None,
        "PayloadType": "[a-z/+.-]+",
        "Sid": _sid("NO"),
        "Timestamp": None,
    },
}
_REQUIRED = {
    Kind.MESSAGE: ("AccountSid", "From", "MessageSid", "To"),
    Kind.CALL: ("AccountSid", "CallSid"),
    Kind.ERROR: ("AccountSid", "Level", "Payload", "PayloadType", "Sid"),
    Kind.OTHER: ("AccountSid",),
}


class _Grammar(NamedTuple):
    """Names with their formats, of which `required` are there, in order."""

    names: Mapping[str, str | None]
    required: Sequence[str]


# What comes by SMS or MMS has few names, so that people may write any others there. ErrorCode and ErrorUrl come
# together, where this webhook is the fallback of another.
_SMS = _Grammar(
    {
        name: form
        for name, form in _NAMES[Kind.MESSAGE].items()
        if re.match("(AccountSid|AddOns|ApiVersion|Body|From|Media|Messag.*Sid|Num|OptOut|ReferralNum|Sms|To)", name)
    }
    | {
        "ErrorCode": "[0-9]{5}(?=ErrorUrlhttps?://)",
        "ErrorUrl": rf"(?<=[0-9]ErrorUrl)https?://[!-~]+?(?=From{_PHONE})",
        "From": _PHONE,
        "SmsStatus": "received|receiving",
        "To": _PHONE,
    },
    ("AccountSid", "Body", "From", "MessageSid", "SmsStatus", "To"),
)
# The first that a text fits is the one it is read by.
_GRAMMARS = {about: [_Grammar(_NAMES[about], _REQUIRED[about])] for about in _NAMES}
_GRAMMARS[Kind.MESSAGE].insert(0, _SMS)

# Names whose signed text tells the kind, wherever in the text it stands. (Conversations have a ChannelMessageSid.)
_TELLING = {
    Kind.MESSAGE: re.compile(rf"(?:(?<!Channel)MessageSid|SmsSid){_MESSAGE_SID}"),
    Kind.CALL: re.compile(rf"CallSid{_sid('CA')}"),
    Kind.ERROR: re.compile(rf"Sid{_sid('NO')}"),
}
_CONVERSATIONS = re.compile(_sid("IM"))  # which name their own messages MessageSid

_OTHER_ADDRESS = r"[A-Za-z0-9 &+._-]{0,11}|[a-z]{2,20}:[!-~]{1,256}"
_MAX_ADDRESS = 277

# Texts that people write. No other holds a required parameter or an address: what is hidden in a text that people
# write could else make it swallow the genuine ones.
_WRITTEN = frozenset({"Body", "Payload", "SpeechResult", "TranscriptionText", "UnstableSpeechResult"})
_NO_WORD = r"\+?[0-9]{5}|[a-z]{2,20}:"  # how an address begins that is no name

# A parameter that is not known, name and value: one word, so that no text can pass for it.
_NEW_NAME = re.compile(r"[A-Z][A-Za-z0-9_.-]*")
_NEW = re.compile(r"[A-Z][A-Za-z0-9_.:/+-]{0,59}")
_MAX_STARTS = 5000


def kind(fields: Fields, signed: str) -> Kind:
    """Return what a form is about; `signed` is all the text that was signed, with the URL.

    Nothing can be passed off as another kind by hiding what tells it in a value or in the URL.
    """
    for about, telling in _TELLING.items():
        if telling.search(signed):
            return about
    if _CONVERSATIONS.fullmatch("".join(fields.get("MessageSid", ""))):
        return Kind.OTHER
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
        if known[name] not in {None, _ADDRESS} and not _ends_by_itself(known[name], fields[name][0]):
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
    for name, following in pairwise(names):
        if name in known and following not in known and not _ends_by_itself(known[name], fields[name][0]):
            return "a parameter that is not known may be cut out of the text before it"
    text = signed_text("", fields)
    for grammar in _GRAMMARS[about]:
        if parameters := _reading(text, grammar):
            believed = parameters == {name: fields[name][0] for name in names if name in grammar.names}
            return None if believed else "a text may hold another parameter"
    return "a text may hold another parameter"


def _reading(text: str, grammar: _Grammar) -> dict[str, str] | None:
    """Return the known names and values in the signed text of a form, or None where it does not fit.

    The outcome depends on nothing but the text.
    """
    cutter = _Cutter(text, grammar)
    parameters = cutter.cut(0, "", ended=False) if len(cutter.starts) <= _MAX_STARTS else None
    return None if parameters is None else dict(parameters)


class _Cutter:
    """Cuts one text by one grammar.

    A text ends where the first known name begins with which the rest can be read too; a parameter that is not
    known stands only after a value that ends by itself.
    """

    def __init__(self, text: str, grammar: _Grammar) -> None:
        """Find all places where a known name begins, also inside another."""
        self._text = text
        self._names = grammar.names
        self._required = grammar.required
        self._in_order = sorted(grammar.names, reverse=True)  # of two that begin alike the longer comes first
        self._dead: set[tuple[int, str, bool]] = set()
        anchors = [
            f"{name}(?:{_NO_WORD if form == _ADDRESS else form})"
            for name, form in grammar.names.items()
            if form == _ADDRESS or (form and name in grammar.required)
        ]
        self._anchors = _starts("|".join(anchors), text)
        self.starts = _starts("|".join(self._in_order), text)

    def cut(self, start: int, before: str, *, ended: bool) -> list[tuple[str, str]] | None:
        """Return the parameters from `start`, after the name `before`, whose value may have ended by itself."""
        due = next((name for name in self._required if name > before), None)
        if start == len(self._text):
            return None if due else []
        if (start, before, ended) in self._dead:
            return None
        for name in self._in_order:
            if before < name <= (due or name) and self._text.startswith(name, start):
                begin = start + len(name)
                for end, closed in self._ends(begin, name):
                    if (rest := self.cut(end, name, ended=closed)) is not None:
                        return [(name, self._text[begin:end]), *rest]
        rest = self._after_new(start, before) if ended else None
        if rest is None:
            self._dead.add((start, before, ended))
        return rest

    def _after_new(self, start: int, before: str) -> list[tuple[str, str]] | None:
        """Return the parameters after one that is not known."""
        new = _NEW_NAME.match(self._text, start)
        if new is None or new[0] <= before:
            return None
        ends = takewhile(lambda end: _NEW.fullmatch(self._text, start, end), self._until(start + 1, self._limit(start)))
        rests = (self.cut(end, before, ended=False) for end in ends)
        return next((rest for rest in rests if rest is not None), None)

    def _ends(self, begin: int, name: str) -> Iterator[tuple[int, bool]]:
        """Yield where a value may end, and whether it does so by itself."""
        form = self._names[name]
        limit = len(self._text) if name in _WRITTEN else self._limit(begin)
        if form is None:
            yield from ((end, False) for end in self._until(begin, limit))
        elif match := _compiled(form).match(self._text, begin):
            yield match.end(), True
        if form == _ADDRESS:
            for end in self._until(begin, min(limit, begin + _MAX_ADDRESS)):
                if _compiled(_OTHER_ADDRESS).fullmatch(self._text, begin, end):
                    yield end, False

    def _until(self, begin: int, limit: int) -> Iterator[int]:
        """Yield where known names begin from there on, and the end of the text."""
        within = range(bisect_left(self.starts, begin), bisect_right(self.starts, limit))
        yield from (self.starts[index] for index in within)
        if limit >= len(self._text):
            yield limit

    def _limit(self, begin: int) -> int:
        """Return where a text ends at the latest that people do not write."""
        index = bisect_left(self._anchors, begin)
        return self._anchors[index] if index < len(self._anchors) else len(self._text)


def _starts(pattern: str, text: str) -> list[int]:
    return [match.start() for match in _compiled(f"(?={pattern})").finditer(text)]


def _ends_by_itself(form: str | None, value: str) -> bool:
    return form is not None and _compiled(form).fullmatch(value) is not None


@cache
def _compiled(form: str) -> re.Pattern[str]:
    return re.compile(form)
