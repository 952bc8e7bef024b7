"""Small models of CloudWatch's alarms and SQS's metrics as AWS documents them, because no emulator has them."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.cloudformation import Resolver, of_type

MINUTE = 60
_ALARM = re.compile(r'ALARM\("\$\{(\w+)\}"\)')
_STATISTICS: dict[str, Callable[[list[float]], float]] = {"Sum": sum, "Maximum": max, "Minimum": min}


class Metric(NamedTuple):
    """The namespace, the name and the dimensions that identify a metric in CloudWatch."""

    namespace: str
    name: str
    dimensions: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, namespace: str, name: str, **dimensions: str) -> "Metric":
        """Return a metric with these dimensions."""
        return cls(namespace, name, frozenset(dimensions.items()))


@dataclass
class Datapoints:
    """The values of each metric, with their times in seconds since the start."""

    values: dict[Metric, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, metric: Metric, seconds: float, value: float) -> None:
        """Add one value."""
        self.values[metric].append((seconds, value))

    def embedded(self, line: Mapping[str, Any], seconds: float) -> None:
        """Add the values of a log line in CloudWatch's embedded metric format.

        https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
        """
        for directive in line["_aws"]["CloudWatchMetrics"]:
            for names in directive["Dimensions"]:
                dimensions = {name: str(line[name]) for name in names}
                for definition in directive["Metrics"]:
                    metric = Metric.of(directive["Namespace"], definition["Name"], **dimensions)
                    found = line[definition["Name"]]
                    for value in found if isinstance(found, list) else [found]:
                        self.add(metric, seconds, value)

    def queue(self, name: str, records: list["Waiting"], until: float) -> None:
        """Add the metrics that SQS publishes for a queue every minute.

        A record is visible if it can be received. The age is that of the oldest record that was received less than
        three times: SQS moves other records to the back, even if the queue has a redrive policy.
        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
        """
        for second in range(0, int(until) + 1, MINUTE):
            here = [record for record in records if record.sent_at <= second]
            visible = sum(record.is_visible(second) for record in here)
            ages = [second - record.sent_at for record in here if record.receives(second) < 3]
            self.add(Metric.of("AWS/SQS", "ApproximateNumberOfMessagesVisible", QueueName=name), second, visible)
            age = Metric.of("AWS/SQS", "ApproximateAgeOfOldestMessage", QueueName=name)
            self.add(age, second, max(ages, default=0))


class Waiting(NamedTuple):
    """A queue's record that is never deleted; after each receive it is invisible for the visibility timeout."""

    sent_at: float
    received_at: tuple[float, ...] = ()
    visibility_timeout: float = 0

    def receives(self, second: float) -> int:
        """Return how often the record was received until this second."""
        return sum(each <= second for each in self.received_at)

    def is_visible(self, second: float) -> bool:
        """Return whether the record can be received at this second."""
        return not any(each <= second < each + self.visibility_timeout for each in self.received_at)


def alarms(template: Mapping[str, Any], stack_name: str) -> dict[str, dict[str, Any]]:
    """Return a template's alarms by name; a resource in a dimension becomes `<name>` or `<name.attribute>`."""
    resolve = Resolver(template, {"AWS::StackName": stack_name})
    return {name: resolve(alarm) for name, alarm in of_type(template, "AWS::CloudWatch::Alarm").items()}


def fires(alarm: Mapping[str, Any], datapoints: Datapoints, until: float) -> bool:
    """Return whether an alarm is in state ALARM at any time.

    Among the last EvaluationPeriods, at least DatapointsToAlarm must cross the threshold. A period without data does
    not cross it.
    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarm-evaluation.html
    """
    if (alarm["ComparisonOperator"], alarm["TreatMissingData"]) != ("GreaterThanOrEqualToThreshold", "notBreaching"):
        raise NotImplementedError(alarm)
    dimensions = {each["Name"]: each["Value"] for each in alarm.get("Dimensions", ())}
    values = datapoints.values.get(Metric.of(alarm["Namespace"], alarm["MetricName"], **dimensions), [])
    period, statistic = alarm["Period"], _STATISTICS[alarm["Statistic"]]
    crossing = [
        bool(found) and statistic(found) >= alarm["Threshold"]
        for start in range(0, int(until) + period, period)
        for found in [[value for second, value in values if start <= second < start + period]]
    ]
    wanted = alarm.get("DatapointsToAlarm", alarm["EvaluationPeriods"])
    return any(
        sum(crossing[max(0, end - alarm["EvaluationPeriods"]) : end]) >= wanted for end in range(1, len(crossing) + 1)
    )


def notifying(template: Mapping[str, Any], on: Collection[str]) -> set[str]:
    """Return the alarms that notify the topic if the alarms `on` are in state ALARM: these, or a composite alarm.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarm-combining.html
    """
    told = {
        name
        for name, alarm in of_type(template, "AWS::CloudWatch::Alarm").items()
        if name in on and alarm.get("ActionsEnabled", True)
    }
    for name, alarm in of_type(template, "AWS::CloudWatch::CompositeAlarm").items():
        if not {*_ALARM.findall(alarm["AlarmRule"]["Fn::Sub"])}.isdisjoint(on):
            told.add(name)
    return told


# ---------------------------------------------------------------- metric filters of log groups

_TOKEN = re.compile(r"\s*(\(|\)|&&|\|\||!=|=|\$[.\w]+|\"[^\"]*\")")


class FilterPattern:
    """A filter pattern for JSON lines; it supports the part of the grammar that the template uses.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/FilterAndPatternSyntax.html
    """

    def __init__(self, text: str) -> None:
        """Parse the pattern; raises ValueError if it is not valid."""
        if not (text.startswith("{") and text.endswith("}")):
            raise ValueError(text)
        inner, self._tokens = text[1:-1].rstrip(), list[str]()
        while inner:
            if not (token := _TOKEN.match(inner)):
                raise ValueError(inner)
            self._tokens.append(token[1])
            inner = inner[token.end() :]
        self._tokens.append("")  # marks the end
        self._matches = self._any()
        if self._tokens != [""]:
            raise ValueError(self._tokens)

    def matches(self, line: Any) -> bool:
        """Return whether the pattern matches a line."""
        return isinstance(line, dict) and self._matches(line)

    def _any(self) -> Callable[[Any], bool]:
        either = self._all()
        while self._tokens[0] == "||":
            self._tokens.pop(0)
            either = _or(either, self._all())
        return either

    def _all(self) -> Callable[[Any], bool]:
        both = self._one()
        while self._tokens[0] == "&&":
            self._tokens.pop(0)
            both = _and(both, self._one())
        return both

    def _one(self) -> Callable[[Any], bool]:
        if (first := self._tokens.pop(0)) == "(":
            found = self._any()
            if self._tokens.pop(0) != ")":
                raise ValueError(self._tokens)
            return found
        operator, value = self._tokens.pop(0), self._tokens.pop(0)
        if not (first.startswith("$.") and operator in {"=", "!="} and value.startswith('"')):
            raise ValueError((first, operator, value))
        return _compare(first.split(".")[1:], operator == "=", value.strip('"'))


def _or(one: Callable[[Any], bool], other: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda line: one(line) or other(line)


def _and(one: Callable[[Any], bool], other: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda line: one(line) and other(line)


def _compare(path: list[str], equal: bool, wanted: str) -> Callable[[Any], bool]:  # noqa: FBT001 an operator
    """Return a function that compares a text field; `*` matches any text, a missing field never matches."""
    pattern = re.compile(".*".join(map(re.escape, wanted.split("*"))), re.DOTALL)

    def matches(line: Any) -> bool:
        for name in path:
            line = line.get(name) if isinstance(line, dict) else None
        return isinstance(line, str) and (pattern.fullmatch(line) is not None) == equal

    return matches


def filters(template: Mapping[str, Any], stack_name: str) -> dict[str, tuple[FilterPattern, Metric]]:
    """Return the pattern and the metric of each log group's filter, by the group's name in the template."""
    resolve = Resolver(template, {"AWS::StackName": stack_name})
    found = {}
    for each in map(resolve, of_type(template, "AWS::Logs::MetricFilter").values()):
        (to,) = each["MetricTransformations"]
        metric = Metric.of(to["MetricNamespace"], to["MetricName"])
        found[each["LogGroupName"].strip("<>")] = (FilterPattern(each["FilterPattern"]), metric)
    return found
