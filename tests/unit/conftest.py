"""What the tests in one process share: AWS and Twilio as servers on loopback."""

import json
import random
import time
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest
from twilio_connector import aws, client, telemetry, transport
from twilio_connector.connection import Connections

from tests.aws_wire import AwsWire
from tests.faults import FaultServer
from tests.faults.tls import ca_file

ACCOUNT_SID = "AC" + "0" * 32
AUTH_TOKEN = "0" * 32
API_KEY = {
    "account_sid": ACCOUNT_SID,
    "api_key_sid": "SK" + "0" * 32,
    "api_key_secret": "not-a-secret",
    "auth_token": AUTH_TOKEN,
    "default_from": "+15551234567",
}

type Log = Callable[[], list[dict[str, Any]]]


@pytest.fixture(scope="session", autouse=True)
def _authority() -> None:
    """Let the functions know the authority that signed the fault server's good certificate."""
    transport._AUTHORITIES.join()
    transport.TLS.load_verify_locations(ca_file())


@pytest.fixture
def aws_wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsWire]:
    """Return AWS with the connection `default`, as in a container that just started."""
    with AwsWire() as wire:
        wire.secrets["twilio/default"] = json.dumps(API_KEY)
        monkeypatch.setenv("AWS_ENDPOINT_URL", wire.url)
        monkeypatch.setattr(client, "CONNECTIONS", Connections())
        yield wire


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Return what gives the lines of the function's log so far."""
    stream = StringIO()
    monkeypatch.setattr(telemetry.logger.registered_handler, "stream", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def counted() -> Iterator[Callable[[str], float]]:
    """Return what tells how often a metric was counted in this test."""
    telemetry.metrics.metric_set.clear()
    yield lambda name: sum(telemetry.metrics.metric_set.get(name, {}).get("Value", []))
    telemetry.metrics.metric_set.clear()


@pytest.fixture
def twilio(monkeypatch: pytest.MonkeyPatch, aws_wire: AwsWire) -> Iterator[FaultServer]:  # noqa: ARG001 its connections
    """Return a Twilio that fails as told, in the place of all of Twilio's hosts."""
    with FaultServer() as server:
        monkeypatch.setenv("TWILIO_API_URL", server.url)
        yield server


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests and look-ups begin with half a second left, so that a test of deadlines is quick."""
    monkeypatch.setattr(client, "_LEAST_SECONDS_TO_CHANGE", 0.5)
    monkeypatch.setattr(aws, "SECONDS", 0)


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record how long the client waits instead of waiting; jitter is the most it can be."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(random.SystemRandom, "uniform", lambda _, __, most: most)
    return waited
