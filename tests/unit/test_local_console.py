"""The demo's lines about a step fit a terminal of 80 columns, and no value is broken across lines."""

from collections.abc import Callable

import pytest

from local.console import WIDTH, Step

TOLD: dict[str, Callable[[Step], None]] = {
    "a short request": lambda step: step.request("GET /messages"),
    "a long request": lambda step: step.request("POST /messages", {"to": "+15005550006", "message": "x" * 40, "a": 1}),
    "an answer": lambda step: step.answer("201", {"sid": "S" * 30, "status": "queued", "body": "y" * 25}),
    "an event": lambda step: step.event("Message Received", {"from": "+15005550006", "body": "Hello. " * 5, "b": None}),
    "more": lambda step: step.more("to: is not valid; " * 10),
}


@pytest.mark.parametrize("tell", TOLD.values(), ids=TOLD)
def test_fits_the_terminal(tell: Callable[[Step], None]) -> None:
    """No line is wider than the terminal, less the column for the kind of the line."""
    step = Step()

    tell(step)

    assert [] == [line for _, line in step.exchanges if len(line) > WIDTH - 11]


@pytest.mark.parametrize("length", range(40, 69))
def test_breaks_between_fields(length: int) -> None:
    """A field that does not fit on a line moves to the next line as a whole."""
    step = Step()

    step.answer("200", {"body": "z" * (length - len("200 body=")), "sid": "SM"})

    lines = [line for _, line in step.exchanges]
    assert "sid=SM" in lines[-1]
    assert all(len(line) <= WIDTH - 11 for line in lines)
