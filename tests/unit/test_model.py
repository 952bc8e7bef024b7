"""Inputs are read strictly. An error has all faults at once, and repeats no value."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, field
from twilio_connector.errors import Fault, InternalError, InvalidInputError
from twilio_connector.validation.model import Flag, Input, MessageSid, Moment, Parsed, Recipient, Sender

MARKER = "xqzjvmarker"
SID = "SM" + "0" * 32


class Example(Input, frozen=True, kw_only=True):
    """An input with a field of each type."""

    to: Recipient
    from_: Sender | None = field(name="from", default=None)
    message_sid: MessageSid | None = None
    count: int | None = None
    size: Annotated[int, Meta(ge=1, le=9, description="must be 1 to 9")] = 5
    price: float | None = None
    flag: Flag = False
    plain_flag: bool = False
    choice: Literal["enable", "disable"] | None = None
    texts: list[str] | None = None
    words: dict[str, Any] | None = None
    note: str | None = None
    moment: Moment | None = None

    @classmethod
    def cross_field_faults(cls, given: Mapping[str, Any]) -> Iterator[Fault]:
        """Refuse `note` together with `texts`."""
        if {"note", "texts"} <= given.keys():
            yield Fault("note", "cannot be combined with texts")


TO = {"to": "+15005550006"}
QUERY = {"to": ["+15005550006"]}


def faults(payload: Any, text: Mapping[str, list[str]] | None = None) -> dict[str, str]:
    """Return the faults of an input by field."""
    try:
        Example.parse(payload, text or {})
    except InvalidInputError as error:
        return {fault.field: fault.message for fault in error.faults}
    return {}


# Accepted inputs


def test_a_whole_input_is_read() -> None:
    """An input has the field names that users write, and each value gets its field's type."""
    given_input = {
        "connection": "support",
        "to": "(202) 555-0143",
        "from": "Shop",
        "message_sid": SID,
        "count": 3,
        "size": 9,
        "price": 1,
        "flag": True,
        "choice": "disable",
        "texts": ["a", ""],
        "words": {"1": ["x", None]},
        "moment": "2030-01-31T10:00:00+01:00",
    }

    assert Example(
        connection="support",
        to=Recipient("+12025550143"),
        from_=Sender("Shop"),
        message_sid=SID,
        count=3,
        size=9,
        price=1.0,
        flag=True,
        choice="disable",
        texts=["a", ""],
        words={"1": ["x", None]},
        moment=Moment("2030-01-31T09:00:00Z"),
    ) == Example.parse(given_input)


def test_absent_fields_have_their_defaults() -> None:
    """An absent field has its default, which is None unless its type defines another one."""
    example = Example.parse(TO)

    assert (None, 5, False, None) == (example.connection, example.size, example.flag, example.texts)


@pytest.mark.parametrize("name", ["connection", "from", "count", "size", "flag", "texts", "words", "moment"])
def test_null_is_the_same_as_absent(name: str) -> None:
    """A null value counts as absent: Step Functions and templates write null for missing values."""
    assert Example.parse(TO) == Example.parse({**TO, name: None})


def test_null_does_not_make_a_required_field() -> None:
    """A required field that is null is missing."""
    assert {"to": "is required"} == faults({"to": None})


def test_an_input_is_read_only_unless_it_says_otherwise() -> None:
    """An input is read-only by default, because most actions change nothing."""
    assert Example.parse(TO).read_only


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2030-01-31T09:00:00Z", "2030-01-31T09:00:00Z"),
        ("2030-01-31T09:00:00.999Z", "2030-01-31T09:00:00Z"),
        ("2030-01-31T09:00:00+09:00", "2030-01-31T00:00:00Z"),
        ("2030-01-01T00:30:00+01:00", "2029-12-31T23:30:00Z"),
    ],
)
def test_a_moment_is_brought_to_utc(written: str, expected: str) -> None:
    """A date-time is converted to UTC with whole seconds, the form that Twilio takes."""
    assert expected == Example.parse({**TO, "moment": written}).moment


# Text from a query string


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("count", ["3"], 3),
        ("count", ["-3"], -3),
        ("price", ["0.5"], 0.5),
        ("flag", ["true"], True),
        ("flag", ["false"], False),
        ("plain_flag", ["true"], True),
        ("choice", ["enable"], "enable"),
        ("note", ["3"], "3"),
        ("note", ["true"], "true"),
        ("note", ["null"], "null"),
        ("note", [""], ""),
        ("texts", ["a"], ["a"]),
        ("texts", ["a", "b"], ["a", "b"]),
        ("moment", ["2030-01-31T09:00:00Z"], "2030-01-31T09:00:00Z"),
        ("connection", ["support"], "support"),
    ],
)
def test_numbers_and_booleans_are_taken_from_a_query_string(name: str, values: list[str], expected: object) -> None:
    """Values are converted from the text of a query string, where a list is a name that repeats."""
    assert expected == getattr(Example.parse({}, QUERY | {name: values}), name)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", "3", "must be a whole number"),
        ("size", "3", "must be 1 to 9"),
        ("price", "0.5", "must be a number"),
        ("flag", "true", "must be true or false"),
        ("plain_flag", "true", "must be true or false"),
        ("flag", 1, "must be true or false"),
        ("count", True, "must be a whole number"),
        ("count", 3.5, "must be a whole number"),
        ("note", 3, "must be text"),
        ("note", ["a"], "must be text"),
        ("texts", "a", "must be a list"),
        ("texts", [1], "must be a list"),
        ("words", "{}", "must be an object"),
        ("words", [], "must be an object"),
        ("choice", "Enable", "must be enable or disable"),
        ("choice", 1, "must be enable or disable"),
        ("to", 15005550006, "must be text"),
        ("from", ["+15005550006"], "must be text"),
        ("size", 0, "must be 1 to 9"),
        ("size", 10, "must be 1 to 9"),
        ("size", 10**400, "must be 1 to 9"),
        ("message_sid", "SM0", "must be a SID: SM or MM and 32 hexadecimal digits"),
        ("message_sid", SID + "\n", "must be a SID: SM or MM and 32 hexadecimal digits"),
        ("connection", "a/b", "must be 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first"),
        ("connection", "", "must be 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first"),
        (
            "connection",
            "a" * 65,
            "must be 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first",
        ),
        ("moment", "2030-01-31", "must be an ISO 8601 date-time with offset, such as 2030-01-31T09:00:00Z"),
        ("moment", "2030-01-31T09:00:00", "must be an ISO 8601 date-time with offset, such as 2030-01-31T09:00:00Z"),
        (
            "moment",
            "0001-01-01T00:00:00+14:00",
            "must be an ISO 8601 date-time with offset, such as 2030-01-31T09:00:00Z",
        ),
        ("moment", 1893456000, "must be an ISO 8601 date-time with offset, such as 2030-01-31T09:00:00Z"),
    ],
)
def test_each_wrong_value_has_its_message(name: str, value: object, message: str) -> None:
    """Each invalid value has its own message. In JSON a number must be a number, and text must be text."""
    assert {name: message} == faults(TO | {name: value})


@pytest.mark.parametrize("values", [["1", "2"], []], ids=["twice", "never"])
def test_a_single_value_is_not_a_list(values: list[str]) -> None:
    """A field with a single value is refused if the query string has two values for it, or none."""
    assert {"count": "must be a whole number"} == faults({}, QUERY | {"count": values})


@pytest.mark.parametrize("value", ["yes", "", "2", "null"])
def test_a_query_strings_boolean_is_true_or_false(value: str) -> None:
    """A boolean in a query string must be `true` or `false`; similar texts are refused."""
    assert {"flag": "must be true or false"} == faults({}, QUERY | {"flag": [value]})


@pytest.mark.parametrize("value", ["1.5", "", "0x1", "null", "9" * 5000, "1 "])
def test_a_query_strings_number_is_a_number(value: str) -> None:
    """A number in a query string must be a whole number; similar texts are refused."""
    assert {"size": "must be 1 to 9"} == faults({}, QUERY | {"size": [value]})


def test_the_same_name_in_body_and_query_is_refused() -> None:
    """A field in both body and query string is refused, because it is not clear which value counts."""
    assert {"note": "is given twice, in the query string or path and in the body"} == faults(
        {**TO, "note": "a"}, {"note": ["a"]}
    )


# Faults


def test_all_faults_are_reported_at_once() -> None:
    """One error has all faults: invalid values, unknown names, missing fields and fields that exclude each other."""
    assert {
        "count": "must be a whole number",
        "notes": "is not known; did you mean note?",
        "to": "is required",
        "note": "cannot be combined with texts",
    } == faults({"count": "x", "notes": 1, "note": "a", "texts": ["b"]})


def test_a_wrong_value_counts_as_given() -> None:
    """An invalid value counts as given: the error has its fault, and the fault of the combination."""
    assert {"texts": "must be a list", "note": "cannot be combined with texts"} == faults(
        TO | {"texts": "a", "note": "a"}
    )


def test_null_in_the_body_leaves_the_query_its_value() -> None:
    """A null in the body counts as absent, so that a value from the query string or a header is used."""
    assert "a" == Example.parse({**TO, "note": None}, {"note": ["a"]}).note


@pytest.mark.parametrize("source", ["payload", "text"])
def test_an_unknown_name_is_refused_even_if_it_says_nothing(source: str) -> None:
    """An unknown name is refused even if its value is null or empty, because ignoring it would mislead."""
    given_faults = faults({**TO, "later": None}) if source == "payload" else faults(TO, {"later": [""]})

    assert {"later": "is not known"} == given_faults


@pytest.mark.parametrize(
    ("name", "field_name", "message"),
    [
        ("mesage_sid", "mesage_sid", "is not known; did you mean message_sid?"),
        ("From", "From", "is not known; did you mean from?"),
        ("from_", "from_", "is not known; did you mean from?"),
        ("TO", "TO", "is not known; did you mean to?"),
        ("unrelated", "unrelated", "is not known"),
        ("+15551234567", "(unnamed)", "is not a field's name"),
        ("Hello there", "(unnamed)", "is not a field's name"),
        ("", "(unnamed)", "is not a field's name"),
        ("a" * 41, "(unnamed)", "is not a field's name"),
        ("field1", "(unnamed)", "is not a field's name"),
        ("to\n", "(unnamed)", "is not a field's name"),
    ],
)
@pytest.mark.parametrize("source", ["payload", "text"])
def test_an_unknown_name_is_refused(name: str, field_name: str, message: str, source: str) -> None:
    """An unknown name is refused with the nearest known one. A name that may be a misplaced value is not repeated."""
    given_faults = faults({**TO, name: 1}) if source == "payload" else faults(TO, {name: ["1"]})

    assert {field_name: message} == given_faults


def test_unknown_names_do_not_fill_an_error() -> None:
    """An error has at most 20 unknown names, so that it stays small."""
    with pytest.raises(InvalidInputError) as refusal:
        Example.parse({**TO, **{f"x{'y' * number}": 1 for number in range(39)}})

    assert 20 == len(refusal.value.faults)


def test_a_name_that_may_be_a_value_is_not_repeated_when_it_is_given_twice() -> None:
    """A name that may be a phone number is not repeated even if it is given twice, because faults are logged."""
    with pytest.raises(InvalidInputError) as refusal:
        Example.parse({**TO, "+15551234567": 1}, {"+15551234567": ["1"]})

    assert "5551234567" not in str(refusal.value)


@pytest.mark.parametrize("payload", [None, [], "text", 1, True, [TO]], ids=repr)
def test_an_input_is_an_object(payload: object) -> None:
    """An input must be a JSON object, because nothing else has fields."""
    assert {"(input)": "must be a JSON object"} == faults(payload)


def nested(depth: int) -> Any:
    """Return a list that is nested to this depth."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "payload",
    [
        {**TO, "note": "\ud800"},
        {**TO, "\udfff": "x"},
        {**TO, "words": {"a": ["\ud83d"]}},
        {**TO, "words": nested(100_000)},
        {**TO, "note": object()},
    ],
    ids=["value", "name", "nested", "deep", "object"],
)
def test_what_is_no_json_or_unicode_is_refused(payload: dict[str, Any]) -> None:
    """An input that is not JSON or Unicode is refused.

    JSON escapes can spell half a character, which cannot be sent.
    """
    assert {"(input)": "must be JSON with valid Unicode text only"} == faults(payload)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("name", ["size", "count", "message_sid"])
def test_what_is_no_number_is_refused(name: str, value: str) -> None:
    """NaN and infinity are refused, although Python's JSON reader accepts them."""
    assert {name} == faults(TO | {name: json.loads(value)}).keys()


def test_a_missing_setting_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing setting is an internal error, and not a fault of the input."""
    monkeypatch.delenv("DEFAULT_COUNTRY")

    with pytest.raises(InternalError, match="DEFAULT_COUNTRY"):
        Example.parse({"to": "(202) 555-0143"})


def test_a_parsed_text_says_how() -> None:
    """A subclass of `Parsed` must define `parse`, because there is no default."""
    with pytest.raises(NotImplementedError):
        Parsed.parse("x")


NAMES = [*Example.__struct_encode_fields__]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(), VALUES))
def test_any_input_is_read_or_refused(payload: dict[str, Any]) -> None:
    """Any input is read or refused with faults, and no other exception is raised."""
    assert all(isinstance(message, str) for message in faults(payload).values())


@given(
    st.sampled_from(NAMES),
    st.sampled_from(
        [MARKER, f"+1 {MARKER}", f"{MARKER}\n", [MARKER, 1], {MARKER: {MARKER: 1}}, {"a": MARKER}, [[MARKER]]]
    ),
    st.booleans(),
)
def test_no_value_is_repeated(name: str, value: Any, in_query: bool) -> None:  # noqa: FBT001 hypothesis gives no keyword
    """No fault repeats a value of the input."""
    text = {name: [str(value), MARKER]} if in_query else {}
    payload = {} if in_query else {name: value}

    assert MARKER not in str(faults({"size": MARKER} | payload, text))


@given(st.text(min_size=3).map(lambda text: f"{MARKER}{text}9"), VALUES)
def test_no_name_that_may_be_a_value_is_repeated(name: str, value: Any) -> None:
    """A fault does not repeat a name with digits: no field has one, so the name may be a value."""
    assert MARKER not in str(faults({name: value}))
