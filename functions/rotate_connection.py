"""Rotate a connection's credentials: its API key, or its auth token if it has no key.

Secrets Manager calls it step by step, and after a failure from the first step on, with the same version
(https://docs.aws.amazon.com/secretsmanager/latest/userguide/rotate-secrets_lambda-functions.html). So each step
finds out how far the ones before it came, and at each moment AWSCURRENT holds credentials that work.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace
from twilio_connector import aws, telemetry
from twilio_connector.client import Twilio
from twilio_connector.connection import Connection, parse_secret
from twilio_connector.deadline import Deadline
from twilio_connector.errors import (
    ConnectionInvalidError,
    ConnectionNotFoundError,
    ConnectorError,
    Fault,
    InvalidInputError,
    ServiceUnavailableError,
    TwilioAuthenticationError,
    TwilioNotFoundError,
    TwilioRejectedError,
)
from twilio_connector.inputs import ApiKeySid
from twilio_connector.settings import Settings

PROMOTE_AFTER = 35.0
"""Seconds from the moment at which AWSCURRENT is the new token to its promotion, when Twilio begins to sign with it and
to refuse the old one: a container may have read the secret just before that moment, and does not read it again for 30 s
after a bad signature."""
_PROMOTE_SECONDS = 20.0  # for the promotion itself, and for what comes after it

# Auth tokens have no other host in Twilio's API description. Whether it takes the tokens of the regions ie1 and au1,
# which are others than those of us1, is not known: if it does not, it answers 401, and nothing is changed.
_ACCOUNTS_HOST = "https://accounts.twilio.com"
_SECONDARY = "/v1/AuthTokens/Secondary"  # https://www.twilio.com/docs/iam/api/secondary_authtoken
_PROMOTE = "/v1/AuthTokens/Promote"  # https://www.twilio.com/docs/iam/api/authtoken

_CURRENT, _PENDING, _PREVIOUS = "AWSCURRENT", "AWSPENDING", "AWSPREVIOUS"
_KEY_FIELDS = frozenset({"api_key_sid", "api_key_secret"})
_TOKEN_FIELDS = frozenset({"auth_token", "secondary_auth_token"})

# What a connection takes.
_Credential = Annotated[str, Meta(pattern=r"\A[!-~]{1,256}\Z")]


_EVENT_FIELDS = {"step": "Step", "secret_id": "SecretId", "version": "ClientRequestToken"}


class Rotation(Struct, frozen=True, rename=_EVENT_FIELDS):
    """What Secrets Manager asks for."""

    step: Literal["createSecret", "setSecret", "testSecret", "finishSecret"]
    secret_id: str
    version: str


class _Key(Struct):
    sid: ApiKeySid
    friendly_name: str | None = None


class _Keys(Struct):
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


class Version(NamedTuple):
    """What a version of the secret holds: all fields, and those that make a connection."""

    fields: dict[str, Any]
    connection: Connection


def handler(event: Any, context: Any) -> None:
    """Take one step; raises the ConnectorError that says why it could not be taken."""
    secret = None
    try:
        rotation = _read_event(event)
        secret = Secret.of(rotation.secret_id, rotation.version, Deadline.of(context))
        _take(rotation.step, secret)
    except ConnectorError as error:
        telemetry.failure(error, function=__name__, connection=secret and secret.name)
        raise
    except Exception as error:  # noqa: BLE001 its message must not reach a log
        raise telemetry.bug(error) from None
    finally:
        telemetry.flush()


def _read_event(event: Any) -> Rotation:
    try:
        return msgspec.convert(event, Rotation)
    except msgspec.ValidationError:
        raise InvalidInputError(
            Fault("(input)", "must be Secrets Manager's event, with Step, SecretId and ClientRequestToken")
        ) from None


class Secret(NamedTuple):
    """A connection's secret, whose version `version` is being made; `stages` has the labels of each version."""

    arn: str
    name: str
    version: str
    stages: Mapping[str, Sequence[str]]
    deadline: Deadline

    @classmethod
    def of(cls, secret_id: str, version: str, deadline: Deadline) -> Self:
        """Return the secret; raises InvalidInputError where this rotation of it is not under way."""
        with _translated("the secret"):
            found = aws.call("secretsmanager", "DescribeSecret", SecretId=secret_id)
        prefix = Settings.from_env().connection_prefix
        stages = found.get("VersionIdsToStages", {})
        labels = stages.get(version, ())
        if not found["Name"].startswith(prefix):
            raise InvalidInputError(Fault("SecretId", f"is no connection's: its name does not begin with {prefix}"))
        if not found.get("RotationEnabled"):
            raise InvalidInputError(Fault("SecretId", "is of a secret that is not to be rotated"))
        if _PENDING not in labels and _CURRENT not in labels:
            raise InvalidInputError(Fault("ClientRequestToken", f"is of a version that is not staged {_PENDING}"))
        return cls(found["ARN"], found["Name"].removeprefix(prefix), version, stages, deadline)

    @property
    def is_current(self) -> bool:
        """Whether the new version is the one that is used."""
        return _CURRENT in self.stages[self.version]

    def staged(self, label: str) -> str | None:
        """Return the version that has a label."""
        return next((version for version, labels in self.stages.items() if label in labels), None)

    def current(self) -> Version:
        """Return what is used at this moment."""
        version = self.read(self.staged(_CURRENT))
        if version is None:
            raise ConnectionInvalidError(f"connection {self.name}: the secret has no value")
        return version

    def new(self) -> Version | None:
        """Return what createSecret stored."""
        return self.read(self.version)

    def previous_key(self) -> str | None:
        """Return the API key that was used before the current one."""
        with suppress(ConnectionInvalidError):
            if version := self.read(self.staged(_PREVIOUS)):
                return version.connection.api_key_sid
        return None

    def read(self, version: str | None) -> Version | None:
        """Return a version; None where it has no value yet."""
        if version is None:
            return None
        with _translated(f"connection {self.name}"):
            try:
                answer = aws.call("secretsmanager", "GetSecretValue", SecretId=self.arn, VersionId=version)
            except aws.RefusedError as error:
                if error.code == "ResourceNotFoundException":
                    return None
                raise
        if "SecretBinary" in answer:
            raise ConnectionInvalidError(f"connection {self.name}: the secret is binary, and must be text")
        text = answer.get("SecretString")
        if text is None:
            return None
        return Version(connection=parse_secret(self.name, text), fields=msgspec.json.decode(text))

    def store(self, fields: Mapping[str, Any]) -> None:
        """Make it the new version's value."""
        text = msgspec.json.encode(fields).decode()
        with _translated(f"connection {self.name}"):
            aws.call(
                "secretsmanager",
                "PutSecretValue",
                SecretId=self.arn,
                ClientRequestToken=self.version,
                SecretString=text,
                VersionStages=[_PENDING],
            )

    def make_current(self) -> None:
        """Let the new version be the one that is used."""
        self._label(VersionStage=_CURRENT, MoveToVersionId=self.version, RemoveFromVersionId=self.staged(_CURRENT))

    def end(self) -> None:
        """Take AWSPENDING off: once AWSCURRENT is elsewhere, no other rotation would begin."""
        if _PENDING in Secret.of(self.arn, self.version, self.deadline).stages[self.version]:
            self._label(VersionStage=_PENDING, RemoveFromVersionId=self.version)

    def twilio(self, credentials: Connection) -> Twilio:
        """Return a client that uses these credentials."""
        return Twilio(self.name, self.deadline, credentials=credentials)

    def _label(self, **parameters: Any) -> None:
        with _translated(f"connection {self.name}"):
            aws.call("secretsmanager", "UpdateSecretVersionStage", SecretId=self.arn, **parameters)


@contextmanager
def _translated(subject: str) -> Iterator[None]:
    """Make AWS's refusals the connector's errors."""
    try:
        yield
    except aws.UnavailableError as error:
        raise ServiceUnavailableError(f"Secrets Manager does not answer ({error.code})") from None
    except aws.RefusedError as error:
        raise ConnectionNotFoundError(
            f"{subject}: there is no such secret, or the function may not rotate it ({error.code})"
        ) from None


def _take(step: str, secret: Secret) -> None:
    """Take a step; there is nothing to set, since Twilio makes the credentials."""
    match step:
        case "createSecret" if not secret.is_current:
            _create(secret)
        case "testSecret" if not secret.is_current:
            _test(secret)
        case "finishSecret":
            _finish(secret)


def _create(secret: Secret) -> None:
    """Let Twilio make new credentials, and store them beside everything else that the secret has."""
    if secret.new():
        return
    current = secret.current()
    make = _make_key if current.connection.api_key_sid else _make_token
    secret.store(current.fields | make(secret, current.connection))


def _test(secret: Secret) -> None:
    """Read with the new credentials.

    A rotation that is set up for later begins with this step alone, and a version that is empty
    (https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_RotateSecret.html): it tests those in use.
    """
    version = secret.new() or secret.current()
    _read_messages(secret.twilio(version.connection))


def _finish(secret: Secret) -> None:
    """Let everyone use the new credentials, and only then let the old token end."""
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
    secret.end()


def _check_unchanged(secret: Secret, new: Version) -> None:
    """Refuse to undo what somebody changed in the secret since createSecret."""
    current = secret.current()
    rotated = _KEY_FIELDS if current.connection.api_key_sid else _TOKEN_FIELDS
    rest, new_rest = (
        {name: value for name, value in fields.items() if name not in rotated}
        for fields in (current.fields, new.fields)
    )
    is_next = bool(new.connection.api_key_sid) or new.connection.secondary_auth_token == current.connection.auth_token
    if rest != new_rest or not is_next:
        raise ConnectionInvalidError(
            f"connection {secret.name}: the secret was changed while it was rotated; take {_PENDING} off its version, "
            "and rotate it again"
        )


# ---------------------------------------------------------------- API KEYS


def _make_key(secret: Secret, connection: Connection) -> dict[str, str]:
    """Delete the keys that nothing uses any more, and make a new one.

    The key in use stays valid, so that whoever holds it in memory goes on: it is the next rotation that deletes it.
    """
    owner = connection
    if connection.auth_token:
        owner = replace(connection, api_key_sid=None, api_key_secret=None)
    twilio = secret.twilio(owner)
    # Of the secret, not of the version: what an earlier rotation left that was given up is found too.
    name = f"twilio-connector {hashlib.sha256(secret.arn.encode()).hexdigest()[:32]}"
    previous = secret.previous_key()
    try:
        keys = list(_keys(twilio))
    except (TwilioAuthenticationError, TwilioRejectedError) as error:
        # The API makes standard keys, which may not touch keys
        # (https://www.twilio.com/docs/iam/api-keys/key-resource-v1).
        raise ConnectionInvalidError(
            f"connection {secret.name}: only the account's auth_token and a main key may make API keys, and Twilio "
            "refused what the secret has: store the right auth_token in it",
            twilio=error.twilio,
        ) from None
    for key in keys:
        if key.sid != connection.api_key_sid and (key.friendly_name == name or key.sid == previous):
            with suppress(TwilioNotFoundError):
                twilio.request("DELETE", f"Keys/{key.sid}.json")
    made = twilio.request("POST", "Keys.json", form={"FriendlyName": name}, proof=_NewKey).data
    return {"api_key_sid": made["sid"], "api_key_secret": made["secret"]}


def _keys(twilio: Twilio) -> Iterator[_Key]:
    """Yield all keys of the account; of a page's link to the next one only the query counts."""
    query = {"PageSize": "1000"}
    while query:
        page = msgspec.convert(twilio.request("GET", "Keys.json", query=query, proof=_Keys).data, _Keys)
        yield from page.keys
        query = dict(parse_qsl(urlsplit(page.next_page_uri or "").query))


# ---------------------------------------------------------------- AUTH TOKENS


def _make_token(secret: Secret, connection: Connection) -> dict[str, str | None]:
    """Make the secondary token; until it is promoted, Twilio takes both for requests."""
    twilio = secret.twilio(connection)
    try:
        token = _secondary(twilio)
    except TwilioRejectedError as error:
        # There is one already (70002, as it seems: Twilio does not document it), or it is refused again.
        _clear(secret, connection, error)
        token = _secondary(twilio)
    return {"auth_token": token, "secondary_auth_token": connection.auth_token}


def _secondary(twilio: Twilio) -> str:
    token: str = twilio.request("POST", _SECONDARY, host=_ACCOUNTS_HOST, proof=_SecondaryToken).data[
        "secondary_auth_token"
    ]
    return token


def _clear(secret: Secret, connection: Connection, refused: TwilioRejectedError) -> None:
    """Let the account have no secondary token, unless it may be in use.

    Nobody can read it any more, but for those who hold it: an attempt before this one made it, or a person did. It is
    deleted only where Twilio says that the connection's token is the primary one, and the other one that the
    connection has is none.
    """
    twilio = secret.twilio(connection)
    primary = twilio.request("GET", f"/Accounts/{connection.account_sid}.json", proof=_PrimaryToken).data["auth_token"]
    if primary == connection.auth_token and not _is_valid_old(secret, connection):
        with suppress(TwilioNotFoundError):
            twilio.request("DELETE", _SECONDARY, host=_ACCOUNTS_HOST)
    elif primary == connection.secondary_auth_token != connection.auth_token:
        _promote(secret, connection)  # which the rotation before this one did not come to
    else:
        raise TwilioRejectedError(
            f"connection {secret.name}: the account has a secondary auth token that may be in use; "
            "promote or delete it, store the one that is left as auth_token, and rotate again",
            twilio=refused.twilio,
        )


def _promote(secret: Secret, connection: Connection) -> None:
    """Make the connection's token the primary one, unless it is: then the old one is none any more."""
    if not _is_valid_old(secret, connection):
        return
    if secret.deadline.remaining() < PROMOTE_AFTER + _PROMOTE_SECONDS:
        raise ServiceUnavailableError("too little time was left to promote the new auth token; it is done next time")
    time.sleep(PROMOTE_AFTER)
    with suppress(TwilioNotFoundError):  # no secondary token: it is promoted
        twilio = secret.twilio(connection)
        twilio.request("POST", _PROMOTE, host=_ACCOUNTS_HOST, proof=_PrimaryToken)


def _is_valid_old(secret: Secret, connection: Connection) -> bool:
    """Tell whether Twilio still takes the connection's other token, which was the primary one."""
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
    twilio.request("GET", "Messages.json", query={"PageSize": "1"}, proof=_Messages)
