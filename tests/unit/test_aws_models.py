"""The fake AWS checks each call against botocore's service models, and fails the tests of invalid calls."""

from typing import Any

import pytest

from tests.aws_models import MOST_ITEM_BYTES, faults, item_bytes
from tests.aws_wire import AwsWire

ARN = "arn:aws:lambda:us-east-1:123456789012:function:reply:live"
ENTRY = {"Source": "twilio", "DetailType": "Webhook Received", "Detail": "{}", "EventBusName": "bus"}
ITEM = {"TableName": "ledger", "Item": {"id": {"S": "key"}}}


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("PutEvents", {"Entries": [ENTRY]}),
        ("PutItem", ITEM),
        ("Invoke", {"FunctionName": ARN, "Payload": b"{}"}),
    ],
    ids=["PutEvents", "PutItem", "Invoke"],
)
def test_what_aws_takes(operation: str, parameters: dict[str, Any]) -> None:
    """A call that conforms to its service model has no fault."""
    assert [] == faults(operation, parameters)


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("PutItem", {"TableName": "ledger"}),
        ("PutItem", ITEM | {"Unknown": 1}),
        ("PutItem", {"TableName": 1, "Item": {}}),
        ("PutItem", ITEM | {"ReturnValuesOnConditionCheckFailure": "OLD", "ConditionExpression": "x = :y"}),
        ("PutItem", ITEM | {"ReturnValuesOnConditionCheckFailure": "ALL_OLD"}),
        ("PutItem", {"TableName": "ledger", "Item": {"id": {"S": "x" * MOST_ITEM_BYTES}}}),
        ("PutEvents", {"Entries": []}),
        ("PutEvents", {"Entries": [ENTRY] * 11}),
        ("PutEvents", {"Entries": [ENTRY | {"EventBusName": "a bus"}]}),
        ("Invoke", {"FunctionName": "a function"}),
    ],
    ids=["missing", "unknown", "type", "enum", "condition", "size", "min", "max", "pattern", "invoke"],
)
def test_what_aws_refuses(operation: str, parameters: dict[str, Any]) -> None:
    """A call with one invalid parameter has exactly one fault.

    The parameter is missing, unknown, of the wrong type, out of bounds, not in the enum, or without its condition.
    """
    assert 1 == len(faults(operation, parameters))


def test_a_refused_call_fails_its_test() -> None:
    """A call that AWS would refuse fails the test, regardless of how the function handles the answer."""
    with pytest.raises(AssertionError), AwsWire() as wire:
        wire.answer("SendMessage", {"QueueUrl": "queue"})


def test_size_of_an_item() -> None:
    """An item's size includes its names and its values."""
    assert len("id") + len('{"S": "é"}'.encode()) == item_bytes({"id": {"S": "é"}})
