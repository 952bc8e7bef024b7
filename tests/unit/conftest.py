"""Fixtures that all tests in one process share: AWS and Twilio are servers on loopback."""

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from twilio_connector import clock as connector_clock
from twilio_connector import http, telemetry
from twilio_connector.api import client
from twilio_connector.api.connections import Connections
from twilio_connector.aws import client as aws_client
from twilio_connector.rotation import secret

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
    """Let the functions trust the authority that signed the fault server's valid certificate."""
    http._AUTHORITIES.join()
    http.TLS.load_verify_locations(ca_file())


@contextmanager
def aws(patch: pytest.MonkeyPatch) -> Iterator[AwsWire]:
    """Replace AWS with a fake that has the connection `default`, and clear the caches, as in a new container."""
    with AwsWire() as wire:
        wire.secrets["twilio/default"] = json.dumps(API_KEY)
        patch.setenv("AWS_ENDPOINT_URL", wire.url)
        patch.setattr(client, "CONNECTIONS", Connections())
        secret._manager.cache_clear()
        yield wire


@pytest.fixture
def aws_wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsWire]:
    """Return a fake AWS for this test only."""
    with aws(monkeypatch) as wire:
        yield wire


@pytest.fixture(autouse=True)
def _no_call() -> None:
    """Clear the call's fields in the log, as before an invocation: some tests call code that runs within one."""
    telemetry.resume({})


class StandardOutput:
    """The standard output that pytest captures while a test runs."""

    def write(self, text: str) -> None:
        """Write to the captured standard output."""
        sys.stdout.write(text)

    def flush(self) -> None:
        """Flush the captured standard output."""
        sys.stdout.flush()


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Log:
    """Return a function that returns the log lines since its last call."""
    monkeypatch.setattr(telemetry.logger.registered_handler, "stream", StandardOutput())
    return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Return a function that returns all log lines so far."""
    stream = StringIO()
    monkeypatch.setattr(telemetry.logger.registered_handler, "stream", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def counted() -> Iterator[Callable[[str], float]]:
    """Return a function that returns how often a metric was counted in this test."""
    telemetry.metrics.metric_set.clear()
    yield lambda name: sum(telemetry.metrics.metric_set.get(name, {}).get("Value", []))
    telemetry.metrics.metric_set.clear()


@pytest.fixture
def twilio(monkeypatch: pytest.MonkeyPatch, aws_wire: AwsWire) -> Iterator[FaultServer]:  # noqa: ARG001 its connections
    """Return a fake Twilio that fails as a test requests; it replaces all of Twilio's hosts."""
    with FaultServer() as server:
        monkeypatch.setenv("TWILIO_API_URL", server.url)
        yield server


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests and look-ups start with half a second left, so that tests of deadlines are quick."""
    monkeypatch.setattr(client, "_LEAST_SECONDS_TO_CHANGE", 0.5)
    monkeypatch.setattr(aws_client, "SECONDS", 0)


class Clock:
    """The connector's clock, which advances only when a test advances it."""

    def __init__(self) -> None:
        """Start at the current time."""
        self.now = time.time()
        """Seconds since the epoch."""
        self.elapsed = 1000.0
        """Seconds of the monotonic clock."""

    @property
    def date(self) -> datetime:
        """The clock's time as a date."""
        return datetime.fromtimestamp(self.now, UTC)

    def ago(self, **units: float) -> datetime:
        """Return a date that lies so many units before the clock's time."""
        return self.date - timedelta(**units)

    def go_on(self, seconds: float) -> None:
        """Advance the clock by so many seconds."""
        self.now += seconds
        self.elapsed += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the connector's clock with one that the test sets."""
    clock = Clock()
    monkeypatch.setattr(connector_clock, "now", lambda: clock.now)
    monkeypatch.setattr(connector_clock, "monotonic", lambda: clock.elapsed)
    return clock


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the connector's waits instead of waiting; jitter is always its maximum."""
    waited: list[float] = []
    monkeypatch.setattr(connector_clock, "sleep", waited.append)
    monkeypatch.setattr(random.SystemRandom, "uniform", lambda _, __, most: most)
    return waited
