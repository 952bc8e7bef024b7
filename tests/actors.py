"""Things that go on one step at a time, so that a test puts them in any order and ends them anywhere."""

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
    """The function dies at this moment."""


class Actor(threading.Thread):
    """Something that goes on one step at a time, and can be ended between any two."""

    def __init__(self, work: Callable[["Actor"], None], faults: Iterable[str] = ()) -> None:
        """`faults` are those of its writes, in order."""
        super().__init__(daemon=True)
        self.faults = list(faults)
        self.attempts: list[str] = []  # what happens to those of the call that is made
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
        """Do the work, from the first step on."""
        try:
            self.stop()
            self._work(self)
        except (Crash, ServiceUnavailableError):
            pass
        except BaseException as error:  # noqa: BLE001 raised again where the step is made
            self._error = error
        finally:
            self.is_over = True
            self._stands.release()

    def stop(self) -> None:
        """Let others go on, until it is this one's turn."""
        self._stands.release()
        self._goes_on.acquire()
        if self._crashes:
            raise Crash

    def step(self) -> bool:
        """Go on to the next stop, and tell whether there is one."""
        self._goes_on.release()
        self._stands.acquire()
        if self._error:
            raise self._error
        return not self.is_over

    def crash(self) -> None:
        """Die."""
        self._crashes = True
        self.step()


def attempt(actor: Actor, fault: Callable[[], str], carry_out: Callable[[], http.Reply]) -> http.Reply:
    """Make one of the attempts of a call to AWS, whose answers are lost as its fault says; others act in between."""
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
    """Let all requests be answered in memory instead of by the network; `ResponseLostError` is a broken connection."""

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
