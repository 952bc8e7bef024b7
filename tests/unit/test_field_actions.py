"""Inputs that people have really tried: each one ends as its file in tests/data/field/actions says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import send_sms
from twilio_connector import errors

from tests.conftest import ROOT, Context
from tests.faults import FaultServer

ACTIONS = sorted((ROOT / "tests" / "data" / "field" / "actions").glob("*.json"))


def contains(whole: Any, part: Any) -> bool:
    """Return whether an answer has everything that an expected part of it has."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(name in whole and contains(whole[name], part[name]) for name in part)
    return bool(whole == part)


@pytest.mark.parametrize("path", ACTIONS, ids=lambda path: path.stem)
def test_an_input_of_the_field_ends_as_expected(
    twilio: FaultServer, monkeypatch: pytest.MonkeyPatch, context: Context, path: Path
) -> None:
    """The answer contains the part that the file expects, and nothing is sent.

    If the file expects an error, its class, fields and words are compared.
    """
    case = json.loads(path.read_text())
    for name, value in case.get("settings", {}).items():
        monkeypatch.setenv(re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper(), value)
    expected = case["expect"]

    if "result" in expected:
        assert contains(send_sms.handler(case["input"], context), expected["result"])
    else:
        with pytest.raises(getattr(errors, expected["error"])) as raised:
            send_sms.handler(case["input"], context)
        assert expected["fields"] == [fault["field"] for fault in raised.value.problem()["errors"]]
        assert expected.get("message_has", "") in str(raised.value)
    assert [] == twilio.requests


def test_there_are_inputs_of_the_field() -> None:
    """The folder has at least five files, so the test above does not run on an empty folder."""
    assert len(ACTIONS) >= 5
