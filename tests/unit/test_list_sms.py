"""Are messages listed whole, in order, and never twice?"""

import base64
import json
from itertools import chain
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from list_sms import handler
from twilio_connector.errors import InvalidInputError, TwilioUnavailableError
from twilio_connector.invocation.handler import MAX_ANSWER_BYTES

from tests.aws_wire import AwsWire
from tests.conftest import Context, LoadEvent
from tests.faults import FaultServer, faults
from tests.unit.conftest import ACCOUNT_SID, API_KEY

MESSAGES = f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages.json"
OTHER = "AC" + "1" * 32


def listed(answer: dict[str, Any]) -> list[str]:
    """Return the SIDs in an answer."""
    return [message["sid"] for message in answer["messages"]]


def whole(wanted: dict[str, Any], context: Context) -> list[list[str]]:
    """Return the SIDs of each answer until there is no token."""
    answers = [handler(wanted, context)]
    while token := answers[-1]["next_page_token"]:
        answers.append(handler({**wanted, "page_token": token}, context))
    return [listed(answer) for answer in answers]


def queries(twilio: FaultServer) -> list[dict[str, list[str]]]:
    """Return the queries of all requests."""
    return [request.parameters for request in twilio.requests]


# Filters


@pytest.mark.parametrize(
    ("wanted", "query"),
    [
        ({}, {"PageSize": "1000"}),
        ({"limit": 5000}, {"PageSize": "1000"}),
        ({"limit": 20}, {"PageSize": "20"}),
        ({"limit": 20, "page_size": 7}, {"PageSize": "7"}),
        ({"limit": 20, "page_size": 1000}, {"PageSize": "1000"}),
        ({"to": "(202) 555-0143"}, {"PageSize": "1000", "To": "+12025550143"}),
        ({"to": "whatsapp:+15558675309"}, {"PageSize": "1000", "To": "whatsapp:+15558675309"}),
        ({"from": "Shop"}, {"PageSize": "1000", "From": "Shop"}),
        ({"date_sent": "2026-01-31"}, {"PageSize": "1000", "DateSent": "2026-01-31"}),
        ({"date_sent_after": "2026-01-31"}, {"PageSize": "1000", "DateSent>": "2026-01-31"}),
        ({"date_sent_before": "2026-01-31"}, {"PageSize": "1000", "DateSent<": "2026-01-31"}),
        (
            {"date_sent_after": "2026-01-31T01:00:00+02:00", "date_sent_before": "2026-02-01T00:00:00Z"},
            {"PageSize": "1000", "DateSent>": "2026-01-30T23:00:00Z", "DateSent<": "2026-02-01T00:00:00Z"},
        ),
    ],
)
def test_filters_have_twilios_names(
    twilio: FaultServer, context: Context, wanted: dict[str, Any], query: dict[str, str]
) -> None:
    """The inequality is a part of the name, and dates are in UTC."""
    handler(wanted, context)

    assert [{name: [value] for name, value in query.items()}] == queries(twilio)
    assert ("GET", MESSAGES) == (twilio.requests[0].method, twilio.requests[0].path)


def test_filters_are_encoded(twilio: FaultServer, context: Context) -> None:
    """A plus is no blank, and a smaller-than sign is none in a URL."""
    handler({"to": "+15005550006", "date_sent_before": "2026-01-31"}, context)

    assert "To=%2B15005550006&DateSent%3C=2026-01-31&PageSize=1000" == twilio.requests[0].query


def test_messages_are_filtered(twilio: FaultServer, context: Context) -> None:
    """Through all pages and tokens."""
    history = twilio.history(50)
    wanted = {"to": "+15550100001", "page_size": 3, "limit": 5}

    assert [history.sids[number] for number in range(1, 50, 4)] == [*chain(*whole(wanted, context))]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("to", "nobody"),
        ("from", "TwelveLetter"),
        ("date_sent", "31.1.2026"),
        ("date_sent", "2026-02-30"),
        ("date_sent", "2026-01-31T00:00:00"),
        ("date_sent", 20260131),
        ("date_sent_after", "yesterday"),
        ("date_sent_before", ""),
        ("page_size", 0),
        ("page_size", 1001),
        ("limit", 0),
        ("limit", 5001),
        ("limit", "20"),
        ("page_token", 5),
        ("offset", 5),
    ],
)
def test_a_wrong_filter_is_refused(context: Context, name: str, value: object) -> None:
    """It is named, and nobody is asked."""
    with pytest.raises(InvalidInputError) as refusal:
        handler({name: value}, context)

    assert [name] == [fault.field for fault in refusal.value.faults]


def test_the_api_reads_the_query_string(twilio: FaultServer, context: Context, event: LoadEvent) -> None:
    """Numbers are text there."""
    answer = handler(event("list_sms_api"), context)

    assert (200, {"messages": [], "next_page_token": None}) == (answer["statusCode"], json.loads(answer["body"]))
    assert [{"To": ["+15005550006"], "PageSize": ["20"]}] == queries(twilio)


def test_the_event_of_the_readme_is_understood(twilio: FaultServer, context: Context, event: LoadEvent) -> None:
    """It asks for the messages of this year to one number."""
    assert {"messages": [], "next_page_token": None} == handler(event("list_sms"), context)
    assert 1 == len(twilio.requests)


# Pages


def test_nothing_is_a_list_too(twilio: FaultServer, context: Context) -> None:
    """One request says so."""
    assert {"messages": [], "next_page_token": None} == handler({}, context)
    assert 1 == len(twilio.requests)


def test_messages_come_back_untouched(twilio: FaultServer, context: Context) -> None:
    """With all of Twilio's fields."""
    history = twilio.history(1)
    message = handler({}, context)["messages"][0]

    assert (history.sids[0], "delivered") == (message["sid"], message["status"])
    assert {"uri", "body", "date_sent", "price"} <= message.keys()


@pytest.mark.parametrize(
    ("count", "limit", "page_size", "requests"),
    [(10, 10, 10, 1), (11, 10, 10, 1), (10, 10, 3, 4), (10, 9, 3, 3), (10, 4, 10, 1), (3, 10, None, 1)],
)
def test_no_more_pages_are_read_than_needed(
    twilio: FaultServer, context: Context, count: int, limit: int, page_size: int | None, requests: int
) -> None:
    """Each page is a request."""
    history = twilio.history(count)
    answer = handler({"limit": limit, "page_size": page_size}, context)

    assert history.sids[:limit] == listed(answer)
    assert (count > limit, requests) == (answer["next_page_token"] is not None, len(twilio.requests))


@given(st.integers(0, 40), st.integers(1, 12) | st.none(), st.integers(1, 15), st.integers(1, 12))
@example(count=10, page_size=5, limit=5, at_most=5)
@example(count=10, page_size=3, limit=4, at_most=12)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_lost_or_repeated(
    twilio: FaultServer, context: Context, count: int, page_size: int | None, limit: int, at_most: int
) -> None:
    """Wherever an answer ends, in a page or between two, the next one goes on exactly there."""
    twilio.reset()
    history = twilio.history(count, max_page_size=at_most)
    answers = whole({"page_size": page_size, "limit": limit}, context)

    assert history.sids == [*chain(*answers)]
    assert {limit} >= {len(answer) for answer in answers[:-1]}


def test_the_limit_may_change_between_answers(twilio: FaultServer, context: Context) -> None:
    """The token says where to go on, not how far."""
    history = twilio.history(30)
    first = handler({"limit": 4, "page_size": 7}, context)
    second = handler({"limit": 11, "page_size": 7, "page_token": first["next_page_token"]}, context)

    assert history.sids[:15] == listed(first) + listed(second)


@pytest.mark.parametrize(
    ("evil", "expected"),
    [("self_loop", 3), ("two_page_loop", 6), ("repeated_page", 3)],
)
def test_pages_that_repeat_come_to_an_end(twilio: FaultServer, context: Context, evil: Any, expected: int) -> None:
    """Each message is listed once."""
    history = twilio.history(10, evil=evil)
    answer = handler({"page_size": 3}, context)

    assert (history.sids[:expected], None) == (listed(answer), answer["next_page_token"])
    assert len(twilio.requests) <= 4


def test_a_message_on_two_pages_is_listed_once(twilio: FaultServer, context: Context) -> None:
    """A page may begin where the one before it ended."""
    history = twilio.history(10, evil="repeated_message")

    assert history.sids == listed(handler({"page_size": 3}, context))


def test_pages_without_messages_come_to_an_end(twilio: FaultServer, context: Context) -> None:
    """A page that leads to itself is read no more than it takes to see that."""
    page = json.dumps({"messages": [], "next_page_uri": f"{MESSAGES}?PageSize=3&Page=1&PageToken=PA0"}).encode()
    twilio.script(*[faults.answer(page, code=200)] * 20, faults.status(500))
    answer = handler({"page_size": 3}, context)

    assert ([], None) == (listed(answer), answer["next_page_token"])
    assert len(twilio.requests) <= 3


@pytest.mark.parametrize("evil", ["foreign_host", "other_account"])
def test_a_next_page_elsewhere_is_not_read(twilio: FaultServer, context: Context, evil: Any) -> None:
    """Not with our credentials, and not as our messages."""
    twilio.history(10, evil=evil)

    with pytest.raises(TwilioUnavailableError, match="next page is outside the connection's account"):
        handler({"page_size": 3}, context)
    assert 1 == len(twilio.requests)


@pytest.mark.parametrize(
    "uri",
    [
        f"//elsewhere.example{MESSAGES}",
        f"https://elsewhere.example{MESSAGES}?Page=1",
        f"{MESSAGES}/../Calls.json?Page=1",
        f"{MESSAGES}#?Page=1",
        "/2010-04-01/Accounts.json?Page=1",
        " ",
        "?",
    ],
)
def test_an_odd_next_page_is_not_read(twilio: FaultServer, context: Context, uri: str) -> None:
    """Only the connection's own messages are."""
    twilio.script(faults.answer(json.dumps({"messages": [], "next_page_uri": uri}).encode()), faults.OK)

    with pytest.raises(TwilioUnavailableError):
        handler({}, context)
    assert 1 == len(twilio.requests)


def test_a_whole_url_of_the_same_host_is_a_next_page(twilio: FaultServer, context: Context) -> None:
    """Twilio writes paths, and could write URLs."""
    uri = f"{twilio.url}{MESSAGES}?PageSize=1000&Page=1&PageToken=PA0"
    page = json.dumps({"messages": [{"sid": "SM" + "f" * 32}], "next_page_uri": uri}).encode()
    last = json.dumps({"messages": [], "next_page_uri": None}).encode()
    twilio.script(faults.answer(page, code=200), faults.answer(last, code=200))
    handler({}, context)

    assert {"PageSize": ["1000"], "Page": ["1"], "PageToken": ["PA0"]} == queries(twilio)[1]


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize(
    "page",
    [
        {},
        {"messages": None},
        {"messages": {}},
        {"messages": [{}]},
        {"messages": [{"sid": "CA" + "0" * 32}]},
        {"messages": [], "next_page_uri": 5},
        [],
    ],
)
def test_what_is_no_page_is_twilios_failure(twilio: FaultServer, context: Context, page: object) -> None:
    """A proxy may answer anything; a read is tried again."""
    twilio.script(faults.answer(json.dumps(page).encode()))

    with pytest.raises(TwilioUnavailableError):
        handler({}, context)
    assert 3 == len(twilio.requests)


# Time and size


def test_a_page_is_not_begun_without_time_for_it(twilio: FaultServer) -> None:
    """The answer ends before it, and the next one goes on there."""
    history = twilio.history(10)
    first = handler({"page_size": 4}, Context(10))
    second = handler({"page_size": 4, "page_token": first["next_page_token"]}, Context(30))

    assert (history.sids[:4], history.sids[4:]) == (listed(first), listed(second))


@pytest.mark.parametrize(
    ("character", "count"),
    [("x", 5000), ("😀", 1500), ('"', 2500), ("\\", 2500)],
    ids=["x", "emoji", "quote", "backslash"],
)
@pytest.mark.parametrize("by_api", [True, False], ids=["api", "direct"])
def test_a_long_list_is_cut_to_what_lambda_returns(
    twilio: FaultServer, event: LoadEvent, character: str, count: int, *, by_api: bool
) -> None:
    """And goes on exactly there; there are as many messages as need more than one answer."""
    history = twilio.history(count, body=character * 1600)
    context = Context(120)
    found: list[str] = []
    answers = 0
    wanted: dict[str, Any] = {"limit": 5000, "page_token": None}
    while wanted["page_token"] or not found:
        if by_api:
            request = event("list_sms_api")
            names = [f"{name}={value}" for name, value in wanted.items() if value]
            request["rawQueryString"] = "&".join(names)
            answer = handler(request, context)
            result = json.loads(answer["body"])
        else:
            answer = result = handler(wanted, context)
        assert len(json.dumps(answer, ensure_ascii=False).encode()) <= MAX_ANSWER_BYTES
        assert listed(result)
        found += listed(result)
        answers += 1
        wanted["page_token"] = result["next_page_token"]

    assert history.sids == found
    assert answers > 1


# Tokens


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "é",
        "null",
        "PA" + "0" * 32,
        base64.urlsafe_b64encode(b"[]").decode(),
        base64.urlsafe_b64encode(b"{}").decode(),
        base64.urlsafe_b64encode(b"null").decode(),
        base64.urlsafe_b64encode(b'["","",1]').decode(),
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
        base64.urlsafe_b64encode(b"\xff").decode(),
    ],
)
def test_a_token_that_is_none_is_refused(twilio: FaultServer, context: Context, token: str) -> None:
    """The message names the field, and nothing is asked for."""
    with pytest.raises(InvalidInputError, match=r"^page_token: was not returned by list_sms"):
        handler({"page_token": token}, context)

    assert [] == twilio.requests


@pytest.mark.parametrize(
    "other",
    [
        {"to": "+15550100002"},
        {"from": "Shop"},
        {"to": None},
        {"date_sent": "2026-01-31"},
        {"page_size": 4},
        {"page_size": None},
    ],
)
def test_a_token_belongs_to_its_filters(twilio: FaultServer, context: Context, other: dict[str, Any]) -> None:
    """With others, messages would be lost or repeated."""
    twilio.history(40)
    wanted = {"to": "+15550100001", "page_size": 3, "limit": 4}
    token = handler(wanted, context)["next_page_token"]

    with pytest.raises(InvalidInputError, match=r"^page_token: belongs to other filters"):
        handler({**wanted, **other, "page_token": token}, context)


def test_a_token_belongs_to_its_connection(twilio: FaultServer, aws_wire: AwsWire, context: Context) -> None:
    """Another account's messages would be passed over."""
    aws_wire.secrets["twilio/other"] = json.dumps(API_KEY | {"account_sid": OTHER})
    twilio.history(10)
    token = handler({"limit": 4, "page_size": 10}, context)["next_page_token"]

    with pytest.raises(InvalidInputError, match=r"^page_token: belongs to "):
        handler({"limit": 4, "page_size": 10, "connection": "other", "page_token": token}, context)


def test_a_forged_offset_is_refused(twilio: FaultServer, context: Context) -> None:
    """It would read a page from its end."""
    twilio.history(10)
    token = handler({"limit": 4, "page_size": 10}, context)["next_page_token"]
    *position, _, after = json.loads(base64.urlsafe_b64decode(token + "=="))
    forged = base64.urlsafe_b64encode(json.dumps([*position, -1, after]).encode()).decode()

    with pytest.raises(InvalidInputError, match=r"^page_token: "):
        handler({"page_size": 10, "page_token": forged}, context)


def test_new_messages_do_not_move_the_first_page(twilio: FaultServer, context: Context) -> None:
    """Twilio has no token for it, so the list goes on after the last message that was given."""
    sids = [f"SM{number:032x}" for number in range(8)]
    old, new = ([{"sid": sid} for sid in some] for some in (sids[2:], sids))
    twilio.script(*(faults.answer(json.dumps({"messages": page}).encode(), code=200) for page in (old, new)))
    first = handler({"limit": 3, "page_size": 10}, context)
    second = handler({"page_size": 10, "page_token": first["next_page_token"]}, context)

    assert sids[2:] == listed(first) + listed(second)


def test_a_token_is_no_secret_and_holds_none(twilio: FaultServer, context: Context) -> None:
    """Neither a filter's number nor a credential."""
    twilio.history(40)
    token = handler({"to": "+15550100001", "limit": 1}, context)["next_page_token"]
    text = base64.urlsafe_b64decode(token).decode()

    assert [] == [part for part in ("5550100001", API_KEY["api_key_secret"], API_KEY["auth_token"]) if part in text]
