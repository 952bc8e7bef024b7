"""The schemas of the events on the bus, and the validation of events against them."""

import json
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from tests.conftest import ROOT

FOLDER = ROOT / "docs" / "schemas"
SCHEMAS: dict[str, Any] = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
"""All schemas, by their file names without the suffix."""
DETAIL_TYPES: dict[str, Any] = {schema["title"]: schema for name, schema in SCHEMAS.items() if name != "common"}

_REGISTRY: Registry[Any] = Registry().with_resources(
    (schema["$id"], DRAFT202012.create_resource(schema)) for schema in SCHEMAS.values()
)


_VALIDATORS = {kind: Draft202012Validator(schema, registry=_REGISTRY) for kind, schema in DETAIL_TYPES.items()}
"""One validator per detail-type; each caches the schemas that it references."""


def validate(event: dict[str, Any]) -> None:
    """Raise jsonschema's ValidationError if an event violates its schema, or KeyError if its detail-type has none."""
    _VALIDATORS[event["detail-type"]].validate(event)


def delivered(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the event that EventBridge delivers for an entry of PutEvents."""
    return {
        "version": "0",
        "id": "00000000-0000-4000-8000-000000000000",
        "source": entry["Source"],
        "detail-type": entry["DetailType"],
        "account": "123456789012",
        "time": "2026-11-23T12:00:00Z",
        "region": "us-east-1",
        "resources": [],
        "detail": json.loads(entry["Detail"]),
    }
