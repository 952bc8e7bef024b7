"""The bundle is consistent: each function is in its five places, and the template is as the documentation says."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from twilio_connector.messaging import queue_consumer

from tests.conftest import DEPLOYED
from tests.readme import ROOT, rows, section

FUNCTIONS = sorted(path.stem for path in (ROOT / "functions").glob("*.py"))
ASYNCHRONOUS = {"SendSmsFunction": "FailedQueue", "RawRequestFunction": "DeadLetterQueue"}
FUNCTION = "AWS::Serverless::Function"

GIVEN_UP = {"BufferQueue": "BufferDeadLetterQueue"}
"""Each queue with the dead-letter queue for records that were received too often."""
MENDED = ["RecordsUnhandled", "SecretsMalformed", "CredentialsRefused", "DefaultConnectionMissing"]
"""Metrics of failures that a person must fix at once."""
OF_LIBRARIES = {"RES_OPTIONS", "POWERTOOLS_SERVICE_NAME"}
"""Variables that libraries read: the C library's resolver, and Powertools."""
HARMLESS = {
    "$context.requestId",
    "$context.requestTime",
    "$context.identity.sourceIp",
    "$context.routeKey",
    "$context.status",
    "$context.responseLength",
    "$context.responseLatency",
    "$context.integrationStatus",
    "$context.integrationErrorMessage",
}
"""The variables that access logs may contain: none of them has a phone number, a SID or a secret."""
DENIED = {"sqs:*", "logs:*"}
"""Actions that policies deny: calls of queues without TLS, and logs that are not the functions' own."""


class _Loader(yaml.CSafeLoader):
    """A YAML loader that reads CloudFormation's short forms as their long ones."""


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
    """Yield every value of a key, at any depth."""
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if name == key:
            yield value
        yield from found(key, value)


def listed(value: Any) -> list[Any]:
    """Return a value as a list, unless it is one."""
    return value if isinstance(value, list) else [value]


def allowed(tree: Any) -> list[str]:
    """Return all actions in the policies of a part of the template, both allowed and denied ones."""
    return [action for actions in found("Action", tree) for action in listed(actions)]


def resource(name: str) -> str:
    """Return the name of a function's resource: `send_sms` is `SendSmsFunction`."""
    return f"{name.title().replace('_', '')}Function"


# ---------------------------------------------------------------- one name, five places


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_in_its_five_places(name: str) -> None:
    """A function has its file, its resource, its event, its unit tests and its line in the reference."""
    assert FUNCTION == RESOURCES[resource(name)]["Type"]
    assert f"{name}.handler" == RESOURCES[resource(name)]["Properties"]["Handler"]
    assert (ROOT / "events" / f"{name}.json").is_file()
    assert (ROOT / "tests" / "unit" / f"test_{name}.py").is_file()
    assert name in rows(section("reference", "Functions"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_who_is_not_waited_for_imports_boto3(name: str) -> None:
    """Only `rotate_connection`, for which no caller waits, imports boto3; in the layer, only `rotation` uses it.

    Loading boto3 takes longer than everything else in the start of a function.
    """
    code = f"""
import sys, {name}
from twilio_connector import http
print(sorted({{"boto3", "botocore.client", "botocore.auth"}} & sys.modules.keys()))
http._AUTHORITIES.join()  # a thread in the midst of OpenSSL may end Python with an error
"""
    path = os.pathsep.join(map(str, (ROOT / "functions", ROOT / "layers" / "twilio")))
    variables = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)

    assert (name == "rotate_connection") == ("boto3" in done.stdout)
    assert name == "rotate_connection" or done.stdout == "[]\n"


def test_every_resource_has_its_function() -> None:
    """Every function in the template has a file, and every file has its function."""
    assert set(map(resource, FUNCTIONS)) == of_type(FUNCTION).keys()


@pytest.mark.parametrize("path", sorted((ROOT / "events").iterdir()), ids=lambda path: path.stem)
def test_every_event_is_of_a_function(path: Any) -> None:
    """An event is a JSON object, and its file name begins with the name of its function."""
    assert path.stem.startswith(tuple(FUNCTIONS))
    assert isinstance(json.loads(path.read_text()), dict)


# ---------------------------------------------------------------- parameters and outputs


def test_parameters_are_explained() -> None:
    """Every parameter has a description and a group; a parameter with a pattern has a description of the constraint."""
    groups = TEMPLATE["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]

    assert sorted(PARAMETERS) == sorted(name for group in groups for name in group["Parameters"])
    assert [] == [name for name, parameter in PARAMETERS.items() if not parameter["Description"]]
    assert [] == [
        name
        for name, parameter in PARAMETERS.items()
        if "AllowedPattern" in parameter and "ConstraintDescription" not in parameter
    ]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_arns_are_of_the_alias(name: str) -> None:
    """A function's output is the ARN of its alias, which every deployment moves."""
    assert {"Ref": f"{resource(name)}.Alias"} == TEMPLATE["Outputs"][f"{resource(name)}Arn"]["Value"]


def test_readme_tells_parameters() -> None:
    """The reference, on which users rely, lists each parameter with its default, and no others."""
    told = {name: cells[0].strip("`") for name, cells in rows(section("reference", "Parameters")).items()}

    assert {name: str(parameter["Default"]) for name, parameter in PARAMETERS.items()} == told


def test_readme_tells_outputs() -> None:
    """The reference lists each output, and no others. Each output has a description."""
    assert rows(section("reference", "Outputs")).keys() == TEMPLATE["Outputs"].keys()
    assert [] == [name for name, output in TEMPLATE["Outputs"].items() if not output["Description"]]


# ---------------------------------------------------------------- permissions


def test_nothing_is_allowed_everywhere() -> None:
    """No policy has a wildcard as its resource, or allows all actions of a service."""
    resources = [each for value in found("Resource", RESOURCES) for each in listed(value)]

    assert resources
    assert [] == [each for each in resources if each == "*"]
    assert DENIED == {action for action in allowed(RESOURCES) if "*" in action}


def test_queues_are_read_by_whom_lambda_delivers_to() -> None:
    """Only the function that gets a queue's records may read it, because Lambda reads it with the function's role."""
    reads = {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"}
    delivered = {
        (mapping["FunctionName"]["Ref"].removesuffix(".Alias"), mapping["EventSourceArn"]["Fn::GetAtt"][0], action)
        for mapping in of_type("AWS::Lambda::EventSourceMapping").values()
        for action in reads
    }
    may = {
        (name, target["Fn::GetAtt"][0], action)
        for name, properties in of_type(FUNCTION).items()
        for statements in found("Statement", properties["Policies"])
        for statement, _ in map(unconditional, statements)
        for action in reads.intersection(listed(statement["Action"]))
        for target in listed(statement["Resource"])
    }

    assert delivered == may


def test_connections_policy() -> None:
    """Secrets can be read only below the prefix, and the KMS key can be used only through Secrets Manager."""
    read, decrypt, _ = RESOURCES["ConnectionsPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    arn = "arn:${AWS::Partition}:secretsmanager:${AWS::Region}:${AWS::AccountId}:secret:${ConnectionPrefix}*"

    assert ("secretsmanager:GetSecretValue", {"Fn::Sub": arn}) == (read["Action"], read["Resource"])
    condition, statement, otherwise = decrypt["Fn::If"]
    via = {"kms:ViaService": {"Fn::Sub": "secretsmanager.${AWS::Region}.${AWS::URLSuffix}"}}
    assert ("HasConnectionKmsKey", {"Ref": "AWS::NoValue"}) == (condition, otherwise)
    assert ("kms:Decrypt", {"Ref": "ConnectionKmsKeyArn"}) == (statement["Action"], statement["Resource"])
    assert {"StringEquals": via} == statement["Condition"]


def test_logs_of_others_are_not_written() -> None:
    """Functions can write only to their own log groups, because a policy denies all others.

    AWS's own policy for Lambda allows all logs of the account.
    A log group's ARN has `:*` at its end for some actions, and none for others:
    https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/iam-access-control-overview-cwl.html
    """
    *_, deny = RESOURCES["ConnectionsPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    groups = {each["LoggingConfig"]["LogGroup"]["Ref"] for each in of_type(FUNCTION).values()}

    assert ("Deny", "logs:*") == (deny["Effect"], deny["Action"])
    start = "arn:${AWS::Partition}:logs:${AWS::Region}:${AWS::AccountId}:log-group:"
    assert {f"{start}${{{group}}}*" for group in groups} == {arn["Fn::Sub"] for arn in deny["NotResource"]}
    assert all({"Ref": "ConnectionsPolicy"} in each["Policies"] for each in of_type(FUNCTION).values())


REPLY_ARN = "arn:${AWS::Partition}:ssm:${AWS::Region}:${AWS::AccountId}:parameter${Reply}"


def test_rights_are_given_on_conditions_of_the_parameters() -> None:
    """A key, a reply function or a reply text can be used only if the parameter for it is set."""
    conditions = {
        (action, next(iter(statement["Resource"].values())), *condition)
        for properties in of_type(FUNCTION).values()
        for statements in found("Statement", properties["Policies"])
        for statement, condition in map(unconditional, statements)
        for action in listed(statement["Action"])
        if condition
    }

    assert {
        ("kms:GenerateDataKey", "ConnectionKmsKeyArn", "if", "HasConnectionKmsKey"),
        ("ssm:GetParameter", REPLY_ARN, "if", "HasReply"),
        ("lambda:InvokeFunction", "ReplyFunctionArn", "if", "HasReplyFunction"),
    } == conditions


def test_no_event_is_put_without_a_source() -> None:
    """PutEvents requires a source: `ForAllValues` also holds if the key is missing, so `Null` requires the key."""
    conditions = [
        condition
        for policy in found("Policies", RESOURCES)
        for statements in found("Statement", policy)
        for statement in statements
        if statement.get("Action") == "events:PutEvents"
        for condition in [statement["Condition"]]
    ]

    assert conditions
    assert [{"events:source": "false"}] * len(conditions) == [condition["Null"] for condition in conditions]


def unconditional(statement: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a policy's statement, and the condition under which the template includes it."""
    if "Fn::If" not in statement:
        return statement, []
    condition, inner, otherwise = statement["Fn::If"]
    assert {"Ref": "AWS::NoValue"} == otherwise
    return inner, ["if", condition]


def test_only_the_rule_and_the_topic_may_write_to_the_queues() -> None:
    """Only two services may send to the queues: the stack's rule, and the topic that the parameter names."""
    rule, topic, _ = RESOURCES["QueuePolicy"]["Properties"]["PolicyDocument"]["Statement"]
    condition, topic, otherwise = topic["Fn::If"]

    both = [{"Fn::GetAtt": [name, "Arn"]} for name in ("SendQueue", "FailedQueue")]
    assert both == rule["Resource"] == topic["Resource"]
    assert ("HasSendTopic", {"Ref": "AWS::NoValue"}) == (condition, otherwise)
    assert {"ArnEquals": {"aws:SourceArn": {"Fn::GetAtt": ["SendSmsRequestedRule", "Arn"]}}} == rule["Condition"]
    assert {"ArnEquals": {"aws:SourceArn": {"Ref": "SendTopicArn"}}} == topic["Condition"]
    assert {"sqs:SendMessage"} == {statement["Action"] for statement in (rule, topic)}


def test_queues_are_spoken_to_over_tls_only() -> None:
    """Each queue has the policy that denies calls without TLS. The template has no topic.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-security-best-practices.html
    """
    (policy,) = of_type("AWS::SQS::QueuePolicy").values()
    *_, deny = policy["PolicyDocument"]["Statement"]
    queues = of_type("AWS::SQS::Queue")

    assert queues.keys() == {queue["Ref"] for queue in policy["Queues"]}
    assert queues.keys() == {queue["Fn::GetAtt"][0] for queue in deny["Resource"]}
    assert ("Deny", "*", "sqs:*") == (deny["Effect"], deny["Principal"], deny["Action"])
    assert {"Bool": {"aws:SecureTransport": "false"}} == deny["Condition"]
    assert {} == of_type("AWS::SNS::Topic")


def test_no_role_is_shared() -> None:
    """Every function has its own role, which SAM creates."""
    assert [] == list(found("Role", TEMPLATE["Globals"])) + list(found("Role", RESOURCES))


# ---------------------------------------------------------------- APIs


def test_readme_tells_routes() -> None:
    """The reference, on which users rely, lists each function's routes through the two APIs, and no others."""
    routes = {
        (properties["Handler"].removesuffix(".handler"), source["Properties"]["Method"], source["Properties"]["Path"])
        for properties in of_type(FUNCTION).values()
        for source in properties.get("Events", {}).values()
        if source["Type"] == "HttpApi"
    }
    told = {
        (name, method, path)
        for name, (_, through, _) in rows(section("reference", "Functions")).items()
        # `POST`, `GET /webhook` and `/webhook/{connection}` are four routes: each method with each path.
        for method, path in (
            itertools.product(re.findall("[A-Z]{3,}", through), re.findall(r"/[^`]*", through))
            if name == "webhook"
            else re.findall(r"`([A-Z]+) (/[^`]*)`", through)
        )
    }

    assert told == routes


@pytest.mark.parametrize("name", FUNCTIONS)
def test_routes_are_of_one_api(name: str) -> None:
    """The webhook's routes, which require no AWS signature, are in an API of their own."""
    apis = {
        source["Properties"]["ApiId"]["Ref"]
        for source in RESOURCES[resource(name)]["Properties"].get("Events", {}).values()
        if source["Type"] == "HttpApi"
    }

    assert apis <= {"WebhookApi" if name == "webhook" else "ActionsApi"}


def test_actions_need_a_signature() -> None:
    """The Actions API requires an AWS signature from every caller, and no route overrides this.

    No function has a URL.
    """
    apis = of_type("AWS::Serverless::HttpApi")

    assert {"EnableIamAuthorizer": True, "DefaultAuthorizer": "AWS_IAM"} == apis["ActionsApi"]["Auth"]
    assert [] == [
        name for name, properties in of_type(FUNCTION).items() if list(found("Auth", properties.get("Events", {})))
    ]
    assert [] == list(found("FunctionUrlConfig", RESOURCES))


def test_webhook_is_throttled() -> None:
    """The Webhook API, which is open to anyone, has the rate limits that the parameters set."""
    assert {
        "ThrottlingRateLimit": {"Ref": "WebhookRateLimit"},
        "ThrottlingBurstLimit": {"Ref": "WebhookBurstLimit"},
    } == RESOURCES["WebhookApi"]["Properties"]["DefaultRouteSettings"]


@pytest.mark.parametrize("api", ["ActionsApi", "WebhookApi"])
def test_access_logs_hold_no_path(api: str) -> None:
    """Access logs are JSON without headers, and without path and query, which contain phone numbers and SIDs."""
    logs = RESOURCES[api]["Properties"]["AccessLogSettings"]
    fields = json.loads(logs["Format"])

    assert "AWS::Logs::LogGroup" == RESOURCES[logs["DestinationArn"]["Fn::GetAtt"][0]]["Type"]
    assert {*fields.values()} <= HARMLESS


# ---------------------------------------------------------------- sending at most once


def test_lambda_never_repeats_a_send() -> None:
    """Lambda does not retry an asynchronous invocation of a function that may send.

    This holds for invocations through the alias and without it.
    """
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
    """Every asynchronous invocation, rule, subscription, schedule and buffer has a destination for failures."""
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
        }
        == asynchronous
    )
    assert [["FailedQueue", "Arn"]] == [target["DeadLetterConfig"]["Arn"]["Fn::GetAtt"] for target in targets]
    assert [["FailedQueue", "Arn"]] == [
        each["RedrivePolicy"]["deadLetterTargetArn"]["Fn::GetAtt"] for each in subscriptions
    ]
    assert [["DeadLetterQueue", "Arn"]] * 2 == [each["DeadLetterConfig"]["Arn"]["Fn::GetAtt"] for each in schedules]
    assert redrives == GIVEN_UP


def test_sqs_moves_nothing_out_of_the_send_queue() -> None:
    """The send queue has no redrive policy.

    A record that was moved back would have another id, so that a record without its own key would be sent twice.
    """
    assert "RedrivePolicy" not in RESOURCES["SendQueue"]["Properties"]


def test_rule_and_topic_hand_over_their_ids() -> None:
    """The rule and the subscription deliver messages unchanged.

    Their dead letters therefore contain the id that serves as the key.
    """
    (rule,) = of_type("AWS::Events::Rule").values()
    (subscription,) = of_type("AWS::SNS::Subscription").values()

    assert [{"Id", "Arn", "DeadLetterConfig"}] == [target.keys() for target in rule["Targets"]]
    assert {"TopicArn", "Protocol", "Endpoint", "RedrivePolicy"} == subscription.keys()


def test_the_buffer_is_patient() -> None:
    """SQS redelivers a buffered record only after any invocation has ended, for as long as the documentation says."""
    buffer = RESOURCES["BufferQueue"]["Properties"]
    timeout = RESOURCES["WebhookFunction"]["Properties"].get("Timeout", TEMPLATE["Globals"]["Function"]["Timeout"])
    window = RESOURCES["BufferToWebhook"]["Properties"].get("MaximumBatchingWindowInSeconds", 0)
    visibility = buffer["VisibilityTimeout"]

    # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
    assert 6 * timeout + window <= visibility
    assert (180, 10 * 3600) == (visibility, visibility * buffer["RedrivePolicy"]["maxReceiveCount"])
    assert "every three minutes, for ten hours" in section("operations", "Buffer")


def test_queues_are_encrypted_and_patient() -> None:
    """Queues use SQS's own key, with which EventBridge and SNS can write, and keep messages for 14 days."""
    for properties in of_type("AWS::SQS::Queue").values():
        assert properties["SqsManagedSseEnabled"]
        assert 14 * 24 * 3600 == properties["MessageRetentionPeriod"]


@pytest.mark.parametrize("name", ["Ledger", "Deliveries"])
def test_table(name: str) -> None:
    """A table is encrypted, can be restored, deletes expired keys, and costs nothing while it is not used."""
    table = RESOURCES[name]["Properties"]

    assert "PAY_PER_REQUEST" == table["BillingMode"]
    assert {"SSEEnabled": True} == table["SSESpecification"]
    assert {"PointInTimeRecoveryEnabled": True} == table["PointInTimeRecoverySpecification"]
    assert {"AttributeName": "expires_at", "Enabled": True} == table["TimeToLiveSpecification"]


def test_mapping_of_the_buffer() -> None:
    """SQS redelivers only the records of a batch that the bus did not take."""
    mapping = RESOURCES["BufferToWebhook"]["Properties"]

    assert {"Ref": "WebhookFunction.Alias"} == mapping["FunctionName"]
    assert ["ReportBatchItemFailures"] == mapping["FunctionResponseTypes"]


def test_mapping_of_the_send_queue() -> None:
    """SQS redelivers only the failed records of a batch, and parameters set the limits."""
    mapping = RESOURCES["SendQueueToSendSms"]["Properties"]

    assert {"Ref": "SendSmsFunction.Alias"} == mapping["FunctionName"]
    assert ["ReportBatchItemFailures"] == mapping["FunctionResponseTypes"]
    assert {"MaximumConcurrency": {"Ref": "SendMaximumConcurrency"}} == mapping["ScalingConfig"]
    assert ({"Ref": "SendBatchSize"}, {"Ref": "SendBatchWindow"}) == (
        mapping["BatchSize"],
        mapping["MaximumBatchingWindowInSeconds"],
    )


def test_the_connector_does_not_answer_itself() -> None:
    """An event that the connector publishes never makes it send a message."""
    (rule,) = of_type("AWS::Events::Rule").values()

    assert {
        "detail-type": ["Send SMS Requested"],
        "source": [{"anything-but": ["twilio", "twilio-connector"]}],
    } == rule["EventPattern"]


# ---------------------------------------------------------------- secrets


def test_no_parameter_is_a_secret() -> None:
    """Credentials stay in Secrets Manager: no parameter takes one, and the template resolves none."""
    assert [] == [name for name in PARAMETERS if re.search("secret|token|password|auth|sid", name, re.IGNORECASE)]
    assert [] == list(found("NoEcho", PARAMETERS))
    assert "{{resolve:" not in (ROOT / "template.yaml").read_text()


def test_environment() -> None:
    """The code reads every variable, which is named after the parameter or resource to which it refers."""
    code = "".join(path.read_text() for path in DEPLOYED)
    variables = {(name, json.dumps(value)) for each in found("Variables", TEMPLATE) for name, value in each.items()}
    own = {(name, value) for name, value in variables if name not in OF_LIBRARIES}
    webhook_url = ("WEBHOOK_URL", json.dumps(TEMPLATE["Outputs"]["WebhookUrl"]["Value"]))

    assert webhook_url in own
    assert OF_LIBRARIES <= {name for name, _ in variables}
    for name, value in own:
        refers = {re.sub("(?<=.)(?=[A-Z][a-z])", "_", ref).upper() for ref in found("Ref", json.loads(value))}
        assert re.search(f"['\"]{name}['\"]", code), name
        assert (name, value) == webhook_url or [True] == [name.startswith(ref.split("::")[-1]) for ref in refers]


# ---------------------------------------------------------------- deployments


@pytest.mark.parametrize("name", sorted(of_type(FUNCTION)))
def test_alias_follows_every_change(name: str) -> None:
    """A change of code, layer or settings publishes a version, and the alias moves to it."""
    assert RESOURCES[name]["Properties"]["AutoPublishAliasAllProperties"]
    assert "live" == TEMPLATE["Globals"]["Function"]["AutoPublishAlias"]
    assert TEMPLATE["Globals"]["LayerVersion"]["PublishLambdaVersion"]


def parameters_of(condition: str) -> set[str]:
    """Return the parameters on which a condition depends."""
    tree = TEMPLATE["Conditions"][condition]
    return {*found("Ref", tree), *(each for other in found("Condition", tree) for each in parameters_of(other))}


def test_reply_is_read_at_run_time() -> None:
    """The reply function's ARN and the reply text are in one SSM parameter, on separate lines.

    They are too long for a version's description.
    """
    reply = RESOURCES["Reply"]

    assert ("AWS::SSM::Parameter", "HasReply") == (reply["Type"], reply["Condition"])
    assert {"ReplyFunctionArn", "AutoReply"} == parameters_of("HasReply")
    assert {"ReplyFunctionArn"} == parameters_of("HasReplyFunction")
    assert {"Fn::Sub": "${ReplyFunctionArn}\n${AutoReply}"} == reply["Properties"]["Value"]


# ---------------------------------------------------------------- logs and alarms


@pytest.mark.parametrize("name", sorted(of_type(FUNCTION)))
def test_function_has_logs(name: str) -> None:
    """Every function has its own log group, with the retention that the parameter sets."""
    group = RESOURCES[name]["Properties"]["LoggingConfig"]["LogGroup"]["Ref"]

    assert f"{name.removesuffix('Function')}Logs" == group
    assert {"RetentionInDays": {"Ref": "LogRetentionDays"}} == RESOURCES[group]["Properties"]


def test_every_log_group_is_used_once() -> None:
    """No log group is shared or unused."""
    used = [value["Ref"] for value in found("LogGroup", RESOURCES)]
    used += [value["Fn::GetAtt"][0] for value in found("DestinationArn", RESOURCES)]

    assert sorted(of_type("AWS::Logs::LogGroup")) == sorted(used)


def test_metrics_pass_the_log_filter() -> None:
    """Lambda's filter passes lines of level INFO at every LogLevel, because metrics are such lines."""
    logging = TEMPLATE["Globals"]["Function"]["LoggingConfig"]

    assert "JSON" == logging["LogFormat"]
    assert {"Fn::If": ["IsDebug", "DEBUG", "INFO"]} == logging["ApplicationLogLevel"]


def test_alarms() -> None:
    """Every failure that a person must look at has an alarm, which notifies the topic that the parameter names."""
    alarms = of_type("AWS::CloudWatch::Alarm").values()
    watched = {
        (alarm["Namespace"], alarm["MetricName"], dimension["Name"], named(dimension["Value"]), alarm["Threshold"])
        for alarm in alarms
        for dimension in alarm.get("Dimensions", ())
    }
    actions = {"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]}
    own = {"Fn::Sub": "TwilioConnector/${AWS::StackName}"}

    assert sorted(f"{name.removesuffix('Function')}Faults" for name in of_type(FUNCTION)) == sorted(
        alarm["MetricName"] for alarm in alarms if alarm["Namespace"] == own and "Dimensions" not in alarm
    )
    assert {
        ("AWS/Lambda", "Throttles", "FunctionName", name, 1)
        for name in ("SendSmsFunction", "WebhookFunction", "ResolveFunction")
    } | {("AWS/ApiGateway", "5xx", "ApiId", name, 1) for name in of_type("AWS::Serverless::HttpApi")} | {
        ("TwilioConnector", "OutcomeUnknown", "service", "AWS::StackName", 1),
        ("TwilioConnector", "RepliesFailed", "service", "AWS::StackName", 1),
        ("TwilioConnector", "SendQueueAge", "service", "AWS::StackName", 900),
        ("TwilioConnector", "BufferAge", "service", "AWS::StackName", 900),
        ("TwilioConnector", "TwilioErrors", "service", "AWS::StackName", 3),
        ("TwilioConnector", "TwilioErrors", "error", "TwilioUnavailableError", 3),
        ("TwilioConnector", "WebhookReadingsRefused", "service", "AWS::StackName", 1),
        ("TwilioConnector", "WebhookUrlMismatch", "service", "AWS::StackName", 1),
    } | {("TwilioConnector", name, "service", "AWS::StackName", 1) for name in MENDED} | {
        ("AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", name, 1)
        for name in ("SendQueue", "BufferQueue", "FailedQueue", "DeadLetterQueue", "BufferDeadLetterQueue")
    } == watched
    every = [*alarms, *of_type("AWS::CloudWatch::CompositeAlarm").values()]
    assert all(alarm["AlarmActions"] == alarm["OKActions"] == actions for alarm in every)


def test_alarms_of_the_send_queue_last_as_long_as_their_cause() -> None:
    """An alarm of the send queue starts at the first count.

    It lasts until the longest time between two deliveries has passed without another count.
    """
    alarms = [
        alarm
        for alarm in of_type("AWS::CloudWatch::Alarm").values()
        if alarm["MetricName"] in {*MENDED, "SendQueueAge"}
    ]

    assert len(MENDED) + 1 == len(alarms)
    for alarm in alarms:
        assert 1 == alarm["DatapointsToAlarm"]
        assert queue_consumer.LONGEST_DELAY < alarm["Period"] * alarm["EvaluationPeriods"]


def named(value: Any) -> str:
    """Return the name in a reference to a resource, or the value itself."""
    if isinstance(value, str):
        return value
    return str(value["Ref"] if "Ref" in value else value["Fn::GetAtt"][0])
