"""The wrapper of every Lambda handler: it sets the deadline, logs each call in one line, and writes the metrics."""

import functools
import os
import re
from collections.abc import Callable
from typing import Any, Self

from twilio_connector import clock, telemetry
from twilio_connector.api.client import Twilio  # noqa: TC001 every function loads it
from twilio_connector.deadline import Deadline
from twilio_connector.errors import ConnectorError, OutcomeUnknownError

# https://docs.aws.amazon.com/xray/latest/devguide/xray-concepts.html#xray-concepts-tracingheader
_TRACE_ID = re.compile(r"Root=(1-[0-9a-f]{8}-[0-9a-f]{24});(?:.*;)?Sampled=1(?:;|\Z)")


class Invocation:
    """One call of a function, or one record of its batch: its deadline, and its log line.

    Use it in a `with` block. Fields that the block adds with `telemetry.note` last until its end. If an error ends the
    block, it is logged once and raised as a ConnectorError. Otherwise the `outcome` is logged, if it was set. If a
    request of `twilio` may have changed something, an unexpected exception becomes an OutcomeUnknownError.
    """

    def __init__(self, deadline: Deadline, **fields: Any) -> None:
        """Take the deadline, and the fields of the call's log lines."""
        self.deadline = deadline
        self.twilio: Twilio | None = None
        self.outcome: str | None = None
        self._scope = telemetry.scope(**fields)
        self._began = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        self._began = clock.monotonic()
        self._scope.__enter__()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Log the outcome; the message of an unexpected error must not reach a log or a caller."""
        try:
            self._log(error)
        finally:
            self._scope.__exit__(None, None, None)

    def _log(self, error: BaseException | None) -> None:
        if error is None and self.outcome is not None:
            telemetry.success(self.outcome, duration_ms=round((clock.monotonic() - self._began) * 1000))
        elif isinstance(error, ConnectorError):
            telemetry.failure(error)
        elif isinstance(error, Exception):
            fault = telemetry.bug(error)
            if self.twilio is None or not self.twilio.may_have_changed:
                raise fault from None
            unknown = OutcomeUnknownError("internal error after the request was made; the function's log shows where")
            telemetry.failure(unknown)
            raise unknown from None


def lambda_function[R](run: Callable[[Any, Invocation], R]) -> Callable[[Any, Any], R]:
    """Make a Lambda handler of a function that takes the event and the invocation."""

    @functools.wraps(run)
    def handler(event: Any, context: Any) -> R:
        try:
            with Invocation(Deadline.of(context), **_fields(run.__module__, context)) as invocation:
                return run(event, invocation)
        finally:
            telemetry.flush()

    return handler


def _fields(function: str, context: Any) -> dict[str, str | None]:
    """Return the fields of an invocation's log lines. The trace id is None if X-Ray does not sample the request."""
    trace = _TRACE_ID.match(os.environ.get("_X_AMZN_TRACE_ID", ""))
    return {
        "function_request_id": context.aws_request_id,
        "xray_trace_id": trace[1] if trace else None,
        "function": function,
    }
