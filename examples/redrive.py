"""Move records of a failed queue back to the send queue, so that each message is sent at most once.

    python3 examples/redrive.py --from "$FailedQueueUrl" --to "$SendQueueUrl" --dry-run
    python3 examples/redrive.py --from "$FailedQueueUrl" --to "$SendQueueUrl" --send-id <send_id>

It needs Python 3.13, boto3, AWS credentials and a region. You can stop it at any time: it puts each record in the
send queue before it deletes the record from the failed queue. If you stop it between the two, both queues have a copy,
and both copies have the same idempotency key. A record without a key stays in the failed queue. In the send queue, its
new id would be its key, and nothing would show that the message was sent before.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import boto3
from botocore.exceptions import BotoCoreError, ClientError

VISIBILITY = 300
"""Seconds for which SQS hides a record that this run has received from other consumers."""
WAIT = 2
"""Seconds for which SQS waits for a record. With long polling SQS asks all its servers, so it misses no record.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-short-and-long-polling.html
"""
MAX_DEPTH = 3  # of the envelopes around an input
ENVELOPE_FIELDS = frozenset(
    {
        "Records",
        "detail-type",
        "detail",
        "httpMethod",
        "rawPath",
        "requestContext",
        "requestPayload",
        "responsePayload",
        "routeKey",
        "eventSource",
        "EventSource",
        "TopicArn",
        "awslogs",
        "invocationId",
    }
)
"""The fields by which the connector recognises an envelope. It cannot handle an envelope of an unknown shape."""

DONE, LEFT, USAGE, STOPPED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: all records were moved; some records stay in the queue; wrong options; AWS failed; Ctrl-C."""

_KEY = re.compile(r"[!-~]{1,128}")
_CONNECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SEND_ID = re.compile(r"[0-9a-f]{64}")
_ERROR = re.compile(r"[A-Z][A-Za-z]*Error|[A-Z_]{1,64}")  # a class of the connector, or a code of EventBridge


class UnmovableError(Exception):
    """The exception for a record that must stay in its queue. Its message is the reason, without any values."""


class Key(NamedTuple):
    """The connection and the idempotency key, which together identify a message."""

    connection: str
    idempotency_key: str

    @property
    def send_id(self) -> str:
        """The id of the send in logs and in the ledger: a hash that does not reveal the key."""
        return hashlib.sha256(f"{self.connection}\n{self.idempotency_key}".encode()).hexdigest()


def key_of(body: str, default_connection: str = "default") -> Key:
    """Return the key with which the connector will send the message in a record's body; raises UnmovableError.

    It is the input's own key. Without one, it is the id of the innermost AWS envelope: an EventBridge event, an SNS
    notification, or the record of a failed asynchronous invocation of `send_sms`.
    """
    payload, delivery = _unwrapped(_json(body), None)
    if not isinstance(payload, dict) or payload.get("to") is None:
        raise UnmovableError("it is not an input of send_sms")
    key, connection = payload.get("idempotency_key"), payload.get("connection")
    if key is None and delivery is None:
        raise UnmovableError("it has no idempotency_key")
    if connection is None and delivery is None:
        raise UnmovableError("it has no connection")
    key = delivery if key is None else key
    connection = default_connection if connection is None else connection
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise UnmovableError("its idempotency_key is malformed")
    if not isinstance(connection, str) or not _CONNECTION.fullmatch(connection):
        raise UnmovableError("its connection is malformed")
    return Key(connection, key)


def _unwrapped(event: Any, delivery: str | None, depth: int = 0) -> tuple[Any, str | None]:
    """Return the input in an event, and the id of the innermost envelope that has one."""
    if not isinstance(event, dict) or not ENVELOPE_FIELDS & event.keys():
        return event, delivery
    if depth == MAX_DEPTH:
        raise UnmovableError("it has too many envelopes around the input")
    match event:
        case {"detail-type": str(), "source": str(), "detail": dict(inner)}:
            found = event.get("id")
        case {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": str(text)} as notification}]}:
            inner, found = _json(text), notification.get("MessageId")
        case {"Type": "Notification", "TopicArn": str(), "Message": str(text)}:
            inner, found = _json(text), event.get("MessageId")
        case {"requestContext": {"functionArn": str()} as context, "requestPayload": inner}:
            found = context.get("requestId")
        case _:
            raise UnmovableError("it is not an input of send_sms")
    return _unwrapped(inner, found if found and isinstance(found, str) else delivery, depth + 1)


def _json(text: str) -> Any:
    """Parse JSON as strictly as the connector, which would leave an unreadable record in the send queue."""
    try:
        value = json.loads(text, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # an unpaired surrogate, or 1e999
    except (ValueError, RecursionError):
        raise UnmovableError("it is not JSON") from None
    return value


def _no_number(name: str) -> None:
    raise ValueError(name)


class Redrive:
    """One run of the command, which moves records from one queue to another."""

    def __init__(self, sqs: Any, options: argparse.Namespace) -> None:
        """Store boto3's client and the options of the command line."""
        self._sqs = sqs
        self._options = options
        self._held: dict[str, str] = {}  # receipt handles of the records that stay, by message id
        self._moved: set[str] = set()  # send ids
        self._found: set[str] = set()  # send ids
        self._counts: Counter[str] = Counter()

    def run(self) -> int:
        """Move the selected records, print a line for each, and return the exit code."""
        try:
            while self._receive_and_move():
                pass
        finally:
            self._release()
        for send_id in sorted(self._wanted - self._found):
            self._say(send_id, "missing", "the queue has no record of this send")
        moved = self._counts["would-move" if self._options.dry_run else "moved"]
        others = self._counts.total() - moved
        print(f"{moved} {'to move' if self._options.dry_run else 'moved'}, {others} not", file=sys.stderr)
        return LEFT if others else DONE

    @property
    def _wanted(self) -> set[str]:
        return set(self._options.send_id)

    def _receive_and_move(self) -> bool:
        """Receive and move up to ten records; return whether any was new, because the queue can then have more."""
        received = self._sqs.receive_message(
            QueueUrl=self._options.source,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            VisibilityTimeout=VISIBILITY,
            WaitTimeSeconds=WAIT,
        ).get("Messages", [])
        is_new = False
        for record in received:
            is_new |= record["MessageId"] not in self._held
            stays = record["MessageId"] in self._held or not self._move(record)
            if stays:
                self._held[record["MessageId"]] = record["ReceiptHandle"]
        return is_new

    def _move(self, record: dict[str, Any]) -> bool:
        """Move one record if it is selected and can be moved; return whether it was moved."""
        attributes = record.get("MessageAttributes", {})
        send_id, fault = self._known_by(record["Body"], attributes)
        if self._wanted and send_id not in self._wanted:
            return False
        self._found.add(send_id)
        if fault:
            self._say(send_id, "refused", f"{fault}; MessageId {record['MessageId']}")
        elif send_id in self._moved:
            self._say(send_id, "left", "this run moved another record of this send: it failed again, or had a copy")
        elif self._options.dry_run:
            self._moved.add(send_id)
            self._say(send_id, "would-move", _reason(attributes))
        else:
            self._send_and_delete(record, send_id, attributes)
            return True
        return False

    def _known_by(self, body: str, attributes: dict[str, Any]) -> tuple[str, str | None]:
        """Return a record's send id, and the reason why it cannot be moved, if there is one."""
        told = attributes.get("send_id", {}).get("StringValue", "")
        send_id = told if _SEND_ID.fullmatch(told) else None
        try:
            key = key_of(body, self._options.default_connection)
        except UnmovableError as error:
            return send_id or "-", str(error)
        return send_id or key.send_id, None

    def _send_and_delete(self, record: dict[str, Any], send_id: str, attributes: dict[str, Any]) -> None:
        """Send one record and then delete it, so that a stop in between leaves a copy and loses nothing."""
        self._sqs.send_message(
            QueueUrl=self._options.target, MessageBody=record["Body"], MessageAttributes=_to_send(attributes)
        )
        self._moved.add(send_id)
        try:
            self._sqs.delete_message(QueueUrl=self._options.source, ReceiptHandle=record["ReceiptHandle"])
        except (ClientError, BotoCoreError):
            self._say(send_id, "copied", "it is in both queues; its key prevents a second send")
            raise
        self._say(send_id, "moved", _reason(attributes))

    def _release(self) -> None:
        """Make the records that stay visible again. If that fails, SQS does it after VISIBILITY seconds."""
        held = list(self._held.values())
        try:
            for start in range(0, len(held), 10):
                self._sqs.change_message_visibility_batch(
                    QueueUrl=self._options.source,
                    Entries=[
                        {"Id": str(place), "ReceiptHandle": handle, "VisibilityTimeout": 0}
                        for place, handle in enumerate(held[start : start + 10])
                    ],
                )
        except (ClientError, BotoCoreError):
            print(f"the records that stay are visible again in {VISIBILITY} seconds", file=sys.stderr)

    def _say(self, send_id: str, action: str, reason: str) -> None:
        self._counts[action] += 1
        print(send_id, action, reason, flush=True)


def _reason(attributes: dict[str, Any]) -> str:
    """Return why a record is in the failed queue, if its attributes name the error."""
    for name in ("error", "ERROR_CODE"):
        found = attributes.get(name, {}).get("StringValue", "")
        if _ERROR.fullmatch(found):
            return str(found)
    return "-"


def _to_send(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return received attributes in the form that SendMessage accepts."""
    names = ("DataType", "StringValue", "BinaryValue")
    return {name: {part: value[part] for part in names if part in value} for name, value in attributes.items()}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Move records of a failed queue back to the send queue.",
        epilog=f"Exit codes: {DONE} all selected records were moved; {LEFT} some of them stay in the queue; "
        f"{USAGE} wrong options; {STOPPED} AWS refused a call, or could not be reached.",
    )
    parser.add_argument("--from", dest="source", required=True, metavar="URL", help="the queue to empty")
    parser.add_argument("--to", dest="target", required=True, metavar="URL", help="the send queue")
    parser.add_argument("--send-id", action="append", default=[], help="only this send; may be repeated")
    parser.add_argument("--default-connection", default="default", help="the stack's DefaultConnection")
    parser.add_argument("--dry-run", action="store_true", help="print what would be moved, and move nothing")
    options = parser.parse_args(arguments)
    if options.source == options.target:
        parser.error("--from and --to are the same queue")
    for send_id in options.send_id:
        if not _SEND_ID.fullmatch(send_id):
            parser.error("a --send-id is 64 hexadecimal digits")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    options = _options(arguments)
    try:
        sqs = boto3.client("sqs", region_name=os.environ.get("AWS_REGION"))
        return Redrive(sqs, options).run()
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        print(f"stopped: {error.operation_name} failed ({code}); run it again", file=sys.stderr)
    except BotoCoreError as error:
        print(f"stopped: {str(error).rstrip('.')}; run it again", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; run it again", file=sys.stderr)
        return INTERRUPTED
    return STOPPED


if __name__ == "__main__":
    sys.exit(main())
