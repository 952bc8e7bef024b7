"""The time an invocation has left, so that it answers before it is killed."""

import time
from typing import Any, Self

# API Gateway's HTTP APIs give up after 30 s
# (https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-quotas.html).
API_SECONDS = 28.0


class Deadline:
    """A moment after which the invocation's answer comes too late."""

    def __init__(self, seconds: float) -> None:
        """Start the clock."""
        self._began = time.monotonic()
        self._seconds = seconds

    @classmethod
    def of(cls, context: Any) -> Self:
        """Return the deadline that Lambda's context gives."""
        return cls(context.get_remaining_time_in_millis() / 1000)

    def capped(self, seconds: float) -> "Deadline":
        """Return this deadline, but at most that many seconds after the beginning."""
        capped = Deadline(min(self._seconds, seconds))
        capped._began = self._began
        return capped

    def earlier(self, seconds: float) -> "Deadline":
        """Return this deadline, that many seconds earlier."""
        earlier = Deadline(self._seconds - seconds)
        earlier._began = self._began
        return earlier

    def remaining(self) -> float:
        """Return the seconds left; negative once it is over."""
        return self._began + self._seconds - time.monotonic()
