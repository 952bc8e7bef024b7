"""What Twilio delivers is published once, whatever fails behind the webhook, and however often Twilio delivers it."""

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
"""What only the items of the table of published events have."""


class Begun(NamedTuple):
    """Deliveries that meet an event which somebody began to publish, and all events in the end; by their texts."""

    answers: dict[str, list[Answer]]
    events: dict[str, list[dict[str, Any]]]


@pytest.fixture
def bus(cloud: Cloud) -> Iterator[Bus]:
    """Return the events of the stack's bus."""
    with cloud.events("twilio") as events:
        yield events


@pytest.fixture(scope="module")
def begun(cloud: Cloud, aws_proxy: AwsProxy) -> Begun:
    """Deliver what meets a claim that is held, and wait once until all claims have ended."""
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
            if name == "not noted":  # its item in the table has no text of it
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
    """Let so many processes of the function start, ten at a time: all at once would take too long for each."""
    for width in range(10, count + 1, 10):
        with ThreadPoolExecutor(width) as pool:
            list(pool.map(lambda each: send(each, target, seconds=60), [refused] * width))


def post(cloud: Cloud, text: str) -> Answer:
    """Deliver a message with a text."""
    return send(cloud.inbound(text).request(cloud.target()), cloud.target())


def marks(events: list[dict[str, Any]]) -> list[str | None]:
    """Return what each event says of whether it is the only one."""
    return [event["detail"].get("deduplication") for event in events]


@pytest.mark.parametrize("name", ["at the same moment", "one after the other"])
def test_the_same_delivery_is_one_event(begun: Begun, name: str) -> None:
    """Twilio is told each time that it arrived, whatever token it gives; consumers hear it once."""
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
    """Twilio's repetition is taken, and published once the claim before it ends: marked, where it may come twice."""
    answers = begun.answers[name]

    assert (first, ACCEPTED) == (answers[0].status, answers[1])
    assert expected == marks(begun.events[name])


def test_what_the_bus_does_not_take_comes_from_the_buffer(cloud: Cloud, bus: Bus) -> None:
    """Whatever Twilio's emulator signed and the bus did not take arrives once, a little later."""
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
    """One answer that is lost, or refuses, is made up for at once."""
    text = f"{uuid.uuid4()};aws=PutEvents.1.{fault}"

    assert ACCEPTED == post(cloud, text)
    [events] = cloud.published(bus, text)
    assert {"drop_after": [None, "uncertain"], "drop_before": ["uncertain"]}.get(fault, [None]) == marks(events)
    assert 0 == aws_proxy.count("SendMessage")


def test_a_bus_that_is_away_for_a_while_loses_nothing(cloud: Cloud, bus: Bus, aws_proxy: AwsProxy) -> None:
    """What was taken meanwhile waits in the buffer, and is published once when the bus is back."""
    aws_proxy.add(AWAY)
    texts = [str(uuid.uuid4()) for _ in range(20)]
    answers = [post(cloud, text) for text in texts]
    eventually(lambda: aws_proxy.count("PutEvents"), until=lambda count: count > 2 * len(texts))  # the buffer's too

    assert [ACCEPTED] * len(texts) == answers
    assert ([], len(texts)) == (bus.drain(), cloud.in_queue("BufferQueue"))
    aws_proxy.clear()
    assert [[None]] * len(texts) == [marks(events) for events in cloud.published(bus, *texts)]


def test_bus_and_buffer_away_is_unavailable(cloud: Cloud, bus: Bus, aws_proxy: AwsProxy) -> None:
    """Only then Twilio is told that its delivery did not arrive."""
    aws_proxy.add(AWAY)
    aws_proxy.add(AwsFault(aws.THROTTLE, operation="SendMessage"))

    assert UNAVAILABLE == post(cloud, str(uuid.uuid4()))
    assert [] == bus.drain()


@pytest.mark.parametrize("kind", [aws.THROTTLE, aws.FAIL, aws.DENY, aws.DROP_BEFORE], ids=lambda kind: kind.name)
def test_without_the_table_events_are_published_and_say_so(
    cloud: Cloud, bus: Bus, aws_proxy: AwsProxy, kind: aws.Kind
) -> None:
    """A duplicate is better than nothing: nobody knows whether it was published before."""
    aws_proxy.add(AwsFault(kind, operation="PutItem", contains=NO_TABLE))
    text = str(uuid.uuid4())

    assert ACCEPTED == post(cloud, text)
    assert [["unavailable"]] == [marks(events) for events in cloud.published(bus, text)]


@pytest.fixture
def connection(cloud: Cloud) -> Callable[..., str]:
    """Return what stores tokens in a connection of its own, and returns its name."""
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
    """Return how a message is answered that is signed for a target."""
    return send(cloud.inbound(str(uuid.uuid4())).request(target), target).status


@pytest.mark.parametrize("kind", [aws.THROTTLE, aws.FAIL, aws.DROP_BEFORE], ids=lambda kind: kind.name)
def test_secrets_manager_away(
    cloud: Cloud, aws_proxy: AwsProxy, connection: Callable[..., str], kind: aws.Kind
) -> None:
    """Without the token nothing is accepted or refused; who read it before goes on without Secrets Manager."""
    target = cloud.target(connection(auth_token="0" * 32), "0" * 32)
    away = AwsFault(kind, operation="GetSecretValue")
    aws_proxy.add(away)
    assert 503 == status(cloud, target)

    aws_proxy.clear()
    assert 200 == status(cloud, target)

    aws_proxy.add(away)
    assert 200 == status(cloud, target)


def test_a_token_is_replaced_by_hand(cloud: Cloud, connection: Callable[..., str]) -> None:
    """Both tokens are accepted from the moment when the new one is stored, and no other is."""
    name, old, new, other = connection(auth_token="0" * 32), "0" * 32, "1" * 32, "2" * 32
    assert 200 == status(cloud, cloud.target(name, old))

    connection(auth_token=new)

    assert [200, 200, 403, 200] == [status(cloud, cloud.target(name, token)) for token in (new, old, other, new)]


def test_a_container_that_starts_after_the_replacement_knows_the_old_token(
    cloud: Cloud, connection: Callable[..., str]
) -> None:
    """It finds the version before in Secrets Manager."""
    connection(auth_token="0" * 32)
    name = connection(auth_token="1" * 32)

    assert [200, 200, 403] == [status(cloud, cloud.target(name, digit * 32)) for digit in "012"]


def test_the_secondary_token_signs_too(cloud: Cloud, connection: Callable[..., str]) -> None:
    """Twilio signs with it as soon as it is promoted, which may be before the secret says so."""
    name = connection(auth_token="0" * 32, secondary_auth_token="1" * 32)

    assert [200, 200, 403] == [status(cloud, cloud.target(name, digit * 32)) for digit in "012"]
