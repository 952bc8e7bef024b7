"""Whatever is changed in a genuine webhook, consumers see what Twilio sent, or nothing at all."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
import webhook
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twilio_connector import client
from twilio_connector.connection import Connections

from tests import mutants
from tests.aws_wire import AwsWire
from tests.mutants import (
    CLASSES,
    GENUINE,
    OTHER_SID,
    SAME_TEXT,
    SIGNATURE,
    WITH_QUERY,
    Request,
    Target,
    Webhook,
    event_1,
    event_2,
    hostile,
    posted,
    shapes,
    signed,
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
        aws_wire.deliveries.clear()  # else what is the same as before would be published no more
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


# What somebody did think of: who holds a signed request, in which a person wrote a text, cuts another one out of it

FORGED = b'{"forged":true}'
HASH = hashlib.sha256(FORGED).hexdigest()
MESSAGE = {
    "AccountSid": ACCOUNT_SID,
    "Body": "forged",
    "From": "15550001111",
    "MessageSid": OTHER_SID,
    "SmsStatus": "received",
    "To": "15550002222",
    "ToZip": "",
}
MESSAGE_TEXT = "".join(name + value for name, value in MESSAGE.items())


def _form_as_get() -> tuple[Request, Request]:
    genuine = _sms(f"hi&{urlencode(MESSAGE)}", "x=1")
    return genuine, replace(genuine, method="GET", query=f"x=1{_text(genuine)}")


def _form_as_json() -> tuple[Request, Request]:
    genuine = _sms(f"hi&bodySHA256={HASH}&x=", "x=1")
    return genuine, _as_json(genuine, f"x=1{_text(genuine)}")


def _get_as_form() -> tuple[Request, Request]:
    fields = {"AccountSid": ACCOUNT_SID, **GENUINE[0].fields}
    # As Twilio may order them: the text before the account.
    query = urlencode({"Body": MESSAGE_TEXT} | {name: value for name, value in fields.items() if name != "Body"})
    genuine = signed(replace(GENUINE[0].request(TARGET), method="GET", query=query, body=b""), TARGET)
    start, _, rest = query.partition(MESSAGE_TEXT)
    return genuine, posted(replace(genuine, method="POST", query=start), [*(MESSAGE | {"ToZip": rest}).items()])


def _get_with_fragment() -> tuple[Request, Request]:
    genuine = Webhook(name="get", fields=GENUINE[0].fields | {"Body": "x"}, method="GET").request(TARGET)
    return genuine, replace(genuine, query=f"{genuine.query}#&OptOutType=STOP")


def _get_as_json() -> tuple[Request, Request]:
    genuine = Webhook(name="get", fields=GENUINE[0].fields, method="GET").request(TARGET)
    return genuine, _as_json(genuine, f"{genuine.query}#&bodySHA256={HASH}")


def _json_as_get() -> tuple[Request, Request]:
    webhook = Webhook(name="json", fields={}, json=b"{}", query=urlencode(MESSAGE))
    return webhook.request(TARGET), replace(webhook.request(TARGET), method="GET", body=b"")


def _swallowed() -> tuple[Request, Request]:
    """Return a message whose last text takes in all of the genuine one that follows."""
    hidden = MESSAGE_TEXT.partition("forged")[2]
    genuine = _sms(f"forged{hidden}", "")
    rest = _text(genuine).partition(hidden)[2]
    return genuine, posted(genuine, [*(MESSAGE | {"ApiVersion": "2010-04-01", "ToZip": rest}).items()])


def _sms(text: str, query: str) -> Request:
    return Webhook(name="sms", fields=GENUINE[0].fields | {"Body": text}, query=query).request(TARGET)


def _text(request: Request) -> str:
    return "".join(name + value for name, value in sorted(request.fields))


def _as_json(request: Request, query: str) -> Request:
    headers = (("content-type", "application/json"), (SIGNATURE, str(request.header(SIGNATURE))))
    return replace(request, method="POST", query=query, headers=headers, body=FORGED)


@pytest.mark.parametrize(
    "forgery",
    [_form_as_get, _form_as_json, _get_as_form, _get_with_fragment, _get_as_json, _json_as_get, _swallowed],
)
def test_a_forgery_is_refused(send: Send, forgery: Callable[[], tuple[Request, Request]]) -> None:
    """Though its signature holds for the URL before `#` and the fields."""
    genuine, forged = forgery()

    assert verifies(genuine, TARGET)
    assert verifies(replace(forged, query=forged.query.partition("#")[0]), TARGET)
    assert "refused" == judged(send(event_2(forged)), [])


# What nobody thought of

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(st.characters(categories=["Cs"]), max_size=3),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=10,
)
SEEN_BY_THE_HANDLER = [
    "version", "rawPath", "rawQueryString", "headers", "multiValueHeaders", "body", "isBase64Encoded", "httpMethod",
    "path", "queryStringParameters", "multiValueQueryStringParameters", "requestContext", "pathParameters",
]  # fmt: skip
SHORT = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)


@SHORT
@given(JSON | st.dictionaries(st.sampled_from(SEEN_BY_THE_HANDLER), JSON))
def test_no_event_is_a_fault(send: Send, event: Any) -> None:
    """Whatever it is, it is refused."""
    assert "refused" == judged(send(event), [])


@SHORT
@given(st.sampled_from(GENUINE), st.dictionaries(st.sampled_from(SEEN_BY_THE_HANDLER), JSON, max_size=2), st.booleans())
def test_no_field_of_an_event_is_a_fault(send: Send, each: Webhook, changed: dict[str, Any], old: bool) -> None:  # noqa: FBT001 hypothesis's own
    """Nor in an event that is else a genuine one."""
    event = (event_1 if old else event_2)(each.request(TARGET))

    assert judged(send(event | changed), send(event).events) in {"refused", "the same"}


@SHORT
@given(st.text(st.characters(codec="utf-8"), max_size=300), st.sampled_from(["", "x=1"]))
@example("\0\x1b[31m\u2028]]></Response><Redirect>http://x</Redirect>\u202e=cmd|' /C calc'!A0 ${jndi:x} {{7*7}}", "")
def test_what_people_write_arrives_as_they_wrote_it(send: Send, text: str, query: str) -> None:
    """And nothing of it in the answer."""
    fields = {**GENUINE[0].fields, "Body": text}
    outcome = send(event_2(Webhook(name="text", fields=fields, query=query).request(TARGET)))

    assert ACCEPTED == outcome.answer
    assert [(text, text)] == [(d["parameters"]["Body"], d["message"]["body"]) for _, d in outcome.events]


@SHORT
@given(
    st.dictionaries(st.sampled_from(list(GENUINE[1].fields)) | st.text(max_size=9), st.text(max_size=40), max_size=25),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=40),
    st.sampled_from(["GET", "POST"]),
)
def test_nothing_that_is_signed_is_a_fault(send: Send, fields: dict[str, str], query: str, method: str) -> None:
    """Also what Twilio would never sign is accepted or refused."""
    form = posted(GENUINE[0].request(TARGET), tuple(({"AccountSid": ACCOUNT_SID} | fields).items()))
    request = signed(
        Request(host=form.host, path=form.path, method=method, query=query, headers=form.headers, body=form.body),
        TARGET,
    )
    outcome = send(event_2(request))

    assert outcome.answer in [ACCEPTED, REFUSED[403]]
    assert (outcome.answer == ACCEPTED) == (len(outcome.events) == 1)


# What is left open


@pytest.mark.parametrize(
    ("fields", "others"),
    [
        # A new parameter of Twilio's: where its name ends and its value begins.
        ({**GENUINE[0].fields, "NewNamed": "value"}, {**GENUINE[0].fields, "NewNamedv": "alue"}),
        # WhatsApp's optional parameters after a text, if the text's writer also holds the signed request.
        (
            {**GENUINE[3].fields, "Body": "noButtonTextYes"},
            {**GENUINE[3].fields, "Body": "no", "ButtonText": "Yes"},
        ),
    ],
    ids=["new parameter", "WhatsApp"],
)
def test_what_no_reader_of_the_text_can_tell(send: Send, fields: dict[str, str], others: dict[str, str]) -> None:
    """The README says so; here stands how far it goes: what is required, and who wrote it, is certain."""
    genuine = Webhook(name="left", fields=fields).request(TARGET)
    other = posted(genuine, tuple(({"AccountSid": ACCOUNT_SID} | others).items()))
    outcome = send(event_2(other))
    sure = ("sid", "from", "to", "status")

    assert verifies(other, TARGET)
    assert ACCEPTED == outcome.answer
    assert [fields[name] for name in ("MessageSid", "From", "To", "SmsStatus")] == [
        outcome.events[0][1]["message"][name] for name in sure
    ]
