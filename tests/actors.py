"""Actors that run one step at a time, so that a test can interleave them and kill them at any step."""

import io
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from twilio_connector import http
from twilio_connector.errors import ServiceUnavailableError
from urllib3 import HTTPResponse

_ATTEMPTS = {
    "throttled": ["before", "before"],
    "answer lost": ["after", ""],
    "both answers lost": ["after", "after"],
    "lost": ["after", "after"],
    "swallowed": ["before", "before"],
}


class Crash(BaseException):
    """The exception that kills an actor at its present step."""


class Actor(threading.Thread):
    """A thread that runs one step at a time and can be killed between any two steps."""

    def __init__(self, work: Callable[["Actor"], None], faults: Iterable[str] = ()) -> None:
        """Start the thread, which waits for its first step; `faults` are the faults of its writes, in order."""
        super().__init__(daemon=True)
        self.faults = list(faults)
        self.attempts: list[str] = []  # the outcomes of the current call's remaining attempts
        self.is_over = False
        self._work = work
        self._error: BaseException | None = None
        self._crashes = False
        self._goes_on, self._stands = threading.Lock(), threading.Lock()
        self._goes_on.acquire()
        self._stands.acquire()
        self.start()
        self._stands.acquire()

    def run(self) -> None:
        """Wait for the first step, and then do the work."""
        try:
            self.stop()
            self._work(self)
        except (Crash, ServiceUnavailableError):
            pass
        except BaseException as error:  # noqa: BLE001 `step` raises it again
            self._error = error
        finally:
            self.is_over = True
            self._stands.release()

    def stop(self) -> None:
        """Pause, so that other actors can run, until the test lets this one make its next step."""
        self._stands.release()
        self._goes_on.acquire()
        if self._crashes:
            raise Crash

    def step(self) -> bool:
        """Run to the next stop, and return whether the work is unfinished."""
        self._goes_on.release()
        self._stands.acquire()
        if self._error:
            raise self._error
        return not self.is_over

    def crash(self) -> None:
        """Kill the actor at its present stop."""
        self._crashes = True
        self.step()


def attempt(actor: Actor, fault: Callable[[], str], carry_out: Callable[[], http.Reply]) -> http.Reply:
    """Make one attempt of a call to AWS; the call's fault loses answers, and other actors can run in between."""
    if not actor.attempts:
        actor.attempts = [*_ATTEMPTS.get(fault(), [""])]
    lost = actor.attempts.pop(0)
    actor.stop()
    if lost == "before":
        raise http.ResponseLostError
    reply = carry_out()
    actor.stop()
    if lost == "after":
        raise http.ResponseLostError
    actor.attempts.clear()
    return reply


def answer_requests(monkeypatch: pytest.MonkeyPatch, answer: Callable[[requests.PreparedRequest], http.Reply]) -> None:
    """Answer all requests in memory instead of over the network; `ResponseLostError` becomes a broken connection."""

    def send(_: HTTPAdapter, request: requests.PreparedRequest, **__: Any) -> requests.Response:
        try:
            reply = answer(request)
        except http.ResponseLostError:
            raise requests.ConnectionError from None
        response = requests.Response()
        response.status_code = reply.status
        response.headers.update(reply.headers)
        response.raw = HTTPResponse(io.BytesIO(reply.body), status=reply.status, preload_content=False)
        return response

    monkeypatch.setattr(HTTPAdapter, "send", send)
