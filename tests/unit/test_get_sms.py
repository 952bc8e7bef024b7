"""Is a message got as Twilio has it?"""

import json

import pytest
from get_sms import handler
from twilio_connector.errors import ConnectorError, InvalidInputError, TwilioNotFoundError, TwilioUnavailableError

from tests.conftest import Context, LoadEvent
from tests.faults import FaultServer, faults
from tests.unit.conftest import ACCOUNT_SID

SID = "SM" + "0" * 32


def test_a_message_comes_back_untouched(twilio: FaultServer, context: Context, event: LoadEvent) -> None:
    """By its SID."""
    message = handler(event("get_sms"), context)

    assert [("GET", f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages/{SID}.json")] == [
        (request.method, request.target) for request in twilio.requests
    ]
    assert (SID, "queued") == (message["sid"], message["status"])


def test_an_mms_has_another_prefix(twilio: FaultServer, context: Context) -> None:
    """MM, as Twilio names it."""
    assert "MM" + "a" * 32 == handler({"message_sid": "MM" + "a" * 32}, context)["sid"]
    assert 1 == len(twilio.requests)


def test_the_api_takes_the_sid_from_the_path(twilio: FaultServer, context: Context, event: LoadEvent) -> None:
    """And answers 200."""
    answer = handler(event("get_sms_api"), context)

    assert (200, SID) == (answer["statusCode"], json.loads(answer["body"])["sid"])
    assert 1 == len(twilio.requests)


@pytest.mark.parametrize(
    "sid", ["", "SM", "CA" + "0" * 32, "SM" + "0" * 33, "SM" + "0" * 31 + "/", f"../{SID}", SID + "\n", None, 5]
)
def test_another_sid_is_refused(twilio: FaultServer, context: Context, sid: object) -> None:
    """It becomes a part of a path."""
    with pytest.raises(InvalidInputError, match=r"^message_sid: "):
        handler({"message_sid": sid}, context)

    assert [] == twilio.requests


@pytest.mark.parametrize(
    ("fault", "error", "count"),
    [
        (faults.NOT_FOUND, TwilioNotFoundError, 1),
        (faults.status(503), TwilioUnavailableError, 3),
        (faults.RESET_AFTER_READ, TwilioUnavailableError, 3),
        (faults.body("html"), TwilioUnavailableError, 3),
    ],
    ids=["404", "503", "reset", "html"],
)
def test_a_failed_read_has_its_error(
    twilio: FaultServer, context: Context, fault: faults.Fault, error: type[ConnectorError], count: int
) -> None:
    """A read can be repeated, and its outcome is never unknown."""
    twilio.script(fault)

    with pytest.raises(error):
        handler({"message_sid": SID}, context)

    assert count == len(twilio.requests)
