"""Judge a run from its files alone: requests, answers, injected faults, Twilio's messages, and reports on the bus."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.chaos import journal
from tests.chaos.published import Published
from tests.chaos.schedule import CRASHES, OUTAGES, WAITING, Callback, Part, key_of
from tests.chaos.table import Row, counts, figure, killed, row
from tests.chaos.webhooks import names

_COLUMNS = 3
_LEASE_SECONDS = 30  # SendLease in a run
_BATCH_SECONDS = 5  # the most time for which a batch runs on after Twilio refused one of its records
LEAST_KINDS = 20
LEAST_CONTROL = 100
"""The naive client must send more duplicates per 1,000 than this; otherwise the faults were too weak."""
LEAST_HIT = 0.5
"""The least share of keys with a fault that a fault reaches, and of crash keys whose process is killed."""

ANSWER = "answer"
LIST = "list"
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
"""The errors that mean that nothing was sent, as the documentation says."""
LATER = frozenset({"ServiceUnavailableError", "TwilioRateLimitError", "SenderQueueFullError", "TwilioUnavailableError"})
"""The errors in `NOTHING_SENT` after which a retry with the same key may succeed."""
EARLY = frozenset(
    {
        "InvalidInputError",
        "ConnectionNotFoundError",
        "ConnectionInvalidError",
        "ServiceUnavailableError",
        "InternalError",
    }
)
"""The errors in `NOTHING_SENT` that come before the key is looked up. An earlier call may still have sent the key."""


@dataclass
class Key:
    """All records about one key."""

    channel: str
    part: str
    crash: str | None = None
    markers: tuple[str, ...] = ()
    callback: str = Callback.OURS
    words: str = ""
    """The key in its text; other keys may have the same text."""
    stored: list[str] = field(default_factory=list)
    """The SIDs of its own messages at Twilio."""
    called_back: bool = False
    """Whether Twilio was asked to send callbacks about one of them to the connector."""
    said: dict[str, set[str]] = field(default_factory=dict)
    """The SIDs that answers and events reported for it, each with its evidence."""
    known: dict[str, Any] = field(default_factory=dict)
    """The connector's final answer about it."""
    refused: set[str] = field(default_factory=set)
    last_error: str | None = None
    doubt: bool = False
    """Whether an earlier call may have sent it."""
    failed: bool = False
    unknown: bool = False
    redriven: int = 0
    set_aside: int = 0
    """How often it was put in the failed queue."""
    second: set[str] = field(default_factory=set)
    """The errors with which another input was answered."""
    second_sent: bool = False

    @property
    def said_sent(self) -> set[str]:
        """The SIDs that answers and events reported for it."""
        return {*self.said}

    @property
    def end(self) -> str | None:
        """Its final state: the connector's final answer, or else the state from answers and events."""
        return self.known.get("state") or self.state

    @property
    def proven(self) -> set[str]:
        """The SIDs that are reported on the evidence of an answer or a callback."""
        return {sid for sid, evidence in self.said.items() if evidence - {LIST}} | self._last(LIST, is_it=False)

    @property
    def listed(self) -> set[str]:
        """The SIDs that are reported on the evidence of Twilio's list."""
        return {sid for sid, evidence in self.said.items() if LIST in evidence} | self._last(LIST, is_it=True)

    def _last(self, evidence: str, *, is_it: bool) -> set[str]:
        sid = self.known.get("sid") if self.known.get("state") == "sent" else None
        return {sid} if sid and (self.known.get("evidence") == evidence) is is_it else set()

    @property
    def state(self) -> str | None:
        """The state from answers and events: `sent`, `unknown`, `not_sent`, or None if the key has not ended."""
        if self.said_sent:
            return "sent"
        if self.unknown:
            return "unknown"
        if self.failed or self.last_error in NOTHING_SENT:
            return "not_sent"
        return None

    def hear(self, answer: Mapping[str, Any]) -> None:
        """Record an answer to a caller."""
        if answer.get("input") == 2:
            self.second_sent = self.second_sent or answer["answer"] == "message"
            self.second |= {answer["error"]} if answer["answer"] == "error" else set()
            return
        if answer["answer"] == "message":
            self.said.setdefault(answer["sid"], set()).add(answer.get("evidence") or ANSWER)
        elif answer["answer"] == "error" and not (self.doubt and answer["error"] in EARLY):
            self.last_error = answer["error"]
            self.doubt = self.last_error not in NOTHING_SENT
            self.refused |= {self.last_error} & (NOTHING_SENT - LATER)
        else:
            self.last_error = None
            self.doubt = True

    def learn(self, event: Mapping[str, Any]) -> None:
        """Record an event of the bus."""
        detail = event["detail"]
        match event["detail-type"]:
            case "Message Sent":
                self.said.setdefault(detail["message"]["sid"], set()).add(detail.get("evidence") or ANSWER)
            case "Message Failed" if detail["error"]["title"] != CONFLICT:
                self.failed = True
            case "Message Outcome Unknown":
                self.unknown = True


class Run:
    """The judged runs, read from their files; each run has its own seed."""

    def __init__(self, *folders: Path) -> None:
        """Read the folders of runs."""
        self.facts: list[dict[str, Any]] = [json.loads((folder / "run.json").read_text()) for folder in folders]
        self.keys: dict[str, Key] = {}
        self.calls = 0
        self._given = {
            line["known_as"]: line["key"] for line in journal.read(folders, journal.ANSWERS) if _is_given(line)
        }
        self._without: set[str] = set()
        for line in journal.read(folders, journal.INTENTS):
            self._asked(line)
        self.faults = [line for line in journal.read(folders, journal.FAULTS) if not names(line["key"] or "")]
        self.strangers: list[str] = []
        self.control: dict[str | None, int] = {line["key"]: 0 for line in journal.read(folders, journal.CONTROL)}
        self.copies: dict[str, str] = {}
        """The SIDs of strangers' messages, each with the key in its text."""
        self._store(folders)
        for line in sorted(journal.read(folders, journal.ANSWERS), key=lambda line: float(line["at"])):
            self.keys[line["key"]].hear(line)
        self.events = Counter[str]()
        for line in journal.read(folders, journal.BUS):
            self._learn(line["event"])
        for line in journal.read(folders, journal.KNOWN):
            self.keys[line["key"]].known = line
        self.failed_queue = [*journal.read(folders, journal.FAILED)]
        for line in self.failed_queue:
            if key := self._key(_body(line).get("idempotency_key")):
                key.set_aside += 1
        self.resolved = [*journal.read(folders, journal.RESOLVED)]
        self.timeouts = [line["function"] for line in journal.read(folders, journal.TIMEOUTS)]
        self.published = Published(*folders)

    def _asked(self, line: Mapping[str, Any]) -> None:
        self.calls += 1
        if line.get("redriven"):
            if key := self._key(line["key"]):
                key.redriven += 1
            return
        markers, callback = tuple(line.get("markers", ())), line.get("callback", Callback.OURS)
        words = line.get("words") or line["key"]
        self.keys.setdefault(
            line["key"], Key(line["channel"], line["part"], line.get("crash"), markers, callback, words)
        )
        if not line.get("has_key", True):
            self._without.add(line["key"])

    def _store(self, folders: Sequence[Path]) -> None:
        """Assign each of Twilio's messages to the key, naive client or stranger that sent it."""
        made = {line["sid"]: line for line in journal.read(folders, journal.MADE)}
        for line in journal.read(folders, journal.TRUTH):
            sid, words = line["sid"], key_of(line["body"] or "")
            name = made[sid]["key"] if sid in made else words
            if name in self.control:
                self.control[name] += 1
            elif name in self.keys:
                self.keys[name].stored.append(sid)
                self.keys[name].called_back |= bool(sid in made and made[sid]["callback"])
            elif sid in made and name is None and words:
                self.copies[sid] = words
            else:
                self.strangers.append(sid)

    def _key(self, name: object) -> Key | None:
        return self.keys.get(self._given.get(str(name), str(name)))

    def _learn(self, event: Mapping[str, Any]) -> None:
        name = event["detail"].get("idempotency_key")
        if event.get("source") == "twilio-connector":
            self.events[event["detail-type"]] += 1
            if key := self._key(name):
                key.learn(event)
            else:
                self.strangers.append(str(name))

    def violations(self) -> list[Row]:
        """Return a row for each kind of violation, with the keys concerned."""
        every, races, conflicts = self.keys, self.of_part(Part.RACE), self.of_part(Part.CONFLICT)
        ours = {name: key for name, key in every.items() if key.callback == Callback.OURS}
        outages = {
            name: key
            for name, key in every.items()
            if key.part in OUTAGES and not _is_refused(key) and not self._is_caught(key)
        }
        again = self._delivered_again()
        aside = {name: key for name, key in every.items() if key.set_aside and name not in self._doubtful()}
        twice = {name for name, key in aside.items() if key.set_aside > 1 + key.redriven + again[name]}
        owners: dict[str, list[str]] = defaultdict(list)
        for name, key in every.items():
            for sid in key.proven | ({key.known["sid"]} if key.known.get("state") == "sent" else set()):
                owners[sid].append(name)
        queued = {line["body"]: line for line in self.failed_queue}
        strangers = [*self.strangers, *self.published.strangers]
        return [
            row("sent twice", every, lambda key: len(key.stored) > 1),
            row("said sent on proof, not stored", every, lambda key: bool(key.proven - {*key.stored})),
            row("said sent on the list, callbacks come", ours, lambda key: bool(key.listed)),
            row("said sent, another key's message", every, self._is_anothers),
            row("one SID at two keys", owners, lambda names: len(names) > 1),
            row("said not sent, but stored", every, _lied),
            row("without a final state", every, lambda key: key.state is None),
            row("could be known, but is unknown", self.knowable(), lambda key: key.end in {"unknown", "sending"}),
            row("given up in an outage", outages, _given_up),
            row("twice in the failed queue", {name: name in twice for name in aside}, bool),
            row("failed queue, no key", queued, lambda line: not _has_key(line)),
            row("same-key race, not stored once", races, lambda key: len(key.stored) != 1),
            row("other input, no conflict", conflicts, _accepted),
            Row("ended by its time limit", self.timeouts, self.calls),
            *self.published.violations(),
            Row("nobody's message or event", strangers, len(strangers)),
        ]

    def knowable(self) -> dict[str, Key]:
        """Return the keys whose outcome the connector can know, from an answer, a callback or Twilio's list."""
        hit = {line["key"] for line in self.faults}
        alike: dict[str, list[str]] = defaultdict(list)
        for name, key in self.keys.items():
            alike[key.words].append(name)
        copied = Counter(self.copies.values())
        return {
            name: key
            for name, key in self.keys.items()
            if (key.stored and key.called_back)
            or (key.stored and key.callback != Callback.OURS and self._is_alone(name, alike[key.words], copied))
            or (name not in hit and key.channel in WAITING and key.part != Part.CRASH)
        }

    def _is_alone(self, name: str, alike: Sequence[str], copied: Mapping[str, int]) -> bool:
        """Return whether Twilio's list identifies the message of a key.

        It does if no stranger sent the same text, and each other key with this text is proven sent or was not sent.
        """
        others = [self.keys[other] for other in alike if other != name]
        return not copied.get(self.keys[name].words) and all(
            other.proven or other.end == "not_sent" for other in others
        )

    def _is_anothers(self, key: Key) -> bool:
        """Return whether the connector's final answer about a key names the message of another key."""
        sid = key.known.get("sid") if key.known.get("state") == "sent" else None
        return sid is not None and sid not in key.stored and sid not in self.copies

    def mistaken(self) -> dict[str, Key]:
        """Return the keys that are reported as sent because Twilio's list shows a stranger's message."""
        return {name: key for name, key in self.keys.items() if key.listed & self.copies.keys()}

    def _is_caught(self, key: Key) -> bool:
        """Return whether a kill for another key may have ended the process that was sending this key."""
        if key.stored or not (claimed_at := key.known.get("claimed_at")):
            return False
        claimed = datetime.fromisoformat(claimed_at).timestamp()
        kills = (float(line["at"]) for line in self.faults if "kill" in line["kind"])
        return any(claimed - _LEASE_SECONDS <= kill <= claimed + _LEASE_SECONDS for kill in kills)

    def _delivered_again(self) -> Counter[str]:
        """Return how often SQS redelivered a key's record because another record of its batch killed the process.

        The connector may have reported the record before the kill. A redelivery counts if Twilio was asked before the
        kill and once more after it. A second report of the same delivery does not count.
        """
        kills = [(float(line["at"]), line["key"]) for line in self.faults if "kill" in line["kind"]]
        asked: dict[str, list[float]] = defaultdict(list)
        for line in self.faults:
            if line["kind"].endswith("_before") and "." not in line["kind"]:  # a fault of Twilio, not of AWS
                asked[line["key"]].append(float(line["at"]))
        return Counter(
            key
            for key, times in asked.items()
            for at, following in pairwise(sorted(times))
            if any(name != key and at <= kill <= min(at + _BATCH_SECONDS, following) for kill, name in kills)
        )

    def _doubtful(self) -> set[str]:
        """Return the keys for which a fault on the way to the failed queue leaves open whether they are there."""
        kinds = ("SendMessage.", "PutItem.", "TransactWriteItems.", "kill")
        return {line["key"] for line in self.faults if any(kind in line["kind"] for kind in kinds)}

    def void(self) -> list[str]:
        """Return the reasons why the run proves nothing."""
        reasons = [reason for facts in self.facts for reason in facts.get("void", [])]
        if not all(facts.get("finished") for facts in self.facts):
            reasons.append("the run did not come to its end")
        if not all(facts.get("outdated") for facts in self.facts):
            reasons.append("no index was behind its table")
        if not self.keys:
            reasons.append("nothing was sent")
        if len(self.kinds()) < LEAST_KINDS:
            reasons.append(f"{len(self.kinds())} kinds of faults, fewer than {LEAST_KINDS}")
        if self.hit() < LEAST_HIT:
            reasons.append(f"faults reached {self.hit():.0%} of the keys that name one")
        reasons += [
            f"{hit} of {keys} processes were killed {point}"
            for point, (keys, hit) in self.crashes().items()
            if hit < LEAST_HIT * keys or not keys
        ]
        reasons += self._idle()
        if self.control_rate() <= LEAST_CONTROL:
            reasons.append(f"the naive client sent {self.control_rate():.0f} duplicates per 1,000: faults do not bite")
        return reasons + self.published.void()

    def _idle(self) -> list[str]:
        """Return a reason for each planned disturbance that did not happen, or happened too rarely."""
        kinds = self.kinds()
        refused = {line["key"] for line in self.faults if line["kind"].startswith("PutEvents.")}
        away, copied = self.of_part(Part.BUS_AWAY), self.of_part(Part.STRANGER)
        taken = {*self._given.values()}
        reasons = {
            "the bus was away for few of those that were sent meanwhile": len(away.keys() & refused)
            < LEAST_HIT * len(away),
            "Secrets Manager did not hang": not kinds["GetSecretValue.hang_before"],
            "few strangers sent the same words": len(self.copies) < LEAST_HIT * len(copied),
            "no two runs of resolve were at work together": not self.overlaps(),
            "a message without key was not taken": bool(self._without - taken),
        }
        return [reason for reason, is_so in reasons.items() if is_so]

    def overlaps(self) -> int:
        """Return how many runs of resolve began while another one was running."""
        spans = sorted((line["began"], line["at"]) for line in self.resolved)
        return sum(later[0] < earlier[1] for earlier, later in pairwise(spans))

    def of_part(self, part: str) -> dict[str, Key]:
        """Return the keys of one part."""
        return {name: key for name, key in self.keys.items() if key.part == part}

    def kinds(self) -> Counter[str]:
        """Return how often each kind of fault was injected into the connector's calls."""
        return Counter(line["kind"] for line in self.faults if line["key"] not in self.control)

    def hit(self) -> float:
        """Return the share of keys with planned faults that at least one fault reached."""
        named = {name for name, key in self.keys.items() if any(mark != "callback=none" for mark in key.markers)}
        return len(named & {line["key"] for line in self.faults}) / len(named) if named else 0.0

    def crashes(self) -> dict[str, tuple[int, int]]:
        """Return for each crash point the number of keys, and the number of those whose process was killed."""
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
    """Return whether a key was reported as not sent although Twilio has its message, unless a redrive sent it later."""
    if key.redriven and key.said_sent:
        return False
    return bool(key.stored) and (key.failed or bool(key.refused) or key.state == "not_sent")


def _given_up(key: Key) -> bool:
    """Return whether a key was given up in an outage that it should have outlasted."""
    return len(key.stored) != 1 or not key.said_sent or key.failed or bool(key.set_aside)


def _accepted(key: Key) -> bool:
    """Return whether another input under the same key was sent, or was not refused as a conflict."""
    return key.second_sent or CONFLICT not in key.second


def _is_refused(key: Key) -> bool:
    """Return whether Twilio refuses a key's message."""
    return any("_before" in marker for marker in key.markers)


def _is_given(line: Mapping[str, Any]) -> bool:
    return bool(line.get("known_as"))


def _body(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a record in the failed queue; an empty one if it is not a JSON object."""
    try:
        body = json.loads(line["body"])
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _has_key(line: Mapping[str, Any]) -> bool:
    """Return whether a record has a key and a connection, so that it can be redriven without being sent twice."""
    return bool(_body(line).get("idempotency_key")) and bool(_body(line).get("connection"))


def table(run: Run) -> Iterator[str]:
    """Yield the lines of the printed table."""
    states = Counter(key.end or "open" for key in run.keys.values())
    stored = sum(len(key.stored) for key in run.keys.values())
    yield figure("seeds", ", ".join(str(facts.get("seed", "?")) for facts in run.facts))
    yield figure("keys", len(run.keys), f"{run.calls:,} calls; {stored:,} messages stored")
    yield figure("  by channel", "", counts(key.channel for key in run.keys.values()))
    yield figure("  by part", "", counts(key.part for key in run.keys.values()))
    yield figure("ended", len(run.keys) - states["open"], counts(key.end or "open" for key in run.keys.values()))
    unknown = [key for key in run.keys.values() if key.end == "unknown"]
    candidates = sum(bool(key.known.get("candidate_sid")) for key in unknown)
    is_stored = sum(bool(key.stored) for key in unknown)
    yield figure("unknown in the end", len(unknown), f"{is_stored:,} of them stored; {candidates:,} name a candidate")
    yield figure("could be known", len(run.knowable()), "from answers, callbacks and the list")
    evidence = Counter(str(key.known.get("evidence")) for key in run.keys.values() if key.known.get("state") == "sent")
    yield figure(
        "sent, on evidence", evidence.total(), ", ".join(f"{name} {n:,}" for name, n in evidence.most_common())
    )
    yield figure("  on the list, a stranger's message", len(run.mistaken()), "where no callback can come")
    yield figure("events", run.events.total(), ", ".join(f"{name} {n:,}" for name, n in run.events.most_common()))
    redriven = sum(bool(key.redriven) for key in run.keys.values())
    yield figure("failed queue", len(run.failed_queue), f"{redriven:,} keys put back in the send queue")
    yield figure("resolve", len(run.resolved), f"{run.overlaps():,} began while another one was at work")
    outdated = sum(facts.get("outdated", 0) for facts in run.facts)
    yield figure("queries of an index", outdated, "were answered as the table was before")
    kinds = run.kinds()
    yield figure("faults", kinds.total(), f"{len(kinds)} kinds, in {run.hit():.0%} of the keys that name one")
    for start in range(0, len(kinds), _COLUMNS):
        few = sorted(kinds.items(), key=lambda each: (-each[1], each[0]))[start : start + _COLUMNS]
        yield "  " + "".join(f"{kind:<35}{count:>5}   " for kind, count in few).rstrip()
    yield killed(run.crashes())
    races = run.of_part(Part.RACE)
    yield figure("same-key races", len(races), f"messages stored {sum(len(key.stored) for key in races.values()):,}")
    rate = f"{sum(run.control.values()):,} stored, {run.control_rate():.0f} duplicates per 1,000"
    yield figure("naive client", len(run.control), rate)
    yield from run.published.table()
    yield ""
    for each in run.violations():
        yield str(each)


def judge(*folders: Path) -> int:
    """Print the table; return 0 only if the runs prove something and have no violation."""
    for folder in folders:
        if not (folder / "run.json").exists():
            print(f"void: {folder} has no run", file=sys.stderr)
            return 1
    run = Run(*folders)
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
    sys.exit(judge(*map(Path, sys.argv[1:])))
