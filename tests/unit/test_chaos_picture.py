"""The picture of a run's dashboard shows the values in the run's logs and queues."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.alarms import Metric
from tests.chaos.journal import LOGS, QUEUES, Journal
from tests.chaos.picture import BUCKETS, THEMES, Run, draw

DIRECTIVE = {"Namespace": "TwilioConnector", "Dimensions": [["service"]]}
OF_CLASS = {"Namespace": "TwilioConnector", "Dimensions": [["service", "error"]]}


def embedded(directive: dict[str, Any], name: str, value: float, **more: str) -> str:
    """Return a log line with an embedded metric; the stack's name in it does not matter."""
    metrics = [{"Name": name, "Unit": "Count"}]
    aws = {"CloudWatchMetrics": [directive | {"Metrics": metrics}]}
    return json.dumps({"_aws": aws, "service": "chaos", name: [value], **more})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run of 100 seconds."""
    journal = Journal(tmp_path)
    lines = [
        ("SendSmsLogs", 0, embedded(DIRECTIVE, "ApiCalls", 3)),
        ("SendSmsLogs", 100, embedded(DIRECTIVE, "ApiCalls", 4)),
        ("SendSmsLogs", 50, embedded(OF_CLASS, "TwilioErrors", 1, error="TwilioUnavailableError")),
        ("SendSmsLogs", 50, "REPORT RequestId: made-up\tDuration: 2000.00 ms\tBilled Duration: 2000 ms"),
        ("WebhookLogs", 50, json.dumps({"message": "unexpected exception"})),
    ]
    for group, second, message in lines:
        journal.write(LOGS, group=group, time=second, message=message)
    journal.close()
    (tmp_path / f"{QUEUES}.jsonl").write_text(json.dumps({"at": 50, "queue": "SendQueue", "visible": 7}) + "\n")
    return Run([tmp_path])


def test_values_of_logs_and_queues(run: Run) -> None:
    """A metric's values are drawn at the time they were logged; the template's filters count the faults."""
    own = Metric.of("TwilioConnector", "ApiCalls", service="stack")
    depth = Metric.of("AWS/SQS", "ApproximateNumberOfMessagesVisible", QueueName="<SendQueue.QueueName>")
    faults = Metric.of("TwilioConnector/stack", "WebhookFaults")

    assert [3.0, *[None] * (BUCKETS - 2), 4.0] == run.values([own], "Sum")
    assert [7] == [value for value in run.values([depth], "Maximum") if value is not None]
    assert [1] == [value for value in run.values([faults], "Sum") if value is not None]


@pytest.mark.parametrize("theme", THEMES)
def test_picture(run: Run, theme: str) -> None:
    """A picture is well-formed, has all widgets, names each series that has values, and loads nothing."""
    text = draw(run, theme)
    shown = [each.text for each in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314 our own

    assert {"Calls by caller", "API", "TwilioUnavailableError", "webhook", "send queue", "1.7 min"} < {*shown}
    assert "SNS" not in shown
    assert 6 == shown.count("no data")
    assert [] == [word for word in ("href", "url(", "@import", "<script") if word in text]


def test_gigabyte_seconds(run: Run) -> None:
    """Two seconds with half a gigabyte of memory are one GB-second."""
    metric = Metric.of("AWS/Lambda", "Duration", FunctionName="<SendSmsFunction>")
    values = [value for value in run.values([metric], "Sum") if value is not None]

    assert [2000] == values
    assert ">1<" in draw(run, "light").partition("GB-seconds")[2].partition("Cost:")[0]


def test_a_run_without_logs_is_refused(tmp_path: Path) -> None:
    """A run without log lines is refused, because its picture would be empty."""
    Journal(tmp_path).close()

    with pytest.raises(SystemExit, match="no log lines"):
        Run([tmp_path])
