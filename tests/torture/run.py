"""One run: send everything while things fail, wait until each key has ended, and take down what the witnesses have."""

import functools
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, Self

from tests.torture import deliver, drain, naive, webhooks
from tests.torture.channels import AT_ONCE, Callers, start_few_at_a_time
from tests.torture.deliver import Deliveries
from tests.torture.journal import Journal
from tests.torture.schedule import Channel, Part, Send, Size, plan
from tests.torture.setting import Setting, bus_away, token_away
from tests.torture.verdict import Key

_THREADS = 96
_SETTLED_SECONDS = 300
_RESOLVE_EVERY = 12  # seconds
_LEAST_REQUESTS = 100  # left to the emulator, or it may have refused some


class Torture:
    """A run on a stack that is up."""

    def __init__(self, setting: Setting, journal: Journal, seed: int, size: Size) -> None:
        """Take the stack, where to write, and what is to be done."""
        self._setting = setting
        self._journal = journal
        self._seed = seed
        self._size = size
        self._void: list[str] = []
        self._published: set[str] = set()
        self._sends = plan(seed, size)
        self._keys = {send.key: Key(send.channel, send.part) for send in self._sends}
        self._callers = Callers(setting.stack, setting.topic, setting.machine, journal, self._keys)
        self._outputs: dict[str, str] = setting.stack["outputs"]
        queue = drain.bus_queue(self._callers.sqs, self._callers.events, self._outputs["EventBusName"])
        self._reports = drain.Reports(self._callers.sqs, self._outputs, queue, journal)
        self._pool = ThreadPoolExecutor(_THREADS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._callers.stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def run(self, waves: int) -> None:
        """Do all of it; the emulator starts anew before each wave."""
        self._state(finished=False)
        with step("start processes of the function"):
            self._callers.warm_up(2 * AT_ONCE)
        ordinary = [send for send in self._sends if send.part is Part.ORDINARY]
        controls = naive.control(ordinary[: self._size.control], self._seed)
        for wave in range(waves):
            self._wave(wave, waves, self._sends[wave::waves], controls[wave::waves])
        self._webhooks()
        self._state(finished=True)

    def _wave(self, wave: int, waves: int, sends: Sequence[Send], controls: Sequence[Send]) -> None:
        name = f"wave {wave + 1} of {waves}"
        with step(f"{name}: start the emulator anew"):
            self._setting.restart_twilio()
        races = [send for send in sends if send.part is Part.RACE]
        others = [send for send in sends if send.part is not Part.RACE]
        with step(f"{name}: send") as facts:
            arguments = (self._setting.relay_url, self._setting.owner, self._journal, self._callers.stopped)
            control = self._pool.submit(naive.run, controls, *arguments)
            self._all([self._pool.submit(self._callers.send, send) for send in others])
            control.result()
            facts += [f"{len(others):,} keys", f"{len(controls):,} by the naive client"]
        with step(f"{name}: send the same key at the same time") as facts:
            self._callers.race(races, self._size.race_callers)
            facts.append(f"{len(races)} keys x {self._size.race_callers}")
        with step(f"{name}: wait for what became of them") as facts:
            self._confirm([send for send in others if send.channel is Channel.ASYNCHRONOUS])
            left = self._settle(sends)
            facts += [f"{len(sends) - len(left):,} of {len(sends):,} keys have ended"]
        with step(f"{name}: put the failed queue's records back") as facts:
            facts.append(f"{self._redrive()} records")
            self._settle(sends)
        with step(f"{name}: take down what Twilio has") as facts:
            facts.append(f"{self._setting.twilio.drain(self._journal):,} messages")
            if self._setting.twilio.requests_left() < _LEAST_REQUESTS:
                self._void.append(f"{name}: the emulator of Twilio had no requests left")

    def _webhooks(self) -> None:
        """Deliver webhooks, for a while without the bus, and wait until the buffer is empty."""
        place, size, stopped = self._setting, self._size, self._callers.stopped
        stages = webhooks.plan(self._seed, size)
        for hook in (hook for units in stages for unit in units for hook in unit.hooks if hook.markers):
            if name := hook.deduplication_id(place.target):
                place.proxy.keys[name] = hook.key
        twilio = Deliveries(deliver.post(place.target), self._journal, stopped, size.webhook_callers)
        naive_one = naive.receiver(place.proxy.url, self._outputs["EventBusName"])
        control = Deliveries(naive_one, self._journal, stopped, AT_ONCE)
        with step("webhooks: start processes of the function"):
            start_few_at_a_time(size.webhook_callers, functools.partial(deliver.greet, place.target))
        for title, units, faults in zip(
            ("deliver", "deliver while the bus is away", "deliver when it is back"),
            stages,
            ([*token_away(f"first {self._seed}")], [bus_away()], [*token_away(f"second {self._seed}")]),
            strict=True,
        ):
            with step(f"webhooks: {title}") as facts:
                place.proxy.clear()
                for fault in faults:
                    place.proxy.add(fault)
                twilio.run(units)
                facts.append(f"{sum(len(unit.hooks) for unit in units):,} deliveries")
            place.proxy.clear()
        with step("webhooks: wait for what the buffer holds") as facts:
            # Meanwhile the naive receiver gets its own.
            units = webhooks.control([*stages[0], *stages[2]], size.webhook_control)
            controlled = self._pool.submit(control.run, units)
            left = self._drained(twilio.accepted, controlled)
            controlled.result()
            facts.append(f"{len(twilio.accepted):,} events, {len(left):,} of them did not come")

    def _drained(self, accepted: set[str], control: Future[None]) -> set[str]:
        """Wait until all these events were published and the buffer is empty; return those that never came."""
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

    def _settle(self, sends: Sequence[Send]) -> list[Send]:
        """Wait until every key has ended and the queue is empty; return the keys that have not, after all that time."""
        deadline = time.monotonic() + _SETTLED_SECONDS
        resolve_at = 0.0
        resolving: Future[Any] | None = None
        while True:
            self._reports.drain(self._learn)
            left = [send for send in sends if self._keys[send.key].state is None]
            is_quiet = not drain.in_queue(self._callers.sqs, self._outputs["SendQueueUrl"])
            if (not left and is_quiet) or time.monotonic() > deadline:
                if not is_quiet:
                    self._void.append("the send queue did not become empty")
                return left
            if time.monotonic() >= resolve_at and (resolving is None or resolving.done()):
                resolving = self._pool.submit(self._resolve)
                resolve_at = time.monotonic() + _RESOLVE_EVERY
            self._callers.stopped.wait(1)

    def _redrive(self) -> int:
        """Put back in the send queue what is in the failed queue, as a person may at any time."""
        bodies = self._reports.failed()
        for body in bodies:
            self._callers.redrive(body)
        return len(bodies)

    def _resolve(self) -> None:
        """Do what the schedule does every minute; where a run fails, the next one goes on."""
        self._callers.functions.invoke(FunctionName=self._outputs["ResolveFunctionArn"], Payload=b"{}")

    def _learn(self, event: dict[str, Any]) -> None:
        if key := self._keys.get(event["detail"].get("idempotency_key")):
            key.learn(event)
        self._published.update(webhooks.names(json.dumps(event["detail"])))

    def _state(self, *, finished: bool) -> None:
        self._journal.state(seed=self._seed, size=self._size._asdict(), finished=finished, void=self._void)


@contextmanager
def step(title: str) -> Iterator[list[str]]:
    """Say in one line what was done, what came of it, and how long it took."""
    began = time.monotonic()
    facts: list[str] = []
    yield facts
    print(f"{title:<48} {time.monotonic() - began:6.1f} s   {', '.join(facts)}".rstrip(), flush=True)
