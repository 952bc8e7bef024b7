"""Rotate a connection's credentials: its API key, or its auth token if it has no key.

Secrets Manager calls it step by step. After a failure it starts at the first step again, with the same version
(https://docs.aws.amazon.com/secretsmanager/latest/userguide/rotate-secrets_lambda-functions.html). So each step
checks what the steps before it did, and AWSCURRENT always holds credentials that work.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct
from twilio_connector import telemetry
from twilio_connector.errors import Fault, InvalidInputError
from twilio_connector.invocation.function import Invocation, lambda_function
from twilio_connector.rotation import steps
from twilio_connector.rotation.secret import Secret

_EVENT_FIELDS = {"step": "Step", "secret_id": "SecretId", "version": "ClientRequestToken"}


class Rotation(Struct, frozen=True, rename=_EVENT_FIELDS):
    """The event that Secrets Manager sends."""

    step: Literal["createSecret", "setSecret", "testSecret", "finishSecret"]
    secret_id: str
    version: str


@lambda_function
def handler(event: Any, invocation: Invocation) -> None:
    """Take one step; raises the ConnectorError that says why it could not be taken."""
    rotation = _read_event(event)
    secret = Secret.of(rotation.secret_id, rotation.version, invocation.deadline)
    telemetry.note(connection=secret.name, step=rotation.step)
    _take(rotation.step, secret)
    invocation.outcome = "rotated"


def _read_event(event: Any) -> Rotation:
    try:
        return msgspec.convert(event, Rotation)
    except msgspec.ValidationError:
        raise InvalidInputError(
            Fault("(input)", "must be Secrets Manager's event, with Step, SecretId and ClientRequestToken")
        ) from None


def _take(step: str, secret: Secret) -> None:
    """Take a step. setSecret does nothing, since Twilio itself makes the credentials."""
    match step:
        case "createSecret" if not secret.is_current:
            steps.create(secret)
        case "testSecret" if not secret.is_current:
            steps.test(secret)
        case "finishSecret":
            steps.finish(secret)
