"""The local stack's deployer: a role that has only the policy of `examples/deployer-policy.json`."""

import contextlib
import json
from typing import Any

from local import rights
from local.aws import REGION, client

ACCOUNT_ID = "000000000000"
ACCOUNT = f"arn:aws:iam::{ACCOUNT_ID}:root"
BUCKET = "aws-sam-cli-managed-default-samclisourcebucket-local"
SAM_STACK = "aws-sam-cli-managed-default"

_SAM_TEMPLATE = {
    "Resources": {"SamCliSourceBucket": {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": BUCKET}}},
    "Outputs": {"SourceBucket": {"Value": {"Ref": "SamCliSourceBucket"}}},
}
_SAM_TAGS = [{"Key": "ManagedStackSource", "Value": "AwsSamCli"}]  # without this tag, `sam deploy` refuses the stack


def policy(stack_name: str) -> dict[str, Any]:
    """Return the deployer's policy for a stack."""
    values = {
        "Region": REGION,
        "AccountId": ACCOUNT_ID,
        "StackName": stack_name,
        "ArtifactsBucket": BUCKET,
        "SendTopicArn": f"arn:aws:sns:{REGION}:{ACCOUNT_ID}:{stack_name}-topic",
    }
    document: dict[str, Any] = json.loads(rights.filled(rights.POLICY.read_text(), values))
    return document


def credentials(endpoint_url: str, stack_name: str, document: dict[str, Any] | None = None) -> dict[str, str]:
    """Return environment variables with the deployer's credentials; `document` replaces the deployer's policy."""
    _make_bucket(endpoint_url)
    iam, name = client("iam", endpoint_url), f"deployer-of-{stack_name}"
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": ACCOUNT}}
    with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps({"Statement": [trust]}))
    iam.put_role_policy(
        RoleName=name, PolicyName=name, PolicyDocument=json.dumps(document or policy(stack_name), separators=(",", ":"))
    )
    assumed = client("sts", endpoint_url).assume_role(
        RoleArn=f"arn:aws:iam::{ACCOUNT_ID}:role/{name}", RoleSessionName="sam-deploy"
    )["Credentials"]
    return {
        "AWS_ACCESS_KEY_ID": assumed["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": assumed["SecretAccessKey"],
        "AWS_SESSION_TOKEN": assumed["SessionToken"],
    }


def _make_bucket(endpoint_url: str) -> None:
    """Create the stack with the bucket for code, which `sam deploy` creates on its first run in an account."""
    cloudformation = client("cloudformation", endpoint_url)
    try:
        cloudformation.create_stack(StackName=SAM_STACK, TemplateBody=json.dumps(_SAM_TEMPLATE), Tags=_SAM_TAGS)
    except cloudformation.exceptions.AlreadyExistsException:
        return
    waiter = cloudformation.get_waiter("stack_create_complete")
    waiter.wait(StackName=SAM_STACK, WaiterConfig={"Delay": 0.2, "MaxAttempts": 50})
