"""Tests of raw_request: its inputs, its answer, its retries and its errors."""

import base64
import email.parser
import email.policy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import pytest
import raw_request
import responses
from twilio_connector import errors
from twilio_connector.api import client
from twilio_connector.api.client import MAX_BYTES
from twilio_connector.errors import (
    ConnectorError,
    InvalidInputError,
    OutcomeUnknownError,
    ResponseTooLargeError,
    TwilioAuthenticationError,
    TwilioNotFoundError,
    TwilioRateLimitError,
    TwilioRejectedError,
    TwilioUnavailableError,
)

from tests.aws_wire import AwsWire
from tests.conftest import Context, LoadEvent
from tests.faults import Fault, FaultServer, closed_port, faults
from tests.faults.wire import Exchange, Request
from tests.stopwatch import Stopwatch
from tests.unit.conftest import ACCOUNT_SID, API_KEY, AUTH_TOKEN

pytestmark = pytest.mark.usefixtures("delays")

OWN = "/Accounts/$TWILIO_ACCOUNT_SID"
CALLS = f"{OWN}/Calls.json"
ROOT = f"/2010-04-01/Accounts/{ACCOUNT_SID}"
SUBACCOUNT = "AC" + "5" * 32
STRANGER = "AC" + "7" * 32
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "LINK", "UNLINK", "PURGE"]
READS = {"GET", "HEAD", "OPTIONS"}
LARGEST_BINARY = 4_500_000  # bytes


def call(url: str = CALLS, method: str = "GET", **more: Any) -> dict[str, Any]:
    """Make a raw request."""
    result: dict[str, Any] = raw_request.handler({"url": url, "method": method} | more, Context())
    return result


def failure(**inputs: Any) -> ConnectorError:
    """Return the error that a raw request raises."""
    with pytest.raises(ConnectorError) as caught:
        call(**inputs)
    return caught.value


def faulty(**inputs: Any) -> set[str]:
    """Return the names of the inputs that a raw request rejects."""
    error = failure(**inputs)
    assert isinstance(error, InvalidInputError)
    return {fault.field for fault in error.faults}


class Part(NamedTuple):
    """One part of a multipart body."""

    name: str
    file_name: str | None
    content: bytes


def parts(request: Request) -> list[Part]:
    """Return the parts of a multipart body."""
    head = f"Content-Type: {request.header('Content-Type')}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
    assert message.is_multipart()
    return [
        Part(
            str(part.get_param("name", header="Content-Disposition")),
            part.get_filename(),
            bytes(part.get_payload(decode=True)),
        )
        for part in message.iter_parts()
    ]


def with_status(status: int, fault: Fault) -> Fault:
    """Return a copy of a fault that answers with this HTTP status."""

    def act(exchange: Exchange) -> None:
        exchange.normal = exchange.normal._replace(status=status)
        fault.act(exchange)

    return Fault(f"{fault.name}_{status}", act)


def test_all_inputs_have_their_defaults() -> None:
    """Of the fifteen inputs, two are required, and the others have their defaults."""
    raw = raw_request.RawRequest.parse({"url": CALLS, "method": "GET"})

    assert {
        "connection": None,
        "url": CALLS,
        "method": "GET",
        "data": None,
        "form_data": None,
        "file_data": None,
        "file_data_file_names": None,
        "query_parameters": None,
        "headers": None,
        "response_type": "json",
        "timeout_ms": 10_000,
        "max_retry_count": 0,
        "retry_delay_ms": 0,
        "retry_on_all_errors": False,
        "use_exponential_backoff": False,
    } == {name: getattr(raw, name) for name in raw.__struct_fields__}


def test_an_answer_has_four_parts(twilio: FaultServer) -> None:
    """The result has status, headers, data and attempts. Header names are lower case, without hop-by-hop headers."""
    twilio.script(faults.answer(b'{"sid": "CA1"}', code=202, headers={"X-Test": "a", "Keep-Alive": "timeout=5"}))
    answer = call()

    assert {"status_code", "headers", "data", "attempts"} == answer.keys()
    assert (202, {"sid": "CA1"}, 1) == (answer["status_code"], answer["data"], answer["attempts"])
    assert {"x-test": "a", "content-type": "application/json"}.items() <= answer["headers"].items()
    assert not {"connection", "keep-alive", "X-Test"} & answer["headers"].keys()
    json.dumps(answer)


def test_the_example_event_is_answered(twilio: FaultServer, event: LoadEvent, context: Context) -> None:
    """The example event returns the same data in a direct invocation and through API Gateway."""
    direct = raw_request.handler(event("raw_request"), context)
    answer = raw_request.handler(event("raw_request_api"), context)

    assert (200, 200) == (direct["status_code"], answer["statusCode"])
    assert direct["data"] == json.loads(answer["body"])["data"]
    assert [f"{ROOT}/Messages.json?PageSize=1"] * 2 == [request.target for request in twilio.requests]


# url, connection


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (OWN, ROOT),
        (f"{OWN}.json", f"{ROOT}.json"),
        (f"/Accounts/{ACCOUNT_SID}.json", f"{ROOT}.json"),
        (CALLS, f"{ROOT}/Calls.json"),
        (f"{OWN}/Messages/SM1/Media/ME1", f"{ROOT}/Messages/SM1/Media/ME1"),
        (f"{OWN}/Queues/a%2Bb~c:d,e=f+g", f"{ROOT}/Queues/a%2Bb~c:d,e=f+g"),
        (f"{OWN}/$TWILIO_ACCOUNT_SID.json", f"{ROOT}/{ACCOUNT_SID}.json"),
        (f"{OWN}/a..b", f"{ROOT}/a..b"),
    ],
)
def test_the_url_is_a_path_in_the_account(twilio: FaultServer, url: str, target: str) -> None:
    """The path is appended to the base URL unchanged, except that the variable is replaced by the account's SID."""
    call(url)

    assert [target] == [request.target for request in twilio.requests]


def test_a_listed_subaccount_may_be_used(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """The connection's own credentials reach a listed subaccount. Any other account is refused before a request."""
    aws_wire.secrets["twilio/default"] = json.dumps(API_KEY | {"subaccount_sids": [SUBACCOUNT]})
    call(f"/Accounts/{SUBACCOUNT}.json")

    assert {"url"} == faulty(url=f"/Accounts/{STRANGER}.json")
    assert [(f"/2010-04-01/Accounts/{SUBACCOUNT}.json", API_KEY["api_key_sid"])] == [
        (request.target, (request.credentials or ("", ""))[0]) for request in twilio.requests
    ]


def test_another_connection_brings_its_own_account(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """Another connection's SID replaces the variable. That connection may not use the default connection's account."""
    aws_wire.secrets["twilio/other"] = json.dumps({"account_sid": STRANGER, "auth_token": AUTH_TOKEN})
    call(connection="other")

    assert {"url"} == faulty(url=f"/Accounts/{ACCOUNT_SID}.json", connection="other")
    assert [(f"/2010-04-01/Accounts/{STRANGER}/Calls.json", (STRANGER, AUTH_TOKEN))] == [
        (request.target, request.credentials) for request in twilio.requests
    ]


def test_a_connection_that_is_not_there(twilio: FaultServer) -> None:
    """A connection that does not exist raises ConnectionNotFoundError, and no request is sent."""
    assert isinstance(failure(connection="nobody"), errors.ConnectionNotFoundError)
    assert [] == twilio.requests


# method


@pytest.mark.parametrize("method", METHODS)
def test_each_method_goes_out(twilio: FaultServer, method: str) -> None:
    """Each allowed method is sent unchanged to the given path. HEAD and DELETE return no data."""
    answer = call(method=method)

    assert [(method, f"{ROOT}/Calls.json")] == [(request.method, request.target) for request in twilio.requests]
    assert (method in {"HEAD", "DELETE"}) == (answer["data"] is None)


@pytest.mark.parametrize("method", ["get", "TRACE", "CONNECT", "", "GET ", "GET\r\nX: 1", 1, None])
def test_other_methods_are_refused(twilio: FaultServer, method: Any) -> None:
    """Any other method is refused, also an allowed one in lower case, and no request is sent."""
    assert {"method"} == faulty(method=method)
    assert [] == twilio.requests


def test_no_content_is_none(twilio: FaultServer) -> None:
    """A 204 is a success without data."""
    answer = call(method="DELETE")

    assert (204, None) == (answer["status_code"], answer["data"])
    assert 1 == len(twilio.requests)


# data


@pytest.mark.parametrize(
    ("inputs", "content_type", "body"),
    [
        ({"data": "a=1&b=\u00e9"}, "application/x-www-form-urlencoded", "a=1&b=\u00e9".encode()),
        ({"data": ""}, "application/x-www-form-urlencoded", b""),
        ({"data": "x", "headers": {"content-TYPE": "text/plain"}}, "text/plain", b"x"),
        ({"data": {"A": "x y", "B": [1, True, "c"]}}, "application/x-www-form-urlencoded", b"A=x+y&B=1&B=true&B=c"),
        ({"data": {}}, None, b""),
        (
            {"data": {"a": [1, {"b": None}]}, "headers": {"Content-Type": "application/json; charset=utf-8"}},
            "application/json; charset=utf-8",
            b'{"a":[1,{"b":null}]}',
        ),
        (
            {"data": {"a": 1.5}, "headers": [{"key": "Content-Type", "value": "Application/Scim+JSON"}]},
            "Application/Scim+JSON",
            b'{"a":1.5}',
        ),
        ({}, None, b""),
    ],
)  # fmt: skip
def test_data_is_the_body(twilio: FaultServer, inputs: dict[str, Any], content_type: str | None, body: bytes) -> None:
    """A text is sent unchanged. An object is sent as a form, or as JSON if the Content-Type header says so."""
    call(method="POST", **inputs)
    request = twilio.requests[0]

    assert (content_type, body) == (request.header("Content-Type"), request.body)
    assert str(len(body)) == request.header("Content-Length")


@pytest.mark.parametrize(
    "inputs",
    [
        {"data": {"a": {"b": 1}}},
        {"data": {"a": None}},
        {"data": {"a": [["b"]]}},
        {"data": {"a": {"b": 1}}, "headers": {"Content-Type": "text/json-ish"}},
        {"data": ["a"]},
        {"data": 5},
    ],
)
def test_data_that_is_no_form_is_refused(twilio: FaultServer, inputs: dict[str, Any]) -> None:
    """`data` that is not text and cannot be a form is refused: a form has no objects, lists of lists or nulls."""
    assert {"data"} == faulty(method="POST", **inputs)
    assert [] == twilio.requests


# form_data, file_data, file_data_file_names


def test_a_multipart_upload(twilio: FaultServer) -> None:
    """A multipart upload sends fields and files byte for byte, with the given names."""
    octets = bytes(range(256))
    call(
        method="POST",
        form_data=[{"key": "A", "value": "\u00e9"}, {"key": "A", "value": "2"}, {"key": "B", "value": True}],
        file_data={
            "text": "line\r\nline",
            "bytes": {"base64": base64.b64encode(octets).decode()},
            "empty": "",
        },
        file_data_file_names={"bytes": "a b.bin"},
    )

    assert [
        Part("A", None, "\u00e9".encode()),
        Part("A", None, b"2"),
        Part("B", None, b"true"),
        Part("text", "text", b"line\r\nline"),
        Part("bytes", "a b.bin", octets),
        Part("empty", "empty", b""),
    ] == parts(twilio.requests[0])


def test_an_upload_of_lists(twilio: FaultServer) -> None:
    """A field may repeat. Its files get the given names in order; a file without a given name gets the field's name."""
    call(
        method="POST",
        file_data=[
            {"key": "page", "value": "one"},
            {"key": "cover", "value": {"base64": "AP8="}},
            {"key": "page", "value": "two"},
            {"key": "page", "value": "three"},
        ],
        file_data_file_names=[{"key": "page", "value": "1.txt"}, {"key": "page", "value": "2.txt"}],
    )

    assert [
        Part("page", "1.txt", b"one"),
        Part("cover", "cover", b"\x00\xff"),
        Part("page", "2.txt", b"two"),
        Part("page", "page", b"three"),
    ] == parts(twilio.requests[0])


@pytest.mark.parametrize("alone", [{"form_data": {"A": "1"}}, {"file_data": {"A": "1"}}])
def test_each_kind_of_part_goes_alone(twilio: FaultServer, alone: dict[str, Any]) -> None:
    """`form_data` alone and `file_data` alone are both sent as multipart."""
    call(method="POST", **alone)

    assert [b"1"] == [part.content for part in parts(twilio.requests[0])]


def test_file_names_cannot_write_headers(twilio: FaultServer) -> None:
    """Quotes and line ends in field and file names are encoded, so that a name cannot add a header."""
    call(
        method="POST",
        form_data={'a"\r\nX-Evil: 1\r\n\r\n': "1"},
        file_data={'b"\r\nX-Evil: 1': "2"},
        file_data_file_names={'b"\r\nX-Evil: 1': 'c"; filename="d\r\nX-Evil: 1'},
    )
    body = twilio.requests[0].body

    assert [b"1", b"2"] == [part.content for part in parts(twilio.requests[0])]
    assert not any(line.startswith(b"X-Evil") for line in body.split(b"\r\n"))


@pytest.mark.parametrize(
    ("inputs", "fields"),
    [
        ({"data": "a", "form_data": {"A": "1"}}, {"form_data"}),
        ({"data": "a", "file_data": {"A": "1"}}, {"file_data"}),
        ({"data": {}, "form_data": {"A": "1"}, "file_data": {"A": "1"}}, {"form_data", "file_data"}),
        ({"form_data": {"A": "1"}, "headers": {"Content-Type": "text/plain"}}, {"headers"}),
        ({"form_data": {"A": {"b": 1}}}, {"form_data"}),
        ({"form_data": "A=1"}, {"form_data"}),
        ({"form_data": [{"key": "A"}]}, {"form_data"}),
        ({"form_data": [{"key": "A", "value": "1", "more": 1}]}, {"form_data"}),
        ({"form_data": [{"key": 1, "value": "1"}]}, {"form_data"}),
        ({"file_data": ["A"]}, {"file_data"}),
        ({"file_data": {"A": 1}}, {"file_data"}),
        ({"file_data": {"A": {"base64": "%"}}}, {"file_data"}),
        ({"file_data": {"A": {"base64": "\u00e9"}}}, {"file_data"}),
        ({"file_data": {"A": {"base64": "QQ==", "more": 1}}}, {"file_data"}),
        ({"file_data": {"A": {"base64": 1}}}, {"file_data"}),
        ({"file_data": {"A": "1"}, "file_data_file_names": {"B": "b"}}, {"file_data_file_names"}),
        ({"file_data_file_names": {"B": "b"}}, {"file_data_file_names"}),
        ({"file_data": {"A": "1"}, "file_data_file_names": {"A": 1}}, {"file_data_file_names"}),
        ({"file_data": 1, "file_data_file_names": {"A": "a"}}, {"file_data"}),
        ({"file_data": [{"key": "A", "value": 1}]}, {"file_data"}),
        ({"file_data": [{"key": 1, "value": "a"}]}, {"file_data"}),
        ({"file_data": [{"key": "A"}]}, {"file_data"}),
        ({"file_data": {"A": "1"}, "file_data_file_names": ["A"]}, {"file_data_file_names"}),
        ({"file_data": {"A": "1"}, "file_data_file_names": [{"key": "A", "value": 1}]}, {"file_data_file_names"}),
        ({"file_data": {"A": "1"}, "file_data_file_names": [{"key": "A", "value": "a"}] * 2}, {"file_data_file_names"}),
    ],
)
def test_uploads_that_are_wrong_are_refused(twilio: FaultServer, inputs: dict[str, Any], fields: set[str]) -> None:
    """An invalid upload is refused with the names of the wrong inputs, and no request is sent."""
    assert fields == faulty(method="POST", **inputs)
    assert [] == twilio.requests


# query_parameters, headers


@pytest.mark.parametrize(
    ("query", "pairs"),
    [
        ({"PageSize": 1}, [("PageSize", "1")]),
        ({"To": "+15005550006", "A": ["x", "y"]}, [("To", "+15005550006"), ("A", "x"), ("A", "y")]),
        (
            [{"key": "StartTime>", "value": "2026-01-01"}, {"key": "A", "value": 1}, {"key": "A", "value": False}],
            [("StartTime>", "2026-01-01"), ("A", "1"), ("A", "false")],
        ),
        ({"a b&=#?/": "c d&=#?/\u00e9\r\n"}, [("a b&=#?/", "c d&=#?/\u00e9\r\n")]),
        ({"A": ""}, [("A", "")]),
        ({}, []),
    ],
)  # fmt: skip
def test_query_parameters_are_encoded(twilio: FaultServer, query: Any, pairs: list[tuple[str, str]]) -> None:
    """Query parameters are encoded, so that they cannot change the rest of the URL. A name may repeat."""
    call(query_parameters=query)
    request = twilio.requests[0]

    assert f"{ROOT}/Calls.json" == request.path
    assert pairs == parse_qsl(request.query, keep_blank_values=True)


@pytest.mark.parametrize("query", ["A=1", 5, ["A"], {"A": None}, {"A": {"b": 1}}])
def test_query_parameters_of_another_kind_are_refused(twilio: FaultServer, query: Any) -> None:
    """Query parameters are refused if they are not an object or a list of pairs, or if a value is null or an object."""
    assert {"query_parameters"} == faulty(query_parameters=query)
    assert [] == twilio.requests


def test_headers_go_along(twilio: FaultServer) -> None:
    """The caller's headers are sent. Headers of the same name are joined, and the credentials are not replaced."""
    call(
        headers=[
            {"key": "X-One", "value": "a"},
            {"key": "x-one", "value": "b c"},
            {"key": "X-Number", "value": 5},
            {"key": "Accept", "value": "text/csv"},
            {"key": "X-Empty", "value": ""},
        ]
    )
    request = twilio.requests[0]

    assert ("a, b c", "5", "text/csv", "") == tuple(
        request.header(name) for name in ("X-One", "X-Number", "Accept", "X-Empty")
    )
    assert (API_KEY["api_key_sid"], API_KEY["api_key_secret"]) == request.credentials
    assert 1 == sum(name.lower() == "x-one" for name, _ in request.headers)


def test_there_are_bounds(twilio: FaultServer) -> None:
    """A request has at most 100 headers and a URL of at most 32,768 characters, because servers accept no more."""
    call(headers={f"X-{number}": "a" for number in range(100)})
    assert {"headers"} == faulty(headers={f"X-{number}": "a" for number in range(101)})
    assert {"url"} == faulty(url=f"{OWN}/{'a' * 32_768}")
    assert 1 == len(twilio.requests)


# response_type


@pytest.mark.parametrize(
    ("body", "response_type", "data"),
    [
        (b'{"a": [1]}', "json", {"a": [1]}),
        (b"[1, 2]", "json", [1, 2]),
        (b'"a"', "json", "a"),
        (b"null", "json", None),
        (b"", "json", None),
        (b"<TwilioResponse/>", "json", "<TwilioResponse/>"),
        (b'{"a": 1', "json", '{"a": 1'),
        (b'{"a": NaN}', "json", '{"a": NaN}'),
        (b'{"a": 1e999}', "json", '{"a": 1e999}'),
        (b"caf\xe9", "json", "caf\ufffd"),
        (b'{"a": 123456789012345678901234567890}', "json", {"a": 123456789012345678901234567890}),
        (b"[" * 100_000, "json", "[" * 100_000),
        (b'{"a": 1}', "text", '{"a": 1}'),
        (b"", "text", ""),
        (b"caf\xe9", "text", "caf\ufffd"),
        (b"\x00\xff", "binary", "AP8="),
        (b"", "binary", ""),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 10 else "",
)
def test_an_answer_comes_as_asked(twilio: FaultServer, body: bytes, response_type: str, data: Any) -> None:
    """`response_type` chooses how an answer is returned: as JSON (or text if it is not JSON), as text, or as Base64."""
    twilio.script(faults.answer(body))
    answer = call(response_type=response_type)

    assert data == answer["data"]
    assert (response_type == "binary") == answer.get("is_base64_encoded", False)
    json.dumps(answer)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("depth", [500, 990, 5_000, 9_990, 9_998, 9_999, 10_000])
def test_an_answer_however_deep_is_no_fault_of_ours(twilio: FaultServer, method: str, depth: int) -> None:
    """An answer is returned as JSON or as text at any depth of nesting, and never raises an error."""
    twilio.script(faults.answer(b"[" * depth + b"]" * depth))
    answer = call(method=method)

    assert isinstance(answer["data"], (str, list))
    json.dumps(answer)


@pytest.mark.parametrize("response_type", ["xml", "JSON", "", 1])
def test_other_response_types_are_refused(twilio: FaultServer, response_type: Any) -> None:
    """Any other `response_type` is refused, and no request is sent."""
    assert {"response_type"} == faulty(response_type=response_type)
    assert [] == twilio.requests


# timeout_ms


@pytest.mark.parametrize("fault", [faults.hang(), faults.drip("headers"), faults.drip("body")], ids=lambda f: f.name)
@pytest.mark.parametrize(("method", "error"), [("GET", TwilioUnavailableError), ("POST", OutcomeUnknownError)])
def test_the_timeout_holds_for_the_whole_answer(
    twilio: FaultServer, fault: Fault, method: str, error: type[ConnectorError]
) -> None:
    """`timeout_ms` limits the time for the whole answer, in milliseconds, even if the answer arrives byte by byte."""
    client.CONNECTIONS.get("twilio/", "default")
    twilio.script(fault)
    with Stopwatch() as took:
        ended = failure(method=method, timeout_ms=200)

    assert took.wall >= 0.2
    assert took.seconds < 0.7
    assert (error, 1) == (type(ended), len(twilio.requests))


def test_the_timeout_is_bounded_by_the_function_s_time(twilio: FaultServer) -> None:
    """A request ends before the function's own timeout, even if `timeout_ms` is longer."""
    client.CONNECTIONS.get("twilio/", "default")
    twilio.script(faults.hang())
    with Stopwatch() as took, pytest.raises(TwilioUnavailableError):
        raw_request.handler({"url": CALLS, "method": "GET", "timeout_ms": 900_000}, Context(1.7))

    assert took.seconds < 1.7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout_ms", 0),
        ("timeout_ms", -1),
        ("timeout_ms", 900_001),
        ("timeout_ms", 1.5),
        ("timeout_ms", "1000"),
        ("timeout_ms", True),
        ("max_retry_count", -1),
        ("max_retry_count", 101),
        ("max_retry_count", "1"),
        ("retry_delay_ms", -1),
        ("retry_delay_ms", 900_001),
        ("retry_on_all_errors", "true"),
        ("retry_on_all_errors", 1),
        ("use_exponential_backoff", "false"),
    ],
)
def test_figures_that_are_wrong_are_refused(twilio: FaultServer, name: str, value: Any) -> None:
    """A number or boolean of another type or out of bounds is refused, and no request is sent."""
    assert {name} == faulty(**{name: value})
    assert [] == twilio.requests


# max_retry_count, retry_delay_ms, retry_on_all_errors, use_exponential_backoff


FAILING = [
    (faults.status(500), "5xx"),
    (faults.status(503), "5xx"),
    (faults.html(502), "5xx"),
    (faults.RESET_BEFORE_READ, "network"),
    (faults.RESET_AFTER_READ, "network"),
    (faults.cut("body"), "network"),
    (faults.NOT_HTTP, "network"),
    (faults.status(400), "other"),
    (faults.NOT_FOUND, "other"),
    (faults.status(408), "other"),
    (faults.too_many(), "other"),
    (faults.QUEUE_FULL, "other"),
    (faults.redirect(302, "/elsewhere"), "other"),
    (faults.status(300), "other"),
]


@pytest.mark.parametrize(("fault", "kind"), FAILING, ids=lambda value: value.name if isinstance(value, Fault) else "")
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_retries_are_the_callers_choice(
    twilio: FaultServer, delays: list[float], method: str, fault: Fault, kind: str
) -> None:
    """`max_retry_count`, 0 by default, retries 5xx and network errors, or all errors with `retry_on_all_errors`."""
    counts: list[int] = []
    for options in (
        {},
        {"retry_on_all_errors": True},
        {"max_retry_count": 3},
        {"max_retry_count": 3, "retry_on_all_errors": True},
        {"max_retry_count": 1, "retry_delay_ms": 50, "retry_on_all_errors": True},
    ):
        twilio.reset()
        twilio.script(fault)
        failure(method=method, **options)
        counts.append(len(twilio.requests))

    assert [1, 1, 1 if kind == "other" else 4, 4, 2] == counts
    assert [0.0] * (3 if kind == "other" else 6) + [0.05] == delays


def test_a_retry_that_succeeds(twilio: FaultServer, delays: list[float]) -> None:
    """A successful retry returns its answer and the number of attempts."""
    twilio.script(faults.status(500), faults.RESET_AFTER_READ, faults.OK)
    answer = call(method="POST", max_retry_count=5, retry_delay_ms=1500)

    assert (200, 3, [1.5, 1.5]) == (answer["status_code"], answer["attempts"], delays)
    assert 3 == len(twilio.requests)


def test_the_same_is_sent_again(twilio: FaultServer) -> None:
    """A retry sends the same form fields, files and headers as the first attempt."""
    twilio.script(faults.status(500), faults.OK)
    call(method="POST", max_retry_count=1, form_data={"A": "1"}, file_data={"B": "2"}, headers={"X-A": "1"})
    first, second = ([Part(*part) for part in parts(request)] for request in twilio.requests)

    assert [Part("A", None, b"1"), Part("B", "B", b"2")] == first == second
    assert ["1", "1"] == [request.header("X-A") for request in twilio.requests]


def test_exponential_backoff(twilio: FaultServer, delays: list[float]) -> None:
    """Exponential backoff doubles the delay up to four seconds, and `retry_delay_ms` is ignored."""
    twilio.script(faults.status(500))
    failure(max_retry_count=6, use_exponential_backoff=True, retry_delay_ms=60_000)

    assert [0.25, 0.5, 1, 2, 4, 4] == delays
    assert 7 == len(twilio.requests)


@pytest.mark.parametrize("options", [{"use_exponential_backoff": True}, {"retry_delay_ms": 100}])
def test_retry_after_is_honoured(twilio: FaultServer, delays: list[float], options: dict[str, Any]) -> None:
    """A Retry-After header of Twilio replaces the delay that the caller chose."""
    twilio.script(faults.too_many("3"), faults.status(503, headers={"Retry-After": "2"}), faults.OK)
    call(max_retry_count=2, retry_on_all_errors=True, **options)

    assert [3, 2] == delays
    assert 3 == len(twilio.requests)


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        (faults.too_many("60"), {"retry_on_all_errors": True}),
        (faults.status(500), {"retry_delay_ms": 60_000}),
    ],
    ids=["retry_after", "retry_delay_ms"],
)
def test_a_wait_that_outlasts_the_function_is_not_begun(
    twilio: FaultServer, delays: list[float], fault: Fault, options: dict[str, Any]
) -> None:
    """A retry is not attempted if its delay would outlast the function. The caller gets the error at once."""
    twilio.script(fault)
    failure(max_retry_count=5, **options)

    assert (1, []) == (len(twilio.requests), delays)


def test_network_errors_before_the_wire_are_retried_when_asked(
    aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, delays: list[float]
) -> None:
    """A refused connection counts as a network error. It is retried only with `max_retry_count`."""
    with closed_port() as port:
        monkeypatch.setenv("TWILIO_API_URL", f"http://127.0.0.1:{port}")

        assert isinstance(failure(method="POST"), TwilioUnavailableError)
        assert [] == delays
        assert isinstance(failure(method="POST", max_retry_count=2, retry_delay_ms=7), TwilioUnavailableError)
        assert [0.007] * 2 == delays
    assert 1 == aws_wire.count("GetSecretValue")


@pytest.mark.usefixtures("aws_wire")
def test_a_bad_certificate_is_never_tried_again(monkeypatch: pytest.MonkeyPatch, delays: list[float]) -> None:
    """An invalid certificate is never retried, even with `retry_on_all_errors`."""
    with FaultServer(tls="self_signed") as server:
        monkeypatch.setenv("TWILIO_API_URL", server.url)
        error = failure(max_retry_count=3, retry_on_all_errors=True)

        assert (TwilioUnavailableError, 1, [], []) == (
            type(error),
            server.connections,
            server.requests,
            delays,
        )


def test_wrong_credentials_are_renewed_once(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """After a 401, the secret is read again and the request is sent once more. This does not count as a retry."""
    twilio.script(faults.UNAUTHORIZED)

    assert isinstance(failure(method="POST"), TwilioAuthenticationError)
    assert (2, 2) == (len(twilio.requests), aws_wire.count("GetSecretValue"))


# Errors


@pytest.mark.parametrize(
    ("fault", "read", "change"),
    [
        (faults.status(400), TwilioRejectedError, TwilioRejectedError),
        (faults.NOT_FOUND, TwilioNotFoundError, TwilioNotFoundError),
        (faults.too_many(), TwilioRateLimitError, TwilioRateLimitError),
        (faults.status(503), TwilioUnavailableError, OutcomeUnknownError),
        (faults.status(304), TwilioUnavailableError, OutcomeUnknownError),
        (faults.RESET_AFTER_READ, TwilioUnavailableError, OutcomeUnknownError),
        (faults.CLOSE_AFTER_READ, TwilioUnavailableError, OutcomeUnknownError),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
@pytest.mark.parametrize("method", METHODS)
def test_each_method_reads_or_changes(
    twilio: FaultServer, method: str, fault: Fault, read: type[ConnectorError], change: type[ConnectorError]
) -> None:
    """GET, HEAD and OPTIONS are reads. The other methods may change something, so their outcome can be unknown."""
    twilio.script(fault)

    assert (read if method in READS else change) is type(failure(method=method))
    assert 1 == len(twilio.requests)


SIZES = [("json", MAX_BYTES), ("text", MAX_BYTES), ("binary", LARGEST_BINARY)]


@pytest.mark.parametrize(("method", "error"), [("GET", ResponseTooLargeError), ("POST", OutcomeUnknownError)])
@pytest.mark.parametrize(("response_type", "size"), SIZES)
def test_an_answer_over_the_limit(
    twilio: FaultServer, response_type: str, size: int, method: str, error: type[ConnectorError]
) -> None:
    """An answer over the size limit is an error for a read, and an unknown outcome for a change. Neither is retried."""
    twilio.script(faults.answer(b"0" * (size + 1)))
    ended = failure(method=method, response_type=response_type, max_retry_count=3, retry_on_all_errors=True)

    assert (error, 1) == (type(ended), len(twilio.requests))


@pytest.mark.parametrize("fault", [faults.ENDLESS, faults.gzip_bomb(64), faults.huge(50)], ids=lambda f: f.name)
def test_an_answer_without_end(twilio: FaultServer, fault: Fault) -> None:
    """An answer over the size limit is not read to its end, whether it is compressed or not."""
    twilio.script(fault)

    assert ResponseTooLargeError is type(failure(response_type="binary"))
    assert OutcomeUnknownError is type(failure(method="POST", response_type="text"))
    assert 2 == len(twilio.requests)


def test_the_largest_binary_answer_fits(twilio: FaultServer, event: LoadEvent, context: Context) -> None:
    """The largest binary answer fits into a function's response, also as JSON within JSON for API Gateway."""
    twilio.script(faults.answer(bytes(LARGEST_BINARY)))
    answer = raw_request.handler(
        event("raw_request_api") | {"body": json.dumps({"url": CALLS, "method": "GET", "response_type": "binary"})},
        context,
    )

    assert 200 == answer["statusCode"]
    assert len(json.dumps(answer)) < 6_291_556
    assert LARGEST_BINARY == len(base64.b64decode(json.loads(answer["body"])["data"]))


@pytest.mark.parametrize(("method", "error"), [("GET", ResponseTooLargeError), ("POST", OutcomeUnknownError)])
def test_an_answer_that_grows_over_the_limit_when_it_is_written(
    twilio: FaultServer, method: str, error: type[ConnectorError]
) -> None:
    """A text that exceeds the size limit only as JSON is too large as well: each quote takes two bytes in JSON."""
    twilio.script(faults.answer(b'"' * (MAX_BYTES - 100)))

    assert error is type(failure(method=method, response_type="text"))
    assert 1 == len(twilio.requests)


# Media


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_media_are_fetched_where_twilio_keeps_them(twilio: FaultServer, code: int) -> None:
    """A media redirect is followed once, with GET, and without credentials or the caller's headers."""
    media = f"{twilio.url}/media/1.jpg?Expires=1&Signature=a%2Fb"
    twilio.script(faults.redirect(code, media), faults.answer(b"\xff\xd8", code=200))
    answer = call(f"{OWN}/Messages/MM1/Media/ME1", response_type="binary", headers={"X-A": "1"})
    second = twilio.requests[1]

    assert ("/9g=", True, 2) == (answer["data"], answer["is_base64_encoded"], answer["attempts"])
    assert ("GET", "/media/1.jpg?Expires=1&Signature=a%2Fb") == (second.method, second.target)
    assert (None, None, None) == tuple(second.header(name) for name in ("Authorization", "Cookie", "X-A"))
    assert 2 == len(twilio.requests)


def test_media_that_redirect_again_are_not_followed(twilio: FaultServer) -> None:
    """Each attempt sends one request and follows one redirect, also when the caller retries."""
    twilio.script(faults.redirect(307, f"{twilio.url}/again"))

    assert isinstance(failure(response_type="binary"), TwilioUnavailableError)
    assert 2 == len(twilio.requests)
    failure(response_type="binary", max_retry_count=1, retry_on_all_errors=True)
    assert 6 == len(twilio.requests)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "GET"])
def test_only_a_get_is_redirected(twilio: FaultServer, method: str) -> None:
    """A redirect is followed only for GET, because no other method fetches media."""
    twilio.script(faults.redirect(307, f"{twilio.url}/media"))
    failure(method=method, response_type="binary")

    assert 1 == len(twilio.requests)


@pytest.mark.parametrize("response_type", ["json", "text"])
def test_only_binary_answers_are_redirected(twilio: FaultServer, response_type: str) -> None:
    """A redirect is followed only if `response_type` is `binary`, because media are binary."""
    twilio.script(faults.redirect(307, f"{twilio.url}/media"))
    failure(response_type=response_type)

    assert 1 == len(twilio.requests)


@pytest.mark.parametrize("code", [400, 404, 410, 500, 503])
def test_only_a_redirect_redirects(twilio: FaultServer, code: int) -> None:
    """A Location header in an answer that is not a redirect is ignored."""
    twilio.script(faults.status(code, headers={"Location": f"{twilio.url}/media"}))
    failure(response_type="binary")

    assert 1 == len(twilio.requests)


def test_oversize_media_are_refused(twilio: FaultServer) -> None:
    """The size limit also holds for media that are fetched through a redirect."""
    twilio.script(faults.redirect(307, f"{twilio.url}/media"), faults.ENDLESS)

    assert isinstance(failure(response_type="binary"), ResponseTooLargeError)
    assert 2 == len(twilio.requests)


@pytest.fixture
def real(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> Iterator[responses.RequestsMock]:
    """Yield a mock of Twilio's real hosts, so that no request reaches them."""
    monkeypatch.setenv("TWILIO_API_URL", "")
    with responses.RequestsMock() as wire:
        wire.add_passthru(aws_wire.url)
        yield wire


@pytest.mark.parametrize("host", ["media.twiliocdn.com", "twiliocdn.com", "a.b-c.twiliocdn.com"])
def test_real_media_hosts_are_known(real: responses.RequestsMock, host: str) -> None:
    """A redirect to a host of `twiliocdn.com` is followed without credentials."""
    media = f"https://{host}/{ACCOUNT_SID}/1?response-content-disposition=inline"
    real.get(f"https://api.twilio.com{ROOT}/Media/ME1", status=307, headers={"Location": media})
    real.get(media, body=b"\xff\xd8")
    answer = call(f"{OWN}/Media/ME1", response_type="binary")

    assert ("/9g=", 2) == (answer["data"], answer["attempts"])
    assert [True, False] == ["Authorization" in each.request.headers for each in real.calls]


def test_an_error_of_an_api_call(twilio: FaultServer, event: LoadEvent, context: Context) -> None:
    """Through API Gateway, an error is returned with the status and the title that all actions use."""
    twilio.script(faults.NOT_FOUND)
    answer = raw_request.handler(event("raw_request_api"), context)

    assert (404, "TwilioNotFoundError") == (answer["statusCode"], json.loads(answer["body"])["title"])


def test_an_error_with_a_body_that_does_not_end(twilio: FaultServer) -> None:
    """An error whose body does not end is classified by its status."""
    twilio.script(replace(with_status(422, faults.ENDLESS), name="endless_422"))

    assert isinstance(failure(method="POST"), TwilioRejectedError)
    assert 1 == len(twilio.requests)
