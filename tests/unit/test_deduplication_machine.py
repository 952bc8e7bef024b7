"""A stateful test of the event publisher: its promises hold in every order of deliveries, crashes and faults.

The publisher, the deduplication table and its rules are the real ones. DynamoDB, the bus and the buffer are kept in
memory. Each delivery, from Twilio or from the buffer, is a function. It stops before and after each of its calls, so
that other functions can act in between.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

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
from msgspec import json
from twilio_connector import clock, http, telemetry
from twilio_connector.aws import client, event_bus
from twilio_connector.deadline import Deadline
from twilio_connector.invocation.events import SqsRecord
from twilio_connector.publishing import deduplication, publisher
from twilio_connector.publishing.deduplication import (
    RETENTION_SECONDS,
    ClaimResult,
    Deduplication,
    EventState,
    Seen,
    claim_result,
)
from twilio_connector.publishing.event import Event, event_key

from tests.actors import Actor, answer_requests, attempt
from tests.aws_wire import AwsWire

pytestmark = pytest.mark.exhaustive

LEASE = 30  # seconds: the function's time limit

EVENT = Event("Message Received", {"account_sid": "AC0", "deduplication_id": "id", "parameters": {}})
KEY = event_key(EVENT)

type Faults = Mapping[str, Sequence[str]]

# Possible faults of a function's calls, by operation; each list has one fault per call, in order.
FAULTS: dict[str, list[list[str]]] = {
    "PutItem": [
        *([[]] * 5),
        ["throttled"] * 9,
        ["throttled"],
        ["", "throttled"],
        ["answer lost"],
        ["", "answer lost"],
        ["both answers lost"],
        ["", "both answers lost"],
    ],
    "PutEvents": [
        *([[]] * 3),
        ["refused"],
        ["refused"] * 2,
        ["denied"] * 2,
        ["lost"],
        ["lost"] * 2,
        ["swallowed"] * 2,
        ["lost", "refused"],
        ["refused", "lost"],
    ],
    "SendMessage": [[], [], ["denied"], ["lost"], ["swallowed"]],
}
# A delivery that the bus takes has seven steps; one that goes to the buffer has eleven.
STEPS = st.sampled_from([20, 20, 20, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
REST = st.sampled_from([20, 20, 0, 1, 2])
SOME_FAULTS = st.fixed_dictionaries({name: st.sampled_from(faults) for name, faults in FAULTS.items()})
SETTINGS = settings(
    max_examples=150, stateful_step_count=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


class Function(Actor):
    """One invocation, which the test ends at its timeout, as Lambda does."""

    def __init__(self, work: Callable[[], None], faults: Faults) -> None:
        """Start the work; `faults` are the faults of its calls, by operation."""
        self.faults_of = {name: list(each) for name, each in faults.items()}
        self.ends_at = Deliveries.elapsed + LEASE
        super().__init__(lambda _: work())

    def fault(self, operation: str) -> str:
        """Return the fault of the next call of an operation, or an empty text."""
        faults = self.faults_of.get(operation)
        return faults.pop(0) if faults else ""


class Entry(NamedTuple):
    """An event on the bus: the time at which it was put there, and its `deduplication` mark."""

    at: float
    mark: str | None


class Accepted(NamedTuple):
    """The time of a delivery for which the publisher raised no error, so that Twilio gets a 200."""

    at: float


def here() -> Function:
    """Return the function that runs in this thread."""
    function = threading.current_thread()
    assert isinstance(function, Function)
    return function


class Services:
    """AWS in memory. Each call stops before and after the operation, so that other functions can act."""

    def exchange(self, request: requests.PreparedRequest) -> http.Reply:
        """Return the answer to a request; raises ResponseLostError if a fault loses the answer."""
        operation = request.headers["X-Amz-Target"].rpartition(".")[2]
        body = json.decode(request.body or b"")
        function = here()
        if operation == "PutItem":
            return attempt(
                function, lambda: function.fault(operation), lambda: reply(*Deliveries.wire.answer(operation, body))
            )
        fault = "" if function.attempts else function.fault(operation)
        if fault in {"denied", "refused"}:
            function.stop()
            function.stop()
            refusal = {"__type": "AccessDeniedException"}
            return (
                reply(400, refusal)
                if fault == "denied"
                else reply(200, {"Entries": [{"ErrorCode": "InternalFailure"}]})
            )
        try:
            return attempt(function, lambda: fault, lambda: self._taken(operation, body))
        finally:
            if operation == "PutEvents":
                function.attempts.clear()  # the client makes one attempt only

    def _taken(self, operation: str, body: dict[str, Any]) -> http.Reply:
        """Store an event on the bus or a message in the buffer, and return the answer."""
        if operation == "PutEvents":
            (entry,) = body["Entries"]
            mark = json.decode(entry["Detail"]).get("deduplication")
            Deliveries.entries.append(Entry(Deliveries.elapsed, mark))
            return reply(200, {"Entries": [{"EventId": "1"}]})
        Deliveries.buffer.append((Deliveries.elapsed + body["DelaySeconds"], body["MessageBody"]))
        return reply(200, {})


def reply(status: int, answer: Any) -> http.Reply:
    """Return an answer from AWS."""
    return http.Reply(status, {}, json.encode(answer))


class Deliveries(RuleBasedStateMachine):
    """A state machine for one event: it is delivered, functions crash, and time passes, in any order."""

    wire: ClassVar[AwsWire]
    elapsed: ClassVar[float]
    """Seconds since the start of the run."""
    skew: ClassVar[float]
    """Error of the connector's clock, in seconds."""
    entries: ClassVar[list[Entry]]
    buffer: ClassVar[list[tuple[float, str]]]
    """The messages in the buffer: the time from which each may be delivered, and its body."""

    def __init__(self) -> None:
        """Start with an empty table, bus and buffer."""
        super().__init__()
        self.wire.deliveries.clear()
        Deliveries.elapsed = Deliveries.skew = 0.0
        Deliveries.entries, Deliveries.buffer = [], []
        self.functions: list[Function] = []
        self.accepted: list[Accepted] = []

    # Rules: what can happen

    @initialize(faults=SOME_FAULTS, steps=STEPS)
    def begin(self, faults: Faults, steps: int) -> None:
        """Deliver the event from Twilio for the first time."""
        self._act(self._delivery(faults), steps, 0)

    @rule(faults=SOME_FAULTS, steps=STEPS, rest=REST)
    def deliver(self, faults: Faults, steps: int, rest: int) -> None:
        """Deliver the event from Twilio again, perhaps while other functions run."""
        self._act(self._delivery(faults), steps, rest)

    @rule(faults=SOME_FAULTS, others=SOME_FAULTS)
    def deliver_at_the_same_moment(self, faults: Faults, others: Faults) -> None:
        """Run two deliveries at the same time, alternating after each step."""
        both = [self._delivery(faults), self._delivery(others)]
        while both := [each for each in both if each.step()]:
            self.check()

    @precondition(lambda self: self._visible())
    @rule(which=st.integers(0, 9), faults=SOME_FAULTS, steps=STEPS, rest=REST)
    def deliver_from_the_buffer(self, which: int, faults: Faults, steps: int, rest: int) -> None:
        """Deliver a message from the buffer, perhaps one that SQS delivered before."""
        messages = self._visible()
        self._act(self._from_the_buffer(messages[which % len(messages)], faults), steps, rest)

    @precondition(lambda self: self.functions)
    @rule(which=st.integers(0, 9))
    def crash(self, which: int) -> None:
        """Kill a function at its current step."""
        self.functions.pop(which % len(self.functions)).crash()

    @rule(seconds=st.sampled_from([2, 10, LEASE + 2, 1000]))
    def time_passes(self, seconds: float) -> None:
        """Let time pass, and kill the functions that reach their timeout, as Lambda does."""
        Deliveries.elapsed += seconds
        for each in [each for each in self.functions if each.ends_at <= self.elapsed]:
            self.functions.remove(each)
            each.crash()

    @rule(skew=st.sampled_from([0, -LEASE, LEASE + 2]))
    def set_clock(self, skew: float) -> None:
        """Set the error of the connector's clock: the next container's clock may be wrong."""
        Deliveries.skew = skew

    @precondition(lambda self: not self.functions)
    @rule(is_deleted=st.booleans())
    def it_is_forgotten(self, *, is_deleted: bool) -> None:
        """Let the item expire; DynamoDB deletes it now, or has not deleted it yet."""
        Deliveries.elapsed += RETENTION_SECONDS + 10 * LEASE
        if is_deleted:
            self.wire.deliveries.clear()

    # Invariants: what must hold

    @invariant()
    def check(self) -> None:
        """Check that each duplicate is marked, and that the event is where the table says."""
        unmarked = [entry.at for entry in self.entries if entry.mark is None]
        for first, second in pairwise(unmarked):
            assert second - first > RETENTION_SECONDS - 10 * LEASE, "twice without a word"
        seen = self._seen()
        if seen and seen.state is EventState.DONE:
            assert self.entries, "done, and was not published"
        if seen and seen.state is EventState.KEPT:
            assert self.buffer or self.entries, "kept, and is not in the buffer"

    def teardown(self) -> None:
        """Check that a working bus empties the buffer in time.

        Each accepted delivery must have been published by then.
        """
        for each in self.functions:
            each.crash()
        self.functions = []
        Deliveries.skew = 0
        for _ in range(3):
            Deliveries.elapsed += 1000
            for message in list(self.buffer):
                self._act(self._from_the_buffer(message, {}), 100, 0)
        assert not self.buffer, "left in the buffer"
        assert not self.functions
        for delivery in self.accepted:
            since = delivery.at - RETENTION_SECONDS - 10 * LEASE
            assert any(entry.at >= since for entry in self.entries), "accepted, and never published"

    # Helpers

    def _act(self, function: Function, steps: int, rest: int) -> None:
        """Run a function for `steps` steps, then each interrupted function for `rest` steps.

        The invariants are checked after each function.
        """
        turns = [(function, steps), *((interrupted, rest) for interrupted in self.functions)]
        self.functions = []
        for each, count in turns:
            if all(each.step() for _ in range(count)):
                self.functions.append(each)
            self.check()

    def _delivery(self, faults: Faults) -> Function:
        def work() -> None:
            publisher.publish([EVENT], Deadline(LEASE))
            self.accepted.append(Accepted(self.elapsed))

        return Function(work, faults)

    def _from_the_buffer(self, message: tuple[float, str], faults: Faults) -> Function:
        def work() -> None:
            again = publisher.publish_buffered([SqsRecord(message_id="1", body=message[1])], Deadline(LEASE))
            if not again and message in self.buffer:
                self.buffer.remove(message)

        return Function(work, {**faults, "SendMessage": ["never called"]})

    def _visible(self) -> list[tuple[float, str]]:
        return [message for message in self.buffer if message[0] <= self.elapsed]

    def _seen(self) -> Seen | None:
        return deduplication._seen(self.wire.deliveries.get(KEY))


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace AWS with the services in memory, and the connector's clock with that of the state machine."""
    wire = AwsWire()
    wire.close()  # the tests call it without a network
    monkeypatch.setattr(Deliveries, "wire", wire, raising=False)
    answer_requests(monkeypatch, Services().exchange)
    monkeypatch.setattr(client, "_LONGEST_PAUSE", 0)
    monkeypatch.setattr(clock, "now", lambda: 1_800_000_000 + Deliveries.elapsed + Deliveries.skew)
    monkeypatch.setattr(clock, "monotonic", lambda: Deliveries.elapsed)
    monkeypatch.setattr(event_bus, "clock", SimpleNamespace(sleep=lambda _: here().stop()))
    logging.disable()  # each fault would log a line
    yield
    logging.disable(logging.NOTSET)
    telemetry.metrics.metric_set.clear()


BEGINNINGS: list[Faults] = [
    {},
    {"PutEvents": ["lost"] * 2},
    {"PutEvents": ["refused"] * 2},
    {"PutEvents": ["lost", "refused"], "SendMessage": ["lost"]},
    {"PutEvents": ["denied"] * 2, "SendMessage": ["denied"]},
    {"PutItem": ["throttled"] * 9},
    {"PutItem": ["", "throttled"], "PutEvents": ["lost"] * 2},
    {"PutItem": ["both answers lost"]},
]


def every_interruption() -> None:
    """Interrupt each kind of delivery with each other kind, at chosen steps, after each beginning."""
    acts: list[Callable[[Deliveries, int], None]] = [
        lambda all_, steps: all_.deliver({}, steps, 20),
        lambda all_, steps: all_.deliver({"PutEvents": ["lost"] * 2}, steps, 20),
        lambda all_, steps: all_.deliver_from_the_buffer(0, {}, steps, 20) if all_._visible() else None,
        lambda all_, steps: (
            all_.deliver_from_the_buffer(0, {"PutEvents": ["lost", "refused"]}, steps, 20) if all_._visible() else None
        ),
    ]
    for faults, begun, seconds in product(BEGINNINGS, (2, 3, 5, 7, 9, 20), (0, 2, LEASE + 2)):
        for first, steps, second in product(acts, (2, 4, 20), acts):
            deliveries = Deliveries()
            deliveries.begin(faults, begun)
            deliveries.time_passes(seconds)
            first(deliveries, steps)
            deliveries.time_passes(2)
            second(deliveries, 20)
            deliveries.check()
            deliveries.teardown()


@pytest.mark.timeout(1200)  # it tries all combinations
def test_the_promises_hold_at_every_interruption() -> None:
    """The promises hold for every pair of deliveries, one interrupting another, after every beginning."""
    every_interruption()


def test_the_promises_hold_in_every_order() -> None:
    """No event is lost, each duplicate is marked, and the table is true, in random orders of steps and faults."""
    run_state_machine_as_test(Deliveries, settings=SETTINGS)


def over_busy(seen: Seen | None, now: float, *, buffered: bool) -> ClaimResult:
    """Publish an event that another function is publishing (planted bug)."""
    verdict = claim_result(seen, now, buffered=buffered)
    return ClaimResult.FIRST if verdict is ClaimResult.BUSY else verdict


def over_overdue(seen: Seen | None, now: float, *, buffered: bool) -> ClaimResult:
    """Treat an event whose lease expired as one that was never begun (planted bug)."""
    is_overdue = seen is not None and seen.state is EventState.BEGUN and seen.lease_until <= now
    return ClaimResult.FIRST if is_overdue else claim_result(seen, now, buffered=buffered)


def no_doubt(seen: Seen | None, now: float, *, buffered: bool) -> ClaimResult:
    """Ignore that a buffered event may be on the bus already (planted bug)."""
    return claim_result(seen and seen._replace(uncertain=False), now, buffered=buffered)


def kept_is_first(seen: Seen | None, now: float, *, buffered: bool) -> ClaimResult:
    """Publish a buffered event without the mark of its uncertainty (planted bug)."""
    return ClaimResult.FIRST if seen and seen.state is EventState.KEPT else claim_result(seen, now, buffered=buffered)


def begun_is_done(seen: Seen | None, now: float, *, buffered: bool) -> ClaimResult:
    """Treat an event that a function began to publish as published (planted bug)."""
    is_begun = seen is not None and seen.state is EventState.BEGUN
    return ClaimResult.DUPLICATE if is_begun else claim_result(seen, now, buffered=buffered)


def kept_is_done(seen: Seen | None, now: float, *, buffered: bool) -> ClaimResult:
    """Treat a buffered event as published, even if it is delivered from the buffer (planted bug)."""
    return (
        ClaimResult.DUPLICATE if seen and seen.state is EventState.KEPT else claim_result(seen, now, buffered=buffered)
    )


@pytest.mark.parametrize(
    ("broken", "seen"),
    [
        (over_busy, "twice without a word"),
        (over_overdue, "twice without a word"),
        (no_doubt, "twice without a word"),
        (kept_is_first, "twice without a word"),
        (begun_is_done, "accepted, and never published"),
        (kept_is_done, "accepted, and never published|kept, and is not in the buffer"),
    ],
)
def test_a_broken_rule_is_seen(monkeypatch: pytest.MonkeyPatch, broken: Callable[..., ClaimResult], seen: str) -> None:
    """Each planted bug in the rules is found, so the tests above can fail."""
    monkeypatch.setattr(deduplication, "claim_result", broken)

    with pytest.raises(AssertionError, match=seen):
        every_interruption()


def test_a_write_without_condition_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unconditional writes are found: the rules alone do not keep the promises."""
    put = Deduplication._put
    monkeypatch.setattr(Deduplication, "_put", lambda table, key, event, seen, _: put(table, key, event, seen, {}))

    with pytest.raises(AssertionError, match="twice without a word"):
        every_interruption()


def test_a_note_before_the_buffer_has_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note written before the buffer has the event is found: a crash in between loses the event."""
    keep = publisher._enqueue

    def note_and_keep(table: Deduplication, each: Any) -> None:
        table.note_kept(each.event, each.claim, uncertain=each.uncertain)
        keep(table, each)

    monkeypatch.setattr(publisher, "_enqueue", note_and_keep)

    with pytest.raises(AssertionError, match=r"kept, and is not in the buffer|accepted, and never published"):
        every_interruption()


def test_a_note_before_the_bus_has_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note written before the bus has the event is found: a crash in between loses the event."""
    put = publisher._put

    def note_and_put(table: Deduplication, outgoing: Any, deadline: Deadline) -> Any:
        for each in outgoing:
            table.note_done(each.event, each.claim)
        return put(table, outgoing, deadline)

    monkeypatch.setattr(publisher, "_put", note_and_put)

    with pytest.raises(AssertionError, match=r"done, and was not published"):
        every_interruption()


def test_a_broken_rule_is_seen_in_some_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random state machine finds a planted bug, too."""
    monkeypatch.setattr(deduplication, "claim_result", no_doubt)

    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine_as_test(Deliveries, settings=settings(SETTINGS, phases=[Phase.generate], max_examples=2000))
