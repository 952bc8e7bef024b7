"""The models of CloudWatch and SQS follow AWS's documentation, and the template's alarms and dashboard fit them."""

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from twilio_connector import errors
from twilio_connector.errors import ConnectorError, InvalidInputError
from twilio_connector.invocation.function import Invocation, lambda_function

from tests.alarms import MINUTE, Datapoints, FilterPattern, Metric, Waiting, filters, fires
from tests.cloudformation import Resolver
from tests.conftest import Context
from tests.dashboard import SERVICES, Search, Series, series, widgets
from tests.readme import ROOT, rows, section
from tests.unit.conftest import Log
from tests.unit.test_bundle import TEMPLATE, of_type

resolve = Resolver(TEMPLATE, {"AWS::StackName": "stack"})

METRIC = Metric.of("TwilioConnector", "BufferAge", service="stack")
ALARM: dict[str, Any] = {
    "Namespace": "TwilioConnector",
    "MetricName": "BufferAge",
    "Dimensions": [{"Name": "service", "Value": "stack"}],
    "Statistic": "Maximum",
    "Period": MINUTE,
    "EvaluationPeriods": 5,
    "DatapointsToAlarm": 1,
    "Threshold": 900,
    "ComparisonOperator": "GreaterThanOrEqualToThreshold",
    "TreatMissingData": "notBreaching",
}


def points(*values: tuple[float, float], metric: Metric = METRIC) -> Datapoints:
    """Return data points of a metric: values at minutes."""
    found = Datapoints()
    for minute, value in values:
        found.add(metric, minute * MINUTE, value)
    return found


@pytest.mark.parametrize(
    ("change", "values", "raised"),
    [
        ({}, [(0, 899)], False),
        ({}, [(7, 900)], True),
        ({"DatapointsToAlarm": 2}, [(0, 900), (5, 900)], False),
        ({"DatapointsToAlarm": 2}, [(0, 900), (4, 900)], True),
        ({"DatapointsToAlarm": 5}, [(minute, 900) for minute in range(4)], False),
        ({"Statistic": "Sum", "Period": 300, "EvaluationPeriods": 1}, [(0, 300), (2, 300), (4, 300)], True),
        ({"Statistic": "Sum", "Period": 300, "EvaluationPeriods": 1}, [(0, 300), (4, 300), (5, 300)], False),
        ({"Statistic": "Minimum"}, [(0, 900), (0, 0)], False),
    ],
)
def test_alarm(change: dict[str, Any], values: list[tuple[float, float]], raised: bool) -> None:  # noqa: FBT001 expected
    """An alarm fires if enough of its last periods cross the threshold; a period without data does not cross it."""
    assert raised == fires(ALARM | change, points(*values), 10 * MINUTE)


def test_another_metric_raises_nothing() -> None:
    """An alarm ignores a metric whose namespace, name or dimensions differ from its own."""
    for other in (
        METRIC._replace(name="SendQueueAge"),
        METRIC._replace(namespace="AWS/SQS"),
        METRIC._replace(dimensions=frozenset({("service", "other")})),
    ):
        assert not fires(ALARM, points((0, 900), metric=other), MINUTE)


def test_age_leaves_out_what_was_received_three_times() -> None:
    """A record that was received three times no longer counts for the age of its queue.

    The queue then seems to be empty, although the record was never deleted.
    """
    found = Datapoints()
    found.queue("queue", [Waiting(0, (0, 180, 360, 540), 180)], 600)
    ages = dict(found.values[Metric.of("AWS/SQS", "ApproximateAgeOfOldestMessage", QueueName="queue")])

    assert (180, 300, 0, 0) == (ages[180], ages[300], ages[360], ages[600])


def test_what_was_received_is_not_visible_for_a_while() -> None:
    """A received record is invisible until its visibility timeout ends; a record that is not received stays visible."""
    found = Datapoints()
    found.queue("queue", [Waiting(0), Waiting(0, (60,), 180)], 300)
    visible = dict(found.values[Metric.of("AWS/SQS", "ApproximateNumberOfMessagesVisible", QueueName="queue")])

    assert (2, 1, 1, 2) == (visible[0], visible[60], visible[180], visible[240])


def test_embedded_metrics() -> None:
    """A log line's embedded metrics are read, whether a metric has one value or a list."""
    found = Datapoints()
    line = {
        "_aws": {
            "CloudWatchMetrics": [
                {
                    "Namespace": "TwilioConnector",
                    "Dimensions": [["service"]],
                    "Metrics": [{"Name": "BufferAge"}, {"Name": "EventsPublished"}],
                }
            ]
        },
        "service": "stack",
        "BufferAge": [1, 2],
        "EventsPublished": 3,
    }
    found.embedded(line, 60)

    assert {METRIC: [(60, 1), (60, 2)], METRIC._replace(name="EventsPublished"): [(60, 3)]} == found.values


# ---------------------------------------------------------------- filters of logs


@pytest.mark.parametrize(
    ("pattern", "line", "taken"),
    [
        ('{ $.a = "x" }', {"a": "x"}, True),
        ('{ $.a = "x" }', {"a": "xx"}, False),
        ('{ $.a = "x*" }', {"a": "xx"}, True),
        ('{ $.a = "*" }', {"b": "x"}, False),
        ('{ $.a != "x" }', {"a": "y"}, True),
        ('{ $.a.b = "x" }', {"a": {"b": "x"}}, True),
        ('{ $.a.b = "x" }', {"a": "x"}, False),
        ('{ $.a = "x" || $.b = "y" && $.c = "z" }', {"a": "x"}, True),
        ('{ ($.a = "x" || $.b = "y") && $.c = "z" }', {"a": "x"}, False),
        ('{ $.a = "x" }', "x", False),
    ],
)
def test_filter(pattern: str, line: Any, taken: bool) -> None:  # noqa: FBT001 expected
    """A filter pattern compares text values of a JSON line; `&&` binds before `||`."""
    assert taken == FilterPattern(pattern).matches(line)


@pytest.mark.parametrize(
    "pattern", ["", "error", '{ $.a = "x" ', '{ $.a = "x" || }', '{ ($.a = "x" }', "{ $.a }", '{ $.a = "x" "y" }']
)
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    """An invalid filter pattern is refused. Otherwise it would match no line, and nobody would notice."""
    with pytest.raises((ValueError, IndexError)):
        FilterPattern(pattern)


# ---------------------------------------------------------------- the template's alarms

SINGLE = of_type("AWS::CloudWatch::Alarm")
COMPOSITE = of_type("AWS::CloudWatch::CompositeAlarm")
FILTERS = filters(TEMPLATE, "stack")
RUNS = {"ResolveLogs", "PollMessagesLogs", "RotateConnectionLogs"}
"""Functions that no caller waits for."""
LAMBDA: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "cloudwatch" / "lambda-lines.json").read_text())
OURS = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, ConnectorError) and each is not ConnectorError
]
"""All error classes of the connector."""
DESCRIPTION = re.compile(r"([A-Za-z][^.]*\.) Runbook: (docs/operations/([a-z0-9-]+)\.md)")


@pytest.mark.parametrize("name", [*SINGLE, *COMPOSITE])
def test_an_alarm_says_what_happened_and_names_its_page(name: str) -> None:
    """An alarm's description is one sentence of at most 30 words and the path of its runbook.

    The runbook's file name is the alarm's name.
    """
    description = (SINGLE | COMPOSITE)[name]["AlarmDescription"]
    found = DESCRIPTION.fullmatch(description.replace("ReplyFunctionArn", "reply"))

    assert found, description
    assert 30 >= len(found[1].split())
    assert re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name.removesuffix("Alarm")).lower() == found[3]
    assert not (ROOT / "docs" / "operations").exists() or (ROOT / found[2]).exists()


def test_no_alarm_on_lambdas_errors() -> None:
    """No alarm watches Lambda's `Errors`: they include invalid inputs, which a function raises to its caller."""
    assert [] == [name for name, alarm in SINGLE.items() if alarm["MetricName"] == "Errors"]


def test_an_alarm_notifies_or_is_in_a_rule() -> None:
    """An alarm notifies, unless it is in the rule of a composite alarm, which then notifies in its place."""
    rules = [re.findall(r'ALARM\("\$\{(\w+)\}"\)', alarm["AlarmRule"]["Fn::Sub"]) for alarm in COMPOSITE.values()]
    silent = [name for name, alarm in SINGLE.items() if not alarm.get("ActionsEnabled", True)]

    assert {"SendingBrokenAlarm", "ReceivingBrokenAlarm"} == COMPOSITE.keys()
    assert sorted(silent) == sorted(name for rule in rules for name in rule)
    for alarm, rule in zip(COMPOSITE.values(), rules, strict=True):
        assert " OR ".join(f'ALARM("${{{name}}}")' for name in rule) == " ".join(alarm["AlarmRule"]["Fn::Sub"].split())


def test_each_function_has_a_filter_and_its_alarm() -> None:
    """Each function's log group has a metric filter, and an alarm watches the metric that the filter counts."""
    counted = {metric[:2] for _, metric in FILTERS.values()}
    own = [
        (resolve(alarm["Namespace"]), alarm["MetricName"])
        for alarm in SINGLE.values()
        if resolve(alarm["Namespace"]) == "TwilioConnector/stack"
    ]

    assert {f"{name.removesuffix('Function')}Logs" for name in of_type("AWS::Serverless::Function")} == FILTERS.keys()
    assert sorted(counted) == sorted(own)


@lambda_function
def fails(error: Exception, _: Invocation) -> None:
    """Raise an exception at the end of an invocation."""
    raise error


@pytest.fixture
def written(lines: Log, context: Context) -> Callable[[Exception], list[Any]]:
    """Return a function that returns the log lines of an invocation that raised: the connector's and Lambda's."""

    def ended(error: Exception) -> list[Any]:
        with pytest.raises(ConnectorError) as raised:
            fails(error, context)
        name = raised.type.__name__
        runtime = {"level": "ERROR", "errorMessage": str(raised.value), "errorType": name, "stackTrace": []}
        return [*lines(), runtime, LAMBDA["raised"], LAMBDA["raised, by another name"]]

    return ended


def takes(group: str, lines: list[Any]) -> bool:
    """Return whether the filter of a log group matches one of these lines."""
    pattern, _ = FILTERS[group]
    return any(pattern.matches(line) for line in lines)


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_a_callers_mistake_is_no_fault(written: Callable[[Exception], list[Any]], kind: type[ConnectorError]) -> None:
    """An action's error counts as a fault only if the connector itself failed, not if the caller made a mistake.

    For a function that no caller waits for, every error except an invalid input counts as a fault.
    """
    error = kind(errors.Fault("to", "must be a phone number")) if kind is InvalidInputError else kind("made up")
    lines = written(error)
    fault = kind in {errors.InternalError, errors.ServiceUnavailableError}

    assert len(lines) > 3
    for group in FILTERS:
        assert (kind is not InvalidInputError if group in RUNS else fault) == takes(group, lines), group


@pytest.mark.parametrize("group", sorted(FILTERS))
def test_an_unexpected_exception_is_a_fault(written: Callable[[Exception], list[Any]], group: str) -> None:
    """An unexpected exception counts as a fault because of the connector's own log lines.

    Lambda does not see the exception of a batch record or of an API call.
    """
    *ours, _, _, _ = written(ZeroDivisionError())

    assert takes(group, ours)


@pytest.mark.parametrize("group", sorted(FILTERS))
@pytest.mark.parametrize("name", ["timeout", "exit", "out of memory", "import"])
def test_a_timeout_and_a_crash_are_faults(group: str, name: str) -> None:
    """Lambda's report of a timeout or a crash counts as a fault, because the function itself writes nothing then."""
    assert takes(group, [LAMBDA[name]])
    assert not takes(group, [LAMBDA["success"]])


def test_lambda_writes_its_own_lines() -> None:
    """Lambda writes its own lines as JSON and from level INFO, because the report of a timeout has level INFO or WARN.

    https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-log-level.html
    """
    logging = TEMPLATE["Globals"]["Function"]["LoggingConfig"]

    assert ("JSON", "INFO") == (logging["LogFormat"], logging["SystemLogLevel"])


# ---------------------------------------------------------------- the template's dashboard

WIDGETS = widgets(TEMPLATE, "stack")
TITLES = [widget["properties"]["title"] for widget in WIDGETS]


def known(shown: Series | Search) -> bool:
    """Return whether a metric is written by an AWS service, a metric filter or a function's code."""
    own = rows(section("reference", "Metrics"))
    if isinstance(shown, Search):
        dimensions = own.get(shown.name, ["", ""])[1]
        return shown.namespace == "TwilioConnector" and all(f"`{name}`" in dimensions for name in shown.dimensions)
    metric = shown.metric
    if service := SERVICES.get(metric.namespace):
        names = [name for name, _ in metric.dimensions]
        return metric.name in service["metrics"] and names == service["dimensions"]
    if metric.namespace == "TwilioConnector":
        return metric.name in own and "`service`" == own[metric.name][1] and metric.dimensions == {("service", "stack")}
    return metric in {counted for _, counted in FILTERS.values()}


@pytest.mark.parametrize("widget", WIDGETS, ids=TITLES)
def test_a_widgets_metrics_are_written(widget: dict[str, Any]) -> None:
    """Every metric of a widget is written with the widget's dimensions; otherwise the widget would stay empty."""
    shown = list(series(widget))

    assert shown
    assert [] == [each for each in shown if not known(each)]


@pytest.mark.parametrize("name", SINGLE)
def test_an_alarms_metric_is_written(name: str) -> None:
    """Every alarm's metric is written with the alarm's dimensions."""
    alarm = resolve(SINGLE[name])
    dimensions = {each["Name"]: each["Value"] for each in alarm.get("Dimensions", ())}
    metric = Metric.of(alarm["Namespace"], alarm["MetricName"], **dimensions)
    if "error" in dimensions:
        assert Search(metric.namespace, metric.name, frozenset(dimensions), frozenset()).finds(metric)
        assert dimensions.pop("error") in {kind.__name__ for kind in OURS}
        assert "`service`, `error` (class name)" == rows(section("reference", "Metrics"))[metric.name][1]
    else:
        assert known(Series(metric, alarm["Statistic"]))


def test_the_dashboard_has_its_widgets() -> None:
    """The dashboard shows what an on-call engineer needs first, in 12 widgets for the stack's own region.

    They fill a grid of 24 columns without gaps.
    https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/CloudWatch-Dashboard-Body-Structure.html
    """
    squares = [
        (x, y)
        for widget in WIDGETS
        for x in range(widget["x"], widget["x"] + widget["width"])
        for y in range(widget["y"], widget["y"] + widget["height"])
    ]

    assert 12 == len(TITLES) == len(set(TITLES))
    assert sorted(squares) == [(x, y) for x in range(24) for y in range(24)]
    assert {"us-east-1"} == {widget["properties"]["region"] for widget in WIDGETS}
    assert len(json.dumps(WIDGETS)) < 2**20 // 10


def test_gigabyte_seconds_are_of_the_functions_memory() -> None:
    """The GB-seconds expression uses the memory size that all functions share, in megabytes."""
    (widget,) = [widget for widget in WIDGETS if "GB-seconds" in widget["properties"]["title"]]
    expression = widget["properties"]["metrics"][0][0]["expression"]

    assert f"SUM(METRICS()) / 1000 * {TEMPLATE['Globals']['Function']['MemorySize']} / 1024" == expression
    assert [] == [name for name, each in of_type("AWS::Serverless::Function").items() if "MemorySize" in each]


def test_the_dashboards_address_is_of_its_partition() -> None:
    """The dashboard's URL has the console's host in its partition: China and the US government have their own."""
    (url,) = [each["Value"] for name, each in TEMPLATE["Outputs"].items() if name == "DashboardUrl"]
    hosts = {
        partition: urlsplit(Resolver(TEMPLATE, {"AWS::Partition": partition})(url)).hostname
        for partition in ("aws", "aws-cn", "aws-us-gov")
    }

    assert {
        "aws": "us-east-1.console.aws.amazon.com",
        "aws-cn": "us-east-1.console.amazonaws.cn",
        "aws-us-gov": "us-east-1.console.amazonaws-us-gov.com",
    } == hosts
    assert resolve(url).endswith("region=us-east-1#dashboards/dashboard/<Dashboard>")
