"""Sends and webhooks while credentials are rotated: nothing may be refused for that.

    twilio = Twilio(account_sid, auth_token, key)     # in front of the functions, as TwilioApiUrl
    work = [send, deliver] * 1000                     # each returns why it was refused, or None
    outcomes = under_load(work, [rotate_key, rotate_token] * 2, every=60, callers=16)
    assert [] == [outcome for outcome in outcomes if outcome.refused]

What rotates is the caller's: by hand, as `tests/integration/test_rotation.py` does, or an invocation of the function
that does it, four times as Secrets Manager's steps.
"""

import base64
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tests.faults import Fault, FaultServer, Request, faults

type Work = Callable[[], str | None]
"""Makes one call, and returns why it was refused; None is one that went through."""


class Outcome(NamedTuple):
    """How one call ended, and how many rotations were over when it began."""

    rotations: int
    refused: str | None


class Twilio(FaultServer):
    """A Twilio that takes the credentials which are valid now, and signs with the token that is the primary one."""

    def __init__(self, account_sid: str, auth_token: str, key: tuple[str, str]) -> None:
        """Begin with one API key and one auth token."""
        self.account_sid = account_sid
        self.primary = auth_token
        self.secondary: str | None = None
        self.keys = {key}
        super().__init__()

    def promote(self) -> None:
        """Make the secondary auth token the primary one, and the only one."""
        if self.secondary is None:
            raise LookupError
        self.primary, self.secondary = self.secondary, None

    def _marker(self, request: Request) -> Fault | None:
        tokens = {(self.account_sid, token) for token in (self.primary, self.secondary) if token}
        given = (request.header("Authorization") or "").removeprefix("Basic ")
        user, _, password = base64.b64decode(given).decode().partition(":")
        if (user, password) not in self.keys | tokens:
            return faults.UNAUTHORIZED
        return super()._marker(request)


def under_load(
    work: Sequence[Work], rotations: Sequence[Callable[[], None]], *, every: float, callers: int
) -> list[Outcome]:
    """Make all calls, evenly over the time that the rotations take at so many seconds from one to the next.

    Each rotation begins when its share of the calls has begun too, however slow they are.
    """
    pause = every * (len(rotations) + 1) / len(work)
    share = len(work) // (len(rotations) + 1)
    began = time.monotonic()
    never = threading.Event()
    begun = [threading.Event() for _ in work]
    over: list[float] = []

    def wait_until(seconds: float) -> None:
        never.wait(began + seconds - time.monotonic())

    def one(number: int) -> Outcome:
        wait_until(number * pause)
        begun[number].set()
        rotated = len(over)
        return Outcome(rotated, work[number]())

    def rotate() -> None:
        for number, rotation in enumerate(rotations, start=1):
            wait_until(number * every)
            begun[number * share].wait()
            rotation()
            over.append(time.monotonic())

    with ThreadPoolExecutor(callers + 1) as pool:
        rotating = pool.submit(rotate)
        outcomes = list(pool.map(one, range(len(work))))
        rotating.result()
    return outcomes
