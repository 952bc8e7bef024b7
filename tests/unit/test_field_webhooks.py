"""Webhooks that people really met, one sample of each kind: each is published as the events that its file expects.

Each file `tests/data/field/webhooks/*.json` has one kind. `input` is a request, or a list of requests to post in this
order. A request has these fields:

- `fields`: the form, or the query of a GET; `method` (default `POST`), `headers`, `json`;
- `query`: the query of a POST, or the part of a GET's query before `fields`;
- `signed_query_replace`: pairs replaced in the signed URL alone, since Twilio may sign another spelling than it sends.

`{account}` is the connection's account SID. `expect` has the status of every answer and the detail-types of the
events, in order.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import webhook

from tests.aws_wire import AwsWire
from tests.conftest import Context
from tests.genuine import DETAIL_TYPES, official, with_json
from tests.mutants import Event, Request, Target, event_1, event_2, posted
from tests.unit.conftest import ACCOUNT_SID, AUTH_TOKEN

FOLDER = Path(__file__).parent.parent / "data" / "field" / "webhooks"
CASES = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
TARGET = Target("https://hook.example", ACCOUNT_SID, AUTH_TOKEN)


def request_of(given: dict[str, Any]) -> Request:
    """Return a request that a file describes, with a valid signature."""
    fields = tuple(given.get("fields", {}).items())
    query = given.get("query", "")
    request = Request(host="hook.example", path="/webhook", method=given.get("method", "POST"), query=query)
    if "json" in given:
        request = with_json(request, json.dumps(given["json"]).encode())
    elif request.method == "GET":
        request = replace(request, query="&".join(filter(None, [query, urlencode(fields)])))
    else:
        request = posted(request, fields)
    signed_query = request.query
    for sent, signed in given.get("signed_query_replace", ()):
        signed_query = signed_query.replace(sent, signed)
    request = official(request, TARGET, url=replace(request, query=signed_query).url)
    for name, value in given.get("headers", {}).items():
        request = request.with_header(name.lower(), value)
    return request


def read(name: str) -> tuple[list[Request], dict[str, Any]]:
    """Return the requests of a file, and what the file expects."""
    case = json.loads(CASES[name].read_text().replace("{account}", ACCOUNT_SID))
    given = case["input"] if isinstance(case["input"], list) else [case["input"]]
    return [request_of(each) for each in given], case["expect"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("payload", [event_2, event_1], ids=["2.0", "1.0"])
def test_a_webhook_from_the_field_becomes_its_events(aws_wire: AwsWire, payload: Any, name: str) -> None:
    """A webhook gets the status, and becomes the events with the detail-types, that its file expects."""
    requests, expected = read(name)
    events: list[Event] = [payload(request) for request in requests]
    answers = [webhook.handler(event, Context()) for event in events]

    assert {expected["status"]} == {answer["statusCode"] for answer in answers}
    assert expected["detail_types"] == [entry["DetailType"] for entry in aws_wire.entries]


def test_the_field_is_broad() -> None:
    """There are at least 80 samples; they cover each detail-type, and all expect status 200."""
    expected = [read(name)[1] for name in CASES]

    assert len(CASES) >= 80
    assert DETAIL_TYPES == {kind for each in expected for kind in each["detail_types"]}
    assert {200} == {each["status"] for each in expected}
