"""Receive what Twilio posts, check its signature, and publish it as an event."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import product
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus

import msgspec
from twilio_connector import bus, client, envelope, signature, telemetry
from twilio_connector.connection import Connection
from twilio_connector.envelope import HttpRequest
from twilio_connector.errors import ConnectionInvalidError, ConnectorError, InternalError, ServiceUnavailableError
from twilio_connector.ledger import Ledger, Proven
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

# A message goes through these in order, though its callbacks may not arrive so
# (https://www.twilio.com/docs/messaging/guides/outbound-message-status-in-status-callbacks).
_RANKS = {
    "accepted": 1,
    "scheduled": 1,
    "queued": 2,
    "sending": 3,
    "sent": 4,
    "partially_delivered": 5,
    "delivered": 6,
    "undelivered": 6,
    "failed": 6,
    "canceled": 6,
    "read": 7,
}
_TERMINAL = frozenset({"delivered", "undelivered", "failed", "canceled", "read"})
_INBOUND = frozenset({"receiving", "received"})


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


def handler(event: Any, context: Any) -> dict[str, Any]:  # noqa: ARG001 Lambda's signature
    """Answer Twilio: 200 once the event is on the bus, 403 or 413 for what is not Twilio's, else 503."""
    try:
        return _answer(event)
    except Exception as error:  # noqa: BLE001 whatever arrives, the answer is one of ours
        telemetry.bug(error)
        return _refusal(500)
    finally:
        telemetry.flush()


def _answer(event: Any) -> dict[str, Any]:
    try:
        delivery = received(event)
        telemetry.count("WebhooksAccepted")
        bus.put(list(entries(delivery, _proven_key(delivery))))
    except (InternalError, ServiceUnavailableError) as error:
        telemetry.failure(error, function=__name__)
        return _refusal(error.status)
    except (Refused, ConnectorError) as error:
        telemetry.count("WebhooksRefused")
        if isinstance(error, ConnectionInvalidError):
            telemetry.failure(error, function=__name__)  # a mistake of ours, not a stranger's
        else:
            telemetry.logger.warning("webhook refused", extra={"function": __name__, "reason": str(error)})
        return _refusal(error.status if isinstance(error, Refused) else 403)
    return {"statusCode": 200, "headers": {"Content-Type": "text/xml"}, "body": "<Response/>"}


def _refusal(status: int) -> dict[str, Any]:
    body = msgspec.json.encode({"message": HTTPStatus(status).phrase}).decode()
    return {"statusCode": status, "headers": {"Content-Type": "application/json"}, "body": body}


def received(event: Any) -> Delivery:
    """Return what Twilio sent; raises Refused for anything that it did not send to one of our connections.

    Raises ServiceUnavailableError where the token that tells cannot be read, and ConnectorError where there is
    none.
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
    settings = Settings.from_env()
    name = path[2] or settings.default_connection
    if "x-twilio-signature" not in request.headers:
        raise Refused("no signature")
    # Nobody needs to make up the default's name, so the limit for made-up names is not to keep it out.
    stranger = name != settings.default_connection
    connection = client.CONNECTIONS.get(settings.connection_prefix, name, asked_by_stranger=stranger)
    urls = _urls(request, variable("WEBHOOK_BASE_URL") or f"https://{request.domain}{path[1]}", path[2])
    read = _get if is_get else _form if is_form else _json
    return read(request, _Signer(request.headers["x-twilio-signature"], urls, name, connection))


class _Signer(NamedTuple):
    """Who is to have signed a request, and for which URL."""

    signature: str
    urls: list[str]
    name: str
    connection: Connection

    def signed_url(self, fields: Fields) -> str:
        """Return the URL for which the signature holds; raises Refused where there is none.

        A form that was signed could be sent as a longer URL, with what somebody wrote for its query.
        """
        if not self.connection.webhook_tokens:
            raise Refused("the connection has no auth_token, without which no webhook can be trusted")
        for url in self.urls:
            if signature.verify(self.signature, [url], fields, self.connection.webhook_tokens):
                if _FORM_ACCOUNT.search(url):
                    raise Refused("the URL holds a form's AccountSid as it is signed")
                return url
        raise Refused("the signature does not hold for the URL, the parameters and the connection's auth_token")


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


def _get(request: HttpRequest, signer: _Signer) -> Delivery:
    url = signer.signed_url({})
    if _BODY_HASH in dict(request.parameters):
        raise Refused("the URL is that of a JSON body")
    fields = _grouped(request.parameters)
    return _delivery(signer, url, url, fields, None)


def _form(request: HttpRequest, signer: _Signer) -> Delivery:
    try:
        pairs = parse_qsl(request.body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise Refused("the body is not a form") from None
    fields = _grouped(pairs)
    url = signer.signed_url(fields)
    query = "&".join(f"{name}={value}" for name, value in request.parameters)
    if _BODY_HASH in query:
        raise Refused("the URL is that of a JSON body")
    signed = signature.signed_text(url, fields)
    if query and _GET_ACCOUNT.search(signed):
        raise Refused("what was signed may be the URL of a GET")
    send = dict(request.parameters).get(CALLBACK_FIELD, "")
    return _delivery(signer, url, signed, fields, query)._replace(send=send if _SEND_ID.fullmatch(send) else None)


def _delivery(signer: _Signer, url: str, signed: str, fields: Fields, query: str | None) -> Delivery:
    about = kind(fields, signed if query is not None else signature.signed_text("", fields))
    if reason := doubt(fields, about, query):
        raise Refused(reason)
    account_sid = fields["AccountSid"][0]
    if account_sid not in signer.connection.account_sids:
        raise Refused("the account is neither the connection's own nor one of its subaccount_sids")
    # What is signed of a name that repeats is each value once, in order.
    distinct = {name: sorted(set(values)) for name, values in fields.items()}
    parameters = {name: values if len(values) > 1 else values[0] for name, values in distinct.items()}
    return Delivery(signer.name, account_sid, url.partition("?")[0], signed, about, parameters)


def _json(request: HttpRequest, signer: _Signer) -> Delivery:
    if not _JSON_TYPE.match(request.headers.get("content-type", "")):
        raise Refused("the body is neither a form nor JSON")
    url = signer.signed_url({})
    if not signature.body_matches(url.partition("?")[2], request.body):
        raise Refused("the body is not the one that bodySHA256 in the URL tells of")
    try:
        body = msgspec.json.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused("the body is not JSON") from None
    connection = signer.connection
    return Delivery(signer.name, connection.account_sid, url.partition("?")[0], url, Kind.OTHER, body)


def _grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


def _proven_key(delivery: Delivery) -> str | None:
    """Note in the ledger that the message of a status callback exists; return its idempotency key.

    The event goes out all the same where the ledger does not answer: there are more callbacks, and `resolve`.
    """
    if delivery.send is None or delivery.about is not Kind.MESSAGE:
        return None
    message = _message(delivery.parameters)
    ledger = Ledger(variable("LEDGER_TABLE"))
    try:
        record = ledger.find(delivery.send)
        if record is None or record.connection != delivery.connection or message["status"] in _INBOUND:
            return None
        ledger.write(Proven({name: message[name] for name in ("sid", "status", "from", "to")}), record)
    except ServiceUnavailableError as error:
        telemetry.failure(error, function=__name__, connection=delivery.connection)
        return None
    return record.idempotency_key


def entries(delivery: Delivery, idempotency_key: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the bus's entries for a delivery: one, or one for each event of an Event Streams array."""
    parameters = delivery.parameters
    events = parameters if isinstance(parameters, list) else [parameters]
    if events and all(isinstance(event, dict) and "specversion" in event and "id" in event for event in events):
        for event in events:
            yield _entry(delivery, "Event Stream Event", str(event["id"]), event)
    elif delivery.about is Kind.MESSAGE:
        message = _message(parameters)
        key = f"{delivery.account_sid}:{message['sid']}:{message['status']}"
        keyed = {"idempotency_key": idempotency_key} if idempotency_key else {}
        yield _entry(delivery, _message_event(message), key, parameters, message=message, **keyed)
    else:
        key = hashlib.sha256(delivery.signed.encode("utf-8", "surrogatepass")).hexdigest()
        name = "Error Logged" if delivery.about is Kind.ERROR else "Webhook Received"
        yield _entry(delivery, name, key, parameters)


def _entry(delivery: Delivery, name: str, key: str, parameters: Any, **more: Any) -> dict[str, Any]:
    detail = {
        "connection": delivery.connection,
        "account_sid": delivery.account_sid,
        "deduplication_id": key,
        "received_at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "url": delivery.url,
        "parameters": parameters,
        **more,
    }
    return bus.entry("twilio", name, detail)


def _message(parameters: Mapping[str, str]) -> dict[str, Any]:
    """Return the message in Twilio's parameters, in the words of Twilio's API; None for what is not there."""
    status = parameters.get("MessageStatus") or parameters.get("SmsStatus") or None
    num_media = parameters.get("NumMedia") or "0"
    error_code = parameters.get("ErrorCode")
    message = {
        "sid": parameters["MessageSid"],
        "from": parameters["From"] or None,
        "to": parameters["To"],
        "body": parameters.get("Body"),
        "status": status,
        "error_code": int(error_code) if error_code and error_code.isdigit() else None,
        "opt_out_type": parameters.get("OptOutType"),
        "messaging_service_sid": parameters.get("MessagingServiceSid") or None,
        "num_media": int(num_media) if num_media.isdigit() else 0,
        "media": [
            {"url": parameters[f"MediaUrl{number}"], "content_type": parameters.get(f"MediaContentType{number}")}
            for number in range(10)
            if f"MediaUrl{number}" in parameters
        ],
    }
    if status not in _INBOUND:
        message |= {"status_rank": _RANKS.get(status or "", 0), "terminal": status in _TERMINAL}
    return message


def _message_event(message: Mapping[str, Any]) -> str:
    if message["status"] not in _INBOUND:
        return "Message Status Changed"
    return "Opt-Out Changed" if message["opt_out_type"] else "Message Received"
