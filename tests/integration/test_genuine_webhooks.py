"""The deployed webhook gets hundreds of genuine requests of every kind, with parameters that it does not know."""

import json
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.genuine import KINDS, OTHER, RECEIVED, TOKEN, Genuine, generate, normal, official
from tests.integration.cloud import Bus, Cloud, eventually
from tests.mutants import Request, Target, posted, send

COUNT = 10 * len(KINDS)
SENDERS = 4


def texts(genuine: Genuine) -> list[str]:
    """Return the parameters that each event of a request must have, as text."""
    return [json.dumps(normal(each), sort_keys=True) for each in genuine.parameters]


def said(event: dict[str, Any]) -> str:
    """Return an event's parameters as text."""
    return json.dumps(normal(event["detail"]["parameters"]), sort_keys=True)


def arrived(bus: Bus, count: int) -> list[dict[str, Any]]:
    """Wait until `count` events have arrived, and return all events."""
    eventually(lambda: len(bus.drain(wait=1)), until=lambda found: found >= count, seconds=60)
    return bus.drain(wait=1)


def test_what_twilio_signs_is_published_as_it_was_posted(cloud: Cloud) -> None:
    """Every genuine request is accepted, and its events have its parameters and the detail-type of its kind."""
    target = cloud.target()
    genuine = generate(target, COUNT, seed=uuid.uuid4().int)
    expected = Counter(text for each in genuine for text in texts(each))
    with cloud.events("twilio") as bus:
        with ThreadPoolExecutor(SENDERS) as pool:
            answers = list(pool.map(lambda each: send(each.request, target), genuine))
        events = arrived(bus, expected.total())
    refused = [(each.kind, each.request) for each, answer in zip(genuine, answers, strict=True) if answer.status != 200]
    kinds = {said(event): event["detail-type"] for event in events}
    certain = {text: each.detail_type for each in genuine if each.detail_type for text in texts(each)}

    assert [] == refused[:3]
    assert COUNT >= 200
    assert expected == Counter(map(said, events))
    assert certain == {text: kinds[text] for text in certain}


def test_a_message_and_two_widgets_that_post_its_sid_are_three_events(cloud: Cloud) -> None:
    """A message and two equal posts of a Studio flow about it are three events; a repeated delivery adds no event."""
    target = cloud.target()
    message = cloud.inbound("Hello")
    sid = message.fields["MessageSid"]
    with cloud.events("twilio") as bus:
        answers = [send(each, target).status for each in (message.request(target), *_widgets(target, sid))]
        events = [event for event in arrived(bus, 3) if sid in json.dumps(event)]

    assert [200] * 4 == answers
    assert Counter([RECEIVED, OTHER, OTHER]) == Counter(event["detail-type"] for event in events)


def _widgets(target: Target, sid: str) -> list[Request]:
    """Return two deliveries of a widget's request with different tokens, and the first delivery again."""
    host = target.base.partition("://")[2].partition("/")[0]
    widget = posted(Request(host=host, path=target.path), (("MessageSid", sid), ("answer", "yes")))
    return [official(widget, target).with_header(TOKEN, token * 36) for token in "121"]
