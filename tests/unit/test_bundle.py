"""The bundle hangs together: each function is in its five places, and the template keeps its promises."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from twilio_connector import send_queue

from tests.readme import ROOT, rows, section

FUNCTIONS = sorted(path.stem for path in (ROOT / "functions").glob("*.py"))
READERS = ["get_sms", "list_sms", "raw_request"]
ASYNCHRONOUS = {"SendSmsFunction": "FailedQueue", "RawRequestFunction": "DeadLetterQueue"}
FUNCTION = "AWS::Serverless::Function"

DEFAULTS = {
    "ConnectionPrefix": "twilio/",
    "ConnectionKmsKeyArn": "",
    "DefaultConnection": "default",
    "DefaultCountry": "US",
    "WebhookBaseUrl": "",
    "TwilioApiUrl": "",
    "Architecture": "arm64",
    "SnapStart": "off",
    "WebhookRateLimit": 1000,
    "WebhookBurstLimit": 2000,
    "ReplyFunctionArn": "",
    "AutoReply": "",
    "PollingSchedule": "",
    "LogLevel": "INFO",
    "LogRetentionDays": 30,
    "AlarmTopicArn": "",
    "UnknownReportAfter": 15,
    "SendTopicArn": "",
    "SendBatchSize": 10,
    "SendBatchWindow": 0,
    "SendMaximumConcurrency": 5,
    "SendThreads": 10,
    "SendSmsTimeout": 30,
    "SendLease": 60,
    "SendVisibilityTimeout": 200,
}
OUTPUTS = {
    "ActionsApiUrl",
    "WebhookUrl",
    "SendSmsFunctionArn",
    "GetSmsFunctionArn",
    "ListSmsFunctionArn",
    "RawRequestFunctionArn",
    "WebhookFunctionArn",
    "EventBusName",
    "EventBusArn",
    "ResolveFunctionArn",
    "SendQueueUrl",
    "SendQueueArn",
    "FailedQueueUrl",
    "DeadLetterQueueUrl",
    "BufferQueueArn",
    "BufferDeadLetterQueueUrl",
    "PollMessagesFunctionArn",
    "RotateConnectionFunctionArn",
}
GIVEN_UP = {"SendQueue": "FailedQueue", "BufferQueue": "BufferDeadLetterQueue"}
"""The queues that functions read, and where SQS puts what was received too often."""
ROUTES = {
    ("ActionsApi", "POST", "/messages", "send_sms"),
    ("ActionsApi", "GET", "/messages", "list_sms"),
    ("ActionsApi", "GET", "/messages/{message_sid}", "get_sms"),
    ("ActionsApi", "POST", "/raw-request", "raw_request"),
    ("WebhookApi", "POST", "/webhook", "webhook"),
    ("WebhookApi", "GET", "/webhook", "webhook"),
    ("WebhookApi", "POST", "/webhook/{connection}", "webhook"),
    ("WebhookApi", "GET", "/webhook/{connection}", "webhook"),
}


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms, read as their long ones."""


def _long_form(loader: _Loader, tag: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    match node:
        case yaml.ScalarNode():
            value = loader.construct_scalar(node)
        case yaml.SequenceNode():
            value = loader.construct_sequence(node, deep=True)
        case yaml.MappingNode():
            value = loader.construct_mapping(node, deep=True)
    if tag == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {tag if tag in {"Ref", "Condition"} else f"Fn::{tag}": value}


_Loader.add_multi_constructor("!", _long_form)

TEMPLATE: dict[str, Any] = yaml.load((ROOT / "template.yaml").read_text(), _Loader)  # noqa: S506 a safe loader
PARAMETERS: dict[str, Any] = TEMPLATE["Parameters"]
RESOURCES: dict[str, Any] = TEMPLATE["Resources"]


def of_type(kind: str) -> dict[str, Any]:
    """Return the properties of all resources of a type, by their names."""
    return {name: resource.get("Properties", {}) for name, resource in RESOURCES.items() if resource["Type"] == kind}


def found(key: str, tree: Any) -> Iterator[Any]:
    """Yield what stands under a key, wherever it is."""
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if name == key:
            yield value
        yield from found(key, value)


def listed(value: Any) -> list[Any]:
    """Return a list also of one."""
    return value if isinstance(value, list) else [value]


def allowed(tree: Any) -> list[str]:
    """Return all actions that policies in a part of the template allow."""
    return [action for actions in found("Action", tree) for action in listed(actions)]


def resource(name: str) -> str:
    """Return the name of a function's resource: `send_sms` is `SendSmsFunction`."""
    return f"{name.title().replace('_', '')}Function"


# ---------------------------------------------------------------- one name, five places


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_in_its_five_places(name: str) -> None:
    """A function has its resource, its event, its unit tests and its section of the README."""
    title = name.replace("_", " ").title().replace("Sms", "SMS")

    assert FUNCTION == RESOURCES[resource(name)]["Type"]
    assert f"{name}.handler" == RESOURCES[resource(name)]["Properties"]["Handler"]
    assert (ROOT / "events" / f"{name}.json").is_file()
    assert (ROOT / "tests" / "unit" / f"test_{name}.py").is_file()
    assert section(title)


def test_every_resource_has_its_function() -> None:
    """The template has no function without a file."""
    assert set(map(resource, FUNCTIONS)) == of_type(FUNCTION).keys()


@pytest.mark.parametrize("path", sorted((ROOT / "events").iterdir()), ids=lambda path: path.stem)
def test_every_event_is_of_a_function(path: Any) -> None:
    """An event is a JSON object, and its name begins with its function's."""
    assert path.stem.startswith(tuple(FUNCTIONS))
    assert isinstance(json.loads(path.read_text()), dict)


# ---------------------------------------------------------------- what users give and get


def test_parameters() -> None:
    """The parameters and their defaults are those that users rely on."""
    assert DEFAULTS == {name: parameter["Default"] for name, parameter in PARAMETERS.items()}


def test_parameters_are_explained() -> None:
    """Every parameter has a description, a group, and if it can be wrong the words that say so."""
    groups = TEMPLATE["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]

    assert sorted(PARAMETERS) == sorted(name for group in groups for name in group["Parameters"])
    assert [] == [name for name, parameter in PARAMETERS.items() if not parameter["Description"]]
    assert [] == [
        name
        for name, parameter in PARAMETERS.items()
        if "AllowedPattern" in parameter and "ConstraintDescription" not in parameter
    ]


def test_outputs() -> None:
    """The outputs are those that users rely on, each with a description."""
    assert OUTPUTS == TEMPLATE["Outputs"].keys()
    assert [] == [name for name, output in TEMPLATE["Outputs"].items() if not output["Description"]]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_arns_are_of_the_alias(name: str) -> None:
    """A function's output is the ARN of its alias, which every deployment moves."""
    assert {"Ref": f"{resource(name)}.Alias"} == TEMPLATE["Outputs"][f"{resource(name)}Arn"]["Value"]


@pytest.mark.parametrize(("name", "default"), DEFAULTS.items(), ids=DEFAULTS)
def test_readme_tells_parameters(name: str, default: object) -> None:
    """The README has each parameter with its default."""
    assert str(default) == rows(section("Configuration"))[name][0].strip("`")


def test_readme_tells_outputs() -> None:
    """The README has each output, and no other."""
    table = section("Configuration").split("| output |")[1].split("\n\n")[0]

    assert OUTPUTS == rows(table).keys()


# ---------------------------------------------------------------- who may do what


def test_nothing_is_allowed_everywhere() -> None:
    """No policy has a wildcard as its resource, or as all actions of a service."""
    resources = [each for value in found("Resource", RESOURCES) for each in listed(value)]

    assert resources
    assert [] == [each for each in resources if each == "*"]
    assert [] == [action for action in allowed(RESOURCES) if "*" in action]


def test_all_actions_that_are_allowed() -> None:
    """Functions read secrets and a setting, keep their tables, use the queues, put events, and ask for replies."""
    assert {
        "secretsmanager:GetSecretValue",
        "secretsmanager:DescribeSecret",
        "secretsmanager:PutSecretValue",
        "secretsmanager:UpdateSecretVersionStage",
        "kms:Decrypt",
        "kms:GenerateDataKey",
        "events:PutEvents",
        "dynamodb:GetItem",
        "dynamodb:BatchGetItem",
        "dynamodb:PutItem",
        "dynamodb:Query",
        "sqs:ReceiveMessage",
        "sqs:DeleteMessage",
        "sqs:GetQueueAttributes",
        "sqs:ChangeMessageVisibility",
        "sqs:SendMessage",
        "ssm:GetParameter",
        "lambda:InvokeFunction",
    } == set(allowed(RESOURCES))


def test_connections_policy() -> None:
    """Secrets are read below the prefix only, and a key is used through Secrets Manager only."""
    read, decrypt = RESOURCES["ConnectionsPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    arn = "arn:${AWS::Partition}:secretsmanager:${AWS::Region}:${AWS::AccountId}:secret:${ConnectionPrefix}*"

    assert ("secretsmanager:GetSecretValue", {"Fn::Sub": arn}) == (read["Action"], read["Resource"])
    condition, statement, otherwise = decrypt["Fn::If"]
    via = {"kms:ViaService": {"Fn::Sub": "secretsmanager.${AWS::Region}.${AWS::URLSuffix}"}}
    assert ("HasConnectionKmsKey", {"Ref": "AWS::NoValue"}) == (condition, otherwise)
    assert ("kms:Decrypt", {"Ref": "ConnectionKmsKeyArn"}) == (statement["Action"], statement["Resource"])
    assert {"StringEquals": via} == statement["Condition"]


@pytest.mark.parametrize("name", READERS)
def test_actions_may_read_connections_only(name: str) -> None:
    """An action that keeps no ledger has the connections' policy and no other."""
    assert [{"Ref": "ConnectionsPolicy"}] == RESOURCES[resource(name)]["Properties"]["Policies"]


SECRETS_ARN = "arn:${AWS::Partition}:secretsmanager:${AWS::Region}:${AWS::AccountId}:secret:${ConnectionPrefix}*"
REPLY_ARN = "arn:${AWS::Partition}:ssm:${AWS::Region}:${AWS::AccountId}:parameter${Reply}"


@pytest.mark.parametrize(
    ("name", "rights"),
    [
        (
            "SendSmsFunction",
            {
                "dynamodb:GetItem Ledger",
                "dynamodb:PutItem Ledger",
                "dynamodb:Query ${Ledger.Arn}/index/content-index",
                "sqs:ReceiveMessage SendQueue",
                "sqs:DeleteMessage SendQueue",
                "sqs:GetQueueAttributes SendQueue",
                "sqs:ChangeMessageVisibility SendQueue",
                "sqs:SendMessage SendQueue",
                "sqs:SendMessage FailedQueue",
                "events:PutEvents EventBus twilio-connector",
            },
        ),
        (
            "ResolveFunction",
            {
                "dynamodb:GetItem Ledger",
                "dynamodb:PutItem Ledger",
                "dynamodb:Query ${Ledger.Arn}/index/*",
                "sqs:SendMessage FailedQueue",
                "events:PutEvents EventBus twilio-connector",
            },
        ),
        (
            "PollMessagesFunction",
            {
                "dynamodb:GetItem Deliveries",
                "dynamodb:BatchGetItem Deliveries",
                "dynamodb:PutItem Deliveries",
                "sqs:SendMessage BufferQueue",
                "sqs:SendMessage BufferDeadLetterQueue",
                "events:PutEvents EventBus twilio",
            },
        ),
        (
            "RotateConnectionFunction",
            {
                f"secretsmanager:DescribeSecret {SECRETS_ARN}",
                f"secretsmanager:PutSecretValue {SECRETS_ARN}",
                f"secretsmanager:UpdateSecretVersionStage {SECRETS_ARN}",
                "kms:GenerateDataKey ConnectionKmsKeyArn if HasConnectionKmsKey",
            },
        ),
        (
            "WebhookFunction",
            {
                "dynamodb:GetItem Ledger",
                "dynamodb:PutItem Ledger",
                "dynamodb:PutItem Deliveries",
                "sqs:SendMessage BufferQueue",
                "sqs:SendMessage BufferDeadLetterQueue",
                "sqs:ReceiveMessage BufferQueue",
                "sqs:DeleteMessage BufferQueue",
                "sqs:GetQueueAttributes BufferQueue",
                "events:PutEvents EventBus twilio",
                f"ssm:GetParameter {REPLY_ARN} if HasReply",
                "lambda:InvokeFunction ReplyFunctionArn if HasReplyFunction",
            },
        ),
    ],
)
def test_other_functions_may(name: str, rights: set[str]) -> None:
    """Each has the rights that it needs, on the one thing it needs them for; only the webhook speaks as `twilio`."""
    connections, own = RESOURCES[name]["Properties"]["Policies"]
    statements = [unconditional(statement) for statement in own["Statement"]]
    given = {
        " ".join([action, listed(next(iter(target.values())))[0], *sources, *condition])
        for statement, condition in statements
        for action in listed(statement["Action"])
        for target in listed(statement["Resource"])
        for sources in [found("events:source", statement)]
    }

    assert {"Ref": "ConnectionsPolicy"} == connections
    assert rights == given
    assert {"Allow"} == {statement["Effect"] for statement, _ in statements}


def unconditional(statement: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a policy's statement, and the condition on which it is there at all."""
    if "Fn::If" not in statement:
        return statement, []
    condition, inner, otherwise = statement["Fn::If"]
    assert {"Ref": "AWS::NoValue"} == otherwise
    return inner, ["if", condition]


def test_only_the_rule_and_the_topic_may_write_to_the_queues() -> None:
    """No service may put anything in a queue but for the stack's rule, and the topic that the parameter names."""
    (policy,) = of_type("AWS::SQS::QueuePolicy").values()
    rule, topic = RESOURCES["QueuePolicy"]["Properties"]["PolicyDocument"]["Statement"]
    condition, topic, otherwise = topic["Fn::If"]

    assert [{"Ref": "SendQueue"}, {"Ref": "FailedQueue"}] == policy["Queues"]
    assert ("HasSendTopic", {"Ref": "AWS::NoValue"}) == (condition, otherwise)
    assert {"ArnEquals": {"aws:SourceArn": {"Fn::GetAtt": ["SendSmsRequestedRule", "Arn"]}}} == rule["Condition"]
    assert {"ArnEquals": {"aws:SourceArn": {"Ref": "SendTopicArn"}}} == topic["Condition"]
    assert {"sqs:SendMessage"} == {statement["Action"] for statement in (rule, topic)}


def test_no_role_is_shared() -> None:
    """Every function has the role that SAM makes for it alone."""
    assert [] == list(found("Role", TEMPLATE["Globals"])) + list(found("Role", RESOURCES))


# ---------------------------------------------------------------- the front doors


def test_routes() -> None:
    """The two APIs have the routes that users rely on."""
    routes = {
        (
            event["ApiId"]["Ref"],
            event["Method"],
            event["Path"],
            properties["Handler"].removesuffix(".handler"),
        )
        for properties in of_type(FUNCTION).values()
        for event in (
            source["Properties"] for source in properties.get("Events", {}).values() if source["Type"] == "HttpApi"
        )
    }

    assert ROUTES == routes


def test_actions_need_a_signature() -> None:
    """The Actions API asks every caller for an AWS signature, and no route has a rule of its own."""
    apis = of_type("AWS::Serverless::HttpApi")

    assert {"EnableIamAuthorizer": True, "DefaultAuthorizer": "AWS_IAM"} == apis["ActionsApi"]["Auth"]
    assert [] == [
        name for name, properties in of_type(FUNCTION).items() if list(found("Auth", properties.get("Events", {})))
    ]
    assert [] == list(found("FunctionUrlConfig", RESOURCES))


def test_webhook_is_throttled() -> None:
    """The Webhook API, open to anyone, has limits that the parameters set."""
    assert {
        "ThrottlingRateLimit": {"Ref": "WebhookRateLimit"},
        "ThrottlingBurstLimit": {"Ref": "WebhookBurstLimit"},
    } == RESOURCES["WebhookApi"]["Properties"]["DefaultRouteSettings"]


@pytest.mark.parametrize("api", ["ActionsApi", "WebhookApi"])
def test_access_logs_hold_no_path(api: str) -> None:
    """Access logs are JSON without path and query, which hold phone numbers and SIDs, and without headers."""
    logs = RESOURCES[api]["Properties"]["AccessLogSettings"]
    fields = json.loads(logs["Format"])

    assert "AWS::Logs::LogGroup" == RESOURCES[logs["DestinationArn"]["Fn::GetAtt"][0]]["Type"]
    assert {
        "$context.requestId",
        "$context.requestTime",
        "$context.identity.sourceIp",
        "$context.routeKey",
        "$context.status",
        "$context.responseLength",
        "$context.responseLatency",
        "$context.integrationStatus",
        "$context.integrationErrorMessage",
    } == set(fields.values())


# ---------------------------------------------------------------- sending at most once


def test_lambda_never_repeats_a_send() -> None:
    """An asynchronous invocation of what may send is not repeated, through the alias or without."""
    through_alias = {
        name: RESOURCES[name]["Properties"]["EventInvokeConfig"]["MaximumRetryAttempts"] for name in ASYNCHRONOUS
    }
    without = {
        config["FunctionName"]["Ref"]: (config["Qualifier"], config["MaximumRetryAttempts"])
        for config in of_type("AWS::Lambda::EventInvokeConfig").values()
    }

    assert dict.fromkeys(ASYNCHRONOUS, 0) == through_alias
    assert dict.fromkeys(ASYNCHRONOUS, ("$LATEST", 0)) == without


def test_nothing_is_given_up_without_a_trace() -> None:
    """Every asynchronous invocation, rule, subscription, schedule and queue that is read has a place for failures."""
    asynchronous = {
        name: destination["Destination"]["Fn::GetAtt"][0]
        for name, properties in RESOURCES.items()
        for destination in found("OnFailure", properties)
    }
    targets = [target for rule in of_type("AWS::Events::Rule").values() for target in rule["Targets"]]
    subscriptions = of_type("AWS::SNS::Subscription").values()
    schedules = [
        event["Properties"]
        for function in of_type(FUNCTION).values()
        for event in function.get("Events", {}).values()
        if event["Type"].startswith("Schedule")
    ]
    mappings = of_type("AWS::Lambda::EventSourceMapping").values()
    redrives = {
        name: properties["RedrivePolicy"]["deadLetterTargetArn"]["Fn::GetAtt"][0]
        for name, properties in of_type("AWS::SQS::Queue").items()
        if "RedrivePolicy" in properties
    }

    assert (
        ASYNCHRONOUS
        | {
            "SendSmsLatestInvokeConfig": "FailedQueue",
            "RawRequestLatestInvokeConfig": "DeadLetterQueue",
            "ResolveFunction": "DeadLetterQueue",
            "PollMessagesFunction": "DeadLetterQueue",
            "RotateConnectionFunction": "DeadLetterQueue",
        }
        == asynchronous
    )
    assert [["FailedQueue", "Arn"]] == [target["DeadLetterConfig"]["Arn"]["Fn::GetAtt"] for target in targets]
    assert [["FailedQueue", "Arn"]] == [
        each["RedrivePolicy"]["deadLetterTargetArn"]["Fn::GetAtt"] for each in subscriptions
    ]
    assert [["DeadLetterQueue", "Arn"]] * 2 == [each["DeadLetterConfig"]["Arn"]["Fn::GetAtt"] for each in schedules]
    assert GIVEN_UP.keys() == {mapping["EventSourceArn"]["Fn::GetAtt"][0] for mapping in mappings}
    assert redrives == GIVEN_UP
    assert send_queue.MOST_RECEIVES < RESOURCES["SendQueue"]["Properties"]["RedrivePolicy"]["maxReceiveCount"]


def test_the_buffer_is_patient() -> None:
    """A record comes again only after any invocation has ended, and for as long as the README says."""
    buffer = RESOURCES["BufferQueue"]["Properties"]
    timeout = RESOURCES["WebhookFunction"]["Properties"].get("Timeout", TEMPLATE["Globals"]["Function"]["Timeout"])
    window = RESOURCES["BufferToWebhook"]["Properties"].get("MaximumBatchingWindowInSeconds", 0)
    visibility = buffer["VisibilityTimeout"]

    # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
    assert 6 * timeout + window <= visibility
    assert (180, 10 * 3600) == (visibility, visibility * buffer["RedrivePolicy"]["maxReceiveCount"])
    assert "every three minutes for ten hours" in section("Webhook")


def test_queues_are_encrypted_and_patient() -> None:
    """Queues have SQS's own key, under which EventBridge and SNS can write, and keep messages for 14 days."""
    for properties in of_type("AWS::SQS::Queue").values():
        assert properties["SqsManagedSseEnabled"]
        assert 14 * 24 * 3600 == properties["MessageRetentionPeriod"]


def test_time_limits_fit_together() -> None:
    """By default a record comes again only after any invocation has ended, and a lease ends after that too."""
    # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
    timeout, window = DEFAULTS["SendSmsTimeout"], DEFAULTS["SendBatchWindow"]
    visibility, lease = DEFAULTS["SendVisibilityTimeout"], DEFAULTS["SendLease"]

    assert {"Ref": "SendSmsTimeout"} == RESOURCES["SendSmsFunction"]["Properties"]["Timeout"]
    assert {"Ref": "SendVisibilityTimeout"} == RESOURCES["SendQueue"]["Properties"]["VisibilityTimeout"]
    assert isinstance(timeout, int)
    assert isinstance(window, int)
    assert isinstance(visibility, int)
    assert isinstance(lease, int)
    assert 6 * timeout + window <= visibility
    assert timeout < lease


@pytest.mark.parametrize("name", ["Ledger", "Deliveries"])
def test_table(name: str) -> None:
    """A table is encrypted, can be restored, forgets keys by itself, and costs nothing when nothing happens."""
    table = RESOURCES[name]["Properties"]

    assert "PAY_PER_REQUEST" == table["BillingMode"]
    assert {"SSEEnabled": True} == table["SSESpecification"]
    assert {"PointInTimeRecoveryEnabled": True} == table["PointInTimeRecoverySpecification"]
    assert {"AttributeName": "expires_at", "Enabled": True} == table["TimeToLiveSpecification"]


def test_tables_go_with_their_stack() -> None:
    """Only where one would be replaced is the ledger kept: without it keys would be sent again."""
    policies = {
        name: (RESOURCES[name]["DeletionPolicy"], RESOURCES[name]["UpdateReplacePolicy"])
        for name in of_type("AWS::DynamoDB::Table")
    }

    assert {"Ledger": ("Delete", "Retain"), "Deliveries": ("Delete", "Delete")} == policies


def test_mapping_of_the_buffer() -> None:
    """Of a batch only the records that the bus did not take come again."""
    mapping = RESOURCES["BufferToWebhook"]["Properties"]

    assert {"Ref": "WebhookFunction.Alias"} == mapping["FunctionName"]
    assert ["ReportBatchItemFailures"] == mapping["FunctionResponseTypes"]


def test_mapping_of_the_send_queue() -> None:
    """Of a batch only the failed records come again, and parameters set the limits."""
    mapping = RESOURCES["SendQueueToSendSms"]["Properties"]

    assert {"Ref": "SendSmsFunction.Alias"} == mapping["FunctionName"]
    assert ["ReportBatchItemFailures"] == mapping["FunctionResponseTypes"]
    assert {"MaximumConcurrency": {"Ref": "SendMaximumConcurrency"}} == mapping["ScalingConfig"]
    assert ({"Ref": "SendBatchSize"}, {"Ref": "SendBatchWindow"}) == (
        mapping["BatchSize"],
        mapping["MaximumBatchingWindowInSeconds"],
    )


def test_the_connector_does_not_answer_itself() -> None:
    """What the connector publishes never makes it send."""
    (rule,) = of_type("AWS::Events::Rule").values()

    assert {
        "detail-type": ["Send SMS Requested"],
        "source": [{"anything-but": ["twilio", "twilio-connector"]}],
    } == rule["EventPattern"]


# ---------------------------------------------------------------- secrets


def test_no_parameter_is_a_secret() -> None:
    """Credentials stay in Secrets Manager: no parameter takes one, and nothing resolves one."""
    assert [] == [name for name in PARAMETERS if re.search("secret|token|password|auth|sid", name, re.IGNORECASE)]
    assert [] == list(found("NoEcho", PARAMETERS))
    assert "{{resolve:" not in (ROOT / "template.yaml").read_text()


def test_environment() -> None:
    """The functions' environment has settings, and nothing that is secret."""
    shared = TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]
    own = {name: variables for name in of_type(FUNCTION) for variables in found("Variables", RESOURCES[name])}

    assert {
        "CONNECTION_PREFIX": {"Ref": "ConnectionPrefix"},
        "DEFAULT_CONNECTION": {"Ref": "DefaultConnection"},
        "DEFAULT_COUNTRY": {"Ref": "DefaultCountry"},
        "TWILIO_API_URL": {"Ref": "TwilioApiUrl"},
        "LOG_LEVEL": {"Ref": "LogLevel"},
        "URL_SUFFIX": {"Ref": "AWS::URLSuffix"},
        "RES_OPTIONS": "timeout:1 attempts:2",
        "POWERTOOLS_SERVICE_NAME": {"Ref": "AWS::StackName"},
    } == shared
    assert {
        "WebhookFunction": {
            "WEBHOOK_BASE_URL": {"Ref": "WebhookBaseUrl"},
            "EVENT_BUS_NAME": {"Ref": "EventBus"},
            "LEDGER_TABLE": {"Ref": "Ledger"},
            "DELIVERIES_TABLE": {"Ref": "Deliveries"},
            "BUFFER_QUEUE_URL": {"Ref": "BufferQueue"},
            "BUFFER_DEAD_LETTER_QUEUE_URL": {"Ref": "BufferDeadLetterQueue"},
            "REPLY_PARAMETER": {"Fn::If": ["HasReply", {"Ref": "Reply"}, ""]},
        },
        "PollMessagesFunction": {
            "EVENT_BUS_NAME": {"Ref": "EventBus"},
            "DELIVERIES_TABLE": {"Ref": "Deliveries"},
            "BUFFER_QUEUE_URL": {"Ref": "BufferQueue"},
            "BUFFER_DEAD_LETTER_QUEUE_URL": {"Ref": "BufferDeadLetterQueue"},
        },
        "SendSmsFunction": {
            "WEBHOOK_URL": TEMPLATE["Outputs"]["WebhookUrl"]["Value"],
            "LEDGER_TABLE": {"Ref": "Ledger"},
            "EVENT_BUS_NAME": {"Ref": "EventBus"},
            "SEND_QUEUE_URL": {"Ref": "SendQueue"},
            "FAILED_QUEUE_URL": {"Ref": "FailedQueue"},
            "SEND_THREADS": {"Ref": "SendThreads"},
            "SEND_LEASE": {"Ref": "SendLease"},
        },
        "ResolveFunction": {
            "LEDGER_TABLE": {"Ref": "Ledger"},
            "EVENT_BUS_NAME": {"Ref": "EventBus"},
            "FAILED_QUEUE_URL": {"Ref": "FailedQueue"},
            "UNKNOWN_REPORT_AFTER": {"Ref": "UnknownReportAfter"},
        },
    } == own


# ---------------------------------------------------------------- many stacks, many deployments


def test_nothing_stops_a_second_stack() -> None:
    """What has a name of its own has the stack's name in it."""
    named = {
        f"{name}.{key}": value
        for name, resource in RESOURCES.items()
        for key, value in resource.get("Properties", {}).items()
        if re.fullmatch(r"(?:\w*[a-z])?Name|ManagedPolicyName", key)
        and key not in {"FunctionName", "MetricName", "EventBusName"}
    } | {
        f"{name}.FunctionName": properties["FunctionName"]
        for name, properties in of_type(FUNCTION).items()
        if "FunctionName" in properties
    }

    assert {
        "EventBus.Name": {"Ref": "AWS::StackName"},
        "ActionsApi.Name": {"Fn::Sub": "${AWS::StackName}-actions"},
        "WebhookApi.Name": {"Fn::Sub": "${AWS::StackName}-webhook"},
        "Reply.Name": {"Fn::Sub": "/twilio-connector/${AWS::StackName}/reply"},
    } == named


@pytest.mark.parametrize("name", sorted(of_type(FUNCTION)))
def test_alias_follows_every_change(name: str) -> None:
    """A version's description has every parameter of the environment: a new value publishes a version."""
    properties, shared = RESOURCES[name]["Properties"], TEMPLATE["Globals"]
    separator, parts = properties["VersionDescription"]["Fn::Join"]
    if "Fn::Join" in parts[0]:  # what all functions have, and one more
        parts = [*parts[0]["Fn::Join"][1], *parts[1:]]
    environment = [
        shared["Function"]["Environment"],
        shared["Function"]["Architectures"],
        shared["Function"]["SnapStart"],
        properties.get("Environment", {}),
    ]
    named = {*found("Ref", environment), *re.findall(r"\$\{(\w+)\}", " ".join(found("Fn::Sub", environment)))}
    used = named & PARAMETERS.keys()
    conditions = {condition for condition, *_ in found("Fn::If", environment)}
    chosen = {condition for condition in conditions if not parameters_of(condition) <= used}

    assert used == {part["Ref"] for part in parts if "Ref" in part}
    assert chosen == {part["Fn::If"][0] for part in parts if "Fn::If" in part}
    assert properties["AutoPublishAliasAllProperties"]
    assert "live" == shared["Function"]["AutoPublishAlias"]
    assert shared["LayerVersion"]["PublishLambdaVersion"]
    # https://docs.aws.amazon.com/lambda/latest/api/API_PublishVersion.html
    assert 256 >= sum(map(longest, parts)) + len(separator) * (len(parts) - 1)


def parameters_of(condition: str) -> set[str]:
    """Return the parameters on which a condition depends."""
    tree = TEMPLATE["Conditions"][condition]
    return {*found("Ref", tree), *(each for other in found("Condition", tree) for each in parameters_of(other))}


def test_reply_is_read_at_run_time() -> None:
    """Function and text are too long for a version's description: they are in a parameter, one after the other."""
    reply = RESOURCES["Reply"]

    assert ("AWS::SSM::Parameter", "HasReply") == (reply["Type"], reply["Condition"])
    assert {"ReplyFunctionArn", "AutoReply"} == parameters_of("HasReply")
    assert {"ReplyFunctionArn"} == parameters_of("HasReplyFunction")
    assert {"Fn::Sub": "${ReplyFunctionArn}\n${AutoReply}"} == reply["Properties"]["Value"]


def longest(part: dict[str, Any]) -> int:
    """Return the length of the longest value that a part of a description can have."""
    if "Fn::If" in part:
        return max(map(len, part["Fn::If"][1:]))
    parameter = PARAMETERS[part["Ref"]]
    if parameter["Type"] == "Number":
        return len(str(parameter["MaxValue"]))
    if "MaxLength" in parameter:
        return int(parameter["MaxLength"])
    if "AllowedValues" in parameter:
        return max(map(len, parameter["AllowedValues"]))
    return max(length for length in range(1000) if re.fullmatch(parameter["AllowedPattern"], "A" * length))


# ---------------------------------------------------------------- what operators see


@pytest.mark.parametrize("name", sorted(of_type(FUNCTION)))
def test_function_has_logs(name: str) -> None:
    """Every function has a log group of its own, with the retention that the parameter sets."""
    group = RESOURCES[name]["Properties"]["LoggingConfig"]["LogGroup"]["Ref"]

    assert f"{name.removesuffix('Function')}Logs" == group
    assert {"RetentionInDays": {"Ref": "LogRetentionDays"}} == RESOURCES[group]["Properties"]


def test_every_log_group_is_used_once() -> None:
    """No log group is shared, or left over."""
    used = [value["Ref"] for value in found("LogGroup", RESOURCES)]
    used += [value["Fn::GetAtt"][0] for value in found("DestinationArn", RESOURCES)]

    assert sorted(of_type("AWS::Logs::LogGroup")) == sorted(used)


def test_metrics_pass_the_log_filter() -> None:
    """Lambda's filter lets lines of level INFO through at every LogLevel, since metrics are such lines."""
    logging = TEMPLATE["Globals"]["Function"]["LoggingConfig"]

    assert "JSON" == logging["LogFormat"]
    assert {"Fn::If": ["IsDebug", "DEBUG", "INFO"]} == logging["ApplicationLogLevel"]


def test_alarms() -> None:
    """What a person must look at tells the topic that the parameter names, from the first one on."""
    alarms = of_type("AWS::CloudWatch::Alarm").values()
    watched = {
        (alarm["Namespace"], alarm["MetricName"], dimension["Name"], named(dimension["Value"]), alarm["Threshold"])
        for alarm in alarms
        for dimension in alarm["Dimensions"]
    }
    actions = {"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]}

    assert {("AWS/Lambda", "Errors", "FunctionName", name, 1) for name in of_type(FUNCTION)} | {
        ("AWS/ApiGateway", "5xx", "ApiId", name, 1) for name in of_type("AWS::Serverless::HttpApi")
    } | {
        ("TwilioConnector", "OutcomeUnknown", "service", "AWS::StackName", 1),
        ("TwilioConnector", "RepliesFailed", "service", "AWS::StackName", 1),
        ("AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", "DeadLetterQueue", 1),
    } | {("AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", name, 1) for name in GIVEN_UP.values()} | {
        ("AWS/SQS", "ApproximateAgeOfOldestMessage", "QueueName", name, 900) for name in GIVEN_UP
    } == watched
    assert all(alarm["AlarmActions"] == actions for alarm in alarms)


def named(value: dict[str, Any]) -> str:
    """Return the name in a reference to a resource."""
    return str(value["Ref"] if "Ref" in value else value["Fn::GetAtt"][0])
