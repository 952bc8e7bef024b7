"""Tests of the reply example with the events that the webhook gives it."""

import json
from datetime import datetime
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import webhook
import yaml

from examples.reply.function import opening_hours
from tests.aws_wire import AwsWire
from tests.conftest import ROOT, Context
from tests.mutants import GENUINE, Target, event_2
from tests.unit.conftest import ACCOUNT_SID, AUTH_TOKEN

FOLDER = ROOT / "examples" / "reply"
ARN = "arn:aws:lambda:us-east-1:123456789012:function:reply"
TARGET = Target("https://hook.example", ACCOUNT_SID, AUTH_TOKEN)
BY_NAME = {each.name: each for each in GENUINE}
TEXT = "Closed & <quiet> ]]> 👍"
CLOSED = ["2026-11-23T07:59:59Z", "2026-11-23T17:00:00Z", "2026-11-22T12:00:00Z", "2026-11-28T12:00:00Z"]
OPEN = ["2026-11-23T08:00:00Z", "2026-11-27T16:59:59Z"]


class Template(yaml.SafeLoader):
    """A YAML loader that reads the tags of CloudFormation's functions."""


Template.add_multi_constructor("!", lambda _, name, node: {name: node.value})
TEMPLATE = yaml.load((FOLDER / "template.yaml").read_text(), Template)  # noqa: S506 a safe loader
FUNCTION = TEMPLATE["Resources"]["ReplyFunction"]["Properties"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the template's variables to their defaults, and the text to one that needs escaping."""
    for name, value in FUNCTION["Environment"]["Variables"].items():
        monkeypatch.setenv(name, str(TEMPLATE["Parameters"][value["Ref"]]["Default"]))
    monkeypatch.setenv("CLOSED_TEXT", TEXT)


def at(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the example's clock to a moment."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return cls.fromisoformat(moment).astimezone(tz)

    monkeypatch.setattr(opening_hours, "datetime", Clock)


@pytest.mark.parametrize("moment", CLOSED)
@pytest.mark.parametrize(("name", "verb"), [("plain", "Message"), ("WhatsApp", "Message"), ("call", "Say")])
def test_what_twilio_is_answered(
    aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, moment: str, name: str, verb: str
) -> None:
    """The webhook gives the function its event, and gives Twilio the function's TwiML: one element with the text."""
    at(moment, monkeypatch)
    monkeypatch.setenv("REPLY_PARAMETER", "reply")
    aws_wire.parameters["reply"] = f"{ARN}\n"
    aws_wire.function = lambda event: ({}, json.dumps(opening_hours.handler(event, None)).encode())
    answer = webhook.handler(event_2(BY_NAME[name].request(TARGET)), Context())
    response = ET.fromstring(answer["body"])  # noqa: S314 our own

    assert (200, "text/xml") == (answer["statusCode"], answer["headers"]["Content-Type"])
    assert ("Response", [(verb, TEXT)]) == (response.tag, [(each.tag, each.text) for each in response])


@pytest.mark.parametrize("moment", OPEN)
def test_nothing_is_replied_while_somebody_is_there(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """The function returns nothing during the opening hours, because people answer then."""
    at(moment, monkeypatch)

    assert opening_hours.handler({"source": "twilio", "detail-type": "Message Received", "detail": {}}, None) is None


def test_template() -> None:
    """The template deploys the file without rights or layers, and with a timeout that the webhook allows."""
    assert "opening_hours.handler" == FUNCTION["Handler"]
    assert (FOLDER / FUNCTION["CodeUri"] / "opening_hours.py").is_file()
    assert 8 >= FUNCTION["Timeout"]
    assert {"Policies", "Role", "Layers"}.isdisjoint(FUNCTION)
