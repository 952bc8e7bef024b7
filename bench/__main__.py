"""The commands behind `make bench` and `make bench-check`."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import FOLDER, ROOT, BenchError, budgets, bulk, cold, cost, report, size, sweep, warm
from bench.samples import Figures
from bench.stage import Stage, open_stage
from local import LocalError

ROUNDS = 15
_PLOTS = ROOT / ".venv-bench" / "bin" / "python"


def _few(rounds: int) -> int:
    """Return how often what takes seconds is measured."""
    return max(rounds // 3, 1)


GROUPS: dict[str, Callable[[Stage, int], Figures]] = {
    "cold": cold.measure,
    "warm": warm.measure,
    "bulk": lambda stage, rounds: bulk.measure(stage, _few(rounds)),
    "list": lambda stage, rounds: warm.measure_lists(stage, _few(rounds)),
    "size": lambda stage, _: size.measure(stage),
    "sweep": lambda stage, rounds: sweep.measure(stage, _few(rounds)),
}
"""What is measured; `all` leaves out the sweep, which says nothing of the code."""


def main() -> int:
    """Run a command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("command", choices=["all", "check", "cost", *GROUPS])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each contestant has its turn")
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
    """Measure groups; print their tables, and the budgets that they tell of."""
    figures: Figures = {}
    files = []
    with open_stage() as stage:
        for name in groups:
            began = time.monotonic()
            found = GROUPS[name](stage, rounds)
            figures |= found
            files.append(report.save(name, found))
            print(f"\n{report.tables(found)}\n\n{name}: {time.monotonic() - began:.0f} s", flush=True)
    told = [verdict for verdict in budgets.judge(budgets.load(), figures) if verdict.ratio is not None]
    if told:
        print(f"\n{budgets.table(told, figures)}")
    _plot(files)


def _check(rounds: int) -> int:
    """Measure what the budgets need; return 1 where one is not kept."""
    began = time.monotonic()
    with open_stage() as stage:
        ready = time.monotonic()
        figures = size.measure(stage)
        figures |= cold.measure(stage, rounds, short=True)
        figures |= warm.measure(stage, rounds, short=True)
        figures |= bulk.measure(stage, 3, short=True)
    report.save("check", figures)
    verdicts = budgets.judge(budgets.load(), figures)
    print(budgets.table(verdicts, figures))
    print(f"\nSet up in {ready - began:.0f} s, measured in {time.monotonic() - ready:.0f} s.")
    return 0 if all(verdict.is_kept for verdict in verdicts) else 1


def _plot(files: list[Path]) -> None:
    """Plot results, where the environment for it is there."""
    if _PLOTS.exists():
        command = [str(_PLOTS), "-m", "bench.plots", *map(str, files)]
        variables = {"MPLCONFIGDIR": str(FOLDER), "PATH": os.defpath}
        done = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True, check=False)
        print(f"\nPlots:\n{done.stdout}" if done.returncode == 0 else "The plots failed; the reason is above.")


if __name__ == "__main__":
    sys.exit(main())
