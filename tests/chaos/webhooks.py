"""The schedule of webhooks, a function of the seed: their kinds, their deliveries, and the faults that hit each."""

import hashlib
import json
import random
import re
import uuid
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from itertools import permutations
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from tests.chaos.schedule import ONE_IN, Size, make_key
from tests.mutants import GENUINE, Request, Target, Webhook, keeps_text, mutants, says_the_same

STATUSES = ("queued", "sending", "sent", "delivered")
"""The statuses of a message in their order; callbacks come in any order."""
NAIVE = "naive_hook"
_OURS = "hook"
_NAME = re.compile(rf"\b(?:{NAIVE}|{_OURS})-\d+-\d+(?:/\d+)?")

_STREAMS = "Event Streams"
_JSON = "JSON object"
_TEXTS = {
    "US": "Body",
    "MMS": "Body",
    "WhatsApp": "Body",
    "opt-out": "Body",
    "status": "ErrorMessage",
    "failed": "ErrorMessage",
    "GET status": "ErrorMessage",
    "call": "CallerName",
    "debugger": "Payload",
}
"""The genuine forms, and for each the text field that holds the key."""
KINDS = (*_TEXTS, _STREAMS, _STREAMS, _JSON)
_SIDS = {"MessageSid": "SM", "SmsSid": "SM", "SmsMessageSid": "SM", "CallSid": "CA", "Sid": "NO"}
_BASES = {webhook.name: webhook for webhook in GENUINE}
_SEED = 1_000_000  # so that two seeds never share a message
_FORGED_IN = 4
_CUTS = 200  # mutants that are tried to find one whose signature is valid
_CLOUD_EVENTS = 3  # in an array, which repeats the first one at its end

_REFUSALS = ("throttle", "deny")
_DOUBTS = ("fail", "drop_before", "drop_after", "hang_after")
_NOT_TAKEN = "PutEvents.1.throttle+PutEvents.2.throttle"
BUS = tuple(f"PutEvents.1.{kind}" for kind in (*_REFUSALS, *_DOUBTS))
"""The bus refuses the first attempt, or the outcome of that attempt is unknown."""
_PARTIAL = [f"PutEvents.{number}.refuse_entries" for number in range(1, 4)]
PARTIAL = tuple("+".join(_PARTIAL[:count]) for count in range(1, 4))
"""The bus answers 200 but refuses one entry: once, twice, or three times, the last time from the buffer."""
BUFFERED = (
    *(f"PutEvents.1.{kind}+PutEvents.2.{kind}" for kind in (*_REFUSALS, "fail", "drop_before", "drop_after")),
    f"{_NOT_TAKEN}+PutEvents.3.throttle+PutEvents.4.throttle",
    f"{_NOT_TAKEN}+PutEvents.3.drop_after",
    f"{_NOT_TAKEN}+SendMessage.1.fail",
    f"{_NOT_TAKEN}+SendMessage.1.throttle",
    f"{_NOT_TAKEN}+SendMessage.1.drop_after",
    f"{_NOT_TAKEN}+Write.3.throttle+Write.4.throttle",
)
"""The second attempt fails too, so the event goes through the buffer."""
REFUSED = (
    f"{_NOT_TAKEN}+SendMessage.1.fail+SendMessage.2.fail",
    f"{_NOT_TAKEN}+SendMessage.1.deny",
)
"""Neither the bus nor the buffer takes the event."""
TABLE = (
    *(f"Write.{n}.{kind}" for n in (1, 2) for kind in ("throttle", "fail", "deny", "drop_before", "drop_after")),
    *(f"Write.{n}.hang_after" for n in (1, 2)),
    *(f"Write.{n}.{kind}+Write.{n + 1}.{kind}" for n in (1, 2) for kind in ("throttle", "fail")),
    "Write.2.drop_after+Write.3.throttle",
    "Write.3.throttle",
    "Write.3.throttle+Write.4.throttle",
    "Write.3.drop_after",
    "Write.3.deny",
)
"""A write to DynamoDB fails, or its answer is lost. The write stores the signed text, the claim, or the fact that the
event is on the bus."""

CRASHES = {
    "before the text is remembered": "Write.1.kill_before",
    "after the text is remembered": "Write.1.kill_after",
    "before the event is claimed": "Write.2.kill_before",
    "after the event is claimed": "Write.2.kill_after",
    "before the event is put": "PutEvents.1.kill_before",
    "after the event is put": "PutEvents.1.kill_after",
    "before the event is noted": "Write.3.kill_before",
    "after the event is noted": "Write.3.kill_after",
    "before the event is kept": f"{_NOT_TAKEN}+SendMessage.1.kill_before",
    "after the event is kept": f"{_NOT_TAKEN}+SendMessage.1.kill_after",
    "while the kept event is put": f"{_NOT_TAKEN}+PutEvents.3.kill_after",
}
"""The points at which the webhook's process is killed, each with its fault."""


class Part(StrEnum):
    """The situation that a webhook tests."""

    ORDINARY = "ordinary"
    CRASH = "crash"
    ORDER = "order"


class Hook(NamedTuple):
    """A webhook. One of its texts holds its key, which names its faults. `about` is the number of its subject."""

    key: str
    kind: str
    part: Part
    about: int
    markers: tuple[str, ...] = ()
    crash: str | None = None
    status: str | None = None

    @property
    def events(self) -> list[str]:
        """The names of the events that the connector must publish for it."""
        name = names(self.key)[0]
        return [f"{name}/{number}" for number in range(_CLOUD_EVENTS)] if self.kind == _STREAMS else [name]

    @property
    def webhook(self) -> Webhook:
        """The webhook as Twilio sends it."""
        base = _BASES[self.kind]
        if self.kind == _JSON:
            return replace(base, json=json.dumps({"key": self.key}).encode())
        if self.kind == _STREAMS:
            return replace(base, json=json.dumps(self._cloud_events).encode())
        sids = {name: f"{_SIDS[name]}{self.about:032x}" for name in base.fields if name in _SIDS}
        status = {"MessageStatus": self.status, "SmsStatus": self.status} if self.status else {}
        return replace(base, fields=base.fields | sids | status | {_TEXTS[self.kind]: self.key})

    @property
    def parameters(self) -> list[Any]:
        """The parameters of each of its events."""
        return self._cloud_events if self.kind == _STREAMS else [self.webhook.fields or {"key": self.key}]

    @property
    def token(self) -> str:
        """The idempotency token, which Twilio sends with each delivery of the same webhook."""
        return str(uuid.uuid5(uuid.NAMESPACE_OID, self.key))

    def says(self, target: Target) -> dict[str, str]:
        """Return a digest of Twilio's parameters for each event, by the event's name."""
        if self.kind == _STREAMS:
            return dict(zip(self.events, map(digest, self._cloud_events), strict=False))
        if self.kind == _JSON:
            return {self.events[0]: digest({"key": self.key})}
        request = self.webhook.request(target)
        return {self.events[0]: digest(dict(request.fields or parse_qsl(request.query, keep_blank_values=True)))}

    def another_reading(self, target: Target) -> Request | None:
        """Return a request with the same signed text, split into other names and values; None if none is found."""
        if self.webhook.json or self.webhook.method == "GET":
            return None
        found = (each.request for each in mutants("boundary", target, [self.webhook], count=_CUTS, seed=self.about))
        genuine = self.webhook.request(target)
        return next((each for each in found if keeps_text(each, target) and not says_the_same(each, genuine)), None)

    @property
    def _cloud_events(self) -> list[Any]:
        [template, _] = json.loads(_BASES[self.kind].json or b"")
        name = names(self.key)[0]
        ids = [f"{name}/0{self.key.removeprefix(name)}", *self.events[1:]]
        return [template | {"id": each} for each in [*ids, ids[0]]]

    def ids(self, target: Target) -> list[str]:
        """Return the ids in the table of its signed text and of its event, unless the event's id contains the key."""
        text = _signed_text(self.webhook.request(target), target)
        ids = [f"text:{_sha256(text)}"]
        if self.kind == _STREAMS:
            return ids
        fields = self.webhook.form(target)
        if sid := fields.get("MessageSid"):
            return [*ids, f"{target.account_sid}:{sid}:{fields.get('MessageStatus') or fields['SmsStatus']}"]
        return [*ids, _sha256(json.dumps([_sha256(text), self.token, ""], separators=(",", ":")))]


def digest(value: Any) -> str:
    """Return a digest that is equal for equal parameters."""
    return _sha256(json.dumps(value, sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _signed_text(request: Request, target: Target) -> str:
    url = f"{urlsplit(target.base).scheme}://{request.url.removeprefix('https://')}"
    return url + "".join(name + value for name, value in sorted(set(request.fields)))


class Unit(NamedTuple):
    """Webhooks that are delivered in turn, or at the same moment. If `is_forged`, a forger posts another reading."""

    hooks: tuple[Hook, ...]
    at_once: bool = False
    is_forged: bool = False


class Stage(StrEnum):
    """A stage of the deliveries, which differ in the service that is unavailable."""

    BEFORE = "before"
    BUS_AWAY = "bus_away"
    TABLE_AWAY = "table_away"
    AFTER = "after"


def plan(seed: int, size: Size) -> dict[Stage, list[Unit]]:
    """Return the webhooks of each stage, in order.

    Two webhooks of each crash point come while all services are available. In an outage, a function may not reach the
    point at which it is to be killed.
    """
    chance = random.Random(f"webhooks {seed}")
    crashes = [(n % size.webhook_crashes, each) for n, each in enumerate(_crashes(seed, size.webhook_crashes, chance))]
    units = [*_ordinary(seed, size.webhooks, chance), *_orders(seed, size.orders, chance)]
    units += [crash for number, crash in crashes if number > 1]
    chance.shuffle(units)
    ends = [0, *(len(units) * tenths // 10 for tenths in (4, 5, 6, 10))]
    stages = {stage: units[start:end] for stage, start, end in zip(Stage, ends, ends[1:], strict=False)}
    for number, stage in enumerate((Stage.BEFORE, Stage.AFTER)):
        stages[stage] += [crash for its_number, crash in crashes if its_number == number]
        chance.shuffle(stages[stage])
    return stages


def control(units: list[Unit], count: int) -> list[Unit]:
    """Return the same ordinary webhooks for the naive receiver, once each."""
    hooks = [unit.hooks[0] for unit in units if unit.hooks[0].part is Part.ORDINARY][:count]
    return [Unit((hook._replace(key=hook.key.replace(_OURS, NAIVE, 1)),)) for hook in hooks]


def names(text: str) -> list[str]:
    """Return the names of webhooks and events that occur in a text, each once."""
    return list(dict.fromkeys(_NAME.findall(text)))


def _ordinary(seed: int, count: int, chance: random.Random) -> Iterator[Unit]:
    """Yield webhooks. Every third has a fault. One in five is delivered twice, half of these at the same moment."""
    for number in range(count):
        markers = _faults(chance) if number % ONE_IN == 0 else ()
        key = make_key(seed, _OURS, number, markers)
        hook = Hook(key, chance.choice(KINDS), Part.ORDINARY, seed * _SEED + number, markers)
        is_forged = not markers and number % _FORGED_IN == 1
        yield Unit((hook,) * (2 if number % 5 == 0 else 1), at_once=number % 10 == 0, is_forged=is_forged)


def _faults(chance: random.Random) -> tuple[str, ...]:
    kinds = chance.choice((BUS, BUS, PARTIAL, PARTIAL, BUFFERED, BUFFERED, TABLE, TABLE, REFUSED))
    return (f"aws={chance.choice(kinds)}",)


def _crashes(seed: int, count: int, chance: random.Random) -> Iterator[Unit]:
    for place, (name, fault) in enumerate(CRASHES.items(), start=10):
        for number in range(place * 1000, place * 1000 + count):
            markers = (f"aws={fault}",)
            key = make_key(seed, _OURS, number, markers)
            yield Unit((Hook(key, chance.choice(KINDS), Part.CRASH, seed * _SEED + number, markers, crash=name),))


def _orders(seed: int, count: int, chance: random.Random) -> Iterator[Unit]:
    """Yield the callbacks of this many messages for each order in which the statuses can come."""
    for place, order in enumerate([each for each in permutations(STATUSES) for _ in range(count)]):
        hooks = []
        for number, status in enumerate(order, start=50_000 + place * len(order)):
            markers = _faults(chance) if number % ONE_IN == 0 else ()
            key = make_key(seed, _OURS, number, markers)
            hooks.append(Hook(key, "status", Part.ORDER, seed * _SEED + 50_000 + place, markers, status=status))
        yield Unit(tuple(hooks))
