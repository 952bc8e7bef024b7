"""Is a failure one log line, a success none, and every metric where the README says?"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import get_sms
import pytest
import send_sms
from twilio_connector import telemetry
from twilio_connector.errors import ConnectorError, InternalError

from tests.aws_wire import AwsWire
from tests.conftest import ROOT, Context, LoadEvent
from tests.faults import FaultServer, closed_port, faults

TO = "+15005550006"
SID = "SM" + "0" * 32
REQUEST_ID = "RQ" + "0" * 32
SMS = {"to": TO, "message": "Hello"}
MARKER = "xqzjvmarker"

type Lines = Callable[[], list[dict[str, Any]]]


class StandardOutput:
    """Whatever pytest has in its place while a test runs."""

    def write(self, text: str) -> None:
        """Write there."""
        sys.stdout.write(text)

    def flush(self) -> None:
        """Flush there."""
        sys.stdout.flush()


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Lines:
    """Return what the function wrote to its log since, line by line."""
    monkeypatch.setattr(telemetry.logger.registered_handler, "stream", StandardOutput())
    return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def failed(action: Callable[[Any, Any], Any], event: Any, context: Context) -> None:
    """Call a function that fails."""
    with pytest.raises(ConnectorError):
        action(event, context)


def logged(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines that are no metrics, without what every line has."""
    common = {"timestamp", "location", "service"}
    return [{name: line[name] for name in line.keys() - common} for line in lines if "_aws" not in line]


def metrics(lines: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the values of each metric, with the class of errors."""
    found = {}
    for line in lines:
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", []):
            assert "TwilioConnector" == directive["Namespace"]
            for metric in directive["Metrics"]:
                name = metric["Name"] + (f":{line['error']}" if "error" in directive["Dimensions"][0] else "")
                found[name] = line[metric["Name"]]
    return found


# Log lines


def test_a_success_writes_nothing_but_metrics(
    twilio: FaultServer, context: Context, event: LoadEvent, lines: Lines
) -> None:
    """Lambda's own lines are enough."""
    for name in ("send_sms", "send_sms_api", "send_sms_sqs"):
        send_sms.handler(event(name), context)
    get_sms.handler({"message_sid": SID}, context)

    assert [] == logged(lines())
    assert 6 == len(twilio.requests)


def test_a_failure_is_one_line(twilio: FaultServer, context: Context, lines: Lines) -> None:
    """With all that is needed to look it up, and nothing else."""
    twilio.script(faults.status(404, twilio_code=20404, message=f"{MARKER} {TO}"))
    failed(get_sms.handler, {"message_sid": SID}, context)

    assert [
        {
            "level": "ERROR",
            "message": f"Twilio has no such resource (HTTP 404, Twilio code 20404, request {REQUEST_ID})",
            "error": "TwilioNotFoundError",
            "retryable": False,
            "function": "get_sms",
            "caller": "direct",
            "connection": "default",
            "message_sid": SID,
            "twilio_status": 404,
            "twilio_code": 20404,
            "twilio_request_id": REQUEST_ID,
        }
    ] == logged(lines())


def test_what_is_not_known_is_not_there(context: Context, lines: Lines) -> None:
    """No nulls."""
    failed(send_sms.handler, {"to": TO}, context)

    assert [
        {
            "level": "ERROR",
            "message": "message: is required, unless there are media_urls or a content_sid",
            "error": "InvalidInputError",
            "retryable": False,
            "function": "send_sms",
            "caller": "direct",
        }
    ] == logged(lines())


@pytest.mark.parametrize(
    ("name", "caller"),
    [
        ("send_sms", "direct"),
        ("send_sms_api", "api"),
        ("send_sms_sqs", "sqs"),
        ("send_sms_sns", "sns"),
        ("send_sms_eventbridge", "eventbridge"),
    ],
)
def test_a_line_names_the_caller(
    twilio: FaultServer, context: Context, event: LoadEvent, lines: Lines, name: str, caller: str
) -> None:
    """Each record of a batch has its own line."""
    twilio.script(faults.OPTED_OUT)
    with suppress(ConnectorError):
        send_sms.handler(event(name), context)

    assert {(caller, "RecipientOptedOutError")} == {(line["caller"], line["error"]) for line in logged(lines())}
    assert (3 if caller == "sqs" else 1) == len(twilio.requests)


@pytest.mark.parametrize(
    "event",
    [{"Records": []}, {"Records": [{"eventSource": "aws:sqs"}]}],
    ids=["not known", "malformed batch"],
)
def test_an_event_that_is_refused_is_a_line(context: Context, lines: Lines, event: dict[str, Any]) -> None:
    """There is no caller yet."""
    failed(send_sms.handler, event, context)

    assert [("InvalidInputError", "send_sms")] == [(line["error"], line["function"]) for line in logged(lines())]


def test_an_unknown_outcome_in_a_batch_is_a_line_and_a_metric(
    twilio: FaultServer, context: Context, event: LoadEvent, lines: Lines
) -> None:
    """It is not given back to the queue, so this is where it shows."""
    twilio.script(faults.status(500), faults.OK)
    answer = send_sms.handler(event("send_sms_sqs"), context)
    written = lines()

    assert {"batchItemFailures": []} == answer
    assert ["OutcomeUnknownError"] == [line["error"] for line in logged(written)]
    assert [1.0] == metrics(written)["OutcomeUnknown"]


def test_our_own_fault_is_a_line_without_its_message(
    aws_wire: AwsWire, context: Context, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says where, and not what: an exception's message may hold any value."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"not a url {MARKER}")
    failed(get_sms.handler, {"message_sid": SID}, context)
    (line,) = logged(lines())

    assert ("ERROR", "unexpected exception", "ValueError") == (line["level"], line["message"], line["exception"])
    assert any(where.startswith("connection.py:") for where in line["where"])
    assert MARKER not in json.dumps(line)
    assert [] == aws_wire.calls


def test_a_fault_becomes_an_error_that_says_nothing(lines: Lines) -> None:
    """The caller is sent to the log."""
    error = telemetry.bug(KeyError(MARKER))

    assert isinstance(error, InternalError)
    assert MARKER not in f"{error}{lines()}"


def test_no_line_holds_what_was_sent(twilio: FaultServer, context: Context, event: LoadEvent, lines: Lines) -> None:
    """Neither numbers nor texts nor credentials, whatever goes wrong."""
    refusal = faults.status(400, message=f"{TO} {MARKER}")
    for fault in (refusal, faults.status(500), faults.RESET_AFTER_READ, faults.body("html")):
        twilio.script(fault)
        failed(send_sms.handler, {"to": TO, "message": MARKER}, context)
        request = event("send_sms_api")
        send_sms.handler(request | {"body": json.dumps({"to": TO, "message": MARKER})}, context)
    failed(send_sms.handler, {"to": MARKER, "message": 5, TO: MARKER}, context)
    written = json.dumps(lines())

    assert [] == [part for part in (TO, TO[1:], MARKER, "not-a-secret", "SK000") if part in written]


# Levels


def run(code: str, **environment: str) -> list[dict[str, Any]]:
    """Return what a fresh process logs."""
    path = os.pathsep.join(str(ROOT / part) for part in ("functions", "layers/twilio", "."))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("level", "count"), [("DEBUG", 2), ("INFO", 1), ("ERROR", 1), ("CRITICAL", 0)])
def test_the_level_is_the_stacks_own(level: str, count: int) -> None:
    """Lambda's filter stays at INFO, or the metrics would vanish."""
    code = "from twilio_connector.telemetry import logger; logger.debug('called'); logger.error('failed')"

    assert count == len(run(code, LOG_LEVEL=level, AWS_LAMBDA_LOG_LEVEL="INFO"))


def test_debug_says_that_a_function_was_called(twilio: FaultServer, context: Context, lines: Lines) -> None:
    """And by whom, for which connection."""
    telemetry.logger._logger.setLevel("DEBUG")
    try:
        get_sms.handler({"message_sid": SID}, context)
    finally:
        telemetry.logger._logger.setLevel("INFO")

    assert [
        {
            "level": "DEBUG",
            "message": "called",
            "function": "get_sms",
            "caller": "direct",
            "connection": "default",
            "message_sid": SID,
        }
    ] == logged(lines())
    assert 1 == len(twilio.requests)


# Metrics


def test_metrics_are_told_apart_by_service(twilio: FaultServer, context: Context, lines: Lines) -> None:
    """Two stacks in one account do not mix, and errors have their class beside it."""
    twilio.script(faults.OPTED_OUT)
    failed(send_sms.handler, SMS, context)
    written = [line for line in lines() if "_aws" in line]

    assert {"twilio-connector"} == {line["service"] for line in written}
    assert [[["service", "error"]], [["service"]]] == [
        line["_aws"]["CloudWatchMetrics"][0]["Dimensions"] for line in written
    ]


def test_a_message_that_was_sent_is_counted(twilio: FaultServer, context: Context, lines: Lines) -> None:
    """With the time that Twilio took, in milliseconds."""
    send_sms.handler(SMS, context)
    found = metrics(lines())

    assert [1.0] == found.pop("MessagesSent")
    assert ["TwilioLatency"] == [*found]
    assert 0 < found["TwilioLatency"][0] < 5000
    assert 1 == len(twilio.requests)


@pytest.mark.parametrize(
    ("fault", "name", "latencies"),
    [
        (faults.OPTED_OUT, "RecipientOptedOutError", 1),
        (faults.QUEUE_FULL, "SenderQueueFullError", 1),
        (faults.UNAUTHORIZED, "TwilioAuthenticationError", 2),
        (faults.too_many("0"), "TwilioRateLimitError", 3),
    ],
    ids=["opted out", "queue full", "401", "429"],
)
def test_a_message_that_was_not_sent_is_counted(
    twilio: FaultServer, context: Context, lines: Lines, fault: faults.Fault, name: str, latencies: int
) -> None:
    """And the error by its class."""
    twilio.script(fault)
    failed(send_sms.handler, SMS, context)
    found = metrics(lines())

    assert latencies == len(found.pop("TwilioLatency"))
    assert {"MessagesNotSent": [1.0], f"TwilioErrors:{name}": [1.0]} == found


@pytest.mark.usefixtures("aws_wire", "delays")
def test_only_what_went_on_the_wire_has_a_latency(
    context: Context, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its samples are the requests."""
    with closed_port() as port:
        monkeypatch.setenv("TWILIO_API_URL", f"http://127.0.0.1:{port}")
        failed(send_sms.handler, SMS, context)

    assert {"MessagesNotSent": [1.0], "TwilioErrors:TwilioUnavailableError": [1.0]} == metrics(lines())


def test_an_unknown_outcome_is_neither_sent_nor_not_sent(twilio: FaultServer, context: Context, lines: Lines) -> None:
    """It has a metric of its own."""
    twilio.script(faults.status(500))
    failed(send_sms.handler, SMS, context)
    found = metrics(lines())
    del found["TwilioLatency"]

    assert {"OutcomeUnknown": [1.0], "TwilioErrors:OutcomeUnknownError": [1.0]} == found


def test_a_batch_is_counted_together(twilio: FaultServer, context: Context, event: LoadEvent, lines: Lines) -> None:
    """The errors one by one, since they have a dimension."""
    twilio.script(faults.OK, faults.OPTED_OUT, faults.OK)
    send_sms.handler(event("send_sms_sqs"), context)
    found = metrics(lines())

    assert ([1.0, 1.0], [1.0]) == (found["MessagesSent"], found["MessagesNotSent"])
    assert [1.0] == found["TwilioErrors:RecipientOptedOutError"]


def test_a_dry_run_counts_nothing(twilio: FaultServer, context: Context, lines: Lines) -> None:
    """Nothing was sent."""
    send_sms.handler(SMS | {"dry_run": True}, context)

    assert [] == lines()
    assert [] == twilio.requests


def test_metrics_do_not_run_into_the_next_invocation(twilio: FaultServer, context: Context, lines: Lines) -> None:
    """Also after a failure."""
    twilio.script(faults.status(500), faults.OK)
    failed(send_sms.handler, SMS, context)
    lines()
    send_sms.handler(SMS, context)

    assert {"MessagesSent", "TwilioLatency"} == metrics(lines()).keys()


def test_an_invalid_input_is_no_error_of_twilios(context: Context, lines: Lines) -> None:
    """Nobody was asked."""
    failed(send_sms.handler, {}, context)

    assert {} == metrics(lines())


@pytest.mark.parametrize("library", ["boto3", "botocore", "requests", "urllib3.connectionpool"])
def test_libraries_are_quiet_at_every_level(library: str) -> None:
    """At DEBUG Lambda lets everybody log; urllib3 would log each URL with its query."""
    assert not logging.getLogger(library).isEnabledFor(logging.INFO)
