"""Calls to AWS services that give up in time for what comes after.

The services speak JSON over HTTP, so a request signed by botocore does what boto3 would: to load boto3 and the
descriptions of its services takes longer than all else that a function does when it starts.
"""

import os
import time
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import msgspec
import requests
from requests.structures import CaseInsensitiveDict
from urllib3 import Timeout

from twilio_connector import transport
from twilio_connector.retries import jitter
from twilio_connector.settings import variable

_CONNECT_SECONDS = 1
_READ_SECONDS = 2
_ATTEMPTS = 2
_LONGEST_PAUSE = 1.0  # seconds
REPLY_SECONDS = 8
"""So long a function is waited for that the user wrote; Twilio gives up after 15."""

SECONDS = _ATTEMPTS * (_CONNECT_SECONDS + _READ_SECONDS) + _LONGEST_PAUSE
"""A call takes at most that long: all attempts, and the wait between them."""

_MAX_BYTES = 6 * 1024 * 1024  # no service answers with more

# Error codes that say nothing about the request: it may go through later.
_TRANSIENT = frozenset(
    {
        "InternalException",
        "InternalFailure",
        "InternalServiceError",
        "InternalServiceErrorException",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)


class RefusedError(Exception):
    """The service refused the call; `code` is its error code, `answer` all that it said."""

    def __init__(self, code: str, answer: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Show the code alone: the answer may hold what is stored."""
        self.code = code
        self.answer = answer
        super().__init__(code)


class UnavailableError(RefusedError):
    """The service was throttled, failed or did not answer: later it may."""


class LostError(UnavailableError):
    """The service failed or did not answer, and the call may have been carried out."""


class _Service(NamedTuple):
    """How a service that speaks JSON is addressed; `attempts` is how often a call is made that fails."""

    target: str
    version: str
    attempts: int = _ATTEMPTS


_SERVICES = {
    "dynamodb": _Service("DynamoDB_20120810", "1.0"),
    # Who puts an event on the bus again has to say so in it, if the first call may have been carried out.
    "events": _Service("AWSEvents", "1.1", attempts=1),
    "secretsmanager": _Service("secretsmanager", "1.1"),
    "sqs": _Service("AmazonSQS", "1.0"),
    "ssm": _Service("AmazonSSM", "1.1"),
}

_SESSION = transport.Session()
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Keys(NamedTuple):
    """What signs a request."""

    access_key: str
    secret_key: str
    token: str | None


def call(service: str, operation: str, **parameters: Any) -> dict[str, Any]:
    """Call an operation of a service (`PutItem` of `dynamodb`); raises RefusedError or UnavailableError."""
    target, version, attempts = _SERVICES[service]
    headers = {"Content-Type": f"application/x-amz-json-{version}", "X-Amz-Target": f"{target}.{operation}"}
    body = msgspec.json.encode(parameters)
    while True:
        attempts -= 1
        try:
            return _answer(_exchange(service, "/", headers, body, _READ_SECONDS))
        except UnavailableError:
            if not attempts:
                raise
        time.sleep(jitter(0, _LONGEST_PAUSE))


def invoke(function_arn: str, payload: bytes) -> bytes | None:
    """Invoke a function once and return what it returns, or None where it failed.

    Raises RefusedError or UnavailableError, the latter too where it takes longer than `REPLY_SECONDS`.
    """
    path = f"/2015-03-31/functions/{quote(function_arn, safe='')}/invocations"
    reply = _exchange("lambda", path, {"Content-Type": "application/json"}, payload, REPLY_SECONDS)
    return None if "X-Amz-Function-Error" in reply.headers else reply.body


def send_message(queue_url: str, json_text: str, **parameters: Any) -> None:
    """Put a JSON text in a queue; raises RefusedError or UnavailableError."""
    # The two characters that JSON has and SQS refuses
    # (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html).
    body = json_text.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
    call("sqs", "SendMessage", QueueUrl=queue_url, MessageBody=body, **parameters)


def _exchange(service: str, path: str, headers: Mapping[str, str], body: bytes, read_seconds: float) -> transport.Reply:
    """Send one signed request and return its 2xx answer."""
    request = _signed(service, _endpoint(service) + path, headers, body)
    timeout = Timeout(connect=_CONNECT_SECONDS, read=read_seconds, total=_CONNECT_SECONDS + read_seconds)
    try:
        reply = _SESSION.exchange(request, timeout=timeout, max_bytes=_MAX_BYTES)
    except transport.NeverSent as error:
        raise UnavailableError(str(error)) from None
    except (transport.Lost, transport.TooLarge) as error:
        raise LostError(str(error) or "too large an answer") from None
    if reply.status >= 300:  # noqa: PLR2004 HTTP's own number
        raise _refusal(reply)
    return reply


def _signed(service: str, url: str, headers: Mapping[str, str], body: bytes) -> requests.PreparedRequest:
    """Return a request with the signature of the function's role."""
    # A sixth of the time that a function takes to start, where that is not done ahead of the first call.
    from botocore.auth import SigV4Auth  # noqa: PLC0415
    from botocore.awsrequest import AWSRequest  # noqa: PLC0415

    # Without a host of its own botocore takes it from the URL, twice.
    signed = AWSRequest("POST", url, headers={"Host": urlsplit(url).netloc, **headers}, data=body)
    SigV4Auth(_keys(), service, os.environ["AWS_REGION"]).add_auth(signed)
    # As it goes on the wire: to prepare it would take requests longer than to send it.
    request = requests.PreparedRequest()
    request.method, request.url, request.body = signed.method, url, body
    request.headers = CaseInsensitiveDict({**signed.headers, "Content-Length": str(len(body))})
    return request


def _answer(reply: transport.Reply) -> dict[str, Any]:
    try:
        return msgspec.json.decode(reply.body or b"{}", type=dict[str, Any])
    except _UNREADABLE:
        raise LostError("an answer that is no JSON object") from None


def _refusal(reply: transport.Reply) -> RefusedError:
    """Return the error that an answer tells, whose code is in the body, or for Lambda in a header."""
    try:
        answer = msgspec.json.decode(reply.body, type=dict[str, Any])
    except _UNREADABLE:
        answer = {}
    code = str(answer.get("__type") or reply.headers.get("x-amzn-ErrorType") or f"HTTP {reply.status}")
    code = code.rpartition("#")[2].partition(":")[0]
    if reply.status >= 500:  # noqa: PLR2004 as above
        return LostError(code, answer)
    return (UnavailableError if code in _TRANSIENT else RefusedError)(code, answer)


def _endpoint(service: str) -> str:
    """Return scheme and host of a service: AWS's, or what stands in for it on a test stack."""
    stand_in = os.environ.get("AWS_ENDPOINT_URL")
    return stand_in or f"https://{service}.{os.environ['AWS_REGION']}.{variable('URL_SUFFIX')}"


def _keys() -> _Keys:
    """Return the keys of the function's role, which Lambda puts into the environment, or under SnapStart serves.

    https://docs.aws.amazon.com/lambda/latest/dg/snapstart-activate.html
    """
    if "AWS_ACCESS_KEY_ID" not in os.environ:
        return _served_keys()
    return _Keys(
        os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], os.environ.get("AWS_SESSION_TOKEN")
    )


def _served_keys() -> _Keys:
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415 as in _signed

    try:
        return _Keys(*_served_credentials().get_frozen_credentials()[:3])
    except BotoCoreError as error:
        raise UnavailableError(type(error).__name__) from None


@cache
def _served_credentials() -> Any:
    """Return what asks for the keys anew before they expire."""
    from botocore.credentials import ContainerProvider  # noqa: PLC0415 as in _signed

    return ContainerProvider().load()


# A snapshot has what was imported before it was made, and provisioned concurrency imports it before the first call.
if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand") != "on-demand":
    import botocore.auth
    import botocore.awsrequest
    import botocore.credentials  # noqa: F401
