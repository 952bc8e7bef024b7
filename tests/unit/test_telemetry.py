"""Log lines and metrics: each failure is one line, and each metric is counted as documented."""

import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import get_sms
import pytest
import send_sms
from twilio_connector import telemetry
from twilio_connector.errors import ConnectorError, InternalError, TwilioDetails, TwilioRejectedError

from tests.aws_wire import AwsWire
from tests.conftest import DEPLOYED, ROOT, Context, LoadEvent, module_name
from tests.conftest import REQUEST_ID as LAMBDA_ID
from tests.faults import FaultServer, closed_port, faults
from tests.unit.conftest import Log

TO = "+15005550006"
SID = "SM" + "0" * 32
REQUEST_ID = "RQ" + "0" * 32
SMS = {"to": TO, "message": "Hello"}
MARKER = "xqzjvmarker"


def failed(action: Callable[[Any, Any], Any], event: Any, context: Context) -> None:
    """Call a function, and check that it raises a ConnectorError."""
    with pytest.raises(ConnectorError):
        action(event, context)


def logged(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines that are not metrics, without the fields that every line has."""
    common = {"timestamp", "location", "service"}
    return [{name: line[name] for name in line.keys() - common} for line in lines if "_aws" not in line]


def metrics(lines: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the values of each metric by name; the name of an error metric includes the error's class."""
    found: dict[str, list[float]] = {}
    for line in lines:
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", []):
            assert "TwilioConnector" == directive["Namespace"]
            for metric in directive["Metrics"]:
                name = metric["Name"] + (f":{line['error']}" if "error" in directive["Dimensions"][0] else "")
                found[name] = found.get(name, []) + line[metric["Name"]]
    return found


# Log lines


def test_successes_can_be_switched_off(
    twilio: FaultServer, context: Context, event: LoadEvent, lines: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With LOG_SUCCESS=false, successful calls write only metrics, besides Lambda's own lines."""
    monkeypatch.setenv("LOG_SUCCESS", "false")
    for name in ("send_sms", "send_sms_api", "send_sms_sqs"):
        send_sms.handler(event(name), context)
    get_sms.handler({"message_sid": SID}, context)

    assert [] == logged(lines())
    assert 6 == len(twilio.requests)


def test_a_failure_is_one_line(twilio: FaultServer, context: Context, lines: Log) -> None:
    """A failure is one log line, with all fields that are needed to look it up and nothing else."""
    twilio.script(faults.status(404, twilio_code=20404, message=f"{MARKER} {TO}"))
    failed(get_sms.handler, {"message_sid": SID}, context)

    assert [
        {
            "level": "ERROR",
            "message": f"Twilio has no such resource (HTTP 404, Twilio code 20404, request {REQUEST_ID})",
            "error": "TwilioNotFoundError",
            "retryable": False,
            "function_request_id": LAMBDA_ID,
            "function": "get_sms",
            "caller": "direct",
            "connection": "default",
            "message_sid": SID,
            "twilio_status": 404,
            "twilio_code": 20404,
            "twilio_request_id": REQUEST_ID,
        }
    ] == logged(lines())


def test_what_is_not_known_is_not_there(context: Context, lines: Log) -> None:
    """A log line leaves out unknown fields; it has no nulls."""
    failed(send_sms.handler, {"to": TO}, context)

    assert [
        {
            "level": "ERROR",
            "message": "message: is required, unless there are media_urls or a content_sid",
            "error": "InvalidInputError",
            "retryable": False,
            "function_request_id": LAMBDA_ID,
            "function": "send_sms",
            "caller": "direct",
        }
    ] == logged(lines())


@pytest.mark.parametrize(
    ("name", "callers"),
    [
        ("send_sms", ["direct"]),
        ("send_sms_failure_record", ["direct"]),
        ("send_sms_api", ["api"]),
        ("send_sms_sqs", ["eventbridge", "sns", "sqs"]),
    ],
)
def test_a_line_names_the_caller(
    twilio: FaultServer, context: Context, event: LoadEvent, lines: Log, name: str, callers: list[str]
) -> None:
    """A log line names the original caller, also one inside an envelope. Each record of a batch has its own line."""
    twilio.script(faults.OPTED_OUT)
    with suppress(ConnectorError):
        send_sms.handler(event(name), context)
    written = logged(lines())

    assert callers == sorted(line["caller"] for line in written)
    assert {"RecipientOptedOutError"} == {line["error"] for line in written}
    assert len(callers) == len(twilio.requests)


@pytest.mark.parametrize(("name", "caller"), [("send_sms_sns", "sns"), ("send_sms_eventbridge", "eventbridge")])
def test_a_delivery_that_does_not_get_into_the_queue_is_a_line(
    aws_wire: AwsWire, context: Context, event: LoadEvent, lines: Log, name: str, caller: str
) -> None:
    """An event that SQS does not take is one log line, which names the caller as every other line does."""
    aws_wire.failures["SendMessage"] = [(400, "AccessDeniedException")]
    failed(send_sms.handler, event(name), context)

    assert [("ServiceUnavailableError", True, "send_sms", caller)] == [
        (line["error"], line["retryable"], line["function"], line.get("caller")) for line in logged(lines())
    ]


@pytest.mark.usefixtures("delays")
def test_what_could_not_be_told_is_a_line(
    twilio: FaultServer, aws_wire: AwsWire, context: Context, event: LoadEvent, lines: Log
) -> None:
    """If a sent message cannot be reported, the failure is one log line; `resolve` reports the message later."""
    aws_wire.failures["PutEvents"] = [(400, "AccessDeniedException")] * 2
    batch = event("send_sms_sqs")
    batch["Records"] = batch["Records"][:1]
    send_sms.handler(batch, context)
    written = lines()

    reason = "the event bus did not take 1 entries (AccessDeniedException)"
    sent, failure = logged(written)
    assert ("INFO", "sent") == (sent["level"], sent["message"])
    assert ("ServiceUnavailableError", reason, "sqs", "default", sent["send_id"], sent["message_sid"]) == tuple(
        failure[name] for name in ("error", "message", "caller", "connection", "send_id", "message_sid")
    )
    assert [1.0] == metrics(written)["MessagesSent"]
    assert "EventsPublished" not in metrics(written)
    assert 1 == len(twilio.requests)


@pytest.mark.parametrize(
    "event",
    [{"Records": []}, {"Records": [{"eventSource": "aws:sqs"}]}],
    ids=["not known", "malformed batch"],
)
def test_an_event_that_is_refused_is_a_line(context: Context, lines: Log, event: dict[str, Any]) -> None:
    """An event of an unknown shape is one log line. Its caller is not known yet."""
    failed(send_sms.handler, event, context)

    assert [("InvalidInputError", "send_sms")] == [(line["error"], line["function"]) for line in logged(lines())]


def test_an_unknown_outcome_in_a_batch_is_a_line_and_a_metric(
    twilio: FaultServer, context: Context, event: LoadEvent, lines: Log
) -> None:
    """An unknown outcome in a batch is logged and counted, because SQS does not redeliver its record."""
    twilio.script(faults.status(500), faults.OK)
    answer = send_sms.handler(event("send_sms_sqs"), context)
    written = lines()

    assert {"batchItemFailures": []} == answer
    assert [None, None, "OutcomeUnknownError"] == sorted((line.get("error") for line in logged(written)), key=bool)
    assert [1.0] == metrics(written)["OutcomeUnknown"]


def test_our_own_fault_is_a_line_without_its_message(
    aws_wire: AwsWire, context: Context, lines: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception is logged with its place and without its message, which may contain any value."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://[{MARKER}]")
    failed(get_sms.handler, {"message_sid": SID}, context)
    (line,) = logged(lines())

    assert ("ERROR", "unexpected exception", "ValueError") == (line["level"], line["message"], line["exception"])
    assert any(where.startswith("api/connections.py:") for where in line["where"])
    assert MARKER not in json.dumps(line)
    assert [] == aws_wire.calls


def test_a_fault_becomes_an_error_that_says_nothing(lines: Log) -> None:
    """The error for an unexpected exception refers the caller to the log; neither has the exception's text."""
    error = telemetry.bug(KeyError(MARKER))

    assert isinstance(error, InternalError)
    assert MARKER not in f"{error}{lines()}"


def test_no_line_holds_what_was_sent(twilio: FaultServer, context: Context, event: LoadEvent, lines: Log) -> None:
    """No log line contains phone numbers, texts or credentials, for any kind of failure."""
    refusal = faults.status(400, message=f"{TO} {MARKER}")
    for fault in (refusal, faults.status(500), faults.RESET_AFTER_READ, faults.body("html")):
        twilio.script(fault)
        failed(send_sms.handler, {"to": TO, "message": MARKER}, context)
        request = event("send_sms_api")
        send_sms.handler(request | {"body": json.dumps({"to": TO, "message": MARKER})}, context)
    failed(send_sms.handler, {"to": MARKER, "message": 5, TO: MARKER}, context)
    written = json.dumps(lines())

    assert [] == [part for part in (TO, TO[1:], MARKER, "not-a-secret", "SK000") if part in written]


# Log levels


def run(code: str, **environment: str) -> list[dict[str, Any]]:
    """Run code in a new process, and return its log lines."""
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
    """LOG_LEVEL sets the level. Lambda's filter stays at INFO, because it would drop the metrics otherwise."""
    code = "from twilio_connector.telemetry import logger; logger.debug('called'); logger.error('failed')"

    assert count == len(run(code, LOG_LEVEL=level, AWS_LAMBDA_LOG_LEVEL="INFO"))


def test_debug_says_that_a_function_was_called(twilio: FaultServer, context: Context, lines: Log) -> None:
    """At level DEBUG, a line says that a function was called, by which caller, and for which connection."""
    telemetry.logger._logger.setLevel("DEBUG")
    try:
        get_sms.handler({"message_sid": SID}, context)
    finally:
        telemetry.logger._logger.setLevel("INFO")

    assert [
        {
            "level": "DEBUG",
            "message": "called",
            "function_request_id": LAMBDA_ID,
            "function": "get_sms",
            "caller": "direct",
            "connection": "default",
            "message_sid": SID,
        }
    ] == logged(lines())[:1]
    assert 1 == len(twilio.requests)


# Metrics


def test_metrics_are_told_apart_by_service(twilio: FaultServer, context: Context, lines: Log) -> None:
    """Metrics have the service as dimension, so that two stacks in one account do not mix. Errors also have a class."""
    twilio.script(faults.OPTED_OUT)
    failed(send_sms.handler, SMS, context)
    written = [line for line in lines() if "_aws" in line]

    assert {"twilio-connector"} == {line["service"] for line in written}
    assert [[["service", "error"]], [["service"]]] == [
        line["_aws"]["CloudWatchMetrics"][0]["Dimensions"] for line in written
    ]


def test_a_message_that_was_sent_is_counted(twilio: FaultServer, context: Context, lines: Log) -> None:
    """A sent message is counted, with Twilio's latency in milliseconds."""
    send_sms.handler(SMS, context)
    found = metrics(lines())

    assert ([1.0], [1.0], [1.0]) == tuple(found.pop(n) for n in ("MessagesSent", "SegmentsSent", "DirectCalls"))
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
    twilio: FaultServer, context: Context, lines: Log, fault: faults.Fault, name: str, latencies: int
) -> None:
    """A message that was not sent is counted, and its error is counted by its class."""
    twilio.script(fault)
    failed(send_sms.handler, SMS, context)
    found = metrics(lines())

    assert latencies == len(found.pop("TwilioLatency"))
    refused = {"CredentialsRefused": [1.0]} if fault is faults.UNAUTHORIZED else {}
    assert {"DirectCalls": [1.0], "MessagesNotSent": [1.0], f"TwilioErrors:{name}": [1.0]} | refused == found


@pytest.mark.usefixtures("aws_wire", "delays")
def test_only_what_went_on_the_wire_has_a_latency(
    context: Context, lines: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that could not be sent has no latency, because each latency sample stands for one sent request."""
    with closed_port() as port:
        monkeypatch.setenv("TWILIO_API_URL", f"http://127.0.0.1:{port}")
        failed(send_sms.handler, SMS, context)

    counted = {"DirectCalls": [1.0], "MessagesNotSent": [1.0], "TwilioErrors:TwilioUnavailableError": [1.0]}
    assert counted == metrics(lines())


def test_an_unknown_outcome_is_neither_sent_nor_not_sent(twilio: FaultServer, context: Context, lines: Log) -> None:
    """An unknown outcome has a metric of its own, and is counted neither as sent nor as not sent."""
    twilio.script(faults.status(500))
    failed(send_sms.handler, SMS, context)
    found = metrics(lines())
    del found["TwilioLatency"]

    assert {"DirectCalls": [1.0], "OutcomeUnknown": [1.0], "TwilioErrors:OutcomeUnknownError": [1.0]} == found


def test_a_batch_is_counted_together(twilio: FaultServer, context: Context, event: LoadEvent, lines: Log) -> None:
    """The messages of a batch are counted together, but errors one by one, because they have a dimension."""
    twilio.script(faults.OK, faults.OPTED_OUT, faults.OK)
    send_sms.handler(event("send_sms_sqs"), context)
    found = metrics(lines())

    assert ([1.0, 1.0], [1.0]) == (found["MessagesSent"], found["MessagesNotSent"])
    assert [1.0] == found["TwilioErrors:RecipientOptedOutError"]


def hundred(message: str) -> dict[str, Any]:
    """Return a batch of a hundred records of the send queue."""
    record = {"eventSource": "aws:sqs", "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:send"}
    bodies = [json.dumps({"to": TO, "message": f"{message} {number}"}) for number in range(100)]
    return {"Records": [record | {"messageId": str(number), "body": body} for number, body in enumerate(bodies)]}


@pytest.mark.parametrize(
    ("message", "counted"),
    [
        ("Hello", {"MessagesSent": 100, "SegmentsSent": 100, "EventsPublished": 100}),
        (
            "fault=status_400",
            {"MessagesNotSent": 100, "EventsPublished": 100, "TwilioErrors:TwilioRejectedError": 100},
        ),
        ("fault=status_500", {"OutcomeUnknown": 100, "TwilioErrors:OutcomeUnknownError": 100}),
    ],
    ids=["sent", "refused", "unknown"],
)
def test_all_records_of_a_batch_are_counted(
    twilio: FaultServer,
    context: Context,
    lines: Log,
    monkeypatch: pytest.MonkeyPatch,
    message: str,
    counted: dict[str, int],
) -> None:
    """All records of a batch are counted, although 50 threads count at once and a line holds at most 100 values."""
    monkeypatch.setenv("SEND_THREADS", "50")
    assert {"batchItemFailures": []} == send_sms.handler(hundred(message), context)
    found = {name: len(values) for name, values in metrics(lines()).items()}

    assert len(twilio.requests) == found.pop("TwilioLatency")
    assert counted | {"SqsCalls": 100} == found
    assert 100 == sum(request.method == "POST" for request in twilio.requests)


def test_a_message_that_comes_again_is_not_counted_again(
    twilio: FaultServer, context: Context, event: LoadEvent, lines: Log
) -> None:
    """A redelivered message is counted as sent only once, but each of its reports is counted."""
    for _ in range(2):
        send_sms.handler(event("send_sms_sqs"), context)
    found = metrics(lines())

    assert ([1.0] * 3, [1.0] * 6) == (found["MessagesSent"], found["EventsPublished"])
    assert 3 == len(twilio.requests)


class Crowded(io.StringIO):
    """An output where a second thread writes between the two halves of the first thread's line, unless they lock it."""

    def __init__(self) -> None:
        """Prepare for two threads."""
        super().__init__()
        self.half = threading.Event()
        """Set once a text has been written that does not end a line."""
        self._between = threading.Event()

    def write(self, text: str) -> int:
        """Write a text. After a text that does not end a line, wait briefly for another write."""
        if self.half.is_set():
            self._between.set()
        count = super().write(text)
        if not text.endswith("\n"):
            self.half.set()
            self._between.wait(0.2)
        return count


def test_metrics_of_threads_do_not_run_into_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads write their metrics on separate lines, because CloudWatch reads no metrics from a line with both."""
    output = Crowded()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(telemetry.logger.registered_handler, "stream", io.StringIO())
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(telemetry.failure, [REFUSED] * 2))

    assert {"TwilioErrors:TwilioRejectedError": [1.0, 1.0]} == metrics(
        [json.loads(line) for line in output.getvalue().splitlines()]
    )


def count_and_flush() -> None:
    """Count a message, and write the metrics of the invocation."""
    telemetry.count("MessagesSent")
    telemetry.flush()


def count_more_than_a_line_holds() -> None:
    """Count so many values that Powertools writes a line before the invocation ends."""
    for _ in range(101):
        telemetry.count("MessagesSent")


REFUSED = TwilioRejectedError("refused", twilio=TwilioDetails(status=400))


@pytest.mark.parametrize(
    ("write_metrics", "write_line"),
    [
        (lambda: telemetry.failure(REFUSED), lambda: telemetry.logger.error("failed")),
        (count_and_flush, lambda: telemetry.success("sent")),
        (count_more_than_a_line_holds, lambda: logging.getLogger("library").warning("slow")),
    ],
    ids=["an error", "an invocation", "a hundred values"],
)
@pytest.mark.usefixtures("counted")
def test_metrics_and_log_lines_of_threads_do_not_run_into_each_other(
    monkeypatch: pytest.MonkeyPatch, write_metrics: Callable[[], object], write_line: Callable[[], object]
) -> None:
    """A log line never comes between the two parts of a metric's line, because CloudWatch would read neither."""
    output = Crowded()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(telemetry.logger.registered_handler, "stream", output)
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(write_metrics)
        assert output.half.wait(5)
        pool.submit(write_line).result()
        writing.result()

    written = [json.loads(line) for line in output.getvalue().splitlines()]
    assert metrics(written)
    assert [line for line in written if "_aws" not in line]


def test_a_warning_of_a_library_waits_for_no_other_lock() -> None:
    """Warnings and lines take one lock, so that no thread holds one and waits for another that holds the other."""
    assert telemetry.logger.registered_handler.lock is telemetry._libraries.lock


def test_a_dry_run_is_a_call_and_no_message(twilio: FaultServer, context: Context, lines: Log) -> None:
    """A dry run is counted as a call and not as a message, and its log line says `checked` instead of `sent`."""
    send_sms.handler(SMS | {"dry_run": True}, context)
    written = lines()

    assert {"DirectCalls": [1.0]} == metrics(written)
    assert ["checked"] == [line["message"] for line in written if "message" in line]
    assert [] == twilio.requests


def test_metrics_do_not_run_into_the_next_invocation(twilio: FaultServer, context: Context, lines: Log) -> None:
    """An invocation writes only its own metrics, even after a failed invocation."""
    twilio.script(faults.status(500), faults.OK)
    failed(send_sms.handler, SMS, context)
    lines()
    send_sms.handler(SMS, context)

    assert {"DirectCalls", "MessagesSent", "SegmentsSent", "TwilioLatency"} == metrics(lines()).keys()


def test_an_invalid_input_is_no_error_of_twilios(context: Context, lines: Log) -> None:
    """An invalid input is not counted as an error of Twilio's, because no request was made."""
    failed(send_sms.handler, {}, context)

    assert {"DirectCalls": [1.0]} == metrics(lines())


@pytest.mark.parametrize(
    ("name", "callers"),
    [
        ("send_sms_api", ["ApiCalls"]),
        ("send_sms", ["DirectCalls"]),
        ("send_sms_sqs", ["SqsCalls", "SnsCalls", "EventBridgeCalls"]),
        ("send_sms_sns", ["SnsCalls"]),
        ("send_sms_eventbridge", ["EventBridgeCalls"]),
    ],
)
def test_a_call_is_counted_by_its_caller(
    context: Context, event: LoadEvent, lines: Log, name: str, callers: list[str]
) -> None:
    """A call is counted by its original caller, for each record of a batch, even if its input is invalid."""
    with suppress(ConnectorError):
        get_sms.handler(event(name), context)

    assert {metric: [1.0] for metric in callers} == metrics(lines())


@pytest.mark.parametrize(
    ("more", "segments"),
    [
        ({"num_segments": "3"}, 3),
        ({"num_segments": "0", "body": "x" * 161}, 2),
        ({"num_segments": "0", "body": ""}, 1),
        ({"num_segments": None, "body": None}, 1),
        ({"num_segments": "9" * 5000, "body": ["x"]}, 1),
    ],
    ids=["told", "of a service", "no text", "nothing", "nonsense"],
)
@pytest.mark.usefixtures("aws_wire")
def test_segments_are_counted(
    twilio: FaultServer, context: Context, lines: Log, more: dict[str, Any], segments: int
) -> None:
    """Segments are counted as Twilio reports them, or from the text if Twilio reports none yet.

    A nonsensical report does not change that the message was sent.
    """
    twilio.script(faults.status(201, body=json.dumps({"sid": SID} | more)))

    assert SID == send_sms.handler(SMS, context)["sid"]
    assert [float(segments)] == metrics(lines())["SegmentsSent"]


# Libraries


LAMBDA = """
import logging, sys
# Lambda's runtime has a handler of its own on the root logger before it imports a function.
logging.root.addHandler(logging.StreamHandler(sys.stdout))
logging.root.setLevel("DEBUG")
"""


def run_as_lambda_does(code: str, **environment: str) -> str:
    """Run code in a new process whose root logger writes everything, as Lambda's does, and return its output."""
    path = os.pathsep.join(str(ROOT / part) for part in ("functions", "layers/twilio", "."))
    done = subprocess.run(
        [sys.executable, "-c", LAMBDA + code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        check=True,
        cwd=Path(__file__).parent,
        text=True,
    )
    return done.stdout + done.stderr


def test_a_warning_of_a_library_has_no_url(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A library's warning is logged without text. For a malformed header, urllib3 logs the URL with phone numbers."""
    twilio.script(faults.MALFORMED_HEADER)
    code = f"""
import list_sms, types
context = types.SimpleNamespace(aws_request_id={LAMBDA_ID!r}, get_remaining_time_in_millis=lambda: 30_000)
list_sms.handler({{"to": {TO!r}}}, context)
"""
    written = run_as_lambda_does(code, AWS_ENDPOINT_URL=aws_wire.url, TWILIO_API_URL=twilio.url)

    assert "To=%2B" in twilio.requests[0].target
    assert [("WARNING", "a library warns", "urllib3.connection")] == [
        (line["level"], line["message"], line["library"])
        for line in map(json.loads, written.splitlines())
        if "library" in line
    ]
    assert [] == [part for part in (TO[1:], "Messages.json", "no colon") if part in written]


def test_no_library_writes_but_through_us() -> None:
    """A library's record, at any level, is logged at most as a line that names the library and has none of its text."""
    code = f"""
import importlib, warnings
for module in {[module_name(path) for path in DEPLOYED]}:
    importlib.import_module(module)
import botocore.credentials, botocore.httpsession
from twilio_connector import telemetry
names = [name for name in logging.root.manager.loggerDict if not name.startswith(telemetry.logger.name)]
for name in names + ["", "a.library.that.comes.later"]:
    library = logging.getLogger(name)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        library.log(level, "{MARKER} %s", "{MARKER}")
    try:
        raise ValueError("{MARKER}")
    except ValueError:
        library.exception("{MARKER}", extra={{"{MARKER}": 1}}, stack_info=True)
warnings.warn("{MARKER}")
print("libraries", len(names))
"""
    written = run_as_lambda_does(code)
    *lines, libraries = written.splitlines()
    told = [json.loads(line) for line in lines]

    assert MARKER not in written
    assert int(libraries.split()[1]) > 20
    assert {"urllib3.connectionpool", "requests", "botocore.credentials", "root", "py.warnings"} <= {
        line["library"] for line in told
    }
    assert {("WARNING", "a library warns")} == {(line["level"], line["message"]) for line in told}
