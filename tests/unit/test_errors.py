"""The errors have the classes, statuses and messages that the interface promises."""

from typing import Any

import pytest
from twilio_connector import errors
from twilio_connector.errors import (
    NOTHING_CHANGED,
    ConnectorError,
    Fault,
    InvalidInputError,
    OutcomeUnknownError,
    RecipientOptedOutError,
    TwilioDetails,
    TwilioNotFoundError,
    TwilioRateLimitError,
    TwilioRejectedError,
)

REQUEST_ID = "RQ" + "0" * 32
TEXT = "The 'To' number +15005550001 is not valid"

PROMISED = {
    "InvalidInputError": (400, False),
    "ConnectionNotFoundError": (404, False),
    "ConnectionInvalidError": (500, False),
    "ServiceUnavailableError": (503, True),
    "TwilioAuthenticationError": (502, False),
    "TwilioNotFoundError": (404, False),
    "TwilioRejectedError": (400, False),
    "RecipientOptedOutError": (400, False),
    "TwilioRateLimitError": (429, True),
    "SenderQueueFullError": (429, True),
    "TwilioUnavailableError": (502, True),
    "OutcomeUnknownError": (504, False),
    "KeyNotFoundError": (404, False),
    "IdempotencyConflictError": (422, False),
    "SendInProgressError": (409, True),
    "ResponseTooLargeError": (502, False),
    "InternalError": (500, False),
}


def classes(parent: type[ConnectorError] = ConnectorError) -> dict[str, type[ConnectorError]]:
    """Return all error classes by name."""
    found = {child.__name__: child for child in parent.__subclasses__()}
    return found | {name: each for child in parent.__subclasses__() for name, each in classes(child).items()}


def make(name: str) -> ConnectorError:
    """Return an error of the named class."""
    if name == "InvalidInputError":
        return InvalidInputError(Fault("to", "is required"))
    return classes()[name]("it failed")


def test_there_are_no_other_errors() -> None:
    """The error classes are exactly the promised ones."""
    assert PROMISED.keys() == classes().keys()


@pytest.mark.parametrize(("name", "promised"), PROMISED.items(), ids=PROMISED)
def test_status_and_retry_are_as_promised(name: str, promised: tuple[int, bool]) -> None:
    """The problem object has the promised status, and says whether the caller may retry."""
    problem = make(name).problem()

    assert promised == (problem["status"], problem["retryable"])
    assert name == problem["title"]
    assert f"urn:twilio-connector:error:{name}" == problem["type"]


@pytest.mark.parametrize("name", PROMISED)
def test_the_module_draws_the_error(name: str) -> None:
    """The tree in the module's docstring has every class with its status."""
    line = next(line for line in str(errors.__doc__).splitlines() if f"─ {name} " in line)

    assert ("4xx" if name == "TwilioRejectedError" else str(PROMISED[name][0])) in line


def test_whatever_may_have_changed_something_is_not_promised_to_have_changed_nothing() -> None:
    """`NOTHING_CHANGED` has every error except those after which Twilio may have changed something.

    A failure record whose error is on this list is sent again when it is handed back.
    """
    in_doubt = {"OutcomeUnknownError", "SendInProgressError", "ResponseTooLargeError"}

    assert PROMISED.keys() - in_doubt == NOTHING_CHANGED


def test_some_errors_know_how_long_to_wait() -> None:
    """Three errors have a default Retry-After, for callers to whom Twilio gave no time."""
    seconds = {
        name: each.default_retry_after for name, each in classes().items() if each.default_retry_after is not None
    }

    assert {"TwilioRateLimitError": 1, "SenderQueueFullError": 60, "SendInProgressError": 1} == seconds


def test_whoever_is_told_to_wait_may_try_again() -> None:
    """Every error with a default Retry-After is retryable: to wait without a retry would be useless."""
    assert [] == [
        name for name, each in classes().items() if each.default_retry_after is not None and not each.retryable
    ]


def test_opting_out_is_a_rejection() -> None:
    """RecipientOptedOutError is a TwilioRejectedError, so that Python callers catch both with one name."""
    assert issubclass(RecipientOptedOutError, TwilioRejectedError)


@pytest.mark.parametrize(
    ("twilio_status", "status"), [(400, 400), (402, 400), (403, 403), (409, 409), (410, 400), (422, 422)]
)
def test_a_rejection_has_twilios_status_where_it_says_more(twilio_status: int, status: int) -> None:
    """A rejection has Twilio's status if that is 403, 409 or 422, and 400 otherwise."""
    error = TwilioRejectedError("refused", twilio=TwilioDetails(status=twilio_status))

    assert (status, status) == (error.http_status, error.problem()["status"])


def test_an_opted_out_recipient_is_always_400() -> None:
    """RecipientOptedOutError has status 400, even if Twilio answered with another status."""
    error = RecipientOptedOutError("stopped", twilio=TwilioDetails(status=403, code=21610))

    assert 400 == error.http_status


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (None, "no such thing"),
        (TwilioDetails(status=404), "no such thing (HTTP 404)"),
        (TwilioDetails(status=404, code=20404), "no such thing (HTTP 404, Twilio code 20404)"),
        (
            TwilioDetails(status=404, code=20404, request_id=REQUEST_ID, text=TEXT),
            f"no such thing (HTTP 404, Twilio code 20404, request {REQUEST_ID})",
        ),
    ],
    ids=["none", "status", "code", "all"],
)
def test_a_message_has_twilios_code_and_request_but_not_its_text(details: TwilioDetails | None, expected: str) -> None:
    """An error's message has no text of Twilio's, because Lambda logs it and the text may hold phone numbers."""
    assert expected == str(TwilioNotFoundError("no such thing", twilio=details))


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (None, {}),
        (TwilioDetails(status=429), {"twilio_status": 429}),
        (
            TwilioDetails(status=429, code=20429, request_id=REQUEST_ID, text="Too many"),
            {"twilio_status": 429, "twilio_code": 20429, "twilio_request_id": REQUEST_ID},
        ),
    ],
    ids=["none", "status", "all"],
)
def test_a_problem_has_what_is_known_of_twilios_answer(details: TwilioDetails | None, expected: dict[str, Any]) -> None:
    """A problem object has Twilio's status, code and request id, and omits those that Twilio did not give."""
    problem = TwilioRateLimitError("too many", twilio=details).problem()

    assert expected == {name: value for name, value in problem.items() if name.startswith("twilio_")}


def test_a_problem_adds_twilios_text() -> None:
    """Twilio's text is in the problem object, which only an API caller sees, and not in the message."""
    error = TwilioNotFoundError("no such thing", twilio=TwilioDetails(status=404, text=TEXT))

    assert f"no such thing (HTTP 404): {TEXT}" == error.problem()["detail"]
    assert TEXT not in str(error)


def test_invalid_input_tells_all_faults() -> None:
    """InvalidInputError has all faults of the input, in its message and as a list."""
    error = InvalidInputError(Fault("to", "is required"), Fault("limit", "must be a whole number"))

    assert "to: is required; limit: must be a whole number" == str(error)
    assert [
        {"field": "to", "message": "is required"},
        {"field": "limit", "message": "must be a whole number"},
    ] == error.problem()["errors"]


def test_an_unknown_outcome_is_not_retryable() -> None:
    """An unknown outcome is not retryable, because it must be resolved first."""
    assert not OutcomeUnknownError("unknown").retryable
