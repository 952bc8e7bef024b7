"""Cold starts: initialisation, first invocation and peak memory of each function, compared with the baselines."""

from functools import partial
from typing import Any, NamedTuple

from bench import BenchError, events
from bench.bundle import Candidate
from bench.emulator import Emulator
from bench.environment import Environment
from bench.samples import Figures, Samples, in_turns

_MB = 1024 * 1024
_BACKGROUND = "rotate_connection"  # the function that uses boto3


class Start(NamedTuple):
    """One cold start, in milliseconds and megabytes."""

    init: float
    first: float
    memory: float
    fault: str | None


def measure(environment: Environment, rounds: int, *, short: bool = False) -> Figures:
    """Start every function and baseline in turns; the first round only fills the machine's caches."""
    functions = environment.cold_functions
    candidates = {name: partial(start, function, events.first(name)) for name, function in functions.items()}
    others = {"baseline as shipped": events.api(0), "baseline compiled": events.api(0), "floor": events.sms(0)}
    if not short:
        others |= {"bare requests": events.sms(0)}
    for name, event in others.items():
        candidates[name] = partial(start, environment.cold_baselines[name], event)
    in_turns(candidates, 1)
    results = in_turns(candidates, rounds)
    for name in ("send_sms", *others):
        if fault := results[name][0].fault:
            raise BenchError(f"The first invocation of {name} failed: {fault}.")
    figures: Figures = {}
    for name, starts in results.items():
        if name in {"send_sms", *others}:
            figures |= _figures(f"cold/{name}", starts)
        if name in {*functions, "floor"}:
            figures |= _figures(f"{'background' if name == _BACKGROUND else 'functions'}/{name}", starts)
    return figures


def start(candidate: Candidate, event: Any) -> Start:
    """Start one environment, and invoke it once."""
    with Emulator(candidate) as emulator:
        answer = emulator.invoke(event)
        first = emulator.invocations_ms[0]
        return Start(emulator.init_ms, first, emulator.peak_bytes / _MB, events.fault(answer))


def _figures(name: str, starts: list[Start]) -> Figures:
    return {
        f"{name}/init": Samples(tuple(each.init for each in starts), "ms"),
        f"{name}/first": Samples(tuple(each.first for each in starts), "ms"),
        f"{name}/both": Samples(tuple(each.init + each.first for each in starts), "ms"),
        f"{name}/memory": Samples(tuple(each.memory for each in starts), "MB"),
    }
