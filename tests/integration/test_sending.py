"""On the deployed stack, a message with a key is sent at most once, and its outcome is reported."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from local import stack as local_stack
from tests.faults import AwsFault, AwsProxy, FaultServer, aws
from tests.integration.cloud import Bus, Cloud, eventually

NUMBER = "+15005550006"
LOST = "fault=500_after"


@pytest.fixture
def bus(cloud: Cloud) -> Iterator[Bus]:
    """Return the events of the stack's bus, those of Twilio and those of the connector."""
    with cloud.events() as events:
        yield events


@pytest.fixture(scope="module")
def topic(cloud: Cloud, folder: Path) -> str:
    """Return a topic to which the send queue is subscribed through the parameter SendTopicArn."""
    arn: str = cloud.client("sns").create_topic(Name="sms")["TopicArn"]
    local_stack.redeploy(folder, parameters={"SendTopicArn": arn})
    return arn


def sms(marker: str = "", **more: Any) -> dict[str, Any]:
    """Return an input with a unique text and a unique key, both of which contain the marker, such as a fault's name."""
    key = ";".join(filter(None, [uuid.uuid4().hex, marker]))
    return {"to": NUMBER, "message": key, "idempotency_key": key, **more}


def key(given: dict[str, Any]) -> str:
    """Return an input's key."""
    return str(given["idempotency_key"])


def told(bus: Bus, given: dict[str, Any], name: str) -> dict[str, Any]:
    """Wait for the event that reports an input's outcome, check its detail-type, and return its detail."""
    event = bus.wait_for(
        lambda event: event["source"] == "twilio-connector" and event["detail"]["idempotency_key"] == key(given)
    )
    assert name == event["detail-type"]
    return dict(event["detail"])


def failed(cloud: Cloud, given: dict[str, Any]) -> dict[str, Any]:
    """Wait for an input's message in the failed queue, remove it, and return it."""
    sqs, url = cloud.client("sqs"), cloud.outputs["FailedQueueUrl"]
    found: list[dict[str, Any]] = []

    def look() -> list[dict[str, Any]]:
        received = sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], VisibilityTimeout=1
        )
        for message in received.get("Messages", []):
            if key(given) in message["Body"]:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
                found.append(message)
        return found

    return eventually(look, until=bool)[0]


def resolve(cloud: Cloud) -> None:
    """Invoke resolve now, instead of waiting for the next minute."""
    answer = cloud.client("lambda").invoke(FunctionName=cloud.outputs["ResolveFunctionArn"], Payload=b"{}")
    assert "FunctionError" not in answer, answer["Payload"].read()


def by_api(cloud: Cloud, given: dict[str, Any]) -> None:
    """Send through the Actions API, with the key in its header."""
    body = {name: value for name, value in given.items() if name != "idempotency_key"}
    cloud.api("POST", "/messages", body, headers={"Idempotency-Key": key(given)})


def directly(cloud: Cloud, given: dict[str, Any]) -> None:
    """Send by a direct invocation."""
    cloud.invoke("SendSms", given)


def asynchronously(cloud: Cloud, given: dict[str, Any]) -> None:
    """Send by an asynchronous invocation."""
    cloud.client("lambda").invoke(
        FunctionName=cloud.outputs["SendSmsFunctionArn"], InvocationType="Event", Payload=json.dumps(given)
    )


def by_queue(cloud: Cloud, given: dict[str, Any]) -> None:
    """Send by the send queue, as a caller with the documentation's policy."""
    cloud.client("sqs", as_caller=True).send_message(
        QueueUrl=cloud.outputs["SendQueueUrl"], MessageBody=json.dumps(given)
    )


def by_event(cloud: Cloud, given: dict[str, Any]) -> None:
    """Send by an event on the stack's bus."""
    entry = {
        "EventBusName": cloud.outputs["EventBusName"],
        "Source": "shop",
        "DetailType": "Send SMS Requested",
        "Detail": json.dumps(given),
    }
    cloud.client("events").put_events(Entries=[entry])


def straight_from_a_topic(cloud: Cloud, given: dict[str, Any]) -> None:
    """Send by a notification that SNS delivers directly to the function."""
    notification = {"MessageId": str(uuid.uuid4()), "Message": json.dumps(given)}
    cloud.invoke("SendSms", {"Records": [{"EventSource": "aws:sns", "Sns": notification}]})


WAYS = [by_api, directly, asynchronously, by_queue, by_event, straight_from_a_topic]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("marker", [LOST, "fault=reset_after"])
def test_a_message_whose_answer_is_lost_is_sent_once_and_found(
    cloud: Cloud, bus: Bus, way: Callable[[Cloud, dict[str, Any]], None], marker: str
) -> None:
    """A message whose answer is lost is sent once: a status callback proves it, and the next call finds it."""
    given = sms(marker)
    way(cloud, given)
    stored = eventually(lambda: cloud.stored(given["message"]), until=bool)

    again = eventually(lambda: cloud.invoke("SendSms", given), until=lambda answer: "sid" in answer)

    assert [again["sid"]] == [message["sid"] for message in stored]
    if way not in {by_api, directly, asynchronously}:
        assert again["sid"] == told(bus, given, "Message Sent")["message"]["sid"]
    assert 1 == len(cloud.stored(given["message"]))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_message_that_never_reached_twilio_is_not_sent_again(
    cloud: Cloud, bus: Bus, way: Callable[[Cloud, dict[str, Any]], None]
) -> None:
    """A send that never reached Twilio has an unknown outcome: it is not retried, and is reported to an operator."""
    given = sms("fault=500_before,ok")
    way(cloud, given)
    eventually(
        lambda: cloud.invoke("SendSms", given), until=lambda answer: answer.get("errorType") == "OutcomeUnknownError"
    )
    age(cloud, given, minutes=5)
    resolve_until(cloud, given, "unknown")

    problem = told(bus, given, "Message Outcome Unknown")["error"]
    message = failed(cloud, given)

    assert "OutcomeUnknownError" == problem["title"] == message["MessageAttributes"]["error"]["StringValue"]
    assert given | {"connection": "default"} == json.loads(message["Body"])
    assert [] == cloud.stored(given["message"])


def age(cloud: Cloud, given: dict[str, Any], *, minutes: int) -> None:
    """Make a key's record in the ledger older by a number of minutes."""
    (item,) = records(cloud, given)
    for name in item.keys() & {"claimed_at", "lease_until", "unknown_since"}:
        item[name] = {"N": str(int(item[name]["N"]) - 60 * minutes)}
    cloud.client("dynamodb").put_item(TableName=cloud.resource("Ledger"), Item=item)


def records(cloud: Cloud, given: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the ledger's records of a key."""
    items = cloud.client("dynamodb").scan(TableName=cloud.resource("Ledger"))["Items"]
    return [item for item in items if item.get("idempotency_key", {}).get("S") == key(given)]


def known(cloud: Cloud, given: dict[str, Any], connection: str = "default") -> tuple[int, dict[str, Any]]:
    """Return the status and the body of the Actions API's answer for a key."""
    query = urlencode({"connection": connection, "idempotency_key": key(given)})
    answer = cloud.api("GET", f"/sends?{query}")
    return answer.status_code, answer.json()


def resolve_until(cloud: Cloud, given: dict[str, Any], state: str, connection: str = "default") -> dict[str, Any]:
    """Invoke resolve until a key has a state and was reported, and return the API's answer for it.

    One run may not be enough, because another run may hold the lease.
    """

    def look() -> dict[str, Any]:
        resolve(cloud)
        is_open = any("unsettled" in item for item in records(cloud, given))
        return {} if is_open else known(cloud, given, connection)[1]

    return eventually(look, until=lambda answer: answer.get("state") == state, seconds=90)


@pytest.mark.usefixtures("other_connections")
def test_what_is_told_of_a_key(cloud: Cloud) -> None:
    """The API returns a key's state: sent, not sent, unknown, or resolved by a callback or by the list.

    For a key that another connection used, and for one that was never used, the API answers 404.
    """
    sent, refused, lost, listed = sms(), sms("fault=21610_before"), sms("fault=500_before"), sms(LOST)
    listed["connection"] = "without-token"
    proven = sms("fault=500_after")
    for given in (sent, refused, lost, listed, proven):
        cloud.invoke("SendSms", given)
    (found,) = eventually(lambda: cloud.stored(listed["message"]), until=bool)
    (called_back,) = eventually(lambda: cloud.stored(proven["message"]), until=bool)
    eventually(lambda: known(cloud, proven)[1], until=lambda answer: answer["state"] == "sent")
    told = {name: known(cloud, given) for name, given in {"sent": sent, "refused": refused, "lost": lost}.items()}
    age(cloud, listed, minutes=1)
    by_list = resolve_until(cloud, listed, "sent", "without-token")

    assert (200, "sent", "answer") == (told["sent"][0], told["sent"][1]["state"], told["sent"][1]["evidence"])
    assert ("not_sent", "RecipientOptedOutError") == (told["refused"][1]["state"], told["refused"][1]["error"]["title"])
    assert ("unknown", None) == (told["lost"][1]["state"], told["lost"][1]["evidence"])
    assert ("callback", called_back["sid"]) == (
        known(cloud, proven)[1]["evidence"],
        known(cloud, proven)[1]["message"]["sid"],
    )
    assert ("list", found["sid"]) == (by_list["evidence"], by_list["message"]["sid"])
    missing = [known(cloud, sent, "without-token"), known(cloud, sms())]
    assert [(404, "KeyNotFoundError")] * 2 == [(status, problem["title"]) for status, problem in missing]
    assert [1, 0, 0, 1, 1] == [len(cloud.stored(given["message"])) for given in (sent, refused, lost, listed, proven)]


def test_equal_calls_at_the_same_time_send_once(cloud: Cloud) -> None:
    """Of 20 callers with the same key at the same time, one sends. The others get its result or SendInProgressError."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 for this test alone

    given = sms()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: cloud.invoke("SendSms", given), range(20)))

    (stored,) = cloud.stored(given["message"])
    assert {stored["sid"], "SendInProgressError"} >= {answer.get("sid", answer.get("errorType")) for answer in answers}


def test_another_input_is_a_conflict(cloud: Cloud) -> None:
    """A key with another input is refused with 422, because a key stands for one message."""
    given = sms()
    by_api(cloud, given)
    answer = cloud.api("POST", "/messages", {"to": NUMBER, "message": "x"}, headers={"Idempotency-Key": key(given)})

    assert (422, "IdempotencyConflictError") == (answer.status_code, answer.json()["title"])


def test_without_the_ledger_nothing_is_sent(cloud: Cloud, aws_proxy: AwsProxy) -> None:
    """If the claim cannot be written for any reason, the API answers 503, and nothing is sent."""
    for kind in (aws.THROTTLE, aws.DENY, aws.FAIL, aws.DROP_BEFORE):
        given = sms()
        aws_proxy.add(AwsFault(kind, operation="PutItem", contains=key(given).encode()))
        answer = cloud.api("POST", "/messages", given)

        assert (503, "ServiceUnavailableError", True) == (
            answer.status_code,
            answer.json()["title"],
            answer.json()["retryable"],
        )
        assert [] == cloud.stored(given["message"])


def test_a_claim_whose_answer_is_lost_is_known(cloud: Cloud) -> None:
    """If the answer to a claim's write is lost, the second attempt recognises the claim as its own, and it sends."""
    given = sms("aws=PutItem.1.drop_after")

    assert "sid" in cloud.invoke("SendSms", given)
    assert 1 == len(cloud.stored(given["message"]))


def test_the_last_write_is_not_needed(cloud: Cloud, aws_proxy: AwsProxy) -> None:
    """If the last write to the ledger fails, the caller still gets the message, and a callback completes the ledger."""
    given = sms()
    aws_proxy.add(AwsFault(aws.THROTTLE, operation="TransactWriteItems", times=2))
    sent = cloud.invoke("SendSms", given)
    aws_proxy.clear()

    assert [sent["sid"]] == [message["sid"] for message in cloud.stored(given["message"])]
    cloud.twilio("POST", "/_twilio/simulate/message-status", MessageSid=sent["sid"], Status="sent")
    again = eventually(lambda: cloud.invoke("SendSms", given), until=lambda answer: "sid" in answer)
    assert sent["sid"] == again["sid"]


@pytest.mark.parametrize(
    "marker",
    ["fault=kill_before", "fault=kill_after", "aws=PutItem.1.kill_after", "aws=TransactWriteItems.1.kill_before"],
)
def test_a_function_that_dies_sends_once(cloud: Cloud, marker: str) -> None:
    """If a function is killed during a send, the next call with the key does not send.

    The call gets an error, because the message may have been sent, or the message if a status callback proved it.
    """
    given = sms(marker)
    by_queue(cloud, given)
    eventually(lambda: is_claimed(cloud, given), until=bool)
    answer = cloud.invoke("SendSms", given)
    stored = cloud.stored(given["message"])

    assert len(stored) == int(marker in {"fault=kill_after", "aws=TransactWriteItems.1.kill_before"})
    known = {message["sid"] for message in stored}
    assert answer.get("sid", answer.get("errorType")) in {"SendInProgressError", "OutcomeUnknownError", *known}


def is_claimed(cloud: Cloud, given: dict[str, Any]) -> bool:
    """Return whether the ledger has the claim of a key."""
    return bool(records(cloud, given))


def test_what_twilio_refuses_leaves_the_queue_at_once_and_can_be_sent_again(cloud: Cloud, bus: Bus) -> None:
    """A message that Twilio refuses goes to the failed queue with its key, so that several redrives send it once."""
    given = sms("fault=21610_before,ok")
    by_queue(cloud, given)
    problem = told(bus, given, "Message Failed")["error"]
    message = failed(cloud, given)

    assert ("RecipientOptedOutError", 21610) == (problem["title"], problem["twilio_code"])
    attributes = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    assert ("RecipientOptedOutError", "21610") == (attributes["error"], attributes["twilio_code"])
    bus.events.clear()
    for _ in range(3):  # as SQS moves it, with new message ids
        cloud.client("sqs").send_message(QueueUrl=cloud.outputs["SendQueueUrl"], MessageBody=message["Body"])
    sent = told(bus, given, "Message Sent")
    assert [sent["message"]["sid"]] == [stored["sid"] for stored in cloud.stored(given["message"])]


def test_what_may_go_through_later_is_delivered_again(cloud: Cloud, aws_proxy: AwsProxy) -> None:
    """If the sender's queue at Twilio is full, the record's visibility timeout is changed, and nothing is sent yet."""
    given = sms("fault=21611_before,ok")
    by_queue(cloud, given)
    calls = eventually(
        lambda: [call for call in aws_proxy.calls if call.operation == "ChangeMessageVisibility"], until=bool
    )

    assert [200] == [call.status for call in calls]
    assert [] == cloud.stored(given["message"])


def test_a_topic_is_sent_by_the_queue(cloud: Cloud, bus: Bus, topic: str) -> None:
    """A notification of the topic in SendTopicArn is sent once, and reported with the caller `sns`."""
    given = sms()
    cloud.client("sns").publish(TopicArn=topic, Message=json.dumps(given))

    assert "sns" == told(bus, given, "Message Sent")["caller"]
    assert 1 == len(cloud.stored(given["message"]))


def test_a_failed_asynchronous_invocation_is_in_the_failed_queue(cloud: Cloud) -> None:
    """Lambda's record of a failed asynchronous invocation is in the failed queue, with the input and the error."""
    given = sms("fault=21211_before")
    # The emulator ignores the alias's configuration, but not the function's.
    function = cloud.outputs["SendSmsFunctionArn"].removesuffix(":live")
    cloud.client("lambda").invoke(FunctionName=function, InvocationType="Event", Payload=json.dumps(given))
    record = json.loads(failed(cloud, given)["Body"])

    assert (given, "TwilioRejectedError") == (record["requestPayload"], record["responsePayload"]["errorType"])


@pytest.fixture
def _nothing_runs_by_itself(cloud: Cloud) -> Iterator[None]:
    """Disable all schedules, so that the test does not count their calls."""
    scheduler = cloud.client("scheduler")
    schedules = [scheduler.get_schedule(Name=each["Name"]) for each in scheduler.list_schedules()["Schedules"]]
    names = ("Name", "ScheduleExpression", "FlexibleTimeWindow", "Target")
    kept = [{name: schedule[name] for name in names} | {"State": schedule["State"]} for schedule in schedules]
    for schedule in kept:
        scheduler.update_schedule(**schedule | {"State": "DISABLED"})
    yield
    for schedule in kept:
        scheduler.update_schedule(**schedule)


@pytest.mark.usefixtures("_nothing_runs_by_itself")
def test_what_a_send_costs_at_aws(cloud: Cloud, aws_proxy: AwsProxy) -> None:
    """A send with a key makes two writes to DynamoDB; one without a key calls no AWS service but EventBridge."""
    cloud.invoke("SendSms", sms())  # so that the function has read the secret
    counts: list[list[str]] = []
    for given in (sms("callback=none"), sms("callback=none")):
        if counts:
            given.pop("idempotency_key")
        before = len(aws_proxy.calls)
        assert "sid" in cloud.invoke("SendSms", given)
        counts.append([call.operation for call in aws_proxy.calls[before:] if call.service != "events"])

    assert [["PutItem", "TransactWriteItems"], []] == counts


def test_events_of_our_own_make_nothing_send(cloud: Cloud, bus: Bus) -> None:
    """An event with Twilio's or the connector's own source sends no message, even with the detail-type for a send."""
    given = sms()
    for source in ("twilio", "twilio-connector"):
        entry = {
            "EventBusName": cloud.outputs["EventBusName"],
            "Source": source,
            "DetailType": "Send SMS Requested",
            "Detail": json.dumps(given),
        }
        cloud.client("events").put_events(Entries=[entry])
    other = sms()
    by_event(cloud, other)
    told(bus, other, "Message Sent")

    assert [] == cloud.stored(given["message"])


def test_a_keyed_message_tells_its_key_in_callbacks(cloud: Cloud, bus: Bus) -> None:
    """The event of a status callback has the key of its message."""
    given = sms()
    sid = cloud.invoke("SendSms", given)["sid"]
    cloud.twilio("POST", "/_twilio/simulate/message-status", MessageSid=sid, Status="delivered")
    event = bus.wait_for(
        lambda event: (
            event["source"] == "twilio"
            and (event["detail"]["message"]["sid"], event["detail"]["message"]["status"]) == (sid, "delivered")
        )
    )

    assert key(given) == event["detail"]["idempotency_key"]


def test_records_of_a_batch_go_their_own_ways(cloud: Cloud, bus: Bus, twilio_relay: FaultServer) -> None:
    """In one batch, a sent record, a refused one and one whose answer is lost each get their own outcome."""
    given = [sms(), sms("fault=21211_before"), sms(LOST)]
    entries = [{"Id": str(number), "MessageBody": json.dumps(each)} for number, each in enumerate(given)]
    cloud.client("sqs").send_message_batch(QueueUrl=cloud.outputs["SendQueueUrl"], Entries=entries)

    names = ["Message Sent", "Message Failed", "Message Sent"]
    assert names == [name for each, name in zip(given, names, strict=True) if told(bus, each, name)]
    posts = [request.form["Body"][0] for request in twilio_relay.requests if request.method == "POST"]
    assert [1, 1, 1] == [posts.count(each["message"]) for each in given]
