"""send_sms sends a message once, with the parameters that Twilio expects, and refuses invalid inputs before that."""

import ast
import importlib.metadata
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import send_sms
from send_sms import SendSms, handler
from twilio_connector.api.connections import Connection
from twilio_connector.errors import (
    ConnectorError,
    IdempotencyConflictError,
    InvalidInputError,
    OutcomeUnknownError,
    RecipientOptedOutError,
    SenderQueueFullError,
    SendInProgressError,
    TwilioRateLimitError,
    TwilioRejectedError,
)
from twilio_connector.messaging.idempotency import record_id
from twilio_connector.validation.model import Sender, fields

from tests.aws_wire import AwsWire
from tests.conftest import ROOT, Context, LoadEvent
from tests.faults import FaultServer, faults
from tests.unit.conftest import ACCOUNT_SID

TO = "+15005550006"
SERVICE = "MG" + "0" * 32
OTHER_SERVICE = "MG" + "1" * 32
CONTENT = "HX" + "0" * 32
APPLICATION = "AP" + "0" * 32
SMS: dict[str, Any] = {"to": TO, "from": "+15551234567", "message": "Hello"}
BY_SERVICE: dict[str, Any] = {"to": TO, "messaging_service_sid": SERVICE, "message": "Hello"}
MESSAGES = f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages.json"


def connection(**more: Any) -> Connection:
    """Return a connection with these fields."""
    return Connection(account_sid=ACCOUNT_SID, auth_token="0" * 32, **more)


def form(given: dict[str, Any], sender: Connection | None = None) -> dict[str, Any]:
    """Return the form for Twilio that send_sms makes from an input."""
    return SendSms.parse(given).form(sender or connection())


def refused(given: dict[str, Any], sender: Connection | None = None) -> dict[str, str]:
    """Return the fault messages of an invalid input, by field."""
    with pytest.raises(InvalidInputError) as refusal:
        form(given, sender)
    return {fault.field: fault.message for fault in refusal.value.faults}


# The form of each valid input


def sdk_parameters() -> set[str]:
    """Return the official SDK's names of a message's parameters, read from its source without running it."""
    source = importlib.metadata.distribution("twilio").locate_file("twilio/rest/api/v2010/account/message/__init__.py")
    tree = ast.parse(Path(str(source)).read_text())
    forms = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    names = [{str(key.value) for key in form.keys if isinstance(key, ast.Constant)} for form in forms]
    return next(keys for keys in names if {"To", "Body"} <= keys)


def test_every_parameter_of_the_official_sdk_has_its_input() -> None:
    """The input fields cover exactly the official SDK's message parameters; `send_at` also sets ScheduleType."""
    ours = {send_sms._parameter(name) for name in fields(SendSms) if name not in send_sms.CONNECTOR_FIELDS}

    assert sdk_parameters() == {*ours, "ScheduleType"}


def test_the_official_sdk_is_the_one_that_is_compared() -> None:
    """These tests and the benchmarks use the same version of the official SDK."""
    lock = (ROOT / "bench/baselines/official_sdk/requirements.txt").read_text()

    assert f"twilio=={importlib.metadata.version('twilio')} " in lock


@pytest.mark.parametrize(
    ("name", "value", "sent"),
    [
        (
            "status_callback",
            "https://example.com/callback?x=1#rc=2",
            {"StatusCallback": "https://example.com/callback?x=1#rc=2"},
        ),
        ("media_urls", ["https://example.com/a.png"], {"MediaUrl": ["https://example.com/a.png"]}),
        (
            "media_urls",
            ["https://example.com/a", "https://example.com/b"],
            {"MediaUrl": ["https://example.com/a", "https://example.com/b"]},
        ),
        ("send_at", "2030-01-31T10:00:00+01:00", {"SendAt": "2030-01-31T09:00:00Z", "ScheduleType": "fixed"}),
        ("validity_period", 1, {"ValidityPeriod": "1"}),
        ("validity_period", 36000, {"ValidityPeriod": "36000"}),
        ("smart_encoded", True, {"SmartEncoded": "true"}),
        ("smart_encoded", False, {"SmartEncoded": "false"}),
        ("shorten_urls", True, {"ShortenUrls": "true"}),
        ("shorten_urls", False, {"ShortenUrls": "false"}),
        ("send_as_mms", True, {"SendAsMms": "true"}),
        ("risk_check", "enable", {"RiskCheck": "enable"}),
        ("risk_check", "disable", {"RiskCheck": "disable"}),
        ("provide_feedback", True, {"ProvideFeedback": "true"}),
        ("attempt", 2, {"Attempt": "2"}),
        ("content_retention", "retain", {"ContentRetention": "retain"}),
        ("content_retention", "discard", {"ContentRetention": "discard"}),
        ("address_retention", "retain", {"AddressRetention": "retain"}),
        ("address_retention", "obfuscate", {"AddressRetention": "obfuscate"}),
        ("application_sid", APPLICATION, {"ApplicationSid": APPLICATION}),
        ("persistent_action", ["geo:1,2"], {"PersistentAction": ["geo:1,2"]}),
        ("fallback_from", "(202) 555-0143", {"FallbackFrom": "+12025550143"}),
        ("traffic_type", "free", {"TrafficType": "free"}),
        ("force_delivery", True, {"ForceDelivery": "true"}),
        ("max_price", 0.05, {"MaxPrice": "0.05"}),
        ("message_intent", "otp", {"MessageIntent": "otp"}),
        ("from", "Shop", {"From": "Shop"}),
        ("dry_run", True, {}),
        ("connection", "support", {}),
    ],
)
def test_an_option_has_twilios_name_and_spelling(name: str, value: object, sent: dict[str, Any]) -> None:
    """Each option has Twilio's name in the form. Booleans are words, numbers are digits, and lists stay lists."""
    expected = {"To": TO, "MessagingServiceSid": SERVICE, "Body": "Hello"} | sent

    assert expected == form(BY_SERVICE | {name: value})


@pytest.mark.parametrize("price", [0.0001, 0.00001, 1000000])
def test_a_price_is_written_in_digits(price: float) -> None:
    """A price is written without an exponent, which not every form parser accepts."""
    assert "e" not in form(SMS | {"max_price": price})["MaxPrice"]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (SMS, {"To": TO, "From": "+15551234567", "Body": "Hello"}),
        (
            {"to": "(202) 555-0143", "from": "202-555-0144", "message": "x"},
            {"To": "+12025550143", "From": "+12025550144", "Body": "x"},
        ),
        (
            {"to": "whatsapp:+15558675309", "from": "whatsapp:+15005550006", "message": "x"},
            {"To": "whatsapp:+15558675309", "From": "whatsapp:+15005550006", "Body": "x"},
        ),
        ({"to": "12345", "from": "123456", "message": " "}, {"To": "12345", "From": "123456", "Body": " "}),
        (
            {"to": TO, "from": "12345", "media_urls": ["https://example.com/a"]},
            {"To": TO, "From": "12345", "MediaUrl": ["https://example.com/a"]},
        ),
        ({"to": TO, "from": "12345", "content_sid": CONTENT}, {"To": TO, "From": "12345", "ContentSid": CONTENT}),
        (
            {"to": TO, "from": "12345", "content_sid": CONTENT, "content_variables": {"1": "é", "2": 3}},
            {"To": TO, "From": "12345", "ContentSid": CONTENT, "ContentVariables": '{"1":"é","2":"3"}'},
        ),
        (
            {"to": TO, "from": "12345", "content_sid": CONTENT, "content_variables": {}},
            {"To": TO, "From": "12345", "ContentSid": CONTENT, "ContentVariables": "{}"},
        ),
        (BY_SERVICE | {"from": "Shop"}, {"To": TO, "From": "Shop", "MessagingServiceSid": SERVICE, "Body": "Hello"}),
        (SMS | {"message": "x" * 1600}, {"To": TO, "From": "+15551234567", "Body": "x" * 1600}),
        (SMS | {"message": "😀" * 1600}, {"To": TO, "From": "+15551234567", "Body": "😀" * 1600}),
    ],
    ids=[
        "sms",
        "national",
        "channel",
        "short code",
        "mms",
        "content",
        "variables",
        "no variables",
        "both senders",
        "long",
        "emoji",
    ],
)
def test_a_message_is_what_the_input_says(given: dict[str, Any], sent: dict[str, Any]) -> None:
    """The form has the recipient, the sender and the content of the input."""
    assert sent == form(given)


@pytest.mark.parametrize(
    ("defaults", "sent"),
    [
        ({"default_from": Sender("+15551234567")}, {"From": "+15551234567"}),
        ({"default_messaging_service_sid": SERVICE}, {"MessagingServiceSid": SERVICE}),
        ({"default_messaging_service_sid": SERVICE, "default_from": Sender("Shop")}, {"MessagingServiceSid": SERVICE}),
    ],
    ids=["from", "service", "both"],
)
def test_the_connection_has_the_default_sender(defaults: dict[str, Any], sent: dict[str, str]) -> None:
    """Without a sender in the input, the connection's is used: the messaging service first, since it can do more."""
    assert {"To": TO, "Body": "Hello"} | sent == form({"to": TO, "message": "Hello"}, connection(**defaults))


@pytest.mark.parametrize(
    ("sender", "sent"),
    [
        ({"from": "Shop"}, {"From": "Shop"}),
        ({"messaging_service_sid": OTHER_SERVICE}, {"MessagingServiceSid": OTHER_SERVICE}),
    ],
    ids=["from", "service"],
)
def test_the_input_goes_before_the_default_sender(sender: dict[str, str], sent: dict[str, str]) -> None:
    """A sender in the input replaces the connection's default senders completely."""
    defaults = connection(default_from=Sender("12345"), default_messaging_service_sid=SERVICE)

    assert {"To": TO, "Body": "Hello"} | sent == form({"to": TO, "message": "Hello", **sender}, defaults)


def test_a_scheduled_message_goes_by_the_default_service() -> None:
    """A scheduled message needs a messaging service, and uses the connection's if the input has no sender."""
    given = {"to": TO, "message": "Hello", "send_at": "2030-01-31T09:00:00Z"}

    assert SERVICE == form(given, connection(default_messaging_service_sid=SERVICE))["MessagingServiceSid"]


# Invalid inputs


WHATSAPP = "whatsapp:+15558675309"


@pytest.mark.parametrize(
    ("given", "defaults", "field_name", "message"),
    [
        ({"to": WHATSAPP, "from": "+15551234567"}, {}, "from", "must have the same channel as to: whatsapp:…"),
        ({"to": WHATSAPP, "from": "Shop"}, {}, "from", "must have the same channel as to: whatsapp:…"),
        ({"to": WHATSAPP, "from": "12345"}, {}, "from", "must have the same channel as to: whatsapp:…"),
        ({"to": WHATSAPP, "from": "messenger:1"}, {}, "from", "must have the same channel as to: whatsapp:…"),
        ({"to": TO, "from": WHATSAPP}, {}, "to", "must have the same channel as from: whatsapp:…"),
        ({"to": TO, "from": "rcs:agent"}, {}, "to", "must have the same channel as from: rcs:…"),
        (
            {"to": WHATSAPP, "from": "+15551234567", "messaging_service_sid": SERVICE},
            {},
            "from",
            "must have the same channel as to: whatsapp:…",
        ),
        (
            {"to": WHATSAPP},
            {"default_from": Sender("+15551234567")},
            "from",
            "must have the same channel as to: whatsapp:…",
        ),
        (
            {"to": TO},
            {"default_from": Sender(WHATSAPP)},
            "to",
            "must have the same channel as the connection's default_from: whatsapp:…",
        ),
    ],
)
def test_addresses_of_two_channels_are_refused(
    given: dict[str, Any], defaults: dict[str, Any], field_name: str, message: str
) -> None:
    """Addresses of two channels are refused. Twilio would answer 21910, or send an SMS instead of a WhatsApp one."""
    assert {field_name: message} == refused(given | {"message": "x"}, connection(**defaults))


@pytest.mark.parametrize(
    "given",
    [
        {"to": WHATSAPP, "from": WHATSAPP},
        {"to": WHATSAPP, "messaging_service_sid": SERVICE},
        {"to": "rcs:+15558675309", "from": "rcs:agent"},
        {"to": TO, "from": "sim:DE" + "0" * 32},
        {"to": TO, "from": "Shop"},
    ],
)
def test_addresses_of_one_channel_are_sent(given: dict[str, Any]) -> None:
    """Addresses of one channel are sent unchanged. A messaging service finds the sender, and a SIM sends to numbers."""
    assert given["to"] == form(given | {"message": "x"})["To"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"from": "+15551234567"}, "cannot be combined with from; the messaging service chooses the first sender"),
        ({"fallback_from": "rcs:agent"}, "must be a number, a short code or a name, which can send SMS"),
    ],
    ids=["from", "channel"],
)
def test_a_fallback_that_twilio_refuses(more: dict[str, str], message: str) -> None:
    """A `fallback_from` is refused with `from`, or if it cannot send the SMS that replaces a failed RCS message."""
    assert {"fallback_from": message} == refused(BY_SERVICE | {"fallback_from": "+15551234567"} | more)


def test_variables_are_sent_as_texts() -> None:
    """Content variables are sent as strings, as Twilio requires. Numbers and booleans are written as in JSON."""
    given = {"to": TO, "from": "12345", "content_sid": CONTENT}
    variables = {"1": "é", "2": 3, "3": 0.5, "4": True, "5": -(10**30)}

    assert {"1": "é", "2": "3", "3": "0.5", "4": "true", "5": str(-(10**30))} == json.loads(
        form(given | {"content_variables": variables})["ContentVariables"]
    )


LARGE: dict[str, dict[str, Any]] = {
    "content_variables": {"content_sid": CONTENT, "content_variables": {str(n): "é" * 1000 for n in range(200)}},
    "persistent_action": {"message": "x", "persistent_action": ["x" * 1000] * 400},
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("more", [{}, {"idempotency_key": "key"}, {"dry_run": True}], ids=["", "key", "dry run"])
def test_what_the_ledger_cannot_hold_is_refused(
    twilio: FaultServer, aws_wire: AwsWire, context: Context, name: str, more: dict[str, Any]
) -> None:
    """An input that is too large for the ledger is refused before any call. The error names the largest field."""
    with pytest.raises(InvalidInputError) as refusal:
        handler({"to": TO, "from": "12345"} | LARGE[name] | more, context)

    assert [(name, "is too large: all fields together have at most 384 KB as JSON")] == list(refusal.value.faults)
    assert ([], []) == (twilio.requests, aws_wire.calls)


def test_the_largest_input_fits_the_ledger(twilio: FaultServer, aws_wire: AwsWire, context: Context) -> None:
    """The ledger item of the largest input, with all its attributes, stays below DynamoDB's limit of 400 KB."""
    twilio.script(faults.status(500))
    given: dict[str, Any] = {"to": TO, "from": "12345", "message": "\x00" * 1600, "idempotency_key": "k" * 128}
    given |= {"persistent_action": ["x" * 1000] * 381}
    with pytest.raises(OutcomeUnknownError):
        handler(given, context)
    item = next(iter(aws_wire.items.values()))
    size = sum(len(name) + sum(len(str(value).encode()) for value in typed.values()) for name, typed in item.items())

    assert 390_000 < size < 400 * 1024


NEED_SERVICE = {
    "send_at": "2030-01-31T09:00:00Z",
    "shorten_urls": True,
    "fallback_from": "+15551234567",
}


@pytest.mark.parametrize("name", NEED_SERVICE)
@pytest.mark.parametrize("sender", [{"from": "+15551234567"}, {}], ids=["from", "default from"])
def test_what_needs_a_messaging_service_is_refused_without(name: str, sender: dict[str, str]) -> None:
    """An option that needs a messaging service is refused with a sender from the input or from the connection."""
    given = {"to": TO, "message": "Hello", name: NEED_SERVICE[name], **sender}

    assert {name: "needs messaging_service_sid"} == refused(given, connection(default_from=Sender("12345")))


def test_all_that_need_a_messaging_service_are_told_at_once() -> None:
    """One error names all options that need a messaging service, and all other faults of the input."""
    given = {"to": TO, "from": "Shop", **NEED_SERVICE}

    assert {"message", *NEED_SERVICE} == refused(given).keys()


@pytest.mark.parametrize("sender", [{"from": "+15551234567"}, {}], ids=["from", "default from"])
def test_what_is_off_needs_no_messaging_service(sender: dict[str, str]) -> None:
    """`shorten_urls` may be false without a messaging service, because every sender can leave links unshortened."""
    given = {"to": TO, "message": "Hello", "shorten_urls": False, **sender}

    assert "false" == form(given, connection(default_from=Sender("12345")))["ShortenUrls"]


def test_without_any_sender_a_message_is_refused() -> None:
    """A message without any sender is refused, and the error names all three remedies."""
    assert {
        "from": "is required, unless messaging_service_sid is given: the connection has no default sender"
    } == refused({"to": TO, "message": "Hello"})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"to": TO}, {"message": "is required, unless there are media_urls or a content_sid"}),
        ({"message": "x"}, {"to": "is required"}),
        (SMS | {"message": None}, {"message": "is required, unless there are media_urls or a content_sid"}),
        (
            SMS | {"content_sid": CONTENT},
            {"message": "cannot be combined with content_sid, whose template is the message"},
        ),
        (
            SMS | {"content_sid": CONTENT, "media_urls": ["https://example.com/a"]},
            {
                "message": "cannot be combined with content_sid, whose template is the message",
                "media_urls": "cannot be combined with content_sid, whose template is the message",
            },
        ),
        (SMS | {"content_variables": {"1": "x"}}, {"content_variables": "needs content_sid"}),
        (SMS | {"on_unknown": "report"}, {"on_unknown": "needs idempotency_key"}),
        (SMS | {"on_unknown": "resend", "idempotency_key": None}, {"on_unknown": "needs idempotency_key"}),
        (SMS | {"body": "x"}, {"body": "is not known; did you mean message?"}),
        (SMS | {"mesage": "x"}, {"mesage": "is not known; did you mean message?"}),
        (SMS | {"schedule_type": "fixed"}, {"schedule_type": "is not known; did you mean send_at?"}),
    ],
)
def test_bad_combinations_are_refused(given: dict[str, Any], expected: dict[str, str]) -> None:
    """Missing, unknown and incompatible fields are refused, each with an error for its field."""
    assert expected == refused(given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("to", "Shop"),
        ("to", "nobody"),
        ("from", "TwelveLetter"),
        ("message", ""),
        ("message", "x" * 1601),
        ("message", 5),
        ("messaging_service_sid", "MG0"),
        ("media_urls", []),
        ("media_urls", ["https://example.com/a"] * 11),
        ("media_urls", ["ftp://example.com/a"]),
        ("media_urls", ["https://example.com/a b"]),
        ("media_urls", "https://example.com/a"),
        ("content_sid", "HX"),
        ("content_variables", '{"1": "x"}'),
        ("content_variables", {"1": {"2": "x"}}),
        ("content_variables", {"1": ["x"]}),
        ("content_variables", {"1": None}),
        ("content_variables", {"1": ""}),
        ("content_variables", {"1": float("nan")}),
        ("content_variables", ["x"]),
        ("status_callback", "example.com"),
        ("status_callback", "https://my_host.example.com/"),
        ("status_callback", "https://example.com/ "),
        ("status_callback", "javascript:alert()"),
        ("send_at", "2030-01-31T09:00:00"),
        ("send_at", "tomorrow"),
        ("validity_period", 0),
        ("validity_period", 36001),
        ("validity_period", "60"),
        ("smart_encoded", "true"),
        ("risk_check", "on"),
        ("attempt", 0),
        ("content_retention", "obfuscate"),
        ("address_retention", "discard"),
        ("application_sid", "AC" + "0" * 32),
        ("persistent_action", []),
        ("persistent_action", [""]),
        ("traffic_type", "paid"),
        ("message_intent", ""),
        ("message_intent", "one time password"),
        ("message_intent", "x" * 65),
        ("max_price", -1),
        ("max_price", float("nan")),
        ("max_price", float("inf")),
        ("dry_run", "yes"),
        ("idempotency_key", ""),
        ("idempotency_key", "x" * 129),
        ("idempotency_key", "a key"),
        ("idempotency_key", "key\n"),
        ("idempotency_key", "é"),
        ("idempotency_key", 5),
    ],
)
def test_a_wrong_value_is_refused(name: str, value: object) -> None:
    """An invalid value is refused with an error that names its field and no other."""
    given = BY_SERVICE | {name: value}
    if name.startswith("content_"):
        given = {"to": TO, "messaging_service_sid": SERVICE, "content_sid": CONTENT, name: value}

    assert [name] == list(refused(given))


# The handler


def test_a_message_is_sent_once(twilio: FaultServer, context: Context) -> None:
    """A message is sent once, with the connection's credentials, and Twilio's answer is returned unchanged."""
    message = handler(SMS, context)

    request = twilio.requests[0]
    assert 1 == len(twilio.requests)
    assert ("POST", MESSAGES) == (request.method, request.target)
    assert {"To": [TO], "From": ["+15551234567"], "Body": ["Hello"]} == request.form
    assert ("SK" + "0" * 32, "not-a-secret") == request.credentials
    assert (TO, "Hello", "queued") == (message["to"], message["body"], message["status"])
    assert "subresource_uris" in message


def test_lists_repeat_on_the_wire(twilio: FaultServer, context: Context) -> None:
    """Each value of a list is sent as a parameter of its own, all with the same name."""
    handler(SMS | {"media_urls": ["https://example.com/a", "https://example.com/b?c=d&e"]}, context)

    assert ["https://example.com/a", "https://example.com/b?c=d&e"] == twilio.requests[0].form["MediaUrl"]


def test_the_api_answers_created(twilio: FaultServer, context: Context, event: LoadEvent) -> None:
    """The answer to an API call is 201, and its body is the message as JSON."""
    answer = handler(event("send_sms_api"), context)

    assert (201, {"Content-Type": "application/json"}) == (answer["statusCode"], answer["headers"])
    assert "Your parcel is on its way." == json.loads(answer["body"])["body"]
    assert 1 == len(twilio.requests)


def test_a_dry_run_says_what_would_be_sent(twilio: FaultServer, context: Context) -> None:
    """A dry run returns the request that would be made and the segments of its text, and sends nothing."""
    rehearsal = handler(
        {"to": "(202) 555-0143", "message": "Hello €", "media_urls": ["https://example.com/a"], "dry_run": True},
        context,
    )

    assert {
        "dry_run": True,
        "request": {
            "method": "POST",
            "path": MESSAGES,
            "form": {
                "To": "+12025550143",
                "From": "+15551234567",
                "Body": "Hello €",
                "MediaUrl": ["https://example.com/a"],
            },
        },
        "segments": {"encoding": "GSM-7", "count": 1, "characters": 7},
    } == rehearsal
    assert [] == twilio.requests


@pytest.mark.parametrize("name", ["send_sms_api", "send_sms_api_payload_1", "send_sms_function_url"])
def test_a_dry_run_through_the_api_answers_ok(
    twilio: FaultServer, context: Context, event: LoadEvent, name: str
) -> None:
    """The answer to a dry run through an API is 200 instead of 201, because nothing was created."""
    request = event(name)
    request["body"] = json.dumps(json.loads(request["body"]) | {"dry_run": True})

    assert 200 == handler(request, context)["statusCode"]
    assert [] == twilio.requests


def test_only_a_dry_run_is_read_only() -> None:
    """Only a dry run counts as read-only, so that its outcome is never unknown."""
    assert [False, False, True] == [
        SendSms.parse(SMS | {"dry_run": dry_run}).read_only for dry_run in (None, False, True)
    ]


def test_a_dry_run_finds_faults(aws_wire: AwsWire, context: Context) -> None:
    """A dry run reports the same faults as a real send, such as a missing sender."""
    aws_wire.secrets["twilio/default"] = json.dumps({"account_sid": ACCOUNT_SID, "auth_token": "0" * 32})

    with pytest.raises(InvalidInputError, match=r"^from: is required"):
        handler({"to": TO, "message": "Hello", "dry_run": True}, context)


# Idempotency keys


@pytest.mark.parametrize("key", ["!", "~" * 128, "order-1:reminder/2"])
def test_a_key_is_visible_text(key: str) -> None:
    """A key of 1 to 128 visible characters is accepted, and no parameter of the request to Twilio contains it."""
    assert {"To": TO, "From": "+15551234567", "Body": "Hello"} == form(SMS | {"idempotency_key": key})


@pytest.mark.parametrize("value", ["send", "Report", "", 1])
def test_what_to_do_about_an_unknown_outcome_is_one_of_two(value: object) -> None:
    """`on_unknown` must be `report` or `resend`; similar values are refused."""
    given = SMS | {"idempotency_key": "key", "on_unknown": value}

    assert {"on_unknown": "must be report or resend"} == refused(given)


@pytest.mark.parametrize(
    "ours",
    [
        {"connection": "default"},
        {"idempotency_key": "other"},
        {"idempotency_key": "other", "on_unknown": "resend"},
        {"dry_run": True},
        {"from": None},
        {"to": "(500) 555-0006"},
    ],
    ids=repr,
)
def test_what_makes_no_other_message_is_no_other_content(ours: dict[str, Any]) -> None:
    """Different inputs for one message have the same content, so that a key stands for one message."""
    assert SendSms.parse(BY_SERVICE).content() == SendSms.parse(BY_SERVICE | ours).content()


@pytest.mark.parametrize(
    "other", [{"message": "Bye"}, {"to": "+15550100001"}, {"from": "Shop"}, {"max_price": 1}, {"smart_encoded": False}]
)
def test_what_makes_another_message_is_another_content(other: dict[str, Any]) -> None:
    """Inputs that differ in any of Twilio's parameters have different contents."""
    assert SendSms.parse(BY_SERVICE).content() != SendSms.parse(BY_SERVICE | other).content()


def test_the_same_key_sends_once(twilio: FaultServer, context: Context) -> None:
    """The second call with a key returns the first call's message, and sends nothing."""
    first = handler(SMS | {"idempotency_key": "key"}, context)
    second = handler(SMS | {"idempotency_key": "key"}, context)

    assert first == second
    assert 1 == len(twilio.requests)


def test_another_key_sends_another_message(twilio: FaultServer, context: Context) -> None:
    """Each call with another key sends another message, and so does each call without a key."""
    for key in ("a", "b", None, None):
        handler(SMS | {"idempotency_key": key}, context)

    assert 4 == len(twilio.requests)


def test_a_key_belongs_to_its_connection(twilio: FaultServer, aws_wire: AwsWire, context: Context) -> None:
    """The same key in another connection is another key. A call without a connection uses `default`."""
    aws_wire.secrets["twilio/other"] = aws_wire.secrets["twilio/default"]
    for name in (None, "default", "other"):
        handler(SMS | {"idempotency_key": "key", "connection": name}, context)

    assert 2 == len(twilio.requests)


def test_the_same_key_for_another_message_is_a_conflict(twilio: FaultServer, context: Context) -> None:
    """A used key with another message is a conflict. Nothing is sent, and the first message is not returned."""
    handler(SMS | {"idempotency_key": "key"}, context)

    with pytest.raises(IdempotencyConflictError, match=r"^idempotency_key: was used for another input"):
        handler(SMS | {"idempotency_key": "key", "message": "Bye"}, context)
    assert 1 == len(twilio.requests)


def test_a_key_that_is_being_sent_is_in_progress(twilio: FaultServer, context: Context) -> None:
    """A call whose key is being sent gets SendInProgressError and sends nothing. A later retry gets the message."""
    twilio.script(faults.hang(then=faults.OK))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(handler, SMS | {"idempotency_key": "key"}, context)
        twilio.wait_for(1)
        with pytest.raises(SendInProgressError):
            handler(SMS | {"idempotency_key": "key"}, context)
        twilio.release()

        assert first.result()["sid"] == handler(SMS | {"idempotency_key": "key"}, context)["sid"]
    assert 1 == len(twilio.requests)


@pytest.mark.parametrize(
    ("headers", "body"),
    [({"Idempotency-Key": "key"}, {}), ({}, {"idempotency_key": "key"}), ({"idempotency-key": "key"},) * 2],
    ids=["header", "body", "both"],
)
def test_the_api_takes_a_key_in_header_or_body(
    twilio: FaultServer, context: Context, event: LoadEvent, headers: dict[str, str], body: dict[str, str]
) -> None:
    """The API accepts a key in header, body or both. API calls and direct calls with one key send one message."""
    request = event("send_sms_api")
    given = json.loads(request["body"])
    body = {"idempotency_key": "key"} if body else {}
    request |= {"headers": headers, "body": json.dumps(given | body)}
    answers = [handler(request, context) for _ in range(2)]
    direct = handler(given | {"idempotency_key": "key"}, context)

    assert [201, 201] == [answer["statusCode"] for answer in answers]
    assert {direct["sid"]} == {json.loads(answer["body"])["sid"] for answer in answers}
    assert 1 == len(twilio.requests)


@pytest.mark.parametrize("value", [None, "other"])
def test_the_api_compares_the_header_with_the_body(
    twilio: FaultServer, context: Context, event: LoadEvent, value: str | None
) -> None:
    """Different keys in header and body are refused, as the caller's mistake. Null in the body counts as absent."""
    request = event("send_sms_api")
    given = json.loads(request["body"]) | {"idempotency_key": value}
    request |= {"headers": {"Idempotency-Key": "key"}, "body": json.dumps(given)}

    assert (400 if value else 201) == handler(request, context)["statusCode"]
    assert (0 if value else 1) == len(twilio.requests)


def test_the_api_says_that_a_key_was_used(twilio: FaultServer, context: Context, event: LoadEvent) -> None:
    """The API answers 422 if the key was used for another message, and 201 again for the same message."""
    request = event("send_sms_api") | {"headers": {"Idempotency-Key": "key"}}
    other = request | {"body": json.dumps({"to": TO, "message": "Bye"})}

    assert [201, 422, 201] == [handler(each, context)["statusCode"] for each in (request, other, request)]
    assert 1 == len(twilio.requests)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, True),
        ({"status_callback": "https://example.com/a"}, False),
        ({"application_sid": APPLICATION}, False),
    ],
    ids=["none", "callback", "application"],
)
def test_twilio_tells_the_webhook_of_a_key(
    twilio: FaultServer, context: Context, more: dict[str, str], *, expected: bool
) -> None:
    """The status callback's URL has the key's hash, never the key. A caller's own callback or application is kept."""
    handler(SMS | {"idempotency_key": "secret-key"} | more, context)
    callback = twilio.requests[0].form.get("StatusCallback", [""])[0]

    url = f"https://hooks.example.com/webhook/default?send={record_id('default', 'secret-key')}#rc=2&rp=all"
    assert (url if expected else more.get("status_callback", "")) == callback


def test_without_a_key_twilio_tells_nobody(twilio: FaultServer, aws_wire: AwsWire, context: Context) -> None:
    """A send without a key sets no status callback, because the ledger has no record that it could settle."""
    handler(SMS, context)

    assert "StatusCallback" not in twilio.requests[0].form
    assert {} == aws_wire.items


@pytest.mark.parametrize("caller", ["direct", "api"])
def test_a_dry_run_leaves_its_key_unused(
    twilio: FaultServer, aws_wire: AwsWire, context: Context, event: LoadEvent, caller: str
) -> None:
    """A dry run with a key shows the status callback that would be set, and neither claims the key nor sends."""
    given = SMS | {"idempotency_key": "key", "dry_run": True}
    if caller == "direct":
        rehearsal = handler(given, context)
    else:
        rehearsal = json.loads(handler(event("send_sms_api") | {"body": json.dumps(given)}, context)["body"])

    assert "StatusCallback" in rehearsal["request"]["form"]
    assert ({}, []) == (aws_wire.items, twilio.requests)


@pytest.mark.parametrize("name", ["send_sms_failure_record"])
def test_a_failure_record_that_is_handed_back_sends_once(
    twilio: FaultServer, context: Context, event: LoadEvent, name: str
) -> None:
    """A failure record is sent once, however often it is delivered, because the id of its request is the key."""
    messages = [handler(event(name), context) for _ in range(2)]

    assert messages[0] == messages[1]
    assert 1 == len(twilio.requests)


def test_a_failure_record_in_doubt_is_not_sent(twilio: FaultServer, context: Context, event: LoadEvent) -> None:
    """A failure record without a key is not sent if the failed invocation may have sent the message."""
    failure = event("send_sms_failure_record")
    failure["responsePayload"] = {"errorType": "Sandbox.Timedout"}

    for _ in range(2):
        with pytest.raises(OutcomeUnknownError):
            handler(failure, context)
    assert [] == [request.method for request in twilio.requests if request.method == "POST"]


def test_a_failure_record_with_a_key_is_asked_of_the_ledger(
    twilio: FaultServer, context: Context, event: LoadEvent
) -> None:
    """A failure record with a key is sent if the ledger has no record of the key, because then nothing was sent."""
    failure = event("send_sms_failure_record")
    failure["responsePayload"] = {"errorType": "Sandbox.Timedout"}
    failure["requestPayload"]["idempotency_key"] = "key"
    messages = [handler(failure, context) for _ in range(2)]

    assert messages[0] == messages[1]
    assert 1 == len(twilio.requests)


def test_a_failure_record_in_doubt_may_be_sent_on_purpose(
    twilio: FaultServer, context: Context, event: LoadEvent
) -> None:
    """A failure record with `resend` is sent, because its caller accepts that the message may be sent twice."""
    failure = event("send_sms_failure_record")
    failure["responsePayload"] = {"errorType": "Sandbox.Timedout"}
    failure["requestPayload"]["on_unknown"] = "resend"
    handler(failure, context)

    assert 1 == len(twilio.requests)


# Failures


@pytest.mark.parametrize(
    ("fault", "error", "count"),
    [
        (faults.status(400, twilio_code=21211), TwilioRejectedError, 1),
        (faults.OPTED_OUT, RecipientOptedOutError, 1),
        (faults.QUEUE_FULL, SenderQueueFullError, 1),
        (faults.too_many("0"), TwilioRateLimitError, 3),
        (faults.status(500), OutcomeUnknownError, 1),
        (faults.html(503), OutcomeUnknownError, 1),
        (faults.RESET_AFTER_READ, OutcomeUnknownError, 1),
        (faults.NO_CONTENT, OutcomeUnknownError, 1),
        (faults.body("html"), OutcomeUnknownError, 1),
        (faults.body("no_sid"), OutcomeUnknownError, 1),
        (faults.body("foreign_sid"), OutcomeUnknownError, 1),
    ],
    ids=["rejected", "opted out", "queue full", "429", "500", "503", "reset", "204", "html", "no sid", "foreign sid"],
)
def test_a_failed_send_has_its_error(
    twilio: FaultServer, context: Context, fault: faults.Fault, error: type[ConnectorError], count: int
) -> None:
    """Each failure raises its own error. Only requests that Twilio certainly did not process are retried."""
    twilio.script(fault)

    with pytest.raises(error) as failure:
        handler(SMS, context)

    assert error is failure.type
    assert count == len(twilio.requests)


@pytest.mark.parametrize("given", [SMS | {"to": "nobody"}, {}, SMS | {"idempotency_key": "a key"}])
def test_a_wrong_input_reaches_nobody(
    twilio: FaultServer, aws_wire: AwsWire, context: Context, given: dict[str, Any]
) -> None:
    """An invalid input causes no call to Twilio, Secrets Manager or the ledger."""
    with pytest.raises(InvalidInputError):
        handler(given, context)

    assert ([], []) == (twilio.requests, aws_wire.calls)
