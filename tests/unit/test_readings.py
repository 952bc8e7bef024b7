"""Tests of readings: which parts of a request distinguish two readings of one signed text."""

from typing import Any

import pytest
from twilio_connector.webhooks.readings import Reading, reading

URL = "https://hook.example/webhook"
FORM = [("a", "1"), ("b", "2")]
SID = "SM" + "1" * 32


def of(text: str = "x=1AccountSidAC", url: str = URL, **changes: Any) -> Reading:
    """Return the reading of a text that follows a URL: a POST with a query and a form, except for the changes."""
    parts: dict[str, Any] = {
        "method": "POST",
        "query": [("x", "1"), ("y", "")],
        "form": [("a", "1"), ("b", "2")],
        "body": None,
    }
    return reading(url, url + text, **(parts | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "GET"},
        {"url": f"{URL}/default"},
        {"query": [("x", "1")]},
        {"query": [("x", "1"), ("y", ""), ("z", "")]},
        {"query": [("x", ""), ("y", "1")]},
        {"query": [("a", "1"), ("b", "2")], "form": [("x", "1"), ("y", "")]},
        {"form": [("a", "12"), ("b", "")]},
        {"form": [("a1b2", "")]},
        {"form": []},
        {"form": None},
        {"form": None, "body": b"{}"},
        {"form": None, "body": b"[]"},
    ],
    ids=str,
)
def test_each_part_of_a_reading_counts(changes: dict[str, Any]) -> None:
    """Each of these parts alone makes another reading: method, path, kind of body, query, form and JSON body."""
    others: list[dict[str, Any]] = [{}, {"form": []}, {"form": None}, {"form": None, "body": b"{}"}]

    assert [] == [other for other in others if other != changes and of(**other).digest == of(**changes).digest]


@pytest.mark.parametrize(
    "changes",
    [
        {"query": [("y", ""), ("x", "1")]},
        {"form": [("b", "2"), ("a", "1")]},
        {"form": [("a", "1"), ("b", "2"), ("a", "1")]},
        {"url": "https://hook.example:443/webhook"},
    ],
    ids=str,
)
def test_what_is_not_signed_makes_no_other_reading(changes: dict[str, Any]) -> None:
    """The order of pairs, repeated pairs and the spelling of the host are not signed, so they make no other reading."""
    assert of().digest == of(**changes).digest


@pytest.mark.parametrize(
    ("text", "url", "has_sid"),
    [
        (f"MessageSid{SID}", URL, True),
        (f"?a={SID}", URL, True),
        (f"ab{SID}cd", URL, True),
        (f"a{SID.lower()}", URL, False),
        ("foobar", URL, False),
        ("?foo=bar", f"{URL}/{SID}", False),
    ],
    ids=["value", "query", "inside", "lower case", "none", "in the path"],
)
def test_a_sid_is_looked_for_in_the_text(text: str, url: str, has_sid: bool) -> None:  # noqa: FBT001 a table
    """A SID is found wherever the text is cut. The path is not searched, because the stack itself sets it."""
    assert has_sid == of(text, url).has_sid
    assert has_sid == of(text, url, form=[(text, "")]).has_sid
