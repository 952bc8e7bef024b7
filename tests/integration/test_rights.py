"""The permissions on the stack, tried one by one: those of functions, callers, strangers and the deployer.

UNJUDGED lists the permissions that the emulator cannot check; tests read the template for them.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from local import LocalError, deploy, deployer, rights
from tests.faults import FaultServer
from tests.integration.cloud import SECONDS, Cloud
from tests.mutants import SIGNATURE, send

FUNCTIONS = ("GetSms", "ListSms", "PollMessages", "RawRequest", "Resolve", "RotateConnection", "SendSms", "Webhook")
QUEUES = ("BufferDeadLetterQueue", "BufferQueue", "DeadLetterQueue", "FailedQueue", "SendQueue")
LEAST_DENIALS = 40
"""The least number of denied calls of each role; all roles together have several hundred."""
UNJUDGED = {
    "events:PutEvents with another source": "its IAM does not know the key events:source",
    "sqs:* without TLS": "it is spoken to without TLS, so the statement is left out",
    "kms:Decrypt and kms:GenerateDataKey": "the stack has them only where ConnectionKmsKeyArn is given",
    "ssm:GetParameter and lambda:InvokeFunction of the webhook": "the stack has them only where it has a reply",
}
"""Permissions that are not tried, and why; test_bundle reads the template for them."""


X_RAY = "arn:aws:iam::aws:policy/AWSXrayWriteOnlyAccess"
"""AWS's own policy, which SAM attaches: https://docs.aws.amazon.com/aws-managed-policy/latest/reference/AWSXrayWriteOnlyAccess.html"""


class Cell(NamedTuple):
    """An action on a resource."""

    action: str
    arn: str


Keys = Mapping[str, str]


def as_whom(cloud: Cloud, service: str, keys: Keys) -> Any:
    """Return a client that also sends invalid parameters, since AWS checks permissions before parameters."""
    return boto3.client(
        service,
        endpoint_url=cloud.info["aws_endpoint_url"],
        region_name=cloud.info["region"],
        config=Config(parameter_validation=False, retries={"total_max_attempts": 1}),
        **keys,
    )


def queue(arn: str) -> str:
    """Return the URL of a queue."""
    account, name = arn.split(":")[4:]
    return f"http://sqs.us-east-1.localhost/{account}/{name}"


def table(arn: str) -> dict[str, str]:
    """Return DynamoDB's parameters for a table or an index."""
    _, name, *index = arn.split(":", 5)[5].split("/")
    return {"TableName": name} | ({"IndexName": index[1]} if index else {})


KEY = {"id": {"S": "of a test of rights"}}
NEVER = {"ConditionExpression": "attribute_exists(is_never_there)"}
QUERY = {"KeyConditionExpression": "a = :a", "ExpressionAttributeValues": {":a": {"S": "b"}}}
ATTEMPTS: dict[str, Callable[[Any, str], Any]] = {
    "dynamodb:BatchGetItem": lambda aws, arn: aws.batch_get_item(
        RequestItems={table(arn)["TableName"]: {"Keys": [KEY]}}
    ),
    "dynamodb:GetItem": lambda aws, arn: aws.get_item(**table(arn), Key=KEY),
    "dynamodb:PutItem": lambda aws, arn: aws.put_item(**table(arn), Item=KEY, **NEVER),
    "dynamodb:Query": lambda aws, arn: aws.query(**table(arn), **QUERY),
    "events:PutEvents": lambda aws, arn: aws.put_events(Entries=[{"EventBusName": arn, "Detail": "no JSON"}]),
    "lambda:InvokeFunction": lambda aws, arn: aws.invoke(FunctionName=arn, InvocationType="DryRun"),
    "secretsmanager:DescribeSecret": lambda aws, arn: aws.describe_secret(SecretId=arn),
    "secretsmanager:GetSecretValue": lambda aws, arn: aws.get_secret_value(SecretId=arn),
    "secretsmanager:PutSecretValue": lambda aws, arn: aws.put_secret_value(SecretId=arn),
    "secretsmanager:UpdateSecretVersionStage": lambda aws, arn: aws.update_secret_version_stage(
        SecretId=arn, VersionStage="NONE", RemoveFromVersionId="x"
    ),
    "sqs:ChangeMessageVisibility": lambda aws, arn: aws.change_message_visibility(
        QueueUrl=queue(arn), ReceiptHandle="none", VisibilityTimeout=0
    ),
    "sqs:DeleteMessage": lambda aws, arn: aws.delete_message(QueueUrl=queue(arn), ReceiptHandle="none"),
    "sqs:GetQueueAttributes": lambda aws, arn: aws.get_queue_attributes(QueueUrl=queue(arn)),
    "sqs:ReceiveMessage": lambda aws, arn: aws.receive_message(QueueUrl=queue(arn), MaxNumberOfMessages=11),
    "sqs:SendMessage": lambda aws, arn: aws.send_message(QueueUrl=queue(arn), MessageBody="\0"),
}
"""A call of each action, which changes nothing even if it is allowed."""


def is_allowed(cloud: Cloud, keys: Keys, cell: Cell) -> bool:
    """Try a call, and return whether it is allowed; an error other than a denial counts as allowed."""
    service, _, _ = cell.action.partition(":")
    try:
        ATTEMPTS[cell.action](as_whom(cloud, service, keys), cell.arn)
    except ClientError as error:
        return "AccessDenied" not in error.response["Error"]["Code"]
    return True


class Roles:
    """The functions' roles: the permissions that the deployed policies give them, and their keys."""

    def __init__(self, cloud: Cloud) -> None:
        """Look up the roles, and assume each of them."""
        self._iam, self._sts = cloud.client("iam"), cloud.client("sts")
        self.names = {name: cloud.resource(f"{name}FunctionRole") for name in FUNCTIONS}
        self.keys = {name: self._assume(role) for name, role in self.names.items()}
        self.cells = {name: set(self._given(role)) for name, role in self.names.items()}

    def _assume(self, role: str) -> Keys:
        """Return the keys of a function's role. Only Lambda may assume it, so it trusts the account for a moment."""
        found = self._iam.get_role(RoleName=role)["Role"]
        trust = found["AssumeRolePolicyDocument"]
        test = {"Effect": "Allow", "Principal": {"AWS": deployer.ACCOUNT}, "Action": "sts:AssumeRole"}
        more = json.dumps(trust | {"Statement": [*trust["Statement"], test]})
        self._iam.update_assume_role_policy(RoleName=role, PolicyDocument=more)
        try:
            assumed = self._sts.assume_role(RoleArn=found["Arn"], RoleSessionName="test-of-rights")["Credentials"]
        finally:
            self._iam.update_assume_role_policy(RoleName=role, PolicyDocument=json.dumps(trust))
        return {
            "aws_access_key_id": assumed["AccessKeyId"],
            "aws_secret_access_key": assumed["SecretAccessKey"],
            "aws_session_token": assumed["SessionToken"],
        }

    def _given(self, role: str) -> Iterator[Cell]:
        """Yield what a role's policies allow, except for logs and for traces, whose policy the emulator lacks."""
        documents = [
            self._iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
            for name in self._iam.list_role_policies(RoleName=role)["PolicyNames"]
        ]
        for attached in self._iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
            arn = attached["PolicyArn"]
            if arn == X_RAY:
                continue
            version = self._iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
            documents.append(
                self._iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
            )
        for document in documents:
            for statement in document["Statement"]:
                for action in listed(statement["Action"]):
                    if statement["Effect"] == "Allow" and not action.startswith("logs:"):
                        yield from (Cell(action, arn) for arn in listed(statement["Resource"]))


def listed(value: Any) -> list[Any]:
    """Return a list; a single value becomes a list of one."""
    return value if isinstance(value, list) else [value]


@pytest.fixture(scope="module")
def roles(cloud: Cloud) -> Roles:
    """Return the functions' roles."""
    return Roles(cloud)


@pytest.fixture(scope="module")
def secrets(cloud: Cloud) -> Iterator[dict[str, str]]:
    """Give the ARNs of a new connection, and of a new secret that is not a connection."""
    manager = cloud.client("secretsmanager")
    names = {"connection": f"twilio/{uuid.uuid4().hex}", "foreign": f"database/{uuid.uuid4().hex}"}
    yield {name: manager.create_secret(Name=path, SecretString="{}")["ARN"] for name, path in names.items()}
    for path in names.values():
        manager.delete_secret(SecretId=path, ForceDeleteWithoutRecovery=True)


@pytest.fixture(scope="module")
def foreign(cloud: Cloud) -> Iterator[list[Cell]]:
    """Give actions on resources of the account outside the stack: on another table, bus and queue."""
    name = f"foreign-{uuid.uuid4().hex}"
    cloud.client("dynamodb").create_table(
        TableName=name,
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    bus = cloud.client("events").create_event_bus(Name=name)["EventBusArn"]
    url = cloud.client("sqs").create_queue(QueueName=name)["QueueUrl"]
    place = bus.split(":event-bus/")[0].replace(":events:", ":{}:")
    yield [
        *(Cell(f"dynamodb:{each}", place.format("dynamodb") + f":table/{name}") for each in ("GetItem", "PutItem")),
        Cell("dynamodb:BatchGetItem", place.format("dynamodb") + f":table/{name}"),
        Cell("events:PutEvents", bus),
        *(Cell(f"sqs:{each}", place.format("sqs") + f":{name}") for each in ("SendMessage", "ReceiveMessage")),
    ]
    cloud.client("sqs").delete_queue(QueueUrl=url)
    cloud.client("events").delete_event_bus(Name=name)
    cloud.client("dynamodb").delete_table(TableName=name)


def matrix(cloud: Cloud, roles: Roles, secrets: Mapping[str, str], foreign: list[Cell]) -> set[Cell]:
    """Return the calls to try: each action of any function on all similar resources of the stack, and foreign ones."""
    every = {cell for cells in roles.cells.values() for cell in cells}
    secret = {cell for cell in every if cell.action.startswith("secretsmanager:")}
    tables = {cell.arn for cell in every if cell.action.startswith("dynamodb:") and "/index/" not in cell.arn}
    queues = {cloud.outputs["SendQueueArn"].rpartition(":")[0] + f":{name_of(cloud, name)}" for name in QUEUES}
    actions = {cell.action for cell in every}
    return {
        *(cell for cell in every if cell not in secret),
        *(Cell(cell.action, arn) for cell in secret for arn in secrets.values()),
        *(Cell(action, arn) for action in actions if action.startswith("dynamodb:") for arn in tables),
        *(Cell(action, arn) for action in actions if action.startswith("sqs:") for arn in queues),
        *(Cell("lambda:InvokeFunction", cloud.outputs[f"{name}FunctionArn"]) for name in FUNCTIONS),
        *foreign,
    }


def name_of(cloud: Cloud, logical_id: str) -> str:
    """Return the name of a queue, which CloudFormation knows by its URL."""
    return cloud.resource(logical_id).rpartition("/")[2]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_writes_no_log_but_the_stacks(cloud: Cloud, roles: Roles, name: str) -> None:
    """A function writes to its own log group only, and can neither read nor create one.

    AWS's own policy for Lambda allows every log group, and the stack's policy denies all others.
    """
    logs = as_whom(cloud, "logs", roles.keys[name])
    group, other = cloud.resource(f"{name}Logs"), cloud.resource("WebhookApiLogs")
    stream = f"rights-{uuid.uuid4().hex}"
    logs.create_log_stream(logGroupName=group, logStreamName=stream)
    logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=[{"timestamp": 0, "message": "{}"}])

    with pytest.raises(ClientError, match="AccessDenied"):
        logs.create_log_stream(logGroupName=other, logStreamName=stream)
    with pytest.raises(ClientError, match="AccessDenied"):
        logs.put_log_events(logGroupName=other, logStreamName=stream, logEvents=[])
    with pytest.raises(ClientError, match="AccessDenied"):
        logs.create_log_group(logGroupName=f"/aws/lambda/{stream}")
    with pytest.raises(ClientError, match="AccessDenied"):
        logs.filter_log_events(logGroupName=group)


def given(roles: Roles, secrets: Mapping[str, str], name: str) -> set[Cell]:
    """Return the calls of the matrix that a function's policies allow."""
    return {
        Cell(cell.action, secrets["connection"]) if cell.action.startswith("secretsmanager:") else cell
        for cell in roles.cells[name]
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_may_do_what_it_needs_and_nothing_else(
    cloud: Cloud, roles: Roles, secrets: dict[str, str], foreign: list[Cell], name: str
) -> None:
    """A function may make the calls that its policies allow, and no other call of any function."""
    own = given(roles, secrets, name)
    every = matrix(cloud, roles, secrets, foreign)
    allowed = {cell for cell in every if is_allowed(cloud, roles.keys[name], cell)}

    assert own <= every
    assert own == allowed
    assert LEAST_DENIALS <= len(every - allowed)


def test_what_is_left_out_cannot_be_judged(cloud: Cloud, roles: Roles) -> None:
    """The emulator cannot judge the cells that are left out: it lets send_sms put an event as if it were Twilio."""
    bus = cloud.outputs["EventBusArn"]
    entry = {"EventBusName": bus, "Source": "twilio", "DetailType": "Rights", "Detail": "{}"}
    answer = as_whom(cloud, "events", roles.keys["SendSms"]).put_events(Entries=[entry])
    cells = {cell.action for cells in roles.cells.values() for cell in cells}

    assert 0 == answer["FailedEntryCount"]
    assert set() == cells & {"kms:Decrypt", "kms:GenerateDataKey", "ssm:GetParameter", "lambda:InvokeFunction"}
    assert 4 == len(UNJUDGED)


# ---------------------------------------------------------------- callers


def caller(cloud: Cloud) -> Keys:
    """Return the keys of a caller, who has only the policy of `examples/caller-policy.json`."""
    keys = cloud.info["caller"]
    return {"aws_access_key_id": keys["access_key_id"], "aws_secret_access_key": keys["secret_access_key"]}


def test_a_caller_may_call_and_nothing_else(
    cloud: Cloud, roles: Roles, secrets: dict[str, str], foreign: list[Cell]
) -> None:
    """A caller may invoke the aliases of four functions and write to the send queue, and do nothing else."""
    own = {
        *(Cell("lambda:InvokeFunction", cloud.outputs[f"{name}FunctionArn"]) for name in FUNCTIONS if name in ACTIONS),
        Cell("sqs:SendMessage", cloud.outputs["SendQueueArn"]),
    }
    unaliased = {Cell("lambda:InvokeFunction", cell.arn.removesuffix(":live")) for cell in own}
    every = matrix(cloud, roles, secrets, foreign) | (unaliased - own)
    allowed = {cell for cell in every if is_allowed(cloud, caller(cloud), cell)}

    assert own == allowed
    assert 30 < len(every - own)


ACTIONS = ("SendSms", "GetSms", "ListSms", "RawRequest")
ADMINISTRATION: dict[str, Callable[[Any, Cloud], Any]] = {
    "cloudformation": lambda aws, cloud: aws.describe_stacks(StackName=cloud.info["stack_name"]),
    "iam": lambda aws, _: aws.create_access_key(UserName="caller"),
    "lambda": lambda aws, cloud: aws.get_function_configuration(FunctionName=cloud.outputs["SendSmsFunctionArn"]),
    "logs": lambda aws, _: aws.describe_log_groups(),
    "secretsmanager": lambda aws, _: aws.list_secrets(),
    "events": lambda aws, cloud: aws.put_rule(Name="x", EventBusName=cloud.outputs["EventBusName"]),
    "sqs": lambda aws, cloud: aws.purge_queue(QueueUrl=cloud.outputs["SendQueueUrl"]),
}


@pytest.mark.parametrize("service", ADMINISTRATION)
def test_a_caller_administers_nothing(cloud: Cloud, service: str) -> None:
    """With a caller's key, a thief cannot create another key, read code, logs or secrets, or follow events."""
    with pytest.raises(ClientError, match="AccessDenied"):
        ADMINISTRATION[service](as_whom(cloud, service, caller(cloud)), cloud)


# ---------------------------------------------------------------- strangers


class Route(NamedTuple):
    """A route of a deployed API."""

    api: str
    method: str
    path: str


@pytest.fixture(scope="module")
def routes(cloud: Cloud) -> list[Route]:
    """Return the routes of the deployed APIs."""
    gateway = cloud.client("apigatewayv2")
    keys = [
        (api, route["RouteKey"].partition(" "))
        for api in ("ActionsApi", "WebhookApi")
        for route in gateway.get_routes(ApiId=cloud.resource(api))["Items"]
    ]
    return [Route(api, method, path.replace("{", "").replace("}", "")) for api, (method, _, path) in keys]


def signed(keys: Credentials, region: str, route: Route, url: str, when: datetime | None = None) -> requests.Response:
    """Send a request with an AWS signature, of another time if that is given."""
    request = AWSRequest(route.method, url, data="{}" if route.method == "POST" else None)
    signer = SigV4Auth(keys, "execute-api", region)
    if when:
        with pytest.MonkeyPatch.context() as clock:
            clock.setattr("botocore.auth.get_current_datetime", lambda *_, **__: when)
            signer.add_auth(request)
    else:
        signer.add_auth(request)
    return requests.request(route.method, url, data=request.data, headers=dict(request.headers), timeout=SECONDS)


@pytest.fixture(scope="module")
def stranger(cloud: Cloud) -> Credentials:
    """Return the credentials of an administrator of another account."""
    of_another = {"aws_access_key_id": "1" * 12, "aws_secret_access_key": "test"}
    iam, name = as_whom(cloud, "iam", of_another), f"stranger-{uuid.uuid4().hex}"
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    iam.create_user(UserName=name)
    document = json.dumps({"Version": "2012-10-17", "Statement": [everything]})
    iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=document)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return Credentials(key["AccessKeyId"], key["SecretAccessKey"])


def test_no_stranger_gets_an_answer_but_from_the_webhook(
    cloud: Cloud, routes: list[Route], stranger: Credentials, twilio_relay: FaultServer
) -> None:
    """Every route refuses a request with a missing, wrong or expired AWS signature, or with one of another account.

    With a caller's signature, the routes of the Actions API answer. Those of the webhook refuse it too.
    """
    keys, region = cloud.info["caller"], cloud.info["region"]
    own = Credentials(keys["access_key_id"], keys["secret_access_key"])
    wrong = Credentials(keys["access_key_id"], "not-the-secret")
    long_ago = datetime.now(UTC) - timedelta(minutes=20)
    base = {"ActionsApi": cloud.info["actions_api_url"], "WebhookApi": cloud.info["webhook_url"].rpartition("/")[0]}
    refused, answered = {}, {}
    for route in routes:
        url = base[route.api] + route.path
        refused[route] = [
            requests.request(route.method, url, timeout=SECONDS),
            signed(wrong, region, route, url),
            signed(own, region, route, url, long_ago),
            signed(stranger, region, route, url),
        ]
        answered[route] = signed(own, region, route, url).status_code
    actions = {route for route in routes if route.api == "ActionsApi"}

    assert (5, 4) == (len(actions), len(routes) - len(actions))
    for route in routes:
        # The emulator does not show an API to another account; AWS would answer 403.
        assert [403, 403, 403, 404] == [answer.status_code for answer in refused[route]], route
    by_us = {route: {answer.content for answer in refused[route][:3]} for route in set(routes) - actions}
    assert 1 == len(set.union(*by_us.values()))
    assert set.union(*by_us.values()).isdisjoint(answer.content for route in actions for answer in refused[route])
    assert {403} == {answered[route] for route in by_us}
    assert {200, 400, 404} >= {answered[route] for route in actions}
    assert {"GET /2010-04-01"} >= {f"{request.method} {request.target[:11]}" for request in twilio_relay.requests}


def test_the_webhook_takes_no_other_accounts_signature(cloud: Cloud) -> None:
    """The webhook refuses a request with a missing or wrong signature, or with one by another account's token.

    There is no expired signature to try, because Twilio's signatures have no date.
    """
    right, foreign = cloud.target(), cloud.target(token="of-another-account")
    request = cloud.inbound(uuid.uuid4().hex).request(right)
    unsigned = tuple((name, value) for name, value in request.headers if name != SIGNATURE)
    refused = [
        replace(request, headers=unsigned),
        request.with_header(SIGNATURE, "A" * 27 + "="),
        cloud.inbound(uuid.uuid4().hex).request(foreign),
    ]

    assert [403, 403, 403] == [send(each, right).status for each in refused]
    assert 200 == send(request, right).status


# ---------------------------------------------------------------- the deployer

NAME = "rights"
OPTIONS = ("--region", "us-east-1")
DEPLOY = (
    *("--template-file", "template.yaml", "--resolve-s3", "--capabilities", "CAPABILITY_IAM", "--no-progressbar"),
    *("--no-confirm-changeset", "--no-fail-on-empty-changeset", *OPTIONS),
)
DELETE = ("--no-prompts", *OPTIONS)
CHECKED = {
    "cloudformation:CreateChangeSet": "deploy",
    "cloudformation:DescribeChangeSet": "deploy",
    "cloudformation:ExecuteChangeSet": "deploy",
    "s3:PutObject": "deploy",
    "cloudformation:DescribeStackEvents": "deploy",
    "cloudformation:GetTemplateSummary": "deploy",
    "cloudformation:DescribeStacks": "delete",
    "cloudformation:GetTemplate": "delete",
    "s3:DeleteObject": "delete",
    "cloudformation:DeleteStack": "delete",
}
"""The actions that SAM itself calls, which the emulator checks, each with its command; in the order of a stack's life.

The emulator's CloudFormation creates resources without checking the deployer's permissions. The test with the schemas
below covers the actions for that.
"""


def without(action: str) -> dict[str, Any]:
    """Return the deployer's policy without one action."""
    document = deployer.policy(NAME)
    for statement in document["Statement"]:
        statement["Action"] = [each for each in statement["Action"] if each != action]
    return document | {"Statement": [each for each in document["Statement"] if each["Action"]]}


def sam(cloud: Cloud, folder: Path, command: str, policy: dict[str, Any] | None = None) -> None:
    """Run `sam deploy` or `sam delete` on a stack that only these tests use."""
    options = DEPLOY if command == "deploy" else DELETE
    deploy.sam(folder, cloud.info["aws_endpoint_url"], NAME, command, *options, policy=policy)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("action", CHECKED)
def test_without_one_action_the_command_fails(cloud: Cloud, folder: Path, action: str) -> None:
    """If the policy lacks one action, the deployer cannot deploy or delete a stack: the emulator denies the call."""
    if action == "s3:PutObject":
        empty_bucket(cloud)
    if action == "cloudformation:GetTemplateSummary":  # SAM calls it for an existing stack
        sam(cloud, folder, "deploy")
    with pytest.raises(LocalError, match=f"(?s)AccessDenied|not authorized to perform: {action}"):
        sam(cloud, folder, CHECKED[action], without(action))


@pytest.mark.timeout(300)
def test_with_all_actions_the_stack_goes(cloud: Cloud, folder: Path) -> None:
    """The whole policy is enough to delete a stack, which was deployed with it before."""
    cloudformation = cloud.client("cloudformation")
    there = cloudformation.describe_stacks(StackName=NAME)["Stacks"][0]["StackStatus"]
    sam(cloud, folder, "delete")

    assert "CREATE_COMPLETE" == there
    with pytest.raises(ClientError, match="does not exist"):
        cloudformation.describe_stacks(StackName=NAME)


def empty_bucket(cloud: Cloud) -> None:
    """Delete the uploaded code, so that SAM uploads it again."""
    s3 = cloud.client("s3")
    for each in s3.list_objects_v2(Bucket=deployer.BUCKET).get("Contents", []):
        s3.delete_object(Bucket=deployer.BUCKET, Key=each["Key"])


def arns(cloud: Cloud) -> dict[str, list[str]]:
    """Return the ARNs of the deployed stack's resources, by the names of their types in AWS's reference."""
    found: dict[str, list[str]] = {}
    account = f"us-east-1:{deployer.ACCOUNT_ID}"
    stack = cloud.client("cloudformation").describe_stack_resources(StackName=cloud.info["stack_name"])
    for each in stack["StackResources"]:
        kind, name = each["ResourceType"], each["PhysicalResourceId"]
        if kind in PATTERNS:
            of, pattern = PATTERNS[kind]
            last = name.rpartition("/")[2] if kind == "AWS::SQS::Queue" else name
            if kind == "AWS::Logs::LogGroup":  # the emulator's names differ from CloudFormation's
                last = f"{cloud.info['stack_name']}-{each['LogicalResourceId']}-0123456789AB"
            found.setdefault(of, []).append(name if name.startswith("arn:") else pattern.format(account, last))
    (bus,) = found["events:event-bus"]
    found["events:rule-on-custom-event-bus"] = [
        arn if f"/{bus.rpartition('/')[2]}/" in arn else arn.replace("rule/", f"rule/{bus.rpartition('/')[2]}/")
        for arn in found["events:rule-on-custom-event-bus"]
    ]
    return found


PATTERNS = {
    "AWS::CloudWatch::Alarm": ("cloudwatch:alarm", "arn:aws:cloudwatch:{}:alarm:{}"),
    "AWS::CloudWatch::Dashboard": (
        "cloudwatch:dashboard",
        f"arn:aws:cloudwatch::{deployer.ACCOUNT_ID}:dashboard/{{1}}",
    ),
    "AWS::DynamoDB::Table": ("dynamodb:table", "arn:aws:dynamodb:{}:table/{}"),
    "AWS::Events::EventBus": ("events:event-bus", "arn:aws:events:{}:event-bus/{}"),
    "AWS::Events::Rule": ("events:rule-on-custom-event-bus", "arn:aws:events:{}:rule/{}"),
    "AWS::IAM::ManagedPolicy": ("iam:policy", "{}{}"),
    "AWS::IAM::Role": ("iam:role", f"arn:aws:iam::{deployer.ACCOUNT_ID}:role/{{1}}"),
    "AWS::Lambda::EventSourceMapping": ("lambda:eventSourceMapping", "arn:aws:lambda:{}:event-source-mapping:{}"),
    "AWS::Lambda::Function": ("lambda:function", "arn:aws:lambda:{}:function:{}"),
    "AWS::Lambda::LayerVersion": ("lambda:layerVersion", "{}{}"),
    "AWS::Logs::LogGroup": ("logs:log-group", "arn:aws:logs:{}:log-group:{}"),
    "AWS::SQS::Queue": ("sqs:queue", "arn:aws:sqs:{}:{}"),
    "AWS::Scheduler::Schedule": ("scheduler:schedule", "arn:aws:scheduler:{}:schedule/default/{}"),
}
"""Types whose physical names CloudFormation makes: the type's name in AWS's reference, and the pattern of its ARNs."""
NARROWED = {"iam:PassRole", "lambda:CreateEventSourceMapping"}
"""Actions that the policy allows on a condition, which the emulator's policy simulator does not support."""


def decisions(cloud: Cloud, document: dict[str, Any], actions: list[str], arn: str) -> set[str]:
    """Return those of the actions that a policy allows on a resource, by the emulator's own evaluation."""
    answer = cloud.client("iam").simulate_custom_policy(
        PolicyInputList=[json.dumps(document)], ActionNames=actions, ResourceArns=[arn]
    )
    return {each["EvalActionName"] for each in answer["EvaluationResults"] if each["EvalDecision"] == "allowed"}


def test_the_policy_covers_what_the_schemas_say(cloud: Cloud) -> None:
    """The deployer's policy allows each handler's action on every resource of its type in the deployed stack.

    Without the action in the policy, it is denied. The emulator's evaluation is a second opinion on the policy, and the
    names are those of the deployed resources.
    """
    document = deployer.policy(cloud.info["stack_name"])
    handled = rights.actions(rights.transformed()) - NARROWED
    real = arns(cloud)
    judged = set()
    for kind, each in real.items():
        service, _, type_ = kind.partition(":")
        types = {"layerVersion": {"layerVersion", "layer"}, "function": {"function", "function alias"}}
        names = types.get(type_, {type_})
        actions = sorted(
            action
            for action in handled
            if action.startswith(f"{service}:") and action not in rights.TABLE["unlisted"] and names & on(action)
        )
        assert actions
        for arn in each:
            assert set(actions) == decisions(cloud, document, actions, arn), arn
        for action in actions:
            taken = deployer.policy(cloud.info["stack_name"])
            for statement in taken["Statement"]:
                statement["Action"] = [one for one in statement["Action"] if one != action]
            assert set() == decisions(cloud, taken, [action], each[0]), action
        judged |= set(actions)

    assert PATTERNS.keys() <= {each["Type"] for each in rights.transformed()["Resources"].values()}
    assert 100 < len(judged)


def on(action: str) -> set[str]:
    """Return the types of resources that AWS's reference has for an action."""
    service, _, name = action.partition(":")
    reference = rights.reference(service)
    found = reference["privileges_lower_name"].get(name.lower())
    return set(reference["privileges"][found]["resource_types"]) if found else set()
