"""The event schemas: they accept the events that the functions publish, and reject events that differ from them."""

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import resolve
import send_sms
import webhook
from jsonschema import Draft202012Validator, ValidationError
from twilio_connector import errors
from twilio_connector.messaging import outcome_events
from twilio_connector.messaging.idempotency import ClaimRequested, OutcomeLost, SendRecord, new_claim
from twilio_connector.messaging.idempotency_store import IdempotencyStore as Table
from twilio_connector.webhooks import request as webhook_request

from tests.aws_wire import LOST, AwsWire
from tests.builders import record
from tests.conftest import DEPLOYED, Context
from tests.faults import FaultServer
from tests.mutants import CALL_SID, GENUINE, OTHER_SID, Target, Webhook, event_2
from tests.readme import section
from tests.schemas import DETAIL_TYPES, FOLDER, SCHEMAS, delivered, validate
from tests.unit.conftest import ACCOUNT_SID, AUTH_TOKEN, aws

TARGET = Target("https://hook.example", ACCOUNT_SID, AUTH_TOKEN)
BY_NAME = {each.name: each for each in GENUINE}
KINDS = {
    "plain": "Message Received",
    "opt-out": "Opt-Out Changed",
    "failed": "Message Status Changed",
    "Event Streams": "Event Stream Event",
    "debugger": "Error Logged",
    "call": "Webhook Received",
}
"""The name of a genuine webhook for each detail-type with source `twilio`."""
SMS = {"to": "+15005550006", "message": "Hello", "idempotency_key": "key"}
PROBLEM = errors.TwilioRejectedError(
    "Twilio refused the request",
    twilio=errors.TwilioDetails(status=400, code=21211, request_id="RQ" + "0" * 32, text="Invalid 'To'"),
).problem()
ABOUT = outcome_events.Subject("key", "default", "sqs")


def published(aws_wire: AwsWire) -> list[dict[str, Any]]:
    """Return the events on the bus, in the form in which EventBridge delivers them."""
    return [delivered(entry) for entry in aws_wire.entries]


def posted(aws_wire: AwsWire, each: Webhook) -> list[dict[str, Any]]:
    """Send a webhook to the handler, and return the events on the bus."""
    assert 200 == webhook.handler(event_2(each.request(TARGET)), Context())["statusCode"]
    return published(aws_wire)


def queued(*bodies: Any) -> None:
    """Pass a batch of the send queue to send_sms, and check that no record is redelivered."""
    records = [record(body, str(number)) for number, body in enumerate(bodies)]
    assert {"batchItemFailures": []} == send_sms.handler({"Records": records}, Context())


def claimed() -> SendRecord:
    """Return a new claim with an expired lease, whose message `resolve` cannot search in Twilio's list."""
    return new_claim(
        idempotency_key="key", connection="default", caller="api", same="same", sms=SMS, sought=None, lease_seconds=0
    )


# The schema files


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_file_is_a_schema(name: str) -> None:
    """Each file is a schema of draft 2020-12 with its own `$id`, named after its detail-type in kebab case."""
    schema = SCHEMAS[name]

    Draft202012Validator.check_schema(schema)
    assert "https://json-schema.org/draft/2020-12/schema" == schema["$schema"]
    assert f"urn:twilio-connector:schema:{name}" == schema["$id"]
    assert name == "common" or name == schema["title"].lower().replace(" ", "-")


def test_every_file_is_a_schema() -> None:
    """The folder of the schemas contains no other files."""
    assert sorted(path.name for path in FOLDER.iterdir()) == [f"{name}.json" for name in SCHEMAS]


def test_every_detail_type_has_its_schema() -> None:
    """Code, reference and schemas have the same detail-types, and each schema fixes its detail-type and source."""
    code = "".join(path.read_text() for path in DEPLOYED)
    in_code = set(re.findall(r'"((?:[A-Z][\w-]+ )+(?:Received|Changed|Event|Logged|Sent|Failed|Unknown))"', code))
    tables = [
        text.split("| detail-type |")[1].split("\n\n")[0]
        for text in (section("reference", "Events of Twilio"), section("reference", "Events of the connector"))
    ]
    by_source = {
        source: set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE))
        for source, table in zip(("twilio", "twilio-connector"), tables, strict=True)
    }

    assert in_code == DETAIL_TYPES.keys() == by_source["twilio"] | by_source["twilio-connector"]
    assert {source: set(names) for source, names in by_source.items()} == {
        source: {
            name
            for name, schema in DETAIL_TYPES.items()
            if (source, name) == (schema["properties"]["source"]["const"], schema["properties"]["detail-type"]["const"])
        }
        for source in by_source
    }


def test_every_definition_is_used() -> None:
    """Each definition in the shared file is used by a schema."""
    used = set(re.findall(r'#/\$defs/(\w+)"', json.dumps(SCHEMAS)))

    assert SCHEMAS["common"]["$defs"].keys() == used


def test_what_a_consumer_reads_is_described() -> None:
    """Each schema has a description, and so has each field of its `detail`, directly or through a reference."""
    shared = SCHEMAS["common"]["$defs"]

    def described(schema: dict[str, Any]) -> bool:
        return "description" in schema or described(shared[schema["$ref"].rpartition("/")[2]])

    for schema in DETAIL_TYPES.values():
        assert schema["description"]
        assert all(described(field) for field in schema["properties"]["detail"]["properties"].values())


def test_every_error_is_known() -> None:
    """The schema of a problem lists exactly the code's error classes as titles."""
    classes = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.ConnectorError) and kind is not errors.ConnectorError
    }

    assert classes == set(SCHEMAS["common"]["$defs"]["problem"]["properties"]["title"]["enum"])


# Events that the functions publish


@pytest.mark.parametrize("each", GENUINE, ids=lambda each: each.name)
def test_a_webhook_fits(aws_wire: AwsWire, each: Webhook) -> None:
    """All events of each genuine webhook match their schemas."""
    events = posted(aws_wire, each)

    assert events
    for event in events:
        validate(event)


def test_the_kinds_are_all_of_twilios() -> None:
    """`KINDS` has all detail-types with source `twilio`, so that the tests below leave none out."""
    twilios = {name for name, schema in DETAIL_TYPES.items() if schema["properties"]["source"]["const"] == "twilio"}

    assert twilios == set(KINDS.values())


@pytest.mark.parametrize("body", [b"null", b"7", b'"x"', b"[1]", b'{"a": {"b": []}}'])
def test_json_fits(aws_wire: AwsWire, body: bytes) -> None:
    """The event of a JSON body matches the schema of Webhook Received, for a value of any JSON type."""
    (event,) = posted(aws_wire, Webhook(name="json", fields={}, json=body))

    assert "Webhook Received" == event["detail-type"]
    validate(event)


def test_a_name_that_repeats_fits(aws_wire: AwsWire) -> None:
    """A parameter that occurs twice is a list in the event, and the event matches its schema."""
    request = Webhook(name="call", fields=BY_NAME["call"].fields, method="GET", query="Extra=1&Extra=2").request(TARGET)
    webhook.handler(event_2(request), Context())
    (event,) = published(aws_wire)

    assert ["1", "2"] == event["detail"]["parameters"]["Extra"]
    validate(event)


def test_a_sink_test_fits(aws_wire: AwsWire) -> None:
    """The event of a sink test matches its schema. Its `deduplication_id` is the account SID and the test's id."""
    cloud_event = {
        "specversion": "1.0",
        "type": "com.twilio.eventstreams.test-event",
        "id": ACCOUNT_SID,
        "data": {"test_id": "one"},
    }
    (event,) = posted(aws_wire, Webhook(name="test", fields={}, json=json.dumps([cloud_event]).encode()))

    assert f"{ACCOUNT_SID}:one" == event["detail"]["deduplication_id"]
    validate(event)


@pytest.mark.parametrize("status", ["accepted", "sent", "canceled", "read", "something_new", ""])
def test_a_status_fits(aws_wire: AwsWire, status: str) -> None:
    """The event of a status callback matches its schema for any status, also for one that Twilio adds in the future."""
    fields = BY_NAME["status"].fields | {"MessageStatus": status, "SmsStatus": status}
    (event,) = posted(aws_wire, Webhook(name="status", fields=fields))

    assert "Message Status Changed" == event["detail-type"]
    validate(event)


def test_a_keyed_callback_fits(aws_wire: AwsWire) -> None:
    """The event of a status callback for a key has that key, and matches its schema."""
    record = Table("ledger").write(ClaimRequested(claimed(), resend=False))
    (event,) = posted(aws_wire, replace(BY_NAME["status"], query=f"send={record.id}"))

    assert "key" == event["detail"]["idempotency_key"]
    validate(event)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("mark", ["unavailable", "uncertain"])
def test_a_mark_fits(aws_wire: AwsWire, delays: list[float], name: str, mark: str) -> None:
    """An event that may have been published before has a `deduplication` mark, and matches its schema."""
    if mark == "unavailable":
        aws_wire.failures["PutItem"] = [(400, "AccessDeniedException")] * 4
    else:
        aws_wire.failures["PutEvents"] = [LOST]
    events = posted(aws_wire, BY_NAME[name])

    assert [mark] == list(dict.fromkeys(event["detail"].get("deduplication") for event in events[-1:]))
    assert len(delays) == int(mark == "uncertain")
    for event in events:
        validate(event)


def large(name: str) -> Webhook:
    """Return a webhook of a kind whose event is too large for the bus, although the webhook accepts its body."""
    each = BY_NAME[name]
    if each.json is not None:
        event = json.loads(each.json)[0]
        fill = "x" * (webhook_request.MAX_JSON_BYTES - len(json.dumps([event | {"data": ""}])))
        return replace(each, json=json.dumps([event | {"data": fill}]).encode())
    text = {"plain": "Body", "opt-out": "Body", "failed": "ErrorMessage", "debugger": "Payload", "call": "SpeechResult"}
    fields = {"CallSid": CALL_SID} if name == "call" else each.fields
    empty = replace(each, fields=fields | {text[name]: ""})
    # A control character has three bytes in the form and six in the event.
    fill = "\x01" * ((webhook_request.MAX_FORM_BYTES - len(empty.request(TARGET).body)) // 3)
    return replace(each, fields=fields | {text[name]: fill})


@pytest.mark.parametrize("name", KINDS)
def test_a_truncated_event_fits(aws_wire: AwsWire, name: str) -> None:
    """A truncated event and the whole event in the dead-letter queue both match the schema."""
    (event,) = posted(aws_wire, large(name))
    (whole,) = aws_wire.sent

    assert event["detail"]["truncated"]
    validate(event)
    kept = json.loads(whole["MessageBody"])
    validate(event | {"detail-type": kept["detail-type"], "detail": kept["detail"]})


def test_a_message_of_the_queue_fits(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The events of queued messages match their schemas: sent, refused by Twilio, invalid, and of unknown outcome."""
    timed_out = {
        "requestContext": {"requestId": "5", "functionArn": "arn:aws:lambda:us-east-1:123456789012:function:f"},
        "requestPayload": {"to": "nobody"},
        "responseContext": {"statusCode": 200, "functionError": "Unhandled"},
        "responsePayload": {"errorType": "Sandbox.Timedout"},
    }
    for given in (
        SMS,
        SMS | {"idempotency_key": "2", "message": "fault=21610_before"},
        SMS | {"idempotency_key": "3", "to": "nobody"},
        timed_out,
    ):
        queued(given)
    events = published(aws_wire)

    assert 2 == len(twilio.requests)
    assert ["Message Sent", *["Message Failed"] * 2, "Message Outcome Unknown"] == [
        event["detail-type"] for event in events
    ]
    for event in events:
        validate(event)


def test_what_resolve_reports_fits(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The events of `resolve` match their schemas: an unknown outcome, and a message that a status callback proved."""
    table = Table("ledger")
    record = table.write(ClaimRequested(claimed(), resend=False))
    table.write(OutcomeLost(record.nonce), record)
    aws_wire.age(1000)
    resolve.handler({}, Context(120))
    posted(aws_wire, replace(BY_NAME["status"], query=f"send={record.id}"))
    resolve.handler({}, Context(120))
    events = [event for event in published(aws_wire) if event["source"] == "twilio-connector"]

    assert ["Message Outcome Unknown", "Message Sent"] == [event["detail-type"] for event in events]
    assert twilio.requests
    for event in events:
        validate(event)


def test_a_problem_fits(aws_wire: AwsWire) -> None:
    """A Message Failed event with all details of Twilio's error matches its schema."""
    outcome_events.failed(ABOUT, "{}", PROBLEM)
    (event,) = published(aws_wire)

    assert 21211 == event["detail"]["error"]["twilio_code"]
    validate(event)


# Events that are rejected


@pytest.fixture(scope="module")
def examples() -> dict[str, dict[str, Any]]:
    """Return one published event of each detail-type."""
    with pytest.MonkeyPatch.context() as patch, aws(patch) as wire:
        for name in KINDS:
            each = BY_NAME[name]
            if name == "opt-out":
                other = dict.fromkeys(("MessageSid", "SmsMessageSid", "SmsSid"), OTHER_SID)
                each = replace(each, fields=each.fields | other)
            posted(wire, each)
        unknown = errors.OutcomeUnknownError("nobody knows").problem()
        outcome_events.sent(ABOUT, {"sid": "SM" + "0" * 32, "status": "sent", "from": None, "to": "+15005550006"})
        outcome_events.failed(ABOUT, "{}", PROBLEM)
        outcome_events.unknown(ABOUT, "{}", unknown, OTHER_SID)
        return {event["detail-type"]: event for event in published(wire)}


@pytest.fixture(params=DETAIL_TYPES)
def example(request: pytest.FixtureRequest, examples: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a valid event of one detail-type."""
    event = examples[request.param]
    validate(event)
    return event


def places(event: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the path of each object whose fields the schema fixes."""
    yield ("detail",)
    for name in ("message", "error"):
        if name in event["detail"] and event["detail-type"] != "Message Sent":
            yield "detail", name


def changed(event: dict[str, Any], place: tuple[str, ...], **fields: Any) -> dict[str, Any]:
    """Return a copy of an event with changed fields in one of its objects; the value `...` removes a field."""
    result = copy.deepcopy(event)
    inner = result
    for name in place:
        inner = inner[name]
    inner |= fields
    for name, value in fields.items():
        if value is ...:
            del inner[name]
    return result


def refused(event: dict[str, Any]) -> bool:
    """Return whether an event does not match its schema."""
    try:
        validate(event)
    except ValidationError:
        return True
    return False


OPTIONAL = {"idempotency_key", "twilio_status", "twilio_code", "twilio_request_id"}


def test_a_missing_field_is_refused(example: dict[str, Any]) -> None:
    """An event without one of its required fields is rejected, in the envelope and in the detail."""
    for name in example:
        if name != "detail-type":  # it selects the schema
            assert refused(changed(example, (), **{name: ...})), name
    for place in places(example):
        inner = example["detail"] if len(place) == 1 else example["detail"][place[1]]
        optional = OPTIONAL if example["source"] == "twilio" or len(place) > 1 else {"candidate_sid"}
        for name in inner.keys() - optional:
            assert refused(changed(example, place, **{name: ...})), (place, name)


def test_an_unknown_field_is_refused(example: dict[str, Any]) -> None:
    """An unknown field is rejected, except in Twilio's own objects, which may have more fields."""
    for place in places(example):
        assert refused(changed(example, place, unknown="x")), place
    if example["detail-type"] == "Message Sent":
        assert not refused(changed(example, ("detail", "message"), unknown="x"))
    if isinstance(example["detail"].get("parameters"), dict):
        assert not refused(changed(example, ("detail", "parameters"), Unknown="x"))


def test_a_wrong_type_is_refused(example: dict[str, Any]) -> None:
    """A field of a wrong type is rejected. Only the parameters of Webhook Received can be of any type."""
    for place in places(example):
        inner = example["detail"] if len(place) == 1 else example["detail"][place[1]]
        for name in inner:
            wrong: Any = [7] if isinstance(inner[name], dict) else {"wrong": 7}
            anything = (example["detail-type"], name) == ("Webhook Received", "parameters")
            assert anything != refused(changed(example, place, **{name: wrong})), (place, name)


def test_another_source_is_refused(example: dict[str, Any]) -> None:
    """An event with another source than its detail-type's is rejected."""
    (other,) = {"twilio", "twilio-connector"} - {example["source"]}

    assert refused(example | {"source": other})
    assert refused(example | {"source": "shop"})


@pytest.mark.parametrize("fields", [{"deduplication": "maybe"}, {"deduplication": None}, {"truncated": False}], ids=str)
def test_a_mark_that_means_nothing_is_refused(example: dict[str, Any], fields: dict[str, Any]) -> None:
    """A mark with a meaningless value is rejected, because a mark that does not apply is left out."""
    assert refused(changed(example, ("detail",), **fields))


def test_an_event_is_truncated_or_has_its_parameters(example: dict[str, Any]) -> None:
    """An event from Twilio has either `truncated` or `parameters`. Both together are rejected, and so is neither."""
    if example["source"] == "twilio":
        assert refused(changed(example, ("detail",), truncated=True))
        assert refused(changed(example, ("detail",), parameters=...))
        assert not refused(changed(example, ("detail",), truncated=True, parameters=...))


@pytest.mark.parametrize(
    ("detail_type", "fields"),
    [
        ("Message Received", {"status": "delivered"}),
        ("Message Received", {"opt_out_type": "STOP"}),
        ("Message Received", {"status_rank": 1, "terminal": False}),
        ("Opt-Out Changed", {"opt_out_type": None}),
        ("Message Status Changed", {"status": "received"}),
        ("Message Status Changed", {"status_rank": 8}),
        ("Message Failed", {"title": "OutcomeUnknownError"}),
        ("Message Outcome Unknown", {"title": "TwilioRejectedError"}),
        ("Message Outcome Unknown", {"title": "SomeError"}),
    ],
)
def test_one_kind_is_not_another(examples: dict[str, dict[str, Any]], detail_type: str, fields: dict[str, Any]) -> None:
    """An event is rejected if a field has a value that only another detail-type may have."""
    event = examples[detail_type]
    outcome = "message" if event["source"] == "twilio" else "error"

    assert not refused(event)
    assert refused(changed(event, ("detail", outcome), **fields))


def test_a_detail_type_without_schema_is_refused() -> None:
    """The validation of an event with an unknown detail-type fails, instead of passing without a schema."""
    with pytest.raises(KeyError):
        validate({"detail-type": "Something Else"})
