"""Every input with one invalid field is refused by that field's name, and nothing is sent to AWS or Twilio.

The inputs are generated from the types of the actions' inputs, and one field at a time is made invalid.
"""

import socket
import string
from collections.abc import Callable, Iterator
from datetime import UTC
from typing import Any, NamedTuple, NoReturn

import get_sms
import list_sms
import pytest
import raw_request
import send_sms
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec import inspect
from twilio_connector.errors import InvalidInputError
from twilio_connector.validation.model import Input, Moment, Recipient, Sender, fields

from tests.conftest import Context

CASES = 500  # the least number of broken inputs for each action

WORDS = st.text(string.ascii_letters, min_size=1, max_size=20)
PAIRS = st.dictionaries(WORDS, WORDS | st.integers() | st.booleans() | st.lists(WORDS), max_size=3)
NO_PAIRS = [5, True, "a=b", ["a"], [["a", "b"]], {"a": None}, {"a": {"b": "c"}}, {"a": [["b"]]}, [{"key": "a"}]]
NO_TEXT = [5, 0.5, True, [], ["a"], {}, {"a": "b"}]
NO_ADDRESS = [*NO_TEXT, "", " ", "+", "0", "07797 712345", "+1 415", "x" * 257, "https://example.com", "1" * 40]
NO_DATE = [*NO_TEXT, "", "today", "2030-13-01", "2030-02-30", "2030-01-01T00:00:00", "9" * 5000]


class Kind(NamedTuple):
    """Valid and invalid values of one of the connector's own types."""

    right: st.SearchStrategy[Any]
    wrong: list[Any]


OWN: dict[type, Kind] = {
    Recipient: Kind(st.sampled_from(["+15558675309", "(202) 555-0143", "12345"]), [*NO_ADDRESS, "nobody", "Shop"]),
    Sender: Kind(st.sampled_from(["+15551234567", "Shop", "123456"]), [*NO_ADDRESS, "TwelveLetter", "Café"]),
    Moment: Kind(st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.isoformat()), NO_DATE),
    list_sms.Day: Kind(st.dates().map(str), NO_DATE),
    raw_request.Pairs: Kind(PAIRS, NO_PAIRS),
    raw_request.Headers: Kind(
        st.dictionaries(st.sampled_from(["X-One", "Accept"]), st.sampled_from(["a", "b c"])),
        [*NO_PAIRS, {"Host": "a"}, {"Authorization": "a"}, {"a b": "c"}, {"a": "b\r\nc"}, {"a": "\u00e9"}],
    ),
    raw_request.Files: Kind(
        st.just([{"key": "a", "value": "b"}]), [5, "a", ["a"], {"a": 5}, {"a": {"base64": "%"}}, {"a": ["b"]}]
    ),
    raw_request.FileNames: Kind(st.just({"a": "b.txt"}), [5, "a", ["a"], {"a": 5}, {"a": ["b"]}, {"b": "c"}]),
}


def right(info: Any) -> st.SearchStrategy[Any]:  # noqa: C901, PLR0911 a case for each kind of type
    """Return valid values of a type."""
    match info:
        case inspect.UnionType(types):
            return st.one_of([right(each) for each in types if not isinstance(each, inspect.NoneType)])
        case inspect.Metadata(type=inner):
            return right(inner)
        case inspect.LiteralType(values):
            return st.sampled_from(values)
        case inspect.CustomType(cls):
            return OWN[cls].right
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType(ge=least, le=most):
            return st.integers(least, most)
        case inspect.FloatType(ge=least, le=most):
            return st.floats(least, most)
        case inspect.StrType(pattern=str(pattern)):
            plain = pattern.replace("++", "+").replace("*+", "*")
            return st.from_regex(plain, alphabet=st.characters(min_codepoint=33, max_codepoint=126))
        case inspect.StrType():
            return WORDS
        case inspect.ListType(item_type=item):
            return st.lists(right(item), min_size=1, max_size=3)
        case inspect.DictType(value_type=value):
            return st.dictionaries(WORDS, WORDS if isinstance(value, inspect.AnyType) else right(value), max_size=3)
    raise NotImplementedError(info)


def wrong(info: Any) -> Iterator[Any]:  # noqa: C901 a case for each kind of type
    """Yield invalid values of a type."""
    match info:
        case inspect.UnionType(types):
            options = [each for each in types if not isinstance(each, inspect.NoneType)]
            yield from (value for value in wrong(options[0]) if not any(fits(each, value) for each in options[1:]))
        case inspect.Metadata(type=inner):
            yield from wrong(inner)
        case inspect.LiteralType(values):
            yield from [*NO_TEXT, "", "x" * 9_000, str(values[0]).swapcase(), f"{values[0]} "]
        case inspect.CustomType(cls):
            yield from OWN[cls].wrong
        case inspect.BoolType():
            yield from [0, 1, "true", "false", "", 0.0, [], {}, [True]]
        case inspect.IntType(le=most):
            yield from ["1", 1.5, True, [1], {}, float("nan"), -1]
            yield from [] if most is None else [most + 1, 10**40]
        case inspect.FloatType():
            yield from ["1", True, [1], {}, float("nan"), float("inf"), -1, 1e300]
        case inspect.StrType(pattern=pattern, min_length=least, max_length=most):
            yield from NO_TEXT
            yield from [""] if least or pattern else []
            yield from ["x" * (most + 1)] if most else []
            yield from ["\n", "x y", "\u00e9", "\u2068", "x" * 9_000] if pattern else []
        case inspect.ListType(item_type=item, max_length=most):
            yield from ["a", 5, True, {}, {"0": "a"}, []]
            yield from ([value] for value in wrong(item))
            yield [*["https://example.com/"] * (most or 0), None]
        case inspect.DictType(value_type=value):
            yield from ["a", "{}", 5, True, [], [["a", "b"]], [{"key": "a", "value": "b"}]]
            if not isinstance(value, inspect.AnyType):
                yield from [{"a": None}, {"a": ""}, {"a": []}, {"a": {}}, {"a": {"b": "c"}}]


def fits(info: Any, value: Any) -> bool:
    """Return whether a value is valid for another type of the same union."""
    kinds: dict[Any, type] = {inspect.DictType: dict, inspect.StrType: str, inspect.ListType: list}
    return isinstance(value, kinds[type(info)])


def one_message(given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that are allowed together in one message."""
    apart = {"message", "media_urls"} if given["smart_encoded"] else {"content_sid", "content_variables"}
    apart |= {"from"} if given["force_delivery"] else set()
    apart |= set() if "from" in apart else {"fallback_from"}
    return {name: value for name, value in given.items() if name not in apart}


def one_key(given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with only one of the two that identify a message."""
    apart = "message_sid" if len(given["connection"]) % 2 else "idempotency_key"
    return {name: value for name, value in given.items() if name != apart}


def one_body(given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that are allowed together in one request, with a valid URL."""
    apart = {"form_data", "file_data", "file_data_file_names"} if given["retry_on_all_errors"] else {"data"}
    return {name: value for name, value in given.items() if name not in apart} | {
        "url": "/Accounts/$TWILIO_ACCOUNT_SID.json"
    }


class Action(NamedTuple):
    """A handler, its input type, the number of inputs to break, and a function that picks fields allowed together."""

    handler: Callable[[Any, Any], Any]
    kind: type[Input]
    examples: int
    together: Callable[[dict[str, Any]], dict[str, Any]] = dict


ACTIONS = {
    "send_sms": Action(send_sms.handler, send_sms.SendSms, 3, one_message),
    "get_sms": Action(get_sms.handler, get_sms.GetSms, 25, one_key),
    "list_sms": Action(list_sms.handler, list_sms.ListSms, 7),
    "raw_request": Action(raw_request.handler, raw_request.RawRequest, 5, one_body),
}
# The type of `url` is a string of some length, but not every such string is a path of Twilio's API.
ALSO_WRONG = {"url": ["", "/", "a", "/Calls.json", "https://example.com/", "/Accounts/../x", "/Accounts/a b"]}


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Refuse every connection, and return the addresses to which a connection was tried."""
    tried: list[object] = []

    def refuse(_: socket.socket, address: object) -> NoReturn:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    return tried


@pytest.mark.parametrize("times", [1, pytest.param(8, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", ACTIONS)
def test_an_input_that_is_broken_is_refused_by_that_field(name: str, tried: list[object], times: int) -> None:
    """An input with one invalid field is refused by that field's name only, and AWS and Twilio get no request."""
    action = ACTIONS[name]
    types = {field: inspect.type_info(spec.type) for field, spec in fields(action.kind).items()}
    cases = 0

    def broken(given: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for field in given:
            for value in [*wrong(types[field]), *ALSO_WRONG.get(field, [])]:
                yield field, given | {field: value}
            if fields(action.kind)[field].required:
                yield field, {other: value for other, value in given.items() if other != field}
        yield "unheard_of", given | {"unheard_of": 1}
        yield "(unnamed)", given | {"+15558675309": 1}

    @settings(
        max_examples=action.examples * times,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.fixed_dictionaries({field: right(info) for field, info in types.items()}))
    def check(drawn: dict[str, Any]) -> None:
        nonlocal cases
        given = action.together(drawn)
        action.kind.parse(given)
        for field, payload in broken(given):
            with pytest.raises(InvalidInputError) as refusal:
                action.handler(payload, Context())
            assert {field} == {fault.field for fault in refusal.value.faults}, payload[field]
            cases += 1

    check()
    assert cases >= CASES * times
    assert [] == tried


@pytest.mark.usefixtures("delays")
def test_the_wire_is_watched(tried: list[object]) -> None:
    """A valid input tries to connect to AWS, so the other tests would notice a connection."""
    with pytest.raises(Exception, match="Secrets Manager does not answer"):
        get_sms.handler({"message_sid": "SM" + "0" * 32}, Context())
    assert tried


def test_types_are_all_known() -> None:
    """Every input field has valid and invalid values here; a field of another type would not be tested."""
    for action in ACTIONS.values():
        for spec in fields(action.kind).values():
            info = inspect.type_info(spec.type)
            assert isinstance(right(info), st.SearchStrategy)
            assert len(list(wrong(info))) > 4
