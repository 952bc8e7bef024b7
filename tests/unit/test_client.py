"""Every way in which a request can end: the error, what the error keeps, and the number of requests."""

import json
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import get_sms
import pytest
import responses
import send_sms
from twilio_connector import clock, errors
from twilio_connector.api import client
from twilio_connector.api.client import Retries, Twilio
from twilio_connector.api.connections import Connection
from twilio_connector.deadline import Deadline
from twilio_connector.errors import (
    ConnectionNotFoundError,
    ConnectorError,
    OutcomeUnknownError,
    RecipientOptedOutError,
    ResponseTooLargeError,
    SenderQueueFullError,
    ServiceUnavailableError,
    TwilioAuthenticationError,
    TwilioDetails,
    TwilioNotFoundError,
    TwilioRateLimitError,
    TwilioRejectedError,
    TwilioUnavailableError,
)
from twilio_connector.invocation import handler as invocation_handler

from tests.aws_wire import AwsWire
from tests.builders import posts
from tests.conftest import Context, LoadEvent
from tests.faults import Canary, Fault, FaultServer, black_hole, closed_port, faults, resolve_to
from tests.faults.tls import Tls
from tests.faults.wire import REQUEST_ID, Exchange
from tests.stopwatch import Stopwatch
from tests.unit.conftest import ACCOUNT_SID, API_KEY, AUTH_TOKEN

pytestmark = pytest.mark.usefixtures("delays")

SEND = {"to": "+15005550006", "message": "Hello"}
GET = {"message_sid": "SM" + "0" * 32}
API_KEY_AUTH = (API_KEY["api_key_sid"], API_KEY["api_key_secret"])
TOKEN_AUTH = (ACCOUNT_SID, AUTH_TOKEN)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the read timeout."""
    defaults = Twilio.request.__kwdefaults__ or {}
    monkeypatch.setitem(defaults, "timeout", 0.2)


def send(context: Context | None = None, **more: Any) -> Any:
    """Send a message."""
    return send_sms.handler(SEND | more, context or Context())


def get(context: Context | None = None) -> Any:
    """Get a message."""
    return get_sms.handler(GET, context or Context())


def known() -> None:
    """Read the connection in advance, so that the next request has all the time for itself."""
    client.CONNECTIONS.get("twilio/", "default")


def failure(action: Callable[..., Any], *arguments: Any, **more: Any) -> ConnectorError:
    """Return the error that an action raises."""
    with pytest.raises(ConnectorError) as caught:
        action(*arguments, **more)
    return caught.value


def status(code: int, fault: Fault) -> Fault:
    """Return a fault whose answer has another status."""

    def act(exchange: Exchange) -> None:
        exchange.normal = exchange.normal._replace(status=code)
        fault.act(exchange)

    return Fault(f"{fault.name}_{code}", act)


class Ends(NamedTuple):
    """A fault, and for a change and a read: the error that it causes and the number of requests."""

    fault: Fault
    send: type[ConnectorError]
    sent: int
    get: type[ConnectorError]
    got: int


def refused(fault: Fault, error: type[ConnectorError], requests: int = 1) -> Ends:
    """Return an end that is the same for a change and a read."""
    return Ends(fault, error, requests, error, requests)


def unknown(fault: Fault, got: int = 3) -> Ends:
    """Return an end with an unknown outcome for a change, and with `got` requests for a read."""
    return Ends(fault, OutcomeUnknownError, 1, TwilioUnavailableError, got)


def auth_failure(code: int) -> Fault:
    """Return a fault that reports wrong credentials with another status than 401."""
    return replace(faults.status(code, twilio_code=20003), name=f"status_{code}_20003")


ENDS = [
    *(
        refused(faults.status(code), TwilioRejectedError)
        for code in (400, 402, 403, 405, 409, 410, 413, 422, 451)
    ),
    refused(faults.status(400, twilio_code=21211), TwilioRejectedError),
    refused(faults.html(403), TwilioRejectedError),
    refused(faults.html(404), TwilioNotFoundError),
    refused(faults.NOT_FOUND, TwilioNotFoundError),
    refused(faults.OPTED_OUT, RecipientOptedOutError),
    refused(faults.QUEUE_FULL, SenderQueueFullError),
    refused(faults.UNAUTHORIZED, TwilioAuthenticationError, 2),
    refused(faults.html(401), TwilioAuthenticationError, 2),
    *(refused(auth_failure(code), TwilioAuthenticationError) for code in (400, 403, 429)),
    refused(faults.too_many(), TwilioRateLimitError, 3),
    refused(faults.html(429), TwilioRateLimitError, 3),
    *(unknown(faults.status(code), 1) for code in (300, 301, 302, 303, 304, 307, 308, 399, 408)),
    *(unknown(faults.status(code)) for code in (500, 501, 502, 503, 504, 520, 599)),
    *(unknown(faults.html(code)) for code in (200, 201, 500, 502, 503, 504)),
    unknown(replace(faults.raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), name="status_101"), 1),
    unknown(faults.NO_CONTENT),
    *(unknown(faults.body(name)) for name in faults.BODIES),
    unknown(faults.RESET_BEFORE_READ),
    unknown(faults.RESET_AFTER_READ),
    unknown(faults.CLOSE_AFTER_READ),
    *(
        unknown(faults.cut(part, reset=reset))
        for part in ("status", "headers", "body")
        for reset in (False, True)
    ),
    unknown(faults.INVALID_CHUNK),
    unknown(faults.NOT_HTTP),
    unknown(faults.huge_header()),
    unknown(faults.many_headers()),
    unknown(faults.nested_gzip(20)),
    unknown(faults.hang()),
    unknown(faults.HANG_BEFORE_READ),
    unknown(faults.drip("headers")),
    unknown(faults.drip("body")),
    *(
        Ends(fault, OutcomeUnknownError, 1, ResponseTooLargeError, 1)
        for fault in (faults.ENDLESS, faults.huge(7), faults.gzip_bomb(64))
    ),
    # An error's status decides, even if its body is lost or too large.
    *(
        refused(status(400, fault), TwilioRejectedError)
        for fault in (faults.ENDLESS, faults.drip("body"), faults.cut("body"), faults.huge(7))
    ),
    unknown(status(503, faults.ENDLESS)),
    unknown(status(302, faults.ENDLESS), 1),
]  # fmt: skip


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: ends.fault.name)
def test_a_change_ends_so(twilio: FaultServer, ends: Ends) -> None:
    """A change that may have been carried out is not retried."""
    twilio.script(ends.fault)
    error = failure(send)

    assert (ends.send, ends.sent) == (type(error), len(twilio.requests))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: ends.fault.name)
def test_a_read_ends_so(twilio: FaultServer, ends: Ends) -> None:
    """A read is retried if a retry can help."""
    twilio.script(ends.fault)
    error = failure(get)

    assert (ends.get, ends.got) == (type(error), len(twilio.requests))


@pytest.mark.parametrize(
    ("fault", "http", "retryable"),
    [
        (faults.status(400), 400, False),
        (faults.status(403), 403, False),
        (faults.status(405), 400, False),
        (faults.status(409), 409, False),
        (faults.status(413), 400, False),
        (faults.status(422), 422, False),
        (faults.OPTED_OUT, 400, False),
        (replace(faults.status(403, twilio_code=21610), name="status_403_21610"), 400, False),
        (faults.NOT_FOUND, 404, False),
        (faults.UNAUTHORIZED, 502, False),
        (faults.too_many(), 429, True),
        (faults.QUEUE_FULL, 429, True),
        (faults.status(500), 504, False),
        (faults.status(302), 504, False),
        (faults.body("no_sid"), 504, False),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_an_api_caller_is_told(
    twilio: FaultServer,
    event: LoadEvent,
    context: Context,
    fault: Fault,
    http: int,
    retryable: bool,  # noqa: FBT001
) -> None:
    """An API caller gets the status and the `retryable` flag of the error's class."""
    twilio.script(fault)
    answer = send_sms.handler(event("send_sms_api"), context)

    assert (http, retryable) == (answer["statusCode"], json.loads(answer["body"])["retryable"])


# Requests that were never sent


def test_a_closed_port_is_tried_three_times(
    aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, delays: list[float]
) -> None:
    """After a refused connection even a change is retried, because nothing was sent."""
    with closed_port() as port:
        monkeypatch.setenv("TWILIO_API_URL", f"http://127.0.0.1:{port}")
        errors = [failure(send), failure(get)]

    assert [TwilioUnavailableError] * 2 == [type(error) for error in errors]
    assert [0.25, 0.5] * 2 == delays
    assert 1 == aws_wire.count("GetSecretValue")


@pytest.mark.usefixtures("aws_wire")
def test_a_name_that_does_not_resolve_is_tried_three_times(
    monkeypatch: pytest.MonkeyPatch, delays: list[float]
) -> None:
    """A host that DNS cannot resolve is tried three times. Requests to AWS still work."""
    real = socket.getaddrinfo
    asked: list[str] = []

    def resolve(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "127.0.0.1":
            return real(host, *arguments, **options)
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "injected")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    error = failure(send)

    assert (TwilioUnavailableError, ["api.twilio.com"] * 3, [0.25, 0.5]) == (type(error), asked, delays)


@pytest.mark.usefixtures("aws_wire", "hurried")
def test_a_connection_that_nobody_accepts_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is never accepted times out, so that the function answers before Lambda kills it."""
    known()
    with black_hole() as port:
        monkeypatch.setenv("TWILIO_API_URL", f"http://127.0.0.1:{port}")
        with Stopwatch() as took:
            error = failure(send, Context(2))

    assert TwilioUnavailableError is type(error)
    assert took.seconds < 2


@pytest.mark.parametrize("kind", ["self_signed", "wrong_host", "expired", "untrusted"])
@pytest.mark.usefixtures("aws_wire")
def test_a_bad_certificate_is_final(monkeypatch: pytest.MonkeyPatch, kind: Tls) -> None:
    """An invalid certificate is final: the client connects once, sends nothing and does not retry."""
    with FaultServer(tls=kind) as server:
        monkeypatch.setenv("TWILIO_API_URL", server.url)
        errors = [failure(send), failure(get)]

        assert [TwilioUnavailableError] * 2 == [type(error) for error in errors]
        assert (2, []) == (server.connections, server.requests)


@pytest.mark.usefixtures("aws_wire")
def test_a_handshake_that_broke_off_is_tried_again(monkeypatch: pytest.MonkeyPatch, delays: list[float]) -> None:
    """A broken TLS handshake is not final: the client retries it, and sends the message once."""
    with FaultServer(tls="good") as server:
        monkeypatch.setenv("TWILIO_API_URL", server.url)
        server.script(faults.CLOSE_IN_HANDSHAKE, faults.RESET_IN_HANDSHAKE, faults.OK)

        assert "queued" == send()["status"]
        assert (3, 1, [0.25, 0.5]) == (server.connections, len(server.requests), delays)
        server.script(faults.CLOSE_IN_HANDSHAKE)
        client._SESSION._adapter.close()
        assert TwilioUnavailableError is type(failure(send))
        assert (6, 1) == (server.connections, len(server.requests))


def test_a_request_is_not_begun_when_the_time_is_too_short(twilio: FaultServer) -> None:
    """No request is sent if too little time is left for its answer."""
    errors = [failure(send, Context(seconds)) for seconds in (1.4, 0)]

    assert [ServiceUnavailableError] * 2 == [type(error) for error in errors]
    assert ([], 0) == (twilio.requests, twilio.connections)


def test_a_change_is_not_begun_when_its_answer_could_come_too_late(twilio: FaultServer) -> None:
    """A change is not sent if its answer could come too late, because its outcome would then be unknown.

    A read has no such outcome, and is sent.
    """
    known()
    error = failure(send, Context(5.9))

    assert (ServiceUnavailableError, True, []) == (type(error), error.retryable, twilio.requests)
    assert ACCOUNT_SID == get(Context(5.9))["account_sid"]


def test_a_connection_is_not_read_when_that_could_take_too_long(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A connection is not read if that could take longer than the function may run.

    Lambda would end the function, and SQS would redeliver the records that were already sent.
    """
    error = failure(send, Context(7.9))

    assert ServiceUnavailableError is type(error)
    assert ([], []) == (aws_wire.calls, twilio.requests)


@pytest.mark.parametrize(
    "fault",
    [faults.hang(), faults.drip("headers"), faults.drip("body"), faults.HANG_BEFORE_READ],
    ids=lambda fault: fault.name,
)
@pytest.mark.parametrize("action", [send, get])
@pytest.mark.usefixtures("hurried")
def test_the_answer_comes_before_the_function_is_killed(
    twilio: FaultServer, action: Callable[[Context], Any], fault: Fault
) -> None:
    """The read timeout is at most the time that remains, so that the function answers before Lambda kills it."""
    known()
    twilio.script(fault)
    with Stopwatch() as took:
        error = failure(action, Context(1.7))

    assert type(error) in {OutcomeUnknownError, TwilioUnavailableError}
    assert took.seconds < 1.7
    assert 1 == len(twilio.requests)


@pytest.mark.usefixtures("hurried")
def test_an_api_caller_is_answered_before_the_api_gives_up(
    twilio: FaultServer, event: LoadEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An API caller is answered before API Gateway's timeout, even if the function may run longer."""
    known()
    monkeypatch.setattr(invocation_handler, "API_SECONDS", 1.7)
    twilio.script(faults.hang())
    with Stopwatch() as took:
        answer = send_sms.handler(event("send_sms_api"), Context(900))

    assert (504, 1) == (answer["statusCode"], len(twilio.requests))
    assert took.seconds < 1.7


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("hanging", "status"),
    [(("PutItem", 0), 503), (("TransactWriteItems", 0), 201), (("GetItem", 0), 503), (("GetSecretValue", 0), 503)],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_an_api_caller_is_answered_in_time_whatever_hangs_at_aws(
    aws_wire: AwsWire,
    twilio: FaultServer,
    event: LoadEvent,
    monkeypatch: pytest.MonkeyPatch,
    hanging: tuple[str, int],
    status: int,
) -> None:
    """An API caller is answered in time, even if a call to AWS hangs before or after the request.

    An outcome that could not be stored is found later.
    """
    operation, before = hanging
    if operation != "GetSecretValue":
        known()
    if operation == "GetItem":  # the read before a claim is withdrawn
        aws_wire.failures["PutItem"] = [(500, "InternalServerError")] * 2
    aws_wire.hangs = lambda called, times: called == operation and times >= before
    monkeypatch.setattr(invocation_handler, "API_SECONDS", 1.8)
    keyed = event("send_sms_api")
    keyed["headers"]["idempotency-key"] = "key"
    with Stopwatch() as took:
        answer = send_sms.handler(keyed, Context(900))

    assert (status, status == 201) == (answer["statusCode"], bool(posts(twilio)))
    assert took.seconds < 1.8
    assert aws_wire.count(operation) > before


# Retries


@pytest.mark.parametrize(
    ("action", "script", "waited"),
    [
        (send, [faults.too_many()], [0.25]),
        (send, [faults.too_many(), faults.too_many("1")], [0.25, 1]),
        (get, [faults.status(500)], [0.25]),
        (get, [faults.status(503), faults.html(502)], [0.25, 0.5]),
        (get, [faults.RESET_AFTER_READ, faults.body("cut")], [0.25, 0.5]),
        (get, [faults.status(503, headers={"Retry-After": "2"}), faults.too_many("0")], [2, 0]),
    ],
)
def test_what_passes_is_waited_for(
    twilio: FaultServer,
    delays: list[float],
    action: Callable[[], dict[str, Any]],
    script: list[Fault],
    waited: list[float],
) -> None:
    """The caller does not notice a temporary failure that ends within three attempts."""
    twilio.script(*script, faults.OK)

    assert "queued" == action()["status"]
    assert (len(script) + 1, waited) == (len(twilio.requests), delays)


@pytest.mark.usefixtures("impatient")
def test_a_read_that_timed_out_is_made_again(twilio: FaultServer) -> None:
    """A read that times out is retried on a new connection."""
    twilio.script(faults.hang(), faults.drip("body"), faults.OK)

    assert "queued" == get()["status"]
    assert [1, 2, 3] == sorted(request.connection for request in twilio.requests)


RETRY_AFTER: dict[str, list[float]] = {
    "absent": [0.25, 0.5],
    "zero": [0, 0],
    "seconds": [1, 1],
    "date": [2, 2],
    "past": [0, 0],
    "negative": [0.25, 0.5],
    "fraction": [0.25, 0.5],
    "garbage": [0.25, 0.5],
    "blank": [0.25, 0.5],
    "far": [],
    "huge": [],
}


@pytest.mark.parametrize("kind", faults.RETRY_AFTER)
def test_each_kind_of_retry_after(twilio: FaultServer, delays: list[float], kind: str) -> None:
    """A valid Retry-After is honoured, one that is too long is left to the caller, and an invalid one is ignored."""
    twilio.script(faults.too_many(faults.RETRY_AFTER[kind]))
    error = failure(send)
    expected = RETRY_AFTER[kind]

    assert TwilioRateLimitError is type(error)
    assert len(expected) + 1 == len(twilio.requests)
    assert expected == pytest.approx(delays, abs=1.5 if kind == "date" else 0)
    assert (kind in {"zero", "seconds", "date", "past", "far", "huge"}) == (error.retry_after is not None)


@pytest.mark.parametrize(("header", "told"), [("30", "30"), ("86400", "86400"), (None, "1"), ("soon", "1")])
def test_an_api_caller_is_told_when_to_come_again(
    twilio: FaultServer, event: LoadEvent, context: Context, header: str | None, told: str
) -> None:
    """An API caller gets Twilio's Retry-After, or one second if Twilio sent none that is valid."""
    twilio.script(faults.too_many(header))
    answer = send_sms.handler(event("send_sms_api"), context)

    assert (429, told) == (answer["statusCode"], answer["headers"].get("Retry-After"))
    assert (3 if told == "1" else 1) == len(twilio.requests)


@pytest.mark.usefixtures("hurried")
def test_a_wait_that_outlasts_the_function_is_not_begun(twilio: FaultServer, delays: list[float]) -> None:
    """A wait that would outlast the function is not started, and the caller gets the error immediately."""
    known()
    twilio.script(faults.too_many("1"))
    error = failure(send, Context(2.4))

    assert (TwilioRateLimitError, 1.0, [], 1) == (
        type(error),
        error.retry_after,
        delays,
        len(twilio.requests),
    )


def test_a_full_queue_is_not_waited_for(twilio: FaultServer, delays: list[float]) -> None:
    """A full sender queue is not retried, regardless of Retry-After, because it takes minutes to empty."""
    twilio.script(faults.status(429, twilio_code=21611, headers={"Retry-After": "1"}))
    error = failure(send)

    assert (SenderQueueFullError, 1.0, [], 1) == (
        type(error),
        error.retry_after,
        delays,
        len(twilio.requests),
    )


# Credentials


def rotated(aws_wire: AwsWire) -> tuple[str, str]:
    """Rotate the API key in the secret, and return the new credentials."""
    secret = API_KEY | {"api_key_sid": "SK" + "1" * 32, "api_key_secret": "the-next-one"}
    aws_wire.secrets["twilio/default"] = json.dumps(secret)
    return secret["api_key_sid"], secret["api_key_secret"]


@pytest.mark.parametrize("action", [send, get])
def test_rotated_credentials_are_read_and_used(
    twilio: FaultServer, aws_wire: AwsWire, action: Callable[[], Any]
) -> None:
    """After a 401, the request is sent once more with the rotated credentials, because Twilio did not process it."""
    get()
    new = rotated(aws_wire)
    twilio.reset()
    twilio.script(faults.UNAUTHORIZED, faults.OK)

    assert "queued" == action()["status"]
    assert [API_KEY_AUTH, new] == [request.credentials for request in twilio.requests]
    assert 2 == aws_wire.count("GetSecretValue")


@pytest.mark.parametrize("action", [send, get])
def test_credentials_that_stay_wrong_are_tried_twice(
    twilio: FaultServer, aws_wire: AwsWire, delays: list[float], action: Callable[[], Any]
) -> None:
    """Refused credentials are read again only once, and the request is sent twice."""
    twilio.script(faults.UNAUTHORIZED)
    error = failure(action)

    assert (TwilioAuthenticationError, 2, 2, []) == (
        type(error),
        len(twilio.requests),
        aws_wire.count("GetSecretValue"),
        delays,
    )


def test_new_credentials_leave_all_retries(twilio: FaultServer, delays: list[float]) -> None:
    """The request with renewed credentials does not count as one of the three attempts."""
    twilio.script(faults.too_many(), faults.UNAUTHORIZED, faults.too_many(), faults.OK)

    assert "queued" == send()["status"]
    assert (4, [0.25, 0.5]) == (len(twilio.requests), delays)


def test_a_forbidden_20003_is_not_renewed(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Credentials are read again only after a 401, because only a 401 says that they may be outdated."""
    twilio.script(faults.status(403, twilio_code=20003))
    error = failure(send)

    assert (TwilioAuthenticationError, 1, 1) == (
        type(error),
        len(twilio.requests),
        aws_wire.count("GetSecretValue"),
    )


def test_credentials_that_are_gone_when_renewed(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """If the secret was deleted before a 401, the caller gets ConnectionNotFoundError."""
    get()
    del aws_wire.secrets["twilio/default"]
    twilio.reset()
    twilio.script(faults.UNAUTHORIZED)

    assert (ConnectionNotFoundError, 1) == (type(failure(send)), len(twilio.requests))


def test_credentials_that_are_given_are_used_as_they_are(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Given credentials are used without reading or renewing a secret.

    A request to another of Twilio's hosts has only the given path.
    """
    given = Connection(account_sid=ACCOUNT_SID, auth_token="given")
    twilio.script(faults.UNAUTHORIZED)
    error = failure(
        Twilio(None, Deadline(30), credentials=given).request, "POST", "/v1/Things", host="https://elsewhere.example"
    )
    (request,) = twilio.requests

    assert (TwilioAuthenticationError, "/v1/Things", (ACCOUNT_SID, "given")) == (
        type(error),
        request.target,
        request.credentials,
    )
    assert [] == aws_wire.calls


def test_old_credentials_are_kept_while_secrets_manager_is_away(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """If Secrets Manager is unavailable after a 401, the old credentials are tried once more.

    They cannot be renewed, so Twilio's second answer decides.
    """
    get()
    twilio.reset()
    aws_wire.failures["GetSecretValue"] = [(400, "ThrottlingException")] * 9
    twilio.script(faults.UNAUTHORIZED)

    assert (TwilioAuthenticationError, 2) == (type(failure(send)), len(twilio.requests))


@pytest.mark.parametrize(
    ("secret", "credentials"),
    [
        (API_KEY, API_KEY_AUTH),
        ({"account_sid": ACCOUNT_SID, "auth_token": AUTH_TOKEN, "default_from": "+15551234567"}, TOKEN_AUTH),
    ],
    ids=["api_key", "auth_token"],
)
def test_both_kinds_of_connection_sign_in(
    twilio: FaultServer, aws_wire: AwsWire, secret: dict[str, str], credentials: tuple[str, str]
) -> None:
    """An API key signs in for the account, and the path still has the account's SID."""
    aws_wire.secrets["twilio/other"] = json.dumps(secret)
    send(connection="other")

    assert [credentials] == [request.credentials for request in twilio.requests]
    assert f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages.json" == twilio.requests[0].target


@pytest.mark.parametrize(
    ("region", "host"),
    [
        (None, "api.twilio.com"),
        ("us1", "api.twilio.com"),
        ("ie1", "api.dublin.ie1.twilio.com"),
        ("au1", "api.sydney.au1.twilio.com"),
    ],
)
def test_each_region_has_its_host(
    aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, region: str | None, host: str
) -> None:
    """Each region has its own host, whose full name is resolved and sent in the TLS handshake.

    A server that cannot prove that it is this host receives no credentials.
    """
    secret = API_KEY | ({"region": region} if region else {})
    aws_wire.secrets["twilio/default"] = json.dumps(secret)
    monkeypatch.setenv("TWILIO_API_URL", "")
    with Canary() as canary, resolve_to(canary):
        error = failure(send)

        assert TwilioUnavailableError is type(error)
        assert [(host, 443)] == canary.names
        [visit] = canary.visits
        assert host.encode() in visit.first_bytes
        assert None is visit.authorization


@responses.activate
def test_the_regional_host_gets_the_request(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """The region's host gets the whole request."""
    aws_wire.secrets["twilio/default"] = json.dumps(API_KEY | {"region": "ie1"})
    monkeypatch.setenv("TWILIO_API_URL", "")
    responses.add_passthru(aws_wire.url)
    url = f"https://api.dublin.ie1.twilio.com/2010-04-01/Accounts/{ACCOUNT_SID}/Messages.json"
    responses.post(url, json={"sid": GET["message_sid"]}, status=201)

    assert GET["message_sid"] == send()["sid"]
    body = responses.calls[0].request.body
    assert isinstance(body, bytes)
    assert {"To": ["+15005550006"], "From": ["+15551234567"], "Body": ["Hello"]} == parse_qs(body.decode())


# Contents of requests and errors


def test_a_form_is_written_as_twilio_reads_it(twilio: FaultServer) -> None:
    """In a form, booleans are words, lists repeat the field, and times are in UTC."""
    send(
        messaging_service_sid="MG" + "0" * 32,
        message="caf\u00e9 & =+%\n\U0001f44d",
        media_urls=["https://a.example/1?x=1&y=2", "https://a.example/2"],
        send_at="2030-01-31T10:00:00+01:00",
        smart_encoded=True,
        shorten_urls=False,
        validity_period=60,
        max_price=0.25,
    )
    request = twilio.requests[0]

    assert "application/x-www-form-urlencoded" == request.header("Content-Type")
    assert {
        "To": ["+15005550006"],
        "Body": ["caf\u00e9 & =+%\n\U0001f44d"],
        "MessagingServiceSid": ["MG" + "0" * 32],
        "MediaUrl": ["https://a.example/1?x=1&y=2", "https://a.example/2"],
        "SendAt": ["2030-01-31T09:00:00Z"],
        "ScheduleType": ["fixed"],
        "SmartEncoded": ["true"],
        "ShortenUrls": ["false"],
        "ValidityPeriod": ["60"],
        "MaxPrice": ["0.25"],
    } == request.form


def test_one_connection_serves_many_calls(twilio: FaultServer) -> None:
    """Sends and reads share one connection."""
    for action in (send, get, send, get):
        action()

    assert (4, 1) == (len(twilio.requests), twilio.connections)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Return the log messages, as they are added."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("twilio-connector")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_an_error_keeps_what_twilio_said(
    twilio: FaultServer, event: LoadEvent, context: Context, logged: list[str]
) -> None:
    """An error's message has status, code and request id. Only API callers get Twilio's own text."""
    text = "The 'To' number +15005550006 is not valid."
    twilio.script(faults.status(400, twilio_code=21211, message=text))
    error = failure(send)
    answer = send_sms.handler(event("send_sms_api"), context)
    message = f"Twilio refused the request (HTTP 400, Twilio code 21211, request {REQUEST_ID})"

    assert TwilioDetails(status=400, code=21211, request_id=REQUEST_ID, text=text) == error.twilio
    assert message == str(error)
    assert {
        "type": "urn:twilio-connector:error:TwilioRejectedError",
        "title": "TwilioRejectedError",
        "status": 400,
        "detail": f"{message}: {text}",
        "retryable": False,
        "twilio_code": 21211,
        "twilio_status": 400,
        "twilio_request_id": REQUEST_ID,
    } == json.loads(answer["body"])
    assert "application/problem+json" == answer["headers"]["Content-Type"]
    assert [message] * 2 == logged


@pytest.mark.parametrize(
    ("body", "details"),
    [
        ('{"code": 21211, "message": "a"}', TwilioDetails(status=400, code=21211, text="a")),
        ('{"code": "21211", "message": 5}', TwilioDetails(status=400)),
        ('{"code": true, "message": null}', TwilioDetails(status=400)),
        ('{"code": -1, "message": []}', TwilioDetails(status=400)),
        ('{"code": 1000000, "message": {}}', TwilioDetails(status=400)),
        ('{"code": 21211.5}', TwilioDetails(status=400)),
        (json.dumps({"message": "a" * 501}), TwilioDetails(status=400, text="a" * 500)),
        ("[1]", TwilioDetails(status=400)),
        ("null", TwilioDetails(status=400)),
        ("<html/>", TwilioDetails(status=400)),
        ("", TwilioDetails(status=400)),
        ('{"code": 21211', TwilioDetails(status=400)),
        (b"\xff\xfe", TwilioDetails(status=400)),
        ("[" * 100_000, TwilioDetails(status=400)),
    ],
)
def test_an_error_body_of_any_kind_is_read(twilio: FaultServer, body: str | bytes, details: TwilioDetails) -> None:
    """Every kind of error body is read, and content that is not Twilio's is left out."""
    twilio.script(faults.status(400, body=body, headers={"Twilio-Request-Id": "RQ<script>"}))
    error = failure(send)

    assert (TwilioRejectedError, details) == (type(error), error.twilio)


def test_an_unknown_outcome_says_why(twilio: FaultServer) -> None:
    """The message of an unknown outcome has the reason, in the connector's own words."""
    reasons: list[str] = []
    for fault in (faults.status(503), faults.RESET_AFTER_READ, faults.html(201), faults.huge(7)):
        twilio.script(fault)
        reasons.append(str(failure(send)).removeprefix("the request may or may not have been carried out"))

    assert [
        f" (HTTP 503, Twilio code 20503, request {REQUEST_ID})",
        ": the connection broke off before a whole answer",
        ": HTTP 201 with an answer that is not Twilio's",
        ": it has more than 6291456 bytes",
    ] == reasons


# Retries that the caller chooses


def request(method: str, retries: Retries | None = None, **more: Any) -> client.Answer:
    """Send a request as a caller that chooses its own retries."""
    more |= {"retries": retries} if retries else {}
    return Twilio(None, Deadline(30)).request(method, "Calls.json", **more)


def test_answers_may_come_compressed(twilio: FaultServer) -> None:
    """Answers may be compressed, because a page of a list has hundreds of kilobytes of repeated names."""
    get()

    assert "gzip, deflate" == twilio.requests[0].header("Accept-Encoding")


CHOSEN = Retries(limit=2, when=lambda _: True, delay=lambda _: 0.0)


def test_attempts_are_those_on_the_wire(twilio: FaultServer) -> None:
    """`attempts` counts the requests on the wire."""
    twilio.script(faults.status(500), faults.OK)

    assert 2 == request("POST", CHOSEN).attempts
    assert 2 == len(twilio.requests)


@pytest.mark.usefixtures("aws_wire")
def test_attempts_without_a_connection_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed TLS handshake does not count as an attempt, because no request was sent."""
    with FaultServer(tls="good") as server:
        monkeypatch.setenv("TWILIO_API_URL", server.url)
        server.script(faults.CLOSE_IN_HANDSHAKE, faults.OK)

        assert (1, 1) == (request("GET").attempts, len(server.requests))


@pytest.mark.parametrize("last", [faults.NOT_FOUND, faults.status(400), faults.too_many()], ids=lambda f: f.name)
@pytest.mark.parametrize("first", [faults.status(500), faults.RESET_AFTER_READ], ids=lambda f: f.name)
def test_a_chosen_repetition_of_a_change_stays_in_doubt(twilio: FaultServer, first: Fault, last: Fault) -> None:
    """A change that the caller retries keeps an unknown outcome, even if Twilio refuses the last attempt.

    The refusal does not say what the first attempt did.
    """
    twilio.script(first, last)

    assert OutcomeUnknownError is type(failure(request, "POST", CHOSEN))
    assert 3 == len(twilio.requests)
    twilio.reset()
    twilio.script(first, last)
    assert OutcomeUnknownError is not type(failure(request, "GET", CHOSEN))


def test_a_repetition_that_cannot_begin_leaves_a_change_in_doubt(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A change keeps an unknown outcome if its retry fails because the credentials are gone.

    The missing credentials do not say what the first attempt did.
    """
    get()
    twilio.reset()
    del aws_wire.secrets["twilio/default"]
    twilio.script(faults.status(500), faults.UNAUTHORIZED)

    assert (OutcomeUnknownError, 2) == (type(failure(request, "POST", CHOSEN)), len(twilio.requests))
    twilio.reset()
    twilio.script(faults.status(500), faults.UNAUTHORIZED)
    assert ConnectionNotFoundError is type(failure(request, "GET", CHOSEN))


def test_time_that_runs_out_between_attempts_leaves_a_change_in_doubt(
    twilio: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change keeps an unknown outcome if the time runs out during a wait.

    The first attempt may have been carried out.
    """
    deadline = Deadline(30)
    monkeypatch.setattr(clock, "sleep", lambda _: setattr(deadline, "_seconds", 0))
    twilio.script(faults.status(500))
    error = failure(Twilio(None, deadline).request, "POST", "Calls.json", retries=CHOSEN)

    assert (OutcomeUnknownError, 1) == (type(error), len(twilio.requests))


# Hanging after the request was read


def sqs(event: LoadEvent, *bodies: str) -> Any:
    """Return a batch with these bodies."""
    batch = event("send_sms_sqs")
    record = batch["Records"][0]
    batch["Records"] = [record | {"messageId": str(number), "body": body} for number, body in enumerate(bodies)]
    return batch


SHAPES = {
    "send_sms": None,
    "send_sms_failure_record": None,
    "send_sms_api": 504,
    "send_sms_api_payload_1": 504,
    "send_sms_function_url": 504,
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_message_that_is_not_answered_for_is_sent_once(
    twilio: FaultServer, event: LoadEvent, context: Context, delays: list[float], shape: str
) -> None:
    """A message without an answer is sent once, and every kind of caller learns that its outcome is unknown."""
    twilio.script(faults.hang())
    if status := SHAPES[shape]:
        answer = send_sms.handler(event(shape), context)
        problem = json.loads(answer["body"])

        assert (status, "OutcomeUnknownError", False) == (
            answer["statusCode"],
            problem["title"],
            problem["retryable"],
        )
    else:
        assert OutcomeUnknownError is type(failure(send_sms.handler, event(shape), context))
    assert ["hang"] == [request.fault for request in posts(twilio)]
    assert [] == delays


@pytest.mark.usefixtures("impatient")
def test_a_message_of_a_queue_that_is_not_answered_for_is_not_given_back(
    twilio: FaultServer, event: LoadEvent, context: Context
) -> None:
    """A queued message without an answer is not returned to SQS, which would redeliver it.

    The other records of the batch are processed independently.
    """
    texts = ["a fault=hang", "b", "c fault=status_429", "d fault=hang", "e"]
    bodies = [json.dumps(SEND | {"message": text}) for text in texts]
    answer = send_sms.handler(sqs(event, *bodies, "{}"), context)

    assert {"batchItemFailures": [{"itemIdentifier": "2"}]} == answer
    assert sorted([*texts, texts[2], texts[2]]) == sorted(request.form["Body"][0] for request in posts(twilio))


@pytest.mark.usefixtures("impatient")
def test_the_whole_example_batch_is_sent_once(twilio: FaultServer, event: LoadEvent, context: Context) -> None:
    """Each record of the example batch is sent once, even if its body is a notification or an event."""
    twilio.script(faults.hang())
    batch = event("send_sms_sqs")

    assert {"batchItemFailures": []} == send_sms.handler(batch, context)
    assert len(batch["Records"]) == len(posts(twilio))


def test_every_error_has_a_class_of_its_own() -> None:
    """`ENDS` has every error that can come from Twilio; the other errors have tests of their own."""
    rows = {error for ends in ENDS for error in (ends.send, ends.get)}
    others = {
        "ConnectionInvalidError",
        "ConnectionNotFoundError",
        "IdempotencyConflictError",
        "InternalError",
        "InvalidInputError",
        "KeyNotFoundError",
        "SendInProgressError",
        "ServiceUnavailableError",
    }
    known = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, ConnectorError) and kind is not ConnectorError
    }

    assert known - others == {error.__name__ for error in rows}
