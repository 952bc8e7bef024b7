"""A webhook is published once, even if AWS services fail behind the webhook and Twilio delivers it several times."""

import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from tests.faults import AwsFault, AwsProxy, aws
from tests.integration.cloud import Bus, Cloud, eventually
from tests.mutants import SIGNATURE, Answer, Request, Target, send

ACCEPTED = Answer(200, "<Response/>", "text/xml")
UNAVAILABLE = Answer(503, '{"message":"Service Unavailable"}', "application/json")
NOT_TAKEN = "PutEvents.1.throttle+PutEvents.2.throttle"
AWAY = AwsFault(aws.THROTTLE, operation="PutEvents")
NO_TABLE = b'"deduplication_id"'
"""A text that only items of the table of published events contain."""


class Begun(NamedTuple):
    """The answers to repeated deliveries of a webhook, and all events in the end; both by the name of the case."""

    answers: dict[str, list[Answer]]
    events: dict[str, list[dict[str, Any]]]


@pytest.fixture
def bus(cloud: Cloud) -> Iterator[Bus]:
    """Return the events of the stack's bus."""
    with cloud.events("twilio") as events:
        yield events


@pytest.fixture(scope="module")
def begun(cloud: Cloud, aws_proxy: AwsProxy) -> Begun:
    """Deliver webhooks whose event is already claimed, and wait once until all claims have ended."""
    deliveries = {
        "died before the event": (2, "aws=PutEvents.1.kill_before"),
        "died after the event": (2, "aws=PutEvents.1.kill_after"),
        "both away": (2, f"aws={NOT_TAKEN}+SendMessage.1.fail+SendMessage.2.fail"),
        "not noted": (2, ""),
        "one after the other": (100, ""),
        "at the same moment": (50, ""),
    }
    answers, texts = {}, {}
    with cloud.events("twilio") as bus:
        for name, (count, marker) in deliveries.items():
            texts[name] = f"{uuid.uuid4()};{marker}"
            webhook, target = cloud.inbound(texts[name]), cloud.target()
            if name == "not noted":  # its item in the table does not contain its text
                sid = webhook.fields["MessageSid"].encode()
                aws_proxy.add(AwsFault(aws.FAIL, operation="PutItem", contains=sid, skip=1, times=2))
            tokens = [("i-twilio-idempotency-token", str(uuid.uuid4())) for _ in range(20)]
            request = webhook.request(target)
            requests = [
                replace(request, headers=(*request.headers, tokens[number % len(tokens)])) for number in range(count)
            ]
            width = 1
            if name == "at the same moment":
                width = count
                start_processes(request.with_header(SIGNATURE, ""), target, width)
            with ThreadPoolExecutor(width) as pool:
                answers[name] = list(pool.map(lambda each, target=target: send(each, target, seconds=60), requests))
        return Begun(answers, dict(zip(texts, cloud.published(bus, *texts.values()), strict=True)))


def start_processes(refused: Request, target: Target, count: int) -> None:
    """Start processes of the function, ten at a time, because each takes too long if all start at once."""
    for width in range(10, count + 1, 10):
        with ThreadPoolExecutor(width) as pool:
            list(pool.map(lambda each: send(each, target, seconds=60), [refused] * width))


def post(cloud: Cloud, text: str) -> Answer:
    """Deliver a message with a text to the webhook, and return the answer."""
    return send(cloud.inbound(text).request(cloud.target()), cloud.target())


def marks(events: list[dict[str, Any]]) -> list[str | None]:
    """Return the deduplication mark of each event, or None."""
    return [event["detail"].get("deduplication") for event in events]


@pytest.mark.parametrize("name", ["at the same moment", "one after the other"])
def test_the_same_delivery_is_one_event(begun: Begun, name: str) -> None:
    """Each delivery of the same webhook is answered with 200, even with another token, and one event is published."""
    assert {ACCEPTED} == set(begun.answers[name])
    assert [None] == marks(begun.events[name])


@pytest.mark.parametrize(
    ("name", "first", "expected"),
    [
        ("died before the event", 502, ["uncertain"]),
        ("died after the event", 502, [None, "uncertain"]),
        ("not noted", 200, [None, "uncertain"]),
        ("both away", 503, ["uncertain"]),
    ],
)
def test_what_somebody_began_is_published(begun: Begun, name: str, first: int, expected: list[str | None]) -> None:
    """Twilio's repeated delivery is accepted, and published when the first claim ends.

    The event is marked as uncertain, because the first delivery may have published it.
    """
    answers = begun.answers[name]

    assert (first, ACCEPTED) == (answers[0].status, answers[1])
    assert expected == marks(begun.events[name])


def test_what_the_bus_does_not_take_comes_from_the_buffer(cloud: Cloud, bus: Bus) -> None:
    """An event that EventBridge does not take at first is published once from the buffer, a little later."""
    faults = {
        NOT_TAKEN: None,
        "PutEvents.1.deny+PutEvents.2.deny": None,
        "PutEvents.1.refuse_entries+PutEvents.2.refuse_entries": None,
        "PutEvents.1.fail+PutEvents.2.fail": "uncertain",
        "PutEvents.1.drop_before+PutEvents.2.drop_before": "uncertain",
        f"{NOT_TAKEN}+PutEvents.3.throttle+PutEvents.4.throttle": None,
        f"{NOT_TAKEN}+SendMessage.1.fail": None,
        f"{NOT_TAKEN}+SendMessage.1.drop_after": None,
    }
    texts = {fault: f"{uuid.uuid4()};aws={fault}" for fault in faults}
    for text in texts.values():
        number = cloud.info["twilio"]["number"]
        cloud.twilio("POST", "/_twilio/simulate/inbound-message", To=number, From="+15550100123", Body=text)

    published = [marks(events) for events in cloud.published(bus, *texts.values())]
    assert {fault: [mark] for fault, mark in faults.items()} == dict(zip(faults, published, strict=True))


@pytest.mark.parametrize("fault", ["throttle", "refuse_entries", "drop_before", "drop_after"])
def test_a_bus_that_takes_the_second_attempt_needs_no_buffer(
    cloud: Cloud, bus: Bus, aws_proxy: AwsProxy, fault: str
) -> None:
    """If EventBridge refuses an event or its answer is lost, a second attempt publishes it without the buffer."""
    text = f"{uuid.uuid4()};aws=PutEvents.1.{fault}"

    assert ACCEPTED == post(cloud, text)
    [events] = cloud.published(bus, text)
    assert {"drop_after": [None, "uncertain"], "drop_before": ["uncertain"]}.get(fault, [None]) == marks(events)
    assert 0 == aws_proxy.count("SendMessage")


def test_a_bus_that_is_away_for_a_while_loses_nothing(cloud: Cloud, bus: Bus, aws_proxy: AwsProxy) -> None:
    """While EventBridge is unavailable, events wait in the buffer. Each is published once when EventBridge is back."""
    aws_proxy.add(AWAY)
    texts = [str(uuid.uuid4()) for _ in range(20)]
    answers = [post(cloud, text) for text in texts]
    eventually(lambda: aws_proxy.count("PutEvents"), until=lambda count: count > 2 * len(texts))  # the buffer's too

    assert [ACCEPTED] * len(texts) == answers
    assert ([], len(texts)) == (bus.drain(), cloud.in_queue("BufferQueue"))
    aws_proxy.clear()
    assert [[None]] * len(texts) == [marks(events) for events in cloud.published(bus, *texts)]


def test_bus_and_buffer_away_is_unavailable(cloud: Cloud, bus: Bus, aws_proxy: AwsProxy) -> None:
    """If EventBridge and the buffer are both unavailable, the webhook answers 503, and publishes nothing."""
    aws_proxy.add(AWAY)
    aws_proxy.add(AwsFault(aws.THROTTLE, operation="SendMessage"))

    assert UNAVAILABLE == post(cloud, str(uuid.uuid4()))
    assert [] == bus.drain()


@pytest.mark.parametrize("kind", [aws.THROTTLE, aws.FAIL, aws.DENY, aws.DROP_BEFORE], ids=lambda kind: kind.name)
def test_without_the_table_events_are_published_and_say_so(
    cloud: Cloud, bus: Bus, aws_proxy: AwsProxy, kind: aws.Kind
) -> None:
    """Without the table, events are published and marked as possible duplicates, which are better than lost events."""
    aws_proxy.add(AwsFault(kind, operation="PutItem", contains=NO_TABLE))
    text = str(uuid.uuid4())

    assert ACCEPTED == post(cloud, text)
    assert [["unavailable"]] == [marks(events) for events in cloud.published(bus, text)]


@pytest.fixture
def connection(cloud: Cloud) -> Callable[..., str]:
    """Return a function that stores tokens in a connection of the test's own, and returns the connection's name."""
    manager, name = cloud.client("secretsmanager"), uuid.uuid4().hex

    def store(**tokens: str) -> str:
        secret = json.dumps({"account_sid": cloud.info["twilio"]["account_sid"], **tokens})
        try:
            manager.put_secret_value(SecretId=f"twilio/{name}", SecretString=secret)
        except manager.exceptions.ResourceNotFoundException:
            manager.create_secret(Name=f"twilio/{name}", SecretString=secret)
        return name

    return store


def status(cloud: Cloud, target: Target) -> int:
    """Deliver a message that is signed for a target, and return the answer's status."""
    return send(cloud.inbound(str(uuid.uuid4())).request(target), target).status


@pytest.mark.parametrize("kind", [aws.THROTTLE, aws.FAIL, aws.DROP_BEFORE], ids=lambda kind: kind.name)
def test_secrets_manager_away(
    cloud: Cloud, aws_proxy: AwsProxy, connection: Callable[..., str], kind: aws.Kind
) -> None:
    """Without Secrets Manager, the webhook answers 503 if it has not read the token, and works if it has."""
    target = cloud.target(connection(auth_token="0" * 32), "0" * 32)
    away = AwsFault(kind, operation="GetSecretValue")
    aws_proxy.add(away)
    assert 503 == status(cloud, target)

    aws_proxy.clear()
    assert 200 == status(cloud, target)

    aws_proxy.add(away)
    assert 200 == status(cloud, target)


def test_a_token_is_replaced_by_hand(cloud: Cloud, connection: Callable[..., str]) -> None:
    """As soon as a new token is stored, the webhook accepts the new one and the old one, and no other."""
    name, old, new, other = connection(auth_token="0" * 32), "0" * 32, "1" * 32, "2" * 32
    assert 200 == status(cloud, cloud.target(name, old))

    connection(auth_token=new)

    assert [200, 200, 403, 200] == [status(cloud, cloud.target(name, token)) for token in (new, old, other, new)]


def test_a_container_that_starts_after_the_replacement_knows_the_old_token(
    cloud: Cloud, connection: Callable[..., str]
) -> None:
    """A container that starts after the replacement accepts the old token, which it finds in Secrets Manager."""
    connection(auth_token="0" * 32)
    name = connection(auth_token="1" * 32)

    assert [200, 200, 403] == [status(cloud, cloud.target(name, digit * 32)) for digit in "012"]


def test_the_secondary_token_signs_too(cloud: Cloud, connection: Callable[..., str]) -> None:
    """The webhook accepts the secondary token, because Twilio may promote it before the secret is updated."""
    name = connection(auth_token="0" * 32, secondary_auth_token="1" * 32)

    assert [200, 200, 403] == [status(cloud, cloud.target(name, digit * 32)) for digit in "012"]
