"""Mutants of genuine webhooks: the first reading of a text that Twilio signed stands, and any other is refused."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
import webhook
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twilio_connector.api import client
from twilio_connector.api.connections import Connections

from tests import mutants
from tests.aws_wire import AwsWire
from tests.mutants import (
    CLASSES,
    GENUINE,
    OTHER_SID,
    SAME_TEXT,
    SIGNATURE,
    Request,
    Target,
    Webhook,
    event_1,
    event_2,
    genuine_of,
    keeps_text,
    names_sid,
    posted,
    says_the_same,
    shapes,
    signed,
    twins,
    with_query,
)
from tests.unit.conftest import ACCOUNT_SID, AUTH_TOKEN

COUNT = 1000  # mutants of each class
TARGET = Target("https://hook.example", ACCOUNT_SID, AUTH_TOKEN)
REFUSED = {
    status: {"statusCode": status, "headers": {"Content-Type": "application/json"}, "body": body}
    for status, body in {403: '{"message":"Forbidden"}', 413: '{"message":"Content Too Large"}'}.items()
}
ACCEPTED = {"statusCode": 200, "headers": {"Content-Type": "text/xml"}, "body": "<Response/>"}

type Seen = list[tuple[str, dict[str, Any]]]


class Outcome(NamedTuple):
    """The answer to a request, its events without their time, and whether anything was written."""

    answer: dict[str, Any]
    events: Seen
    wrote: bool

    def __str__(self) -> str:
        """Return the outcome in a word, such as `refused` or `published`."""
        if self.answer in REFUSED.values() and not self.events:
            return "refused"
        if self.answer != ACCEPTED:
            return f"answered {self.answer}, published {self.events}"
        if not self.events:
            return "a repeat"
        marks = {detail.get("reading") for _, detail in self.events}
        return {frozenset({None}): "published", frozenset({"ambiguous"}): "ambiguous"}.get(frozenset(marks), f"{marks}")


class Hook:
    """The webhook's handler with a fake AWS."""

    def __init__(self, wire: AwsWire, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._wire = wire
        self._context = context
        self._monkeypatch = monkeypatch

    def __call__(self, sent: Any) -> Outcome:
        """Pass an event to the handler, and return the outcome."""
        self._wire.calls.clear()
        if len(client.CONNECTIONS._strangers) > 10:
            # The limit on unknown connections is reset, because it must not be the reason for a refusal.
            self._monkeypatch.setattr(client, "CONNECTIONS", Connections())
        answer = webhook.handler(sent, self._context)
        wrote = any(self._wire.count(operation) for operation in ("PutItem", "UpdateItem", "SendMessage"))
        return Outcome(answer, [_seen(entry) for entry in self._wire.entries], wrote)

    def anew(self, sent: Any) -> Outcome:
        """Pass an event to the handler after all stored items are deleted, and return the outcome."""
        self._wire.deliveries.clear()
        self._wire.items.clear()
        return self(sent)


@pytest.fixture
def hook(aws_wire: AwsWire, context: Any, monkeypatch: pytest.MonkeyPatch) -> Hook:
    """Return the handler, with a second connection named `two`."""
    aws_wire.secrets["twilio/two"] = json.dumps({"account_sid": ACCOUNT_SID, "auth_token": "2" * 32})
    return Hook(aws_wire, context, monkeypatch)


def _seen(entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    detail = json.loads(entry["Detail"])
    del detail["received_at"]
    return entry["DetailType"], detail


def events_of(request: Request, number: int) -> Any:
    """Return the event of a request; every third has payload format 1.0."""
    return (event_1 if number % 3 == 2 else event_2)(request)


@pytest.mark.exhaustive
def test_a_genuine_webhook_is_accepted_however_it_arrives(hook: Hook) -> None:
    """A genuine webhook gives the same events in each form in which it may arrive.

    The forms differ in payload format, standard port, and the order and encoding of fields.
    """
    outcomes = {}
    for each in [*GENUINE, *with_query(GENUINE)]:
        first = hook.anew(event_2(each.request(TARGET)))
        others = [hook.anew(event) for request in twins(each, TARGET) for event in _events(request)]
        said = [[(name, detail | {"deduplication_id": ""}) for name, detail in one.events] for one in (first, *others)]
        outcomes[each.name, each.query] = str(first) == "published" and said == [said[0]] * len(said)

    assert {} == {name: accepted for name, accepted in outcomes.items() if not accepted}


@pytest.mark.exhaustive
def test_what_arrives_otherwise_is_a_repeat(hook: Hook) -> None:
    """A webhook that arrives again in another form is a repeat: it is the same reading and the same event."""
    outcomes = {}
    for each in [*GENUINE, *with_query(GENUINE)]:
        genuine = each.request(TARGET)
        hook.anew(event_2(genuine))
        same = [request for request in twins(each, TARGET) if says_the_same(request, genuine)]
        again = {str(hook(event)) for request in same for event in _events(request)}
        outcomes[each.name, each.query] = again

    assert {} == {name: again for name, again in outcomes.items() if again != {"a repeat"}}


def _events(request: Request) -> Iterator[dict[str, Any]]:
    for event in (event_1, event_2):
        yield event(request, binary=False)
        yield event(request, binary=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CLASSES)
def test_after_the_genuine_webhook_no_mutant_is_another_event(name: str, hook: Hook) -> None:
    """After a genuine webhook, mutants with another text or reading are refused, and its repeats are still accepted.

    If the text has no SID, another reading of it is published with the mark `ambiguous`.
    """
    webhooks = genuine_of(name, ACCOUNT_SID)
    requests = {each.name: each.request(TARGET) for each in webhooks}
    firsts = {each: str(hook(event_2(request))) for each, request in requests.items()}
    results: Counter[str] = Counter()
    wrong = []
    for number, (each, request) in enumerate(mutants.mutants(name, TARGET, webhooks, count=COUNT)):
        genuine = requests[each.name]
        allowed = {"refused"}
        if says_the_same(request, genuine):
            allowed.add("a repeat")
        elif keeps_text(request, TARGET) and not names_sid(genuine):
            allowed |= {"ambiguous", "a repeat"}  # a repeat of an earlier ambiguous reading
        outcome = hook(events_of(request, number))
        results[str(outcome)] += 1
        if str(outcome) not in allowed:
            wrong.append((each.name, request, outcome))
    repeats = {str(hook(event_2(request))) for request in requests.values()}

    assert {"published"} == set(firsts.values())
    assert [] == wrong[:3], Counter(each for each, *_ in wrong)
    assert {"a repeat"} == repeats
    assert COUNT == results.total()
    assert results["refused"] >= COUNT * 0.6


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CLASSES)
def test_before_the_genuine_webhook_one_reading_is_published(
    name: str, hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a genuine webhook, a mutant with another text is refused and not stored; of two readings one is published.

    If the text has no SID, both readings are published, and the second has the mark `ambiguous`.
    """
    webhooks = genuine_of(name, ACCOUNT_SID)
    requests = {each.name: each.request(TARGET) for each in webhooks}
    expected = {each: hook.anew(event_2(request)).events for each, request in requests.items()}
    results: Counter[str] = Counter()
    wrong = []
    for number, (each, request) in enumerate(mutants.mutants(name, TARGET, webhooks, count=COUNT)):
        genuine = requests[each.name]
        outcome = hook.anew(events_of(request, number))
        end = _end(hook, request, genuine, outcome, expected[each.name])
        results[end] += 1
        if end not in ENDS:
            wrong.append((each.name, request, end))
    with capsys.disabled():
        sys.stdout.write(f"\n  {name:>10}: " + ", ".join(f"{results[end]} {end}" for end in ENDS if results[end]))

    assert [] == wrong[:3], Counter(each for each, *_ in wrong)
    assert COUNT == results.total()
    kept = sum(results[end] for end in (UNREADABLE, FIRST, AMBIGUOUS))
    assert kept >= COUNT * SAME_TEXT.get(name, 0)


UNSIGNED = "refused by the signature"
SAME = "repeats in another spelling"
UNREADABLE = "refused with the signed text kept, the genuine one published"
FIRST = "published in place of the genuine one, which was refused"
AMBIGUOUS = "without a SID: both published, the second marked"
ENDS = (UNSIGNED, SAME, UNREADABLE, FIRST, AMBIGUOUS)


def _end(hook: Hook, request: Request, genuine: Request, outcome: Outcome, expected: Seen) -> str:
    """Deliver the genuine request after a mutant, unless that has another text, and return the outcome of both."""
    kept = keeps_text(request, TARGET)
    if str(outcome) == "refused" and not kept:
        return "refused, but written" if outcome.wrote else UNSIGNED
    after = hook(event_2(genuine))
    both = (str(outcome), str(after))
    if says_the_same(request, genuine) and outcome.events == expected and both == ("published", "a repeat"):
        return SAME
    if kept and both == ("refused", "published") and after.events == expected:
        return UNREADABLE
    if kept and both == ("published", "refused") and names_sid(genuine):
        return FIRST
    if kept and both == ("published", "ambiguous") and not names_sid(genuine):
        return AMBIGUOUS
    return f"{both}"


@pytest.mark.exhaustive
def test_no_shape_of_event_is_another_event(hook: Hook) -> None:
    """After a genuine webhook, events with missing, mistyped or non-Unicode fields are refused or are repeats of it."""
    webhooks = [each for each in genuine_of("shape", ACCOUNT_SID) if names_sid(each.request(TARGET))]
    for each in webhooks:
        hook(event_2(each.request(TARGET)))
    results: Counter[str] = Counter()
    wrong = []
    for each, event in shapes(TARGET, webhooks, count=COUNT):
        outcome = hook(event)
        results[str(outcome)] += 1
        if str(outcome) not in {"refused", "a repeat"}:
            wrong.append((each.name, event, outcome))

    assert [] == wrong[:3]
    assert COUNT == results.total()
    # Many fields of an event are not read, such as all headers but three.
    assert results["refused"] >= COUNT * 0.3


# Known forgeries: an attacker makes another request from a signed one that contains the attacker's own text

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
    # Twilio may send the text before the account's SID.
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
    """Return a genuine message, and a forged one whose last field contains the rest of the genuine text."""
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


FORGERIES = pytest.mark.parametrize(
    "forgery",
    [_form_as_get, _form_as_json, _get_as_form, _get_with_fragment, _get_as_json, _json_as_get, _swallowed],
)


@FORGERIES
def test_a_forgery_is_refused(hook: Hook, forgery: Callable[[], tuple[Request, Request]]) -> None:
    """After the genuine request, a forgery is refused.

    Its signature is valid for the URL before `#` and the fields.
    """
    genuine, forged = forgery()
    outcomes = [str(hook(event_2(each))) for each in (genuine, forged, genuine)]

    assert keeps_text(genuine, TARGET)
    assert keeps_text(replace(forged, query=forged.query.partition("#")[0]), TARGET)
    assert ["published", "refused", "a repeat"] == outcomes


@FORGERIES
def test_a_forgery_that_comes_first_is_all_there_is(hook: Hook, forgery: Callable[[], tuple[Request, Request]]) -> None:
    """If a forgery comes first, either it or the genuine request is published, and the other one is refused."""
    genuine, forged = forgery()
    outcomes = [str(hook(event_2(each))) for each in (forged, genuine)]

    assert outcomes in [["published", "refused"], ["refused", "published"]]


# Random input

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
NAMED = [each for each in GENUINE if names_sid(each.request(TARGET))]
SHORT = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)


@pytest.mark.exhaustive
@SHORT
@given(JSON | st.dictionaries(st.sampled_from(SEEN_BY_THE_HANDLER), JSON))
def test_no_event_is_a_fault(hook: Hook, event: Any) -> None:
    """Random events are refused, and none causes an error."""
    assert "refused" == str(hook(event))


@pytest.mark.exhaustive
@SHORT
@given(st.sampled_from(NAMED), st.dictionaries(st.sampled_from(SEEN_BY_THE_HANDLER), JSON, max_size=2), st.booleans())
def test_no_field_of_an_event_is_a_fault(hook: Hook, each: Webhook, changed: dict[str, Any], old: bool) -> None:  # noqa: FBT001 hypothesis's own
    """After a genuine event, the same event with random fields is refused or is a repeat, and none causes an error."""
    event = (event_1 if old else event_2)(each.request(TARGET))
    hook.anew(event)

    assert str(hook(event | changed)) in {"refused", "a repeat"}


@pytest.mark.exhaustive
@SHORT
@given(st.text(st.characters(codec="utf-8"), max_size=300), st.sampled_from(["", "x=1"]))
@example("\0\x1b[31m\u2028]]></Response><Redirect>http://x</Redirect>\u202e=cmd|' /C calc'!A0 ${jndi:x} {{7*7}}", "")
def test_what_people_write_arrives_as_they_wrote_it(hook: Hook, text: str, query: str) -> None:
    """The text of an SMS is published exactly as it was written, and the answer contains nothing of it."""
    fields = {**GENUINE[0].fields, "Body": text}
    outcome = hook.anew(event_2(Webhook(name="text", fields=fields, query=query).request(TARGET)))

    assert ACCEPTED == outcome.answer
    assert [(text, text)] == [(d["parameters"]["Body"], d["message"]["body"]) for _, d in outcome.events]


@pytest.mark.exhaustive
@SHORT
@given(
    st.dictionaries(st.sampled_from(list(GENUINE[1].fields)) | st.text(max_size=9), st.text(max_size=40), max_size=25),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters="#"), max_size=40),
    st.sampled_from(["GET", "POST"]),
)
def test_whatever_is_signed_is_published(hook: Hook, fields: dict[str, str], query: str, method: str) -> None:
    """Every signed request is published, even one that Twilio would never sign."""
    form = posted(GENUINE[0].request(TARGET), tuple(({"AccountSid": ACCOUNT_SID} | fields).items()))
    request = replace(form, method=method, query=query, body=form.body if method == "POST" else b"")
    outcome = hook.anew(event_2(signed(request, TARGET)))

    assert ("published", 1) == (str(outcome), len(outcome.events))
