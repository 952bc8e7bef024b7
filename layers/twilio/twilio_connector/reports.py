"""What became of a message, told to those who wait for no answer: events on the bus, and the failed queue."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from twilio_connector import aws, bus
from twilio_connector.errors import ServiceUnavailableError
from twilio_connector.ledger import Record
from twilio_connector.settings import variable

_SOURCE = "twilio-connector"
_MAX_ATTRIBUTE = 1000  # characters


class Subject(NamedTuple):
    """The key that a report is about."""

    idempotency_key: str
    connection: str
    caller: str


def subject(record: Record) -> Subject:
    """Return what a report on a record is about."""
    return Subject(record.idempotency_key, record.connection, record.caller)


def sent(about: Subject, message: Mapping[str, Any]) -> None:
    """Publish `Message Sent`; raises ServiceUnavailableError."""
    _publish("Message Sent", about, message=message)


def failed(about: Subject, body: str, problem: Mapping[str, Any]) -> None:
    """Put a message that was provably not sent in the failed queue, and publish `Message Failed`.

    `body` is the queue's, `problem` the error as a problem object. Raises ServiceUnavailableError.
    """
    _set_aside(body, problem)
    _publish("Message Failed", about, error=problem)


def unknown(about: Subject, body: str, problem: Mapping[str, Any]) -> None:
    """Put a message whose outcome stays unknown in the failed queue, and publish `Message Outcome Unknown`.

    Raises ServiceUnavailableError.
    """
    _set_aside(body, problem)
    _publish("Message Outcome Unknown", about, error=problem)


def _publish(name: str, about: Subject, **outcome: Any) -> None:
    bus.put([bus.entry(_SOURCE, name, about._asdict() | outcome)])


def _set_aside(body: str, problem: Mapping[str, Any]) -> None:
    names = ("title", "detail", "twilio_code", "twilio_request_id")
    attributes = {
        "error" if name == "title" else name: {"DataType": "String", "StringValue": _printable(problem[name])}
        for name in names
        if problem.get(name)
    }
    try:
        aws.send_message(variable("FAILED_QUEUE_URL"), body, MessageAttributes=attributes)
    except aws.RefusedError as error:
        raise ServiceUnavailableError(f"the failed queue does not answer ({error.code})") from None


def _printable(value: Any) -> str:
    """Return a text that SQS takes (https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html)."""
    return "".join(character if character.isprintable() else " " for character in str(value)[:_MAX_ATTRIBUTE])
