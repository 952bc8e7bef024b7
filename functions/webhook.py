"""Receive Twilio's webhooks, check their signatures, and publish them as events; publish buffered events."""

from http import HTTPStatus
from typing import Any

import msgspec
from twilio_connector import telemetry
from twilio_connector.aws import client
from twilio_connector.deadline import Deadline
from twilio_connector.errors import (
    ConnectionInvalidError,
    ConnectorError,
    InternalError,
    InvalidInputError,
    ServiceUnavailableError,
)
from twilio_connector.invocation.events import sqs_records
from twilio_connector.invocation.function import Invocation, lambda_function
from twilio_connector.messaging.idempotency import Confirmed
from twilio_connector.messaging.idempotency_store import IdempotencyStore
from twilio_connector.publishing import publisher
from twilio_connector.publishing.event import log_fields
from twilio_connector.settings import variable
from twilio_connector.webhooks import events, readings, replies
from twilio_connector.webhooks.request import Delivery, WebhookRejectedError, received

_LEDGER_SECONDS = 2 * client.SECONDS  # to read a key's record and to write it


@lambda_function
def handler(event: Any, invocation: Invocation) -> dict[str, Any]:
    """Answer Twilio: 200 once the event is on the bus or in the buffer, 403 or 413 for a refused request, else 503.

    For records of the buffer, it returns those that SQS must deliver again.
    """
    try:
        records = sqs_records(event)
    except InvalidInputError as error:
        raise InternalError(str(error)) from None  # only the stack's own queue delivers records
    if records is not None:
        again = publisher.publish_buffered(records, invocation.deadline)
        for record in again:
            telemetry.waited("BufferAge", record.sent_at)
        return {"batchItemFailures": [{"itemIdentifier": record.message_id} for record in again]}
    try:
        return _answer(event, invocation)
    except Exception as error:  # noqa: BLE001 Twilio gets an answer after any error
        telemetry.bug(error)
        return _refusal(500)


def _answer(event: Any, invocation: Invocation) -> dict[str, Any]:
    deadline = invocation.deadline
    try:
        delivery = received(event, deadline.earlier(publisher.RESERVE_SECONDS))
        telemetry.note(connection=delivery.connection)
        marks = _remember(delivery, deadline)
        telemetry.count("WebhooksAccepted")
        key = None if marks else _confirm_send(delivery, deadline)
        outgoing = list(events.of_delivery(delivery, marks, key))
        telemetry.note(**log_fields(outgoing[0]))
        publisher.publish(outgoing, deadline)
        twiml = replies.reply(outgoing[0], deadline, is_call=events.is_call(delivery))
    except (InternalError, ServiceUnavailableError) as error:
        telemetry.failure(error)
        return _refusal(error.status)
    except (WebhookRejectedError, ConnectorError) as error:
        telemetry.count("WebhooksRefused")
        if isinstance(error, WebhookRejectedError) and error.metric:
            telemetry.count(error.metric)
        if isinstance(error, ConnectionInvalidError):
            telemetry.failure(error)  # the stack's mistake, not the sender's
        else:
            telemetry.logger.warning("webhook refused", extra={"reason": str(error)})
        return _refusal(error.status if isinstance(error, WebhookRejectedError) else 403)
    invocation.outcome = "accepted"
    return {"statusCode": 200, "headers": {"Content-Type": "text/xml"}, "body": twiml}


def _remember(delivery: Delivery, deadline: Deadline) -> dict[str, str]:
    """Check a delivery against the memory of signed texts, and return the marks for its events.

    Raises WebhookRejectedError if the text was read in another way before. If the text has no SID, another reading of
    it is published too, with a mark.
    """
    outcome = readings.ReadingStatus.UNAVAILABLE
    if deadline.remaining() >= publisher.RESERVE_SECONDS + client.SECONDS:
        outcome = readings.remember(variable("DELIVERIES_TABLE"), delivery.reading)
    match outcome:
        case readings.ReadingStatus.STANDS:
            return {}
        case readings.ReadingStatus.UNAVAILABLE:
            return {"deduplication": "unavailable"}
    if delivery.reading.has_sid:
        reason = "the signed text was read in another way before, with other names, values or another method"
        raise WebhookRejectedError(reason, metric="WebhookReadingsRefused")
    return {"reading": "ambiguous"}


def _refusal(status: int) -> dict[str, Any]:
    body = msgspec.json.encode({"message": HTTPStatus(status).phrase}).decode()
    return {"statusCode": status, "headers": {"Content-Type": "application/json"}, "body": body}


def _confirm_send(delivery: Delivery, deadline: Deadline) -> str | None:
    """Note in the ledger that the message of a status callback exists; return its idempotency key.

    If the ledger does not answer, the event is published all the same: a later callback or `resolve` settles the key.
    """
    message = events.message(delivery)
    if delivery.send is None or message is None:
        return None
    if deadline.remaining() < publisher.RESERVE_SECONDS + _LEDGER_SECONDS:
        return None
    ledger = IdempotencyStore(variable("LEDGER_TABLE"))
    try:
        record = ledger.find(delivery.send)
        if record is None or record.connection != delivery.connection or message["status"] in events.INBOUND:
            return None
        ledger.write(Confirmed({name: message[name] for name in ("sid", "status", "from", "to")}), record)
    except ServiceUnavailableError as error:
        telemetry.failure(error, send_id=delivery.send)
        return None
    return record.idempotency_key
