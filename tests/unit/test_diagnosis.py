"""The diagnosis of a refused webhook: it names the wrong setting if the token is right, and tells strangers nothing."""

import json
from dataclasses import replace
from typing import Any

import pytest
import webhook

from tests.aws_wire import AwsWire
from tests.conftest import Context
from tests.mutants import (
    GENUINE,
    SIGNATURE,
    Request,
    Target,
    Webhook,
    event_1,
    event_2,
    posted,
    signature,
)
from tests.unit.conftest import ACCOUNT_SID, AUTH_TOKEN, Log

HERE = "https://hook.example/webhook"
TARGET = Target("https://hook.example", ACCOUNT_SID, AUTH_TOKEN)
BY_NAME = {each.name: each for each in GENUINE}
SMS = BY_NAME["plain"]
UNKNOWN = "the signature does not match the URL, the parameters and the connection's secret"


def genuine(each: Webhook = SMS, **changes: Any) -> Request:
    """Return a genuine request, with some parts changed after it was signed."""
    return replace(each.request(TARGET), **changes)


def signed_for(url: str, request: Request, token: str = AUTH_TOKEN) -> Request:
    """Return the request, signed for another URL."""
    return request.with_header(SIGNATURE, signature(url, request.fields, token))


def refused(request: Request, event: Any = event_2) -> None:
    """Send a request, and check that it gets the same 403 as any refused request."""
    assert {
        "statusCode": 403,
        "headers": {"Content-Type": "application/json"},
        "body": '{"message":"Forbidden"}',
    } == webhook.handler(event(request), Context())


def reason(log: Log) -> str:
    """Return the reason in the only line of the log."""
    (line,) = log()
    assert ("WARNING", "webhook refused") == (line["level"], line["message"])
    return str(line["reason"])


def part(name: str, scheme: str = "https", host: str = "hook.example") -> str:
    """Return the reason in the log if the named part of the URL differs."""
    return (
        f"the signature is valid for a URL with another {name} (signed for {scheme}, host {host}); "
        "check WebhookBaseUrl and the URL at Twilio"
    )


@pytest.mark.parametrize("make", [event_1, event_2], ids=["1.0", "2.0"])
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://hook.example/webhook", part("scheme", "http")),
        ("https://hook.example/webhook/", part("path")),
        ("https://other.example/webhook", part("host", host="other.example")),
        ("https://other.example:8443/webhook", part("host", host="other.example:8443")),
        ("http://other.example/webhook", part("scheme and host", "http", "other.example")),
    ],
)
@pytest.mark.usefixtures("aws_wire")
def test_the_part_that_differs_is_named(log: Log, make: Any, url: str, expected: str) -> None:
    """The log names the part of the URL that differs, and the signed host, for which the signature vouches."""
    host = url.split("/")[2]
    refused(signed_for(url, genuine().with_header("host", host)), make)

    assert expected == reason(log)


@pytest.mark.usefixtures("aws_wire")
@pytest.mark.parametrize("name", ["host", "x-forwarded-host", "x-original-host"])
def test_a_proxy_tells_its_host(log: Log, name: str) -> None:
    """A proxy's host is found in each of these headers; none is believed without a valid signature."""
    refused(signed_for("https://proxy.example/webhook", genuine().with_header(name, "proxy.example")))

    assert part("host", host="proxy.example") == reason(log)


@pytest.mark.usefixtures("aws_wire")
@pytest.mark.parametrize(
    ("base", "path", "url", "expected"),
    [
        ("", "/prod/webhook", HERE, part("prefix")),
        ("https://hook.example", "/prod/webhook", "https://hook.example/prod/webhook", part("prefix")),
        ("https://hook.example/v1", "/prod/webhook", HERE, part("prefix")),
        ("https://public.example", "/webhook", HERE, part("host")),
        (
            "http://public.example/v1",
            "/prod/webhook",
            "https://hook.example/prod/webhook",
            part("scheme and host and prefix"),
        ),
        ("", "/webhook/two", HERE, part("path")),
        ("", "/webhook/two", f"{HERE}/two/", part("path")),
    ],
)
def test_a_setting_that_is_wrong_is_found(
    aws_wire: AwsWire, log: Log, monkeypatch: pytest.MonkeyPatch, base: str, path: str, url: str, expected: str
) -> None:
    """The log names the part that is wrong in WebhookBaseUrl or in the URL at Twilio.

    WebhookBaseUrl may lack a stage, have an extra one, or name another API.
    """
    aws_wire.secrets["twilio/two"] = aws_wire.secrets["twilio/default"]
    monkeypatch.setenv("WEBHOOK_BASE_URL", base)
    refused(signed_for(url, genuine(path=path)))

    assert expected == reason(log)


@pytest.mark.usefixtures("aws_wire")
@pytest.mark.parametrize(
    "each", [SMS, replace(BY_NAME["GET status"], query=""), BY_NAME["JSON object"]], ids=lambda each: each.name
)
def test_every_kind_of_request_is_looked_at(log: Log, each: Webhook) -> None:
    """Forms, GET requests and JSON requests are all diagnosed."""
    request = genuine(each)
    query = f"?{request.query}" if request.query else ""
    refused(signed_for(f"http://hook.example/webhook{query}", request))

    assert part("scheme", "http") == reason(log)


@pytest.mark.usefixtures("aws_wire")
def test_a_query_that_was_not_signed_is_named(log: Log) -> None:
    """The log names the query if somebody appended one to the signed URL."""
    refused(signed_for(HERE, genuine(query="MARK=1")))

    assert part("query") == reason(log)


def test_an_old_token_tells_too(aws_wire: AwsWire, log: Log) -> None:
    """The diagnosis tries each auth token that may have signed, also the secondary one."""
    secret = {"account_sid": ACCOUNT_SID, "auth_token": "1" * 32, "secondary_auth_token": "2" * 32}
    aws_wire.secrets["twilio/default"] = json.dumps(secret)
    refused(signed_for("http://hook.example/webhook", genuine(), "2" * 32))

    assert part("scheme", "http") == reason(log)


@pytest.mark.usefixtures("aws_wire")
@pytest.mark.parametrize(
    "request_",
    [
        signed_for("http://hook.example/webhook", genuine(), "1" * 32),
        genuine().with_header(SIGNATURE, ""),
        genuine().with_header(SIGNATURE, "MARK"),
        signed_for("https://unknown.example/webhook", genuine()),
        signed_for("https://hook.example/MARK", genuine()),
        signed_for("ftp://hook.example/webhook", genuine()),
        replace(signed_for(HERE, genuine()), body=b"MARK=1"),
    ],
    ids=["other token", "empty", "garbage", "other host", "other path", "other scheme", "other body"],
)
def test_of_all_others_nothing_is_known(log: Log, request_: Request) -> None:
    """For any other refused request, the log says only that the signature does not match."""
    refused(request_)

    assert UNKNOWN == reason(log)


@pytest.mark.usefixtures("aws_wire")
@pytest.mark.parametrize(
    "host",
    ["", "a/b", "a?b", "a@b", "a b", "a\nb", "a:port", "a:123456", "é.example", "x" * 254, "[::1]", "a.example:80:80"],
    ids=repr,
)
def test_what_is_no_host_is_not_tried(log: Log, host: str) -> None:
    """An invalid Host header is not tried, because the log would show it as the sender wrote it."""
    refused(signed_for(f"https://{host}/webhook", genuine().with_header("host", host)))

    assert UNKNOWN == reason(log)


@pytest.mark.usefixtures("aws_wire")
@pytest.mark.parametrize(("size", "expected"), [(16 * 1024, part("scheme", "http")), (16 * 1024 + 1, UNKNOWN)])
def test_a_large_body_is_not_looked_at(log: Log, size: int, expected: str) -> None:
    """A body over 16 KiB is not diagnosed: that takes too long for a request that anybody may have sent."""
    frame = len(posted(genuine(), (("Body", ""),)).body)
    request = posted(genuine(), (("Body", "x" * (size - frame)),))

    assert size == len(request.body)
    refused(signed_for("http://hook.example/webhook", request))
    assert expected == reason(log)


@pytest.mark.usefixtures("aws_wire")
def test_nothing_of_the_request_is_told_but_its_host(log: Log) -> None:
    """The log shows only scheme and host of the request, and nothing of the token."""
    request = replace(
        posted(genuine(), (("AccountSid", ACCOUNT_SID), ("Body", "MARK"))), path="/MARK/webhook", query="MARK=MARK"
    ).with_header("user-agent", "MARK")
    refused(signed_for("http://hook.example/webhook?MARK=MARK", request))
    (line,) = log()

    assert part("scheme and prefix", "http") == line["reason"]
    assert "MARK" not in json.dumps(line)
    assert AUTH_TOKEN not in json.dumps(line)


def test_no_event_comes_of_it(aws_wire: AwsWire) -> None:
    """A request that was signed for another URL publishes no event, because it was not meant for this one."""
    refused(signed_for("http://hook.example/webhook", genuine()))

    assert [] == aws_wire.entries
