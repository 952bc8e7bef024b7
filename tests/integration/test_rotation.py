"""The stack's function rotates credentials while messages are sent and webhooks arrive, and none is refused."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from local import stack as local_stack
from tests.faults import Credentials, FaultServer, Key
from tests.integration.cloud import Cloud
from tests.mutants import send

CALLS = 2000
ROTATIONS = 2
EVERY = 60
"""Seconds from one rotation to the next."""
STEPS = ("createSecret", "setSecret", "testSecret", "finishSecret")

type Work = Callable[[], str | None]
"""A function that makes one call, and returns why it was refused, or None if it succeeded."""


class Outcome(NamedTuple):
    """The outcome of one call, and the number of rotations that had ended when it began."""

    rotations: int
    refused: str | None


class Connection:
    """A connection, and its account at Twilio."""

    def __init__(self, cloud: Cloud, name: str, credentials: Credentials) -> None:
        """Store the connection, with the account's API key if there is one, and turn on its rotation."""
        self._cloud, self.name, self.credentials = cloud, f"{name}-{uuid.uuid4().hex}", credentials
        self._manager = cloud.client("secretsmanager")
        fields = {"account_sid": credentials.account_sid, "auth_token": credentials.primary}
        for sid, key in credentials.keys.items():
            fields |= {"api_key_sid": sid, "api_key_secret": key.secret}
        secret = json.dumps(fields | {"default_from": "+15551234567"})
        self.arn = self._manager.create_secret(Name=f"twilio/{self.name}", SecretString=secret)["ARN"]
        # The emulator notes that the secret is to be rotated, but does not invoke the function.
        self._manager.rotate_secret(SecretId=self.arn, RotationLambdaARN=self._function, RotationRules={})

    @property
    def _function(self) -> str:
        return self._cloud.outputs["RotateConnectionFunctionArn"]

    def rotate(self) -> None:
        """Rotate the credentials as Secrets Manager does, step by step."""
        version = str(uuid.uuid4())
        self._manager.put_secret_value(SecretId=self.arn, ClientRequestToken=version, VersionStages=["AWSPENDING"])
        for step in STEPS:
            event = {"Step": step, "SecretId": self.arn, "ClientRequestToken": version}
            answer = self._cloud.client("lambda").invoke(FunctionName=self._function, Payload=json.dumps(event))
            assert "null" == answer["Payload"].read().decode(), step

    def sends(self) -> str | None:
        """Send a message, and return the error's class, or None if it was sent."""
        given = {"to": "+15005550006", "message": "Rotation", "connection": self.name}
        answer: dict[str, Any] = self._cloud.invoke("SendSms", given)
        return answer.get("errorType")

    def delivers(self) -> str | None:
        """Deliver a message signed with the current primary token, and return the status, or None for 200."""
        target = self._cloud.target(self.name, self.credentials.primary)
        target = target._replace(account_sid=self.credentials.account_sid)
        status = send(self._cloud.inbound(str(uuid.uuid4())).request(target), target).status
        return None if status == 200 else str(status)


@pytest.fixture
def connections(cloud: Cloud, folder: Path, twilio_relay: FaultServer) -> Iterator[list[Connection]]:
    """Replace the emulator with a Twilio that checks credentials: one account has an API key, and one only a token."""
    key = {"SK" + "1" * 32: Key("not-a-secret")}
    accounts = [Credentials("AC" + "1" * 32, "first-token-1", key), Credentials("AC" + "2" * 32, "first-token-2", {})]
    with FaultServer() as server:
        server.check(*accounts)
        local_stack.redeploy(folder, parameters={"TwilioApiUrl": server.url})
        yield [Connection(cloud, name, account) for name, account in zip(("key", "token"), accounts, strict=True)]
    local_stack.redeploy(folder, parameters={"TwilioApiUrl": twilio_relay.url})


@pytest.mark.timeout(EVERY * (ROTATIONS + 1) + 120)
def test_nothing_is_refused_while_credentials_are_rotated(connections: list[Connection]) -> None:
    """Sends with a key and with a token, and webhooks of both accounts, succeed before, during and after rotations."""
    before = [(each.credentials.primary, set(each.credentials.keys)) for each in connections]
    work = [make for each in connections for make in (each.sends, each.delivers)]

    outcomes = under_load(work * (CALLS // len(work)), [each.rotate for each in connections])

    assert set(range(ROTATIONS + 1)) == {outcome.rotations for outcome in outcomes}
    assert [] == [outcome for outcome in outcomes if outcome.refused]
    (_, old_keys), (old_token, _) = before
    by_key, by_token = (each.credentials for each in connections)
    assert (2, 0) == (len(by_key.keys), len(by_key.keys.keys() & old_keys))  # the key in use, and the one before it
    assert by_token.primary != old_token
    assert by_token.secondary is None


def under_load(work: Sequence[Work], rotate: Sequence[Callable[[], None]]) -> list[Outcome]:
    """Make all calls, spread evenly over the time of the rotations, and return their outcomes.

    In each rotation, all functions of `rotate` run at the same time. A rotation begins only after its share of the
    calls has begun, even if they are slow.
    """
    pause = EVERY * (ROTATIONS + 1) / len(work)
    share = len(work) // (ROTATIONS + 1)
    began = time.monotonic()
    never = threading.Event()
    begun = [threading.Event() for _ in work]
    over: list[float] = []

    def wait_until(seconds: float) -> None:
        never.wait(began + seconds - time.monotonic())

    def one(number: int) -> Outcome:
        wait_until(number * pause)
        begun[number].set()
        rotated = len(over)
        return Outcome(rotated, work[number]())

    def rotate_all() -> None:
        for number in range(1, ROTATIONS + 1):
            wait_until(number * EVERY)
            begun[number * share].wait()
            for rotating in [rotators.submit(each) for each in rotate]:
                rotating.result()
            over.append(time.monotonic())

    with ThreadPoolExecutor(16) as pool, ThreadPoolExecutor(len(rotate) + 1) as rotators:
        rotating = rotators.submit(rotate_all)
        outcomes = list(pool.map(one, range(len(work))))
        rotating.result()
    return outcomes
