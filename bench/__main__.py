"""The commands behind `make bench` and `make bench-check`."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import FOLDER, ROOT, BenchError, budgets, bulk, cold, cost, report, size, sweep, warm
from bench.environment import Environment, open_environment
from bench.samples import Figures
from local import LocalError

ROUNDS = 15
_PLOTS = ROOT / ".venv-bench" / "bin" / "python"


def _few(rounds: int) -> int:
    """Return the number of rounds for measurements that take seconds."""
    return max(rounds // 3, 1)


GROUPS: dict[str, Callable[[Environment, int], Figures]] = {
    "cold": cold.measure,
    "warm": warm.measure,
    "bulk": bulk.measure,
    "list": lambda environment, rounds: warm.measure_lists(environment, _few(rounds)),
    "size": lambda environment, _: size.measure(environment),
    "sweep": lambda environment, rounds: sweep.measure(environment, _few(rounds)),
}
"""The groups of measurements; `all` leaves out the sweep, which does not measure the code."""


def main() -> int:
    """Run a command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("command", choices=["all", "check", "cost", *GROUPS])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each candidate has its turn")
    parser.add_argument("--memory", type=int, default=512, help="of cost: MB")
    options = parser.parse_args()
    try:
        match options.command:
            case "cost":
                print(cost.inputs(options.memory))
            case "check":
                return _check(options.rounds)
            case "all":
                _measure([name for name in GROUPS if name != "sweep"], options.rounds)
            case group:
                _measure([group], options.rounds)
    except (BenchError, LocalError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _measure(groups: list[str], rounds: int) -> None:
    """Measure groups; print their tables, and the budgets for them."""
    figures: Figures = {}
    files = []
    with open_environment() as environment:
        for name in groups:
            began = time.monotonic()
            found = GROUPS[name](environment, rounds)
            figures |= found
            files.append(report.save(name, found))
            print(f"\n{report.tables(found)}\n\n{name}: {time.monotonic() - began:.0f} s", flush=True)
    measured = [result for result in budgets.evaluate(budgets.load(), figures) if result.ratio is not None]
    if measured:
        print(f"\n{budgets.table(measured, figures)}")
    _plot(files)


def _check(rounds: int) -> int:
    """Measure the figures that the budgets need; return 1 if a budget is exceeded."""
    began = time.monotonic()
    with open_environment() as environment:
        ready = time.monotonic()
        figures = size.measure(environment)
        figures |= cold.measure(environment, rounds, short=True)
        figures |= warm.measure(environment, rounds, short=True)
        figures |= bulk.measure(environment, rounds, short=True)
    report.save("check", figures)
    results = budgets.evaluate(budgets.load(), figures)
    print(budgets.table(results, figures))
    print(f"\nSet up in {ready - began:.0f} s, measured in {time.monotonic() - ready:.0f} s.")
    return 0 if all(result.is_met for result in results) else 1


def _plot(files: list[Path]) -> None:
    """Plot results, if the environment for plots exists."""
    if _PLOTS.exists():
        command = [str(_PLOTS), "-m", "bench.plots", *map(str, files)]
        variables = {"MPLCONFIGDIR": str(FOLDER), "PATH": os.defpath}
        done = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True, check=False)
        print(f"\nPlots:\n{done.stdout}" if done.returncode == 0 else "The plots failed; the reason is above.")


if __name__ == "__main__":
    sys.exit(main())
