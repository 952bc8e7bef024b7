"""`TwilioList.pages` yields each page of a list once, and only pages of the connection's own list."""

import json

import pytest
from msgspec import Struct
from twilio_connector.api.client import Twilio
from twilio_connector.api.pages import TwilioList
from twilio_connector.deadline import Deadline
from twilio_connector.errors import TwilioUnavailableError

from tests.faults import Fault, FaultServer, faults
from tests.unit.conftest import ACCOUNT_SID

KEYS = f"/2010-04-01/Accounts/{ACCOUNT_SID}/Keys.json"


class Numbers(Struct):
    """The fields of a page of this list."""

    keys: list[int]
    next_page_uri: str | None = None


def page(number: int, uri: str | None) -> Fault:
    """Return a fault that answers with a page."""
    return faults.answer(json.dumps({"keys": [number], "next_page_uri": uri}).encode(), code=200)


def numbers() -> list[int]:
    """Return the numbers on all pages."""
    listed = TwilioList(Twilio(None, Deadline(30)), "Keys.json", Numbers, {"Name": "a b"}, "2")
    return [number for page in listed.pages() for number in page["keys"]]


def test_each_page_is_asked_for_with_filters_and_size(twilio: FaultServer) -> None:
    """Each page is requested with the filters and the size. A link adds only the page and its token."""
    twilio.script(page(1, f"{KEYS}?PageSize=9&Page=1&PageToken=PA1&Name=other"), page(2, None))
    first = {"Name": ["a b"], "PageSize": ["2"]}

    assert [1, 2] == numbers()
    assert [first, first | {"Page": ["1"], "PageToken": ["PA1"]}] == [each.parameters for each in twilio.requests]


@pytest.mark.parametrize("uri", [KEYS, f"{KEYS}?PageToken=PA1"], ids=["first", "second"])
def test_a_circle_of_pages_ends(twilio: FaultServer, uri: str) -> None:
    """A list ends if a link leads back to an earlier page, or to the first page, which has no token."""
    twilio.script(page(1, f"{KEYS}?PageToken=PA1"), page(2, uri), faults.status(500))

    assert [1, 2] == numbers()


def test_a_page_of_another_account_is_not_read(twilio: FaultServer) -> None:
    """A next page of another account is an error, and is not requested."""
    twilio.script(page(1, KEYS.replace(ACCOUNT_SID, f"AC{'f' * 32}")), faults.status(500))
    with pytest.raises(TwilioUnavailableError, match="outside the connection's account"):
        numbers()

    assert 1 == len(twilio.requests)
