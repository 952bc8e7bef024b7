"""Calls to AWS services with short timeouts, so that time is left for what follows.

The services speak JSON over HTTP. The connector signs requests with botocore and sends them itself: loading boto3 and
its service descriptions takes longer than everything else in a cold start.
"""

import math
import os
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import msgspec
import requests
from urllib3 import Timeout

from twilio_connector import clock, http
from twilio_connector.backoff import jitter
from twilio_connector.errors import InternalError, ServiceUnavailableError
from twilio_connector.settings import variable

_CONNECT_SECONDS = 1
_READ_SECONDS = 2
_ATTEMPTS = 2
_LONGEST_PAUSE = 1.0  # seconds
REPLY_SECONDS = 8
"""Timeout for the user's reply function, in seconds; Twilio's own timeout is 15 seconds."""

SECONDS = _ATTEMPTS * (_CONNECT_SECONDS + _READ_SECONDS) + _LONGEST_PAUSE
"""Most seconds of a call: all attempts, and the pause between them."""

_FAILED = 500  # HTTP's own number
_MAX_BYTES = 6 * 1024 * 1024  # no service answers with more

# Error codes of temporary failures, which say nothing about the request.
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
        "TransactionConflictException",
        "TransactionInProgressException",
    }
)


class AwsError(Exception):
    """The service refused the call; `code` is its error code, `answer` its whole answer."""

    def __init__(self, code: str, answer: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Show the code alone: the answer may hold stored data."""
        self.code = code
        self.answer = answer
        super().__init__(code)

    def unavailable(self, what: str) -> ServiceUnavailableError:
        """Return the error for the connector's callers: `what` does not answer."""
        return ServiceUnavailableError(f"{what} does not answer ({self.code})")


class AwsUnavailableError(AwsError):
    """The service throttled the call, failed or did not answer; a retry may succeed."""


class AwsResponseLostError(AwsUnavailableError):
    """The service failed or did not answer, and the call may have been carried out."""


class _Service(NamedTuple):
    """How to call a service: its name in AWS's variables and, if it speaks JSON, its target and version.

    `attempts` is the number of attempts for a call.
    """

    name: str
    target: str = ""
    version: str = ""
    attempts: int = _ATTEMPTS


_SERVICES = {
    "dynamodb": _Service("DYNAMODB", "DynamoDB_20120810", "1.0"),
    # No retry here: the caller must mark an event that it puts again, if the first call may have been carried out.
    "events": _Service("EVENTBRIDGE", "AWSEvents", "1.1", attempts=1),
    "lambda": _Service("LAMBDA", attempts=1),
    "secretsmanager": _Service("SECRETS_MANAGER", "secretsmanager", "1.1"),
    "sqs": _Service("SQS", "AmazonSQS", "1.0"),
    "ssm": _Service("SSM", "AmazonSSM", "1.1"),
}

_SESSION = http.Session()
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Keys(NamedTuple):
    """The keys that sign a request."""

    access_key: str
    secret_key: str
    token: str | None


def call(service: str, operation: str, *, seconds: float = math.inf, **parameters: Any) -> dict[str, Any]:
    """Call an operation of a service (`PutItem` of `dynamodb`); raises AwsError.

    It takes at most `SECONDS`, and at most the `seconds` left.
    """
    ends_at = clock.monotonic() + seconds
    _, target, version, attempts = _SERVICES[service]
    headers = {"Content-Type": f"application/x-amz-json-{version}", "X-Amz-Target": f"{target}.{operation}"}
    body = msgspec.json.encode(parameters)
    while True:
        attempts -= 1
        try:
            return _answer(_exchange(service, "/", headers, body, _READ_SECONDS, ends_at=ends_at))
        except AwsUnavailableError:
            pause = jitter(0, _LONGEST_PAUSE)
            if not attempts or clock.monotonic() + pause >= ends_at:
                raise
        clock.sleep(pause)


def invoke(function_arn: str, payload: bytes) -> bytes | None:
    """Invoke a function once and return its result, or None if it failed.

    Raises AwsError; after `REPLY_SECONDS` it raises AwsUnavailableError.
    """
    path = f"/2015-03-31/functions/{quote(function_arn, safe='')}/invocations"
    reply = _exchange("lambda", path, {"Content-Type": "application/json"}, payload, REPLY_SECONDS)
    return None if "X-Amz-Function-Error" in reply.headers else reply.body


def _exchange(  # noqa: PLR0913 HTTP has these parts
    service: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    read_seconds: float,
    *,
    ends_at: float = math.inf,
) -> http.Reply:
    """Send one signed request and return its 2xx answer; it times out at `ends_at` of the monotonic clock."""
    request = _signed(service, _endpoint(service) + path, headers, body)
    left = min(_CONNECT_SECONDS + read_seconds, ends_at - clock.monotonic())
    if left <= 0:
        raise AwsUnavailableError("no time left")
    timeout = Timeout(connect=_CONNECT_SECONDS, read=read_seconds, total=left)
    try:
        reply = _SESSION.exchange(request, timeout=timeout, max_bytes=_MAX_BYTES)
    except http.ConnectFailedError as error:
        raise AwsUnavailableError(str(error)) from None
    except (http.ResponseLostError, http.BodyTooLargeError) as error:
        raise AwsResponseLostError(str(error) or "the answer is too large") from None
    if reply.status >= 300:  # noqa: PLR2004 HTTP's own number
        raise _refusal(reply)
    return reply


def _signed(service: str, url: str, headers: Mapping[str, str], body: bytes) -> requests.PreparedRequest:
    """Return a request with the signature of the function's role."""
    # These imports take a sixth of a cold start, unless they are done ahead of the first call.
    from botocore.auth import SigV4Auth  # noqa: PLC0415
    from botocore.awsrequest import AWSRequest  # noqa: PLC0415

    # Without this header, botocore parses the URL twice to find the host.
    signed = AWSRequest("POST", url, headers={"Host": urlsplit(url).netloc, **headers}, data=body)
    SigV4Auth(_keys(), service, os.environ["AWS_REGION"]).add_auth(signed)
    return http.prepare("POST", url, dict(signed.headers), body)


def _answer(reply: http.Reply) -> dict[str, Any]:
    try:
        return msgspec.json.decode(reply.body or b"{}", type=dict[str, Any])
    except _UNREADABLE:
        raise AwsResponseLostError("the answer is not a JSON object") from None


def _refusal(reply: http.Reply) -> AwsError:
    """Return the error in an answer. Its code is in the body, or for Lambda in a header."""
    try:
        answer = msgspec.json.decode(reply.body, type=dict[str, Any])
    except _UNREADABLE:
        answer = {}
    code = str(answer.get("__type") or reply.headers.get("x-amzn-ErrorType") or f"HTTP {reply.status}")
    code = code.rpartition("#")[2].partition(":")[0]
    if reply.status >= _FAILED:
        return AwsResponseLostError(code, answer)
    return (AwsUnavailableError if is_transient(reply.status, code) else AwsError)(code, answer)


def is_transient(status: int, code: str) -> bool:
    """Tell whether an error is temporary, so that a retry of the same request may succeed."""
    return status >= _FAILED or code in _TRANSIENT


def _endpoint(service: str) -> str:
    """Return a service's URL without a slash at its end. AWS's own variables count in boto3's order.

    https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html
    https://docs.aws.amazon.com/sdkref/latest/guide/feature-endpoints.html
    """
    configured = None
    if not _is_set("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"):
        own = os.environ.get(f"AWS_ENDPOINT_URL_{_SERVICES[service].name}")
        configured = own or os.environ.get("AWS_ENDPOINT_URL")
    fips, dual_stack = _is_set("AWS_USE_FIPS_ENDPOINT"), _is_set("AWS_USE_DUALSTACK_ENDPOINT")
    region = os.environ["AWS_REGION"]
    if fips or dual_stack:
        return _variant(service, region, configured, fips=fips, dual_stack=dual_stack)
    return (configured or f"https://{service}.{region}.{variable('URL_SUFFIX')}").rstrip("/")


def _is_set(name: str) -> bool:
    """Tell whether a variable is true, as botocore reads it."""
    return os.environ.get(name, "").lower() == "true"


@cache
def _variant(service: str, region: str, configured: str | None, *, fips: bool, dual_stack: bool) -> str:
    """Return a service's FIPS or dual-stack URL by botocore's rules, which have exceptions in every partition."""
    # These imports take some milliseconds, and only stacks that set these variables need them.
    from botocore.endpoint_provider import EndpointProvider  # noqa: PLC0415
    from botocore.exceptions import EndpointProviderError  # noqa: PLC0415

    rules = _loader().load_service_model(service, "endpoint-rule-set-1")
    provider = EndpointProvider(ruleset_data=rules, partition_data=_loader().load_data("partitions"))
    given = {"Region": region, "UseFIPS": fips, "UseDualStack": dual_stack}
    try:
        return str(provider.resolve_endpoint(**given, **({"Endpoint": configured} if configured else {})).url)
    except EndpointProviderError as error:
        raise InternalError(
            "environment variables AWS_USE_FIPS_ENDPOINT and AWS_USE_DUALSTACK_ENDPOINT: "
            f"{service} has no such endpoint in {region}, or another variable sets its URL ({type(error).__name__})"
        ) from None


@cache
def _loader() -> Any:
    """Return botocore's loader of its data, which lists the folders of all services only once."""
    from botocore.loaders import Loader  # noqa: PLC0415 as in _variant

    return Loader()


def _keys() -> _Keys:
    """Return the keys of the function's role: from the environment, or with SnapStart from Lambda's endpoint.

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
        raise AwsUnavailableError(type(error).__name__) from None


@cache
def _served_credentials() -> Any:
    """Return the credentials that refresh the keys before they expire."""
    from botocore.credentials import ContainerProvider  # noqa: PLC0415 as in _signed

    return ContainerProvider().load()


# With SnapStart and provisioned concurrency, Lambda runs these imports before the first call.
if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand") != "on-demand":
    import botocore.auth
    import botocore.awsrequest
    import botocore.credentials  # noqa: F401
