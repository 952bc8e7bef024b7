"""No input can make a raw request send itself or its credentials anywhere but to the connection's own account."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import pytest
import raw_request
import requests
import responses
from hypothesis import given, settings
from hypothesis import strategies as st
from twilio_connector.api import client
from twilio_connector.api.connections import Connections
from twilio_connector.errors import ConnectorError, InvalidInputError, TwilioUnavailableError

from tests.aws_wire import AwsWire
from tests.conftest import Context
from tests.faults import Canary, FaultServer, faults, resolve_to
from tests.unit.conftest import ACCOUNT_SID, API_KEY

SUBACCOUNT = "AC" + "5" * 32
STRANGER = "AC" + "7" * 32
VARIABLE = "$TWILIO_ACCOUNT_SID"
OWN = f"/Accounts/{VARIABLE}"
NAMED = f"/Accounts/{ACCOUNT_SID}"
ELSEWHERE = "canary.example"

# URLs that change the host if they are appended to the base URL.
AUTHORITIES = [
    f"@{ELSEWHERE}",
    f"@{ELSEWHERE}/",
    f"@{ELSEWHERE}{OWN}.json",
    f"@{ELSEWHERE}/2010-04-01{NAMED}/Messages.json",
    f"@{ELSEWHERE}:8080{OWN}.json",
    f"@{ELSEWHERE}:443/",
    f"@{ELSEWHERE}./",
    f"@{ELSEWHERE.upper()}/",
    f"@{ELSEWHERE}?{OWN}.json",
    f"@{ELSEWHERE}#{OWN}.json",
    f":x@{ELSEWHERE}/",
    f":@{ELSEWHERE}/",
    f":80@{ELSEWHERE}/",
    f"@api.twilio.com@{ELSEWHERE}/",
    f"%40@{ELSEWHERE}/",
    f"%2f@{ELSEWHERE}{OWN}.json",
    f"@api.twilio.com.{ELSEWHERE}/",
    "@169.254.169.254/latest/meta-data/iam/security-credentials/",
    "@[fd00:ec2::254]/latest/meta-data/",
    "@[::ffff:169.254.169.254]/latest/meta-data/",
    "@[64:ff9b::a9fe:a9fe]/latest/meta-data/",
    "@localhost:9001/2018-06-01/runtime/invocation/next",
    "@127.0.0.1:9001/2018-06-01/runtime/invocation/next",
    "@[::1]:9001/2018-06-01/runtime/invocation/next",
    "@2852039166/latest/meta-data/",
    "@0xa9fea9fe/latest/meta-data/",
    "@0251.0376.0251.0376/latest/meta-data/",
    "@127.1/",
    "@0/",
    "@\uff43anary.example/",
    "@canary\u3002example/",
    "@xn--canary-.example/",
]

# URLs with their own host or scheme, and texts that some parsers read as such URLs.
ABSOLUTE = [
    f"http://{ELSEWHERE}/",
    f"https://{ELSEWHERE}{OWN}.json",
    f"HTTPS://{ELSEWHERE}{OWN}.json",
    f"https:{ELSEWHERE}{OWN}.json",
    f"https:/{ELSEWHERE}{OWN}.json",
    f"https:///{ELSEWHERE}{OWN}.json",
    f"https:\\\\{ELSEWHERE}{OWN}.json",
    f"https://api.twilio.com\\@{ELSEWHERE}{OWN}.json",
    f"https://api.twilio.com@{ELSEWHERE}{OWN}.json",
    f"https://api.twilio.com#@{ELSEWHERE}{OWN}.json",
    f"https://api.twilio.com/2010-04-01{OWN}.json",
    "https://events.twilio.com/v1/Events",
    f"//{ELSEWHERE}{OWN}.json",
    f"///{ELSEWHERE}{OWN}.json",
    f"////{ELSEWHERE}{OWN}.json",
    f"/\\{ELSEWHERE}{OWN}.json",
    f"\\\\{ELSEWHERE}{OWN}.json",
    f"\\/{ELSEWHERE}{OWN}.json",
    f"\\@{ELSEWHERE}{OWN}.json",
    f"/@{ELSEWHERE}{OWN}.json",
    f".{ELSEWHERE}{OWN}.json",
    f"-{ELSEWHERE}{OWN}.json",
    f":8443{OWN}.json",
    f"0{OWN}.json",
    f"?@{ELSEWHERE}{OWN}.json",
    f"#@{ELSEWHERE}{OWN}.json",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]:9001/2018-06-01/runtime/invocation/next",
    "file:///proc/self/environ",
    "gopher://127.0.0.1:25/",
    "data:text/plain,x",
    "javascript:alert(1)",
]

TRAVERSALS = [
    f"{OWN}/../{STRANGER}.json",
    f"{OWN}/../{STRANGER}/Messages.json",
    f"{OWN}/Messages/../../{STRANGER}.json",
    f"{OWN}/../../v1/Services",
    f"{OWN}/../../../v2/Services",
    f"{OWN}/..",
    f"{OWN}/../",
    f"{OWN}/.",
    f"{OWN}/./../{STRANGER}.json",
    f"{OWN}/.//../{STRANGER}.json",
    f"{OWN}//{STRANGER}.json",
    f"{OWN}//../{STRANGER}.json",
    f"{OWN}/",
    f"{OWN}.json/../{STRANGER}.json",
    f"{NAMED}/../{STRANGER}.json",
    f"/Accounts/{STRANGER}/../{ACCOUNT_SID}.json",
    f"/../2010-04-01{OWN}.json",
    f"/./Accounts/{VARIABLE}.json",
    f"/Accounts/./{VARIABLE}.json",
    f"//Accounts/{VARIABLE}.json",
    f"/Accounts//{VARIABLE}.json",
    f"{OWN}/%2e%2e/{STRANGER}.json",
    f"{OWN}/%2E%2E/{STRANGER}.json",
    f"{OWN}/.%2e/{STRANGER}.json",
    f"{OWN}/%2e./{STRANGER}.json",
    f"{OWN}/%2e%2e%2f{STRANGER}.json",
    f"{OWN}/..%2f{STRANGER}.json",
    f"{OWN}%2f..%2f{STRANGER}.json",
    f"{OWN}%2F%2E%2E%2F{STRANGER}.json",
    f"{OWN}/%252e%252e/{STRANGER}.json",
    f"{OWN}/%25252e%25252e/{STRANGER}.json",
    f"{OWN}/..%5c{STRANGER}.json",
    f"{OWN}/..\\{STRANGER}.json",
    f"{OWN}\\..\\{STRANGER}.json",
    f"{OWN}/..;/{STRANGER}.json",
    f"{OWN}/..%3b/{STRANGER}.json",
    f"{OWN}/..%00/{STRANGER}.json",
    f"{OWN}/..%09/{STRANGER}.json",
    f"{OWN}/..\t/{STRANGER}.json",
    f"{OWN}/.\n./{STRANGER}.json",
    f"{OWN}/..?/{STRANGER}.json",
    f"{OWN}/..#/{STRANGER}.json",
    f"{OWN}/\uff0e\uff0e/{STRANGER}.json",
    f"{OWN}/\u2025/{STRANGER}.json",
    f"{OWN}\uff0f..\uff0f{STRANGER}.json",
    f"{OWN}\u2215..\u2215{STRANGER}.json",
]

ACCOUNTS = [
    f"/Accounts/{STRANGER}.json",
    f"/Accounts/{STRANGER}",
    f"/Accounts/{STRANGER}/Messages.json",
    f"/Accounts/{STRANGER}{OWN}.json",
    f"/Accounts/{ACCOUNT_SID}0.json",
    f"/Accounts/{ACCOUNT_SID}{STRANGER}.json",
    f"/Accounts/{ACCOUNT_SID[:-1]}.json",
    f"/Accounts/{ACCOUNT_SID[:-1]}/Messages.json",
    f"/Accounts/{ACCOUNT_SID.lower()}.json",
    f"/Accounts/{SUBACCOUNT[:-1]}7.json",
    f"/Accounts/{ACCOUNT_SID},{STRANGER}.json",
    f"/Accounts/{ACCOUNT_SID}:{STRANGER}.json",
    f"/Accounts/{ACCOUNT_SID}.json.{STRANGER}.json",
    f"/Accounts/{ACCOUNT_SID}.json/{STRANGER}.json",
    f"/Accounts/{ACCOUNT_SID}.xml",
    f"/Accounts/{ACCOUNT_SID}.csv",
    f"/Accounts/{ACCOUNT_SID}.",
    f"/Accounts/{ACCOUNT_SID}%00.json",
    f"/Accounts/%41C{'0' * 32}.json",
    f"/Accounts/{quote(ACCOUNT_SID).replace('A', '%41')}.json",
    "/Accounts.json",
    "/Accounts",
    "/Accounts/",
    "/Accounts/.json",
    f"/accounts/{ACCOUNT_SID}.json",
    f"/ACCOUNTS/{ACCOUNT_SID}.json",
    f"Accounts/{ACCOUNT_SID}.json",
    f"/2010-04-01{OWN}.json",
    f"/2008-08-01{OWN}.json",
    f"/{ACCOUNT_SID}.json",
    f"/v1{OWN}.json",
    "/",
    "",
    ".",
    "..",
    "*",
]

VARIABLES = [
    VARIABLE,
    f"/{VARIABLE}",
    f"/Accounts/{VARIABLE}{VARIABLE}.json",
    f"/Accounts/AC{VARIABLE}.json",
    f"/Accounts/{VARIABLE}0.json",
    f"/Accounts/{STRANGER}{VARIABLE}.json",
    f"/Accounts/{STRANGER}/{VARIABLE}.json",
    f"/Accounts/${VARIABLE}.json",
    "/Accounts/${TWILIO_ACCOUNT_SID}.json",
    "/Accounts/$twilio_account_sid.json",
    "/Accounts/%24TWILIO_ACCOUNT_SID.json",
    "/Accounts/$TWILIO_AUTH_TOKEN.json",
    f"{OWN}/$AWS_SECRET_ACCESS_KEY",
    f"{OWN}/$TWILIO_$TWILIO_ACCOUNT_SIDACCOUNT_SID",
    f"/Accounts/$TWILIO_{VARIABLE}ACCOUNT_SID.json",
    f"/%{VARIABLE}counts/{ACCOUNT_SID}.json",
    f"{OWN}/../{STRANGER}/{VARIABLE}",
    f"{OWN}/%{VARIABLE[:-4]}",
]

CHARACTERS = [
    f"{OWN}/{character}Messages.json"
    for character in "\0\t\n\r\v\f \x1f\x7f\x80\x85\xa0\"'<>[]^`{|}!*();&\u2028\u2029\u200b\u202e\ufeff\u00e9\u0130"
] + [
    f" {OWN}.json",
    f"{OWN}.json ",
    f"\t{OWN}.json",
    f"{OWN}.json\n",
    f"{OWN}.json\r\n",
    f"{OWN}/Messages.json ",
    f"{OWN}/Messages.json\t",
    f"{OWN}/Messages.json\n",
    f"{OWN}/Messages.json\u2028",
    f"\ufeff{OWN}.json",
    f"{OWN}.json HTTP/1.1\r\nHost: {ELSEWHERE}\r\n\r\nGET /",
    f"{OWN}.json%20HTTP/1.1%0d%0aHost:%20{ELSEWHERE}%0d%0a%0d%0a",
    f"{OWN}.json?PageSize=1",
    f"{OWN}.json#x",
    f"{OWN}.json%3fPageSize=1",
    f"{OWN}.json%23x",
    f"{OWN}/a%",
    f"{OWN}/a%2",
    f"{OWN}/a%zz",
    f"{OWN}/%u002e%u002e/x",
    f"{OWN}/a%25",
    f"{OWN}/a%40b",
    f"{OWN}" + "/a" * 50_000 + "\n",
    f"{OWN}/" + "%41" * 50_000 + "%0a",
]  # fmt: skip

REFUSED = AUTHORITIES + ABSOLUTE + TRAVERSALS + ACCOUNTS + VARIABLES + CHARACTERS

# Unusual URLs that stay in the account.
KEPT = [
    f"{OWN}/%c0%ae%c0%ae/x",
    f"{OWN}/%{VARIABLE}",
    f"{OWN}/%2{VARIABLE}",
    f"{OWN}/...",
    f"{OWN}/..a/b..",
    f"{OWN}/~",
    f"{OWN}/Accounts/{STRANGER}.json",
    f"{OWN}/{STRANGER}/Messages.json",
    f"{OWN}/%e2%80%a8",
    f"{OWN}/%C3%A9",
    f"{OWN}/a=b,c:d+e",
    f"{OWN}.json",
    f"/Accounts/{SUBACCOUNT}/Messages.json",
    f"{OWN}/" + "a" * 20_000,
]


class Stage(NamedTuple):
    """A Twilio server, and a canary that receives the connections to every other name and address."""

    server: FaultServer
    canary: Canary
    is_real: bool

    def nothing_left(self) -> bool:
        """Return whether no connection was made and no name was resolved."""
        return ([], [], []) == (self.canary.names, self.canary.visits, self.server.requests)


@pytest.fixture(scope="module", params=[False, True], ids=["test_stack", "real_hosts"])
def stages(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Yield the stage, once with TwilioApiUrl and once with Twilio's real hosts."""
    with pytest.MonkeyPatch.context() as patch, AwsWire() as wire, FaultServer() as server, Canary() as canary:
        wire.secrets["twilio/default"] = json.dumps(API_KEY | {"subaccount_sids": [SUBACCOUNT]})
        patch.setenv("AWS_ENDPOINT_URL", wire.url)
        patch.setenv("TWILIO_API_URL", "" if request.param else server.url)
        patch.setattr(client, "CONNECTIONS", Connections())
        aws_port = int(wire.url.rpartition(":")[2])
        with resolve_to(canary, allow=[server.port, aws_port]):
            yield Stage(server, canary, request.param)


@pytest.fixture
def stage(stages: Stage) -> Stage:
    """Return the stage without the requests and visits of earlier tests."""
    stages.server.reset()
    stages.canary.reset()
    return stages


def call(url: Any = f"{OWN}.json", method: str = "GET", **more: Any) -> dict[str, Any]:
    """Make a raw request."""
    result: dict[str, Any] = raw_request.handler({"url": url, "method": method} | more, Context())
    return result


def refused(**inputs: Any) -> set[str]:
    """Return the names of the inputs that a raw request rejects."""
    with pytest.raises(InvalidInputError) as caught:
        call(**inputs)
    return {fault.field for fault in caught.value.faults}


def is_inside(target: str) -> bool:
    """Return whether a request's target stays in the allowed accounts, even if it is decoded several times."""
    path = target.partition("?")[0]
    for _ in range(4):
        path = unquote(path, "latin-1")
    segments = re.split(r"[/\\]", path)[1:]
    account = re.fullmatch(rf"/2010-04-01/Accounts/({ACCOUNT_SID}|{SUBACCOUNT})(\.json|/[^?#@\0-\x20]+)?", path)
    return account is not None and not {"", ".", ".."} & set(segments)


def test_a_hostile_url_is_refused(stage: Stage) -> None:
    """A hostile URL is refused before any connection is made and before any name is resolved."""
    for url in REFUSED:
        assert {"url"} == refused(url=url), url
        assert stage.nothing_left(), url


@pytest.mark.parametrize("url", KEPT, ids=lambda url: repr(url[:60]))
def test_an_odd_url_stays_in_the_account(stage: Stage, url: str) -> None:
    """An unusual but valid URL is sent to Twilio only, and stays in the account."""
    if stage.is_real:
        with pytest.raises(TwilioUnavailableError):  # the canary has no certificate of Twilio
            call(url)

        assert [("api.twilio.com", 443)] == stage.canary.names
        assert [None] == [visit.authorization for visit in stage.canary.visits]
    else:
        call(url)

        assert [True] == [is_inside(request.target) for request in stage.server.requests]
        assert ([], []) == (stage.canary.names, stage.canary.visits)


@pytest.mark.parametrize("url", [None, 5, True, [], [f"{OWN}.json"], {"path": OWN}, "\ud800", f"{OWN}/\udfff"])
def test_a_url_that_is_no_text_is_refused(stage: Stage, url: Any) -> None:
    """A URL that is not valid text is refused, and no connection is made."""
    assert refused(url=url) <= {"url", "(input)"}
    assert stage.nothing_left()


def naive(base: str, url: str) -> None:
    """Send a request to the URL appended to the base, as a naive client does."""
    with requests.Session() as session, suppress(requests.RequestException, ValueError):
        session.get(base + url.replace(VARIABLE, ACCOUNT_SID), auth=("SK", "fake"), timeout=5, allow_redirects=False)


def test_the_corpus_bites(stage: Stage) -> None:
    """A naive client sends its credentials to the canary and to other accounts.

    This proves that the tests above use effective URLs.
    """
    assert len(REFUSED) >= 100
    for url in REFUSED:
        naive(stage.server.url, url)
    credentials = [visit.authorization for visit in stage.canary.visits if visit.authorization]

    assert len(credentials) >= 20
    stage.server.reset()
    for url in REFUSED:
        naive(f"{stage.server.url}/2010-04-01", url)
    astray = [request.target for request in stage.server.requests if not is_inside(request.target)]

    assert len(astray) >= 20


PIECES = [
    "/", "//", ".", "..", "\\", "@", ":", "?", "#", "%", "%2e", "%2f", "%5c", "%25", "%00", "\t", "\r\n", " ", ";",
    "Accounts", "/Accounts/", VARIABLE, "$", ACCOUNT_SID, STRANGER, SUBACCOUNT, ".json", "Messages", "http:", "https://",
    ELSEWHERE, "api.twilio.com", "2010-04-01", "\uff0e", "\u2028", "a",
]  # fmt: skip


@settings(max_examples=500)
@given(
    st.sampled_from(["", OWN, f"{OWN}/", "/"]),
    st.lists(st.sampled_from(PIECES) | st.characters(), max_size=8),
)
def test_no_url_leads_astray(stages: Stage, start: str, pieces: list[str]) -> None:
    """No URL of random pieces leaves the account or takes credentials to another host."""
    stages.server.reset()
    stages.canary.reset()
    with suppress(ConnectorError):
        call(start + "".join(pieces))

    assert all(is_inside(request.target) for request in stages.server.requests)
    assert {("api.twilio.com", 443)} >= set(stages.canary.names)
    assert not any(visit.authorization for visit in stages.canary.visits)


# Headers


HEADERS = [
    *((name, "x") for name in (
        "Authorization", "authorization", "AUTHORIZATION", "aUtHoRiZaTiOn", "Proxy-Authorization",
        "PROXY-AUTHENTICATE", "proxy-connection", "Cookie", "COOKIE", "cookie2", "Host", "hOST",
        "Content-Length", "content-LENGTH", "Content_Length", "Transfer-Encoding", "transfer-encoding",
        "Transfer_Encoding", "Connection", "Keep-Alive", "Expect", "TE", "Trailer", "Upgrade", "Via", "Forwarded",
        "X-Forwarded-For", "x-forwarded-host", "X-Forwarded-Proto", "X-FORWARDED-ANYTHING", "Accept-Encoding",
        "X-HTTP-Method-Override", "x-http-method-override", "X-Method-Override", "X-HTTP-Method",
        "X_HTTP_METHOD_OVERRIDE", "X-Original-URL", "x-original-host", "X-Rewrite-URL", "X-Host",
        "", " ", "X Y", "X\tY", "X:Y", "X-A\r\nAuthorization", "X-A\nHost", "X-A\0", "\u2028X", "X\u00e9",
        "Host ", " Host", "Host:", "Content-Length\0", "X(Y)", "X@Y", "\ufeffHost",
    )),
    *(("X-A", value) for value in (
        "a\r\nAuthorization: Basic eDp5", "a\nX: 1", "a\rX: 1", "a\r\n\r\nGET / HTTP/1.1", "a\0b", "\0", "a\u2028b",
        "a\u2029b", "a\x85b", "a\x0bb", "a\x0cb", "a\x7fb", "\u00e9", "\U0001f44d", " a", "a ", "\ta", "a\t", "\r\n a",
    )),
]  # fmt: skip


def test_a_hostile_header_is_refused(stage: Stage) -> None:
    """A hostile header is refused before any connection is made, in an object and in a list."""
    for name, value in HEADERS:
        headers = [{"key": "X-Ok", "value": "1"}, {"key": name, "value": value}]
        assert {"headers"} == refused(headers=headers), (name, value)
        assert {"headers"} == refused(headers={"X-Ok": "1", name: value}), (name, value)
        assert stage.nothing_left(), (name, value)


@pytest.mark.parametrize("headers", ["Host: x", 5, ["Host"], [{"key": "X-A"}], {"X-A": None}, {"X-A": {"b": "c"}}])
def test_headers_of_another_kind_are_refused(stage: Stage, headers: Any) -> None:
    """Headers are refused if they are not an object or a list of pairs, or if a value is null or an object."""
    assert {"headers"} == refused(headers=headers)
    assert stage.nothing_left()


def test_a_header_cannot_come_in_by_another_field(stage: Stage) -> None:
    """Line ends in the query, in the body or in their names cannot add a header or change the host."""
    evil = f"x\r\nHost: {ELSEWHERE}\r\nAuthorization: Basic eDp5\r\n\r\n"
    inputs: list[dict[str, Any]] = [
        {"query_parameters": {evil: evil}},
        {"method": "POST", "data": evil},
        {"method": "POST", "data": {evil: evil}},
        {"method": "POST", "form_data": {evil: evil}},
        {"method": "POST", "file_data": {evil: evil}, "file_data_file_names": {evil: evil}},
    ]
    for each in inputs:
        with suppress(TwilioUnavailableError):
            call(**each)

    for request in stage.server.requests:
        names = [name.lower() for name, _ in request.headers]
        assert (1, 1) == (names.count("host"), names.count("authorization"))
        assert ("SK" + "0" * 32, True) == ((request.credentials or ("", ""))[0], is_inside(request.target))
    assert (0 if stage.is_real else len(inputs)) == len(stage.server.requests)
    assert {("api.twilio.com", 443)} >= set(stage.canary.names)
    assert not any(visit.authorization for visit in stage.canary.visits)


def test_no_field_says_where_twilio_is(stage: Stage) -> None:
    """An input that names a host for Twilio is refused, because only the stack's parameter sets it."""
    names = (
        "api_url",
        "base_url",
        "twilio_api_url",
        "TWILIO_API_URL",
        "TwilioApiUrl",
        "host",
        "region",
        "proxies",
    )
    for name in names:
        refused(**{name: stage.canary.url})

    assert stage.nothing_left()


@pytest.mark.parametrize("name", ["../other", "twilio/other", "a/b", "a b", "", ".", "a" * 65, "a\n", "\u00e9", 5])
def test_a_connection_s_name_is_no_path(stage: Stage, name: Any) -> None:
    """A connection name that is malformed or a path is refused, so that it cannot name a secret elsewhere."""
    assert {"connection"} == refused(connection=name)
    assert stage.nothing_left()


# Redirects


CODES = [301, 302, 303, 307, 308]


def locations(stage: Stage) -> list[str]:
    """Return URLs that a redirect must not lead to."""
    canary = f"127.0.0.1:{stage.canary.port}"
    return [
        f"http://{canary}",
        f"http://{canary}/media",
        f"HTTP://{canary}/media",
        f"//{canary}/media",
        f"https://{canary}/media",
        f"http://localhost:{stage.canary.port}/media",
        f"http://{ELSEWHERE}/media",
        f"{stage.server.url}@{ELSEWHERE}/media",
        f"{stage.server.url}:x@{ELSEWHERE}/media",
        f"{stage.server.url}\\@{ELSEWHERE}/media",
        f"{stage.server.url}.{ELSEWHERE}/media",
        f"{stage.server.url}0/media",
        f"{stage.server.url}?/media",
        f"{stage.server.url}#/media",
        f"{stage.server.url}",
        f"http://{ELSEWHERE}/{stage.server.url}/media",
        f"http://{ELSEWHERE}?{stage.server.url}/media",
        f"{stage.server.url}/\t/media",
        f"{stage.server.url}/\xa0",
        "https://media.twiliocdn.com/x" if not stage.is_real else f"https://twiliocdn.com.{ELSEWHERE}/x",
        "/media",
        "media",
        "",
        "?",
    ]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("response_type", ["json", "binary"])
def test_a_redirect_elsewhere_is_not_followed(
    stages: Stage, monkeypatch: pytest.MonkeyPatch, code: int, method: str, response_type: str
) -> None:
    """A redirect to another host is not followed: Twilio gets one request, and the canary none."""
    stages.canary.reset()
    monkeypatch.setenv("TWILIO_API_URL", stages.server.url)
    for location in locations(stages):
        stages.server.reset()
        stages.server.script(faults.redirect(code, location))
        with pytest.raises(ConnectorError):
            call(method=method, response_type=response_type)

        assert 1 == len(stages.server.requests), location
    assert ([], []) == (stages.canary.names, stages.canary.visits)


def test_the_redirects_bite(stage: Stage) -> None:
    """A client that follows these redirects reaches the canary, so the test above uses effective URLs."""
    for location in locations(stage):
        stage.server.script(faults.redirect(307, location), faults.OK)
        with requests.Session() as session, suppress(requests.RequestException, ValueError):
            session.get(stage.server.url, timeout=5)
    reached = [visit for visit in stage.canary.visits if visit.first_bytes]

    assert len(reached) >= 8


LOOKALIKES = [
    "http://media.twiliocdn.com/x",
    "https://media.twiliocdn.com",
    "https://media.twiliocdn.com:8443/x",
    "https://media.twiliocdn.com:443/x",
    "https://media.twiliocdn.com./x",
    "https://MEDIA.twiliocdn.com/x",
    "HTTPS://media.twiliocdn.com/x",
    "//media.twiliocdn.com/x",
    "https:/media.twiliocdn.com/x",
    "https:media.twiliocdn.com/x",
    f"https://media.twiliocdn.com.{ELSEWHERE}/x",
    f"https://media.twiliocdn.com@{ELSEWHERE}/x",
    f"https://media.twiliocdn.com:443@{ELSEWHERE}/x",
    f"https://media.twiliocdn.com\\@{ELSEWHERE}/x",
    f"https://media.twiliocdn.com#@{ELSEWHERE}/x",
    f"https://media.twiliocdn.com?@{ELSEWHERE}/x",
    f"https://media.twiliocdn.com%2f@{ELSEWHERE}/x",
    f"https://{ELSEWHERE}/https://media.twiliocdn.com/x",
    f"https://{ELSEWHERE}?https://media.twiliocdn.com/x",
    f"https://{ELSEWHERE}#.twiliocdn.com/x",
    f"https://{ELSEWHERE}\\.twiliocdn.com/x",
    "https://eviltwiliocdn.com/x",
    "https://evil-twiliocdn.com/x",
    "https://twiliocdn.com.evil/x",
    "https://twiliocdn.co/x",
    "https://twiliocdnxcom/x",
    "https://user:password@media.twiliocdn.com/x",
    "https://media_x.twiliocdn.com/x",
    "https://media.twiliocdn.com/x y",
    "https://media.twiliocdn.com/x\u00e9",
    "https://api.twilio.com/x",
    "https://api.twilio.com/2010-04-01/Accounts.json",
    "https://s3.amazonaws.com/media.twiliocdn.com/x",
    "http://169.254.169.254/latest/meta-data/",
    "file:///proc/self/environ",
]


@pytest.mark.parametrize("location", LOOKALIKES)
def test_what_only_looks_like_a_media_host_is_not_visited(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    """A redirect to a host that only resembles Twilio's media host is not followed, even if the answer was forged."""
    monkeypatch.setenv("TWILIO_API_URL", "")
    client.CONNECTIONS.get("twilio/", "default")
    with responses.RequestsMock() as wire:
        wire.add_passthru(re.compile(""))  # all requests but the one below
        wire.get(
            f"https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT_SID}/Media/ME1",
            status=307,
            headers={"Location": location},
        )
        with pytest.raises(TwilioUnavailableError):
            call(f"{OWN}/Media/ME1", response_type="binary")

        assert 1 == len(wire.calls)
    assert stage.nothing_left()


def test_a_media_host_is_visited_without_credentials(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect to Twilio's media host is followed without credentials, and the host's certificate is verified.

    This proves that the redirects above were refused because of their targets.
    """
    monkeypatch.setenv("TWILIO_API_URL", "")
    client.CONNECTIONS.get("twilio/", "default")
    with responses.RequestsMock() as wire:
        wire.add_passthru(re.compile(""))
        wire.get(
            f"https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT_SID}/Media/ME1",
            status=307,
            headers={"Location": "https://media.twiliocdn.com/x"},
        )
        with pytest.raises(TwilioUnavailableError):
            call(f"{OWN}/Media/ME1", response_type="binary")
    [visit] = stage.canary.visits

    assert [("media.twiliocdn.com", 443)] == stage.canary.names
    assert (True, None) == (b"media.twiliocdn.com" in visit.first_bytes, visit.authorization)
