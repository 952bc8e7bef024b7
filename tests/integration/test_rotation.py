"""Credentials are rotated by hand while messages are sent and webhooks come: nothing is refused for that."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local import stack as local_stack
from tests.faults import FaultServer
from tests.integration.cloud import Cloud
from tests.mutants import send
from tests.torture.rotation import Twilio, Work, under_load

CALLS = 160
EVERY = 3
"""Seconds from one rotation to the next. The same token again needs 30: so often a container reads it anew."""


class Owner:
    """Somebody who rotates what two connections hold."""

    def __init__(self, cloud: Cloud, twilio: Twilio) -> None:
        """Store a connection with an API key, and one with an auth token."""
        self._cloud = cloud
        self._twilio = twilio
        self._manager = cloud.client("secretsmanager")
        self.key, self.token = f"key-{uuid.uuid4().hex}", f"token-{uuid.uuid4().hex}"
        account = {"account_sid": twilio.account_sid, "auth_token": twilio.primary, "default_from": "+15551234567"}
        [(sid, secret)] = twilio.keys
        api_key = {"api_key_sid": sid, "api_key_secret": secret}
        for name, more in ((self.key, api_key), (self.token, {})):
            self._manager.create_secret(Name=f"twilio/{name}", SecretString=json.dumps(account | more))

    def _store(self, name: str, **changed: str | None) -> None:
        secret = json.loads(self._manager.get_secret_value(SecretId=f"twilio/{name}")["SecretString"])
        whole = {field: value for field, value in (secret | changed).items() if value}
        self._manager.put_secret_value(SecretId=f"twilio/{name}", SecretString=json.dumps(whole))

    def rotate_key(self) -> None:
        """Make a new API key, store it, delete the old one."""
        [old] = self._twilio.keys
        new = (f"SK{uuid.uuid4().hex}", uuid.uuid4().hex)
        self._twilio.keys.add(new)
        self._store(self.key, api_key_sid=new[0], api_key_secret=new[1])
        self._twilio.keys.remove(old)

    def rotate_token(self) -> None:
        """Make a secondary token, let the connections have both, the new one first; then promote it."""
        old, new = self._twilio.primary, uuid.uuid4().hex
        self._twilio.secondary = new
        for name in (self.key, self.token):
            self._store(name, auth_token=new, secondary_auth_token=old)
        self._twilio.promote()
        for name in (self.key, self.token):
            self._store(name, secondary_auth_token=None)

    def sends(self, connection: str) -> Work:
        """Return what sends a message, and says why that failed."""

        def work() -> str | None:
            given = {"to": "+15005550006", "message": "Rotation", "connection": connection}
            answer: dict[str, Any] = self._cloud.invoke("SendSms", given)
            return answer.get("errorType")

        return work

    def delivers(self, connection: str) -> Work:
        """Return what delivers a message that Twilio signs as it does now, and says how that was answered."""

        def work() -> str | None:
            target = self._cloud.target(connection, self._twilio.primary)
            status = send(self._cloud.inbound(str(uuid.uuid4())).request(target), target).status
            return None if status == 200 else str(status)

        return work


@pytest.fixture
def twilio(cloud: Cloud, folder: Path, twilio_relay: FaultServer) -> Iterator[Twilio]:
    """Put a Twilio in the emulator's place whose credentials can change."""
    account_sid = cloud.info["twilio"]["account_sid"]
    with Twilio(account_sid, uuid.uuid4().hex, (f"SK{uuid.uuid4().hex}", uuid.uuid4().hex)) as server:
        local_stack.redeploy(folder, parameters={"TwilioApiUrl": server.url})
        yield server
    local_stack.redeploy(folder, parameters={"TwilioApiUrl": twilio_relay.url})


def test_nothing_is_refused_while_credentials_are_rotated(cloud: Cloud, twilio: Twilio) -> None:
    """Sends with a key and with a token, and webhooks of both connections, go through before, while and after."""
    owner = Owner(cloud, twilio)
    work = [make(name) for make in (owner.sends, owner.delivers) for name in (owner.key, owner.token)]

    outcomes = under_load(work * (CALLS // 4), [owner.rotate_key, owner.rotate_token], every=EVERY, callers=4)

    assert {0, 1, 2} == {outcome.rotations for outcome in outcomes}
    assert [] == [outcome for outcome in outcomes if outcome.refused]
