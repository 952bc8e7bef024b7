"""The connector's errors; their class names are part of its interface.

Lambda reports the class name as `errorType`, which Step Functions compares with `ErrorEquals` by name: a
subclass does not match its parent there.

    ConnectorError
    ├── InvalidInputError            400  the input is wrong; nothing was sent
    ├── ConnectionNotFoundError      404  no such secret, or not allowed to read it
    ├── ConnectionInvalidError       500  the secret is not a connection
    ├── ServiceUnavailableError      503  AWS or the deadline stopped us before anything was sent (retry)
    ├── TwilioAuthenticationError    502  Twilio refused the credentials
    ├── TwilioNotFoundError          404  Twilio has no such resource
    ├── TwilioRejectedError          4xx  Twilio refused the request
    │   └── RecipientOptedOutError   400  the recipient said STOP
    ├── TwilioRateLimitError         429  too many requests at once; not processed (retry)
    ├── SenderQueueFullError         429  the sender's queue is full (retry after minutes)
    ├── TwilioUnavailableError       502  provably not processed, or only a read (retry)
    ├── OutcomeUnknownError          504  a change may or may not have been carried out
    ├── IdempotencyConflictError     422  the key was used for another input
    ├── SendInProgressError          409  the key's message is being sent at this moment (retry)
    ├── ResponseTooLargeError        502  a read whose answer does not fit Lambda's limit
    └── InternalError                500  a fault of the connector or its deployment
"""

from typing import Any, ClassVar, NamedTuple

from msgspec import Struct


class Fault(NamedTuple):
    """One wrong field of an input, named as the user wrote it."""

    field: str
    message: str


class TwilioDetails(Struct, frozen=True, kw_only=True):
    """What Twilio said about a failed request.

    `text` may hold phone numbers: it goes to API callers, never into an exception's message or a log.
    """

    status: int
    code: int | None = None
    request_id: str | None = None
    text: str | None = None


class ConnectorError(Exception):
    """Base of everything the connector raises; its message holds no value of an input or a secret."""

    status: ClassVar[int]
    retryable: ClassVar[bool] = False
    patience: ClassVar[int | None] = None
    """Seconds after which an API caller may try again, where Twilio does not say."""

    def __init__(self, message: str, *, twilio: TwilioDetails | None = None, retry_after: float | None = None) -> None:
        """`retry_after` is in seconds, where Twilio gave it."""
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
    """Return what a person needs to look the failure up at Twilio."""
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
        """All faults of one input are reported at once."""
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
    """An AWS service or the deadline stopped the request before anything went on the wire."""

    status = 503
    retryable = True


class TwilioAuthenticationError(ConnectorError):
    """Twilio refused the credentials, also after they were read anew."""

    status = 502


class TwilioNotFoundError(ConnectorError):
    """Twilio has no such resource."""

    status = 404


class TwilioRejectedError(ConnectorError):
    """Twilio refused the request; the same request will be refused again."""

    status = 400

    @property
    def http_status(self) -> int:
        """Twilio's own status where it says more than 400."""
        return self.twilio.status if self.twilio and self.twilio.status in {403, 409, 422} else self.status


class RecipientOptedOutError(TwilioRejectedError):
    """The recipient said STOP to this sender (https://www.twilio.com/docs/api/errors/21610)."""

    @property
    def http_status(self) -> int:
        """Always 400."""
        return self.status


class TwilioRateLimitError(ConnectorError):
    """Too many requests at once; not processed (https://www.twilio.com/docs/api/errors/20429)."""

    status = 429
    retryable = True
    patience = 1


class SenderQueueFullError(ConnectorError):
    """The sender's queue is full for minutes (https://www.twilio.com/docs/api/errors/21611)."""

    status = 429
    retryable = True
    patience = 60


class TwilioUnavailableError(ConnectorError):
    """Twilio could not be reached or failed, and provably nothing was changed."""

    status = 502
    retryable = True


class OutcomeUnknownError(ConnectorError):
    """A request that changes something may or may not have been carried out."""

    status = 504


class IdempotencyConflictError(ConnectorError):
    """The idempotency key was used for another input; nothing was sent."""

    status = 422


class SendInProgressError(ConnectorError):
    """The message of this idempotency key is being sent at this moment."""

    status = 409
    retryable = True
    patience = 1


class ResponseTooLargeError(ConnectorError):
    """The answer of a read does not fit Lambda's limit."""

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
        IdempotencyConflictError,
        InternalError,
    )
)
"""The classes, by name, of errors after which nothing was changed at Twilio by the call that failed."""
