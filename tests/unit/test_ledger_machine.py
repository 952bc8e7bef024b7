"""Deliveries, crashes, callbacks, clocks, lost answers in every order: what the ledger promises holds after each step.

Ledger and rules are the real ones; DynamoDB is a table in memory, and Twilio is a list. Each delivery, callback and run
of `resolve` is an actor that stops before and after each of its calls, so that others can act in between.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import product
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import requests
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace
from twilio_connector import aws, ledger, transport
from twilio_connector.ledger import (
    Accepted,
    Claim,
    Event,
    Ledger,
    Lost,
    Overdue,
    Proven,
    Record,
    Refused,
    Reported,
    Sought,
    State,
    after,
    key_id,
    new_claim,
)

from tests.actors import Actor, answer_requests, attempt
from tests.aws_wire import AwsWire

KEY = key_id("default", "key")
LEASE = 60
DAY = 24 * 3600
SOUGHT = Sought(to="+15005550006", body="Hello")
ENDS = ["accepted", "stored, answer lost", "refused", "not stored, answer lost"]
# The last step of a delivery is the seventh, if nothing fails.
STEPS = st.sampled_from([20, 20, 20, 20, 1, 2, 3, 4, 5, 6])
FAULTS: st.SearchStrategy[list[str]] = st.sampled_from(
    [
        *([[]] * 5),
        ["answer lost"],
        ["", "answer lost"],
        ["throttled"],
        ["", "throttled"],
        ["both answers lost"],
        ["", "both answers lost"],
    ]
)
REST = st.sampled_from([20, 20, 0, 1, 2])
SETTINGS = settings(
    max_examples=120, stateful_step_count=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


class Table:
    """DynamoDB as a table in memory, whose calls stop before and after they are carried out."""

    def __init__(self, wire: AwsWire) -> None:
        """Take what keeps the items."""
        self._wire = wire

    def exchange(self, request: requests.PreparedRequest) -> transport.Reply:
        """Answer a request."""
        operation = request.headers["X-Amz-Target"].rpartition(".")[2]
        body = json.loads(request.body or b"")
        if operation == "PutItem":
            faults = actor().faults
            return attempt(actor(), lambda: faults.pop(0) if faults else "", lambda: self._call(operation, body))
        answer = self._call(operation, body)
        if operation == "GetItem":
            actor().stop()
        return answer

    def _call(self, operation: str, body: dict[str, Any]) -> transport.Reply:
        status, answer = self._wire.answer(operation, body)
        return transport.Reply(status, {}, json.dumps(answer).encode())


def actor() -> Actor:
    """Return who is at work."""
    thread = threading.current_thread()
    assert isinstance(thread, Actor)
    return thread


class Sends(RuleBasedStateMachine):
    """One key, and all that can happen to it."""

    wire: ClassVar[AwsWire]
    now: ClassVar[float]
    resends = False

    def __init__(self) -> None:
        """Begin with nothing, at noon."""
        super().__init__()
        self.wire.items.clear()
        Sends.now = 1_800_000_000.0
        self.latest = Sends.now
        """The clock may have been set back since."""
        self.ledger = Ledger("ledger")
        self.actors: list[Actor] = []
        self.lifetime = 0
        """A key that expired begins anew."""
        self.stored: list[tuple[int, str]] = []
        """Lifetime and SID of each message at Twilio."""
        self.resent: Counter[int] = Counter()
        self.reported: list[tuple[int, State]] = []
        self.was_sent = False

    # What can happen

    @initialize(end=st.sampled_from(ENDS[1:]), faults=FAULTS, steps=STEPS)
    def begin(self, end: str, faults: list[str], steps: int) -> None:
        """Somebody sends for the first time."""
        self._act(self._delivery(end, "sqs", faults), steps, 0)

    @rule(end=st.sampled_from(ENDS), faults=FAULTS, caller=st.sampled_from(["sqs", "api"]), steps=STEPS, rest=REST)
    def deliver(self, end: str, faults: list[str], caller: str, steps: int, rest: int) -> None:
        """Somebody sends again, perhaps while others do; for the first time where all expired."""
        self._act(self._delivery(end, caller, faults), steps, rest)

    @precondition(lambda self: self.resends)
    @rule(end=st.sampled_from(ENDS), steps=STEPS, rest=REST)
    def resend(self, end: str, steps: int, rest: int) -> None:
        """Somebody asks for a repetition of what is unknown."""
        self._act(self._delivery(end, "api", [], resend=True), steps, rest)

    @precondition(lambda self: self._sids())
    @rule(which=st.integers(0, 9), steps=STEPS, rest=REST)
    def call_back(self, which: int, steps: int, rest: int) -> None:
        """Twilio tells of a message, early, late or again."""
        sids = self._sids()
        self._act(Actor(lambda _: self._prove(sids[which % len(sids)])), steps, rest)

    @precondition(lambda self: self.wire.items)
    @rule(is_due=st.booleans(), steps=STEPS, rest=REST)
    def resolve(self, steps: int, rest: int, *, is_due: bool) -> None:
        """Begin a run of `resolve`."""
        self._act(Actor(lambda actor: self._resolve(actor, is_due=is_due)), steps, rest)

    @precondition(lambda self: self.actors)
    @rule(which=st.integers(0, 9))
    def crash(self, which: int) -> None:
        """One of them dies where it is."""
        self.actors.pop(which % len(self.actors)).crash()

    @precondition(lambda self: self.wire.items)
    @rule(seconds=st.sampled_from([LEASE, 1000, -LEASE, -1]))
    def jump(self, seconds: int) -> None:
        """Let the clock go on, or set it back."""
        Sends.now += seconds
        self.latest = max(self.latest, Sends.now)

    @precondition(lambda self: self.wire.items and not self.actors and not self.lifetime)
    @rule(is_deleted=st.booleans())
    def expire(self, *, is_deleted: bool) -> None:
        """Thirty days pass, and DynamoDB deletes the item, or has not come to it."""
        Sends.now = self.latest = self.latest + 31 * DAY
        self.lifetime += 1
        self.was_sent = False
        if is_deleted:
            self.wire.items.clear()

    # What must hold

    @invariant()
    def sends_once(self) -> None:
        """At most one message per lifetime of the key, and one for each repetition that somebody asked for."""
        stored = Counter(lifetime for lifetime, _ in self.stored)

        assert all(count <= 1 + self.resent[lifetime] for lifetime, count in stored.items()), "sent twice"

    @invariant()
    def says_what_is(self) -> None:
        """Not sent is what Twilio has not, and sent is what it has."""
        record = self._record()
        sids = self._sids()
        if record and record.state is State.NOT_SENT:
            assert not sids, "said not sent, and was"
        if record and record.state is State.SENT:
            assert (record.message or {})["sid"] in sids, "said sent, and was not"

    @invariant()
    def never_goes_back(self) -> None:
        """Keep what was proven."""
        record = self._record()
        is_sent = bool(record and record.state is State.SENT)

        assert is_sent or not self.was_sent, "was sent, and is not any more"
        self.was_sent = is_sent

    def teardown(self) -> None:
        """With enough time and runs of `resolve` every key is settled, and what a callback proved was told."""
        for actor in self.actors:
            actor.crash()
        Sends.now = self.latest + LEASE
        for _ in range(2):
            actor = Actor(lambda actor: self._resolve(actor, is_due=True))
            while actor.step():
                pass
        record = self._record()
        if record:
            assert record.settled, "left open"
            assert record.state is not State.SENDING, "left open"
            if record.state is State.SENT and "uri" not in (record.message or {}):
                assert (self.lifetime, State.SENT) in self.reported, "proven, and nobody was told"

    # What each of them does

    def _act(self, actor: Actor, steps: int, rest: int) -> None:
        """Let one of them make so many steps, and those that it interrupted the rest of theirs."""
        turns = [(actor, steps), *((interrupted, rest) for interrupted in self.actors)]
        self.actors = []
        for each, count in turns:
            if all(each.step() for _ in range(count)):
                self.actors.append(each)
            self.never_goes_back()

    def _delivery(self, end: str, caller: str, faults: Iterable[str], *, resend: bool = False) -> Actor:
        return Actor(lambda actor: self._send(actor, end, caller, resend=resend), faults)

    def _send(self, actor: Actor, end: str, caller: str, *, resend: bool) -> None:
        claim = new_claim(
            idempotency_key="key",
            connection="default",
            caller=caller,
            same="same",
            sms={"to": "+15005550006"},
            sought=SOUGHT,
            lease_seconds=LEASE,
        )
        record = self.ledger.write(Claim(claim, resend))
        if record.nonce != claim.nonce or record.state is not State.SENDING:
            return
        if resend:
            self.resent[self.lifetime] += 1
        sid = f"SM{len(self.stored) + 1:032x}"
        if end in {"accepted", "stored, answer lost"}:
            self.stored.append((self.lifetime, sid))
        actor.stop()
        events: dict[str, Event] = {
            "accepted": Accepted({"sid": sid, "uri": "/"}),
            "refused": Refused(claim.nonce, {"title": "TwilioRejectedError"}),
        }
        self.ledger.write(events.get(end, Lost(claim.nonce)), record)

    def _prove(self, sid: str) -> None:
        if record := self.ledger.find(KEY):
            self.ledger.write(Proven({"sid": sid}), record)

    def _resolve(self, actor: Actor, *, is_due: bool) -> None:
        for record in self.ledger.unsettled():
            if record.state is not State.UNKNOWN and record.lease_until > self.now:
                continue
            known = self.ledger.write(Overdue(), record)
            if known and not known.settled and (is_due or known.state is State.SENT):
                self.reported.append((self.lifetime, known.state))
                actor.stop()
                self.ledger.write(Reported(known.state), known)

    def _sids(self) -> list[str]:
        return [sid for lifetime, sid in self.stored if lifetime == self.lifetime]

    def _record(self) -> Record | None:
        item = self.wire.items.get(KEY)
        record = ledger._record(item) if item else None
        return record if record and record.expires_at > self.now else None


class Resends(Sends):
    """Some callers ask for a repetition of what is unknown."""

    resends = True


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the table in the place of DynamoDB, and the machine's clock in that of the ledger."""
    wire = AwsWire()
    wire._server.server_close()  # it is asked without a network
    monkeypatch.setattr(Sends, "wire", wire, raising=False)
    answer_requests(monkeypatch, Table(wire).exchange)
    monkeypatch.setattr(aws, "_LONGEST_PAUSE", 0)
    monkeypatch.setattr(ledger, "time", SimpleNamespace(time=lambda: Sends.now))


def every_interruption(machine: type[Sends]) -> None:
    """Let everything be interrupted by everything else, at each of its steps, after each beginning."""
    acts: list[Callable[[Sends, int], None]] = [
        lambda sends, steps: sends.deliver("accepted", [], "sqs", steps, 20),
        lambda sends, steps: sends.deliver("refused", [], "sqs", steps, 20),
        lambda sends, steps: sends.resolve(steps, 20, is_due=True),
        lambda sends, steps: sends.call_back(0, steps, 20) if sends._sids() else None,
        *([lambda sends, steps: sends.resend("refused", steps, 20)] if machine.resends else []),
    ]
    ends = [end for end in ENDS if "lost" in end] if machine.resends else ENDS  # only these are sent again
    # Claimed; carried out; over. The lease matters only to what is not over.
    for end, (begun, seconds) in product(ends, ((2, 0), (2, LEASE), (3, 0), (3, LEASE), (20, 0))):
        for first, steps, second in product(acts, (1, 2, 4, 20), acts):
            sends = machine()
            sends.begin(end, [], begun)
            sends.jump(seconds)
            first(sends, steps)
            check(sends)
            second(sends, 20)
            check(sends)
            sends.teardown()


def check(sends: Sends) -> None:
    """Check what must hold."""
    sends.sends_once()
    sends.says_what_is()
    sends.never_goes_back()


@pytest.mark.parametrize("machine", [Sends, Resends])
def test_the_promises_hold_at_every_interruption(machine: type[Sends]) -> None:
    """All pairs of things that happen, after all beginnings."""
    every_interruption(machine)


@pytest.mark.parametrize("machine", [Sends, Resends])
def test_the_promises_hold_in_every_order(machine: type[Sends]) -> None:
    """At most one message, nothing said that is not so, nothing left open, whatever else happens."""
    run_state_machine_as_test(machine, settings=SETTINGS)


def over_unknown(record: Record | None, event: Event, now: float) -> Record | None:
    """Claim what is unknown."""
    is_unknown = record is not None and record.state is State.UNKNOWN
    return event.record if is_unknown and isinstance(event, Claim) else after(record, event, now)


def over_overdue(record: Record | None, event: Event, now: float) -> Record | None:
    """Claim what is past its lease."""
    is_overdue = record is not None and record.state is State.SENDING and record.lease_until <= now
    return event.record if is_overdue and isinstance(event, Claim) else after(record, event, now)


def lost_is_not_sent(record: Record | None, event: Event, now: float) -> Record | None:
    """Take what was lost for what was refused."""
    return after(record, Refused(event.nonce, {}) if isinstance(event, Lost) else event, now)


def no_doubt(record: Record | None, event: Event, now: float) -> Record | None:
    """Take the refusal of a repetition for that of the first request."""
    return after(record and replace(record, doubtful=False), event, now)


def lost_goes_back(record: Record | None, event: Event, now: float) -> Record | None:
    """Forget what a callback proved."""
    if record is not None and isinstance(event, Lost) and record.nonce == event.nonce:
        return replace(record, state=State.UNKNOWN, settled=False, message=None)
    return after(record, event, now)


def never_overdue(record: Record | None, event: Event, now: float) -> Record | None:
    """Wait for a sender that died."""
    return record if isinstance(event, Overdue) else after(record, event, now)


def told_is_told(record: Record | None, event: Event, now: float) -> Record | None:
    """Take what was told for what became of it meanwhile."""
    return after(record, Reported(record.state) if record and isinstance(event, Reported) else event, now)


@pytest.mark.parametrize(
    ("broken", "machine", "seen"),
    [
        (over_unknown, Sends, "sent twice"),
        (over_overdue, Sends, "sent twice"),
        (lost_is_not_sent, Sends, "said not sent, and was"),
        (no_doubt, Resends, "said not sent, and was"),
        (lost_goes_back, Sends, "was sent, and is not any more"),
        (never_overdue, Sends, "left open"),
        (told_is_told, Sends, "proven, and nobody was told"),
    ],
)
def test_a_broken_rule_is_seen(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Record | None], machine: type[Sends], seen: str
) -> None:
    """Or the tests above would prove nothing."""
    monkeypatch.setattr(ledger, "after", broken)

    with pytest.raises(AssertionError, match=seen):
        every_interruption(machine)


def test_a_write_without_condition_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules alone are not enough."""
    put = Ledger._put
    monkeypatch.setattr(Ledger, "_put", lambda *arguments, **_: put(*arguments, anyway=True))

    with pytest.raises(AssertionError, match=r"said|sent"):
        every_interruption(Sends)


def test_a_broken_rule_is_seen_in_some_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the machine itself."""
    monkeypatch.setattr(ledger, "after", lost_is_not_sent)

    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine_as_test(Sends, settings=settings(SETTINGS, phases=[Phase.generate]))
