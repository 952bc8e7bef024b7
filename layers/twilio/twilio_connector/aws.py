"""Calls to AWS services that give up in time for what comes after."""

import threading
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, EndpointConnectionError

from twilio_connector.transport import MAX_THREADS

_ATTEMPTS = 2
_READ_SECONDS = 2
REPLY_SECONDS = 8
"""So long a function is waited for that the user wrote; Twilio gives up after 15."""
# Who puts an event on the bus again has to say so in it, if the first call may have been carried out; and a
# function that was asked for a reply is not asked again.
_ONE_ATTEMPT = frozenset({"events", "lambda"})
_CONFIG = Config(
    connect_timeout=1,  # seconds
    max_pool_connections=MAX_THREADS,
)
_MAKING_A_CLIENT = threading.Lock()

SECONDS = 7.0
"""A call takes at most that long: both attempts, and the wait between them."""

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


def call(service: str, operation: str, **parameters: Any) -> dict[str, Any]:
    """Call an operation (in boto3's spelling); raises RefusedError or UnavailableError."""
    try:
        with _MAKING_A_CLIENT:  # boto3 makes clients of one session, which is not safe in threads
            client = _client(service)
        answer: dict[str, Any] = getattr(client, operation)(**parameters)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status >= 500:  # noqa: PLR2004 HTTP's own number
            raise LostError(code, error.response) from None
        raise (UnavailableError if code in _TRANSIENT else RefusedError)(code, error.response) from None
    except (EndpointConnectionError, ConnectTimeoutError) as error:
        raise UnavailableError(type(error).__name__) from None
    except BotoCoreError as error:
        raise LostError(type(error).__name__) from None
    return answer


def send_message(queue_url: str, json_text: str, **parameters: Any) -> None:
    """Put a JSON text in a queue; raises RefusedError or UnavailableError."""
    # The two characters that JSON has and SQS refuses
    # (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html).
    body = json_text.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
    call("sqs", "send_message", QueueUrl=queue_url, MessageBody=body, **parameters)


@cache
def _client(service: str) -> Any:
    attempts = 1 if service in _ONE_ATTEMPT else _ATTEMPTS
    patience = Config(
        read_timeout=REPLY_SECONDS if service == "lambda" else _READ_SECONDS,
        retries={"total_max_attempts": attempts, "mode": "standard"},
    )
    return boto3.client(service, config=_CONFIG.merge(patience))
