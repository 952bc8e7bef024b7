"""The steps of a rotation: Twilio makes new credentials, and the old ones are revoked once nobody uses them."""

import hashlib
from contextlib import suppress
from typing import Annotated, Any

from msgspec import Meta, Struct
from msgspec.structs import replace

from twilio_connector import clock
from twilio_connector.api.client import Twilio
from twilio_connector.api.connections import Connection
from twilio_connector.api.pages import TwilioList
from twilio_connector.errors import (
    ConnectionInvalidError,
    ServiceUnavailableError,
    TwilioAuthenticationError,
    TwilioNotFoundError,
    TwilioRejectedError,
)
from twilio_connector.rotation.secret import PENDING, Secret, Version
from twilio_connector.validation.model import ApiKeySid

PROMOTE_AFTER = 35.0
"""Seconds between moving AWSCURRENT to the new token and promoting it. From the promotion on Twilio signs with the new
token and refuses the old one. A container that has just read the secret may read it again 30 s later."""
_PROMOTE_SECONDS = 20.0  # for the promotion itself, and for the steps after it

# The only host for auth tokens in Twilio's API description. The regions ie1 and au1 have tokens of their own. Twilio
# does not document whether this host accepts them. If not, it answers 401, and nothing is changed.
_ACCOUNTS_HOST = "https://accounts.twilio.com"
_SECONDARY = "/v1/AuthTokens/Secondary"  # https://www.twilio.com/docs/iam/api/secondary_authtoken
_PROMOTE = "/v1/AuthTokens/Promote"  # https://www.twilio.com/docs/iam/api/authtoken

_KEY_FIELDS = frozenset({"api_key_sid", "api_key_secret"})
_TOKEN_FIELDS = frozenset({"auth_token", "secondary_auth_token"})

# The characters that a connection takes.
_Credential = Annotated[str, Meta(pattern=r"\A[!-~]{1,256}\Z")]


class _Key(Struct):
    sid: ApiKeySid
    friendly_name: str | None = None


class _KeyPage(Struct):
    keys: list[_Key]
    next_page_uri: str | None = None


class _NewKey(Struct):
    sid: ApiKeySid
    secret: _Credential


class _SecondaryToken(Struct):
    secondary_auth_token: _Credential


class _PrimaryToken(Struct):
    auth_token: _Credential


class _Messages(Struct):
    messages: list[Any]


def create(secret: Secret) -> None:
    """Let Twilio make new credentials, and store them with the secret's other fields."""
    if secret.new():
        return
    current = secret.current()
    make = _make_key if current.connection.api_key_sid else _make_token
    secret.store(current.fields | make(secret, current.connection))


def test(secret: Secret) -> None:
    """Make a read with the new credentials.

    When a rotation is scheduled for later, Secrets Manager calls this step alone, with an empty version
    (https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_RotateSecret.html). The step then tests the
    credentials in use.
    """
    version = secret.new() or secret.current()
    _read_messages(secret.twilio(version.connection))


def finish(secret: Secret) -> None:
    """Let all functions use the new credentials, and only then revoke the old token."""
    new = secret.new()
    if new is None:
        raise ConnectionInvalidError(
            f"connection {secret.name}: the new version has no value; createSecret comes first"
        )
    if not secret.is_current:
        _check_unchanged(secret, new)
        secret.make_current()
    if new.connection.api_key_sid is None:
        _promote(secret, new.connection)
    secret.unstage()


def _check_unchanged(secret: Secret, new: Version) -> None:
    """Raise ConnectionInvalidError if somebody changed the secret since createSecret."""
    current = secret.current()
    rotated = _KEY_FIELDS if current.connection.api_key_sid else _TOKEN_FIELDS
    rest, new_rest = (
        {name: value for name, value in fields.items() if name not in rotated}
        for fields in (current.fields, new.fields)
    )
    is_next = bool(new.connection.api_key_sid) or new.connection.secondary_auth_token == current.connection.auth_token
    if rest != new_rest or not is_next:
        raise ConnectionInvalidError(
            f"connection {secret.name}: the secret was changed while it was rotated; take {PENDING} off its version, "
            "and rotate it again"
        )


# ---------------------------------------------------------------- API KEYS


def _make_key(secret: Secret, connection: Connection) -> dict[str, str]:
    """Delete the keys of earlier rotations, and make a new one.

    The key in use stays valid, for the functions that have it in memory. The next rotation deletes it.
    """
    owner = connection
    if connection.auth_token:
        owner = replace(connection, api_key_sid=None, api_key_secret=None)
    twilio = secret.twilio(owner)
    # The name is of the secret, not of the version, so that the keys of abandoned rotations are found too.
    name = f"twilio-connector {hashlib.sha256(secret.arn.encode()).hexdigest()[:32]}"
    previous = secret.previous_key()
    try:
        keys = [key for page in TwilioList(twilio, "Keys.json", _KeyPage, {}, "1000").pages() for key in page["keys"]]
    except (TwilioAuthenticationError, TwilioRejectedError) as error:
        # The API makes standard keys, which may not touch keys
        # (https://www.twilio.com/docs/iam/api-keys/key-resource-v1).
        raise ConnectionInvalidError(
            f"connection {secret.name}: only the account's auth_token and a main key may make API keys, and Twilio "
            "refused what the secret has: store the right auth_token in it",
            twilio=error.twilio,
        ) from None
    for key in keys:
        if key["sid"] != connection.api_key_sid and (key.get("friendly_name") == name or key["sid"] == previous):
            with suppress(TwilioNotFoundError):
                twilio.request("DELETE", f"Keys/{key['sid']}.json")
    made = twilio.request("POST", "Keys.json", form={"FriendlyName": name}, response_model=_NewKey).data
    return {"api_key_sid": made["sid"], "api_key_secret": made["secret"]}


# ---------------------------------------------------------------- AUTH TOKENS


def _make_token(secret: Secret, connection: Connection) -> dict[str, str | None]:
    """Make the secondary token; until it is promoted, Twilio accepts both tokens for requests."""
    twilio = secret.twilio(connection)
    try:
        token = _make_secondary(twilio)
    except TwilioRejectedError as error:
        # There is one already (it seems to be 70002, which Twilio does not document), or Twilio refuses again.
        _clear_secondary(secret, connection, error)
        token = _make_secondary(twilio)
    return {"auth_token": token, "secondary_auth_token": connection.auth_token}


def _make_secondary(twilio: Twilio) -> str:
    """Make the account's secondary token, and return it."""
    token: str = twilio.request("POST", _SECONDARY, host=_ACCOUNTS_HOST, response_model=_SecondaryToken).data[
        "secondary_auth_token"
    ]
    return token


def _clear_secondary(secret: Secret, connection: Connection, refused: TwilioRejectedError) -> None:
    """Delete the account's secondary token, unless it may be in use.

    An earlier attempt or a person made it, and Twilio does not show it. It is deleted only if the connection's token
    is the primary one and Twilio no longer accepts the connection's other token.
    """
    twilio = secret.twilio(connection)
    primary = twilio.request("GET", f"/Accounts/{connection.account_sid}.json", response_model=_PrimaryToken).data[
        "auth_token"
    ]
    if primary == connection.auth_token and not _accepts_other_token(secret, connection):
        with suppress(TwilioNotFoundError):
            twilio.request("DELETE", _SECONDARY, host=_ACCOUNTS_HOST)
    elif primary == connection.secondary_auth_token != connection.auth_token:
        _promote(secret, connection)  # the previous rotation stopped before the promotion
    else:
        raise TwilioRejectedError(
            f"connection {secret.name}: the account has a secondary auth token that may be in use; "
            "promote or delete it, store the one that is left as auth_token, and rotate again",
            twilio=refused.twilio,
        )


def _promote(secret: Secret, connection: Connection) -> None:
    """Promote the connection's token to the primary one, unless it is. Twilio then refuses the other token."""
    if not _accepts_other_token(secret, connection):
        return
    if secret.deadline.remaining() < PROMOTE_AFTER + _PROMOTE_SECONDS:
        raise ServiceUnavailableError("too little time was left to promote the auth token; the next attempt does it")
    clock.sleep(PROMOTE_AFTER)
    with suppress(TwilioNotFoundError):  # no secondary token: it is promoted
        twilio = secret.twilio(connection)
        twilio.request("POST", _PROMOTE, host=_ACCOUNTS_HOST, response_model=_PrimaryToken)


def _accepts_other_token(secret: Secret, connection: Connection) -> bool:
    """Tell whether Twilio still accepts the connection's other token, which was the primary one."""
    if connection.secondary_auth_token is None:
        return False
    old = replace(connection, auth_token=connection.secondary_auth_token)
    try:
        _read_messages(secret.twilio(old))
    except TwilioAuthenticationError:
        return False
    return True


def _read_messages(twilio: Twilio) -> None:
    """Make a request that any credentials may make, and that changes nothing."""
    twilio.request("GET", "Messages.json", query={"PageSize": "1"}, response_model=_Messages)
