"""Tests of the redrive: what it moves, what it refuses, and that a stop at any step sends nothing twice."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, get_args

import pytest
import send_sms
from hypothesis import example, given
from hypothesis import strategies as st
from twilio_connector.errors import InvalidInputError
from twilio_connector.invocation import events
from twilio_connector.messaging.idempotency import record_id
from twilio_connector.validation import model

from examples import redrive
from tests.aws_wire import AwsWire
from tests.conftest import ROOT, Context
from tests.faults import AwsFault, AwsProxy, FaultServer, aws

FAILED = os.environ["FAILED_QUEUE_URL"]
SEND = os.environ["SEND_QUEUE_URL"]
ARN = "arn:aws:sqs:us-east-1:123456789012:send"
SMS = {"to": "+15005550006", "message": "Your parcel"}
KEYED = SMS | {"connection": "default", "idempotency_key": "parcel-4711"}
EVENT = {"id": "event-1", "source": "shop", "detail-type": "Send SMS Requested", "detail": SMS}
NOTIFICATION = {
    "Type": "Notification",
    "MessageId": "notification-1",
    "TopicArn": "arn:aws:sns:us-east-1:123456789012:parcels",
    "Message": json.dumps(SMS),
}
FAILURE = {
    "requestContext": {"requestId": "request-1", "functionArn": "arn:aws:lambda:us-east-1:123456789012:function:f"},
    "requestPayload": SMS,
    "responsePayload": {"errorType": "ServiceUnavailableError"},
    "responseContext": {"statusCode": 200, "functionError": "Unhandled"},
}
DEAD_LETTERS = {
    "event": EVENT,
    "notification": NOTIFICATION,
    "failed invocation": FAILURE,
    "event in a notification": NOTIFICATION | {"Message": json.dumps(EVENT)},
    "event to a function": FAILURE | {"requestPayload": EVENT},
    "with a key": EVENT | {"detail": KEYED},
    "of another connection": EVENT | {"detail": SMS | {"connection": "marketing"}},
}
KEYS = {
    "event": "event-1",
    "notification": "notification-1",
    "failed invocation": "request-1",
    "event in a notification": "event-1",
    "event to a function": "event-1",
    "with a key": "parcel-4711",
    "of another connection": "event-1",
}
WITHOUT_KEY = {
    "no key": (SMS | {"connection": "default"}, "it has no idempotency_key"),
    "no connection": (SMS | {"idempotency_key": "parcel-4711"}, "it has no connection"),
    "a key that is a number": (KEYED | {"idempotency_key": 4711}, "its idempotency_key is malformed"),
    "a connection that is none": (KEYED | {"connection": "a b"}, "its connection is malformed"),
    "an event without id": ({**EVENT, "id": None}, "it has no idempotency_key"),
    "a notification without id": ({**NOTIFICATION, "MessageId": ""}, "it has no idempotency_key"),
    "raw_request's": (
        FAILURE | {"requestPayload": {"method": "GET", "url": "/Messages.json"}},
        "it is not an input of send_sms",
    ),
    "resolve's": ({}, "it is not an input of send_sms"),
    "an unknown envelope": ({"Records": [{"eventSource": "aws:kinesis"}]}, "it is not an input of send_sms"),
    "a list": ([KEYED], "it is not an input of send_sms"),
    "a text": ("Hello +15005550006", "it is not JSON"),
    "half a surrogate": ('{"to": "\\ud800"}', "it is not JSON"),
    "no number": ('{"to": NaN}', "it is not JSON"),
    "too many envelopes": (
        FAILURE | {"requestPayload": FAILURE | {"requestPayload": FAILURE | {"requestPayload": EVENT}}},
        "it has too many envelopes around the input",
    ),
}


def text(body: Any) -> str:
    """Return a record's body: a text, or JSON of anything else."""
    return body if isinstance(body, str) else json.dumps(body)


@pytest.fixture
def queues(aws_wire: AwsWire) -> AwsWire:
    """Return AWS with an empty failed queue and an empty send queue."""
    aws_wire.queues |= {FAILED: [], SEND: []}
    return aws_wire


def put(wire: AwsWire, *bodies: Any, **attributes: dict[str, str]) -> None:
    """Put records in the failed queue."""
    for body in bodies:
        name = f"in-failed-queue-{len(wire.queues[FAILED])}"
        record = {"MessageId": name, "Body": text(body), "MessageAttributes": attributes, "Visible": True}
        wire.queues[FAILED].append(record)


def run(*options: str) -> int:
    """Run the command, and return its exit code."""
    return redrive.main(["--from", FAILED, "--to", SEND, *options])


def bodies(wire: AwsWire, url: str) -> list[str]:
    """Return the bodies of the records in a queue."""
    return [record["Body"] for record in wire.queues[url]]


def deliver(wire: AwsWire) -> None:
    """Hand the send queue's records to send_sms, as Lambda does, and delete those that it handled."""
    records = [
        {
            "messageId": record["MessageId"],
            "receiptHandle": "handle",
            "body": record["Body"],
            "attributes": {"ApproximateReceiveCount": "1"},
            "eventSource": "aws:sqs",
            "eventSourceARN": ARN,
        }
        for record in wire.queues[SEND]
    ]
    if records:
        assert {"batchItemFailures": []} == send_sms.handler({"Records": records}, Context())
    wire.queues[SEND].clear()


# Records that are moved


def test_all_attributes_go_along(queues: AwsWire, capsys: pytest.CaptureFixture[str]) -> None:
    """A moved record keeps its body and its attributes of every type, and is deleted from the failed queue."""
    attributes = {
        "error": {"DataType": "String", "StringValue": "TwilioAuthenticationError"},
        "tries": {"DataType": "Number.int", "StringValue": "10"},
        "trace": {"DataType": "Binary", "BinaryValue": "AAEC"},
    }
    put(queues, KEYED, **attributes)

    assert 0 == run()
    ((record,), left) = queues.queues[SEND], queues.queues[FAILED]
    assert (json.dumps(KEYED), attributes, []) == (record["Body"], record["MessageAttributes"], left)
    send_id = record_id("default", "parcel-4711")
    assert (f"{send_id} moved TwilioAuthenticationError\n", "1 moved, 0 not\n") == capsys.readouterr()


def test_more_than_one_batch(queues: AwsWire) -> None:
    """A queue with more records than one batch is emptied."""
    put(queues, *(KEYED | {"idempotency_key": f"parcel-{number}"} for number in range(25)))

    assert 0 == run()
    assert (25, []) == (len(queues.queues[SEND]), queues.queues[FAILED])


@pytest.mark.parametrize("name", DEAD_LETTERS)
def test_dead_letter_keeps_its_id(queues: AwsWire, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """A dead letter of AWS is moved unchanged, and identified by its key, or by its own id if it has no key."""
    put(queues, DEAD_LETTERS[name], ERROR_CODE={"DataType": "String", "StringValue": "NO_PERMISSIONS"})
    connection = "marketing" if name == "of another connection" else "default"

    assert 0 == run()
    assert [json.dumps(DEAD_LETTERS[name])] == bodies(queues, SEND)
    assert f"{record_id(connection, KEYS[name])} moved NO_PERMISSIONS\n" == capsys.readouterr().out


def test_default_connection_of_the_stack(queues: AwsWire, capsys: pytest.CaptureFixture[str]) -> None:
    """A dead letter without a connection is identified by the key that it will have in this stack."""
    put(queues, EVENT)

    assert 0 == run("--default-connection", "main")
    assert f"{record_id('main', 'event-1')} moved -\n" == capsys.readouterr().out


def test_only_the_sends_that_were_named(queues: AwsWire, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--send-id`, the other records stay in the failed queue and are visible again."""
    others = [KEYED | {"idempotency_key": f"parcel-{number}"} for number in range(12)]
    put(queues, *others, KEYED)

    assert 0 == run("--send-id", record_id("default", "parcel-4711"))
    assert ([json.dumps(KEYED)], 12) == (bodies(queues, SEND), len(queues.queues[FAILED]))
    assert all(record["Visible"] for record in queues.queues[FAILED])
    assert 1 == len(capsys.readouterr().out.splitlines())


def test_send_id_that_the_connector_wrote(queues: AwsWire, capsys: pytest.CaptureFixture[str]) -> None:
    """The `send_id` attribute of a record, if there is one, identifies its send."""
    told = "0" * 64
    put(queues, KEYED, send_id={"DataType": "String", "StringValue": told})

    assert 0 == run("--send-id", told)
    assert f"{told} moved -\n" == capsys.readouterr().out


def test_send_that_is_not_there(queues: AwsWire, capsys: pytest.CaptureFixture[str]) -> None:
    """The command fails if the queue has no record of a named send."""
    put(queues, KEYED)

    assert 1 == run("--send-id", "0" * 64)
    assert f"{'0' * 64} missing the queue has no record of this send\n" == capsys.readouterr().out


def test_dry_run(queues: AwsWire, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run prints what would be moved, and leaves all records in the queue and visible."""
    put(queues, KEYED, SMS)

    assert 1 == run("--dry-run")
    assert ([], 2) == (queues.queues[SEND], len(queues.queues[FAILED]))
    assert all(record["Visible"] for record in queues.queues[FAILED])
    assert ["would-move", "refused"] == [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert {"ReceiveMessage", "ChangeMessageVisibilityBatch"} == {name for name, _ in queues.calls}


def test_send_that_fails_again_does_not_go_round(queues: AwsWire, capsys: pytest.CaptureFixture[str]) -> None:
    """A run moves each send once, so that it ends even if a send keeps failing."""
    put(queues, KEYED, KEYED)

    assert 1 == run()
    assert ([json.dumps(KEYED)], [json.dumps(KEYED)]) == (bodies(queues, SEND), bodies(queues, FAILED))
    assert ["moved", "left"] == [line.split()[1] for line in capsys.readouterr().out.splitlines()]


# Records and options that are refused


@pytest.mark.parametrize("name", WITHOUT_KEY)
def test_record_without_key_stays(queues: AwsWire, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """A record without a key stays visible in the failed queue, and the command fails. Other records are moved."""
    body, reason = WITHOUT_KEY[name]
    put(queues, body, KEYED)

    assert 1 == run()
    assert ([json.dumps(KEYED)], [text(body)]) == (bodies(queues, SEND), bodies(queues, FAILED))
    assert queues.queues[FAILED][0]["Visible"]
    told, error = capsys.readouterr()
    assert f"- refused {reason}; MessageId in-failed-queue-0" == told.splitlines()[0]
    assert "1 moved, 1 not\n" == error


ENVELOPES = st.sampled_from([lambda inner: inner]) | st.sampled_from(
    [
        lambda inner: EVENT | {"detail": inner},
        lambda inner: {name: value for name, value in EVENT.items() if name != "id"} | {"detail": inner},
        lambda inner: NOTIFICATION | {"Message": json.dumps(inner)},
        lambda inner: {"Records": [{"EventSource": "aws:sns", "Sns": NOTIFICATION | {"Message": json.dumps(inner)}}]},
        lambda inner: FAILURE | {"requestPayload": inner},
        lambda inner: FAILURE | {"requestPayload": inner, "requestContext": {"functionArn": "f", "requestId": 7}},
        lambda inner: inner | {"detail": {}} if isinstance(inner, dict) else inner,
    ]
)
VALUES = st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(["parcel-4711", "k" * 129, "marketing"])


@given(
    fields=st.fixed_dictionaries({"to": VALUES}, optional={"idempotency_key": VALUES, "connection": VALUES}),
    envelopes=st.lists(ENVELOPES, max_size=5),
)
@example(fields=KEYED, envelopes=[])
@example(fields=SMS, envelopes=[lambda inner: EVENT | {"detail": inner}] * 3)
def test_key_is_the_one_that_send_sms_takes(fields: dict[str, Any], envelopes: list[Any]) -> None:
    """A moved record has the key under which the connector will send it, which is never the new record's id."""
    body: Any = fields
    for envelope in envelopes:
        body = envelope(body)
    try:
        inputs = events.sqs_inputs(events.SqsRecord("new-id", json.dumps(body)))
    except InvalidInputError:
        with pytest.raises(redrive.UnmovableError):
            redrive.key_of(json.dumps(body))
        return
    try:
        key = redrive.key_of(json.dumps(body))
    except redrive.UnmovableError:
        return

    assert "new-id" != key.idempotency_key == inputs.keyed_payload["idempotency_key"]
    assert (inputs.payload.get("connection") or "default") == key.connection
    assert record_id(key.connection, key.idempotency_key) == key.send_id


def test_reads_what_the_connector_reads() -> None:
    """The script does not use the layer and repeats some of its rules. The rules are the same."""
    assert events._ENVELOPE_FIELDS == redrive.ENVELOPE_FIELDS
    for kind, pattern in ((model.IdempotencyKey, redrive._KEY), (model.ConnectionName, redrive._CONNECTION)):
        assert rf"\A{pattern.pattern}\Z" == get_args(kind)[1].pattern


@pytest.mark.parametrize("options", [["--send-id", "parcel-4711"], ["--to", FAILED], ["--all"]])
def test_wrong_options(queues: AwsWire, options: list[str]) -> None:
    """A key in place of its hash, one queue for both, and an unknown option are refused before a call to AWS."""
    with pytest.raises(SystemExit) as raised:
        run(*options)

    assert (2, []) == (raised.value.code, queues.calls)


# Output


def test_output_has_no_key_number_or_text(queues: AwsWire, capsys: pytest.CaptureFixture[str]) -> None:
    """The output has no key, number or text of a record, even from an attribute that should be an error's name."""
    markers = ["parcel-4711", "5005550006", "Your parcel", "event-1", "notification-1", "request-1"]
    put(queues, *DEAD_LETTERS.values(), *(body for body, _ in WITHOUT_KEY.values()), KEYED)
    for record, marker in zip(queues.queues[FAILED], markers, strict=False):
        value = {"DataType": "String", "StringValue": marker}
        record["MessageAttributes"] = {"error": value, "detail": value, "ERROR_CODE": value, "send_id": value}
    for options in (["--dry-run"], []):
        run(*options)
    queues.failures["ReceiveMessage"] = [(400, "AccessDenied")]
    run()

    told = "".join(capsys.readouterr())
    assert all(line.split()[0] == "-" or re.match(r"[0-9a-f]{64} ", line) for line in told.splitlines()[:20])
    assert [] == [marker for marker in markers if marker in told]


# When AWS fails


@pytest.mark.parametrize(
    ("operation", "sent", "kept"),
    [("ReceiveMessage", 0, 1), ("SendMessage", 0, 1), ("DeleteMessage", 1, 1)],
)
def test_aws_refuses(queues: AwsWire, capsys: pytest.CaptureFixture[str], operation: str, sent: int, kept: int) -> None:
    """If AWS refuses a call, the exit code and the last line say that the run stopped. No record is lost."""
    put(queues, KEYED)
    queues.failures[operation] = [(400, "AccessDenied")]

    assert 3 == run()
    assert (sent, kept) == (len(queues.queues[SEND]), len(queues.queues[FAILED]))
    told, error = capsys.readouterr()
    assert f"stopped: {operation} failed (AccessDenied); run it again\n" == error
    copied = f"{record_id('default', 'parcel-4711')} copied it is in both queues; its key prevents a second send\n"
    assert (copied if sent else "") == told


def test_aws_is_not_reached(
    queues: AwsWire, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If AWS is unreachable, the last line names the endpoint."""
    put(queues, KEYED)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    assert 3 == run()
    stopped = 'stopped: Could not connect to the endpoint URL: "http://127.0.0.1:1/"; run it again\n'
    assert ("", stopped) == capsys.readouterr()


def test_records_that_cannot_be_shown_again(queues: AwsWire, capsys: pytest.CaptureFixture[str]) -> None:
    """If records cannot be made visible, the run says when SQS makes them visible."""
    put(queues, SMS)
    queues.failures["ChangeMessageVisibilityBatch"] = [(400, "AccessDenied")]

    assert 1 == run()
    assert "the records that stay are visible again in 300 seconds" in capsys.readouterr().err


# A stop between any two steps

STEPS = ["ReceiveMessage", "SendMessage", "DeleteMessage", "SendMessage", "DeleteMessage", "ReceiveMessage"]


@pytest.fixture
def proxy(queues: AwsWire) -> Iterator[AwsProxy]:
    """Yield a proxy between the command and AWS."""
    with AwsProxy(queues.url) as proxy:
        yield proxy


def process(proxy: AwsProxy) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as an operator does."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "examples" / "redrive.py"), "--from", FAILED, "--to", SEND]
    environment = os.environ | {"AWS_ENDPOINT_URL": proxy.url}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("step", range(len(STEPS) + 1), ids=lambda step: f"after-{step}")
def test_stop_between_two_steps(
    queues: AwsWire, proxy: AwsProxy, twilio: FaultServer, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    """A run that is killed after any of its calls and then repeated loses no message and sends none twice.

    Between the two runs, the records that the first run moved may be sent already or still wait. Both are tested.
    """
    texts = ["first", "second"]
    put(queues, *(KEYED | {"idempotency_key": each, "message": each} for each in texts))
    if step < len(STEPS):
        proxy.add(AwsFault(aws.KILL_AFTER, service="sqs", skip=step, times=1))

    killed = process(proxy)
    done = proxy.calls
    if step % 2:
        deliver(queues)
    queues.show(FAILED)
    again = run()
    deliver(queues)

    assert STEPS[: step + 1] == [call.operation for call in done]
    assert (-9 if step < len(STEPS) else 0, 0) == (killed.returncode, again)
    assert ([], []) == (queues.queues[FAILED], queues.queues[SEND])
    sent = [request.form["Body"][0] for request in twilio.requests if request.method == "POST"]
    assert texts == sorted(sent)
    assert {item["state"]["S"] for item in queues.items.values()} == {"sent"}
    assert capsys.readouterr().err.endswith(" not\n")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let child processes react to Ctrl-C, which they ignore if a shell started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(child: subprocess.Popen[str]) -> tuple[str, str]:
    """Press Ctrl-C, again if nothing happens, and return the process's output and errors.

    A signal that arrives just before Python waits for a server has no effect until the next signal.
    """
    for _ in range(3):
        child.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return child.communicate(timeout=10)
    child.kill()
    pytest.fail(f"Ctrl-C did not end it: {child.communicate()}")


@pytest.mark.usefixtures("interruptible")
def test_interrupted(queues: AwsWire, proxy: AwsProxy) -> None:
    """Ctrl-C ends the run with a message, and makes the record that the run refused visible again."""
    put(queues, SMS, KEYED)
    proxy.add(AwsFault(aws.HANG_BEFORE, operation="SendMessage"))
    command = [sys.executable, str(ROOT / "examples" / "redrive.py"), "--from", FAILED, "--to", SEND]
    environment = os.environ | {"AWS_ENDPOINT_URL": proxy.url}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        while not proxy.count("SendMessage"):
            assert child.poll() is None
        told, error = interrupted(child)

    assert (130, "stopped; run it again") == (child.returncode, error.splitlines()[0])
    assert told.startswith("- refused ")
    assert [True, False] == [record["Visible"] for record in queues.queues[FAILED]]
