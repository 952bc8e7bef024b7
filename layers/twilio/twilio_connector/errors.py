"""The connector's errors; their class names are part of its interface.

Lambda reports the class name as `errorType`. Step Functions compares it with `ErrorEquals` by name, so a subclass does
not match its parent there.

    ConnectorError
    ├── InvalidInputError            400  the input is wrong; nothing was sent
    ├── ConnectionNotFoundError      404  no such secret, or not allowed to read it
    ├── ConnectionInvalidError       500  the secret is not a connection
    ├── ServiceUnavailableError      503  AWS failed or time ran out before anything was sent (retry)
    ├── TwilioAuthenticationError    502  Twilio refused the credentials
    ├── TwilioNotFoundError          404  Twilio has no such resource
    ├── TwilioRejectedError          4xx  Twilio refused the request
    │   └── RecipientOptedOutError   400  the recipient opted out with STOP
    ├── TwilioRateLimitError         429  too many requests at once; not processed (retry)
    ├── SenderQueueFullError         429  the sender's queue is full (retry after minutes)
    ├── TwilioUnavailableError       502  certainly not processed, or only a read (retry)
    ├── OutcomeUnknownError          504  a change may or may not have been carried out
    ├── KeyNotFoundError             404  the connection has no record of the key
    ├── IdempotencyConflictError     422  the key was used for another input
    ├── SendInProgressError          409  the key's message is being sent at this moment (retry)
    ├── ResponseTooLargeError        502  the result of a read exceeds Lambda's limit
    └── InternalError                500  a fault of the connector or its deployment
"""

from typing import Any, ClassVar, NamedTuple

from msgspec import Struct


class Fault(NamedTuple):
    """One wrong field of an input, named as the user wrote it."""

    field: str
    message: str


class TwilioDetails(Struct, frozen=True, kw_only=True):
    """Twilio's error answer to a failed request.

    `text` may hold phone numbers: it goes to API callers, never into an exception's message or a log.
    """

    status: int
    code: int | None = None
    request_id: str | None = None
    text: str | None = None


class ConnectorError(Exception):
    """Base class of the connector's errors. The message holds no input value and no secret."""

    status: ClassVar[int]
    retryable: ClassVar[bool] = False
    default_retry_after: ClassVar[int | None] = None
    """Seconds after which an API caller may retry, unless Twilio gives a time."""

    def __init__(self, message: str, *, twilio: TwilioDetails | None = None, retry_after: float | None = None) -> None:
        """Take the message; `retry_after` is Twilio's, in seconds."""
        self.twilio = twilio
        self.retry_after = retry_after
        super().__init__(message + _references(twilio))

    @property
    def http_status(self) -> int:
        """The status an API caller gets."""
        return self.status

    def problem(self) -> dict[str, Any]:
        """Return the error as an RFC 9457 problem object."""
        name = type(self).__name__
        problem: dict[str, Any] = {
            "type": f"urn:twilio-connector:error:{name}",
            "title": name,
            "status": self.http_status,
            "detail": str(self),
            "retryable": self.retryable,
        }
        if self.twilio:
            if self.twilio.text:
                problem["detail"] += f": {self.twilio.text}"
            problem |= {
                f"twilio_{name}": value
                for name in ("code", "status", "request_id")
                if (value := getattr(self.twilio, name)) is not None
            }
        return problem


def _references(twilio: TwilioDetails | None) -> str:
    """Return Twilio's status, error code and request id, with which a person finds the failure at Twilio."""
    if twilio is None:
        return ""
    parts = [f"HTTP {twilio.status}"]
    if twilio.code is not None:
        parts.append(f"Twilio code {twilio.code}")
    if twilio.request_id is not None:
        parts.append(f"request {twilio.request_id}")
    return f" ({', '.join(parts)})"


class InvalidInputError(ConnectorError):
    """The input is wrong; nothing was sent."""

    status = 400

    def __init__(self, *faults: Fault) -> None:
        """Take all faults of the input."""
        self.faults = faults
        super().__init__("; ".join(f"{fault.field}: {fault.message}" for fault in faults))

    def problem(self) -> dict[str, Any]:
        """Return the problem object with each fault by its field."""
        errors = [{"field": fault.field, "message": fault.message} for fault in self.faults]
        return super().problem() | {"errors": errors}


class ConnectionNotFoundError(ConnectorError):
    """No such secret, or the function may not read it."""

    status = 404


class ConnectionInvalidError(ConnectorError):
    """The secret is not a connection."""

    status = 500


class ServiceUnavailableError(ConnectorError):
    """An AWS service failed or time ran out before anything was sent to Twilio."""

    status = 503
    retryable = True


class TwilioAuthenticationError(ConnectorError):
    """Twilio refused the credentials, even after the connector read the secret again."""

    status = 502


class TwilioNotFoundError(ConnectorError):
    """Twilio has no such resource."""

    status = 404


class TwilioRejectedError(ConnectorError):
    """Twilio refused the request; the same request will be refused again."""

    status = 400

    @property
    def http_status(self) -> int:
        """Twilio's own status if it is 403, 409 or 422, otherwise 400."""
        return self.twilio.status if self.twilio and self.twilio.status in {403, 409, 422} else self.status


class RecipientOptedOutError(TwilioRejectedError):
    """The recipient opted out of this sender's messages with STOP (https://www.twilio.com/docs/api/errors/21610)."""

    @property
    def http_status(self) -> int:
        """Always 400."""
        return self.status


class TwilioRateLimitError(ConnectorError):
    """Too many requests at once; not processed (https://www.twilio.com/docs/api/errors/20429)."""

    status = 429
    retryable = True
    default_retry_after = 1


class SenderQueueFullError(ConnectorError):
    """The sender's queue at Twilio is full; a retry needs minutes (https://www.twilio.com/docs/api/errors/21611)."""

    status = 429
    retryable = True
    default_retry_after = 60


class TwilioUnavailableError(ConnectorError):
    """Twilio was unreachable or failed, and certainly nothing was changed."""

    status = 502
    retryable = True


class OutcomeUnknownError(ConnectorError):
    """A request that changes something may or may not have been carried out."""

    status = 504


class KeyNotFoundError(ConnectorError):
    """The connection has no record of this idempotency key: it was never used, or more than 30 days ago."""

    status = 404


class IdempotencyConflictError(ConnectorError):
    """The idempotency key was used for another input; nothing was sent."""

    status = 422


class SendInProgressError(ConnectorError):
    """The message of this idempotency key is being sent at this moment."""

    status = 409
    retryable = True
    default_retry_after = 1


class ResponseTooLargeError(ConnectorError):
    """The result of a read exceeds Lambda's limit."""

    status = 502


class InternalError(ConnectorError):
    """A fault of the connector or its deployment."""

    status = 500


NOTHING_CHANGED = frozenset(
    error.__name__
    for error in (
        InvalidInputError,
        ConnectionNotFoundError,
        ConnectionInvalidError,
        ServiceUnavailableError,
        TwilioAuthenticationError,
        TwilioNotFoundError,
        TwilioRejectedError,
        RecipientOptedOutError,
        TwilioRateLimitError,
        SenderQueueFullError,
        TwilioUnavailableError,
        KeyNotFoundError,
        IdempotencyConflictError,
        InternalError,
    )
)
"""Names of the error classes with which the failed call changed nothing at Twilio."""
