"""A request that Twilio signed for one of our connections: there is no other way to what it says."""

import re
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus

import msgspec

from twilio_connector import client, envelope, signature, signed_elsewhere
from twilio_connector.connection import Connection
from twilio_connector.deadline import Deadline
from twilio_connector.envelope import HttpRequest
from twilio_connector.sending import CALLBACK_FIELD
from twilio_connector.settings import Settings, variable
from twilio_connector.signed_form import Fields, Kind, doubt, kind

MAX_FORM_BYTES = 128 * 1024
MAX_JSON_BYTES = 256 * 1024
_MAX_FIELDS = 500

_PATH = re.compile(r"([^?#]*?)/webhook(?:/([A-Za-z0-9][A-Za-z0-9_.-]{0,63}))?")
_DOMAIN = re.compile(r"[A-Za-z0-9.-]+(:[0-9]+)?")
_BODY_HASH = "bodySHA256"
_FORM_ACCOUNT = re.compile(r"AccountSidAC[0-9a-fA-F]{32}")
_GET_ACCOUNT = re.compile(r"[?&]AccountSid=AC[0-9a-fA-F]{32}")
_SEND_ID = re.compile(r"[0-9a-f]{64}")
_FORM_TYPE = "application/x-www-form-urlencoded"
_JSON_TYPE = re.compile(r"application/([a-z0-9.+-]+\+)?json")


class Refused(Exception):  # noqa: N818 says what happened, and is not seen outside this file
    """The request is not a webhook of ours; `status` is the answer."""

    def __init__(self, reason: str, status: int = 403) -> None:
        """`reason` holds nothing of the request."""
        self.status = status
        super().__init__(reason)


class Delivery(NamedTuple):
    """A request whose signature and content hold; there is no other way to its fields.

    `send` is the id of the key whose message a status callback is about, where the URL has one.
    """

    connection: str
    account_sid: str
    url: str
    signed: str
    about: Kind
    parameters: Any
    send: str | None = None


def received(event: Any, deadline: Deadline) -> Delivery:
    """Return what Twilio sent; raises Refused for anything that it did not send to one of our connections.

    Raises ServiceUnavailableError where the token that tells cannot be read until the deadline, and ConnectorError
    where there is none.
    """
    if not envelope.is_http(event):
        raise Refused("not an HTTP request")
    request = envelope.http_request(event)
    is_get = request.method == "GET"
    is_form = request.headers.get("content-type", "").partition(";")[0].strip().lower() == _FORM_TYPE
    if len(request.body) > (MAX_FORM_BYTES if is_form else MAX_JSON_BYTES):
        raise Refused("the body is too large", 413)
    if request.method not in {"GET", "POST"}:
        raise Refused("neither POST nor GET")
    path = _PATH.fullmatch(request.path)
    if path is None or not _DOMAIN.fullmatch(request.domain):
        raise Refused("the URL is not the webhook's")
    if "#" in (request.query or ""):
        raise Refused("the query holds a fragment, which is never signed")
    if "x-twilio-signature" not in request.headers:
        raise Refused("no signature")
    settings = Settings.from_env()
    urls = _urls(request, variable("WEBHOOK_BASE_URL") or f"https://{request.domain}{path[1]}", path[2])
    read = _get if is_get else _form if is_form else _json
    return read(_Signed(request, urls, settings, path[2] or settings.default_connection, deadline))


class _Signed(NamedTuple):
    """A request that may have been signed for one of the URLs, by the account of a connection."""

    request: HttpRequest
    urls: list[str]
    settings: Settings
    name: str
    deadline: Deadline

    def proof(self, fields: Fields) -> tuple[str, Connection]:
        """Return the URL for which the signature holds, and the connection; raises Refused where there is none.

        A form that was signed could be sent as a longer URL, with what somebody wrote for its query.
        """
        prefix = self.settings.connection_prefix
        # Nobody needs to make up the default's name, so the limit for made-up names is not to keep it out.
        stranger = self.name != self.settings.default_connection
        connection = client.CONNECTIONS.get(
            prefix, self.name, seconds=self.deadline.remaining(), asked_by_stranger=stranger
        )
        url = self._signed_url(connection, fields)
        if url is None and (
            renewed := client.CONNECTIONS.refresh(prefix, self.name, seconds=self.deadline.remaining())
        ):
            connection = renewed
            url = self._signed_url(connection, fields)
        if url is None:
            raise Refused(self._reason(connection, fields))
        if _FORM_ACCOUNT.search(url):
            raise Refused("the URL holds a form's AccountSid as it is signed")
        return url, connection

    @property
    def _signature(self) -> str:
        return self.request.headers["x-twilio-signature"]

    def _tokens(self, connection: Connection) -> list[str]:
        return client.CONNECTIONS.webhook_tokens(self.settings.connection_prefix, self.name, connection)

    def _signed_url(self, connection: Connection, fields: Fields) -> str | None:
        tokens = self._tokens(connection)
        return next((url for url in self.urls if signature.verify(self._signature, [url], fields, tokens)), None)

    def _reason(self, connection: Connection, fields: Fields) -> str:
        """Return why no signature holds, as well as it can be found out."""
        tokens = self._tokens(connection)
        if not tokens:
            return "the connection has no auth_token, without which no webhook can be trusted"
        return (
            signed_elsewhere.difference(self.request, self.urls[0], self._signature, fields, tokens)
            or "the signature does not hold for the URL, the parameters and the connection's auth_token"
        )


def _urls(request: HttpRequest, base: str, connection: str | None) -> list[str]:
    """Return the URLs that Twilio may have called.

    Payload format 1.0 has only the decoded query, so it is encoded anew, in the ways that are common.
    """
    url = f"{base}/webhook/{connection}" if connection else f"{base}/webhook"
    if request.query is not None:
        return [f"{url}?{request.query}" if request.query else url]
    if not request.parameters:
        return [url]
    return [
        f"{url}?" + "&".join(f"{encode(name, safe)}={encode(value, safe)}" for name, value in request.parameters)
        for encode, safe in product((quote_plus, quote), ("", "'"))
    ]


def _get(signed: _Signed) -> Delivery:
    parameters = signed.request.parameters
    url, connection = signed.proof({})
    if _BODY_HASH in dict(parameters):
        raise Refused("the URL is that of a JSON body")
    return _delivery(signed.name, connection, url, url, _grouped(parameters), None)


def _form(signed: _Signed) -> Delivery:
    request = signed.request
    try:
        pairs = parse_qsl(request.body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise Refused("the body is not a form") from None
    fields = _grouped(pairs)
    url, connection = signed.proof(fields)
    query = "&".join(f"{name}={value}" for name, value in request.parameters)
    if _BODY_HASH in query:
        raise Refused("the URL is that of a JSON body")
    text = signature.signed_text(url, fields)
    if query and _GET_ACCOUNT.search(text):
        raise Refused("what was signed may be the URL of a GET")
    send = dict(request.parameters).get(CALLBACK_FIELD, "")
    delivery = _delivery(signed.name, connection, url, text, fields, query)
    return delivery._replace(send=send if _SEND_ID.fullmatch(send) else None)


def _delivery(  # noqa: PLR0913, PLR0917 what a delivery is made of
    name: str, connection: Connection, url: str, signed: str, fields: Fields, query: str | None
) -> Delivery:
    about = kind(fields, signed if query is not None else signature.signed_text("", fields))
    if reason := doubt(fields, about, query):
        raise Refused(reason)
    account_sid = fields["AccountSid"][0]
    if account_sid not in connection.account_sids:
        raise Refused("the account is neither the connection's own nor one of its subaccount_sids")
    # What is signed of a name that repeats is each value once, in order.
    distinct = {name: sorted(set(values)) for name, values in fields.items()}
    parameters = {name: values if len(values) > 1 else values[0] for name, values in distinct.items()}
    return Delivery(name, account_sid, url.partition("?")[0], signed, about, parameters)


def _json(signed: _Signed) -> Delivery:
    request = signed.request
    if not _JSON_TYPE.match(request.headers.get("content-type", "")):
        raise Refused("the body is neither a form nor JSON")
    url, connection = signed.proof({})
    if not signature.body_matches(url.partition("?")[2], request.body):
        raise Refused("the body is not the one that bodySHA256 in the URL tells of")
    try:
        body = msgspec.json.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused("the body is not JSON") from None
    return Delivery(signed.name, connection.account_sid, url.partition("?")[0], url, Kind.OTHER, body)


def _grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields
