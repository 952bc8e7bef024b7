"""Send the messages of a queue through the official SDK, one record after the other."""

from typing import Any

from app import SendSms, as_json, create, logger, metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

processor = BatchProcessor(event_type=EventType.SQS)


def record_handler(record: SQSRecord) -> dict[str, Any]:
    """Send one record."""
    message = create(SendSms.model_validate_json(record.body))
    logger.info("Message sent", message_sid=message.sid)
    metrics.add_metric(name="MessagesSent", unit=MetricUnit.Count, value=1)
    return as_json(message)


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Send a batch, and report the records that SQS must redeliver."""
    return process_partial_response(event, record_handler, processor, context)
