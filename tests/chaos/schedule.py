"""The schedule of sends, a function of the seed: the keys, the caller of each, and the faults that hit it."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

ONE_IN = 3
"""One in this many ordinary sends has a fault; the same holds for webhooks."""

NOWHERE = "http://127.0.0.1:9/"
"""The URL of status callbacks that the connector does not get."""

HANGING = tuple(f"hang-{number}" for number in range(10))
"""Connections whose secrets Secrets Manager does not return for a while. There are as many as records in a batch."""
BROKEN = ("broken-json", "broken-token", "broken-missing")
"""Connections whose secret is malformed, has a wrong token, or is missing for a while."""

_TEXT = "Chaos "
_LONGEST_VALIDITY = 36_000  # seconds
_LOST = ("reset", "500", "bad_json", "close")
"""The faults that lose an answer immediately, without a timeout."""


class Channel(StrEnum):
    """The way by which a send reaches the function."""

    API = "api"
    DIRECT = "direct"
    ASYNCHRONOUS = "async"
    SQS = "sqs"
    SNS = "sns"
    EVENTBRIDGE = "eventbridge"
    STEP_FUNCTIONS = "step_functions"


class Part(StrEnum):
    """The situation that a key tests."""

    ORDINARY = "ordinary"
    CRASH = "crash"
    RACE = "race"
    REDELIVERY = "redelivery"
    CONFLICT = "conflict"
    TWIN = "twin"
    STRANGER = "stranger"
    BUS_AWAY = "bus_away"
    SECRET_HANGS = "secret_hangs"
    SECRET_BROKEN = "secret_broken"


OUTAGES = frozenset({Part.BUS_AWAY, Part.SECRET_HANGS, Part.SECRET_BROKEN})
"""Parts whose keys must all be sent in the end."""


class Callback(StrEnum):
    """The receiver of a message's status callbacks. They are proof only if the connector receives them."""

    OURS = "ours"
    NONE = "none"
    """The connection has no auth token to check callbacks with."""
    OTHERS = "others"
    """The input names another URL."""


_CALLBACKS = (*[Callback.OURS] * 7, *[Callback.NONE] * 2, Callback.OTHERS)


class Send(NamedTuple):
    """One key. It contains its markers, so that relay and proxy find them in each request with the key or the text.

    `words` is the key in the text, if that is not the send's own key: twins share one. `connection` is a connection
    that only this part uses. Without `has_key`, the key is the id that the queue, topic or bus gives to the message.
    """

    key: str
    channel: Channel
    part: Part
    markers: tuple[str, ...] = ()
    crash: str | None = None
    callback: Callback = Callback.OURS
    words: str = ""
    connection: str = ""
    has_key: bool = True

    @property
    def text(self) -> str:
        """The text of the message, which only a twin or a stranger sends too."""
        return _TEXT + (self.words or self.key)

    @property
    def fields(self) -> dict[str, object]:
        """The input's other fields. A validity period distinguishes twins, since Twilio's list does not show it."""
        number = self.key.removeprefix(f"{self.words};n=") if self.words else ""
        validity: dict[str, object] = {"validity_period": _LONGEST_VALIDITY - int(number)} if number else {}
        return validity | ({"status_callback": NOWHERE} if self.callback is Callback.OTHERS else {})


class Size(NamedTuple):
    """The number of keys and webhooks of each kind; `race_callers` callers send each key of a race at the same time.

    For each order of the four statuses there are `orders` messages. Up to `webhook_callers` deliveries run at a time.
    """

    sends: int
    crashes: int
    races: int
    race_callers: int
    redeliveries: int
    conflicts: int
    twins: int
    strangers: int
    bus_away: int
    secret_hangs: int
    secret_broken: int
    control: int
    webhooks: int
    webhook_crashes: int
    orders: int
    webhook_callers: int
    webhook_control: int


FULL = Size(
    sends=1200, crashes=30, races=24, race_callers=50, redeliveries=45, conflicts=20, twins=80, strangers=120,
    bus_away=48, secret_hangs=40, secret_broken=30, control=500,
    webhooks=1500, webhook_crashes=10, orders=1, webhook_callers=64, webhook_control=400,
)  # fmt: skip
SHORT = Size(
    sends=130, crashes=3, races=4, race_callers=20, redeliveries=9, conflicts=4, twins=16, strangers=24,
    bus_away=12, secret_hangs=20, secret_broken=9, control=250,
    webhooks=300, webhook_crashes=2, orders=1, webhook_callers=24, webhook_control=300,
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
_UNAUTHORIZED = "401_before"
_FIXED = "401_before,401_before,ok"
_REJECTIONS = ("21211_before", "21610_before", _UNAUTHORIZED, "403_before")
_ONCE_TOO_MANY = ("429_before,ok", "429_before,429_before,429_before,ok")
_TOO_MANY = ("429_before", "429_retry_before", "21611_before")
AFTER = tuple(f"{name}_after" for name in _AMBIGUOUS)
"""Twilio accepted the message, but its answer does not say so."""
BEFORE = (*(f"{name}_before" for name in _AMBIGUOUS), *_REJECTIONS, *_ONCE_TOO_MANY)
"""Twilio did not accept the message at the first attempt. Some of these answers say so, others do not."""
LASTING = (*BEFORE, *_TOO_MANY)
"""The faults for API and direct callers, who give up at some point; a queue would retry some of them for an hour."""

CLAIM = (
    "Write.1.throttle", "Write.1.fail", "Write.1.deny", "Write.1.delay", "Write.1.drop_before",
    "Write.1.drop_after", "Write.1.hang_after", "Write.1.throttle+Write.2.throttle",
    "Write.1.drop_after+Write.2.throttle",
)  # fmt: skip
FINAL_WRITE = (
    "Write.2.throttle", "Write.2.fail", "Write.2.deny", "Write.2.drop_before", "Write.2.drop_after",
    "Write.2.hang_after", "Write.2.throttle+Write.3.throttle",
)  # fmt: skip
REPORT = (
    "PutEvents.1.throttle", "PutEvents.1.fail", "PutEvents.1.drop_before", "PutEvents.1.drop_after",
    "PutEvents.1.fail+PutEvents.2.fail", "PutEvents.1.deny",
)  # fmt: skip
SET_ASIDE = ("SendMessage.1.throttle", "SendMessage.1.drop_after", "SendMessage.1.fail+SendMessage.2.fail")

CRASHES: dict[str, tuple[str, ...]] = {
    "before the claim is stored": ("aws=Write.1.kill_before",),
    "after the claim is stored": ("aws=Write.1.kill_after",),
    "before Twilio takes the message": ("fault=kill_before",),
    "after Twilio takes the message": ("fault=kill_after",),
    "before the result is stored": ("aws=Write.2.kill_before", "callback=none"),
    "after the result is stored": ("aws=Write.2.kill_after", "callback=none"),
    "before the event is published": ("aws=PutEvents.1.kill_before", "callback=none"),
    "after the event is published": ("aws=PutEvents.1.kill_after", "callback=none"),
}
"""The points at which the function's process is killed. A status callback also writes to the ledger and to the bus.
With `callback=none`, these calls are the sender's alone, so the marker counts them correctly."""


def plan(seed: int, size: Size) -> list[Send]:
    """Return all keys of a run in the order in which they are sent; races and outages come at the end."""
    chance = random.Random(seed)
    sends = [*_ordinary(seed, size.sends, chance), *_crashes(seed, size.crashes, chance)]
    sends += [*_redeliveries(seed, size.redeliveries, chance), *_conflicts(seed, size.conflicts)]
    sends += _strangers(seed, size.strangers, chance)
    sends = [send._replace(callback=chance.choice(_CALLBACKS)) if _is_free(send) else send for send in sends]
    pairs = [*_twins(seed, size.twins, chance)]
    units = [*((send,) for send in sends), *pairs]
    chance.shuffle(units)
    outages = [*_bus_away(seed, size.bus_away, chance), *_secrets(seed, size, chance)]
    return [*(send for unit in units for send in unit), *_races(seed, size.races, chance), *outages]


def twilio_faults(send: Send) -> tuple[str, ...]:
    """Return the markers of faults that also hit a client without AWS."""
    return tuple(marker for marker in send.markers if marker.startswith("fault="))


def key_of(text: str) -> str | None:
    """Return the key in a message's text, or None."""
    words = text.split(" ")
    return words[1] if len(words) > 1 and text.startswith(_TEXT) else None


def owner(form: Mapping[str, Sequence[str]]) -> str | None:
    """Return the key whose message a request creates, or None."""
    words = key_of(form.get("Body", [""])[0])
    validity = form.get("ValidityPeriod")
    return f"{words};n={_LONGEST_VALIDITY - int(validity[0])}" if words and validity else words


def make_key(seed: int, name: str, number: int, markers: Iterable[str]) -> str:
    """Return a key that contains its markers."""
    return ";".join([f"{name}-{seed}-{number:05}", *markers])


def _ordinary(seed: int, count: int, chance: random.Random) -> Iterator[Send]:
    """Yield sends in the exact share of each channel; in each channel, every third send has faults."""
    seen = Counter[Channel]()
    for number, channel in enumerate(_dealt(count)):
        markers = _faults(channel, chance) if seen[channel] % ONE_IN == 0 else ()
        seen[channel] += 1
        yield Send(make_key(seed, channel, number, markers), channel, Part.ORDINARY, markers)


def _dealt(count: int) -> list[Channel]:
    """Return this many channels, evenly mixed in their shares."""
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
    """Return the markers of a fault of Twilio, of AWS, or of both; some markers also turn status callbacks off."""
    dice = chance.random()
    befores = LASTING if channel in {Channel.API, Channel.DIRECT} else BEFORE
    twilio = chance.choice((*AFTER, *AFTER, *befores)) if dice < 0.72 else None
    aws = None
    without_callback = chance.random() < 0.3
    if dice >= 0.5:
        kinds = [*CLAIM, *FINAL_WRITE]
        if channel in QUEUED:
            kinds += [*REPORT, *REPORT]
        if channel in QUEUED and twilio in _REJECTIONS and twilio != _UNAUTHORIZED:
            kinds = [*SET_ASIDE]
        aws = chance.choice(kinds)
    if channel in QUEUED and twilio == _UNAUTHORIZED:
        twilio = _FIXED  # the queue retries until an operator fixes the credentials
    markers = [f"fault={twilio}"] if twilio else []
    markers += [f"aws={aws}"] if aws else []
    markers += ["callback=none"] if without_callback else []
    return tuple(markers)


def _crashes(seed: int, count: int, chance: random.Random) -> Iterator[Send]:
    everywhere = (Channel.API, Channel.DIRECT, Channel.SQS, Channel.SQS, Channel.SNS, Channel.EVENTBRIDGE)
    for place, (name, markers) in enumerate(CRASHES.items()):
        for number in range(count):
            # Only sends through the queue are reported on the bus.
            channel = chance.choice(tuple(QUEUED) if "event" in name else everywhere)
            key = make_key(seed, "crash", place * 1000 + number, markers)
            yield Send(key, channel, Part.CRASH, markers, crash=name)


def _redeliveries(seed: int, count: int, chance: random.Random) -> Iterator[Send]:
    """Yield sends that are delivered twice; the faults of some leave no doubt whether the message is sent."""
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
    """Yield keys whose message Twilio accepts, although a fault may hide its first answer."""
    quick = tuple(name for name in AFTER if not name.startswith(("hang", "drip")))
    for number in range(count):
        channel = (Channel.API, Channel.DIRECT)[number % 2]
        markers = (f"fault={chance.choice(quick)}",) if number % 3 == 0 else ()
        yield Send(make_key(seed, "race", number, markers), channel, Part.RACE, markers)


def _is_free(send: Send) -> bool:
    """Return whether a send's part allows any receiver of callbacks."""
    return send.part in {Part.ORDINARY, Part.CRASH, Part.REDELIVERY}


def _twins(seed: int, count: int, chance: random.Random) -> Iterator[tuple[Send, Send]]:
    """Yield pairs of keys with the same message at the same moment; their common text names a fault for each.

    If no callback can come, the two messages look the same in Twilio's list.
    """
    kinds = ("before,after", "after,before", "after,after", "before,before", "ok,after", "ok,before")
    for number in range(count // 2):
        names = [
            name if name == "ok" else f"{chance.choice(_LOST)}_{name}" for name in kinds[number % len(kinds)].split(",")
        ]
        words = make_key(seed, "twin", number, [f"fault={','.join(names)}"])
        is_called_back = (number + number // len(kinds)) % 4 == 3
        callback = Callback.OURS if is_called_back else chance.choice((Callback.NONE, Callback.OTHERS))
        channels = [chance.choice((Channel.API, Channel.DIRECT, Channel.SQS)) for _ in range(2)]
        first, second = (
            Send(f"{words};n={place}", channel, Part.TWIN, (f"fault={name}",), callback=callback, words=words)
            for place, (channel, name) in enumerate(zip(channels, names, strict=True))
        )
        yield first, second


def _strangers(seed: int, count: int, chance: random.Random) -> Iterator[Send]:
    """Yield sends whose answer is lost while a stranger sends the same text directly to Twilio."""
    whose = [
        (callback, lost) for callback in Callback for lost in (False, True) if callback is Callback.OURS or not lost
    ]
    for number in range(count):
        callback, is_lost = whose[number % len(whose)]
        fault = f"{chance.choice(_LOST)}_{('before', 'after')[number // len(whose) % 2]}"
        without_callback = ("callback=none",) if is_lost else ()
        markers = (f"fault={fault}", f"stranger={chance.choice(('first', 'second'))}", *without_callback)
        channel = chance.choice((Channel.API, Channel.DIRECT, Channel.SQS, Channel.SNS, Channel.EVENTBRIDGE))
        yield Send(make_key(seed, "stranger", number, markers), channel, Part.STRANGER, markers, callback=callback)


def _bus_away(seed: int, count: int, chance: random.Random) -> Iterator[Send]:
    """Yield sends through the queue whose reports the bus refuses; half of them have the delivery's id as key."""
    faults = ("", "", f"{chance.choice(_LOST)}_after", "21211_before")
    for number in range(count):
        channel = (Channel.SQS, Channel.SNS, Channel.EVENTBRIDGE)[number % 3]
        fault = faults[number // 6 % len(faults)]
        markers = (f"fault={fault}",) if fault else ()
        has_key = number // 3 % 2 == 0
        yield Send(make_key(seed, "bus", number, markers), channel, Part.BUS_AWAY, markers, has_key=has_key)


def _secrets(seed: int, size: Size, chance: random.Random) -> Iterator[Send]:
    """Yield sends through the queue whose connections are unusable for a while."""
    for number in range(size.secret_hangs):
        channel = chance.choice((Channel.SQS, Channel.SQS, Channel.SNS))
        key = make_key(seed, "hang", number, ())
        yield Send(key, channel, Part.SECRET_HANGS, connection=HANGING[number % len(HANGING)])
    for number in range(size.secret_broken):
        channel = chance.choice((Channel.SQS, Channel.SNS, Channel.EVENTBRIDGE))
        key = make_key(seed, "broken", number, ())
        yield Send(key, channel, Part.SECRET_BROKEN, connection=BROKEN[number % len(BROKEN)])
