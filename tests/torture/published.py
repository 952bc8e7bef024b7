"""Judge the webhooks of a run from its files: what was delivered and answered, injected, and published."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

from tests.torture import journal
from tests.torture.table import Row, figure, row
from tests.torture.webhooks import CRASHES, NAIVE, STATUSES, names

LEAST_LOST = 10
"""Events per 1,000 that the naive receiver loses, below which the faults did not bite."""
LEAST_HIT = 0.5
"""Of the webhooks with a fault those that a fault reached, and of those with a crash those whose process was killed."""
MOST_GIVEN_UP = 0.01
"""Of the webhooks those that Twilio may give up."""
MOST_SLOW = 0.02
"""Of the events those that may be marked because this machine was too slow for a time limit."""

_OK = 200
_SLACK = 1  # seconds between a fault and the line that tells of it


class Answer(NamedTuple):
    """How a delivery was answered, and when it was under way; status None is a connection that broke."""

    status: int | None
    began: float
    ended: float


class Fault(NamedTuple):
    """What was injected into a call to AWS."""

    kind: str
    at: float

    @property
    def operation(self) -> str:
        """The call."""
        return self.kind.partition(".")[0]


@dataclass
class Hook:
    """All that is known of one webhook."""

    kind: str
    part: str
    events: list[str]
    crash: str | None = None
    is_marked: bool = False
    about: int = 0
    status: str | None = None
    answers: list[Answer] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def is_accepted(self) -> bool:
        """Whether Twilio was told that it arrived."""
        return any(answer.status == _OK for answer in self.answers)

    @property
    def is_killed(self) -> bool:
        """Whether the process was killed that had it."""
        return any("kill" in fault.kind for fault in self.faults)

    def explains(self, answer: Answer, token: Sequence[Fault]) -> bool:
        """Tell whether what was injected explains that a delivery was not accepted."""
        own, read = (
            [fault for fault in faults if answer.began - _SLACK <= fault.at <= answer.ended + _SLACK]
            for faults in (self.faults, token)
        )
        if answer.status in {None, 500, 502, 504}:
            return any("kill" in fault.kind for fault in own)
        operations = {fault.operation for fault in own}
        return answer.status == 503 and ({"PutEvents", "SendMessage"} <= operations or bool(read))


class Published:
    """The webhooks of a run, as its files tell them."""

    def __init__(self, folder: Path) -> None:
        """Read a folder."""
        self.hooks: dict[str, Hook] = {}
        self._naive: dict[str, Hook] = {}
        for each in journal.read(folder, journal.HOOKS):
            [name] = names(each["hook"])
            hook = Hook(
                each["kind"],
                each["part"],
                each["events"],
                each["crash"],
                "aws=" in each["hook"],
                each["about"],
                each["status"],
            )
            (self._naive if name.startswith(NAIVE) else self.hooks).setdefault(name, hook)
        every = self.hooks | self._naive
        for each in journal.read(folder, journal.HOOK_ANSWERS):
            [name] = names(each["hook"])
            every[name].answers.append(Answer(each["status"], each["began"], each["at"]))
        self._token: list[Fault] = []
        self.kinds = Counter[str]()
        for each in journal.read(folder, journal.FAULTS):
            fault, found = Fault(each["kind"], each["at"]), names(each["key"] or "")
            if fault.operation == "GetSecretValue":
                self._token.append(fault)
            for name in found:
                every[name.partition("/")[0]].faults.append(fault)
                self.kinds[fault.kind] += not name.startswith(NAIVE)
        self.marks: dict[str, list[str | None]] = {name: [] for hook in every.values() for name in hook.events}
        self.strangers: list[str] = []
        self._others: dict[str, list[str | None]] = defaultdict(list)
        self._told: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for each in journal.read(folder, journal.BUS):
            self._learn(each["event"])

    def _learn(self, event: Mapping[str, Any]) -> None:
        """Take note of an event: whose it is stands in what Twilio said."""
        detail = event["detail"]
        if event["source"] == NAIVE:
            self.marks[names(json.dumps(detail))[0]].append(None)
        if event["source"] != "twilio":
            return
        mark = detail.get("deduplication")
        found = names(json.dumps(detail["parameters"]))
        if not found:  # of Twilio's emulator, about the messages that are sent meanwhile
            self._others[detail["deduplication_id"]].append(mark)
            return
        if found[0] not in self.marks:
            self.strangers.append(found[0])
            return
        self.marks[found[0]].append(mark)
        if self.hooks[found[0].partition("/")[0]].part == "order":
            self._told[detail["message"]["sid"]].append(detail["message"])

    def violations(self) -> list[Row]:
        """Return what must not be, each with the webhooks or events that are it."""
        events = {name: self.marks[name] for hook in self.hooks.values() for name in hook.events}
        accepted = {name: events[name] for hook in self.hooks.values() if hook.is_accepted for name in hook.events}
        answers = {
            f"{name}, delivery {number}: {answer.status}": (hook, answer)
            for name, hook in self.hooks.items()
            for number, answer in enumerate(hook.answers, start=1)
        }
        return [
            row("event of a webhook, lost", accepted, lambda marks: not marks),
            row("event twice, and not marked", events | self._others, lambda marks: marks.count(None) > 1),
            row("not accepted, and nothing failed", answers, lambda each: not self._is_right(*each)),
            row("statuses that end wrongly", self._told, _ends_wrongly),
        ]

    def _is_right(self, hook: Hook, answer: Answer) -> bool:
        return answer.status == _OK or hook.explains(answer, self._token)

    def void(self) -> list[str]:
        """Return why the webhooks prove nothing."""
        if not self.hooks:
            return ["no webhook was delivered"]
        reasons = []
        given_up = sum(not hook.is_accepted for hook in self.hooks.values())
        if given_up > MOST_GIVEN_UP * len(self.hooks):
            reasons.append(f"{given_up} webhooks were given up")
        if self.hit() < LEAST_HIT:
            reasons.append(f"faults reached {self.hit():.0%} of the webhooks that name one")
        for point, (hooks, killed) in self.crashes().items():
            if killed < LEAST_HIT * hooks or not hooks:
                reasons.append(f"{killed} of {hooks} processes were killed {point}")
        if len(self.orders()) < len(list(permutations(STATUSES))):
            reasons.append(f"statuses came in {len(self.orders())} orders")
        if not self.marked("uncertain") or not self.marked("unavailable"):
            reasons.append("no event was marked")
        if len(self.unexplained_marks()) > MOST_SLOW * len(self.marks):
            reasons.append(f"{len(self.unexplained_marks())} events are marked, and no fault is on record that did it")
        if self.lost_by_the_naive() <= LEAST_LOST:
            reasons.append(f"the naive receiver lost {self.lost_by_the_naive():.0f} per 1,000: faults do not bite")
        return reasons

    def hit(self) -> float:
        """Return the share of the webhooks with faults that one of them reached."""
        marked = [hook for hook in self.hooks.values() if hook.is_marked]
        return sum(bool(hook.faults) for hook in marked) / len(marked) if marked else 0.0

    def crashes(self) -> dict[str, tuple[int, int]]:
        """Return for each point how many webhooks there were, and for how many a process was killed."""
        at = {point: [hook for hook in self.hooks.values() if hook.crash == point] for point in CRASHES}
        return {point: (len(hooks), sum(hook.is_killed for hook in hooks)) for point, hooks in at.items()}

    def orders(self) -> set[tuple[str | None, ...]]:
        """Return the orders in which the statuses of a message were first delivered."""
        orders: dict[int, tuple[str | None, ...]] = defaultdict(tuple)
        for hook in self.hooks.values():
            if hook.part == "order":
                orders[hook.about] += (hook.status,)
        return set(orders.values())

    def marked(self, mark: str) -> int:
        """Return how many events say that they may not be the only one, in these words."""
        return sum(marks.count(mark) for marks in self.marks.values())

    def unexplained_marks(self) -> list[str]:
        """Return the events that are marked though the record of faults has nothing of their webhook."""
        spared = [hook for hook in self.hooks.values() if not hook.faults]
        return [name for hook in spared for name in hook.events if any(self.marks[name])]

    def lost_by_the_naive(self) -> float:
        """Return the events per 1,000 that the naive receiver lost."""
        accepted = [name for hook in self._naive.values() if hook.is_accepted for name in hook.events]
        lost = sum(not self.marks[name] for name in accepted)
        return 1000 * lost / len(accepted) if accepted else 0.0

    def table(self) -> Iterator[str]:
        """Yield the lines that a person reads."""
        if not self.hooks:
            return
        answers = [answer for hook in self.hooks.values() for answer in hook.answers]
        events = [name for hook in self.hooks.values() for name in hook.events]
        statuses = Counter(str(answer.status or "broken") for answer in answers)
        told = ", ".join(f"{status} {count:,}" for status, count in statuses.most_common())
        yield figure("webhooks", len(self.hooks), f"{len(answers):,} deliveries: {told}")
        for kind, count in Counter(hook.kind for hook in self.hooks.values()).most_common():
            yield figure(f"  {kind}", count)
        copies = [len(self.marks[name]) for name in events]
        yield figure("events", len(events), f"{sum(copies):,} on the bus, {copies.count(1):,} of them once")
        marks = ", ".join(f"{mark} {self.marked(mark):,}" for mark in ("uncertain", "unavailable"))
        yield figure("marked", sum(self.marked(mark) for mark in ("uncertain", "unavailable")), marks)
        yield figure("  though no fault hit their webhook", len(self.unexplained_marks()))
        given_up = sum(not hook.is_accepted for hook in self.hooks.values())
        yield figure("given up by Twilio", given_up, "after three deliveries")
        yield figure(
            "faults", self.kinds.total(), f"{len(self.kinds)} kinds, in {self.hit():.0%} of those that name one"
        )
        for point, (hooks, killed) in self.crashes().items():
            yield figure(f"killed {point}", killed, f"of {hooks} webhooks")
        took = [answer.ended - answer.began for answer in answers if answer.status == _OK]
        if len(took) > 1:
            percentiles = statistics.quantiles(took, n=100)
            yield figure("answered 200 after", f"{percentiles[49]:.2f} s", f"99 % within {percentiles[98]:.1f} s")
        yield figure("naive receiver", len(self._naive), f"{self.lost_by_the_naive():.0f} events lost per 1,000")


def _ends_wrongly(told: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether somebody who drops what has a lower rank is left with another status than the last."""
    last: Mapping[str, Any] = {"status_rank": -1}
    for message in told:
        last = last if message["status_rank"] < last["status_rank"] else message
    return (last["status"], last["terminal"]) != (STATUSES[-1], True)
