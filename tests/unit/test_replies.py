"""Tests of replies: Twilio gets the TwiML of the user's function or text, and an empty response if that fails."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import webhook
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twilio_connector.aws import client
from twilio_connector.deadline import Deadline
from twilio_connector.publishing.event import Event
from twilio_connector.webhooks import replies

from tests.aws_wire import LOST, AwsWire
from tests.conftest import Context
from tests.mutants import GENUINE, SIGNATURE, Target, Webhook, event_2
from tests.unit.conftest import ACCOUNT_SID, AUTH_TOKEN, Clock, Log

FUNCTION = "arn:aws:lambda:us-east-1:123456789012:function:replies:live"
PARAMETER = "reply"
TARGET = Target("https://hook.example", ACCOUNT_SID, AUTH_TOKEN)
BY_NAME = {each.name: each for each in GENUINE}
SMS = BY_NAME["plain"]
NOTHING = "<Response/>"
TWIML = '<?xml version="1.0" encoding="UTF-8"?>\n<Response><Message>Grüße 👋</Message></Response>'
EVENT = Event("Message Received", {"account_sid": ACCOUNT_SID, "deduplication_id": "id", "parameters": {}})

type Counted = Callable[[str], float]
type Ask = Callable[..., str]
type Answered = tuple[dict[str, str], bytes]


@pytest.fixture(autouse=True)
def _started(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:  # noqa: ARG001 by which the setting is kept
    """Start as in a new container, which has not read a setting yet."""
    monkeypatch.setattr(replies, "_settings", {})
    monkeypatch.setenv("REPLY_PARAMETER", PARAMETER)


@pytest.fixture
def ask(aws_wire: AwsWire) -> Ask:
    """Return a function that asks for a reply; the setting is a function's ARN."""
    aws_wire.parameters[PARAMETER] = f"{FUNCTION}\n"

    def ask(event: Event = EVENT, seconds: float = 30, *, is_call: bool = False) -> str:
        return replies.reply(event, Deadline(seconds), is_call=is_call)

    return ask


def posted(each: Webhook) -> dict[str, Any]:
    """Return the webhook's answer to a delivery."""
    return webhook.handler(event_2(each.request(TARGET)), Context())


def returns(value: Any) -> Callable[[Any], Answered]:
    """Return a reply function that returns this value."""
    return lambda _: ({}, json.dumps(value).encode())


def asked(wire: AwsWire) -> list[dict[str, Any]]:
    """Return the invocations of the reply function."""
    return [body for called, body in wire.calls if called == "Invoke"]


# The reply function


@pytest.mark.usefixtures("ask")
def test_a_function_is_asked_with_the_event(aws_wire: AwsWire) -> None:
    """The function gets the event in EventBridge's shape, after the event was published."""
    answer = posted(SMS)
    ((entry,), (call,)) = aws_wire.entries, asked(aws_wire)

    assert f"/2015-03-31/functions/{FUNCTION}/invocations" == call["path"].replace("%3A", ":")
    assert {"source": "twilio", "detail-type": "Message Received", "detail": json.loads(entry["Detail"])} == call[
        "payload"
    ]
    assert SMS.form(TARGET) == call["payload"]["detail"]["parameters"]
    names = [called for called, _ in aws_wire.calls]
    assert names.index("PutEvents") < names.index("Invoke")
    assert NOTHING == answer["body"]


@pytest.mark.parametrize(
    "twiml",
    [
        TWIML,
        "<Response/>",
        "<Response></Response>",
        "<Response><Redirect>https://x.example/?a=1&amp;b=2</Redirect></Response>\n<!-- end -->",
        '<!DOCTYPE Response [<!ENTITY a "b">]><Response>&a;</Response>',
        "<Response>" + "x" * (64 * 1024 - len("<Response></Response>")) + "</Response>",
        "<Response>" + "é" * (32 * 1024 - 11) + "</Response>",
    ],
    ids=["declared", "short", "empty", "redirect", "entity", "64 KB", "64 KB in two bytes each"],
)
def test_twiml_is_returned_as_it_is(ask: Ask, aws_wire: AwsWire, counted: Counted, twiml: str) -> None:
    """A function's TwiML is returned unchanged, because only Twilio interprets it."""
    aws_wire.function = returns(twiml)

    assert twiml == ask()
    assert 0 == counted("RepliesFailed")


@pytest.mark.usefixtures("ask")
def test_twilio_gets_the_twiml(aws_wire: AwsWire) -> None:
    """Twilio gets the TwiML as XML, because it would send plain text to the customer."""
    aws_wire.function = returns(TWIML)

    assert {"statusCode": 200, "headers": {"Content-Type": "text/xml"}, "body": TWIML} == posted(SMS)


def test_a_function_may_have_nothing_to_say(ask: Ask, aws_wire: AwsWire, counted: Counted, log: Log) -> None:
    """A function that returns null gives an empty response, which is not a failure."""
    aws_wire.function = returns(None)

    assert NOTHING == ask()
    assert (0, []) == (counted("RepliesFailed"), log())


FAILURES: dict[str, tuple[Callable[[Any], Answered], str]] = {
    "error": (lambda _: ({"X-Amz-Function-Error": "Unhandled"}, b'{"errorMessage":"MARK"}'), "the function failed"),
    "handled": (lambda _: ({"X-Amz-Function-Error": "Handled"}, json.dumps(TWIML).encode()), "the function failed"),
    "no JSON": (lambda _: ({}, b"<Response>MARK</Response>"), "the function returned no JSON"),
    "nothing": (lambda _: ({}, b""), "the function returned no JSON"),
    "no UTF-8": (lambda _: ({}, b'"MARK\xff"'), "the function returned no JSON"),
    "no Unicode": (lambda _: ({}, b'"MARK\\ud800"'), "the function returned no JSON"),
    "depth": (lambda _: ({}, b"[" * 100_000), "the function returned no JSON"),
    "object": (returns({"body": "MARK"}), "the function returned neither a text nor null"),
    "list": (returns([TWIML]), "the function returned neither a text nor null"),
    "number": (returns(1), "the function returned neither a text nor null"),
    "false": (returns(False), "the function returned neither a text nor null"),  # noqa: FBT003 what it returns
    "text": (returns("MARK"), "the TwiML is not an XML document with a Response"),
    "empty": (returns(""), "the TwiML is not an XML document with a Response"),
    "open": (returns("<Response><Message>MARK</Response>"), "the TwiML is not an XML document with a Response"),
    "two": (returns("<Response/><Response/>"), "the TwiML is not an XML document with a Response"),
    "other root": (returns("<html><Response/></html>"), "the TwiML is not an XML document with a Response"),
    "lower case": (returns("<response/>"), "the TwiML is not an XML document with a Response"),
    "before": (returns(" <?xml version='1.0'?><Response/>"), "the TwiML is not an XML document with a Response"),
    "control character": (returns("<Response>\x01</Response>"), "the TwiML is not an XML document with a Response"),
    "unknown entity": (returns("<Response>&mark;</Response>"), "the TwiML is not an XML document with a Response"),
    "large": (
        returns("<Response>" + "x" * (64 * 1024 - len("<Response></Response>") + 1) + "</Response>"),
        "the TwiML has more than 64 KB",
    ),
    "large in bytes": (returns("<Response>" + "é" * (32 * 1024) + "</Response>"), "the TwiML has more than 64 KB"),
}


@pytest.mark.parametrize(("function", "reason"), FAILURES.values(), ids=FAILURES)
def test_what_is_no_twiml_is_not_passed_on(
    ask: Ask, aws_wire: AwsWire, counted: Counted, log: Log, function: Callable[[Any], Answered], reason: str
) -> None:
    """A result that is not valid TwiML is not returned to Twilio, because Twilio would tell the customer.

    One log line has the reason, and nothing of the result.
    """
    aws_wire.function = function

    assert NOTHING == ask()
    assert 1 == counted("RepliesFailed")
    (line,) = log()
    assert ("ERROR", "no reply", reason) == (line["level"], line["message"], line["reason"])
    assert "MARK" not in json.dumps(line)


@pytest.mark.parametrize(
    "failure",
    [
        (403, "AccessDeniedException"),
        (404, "ResourceNotFoundException"),
        (429, "TooManyRequestsException"),
        (500, "ServiceException"),
        LOST,
    ],
    ids=repr,
)
@pytest.mark.usefixtures("delays")
def test_a_function_that_cannot_be_asked_is_asked_once(
    ask: Ask, aws_wire: AwsWire, counted: Counted, log: Log, failure: tuple[int, str]
) -> None:
    """A failed invocation is not retried, because the function may have sent something itself.

    Twilio gets an empty response, because the event is published.
    """
    aws_wire.failures["Invoke"] = [failure]

    assert NOTHING == ask()
    assert (1, 1) == (aws_wire.count("Invoke"), counted("RepliesFailed"))
    assert ["no reply"] == [line["message"] for line in log()]


@pytest.mark.parametrize("part", ["all", "rest"])
def test_a_function_that_is_slow_is_not_waited_for(
    ask: Ask, aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, counted: Counted, part: str
) -> None:
    """The webhook gives up on a function that is slow or stops in mid-answer, because Twilio waits only 15 seconds."""
    goes_on = threading.Event()

    def wait(_: Any) -> Answered:
        if part == "rest":
            return {"Content-Length": "1000"}, json.dumps(TWIML).encode()
        goes_on.wait(10)
        return {}, json.dumps(TWIML).encode()

    monkeypatch.setattr(client, "REPLY_SECONDS", 0.2)
    aws_wire.function = wait
    try:
        assert NOTHING == ask()
    finally:
        goes_on.set()
    assert 1 == counted("RepliesFailed")


@pytest.mark.usefixtures("ask")
def test_twilio_is_answered_though_an_answer_breaks_off(aws_wire: AwsWire) -> None:
    """Twilio gets an empty response if the function's answer breaks off, because the event is published."""
    aws_wire.function = lambda _: ({"Content-Length": "1000", "Connection": "close"}, b'"<Resp')

    assert {"statusCode": 200, "headers": {"Content-Type": "text/xml"}, "body": NOTHING} == posted(SMS)
    assert 1 == len(aws_wire.entries)


@pytest.mark.parametrize(
    ("seconds", "parameters", "calls"),
    [(6.9, 0, 0), (8.9, 1, 0), (9.5, 1, 1)],
    ids=["to read the setting", "to ask", "enough"],
)
def test_who_has_no_time_to_ask_does_not(
    ask: Ask, aws_wire: AwsWire, counted: Counted, seconds: float, parameters: int, calls: int
) -> None:
    """Without enough time the function is not invoked: a webhook that Lambda kills would not answer Twilio at all."""
    assert NOTHING == ask(seconds=seconds)
    assert (parameters, calls) == (aws_wire.count("GetParameter"), aws_wire.count("Invoke"))
    assert (1 - calls) == counted("RepliesFailed")


# Which deliveries get a reply


@pytest.mark.usefixtures("ask")
@pytest.mark.parametrize("name", [each.name for each in GENUINE])
def test_what_wants_a_reply_is_asked_for(aws_wire: AwsWire, name: str) -> None:
    """Only inbound messages and calls get a reply. Twilio answers opt-outs itself, and ignores other replies."""
    aws_wire.function = returns(TWIML)
    no_reply = {"opt-out", "status", "failed", "debugger", "GET status", "Event Streams", "JSON object"}

    assert (NOTHING if name in no_reply else TWIML) == posted(BY_NAME[name])["body"]
    assert (name not in no_reply) == aws_wire.count("Invoke") == aws_wire.count("GetParameter")


@pytest.mark.usefixtures("ask")
def test_what_was_published_before_is_answered_again(aws_wire: AwsWire) -> None:
    """A duplicate delivery is answered again, because Twilio did not receive the first answer."""
    aws_wire.function = returns(TWIML)

    assert [TWIML] * 2 == [posted(SMS)["body"] for _ in range(2)]
    assert 1 == len(aws_wire.entries)


@pytest.mark.usefixtures("ask")
def test_what_is_refused_is_not_answered(aws_wire: AwsWire) -> None:
    """The function is not invoked for a delivery whose signature is refused."""
    request = SMS.request(TARGET).with_header(SIGNATURE, "x")

    assert 403 == webhook.handler(event_2(request), Context())["statusCode"]
    assert 0 == aws_wire.count("Invoke")


@pytest.mark.usefixtures("ask", "delays")
def test_what_nobody_took_is_not_answered(aws_wire: AwsWire) -> None:
    """A delivery that neither EventBridge nor SQS took gets 503 and no reply, so that Twilio retries it."""
    aws_wire.failures |= {"PutEvents": [(400, "AccessDeniedException")] * 2, "SendMessage": [(400, "x")]}

    assert 503 == posted(SMS)["statusCode"]
    assert 0 == aws_wire.count("Invoke")


def test_without_a_setting_nobody_is_asked(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the setting's parameter, nothing is read and no function is invoked."""
    monkeypatch.setenv("REPLY_PARAMETER", "")

    assert NOTHING == replies.reply(EVENT, Deadline(30), is_call=False)
    assert [] == aws_wire.calls


# The fixed text


def texted(wire: AwsWire, text: str, event: Event = EVENT, *, is_call: bool = False) -> str:
    """Return the reply if the setting is a text."""
    wire.parameters[PARAMETER] = f"\n{text}"
    return replies.reply(event, Deadline(30), is_call=is_call)


def test_a_message_is_answered_with_the_text(aws_wire: AwsWire) -> None:
    """A message is answered with the text, and no function is invoked."""
    assert "<Response><Message>Thanks, we call you back.</Message></Response>" == texted(
        aws_wire, "Thanks, we call you back."
    )
    assert 0 == aws_wire.count("Invoke")


def test_a_text_is_never_markup(aws_wire: AwsWire) -> None:
    """The text is escaped, so that it is never markup and never ends the message."""
    assert "<Response><Message>a &lt; b &amp;&amp; c &gt; d ]]&gt;&lt;/Message&gt;</Message></Response>" == texted(
        aws_wire, "a < b && c > d ]]></Message>"
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8")))
def test_any_text_makes_a_message(aws_wire: AwsWire, text: str) -> None:
    """Any text gives valid TwiML. Characters that XML does not allow, even escaped, are removed."""
    replies._settings.clear()
    reply = texted(aws_wire, text)
    has = "".join(each for each in text if each in "\t\n\r" or each >= " ").replace("\ufffe", "").replace("\uffff", "")
    has = has.strip().replace("\r\n", "\n").replace("\r", "\n")

    assert [has] * bool(has.strip()) == [message.text for message in ET.fromstring(reply)]  # noqa: S314 our own


def test_a_text_may_have_lines(aws_wire: AwsWire) -> None:
    """A text may have several lines: all of the setting's lines but the first, which is for the function's ARN."""
    assert "<Response><Message>One\n\nTwo</Message></Response>" == texted(aws_wire, " One\n\nTwo\n")


@pytest.mark.parametrize("text", ["", " ", "\n", "\x00", "\ufffe"], ids=repr)
def test_a_text_without_characters_is_none(aws_wire: AwsWire, counted: Counted, text: str) -> None:
    """A text without characters gives an empty response, because Twilio does not send empty messages."""
    assert NOTHING == texted(aws_wire, text)
    assert 0 == counted("RepliesFailed")


def test_a_call_is_not_answered_with_the_text(aws_wire: AwsWire) -> None:
    """A call gets an empty response, because the text is for messages."""
    call = EVENT._replace(detail_type="Webhook Received")

    assert NOTHING == texted(aws_wire, "Thanks", call, is_call=True)


def test_the_function_goes_before_the_text(ask: Ask, aws_wire: AwsWire) -> None:
    """The function takes precedence over the text, even if the function fails: the text would say something else."""
    aws_wire.parameters[PARAMETER] = f"{FUNCTION}\nThanks"
    aws_wire.function = returns(TWIML)
    first = ask()
    aws_wire.failures["Invoke"] = [(403, "AccessDeniedException")]

    assert (TWIML, NOTHING) == (first, ask())


# The setting


def test_a_setting_is_kept_for_five_minutes(aws_wire: AwsWire, clock: Clock) -> None:
    """A setting is kept for five minutes. Then it is read again, and a change takes effect."""
    counts, texts = [], []
    for seconds, text in ((0, "a"), (299, "b"), (1, "c"), (299, "d"), (1, "")):
        clock.go_on(seconds)
        texts.append(texted(aws_wire, text))
        counts.append(aws_wire.count("GetParameter"))

    assert [1, 1, 2, 2, 3] == counts
    assert [*"aacc"] == [ET.fromstring(each)[0].text for each in texts[:-1]]  # noqa: S314 our own
    assert NOTHING == texts[-1]


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("failure", [(400, "ThrottlingException"), (500, "x"), (400, "AccessDeniedException"), LOST])
def test_an_old_setting_is_better_than_none(
    aws_wire: AwsWire, clock: Clock, counted: Counted, failure: tuple[int, str]
) -> None:
    """While Systems Manager is unavailable, the old setting is used. Afterwards, the setting is read again."""
    texted(aws_wire, "old")
    clock.go_on(1000)
    aws_wire.failures["GetParameter"] = [failure] * 2
    while_away = texted(aws_wire, "new")
    aws_wire.failures.clear()

    assert ["old", "new"] == [ET.fromstring(each)[0].text for each in (while_away, texted(aws_wire, "new"))]  # noqa: S314 our own
    assert 0 == counted("RepliesFailed")


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("failure", [(500, "x"), (400, "AccessDeniedException"), (400, "ParameterNotFound"), LOST])
def test_without_a_setting_that_can_be_read_nothing_is_said(
    aws_wire: AwsWire, counted: Counted, log: Log, failure: tuple[int, str]
) -> None:
    """If the setting cannot be read, Twilio gets an empty response. The next delivery reads it again."""
    aws_wire.failures["GetParameter"] = [failure] * 2

    assert NOTHING == texted(aws_wire, "Thanks")
    assert (1, ["no reply"]) == (counted("RepliesFailed"), [line["message"] for line in log()])
    aws_wire.failures.clear()
    assert NOTHING != texted(aws_wire, "Thanks")


def test_spaces_around_an_arn_are_nothing(ask: Ask, aws_wire: AwsWire) -> None:
    """Spaces around an ARN are ignored, because a person may have typed them."""
    aws_wire.parameters[PARAMETER] = f"  {FUNCTION} \r\nThanks"
    ask()

    assert [True] == [FUNCTION in each["path"].replace("%3A", ":") for each in asked(aws_wire)]


@pytest.mark.usefixtures("ask")
def test_a_hidden_message_wants_no_reply_of_a_status(aws_wire: AwsWire) -> None:
    """A status callback with an opt-out field gets no reply: the event's type decides, and anyone may set a field."""
    status = BY_NAME["status"]
    posted(replace(status, fields=status.fields | {"OptOutType": "STOP"}))

    assert 0 == aws_wire.count("Invoke")
