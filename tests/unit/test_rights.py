"""Each function uses exactly the rights that its policies give it.

The rights that a function uses are taken from its calls to AWS, in cases that make it do everything that it can.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import get_sms
import list_sms
import poll_messages
import pytest
import raw_request
import resolve
import rotate_connection
import send_sms
import webhook
from twilio_connector.api import client
from twilio_connector.api.connections import Connections
from twilio_connector.errors import OutcomeUnknownError
from twilio_connector.webhooks import replies

from tests.aws_wire import FIRST, AwsWire, RotatedSecret
from tests.builders import begin_send, record
from tests.conftest import Context, LoadEvent
from tests.faults import Credentials, FaultServer, Key, faults
from tests.faults.twilio import NEWEST
from tests.mutants import GENUINE, Target, Webhook, event_2
from tests.unit.conftest import ACCOUNT_SID, API_KEY, AUTH_TOKEN
from tests.unit.test_bundle import FUNCTIONS, RESOURCES, listed, resource, unconditional

BY_AWS = {
    "sqs:ReceiveMessage",
    "sqs:DeleteMessage",
    "sqs:GetQueueAttributes",
    "kms:Decrypt",
    "kms:GenerateDataKey",
}
"""The actions that Lambda and Secrets Manager take with a function's role.

https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html#events-sqs-permissions
https://docs.aws.amazon.com/secretsmanager/latest/userguide/security-encryption.html#security-encryption-authz
"""
TABLES = {"ledger": "Ledger", "deliveries": "Deliveries"}
QUEUES = {
    "send": "SendQueue",
    "failed": "FailedQueue",
    "buffer": "BufferQueue",
    "buffer-dead-letters": "BufferDeadLetterQueue",
}
SMS = {"to": "+15005550006", "message": "Hello"}
KEYED = SMS | {"idempotency_key": "key"}
TARGET = Target("https://hook.example", ACCOUNT_SID, AUTH_TOKEN)
BY_NAME = {each.name: each for each in GENUINE}
REPLY_FUNCTION = "arn:aws:lambda:us-east-1:123456789012:function:replies:live"
MUCH = "x" * 300_000


class World(NamedTuple):
    """AWS, Twilio and the fixtures that a case uses."""

    aws: AwsWire
    twilio: FaultServer
    event: LoadEvent
    patch: pytest.MonkeyPatch


@pytest.fixture
def world(aws_wire: AwsWire, twilio: FaultServer, event: LoadEvent, monkeypatch: pytest.MonkeyPatch) -> World:
    """Return AWS and Twilio, without what earlier tests left in memory."""
    monkeypatch.setattr(replies, "_settings", {})
    return World(aws_wire, twilio, event, monkeypatch)


def send(world: World) -> None:
    """Send with a key, by event and by queue; include a send that fails and one that is postponed."""
    send_sms.handler(KEYED, Context())
    send_sms.handler(world.event("send_sms_eventbridge"), Context())
    send_sms.handler({"Records": [record(SMS, "1")]}, Context())
    send_sms.handler({"Records": [record({"to": "nobody"}, "2")]}, Context())
    world.twilio.script(*[faults.status(429)] * 9)
    send_sms.handler({"Records": [record(SMS, "3")]}, Context())


def start_anew(world: World) -> None:
    """Clear the calls and the memory, so that the next call is the first in its container."""
    world.aws.calls.clear()
    world.patch.setattr(client, "CONNECTIONS", Connections())


def get(world: World) -> None:
    """Look up a message and a key."""
    send_sms.handler(KEYED, Context())
    start_anew(world)
    get_sms.handler({"idempotency_key": "key"}, Context())
    get_sms.handler({"message_sid": f"SM{'1' * 32}"}, Context())


def resolve_all(world: World) -> None:
    """Search for a message that Twilio's list does not have, and report it."""
    account = {name: value for name, value in API_KEY.items() if name != "auth_token"}
    world.aws.secrets["twilio/default"] = json.dumps(account)  # no callback can come
    world.twilio.script(faults.status(500), faults.OK)
    with pytest.raises(OutcomeUnknownError):
        send_sms.handler(KEYED, Context())
    world.aws.age(16 * 60)
    start_anew(world)
    resolve.handler({}, Context(120))


def receive(world: World) -> None:
    """Publish, confirm a send, store events that are too large or that EventBridge does not take, and reply."""
    world.aws.parameters["reply"] = f"{REPLY_FUNCTION}\n"
    proven = begin_send()
    start_anew(world)
    world.aws.refused = [1, 1]
    large = BY_NAME["plain"].fields | {
        "MessageSid": f"SM{'2' * 32}",
        "SmsSid": f"SM{'2' * 32}",
        "Body": "\x01" * 40_000,
    }
    for each in (
        BY_NAME["plain"],
        Webhook(name="callback", fields=BY_NAME["status"].fields, query=f"send={proven.id}"),
        Webhook(name="large", fields=large),
    ):
        webhook.handler(event_2(each.request(TARGET)), Context())


def poll(world: World) -> None:
    """Publish messages, and store one that EventBridge does not take and one that is too large."""
    history = world.twilio.history(5)
    history.add(NEWEST, body=MUCH)
    world.patch.setattr(time, "time", lambda: NEWEST.timestamp() + 60)
    world.aws.refused = [1, 1]
    poll_messages.handler({}, Context(300))


def rotate(world: World) -> None:
    """Rotate an API key."""
    secret = RotatedSecret("twilio/default", json.dumps(API_KEY))
    world.aws.rotated = {secret.arn: secret}
    held = {API_KEY["api_key_sid"]: Key(API_KEY["api_key_secret"])}
    world.twilio.check(Credentials(ACCOUNT_SID, AUTH_TOKEN, held))
    version = f"2nd-version-{'0' * 32}"
    secret.rotate(version)
    for step in ("createSecret", "setSecret", "testSecret", "finishSecret"):
        event = {"Step": step, "SecretId": secret.arn, "ClientRequestToken": version}
        rotate_connection.handler(event, Context(120))
    assert FIRST == secret.staged("AWSPREVIOUS")


CASES: dict[str, Callable[[World], object]] = {
    "get_sms": get,
    "list_sms": lambda _: list_sms.handler({}, Context()),
    "poll_messages": poll,
    "raw_request": lambda _: raw_request.handler({"url": f"/Accounts/{ACCOUNT_SID}.json", "method": "GET"}, Context()),
    "resolve": resolve_all,
    "rotate_connection": rotate,
    "send_sms": send,
    "webhook": receive,
}


def used(wire: AwsWire) -> Iterator[str]:
    """Yield the rights that calls needed: an action and its resource."""
    for operation, body in wire.calls:
        match operation:
            case "PutEvents":
                yield from (f"events:PutEvents {entry['Source']}" for entry in body["Entries"])
            case "SendMessage" | "ChangeMessageVisibility":
                yield f"sqs:{operation} {QUEUES[body['QueueUrl'].rpartition('/')[2]]}"
            case "GetParameter":
                yield "ssm:GetParameter Reply"
            case "Invoke":
                yield "lambda:InvokeFunction ReplyFunctionArn"
            case _ if "SecretId" in body:
                yield f"secretsmanager:{operation} connections"
            case _:
                yield from (f"dynamodb:{action} {place}" for action, place in in_tables(operation, body))


def in_tables(operation: str, body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the actions and tables that a call of DynamoDB needs. A transaction needs those of each of its writes."""
    match operation:
        case "BatchGetItem":
            yield from ((operation, TABLES[table]) for table in body["RequestItems"])
        case "TransactWriteItems":
            yield from (("PutItem", TABLES[write["Put"]["TableName"]]) for write in body["TransactItems"])
        case _:
            index = f"/{body['IndexName']}" if "IndexName" in body else ""
            yield operation, TABLES[body["TableName"]] + index


def given(name: str) -> Iterator[str]:
    """Yield the rights that a function's policies give, except those that AWS itself uses."""
    shared = RESOURCES["ConnectionsPolicy"]["Properties"]["PolicyDocument"]
    own = [policy for policy in RESOURCES[resource(name)]["Properties"]["Policies"] if "Statement" in policy]
    for document in (shared, *own):
        for statement, _ in map(unconditional, document["Statement"]):
            if statement["Effect"] == "Deny":
                continue
            for action in set(listed(statement["Action"])) - BY_AWS:
                for arn in listed(statement["Resource"]):
                    yield f"{action} {on(action, arn, statement)}"


def on(action: str, arn: Any, statement: Any) -> str:
    """Return the resource that an action is allowed on, as these tests name it."""
    match arn:
        case _ if action == "events:PutEvents":
            return str(statement["Condition"]["ForAllValues:StringEquals"]["events:source"])
        case {"Fn::GetAtt": [name, "Arn"]} | {"Ref": name}:
            return str(name)
        case {"Fn::Sub": pattern} if pattern.startswith("${Ledger.Arn}/index/"):
            return f"Ledger/{pattern.removeprefix('${Ledger.Arn}/index/')}"
        case {"Fn::Sub": pattern} if pattern.endswith("${Reply}"):
            return "Reply"
        case {"Fn::Sub": pattern} if pattern.endswith(":secret:${ConnectionPrefix}*"):
            return "connections"
    raise NotImplementedError(arn)


def test_every_function_is_tried() -> None:
    """Each function has a case."""
    assert FUNCTIONS == sorted(CASES)


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("name", CASES)
def test_a_function_uses_all_of_its_rights_and_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A function uses exactly its rights: an unused one is to be removed, and a missing one would be denied."""
    monkeypatch.setenv("REPLY_PARAMETER", "reply")
    CASES[name](world)

    assert sorted(set(given(name))) == sorted(set(used(world.aws)))
