"""Draw the dashboard of a run of `make chaos`, light and dark, as CloudWatch would show it.

    python -m tests.chaos.picture .local/chaos/<run>

The widgets and series are the template's. The values come from the run's log lines and queues.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from local.rights import transformed
from tests.alarms import Datapoints, Metric, filters
from tests.chaos.journal import LOGS, QUEUES, read
from tests.conftest import ROOT
from tests.dashboard import Search, series, widgets

FOLDER = ROOT / "docs" / "pictures"
TITLE = (
    "The dashboard of a run in which everything failed on purpose: calls by caller, messages, failures at Twilio, "
    "latency, faults, unknown outcomes, queues, webhooks, and what costs."
)
BUCKETS = 48
"""The number of points in a series."""

_REPORT = re.compile(r"^REPORT RequestId: \S+\s+Duration: ([0-9.]+) ms")
_GB_SECONDS = re.compile(r"SUM\(METRICS\(\)\) / 1000 \* (\d+) / 1024")
_EVENT_BYTES = 26
"""The overhead of each event: https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/cloudwatch_limits_cwl.html."""

WIDTH, HEIGHT, GAP, PLOT = 420, 268, 12, 132
THEMES = {
    "light": {"text": "#1f2328", "dim": "#59636e", "box": "#ffffff", "edge": "#d1d9e0", "back": "#f6f8fa"},
    "dark": {"text": "#f0f6fc", "dim": "#9198a1", "box": "#0d1117", "edge": "#3d444d", "back": "#151b23"},
}
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
STYLE = "font-family:-apple-system,BlinkMacSystemFont,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif;font-size:12px"


class Line(NamedTuple):
    """A drawn series: its label, and for each bucket a value or None."""

    label: str
    values: list[float | None]


class Run:
    """The measurements of a run, divided into buckets of time."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Read a run's files."""
        self.points = Datapoints()
        counted = filters(transformed(), "stack")
        for entry in read(folders, LOGS):
            self._log_line(entry, counted)
        for entry in read(folders, QUEUES):
            metric = Metric.of(
                "AWS/SQS", "ApproximateNumberOfMessagesVisible", QueueName=f"<{entry['queue']}.QueueName>"
            )
            self.points.add(metric, entry["at"], entry["visible"])
        seconds = [second for values in self.points.values.values() for second, _ in values]
        if not seconds:
            raise SystemExit("The run has no log lines.")
        self.began, self.ended = min(seconds), max(seconds)

    def _log_line(self, entry: Mapping[str, Any], counted: Mapping[str, Any]) -> None:
        group, at, message = entry["group"], entry["time"], entry["message"]
        size = len(message.encode()) + _EVENT_BYTES
        self.points.add(Metric.of("AWS/Logs", "IncomingBytes", LogGroupName=f"<{group}>"), at, size)
        if report := _REPORT.match(message):
            function = f"<{group.removesuffix('Logs')}Function>"
            self.points.add(Metric.of("AWS/Lambda", "Duration", FunctionName=function), at, float(report[1]))
        if not message.startswith("{"):
            return
        line = json.loads(message)
        if "_aws" in line:
            self.points.embedded(line | {"service": "stack"}, at)
        elif group in counted:
            pattern, metric = counted[group]
            if pattern.matches(line):
                self.points.add(metric, at, 1)

    def values(self, metrics: Sequence[Metric], statistic: str) -> list[float | None]:
        """Return a statistic over all of these metrics together, for each bucket."""
        width = max(1.0, (self.ended - self.began) / BUCKETS)
        buckets: list[list[float]] = [[] for _ in range(BUCKETS)]
        for metric in metrics:
            for second, value in self.points.values.get(metric, ()):
                buckets[min(BUCKETS - 1, int((second - self.began) / width))].append(value)
        reduce = _STATISTICS[statistic]
        return [reduce(bucket) if bucket else None for bucket in buckets]

    def lines(self, widget: Mapping[str, Any]) -> Iterator[Line]:
        """Yield the lines of a widget that have a value."""
        shown = list(series(widget))
        given = [each[-1] for each in widget["properties"]["metrics"]]
        for options in given:
            if found := _GB_SECONDS.fullmatch(options.get("expression", "")):
                durations = self.values([each.metric for each in shown if not isinstance(each, Search)], "Sum")
                yield Line(options["label"], [v and v / 1000 * int(found[1]) / 1024 for v in durations])
                return
        for each, options in zip(shown, given, strict=True):
            if isinstance(each, Search):
                for metric in sorted(filter(each.finds, self.points.values), key=lambda metric: sorted(metric[2])):
                    (label,) = {value for _, value in metric.dimensions - each.values}
                    yield Line(label, self.values([metric], "Sum"))
            elif each.metric in self.points.values:
                yield Line(options["label"], self.values([each.metric], each.statistic))


def _percentile(share: float) -> Callable[[list[float]], float]:
    return lambda values: sorted(values)[min(len(values) - 1, int(share * len(values)))]


_STATISTICS: dict[str, Callable[[list[float]], float]] = {
    "Sum": sum,
    "Maximum": max,
    "p50": _percentile(0.50),
    "p95": _percentile(0.95),
    "p99": _percentile(0.99),
}


def draw(run: Run, theme: str) -> str:
    """Return the dashboard as SVG."""
    colours = THEMES[theme]
    every = widgets(transformed(), "stack")
    columns = 24 // every[0]["width"]
    width = columns * (WIDTH + GAP) + GAP
    height = len(every) // columns * (HEIGHT + GAP) + GAP
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" style="{STYLE}">',
        f"<title>{escape(TITLE)}</title>",
        f'<rect width="{width}" height="{height}" fill="{colours["back"]}"/>',
    ]
    for widget in every:
        x = GAP + widget["x"] // widget["width"] * (WIDTH + GAP)
        y = GAP + widget["y"] // widget["height"] * (HEIGHT + GAP)
        parts.append(f'<g transform="translate({x} {y})">')
        parts += _widget(widget, list(run.lines(widget)), run.ended - run.began, colours)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def _widget(widget: Mapping[str, Any], lines: list[Line], seconds: float, colours: Mapping[str, str]) -> Iterator[str]:
    properties = widget["properties"]
    unit = properties["yAxis"]["left"].get("label", "")
    left, top, right = 52, 34, WIDTH - 14
    if properties["stacked"]:
        lines = _stacked(lines)
    most = max((value for line in lines for value in line.values if value is not None), default=0)
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{colours["box"]}" stroke="{colours["edge"]}"/>'
    yield _text(14, 21, properties["title"], colours["text"], 'font-weight="600" font-size="14"')
    for share in (0, 0.5, 1):
        y = top + PLOT * (1 - share)
        yield f'<path d="M{left} {y:g}H{right}" stroke="{colours["edge"]}"/>'
        if most:
            yield _text(left - 6, y + 4, _figure(share * most), colours["dim"], 'text-anchor="end" font-size="11"')
    yield _text(right, 21, unit, colours["dim"], 'text-anchor="end" font-size="11"')
    yield _text(left, top + PLOT + 16, "0", colours["dim"], 'font-size="11"')
    yield _text(right, top + PLOT + 16, f"{seconds / 60:.1f} min", colours["dim"], 'text-anchor="end" font-size="11"')
    if not lines:
        yield _text((left + right) / 2, top + PLOT / 2 + 4, "no data", colours["dim"], 'text-anchor="middle"')
    for number, line in reversed(list(enumerate(lines))):
        colour = COLOURS[number % len(COLOURS)]
        points = [
            (left + (right - left) * (place + 0.5) / BUCKETS, top + PLOT * (1 - value / (most or 1)))
            for place, value in enumerate(line.values)
            if value is not None
        ]
        path = "M" + "L".join(f"{x:.0f} {y:.1f}" for x, y in points)
        if properties["stacked"]:
            area = f"{path}L{points[-1][0]:.0f} {top + PLOT}L{points[0][0]:.0f} {top + PLOT}z"
            yield f'<path d="{area}" fill="{colour}"/>'
        else:
            yield f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-linejoin="round"/>'
            yield from (f'<circle cx="{x:.0f}" cy="{y:.1f}" r="1.5" fill="{colour}"/>' for x, y in points)
    rows = (len(lines) + 1) // 2
    for number, line in enumerate(lines):
        x, y = 14 + number // rows * (WIDTH // 2 - 8), top + PLOT + 32 + 15 * (number % rows)
        yield f'<rect x="{x}" y="{y - 9}" width="9" height="9" fill="{COLOURS[number % len(COLOURS)]}"/>'
        yield _text(x + 14, y, line.label, colours["dim"], 'font-size="11"')


def _stacked(lines: list[Line]) -> list[Line]:
    """Return the lines stacked: to each value, those of the lines before it are added."""
    below = [0.0] * BUCKETS
    found = []
    for line in lines:
        below = [sum(each) for each in zip(below, (value or 0 for value in line.values), strict=True)]
        found.append(Line(line.label, list(below)))
    return found


def _figure(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _text(x: float, y: float, text: str, colour: str, more: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" {more}>{escape(text)}</text>'


def main(arguments: list[str]) -> int:
    """Draw the dashboard of the given runs, and return the exit code."""
    if not arguments:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    run = Run([Path(each) for each in arguments])
    for theme in THEMES:
        (FOLDER / f"dashboard-{theme}.svg").write_text(draw(run, theme))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
