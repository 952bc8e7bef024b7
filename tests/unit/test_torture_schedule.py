"""The schedule of `make torture`: the same for the same seed, and as hard as it says."""

import re
from collections import Counter

import pytest

from tests.faults import aws, faults
from tests.torture.schedule import CRASHES, FULL, ONE_IN, SHARES, SHORT, Channel, Part, Size, key_of, plan

KEY = re.compile(r"[!-~]{1,128}")


@pytest.fixture(params=[FULL, SHORT], ids=["full", "short"])
def size(request: pytest.FixtureRequest) -> Size:
    """Return how much is tried."""
    result: Size = request.param
    return result


def test_same_seed() -> None:
    """A seed gives one schedule, and another seed another."""
    assert plan(7, SHORT) == plan(7, SHORT)
    assert [send.markers for send in plan(7, SHORT)] != [send.markers for send in plan(8, SHORT)]


def test_keys(size: Size) -> None:
    """Each key is a key, there once, has its markers in it, and is found in its text."""
    sends = plan(7, size)

    assert len(sends) == len({send.key for send in sends})
    for send in sends:
        assert KEY.fullmatch(send.key)
        assert all(marker in send.key.split(";") for marker in send.markers)
        assert send.key == key_of(send.text)


def test_channels() -> None:
    """Each channel has its share."""
    counts = Counter(send.channel for send in plan(7, FULL) if send.part is Part.ORDINARY)

    assert {channel: round(share * FULL.sends) for channel, share in SHARES.items()} == dict(counts)
    assert set(Channel) == set(counts)


def test_share_of_faults() -> None:
    """A third of the ordinary sends is hit, in every channel."""
    for channel in Channel:
        sends = [send for send in plan(7, FULL) if send.part is Part.ORDINARY and send.channel is channel]
        hit = sum(any(marker != "callback=none" for marker in send.markers) for send in sends)
        assert hit == -(-len(sends) // ONE_IN)


def test_kinds_of_faults() -> None:
    """There are far more than twenty kinds, of Twilio and of AWS, before and after, and all are known."""
    markers = {marker for send in plan(7, FULL) for marker in send.markers}
    twilio = {name for marker in markers if marker.startswith("fault=") for name in marker[6:].split(",")}
    calls = {name for marker in markers if marker.startswith("aws=") for name in marker[4:].split("+")}

    assert len(twilio) > 20
    assert len(calls) > 20
    assert twilio <= faults.NAMED.keys()
    assert {name.rsplit(".", 1)[1] for name in calls} <= aws.KINDS.keys()
    assert {"PutItem", "PutEvents", "SendMessage"} == {name.split(".")[0] for name in calls}


def test_crashes(size: Size) -> None:
    """Each crash point has its keys; whether something was published is asked only where it would be."""
    crashes = [send for send in plan(7, size) if send.part is Part.CRASH]

    assert dict.fromkeys(CRASHES, size.crashes) == dict(Counter(send.crash for send in crashes))
    assert len(CRASHES) >= 6
    assert not [send for send in crashes if "event" in str(send.crash) and send.channel in {"api", "direct"}]


def test_races(size: Size) -> None:
    """Twilio takes the message of each race, so that there is something to take twice."""
    races = [send for send in plan(7, size) if send.part is Part.RACE]

    assert size.races == len(races)
    assert not [send for send in races if any("_before" in marker for marker in send.markers)]
