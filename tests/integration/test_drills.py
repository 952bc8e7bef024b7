"""Drills: in each of six outages on the stack, the right alarms fire, and the page of one of them has the next step.

Each outage has a table of the alarms that must fire and those that may follow, with the latest minute of each. No other
alarm may fire. The metrics are the functions' own, at the minutes at which SQS would redeliver a record. The metrics of
queues come from a model of the records that the test saw. Then the page's first command is run as it is written there.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from botocore.exceptions import ClientError
from twilio_connector.messaging.idempotency import record_id

from local.rights import transformed
from tests.alarms import MINUTE, Waiting, alarms, fires
from tests.cloudformation import of_type
from tests.faults import AwsFault, AwsProxy, FaultServer, aws
from tests.integration.cloud import Cloud, eventually
from tests.integration.test_alarms import BUFFER_VISIBILITY, TO, Drill, attributes, off, record
from tests.integration.test_readme import Reader
from tests.integration.test_redrive import redrive, send_id
from tests.integration.test_sending import age, resolve_until
from tests.mutants import send
from tests.readme import BLOCKS, section

DELIVERIES = (0, 10, 30, 70, 150, 310, 630, 1270, 2170, 3070, 3970)
"""Seconds at which SQS delivers a failing record: the delay is 10 s at first, and doubles up to 15 minutes."""
UNTIL = 75 * MINUTE


class Outage(NamedTuple):
    """What the person on call sees of an outage.

    `must` and `may` are alarms, each with its latest minute. Those of `may` are about calls that not every stack has:
    the API's, polling, reports of failures. `log` has fields of a line that the first command of `page` prints, and
    `prints` has other words of its output. `step` is part of the page's section "What to do".
    """

    must: dict[str, int]
    may: dict[str, int]
    page: str
    log: dict[str, Any]
    prints: tuple[str, ...]
    step: str


@pytest.fixture
def drill(cloud: Cloud) -> Drill:
    """Start a drill."""
    return Drill(cloud)


type Sit = Callable[[], Reader]


@pytest.fixture
def sit(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Sit:
    """Return a function that gives the person on call a new shell."""
    return lambda: Reader(folder / "env", tmp_path_factory.mktemp("on-call"))


def fired(drill: Drill, stack_name: str) -> dict[str, int]:
    """Return the first minute of each alarm that fires; a composite alarm fires with the first of its alarms."""
    template = transformed()
    found = {}
    for name, alarm in alarms(template, stack_name).items():
        minutes = (minute for minute in range(UNTIL // MINUTE) if fires(alarm, drill.points, minute * MINUTE))
        if (minute := next(minutes, None)) is not None:
            found[name] = minute
    for name, alarm in of_type(template, "AWS::CloudWatch::CompositeAlarm").items():
        members = re.findall(r"\$\{(\w+)\}", json.dumps(alarm["AlarmRule"]))
        if of_members := [found[member] for member in members if member in found]:
            found[name] = min(of_members)
    return {name.removesuffix("Alarm"): minute for name, minute in found.items()}


def check(drill: Drill, cloud: Cloud, sit: Sit, outage: Outage) -> None:
    """Compare the alarms with the outage's table, and run the first command of its page."""
    found = fired(drill, cloud.info["stack_name"])
    wanted = outage.may | outage.must

    assert [] == sorted(outage.must.keys() - found.keys()), found
    assert [] == sorted(found.keys() - wanted.keys()), found
    assert [] == [(name, minute) for name, minute in found.items() if minute > wanted[name]]
    first = next(block for block in BLOCKS if block.page == f"docs/operations/{outage.page}.md")
    printed = eventually(
        lambda: sit().printed(first),
        until=lambda text: all(word in text for word in outage.prints),
    )
    if outage.log:
        lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
        assert [line for line in lines if outage.log.items() <= line.items()], printed
    assert outage.step in section(f"operations/{outage.page}", "What to do")


def deliver(cloud: Cloud, drill: Drill, sms: dict[str, Any], deliveries: int) -> None:
    """Deliver one message as often as SQS would. All deliveries but the last fail, and their metrics are recorded."""
    for number, second in enumerate(DELIVERIES[: deliveries - 1], 1):
        event = record(cloud.outputs["SendQueueArn"], sms, second / MINUTE, number)
        assert drill.invoke("SendSms", event, second / MINUTE)["batchItemFailures"], number
    last = record(cloud.outputs["SendQueueArn"], sms, DELIVERIES[deliveries - 1] / MINUTE, deliveries)
    assert {"batchItemFailures": []} == invoke(cloud, "SendSms", last)


def invoke(cloud: Cloud, function: str, event: Any) -> Any:
    """Invoke a function as Lambda does, and return its answer."""
    answer = cloud.client("lambda").invoke(
        FunctionName=cloud.outputs[f"{function}FunctionArn"], Payload=json.dumps(event)
    )
    return json.loads(answer["Payload"].read())


@contextmanager
def one_more_in_failed_queue(cloud: Cloud, drill: Drill, second: float) -> Iterator[None]:
    """Check that the failed queue gets one more record, and count it in the metrics from `second` on."""
    before = cloud.in_queue("FailedQueue")
    yield
    eventually(lambda: cloud.in_queue("FailedQueue"), until=lambda count: count == before + 1)
    drill.points.queue("<FailedQueue.QueueName>", [Waiting(second)], UNTIL)


def new_sms(**fields: str) -> dict[str, str]:
    """Return an input of send_sms with a key of its own."""
    return {"to": TO, "message": uuid.uuid4().hex, "idempotency_key": uuid.uuid4().hex} | fields


def store(cloud: Cloud, secret: str) -> str:
    """Store a secret as a connection, and return the connection's name."""
    name = f"drill-{uuid.uuid4().hex}"
    cloud.client("secretsmanager").create_secret(Name=f"twilio/{name}", SecretString=secret)
    return name


def default_secret(cloud: Cloud) -> dict[str, str]:
    """Return the default connection's secret."""
    value = cloud.client("secretsmanager").get_secret_value(SecretId="twilio/default")["SecretString"]
    found: dict[str, str] = json.loads(value)
    return found


def test_wrong_token(cloud: Cloud, drill: Drill, sit: Sit) -> None:
    """If Twilio refuses credentials until the queue gives up, the alarms fire, and the log names the connection."""
    right = default_secret(cloud)
    name = store(cloud, json.dumps(right | {"api_key_secret": uuid.uuid4().hex}))
    sms = new_sms(connection=name)
    with one_more_in_failed_queue(cloud, drill, DELIVERIES[9]):
        deliver(cloud, drill, sms, 10)

    outage = Outage(
        must={"CredentialsRefused": 1, "SendingBroken": 1, "SendQueueAge": 22, "FailedQueue": 53},
        may={"ActionsApi": 75},
        page="credentials-refused",
        log={"error": "TwilioAuthenticationError", "level": "ERROR", "connection": name, "retryable": False},
        prints=(name,),
        step="aws secretsmanager put-secret-value",
    )
    check(drill, cloud, sit, outage)


def test_secret_deleted(cloud: Cloud, aws_proxy: AwsProxy, drill: Drill, sit: Sit) -> None:
    """If the default connection's secret is deleted, the page restores it, and a redrive then sends the message once.

    A container that read the secret keeps it for minutes, and one that did not find it waits before it reads again. The
    test kills both kinds of containers instead.
    """
    manager, sms = cloud.client("secretsmanager"), new_sms()
    manager.delete_secret(SecretId="twilio/default", RecoveryWindowInDays=7)
    try:
        with aws_proxy.failing(AwsFault(aws.KILL_BEFORE, operation="PutItem")):  # a kill before the send
            eventually(lambda: answers(cloud, sms), until=bool)
        with one_more_in_failed_queue(cloud, drill, DELIVERIES[9]):
            deliver(cloud, drill, sms, 10)
        outage = Outage(
            must={"DefaultConnectionMissing": 1, "SendingBroken": 1, "SendQueueAge": 22, "FailedQueue": 53},
            may={"PollMessagesErrors": 75, "ReceivingBroken": 75},
            page="default-connection-missing",
            log={"error": "ConnectionNotFoundError", "level": "ERROR", "connection": "default"},
            prints=("twilio/default",),
            step="aws secretsmanager restore-secret --secret-id twilio/default",
        )
        check(drill, cloud, sit, outage)
        assert [] == cloud.stored(sms["message"])

        (*_, repair, _) = [block for block in BLOCKS if block.page == "docs/operations/default-connection-missing.md"]
        assert outage.step in repair.text
        assert "twilio/default" in sit().printed(repair)
    finally:
        with suppress(ClientError):  # it was restored before
            manager.restore_secret(SecretId="twilio/default")
        with aws_proxy.failing(AwsFault(aws.KILL_BEFORE, operation="GetItem", times=1)):
            eventually(lambda: answers(cloud, sms), until=lambda answered: not answered)

    assert f"{send_id(sms)} moved ConnectionNotFoundError\n" == redrive(cloud, "--send-id", send_id(sms)).stdout
    eventually(lambda: cloud.stored(sms["message"]), until=bool)
    assert 1 == len(cloud.stored(sms["message"]))


def answers(cloud: Cloud, sms: dict[str, str]) -> bool:
    """Invoke send_sms, and return whether it answered before its container was killed."""
    return "batchItemFailures" in invoke(cloud, "SendSms", record(cloud.outputs["SendQueueArn"], sms, 0, 1))


def test_secret_broken(cloud: Cloud, drill: Drill, sit: Sit) -> None:
    """If a secret lacks a field, the alarms fire, and the page's command prints the connection and the field."""
    broken = {name: value for name, value in default_secret(cloud).items() if name != "api_key_secret"}
    name = store(cloud, json.dumps(broken))
    with one_more_in_failed_queue(cloud, drill, DELIVERIES[9]):
        deliver(cloud, drill, new_sms(connection=name), 10)

    outage = Outage(
        must={"SecretsMalformed": 1, "SendingBroken": 1, "SendQueueAge": 22, "FailedQueue": 53},
        may={"ActionsApi": 75},
        page="secrets-malformed",
        log={"error": "ConnectionInvalidError", "level": "ERROR", "connection": name},
        prints=(name, "api_key_secret"),
        step="aws secretsmanager put-secret-value",
    )
    check(drill, cloud, sit, outage)


def test_twilio_stopped(cloud: Cloud, twilio_relay: FaultServer, drill: Drill, sit: Sit) -> None:
    """If Twilio cannot be reached until the queue gives up, the alarms fire, and the log has the error."""
    sms = new_sms()
    with twilio_relay.refusing(), one_more_in_failed_queue(cloud, drill, DELIVERIES[10]):
        deliver(cloud, drill, sms, 11)

    outage = Outage(
        must={"TwilioUnavailable": 5, "SendingBroken": 5, "SendQueueAge": 22, "FailedQueue": 68},
        may={"ActionsApi": 75, "OutcomeUnknown": 75, "PollMessagesErrors": 75, "ReceivingBroken": 75},
        page="twilio-unavailable",
        log={"error": "TwilioUnavailableError", "level": "ERROR", "connection": "default", "retryable": True},
        prints=("TwilioUnavailableError",),
        step="[Twilio is down](twilio-outage.md)",
    )
    check(drill, cloud, sit, outage)


def test_bus_denied(cloud: Cloud, aws_proxy: AwsProxy, drill: Drill, sit: Sit) -> None:
    """If the functions may not put events, webhooks wait and a message is sent once; both are published later."""
    sms, said = new_sms(), uuid.uuid4().hex
    with cloud.events() as bus:
        with aws_proxy.failing(AwsFault(aws.DENY, operation="PutEvents")):
            assert 200 == send(cloud.inbound(said).request(cloud.target()), cloud.target()).status
            eventually(lambda: attributes(cloud, "BufferQueue"), until=lambda seen: seen == (0, 1))
            event = {"detail-type": "Webhook Received", "detail": {"deduplication_id": said}, "uncertain": False}
            deliveries = range(0, 20 * MINUTE + 1, BUFFER_VISIBILITY)
            for number, second in enumerate(deliveries, 1):
                delivery = record(cloud.outputs["BufferQueueArn"], event, second / MINUTE, number)
                assert drill.invoke("Webhook", delivery, second / MINUTE)["batchItemFailures"]
            received = tuple(map(float, range(0, UNTIL + 1, BUFFER_VISIBILITY)))
            waiting = Waiting(0, received, BUFFER_VISIBILITY)
            drill.points.queue("<BufferQueue.QueueName>", [waiting], UNTIL)
            answer = drill.invoke("SendSms", record(cloud.outputs["SendQueueArn"], sms, 0, 1))
            assert {"batchItemFailures": []} == answer

            outage = Outage(
                must={"BufferQueueAge": 16, "ReceivingBroken": 16},
                may={"SendQueueAge": 75, "SendingBroken": 75},
                page="bus-outage",
                log={},
                prints=("0",),
                step="Take the change of the role or the bus back",
            )
            check(drill, cloud, sit, outage)
            (_, second_look, *_) = [block for block in BLOCKS if block.page == "docs/operations/bus-outage.md"]
            assert "AccessDenied" in sit().printed(second_look)
        invoke(cloud, "Resolve", {})
        told = cloud.published(bus, said, sms["message"])

    assert [1, 1] == [len(events) for events in told]
    assert 1 == len(cloud.stored(sms["message"]))


def test_function_throttled(cloud: Cloud, drill: Drill, sit: Sit) -> None:
    """If send_sms has no concurrency, callers' sends fail and the queue waits, until the page's command repairs it."""
    functions, name = cloud.client("lambda"), cloud.resource("SendSmsFunction")
    functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    try:
        with pytest.raises(ClientError, match="TooManyRequests"):
            functions.invoke(FunctionName=name, Payload=b"{}")  # the emulator does not throttle the alias
        with off(cloud):  # nor the send queue's mapping
            cloud.client("sqs").send_message(QueueUrl=cloud.outputs["SendQueueUrl"], MessageBody=json.dumps(new_sms()))
            eventually(lambda: attributes(cloud, "SendQueue"), until=lambda seen: seen[0] > 0)
        drill.of_lambda("SendSms", "Throttles")
        drill.points.queue("<SendQueue.QueueName>", [Waiting(0)], UNTIL)

        outage = Outage(
            must={"SendSmsThrottles": 1, "SendingBroken": 1, "SendQueueUnread": 16},
            may={"ActionsApi": 75},
            page="send-sms-throttles",
            log={},
            prints=('"ReservedConcurrentExecutions": 0',),
            step="aws lambda delete-function-concurrency",
        )
        check(drill, cloud, sit, outage)
        (_, repair, *_) = [block for block in BLOCKS if block.page == "docs/operations/send-sms-throttles.md"]
        sit().printed(repair)
        answer = functions.invoke(FunctionName=name, Payload=json.dumps(new_sms(dry_run="")))
        assert "InvalidInputError" in answer["Payload"].read().decode()
    finally:
        functions.delete_function_concurrency(FunctionName=name)


class Story(NamedTuple):
    """The outcome of an order's message, and what the page finds out about it from the order's key alone.

    `fault` is Twilio's, and `way` is how the message is sent. `known` is part of the answer for its key. `logged` has
    words of its log lines in order. `waits` is what a redrive would do, and `row` begins a row of the page's table.
    """

    row: str
    known: dict[str, Any]
    logged: list[str]
    waits: str = "missing"
    fault: str = ""
    way: str = "direct"
    connection: str = "default"


SENT = {"state": "sent", "evidence": "answer"}
STORIES = {
    "sent": Story("`sent`, evidence `answer`", SENT, ["sent"]),
    "not sent": Story(
        "`not_sent`, and `missing`", {"state": "not_sent"}, ["RecipientOptedOutError"], fault="fault=21610_before"
    ),
    "failed": Story(
        "`not_sent`, and `would-move`",
        {"state": "not_sent"},
        ["RecipientOptedOutError"],
        waits="would-move",
        fault="fault=21610_before",
        way="queue",
    ),
    "unknown": Story("`unknown`", {"state": "unknown"}, ["OutcomeUnknownError"], fault="fault=500_before"),
    "resolved": Story(
        "`sent`, evidence `callback` or `list`",
        {"state": "sent", "evidence": "list"},
        ["OutcomeUnknownError", "settled"],
        fault="fault=500_after",
        connection="without-token",
    ),
    "redriven": Story(
        "`sent`, evidence `answer`",
        SENT,
        ["RecipientOptedOutError", "sent"],
        fault="fault=21610_before,ok",
        way="queue",
    ),
}


def replaced(text: str, words: dict[str, str]) -> str:
    """Return a text in which each key of `words` is replaced with its value."""
    for old, new in words.items():
        text = text.replace(old, new)
    return text


@pytest.mark.usefixtures("other_connections")
@pytest.mark.parametrize("name", STORIES)
def test_no_sms_came(cloud: Cloud, sit: Sit, name: str) -> None:
    """From an order's key, the page's commands show the send's state, its log, and whether a record waits."""
    story = STORIES[name]
    sms = new_sms(connection=story.connection)
    known_by = record_id(story.connection, sms["idempotency_key"])
    sms["message"] += f" {story.fault}"
    if story.way == "queue":
        queue = cloud.outputs["SendQueueUrl"]
        cloud.client("sqs").send_message(QueueUrl=queue, MessageBody=json.dumps(sms))
        done = eventually(
            lambda: redrive(cloud, "--dry-run", "--send-id", known_by), until=lambda run: run.returncode == 0
        )
        assert f"{known_by} would-move RecipientOptedOutError\n" == done.stdout
    else:
        cloud.invoke("SendSms", sms)
    if name == "redriven":
        assert 0 == redrive(cloud, "--send-id", known_by).returncode
        eventually(lambda: cloud.stored(sms["message"]), until=bool)
    if name == "resolved":
        eventually(lambda: cloud.stored(sms["message"]), until=bool)
        age(cloud, sms, minutes=1)
        resolve_until(cloud, sms, "sent", story.connection)

    def look() -> tuple[dict[str, Any], str]:
        reader = sit()
        ours = {
            "Key=parcel-4711": f"Key={sms['idempotency_key']}",
            "Connection=default": f"Connection={story.connection}",
        }
        blocks = [block for block in BLOCKS if block.page == "docs/operations/no-sms-came.md"]
        one, two = (reader._type(block._replace(text=replaced(block.text, ours))) for block in blocks)
        assert (0, 0) == (one.returncode, two.returncode), two.stderr
        return json.loads(one.stdout), two.stdout

    def is_told(seen: tuple[dict[str, Any], str]) -> bool:
        return story.known.items() <= seen[0].items() and all(word in seen[1] for word in story.logged)

    key, printed = eventually(look, until=is_told, seconds=60)
    lines = [json.loads(line) for line in printed.splitlines() if known_by in line and line.startswith("{")]
    said = [line.get("error", line["message"]) for line in lines if line.get("function") != "get_sms"]

    assert story.logged == [word for word in said if word in {*story.logged, "sent", "OutcomeUnknownError"}]
    assert f"{known_by} {story.waits} " in printed
    assert sms["idempotency_key"] not in printed
    if key["state"] == "sent":
        assert key["message"]["sid"] == json.loads(printed.splitlines()[0])["sid"]
    assert f"| {story.row} |" in section("operations/no-sms-came", "What to do")
