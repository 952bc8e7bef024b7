"""The signature check accepts what Twilio signed and nothing else, and raises no error for any input."""

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio_connector.webhooks import signature as webhook_signature
from twilio_connector.webhooks.signature import (
    Key,
    SharedKey,
    body_matches,
    matches,
    shared_key,
    signed_text,
    spellings,
)

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "data" / "signature_vectors.json").read_text()
)
BY_ID = {vector["id"]: vector for vector in VECTORS}
TOKEN = "12345"
URL = "https://mycompany.com/myapp.php?foo=1&bar=2"
FIELDS: dict[str, list[str]] = BY_ID["V01"]["params"]
SIGNATURE = "RSOYDt4T1cUTdK1PDd93/VVr8B8="

SMS_URL = "https://abc123.execute-api.eu-west-1.amazonaws.com/prod/twilio/webhook?tenant=a%20b"
SMS_BODY = (
    "ToCountry=US&ToState=CA&SmsMessageSid=SM00000000000000000000000000000000&NumMedia=0&ToCity=&FromZip=94105"
    "&SmsSid=SM00000000000000000000000000000000&FromState=CA&SmsStatus=received&FromCity=SAN+FRANCISCO"
    "&Body=Hello+%26+welcome+%2B+100%25+%C3%A9%F0%9F%91%8D&FromCountry=US&To=%2B15005550006"
    "&MessagingServiceSid=MG00000000000000000000000000000000&ToZip=&NumSegments=1"
    "&MessageSid=SM00000000000000000000000000000000&AccountSid=AC00000000000000000000000000000000"
    "&From=%2B15551234567&ApiVersion=2010-04-01"
)

vectors = pytest.mark.parametrize("vector", VECTORS, ids=BY_ID)


def fields(form: str, *, blank: bool = True) -> dict[str, list[str]]:
    """Return the fields of a form."""
    found: dict[str, list[str]] = {}
    for name, value in parse_qsl(form, keep_blank_values=blank):
        found.setdefault(name, []).append(value)
    return found


def sign(url: str, form: dict[str, list[str]], token: str) -> bytes:
    """Return the signature that Twilio makes with an auth token."""
    return webhook_signature.sign(signed_text(url, form), Key(token))


def verify(signature: str, urls: list[str], form: dict[str, list[str]], tokens: list[str]) -> bool:
    """Return whether one of the tokens made this signature for a spelling of one of the URLs."""
    return any(
        matches(signature, signed_text(spelling, form), Key(token))
        for url in urls
        for spelling in spellings(url)
        for token in tokens
    )


# Valid signatures


def test_all_vectors_are_there() -> None:
    """The file has all thirty vectors; with fewer, the tests would prove less."""
    assert [f"V{number:02}" for number in range(1, 31)] == [vector["id"] for vector in VECTORS]


@vectors
def test_a_vector_is_signed_as_published(vector: dict[str, Any]) -> None:
    """The signature of each vector's signed URL and parameters is the published one."""
    signature = sign(vector["signed_url"], vector["params"], vector["auth_token"])

    assert vector["signature"].encode() == signature


@vectors
def test_a_vector_is_accepted(vector: dict[str, Any]) -> None:
    """Each vector is accepted, also V11 to V14, whose URLs Twilio's libraries sign with the user."""
    assert verify(vector["signature"], [vector["signed_url"]], vector["params"], [vector["auth_token"]])


@vectors
def test_a_vector_is_refused_with_another_token(vector: dict[str, Any]) -> None:
    """Each vector is refused with another auth token, because the signature proves possession of the token."""
    assert not verify(vector["signature"], [vector["signed_url"]], vector["params"], ["12346"])


@vectors
def test_a_vector_is_refused_with_another_url(vector: dict[str, Any]) -> None:
    """Each vector is refused if one character is added to its URL."""
    assert not verify(vector["signature"], [vector["signed_url"] + "0"], vector["params"], [TOKEN])


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["params"]], ids=lambda vector: vector["id"])
def test_a_vector_is_refused_without_one_of_its_parameters(vector: dict[str, Any]) -> None:
    """Each vector is refused without any one of its parameters, because all are signed, also blank ones."""
    accepted = [
        name
        for name in vector["params"]
        if verify(
            vector["signature"],
            [vector["signed_url"]],
            {other: values for other, values in vector["params"].items() if other != name},
            [TOKEN],
        )
    ]

    assert [] == accepted


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["body"]], ids=lambda vector: vector["id"])
def test_the_body_of_a_vector_matches_its_hash(vector: dict[str, Any]) -> None:
    """A vector's body matches the `bodySHA256` in its URL. The body with one more byte does not."""
    query = vector["signed_url"].partition("?")[2]
    body = vector["body"].encode()

    assert (True, False) == (body_matches(query, body), body_matches(query, body + b" "))


@pytest.mark.parametrize("name", ["V02", "V04", "V08", "V13", "V14", "V26"])
def test_the_standard_port_may_be_missing(name: str) -> None:
    """A signature for a URL with the standard port is accepted, although our URL has no port."""
    vector = BY_ID[name]
    url = vector["signed_url"].replace(":443", "").replace(":80", "")

    assert verify(vector["signature"], [url], vector["params"], [TOKEN])


@pytest.mark.parametrize("name", ["V01", "V06", "V16", "V30"])
def test_the_standard_port_may_be_there(name: str) -> None:
    """A signature for a URL without a port is accepted, although our URL has the standard port."""
    vector = BY_ID[name]
    scheme, _, rest = vector["signed_url"].partition("://")
    host, _, path = rest.partition("/")
    url = f"{scheme}://{host}:{443 if scheme == 'https' else 80}/{path}"

    assert verify(vector["signature"], [url], vector["params"], [TOKEN])


@pytest.mark.parametrize(("name", "port"), [("V03", ""), ("V03", ":80"), ("V05", ""), ("V05", ":443"), ("V28", "")])
def test_another_port_counts(name: str, port: str) -> None:
    """A signature for a non-standard port is refused if our URL has another port or none."""
    vector = BY_ID[name]

    assert not verify(vector["signature"], [vector["signed_url"].replace(":1234", port)], vector["params"], [TOKEN])


@pytest.mark.parametrize("user", ["user:pass@", "user@", "a@b@"])
def test_twilio_drops_the_user(user: str) -> None:
    """A signature for a URL without its user is accepted, as Twilio documents, although its libraries sign the user."""
    url = URL.replace("//", f"//{user}")

    assert verify(SIGNATURE, [url], FIELDS, [TOKEN])
    assert "https://mycompany.com/myapp.php?foo=1&bar=2" == spellings(url)[0]


def test_the_order_on_the_wire_does_not_matter() -> None:
    """The order of parameters in the request does not matter, because names are sorted, and each name's values too."""
    vector = BY_ID["V09"]
    turned = {name: values[::-1] for name, values in reversed(vector["params"].items())}

    assert verify(vector["signature"], [URL], turned, [TOKEN])


@pytest.mark.parametrize("tokens", [[TOKEN, "new"], ["old", TOKEN]], ids=["first", "second"])
def test_any_of_the_tokens_will_do(tokens: list[str]) -> None:
    """A signature by any of the tokens is accepted. There are two while tokens are rotated."""
    assert verify(SIGNATURE, [URL], FIELDS, tokens)


def test_any_of_the_urls_will_do() -> None:
    """A signature for any of several URLs is accepted, because payload format 1.0 has only a decoded query."""
    assert verify(SIGNATURE, ["https://mycompany.com/", URL], FIELDS, [TOKEN])


def test_an_sms_is_accepted() -> None:
    """The signature of an SMS with an emoji, a plus, a per cent sign and blank values is correct."""
    assert b"gya+76zNHcWPcZLU6Pwm2k1H+6c=" == sign(SMS_URL, fields(SMS_BODY), TOKEN)


def test_an_sms_without_its_blank_values_is_refused() -> None:
    """An SMS without its blank values is refused: a parser that drops them makes another signature."""
    blankless = fields(SMS_BODY, blank=False)

    assert b"RX8zQVOvkNQ6EJJSnszVG6AH5iM=" == sign(SMS_URL, blankless, TOKEN)
    assert not verify("gya+76zNHcWPcZLU6Pwm2k1H+6c=", [SMS_URL], blankless, [TOKEN])


# Invalid signatures


@pytest.mark.parametrize(
    "signature",
    [
        "",
        " ",
        "NOTRSOYDt4T1cUTdK1PDd93/VVr8B8=",
        "RSOYDt4T1cUTdK1PDd93/VVr8B8",
        "RSOYDt4T1cUTdK1PDd93/VVr8B8=\n",
        " RSOYDt4T1cUTdK1PDd93/VVr8B8=",
        "rsoydt4t1cutdk1pdd93/vvr8b8=",
        "RSOYDt4T1cUTdK1PDd93_VVr8B8=",
        "RSOYDt4T1cUTdK1PDd93/VVr8B8=, RSOYDt4T1cUTdK1PDd93/VVr8B8=",
        "RSOYDt4T1cUTdK1PDd93/VVr8B9=",
        "=" * 28,
        "\0",
        "é" * 28,
        "\ud800",
    ],
)
def test_another_signature_is_refused(signature: str) -> None:
    """A changed signature is refused, because it is compared as received, byte by byte."""
    assert not verify(signature, [URL], FIELDS, [TOKEN])


def test_names_are_sorted_not_names_with_values() -> None:
    """Parameters are sorted by name only. The signature of parameters sorted by name with value is refused."""
    vector = BY_ID["V15"]

    assert not verify("95+Bu0JVPi0r/SsESZCVf0dWAjw=", [vector["signed_url"]], vector["params"], [TOKEN])


@pytest.mark.parametrize(
    "url",
    [
        "http://mycompany.com/myapp.php?foo=1&bar=2",
        "https://MyCompany.com/myapp.php?foo=1&bar=2",
        "https://mycompany.com./myapp.php?foo=1&bar=2",
        "https://mycompany.com:80/myapp.php?foo=1&bar=2",
        "https://mycompany.com:/myapp.php?foo=1&bar=2",
        "https://mycompany.com/myapp.php?bar=2&foo=1",
        "https://mycompany.com/myapp.php?foo=1&bar=2&",
        "https://mycompany.com/myapp.php/?foo=1&bar=2",
        "https://mycompany.com//myapp.php?foo=1&bar=2",
        "https://mycompany.com/myapp%2ephp?foo=1&bar=2",
    ],
)
def test_another_spelling_of_the_url_is_refused(url: str) -> None:
    """A URL in another spelling is refused, because only the port and the user are normalised."""
    assert not verify(SIGNATURE, [url], FIELDS, [TOKEN])


def test_the_text_has_no_separators() -> None:
    """The signed text has no separators. Each distinct value follows its name once, and values are sorted."""
    assert "https://a.example/?x=1A1ABC" == signed_text("https://a.example/?x=1", {"C": [""], "A": ["B", "1", "1"]})


# SharedKeys


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("key=SK1,algorithm=HMAC_SHA256", SharedKey("SK1", "sha256")),
        ("key=SK1,algorithm=HMAC_SHA1", SharedKey("SK1", "sha1")),
        ("algorithm=HMAC_SHA1, key=SK1, other=x", SharedKey("SK1", "sha1")),
        ("key=SK1", None),
        ("algorithm=HMAC_SHA256", None),
        ("key=SK1,algorithm=HMAC_MD5", None),
        ("key=SK1,algorithm=hmac_sha256", None),
        ("", None),
        ("é", None),
    ],
)
def test_the_header_names_key_and_algorithm(header: str, key: SharedKey | None) -> None:
    """The settings header names the key and the algorithm. If one is missing or unknown, it is not guessed."""
    assert key == shared_key(header)


def test_a_key_has_one_algorithm() -> None:
    """A signature with one algorithm is refused for the same key with the other algorithm."""
    keys = [Key("not-a-secret", "sha1"), Key("not-a-secret", "sha256")]

    assert [[True, False], [False, True]] == [
        [matches(webhook_signature.sign("text", one).decode(), "text", other) for other in keys] for one in keys
    ]


# Hashes of JSON bodies

BODY = b'{"property": "value", "boolean": true}'
HASH = hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize(
    "query",
    [
        f"bodySHA256={HASH}",
        f"foo=1&bodySHA256={HASH}",
        f"bodySHA256={HASH}&foo=1",
        f"foo=&bodySHA256={HASH}&bar",
        f"foo=bodySHA256&bodySHA256={HASH}",
        f"body%53HA256={HASH}",
        f"bodySHA256={HASH}&bodySHA256={HASH}",
    ],
)
def test_a_body_is_accepted_with_its_hash(query: str) -> None:
    """A body is accepted if the query has its hash as `bodySHA256`, at any position."""
    assert body_matches(query, BODY)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "foo=1",
        "bodySHA256",
        "bodySHA256=",
        f"bodySHA256={HASH.upper()}",
        f"bodySHA256={HASH}0",
        f"bodySHA256={HASH[:-1]}",
        f"bodySHA256=+{HASH}",
        f"bodysha256={HASH}",
        f"bodySHA256={HASH}&bodySHA256=",
        f"bodySHA256={HASH}&BODYSHA256={HASH}",
        f"foo=bodySHA256={HASH}",
        f"bodySHA256%3D{HASH}",
        f"bodySHA256={HASH};foo=1",
        f"bodySHA256={hashlib.sha256(b'').hexdigest()}",
    ],
)
def test_a_body_is_refused_without_exactly_its_hash(query: str) -> None:
    """A body is refused if its hash is missing, misspelled or wrong, or if there are two different hashes."""
    assert not body_matches(query, BODY)


# Random input

JUNK = (
    st.text()
    | st.text(st.characters(categories=["Cs", "Cc", "Lu"]))
    | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape"))
)
URLS = JUNK | st.builds(
    "{}://{}{}{}{}".format,
    st.sampled_from(["https", "http", "HTTPS", "wss", ""]),
    st.sampled_from(["", "user@", "user:pass@", "@", "a@b@", "\udcff@"]),
    st.sampled_from(["example.com", "[::1]", "[::1", "::1", "[fe80::1%25eth0]", "", "\ud800", "bücher.example"]),
    st.sampled_from(["", ":", ":443", ":80", ":0", ":99999", ":-1", ":abc", ":٤٤٣", "::443"]),
    st.sampled_from(["", "/", "?", "#", "/?#", "/webhook?a=b#c", "//", "/\n?", "/\ud800"]),
)
FORMS = st.dictionaries(JUNK, st.lists(JUNK, max_size=3), max_size=4)


@given(JUNK, URLS, FORMS, JUNK)
def test_checking_junk_refuses_it(signature: str, url: str, form: dict[str, list[str]], token: str) -> None:
    """Random input is refused without an error: lone surrogates, bad ports, IPv6 hosts, and bytes that are not text."""
    assert not verify(signature, [url], form, [token])


@given(URLS, FORMS, JUNK)
def test_what_is_signed_holds(url: str, form: dict[str, list[str]], token: str) -> None:
    """A signature is accepted for its own URL, fields and token, however unusual they are."""
    assert verify(sign(url, form, token).decode(), [url], form, [token])


@given(URLS)
def test_spellings_hold_the_url_itself(url: str) -> None:
    """A URL has at most four spellings, without duplicates, and the URL itself is one of them."""
    found = spellings(url)

    assert url in found
    assert len(set(found)) == len(found) <= 4


@given(JUNK)
def test_a_junk_header_names_no_key(header: str) -> None:
    """A random settings header names no key, or a key that no connection has."""
    assert (named := shared_key(header)) is None or named.algorithm in {"sha1", "sha256"}


@given(JUNK | st.from_regex(r"(bodySHA256=[0-9a-f]{0,4}&?){0,3}"), st.binary())
def test_junk_is_no_hash(query: str, body: bytes) -> None:
    """Random text in the query is not accepted as the hash of a body."""
    assert not body_matches(query, body)


@given(st.binary(), st.binary())
def test_a_hash_holds_for_its_own_body_only(body: bytes, other: bytes) -> None:
    """A hash matches only its own body. Bytes are hashed as received, whether they are text or not."""
    query = f"bodySHA256={hashlib.sha256(body).hexdigest()}"

    assert body_matches(query, body)
    assert (body == other) == body_matches(query, other)
