"""Tests of the measurement of sends whose answer is lost."""

import json
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.aws_wire import AwsWire
from tests.chaos.lost import SENDS, Twilio, how, measure
from tests.faults import AwsProxy
from tests.unit.conftest import API_KEY


@pytest.fixture
def table(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Return the lines of the table for 40 sends."""
    aws_wire.secrets["twilio/default"] = json.dumps({name: API_KEY[name] for name in API_KEY if name != "auth_token"})
    with AwsProxy(aws_wire.url) as proxy, Twilio() as twilio:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("TWILIO_API_URL", twilio.url)
        yield list(measure(proxy, twilio, 40, 1))


def test_lost() -> None:
    """One answer in 20 is lost. Of the lost answers, one in ten hangs, and the others are reset."""
    assert {None: 950, "reset_after_read": 45, "hang": 5} == dict(Counter(how(number) for number in range(SENDS)))


def test_table(table: list[str]) -> None:
    """The table separates received answers from lost ones, and counts every request."""
    assert ["answer came", "answer lost: reset_after_read"] == [line[:38].strip() for line in table[:2]]
    assert "sent 38" in table[0]
    assert table[2].startswith("requests of sends")
    assert any("Twilio POST 40" in line for line in table)
