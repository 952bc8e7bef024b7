"""The deployer's policy allows what CloudFormation does for the template's resources, and no more."""

import copy
import json
from fnmatch import fnmatchcase
from typing import Any

import pytest

from local import LocalError, rights
from tests.conftest import ROOT

DOCUMENT = json.loads(rights.POLICY.read_text())
STATEMENTS = DOCUMENT["Statement"]
ALLOWED = {action for statement in STATEMENTS for action in statement["Action"]}
LONGEST = 10240
"""The maximum length of a role's inline policies, without white space.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html
"""
VALUES = {
    "Region": "ap-southeast-1",
    "AccountId": "1" * 12,
    "StackName": "twilio-connector",
    "ArtifactsBucket": "aws-sam-cli-managed-default-samclisourcebucket-" + "x" * 12,
    "SendTopicArn": "arn:aws:sns:ap-southeast-1:111111111111:" + "x" * 64,
}


def test_file_is_what_the_script_makes() -> None:
    """The policy file is the one that `make policy` writes from the template, the schemas and the reference."""
    assert rights.text(rights.policy(rights.transformed())) == rights.POLICY.read_text()


def with_resource(resource: dict[str, Any]) -> dict[str, Any]:
    """Return the template with one more resource."""
    template = copy.deepcopy(rights.transformed())
    template["Resources"]["New"] = resource
    return template


def test_a_new_type_is_refused() -> None:
    """A new resource type is refused, so that somebody checks which actions its properties need."""
    with pytest.raises(LocalError, match=r"type AWS::SNS::Topic \(New\)"):
        rights.policy(with_resource({"Type": "AWS::SNS::Topic", "Properties": {}}))


@pytest.mark.parametrize("kind", sorted(rights.TABLE["types"]))
def test_a_new_property_is_refused(kind: str) -> None:
    """A new property is refused, for every resource type of the template."""
    with pytest.raises(LocalError, match="nothing of Newest of New"):
        rights.policy(with_resource({"Type": kind, "Properties": {"Newest": 1}}))


@pytest.mark.parametrize(
    ("resource", "more"),
    [
        (
            {"Type": "AWS::Lambda::Function", "Properties": {"ReservedConcurrentExecutions": 1}},
            {"lambda:PutFunctionConcurrency", "lambda:DeleteFunctionConcurrency"},
        ),
        (
            {"Type": "AWS::Lambda::Alias", "Properties": {"ProvisionedConcurrencyConfig": {}}},
            {"lambda:PutProvisionedConcurrencyConfig", "lambda:DeleteProvisionedConcurrencyConfig"},
        ),
        ({"Type": "AWS::Events::Rule", "Properties": {"Targets": [{"RoleArn": "x"}]}}, set()),
    ],
    ids=["concurrency", "provisioned", "role"],
)
def test_a_property_brings_its_actions(resource: dict[str, Any], more: set[str]) -> None:
    """An action that only one property needs is not in the policy. Passing a role is, because functions have roles."""
    assert more == rights.actions(with_resource(resource)) - ALLOWED


@pytest.mark.parametrize(
    "specification",
    [
        {"KMSMasterKeyId": "x"},
        {"Fn::If": ["Condition", {"KMSMasterKeyId": "x"}, {"Ref": "AWS::NoValue"}]},
    ],
    ids=["always", "on a condition"],
)
def test_a_property_whose_resource_is_unknown_is_refused(specification: dict[str, Any]) -> None:
    """A property with a KMS key is refused, because the key is not a resource of the stack."""
    resource = {"Type": "AWS::DynamoDB::Table", "Properties": {"SSESpecification": specification}}
    with pytest.raises(LocalError, match="none of what kms:CreateGrant acts on"):
        rights.policy(with_resource(resource))


@pytest.mark.parametrize("kind", sorted(rights.TABLE["types"]))
def test_the_table_has_no_more_than_it_needs(kind: str) -> None:
    """Each type in the table is in the template, with exactly these properties, and each pattern matches an action."""
    resources = [each for each in rights.transformed()["Resources"].values() if each["Type"] == kind]
    entry = rights.TABLE["types"][kind]
    used = {name for each in resources for name in each.get("Properties", {})}
    schema = rights.schema(kind)["properties"]

    assert resources
    assert set(entry["properties"]) == used
    for pattern, paths in entry.get("only", {}).items():
        assert [action for action in rights.handled(kind) if fnmatchcase(action, pattern)], pattern
        assert {path.partition("/")[0] for path in paths} <= schema.keys() | {"UpdatePolicy", "Replicas"}


def test_no_action_has_a_wildcard() -> None:
    """The policy names each action in full."""
    assert [] == [action for action in ALLOWED if "*" in action]


def test_everything_is_a_resource_only_where_aws_has_no_other() -> None:
    """An action on all resources has no resource type in AWS's reference, and the documentation links to its page."""
    (*everywhere,) = (action for each in STATEMENTS if each["Resource"] == "*" for action in each["Action"])
    told = (ROOT / "docs" / "security.md").read_text()

    assert everywhere
    for action in everywhere:
        service, _, name = action.partition(":")
        reference = rights.reference(service)
        assert {""} == reference["privileges"][name]["resource_types"].keys()
        (line,) = (line for line in told.splitlines() if f"`{action}`" in line and line.startswith("|"))
        assert reference["service_authorization_url"] in line


def test_the_stack_is_all_that_is_changed() -> None:
    """Every resource in the policy has the stack's name, or is SAM's bucket, the topic, or of a kind without names."""
    arns = {arn for each in STATEMENTS if each["Resource"] != "*" for arn in each["Resource"]}
    nameless = {arn for arn in arns if "<StackName>" not in arn}

    assert {
        "<SendTopicArn>",
        "arn:aws:apigateway:<Region>::/apis",
        "arn:aws:apigateway:<Region>::/apis/*",
        "arn:aws:apigateway:<Region>::/tags/*",
        "arn:aws:cloudformation:<Region>:<AccountId>:stack/aws-sam-cli-managed-default/*",
        "arn:aws:cloudformation:<Region>:aws:transform/Serverless-2016-10-31",
        "arn:aws:lambda:<Region>:<AccountId>:event-source-mapping:*",
        "arn:aws:s3:::<ArtifactsBucket>/*",
    } == nameless


def test_a_role_can_hold_it() -> None:
    """The policy fits into a role, even with the longest names of a region, a stack and a topic."""
    document = rights.filled(rights.POLICY.read_text(), VALUES)

    assert LONGEST > len("".join(document.split()))


def test_names_are_not_shortened() -> None:
    """CloudFormation need not shorten the names of roles, functions and schedules to the maximum of 64 characters.

    A name has the stack's name, the resource's name and up to 13 characters, joined by two hyphens. The stack's default
    name has 16 characters.
    """
    kinds = ("AWS::IAM::Role", "AWS::Lambda::Function", "AWS::Scheduler::Schedule")
    names = [name for name, each in rights.transformed()["Resources"].items() if each["Type"] in kinds]

    assert 64 >= max(map(len, names)) + len("twilio-connector") + 13 + 2
    assert "at 16 characters or fewer" in (ROOT / "docs" / "security.md").read_text()


def test_a_name_that_is_not_given_is_told() -> None:
    """A name that is not given is reported, so that nobody deploys with an incomplete policy."""
    with pytest.raises(LocalError, match="does not give"):
        rights.filled(rights.POLICY.read_text(), VALUES | {"StackName": "<StackName>"})
