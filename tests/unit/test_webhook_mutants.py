"""Whatever is changed in a genuine webhook, consumers see what Twilio sent, or nothing at all."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import webhook
from twilio_connector import client
from twilio_connector.connection import Connections

from tests import mutants
from tests.aws_wire import AwsWire
from tests.mutants import (
    CLASSES,
    GENUINE,
    SAME_TEXT,
    WITH_QUERY,
    Request,
    Target,
    Webhook,
    event_1,
    event_2,
    hostile,
    shapes,
    twins,
    verifies,
)
from tests.unit.conftest import ACCOUNT_SID, AUTH_TOKEN

COUNT = 1200  # of each class
TARGET = Target("https://hook.example", ACCOUNT_SID, AUTH_TOKEN)
HOSTILE = hostile(ACCOUNT_SID)
REFUSED = {
    status: {"statusCode": status, "headers": {"Content-Type": "application/json"}, "body": body}
    for status, body in {403: '{"message":"Forbidden"}', 413: '{"message":"Content Too Large"}'}.items()
}
ACCEPTED = {"statusCode": 200, "headers": {"Content-Type": "text/xml"}, "body": "<Response/>"}

type Seen = list[tuple[str, dict[str, Any]]]


class Outcome(NamedTuple):
    """The answer to a request, and the events that came of it, without the time."""

    answer: dict[str, Any]
    events: Seen


type Send = Callable[[Any], Outcome]


@pytest.fixture
def send(aws_wire: AwsWire, context: Any, monkeypatch: pytest.MonkeyPatch) -> Send:
    """Return what hands an event to the handler."""
    aws_wire.secrets["twilio/two"] = json.dumps({"account_sid": ACCOUNT_SID, "auth_token": "2" * 32})

    def send(event: Any) -> Outcome:
        aws_wire.calls.clear()
        if len(client.CONNECTIONS._strangers) > 10:
            # Made-up names of connections meet no limit here, since each is to be refused for itself.
            monkeypatch.setattr(client, "CONNECTIONS", Connections())
        answer = webhook.handler(event, context)
        return Outcome(answer, [_seen(entry) for entry in aws_wire.entries])

    return send


def _seen(entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    detail = json.loads(entry["Detail"])
    del detail["received_at"]
    return entry["DetailType"], detail


def genuine(send: Send, webhooks: list[Webhook]) -> dict[str, Seen]:
    """Return what comes of each webhook as Twilio sends it: nothing, where it is refused."""
    return {each.name: send(event_2(each.request(TARGET))).events for each in webhooks}


def judged(outcome: Outcome, events: Seen) -> str:
    """Return how a mutant ended: refused, accepted as the genuine one, or in some other way."""
    if outcome.answer in REFUSED.values() and not outcome.events:
        return "refused"
    if outcome.answer == ACCEPTED and outcome.events and outcome.events == events:
        return "the same"
    return f"{outcome.answer['statusCode']} {outcome.events}"


def test_a_genuine_webhook_is_accepted_however_it_arrives(send: Send) -> None:
    """In both payload formats, with and without the standard port, its fields in any order and encoding."""
    outcomes = {}
    for each in [*GENUINE, *WITH_QUERY]:
        first = send(event_2(each.request(TARGET)))
        others = [send(event) for request in twins(each, TARGET) for event in _events(request)]
        outcomes[each.name, each.query] = first.answer == ACCEPTED and others == [first] * len(others)

    assert {} == {name: accepted for name, accepted in outcomes.items() if not accepted}


def _events(request: Request) -> Iterator[dict[str, Any]]:
    for event in (event_1, event_2):
        yield event(request, binary=False)
        yield event(request, binary=True)


@pytest.mark.parametrize("name", ["url", "query", "name", "value", "boundary", "moved", "body", "header"])
def test_no_mutant_changes_what_consumers_see(name: str, send: Send) -> None:
    """A thousand of each class; those that keep the signed text verify by signature alone, and count for it."""
    webhooks = [*(WITH_QUERY if name == "moved" else GENUINE), *HOSTILE]
    expected = genuine(send, webhooks)
    results: Counter[str] = Counter()
    wrong = []
    verified = 0
    for number, (each, request) in enumerate(mutants.mutants(name, TARGET, webhooks, count=COUNT)):
        outcome = judged(send((event_1 if number % 3 == 2 else event_2)(request)), expected[each.name])
        results[outcome if outcome in {"refused", "the same"} else "wrong"] += 1
        verified += verifies(request, TARGET)
        if outcome not in {"refused", "the same"}:
            wrong.append((each.name, request, outcome))

    assert [] == wrong
    assert COUNT == results.total()
    assert results["refused"] >= COUNT * 0.9
    assert verified >= COUNT * SAME_TEXT.get(name, 0)


def test_no_shape_of_event_changes_what_consumers_see(send: Send) -> None:
    """Fields that are missing, of another type, or no Unicode text."""
    expected = genuine(send, GENUINE)
    wrong = []
    results: Counter[str] = Counter()
    for each, event in shapes(TARGET, GENUINE, count=COUNT):
        outcome = judged(send(event), expected[each.name])
        results[outcome if outcome in {"refused", "the same"} else "wrong"] += 1
        if outcome not in {"refused", "the same"}:
            wrong.append((each.name, event, outcome))

    assert [] == wrong
    assert COUNT == results.total()
    # Much of an event, as its headers but three, plays no part.
    assert results["refused"] >= COUNT * 0.3


def test_every_class_is_tested_here() -> None:
    """By one of the tests above."""
    assert {"url", "query", "name", "value", "boundary", "moved", "body", "header", "shape"} == set(CLASSES)
