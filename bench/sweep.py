"""Memory sizes: the duration and cost of send_sms with the share of a processor that Lambda gives to each size."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench import BenchError, events
from bench.bulk import AWS_SECONDS, TWILIO_SECONDS
from bench.emulator import Emulator
from bench.environment import Environment
from bench.samples import Figures, Samples, in_turns

SIZES = (128, 256, 512, 768, 1024, 1769)  # MB
FULL = 1769
"""MB at which a function has one processor (https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html)."""

_ROOT = Path("/sys/fs/cgroup")
_PERIOD = 20_000  # µs; the period that Lambda uses
_CALLS = 5
_BATCH = 10  # records, as in the template
_MB = 1024 * 1024
_START = ("-m", "bench.throttled")


class Run(NamedTuple):
    """The figures of one environment, in milliseconds and megabytes."""

    init: float
    first: float
    direct: list[float]
    with_key: list[float]
    by_queue: list[float]
    memory: float


def measure(environment: Environment, rounds: int, sizes: tuple[int, ...] = SIZES) -> Figures:
    """Measure all sizes in turns; Twilio and AWS have the same latencies as in the bulk benchmark."""
    environment.latencies(TWILIO_SECONDS, AWS_SECONDS)
    figures: Figures = {}
    for size, runs in in_turns({str(size): partial(_run, environment, size) for size in sizes}, rounds).items():
        name = f"sweep/{size} MB"
        figures[f"{name}/init"] = Samples(tuple(run.init for run in runs), "ms")
        figures[f"{name}/first"] = Samples(tuple(run.first for run in runs), "ms")
        direct = Samples(tuple(ms for run in runs for ms in run.direct), "ms")
        with_key = Samples(tuple(ms for run in runs for ms in run.with_key), "ms")
        by_queue = Samples(tuple(math.ceil(ms) / _BATCH for run in runs for ms in run.by_queue), "ms")
        for way, samples in (("direct", direct), ("direct with key", with_key), ("by queue", by_queue)):
            figures[f"{name}/{way}"] = samples
            billed = math.ceil(samples.median) if way != "by queue" else samples.median
            figures[f"{name}/{way}, cost"] = Samples.one(billed * int(size) / 1024, "GB-s per 1,000")
        figures[f"{name}/memory"] = Samples(tuple(run.memory for run in runs), "MB")
    return figures


def _run(environment: Environment, size: int) -> Run:
    with _quota(size) as processes:
        candidate = environment.functions["send_sms"].set(
            BENCH_QUOTA=str(processes), AWS_LAMBDA_FUNCTION_MEMORY_SIZE=str(size)
        )
        with Emulator(candidate.with_bench_on_path(), _START) as emulator:
            invocations = [events.api(0)]
            invocations += [events.api(index) for index in range(_CALLS)]
            invocations += [events.api_with_key(os.getpid() + index) for index in range(_CALLS)]
            invocations += [events.records(1 + index * _BATCH, _BATCH) for index in range(_CALLS)]
            environment.latencies(TWILIO_SECONDS, AWS_SECONDS)
            for event in invocations:
                if fault := events.fault(emulator.invoke(event)):
                    raise BenchError(f"An invocation at {size} MB failed: {fault}.")
            first, *others = emulator.invocations_ms
            return Run(
                emulator.init_ms,
                first,
                others[:_CALLS],
                others[_CALLS : 2 * _CALLS],
                others[2 * _CALLS :],
                emulator.peak_bytes / _MB,
            )


@contextmanager
def _quota(size: int) -> Iterator[Path]:
    """Create a control group with the share of a processor that Lambda gives; yield its file of processes."""
    group = _group(size)
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def _group(size: int) -> Path:
    """Create a control group through version 1 or 2 of the kernel's interface; return its folder."""
    quota = max(_PERIOD * size // FULL, 1000)  # the kernel's minimum
    version_1 = {"cpu.cfs_period_us": str(_PERIOD), "cpu.cfs_quota_us": str(quota)}
    for root, settings in ((_ROOT / "cpu", version_1), (_ROOT, {"cpu.max": f"{quota} {_PERIOD}"})):
        group = root / f"bench-{os.getpid()}-{size}"
        with suppress(OSError):
            group.mkdir()
            try:
                for name, value in settings.items():
                    (group / name).write_text(value)
            except OSError:
                group.rmdir()
                raise
            return group
    raise BenchError("No control group with a processor's quota can be made here: the sweep needs root, and cgroups.")
