"""One log line per failed call, and metrics, with Powertools for AWS Lambda."""

import logging
import os
import threading
import traceback
from pathlib import Path
from typing import Any

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import Metrics, MetricUnit, single_metric

from twilio_connector.errors import ConnectorError, InternalError, OutcomeUnknownError

_NAMESPACE = "TwilioConnector"

logger = Logger()
# Powertools would take Lambda's own level, which stays at INFO so that metrics get through.
logger._logger.setLevel(os.environ.get("LOG_LEVEL", "INFO"))  # noqa: SLF001 no public way around that rule

metrics = Metrics(namespace=_NAMESPACE)
_counting = threading.Lock()  # the records of a batch are handled in threads, and Powertools adds without one


# At level INFO they tell of credentials, at DEBUG of every URL with its query: numbers, that is.
for library in ("botocore", "requests", "urllib3"):
    logging.getLogger(library).setLevel(logging.WARNING)


def count(name: str) -> None:
    """Count one of the metrics that the README lists."""
    with _counting:
        metrics.add_metric(name=name, unit=MetricUnit.Count, value=1)


def latency(seconds: float) -> None:
    """Record the time of one request to Twilio."""
    with _counting:
        metrics.add_metric(name="TwilioLatency", unit=MetricUnit.Milliseconds, value=round(seconds * 1000, 1))


def failure(error: ConnectorError, **context: Any) -> None:
    """Log a failed call in one line, and count it by its class.

    `context` is names and SIDs; never a phone number, a text or a credential.
    """
    name = type(error).__name__
    details = {key: value for key, value in context.items() if value is not None}
    if error.twilio:
        details |= {
            "twilio_status": error.twilio.status,
            "twilio_code": error.twilio.code,
            "twilio_request_id": error.twilio.request_id,
        }
    logger.error(str(error), extra={"error": name, "retryable": error.retryable, **details})
    if error.twilio or name.startswith(("Twilio", "OutcomeUnknown")):
        with (
            _counting,
            single_metric(name="TwilioErrors", unit=MetricUnit.Count, value=1, namespace=_NAMESPACE) as metric,
        ):
            metric.add_dimension(name="service", value=metrics.service)
            metric.add_dimension(name="error", value=name)
    if isinstance(error, OutcomeUnknownError):
        count("OutcomeUnknown")


def bug(error: Exception) -> InternalError:
    """Log where an unexpected exception came from, and return what the caller gets.

    The exception's own message is left out: it may hold any value.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    logger.error("unexpected exception", extra={"exception": type(error).__name__, "where": where})
    return InternalError("a fault of the connector; its log says where")


def flush() -> None:
    """Print the metrics of the invocation."""
    if metrics.metric_set:
        metrics.flush_metrics()
