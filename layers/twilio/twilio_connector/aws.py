"""Calls to AWS services that give up in time for what comes after."""

from functools import cache
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

_CONFIG = Config(connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 2, "mode": "standard"})  # seconds

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
    """The service refused the call; `code` is its error code."""

    def __init__(self, code: str) -> None:
        """Keep the code and nothing of the request."""
        self.code = code
        super().__init__(code)


class UnavailableError(RefusedError):
    """The service was throttled, failed or did not answer; the call may have been carried out."""


def call(service: str, operation: str, **parameters: Any) -> dict[str, Any]:
    """Call an operation (in boto3's spelling); raises RefusedError or UnavailableError."""
    try:
        answer: dict[str, Any] = getattr(_client(service), operation)(**parameters)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        unavailable = code in _TRANSIENT or status >= 500  # noqa: PLR2004 HTTP's own number
        raise (UnavailableError if unavailable else RefusedError)(code) from None
    except BotoCoreError as error:
        raise UnavailableError(type(error).__name__) from None
    return answer


@cache
def _client(service: str) -> Any:
    return boto3.client(service, config=_CONFIG)
