"""Genuine webhooks of every kind, signed by an independent signer, and classes of mutants of them.

A request is plain data. A test passes it to the handler as an event (`event_1`, `event_2`), or sends it to a deployed
stack. The `base` of the `Target` is the stack's URL before `/webhook`:

    target = Target("https://hook.example", account_sid, auth_token)
    for webhook, request in mutants("boundary", target, genuine_of("boundary"), count=1000):
        ...  # send(request, target): it is refused, or has the same reading as webhook.request(target)

A mutant that keeps the signed text (`keeps_text`) has a valid signature. The webhook accepts the first reading of such
a text and refuses all others; `says_the_same` compares readings. The same seed gives the same mutants.
"""

import base64
import hashlib
import hmac
import http.client
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlencode, urlsplit

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
SIGNATURE = "x-twilio-signature"

MESSAGE_SID = "SM" + "1" * 32
OTHER_SID = "SM" + "f" * 32
CALL_SID = "CA" + "1" * 32
SERVICE_SID = "MG" + "1" * 32

_SID = re.compile("[A-Z]{2}[0-9a-fA-F]{32}")

type Pairs = tuple[tuple[str, str], ...]
type Event = dict[str, Any]


class Target(NamedTuple):
    """The target of requests: the URL before `/webhook`, the account whose token signs them, and its connection."""

    base: str
    account_sid: str
    auth_token: str
    connection: str | None = None

    @property
    def path(self) -> str:
        """The path of the webhook."""
        path = f"{urlsplit(self.base).path}/webhook"
        return f"{path}/{self.connection}" if self.connection else path


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as the client sends it. `host` is the host name that it calls; a deployed stack has only its own."""

    host: str
    path: str
    method: str = "POST"
    query: str = ""
    headers: Pairs = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """Return a header's value."""
        return next((value for given, value in self.headers if given.lower() == name), None)

    def with_header(self, name: str, value: str) -> "Request":
        """Return the request with another value of a header."""
        return replace(self, headers=(*((n, v) for n, v in self.headers if n != name), (name, value)))

    @property
    def url(self) -> str:
        """The URL that the webhook must derive from the request."""
        return f"https://{self.host}{self.path}" + (f"?{self.query}" if self.query else "")

    @property
    def fields(self) -> Pairs:
        """The fields of the form body, if the request has one."""
        if self.method == "GET" or self.header("content-type") != FORM:
            return ()
        return tuple(parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True))

    @property
    def pairs(self) -> Pairs:
        """The parameters of the query."""
        return tuple(parse_qsl(self.query, keep_blank_values=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A webhook that Twilio sends: fields by POST or GET, or JSON. `query` is part of the URL configured in Twilio."""

    name: str
    fields: dict[str, str]
    json: bytes | None = None
    method: str = "POST"
    query: str = ""
    encode: Callable[[str], str] = quote_plus
    names_account: bool = True

    def form(self, target: Target) -> dict[str, str]:
        """Return the fields, with the target's account if the webhook names one."""
        return {"AccountSid": target.account_sid, **self.fields} if self.names_account else self.fields

    def request(self, target: Target) -> Request:
        """Return the genuine, signed request."""
        host = urlsplit(target.base).netloc
        request = Request(host=host, path=target.path, method=self.method, query=self.query)
        if self.json is not None:
            added = f"bodySHA256={hashlib.sha256(self.json).hexdigest()}"
            query = "&".join(filter(None, [self.query, added]))
            return signed(replace(request, query=query, body=self.json, headers=(("content-type", JSON),)), target)
        # Twilio does not send the fields in the order in which it signs them.
        shuffled = random.Random(self.name).sample(sorted(self.form(target).items()), len(self.form(target)))
        if self.method == "GET":
            pairs = [f"{self.encode(name)}={self.encode(value)}" for name, value in shuffled]
            return signed(replace(request, query="&".join(filter(None, [self.query, *pairs]))), target)
        return signed(posted(request, tuple(shuffled)), target)


class Mutant(NamedTuple):
    """A mutant and the webhook that it was derived from."""

    webhook: Webhook
    request: Request


class MutantEvent(NamedTuple):
    """A mutant that can only be written as an event, and the webhook that it was derived from."""

    webhook: Webhook
    event: Any


# The signer, which shares no code with the connector's


def signature(url: str, fields: Sequence[tuple[str, str]], token: str) -> str:
    """Return the signature that Twilio would send for a URL and fields."""
    text = url + "".join(name + value for name, value in sorted(set(fields)))
    return base64.b64encode(hmac.new(token.encode(), text.encode(), hashlib.sha1).digest()).decode()


def signed(request: Request, target: Target, *, url: str | None = None) -> Request:
    """Return the request with a signature for its own URL or another one."""
    parts = urlsplit(target.base)
    own = f"{parts.scheme}://{request.url.removeprefix('https://')}"
    return request.with_header(SIGNATURE, signature(url or own, request.fields, target.auth_token))


def keeps_text(request: Request, target: Target) -> bool:
    """Return whether the signature is valid for the request's URL, with or without the body's form fields."""
    form = parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True)
    given = request.header(SIGNATURE)
    own = f"{urlsplit(target.base).scheme}://{request.url.removeprefix('https://')}"
    return any(signature(own, fields, target.auth_token) == given for fields in (form, []))


def says_the_same(one: Request, other: Request) -> bool:
    """Return whether two requests have the same reading, so that one is a duplicate; encodings may differ."""
    return _reading(one) == _reading(other)


def _reading(request: Request) -> tuple[Any, ...]:
    place = (request.host.removesuffix(":443"), request.path, request.header(SIGNATURE), request.method.upper())
    query = frozenset(request.pairs)
    if request.method.upper() == "GET":
        return *place, query
    if (request.header("content-type") or "").partition(";")[0].strip().lower() != FORM:
        return *place, query, request.body
    return *place, query, frozenset(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))


def names_sid(request: Request) -> bool:
    """Return whether the signed text after the path contains anything in the format of a Twilio SID."""
    text = "".join(name + value for name, value in sorted(set(request.fields)))
    return bool(_SID.search(f"?{request.query}{text}"))


def posted(request: Request, fields: Sequence[tuple[str, str]]) -> Request:
    """Return the request with a form body."""
    headers = tuple((n, v) for n, v in request.headers if n != "content-type")
    return replace(request, headers=(*headers, ("content-type", FORM)), body=urlencode(fields).encode())


# Requests to a deployed stack


class Answer(NamedTuple):
    """The answer to a request; status 0 means that the HTTP client refused to send an invalid request."""

    status: int
    body: str = ""
    content_type: str = ""


def send(request: Request, target: Target, *, seconds: float = 30) -> Answer:
    """Send a request unchanged to a deployed stack; raises OSError or HTTPException if there is no answer."""
    connection = http.client.HTTPConnection(urlsplit(target.base).netloc, timeout=seconds)
    try:
        url = request.path + (f"?{request.query}" if request.query else "")
        connection.putrequest(request.method, url, skip_accept_encoding=True)
        for name, value in (*request.headers, ("content-length", str(len(request.body)))):
            connection.putheader(name, value.encode())
        connection.endheaders(request.body)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read().decode(), answer.getheader("content-type", "").partition(";")[0])
    except (http.client.InvalidURL, ValueError):
        return Answer(0)
    finally:
        connection.close()


# Events


def event_2(request: Request, *, binary: bool = True) -> Event:
    """Return the event of payload format 2.0; API Gateway encodes forms in Base64, but not text."""
    return {
        "version": "2.0",
        "rawPath": request.path,
        "rawQueryString": request.query,
        "headers": {name.lower(): value for name, value in request.headers},
        "requestContext": {
            "domainName": request.host,
            "http": {"method": request.method, "path": request.path},
            "stage": "$default",
        },
        **_event_body(request.body, binary=binary),
    }


def event_1(request: Request, *, binary: bool = False) -> Event:
    """Return the event of payload format 1.0, in which the query is decoded."""
    query: dict[str, list[str]] = {}
    for name, value in parse_qsl(request.query, keep_blank_values=True):
        query.setdefault(name, []).append(value)
    return {
        "version": "1.0",
        "httpMethod": request.method,
        "path": request.path,
        "headers": {name.title(): value for name, value in request.headers},
        "multiValueHeaders": {name.title(): [value] for name, value in request.headers},
        "queryStringParameters": {name: values[-1] for name, values in query.items()} or None,
        "multiValueQueryStringParameters": query or None,
        "requestContext": {"domainName": request.host, "path": request.path, "stage": "$default"},
        **_event_body(request.body, binary=binary),
    }


def _event_body(body: bytes, *, binary: bool) -> Event:
    if not body:
        return {"body": None, "isBase64Encoded": False}
    try:
        text = body.decode()
    except UnicodeDecodeError:
        binary = True
    if binary:
        return {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}
    return {"body": text, "isBase64Encoded": False}


# Webhooks that Twilio sends

_IN = {
    "ApiVersion": "2010-04-01",
    "From": "+15551234567",
    "MessageSid": MESSAGE_SID,
    "NumMedia": "0",
    "NumSegments": "1",
    "SmsMessageSid": MESSAGE_SID,
    "SmsSid": MESSAGE_SID,
    "SmsStatus": "received",
    "To": "+15005550006",
}
_US = {
    "FromCity": "SAN FRANCISCO",
    "FromCountry": "US",
    "FromState": "CA",
    "FromZip": "94105",
    "ToCity": "",
    "ToCountry": "US",
    "ToState": "",
    "ToZip": "",
}
_STATUS = {
    "ApiVersion": "2010-04-01",
    "From": "+15005550006",
    "MessageSid": MESSAGE_SID,
    "MessageStatus": "delivered",
    "SmsSid": MESSAGE_SID,
    "SmsStatus": "delivered",
    "To": "+15551234567",
}
_WHATSAPP = _IN | {
    "Body": "Yes, please",
    "ChannelMetadata": '{"type":"whatsapp","data":{"context":{"ProfileName":"Ada"}}}',
    "From": "whatsapp:+15558675309",
    "MessageType": "text",
    "ProfileName": "Ada L.",
    "To": "whatsapp:+15005550006",
    "WaId": "15558675309",
}
_CALL = {
    "ApiVersion": "2010-04-01",
    "CallDuration": "12",
    "CallSid": CALL_SID,
    "CallStatus": "completed",
    "Called": "+15005550006",
    "CalledCity": "",
    "CalledCountry": "US",
    "Caller": "+15551234567",
    "CallerCity": "SAN FRANCISCO",
    "CallerCountry": "US",
    "Direction": "inbound",
    "Duration": "1",
    "From": "+15551234567",
    "FromCity": "SAN FRANCISCO",
    "FromCountry": "US",
    "SequenceNumber": "0",
    "Timestamp": "Mon, 23 Nov 2026 12:00:00 +0000",
    "To": "+15005550006",
    "ToCity": "",
    "ToCountry": "US",
}
_DEBUGGER = {
    "Level": "Error",
    "ParentAccountSid": "AC" + "1" * 32,
    "Payload": '{"resource_sid":"SM1","error_code":"11200","webhook":{"request":{"parameters":{"Body":"Hi"}}}}',
    "PayloadType": "application/json",
    "Sid": "NO" + "1" * 32,
    "Timestamp": "2026-11-23T12:00:00Z",
}
_CLOUD_EVENT = {
    "specversion": "1.0",
    "type": "com.twilio.messaging.message.delivered",
    "source": f"/Messages/{MESSAGE_SID}.json",
    "id": "EZ" + "1" * 32,
    "datacontenttype": JSON,
    "data": {"messageSid": MESSAGE_SID, "messageStatus": "DELIVERED", "to": "+15551234567", "body": "é👍 'a'+b%20"},
}

TEXTS = {
    "signs": "Hello & welcome = 100% #1 + it's %20 ~é👍 \"<&amp;>",
    "newline": "one\r\ntwo\n three",
    "spaces": " leading and trailing ",
    "blank": "",
    "Forwarded": "Forwarded from Ann",
    "Called": "Called you, From your FriendlyName To Caller",
    "names": "FromCity ToZip SmsStatus MessageSid Body NumMedia Label Address AccountSid",
    "capitals": "Meet At The Big House On Elm Street, ErrorCode 5 To Go",
    "query": "a=1&b=2&AccountSid=3?x#y",
    "From": "Call From+15550001111 To+15550002222",
    "ErrorCode": "BodyErrorCode30006",
    "ErrorMessage": "ErrorMessage EventTypeREAD ButtonTextYes",
}


def hidden(account_sid: str) -> dict[str, str]:
    """Return SMS texts that contain a whole forged message, for a reading as a form, a GET or a JSON body."""
    forged = {
        "AccountSid": account_sid,
        "Body": "forged",
        "From": "+15550001111",
        "MessageSid": OTHER_SID,
        "SmsStatus": "received",
        "To": "+15550002222",
        "ToZip": "",
    }
    text = "".join(name + value for name, value in forged.items())
    return {
        "hidden form": text,
        "hidden rest": f"hi{text[text.index('From') :]}",
        "hidden end": f"x{text} and more",
        "hidden GET": f"hi&{urlencode(forged)}",
        "hidden JSON": f"hi&bodySHA256={hashlib.sha256(b'{"forged":true}').hexdigest()}&x=",
    }


def _webhooks() -> Iterator[Webhook]:
    media = {f"MediaUrl{n}": f"https://api.twilio.com/2010-04-01/Media/ME{n}" for n in range(2)}
    types = {"MediaContentType0": "image/jpeg", "MediaContentType1": "text/vcard"}
    button = {"ButtonPayload": "yes_1", "ButtonText": "Yes", "MessageType": "button"}
    failed = {"MessageStatus": "undelivered", "SmsStatus": "undelivered", "ErrorCode": "30006"}
    sms = {
        "plain": _IN | {"Body": "Hi"},
        "US": _IN | _US | {"Body": "Hello there", "MessagingServiceSid": SERVICE_SID},
        "MMS": _IN | _US | media | types | {"Body": "Two Pictures", "NumMedia": "2"},
        "WhatsApp": _WHATSAPP,
        "button": _WHATSAPP | button | {"OriginalRepliedMessageSid": OTHER_SID},
        "opt-out": _IN | _US | {"Body": "STOP", "OptOutType": "STOP", "MessagingServiceSid": SERVICE_SID},
        "status": _STATUS | {"RawDlrDoneDate": "2611231200"},
        "failed": _STATUS | failed | {"MessagingServiceSid": SERVICE_SID},
        "call": _CALL,
        "debugger": _DEBUGGER,
    } | {name: _IN | _US | {"Body": text} for name, text in TEXTS.items()}
    for name, fields in sms.items():
        yield Webhook(name=name, fields=fields)
    yield Webhook(name="with query", fields=_IN | {"Body": "Hi There"}, query="tenant=a%20b&it=it%27s")
    yield Webhook(name="fallback", fields=_IN | {"Body": "Hi", "ErrorCode": "11200", "ErrorUrl": "https://x.example/"})
    for name in ("signs", "newline", "names", "query"):
        yield Webhook(name=f"GET {name}", fields=_IN | _US | {"Body": TEXTS[name]}, method="GET")
    yield Webhook(name="GET %20", fields=_IN | {"Body": "it's a+b c"}, method="GET", encode=quote)
    yield Webhook(name="GET status", fields=_STATUS, method="GET", query="tenant=1")
    array = [_CLOUD_EVENT, _CLOUD_EVENT | {"id": "EZ" + "2" * 32}]
    yield Webhook(name="Event Streams", fields={}, json=json.dumps(array).encode())
    yield Webhook(name="JSON object", fields={}, json='{"a": {"b": [1, null, true, "é"]}}'.encode(), query="x=1&y=")


GENUINE = list(_webhooks())
"""Genuine webhooks, which must be accepted; they include all kinds of texts that people can write in an SMS."""


def with_query(webhooks: Sequence[Webhook]) -> list[Webhook]:
    """Return the webhooks with a query in each configured URL, so that mutants can move text into it."""
    return [replace(each, query=each.query or "x=1") for each in webhooks]


def hostile(account_sid: str) -> list[Webhook]:
    """Return genuine webhooks in which an attacker hid another message."""
    texts = hidden(account_sid)
    yield_path = _CALL | {"/default": ""}
    sms = [Webhook(name=name, fields=_IN | {"Body": text}, query="x=1") for name, text in texts.items()]
    get = [Webhook(name=f"GET {n}", fields=_IN | {"Body": text}, method="GET") for n, text in texts.items()]
    return [*sms, *get, Webhook(name="hidden path", fields=yield_path)]


_WIDGET = {"foo": "bar", "customer": "7", "A": "", "text": "Hello To You"}
_WIDGETS = [
    Webhook(name="widget", fields=_WIDGET, names_account=False),
    Webhook(name="GET widget", fields=_WIDGET, names_account=False, method="GET"),
    Webhook(name="JSON widget", fields={}, json=b'{"foo":"bar"}', query="x=1"),
    Webhook(name="JSON widget with a SID", fields={}, json=b'{"foo":"bar","n":1}', query=f"call={CALL_SID}"),
    Webhook(name="JSON widget with a form", fields={}, json=b"a=b&c=d", query=f"call={CALL_SID}"),
    Webhook(name="JSON widget with SIDs", fields={}, json=b"[1]", query=f"a={CALL_SID}&b={SERVICE_SID}"),
]
"""Webhooks with parameters that the author of a Studio flow chose; half of them contain no Twilio SID."""


def genuine_of(name: str, account_sid: str) -> list[Webhook]:
    """Return the webhooks from which the mutants of a class are derived, each with its own SIDs."""
    webhooks = [*GENUINE, *hostile(account_sid), *_WIDGETS]
    if name == "moved":
        webhooks = with_query(webhooks)
    if name == "json":
        jsons = [each for each in webhooks if each.json]
        more = [replace(each, name=f"{each.name} {n}", query=f"n={n}&{each.query}") for each in jsons for n in range(2)]
        webhooks = [*jsons, *more, *webhooks[:5]]
    return [_numbered(each, number) for number, each in enumerate(webhooks, start=1)]


def _numbered(webhook: Webhook, number: int) -> Webhook:
    own = f"{number:032x}"
    fields = {name: value.replace("1" * 32, own) for name, value in webhook.fields.items()}
    body = webhook.json
    for digit in "12":  # the two CloudEvents have different SIDs
        body = body and body.replace(digit.encode() * 32, f"{digit}{own[1:]}".encode())
    return replace(webhook, fields=fields, json=body, query=webhook.query.replace("1" * 32, own))


def twins(webhook: Webhook, target: Target) -> Iterator[Request]:
    """Yield all forms in which the same webhook can arrive."""
    request = webhook.request(target)
    yield request
    parts = urlsplit(target.base)
    if parts.port is None:
        port = {"https": 443, "http": 80}[parts.scheme]
        url = f"{parts.scheme}://{request.url.removeprefix('https://')}"
        yield signed(request, target, url=url.replace(parts.netloc, f"{parts.netloc}:{port}", 1))
    yield replace(request, headers=(*request.headers, ("x-forwarded-host", "x"), ("user-agent", "TwilioProxy/1.1")))
    if request.fields:
        yield replace(request, body="&".join(f"{quote(n)}={quote(v, safe='')}" for n, v in request.fields).encode())
        yield posted(request, tuple(sorted(request.fields)))
        yield request.with_header("content-type", f"{FORM}; charset=UTF-8")


# Mutants

type Mutate = Callable[[Webhook, Target, random.Random], Iterator[Request]]

_LETTERS = "aZ09_-.%&=+'é👍 /?;:~\n\0"


def _changed(text: str, rng: random.Random) -> str:
    """Return a changed text: with other characters or case, doubled, or empty."""
    at = rng.randrange(len(text) + 1)
    char = rng.choice(_LETTERS)
    return rng.choice(
        [
            text[:at] + char + text[at:],
            text[:at] + text[at + 1 :],
            text[:at] + char + text[at + 1 :],
            text[:at] + text[at : at + 2][::-1] + text[at + 2 :],
            text.swapcase(),
            text + text,
            "",
        ]
    )


def _urls(webhook: Webhook, target: Target, rng: random.Random) -> Iterator[Request]:
    request = webhook.request(target)
    host, path = request.host, request.path
    hosts = [f"{host}.", f"x.{host}", f"{host}:444", f"u@{host}", f"{host}@x.example", f"{host}#", "x.example", "", " "]
    paths = [f"{path}/", f"/{path}", f"/x{path}", f"{path}/default", f"{path}/two", f"{path}/none", f"{path}//default"]
    paths += [f"/#{path}", f"/?{path}", f"{path}/.", f"{path}/%64efault", f"{path};x", f"{path}%2f", "", "/", "*"]
    for other in hosts:
        yield replace(request, host=other)
        # A signature for another endpoint of the account is not valid for this one.
        yield signed(request, target, url=request.url.replace(host, other, 1)).with_header("x-forwarded-host", other)
    for other in paths:
        yield replace(request, path=other)
        yield signed(request, target, url=request.url.replace(path, other, 1)).with_header("x-original-uri", other)
    for url in (request.url.replace("https:", "http:"), request.url.replace("https:", "wss:"), f"{request.url}#x", ""):
        yield signed(request, target, url=url or "https://")
    while True:
        yield replace(request, host=_changed(host, rng))
        yield replace(request, path=_changed(path, rng))
        yield signed(request, target, url=_changed(request.url, rng) or "x")


def _queries(webhook: Webhook, target: Target, rng: random.Random) -> Iterator[Request]:
    request = webhook.request(target)
    query = request.query
    pairs = query.split("&") if query else []
    added = ["x=1", "x", "&", "=", "bodySHA256=", f"bodySHA256={'0' * 64}", f"AccountSid={target.account_sid}", "x=#"]
    for more in (
        *added,
        f"AccountSid{target.account_sid}",
        "#&OptOutType=STOP",
        "%23&x=1",
        "MessageStatus=failed",
        "?",
    ):
        yield replace(request, query=f"{query}&{more}" if query else more)
        yield replace(request, query=f"{more}&{query}")
        yield replace(request, query=f"{query}#{more}")
    for index, pair in enumerate(pairs):
        yield replace(request, query="&".join(pairs[:index] + pairs[index + 1 :]))
        yield replace(request, query="&".join([*pairs, pair]))
        yield replace(request, query="&".join([*pairs[:index], pair.swapcase(), *pairs[index + 1 :]]))
    while True:
        if len(pairs) > 1:
            yield replace(request, query="&".join(rng.sample(pairs, len(pairs))))
        yield replace(request, query=_changed(query, rng))
        yield replace(request, query=f"{query}&{quote(chr(rng.randrange(1, 0xD800)))}={rng.randrange(1000)}")


def _fields(webhook: Webhook, target: Target, rng: random.Random) -> Iterator[Request]:
    for one, two in zip(_renamed(webhook, target, rng), _revalued(webhook, target, rng), strict=False):
        yield one
        yield two


def _renamed(webhook: Webhook, target: Target, rng: random.Random) -> Iterator[Request]:
    request = webhook.request(target)
    fields = dict(request.fields or parse_qsl(request.query, keep_blank_values=True))
    names = ["MessageStatus", "SmsSid", "OptOutType", "To", "From", "Body", "CallSid", "AAA", "Zzz", "", "MessageSid"]
    while True:
        name = rng.choice(list(fields))
        other = rng.choice([_changed(name, rng), rng.choice(names), name.lower(), f" {name}", f"{name}[]", f"{name}\0"])
        yield _given(request, {other if key == name else key: value for key, value in fields.items()})


def _revalued(webhook: Webhook, target: Target, rng: random.Random) -> Iterator[Request]:
    request = webhook.request(target)
    fields = dict(request.fields or parse_qsl(request.query, keep_blank_values=True))
    while True:
        name = rng.choice(list(fields))
        yield _given(request, fields | {name: _changed(fields[name], rng)})
        yield _given(request, {key: value for key, value in fields.items() if key != name})
        one, two = rng.sample(sorted(fields), 2) if len(fields) > 1 else (name, name)
        yield _given(request, fields | {one: fields[two], two: fields[one]})
        repeated = (*fields.items(), (name, rng.choice([fields[name], _changed(fields[name], rng)])))
        yield posted(request, repeated) if request.fields else replace(request, query=urlencode(repeated))


def _given(request: Request, fields: Mapping[str, str]) -> Request:
    return posted(request, tuple(fields.items())) if request.fields else replace(request, query=urlencode(fields))


_NAMES = sorted(
    {"Label", "Sid", "ErrorMessage", "EventType", "ReferralBody", "Forwarded", "Digits"}.union(
        *(webhook.fields for webhook in GENUINE)
    ),
    key=len,
    reverse=True,
)
_KNOWN = re.compile("|".join(_NAMES))


def _boundaries(webhook: Webhook, target: Target, rng: random.Random) -> Iterator[Request]:
    """Yield forms with other fields but the same signed text, and a few with another text as a control for tests."""
    request = webhook.request(target)
    fields = sorted(request.fields)
    while fields:
        first = rng.randrange(len(fields))
        last = rng.choice([first + 1, first + 2, first + 3, rng.randrange(first + 1, len(fields) + 1)])
        text = "".join(name + value for name, value in fields[first:last])
        cuts = _cuts(text, rng)
        recut = fields[:first] + cuts + fields[last:]
        if recut != fields and (recut == sorted(dict(recut).items()) or rng.random() < 0.02):
            yield posted(request, recut)


def _cuts(text: str, rng: random.Random) -> list[tuple[str, str]]:
    """Return a text split into names and values: at known names, at capital letters, or anywhere."""
    capitals = [match.start() for match in re.finditer("[A-Z]", text)]
    known = sorted({match.start() for match in re.finditer(f"(?={_KNOWN.pattern})", text)})
    anywhere = range(1, len(text))
    places = rng.choice([known, known, [*known, rng.choice(capitals or [0])], capitals, anywhere])
    chosen = sorted({0, *(place for place in places if rng.random() < rng.choice([0.1, 0.5, 0.9]))})
    cuts = []
    for start, end in zip(chosen, [*chosen[1:], len(text)], strict=True):
        name = _KNOWN.match(text, start, end)
        at = name.end() if name and rng.random() < 0.8 else rng.randint(min(start + 1, end), end)
        cuts.append((text[start:at], text[at:end]))
    return cuts


def _moved(webhook: Webhook, target: Target, rng: random.Random) -> Iterator[Request]:
    """Yield requests with the same text but another method, or with a larger or smaller part of it in the URL."""
    request = webhook.request(target)
    fields = sorted(request.fields)
    text = "".join(name + value for name, value in fields)
    forged = b'{"forged":true}'
    as_json = request.with_header("content-type", JSON)
    for cut in (text, quote(text), f"&{urlencode(fields)}", f"#{text}"):
        query = f"{request.query}{cut}"
        yield replace(request, method="GET", query=query, body=b"")
        yield replace(as_json, query=query, body=forged)
        yield replace(as_json, query=query, body=webhook.json or b"{}")
        yield replace(request, query=query, body=b"")
        yield replace(request, path=f"{request.path}/{cut}"[:120], body=b"")
    yield posted(request, parse_qsl(request.query, keep_blank_values=True))
    yield posted(replace(request, query=""), [*fields, *parse_qsl(request.query, keep_blank_values=True)])
    whole = request.query + text
    starts = [match.start() for match in _KNOWN.finditer(whole)] or [0]
    while True:
        if fields and rng.random() < 0.3:
            name, value = rng.choice(fields)
            rest = rng.choice([fields, [pair for pair in fields if pair[0] != name]])
            more = rng.choice([f"{name}={quote(value)}", f"{name}{value}"])
            yield posted(replace(request, query=f"{request.query}&{more}"), rest)
        at = rng.choice([rng.choice(starts), rng.randrange(len(whole) + 1), rng.randrange(len(request.query) + 1)])
        recut = sorted(_cuts(whole[at:], rng)) if at < len(whole) else []
        moved = posted(replace(request, query=whole[:at], method="POST"), recut)
        if fields and fields[0][0].startswith("/"):
            yield posted(replace(request, path=f"{request.path}{''.join(fields[0])}"), fields[1:])
        kept = signature(moved.url, recut, target.auth_token) == request.header(SIGNATURE)
        if kept or rng.random() < 0.05:
            yield moved


_HASHES = re.compile("bodySHA256=([^&]*)")


def _bodies(webhook: Webhook, target: Target, rng: random.Random) -> Iterator[Request]:  # noqa: C901 a list of changes
    request = webhook.request(target)
    body = request.body or b"{}"
    forged = b'{"forged":true}'
    digest = hashlib.sha256(forged).hexdigest()
    own = hashlib.sha256(body).hexdigest()
    for more in (
        f"bodySHA256={digest}",
        f"bodysha256={digest}",
        f"&bodySHA256={digest.upper()}",
        f"#&bodySHA256={digest}",
    ):
        for query in (f"{request.query}&{more}", more, f"{more}&{request.query}"):
            for content in (forged, body):
                yield replace(request.with_header("content-type", JSON), method="POST", query=query, body=content)
    for query in (
        request.query.replace(own, own.upper()),
        request.query.replace(own, digest),
        request.query.replace("bodySHA256", "BodySHA256"),
        request.query.replace("bodySHA256", "body%53HA256"),
        f"{request.query}&bodySHA256={own}",
    ):
        for content in (body, forged):
            changed = replace(request, query=query, body=content)
            yield changed
            # Also sign the request: a valid signature does not make up for a wrong hash.
            if webhook.json and set(_HASHES.findall(unquote(query))) != {hashlib.sha256(content).hexdigest()}:
                yield signed(changed, target)
    for kind in ("", "text/plain", "text/json", "application/xml", "multipart/form-data", f"x{JSON}", JSON, FORM):
        for content in (body, forged, b"", body + b"\n", b"\xff" + body, b"[" + body + b"]"):
            yield replace(request.with_header("content-type", kind), body=content)
    while True:
        at = rng.randrange(len(body))
        flipped = bytes([body[at] ^ (1 << rng.randrange(8))])
        for content in (
            body[:at] + flipped + body[at + 1 :],
            body[:at],
            body[:at] + body[at + 1 :],
            body[:at] + b" " + body[at:],
        ):
            yield replace(request, method="POST", body=content)


def _headers(webhook: Webhook, target: Target, rng: random.Random) -> Iterator[Request]:
    request = webhook.request(target)
    genuine = str(request.header(SIGNATURE))
    raw = base64.b64decode(genuine)
    others = [
        "",
        " ",
        genuine[:-1],
        genuine.rstrip("="),
        f"{genuine}=",
        f" {genuine}",
        f"{genuine}\n",
        f'"{genuine}"',
        f"{genuine},{genuine}",
        f"{genuine}, x",
        f"sha1={genuine}",
        genuine.swapcase(),
        genuine.upper(),
        genuine[::-1],
        raw.hex(),
        base64.urlsafe_b64encode(raw + b"\xff\xff\xff").decode(),
        base64.b64encode(hashlib.sha1(genuine.encode()).digest()).decode(),  # noqa: S324 Twilio's choice
        genuine.replace("=", "é"),
        "é" * 28,
        "👍",
        "\0" * 28,
        "A" * 27 + "=",
        "A" * 100_000,
    ]
    for other in others:
        yield request.with_header(SIGNATURE, other)
    yield replace(request, headers=tuple((name, value) for name, value in request.headers if name != SIGNATURE))
    for name in ("authorization", "x-twilio-signature-2", "x_twilio_signature", "signature", "i-twilio-signature"):
        yield replace(request, headers=tuple((name if n == SIGNATURE else n, v) for n, v in request.headers))
    for token in (target.account_sid, target.auth_token[:-1], f"{target.auth_token} ", "1" * 32):
        yield signed(request, target._replace(auth_token=token))
    while True:
        at = rng.randrange(len(genuine))
        char = rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_-\0é")
        yield request.with_header(SIGNATURE, genuine[:at] + char + genuine[at + 1 :])
        yield signed(request, target._replace(auth_token=f"{rng.getrandbits(128):032x}"))


def _flipped(webhook: Webhook, target: Target, rng: random.Random) -> Iterator[Request]:
    """Yield requests with one bit changed at a random place."""
    request = webhook.request(target)
    given = str(request.header(SIGNATURE))

    def flip(data: bytes) -> bytes:
        at = rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]

    while True:
        yield request.with_header(SIGNATURE, flip(given.encode()).decode("latin-1"))
        yield replace(request, path=flip(request.path.encode()).decode("latin-1"))
        for _ in range(3):
            if request.query:
                yield replace(request, query=flip(request.query.encode()).decode("latin-1"))
            if request.body:
                yield replace(request, body=flip(request.body))


def _merged(webhook: Webhook, target: Target, rng: random.Random) -> Iterator[Request]:
    """Yield forms in which some or all fields are merged into one whose name is not one of Twilio's."""
    request = webhook.request(target)
    fields = sorted(request.fields)
    while fields:
        first = rng.choice([0, 0, rng.randrange(len(fields))])
        last = rng.choice([len(fields), rng.randrange(first + 1, len(fields) + 1)])
        text = "".join(name + value for name, value in fields[first:last])
        at = rng.randint(1, len(text)) if text else 0
        recut = [*fields[:first], (text[:at], text[at:]), *fields[last:]]
        if text[:at] not in _NAMES and recut == sorted(recut) and recut != fields:
            yield posted(request, recut)


def _cased(webhook: Webhook, target: Target, rng: random.Random) -> Iterator[Request]:
    """Yield requests with changed letter case: in a part, a name, a value or a percent-encoding."""
    request = webhook.request(target)
    fields = request.fields
    for change in (str.swapcase, str.upper, str.lower, str.title):
        yield replace(request, method=change(request.method))
        yield replace(request, host=change(request.host))
        yield replace(request, path=change(request.path))
        yield replace(request, query=change(request.query))
        yield replace(request, body=change(request.body.decode()).encode())
        yield replace(request, headers=tuple((change(name), value) for name, value in request.headers))
        for name, value in request.headers:
            yield request.with_header(name, change(value))
        for encoded in (request.query, request.body.decode()):
            other = re.sub("%[0-9A-F]{2}", lambda match, change=change: change(match[0]), encoded)  # type: ignore[misc]
            yield replace(request, query=other) if encoded is request.query else replace(request, body=other.encode())
        for index, (name, value) in enumerate(fields):
            for pair in ((change(name), value), (name, change(value))):
                yield posted(request, [*fields[:index], pair, *fields[index + 1 :]])
    letters = [at for at, letter in enumerate(request.query) if letter.isalpha()]
    while letters or fields:
        if letters:
            at = rng.choice(letters)
            query = request.query
            yield replace(request, query=query[:at] + query[at].swapcase() + query[at + 1 :])
        if fields:
            at = rng.randrange(len(request.body))
            body = request.body
            yield replace(request, body=body[:at] + body[at : at + 1].swapcase() + body[at + 1 :])


def _duplicated(webhook: Webhook, target: Target, rng: random.Random) -> Iterator[Request]:
    """Yield requests in which a parameter or a part occurs twice, with the same or another value."""
    request = webhook.request(target)
    pairs = request.fields or request.pairs
    digest = hashlib.sha256(request.body).hexdigest()
    yield replace(request, query=f"{request.query}&{request.query}")
    yield replace(request, query=f"{request.query}&bodySHA256={digest}")
    yield replace(request, query=f"bodySHA256={digest}&{request.query}")
    yield replace(request, body=request.body + b"&" + request.body)
    yield replace(request, body=request.body + request.body)
    while pairs:
        name, value = rng.choice(pairs)
        pair = rng.choice([(name, value), (name, value), (name, _changed(value, rng)), (name, ""), (name + value, "")])
        repeated = list(pairs)
        repeated.insert(rng.randrange(len(pairs) + 1), pair)
        if request.fields:
            yield posted(request, repeated)
            yield replace(request, query=f"{request.query}&{urlencode([pair])}")
        else:
            yield replace(request, query=urlencode(repeated))
            yield replace(posted(request, [pair]), method="POST")


def _methods(webhook: Webhook, target: Target, _: random.Random) -> Iterator[Request]:
    """Yield requests with another method: unchanged, without a body, or with all fields in the query or a form."""
    request = webhook.request(target)
    kept = tuple((name, value) for name, value in request.headers if name != "content-type")
    for method in ("GET", "POST", "PUT", "HEAD", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "post", "Post", ""):
        for body in (request.body, b""):
            yield replace(request, method=method, body=body)
            yield replace(request, method=method, body=body, headers=kept)
            for kind in (FORM, JSON, "text/plain"):
                yield replace(request.with_header("content-type", kind), method=method, body=body)
        pairs = [*request.pairs, *request.fields]
        yield replace(request, method=method, query=urlencode(pairs), body=b"")
        yield replace(posted(request, pairs), method=method, query="")
        yield replace(request.with_header("x-http-method-override", method), body=request.body)


_CLASSES: dict[str, Mutate] = {
    "bytes": _flipped,
    "boundary": _boundaries,
    "merged": _merged,
    "moved": _moved,
    "case": _cased,
    "duplicates": _duplicated,
    "path": _urls,
    "method": _methods,
    "json": _bodies,
    "query": _queries,
    "fields": _fields,
    "header": _headers,
}
CLASSES = tuple(_CLASSES)
SAME_TEXT = {"boundary": 0.8, "merged": 0.8, "moved": 0.3, "duplicates": 0.02, "method": 0.02, "json": 0.05}
"""The minimum share of mutants, by class, that keep the signed text but have another reading."""


def mutants(name: str, target: Target, webhooks: Sequence[Webhook], *, count: int, seed: int = 0) -> Iterator[Mutant]:
    """Yield `count` distinct mutants of a class, derived from all webhooks in turn."""
    streams = [(webhook, _stream(name, webhook, target, seed)) for webhook in webhooks]
    seen = {webhook.request(target) for webhook in webhooks}
    for webhook, stream in _distinct(streams, count, lambda request: _once(request, seen)):
        yield Mutant(webhook, stream)


def _stream(name: str, webhook: Webhook, target: Target, seed: int) -> Iterator[Request]:
    rng = random.Random(f"{seed} {name} {webhook.name}")
    stream = _CLASSES[name](webhook, target, rng)
    # Each stream starts with a fixed list of changes. Shuffle it, so that each webhook gets different ones.
    first = list(islice(stream, 150))
    rng.shuffle(first)
    return chain(first, stream)


def _once(request: Request, seen: set[Request]) -> bool:
    new = request not in seen
    seen.add(request)
    return new


def _distinct[T](
    streams: Sequence[tuple[Webhook, Iterator[T]]], count: int, new: Callable[[T], bool]
) -> Iterator[tuple[Webhook, T]]:
    """Yield `count` new items from the streams in turn; a stream without a new item among 200 is dropped."""
    left = list(streams)
    while count and left:
        for webhook, stream in list(left):
            item = next((item for _, item in zip(range(200), stream, strict=False) if new(item)), None)
            if item is None:
                left.remove((webhook, stream))
            elif count:
                count -= 1
                yield webhook, item


def shapes(target: Target, webhooks: Sequence[Webhook], *, count: int, seed: int = 0) -> Iterator[MutantEvent]:
    """Yield `count` distinct events that differ from those of API Gateway."""
    streams = [(w, _shapes(w, target, random.Random(f"{seed} shape {w.name}"))) for w in webhooks]
    seen: set[str] = set()

    def new(event: Any) -> bool:
        size = len(seen)
        seen.add(repr(event))
        return len(seen) > size

    for webhook, event in _distinct(streams, count, new):
        yield MutantEvent(webhook, event)


_ODD: list[Any] = [None, "", "\ud800", "x\udfff", 0, 1, -1.5, True, False, [], ["x"], [None], {}, {"x": 1}, "é", "\0"]


def _shapes(webhook: Webhook, target: Target, rng: random.Random) -> Iterator[Any]:
    request = webhook.request(target)
    events = [event_2(request), event_2(request, binary=False), event_1(request), event_1(request, binary=True)]
    yield from (None, [], "x", 1, {}, [events[0]], {"Records": [events[0]]}, {"detail": events[0]})
    for event in events:
        yield event | {"body": [event["body"]]}
        yield event | {"isBase64Encoded": not event["isBase64Encoded"]}
        yield event | {"body": "é" * 100, "isBase64Encoded": True}
        yield event | {"body": "A" * 400_000, "isBase64Encoded": False}
        yield event | {"body": "=" * 3, "isBase64Encoded": True}
        yield event | {"requestContext": event["requestContext"] | {"elb": {}}}
        yield event | {"headers": [[name, value] for name, value in request.headers]}
        yield event | {"headers": {name: [value] for name, value in request.headers}}
    for event in cycle(events):
        path = rng.choice(list(_paths(event)))
        yield _with(event, path, rng.choice([*_ODD, _REMOVED]))
        if isinstance(text := _at(event, path), str):
            yield _with(event, path, _changed(text, rng))


_REMOVED = object()


def _paths(value: Any) -> Iterator[tuple[str, ...]]:
    """Yield the path to each field of an event."""
    for name in value if isinstance(value, dict) else ():
        yield from chain([(name,)], ((name, *rest) for rest in _paths(value[name])))


def _at(event: Any, path: tuple[str, ...]) -> Any:
    return event if not path else _at(event[path[0]], path[1:])


def _with(event: Event, path: tuple[str, ...], value: Any) -> Event:
    name, *rest = path
    if value is _REMOVED and not rest:
        return {key: each for key, each in event.items() if key != name}
    return event | {name: _with(event[name], tuple(rest), value) if rest else value}
