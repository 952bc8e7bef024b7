"""Connections: each is a JSON secret in Secrets Manager with the credentials of one Twilio account."""

import math
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from twilio_connector import clock, telemetry
from twilio_connector.aws import client
from twilio_connector.errors import (
    ConnectionInvalidError,
    ConnectionNotFoundError,
    ConnectorError,
    ServiceUnavailableError,
    TwilioAuthenticationError,
    TwilioDetails,
)
from twilio_connector.settings import variable
from twilio_connector.validation.model import AccountSid, ApiKeySid, MessagingServiceSid, Sender, convert

FRESH_SECONDS = 300
"""Seconds after which a secret is read again."""
STALE_SECONDS = 3600
"""Seconds for which a secret stays in use while Secrets Manager does not answer."""
PREVIOUS_SECONDS = 3600
"""Seconds for which webhooks are accepted with a token that the secret no longer has. Twilio signs with the old token
until the new one is promoted."""
REFRESH_SECONDS = 30
"""Least seconds between two reads of a secret after invalid signatures, which anyone can send."""
REFUSED_SECONDS = 30
"""Seconds for which credentials stay unused that Twilio refused right after they were read."""
_PAUSE_SECONDS = 30  # between a failed look-up and the next
_STRANGERS_PER_MINUTE = 600  # look-ups for unsigned requests; with fewer, strangers could block genuine ones
_REMEMBERED = 500  # names

# https://www.twilio.com/docs/global-infrastructure/api-domain-migration-guide: the hosts that
# hold only a region stopped working on 2026-04-28.
_HOSTS = {
    "us1": "https://api.twilio.com",
    "ie1": "https://api.dublin.ie1.twilio.com",
    "au1": "https://api.sydney.au1.twilio.com",
}

_Secret = Annotated[
    str,
    Meta(pattern=r"\A[!-~]{1,256}\Z", description="must be 1 to 256 visible ASCII characters, without spaces"),
]

_SharedKeySid = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9]{1,64}\Z")]


class Connection(Struct, frozen=True, kw_only=True):
    """One Twilio account, with an API key or its auth token."""

    account_sid: AccountSid
    api_key_sid: ApiKeySid | None = None
    api_key_secret: _Secret | None = None
    auth_token: _Secret | None = None
    secondary_auth_token: _Secret | None = None
    shared_keys: Annotated[
        dict[_SharedKeySid, _Secret],
        Meta(description="must be an object: SID of a Twilio SharedKey to its secret"),
    ] = {}
    subaccount_sids: Annotated[list[AccountSid], Meta(description="must be a list of account SIDs")] = []
    region: Literal["us1", "ie1", "au1"] = "us1"
    default_from: Sender | None = None
    default_messaging_service_sid: MessagingServiceSid | None = None

    def __repr__(self) -> str:
        """Name the account and nothing else."""
        return f"Connection(account_sid={self.account_sid!r})"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        """Name the account and nothing else."""
        return [("account_sid", self.account_sid)]

    @property
    def basic_auth(self) -> tuple[str, str]:
        """User and password of requests to Twilio."""
        if self.api_key_sid and self.api_key_secret:
            return self.api_key_sid, self.api_key_secret
        return self.account_sid, self.auth_token or ""

    @property
    def account_sids(self) -> frozenset[str]:
        """The accounts that this connection may act for."""
        return frozenset({self.account_sid, *self.subaccount_sids})

    @property
    def webhook_tokens(self) -> list[str]:
        """The auth tokens that may have signed a webhook. An API key never signs."""
        return [token for token in (self.auth_token, self.secondary_auth_token) if token]

    @property
    def can_validate_webhooks(self) -> bool:
        """Whether the webhook can check Twilio's signatures, and so accept status callbacks."""
        return bool(self.webhook_tokens or self.shared_keys)

    @property
    def secrets(self) -> frozenset[str]:
        """All secret values of the connection."""
        values = (self.api_key_secret, self.auth_token, self.secondary_auth_token, *self.shared_keys.values())
        return frozenset(value for value in values if value)

    @property
    def api_url(self) -> str:
        """Scheme and host of the region's API."""
        return _HOSTS[self.region]


def parse_secret(name: str, secret: str) -> Connection:
    """Return the connection in a secret's text; raises ConnectionInvalidError naming what is wrong in it."""
    try:
        payload = msgspec.json.decode(secret)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        payload = None
    if not isinstance(payload, dict):
        raise ConnectionInvalidError(f"connection {name}: the secret is not a JSON object")
    given, faults = convert(Connection, payload)
    wrong = [f"{fault.field} {fault.message}" for fault in faults]
    api_key = ("api_key_sid", "api_key_secret")
    required = ("account_sid", *(api_key if given.keys() & set(api_key) else ("auth_token",)))
    wrong += [f"{field} is missing" for field in required if field not in given]
    if wrong:
        raise ConnectionInvalidError(f"connection {name}: {'; '.join(wrong)}")
    return Connection(**given)


class _Known(NamedTuple):
    """The result of a name's last look-up, when it was read, and until when it is used."""

    result: Connection | ConnectorError
    read_at: float
    fresh_until: float


class _Refusal(NamedTuple):
    """Twilio's answer when it refused credentials, and until when they stay unused."""

    twilio: TwilioDetails | None
    until: float


class Connections:
    """Reads connections and keeps them in memory. Each connection has at most one look-up at a time.

    Other callers wait for that look-up within their own time, and get its result. They get its failure too: otherwise
    each would wait for a failure of its own, one after the other.
    """

    def __init__(self) -> None:
        """Begin without any connection in memory."""
        self._known: dict[tuple[str, str], _Known] = {}
        self._replaced: dict[tuple[str, str], dict[str, float]] = {}
        """By connection, the tokens that its secret no longer has, and until when each is accepted."""
        self._refreshed: dict[tuple[str, str], float] = {}
        self._refused: dict[tuple[str, ...], _Refusal] = {}
        """By host and credentials."""
        self._strangers: deque[float] = deque(maxlen=_STRANGERS_PER_MINUTE)
        self._under_way: dict[tuple[str, str], Future[Connection]] = {}
        self._lock = threading.Lock()
        """Guards what is in memory. No thread holds it during a look-up."""

    def get(self, prefix: str, name: str, *, seconds: float = math.inf, unauthenticated: bool = False) -> Connection:
        """Return the connection of that name, in memory or in the secret `<prefix><name>`.

        Raises ConnectionNotFoundError, ConnectionInvalidError or ServiceUnavailableError. The last one is also raised
        if the `seconds` left may be too few for a look-up. `unauthenticated`: the name comes from a request whose
        signature is not checked yet. Such look-ups are limited, except of the default connection, and a missing
        connection is then not counted.
        """
        key = prefix, name
        if (known := self._known.get(key)) and clock.monotonic() < known.fresh_until:
            return _unwrap(known.result)
        with self._lock:
            # Another thread may have finished a look-up since.
            known = self._known.get(key)
            if known and clock.monotonic() < known.fresh_until:
                return _unwrap(known.result)
            if unauthenticated and not _is_default(name) and not _connection(known):
                self._limit_strangers(clock.monotonic())
            look_up, is_ours = self._join(key, seconds)
        if not is_ours:
            return _awaited(look_up, seconds)
        return self._carry_out(key, look_up, seconds, unauthenticated=unauthenticated)

    def renew(self, prefix: str, name: str, refused: Connection, *, seconds: float = math.inf) -> Connection:
        """Read the connection again after Twilio refused its credentials, and return it."""
        key = prefix, name
        with self._lock:
            known = _connection(self._known.get(key))
            if known and known != refused:
                return known
            look_up, is_ours = self._join(key, seconds)
        return self._carry_out(key, look_up, seconds) if is_ours else _awaited(look_up, seconds)

    def refuse(self, refused: Connection, twilio: TwilioDetails | None) -> None:
        """Remember that Twilio refused credentials which had just been read."""
        telemetry.count("CredentialsRefused")
        now = clock.monotonic()
        with self._lock:
            self._refused = {key: refusal for key, refusal in self._refused.items() if now < refusal.until}
            self._refused[refused.api_url, *refused.basic_auth] = _Refusal(twilio, now + REFUSED_SECONDS)

    def check_not_refused(self, connection: Connection) -> None:
        """Raise TwilioAuthenticationError for credentials that stay unused: repeated failures can lock an account."""
        refusal = self._refused.get((connection.api_url, *connection.basic_auth))
        if refusal and clock.monotonic() < refusal.until:
            raise TwilioAuthenticationError(
                "Twilio refused the connection's credentials a moment ago; they were not tried again",
                twilio=refusal.twilio,
            )

    def webhook_tokens(self, prefix: str, name: str, connection: Connection) -> list[str]:
        """Return the tokens that may have signed a webhook: the connection's, and those it had until recently."""
        now = clock.monotonic()
        older = [token for token, until in self._replaced.get((prefix, name), {}).items() if now < until]
        return list(dict.fromkeys([*connection.webhook_tokens, *older]))

    def refresh(self, prefix: str, name: str, *, seconds: float = math.inf) -> Connection | None:
        """Read a connection again after an invalid signature, and return it; None if it was read a moment ago.

        If the secret's version is recent, the tokens of the version before are accepted too.
        """
        key = prefix, name
        now = clock.monotonic()
        with self._lock:
            if now - self._refreshed.get(key, -math.inf) < REFRESH_SECONDS:
                return None
            self._refreshed[key] = now
        try:
            found, age = _read(*key, seconds)
        except ConnectorError:
            return None  # the connection in memory stays in use
        with self._lock:
            self._replace(key, found, age)
            self._remember(key, _Known(found, now, now + FRESH_SECONDS))
            is_known = any(now < until for until in self._replaced.get(key, {}).values())
        if age < PREVIOUS_SECONDS and not is_known:
            with suppress(ConnectorError):
                before, _ = _read(*key, seconds - (clock.monotonic() - now), stage="AWSPREVIOUS")
                self._replaced[key] = dict.fromkeys(before.webhook_tokens, now + PREVIOUS_SECONDS - age)
        return found

    def _replace(self, key: tuple[str, str], found: Connection, age: float) -> None:
        """Keep the tokens that the secret's new version no longer has."""
        old = _connection(self._known.get(key))
        tokens = [token for token in old.webhook_tokens if token not in found.webhook_tokens] if old else []
        if tokens and age < PREVIOUS_SECONDS:
            now = clock.monotonic()
            kept = {token: until for token, until in self._replaced.get(key, {}).items() if now < until}
            self._replaced[key] = kept | dict.fromkeys(tokens, now + PREVIOUS_SECONDS - age)

    def _join(self, key: tuple[str, str], seconds: float) -> tuple[Future[Connection], bool]:
        """Return the running look-up, or a new one that the caller must carry out, and which of the two it is."""
        if look_up := self._under_way.get(key):
            return look_up, False
        _check_time(seconds)  # before others can join: only this caller lacks the time
        self._under_way[key] = look_up = Future()
        return look_up, True

    def _carry_out(
        self, key: tuple[str, str], look_up: Future[Connection], seconds: float, *, unauthenticated: bool = False
    ) -> Connection:
        try:
            look_up.set_result(self._look_up(key, seconds, unauthenticated=unauthenticated))
        except Exception as error:  # noqa: BLE001 whoever waits for the look-up must get any error
            look_up.set_exception(error)
        finally:
            with self._lock:
                self._under_way.pop(key, None)
        return look_up.result()

    def _look_up(self, key: tuple[str, str], seconds: float, *, unauthenticated: bool) -> Connection:
        known, now = self._known.get(key), clock.monotonic()
        try:
            found, age = _read(*key, seconds)
        except ServiceUnavailableError:
            old = _connection(known)
            if known is None or old is None or now - known.read_at >= STALE_SECONDS:
                raise
            with self._lock:
                self._remember(key, _Known(old, known.read_at, now + _PAUSE_SECONDS))
            return old
        except ConnectorError as error:
            with self._lock:
                self._remember(key, _Known(error, now, now + _PAUSE_SECONDS))
            _count(error, key[1], unauthenticated=unauthenticated)
            raise
        with self._lock:
            self._replace(key, found, age)
            self._remember(key, _Known(found, now, now + FRESH_SECONDS))
        return found

    def _limit_strangers(self, now: float) -> None:
        if len(self._strangers) == self._strangers.maxlen and now - self._strangers[0] < 60:  # noqa: PLR2004 seconds
            raise ServiceUnavailableError("too many requests named unknown connections in the last minute")
        self._strangers.append(now)

    def _remember(self, key: tuple[str, str], known: _Known) -> None:
        if len(self._known) >= _REMEMBERED:
            self._known = {key: known for key, known in self._known.items() if isinstance(known.result, Connection)}
        self._known[key] = known


def _connection(known: _Known | None) -> Connection | None:
    return known.result if known and isinstance(known.result, Connection) else None


def _unwrap(result: Connection | ConnectorError) -> Connection:
    if isinstance(result, ConnectorError):
        raise type(result)(str(result))
    return result


def _awaited(look_up: Future[Connection], seconds: float) -> Connection:
    """Return the result of another thread's look-up, if it comes in time."""
    try:
        error = look_up.exception(None if seconds == math.inf else max(seconds, 0))
    except TimeoutError:
        raise ServiceUnavailableError("Secrets Manager did not answer in time; nothing was sent") from None
    if isinstance(error, ConnectorError):
        _unwrap(error)
    return look_up.result()


def _is_default(name: str) -> bool:
    return name == variable("DEFAULT_CONNECTION")


def _count(error: ConnectorError, name: str, *, unauthenticated: bool) -> None:
    """Count what the stack's owner must fix. Any other name that does not exist may be the caller's mistake."""
    if isinstance(error, ConnectionInvalidError):
        telemetry.count("SecretsMalformed")
    elif _is_default(name) and not unauthenticated:
        telemetry.count("DefaultConnectionMissing")


def _check_time(seconds: float) -> None:
    if seconds < client.SECONDS:
        raise ServiceUnavailableError("too little time was left to read the connection; nothing was sent")


def _read(prefix: str, name: str, seconds: float, stage: str = "AWSCURRENT") -> tuple[Connection, float]:
    """Read a version of the secret, if there is time; return the connection and the version's age in seconds."""
    _check_time(seconds)
    try:
        answer = client.call(
            "secretsmanager", "GetSecretValue", seconds=seconds, SecretId=prefix + name, VersionStage=stage
        )
    except client.AwsUnavailableError as error:
        raise error.unavailable("Secrets Manager") from None
    except client.AwsError as error:
        raise ConnectionNotFoundError(
            f"connection {name}: there is no secret {prefix}{name}, or the function may not read it ({error.code})"
        ) from None
    if "SecretString" not in answer:
        raise ConnectionInvalidError(f"connection {name}: the secret is binary, and must be text")
    return parse_secret(name, answer["SecretString"]), clock.now() - answer["CreatedDate"]
