"""Warm invocations: the time of our code, compared with the baseline and bare requests to the same server."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

from bench import BenchError
from bench.bundle import Candidate, start_worker
from bench.environment import Environment
from bench.samples import Figures, Samples, in_turns

_MB = 1024 * 1024
_CALLS = 40
_VALIDATIONS = 2000


class Workload(NamedTuple):
    """The candidate and job that a worker runs, and the number of runs."""

    candidate: Candidate
    arguments: tuple[str, ...]
    times: int
    warm_up: int = 2


class Measurement(NamedTuple):
    """A worker's report: seconds per run, and the peak memory in bytes."""

    wall: float
    cpu: float
    memory: float


class Worker:
    """A process that runs one job as often as requested."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        """Take a process that is already running."""
        self._name = name
        self._process = process

    def run(self, count: int, warm_up: int) -> Measurement:
        """Run the workload this many times after a warm-up, and return the measurement."""
        if self._process.stdin is None or self._process.stdout is None:
            raise BenchError("A worker has no pipes.")
        self._process.stdin.write(json.dumps({"count": count, "warm_up": warm_up}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{self._name} failed; the traceback is above.")
        return Measurement(**json.loads(line))


@contextmanager
def worker(name: str, workload: Workload) -> Iterator[Worker]:
    """Run a worker for the duration of a `with` block."""
    with start_worker(workload.candidate, *workload.arguments) as process:
        try:
            yield Worker(name, process)
        finally:
            process.kill()


def measure(environment: Environment, rounds: int, *, short: bool = False) -> Figures:
    """Measure calls of each shape and checks of signatures, with workers that take turns."""
    environment.latencies()
    workloads = {f"warm/{name}": workload for name, workload in _calls(environment, short=short).items()}
    workloads |= {f"signature/{name}": workload for name, workload in _signatures(environment).items()}
    return _figures(workloads, rounds)


def _calls(environment: Environment, *, short: bool) -> dict[str, Workload]:
    def call(candidate: Candidate, shape: str) -> Workload:
        return Workload(candidate, ("calls", candidate.handler, shape), _CALLS)

    send_sms, webhook = environment.functions["send_sms"], environment.functions["webhook"]
    budgeted = {
        "send_sms, API": call(send_sms, "api"),
        "bare requests": call(environment.baselines["bare requests"], "direct"),
        "baseline, API": call(environment.baselines["baseline compiled"], "api"),
        "send_sms, API with key": call(send_sms, "api_with_key"),
    }
    if short:
        return budgeted
    return budgeted | {
        "send_sms, direct": call(send_sms, "direct"),
        "send_sms, SQS record": call(send_sms, "sqs"),
        "baseline, SQS record": call(environment.baselines["baseline, batch"], "sqs"),
        "webhook, form": call(webhook, "webhook_form"),
        "webhook, JSON": call(webhook, "webhook_json"),
    }


def _signatures(environment: Environment) -> dict[str, Workload]:
    return {
        "ours": Workload(environment.functions["webhook"], ("validations", "ours"), _VALIDATIONS, 50),
        "RequestValidator": Workload(
            environment.baselines["baseline compiled"], ("validations", "official"), _VALIDATIONS, 50
        ),
    }


def _figures(workloads: Mapping[str, Workload], rounds: int) -> Figures:
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker(name, workload)) for name, workload in workloads.items()}
        turns = {
            name: partial(workers[name].run, workload.times, workload.warm_up) for name, workload in workloads.items()
        }
        in_turns(turns, 2)
        results = in_turns(turns, rounds)
    figures: Figures = {}
    for name, measurements in results.items():
        figures[f"{name}/wall"] = Samples(tuple(measurement.wall * 1e6 for measurement in measurements), "µs")
        figures[f"{name}/cpu"] = Samples(tuple(measurement.cpu * 1e6 for measurement in measurements), "µs")
        if name.startswith(("warm/send_sms", "warm/baseline")):
            bare = results["warm/bare requests"]
            beyond = (measurement.cpu - least.cpu for measurement, least in zip(measurements, bare, strict=True))
            figures[f"{name}/cpu beyond bare requests"] = Samples(tuple(each * 1e6 for each in beyond), "µs")
    return figures


def measure_lists(environment: Environment, rounds: int) -> Figures:
    """Measure the listing of all messages of an account, each time in a new process."""
    environment.latencies()
    workloads = {
        "list_sms": Workload(environment.functions["list_sms"], ("lists", "list_sms.handler"), 1, 0),
        "baseline": Workload(environment.baselines["baseline, list"], ("lists", "listing.handler"), 1, 0),
    }

    def once(name: str) -> Measurement:
        with worker(name, workloads[name]) as process:
            return process.run(workloads[name].times, workloads[name].warm_up)

    turns = {name: partial(once, name) for name in workloads}
    in_turns(turns, 1)  # so that the server creates its pages
    figures: Figures = {}
    for name, measurements in in_turns(turns, rounds).items():
        figures[f"list/{name}/time"] = Samples(tuple(measurement.wall for measurement in measurements), "s")
        figures[f"list/{name}/cpu"] = Samples(tuple(measurement.cpu for measurement in measurements), "s")
        figures[f"list/{name}/memory"] = Samples(tuple(measurement.memory / _MB for measurement in measurements), "MB")
    return figures
