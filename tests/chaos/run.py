"""One run: send everything under faults, wait until each key has ended, and copy the witnesses' records."""

import functools
import json
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, Self

from tests.chaos import deliver, drain, naive, webhooks
from tests.chaos.channels import AT_ONCE, Callers, start_few_at_a_time
from tests.chaos.deliver import Deliveries
from tests.chaos.journal import LEFT_ALONE, TIMEOUTS, Journal
from tests.chaos.measured import Measured
from tests.chaos.schedule import OUTAGES, Channel, Part, Send, Size, plan
from tests.chaos.setting import VISIBILITY_SECONDS, Setting, bus_away, secrets_hang, table_away, token_away
from tests.chaos.verdict import Key

_THREADS = 96
_SETTLED_SECONDS = 900  # the queue waits longer before each retry
_RESOLVE_EVERY = 20  # seconds; the emulator of Twilio accepts a limited number of requests
_AWAY_SECONDS = 45  # seconds; deliveries follow so quickly that records reach the queue's limit of deliveries
_DELIVERIES = 12  # until SQS moves a record, if the queue has a redrive policy
_HANGS_SECONDS = 40  # longer than an invocation may take
_BATCH_SIZE = 10
_LATER = ("sent", "delivered")
_CALLBACKS = 4  # at the same time; each further one would start another process
_SILENT = 10  # keys with callbacks while the memory of signed texts is unavailable
_TIMED_OUT = re.compile(r"Lambda (\S+): Task timed out after")
_LEAST_REQUESTS = 100  # that the emulator still accepts; with fewer, it may have refused some


class Chaos:
    """A run on a stack that is already running."""

    def __init__(self, setting: Setting, journal: Journal, seed: int, size: Size) -> None:
        """Take the stack, the journal to write to, and the seed and size of the run."""
        self._setting = setting
        self._journal = journal
        self._seed = seed
        self._size = size
        self._void: list[str] = []
        self._log_begins = setting.log.stat().st_size
        self._published: set[str] = set()
        self._called_back: set[str] = set()
        self._sends = plan(seed, size)
        self._keys = {send.key: Key(send.channel, send.part) for send in self._sends}
        self._callers = Callers(setting.stack, setting.topic, setting.machine, journal, self._keys)
        self._outputs: dict[str, str] = setting.stack["outputs"]
        queue = drain.bus_queue(self._callers.sqs, self._callers.events, self._outputs["EventBusName"])
        self._reports = drain.Reports(self._callers.sqs, self._outputs, queue, journal)
        self._pool = ThreadPoolExecutor(_THREADS)
        self._measured = Measured(setting.stack["aws_endpoint_url"], setting.stack["stack_name"], journal)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._callers.stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def run(self) -> None:
        """Carry out all steps of the run."""
        self._state(finished=False)
        self._pool.submit(self._measured.watch, self._callers.stopped)
        with step("start processes of the function"):
            self._callers.warm_up(2 * AT_ONCE)
        self._setting.break_secrets()
        parts = {part: [send for send in self._sends if send.part is part] for part in Part}
        races, away, hanging = parts[Part.RACE], parts[Part.BUS_AWAY], parts[Part.SECRET_HANGS]
        broken = parts[Part.SECRET_BROKEN]
        others = [send for send in self._sends if send.part not in {Part.RACE, *OUTAGES}]
        controls = naive.control(parts[Part.ORDINARY][: self._size.control], self._seed)
        with step("send") as facts:
            arguments = (self._setting.relay.url, self._setting.owner, self._journal, self._callers.stopped)
            control = self._pool.submit(naive.run, controls, *arguments)
            self._send(others)
            control.result()
            facts += [f"{len(others):,} keys", f"{len(controls):,} by the naive client"]
        with step("send the same key at the same time") as facts:
            self._callers.race(races, self._size.race_callers)
            facts.append(f"{len(races)} keys x {self._size.race_callers}")
        with step("send without the bus, and with broken secrets") as facts:
            self._send(broken)
            self._without_bus(away)
            facts.append(f"{len(broken) + len(away)} keys")
        with step("call back about what is not known") as facts:
            self._reports.drain(self._learn)
            facts.append(f"{self._call_back():,} keys")
        with step("send while Secrets Manager hangs") as facts:
            self._without_secrets(hanging)
            facts.append(f"{len(hanging)} keys")
        self._setting.fix_secrets()
        with step("wait for what became of them") as facts:
            self._confirm([send for send in others if send.channel is Channel.ASYNCHRONOUS])
            left = self._settle()
            facts.append(f"{len(self._sends) - len(left):,} of {len(self._sends):,} keys have ended")
        with step("put the failed queue's records back") as facts:
            facts.append(f"{self._redrive()} records")
            self._settle()
        with step("take down what Twilio has, and what is known") as facts:
            facts.append(f"{self._setting.twilio.drain(self._journal):,} messages")
            if self._setting.twilio.requests_left() < _LEAST_REQUESTS:
                self._void.append("the emulator of Twilio had no requests left")
            list(self._pool.map(self._callers.known, self._sends))
        self._webhooks()
        with step("take down the logs") as facts:
            facts.append(f"{self._measured.take_logs():,} lines")
        for line in self._setting.log.read_bytes()[self._log_begins :].decode(errors="replace").splitlines():
            if found := _TIMED_OUT.search(line):
                self._journal.write(TIMEOUTS, function=found[1])
        self._state(finished=True)

    def _send(self, sends: Sequence[Send]) -> None:
        self._all([self._pool.submit(self._callers.send, send) for send in sends])

    def _without_bus(self, sends: Sequence[Send]) -> None:
        """Send while the bus refuses all events, until records of the queue reach their limit of deliveries."""
        queue = self._outputs["SendQueueUrl"]
        attributes = self._callers.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["RedrivePolicy"])
        if policy := attributes.get("Attributes", {}).get("RedrivePolicy"):
            policy = json.dumps(json.loads(policy) | {"maxReceiveCount": _DELIVERIES})
            self._callers.sqs.set_queue_attributes(QueueUrl=queue, Attributes={"RedrivePolicy": policy})
        self._callers.sqs.set_queue_attributes(QueueUrl=queue, Attributes={"VisibilityTimeout": "2"})
        with self._setting.proxy.failing(bus_away()):
            self._send(sends)
            deadline = time.monotonic() + _AWAY_SECONDS
            while time.monotonic() < deadline and not self._callers.stopped.wait(_RESOLVE_EVERY):
                self._pool.submit(self._resolve)
        visibility = {"VisibilityTimeout": VISIBILITY_SECONDS["SendQueue"]}
        self._callers.sqs.set_queue_attributes(QueueUrl=queue, Attributes=visibility)

    def _without_secrets(self, sends: Sequence[Send]) -> None:
        """Send while Secrets Manager hangs, in batches whose records each need a different secret."""
        arn = self._outputs["SendQueueArn"]
        [mapping] = self._callers.functions.list_event_source_mappings(EventSourceArn=arn)["EventSourceMappings"]
        resize = functools.partial(self._callers.functions.update_event_source_mapping, UUID=mapping["UUID"])
        resize(BatchSize=_BATCH_SIZE)
        with self._setting.proxy.failing(secrets_hang()):
            self._send(sends)
            self._callers.stopped.wait(_HANGS_SECONDS)
        resize(BatchSize=mapping["BatchSize"])

    def _call_back(self) -> int:
        """Let Twilio send further callbacks about each message that is not known to be sent; return their number.

        The emulator called back once, while it answered, and does not retry failed callbacks. The callbacks here are
        those that Twilio sends when a message progresses.
        """
        made = dict(self._setting.relay.made)
        open_ones = [key for key in made if key not in self._called_back and self._keys[key].state != "sent"]
        self._called_back.update(open_ones)

        def tell(key: str) -> None:
            for status in _LATER:
                self._setting.tell(made[key], status)

        with ThreadPoolExecutor(_CALLBACKS) as pool:
            list(pool.map(tell, open_ones))
        return len(open_ones)

    def _webhooks(self) -> None:
        """Deliver webhooks, some while the bus or DynamoDB is unavailable, and wait until the buffer is empty."""
        place, size, stopped = self._setting, self._size, self._callers.stopped
        stages = webhooks.plan(self._seed, size)
        for hook in (hook for units in stages.values() for unit in units for hook in unit.hooks if hook.markers):
            for name in hook.ids(place.target):
                place.proxy.keys[name] = hook.key
        twilio = Deliveries(deliver.post(place.target), place.target, self._journal, stopped, size.webhook_callers)
        naive_one = naive.receiver(place.proxy.url, self._outputs["EventBusName"])
        control = Deliveries(naive_one, place.target, self._journal, stopped, AT_ONCE)
        with step("webhooks: start processes of the function"):
            start_few_at_a_time(size.webhook_callers, functools.partial(deliver.greet, place.target))
        silent = [send for send in self._sends if send.key in place.relay.silent][:_SILENT]
        silent = [send for send in silent if self._callers.known(send) == "unknown"]
        for title, (stage, units), faults in zip(
            ("deliver", "deliver while the bus is away", "deliver while DynamoDB is away", "deliver when all is back"),
            stages.items(),
            (
                [*token_away(f"first {self._seed}")],
                [bus_away()],
                [table_away(place.deliveries_table)],
                [*token_away(f"second {self._seed}")],
            ),
            strict=True,
        ):
            with step(f"webhooks: {title}") as facts:
                place.proxy.clear()
                for fault in faults:
                    place.proxy.add(fault)
                twilio.run(stage, units)
                facts.append(f"{sum(len(unit.hooks) for unit in units):,} deliveries")
                if stage is webhooks.Stage.TABLE_AWAY:
                    self._call_back_silently(silent)
            place.proxy.clear()
        with step("webhooks: wait for what the buffer holds") as facts:
            # At the same time, the naive receiver gets its webhooks.
            units = webhooks.control(
                [*stages[webhooks.Stage.BEFORE], *stages[webhooks.Stage.AFTER]], size.webhook_control
            )
            controlled = self._pool.submit(control.run, webhooks.Stage.AFTER, units)
            left = self._drained(twilio.accepted, controlled)
            controlled.result()
            facts.append(f"{len(twilio.accepted):,} events, {len(left):,} of them did not come")

    def _call_back_silently(self, sends: Sequence[Send]) -> None:
        """Send callbacks about unknown keys, first while the memory of signed texts is unavailable, then with it."""
        place = self._setting
        for send in sends:
            sid, url = place.relay.silent[send.key]
            answers = []
            for status in ("sent", "delivered"):
                answered = deliver.call_back(place.target, url, sid, status, self._callers.sms(send))
                answers.append((answered, self._callers.known(send)))
                place.proxy.clear()
            place.proxy.add(table_away(place.deliveries_table))
            self._journal.write(LEFT_ALONE, key=send.key, away=answers[0], back=answers[1])

    def _drained(self, accepted: set[str], control: Future[None]) -> set[str]:
        """Wait until these events are published and the buffer is empty; return the events that were not published."""
        deadline = time.monotonic() + _SETTLED_SECONDS
        while True:
            is_quiet, is_over = not drain.in_queue(self._callers.sqs, self._setting.buffer_url), control.done()
            self._reports.drain(self._learn)
            if (accepted <= self._published and is_quiet and is_over) or time.monotonic() > deadline:
                if not is_quiet:
                    self._void.append("the buffer did not become empty")
                if dead := drain.in_queue(self._callers.sqs, self._setting.dead_letter_url):
                    self._void.append(f"the buffer's dead-letter queue has {dead} records")
                return accepted - self._published
            self._callers.stopped.wait(1)

    def _all(self, futures: Sequence[Future[None]]) -> None:
        for future in as_completed(futures):
            future.result()

    def _confirm(self, sends: Sequence[Send]) -> None:
        self._all([self._pool.submit(self._callers.confirm, send) for send in sends])

    def _settle(self) -> list[Send]:
        """Wait until every key has ended and the send queue is empty; return the keys that did not end in time."""
        deadline = time.monotonic() + _SETTLED_SECONDS
        resolve_at = 0.0
        resolving: Future[None] | None = None
        while True:
            self._reports.drain(self._learn)
            left = [send for send in self._sends if self._keys[send.key].state is None]
            is_quiet = not drain.in_queue(self._callers.sqs, self._outputs["SendQueueUrl"])
            if (not left and is_quiet) or time.monotonic() > deadline:
                if not is_quiet:
                    self._void.append("the send queue did not become empty")
                return left
            self._call_back()
            if time.monotonic() >= resolve_at and (resolving is None or resolving.done()):
                resolving = self._pool.submit(self._resolve)
                resolve_at = time.monotonic() + _RESOLVE_EVERY
            self._callers.stopped.wait(1)

    def _redrive(self) -> int:
        """Move the failed queue's records to the send queue, as an operator may at any time; return their number."""
        bodies = self._reports.failed()
        for body in bodies:
            self._callers.redrive(body)
        return len(bodies)

    def _resolve(self) -> None:
        """Invoke resolve, which the schedule invokes every minute, twice at the same time."""
        self._all([self._pool.submit(self._callers.resolve) for _ in range(2)])

    def _learn(self, event: dict[str, Any]) -> None:
        if key := self._keys.get(event["detail"].get("idempotency_key")):
            key.learn(event)
        self._published.update(webhooks.names(json.dumps(event["detail"])))

    def _state(self, *, finished: bool) -> None:
        outdated = self._setting.proxy.lag.outdated if self._setting.proxy.lag else 0
        facts = {"seed": self._seed, "size": self._size._asdict(), "outdated": outdated, "void": self._void}
        self._journal.state(finished=finished, **facts)


@contextmanager
def step(title: str) -> Iterator[list[str]]:
    """Print one line with the step's title, its duration, and the facts that the step adds."""
    began = time.monotonic()
    facts: list[str] = []
    yield facts
    print(f"{title:<48} {time.monotonic() - began:6.1f} s   {', '.join(facts)}".rstrip(), flush=True)
