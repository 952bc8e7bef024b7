"""The ledger's promises hold after each step, for deliveries, crashes, callbacks and lost answers in any order.

The clock also jumps. The ledger and its rules are the real ones. DynamoDB is a table in memory, and Twilio is a list.
Each delivery, callback and run of `resolve` is an actor that stops before and after each of its calls, so that other
actors can act in between.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import product
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
from twilio_connector import clock, http
from twilio_connector.aws import client, dynamodb
from twilio_connector.messaging import idempotency_store
from twilio_connector.messaging.idempotency import (
    Accepted,
    ClaimRequested,
    Confirmed,
    Displaced,
    Evidence,
    LeaseExpired,
    Listed,
    MessageMatch,
    OutcomeLost,
    Rejected,
    ReportSent,
    SendEvent,
    SendRecord,
    SendState,
    new_claim,
    record_id,
    transition,
)
from twilio_connector.messaging.idempotency_store import IdempotencyStore

from tests.actors import Actor, answer_requests, attempt
from tests.aws_wire import AwsWire

pytestmark = pytest.mark.exhaustive

LEASE = 60
DAY = 24 * 3600
SOUGHT = MessageMatch(to="+15005550006", body="Hello")
ENDS = ["accepted", "stored, answer lost", "refused", "not stored, answer lost"]
# A delivery takes seven steps if nothing fails.
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
WHICH = st.integers(0, 9)
SETTINGS = settings(
    max_examples=120, stateful_step_count=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


class Table:
    """DynamoDB as a table in memory. The actor stops before and after each write, and after most reads."""

    def __init__(self, wire: AwsWire) -> None:
        """Take the wire that stores the items."""
        self._wire = wire

    def exchange(self, request: requests.PreparedRequest) -> http.Reply:
        """Answer a request."""
        operation = request.headers["X-Amz-Target"].rpartition(".")[2]
        body = json.loads(request.body or b"")
        if operation in {"PutItem", "TransactWriteItems"}:
            faults = actor().faults
            return attempt(actor(), lambda: faults.pop(0) if faults else "", lambda: self._call(operation, body))
        answer = self._call(operation, body)
        if operation == "GetItem" or body.get("IndexName") == "content-index":
            actor().stop()
        return answer

    def _call(self, operation: str, body: dict[str, Any]) -> http.Reply:
        status, answer = self._wire.answer(operation, body)
        return http.Reply(status, {}, json.dumps(answer).encode())


def actor() -> Actor:
    """Return the actor that runs in this thread."""
    thread = threading.current_thread()
    assert isinstance(thread, Actor)
    return thread


class Sends(RuleBasedStateMachine):
    """The state machine: keys of equal messages, and all events that can happen to them."""

    wire: ClassVar[AwsWire]
    now: ClassVar[float]
    resends = False
    keys: tuple[str, ...] = ("key",)
    called_back = frozenset({"key"})
    """The keys for whose messages Twilio sends status callbacks to the webhook."""

    def __init__(self) -> None:
        """Start with an empty ledger at a fixed time."""
        super().__init__()
        self._clear()
        Sends.now = 1_800_000_000.0
        self.latest = Sends.now
        """The latest time that the clock has shown; it may have been set back since."""
        self.ledger = IdempotencyStore("ledger")
        self.actors: list[Actor] = []
        self.lifetime = 0
        """How many times the keys have expired: an expired key starts over."""
        self.stored: list[tuple[int, str, str]] = []
        """Lifetime, key and SID of each message at Twilio."""
        self.resent: Counter[tuple[int, str]] = Counter()
        self.reported: dict[tuple[int, str], tuple[SendState, str | None]] = {}
        """The last report of each key: its state, and the SID."""
        self.is_resolving = False
        self.proven: dict[str, bool] = {}
        self.is_misled = False
        """Another sender sent an equal message, or the index lagged, so the list may lead to a wrong SID."""

    # What can happen

    @initialize(end=st.sampled_from(ENDS[1:]), faults=FAULTS, steps=STEPS)
    def begin(self, end: str, faults: list[str], steps: int) -> None:
        """Send for the first time."""
        self._act(self._delivery(self.keys[-1], end, "sqs", faults), steps, 0)

    @rule(
        which=WHICH, end=st.sampled_from(ENDS), faults=FAULTS, caller=st.sampled_from(["sqs", "api"]), steps=STEPS,
        rest=REST,
    )  # fmt: skip
    def deliver(self, which: int, end: str, faults: list[str], caller: str, steps: int, rest: int) -> None:
        """Send again with one of the keys, perhaps while other actors run; after an expiry this is a first send."""
        self._act(self._delivery(self._key(which), end, caller, faults), steps, rest)

    @precondition(lambda self: self.resends)
    @rule(end=st.sampled_from(ENDS), steps=STEPS, rest=REST)
    def resend(self, end: str, steps: int, rest: int) -> None:
        """Send again with the first key, and ask for a resend if its outcome is unknown."""
        self._act(self._delivery(self.keys[0], end, "api", [], resend=True), steps, rest)

    @precondition(lambda self: self._sids("key"))
    @rule(which=WHICH, steps=STEPS, rest=REST)
    def call_back(self, which: int, steps: int, rest: int) -> None:
        """Let Twilio send a status callback for a message: early, late or as a duplicate."""
        sids = self._sids("key")
        self._act(Actor(lambda _: self._prove("key", sids[which % len(sids)])), steps, rest)

    @precondition(lambda self: self.wire.items)
    @rule(is_due=st.booleans(), is_behind=st.booleans(), steps=STEPS, rest=REST)
    def resolve(self, steps: int, rest: int, *, is_due: bool, is_behind: bool) -> None:
        """Start a run of `resolve`, perhaps with an index that does not list the other keys yet."""
        self._act(Actor(lambda actor: self._resolve(actor, is_due=is_due, is_behind=is_behind)), steps, rest)

    @precondition(lambda self: len(self.keys) > 1)
    @rule()
    def send_without_key(self) -> None:
        """Let another sender send an equal message without a key."""
        self.is_misled = True
        self._store("somebody else")

    @precondition(lambda self: self.actors)
    @rule(which=st.integers(0, 9))
    def crash(self, which: int) -> None:
        """Crash one of the actors at its current step."""
        self.actors.pop(which % len(self.actors)).crash()

    @precondition(lambda self: self.wire.items)
    @rule(seconds=st.sampled_from([LEASE, 1000, -LEASE, -1]))
    def jump(self, seconds: int) -> None:
        """Move the clock forward or back."""
        Sends.now += seconds
        self.latest = max(self.latest, Sends.now)

    @precondition(lambda self: self.wire.items and not self.actors and not self.lifetime)
    @rule(is_deleted=st.booleans())
    def expire(self, *, is_deleted: bool) -> None:
        """Let 31 days pass, so that all keys expire. DynamoDB deletes the items, or has not deleted them yet."""
        Sends.now = self.latest = self.latest + 31 * DAY
        self.lifetime += 1
        self.proven.clear()
        if is_deleted:
            self._clear()

    # What must hold

    @invariant()
    def sends_once(self) -> None:
        """Each key has at most one message per lifetime, and one more for each resend that a caller asked for."""
        stored = Counter((lifetime, key) for lifetime, key, _ in self.stored if key in self.keys)

        assert all(count <= 1 + self.resent[life] for life, count in stored.items()), "sent twice"

    @invariant()
    def says_what_is(self) -> None:
        """Check that Twilio has the message of each `sent` key, and no message of a `not_sent` key.

        If only a misleading list shows the message, it may belong to another sender.
        """
        for key in self.keys:
            record, sids = self._record(key), self._sids(key)
            if record and record.state is SendState.NOT_SENT:
                assert not sids, "said not sent, and was"
            if record and record.evidence is Evidence.LIST:
                assert key not in self.called_back, "said sent by the list, and a callback can come"
                sids += [sid for _, _, sid in self.stored] if self.is_misled else []
            if record and record.state is SendState.SENT:
                assert record.sid in sids, "said sent, and was not"

    @invariant()
    def gives_a_message_to_one_key(self) -> None:
        """Two keys never have the same SID."""
        sids = [record.sid for key in self.keys if (record := self._record(key)) and record.sid]

        assert len(sids) == len(set(sids)), "one message for two keys"

    @invariant()
    def never_goes_back(self) -> None:
        """Check that a key that is proven to be sent stays sent."""
        for key in self.keys:
            record = self._record(key)
            is_proven = bool(record and record.state is SendState.SENT and record.evidence is not Evidence.LIST)

            assert is_proven or not self.proven.get(key), "was sent, and is not any more"
            self.proven[key] = is_proven

    def teardown(self) -> None:
        """With enough time and runs of `resolve`, each key is settled, and its last report has its final state."""
        for actor in self.actors:
            actor.crash()
        Sends.now = self.latest + LEASE
        for _ in range(3):
            actor = Actor(lambda actor: self._resolve(actor, is_due=True, is_behind=False))
            while actor.step():
                pass
        for key in self.keys:
            record = self._record(key)
            if record is None:
                continue
            assert record.settled, "left open"
            assert record.state is not SendState.SENDING, "left open"
            if record.state is SendState.UNKNOWN or (
                record.state is SendState.SENT and "uri" not in (record.message or {})
            ):
                told = self.reported.get((self.lifetime, key))
                assert told == (record.state, record.sid), "what became of it was not told"

    # What each actor does

    def _act(self, actor: Actor, steps: int, rest: int) -> None:
        """Run an actor for this many steps, then each interrupted actor for `rest` steps."""
        turns = [(actor, steps), *((interrupted, rest) for interrupted in self.actors)]
        self.actors = []
        for each, count in turns:
            if all(each.step() for _ in range(count)):
                self.actors.append(each)
            self.never_goes_back()

    def _delivery(self, key: str, end: str, caller: str, faults: Iterable[str], *, resend: bool = False) -> Actor:
        return Actor(lambda actor: self._send(actor, key, end, caller, resend=resend), faults)

    def _send(self, actor: Actor, key: str, end: str, caller: str, *, resend: bool) -> None:
        claim = new_claim(
            idempotency_key=key,
            connection="default",
            caller=caller,
            same="same",
            sms={"to": "+15005550006"},
            sought=SOUGHT,
            lease_seconds=LEASE,
            calls_back=key in self.called_back,
        )
        record = self.ledger.write(ClaimRequested(claim, resend))
        if record.nonce != claim.nonce or record.state is not SendState.SENDING:
            return
        if resend:
            self.resent[self.lifetime, key] += 1
        sid = self._store(key) if end in {"accepted", "stored, answer lost"} else ""
        actor.stop()
        events: dict[str, SendEvent] = {
            "accepted": Accepted({"sid": sid, "uri": "/"}),
            "refused": Rejected(claim.nonce, {"title": "TwilioRejectedError"}),
        }
        self.ledger.write(events.get(end, OutcomeLost(claim.nonce)), record)

    def _prove(self, key: str, sid: str) -> None:
        if record := self.ledger.find(record_id("default", key)):
            self.ledger.write(Confirmed({"sid": sid}), record)

    def _resolve(self, actor: Actor, *, is_due: bool, is_behind: bool) -> None:
        if self.is_resolving:  # another run has the lease
            return
        self.is_resolving = True
        try:
            self._settle_all(actor, is_due=is_due, is_behind=is_behind)
        finally:
            self.is_resolving = False

    def _settle_all(self, actor: Actor, *, is_due: bool, is_behind: bool) -> None:
        for pending in self.ledger.pending():
            record = self.ledger.find(pending)
            if not record or record.settled:
                continue
            if record.state is not SendState.UNKNOWN and record.lease_until > self.now:
                continue
            known = self.ledger.write(LeaseExpired(), record)
            if known and known.state is SendState.UNKNOWN:
                known = self.ledger.write(self._listed(known, is_behind=is_behind), known)
            if known and not known.settled and (is_due or known.state is SendState.SENT):
                self.reported[self.lifetime, known.idempotency_key] = known.state, known.sid
                actor.stop()
                self.ledger.write(ReportSent(known.revision), known)

    def _listed(self, record: SendRecord, *, is_behind: bool) -> Listed:
        """Return what Twilio's list shows, as `sending.look_up` does.

        The list has all messages of this lifetime.
        """
        sids = [sid for lifetime, _, sid in self.stored if lifetime == self.lifetime]
        others = [] if is_behind else self.ledger.others(record)
        self.is_misled = self.is_misled or is_behind
        taken = {other.sid for other in others}
        free = [sid for sid in sids if sid not in taken and not self.ledger.is_taken(sid, record)]
        rival = any(other.state in {SendState.SENDING, SendState.UNKNOWN} for other in others)
        return Listed({"sid": free[0]} if len(free) == 1 else None, rival)

    def _key(self, which: int) -> str:
        return self.keys[which % len(self.keys)]

    def _store(self, key: str) -> str:
        """Store one more message at Twilio, and return its SID."""
        sid = f"SM{len(self.stored) + 1:032x}"
        self.stored.append((self.lifetime, key, sid))
        return sid

    def _clear(self) -> None:
        self.wire.items.clear()
        self.wire.owners.clear()

    def _sids(self, key: str) -> list[str]:
        return [sid for lifetime, sender, sid in self.stored if (lifetime, sender) == (self.lifetime, key)]

    def _record(self, key: str) -> SendRecord | None:
        item = self.wire.items.get(record_id("default", key))
        record = idempotency_store._record(item) if item else None
        return record if record and record.expires_at > self.now else None


class Resends(Sends):
    """Some callers ask to resend a message whose outcome is unknown."""

    resends = True


class Rivals(Sends):
    """Another key has an equal message without status callbacks, and another sender sends one without a key."""

    keys = ("key", "rival")


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace DynamoDB by a table in memory, and the ledger's clock by the machine's clock."""
    wire = AwsWire()
    wire.close()  # the ledger calls it without a network
    monkeypatch.setattr(Sends, "wire", wire, raising=False)
    answer_requests(monkeypatch, Table(wire).exchange)
    monkeypatch.setattr(client, "_LONGEST_PAUSE", 0)
    monkeypatch.setattr(clock, "now", lambda: Sends.now)
    monkeypatch.setattr(clock, "sleep", lambda _: None)
    # Query only the shards of the machines' keys, because queries of empty shards took most of the time.
    shards = {record_id("default", key)[0] for machine in (Sends, Rivals) for key in machine.keys}
    monkeypatch.setattr(idempotency_store, "_SHARDS", "".join(sorted(shards)))


def every_interruption(machine: type[Sends]) -> None:
    """Interrupt each action by each other action, after several numbers of steps and after each beginning."""
    acts: list[Callable[[Sends, int], None]] = [
        lambda sends, steps: sends.deliver(0, "accepted", [], "sqs", steps, 20),
        lambda sends, steps: sends.deliver(0, "refused", [], "sqs", steps, 20),
        lambda sends, steps: sends.resolve(steps, 20, is_due=True, is_behind=False),
        lambda sends, steps: sends.call_back(0, steps, 20) if sends._sids("key") else None,
        *([lambda sends, steps: sends.resolve(steps, 20, is_due=True, is_behind=True)] if machine is Rivals else []),
        *(
            [lambda sends, steps: sends.deliver(0, "stored, answer lost", [], "sqs", steps, 20)]
            if machine is Rivals
            else []
        ),
        *([lambda sends, steps: sends.resend("refused", steps, 20)] if machine.resends else []),
    ]
    # Only a message with an unknown outcome is resent, or searched for in the list.
    ends = ENDS if machine is Sends else [end for end in ENDS if "lost" in end]
    # The first send is claimed, carried out or finished. Its lease matters only until it is finished.
    begins = ((3, LEASE), (20, 0)) if machine is Rivals else ((2, 0), (2, LEASE), (3, 0), (3, LEASE), (20, 0))
    for end, (begun, seconds) in product(ends, begins):
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
    """Check all invariants."""
    sends.sends_once()
    sends.says_what_is()
    sends.gives_a_message_to_one_key()
    sends.never_goes_back()


@pytest.mark.timeout(1200)  # it tries all pairs
@pytest.mark.parametrize("machine", [Sends, Resends, Rivals])
def test_the_promises_hold_at_every_interruption(machine: type[Sends]) -> None:
    """The ledger's promises hold for all pairs of actions, after all beginnings."""
    every_interruption(machine)


@pytest.mark.parametrize("machine", [Sends, Resends, Rivals])
def test_the_promises_hold_in_every_order(machine: type[Sends]) -> None:
    """In any order of events, a key sends at most one message, its state is true, and no key is left open."""
    run_state_machine_as_test(machine, settings=SETTINGS)


def over_unknown(record: SendRecord | None, event: SendEvent, now: float) -> SendRecord | None:
    """Plant a bug: a key with an unknown outcome can be claimed again."""
    is_unknown = record is not None and record.state is SendState.UNKNOWN
    return event.record if is_unknown and isinstance(event, ClaimRequested) else transition(record, event, now)


def over_overdue(record: SendRecord | None, event: SendEvent, now: float) -> SendRecord | None:
    """Plant a bug: a key whose lease expired can be claimed again."""
    is_overdue = record is not None and record.state is SendState.SENDING and record.lease_until <= now
    return event.record if is_overdue and isinstance(event, ClaimRequested) else transition(record, event, now)


def lost_is_not_sent(record: SendRecord | None, event: SendEvent, now: float) -> SendRecord | None:
    """Plant a bug: a lost answer counts as a refusal."""
    return transition(record, Rejected(event.nonce, {}) if isinstance(event, OutcomeLost) else event, now)


def no_doubt(record: SendRecord | None, event: SendEvent, now: float) -> SendRecord | None:
    """Plant a bug: the refusal of a resend counts as the refusal of the first request, too."""
    return transition(record and replace(record, may_have_been_sent=False), event, now)


def lost_goes_back(record: SendRecord | None, event: SendEvent, now: float) -> SendRecord | None:
    """Plant a bug: a lost answer undoes the proof of a callback."""
    if record is not None and isinstance(event, OutcomeLost) and record.nonce == event.nonce:
        return replace(record, state=SendState.UNKNOWN, settled=False, message=None)
    return transition(record, event, now)


def never_overdue(record: SendRecord | None, event: SendEvent, now: float) -> SendRecord | None:
    """Plant a bug: the lease of a crashed sender never expires."""
    return record if isinstance(event, LeaseExpired) else transition(record, event, now)


def told_is_told(record: SendRecord | None, event: SendEvent, now: float) -> SendRecord | None:
    """Plant a bug: the report of an old revision settles a later one."""
    return transition(record, ReportSent(record.revision) if record and isinstance(event, ReportSent) else event, now)


def list_over_callback(record: SendRecord | None, event: SendEvent, now: float) -> SendRecord | None:
    """Plant a bug: the list counts as evidence although a callback can still come."""
    believing = replace(record, calls_back=False) if record and isinstance(event, Listed) else record
    result = transition(believing, event, now)
    return record if result is believing else result


def list_without_rivals(record: SendRecord | None, event: SendEvent, now: float) -> SendRecord | None:
    """Plant a bug: the list counts as evidence although another key may have sent the message."""
    return transition(record, event._replace(rival=False) if isinstance(event, Listed) else event, now)


def displaced_keeps_it(record: SendRecord | None, event: SendEvent, now: float) -> SendRecord | None:
    """Plant a bug: a key keeps a message that proof gives to another key."""
    return record if isinstance(event, Displaced) else transition(record, event, now)


def displaced_in_silence(record: SendRecord | None, event: SendEvent, now: float) -> SendRecord | None:
    """Plant a bug: a displaced key is settled, so that its wrong report is never corrected."""
    result = transition(record, event, now)
    return replace(result, settled=True) if result and isinstance(event, Displaced) else result


@pytest.mark.parametrize(
    ("broken", "machine", "seen"),
    [
        (over_unknown, Sends, "sent twice"),
        (over_overdue, Sends, "sent twice"),
        (lost_is_not_sent, Sends, "said not sent, and was"),
        (no_doubt, Resends, "said not sent, and was"),
        (lost_goes_back, Sends, "was sent, and is not any more"),
        (never_overdue, Sends, "left open"),
        (told_is_told, Sends, "what became of it was not told"),
        (list_over_callback, Rivals, "a callback can come"),
        (list_without_rivals, Rivals, "said sent, and was not"),
        (displaced_keeps_it, Rivals, "one message for two keys"),
        (displaced_in_silence, Rivals, "what became of it was not told"),
    ],
)
def test_a_broken_rule_is_seen(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[..., SendRecord | None], machine: type[Sends], seen: str
) -> None:
    """Each planted bug breaks an invariant; otherwise the tests above would prove nothing."""
    monkeypatch.setattr(idempotency_store, "transition", broken)

    with pytest.raises(AssertionError, match=seen):
        every_interruption(machine)


def test_a_write_without_condition_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates without conditions break an invariant, so the rules alone are not enough."""
    unchanged, always = dynamodb.Table.unchanged, dynamodb.ALWAYS
    monkeypatch.setattr(dynamodb.Table, "unchanged", lambda table, old: always if old else unchanged(table, old))

    with pytest.raises(AssertionError, match=r"said|sent"):
        every_interruption(Sends)


def test_a_record_without_its_sid_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an item for each SID, two keys own one message: its sender, and a key that found it in the list."""
    monkeypatch.setattr(idempotency_store, "_takes", lambda *_: False)

    with pytest.raises(AssertionError, match="one message for two keys"):
        every_interruption(Rivals)


def test_a_broken_rule_is_seen_in_some_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state machine finds a planted bug in some order of events."""
    monkeypatch.setattr(idempotency_store, "transition", lost_is_not_sent)

    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine_as_test(Sends, settings=settings(SETTINGS, phases=[Phase.generate]))
