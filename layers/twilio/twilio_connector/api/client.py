"""The Twilio client: one account, one `request` method."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec
import requests
from requests.auth import HTTPBasicAuth
from urllib3 import Timeout

from twilio_connector import clock, errors, http, telemetry
from twilio_connector.api.connections import Connection, Connections
from twilio_connector.api.retry_policy import READ_ONLY_METHODS, Classification, FailureKind, classify
from twilio_connector.backoff import backoff, retry_after
from twilio_connector.deadline import Deadline
from twilio_connector.settings import Settings
from twilio_connector.validation.model import MessageSid

API_PATH = "/2010-04-01"
CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0
RESERVE_SECONDS = 1.0
"""Seconds of the remaining time that are kept for the function's own answer."""
MAX_BYTES = 6 * 1024 * 1024
"""Most bytes of an answer after decompression: a function can return no more."""
_LEAST_SECONDS = 0.5  # needed to start a read
_LEAST_SECONDS_TO_CHANGE = 5.0  # needed to start a change: without an answer in time, its outcome is unknown

_ACCEPTED = {"Accept-Encoding": "gzip, deflate"}
_REQUEST_ID = re.compile(r"RQ[0-9a-f]{32}")
_MAX_CODE = 999_999
_MAX_TEXT = 500

CONNECTIONS = Connections()
_SESSION = http.Session()

Fields = Mapping[str, str | Sequence[str]] | Sequence[tuple[str, str]]


class Message(msgspec.Struct):
    """The field by which an answer is known as one of Twilio's messages."""

    sid: MessageSid


class Answer(NamedTuple):
    """A 2xx answer: `data` is its JSON, if a `response_model` was given; `attempts` counts requests on the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    data: Any = None
    attempts: int = 1

    @property
    def request_id(self) -> str | None:
        """Twilio's id of the request."""
        return _request_id(self.headers)


class Failure(NamedTuple):
    """How one attempt failed."""

    end: FailureKind | int
    verdict: Classification
    reason: str
    twilio: errors.TwilioDetails | None = None
    retry_after: float | None = None
    location: str = ""

    @property
    def request_id(self) -> str | None:
        """Twilio's id of the request, if it answered."""
        return self.twilio.request_id if self.twilio else None

    @property
    def attempts(self) -> int:
        """How many requests were sent: 1, or 0 if no connection was made."""
        return int(self.end not in {FailureKind.NEVER_SENT, FailureKind.BAD_CERTIFICATE})

    @property
    def is_ambiguous(self) -> bool:
        """Whether the attempt may have changed something although it failed."""
        return self.verdict.error is errors.OutcomeUnknownError

    def as_error(self) -> errors.ConnectorError:
        """Return the error to raise for this failure."""
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


class _Content(NamedTuple):
    """A body, and the headers that describe it."""

    body: bytes
    headers: Mapping[str, str] = {}


class _Terms(NamedTuple):
    """The limits of each attempt: seconds, bytes, and the JSON that its answer must have."""

    timeout: float
    max_bytes: int
    response_model: type[msgspec.Struct] | None

    def least_seconds(self, method: str | None) -> float:
        """Return the seconds that must be left to start a request."""
        return _LEAST_SECONDS if method in READ_ONLY_METHODS else min(self.timeout, _LEAST_SECONDS_TO_CHANGE)


class Retries(NamedTuple):
    """How often, when and after how many seconds a failed request is retried."""

    limit: int
    when: Callable[[Failure], bool]
    delay: Callable[[int], float]


PROVABLY_SAFE = Retries(limit=2, when=lambda failure: failure.verdict.retry, delay=backoff)
"""The client's own retries: of reads, and of requests that Twilio certainly did not process."""


class Twilio:
    """The client of one connection, for one call."""

    def __init__(
        self,
        connection: str | None,
        deadline: Deadline,
        *,
        credentials: Connection | None = None,
    ) -> None:
        """Take the connection's name; None means the stack's default.

        `credentials` are used instead of those in the connection's secret.
        """
        self._settings = Settings.from_env()
        self._deadline = deadline
        self._reserve = RESERVE_SECONDS
        self._credentials = credentials
        self.name = connection or self._settings.default_connection
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
        """Whether `api_url` replaces all of Twilio's hosts."""
        return bool(self._settings.twilio_api_url)

    def reserve(self, seconds: float) -> None:
        """Reserve this many more seconds for the work after the requests."""
        self._reserve += seconds

    def has_time(self, seconds: float) -> bool:
        """Tell whether a request of this many seconds leaves time to answer."""
        return self._seconds_left() > seconds

    def request(  # noqa: PLR0913 HTTP has these parts
        self,
        method: str,
        path: str,
        *,
        host: str | None = None,
        query: Fields = (),
        form: Fields = (),
        body: bytes | None = None,
        files: Sequence[tuple[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        response_model: type[msgspec.Struct] | None = None,
        timeout: float = READ_SECONDS,
        max_bytes: int = MAX_BYTES,
        retries: Retries = PROVABLY_SAFE,
        follow: re.Pattern[str] | None = None,
    ) -> Answer:
        """Make a request and return its 2xx answer; raises a ConnectorError if there is none.

        `path` is relative to the connection's account, or to the API's version if it begins with a slash. With `host`
        (such as `https://accounts.twilio.com`), it is relative to that host and includes the version.
        The body is `form` and `files` (as requests takes them), or `body`. A field with a list of values repeats.
        Twilio's JSON answer must match `response_model`: anything else does not count as an answer.
        `timeout` is in seconds, for the whole answer. The client follows one redirect to a URL that `follow` matches,
        with GET and without credentials.
        """
        if not path.startswith("/"):
            path = f"/Accounts/{self.connection.account_sid}/{path}"
        url = f"{self._settings.twilio_api_url or host}{path}" if host else f"{self.api_url}{API_PATH}{path}"
        if query:
            url += f"?{urlencode(query, doseq=True)}"
        content = _Content(body) if body is not None else _encoded(form, files)
        request = http.prepare(method, url, {**_ACCEPTED, **content.headers, **(headers or {})}, content.body)
        return self._repeat(request, _Terms(timeout, max_bytes, response_model), retries, follow)

    def _repeat(
        self, request: requests.PreparedRequest, terms: _Terms, retries: Retries, follow: re.Pattern[str] | None
    ) -> Answer:
        """Send the request until Twilio answers it, a retry is not allowed, or time runs out."""
        connection = self.connection
        attempts = retried = 0
        renewed = self._credentials is not None  # given credentials have no secret to read again
        # A raw request may get a 401 although the credentials are right, so its 401 proves nothing.
        is_ours = self._credentials is None and terms.response_model is not None
        doubt: Failure | None = None
        try:
            while True:
                if is_ours:
                    CONNECTIONS.check_not_refused(connection)
                HTTPBasicAuth(*connection.basic_auth)(request)
                result = self._attempt(request, terms)
                attempts += result.attempts
                if follow and isinstance(result, Failure) and follow.fullmatch(result.location):
                    result = self._attempt(http.prepare("GET", result.location, _ACCEPTED), terms)
                    attempts += result.attempts
                if isinstance(result, Answer):
                    return result._replace(attempts=attempts)
                doubt = result if result.is_ambiguous else doubt
                if result.end == 401 and not renewed:  # noqa: PLR2004 HTTP's own number
                    # Twilio did not process the request, and the secret may have been rotated since it was read.
                    renewed = True
                    connection = CONNECTIONS.renew(
                        self._settings.connection_prefix, self.name, connection, seconds=self._seconds_left()
                    )
                    continue
                if result.end == 401 and is_ours:  # noqa: PLR2004 as above
                    CONNECTIONS.refuse(connection, result.twilio)
                delay = retries.delay(retried) if result.retry_after is None else result.retry_after
                may_retry = retried < retries.limit and retries.when(result)
                if not may_retry or not self.has_time(delay + terms.least_seconds(request.method)):
                    raise result.as_error()
                clock.sleep(delay)
                retried += 1
        except errors.ConnectorError:
            # The caller chose to retry a change. The last error does not tell what an earlier attempt did.
            if doubt:
                raise doubt.as_error() from None
            raise

    def _attempt(self, request: requests.PreparedRequest, terms: _Terms) -> Answer | Failure:
        """Send the request once, and record its duration if it was sent."""
        began = clock.monotonic()
        result = self._exchange(request, terms)
        if result.attempts:
            telemetry.latency(clock.monotonic() - began)
        telemetry.note(twilio_request_id=result.request_id)
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
        except http.ConnectFailedError as error:
            end = FailureKind.BAD_CERTIFICATE if error.bad_certificate else FailureKind.NEVER_SENT
            return Failure(end, classify(end, read_only=read_only), str(error))
        except http.ResponseLostError as error:
            return Failure(FailureKind.LOST, classify(FailureKind.LOST, read_only=read_only), str(error))
        except http.BodyTooLargeError:
            reason = f"it has more than {terms.max_bytes} bytes"
            return Failure(FailureKind.TOO_LARGE, classify(FailureKind.TOO_LARGE, read_only=read_only), reason)
        return _read(reply, terms.response_model, read_only=read_only)

    def _seconds_left(self) -> float:
        return self._deadline.remaining() - self._reserve


def _encoded(form: Fields, files: Sequence[tuple[str, Any]]) -> _Content:
    """Return a form and files as a body."""
    if files:
        multipart = http.prepare("POST", "", {})
        multipart.prepare_body(form, list(files))
        headers = {"Content-Type": multipart.headers["Content-Type"]}
        return _Content(multipart.body, headers)  # type: ignore[arg-type] # bytes, of files
    if form:
        return _Content(urlencode(form, doseq=True).encode(), {"Content-Type": "application/x-www-form-urlencoded"})
    return _Content(b"")


def _read(reply: http.Reply, response_model: type[msgspec.Struct] | None, *, read_only: bool) -> Answer | Failure:
    """Return a reply as an answer or a failure."""
    if 200 <= reply.status < 300:  # noqa: PLR2004 HTTP's own numbers
        if response_model is None:
            return Answer(reply.status, reply.headers, reply.body)
        try:
            data = msgspec.json.decode(reply.body)
            msgspec.convert(data, response_model)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            verdict = classify(FailureKind.UNREADABLE, read_only=read_only)
            return Failure(FailureKind.UNREADABLE, verdict, f"HTTP {reply.status} with an answer that is not Twilio's")
        return Answer(reply.status, reply.headers, reply.body, data)
    twilio = _details(reply)
    is_redirect = 300 <= reply.status < 400  # noqa: PLR2004 as above
    return Failure(
        reply.status,
        classify(reply.status, code=twilio.code, read_only=read_only),
        "",
        twilio,
        retry_after(reply.headers.get("Retry-After"), clock.now()),
        reply.headers.get("Location", "") if is_redirect else "",
    )


def _details(reply: http.Reply) -> errors.TwilioDetails:
    """Read Twilio's error body (https://www.twilio.com/docs/usage/twilios-response), which a proxy may replace."""
    try:
        body = msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = None
    body = body if isinstance(body, dict) else {}
    code, text = body.get("code"), body.get("message")
    return errors.TwilioDetails(
        status=reply.status,
        code=code if type(code) is int and 0 <= code <= _MAX_CODE else None,
        request_id=_request_id(reply.headers),
        text=text[:_MAX_TEXT] if isinstance(text, str) else None,
    )


def _request_id(headers: Mapping[str, str]) -> str | None:
    request_id = headers.get("Twilio-Request-Id", "")
    return request_id if _REQUEST_ID.fullmatch(request_id) else None
