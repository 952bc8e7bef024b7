"""Judge the webhooks of a run from its files: deliveries, answers, injected faults and published events."""

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos import journal
from tests.chaos.table import Row, counts, figure, killed, row
from tests.chaos.webhooks import CRASHES, NAIVE, STATUSES, Stage, digest, names

LEAST_LOST = 10
"""The naive receiver must lose more events per 1,000 than this; otherwise the faults were too weak."""
LEAST_HIT = 0.5
"""The least share of webhooks with a fault that a fault reaches, and of crash webhooks whose process is killed."""
MOST_GIVEN_UP = 0.01
"""The largest share of webhooks that Twilio may give up."""
MOST_SLOW = 0.02
"""The largest share of events marked, and of webhooks refused, because this machine is too slow for a time limit."""

_OK = 200
_REFUSED = (400, 403, 413)
_OF_OTHERS = (
    {"greeting"},
    {
        "AccountSid", "MessageSid", "SmsSid", "SmsStatus", "MessageStatus", "To", "From", "Body", "NumMedia",
        "NumSegments", "ApiVersion",
    },
)  # fmt: skip
"""The parameters of the webhook that starts processes, and of the callbacks of Twilio's emulator."""
_BUFFER_SECONDS = 6  # for two attempts to put an event in the buffer, both of which time out
_SLACK = 1  # seconds between a fault and the line that records it


class Answer(NamedTuple):
    """The answer to a delivery, and when it began and ended. If the connection broke, the status is None."""

    status: int | None
    began: float
    ended: float


class Fault(NamedTuple):
    """A fault that was injected into a call to AWS."""

    kind: str
    at: float

    @property
    def operation(self) -> str:
        """The operation that was called."""
        return self.kind.partition(".")[0]


@dataclass
class Hook:
    """All records about one webhook."""

    kind: str
    part: str
    events: list[str]
    crash: str | None = None
    is_marked: bool = False
    about: int = 0
    status: str | None = None
    stage: str = Stage.BEFORE
    says: dict[str, str] = field(default_factory=dict)
    """A digest of Twilio's parameters for each event, by the event's name."""
    answers: list[Answer] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def is_accepted(self) -> bool:
        """Whether a delivery was answered 200."""
        return any(answer.status == _OK for answer in self.answers)

    @property
    def is_killed(self) -> bool:
        """Whether a process that handled the webhook was killed."""
        return any("kill" in fault.kind for fault in self.faults)

    def explains(self, answer: Answer, token: Sequence[Fault]) -> bool:
        """Return whether the injected faults explain why a delivery was not accepted."""
        own, read = (
            [fault for fault in faults if answer.began - _SLACK <= fault.at <= answer.ended + _SLACK]
            for faults in (self.faults, token)
        )
        if answer.status in {None, 500, 502, 504}:
            return any("kill" in fault.kind for fault in own)
        operations = {fault.operation for fault in own}
        if answer.status != 503 or ({"PutEvents", "SendMessage"} <= operations or bool(read)):
            return answer.status == 503
        return "PutEvents" in operations and self.is_slow(answer)

    @staticmethod
    def is_slow(answer: Answer) -> bool:
        """Return whether a 503 came so late that the buffer on this machine may have missed its time limit."""
        return answer.status == 503 and answer.ended - answer.began > _BUFFER_SECONDS


class Published:
    """The webhooks of the judged runs, read from their files."""

    def __init__(self, *folders: Path) -> None:
        """Read the folders of runs."""
        self.hooks: dict[str, Hook] = {}
        self._naive: dict[str, Hook] = {}
        for each in journal.read(folders, journal.HOOKS):
            [name] = names(each["hook"])
            hook = Hook(
                each["kind"],
                each["part"],
                each["events"],
                each["crash"],
                "aws=" in each["hook"],
                each["about"],
                each["status"],
                each["stage"],
                each["says"],
            )
            (self._naive if name.startswith(NAIVE) else self.hooks).setdefault(name, hook)
        every = self.hooks | self._naive
        for each in journal.read(folders, journal.HOOK_ANSWERS):
            [name] = names(each["hook"])
            every[name].answers.append(Answer(each["status"], each["began"], each["at"]))
        self._token: list[Fault] = []
        self.kinds = Counter[str]()
        for each in journal.read(folders, journal.FAULTS):
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
        self._readings: dict[str, bool] = {}
        """Whether each event has the parameters that Twilio sent."""
        self._forged = {
            f"{names(each['hook'])[0]}, forged: {each['status']}": (self.hooks[names(each["hook"])[0]], each["status"])
            for each in journal.read(folders, journal.FORGED)
        }
        self._left_alone = {each["key"]: each for each in journal.read(folders, journal.LEFT_ALONE)}
        for each in journal.read(folders, journal.BUS):
            self._learn(each["event"])

    def _learn(self, event: Mapping[str, Any]) -> None:
        """Record an event for its webhook, whose name is in the event's parameters."""
        detail = event["detail"]
        if event["source"] == NAIVE:
            self.marks[names(json.dumps(detail))[0]].append(None)
        if event["source"] != "twilio":
            return
        mark = detail.get("deduplication")
        parameters = detail["parameters"]
        found = names(json.dumps(parameters))
        if not found:  # a callback of Twilio's emulator, or a webhook that starts a process
            self._others[detail["deduplication_id"]].append(mark)
            self._readings[f"{event['id']} {detail['deduplication_id']}"] = parameters.keys() in _OF_OTHERS
            return
        if found[0] not in self.marks:
            self.strangers.append(found[0])
            return
        says = self.hooks[found[0].partition("/")[0]].says
        self._readings[f"{event['id']} {found[0]}"] = says[found[0]] == digest(parameters)
        self.marks[found[0]].append(mark)
        if self.hooks[found[0].partition("/")[0]].part == "order":
            self._told[detail["message"]["sid"]].append(detail["message"])

    def violations(self) -> list[Row]:
        """Return a row for each kind of violation, with the webhooks or events concerned."""
        events = {name: self.marks[name] for hook in self.hooks.values() for name in hook.events}
        accepted = {name: events[name] for hook in self.hooks.values() if hook.is_accepted for name in hook.events}
        answers = {
            f"{name}, delivery {number}: {answer.status}": (hook, answer)
            for name, hook in self.hooks.items()
            for number, answer in enumerate(hook.answers, start=1)
        }
        away = {
            name: marks
            for name, marks in events.items()
            if self.hooks[name.partition("/")[0]].stage == Stage.TABLE_AWAY and marks
        }
        return [
            row("genuine webhook refused", answers, lambda each: each[1].status in _REFUSED),
            row("a reading that Twilio did not send", self._readings, lambda is_right: not is_right),
            row("another reading, accepted", self._forged, lambda each: self._is_taken(*each)),
            row("DynamoDB away, and not marked", away, lambda marks: None in marks),
            row("DynamoDB away, ledger written", self._left_alone, lambda each: each["away"] != [_OK, "unknown"]),
            row("event of a webhook, lost", accepted, lambda marks: not marks),
            row("event twice, and not marked", events | self._others, lambda marks: marks.count(None) > 1),
            row("not accepted, and nothing failed", answers, lambda each: not self._is_right(*each)),
            row("statuses that end wrongly", self._told, _ends_wrongly),
        ]

    def _is_right(self, hook: Hook, answer: Answer) -> bool:
        return answer.status in {_OK, *_REFUSED} or hook.explains(answer, self._token)

    def _is_taken(self, hook: Hook, status: int | None) -> bool:
        """Return whether another reading was accepted although the connector had stored the first one."""
        is_known = hook.is_accepted and not any("unavailable" in self.marks[name] for name in hook.events)
        return is_known and status == _OK

    def void(self) -> list[str]:
        """Return the reasons why the webhooks of a run prove nothing."""
        if not self.hooks:
            return ["no webhook was delivered"]
        given_up = sum(not hook.is_accepted for hook in self.hooks.values())
        spoilt, lost = len(self.unexplained_marks()), self.lost_by_the_naive()
        told = [each for each in self._left_alone.values() if each["back"] == [_OK, "sent"]]
        reasons = {
            f"{given_up} webhooks were given up": given_up > MOST_GIVEN_UP * len(self.hooks),
            f"faults reached {self.hit():.0%} of the webhooks that name one": self.hit() < LEAST_HIT,
            f"statuses came in {len(self.orders())} orders": len(self.orders()) < len(list(permutations(STATUSES))),
            "no event was marked": not self.marked("uncertain") or not self.marked("unavailable"),
            f"{spoilt} events are marked, and no fault is on record that did it": spoilt > MOST_SLOW * len(self.marks),
            f"{self.slow()} webhooks were refused since this machine was slow": self.slow()
            > MOST_SLOW * len(self.hooks),
            "nobody posted another reading": not self._forged,
            "no callback without DynamoDB could have told of a key": not told,
            f"the naive receiver lost {lost:.0f} per 1,000: faults do not bite": lost <= LEAST_LOST,
        }
        idle = [
            f"{hit} of {hooks} processes were killed {point}"
            for point, (hooks, hit) in self.crashes().items()
            if hit < LEAST_HIT * hooks or not hooks
        ]
        return [*idle, *(reason for reason, is_so in reasons.items() if is_so)]

    def hit(self) -> float:
        """Return the share of webhooks with planned faults that at least one fault reached."""
        marked = [hook for hook in self.hooks.values() if hook.is_marked]
        return sum(bool(hook.faults) for hook in marked) / len(marked) if marked else 0.0

    def crashes(self) -> dict[str, tuple[int, int]]:
        """Return for each crash point the number of webhooks, and the number of those whose process was killed."""
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
        """Return how many events have this `deduplication` mark."""
        return sum(marks.count(mark) for marks in self.marks.values())

    def unexplained_marks(self) -> list[str]:
        """Return the events that are marked although no fault is recorded for their webhook.

        An event that was buffered while the bus was unavailable may be published while DynamoDB is unavailable. Its
        mark `unavailable` then counts as explained.
        """
        spared = [hook for hook in self.hooks.values() if not hook.faults and hook.stage != Stage.TABLE_AWAY]
        return [
            name
            for hook in spared
            for name in hook.events
            if {*self.marks[name]} - ({None, "unavailable"} if hook.stage == Stage.BUS_AWAY else {None})
        ]

    def slow(self) -> int:
        """Return how many deliveries were answered 503 after more time than the buffer may take."""
        return sum(hook.is_slow(answer) for hook in self.hooks.values() for answer in hook.answers)

    def lost_by_the_naive(self) -> float:
        """Return the events per 1,000 that the naive receiver lost."""
        accepted = [name for hook in self._naive.values() if hook.is_accepted for name in hook.events]
        lost = sum(not self.marks[name] for name in accepted)
        return 1000 * lost / len(accepted) if accepted else 0.0

    def table(self) -> Iterator[str]:
        """Yield the lines of the printed table that concern webhooks."""
        if not self.hooks:
            return
        answers = [answer for hook in self.hooks.values() for answer in hook.answers]
        events = [name for hook in self.hooks.values() for name in hook.events]
        statuses = Counter(str(answer.status or "broken") for answer in answers)
        told = ", ".join(f"{status} {count:,}" for status, count in statuses.most_common())
        yield figure("webhooks", len(self.hooks), f"{len(answers):,} deliveries: {told}")
        yield figure("  by kind", "", counts(hook.kind for hook in self.hooks.values()))
        copies = [len(self.marks[name]) for name in events]
        yield figure("events", len(events), f"{sum(copies):,} on the bus, {copies.count(1):,} of them once")
        marks = ", ".join(f"{mark} {self.marked(mark):,}" for mark in ("uncertain", "unavailable"))
        yield figure("marked", sum(self.marked(mark) for mark in ("uncertain", "unavailable")), marks)
        yield figure("  though no fault hit their webhook", len(self.unexplained_marks()))
        yield figure("other readings of a signed text", len(self._forged), "posted after the genuine one")
        told = sum(each["back"] == [_OK, "sent"] for each in self._left_alone.values())
        yield figure("callbacks without the memory", len(self._left_alone), f"{told} keys were known by the next one")
        given_up = sum(not hook.is_accepted for hook in self.hooks.values())
        yield figure("given up by Twilio", given_up, "after three deliveries")
        yield figure(
            "faults", self.kinds.total(), f"{len(self.kinds)} kinds, in {self.hit():.0%} of those that name one"
        )
        yield killed(self.crashes())
        yield figure("answered 503 after too long a time", self.slow(), "for the buffer")
        took = [answer.ended - answer.began for answer in answers if answer.status == _OK]
        if len(took) > 1:
            percentiles = statistics.quantiles(took, n=100)
            yield figure("answered 200 after", f"{percentiles[49]:.2f} s", f"99 % within {percentiles[98]:.1f} s")
        yield figure("naive receiver", len(self._naive), f"{self.lost_by_the_naive():.0f} events lost per 1,000")


def _ends_wrongly(told: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a consumer that ignores statuses of lower rank ends with another status than the last."""
    last: Mapping[str, Any] = {"status_rank": -1}
    for message in told:
        last = last if message["status_rank"] < last["status_rank"] else message
    return (last["status"], last["terminal"]) != (STATUSES[-1], True)
