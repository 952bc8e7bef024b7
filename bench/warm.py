"""Warm invocations: time of our own code, beside the peer and bare requests to the same server."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

from bench import BenchError
from bench.bundle import Contestant, start_worker
from bench.samples import Figures, Samples, in_turns
from bench.stage import Stage

_MB = 1024 * 1024
_CALLS = 40
_VALIDATIONS = 2000


class Work(NamedTuple):
    """What a worker is to do."""

    contestant: Contestant
    arguments: tuple[str, ...]
    times: int
    warm_up: int = 2


class Done(NamedTuple):
    """What a worker tells: seconds per time, and the peak of memory in bytes."""

    wall: float
    cpu: float
    memory: float


class Worker:
    """A process that does one thing as often as asked."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        """Take a process that was started."""
        self._name = name
        self._process = process

    def run(self, count: int, warm_up: int) -> Done:
        """Let it be done."""
        if self._process.stdin is None or self._process.stdout is None:
            raise BenchError("A worker has no pipes.")
        self._process.stdin.write(json.dumps({"count": count, "warm_up": warm_up}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{self._name} failed; the traceback is above.")
        return Done(**json.loads(line))


@contextmanager
def worker(name: str, work: Work) -> Iterator[Worker]:
    """Start a worker for the time of a `with` block."""
    with start_worker(work.contestant, *work.arguments) as process:
        try:
            yield Worker(name, process)
        finally:
            process.kill()


def measure(stage: Stage, rounds: int, *, short: bool = False) -> Figures:
    """Let workers take turns: calls of each shape, and signatures."""
    stage.latencies()
    works = {f"warm/{name}": work for name, work in _calls(stage, short=short).items()}
    works |= {f"signature/{name}": work for name, work in _signatures(stage).items()}
    return _figures(works, rounds)


def _calls(stage: Stage, *, short: bool) -> dict[str, Work]:
    def call(contestant: Contestant, shape: str) -> Work:
        return Work(contestant, ("calls", contestant.handler, shape), _CALLS)

    send_sms, webhook = stage.functions["send_sms"], stage.functions["webhook"]
    budgeted = {
        "send_sms, API": call(send_sms, "api"),
        "bare requests": call(stage.peers["bare requests"], "direct"),
        "peer, API": call(stage.peers["peer compiled"], "api"),
        "send_sms, API with key": call(send_sms, "api_with_key"),
    }
    if short:
        return budgeted
    return budgeted | {
        "send_sms, direct": call(send_sms, "direct"),
        "send_sms, SQS record": call(send_sms, "sqs"),
        "peer, SQS record": call(stage.peers["peer, batch"], "sqs"),
        "webhook, form": call(webhook, "webhook_form"),
        "webhook, JSON": call(webhook, "webhook_json"),
    }


def _signatures(stage: Stage) -> dict[str, Work]:
    return {
        "ours": Work(stage.functions["webhook"], ("validations", "ours"), _VALIDATIONS, 50),
        "RequestValidator": Work(stage.peers["peer compiled"], ("validations", "official"), _VALIDATIONS, 50),
    }


def _figures(works: Mapping[str, Work], rounds: int) -> Figures:
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker(name, work)) for name, work in works.items()}
        turns = {name: partial(workers[name].run, work.times, work.warm_up) for name, work in works.items()}
        in_turns(turns, 2)
        results = in_turns(turns, rounds)
    figures: Figures = {}
    for name, dones in results.items():
        figures[f"{name}/wall"] = Samples(tuple(done.wall * 1e6 for done in dones), "µs")
        figures[f"{name}/cpu"] = Samples(tuple(done.cpu * 1e6 for done in dones), "µs")
        if name.startswith(("warm/send_sms", "warm/peer")):
            bare = results["warm/bare requests"]
            beyond = (done.cpu - least.cpu for done, least in zip(dones, bare, strict=True))
            figures[f"{name}/cpu beyond bare requests"] = Samples(tuple(each * 1e6 for each in beyond), "µs")
    return figures


def measure_lists(stage: Stage, rounds: int) -> Figures:
    """List all messages of an account, each time in a new process."""
    stage.latencies()
    works = {
        "list_sms": Work(stage.functions["list_sms"], ("lists", "list_sms.handler"), 1, 0),
        "peer": Work(stage.peers["peer, list"], ("lists", "listing.handler"), 1, 0),
    }

    def once(name: str) -> Done:
        with worker(name, works[name]) as process:
            return process.run(works[name].times, works[name].warm_up)

    turns = {name: partial(once, name) for name in works}
    in_turns(turns, 1)  # the server makes its pages once
    figures: Figures = {}
    for name, dones in in_turns(turns, rounds).items():
        figures[f"list/{name}/time"] = Samples(tuple(done.wall for done in dones), "s")
        figures[f"list/{name}/cpu"] = Samples(tuple(done.cpu for done in dones), "s")
        figures[f"list/{name}/memory"] = Samples(tuple(done.memory / _MB for done in dones), "MB")
    return figures
