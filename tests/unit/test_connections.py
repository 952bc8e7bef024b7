"""Connections are read rarely, kept for a bounded time, and never show their secrets."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr
from twilio_connector import telemetry
from twilio_connector.api import client
from twilio_connector.api import connections as twilio_connections
from twilio_connector.api.connections import (
    FRESH_SECONDS,
    PREVIOUS_SECONDS,
    REFRESH_SECONDS,
    STALE_SECONDS,
    Connection,
    Connections,
    parse_secret,
)
from twilio_connector.aws import client as aws_client
from twilio_connector.errors import (
    ConnectionInvalidError,
    ConnectionNotFoundError,
    ConnectorError,
    ServiceUnavailableError,
    TwilioAuthenticationError,
)

from tests.aws_wire import AwsWire
from tests.conftest import Context
from tests.faults import FaultServer, faults
from tests.unit.conftest import ACCOUNT_SID, API_KEY, AUTH_TOKEN, Clock

TOKEN = {"account_sid": ACCOUNT_SID, "auth_token": AUTH_TOKEN}
SUBACCOUNT = "AC" + "1" * 32
SERVICE = "MG" + "0" * 32
MARKER = "xqzjvmarker"

pytestmark = pytest.mark.usefixtures("delays")


@pytest.fixture
def connections() -> Connections:
    """Return the connections of a container that has just started."""
    return Connections()


def parse(**fields: Any) -> Connection:
    """Return the connection in a secret with these fields."""
    return parse_secret("default", json.dumps(fields))


def wrong(fields: dict[str, Any] | str) -> str:
    """Return the error message for an invalid secret."""
    with pytest.raises(ConnectionInvalidError) as refusal:
        parse_secret("default", fields if isinstance(fields, str) else json.dumps(fields))
    return str(refusal.value)


def told(fields: dict[str, Any]) -> str:
    """Return the text that is shown for a secret, which may be valid."""
    try:
        return repr(parse_secret("default", json.dumps(fields)))
    except ConnectionInvalidError as error:
        return str(error)


def throttle(wire: AwsWire, times: int = 1, code: str = "InternalServiceError") -> None:
    """Make so many look-ups fail, in both attempts of each."""
    wire.failures["GetSecretValue"] = [(400, code)] * 2 * times


# Contents of a secret


def test_an_api_key_is_a_connection() -> None:
    """Requests to Twilio use the API key; the auth token in the same secret is only for webhooks."""
    connection = parse(**API_KEY)

    assert ("SK" + "0" * 32, "not-a-secret") == connection.basic_auth
    assert [AUTH_TOKEN] == connection.webhook_tokens
    assert "+15551234567" == connection.default_from


def test_a_shared_key_validates_webhooks_without_an_auth_token() -> None:
    """A connection with an API key and a shared key can validate webhooks without an auth token.

    This is the set-up with the fewest rights: neither key can do everything that an auth token can.
    """
    fields = {name: value for name, value in API_KEY.items() if name != "auth_token"}
    connection = parse(**fields, shared_keys={"SK" + "2" * 32: "not-a-shared-secret"})

    assert connection.can_validate_webhooks
    assert not parse(**fields).can_validate_webhooks
    assert {"not-a-secret", "not-a-shared-secret"} == connection.secrets


@pytest.mark.parametrize("keys", [["x"], {"SK2": 7}, {"SK2": ""}, {"SK 2": "x"}, {"": "x"}, "x"])
def test_malformed_shared_keys_are_named(keys: Any) -> None:
    """The error for malformed shared keys contains neither a key nor its secret."""
    message = "connection default: shared_keys must be an object: SID of a Twilio SharedKey to its secret"

    assert message == wrong(TOKEN | {"shared_keys": keys})


def test_an_auth_token_is_a_connection() -> None:
    """A connection with an auth token signs in with its account SID as the user."""
    assert (ACCOUNT_SID, AUTH_TOKEN) == parse(**TOKEN).basic_auth


def test_an_api_key_alone_signs_nothing() -> None:
    """A connection with only an API key has no webhook token, so that its webhooks are always refused."""
    key = {name: API_KEY[name] for name in ("account_sid", "api_key_sid", "api_key_secret")}

    assert [] == parse(**key).webhook_tokens


def test_both_tokens_sign() -> None:
    """While the auth tokens are rotated, both may sign webhooks. The first one is tried first."""
    assert [AUTH_TOKEN, "new"] == parse(**TOKEN, secondary_auth_token="new").webhook_tokens


def test_a_connection_acts_for_its_subaccounts() -> None:
    """A connection may act for its own account and for its subaccounts."""
    assert {ACCOUNT_SID, SUBACCOUNT} == parse(**TOKEN, subaccount_sids=[SUBACCOUNT]).account_sids
    assert {ACCOUNT_SID} == parse(**TOKEN).account_sids


@pytest.mark.parametrize(
    ("region", "url"),
    [
        (None, "https://api.twilio.com"),
        ("us1", "https://api.twilio.com"),
        ("ie1", "https://api.dublin.ie1.twilio.com"),
        ("au1", "https://api.sydney.au1.twilio.com"),
    ],
)
def test_a_region_has_its_host(region: str | None, url: str) -> None:
    """A region's host name contains its edge, because Twilio's short names no longer work."""
    assert url == parse(**TOKEN, region=region).api_url


@pytest.mark.parametrize(
    "more",
    [
        {"friendly_name": "Support", "rotated": [1, 2]},
        {"api_key_sid": None, "api_key_secret": None, "region": None, "subaccount_sids": None},
        {"default_from": "Shop", "default_messaging_service_sid": SERVICE},
        {"default_from": "(202) 555-0143"},
        {"subaccount_sids": []},
    ],
    ids=["unknown", "null", "senders", "national", "no subaccounts"],
)
def test_other_fields_are_welcome(more: dict[str, Any]) -> None:
    """Unknown fields of a secret are ignored, and null is the same as absent."""
    assert ACCOUNT_SID == parse(**TOKEN | more).account_sid


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "account_sid is missing; auth_token is missing"),
        ({"account_sid": ACCOUNT_SID}, "auth_token is missing"),
        ({"auth_token": AUTH_TOKEN}, "account_sid is missing"),
        (TOKEN | {"auth_token": None}, "auth_token is missing"),
        (TOKEN | {"api_key_sid": "SK" + "0" * 32}, "api_key_secret is missing"),
        (TOKEN | {"api_key_secret": "x"}, "api_key_sid is missing"),
        (API_KEY | {"api_key_secret": None}, "api_key_secret is missing"),
        (API_KEY | {"api_key_secret": ""}, "api_key_secret must be 1 to 256 visible ASCII characters, without spaces"),
        (TOKEN | {"auth_token": "a b"}, "auth_token must be 1 to 256 visible ASCII characters, without spaces"),
        (TOKEN | {"auth_token": "x\n"}, "auth_token must be 1 to 256 visible ASCII characters, without spaces"),
        (TOKEN | {"auth_token": "é"}, "auth_token must be 1 to 256 visible ASCII characters, without spaces"),
        (TOKEN | {"auth_token": 5}, "auth_token must be 1 to 256 visible ASCII characters, without spaces"),
        (TOKEN | {"account_sid": "SK" + "0" * 32}, "account_sid must be a SID: AC and 32 hexadecimal digits"),
        (API_KEY | {"api_key_sid": ACCOUNT_SID}, "api_key_sid must be a SID: SK and 32 hexadecimal digits"),
        (TOKEN | {"subaccount_sids": SUBACCOUNT}, "subaccount_sids must be a list of account SIDs"),
        (TOKEN | {"subaccount_sids": ["AC"]}, "subaccount_sids must be a list of account SIDs"),
        (TOKEN | {"region": "us2"}, "region must be us1 or ie1 or au1"),
        (
            TOKEN | {"default_from": "nobody at all"},
            "default_from is too long for a sender name, which has at most 11 characters",
        ),
        (
            TOKEN | {"default_messaging_service_sid": "MG"},
            "default_messaging_service_sid must be a SID: MG and 32 hexadecimal digits",
        ),
        (
            {"account_sid": 5, "region": 5},
            (
                "account_sid must be a SID: AC and 32 hexadecimal digits; region must be us1 or ie1 or au1;"
                " auth_token is missing"
            ),
        ),
        ("", "the secret is not a JSON object"),
        ("[]", "the secret is not a JSON object"),
        ("null", "the secret is not a JSON object"),
        (AUTH_TOKEN, "the secret is not a JSON object"),
        ('{"account_sid": NaN}', "the secret is not a JSON object"),
        ('{"auth_token": "\\ud800"}', "the secret is not a JSON object"),
        ("[" * 100_000, "the secret is not a JSON object"),
        ('{"a":' * 100_000, "the secret is not a JSON object"),
    ],
)
def test_what_is_wrong_with_a_secret_is_told(fields: dict[str, Any] | str, message: str) -> None:
    """One error message has all faults of a secret, by field."""
    assert f"connection default: {message}" == wrong(fields)


@given(
    st.dictionaries(
        st.sampled_from([*Connection.__struct_fields__, "other"]),
        st.sampled_from([MARKER, f"{MARKER}\n", f"SK {MARKER}", [MARKER], {MARKER: MARKER}, [[MARKER]]]),
    )
)
def test_no_value_of_a_secret_is_told(secret: dict[str, Any]) -> None:
    """No error message or representation contains a value of the secret."""
    assert MARKER not in told(secret)


def test_a_connection_does_not_show_its_secrets() -> None:
    """No printed form of a connection, or of an object that contains it, shows its secrets."""
    connection = parse(**API_KEY | {"api_key_secret": MARKER, "auth_token": MARKER, "secondary_auth_token": MARKER})
    known = twilio_connections._Known(connection, 0, 0)

    assert f"Connection(account_sid='{ACCOUNT_SID}')" == repr(connection)
    assert f"Connection(account_sid='{ACCOUNT_SID}')" == pretty_repr(connection)
    assert MARKER not in f"{connection}{connection!r}{[connection]}{known}"


# How often a secret is read


def test_a_secret_has_the_prefix_and_the_name(connections: Connections, aws_wire: AwsWire) -> None:
    """A look-up reads only the secret that has the prefix and the name."""
    aws_wire.secrets["other/support"] = json.dumps(TOKEN)
    connections.get("other/", "support")

    assert [("GetSecretValue", {"SecretId": "other/support", "VersionStage": "AWSCURRENT"})] == aws_wire.calls


def test_a_secret_is_kept_for_five_minutes(connections: Connections, aws_wire: AwsWire, clock: Clock) -> None:
    """A secret is read again after five minutes, and not before."""
    counts = []
    for seconds in (0, FRESH_SECONDS - 1, 1, FRESH_SECONDS - 1, 1):
        clock.go_on(seconds)
        connections.get("twilio/", "default")
        counts.append(aws_wire.count("GetSecretValue"))

    assert 300 == FRESH_SECONDS
    assert [1, 1, 2, 2, 3] == counts


def test_a_changed_secret_is_seen(connections: Connections, aws_wire: AwsWire, clock: Clock) -> None:
    """A changed secret is used after five minutes."""
    connections.get("twilio/", "default")
    aws_wire.secrets["twilio/default"] = json.dumps(TOKEN)
    before = connections.get("twilio/", "default").basic_auth
    clock.go_on(FRESH_SECONDS)
    after = connections.get("twilio/", "default").basic_auth

    assert ("SK" + "0" * 32, ACCOUNT_SID) == (before[0], after[0])


def test_names_and_prefixes_are_kept_apart(connections: Connections, aws_wire: AwsWire) -> None:
    """Connections of different names and prefixes are kept apart, because each has its own account."""
    aws_wire.secrets |= {
        "twilio/other": json.dumps(TOKEN | {"account_sid": SUBACCOUNT}),
        "tw/default": json.dumps(TOKEN),
    }
    found = [connections.get(*key) for key in [("twilio/", "default"), ("twilio/", "other"), ("tw/", "default")]]

    assert ["SK" + "0" * 32, SUBACCOUNT, ACCOUNT_SID] == [connection.basic_auth[0] for connection in found]


@pytest.mark.parametrize("exists", [True, False], ids=["found", "not found"])
def test_many_who_ask_at_once_make_one_look_up(connections: Connections, aws_wire: AwsWire, *, exists: bool) -> None:
    """Callers that ask at the same time share one look-up and its result."""
    threads = 16
    barrier = threading.Barrier(threads)

    def get(_: int) -> str:
        barrier.wait()
        try:
            return connections.get("twilio/", "default" if exists else "other").account_sid
        except ConnectionNotFoundError as error:
            return type(error).__name__

    with ThreadPoolExecutor(threads) as pool:
        found = set(pool.map(get, range(threads)))

    assert {ACCOUNT_SID if exists else "ConnectionNotFoundError"} == found
    assert 1 == aws_wire.count("GetSecretValue")


class Hanging:
    """A Secrets Manager that does not return one secret until it is released."""

    def __init__(self, wire: AwsWire, name: str = "twilio/default") -> None:
        """Replace the answers of the fake AWS."""
        self.asked = threading.Event()
        self._released = threading.Event()
        self._name, self._answer = name, wire.answer
        wire.answer = self._hang  # type: ignore[method-assign]

    def _hang(self, operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["SecretId"] == self._name:
            self.asked.set()
            self._released.wait(20)
        return self._answer(operation, body)

    def release(self) -> None:
        """Let Secrets Manager answer."""
        self._released.set()


class Waited(Future[Connection]):
    """A look-up that counts the callers that wait for it."""

    waiting = threading.Semaphore(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Count a caller, and wait."""
        self.waiting.release()
        return super().exception(timeout)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a call to AWS take as long as a test needs on a busy machine."""
    monkeypatch.setattr(aws_client, "_READ_SECONDS", 20)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("again", [False, True], ids=["get", "renew"])
def test_a_failed_look_up_is_shared_by_all_who_waited(
    connections: Connections, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, *, again: bool
) -> None:
    """All callers that wait for a look-up share its failure.

    Otherwise each would wait for its own failure, one after the other, for longer than the function may run.
    """
    monkeypatch.setattr(twilio_connections, "Future", Waited, raising=False)
    monkeypatch.setattr(Waited, "waiting", threading.Semaphore(0))
    hanging, others = Hanging(aws_wire), 7
    aws_wire.failures["GetSecretValue"] = [(400, "InternalServiceError")] * 99

    def ask(_: int) -> str:
        try:
            if again:
                connections.renew("twilio/", "default", parse(**TOKEN))
            connections.get("twilio/", "default")
        except ServiceUnavailableError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(1 + others) as pool:
        first = pool.submit(ask, 0)
        assert hanging.asked.wait(10)
        rest = [pool.submit(ask, number) for number in range(others)]
        for _ in range(others):
            Waited.waiting.acquire(timeout=2)
        hanging.release()
        errors = {each.result() for each in [first, *rest]}

    assert {"Secrets Manager does not answer (InternalServiceError)"} == errors
    assert 2 == aws_wire.count("GetSecretValue")  # both attempts of one call


@pytest.mark.usefixtures("patient")
def test_whoever_waits_for_a_look_up_keeps_their_own_time(connections: Connections, aws_wire: AwsWire) -> None:
    """A caller that waits for another caller's look-up waits no longer than its own time allows.

    The other caller may have more time.
    """
    hanging = Hanging(aws_wire)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(connections.get, "twilio/", "default")
        assert hanging.asked.wait(10)
        second = pool.submit(connections.get, "twilio/", "default", seconds=0.1)
        try:
            with pytest.raises(ServiceUnavailableError, match="did not answer in time; nothing was sent"):
                second.result(5)
        finally:
            hanging.release()
        assert ACCOUNT_SID == first.result().account_sid

    assert 1 == aws_wire.count("GetSecretValue")


@pytest.mark.usefixtures("patient")
def test_a_hanging_look_up_holds_up_no_other_name(connections: Connections, aws_wire: AwsWire) -> None:
    """A hanging look-up does not block other names, because strangers can invent as many names as they like."""
    hanging = Hanging(aws_wire, "twilio/other")
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(connections.get, "twilio/", "other")
        assert hanging.asked.wait(10)
        try:
            found = pool.submit(connections.get, "twilio/", "default").result(5)
        finally:
            hanging.release()
        assert ConnectionNotFoundError is type(other.exception())

    assert ACCOUNT_SID == found.account_sid


def test_a_look_up_that_has_no_time_is_not_shared(connections: Connections, aws_wire: AwsWire) -> None:
    """A look-up without enough time is not started. The next caller with enough time starts one."""
    with pytest.raises(ServiceUnavailableError, match="too little time"):
        connections.get("twilio/", "default", seconds=1)

    assert ACCOUNT_SID == connections.get("twilio/", "default", seconds=10).account_sid
    assert 1 == aws_wire.count("GetSecretValue")


def test_a_fault_of_ours_ends_a_look_up_too(
    connections: Connections, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception also ends a look-up, so that no caller waits for it forever."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://[")
    with pytest.raises(ValueError, match="IPv6"):
        connections.get("twilio/", "default")
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_wire.url)

    assert ACCOUNT_SID == connections.get("twilio/", "default").account_sid
    assert 1 == aws_wire.count("GetSecretValue")


# Metrics for alarms


@pytest.mark.parametrize("name", ["default", "other"])
def test_a_malformed_secret_is_counted(
    connections: Connections, aws_wire: AwsWire, counted: Callable[[str], float], name: str
) -> None:
    """A malformed secret is counted under any name, because it exists and somebody must fix it."""
    aws_wire.secrets[f"twilio/{name}"] = "{}"
    with pytest.raises(ConnectionInvalidError):
        connections.get("twilio/", name)

    assert (1, 0) == (counted("SecretsMalformed"), counted("DefaultConnectionMissing"))


@pytest.mark.parametrize("code", ["ResourceNotFoundException", "AccessDeniedException"])
@pytest.mark.parametrize(("name", "times"), [("default", 1), ("other", 0)])
def test_only_the_default_connection_is_counted_as_missing(
    connections: Connections, aws_wire: AwsWire, counted: Callable[[str], float], name: str, times: int, code: str
) -> None:
    """Only a missing default connection is counted, because another missing name may be a caller's mistake."""
    aws_wire.failures["GetSecretValue"] = [(400, code)]
    with pytest.raises(ConnectionNotFoundError):
        connections.get("twilio/", name)

    assert (0, times) == (counted("SecretsMalformed"), counted("DefaultConnectionMissing"))


def test_an_outage_is_not_counted_as_a_fault_of_the_secret(
    connections: Connections, aws_wire: AwsWire, counted: Callable[[str], float]
) -> None:
    """An outage of Secrets Manager is not counted, because the stack's owner cannot fix it."""
    throttle(aws_wire)
    with pytest.raises(ServiceUnavailableError):
        connections.get("twilio/", "default")

    assert (0, 0) == (counted("SecretsMalformed"), counted("DefaultConnectionMissing"))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("ResourceNotFoundException", ConnectionNotFoundError),
        ("AccessDeniedException", ConnectionNotFoundError),
        ("InvalidRequestException", ConnectionNotFoundError),
        ("DecryptionFailure", ConnectionNotFoundError),
        ("InternalServiceError", ServiceUnavailableError),
    ],
)
def test_a_refusal_of_secrets_manager_has_its_error(
    connections: Connections, aws_wire: AwsWire, code: str, error: type[ConnectorError]
) -> None:
    """The message of a refused look-up has AWS's code, and the cause is not chained."""
    aws_wire.failures["GetSecretValue"] = [(400, code)] * 2

    with pytest.raises(error, match=code) as refusal:
        connections.get("twilio/", "default")

    assert None is refusal.value.__cause__
    assert refusal.value.__suppress_context__


def test_a_missing_secret_is_named(connections: Connections, aws_wire: AwsWire) -> None:
    """The error for a missing secret has its full name in Secrets Manager, including the prefix."""
    aws_wire.secrets.clear()

    with pytest.raises(ConnectionNotFoundError, match="connection default: there is no secret twilio/default, or"):
        connections.get("twilio/", "default")


def test_a_binary_secret_is_no_connection(connections: Connections, aws_wire: AwsWire) -> None:
    """A binary secret is invalid, and the error says how to fix it."""
    aws_wire.secrets["twilio/default"] = b"AAAA"

    with pytest.raises(ConnectionInvalidError, match="connection default: the secret is binary, and must be text"):
        connections.get("twilio/", "default")


def test_throttling_is_tried_twice_and_then_unavailable(connections: Connections, aws_wire: AwsWire) -> None:
    """A throttled look-up is attempted twice, and Secrets Manager then counts as unavailable.

    Nothing was sent, so the caller may retry.
    """
    throttle(aws_wire, 1, "ThrottlingException")

    with pytest.raises(ServiceUnavailableError, match="ThrottlingException"):
        connections.get("twilio/", "default")
    assert 2 == aws_wire.count("GetSecretValue")


def test_a_service_that_is_away_is_unavailable(
    connections: Connections, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Secrets Manager cannot be reached, it is unavailable; the connection does not count as missing."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    aws_wire.secrets.clear()

    with pytest.raises(ServiceUnavailableError, match="the connection was refused"):
        connections.get("twilio/", "default")


# Failures in memory


@pytest.mark.parametrize("secret", [None, "{}"], ids=["missing", "invalid"])
def test_a_failed_look_up_is_remembered_for_a_short_while(
    connections: Connections, aws_wire: AwsWire, clock: Clock, secret: str | None
) -> None:
    """A failed look-up is remembered for 30 seconds. After that, the fixed secret is found."""
    aws_wire.secrets.clear()
    if secret:
        aws_wire.secrets["twilio/default"] = secret
    messages = []
    for seconds in (0, 29):
        clock.go_on(seconds)
        with pytest.raises((ConnectionNotFoundError, ConnectionInvalidError)) as refusal:
            connections.get("twilio/", "default")
        messages.append(str(refusal.value))
    aws_wire.secrets["twilio/default"] = json.dumps(TOKEN)
    clock.go_on(1)

    assert ACCOUNT_SID == connections.get("twilio/", "default").account_sid
    assert 1 == len(set(messages))
    assert 2 == aws_wire.count("GetSecretValue")


def test_each_caller_gets_an_error_of_its_own(connections: Connections, aws_wire: AwsWire) -> None:
    """Each caller gets its own error, because a shared one would collect the tracebacks of all callers."""
    aws_wire.secrets.clear()
    errors = []
    for _ in range(3):
        with pytest.raises(ConnectionNotFoundError) as refusal:
            connections.get("twilio/", "default")
        errors.append(refusal.value)

    assert 3 == len({id(error) for error in errors})


def test_unavailability_is_not_remembered(connections: Connections, aws_wire: AwsWire) -> None:
    """An unavailable Secrets Manager is not remembered, because the next look-up may succeed."""
    throttle(aws_wire)
    with pytest.raises(ServiceUnavailableError):
        connections.get("twilio/", "default")

    assert ACCOUNT_SID == connections.get("twilio/", "default").account_sid


def test_a_secret_is_used_while_secrets_manager_is_away(
    connections: Connections, aws_wire: AwsWire, clock: Clock
) -> None:
    """A secret is used while Secrets Manager is unavailable, which is asked only every 30 seconds."""
    connections.get("twilio/", "default")
    throttle(aws_wire, 1000)
    counts = []
    for seconds in (FRESH_SECONDS, 29, 1, 29, 1):
        clock.go_on(seconds)
        assert ACCOUNT_SID == connections.get("twilio/", "default").account_sid
        counts.append(aws_wire.count("GetSecretValue"))

    assert [3, 3, 5, 5, 7] == counts


def test_a_secret_is_not_used_for_ever(connections: Connections, aws_wire: AwsWire, clock: Clock) -> None:
    """A secret is used for at most about an hour after its last read, because it may have been revoked."""
    connections.get("twilio/", "default")
    throttle(aws_wire, 1000)
    began = clock.elapsed
    used_until = began
    with pytest.raises(ServiceUnavailableError):  # noqa: PT012 the last of many look-ups raises
        while clock.elapsed < began + 2 * STALE_SECONDS:
            connections.get("twilio/", "default")
            used_until = clock.elapsed
            clock.go_on(10)

    assert STALE_SECONDS - 10 <= used_until - began <= STALE_SECONDS + 30


def test_a_stale_secret_is_fresh_again_when_it_is_read(
    connections: Connections, aws_wire: AwsWire, clock: Clock
) -> None:
    """A stale secret is read again 30 seconds after the failed look-up."""
    connections.get("twilio/", "default")
    throttle(aws_wire)
    clock.go_on(FRESH_SECONDS)
    connections.get("twilio/", "default")
    aws_wire.secrets["twilio/default"] = json.dumps(TOKEN)
    clock.go_on(30)

    assert ACCOUNT_SID == connections.get("twilio/", "default").basic_auth[0]


@pytest.mark.parametrize("secret", [None, "{}"], ids=["deleted", "broken"])
def test_a_secret_that_is_gone_is_not_used(
    connections: Connections, aws_wire: AwsWire, clock: Clock, secret: str | None
) -> None:
    """A deleted or invalid secret is no longer used, because its owner revokes the credentials by deleting it."""
    connections.get("twilio/", "default")
    aws_wire.secrets.clear()
    if secret:
        aws_wire.secrets["twilio/default"] = secret
    clock.go_on(FRESH_SECONDS)

    with pytest.raises((ConnectionNotFoundError, ConnectionInvalidError)):
        connections.get("twilio/", "default")


def test_what_is_remembered_is_bounded(connections: Connections, aws_wire: AwsWire) -> None:
    """The number of remembered names is bounded, so that invented names do not fill the memory."""
    for number in range(501):
        with pytest.raises(ConnectionNotFoundError):
            connections.get("twilio/", f"name{number}")

    assert len(connections._known) <= 500
    assert 501 == aws_wire.count("GetSecretValue")


# Strangers


def ask_as_stranger(connections: Connections, name: str) -> str:
    """Return a stranger's result: an account SID or the name of an error."""
    try:
        return connections.get("twilio/", name, unauthenticated=True).account_sid
    except ConnectorError as error:
        return type(error).__name__


def test_strangers_cannot_run_up_look_ups(connections: Connections, aws_wire: AwsWire, clock: Clock) -> None:
    """Strangers can cause at most 600 look-ups per minute, regardless of the names that they invent."""
    answers = []
    for number in range(700):
        answers.append(ask_as_stranger(connections, f"name{number}"))
        clock.go_on(0.01)
    within_a_minute = aws_wire.count("GetSecretValue")
    clock.go_on(60)
    ask_as_stranger(connections, "another")

    assert ["ConnectionNotFoundError"] * 600 + ["ServiceUnavailableError"] * 100 == answers
    assert (600, 601) == (within_a_minute, aws_wire.count("GetSecretValue"))


def test_strangers_do_not_keep_others_out(connections: Connections, aws_wire: AwsWire, clock: Clock) -> None:
    """Strangers at their limit block neither authenticated callers nor a connection that is already known."""
    aws_wire.secrets |= dict.fromkeys(("twilio/known", "twilio/other"), json.dumps(TOKEN))
    ask_as_stranger(connections, "known")
    clock.go_on(FRESH_SECONDS - 1)
    answers = [ask_as_stranger(connections, f"name{number}") for number in range(601)]
    clock.go_on(1)

    assert "ServiceUnavailableError" == answers[-1]
    assert [ACCOUNT_SID] * 2 == [ask_as_stranger(connections, name) for name in ("default", "known")]
    assert ACCOUNT_SID == connections.get("twilio/", "other").account_sid


def test_one_name_costs_a_stranger_one_look_up(connections: Connections, aws_wire: AwsWire) -> None:
    """Repeated requests of a stranger for one name cause one look-up, because its result is remembered."""
    answers = {ask_as_stranger(connections, "nobody") for _ in range(50)}

    assert {"ConnectionNotFoundError"} == answers
    assert 1 == aws_wire.count("GetSecretValue")


# After an invalid signature


def store(wire: AwsWire, *tokens: str) -> None:
    """Store another version of the secret with these tokens."""
    wire.previous["twilio/default"] = str(wire.secrets["twilio/default"])
    names = ("auth_token", "secondary_auth_token")
    wire.secrets["twilio/default"] = json.dumps({"account_sid": ACCOUNT_SID} | dict(zip(names, tokens, strict=False)))


def get(connections: Connections) -> Connection:
    """Return the default connection."""
    return connections.get("twilio/", "default")


def refresh(connections: Connections, seconds: float = 100) -> list[str] | None:
    """Return the connection's tokens if its secret is read again, or None."""
    connection = connections.refresh("twilio/", "default", seconds=seconds)
    return connection.webhook_tokens if connection else None


def tokens(connections: Connections) -> list[str]:
    """Return the tokens that may have signed a webhook."""
    return connections.webhook_tokens("twilio/", "default", get(connections))


def stages(wire: AwsWire) -> list[str]:
    """Return the stages of the versions that were read."""
    return [body["VersionStage"] for called, body in wire.calls if called == "GetSecretValue"]


def test_a_secret_is_read_anew_for_a_signature(connections: Connections, aws_wire: AwsWire) -> None:
    """A secret is read again after an invalid signature, because a new token may have signed the webhook.

    Other callers then get the new token, too.
    """
    get(connections)
    store(aws_wire, "new")

    assert ["new"] == refresh(connections)
    assert (["new"], 2) == (get(connections).webhook_tokens, aws_wire.count("GetSecretValue"))


def test_a_secret_is_read_anew_every_half_minute(connections: Connections, aws_wire: AwsWire, clock: Clock) -> None:
    """A secret is read again at most every 30 seconds, regardless of the number of invalid signatures.

    Anybody can send one.
    """
    get(connections)
    counts = []
    for seconds in (0, 0, REFRESH_SECONDS - 0.1, 0.1, REFRESH_SECONDS - 0.1, 0.1):
        clock.go_on(seconds)
        refresh(connections)
        counts.append(aws_wire.count("GetSecretValue") - 1)

    assert ([1, 1, 1, 2, 2, 3], 30) == (counts, REFRESH_SECONDS)


def test_a_thousand_signatures_read_a_secret_once(connections: Connections, aws_wire: AwsWire) -> None:
    """A thousand invalid signatures cause one read of the secret, even if they arrive at the same time."""
    get(connections)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: refresh(connections), range(1000)))

    assert (999, 2) == (found.count(None), aws_wire.count("GetSecretValue"))


def test_each_connection_is_read_anew_for_itself(connections: Connections, aws_wire: AwsWire) -> None:
    """The limit on reading a secret again is separate for each connection.

    Strangers that use one connection do not delay another connection's new token.
    """
    aws_wire.secrets["twilio/other"] = json.dumps(TOKEN)
    refresh(connections)

    assert connections.refresh("twilio/", "other") is not None
    assert connections.refresh("twilio/", "other") is None


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize(
    "failure", [(400, "ResourceNotFoundException"), (400, "AccessDeniedException"), (500, "InternalServiceError")]
)
def test_a_secret_that_cannot_be_read_anew_is_used_as_it_is(
    connections: Connections, aws_wire: AwsWire, failure: tuple[int, str]
) -> None:
    """If a secret cannot be read again, the version in memory is used until it is no longer fresh.

    The next invalid signature does not cause another read immediately.
    """
    get(connections)
    aws_wire.failures["GetSecretValue"] = [failure] * 2

    assert refresh(connections) is None
    aws_wire.failures.clear()
    aws_wire.calls.clear()
    assert (None, [AUTH_TOKEN], 0) == (refresh(connections), tokens(connections), aws_wire.count("GetSecretValue"))


def test_without_time_a_secret_is_not_read_anew(connections: Connections, aws_wire: AwsWire) -> None:
    """A secret is not read again if its answer could come too late."""
    get(connections)

    assert refresh(connections, seconds=6.9) is None
    assert 1 == aws_wire.count("GetSecretValue")


def test_a_broken_secret_is_not_taken(connections: Connections, aws_wire: AwsWire) -> None:
    """An invalid signature never replaces the connection in memory with a broken secret."""
    get(connections)
    aws_wire.secrets["twilio/default"] = "{}"

    assert (None, [AUTH_TOKEN]) == (refresh(connections), tokens(connections))


# Tokens that were replaced


@pytest.mark.parametrize("how", ["refresh", "get", "renew"])
def test_a_token_that_was_replaced_is_good_for_an_hour(
    connections: Connections, aws_wire: AwsWire, clock: Clock, how: str
) -> None:
    """A replaced token is accepted for an hour, regardless of how and when the container noticed the change.

    Twilio signs with the old token until the new one is promoted.
    """
    old = get(connections)
    store(aws_wire, "new")
    aws_wire.secret_age = 0
    end = clock.elapsed + PREVIOUS_SECONDS
    if how == "refresh":
        refresh(connections)
    elif how == "renew":
        connections.renew("twilio/", "default", old)
    else:
        clock.go_on(FRESH_SECONDS)
        get(connections)
    at_once = tokens(connections)
    clock.go_on(end - 10 - clock.elapsed)  # 10 seconds of tolerance: another clock dates versions
    before = tokens(connections)
    clock.go_on(20)

    assert ["new", AUTH_TOKEN] == at_once == before
    assert (["new"], 3600) == (tokens(connections), PREVIOUS_SECONDS)


def test_who_finds_out_too_late_does_not_take_the_old_token(
    connections: Connections, aws_wire: AwsWire, clock: Clock
) -> None:
    """A container that notices the change more than an hour later does not accept the old token.

    It may have been idle for hours.
    """
    get(connections)
    store(aws_wire, "new")
    clock.go_on(2 * PREVIOUS_SECONDS)
    aws_wire.secret_age = 0
    get(connections)

    assert ["new"] == tokens(connections)


def test_each_token_that_was_replaced_is_good_for_an_hour(
    connections: Connections, aws_wire: AwsWire, clock: Clock
) -> None:
    """Each replaced token is accepted for an hour; a later change does not shorten that."""
    seen = []
    get(connections)
    for token, seconds in (("b", 1000), ("c", 1000), ("d", PREVIOUS_SECONDS - 2000)):
        store(aws_wire, token)
        aws_wire.secret_age = 1000 - clock.elapsed  # stored at the clock's current time
        clock.go_on(FRESH_SECONDS)
        seen.append(tokens(connections))
        clock.go_on(seconds - FRESH_SECONDS)

    assert [["b", AUTH_TOKEN], ["c", AUTH_TOKEN, "b"], ["d", AUTH_TOKEN, "b", "c"]] == seen
    clock.go_on(FRESH_SECONDS)
    assert ["d", "b", "c"] == tokens(connections)


def test_a_token_that_comes_back_is_there_once(connections: Connections, aws_wire: AwsWire, clock: Clock) -> None:
    """A token that is restored is listed once, as the current one.

    A secondary token that was removed counts as replaced.
    """
    store(aws_wire, AUTH_TOKEN, "secondary")
    aws_wire.secret_age = 0
    get(connections)
    for others in (("new",), (AUTH_TOKEN,)):
        store(aws_wire, *others)
        clock.go_on(FRESH_SECONDS)
        get(connections)

    assert [AUTH_TOKEN, "new", "secondary"] == sorted(tokens(connections), key=[AUTH_TOKEN, "new", "secondary"].index)
    assert AUTH_TOKEN == tokens(connections)[0]


def test_an_account_has_no_tokens_of_another(connections: Connections, aws_wire: AwsWire) -> None:
    """Each connection has its own replaced tokens."""
    get(connections)
    store(aws_wire, "new")
    refresh(connections)
    aws_wire.secrets["twilio/other"] = json.dumps(TOKEN | {"auth_token": "other"})

    assert ["other"] == connections.webhook_tokens("twilio/", "other", connections.get("twilio/", "other"))


@pytest.mark.parametrize(("age", "expected"), [(0, True), (PREVIOUS_SECONDS - 10, True), (PREVIOUS_SECONDS, False)])
def test_a_container_that_starts_finds_the_tokens_before(
    connections: Connections,
    aws_wire: AwsWire,
    age: float,
    expected: bool,  # noqa: FBT001 a table
) -> None:
    """A new container accepts the tokens of the previous version if the current one is younger than an hour.

    Otherwise it does not read the previous version.
    """
    store(aws_wire, "new")
    aws_wire.secret_age = age
    get(connections)

    assert ["new"] == refresh(connections)
    assert ["new", *[AUTH_TOKEN] * expected] == tokens(connections)
    assert ["AWSCURRENT", "AWSCURRENT", *["AWSPREVIOUS"] * expected] == stages(aws_wire)


def test_the_tokens_before_are_good_until_the_secret_is_an_hour_old(
    connections: Connections, aws_wire: AwsWire, clock: Clock
) -> None:
    """Previous tokens are accepted until the current version is an hour old, regardless of when they were read.

    Within that hour the previous version is read once.
    """
    store(aws_wire, "new")
    aws_wire.secret_age = PREVIOUS_SECONDS - 100
    refresh(connections)
    seen = []
    for _ in range(4):
        clock.go_on(31)
        refresh(connections)
        seen.append(tokens(connections))

    assert [["new", AUTH_TOKEN]] * 3 + [["new"]] == seen
    assert 1 == stages(aws_wire).count("AWSPREVIOUS")


def test_a_container_that_saw_a_change_needs_no_version_before(connections: Connections, aws_wire: AwsWire) -> None:
    """A container that noticed the change knows the old tokens, and does not read the previous version."""
    get(connections)
    store(aws_wire, "new")
    aws_wire.secret_age = 0
    refresh(connections)

    assert ["AWSCURRENT"] * 2 == stages(aws_wire)
    assert ["new", AUTH_TOKEN] == tokens(connections)


@pytest.mark.parametrize("previous", [None, "", "{}", "[]"], ids=repr)
def test_a_version_before_that_is_none_is_no_fault(
    connections: Connections, aws_wire: AwsWire, previous: str | None
) -> None:
    """A missing or invalid previous version is not an error: a secret that was never changed has none."""
    aws_wire.secret_age = 0
    if previous is not None:
        aws_wire.previous["twilio/default"] = previous

    assert [AUTH_TOKEN] == refresh(connections) == tokens(connections)
    assert ["AWSCURRENT", "AWSPREVIOUS"] == stages(aws_wire)


def test_without_time_the_version_before_is_not_read(
    connections: Connections, aws_wire: AwsWire, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The previous version is not read if reading the current one used up the time."""
    store(aws_wire, "new")
    aws_wire.secret_age = 0
    read = aws_wire._GetSecretValue

    def read_slowly(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        clock.go_on(4)
        return read(body)

    monkeypatch.setattr(aws_wire, "_GetSecretValue", read_slowly)

    assert (["new"], ["AWSCURRENT"]) == (refresh(connections, seconds=10), stages(aws_wire))


# After a 401


def test_a_refused_connection_is_read_anew(connections: Connections, aws_wire: AwsWire) -> None:
    """A connection whose credentials were refused is read again, because its secret may have been rotated."""
    old = connections.get("twilio/", "default")
    aws_wire.secrets["twilio/default"] = json.dumps(TOKEN)

    assert (ACCOUNT_SID, AUTH_TOKEN) == connections.renew("twilio/", "default", old).basic_auth
    assert (ACCOUNT_SID, AUTH_TOKEN) == connections.get("twilio/", "default").basic_auth
    assert 2 == aws_wire.count("GetSecretValue")


def test_many_that_were_refused_make_one_look_up(connections: Connections, aws_wire: AwsWire) -> None:
    """Many callers with refused credentials cause one look-up; later callers find the new credentials."""
    old = connections.get("twilio/", "default")
    aws_wire.secrets["twilio/default"] = json.dumps(TOKEN)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: connections.renew("twilio/", "default", old).basic_auth, range(8)))

    assert {(ACCOUNT_SID, AUTH_TOKEN)} == found
    assert 2 == aws_wire.count("GetSecretValue")


def test_a_name_that_was_forgotten_can_be_renewed(connections: Connections, aws_wire: AwsWire) -> None:
    """A connection that is no longer in memory can be renewed, because the memory is bounded."""
    assert ACCOUNT_SID == connections.renew("twilio/", "default", parse(**TOKEN)).account_sid
    assert 1 == aws_wire.count("GetSecretValue")


def test_a_rotated_secret_is_found_by_a_401(twilio: FaultServer, aws_wire: AwsWire, context: Context) -> None:
    """After a 401, the secret is read again and the request is sent once more, because Twilio did not process it."""
    from get_sms import handler  # noqa: PLC0415 the handler sends the request

    handler({"message_sid": "SM" + "0" * 32}, context)
    aws_wire.secrets["twilio/default"] = json.dumps(TOKEN)
    twilio.script(faults.UNAUTHORIZED, faults.OK)
    handler({"message_sid": "SM" + "0" * 32}, context)

    assert ["SK" + "0" * 32, "SK" + "0" * 32, ACCOUNT_SID] == [
        request.credentials[0] for request in twilio.requests if request.credentials
    ]


def test_credentials_that_stay_wrong_are_told(twilio: FaultServer, aws_wire: AwsWire, context: Context) -> None:
    """Credentials that stay wrong cause an error after one more read and one more request."""
    from get_sms import handler  # noqa: PLC0415 the handler sends the request

    twilio.script(faults.UNAUTHORIZED)

    with pytest.raises(TwilioAuthenticationError, match=r"credentials .HTTP 401, Twilio code 20003, request RQ0"):
        handler({"message_sid": "SM" + "0" * 32}, context)
    assert (2, 2) == (len(twilio.requests), aws_wire.count("GetSecretValue"))


# After a 401 that followed a refresh


def ask(context: Context, **more: Any) -> str:
    """Request a message from Twilio, and return `ok` or the name of the error."""
    from get_sms import handler  # noqa: PLC0415 the handler sends the request

    try:
        handler({"message_sid": "SM" + "0" * 32} | more, context)
    except ConnectorError as error:
        return type(error).__name__
    return "ok"


def test_refused_credentials_are_left_alone_for_half_a_minute(
    twilio: FaultServer,
    aws_wire: AwsWire,
    context: Context,
    clock: Clock,
    counted: Callable[[str], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Refused credentials are not used for 30 seconds.

    Each time that Twilio refuses them is counted.
    """
    monkeypatch.setattr(telemetry, "flush", lambda: None)
    twilio.script(faults.UNAUTHORIZED)
    counts = []
    for seconds in (0, 1, 28.9, 0.2):
        clock.go_on(seconds)
        assert "TwilioAuthenticationError" == ask(context)
        counts.append((len(twilio.requests), counted("CredentialsRefused")))

    assert [(2, 1), (2, 1), (2, 1), (4, 2)] == counts
    assert 3 == aws_wire.count("GetSecretValue")


def test_the_error_of_credentials_that_are_left_alone_says_what_twilio_said(
    twilio: FaultServer, aws_wire: AwsWire, context: Context
) -> None:
    """The error for credentials that are not used has the code and the request id of Twilio's refusal."""
    from get_sms import handler  # noqa: PLC0415 the handler sends the request

    twilio.script(faults.UNAUTHORIZED)
    ask(context)

    with pytest.raises(TwilioAuthenticationError, match=r"not tried again .HTTP 401, Twilio code 20003, request RQ0"):
        handler({"message_sid": "SM" + "0" * 32}, context)
    assert (2, 2) == (len(twilio.requests), aws_wire.count("GetSecretValue"))


def test_mended_credentials_are_found_after_that(
    twilio: FaultServer, aws_wire: AwsWire, context: Context, clock: Clock
) -> None:
    """Fixed credentials are used by the first request after 30 seconds."""
    twilio.script(faults.UNAUTHORIZED)
    ask(context)
    aws_wire.secrets["twilio/default"] = json.dumps(TOKEN)
    clock.go_on(30)
    twilio.reset()
    twilio.script(faults.UNAUTHORIZED, faults.OK)

    assert "ok" == ask(context)
    assert ACCOUNT_SID == (twilio.requests[-1].credentials or ("", ""))[0]


def test_other_credentials_are_not_left_alone(twilio: FaultServer, aws_wire: AwsWire, context: Context) -> None:
    """Only the credentials that Twilio refused stay unused."""
    aws_wire.secrets["twilio/other"] = json.dumps(TOKEN)
    twilio.script(faults.UNAUTHORIZED, faults.UNAUTHORIZED, faults.OK)

    assert "TwilioAuthenticationError" == ask(context)
    assert "ok" == ask(context, connection="other")
    assert "TwilioAuthenticationError" == ask(context)
    assert 3 == len(twilio.requests)


def test_a_401_that_a_refresh_mends_leaves_nothing_alone(
    twilio: FaultServer,
    aws_wire: AwsWire,
    context: Context,
    counted: Callable[[str], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a 401 that new credentials resolve, no credentials stay unused.

    This is the ordinary way in which a rotation is noticed.
    """
    monkeypatch.setattr(telemetry, "flush", lambda: None)
    get(client.CONNECTIONS)
    aws_wire.secrets["twilio/default"] = json.dumps(TOKEN)
    twilio.script(faults.UNAUTHORIZED, faults.OK)

    assert ["ok", "ok"] == [ask(context), ask(context)]
    assert (3, 0) == (len(twilio.requests), counted("CredentialsRefused"))


def test_a_raw_request_is_always_made(twilio: FaultServer, aws_wire: AwsWire, context: Context) -> None:
    """A raw request is always sent, even after a 401.

    Twilio may refuse it although the credentials are right: a standard key may not read keys.
    """
    from raw_request import handler  # noqa: PLC0415 the handler sends the request

    twilio.script(faults.UNAUTHORIZED)
    for _ in range(2):
        with pytest.raises(TwilioAuthenticationError):
            handler({"method": "GET", "url": "/Accounts/$TWILIO_ACCOUNT_SID/Keys.json"}, context)

    assert (4, 3) == (len(twilio.requests), aws_wire.count("GetSecretValue"))
