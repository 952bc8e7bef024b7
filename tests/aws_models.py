"""Checks of a test's calls to AWS against botocore's service models."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import botocore.session
from botocore.model import ListShape, MapShape, OperationModel, ServiceModel, Shape, StringShape, StructureShape
from botocore.validate import ParamValidator

SERVICES = ("dynamodb", "events", "lambda", "secretsmanager", "sqs", "ssm")
"""The services that the functions call."""

_CONDITION = "ConditionExpression"
MOST_ITEM_BYTES = 400 * 1024
"""DynamoDB's limit: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html"""


@cache
def _models() -> list[ServiceModel]:
    session = botocore.session.Session()
    return [session.get_service_model(service) for service in SERVICES]


@cache
def operation(name: str) -> OperationModel:
    """Return the model of an operation, which exactly one of the services must have."""
    (model,) = [model for model in _models() if name in model.operation_names]
    found: OperationModel = model.operation_model(name)
    return found


def faults(name: str, parameters: Mapping[str, Any]) -> list[str]:
    """Return the errors in a call's parameters: those that botocore validates, and those that only AWS would."""
    shape = operation(name).input_shape
    report = ParamValidator().validate(parameters, shape)
    found = [report.generate_report()] if report.has_errors() else list(_beyond(parameters, shape, name))
    if not found:
        puts = (
            [parameters] if name == "PutItem" else [each.get("Put", {}) for each in parameters.get("TransactItems", [])]
        )
        sizes = [item_bytes(put["Item"]) for put in puts if "Item" in put]
        found += [f"{name}: an item of {size} bytes" for size in sizes if size > MOST_ITEM_BYTES]
        asks = "ReturnValuesOnConditionCheckFailure"
        found += [f"{name}: {asks} without a condition" for put in puts if asks in put and _CONDITION not in put]
    return found


def item_bytes(item: Mapping[str, Any]) -> int:
    """Return an item's size, with values counted as JSON, so that it is at least the size that DynamoDB counts."""
    return sum(len(name.encode()) + len(json.dumps(value, ensure_ascii=False).encode()) for name, value in item.items())


def _beyond(value: Any, shape: Shape, place: str) -> Iterator[str]:
    """Yield violations of enums, patterns and upper bounds, which botocore does not validate."""
    match shape:
        case StructureShape():
            for name, each in value.items():
                yield from _beyond(each, shape.members[name], f"{place}.{name}")
        case ListShape():
            for each in value:
                yield from _beyond(each, shape.member, f"{place}[]")
        case MapShape():
            for name, each in value.items():
                yield from _beyond(name, shape.key, f"{place}.{name}")
                yield from _beyond(each, shape.value, f"{place}.{name}")
        case StringShape() if shape.enum and value not in shape.enum:
            yield f"{place}: is none of the values that the service knows"
    metadata = shape.metadata
    if isinstance(value, str) and "pattern" in metadata and not re.fullmatch(metadata["pattern"], value):
        yield f"{place}: does not match {metadata['pattern']}"
    if "max" in metadata and (len(value) if isinstance(value, str | list | dict) else value) > metadata["max"]:
        yield f"{place}: is more than {metadata['max']}"
