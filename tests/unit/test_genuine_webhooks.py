"""Every request that Twilio's own library signs is published as it was posted, with any parameters."""

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import webhook

from tests.aws_wire import AwsWire
from tests.conftest import Context
from tests.genuine import DETAIL_TYPES, FORMS, KINDS, OTHER, RECEIVED, TOKEN, Genuine, generate, normal, official
from tests.mutants import Event, Request, Target, event_1, event_2, posted
from tests.unit.conftest import ACCOUNT_SID, API_KEY, AUTH_TOKEN

COUNT = 15 * len(KINDS)
TARGET = Target("https://hook.example", ACCOUNT_SID, AUTH_TOKEN)
SETTINGS = "x-twilio-webhooks-signature-settings"
SOME = 6 * len(KINDS)
"""The number of requests for every test run: six of each kind. The exhaustive tests take the others."""


@cache
def genuine() -> list[Genuine]:
    """Return the requests, of all kinds in turn."""
    return generate(TARGET, COUNT)


def published(wire: AwsWire) -> list[tuple[str, Any]]:
    """Return the detail-type and the parameters of each event, and clear the recorded calls."""
    events = [(entry["DetailType"], json.loads(entry["Detail"])["parameters"]) for entry in wire.entries]
    wire.calls.clear()
    return events


def wrong(wire: AwsWire, each: Genuine, payload: Callable[[Request], Event]) -> str | None:
    """Deliver a request, and return what is wrong with the result, or None."""
    answer = webhook.handler(payload(each.request), Context())
    events = published(wire)
    if answer["statusCode"] != 200:
        return f"refused with {answer['statusCode']}"
    if [normal(parameters) for _, parameters in events] != normal(each.parameters):
        return f"published otherwise: {events}"
    kinds = {kind for kind, _ in events}
    if not kinds <= ({each.detail_type} if each.detail_type else DETAIL_TYPES):
        return f"published as {kinds}"
    return None


def mapped(requests: list[Genuine]) -> list[Genuine]:
    """Return the requests that payload format 1.0 can represent.

    It has neither the order of a GET's parameters, nor whether a name came without `=`.
    """
    return [each for each in requests if each.request.method == "POST" and "&z" not in each.request.query]


@pytest.mark.parametrize(
    "some",
    [
        pytest.param(slice(SOME), id="some"),
        pytest.param(slice(SOME, None), id="all others", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("payload", [event_2, event_1], ids=["2.0", "1.0"])
def test_what_twilio_signs_is_published_as_it_was_posted(
    aws_wire: AwsWire, payload: Callable[[Request], Event], some: slice
) -> None:
    """An event has every name and value of its request, and the detail-type of its kind."""
    requests = genuine()[some]
    told = requests if payload is event_2 else mapped(requests)
    found = [(each.kind, each, reason) for each in told if (reason := wrong(aws_wire, each, payload))]

    assert [] == found[:3], Counter(kind for kind, *_ in found)


def test_the_generated_requests_are_many_and_broad() -> None:
    """There are at least 200 requests of at least 20 kinds, as form, GET and JSON, and of each detail-type."""
    certain = Counter(each.detail_type for each in genuine() if each.detail_type)
    requests = [each.request for each in genuine()]
    forms = Counter("GET" if each.method == "GET" else each.header("content-type") for each in requests)

    assert len(requests) >= 200
    assert len({each.kind for each in genuine()}) >= 20
    assert certain.total() >= 50
    assert DETAIL_TYPES == certain.keys()
    assert min(forms["GET"], forms["application/json"], forms["application/x-www-form-urlencoded"]) >= 50


def test_the_generated_parameters_are_of_every_sort() -> None:
    """Parameters are empty, dotted, repeated, lower-case, not ASCII, or Twilio's own in unusual places."""
    every = {name for each in genuine() if each.kind in FORMS for name in each.parameters[0]}

    assert {"", "meta.customer[id]", "msg", "größe", "A" * 200, "bodySHA256"} <= every
    assert sum(isinstance(value, list) for each in genuine() for value in dict(each.parameters[0]).values()) >= 20
    assert any("CallSid" in each.parameters[0] for each in genuine() if each.kind == "SMS")


def test_a_message_and_two_widgets_that_post_its_sid_are_three_events(aws_wire: AwsWire) -> None:
    """A message and two Studio widgets that post its SID are three events, and a repeated widget adds none.

    A Studio flow may post the same text again, about a message that was published before.
    """
    (message,) = [each for each in genuine()[: len(KINDS)] if each.kind == "SMS"]
    sid = message.parameters[0]["SmsSid"]
    path = Request(host="hook.example", path="/webhook")
    widget = official(posted(path, (("MessageSid", sid), ("answer", "yes"))), TARGET)
    widgets = [widget.with_header(TOKEN, token * 36) for token in "121"]
    answers = [webhook.handler(event_2(each), Context())["statusCode"] for each in (message.request, *widgets)]

    assert [200] * 4 == answers
    assert [RECEIVED, OTHER, OTHER] == [kind for kind, _ in published(aws_wire)]


def test_a_token_alone_is_no_identity(aws_wire: AwsWire) -> None:
    """The idempotency token is not signed, so two contents with one token are two events."""
    path = Request(host="hook.example", path="/webhook")
    widgets = [official(posted(path, (("answer", each),)), TARGET).with_header(TOKEN, "1" * 36) for each in ("y", "n")]
    answers = [webhook.handler(event_2(each), Context())["statusCode"] for each in (*widgets, *widgets)]

    assert [200] * 4 == answers
    assert [{"answer": "y"}, {"answer": "n"}] == [parameters for _, parameters in published(aws_wire)]


@pytest.mark.parametrize("algorithm", ["HMAC_SHA1", "HMAC_SHA256"])
def test_a_shared_key_signs_every_kind(aws_wire: AwsWire, algorithm: str) -> None:
    """A SharedKey can sign every kind of request, as Twilio's library does with one.

    The connection has no auth token, and only the algorithm that the header names is tried.
    """
    sid, secret = "SK" + "7" * 32, "not-a-shared-secret"
    own = {name: value for name, value in API_KEY.items() if name != "auth_token"}
    aws_wire.secrets["twilio/default"] = json.dumps(own | {"shared_keys": {sid: secret}})
    other = {"HMAC_SHA1": "HMAC_SHA256", "HMAC_SHA256": "HMAC_SHA1"}[algorithm]

    for each in genuine()[: len(KINDS)]:
        signed = official(each.request, TARGET._replace(auth_token=secret), algorithm=algorithm)
        named, wrong = (signed.with_header(SETTINGS, f"key={sid},algorithm={one}") for one in (algorithm, other))

        assert 403 == webhook.handler(event_2(wrong), Context())["statusCode"]
        assert 200 == webhook.handler(event_2(named), Context())["statusCode"], each.kind
        assert normal(each.parameters) == [normal(parameters) for _, parameters in published(aws_wire)]
