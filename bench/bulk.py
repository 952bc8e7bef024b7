"""Bulk: a batch of many messages through one function, beside the peer that sends one after the other."""

import math
from functools import partial
from typing import NamedTuple

from bench import BenchError, events
from bench.bundle import Contestant
from bench.emulator import Emulator
from bench.samples import Figures, Samples, in_turns
from bench.stage import Stage
from bench.warm import Work, worker

MESSAGES = 1000
THREADS = 32
TWILIO_SECONDS = 0.150
AWS_SECONDS = 0.005  # what DynamoDB takes for a write

_PEER_MESSAGES = 20  # in sequence each takes as long as the next, so a thousand take fifty times as long
_ALONE = 40
_GROWTH = (10, 100, 1000, 10_000)
_MB = 1024 * 1024


class Batch(NamedTuple):
    """What one batch took: milliseconds, requests to Twilio at a time, megabytes."""

    ms: float
    most: float
    mean: float
    memory: float


def measure(stage: Stage, rounds: int, *, short: bool = False) -> Figures:
    """Send batches in turns with and without the ledger, and by the peer; then batches that grow."""
    send_sms = stage.functions["send_sms"].set(SEND_THREADS=str(THREADS))
    without = ("-m", "bench.without_ledger")
    turns = {
        "with ledger": partial(send, stage, send_sms, MESSAGES),
        "peer in sequence": partial(send, stage, stage.peers["peer, batch"], _PEER_MESSAGES),
        "alone": partial(_alone, stage),
    }
    if not short:
        turns["without ledger"] = partial(send, stage, send_sms.reaching_bench(), MESSAGES, without)
    results = in_turns(turns, rounds)
    alone = results.pop("alone")
    figures: Figures = {}
    for name, batches in results.items():
        count = _PEER_MESSAGES if name.startswith("peer") else MESSAGES
        figures[f"bulk/{name}/time"] = Samples(tuple(batch.ms / count for batch in batches), "s per 1,000")
        figures[f"bulk/{name}/billed"] = Samples(tuple(math.ceil(batch.ms) / count for batch in batches), "ms")
        figures[f"bulk/{name}/most in flight"] = Samples(tuple(batch.most for batch in batches), "requests")
        figures[f"bulk/{name}/mean in flight"] = Samples(tuple(batch.mean for batch in batches), "requests")
        figures[f"bulk/{name}/memory"] = Samples(tuple(batch.memory for batch in batches), "MB")
    writes = Samples(tuple(batch.ms for batch in alone), "ms")
    figures["bulk/two writes alone/time"] = writes
    figures["bulk/ideal/time"] = Samples(
        tuple(MESSAGES / THREADS * (TWILIO_SECONDS + ms / 1000) for ms in writes.values), "s per 1,000"
    )
    figures["bulk/ideal without ledger/time"] = Samples.one(MESSAGES / THREADS * TWILIO_SECONDS, "s per 1,000")
    return figures if short else figures | _growth(stage, send_sms)


def send(stage: Stage, contestant: Contestant, count: int, start: tuple[str, ...] = ("-m", "awslambdaric")) -> Batch:
    """Start an environment, warm it with one message, and send a batch in one invocation."""
    with Emulator(contestant, start) as emulator:
        stage.latencies()
        _sent(emulator, 0, 1)
        stage.latencies(TWILIO_SECONDS, AWS_SECONDS)
        _sent(emulator, 1, count)
        load = stage.load()["twilio"]
        if load["requests"] != count:
            raise BenchError(f"{contestant.name} made {load['requests']} requests for {count} messages.")
        return Batch(emulator.invocations_ms[-1], load["most"], load["mean"], emulator.peak_bytes / _MB)


def _sent(emulator: Emulator, first: int, count: int) -> None:
    if fault := events.fault(emulator.invoke(events.records(first, count))):
        raise BenchError(f"A batch of {count} failed: {fault}.")


def _alone(stage: Stage) -> Batch:
    """Make the ledger's two writes with nothing beside them."""
    stage.latencies(TWILIO_SECONDS, AWS_SECONDS)
    with worker("the ledger", Work(stage.functions["send_sms"], ("ledger_writes",), _ALONE)) as process:
        done = process.run(_ALONE, 2)
    return Batch(done.wall * 1000, 0, 0, 0)


def _growth(stage: Stage, send_sms: Contestant) -> Figures:
    """Send more and more, in batches of at most a thousand, each size in an environment of its own."""
    figures: Figures = {}
    for total in _GROWTH:
        with Emulator(send_sms) as emulator:
            stage.latencies(TWILIO_SECONDS, AWS_SECONDS)
            _sent(emulator, 0, 1)
            for first in range(1, total + 1, MESSAGES):
                _sent(emulator, first, min(MESSAGES, total))
            seconds = sum(emulator.invocations_ms[1:]) / 1000
            figures[f"growth/{total} messages/time"] = Samples.one(seconds, "s")
            figures[f"growth/{total} messages/memory"] = Samples.one(emulator.peak_bytes / _MB, "MB")
    return figures
