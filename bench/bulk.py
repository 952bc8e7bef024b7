"""Bulk: a batch of many messages in one function, compared with the baseline that sends them in sequence."""

import math
from functools import partial
from typing import NamedTuple

from bench import BenchError, events
from bench.bundle import Candidate
from bench.emulator import Emulator
from bench.environment import Environment
from bench.samples import Figures, Samples, in_turns
from bench.warm import Workload, worker

MESSAGES = 1000
THREADS = 32
TWILIO_SECONDS = 0.150
AWS_SECONDS = 0.005  # the duration of a write to DynamoDB

_BASELINE_MESSAGES = 20  # in sequence, each record takes equally long, so 1,000 take fifty times as long
_ALONE = 100
_GROWTH = (10, 100, 1000, 10_000)
_MB = 1024 * 1024


class Batch(NamedTuple):
    """The figures of one batch: its milliseconds, and the peak memory in megabytes.

    `most` and `mean` are the requests to Twilio in flight. `twilio` and `aws` are the seconds of one request there.
    """

    ms: float
    most: float
    mean: float
    twilio: float
    aws: float
    memory: float


def measure(environment: Environment, rounds: int, *, short: bool = False) -> Figures:
    """Send batches in turns with and without the ledger, then with the baseline, then batches of growing size."""
    send_sms = environment.functions["send_sms"].set(SEND_THREADS=str(THREADS))
    without = ("-m", "bench.without_ledger")
    turns = {
        "with ledger": partial(send, environment, send_sms, MESSAGES),
        "alone": partial(_alone, environment),
    }
    if not short:
        turns["without ledger"] = partial(send, environment, send_sms.with_bench_on_path(), MESSAGES, without)
    results = in_turns(turns, rounds)
    baseline = partial(send, environment, environment.baselines["baseline, batch"], _BASELINE_MESSAGES)
    results |= in_turns({"baseline in sequence": baseline}, max(rounds // 3, 1))  # it mostly waits, so it varies little
    alone = results.pop("alone")
    figures: Figures = {}
    for name, batches in results.items():
        count = _BASELINE_MESSAGES if name.startswith("baseline") else MESSAGES
        figures[f"bulk/{name}/time"] = Samples(tuple(batch.ms / count for batch in batches), "s per 1,000")
        figures[f"bulk/{name}/billed"] = Samples(tuple(math.ceil(batch.ms) / count for batch in batches), "ms")
        figures[f"bulk/{name}/most in flight"] = Samples(tuple(batch.most for batch in batches), "requests")
        figures[f"bulk/{name}/mean in flight"] = Samples(tuple(batch.mean for batch in batches), "requests")
        figures[f"bulk/{name}/memory"] = Samples(tuple(batch.memory for batch in batches), "MB")
    writes = Samples(tuple(batch.ms for batch in alone), "ms")
    figures["bulk/two writes alone/time"] = writes
    # On a busy machine the servers answer late too, so their times in the batch count.
    ideal = (
        MESSAGES / THREADS * (batch.twilio + two_writes.ms / 1000 + 2 * (batch.aws - two_writes.aws))
        for batch, two_writes in zip(results["with ledger"], alone, strict=True)
    )
    figures["bulk/ideal/time"] = Samples(tuple(ideal), "s per 1,000")
    figures["bulk/ideal without ledger/time"] = Samples.one(MESSAGES / THREADS * TWILIO_SECONDS, "s per 1,000")
    return figures if short else figures | _growth(environment, send_sms)


def send(
    environment: Environment, candidate: Candidate, count: int, start: tuple[str, ...] = ("-m", "awslambdaric")
) -> Batch:
    """Start an environment, warm it with one message, and send a batch in one invocation."""
    with Emulator(candidate, start) as emulator:
        environment.latencies()
        _sent(emulator, 0, 1)
        environment.latencies(TWILIO_SECONDS, AWS_SECONDS)
        _sent(emulator, 1, count)
        load = environment.load()
        twilio, aws = load["twilio"], load["aws"]
        if twilio["requests"] != count:
            raise BenchError(f"{candidate.name} made {twilio['requests']} requests for {count} messages.")
        memory = emulator.peak_bytes / _MB
        return Batch(
            emulator.invocations_ms[-1], twilio["most"], twilio["mean"], twilio["seconds"], aws["seconds"], memory
        )


def _sent(emulator: Emulator, first: int, count: int) -> None:
    if fault := events.fault(emulator.invoke(events.records(first, count))):
        raise BenchError(f"A batch of {count} failed: {fault}.")


def _alone(environment: Environment) -> Batch:
    """Make the ledger's two writes of a send, without the send."""
    environment.latencies(TWILIO_SECONDS, AWS_SECONDS)
    with worker("the ledger", Workload(environment.functions["send_sms"], ("ledger_writes",), _ALONE)) as process:
        done = process.run(_ALONE, 2)
    return Batch(done.wall * 1000, 0, 0, 0, environment.load()["aws"]["seconds"], 0)


def _growth(environment: Environment, send_sms: Candidate) -> Figures:
    """Send growing numbers of messages, in batches of at most 1,000, each number in a separate environment."""
    figures: Figures = {}
    for total in _GROWTH:
        with Emulator(send_sms) as emulator:
            environment.latencies(TWILIO_SECONDS, AWS_SECONDS)
            _sent(emulator, 0, 1)
            for first in range(1, total + 1, MESSAGES):
                _sent(emulator, first, min(MESSAGES, total))
            seconds = sum(emulator.invocations_ms[1:]) / 1000
            figures[f"growth/{total} messages/time"] = Samples.one(seconds, "s")
            figures[f"growth/{total} messages/memory"] = Samples.one(emulator.peak_bytes / _MB, "MB")
    return figures
