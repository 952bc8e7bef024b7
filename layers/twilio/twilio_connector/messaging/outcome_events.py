"""Reports on messages for callers that wait for no answer: events on the bus, and records in the failed queue.

The event comes first. While the bus is down, the report is retried, and each retry would put another record in the
failed queue.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from twilio_connector.aws import client, event_bus, queue
from twilio_connector.messaging.idempotency import Evidence, SendRecord, record_id
from twilio_connector.settings import variable

_SOURCE = "twilio-connector"
_MAX_ATTRIBUTE = 1000  # characters


class Subject(NamedTuple):
    """The key that a report is about."""

    idempotency_key: str
    connection: str
    caller: str

    @property
    def send_id(self) -> str:
        """The id of the key's record, which log lines, callbacks and reports have."""
        return record_id(self.connection, self.idempotency_key)


def subject(record: SendRecord) -> Subject:
    """Return what a report on a record is about."""
    return Subject(record.idempotency_key, record.connection, record.caller)


def sent(about: Subject, message: Mapping[str, Any]) -> None:
    """Publish `Message Sent`; raises ServiceUnavailableError.

    `message` is Twilio's message object, with `evidence` unless Twilio's own answer showed it.
    """
    evidence = message.get("evidence", Evidence.ANSWER)
    twilios = {name: value for name, value in message.items() if name != "evidence"}
    _publish("Message Sent", about, message=twilios, evidence=evidence)


def failed(about: Subject, body: str, problem: Mapping[str, Any]) -> None:
    """Publish `Message Failed`, and put a message that was provably not sent in the failed queue.

    `body` is the record's body for the queue, `problem` the error as a problem object. Raises ServiceUnavailableError.
    A retry then publishes the event again, with the same idempotency key.
    """
    _publish("Message Failed", about, error=problem)
    _put_in_failed_queue(about, body, problem)


def unknown(about: Subject, body: str, problem: Mapping[str, Any], candidate_sid: str | None = None) -> None:
    """Publish `Message Outcome Unknown`, and put a message whose outcome stays unknown in the failed queue.

    `candidate_sid` is the only message in Twilio's list that may be this one. Raises ServiceUnavailableError.
    """
    candidate = {"candidate_sid": candidate_sid} if candidate_sid else {}
    _publish("Message Outcome Unknown", about, error=problem, **candidate)
    _put_in_failed_queue(about, body, {**problem, **candidate})


def _publish(name: str, about: Subject, **outcome: Any) -> None:
    event_bus.put([event_bus.entry(_SOURCE, name, about._asdict() | {"send_id": about.send_id} | outcome)])


def _put_in_failed_queue(about: Subject, body: str, problem: Mapping[str, Any]) -> None:
    names = ("title", "detail", "twilio_code", "twilio_request_id", "candidate_sid")
    told = {"send_id": about.send_id} | {name: problem[name] for name in names if problem.get(name)}
    attributes = {
        "error" if name == "title" else name: {"DataType": "String", "StringValue": _printable(value)}
        for name, value in told.items()
    }
    try:
        queue.send_message(variable("FAILED_QUEUE_URL"), body, MessageAttributes=attributes)
    except client.AwsError as error:
        raise error.unavailable("the failed queue") from None


def _printable(value: Any) -> str:
    """Return a text that SQS takes (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html)."""
    return "".join(character if character.isprintable() else " " for character in str(value)[:_MAX_ATTRIBUTE])
