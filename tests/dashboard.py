"""The metrics that CloudWatch reads from the dashboard's widgets, and the metrics that AWS's services publish."""

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
"""The metrics of the AWS services that the project uses, with the documentation page of each service."""

_SEARCH = re.compile(r"SEARCH\('\{([^}]+)\} ([^']+)', '(\w+)', \d+\)")
_TERM = re.compile(r'(\w+)="([^"]+)"')


class Series(NamedTuple):
    """A line of a widget: a metric and its statistic."""

    metric: Metric
    statistic: str


class Search(NamedTuple):
    """A search for all metrics that have this name, exactly these dimensions, and these values for some of them."""

    namespace: str
    name: str
    dimensions: frozenset[str]
    values: frozenset[tuple[str, str]]

    def finds(self, metric: Metric) -> bool:
        """Return whether the search finds a metric."""
        return (
            (self.namespace, self.name) == metric[:2]
            and self.dimensions == {name for name, _ in metric.dimensions}
            and self.values <= metric.dimensions
        )


def widgets(template: Mapping[str, Any], stack_name: str) -> list[dict[str, Any]]:
    """Return the dashboard's widgets; a resource in a dimension becomes `<name>` or `<name.attribute>`."""
    (dashboard,) = of_type(template, "AWS::CloudWatch::Dashboard").values()
    body = Resolver(template, {"AWS::StackName": stack_name})(dashboard["DashboardBody"])
    return list(json.loads(body)["widgets"])


def series(widget: Mapping[str, Any]) -> Iterator[Series | Search]:
    """Yield a widget's series and searches, including series that only its expressions use.

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
