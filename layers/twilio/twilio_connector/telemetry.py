"""Writes the log lines and the metrics of the functions, with Powertools for AWS Lambda."""

import logging
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter
from aws_lambda_powertools.metrics import Metrics, MetricUnit, single_metric

from twilio_connector import clock
from twilio_connector.errors import ConnectorError, InternalError, OutcomeUnknownError

_NAMESPACE = "TwilioConnector"

MAX_SUCCESS_BYTES = 400
"""Most bytes in the log line of a successful call, including its line break."""
_LEFT_OUT_FIRST = ("duration_ms", "twilio_request_id", "xray_trace_id")  # in this order, if the line is too long

_fields: ContextVar[Mapping[str, Any]] = ContextVar("fields", default=MappingProxyType({}))
"""The fields that a thread adds to each of its log lines."""


class _Lines(LambdaPowertoolsFormatter):
    """Formats lines as Powertools does, with the thread's fields."""

    def serialize(self, log: Any) -> str:
        """Return a line as JSON."""
        return super().serialize(log | {name: value for name, value in noted().items() if name not in log})

    def _get_latest_trace_id(self) -> str | None:
        """Return None: the thread's fields have the trace id, where Powertools would read the process's current one."""
        return None


logger = Logger(logger_formatter=_Lines())
_python_logger = logger._logger  # noqa: SLF001 Powertools has no public way to its level
_output: Any = logger.registered_handler
_lock = _output.lock
"""Held while a thread counts or writes a line.

Records of a batch run in threads, and Powertools' metrics are not thread-safe. They also `print` a line in two parts:
without the lock, another thread's line could come in between, and CloudWatch would read neither.
"""


class _Libraries(logging.Handler):
    """Logs where a library issued a warning, without its text, which may contain any value, such as a URL."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the place of a library's warning."""
        if record.name != logger.name:
            where = f"{record.filename}:{record.lineno} {record.funcName}"
            logger.warning("a library warns", extra={"library": record.name, "where": [where]})


# By default Powertools uses Lambda's log level, which stays at INFO because metrics are lines of that level.
_python_logger.setLevel(os.environ.get("LOG_LEVEL", "INFO"))

metrics = Metrics(namespace=_NAMESPACE)

# Lambda's own handler would write the texts of libraries. Below WARNING, libraries log every request.
_libraries = _Libraries(logging.WARNING)
_libraries.lock = _lock  # one lock for both, so that no thread holds one while it waits for the other
logging.root.handlers = [_libraries]
logging.root.setLevel(logging.WARNING)
logging.captureWarnings(capture=True)


# ---------------------------------------------------------------- FIELDS OF LOG LINES


def noted() -> Mapping[str, Any]:
    """Return the fields that this thread adds to each log line: names, SIDs and ids of the current call."""
    return _fields.get()


def note(**more: Any) -> None:
    """Add fields to this thread's log lines until the scope ends; the value None removes a field.

    Never a phone number, a text, an idempotency key or a credential.
    """
    _fields.set({name: value for name, value in {**noted(), **more}.items() if value is not None})


def resume(known: Mapping[str, Any]) -> None:
    """Replace the fields of this thread's log lines, so that a thread can continue the call of another one."""
    _fields.set(known)


@contextmanager
def scope(**more: Any) -> Iterator[None]:
    """Add fields to this thread's log lines within a `with` block; at its end, restore the fields from before."""
    outer = noted()
    note(**more)
    try:
        yield
    finally:
        resume(outer)


# ---------------------------------------------------------------- LINES AND METRICS


def count(name: str, value: int = 1) -> None:
    """Add to one of the counters that docs/reference.md lists."""
    with _lock:
        metrics.add_metric(name=name, unit=MetricUnit.Count, value=value)


def waited(name: str, sent_at: float | None) -> None:
    """Report the age in seconds of a record that SQS must deliver again; it was put in its queue at `sent_at`.

    SQS's own metric, the age of the oldest message, leaves out messages that were received three times or more
    (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html).
    """
    if sent_at is not None:
        with _lock:
            metrics.add_metric(name=name, unit=MetricUnit.Seconds, value=max(0, round(clock.now() - sent_at)))


def latency(seconds: float) -> None:
    """Report the duration of one request to Twilio."""
    with _lock:
        metrics.add_metric(name="TwilioLatency", unit=MetricUnit.Milliseconds, value=round(seconds * 1000, 1))


def success(message: str, **more: Any) -> None:
    """Log a call that succeeded in one line, unless the stack's `LogSuccess` is false; `more` is as for `note`.

    The line is written past `logging`, which would take a tenth of a send's CPU. It leaves out what CloudWatch knows:
    the time, and by the log group's name the stack and the function.
    """
    if os.environ.get("LOG_SUCCESS") == "false" or not _python_logger.isEnabledFor(logging.INFO):
        return
    fields = {"level": "INFO", "message": message, **noted(), **more}
    fields.pop("function", None)
    line = msgspec.json.encode(fields)
    for name in _LEFT_OUT_FIRST:
        if len(line) < MAX_SUCCESS_BYTES:
            break
        fields.pop(name, None)
        line = msgspec.json.encode(fields)
    with _lock:
        _output.stream.write(line.decode() + "\n")
    _output.flush()


def failure(error: ConnectorError, **more: Any) -> None:
    """Log a failed call in one line, and count it by its class; `more` is as for `note`."""
    name = type(error).__name__
    details = dict(more)
    if error.twilio:
        details |= {
            "twilio_status": error.twilio.status,
            "twilio_code": error.twilio.code,
            "twilio_request_id": error.twilio.request_id,
        }
    logger.error(str(error), extra={"error": name, "retryable": error.retryable, **details})
    if error.twilio or name.startswith(("Twilio", "OutcomeUnknown")):
        with (
            _lock,
            single_metric(name="TwilioErrors", unit=MetricUnit.Count, value=1, namespace=_NAMESPACE) as metric,
        ):
            metric.add_dimension(name="service", value=metrics.service)
            metric.add_dimension(name="error", value=name)
    if isinstance(error, OutcomeUnknownError):
        count("OutcomeUnknown")


def bug(error: Exception) -> InternalError:
    """Log where an unexpected exception came from, and return the error for the caller.

    The exception's own message is left out, because it may contain any value.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{_file(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    logger.error("unexpected exception", extra={"exception": type(error).__name__, "where": where})
    return InternalError("internal error; the function's log shows where")


def _file(path: str) -> str:
    """Return the name of a source file. A file of the layer keeps its package, since packages share file names."""
    return path.rpartition("/twilio_connector/")[2] if "/twilio_connector/" in path else Path(path).name


def flush() -> None:
    """Write the metrics of the invocation to the log."""
    with _lock:
        if metrics.metric_set:
            metrics.flush_metrics()
