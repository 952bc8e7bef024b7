"""The template after the SAM transform: stacks side by side, updates without replacement, and published versions."""

import itertools
import json
import re
from functools import cache
from typing import Any

import pytest

from local.rights import schema, transformed
from tests.cloudformation import EARLIER, Resolver, defaults, of_type
from tests.unit import test_bundle

FUNCTIONS = sorted(test_bundle.of_type(test_bundle.FUNCTION))
"""The functions' names in the template."""

REPLACED = {"AWS::Lambda::Version", "AWS::Lambda::LayerVersion", "AWS::Scheduler::Schedule"}
"""Resource types that hold no data of users, so that an update may replace them."""
INNER = {
    "AWS::ApiGatewayV2::Stage",
    "AWS::Lambda::Alias",
    "AWS::Lambda::EventInvokeConfig",
    "AWS::Lambda::EventSourceMapping",
    "AWS::Lambda::Permission",
    "AWS::Logs::MetricFilter",
    "AWS::SQS::QueuePolicy",
}
"""Resource types that are named after a function, API, queue or log group, or whose names are unique within one."""
NO_LONGER = {"RotateConnectionFunctionEventInvokeConfig"}

API_URL = "https://<WebhookApi>.execute-api.us-east-1.amazonaws.com"
OTHERS = {
    "ConnectionPrefix": ["other/", "a/b/"],
    "ConnectionKmsKeyArn": ["arn:aws:kms:us-east-1:000000000000:key/made-up"],
    "DefaultConnection": ["other"],
    "DefaultCountry": ["", "DE"],
    "WebhookBaseUrl": ["https://example.com", "http://example.com", "https://example.com|10", API_URL],
    "WebhookRateLimit": ["10"],
    "WebhookBurstLimit": ["10"],
    "ReplyFunctionArn": ["arn:aws:lambda:us-east-1:000000000000:function:reply"],
    "AutoReply": ["Hello", "Goodbye"],
    "PollingSchedule": ["rate(5 minutes)", "cron(0 10 ? * MON-FRI *)"],
    "UnknownReportAfter": ["60"],
    "SendTopicArn": ["arn:aws:sns:us-east-1:000000000000:topic"],
    "SendBatchSize": ["5"],
    "SendBatchWindow": ["1"],
    "SendMaximumConcurrency": ["2"],
    "SendThreads": ["1", "50"],
    "SendSmsTimeout": ["20", "300"],
    "SendLease": ["20", "3600"],
    "Architecture": ["x86_64"],
    "SnapStart": ["on"],
    "LogLevel": ["DEBUG", "WARNING", "ERROR"],
    "LogSuccess": ["false"],
    "Tracing": ["Active"],
    "LogRetentionDays": ["1"],
    "AlarmTopicArn": ["arn:aws:sns:us-east-1:000000000000:alarms"],
    "TwilioApiUrl": ["https://example.com", "https://example.com|iax", "http://localhost:1", "http://127.0.0.1"],
}
"""Other values of each parameter; some look like another's, or like the separator of a version's description."""
FIVE_MORE = 5 * len("|x")


@cache
def functions() -> dict[str, Any]:
    """Return the functions' properties by their names."""
    return of_type(transformed(), "AWS::Lambda::Function")


@cache
def versions() -> dict[str, Any]:
    """Return the properties of the functions' versions by the functions' names."""
    return {each["FunctionName"]["Ref"]: each for each in of_type(transformed(), "AWS::Lambda::Version").values()}


def allowed(name: str, value: str) -> bool:
    """Return whether the template accepts a parameter's value."""
    parameter = transformed()["Parameters"][name]
    if "AllowedValues" in parameter:
        return value in map(str, parameter["AllowedValues"])
    if parameter["Type"] == "Number":
        return bool(parameter["MinValue"] <= int(value) <= parameter.get("MaxValue", 10**9))
    if len(value) > parameter.get("MaxLength", 4096):
        return False
    return re.fullmatch(parameter.get("AllowedPattern", "(?s).*"), value) is not None


# ---------------------------------------------------------------- several stacks


def test_no_physical_name_is_fixed() -> None:
    """Every name in the template contains the stack's name, so that two stacks of an account have nothing in common."""
    resolve = Resolver(transformed())
    fixed = [
        (name, key)
        for name, resource in transformed()["Resources"].items()
        if resource["Type"] not in INNER
        for key in names(resource["Type"]) & resource.get("Properties", {}).keys()
        if "stack" not in str(resolve(resource["Properties"][key]))
    ]

    assert [] == fixed


def names(resource_type: str) -> set[str]:
    """Return the properties that name a resource: the identifiers in its schema, and others such as LayerName."""
    found = schema(resource_type)
    identifiers = [found["primaryIdentifier"], *found.get("additionalIdentifiers", [])]
    written = {path.removeprefix("/properties/") for each in identifiers for path in each}
    kind = resource_type.rpartition("::")[2]
    known: set[str] = {*found["properties"]}
    return (written | {"Name", "LayerName", f"{kind}Name", "ManagedPolicyName"}) & known


def test_schedules_are_named_by_cloudformation() -> None:
    """CloudFormation names the schedules, because SAM's own names would be the same in every stack of an account."""
    schedules = of_type(transformed(), "AWS::Scheduler::Schedule").values()

    assert 2 == len(schedules)
    assert [] == [schedule for schedule in schedules if "Name" in schedule]


# ---------------------------------------------------------------- updates


def test_an_update_replaces_nothing_of_users() -> None:
    """An update from commit b2091fe keeps tables, queues, the bus and its rules, the APIs and their URLs, and logs."""
    earlier, now = transformed(EARLIER)["Resources"], transformed()["Resources"]
    kept = {
        name: resource
        for name, resource in earlier.items()
        if resource["Type"] not in REPLACED and name not in NO_LONGER
    }

    assert kept
    assert [] == [name for name in kept if name not in now or now[name]["Type"] != kept[name]["Type"]]
    assert [] == [
        (name, path)
        for name, resource in kept.items()
        for path in create_only(resource["Type"])
        if at(path, resource) != at(path, now[name])
    ]


def create_only(resource_type: str) -> list[str]:
    """Return the properties whose change makes CloudFormation replace a resource."""
    found = schema(resource_type)
    paths: list[str] = [
        *found.get("createOnlyProperties", []),
        *found.get("conditionalCreateOnlyProperties", []),
    ]
    return paths


def at(path: str, resource: dict[str, Any]) -> Any:
    """Return a resource's value at a path such as `/properties/Name`."""
    value: Any = resource.get("Properties", {})
    for key in path.removeprefix("/properties/").split("/"):
        value = value.get(key) if isinstance(value, dict) else value
    return value


def test_what_cannot_be_had_again_outlives_the_stack() -> None:
    """The ledger and the failed queue, which has the only copy of unsent messages, are kept when a stack is deleted."""
    kept = {
        name
        for name, resource in transformed()["Resources"].items()
        if {"Retain"} == {resource.get("DeletionPolicy"), resource.get("UpdateReplacePolicy")}
    }

    assert {"Ledger", "FailedQueue"} == kept


def test_no_length_shrank() -> None:
    """Each parameter still accepts the values and lengths that it accepted at commit b2091fe."""
    earlier, now = transformed(EARLIER)["Parameters"], transformed()["Parameters"]
    shrunk = [
        name
        for name in earlier.keys() & now.keys()
        if now[name].get("MaxLength", 4096) < earlier[name].get("MaxLength", 4096)
        or now[name].get("MaxValue", 10**9) < earlier[name].get("MaxValue", 10**9)
        or not {*earlier[name].get("AllowedValues", [])} <= {*now[name].get("AllowedValues", [])}
    ]

    assert [] == shrunk
    assert {"SendVisibilityTimeout"} == earlier.keys() - now.keys()


# ---------------------------------------------------------------- versions


def test_every_function_has_a_version() -> None:
    """Each function of the template is one after the transform, and has a version."""
    assert FUNCTIONS == sorted(functions()) == sorted(versions())


def test_every_parameter_is_tried() -> None:
    """Each parameter has other values in these tests, and the template accepts them."""
    assert transformed()["Parameters"].keys() == OTHERS.keys()
    assert [] == [
        (name, value)
        for name, values in OTHERS.items()
        for value in values
        if not allowed(name, value) and value != API_URL
    ]


def settings() -> list[dict[str, str]]:
    """Return the defaults, each parameter changed alone, and each pair of changes that are in descriptions."""
    changes = [{name: value} for name, values in OTHERS.items() for value in values]
    resolve = {name: json.dumps(versions()[name]["Description"]) for name in FUNCTIONS}
    described = [each for each in changes if any(f'"{next(iter(each))}"' in text for text in resolve.values())]
    pairs = [one | other for one, other in itertools.combinations(described, 2) if one.keys() != other.keys()]
    return [{}, *changes, *pairs]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_version_and_function_change_together(name: str) -> None:
    """The description of a function's version changes exactly when the function changes.

    A new description publishes a version, which Lambda refuses if the function did not change. A function that changes
    under the same description is not published.
    """
    by_description: dict[str, set[str]] = {}
    by_function: dict[str, set[str]] = {}
    for values in settings():
        resolve = Resolver(transformed(), values)
        description = resolve(versions()[name]["Description"])
        function = json.dumps(resolve({**functions()[name], "Tags": None}), sort_keys=True)
        by_description.setdefault(description, set()).add(function)
        by_function.setdefault(function, set()).add(description)

    assert 1 < len(by_description)
    assert [] == [each for each in by_description.values() if len(each) > 1]
    assert [] == [each for each in by_function.values() if len(each) > 1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_description_has_room(name: str) -> None:
    """The longest description, with codes for five more parameters, is within Lambda's 256 characters.

    https://docs.aws.amazon.com/lambda/latest/api/API_PublishVersion.html
    """
    longest = {
        parameter: "x" * int(transformed()["Parameters"][parameter].get("MaxLength", 0))
        for parameter in ("ConnectionPrefix", "WebhookBaseUrl")
    }
    longest |= {"DefaultConnection": "x" * 64, "SendThreads": "50", "SendLease": "3600", "SendSmsTimeout": "300"}
    longest |= {"UnknownReportAfter": "1440", "TwilioApiUrl": f"https://{'x' * (50 - len('https://'))}"}
    description = Resolver(transformed(), longest)(versions()[name]["Description"])

    assert len(description) + FIVE_MORE <= 256


def test_functions_have_no_tags_of_their_own() -> None:
    """Functions have only the tag of SAM.

    SAM publishes a version when a tag changes, and Lambda refuses it, because tags are not part of a version.
    """
    sam = [{"Key": "lambda:createdBy", "Value": "SAM"}]

    assert [] == [name for name, function in functions().items() if function["Tags"] != sam]


# ---------------------------------------------------------------- values that contradict each other

CONTRADICTIONS = [
    {"SendBatchSize": "11"},
    {"SendBatchSize": "1000", "SendBatchWindow": "0"},
]


@pytest.mark.parametrize("values", CONTRADICTIONS, ids=str)
def test_contradictions_are_refused(values: dict[str, str]) -> None:
    """A rule of the template refuses values that contradict each other, before anything is created."""
    assert 1 == len(list(Resolver(transformed(), values).rules()))


@pytest.mark.parametrize("values", [{}, {"SendBatchSize": "11", "SendBatchWindow": "1"}], ids=str)
def test_what_fits_is_not_refused(values: dict[str, str]) -> None:
    """The rules accept the defaults, and larger batches that have a window to fill."""
    assert [] == list(Resolver(transformed(), values).rules())


@pytest.mark.parametrize("seconds", ["20", "30", "75", "300"])
def test_records_come_again_after_the_invocation(seconds: str) -> None:
    """SQS redelivers a record after six times the function's timeout at the earliest, as AWS advises.

    AWS refuses a queue that redelivers before the function's timeout.

    https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
    """
    resolve = Resolver(transformed(), {"SendSmsTimeout": seconds})
    function = int(resolve(functions()["SendSmsFunction"]["Timeout"]))
    queue = int(resolve(transformed()["Resources"]["SendQueue"]["Properties"]["VisibilityTimeout"]))

    assert int(seconds) == function
    assert 6 * function <= queue


def test_a_new_account_keeps_half_of_its_concurrency() -> None:
    """The queues use at most five of a new account's ten executions, and no function reserves concurrency."""
    mappings = of_type(transformed(), "AWS::Lambda::EventSourceMapping").values()
    resolve = Resolver(transformed())

    assert 5 >= sum(int(resolve(each["ScalingConfig"]["MaximumConcurrency"])) for each in mappings)
    assert [] == [name for name, each in functions().items() if "ReservedConcurrentExecutions" in each]


# ---------------------------------------------------------------- alarms


def test_no_alarm_on_the_age_of_a_queue() -> None:
    """No alarm uses SQS's own metric of the age, which leaves out records that were received three times.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
    """
    alarms = of_type(transformed(), "AWS::CloudWatch::Alarm")

    assert alarms
    assert [] == [name for name, each in alarms.items() if each["MetricName"] == "ApproximateAgeOfOldestMessage"]
    assert [] == [name for name, each in alarms.items() if "Metrics" in each]


def test_defaults_are_allowed() -> None:
    """The template accepts its own defaults."""
    assert [] == [(name, value) for name, value in defaults(transformed()).items() if not allowed(name, value)]
