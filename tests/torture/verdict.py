"""Judge a run from its files alone: what was asked, answered, injected, stored by Twilio and reported on the bus."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.torture import journal
from tests.torture.published import Published
from tests.torture.schedule import CRASHES, key_of
from tests.torture.table import Row, figure, row
from tests.torture.webhooks import names

_COLUMNS = 3
LEAST_KINDS = 20
LEAST_CONTROL = 100
"""Duplicates per 1,000 sends of the naive client, below which the faults did not bite."""
LEAST_HIT = 0.5
"""Of the keys with a fault those that a fault reached, and of those with a crash those whose process was killed."""

CONFLICT = "IdempotencyConflictError"
NOTHING_SENT = frozenset(
    {
        "InvalidInputError",
        "ConnectionNotFoundError",
        "ConnectionInvalidError",
        "ServiceUnavailableError",
        "TwilioAuthenticationError",
        "TwilioNotFoundError",
        "TwilioRejectedError",
        "RecipientOptedOutError",
        "TwilioRateLimitError",
        "SenderQueueFullError",
        "TwilioUnavailableError",
        "InternalError",
    }
)
"""What says that nothing was sent, in the words of the documentation."""
LATER = frozenset({"ServiceUnavailableError", "TwilioRateLimitError", "SenderQueueFullError", "TwilioUnavailableError"})
"""Of these the ones after which the same key may be tried again, and go through."""
EARLY = frozenset(
    {
        "InvalidInputError",
        "ConnectionNotFoundError",
        "ConnectionInvalidError",
        "ServiceUnavailableError",
        "InternalError",
    }
)
"""Of these the ones that come before the key is looked up: they say nothing of an earlier call with the same key."""


@dataclass
class Key:
    """All that is known of one key."""

    channel: str
    part: str
    crash: str | None = None
    markers: tuple[str, ...] = ()
    stored: list[str] = field(default_factory=list)
    said_sent: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    last_error: str | None = None
    doubt: bool = False
    """Whether an earlier call may have sent it."""
    failed: bool = False
    unknown: bool = False
    redriven: bool = False
    second: set[str] = field(default_factory=set)
    """What was answered to another input."""
    second_sent: bool = False

    @property
    def state(self) -> str | None:
        """How the key ended: `sent`, `unknown`, `not_sent`, or not at all."""
        if self.said_sent:
            return "sent"
        if self.unknown:
            return "unknown"
        if self.failed or self.last_error in NOTHING_SENT:
            return "not_sent"
        return None

    def hear(self, answer: Mapping[str, Any]) -> None:
        """Take note of an answer."""
        if answer.get("input") == 2:
            self.second_sent = self.second_sent or answer["answer"] == "message"
            self.second |= {answer["error"]} if answer["answer"] == "error" else set()
            return
        if answer["answer"] == "message":
            self.said_sent.add(answer["sid"])
        elif answer["answer"] == "error" and not (self.doubt and answer["error"] in EARLY):
            self.last_error = answer["error"]
            self.doubt = self.last_error not in NOTHING_SENT
            self.refused |= {self.last_error} & (NOTHING_SENT - LATER)
        else:
            self.last_error = None
            self.doubt = True

    def learn(self, event: Mapping[str, Any]) -> None:
        """Take note of an event of the bus."""
        detail = event["detail"]
        match event["detail-type"]:
            case "Message Sent":
                self.said_sent.add(detail["message"]["sid"])
            case "Message Failed" if detail["error"]["title"] != CONFLICT:
                self.failed = True
            case "Message Outcome Unknown":
                self.unknown = True


class Run:
    """A run, as its files tell it."""

    def __init__(self, folder: Path) -> None:
        """Read a folder."""
        self.facts: dict[str, Any] = json.loads((folder / "run.json").read_text())
        self.keys: dict[str, Key] = {}
        self.calls = 0
        for line in journal.read(folder, journal.INTENTS):
            self.calls += 1
            if line.get("redriven"):
                self.keys[line["key"]].redriven = True
                continue
            markers = tuple(line.get("markers", ()))
            self.keys.setdefault(line["key"], Key(line["channel"], line["part"], line.get("crash"), markers))
        self.faults = [line for line in journal.read(folder, journal.FAULTS) if not names(line["key"] or "")]
        self.strangers: list[str] = []
        self.control: dict[str | None, int] = {line["key"]: 0 for line in journal.read(folder, journal.CONTROL)}
        for line in journal.read(folder, journal.TRUTH):
            name = key_of(line["body"] or "")
            if name in self.control:
                self.control[name] += 1
            elif name in self.keys:
                self.keys[name].stored.append(line["sid"])
            else:
                self.strangers.append(line["sid"])
        for line in sorted(journal.read(folder, journal.ANSWERS), key=lambda line: float(line["at"])):
            self.keys[line["key"]].hear(line)
        self.events = Counter[str]()
        for line in journal.read(folder, journal.BUS):
            self._learn(line["event"])
        self.failed_queue = [*journal.read(folder, journal.FAILED)]
        self.published = Published(folder)

    def _learn(self, event: Mapping[str, Any]) -> None:
        name = event["detail"].get("idempotency_key")
        if event.get("source") == "twilio-connector":
            self.events[event["detail-type"]] += 1
            if name in self.keys:
                self.keys[name].learn(event)
            else:
                self.strangers.append(str(name))

    def violations(self) -> list[Row]:
        """Return what must not be, each with the keys that are it."""
        every, races, conflicts = self.keys, self.of_part("race"), self.of_part("conflict")
        unknown = {name: key for name, key in every.items() if key.unknown or key.last_error == "OutcomeUnknownError"}
        queued = {line["body"]: line for line in self.failed_queue}
        strangers = [*self.strangers, *self.published.strangers]
        return [
            row("sent twice", every, lambda key: len(key.stored) > 1),
            row("said sent, not stored", every, lambda key: bool(key.said_sent - {*key.stored})),
            row("said not sent, but stored", every, _lied),
            row("without a final state", every, lambda key: key.state is None),
            row("unknown, stored, never resolved", unknown, lambda key: bool(key.stored) and not key.said_sent),
            row("same-key race, not stored once", races, lambda key: len(key.stored) != 1),
            row("other input, no conflict", conflicts, _accepted),
            row("failed queue, no key", queued, lambda line: not _has_key(line)),
            *self.published.violations(),
            Row("nobody's message or event", strangers, len(strangers)),
        ]

    def void(self) -> list[str]:
        """Return why the run proves nothing."""
        reasons = [] if self.facts.get("finished") else ["the run did not come to its end"]
        reasons += self.facts.get("void", [])
        if not self.keys:
            reasons.append("nothing was sent")
        if len(self.kinds()) < LEAST_KINDS:
            reasons.append(f"{len(self.kinds())} kinds of faults, fewer than {LEAST_KINDS}")
        if self.hit() < LEAST_HIT:
            reasons.append(f"faults reached {self.hit():.0%} of the keys that name one")
        reasons += [
            f"{killed} of {keys} processes were killed {point}"
            for point, (keys, killed) in self.crashes().items()
            if killed < LEAST_HIT * keys or not keys
        ]
        if self.control_rate() <= LEAST_CONTROL:
            reasons.append(f"the naive client sent {self.control_rate():.0f} duplicates per 1,000: faults do not bite")
        return reasons + self.published.void()

    def of_part(self, part: str) -> dict[str, Key]:
        """Return the keys of one part."""
        return {name: key for name, key in self.keys.items() if key.part == part}

    def kinds(self) -> Counter[str]:
        """Return how often each kind of fault was injected into the connector's calls."""
        return Counter(line["kind"] for line in self.faults if line["key"] not in self.control)

    def hit(self) -> float:
        """Return the share of the keys with faults that one of them reached."""
        named = {name for name, key in self.keys.items() if any(mark != "callback=none" for mark in key.markers)}
        return len(named & {line["key"] for line in self.faults}) / len(named) if named else 0.0

    def crashes(self) -> dict[str, tuple[int, int]]:
        """Return for each point how many keys there were, and for how many a process was killed."""
        killed = {line["key"] for line in self.faults if "kill" in line["kind"]}
        counts = {}
        for point in CRASHES:
            keys = {name for name, key in self.keys.items() if key.crash == point}
            counts[point] = (len(keys), len(keys & killed))
        return counts

    def control_rate(self) -> float:
        """Return the naive client's duplicates per 1,000 sends."""
        duplicates = sum(max(0, count - 1) for count in self.control.values())
        return 1000 * duplicates / len(self.control) if self.control else 0.0


def _lied(key: Key) -> bool:
    """Tell whether something said that nothing was sent, and Twilio has the message: but for what was put back then."""
    if key.redriven and key.said_sent:
        return False
    return bool(key.stored) and (key.failed or bool(key.refused) or key.state == "not_sent")


def _accepted(key: Key) -> bool:
    """Tell whether another input under the same key was not refused for that."""
    return key.second_sent or CONFLICT not in key.second


def _has_key(line: Mapping[str, Any]) -> bool:
    """Tell whether a record can be put back in the send queue without being sent twice."""
    try:
        body = json.loads(line["body"])
    except ValueError:
        return False
    return isinstance(body, dict) and bool(body.get("idempotency_key")) and bool(body.get("connection"))


def table(run: Run) -> Iterator[str]:
    """Yield the lines that a person reads."""
    states = Counter(key.state or "open" for key in run.keys.values())
    stored = sum(len(key.stored) for key in run.keys.values())
    yield figure("seed", run.facts.get("seed", "?"))
    yield figure("keys", len(run.keys), f"{run.calls:,} calls; {stored:,} messages stored")
    for channel, count in Counter(key.channel for key in run.keys.values()).most_common():
        yield figure(f"  {channel}", count)
    yield figure(
        "ended", len(run.keys) - states["open"], ", ".join(f"{name} {n:,}" for name, n in states.most_common())
    )
    yield figure("events", run.events.total(), ", ".join(f"{name} {n:,}" for name, n in run.events.most_common()))
    redriven = sum(key.redriven for key in run.keys.values())
    yield figure("failed queue", len(run.failed_queue), f"{redriven:,} keys put back in the send queue")
    kinds = run.kinds()
    yield figure("faults", kinds.total(), f"{len(kinds)} kinds, in {run.hit():.0%} of the keys that name one")
    for start in range(0, len(kinds), _COLUMNS):
        few = sorted(kinds.items(), key=lambda each: (-each[1], each[0]))[start : start + _COLUMNS]
        yield "  " + "".join(f"{kind:<31}{count:>5}   " for kind, count in few).rstrip()
    for point, (keys, killed) in run.crashes().items():
        yield figure(f"killed {point}", killed, f"of {keys} keys")
    races = run.of_part("race")
    yield figure("same-key races", len(races), f"messages stored {sum(len(key.stored) for key in races.values()):,}")
    rate = f"{sum(run.control.values()):,} stored, {run.control_rate():.0f} duplicates per 1,000"
    yield figure("naive client", len(run.control), rate)
    yield from run.published.table()
    yield ""
    for each in run.violations():
        yield str(each)


def judge(folder: Path) -> int:
    """Print the table; return 0 only if the run proves something and nothing is violated."""
    if not (folder / "run.json").exists():
        print(f"void: {folder} has no run", file=sys.stderr)
        return 1
    run = Run(folder)
    for line in table(run):
        print(line)
    bad = [each for each in run.violations() if each.keys]
    for each in bad:
        for key in each.keys[:10]:
            print(f"{each.name}: {key}", file=sys.stderr)
    for reason in run.void():
        print(f"void: {reason}", file=sys.stderr)
    return 1 if bad or run.void() else 0


if __name__ == "__main__":
    sys.exit(judge(Path(sys.argv[1])))
