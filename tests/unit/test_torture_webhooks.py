"""The webhooks of `make torture`, and the verdict on them."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import webhook

from tests.aws_wire import AwsWire
from tests.faults import aws
from tests.mutants import Target, event_2
from tests.torture import webhooks
from tests.torture.journal import BUS, FAULTS, HOOK_ANSWERS, HOOKS, Journal
from tests.torture.published import Published
from tests.torture.schedule import FULL, ONE_IN, SHORT, Size
from tests.torture.webhooks import CRASHES, KINDS, STATUSES, Hook, Part, Unit, control, names, plan
from tests.unit.conftest import ACCOUNT_SID, AUTH_TOKEN

TARGET = Target("https://hook.example", ACCOUNT_SID, AUTH_TOKEN)
NAME = "hook-7-00001"


def units(size: Size) -> list[Unit]:
    """Return all that is delivered."""
    return [unit for stage in plan(7, size) for unit in stage]


def hooks(size: Size) -> dict[str, Hook]:
    """Return each webhook once, by its key."""
    return {hook.key: hook for unit in units(size) for hook in unit.hooks}


def test_same_seed() -> None:
    """A seed gives one schedule, and another seed another."""
    assert plan(7, SHORT) == plan(7, SHORT)
    assert plan(7, SHORT) != plan(8, SHORT)


def test_size() -> None:
    """There are thousands of webhooks of every kind; one in five comes again, half of these at the same moment."""
    ordinary = [unit for unit in units(FULL) if unit.hooks[0].part is Part.ORDINARY]
    twice = [unit.at_once for unit in ordinary if len(unit.hooks) == 2]

    assert 4000 == len(ordinary)
    assert {True: 400, False: 400} == dict(Counter(twice))
    assert {*KINDS} == {unit.hooks[0].kind for unit in ordinary}
    assert all(len({hook.key for hook in unit.hooks}) == 1 for unit in ordinary)
    assert all(plan(7, SHORT))


@pytest.mark.parametrize("size", [FULL, SHORT], ids=["full", "short"])
def test_orders(size: Size) -> None:
    """The four statuses of a message come in each order that there is."""
    orders = Counter(
        tuple(hook.status for hook in unit.hooks) for unit in units(size) if unit.hooks[0].part is Part.ORDER
    )

    assert dict.fromkeys(permutations(STATUSES), size.orders) == dict(orders)


def test_faults() -> None:
    """A third is hit, by more than twenty kinds, before and after, and all are known; so is each crash point."""
    every = hooks(FULL).values()
    calls = {name for hook in every for marker in hook.markers for name in marker.removeprefix("aws=").split("+")}

    assert -(-FULL.webhooks // ONE_IN) == sum(bool(hook.markers) for hook in every if hook.part is Part.ORDINARY)
    assert {name.rsplit(".", 1)[1] for name in calls} <= aws.KINDS.keys()
    assert {"PutItem", "PutEvents", "SendMessage"} == {name.split(".")[0] for name in calls}
    assert len({(name.split(".")[0], name.rsplit(".", 1)[1]) for name in calls}) > 20
    assert dict.fromkeys(CRASHES, FULL.webhook_crashes) == dict(Counter(hook.crash for hook in every if hook.crash))


def test_what_the_connector_makes_of_them(aws_wire: AwsWire, context: Any) -> None:
    """It takes each kind; the names of its events stand in them, and the table calls them what the proxy looks for."""
    for kind in dict.fromkeys(KINDS):
        hook = next(hook for hook in hooks(SHORT).values() if hook.kind == kind and hook.markers)
        aws_wire.calls.clear()

        assert 200 == webhook.handler(event_2(hook.webhook.request(TARGET)), context)["statusCode"]
        details = [json.loads(entry["Detail"]) for entry in aws_wire.entries]
        assert hook.events == [name for detail in details for name in names(json.dumps(detail["parameters"]))]
        expected = hook.deduplication_id(TARGET)
        assert expected == details[0]["deduplication_id"] if expected else hook.markers[0] in json.dumps(details[0])


def test_control() -> None:
    """The naive receiver gets the same, under other names, and nothing kills it."""
    naive = [unit.hooks[0] for unit in control(units(FULL), 500)]

    assert 500 == len({hook.key for hook in naive})
    assert all(name.startswith(webhooks.NAIVE) for hook in naive for name in hook.events)
    assert not [hook for hook in naive if "kill" in hook.key]
    assert names(naive[0].key) == names(json.dumps(naive[0].parameters))[:1] or naive[0].kind == "Event Streams"


class Records:
    """The files of a run whose webhooks were all published."""

    def __init__(self, folder: Path) -> None:
        """Write them."""
        self.folder = folder
        self.journal = Journal(folder)
        self.delivered(NAME)
        self.happened(NAME)
        for number, point in enumerate(CRASHES, start=100):
            self.delivered(f"hook-7-{number:05}", crash=point, status=502)
            self.injected(f"hook-7-{number:05}", "PutEvents.kill_after")
            self.delivered(f"hook-7-{number:05}", crash=point)
            self.happened(f"hook-7-{number:05}")
            self.happened(f"hook-7-{number:05}", mark="uncertain")
        self.happened("hook-7-00100", mark="unavailable")
        for place, order in enumerate(permutations(STATUSES)):
            for number, status in enumerate(order, start=500 + 4 * place):
                self.delivered(f"hook-7-{number:05}", part="order", about=place, told=status)
                self.happened(f"hook-7-{number:05}", message=_message(place, status))
        for number in range(10):
            self.delivered(f"{webhooks.NAIVE}-7-{number:05}")
            if number:
                self.happened(f"{webhooks.NAIVE}-7-{number:05}", source=webhooks.NAIVE)

    def delivered(
        self,
        name: str,
        *,
        status: int | None = 200,
        part: str = "ordinary",
        crash: str | None = None,
        about: int = 0,
        told: str = "",
    ) -> None:
        """Add a delivery with its answer."""
        hook = f"{name};aws=PutEvents.1.kill_after" if crash else name
        events, began = [name], 1.0
        self.journal.write(
            HOOKS, hook=hook, kind="status", part=part, about=about, status=told, crash=crash, events=events
        )
        self.journal.write(HOOK_ANSWERS, hook=hook, began=began, status=status)

    def injected(self, name: str | None, *kinds: str) -> None:
        """Add faults."""
        for kind in kinds:
            self.journal.write(FAULTS, kind=kind, key=name)

    def happened(self, name: str, *, mark: str | None = None, source: str = "twilio", **detail: Any) -> None:
        """Add an event."""
        marks = {"deduplication": mark} if mark else {}
        detail |= {"deduplication_id": name, "parameters": {"Body": name}, **marks}
        self.journal.write(BUS, event={"source": source, "detail-type": "Message Received", "detail": detail})

    def published(self) -> Published:
        """Return what the verdict reads."""
        return Published(self.folder)

    def reds(self) -> list[str]:
        """Return what the verdict finds."""
        return [row.name for row in self.published().violations() if row.keys]


def _message(place: int, status: str, **other: Any) -> dict[str, Any]:
    about = {"sid": f"SM{place:032}", "status": status, "status_rank": STATUSES.index(status)}
    return about | {"terminal": status == STATUSES[-1], **other}


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """Give the files of a run in which all went well."""
    result = Records(tmp_path)
    yield result
    result.journal.close()


def test_green(records: Records) -> None:
    """A run in which all went well has no violation, and proves something."""
    assert ([], []) == (records.reds(), records.published().void())


@pytest.mark.parametrize(
    ("name", "plant"),
    {
        "event of a webhook, lost": lambda run: run.delivered("hook-7-00002"),
        "event twice, and not marked": lambda run: run.happened(NAME),
        "not accepted, and nothing failed": lambda run: run.delivered(NAME, status=503),
        "statuses that end wrongly": lambda run: (
            run.delivered("hook-7-00700", part="order")
            or run.happened("hook-7-00700", message=_message(0, "sent", status_rank=9))
        ),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_violations(records: Records, name: str, plant: Callable[[Records], object]) -> None:
    """Each violation turns the verdict red, by its own name."""
    plant(records)

    assert [name] == records.reds()


def test_an_event_of_nobody(records: Records) -> None:
    """What nobody delivered has no place on the bus."""
    records.happened("hook-8-00001")

    assert ["hook-8-00001"] == records.published().strangers


def test_marked_events_may_come_again(records: Records) -> None:
    """An event that says that it may not be the only one is no violation, before or after the other."""
    for mark in ("unavailable", "uncertain"):
        records.happened(NAME, mark=mark)

    assert [] == records.reds()


def test_an_event_that_only_the_emulator_causes_is_there_once(records: Records) -> None:
    """Twilio's emulator delivers as well, with names of its own."""
    records.happened("SM1:sent")
    assert [] == records.reds()

    records.happened("SM1:sent")
    assert ["event twice, and not marked"] == records.reds()


def test_what_was_never_accepted_is_not_lost(records: Records) -> None:
    """Twilio was told that it did not arrive."""
    records.delivered("hook-7-00002", status=503)
    records.injected("hook-7-00002", "PutEvents.throttle", "SendMessage.fail")

    assert [] == records.reds()


@pytest.mark.parametrize(
    ("status", "kinds", "is_explained"),
    [
        (503, ["PutEvents.fail"], False),
        (503, ["SendMessage.fail"], False),
        (503, ["PutEvents.fail", "SendMessage.throttle"], True),
        (503, ["PutItem.fail"], False),
        (503, ["PutItem.kill_after"], False),
        (502, ["PutItem.kill_after"], True),
        (None, ["PutEvents.kill_before"], True),
        (None, ["PutEvents.hang_after"], False),
        (500, ["PutEvents.fail", "SendMessage.throttle"], False),
        (403, ["PutItem.kill_after"], False),
    ],
)
def test_what_explains_a_failure(
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    status: int | None,
    kinds: list[str],
    is_explained: bool,  # noqa: FBT001 it is what is expected
) -> None:
    """Only a bus and a buffer that were both away, or a killed process, let a delivery fail."""
    monkeypatch.setattr("time.time", lambda: 1.5)
    records.delivered(NAME, status=status)
    records.injected(NAME, *kinds)

    assert is_explained == (records.reds() == [])


@pytest.mark.parametrize(("at", "is_explained"), [(1.5, True), (9.0, False)])
def test_a_token_that_cannot_be_read_explains_what_was_under_way(
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    at: float,
    is_explained: bool,  # noqa: FBT001 it is what is expected
) -> None:
    """Reading a token has no key: only the time tells whose it was."""
    monkeypatch.setattr("time.time", lambda: 1.5)
    records.delivered(NAME, status=503)
    monkeypatch.setattr("time.time", lambda: at)
    records.injected(None, "GetSecretValue.throttle")

    assert is_explained == (records.reds() == [])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (HOOKS, "no webhook was delivered"),
        (FAULTS, "faults reached 0% of the webhooks that name one"),
        (FAULTS, "0 of 1 processes were killed before the event is claimed"),
        (BUS, "no event was marked"),
    ],
)
def test_void_without(records: Records, name: str, reason: str) -> None:
    """Webhooks prove nothing where none was delivered, or no fault hit."""
    (records.folder / f"{name}.jsonl").write_text("")
    if name == HOOKS:
        (records.folder / f"{HOOK_ANSWERS}.jsonl").write_text("")
        (records.folder / f"{FAULTS}.jsonl").write_text("")
        (records.folder / f"{BUS}.jsonl").write_text("")

    assert reason in records.published().void()


def test_void_where_the_naive_receiver_loses_nothing(records: Records) -> None:
    """The faults must defeat somebody."""
    records.happened(f"{webhooks.NAIVE}-7-00000", source=webhooks.NAIVE)

    assert ["the naive receiver lost 0 per 1,000: faults do not bite"] == records.published().void()


def test_void_where_marks_have_no_cause(records: Records) -> None:
    """What nobody injected must hardly hit: else the record is not that of the run."""
    for number in range(500, 596):
        records.happened(f"hook-7-{number:05}", mark="uncertain", message=_message((number - 500) // 4, "queued"))

    assert ["96 events are marked, and no fault is on record that did it"] == records.published().void()


def test_void_where_many_are_given_up(records: Records) -> None:
    """What Twilio gives up must be rare."""
    for number in range(900, 910):
        records.delivered(f"hook-7-{number:05}", status=503)

    assert "10 webhooks were given up" in records.published().void()
