"""A connection's secret while it is rotated: its versions and their labels, in Secrets Manager.

It uses boto3 of Lambda's runtime, which takes long to load. Nobody waits for `rotate_connection`, and no other function
imports this module.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple, Self

import boto3
import msgspec
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from twilio_connector.api.client import Twilio
from twilio_connector.api.connections import Connection, parse_secret
from twilio_connector.aws import client
from twilio_connector.deadline import Deadline
from twilio_connector.errors import (
    ConnectionInvalidError,
    ConnectionNotFoundError,
    Fault,
    InvalidInputError,
    ServiceUnavailableError,
)
from twilio_connector.settings import Settings

_CURRENT, PENDING, _PREVIOUS = "AWSCURRENT", "AWSPENDING", "AWSPREVIOUS"


class Version(NamedTuple):
    """A version of the secret: all its fields, and the connection that they make."""

    fields: dict[str, Any]
    connection: Connection


class Secret(NamedTuple):
    """A connection's secret. `version` is the new version's id; `stages` has the labels of each version."""

    arn: str
    name: str
    version: str
    stages: Mapping[str, Sequence[str]]
    deadline: Deadline

    @classmethod
    def of(cls, secret_id: str, version: str, deadline: Deadline) -> Self:
        """Return the secret; raises InvalidInputError if this rotation is not in progress."""
        with _translated("the secret"):
            found = _manager().describe_secret(SecretId=secret_id)
        prefix = Settings.from_env().connection_prefix
        stages = found.get("VersionIdsToStages", {})
        labels = stages.get(version, ())
        if not found["Name"].startswith(prefix):
            raise InvalidInputError(Fault("SecretId", f"is not a connection: its name does not begin with {prefix}"))
        if not found.get("RotationEnabled"):
            raise InvalidInputError(Fault("SecretId", "names a secret whose rotation is not enabled"))
        if PENDING not in labels and _CURRENT not in labels:
            raise InvalidInputError(Fault("ClientRequestToken", f"names a version without the label {PENDING}"))
        return cls(found["ARN"], found["Name"].removeprefix(prefix), version, stages, deadline)

    @property
    def is_current(self) -> bool:
        """Whether the new version is in use."""
        return _CURRENT in self.stages[self.version]

    def staged(self, label: str) -> str | None:
        """Return the version that has a label."""
        return next((version for version, labels in self.stages.items() if label in labels), None)

    def current(self) -> Version:
        """Return the version in use."""
        version = self.read(self.staged(_CURRENT))
        if version is None:
            raise ConnectionInvalidError(f"connection {self.name}: the secret has no value")
        return version

    def new(self) -> Version | None:
        """Return the version that createSecret stored, or None before that."""
        return self.read(self.version)

    def previous_key(self) -> str | None:
        """Return the API key that was used before the current one."""
        with suppress(ConnectionInvalidError):
            if version := self.read(self.staged(_PREVIOUS)):
                return version.connection.api_key_sid
        return None

    def read(self, version: str | None) -> Version | None:
        """Return a version; None if it has no value yet."""
        if version is None:
            return None
        with _translated(f"connection {self.name}"):
            try:
                answer = _manager().get_secret_value(SecretId=self.arn, VersionId=version)
            except _manager().exceptions.ResourceNotFoundException:
                return None
        if "SecretBinary" in answer:
            raise ConnectionInvalidError(f"connection {self.name}: the secret is binary, and must be text")
        text = answer.get("SecretString")
        if text is None:
            return None
        return Version(connection=parse_secret(self.name, text), fields=msgspec.json.decode(text))

    def store(self, fields: Mapping[str, Any]) -> None:
        """Store these fields as the new version's value."""
        text = msgspec.json.encode(fields).decode()
        with _translated(f"connection {self.name}"):
            _manager().put_secret_value(
                SecretId=self.arn, ClientRequestToken=self.version, SecretString=text, VersionStages=[PENDING]
            )

    def make_current(self) -> None:
        """Move AWSCURRENT to the new version, which all functions use from then on."""
        self._label(VersionStage=_CURRENT, MoveToVersionId=self.version, RemoveFromVersionId=self.staged(_CURRENT))

    def unstage(self) -> None:
        """Take AWSPENDING off the new version. While it stays there without AWSCURRENT, no other rotation begins."""
        if PENDING in Secret.of(self.arn, self.version, self.deadline).stages[self.version]:
            self._label(VersionStage=PENDING, RemoveFromVersionId=self.version)

    def twilio(self, credentials: Connection) -> Twilio:
        """Return a client that uses these credentials."""
        return Twilio(self.name, self.deadline, credentials=credentials)

    def _label(self, **parameters: Any) -> None:
        with _translated(f"connection {self.name}"):
            _manager().update_secret_version_stage(SecretId=self.arn, **parameters)


@cache
def _manager() -> Any:
    """Return the client of Secrets Manager."""
    retries = {"mode": "standard", "total_max_attempts": 2}
    config = Config(connect_timeout=1, read_timeout=3, retries=retries)
    return boto3.client("secretsmanager", region_name=os.environ["AWS_REGION"], config=config)


@contextmanager
def _translated(subject: str) -> Iterator[None]:
    """Raise the connector's errors for AWS's errors."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if not client.is_transient(error.response["ResponseMetadata"]["HTTPStatusCode"], code):
            raise ConnectionNotFoundError(
                f"{subject}: there is no such secret, or the function may not rotate it ({code})"
            ) from None
        raise ServiceUnavailableError(f"Secrets Manager does not answer ({code})") from None
    except BotoCoreError as error:
        raise ServiceUnavailableError(f"Secrets Manager does not answer ({type(error).__name__})") from None
