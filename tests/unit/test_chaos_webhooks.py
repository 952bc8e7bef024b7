"""The webhooks of `make chaos`, and the verdict on them."""

import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import webhook

from tests.aws_wire import AwsWire
from tests.chaos import webhooks
from tests.chaos.journal import BUS, FAULTS, FORGED, HOOK_ANSWERS, HOOKS, LEFT_ALONE, Journal
from tests.chaos.published import Published
from tests.chaos.schedule import FULL, ONE_IN, SHORT, Size
from tests.chaos.webhooks import CRASHES, KINDS, STATUSES, Hook, Part, Stage, Unit, control, digest, names, plan
from tests.faults import aws
from tests.mutants import Target, event_2, keeps_text
from tests.unit.conftest import ACCOUNT_SID, AUTH_TOKEN

TARGET = Target("https://hook.example", ACCOUNT_SID, AUTH_TOKEN)
NAME = "hook-7-00001"


def units(size: Size) -> list[Unit]:
    """Return all units that are delivered."""
    return [unit for stage in plan(7, size).values() for unit in stage]


def hooks(size: Size) -> dict[str, Hook]:
    """Return each webhook once, by its key."""
    return {hook.key: hook for unit in units(size) for hook in unit.hooks}


def test_same_seed() -> None:
    """The same seed gives the same schedule, and another seed gives another one."""
    assert plan(7, SHORT) == plan(7, SHORT)
    assert plan(7, SHORT) != plan(8, SHORT)


def test_size() -> None:
    """There are 1,500 ordinary webhooks, of every kind.

    One in five is delivered twice, half of these at the same moment.
    """
    ordinary = [unit for unit in units(FULL) if unit.hooks[0].part is Part.ORDINARY]
    twice = [unit.at_once for unit in ordinary if len(unit.hooks) == 2]

    assert 1500 == len(ordinary)
    assert {True: 150, False: 150} == dict(Counter(twice))
    assert {*KINDS} == {unit.hooks[0].kind for unit in ordinary}
    assert all(len({hook.key for hook in unit.hooks}) == 1 for unit in ordinary)
    assert all(plan(7, SHORT).values())


@pytest.mark.parametrize("size", [FULL, SHORT], ids=["full", "short"])
def test_orders(size: Size) -> None:
    """The four statuses of a message arrive in every possible order."""
    orders = Counter(
        tuple(hook.status for hook in unit.hooks) for unit in units(size) if unit.hooks[0].part is Part.ORDER
    )

    assert dict.fromkeys(permutations(STATUSES), size.orders) == dict(orders)


@pytest.mark.parametrize(("size", "elsewhere"), [(FULL, True), (SHORT, False)], ids=["full", "short"])
def test_crashes_come_while_nothing_is_away(size: Size, *, elsewhere: bool) -> None:
    """Each kind of crash happens once before the outages and once after them.

    Otherwise a short run might have no crash, and prove nothing.
    """
    stages = {
        stage: Counter(hook.crash for unit in units for hook in unit.hooks if hook.crash)
        for stage, units in plan(7, size).items()
    }

    assert {*CRASHES} == stages[Stage.BEFORE].keys() == stages[Stage.AFTER].keys()
    assert elsewhere == bool(stages[Stage.BUS_AWAY] + stages[Stage.TABLE_AWAY])
    assert dict.fromkeys(CRASHES, size.webhook_crashes) == sum(stages.values(), Counter[str | None]())


def test_faults() -> None:
    """A third of the ordinary webhooks has a fault, and each crash point has its webhooks.

    There are more than 20 kinds of faults, and the proxy knows all of them.
    """
    every = hooks(FULL).values()
    calls = {name for hook in every for marker in hook.markers for name in marker.removeprefix("aws=").split("+")}

    assert -(-FULL.webhooks // ONE_IN) == sum(bool(hook.markers) for hook in every if hook.part is Part.ORDINARY)
    assert {name.rsplit(".", 1)[1] for name in calls} <= aws.KINDS.keys()
    assert {"Write", "PutEvents", "SendMessage"} == {name.split(".")[0] for name in calls}
    assert len({(name.split(".")[0], name.rsplit(".", 1)[1]) for name in calls}) > 20
    assert dict.fromkeys(CRASHES, FULL.webhook_crashes) == dict(Counter(hook.crash for hook in every if hook.crash))


def test_what_the_connector_makes_of_them(aws_wire: AwsWire, context: Any) -> None:
    """The connector accepts each kind of webhook, and its events contain the expected names.

    The ids in the table are those that the proxy looks for.
    """
    for kind in dict.fromkeys(KINDS):
        hook = next(hook for hook in hooks(SHORT).values() if hook.kind == kind and hook.markers)
        aws_wire.calls.clear()

        genuine = event_2(hook.webhook.request(TARGET))
        genuine["headers"]["i-twilio-idempotency-token"] = hook.token
        assert 200 == webhook.handler(genuine, context)["statusCode"]
        details = [json.loads(entry["Detail"]) for entry in aws_wire.entries]
        assert hook.events == [name for detail in details for name in names(json.dumps(detail["parameters"]))]
        text, *expected = hook.ids(TARGET)
        assert text in aws_wire.deliveries
        assert [details[0]["deduplication_id"]] == expected or hook.markers[0] in json.dumps(details[0])
        assert hook.says(TARGET) == {
            names(json.dumps(detail["parameters"]))[0]: digest(detail["parameters"]) for detail in details
        }


def test_other_readings(aws_wire: AwsWire, context: Any) -> None:
    """Most forms have another reading whose signature is valid.

    The connector accepts the genuine webhook, and refuses the other reading after it.
    """
    forged = [unit.hooks[0] for unit in units(SHORT) if unit.is_forged]
    readings = [(hook, reading) for hook in forged if (reading := hook.another_reading(TARGET))]
    assert len(readings) > len(forged) / 2 > 20

    for hook, reading in readings[:20]:
        for request, status in ((hook.webhook.request(TARGET), 200), (reading, 403)):
            assert keeps_text(request, TARGET)
            assert status == webhook.handler(event_2(request), context)["statusCode"]
    assert aws_wire.entries


def test_control() -> None:
    """The naive receiver gets the same webhooks under other names, and no fault kills it."""
    naive = [unit.hooks[0] for unit in control(units(FULL), 500)]

    assert 500 == len({hook.key for hook in naive})
    assert all(name.startswith(webhooks.NAIVE) for hook in naive for name in hook.events)
    assert not [hook for hook in naive if "kill" in hook.key]
    assert names(naive[0].key) == names(json.dumps(naive[0].parameters))[:1] or naive[0].kind == "Event Streams"


class Records:
    """The files of a run whose webhooks were all published."""

    def __init__(self, folder: Path, seed: int = 7) -> None:
        """Write the files."""
        self.folder = folder
        self._seed = seed
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
        self.forged(NAME)
        self.write(LEFT_ALONE, key="silent-7-00000", away=[200, "unknown"], back=[200, "sent"])
        for number in range(10):
            self.delivered(f"{webhooks.NAIVE}-7-{number:05}")
            if number:
                self.happened(f"{webhooks.NAIVE}-7-{number:05}", source=webhooks.NAIVE)

    def write(self, name: str, **line: Any) -> None:
        """Add a line to a file. In its text, this run's seed replaces seed 7."""
        text = json.dumps(line).replace("-7-", f"-{self._seed}-")
        self.journal.write(name, **json.loads(text))

    def delivered(
        self,
        name: str,
        *,
        status: int | None = 200,
        part: str = "ordinary",
        crash: str | None = None,
        about: int = 0,
        told: str = "",
        stage: Stage = Stage.BEFORE,
    ) -> None:
        """Add a delivery with its answer."""
        hook = f"{name};aws=PutEvents.1.kill_after" if crash else name
        events, began = [name], 1.0
        line: dict[str, Any] = {"kind": "status", "part": part, "about": about, "status": told, "crash": crash}
        line |= {"stage": stage, "says": {name: digest({"Body": name.replace("-7-", f"-{self._seed}-")})}}
        self.write(HOOKS, hook=hook, events=events, **line)
        self.write(HOOK_ANSWERS, hook=hook, began=began, status=status)

    def forged(self, name: str, status: int = 403) -> None:
        """Add a delivery of another reading of a webhook's signed text."""
        self.write(FORGED, hook=name, status=status)

    def injected(self, name: str | None, *kinds: str) -> None:
        """Add faults."""
        for kind in kinds:
            self.write(FAULTS, kind=kind, key=name)

    def happened(self, name: str, *, mark: str | None = None, source: str = "twilio", **detail: Any) -> None:
        """Add an event."""
        marks = {"deduplication": mark} if mark else {}
        detail = {"deduplication_id": name, "parameters": {"Body": name}, **marks, **detail}
        event_id = str(uuid.uuid4())
        self.write(BUS, event={"id": event_id, "source": source, "detail-type": "Message Received", "detail": detail})

    def published(self) -> Published:
        """Return the webhooks as the verdict reads them."""
        return Published(self.folder)

    def reds(self) -> list[str]:
        """Return the names of the violations that the verdict finds."""
        return [row.name for row in self.published().violations() if row.keys]


_NAMES = "AccountSid MessageSid SmsSid SmsStatus MessageStatus To From Body NumMedia NumSegments ApiVersion"
_EMULATORS = dict.fromkeys(re.findall(r"\w+", _NAMES), "")


def _message(place: int, status: str, **other: Any) -> dict[str, Any]:
    about = {"sid": f"SM{place:032}", "status": status, "status_rank": STATUSES.index(status)}
    return about | {"terminal": status == STATUSES[-1], **other}


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """Return the files of a run in which everything went well."""
    result = Records(tmp_path)
    yield result
    result.journal.close()


def test_green(records: Records) -> None:
    """A run in which everything went well has no violation, and is not void."""
    assert ([], []) == (records.reds(), records.published().void())


@pytest.mark.parametrize(
    ("name", "plant"),
    {
        "genuine webhook refused": lambda run: run.delivered(NAME, status=403),
        "a reading that Twilio did not send": lambda run: run.happened(
            NAME, mark="uncertain", parameters={"BodyFrom": NAME}
        ),
        "another reading, accepted": lambda run: run.forged(NAME, status=200),
        "DynamoDB away, and not marked": lambda run: (
            run.delivered("hook-7-00002", stage=Stage.TABLE_AWAY) or run.happened("hook-7-00002")
        ),
        "DynamoDB away, ledger written": lambda run: run.write(
            LEFT_ALONE, key="silent-7-00001", away=[200, "sent"], back=[200, "sent"]
        ),
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
    """Each violation fails the verdict, under its own name."""
    plant(records)

    assert [name] == records.reds()


def test_an_event_of_nobody(records: Records) -> None:
    """An event on the bus counts as a stranger's if its webhook was never delivered."""
    records.happened("hook-8-00001")

    assert ["hook-8-00001"] == records.published().strangers


def test_marked_events_may_come_again(records: Records) -> None:
    """A second event is not a violation if it is marked as a possible duplicate."""
    for mark in ("unavailable", "uncertain"):
        records.happened(NAME, mark=mark)

    assert [] == records.reds()


def test_an_event_that_only_the_emulator_causes_is_there_once(records: Records) -> None:
    """An event from Twilio's emulator, whose webhooks have other names, must not be published twice.

    A mark as a possible duplicate would allow a second event.
    """
    records.happened("SM1:sent", parameters=_EMULATORS)
    assert [] == records.reds()

    records.happened("SM1:sent", parameters=_EMULATORS)
    assert ["event twice, and not marked"] == records.reds()


def test_an_event_of_the_emulator_in_other_words(records: Records) -> None:
    """An event without a webhook's name must have the parameter names of Twilio's emulator.

    Other names mean that somebody split the signed text differently.
    """
    records.happened("SM1:sent", parameters=_EMULATORS | {"BodyChaos": "key"})

    assert ["a reading that Twilio did not send"] == records.reds()


def test_another_reading_that_nothing_stood_against(records: Records) -> None:
    """Another reading may be accepted if the connector has no memory of the genuine webhook.

    DynamoDB was unavailable then, or the genuine webhook was never accepted.
    """
    records.delivered("hook-7-00002")
    records.happened("hook-7-00002", mark="unavailable")
    records.forged("hook-7-00002", status=200)
    records.delivered("hook-7-00003", status=503)
    records.injected("hook-7-00003", "PutEvents.throttle", "SendMessage.fail")
    records.forged("hook-7-00003", status=200)

    assert [] == records.reds()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (FORGED, "nobody posted another reading"),
        (LEFT_ALONE, "no callback without DynamoDB could have told of a key"),
    ],
)
def test_void_where_nobody_tried(records: Records, name: str, reason: str) -> None:
    """A run is void if nobody forged a webhook, or if no callback came while DynamoDB was unavailable."""
    (records.folder / f"{name}.jsonl").write_text("")

    assert [reason] == records.published().void()


def test_what_was_never_accepted_is_not_lost(records: Records) -> None:
    """A webhook that was never accepted is not lost, because Twilio's delivery got an error."""
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
    is_explained: bool,  # noqa: FBT001 the expected result
) -> None:
    """A delivery may fail only if the bus and the buffer both failed, or if its process was killed."""
    monkeypatch.setattr("time.time", lambda: 1.5)
    records.delivered(NAME, status=status)
    records.injected(NAME, *kinds)

    assert is_explained == (records.reds() == [])


@pytest.mark.parametrize(
    ("kind", "seconds", "is_explained"),
    [("PutEvents.throttle", 7, True), ("PutEvents.throttle", 5, False), ("PutItem.throttle", 7, False)],
)
def test_a_machine_that_is_too_slow_for_the_buffer(
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    seconds: int,
    is_explained: bool,  # noqa: FBT001 the expected result
) -> None:
    """A delivery may also fail if the bus failed and the buffer did not answer in time.

    The machine is too slow then, and the buffer needs no fault of its own.
    """
    monkeypatch.setattr("time.time", lambda: 1.0 + seconds)
    records.delivered(NAME, status=503)
    records.injected(NAME, kind)

    assert is_explained == (records.reds() == [])
    assert int(seconds > 6) == records.published().slow()


@pytest.mark.parametrize(("at", "is_explained"), [(1.5, True), (9.0, False)])
def test_a_token_that_cannot_be_read_explains_what_was_under_way(
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    at: float,
    is_explained: bool,  # noqa: FBT001 the expected result
) -> None:
    """A token that could not be read explains only the failed deliveries of that time.

    Reading a token has no key, so that only the time shows which delivery it was for.
    """
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
    """A run is void if no webhook was delivered, if no fault hit one, or if no event was marked."""
    (records.folder / f"{name}.jsonl").write_text("")
    if name == HOOKS:
        for other in (HOOK_ANSWERS, FORGED, FAULTS, BUS):
            (records.folder / f"{other}.jsonl").write_text("")

    assert reason in records.published().void()


def test_void_where_the_naive_receiver_loses_nothing(records: Records) -> None:
    """A run is void if even the naive receiver loses no event, because the faults were then too weak."""
    records.happened(f"{webhooks.NAIVE}-7-00000", source=webhooks.NAIVE)

    assert ["the naive receiver lost 0 per 1,000: faults do not bite"] == records.published().void()


def test_void_where_marks_have_no_cause(records: Records) -> None:
    """A run is void if many events are marked without a fault on record.

    The record of the faults is then not that of the run.
    """
    for number in range(500, 596):
        records.happened(f"hook-7-{number:05}", mark="uncertain", message=_message((number - 500) // 4, "queued"))

    assert ["96 events are marked, and no fault is on record that did it"] == records.published().void()


@pytest.mark.parametrize(("mark", "unexplained"), [("unavailable", 0), ("uncertain", 60)])
def test_what_waited_for_the_bus_may_be_published_without_the_table(
    records: Records, mark: str, unexplained: int
) -> None:
    """An event that was buffered in the outage of the bus may be published in that of the table, which follows.

    Only the mark `unavailable` is explained by that.
    """
    for number in range(600, 660):
        records.delivered(f"hook-7-{number:05}", stage=Stage.BUS_AWAY)
        records.happened(f"hook-7-{number:05}", mark=mark)

    assert unexplained == len(records.published().unexplained_marks())


def test_void_where_many_are_given_up(records: Records) -> None:
    """A run is void if Twilio gives up many webhooks, because that must be rare."""
    for number in range(900, 910):
        records.delivered(f"hook-7-{number:05}", status=503)

    assert "10 webhooks were given up" in records.published().void()
