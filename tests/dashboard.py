"""The dashboard's metrics, as CloudWatch reads them from its widgets, and those that AWS's services have."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.alarms import Metric
from tests.cloudformation import Resolver, of_type

SERVICES: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "cloudwatch" / "service-metrics.json").read_text()
)
"""The metrics of AWS's services that are used here, each service with its page."""

_SEARCH = re.compile(r"SEARCH\('\{([^}]+)\} ([^']+)', '(\w+)', \d+\)")
_TERM = re.compile(r'(\w+)="([^"]+)"')


class Series(NamedTuple):
    """A line of a widget: a metric, and its statistic."""

    metric: Metric
    statistic: str


class Search(NamedTuple):
    """All metrics of a name that have these dimensions, some of them with this value."""

    namespace: str
    name: str
    dimensions: frozenset[str]
    values: frozenset[tuple[str, str]]

    def finds(self, metric: Metric) -> bool:
        """Tell whether a metric is among them."""
        return (
            (self.namespace, self.name) == metric[:2]
            and self.dimensions == {name for name, _ in metric.dimensions}
            and self.values <= metric.dimensions
        )


def widgets(template: Mapping[str, Any], stack_name: str) -> list[dict[str, Any]]:
    """Return the dashboard's widgets; resources in dimensions are `<name>` or `<name.attribute>`."""
    (dashboard,) = of_type(template, "AWS::CloudWatch::Dashboard").values()
    body = Resolver(template, {"AWS::StackName": stack_name})(dashboard["DashboardBody"])
    return list(json.loads(body)["widgets"])


def series(widget: Mapping[str, Any]) -> Iterator[Series | Search]:
    """Yield what a widget shows, those that only its expressions use too.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/CloudWatch-Dashboard-Body-Structure.html
    """
    properties = widget["properties"]
    for given in properties["metrics"]:
        *names, options = given if isinstance(given[-1], dict) else [*given, {}]
        if names:
            namespace, name, *rest = names
            dimensions = dict(zip(rest[::2], rest[1::2], strict=True))
            yield Series(Metric.of(namespace, name, **dimensions), options.get("stat", properties["stat"]))
        elif found := _SEARCH.fullmatch(options["expression"]):
            namespace, *dimension_names = found[1].split(",")
            terms = dict(_TERM.findall(found[2]))
            yield Search(namespace, terms.pop("MetricName"), frozenset(dimension_names), frozenset(terms.items()))
