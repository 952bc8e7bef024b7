"""Connections: one Twilio account's credentials each, a JSON secret in Secrets Manager."""

import math
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from twilio_connector import aws
from twilio_connector.errors import (
    ConnectionInvalidError,
    ConnectionNotFoundError,
    ConnectorError,
    ServiceUnavailableError,
)
from twilio_connector.inputs import AccountSid, ApiKeySid, MessagingServiceSid, Sender, convert

FRESH_SECONDS = 300
"""A secret is used that long before it is read again."""
STALE_SECONDS = 3600
"""A secret is used that long while Secrets Manager does not answer."""
PREVIOUS_SECONDS = 3600
"""Tokens that a secret no longer has are accepted on webhooks that long: Twilio signs with the old one until the new
one is promoted."""
REFRESH_SECONDS = 30
"""A signature that does not hold has a secret read anew, but no more often: anybody can send one."""
_PAUSE_SECONDS = 30  # after a look-up that failed, until the next
_STRANGERS_PER_MINUTE = 600  # look-ups of names that may be made up; fewer would let strangers keep genuine ones out
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


class Connection(Struct, frozen=True, kw_only=True):
    """One Twilio account, with an API key or its auth token."""

    account_sid: AccountSid
    api_key_sid: ApiKeySid | None = None
    api_key_secret: _Secret | None = None
    auth_token: _Secret | None = None
    secondary_auth_token: _Secret | None = None
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
        """The tokens that may have signed a webhook; none if only an API key is stored: keys never sign."""
        return [token for token in (self.auth_token, self.secondary_auth_token) if token]

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
    """What the last look-up of a name brought: when it was read, and until when it is not asked for again."""

    result: Connection | ConnectorError
    read_at: float
    fresh_until: float


class Connections:
    """Reads connections, keeps them in memory, and asks for each at most once at a time."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[tuple[str, str], _Known] = {}
        self._replaced: dict[tuple[str, str], dict[str, float]] = {}
        """The tokens that a secret had, and until when each is accepted."""
        self._refreshed: dict[tuple[str, str], float] = {}
        self._strangers: deque[float] = deque(maxlen=_STRANGERS_PER_MINUTE)
        self._lock = threading.Lock()

    def get(self, prefix: str, name: str, *, seconds: float = math.inf, asked_by_stranger: bool = False) -> Connection:
        """Return the connection of that name, in memory or in the secret `<prefix><name>`.

        Raises ConnectionNotFoundError, ConnectionInvalidError or ServiceUnavailableError, the latter too where
        the `seconds` that are left may not be enough to ask. Look-ups for strangers, who may make up any name,
        are limited.
        """
        key = prefix, name
        if (known := self._known.get(key)) and time.monotonic() < known.fresh_until:
            return _unwrap(known.result)
        with self._lock:
            # Whoever waited for the lock finds what the one before it brought.
            if (known := self._known.get(key)) and time.monotonic() < known.fresh_until:
                return _unwrap(known.result)
            return self._look_up(key, known, seconds, asked_by_stranger=asked_by_stranger)

    def renew(self, prefix: str, name: str, refused: Connection, *, seconds: float = math.inf) -> Connection:
        """Return the connection read anew, after Twilio refused this one's credentials."""
        key = prefix, name
        with self._lock:
            known = self._known.get(key)
            if known and isinstance(known.result, Connection) and known.result != refused:
                return known.result
            return self._look_up(key, known, seconds)

    def webhook_tokens(self, prefix: str, name: str, connection: Connection) -> list[str]:
        """Return the tokens that may have signed a webhook: the connection's, and those it had until recently."""
        now = time.monotonic()
        older = [token for token, until in self._replaced.get((prefix, name), {}).items() if now < until]
        return list(dict.fromkeys([*connection.webhook_tokens, *older]))

    def refresh(self, prefix: str, name: str, *, seconds: float = math.inf) -> Connection | None:
        """Return a connection read anew, after a signature that did not hold; None where it was read just now.

        It also finds out which tokens the secret had before, if that was not long ago.
        """
        key = prefix, name
        with self._lock:
            now = time.monotonic()
            known = self._known.get(key)
            if now - self._refreshed.get(key, -math.inf) < REFRESH_SECONDS:
                return None
            self._refreshed[key] = now
            try:
                found, age = _read(*key, seconds)
            except ConnectorError:
                return None  # what is known is used until it is no longer fresh
            self._replace(key, known, found, age)
            self._remember(key, _Known(found, now, now + FRESH_SECONDS))
            if age < PREVIOUS_SECONDS and all(until <= now for until in self._replaced.get(key, {}).values()):
                with suppress(ConnectorError):
                    before, _ = _read(*key, seconds - (time.monotonic() - now), stage="AWSPREVIOUS")
                    self._replaced[key] = dict.fromkeys(before.webhook_tokens, now + PREVIOUS_SECONDS - age)
            return found

    def _replace(self, key: tuple[str, str], known: _Known | None, found: Connection, age: float) -> None:
        """Keep the tokens that a secret had, and no longer has since its present version was stored."""
        old = known.result if known and isinstance(known.result, Connection) else None
        tokens = [token for token in old.webhook_tokens if token not in found.webhook_tokens] if old else []
        if tokens and age < PREVIOUS_SECONDS:
            now = time.monotonic()
            kept = {token: until for token, until in self._replaced.get(key, {}).items() if now < until}
            self._replaced[key] = kept | dict.fromkeys(tokens, now + PREVIOUS_SECONDS - age)

    def _look_up(
        self, key: tuple[str, str], known: _Known | None, seconds: float, *, asked_by_stranger: bool = False
    ) -> Connection:
        now = time.monotonic()
        old = known.result if known and isinstance(known.result, Connection) else None
        if asked_by_stranger and old is None:
            self._limit_strangers(now)
        try:
            found, age = _read(*key, seconds)
        except ServiceUnavailableError:
            if known is None or old is None or now - known.read_at >= STALE_SECONDS:
                raise
            self._remember(key, _Known(old, known.read_at, now + _PAUSE_SECONDS))
            return old
        except ConnectorError as error:
            self._remember(key, _Known(error, now, now + _PAUSE_SECONDS))
            raise
        self._replace(key, known, found, age)
        self._remember(key, _Known(found, now, now + FRESH_SECONDS))
        return found

    def _limit_strangers(self, now: float) -> None:
        if len(self._strangers) == self._strangers.maxlen and now - self._strangers[0] < 60:  # noqa: PLR2004 seconds
            raise ServiceUnavailableError("too many unknown connections were asked for in the last minute")
        self._strangers.append(now)

    def _remember(self, key: tuple[str, str], known: _Known) -> None:
        if len(self._known) >= _REMEMBERED:
            self._known = {key: known for key, known in self._known.items() if isinstance(known.result, Connection)}
        self._known[key] = known


def _unwrap(result: Connection | ConnectorError) -> Connection:
    if isinstance(result, ConnectorError):
        raise type(result)(str(result))
    return result


def _read(prefix: str, name: str, seconds: float, stage: str = "AWSCURRENT") -> tuple[Connection, float]:
    """Read a version of the secret, if the seconds that are left will do; return it with its age in seconds."""
    if seconds < aws.SECONDS:
        raise ServiceUnavailableError("too little time was left to read the connection; nothing was sent")
    try:
        answer = aws.call("secretsmanager", "GetSecretValue", SecretId=prefix + name, VersionStage=stage)
    except aws.UnavailableError as error:
        raise ServiceUnavailableError(f"Secrets Manager does not answer ({error.code})") from None
    except aws.RefusedError as error:
        raise ConnectionNotFoundError(
            f"connection {name}: there is no secret {prefix}{name}, or the function may not read it ({error.code})"
        ) from None
    if "SecretString" not in answer:
        raise ConnectionInvalidError(f"connection {name}: the secret is binary, and must be text")
    return parse_secret(name, answer["SecretString"]), time.time() - answer["CreatedDate"]
