"""Reads the input from the event of any caller, and refuses events of an unknown shape."""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from twilio_connector.errors import NOTHING_CHANGED, Fault, InvalidInputError
from twilio_connector.invocation.caller import Caller

# Fields that only envelopes have. The inputs of actions have none of these names.
_ENVELOPE_FIELDS = frozenset(
    {
        "Records",
        "detail-type",
        "detail",
        "httpMethod",
        "rawPath",
        "requestContext",
        "requestPayload",
        "responsePayload",
        "routeKey",
        "eventSource",
        "EventSource",
        "TopicArn",
        "awslogs",
        "invocationId",
    }
)
_MESSAGE_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_DEPTH = 4  # an SQS body > an SNS notification > a failure record > an EventBridge event


class Inputs(NamedTuple):
    """A caller's input: the JSON payload, and the text values of the query string and the path."""

    caller: Caller
    payload: Any
    text: Mapping[str, list[str]] = {}

    @property
    def keyed_payload(self) -> Any:
        """The payload. If it has no idempotency key of its own, the delivery's id is the key."""
        key = self.caller.delivery
        if key is None or not isinstance(self.payload, dict) or self.payload.get("idempotency_key") is not None:
            return self.payload
        return self.payload | {"idempotency_key": key}


class SqsRecord(NamedTuple):
    """One record of an SQS batch. Records of one FIFO `group` must stay in order.

    `sent_at` is the time at which it was put in the queue, in seconds since the epoch, if SQS gives it.
    """

    message_id: str
    body: str
    group: str | None = None
    queue_arn: str = ""
    receipt_handle: str = ""
    receive_count: int = 1
    sent_at: float | None = None

    @property
    def log_fields(self) -> dict[str, str]:
        """The record's id for the log. An id that SQS cannot have made is left out, as it may contain any text."""
        return {"messaging.message.id": self.message_id} if _MESSAGE_ID.fullmatch(self.message_id) else {}


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request through API Gateway (payload format 1.0 or 2.0) or a function URL.

    `path` is the path that the client called, with the stage or base path. `query` is the undecoded query string. It
    is None in payload format 1.0, which has only the decoded `parameters`. Header names are lower case.
    """

    method: str
    domain: str
    path: str
    query: str | None
    parameters: list[tuple[str, str]]
    path_parameters: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def __repr__(self) -> str:
        """Leave out headers, query and body, which may hold secrets, phone numbers and texts."""
        return f"HttpRequest({self.method} {self.domain}{self.path})"


def is_http(event: Any) -> bool:
    """Tell whether an event is a request through API Gateway or a function URL."""
    context = event.get("requestContext") if isinstance(event, dict) else None
    return isinstance(context, dict) and ("http" in context or "httpMethod" in event) and "elb" not in context


def http_request(event: dict[str, Any]) -> HttpRequest:
    """Read an event for which `is_http` is true; raises InvalidInputError if it is malformed."""
    try:
        return _payload_2(event) if "http" in event["requestContext"] else _payload_1(event)
    except (KeyError, TypeError, ValueError, AttributeError, UnicodeError, binascii.Error):
        raise _refused("(request)", "is not an API Gateway or function URL event") from None


def http_inputs(request: HttpRequest) -> Inputs:
    """Return the input in a request: query string, path and JSON body together."""
    text: dict[str, list[str]] = {}
    for name, value in request.parameters:
        text.setdefault(name, []).append(value)
    for name, value in request.path_parameters.items():
        text.setdefault(name, []).append(value)
    payload = _json(request.body, "(body)") if request.body else {}
    if request.method != "GET" and "idempotency-key" in request.headers:
        key = request.headers["idempotency-key"]
        in_body = payload.get("idempotency_key") if isinstance(payload, dict) else None
        if in_body is None:
            text.setdefault("idempotency_key", []).append(key)
        elif in_body != key:
            raise _refused("idempotency_key", "differs from the header Idempotency-Key; give one of them")
    return Inputs(Caller("api"), payload, text)


def sqs_records(event: Any) -> list[SqsRecord] | None:
    """Return the records of an SQS batch, or None if the event is something else."""
    if not isinstance(event, dict) or not isinstance(event.get("Records"), list) or not event["Records"]:
        return None
    records = event["Records"]
    if not all(isinstance(record, dict) and record.get("eventSource") == "aws:sqs" for record in records):
        return None
    try:
        return [_record(record) for record in records]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _refused("Records", "is not an SQS batch: a record has no messageId or body") from None


def sqs_inputs(record: SqsRecord) -> Inputs:
    """Return the input in the body of an SQS record."""
    return _unwrapped(_json(record.body, "body"), Caller("sqs", record.message_id), depth=1)


def inputs(event: Any) -> Inputs:
    """Return the input in any other event; raises InvalidInputError for an unknown shape."""
    return _unwrapped(event, Caller("direct"), depth=0)


def _record(record: dict[str, Any]) -> SqsRecord:
    """https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html."""
    attributes = record.get("attributes", {})
    return SqsRecord(
        message_id=record["messageId"],
        body=record["body"],
        group=_fifo_group(record),
        queue_arn=str(record.get("eventSourceARN")),
        receipt_handle=str(record.get("receiptHandle")),
        receive_count=int(attributes.get("ApproximateReceiveCount", 1)),
        sent_at=int(attributes["SentTimestamp"]) / 1000 if "SentTimestamp" in attributes else None,
    )


def _fifo_group(record: dict[str, Any]) -> str | None:
    """Return the message group of a FIFO queue; a standard queue's group does not order its records."""
    if not str(record.get("eventSourceARN")).endswith(".fifo"):
        return None
    return str(record["attributes"]["MessageGroupId"])


def _unwrapped(event: Any, caller: Caller, depth: int) -> Inputs:
    """Return the caller and the input in an event, through all envelopes around it."""
    if not isinstance(event, dict) or not _ENVELOPE_FIELDS & event.keys():
        return Inputs(caller, event)
    if depth == _MAX_DEPTH:
        raise _refused("(event)", "has too many envelopes around the input")
    match event:
        case {"detail-type": str(), "source": str(), "detail": dict(detail)}:
            # Failure records reach EventBridge as the detail of an event.
            return _unwrapped(detail, _within(caller, "eventbridge", event.get("id")), depth + 1)
        case {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": str(message)} as notification}]}:
            caller = _within(caller, "sns", notification.get("MessageId"))
            return _unwrapped(_json(message, "Message"), caller, depth + 1)
        case {"Type": "Notification", "TopicArn": str(), "Message": str(message)}:
            return _unwrapped(_json(message, "Message"), _within(caller, "sns", event.get("MessageId")), depth + 1)
        case {"requestContext": {"functionArn": str()} as context, "requestPayload": payload}:
            # https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
            caller = _within(caller, caller.kind, context.get("requestId"))
            return _unwrapped(payload, caller._replace(may_have_been_sent=_may_have_changed(event)), depth + 1)
    raise _refused("(event)", "is neither an input nor an event that the connector knows")


def _within(caller: Caller, kind: str, delivery: Any) -> Caller:
    """Return the caller that an envelope names."""
    return Caller(
        kind, delivery if delivery and isinstance(delivery, str) else caller.delivery, caller.may_have_been_sent
    )


def _may_have_changed(failure: dict[str, Any]) -> bool:
    """Tell whether the failed invocation that a failure record describes may have changed something at Twilio."""
    match failure:
        case {"responseContext": {"functionError": _}, "responsePayload": {"errorType": str(name)}}:
            return name not in NOTHING_CHANGED
        case {"responseContext": dict(response)} if "functionError" not in response:
            return False
    return failure.get("responseContext") is not None  # without it, Lambda never invoked the function


def _payload_2(event: dict[str, Any]) -> HttpRequest:
    """https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html."""
    context = event["requestContext"]
    query = event.get("rawQueryString") or ""
    return HttpRequest(
        method=str(context["http"]["method"]).upper(),
        domain=str(context.get("domainName", "")),
        path=_text(event["rawPath"]),
        query=_text(query),
        parameters=parse_qsl(_text(query), keep_blank_values=True),
        path_parameters=_texts(event.get("pathParameters")),
        headers={name.lower(): value for name, value in _texts(event.get("headers")).items()},
        body=_body(event),
    )


def _payload_1(event: dict[str, Any]) -> HttpRequest:
    """https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html."""
    context = event["requestContext"]
    headers = {name: ", ".join(values) for name, values in (event.get("multiValueHeaders") or {}).items()}
    headers |= _texts(event.get("headers"))
    parameters = event.get("multiValueQueryStringParameters") or {
        name: [value] for name, value in (event.get("queryStringParameters") or {}).items()
    }
    return HttpRequest(
        method=str(event["httpMethod"]).upper(),
        domain=str(context.get("domainName", "")),
        path=_text(context.get("path") or event["path"]),
        query=None,
        parameters=[(_text(name), _text(value)) for name, values in parameters.items() for value in values],
        path_parameters=_texts(event.get("pathParameters")),
        headers={name.lower(): _text(value) for name, value in headers.items()},
        body=_body(event),
    )


def _body(event: dict[str, Any]) -> bytes:
    body = event.get("body") or ""
    if event.get("isBase64Encoded"):
        return base64.b64decode(body, validate=True)
    return _text(body).encode()


def _texts(values: Any) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in (values or {}).items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # raises for a lone surrogate, which JSON's escapes can spell
    return value


def _json(text: Any, name: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError, TypeError):
        raise _refused(name, "must be JSON") from None


def _refused(name: str, message: str) -> InvalidInputError:
    return InvalidInputError(Fault(name, message))
