"""Checks that Twilio signed a request for one of the stack's connections, and only then reads its content."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, permutations, product
from math import isfinite
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus

import msgspec

from twilio_connector.api import client
from twilio_connector.api.connections import Connection
from twilio_connector.deadline import Deadline
from twilio_connector.invocation import events
from twilio_connector.invocation.events import HttpRequest
from twilio_connector.messaging.idempotency import CALLBACK_FIELD
from twilio_connector.settings import Settings, variable
from twilio_connector.webhooks import diagnosis, readings, signature
from twilio_connector.webhooks.readings import Reading
from twilio_connector.webhooks.signature import SETTINGS_HEADER, Key

MAX_FORM_BYTES = 128 * 1024
MAX_JSON_BYTES = 256 * 1024
MAX_HMACS = 32
"""Most HMACs for a request, which anyone can send. Half are for the URLs that Twilio may have signed. The other half is
for keys that were read again, or to find out which part of the URL is wrong."""

_LARGE_BYTES = 16 * 1024  # of query and body; for more, only the URL as it came is tried
_REORDERED = 3  # most parameters of a query for which all orders are tried
# Characters of a query that Twilio may sign as they are and send encoded, likely ones first. The last are all that RFC
# 3986 allows.
_BARE = (":@'", ":@", "'", "", "*", "!$'()*,;:@/?")

_PATH = re.compile(r"([^?#]*?)/webhook(?:/([A-Za-z0-9][A-Za-z0-9_.-]{0,63}))?")
_DOMAIN = re.compile(r"[A-Za-z0-9.-]+(:[0-9]+)?")
_ACCOUNT_SID = re.compile("AC[0-9a-fA-F]{32}")
_SEND_ID = re.compile("[0-9a-f]{64}")
_FORM_TYPE = "application/x-www-form-urlencoded"
_BODY_HASH = "bodySHA256"

type NamedValues = list[tuple[str, str]]
type Parameters = dict[str, str | list[str]]


class WebhookRejectedError(Exception):
    """The request is not a valid webhook. `status` is the answer's, `metric` another metric to count."""

    def __init__(self, reason: str, status: int = 403, *, metric: str | None = None) -> None:
        """Take the reason, which repeats nothing of the request."""
        self.status = status
        self.metric = metric
        super().__init__(reason)


class Delivery(NamedTuple):
    """A request with a valid signature.

    `parameters` are those of a form or a GET's query, a JSON body's value, or the text of any other body. `query` has
    the parameters that the URL's owner added to a POST's URL. `repeat` is a token that all deliveries of one request
    share; it is not signed. `send` is the id of the key that a status callback is about, if its URL has one.
    """

    connection: str
    account_sid: str
    url: str
    reading: Reading
    parameters: Any
    is_form: bool
    query: Parameters
    repeat: str
    send: str | None


def received(event: Any, deadline: Deadline) -> Delivery:
    """Return what Twilio sent; raises WebhookRejectedError if it did not sign the request for one of our connections.

    Raises ServiceUnavailableError if the connection's secret cannot be read before the deadline, and ConnectorError
    if there is none.
    """
    if not events.is_http(event):
        raise WebhookRejectedError("not an HTTP request")
    request = events.http_request(event)
    is_form = request.headers.get("content-type", "").partition(";")[0].strip().lower() == _FORM_TYPE
    if len(request.body) > (MAX_FORM_BYTES if is_form else MAX_JSON_BYTES):
        raise WebhookRejectedError("the body is too large", 413)
    if request.method not in {"GET", "POST"}:
        raise WebhookRejectedError("neither POST nor GET")
    path = _PATH.fullmatch(request.path)
    if path is None or not _DOMAIN.fullmatch(request.domain):
        raise WebhookRejectedError("the URL is not the webhook's")
    if "x-twilio-signature" not in request.headers:
        raise WebhookRejectedError("no signature")
    settings = Settings.from_env()
    base = variable("WEBHOOK_BASE_URL") or f"https://{request.domain}{path[1]}"
    route = f"/webhook/{path[2]}" if path[2] else "/webhook"
    form = None
    if request.method == "POST" and is_form:
        form = parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True)
    name = path[2] or settings.default_connection
    url = base + route
    return _delivery(request, form, name, url, _Check(request, url, form or (), settings, name, deadline).proof())


def _delivery(request: HttpRequest, form: NamedValues | None, name: str, url: str, proof: "_Proof") -> Delivery:
    """Return what a signed request says; raises WebhookRejectedError if its body is not the signed one.

    `url` is the webhook's by the stack's settings, without a query: Twilio may have signed it with a port.
    """
    is_get = request.method == "GET"
    query = proof.url.partition("?")[2]
    body = None if is_get or form is not None else request.body
    if body is not None and (body or _BODY_HASH in query) and not signature.body_matches(query, body):
        raise WebhookRejectedError("the body is not a form, and no bodySHA256 in the URL matches it")
    parameters = _value(body) if body else _parameters(request.parameters if is_get else form or ())
    account_sid = parameters.get("AccountSid") if isinstance(parameters, dict) else None
    if not isinstance(account_sid, str) or not _ACCOUNT_SID.fullmatch(account_sid):
        account_sid = proof.connection.account_sid
    send = dict(request.parameters).get(CALLBACK_FIELD, "")
    is_callback = bool(_SEND_ID.fullmatch(send))
    ours = {_BODY_HASH, CALLBACK_FIELD} if is_callback else {_BODY_HASH}
    signed_url = proof.url.partition("?")[0]
    return Delivery(
        connection=name,
        account_sid=account_sid,
        url=url,
        reading=readings.reading(
            signed_url, proof.text, method=request.method, query=request.parameters, form=form, body=body or None
        ),
        parameters=parameters,
        is_form=not body,
        query={} if is_get else _parameters(pair for pair in request.parameters if pair[0] not in ours),
        repeat=request.headers.get("i-twilio-idempotency-token", ""),
        send=send if is_callback else None,
    )


class _Proof(NamedTuple):
    """The signed URL, the whole signed text, and the connection whose key signed it."""

    url: str
    text: str
    connection: Connection


class _Check:
    """Finds the URL and the key with which Twilio signed a request, with at most `MAX_HMACS` attempts."""

    def __init__(  # noqa: PLR0913, PLR0917 what a check is made of
        self,
        request: HttpRequest,
        url: str,
        form: Iterable[tuple[str, str]],
        settings: Settings,
        name: str,
        deadline: Deadline,
    ) -> None:
        """Take a request, and the URL of the webhook without a query."""
        self._request = request
        self._signature = request.headers["x-twilio-signature"]
        self._form = signature.signed_text("", _grouped(form))
        self._url = url
        self._is_large = len(request.body) + len(request.query or "") > _LARGE_BYTES
        self._prefix = settings.connection_prefix
        self._name = name
        self._deadline = deadline
        self._left = MAX_HMACS

    def proof(self) -> _Proof:
        """Return what Twilio signed; raises WebhookRejectedError if the signature is not valid."""
        connection = client.CONNECTIONS.get(
            self._prefix, self._name, seconds=self._deadline.remaining(), unauthenticated=True
        )
        keys = self._keys(connection)
        url = self._signed_url(self._urls(), keys, MAX_HMACS // 2)
        if url is None and (
            renewed := client.CONNECTIONS.refresh(self._prefix, self._name, seconds=self._deadline.remaining())
        ):
            connection = renewed
            known, keys = keys, self._keys(connection)
            url = self._signed_url(self._urls(), [key for key in keys if key not in known], self._left)
        if url is None:
            raise self._refusal(keys)
        return _Proof(url, url + self._form, connection)

    def _keys(self, connection: Connection) -> list[Key]:
        """Return the keys that may have signed: the SharedKey that the request names, or otherwise the auth tokens."""
        if (header := self._request.headers.get(SETTINGS_HEADER)) is None:
            tokens = client.CONNECTIONS.webhook_tokens(self._prefix, self._name, connection)
            return [Key(token) for token in tokens]
        named = signature.shared_key(header)
        if named is None or named.sid not in connection.shared_keys:
            return []
        return [Key(connection.shared_keys[named.sid], named.algorithm)]

    def _signed_url(self, urls: Iterable[str], keys: Sequence[Key], tries: int) -> str | None:
        trials = ((url, key) for url in urls for key in keys)
        for url, key in islice(trials, min(tries, self._left)):
            self._left -= 1
            if signature.matches(self._signature, url + self._form, key):
                return url
        return None

    def _refusal(self, keys: Sequence[Key]) -> WebhookRejectedError:
        """Return the reason why the signature is not valid, as far as it can be found."""
        if not keys:
            return WebhookRejectedError(
                "the connection has no SharedKey of the SID and algorithm with which the request is signed"
                if SETTINGS_HEADER in self._request.headers
                else "the connection has neither auth_token nor shared_keys, without which no webhook can be trusted",
                metric="WebhookSecretMissing",
            )
        expected = next(self._urls())
        others = () if self._is_large else diagnosis.candidates(self._request, expected)
        if url := self._signed_url(others, keys, self._left):
            return WebhookRejectedError(diagnosis.difference(url, expected), metric="WebhookUrlMismatch")
        return WebhookRejectedError("the signature does not match the URL, the parameters and the connection's secret")

    def _urls(self) -> Iterator[str]:
        """Yield the URLs that Twilio may have signed, likely ones first, each once."""
        yield from (seen := signature.spellings(self._with(next(self._queries()))))
        known = set(seen)
        for port in (0, -1):  # without the standard one, then with it
            for query in self._queries():
                if (spelled := signature.spellings(self._with(query))[port]) not in known:
                    known.add(spelled)
                    yield spelled

    def _with(self, query: str) -> str:
        return f"{self._url}?{query}" if query else self._url

    def _queries(self) -> Iterator[str]:
        """Yield the query as it may have been signed: as it came, sorted, with bare characters, in another order.

        Twilio signs some characters of a GET as they are and sends them encoded, it may sort a callback's query, and
        payload format 1.0 has only the decoded pairs.
        """
        pairs, as_it_came = self._request.parameters, self._request.query
        if as_it_came is not None or not pairs:
            yield as_it_came or ""
        if not pairs or (self._is_large and as_it_came is not None):
            return
        spellings = [
            [f"{encode(name, bare)}={encode(value, bare)}" for name, value in pairs]
            for bare, encode in product(_BARE, (quote_plus, quote))
        ]
        if as_it_came is not None and len(pieces := as_it_came.split("&")) == len(pairs):
            spellings.insert(0, pieces)
        if self._is_large:
            yield "&".join(spellings[0])
            return
        for order, of_order in _orders(pairs):
            for spelling in spellings[of_order]:
                yield "&".join(spelling[number] for number in order)


def _orders(pairs: NamedValues) -> Iterator[tuple[Sequence[int], slice]]:
    """Yield the orders in which pairs may have been signed, likely ones first, each with the spellings to try."""
    given = range(len(pairs))
    if len(pairs) > _REORDERED:
        yield given, slice(None)
        return
    by_name, *others = permutations(sorted(given, key=pairs.__getitem__))
    first, more = slice(1), slice(1, None)
    yield from ((given, first), (by_name, first), (given, more), (by_name, more))
    yield from ((other, slice(None)) for other in others)


def _grouped(pairs: Iterable[tuple[str, str]]) -> Mapping[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


def _parameters(pairs: Iterable[tuple[str, str]]) -> Parameters:
    """Return values by name. A repeated name has a list, each value once and sorted, since Twilio signs no more."""
    distinct = {name: sorted(set(values)) for name, values in _grouped(pairs).items()}
    return {name: values if len(values) > 1 else values[0] for name, values in distinct.items()}


def _value(body: bytes) -> Any:
    """Return a signed JSON body's value, with U+FFFD for half a surrogate; the text of a body that is no JSON."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    import json  # noqa: PLC0415 reads JSON that Twilio may send and msgspec refuses

    text = body.decode("utf-8", "replace")
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=str)
        written = json.dumps(value, ensure_ascii=False)
        return msgspec.json.decode(written.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except (ValueError, RecursionError):
        return text


def _finite(text: str) -> float | str:
    """Return a number, or its text if it is too large for a float."""
    number = float(text)
    return number if isfinite(number) else text
