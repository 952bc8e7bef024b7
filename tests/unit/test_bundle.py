"""The bundle hangs together: each function is in its five places, and the template keeps its promises."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.readme import ROOT, rows, section

FUNCTIONS = sorted(path.stem for path in (ROOT / "functions").glob("*.py"))
ACTIONS = [name for name in FUNCTIONS if name != "webhook"]
SENDERS = ["SendSmsFunction", "RawRequestFunction"]
FUNCTION = "AWS::Serverless::Function"

DEFAULTS = {
    "ConnectionPrefix": "twilio/",
    "ConnectionKmsKeyArn": "",
    "DefaultConnection": "default",
    "DefaultCountry": "US",
    "WebhookBaseUrl": "",
    "TwilioApiUrl": "",
    "Architecture": "arm64",
    "WebhookRateLimit": 1000,
    "WebhookBurstLimit": 2000,
    "LogLevel": "INFO",
    "LogRetentionDays": 30,
    "AlarmTopicArn": "",
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
}
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
    """Functions read secrets, decrypt them, and put events; nothing else."""
    assert {"secretsmanager:GetSecretValue", "kms:Decrypt", "events:PutEvents"} == set(allowed(RESOURCES))


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


@pytest.mark.parametrize("name", ACTIONS)
def test_actions_may_read_connections_only(name: str) -> None:
    """An action has the connections' policy and no other."""
    assert [{"Ref": "ConnectionsPolicy"}] == RESOURCES[resource(name)]["Properties"]["Policies"]


def test_only_the_webhook_may_put_events() -> None:
    """The webhook puts events on the stack's bus, with the source `twilio` and no other; nothing else may."""
    connections, publish = RESOURCES["WebhookFunction"]["Properties"]["Policies"]
    (statement,) = publish["Statement"]

    assert {"Ref": "ConnectionsPolicy"} == connections
    assert {
        "Effect": "Allow",
        "Action": "events:PutEvents",
        "Resource": {"Fn::GetAtt": ["EventBus", "Arn"]},
        "Condition": {"ForAllValues:StringEquals": {"events:source": "twilio"}},
    } == {name: value for name, value in statement.items() if name != "Sid"}
    assert 1 == allowed(RESOURCES).count("events:PutEvents")


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
        for event in (source["Properties"] for source in properties["Events"].values())
    }

    assert ROUTES == routes


def test_actions_need_a_signature() -> None:
    """The Actions API asks every caller for an AWS signature, and no route has a rule of its own."""
    apis = of_type("AWS::Serverless::HttpApi")

    assert {"EnableIamAuthorizer": True, "DefaultAuthorizer": "AWS_IAM"} == apis["ActionsApi"]["Auth"]
    assert [] == [name for name, properties in of_type(FUNCTION).items() if list(found("Auth", properties["Events"]))]
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
        name: RESOURCES[name]["Properties"]["EventInvokeConfig"]["MaximumRetryAttempts"] for name in SENDERS
    }
    without = {
        config["FunctionName"]["Ref"]: (config["Qualifier"], config["MaximumRetryAttempts"])
        for config in of_type("AWS::Lambda::EventInvokeConfig").values()
    }

    assert dict.fromkeys(SENDERS, 0) == through_alias
    assert dict.fromkeys(SENDERS, ("$LATEST", 0)) == without


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
        "RES_OPTIONS": "timeout:1 attempts:2",
        "POWERTOOLS_SERVICE_NAME": {"Ref": "AWS::StackName"},
    } == shared
    assert {
        "WebhookFunction": {
            "WEBHOOK_BASE_URL": {"Ref": "WebhookBaseUrl"},
            "EVENT_BUS_NAME": {"Ref": "EventBus"},
        }
    } == own


# ---------------------------------------------------------------- many stacks, many deployments


def test_nothing_stops_a_second_stack() -> None:
    """What has a name of its own has the stack's name in it."""
    named = {
        f"{name}.{key}": value
        for name, resource in RESOURCES.items()
        for key, value in resource.get("Properties", {}).items()
        if re.fullmatch(r"(?:\w*[a-z])?Name|ManagedPolicyName", key) and key not in {"FunctionName", "MetricName"}
    } | {
        f"{name}.FunctionName": properties["FunctionName"]
        for name, properties in of_type(FUNCTION).items()
        if "FunctionName" in properties
    }

    assert {
        "EventBus.Name": {"Ref": "AWS::StackName"},
        "ActionsApi.Name": {"Fn::Sub": "${AWS::StackName}-actions"},
        "WebhookApi.Name": {"Fn::Sub": "${AWS::StackName}-webhook"},
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
        properties.get("Environment", {}),
    ]
    used = {reference for reference in found("Ref", environment) if reference in PARAMETERS}

    assert used == {part["Ref"] for part in parts}
    assert properties["AutoPublishAliasAllProperties"]
    assert "live" == shared["Function"]["AutoPublishAlias"]
    assert shared["LayerVersion"]["PublishLambdaVersion"]
    # https://docs.aws.amazon.com/lambda/latest/api/API_PublishVersion.html
    assert 256 >= sum(longest(PARAMETERS[part["Ref"]]) for part in parts) + len(separator) * (len(parts) - 1)


def longest(parameter: dict[str, Any]) -> int:
    """Return the length of a parameter's longest value."""
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
    """A single error of a function, or 5xx of an API, tells the topic that the parameter names."""
    alarms = of_type("AWS::CloudWatch::Alarm").values()
    watched = {
        (alarm["Namespace"], alarm["MetricName"], dimension["Name"], dimension["Value"]["Ref"])
        for alarm in alarms
        for dimension in alarm["Dimensions"]
    }
    actions = {"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]}

    assert {("AWS/Lambda", "Errors", "FunctionName", name) for name in of_type(FUNCTION)} | {
        ("AWS/ApiGateway", "5xx", "ApiId", name) for name in of_type("AWS::Serverless::HttpApi")
    } == watched
    assert all(alarm["AlarmActions"] == actions and alarm["Threshold"] == 1 for alarm in alarms)
