"""The event bus client: it puts every entry on the bus, and reports each entry that the bus did not take."""

import json
from typing import Any

import pytest
from twilio_connector import telemetry
from twilio_connector.aws import event_bus
from twilio_connector.aws.event_bus import PutResult
from twilio_connector.errors import InternalError, ServiceUnavailableError

from tests.aws_wire import LOST, AwsWire
from tests.faults import closed_port

MAX_BYTES = 256 * 1024


def detail(number: int, size: int = 0, character: str = "x") -> dict[str, Any]:
    """Return the detail of an event, with `size` characters of text."""
    return {"number": number, "text": character * size}


def entries(count: int, size: int = 0, character: str = "x") -> list[event_bus.Entry]:
    """Return `count` entries, each with `size` characters of text."""
    return [event_bus.entry("source", "type", detail(number, size, character)) for number in range(count)]


def calls(aws_wire: AwsWire) -> list[list[Any]]:
    """Return the numbers of the entries in each PutEvents call."""
    return [
        [json.loads(entry["Detail"])["number"] for entry in parameters["Entries"]]
        for called, parameters in aws_wire.calls
        if called == "PutEvents"
    ]


def published() -> float:
    """Return how many events were counted, and reset the metric."""
    counted: list[float] = telemetry.metrics.metric_set.pop("EventsPublished", {}).get("Value", [])
    return sum(counted)


@pytest.fixture(autouse=True)
def uncounted() -> None:
    """Clear the metrics of earlier tests."""
    telemetry.metrics.metric_set.clear()


def test_an_entry_is_on_the_stacks_bus() -> None:
    """An entry names the stack's bus, its detail is JSON text, and its size is counted in bytes."""
    entry = event_bus.entry("source", "type", {"text": "Grüße 👋", "none": None})

    assert {
        "EventBusName": "bus",
        "Source": "source",
        "DetailType": "type",
        "Detail": '{"text":"Grüße 👋","none":null}',
    } == entry.parameters
    assert len('sourcetype{"text":"Grüße 👋","none":null}'.encode()) == entry.size


def test_a_missing_setting_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing EVENT_BUS_NAME raises InternalError, whose message names the variable."""
    monkeypatch.delenv("EVENT_BUS_NAME")

    with pytest.raises(InternalError, match="EVENT_BUS_NAME"):
        event_bus.entry("source", "type", {})


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (10, [10]), (11, [10, 1]), (20, [10, 10]), (25, [10, 10, 5])]
)
def test_a_call_has_ten_entries_at_most(aws_wire: AwsWire, count: int, sizes: list[int]) -> None:
    """Entries are put in order, each once, with at most ten in a call."""
    event_bus.put(entries(count))

    assert sizes == [len(call) for call in calls(aws_wire)]
    assert list(range(count)) == [number for call in calls(aws_wire) for number in call]
    assert count == published()


@pytest.mark.parametrize("character", ["x", "é", "👍"])
def test_a_call_is_no_larger_than_the_bus_takes(aws_wire: AwsWire, character: str) -> None:
    """The entries of a call have at most 256 KiB together, counted in bytes and not in characters."""
    size = MAX_BYTES // 3 // len(character.encode())
    event_bus.put(entries(5, size, character))

    assert [[0, 1], [2, 3], [4]] == calls(aws_wire)


@pytest.mark.parametrize(("more", "sizes"), [(0, [2]), (1, [1, 1])])
def test_a_call_is_as_large_as_the_bus_takes(aws_wire: AwsWire, more: int, sizes: list[int]) -> None:
    """Two entries of exactly 256 KiB together go in one call; one byte more needs a second call."""
    size = MAX_BYTES // 2 - entries(1)[0].size
    event_bus.put([*entries(1, size), event_bus.entry("s" * (len("source") + more), "type", detail(1, size))])

    assert sizes == [len(call) for call in calls(aws_wire)]


def test_an_entry_that_is_too_large_goes_alone(aws_wire: AwsWire) -> None:
    """An entry that is too large goes in its own call, for the bus to decide; the others are put anyway."""
    small, large = entries(1)[0], entries(1, MAX_BYTES)[0]
    event_bus.put([small, large, small])

    assert [1, 1, 1] == [len(call) for call in calls(aws_wire)]


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("refused", [1, 2, 3])
def test_entries_that_are_refused_are_put_again(aws_wire: AwsWire, refused: int) -> None:
    """Only the entries that the bus refused are retried."""
    aws_wire.refused = [refused]
    event_bus.put(entries(3))

    assert [[0, 1, 2], [0, 1, 2][3 - refused :]] == calls(aws_wire)
    assert 3 == published()


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("refused", [1, 2, 3])
def test_an_entry_that_is_refused_twice_is_an_error(aws_wire: AwsWire, refused: int) -> None:
    """An entry that is refused twice raises an error; the other entries are published and counted."""
    aws_wire.refused = [refused, refused]

    with pytest.raises(
        ServiceUnavailableError, match=rf"^the event bus did not take {refused} entries .InternalFailure"
    ):
        event_bus.put(entries(3))
    assert 3 - refused == published()


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize(
    ("failure", "end"),
    [
        ((400, "AccessDeniedException"), PutResult.REFUSED),
        ((400, "ThrottlingException"), PutResult.REFUSED),
        ((500, "InternalException"), PutResult.LOST),
        (LOST, PutResult.LOST),
    ],
)
def test_an_attempt_tells_what_became_of_each_entry(
    aws_wire: AwsWire, failure: tuple[int, str], end: PutResult
) -> None:
    """An attempt returns a result for each entry, and retries none; a failed request does not stop the next one.

    An entry whose request was not answered may be on the bus, so its result is `LOST`.
    """
    aws_wire.failures["PutEvents"] = [failure]
    outcomes = event_bus.attempt(entries(15))

    assert [end] * 10 + [PutResult.TAKEN] * 5 == [outcome.end for outcome in outcomes]
    assert [10, 5] == [len(call) for call in calls(aws_wire)]
    assert 5 == published()


def test_an_entry_that_the_bus_refuses_is_known(aws_wire: AwsWire) -> None:
    """The results are in the order of the entries, and a refused entry's result has the bus's error code."""
    aws_wire.refused = [1]

    assert [
        event_bus.EntryResult(PutResult.TAKEN),
        event_bus.EntryResult(PutResult.REFUSED, "InternalFailure"),
    ] == event_bus.attempt(entries(2))


def test_a_bus_that_is_not_reached_took_nothing(aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no connection to the bus is made, the result is `REFUSED`: the event is certainly not on the bus."""
    with closed_port() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")

        assert [PutResult.REFUSED] == [outcome.end for outcome in event_bus.attempt(entries(1))]
    assert [] == calls(aws_wire)


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        ({"FailedEntryCount": 0, "Entries": [{"EventId": "1"}]}, [PutResult.TAKEN, PutResult.LOST]),
        ({"FailedEntryCount": 0, "Entries": []}, [PutResult.LOST, PutResult.LOST]),
        ({}, [PutResult.LOST, PutResult.LOST]),
        ({"Entries": [{}, {"ErrorCode": "InternalFailure"}]}, [PutResult.REFUSED, PutResult.REFUSED]),
    ],
)
def test_an_answer_that_is_not_about_all_says_nothing_of_the_others(
    aws_wire: AwsWire, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], ends: list[PutResult]
) -> None:
    """Entries without a result in the bus's answer are `LOST`, because they may be on the bus."""
    monkeypatch.setattr(aws_wire, "answer", lambda *_: (200, answer))

    assert ends == [outcome.end for outcome in event_bus.attempt(entries(2))]


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize(
    "failures",
    [[(400, "ResourceNotFoundException")] * 2, [(500, "InternalException")] * 2, [LOST] * 2],
    ids=["no bus", "broken", "lost"],
)
def test_a_bus_that_does_not_answer_is_an_error(aws_wire: AwsWire, failures: list[tuple[int, str]]) -> None:
    """A bus that fails twice raises an error, and no event is counted as published."""
    aws_wire.failures["PutEvents"] = [*failures]

    with pytest.raises(ServiceUnavailableError, match=r"^the event bus did not take 1 entries"):
        event_bus.put(entries(1))
    assert (0, 2) == (published(), len(calls(aws_wire)))


@pytest.mark.parametrize("failure", [(500, "InternalException"), (400, "ThrottlingException"), LOST])
def test_a_call_is_tried_twice(aws_wire: AwsWire, delays: list[float], failure: tuple[int, str]) -> None:
    """A failed call is retried once after a pause: a duplicate event is better than a lost one."""
    aws_wire.failures["PutEvents"] = [failure]
    event_bus.put(entries(1))

    assert [[0], [0]] == calls(aws_wire)
    assert (1, [0.3]) == (published(), delays)
