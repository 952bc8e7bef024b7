"""The time that an invocation has left, so that it answers before Lambda ends it."""

from typing import Any, Self

from twilio_connector import clock

# API Gateway's HTTP APIs time out after 30 s
# (https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-quotas.html).
API_SECONDS = 28.0


class Deadline:
    """The time at which the invocation must have answered."""

    def __init__(self, seconds: float) -> None:
        """Start the clock."""
        self._began = clock.monotonic()
        self._seconds = seconds

    @classmethod
    def of(cls, context: Any) -> Self:
        """Return the deadline that Lambda's context gives."""
        return cls(context.get_remaining_time_in_millis() / 1000)

    def capped(self, seconds: float) -> "Deadline":
        """Return this deadline, but at most that many seconds after the start."""
        capped = Deadline(min(self._seconds, seconds))
        capped._began = self._began
        return capped

    def earlier(self, seconds: float) -> "Deadline":
        """Return this deadline, that many seconds earlier."""
        earlier = Deadline(self._seconds - seconds)
        earlier._began = self._began
        return earlier

    def remaining(self) -> float:
        """Return the seconds left; negative after the deadline."""
        return self._began + self._seconds - clock.monotonic()
