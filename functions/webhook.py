"""Receive what Twilio posts, check its signature, and publish it as an event; publish what the bus did not take."""

from http import HTTPStatus
from typing import Any

import msgspec
from twilio_connector import aws, envelope, outbox, replies, telemetry, twilio_events
from twilio_connector.deadline import Deadline
from twilio_connector.errors import ConnectionInvalidError, ConnectorError, InternalError, ServiceUnavailableError
from twilio_connector.ledger import Ledger, Proven
from twilio_connector.settings import variable
from twilio_connector.signed_form import Kind
from twilio_connector.signed_request import Delivery, Refused, received

_LEDGER_SECONDS = 2 * aws.SECONDS  # to read a key's record and to write it


def handler(event: Any, context: Any) -> dict[str, Any]:
    """Answer Twilio: 200 once the event is on the bus or in the buffer, 403 or 413 for what is not Twilio's, else 503.

    Of records of the buffer it returns those that SQS is to deliver again.
    """
    deadline = Deadline.of(context)
    try:
        if (records := envelope.sqs_records(event)) is not None:
            again = outbox.publish_kept(records, deadline)
            return {"batchItemFailures": [{"itemIdentifier": record.message_id} for record in again]}
        return _answer(event, deadline)
    except Exception as error:  # noqa: BLE001 whatever arrives, the answer is one of ours
        fault = telemetry.bug(error)
        if envelope.is_http(event):
            return _refusal(500)
        raise fault from None
    finally:
        telemetry.flush()


def _answer(event: Any, deadline: Deadline) -> dict[str, Any]:
    try:
        delivery = received(event, deadline.earlier(outbox.RESERVE_SECONDS))
        telemetry.count("WebhooksAccepted")
        events = list(twilio_events.of_delivery(delivery, _proven_key(delivery, deadline)))
        outbox.publish(events, deadline)
        twiml = replies.reply(delivery.about, events[0], deadline)
    except (InternalError, ServiceUnavailableError) as error:
        telemetry.failure(error, function=__name__)
        return _refusal(error.status)
    except (Refused, ConnectorError) as error:
        telemetry.count("WebhooksRefused")
        if isinstance(error, ConnectionInvalidError):
            telemetry.failure(error, function=__name__)  # a mistake of ours, not a stranger's
        else:
            telemetry.logger.warning("webhook refused", extra={"function": __name__, "reason": str(error)})
        return _refusal(error.status if isinstance(error, Refused) else 403)
    return {"statusCode": 200, "headers": {"Content-Type": "text/xml"}, "body": twiml}


def _refusal(status: int) -> dict[str, Any]:
    body = msgspec.json.encode({"message": HTTPStatus(status).phrase}).decode()
    return {"statusCode": status, "headers": {"Content-Type": "application/json"}, "body": body}


def _proven_key(delivery: Delivery, deadline: Deadline) -> str | None:
    """Note in the ledger that the message of a status callback exists; return its idempotency key.

    The event goes out all the same where the ledger does not answer: there are more callbacks, and `resolve`.
    """
    if delivery.send is None or delivery.about is not Kind.MESSAGE:
        return None
    if deadline.remaining() < outbox.RESERVE_SECONDS + _LEDGER_SECONDS:
        return None
    message = twilio_events.message(delivery.parameters)
    ledger = Ledger(variable("LEDGER_TABLE"))
    try:
        record = ledger.find(delivery.send)
        if record is None or record.connection != delivery.connection or message["status"] in twilio_events.INBOUND:
            return None
        ledger.write(Proven({name: message[name] for name in ("sid", "status", "from", "to")}), record)
    except ServiceUnavailableError as error:
        telemetry.failure(error, function=__name__, connection=delivery.connection)
        return None
    return record.idempotency_key
