"""The schedule of `make chaos`: the same seed gives the same schedule, with the promised number of faults."""

import re
from collections import Counter

import pytest

from tests.chaos.schedule import (
    BROKEN,
    CRASHES,
    FULL,
    HANGING,
    ONE_IN,
    QUEUED,
    SHARES,
    SHORT,
    Callback,
    Channel,
    Part,
    Size,
    owner,
    plan,
)
from tests.faults import aws, faults

_FORM = {"validity_period": "ValidityPeriod", "status_callback": "StatusCallback"}
KEY = re.compile(r"[!-~]{1,128}")


@pytest.fixture(params=[FULL, SHORT], ids=["full", "short"])
def size(request: pytest.FixtureRequest) -> Size:
    """Return the size of a run."""
    result: Size = request.param
    return result


def test_same_seed() -> None:
    """The same seed gives the same schedule, and another seed gives another one."""
    assert plan(7, SHORT) == plan(7, SHORT)
    assert [send.markers for send in plan(7, SHORT)] != [send.markers for send in plan(8, SHORT)]


def test_keys(size: Size) -> None:
    """Each key is valid, unique and contains its markers.

    `owner` finds the key from the text and the fields of its message.
    """
    sends = plan(7, size)

    assert len(sends) == len({send.key for send in sends})
    for send in sends:
        assert KEY.fullmatch(send.key)
        assert send.words or all(marker in send.key.split(";") for marker in send.markers)
        assert send.key == owner(
            {"Body": [send.text]} | {_FORM[name]: [str(value)] for name, value in send.fields.items()}
        )


def test_channels() -> None:
    """Each channel has its share of the ordinary sends."""
    counts = Counter(send.channel for send in plan(7, FULL) if send.part is Part.ORDINARY)

    assert {channel: round(share * FULL.sends) for channel, share in SHARES.items()} == dict(counts)
    assert set(Channel) == set(counts)


def test_share_of_faults() -> None:
    """In every channel, a third of the ordinary sends has a fault."""
    for channel in Channel:
        sends = [send for send in plan(7, FULL) if send.part is Part.ORDINARY and send.channel is channel]
        hit = sum(any(marker != "callback=none" for marker in send.markers) for send in sends)
        assert hit == -(-len(sends) // ONE_IN)


def test_kinds_of_faults() -> None:
    """Twilio and AWS have more than 20 faults each, and all are known to the relay and the proxy."""
    markers = {marker for send in plan(7, FULL) for marker in send.markers}
    twilio = {name for marker in markers if marker.startswith("fault=") for name in marker[6:].split(",")}
    calls = {name for marker in markers if marker.startswith("aws=") for name in marker[4:].split("+")}

    assert len(twilio) > 20
    assert len(calls) > 20
    assert twilio <= faults.NAMED.keys()
    assert {name.rsplit(".", 1)[1] for name in calls} <= aws.KINDS.keys()
    assert {"Write", "PutEvents", "SendMessage"} == {name.split(".")[0] for name in calls}


def test_crashes(size: Size) -> None:
    """Each crash point has its keys. Crashes at an event are only in channels whose sends publish events."""
    crashes = [send for send in plan(7, size) if send.part is Part.CRASH]

    assert dict.fromkeys(CRASHES, size.crashes) == dict(Counter(send.crash for send in crashes))
    assert len(CRASHES) >= 6
    assert not [send for send in crashes if "event" in str(send.crash) and send.channel in {"api", "direct"}]


def test_races(size: Size) -> None:
    """Twilio accepts the message of each race, so that a second message would be a duplicate."""
    races = [send for send in plan(7, size) if send.part is Part.RACE]

    assert size.races == len(races)
    assert not [send for send in races if any("_before" in marker for marker in send.markers)]


def test_enough_keys() -> None:
    """Three full runs have at least 5,000 keys, and a short run has at least a tenth of the keys of a full run."""
    assert 5000 <= sum(len(plan(seed, FULL)) for seed in range(3))
    assert len(plan(7, SHORT)) >= len(plan(7, FULL)) / 10


def test_twins(size: Size) -> None:
    """Twins have the same text and different keys. In most pairs no callback to the connector is possible."""
    twins = [send for send in plan(7, size) if send.part is Part.TWIN]
    pairs = [(first, second) for first, second in zip(twins[::2], twins[1::2], strict=True)]

    assert size.twins == len(twins) == len({send.key for send in twins})
    assert all(first.text == second.text and first.callback == second.callback for first, second in pairs)
    assert all(first.fields["validity_period"] != second.fields["validity_period"] for first, second in pairs)
    assert sum(first.callback is not Callback.OURS for first, _ in pairs) > len(pairs) / 2


def test_strangers(size: Size) -> None:
    """The answer to each stranger's send is lost, before or after Twilio accepts the message.

    The sends have callbacks, no callbacks or lost callbacks, and all eight combinations are equally frequent.
    """
    strangers = [send for send in plan(7, size) if send.part is Part.STRANGER]
    kinds = Counter((send.callback, "callback=none" in send.markers, "_after" in send.markers[0]) for send in strangers)

    assert size.strangers == len(strangers)
    assert 8 == len(kinds)
    assert max(kinds.values()) - min(kinds.values()) <= 1
    assert all(send.markers[1] in {"stranger=first", "stranger=second"} for send in strangers)


def test_outages(size: Size) -> None:
    """All sends in an outage come by queue. Half of those in an outage of the bus have no key of their own."""
    sends = plan(7, size)
    parts = {part: [send for send in sends if send.part is part] for part in Part}
    away, hanging, broken = parts[Part.BUS_AWAY], parts[Part.SECRET_HANGS], parts[Part.SECRET_BROKEN]

    assert [size.bus_away, size.secret_hangs, size.secret_broken] == [len(away), len(hanging), len(broken)]
    assert size.bus_away == 2 * sum(send.has_key for send in away)
    assert {*HANGING} == {send.connection for send in hanging}
    assert {*BROKEN} == {send.connection for send in broken}
    assert not {send.channel for send in (*away, *hanging, *broken)} & {Channel.API, Channel.DIRECT}


def test_what_is_mended_ends() -> None:
    """A queued send with wrong credentials ends within the run, because they are fixed after two attempts.

    Otherwise the queue would retry it for an hour.
    """
    queued = [send for send in plan(7, FULL) if send.channel in QUEUED and send.part is Part.ORDINARY]

    assert not [send for send in queued if "fault=401_before" in send.markers]
    assert [send for send in queued if "fault=401_before,401_before,ok" in send.markers]
