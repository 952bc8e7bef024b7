"""Is every event put on the bus, and every one that is not found out?"""

import json
from typing import Any

import pytest
from twilio_connector import bus, telemetry
from twilio_connector.errors import InternalError, ServiceUnavailableError

from tests.aws_wire import LOST, AwsWire

MAX_BYTES = 256 * 1024


def entries(count: int, size: int = 0, character: str = "x") -> list[bus.Entry]:
    """Return so many entries, each with so many characters of text."""
    return [bus.entry("source", "type", {"number": number, "text": character * size}) for number in range(count)]


def calls(aws_wire: AwsWire) -> list[list[Any]]:
    """Return the numbers of the entries in each call."""
    return [
        [json.loads(entry["Detail"])["number"] for entry in parameters["Entries"]]
        for called, parameters in aws_wire.calls
        if called == "PutEvents"
    ]


def published() -> float:
    """Return how many events were counted, and forget them."""
    counted: list[float] = telemetry.metrics.metric_set.pop("EventsPublished", {}).get("Value", [])
    return sum(counted)


@pytest.fixture(autouse=True)
def uncounted() -> None:
    """Forget what earlier tests counted."""
    telemetry.metrics.metric_set.clear()


def test_an_entry_is_on_the_stacks_bus() -> None:
    """Its detail is JSON text."""
    entry = bus.entry("source", "type", {"text": "Grüße 👋", "none": None})

    assert {
        "EventBusName": "bus",
        "Source": "source",
        "DetailType": "type",
        "Detail": '{"text":"Grüße 👋","none":null}',
    } == entry


def test_a_missing_setting_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its name."""
    monkeypatch.delenv("EVENT_BUS_NAME")

    with pytest.raises(InternalError, match="EVENT_BUS_NAME"):
        bus.entry("source", "type", {})


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (10, [10]), (11, [10, 1]), (20, [10, 10]), (25, [10, 10, 5])]
)
def test_a_call_has_ten_entries_at_most(aws_wire: AwsWire, count: int, sizes: list[int]) -> None:
    """In order, each once."""
    bus.put(entries(count))

    assert sizes == [len(call) for call in calls(aws_wire)]
    assert list(range(count)) == [number for call in calls(aws_wire) for number in call]
    assert count == published()


@pytest.mark.parametrize("character", ["x", "é", "👍"])
def test_a_call_is_no_larger_than_the_bus_takes(aws_wire: AwsWire, character: str) -> None:
    """In bytes, of all that counts."""
    size = MAX_BYTES // 3 // len(character.encode())
    bus.put(entries(5, size, character))

    assert [[0, 1], [2, 3], [4]] == calls(aws_wire)


@pytest.mark.parametrize(("more", "sizes"), [(0, [2]), (1, [1, 1])])
def test_a_call_is_as_large_as_the_bus_takes(aws_wire: AwsWire, more: int, sizes: list[int]) -> None:
    """To the byte."""
    frame = sum(len(entries(1)[0][part]) for part in ("Source", "DetailType", "Detail"))
    first, second = entries(2, MAX_BYTES // 2 - frame)
    second |= {"Source": "s" * (len("source") + more)}
    bus.put([first, second])

    assert sizes == [len(call) for call in calls(aws_wire)]


def test_an_entry_that_is_too_large_goes_alone(aws_wire: AwsWire) -> None:
    """The bus says what it thinks of it; the others are put all the same."""
    small, large = entries(1)[0], entries(1, MAX_BYTES)[0]
    bus.put([small, large, small])

    assert [1, 1, 1] == [len(call) for call in calls(aws_wire)]


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_an_entry_that_is_refused_is_an_error(aws_wire: AwsWire, refused: int) -> None:
    """The others were published, and are counted."""
    aws_wire.refused_entries = refused

    with pytest.raises(ServiceUnavailableError, match=rf"^the event bus refused {refused} entries .InternalFailure.$"):
        bus.put(entries(3))
    assert 3 - refused == published()


def test_what_was_published_before_an_error_is_counted(aws_wire: AwsWire) -> None:
    """Each call for itself."""
    aws_wire.failures["PutEvents"] = [(200, ""), (400, "AccessDeniedException")]

    with pytest.raises(ServiceUnavailableError, match=r"^the event bus does not answer .AccessDeniedException.$"):
        bus.put(entries(15))
    assert 10 == published()


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize(
    "failures",
    [[(400, "ResourceNotFoundException")], [(500, "InternalException")] * 2, [LOST] * 2],
    ids=["no bus", "broken", "lost"],
)
def test_a_bus_that_does_not_answer_is_an_error(aws_wire: AwsWire, failures: list[tuple[int, str]]) -> None:
    """Nothing is taken for published."""
    aws_wire.failures["PutEvents"] = [*failures]

    with pytest.raises(ServiceUnavailableError, match=r"^the event bus does not answer"):
        bus.put(entries(1))
    assert (0, len(failures)) == (published(), len(calls(aws_wire)))


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("failure", [(500, "InternalException"), (400, "ThrottlingException"), LOST])
def test_a_call_is_tried_twice(aws_wire: AwsWire, failure: tuple[int, str]) -> None:
    """An event that comes twice is better than none."""
    aws_wire.failures["PutEvents"] = [failure]
    bus.put(entries(1))

    assert [[0], [0]] == calls(aws_wire)
    assert 1 == published()
