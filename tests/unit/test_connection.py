"""Are connections read rarely, kept for a bounded time, and never shown?"""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr
from twilio_connector import connection as module
from twilio_connector.connection import (
    FRESH_SECONDS,
    PREVIOUS_SECONDS,
    REFRESH_SECONDS,
    STALE_SECONDS,
    Connection,
    Connections,
    parse_secret,
)
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
from tests.unit.conftest import ACCOUNT_SID, API_KEY, AUTH_TOKEN

TOKEN = {"account_sid": ACCOUNT_SID, "auth_token": AUTH_TOKEN}
SUBACCOUNT = "AC" + "1" * 32
SERVICE = "MG" + "0" * 32
MARKER = "xqzjvmarker"

pytestmark = pytest.mark.usefixtures("delays")


@dataclass
class Clock:
    """A clock that goes on when it is told to."""

    now: float = 1000.0
    began: float = field(default_factory=time.time)

    def monotonic(self) -> float:
        """Return seconds."""
        return self.now

    def time(self) -> float:
        """Return the seconds since the epoch; at the beginning those by which AWS dates versions."""
        return self.began + self.now - 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock by which connections are kept."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def connections() -> Connections:
    """Return what a container knows when it starts."""
    return Connections()


def parse(**fields: Any) -> Connection:
    """Return the connection in a secret with these fields."""
    return parse_secret("default", json.dumps(fields))


def wrong(fields: dict[str, Any] | str) -> str:
    """Return what is wrong with a secret."""
    with pytest.raises(ConnectionInvalidError) as refusal:
        parse_secret("default", fields if isinstance(fields, str) else json.dumps(fields))
    return str(refusal.value)


def told(fields: dict[str, Any]) -> str:
    """Return what is told of a secret, which may be right."""
    try:
        return repr(parse_secret("default", json.dumps(fields)))
    except ConnectionInvalidError as error:
        return str(error)


def throttle(wire: AwsWire, times: int = 1, code: str = "InternalServiceError") -> None:
    """Make so many look-ups fail, both attempts of each."""
    wire.failures["GetSecretValue"] = [(400, code)] * 2 * times


# What a secret may hold


def test_an_api_key_is_a_connection() -> None:
    """The auth token beside it is for webhooks."""
    connection = parse(**API_KEY)

    assert ("SK" + "0" * 32, "not-a-secret") == connection.basic_auth
    assert [AUTH_TOKEN] == connection.webhook_tokens
    assert "+15551234567" == connection.default_from


def test_an_auth_token_is_a_connection() -> None:
    """Twilio takes the account SID as its user."""
    assert (ACCOUNT_SID, AUTH_TOKEN) == parse(**TOKEN).basic_auth


def test_an_api_key_alone_signs_nothing() -> None:
    """Webhooks are refused then, never skipped."""
    key = {name: API_KEY[name] for name in ("account_sid", "api_key_sid", "api_key_secret")}

    assert [] == parse(**key).webhook_tokens


def test_both_tokens_sign() -> None:
    """While they are rotated, the first one first."""
    assert [AUTH_TOKEN, "new"] == parse(**TOKEN, secondary_auth_token="new").webhook_tokens


def test_a_connection_acts_for_its_subaccounts() -> None:
    """And for its own account."""
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
    """With the edge in it: the short names are dead."""
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
    """Unknown ones are ignored, and null is the same as absent."""
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
            "default_from must be a phone number (best in E.164), a short code or a channel address",
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
    """All of it at once, by field."""
    assert f"connection default: {message}" == wrong(fields)


@given(
    st.dictionaries(
        st.sampled_from([*Connection.__struct_fields__, "other"]),
        st.sampled_from([MARKER, f"{MARKER}\n", f"SK {MARKER}", [MARKER], {MARKER: MARKER}, [[MARKER]]]),
    )
)
def test_no_value_of_a_secret_is_told(secret: dict[str, Any]) -> None:
    """Whatever is wrong with it."""
    assert MARKER not in told(secret)


def test_a_connection_does_not_show_its_secrets() -> None:
    """However it is printed, and wherever it is held."""
    connection = parse(**API_KEY | {"api_key_secret": MARKER, "auth_token": MARKER, "secondary_auth_token": MARKER})
    known = module._Known(connection, 0, 0)

    assert f"Connection(account_sid='{ACCOUNT_SID}')" == repr(connection)
    assert f"Connection(account_sid='{ACCOUNT_SID}')" == pretty_repr(connection)
    assert MARKER not in f"{connection}{connection!r}{[connection]}{known}"


# How often it is read


def test_a_secret_has_the_prefix_and_the_name(connections: Connections, aws_wire: AwsWire) -> None:
    """Nothing else is asked for."""
    aws_wire.secrets["other/support"] = json.dumps(TOKEN)
    connections.get("other/", "support")

    assert [("GetSecretValue", {"SecretId": "other/support", "VersionStage": "AWSCURRENT"})] == aws_wire.calls


def test_a_secret_is_kept_for_five_minutes(connections: Connections, aws_wire: AwsWire, clock: Clock) -> None:
    """Then it is read again."""
    counts = []
    for seconds in (0, FRESH_SECONDS - 1, 1, FRESH_SECONDS - 1, 1):
        clock.now += seconds
        connections.get("twilio/", "default")
        counts.append(aws_wire.count("GetSecretValue"))

    assert 300 == FRESH_SECONDS
    assert [1, 1, 2, 2, 3] == counts


def test_a_changed_secret_is_seen(connections: Connections, aws_wire: AwsWire, clock: Clock) -> None:
    """After the five minutes."""
    connections.get("twilio/", "default")
    aws_wire.secrets["twilio/default"] = json.dumps(TOKEN)
    before = connections.get("twilio/", "default").basic_auth
    clock.now += FRESH_SECONDS
    after = connections.get("twilio/", "default").basic_auth

    assert ("SK" + "0" * 32, ACCOUNT_SID) == (before[0], after[0])


def test_names_and_prefixes_are_kept_apart(connections: Connections, aws_wire: AwsWire) -> None:
    """Each has its own account."""
    aws_wire.secrets |= {
        "twilio/other": json.dumps(TOKEN | {"account_sid": SUBACCOUNT}),
        "tw/default": json.dumps(TOKEN),
    }
    found = [connections.get(*key) for key in [("twilio/", "default"), ("twilio/", "other"), ("tw/", "default")]]

    assert ["SK" + "0" * 32, SUBACCOUNT, ACCOUNT_SID] == [connection.basic_auth[0] for connection in found]


@pytest.mark.parametrize("exists", [True, False], ids=["found", "not found"])
def test_many_who_ask_at_once_make_one_look_up(connections: Connections, aws_wire: AwsWire, *, exists: bool) -> None:
    """The others wait for what it brings."""
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
    """The message has AWS's code, and the cause is not chained."""
    aws_wire.failures["GetSecretValue"] = [(400, code)] * 2

    with pytest.raises(error, match=code) as refusal:
        connections.get("twilio/", "default")

    assert None is refusal.value.__cause__
    assert refusal.value.__suppress_context__


def test_a_missing_secret_is_named(connections: Connections, aws_wire: AwsWire) -> None:
    """With its prefix, as it stands in Secrets Manager."""
    aws_wire.secrets.clear()

    with pytest.raises(ConnectionNotFoundError, match="connection default: there is no secret twilio/default, or"):
        connections.get("twilio/", "default")


def test_a_binary_secret_is_no_connection(connections: Connections, aws_wire: AwsWire) -> None:
    """The remedy is told."""
    aws_wire.secrets["twilio/default"] = b"AAAA"

    with pytest.raises(ConnectionInvalidError, match="connection default: the secret is binary, and must be text"):
        connections.get("twilio/", "default")


def test_throttling_is_tried_twice_and_then_unavailable(connections: Connections, aws_wire: AwsWire) -> None:
    """Nothing was sent, so the caller may try again."""
    throttle(aws_wire, 1, "ThrottlingException")

    with pytest.raises(ServiceUnavailableError, match="ThrottlingException"):
        connections.get("twilio/", "default")
    assert 2 == aws_wire.count("GetSecretValue")


def test_a_service_that_is_away_is_unavailable(
    connections: Connections, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer is no refusal."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    aws_wire.secrets.clear()

    with pytest.raises(ServiceUnavailableError, match="the connection was refused"):
        connections.get("twilio/", "default")


# What is remembered of failures


@pytest.mark.parametrize("secret", [None, "{}"], ids=["missing", "invalid"])
def test_a_failed_look_up_is_remembered_for_a_short_while(
    connections: Connections, aws_wire: AwsWire, clock: Clock, secret: str | None
) -> None:
    """Then it is tried again, and the mended secret is seen."""
    aws_wire.secrets.clear()
    if secret:
        aws_wire.secrets["twilio/default"] = secret
    messages = []
    for seconds in (0, 29):
        clock.now += seconds
        with pytest.raises((ConnectionNotFoundError, ConnectionInvalidError)) as refusal:
            connections.get("twilio/", "default")
        messages.append(str(refusal.value))
    aws_wire.secrets["twilio/default"] = json.dumps(TOKEN)
    clock.now += 1

    assert ACCOUNT_SID == connections.get("twilio/", "default").account_sid
    assert 1 == len(set(messages))
    assert 2 == aws_wire.count("GetSecretValue")


def test_each_caller_gets_an_error_of_its_own(connections: Connections, aws_wire: AwsWire) -> None:
    """A shared one would gather the traces of all."""
    aws_wire.secrets.clear()
    errors = []
    for _ in range(3):
        with pytest.raises(ConnectionNotFoundError) as refusal:
            connections.get("twilio/", "default")
        errors.append(refusal.value)

    assert 3 == len({id(error) for error in errors})


def test_unavailability_is_not_remembered(connections: Connections, aws_wire: AwsWire) -> None:
    """The next look-up may go through."""
    throttle(aws_wire)
    with pytest.raises(ServiceUnavailableError):
        connections.get("twilio/", "default")

    assert ACCOUNT_SID == connections.get("twilio/", "default").account_sid


def test_a_secret_is_used_while_secrets_manager_is_away(
    connections: Connections, aws_wire: AwsWire, clock: Clock
) -> None:
    """It is asked again only now and then."""
    connections.get("twilio/", "default")
    throttle(aws_wire, 1000)
    counts = []
    for seconds in (FRESH_SECONDS, 29, 1, 29, 1):
        clock.now += seconds
        assert ACCOUNT_SID == connections.get("twilio/", "default").account_sid
        counts.append(aws_wire.count("GetSecretValue"))

    assert [3, 3, 5, 5, 7] == counts


def test_a_secret_is_not_used_for_ever(connections: Connections, aws_wire: AwsWire, clock: Clock) -> None:
    """An hour after it was read last it may have been taken back."""
    connections.get("twilio/", "default")
    throttle(aws_wire, 1000)
    began = clock.now
    used_until = began
    with pytest.raises(ServiceUnavailableError):  # noqa: PT012 the last of many look-ups raises
        while clock.now < began + 2 * STALE_SECONDS:
            connections.get("twilio/", "default")
            used_until = clock.now
            clock.now += 10

    assert STALE_SECONDS - 10 <= used_until - began <= STALE_SECONDS + 30


def test_a_stale_secret_is_fresh_again_when_it_is_read(
    connections: Connections, aws_wire: AwsWire, clock: Clock
) -> None:
    """The pause ends after half a minute."""
    connections.get("twilio/", "default")
    throttle(aws_wire)
    clock.now += FRESH_SECONDS
    connections.get("twilio/", "default")
    aws_wire.secrets["twilio/default"] = json.dumps(TOKEN)
    clock.now += 30

    assert ACCOUNT_SID == connections.get("twilio/", "default").basic_auth[0]


@pytest.mark.parametrize("secret", [None, "{}"], ids=["deleted", "broken"])
def test_a_secret_that_is_gone_is_not_used(
    connections: Connections, aws_wire: AwsWire, clock: Clock, secret: str | None
) -> None:
    """Whoever deletes it takes the credentials back."""
    connections.get("twilio/", "default")
    aws_wire.secrets.clear()
    if secret:
        aws_wire.secrets["twilio/default"] = secret
    clock.now += FRESH_SECONDS

    with pytest.raises((ConnectionNotFoundError, ConnectionInvalidError)):
        connections.get("twilio/", "default")


def test_what_is_remembered_is_bounded(connections: Connections, aws_wire: AwsWire) -> None:
    """Made-up names do not fill the memory."""
    for number in range(501):
        with pytest.raises(ConnectionNotFoundError):
            connections.get("twilio/", f"name{number}")

    assert len(connections._known) <= 500
    assert 501 == aws_wire.count("GetSecretValue")


# Strangers


def ask_as_stranger(connections: Connections, name: str) -> str:
    """Return what a stranger gets: an account or the name of an error."""
    try:
        return connections.get("twilio/", name, asked_by_stranger=True).account_sid
    except ConnectorError as error:
        return type(error).__name__


def test_strangers_cannot_run_up_look_ups(connections: Connections, aws_wire: AwsWire, clock: Clock) -> None:
    """Six hundred in a minute, whatever names they make up."""
    answers = []
    for number in range(700):
        answers.append(ask_as_stranger(connections, f"name{number}"))
        clock.now += 0.01
    within_a_minute = aws_wire.count("GetSecretValue")
    clock.now += 60
    ask_as_stranger(connections, "another")

    assert ["ConnectionNotFoundError"] * 600 + ["ServiceUnavailableError"] * 100 == answers
    assert (600, 601) == (within_a_minute, aws_wire.count("GetSecretValue"))


def test_strangers_do_not_keep_others_out(connections: Connections, aws_wire: AwsWire, clock: Clock) -> None:
    """Neither those who are no strangers nor a connection that is known."""
    aws_wire.secrets["twilio/other"] = json.dumps(TOKEN)
    ask_as_stranger(connections, "default")
    for number in range(50):
        ask_as_stranger(connections, f"name{number}")
    clock.now += FRESH_SECONDS - 1
    for number in range(50, 100):
        ask_as_stranger(connections, f"name{number}")
    clock.now += 1

    assert ACCOUNT_SID == ask_as_stranger(connections, "default")
    assert ACCOUNT_SID == connections.get("twilio/", "other").account_sid


def test_one_name_costs_a_stranger_one_look_up(connections: Connections, aws_wire: AwsWire) -> None:
    """It is remembered."""
    answers = {ask_as_stranger(connections, "nobody") for _ in range(50)}

    assert {"ConnectionNotFoundError"} == answers
    assert 1 == aws_wire.count("GetSecretValue")


# After a signature that does not hold


def store(wire: AwsWire, *tokens: str) -> None:
    """Store another version of the secret, with these tokens."""
    wire.previous["twilio/default"] = str(wire.secrets["twilio/default"])
    names = ("auth_token", "secondary_auth_token")
    wire.secrets["twilio/default"] = json.dumps({"account_sid": ACCOUNT_SID} | dict(zip(names, tokens, strict=False)))


def get(connections: Connections) -> Connection:
    """Return the connection."""
    return connections.get("twilio/", "default")


def refresh(connections: Connections, seconds: float = 100) -> list[str] | None:
    """Return the tokens of the connection that is read anew, if it is."""
    connection = connections.refresh("twilio/", "default", seconds=seconds)
    return connection.webhook_tokens if connection else None


def tokens(connections: Connections) -> list[str]:
    """Return the tokens that may have signed a webhook."""
    return connections.webhook_tokens("twilio/", "default", get(connections))


def stages(wire: AwsWire) -> list[str]:
    """Return which versions were read."""
    return [body["VersionStage"] for called, body in wire.calls if called == "GetSecretValue"]


def test_a_secret_is_read_anew_for_a_signature(connections: Connections, aws_wire: AwsWire) -> None:
    """It may be signed with a new token; the others who ask get that too."""
    get(connections)
    store(aws_wire, "new")

    assert ["new"] == refresh(connections)
    assert (["new"], 2) == (get(connections).webhook_tokens, aws_wire.count("GetSecretValue"))


def test_a_secret_is_read_anew_every_half_minute(connections: Connections, aws_wire: AwsWire, clock: Clock) -> None:
    """However many signatures do not hold: anybody can send one."""
    get(connections)
    counts = []
    for seconds in (0, 0, REFRESH_SECONDS - 0.1, 0.1, REFRESH_SECONDS - 0.1, 0.1):
        clock.now += seconds
        refresh(connections)
        counts.append(aws_wire.count("GetSecretValue") - 1)

    assert ([1, 1, 1, 2, 2, 3], 30) == (counts, REFRESH_SECONDS)


def test_a_thousand_signatures_read_a_secret_once(connections: Connections, aws_wire: AwsWire) -> None:
    """Also where they come at the same time."""
    get(connections)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: refresh(connections), range(1000)))

    assert (999, 2) == (found.count(None), aws_wire.count("GetSecretValue"))


def test_each_connection_is_read_anew_for_itself(connections: Connections, aws_wire: AwsWire) -> None:
    """Somebody else's strangers do not keep a new token out."""
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
    """Until it is no longer fresh; nor is it asked for again at once."""
    get(connections)
    aws_wire.failures["GetSecretValue"] = [failure] * 2

    assert refresh(connections) is None
    aws_wire.failures.clear()
    aws_wire.calls.clear()
    assert (None, [AUTH_TOKEN], 0) == (refresh(connections), tokens(connections), aws_wire.count("GetSecretValue"))


def test_without_time_a_secret_is_not_read_anew(connections: Connections, aws_wire: AwsWire) -> None:
    """The answer would come too late."""
    get(connections)

    assert refresh(connections, seconds=6.9) is None
    assert 1 == aws_wire.count("GetSecretValue")


def test_a_broken_secret_is_not_taken(connections: Connections, aws_wire: AwsWire) -> None:
    """For a signature that does not hold nobody loses the connection."""
    get(connections)
    aws_wire.secrets["twilio/default"] = "{}"

    assert (None, [AUTH_TOKEN]) == (refresh(connections), tokens(connections))


# Tokens that were replaced


@pytest.mark.parametrize("how", ["refresh", "get", "renew"])
def test_a_token_that_was_replaced_is_good_for_an_hour(
    connections: Connections, aws_wire: AwsWire, clock: Clock, how: str
) -> None:
    """However and whenever the container found out: Twilio signs with the old one until the new one is promoted."""
    old = get(connections)
    store(aws_wire, "new")
    aws_wire.secret_age = 0
    end = clock.now + PREVIOUS_SECONDS
    if how == "refresh":
        refresh(connections)
    elif how == "renew":
        connections.renew("twilio/", "default", old)
    else:
        clock.now += FRESH_SECONDS
        get(connections)
    at_once = tokens(connections)
    clock.now = end - 10  # versions are dated by another clock
    before = tokens(connections)
    clock.now = end + 10

    assert ["new", AUTH_TOKEN] == at_once == before
    assert (["new"], 3600) == (tokens(connections), PREVIOUS_SECONDS)


def test_who_finds_out_too_late_does_not_take_the_old_token(
    connections: Connections, aws_wire: AwsWire, clock: Clock
) -> None:
    """A container may have had nothing to do for hours."""
    get(connections)
    store(aws_wire, "new")
    clock.now += 2 * PREVIOUS_SECONDS
    aws_wire.secret_age = 0
    get(connections)

    assert ["new"] == tokens(connections)


def test_each_token_that_was_replaced_is_good_for_an_hour(
    connections: Connections, aws_wire: AwsWire, clock: Clock
) -> None:
    """A second change takes nothing from the first."""
    seen = []
    get(connections)
    for token, seconds in (("b", 1000), ("c", 1000), ("d", PREVIOUS_SECONDS - 2000)):
        store(aws_wire, token)
        aws_wire.secret_age = 1000 - clock.now  # it is stored now
        clock.now += FRESH_SECONDS
        seen.append(tokens(connections))
        clock.now += seconds - FRESH_SECONDS

    assert [["b", AUTH_TOKEN], ["c", AUTH_TOKEN, "b"], ["d", AUTH_TOKEN, "b", "c"]] == seen
    clock.now += FRESH_SECONDS
    assert ["d", "b", "c"] == tokens(connections)


def test_a_token_that_comes_back_is_there_once(connections: Connections, aws_wire: AwsWire, clock: Clock) -> None:
    """As the present one; the secondary that was taken out is an old one."""
    store(aws_wire, AUTH_TOKEN, "secondary")
    aws_wire.secret_age = 0
    get(connections)
    for others in (("new",), (AUTH_TOKEN,)):
        store(aws_wire, *others)
        clock.now += FRESH_SECONDS
        get(connections)

    assert [AUTH_TOKEN, "new", "secondary"] == sorted(tokens(connections), key=[AUTH_TOKEN, "new", "secondary"].index)
    assert AUTH_TOKEN == tokens(connections)[0]


def test_an_account_has_no_tokens_of_another(connections: Connections, aws_wire: AwsWire) -> None:
    """Each connection has its own."""
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
    """In the version before, if the present one is younger than an hour; else that is not even read."""
    store(aws_wire, "new")
    aws_wire.secret_age = age
    get(connections)

    assert ["new"] == refresh(connections)
    assert ["new", *[AUTH_TOKEN] * expected] == tokens(connections)
    assert ["AWSCURRENT", "AWSCURRENT", *["AWSPREVIOUS"] * expected] == stages(aws_wire)


def test_the_tokens_before_are_good_until_the_secret_is_an_hour_old(
    connections: Connections, aws_wire: AwsWire, clock: Clock
) -> None:
    """Not for an hour from when they were found; within it the version before is read once."""
    store(aws_wire, "new")
    aws_wire.secret_age = PREVIOUS_SECONDS - 100
    refresh(connections)
    seen = []
    for _ in range(4):
        clock.now += 31
        refresh(connections)
        seen.append(tokens(connections))

    assert [["new", AUTH_TOKEN]] * 3 + [["new"]] == seen
    assert 1 == stages(aws_wire).count("AWSPREVIOUS")


def test_a_container_that_saw_a_change_needs_no_version_before(connections: Connections, aws_wire: AwsWire) -> None:
    """It knows the tokens."""
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
    """A secret that was never changed has none."""
    aws_wire.secret_age = 0
    if previous is not None:
        aws_wire.previous["twilio/default"] = previous

    assert [AUTH_TOKEN] == refresh(connections) == tokens(connections)
    assert ["AWSCURRENT", "AWSPREVIOUS"] == stages(aws_wire)


def test_without_time_the_version_before_is_not_read(
    connections: Connections, aws_wire: AwsWire, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The present one took it."""
    store(aws_wire, "new")
    aws_wire.secret_age = 0
    read = aws_wire._GetSecretValue

    def read_slowly(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        clock.now += 4
        return read(body)

    monkeypatch.setattr(aws_wire, "_GetSecretValue", read_slowly)

    assert (["new"], ["AWSCURRENT"]) == (refresh(connections, seconds=10), stages(aws_wire))


# After a 401


def test_a_refused_connection_is_read_anew(connections: Connections, aws_wire: AwsWire) -> None:
    """The secret may have been rotated since."""
    old = connections.get("twilio/", "default")
    aws_wire.secrets["twilio/default"] = json.dumps(TOKEN)

    assert (ACCOUNT_SID, AUTH_TOKEN) == connections.renew("twilio/", "default", old).basic_auth
    assert (ACCOUNT_SID, AUTH_TOKEN) == connections.get("twilio/", "default").basic_auth
    assert 2 == aws_wire.count("GetSecretValue")


def test_many_that_were_refused_make_one_look_up(connections: Connections, aws_wire: AwsWire) -> None:
    """Whoever comes second finds the new credentials."""
    old = connections.get("twilio/", "default")
    aws_wire.secrets["twilio/default"] = json.dumps(TOKEN)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: connections.renew("twilio/", "default", old).basic_auth, range(8)))

    assert {(ACCOUNT_SID, AUTH_TOKEN)} == found
    assert 2 == aws_wire.count("GetSecretValue")


def test_a_name_that_was_forgotten_can_be_renewed(connections: Connections, aws_wire: AwsWire) -> None:
    """The memory is bounded."""
    assert ACCOUNT_SID == connections.renew("twilio/", "default", parse(**TOKEN)).account_sid
    assert 1 == aws_wire.count("GetSecretValue")


def test_a_rotated_secret_is_found_by_a_401(twilio: FaultServer, aws_wire: AwsWire, context: Context) -> None:
    """The request is tried once more: a 401 was not processed."""
    from get_sms import handler  # noqa: PLC0415 the handler is what makes the request

    handler({"message_sid": "SM" + "0" * 32}, context)
    aws_wire.secrets["twilio/default"] = json.dumps(TOKEN)
    twilio.script(faults.UNAUTHORIZED, faults.OK)
    handler({"message_sid": "SM" + "0" * 32}, context)

    assert ["SK" + "0" * 32, "SK" + "0" * 32, ACCOUNT_SID] == [
        request.credentials[0] for request in twilio.requests if request.credentials
    ]


def test_credentials_that_stay_wrong_are_told(twilio: FaultServer, aws_wire: AwsWire, context: Context) -> None:
    """After one more look and one more try."""
    from get_sms import handler  # noqa: PLC0415 the handler is what makes the request

    twilio.script(faults.UNAUTHORIZED)

    with pytest.raises(TwilioAuthenticationError, match=r"credentials .HTTP 401, Twilio code 20003, request RQ0"):
        handler({"message_sid": "SM" + "0" * 32}, context)
    assert (2, 2) == (len(twilio.requests), aws_wire.count("GetSecretValue"))
