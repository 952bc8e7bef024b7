"""The Twilio client: one account, one `request` method."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec
import requests
from urllib3 import Timeout

from twilio_connector import errors, telemetry, transport
from twilio_connector.connection import Connection, Connections
from twilio_connector.deadline import Deadline
from twilio_connector.envelope import Caller
from twilio_connector.inputs import MessageSid
from twilio_connector.retries import READ_ONLY_METHODS, End, Verdict, backoff, judge, retry_after
from twilio_connector.settings import Settings

API_PATH = "/2010-04-01"
CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0
RESERVE_SECONDS = 1.0
"""Kept of the remaining time for the function's own answer."""
MAX_BYTES = 6 * 1024 * 1024
"""Of an answer, after decompression: a function can return no more."""
_LEAST_SECONDS = 0.5  # no read is begun with less
_LEAST_SECONDS_TO_CHANGE = 5.0  # nor is a change, whose outcome is not known if its answer does not come in time

_REQUEST_ID = re.compile(r"RQ[0-9a-f]{32}")
_MAX_CODE = 999_999
_MAX_TEXT = 500

_DIRECT = Caller("direct")

CONNECTIONS = Connections()
_SESSION = transport.Session()

Pairs = Mapping[str, str | Sequence[str]] | Sequence[tuple[str, str]]


class Message(msgspec.Struct):
    """What an answer has if it is one of Twilio's messages."""

    sid: MessageSid


class Answer(NamedTuple):
    """A 2xx answer. `data` is its JSON where a `proof` was asked for; `attempts` counts requests on the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    data: Any = None
    attempts: int = 1


class Failure(NamedTuple):
    """How one attempt failed."""

    end: End | int
    verdict: Verdict
    reason: str
    twilio: errors.TwilioDetails | None = None
    retry_after: float | None = None
    location: str = ""

    @property
    def attempts(self) -> int:
        """How many requests went on the wire: one, or none."""
        return int(self.end not in {End.NEVER_SENT, End.BAD_CERTIFICATE})

    @property
    def is_ambiguous(self) -> bool:
        """Whether the attempt may have changed something all the same."""
        return self.verdict.error is errors.OutcomeUnknownError

    def as_error(self) -> errors.ConnectorError:
        """Return the error that this failure is to a caller."""
        message = _MESSAGES.get(self.verdict.error, "Twilio refused the request")
        if self.reason:
            message += f": {self.reason}"
        return self.verdict.error(message, twilio=self.twilio, retry_after=self.retry_after)


_MESSAGES: dict[type[errors.ConnectorError], str] = {
    errors.OutcomeUnknownError: "the request may or may not have been carried out",
    errors.RecipientOptedOutError: "the recipient opted out (STOP) and must text START first",
    errors.ResponseTooLargeError: "the answer is larger than a function can return",
    errors.SenderQueueFullError: "the sender's queue is full; try again in minutes",
    errors.TwilioAuthenticationError: "Twilio refused the connection's credentials",
    errors.TwilioNotFoundError: "Twilio has no such resource",
    errors.TwilioRateLimitError: "too many requests at once; this one was not processed",
    errors.TwilioUnavailableError: "Twilio is not available, and nothing was changed",
}


class _Terms(NamedTuple):
    """What holds for each attempt."""

    timeout: float
    max_bytes: int
    proof: type[msgspec.Struct] | None

    def least_seconds(self, method: str | None) -> float:
        """Return how many seconds must be left to begin."""
        return _LEAST_SECONDS if method in READ_ONLY_METHODS else min(self.timeout, _LEAST_SECONDS_TO_CHANGE)


class Retries(NamedTuple):
    """How often, when, and after how many seconds a failed request is sent again."""

    limit: int
    when: Callable[[Failure], bool]
    delay: Callable[[int], float]


PROVABLY_SAFE = Retries(limit=2, when=lambda failure: failure.verdict.retry, delay=backoff)
"""The client's own retries: of what was provably not processed, and of reads."""


class Twilio:
    """One connection, for one caller's call."""

    def __init__(
        self,
        connection: str | None,
        deadline: Deadline,
        caller: Caller = _DIRECT,
        *,
        credentials: Connection | None = None,
    ) -> None:
        """Take the connection of that name; None is the stack's default.

        `credentials` are used as they are, in place of what the connection's secret has.
        """
        self._settings = Settings.from_env()
        self._deadline = deadline
        self._reserve = RESERVE_SECONDS
        self._credentials = credentials
        self.name = connection or self._settings.default_connection
        self.caller = caller
        self.may_have_changed = False

    @property
    def connection(self) -> Connection:
        """The account and its credentials, read from Secrets Manager when first needed."""
        if self._credentials:
            return self._credentials
        return CONNECTIONS.get(self._settings.connection_prefix, self.name, seconds=self._seconds_left())

    @property
    def deadline(self) -> Deadline:
        """When the invocation ends."""
        return self._deadline

    @property
    def api_url(self) -> str:
        """Scheme and host that requests go to."""
        return self._settings.twilio_api_url or self.connection.api_url

    @property
    def is_test_stack(self) -> bool:
        """Whether `api_url` stands in for all of Twilio's hosts."""
        return bool(self._settings.twilio_api_url)

    def reserve(self, seconds: float) -> None:
        """Keep so many more seconds for what comes after the requests."""
        self._reserve += seconds

    def has_time(self, seconds: float) -> bool:
        """Tell whether a request that takes so long still leaves time to answer."""
        return self._seconds_left() > seconds

    def request(  # noqa: PLR0913 HTTP has these parts
        self,
        method: str,
        path: str,
        *,
        host: str | None = None,
        query: Pairs = (),
        form: Pairs = (),
        body: bytes | None = None,
        files: Sequence[tuple[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        proof: type[msgspec.Struct] | None = None,
        timeout: float = READ_SECONDS,
        max_bytes: int = MAX_BYTES,
        retries: Retries = PROVABLY_SAFE,
        follow: re.Pattern[str] | None = None,
    ) -> Answer:
        """Make a request and return its 2xx answer; raises the ConnectorError that says how else it ended.

        `path` is below the connection's account, or below the API's version where it begins with a slash. With
        `host`, another of Twilio's (`https://accounts.twilio.com`), it is below that and has its version.
        `form` and `files` (as requests takes them) or `body` is what is sent; a list of values is a field that
        repeats. `proof` is what Twilio's JSON answer must have: anything else does not count as an answer.
        `timeout` is in seconds, for the whole answer. A redirect to a URL that `follow` matches is followed, once,
        with GET and without credentials.
        """
        if not path.startswith("/"):
            path = f"/Accounts/{self.connection.account_sid}/{path}"
        url = f"{self._settings.twilio_api_url or host}{path}" if host else f"{self.api_url}{API_PATH}{path}"
        if query:
            url += f"?{urlencode(query, doseq=True)}"
        data = form if body is None else body
        request = requests.Request(method, url, headers=dict(headers or {}), data=data, files=list(files))
        return self._repeat(request, _Terms(timeout, max_bytes, proof), retries, follow)

    def _repeat(
        self, request: requests.Request, terms: _Terms, retries: Retries, follow: re.Pattern[str] | None
    ) -> Answer:
        """Send the request until it is answered, or may not be sent again, or there is no time for it."""
        connection = self.connection
        attempts = retried = 0
        renewed = self._credentials is not None  # there are no others to look for
        doubt: Failure | None = None
        try:
            while True:
                request.auth = connection.basic_auth
                result = self._attempt(_prepared(request), terms)
                attempts += result.attempts
                if follow and isinstance(result, Failure) and follow.fullmatch(result.location):
                    public = requests.Request("GET", result.location)
                    result = self._attempt(_prepared(public), terms)
                    attempts += result.attempts
                if isinstance(result, Answer):
                    return result._replace(attempts=attempts)
                doubt = result if result.is_ambiguous else doubt
                if result.end == 401 and not renewed:  # noqa: PLR2004 HTTP's own number
                    # A 401 was not processed, and the secret may have been rotated since it was read.
                    renewed = True
                    connection = CONNECTIONS.renew(
                        self._settings.connection_prefix, self.name, connection, seconds=self._seconds_left()
                    )
                    continue
                delay = retries.delay(retried) if result.retry_after is None else result.retry_after
                may_retry = retried < retries.limit and retries.when(result)
                if not may_retry or not self.has_time(delay + terms.least_seconds(request.method)):
                    raise result.as_error()
                time.sleep(delay)
                retried += 1
        except errors.ConnectorError:
            # The caller chose to repeat a change: how the last attempt ended does not say what that one did.
            if doubt:
                raise doubt.as_error() from None
            raise

    def _attempt(self, request: requests.PreparedRequest, terms: _Terms) -> Answer | Failure:
        """Send the request once, and record how long it took if it went on the wire."""
        began = time.monotonic()
        result = self._exchange(request, terms)
        if result.attempts:
            telemetry.latency(time.monotonic() - began)
        return result

    def _exchange(self, request: requests.PreparedRequest, terms: _Terms) -> Answer | Failure:
        left = self._seconds_left()
        if left < terms.least_seconds(request.method):
            raise errors.ServiceUnavailableError("too little time was left to begin; nothing was sent")
        read_only = request.method in READ_ONLY_METHODS
        self.may_have_changed = self.may_have_changed or not read_only
        try:
            reply = _SESSION.exchange(
                request,
                timeout=Timeout(connect=CONNECT_SECONDS, read=terms.timeout, total=left),
                max_bytes=terms.max_bytes,
            )
        except transport.NeverSent as error:
            end = End.BAD_CERTIFICATE if error.bad_certificate else End.NEVER_SENT
            return Failure(end, judge(end, read_only=read_only), str(error))
        except transport.Lost as error:
            return Failure(End.LOST, judge(End.LOST, read_only=read_only), str(error))
        except transport.TooLarge:
            reason = f"it has more than {terms.max_bytes} bytes"
            return Failure(End.TOO_LARGE, judge(End.TOO_LARGE, read_only=read_only), reason)
        return _read(reply, terms.proof, read_only=read_only)

    def _seconds_left(self) -> float:
        return self._deadline.remaining() - self._reserve


def _prepared(request: requests.Request) -> requests.PreparedRequest:
    """Return a request as it goes on the wire; its answer may come compressed."""
    prepared = request.prepare()
    prepared.headers.setdefault("Accept-Encoding", "gzip, deflate")
    return prepared


def _read(reply: transport.Reply, proof: type[msgspec.Struct] | None, *, read_only: bool) -> Answer | Failure:
    """Return what a reply means."""
    if 200 <= reply.status < 300:  # noqa: PLR2004 HTTP's own numbers
        if proof is None:
            return Answer(reply.status, reply.headers, reply.body)
        try:
            data = msgspec.json.decode(reply.body)
            msgspec.convert(data, proof)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            verdict = judge(End.UNREADABLE, read_only=read_only)
            return Failure(End.UNREADABLE, verdict, f"HTTP {reply.status} with an answer that is not Twilio's")
        return Answer(reply.status, reply.headers, reply.body, data)
    twilio = _details(reply)
    is_redirect = 300 <= reply.status < 400  # noqa: PLR2004 as above
    return Failure(
        reply.status,
        judge(reply.status, code=twilio.code, read_only=read_only),
        "",
        twilio,
        retry_after(reply.headers.get("Retry-After"), time.time()),
        reply.headers.get("Location", "") if is_redirect else "",
    )


def _details(reply: transport.Reply) -> errors.TwilioDetails:
    """Read Twilio's error body (https://www.twilio.com/docs/usage/twilios-response), which a proxy may replace."""
    try:
        body = msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = None
    body = body if isinstance(body, dict) else {}
    code, text = body.get("code"), body.get("message")
    request_id = reply.headers.get("Twilio-Request-Id", "")
    return errors.TwilioDetails(
        status=reply.status,
        code=code if type(code) is int and 0 <= code <= _MAX_CODE else None,
        request_id=request_id if _REQUEST_ID.fullmatch(request_id) else None,
        text=text[:_MAX_TEXT] if isinstance(text, str) else None,
    )
