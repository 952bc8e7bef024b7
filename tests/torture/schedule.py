"""Which keys are sent, by which caller, and what goes wrong with each: a function of the seed."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

ONE_IN = 3
"""A fault hits one in so many of the ordinary sends."""

_TEXT = "Torture "


class Channel(StrEnum):
    """How a send comes to the function."""

    API = "api"
    DIRECT = "direct"
    ASYNCHRONOUS = "async"
    SQS = "sqs"
    SNS = "sns"
    EVENTBRIDGE = "eventbridge"
    STEP_FUNCTIONS = "step_functions"


class Part(StrEnum):
    """What a key is there to try."""

    ORDINARY = "ordinary"
    CRASH = "crash"
    RACE = "race"
    REDELIVERY = "redelivery"
    CONFLICT = "conflict"


class Send(NamedTuple):
    """One key; its markers stand in it, so that relay and proxy see them wherever the key or the text is."""

    key: str
    channel: Channel
    part: Part
    markers: tuple[str, ...] = ()
    crash: str | None = None

    @property
    def text(self) -> str:
        """The message, which nobody else sends."""
        return _TEXT + self.key


class Size(NamedTuple):
    """How much is tried; `race_callers` send each key of a race at the same time.

    `orders` messages have their statuses told in each order there is; so many `webhook_callers` are at work together.
    """

    sends: int
    crashes: int
    races: int
    race_callers: int
    redeliveries: int
    conflicts: int
    control: int
    webhooks: int
    webhook_crashes: int
    orders: int
    webhook_callers: int
    webhook_control: int


FULL = Size(
    sends=3000, crashes=60, races=100, race_callers=50, redeliveries=60, conflicts=40, control=1000,
    webhooks=4000, webhook_crashes=12, orders=2, webhook_callers=64, webhook_control=1000,
)  # fmt: skip
SHORT = Size(
    sends=240, crashes=3, races=4, race_callers=20, redeliveries=8, conflicts=6, control=300,
    webhooks=400, webhook_crashes=2, orders=1, webhook_callers=24, webhook_control=300,
)  # fmt: skip

WAITING = frozenset({Channel.API, Channel.DIRECT, Channel.STEP_FUNCTIONS})
QUEUED = frozenset({Channel.SQS, Channel.SNS, Channel.EVENTBRIDGE})

SHARES = {
    Channel.API: 0.34,
    Channel.DIRECT: 0.12,
    Channel.ASYNCHRONOUS: 0.08,
    Channel.SQS: 0.24,
    Channel.SNS: 0.09,
    Channel.EVENTBRIDGE: 0.09,
    Channel.STEP_FUNCTIONS: 0.04,
}

_AMBIGUOUS = (
    "500", "502", "503", "504", "408", "302", "reset", "close", "hang", "drip", "truncated", "bad_json", "no_sid",
    "html",
)  # fmt: skip
_REJECTIONS = ("21211_before", "21610_before", "401_before", "403_before")
_ONCE_TOO_MANY = ("429_before,ok", "429_before,429_before,429_before,ok")
_TOO_MANY = ("429_before", "429_retry_before", "21611_before")
AFTER = tuple(f"{name}_after" for name in _AMBIGUOUS)
"""Twilio took the message; its answer does not say so."""
BEFORE = (*(f"{name}_before" for name in _AMBIGUOUS), *_REJECTIONS, *_ONCE_TOO_MANY)
"""Twilio did not take the message; the answer says so, or does not."""
LASTING = (*BEFORE, *_TOO_MANY)
"""With these a caller who waits gives up at some time; a queue would try for an hour."""

CLAIM = (
    "PutItem.1.throttle", "PutItem.1.fail", "PutItem.1.deny", "PutItem.1.delay", "PutItem.1.drop_before",
    "PutItem.1.drop_after", "PutItem.1.hang_after", "PutItem.1.throttle+PutItem.2.throttle",
    "PutItem.1.drop_after+PutItem.2.throttle",
)  # fmt: skip
FINAL_WRITE = (
    "PutItem.2.throttle", "PutItem.2.fail", "PutItem.2.deny", "PutItem.2.drop_before", "PutItem.2.drop_after",
    "PutItem.2.hang_after", "PutItem.2.throttle+PutItem.3.throttle",
)  # fmt: skip
REPORT = (
    "PutEvents.1.throttle", "PutEvents.1.fail", "PutEvents.1.drop_before", "PutEvents.1.drop_after",
    "PutEvents.1.fail+PutEvents.2.fail", "PutEvents.1.deny",
)  # fmt: skip
SET_ASIDE = ("SendMessage.1.throttle", "SendMessage.1.drop_after", "SendMessage.1.fail+SendMessage.2.fail")

CRASHES: dict[str, tuple[str, ...]] = {
    "before the claim is stored": ("aws=PutItem.1.kill_before",),
    "after the claim is stored": ("aws=PutItem.1.kill_after",),
    "before Twilio takes the message": ("fault=kill_before",),
    "after Twilio takes the message": ("fault=kill_after",),
    "before the result is stored": ("aws=PutItem.2.kill_before", "callback=none"),
    "after the result is stored": ("aws=PutItem.2.kill_after", "callback=none"),
    "before the event is published": ("aws=PutEvents.1.kill_before", "callback=none"),
    "after the event is published": ("aws=PutEvents.1.kill_after", "callback=none"),
}
"""Where the function's process is killed. A status callback writes to the ledger and to the bus as well, so that
without one the count of these calls is the sender's alone."""


def plan(seed: int, size: Size) -> list[Send]:
    """Return all keys of a run in the order in which they are sent; races are together at the end."""
    chance = random.Random(seed)
    sends = [*_ordinary(seed, size.sends, chance), *_crashes(seed, size.crashes, chance)]
    sends += [*_redeliveries(seed, size.redeliveries, chance), *_conflicts(seed, size.conflicts)]
    chance.shuffle(sends)
    return [*sends, *_races(seed, size.races, chance)]


def twilio_faults(send: Send) -> tuple[str, ...]:
    """Return the markers that a client without AWS meets too."""
    return tuple(marker for marker in send.markers if marker.startswith("fault="))


def key_of(text: str) -> str | None:
    """Return the key in a message's text."""
    words = text.split(" ")
    return words[1] if len(words) > 1 and text.startswith(_TEXT) else None


def make_key(seed: int, name: str, number: int, markers: Iterable[str]) -> str:
    """Return a key that has its markers in it."""
    return ";".join([f"{name}-{seed}-{number:05}", *markers])


def _ordinary(seed: int, count: int, chance: random.Random) -> Iterator[Send]:
    """Yield sends whose channels have their shares exactly, and of which every third is hit, in each channel."""
    seen = Counter[Channel]()
    for number, channel in enumerate(_dealt(count)):
        markers = _faults(channel, chance) if seen[channel] % ONE_IN == 0 else ()
        seen[channel] += 1
        yield Send(make_key(seed, channel, number, markers), channel, Part.ORDINARY, markers)


def _dealt(count: int) -> list[Channel]:
    """Return a channel for each number, all of them mixed evenly."""
    due = dict.fromkeys(SHARES, 0.0)
    channels = []
    for _ in range(count):
        for channel, share in SHARES.items():
            due[channel] += share
        channel = max(due, key=lambda each: due[each])
        due[channel] -= 1
        channels.append(channel)
    return channels


def _faults(channel: Channel, chance: random.Random) -> tuple[str, ...]:
    """Return one fault, or two: of Twilio, of AWS, or of each."""
    dice = chance.random()
    befores = LASTING if channel in {Channel.API, Channel.DIRECT} else BEFORE
    twilio = chance.choice((*AFTER, *AFTER, *befores)) if dice < 0.72 else None
    aws = None
    without_callback = chance.random() < 0.3
    if dice >= 0.5:
        kinds = [*CLAIM, *FINAL_WRITE]
        if channel in QUEUED:
            kinds += [*REPORT, *REPORT]
        if channel in QUEUED and twilio in _REJECTIONS:
            kinds = [*SET_ASIDE]
        aws = chance.choice(kinds)
    markers = [f"fault={twilio}"] if twilio else []
    markers += [f"aws={aws}"] if aws else []
    markers += ["callback=none"] if without_callback else []
    return tuple(markers)


def _crashes(seed: int, count: int, chance: random.Random) -> Iterator[Send]:
    everywhere = (Channel.API, Channel.DIRECT, Channel.SQS, Channel.SQS, Channel.SNS, Channel.EVENTBRIDGE)
    for place, (name, markers) in enumerate(CRASHES.items()):
        for number in range(count):
            # Only what comes by the queue is reported.
            channel = chance.choice(tuple(QUEUED) if "event" in name else everywhere)
            key = make_key(seed, "crash", place * 1000 + number, markers)
            yield Send(key, channel, Part.CRASH, markers, crash=name)


def _redeliveries(seed: int, count: int, chance: random.Random) -> Iterator[Send]:
    """Yield what is delivered twice; what hits some of them leaves no doubt whether the message is sent."""
    for number in range(count):
        channel = (Channel.SNS, Channel.EVENTBRIDGE, Channel.SQS)[number % 3]
        faults = chance.choice((AFTER, SET_ASIDE, REPORT))
        fault = chance.choice(faults)
        markers = () if number % 2 else ((f"fault={fault}",) if faults is AFTER else (f"aws={fault}",))
        yield Send(make_key(seed, "again", number, markers), channel, Part.REDELIVERY, markers)


def _conflicts(seed: int, count: int) -> Iterator[Send]:
    for number in range(count):
        channel = (Channel.API, Channel.DIRECT)[number % 2]
        yield Send(make_key(seed, "conflict", number, ()), channel, Part.CONFLICT)


def _races(seed: int, count: int, chance: random.Random) -> Iterator[Send]:
    """Yield keys whose message Twilio takes, whatever its first answer says."""
    quick = tuple(name for name in AFTER if not name.startswith(("hang", "drip")))
    for number in range(count):
        channel = (Channel.API, Channel.DIRECT)[number % 2]
        markers = (f"fault={chance.choice(quick)}",) if number % 3 == 0 else ()
        yield Send(make_key(seed, "race", number, markers), channel, Part.RACE, markers)
