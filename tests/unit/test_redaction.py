"""No answer of a raw request contains a secret, at any place and in any escaped form."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import raw_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twilio_connector.api.redaction import Redaction
from twilio_connector.errors import TwilioRejectedError

from tests.aws_wire import AwsWire
from tests.conftest import Context
from tests.faults import FaultServer, faults
from tests.unit.conftest import ACCOUNT_SID

# Invented secrets, with characters that JSON, URLs and XML escape.
TOKEN = "7f3c19a2e5d84b60" * 2
OLD_TOKEN = "b1946ac92492d234" * 2
KEY_SECRET = 'Zq"8\\x/<&%41+K='
SHARED = "sharedKEY-0123456789_~"
SECRETS = [TOKEN, OLD_TOKEN, KEY_SECRET, SHARED]
CONNECTION = {
    "account_sid": ACCOUNT_SID,
    "api_key_sid": "SK" + "0" * 32,
    "api_key_secret": KEY_SECRET,
    "auth_token": TOKEN,
    "secondary_auth_token": OLD_TOKEN,
    "shared_keys": {"CR1": SHARED},
}


def in_json(text: str) -> str:
    """Return a text as JSON escapes it."""
    return json.dumps(text)[1:-1]


def in_json_throughout(text: str) -> str:
    """Return a text with each character escaped for JSON."""
    return "".join(f"\\u{ord(character):04X}" for character in text)


def in_json_with_slashes(text: str) -> str:
    """Return a text as PHP escapes it in JSON, including slashes."""
    return in_json(text).replace("/", "\\/")


def in_url(text: str) -> str:
    """Return a text as a URL escapes it."""
    return quote(text, safe="")


def in_url_throughout(text: str) -> str:
    """Return a text with each character escaped for a URL."""
    return "".join(f"%{ord(character):02x}" for character in text)


def in_xml(text: str) -> str:
    """Return a text as XML escapes it."""
    named = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;"}
    return "".join(named.get(character, character) for character in text)


def in_xml_throughout(text: str) -> str:
    """Return a text with each character escaped for XML."""
    return "".join(f"&#{ord(c)};" if place % 2 else f"&#x{ord(c):X};" for place, c in enumerate(text))


def basic(text: str) -> str:
    """Return a Basic credential with this text as the password."""
    return base64.b64encode(f"{ACCOUNT_SID}:{text}".encode()).decode()


def base64_within(text: str) -> str:
    """Return Base64 that contains a text at an offset."""
    return base64.urlsafe_b64encode(f"ab{text}cd".encode()).decode()


SPELLINGS: list[Callable[[str], str]] = [
    str,
    in_json,
    in_json_throughout,
    in_json_with_slashes,
    in_url,
    in_url_throughout,
    in_xml,
    in_xml_throughout,
    basic,
    base64_within,
]


def call(twilio: FaultServer, body: bytes, *, headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """Return the answer of a raw request to which Twilio responds with this body and these headers."""
    twilio.script(faults.answer(body, code=200, headers=headers or {}))
    answer: dict[str, Any] = raw_request.handler(
        {"method": "GET", "url": f"/Accounts/{ACCOUNT_SID}.json"} | more, Context()
    )
    return answer


@pytest.fixture(autouse=True)
def _connection(aws_wire: AwsWire) -> None:
    aws_wire.secrets["twilio/default"] = json.dumps(CONNECTION)


AROUND = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
ANYWHERE = {
    "secret": st.sampled_from(SECRETS),
    "inner": st.sampled_from(SPELLINGS),
    "outer": st.sampled_from([str, in_json, in_url, in_xml]),
    "before": AROUND,
    "after": AROUND,
}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.sampled_from(["text", "value", "name", "deep", "list"]),
    response_type=st.sampled_from(["json", "text", "binary"]),
    **ANYWHERE,
)
def test_no_secret_is_in_an_answer(
    twilio: FaultServer,
    place: str,
    response_type: str,
    secret: str,
    inner: Callable[[str], str],
    outer: Callable[[str], str],
    before: str,
    after: str,
) -> None:
    """No secret is in an answer, at any place in a text or in JSON, whether it is escaped once or twice."""
    spelling = outer(inner(secret))
    told = f"{before} {spelling} {after}"
    body = {
        "text": told,
        "value": json.dumps({"a": told}),
        "name": json.dumps({told: 1}),
        "deep": json.dumps({"a": [{"b": json.dumps({"c": told})}]}, ensure_ascii=False),
        "list": json.dumps(["x", [told, told]]),
    }[place]
    answer = call(twilio, body.encode(), response_type=response_type)
    data = base64.b64decode(answer["data"]).decode() if response_type == "binary" else answer["data"]

    written = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    assert "[redacted]" in written
    for form in (secret, spelling, in_json(spelling), in_json(in_json(spelling))):
        assert form not in written
    if place != "text" and response_type == "json":
        assert isinstance(data, (dict, list))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["Location", "X-Echo", "Content-Type", "Set-Cookie"]),
    **{**ANYWHERE, "before": st.just("a="), "after": st.just("; b")},
)
def test_no_secret_is_in_a_header(
    twilio: FaultServer,
    name: str,
    secret: str,
    inner: Callable[[str], str],
    outer: Callable[[str], str],
    before: str,
    after: str,
) -> None:
    """No secret is in a header, whether Twilio or a proxy in front of it sets the header."""
    spelling = outer(inner(secret))
    answer = call(twilio, b"{}", headers={name: f"{before}{spelling}{after}"})

    told = answer["headers"][name.lower()]
    assert "[redacted]" in told
    assert told.startswith(before)
    assert told.endswith(after)
    assert not any(form in told for form in (secret, spelling, spelling[-24:]))


@pytest.mark.parametrize(
    ("body", "response_type", "data"),
    [
        (b'{"sid": "AC1", "auth_token": "of-a-subaccount"}', "json", {"sid": "AC1", "auth_token": "[redacted]"}),
        (b'{"a": [{"auth_token": "x"}]}', "json", {"a": [{"auth_token": "[redacted]"}]}),
        (b'{"auth_token": null, "b": 1}', "json", {"auth_token": None, "b": 1}),
        (b'{"auth_token": {"value": "x"}}', "json", {"auth_token": "[redacted]"}),
        (b'{"auth\\u005ftoken": "x"}', "json", {"auth_token": "[redacted]"}),
        (b'{"auth_token": "x"}', "text", '{"auth_token": "[redacted]"}'),
        (b'{"auth_token" :\n"\\u0041x", "b": 1}', "text", '{"auth_token" :\n"[redacted]", "b": 1}'),
        (b'{"auth_token": "cut off', "json", '{"auth_token": "[redacted]'),
        (b'{"a": "{\\"auth_token\\": \\"x\\"}"}', "json", {"a": '{"auth_token": "[redacted]"}'}),
        (b'{"a": "{\\"auth_token\\": \\"x\\"}"}', "text", '{"a": "{\\"auth_token\\": \\"[redacted]\\"}"}'),
        (b"<Sid>AC1</Sid><AuthToken>x</AuthToken>", "json", "<Sid>AC1</Sid><AuthToken>[redacted]</AuthToken>"),
        (b'{"a": "auth_token", "url": "https://e.x/?auth_token=mine"}', "json", {"a": "auth_token", "url": "https://e.x/?auth_token=mine"}),
    ],
)  # fmt: skip
def test_twilios_field_is_redacted(twilio: FaultServer, body: bytes, response_type: str, data: Any) -> None:
    """The value of Twilio's `auth_token` field is redacted for any account. Other uses of the name are kept."""
    assert data == call(twilio, body, response_type=response_type)["data"]


def test_no_secret_is_in_an_error(twilio: FaultServer) -> None:
    """No secret is in the error that an API caller gets, which contains Twilio's own message."""
    said = json.dumps({"code": 20001, "message": f"bad token {TOKEN} in {in_url_throughout(OLD_TOKEN)}"})
    twilio.script(faults.answer(said.encode(), code=400))
    with pytest.raises(TwilioRejectedError) as raised:
        raw_request.handler({"method": "GET", "url": f"/Accounts/{ACCOUNT_SID}.json"}, Context())

    assert raised.value.problem()["detail"].endswith(": bad token [redacted] in [redacted]")


def test_a_number_may_be_a_secret(twilio: FaultServer, aws_wire: AwsWire) -> None:
    """A number in JSON is redacted if it equals a secret."""
    aws_wire.secrets["twilio/default"] = json.dumps(CONNECTION | {"auth_token": "40512345678"})

    assert {"a": "[redacted]", "b": True, "c": 1.5} == call(twilio, b'{"a": 40512345678, "b": true, "c": 1.5}')["data"]


def test_an_answer_without_secrets_is_untouched(twilio: FaultServer) -> None:
    """An answer without secrets is returned unchanged, including its escapes."""
    text = '{"a": "\\u0041%41&#65;\\/", "b": ["QUFB", 1.0, null, {}]}'

    assert text == call(twilio, text.encode(), response_type="text")["data"]
    assert json.loads(text) == call(twilio, text.encode())["data"]


def test_bytes_are_untouched(twilio: FaultServer) -> None:
    """Binary content is not redacted, whether its content type or its bytes show that it is not text."""
    media = TOKEN.encode() + b"\xff"

    assert media == base64.b64decode(call(twilio, media, response_type="binary")["data"])
    picture = {"Content-Type": "image/png"}
    told = call(twilio, TOKEN.encode(), headers=picture, response_type="binary")["data"]
    assert TOKEN.encode() == base64.b64decode(told)


@pytest.mark.parametrize("depth", [400, 5_000])
def test_a_secret_however_deep(twilio: FaultServer, depth: int) -> None:
    """A secret is redacted at any depth of nesting, even beyond Python's recursion limit."""
    answer = call(twilio, b"[" * depth + json.dumps(TOKEN).encode() + b"]" * depth)

    assert TOKEN not in str(answer["data"])


@pytest.mark.parametrize(
    "text",
    [
        TOKEN[:-1] * 20_000,
        "%" * 400_000,
        "\\" * 400_000,
        "&#" * 200_000,
        "%37" * 130_000,
        "\\u0037" * 70_000,
        '"auth_token' + "\\" * 400_000,
        '"auth_token": ' * 30_000,
        base64.b64encode(TOKEN.encode() * 9_000).decode(),
    ],
    ids=lambda text: text[:12],
)
def test_a_long_answer_is_searched_in_linear_time(text: str) -> None:
    """The time to search a long answer grows in proportion to its length, for each of these texts."""
    redaction = Redaction(SECRETS)

    def cost(text: str, floor: float) -> float:
        times: list[float] = []
        while len(times) < 3 and min(times, default=floor) >= floor:
            began = time.process_time()
            redaction.text(text)
            times.append(time.process_time() - began)
        return min(times)

    tenth = text[: len(text) // 10]
    assert any(cost(text, 12 * 0.002) < 12 * max(0.002, cost(tenth, 0.002)) for _ in range(5))
