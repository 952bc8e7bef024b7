"""`list_sms` lists all messages, in order, each once."""

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
    """Return the SIDs of each answer, up to the first answer without a token."""
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
    """Filters have Twilio's names: the inequality sign is part of the name, and dates are in UTC."""
    handler(wanted, context)

    assert [{name: [value] for name, value in query.items()}] == queries(twilio)
    assert ("GET", MESSAGES) == (twilio.requests[0].method, twilio.requests[0].path)


def test_filters_are_encoded(twilio: FaultServer, context: Context) -> None:
    """Filters are percent-encoded: a plus sign must not become a space, and `<` is not allowed in a URL."""
    handler({"to": "+15005550006", "date_sent_before": "2026-01-31"}, context)

    assert "To=%2B15005550006&DateSent%3C=2026-01-31&PageSize=1000" == twilio.requests[0].query


def test_messages_are_filtered(twilio: FaultServer, context: Context) -> None:
    """The filters apply to all pages and to all answers of a list."""
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
    """An invalid filter is refused, and the error names it."""
    with pytest.raises(InvalidInputError) as refusal:
        handler({name: value}, context)

    assert [name] == [fault.field for fault in refusal.value.faults]


def test_the_api_reads_the_query_string(twilio: FaultServer, context: Context, event: LoadEvent) -> None:
    """The API reads filters from the query string, where numbers are text."""
    answer = handler(event("list_sms_api"), context)

    assert (200, {"messages": [], "next_page_token": None}) == (answer["statusCode"], json.loads(answer["body"]))
    assert [{"To": ["+15005550006"], "PageSize": ["20"]}] == queries(twilio)


def test_the_event_of_the_readme_is_understood(twilio: FaultServer, context: Context, event: LoadEvent) -> None:
    """The README's example event is valid: it lists the messages of this year to one number."""
    assert {"messages": [], "next_page_token": None} == handler(event("list_sms"), context)
    assert 1 == len(twilio.requests)


# Pages


def test_nothing_is_a_list_too(twilio: FaultServer, context: Context) -> None:
    """If there are no messages, one request shows it, and the answer is an empty list without a token."""
    assert {"messages": [], "next_page_token": None} == handler({}, context)
    assert 1 == len(twilio.requests)


def test_messages_come_back_untouched(twilio: FaultServer, context: Context) -> None:
    """Messages are returned unchanged, with all of Twilio's fields."""
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
    """No more pages are requested than the limit needs, because each page is a request."""
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
    """Each answer continues exactly where the last one ended, inside a page or between two pages."""
    twilio.reset()
    history = twilio.history(count, max_page_size=at_most)
    answers = whole({"page_size": page_size, "limit": limit}, context)

    assert history.sids == [*chain(*answers)]
    assert {limit} >= {len(answer) for answer in answers[:-1]}


def test_the_limit_may_change_between_answers(twilio: FaultServer, context: Context) -> None:
    """The limit may change between answers: a token says where to continue, not how far."""
    history = twilio.history(30)
    first = handler({"limit": 4, "page_size": 7}, context)
    second = handler({"limit": 11, "page_size": 7, "page_token": first["next_page_token"]}, context)

    assert history.sids[:15] == listed(first) + listed(second)


@pytest.mark.parametrize(
    ("evil", "expected"),
    [("self_loop", 3), ("two_page_loop", 6), ("repeated_page", 3)],
)
def test_pages_that_repeat_come_to_an_end(twilio: FaultServer, context: Context, evil: Any, expected: int) -> None:
    """If Twilio's pages repeat, the list ends, and each message is listed once."""
    history = twilio.history(10, evil=evil)
    answer = handler({"page_size": 3}, context)

    assert (history.sids[:expected], None) == (listed(answer), answer["next_page_token"])
    assert len(twilio.requests) <= 4


def test_a_message_on_two_pages_is_listed_once(twilio: FaultServer, context: Context) -> None:
    """A message on two pages is listed once: a page may begin with the last message of the page before it."""
    history = twilio.history(10, evil="repeated_message")

    assert history.sids == listed(handler({"page_size": 3}, context))


def test_pages_without_messages_come_to_an_end(twilio: FaultServer, context: Context) -> None:
    """The list ends after at most three requests if an empty page links to itself."""
    page = json.dumps({"messages": [], "next_page_uri": f"{MESSAGES}?PageSize=3&Page=1&PageToken=PA0"}).encode()
    twilio.script(*[faults.answer(page, code=200)] * 20, faults.status(500))
    answer = handler({"page_size": 3}, context)

    assert ([], None) == (listed(answer), answer["next_page_token"])
    assert len(twilio.requests) <= 3


@pytest.mark.parametrize("evil", ["foreign_host", "other_account"])
def test_a_next_page_elsewhere_is_not_read(twilio: FaultServer, context: Context, evil: Any) -> None:
    """A next page on another host or of another account is an error, and is not requested.

    Another host must not get our credentials, and another account's messages must not be listed as ours.
    """
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
    """A next page outside the connection's own messages is an error, and is not requested."""
    twilio.script(faults.answer(json.dumps({"messages": [], "next_page_uri": uri}).encode()), faults.OK)

    with pytest.raises(TwilioUnavailableError):
        handler({}, context)
    assert 1 == len(twilio.requests)


def test_a_whole_url_of_the_same_host_is_a_next_page(twilio: FaultServer, context: Context) -> None:
    """A next page may be a whole URL of the same host: Twilio sends paths, but could send URLs."""
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
    """An answer that is not a page is retried, and is then an error, because a proxy may answer anything."""
    twilio.script(faults.answer(json.dumps(page).encode()))

    with pytest.raises(TwilioUnavailableError):
        handler({}, context)
    assert 3 == len(twilio.requests)


# Time and size


def test_a_page_is_not_begun_without_time_for_it(twilio: FaultServer) -> None:
    """If no time is left for one more page, the answer ends, and the next answer continues there."""
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
    """An answer is cut to the size that Lambda returns, and the next answer continues exactly there."""
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
    """An invalid token is refused: the error names the field, and Twilio gets no request."""
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
    """A token is refused with other filters, because messages would be lost or listed twice."""
    twilio.history(40)
    wanted = {"to": "+15550100001", "page_size": 3, "limit": 4}
    token = handler(wanted, context)["next_page_token"]

    with pytest.raises(InvalidInputError, match=r"^page_token: belongs to other filters"):
        handler({**wanted, **other, "page_token": token}, context)


def test_a_token_belongs_to_its_connection(twilio: FaultServer, aws_wire: AwsWire, context: Context) -> None:
    """A token is refused for another connection, because another account's messages would be skipped."""
    aws_wire.secrets["twilio/other"] = json.dumps(API_KEY | {"account_sid": OTHER})
    twilio.history(10)
    token = handler({"limit": 4, "page_size": 10}, context)["next_page_token"]

    with pytest.raises(InvalidInputError, match=r"^page_token: belongs to "):
        handler({"limit": 4, "page_size": 10, "connection": "other", "page_token": token}, context)


def test_a_forged_offset_is_refused(twilio: FaultServer, context: Context) -> None:
    """A token with a negative offset is refused, because it would read a page from its end."""
    twilio.history(10)
    token = handler({"limit": 4, "page_size": 10}, context)["next_page_token"]
    *position, _, after = json.loads(base64.urlsafe_b64decode(token + "=="))
    forged = base64.urlsafe_b64encode(json.dumps([*position, -1, after]).encode()).decode()

    with pytest.raises(InvalidInputError, match=r"^page_token: "):
        handler({"page_size": 10, "page_token": forged}, context)


def test_new_messages_do_not_move_the_first_page(twilio: FaultServer, context: Context) -> None:
    """New messages do not shift the first page.

    Twilio has no token for that page, so the list continues after the last returned message.
    """
    sids = [f"SM{number:032x}" for number in range(8)]
    old, new = ([{"sid": sid} for sid in some] for some in (sids[2:], sids))
    twilio.script(*(faults.answer(json.dumps({"messages": page}).encode(), code=200) for page in (old, new)))
    first = handler({"limit": 3, "page_size": 10}, context)
    second = handler({"page_size": 10, "page_token": first["next_page_token"]}, context)

    assert sids[2:] == listed(first) + listed(second)


def test_a_token_is_no_secret_and_holds_none(twilio: FaultServer, context: Context) -> None:
    """A token contains neither a filter's phone number nor a credential."""
    twilio.history(40)
    token = handler({"to": "+15550100001", "limit": 1}, context)["next_page_token"]
    text = base64.urlsafe_b64decode(token).decode()

    assert [] == [part for part in ("5550100001", API_KEY["api_key_secret"], API_KEY["auth_token"]) if part in text]
